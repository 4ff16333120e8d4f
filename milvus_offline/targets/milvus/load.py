"""A whole load: look at the target, plan, create, send, index, prove; and the state that lets it go on after a kill.

The state folder holds `plan.json` (every decision, so that a resumed run decides nothing anew), `N.dropped.npy` (rows left
out of the N-th collection) and `ledger.jsonl` (collections created, messages acknowledged). It is never inside the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...errors import TargetError, UsageError
from ...fileio import explained, keep_out, write_text
from ...findings import Findings
from ...ledger import Ledger
from ...model import Finding, IndexSpec, Severity, Source, VectorType
from ...transfer import UNNOTED_EACH, Clock, Progress, Task, execute
from ...watch import Watch, watching
from ..columnar import CHUNK_BYTES
from .bulk import Bucket, ImportTask
from .client import Client
from .connection import Connection, lite_facts, lite_to_be
from .plan import CollectionPlan, LoadOptions, PartitionPlan, Plan, TargetFacts, make_plan, sanitize_collection
from .scan import Scan, scan
from .tasks import (
    LITE_MESSAGE_BYTES,
    LITE_MESSAGE_ROWS,
    MESSAGE_BYTES,
    MESSAGE_ROWS,
    CollectionJob,
    Link,
    cut,
)
from .verify import compare_counts, compare_rows, count_partitions

_PARALLEL = 8
"""Collections that are flushed, indexed and verified at the same time."""

Verify = Literal["none", "count", "sample", "full"]


@dataclass(frozen=True)
class RunOptions:
    """How a load is run; what it does stands in LoadOptions."""

    state: Path | None = None
    resume: bool = False
    message_bytes: int | None = None
    inflight: int = 2
    patience: float = 300.0
    load: bool = True
    verify: Verify = "sample"
    bucket: Bucket | None = None
    """Where files for a bulk import go; None: rows are inserted."""
    public_insert: bool = False
    """Send through `MilvusClient.insert`; a comparison, and the way out if pymilvus changes below."""


@dataclass
class Report:
    """What a load did. `rows` are those sent in all runs of it together."""

    plan: Plan
    state: Path | None
    rows: int = 0
    rows_now: int = 0
    seconds: float = 0.0
    seconds_sending: float = 0.0
    verified: str = "none"
    fast: bool = True
    findings: Findings = field(default_factory=Findings)

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
            "state": str(self.state) if self.state else None,
            "rows": self.rows,
            "rows_now": self.rows_now,
            "seconds": round(self.seconds, 3),
            "seconds_sending": round(self.seconds_sending, 3),
            "verified": self.verified,
            "findings": [f.to_json() for f in self.findings],
        }


def default_state(source: Source, connection: Connection, names: Sequence[str]) -> Path:
    """A folder in the user's state folder, the same for the same source, selection and target."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    what = json.dumps([source.fingerprint(), connection.where, connection.database, sorted(names)])
    return base / "milvus-offline" / hashlib.sha256(what.encode()).hexdigest()[:16]


def run_load(
    source: Source,
    connection: Connection,
    options: LoadOptions,
    run: RunOptions,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    confirm: Callable[[Plan], bool] = lambda plan: True,
) -> Report:
    """Loads `source` and proves it. `confirm` is asked before collections are dropped.

    Raises UsageError, TargetError, DamageError; after an interruption the state stays for `resume`.
    """
    clock = Clock()
    names = [c.schema.name for c in source.collections]
    state = (run.state or default_state(source, connection, names)).absolute()
    keep_out(state, source.describe())
    if connection.lite:
        keep_out(Path(connection.uri), source.describe())
    key = {
        "source": source.fingerprint(),
        "collections": names,
        "target": connection.where,
        "database": connection.database,
        "without_ids": sorted(c.schema.name for c in source.collections if not c.has_ids),
        "options": json.loads(json.dumps(asdict(options))),
        "message_bytes": run.message_bytes or (LITE_MESSAGE_BYTES if connection.lite else MESSAGE_BYTES),
        "inflight": run.inflight,
        "import": json.loads(json.dumps(asdict(run.bucket))) if run.bucket else None,
    }
    if run.bucket and (connection.lite or options.partitions == "key"):
        raise UsageError("bulk import goes into a server's own storage, and not with --partitions key: leave --import-to out")
    with contextlib.ExitStack() as stack:
        client: Client | None = None
        if not lite_to_be(connection):  # opening it would create it
            client = stack.enter_context(Client(connection, public=run.public_insert))
        resumed = _remembered(state, key) if run.resume else None
        if resumed:
            plan, dropped = resumed
        else:
            facts_of = client.facts if client else lite_facts
            plan, dropped = _decide(source, facts_of, options, None if dry_run else state)
        report = Report(plan, None if dry_run else state, findings=Findings([*source.findings, *plan.findings]))
        if dry_run:
            report.seconds = clock.seconds
            return report
        if not resumed and any(c.action == "recreate" for c in plan.collections) and not confirm(plan):
            raise UsageError("nothing was done: the target's collections were not to be dropped")
        client = client or stack.enter_context(Client(connection, public=run.public_insert))
        report.fast = client.fast
        with explained("keep the state of the load", state):
            ledger = _begin(state, key, plan, dropped, resume=resumed is not None)
            try:
                _work(source, client, run, plan, dropped, ledger, key["message_bytes"], report, progress)
            finally:
                ledger.close()
    report.seconds = clock.seconds
    return report


