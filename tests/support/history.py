"""A model of a Milvus 1.1.1 server, written from FORMAT §3.3, §3.4, §5.6, §5.7: it lives a random history and can be killed at
any step. It knows what a restarted server would answer, and renders what it has left on disk as a real store.

Rows are (id, vector bytes). Nothing of the package decides here: replay is done again in plain lists, record by record.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from milvus_offline.milvus1.layout import FileType
from milvus_offline.model import Batch
from support.builder import DIMENSION, LogBuilder, StoreBuilder, append_garbage, rows

Row = tuple[int, bytes]
NEW, RAW, TO_INDEX, INDEX, TO_DELETE, NEW_MERGE, NEW_INDEX, BACKUP = map(int, FileType)

MEMORY_ROWS = 6
"""Rows at which a segment in memory is full."""
NAMES = ("a", "b")
TAGS = ("p", "q")


class Crash(Exception):
    """The server was killed."""


@dataclass
class Segment:
    """A segment folder: complete, or torn by a crash while it was written."""

    id: str
    rows: list[Row] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    written: bool = False

    @property
    def live(self) -> list[Row]:
        return [r for i, r in enumerate(self.rows) if i not in self.dead]


@dataclass
class File:
    """A row of TableFiles."""

    table_id: str
    segment_id: str
    file_id: str
    type: int
    rows: int = 0
    size: int = 0

    @property
    def is_raw(self) -> bool:
        return self.file_id == self.segment_id


@dataclass
class Table:
    """A row of Tables, and what the running server holds in memory for it."""

    table_id: str
    owner: str
    tag: str
    flush_lsn: int
    created_on: int
    state: int = 0
    unrecorded: int = 0
    """LSN of a flush whose rows are in segments while `flush_lsn` is still the old one: the crash between T1 and T2."""
    memory: list[Segment] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)
    """Ids to delete from segments on disk at the next flush."""
    lsn: int = 0
    """Of the last operation in memory; 0: nothing to flush."""

    @property
    def collection(self) -> str:
        return self.owner or self.table_id

    @property
    def key(self) -> tuple[str, str]:
        return self.collection, self.tag


@dataclass(frozen=True)
class Logged:
    """A record in the log."""

    lsn: int
    collection: str
    tag: str
    ids: tuple[int, ...]
    rows: tuple[Row, ...] | None
    """None: a delete."""


def read_log(files: dict[int, bytearray], start: int, end: int) -> Iterator[Logged]:
    """Records after `start` up to `end` as a server reads them (§5.4, §5.6): one after the other, file by file."""
    for number in sorted(n for n in files if n >= start >> 32):
        data = bytes(files[number])
        at = start & 0xFFFFFFFF if number == start >> 32 else 0
        while len(data) >= at + 21:
            lsn, _, c, t, n, s = struct.unpack_from("<QBHHII", data, at)
            names_at, ids_at = at + 21, at + 21 + c + t
            data_at = ids_at + 8 * n
            at = data_at + s
            if lsn != number << 32 | at or at > len(data) or lsn > end:
                break
            ids = struct.unpack_from(f"<{n}q", data, ids_at)
            size = s // max(1, n)
            made = tuple((one, data[data_at + k * size : data_at + (k + 1) * size]) for k, one in enumerate(ids))
            yield Logged(
                lsn, data[names_at : names_at + c].decode(), data[names_at + c : ids_at].decode(), ids, made if s else None
            )


def remove_from_memory(memory: list[Segment], ids: tuple[int, ...]) -> None:
    """One delete record (§5.7): a single id takes its first row of each segment in memory, several ids take all."""
    for segment in memory:
        for one in set(ids):
            hits = [i for i, r in enumerate(segment.rows) if r[0] == one and i not in segment.dead]
            segment.dead.update(hits if len(ids) > 1 else hits[:1])


def add_to_memory(memory: list[Segment], new: Iterable[Row], new_id: Any) -> None:
    """One insert record; what was deleted does not make room."""
    for row in new:
        if not memory or len(memory[-1].rows) == MEMORY_ROWS:
            memory.append(Segment(new_id()))
        memory[-1].rows.append(row)


class Server:
    """The server: `random_step` does something, any part of which may raise Crash; `start` recovers."""

    def __init__(self, rng: Random, *, file_bytes: int = 1 << 20) -> None:
        self.rng = rng
        self.log = LogBuilder(file_bytes=file_bytes)
        self.tables: list[Table] = []
        self.files: list[File] = []
        self.folders: dict[tuple[str, str], Segment] = {}
        self.global_lsn: int | None = None
        self.fuse = 0
        self.trap: tuple[str, ...] = ()
        """Steps after which it dies once the fuse is short."""
        self.skipped: dict[tuple[str, str], set[int]] = {}
        """Ids of deletes that a recovery passed over, by collection and tag: the collection was flushed, the partition not."""
        self.story: list[str] = []
        self._number = 0
        self._aside: list[File] = []
        """Files put aside when some were last removed, in that order."""
        self._salt = 0
        self._batches: list[Batch] = []

    # Bits and pieces ---------------------------------------------------------------------------------------------------

    def tick(self, what: str) -> None:
        """A step has become durable; the server may die right after it."""
        self.story.append(what)
        self.fuse -= 1
        if self.fuse <= 0 or (self.fuse < 30 and what.startswith(self.trap)):
            raise Crash

    def new_id(self) -> str:
        self._number += 1
        return str(1_700_000_000_000_000_000 + 1000 * self._number)

    def now(self) -> int:
        """µs; no two moments are equal, and ids are moments (§1.2)."""
        return int(self.new_id()) // 1000

    def alive(self) -> list[Table]:
        owners = {t.table_id for t in self.tables if not t.owner and not t.state}
        return [t for t in self.tables if not t.state and (not t.owner or t.owner in owners)]

    def raw_files(self, table: Table, *types: int) -> list[File]:
        return [f for f in self.files if f.table_id == table.table_id and f.is_raw and f.type in types]

    def segment(self, file: File) -> Segment:
        return self.folders[file.table_id, file.segment_id]

    def begun(self, file: File) -> None:
        """A row of TableFiles was inserted."""

    def update(self, file: File, type: int, rows: int) -> None:
        """A flush or merge has written the segment of this row of TableFiles."""
        file.type, file.rows, file.size = type, rows, rows * (4 * DIMENSION + 8)

    def flush_lsns(self) -> dict[tuple[str, str], int]:
        return {t.key: t.flush_lsn for t in self.alive()}

    # Clients -----------------------------------------------------------------------------------------------------------

    def random_step(self) -> None:
        """One call of a client or one act of a background thread."""
        steps = [self.insert] * 8 + [self.delete] * 5 + [self.flush] * 3 + [self.flush_collection, self.merge, self.merge]
        steps += [self.compact, self.make_index, self.build_index, self.build_index, self.drop_index, self.create, self.create]
        steps += [self.clean_up, self.drop]
        self.rng.choice(steps)()

    def create(self) -> None:
        collection = self.rng.choice(NAMES)
        known = {t.table_id for t in self.tables}
        if collection not in known:
            self.tables.append(Table(collection, "", "", self.log.acknowledged, self.now()))
            self.tick(f"create {collection}")
            return
        tag = self.rng.choice(TAGS)
        live = self.flush_lsns()
        if (collection, "") in live and (collection, tag) not in live:
            self.tables.append(Table(self.new_id(), collection, tag, self.log.acknowledged, self.now()))
            self.tick(f"create {collection}/{tag}")

    def insert(self, *, acknowledge: bool = True, apply: bool = True) -> None:
        if not self.alive():
            return
        table = self.rng.choice(self.alive())
        tag = table.tag
        if self.rng.random() < 0.05:
            tag = self.rng.choice(("_default", f" {tag}", "unknown"))
        # the same rows once more; not where nobody could tell them from a flush that was not recorded
        if self._batches and self.rng.random() < 0.03 and apply and not any(t.unrecorded for t in self.alive()):
            batch = self.rng.choice(self._batches)
        else:
            self._salt += 1
            count = self.rng.choice((1, 1, 2, 3, 5, 9))
            batch = rows(*(self.rng.randrange(-3, 12) for _ in range(count)), salt=self._salt)
            self._batches.append(batch)
        before = self.log.position
        self.log.insert(table.collection, batch, tag, acknowledge=acknowledge)
        self.story.append(f"insert {table.collection}/{tag!r} {batch.ids.tolist()} lsn {self.log.position}")
        self._apply(before, apply and acknowledge)

    def delete(self, *, acknowledge: bool = True, apply: bool = True) -> None:
        if not self.alive():
            return
        table = self.rng.choice(self.alive())
        ids = [self.rng.randrange(-3, 12) for _ in range(self.rng.choice((1, 1, 1, 2, 4)))]
        tag = self.rng.choice(("", "", table.tag))
        before = self.log.position
        self.log.delete(table.collection, ids, tag, acknowledge=acknowledge)
        self.story.append(f"delete {table.collection}/{tag!r} {ids} lsn {self.log.position}")
        self._apply(before, apply and acknowledge)

    def _apply(self, before: int, apply: bool) -> None:
        if apply:
            for record in read_log(self.log.files, before, self.log.position):
                self._execute(record)
            self.tick("applied")

    def _execute(self, record: Logged) -> None:
        """What the log's thread does with a record, live and in recovery."""
        lsns = self.flush_lsns()
        if lsns.get((record.collection, record.tag), record.lsn) >= record.lsn:
            return
        for table in self.alive():
            if record.rows is not None and table.key == (record.collection, record.tag):
                known = len(table.memory)
                add_to_memory(table.memory, record.rows, self.new_id)
                for segment in table.memory[known:]:
                    self.files.append(File(table.table_id, segment.id, segment.id, NEW))
                    self.begun(self.files[-1])
                    self.folders[table.table_id, segment.id] = Segment(segment.id)
                table.lsn = record.lsn
            elif record.rows is None and table.collection == record.collection and record.tag in ("", table.tag):
                remove_from_memory(table.memory, record.ids)
                table.pending.update(record.ids)
                table.lsn = record.lsn

    # Flush -------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        tables = [t for t in self.alive() if t.lsn]
        if not tables:
            return
        lsn = max(t.lsn for t in tables)
        self.rng.shuffle(tables)
        for table in tables:
            self._flush_table(table, lsn)
        self.global_lsn = max(lsn, self.global_lsn or 0)
        self.tick("T3")
        self._forget(lsn >> 32)
        self.tick("log files removed")

    def flush_collection(self) -> None:
        if self.alive():
            name = self.rng.choice(self.alive()).collection
            for table in [t for t in self.alive() if t.collection == name and t.lsn]:
                self._flush_table(table, table.lsn)

    def _flush_table(self, table: Table, lsn: int) -> None:
        for file in self.raw_files(table, RAW, TO_INDEX, BACKUP) if table.pending else ():
            segment = self.segment(file)
            hit = {i for i, r in enumerate(segment.rows) if r[0] in table.pending} - segment.dead
            if hit:
                segment.dead |= hit
                self.tick(f"deletes applied to {segment.id}")
                file.rows -= len(hit)
        for segment in table.memory:
            self.folders[table.table_id, segment.id] = torn = Segment(segment.id, segment.live[: self.rng.randrange(1, 9)])
            self.tick(f"half of {segment.id} written")
            torn.rows, torn.written = segment.live, True
            self.tick(f"{segment.id} written")
        wanted = self.rng.choice((RAW, RAW, TO_INDEX))
        for segment in table.memory:
            for file in [f for f in self.files if (f.table_id, f.segment_id, f.type) == (table.table_id, segment.id, NEW)]:
                self.update(file, wanted, len(segment.live))
        if any(s.live for s in table.memory):
            table.unrecorded = lsn
        table.memory, table.pending, table.lsn = [], set(), 0
        self.tick(f"T1 {table.key} lsn {lsn}")
        table.flush_lsn, table.unrecorded = max(lsn, table.flush_lsn), 0
        self.tick(f"T2 {table.key}")

    # Background --------------------------------------------------------------------------------------------------------

    def merge(self) -> None:
        for table in self.rng.sample(self.alive(), len(self.alive())):
            files = self.raw_files(table, RAW)
            if len(files) > 1:
                sources = self.rng.sample(files, self.rng.randrange(2, len(files) + 1))
                self._rewrite(table, sources, "merge")
                return

    def compact(self) -> None:
        for table in self.alive():
            for file in self.raw_files(table, RAW, TO_INDEX, BACKUP):
                segment = self.segment(file)
                if len(segment.dead) * 10 >= max(1, len(segment.rows)):
                    self._rewrite(table, [file], "compact")
                    return

    def _rewrite(self, table: Table, sources: list[File], why: str) -> None:
        target = Segment(self.new_id())
        file = File(table.table_id, target.id, target.id, NEW_MERGE)
        self.files.append(file)
        self.begun(file)
        self.tick(f"{why}: {target.id} begun")
        self.folders[table.table_id, target.id] = target
        everything = [r for s in sources for r in self.segment(s).live]
        target.rows = everything[: len(everything) // 2]
        self.tick("half of it written")
        target.rows, target.written = everything, True
        self.tick("all of it written")
        gone = {s.segment_id for s in sources}
        for old in self.files:
            if old.table_id == table.table_id and old.segment_id in gone:
                old.type = TO_DELETE
        self.update(file, self.rng.choice((RAW, TO_INDEX)) if everything or why == "merge" else TO_DELETE, len(everything))
        self.tick(f"{why}: sources put aside")

    def make_index(self) -> None:
        for table in self.alive():
            for file in self.raw_files(table, RAW):
                if self.rng.random() < 0.7:
                    file.type = TO_INDEX
        self.tick("index wanted")

    def build_index(self) -> None:
        for table in self.rng.sample(self.alive(), len(self.alive())):
            for raw in self.raw_files(table, TO_INDEX):
                index = File(table.table_id, raw.segment_id, self.new_id(), NEW_INDEX)
                self.files.append(index)
                self.tick(f"index of {raw.segment_id} begun")
                index.type, raw.type = INDEX, BACKUP
                index.rows = raw.rows
                self.tick("index built")
                return

    def drop_index(self) -> None:
        if self.alive():
            name = self.rng.choice(self.alive()).table_id
            for file in (f for f in self.files if f.table_id == name):
                file.type = {INDEX: TO_DELETE, BACKUP: RAW, TO_INDEX: RAW}.get(file.type, file.type)
            self.tick(f"index of {name} dropped")

    def drop(self) -> None:
        if not self.alive() or self.rng.random() < 0.7:
            return
        table = self.rng.choice(self.alive())
        doomed = [table, *(t for t in self.alive() if t.owner == table.table_id)]
        for one in doomed:
            one.state = 1
            one.memory, one.pending, one.lsn = [], set(), 0
            self.tick(f"drop {one.key}")
            for file in (f for f in self.files if f.table_id == one.table_id):
                file.type = TO_DELETE
            self.tick("its files put aside")

    def clean_up(self) -> None:
        """Physical deletion (§3.5), of those first that were put aside first: a segment's sources before the segment."""
        aside = [f for f in self._aside if f in self.files]
        self._aside = aside + [f for f in self.files if f.type == TO_DELETE and not any(f is a for a in aside)]
        removed = self._aside[: self.rng.randrange(len(self._aside) + 1)]
        for file in removed:
            self.files.remove(file)
            if not any(f.segment_id == file.segment_id for f in self.files):
                self.folders.pop((file.table_id, file.segment_id), None)
        gone = {f.table_id for f in removed} - {f.table_id for f in self.files}
        self.folders = {k: s for k, s in self.folders.items() if k[0] not in gone}  # with what crashes have left there
        for table in [t for t in self.tables if t.state and not any(f.table_id == t.table_id for f in self.files)]:
            self.tables.remove(table)
        self.tick("cleaned up")

    # Death and recovery ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """An orderly stop."""
        self.flush()
        self._remove_unfinished()

    def die(self) -> None:
        """What was in memory is gone. Calls that were acknowledged but not applied may be in the log, then part of one that was
        not acknowledged."""
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            self.rng.choice((self.insert, self.delete))(apply=False)
        if self.rng.random() < 0.4:
            before = self.log.position
            self.rng.choice((self.insert, self.delete))(acknowledge=False)
            old, end = self.log.files.get(before >> 32, bytearray()), before & 0xFFFFFFFF
            if self.log.position >> 32 != before >> 32 and len(old) <= end:
                # all of it in a new file: after two crashes nobody could tell it from a call after the next one
                self.log.files.pop(self.log.position >> 32, None)
                self.log.position = before
            last, at = self.log.position >> 32, self.log.position & 0xFFFFFFFF
            begin = before & 0xFFFFFFFF if before >> 32 == last else 0
            if at > begin and self.rng.random() < 0.5:
                self.story.append("the last call is torn")
                self.log.files[last] = self.log.files[last][: self.rng.randrange(begin, at)]
        for table in self.tables:
            table.memory, table.pending, table.lsn = [], set(), 0

    def window(self) -> tuple[int, int]:
        """§5.6."""
        lsns = self.flush_lsns().values()
        applied, start = self.log.acknowledged, self.global_lsn or 0
        if lsns:
            applied, start = max(applied, *lsns), max(start, min(lsns))
        return start, max(applied, start)

    def can_start(self) -> bool:
        """Whether the real server would: it refuses when a file that it wants to read is missing or short (§16)."""
        start, applied = self.window()
        if start == applied:
            return True
        wanted = range(start >> 32, (applied >> 32) + 1)
        ends = {n: len(d) for n, d in self.log.files.items()}
        return all(n in ends for n in wanted) and ends[start >> 32] >= start & 0xFFFFFFFF

    def start(self) -> None:
        """Start-up in its order (§3.2): unfinished rows go, the log is replayed, and all of it is flushed."""
        self.story.append("--- start")
        self._remove_unfinished()
        start, applied = self.window()
        if start == applied:
            number = applied >> 32
            if self.log.files or applied:
                number += 1
            self._forget(number)
            self.log.position = number << 32
        else:
            replayed = list(read_log(self.log.files, start, applied))
            self.skipped = self.passed_over()
            self._forget(start >> 32)
            self.log.position = applied
            for record in replayed:
                self._execute(record)
        self.log.acknowledged = applied
        self.tick("replayed")
        self.flush()

    def passed_over(self) -> dict[tuple[str, str], set[int]]:
        """Ids of deletes that recoveries have passed over, and the next one would: a delete without a tag is tested against the
        collection's flush_lsn only, and a partition may have been flushed before (§5.7)."""
        lsns = self.flush_lsns()
        result = {key: set(ids) for key, ids in self.skipped.items()}
        for record in read_log(self.log.files, *self.window()):
            if record.rows is None and record.tag == "" and record.lsn <= lsns.get((record.collection, ""), 0):
                for table in self.alive():
                    if table.collection == record.collection and table.flush_lsn < record.lsn:
                        result.setdefault(table.key, set()).update(record.ids)
        return result

    def _forget(self, below: int) -> None:
        self.log.files = {n: data for n, data in self.log.files.items() if n >= below}

    def _remove_unfinished(self) -> None:
        self.files = [f for f in self.files if f.type not in (NEW, NEW_MERGE, NEW_INDEX)]

    # What is true ------------------------------------------------------------------------------------------------------

    def expected(self) -> dict[tuple[str, str], Counter[Row]]:
        """What a restarted server would answer, and rows that its recovery would double only once.

        Not so when it has died in just that recovery: that looks as if the same rows had been inserted again.
        """
        start, applied = self.window()
        lsns = self.flush_lsns()
        memory: dict[str, list[Segment]] = {t.table_id: [] for t in self.alive()}
        deleted: dict[str, set[int]] = {t.table_id: set() for t in self.alive()}
        for record in read_log(self.log.files, start, applied):
            key = record.collection, record.tag
            if lsns.get(key, record.lsn) >= record.lsn:
                continue
            for table in self.alive():
                root = next(t for t in self.alive() if t.key == (table.collection, ""))
                # what the collection's unrecorded flush and the partition's own one have applied is not applied again
                twice = record.rows is None and record.lsn <= min(self._ended(root), table.flush_lsn)
                if record.lsn <= self._ended(table) or twice:
                    continue
                if record.rows is not None and table.key == key:
                    add_to_memory(memory[table.table_id], record.rows, str)
                elif record.rows is None and table.collection == record.collection and record.tag in ("", table.tag):
                    remove_from_memory(memory[table.table_id], record.ids)
                    deleted[table.table_id].update(record.ids)
        result = {}
        for table in self.alive():
            stored = (r for f in self.raw_files(table, RAW, TO_INDEX, BACKUP) for r in self.segment(f).live)
            found = Counter(r for r in stored if r[0] not in deleted[table.table_id])
            found.update(r for s in memory[table.table_id] for r in s.live)
            result[table.collection, table.tag or "_default"] = found
        return result

    def _ended(self, table: Table) -> int:
        """LSN of a flush that is not recorded, where a reader can know of it."""
        whole = not table.flush_lsn or min(self.log.files, default=1) == 0
        return table.unrecorded if whole or not self.raw_files(table, NEW) else 0

    # On disk -----------------------------------------------------------------------------------------------------------

    def render(self, folder: Path) -> Path:
        """Writes the store as the server has left it."""
        b = StoreBuilder(folder)
        for table in self.tables:
            columns = {"state": table.state, "flush_lsn": table.flush_lsn, "created_on": table.created_on}
            if table.owner:
                b.partition(table.owner, table.tag, table_id=table.table_id, **columns)
            else:
                b.collection(table.table_id, **columns)
        for (table_id, segment_id), segment in self.folders.items():
            self._render_segment(b, table_id, segment_id, segment)
        for file in self.files:
            b.file(file.table_id, file.segment_id, file.type, file_id=file.file_id, row_count=file.rows, file_size=file.size)
        b.global_lsn = self.global_lsn
        b.wal = self.log
        return b.write(checkpoint=self.rng.random() < 0.5)

    def _render_segment(self, b: StoreBuilder, table_id: str, segment_id: str, segment: Segment) -> None:
        ids = np.array([r[0] for r in segment.rows], np.int64)
        vectors = np.frombuffer(b"".join(r[1] for r in segment.rows), "<f4").reshape(-1, DIMENSION)
        offsets = sorted(segment.dead)
        self.rng.shuffle(offsets)
        made = b.folder(table_id, segment_id, Batch(ids, vectors), deleted=offsets)
        if not segment.written:
            for path in self.rng.sample([made.raw, made.ids, made.deleted], self.rng.randrange(1, 4)):
                path.unlink()
        elif segment.dead and self.rng.random() < 0.2:
            append_garbage(made.deleted)
