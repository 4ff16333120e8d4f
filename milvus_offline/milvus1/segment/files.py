"""One segment folder: `.rv`, `.uid`, `deleted_docs` and `.ra` as they are read (FORMAT §4.1-4.3, §4.5).

All four share one shape: uint64 N, then N bytes of payload; bytes after the payload mean nothing. The row count is that of
`.uid`. `deleted_docs` holds row offsets, possibly unsorted, repeated (0.7-1.1.0) or followed by garbage (1.1.1).
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...fileio import Ranges
from ...model import BATCH_BYTES, NOWHERE, Array, Attribute, Batch, Places, Schema, buffer
from ...watch import watch
from ..layout import ATTRIBUTE_DTYPES, ID, LENGTH, OFFSET
from .dead import DeadRows
from .foreign import foreign_ids
from .zeros import Finder

_CHUNK = 1 << 18
"""Entries of `deleted_docs` looked at in one go."""
_IDS_AT_ONCE = 1 << 15
"""Ids that `Segment.columns` reads in one go, for several pieces of vectors."""


class Payload(NamedTuple):
    """The payload of one length-prefixed file. `declared` is what the header says, `present` what the file holds after it."""

    path: str
    declared: int
    present: int
    is_unreadable: bool = False
    """Whether the disk refused the header."""

    @property
    def bytes(self) -> int:
        return min(self.declared, self.present)

    @property
    def is_short(self) -> bool:
        return self.declared > self.present


def read_header(path: str | os.PathLike[str]) -> Payload:
    """Reads the length header of a `.rv`, `.uid`, `deleted_docs` or `.ra` file (§4.1).

    A file shorter than the header has an empty payload that is declared longer. Where the disk refuses the header, the file's
    size stands for it. Raises DamageError when the file cannot be opened.
    """
    try:
        head, size, lost = fileio.read_start(path, LENGTH.size)
    except OSError as e:
        raise DamageError(path, f"cannot be read: {e.strerror}") from e
    if len(head) < LENGTH.size:
        return Payload(str(path), LENGTH.size, 0)
    if lost:
        return Payload(str(path), size - LENGTH.size, size - LENGTH.size, True)
    return Payload(str(path), LENGTH.unpack(head)[0], size - LENGTH.size)


@dataclass(eq=False, slots=True)  # not frozen: that would take ten times as long, and a store may have 100,000
class Segment:
    """The readable rows of one segment folder; a piece of its partition.

    `stored` rows are on disk, `deleted` of them are not live. `wal_deleted` are offsets that unflushed deletes in the
    write-ahead log hit (int64, sorted), on top of `deleted_docs`.
    """

    id: str
    state: str
    """The raw file's type, as Milvus names it (`RAW`, `TO_INDEX`, `BACKUP`), or `INDEX` when only the index file is left."""
    schema: Schema
    raw_path: str
    ids_path: str
    deleted_path: str | None
    stored: int
    deleted: int
    bytes: int
    """Bytes of vectors and ids on disk, deleted rows included."""
    attribute_paths: tuple[tuple[str, str, str], ...] = ()
    """(name, numpy dtype, path) of each `.ra` file."""
    wal_deleted: npt.NDArray[np.int64] | None = None
    deletes: npt.NDArray[np.int64] | None = None
    """Deleted offsets (sorted) in place of those in `deleted_docs`, where that file lost what it held."""
    absent: npt.NDArray[np.int64] | None = None
    """Offsets whose vectors are lost (only in a restored segment)."""
    lost_live: int = 0
    """How many of them are not deleted."""

    @property
    def where(self) -> str:
        """How findings name it."""
        return f"{self.schema.name}/{self.id}"

    @property
    def rows(self) -> int:
        """Live rows."""
        return self.stored - self.deleted - self.lost_live

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that its rows are read from."""
        attributes = (path for _, _, path in self.attribute_paths)
        return (self.raw_path, self.ids_path, *((self.deleted_path,) if self.deleted_path else ()), *attributes)

    @property
    def vectors(self) -> Array:
        """All stored vectors, deleted ones too: a read-only memory map, float32 [stored, d] or uint8 [stored, d/8] (§4.1)."""
        return _map(self.raw_path, self.schema.dtype, (self.stored, self.schema.width))

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The ids of all stored rows: a read-only memory map, int64 [stored] (§4.2)."""
        return _map(self.ids_path, ID, (self.stored,))

    def id_at(self, row: int) -> npt.NDArray[np.int64]:
        """The id of one stored row, int64 [1]. Raises OSError, DamageError."""
        return fileio.read_array(self.ids_path, ID, 1, LENGTH.size + row * ID.itemsize)

    def ids_in_chunks(self, max_rows: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """(row of the first one, ids) of all stored rows, a piece at a time: views of a buffer that is used again.

        Read as `batches` reads; ids in unreadable places are 0 here. Raises DamageError.
        """
        ids = buffer((min(max_rows, self.stored),), ID)
        with _ArrayReader(ArrayInFile(self.ids_path, ID, 1), self.where) as reader:
            for first in range(0, self.stored, max_rows):
                part = ids[: min(max_rows, self.stored - first)]
                if len(reader.read(part, first)):
                    reader.tell(np.empty(0, np.int64))
                yield first, part

    def readable_ids(self, max_rows: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(offsets, ids) of the stored rows whose ids can be read, a piece at a time: views of a buffer that is used again.

        While nobody watches, an unreadable place is a DamageError."""
        first = 0
        columns = [ArrayInFile(self.ids_path, ID, 1)]
        for (ids,), lost in read_columns(columns, self.stored, 0, max_rows * ID.itemsize, None, self.where):
            span = len(ids) + len(lost)
            offsets = np.arange(first, first + span)
            yield np.delete(offsets, lost) if len(lost) else offsets, ids[:, 0]
            first += span

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which of the stored rows are live: bool [stored] (§4.3)."""
        return ~self._dead().window(0, self.stored)

    def dead_rows(self) -> DeadRows | None:
        """The rows that are not live; None when all are."""
        return self._dead() if self.rows < self.stored else None

    def is_dead(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the rows at these offsets are deleted or lost: bool [n]."""
        return self._dead().contains(offsets)

    def _dead(self) -> DeadRows:
        dead = DeadRows(self.stored)
        for offsets in read_deleted(self.deleted_path) if self.deletes is None else (self.deletes,):
            dead.add(offsets)
        if self.wal_deleted is not None:
            dead.add(self.wal_deleted)
        if self.absent is not None:
            dead.add(self.absent)
        return dead

    def with_wal_deletes(self, offsets: npt.NDArray[np.int64]) -> Segment:
        """The same segment after deletes that the log holds; `offsets` int64, any order."""
        return replace(self, wal_deleted=np.unique(offsets)).recounted()

    def recounted(self) -> Segment:
        """The same segment with `deleted` and `lost_live` counted anew."""
        gone = len(self._dead())
        deleted = gone if self.absent is None else len(replace(self, absent=None)._dead())
        return replace(self, deleted=deleted, lost_live=gone - deleted)

    @property
    def undeleted(self) -> Segment:
        """The same segment with all stored rows live, but for those whose vectors are lost."""
        lost = 0 if self.absent is None else len(self.absent)
        return replace(self, deleted_path=None, deletes=None, wal_deleted=None, deleted=0, lost_live=lost)

    @property
    def deleted_rows(self) -> int:
        """Deleted rows that can be read."""
        return self.deleted if self.absent is None else self.deleted - (len(self.absent) - self.lost_live)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Live rows in file order; see model.Piece. Reads into buffers that every batch reuses."""
        dead = self.dead_rows()
        if not start:
            self._note_foreign(dead)
        return self._read(dead, max_bytes, start)

    @property
    def has_columns(self) -> bool:
        """Whether `columns` gives its rows: they lie in `.rv` and `.uid`, and have no attributes."""
        return type(self) is Segment and not self.schema.attributes

    def columns(self, start: int, rows: int, max_bytes: int = BATCH_BYTES) -> Iterator[tuple[int, memoryview, int]]:
        """The bytes of `rows` live rows from the `start`-th on, each column for itself, of a segment that `has_columns`.

        Gives (0, bytes of vectors), at most `max_bytes` or a row of them, and after some of these (1, those of the same rows'
        ids): views of buffers that are used again. With them comes how many of the rows are left out, for they cannot be read
        (`Batch.lost`). Costs less than `batches`, where each piece of vectors has its ids. Raises DamageError.
        """
        dead = self.dead_rows()
        if not start:
            self._note_foreign(dead)
        first = start if dead is None else dead.row_of_live(start)
        after = first if dead is None else first - dead.right_before(first)
        span = first, min(self.stored, start + rows if dead is None else dead.row_of_live(start + rows - 1) + 1)
        width, rest = self.schema.row_bytes, self.stored - first
        step = max(1, min(max_bytes // width, rest))
        many = min(rest, max(step, _IDS_AT_ONCE - _IDS_AT_ONCE % step))
        vectors, ids = buffer((step, width), np.uint8), buffer((many,), ID)
        compacted: Array | None = None
        with (
            _ArrayReader(
                ArrayInFile(self.raw_path, self.schema.dtype, self.schema.width), self.where, after, span
            ) as read_vectors,
            _ArrayReader(ArrayInFile(self.ids_path, ID, 1), self.where, after, span) as read_ids,
        ):
            while rows and first < self.stored:
                count = min(many, self.stored - first, rows if dead is None else many)
                alive = None if dead is None else np.flatnonzero(~dead.window(first, first + count))[:rows]
                if alive is not None and len(alive) == rows:
                    count = int(alive[-1]) + 1
                bounds = [*range(0, count, step), count]
                live = bounds if alive is None else np.searchsorted(alive, bounds).tolist()  # how many before each of them
                rows -= live[-1]
                lost = NOWHERE
                if live[-1] and len(unread := read_ids.read(ids[:count], first)):
                    alive = np.arange(count) if alive is None else alive
                    lost = np.intersect1d(alive, unread)
                    read_ids.tell(lost + first)
                for low, high, a, b in zip(bounds, bounds[1:], live, live[1:], strict=False):
                    if a == b:
                        continue
                    part, left_out = vectors[: high - low], 0
                    if len(unread := read_vectors.read(part, first + low)):
                        alive = np.arange(count) if alive is None else alive
                        unread = np.intersect1d(alive[a:b], unread + low)
                        read_vectors.tell(unread + first)
                        lost = np.union1d(lost, unread)
                    if alive is not None and (b - a < len(part) or len(lost)):
                        kept = np.setdiff1d(alive[a:b], lost) if len(lost) else alive[a:b]
                        left_out = b - a - len(kept)
                        compacted = buffer(vectors.shape, np.uint8) if compacted is None else compacted
                        part = np.take(part, kept - low, axis=0, out=compacted[: len(kept)], mode="clip")
                    yield 0, part.reshape(-1).data, left_out
                if live[-1]:
                    part = ids[:count]
                    if alive is not None:
                        part = part[np.setdiff1d(alive, lost) if len(lost) else alive]
                    yield 1, part.view(np.uint8).data, len(lost)
                first += count

    def _note_foreign(self, dead: DeadRows | None) -> None:
        if type(self) is Segment and (seen := watch()) is not None:
            seen.note_foreign(self.where, self.ids_path, foreign_ids(self, dead))

    def deleted_batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """The same of deleted rows."""
        left_out = replace(self, absent=None)._dead().others()
        if self.absent is not None:
            left_out.add(self.absent)
        return self._read(left_out, max_bytes, start)

    def _read(self, dead: DeadRows | None, max_bytes: int, start: int) -> Iterator[Batch]:
        """The rows but for the `dead` ones."""
        columns = [ArrayInFile(self.ids_path, ID, 1), ArrayInFile(self.raw_path, self.schema.dtype, self.schema.width)]
        columns += [ArrayInFile(path, np.dtype(dtype), 1) for _, dtype, path in self.attribute_paths]
        first = start if dead is None else dead.row_of_live(start)
        names = [name for name, _, _ in self.attribute_paths]
        for (ids, vectors, *attributes), lost in read_columns(columns, self.stored, first, max_bytes, dead, self.where):
            yield Batch(ids[:, 0], vectors, {n: a[:, 0] for n, a in zip(names, attributes, strict=True)}, lost)


class ArrayInFile(NamedTuple):
    """One fixed-width array in a file, after its length header."""

    path: str
    dtype: np.dtype[Any]
    width: int

    @property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


def read_columns(
    columns: Sequence[ArrayInFile], stored: int, first: int, max_bytes: int, dead: DeadRows | None, where: str = ""
) -> Iterator[tuple[list[Array], Places]]:
    """Walks several files of equal row count together in windows of at most `max_bytes` of the widest one.

    Each window's live rows are given as one array [k, width] per column, views of buffers that are used again. While somebody
    watches (`watch.py`), live rows that lie in unreadable places are left out: their places among the window's live rows come
    along, and the watch is told (of `where`). Otherwise they raise DamageError.
    """
    step = max(1, max_bytes // max(c.row_bytes for c in columns))
    step = min(step - step % 8 if step >= 8 else step, max(1, stored - first))
    buffers = [buffer((step, c.width), c.dtype) for c in columns]
    compacted: list[Array] = []
    with contextlib.ExitStack() as stack:
        after = first - dead.right_before(first) if dead is not None else first
        readers = [stack.enter_context(_ArrayReader(c, where, after)) for c in columns]
        while first < stored:
            count = min(step, stored - first)
            alive = None
            if dead is not None:
                gone = dead.window(first, first + count)
                if gone.any():
                    alive = np.flatnonzero(~gone)
            if alive is None or len(alive):
                lost = [reader.read(whole[:count], first) for reader, whole in zip(readers, buffers, strict=True)]
                places = NOWHERE
                if any(map(len, lost)):
                    alive = np.arange(count) if alive is None else alive
                    is_lost = np.isin(alive, np.concatenate(lost))
                    for reader, rows in zip(readers, lost, strict=True):
                        reader.tell(alive[np.isin(alive, rows)] + first)
                    places, alive = np.flatnonzero(is_lost), alive[~is_lost]
                if alive is None:
                    yield [b[:count] for b in buffers], places
                else:
                    compacted = compacted or [buffer(b.shape, b.dtype) for b in buffers]
                    for whole, dense in zip(buffers, compacted, strict=True):
                        np.take(whole, alive, axis=0, out=dense[: len(alive)], mode="clip")
                    yield [d[: len(alive)] for d in compacted], places
            first += count


class _ArrayReader:
    """Reads rows of one column from front to back, around unreadable places while somebody watches.

    `after`: the rows from there up to the first one that is read are skipped, as are those between two reads. `span`: the rows
    that will be read, if that is known.
    """

    def __init__(self, column: ArrayInFile, where: str, after: int = 0, span: tuple[int, int] | None = None) -> None:
        self._column, self._where, self._next = column, where, after
        self._span = span and (LENGTH.size + span[0] * column.row_bytes, LENGTH.size + span[1] * column.row_bytes)
        self._watch = watch()
        self._finder: Finder | None = None
        self._read_last: tuple[Array, int, int] | None = None
        """Bytes that the finder has not seen yet: it looks when their reader is done with them, which has them in the cache."""
        self._places: Ranges = []

    def __enter__(self) -> _ArrayReader:
        column = self._column
        self._fd = fileio.open_read(column.path, self._span)
        if self._watch is not None:
            value_bytes = 4 if column.width > 1 else column.dtype.itemsize
            self._finder = Finder(self._watch, self._where, column.path, column.row_bytes, value_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._finder is not None:
            self._look()
            self._finder.close()
        os.close(self._fd)

    def _look(self) -> None:
        if self._finder is not None and self._read_last is not None:
            self._finder.look(*self._read_last)
        self._read_last = None

    def read(self, rows: Array, first: int) -> Places:
        """Fills `rows`, those from the row `first` on; which of them lie in places that cannot be read."""
        column = self._column
        skipped, self._next = first - self._next, first + len(rows)
        octets = rows.reshape(-1).view(np.uint8)
        at = LENGTH.size + first * column.row_bytes
        if self._finder is None:
            fileio.read_into(self._fd, octets.data, at, column.path)
            return NOWHERE
        self._look()
        self._places = fileio.read_around(self._fd, octets.data, at, column.path)
        if not self._places:
            self._read_last = octets, at, skipped * column.row_bytes + (LENGTH.size if skipped == first else 0)
            return NOWHERE
        return rows_in(self._places, at, column.row_bytes)

    def tell(self, lost: npt.NDArray[np.int64]) -> None:
        """Tells the watch of the places met by the last `read`, and which live rows are left out for them."""
        if self._places and self._watch is not None:
            self._watch.note_unreadable(self._where, self._column.path, self._places, runs_of(lost))


def rows_in(places: Ranges, start: int, row_bytes: int) -> Places:
    """The rows, counted from the one that begins at byte `start` on, that lie in these places in whole or in part; sorted."""
    parts = [np.arange((a - start) // row_bytes, (b - 1 - start) // row_bytes + 1) for a, b in places]
    return np.unique(np.concatenate(parts))


def runs_of(rows: npt.NDArray[np.int64]) -> Ranges:
    """Sorted numbers as runs of adjacent ones."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks) if len(part)]


def read_deleted(path: str | None) -> Iterator[npt.NDArray[np.int32]]:
    """The entries of a `deleted_docs` file in chunks, int32, as they stand there; nothing when there is no file (§4.3).

    Raises DamageError.
    """
    if path is not None:
        entries = read_header(path).bytes // OFFSET.itemsize
        for (chunk,), _ in read_columns([ArrayInFile(path, OFFSET, 1)], entries, 0, _CHUNK * OFFSET.itemsize, None):
            yield chunk[:, 0]


def _map(path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if 0 in shape:
        return np.empty(shape, dtype)
    if fileio.is_remote(path):
        return fileio.read_array(path, dtype, math.prod(shape), LENGTH.size).reshape(shape)
    return np.memmap(path, dtype, "r", LENGTH.size, shape)


def attribute_schema(fields: Iterable[tuple[str, int]]) -> tuple[Attribute, ...]:
    """The stored attributes of a hybrid collection from (name, field_type) pairs of `Fields` (§4.5)."""
    return tuple(Attribute(n, ATTRIBUTE_DTYPES[t].str) for n, t in fields if t in ATTRIBUTE_DTYPES)