# Plan and state -------------------------------------------------------------------------------------------------------


def _decide(
    source: Source,
    facts_of: Callable[[Sequence[str]], TargetFacts],
    options: LoadOptions,
    folder: Path | None,
) -> tuple[Plan, list[Any]]:
    facts = facts_of(_possible_names(source, options))
    make_plan(source.collections, {}, options, facts)  # refusals that need no reading come before it
    drop = options.duplicates if options.duplicates in ("first", "last") else None
    if facts.collapses and options.duplicates == "keep":
        drop = "last"
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    scans: dict[str, Scan] = {}
    with watching() as met:
        for c in source.collections:
            auto = options.ids == "auto" or not c.has_ids
            scans[c.schema.name] = scan(
                c,
                ids=not auto,
                drop_duplicates=None if auto else drop,
                drop_nonfinite=options.nonfinite == "skip",
                folder=folder,
            )
    plan = make_plan(source.collections, scans, options, facts)
    plan = replace(plan, findings=(*plan.findings, *met.findings()))
    return plan, [scans[c.schema.name].dropped for c in source.collections]


def _possible_names(source: Source, options: LoadOptions) -> list[str]:
    """Names that the plan may give to collections in the target."""
    names = [options.rename.get(c.schema.name, c.schema.name) for c in source.collections]
    return [*names, *(sanitize_collection(n) for n in names)]


def _begin(state: Path, key: Mapping[str, Any], plan: Plan, dropped: Sequence[Any], *, resume: bool) -> Ledger:
    if resume:
        return Ledger.resume(state / "ledger.jsonl", dict(key))

    def remember() -> None:
        for number, positions in enumerate(dropped):
            np.save(state / f"{number}.dropped.npy", positions)
        write_text(state / "plan.json", json.dumps({"key": key, **plan.to_json()}, indent=1))

    return Ledger.create(state / "ledger.jsonl", dict(key), remember)


def _remembered(state: Path, key: Mapping[str, Any]) -> tuple[Plan, list[Any]] | None:
    """The plan of an interrupted run; None where there was none. Raises UsageError when that run was another."""
    if not (state / "ledger.jsonl").exists():
        return None
    Ledger.resume(state / "ledger.jsonl", dict(key)).close()
    try:
        stored = json.loads((state / "plan.json").read_text(encoding="utf-8"))
        plan = plan_from_json(stored)
        dropped = [np.load(state / f"{n}.dropped.npy", mmap_mode="r") for n in range(len(plan.collections))]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{state}: the state of the interrupted run cannot be read ({e}): start anew without --resume") from e
    return plan, dropped


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """The inverse of Plan.to_json."""
    collections = []
    for c in stored["collections"]:
        index = IndexSpec(c["index"]["type"], c["index"]["params"]) if c["index"] else None
        partitions = tuple(PartitionPlan(**p) for p in c["partitions"])
        changed = {"index": index, "partitions": partitions, "vector_type": VectorType(c["vector_type"])}
        collections.append(CollectionPlan(**{**c, **changed}))
    findings = [Finding(**{**f, "severity": Severity(f["severity"])}) for f in stored["findings"]]
    return Plan(stored["target"], tuple(collections), tuple(findings))


# Work -----------------------------------------------------------------------------------------------------------------


def _work(
    source: Source,
    client: Client,
    run: RunOptions,
    plan: Plan,
    dropped: Sequence[Any],
    ledger: Ledger,
    message_bytes: int,
    report: Report,
    progress: Progress | None,
) -> None:
    client.patience = run.patience
    link = Link(client, run.patience, message_bytes)
    message_rows = LITE_MESSAGE_ROWS if client.kind == "lite" else MESSAGE_ROWS
    jobs: list[CollectionJob] = []
    for c, p, positions in zip(source.collections, plan.collections, dropped, strict=True):
        if p.action == "skip":
            continue
        job = CollectionJob(p, c.schema, positions)
        size, most = (CHUNK_BYTES, sys.maxsize) if run.bucket else (message_bytes, message_rows)
        job.tasks = cut(job, c, link, message_bytes=size, message_rows=most)
        jobs.append(job)
    before = {job.plan.source: _create(client, job, ledger) for job in jobs}
    tasks = [t for job in jobs for t in job.tasks]
    one_by_one = client.kind == "lite" or any(j.plan.auto_id or j.plan.duplicate_rows for j in jobs)
    inflight = run.inflight if run.bucket or not one_by_one else 1
    link.done.update({t.id: int(ledger.done[t.id]["rows"]) for t in tasks if t.id in ledger.done})
    open_tasks = [t for t in tasks if t.id not in ledger.done]
    if "begun" in ledger.done:
        for task in open_tasks[: 1 if inflight == 1 else UNNOTED_EACH * inflight]:
            task.doubtful = True
    else:
        ledger.add({"begun": {"at": time.time_ns()}})
    clock = Clock()
    work: Sequence[Task] = tasks
    if run.bucket:
        name = f"milvus-offline-{hashlib.sha256(str(ledger.path).encode()).hexdigest()[:8]}-{ledger.done['begun']['at']}"
        work = [ImportTask(t, run.bucket, name) for t in tasks]
    results = execute(work, jobs=inflight, ledger=ledger, progress=progress)
    report.rows = sum(r["rows"] for r in results.values())
    if report.rows < sum(t.rows for t in tasks):  # what the pass before could still read
        report.findings += Watch.of(results.values()).findings()
    report.rows_now = sum(t.rows for t in open_tasks)
    with ThreadPoolExecutor(_PARALLEL) as pool:  # the server lets a client wait seconds for each of these
        list(pool.map(lambda job: client.flush(job.plan.name), jobs))
        report.seconds_sending = clock.seconds
        report.verified = run.verify
        for findings in pool.map(lambda job: _finish(client, job, run, before[job.plan.source], results), jobs):
            report.findings += findings


