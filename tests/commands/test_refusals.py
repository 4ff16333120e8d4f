"""Every refusal with its exit code and the words a user sees; damage that is survived, with its findings."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder, bag, join, rows
from support.command import Outcome, call, exported, files, fingerprint, manifest, spawn
from support.real import STORES, copy_store

from milvus_offline.manifest import write_manifest

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
NOBODY = 65534


def small_store(folder: Path, count: int = 100) -> Path:
    b = StoreBuilder(folder)
    b.collection("c")
    b.segment("c", rows(range(count)))
    return b.write()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return small_store(tmp_path / "store")


def refused(done: Outcome, code: int, *words: str) -> None:
    """The run ended with `code` and one message on stderr that holds all `words`; nothing on stdout, no traceback."""
    assert done.code == code, done
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.startswith(("milvus-offline: ", "Usage: "))
    for word in words:
        assert word in done.err, done.err


# The source ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_wrong_path_creates_nothing(command: str, tmp_path: Path) -> None:
    more = [tmp_path / "out"] if command == "export" else []
    refused(call(command, tmp_path / "no" / "such", *more), 1, "no such file or folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_not_a_store(command: str, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    (folder / "sub").mkdir(parents=True)
    before = fingerprint(folder)
    more = [tmp_path / "out"] if command == "export" else []
    refused(call(command, folder, *more), 1, str(folder), "not a Milvus 1.x data folder", "meta.sqlite", "storage.path")
    assert fingerprint(folder) == before
    assert not (tmp_path / "out").exists()


def test_a_text_file_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    done = call("export", path, tmp_path / "out")
    assert done.code == 2
    assert str(path) in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("db/meta.sqlite", "--catalog"),
        ("wal/0.wal", "a single file of a store"),
        ("wal/mxlog.meta", "a single file of a store"),
        ("x.tar.gz", "packed file (gzip)"),
        ("x.zip", "packed file (zip)"),
        ("x.tar", "packed file (tar)"),
        ("x.tar.xz", "packed file (xz)"),
        ("x.tar.bz2", "packed file (bzip2)"),
        ("dump.sql", "--catalog"),
    ],
)
def test_files_that_are_taken_for_a_store(file: str, word: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.wal.insert("c", rows(1))
    root = b.write()
    for name, kind in (
        ("x.tar.gz", "gztar"),
        ("x.zip", "zip"),
        ("x.tar", "tar"),
        ("x.tar.xz", "xztar"),
        ("x.tar.bz2", "bztar"),
    ):
        if name == file:
            shutil.make_archive(str(root / "x"), kind, root, "db")
    (root / "dump.sql").write_text("-- MySQL dump 10.13\n")
    done = call("inspect", root / file)
    refused(done, 2, str(root / file), word, "name the folder of the store")


def test_the_log_is_not_the_store(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.wal.insert("c", rows(1))
    root = b.write()
    for more in ((), ("--no-catalog",)):
        refused(call("inspect", root / "wal", *more), 1, f"the write-ahead log of the store {root}")
    (root / "wal").rename(tmp_path / "only")
    refused(call("inspect", tmp_path / "only"), 1, "a write-ahead log without a store", "--no-catalog")


def test_several_stores_below(tmp_path: Path) -> None:
    small_store(tmp_path / "a")
    small_store(tmp_path / "b")
    done = call("inspect", tmp_path)
    refused(done, 1, "several stores", str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize("given", ["", "db", ".."])
def test_root_db_and_a_folder_above(given: str, tmp_path: Path) -> None:
    store = small_store(tmp_path / "deep" / "store")
    done = call("inspect", os.path.normpath(store / given), "--json")
    assert done.code == 0
    assert done.json["store"]["path"] == str(store)
    assert done.json["totals"]["rows"] == 100


def test_missing_catalog(store: Path, tmp_path: Path) -> None:
    (store / "db" / "meta.sqlite").unlink()
    refused(call("export", store, tmp_path / "out"), 1, "no meta.sqlite", "--catalog", "--no-catalog")
    assert not (tmp_path / "out").exists()


def test_catalog_file_not_there(store: Path, tmp_path: Path) -> None:
    refused(call("inspect", store, "--catalog", tmp_path / "gone.sqlite"), 1, "no such catalog file")


def test_catalog_is_a_folder(store: Path, tmp_path: Path) -> None:
    refused(call("inspect", store, "--catalog", tmp_path), 2, "found a folder")


def test_catalog_url_without_sense(store: Path) -> None:
    done = call("inspect", store, "--catalog", "mysql://user:secret@host")
    refused(done, 2, "mysql://user@host:3306/database")
    assert "secret" not in done.err


def test_catalog_server_does_not_answer(store: Path) -> None:
    done = call("inspect", store, "--catalog", "mysql://user:secret@127.0.0.1:1/milvus")
    refused(done, 1, "mysql://user@127.0.0.1:1/milvus", "no answer")
    assert "secret" not in done.err


def test_catalog_of_something_else(store: Path) -> None:
    meta = store / "db" / "meta.sqlite"
    meta.unlink()
    with sqlite3.connect(meta) as db:
        db.execute("CREATE TABLE cats(name TEXT)")
    db.close()
    refused(call("inspect", store), 1, "expected the tables `Tables` and `TableFiles`", "cats", "meta.sqlite-wal")


@pytest.mark.parametrize("content", [b"", b"no database at all" * 300])
def test_catalog_that_is_no_database(content: bytes, store: Path, tmp_path: Path) -> None:
    (store / "db" / "meta.sqlite").write_bytes(content)
    refused(call("export", store, tmp_path / "out"), 1, "meta.sqlite")
    assert not (tmp_path / "out").exists()


def test_damaged_catalog_is_said_and_survived(tmp_path: Path) -> None:
    store = copy_store("partitions", tmp_path)
    meta = store / "db" / "meta.sqlite"
    data = bytearray(meta.read_bytes())
    data[100:108] = b"\xff" * 8  # the header of the first page's tree
    meta.write_bytes(data)
    before = fingerprint(store)
    done = call("export", store, tmp_path / "out")
    assert fingerprint(store) == before
    if done.code == 1:
        refused(done, 1, "the catalog is damaged", "--catalog", "--no-catalog")
    else:
        assert done.code == 3
        assert "catalog-damaged" in {f["code"] for f in manifest(tmp_path / "out")["findings"]}


def test_milvus_0_11_by_folders(tmp_path: Path) -> None:
    (tmp_path / "db" / "tables" / "C_1" / "P_1" / "S_1").mkdir(parents=True)
    refused(call("inspect", tmp_path), 1, "0.11", "Start that server")


def test_milvus_0_11_by_catalog(store: Path) -> None:
    with sqlite3.connect(store / "db" / "meta.sqlite") as db:
        for table in ("Collection", "CollectionCommit", "SegmentCommit", "SchemaCommit"):
            db.execute(f"CREATE TABLE {table}(id INTEGER)")
    db.close()
    refused(call("inspect", store), 1, "0.11", "export through its API")


@pytest.mark.parametrize(
    "folders", [["insert_log", "delta_log"], ["rdb_data", "rdb_data_meta_kv"], ["etcd", "minio", "milvus"]]
)
def test_milvus_2(folders: list[str], tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    refused(call("inspect", tmp_path), 1, "Milvus 2.x", "milvus-backup")


def test_wal_option_must_name_a_folder(store: Path) -> None:
    refused(call("inspect", store, "--wal", store / "lock"), 2, "--wal")
    refused(call("inspect", store, "--wal", store / "wal", "--no-wal"), 2, "contradict")


def test_secondary_must_be_one(store: Path, tmp_path: Path) -> None:
    refused(call("inspect", store, "--secondary", tmp_path), 2, "secondary root", "tables/")


# Damaged segments ------------------------------------------------------------------------------------------------------


def damaged(tmp_path: Path, **change: Any) -> tuple[Outcome, list[dict[str, Any]], Path]:
    """Exports a store of two segments whose first one was changed: suffix -> bytes, or a function of the old ones."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    hurt = b.segment("c", rows(range(100)))
    b.segment("c", rows(range(100, 200)))
    store = b.write()
    for suffix, edit in change.items():
        path = {"rv": hurt.raw, "uid": hurt.ids, "deleted_docs": hurt.deleted}[suffix]
        path.write_bytes(edit(path.read_bytes()))
    before = fingerprint(store)
    done = call("export", store, tmp_path / "out")
    assert fingerprint(store) == before
    assert "Traceback" not in done.err
    found = manifest(tmp_path / "out")["findings"]
    return done, found, tmp_path / "out"


