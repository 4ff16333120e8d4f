#!/usr/bin/env python3
"""Compares writing a new store (`milvus1:PATH`, bloom filters included) with `cp` of the same files.

    python scripts/bench_create.py [--gib 1] [--runs 5] [--dimension 128] [--segments 4] [--jobs N] [--folder DIR]

Whole processes, interleaved, the minimum counts; prints seconds, their ratio and the peak memory.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_export import _RUNNER, timed
from make_store import make_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--deleted", type=float, default=0)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--folder")
    o = parser.parse_args()
    rows = int(o.gib * 2**30) // (4 * o.dimension)
    with tempfile.TemporaryDirectory(dir=o.folder, prefix="bench-create-") as name:
        folder = Path(name)
        store, out, copy = folder / "store", folder / "out", folder / "copy"
        make_store(store, rows=rows, dimension=o.dimension, segments=o.segments, deleted=o.deleted)
        files = [str(p) for suffix in (".rv", ".uid") for p in sorted(store.rglob(f"*{suffix}"))]
        create = [sys.executable, "-c", _RUNNER, "load", str(store), f"milvus1:{out}", "--quiet"]
        create += ["--jobs", str(o.jobs)] if o.jobs else []
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)  # all runs find the files in memory
        copied = synced = created = float("inf")
        peak = 0
        for _ in range(o.runs):
            copy.mkdir()
            copied = min(copied, timed(["cp", *files, str(copy)])[0])
            shutil.rmtree(copy)
            copy.mkdir()
            command = ["sh", "-c", 'to=$1; shift; cp "$@" "$to" && sync "$to"/*', "sh", str(copy), *files]
            synced = min(synced, timed(command)[0])
            shutil.rmtree(copy)
            seconds, printed = timed(create)
            created, peak = min(created, seconds), max(peak, int(printed))
            shutil.rmtree(out)
    print(
        f"{rows * o.dimension * 4 / 2**30:.2f} GiB, dimension {o.dimension}: cp {copied:.2f} s, cp and sync {synced:.2f} s, "
        f"new store {created:.2f} s, "
        f"ratio {created / copied:.2f} ({created / synced:.2f} with sync), peak {peak / 1024:.0f} MiB"
    )


if __name__ == "__main__":
    main()
