"""Rows of equal width lying in runs in a file, and how they are read in flat memory.

A run is a number of rows at a fixed stride, with their int64 ids elsewhere in the file, between them, or nowhere (then the
ids are the row numbers). A flat index is one run; inverted lists are many, possibly millions of a few rows each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..fileio import read_into
from ..model import buffer

Int64s = npt.NDArray[np.int64]
Bytes2D = npt.NDArray[np.uint8]

ID_BYTES = 8
_LONG_RUN = 1 << 14
"""Bytes from which on a run is worth a read of its own: below, many are read at once and taken apart in memory."""
_STAGING = 8 << 20
"""Most bytes that one read brings where rows lie apart."""


@dataclass(frozen=True, eq=False)
class Runs:
    """`rows[k]` rows of `width` bytes from byte `vectors_at[k]` on, `stride` apart.

    `ids_at[k]` is where their int64 ids begin, `id_stride` apart; when `ids_at` is None the ids are `first[k]`,
    `first[k]` + 1, ... All arrays are int64 [k], every run has at least one row, and all of it lies inside the file.
    """

    width: int
    stride: int
    vectors_at: Int64s
    rows: Int64s
    ids_at: Int64s | None
    first: Int64s | None = None
    id_stride: int = ID_BYTES

    @property
    def total(self) -> int:
        return int(self.rows.sum())

    def slice(self, start: int, stop: int) -> Runs:
        """The rows `start` to `stop` of all of them; the first and last run may be cut."""
        ends = np.cumsum(self.rows)
        stop = min(stop, int(ends[-1]) if len(ends) else 0)
        if start >= stop:
            a = b = 0
        else:
            a = int(np.searchsorted(ends, start, "right"))
            b = int(np.searchsorted(ends, stop, "left")) + 1
        rows = self.rows[a:b].copy()
        vectors_at = self.vectors_at[a:b].copy()
        ids_at = None if self.ids_at is None else self.ids_at[a:b].copy()
        first = None if self.first is None else self.first[a:b].copy()
        if b > a:
            rows[-1] -= int(ends[b - 1]) - stop
            cut = start - (int(ends[a]) - int(self.rows[a]))
            rows[0] -= cut
            vectors_at[0] += cut * self.stride
            if ids_at is not None:
                ids_at[0] += cut * self.id_stride
            if first is not None:
                first[0] += cut
        return Runs(self.width, self.stride, vectors_at, rows, ids_at, first, self.id_stride)

    def batches(self, fd: int, path: object, rows: int) -> Iterator[tuple[Int64s, Bytes2D]]:
        """(ids int64 [n], bytes uint8 [n, width]) with n ≤ `rows`, in order. The arrays are overwritten by the next batch."""
        reader = _RunReader(self, fd, path, max(min(rows, _STAGING // self.stride), 1))
        k, skipped, count = 0, 0, len(self.rows)
        while k < count:
            many = reader.together(k) if skipped == 0 else 0
            if many > 1:
                yield reader.several(k, k + many)
                k += many
                continue
            n = min(int(self.rows[k]) - skipped, reader.capacity)
            yield reader.one(k, skipped, n)
            skipped += n
            if skipped == self.rows[k]:
                k, skipped = k + 1, 0


def single_run(
    width: int, vectors_at: int, rows: int, *, stride: int | None = None, ids_at: int | None = None, id_stride: int = ID_BYTES
) -> Runs:
    """One run; without `ids_at` the ids are 0, 1, 2, ..."""
    some = [] if rows == 0 else [0]
    ids = None if ids_at is None else np.array([ids_at for _ in some], np.int64)
    return Runs(
        width,
        width if stride is None else stride,
        np.array([vectors_at for _ in some], np.int64),
        np.array([rows for _ in some], np.int64),
        ids,
        None if ids_at is not None else np.zeros(len(some), np.int64),
        id_stride,
    )


class _RunReader:
    """The buffers of one pass over the runs."""

    def __init__(self, runs: Runs, fd: int, path: object, capacity: int) -> None:
        self.runs, self.fd, self.path = runs, fd, path
        self.capacity = min(capacity, max(runs.total, 1))
        self.packed = runs.stride == runs.width
        self.between = runs.ids_at is not None and runs.id_stride != ID_BYTES
        self.vectors = buffer((self.capacity, runs.width), np.uint8)
        self.ids = np.empty(self.capacity, "<i8")
        self._staging = np.empty(0, np.uint8)
        # where each run ends in the file, ids included: several small runs that lie together are read at once
        self.low = runs.vectors_at
        self.high = runs.vectors_at + runs.rows * runs.stride
        if runs.ids_at is not None and not self.between:
            self.low = np.minimum(self.low, runs.ids_at)
            self.high = np.maximum(self.high, runs.ids_at + runs.rows * ID_BYTES)
        self.ends = np.cumsum(runs.rows)

    def staging(self, size: int) -> npt.NDArray[np.uint8]:
        if len(self._staging) < size:
            self._staging = buffer((size,), np.uint8)
        return self._staging[:size]

    def _fill(self, target: npt.NDArray[Any], at: int) -> None:
        read_into(self.fd, target.reshape(-1).data.cast("B"), at, self.path)

    def together(self, k: int) -> int:
        """How many runs from `k` on fit one batch and lie so close that one read brings them."""
        if not self.packed or self.between:
            return 1
        done = int(self.ends[k - 1]) if k else 0
        stop = int(np.searchsorted(self.ends, done + self.capacity, "right"))
        if stop - k < 2:
            return 1
        low, high = self.low[k:stop], self.high[k:stop]
        span = self.capacity * (self.runs.width + ID_BYTES) * 5 // 4 + 4096
        near = (low[1:] >= low[:-1]) & (high[1:] >= high[:-1]) & (high[1:] - low[0] <= span)
        far = np.flatnonzero(~near)
        return int(far[0]) + 1 if len(far) else stop - k

    def several(self, k: int, stop: int) -> tuple[Int64s, Bytes2D]:
        """All rows of the runs `k` to `stop`: each where it belongs when they are long, from one read when they are short."""
        runs, width = self.runs, self.runs.width
        low, high = int(self.low[k]), int(self.high[stop - 1])
        if high - low >= _LONG_RUN * (stop - k):
            done = 0
            for number in range(k, stop):
                done += self._place(number, 0, int(runs.rows[number]), done)
            return self.ids[:done], self.vectors[:done]
        staging = self.staging(high - low)
        self._fill(staging, low)
        rows = runs.rows[k:stop]
        n = int(rows.sum())
        # the number of each row within its run
        within = np.arange(n, dtype=np.int64) - np.repeat(np.cumsum(rows) - rows, rows)
        starts = np.repeat(runs.vectors_at[k:stop] - low, rows) + within * width
        windows = np.lib.stride_tricks.as_strided(staging, (len(staging) - width + 1, width), (1, 1), writeable=False)
        vectors = windows[starts]
        if runs.ids_at is None:
            assert runs.first is not None
            return np.repeat(runs.first[k:stop], rows) + within, vectors
        places = np.repeat(runs.ids_at[k:stop] - low, rows) + within * ID_BYTES
        eights = np.lib.stride_tricks.as_strided(staging, (len(staging) - 7, ID_BYTES), (1, 1), writeable=False)
        return eights[places].view("<i8")[:, 0], vectors

    def one(self, k: int, skipped: int, n: int) -> tuple[Int64s, Bytes2D]:
        """`n` rows of run `k`, after the first `skipped`."""
        if self.between:
            return self._interleaved(k, int(self.runs.vectors_at[k]) + skipped * self.runs.stride, n)
        self._place(k, skipped, n, 0)
        return self.ids[:n], self.vectors[:n]

    def _place(self, k: int, skipped: int, n: int, to: int) -> int:
        """Reads `n` rows of run `k`, after the first `skipped`, to the rows of the buffers from `to` on."""
        runs = self.runs
        at = int(runs.vectors_at[k]) + skipped * runs.stride
        vectors, ids = self.vectors[to : to + n], self.ids[to : to + n]
        if self.packed:
            self._fill(vectors, at)
        else:
            size = (n - 1) * runs.stride + runs.width
            staging = self.staging(size)
            self._fill(staging, at)
            vectors[:] = np.lib.stride_tricks.as_strided(staging, (n, runs.width), (runs.stride, 1), writeable=False)
        if runs.ids_at is None:
            assert runs.first is not None
            first = int(runs.first[k]) + skipped
            ids[:] = first + np.arange(n)
        else:
            self._fill(ids, int(runs.ids_at[k]) + skipped * ID_BYTES)
        return n

    def _interleaved(self, k: int, at: int, n: int) -> tuple[Int64s, Bytes2D]:
        """Records that hold the vector and, after it, the id."""
        runs = self.runs
        assert runs.ids_at is not None
        after = int(runs.ids_at[k] - runs.vectors_at[k])
        staging = self.staging((n - 1) * runs.stride + after + ID_BYTES)
        self._fill(staging, at)
        vectors, ids = self.vectors[:n], self.ids[:n]
        vectors[:] = np.lib.stride_tricks.as_strided(staging, (n, runs.width), (runs.stride, 1), writeable=False)
        places = staging[after:]
        ids.view(np.uint8).reshape(n, ID_BYTES)[:] = np.lib.stride_tricks.as_strided(
            places, (n, ID_BYTES), (runs.stride, 1), writeable=False
        )
        return ids, vectors
