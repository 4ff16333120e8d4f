"""Which segments are live: the decision table of FORMAT §3.7, the crash states of §3.4, the row-id race of §3.6.

What a catalog row says is a hint, what the folders hold is evidence; every place where the two differ becomes a finding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..findings import Findings
from ..model import DEFAULT_PARTITION, SalvageKind
from .catalog.rows import Catalog, FileRow, Generation, TableRow
from .disk import Disk
from .layout import FileType

_RAW_TYPES = frozenset({FileType.RAW, FileType.TO_INDEX, FileType.BACKUP})
_SEARCHED = {int(t): t.name for t in (FileType.RAW, FileType.TO_INDEX)}
"""Types of the raw file that a server searches when there is no index."""


class Choice(NamedTuple):
    """A segment that is live. `segment_id` names its folder; `row` is the catalog row that stands for it."""

    table_id: str
    segment_id: str
    state: str
    row: FileRow
    index_ids: tuple[str, ...] = ()


class Leftover(NamedTuple):
    """A segment folder that is not live but may hold rows."""

    kind: SalvageKind
    table_id: str
    segment_id: str
    reason: str
    is_merge: bool = False
    """Whether it was the target of a merge or compaction in progress."""


class LivePartition(NamedTuple):
    tag: str
    table: TableRow
    choices: tuple[Choice, ...]


class LiveCollection(NamedTuple):
    table: TableRow
    partitions: tuple[LivePartition, ...]


class LiveSet(NamedTuple):
    """The live collections with their segments, and what lies around beside them."""

    collections: list[LiveCollection]
    leftovers: list[Leftover]
    dropped: list[TableRow]
    findings: Findings
    unknown: dict[str, list[Choice]]
    """Live segments whose table is not in the catalog, by table_id."""
    has_unflushed: bool
    """Whether the catalog holds NEW segments: rows that were in memory and must be in the log (§3.3)."""

    @classmethod
    def empty(cls) -> LiveSet:
        """Before anything was selected."""
        return cls([], [], [], Findings(), {}, False)


def select(catalog: Catalog, disk: Disk) -> LiveSet:
    """Decides for every table and segment of the catalog whether it is live (FORMAT §3.7, §6 steps 1 and 2)."""
    findings = Findings()
    leftovers: list[Leftover] = []
    alive = [t for t in catalog.tables if not t.is_dropped]
    owners = {t.table_id: t for t in alive if not t.owner_table}
    partitions_of: dict[str, list[TableRow]] = defaultdict(list)
    for table in alive:
        partitions_of[table.owner_table].append(table)
    files: dict[str, list[FileRow]] = defaultdict(list)
    for row in catalog.files:
        files[row.table_id].append(row)

    collections = []
    dropped = [t for t in catalog.tables if t.is_dropped]
    for owner in owners.values():
        tables = [(DEFAULT_PARTITION, owner)]
        tables += [(t.partition_tag, t) for t in partitions_of[owner.table_id]]
        partitions = []
        for tag, table in tables:
            if catalog.generation is Generation.V05:
                choices = _select_v05(table, files[table.table_id], leftovers)
            else:
                choices = _select_table(table.table_id, files[table.table_id], disk, findings, leftovers)
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
    unknown: dict[str, list[Choice]] = {}
    if catalog.generation is Generation.SEGMENTED:
        unknown = _select_unknown(catalog, files, disk, leftovers)
        _find_orphans(catalog, collections, disk, leftovers)
    return LiveSet(
        collections=collections,
        leftovers=leftovers,
        dropped=dropped,
        findings=findings,
        unknown=unknown,
        has_unflushed=any(r.file_type == FileType.NEW for t in alive for r in files[t.table_id]),
    )


def _select_unknown(
    catalog: Catalog, files: Mapping[str, list[FileRow]], disk: Disk, leftovers: list[Leftover]
) -> dict[str, list[Choice]]:
    """Segments of tables that are not in the catalog: those of dropped tables wait there for their end (§3.5), live ones are of
    tables that the catalog has lost."""
    known = {t.table_id for t in catalog.tables}
    result: dict[str, list[Choice]] = {}
    for table_id in sorted(set(files) - known):
        rest: list[Leftover] = []
        choices = _select_table(table_id, files[table_id], disk, Findings(), rest)
        if choices:
            result[table_id] = choices
            reason = "the catalog lists it as live, but has lost its collection"
            leftovers += [Leftover("orphans", table_id, c.segment_id, reason) for c in choices]
        for x in rest:
            dropped = x.kind == "to-delete" and not choices
            leftovers.append(x._replace(kind="dropped", reason="its collection or partition was dropped") if dropped else x)
    return result


def _select_table(
    table_id: str, rows: Iterable[FileRow], disk: Disk, findings: Findings, leftovers: list[Leftover]
) -> list[Choice]:
    groups: dict[str, FileRow | list[FileRow]] = {}  # a list only where there are several: there may be many
    choices: list[Choice] = []
    raced: set[str] = set()
    for row in rows:
        if row.file_type in _RAW_TYPES and row.file_id != row.segment_id:
            choice = _repair_race(table_id, row, disk, findings)
            choices.append(choice)
            raced.update((choice.segment_id, row.segment_id))  # an index that was built since is of the row's own folder
            if choice.segment_id != row.segment_id:
                victim = Leftover("orphans", table_id, row.segment_id, "its catalog row was overwritten by another segment's")
                leftovers.append(victim)
        elif isinstance(before := groups.setdefault(row.segment_id, row), list):
            before.append(row)
        elif before is not row:
            groups[row.segment_id] = [before, row]
    for segment_id, group in groups.items():
        if segment_id in raced:
            continue
        of_one = group if isinstance(group, list) else [group]
        choice_or_none = _select_segment(table_id, segment_id, of_one, findings, leftovers)
        if choice_or_none:
            choices.append(choice_or_none)
    return sorted(choices, key=lambda c: c.row.id)


def _select_v05(table: TableRow, rows: Iterable[FileRow], leftovers: list[Leftover]) -> list[Choice]:
    """0.5 and 0.6 have no segments: raw files of types 1, 2 and 7 are live, index files repeat their rows (§8)."""
    choices = []
    for row in rows:
        if row.file_type in _RAW_TYPES:
            choices.append(Choice(table.table_id, row.file_id, FileType(row.file_type).name, row))
        elif row.file_type == FileType.TO_DELETE:
            leftovers.append(Leftover("to-delete", table.table_id, row.file_id, "the server had put it aside for deletion"))
    return choices


def _select_segment(
    table_id: str, segment_id: str, group: list[FileRow], findings: Findings, leftovers: list[Leftover]
) -> Choice | None:
    """The decision table of §3.7 for the rows of one segment."""
    if len(group) == 1 and group[0].file_type in _SEARCHED:
        return Choice(table_id, segment_id, _SEARCHED[group[0].file_type], group[0])
    types = {r.file_type for r in group}
    where = f"{table_id}/{segment_id}"
    indexes = tuple(r.file_id for r in group if r.file_type == FileType.INDEX)
    raw = next((r for r in group if r.file_type in _RAW_TYPES), None)
    if raw is not None:
        if raw.file_type == FileType.BACKUP and not indexes:
            findings.warning(
                "backup-without-index",
                where,
                "the segment's index is missing. A 1.x server would hide its rows from search and count; they are "
                "included here",
                raw.known_rows,
            )
        if raw.file_type != FileType.BACKUP and indexes:
            findings.info(
                "index-and-raw",
                where,
                "the catalog lists the segment and its index both as searchable; its rows are read once",
            )
        return Choice(table_id, segment_id, FileType(raw.file_type).name, raw, indexes)
    if indexes:
        row = next(r for r in group if r.file_type == FileType.INDEX)
        findings.warning("raw-row-missing", where, "the catalog lists only the index of this segment; its rows are included")
        return Choice(table_id, segment_id, FileType.INDEX.name, row, indexes)
    if FileType.NEW_MERGE in types:
        leftovers.append(Leftover("unfinished", table_id, segment_id, "a merge was writing it", is_merge=True))
    elif FileType.NEW in types:
        leftovers.append(Leftover("unfinished", table_id, segment_id, "a flush was to write it"))
    elif FileType.TO_DELETE in types:
        leftovers.append(Leftover("to-delete", table_id, segment_id, "the server had put it aside for deletion"))
    elif types == {FileType.NEW_INDEX}:  # compacted away meanwhile, or a row of the catalog is lost: see `Unexplained`
        leftovers.append(Leftover("orphans", table_id, segment_id, "the catalog lists only an index that was being built"))
    unknown = sorted(t for t in types if t not in FileType._value2member_map_)
    if unknown:
        findings.error("file-type-unknown", where, f"file_type {unknown[0]} is unknown; the segment is left out")
    return None


def _repair_race(table_id: str, row: FileRow, disk: Disk, findings: Findings) -> Choice:
    """A raw row whose file_id is another segment's: the data meant are under `file_id`, if the row's size agrees (§3.6)."""
    meant = disk.payload_bytes(table_id, row.file_id)
    if meant is not None and (meant == row.file_size or disk.payload_bytes(table_id, row.segment_id) is None):
        message = (
            f"the catalog row was overwritten by that of segment {row.file_id} (a bug of 0.10.4-1.1.1); the rows are read "
            f"from its folder. A 1.x server would answer with those of {row.segment_id}"
        )
        segment_id = row.file_id
    else:
        found = "is not there" if meant is None else f"holds {meant} bytes, not the row's {row.file_size}"
        message = f"the catalog row names file {row.file_id}, whose folder {found}; the rows of {row.segment_id} are read"
        segment_id = row.segment_id
    findings.warning("row-id-race", f"{table_id}/{row.segment_id}", message, row.known_rows)
    return Choice(table_id, segment_id, FileType(row.file_type).name, row)


def _find_orphans(catalog: Catalog, live: Iterable[LiveCollection], disk: Disk, leftovers: list[Leftover]) -> None:
    """Folders that no catalog row speaks of (§11.4)."""
    known: dict[str, set[str]] = defaultdict(set)
    for row in catalog.files:
        known[row.table_id].add(row.segment_id)
    for choice in (c for collection in live for p in collection.partitions for c in p.choices):
        known[choice.table_id].add(choice.segment_id)
    tables = {t.table_id: t for t in catalog.tables}
    for table_id in disk.tables():
        reason = "no catalog row describes it" if table_id in tables else "its collection is not in the catalog"
        for segment_id in sorted(disk.segments(table_id) - known[table_id]):
            leftovers.append(Leftover("orphans", table_id, segment_id, reason))
