"""What people type by mistake: one sentence each that says what is wrong and what to do, and nothing is written."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, fingerprint

from milvus_offline.commands.command import SourceOrTarget, Target
from milvus_offline.errors import TargetError

USAGE, FAILED = 2, 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the calls name: a store, an export, files of all kinds."""
    root = tmp_path_factory.mktemp("world")
    b = StoreBuilder(root / "store")
    b.collection("faces")
    segment = b.segment("faces", rows(1, 2, 3))
    b.segment(b.partition("faces", "red")["table_id"], rows(4))
    b.wal.insert("faces", rows(9))
    store = b.write()
    (root / "segment").symlink_to(segment.folder)
    (root / "tables").symlink_to(store / "db" / "tables")
    assert call("export", store, root / "export", "-q").code == 0
    unfinished = root / "unfinished"
    unfinished.mkdir()
    (unfinished / ".milvus-offline-ledger.jsonl").write_text("{}\n")
    (root / "notes.txt").write_text("hello")
    (root / "notes.db").write_text("hello")
    (root / "meta.sqlite-wal").write_bytes(b"7\x7f\x06\x82\x00-\xe2\x18")
    (root / "empty").mkdir()
    (root / "empty.h5").write_bytes(b"")
    np.save(root / "x.npy", np.zeros((2, 4), "f4"))
    with h5py.File(root / "x.h5", "w") as h:
        h["embeddings"] = np.zeros((2, 4), "f4")
        h["ids"] = np.arange(2)
    with h5py.File(root / "other.h5", "w") as h:
        h["data"] = np.zeros((2, 4), "f8")
        h["more"] = np.zeros((2, 4), "f8")
    shutil.make_archive(str(root / "backup"), "gztar", store)
    shutil.make_archive(str(root / "backup"), "zip", store)
    (root / "dump.sql").write_text("-- MySQL dump 10.13\n")
    (root / "dump.sql.gz").write_bytes(gzip.compress(b"-- MySQL dump 10.13\n"))
    (root / "task.yaml").write_text("M2H:\n  milvus_dir: /nowhere\n  data_dir: x\n  dest_hots: y\n")
    (root / "broken.yaml").write_text("M2H: [\n")
    (root / "list.yaml").write_text("- a\n")
    (root / "full").mkdir()
    (root / "full" / "letter.txt").write_text("mine")
    (root / "two").mkdir()
    shutil.copytree(store, root / "two" / "a")
    shutil.copytree(store, root / "two" / "b")
    for name in ("insert_log", "delta_log"):
        (root / "milvus2" / name).mkdir(parents=True)
    (root / "milvus011" / "db" / "tables" / "C_1" / "P_1" / "S_1").mkdir(parents=True)
    (root / "nocatalog" / "db" / "tables").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    (root / "dangling").symlink_to("gone")
    (root / "noise.bin").write_bytes(np.random.default_rng(5).bytes(5000))
    (root / "segment.rv").write_bytes(segment.raw.read_bytes())
    (root / "host.yaml").write_text("M2M:\n  source_milvus_path: /x\n  source_collection: {a: []}\n  dest_hots: y\n")
    (root / "json.json").write_text(json.dumps({"a": 1}))
    return root


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    do_POST = do_PRI = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Ports: WEB is a web server, SILENT takes connections and says nothing, CLOSED nobody listens on."""
    web = HTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as s:
        closed = s.getsockname()[1]
    yield {"WEB": str(web.server_port), "SILENT": str(silent.getsockname()[1]), "CLOSED": str(closed)}
    web.shutdown()
    web.server_close()
    silent.close()


Wrong = tuple[str, int, tuple[str, ...]]
READ: list[Wrong] = [
    # A file that is none of ours: what it is, and which kinds are read
    ("inspect notes.txt", USAGE, ("notes.txt", "a text file; read are a store, an export, HDF5", "a Faiss index")),
    ("inspect noise.bin", USAGE, ("noise.bin", "read are a store, an export, HDF5")),
    ("load notes.txt x.db", USAGE, ("notes.txt", "read are a store")),
    ("load noise.bin x.db", USAGE, ("noise.bin", "read are a store")),
    # What is named as the catalog is none
    ("inspect store --catalog notes.txt", FAILED, ("neither a catalog nor a dump of one",)),
    ("inspect store --catalog x.npy", FAILED, ("neither a catalog nor a dump of one",)),
    # A server of 1.x that is down, and a web server in its place
    ("load store milvus1://127.0.0.1:CLOSED", FAILED, ("nothing listens on port", "start the server")),
    ("load store milvus1://127.0.0.1:WEB", FAILED, ("is not Milvus' gRPC service", "usually 19530")),
    ("load store milvus1://no-such-host.invalid:19530", FAILED, ("no-such-host.invalid", "check its spelling")),
    # Something to verify that is no export
    ("verify x.h5", USAGE, ("HDF5 files", "xport them", "--against x.h5")),
    ("verify full", FAILED, ("not a Milvus 1.x data folder", "Name the folder")),
    ("verify export/faces", USAGE, ("HDF5 files", "--against")),
    # Options in the wrong place
    ("--json inspect store", USAGE, ("--json goes after the command",)),
    ("export store out --yaml x", USAGE, ("--yaml does not go with export, but with run",)),
    # Commands that there are not
    ("inpsect store", USAGE, ("did you mean inspect",)),
    ("exprot store out", USAGE, ("did you mean export",)),
    ("ls store", USAGE, ("did you mean inspect",)),
    ("help", USAGE, ("milvus-offline --help",)),
    ("store", USAGE, ("milvus-offline inspect store",)),
    # Targets without a scheme, or with another one
    ("load store localhost:19530", USAGE, ("did you mean http://localhost:19530",)),
    ("load store milvus.prod", USAGE, ("did you mean http://milvus.prod:19530", "milvus1:PATH")),
    ("load store tcp://host:19530", USAGE, ("did you mean http://host:19530",)),
    # A server that is down, none of Milvus, unknown, hanging; TLS where there is none
    ("load store http://127.0.0.1:CLOSED", FAILED, ("nothing listens", "start the server")),
    ("load store http://127.0.0.1:WEB", FAILED, ("127.0.0.1", "is not Milvus")),
    ("load store http://no-such-host.invalid:19530", FAILED, ("no-such-host.invalid", "check its spelling")),
    ("load store http://127.0.0.1:SILENT --patience 1", FAILED, ("accepts connections and does not answer", "hanging")),
    ("load store https://127.0.0.1:WEB", FAILED, ("the server speaks without TLS: use http://127.0.0.1",)),
    # Places on other machines
    ("inspect s3:/bucket/x", USAGE, ("did you mean s3://bucket/x",)),
    ("inspect host:/var/lib/milvus", USAGE, ("not on this machine", "rsync -a")),
    # Standard output for a folder
    ("export store -", USAGE, ("cannot go to standard output: name a folder",)),
    # A part of a store
    ("inspect segment", FAILED, ("a folder inside of the store", "name that folder")),
    ("inspect store/db/tables/faces", FAILED, ("a folder inside of the store", "name that folder")),
    # Task files that are no YAML
    ("run broken.yaml", USAGE, ("broken.yaml, line 2, column 1", "neither YAML nor JSON")),
    # A report where there is no folder
    ("inspect store --html nowhere/x.html", FAILED, ("cannot write the report: there is no folder",)),
    # Several names in one option
    ("export store out -c faces,red", USAGE, ("each name has an option of its own: -c faces -c red", "there are: faces")),
    # Names that are not there
    ("export store out -c face", USAGE, ("no collection matches 'face'", "there are: faces")),
    ("export store out -p blue", USAGE, ("no partition matches 'blue'", "red")),
    # Other versions
    ("inspect milvus2", FAILED, ("Milvus 2.x", "use milvus-backup")),
    ("inspect milvus011", FAILED, ("0.11", "export through its API")),
    # Packed backups, and single files of a store
    ("inspect backup.tar.gz", USAGE, ("packed file (gzip)", "unpack it")),
    ("inspect segment.rv", USAGE, ("a single file of a store", "name the folder of the store")),
    ("inspect store/db/meta.sqlite", USAGE, ("--catalog",)),
    # Into the source
    ("export store store/out", USAGE, ("inside the source", "choose another place")),
    # Keys of a task file
    ("run host.yaml", USAGE, ("did you mean dest_host?",)),
]
"""The calls that were answered wrongly or weakly once, in the order of that reading, and those it found best."""

NEIGHBOURS: list[Wrong] = [
    ("inspect stor", FAILED, ("no such file or folder", "did you mean", "/store?")),
    ("inspect store2/db", FAILED, ("not even", "store2 is there")),
    ("load nowhere x.db", FAILED, ("no such file or folder", "check the name")),
    ("load nowhere milvus1:new", FAILED, ("no such file or folder", "check the name")),
    ("rows nowhere", FAILED, ("no such file or folder",)),
    ("search nowhere --id 1", FAILED, ("no such file or folder",)),
    ("serve nowhere", FAILED, ("no such file or folder",)),
    ("verify export --against nowhere", FAILED, ("no such file or folder",)),
    ("inspect s3://", USAGE, ("s3:// names no bucket: did you mean s3://BUCKET/FOLDER?",)),
    ("verify s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("rows gs://", USAGE, ("did you mean gs://BUCKET/FOLDER?",)),
    ("search s3:///b/x --id 1", USAGE, ("did you mean s3://b/x?",)),
    ("serve az://", USAGE, ("did you mean az://BUCKET/FOLDER?",)),
    ("run s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("load s3:// x.db", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("export s3:// out", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("export store s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("verify export --against s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("inspect store --catalog s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("inspect store --wal s3:", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("load store http://127.0.0.1:CLOSED --import-to s3://", USAGE, ("did you mean s3://BUCKET/FOLDER?",)),
    ("load store s3://bucket/x", USAGE, ("rows go into a bucket as files: export SOURCE s3://bucket/x --format parquet",)),
    ("inspect S3://bucket/x", USAGE, ("did you mean s3://bucket/x?",)),
    ("inspect s3a://bucket/x", USAGE, ("did you mean s3://bucket/x?",)),
    ("inspect file:///var/lib/milvus", USAGE, ("did you mean /var/lib/milvus?",)),
    ("export store file:///backup", USAGE, ("did you mean /backup?",)),
    ("inspect store --html s3://bucket/x.html", USAGE, ("--html writes a file", "name one on this machine")),
    ("inspect store --html -", USAGE, ("--html cannot go to standard output: name a file",)),
    ("inspect store --html", USAGE, ("--html needs a value",)),
    ("inspect store --log-file s3://bucket/x", USAGE, ("--log-file writes a file",)),
    ("inspect store --log-file nowhere/x.log", USAGE, ("there is no folder",)),
    ("export store out --lost-ids s3://bucket/x", USAGE, ("--lost-ids writes a file",)),
    ("export store out -c faces/red", USAGE, ("a partition of one collection: -c faces -p red",)),
    ("export store out --jobs=", USAGE, ("'' is not a whole number from 1 to 64",)),
    ("rows store --id seven", USAGE, ("'seven' is not a whole number",)),
    ("rows store --ids-file notes.txt", USAGE, ("expected whole numbers", "found 'hello'")),
    ("rows x.h5 --deleted", USAGE, ("--deleted only goes with a store",)),
    ("rows export --deleted", USAGE, ("--deleted only goes with a store: in an export",)),
    ("inspect store --wal empty", USAGE, ("no .wal file", "leave --wal out")),
    ("load store x.sqlite", USAGE, ("export SOURCE OUT", "PATH.db")),
    ("load store x.db --mode appand", USAGE, ("did you mean append?",)),
    ("recover store out", USAGE, ("did you mean export",)),
    ("repair store milvus1:new", USAGE, ("did you mean load",)),
    ("load store milvus1:/dev/null/x", FAILED, ("cannot be written to", "choose another place")),
    ("find store", USAGE, ("did you mean rows",)),
    ("INSPECT store", USAGE, ("did you mean inspect",)),
    ("verify milvus1://127.0.0.1:CLOSED --against store", FAILED, ("nothing listens",)),
    ("inspect meta.sqlite-wal", USAGE, ("a single file of a store", "name the folder of the store")),
    ("export --out out store", USAGE, ("OUT is typed without --out: milvus-offline export [OPTIONS] STORE... OUT",)),
    ("export store -o out", USAGE, ("OUT is typed without -o",)),
    ("load store --target x.db", USAGE, ("TARGET is typed without --target",)),
    ("serve --store store", USAGE, ("STORE is typed without --store",)),
    ("serve store --port 19530", USAGE, ("did you mean --listen HOST:PORT?",)),
    ("export store out --force", USAGE, ("did you mean --overwrite?",)),
    ("search store --id 1 --top-k 3", USAGE, ("did you mean -k N?",)),
    ("load store http://", USAGE, ("the name of the server is missing: http://HOST:19530",)),
    ("rows store --id 1,2", USAGE, ("as in --id 1 --id 2",)),
    ("rows store 42", USAGE, ("42: one word too many", "did you mean --id 42?")),
    ("rows store -c a b", USAGE, ("b: one word too many", "did you mean --collection b?")),
    ("run task.yaml more", USAGE, ("more: one word too many", "milvus-offline run [OPTIONS] TASK.yaml")),
    ("search store --query 0.1,0.2", USAGE, ("--query names a .npy file of vectors",)),
    ("explain 3", USAGE, ("3 is no finding", "rows are lost, or in doubt")),
    ("explain WARN", USAGE, ("how bad a finding is",)),
    ("inspect store --catalog sqlite://:@:/", USAGE, ("leave --catalog out",)),
    ("load store notes.db", FAILED, ("is a file, and Milvus Lite 3 keeps a folder",)),
]
COMMANDS: list[Wrong] = [
    ("verfy store", USAGE, ("did you mean verify",)),
    ("laod store x.db", USAGE, ("did you mean load",)),
    ("info store", USAGE, ("did you mean inspect",)),
    ("check store", USAGE, ("did you mean verify",)),
    ("backup store out", USAGE, ("did you mean export",)),
    ("migrate store x.db", USAGE, ("did you mean load",)),
    ("help export", USAGE, ("milvus-offline export --help",)),
    ("./store", USAGE, ("milvus-offline inspect ./store",)),
    ("/var/lib/milvus", USAGE, ("milvus-offline inspect /var/lib/milvus",)),
    ("qwertz", USAGE, ("there are: inspect",)),
    ("--quiet export store out", USAGE, ("--quiet goes after the command",)),
    ("--catalog x inspect store", USAGE, ("--catalog goes after the command",)),
    ("--nonsense", USAGE, ("there is no option --nonsense", "--help")),
    ("inspect", USAGE, ("STORE", "milvus-offline inspect")),
    ("export", USAGE, ("milvus-offline export [OPTIONS] STORE",)),
    ("export store", USAGE, ("OUT", "milvus-offline export")),
    ("load store", USAGE, ("TARGET", "milvus-offline load")),
    ("verify", USAGE, ("STORE|EXPORT",)),
    ("run", USAGE, ("milvus-offline run TASK.yaml",)),
    ("explain segment-mising", USAGE, ("did you mean segment-missing",)),
    ("explain qwertz", USAGE, ("explain lists all",)),
    ("inspect store --jsn", USAGE, ("did you mean --json",)),
    ("inspect store --salvage all", USAGE, ("--salvage does not go with inspect, but with export",)),
    ("export store out --mode skip", USAGE, ("--mode does not go with export, but with load",)),
    ("load store x.db --format npy", USAGE, ("--format does not go with load, but with export",)),
    ("load store x.db --overwrite", USAGE, ("--overwrite does not go with load, but with export",)),
    ("inspect store --against x", USAGE, ("but with verify",)),
    ("export store out --format hdf", USAGE, ("hdf5",)),
    ("export store out --format csv", USAGE, ("hdf5", "parquet", "npy")),
    ("export store out --compression rar", USAGE, ("gzip",)),
    ("export store out --jobs 0", USAGE, ("--jobs", "1")),
    ("export store out --jobs many", USAGE, ("'many' is not a whole number from 1 to 64",)),
    ("load store x.db --verify all", USAGE, ("full",)),
    ("load store x.db --mode replace", USAGE, ("overwrite",)),
    ("verify store --sample 0", USAGE, ("5% or 0.05",)),
    ("verify store --sample much", USAGE, ("5% or 0.05",)),
    ("inspect store --stats soon", USAGE, ("--stats",)),
    ("version", USAGE, ("milvus-offline --version",)),
    ("inspect store --wal=", USAGE, ("--wal is empty", "variable")),
    ("inspect store --catalog=", USAGE, ("--catalog is empty",)),
    ("load store x.db --rename faces=a --rename faces=b", USAGE, ("two new names, a and b",)),
    ("serve store --tls-key notes.txt", USAGE, ("--tls-key goes with --tls-cert",)),
    ("serve store --tls-cert notes.txt", USAGE, ("notes.txt holds no CERTIFICATE",)),
    ("serve store --listen 19530", USAGE, ("HOST:PORT",)),
    ("rows store --csv --json", USAGE, ("choose one",)),
    ("rows store --ids-file nowhere", USAGE, ("no such file or folder",)),
    ("search store --query notes.txt", USAGE, ("expected a .npy file of numbers",)),
    ("search store --query x.h5", USAGE, ("expected a .npy file of numbers",)),
]
SOURCES: list[Wrong] = [
    ("inspect nowhere", FAILED, ("no such file or folder",)),
    ("verify nowhere", FAILED, ("no such file or folder",)),
    ("export nowhere out", FAILED, ("no such file or folder",)),
    ("inspect empty", FAILED, ("not a Milvus 1.x data folder", "meta.sqlite")),
    ("export notes.txt out", USAGE, ("notes.txt",)),
    ("inspect json.json", USAGE, ("json.json",)),
    ("inspect empty.h5", FAILED, ("empty.h5",)),
    ("inspect other.h5", USAGE, ("other.h5", "--embeddings")),
    ("inspect store/db/tables", FAILED, ("a folder inside of the store", "name that folder")),
    ("inspect backup.zip", USAGE, ("packed file (zip)", "unpack it")),
    ("inspect store/wal/0.wal", USAGE, ("a single file of a store",)),
    ("inspect store/wal", FAILED, ("the write-ahead log of the store",)),
    ("inspect dump.sql", USAGE, ("--catalog",)),
    ("inspect dump.sql.gz", USAGE, ("--catalog",)),
    ("inspect two", FAILED, ("several stores", "two/a", "two/b")),
    ("inspect nocatalog", FAILED, ("--catalog", "--no-catalog")),
    ("inspect unfinished", USAGE, ("--resume",)),
    ("inspect -", USAGE, ("standard input cannot be read",)),
    ("inspect http://host:19530", USAGE, ("name the folder of the store",)),
    ("inspect user@host:/var/lib/milvus", USAGE, ("not on this machine", "rsync -a")),
    ("inspect ftp://host/x", FAILED, ("copy it first",)),
    ("inspect store --catalog nowhere.sqlite", FAILED, ("no such catalog file",)),
    ("inspect store --catalog mysql://user:secret@host", USAGE, ("mysql://user@host:3306/database",)),
    ("inspect store --catalog mysql://user:secret@127.0.0.1:1/m", FAILED, ("no answer",)),
    ("inspect store --catalog x --no-catalog", USAGE, ("contradict",)),
    ("inspect store --wal nowhere", USAGE, ("--wal",)),
    ("inspect store --wal store/wal --no-wal", USAGE, ("contradict",)),
    ("inspect store --secondary empty", USAGE, ("secondary root",)),
    ("inspect store --assume faces=L2", USAGE, ("--no-catalog",)),
    ("inspect store --no-catalog --assume faces=COSINE", USAGE, ("COSINE",)),
    ("inspect store --no-catalog --assume faces", USAGE, ("COLLECTION=METRIC",)),
    ("inspect store --partition-map nowhere", USAGE, ("--no-catalog",)),
    ("inspect store --metric L2", USAGE, ("--metric only goes with",)),
    ("inspect store --into x", USAGE, ("--into only goes with",)),
    ("inspect store --ids x.npy", USAGE, ("--ids",)),
    ("inspect store --lossy", USAGE, ("--lossy only goes with",)),
    ("inspect x.h5 --no-wal", USAGE, ("--no-wal only goes with",)),
    ("inspect export --catalog dump.sql", USAGE, ("--catalog only goes with",)),
    ("inspect store --config nowhere.yaml", USAGE, ("nowhere.yaml", "cannot read the configuration")),
    ("inspect store --config broken.yaml", USAGE, ("broken.yaml", "line")),
    ("inspect store --config list.yaml", USAGE, ("jobs: 2",)),
    ("inspect store --config task.yaml", USAGE, ("inspect has no option M2H",)),
    ("inspect store --html store/x.html", USAGE, ("lies inside the source",)),
    ("inspect store export --html x.html", USAGE, ("name one store",)),
    ("inspect store --log-file store/log.txt", USAGE, ("lies inside the source",)),
    ("rows store --npy store/x.npy", USAGE, ("lies inside the source",)),
    ("rows store --npy nowhere/x.npy", FAILED, ("there is no folder",)),
    ("verify store --html nowhere/x.html", FAILED, ("cannot write the report", "there is no folder")),
    ("verify store --lost-ids nowhere/x.csv", FAILED, ("there is no folder",)),
    ("verify nowhere.db --against store", FAILED, ("no such file or folder",)),
    ("inspect pipe", FAILED, ("expected a file, found a named pipe",)),
    ("inspect store --catalog pipe", FAILED, ("expected a file, found a named pipe",)),
]
TARGETS: list[Wrong] = [
    ("export store out --lost-ids store/l.csv", USAGE, ("lies inside the source",)),
    ("export store out --lost-ids nowhere/l.csv", FAILED, ("there is no folder",)),
    ("export store out --lost-ids empty", FAILED, ("it is a folder: name a file",)),
    ("export store dangling", FAILED, ("a link that leads nowhere",)),
    ("load x.db store", USAGE, ("the source comes first", "milvus-offline load store x.db")),
    ("load store http://host:99999", USAGE, ("a port from 1 to 65535",)),
    ("load store http:/host:19530", USAGE, ("did you mean http://host:19530",)),
    ("load store MILVUS1:new", USAGE, ("did you mean milvus1:new",)),
    ("export store http://host:19530", USAGE, ("milvus-offline load",)),
    ("export store host:/backup", USAGE, ("not a folder on this machine",)),
    ("export store full", USAGE, ("not empty",)),
    ("export store notes.txt", USAGE, ("found a file",)),
    ("export store export", USAGE, ("--overwrite",)),
    ("export store export --resume", USAGE, ("is complete",)),
    ("export store out --resume --overwrite", USAGE, ("contradict",)),
    ("export store out --link --format npy", USAGE, ("--link",)),
    ("export store out --compression gzip --format parquet", USAGE, ("--compression",)),
    ("export store out --exclude x", USAGE, ("no excluded name matches",)),
    ("export store out --exclude faces", USAGE, ("nothing is left",)),
    ("export store out --salvage everything", USAGE, ("unseen", "all")),
    ("export export out --salvage all", USAGE, ("--salvage only goes with",)),
    ("export x.h5 out --lost-ids l.csv", USAGE, ("--lost-ids goes with a store",)),
    ("export store store out", USAGE, ("named twice",)),
    ("verify store --against export", USAGE, ("--against goes with an export",)),
    ("verify export --sample 5%", USAGE, ("--sample goes with a store",)),
    ("verify store export --html x.html", USAGE, ("one path",)),
    ("load store grpcs://host:19530", USAGE, ("did you mean https://host:19530",)),
    ("load store htp://host:19530", USAGE, ("did you mean http://host:19530",)),
    ("load store ./folder/new", USAGE, ("milvus1:./folder/new", "./folder/new.db")),
    ("load store -", USAGE, ("standard output is no target",)),
    ("load store milvus1:", USAGE, ("milvus1:PATH",)),
    ("load store milvus1://host:port", USAGE, ("milvus1://",)),
    ("load store milvus1:full", USAGE, ("full",)),
    ("load store milvus1:new --mode append", USAGE, ("--mode",)),
    ("load store milvus1:new --partitions merge", USAGE, ("--partitions",)),
    ("load store http://user:secret@host:19530", USAGE, ("MILVUS_TOKEN",)),
    ("load store x.db --rename a", USAGE, ("OLD=NEW",)),
    ("load store x.db --rename nobody=x", USAGE, ("nobody",)),
    ("load store x.db --rename-map nowhere.yaml", USAGE, ("nowhere.yaml",)),
    ("load store x.db --field-names id", USAGE, ("id,vector",)),
    ("load store x.db --ids some", USAGE, ("keep, auto, row",)),
    ("load store http://127.0.0.1:CLOSED --token-file nowhere", USAGE, ("nowhere",)),
    ("load store http://127.0.0.1:CLOSED --import-path x", USAGE, ("--import-to",)),
    ("load store nowhere/x.db", FAILED, ("no such folder",)),
    ("load store x.db -c nobody", USAGE, ("there are: faces",)),
    ("run nowhere.yaml", USAGE, ("nowhere.yaml",)),
    ("run list.yaml", USAGE, ("list.yaml",)),
    ("run notes.txt", USAGE, ("notes.txt",)),
    ("run task.yaml", USAGE, ("did you mean",)),
    ("run task.yaml --yaml task.yaml", USAGE, ("name one task file",)),
]


ALL = READ + COMMANDS + SOURCES + TARGETS + NEIGHBOURS


def test_no_call_stands_there_twice() -> None:
    assert len({words for words, _, _ in ALL}) == len(ALL)


@pytest.mark.parametrize("words,code,said", ALL, ids=lambda v: v if isinstance(v, str) else "")
def test_one_sentence_says_what_to_do(
    words: str, code: int, said: tuple[str, ...], world: Path, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    for name, port in servers.items():
        words = words.replace(f":{name}", f":{port}")
    before = fingerprint(world)
    done = call(*words.split())
    assert done.code == code, done
    if "--json" in words:
        assert done.json["error"] in done.err
    else:
        assert done.out == ""
    assert done.err.startswith("milvus-offline: ") and "Traceback" not in done.err
    line, *names = done.err.strip().splitlines()
    assert all(name.startswith("  ") for name in names)  # a list of what there is to choose from
    for word in said:
        assert word in done.err, line
    assert "secret" not in line
    assert fingerprint(world) == before


def test_a_home_behind_milvus1_is_a_home(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(world)
    assert call("load", "store", "milvus1:~/new", "-q").code == 0
    assert (tmp_path / "new" / "db").is_dir() and not (world / "~").exists()
    assert not os.path.exists("~")


def test_the_slash_that_a_shell_puts_behind_a_folder_is_no_part_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    assert Target().convert(f"{tmp_path}/x.db/", None, None) == f"{tmp_path}/x.db"
    assert SourceOrTarget().convert(f"{tmp_path}/x.db/", None, None) == f"{tmp_path}/x.db"


def test_patience_holds_while_connecting(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def reached(connection: object, seconds: float) -> None:
        waited.append(seconds)
        raise TargetError("nobody there")

    monkeypatch.chdir(world)
    monkeypatch.setattr("milvus_offline.targets.milvus.client.check_reachable", reached)
    for given in ("0", "3", "300"):
        assert call("load", "store", "http://127.0.0.1:1", "--patience", given).code == 1
    assert waited == [1, 3, 10]
