#!/usr/bin/env python3
"""Compares `milvus-offline export` with `cp` of the same files: interleaved, whole processes, the minimum counts.

    python scripts/bench_export.py [--gib 1] [--runs 5] [--deleted 0 3] [--folder DIR] [--compression none] [--link]

Prints, for each share of deleted rows, two pairs that ask the same of the disk: `cp` of the .rv and .uid files and an export
with --no-sync; `cp` followed by `sync` and an export as it is by default, which syncs all that it writes. Then the peak memory
of an export. Each runs twice, the second time counts (`timed` says why), and every other round goes backwards. The store is
built in a temporary folder below --folder and thrown away. The package is byte-compiled first, as pip does when it installs
one.
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
    "import atexit, re; from milvus_offline.__main__ import main;"
    "atexit.register(lambda: print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])); main()"
)
"""Prints its own peak memory: what `wait4` says of a child includes the memory of the parent that it was forked from."""


def timed(command: list[str], target: Path) -> tuple[float, str]:
    """Seconds of a process that writes to `target`, and what it prints; `target` is removed afterwards.

    It runs twice, and the second time counts: the host of a virtual machine takes memory back that is free for a while, and
    gives it again slowly, to whoever comes first. So each finds the memory that it has just given back itself.
    """
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
        shutil.rmtree(target)
    return seconds, done.stdout


def measure(folder: Path, rows: int, deleted: float, o: argparse.Namespace) -> None:
    store, out, copy = folder / "store", folder / "out", folder / "copy"
    make_store(store, rows=rows, dimension=o.dimension, segments=o.segments, deleted=deleted)
    files = [str(p) for suffix in (".rv", ".uid") for p in sorted(store.rglob(f"*{suffix}"))]
    export = [sys.executable, "-c", _RUNNER, "export", str(store), str(out), "--quiet", "--compression", o.compression]
    export += (["--jobs", str(o.jobs)] if o.jobs else []) + (["--link"] if o.link else [])
    copy_to = 'to=$1; shift; mkdir "$to" && cp "$@" "$to"'
    ways = {
        "cp": (["sh", "-c", copy_to, "sh", str(copy), *files], copy),
        "unsynced": ([*export, "--no-sync"], out),
        "synced": (["sh", "-c", f'{copy_to} && sync "$to"/*', "sh", str(copy), *files], copy),
        "export": (export, out),
    }
    best: dict[str, float] = {}
    peak = 0
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)  # all runs find the files in memory
    for n in range(o.runs):
        for name, (command, target) in list(ways.items())[:: -1 if n % 2 else 1]:
            seconds, printed = timed(command, target)
            best[name] = min(best.get(name, seconds), seconds)
            peak = max(peak, int(printed or 0))
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
