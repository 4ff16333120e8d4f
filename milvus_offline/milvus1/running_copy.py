"""A copy that was taken while the server ran: its catalog and its folders are of two moments, with merges between them.

Either the catalog is the newer one: it lists a merged segment whose folder is not here, but the folders of the segments that it
was merged from are, put aside for deletion. Or the folders are: the segments that the catalog lists were merged and removed
before they were copied, and the merged one is here without a catalog row. Each row is then read once, from the segments that
are here, if the numbers of rows leave no doubt (FORMAT §3.3): a merge writes exactly the live rows of its sources, and puts
these aside in the transaction that makes its result live, so no source's `updated_time` is before the result's `created_on`.

A healthy server at rest never has a live segment without a folder, so nothing here looks at the store of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ..errors import DamageError
from ..findings import Findings
from ..model import Finding, Schema, Severity
from .catalog.rows import Catalog, FileRow, TableRow
from .copies import Contents, all_in, holds, newest_of
from .disk import Disk
from .layout import ID, FileType
from .live import Choice, LiveSet
from .segment.files import Segment
from .segment.opening import open_segment

_MOST_CANDIDATES = 12
"""Of more unknown segments no subset is sought: all must be the merged ones."""

_TRANSACTION = 1000
"""Microseconds within which the statements of one transaction follow each other: 60 at most in real catalogs."""

Missing = tuple[Choice, Finding]
"""A live segment of which nothing can be read, and the error that says so."""


@dataclass(frozen=True)
class _Parts:
    """Segments that hold the rows of another one, and how many rows too many: those that were deleted in it later."""

    segments: tuple[Segment, ...]
    surplus: int = 0

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.segments)


class RunningCopy:
    """One table whose catalog lists live segments that are not here."""

    def __init__(self, table: TableRow, schema: Schema, catalog: Catalog, live: LiveSet, disk: Disk) -> None:
        self.table = table
        self.schema = schema
        self.disk = disk
        self.leftovers = [x for x in live.leftovers if x.table_id == table.table_id]
        rows = (r for r in catalog.files if r.table_id == table.table_id and r.file_id == r.segment_id)
        put_aside = [r for r in rows if r.file_type == FileType.TO_DELETE]
        self.put_aside = sorted(put_aside, key=lambda r: (r.updated_time, r.id))

    def stand_ins(self, missing: Sequence[Missing], segments: Sequence[Segment], notes: Findings) -> list[Segment]:
        """`segments`, which are here, and for the `missing` ones those that hold their rows; errors where there are none."""
        result = list(segments)
        left: list[Missing] = []
        used: set[str] = set()
        for choice, finding in missing:
            parts = self._sources(choice.row)
            ids = {s.id for s in parts.segments} if parts else set()
            if parts is None or ids & used:
                left.append((choice, finding))
                continue
            used |= ids
            result += parts.segments
            surplus = parts.surplus + max(0, parts.rows - parts.surplus - choice.row.row_count)
            is_there = self.disk.places(choice.table_id, choice.segment_id)  # but may not be read, or is a link to nowhere
            why = f"; {finding.message}" if is_there else ": the copy was taken while the server ran"
            doubt = f". {surplus} of them were deleted later and come back: nothing says which" if surplus else ""
            notes.warning(
                "copied-while-running",
                finding.where,
                f"nothing of this segment can be read, but the segments that the server merged into it are here "
                f"({', '.join(s.id for s in parts.segments)}){why}. Their rows are read in its place{doubt}",
                parts.rows,
            )
        if left:
            result, left = self._merged(left, result, notes)
        for _, finding in left:
            notes.append(replace(finding, message=finding.message + self._way()))
        return result

    # The catalog is the newer one ----------------------------------------------------------------------------------------

    def _sources(self, row: FileRow) -> _Parts | None:
        """The segments that were merged into the one of `row`: the first ones put aside after it was begun, as many as have
        just its rows. A source that is not here either is looked for in the same way. None when the numbers do not agree."""
        wanted = self._stored(row)
        found: list[Segment] = []
        surplus = total = 0
        last = None
        for source in self.put_aside:
            if not source.created_on < row.created_on <= source.updated_time <= row.updated_time:
                continue
            if total >= wanted and last is not None and source.updated_time - last > _TRANSACTION:
                break
            last = source.updated_time
            segment = self._open(source.segment_id, "to-delete")
            parts = _Parts((segment,)) if segment is not None else self._sources(source)
            if parts is None:
                return None
            rows = parts.rows if segment is not None else source.row_count
            surplus += parts.rows - rows
            total += rows
            found += parts.segments
        return _Parts(tuple(found), surplus) if found and total == wanted and surplus >= 0 else None

    def _stored(self, row: FileRow) -> int:
        """How many rows a raw file has stored (§2.2)."""
        stored, rest = divmod(row.file_size, self.schema.row_bytes + ID.itemsize)
        return stored if stored and not rest and not self.schema.attributes else row.row_count

    # The folders are the newer ones -----------------------------------------------------------------------------------------

    def _merged(
        self, missing: Sequence[Missing], segments: list[Segment], notes: Findings
    ) -> tuple[list[Segment], list[Missing]]:
        """The same with merged segments that the catalog does not know, in place of the missing ones and of those among
        `segments` that they hold, if these are the only ones with as many rows."""
        first = min(c.row.created_on for c, _ in missing)
        contents = Contents()
        unknown = [s for s in self._unknown() if int(s.id) // 1000 > first and s.rows]
        unknown = [s for s in unknown if not all_in(contents.live(s), map(contents.live, segments))]
        newest, _ = newest_of(unknown, contents)
        held = {s.id: [o for o in segments if holds(contents.stored(s), contents.live(o))] for s in newest}
        gained = {s.id: s.stored - sum(o.rows for o in held[s.id]) for s in newest}
        wanted = sum(c.row.row_count for c, _ in missing)
        sizes = range(1, len(newest) + 1) if len(newest) <= _MOST_CANDIDATES else range(len(newest), len(newest) + 1)
        fitting = [c for n in sizes for c in combinations(newest, n) if sum(gained[s.id] for s in c) == wanted]
        if len(fitting) != 1:
            return segments, list(missing)
        replaced = {o.id for s in fitting[0] for o in held[s.id]}
        notes.warning(
            "copied-while-running",
            self.table.table_id,
            f"the catalog lists {', '.join(c.segment_id for c, _ in missing)}, which are not here, and does not know "
            f"{', '.join(s.id for s in fitting[0])}, which hold just as many rows: they were merged while this copy was taken. "
            "The rows of the merged segments are read",
            sum(s.rows for s in fitting[0]),
        )
        return [s for s in segments if s.id not in replaced] + list(fitting[0]), []

    def _unknown(self) -> list[Segment]:
        wanted = [x for x in self.leftovers if (x.kind == "orphans" or x.is_merge) and x.segment_id.isdecimal()]
        opened = (self._open(x.segment_id, FileType.NEW_MERGE.name) for x in wanted)
        return [s for s in opened if s is not None]

    def _open(self, segment_id: str, state: str) -> Segment | None:
        """A segment that is whole."""
        folder = self.disk.complete(self.table.table_id, segment_id)
        if folder is None:
            return None
        try:
            segment, found = open_segment(folder, segment_id, self.schema, state=state)
        except DamageError:
            return None
        return segment if all(f.severity is Severity.INFO for f in found) else None

    def _way(self) -> str:
        """Where the rows of the missing segments may be."""
        rows: dict[str, int] = {}
        for x in self.leftovers:
            rows[x.kind] = rows.get(x.kind, 0) + self.disk.rows(x.table_id, x.segment_id)
        kinds = [k for k, n in rows.items() if n]
        if not kinds:
            return ""
        options = " ".join(f"--salvage {k}" for k in kinds)
        return (
            f". {sum(rows.values())} rows of this table are in segments that are not live, and these may be among them if the "
            f"copy was taken while the server ran: {options} exports them apart, each once"
        )
