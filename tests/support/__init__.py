"""What the tests are built with; none of these modules holds a test.

builder          writes small stores (`StoreBuilder`, `rows`, `bag`) as a server would have left them
filters          bloom filters as a server makes them, id by id
damage           ways in which files are damaged, by kind
mutate           damages real stores and judges what the reader made of them
history          a model of the server: random histories with crashes, and what a restarted server would serve
lives            whole histories of that model, read after each crash
real, healthy    the real stores under fixtures/stores with their truth; whole copies of them, and what is right for each
certificates     an authority and its certificates, for TLS
consoles         runs the console blocks of the documents
command          the command line in this process or in one of its own, and what it left behind
faiss_indexes    small Faiss indexes, and what comes out of them
array_source     a source whose rows are given as arrays
mariadb          a MariaDB of the tests' own
milvus_server    a real Milvus 2.3.5 in a network namespace of its own
milvus_proxy     servers from 2.4 on: the real 2.3.5 with the answers that differ
milvus1_standin  a 1.x server's gRPC service that keeps rows in memory
"""
