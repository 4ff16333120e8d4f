"""Bulk import: a partition's rows become files where the server can read them, and the server imports them by itself.

Faster than any insert for large loads (the data goes past the log, straight into sealed segments), at a fixed cost of some
seconds a job. A file set is a chunk of a partition: a Parquet file, or a pair of npy files, below `folder` (a path, or a URL
of a bucket). A task is a job: its file sets are written, the job is started, and followed to its end. A server with REST
imports up to `SETS` of them in one job, one with gRPC alone one at a time. The ledger knows each file set that is written and
each job that was asked for (see `imports`), so that after a kill a job is followed and not started twice. A failed job leaves
no rows.

`--import-stage` ends when the files are written, `--import-commit` begins there (see `staging`).
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...errors import TargetError, UsageError
from ...guard import explained
from ...ledger import Ledger
from ...model import Batch, Schema
from ...transfer import Advance, Cluster, Result
from ...watch import Watch, watching
from ..columnar import Fields, batch_bytes, file_paths, write_chunk
from ..slices import Slice
from .bucket import Bucket
from .client import Client
from .imports import ImportService, JobState, import_service
from .tasks import LoadTask, Patience, chosen

SETS = 16
"""File sets of a job: Milvus advises 8 to 32, and takes 1,024 files."""
POLL_SECONDS = 1.0
"""The longest wait between two questions; see `_pause`."""
_NOT_SEEN = re.compile(
    r"n[o']t exist|no ?such ?(key|file|bucket|object)|(key|file|object|bucket|path) (was )?not found|access ?denied|forbidden",
    re.I,
)


def check_importable(kind: str, name: str) -> None:
    """Raises UsageError for a target whose import service this tool does not speak."""
    if kind == "zilliz":
        raise UsageError(
            f"{name}: Zilliz Cloud imports only through its own console and API, from an object store with keys given to it. "
            "Leave out --import-to to insert the rows, or export to Parquet (export --format parquet s3://…) and import that"
        )


@dataclass(eq=False)
class Importer:
    """What the tasks of one load share: the server's import service, the bucket, and what was asked, in the ledger."""

    client: Client
    bucket: Bucket
    ledger: Ledger
    run_name: str
    """Tells this load's files from others'."""
    staged: Mapping[str, Result] | None = None
    """By id of their task the file sets that are there already; None: they are written by this load."""
    workers: Cluster | None = None
    """Who writes the files, where it is not this machine."""
    inflight: int = 1
    """Jobs at the same time."""
    service: ImportService = field(init=False)
    turns: threading.Semaphore = field(init=False)
    _asking: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.service = import_service(self.client)
        self.turns = threading.Semaphore(self.inflight)

    def check_seen(self, collection: str) -> None:
        """Asks the server to import an object with nothing in it: it refuses what it read, or says that it finds none.

        Raises TargetError for a bucket or path that is not the server's, before gigabytes go there.
        """
        name = f"{self.run_name}/probe.{'parquet' if self.bucket.file_format == 'parquet' else 'npy'}"
        seen = posixpath.join(self.bucket.seen_as, name)
        with explained("write import files", self.bucket.folder), self.bucket.open(name) as f:
            f.write(b"\0" * 16)
        try:
            reason = self._refusal(collection, seen)
        finally:
            self.bucket.remove([name])
        if _NOT_SEEN.search(reason):
            raise TargetError(
                f"{self.client.connection.name}: the server does not see what is written to {self.bucket.folder}: it "
                f"looked for {seen} and said: {reason[:300]}. Name the server's own bucket with --import-to, and the path that "
                "it uses with --import-path"
            )

    def _refusal(self, collection: str, seen: str) -> str:
        try:
            job = self.service.start(collection, "", [[seen]], key=f"{self.run_name}-probe-{time.time_ns()}")
        except TargetError as e:
            return str(e)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            state = self.service.state(job)
            if state is None or state.phase != "running":
                return state.reason if state else ""
            time.sleep(0.25)
        return ""

    def job_of(self, task: LoadTask, sets: Sequence[Sequence[str]], patience: Patience) -> str | None:
        """The job that an interrupted run started for these file sets, `task` the first; None: there is none, or it failed."""
        if f"job:{task.id}" not in self.ledger.done:
            return None
        if job := self.noted(task)["job"]:
            state = self.service.state(job)
            if state is not None:
                return None if state.phase == "failed" else str(job)
        if found := self.service.find(task.job.plan.name, [name for names in sets for name in names]):
            return found
        if self.service.names_files:
            return None
        return "" if self._has_arrived(task, patience) else None

    def noted(self, task: LoadTask) -> Result:
        """What the ledger knows of the task's import: `job`, None as long as only asked for, and the task's `result`."""
        return self.ledger.done[f"job:{task.id}"]

    def _has_arrived(self, task: LoadTask, patience: Patience) -> bool:
        """Whether the rows of a task whose job is not known are there, by the count of its partition.

        Raises TargetError if that does not tell."""
        plan = task.job.plan
        while self.service.running(plan.name):
            patience.check(f"an import into {plan.name!r} that an earlier run started does not end")
            time.sleep(POLL_SECONDS)
        same = [t for t in task.job.tasks if t.scope == task.scope]
        without = task.job.baseline.get(task.scope or "", 0) + sum(task.link.done.get(t.id, 0) for t in same)
        with_it = without + self.noted(task)["result"]["rows"]
        stored = self.client.stored(plan.name, task.scope, flush=True)
        if stored in (without, with_it):
            return bool(stored == with_it)
        raise TargetError(
            f"{self.client.connection.name}: an import into {plan.name!r} was started and its job is not known: the "
            f"target holds {stored} rows, expected {without} without it or {with_it} with it. "
            "Start anew: drop the collection, or --mode overwrite"
        )

    def start(self, task: LoadTask, sets: Sequence[Sequence[str]], result: Result) -> str:
        """Starts a job, exactly once: that it is asked for and its id are in the ledger."""
        plan = task.job.plan
        with self._asking:
            self.ledger.add({f"job:{task.id}": {"job": None, "result": result}})
            partition = "" if plan.key_field else task.partition.target
            job = self.service.start(plan.name, partition, sets, key=f"{self.run_name}-{task.position}-{plan.name}"[-256:])
            self.ledger.add({f"job:{task.id}": {"job": job, "result": result}})
        return job

    def follow(self, job: str, rows: int, patience: Patience, advance: Advance) -> None:
        """Waits for the end of a job. Raises TargetError when it fails, or shows no progress while the patience lasts."""
        name, last = self.client.connection.name, None
        begun = time.monotonic()
        while True:
            state: JobState | None = self.service.state(job)
            if state is None:
                raise TargetError(f"{name}: import {job} is not known to the server any more: go on with --resume")
            if state.phase == "failed":
                raise TargetError(f"{name}: import {job} failed: {state.reason}")
            if state.phase == "completed":
                if state.rows != rows:
                    raise TargetError(f"{name}: import {job} took {state.rows} of {rows} rows")
                return
            if state.mark != last:
                last = state.mark
                patience.renew()
            patience.check(f"import {job} shows no progress ({state.mark})")
            advance(0, 0)
            time.sleep(_pause(time.monotonic() - begun))


