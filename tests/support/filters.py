"""Bloom filters as a server makes them, id by id in the order of the additions: what those of the product are held against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from milvus_offline.milvus1.segment.bloom import (
    LEGACY_CAPACITY,
    BloomFilter,
    CountingFilter,
    chunks,
    counter_index,
    filter_shape,
)
from milvus_offline.milvus1.segment.idhash import Hashes, id_hashes

_U64 = npt.NDArray[np.uint64]


def build_filter(batches: Iterable[npt.ArrayLike], capacity: int, *, legacy: bool = False) -> BloomFilter:
    """The filter that a server makes when it adds the ids (arrays int64 [n]) in this order; `capacity` is the row count.

    Takes memory of the order of the filter itself: eight bytes per id while it is built, whatever the ids are. Raises
    ValueError when ids come but the capacity is 0 (the server would divide by zero).
    """
    result = BloomFilter(LEGACY_CAPACITY if legacy else capacity, legacy=legacy)
    limit = result.capacity - 1 if legacy else result.capacity
    hashes: list[list[Hashes]] = [[]]
    firsts, counts = [0], [0]
    for chunk in chunks(batches):
        if limit <= 0:
            raise ValueError("a bloom filter of capacity 0 cannot take ids")
        unsigned = chunk.view(np.uint64)
        before = np.maximum.accumulate(np.concatenate((np.array([result.max_id], np.uint64), unsigned)))[:-1]
        found = id_hashes(chunk)
        at = 0
        while at < len(chunk):
            at += _take(unsigned[at:], before[at:], found[at:], limit, firsts, counts, hashes)
            if at < len(chunk):
                firsts.append(int(before[at]) + 1)
                counts.append(0)
                hashes.append([])
        result.max_id = max(int(before[-1]), int(unsigned[-1]))
        result.sequence += len(chunk)
    if legacy:
        result.disk_sequence = result.sequence
    for index, (first_id, count, parts) in enumerate(zip(firsts, counts, hashes, strict=True)):
        functions, per_function = filter_shape(result.capacity, result.error_rate, index)
        result.filters.append(CountingFilter(first_id, count, functions, per_function, _count(parts, functions, per_function)))
        parts.clear()
    return result


def _take(  # many: the state of a loop over millions of ids, as plain arrays
    ids: _U64,
    before: _U64,
    found: Hashes,
    limit: int,
    firsts: list[int],
    counts: list[int],
    hashes: list[list[Hashes]],
) -> int:
    """Gives ids to the filters until the next one would begin a new filter; returns how many were given.

    An id belongs to the last filter that begins at or before it. `before`: the largest id ahead of each.
    """
    top = ids >= np.uint64(firsts[-1])
    n = len(ids)
    if counts[-1] + n > limit:  # otherwise the filter cannot be full before the end
        full = (ids > before) & (counts[-1] + np.cumsum(top) - top >= limit)
        if full.any():
            n = int(np.argmax(full))
    owner = np.searchsorted(np.array(firsts, np.uint64), ids[:n], side="right") - 1 if len(firsts) > 1 else None
    for index in range(len(firsts)):
        mine = slice(0, n) if owner is None else np.flatnonzero(owner == index)
        part = found[:n][mine]
        if len(part):
            hashes[index].append(part)
            counts[index] += len(part)
    return n


def _count(parts: list[Hashes], functions: int, per_function: int) -> npt.NDArray[np.uint8]:
    """The packed counters, each at most 15, of all hashes; one function after the other, so that its counters stay close."""
    nibbles = np.zeros(functions * per_function + functions * per_function % 2, np.uint8)
    one = np.uint32(1)  # of the counters' own type: thirty times as fast as a plain 1
    for i in range(functions):
        counts = np.zeros(per_function, np.uint32)
        for part in parts:
            np.add.at(counts, counter_index(part, i, per_function), one)
        np.minimum(counts, 15, out=counts)
        nibbles[i * per_function : (i + 1) * per_function] = counts
    nibbles[0::2] <<= 4
    return nibbles[0::2] | nibbles[1::2]
