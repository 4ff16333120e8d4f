"""The rows of an index as ids and vectors, in flat memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..fileio import open_read
from ..model import Array
from .cursor import Cursor, Extent
from .index import Index
from .runs import ID_BYTES, Int64s, Runs
from .transform import Inverse, Transform


@dataclass(frozen=True)
class IdMap:
    """`count` int64 from byte `at` of the file `path`: the id i becomes the i-th of them."""

    path: str
    at: int
    count: int

    def open(self) -> npt.NDArray[Any]:
        """The ids, int64 [count], in the file. Raises DamageError."""
        if self.count == 0:
            return np.empty(0, "<i8")
        if os.path.getsize(self.path) < self.at + self.count * ID_BYTES:
            raise DamageError(self.path, f"expected {self.count} ids, the file ends before", offset=self.at)
        return np.memmap(self.path, "<i8", "r", offset=self.at, shape=(self.count,))

    def apply(self, content: npt.NDArray[Any], ids: Int64s) -> Int64s:
        """`ids` looked up in what `open` gave. Raises DamageError."""
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self.count):
            raise DamageError(self.path, f"an id points outside of the {self.count} ids there", offset=self.at)
        return np.asarray(content[ids])


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in the file `path`, ready to be read in another process. `dimension` is that of the vectors that come out.

    `undo` are transforms, with their numbers in the file `index_path`, that are turned back.
    """

    path: str
    index_path: str
    runs: Runs
    encoding: str
    dimension: int
    id_maps: tuple[IdMap, ...] = ()
    undo: tuple[Transform, ...] = ()

    @property
    def total(self) -> int:
        return self.runs.total

    def slice(self, start: int, stop: int) -> Rows:
        return replace(self, runs=self.runs.slice(start, stop))

    def batches(self, max_bytes: int, start: int = 0) -> Iterator[tuple[Int64s, Array]]:
        """(ids int64 [n], vectors float32 [n, d] or uint8 [n, d/8]) from the `start`-th row on, `max_bytes` of vectors each.

        The arrays are overwritten by the next batch. Raises DamageError.
        """
        runs = self.runs.slice(start, self.total) if start else self.runs
        row = self.dimension // 8 if self.encoding == "bits" else self.dimension * 4
        fd = open_read(self.path)
        try:
            maps = [m.open() for m in self.id_maps]
            inverse = _inverse(self.index_path, os.stat(self.index_path).st_mtime_ns, self.undo) if self.undo else None
            for ids, raw in runs.batches(fd, self.path, max(1, max_bytes // row)):
                for m, content in zip(self.id_maps, maps, strict=True):
                    ids = m.apply(content, ids)
                vectors = decode(raw, self.encoding)
                yield ids, vectors if inverse is None else inverse.back(vectors)
        finally:
            os.close(fd)


def rows_of(index: Index, path: str, lists_path: str | None = None) -> Rows:
    """The rows of an index in the file `path`, as it stores them. `lists_path` is the file of its lists where it is another."""
    assert index.runs is not None
    maps = tuple(IdMap(path, m.at, m.count) for m in index.id_maps)
    return Rows(lists_path or path, path, index.runs, index.encoding, index.dimension, maps)


def decode(raw: npt.NDArray[np.uint8], encoding: str) -> Array:
    """uint8 [n, width] -> float32 [n, d], or unchanged when the vectors are binary. Every value is exact."""
    if encoding == "f4":
        return raw.view("<f4")
    if encoding == "bits":
        return raw
    if encoding == "f2":
        return raw.view("<f2").astype("<f4")
    if encoding == "bf16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    result = raw.astype("<f4")
    return result - np.float32(128) if encoding == "s1" else result


@lru_cache(maxsize=1)
def _inverse(path: str, changed: int, chain: tuple[Transform, ...]) -> Inverse:
    """Kept for the next piece of the same file, as `changed` tells."""
    fd = open_read(path)
    try:
        return Inverse(Cursor(fd, path, 0, os.fstat(fd).st_size), chain)
    finally:
        os.close(fd)


@dataclass(frozen=True, eq=False)
class Duplicates:
    """The equal vectors of a Dedup index that `table` names: `count` pairs of int64, an id in the lists and that of its equal.

    `rows` are those of the lists; the table lies in the file of the index. `missing` pairs have no first copy there. Read like
    `Rows`, at about 64 bytes a pair.
    """

    rows: Rows
    table: Extent
    missing: int = 0

    @property
    def total(self) -> int:
        return self.table.count - self.missing

    def batches(self, max_bytes: int, start: int = 0) -> Iterator[tuple[Int64s, Array]]:
        """See Rows.batches. Raises DamageError."""
        key = (self.rows.index_path, os.stat(self.rows.index_path).st_mtime_ns, self.table)
        with _LOOKED_UP.lock:
            if _LOOKED_UP.key != key:
                _LOOKED_UP.key, _LOOKED_UP.runs = key, _duplicate_runs(self.rows, self.table)
            runs = _LOOKED_UP.runs
        yield from replace(self.rows, runs=runs).batches(max_bytes, start)


class _LookedUp:
    """Where the pairs lie that were looked up last, for the next slice of the same ones."""

    lock = threading.Lock()
    key: object = None
    runs: Runs


_LOOKED_UP = _LookedUp()


def find_duplicates(rows: Rows, table: Extent) -> Duplicates:
    """Counts how many of the pairs have a first copy. Reads all ids of the lists once. Raises DamageError."""
    return Duplicates(rows, table, table.count - _duplicate_runs(rows, table).total)


def _duplicate_runs(rows: Rows, table: Extent) -> Runs:
    """Where the equal vectors lie, in the order of the file. The runs' ids are their own."""
    runs = rows.runs
    assert runs.ids_at is not None
    fd = open_read(rows.index_path)
    try:
        cursor = Cursor(fd, rows.index_path, table.at, table.at + table.count * 16)
        pairs = cursor.array(Extent(table.at, table.count * 2), "<i8", "the table of equal vectors", 2 * table.count)
    finally:
        os.close(fd)
    firsts, which = np.unique(pairs[0::2], return_inverse=True)
    place = np.full(len(firsts), -1, np.int64)
    ends = np.cumsum(runs.rows)
    only_ids = Runs(ID_BYTES, ID_BYTES, runs.ids_at, runs.rows, None, ends - runs.rows)
    fd = open_read(rows.path)
    try:
        for numbers, raw in only_ids.batches(fd, rows.path, 1 << 16):
            ids = raw.view("<i8")[:, 0]
            slot = np.minimum(np.searchsorted(firsts, ids), max(len(firsts) - 1, 0))
            hit = np.flatnonzero(firsts[slot] == ids) if len(firsts) else np.empty(0, np.int64)
            run = np.searchsorted(ends, numbers[hit], "right")
            place[slot[hit]] = runs.vectors_at[run] + (numbers[hit] - (ends - runs.rows)[run]) * runs.stride
    finally:
        os.close(fd)
    at, ids = place[which], pairs[1::2]
    found = at >= 0
    order = np.argsort(at[found], kind="stable")
    at, ids = at[found][order], ids[found][order]
    return Runs(runs.width, runs.stride, at, np.ones(len(at), np.int64), None, ids)
