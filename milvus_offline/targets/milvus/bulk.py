"""Bulk import: a partition's rows become files where the server can read them, and the server imports them by itself.

Faster than any insert for large loads (the data goes past the log, straight into sealed segments), at a fixed cost of some
seconds a job. A task is a chunk: its files are written below `folder` (a path, or a URL of a bucket), a job is started, and
followed to its end. The ledger knows each job that was asked for (see `imports`), so that after a kill it is followed and not
started twice. A failed job leaves no rows.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ...errors import TargetError, UsageError
from ...fileio import as_path, is_remote, upload
from ...guard import explained
from ...ledger import Ledger
from ...model import Batch
from ...transfer import Advance, Result
from ...watch import Watch, watching
from ..columnar import Fields, batch_bytes, file_paths, write_chunk
from .client import Client
from .imports import ImportService, JobState, import_service
from .tasks import LoadTask, Patience, chosen

POLL_SECONDS = 1.0
_NOT_SEEN = re.compile(
    r"n[o']t exist|no ?such ?(key|file|bucket|object)|(key|file|object|bucket|path) (was )?not found|access ?denied|forbidden",
    re.I,
)


@dataclass(frozen=True)
class Bucket:
    """Where import files are written, and what the server calls that place.

    `folder` is a path or a URL (`s3://bucket/path`); `seen_as` the same place as the server names it: for a server with local
    storage a path below its storage folder, for one with object storage the key within its own bucket.
    """

    folder: str
    seen_as: str
    file_format: str = "npy"

    def open(self, name: str) -> IO[bytes]:
        """A new file below the folder; a bucket must be there, a folder is made."""
        path = posixpath.join(self.folder, name)
        if is_remote(path):
            return upload(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")

    def remove(self, names: Sequence[str]) -> None:
        """Files of a job that is over, where they are."""
        if is_remote(self.folder):
            from ...buckets.writing import Bucket as Remote

            Remote(as_path(self.folder)).remove(as_path(posixpath.join(self.folder, n)) for n in names)
            return
        for name in names:
            path = Path(self.folder) / name
            path.unlink(missing_ok=True)
            for parent in (path.parent, path.parent.parent):  # of this run and collection; not while others write there
                if parent != Path(self.folder):
                    with contextlib.suppress(OSError):
                        parent.rmdir()


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
    service: ImportService = field(init=False)
    _asking: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.service = import_service(self.client)

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
            job = self.service.start(collection, "", [seen], key=f"{self.run_name}-probe")
        except TargetError as e:
            return str(e)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            state = self.service.state(job)
            if state is None or state.phase != "running":
                return state.reason if state else ""
            time.sleep(POLL_SECONDS / 4)
        return ""

    def job_of(self, task: LoadTask, files: Sequence[str], patience: Patience) -> str | None:
        """The job that an interrupted run started for this task; None: there is none, or it failed."""
        if f"job:{task.id}" not in self.ledger.done:
            return None
        if job := self.noted(task)["job"]:
            state = self.service.state(job)
            if state is not None:
                return None if state.phase == "failed" else str(job)
        if found := self.service.find(task.job.plan.name, files):
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

    def start(self, task: LoadTask, files: Sequence[str], result: Result) -> str:
        """Starts a job, exactly once: that it is asked for and its id are in the ledger."""
        plan = task.job.plan
        with self._asking:
            self.ledger.add({f"job:{task.id}": {"job": None, "result": result}})
            partition = "" if plan.key_field else task.partition.target
            job = self.service.start(plan.name, partition, files, key=f"{self.run_name}-{task.position}-{plan.name}")
            self.ledger.add({f"job:{task.id}": {"job": job, "result": result}})
        return job

    def follow(self, job: str, rows: int, patience: Patience, advance: Advance) -> None:
        """Waits for the end of a job. Raises TargetError when it fails, or shows no progress while the patience lasts."""
        name, last = self.client.connection.name, None
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
            time.sleep(POLL_SECONDS)


@dataclass(eq=False)
class ImportTask:
    """A chunk of a partition: a `LoadTask` whose rows go through files."""

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

    def run(self, advance: Advance) -> Result:
        inner, importer, bucket = self.inner, self.importer, self.importer.bucket
        plan = inner.job.plan
        if not self.rows:
            return {"rows": 0}
        fields = Fields(plan.id_field, plan.vector_field)
        stem = posixpath.join(importer.run_name, plan.name, f"{inner.position:015}")
        names = file_paths(stem, bucket.file_format, fields)
        if plan.auto_id:
            names = names[:1]
        seen = [posixpath.join(bucket.seen_as, n) for n in names]
        patience = Patience(inner.link.patience, inner.link.client.connection.name)
        job = importer.job_of(inner, seen, patience)
        if job is None:
            with explained("write import files", bucket.folder), watching() as met:
                rows = self._write(names, fields, advance, met)
            result: Result = {"rows": rows, **(met.result() if met.is_incomplete else {})}
            job = importer.start(inner, seen, result)
        else:
            result = importer.noted(inner)["result"]
            advance(self.rows, self.bytes)
        try:
            if job:
                importer.follow(job, result["rows"], patience, advance)
        finally:
            if _over(importer.service, job):
                bucket.remove(names)
        inner.link.done[self.id] = result["rows"]
        return result

    def _write(self, names: Sequence[str], fields: Fields, advance: Advance, met: Watch) -> int:
        """The rows that are in the files: all but those that cannot be read any more, as `met` knows then."""
        inner = self.inner
        plan = inner.job.plan
        written = write_chunk(
            self._batches(advance),
            self.rows,
            inner.job.schema,
            self.importer.bucket.file_format,
            fields,
            lambda number: self.importer.bucket.open(names[number]),
            ids=not plan.auto_id,
        )
        if written != self.rows and not met.is_incomplete:
            raise TargetError(f"{inner.id}: {written} rows written, {self.rows} expected; did the source change meanwhile?")
        return written

    def _batches(self, advance: Advance) -> Iterator[Batch]:
        inner = self.inner
        dropped = inner.job.dropped
        position = inner.position
        for piece in inner.slices:
            for batch in piece.batches(batch_bytes(self.importer.bucket.file_format)):
                ids, vectors = chosen(batch.ids, batch.vectors, batch.lost, dropped, position)
                if len(ids):
                    yield Batch(ids, vectors)
                    advance(len(ids), vectors.nbytes + ids.nbytes)
                position += batch.span


def _over(service: ImportService, job: str) -> bool:
    """Whether the server needs the files of a job no more. Not while it runs: a later run follows it."""
    try:
        return not job or (state := service.state(job)) is None or state.phase != "running"
    except TargetError:
        return False
