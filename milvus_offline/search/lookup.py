"""Rows by their id: in segments by bloom filter and `.uid` without reading vectors (FORMAT §4.2, §4.4), elsewhere by reading.

A filter that says no is believed where it is whole and counts as many ids as the segment has live rows; it may still miss an id
in two cases that no server noticed either (a counter that overflowed, a damaged byte), so `thorough` looks into the ids of all
segments for ids that were found nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..fileio import as_path
from ..milvus1.layout import BLOOM_FILTER
from ..milvus1.segment.bloom import FilterFile
from ..milvus1.segment.files import Segment
from ..model import Array, Piece, Schema, Vectors
from ..watch import watch
from .blocks import BATCH_BYTES, Files, Named, Opened, has_files, populate

Ids = npt.NDArray[np.int64]

_CHUNK = 1 << 16
"""Ids looked at in one go."""
_ROWS_PER_QUESTION = 1500
"""Ids of rows that are compared in the time that a filter takes to be asked about one."""
_SLOTS_LOG = 16
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Found:
    """Rows, in the order of the ids asked for and, of one id, in that of an export.

    `ids` int64 [n]; `vectors` float32 [n, d] or uint8 [n, d/8]; `partitions` and `pieces`: the names of where each row comes
    from; `asked` int64 [n]: the position of its id among those asked for. An id has as many rows as the collection holds of
    it, also none.
    """

    ids: Ids
    vectors: Vectors
    partitions: tuple[str, ...]
    pieces: tuple[str, ...]
    asked: Ids

    def __len__(self) -> int:
        return len(self.ids)


class Wanted:
    """Some ids, in a form that long arrays are quickly compared with."""

    def __init__(self, ids: Ids) -> None:
        self.sorted = np.unique(ids)
        self._slots = np.zeros(1 << _SLOTS_LOG, np.bool_)
        self._slots[self._slot(self.sorted)] = True

    @staticmethod
    def _slot(ids: Ids) -> npt.NDArray[np.uint64]:
        return (ids.view(np.uint64) * _SPREAD) >> np.uint64(64 - _SLOTS_LOG)

    def positions(self, ids: Ids) -> Ids:
        """Where in `ids` (int64 [n]) one of the wanted ones stands."""
        if not len(self.sorted):
            return np.empty(0, np.int64)
        maybe = np.flatnonzero(self._slots[self._slot(ids)])
        at = np.minimum(np.searchsorted(self.sorted, ids[maybe]), len(self.sorted) - 1)
        result: Ids = maybe[self.sorted[at] == ids[maybe]]
        return result


class Filters:
    """The bloom filters of the segments of a store, opened when they are asked for."""

    def __init__(self) -> None:
        self._files: dict[str, FilterFile | None] = {}

    def possible(self, segment: Segment, ids: Ids) -> Ids:
        """Those of `ids` that the segment may hold."""
        path = str(as_path(segment.raw_path).parent / BLOOM_FILTER)
        if path not in self._files:
            self._files[path] = _usable(path, segment)
        found = self._files[path]
        if found is None:
            return ids
        try:
            return ids[found.contains(ids)]
        except (DamageError, OSError):
            self._files[path] = None
            return ids


def _usable(path: str, segment: Segment) -> FilterFile | None:
    try:
        found = FilterFile(path)
    except (DamageError, OSError):
        return None
    return found if found.count >= segment.stored - segment.deleted else None


def find_rows(  # many: a query, and what its caller lends: filters, open files
    schema: Schema,
    partitions: Sequence[Named],
    ids: npt.ArrayLike,
    *,
    thorough: bool = True,
    first_only: bool = False,
    opened: Opened | None = None,
    filters: Filters | None = None,
) -> Found:
    """All live rows of `partitions` that have one of `ids`; only the first of each with `first_only`.

    `opened` and `filters` keep files for the next call. Raises DamageError for rows that cannot be read; within `watching()`
    they are left out and noted.
    """
    asked = np.ascontiguousarray(ids, np.int64).reshape(-1)
    opened, filters = opened or Opened(), filters or Filters()
    finder = _Finder(schema, opened, filters, first_only)
    finder.look(partitions, asked, by_filter=True)
    if thorough and len(finder.missing):
        finder.look(partitions, finder.missing, by_filter=False)
    return finder.found(asked)


@dataclass(frozen=True)
class _Part:
    """What one piece held: ids and vectors of the same length."""

    ids: Ids
    vectors: Array
    partition: str
    piece: str
    order: int


class _Finder:
    def __init__(self, schema: Schema, opened: Opened, filters: Filters, first_only: bool) -> None:
        self._schema, self._opened, self._filters, self._first_only = schema, opened, filters, first_only
        self._parts: list[_Part] = []
        self.missing: Ids = np.empty(0, np.int64)

    def look(self, partitions: Sequence[Named], ids: Ids, *, by_filter: bool) -> None:
        """Takes the rows with these ids out of all pieces; `missing` are then the ids that none has."""
        left = np.unique(ids)
        seen: list[Ids] = []
        order = 0
        for partition in partitions:
            for piece in partition.pieces:
                order += 1
                if not len(left):
                    break
                rows = self._rows_of(piece, left, by_filter)
                if rows is None:
                    continue
                self._parts.append(_Part(*rows, partition.name, piece.id, order))
                seen.append(rows[0])
                if self._first_only:
                    left = np.setdiff1d(left, rows[0])
        self.missing = np.setdiff1d(ids, np.concatenate(seen)) if seen else np.unique(ids)

    def _rows_of(self, piece: Piece, ids: Ids, by_filter: bool) -> tuple[Ids, Array] | None:
        if not has_files(piece) or watch() is not None:
            return _read(piece, Wanted(ids)) if by_filter else None
        if by_filter and len(ids) * _ROWS_PER_QUESTION < piece.stored:
            ids = self._filters.possible(piece, ids)
        if not len(ids):
            return None
        files = self._opened.files(piece)
        offsets = _offsets(files, Wanted(ids))
        if not len(offsets):
            return None
        return np.asarray(files.ids[offsets]), files.at(offsets)

    def found(self, asked: Ids) -> Found:
        """All that was found, in the order of `asked`."""
        width = self._schema.width
        ids = np.concatenate([p.ids for p in self._parts]) if self._parts else np.empty(0, np.int64)
        vectors = np.concatenate([p.vectors for p in self._parts]) if self._parts else np.empty((0, width), self._schema.dtype)
        part = np.repeat(np.arange(len(self._parts)), [len(p.ids) for p in self._parts]).astype(np.int64)
        order = np.lexsort((np.arange(len(ids)), np.array([p.order for p in self._parts], np.int64)[part], ids))
        first = np.searchsorted(ids[order], asked, "left")
        last = first + 1 if self._first_only else np.searchsorted(ids[order], asked, "right")
        last = np.where(np.searchsorted(ids[order], asked, "right") > first, last, first)
        counts = last - first
        position = np.repeat(np.arange(len(asked)), counts)
        within = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = order[np.repeat(first, counts) + within]
        names = [self._parts[i] for i in part[rows].tolist()]
        return Found(
            ids[rows],
            vectors[rows],
            tuple(p.partition for p in names),
            tuple(p.piece for p in names),
            position.astype(np.int64),
        )


def _offsets(files: Files, wanted: Wanted) -> Ids:
    """Offsets of the segment's live rows with a wanted id."""
    ids, dead = files.ids, files.dead
    populate(ids, files.segment.ids_path)
    found = []
    for at in range(0, len(ids), _CHUNK):
        found.append(wanted.positions(ids[at : at + _CHUNK]) + at)
    offsets = np.concatenate(found) if found else np.empty(0, np.int64)
    return offsets[~dead.contains(offsets)] if dead is not None and len(offsets) else offsets


def _read(piece: Piece, wanted: Wanted) -> tuple[Ids, Array] | None:
    """The same of a piece that has to be read."""
    ids, vectors = [], []
    for batch in piece.batches(BATCH_BYTES):
        at = wanted.positions(np.ascontiguousarray(batch.ids))
        if len(at):
            ids.append(batch.ids[at])
            vectors.append(batch.vectors[at])
    return (np.concatenate(ids), np.concatenate(vectors)) if ids else None