def finding(found: list[dict[str, Any]], code: str) -> dict[str, Any]:
    (one,) = [f for f in found if f["code"] == code]
    return one


def test_raw_file_shorter_than_its_header(tmp_path: Path) -> None:
    done, found, out = damaged(tmp_path, rv=lambda b: b[: 8 + 16 * 40 + 5])
    assert done.code == 3
    short = finding(found, "file-short")
    assert short["severity"] == "error"
    assert "at byte 0: the header says 1600 bytes, the file holds 645" in short["message"]
    assert finding(found, "rows-lost")["rows"] == 60
    assert exported(out)["c", "_default"] == bag(rows(range(40)), rows(range(100, 200)))
    assert "rows-lost" in done.out and "60 rows" in done.out


@pytest.mark.parametrize("bytes_left", [0, 1, 7, 8])
def test_files_of_a_few_bytes(bytes_left: int, tmp_path: Path) -> None:
    done, found, out = damaged(tmp_path, rv=lambda b: b[:bytes_left], uid=lambda b: b[:bytes_left])
    assert done.code == 3
    assert {f["code"] for f in found} & {"file-short", "rows-lost", "segment-incomplete"}
    assert exported(out)["c", "_default"] == bag(rows(range(100, 200)))


def test_uid_and_rv_disagree(tmp_path: Path) -> None:
    def cut(data: bytes) -> bytes:
        return struct.pack("<Q", 70 * 8) + data[8 : 8 + 70 * 8]

    done, found, out = damaged(tmp_path, uid=cut)
    assert done.code == 3
    lost = finding(found, "rows-lost")
    assert (lost["rows"], lost["severity"]) == (30, "error")
    assert "holds 100 rows" in lost["message"] and "offset 70 to 99 have lost their ids" in lost["message"]
    assert exported(out)["c", "_default"] == bag(rows(range(70)), rows(range(100, 200)))


