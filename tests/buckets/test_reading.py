"""Files in a bucket, read in any order: the bytes, and which of them are asked for."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from milvus_offline.buckets.objects import HEAD, SMALL, Item
from milvus_offline.buckets.reading import BLOCK_BYTES, ObjectFile

POOL = ThreadPoolExecutor(4)
DATA = random.Random(1).randbytes(9 * BLOCK_BYTES)


def opened(size: int, span: tuple[int, int] | None = None) -> tuple[ObjectFile, list[tuple[int, int]]]:
    """The first bytes of DATA as a file, and what is asked for of it (but for its beginning, which is kept)."""
    asked: list[tuple[int, int]] = []

    def fetch(item: Item, start: int, end: int) -> bytes:
        assert 0 <= start < end <= item.size
        asked.append((start, end))
        return DATA[start:end]

    store: Any = SimpleNamespace(pool=POOL, fetch=fetch, begin=lambda item: DATA[: item.size if item.size <= SMALL else HEAD])
    return ObjectFile(store, Item("bucket/key", size), span), asked


def read(file: ObjectFile, at: int, length: int) -> None:
    buffer = bytearray(length)
    found = file.read_into(memoryview(buffer), at)
    assert found == max(0, min(length, file.size - at)) and buffer[:found] == DATA[at : at + found]


@pytest.mark.parametrize("seed", range(80))
def test_reads_in_any_order_give_the_bytes(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice([0, 5, SMALL, SMALL + 1, BLOCK_BYTES, BLOCK_BYTES + 8, 3 * BLOCK_BYTES - 1, rng.randrange(1, len(DATA))])
    ends = sorted(rng.randrange(size + 1) for _ in range(2))
    file, _ = opened(size, (ends[0], ends[1]) if rng.random() < 0.5 else None)
    at = rng.choice([0, ends[0], 8])
    for _ in range(60):
        length = rng.choice([1, 8, 60, 4096, 1 << 18, 1 << 20, 3 << 20, rng.randrange(1, 2 * BLOCK_BYTES)])
        read(file, at, length)
        at = max(0, at + length + rng.choice([0, 0, 0, 0, 0, 1, 5000, 3 << 20, 20 << 20, -length, -(1 << 20), -at, -at // 2]))


@pytest.mark.parametrize("seed", range(40))
def test_no_byte_is_asked_for_twice_and_none_behind_the_end_that_was_named(seed: int) -> None:
    """From front to back, with gaps where rows are deleted."""
    rng = random.Random(1000 + seed)
    start = rng.randrange(8, 4 * BLOCK_BYTES)
    end = rng.randrange(start + SMALL, len(DATA))
    file, asked = opened(len(DATA), (start, end))
    at, step = start, rng.choice([1 << 18, 1 << 20, (2 << 20) - 24, 5 << 20])
    while at < end:
        read(file, at, min(step, end - at))
        at += step + rng.choice([0, 0, 0, rng.randrange(1 << 20)])
    asked.sort()
    assert asked[0][0] == start and asked[-1][1] == end
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(asked))
    assert all(b - a >= SMALL for a, b in asked[:-1]) and len(asked) <= (end - start) // BLOCK_BYTES + 1
