"""The hash that the servers' bloom filters take of an id: of its decimal text, for whole arrays at once (FORMAT §4.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
SEED = 0x97C29B3A

_N = np.arange(10000, dtype=np.uint64)
_DIGITS4 = _N // 1000 + (_N // 100 % 10 << 8) + (_N // 10 % 10 << 16) + (_N % 10 << 24) + np.uint64(0x30303030)
"""Four decimal digits as four letters, the first one in the lowest byte."""
_POWERS = np.array([10**i for i in range(1, 20)], np.uint64)
_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


def id_hashes(ids: Ids) -> tuple[_U32, _U32]:
    """Low and high half of the first 64 bits of MurmurHash3 x64_128 over the decimal text of each id: uint32 [n] each."""
    if not len(ids):
        return np.empty(0, np.uint32), np.empty(0, np.uint32)
    least, most = int(ids.min()), int(ids.max())
    if least >= 0 and len(str(least)) == len(str(most)):  # as in nearly all segments
        length = len(str(most))
        return _murmur(_left(_letters(ids.view(np.uint64), most), length), length)
    negative = ids < 0
    magnitude = np.where(negative, ~ids.view(np.uint64) + np.uint64(1), ids.view(np.uint64))
    lengths = np.searchsorted(_POWERS, magnitude, side="right") + 1 + negative
    letters = _letters(magnitude, max(most, -least))
    h1, h2 = np.empty(len(ids), np.uint32), np.empty(len(ids), np.uint32)
    for length in range(int(lengths.min()), int(lengths.max()) + 1):
        rows = np.flatnonzero(lengths == length)
        if len(rows):
            words = _left([word[rows] for word in letters], length)
            signs = words[0][negative[rows]]
            words[0][negative[rows]] = signs & ~np.uint64(0xFF) | np.uint64(ord("-"))
            h1[rows], h2[rows] = _murmur(words, length)
    return h1, h2


def _letters(numbers: _U64, most: int) -> list[_U64]:
    """Numbers up to `most` as 24 decimal digits, in three words: uint64 [n] each."""
    fours = []
    for _ in range(6):
        if not most:
            fours.append(np.full(len(numbers), _DIGITS4[0]))
            continue
        quotient = numbers // np.uint64(10000)
        fours.append(_DIGITS4[(numbers - quotient * np.uint64(10000)).view(np.int64)])
        numbers, most = quotient, most // 10000
    return [fours[i] | fours[i - 1] << np.uint64(32) for i in (5, 3, 1)]


def _left(letters: Sequence[_U64], length: int) -> list[_U64]:
    """The last `length` of 24 letters, moved to the front and filled up with zeros."""
    skipped, low = divmod(24 - length, 8)
    words = [*letters[skipped:], *[np.zeros_like(letters[0])] * (skipped + 1)][:4]
    if not low:
        return [word.copy() for word in words[:3]]
    down, up = np.uint64(8 * low), np.uint64(64 - 8 * low)
    return [words[i] >> down | words[i + 1] << up for i in range(3)]


def _murmur(words: Sequence[_U64], length: int) -> tuple[_U32, _U32]:
    """MurmurHash3 x64_128 of texts of `length` bytes, 1 to 20."""
    n = len(words[0])
    h1, h2 = np.full(n, SEED, np.uint64), np.full(n, SEED, np.uint64)
    tail = words
    if length >= 16:
        h1 ^= _mix(words[0], _C1, 31, _C2)
        h1 = (_rotl(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
        h2 ^= _mix(words[1], _C2, 33, _C1)
        h2 = (_rotl(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
        tail = words[2:]
    if length % 16 > 8:
        h2 ^= _mix(tail[1], _C2, 33, _C1)
    if length % 16:
        h1 ^= _mix(tail[0], _C1, 31, _C2)
    h1 ^= np.uint64(length)
    h2 ^= np.uint64(length)
    h1 += h2
    h2 += h1
    h1 = _final(h1) + _final(h2)
    return h1.astype(np.uint32), (h1 >> np.uint64(32)).astype(np.uint32)


def _rotl(x: _U64, bits: int) -> _U64:
    return x << np.uint64(bits) | x >> np.uint64(64 - bits)


def _mix(k: _U64, first: np.uint64, bits: int, second: np.uint64) -> _U64:
    return _rotl(k * first, bits) * second


def _final(k: _U64) -> _U64:
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return k ^ k >> np.uint64(33)