@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, 1 << 62])
@pytest.mark.parametrize("suffix", ["rv", "uid", "deleted_docs"])
def test_header_of_2_63(suffix: str, value: int, tmp_path: Path) -> None:
    done, found, out = damaged(tmp_path, **{suffix: lambda b: struct.pack("<Q", value) + b[8:]})
    assert done.code == 3
    assert str(value) in " ".join(f["message"] for f in found)
    assert exported(out)["c", "_default"] == bag(rows(range(200)))  # the sizes still tell how many rows there are


def test_segment_folder_gone(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    gone = b.segment("c", rows(range(9)))
    b.segment("c", rows(range(9, 12)))
    store = b.write()
    shutil.rmtree(gone.folder)
    done = call("export", store, tmp_path / "out")
    assert done.code == 3
    lost = finding(manifest(tmp_path / "out")["findings"], "segment-missing")
    assert lost["rows"] == 9
    assert str(gone.folder) in lost["message"]
    assert exported(tmp_path / "out")["c", "_default"] == bag(rows(range(9, 12)))


# The target ------------------------------------------------------------------------------------------------------------


def test_unknown_names(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(call("export", store, out, "-c", "nobody"), 2, "no collection matches 'nobody'", "there are: c")
    refused(call("export", store, out, "-p", "x*"), 2, "no partition matches 'x*'", "_default")
    refused(call("export", store, out, "--exclude", "zzz"), 2, "no excluded name matches 'zzz'")
    assert not out.exists()


def test_out_not_empty(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    before = fingerprint(out)
    for more in ([], ["--overwrite"], ["--resume"]):
        refused(call("export", store, out, *more), 2, str(out), "not empty")
    (out / "manifest.json").write_text('{"format": "something else"}')
    refused(call("export", store, out, "--overwrite"), 2, "no whole export of this tool", "not the manifest of an export")
    (out / "manifest.json").unlink()
    assert {n: v[:3] for n, v in fingerprint(out).items() if n != "."} == {n: v[:3] for n, v in before.items() if n != "."}


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"format": "milvus-offline-export", "version": 1, "complete": true, "checksum": "7"}']
)
def test_out_holds_an_export_whose_manifest_is_damaged(store: Path, tmp_path: Path, data: bytes) -> None:
    out = tmp_path / "out"
    assert call("export", store, out).code == 0
    (out / "manifest.json").write_bytes(data)
    before = fingerprint(out)
    refused(call("export", store, out, "--overwrite"), 2, "no whole export of this tool", "manifest.json")
    assert fingerprint(out) == before
    assert call("verify", out).code == (4 if b"checksum" in data else 2)


def test_out_is_a_file(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    refused(call("export", store, path), 2, "found a file")
    assert path.read_text() == "mine"


def test_out_holds_a_complete_export(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("export", store, out).code == 0
    first = files(out)
    refused(call("export", store, out), 2, "complete export", "--overwrite")
    refused(call("export", store, out, "--resume"), 2, "is complete, there is nothing to go on with", "verify")
    assert files(out) == first
    (out / "mine.txt").write_text("mine")
    assert call("export", store, out, "--overwrite").code == 0
    assert exported(out)["c", "_default"] == bag(rows(range(100)))
    assert (out / "mine.txt").read_text() == "mine"


def test_overwrite_removes_only_what_the_manifest_may_name(store: Path, tmp_path: Path) -> None:
    out, sibling = tmp_path / "out", tmp_path / "out2" / "dear.h5"
    assert call("export", store, out).code == 0
    sibling.parent.mkdir()
    sibling.write_text("dear")
    document = manifest(out)
    document["collections"][0]["partitions"][0]["files"] += [{"path": "../out2/dear.h5"}, {"path": str(sibling)}]
    (out / "manifest.json").write_text(json.dumps(document))
    before = fingerprint(tmp_path)
    refused(call("export", store, out, "--overwrite"), 2, str(out), "Nothing in it is replaced")  # its checksum is another one
    assert fingerprint(tmp_path) == before
    write_manifest(out, document)
    assert call("export", store, out, "--overwrite").code == 0
    assert sibling.read_text() == "dear"


@pytest.mark.parametrize("where", ["", "db", "db/tables/new", "out", "wal/x"])
def test_out_inside_the_store(where: str, store: Path) -> None:
    before = fingerprint(store)
    refused(call("export", store, store / where), 2, "inside the source", "never written to")
    assert fingerprint(store) == before


def test_out_inside_the_store_by_a_link(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store / "db")
    before = fingerprint(store)
    refused(call("export", store, tmp_path / "link" / "out"), 2, "inside the source")
    assert fingerprint(store) == before


def test_out_inside_a_log_elsewhere(store: Path, tmp_path: Path) -> None:
    shutil.move(store / "wal", tmp_path / "log")
    refused(call("export", store, tmp_path / "log" / "out", "--wal", tmp_path / "log"), 2, "inside the source")


def test_contradicting_options(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(call("export", store, out, "--resume", "--overwrite"), 2, "contradict")
    refused(call("export", store, out, "--link", "--compression", "gzip"), 2, "--link")
    refused(call("export", store, out, "--catalog", "x.sql", "--no-catalog"), 2, "contradict")
    refused(call("export", store, out, "--assume", "c=L2"), 2, "--no-catalog")
    refused(call("export", store, out, "--jobs", "0"), 2, "--jobs")
    refused(call("export", store, out, "--compression", "rar"), 2, "rar")
    refused(call("export", store), 2, "OUT")
    refused(call("explode", store), 2, "explode")
    refused(call("export", store, out, "--salvage", "everything-else"), 2, "everything-else")
    assert not out.exists()


# Permissions and full disks --------------------------------------------------------------------------------------------


def as_nobody(*arguments: object) -> Outcome:
    """Runs the command as a user without rights; the package must be readable to it."""
    if not ROOT:
        pytest.skip("only root can become somebody else: permissions were NOT tested")
    code = (
        "import contextlib, io, os, sys, tempfile\n"
        "from milvus_offline import cli\n"
        "with tempfile.TemporaryDirectory() as t, contextlib.redirect_stdout(io.StringIO()):\n"
        "    cli.run(['inspect', sys.argv[1]]); cli.run(['export', sys.argv[1], t + '/out'])  # imports all there is\n"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        "cli.main(sys.argv[2:])"
    )
    warm = STORES / "partitions" / "store"
    command = [sys.executable, "-c", code, str(warm), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach (pytest's own is private)."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_no_permission_to_write(open_folder: Path) -> None:
    store = small_store(open_folder / "store")
    (open_folder / "locked").mkdir()
    done = as_nobody("export", store, open_folder / "locked" / "out")
    refused(done, 1, "no permission to write", str(open_folder / "locked"))
    assert list((open_folder / "locked").iterdir()) == []


def test_a_store_that_may_only_be_read(open_folder: Path) -> None:
    """Folders and files without a right to write, owned by somebody else."""
    store = small_store(open_folder / "store")
    for path in (store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (open_folder / "free").mkdir()
    (open_folder / "free").chmod(0o777)
    before = fingerprint(store)
    assert as_nobody("inspect", store).code == 0
    done = as_nobody("export", store, open_folder / "free" / "out")
    assert (done.code, done.err) == (0, "")
    assert exported(open_folder / "free" / "out")["c", "_default"] == bag(rows(range(100)))
    assert fingerprint(store) == before


@pytest.mark.parametrize("what", ["store", "store/db", "store/db/tables", "store/db/tables/c", "store/db/meta.sqlite"])
def test_no_permission_to_read(what: str, open_folder: Path) -> None:
    store = small_store(open_folder / "store")
    (open_folder / "free").mkdir()
    (open_folder / "free").chmod(0o777)
    (open_folder / what).chmod(0)
    done = as_nobody("export", store, open_folder / "free" / "out")
    assert done.code == 1, done
    assert "Traceback" not in done.err
    assert "ermission" in done.err
    assert not (open_folder / "free" / "out").exists()


def test_a_segment_that_may_not_be_read(open_folder: Path) -> None:
    b = StoreBuilder(open_folder / "store")
    b.collection("c")
    locked = b.segment("c", rows(range(5)))
    b.segment("c", rows(range(5, 8)))
    store = b.write()
    locked.raw.chmod(0)
    (open_folder / "free").mkdir()
    (open_folder / "free").chmod(0o777)
    done = as_nobody("export", store, open_folder / "free" / "out")
    assert done.code == 3, done
    found = finding(manifest(open_folder / "free" / "out")["findings"], "segment-unreadable")
    assert "Permission denied" in found["message"]
    assert exported(open_folder / "free" / "out")["c", "_default"] == bag(rows(range(5, 8)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = ROOT and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("cannot mount a small file system: a full disk was NOT tested this way")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("compression", ["none", "zstd", "gzip"])
def test_disk_full(compression: str, small_disk: Path, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", dim=64)
    for n in range(4):
        b.segment("c", rows(range(n * 4000, n * 4000 + 4000), dim=64))
    store = b.write()
    done = spawn("export", store, small_disk / "out", "--compression", compression)
    refused(done, 1, "disk is full", "--resume")
    assert not (small_disk / "out" / "manifest.json").exists()
    # with more room the same command goes on
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = spawn("export", store, small_disk / "out", "--compression", compression, "--resume")
    assert done.code == 0, done.err
    assert exported(small_disk / "out")["c", "_default"] == bag(rows(range(16000), dim=64))


def test_file_too_large(tmp_path: Path) -> None:
    """The limit of a process (ulimit -f) behaves like a disk that is full, and needs no rights."""
    store = small_store(tmp_path / "store", 100_000)

    # a process of its own sets the limit: this one has threads of gRPC, with which no Python may run between fork and exec
    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'milvus_offline', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", limited, "export", store, tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    done = Outcome(ended.returncode, ended.stdout, ended.stderr)
    refused(done, 1, "cannot", os.strerror(errno.EFBIG))
    done = spawn("export", store, tmp_path / "out", "--resume")
    assert done.code == 0
    assert exported(tmp_path / "out")["c", "_default"] == bag(rows(range(100_000)))


def test_read_only_media(tmp_path: Path) -> None:
    """A store on a file system that is mounted read-only."""
    store = copy_store("crash_wal_partial", tmp_path)
    media = tmp_path / "media"
    media.mkdir()
    if not ROOT or subprocess.run(["mount", "--bind", store, media], capture_output=True).returncode:
        pytest.skip("cannot mount: read-only media were NOT tested")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", media], check=True)
        with pytest.raises(OSError):
            (media / "probe").write_text("x")
        assert call("inspect", media).code == 0
        assert call("export", media, tmp_path / "out").code == 0
        assert call("export", STORES / "crash_wal_partial" / "store", tmp_path / "other").code == 0
        assert exported(tmp_path / "out") == exported(tmp_path / "other")
    finally:
        subprocess.run(["umount", "-l", media], check=True)


# Hostile catalogs ------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = ["../evil", "../../evil", "/etc/evil", "a/b", "..", ".", "nul\0byte", "back\\slash", "x" * 256, ""]


@pytest.mark.parametrize("column", ["Tables.table_id", "TableFiles.table_id", "TableFiles.segment_id", "TableFiles.file_id"])
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=[ascii(n)[:12] for n in HOSTILE_NAMES])
def test_hostile_paths(column: str, name: str, tmp_path: Path) -> None:
    """Names that lead out of the store are refused as rows of the catalog; the rest of it is exported."""
    b = StoreBuilder(tmp_path / "base" / "store")
    b.collection("good")
    b.segment("good", rows(1, 2, 3))
    b.collection("bad")
    b.segment("bad", rows(7, 8))
    store = b.write()
    shutil.copytree(store / "db" / "tables" / "bad", tmp_path / "base" / "evil")  # what a reader would find outside
    table, _, field = column.partition(".")
    with sqlite3.connect(store / "db" / "meta.sqlite") as db:
        db.execute(f"UPDATE {table} SET {field} = ? WHERE table_id = 'bad'", (name,))
    db.close()
    before = fingerprint(tmp_path / "base")
    done = call("export", store, tmp_path / "out")
    assert "Traceback" not in done.err
    found = exported(tmp_path / "out")
    assert found["good", "_default"] == bag(rows(1, 2, 3))
    assert done.code == 3
    assert {"catalog-row-refused", "raw-row-missing", "segment-missing", "row-id-race"} & {
        f["code"] for f in manifest(tmp_path / "out")["findings"]
    }
    assert fingerprint(tmp_path / "base") == before
    inside = os.path.realpath(tmp_path / "out")
    assert all(os.path.realpath(tmp_path / "out" / n).startswith(inside + os.sep) for n in files(tmp_path / "out"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "out"]


HOSTILE_TAGS = [
    "a/b",
    "../../up",
    "/absolute",
    "nul\0byte",
    "line\nbreak",
    "t" * 255,
    "ü" * 127,
    "'; DROP TABLE Tables; --",
    "\x1b[31mred\x1b]0;title\x07",
    "..",
    ".",
    "con",
    "tag.h5",
    "trailing. ",
    "%2F",
    "*?[a]",
    "\u202egnp.exe",
    "same",
    "SAME",
    "lone\udcff",
    "e\u0301",
    "\u00e9",
]


def test_hostile_tags(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    expected = {("c", "_default"): bag()}
    renamed = {}
    for n, tag in enumerate(HOSTILE_TAGS):
        table = b.partition("c", f"tag{n}")
        b.segment(table["table_id"], rows(range(10 * n, 10 * n + 3)))
        expected["c", tag] = bag(rows(range(10 * n, 10 * n + 3)))
        renamed[f"tag{n}"] = tag
    store = b.write()
    db = sqlite3.connect(store / "db" / "meta.sqlite")
    with db:
        for old, tag in renamed.items():
            raw = tag.encode("utf-8", "surrogateescape")
            db.execute("UPDATE Tables SET partition_tag = CAST(? AS TEXT) WHERE partition_tag = ?", (raw, old))
    db.close()
    out = tmp_path / "out"
    done = call("export", store, out)
    assert done.code == 0, done
    assert exported(out) == expected
    names = sorted(files(out))
    assert len(names) == len(HOSTILE_TAGS) + 2
    assert len({n.casefold() for n in names}) == len(names)
    assert all(len(part.encode()) <= 255 and part.isprintable() for n in names for part in n.split("/"))
    assert all(n.count("/") == (0 if n == "manifest.json" else 1) for n in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "store"]
    # a terminal sees no control characters, JSON has the exact names
    for text in (call("inspect", store).out, call("inspect", tmp_path / "store", "-v").out):
        assert all(c.isprintable() or c == "\n" for c in text)
    tags = {p["name"] for p in call("inspect", store, "--json").json["collections"][0]["partitions"]}
    assert tags == {"_default", *HOSTILE_TAGS}
    # a tag is chosen by its exact name, also where that looks like a glob
    assert call("export", store, tmp_path / "one", "-p", "*?[a]").code == 0
    assert exported(tmp_path / "one")["c", "*?[a]"] == expected["c", "*?[a]"]


PARAMS = ["[" * 60_000, '{"nlist": NaN}', '{"nlist": 1e999}', "[1]", "null", "{", '{"a": ' + "9" * 5000 + "}"]


@pytest.mark.parametrize("params", PARAMS, ids=[p[:16] for p in PARAMS])
def test_hostile_index_parameters(params: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", index_params=params)
    b.segment("c", rows(1))
    store = b.write()
    document = call("inspect", store, "--json").json
    assert document["totals"]["rows"] == 1
    odd = [f["severity"] for f in document["findings"] if f["code"] == "catalog-value"]
    assert odd == ([] if "nlist" in params else ["warning"])  # no server writes what is no object
    assert call("export", store, tmp_path / "out").code == (3 if odd else 0)
    assert exported(tmp_path / "out") == {("c", "_default"): bag(rows(1))}


@pytest.mark.parametrize(
    ("column", "value"),
    [("dimension", 0), ("dimension", -1), ("dimension", 1 << 40), ("metric_type", 99), ("dimension", "many"), ("state", "x")],
)
def test_impossible_values(column: str, value: object, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("good")
    b.segment("good", rows(1, 2))
    b.collection("bad", **{column: value})
    store = b.write()
    done = call("export", store, tmp_path / "out")
    assert done.code == 3
    assert exported(tmp_path / "out") == {("good", "_default"): bag(rows(1, 2))}


def test_joined(tmp_path: Path) -> None:
    """Two segments of one partition become one file, in catalog order."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    first, second = rows(range(5)), rows(range(5, 9))
    b.segment("c", first)
    b.segment("c", second)
    assert call("export", b.write(), tmp_path / "out").code == 0
    import h5py

    with h5py.File(tmp_path / "out" / "c" / "_default.h5") as h:
        whole = join(first, second)
        assert h["ids"][:].tolist() == whole.ids.tolist()
        assert h["embeddings"][:].tobytes() == whole.vectors.tobytes()
