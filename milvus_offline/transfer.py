"""One job: tasks of a target worked off with a ledger, progress and workers. Knows no format.

A target turns a source into tasks: plain picklable values with a stable id. What is finished stands in the ledger, so the
same list can be run again after a crash, here, in a pool of processes, or on a cluster engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from .errors import StoreError
from .ledger import Ledger
from .model import Advance as Advance
from .model import Source

_log = logging.getLogger("milvus_offline")

Result = dict[str, Any]
"""What a task says of its work: JSON values."""


class Stopped(BaseException):
    """Ends a task early; not an Exception, so that no task swallows it."""


class Task(Protocol):
    """A unit of work. `run` may be repeated: it overwrites what an earlier, unfinished run left."""

    @property
    def id(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def run(self, advance: Advance) -> Result: ...


Done = list[tuple[Task, Result]]
Running = Generator[Done, None, None]
"""Who closes it stops what still runs."""


class Progress(Protocol):
    """Shows how far a run is; every method is called from one thread."""

    def start(self, rows: int, nbytes: int, done_rows: int, done_bytes: int) -> None: ...
    def advance(self, rows: int, nbytes: int) -> None: ...
    def now(self, what: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    """A progress that shows nothing."""

    def start(self, rows: int, nbytes: int, done_rows: int, done_bytes: int) -> None: ...
    def advance(self, rows: int, nbytes: int) -> None: ...
    def now(self, what: str) -> None: ...
    def close(self) -> None: ...


Begun = Callable[[Advance], Result]
"""A task that runs elsewhere: waits until it is done."""


class Cluster(Protocol):
    """Workers elsewhere; see `cluster`."""

    def probe(self, source: Source, write: Path | None = None) -> None:
        """Makes sure that every worker sees the source, and the folder `write`."""

    @property
    def threads(self) -> int:
        """Tasks that the workers can run at the same time."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """Gives what is done, whenever something is."""

    def begin(self, task: Task) -> Begun:
        """Gives one task to a worker; for several threads."""


_POLL_SECONDS = 0.1
_SWITCH_SECONDS = 1e-4
"""A thread that comes back from the disk gets the interpreter after this time, also from one that computes."""


class QuickTurns:
    """The interpreter's switch interval is one for the whole process: shortened while any run has threads, and what the program
    had chosen comes back with the end of the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._before = 0.0

    def begin(self) -> None:
        with self._lock:
            if not self._runs:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _SWITCH_SECONDS))
            self._runs += 1

    def end(self) -> None:
        with self._lock:
            self._runs -= 1
            if not self._runs:
                sys.setswitchinterval(self._before)


_quick_turns = QuickTurns()

SETTLE_SECONDS = 1.0
"""What is lost at most of finished tasks when a run is killed."""
UNNOTED_EACH = 2
"""Without `settle`, so many tasks per worker at most have begun and are not in the ledger: what a killed run may have done
twice."""


