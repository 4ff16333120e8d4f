"""Blocks of zeros in place of what a disk did not give back: in copies of failing disks (ddrescue, `dd conv=noerror,sync`), and
on some file systems after a power loss.

Vectors may hold zeros of their own. But a run of those begins and ends anywhere, while a lost block does so at a multiple of
512 bytes, with other values right before and behind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...model import buffer
from ..layout import LENGTH

SECTOR = 512
_CHUNK = 4096
"""Sectors that are looked at in one go."""
_SHARE = 100
"""One in so many runs of zeros at least must be a lost block: in sparse vectors a few look like one by chance (1 in 16384)."""


@dataclass(frozen=True)
class LostBlocks:
    """`rows` are those that lie in them, in whole or in part; `first` is where the first one begins."""

    sectors: int
    rows: int
    first: int


def lost_blocks(path: str | os.PathLike[str], rows: int, row_bytes: int, *, value_bytes: int = 4) -> LostBlocks | None:
    """What seems lost of a `.rv` or `.uid` file with this many rows (§4.1, §4.2), whose values have 4 or 8 bytes.

    Raises DamageError, OSError.
    """
    search = _Search(rows, row_bytes, value_bytes)
    end = LENGTH.size + rows * row_bytes
    space = buffer((_CHUNK, SECTOR // 4), "<u4")
    fd = fileio.open_read(path)
    try:
        for at in range(0, end, space.nbytes):
            length = min(space.nbytes, end - at)
            octets = space.reshape(-1).view(np.uint8)
            octets[length:] = 0
            fileio.read_into(fd, octets[:length].data, at, path)
            search.look(space[: -(-length // SECTOR)])
    finally:
        os.close(fd)
    return search.result()


class _Search:
    """Goes through a file in runs of sectors."""

    def __init__(self, rows: int, row_bytes: int, value_bytes: int) -> None:
        self._all, self._row_bytes = rows, row_bytes
        self._value = np.dtype(f"<u{value_bytes}")
        self._seen = 0
        self._was_zero, self._tail = False, True
        self._open = np.empty(0, np.int64)
        self._open_sharp = np.empty(0, np.bool_)
        self._runs = self._lost = self._sectors = self._rows = 0
        self._first: int | None = None

    def look(self, sectors: npt.NDArray[np.uint32]) -> None:
        """uint32 [n, 128], the next ones; a last one that is short is filled up with zeros."""
        zero = np.bitwise_or.reduce(sectors.view(np.uint64), axis=1) == 0
        values = sectors.view(self._value)
        before = np.concatenate(([self._was_zero], zero[:-1]))
        tails = np.concatenate(([self._tail], values[:-1, -1] != 0))
        begins = np.flatnonzero(zero & ~before)
        ends = np.flatnonzero(before & ~zero)
        starts = np.concatenate((self._open, self._seen + begins))
        sharp = np.concatenate((self._open_sharp, tails[begins]))
        whole = len(ends)
        self._take(starts[:whole], self._seen + ends, sharp[:whole] & (values[ends, 0] != 0))
        self._open, self._open_sharp = starts[whole:], sharp[whole:]
        self._was_zero, self._tail = bool(zero[-1]), bool(values[-1, -1])
        self._seen += len(sectors)

    def _take(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], lost: npt.NDArray[np.bool_]) -> None:
        self._runs += len(starts)
        self._lost += int(lost.sum())
        starts, ends = starts[lost], ends[lost]
        if not len(starts):
            return
        self._sectors += int((ends - starts).sum())
        from_row = (starts * SECTOR - LENGTH.size) // self._row_bytes
        to_row = np.minimum((ends * SECTOR - LENGTH.size - 1) // self._row_bytes, self._all - 1)
        self._rows += int((to_row - from_row + 1).sum())
        if self._first is None:
            self._first = int(starts[0]) * SECTOR

    def result(self) -> LostBlocks | None:
        """Zeros up to the end may be whole vectors, unless they begin inside of one."""
        inside = (self._open * SECTOR - LENGTH.size) % self._row_bytes != 0
        self._take(self._open, np.full(len(self._open), self._seen), self._open_sharp & inside)
        if self._first is None or self._lost * _SHARE < self._runs:
            return None
        return LostBlocks(self._sectors, min(self._rows, self._all), self._first)
