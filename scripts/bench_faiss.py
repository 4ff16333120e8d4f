"""How fast a Faiss index becomes an HDF5 file, against `cp`, against Faiss with h5py, and against the predecessor's way.

    python scripts/bench_faiss.py --mib 1024 --repeat 3 --folder /tmp/bench

Every row of the table is the least of `--repeat` runs, taken in turns so that all see the same machine. The export syncs its
files, as `cp` with `sync` does; with --no-sync it leaves them to the system, as `cp` alone does. RSS is the peak of the process
(Linux does not show less than this script itself has). The package is byte-compiled first, as pip does when it installs one.
The predecessor unpacks element by element, so it gets a small file and its time is scaled up.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_export import touch

DIMENSION = 128
SMALL_MIB = 4

FAISS = """
import sys, faiss, h5py, numpy as np
index = faiss.read_index(sys.argv[1])
with h5py.File(sys.argv[2], "w") as f:
    e = f.create_dataset("embeddings", (index.ntotal, index.d), "f4")
    i = f.create_dataset("ids", (index.ntotal,), "i8")
    if hasattr(index, "invlists"):
        lists, at = index.invlists, 0
        for l in range(index.nlist):
            n = lists.list_size(l)
            if n:
                codes = faiss.rev_swig_ptr(lists.get_codes(l), n * lists.code_size).view("f4").reshape(n, -1)
                e[at:at + n] = codes
                i[at:at + n] = faiss.rev_swig_ptr(lists.get_ids(l), n)
                at += n
    else:
        e[:] = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
        i[:] = np.arange(index.ntotal)
"""
"""The usual script."""

PREDECESSOR = """
import struct, sys, h5py, numpy as np
with open(sys.argv[1], "rb") as f:
    f.seek(4)
    d, n = struct.unpack("<iq", f.read(12))
    f.seek(4 + 33 + 8)
    rows = []
    for _ in range(n):
        row = []
        for _ in range(d):
            row.append(struct.unpack("<f", f.read(4))[0])
        rows.append(row)
with h5py.File(sys.argv[2], "w") as f:
    f.create_dataset("embeddings", data=np.array(rows))
    f.create_dataset("ids", data=np.arange(n))
"""
"""One struct.unpack for each element, lists of lists, float64 in the end."""


def header(kind: bytes, rows: int) -> bytes:
    return kind + struct.pack("<iqqqBi", DIMENSION, rows, 1 << 20, 1 << 20, 1, 1)


def write_flat(path: Path, rows: int) -> None:
    block = np.random.default_rng(1).standard_normal((4096, DIMENSION)).astype("<f4")
    with open(path, "wb") as file:
        file.write(header(b"IxF2", rows) + struct.pack("<Q", rows * DIMENSION))
        for first in range(0, rows, len(block)):
            file.write(block[: rows - first].data)


def write_ivf(path: Path, rows: int, nlist: int) -> None:
    """Lists of uneven sizes around rows / nlist."""
    rng = np.random.default_rng(2)
    sizes = rng.multinomial(rows, rng.dirichlet(np.full(nlist, 5.0)))
    block = rng.standard_normal((int(sizes.max()), DIMENSION)).astype("<f4")
    numbers = np.arange(rows)
    with open(path, "wb") as file:
        file.write(header(b"IwFl", rows) + struct.pack("<QQ", nlist, 1))
        file.write(header(b"IxF2", nlist) + struct.pack("<Q", nlist * DIMENSION) + bytes(nlist * DIMENSION * 4))
        file.write(b"\0" + bytes(8) + b"ilar" + struct.pack("<QQ", nlist, DIMENSION * 4) + b"full")
        file.write(struct.pack("<Q", nlist) + sizes.astype("<u8").tobytes())
        done = 0
        for n in sizes.tolist():
            file.write(block[:n].data)
            file.write(numbers[done : done + n].data)
            done += n


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak MiB)."""
    root = str(Path(__file__).resolve().parents[1])
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": root})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def compare(index: Path, folder: Path, repeat: int, jobs: int) -> None:
    """Prints the table of one index."""
    out = folder / "out"
    export = [sys.executable, "-m", "milvus_offline", "export", "-q", "--jobs", str(jobs), str(index), str(out)]
    ways: dict[str, list[str]] = {
        "cp": ["cp", str(index), str(out)],
        "cp, then sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', str(index), str(out)],
        "milvus-offline export": export,
        "the same with --no-sync": [*export, "--no-sync"],
        "faiss.read_index + h5py": [sys.executable, "-c", FAISS, str(index), str(out)],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, command in ways.items():
            touch(index.stat().st_size)
            found[name].append(run(command))
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    size = index.stat().st_size
    base = min(t for t, _ in found["cp"])
    print(f"\n{index.name}, {size / (1 << 20):.0f} MiB, least of {repeat}\n")
    print("| way | s | / cp | MiB/s | RSS MiB |\n|---|---|---|---|---|")
    for name, runs in found.items():
        seconds = min(t for t, _ in runs)
        peak = max(m for _, m in runs)
        print(f"| {name} | {seconds:.2f} | {seconds / base:.2f} | {size / (1 << 20) / seconds:.0f} | {peak:.0f} |", flush=True)


def predecessor(folder: Path, mib: int) -> None:
    index, out = folder / "small.index", folder / "small.h5"
    rows = (SMALL_MIB << 20) // (DIMENSION * 4)
    write_flat(index, rows)
    seconds, peak = run([sys.executable, "-c", PREDECESSOR, str(index), str(out)])
    scaled = seconds * mib / SMALL_MIB
    print(
        f"\nThe predecessor's way, {SMALL_MIB} MiB: {seconds:.2f} s, {peak:.0f} MiB; at that pace {mib} MiB take {scaled:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--nlist", type=int, default=4096)
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made (and removed again)")
    options = parser.parse_args()
    rows = (options.mib << 20) // (DIMENSION * 4)
    compileall.compile_dir(Path(__file__).resolve().parents[1] / "milvus_offline", quiet=2)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for kind in ("flat", "ivf"):
            index = folder / f"{kind}.index"
            write_flat(index, rows) if kind == "flat" else write_ivf(index, rows, options.nlist)
            compare(index, folder, options.repeat, options.jobs)
            index.unlink()
        predecessor(folder, options.mib)
    return 0


if __name__ == "__main__":
    sys.exit(main())
