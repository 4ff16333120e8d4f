"""A running server of Milvus 0.10-1.1.1 as the target of a load, over its gRPC service (FORMAT §12).

Rows go one message after the other, in the source's order. A message arrives whole or not at all, so after an interruption the
collection's row count says whether the one open message did. Any other count means that somebody else writes there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...errors import TargetError, UsageError
from ...fileio import write_text
from ...findings import Findings
from ...ledger import Ledger
from ...milvus1.layout import EngineType, MetricType
from ...model import DEFAULT_PARTITION, Array, Finding, Source, SourceCollection
from ...names import printable
from ...transfer import Advance, Result, Task
from ...watch import Watch, watching
from .. import LoadTarget, words
from ..slices import Slice, cut, read
from .names import MB, CollectionPlan, Plan, Settings, check_names, makes_ids, settings_of, tags_of
from .proto import insert_bytes
from .searching import compare_searches
from .service import IDS_PER_CALL, Service

PREFIX = "milvus1://"
MESSAGE_BYTES = 16 << 20
"""Vectors per message; the server takes 256 MiB, and holds each several times."""
SAMPLE_MESSAGES = 8
SAMPLE_ROWS = 32
_PLAN_FILE = "plan.json"
_SERVICE_NUMBERS = {EngineType.FAISS_BIN_IDMAP: EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IVFFLAT: EngineType.FAISS_IVFFLAT}
"""Indexes of binary collections as CreateIndex wants them: it refuses the catalog's own numbers (§12)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a load into `milvus1://HOST:PORT`.

    `index_file_size` is in bytes, `message_mib` the size of the vectors in a message. `per_partition`: MilvusDM's meaning of
    `mode`, by which what exists is a partition; the default one exists when it has rows.
    """

    mode: words.Mode = "error"
    names: words.Names = "error"
    metric: str | None = None
    index: Literal["keep", "none"] = "keep"
    index_file_size: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    ids: words.Ids = "keep"
    verify: words.Verify = "sample"
    message_mib: float | None = None
    per_partition: bool = False

    def open(self, address: str) -> ServerTarget:
        host, colon, port = address.removeprefix(PREFIX).rstrip("/").rpartition(":")
        if not colon:
            host, port = port, "19530"
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "@" in host or "/" in host:
            raise UsageError(f"{printable(address)}: expected milvus1://HOST:PORT")
        return ServerTarget(f"{host}:{port}", self)


@dataclass
class _Job:
    """A collection under way. `before`: rows of it in the target before the load."""

    plan: CollectionPlan
    collection: SourceCollection
    settings: Settings
    sends_ids: bool
    before: int = 0
    tasks: list[Send] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.plan.name


@dataclass(eq=False)
class Send:
    """One message: some rows of one partition."""

    id: str
    job: _Job
    tag: str
    slices: tuple[Slice, ...]
    rows: int
    target: ServerTarget
    doubtful: bool = False
    """An earlier run may have sent it without writing that down."""
    seen: Watch = field(default_factory=Watch)
    """What the last `read` met."""

    @property
    def bytes(self) -> int:
        return self.rows * (self.job.collection.schema.row_bytes + 8)

    def read(self) -> tuple[npt.NDArray[np.int64], Array]:
        """The ids and vectors of the source that can be read; valid until the next read in this thread."""
        with watching() as self.seen:
            ids, vectors, _ = read(self.slices, self.job.collection.schema, self.target.message_bytes)
        return ids, vectors

    def run(self, advance: Advance) -> Result:
        ids, vectors = self.read()
        rows = len(ids)
        result: Result = {"rows": rows, **self.seen.result()}
        if not (self.doubtful and self.target.has_arrived(self, rows)) and rows:
            given = ids if self.job.sends_ids else None
            request = insert_bytes(self.job.name, self.tag, given, vectors, self.job.collection.schema.vector_type)
            made = self.target.service.call("Insert", request).vector_id_array
            if len(made) != rows:
                raise TargetError(f"{self.target.service.address}: {rows} rows sent, {len(made)} accepted")
            if given is None:
                result["ids"] = [[0, made[0]], [rows - 1, made[-1]]]
        advance(self.rows, self.bytes)
        return result


class ServerTarget(LoadTarget):
    """The target `milvus1://HOST:PORT`. Raises UsageError, TargetError."""

    def __init__(self, address: str, options: Options) -> None:
        self.options = options
        self.name = f"{PREFIX}{address}"
        self.where = (PREFIX, address)
        self.message_bytes = int(options.message_mib * (1 << 20)) if options.message_mib else MESSAGE_BYTES
        self.service = Service(address)
        self._plan: Plan
        self._ledger: Ledger
        self._resumed = False
        self._jobs: list[_Job] = []

    def close(self) -> None:
        self.service.close()

    def key(self) -> Mapping[str, Any]:
        return {"options": asdict(replace(self.options, verify="none")), "message_bytes": self.message_bytes}

    # Plan -------------------------------------------------------------------------------------------------------------

    def plan(self, source: Source, folder: Path | None) -> Plan:
        """The server is asked, not changed. In a dry run a refusal is a finding, so that the others are seen, too."""
        o = self.options
        sanitize = o.names == "sanitize"
        names = check_names(source.collections, o.rename, sanitize=sanitize)
        settings = self._settings(source)
        notes = Findings(note for s in settings for note in s.findings)
        version = self.service.version()
        if not version.startswith(("0.10", "1.")):
            text = f"the server says version {printable(version)!r}; known are 0.10 to 1.1.1"
            notes.info("server-version", self.service.address, text)
        quoted = any("'" in p.name for c in source.collections for p in c.partitions)
        quotes = quoted and self.service.keeps_metadata_in_mysql()
        planned, refused = [], []
        for c, chosen in zip(source.collections, settings, strict=True):
            name = names[c.schema.name]
            tags, renamed = tags_of(c, name, sanitize=sanitize, quotes=quotes)
            notes += renamed
            plan = replace(CollectionPlan.of(c, chosen, name), loaded=tags)
            there = self.service.schema(name)
            if there is not None:
                plan, refusal = self._into_existing(plan, there, chosen, notes)
                refused += refusal
            planned.append(plan)
        if refused and folder is not None:
            raise UsageError("\n".join(refused))
        for text in refused:
            notes.warning("refused", self.service.address, text)
        self._plan = Plan({"kind": "milvus1", "where": self.name}, planned, notes)
        return self._plan

    def _settings(self, source: Source) -> list[Settings]:
        o = self.options
        return [settings_of(c.schema, o.metric, o.index_file_size, o.index) for c in source.collections]

    def _into_existing(
        self, plan: CollectionPlan, there: Any, chosen: Settings, notes: Findings
    ) -> tuple[CollectionPlan, list[str]]:
        """The plan for a collection that the target has, and why that is refused."""
        if self.options.mode == "error":
            text = f"collection {plan.name!r} exists; --mode append, skip or overwrite says what to do"
            return replace(plan, action="refused"), [text]
        action: words.Action = "recreate" if self.options.mode == "overwrite" else self.options.mode
        plan = replace(plan, action=action)
        if self.options.per_partition:
            plan = self._by_partition(plan)
        elif action == "skip":
            notes += self._compare_skipped(plan, there)
        if plan.action == "append":
            known = there.metric_type in list(MetricType)
            held = (there.dimension, MetricType(there.metric_type).name if known else there.metric_type)
            if held != (plan.dimension, chosen.metric.name):
                text = f"has {held[0]} dimensions, {held[1]}; the source {plan.dimension}, {chosen.metric.name}"
                return plan, [f"collection {plan.name!r} {text}"]
        return plan, []

    def _compare_skipped(self, plan: CollectionPlan, there: Any) -> Findings:
        """A collection that is left alone should be what the load would have made of it; half of it should not pass."""
        notes = Findings()
        rows = self.service.count(plan.name)
        differing = [f"dimension {there.dimension} there, {plan.dimension} here"] if there.dimension != plan.dimension else []
        differing += [f"{rows:,} rows there, {plan.rows:,} here"] if rows != plan.rows else []
        if differing:
            text = f"{plan.name!r} is left alone, but it differs from the source: {'; '.join(differing)}"
            notes.warning("skip-differs", plan.source, text, abs(plan.rows - rows))
        return notes

    def _by_partition(self, plan: CollectionPlan) -> CollectionPlan:
        reply = self.service.call("ShowPartitions", {"collection_name": plan.name})
        there = set(reply.partition_tag_array) - {DEFAULT_PARTITION}
        if self.service.default_rows(plan.name):
            there.add(DEFAULT_PARTITION)
        if plan.action == "skip":
            left = {p: tag for p, tag in plan.loaded.items() if tag not in there}
            return replace(plan, loaded=left, action="append" if left else "skip")
        if plan.action == "recreate" and DEFAULT_PARTITION not in plan.loaded:
            return replace(plan, dropped=tuple(t for t in plan.loaded.values() if t in there), action="append")
        return plan

    def remember(self, folder: Path) -> None:
        write_text(folder / _PLAN_FILE, json.dumps([asdict(c) for c in self._plan.collections], indent=1))

    def recall(self, source: Source, folder: Path) -> Plan:
        try:
            stored = json.loads((folder / _PLAN_FILE).read_text(encoding="utf-8"))
            planned = [CollectionPlan(**{**c, "dropped": tuple(c["dropped"])}) for c in stored]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            text = f"{folder}: the state of the interrupted run cannot be read ({e}): start anew without --resume"
            raise UsageError(text) from e
        notes = [note for s in self._settings(source) for note in s.findings]
        self._plan = Plan({"kind": "milvus1", "where": self.name}, planned, notes)
        return self._plan

    # Work -------------------------------------------------------------------------------------------------------------

    def begin(self, source: Source, ledger: Ledger, *, resumed: bool) -> Sequence[Task]:
        """Creates collections and partitions, and returns the messages in order."""
        self._ledger = ledger
        self._resumed = resumed
        for c, plan, settings in zip(source.collections, self._plan.collections, self._settings(source), strict=True):
            if plan.action != "skip":
                job = _Job(plan, c, settings, not makes_ids(c, self.options.ids))
                self._create(job)
                job.tasks = list(self._messages(job))
                self._jobs.append(job)
        tasks = [t for j in self._jobs for t in j.tasks]
        if resumed:
            for task in [t for t in tasks if t.id not in ledger.done][:1]:
                task.doubtful = True
        return tasks

    def _create(self, job: _Job) -> None:
        mark = f"created:{job.name}"
        if mark in self._ledger.done:
            job.before = self._ledger.done[mark]["before"]
            return
        plan = job.plan
        there = self._resumed and plan.action != "append" and self.service.schema(job.name) is not None
        if there and plan.action == "create":
            self._require_empty(job)  # it was created, and the run ended before that was written down
        if there or (plan.action == "recreate" and not self._resumed):
            self.service.call("DropCollection", {"collection_name": job.name})
        if plan.action in ("create", "recreate"):
            request = {
                "collection_name": job.name,
                "dimension": plan.dimension,
                "index_file_size": -(-job.settings.index_file_size // MB),
                "metric_type": int(job.settings.metric),
            }
            self.service.create("CreateCollection", request)
        else:
            for tag in plan.dropped:
                self.service.call("DropPartition", {"collection_name": job.name, "tag": tag})
            self.service.flush(job.name)
            job.before = self.service.count(job.name)
        tags = set(self.service.call("ShowPartitions", {"collection_name": job.name}).partition_tag_array)
        for tag in plan.loaded.values():
            if tag != DEFAULT_PARTITION and tag not in tags:
                self.service.create("CreatePartition", {"collection_name": job.name, "tag": tag})
        self._ledger.add({mark: {"before": job.before}})

    def _require_empty(self, job: _Job) -> None:
        self.service.flush(job.name)
        if rows := self.service.count(job.name):
            raise TargetError(f"{self.service.address}: collection {job.name!r} appeared meanwhile and has {rows:,} rows")

    def _messages(self, job: _Job) -> Iterator[Send]:
        for partition in (p for p in job.collection.partitions if p.name in job.plan.loaded):
            tag = job.plan.loaded[partition.name]
            sent = "" if tag == DEFAULT_PARTITION else tag  # never "_default" itself (§12)
            for number, group in enumerate(cut(partition.pieces, job.collection.schema.row_bytes, self.message_bytes)):
                name = f"{job.name}/{partition.name}/{number}"
                yield Send(name, job, sent, tuple(group), sum(s.rows for s in group), self)

    def has_arrived(self, task: Send, rows: int) -> bool:
        """Whether the open message of an interrupted run is there. Raises TargetError when the count cannot be explained."""
        job = task.job
        self.service.flush(job.name)
        expected = job.before + sum(self._ledger.done[t.id]["rows"] for t in job.tasks if t.id in self._ledger.done)
        count: int = self.service.count(job.name)
        if count not in (expected, expected + rows):
            raise TargetError(
                f"{self.service.address}: {job.name} holds {count} rows, expected {expected} or {expected + rows}: "
                "something else writes into it. Start anew with --mode overwrite"
            )
        return bool(count != expected)

    def flush(self) -> None:
        for job in self._jobs:
            self.service.flush(job.name)

    # Afterwards -------------------------------------------------------------------------------------------------------

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        notes = Watch.of(results.values()).findings()
        for job in self._jobs:
            engine = job.settings.engine
            if job.plan.action == "append" or engine in (EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP):
                continue
            request = {
                "collection_name": job.name,
                "index_type": int(_SERVICE_NUMBERS.get(engine, engine)),
                "extra_params": [{"key": "params", "value": job.settings.index_params}],
            }
            try:
                self.service.call("CreateIndex", request, patience=None)
            except TargetError as e:
                text = f"the rows are there, the index is not: {e}"
                notes.warning("index-refused", job.name, text)
        return notes

    def prove(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Counts, and reads rows back (§12: GetVectorsByID)."""
        self.verified = self.options.verify
        notes = Findings()
        for job in self._jobs if self.options.verify != "none" else ():
            expected = job.before + sum(results[t.id]["rows"] for t in job.tasks)
            count = self.service.count(job.name)
            if count != expected:
                text = f"the server counts {count} rows, expected {expected}"
                notes.error("verify-count", job.name, text, abs(expected - count))
            if self.options.verify in ("sample", "full"):
                try:
                    notes += self._compare_rows(job, results)
                except TargetError as e:
                    text = f"the server gives no rows back, so they were only counted: {e}"
                    notes.info("verify-limited", job.name, text)
        return notes

    def compare(self, source: Source, searches: int = 0) -> tuple[int, Findings]:
        notes = Findings()
        rows = 0
        names = check_names(source.collections, self.options.rename, sanitize=True)
        for c, settings in zip(source.collections, self._settings(source), strict=True):
            name = names[c.schema.name]
            there = self.service.schema(name)
            if there is None:
                notes.error("verify-count", c.schema.name, f"the server has no collection {name!r}", c.rows)
                continue
            plan = CollectionPlan.of(c, settings, name)
            held = (there.dimension, there.metric_type)
            if held != (plan.dimension, int(settings.metric)):
                text = f"dimension and metric {held} there, {(plan.dimension, int(settings.metric))} here"
                notes.error("verify-schema", c.schema.name, text, c.rows)
                continue
            job = _Job(plan, c, settings, c.has_ids)
            job.tasks = list(self._messages(job))
            rows += c.rows
            with contextlib.suppress(TargetError):  # one that only reads (`serve`) has nothing to flush
                self.service.flush(name)
            count = self.service.count(name)
            if count != c.rows:
                text = f"the server counts {count:,} rows, expected {c.rows:,}"
                notes.error("verify-count", c.schema.name, text, abs(c.rows - count))
            notes += self._compare_rows(job, {t.id: {"rows": t.rows} for t in job.tasks})
            if searches and count == c.rows:
                notes += compare_searches(self.service, name, settings.metric, c, searches)
        return rows, notes

    def _compare_rows(self, job: _Job, results: Mapping[str, Result]) -> Findings:
        checked = 0
        wrong: dict[int, bytes | None] = {}
        for task in self._chosen(job):
            ids, vectors = task.read()
            if not job.sends_ids:
                known = np.array(results[task.id].get("ids", []), np.int64).reshape(-1, 2)
                ids, vectors = known[:, 1], vectors[known[:, 0]]
            elif self.options.verify == "sample" and len(ids) > SAMPLE_ROWS:
                at = np.linspace(0, len(ids) - 1, SAMPLE_ROWS).astype(np.int64)
                ids, vectors = ids[at], vectors[at]
            for start in range(0, len(ids), IDS_PER_CALL):
                some, ours = ids[start : start + IDS_PER_CALL], vectors[start : start + IDS_PER_CALL]
                there, theirs = self.service.vectors(job.name, some, job.collection.schema)
                checked += len(some)
                for row in np.flatnonzero(~there | ~_equal(ours, theirs)):
                    wrong[int(some[row])] = theirs[row].tobytes() if there[row] else None
        self.checked_rows += checked
        self._forgive_repeated(job, wrong)
        older = [i for i, found in wrong.items() if found is not None] if job.plan.action == "append" else []
        notes = Findings()
        if older:
            text = "ids that the collection held before: the server shows one row an id, so these could not be compared"
            notes.info("verify-limited", job.name, text, len(older))
        lost = [i for i in wrong if i not in set(older)]
        if lost:
            some_ids = ", ".join(map(str, lost[:5]))
            text = f"{len(lost)} of {checked} rows read back are missing or differ, ids {some_ids}"
            notes.error("verify-rows", job.name, text, len(lost))
        return notes

    def _chosen(self, job: _Job) -> list[Send]:
        if self.options.verify == "full" or len(job.tasks) <= SAMPLE_MESSAGES:
            return job.tasks
        return [job.tasks[i] for i in np.linspace(0, len(job.tasks) - 1, SAMPLE_MESSAGES).astype(int)]

    @staticmethod
    def _forgive_repeated(job: _Job, wrong: dict[int, bytes | None]) -> None:
        """Takes out what is right after all: of rows that share an id the server shows one, any of ours will do."""
        for task in job.tasks if any(found is not None for found in wrong.values()) else ():
            ids, vectors = task.read()
            for row in np.flatnonzero(np.isin(ids, list(wrong))):
                if wrong.get(int(ids[row])) == vectors[row].tobytes():
                    del wrong[int(ids[row])]


def _equal(ours: Array, theirs: Array) -> npt.NDArray[np.bool_]:
    """Which rows are the same to the bit."""
    a, b = (np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1) for x in (ours, theirs))
    same: npt.NDArray[np.bool_] = (a == b).all(axis=1)
    return same
