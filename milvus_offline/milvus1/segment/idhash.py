"""The hash that the servers' bloom filters take of an id: of its decimal text, for whole arrays at once (FORMAT §4.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
_U64 = npt.NDArray[np.uint64]
SEED = 0x97C29B3A

_N = np.arange(10000, dtype=np.uint64)
_DIGITS4 = _N // 1000 + (_N // 100 % 10 << 8) + (_N // 10 % 10 << 16) + (_N % 10 << 24) + np.uint64(0x30303030)
"""Four decimal digits as four letters, the first one in the lowest byte."""
_POWERS = np.array([10**i for i in range(1, 20)], np.uint64)
_MINUS = np.uint64(ord("0") ^ ord("-"))
_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


def id_hashes(ids: Ids) -> Hashes:
    """The first 64 bits of MurmurHash3 x64_128 over the decimal text of each id: uint64 [n]."""
    if not len(ids):
        return np.empty(0, np.uint64)
    least, most = int(ids.min()), int(ids.max())
    if least >= 0 and len(str(least)) == len(str(most)):  # as in nearly all segments
        return _hashes(ids.view(np.uint64), len(str(most)))
    negative = ids < 0
    magnitude = np.where(negative, ~ids.view(np.uint64) + np.uint64(1), ids.view(np.uint64))
    lengths = np.searchsorted(_POWERS, magnitude, side="right") + 1 + negative
    hashes = np.empty(len(ids), np.uint64)
    for length in range(int(lengths.min()), int(lengths.max()) + 1):
        for sign in (False, True):
            rows = np.flatnonzero((lengths == length) & (negative == sign))
            if len(rows):
                hashes[rows] = _hashes(magnitude[rows], length, negative=sign)
    return hashes


def _hashes(numbers: _U64, length: int, *, negative: bool = False) -> _U64:
    """First 64 bits of the hash of numbers whose text has `length` letters (1 to 20), with the minus sign where `negative`.

    The text goes in as words of eight letters. Neighbouring ids mostly differ in the last word alone, so that the words before
    it are hashed once for each run of ids that share them.
    """
    words, rest = divmod(length - 1, 8)
    rest += 1
    head = numbers // _POWERS[rest - 1]
    tail = _eight(numbers - head * _POWERS[rest - 1], rest) >> np.uint64(8 * (8 - rest))
    starts = np.flatnonzero(head[1:] != head[:-1]) + 1
    few = len(starts) < len(head) // 8
    if few:
        starts = np.concatenate(([0], starts))
        head = head[starts]
    letters = [_eight(part, 8) for part in ((), (head,), _divided(head))[words]] + [tail]
    if negative:
        letters[0] ^= _MINUS
    h1 = h2 = np.full(1, SEED, np.uint64)
    for i in range(words):
        h1, h2 = _taken(h1, h2, letters[i], i, length)
    if few and len(starts) > 1:
        counts = np.diff(starts, append=len(numbers))
        h1, h2 = (np.repeat(h, counts) if len(h) > 1 else h for h in (h1, h2))
    h1, h2 = _taken(h1, h2, letters[words], words, length)
    h1 = (h1 ^ np.uint64(length)) + (h2 ^ np.uint64(length))
    h2 = (h2 ^ np.uint64(length)) + h1
    return _final(h1) + _final(h2)


def _divided(numbers: _U64) -> tuple[_U64, _U64]:
    """Sixteen digits as twice eight."""
    high = numbers // _POWERS[7]
    return high, numbers - high * _POWERS[7]


def _eight(numbers: _U64, digits: int) -> _U64:
    """Numbers of up to `digits` digits, 8 at most, as eight decimal digits: uint64 [n]."""
    if digits <= 4:
        return _four(numbers) << np.uint64(32)
    high = numbers // _POWERS[3]
    return _four(high) | _four(numbers - high * _POWERS[3]) << np.uint64(32)


def _four(numbers: _U64) -> _U64:
    letters: _U64 = _DIGITS4[numbers.view(np.int64)]
    return letters


def _taken(h1: _U64, h2: _U64, word: _U64, i: int, length: int) -> tuple[_U64, _U64]:
    """The state after the `i`-th word of a text: words 0 and 1 are a block where they are full, all others a tail."""
    block = length >= 16 and i < 2
    if i % 2:
        h2 = h2 ^ _rotl(word * _C2, 33) * _C1
        return h1, (_rotl(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5) if block else h2
    h1 = h1 ^ _rotl(word * _C1, 31) * _C2
    return (_rotl(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729) if block else h1, h2


def _rotl(x: _U64, bits: int) -> _U64:
    return x << np.uint64(bits) | x >> np.uint64(64 - bits)


def _final(k: _U64) -> _U64:
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return k ^ k >> np.uint64(33)
