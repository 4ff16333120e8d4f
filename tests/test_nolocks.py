"""File systems without locks (NFS, CIFS): everything is read, and everything is written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import exported, spawn
from support.refusing import without_locks

EXPORT_THAT_DIES = """
import os, sys
from milvus_offline import transfer
from milvus_offline.cli import run
transfer.SETTLE_SECONDS = 0.0
replace = os.replace
def dying(a, b):
    if os.fspath(b).endswith("manifest.json"):
        os._exit(9)
    replace(a, b)
os.replace = dying
from pathlib import Path
Path.replace = lambda self, to: dying(self, to)
run(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def locks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return without_locks(tmp_path_factory.mktemp("locks"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in segments and in the log; half of the catalog is in its -wal, as a killed server leaves it."""
    b = StoreBuilder(tmp_path_factory.mktemp("store") / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(range(900)), deleted=[3])
    b.wal.insert("c", rows(range(1000, 1020)))
    root = b.write()
    catalog = root / "db" / "meta.sqlite"
    with sqlite3.connect(catalog) as c:
        c.execute("PRAGMA journal_mode = WAL")
        c.execute("UPDATE Environment SET global_lsn = global_lsn")
        c.commit()
        kept = {s: catalog.with_name(f"meta.sqlite{s}").read_bytes() for s in ("", "-wal", "-shm")}
    c.close()
    for suffix, content in kept.items():
        catalog.with_name(f"meta.sqlite{suffix}").write_bytes(content)
    return root


def test_a_store_is_read_and_exported_and_compared(store: Path, locks: dict[str, str], tmp_path: Path) -> None:
    for words in (
        ["inspect", store],
        ["verify", store],
        ["export", store, tmp_path / "out"],
        ["verify", tmp_path / "out", "--against", store],
    ):
        done = spawn(*words, env=locks)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert exported(tmp_path / "out")["c", "_default"].total() == 919


def test_a_new_store_is_written_and_read(store: Path, locks: dict[str, str], tmp_path: Path) -> None:
    done = spawn("load", store, f"milvus1:{tmp_path / 'new'}", env=locks)
    assert done.code == 0, done.err
    done = spawn("verify", tmp_path / "new", "--json", env=locks)
    assert (done.code, '"rows": 919' in done.out) == (0, True)


def test_hdf5_is_read(locks: dict[str, str], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h:
        h["embeddings"], h["ids"] = np.ones((30, 8), "f4"), np.arange(30)
    assert spawn("export", tmp_path / "a.h5", tmp_path / "out", env=locks).code == 0


@pytest.mark.slow
def test_an_export_that_was_killed_is_resumed(store: Path, locks: dict[str, str], tmp_path: Path) -> None:
    words = ["export", str(store), str(tmp_path / "out")]
    assert subprocess.run([sys.executable, "-c", EXPORT_THAT_DIES, *words], env=locks).returncode == 9
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = spawn(*words, "--resume", env=locks)
    assert done.code == 0, done.err
    assert exported(tmp_path / "out")["c", "_default"].total() == 919


@pytest.mark.server
def test_milvus_lite_needs_locks_and_its_refusal_says_so(store: Path, locks: dict[str, str], tmp_path: Path) -> None:
    done = spawn("load", store, tmp_path / "x.db", env=locks)
    assert (done.code, "its file system has no locks" in done.err) == (1, True), done.err


def test_a_copy_of_the_catalog_that_has_no_lock_is_not_taken_for_a_left_one(
    store: Path, locks: dict[str, str], tmp_path: Path
) -> None:
    """Another process, on whose side locks work, looks for left copies while the first one reads."""
    script = (
        "import os, sys; from pathlib import Path; from milvus_offline.milvus1.catalog import private\n"
        "with private.private_copies(Path(sys.argv[1])) as (copy, _, _):\n"
        "    os.system(f'env -u LD_PRELOAD {sys.executable} -c \"from milvus_offline.milvus1.catalog.private import *;"
        " remove_left_copies()\"')\n"
        "    print(copy.exists())\n"
    )
    environment = {**locks, "TMPDIR": os.fspath(tmp_path)}
    command = [sys.executable, "-c", script, str(store / "db" / "meta.sqlite")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