def _create(client: Client, job: CollectionJob, ledger: Ledger) -> dict[str, int]:
    """Makes the collection ready, once in all runs; returns rows by source partition from before the load."""
    plan = job.plan
    mark = f"created:{plan.source}"
    known = ledger.done.get(mark)
    if known is None:
        if plan.action == "recreate" and client.has(plan.name):
            client.drop(plan.name)
        elif plan.action == "create" and client.has(plan.name) and client.stored(plan.name, flush=True):
            raise TargetError(f"{client.connection.name}: collection {plan.name!r} appeared meanwhile and has rows")
        client.create(plan)
        known = {"identity": client.identity(plan.name), "before": {}, "baseline": {}}
        if plan.action == "append":
            if client.index_of(plan.name, plan.vector_field):
                if not client.loaded(plan.name):
                    client.load(plan.name)
                known["before"] = count_partitions(client, job)
            else:
                known["before"] = None
        if plan.auto_id:
            client.flush(plan.name)
            scopes = [None] if plan.key_field else list(dict.fromkeys(p.target for p in plan.partitions))
            known["baseline"] = {s or "": client.stored(plan.name, s) for s in scopes}
        ledger.add({mark: known})
    elif not client.has(plan.name) or client.identity(plan.name) != known["identity"]:
        raise TargetError(
            f"{client.connection.name}: collection {plan.name!r} is gone or another one since the interrupted run: "
            "start anew without --resume"
        )
    job.baseline = known["baseline"]
    job.held_rows = plan.action == "append"
    return known["before"]  # type: ignore[no-any-return]


def _finish(
    client: Client,
    job: CollectionJob,
    run: RunOptions,
    before: Mapping[str, int] | None,
    results: Mapping[str, Any],
) -> Findings:
    """Index, load, proof of one collection."""
    plan = job.plan
    findings = Findings()
    indexed = bool(client.index_of(plan.name, plan.vector_field))
    if plan.index and not indexed:
        try:
            client.build_index(plan.name, plan.vector_field, plan.index, plan.metric_type)
            indexed = True
        except TargetError as e:
            findings.warning("index-refused", plan.source, f"the rows are there, the index is not: {e}")
    if run.verify == "none" and not run.load:
        return findings
    was_loaded = indexed and client.loaded(plan.name)
    if indexed or client.kind == "lite":
        client.load(plan.name)
    if run.bucket and was_loaded:
        client.refresh(plan.name)
    if run.verify != "none":
        if indexed or client.kind == "lite":
            findings += _prove(client, job, run.verify, before, results)
        else:
            findings.append(_prove_unindexed(client, job))
    if not run.load and not was_loaded and (indexed or client.kind == "lite"):
        client.release(plan.name)
    return findings


def _prove(
    client: Client, job: CollectionJob, verify: Verify, before: Mapping[str, int] | None, results: Mapping[str, Any]
) -> Findings:
    findings = Findings()
    if before is None:
        text = "the collection had no index, so the rows from before could not be counted: counts are not compared"
        findings.info("verify-limited", job.plan.source, text)
    else:
        findings += compare_counts(client, job, before)
    if verify in ("sample", "full"):
        findings += compare_rows(client, job, results, full=verify == "full")
    return findings


def _prove_unindexed(client: Client, job: CollectionJob) -> Finding:
    """Without an index a server loads nothing; its statistics, which count deleted rows too, still say something."""
    plan = job.plan
    expected = sum(t.rows for t in job.tasks)
    stored = client.stored(plan.name)
    if stored >= expected:
        text = f"without an index rows cannot be read back; the statistics say {stored} rows, {expected} were sent"
        return Finding(Severity.INFO, "verify-limited", plan.source, text)
    text = f"{stored} rows in the target, {expected} expected"
    return Finding(Severity.ERROR, "verify-count", plan.source, text, expected - stored)