def _pause(took: float) -> float:
    """Seconds until a job is asked for again that has taken `took`: its end is noticed within a fortieth of its time."""
    return min(POLL_SECONDS, max(0.05, took / 40))


@dataclass(eq=False)
class FileSet:
    """A chunk of a partition as import files; as a task of its own, that is `--import-stage`."""

    inner: LoadTask
    importer: Importer

    @property
    def id(self) -> str:
        return self.inner.id

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def bytes(self) -> int:
        return self.inner.bytes

    @property
    def names(self) -> list[str]:
        """Its files below the bucket's folder."""
        plan, bucket = self.inner.job.plan, self.importer.bucket
        stem = posixpath.join(self.importer.run_name, plan.name, f"{self.inner.position:015}")
        names = file_paths(stem, bucket.file_format, self._fields)
        return names[:1] if plan.auto_id else names

    @property
    def seen(self) -> list[str]:
        """The files as the server names them."""
        return [posixpath.join(self.importer.bucket.seen_as, n) for n in self.names]

    @property
    def _fields(self) -> Fields:
        return Fields(self.inner.job.plan.id_field, self.inner.job.plan.vector_field)

    @property
    def writing(self) -> WriteFiles:
        """What writes the files, here or on another machine."""
        inner = self.inner
        low, high = np.searchsorted(inner.job.dropped, (inner.position, inner.position + inner.source_rows))
        return WriteFiles(
            self.id,
            self.rows,
            self.bytes,
            self.importer.bucket,
            tuple(self.names),
            self._fields,
            inner.job.schema,
            inner.slices,
            inner.position,
            np.array(inner.job.dropped[low:high]),
            with_ids=not inner.job.plan.auto_id,
        )

    def run(self, advance: Advance) -> Result:
        """Writes the files; the result is that of WriteFiles."""
        if not self.rows:
            return {"rows": 0}
        workers = self.importer.workers
        return self.writing.run(advance) if workers is None else workers.begin(self.writing)(advance)


