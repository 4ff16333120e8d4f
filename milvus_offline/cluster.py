"""Dask: with `--cluster dask://HOST:PORT` its workers do the tasks of `export` and `verify`, and write files for bulk imports.

The list of tasks, the ledger, progress and the report are those of any run. A task may be begun again, and then writes the same
bytes to the same places: so a worker that is lost costs what it was doing, and nothing else. Needs `milvus-offline[dask]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import os
import secrets
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import fileio
from ._version import __version__
from .errors import MilvusOfflineError, MissingPackageError, TargetError, UsageError
from .guard import explained
from .model import Source, files_of
from .text import count
from .transfer import Advance, Begun, Done, Progress, Result, Task

_log = logging.getLogger("milvus_offline")

_AHEAD = 2
"""Tasks for each thread of the workers that the scheduler knows of at a time."""
_PAUSE_SECONDS = 2
"""So long a worker that has done its share waits before it takes of another's, which may only have begun later."""
_ALONE_SECONDS = 60
"""How long a run waits for workers when all are lost."""
_RETRIES = 2
_SECONDS = 10
_GREETING_SECONDS = 30
_LONGEST_GREETING = 1 << 20
_SEEN = 1000
"""Files that every worker is asked for."""


class Shares:
    """What each worker is to do: equal shares of the bytes for equal numbers of threads. Who has had nothing to do for some
    seconds takes from who has most left, so nobody waits for a slow worker."""

    def __init__(self, tasks: Sequence[Task], threads: Mapping[str, int]) -> None:
        mine: dict[str, list[int]] = {worker: [] for worker in threads}
        loads = [(0.0, number, worker) for number, worker in enumerate(threads)]
        for at in sorted(range(len(tasks)), key=lambda i: -tasks[i].bytes):
            load, number, worker = loads[0]
            mine[worker].append(at)
            heapq.heapreplace(loads, (load + max(1, tasks[at].bytes) / max(1, threads[worker]), number, worker))
        self._left = {worker: deque(tasks[at] for at in sorted(found)) for worker, found in mine.items()}
        self._done: dict[str, list[Task]] = {}

    @property
    def left(self) -> int:
        """Tasks that are not begun."""
        return sum(map(len, self._left.values()))

    def own(self, worker: str) -> Task | None:
        """The next task of this worker's share."""
        mine = self._left.get(worker)
        return mine.popleft() if mine else None

    def others(self, worker: str) -> Task | None:
        """The last task of who has most left."""
        most = max(self._left.values(), key=len)
        return most.pop() if most else None

    def done(self, worker: str, task: Task) -> None:
        self._done.setdefault(worker, []).append(task)

    def log(self) -> None:
        """Says what each worker did."""
        for worker, tasks in sorted(self._done.items()):
            rows, nbytes = sum(t.rows for t in tasks), sum(t.bytes for t in tasks)
            _log.info("worker %s: %s, %d rows, %d bytes", worker, count(len(tasks), "task"), rows, nbytes)


