"""Dask: the tasks of `export` and `verify` on the workers of a cluster, `--cluster dask://HOST:PORT`.

The list of tasks, the ledger, progress and the report are those of any run. A task may be begun again, and then writes the same
bytes to the same places: so a worker that is lost costs what it was doing, and nothing else. Needs `milvus-offline[dask]`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import fileio
from .errors import MilvusOfflineError, TargetError, UsageError
from .transfer import Done, Progress, Result, Task

_AHEAD = 3
"""Tasks for each thread of the workers that the scheduler knows of at a time."""
_RETRIES = 2
_SECONDS = 10


class DaskCluster:
    """The workers behind one scheduler. Use it as a context. Raises UsageError, TargetError."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "dask" or not parts.hostname or not parts.port:
            raise UsageError(f"--cluster {url}: expected dask://HOST:PORT, the address of a Dask scheduler")
        try:
            from distributed import Client
        except ImportError:
            raise UsageError("--cluster needs the package distributed: pip install 'milvus-offline[dask]'") from None
        self.url = url
        try:
            socket.create_connection((parts.hostname, parts.port), _SECONDS).close()  # says at once that nobody is there
            self._client = Client(f"tcp://{parts.hostname}:{parts.port}", timeout=_SECONDS, set_as_default=False)
        except OSError as e:
            raise TargetError(f"{url}: no Dask scheduler answers there ({e})") from e
        if not self._client.scheduler_info(n_workers=-1)["workers"]:
            self._client.close()
            raise TargetError(
                f"{url}: the scheduler has no workers: start them with `dask worker {parts.hostname}:{parts.port}`"
            )

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.close(timeout=2)

    def probe(self, read: Sequence[str], write: Path | None) -> None:
        """Makes sure that every worker sees the files `read` as they are here, and the folder `write`, which exists.

        Raises TargetError that names the workers which do not.
        """
        sizes = {path: fileio.status(path).st_size for path in read}
        token, probe = secrets.token_hex(8), None
        if write is not None and not fileio.is_remote(write):
            probe = write / f".milvus-offline-probe-{token}"
            probe.write_text(token)
        try:
            answers = self._client.run(_look, sizes, None if probe is None else str(probe), token)
            wrong = [f"worker {worker} on {host}: {text}" for worker, (host, text) in sorted(answers.items()) if text]
            if probe is not None:
                for worker, (host, _) in answers.items():
                    if not wrong and not _answer(str(probe), host).exists():
                        wrong.append(f"worker {worker} on {host}: what it writes to {write} does not arrive here")
        except ModuleNotFoundError as e:
            raise TargetError(f"{self.url}: a worker lacks a package: {e}: install the same milvus_offline there") from e
        finally:
            if probe is not None:
                for path in write.glob(f"{probe.name}*") if write else ():
                    path.unlink(missing_ok=True)
        if wrong:
            raise TargetError(
                f"{self.url}: not every worker sees what it needs, so no row was written: {'; '.join(wrong)}. Source and "
                "output must be under the same path everywhere: a shared file system, or a bucket"
            )

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """Runs the tasks; gives what is done, whenever something is.

        Raises what a task raised, and TargetError when the cluster is lost.
        """
        from distributed import as_completed

        threads = sum(w["nthreads"] for w in self._client.scheduler_info(n_workers=-1)["workers"].values())
        run = secrets.token_hex(4)
        queue: deque[Task] = deque(tasks)
        begun: dict[str, tuple[Task, Any]] = {}

        def submit() -> Any:
            task = queue.popleft()
            future = self._client.submit(_run, task, key=f"{task.id}-{run}", pure=False, retries=_RETRIES)
            begun[future.key] = task, future
            return future

        waiting = as_completed([submit() for _ in range(min(len(queue), _AHEAD * max(1, threads)))], loop=self._client.loop)
        try:
            for future in waiting:
                task, _ = begun.pop(future.key)
                result = self._result(future, task)
                if queue:
                    waiting.add(submit())
                progress.advance(task.rows, task.bytes)
                yield [(task, result)]
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel([future for _, future in begun.values()])

    def _result(self, future: Any, task: Task) -> Result:
        try:
            result: Result = future.result()
            return result
        except MilvusOfflineError:
            raise
        except Exception as e:
            name = type(e).__name__
            if name in ("CancelledError", "FutureCancelledError", "CommClosedError", "TimeoutError"):
                raise TargetError(
                    f"{self.url}: the scheduler is lost; what is finished is kept: run it again with --resume"
                ) from e
            if name == "KilledWorker":
                raise TargetError(f"{self.url}: several workers died over {task.id}: {e}; see their logs, then --resume") from e
            if isinstance(e, OSError):
                raise TargetError(f"{self.url}: {task.id}: {e}") from e
            raise


def _answer(probe: str, host: str) -> Path:
    return Path(f"{probe}-{host}")


def _look(sizes: Mapping[str, int], probe: str | None, token: str) -> tuple[str, str]:
    """Runs on a worker: its machine, and what it does not see."""
    host = f"{socket.gethostname()}-{os.getpid()}"
    for path, size in sizes.items():
        try:
            found = fileio.status(path).st_size
        except (OSError, MilvusOfflineError) as e:
            return host, f"does not see {path} of the source ({getattr(e, 'strerror', None) or e})"
        if found != size:
            return host, f"sees another {path}: {found} bytes, expected {size}"
    if probe is not None:
        try:
            if Path(probe).read_text() != token:
                return host, f"sees another folder at {Path(probe).parent}"
            _answer(probe, host).write_text(token)
        except OSError as e:
            return host, f"does not see the output {Path(probe).parent}, or may not write there ({e.strerror})"
    return host, ""


def _run(task: Task) -> Result:
    """Runs on a worker. What it wrote is durable there before the ledger has it."""
    result = task.run(lambda rows, nbytes: None)
    path = getattr(task, "path", None)
    if getattr(task, "durable", False) and isinstance(path, str) and os.path.exists(path):
        fileio.sync_file(path)
    return result
