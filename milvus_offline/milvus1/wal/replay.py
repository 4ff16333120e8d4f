"""What the write-ahead log adds to and takes from the segments (FORMAT §5.6, §5.7, §6 step 3 and 4).

The server's own recovery is followed record by record. Beyond it, rows that its recovery would double are taken once, and rows
that it would throw away with a damaged log are kept; both become findings.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...findings import Findings
from ...model import DEFAULT_PARTITION, SalvageKind, Schema, Severity, VectorType
from ..catalog.rows import Catalog, version_key
from ..copies import hashes_of, matched
from ..layout import ID, FileType
from ..live import LiveCollection
from ..segment.files import Segment
from .deletes import EVER, DeleteRecords, Deletes
from .log import Kind, Log, Record, Walk, is_new_numbering, schema_fits
from .outcome import LogSalvage, Opened, Replay
from .rows import LogRows, SpanBuilder
from .settlement import Settlement
from .strangers import Strangers
from .table import IDS_CHUNK, LoggedTable, delete_from
from .unrecorded import already_flushed, older_than_segments, partly_flushed, stored_hashes
from .window import Window, check_flush_lsns

_BLANKS = " \n\r\t"


@dataclass(eq=False)
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
    """Replays one log over one store."""

    def __init__(self, log: Log, opened: Opened, *, wal_enabled: bool | None) -> None:
        self.log = log
        self.opened = opened
        self.catalog = opened.catalog
        self.segments: dict[str, list[Segment]] = {k: list(v) for k, v in opened.segments.items()}
        """As they are before the replay: what the server lost or kept by mistake is put right in them."""
        self.schemas = opened.schemas
        self.wal_enabled = wal_enabled
        self.damaged = opened.damaged
        self.result = Replay()
        self._tables: dict[str, LoggedTable] = {}
        self._by_key: dict[tuple[str, str], LoggedTable] = {}
        self._members: dict[str, list[LoggedTable]] = defaultdict(list)
        """By collection, the default partition first."""
        self._untagged: dict[str, DeleteRecords] = defaultdict(lambda: DeleteRecords(log))
        self._tagged: dict[str, DeleteRecords] = defaultdict(lambda: DeleteRecords(log))
        self._odd: dict[str, DeleteRecords] = defaultdict(lambda: DeleteRecords(log))
        """Those whose tag is not quite the table's."""
        self._settlement = Settlement(opened, self.segments, self.result)
        in_memory: dict[str, int] = {}
        for row in (r for r in self.catalog.files if r.file_type == FileType.NEW):
            number = int(row.segment_id) if row.segment_id.isdecimal() else 0
            in_memory[row.table_id] = min(in_memory.get(row.table_id, number), number)
        for collection in opened.selection.collections:
            self._add_collection(collection, in_memory)
        self._extras: dict[tuple[SalvageKind, str, str], _Extra] = {}
        traces = {x.table_id for x in opened.selection.leftovers}
        self._strangers = Strangers(log, self.catalog, traces, self.schemas)
        self._mismatched: dict[str, int] = defaultdict(int)
        self._doubled: dict[str, int] = defaultdict(int)
        self._log_damaged = False
        self._by_root = False

    def _add_collection(self, collection: LiveCollection, in_memory: Mapping[str, int]) -> None:
        name = collection.table.table_id
        for partition in collection.partitions:
            is_root = partition.table is collection.table
            row = partition.table
            table = LoggedTable(
                row.table_id, name, partition.tag, self.schemas[name], row.flush_lsn, self.log, in_memory.get(row.table_id)
            )
            table.created_on = row.created_on
            self._tables[table.table_id] = table
            self._by_key.setdefault((name, "" if is_root else partition.tag), table)
            self._members[name].append(table)

    def run(self) -> Replay:
        """Reads the log and applies it; the log's damage is in the findings."""
        global_lsn = check_flush_lsns(self.log, self._tables.values(), self.catalog.global_lsn, self.result.findings)
        window = Window(self.log, [t.flush_lsn for t in self._tables.values()], global_lsn)
        self.result.start, self.result.end = window.start, window.end
        self.result.findings += window.findings
        self.result.segments = self.segments
        if not self.log.files:
            return self.result
        self._read()
        if self.catalog.knows_the_log and self.wal_enabled is not False:
            self._settlement.run(self._tables.values())
        self.result.segments = {k: list(v) for k, v in self.segments.items()}
        self._log_damaged = any(f.severity is Severity.ERROR for f in self.result.findings)
        for table in self._tables.values():  # the default partition first: its flush ends deletes without a tag
            self._apply(table)
        for table_id in self.damaged:
            self._recover(self._tables[table_id])
        if self.catalog.knows_the_log and self.wal_enabled is not False:
            self.result.deleted = {t.table_id: np.unique((t.old_deletes + t.deletes).ids) for t in self._tables.values()}
            odd = {*self.damaged, *self.opened.raced, *self._settlement.odd_tags}
            self.result.logged = [t for t in self._tables.values() if t.old_rows and t.flush_lsn and t.table_id not in odd]
            self.result.tails = self._settlement.tails
            self._find_lacking()
            self._strangers.report(self.result.findings)
            self._strangers.find_renamed(self._members, self.segments, self.result.findings)
        self._report()
        return self.result

    # Reading ---------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        start, end = self.result.start, self.result.end
        by_root = self._filters_by_root()
        self._share_deletes(start, by_root)
        walk = Walk(self.log, self.result.findings)
        first = min((f.number for f in self.log.files), default=0) << 32
        ends = array("Q")
        for record in Walk(self.log, Findings()).records(first, start):
            self._old(record)
            self._note_end(ends, record)
        for record in walk.records(start, end):
            self._replay(record, by_root)
            self._note_end(ends, record)
        if end is not None:
            for record in Walk(self.log, Findings()).records(end):
                self._unacknowledged(record)
        self._by_root = by_root

    def _note_end(self, ends: array[int], record: Record) -> None:
        if ends and ends[-1] >> 32 != record.file:
            self._settlement.tails.append(ends[-1])
        ends.append(record.lsn)

    def _delete(self, record: Record, table: LoggedTable, tag: str) -> None:
        exact = self._by_key.get((table.collection, tag)) is table
        (self._untagged[table.collection] if tag == "" else (self._tagged if exact else self._odd)[table.table_id]).add(record)

    def _share_deletes(self, start: int, by_root: bool) -> None:
        """Tells each table which deletes count: without a tag they reach all partitions, but only the collection's flush_lsn
        ends them (§5.7). One that knows only that would delete once more what a partition had flushed: not so here."""
        for members in self._members.values():
            root = members[0]
            for table in members:
                lists = self._untagged[table.collection], self._tagged[table.table_id]
                flushed = max(root.flush_lsn, table.flush_lsn)
                limits = (flushed, flushed) if by_root else (root.flush_lsn, table.flush_lsn)
                ends = [max(start, limit) for limit in limits]
                table.deletes = Deletes(tuple((d, end, EVER) for d, end in zip(lists, ends, strict=True)))
                table.applied_deletes = Deletes(tuple((d, 0, end) for d, end in zip(lists, ends, strict=True)))
                table.old_deletes = table.applied_deletes + Deletes(((self._odd[table.table_id], 0, EVER),))
                table.memory_deletes = Deletes(tuple((d, max(start, table.flush_lsn), EVER) for d in lists))

    def _filters_by_root(self) -> bool:
        """Whether the server is one of 0.7.0-0.9.0, which knows no flush_lsn per partition (§5.6)."""
        sample: list[tuple[Record, Schema]] = []
        for record in Walk(self.log, Findings()).records(min(f.number for f in self.log.files) << 32):
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
            self._strangers.unknown(record, collection, tag, self._by_key)
        elif record.kind is Kind.DELETE:
            self._delete(record, table, tag)
        elif schema_fits(record, table.schema):
            if tag != "" and (collection, tag) not in self._by_key:
                self._settlement.odd_tags.add(table.table_id)
                self._unseen(record, table)
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
                self._settlement.odd_tags.add(resolved.table_id)
                self._unseen(record, resolved)
            elif resolved is None:
                self._strangers.unknown(record, collection, tag, self._by_key)
                if record.kind is not Kind.DELETE:
                    self._dropped(record, collection, tag)
            return
        self._strangers.known(record)
        root = self._by_key[(collection, "")]
        flushed = root.flush_lsn if by_root else table.flush_lsn
        if record.kind is Kind.DELETE:
            self._delete(record, table, tag)
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

    def _resolve(self, collection: str, tag: str) -> LoggedTable | None:
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

    def _unseen(self, record: Record, table: LoggedTable) -> None:
        if schema_fits(record, table.schema):
            reason = f"acknowledged under the tag {record.tag.decode('utf-8', 'replace')!r}, which the server never applies"
            self._extra("unseen", table.collection, table.partition, table.schema, reason).add(record)

    def _dropped(self, record: Record, collection: str, tag: str) -> None:
        schema = self.schemas.get(collection)
        root = self._by_key.get((collection, ""))
        if schema is not None and root is not None and record.lsn > root.flush_lsn and not schema_fits(record, schema):
            self._mismatched[f"{collection}/{tag}"] += record.rows  # no dropped partition, but a damaged record
            return
        if schema is None:
            schema = _schema_of_unknown(record, collection, self.catalog)
        if schema is not None and schema_fits(record, schema):
            self._extra("dropped", collection, tag or DEFAULT_PARTITION, schema, "its collection or partition was dropped").add(
                record
            )

    def _extra(self, kind: SalvageKind, collection: str, partition: str, schema: Schema, reason: str) -> _Extra:
        return self._extras.setdefault((kind, collection, partition), _Extra(schema, reason))

    # Effects (§5.7) ----------------------------------------------------------------------------------------------------

    def _apply(self, table: LoggedTable) -> None:
        segments = self.result.segments.get(table.table_id, [])
        if not self.catalog.knows_the_log:
            self._apply_by_content(table, segments)
            return
        flushed = 0
        newest: set[str] = set()
        may_be_flushed = table.inserted and segments and (self._knows_all_of(table) or not table.in_memory)
        if may_be_flushed:
            flushed, newest = already_flushed(table, segments, self.result.findings)
        if self._is_stale(table, segments, flushed):
            return
        if flushed and table is self._by_key[table.collection, ""]:
            for member in self._members[table.collection][1:]:
                member.root_flushed = flushed
        stored = np.empty(0, np.int64)
        if not flushed and (may_be_flushed or (table.flush_lsn_wrong and table.inserted)) and self.wal_enabled is not False:
            certain = table.flush_lsn_wrong or self._knows_all_of(table)
            flushed, stored = older_than_segments(table, segments, self.result.findings, for_certain=certain)
            newest = {s.id for s in segments} if flushed else newest
        dead = np.union1d(table.dead_in_memory(flushed), stored)
        first = table.rows_before(flushed)
        if may_be_flushed and not flushed and not len(stored) and self._may_be_partly_flushed(table):
            share = 0.1 if self._knows_all_of(table) else 0.5  # where else should rows of a table come from?
            flushed, newest, stored = partly_flushed(table, segments, self.result.findings, share=share)
            dead = np.union1d(dead, stored)
        rows = table.log_rows(dead[dead >= first], first)
        if rows.rows:
            self.result.rows[table.table_id].append(rows)
        if len(table.deletes) and segments:
            deletes = table.segment_deletes()
            everything = deletes.ids
            recent = deletes.after(flushed).ids if flushed else everything
            self.result.segments[table.table_id] = [delete_from(s, recent if s.id in newest else everything) for s in segments]

    def _may_be_partly_flushed(self, table: LoggedTable) -> bool:
        """Whether rows in the log and in a segment can be from a flush of damaged ones, and were not inserted
        twice: there is damage, or the log tells of all inserts."""
        if self.wal_enabled is False or table.in_memory:
            return False
        return self._log_damaged or table.table_id in self.damaged or self._knows_all_of(table)

    def _knows_all_of(self, table: LoggedTable) -> bool:
        """Whether the log tells all that was ever inserted into the table: nothing was flushed before, or no file is gone."""
        return not table.flush_lsn or self.log.files[0].number == 0

    def _apply_by_content(self, table: LoggedTable, segments: Sequence[Segment]) -> None:
        """Without a catalog nothing tells what was flushed: a row of the log that some segment stores was, others were not.

        Deletes take rows out of segments unless the log inserts their id again later.
        """
        log_rows = table.log_rows()
        dead = removed = table.dead_in_memory(0)
        if table.inserted and segments:
            stored = np.concatenate([stored_hashes(s) for s in segments])
            dead = np.union1d(dead, np.flatnonzero(np.isin(hashes_of(log_rows.batches()), stored)))
        rows = replace(log_rows, dead=np.sort(dead))
        if rows.rows:
            self.result.rows[table.table_id].append(rows)
        deleted = table.deletes.ids
        if len(deleted) and segments:
            again = np.delete(np.concatenate([np.empty(0, ID), *log_rows.ids_only(IDS_CHUNK)]), removed)
            self.result.segments[table.table_id] = [delete_from(s, np.setdiff1d(deleted, again)) for s in segments]

    def _is_stale(self, table: LoggedTable, segments: Sequence[Segment], flushed: int) -> bool:
        """Whether the log is a leftover from before the server ran with its WAL switched off (§5.8): then flush_lsn is 0 again,
        segments hold rows of the log, and others that it does not know."""
        if self.wal_enabled is not None or table.flush_lsn or flushed or not table.inserted:
            return False
        if not any(s.stored for s in segments):
            return False
        log_rows = table.log_rows()
        hashes = hashes_of(log_rows.batches())
        stored = np.concatenate([stored_hashes(s) for s in segments])
        known = np.flatnonzero(np.isin(hashes, stored))
        if not len(known) or np.isin(stored, hashes).all():
            return False
        self._note(
            Severity.WARNING,
            "wal-stale",
            table.place,
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

    def _recover(self, table: LoggedTable) -> None:
        """Takes rows of flushed records that no segment of a damaged table stores any more and that nothing deleted."""
        if not table.old_rows:
            return
        segments = self.segments.get(table.table_id, [])
        rows = table.old_log_rows("wal-flushed")
        hashes = hashes_of(rows.batches())
        dead = matched(hashes, np.concatenate([np.empty(0, np.uint64), *(stored_hashes(s) for s in segments)]))
        dead |= table.deleted_since(table.old_deletes + table.deletes)
        found = replace(rows, dead=np.flatnonzero(dead))
        if found.rows:
            self.result.rows[table.table_id].append(found)

    def _find_lacking(self) -> None:
        """Tables of which the catalog knows rows in memory (§3.3): what was put there stands in the log, after flush_lsn. So
        where it does not, the log has lost it. Up to 0.9.0 partitions are flushed by the collection's number (§5.6). And
        a server whose flush has failed leaves such tables, too; that is told already (§17), and so is a file of the log that
        cannot be read."""
        if self._settlement.struck or any(f.code == "wal-unreadable" for f in self.result.findings):
            return
        found = {table_id for table_id, rows in self.result.rows.items() if rows} | self._settlement.taken
        for table in self._tables.values():
            is_told = table.table_id in found or (self._by_root and table.partition != DEFAULT_PARTITION)
            if table.in_memory and not table.inserted and not is_told:
                self._note(
                    Severity.WARNING,
                    "wal-lacks-rows",
                    table.place,
                    "the catalog knows of rows that were not flushed, and the log holds none of them: it was emptied or cut, "
                    "or is that of another server (--wal names the right one)",
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
                "insert records in the log have vectors of another size or type than the collection's; they are left out",
                count,
            )
        for table_id, count in self._doubled.items():
            table = self._tables[table_id]
            self._note(
                Severity.INFO,
                "partition-flushed",
                table.place,
                "the partition was flushed, its collection was not: a server of this version would insert the rows once more",
                count,
            )
        for table_id, found in self.result.rows.items():
            table = self._tables[table_id]
            for rows in found:
                if rows.id == "wal-lost":
                    continue
                recovered = rows.id == "wal-flushed"
                self._note(
                    Severity.WARNING if recovered else Severity.INFO,
                    "rows-from-log" if recovered else "wal-rows",
                    table.place,
                    "rows of damaged segments are read from the write-ahead log, which still holds them"
                    if recovered
                    else "acknowledged rows that were not yet flushed are read from the write-ahead log",
                    rows.rows,
                )
        for table_id, segments in self.result.segments.items():
            count = sum(s.deleted for s in segments) - sum(s.deleted for s in self.segments.get(table_id, []))
            if count > 0:
                table = self._tables[table_id]
                self._note(
                    Severity.INFO,
                    "wal-deletes",
                    table.place,
                    "rows in segments are deleted by the write-ahead log",
                    count,
                )

    def _note(self, severity: Severity, code: str, where: str, message: str, rows: int | None = None) -> None:
        self.result.findings.add(severity, code, where, message, rows)


def _schema_of_unknown(record: Record, collection: str, catalog: Catalog) -> Schema | None:
    """What a dropped collection's record tells of its shape."""
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
