"""Rescue on request: rows that a server never shows (FORMAT §3.4-3.7, §5.6, §11.4), always apart from live ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamageError, UsageError
from ..fileio import printable
from ..findings import Findings
from ..model import BATCH_BYTES, DEFAULT_PARTITION, Batch, Finding, Salvaged, Schema, Severity, VectorType
from .catalog.rows import Generation
from .copies import Hashes, contains, hashes_of
from .layout import ID
from .live import Leftover
from .opening import Store
from .segment.files import Segment, attribute_schema, read_header
from .segment.opening import open_segment

if TYPE_CHECKING:
    from .segment.rawfile import LegacyRawFile

KINDS = {
    "unseen": "acknowledged rows in the log that the server never applied (tag `_default`, or a tag with blanks)",
    "unacknowledged": "rows in the log whose call was never acknowledged",
    "orphans": "segment folders that no catalog row speaks of",
    "unfinished": "segments that a flush or merge was writing",
    "to-delete": "segments put aside for deletion (usually older copies of live rows)",
    "dropped": "dropped collections and partitions still on disk or in the log",
    "deleted": "deleted rows that are still in segment files",
}
"""What can be salvaged, in words."""


def parse_kinds(kinds: Iterable[str]) -> list[str]:
    """Checks kinds given by a person; `all` means each. Raises UsageError."""
    chosen = set(kinds)
    if unknown := chosen - {*KINDS, "all"}:
        raise UsageError(f"nothing known to salvage as {sorted(unknown)[0]!r}; there are: {', '.join(KINDS)}, all")
    return [k for k in KINDS if k in chosen or "all" in chosen]


@dataclass(frozen=True)
class DeletedRows:
    """The deleted rows of a segment; a piece."""

    segment: Segment

    @property
    def id(self) -> str:
        return self.segment.id

    @property
    def rows(self) -> int:
        return self.segment.deleted_rows

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Deleted rows in file order; see model.Piece."""
        return self.segment.deleted_batches(max_bytes, start)


def survey(store: Store) -> dict[str, int]:
    """Rows that wait per kind, counted from headers: an upper bound, since copies of live rows count too."""
    counts = dict.fromkeys(KINDS, 0)
    segments = (s for c in store.collections for p in c.partitions for s in p.segments if isinstance(s, Segment))
    counts["deleted"] = sum(s.deleted_rows for s in segments)
    for rescued in store.replay.salvage if store.replay else ():
        counts[rescued.kind] += rescued.rows.rows
    for leftover in _leftovers(store):
        try:
            if store.catalog.generation is Generation.V05:
                from .v05 import open_leftover  # rarely needed, and all of the index files' formats behind it

                raw, _ = open_leftover(leftover, None, store.location.roots)
                counts[leftover.kind] += raw.rows if raw else 0
                continue
            counts[leftover.kind] += store.disk.rows(leftover.table_id, leftover.segment_id)
        except (DamageError, UsageError, OSError):
            continue
    return counts


def collect(store: Store, kinds: Sequence[str]) -> tuple[list[Salvaged], Findings]:
    """What is to be rescued of the given kinds, and findings about it. Raises UsageError for an unknown kind."""
    wanted = parse_kinds(kinds)
    notes = Findings()
    result: list[Salvaged] = []
    for rescued in store.replay.salvage if store.replay else ():
        if rescued.kind in wanted and rescued.rows.rows:
            result.append(
                Salvaged(rescued.kind, _schema(store, rescued.rows.schema), rescued.partition, [rescued.rows], rescued.reason)
            )
    places = _places(store)
    grouped: dict[tuple[str, str, str, str], list[Segment | LegacyRawFile]] = {}
    schemas: dict[tuple[str, str, str, str], Schema] = {}
    live = _Live(store)
    for leftover in _leftovers(store):
        if leftover.kind not in wanted:
            continue
        segment = _open(store, leftover, notes)
        if segment is None or not segment.rows:
            continue
        collection, partition = places.get(leftover.table_id, (leftover.table_id, DEFAULT_PARTITION))
        if live.hold(collection, segment):
            notes.append(
                _note(
                    "salvage-copy",
                    leftover,
                    "all of its rows are live elsewhere; not exported again",
                    segment.rows,
                    printable(collection),
                )
            )
            continue
        key = (leftover.kind, collection, partition, leftover.reason)
        grouped.setdefault(key, []).append(segment)
        schemas[key] = replace(segment.schema, name=collection)
    result += [Salvaged(k[0], schemas[k], k[2], segments, k[3]) for k, segments in grouped.items()]
    if "deleted" in wanted:
        for collection_ in store.collections:
            for part in collection_.partitions:
                pieces = [DeletedRows(s) for s in part.segments if isinstance(s, Segment) and s.deleted]
                if pieces:
                    result.append(
                        Salvaged("deleted", collection_.schema, part.name, pieces, "deleted, not yet removed from disk")
                    )
    merged: dict[tuple[str, str, str], Salvaged] = {}
    for item in result:
        place = (item.kind, item.schema.name, item.partition)
        if place in merged and merged[place].schema == item.schema:
            before = merged[place]
            reason = before.reason if item.reason in before.reason else f"{before.reason}; {item.reason}"
            merged[place] = replace(before, pieces=[*before.pieces, *item.pieces], reason=reason)
        else:
            merged[place if place not in merged else (*place[:2], f"{item.partition} {item.schema.dimension}")] = item
    return list(merged.values()), notes


