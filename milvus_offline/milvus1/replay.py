"""What the write-ahead log adds to and takes from the segments (FORMAT §5.6, §5.7, §6 step 3 and 4).

The server's own recovery is followed record by record. Beyond it, rows that its recovery would double are taken once, and rows
that it would throw away with a damaged log are kept; both become findings.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..model import DEFAULT_PARTITION, Finding, Schema, Severity
from .catalog import Catalog, version_key
from .layout import ID, MEMORY_SEGMENT_BYTES, FileType
from .live import LiveCollection, Selection
from .rows import contains, hashes_of, matched, row_hashes
from .segment import Segment
from .wal import Kind, Log, LogRows, Record, SpanBuilder, Walk, is_new_numbering, read_ids, schema_fits

Ids = npt.NDArray[np.int64]
_BLANKS = " \n\r\t"
_IDS_CHUNK = 1 << 17
_SAMPLE = 64
"""Ids of a segment that are looked up before all of its rows are compared."""
_SUMS = 1 << 64
"""Sums of hashes are taken modulo this."""


@dataclass
class LogSalvage:
    """Rows in the log that a server never shows; `kind` is a kind of salvage."""

    kind: str
    collection: str
    partition: str
    rows: LogRows
    reason: str


@dataclass
class Replay:
    """The outcome: rows to append and segments after deletes, per table_id."""

    rows: dict[str, list[LogRows]] = field(default_factory=lambda: defaultdict(list))
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    salvage: list[LogSalvage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    start: int = 0
    end: int | None = None
    """LSNs between which records were looked at; an `end` of None means all there were."""

    @property
    def row_count(self) -> int:
        return sum(r.rows for found in self.rows.values() for r in found)


class _Deletes:
    """Delete records of a table in order, 32 bytes each."""

    def __init__(self) -> None:
        self._data = array("Q")

    def add(self, record: Record) -> None:
        self._data.extend((record.lsn, record.file, record.ids_at, record.rows))

    def __len__(self) -> int:
        return len(self._data) // 4

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        values = iter(self._data)
        return zip(values, values, values, values, strict=True)


@dataclass
class _Table:
    """One table during the replay."""

    table_id: str
    collection: str
    partition: str
    schema: Schema
    flush_lsn: int
    spans: SpanBuilder = field(default_factory=SpanBuilder)
    inserted: int = 0
    insert_lsns: array[int] = field(default_factory=lambda: array("Q"))
    insert_ends: array[int] = field(default_factory=lambda: array("Q"))
    deletes: _Deletes = field(default_factory=_Deletes)
    memory_deletes: _Deletes = field(default_factory=_Deletes)
    """Those behind the table's own flush_lsn: the running server applied them to memory, whatever its recovery will do."""
    old_spans: SpanBuilder = field(default_factory=SpanBuilder)
    old_rows: int = 0
    old_lsns: array[int] = field(default_factory=lambda: array("Q"))
    old_ends: array[int] = field(default_factory=lambda: array("Q"))
    old_deletes: _Deletes = field(default_factory=_Deletes)

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


@dataclass
class _Extra:
    """Insert records beside the replay, by (kind, collection, partition)."""

    schema: Schema
    reason: str
    spans: SpanBuilder = field(default_factory=SpanBuilder)
    rows: int = 0

    def add(self, record: Record) -> None:
        self.spans.add(record)
        self.rows += record.rows


