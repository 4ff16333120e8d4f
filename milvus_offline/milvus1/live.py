"""Which segments are live: the decision table of FORMAT §3.7, the crash states of §3.4, the row-id race of §3.6.

What a catalog row says is a hint, what the folders hold is evidence; every place where the two differ becomes a finding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DamageError, StoreError
from ..findings import Findings
from ..model import DEFAULT_PARTITION, Schema
from .catalog.rows import Catalog, FileRow, Generation, TableRow
from .copies import Hashes, among, contains, hashes_of
from .layout import TABLES, FileType
from .segment.files import Segment, read_header
from .segment.opening import Folder, list_folder, open_segment

_RAW_TYPES = frozenset({FileType.RAW, FileType.TO_INDEX, FileType.BACKUP})
_COMPACT_RATIO = 0.1
"""Deleted share from which on the server compacts a segment (§16)."""


class Disk:
    """The folders below `tables/` of all roots (§1.2, §1.3)."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self._listed: dict[str, dict[str, list[Path]]] = {}

    def tables(self) -> list[str]:
        """Names of all table folders."""
        names: set[str] = set()
        for root in self.roots:
            names |= {e.name for e in _scan(root / TABLES) if e.is_dir()}
        return sorted(names)

    def segments(self, table_id: str) -> dict[str, list[Path]]:
        """Segment folders of a table (files in their place too): name -> one path per root that has it."""
        if table_id not in self._listed:
            found: dict[str, list[Path]] = defaultdict(list)
            for root in self.roots:
                for entry in _scan(root / TABLES / table_id):
                    found[entry.name].append(Path(entry.path))
            self._listed[table_id] = dict(found)
        return self._listed[table_id]

    def folder(self, table_id: str, segment_id: str) -> Folder | None:
        """The folder of a segment; of several the one that holds the raw vectors. Raises DamageError."""
        folders = [f for p in self.segments(table_id).get(segment_id, []) if (f := list_folder(p))]
        return next((f for f in folders if f.raw), folders[0] if folders else None)

    def index_file(self, table_id: str, segment_id: str, file_id: str) -> Path | None:
        """An index file; raw and index files of one segment may be under different roots (§1.3)."""
        candidates = (p / file_id for p in self.segments(table_id).get(segment_id, []))
        return next((c for c in candidates if c.is_file()), None)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except PermissionError as e:
        raise StoreError(f"{folder}: no permission to look into this folder: run as a user who may, or copy the store") from e
    except OSError:
        return []


@dataclass(frozen=True)
class Choice:
    """A segment that is live. `segment_id` names its folder; `row` is the catalog row that stands for it."""

    table_id: str
    segment_id: str
    state: str
    row: FileRow
    index_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leftover:
    """A segment folder that is not live but may hold rows; `kind` is a kind of salvage."""

    kind: str
    table_id: str
    segment_id: str
    reason: str
    is_merge: bool = False
    """Whether it was the target of a merge or compaction in progress."""


@dataclass(frozen=True)
class LivePartition:
    tag: str
    table: TableRow
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class LiveCollection:
    table: TableRow
    partitions: tuple[LivePartition, ...]


@dataclass
class Selection:
    """The live collections with their segments, and what lies around beside them."""

    collections: list[LiveCollection]
    leftovers: list[Leftover]
    dropped: list[TableRow]
    findings: Findings
    has_unflushed: bool
    """Whether the catalog holds NEW segments: rows that were in memory and must be in the log (§3.3)."""


