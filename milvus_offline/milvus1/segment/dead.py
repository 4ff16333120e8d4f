"""Which rows of a segment are dead: a bit for each."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 18
_BLOCK = 1 << 14
"""Bytes whose bits are counted at once."""


class DeadRows:
    """A set of row offsets as one bit per row (1 = deleted), so that it stays small for any number of deletes."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint8]:
        """Made when it is needed: damaged files can name any number of rows, and mostly none of them is deleted."""
        return np.zeros((self.rows + 7) // 8, np.uint8)

    def add(self, offsets: npt.NDArray[np.signedinteger[Any]]) -> int:
        """Adds offsets in any order, repeated or not; returns how many are outside the segment (they are ignored)."""
        valid = offsets[(offsets >= 0) & (offsets < self.rows)].astype(np.int64)
        if len(valid):
            np.bitwise_or.at(self._bits, valid >> 3, np.left_shift(1, valid & 7).astype(np.uint8))
        return len(offsets) - len(valid)

    def remove(self, offset: int) -> None:
        """Takes one offset out."""
        self._bits[offset >> 3 : (offset >> 3) + 1] &= np.uint8(~(1 << (offset & 7)) & 255)

    def offsets(self) -> npt.NDArray[np.int64]:
        """All of them, sorted."""
        return np.flatnonzero(self.window(0, self.rows))

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Up to `count` of the offsets, from all over the segment."""
        places = np.flatnonzero(self._bits)
        if not len(places):
            return places
        octets = places[_evenly(len(places), count)]
        bits = np.unpackbits(self._bits[octets], bitorder="little").reshape(-1, 8)
        rows = (octets[:, None] * 8 + np.arange(8))[bits.view(np.bool_)]
        chosen: npt.NDArray[np.int64] = rows[_evenly(len(rows), count)]
        return chosen

    def __len__(self) -> int:
        if "_bits" not in self.__dict__:
            return 0
        blocks = (self._bits[at : at + _CHUNK] for at in range(0, len(self._bits), _CHUNK))
        return sum(int(np.bitwise_count(block).sum(dtype=np.int64)) for block in blocks)

    def others(self) -> DeadRows:
        """The set of all other rows of the segment."""
        result = DeadRows(self.rows)
        np.bitwise_not(self._bits, out=result._bits)
        if self.rows % 8:
            result._bits[-1] &= (1 << self.rows % 8) - 1
        return result

    def contains(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the given offsets (all inside the segment) are dead."""
        found: npt.NDArray[np.bool_] = (self._bits[offsets >> 3] >> (offsets & 7).astype(np.uint8) & 1).astype(np.bool_)
        return found

    def window(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Which of the rows first..last-1 are dead."""
        low = first >> 3
        bits = np.unpackbits(self._bits[low : (last + 7) >> 3], bitorder="little")
        return bits[first - 8 * low : last - 8 * low].view(np.bool_)

    def right_before(self, row: int) -> int:
        """How many rows right before this one are dead, without a live one between."""
        first, step = row, 64
        while first:
            low = max(0, first - step)
            live = np.flatnonzero(~self.window(low, first))
            if len(live):
                return row - (low + int(live[-1]) + 1)
            first, step = low, min(2 * step, _CHUNK)
        return row

    def row_of_live(self, number: int) -> int:
        """Offset of the `number`-th live row (counted from 0); `rows` when there are not so many."""
        for low in range(0, len(self._bits), _BLOCK):
            dead = np.bitwise_count(self._bits[low : low + _BLOCK])
            live = min(self.rows - 8 * low, 8 * len(dead)) - int(dead.sum(dtype=np.int64))
            if number < live:
                up_to = np.cumsum(8 - dead, dtype=np.int32)  # the last byte may count some too many, behind all rows
                octet = int(np.searchsorted(up_to, number, side="right"))
                number -= int(up_to[octet - 1]) if octet else 0
                first = 8 * (low + octet)
                return first + int(np.flatnonzero(~self.window(first, first + 8))[number])
            number -= live
        return self.rows


def _evenly(n: int, count: int) -> npt.NDArray[np.int64]:
    """Up to `count` of the numbers 0..n-1, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, count).astype(np.int64))
