"""What the folders hold and the catalog does not explain, and the other way round: is this the catalog of these files?

A catalog can be older than the files, new and empty, a leftover of a server that moved to MySQL, or have lost rows. Compared
in both directions:

- rows of `TableFiles`, of live segments or of one in memory, whose table is not in `Tables`. No server leaves them: it puts all
  of a dropped table's files aside before it removes the table's row (§3.3, §3.5).
- folders of tables that are not in `Tables`, with complete segments that no row of `TableFiles` lists. A dropped collection's
  rows stay, as TO_DELETE, as long as its folders (§3.5); without rows a crash in the middle of a flush or a merge leaves one
  segment, and then the collection must have been dropped. In no real store seen is there such a folder.
- records in the log, when the catalog holds no row of a table or file at all. A healthy server leaves that where everything was
  dropped; the folder of each collection goes within the moment in which its rows go, and `tables/` stays (§3.5). So where a
  folder of a logged name is still here, or `tables/` never was, the catalog is new and empty.
- complete segments of live tables that no row lists. A crash leaves these too, but their rows are then in other segments or in
  the log (§3.2, §11.4). So they count if they are newer than all that the catalog knows and have rows of their own, or if not
  one of their rows is anywhere else, or if they were live for sure (deletes were applied to them, or an index was built) and
  have rows of their own. Segments older than their table are of a namesake that was dropped (§16).

What a crash leaves looks the same only where it came into the middle of a flush and, after the restart, every row of that
flush was deleted, or its collection dropped, before the next one. Nothing in the files tells the two apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import DamageError
from ..findings import Findings
from ..model import Finding, Piece, Schema, Severity
from ..names import printable
from ..text import count
from .catalog.rows import Catalog, TableRow
from .copies import among, by_ids, hashes_among, hashes_of, ids_alone, live_ids, newest_of
from .disk import Disk
from .layout import ID, FileType
from .live import LiveSet
from .segment.files import ArrayInFile, Segment, read_columns
from .segment.opening import open_segment

if TYPE_CHECKING:
    from .wal.outcome import LogSalvage

Ids = npt.NDArray[np.int64]
_CHUNK_BYTES = 1 << 20
_NAMED = 5
FOREIGN = ("table-missing", "folder-unknown", "log-unknown", "catalog-older", "segment-unknown")
"""Codes of the findings that speak against the catalog as a whole."""


def headline(findings: Iterable[Finding]) -> str | None:
    """One sentence for the first line of a report when the catalog is not that of these files, or not all of it."""
    found = [f for f in findings if f.code in FOREIGN and f.severity is not Severity.INFO]
    if not found:
        return None
    rows = count(sum(f.rows or 0 for f in found), "row")
    folders = len({f.where.split("/")[0] for f in found if f.code != "log-unknown"})
    logged = any(f.code == "log-unknown" for f in found)
    places = [f"{count(folders, 'folder')} below tables/"] * (folders > 0) + ["the log"] * logged
    apart = ["orphans"] * (folders > 0) + ["dropped"] * logged
    return (
        f"This catalog is not that of these files, or not all of it: {rows} in {' and in '.join(places)} are not in it. Name "
        "the right one with --catalog (mysql://user@host/database, a mysqldump file, a meta.sqlite), read the files without "
        f"one with --no-catalog, or export these rows apart with --salvage {','.join(apart)}."
    )


@dataclass(eq=False)
class Unexplained:
    """Compares one catalog with the folders. `segments` are the live ones, `logged` pieces of the log, by table_id."""

    catalog: Catalog
    live: LiveSet
    disk: Disk
    schemas: Mapping[str, Schema]
    segments: Mapping[str, Sequence[Segment]]
    logged: Mapping[str, Sequence[Piece]]
    salvage: Sequence[LogSalvage] = ()
    """What the log holds beside the live rows."""

    def compare(self, findings: Findings) -> None:
        """Adds what contradicts to `findings`; reads ids of tables that have unknown segments, and few vectors."""
        if self.catalog.from_files:
            return
        self._tables(findings)
        if not self.catalog.tables and not self.catalog.files:
            self._log(findings)
        unknown: dict[str, list[str]] = defaultdict(list)
        orphans = [x for x in self.live.leftovers if x.kind == "orphans"]
        named = {x.segment_id for x in orphans}
        rows = (r for r in self.catalog.files if r.file_type != FileType.NEW_INDEX) if orphans else ()
        named &= {x for r in rows for x in (r.segment_id, r.file_id) if x in named}
        for x in orphans:
            if x.segment_id not in named:  # of a row-id race more is said elsewhere
                unknown[x.table_id].append(x.segment_id)
        for c in self.live.collections:
            for p in c.partitions:
                if wanted := unknown.get(p.table.table_id):
                    self._segments(p.table, wanted, self.schemas[c.table.table_id], findings)

    def _tables(self, findings: Findings) -> None:
        known = {t.table_id for t in self.catalog.tables}
        listed = {(r.table_id, r.segment_id) for r in self.catalog.files if r.table_id not in known}
        for table_id, choices in self.live.unknown.items():
            rows, _ = self._rows(table_id, [c.segment_id for c in choices])
            findings.warning(
                "table-missing",
                table_id,
                f"the catalog lists {count(len(choices), 'live segment')} of this table, but no collection or partition of "
                "this name: it has lost a row. --salvage orphans exports the rows apart",
                rows,
            )
        in_memory = {r.table_id for r in self.catalog.files if r.file_type == FileType.NEW}
        for table_id in sorted(in_memory - known - self.live.unknown.keys()):
            findings.warning(
                "table-missing",
                table_id,
                "the catalog knows that rows of this table were not flushed, but no collection or partition of this name: it "
                "has lost a row. --salvage dropped exports what the write-ahead log has of it",
            )
        self._owners(known, findings)
        for table_id in self.disk.tables():
            if table_id in known:
                continue
            rows, segments = self._rows(table_id, [s for s in self.disk.segments(table_id) if (table_id, s) not in listed])
            if rows:
                findings.warning(
                    "folder-unknown",
                    table_id,
                    f"the folder holds {count(segments, 'segment')} of a collection or partition that this catalog does not "
                    "know and has never dropped: it may be the catalog of another store, or of another time. --catalog names "
                    "another one, --no-catalog reads the files without, --salvage orphans exports the rows",
                    rows,
                )

    def _log(self, findings: Findings) -> None:
        """Records of collections that a catalog without a single row does not know: they were dropped, or it is a new one."""
        logged = [x for x in self.salvage if x.kind == "dropped"]
        if not logged:
            return
        folders, why = set(self.disk.tables()), "their folders are still here, which a drop removes"
        if not any(map(self.disk.has_tables, self.disk.roots)) and not fileio.is_remote(self.disk.roots[0]):
            folders, why = {x.collection for x in logged}, "it never had one, for there is no folder tables/"
        there = [x for x in logged if x.collection in folders]
        names = sorted({x.collection for x in there or logged})
        named = f"{', '.join(map(printable, names[:_NAMED]))}{', …' * (len(names) > _NAMED)}"
        text = f"the catalog knows no collection at all, and the log holds rows of {count(len(names), 'collection')}: {named}. "
        text += f"The catalog is new and empty: {why}" if there else "Nothing else is left of them, as after a drop"
        severity = Severity.WARNING if there else Severity.INFO
        rows = sum(x.rows.rows for x in there or logged)
        findings.add(severity, "log-unknown", "wal", f"{text}. --salvage dropped exports the rows apart", rows)

    def _owners(self, known: set[str], findings: Findings) -> None:
        """Live partitions of a collection that is not in the catalog, but whose folder is there: a drop removes one without
        files (§3.5), so the catalog has lost the collection. Without the folder a crash came into a drop (§3.4)."""
        lost = set(self.disk.tables()) - known - {r.table_id for r in self.catalog.files}
        for t in self.catalog.tables:
            if t.is_dropped or not t.owner_table or t.owner_table not in lost:
                continue
            rows, segments = self._rows(t.table_id, self.disk.segments(t.table_id))
            if rows:
                findings.warning(
                    "table-missing",
                    t.table_id,
                    f"{count(segments, 'segment')} of a partition of {printable(t.owner_table)!r}, whose folder is here, but "
                    "which is not in the catalog: it has lost a row. --salvage dropped exports the rows apart",
                    rows,
                )

    def _rows(self, table_id: str, segment_ids: Iterable[str]) -> tuple[int, int]:
        """Rows in these segments, and in how many of them: but for deleted rows, and for segments that a newer one holds, by
        their ids. Only complete segments count."""
        segments = [s for x in segment_ids if (s := ids_alone(self.disk.complete(table_id, x), x)) is not None]
        newest, _ = newest_of(segments, by_ids())
        return sum(s.rows for s in newest), sum(1 for s in newest if s.rows)

    @cached_property
    def _newest(self) -> int:
        """The newest segment that the catalog knows."""
        return max((int(r.segment_id) for r in self.catalog.files if r.segment_id.isdecimal()), default=0)

    @cached_property
    def _listed(self) -> set[str]:
        """Segments that any row of the catalog names, one of an index too: one that was compacted away while its index was
        built has left its deleted rows behind."""
        return {r.segment_id for r in self.catalog.files}

    def _segments(self, table: TableRow, unknown: Sequence[str], schema: Schema, findings: Findings) -> None:
        opened = [s for x in unknown if (s := self._open(table, x, schema)) is not None]
        if not opened:
            return
        ids = {s.id: np.concatenate([np.empty(0, ID), *_ids(s)]) for s in opened}
        wanted = np.unique(np.concatenate(list(ids.values())))
        held, near = self._held(table.table_id, wanted)
        hashes = hashes_among(map(_with_deleted, near), wanted[held])
        for s in opened:
            there = among(hashes_of(s.batches()), hashes) if len(hashes) else np.zeros(s.rows, np.bool_)
            where = f"{table.table_id}/{s.id}"
            newer = int(s.id) > self._newest
            if there.all():
                continue
            if newer:
                findings.warning(
                    "catalog-older",
                    where,
                    "the segment is newer than all that the catalog knows, and its rows are in no live segment: the catalog "
                    "may be older than the files (its -wal may be missing). --salvage orphans exports them",
                    s.rows,
                )
            elif not there.any() or (s.id not in self._listed and self._was_live(table.table_id, s)):
                findings.warning(
                    "segment-unknown",
                    where,
                    "the catalog lists all other segments of this time, but not this one, and its rows are nowhere else: the "
                    "catalog has lost a row, or is not that of these files. --salvage orphans exports them",
                    s.rows,
                )

    def _open(self, table: TableRow, segment_id: str, schema: Schema) -> Segment | None:
        if not segment_id.isdecimal() or int(segment_id) // 1000 < table.created_on:
            return None
        folder = self.disk.complete(table.table_id, segment_id)
        try:
            segment, found = open_segment(folder, segment_id, schema) if folder else (None, Findings())
        except DamageError:
            return None
        return segment if segment is not None and segment.rows and all(f.severity is Severity.INFO for f in found) else None

    def _held(self, table_id: str, wanted: Ids) -> tuple[npt.NDArray[np.bool_], list[Piece]]:
        """Which of the ids `wanted` (sorted) are in a live segment, deleted or not, or in the log; and in which pieces."""
        held = np.zeros(len(wanted), np.bool_)
        near: list[Piece] = []
        for piece in (*self.segments[table_id], *self.logged.get(table_id, ())):
            before = len(near)
            for ids in _ids(piece):
                hits = among(ids, wanted)
                if hits.any():
                    held[np.searchsorted(wanted, ids[hits])] = True
                    near[before:] = [piece]
        return held, near

    def _was_live(self, table_id: str, segment: Segment) -> bool:
        """Deletes are applied to live segments only, and indexes are built for these (§3.3)."""
        folder = self.disk.folder(table_id, segment.id)
        return bool(segment.deleted or (folder and any(n.isdecimal() for n in folder.others)))


def _with_deleted(piece: Piece) -> Piece:
    return piece.undeleted if isinstance(piece, Segment) and piece.deleted else piece


def _ids(piece: Piece) -> Iterator[Ids]:
    """The ids of a segment's stored rows, or of another piece's rows, in parts that are arrays of their own."""
    if isinstance(piece, Segment):
        for (ids,), _ in read_columns([ArrayInFile(piece.ids_path, ID, 1)], piece.stored, 0, _CHUNK_BYTES, None):
            yield ids[:, 0].copy()
    else:
        yield from live_ids(piece)