def select(catalog: Catalog, disk: Disk) -> Selection:
    """Decides for every table and segment of the catalog whether it is live (FORMAT §3.7, §6 steps 1 and 2)."""
    findings = Findings()
    leftovers: list[Leftover] = []
    alive = [t for t in catalog.tables if not t.is_dropped]
    owners = {t.table_id: t for t in alive if not t.owner_table}
    files: dict[str, list[FileRow]] = defaultdict(list)
    for row in catalog.files:
        files[row.table_id].append(row)

    collections = []
    dropped = [t for t in catalog.tables if t.is_dropped]
    for owner in owners.values():
        tables = [(DEFAULT_PARTITION, owner)]
        tables += [(t.partition_tag, t) for t in alive if t.owner_table == owner.table_id]
        partitions = []
        for tag, table in tables:
            if catalog.generation is Generation.DATED:
                choices = _select_dated(table, files[table.table_id], leftovers)
            else:
                choices = _select_table(table, files[table.table_id], disk, findings, leftovers)
            partitions.append(LivePartition(tag, table, tuple(choices)))
        collections.append(LiveCollection(owner, tuple(partitions)))
    for table in alive:
        if table.owner_table and table.owner_table not in owners:
            dropped.append(table)
            findings.info(
                "zombie-partition",
                f"{table.owner_table}/{table.partition_tag}",
                "the partition's collection was dropped; a crash left the partition in the catalog. It counts as dropped",
            )
    if catalog.generation is Generation.SEGMENTED:
        _find_orphans(catalog, collections, disk, leftovers)
    return Selection(
        collections=collections,
        leftovers=leftovers,
        dropped=dropped,
        findings=findings,
        has_unflushed=any(r.file_type == FileType.NEW for t in alive for r in files[t.table_id]),
    )


def _select_table(
    table: TableRow, rows: Iterable[FileRow], disk: Disk, findings: Findings, leftovers: list[Leftover]
) -> list[Choice]:
    groups: dict[str, list[FileRow]] = defaultdict(list)
    choices: list[Choice] = []
    raced: set[str] = set()
    for row in rows:
        if row.file_type in _RAW_TYPES and row.file_id != row.segment_id:
            choice = _repair_race(table, row, disk, findings)
            choices.append(choice)
            raced.add(choice.segment_id)
            if choice.segment_id != row.segment_id:
                victim = Leftover(
                    "orphans", table.table_id, row.segment_id, "its catalog row was overwritten by another segment's"
                )
                leftovers.append(victim)
        else:
            groups[row.segment_id].append(row)
    for segment_id, group in groups.items():
        if segment_id in raced:
            continue
        choice_or_none = _select_segment(table, segment_id, group, findings, leftovers)
        if choice_or_none:
            choices.append(choice_or_none)
    return sorted(choices, key=lambda c: c.row.id)


def _select_dated(table: TableRow, rows: Iterable[FileRow], leftovers: list[Leftover]) -> list[Choice]:
    """0.5 and 0.6 have no segments: raw files of types 1, 2 and 7 are live, index files repeat their rows (§8)."""
    choices = []
    for row in rows:
        if row.file_type in _RAW_TYPES:
            choices.append(Choice(table.table_id, row.file_id, FileType(row.file_type).name, row))
        elif row.file_type == FileType.TO_DELETE:
            leftovers.append(Leftover("to-delete", table.table_id, row.file_id, "the server had put it aside for deletion"))
    return choices


