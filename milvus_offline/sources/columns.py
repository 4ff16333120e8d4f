"""Rows out of columns of files: where a column lies, how its numbers become those of Milvus, and pieces made of columns.

A column gives rows as they are stored, `(n, items)` of its dtype. A piece turns them into vectors (float32 or bits) and ids
(int64): bytes that are so already are read straight into the batch, all others are converted block by block.
"""

from __future__ import annotations

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import DamageError, UsageError
from ..fileio import open_read, read_around, read_into
from ..milvus1.segment.files import rows_in, runs_of
from ..model import BATCH_BYTES, NOWHERE, Array, Batch, Places, VectorType, buffer
from ..watch import watch, watching

Read = Callable[[int, Array], Places]
"""read(row, out): fills `out` (n, items) with rows row..row+n-1 as they are stored. Gives the places in `out`, sorted, of rows
that cannot be read; there are none but while somebody watches, who has been told of them then (`watch.py`)."""

PIECE_BYTES = 256 << 20
_EXACT_IN = {2: 1 << 11, 4: 1 << 24, 8: 1 << 53}
"""Up to here every whole number is a float of so many bytes, and no other one was rounded to it."""
_BLOCK_BYTES = 16 << 20
"""Of an array that is stored column by column, in memory at once."""
_CHECKED_ROWS = 1 << 18


