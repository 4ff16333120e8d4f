"""A segment whose `.rv` is lost or short, with its vectors out of an index file that holds them (FORMAT §4.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import fileio
from ...errors import DamageError, UsageError
from ...model import Array, Batch, Schema
from ...watch import watch
from ..layout import ID, LENGTH
from .dead import DeadRows
from .files import Segment
from .indexfile import StoredVectors, read_index_file

_COMPARED_ROWS = 1 << 12
"""Rows of a readable part of `.rv` that the index has to agree with."""


@dataclass(eq=False, slots=True)
class RestoredSegment(Segment):
    """Rows in the order of the index file, their ids from `.uid`. `raw_path` is the index file."""

    index: StoredVectors | None = None

    @property
    def vectors(self) -> Array:
        """All stored vectors in the order of `.uid`, put together in memory; rows that the index lacks are zero."""
        result = np.zeros((self.stored, self.schema.width), self.schema.dtype)
        for offsets, vectors in self._stored().batches():
            result[offsets] = vectors
        return result

    def _stored(self) -> StoredVectors:
        assert self.index is not None
        return self.index

    def _read(self, dead: DeadRows | None, max_bytes: int, start: int) -> Iterator[Batch]:
        ids = np.concatenate([np.empty(0, ID), *(part.copy() for _, part in self.ids_in_chunks(1 << 17))])
        came = start
        try:
            for offsets, vectors in self._stored().batches(max_bytes):
                if dead is not None:
                    alive = np.flatnonzero(~dead.contains(offsets))
                    offsets, vectors = offsets[alive], vectors[alive]
                if start >= len(offsets):
                    start -= len(offsets)
                    continue
                came += len(offsets) - start
                yield Batch(ids[offsets[start:]], vectors[start:])
                start = 0
        except DamageError as e:
            seen, rest = watch(), self.rows - came
            if seen is None or e.offset is None:
                raise
            seen.note_unreadable(self.where, e.path, [(e.offset, e.offset + 1)], [(came, self.rows)])
            yield Batch(ids[:0], np.empty((0, self.schema.width), self.schema.dtype), {}, np.arange(rest))


def find_vectors(indexes: Iterable[Path], schema: Schema, rows: int) -> tuple[StoredVectors | None, list[str]]:
    """The index file that has most of a segment's vectors, and why others cannot be used."""
    best: StoredVectors | None = None
    reasons = []
    for path in indexes:
        try:
            found = read_index_file(path, rows=rows, partial=True)
        except (DamageError, UsageError, OSError) as e:
            reasons.append(str(e))
            continue
        if found.vector_type is not schema.vector_type or found.dimension != schema.dimension:
            reasons.append(f"{path}: holds {found.vector_type.value} vectors of dimension {found.dimension}")
        elif best is None or found.rows > best.rows:
            best = found
    return best, reasons


def restore(segment: Segment, found: StoredVectors, readable: int, raw_path: Path | None) -> Segment:
    """The segment with vectors from `found`. `segment.stored` counts the ids; `readable` rows of `raw_path` are compared.

    Raises DamageError when the index belongs to other rows, or is damaged.
    """
    covered = DeadRows(segment.stored)
    count = 0
    known = None
    if raw_path is not None and readable:
        rows = min(readable, _COMPARED_ROWS)
        known = fileio.read_array(raw_path, np.uint8, rows * segment.schema.row_bytes, LENGTH.size).reshape(rows, -1)
    for offsets, vectors in found.batches():
        covered.add(offsets)
        count += len(offsets)
        if known is not None:
            at = np.flatnonzero(offsets < len(known))
            octets = np.ascontiguousarray(vectors[at]).view(np.uint8).reshape(len(at), -1)
            if (octets != known[offsets[at]]).any():
                raise DamageError(
                    found.path, "its vectors differ from those that can still be read; it is another segment's index"
                )
    if len(covered) != count:
        raise DamageError(found.path, f"{count - len(covered)} row offsets are there twice")
    absent = None
    if count < segment.stored:
        missing = [
            np.flatnonzero(~covered.window(first, min(first + (1 << 16), segment.stored))) + first
            for first in range(0, segment.stored, 1 << 16)
        ]
        absent = np.concatenate(missing)
    values = {name: getattr(segment, name) for name in segment.__dataclass_fields__}
    values.update(raw_path=found.path, absent=absent, attribute_paths=(), index=found)
    return RestoredSegment(**values).recounted()
