"""One table in the write-ahead log: rows that its records insert, and those its deletes take out of memory (FORMAT §5.7)."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...model import Schema
from ..copies import among
from ..layout import ID, MEMORY_SEGMENT_BYTES
from ..segment.files import Segment
from .deletes import Deletes, Ids, Lsns
from .log import Log, Record
from .rows import LogRows, SpanBuilder

IDS_CHUNK = 1 << 17
"""Ids looked at in one go."""


@dataclass(eq=False)
class LoggedTable:
    """One table during the replay: its insert and delete records, those that it has flushed apart (`old_`)."""

    table_id: str
    collection: str
    partition: str
    schema: Schema
    flush_lsn: int
    log: Log
    memory_since: int | None = None
    """The number of its oldest segment in memory (NEW) that the catalog knows."""
    spans: SpanBuilder = field(default_factory=SpanBuilder)
    inserted: int = 0
    insert_lsns: array[int] = field(default_factory=lambda: array("Q"))
    insert_ends: array[int] = field(default_factory=lambda: array("Q"))
    deletes: Deletes = field(default_factory=Deletes)
    """Those that a restarted server applies."""
    memory_deletes: Deletes = field(default_factory=Deletes)
    """Those after the table's own flush_lsn: the running server applied them to memory, whatever its recovery will do."""
    root_flushed: int = 0
    """LSN of a flush of the collection that the catalog does not know: it has applied the deletes before it that this table,
    too, had flushed."""
    old_spans: SpanBuilder = field(default_factory=SpanBuilder)
    old_rows: int = 0
    old_lsns: array[int] = field(default_factory=lambda: array("Q"))
    old_ends: array[int] = field(default_factory=lambda: array("Q"))
    old_deletes: Deletes = field(default_factory=Deletes)
    """Those that are not replayed, with such as the server may not have applied for their tag."""
    applied_deletes: Deletes = field(default_factory=Deletes)
    """The same without these."""
    flush_lsn_wrong: bool = False
    """Whether no record ends at flush_lsn although its file is there: nothing that the server has written."""
    created_on: int = 0
    """When the catalog says that it was made, in µs."""

    @property
    def in_memory(self) -> bool:
        """Whether the catalog knows a segment of it in memory."""
        return self.memory_since is not None

    @property
    def place(self) -> str:
        """Its name for a person."""
        return f"{self.collection}/{self.partition}"

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

    def segment_deletes(self) -> Deletes:
        """The deletes that take rows out of segments."""
        return self.deletes.after(min(self.root_flushed, self.flush_lsn))

    def old_row_lsns(self) -> Lsns:
        """The LSN of the record of each of `old_log_rows()`."""
        ends = np.array([0, *self.old_ends], np.int64)
        return np.repeat(np.array(self.old_lsns, np.uint64), ends[1:] - ends[:-1])

    @cached_property
    def old_ids(self) -> Ids:
        """The ids of `old_log_rows()`: 8 bytes a row."""
        return np.concatenate([np.empty(0, ID), *self.old_log_rows().ids_only(IDS_CHUNK)])

    def deleted_since(self, deletes: Deletes, least: int = 1) -> npt.NDArray[np.bool_]:
        """Which of `old_log_rows()` a delete after their own record names, one with at least so many ids."""
        deleted, last = deletes.last(least)
        if not len(deleted) or not self.old_rows:
            return np.zeros(self.old_rows, np.bool_)
        at = np.minimum(np.searchsorted(deleted, self.old_ids), len(deleted) - 1)
        gone: npt.NDArray[np.bool_] = (deleted[at] == self.old_ids) & (last[at] > self.old_row_lsns())
        return gone

    def dead_in_memory(self, after: int) -> Ids:
        """Row numbers (over all inserts of the table) that deletes remove from memory, sorted."""
        return np.sort(self.removals(self.deletes, after)[0])

    def removals(self, deletes: Deletes, after: int) -> tuple[Ids, Lsns]:
        """The rows that `deletes` after `after` remove from memory, each with the LSN of the delete, in the order of these.

        A delete of one id takes the first such row of each segment in memory, one of several ids takes all. Some 60 bytes
        a row that is deleted.
        """
        deletes = deletes.after(after)
        rows, when = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        if self.inserted and len(deletes.ids):
            by_turns = self._several(deletes.single_ids(), after)
            every, lsns = deletes.by_id()
            for first, ids, inserted in self._unflushed(after):
                at = _first_after(every, lsns, ids, inserted)
                found = np.flatnonzero((at >= 0) & ~among(ids, by_turns))
                rows.append(found + first)
                when.append(lsns[at[found]])
            if len(by_turns):
                more = self._by_turns(deletes, by_turns, after)
                rows.append(more[0])
                when.append(more[1])
        row, lsn = np.concatenate(rows), np.concatenate(when)
        order = np.lexsort((row, lsn))
        return row[order], lsn[order]

    def _unflushed(self, after: int) -> Iterator[tuple[int, Ids, Lsns]]:
        """(number of the first row, ids, LSNs of their records) of the rows inserted after an LSN, in chunks."""
        start, number = self.rows_before(after), 0
        ends, lsns = np.array(self.insert_ends, np.int64), np.array(self.insert_lsns, np.uint64)
        for ids in self.log_rows().ids_only(IDS_CHUNK):
            skip = min(max(0, start - number), len(ids))
            numbers = np.arange(number + skip, number + len(ids))
            yield number + skip, ids[skip:], lsns[np.searchsorted(ends, numbers, "right")]
            number += len(ids)

    def _several(self, single: Ids, after: int) -> Ids:
        """Those of the ids (sorted) that several rows in memory have."""
        times = np.zeros(len(single), np.int64)
        for _, ids, _ in self._unflushed(after) if len(single) else ():
            times += np.bincount(np.searchsorted(single, ids[among(ids, single)]), minlength=len(single))
        return single[times > 1]

    def _by_turns(self, deletes: Deletes, named: Ids, after: int) -> tuple[Ids, Lsns]:
        """The same of `named` ids, which several rows have, and single ids among the deletes take one by one."""
        parts = [
            (lsns[hits], ids[hits], np.flatnonzero(hits) + first)
            for first, ids, lsns in self._unflushed(after)
            if (hits := among(ids, named)).any()
        ]
        lsns, ids, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
        segments = np.searchsorted(self._memory_segments(self.rows_before(after)), numbers, "right")
        coming = list(zip(*(c[::-1].tolist() for c in (lsns, ids, numbers, segments)), strict=True))
        rows, when = array("q"), array("Q")
        alive: dict[int, dict[int, deque[int]]] = {}
        for lsn, deleted, count in deletes.naming(named):
            while coming and coming[-1][0] < lsn:
                _, row_id, row, segment = coming.pop()
                alive.setdefault(row_id, {}).setdefault(segment, deque()).append(row)
            there = alive.pop(deleted, {})
            gone = [r for queue in there.values() for r in (queue if count > 1 else (queue.popleft(),))]
            rows.extend(gone)
            when.extend([lsn] * len(gone))
            if count == 1 and (left := {segment: queue for segment, queue in there.items() if queue}):
                alive[deleted] = left
        return np.array(rows, np.int64), np.array(when, np.uint64)

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


