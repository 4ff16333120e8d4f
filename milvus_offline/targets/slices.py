"""Pieces cut into equal amounts of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..model import BATCH_BYTES, NOWHERE, Array, Batch, Piece, Places, Schema


class Slice(NamedTuple):
    """Rows start..start+rows-1 of a piece."""

    piece: Piece
    start: int
    rows: int

    def batches(self, max_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
        """The rows, fewer when the piece ends before."""
        left = self.rows
        for batch in self.piece.batches(max_bytes, self.start):
            if batch.span > left:
                batch = batch.part(0, left)
            yield batch
            left -= batch.span
            if not left:
                return


def cut(pieces: Sequence[Piece], row_bytes: int, limit: int) -> list[list[Slice]]:
    """Cuts pieces into groups of slices of about `limit` bytes: large pieces are divided, small ones put together."""
    return cut_rows(pieces, max(1, limit // row_bytes))


def cut_rows(pieces: Sequence[Piece], rows_each: int) -> list[list[Slice]]:
    """The same into groups of `rows_each` rows; the last one has what is left."""
    groups: list[list[Slice]] = []
    room = 0
    for piece in pieces:
        start = 0
        while start < piece.rows:
            if room <= 0:
                groups.append([])
                room = rows_each
            rows = min(piece.rows - start, room)
            groups[-1].append(Slice(piece, start, rows))
            start += rows
            room -= rows
    return groups


def read(slices: Sequence[Slice], schema: Schema, max_bytes: int = BATCH_BYTES) -> tuple[npt.NDArray[np.int64], Array, Places]:
    """Ids int64 [n] and vectors of all rows: views of the piece's own buffer where one batch holds them, else copies; and the
    places, among all of them, of those that cannot be read (`Batch.lost`).

    Raises DamageError when a piece has fewer rows than it promised.
    """
    total = sum(s.rows for s in slices)
    ids, vectors = np.empty(0, np.int64), np.empty((0, schema.width), schema.dtype)
    lost: list[Places] = [NOWHERE]
    filled = done = 0
    for piece in slices:
        begun = done
        for batch in piece.batches(max(max_bytes, schema.row_bytes)):
            if batch.span == total:
                return batch.ids, batch.vectors, batch.lost
            if not done:
                ids, vectors = np.empty(total, np.int64), np.empty((total, schema.width), schema.dtype)
            n = len(batch.ids)
            ids[filled : filled + n] = batch.ids
            vectors[filled : filled + n] = batch.vectors
            lost.append(batch.lost + done)
            filled += n
            done += batch.span
        if done - begun != piece.rows:
            found = done - begun
            message = (
                f"expected {piece.rows} rows from row {piece.start} on, found {found}; the source may have changed meanwhile"
            )
            raise DamageError(piece.piece.id, message)
    return ids[:filled], vectors[:filled], np.concatenate(lost)
