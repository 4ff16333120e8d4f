"""Bulk import: a partition's rows become files where the server can read them, and the server imports them by itself.

Faster than any insert for large loads (the data goes past the log, straight into sealed segments), at a fixed cost of some
seconds a job. A task is a chunk: its files are written below `folder` (a path or a URL that fsspec knows), a job is started,
and followed to its end. Its files have names that follow from the run, and a server lists the files of its jobs: after a
kill the job of a chunk is found again by its files and followed, not started twice. A failed job leaves no rows.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from ...errors import TargetError, UsageError
from ...fileio import explained
from ...model import Batch
from ...transfer import Advance, Result
from ...watch import Watch, watching
from ..columnar import Fields, batch_bytes, file_paths, write_chunk
from .client import Client
from .tasks import LoadTask, Patience, chosen

POLL_SECONDS = 1.0
JOBS_LISTED = 1000


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
        """A new file below the folder."""
        path = posixpath.join(self.folder, name)
        try:
            import fsspec
        except ImportError:
            if "://" in path:
                raise UsageError(f"{self.folder}: needs the package fsspec: pip install 'milvus-offline[s3]'") from None
            from pathlib import Path

            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return Path(path).open("wb")
        system, inner = fsspec.core.url_to_fs(path)
        system.makedirs(posixpath.dirname(inner), exist_ok=True)
        opened: IO[bytes] = system.open(inner, "wb")
        return opened

    def remove(self, names: Sequence[str]) -> None:
        """Files of a finished job."""
        import fsspec

        for name in names:
            system, inner = fsspec.core.url_to_fs(posixpath.join(self.folder, name))
            if system.exists(inner):
                system.rm(inner)


@dataclass(eq=False)
class ImportTask:
    """A chunk of a partition: a `LoadTask` whose rows go through files. `run_name` tells this load's files from others'."""

    inner: LoadTask
    bucket: Bucket
    run_name: str

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
        inner = self.inner
        client, plan = inner.link.client, inner.job.plan
        rows = self.rows
        if not rows:
            return {"rows": 0}
        fields = Fields(plan.id_field, plan.vector_field)
        stem = posixpath.join(self.run_name, plan.name, f"{inner.position:015}")
        names = file_paths(stem, self.bucket.file_format, fields)
        if plan.auto_id:
            names = names[:1]
        seen = [posixpath.join(self.bucket.seen_as, n) for n in names]
        job = find_job(client, plan.name, seen) if inner.doubtful else None
        met = Watch()
        if job is None:
            with explained("write import files", self.bucket.folder), watching() as met:
                rows = self._write(names, fields, advance, met)
            job = start_job(client, plan.name, "" if plan.key_field else inner.partition.target, seen)
        else:
            advance(self.rows, self.bytes)
        follow_job(client, job, rows, inner.link.patience, advance)
        self.bucket.remove(names)
        inner.link.done[self.id] = rows
        return {"rows": rows, **(met.result() if met.is_incomplete else {})}

    def _write(self, names: Sequence[str], fields: Fields, advance: Advance, met: Watch) -> int:
        """The rows that are in the files: all but those that cannot be read any more, as `met` knows then."""
        inner = self.inner
        plan = inner.job.plan
        written = write_chunk(
            self._batches(advance),
            self.rows,
            inner.job.schema,
            self.bucket.file_format,
            fields,
            lambda number: self.bucket.open(names[number]),
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
            for batch in piece.batches(batch_bytes(self.bucket.file_format)):
                ids, vectors = chosen(batch.ids, batch.vectors, batch.lost, dropped, position)
                if len(ids):
                    yield Batch(ids, vectors)
                    advance(len(ids), vectors.nbytes + ids.nbytes)
                position += batch.span


# Jobs -----------------------------------------------------------------------------------------------------------------


def start_job(client: Client, collection: str, partition: str, files: Sequence[str]) -> int:
    """Asks the server to import `files`; returns the job."""
    handler = client.raw._get_connection()
    return int(client.once("start an import", lambda: handler.do_bulk_insert(collection, partition, list(files), timeout=60)))


def find_job(client: Client, collection: str, files: Sequence[str]) -> int | None:
    """The job that imports, or has imported, these files; None if there is none or it failed."""
    handler = client.raw._get_connection()
    for job in client.call("list imports", lambda: handler.list_bulk_insert_tasks(JOBS_LISTED, collection, timeout=60)):
        listed = str(job.infos.get("files", ""))
        if all(f in listed for f in files) and not job.failed_reason:
            return int(job.task_id)
    return None


def follow_job(client: Client, job: int, rows: int, patience: float, advance: Advance) -> None:
    """Waits for the end of a job. Raises TargetError when it fails, or shows no progress for `patience` seconds."""
    handler = client.raw._get_connection()
    waiting = Patience(patience, client.connection.name)
    last: Any = None
    while True:
        state = client.call("follow an import", lambda: handler.get_bulk_insert_state(job, timeout=60))
        name = str(state.state_name).lower()
        if "fail" in name:
            raise TargetError(f"{client.connection.name}: import {job} failed: {state.failed_reason}")
        if name.endswith("completed"):
            if state.row_count != rows:
                raise TargetError(f"{client.connection.name}: import {job} took {state.row_count} of {rows} rows")
            return
        now = (name, state.progress, state.row_count)
        if now != last:
            last = now
            waiting.renew()
        waiting.check(f"import {job} shows no progress ({name})")
        advance(0, 0)
        time.sleep(POLL_SECONDS)
