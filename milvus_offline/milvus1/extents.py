"""Where in the store's own files the live rows lie: runs of bytes that another file can point to instead of holding a copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..fileio import is_remote
from ..model import Piece
from .layout import ID, LENGTH
from .segment.dead import DeadRows
from .segment.files import Segment, read_header

if TYPE_CHECKING:
    from .wal.rows import LogRows

_WINDOW = 1 << 20
"""Rows looked at in one go."""


class Extent(NamedTuple):
    """Rows whose vectors lie one after the other in one file, and their ids too."""

    rows: int
    vectors_path: str
    vectors_at: int
    ids_path: str
    ids_at: int


def extents_of(pieces: Iterable[Piece], most: int) -> list[Extent] | None:
    """The extents of all rows in their order; None where there are more than `most`, or rows that lie nowhere as they are:
    restored vectors, attributes, files in a bucket. Raises DamageError, OSError."""
    found: list[Extent] = []
    for piece in pieces:
        if type(piece) is Segment:
            extents = _of_segment(piece)
        else:
            from .wal.rows import LogRows

            if not isinstance(piece, LogRows):
                return None
            extents = _of_log(piece)
        if piece.schema.attributes:
            return None
        for extent in extents:
            if is_remote(extent.vectors_path) or len(found) == most:
                return None
            found.append(extent)
    return found


def _of_segment(segment: Segment) -> Iterator[Extent]:
    width = segment.schema.row_bytes
    for first, last in _runs(segment.dead_rows(), 0, segment.stored):
        at = LENGTH.size + first * width, LENGTH.size + first * ID.itemsize
        yield Extent(last - first, segment.raw_path, at[0], segment.ids_path, at[1])


def _of_log(rows: LogRows) -> Iterator[Extent]:
    width = rows.schema.row_bytes
    dead = None
    if len(rows.dead):
        dead = DeadRows(rows.inserted)
        dead.add(rows.dead)
    number = 0
    for path, ids_at, data_at, count in rows.places():
        for first, last in _runs(dead, max(number, rows.first), number + count):
            skipped = first - number
            yield Extent(last - first, path, data_at + skipped * width, path, ids_at + skipped * ID.itemsize)
        number += count


def _runs(dead: DeadRows | None, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs of live rows in first..end-1, the longest ones that there are."""
    if dead is None:
        if first < end:
            yield first, end
        return
    begun = None
    for low in range(first, end, _WINDOW):
        high = min(low + _WINDOW, end)
        gone = dead.window(low, high)
        edges = np.flatnonzero(np.diff(gone, prepend=not gone[0])) + low
        for edge in edges.tolist():
            if gone[edge - low]:
                if begun is not None:
                    yield begun, edge
                    begun = None
            elif begun is None:
                begun = edge
    if begun is not None:
        yield begun, end


_WORTH = 1 << 20
"""Bytes of a segment that is worth a clone of its own."""


def whole_segment(piece: Piece) -> Segment | None:
    """The segment whose files can stand for this piece as they are; None for any other."""
    if not isinstance(piece, Segment) or not piece.has_columns or piece.rows != piece.stored:
        return None
    if piece.bytes < _WORTH or is_remote(piece.raw_path):
        return None
    for path, unit in ((piece.raw_path, piece.schema.row_bytes), (piece.ids_path, ID.itemsize)):
        found = read_header(path)
        if not found.declared == found.present == piece.stored * unit:
            return None
    return piece
