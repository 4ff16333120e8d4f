"""One collection of a source as a table in parts: for Ray and Spark. A part is picklable, and read where it lands."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrow import BATCH_BYTES, arrow_schema, owned_batches, record_batch
from ..errors import StoreError, UsageError
from ..fileio import as_path
from ..milvus1.segment.files import Segment
from ..model import Schema, SourceCollection
from ..names import printable
from ..selection import SelectedSource, Selection
from ..sources import SourceOptions, open_source
from ..targets.slices import Slice, cut

_MIN_BYTES = 8 << 20
"""Vectors of a part: below that a task costs more than its rows."""


@dataclass(frozen=True)
class Part:
    """Some rows of one partition."""

    schema: Schema
    partition: str
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)

    @property
    def bytes(self) -> int:
        return self.rows * (self.schema.row_bytes + 8)

    def batches(self, batch_rows: int | None = None) -> Iterator[Any]:
        """The rows as pyarrow.RecordBatch. Raises StoreError on a machine that does not see the files."""
        made = arrow_schema(self.schema, partition=True)
        rows = batch_rows or max(1, BATCH_BYTES // self.schema.row_bytes)
        for piece in self.slices:
            _require_seen(piece)
            for batch in owned_batches(piece.piece, self.schema, rows, piece.start, piece.rows):
                yield record_batch(batch, self.schema, made, self.partition)


def _require_seen(piece: Slice) -> None:
    if isinstance(piece.piece, Segment) and not as_path(piece.piece.raw_path).exists():
        raise StoreError(
            f"{piece.piece.raw_path}: the machine {socket.gethostname()} does not see this file: every worker needs the store "
            "under the same path (a shared file system, or a bucket)"
        )


@dataclass(frozen=True)
class Table:
    """The collection that was asked for. Columns: those of `milvus_offline.arrow`, `partition` among them."""

    collection: SourceCollection

    @property
    def schema(self) -> Schema:
        return self.collection.schema

    @property
    def rows(self) -> int:
        return self.collection.rows

    @property
    def bytes(self) -> int:
        return self.rows * (self.schema.row_bytes + 8)

    def parts(self, wanted: int) -> list[Part]:
        """About `wanted` parts of equal size, fewer where they would be small; at least one."""
        limit = max(_MIN_BYTES, -(-self.rows * self.schema.row_bytes // max(1, wanted)))
        return [
            Part(self.schema, p.name, tuple(slices))
            for p in self.collection.partitions
            for slices in cut(p.pieces, self.schema.row_bytes, limit)
        ] or [Part(self.schema, "", ())]


def open_table(
    path: str | os.PathLike[str], collection: str | None, partition: str | None, store: Mapping[str, Any] | None = None
) -> Table:
    """The live rows of one collection, of the partitions that the glob `partition` names.

    `store` are keyword arguments of open_store. Raises UsageError where `collection` does not name exactly one, and what
    open_source raises.
    """
    source = open_source(path, SourceOptions(store=dict(store or {})))
    selected = SelectedSource(source, Selection((collection,) if collection else (), (partition,) if partition else (), ()))
    found = selected.collections
    if len(found) != 1:
        names = ", ".join(sorted(printable(c.schema.name) for c in found)) or "none"
        raise UsageError(f"{path}: expected one collection, found {len(found)} ({names}): name it with collection=…")
    return Table(found[0])
