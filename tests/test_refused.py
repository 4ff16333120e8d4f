"""What may not be read is not missing, and a link to nowhere is named with its target."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, spawn
from support.dumps import FORMS
from support.refusing import powerless

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in a segment and in the log, with all sidecars, and a configuration."""
    b = StoreBuilder(tmp_path_factory.mktemp("built") / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(range(900)), deleted=[3], bloom=True)
    b.wal.insert("c", rows(range(1000, 1020)))
    root = b.write()
    (root / "db" / "meta.sqlite-shm").write_bytes(bytes(32768))
    (root / "server_config.yaml").write_text("wal:\n  enable: true\n")
    return root


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(built, tmp_path / "s")
    yield tmp_path / "s"
    for path in (tmp_path / "s", *(tmp_path / "s").rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)


def only(pattern: str) -> Callable[[Path], Path]:
    return lambda root: next(iter(sorted(root.glob(pattern))))


FILES = {
    "root": (".", 1, "no permission to look into this folder"),
    "db": ("db", 1, "db: no permission to look into this folder"),
    "tables": ("db/tables", 1, "db/tables: no permission to look into this folder"),
    "table": ("db/tables/c", 1, "tables/c: no permission to look into this folder"),
    "catalog": ("db/meta.sqlite", 1, "no permission to read the catalog"),
    "shm": ("db/meta.sqlite-shm", 0, ""),
    "config": ("server_config.yaml", 0, "cannot be read (Permission denied)"),
    "wal": ("wal", 3, "cannot list the WAL folder: Permission denied"),
    "wal file": ("wal/0.wal", 3, "cannot be read: Permission denied"),
    "mxlog": ("wal/mxlog.meta", 3, "mxlog.meta cannot be read (Permission denied)"),
    "segment": ("db/tables/c/*", 3, "Permission denied"),
    "rv": ("db/tables/c/*/*.rv", 3, "cannot be read: Permission denied"),
    "uid": ("db/tables/c/*/*.uid", 3, "cannot be read: Permission denied"),
    "deletions": ("db/tables/c/*/deleted_docs", 3, "cannot be read: Permission denied"),
    "bloom filter": ("db/tables/c/*/bloom_filter", 0, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_what_may_not_be_read_is_told_so_and_never_called_missing_or_damaged(name: str, store: Path) -> None:
    pattern, code, text = FILES[name]
    path = store if pattern == "." else only(pattern)(store)
    path.chmod(0)
    done = powerless("inspect", store, "--json")
    said = done.json.get("error") or " ".join(f["message"] for f in done.json["findings"])
    assert (done.code, text in said) == (code, True), done.out
    assert not [w for w in ("missing", "no log", "damaged", "is not here", "does not exist") if w in said], said
    assert code != 0 or sum(c["rows"] for c in done.json["collections"]) == 919


LINKS = {
    "db/meta.sqlite": 1,
    "db/meta.sqlite-wal": 1,
    "db/tables": 3,
    "db/tables/c": 3,
    "db/tables/c/*": 3,
    "db/tables/c/*/*.rv": 3,
    "db/tables/c/*/*.uid": 3,
    "db/tables/c/*/deleted_docs": 3,
    "wal": 3,
    "wal/0.wal": 3,
    "wal/mxlog.meta": 3,
    "server_config.yaml": 0,
}


@pytest.mark.parametrize("pattern", LINKS)
def test_a_link_to_nowhere_is_named_with_its_target(pattern: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    path = only(pattern)(store) if (store / "db" / "meta.sqlite-wal").exists() or "-wal" not in pattern else store / pattern
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to("/mnt/gone/there")
    done = call("inspect", store)
    assert done.code == LINKS[pattern], done.out
    assert "is a link to /mnt/gone/there, which does not exist here" in done.out + done.err, done.out


@pytest.mark.server
def test_a_load_whose_state_cannot_be_kept_names_the_option(built: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    done = powerless("load", built, tmp_path / "x.db", env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "closed")})
    assert (done.code, "name another folder with --state" in done.err) == (1, True), done.err
    assert not (tmp_path / "x.db").exists()


def test_a_source_in_a_folder_that_may_not_be_entered(built: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    done = powerless("export", tmp_path / "closed" / "s", tmp_path / "out")
    (tmp_path / "closed").chmod(0o700)
    assert (done.code, "no permission to look into this folder" in done.err) == (1, True), done.err
    assert spawn("inspect", tmp_path / "closed" / "s").code == 1


SOURCES = (
    "a.h5",
    "a.npy",
    "d/ids.npy",
    "a.parquet",
    "a.fvecs",
    "a.index",
    "lc/index.pkl",
    "part.h5",
    "dumps/m.Tables.sql",
    "ex/manifest.json",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    """A file of each kind of source, a folder of dumps, an export."""
    folder = tmp_path_factory.mktemp("sources")
    vectors = np.ones((5, 8), "f4")
    for name, target in (("a", None), ("master", "part.h5")):
        with h5py.File(folder / f"{name}.h5", "w") as h:
            h["ids"] = np.arange(5)
            h["embeddings"] = h5py.ExternalLink(target, "/e") if target else vectors
    with h5py.File(folder / "part.h5", "w") as h:
        h["e"] = vectors
    for name in ("d", "lc", "dumps"):
        (folder / name).mkdir()
    np.save(folder / "a.npy", vectors)
    np.save(folder / "d" / "v.npy", vectors)
    np.save(folder / "d" / "ids.npy", np.arange(5))
    pq.write_table(pa.table({"embeddings": list(vectors)}), folder / "a.parquet")
    (folder / "a.fvecs").write_bytes(b"".join(np.int32(8).tobytes() + v.tobytes() for v in vectors))
    index = faiss.IndexFlatL2(8)
    index.add(vectors)
    for path in ("a.index", "lc/index.faiss"):
        faiss.write_index(index, str(folder / path))
    (folder / "lc" / "index.pkl").write_bytes(pickle.dumps(({}, {})))
    for name, data in FORMS["mydumper"].items():
        (folder / "dumps" / name.replace("milvus.", "m.")).write_bytes(data)
    (folder / "dumps" / "m.Tables.sql").write_bytes(b"CREATE TABLE x (a int);\n")
    assert call("export", built, folder / "ex").code == 0
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_may_not_be_read_is_told_so(name: str, sources: Path, built: Path) -> None:
    path = sources / name
    given = {"part.h5": sources / "master.h5"}.get(name, path.parent if path.parent != sources else path)
    words = ["inspect", built, "--catalog", given] if name.startswith("dumps") else ["inspect", given]
    path.chmod(0)
    try:
        done = powerless(*words)
    finally:
        path.chmod(0o644)
    assert (done.code in (1, 2), path.name in done.err, "ermission denied" in done.err) == (True, True, True), done.err
    assert not [w for w in ("missing", "damaged", "neither", "Traceback") if w in done.err]
