"""Comparing rows by content, whatever their order: a 64-bit hash per (id, vector bytes).

Used only where a crash left the same rows in two places and something has to tell which copy counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import Array, Batch

Hashes = npt.NDArray[np.uint64]


@lru_cache(maxsize=64)
def _factors(words: int) -> Hashes:
    return np.random.default_rng(0x6D6F).integers(0, 1 << 64, words, np.uint64) | np.uint64(1)


def _mixed(x: Hashes) -> Hashes:
    """The finaliser of splitmix64, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def row_hashes(ids: npt.NDArray[np.int64], vectors: Array) -> Hashes:
    """One hash per row, uint64 [n], of the id and the vector's bytes."""
    n = len(ids)
    octets = np.ascontiguousarray(vectors).reshape(n, -1).view(np.uint8)
    if octets.shape[1] % 4:
        octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 4)))
    words = octets.view("<u4").astype(np.uint64)
    result = _mixed((words * _factors(words.shape[1])).sum(axis=1, dtype=np.uint64))
    result += _mixed(ids.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return _mixed(result)


def hashes_of(batches: Iterable[Batch]) -> Hashes:
    """The hashes of all rows, in their order: 8 bytes a row."""
    parts = [row_hashes(b.ids, b.vectors) for b in batches]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def contains(whole: Hashes, part: Hashes, *, is_sorted: bool = False) -> bool:
    """Whether `whole`, as a multiset, holds all of `part`; `is_sorted`, when `whole` is."""
    values, counts = np.unique(part, return_counts=True)
    return bool((_count_in(whole if is_sorted else np.sort(whole), values) >= counts).all())


def among(values: npt.NDArray[Any], ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of `values` are in `ordered`, which is sorted: np.isin would sort it each time."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    found: npt.NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
    return found


def matched(part: Hashes, whole: Hashes) -> npt.NDArray[np.bool_]:
    """Which rows of `part` have a partner in `whole`, each partner for one of them: the first of equal ones come first."""
    order = np.argsort(part, kind="stable")
    ordered = part[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, "left")
    result = np.zeros(len(part), np.bool_)
    result[order] = rank < _count_in(np.sort(whole), ordered)
    return result


def _count_in(ordered: Hashes, values: Hashes) -> npt.NDArray[np.int64]:
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")
