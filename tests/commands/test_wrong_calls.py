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
COMMANDS: list[Wrong] = [
    ("inpsect store", USAGE, ("did you mean inspect",)),
    ("exprot store out", USAGE, ("did you mean export",)),
    ("verfy store", USAGE, ("did you mean verify",)),
    ("laod store x.db", USAGE, ("did you mean load",)),
    ("ls store", USAGE, ("did you mean inspect",)),
    ("info store", USAGE, ("did you mean inspect",)),
    ("check store", USAGE, ("did you mean verify",)),
    ("backup store out", USAGE, ("did you mean export",)),
    ("migrate store x.db", USAGE, ("did you mean load",)),
    ("help", USAGE, ("milvus-offline --help",)),
    ("help export", USAGE, ("milvus-offline export --help",)),
    ("store", USAGE, ("milvus-offline inspect store",)),
    ("./store", USAGE, ("milvus-offline inspect ./store",)),
    ("/var/lib/milvus", USAGE, ("milvus-offline inspect /var/lib/milvus",)),
    ("qwertz", USAGE, ("there are: inspect",)),
    ("--json inspect store", USAGE, ("--json goes after the command",)),
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
    ("export store out --yaml x", USAGE, ("--yaml does not go with export, but with run",)),
    ("export store out --mode skip", USAGE, ("--mode does not go with export, but with load",)),
    ("load store x.db --format npy", USAGE, ("--format does not go with load, but with export",)),
    ("load store x.db --overwrite", USAGE, ("--overwrite does not go with load, but with export",)),
    ("inspect store --against x", USAGE, ("but with verify",)),
    ("export store out --format hdf", USAGE, ("hdf5",)),
    ("export store out --format csv", USAGE, ("hdf5", "parquet", "npy")),
    ("export store out --compression rar", USAGE, ("gzip",)),
    ("export store out --jobs 0", USAGE, ("--jobs", "1")),
    ("export store out --jobs many", USAGE, ("--jobs", "integer")),
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
    ("load nowhere x.db", USAGE, ("no such file or folder",)),
    ("inspect empty", FAILED, ("not a Milvus 1.x data folder", "meta.sqlite")),
    ("inspect notes.txt", USAGE, ("notes.txt",)),
    ("export notes.txt out", USAGE, ("notes.txt",)),
    ("load notes.txt x.db", USAGE, ("notes.txt",)),
    ("inspect json.json", USAGE, ("json.json",)),
    ("inspect empty.h5", FAILED, ("empty.h5",)),
    ("inspect other.h5", USAGE, ("other.h5", "--embeddings")),
    ("inspect store/db/tables/faces", FAILED, ("a folder inside of the store", "name that folder")),
    ("inspect store/db/tables", FAILED, ("a folder inside of the store", "name that folder")),
    ("inspect backup.tar.gz", USAGE, ("packed file (gzip)", "unpack it")),
    ("inspect backup.zip", USAGE, ("packed file (zip)", "unpack it")),
    ("inspect store/db/meta.sqlite", USAGE, ("--catalog",)),
    ("inspect store/wal/0.wal", USAGE, ("a single file of a store",)),
    ("inspect store/wal", FAILED, ("the write-ahead log of the store",)),
    ("inspect dump.sql", USAGE, ("--catalog",)),
    ("inspect dump.sql.gz", USAGE, ("--catalog",)),
    ("inspect two", FAILED, ("several stores", "two/a", "two/b")),
    ("inspect milvus2", FAILED, ("Milvus 2.x",)),
    ("inspect milvus011", FAILED, ("0.11",)),
    ("inspect nocatalog", FAILED, ("--catalog", "--no-catalog")),
    ("inspect unfinished", USAGE, ("--resume",)),
    ("inspect -", USAGE, ("standard input cannot be read",)),
    ("inspect http://host:19530", USAGE, ("a server's address",)),
    ("inspect host:/var/lib/milvus", USAGE, ("not on this machine", "rsync -a")),
    ("inspect user@host:/var/lib/milvus", USAGE, ("not on this machine", "rsync -a")),
    ("inspect ftp://host/x", USAGE, ("copy it first",)),
    ("inspect store --catalog notes.txt", FAILED, ("notes.txt",)),
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
    ("inspect store --html nowhere/x.html", FAILED, ("nowhere/x.html", "cannot write the report")),
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
    ("export store -", USAGE, ("name a folder",)),
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
    ("export store store/out", USAGE, ("inside the source",)),
    ("export store export", USAGE, ("--overwrite",)),
    ("export store export --resume", USAGE, ("is complete",)),
    ("export store out --resume --overwrite", USAGE, ("contradict",)),
    ("export store out --link --format npy", USAGE, ("--link",)),
    ("export store out --compression gzip --format parquet", USAGE, ("--compression",)),
    ("export store out -c face", USAGE, ("no collection matches 'face'", "there are: faces")),
    ("export store out -c faces,red", USAGE, ("no collection matches", "faces")),
    ("export store out -p blue", USAGE, ("no partition matches 'blue'", "red")),
    ("export store out --exclude x", USAGE, ("no excluded name matches",)),
    ("export store out --exclude faces", USAGE, ("nothing is left",)),
    ("export store out --salvage everything", USAGE, ("unseen", "all")),
    ("export export out --salvage all", USAGE, ("--salvage only goes with",)),
    ("export x.h5 out --lost-ids l.csv", USAGE, ("--lost-ids goes with a store",)),
    ("export store store out", USAGE, ("named twice",)),
    ("verify store --against export", USAGE, ("--against goes with an export",)),
    ("verify export --sample 5%", USAGE, ("--sample goes with a store",)),
    ("verify x.h5", USAGE, ("HDF5 files", "--against")),
    ("verify store export --html x.html", USAGE, ("one path",)),
    ("load store localhost:19530", USAGE, ("did you mean http://localhost:19530",)),
    ("load store milvus.prod", USAGE, ("did you mean http://milvus.prod:19530", "milvus1:PATH")),
    ("load store tcp://host:19530", USAGE, ("did you mean http://host:19530",)),
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
    ("load store http://127.0.0.1:CLOSED", FAILED, ("nobody listens",)),
    ("load store http://no-such-host.invalid:19530", FAILED, ("no-such-host.invalid",)),
    ("load store http://127.0.0.1:WEB", FAILED, ("127.0.0.1",)),
    ("load store http://127.0.0.1:SILENT --patience 1", FAILED, ("127.0.0.1",)),
    ("load store https://127.0.0.1:WEB", FAILED, ("127.0.0.1", "http")),
    ("load store milvus1://127.0.0.1:CLOSED", FAILED, ("nobody answers there",)),
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
    ("run broken.yaml", USAGE, ("broken.yaml",)),
    ("run list.yaml", USAGE, ("list.yaml",)),
    ("run notes.txt", USAGE, ("notes.txt",)),
    ("run task.yaml", USAGE, ("did you mean",)),
    ("run task.yaml --yaml task.yaml", USAGE, ("name one task file",)),
]


def test_there_are_as_many_as_were_collected() -> None:
    assert len(COMMANDS + SOURCES + TARGETS) >= 125


@pytest.mark.parametrize("words,code,said", COMMANDS + SOURCES + TARGETS, ids=lambda v: v if isinstance(v, str) else "")
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
