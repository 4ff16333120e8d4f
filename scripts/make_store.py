#!/usr/bin/env python3
"""Builds a big synthetic store of Milvus 1.1.1 for measurements: random vectors, any size, with or without deletes.

    python scripts/make_store.py FOLDER [--gib 1] [--dimension 128] [--segments 4] [--deleted 3] [--seed 1]
    python scripts/make_store.py FOLDER --segments 10000 --rows 10000000 --dimension 8

Segments get the same pool of random vectors, each with a different start, so that a GiB takes a second or two.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.builder import StoreBuilder

from milvus_offline.milvus1.layout import TABLES, FileType
from milvus_offline.milvus1.segment.writing import SegmentWriter

_POOL_BYTES = 32 << 20
_STEP_BYTES = 4 << 20


def make_store(root: Path, *, rows: int, dimension: int, segments: int, deleted: float, seed: int = 1) -> None:
    """A store with the collection `big` of `rows` stored rows in `segments` segments, `deleted` percent of them deleted."""
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal((max(1, min(rows, _POOL_BYTES // (4 * dimension))), dimension), np.float32)
    builder = StoreBuilder(root)
    builder.collection("big", dim=dimension)
    bounds = [rows * i // segments for i in range(segments + 1)]
    step = max(1, min(len(pool), _STEP_BYTES // (4 * dimension)))
    for first, last in itertools.pairwise(bounds):
        name = builder.new_id()
        writer = SegmentWriter(builder.roots[0] / TABLES / "big" / name, name)
        for low in range(first, last, step):
            count = min(step, last - low)
            at = low * 7919 % (len(pool) - count + 1)
            writer.append(np.arange(low, low + count, dtype=np.int64), pool[at : at + count])
        dead = np.sort(rng.choice(last - first, int((last - first) * deleted / 100), replace=False).astype(np.int32))
        writer.close(dead)
        builder.file("big", name, FileType.RAW, row_count=last - first - len(dead), file_size=writer.payload_bytes)
    builder.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=1.0, help="vectors in GiB (default 1)")
    parser.add_argument("--rows", type=int, help="stored rows, instead of --gib")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--deleted", type=float, default=0.0, help="per cent")
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    rows = o.rows if o.rows is not None else int(o.gib * (1 << 30)) // (4 * o.dimension)
    make_store(o.folder, rows=rows, dimension=o.dimension, segments=o.segments, deleted=o.deleted, seed=o.seed)
    print(f"{o.folder}: {rows:,} rows in {o.segments:,} segments")


if __name__ == "__main__":
    main()
