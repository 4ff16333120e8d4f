"""Rows into a running Milvus: tasks that are messages, and what makes a repeated run neither lose nor double a row.

A task is a slice of a partition, at most a message's size, cut the same way in every run. It is done when the server
acknowledged it and the ledger says so. After a kill, the tasks that may have been sent without an entry are the first few
without one (see `transfer.UNNOTED_EACH`). What happens to those depends on the target:

- *Milvus Lite with ids*: an insert replaces the row of that id, so the task is sent again. Messages go one at a time, in
  order: of rows with one id the last stays, as planned.
- *A server with ids*: the task's ids are deleted from its partition and the task is sent again; what is inserted after a
  delete stays. Where ids repeat (`--duplicates keep`), messages go one at a time, and rows with those ids from earlier
  tasks, deleted as well, are sent again first.
- *A server with ids, into a collection that held rows before* (append): nothing is deleted, as those ids may be someone
  else's; rows that are there already with the same vector are read back and not sent again.
- *Ids made by the target*: messages go one at a time, one shard, so what arrived is a prefix of the one open message; the
  partition's row count says how long it is.

The same happens within a run when a call breaks off without an answer (the server died, a time-out).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...errors import TargetError
from ...model import Array, Places, Schema, SourceCollection
from ...transfer import Advance, Result
from ...watch import Watch, watching
from ..slices import Slice, cut_rows, read
from .client import FIRST_WAIT, LONGEST_WAIT, Client
from .refusals import Busy, TooLarge, Unclear, is_wrong_call
from .terms import CollectionPlan, PartitionPlan
from .wire import Keys, Layout

_log = logging.getLogger("milvus_offline")

MESSAGE_BYTES = 4 << 20
LITE_MESSAGE_BYTES = 2 << 20
MESSAGE_ROWS = 1 << 16
LITE_MESSAGE_ROWS = 10_000


@dataclass
class Link:
    """What all tasks share: the connection, limits found out on the way, and what has arrived."""

    client: Client
    patience: float = 300.0
    """Seconds without any success after which a load gives up."""
    max_bytes: int = MESSAGE_BYTES
    done: dict[str, int] = field(default_factory=dict)
    """Rows by id of finished task."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def shrink(self, sent: int, reason: str) -> None:
        with self.lock:
            if sent <= 4096:
                raise TargetError(f"{self.client.connection.name}: takes no message of {sent} bytes: {reason}")
            self.max_bytes = min(self.max_bytes, sent // 2)


@dataclass
class CollectionJob:
    """One collection under way: its plan, its rows to leave out, what the target held before."""

    plan: CollectionPlan
    schema: Schema
    dropped: npt.NDArray[np.int64]
    tasks: list[LoadTask] = field(default_factory=list)
    baseline: Mapping[str, int] = field(default_factory=dict)
    """Rows before the load by target partition, by the statistics; only where ids are made by the target."""
    held_rows: bool = False
    """Whether the collection held rows before the load."""
    checked: int = 0
    """Rows that verification read back and compared."""

    @property
    def layout(self) -> Layout:
        p = self.plan
        return Layout(p.vector_field, p.vector_type, p.dimension, None if p.auto_id else p.id_field, p.key_field)

    def before(self, task: LoadTask) -> list[LoadTask]:
        """Tasks that precede `task` and write into the same partition of the target."""
        same = [t for t in self.tasks if t.scope == task.scope]
        return same[: same.index(task)]


@dataclass(eq=False)
class LoadTask:
    """A message's worth of rows. `position` is the first row's number within its collection.

    They are of one partition (`partition`), but where a field holds the partition's name: `shares` are then the partitions in
    their order, with the rows of each. 1,500 small partitions go in a few messages, as the server takes some tenths of a
    second for each.
    """

    id: str
    job: CollectionJob
    partition: PartitionPlan
    position: int
    source_rows: int
    slices: tuple[Slice, ...]
    link: Link
    shares: tuple[tuple[PartitionPlan, int], ...] = ()
    doubtful: bool = False
    """An earlier run may have sent it without writing that down."""
    seen: Watch = field(default_factory=Watch)
    """What the last `read` met."""
    _share: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    """Of each row that was read last the number of its share."""

    @property
    def rows(self) -> int:
        low, high = np.searchsorted(self.job.dropped, (self.position, self.position + self.source_rows))
        return self.source_rows - int(high - low)

    @property
    def bytes(self) -> int:
        return self.rows * (self.job.schema.row_bytes + 8)

    @property
    def scope(self) -> str | None:
        """The target's partition that deletes and counts are confined to; None for the whole collection."""
        return None if self.job.plan.key_field else self.partition.target

    def read(self) -> tuple[npt.NDArray[np.int64], Array]:
        """Ids int64 [n] and vectors of the rows to send; valid until the next read in this thread."""
        with watching() as self.seen:
            ids, vectors, lost = read(self.slices, self.job.schema, self.link.max_bytes)
        if self.job.plan.key_field:
            of = np.delete(np.repeat(np.arange(len(self.shares)), [n for _, n in self.shares]), lost)
            self._share, _ = chosen(of, of, lost, self.job.dropped, self.position)
        return chosen(ids, vectors, lost, self.job.dropped, self.position)

    def run(self, advance: Advance) -> Result:
        ids, vectors = self.read()
        result: Result = {"rows": len(ids)}
        start = 0
        samples: list[list[int]] = []
        patience = Patience(self.link.patience, self.link.client.connection.name)
        unclear = self.doubtful
        while True:
            try:
                if unclear:
                    ids, vectors, start = self._settle(ids, vectors, start)
                    unclear = False
                while start < len(ids):
                    count = self._message_rows(len(ids) - start)
                    chunk = slice(start, start + count)
                    returned = self._send(ids[chunk], vectors[chunk], self._keys(chunk), advance)
                    if self.job.plan.auto_id and len(returned) == count:
                        samples += [[start, int(returned[0])], [start + count - 1, int(returned[-1])]]
                    start += count
                    patience.renew()
                break
            except TooLarge as e:
                self.link.shrink(self._size(count), str(e))
            except Busy as e:
                patience.wait(str(e), advance)
            except Unclear as e:
                unclear = True
                patience.wait(str(e), advance)
        if samples:
            result["ids"] = samples[:2] + samples[-1:]
        if self.seen.is_incomplete:
            result |= self.seen.result()
        self.link.done[self.id] = result["rows"]
        return result

    def _size(self, rows: int) -> int:
        return rows * (self.job.schema.row_bytes + 10)

    def _message_rows(self, rows: int) -> int:
        return min(rows, max(1, self.link.max_bytes // (self.job.schema.row_bytes + 10)))

    def _keys(self, rows: slice | npt.NDArray[np.int64]) -> Keys:
        """The key field's values of some of the rows that were read last."""
        if not self.job.plan.key_field:
            return ()
        numbers, counts = np.unique(self._share[rows], return_counts=True)  # they are in this order
        return [(str(self.shares[i][0].key), n) for i, n in zip(numbers.tolist(), counts.tolist(), strict=True)]

    def _send(self, ids: npt.NDArray[np.int64], vectors: Array, keys: Keys, advance: Advance) -> npt.NDArray[np.int64]:
        job = self.job
        returned = self.link.client.insert(job.layout, job.plan.name, self.partition.target, ids, vectors, keys)
        advance(len(ids), len(ids) * (job.schema.row_bytes + 8))
        return returned

    # After a call without an answer -----------------------------------------------------------------------------------

    def _settle(self, ids: npt.NDArray[np.int64], vectors: Array, start: int) -> tuple[npt.NDArray[np.int64], Array, int]:
        """Finds out or undoes what arrived of this task; returns the rows of the task and where to go on with them."""
        job, client = self.job, self.link.client
        try:
            if job.plan.auto_id:
                return ids, vectors, self._arrived_by_count(len(ids), start)
            if client.kind == "lite":
                return ids, vectors, start
            if job.held_rows:
                missing = self._missing(ids, vectors)
                if job.plan.key_field:
                    self._share = self._share[missing]
                return ids[missing], vectors[missing], 0
            client.delete(job.plan.name, self.scope, np.unique(ids), job.plan.id_field)
            if job.plan.duplicate_rows:
                self._send_again(ids)
                ids, vectors = self.read()
            return ids, vectors, 0
        except TargetError as e:  # the server may not be up again yet
            if isinstance(e, _Lost) or is_wrong_call(e.__cause__):
                raise
            raise Unclear(str(e)) from e

    def _arrived_by_count(self, rows: int, start: int) -> int:
        job, client = self.job, self.link.client
        client.flush(job.plan.name)
        known = job.baseline[self.scope or ""]
        known += sum(self.link.done[t.id] for t in job.before(self) if t.id in self.link.done)
        arrived = client.stored(job.plan.name, self.scope) - known
        if not 0 <= arrived <= rows or (job.plan.shards > 1 and arrived not in (start, rows)):
            raise _Lost(
                f"{job.plan.name}/{self.partition.target}: the target holds {arrived} rows of the open message of {rows}: "
                "something else writes into it. Start anew with --mode overwrite"
            )
        return arrived

    def _missing(self, ids: npt.NDArray[np.int64], vectors: Array) -> npt.NDArray[np.int64]:
        """Which rows the target does not have, by id and vector."""
        job, client = self.job, self.link.client
        if not client.loaded(job.plan.name):
            client.load(job.plan.name)
        missing = np.ones(len(ids), bool)
        step = max(1, min(1000, self.link.max_bytes // max(1, job.schema.row_bytes)))
        for at in range(0, len(ids), step):
            part = slice(at, at + step)
            there_ids, there = client.rows(job.layout, job.plan.name, self.scope, ids[part], job.plan.id_field)
            missing[part] = ~same_rows(ids[part], vectors[part], there_ids, there)
        return np.flatnonzero(missing)

    def _send_again(self, ids: npt.NDArray[np.int64]) -> None:
        """Rows of finished tasks that went with the deleted ids."""
        wanted = np.unique(ids)
        for task in self.job.before(self):
            if task.id in self.link.done:
                there, vectors = task.read()
                chosen = np.flatnonzero(np.isin(there, wanted))
                for at in range(0, len(chosen), step := self._message_rows(len(chosen) or 1)):
                    some = chosen[at : at + step]
                    task._send(there[some], vectors[some], task._keys(some), lambda rows, nbytes: None)


class _Lost(TargetError):
    """The state of the target cannot be told; waiting does not help."""


class Patience:
    """Waits longer and longer between attempts, and gives up after a while without success."""

    def __init__(self, seconds: float, name: str) -> None:
        self._seconds, self._name = seconds, name
        self.renew()

    def renew(self) -> None:
        self._wait = FIRST_WAIT
        self._until: float | None = None

    def check(self, reason: str) -> float:
        """Seconds left; raises TargetError when there are none."""
        now = time.monotonic()
        self._until = self._until or now + self._seconds
        if now >= self._until:
            raise TargetError(
                f"{self._name}: gave up after {self._seconds:.0f} seconds: {reason}. What arrived is kept: go on with --resume"
            )
        return self._until - now

    def wait(self, reason: str, advance: Advance) -> None:
        first = self._until is None
        left = self.check(reason)
        if first:
            _log.warning("%s: waiting for the server, up to %d s: %s", self._name, self._seconds, reason)
        end = time.monotonic() + min(self._wait * random.uniform(0.7, 1.3), left)
        while (left := end - time.monotonic()) > 0:
            advance(0, 0)  # raises when the run is being given up
            time.sleep(min(left, 0.2))
        self._wait = min(2 * self._wait, LONGEST_WAIT)


def chosen(
    ids: npt.NDArray[np.int64], vectors: Array, lost: Places, dropped: npt.NDArray[np.int64], position: int
) -> tuple[npt.NDArray[np.int64], Array]:
    """The rows, of which the first place is `position` in the collection, without those that are `dropped`.

    Those at the places `lost` are not there at all.
    """
    span = len(ids) + len(lost)
    low, high = np.searchsorted(dropped, (position, position + span))
    if low == high:
        return ids, vectors
    keep = np.ones(span, bool)
    keep[np.asarray(dropped[low:high]) - position] = False
    keep = np.delete(keep, lost)
    return ids[keep], vectors[keep]


def same_rows(
    ids: npt.NDArray[np.int64], vectors: Array, there_ids: npt.NDArray[np.int64], there: Array
) -> npt.NDArray[np.bool_]:
    """For each row of ours whether a row with its id and the same bytes is among `there` (one row an id)."""
    same = np.zeros(len(ids), bool)
    if not len(there_ids):
        return same
    order = np.argsort(there_ids, kind="stable")
    at = np.minimum(np.searchsorted(there_ids, ids, sorter=order), len(order) - 1)
    found = order[at]
    hit = np.flatnonzero(there_ids[found] == ids)
    ours = np.ascontiguousarray(vectors[hit]).view(np.uint8)
    theirs = np.ascontiguousarray(there[found[hit]]).view(np.uint8)
    same[hit] = (ours == theirs).all(axis=1)
    return same


def messages_of(
    job: CollectionJob, collection: SourceCollection, link: Link, *, message_bytes: int, message_rows: int
) -> list[LoadTask]:
    """The tasks of a collection in source order, the same for the same source and sizes."""
    rows_each = max(1, min(message_rows, message_bytes // (job.schema.row_bytes + 10)))
    tasks: list[LoadTask] = []
    position = 0
    if job.plan.key_field:
        return list(_keyed_messages(job, collection, link, rows_each))
    for partition, planned in zip(collection.partitions, job.plan.partitions, strict=True):
        for group in cut_rows(partition.pieces, rows_each):
            rows = sum(s.rows for s in group)
            name = f"{job.plan.source}/{planned.source}/{position}"
            tasks.append(LoadTask(name, job, planned, position, rows, tuple(group), link))
            position += rows
    return tasks


def _keyed_messages(job: CollectionJob, collection: SourceCollection, link: Link, rows_each: int) -> Iterator[LoadTask]:
    """Messages that go over the borders of partitions."""
    pieces = [x for p in collection.partitions for x in p.pieces]
    left: deque[tuple[PartitionPlan, int]] = deque(
        (planned, p.rows) for p, planned in zip(collection.partitions, job.plan.partitions, strict=True) if p.rows
    )
    position = 0
    for group in cut_rows(pieces, rows_each):
        rows = wanted = sum(s.rows for s in group)
        shares = []
        while wanted:
            planned, there = left.popleft()
            taken = min(there, wanted)
            shares.append((planned, taken))
            wanted -= taken
            if there > taken:
                left.appendleft((planned, there - taken))
        first = shares[0][0]
        name = f"{job.plan.source}/{first.source}/{position}"
        yield LoadTask(name, job, first, position, rows, tuple(group), link, tuple(shares))
        position += rows
