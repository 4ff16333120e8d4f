"""Pieces cut into equal amounts of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..model import BATCH_BYTES, Batch, Piece


@dataclass(frozen=True)
class Slice:
    """Rows start..start+rows-1 of a piece."""

    piece: Piece
    start: int
    rows: int

    def batches(self, max_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
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
    per_task = max(1, limit // row_bytes)
    groups: list[list[Slice]] = []
    room = 0
    for piece in pieces:
        start = 0
        while start < piece.rows:
            if room <= 0:
                groups.append([])
                room = per_task
            rows = min(piece.rows - start, room)
            groups[-1].append(Slice(piece, start, rows))
            start += rows
            room -= rows
    return groups