def _select_segment(
    table: TableRow, segment_id: str, group: list[FileRow], findings: Findings, leftovers: list[Leftover]
) -> Choice | None:
    """The decision table of §3.7 for the rows of one segment."""
    types = {r.file_type for r in group}
    where = f"{table.table_id}/{segment_id}"
    indexes = tuple(r.file_id for r in group if r.file_type == FileType.INDEX)
    raw = next((r for r in group if r.file_type in _RAW_TYPES), None)
    if raw is not None:
        if raw.file_type == FileType.BACKUP and not indexes:
            findings.warning(
                "backup-without-index",
                where,
                "the segment waits for an index that is gone; a 1.x server hides its rows from search and count, "
                "here they are taken",
                raw.row_count if 0 <= raw.row_count < 1 << 31 else None,
            )
        if raw.file_type != FileType.BACKUP and indexes:
            findings.info(
                "index-and-raw",
                where,
                "the catalog lists the segment and its index both as searchable; its rows are taken once",
            )
        return Choice(table.table_id, segment_id, FileType(raw.file_type).name, raw, indexes)
    if indexes:
        row = next(r for r in group if r.file_type == FileType.INDEX)
        findings.warning("raw-row-missing", where, "only the index of this segment is in the catalog; its rows are taken")
        return Choice(table.table_id, segment_id, FileType.INDEX.name, row, indexes)
    if FileType.NEW_MERGE in types:
        leftovers.append(Leftover("unfinished", table.table_id, segment_id, "a merge was writing it", is_merge=True))
    elif FileType.NEW in types:
        leftovers.append(Leftover("unfinished", table.table_id, segment_id, "a flush was to write it"))
    elif FileType.TO_DELETE in types:
        leftovers.append(Leftover("to-delete", table.table_id, segment_id, "the server had put it aside for deletion"))
    unknown = sorted(t for t in types if t not in FileType._value2member_map_)
    if unknown:
        findings.error("file-type-unknown", where, f"file_type {unknown[0]} is unknown; the segment is left out")
    return None


def _repair_race(table: TableRow, row: FileRow, disk: Disk, findings: Findings) -> Choice:
    """A raw row whose file_id is another segment's: the data meant are under `file_id`, if the row's size agrees (§3.6)."""
    rows = row.row_count if 0 <= row.row_count < 1 << 31 else None
    meant = _payload_bytes(table.table_id, row.file_id, disk)
    if meant is not None and (meant == row.file_size or _payload_bytes(table.table_id, row.segment_id, disk) is None):
        message = (
            f"the catalog row was overwritten by that of segment {row.file_id} (a bug of 0.10.4-1.1.1); the rows are read "
            f"from its folder. A 1.x server would answer with those of {row.segment_id}"
        )
        segment_id = row.file_id
    else:
        found = "is not there" if meant is None else f"holds {meant} bytes, not the row's {row.file_size}"
        message = f"the catalog row names file {row.file_id}, whose folder {found}; the rows of {row.segment_id} are taken"
        segment_id = row.segment_id
    findings.warning("row-id-race", f"{table.table_id}/{row.segment_id}", message, rows)
    return Choice(table.table_id, segment_id, FileType(row.file_type).name, row)


def _payload_bytes(table_id: str, segment_id: str, disk: Disk) -> int | None:
    """Bytes of vectors and ids in a segment folder, None when it has no such files: what `TableFiles.file_size` counts."""
    try:
        folder = disk.folder(table_id, segment_id)
        if not folder or not folder.raw or not folder.ids:
            return None
        return sum(read_header(folder.path / names[0]).bytes for names in (folder.raw, folder.ids))
    except DamageError:
        return None


def _find_orphans(catalog: Catalog, live: Iterable[LiveCollection], disk: Disk, leftovers: list[Leftover]) -> None:
    """Folders that no catalog row speaks of (§11.4)."""
    known: dict[str, set[str]] = defaultdict(set)
    for row in catalog.files:
        known[row.table_id].add(row.segment_id)
    for choice in (c for collection in live for p in collection.partitions for c in p.choices):
        known[choice.table_id].add(choice.segment_id)
    tables = {t.table_id: t for t in catalog.tables}
    for table_id in disk.tables():
        reason = "no catalog row speaks of it" if table_id in tables else "its collection is not in the catalog"
        for segment_id in sorted(set(disk.segments(table_id)) - known[table_id]):
            leftovers.append(Leftover("orphans", table_id, segment_id, reason))


# States that only a MySQL catalog can be in ------------------------------------------------------------------------------