class Replayer:
    """Replays one log over one selection. `schemas` by collection name, `segments` by table_id as the catalog selects them;
    `damaged` are table_ids whose segments have lost rows, which flushed records of the log may still hold."""

    def __init__(
        self,
        log: Log,
        catalog: Catalog,
        selection: Selection,
        schemas: Mapping[str, Schema],
        segments: Mapping[str, list[Segment]],
        *,
        wal_enabled: bool | None,
        damaged: Collection[str] = (),
    ) -> None:
        self.log = log
        self.catalog = catalog
        self.segments = segments
        self.schemas = schemas
        self.wal_enabled = wal_enabled
        self.damaged = damaged
        self.result = Replay(segments={k: list(v) for k, v in segments.items()})
        self._files = {f.number: f for f in log.files}
        self._tables: dict[str, _Table] = {}
        self._by_key: dict[tuple[str, str], _Table] = {}
        self._members: dict[str, list[_Table]] = defaultdict(list)
        for collection in selection.collections:
            self._add_collection(collection)
        self._extras: dict[tuple[str, str, str], _Extra] = {}
        self._mismatched: dict[str, int] = defaultdict(int)
        self._doubled: dict[str, int] = defaultdict(int)
        self._in_memory = {row.table_id for row in catalog.files if row.file_type == FileType.NEW}

    def _add_collection(self, collection: LiveCollection) -> None:
        name = collection.table.table_id
        for partition in collection.partitions:
            is_root = partition.table is collection.table
            table = _Table(partition.table.table_id, name, partition.tag, self.schemas[name], partition.table.flush_lsn)
            self._tables[table.table_id] = table
            self._by_key.setdefault((name, "" if is_root else partition.tag), table)
            self._members[name].append(table)

    def run(self) -> Replay:
        """Reads the log and applies it; the log's damage is in the findings."""
        self._window()
        if not self.log.files:
            return self.result
        self._read()
        for table in self._tables.values():
            self._apply(table)
        for table_id in self.damaged:
            self._recover(self._tables[table_id])
        self._find_unseen()
        self._report()
        return self.result

    # The window (§5.6) -------------------------------------------------------------------------------------------------

    def _window(self) -> None:
        flushed = [t.flush_lsn for t in self._tables.values()]
        start, applied = self.catalog.global_lsn, self.log.acknowledged or 0
        if flushed:
            applied = max(applied, max(flushed))
            start = max(start, min(flushed))
        self.result.start = start
        self.result.end = max(applied, start)
        if self.log.acknowledged is None:
            if self._calls_behind(self.result.end):
                self._note(
                    Severity.WARNING,
                    "mxlog-missing",
                    str(self.log.folder),
                    "mxlog.meta is missing or short, so nothing tells which records were acknowledged; all complete ones are "
                    "taken. A 1.x server would start without any of them",
                )
            self.result.end = None
        elif (calls := self._calls_behind(self.result.end)) > 1:
            self._note(
                Severity.WARNING,
                "mxlog-stale",
                str(self.log.folder),
                f"{calls} calls are logged behind the last one that mxlog.meta knows, although only one can be unacknowledged: "
                "mxlog.meta is older than the log. All complete records are taken; a 1.x server would drop these",
            )
            self.result.end = None
        elif calls and self.log.acknowledged < max(start, *flushed, 0):
            self._note(
                Severity.WARNING,
                "mxlog-stale",
                str(self.log.folder),
                "mxlog.meta is older than the catalog, so nothing tells whether the last call in the log was acknowledged; it "
                "is taken. A 1.x server would drop it",
            )
            self.result.end = None
        elif calls and self.log.torn_meta:
            self._note(
                Severity.WARNING,
                "mxlog-torn",
                str(self.log.folder),
                "mxlog.meta was being written when the server died, so the last call in the log counts as never acknowledged, "
                "as for a 1.x server; --salvage unacknowledged brings its rows",
            )
        self._check_numbers(start)

    def _calls_behind(self, lsn: int) -> int:
        """Calls with complete records behind `lsn`. A call's records are split only where a file ends (§5.4).

        Behind a place without a record one call does not count: it can be the end of one that a crash before the last restart
        cut off, when the server went on in the file before it.
        """
        calls, broken, previous = 0, 0, None
        sizes = {f.number: f.size for f in self.log.files}
        position = lsn
        for record in Walk(self.log, []).records(lsn):
            file, offset = position >> 32, position & 0xFFFFFFFF
            if record.file == file:
                broken |= record.start != offset
            else:
                broken |= record.start != 0 or sizes.get(file, offset) > offset
            goes_on = previous and record.start == 0 and record[1:4] == previous[1:4]
            calls += not goes_on
            previous, position = record, record.lsn
            if calls > 1 + broken:
                break
        return max(calls - broken, min(calls, 1))

    def _check_numbers(self, start: int) -> None:
        numbers = [f.number for f in self.log.files]
        wanted, end = start >> 32, self.result.end
        if end is not None and end <= start:
            return
        later = [n for n in numbers if n >= wanted]
        if later and later[0] != wanted and (start or (end is not None and end >> 32 < later[0])):
            self._note(
                Severity.WARNING,
                "wal-gap",
                str(self.log.folder / f"{wanted}.wal"),
                f"the file is missing; the log goes on in {later[0]}.wal. After a clean restart that is harmless (its records "
                "were flushed), otherwise rows are lost. A 1.x server refuses to start in this state",
            )
        for before, after in pairwise(later):
            if after != before + 1:
                self._note(
                    Severity.ERROR,
                    "wal-gap",
                    str(self.log.folder / f"{before + 1}.wal"),
                    f"the files {before + 1}.wal to {after - 1}.wal are missing; unflushed rows in them are lost",
                )
        first_missing = later[-1] + 1 if later else wanted
        if end is not None and end & 0xFFFFFFFF and end >> 32 >= first_missing:
            self._note(
                Severity.ERROR,
                "wal-gap",
                str(self.log.folder / f"{first_missing}.wal"),
                f"the files {first_missing}.wal to {end >> 32}.wal are missing; acknowledged rows in them are lost",
            )

    # Reading ---------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        start, end = self.result.start, self.result.end
        by_root = self._filters_by_root()
        walk = Walk(self.log, self.result.findings)
        first = min((f.number for f in self.log.files), default=0) << 32
        old = Walk(self.log, [])
        for record in old.records(first, start):
            self._old(record)
        for record in walk.records(start, end):
            self._replay(record, by_root)
        if end is not None:
            for record in Walk(self.log, []).records(end):
                self._unacknowledged(record)

    def _filters_by_root(self) -> bool:
        """Whether the server is one of 0.7.0-0.9.0, which knows no flush_lsn per partition (§5.6)."""
        sample: list[tuple[Record, Schema]] = []
        for record in Walk(self.log, []).records(min(f.number for f in self.log.files) << 32):
            schema = self.schemas.get(record.collection.decode("utf-8", "replace"))
            if schema is not None and (record.kind is Kind.DELETE or schema_fits(record, schema)):
                sample.append((record, schema))
                break
        numbering = is_new_numbering(sample)
        version = version_key(self.catalog.version)
        if numbering is None:
            return bool(version) and version < (0, 9, 1)
        return not numbering or (bool(version) and version[:3] == (0, 9, 0))

    def _names(self, record: Record) -> tuple[str, str]:
        return record.collection.decode("utf-8", "surrogateescape"), record.tag.decode("utf-8", "surrogateescape")

    def _old(self, record: Record) -> None:
        """A record that every table has flushed; it still tells which rows were never applied."""
        collection, tag = self._names(record)
        table = self._resolve(collection, tag)
        if table is None:
            return
        if record.kind is Kind.DELETE:
            for member in self._members[collection] if tag == "" else [table]:
                member.old_deletes.add(record)
        elif schema_fits(record, table.schema):
            if tag != "" and (collection, tag) not in self._by_key:
                self._unseen(record, table, "unseen")
            else:
                table.insert_old(record)

    def _replay(self, record: Record, by_root: bool) -> None:
        collection, tag = self._names(record)
        table = self._by_key.get((collection, tag))
        if table is None and by_root:
            table = self._resolve(collection, tag)
        if table is None:
            resolved = self._resolve(collection, tag)
            if resolved is not None and record.kind is not Kind.DELETE:
                self._unseen(record, resolved, "unseen")
            elif resolved is None and record.kind is not Kind.DELETE:
                self._dropped(record, collection, tag)
            return
        root = self._by_key[(collection, "")]
        flushed = root.flush_lsn if by_root else table.flush_lsn
        if record.kind is Kind.DELETE:
            for member in self._members[collection] if tag == "" else [table]:
                (member.deletes if record.lsn > flushed else member.old_deletes).add(record)
                if record.lsn > member.flush_lsn:
                    member.memory_deletes.add(record)
        elif not schema_fits(record, table.schema):
            if record.lsn > flushed:
                self._mismatched[f"{collection}/{tag}"] += record.rows
        elif record.lsn <= table.flush_lsn:
            if record.lsn > flushed:
                self._doubled[table.table_id] += record.rows
            table.insert_old(record)
        elif record.lsn <= flushed:
            reason = "the collection was flushed later than the partition, and the server looks at the collection alone"
            self._extra("unseen", collection, table.partition, table.schema, reason).add(record)
        else:
            table.insert(record)

    def _resolve(self, collection: str, tag: str) -> _Table | None:
        """The table that a tag means once blanks are trimmed and `_default` is taken for the default partition (§5.7)."""
        trimmed = tag.strip(_BLANKS)
        return self._by_key.get((collection, "" if trimmed == DEFAULT_PARTITION else trimmed))

    def _unacknowledged(self, record: Record) -> None:
        collection, tag = self._names(record)
        table = self._resolve(collection, tag)
        if table is not None and record.kind is not Kind.DELETE and schema_fits(record, table.schema):
            self._extra(
                "unacknowledged", collection, table.partition, table.schema, "logged, but the call was never acknowledged"
            ).add(record)

    def _unseen(self, record: Record, table: _Table, kind: str) -> None:
        if schema_fits(record, table.schema):
            reason = f"acknowledged under the tag {record.tag.decode('utf-8', 'replace')!r}, which the server never applies"
            self._extra(kind, table.collection, table.partition, table.schema, reason).add(record)

    def _dropped(self, record: Record, collection: str, tag: str) -> None:
        schema = self.schemas.get(collection)
        if schema is None:
            schema = _schema_of_unknown(record, collection, self.catalog)
        if schema is not None and schema_fits(record, schema):
            self._extra("dropped", collection, tag or DEFAULT_PARTITION, schema, "its collection or partition was dropped").add(
                record
            )

    def _extra(self, kind: str, collection: str, partition: str, schema: Schema, reason: str) -> _Extra:
        return self._extras.setdefault((kind, collection, partition), _Extra(schema, reason))

    # Effects (§5.7) ----------------------------------------------------------------------------------------------------

    def _apply(self, table: _Table) -> None:
        segments = self.result.segments.get(table.table_id, [])
        if self.catalog.kind == "none":
            self._apply_by_content(table, segments)
            return
        flushed = 0
        newest: set[str] = set()
        may_be_flushed = table.inserted and segments and (self._knows_all_of(table) or table.table_id not in self._in_memory)
        if may_be_flushed:
            flushed, newest = self._already_flushed(table, segments)
        if self._is_stale(table, segments, flushed):
            return
        dead = self._memory_deletes(table, flushed)
        first = _rows_before(table, flushed)
        if may_be_flushed and not flushed and self.wal_enabled is not False and table.table_id not in self._in_memory:
            flushed, newest, stored = self._partly_flushed(table, segments)
            dead = np.union1d(dead, stored)
        rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, dead, first)
        if rows.rows:
            self.result.rows[table.table_id].append(rows)
        if len(table.deletes) and segments:
            everything = self._ids_of(table.deletes)
            recent = self._ids_of(table.deletes, flushed) if flushed else everything
            self.result.segments[table.table_id] = [_delete_from(s, recent if s.id in newest else everything) for s in segments]

    def _knows_all_of(self, table: _Table) -> bool:
        """Whether the log tells all that was ever inserted into the table: nothing was flushed before, or no file is gone."""
        return not table.flush_lsn or self.log.files[0].number == 0

    def _apply_by_content(self, table: _Table, segments: Sequence[Segment]) -> None:
        """Without a catalog nothing tells what was flushed: a row of the log that some segment stores was, others were not.

        Deletes take rows out of segments unless the log inserts their id again later.
        """
        log_rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, np.empty(0, ID))
        removed = self._removals(table, table.deletes, 0)
        dead = np.array([row for row, _ in removed], np.int64)
        if table.inserted and segments:
            stored = np.concatenate([_stored_hashes(s) for s in segments])
            dead = np.union1d(dead, np.flatnonzero(np.isin(hashes_of(log_rows.batches()), stored)))
        rows = replace(log_rows, dead=np.sort(dead))
        if rows.rows:
            self.result.rows[table.table_id].append(rows)
        deleted = self._ids_of(table.deletes)
        if len(deleted) and segments:
            gone = {row for row, _ in removed}
            kept, number = [], 0
            for ids in log_rows.ids_only(_IDS_CHUNK):
                kept.append(ids[[number + i not in gone for i in range(len(ids))]] if gone else ids)
                number += len(ids)
            again = np.concatenate(kept) if kept else np.empty(0, ID)
            self.result.segments[table.table_id] = [_delete_from(s, np.setdiff1d(deleted, again)) for s in segments]

    def _ids_of(self, deletes: _Deletes, behind: int = 0) -> Ids:
        """The ids in delete records behind an LSN, sorted, each once."""
        parts = [self._ids(file, at, count) for lsn, file, at, count in deletes if lsn > behind]
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, ID)

    def _last_deletes(self, lists: Iterable[_Deletes]) -> tuple[Ids, npt.NDArray[np.uint64]]:
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

    def _ids(self, file: int, at: int, count: int) -> Ids:
        return read_ids(self._files[file], at, count)

    def _memory_deletes(self, table: _Table, behind: int) -> Ids:
        """Row numbers (over all inserts of the table) that deletes remove from memory: a delete of one id takes the first
        such row of each segment in memory, one of several ids takes all."""
        return np.sort(np.array([row for row, _ in self._removals(table, table.deletes, behind)], np.int64))

    def _removals(self, table: _Table, deletes: _Deletes, behind: int) -> list[tuple[int, int]]:
        """(row number, LSN of the delete) of the rows removed from memory by those of `deletes` behind `behind`."""
        deleted = self._ids_of(deletes, behind)
        if not len(deleted) or not table.inserted:
            return []
        found_rows, found_ids = [], []
        ends = np.array(table.insert_ends, np.int64)
        log_rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, np.empty(0, ID))
        number = 0
        first = _rows_before(table, behind)
        for ids in log_rows.ids_only(_IDS_CHUNK):
            at = np.searchsorted(deleted, ids)
            hits = np.flatnonzero(deleted[np.minimum(at, len(deleted) - 1)] == ids)
            hits = hits[hits + number >= first]
            found_rows.append(hits + number)
            found_ids.append(ids[hits])
            number += len(ids)
        rows, ids = np.concatenate(found_rows), np.concatenate(found_ids)
        if not len(rows):
            return []
        lsns = np.array(table.insert_lsns, np.uint64)[np.searchsorted(ends, rows, "right")]
        bounds = _memory_segments(table, first)
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

    # A flush that the catalog does not know of (§6 step 4) -------------------------------------------------------------

    def _already_flushed(self, table: _Table, segments: Sequence[Segment]) -> tuple[int, set[str]]:
        """LSN up to which the table's records stand in segments although flush_lsn does not say so, and the ids of these
        segments, the newest whose rows all are in the log; (0, {}) when there is no such flush.

        A segment that the catalog still knows in memory speaks against it: that row became RAW with the flush, and the log's
        thread, which makes another, was busy with it. Rows that are in a segment and in the log then were inserted twice, or a
        restarted server was killed while it replayed them; where the whole log is there, that decides (`_knows_all_of`).
        """
        log_rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, np.empty(0, ID))
        order = _with_ids_of(log_rows, segments)
        if not order:
            return 0, set()
        hashes = hashes_of(log_rows.batches())
        stored_hashes = {s.id: h for s in order if contains(hashes, h := _stored_hashes(s))}
        order = [s for s in order if s.id in stored_hashes]
        stored_behind: dict[int, int] = {}
        total = 0
        for k, segment in enumerate(reversed(order), 1):
            total += segment.stored
            stored_behind.setdefault(total, k)
        ends, lsns = np.array(table.insert_ends, np.int64), np.array(table.insert_lsns, np.uint64)
        moments = np.union1d(lsns, np.array([d[0] for d in table.memory_deletes], np.uint64))
        inserted = np.concatenate([[0], ends])[np.searchsorted(lsns, moments, "right")]
        removals = sorted(self._removals(table, table.memory_deletes, 0), key=lambda r: r[1])
        removed_lsns = np.array([lsn for _, lsn in removals], np.uint64)
        left = inserted - np.searchsorted(removed_lsns, moments, "right")
        matches = [i for i in range(len(moments)) if left[i] > 0 and int(left[i]) in stored_behind]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)])
        removed_sums = np.concatenate(
            [np.zeros(1, np.uint64), np.cumsum(hashes[[row for row, _ in removals]], dtype=np.uint64)]
        )
        for i in reversed(matches):
            newest = order[len(order) - stored_behind[int(left[i])] :]
            gone = int(np.searchsorted(removed_lsns, moments[i], "right"))
            memory = (int(sums[inserted[i]]) - int(removed_sums[gone])) % _SUMS
            if memory != sum(int(stored_hashes[s.id].sum(dtype=np.uint64)) for s in newest) % _SUMS:
                continue
            gone_rows = [row for row, _ in removals[:gone]]
            if self._accounted_before(table, segments, np.delete(hashes[: inserted[i]], gone_rows)):
                continue
            lsn = int(moments[i])
            self._note(
                Severity.WARNING,
                "flush-unrecorded",
                f"{table.collection}/{table.partition}",
                f"a crash came after {', '.join(s.id for s in newest)} was written and before the catalog knew that the log's "
                "rows are in it; they are taken once. A restarted 1.x server would double them",
                int(left[i]),
            )
            return lsn, {s.id for s in newest}
        return 0, set()

    def _partly_flushed(self, table: _Table, segments: Sequence[Segment]) -> tuple[int, set[str], Ids]:
        """The same where the log or a segment is damaged, so that they no longer match as a whole: at least half of a
        segment's rows are in the log. Also gives the rows of the log that stand in such segments, one for one."""
        log_rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, np.empty(0, ID))
        order = _with_ids_of(log_rows, segments, share=0.5)
        if not order:
            return 0, set(), np.empty(0, ID)
        hashes = hashes_of(log_rows.batches())
        held = {s.id: h for s in order if np.isin(h := _stored_hashes(s), hashes).mean() >= 0.5}
        if not held:
            return 0, set(), np.empty(0, ID)
        rows = np.flatnonzero(matched(hashes, np.concatenate(list(held.values()))))
        if self._accounted_before(table, segments, hashes[rows]):
            return 0, set(), np.empty(0, ID)
        self._note(
            Severity.WARNING,
            "flush-unrecorded",
            f"{table.collection}/{table.partition}",
            f"{len(rows)} rows of the log are in {', '.join(held)} as well, though the catalog does not know of their flush, "
            "and other rows there differ: the log or the segment is damaged. They are taken once",
            len(rows),
        )
        ends, lsns = np.array(table.insert_ends, np.int64), np.array(table.insert_lsns, np.uint64)
        return int(lsns[np.searchsorted(ends, rows[-1], "right")]), set(held), rows

    def _accounted_before(self, table: _Table, segments: Sequence[Segment], memory: npt.NDArray[np.uint64]) -> bool:
        """Whether the stored rows are already explained by earlier, flushed records: then the same rows were inserted twice."""
        if not table.old_rows:
            return False
        old = LogRows("old", table.schema, self.log.files, table.old_spans.build(), table.old_rows, np.empty(0, ID))
        earlier = hashes_of(old.batches())
        ids = np.concatenate(list(old.ids_only(_IDS_CHUNK)))
        again = np.isin(earlier, memory)
        if table.table_id not in self._in_memory:  # else that is a sign of rows not flushed, and the benefit of doubt is theirs
            deleted = np.union1d(self._ids_of(table.old_deletes), self._ids_of(table.deletes))
            again &= ~np.isin(ids, deleted)  # deleted ones need not be stored any more
        repeated = earlier[again]
        if not len(repeated):
            return False
        stored = np.concatenate([_stored_hashes(s) for s in segments])
        return not contains(stored, np.concatenate([memory, repeated]))

    def _is_stale(self, table: _Table, segments: Sequence[Segment], flushed: int) -> bool:
        """Whether the log is a leftover from before the server ran with its WAL switched off (§5.8): then flush_lsn is 0 again,
        segments hold rows of the log, and others that it does not know."""
        if self.wal_enabled is not None or table.flush_lsn or flushed or not table.inserted:
            return False
        if not any(s.stored for s in segments):
            return False
        log_rows = LogRows("wal", table.schema, self.log.files, table.spans.build(), table.inserted, np.empty(0, ID))
        hashes = hashes_of(log_rows.batches())
        stored = np.concatenate([_stored_hashes(s) for s in segments])
        known = np.flatnonzero(np.isin(hashes, stored))
        if not len(known) or np.isin(stored, hashes).all():
            return False
        self._note(
            Severity.WARNING,
            "wal-stale",
            f"{table.collection}/{table.partition}",
            f"{len(known)} of {table.inserted} rows in the log already are in segments, although the catalog says that nothing "
            "was flushed: the server ran with wal.enable: false later on. The log is not replayed here",
            table.inserted,
        )
        rest = replace(log_rows, id="wal-stale", dead=known)
        if rest.rows:
            self.result.salvage.append(
                LogSalvage("unseen", table.collection, table.partition, rest, "in a log that seems to be a leftover")
            )
        return True

    # Flushed rows of damaged segments (§4.7) ----------------------------------------------------------------------------------

    def _recover(self, table: _Table) -> None:
        """Takes rows of flushed records that no segment of a damaged table stores any more and that nothing deleted."""
        if not table.old_rows:
            return
        segments = self.segments.get(table.table_id, [])
        rows = LogRows("wal-flushed", table.schema, self.log.files, table.old_spans.build(), table.old_rows, np.empty(0, ID))
        hashes = hashes_of(rows.batches())
        dead = matched(hashes, np.concatenate([np.empty(0, np.uint64), *(_stored_hashes(s) for s in segments)]))
        lsns, ends = np.array(table.old_lsns, np.uint64), np.array(table.old_ends, np.int64)
        deleted, last = self._last_deletes((table.old_deletes, table.deletes))
        number = 0
        for ids in rows.ids_only(_IDS_CHUNK) if len(deleted) else ():
            at = np.minimum(np.searchsorted(deleted, ids), len(deleted) - 1)
            inserted = lsns[np.searchsorted(ends, np.arange(number, number + len(ids)), "right")]
            dead[number : number + len(ids)] |= (deleted[at] == ids) & (last[at] > inserted)
            number += len(ids)
        found = replace(rows, dead=np.flatnonzero(dead))
        if found.rows:
            self.result.rows[table.table_id].append(found)

    # Rows that the server never showed (§5.6) --------------------------------------------------------------------------

    def _find_unseen(self) -> None:
        """Flushed inserts of a partition whose rows are in no segment: the running server knew its tag with blanks only."""
        for table in self._tables.values():
            segments = self.segments.get(table.table_id, [])
            if table.partition == DEFAULT_PARTITION or table.old_rows <= sum(s.stored for s in segments):
                continue
            if table.table_id in self.damaged:
                continue  # these rows were recovered
            held = np.unique(np.concatenate([*(s.ids for s in segments), self._ids_of(table.old_deletes)]))
            log_rows = LogRows("old", table.schema, self.log.files, table.old_spans.build(), table.old_rows, np.empty(0, ID))
            known, number = [], 0
            for ids in log_rows.ids_only(_IDS_CHUNK):
                known.append(np.flatnonzero(np.isin(ids, held)) + number)
                number += len(ids)
            dead = np.concatenate(known)
            if len(dead) < table.old_rows:
                self.result.salvage.append(
                    LogSalvage(
                        "unseen",
                        table.collection,
                        table.partition,
                        replace(log_rows, id="wal-unseen", dead=dead),
                        "acknowledged and logged, but the server never applied them",
                    )
                )

    def _report(self) -> None:
        for (kind, collection, partition), extra in self._extras.items():
            rows = LogRows(f"wal-{kind}", extra.schema, self.log.files, extra.spans.build(), extra.rows, np.empty(0, ID))
            self.result.salvage.append(LogSalvage(kind, collection, partition, rows, extra.reason))
        for where, count in self._mismatched.items():
            self._note(
                Severity.ERROR,
                "wal-shape",
                where,
                "insert records in the log have vectors of another size than the collection's; they are left out",
                count,
            )
        for table_id, count in self._doubled.items():
            table = self._tables[table_id]
            self._note(
                Severity.WARNING,
                "partition-flushed",
                f"{table.collection}/{table.partition}",
                "the partition was flushed, its collection was not: a server of this version would insert the rows once more",
                count,
            )
        for table_id, found in self.result.rows.items():
            table = self._tables[table_id]
            for rows in found:
                recovered = rows.id == "wal-flushed"
                self._note(
                    Severity.WARNING if recovered else Severity.INFO,
                    "rows-from-log" if recovered else "wal-rows",
                    f"{table.collection}/{table.partition}",
                    "rows of damaged segments are taken from the write-ahead log, which still holds them"
                    if recovered
                    else "rows that were acknowledged but not yet flushed are taken from the write-ahead log",
                    rows.rows,
                )
        for table_id, segments in self.result.segments.items():
            count = sum(s.deleted for s in segments) - sum(s.deleted for s in self.segments.get(table_id, []))
            if count > 0:
                table = self._tables[table_id]
                self._note(
                    Severity.INFO,
                    "wal-deletes",
                    f"{table.collection}/{table.partition}",
                    "rows in segments are deleted by the write-ahead log",
                    count,
                )

    def _note(self, severity: Severity, code: str, where: str, message: str, rows: int | None = None) -> None:
        self.result.findings.append(Finding(severity, code, where, message, rows))


