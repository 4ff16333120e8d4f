"""Records of the log under names that the catalog does not know: of what was dropped, or of damaged names (FORMAT §5.4, §5.7).

A record carries no check of its names. A flipped bit in one takes its rows, or its deletes, to a collection that never was;
one in the catalog leaves the rows of a partition under a tag that none has any more. A drop explains the first as well. But
after a drop the catalog keeps rows for the dropped files, for ten seconds and until the next flush (§3.5), so that a record
after the last flush whose name has left no trace was never of a dropped one: unless flushes are by hand alone, and one of
another table, and ten seconds, came between the drop and the server's end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...findings import Findings
from ...hashing import row_hashes
from ...model import Schema
from ...names import printable
from ..catalog.check import one_byte_off
from ..catalog.rows import Catalog
from ..copies import among
from ..layout import ID
from ..segment.files import Segment
from .account import hashes_with_ids
from .log import Kind, Log, Record, schema_fits
from .rows import LogRows, SpanBuilder
from .table import LoggedTable

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]{0,254}")
"""Names that a server lets a collection have (§11)."""


@dataclass
class _Lost:
    rows: int = 0
    deletes: int = 0
    first: int = 0


class Strangers:
    """What one log holds under unknown names. `traces` are table ids that the catalog or a folder still speaks of."""

    def __init__(self, log: Log, catalog: Catalog, traces: Collection[str], schemas: Mapping[str, Schema]) -> None:
        self._log, self._schemas = log, schemas
        tables = {t.table_id for t in catalog.tables}
        self._traces = {*traces, *tables, *(r.table_id for r in catalog.files)}
        self._dropped_something = bool(self._traces - tables) or any(t.is_dropped for t in catalog.tables)
        self._flushed = max((t.flush_lsn for t in catalog.tables), default=0)
        """A flush of deletes alone leaves no file; that a table is given the last LSN when it is made, only leaves more out."""
        self._sees_live = False
        self._first: dict[tuple[str, str], tuple[Record, Schema]] = {}
        self._lost: dict[tuple[str, str], _Lost] = defaultdict(_Lost)

    def known(self, record: Record) -> None:
        """A record of a table, in the part of the log that is replayed."""
        self._sees_live |= record.lsn > self._flushed

    def unknown(self, record: Record, collection: str, tag: str, live: Collection[tuple[str, str]]) -> None:
        """A record under a name that none of the `live` (collection, tag) has."""
        schema = self._schemas.get(collection)
        is_insert = record.kind is not Kind.DELETE
        if is_insert and schema is not None and schema_fits(record, schema):
            self._first.setdefault((collection, tag), (record, schema))
        if record.lsn <= self._flushed or self._is_explained(record, collection, tag, live):
            return
        lost = self._lost[collection, tag]
        lost.first = lost.first or record.lsn
        lost.rows += record.rows * is_insert
        lost.deletes += record.rows * (not is_insert)

    def _is_explained(self, record: Record, collection: str, tag: str, live: Collection[tuple[str, str]]) -> bool:
        if not _NAME.fullmatch(record.collection):
            return False
        if collection in self._schemas:
            tags = [t for c, t in live if c == collection]  # a server may let clients name partitions that never were (§5.6)
            return self._dropped_something or one_byte_off(tag, tags) is None
        if collection in self._traces:
            return True
        return not (self._sees_live or one_byte_off(collection, {c for c, _ in live}))

    def report(self, findings: Findings) -> None:
        """Adds what no drop explains."""
        for (collection, tag), lost in self._lost.items():
            name = printable(f"{collection}/{tag}" if tag else collection)
            texts = [f"{n} {noun}" for n, noun in ((lost.rows, "rows"), (lost.deletes, "deleted ids")) if n]
            findings.warning(
                "log-stranger",
                f"{self._log.folder}/{lost.first >> 32}.wal",
                f"{' and '.join(texts)} in the log are of {name!r}, after the last flush, from the record that ends at byte "
                f"{lost.first & 0xFFFFFFFF} on. The catalog knows no such collection or partition, and none that was dropped: "
                "the name in the record is damaged, or this is not the log of these files. They are left out; --salvage "
                "dropped exports the rows",
                lost.rows + lost.deletes,
            )

    def find_renamed(
        self, members: Mapping[str, Sequence[LoggedTable]], segments: Mapping[str, list[Segment]], findings: Findings
    ) -> None:
        """Partitions of which the log has no record, but has one under an unknown tag, and its rows are in their segments.

        No server renames a partition: its tag in the catalog is damaged, if all of the log is here, or one byte differs. (A
        server that ran without its log in between, or a client that sent the same rows to a dropped partition, leaves the
        other ones.)"""
        whole = bool(self._log.files) and self._log.files[0].number == 0
        for (collection, tag), (record, schema) in self._first.items():
            silent = [t for t in members[collection][1:] if not t.inserted and not t.old_rows and segments.get(t.table_id)]
            near = one_byte_off(tag, [t.partition for t in silent])
            if not (asked := [t for t in silent if whole or t.partition == near]):
                continue
            spans = SpanBuilder()
            spans.add(record)
            rows = LogRows("wal", schema, self._log.files, spans.build(), record.rows, np.empty(0, ID))
            if (logged := next(rows.batches(), None)) is None:
                continue
            for table in asked:
                stored = np.sort(hashes_with_ids(segments[table.table_id], np.unique(logged.ids)))
                if among(row_hashes(logged.ids, logged.vectors), stored).any():
                    findings.warning(
                        "catalog-value",
                        table.place,
                        "the log has no record of this partition, but its rows were logged under the tag "
                        f"{printable(tag)!r}: the catalog is damaged. The rows come under the tag of the catalog",
                    )
                    break