def _leftovers(store: Store) -> list[Leftover]:
    """Folders beside the live segments, each once: those of live tables, then those of dropped ones."""
    if store.catalog.generation is Generation.V05:
        from .v05 import leftovers

        return leftovers(store)
    live = {c.table_id for part in store.selection.collections for p in part.partitions for c in p.choices}
    live |= {p.table.table_id for c in store.selection.collections for p in c.partitions}
    dropped = {t.table_id for t in store.selection.dropped}
    result = [x for x in store.selection.leftovers if x.table_id not in dropped]
    for table_id in sorted(dropped):
        for segment_id in sorted(store.disk.segments(table_id)):
            result.append(Leftover("dropped", table_id, segment_id, "its collection or partition was dropped"))
    return result


def _places(store: Store) -> dict[str, tuple[str, str]]:
    """table_id -> (collection, partition), dropped ones too."""
    return {
        t.table_id: (t.owner_table, t.partition_tag) if t.owner_table else (t.table_id, DEFAULT_PARTITION)
        for t in store.catalog.tables
    }


def _schema(store: Store, schema: Schema) -> Schema:
    return next(
        (c.schema for c in store.collections if c.name == schema.name and c.schema.row_bytes == schema.row_bytes), schema
    )


def _open(store: Store, leftover: Leftover, notes: Findings) -> Segment | LegacyRawFile | None:
    try:
        if store.catalog.generation is Generation.V05:
            from .v05 import open_leftover

            raw_file, found = open_leftover(leftover, _schema_of_table(store, leftover.table_id), store.disk.roots)
            notes += [replace(f, severity=Severity.INFO) for f in found]
            return raw_file
        folder = store.disk.folder(leftover.table_id, leftover.segment_id)
        if folder is None or not folder.raw or not folder.ids:
            return None
        raw, ids = (read_header(folder.path / n[0]) for n in (folder.raw, folder.ids))
        rows = ids.bytes // ID.itemsize
        if not rows or not raw.bytes:
            return None
        schema = _schema_of_table(store, leftover.table_id)
        if schema is None or raw.bytes != rows * schema.row_bytes:
            guess = _guess(leftover.table_id, raw.bytes, rows, schema)
            if guess is None and schema is None:
                notes.append(
                    _note(
                        "salvage-unreadable", leftover, f"{raw.bytes} bytes of vectors fit no whole number for {rows} ids", rows
                    )
                )
                return None
            if guess is not None:
                notes.append(
                    _note(
                        "schema-guessed",
                        leftover,
                        f"the catalog does not describe these rows; taken as {guess.vector_type.value} vectors of dimension "
                        f"{guess.dimension}, from the sizes of the files",
                        rows,
                    )
                )
                schema = guess
        assert schema is not None
        segment, found = open_segment(folder, leftover.segment_id, schema, state=leftover.kind)
    except (DamageError, UsageError, OSError) as e:
        notes.append(_note("salvage-unreadable", leftover, str(e)))
        return None
    notes += [replace(f, severity=Severity.INFO) for f in found]
    return segment


def _schema_of_table(store: Store, table_id: str) -> Schema | None:
    table = next((t for t in store.catalog.tables if t.table_id == table_id), None)
    if table is None:
        return None
    owner = next((t for t in store.catalog.tables if t.table_id == table.owner_table), table)
    if owner.vector_type.width(owner.dimension) < 1:
        return None  # only the rows of dropped tables are taken unchecked
    fields = [(f.field_name, f.field_type) for f in store.catalog.fields if f.collection_id == owner.table_id]
    return Schema(
        owner.table_id,
        owner.dimension,
        owner.vector_type,
        owner.metric_name,
        owner.index,
        owner.index_file_size or None,
        owner.auto_id,
        attribute_schema(fields),
    )


def _guess(name: str, raw_bytes: int, rows: int, known: Schema | None) -> Schema | None:
    """A schema from the bytes per row: of a table created anew with another dimension, or unknown to the catalog."""
    if raw_bytes % rows:
        return None
    width = raw_bytes // rows
    if known is not None and known.vector_type is VectorType.BINARY:
        return replace(known, dimension=8 * width)
    if width % 4:
        return Schema(name, 8 * width, VectorType.BINARY)
    return replace(known, dimension=width // 4) if known is not None else Schema(name, width // 4)


class _Live:
    """The rows of one collection after the other, to tell copies of them: 8 bytes a row, hashed once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._name: str | None = None
        self._hashes: Hashes

    def hold(self, collection: str, segment: Segment | LegacyRawFile) -> bool:
        """Whether all rows of the segment are live in the collection."""
        found: Any = self._store.get(collection)
        if found is None or found.schema.row_bytes != segment.schema.row_bytes:
            return False
        if self._name != collection:
            self._name = collection
            self._hashes = np.sort(hashes_of(found.batches()))
        return contains(self._hashes, hashes_of(segment.batches()), is_sorted=True)


def _note(code: str, leftover: Leftover, message: str, rows: int | None = None, where: str | None = None) -> Finding:
    place = f"{where or leftover.table_id}/{leftover.segment_id}"
    return Finding(Severity.INFO, code, place, f"{leftover.reason}: {message}", rows)