def _first_after(every: Ids, deleted: Lsns, ids: Ids, inserted: Lsns) -> Ids:
    """For each row the place of the first delete of its id after its own LSN, or -1. `every` and `deleted` are the ids of all
    deletes and their LSNs, sorted by both."""
    low, high = np.searchsorted(every, ids, "left"), np.searchsorted(every, ids, "right")
    end = high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        later = deleted[np.minimum(middle, len(deleted) - 1)] > inserted
        high = np.where(open_ & later, middle, high)
        low = np.where(open_ & ~later, middle + 1, low)
    return np.where(low < end, low, -1)


def delete_from(segment: Segment, deleted: Ids) -> Segment:
    """The segment without rows whose id is in `deleted` (sorted): all of them, whatever their age (§5.7 b)."""
    if not len(deleted) or not segment.stored:
        return segment
    offsets = []
    for places, ids in segment.readable_ids(IDS_CHUNK):
        at = np.minimum(np.searchsorted(deleted, ids), len(deleted) - 1)
        offsets.append(places[deleted[at] == ids])
    hits = np.concatenate(offsets)
    return without(segment, hits) if len(hits) else segment


def without(segment: Segment, offsets: Ids) -> Segment:
    """The segment without the rows at these offsets, on top of those that are left out already."""
    if segment.wal_deleted is not None:
        offsets = np.concatenate([segment.wal_deleted, offsets])
    return segment.with_wal_deletes(offsets)
