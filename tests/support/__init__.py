"""What the tests are built with; none of these modules holds a test.

builder          writes small stores (`StoreBuilder`, `rows`, `bag`) as a server would have left them
filters          bloom filters as a server makes them, id by id
damage           ways in which files are damaged, by kind
mutate           damages real stores and judges what the reader made of them
history          a model of the server: random histories with crashes, and what a restarted server would serve
unlucky          that model losing what it has acknowledged, as a running 1.1.1 does
lives            whole histories of that model, read after each crash
damaged          stores for what people see: one that lost rows, one with the names that people really give
dumps            a small catalog in every form of a dump, and what may become of a byte of it
badsectors       disks that refuse some sectors
refusing         file systems without locks, users who may not read everything
volumes          a volume whose files can share blocks (XFS)
absent           skips where a machine lacks something, and fails with CI=true
real, healthy    the real stores under fixtures/stores with their truth; whole copies of them, and what is right for each
certificates     an authority and its certificates, for TLS
consoles         runs the console blocks of the documents
examples         runs the Python of a document
command          the command line in this process or in one of its own, and what it left behind
faiss_indexes    small Faiss indexes, and what comes out of them
array_source     a source whose rows are given as arrays
foreign          files of vectors as others write them, with the rows that are right
tables           rows of engines' tables, to be compared
nearest          brute force in float64: what an exact search has to find
mariadb          a MariaDB of the tests' own
milvus_server    a real Milvus 2.3.5 in a network namespace of its own
milvus_proxy     servers from 2.4 on: the real 2.3.5 with the answers that differ
milvus1_standin  a 1.x server's gRPC service that keeps rows in memory
client_1x        a real client of 1.x: pymilvus 1.1.2 in an environment of its own
served           `serve` in a process of its own, and raw calls of its service
bucket           an S3-compatible server that can be busy
daskcluster      a Dask scheduler and workers
"""