def execute(  # many: how tasks run is the caller's to choose, each by its name
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    processes: bool = False,
    ledger: Ledger | None = None,
    settle: Callable[[Sequence[Task]], None] | None = None,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> dict[str, Result]:
    """Runs what the ledger does not already have; returns all results by task id.

    `processes` is for tasks that hold the interpreter (compression); threads serve everything that waits for the disk.
    `settle` makes what finished tasks wrote durable, before the ledger has them: once a second, so that nothing waits for it.
    Without it the ledger has them at once, and the tasks that it misses after a kill are among the first `UNNOTED_EACH` * jobs
    that it misses (with one job the first).
    With a `cluster` its workers run the tasks, instead of this machine.
    After an error or Ctrl-C running tasks are stopped at their next batch, finished ones stay in the ledger.
    """
    progress = progress or Silent()
    known = {t.id for t in tasks}
    results: dict[str, Result] = {k: v for k, v in ledger.done.items() if k in known} if ledger else {}
    todo = [t for t in tasks if t.id not in results]
    progress.start(
        sum(t.rows for t in tasks),
        sum(t.bytes for t in tasks),
        sum(t.rows for t in tasks if t.id in results),
        sum(t.bytes for t in tasks if t.id in results),
    )
    finished: list[Task] = []

    def note() -> None:
        if finished and settle:
            settle(finished)
        if finished and ledger:
            ledger.add({t.id: results[t.id] for t in finished})
        finished.clear()

    try:
        noted = time.monotonic()
        jobs = max(1, min(jobs, len(todo)))
        ahead = len(todo) if settle else UNNOTED_EACH * jobs
        running = cluster.run(todo, progress) if cluster and todo else _run(todo, jobs, processes, progress, ahead)
        for done in running if ledger is None else _kept(running, ledger):
            for task, result in done:
                results[task.id] = result
                finished.append(task)
                level = logging.INFO if task.rows else logging.DEBUG
                _log.log(level, "done %s, %d rows, %d bytes", task.id, task.rows, task.bytes)
            if settle is None or time.monotonic() - noted > SETTLE_SECONDS:
                note()
                noted = time.monotonic()
    finally:
        try:
            if finished and settle:
                progress.now(WAITING)
            note()
        finally:
            progress.close()
    return results


def in_order(tasks: Sequence[Task], *, jobs: int, progress: Progress) -> Generator[Result, None, None]:
    """What each task found, in their order, as soon as it is known: `jobs` threads run them. Raises what a task raises; who
    closes it stops what still runs."""
    found: dict[int, Result] = {}  # not by their ids: a manifest may name a file twice
    running = _run(tasks, max(1, min(jobs, len(tasks))), False, progress, UNNOTED_EACH * jobs)
    with contextlib.closing(running):
        for task in tasks:
            while id(task) not in found:
                found.update((id(done), result) for done, result in next(running))
            yield found.pop(id(task))


def _kept(running: Iterator[Done], ledger: Ledger) -> Iterator[Done]:
    """The same; where a bucket gives no more (what a disk refuses are findings) the error says that the run can go on."""
    try:
        yield from running
    except StoreError as e:
        if not ledger.durable:
            raise
        raise StoreError(f"{e}; what is finished is kept, --resume goes on") from e


WAITING = "waiting for the disk"
"""What a run does whose rows are all copied, and not yet durable."""


def _place(task: Task) -> str:
    """What a task works on, for a person."""
    return getattr(task, "where", "") or task.id.partition(":")[0].removesuffix(".h5")


def _run(todo: Sequence[Task], jobs: int, processes: bool, progress: Progress, ahead: int) -> Running:
    """What is done, whenever something is; at most `ahead` tasks are begun beyond what was taken."""
    if jobs == 1 or not todo:
        return _in_turn(todo, progress)
    return _in_processes(todo, jobs, progress) if processes else _in_threads(todo, jobs, progress, ahead)


def _in_turn(todo: Sequence[Task], progress: Progress) -> Running:
    for task in todo:
        progress.now(_place(task))
        yield [(task, task.run(progress.advance))]


def _in_threads(todo: Sequence[Task], jobs: int, progress: Progress, ahead: int) -> Running:
    counter = _Counter(threading.Lock(), _Number(), _Number(), threading.Event())
    waiting = deque(todo)
    begun: deque[Task] = deque(maxlen=1)
    finished: SimpleQueue[tuple[Task, Result | BaseException]] = SimpleQueue()
    begin, room = threading.Lock(), threading.Semaphore(ahead)

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                with begin:  # in their order
                    room.acquire()
                    task = waiting.popleft()
                    begun.append(task)
                try:
                    finished.put((task, task.run(counter.advance)))
                except BaseException as e:  # raised in the thread that waits
                    finished.put((task, e))

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    _quick_turns.begin()
    try:
        for thread in threads:
            thread.start()
        left = len(todo)
        while left:
            try:
                found = [finished.get(timeout=_POLL_SECONDS)]
            except Empty:
                progress.advance(*counter.take())
                if begun:
                    progress.now(_place(begun.pop()))
                continue
            progress.advance(*counter.take())
            while not finished.empty():
                found.append(finished.get())
            done = [(task, result) for task, result in found if not isinstance(result, BaseException)]
            if done:
                yield done
            for _, result in found:
                if isinstance(result, BaseException):
                    raise result
            left -= len(done)
            room.release(len(done))
    finally:
        _quick_turns.end()
        waiting.clear()
        counter.stop()
        room.release(jobs)
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _in_processes(todo: Sequence[Task], jobs: int, progress: Progress) -> Running:
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

    shared = multiprocessing.Lock(), multiprocessing.Value("q", lock=False), multiprocessing.Value("q", lock=False)
    stopped = multiprocessing.Event()
    counter = _Counter(*shared, stopped)
    pool = ProcessPoolExecutor(jobs, initializer=_begin_process, initargs=(*shared, stopped))
    waiting: dict[Future[Result], Task] = {}
    queue = deque(todo)
    try:
        while queue or waiting:
            while queue and len(waiting) < 2 * jobs:
                task = queue.popleft()
                progress.now(_place(task))
                waiting[pool.submit(_run_in_process, task)] = task
            finished, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress.advance(*counter.take())
            for future in finished:
                yield [(waiting.pop(future), future.result())]
    finally:
        counter.stop()
        pool.shutdown(wait=True, cancel_futures=True)


class _Counter:
    """Collects the progress of several workers, and tells them to stop; `rows`, `nbytes` and `stopped` may be shared memory."""

    def __init__(self, lock: Any, rows: Any, nbytes: Any, stopped: Any) -> None:
        self._lock, self._rows, self._bytes, self._stopped = lock, rows, nbytes, stopped

    def advance(self, rows: int, nbytes: int) -> None:
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            self._rows.value += rows
            self._bytes.value += nbytes

    def take(self) -> tuple[int, int]:
        with self._lock:
            taken = self._rows.value, self._bytes.value
            self._rows.value = self._bytes.value = 0
        return taken

    def stop(self) -> None:
        self._stopped.set()


@dataclass
class _Number:
    value: int = 0


_counter_of_process: _Counter


def _begin_process(*shared: Any) -> None:
    """Ctrl-C reaches the whole process group; only the parent acts on it, and tells the workers by their counter."""
    global _counter_of_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _counter_of_process = _Counter(*shared)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would write on, and then wait for ever."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


def _run_in_process(task: Task) -> Result:
    return task.run(_counter_of_process.advance)


class Clock:
    """Seconds since it was made, for the report."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
