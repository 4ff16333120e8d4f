#!/usr/bin/env python3
"""Compares `milvus-offline export` with `cp` of the same files: interleaved, whole processes, the minimum counts.

    python scripts/bench_export.py [--gib 1] [--runs 5] [--deleted 0 3] [--folder DIR] [--compression none] [--link]

Prints, for each share of deleted rows, two pairs that ask the same of the disk: `cp` of the .rv and .uid files and an export
with --no-sync; `cp` followed by `sync` and an export as it is by default, which syncs all that it writes. Then the peak memory
of an export. The store is built in a temporary folder below --folder and thrown away. The package is byte-compiled first, as
pip does when it installs one.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from make_store import make_store

import milvus_offline

_RUNNER = (
    "import re, sys; from milvus_offline.cli import run; code = run(sys.argv[1:]);"
    "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]); sys.exit(code)"
)
"""Prints its own peak memory: what `wait4` says of a child includes the memory of the parent that it was forked from."""


_TOUCH = "import mmap, sys; m = mmap.mmap(-1, int(sys.argv[1]))\nfor i in range(0, len(m), 4096): m[i] = 1"
"""Takes memory and gives it back: what a virtual machine's host has taken away costs seconds, whoever comes first."""


def touch(nbytes: int) -> None:
    """Makes room in memory for a run that writes so many bytes."""
    subprocess.run([sys.executable, "-c", _TOUCH, str(nbytes + (nbytes >> 2))], check=True)


def timed(command: list[str], nbytes: int) -> tuple[float, str]:
    """Seconds of a process that writes this many bytes, and what it prints."""
    touch(nbytes)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def measure(folder: Path, rows: int, deleted: float, o: argparse.Namespace) -> None:
    store, out, copy = folder / "store", folder / "out", folder / "copy"
    make_store(store, rows=rows, dimension=o.dimension, segments=o.segments, deleted=deleted)
    files = [str(p) for suffix in (".rv", ".uid") for p in sorted(store.rglob(f"*{suffix}"))]
    export = [sys.executable, "-c", _RUNNER, "export", str(store), str(out), "--quiet", "--compression", o.compression]
    export += (["--jobs", str(o.jobs)] if o.jobs else []) + (["--link"] if o.link else [])
    best: dict[str, float] = {}
    peak = 0
    nbytes = sum(Path(f).stat().st_size for f in files)
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)  # all runs find the files in memory
    for _ in range(o.runs):
        copy.mkdir()
        seconds, _ = timed(["cp", *files, str(copy)], nbytes)
        best["cp"] = min(best.get("cp", seconds), seconds)
        shutil.rmtree(copy)
        copy.mkdir()
        seconds, _ = timed(["sh", "-c", 'to=$1; shift; cp "$@" "$to" && sync "$to"/*', "sh", str(copy), *files], nbytes)
        best["synced"] = min(best.get("synced", seconds), seconds)
        shutil.rmtree(copy)
        for name, command in (("unsynced", [*export, "--no-sync"]), ("export", export)):
            seconds, printed = timed(command, nbytes)
            best[name] = min(best.get(name, seconds), seconds)
            peak = max(peak, int(printed))
            shutil.rmtree(out)
    print(
        f"{rows * o.dimension * 4 / 2**30:.2f} GiB, {o.segments} segments, {deleted:g} % deleted: "
        f"cp {best['cp']:.2f} s, export --no-sync {best['unsynced']:.2f} s = {best['unsynced'] / best['cp']:.2f} x; "
        f"cp and sync {best['synced']:.2f} s, export {best['export']:.2f} s = {best['export'] / best['synced']:.2f} x "
        f"({best['export'] / best['cp']:.2f} x cp alone); peak {peak / 1024:.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--deleted", type=float, nargs="+", default=[0.0, 3.0], help="per cent")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--compression", default="none")
    parser.add_argument("--link", action="store_true")
    parser.add_argument("--folder", type=Path)
    o = parser.parse_args()
    rows = int(o.gib * (1 << 30)) // (4 * o.dimension)
    compileall.compile_dir(Path(milvus_offline.__file__).parent, quiet=2)
    for deleted in o.deleted:
        with tempfile.TemporaryDirectory(dir=o.folder) as folder:
            measure(Path(folder), rows, deleted, o)


if __name__ == "__main__":
    main()
