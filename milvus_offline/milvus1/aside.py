"""Segments that the catalog calls put aside for deletion, and whose rows no later one has (FORMAT §3.3, §3.5).

A server puts a segment aside in the transaction that makes the segment live which it was merged or compacted into. That one
stores all rows that were live in its sources, its row in the catalog was inserted after theirs, and what is put aside first is
removed first: so where the row of a source still is, that of its result is as well. A segment of which no later one has even
half of the rows was not put aside by a server: its file_type is damaged, or the row of the merged segment is gone.

A healthy server can leave the same only where a search kept a source open while its result was merged once more and removed,
each of which takes the time after which files are removed, where most of the rows were deleted in between, and where the server
ended before the next flush, which removes the source. Dropped tables are not looked at (their files are put aside without a
merge), nor what is older than its table (files of a dropped namesake), nor versions before 0.8, which could drop by date.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..findings import Findings
from ..model import Piece
from .catalog.rows import Catalog, FileRow, TableRow, version_key
from .copies import among, ids_alone, live_ids
from .disk import Disk
from .layout import FileType
from .segment.files import Segment

_RESULTS = (FileType.RAW, FileType.TO_INDEX, FileType.INDEX, FileType.BACKUP, FileType.TO_DELETE)
"""States of a merged segment: live, or merged once more."""
_NEAR = 100
"""So many rows before the moment at which a source was put aside, and after it, one is that of its result."""


@dataclass(eq=False)
class PutAside:
    """Looks at the tables of one catalog. `segments` are the live ones, `logged` pieces of the log, by table_id."""

    catalog: Catalog
    disk: Disk
    segments: Mapping[str, Sequence[Segment]]
    logged: Mapping[str, Sequence[Piece]]

    def look(self, tables: Sequence[TableRow], findings: Findings) -> None:
        """Adds what no later segment explains; reads the ids of segments that were put aside, and of as many later ones."""
        rows: dict[str, list[FileRow]] = {t.table_id: [] for t in tables if version_key(t.version) >= (0, 8)}
        for row in self.catalog.files:
            if row.table_id in rows and row.file_type in _RESULTS and row.file_id == row.segment_id:
                rows[row.table_id].append(row)
        for table in tables:
            own = sorted(rows.get(table.table_id, ()), key=lambda r: r.id)
            begun = [r.created_on for r in own]
            strays = {s.id: s for s in self.segments.get(table.table_id, ())}
            for row in own:
                strays.pop(row.segment_id, None)
            for number, row in enumerate(own):
                if row.file_type == FileType.TO_DELETE:
                    near = bisect(begun, row.updated_time)
                    later = own[max(number + 1, near - _NEAR) : near][::-1] + own[max(number + 1, near) : near + _NEAR]
                    self._segment(table, row, list(strays.values()), later, findings)

    def _segment(
        self, table: TableRow, row: FileRow, strays: Sequence[Segment], later: Sequence[FileRow], findings: Findings
    ) -> None:
        """One that was put aside; `strays` are live segments without a row of their own, as after the race that overwrites rows
        (§3.6), `later` the rows that were inserted after its own, those first that were nearest to its end."""
        if not row.segment_id.isdecimal() or int(row.segment_id) // 1000 < table.created_on or self._is_live(row):
            return
        segment = ids_alone(self.disk.complete(row.table_id, row.segment_id), row.segment_id)
        if segment is None or not segment.rows:
            return
        try:
            ids = np.unique(np.concatenate(list(live_ids(segment))))
            others = chain(self.logged.get(row.table_id, ()), (s.undeleted for s in strays), map(self._stored, later))
            explained = any(self._has_most(other, ids) for other in others)
        except (DamageError, OSError):  # what cannot be read may explain it
            return
        if not explained:
            findings.warning(
                "put-aside-alone",
                f"{row.table_id}/{row.segment_id}",
                "the catalog calls this segment put aside for deletion, as a server does with what it has merged into another "
                "one, but no later segment has its rows: the value is damaged, or the merged segment is lost. It is left out; "
                "--salvage to-delete exports its rows",
                segment.rows,
            )

    def _is_live(self, row: FileRow) -> bool:
        """Whether it was taken all the same, in place of a segment that is not here."""
        return any(s.id == row.segment_id for s in self.segments.get(row.table_id, ()))

    def _stored(self, row: FileRow) -> Segment:
        """All rows that a segment stores. Raises DamageError for one that is not here."""
        segment = ids_alone(self.disk.complete(row.table_id, row.segment_id), row.segment_id)
        if segment is None:
            raise DamageError(row.segment_id, "a later segment is not here")
        return segment.undeleted

    def _has_most(self, piece: Piece, ids: npt.NDArray[np.int64]) -> bool:
        if 2 * piece.rows < len(ids):
            return False
        found = np.zeros(len(ids), np.bool_)
        for some in live_ids(piece):
            found[np.searchsorted(ids, some[among(some, ids)])] = True
        return 2 * int(found.sum()) >= len(ids)
