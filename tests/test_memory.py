"""Memory stays flat: it does not grow with the rows, with deleted rows, with the log, or with compression."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builder import StoreBuilder
from support.command import call, exported, files

import milvus_offline.fileio as fileio
from milvus_offline.milvus1.layout import TABLES, FileType
from milvus_offline.milvus1.segment.writing import SegmentWriter
from milvus_offline.model import Batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc: memory was NOT measured"),
]

DIM = 128
MIB = 1 << 20
SMALL, LARGE = 64 * MIB, 512 * MIB
ALLOWED = 12 * MIB
"""What a run over eight times as much may take more: row masks (a bit per row), tasks, the allocator's mood."""


def build(root: Path, nbytes: int, *, deleted: float = 0.05, log: bool = False) -> Path:
    """A collection of four segments, or of one big log, with `nbytes` of vectors."""
    rng = np.random.default_rng(3)
    b = StoreBuilder(root, wal_file_bytes=1 << 28)
    b.collection("big", dim=DIM, flush_lsn=0)
    step = 8192
    pool = rng.standard_normal((step, DIM), np.float32)
    count = nbytes // (4 * DIM)
    if log:
        for low in range(0, count, step):
            b.wal.insert("big", Batch(np.arange(low, low + step), pool))
        return b.write()
    for quarter in range(4):
        name = b.new_id()
        writer = SegmentWriter(b.roots[0] / TABLES / "big" / name, name)
        for low in range(quarter * count // 4, (quarter + 1) * count // 4, step):
            writer.append(np.arange(low, low + step), pool)
        writer.close(rng.choice(count // 4, int(count // 4 * deleted), replace=False).astype(np.int32))
        b.file("big", name, FileType.RAW, row_count=count // 4 - int(count // 4 * deleted))
    return b.write()


RUNNER = (
    "import re, sys; from milvus_offline.cli import run; code = run(sys.argv[1:]);"
    "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(code)"
)
"""Asks the process itself: what `wait4` says of a child includes the memory of the parent that it was forked from."""


def peak(*arguments: object) -> int:
    """Peak memory in bytes of `milvus-offline ARGUMENTS`, which must end well and print nothing."""
    command = [sys.executable, "-c", RUNNER, *map(str, arguments)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600).stdout) * 1024


@pytest.fixture(autouse=True)
def tidy(tmp_path: Path) -> Iterator[None]:
    """These files are large; pytest would keep those of the last runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("memory")
    yield build(folder / "small", SMALL), build(folder / "large", LARGE)
    shutil.rmtree(folder)


@pytest.mark.parametrize("command", ["export", "inspect", "verify"])
def test_memory_does_not_grow_with_the_rows(command: str, stores: tuple[Path, Path], tmp_path: Path) -> None:
    small, large = stores
    used = []
    for number, store in enumerate((small, large)):
        out = [tmp_path / f"out{number}"] if command == "export" else []
        used.append(peak(command, store, *out, "-q"))
    assert used[1] - used[0] < ALLOWED, [u // MIB for u in used]
    assert used[1] < 120 * MIB


ARROW = (
    "import sys; from milvus_offline import open_store; import pyarrow.compute as pc;"
    "found = open_store(sys.argv[1])['big'].to_reader(); print(sum(pc.count(b['id']).as_py() for b in found), file=sys.stderr);"
    "import re; print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
)


def test_memory_of_a_stream_of_arrow(stores: tuple[Path, Path]) -> None:
    done = [subprocess.run([sys.executable, "-c", ARROW, str(s)], capture_output=True, text=True, check=True) for s in stores]
    assert int(done[1].stderr) == LARGE // (4 * DIM) - 4 * int(LARGE // (4 * DIM) // 4 * 0.05)
    used = [int(d.stdout) * 1024 for d in done]
    assert used[1] - used[0] < ALLOWED + 32 * MIB, [u // MIB for u in used]  # two batches of 16 MiB, where the pool keeps them


def test_memory_of_compression(stores: tuple[Path, Path], tmp_path: Path) -> None:
    used = [peak("export", s, tmp_path / f"o{n}", "-q", "--compression", "lz4", "--jobs", "1") for n, s in enumerate(stores)]
    assert used[1] - used[0] < ALLOWED, [u // MIB for u in used]


def test_memory_of_a_log(tmp_path: Path) -> None:
    stores = build(tmp_path / "small", 32 * MIB, log=True), build(tmp_path / "large", 192 * MIB, log=True)
    used = [peak("export", s, tmp_path / f"o{n}", "-q") for n, s in enumerate(stores)]
    assert used[1] - used[0] < ALLOWED + 16 * (160 * MIB // (4 * DIM)), [u // MIB for u in used]


def test_within_a_limit_of_address_space(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """512 MiB of vectors under a limit that could not hold them (one job: a thread reserves more than it uses)."""
    import resource

    limit = 450 * MIB
    command = [sys.executable, "-m", "milvus_offline", "export", str(stores[1]), str(tmp_path / "out"), "-q", "--jobs", "1"]
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_portable_way_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems without preadv and pwrite: a seek and a read under a lock, also from several threads."""
    store = build(tmp_path / "store", 32 * MIB)
    monkeypatch.setattr("milvus_offline.targets.hdf5.TASK_BYTES", MIB)
    assert fileio.POSITIONED
    assert call("export", store, tmp_path / "fast", "-q", "--jobs", "4").code == 0
    monkeypatch.setattr(fileio, "POSITIONED", False)
    monkeypatch.delattr(os, "preadv")
    monkeypatch.delattr(os, "pwrite")
    assert call("export", store, tmp_path / "portable", "-q", "--jobs", "4").code == 0
    assert files(tmp_path / "portable") == files(tmp_path / "fast")
    count = 32 * MIB // (4 * DIM)
    assert exported(tmp_path / "portable")["big", "_default"].total() == count - 4 * int(count // 4 * 0.05)