class Column(Protocol):
    """A column of a file. Picklable."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str:
        """numpy dtype string of what `open` reads."""

    @property
    def items(self) -> int:
        """Elements per row."""

    def open(self) -> AbstractContextManager[Read]: ...


@dataclass(frozen=True)
class InFile:
    """A column of one file; `name`, `dtype` and `items` as `Column` has them."""

    name: str
    dtype: str
    items: int
    path: str


@dataclass(frozen=True)
class FileColumn:
    """Rows that lie one after the other in a file, or in parts of several (`extents`: path, offset, bytes)."""

    name: str
    dtype: str
    items: int
    extents: tuple[tuple[str, int, int], ...]

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        starts = [0]
        for _, _, length in self.extents:
            starts.append(starts[-1] + length)
        fds: dict[str, int] = {}
        lock = threading.Lock()

        def read(row: int, out: Array) -> Places:
            raw = out.reshape(-1).view(np.uint8).data
            row_bytes = self.items * out.dtype.itemsize
            at = begin = row * row_bytes
            seen, lost = watch(), [NOWHERE]
            while len(raw):
                n = bisect_right(starts, at) - 1
                if n >= len(self.extents):
                    raise DamageError(self.extents[-1][0] if self.extents else "file", f"{self.name}: ends before row {row}")
                path, offset, length = self.extents[n]
                part = raw[: length - (at - starts[n])]
                with lock:
                    fd = fds[path] if path in fds else fds.setdefault(path, open_read(path))
                if seen is None:
                    read_into(fd, part, offset + at - starts[n], path)
                elif places := read_around(fd, part, offset + at - starts[n], path):
                    start = offset + begin - starts[n]
                    lost.append(rows_in(places, start, row_bytes))
                    seen.note_unreadable(path, path, places, runs_of(lost[-1] + row))
                at, raw = at + len(part), raw[len(part) :]
            return np.unique(np.concatenate(lost)) if len(lost) > 1 else NOWHERE

        try:
            yield read
        finally:
            for fd in fds.values():
                os.close(fd)


@dataclass(frozen=True)
class StripedColumn(InFile):
    """An array that is stored column by column (Fortran's order): `items` columns of `rows` values each, from byte `at` on.

    Blocks of rows are put together in memory: a stripe out of each column.
    """

    at: int
    rows: int

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        kind = np.dtype(self.dtype)
        step = max(1, _BLOCK_BYTES // (self.items * kind.itemsize))
        block, first, last = np.empty((0, self.items), kind), 0, 0
        fd = open_read(self.path)

        def load(row: int) -> None:
            nonlocal block, first, last
            n = min(step, self.rows - row)
            if n <= 0:
                raise DamageError(self.path, f"{self.name}: ends before row {row}")
            stripes = np.empty((self.items, n), kind)
            for column in range(self.items):
                offset = self.at + (column * self.rows + row) * kind.itemsize
                read_into(fd, stripes[column].view(np.uint8).data, offset, self.path)
            block, first, last = np.ascontiguousarray(stripes.T), row, row + n

        def read(row: int, out: Array) -> Places:
            done = 0
            while done < len(out):
                if not first <= row + done < last:
                    load(row + done)
                n = min(len(out) - done, last - row - done)
                out[done : done + n] = block[row + done - first :][:n]
                done += n
            return NOWHERE

        try:
            yield read
        finally:
            os.close(fd)


# Numbers --------------------------------------------------------------------------------------------------------------


class NotIds(Exception):
    """Numbers or texts that cannot be ids; the text says of what kind they are."""


def ids_of(found: Array, name: str, first: int) -> Array:
    """`found` (n, 1) as int64 (n). Raises NotIds for what is no whole number of 64 bits, exactly."""
    flat = found.reshape(-1)
    kind = flat.dtype.kind
    if kind in "iu":
        if kind == "u" and len(flat) and int(flat.max()) > np.iinfo(np.int64).max:
            raise NotIds(f"{name}: an id is over 2**63 - 1, near row {first}")
        return flat.astype(np.int64, copy=False)
    if kind == "f":
        limit = _EXACT_IN.get(flat.dtype.itemsize, 1 << 53)
        bad = ~(np.abs(flat) <= limit)  # NaN as well
        bad |= np.where(bad, 0, flat) != np.rint(np.where(bad, 0, flat))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise NotIds(f"{name}: {flat[at]} at row {first + at}, stored as {flat.dtype}, is no whole number up to {limit}")
        return flat.astype(np.int64)
    if kind == "O":
        flat = np.array([x.encode() if isinstance(x, str) else bytes(x) for x in flat], "S")
    if flat.dtype.kind in "SUO":
        return _digits(flat, name, first)
    raise NotIds(f"{name}: {flat.dtype} are no ids")


def _digits(texts: Array, name: str, first: int) -> Array:
    """Texts of digits as numbers. `007` is none: it and `7` would become one id."""
    stripped = np.char.strip(texts)
    try:
        numbers = stripped.astype(np.int64)
        bad = numbers.astype(stripped.dtype.kind + "21") != stripped
    except (ValueError, OverflowError):
        bad = np.array([not _is_number(x) for x in stripped])
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        value = stripped[at]
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        raise NotIds(f"{name}: texts such as {text[:60]!r} (row {first + at}) are no whole numbers of 64 bits")
    return numbers


def _is_number(text: Any) -> bool:
    try:
        return (
            str(int(text)) == (text.decode("ascii", "replace") if isinstance(text, bytes) else text)
            and -(2**63) <= int(text) < 2**63
        )
    except ValueError:
        return False


def check_ids(column: Column, rows: int) -> None:
    """Reads ids that are not stored as integers once, before anything is written. Raises NotIds."""
    dtype = np.dtype(column.dtype)
    if dtype.kind == "i" or (dtype.kind == "u" and dtype.itemsize < 8):
        return
    with column.open() as read, watching():  # what cannot be read is told by who reads it to the end
        for first in range(0, rows, _CHECKED_ROWS):
            out = np.empty((min(_CHECKED_ROWS, rows - first), column.items), column.dtype)
            ids_of(without(out, read(first, out)), column.name, first)


def without(found: Array, lost: Places) -> Array:
    """The rows of `found` but for those at the places `lost`."""
    return np.delete(found, lost, axis=0) if len(lost) else found


def converts(dtype: np.dtype[Any]) -> str | None:
    """What is to be said of numbers that become float32; None where nothing is."""
    if dtype.newbyteorder("=") == np.dtype("f4"):
        return None
    if dtype.kind == "f":
        return f"{dtype} becomes float32" + ("" if dtype.itemsize < 4 else ", which rounds")
    return f"{dtype} becomes float32" + ("" if dtype.itemsize < 3 else ", which rounds numbers beyond 16,777,216")


def to_vectors(found: Array, out: Array, name: str, first: int, beyond: str) -> None:
    """Rows as stored into `out`: bools become bits (the first the highest), short strings of bytes get their zeros back."""
    if found.dtype.kind == "b" and out.dtype == np.uint8:
        out[...] = np.packbits(found, axis=1)
        return
    if found.shape[1] < out.shape[1]:
        out[:, found.shape[1] :] = 0
        out = out[:, : found.shape[1]]
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = found
    if found.dtype.kind == "f" and found.dtype.itemsize > 4 and beyond == "error" and not np.isfinite(out).all():
        bad = (np.isfinite(found) & ~np.isfinite(out)).any(axis=1)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise UsageError(
                f"{name}: row {first + at} holds {np.abs(found[at]).max():g}, which float32 cannot: the largest is 3.4e38. "
                "Correct the row, or take such numbers as infinity with --beyond-float32 inf"
            )


# Pieces ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColumnsPiece:
    """Rows first..first+rows-1 of some columns. Without an ids column the ids are `first_id` + row number."""

    id: str
    path: str
    first: int
    rows: int
    width: int
    vector_type: VectorType
    vectors: Column
    ids: Column | None
    first_id: int = 0
    attributes: tuple[tuple[str, Column], ...] = ()
    """(field, column) of a hybrid collection's attributes."""
    beyond: str = "error"

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        dtype = self.vector_type.dtype
        column = self.vectors
        stored = np.dtype(column.dtype)
        direct = stored == dtype and column.items == self.width
        row_bytes = max(1, self.width * dtype.itemsize, 0 if direct else column.items * stored.itemsize)
        step = max(1, min(max_bytes // row_bytes, self.rows - start))
        vectors = buffer((step, self.width), dtype)
        raw = vectors if direct else np.empty((step, column.items), stored)
        ids = np.empty(step, np.int64)
        values = {field: np.empty(step, c.dtype) for field, c in self.attributes}
        with contextlib.ExitStack() as stack:
            read_vectors = stack.enter_context(column.open())
            read_ids = stack.enter_context(self.ids.open()) if self.ids else None
            others = [(field, stack.enter_context(c.open())) for field, c in self.attributes]
            for at in range(start, self.rows, step):
                n = min(step, self.rows - at)
                row = self.first + at
                lost = [read_vectors(row, raw[:n])]
                if not direct:
                    to_vectors(raw[:n], vectors[:n], f"{self.path}: {column.name}", row, self.beyond)
                lost.append(self._ids(read_ids, row, ids[:n]))
                for field, read in others:
                    lost.append(read(row, values[field][:n].reshape(n, 1)))
                places = np.unique(np.concatenate(lost)) if any(map(len, lost)) else NOWHERE
                arrays = {field: without(v[:n], places) for field, v in values.items()}
                yield Batch(without(ids[:n], places), without(vectors[:n], places), arrays, places)

    def _ids(self, read: Read | None, row: int, out: Array) -> Places:
        if self.ids is None or read is None:
            out[...] = np.arange(self.first_id + row, self.first_id + row + len(out))
            return NOWHERE
        if np.dtype(self.ids.dtype) == np.int64:
            return read(row, out.reshape(-1, 1))
        found = np.empty((len(out), 1), self.ids.dtype)
        lost = read(row, found)
        try:
            good = np.delete(np.arange(len(out)), lost) if len(lost) else slice(None)
            out[good] = ids_of(without(found, lost), self.ids.name, row)
        except NotIds as e:
            raise DamageError(self.path, str(e)) from None
        return lost


def cut(ranges: Sequence[tuple[int, int]], row_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of pieces of at most PIECE_BYTES that cover `ranges` of rows."""
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    for first, last in ranges:
        for at in range(first, last, step):
            yield at, min(step, last - at)