class DaskCluster:
    """The workers of one scheduler. Use it as a context. `resumable` says whether what is finished when the cluster is lost is
    kept, and so what a person has to do. Raises UsageError, TargetError."""

    def __init__(self, url: str, *, resumable: bool = True) -> None:
        self._again = "what is finished is kept: run it again with --resume" if resumable else "run it again"
        host, port = _place(url)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            from distributed import Client
        except ImportError:
            raise MissingPackageError("--cluster", "distributed", "dask") from None
        self.url = url
        self._giving = threading.Lock()
        self._given: Counter[str] = Counter()
        try:
            _require_scheduler(url, host, port)
            self._client = Client(f"tcp://{address}", timeout=_SECONDS, set_as_default=False)
        except OSError as e:
            raise TargetError(f"{url}: no Dask scheduler answers there ({e})") from e
        if not self._client.scheduler_info(n_workers=-1)["workers"]:
            self._client.close()
            raise TargetError(f"{url}: the scheduler has no workers: start them with `dask worker {address}`")

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._client.close(timeout=2)

    def probe(self, source: Source, write: Path | None = None) -> None:
        """Makes sure that every worker sees the files of `source` as they are here, and the folder `write`.

        The folder is there then; when that fails, all is as it was before. Raises TargetError that names the workers which do
        not see them, or run another version.
        """
        self.probe_files(seen_files(source), write)

    def probe_files(self, read: Sequence[str], write: Path | None = None) -> None:
        """The same for some files."""
        self._require_same_version()
        with contextlib.nullcontext() if write is None or fileio.is_remote(write) else _made(write):
            self._probe(read, write)

    def _require_same_version(self) -> None:
        found = {
            w: str(v) if isinstance(v, Exception) else f"has {v}" for w, v in self._ask(_version).items() if v != __version__
        }
        if found:
            others = "; ".join(f"worker {worker}: {text}" for worker, text in found.items())
            raise TargetError(
                f"{self.url}: not every worker has milvus_offline {__version__}, so nothing was begun: {others}. Install the "
                "same version on all"
            )

    def _ask(self, question: Callable[..., Any], *arguments: object) -> dict[str, Any]:
        """What each worker answers, or the exception that it met."""
        try:
            return dict(sorted(self._client.run(question, *arguments, on_error="return").items()))
        except OSError as e:
            raise TargetError(f"{self.url}: the scheduler is lost ({e}); run it again") from e

    def _probe(self, read: Sequence[str], write: Path | None) -> None:
        sizes = {path: fileio.status(path).st_size for path in read[:_SEEN]}
        token, probe = secrets.token_hex(8), None
        if write is not None and not fileio.is_remote(write):
            probe = write / f".milvus-offline-probe-{token}"
            with explained("write to", write):
                probe.write_text(token)
        try:
            wrong = []
            for worker, answer in self._ask(_look, sizes, None if probe is None else str(probe), token).items():
                host, text = ("", str(answer)) if isinstance(answer, Exception) else answer
                if not text and probe is not None and not _answer(str(probe), host).exists():
                    text = f"a file that it wrote to {write} does not appear here"
                if text:
                    wrong.append(f"worker {worker}{f' on {host}' if host else ''}: {text}")
        finally:
            if probe is not None:
                for path in write.glob(f"{probe.name}*") if write else ():
                    path.unlink(missing_ok=True)
        if wrong:
            raise TargetError(
                f"{self.url}: not every worker sees what it needs, so nothing was begun: {'; '.join(wrong)}. Source and "
                "output must be under the same path everywhere: a shared file system, or a bucket"
            )

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """Runs the tasks, an equal share on each worker; gives what is done, whenever something is.

        Raises what a task raised, and TargetError when the cluster is lost.
        """
        run = secrets.token_hex(4)
        threads = self._threads()
        shares = Shares(tasks, threads)
        begun: dict[str, tuple[Task, Any, str]] = {}
        last: dict[str, float] = {}
        """When something ended that was meant for a worker."""
        looked = time.monotonic()

        def begin(worker: str, take: Callable[[str], Task | None], most: int) -> None:
            for task in itertools.islice(iter(partial(take, worker), None), most):
                key = f"{task.id}-{run}"
                where = {"workers": [worker], "allow_other_workers": True}  # also when it is lost
                begun[key] = task, self._client.submit(_run, task, key=key, pure=False, retries=_RETRIES, **where), worker

        for worker, number in threads.items():
            begin(worker, shares.own, _AHEAD * number)
        try:
            while begun:
                for future in self._wait([future for _, future, _ in begun.values()]):
                    task, _, meant = begun.pop(future.key)
                    worker, result = self._result(future, task)
                    shares.done(worker, task)
                    last[meant] = time.monotonic()
                    begin(meant, shares.own, 1)
                    progress.advance(task.rows, task.bytes)
                    yield [(task, result)]
                late = time.monotonic() - _PAUSE_SECONDS
                if shares.left and looked < late:
                    threads, looked = self._threads(), time.monotonic()  # some may have come
                    working = {worker for _, _, worker in begun.values()}
                    for worker in [w for w in threads if w not in working and last.get(w, 0) < late]:
                        begin(worker, shares.others, _AHEAD * threads[worker])
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel([future for _, future, _ in begun.values()])
            shares.log()

    def _threads(self) -> dict[str, int]:
        """The workers that the scheduler knows, and how many threads each has."""
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except Exception as e:
            raise TargetError(f"{self.url}: the scheduler is lost; {self._again}") from e
        return {address: max(1, int(w["nthreads"])) for address, w in workers.items()}

    def _wait(self, futures: Sequence[Any]) -> list[Any]:
        """Those that are over, as soon as one is; none when that takes long. Raises TargetError when nobody is left to work."""
        from distributed import wait

        try:
            return list(wait(futures, timeout=_PAUSE_SECONDS, return_when="FIRST_COMPLETED").done)
        except (TimeoutError, asyncio.TimeoutError):  # two on Python 3.10
            until = time.monotonic() + _ALONE_SECONDS
            while not self._threads():
                if time.monotonic() > until:
                    raise TargetError(f"{self.url}: no worker is left: start some; {self._again}") from None
                time.sleep(1)
            return []
        except Exception:  # of futures that were lost with the scheduler: their results say it
            return [f for f in futures if f.status != "pending"] or list(futures)

    @property
    def threads(self) -> int:
        """Tasks that the workers can run at the same time."""
        return sum(self._threads().values())

    def begin(self, task: Task) -> Begun:
        """Gives one task to the worker that has been given the fewest bytes. For several threads. Raises as `run` does."""
        with self._giving:
            worker = min(self._threads(), key=lambda w: self._given[w], default=None)
            if worker is not None:
                self._given[worker] += max(1, task.bytes)
        where: dict[str, Any] = {"workers": [worker], "allow_other_workers": True} if worker else {}
        key = f"{task.id}-{secrets.token_hex(4)}"
        return partial(self._finished, task, self._client.submit(_run, task, key=key, pure=False, retries=_RETRIES, **where))

    def _finished(self, task: Task, future: Any, advance: Advance) -> Result:
        """Waits for a task that was begun. Raises as `run` does, and what `advance` raises when the run is being given up."""
        try:
            while not self._wait([future]):
                advance(0, 0)
            _, result = self._result(future, task)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.cancel([future])
            raise
        advance(task.rows, task.bytes)
        return result

    def in_order(self, tasks: Sequence[Task], progress: Progress) -> Generator[Result, None, None]:
        """What each task found, in their order, when all are done. Raises as `run` does."""
        found = {task.id: result for done in self.run(tasks, progress) for task, result in done}
        return (found[task.id] for task in tasks)

    def _result(self, future: Any, task: Task) -> tuple[str, Result]:
        """The worker that ran a task, and what it says of its work."""
        try:
            worker, result = future.result()
            return worker, result
        except MissingPackageError as e:
            raise TargetError(f"{self.url}: a worker lacks a package: {e}, on every worker; {self._again}") from e
        except MilvusOfflineError:
            raise
        except Exception as e:
            name = type(e).__name__
            if name in ("CancelledError", "FutureCancelledError", "CommClosedError", "TimeoutError"):
                raise TargetError(f"{self.url}: the scheduler is lost; {self._again}") from e
            if name == "KilledWorker":
                raise TargetError(f"{self.url}: several workers died of {task.id}: {e}; read their logs; {self._again}") from e
            if isinstance(e, OSError):
                raise TargetError(f"{self.url}: {task.id}: {e}") from e
            raise


