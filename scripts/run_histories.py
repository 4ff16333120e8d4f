#!/usr/bin/env python3
"""Runs random histories of the modelled server (tests/support/history.py) by seed and reports those where the reader differs.

    python scripts/run_histories.py [--first 0] [--count 10000] [--unlucky]

A folder in memory (TMPDIR=/dev/shm) makes it several times faster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.lives import live, live_unlucky


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--unlucky", action="store_true", help="servers that lose rows (tests/support/unlucky.py)")
    arguments = parser.parse_args()
    lives = live_unlucky if arguments.unlucky else live
    failed: list[int] = []
    looks, codes = 0, Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            try:
                for found in lives(Random(seed), Path(folder), monkeypatch):
                    looks += 1
                    codes.update(found)
            except Exception as e:
                failed.append(seed)
                print(f"seed {seed}: {type(e).__name__}: {e}", flush=True)
    print(f"{arguments.count} histories, {looks} stores read, {len(failed)} differ: {failed[:20]}")
    print("stores with a finding:", ", ".join(f"{code} {n}" for code, n in codes.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
