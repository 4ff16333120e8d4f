"""One collection of a source as a table in parts: for Ray and Spark. A part is picklable, and read where it lands."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..arrow import BATCH_BYTES, arrow_schema, owned_batches, record_batch
from ..errors import StoreError, UsageError
from ..fileio import as_path
from ..model import Finding, Schema, Severity, SourceCollection, files_of
from ..names import printable
from ..selection import SelectedSource, Selection
from ..sources import SourceOptions, open_source
from ..targets.slices import Slice, cut_rows
from ..text import count, grouped

_log = logging.getLogger("milvus_offline")

_MIN_BYTES = 8 << 20
"""Vectors of a part: below that a task costs more than its rows."""


@dataclass(frozen=True)
class Part:
    """Some rows of a collection: slices, each with the name of its partition."""

    schema: Schema
    slices: tuple[tuple[str, Slice], ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for _, s in self.slices)

    @property
    def bytes(self) -> int:
        return self.rows * (self.schema.row_bytes + 8)

    def batches(self, batch_rows: int | None = None) -> Iterator[Any]:
        """The rows as pyarrow.RecordBatch. Raises StoreError on a machine that does not see the files."""
        made = arrow_schema(self.schema, partition=True)
        rows = batch_rows or max(1, BATCH_BYTES // self.schema.row_bytes)
        for partition, piece in self.slices:
            _require_seen(piece)
            for batch in owned_batches(piece.piece, self.schema, rows, piece.start, piece.rows):
                yield record_batch(batch, self.schema, made, partition)


def _require_seen(piece: Slice) -> None:
    for path in files_of(piece.piece)[:1]:
        if not as_path(path).exists():
            raise StoreError(
                f"{path}: the machine {socket.gethostname()} does not see this file: every worker needs the store under the "
                "same path (a shared file system, or a bucket)"
            )


@dataclass(frozen=True)
class Table:
    """The collection that was asked for. Columns: those of `milvus_offline.arrow`, `partition` among them."""

    path: str
    collection: SourceCollection
    findings: tuple[Finding, ...]
    """What was found when the source was opened."""

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
        """At most `wanted` parts of equal size, fewer where they would be small; at least one."""
        rows_each = max(1, _MIN_BYTES // self.schema.row_bytes, -(-self.rows // max(1, wanted)))
        pieces = [(p.name, piece) for p in self.collection.partitions for piece in p.pieces]
        names = {id(piece): name for name, piece in pieces}
        groups = cut_rows([piece for _, piece in pieces], rows_each)
        return [Part(self.schema, tuple((names[id(s.piece)], s) for s in group)) for group in groups] or [Part(self.schema, ())]

    def warn(self) -> None:
        """Logs what is lost or in doubt, which nothing else of an engine would tell."""
        for group in grouped(f.to_json() for f in self.findings if f.severity is not Severity.INFO):
            first = group.findings[0]
            rows = f", {count(group.rows, 'row')}" if group.rows is not None else ""
            places = count(len(group.findings), "place")
            _log.warning(
                "%s: %s %s: %s%s: %s: %s",
                printable(self.path),
                group.severity,
                group.code,
                places,
                rows,
                printable(first["where"]),
                printable(first["message"]),
            )


def open_table(
    path: str | os.PathLike[str], collection: str | None, partition: str | None, store: Mapping[str, Any] | None = None
) -> Table:
    """The live rows of one collection, of the partitions that the glob `partition` names.

    `store` are keyword arguments of open_store. Raises UsageError where `collection` does not name exactly one, and what
    open_source raises.
    """
    if "salvage" in (store or {}):
        raise UsageError("salvage: a table has live rows only; milvus-offline export --salvage writes the others apart")
    source = open_source(path, SourceOptions(store=dict(store or {})))
    selected = SelectedSource(source, Selection((collection,) if collection else (), (partition,) if partition else (), ()))
    found = selected.collections
    if len(found) != 1:
        names = ", ".join(sorted(printable(c.schema.name) for c in found)) or "none"
        raise UsageError(f"{path}: expected one collection, found {len(found)} ({names}): name it with collection=…")
    return Table(os.fspath(path), found[0], tuple(selected.findings))