def _place(url: str) -> tuple[str, int]:
    """The host and the port of a scheduler. Raises UsageError."""
    with contextlib.suppress(ValueError):  # of a port that is no number, say
        parts = urlsplit(url)
        if parts.scheme == "dask" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise UsageError(f"--cluster {url}: expected dask://HOST:PORT, the address of a Dask scheduler")


def _require_scheduler(url: str, host: str, port: int) -> None:
    """Says at once that nobody is there, or somebody else, of whom Dask would wait for an answer.

    A scheduler speaks first: the length of a short message, in eight bytes. Raises OSError, TargetError.
    """
    with socket.create_connection((host, port), _SECONDS) as connection, connection.makefile("rb") as said:
        connection.settimeout(_GREETING_SECONDS)
        head = b""
        with contextlib.suppress(TimeoutError):
            head = said.read(8)
    if len(head) < 8 or int.from_bytes(head, "little") > _LONGEST_GREETING:
        raise TargetError(f"{url}: what listens there does not speak as a Dask scheduler: is this the port of its dashboard?")


def seen_files(source: Source) -> list[str]:
    """A file or two of each partition: what a machine must see that is to read the source."""
    found: dict[str, None] = {}
    for partition in (p for c in source.collections for p in c.partitions):
        for piece in (*partition.pieces[:1], *partition.pieces[-1:]):
            found.update(dict.fromkeys(files_of(piece)))
    return list(found)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there within; it goes again when what is done there fails, if it was not there before."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        with explained("create", folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _answer(probe: str, host: str) -> Path:
    return Path(f"{probe}-{host}")


def _version() -> str:
    """Runs on a worker."""
    return __version__


def _look(sizes: Mapping[str, int], probe: str | None, token: str) -> tuple[str, str]:
    """Runs on a worker: its machine, and what it does not see."""
    host = f"{socket.gethostname()}-{os.getpid()}"
    for path, size in sizes.items():
        try:
            _, found, _ = fileio.read_start(path, 0)
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


def _run(task: Task) -> tuple[str, Result]:
    """Runs on a worker, whose address it returns. What it wrote is durable there before the ledger has it."""
    from distributed import get_worker

    result = task.run(lambda rows, nbytes: None)
    path = getattr(task, "path", None)
    if getattr(task, "durable", False) and isinstance(path, str) and os.path.exists(path):
        fileio.sync_file(path)
    return get_worker().address, result
