"""The hash that the servers' bloom filters take of an id: of its decimal text, for whole arrays at once (FORMAT §4.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
SEED = 0x97C29B3A

_N = np.arange(10000, dtype=np.uint32)
_DIGITS4 = _N // 1000 + (_N // 100 % 10 << 8) + (_N // 10 % 10 << 16) + (_N % 10 << 24) + np.uint32(0x30303030)
"""Four decimal digits as four letters."""
_POWERS = np.array([10**i for i in range(1, 20)], np.uint64)
_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


def id_hashes(ids: Ids) -> tuple[_U32, _U32]:
    """Low and high half of the first 64 bits of MurmurHash3 x64_128 over the decimal text of each id: uint32 [n] each."""
    negative = ids < 0
    signed = bool(negative.any())
    unsigned = ids.view(np.uint64)
    magnitude = np.where(negative, ~unsigned + np.uint64(1), unsigned) if signed else unsigned
    lengths = np.searchsorted(_POWERS, magnitude, side="right") + 1 + negative
    text = np.empty((len(ids), 6), np.uint32)
    rest = magnitude
    for column in range(5, 0, -1):
        quotient = rest // np.uint64(10000)
        text[:, column] = _DIGITS4[(rest - quotient * np.uint64(10000)).astype(np.int64)]
        rest = quotient
    text[:, 0] = 0x30303030
    letters = text.view(np.uint8)
    if signed:
        rows = np.flatnonzero(negative)
        letters[rows, 24 - lengths[rows]] = ord("-")
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == longest:
        return _murmur(_left(letters, shortest), shortest)
    h1, h2 = np.empty(len(ids), np.uint32), np.empty(len(ids), np.uint32)
    for length in range(shortest, longest + 1):
        rows = np.flatnonzero(lengths == length)
        if len(rows):
            h1[rows], h2[rows] = _murmur(_left(letters[rows], length), length)
    return h1, h2


def _left(letters: npt.NDArray[np.uint8], length: int) -> _U64:
    """The last `length` of 24 letters, moved to the front and filled up with zeros, as three words: uint64 [3, n]."""
    padded = np.zeros((len(letters), 24), np.uint8)
    padded[:, :length] = letters[:, 24 - length :]
    return np.ascontiguousarray(padded.view("<u8").T)


def _murmur(words: _U64, length: int) -> tuple[_U32, _U32]:
    """MurmurHash3 x64_128 of texts of `length` bytes, 1 to 20."""
    n = words.shape[1]
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