def resolve_half_steps(
    table: TableRow,
    segments: list[Segment],
    created_on: dict[str, int],
    unfinished: Sequence[str],
    disk: Disk,
    schema: Schema,
    findings: Findings,
) -> list[Segment]:
    """Ends merges and compactions that a crash stopped between two statements (§3.4, second table).

    A complete merge target whose rows are not all in live segments has lost its sources: it is taken, and the live segments
    that it holds are left out. Of a compacted segment and its source, both live, the newer one is taken.
    """
    segments = _end_compactions(table, segments, created_on, findings)
    for segment_id in unfinished:
        try:
            folder = disk.folder(table.table_id, segment_id)
        except DamageError:
            continue
        if not folder or not folder.raw or not folder.ids:
            continue
        target, notes = open_segment(folder, segment_id, schema, state=FileType.NEW_MERGE.name)
        if target is None or notes or not target.rows:
            continue
        merged = hashes_of(target.batches())
        held: dict[str, Hashes] = {s.id: hashes_of(s.batches()) for s in segments}
        if all_in(merged, held.values()):
            continue
        sources = [s.id for s in segments if s.rows and contains(merged, held[s.id])]
        segments = [s for s in segments if s.id not in sources] + [target]
        findings.warning(
            "merge-half-done",
            f"{table.table_id}/{segment_id}",
            "a crash came between the statements that end a merge; the merged segment is complete and is taken. "
            "A 1.x server would delete it and lose its rows",
            target.rows,
        )
    return segments


def drop_contained(table: TableRow, segments: list[Segment], findings: Findings) -> list[Segment]:
    """Without a catalog: leaves out segments whose live rows a newer one stores, for these are sources of a merge."""
    if len(segments) < 2:
        return segments
    order = sorted(segments, key=lambda s: (len(s.id), s.id))
    stored = [np.sort(hashes_of(replace(s, deleted_path=None, deleted=0).batches())) for s in order]
    live = [hashes_of(s.batches()) for s in order]
    kept = []
    for i, segment in enumerate(order):
        newer = next((k for k in range(i + 1, len(order)) if len(live[i]) and _holds(stored[k], live[i])), None)
        if newer is None:
            kept.append(segment)
            continue
        findings.warning(
            "segment-contained",
            f"{table.table_id}/{segment.id}",
            f"all of its rows are in the newer segment {order[newer].id} as well; it is taken for the source of a merge",
            segment.rows,
        )
    return kept


def _holds(ordered: Hashes, part: Hashes) -> bool:
    """Whether `ordered` holds all of `part`, which has one row at least."""
    return bool(among(part[:1], ordered)[0]) and contains(ordered, part, is_sorted=True)


def all_in(part: Hashes, wholes: Iterable[Hashes]) -> bool:
    """Whether `part` is contained in the union of `wholes`, as multisets."""
    parts = list(wholes)
    return bool(parts) and contains(np.concatenate(parts), part)


def _end_compactions(table: TableRow, segments: list[Segment], created_on: dict[str, int], findings: Findings) -> list[Segment]:
    """Leaves out the sources of finished compactions: a newer segment stores all rows that are live in one, and no others than
    it stored. Rows deleted between the two statements are deleted in the source alone, or in both."""
    hashed: dict[str, Hashes] = {}

    def stored(s: Segment) -> Hashes:
        if s.id not in hashed:
            hashed[s.id] = hashes_of(replace(s, deleted_path=None, deleted=0).batches())
        return hashed[s.id]

    obsolete: set[str] = set()
    for old in segments:
        if not old.rows or old.deleted / old.stored < _COMPACT_RATIO:
            continue
        for new in segments:
            newer = created_on.get(new.id, 0) > created_on.get(old.id, 0)
            if not newer or not old.rows <= new.stored < old.stored:
                continue
            if contains(stored(old), stored(new)) and contains(stored(new), hashes_of(old.batches())):
                obsolete.add(old.id)
                findings.warning(
                    "compaction-half-done",
                    f"{table.table_id}/{old.id}",
                    f"a crash left it beside its compacted form {new.id}; its rows are taken once, from the newer one",
                    old.rows,
                )
                break
    return [s for s in segments if s.id not in obsolete]
