"""Salvage on request: rows that a server never shows (FORMAT §3.4-3.7, §5.6, §11.4), always apart from live ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from ..errors import DamageError, UsageError
from ..findings import Findings
from ..hashing import Hashes
from ..model import BATCH_BYTES, DEFAULT_PARTITION, Batch, Finding, Salvaged, SalvageKind, Schema, Severity, VectorType
from ..names import printable
from .catalog.rows import Generation
from .copies import Contents, contains, hashes_among, newest_of
from .layout import ID
from .live import Leftover
from .opening import schema_of
from .segment.files import Segment, read_header
from .segment.opening import open_segment
from .store import Store

if TYPE_CHECKING:
    from .segment.rawfile import RawFile

KINDS = {
    "unseen": "acknowledged rows in the log that the server never applied (tag `_default`, or a tag with blanks)",
    "unacknowledged": "rows in the log whose call was never acknowledged",
    "orphans": "segment folders that no catalog row describes",
    "unfinished": "segments that a flush or merge was writing",
    "to-delete": "segments put aside for deletion (usually older copies of live rows)",
    "dropped": "dropped collections and partitions still on disk or in the log",
    "deleted": "deleted rows that are still in segment files",
}
"""What can be salvaged, in words."""


def parse_kinds(kinds: Iterable[str]) -> list[SalvageKind]:
    """Checks kinds given by a person; `all` means each. Raises UsageError."""
    chosen = set(kinds)
    if unknown := chosen - {*KINDS, "all"}:
        raise UsageError(f"unknown kind {sorted(unknown)[0]!r} for --salvage; choose from {', '.join(KINDS)}, all")
    return [k for k in get_args(SalvageKind) if k in chosen or "all" in chosen]


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
    for salvaged in store.replay.salvage if store.replay else ():
        counts[salvaged.kind] += salvaged.rows.rows
    for leftover in _leftovers(store):
        try:
            if store.catalog.generation is Generation.V05:
                from .v05 import open_leftover  # rarely needed, and it loads the formats of all index files

                raw, _ = open_leftover(leftover, None, store.location.roots)
                counts[leftover.kind] += raw.rows if raw else 0
                continue
            counts[leftover.kind] += store.disk.rows(leftover.table_id, leftover.segment_id)
        except (DamageError, UsageError, OSError):
            continue
    return counts


def collect(store: Store, kinds: Sequence[str]) -> tuple[list[Salvaged], Findings]:
    """What is to be salvaged of the given kinds, and findings about it. Raises UsageError for an unknown kind."""
    wanted = parse_kinds(kinds)
    notes = Findings()
    result = [s for s in _of_log(store) if s.kind in wanted]
    result += _segments(store, wanted, notes)
    if "deleted" in wanted:
        result += _deleted(store)
    return _put_together(result), notes


def everything(store: Store) -> Iterator[Salvaged]:
    """All that `collect` chooses from, without reading any rows: copies of live rows, and of each other, come as well. What
    cannot be opened is left out."""
    yield from _of_log(store)
    places = _places(store)
    for leftover in _leftovers(store):
        segment = _open(store, leftover, Findings())
        if segment is not None and segment.rows:
            collection, partition = places.get(leftover.table_id, (leftover.table_id, DEFAULT_PARTITION))
            schema = replace(segment.schema, name=collection)
            yield Salvaged(leftover.kind, schema, partition, [segment], leftover.reason)
    yield from _deleted(store)


def _of_log(store: Store) -> Iterator[Salvaged]:
    for found in store.replay.salvage if store.replay else ():
        if found.rows.rows:
            schema = _schema(store, found.rows.schema)
            yield Salvaged(found.kind, schema, found.partition, [found.rows], found.reason)


def _deleted(store: Store) -> Iterator[Salvaged]:
    for collection in store.collections:
        for part in collection.partitions:
            pieces = [DeletedRows(s) for s in part.segments if isinstance(s, Segment) and s.deleted]
            if pieces:
                yield Salvaged("deleted", collection.schema, part.name, pieces, "deleted, not yet removed from disk")


def _put_together(items: Iterable[Salvaged]) -> list[Salvaged]:
    """One of each kind and partition, but for rows of another schema."""
    merged: dict[tuple[str, str, str], Salvaged] = {}
    for item in items:
        place = (item.kind, item.schema.name, item.partition)
        if place in merged and merged[place].schema == item.schema:
            before = merged[place]
            reason = before.reason if item.reason in before.reason else f"{before.reason}; {item.reason}"
            merged[place] = before._replace(pieces=[*before.pieces, *item.pieces], reason=reason)
        else:
            merged[place if place not in merged else (*place[:2], f"{item.partition} {item.schema.dimension}")] = item
    return list(merged.values())


def _segments(store: Store, wanted: Sequence[str], notes: Findings) -> list[Salvaged]:
    """The segments beside the live ones, without those whose rows are live, or are in a newer one of these."""
    places = _places(store)
    opened: dict[str, list[tuple[Leftover, Segment | RawFile]]] = defaultdict(list)
    for leftover in _leftovers(store):
        if leftover.kind in wanted:
            segment = _open(store, leftover, notes)
            if segment is not None and segment.rows:
                collection, _ = places.get(leftover.table_id, (leftover.table_id, DEFAULT_PARTITION))
                opened[collection].append((leftover, segment))
    result = []
    for collection, members in opened.items():  # one after the other: the hashes of a collection's rows are kept meanwhile
        held = _live_among(store, collection, [s for _, s in members])
        tables: dict[str, list[tuple[Leftover, Segment | RawFile]]] = defaultdict(list)
        for leftover, segment in members:
            tables[leftover.table_id].append((leftover, segment))
        for table_id, parts in tables.items():
            _, partition = places.get(table_id, (table_id, DEFAULT_PARTITION))
            for leftover, segment in _each_once(parts, held, printable(collection), notes):
                schema = replace(segment.schema, name=collection)
                result.append(Salvaged(leftover.kind, schema, partition, [segment], leftover.reason))
    return result


def _live_among(store: Store, collection: str, segments: Sequence[Segment | RawFile]) -> Hashes:
    """The hashes of those live rows of a collection whose ids are in these segments, sorted; each live row is read once."""
    found = store.get(collection)
    if found is None:
        return np.empty(0, np.uint64)
    ids = np.unique(np.concatenate([b.ids for s in segments for b in map(_copied, s.batches())]))
    return hashes_among([piece for p in found.partitions for piece in p.pieces], ids)


def _copied(batch: Batch) -> Batch:
    return Batch(batch.ids.copy(), batch.vectors[:0])


def _each_once(
    parts: Sequence[tuple[Leftover, Segment | RawFile]], held: Hashes, collection: str, notes: Findings
) -> list[tuple[Leftover, Segment | RawFile]]:
    """Those of a table's segments whose rows are neither all live (`held`) nor all in a newer one of them."""
    contents = Contents()
    left = []
    for leftover, segment in parts:
        if contains(held, contents.live(segment), is_sorted=True):
            text = "all of its rows are live elsewhere; not exported again"
            notes.append(_note("salvage-copy", leftover, text, segment.rows, collection))
        else:
            left.append((leftover, segment))
    _, older = newest_of([s for _, s in left], contents)
    newer = {s.id: n.id for s, n in older}
    for leftover, segment in left:
        if segment.id in newer:
            text = f"all of its rows are in the newer segment {newer[segment.id]} as well; not exported again"
            notes.append(_note("salvage-copy", leftover, text, segment.rows, collection))
    return [(x, s) for x, s in left if s.id not in newer]


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


def _open(store: Store, leftover: Leftover, notes: Findings) -> Segment | RawFile | None:
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
                        "salvage-unreadable",
                        leftover,
                        f"{raw.bytes} bytes of vectors cannot be divided evenly among {rows} ids",
                        rows,
                    )
                )
                return None
            if guess is not None:
                notes.append(
                    _note(
                        "schema-guessed",
                        leftover,
                        f"the catalog does not describe these rows; read as {guess.vector_type.value} vectors of dimension "
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
    return schema_of(owner, store.catalog)


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


def _note(code: str, leftover: Leftover, message: str, rows: int | None = None, where: str | None = None) -> Finding:
    place = f"{where or leftover.table_id}/{leftover.segment_id}"
    return Finding(Severity.INFO, code, place, f"{leftover.reason}: {message}", rows)
