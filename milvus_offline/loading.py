"""One load: a source into a load target, by one road for all of them.

Plan, confirm, tasks, flush, finish, prove, report. The state folder holds the ledger (what was created, which tasks are done)
and what the target wants to remember of its plan; with both, an interrupted load goes on as if it had not been interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TargetError, UsageError
from .findings import Findings
from .guard import explained, keep_out
from .ledger import Ledger
from .model import Severity, Source
from .targets import LoadPlan, LoadTarget, PlannedCollection
from .targets.words import Verify
from .transfer import Advance, Clock, Progress, Result, Task, execute

if TYPE_CHECKING:
    from .cluster import DaskCluster


@dataclass
class LoadReport:
    """What a load did, or in a dry run would do. `rows` and `bytes` are those sent in all runs of it together."""

    target: str
    plan: LoadPlan[PlannedCollection]
    state: Path | None = None
    rows: int = 0
    rows_now: int = 0
    bytes: int = 0
    seconds: float = 0.0
    seconds_sending: float = 0.0
    """Up to the flush."""
    verified: Verify = "none"
    checked_rows: int = 0
    """Rows that were read back and compared."""
    dry_run: bool = False
    staged: bool = False
    """Whether the rows were only written for a later load."""
    findings: Findings = field(default_factory=Findings)
    first_use: Sequence[str] = ()
    """Lines that use what was loaded, see LoadTarget."""

    @property
    def exit_code(self) -> int:
        """4 when verification found a difference, 3 when rows were left out or are in doubt, else 0."""
        if any(f.code.startswith("verify-") and f.severity is Severity.ERROR for f in self.findings):
            return 4
        return 3 if any(f.severity is not Severity.INFO for f in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "milvus-offline-load",
            "version": 1,
            "target": dict(self.plan.target),
            "plan": [c.to_json() for c in self.plan.collections],
            "estimate": self.plan.estimate._asdict() if self.plan.estimate else None,
            "state": str(self.state) if self.state else None,
            "rows": self.rows,
            "rows_now": self.rows_now,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "seconds_sending": round(self.seconds_sending, 3),
            "verified": self.verified,
            "checked_rows": self.checked_rows,
            "dry_run": self.dry_run,
            "staged": self.staged,
            "findings": [f.to_json() for f in self.findings],
            "first_use": list(self.first_use),
            "exit_code": self.exit_code,
        }


def run_load(  # many: how a load runs is the caller's to choose, each by its name
    source: Source,
    target: LoadTarget,
    *,
    state: Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    limit_rate: float | None = None,
    cluster: str | None = None,
    progress: Progress | None = None,
    confirm: Callable[[Sequence[str]], bool] = lambda names: True,
) -> LoadReport:
    """Loads all of `source` and proves it; raises what the source and the target raise (UsageError, TargetError, DamageError).

    What is finished is kept for `resume` in `state`, by default a folder in the user's state folder that follows from source
    and target. `limit_rate` is in bytes per second. The workers of a `cluster` (`dask://HOST:PORT`) write the files of bulk
    imports. `confirm` is asked before collections of the target are dropped. The target is closed at the end.
    """
    clock = Clock()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(target))
        target.progress = progress
        if cluster and not dry_run:
            target.workers = stack.enter_context(_workers(target, cluster))
        if target.home and state:
            raise UsageError(f"--state: {target.name} keeps the ledger in its own folder")
        folder = target.home or (state or default_state(source, target)).absolute()
        for place in (folder, *target.places()):
            keep_out(place, source.describe())
        target.claim(source, resume=resume)
        key = _key(source, target)
        path = folder / target.ledger_name
        resumed = resume and path.exists() and path.stat().st_size > 0  # empty: killed before there was a plan
        if resumed:
            Ledger.resume(path, key).close()  # refuses a load of something else, and one that is not over
            plan = target.recall(source, folder)
        else:
            with _keeping(folder, target):
                plan = target.plan(source, None if dry_run else folder)
        if limit_rate and plan.estimate:
            plan = replace(plan, estimate=plan.estimate.held_to(limit_rate))
        report = LoadReport(
            target.name, plan, dry_run=dry_run, staged=target.staged, findings=Findings([*source.findings, *plan.findings])
        )
        if dry_run:
            report.rows = sum(c.rows for c in plan.collections if c.action != "skip")
        else:
            if not resumed and plan.dropped and not confirm(plan.dropped):
                raise UsageError("cancelled: nothing was dropped and nothing was loaded")
            report.state = folder
            with explained("keep the state of the load", folder), _keeping(folder, target):
                ledger = Ledger.resume(path, key) if resumed else Ledger.create(path, key, lambda: target.remember(folder))
                with contextlib.closing(ledger):
                    _work(source, target, ledger, report, resumed=resumed, limit_rate=limit_rate)
    report.seconds = clock.seconds
    return report


def _workers(target: LoadTarget, url: str) -> DaskCluster:
    from .cluster import DaskCluster

    if not target.takes_workers:
        raise UsageError("--cluster only goes with --import-to: its workers write the files of bulk imports")
    return DaskCluster(url)


@contextlib.contextmanager
def _keeping(folder: Path, target: LoadTarget) -> Iterator[None]:
    """Names the option where the state cannot be kept in its usual place: a container's user often has no home."""
    try:
        yield
    except OSError as e:
        refused = Path(os.path.abspath(e.filename)) if isinstance(e.filename, str) else None
        if refused is None or not (refused == folder or refused in folder.parents or folder in refused.parents):
            raise
        if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        if target.home:
            raise TargetError(f"{folder}: cannot be written to ({e.strerror}): choose another place") from e
        raise TargetError(
            f"{folder}: the state of the load, which --resume needs, cannot be kept here ({e.strerror}): name another folder "
            "with --state"
        ) from e


