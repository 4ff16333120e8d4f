"""One table in the write-ahead log: rows that its records insert, and those its deletes take out of memory (FORMAT §5.7)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import Schema
from .layout import ID, MEMORY_SEGMENT_BYTES
from .segment import Segment
from .wal import Log, LogRows, Record, SpanBuilder, read_ids

Ids = npt.NDArray[np.int64]
IDS_CHUNK = 1 << 17
"""Ids looked at in one go."""


Delete = tuple[int, int, int, int]
"""LSN, log file, where the ids begin in it, how many."""


class Deletes:
    """Delete records of a table in order, 32 bytes each."""

    def __init__(self) -> None:
        self._data = array("Q")

    def add(self, record: Record) -> None:
        self.append((record.lsn, record.file, record.ids_at, record.rows))

    def append(self, delete: Delete) -> None:
        self._data.extend(delete)

    def __len__(self) -> int:
        return len(self._data) // 4

    def __iter__(self) -> Iterator[Delete]:
        values = iter(self._data)
        return zip(values, values, values, values, strict=True)


@dataclass
class LoggedTable:
    """One table during the replay: its insert and delete records, those that it has flushed apart (`old_`)."""

    table_id: str
    collection: str
    partition: str
    schema: Schema
    flush_lsn: int
    log: Log
    in_memory: bool = False
    """Whether the catalog knows a segment of it in memory (NEW)."""
    spans: SpanBuilder = field(default_factory=SpanBuilder)
    inserted: int = 0
    insert_lsns: array[int] = field(default_factory=lambda: array("Q"))
    insert_ends: array[int] = field(default_factory=lambda: array("Q"))
    deletes: Deletes = field(default_factory=Deletes)
    memory_deletes: Deletes = field(default_factory=Deletes)
    """Those behind the table's own flush_lsn: the running server applied them to memory, whatever its recovery will do."""
    root_flushed: int = 0
    """LSN of a flush of the collection that the catalog does not know: it has applied the deletes before it that this table,
    too, had flushed."""
    old_spans: SpanBuilder = field(default_factory=SpanBuilder)
    old_rows: int = 0
    old_lsns: array[int] = field(default_factory=lambda: array("Q"))
    old_ends: array[int] = field(default_factory=lambda: array("Q"))
    old_deletes: Deletes = field(default_factory=Deletes)

    def insert(self, record: Record) -> None:
        self.spans.add(record)
        self.inserted += record.rows
        self.insert_lsns.append(record.lsn)
        self.insert_ends.append(self.inserted)

    def insert_old(self, record: Record) -> None:
        """An insert that the table has flushed."""
        self.old_spans.add(record)
        self.old_rows += record.rows
        self.old_lsns.append(record.lsn)
        self.old_ends.append(self.old_rows)

    def log_rows(self, dead: Ids | None = None, first: int = 0) -> LogRows:
        """The inserts that the table has not flushed, but for the `dead` ones and those before row `first`."""
        return self._rows("wal", self.spans, self.inserted, dead, first)

    def old_log_rows(self, name: str = "old") -> LogRows:
        """The inserts that the table has flushed and that the log still holds."""
        return self._rows(name, self.old_spans, self.old_rows)

    def _rows(self, name: str, spans: SpanBuilder, count: int, dead: Ids | None = None, first: int = 0) -> LogRows:
        return LogRows(
            name, self.schema, self.log.files, spans.build(), count, np.empty(0, ID) if dead is None else dead, first
        )

    def rows_before(self, lsn: int) -> int:
        """Inserted rows of the table up to `lsn`."""
        if not lsn:
            return 0
        k = int(np.searchsorted(np.array(self.insert_lsns, np.uint64), np.uint64(lsn), "right"))
        return self.insert_ends[k - 1] if k else 0

    def ids_of(self, deletes: Deletes, behind: int = 0) -> Ids:
        """The ids in delete records behind an LSN, sorted, each once."""
        parts = [self._ids(file, at, count) for lsn, file, at, count in deletes if lsn > behind]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, ID)

    def last_deletes(self, lists: Iterable[Iterable[Delete]]) -> tuple[Ids, npt.NDArray[np.uint64]]:
        """All deleted ids, sorted, each with the LSN of the last record that deletes it."""
        ids, lsns = [np.empty(0, ID)], [np.empty(0, np.uint64)]
        for lsn, file, at, count in (d for deletes in lists for d in deletes):
            ids.append(self._ids(file, at, count))
            lsns.append(np.full(count, lsn, np.uint64))
        every, when = np.concatenate(ids), np.concatenate(lsns)
        order = np.lexsort((when, every))
        every, when = every[order], when[order]
        is_last = np.append(every[1:] != every[:-1], True)[: len(every)]
        return every[is_last], when[is_last]

    def segment_deletes(self) -> Deletes:
        """The deletes that take rows out of segments."""
        kept = Deletes()
        for delete in self.deletes:
            if delete[0] > min(self.root_flushed, self.flush_lsn):
                kept.append(delete)
        return kept

    def deleted_since(self, lists: Iterable[Iterable[Delete]]) -> npt.NDArray[np.bool_]:
        """Which of `old_log_rows()` a delete behind their own record names."""
        gone = np.zeros(self.old_rows, np.bool_)
        deleted, last = self.last_deletes(lists)
        if not len(deleted):
            return gone
        lsns, ends = np.array(self.old_lsns, np.uint64), np.array(self.old_ends, np.int64)
        number = 0
        for ids in self.old_log_rows().ids_only(IDS_CHUNK):
            at = np.minimum(np.searchsorted(deleted, ids), len(deleted) - 1)
            inserted = lsns[np.searchsorted(ends, np.arange(number, number + len(ids)), "right")]
            gone[number : number + len(ids)] = (deleted[at] == ids) & (last[at] > inserted)
            number += len(ids)
        return gone

    def _ids(self, file: int, at: int, count: int) -> Ids:
        return read_ids(next(f for f in self.log.files if f.number == file), at, count)

    def dead_in_memory(self, behind: int) -> Ids:
        """Row numbers (over all inserts of the table) that deletes remove from memory: a delete of one id takes the first
        such row of each segment in memory, one of several ids takes all."""
        return np.sort(np.array([row for row, _ in self.removals(self.deletes, behind)], np.int64))

    def removals(self, deletes: Deletes, behind: int) -> list[tuple[int, int]]:
        """(row number, LSN of the delete) of the rows removed from memory by those of `deletes` behind `behind`."""
        deleted = self.ids_of(deletes, behind)
        if not len(deleted) or not self.inserted:
            return []
        found_rows, found_ids = [], []
        ends = np.array(self.insert_ends, np.int64)
        log_rows = self.log_rows()
        number = 0
        first = self.rows_before(behind)
        for ids in log_rows.ids_only(IDS_CHUNK):
            at = np.searchsorted(deleted, ids)
            hits = np.flatnonzero(deleted[np.minimum(at, len(deleted) - 1)] == ids)
            hits = hits[hits + number >= first]
            found_rows.append(hits + number)
            found_ids.append(ids[hits])
            number += len(ids)
        rows, ids = np.concatenate(found_rows), np.concatenate(found_ids)
        if not len(rows):
            return []
        lsns = np.array(self.insert_lsns, np.uint64)[np.searchsorted(ends, rows, "right")]
        bounds = self._memory_segments(first)
        memory = np.searchsorted(bounds, rows, "right")
        waiting = list(zip(lsns.tolist(), ids.tolist(), rows.tolist(), memory.tolist(), strict=True))
        waiting.reverse()
        alive: dict[int, list[tuple[int, int]]] = {}
        removed: list[tuple[int, int]] = []
        for lsn, file, at_, count in deletes:
            if lsn <= behind:
                continue
            while waiting and waiting[-1][0] < lsn:
                _, row_id, row, segment = waiting.pop()
                alive.setdefault(row_id, []).append((segment, row))
            if not alive:
                continue
            for row_id in self._ids(file, at_, count).tolist():
                there = alive.get(row_id)
                if not there:
                    continue
                if count > 1:
                    removed += [(row, lsn) for _, row in there]
                    del alive[row_id]
                else:
                    kept, seen = [], set()
                    for segment, row in there:
                        if segment in seen:
                            kept.append((segment, row))
                        else:
                            seen.add(segment)
                            removed.append((row, lsn))
                    alive[row_id] = kept
        return removed

    def _memory_segments(self, first: int) -> npt.NDArray[np.int64]:
        """Row numbers at which the server begins another segment in memory (§5.7), counted from row `first` on."""
        row_bytes, full_below = self.schema.row_bytes, self.schema.dimension * 4
        bounds, used, row = [], 0, first
        for end in self.insert_ends:
            while row < end:
                if MEMORY_SEGMENT_BYTES - used < full_below:
                    bounds.append(row)
                    used = 0
                take = min(end - row, (MEMORY_SEGMENT_BYTES - used) // row_bytes)
                if not take:
                    bounds.append(row)
                    used = 0
                    continue
                used += take * row_bytes
                row += take
        return np.array(bounds, np.int64)


def delete_from(segment: Segment, deleted: Ids) -> Segment:
    """The segment without rows whose id is in `deleted` (sorted): all of them, whatever their age (§5.7 b)."""
    if not len(deleted) or not segment.stored:
        return segment
    offsets, all_ids = [], segment.ids
    for first in range(0, segment.stored, IDS_CHUNK):
        ids = np.asarray(all_ids[first : first + IDS_CHUNK])
        at = np.minimum(np.searchsorted(deleted, ids), len(deleted) - 1)
        offsets.append(np.flatnonzero(deleted[at] == ids) + first)
    hits = np.concatenate(offsets)
    return segment.with_wal_deletes(hits) if len(hits) else segment
