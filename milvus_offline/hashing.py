"""A hash of each row's bytes, to compare rows without keeping them: 8 bytes a row, whatever its width."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .model import Array

Hashes = npt.NDArray[np.uint64]


@lru_cache(maxsize=64)
def _factors(words: int) -> Hashes:
    return np.random.default_rng(0x6D6F).integers(0, 1 << 64, words, np.uint64) | np.uint64(1)


def mixed(x: Hashes) -> Hashes:
    """The finaliser of splitmix64, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def vector_hashes(vectors: Array) -> Hashes:
    """One hash per row, uint64 [n], of the bytes of the vectors, [n, width] of any dtype."""
    octets = np.ascontiguousarray(vectors).reshape(len(vectors), -1).view(np.uint8)
    if octets.shape[1] % 4:
        octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 4)))
    words = octets.view("<u4").astype(np.uint64)
    return mixed((words * _factors(words.shape[1])).sum(axis=1, dtype=np.uint64))


def row_hashes(ids: npt.NDArray[np.int64], vectors: Array) -> Hashes:
    """One hash per row, uint64 [n], of the id and the vector's bytes."""
    result = vector_hashes(vectors)
    result += mixed(ids.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return mixed(result)