def _rows_before(table: _Table, lsn: int) -> int:
    """Inserted rows of the table up to `lsn`."""
    if not lsn:
        return 0
    k = int(np.searchsorted(np.array(table.insert_lsns, np.uint64), np.uint64(lsn), "right"))
    return table.insert_ends[k - 1] if k else 0


def _memory_segments(table: _Table, first: int) -> npt.NDArray[np.int64]:
    """Row numbers at which the server begins another segment in memory (§5.7), counted from row `first` on."""
    row_bytes, full_below = table.schema.row_bytes, table.schema.dimension * 4
    bounds, used, row = [], 0, first
    for end in table.insert_ends:
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


def _delete_from(segment: Segment, deleted: Ids) -> Segment:
    """The segment without rows whose id is in `deleted` (sorted): all of them, whatever their age (§5.7 b)."""
    if not len(deleted) or not segment.stored:
        return segment
    offsets, all_ids = [], segment.ids
    for first in range(0, segment.stored, _IDS_CHUNK):
        ids = np.asarray(all_ids[first : first + _IDS_CHUNK])
        at = np.minimum(np.searchsorted(deleted, ids), len(deleted) - 1)
        offsets.append(np.flatnonzero(deleted[at] == ids) + first)
    hits = np.concatenate(offsets)
    return segment.with_wal_deletes(hits) if len(hits) else segment