def run_compare(
    source: Source, target: LoadTarget, *, searches: int = 0, progress: Progress | None = None
) -> tuple[int, Findings]:
    """Holds what a target has against a source: rows that were looked at, and the findings of both. The target is closed.

    `searches`: sampled rows of each collection that are searched for on both sides, too.
    """
    with contextlib.closing(target):
        target.progress = progress
        rows, notes = target.compare(source, searches)
    return rows, Findings([*source.findings, *notes])


def _work(
    source: Source, target: LoadTarget, ledger: Ledger, report: LoadReport, *, resumed: bool, limit_rate: float | None
) -> None:
    tasks = target.begin(source, ledger, resumed=resumed)
    report.rows_now = sum(t.rows for t in tasks if t.id not in ledger.done)
    clock = Clock()
    pace = Pace(limit_rate) if limit_rate else None
    work = [Slowed(t, pace) for t in tasks] if pace else tasks
    results = execute(work, jobs=target.jobs, ledger=ledger, progress=target.progress)
    with target.phase("waiting until the target has all rows"):
        target.flush()
    report.seconds_sending = clock.seconds
    report.rows = sum(int(results[t.id]["rows"]) for t in tasks)
    report.bytes = sum(t.bytes * int(results[t.id]["rows"]) // t.rows for t in tasks if t.rows)
    with target.phase("indexing"):
        report.findings += target.finish(results)
    with target.phase("verifying"):
        report.findings += target.prove(results)
    report.verified, report.checked_rows = target.verified, target.checked_rows
    report.first_use = target.first_use()


class Pace:
    """Holds work back to a rate in bytes per second, for all threads together."""

    def __init__(self, rate: float) -> None:
        self._rate, self._lock = rate, threading.Lock()
        self._free = time.monotonic()

    def wait(self, nbytes: int, advance: Advance) -> None:
        """Returns when so many bytes may have gone."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + nbytes / self._rate
            until = self._free
        while (left := until - time.monotonic()) > 0:
            advance(0, 0)  # raises when the run is being given up
            time.sleep(min(left, 0.2))


@dataclass(frozen=True)
class Slowed:
    """A task that keeps a pace."""

    task: Task
    pace: Pace

    @property
    def id(self) -> str:
        return self.task.id

    @property
    def rows(self) -> int:
        return self.task.rows

    @property
    def bytes(self) -> int:
        return self.task.bytes

    def run(self, advance: Advance) -> Result:
        def slowly(rows: int, nbytes: int) -> None:
            advance(rows, nbytes)
            if nbytes:
                self.pace.wait(nbytes, advance)

        return self.task.run(slowly)


def _key(source: Source, target: LoadTarget) -> dict[str, Any]:
    """What a load that goes on must have in common with the one before."""
    key = {
        "source": source.fingerprint(),
        "collections": [[c.schema.name, c.has_ids, [[p.name, p.rows] for p in c.partitions]] for c in source.collections],
        "target": list(target.where),
        **target.key(),
    }
    return json.loads(json.dumps(key))  # type: ignore[no-any-return]


def default_state(source: Source, target: LoadTarget) -> Path:
    """A folder in the user's state folder, the same for the same source, selection and target."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    what = json.dumps([source.fingerprint(), *target.where, sorted(c.schema.name for c in source.collections)])
    return base / "milvus-offline" / hashlib.sha256(what.encode()).hexdigest()[:16]