@dataclass(frozen=True)
class WriteFiles:
    """The writing of a file set: a picklable task.

    `position` is the number of its first row within the collection; `dropped`, int64 [n], are the numbers of rows that are left
    out.
    """

    id: str
    rows: int
    bytes: int
    bucket: Bucket
    names: tuple[str, ...]
    fields: Fields
    schema: Schema
    slices: tuple[Slice, ...]
    position: int
    dropped: npt.NDArray[np.int64]
    with_ids: bool

    def run(self, advance: Advance) -> Result:
        """The result has the `rows` in the files: all but those that cannot be read any more."""
        with explained("write import files", self.bucket.folder), watching() as met:
            try:
                written = write_chunk(
                    self._batches(advance),
                    self.rows,
                    self.schema,
                    self.bucket.file_format,
                    self.fields,
                    lambda number: self.bucket.open(self.names[number]),
                    ids=self.with_ids,
                )
            except BaseException:
                self.bucket.remove(self.names)
                raise
        if written != self.rows and not met.is_incomplete:
            raise TargetError(f"{self.id}: {written} rows written, {self.rows} expected; the source may have changed meanwhile")
        return {"rows": written, **(met.result() if met.is_incomplete else {})}

    def _batches(self, advance: Advance) -> Iterator[Batch]:
        position = self.position
        for piece in self.slices:
            for batch in piece.batches(batch_bytes(self.bucket.file_format)):
                ids, vectors = chosen(batch.ids, batch.vectors, batch.lost, self.dropped, position)
                if len(ids):
                    yield Batch(ids, vectors)
                    advance(len(ids), vectors.nbytes + ids.nbytes)
                position += batch.span


@dataclass(eq=False)
class ImportTask:
    """One job: file sets of one partition."""

    sets: tuple[FileSet, ...]
    importer: Importer

    @property
    def first(self) -> LoadTask:
        return self.sets[0].inner

    @property
    def id(self) -> str:
        return self.first.id

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.sets)

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.sets)

    def run(self, advance: Advance) -> Result:
        first, importer = self.first, self.importer
        sets = [s for s in self.sets if s.rows]
        if not sets:
            return {"rows": 0}
        seen = [s.seen for s in sets]
        patience = Patience(first.link.patience, first.link.client.connection.name)
        job = importer.job_of(first, seen, patience)
        if job is None:
            again = f"job:{first.id}" in importer.ledger.done  # its files may be gone with it
            results = self._ready(sets, advance, again=again)
            result: Result = {"rows": sum(r["rows"] for r in results)}
            if any("seen" in r for r in results):
                result |= Watch.of(results).result()
        else:
            result = importer.noted(first)["result"]
            advance(self.rows, self.bytes)
        with _turn(importer.turns, advance):
            patience.renew()
            if job is None:
                job = importer.start(first, seen, result)
            try:
                if job:
                    importer.follow(job, result["rows"], patience, advance)
            finally:
                if _over(importer.service, job, keep_failed=importer.staged is not None):
                    importer.bucket.remove([name for s in sets for name in s.names])
        first.link.done[self.id] = result["rows"]
        return result

    def _ready(self, sets: Sequence[FileSet], advance: Advance, *, again: bool) -> list[Result]:
        """The results of file sets, in their order. What no earlier run has written is written now, by workers all at once."""
        importer = self.importer
        known = {s.id: self._known(s, again) for s in sets}
        begun = {s.id: importer.workers.begin(s.writing) for s in sets if importer.workers and known[s.id] is None}
        results = []
        for files in sets:
            if (result := known[files.id]) is not None:
                advance(files.rows, files.bytes)
            else:
                result = begun[files.id](advance) if begun else files.run(advance)
                importer.ledger.add({f"files:{files.id}": result})
            results.append(result)
        return results

    def _known(self, files: FileSet, again: bool) -> Result | None:
        """What an earlier run, or a stage, wrote of a file set; None: it is to be written."""
        importer = self.importer
        if importer.staged is None:
            return None if again else importer.ledger.done.get(f"files:{files.id}")
        if files.id not in importer.staged:
            raise TargetError(f"{files.id}: is not among the staged files: stage anew with --import-stage")
        return importer.staged[files.id]


@contextlib.contextmanager
def _turn(turns: threading.Semaphore, advance: Advance) -> Iterator[None]:
    """Waits until the server has fewer jobs than it may have."""
    while not turns.acquire(timeout=POLL_SECONDS):
        advance(0, 0)
    try:
        yield
    finally:
        turns.release()


def import_tasks(tasks: Sequence[LoadTask], importer: Importer, sets: int) -> list[ImportTask]:
    """Jobs of up to `sets` file sets of one partition of the target."""
    groups: list[list[FileSet]] = []
    for task in tasks:
        last = groups[-1] if groups else []
        if last and len(last) < sets and last[0].inner.job is task.job and last[0].inner.scope == task.scope:
            last.append(FileSet(task, importer))
        else:
            groups.append([FileSet(task, importer)])
    return [ImportTask(tuple(g), importer) for g in groups]


def _over(service: ImportService, job: str, *, keep_failed: bool) -> bool:
    """Whether the server needs the files of a job no more. Not while it runs: a later run follows it."""
    try:
        state = service.state(job) if job else None
    except TargetError:
        return False
    return state is None or state.phase == "completed" or (state.phase == "failed" and not keep_failed)
