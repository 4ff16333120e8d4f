"""Opening the segments that the catalog calls live: what of them is here, what stands in for the rest (FORMAT §3.4, §4.7)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

from .. import fileio
from ..errors import DamageError
from ..findings import Findings
from ..model import Finding, Schema, Severity
from .catalog.rows import Catalog, TableRow, version_key
from .disk import Disk
from .layout import TABLES, FileType
from .live import Choice, Leftover, LiveSet
from .segment.deletes import NO_WITNESS, OF_DELETES, Witness, exchanged
from .segment.files import Segment
from .segment.opening import Folder, open_segment
from .segment.plain import PlainTable


@dataclass(eq=False)
class Choices:
    """Opens the live segments of one table after the other. What a person should know is in `findings` and `damage` then."""

    catalog: Catalog
    disk: Disk
    live: LiveSet
    findings: Findings = field(default_factory=Findings)
    damage: dict[str, Findings] = field(default_factory=dict)
    """By table_id: the errors about its segments, not in `findings`. Records of the log may still hold what they have lost."""
    opened: set[tuple[str, str]] = field(default_factory=set)
    """Ids of the table and the segment, of all that were opened."""

    def look_for_tables(self) -> None:
        """Says once when no folder `tables/` is there, in place of an error for each segment.

        A server makes it with the first collection (§1.2) and never removes it."""
        choices = [c for collection in self.live.collections for p in collection.partitions for c in p.choices]
        if not choices or self.catalog.from_files or any(self.disk.has_tables(root) for root in self.disk.roots):
            return
        folder = self.disk.roots[0] / TABLES
        why = fileio.missing_link(folder) or "the folder is not there; it may not have been copied"
        rows = sum(c.row.known_rows or 0 for c in choices)
        text = f"{why}. It held the rows of all {len(choices)} segments that the catalog lists"
        self.findings.error("tables-missing", str(folder), text, rows)

    def open(self, table: TableRow, choices: Sequence[Choice], schema: Schema) -> list[Segment]:
        """The table's live segments in the order of the catalog, each row in one of them."""
        notes = Findings()
        segments = self._open_table(table, choices, schema, notes)
        if lost := Findings(f for f in notes if f.severity is Severity.ERROR):
            self.damage[table.table_id] = lost
        self.findings += [f for f in notes if f.severity is not Severity.ERROR]
        self.opened.update((table.table_id, s.id) for s in segments)
        return segments

    def exchanged(self, segments: dict[str, list[Segment]]) -> dict[str, list[Segment]]:
        """The segments of all tables; where two lists of deletions have changed places, each with its own."""
        others = [s for found in segments.values() for s in found if s.deletes is not None]
        if not others:
            return segments
        rows = (c.row for collection in self.live.collections for p in collection.partitions for c in p.choices)
        counts = {(r.table_id, r.segment_id): r.row_count for r in rows if r.file_id == r.segment_id}
        for table_id, found in segments.items():
            for i, segment in enumerate(found):
                count = counts.get((table_id, segment.id))
                if count is not None and (own := exchanged(segment, count, others)) is not None:
                    found[i] = own[0]
                    self.findings.append(own[1])
        return segments

    def leftovers(self) -> list[Leftover]:
        """Those of the live set that none of its segments needed: a merge that was not ended may have its sources' rows."""
        return [x for x in self.live.leftovers if (x.table_id, x.segment_id) not in self.opened]

    def _open_table(self, table: TableRow, choices: Sequence[Choice], schema: Schema, notes: Findings) -> list[Segment]:
        segments: list[Segment] = []
        missing: list[tuple[Choice, Finding]] = []
        plain = self._plain(table, schema)
        raw = [_is_raw(c) for c in choices]
        with plain.helped((c.segment_id, c.row.row_count, c.row.file_size) for c in compress(choices, raw)):
            for choice, is_raw in zip(choices, raw, strict=True):
                segment = None
                if is_raw:
                    segment = plain.open(choice.segment_id, choice.state, choice.row.row_count, choice.row.file_size)
                if segment is not None:
                    segments.append(segment)
                    continue
                before = len(notes)
                found = self._open(choice, table, schema, notes)
                if isinstance(found, Finding):
                    missing.append((choice, found))
                    continue
                if all(f.severity is Severity.INFO or f.code in OF_DELETES for f in notes[before:]):
                    _compare_size(found, choice, table, notes)
                segments.append(found)
        return self._once_each(segments, missing, choices, table, schema, notes)

    def _once_each(  # many: what was opened, what was not, and all that tells which of the two counts
        self,
        segments: list[Segment],
        missing: list[tuple[Choice, Finding]],
        choices: Sequence[Choice],
        table: TableRow,
        schema: Schema,
        notes: Findings,
    ) -> list[Segment]:
        """The segments without what is there twice, and with what stands in for missing ones."""
        if not missing and not self.catalog.from_files and not self.catalog.statements_commit_alone:
            return segments
        from .copies import Contents, drop_contained, end_compactions, end_merges

        contents = Contents()

        def where(segment: Segment) -> str:
            return f"{table.table_id}/{segment.id}"

        if self.catalog.from_files:
            segments = drop_contained(segments, contents, where, notes)
            notes += self._not_contained([f for _, f in missing], segments, table)
            return segments
        if self.catalog.statements_commit_alone:
            created_on = {c.segment_id: c.row.created_on for c in choices}
            segments = end_compactions(segments, created_on, contents, where, notes)
            merges = [x.segment_id for x in self.live.leftovers if x.is_merge and x.table_id == table.table_id]
            segments = end_merges(segments, self._open_merges(table, merges, schema), contents, where, notes)
        if missing:
            from .running_copy import RunningCopy

            running = RunningCopy(table, schema, self.catalog, self.live, self.disk)
            segments = running.stand_ins(missing, segments, notes)
        return segments

    def _open(self, choice: Choice, table: TableRow, schema: Schema, notes: Findings) -> Segment | Finding:
        """The segment, or why none of its rows can be read."""
        where = f"{choice.table_id}/{choice.segment_id}"
        hint = choice.row.known_rows
        try:
            folder = self.disk.folder(choice.table_id, choice.segment_id)
            if folder is None:
                expected = self.disk.roots[0] / TABLES / choice.table_id / choice.segment_id
                why = fileio.missing_link(expected) or f"the folder {expected} is not there"
                text = f"the catalog lists this segment, but {why}; its rows are lost{self._elsewhere(choice)}"
                return Finding(Severity.ERROR, "segment-missing", where, text, hint)
            indexes = [p for i in choice.index_ids if (p := self.disk.index_file(choice.table_id, choice.segment_id, i))]
            segment, found = open_segment(
                folder,
                choice.segment_id,
                schema,
                state=choice.state,
                indexes=indexes,
                file_size=choice.row.file_size,
                witness=self._witness(choice, table, schema),
            )
        except DamageError as e:
            return Finding(Severity.ERROR, "segment-unreadable", where, str(e), hint)
        if segment is not None:
            notes += found
            return segment
        worst = next(f for f in found if f.severity is Severity.ERROR)
        notes += [f for f in found if f is not worst]
        return worst

    def _plain(self, table: TableRow, schema: Schema) -> PlainTable:
        """For the segments of which there is nothing to say: all else of a table that these ask for is here."""
        there = self.disk.local_folder(table.table_id) if self._counts_rows(table, schema) else None
        return PlainTable(*(there or ("", frozenset())), schema)

    def _counts_rows(self, table: TableRow, schema: Schema) -> bool:
        """Whether `row_count` counts live rows and `file_size` vectors and ids: in segments of floats or bits since 0.8 (§2.2,
        §7.6). A meta.json tells no version; there are none of before 0.9."""
        recent = self.catalog.kind == "meta.json" or version_key(table.version) >= (0, 8)
        return not self.catalog.from_files and not schema.attributes and recent

    def _witness(self, choice: Choice, table: TableRow, schema: Schema) -> Witness:
        """What the catalog knows of the segment's deletions."""
        if not self._counts_rows(table, schema) or not _is_raw(choice):
            return NO_WITNESS
        return Witness(choice.row.row_count, version_key(table.version) < (1, 1, 1))

    def _elsewhere(self, choice: Choice) -> str:
        """Segment numbers are never given twice (§1.2): a folder of this one below another table is the segment's."""
        place = next((t for t in self.disk.tables() if choice.segment_id in self.disk.segments(t)), None)
        if place is None:
            return ""
        return (
            f". But its folder lies in tables/{place}: one of the two has the wrong table: the folder was moved, or the "
            "catalog is damaged"
        )

    def _not_contained(self, lost: Sequence[Finding], segments: Sequence[Segment], table: TableRow) -> Iterator[Finding]:
        """Without a catalog: which of the segments that have lost their vectors are a loss, with their live rows. One whose ids
        all are in a newer segment was merged into it."""
        from .copies import by_ids, ids_alone, newest_of

        by_id = {f.where.rsplit("/", 1)[-1]: f for f in lost}
        bare = {s: ids_alone(self._folder(table.table_id, s), s) for s in by_id}
        _, dropped = newest_of([*segments, *(s for s in bare.values() if s is not None)], by_ids())
        newer = {old.id: new.id for old, new in dropped}
        for segment_id, finding in by_id.items():
            segment = bare[segment_id]
            if segment_id in newer:
                text = (
                    f"its vectors are lost, but all of its ids are in the newer segment {newer[segment_id]}: it counts as "
                    "the source of a merge, and nothing is missing"
                )
                yield Finding(Severity.WARNING, "segment-contained", finding.where, text, segment.rows if segment else None)
            else:
                yield replace(finding, rows=segment.rows) if segment is not None else finding

    def _folder(self, table_id: str, segment_id: str) -> Folder | None:
        with contextlib.suppress(DamageError):
            return self.disk.folder(table_id, segment_id)
        return None

    def _open_merges(self, table: TableRow, merges: Iterable[str], schema: Schema) -> Iterator[Segment]:
        """The complete ones of the segments that merges were writing."""
        for segment_id in merges:
            with contextlib.suppress(DamageError):
                folder = self.disk.folder(table.table_id, segment_id)
                if folder and folder.raw and folder.ids:
                    target, found = open_segment(folder, segment_id, schema, state=FileType.NEW_MERGE.name)
                    if target is not None and not found:
                        yield target


def _is_raw(choice: Choice) -> bool:
    """Whether the catalog row is that of the folder's own raw file."""
    row = choice.row
    return row.file_id == row.segment_id == choice.segment_id and row.file_type != FileType.INDEX


def _compare_size(segment: Segment, choice: Choice, table: TableRow, findings: Findings) -> None:
    """`file_size` of a raw file is the payload of `.rv` and `.uid` since 0.8 (§2.2)."""
    row = choice.row
    if row.file_id != segment.id or not row.file_size or segment.schema.attributes or version_key(table.version) < (0, 8):
        return
    if row.file_size != segment.bytes:
        findings.error(
            "size-differs",
            f"{choice.table_id}/{choice.segment_id}",
            f"the catalog says {row.file_size} bytes of vectors and ids, the files hold {segment.bytes}: catalog and files "
            "are of different age, or a file was cut",
            segment.rows,
        )
