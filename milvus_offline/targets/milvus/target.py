"""Milvus Lite, a Milvus server of 2.x or 3.x, or Zilliz Cloud as the target of a load.

The state folder holds `plan.json` (every decision, so that a load that goes on decides nothing anew) and `N.dropped.npy` (rows
left out of the N-th collection) beside the ledger.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import TargetError, UsageError
from ...fileio import write_text
from ...findings import Findings
from ...ledger import Ledger
from ...model import DEFAULT_PARTITION, Finding, Severity, Source, SourceCollection
from ...transfer import UNNOTED_EACH, Advance, Result, Task
from ...watch import Watch, watching
from .. import Estimate, LoadTarget
from ..columnar import CHUNK_BYTES
from .bulk import check_importable
from .claiming import claim, claims_of, hold, release
from .client import Client
from .connection import Connection, lite_facts, lite_to_be
from .estimate import estimate, import_hint
from .firstuse import lines_of
from .limits import MAX_CAPACITY
from .naming import possible_names, sanitize_collection
from .plan import Room, make_plan, make_room, makes_ids
from .scan import Scan, scan
from .staging import Staging, jobs_of, staged_name
from .tasks import (
    LITE_MESSAGE_BYTES,
    LITE_MESSAGE_ROWS,
    MESSAGE_BYTES,
    MESSAGE_ROWS,
    CollectionJob,
    Link,
    messages_of,
)
from .terms import CollectionPlan, Plan, TargetFacts, plan_from_json, plan_to_json
from .together import together
from .verify import compare_counts, compare_rows, count_partitions

if TYPE_CHECKING:
    from .options import LiteOptions

_MANY_PARTITIONS = 1000
"""Partitions times shards from which on the target is asked how many it has room for."""


@dataclass
class _Job(CollectionJob):
    """A collection under way."""

    rows_before: Mapping[str, int] | None = None
    """Rows by source partition from before the load; None where they could not be counted."""
    was_loaded: bool = False
    readable: bool = False
    """Whether rows can be read back: loaded, which takes an index with a server."""


class MilvusTarget(LoadTarget):
    """See targets.LoadTarget. Raises UsageError, TargetError."""

    def __init__(self, connection: Connection, options: LiteOptions) -> None:
        self.connection = connection
        self.options = options
        self.name = connection.name
        part = ["{}/{}".format(*options.part_wanted)] if options.part_wanted else []
        self.where = (connection.where, connection.database, *part, *(["stage"] if options.staging == "stage" else []))
        self.staged = options.staging == "stage"
        self._staging: Staging | None = None
        self._decisions = options.decisions()
        self._bucket = options.bucket()
        wanted = int(options.message_mib * (1 << 20)) if options.message_mib else None
        self._message_bytes = wanted or (LITE_MESSAGE_BYTES if connection.lite else MESSAGE_BYTES)
        self._client: Client | None = None
        self._plan: Plan
        self._dropped: list[Any] = []
        self._ended: frozenset[str] = frozenset()
        """Aliases of loads that will not go on."""
        self._jobs: list[_Job] = []
        self._skipped: list[_Job] = []

    @property
    def client(self) -> Client:
        """The connection, opened when it is first wanted: opening Milvus Lite creates it."""
        if self._client is None:
            self._client = Client(self.connection, public=self.options.public_insert, patience=self.options.patience)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.patience = 0.0
            for job in self._jobs:
                release(self._client, job.plan)
            self._client.close()

    def places(self) -> Sequence[Path]:
        return [Path(self.connection.uri)] if self.connection.lite else []

    # Plan -------------------------------------------------------------------------------------------------------------

    def plan(self, source: Source, folder: Path | None) -> Plan:
        partitions = sum(len(c.partitions) for c in source.collections)
        facts = self._facts([*possible_names(source, self._decisions.rename), *self._alias()], partitions)
        self._check_alias(source, facts)
        if self._bucket:
            check_importable(facts.kind, self.name)
            self._bucket.check()
        rooms = self._rooms(source, facts) if self._decisions.per_partition and self._decisions.mode != "error" else {}
        collections = [_only(c, rooms[c.schema.name].partitions) if rooms else c for c in source.collections]
        make_plan(collections, {}, self._decisions, facts, rooms)  # refusals that need no reading come before it
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        rows = sum(c.rows for c in collections)
        nbytes = sum(c.rows * c.schema.row_bytes for c in collections)
        with watching() as met, self.phase("reading the source once", rows, nbytes) as advance:
            scans = {c.schema.name: self._scan(c, facts, folder, advance) for c in collections}
        plan = make_plan(collections, scans, self._decisions, facts, rooms)
        notes = Findings([*plan.findings, *met.findings()])
        planned = [self._count_replaced(c, p, facts, notes) for c, p in zip(collections, plan.collections, strict=True)]
        made = self._estimate(planned, [c.schema.row_bytes for c in collections])
        if not self._bucket and self._decisions.partitions != "key" and (hint := import_hint(made, facts.kind)):
            notes += [hint]
        self._plan = replace(plan, collections=tuple(planned), findings=tuple(notes), estimate=made)
        self._dropped = [scans[c.schema.name].dropped for c in collections]
        return self._plan

    def _estimate(self, plans: Sequence[CollectionPlan], row_bytes: Sequence[int]) -> Estimate:
        lite = self.connection.lite
        message = (self._message_bytes, LITE_MESSAGE_ROWS if lite else MESSAGE_ROWS)
        part = self.options.part_wanted
        verify = "none" if part or self.staged else self.options.verify
        imported, parts = self._bucket is not None, part[1] if part else 1
        made = estimate(self._client, plans, row_bytes, verify, message, imported=imported, parts=parts)
        return made._replace(seconds=None) if self.staged else made  # a server is not met

    def _count_replaced(self, c: SourceCollection, plan: CollectionPlan, facts: TargetFacts, notes: Findings) -> CollectionPlan:
        """Appending to Milvus Lite: rows of the target whose ids come again go, and that is said before it happens."""
        if not facts.collapses or plan.action != "append" or plan.auto_id:
            return plan
        was_loaded = self.client.loaded(plan.name)
        self.client.load(plan.name)
        found: dict[str, npt.NDArray[np.int64]] = {}
        there = facts.existing[plan.name].partitions
        for piece in (x for p in c.partitions for x in p.pieces):
            for batch in piece.batches():
                for partition in there:
                    some = self.client.ids_there(plan.name, partition, np.unique(batch.ids), plan.id_field)
                    found[partition] = np.union1d(found.get(partition, some), some)
        if not was_loaded:
            self.client.release(plan.name)
        replaced = {p: len(ids) for p, ids in found.items() if len(ids)}
        if rows := sum(replaced.values()):
            examples = ", ".join(map(str, np.concatenate(list(found.values()))[:10].tolist()))
            examples += ", ..." if rows > 10 else ""
            text = (
                f"{rows:,} rows of {plan.name!r} have ids that come again ({examples}): Milvus Lite holds one row for each "
                "id, so the ones from before are replaced"
            )
            notes.error("duplicates-collapsed", c.schema.name, text, rows)
        return replace(plan, replaced=replaced)

    def _facts(self, names: Sequence[str], partitions: int) -> TargetFacts:
        if self._client is None and lite_to_be(self.connection):
            return lite_facts()
        facts = self.client.facts(names)
        if self.client.kind != "lite" and partitions * self._decisions.shards > _MANY_PARTITIONS:
            facts = replace(facts, capacity=MAX_CAPACITY - self.client.capacity_used())
        return facts

    def _alias(self) -> list[str]:
        return [self.options.alias_wanted] if self.options.alias_wanted else []

    def _check_alias(self, source: Source, facts: TargetFacts) -> None:
        for alias in self._alias():
            if len(source.collections) != 1:
                raise UsageError(
                    f"--switch-alias {alias}: {len(source.collections)} collections would share it: choose one with -c"
                )
            if alias in facts.existing:
                raise UsageError(f"--switch-alias {alias}: the target has a collection of that name, which no alias can have")

    def _rooms(self, source: Source, facts: TargetFacts) -> dict[str, Room]:
        rooms = {}
        for c in source.collections:
            old = self._decisions.rename.get(c.schema.name, c.schema.name)
            name = sanitize_collection(old) if self._decisions.names == "sanitize" else old
            existing = facts.existing.get(name)
            skip = existing is not None and self._decisions.mode == "skip"
            default_rows = self.client.stored(name, DEFAULT_PARTITION, flush=True) if skip else 0
            rooms[c.schema.name] = make_room(c, existing, default_rows, self._decisions)
        return rooms

    def _scan(self, collection: SourceCollection, facts: TargetFacts, folder: Path | None, advance: Advance) -> Scan:
        o = self._decisions
        drop = o.duplicates if o.duplicates in ("first", "last") else None
        if facts.collapses and o.duplicates == "keep":
            drop = "last"
        auto = makes_ids(collection, o)
        return scan(
            collection,
            ids=not auto,
            drop_duplicates=None if auto else drop,
            drop_nonfinite=o.nonfinite == "skip",
            folder=folder,
            advance=advance,
        )

    def key(self) -> Mapping[str, Any]:
        return {
            "options": asdict(self._decisions),
            "message_bytes": self._message_bytes,
            "inflight": self.options.inflight,
            "import": asdict(self._bucket) if self._bucket else None,
        }

    def remember(self, folder: Path) -> None:
        if not (self.connection.lite or self._decisions.part or self.staged):  # others must not create what this load does
            mark = f"milvus_offline {secrets.token_hex(8)}"
            marked = ("create", "recreate", "reuse")
            new = [replace(c, mark=mark) if c.action in marked else c for c in self._plan.collections]
            self._plan = replace(self._plan, collections=tuple(new))
        self._ended = claims_of(folder / "plan.json")  # that load is over, as its ledger is ours now
        for number, positions in enumerate(self._dropped):
            np.save(folder / f"{number}.dropped.npy", positions)
        write_text(folder / "plan.json", json.dumps(plan_to_json(self._plan), indent=1))

    def recall(self, source: Source, folder: Path) -> Plan:
        try:
            self._plan = plan_from_json(json.loads((folder / "plan.json").read_text(encoding="utf-8")))
            numbers = range(len(self._plan.collections))
            self._dropped = [np.load(folder / f"{n}.dropped.npy", mmap_mode="r") for n in numbers]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            text = f"{folder}: the state of the interrupted run cannot be read ({e}): start anew without --resume"
            raise UsageError(text) from e
        return self._plan

    # Work -------------------------------------------------------------------------------------------------------------

    @property
    def takes_workers(self) -> bool:
        return self._bucket is not None

    def begin(self, source: Source, ledger: Ledger, *, resumed: bool) -> Sequence[Task]:
        client = self.client
        client.patience = self.options.patience
        if self.workers is not None and self._bucket is not None:
            self.workers.probe(source, self._bucket.prepare())
        link = Link(client, self.options.patience, self._message_bytes)
        lite = client.kind == "lite"
        size, most = self._message_bytes, LITE_MESSAGE_ROWS if lite else MESSAGE_ROWS
        if self._bucket:
            size, most = CHUNK_BYTES, sys.maxsize
        for c, plan, positions in zip(source.collections, self._plan.collections, self._dropped, strict=True):
            job = _Job(plan, c.schema, positions)
            chosen = _only(c, [p.source for p in plan.partitions])
            job.tasks = messages_of(job, chosen, link, message_bytes=size, message_rows=most)
            if self._decisions.part:
                number, of = self._decisions.part
                job.tasks = job.tasks[number - 1 :: of]
            (self._skipped if plan.action == "skip" else self._jobs).append(job)
        for job in self._jobs:
            self._create(job, ledger)
        tasks = [t for job in self._jobs for t in job.tasks]
        one_by_one = lite or any(j.plan.auto_id or j.plan.duplicate_rows for j in self._jobs)
        self.jobs = self.options.inflight if self._bucket or not one_by_one else 1
        link.done.update({t.id: int(ledger.done[t.id]["rows"]) for t in tasks if t.id in ledger.done})
        if "begun" in ledger.done:
            open_tasks = [t for t in tasks if t.id not in ledger.done]
            for task in open_tasks[: 1 if self.jobs == 1 else UNNOTED_EACH * self.jobs]:
                task.doubtful = True
        else:
            ledger.add({"begun": {"at": time.time_ns()}})
        if self._bucket is None:
            return tasks
        imports = max(1, self.options.inflight // 2)  # while the server works on one, the files of the next are written
        self.jobs = imports
        if self.workers is not None:  # who waits for them; the server has no more jobs for it
            self.jobs = max(self.jobs, 2 * self.workers.threads)
        if step := self.options.staging:
            where = (self.connection.where, self.connection.database)
            self._staging = Staging(self._bucket, staged_name(source, where, self._decisions, self._bucket), step)
        staging, workers = self._staging, self.workers
        return jobs_of(tasks, client, self._bucket, ledger, staging, resumed=resumed, at_once=imports, workers=workers)

    def _create(self, job: _Job, ledger: Ledger) -> None:
        """Makes the collection ready, once in all runs."""
        client, plan = self.client, job.plan
        mark = f"created:{plan.source}"
        known = ledger.done.get(mark)
        if known is None:
            for partition in plan.dropped_partitions:
                client.drop_partition(plan.name, partition)
            claim(client, plan, self._ended)
            known = {"identity": client.identity(plan.name), "before": {}, "baseline": {}}
            if plan.action == "append":
                known["before"] = self._count_before(job)
            if plan.auto_id or self._bucket:
                known["baseline"] = self._baseline(plan)
            ledger.add({mark: known})
        elif not client.has(plan.name) or client.identity(plan.name) != known["identity"]:
            raise TargetError(
                f"{self.name}: collection {plan.name!r} is gone or another one since the interrupted run: "
                "start anew without --resume"
            )
        else:
            hold(client, plan)
        job.baseline, job.rows_before = known["baseline"], known["before"]
        job.held_rows = plan.action == "append"

    def _baseline(self, plan: CollectionPlan) -> dict[str, int]:
        """Rows by the statistics before anything is sent. A new collection is not flushed for it: servers from 2.4 on let one
        wait ten seconds for the next flush."""
        scopes = [None] if plan.key_field else list(dict.fromkeys(p.target for p in plan.partitions))
        if plan.action in ("create", "recreate"):
            return {s or "": 0 for s in scopes}
        self.client.flush(plan.name)
        return {s or "": self.client.stored(plan.name, s) for s in scopes}

    def _count_before(self, job: _Job) -> dict[str, int] | None:
        client, plan = self.client, job.plan
        if not client.index_of(plan.name, plan.vector_field):
            return None
        if not client.loaded(plan.name):
            client.load(plan.name)
        counted = count_partitions(client, job)
        targets = {p.source: p.target for p in plan.partitions}
        return {source: rows - plan.replaced.get(targets[source], 0) for source, rows in counted.items()}

    # Afterwards -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Not after an import: its segments are sealed, and stored before its job is over."""
        if self._bucket:
            return
        self._for_each(lambda job: self.client.flush(job.plan.name))

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        tasks = [t for job in self._jobs for t in job.tasks]
        lost = sum(r["rows"] for r in results.values()) < sum(t.rows for t in tasks)  # the pass before could still read them
        notes = Watch.of(results.values()).findings() if lost else Findings()
        if self.staged:
            assert self._staging
            return [*notes, self._staging.finish(self._decisions.part or (1, 1), results)]
        if self._staging:
            self._staging.remove()
        return [*notes, *(f for found in self._for_each(self._index_and_load) for f in found)]

    def prove(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        if self.staged:
            return []
        if self._decisions.part:  # the others may still be on their way
            return [f for job in self._jobs for f in self._prove_part(job)]
        self.verified = self.options.verify
        notes = Findings(f for found in self._for_each(lambda job: self._prove(job, results)) for f in found)
        if self.options.verify != "none":
            for job in self._skipped:
                notes += self._compare_skipped(job)
        self.checked_rows = sum(job.checked for job in (*self._jobs, *self._skipped))
        for alias in self._alias():
            self._switch_alias(alias, notes)
        return notes

    def first_use(self) -> Sequence[str]:
        if self.staged:
            return ()
        job = next((j for j in self._jobs if sum(t.rows for t in j.tasks)), None)
        if job is None:
            return ()
        return lines_of(job.plan, self.connection)

    def compare(self, source: Source, searches: int = 0) -> tuple[int, Findings]:
        from .compare import compare

        if self._client is None and lite_to_be(self.connection):
            raise UsageError(f"{self.name}: there is no such Milvus Lite folder")
        with watching() as met:
            rows, notes = compare(self.client, self._decisions, source, full=self.options.verify == "full", searches=searches)
        return rows, Findings([*notes, *met.findings()])

    def _prove_part(self, job: _Job) -> Findings:
        notes = Findings()
        number, of = self._decisions.part or (1, 1)
        rows = sum(t.rows for t in job.tasks)
        text = f"part {number} of {of}, {rows:,} rows, was sent and not verified; verify {self.name} when all came"
        notes.info("verify-limited", job.plan.source, text)
        return notes

    def _compare_skipped(self, job: _Job) -> Findings:
        """A collection that was left alone should be what the load would have made of it; half of it should not pass."""
        notes = Findings()
        plan, client = job.plan, self.client
        if not plan.partitions or any(f.code == "skip-differs" and f.where == plan.source for f in self._plan.findings):
            return notes  # MilvusDM's meaning of skip; or another collection, as the plan said
        try:
            was_loaded = client.loaded(plan.name)
            if client.kind == "lite" or (client.index_of(plan.name, plan.vector_field) and (was_loaded or self.options.load)):
                client.load(plan.name)
                job.readable, job.rows_before = True, {}
                found = list(self._differences(job, {}))
                if not was_loaded:
                    client.release(plan.name)
            else:
                found = [self._prove_by_statistics(job)]
        except TargetError as e:  # a partition or a field is not there
            found = [Finding(Severity.ERROR, "verify-count", plan.source, str(e))]
        for f in found:
            if f.severity is Severity.ERROR:
                text = (
                    f"{plan.name!r} was left alone, but it differs from the source: {f.message}. Load it with --mode overwrite"
                )
                notes.warning("skip-differs", f.where, text, f.rows)
        return notes

    def _switch_alias(self, alias: str, notes: Findings) -> None:
        (job,) = self._jobs or self._skipped
        if any(f.severity is not Severity.INFO for f in notes):
            text = f"the alias was not moved to {job.plan.name!r}, as the rows there are not what they should be"
            notes.warning("alias-kept", alias, text)
        else:
            self.client.switch_alias(alias, job.plan.name)
            notes.info("alias-switched", alias, f"the alias now names {job.plan.name!r}")

    def _for_each(self, call: Callable[[_Job], Any]) -> list[Any]:
        """For several collections at the same time: the server lets a client wait seconds for each."""
        return list(together(call, self._jobs))

    def _index_and_load(self, job: _Job) -> Findings:
        client, plan = self.client, job.plan
        findings = Findings()
        indexed = bool(client.index_of(plan.name, plan.vector_field))
        if plan.index and not indexed:
            try:
                client.build_index(plan.name, plan.vector_field, plan.index, plan.metric_type)
                indexed = True
            except TargetError as e:
                findings.warning("index-refused", plan.source, f"the rows are there, the index is not: {e}")
        loadable = indexed or client.kind == "lite"
        if loadable and (self.options.load or self.options.verify != "none"):
            job.was_loaded = indexed and client.loaded(plan.name)
            if not (self.options.load or job.was_loaded or client.kind == "lite"):
                return findings
            try:
                client.load(plan.name)
                if self._bucket and job.was_loaded:
                    client.refresh(plan.name)
                job.readable = True
            except TargetError as e:
                text = f"the rows are there, but the target does not load the collection into memory: {e}"
                findings.warning("load-refused", plan.source, text)
        return findings

    def _prove(self, job: _Job, results: Mapping[str, Result]) -> list[Finding]:
        findings: list[Finding] = []
        if self.options.verify != "none":
            findings = list(self._differences(job, results)) if job.readable else [self._prove_by_statistics(job)]
        if job.readable and not self.options.load and not job.was_loaded:
            self.client.release(job.plan.name)
        return findings

    def _differences(self, job: _Job, results: Mapping[str, Result]) -> Iterator[Finding]:
        if job.rows_before is None:
            text = "the collection had no index, so the rows from before could not be counted: counts are not compared"
            yield Finding(Severity.INFO, "verify-limited", job.plan.source, text)
        else:
            yield from compare_counts(self.client, job, job.rows_before)
        if self.options.verify in ("sample", "full"):
            yield from compare_rows(self.client, job, results, full=self.options.verify == "full")

    def _prove_by_statistics(self, job: _Job) -> Finding:
        """What is not loaded (without an index a server loads nothing) cannot be read; the server's statistics, which count
        deleted rows too, still say something."""
        plan = job.plan
        expected = sum(t.rows for t in job.tasks)
        stored = self.client.stored(plan.name)
        if stored >= expected:
            text = f"the collection is not loaded, so rows were not read back; {stored:,} are counted, {expected:,} were sent"
            return Finding(Severity.INFO, "verify-limited", plan.source, text)
        text = f"{stored} rows in the target, {expected} expected"
        return Finding(Severity.ERROR, "verify-count", plan.source, text, expected - stored)


def _only(collection: SourceCollection, partitions: Sequence[str]) -> SourceCollection:
    """The collection with these partitions."""
    return replace(collection, partitions=[p for p in collection.partitions if p.name in set(partitions)])