def _with_ids_of(log_rows: LogRows, segments: Iterable[Segment], share: float = 1.0) -> list[Segment]:
    """The segments, in the order of their numbers, that may consist of rows of the log: a sample of their ids is in it,
    or `share` of the sample."""
    most = log_rows.inserted / share
    order = sorted((s for s in segments if 0 < s.stored <= most), key=lambda s: s.id)
    if not order:
        return []
    logged = np.unique(np.concatenate(list(log_rows.ids_only(_IDS_CHUNK))))
    return [s for s in order if np.isin(s.ids[:: -(-s.stored // _SAMPLE)], logged).mean() >= share]


def _stored_hashes(segment: Segment) -> npt.NDArray[np.uint64]:
    """Hashes of all stored rows, deleted ones too."""
    ids, vectors, step = segment.ids, segment.vectors, max(1, (1 << 20) // segment.schema.row_bytes)
    parts = [row_hashes(ids[i : i + step], vectors[i : i + step]) for i in range(0, segment.stored, step)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _schema_of_unknown(record: Record, collection: str, catalog: Catalog) -> Schema | None:
    """What a dropped collection's record tells of its shape."""
    from ..model import VectorType

    for table in catalog.tables:
        if table.table_id == collection:
            return Schema(collection, table.dimension, table.vector_type, table.metric_name)
    if not record.rows or record.data_bytes % record.rows:
        return None
    width = record.data_bytes // record.rows
    if record.type == 2 and width % 4 == 0:
        return Schema(collection, width // 4, VectorType.FLOAT)
    if record.type in (0, 1):
        return Schema(collection, width * 8, VectorType.BINARY)
    return None
