"""A running server of Milvus 0.10-1.1.1 as a target, over its gRPC service (FORMAT §12).

Rows go one message after the other, in the source's order. A message arrives whole or not at all, so after an interruption the
collection's row count says whether the one open message did. Any other count means that somebody else writes there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import TargetError, UsageError
from ...fileio import explained, printable
from ...findings import Findings
from ...ledger import Ledger
from ...milvus1.layout import EngineType, MetricType
from ...model import DEFAULT_PARTITION, Finding, Severity, Source, SourceCollection
from ...transfer import Advance, Result, Task
from ..slices import Slice, cut
from .names import MB, Settings, check_names, describe, settings_of
from .proto import METHODS, SERVICE, insert_bytes, messages

MESSAGE_BYTES = 16 << 20
"""Vectors per message; the server takes 256 MiB, and holds each several times."""
_IN_DELETE_STATE = 1
_DROP_SECONDS = 60.0
_CALL_SECONDS = 300.0


class Service:
    """A connection to the service; every method raises TargetError when the server says no. Use as a context manager."""

    def __init__(self, address: str) -> None:
        import grpc

        self.address = address
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=unlimited)
        self._calls: dict[str, Any] = {}

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, *, allow: Sequence[int] = (), patience: float | None = _CALL_SECONDS) -> Any:
        """The reply. `request` is a mapping of fields or serialised bytes; error codes in `allow` are the caller's business."""
        import grpc

        asked, answered = METHODS[method]
        if not isinstance(request, bytes):
            request = messages()[asked](**request).SerializeToString()
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(
                SERVICE + method, request_serializer=None, response_deserializer=messages()[answered].FromString
            )
        try:
            reply = self._calls[method](request, timeout=patience)
        except grpc.RpcError as e:
            raise TargetError(f"{self.address}: {self._explain(method, e)}") from None
        status = reply if answered == "Status" else reply.status
        if status.error_code and status.error_code not in allow:
            raise TargetError(f"{self.address}: {method} refused (code {status.error_code}): {printable(status.reason)}")
        return reply

    @staticmethod
    def _explain(method: str, error: Any) -> str:
        import grpc

        code = error.code()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "no Milvus 0.10-1.x answers there; a newer server is addressed as http://host:port"
        if code is grpc.StatusCode.UNAVAILABLE:
            return f"no answer to {method}: is the server up? What arrived is kept: go on with --resume"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer to {method} in time; go on with --resume"
        return f"{method}: {code.name}: {error.details()}"

    def version(self) -> str:
        return str(self.call("Cmd", {"cmd": "version"}, patience=10).string_reply)

    def count(self, collection: str) -> int:
        """Rows that are flushed."""
        return int(self.call("CountCollection", {"collection_name": collection}).collection_row_count)

    def default_rows(self, collection: str) -> int:
        """Rows of the default partition."""
        self.flush(collection)
        info = self.call("ShowCollectionInfo", {"collection_name": collection}).json_info
        try:
            partitions = json.loads(info or "{}").get("partitions") or []
            return sum(int(p["row_count"]) for p in partitions if p["tag"] == DEFAULT_PARTITION)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise TargetError(f"{self.address}: ShowCollectionInfo says what is not understood: {printable(info[:200])}") from e

    def flush(self, collection: str) -> None:
        self.call("Flush", {"collection_name_array": [collection]}, patience=None)

    def schema(self, collection: str) -> Any | None:
        """A CollectionSchema, or None when there is no such collection."""
        name = {"collection_name": collection}
        return self.call("DescribeCollection", name) if self.call("HasCollection", name).bool_reply else None


@dataclass(frozen=True)
class ServerOptions:
    """How a load into a server is done; see LoadOptions1."""

    state: Path
    mode: str = "error"
    metric: str | None = None
    index: str = "keep"
    index_file_size: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    ids: str = "keep"
    confirm: Callable[[Sequence[str]], bool] = lambda names: True
    per_partition: bool = False
    """MilvusDM's meaning of `mode`: what exists is a partition; the default one exists when it has rows."""
    message_bytes: int = MESSAGE_BYTES


@dataclass
class _Job:
    """A collection under way."""

    collection: SourceCollection
    settings: Settings
    name: str
    action: str
    sends_ids: bool
    partitions: list[str]
    """Those that are loaded."""
    dropped: list[str] = field(default_factory=list)
    """Partitions that are dropped before."""
    before: int = 0
    tasks: list[Send] = field(default_factory=list)


@dataclass(eq=False)
class Send:
    """One message: some rows of one partition."""

    id: str
    job: _Job
    tag: str
    slices: tuple[Slice, ...]
    rows: int
    target: Milvus1Server
    doubtful: bool = False
    """An earlier run may have sent it without writing that down."""

    @property
    def bytes(self) -> int:
        return self.rows * (self.job.collection.schema.row_bytes + 8)

    def run(self, advance: Advance) -> Result:
        if not (self.doubtful and self.target.has_arrived(self)):
            schema = self.job.collection.schema
            ids, vectors = np.empty(self.rows, np.int64), np.empty((self.rows, schema.width), schema.dtype)
            at = 0
            for piece in self.slices:
                for batch in piece.batches(self.target.options.message_bytes):
                    n = len(batch.ids)
                    ids[at : at + n], vectors[at : at + n] = batch.ids, batch.vectors
                    at += n
            if at != self.rows:
                raise TargetError(f"{self.id}: the source gave {at} rows, {self.rows} were announced; did it change meanwhile?")
            given = ids if self.job.sends_ids else None
            request = insert_bytes(self.job.name, self.tag, given, vectors, schema.vector_type)
            reply = self.target.service.call("Insert", request)
            if len(reply.vector_id_array) != self.rows:
                raise TargetError(f"{self.target.service.address}: {self.rows} rows sent, {len(reply.vector_id_array)} taken")
        advance(self.rows, self.bytes)
        return {"rows": self.rows}


class Milvus1Server:
    """The target `milvus1://HOST:PORT`. Raises UsageError, TargetError."""

    processes = False
    parallel = False

    def __init__(self, address: str, options: ServerOptions) -> None:
        self.options = options
        self.state: Path | None = options.state
        self.service = Service(address)
        self.ledger: Ledger | None = None
        self._jobs: list[_Job] = []
        self._notes = Findings()
        self._refused: list[str] = []

    def close(self) -> None:
        self.service.close()
        if self.ledger is not None:
            self.ledger.close()

    def plan(self, source: Source) -> tuple[list[dict[str, Any]], Findings]:
        """What would be done, a line a collection, and the decisions; the server is asked, not changed."""
        self._decide(source)
        refused = [Finding(Severity.WARNING, "refused", self.service.address, text) for text in self._refused]
        return [describe(j.collection, j.settings, j.name, j.action) for j in self._jobs], Findings([*self._notes, *refused])

    def _decide(self, source: Source) -> None:
        o = self.options
        names = check_names(source.collections, o.rename)
        settings = [settings_of(c.schema, o.metric, o.index_file_size, o.index) for c in source.collections]
        self._notes = Findings(note for s in settings for note in s.findings)
        version = self.service.version()
        if not version.startswith(("0.10", "1.")):
            text = f"the server says version {printable(version)!r}; known are 0.10 to 1.1.1"
            self._notes.info("server-version", self.service.address, text)
        self._jobs = []
        refused = []
        for collection, chosen in zip(source.collections, settings, strict=True):
            name = names[collection.schema.name]
            there = self.service.schema(name)
            sends_ids = collection.has_ids and o.ids != "auto"
            job = _Job(collection, chosen, name, "create", sends_ids, [p.name for p in collection.partitions])
            self._jobs.append(job)
            if there is None:
                continue
            if o.mode == "error":
                refused.append(f"collection {name!r} exists; --mode append, skip or overwrite says what to do")
                job.action = "refused"
                continue
            job.action = {"append": "append", "skip": "skip", "overwrite": "recreate"}[o.mode]
            if o.per_partition:
                self._by_partition(job)
            if job.action == "append":
                known = there.metric_type in list(MetricType)
                held = (there.dimension, MetricType(there.metric_type).name if known else there.metric_type)
                ours = (collection.schema.dimension, chosen.metric.name)
                if held != ours:
                    refused.append(f"collection {name!r} has {held[0]} dimensions, {held[1]}; the source {ours[0]}, {ours[1]}")
        self._refused = refused

    def _by_partition(self, job: _Job) -> None:
        reply = self.service.call("ShowPartitions", {"collection_name": job.name})
        there = set(reply.partition_tag_array) - {DEFAULT_PARTITION}
        if self.service.default_rows(job.name):
            there.add(DEFAULT_PARTITION)
        if job.action == "skip":
            job.partitions = [p for p in job.partitions if p not in there]
            job.action = "append" if job.partitions else "skip"
        elif job.action == "recreate" and DEFAULT_PARTITION not in job.partitions:
            job.dropped = [p for p in job.partitions if p in there]
            job.action = "append"

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        """Creates collections and partitions, and returns the messages in order."""
        self._decide(source)
        state = self.options.state
        key = json.loads(
            json.dumps(
                {
                    "source": source.fingerprint(),
                    "target": self.service.address,
                    "collections": [[j.name, [[p.name, p.rows] for p in j.collection.partitions]] for j in self._jobs],
                    "settings": [[j.settings.metric, j.settings.engine, j.settings.index_params] for j in self._jobs],
                    "mode": self.options.mode,
                    "without_ids": sorted(j.name for j in self._jobs if not j.sends_ids),
                    "message_bytes": self.options.message_bytes,
                }
            )
        )
        resumed = resume and (state / "ledger.jsonl").exists()
        if self._refused and not resumed:
            raise UsageError("\n".join(self._refused))
        dropped = [j.name for j in self._jobs if j.action == "recreate"]
        if dropped and not resumed and not self.options.confirm(dropped):
            raise UsageError("nothing was done: the target's collections were not to be dropped")
        with explained("keep the state of the load", state):
            open_ledger = Ledger.resume if resume else Ledger.create
            state.mkdir(parents=True, exist_ok=True)
            self.ledger = open_ledger(state / "ledger.jsonl", key)
        for job in self._jobs:
            self._create(job)
        tasks = [t for j in self._jobs for t in self._cut(j)]
        if resumed:
            for task in [t for t in tasks if t.id not in self.ledger.done][:1]:
                task.doubtful = True
        return tasks

    def _create(self, job: _Job) -> None:
        assert self.ledger is not None
        mark = f"created:{job.name}"
        if mark in self.ledger.done:
            known = self.ledger.done[mark]
            job.action, job.before, job.partitions = known["action"], known["before"], known["partitions"]
            return
        if job.action == "refused":  # resumed, but this collection was not made by the interrupted run
            raise UsageError("\n".join(self._refused))
        if job.action == "recreate":
            self.service.call("DropCollection", {"collection_name": job.name})
        if job.action in ("create", "recreate"):
            self._create_collection(job)
        elif job.action == "append":
            for tag in job.dropped:
                self.service.call("DropPartition", {"collection_name": job.name, "tag": tag})
            self.service.flush(job.name)
            job.before = self.service.count(job.name)
        if job.action != "skip":
            there = set(self.service.call("ShowPartitions", {"collection_name": job.name}).partition_tag_array)
            for tag in job.partitions:
                if tag != DEFAULT_PARTITION and tag not in there:
                    self._create_again("CreatePartition", {"collection_name": job.name, "tag": tag})
        self.ledger.add({mark: {"action": job.action, "before": job.before, "partitions": job.partitions}})

    def _create_collection(self, job: _Job) -> None:
        request = {
            "collection_name": job.name,
            "dimension": job.collection.schema.dimension,
            "index_file_size": -(-job.settings.index_file_size // MB),
            "metric_type": int(job.settings.metric),
        }
        self._create_again("CreateCollection", request)

    def _create_again(self, method: str, request: Mapping[str, Any]) -> None:
        """Creates what was perhaps dropped a moment ago: that goes away after a while."""
        until = time.monotonic() + _DROP_SECONDS
        while True:
            status = self.service.call(method, request, allow=(_IN_DELETE_STATE,))
            if not status.error_code:
                return
            if "delete" not in status.reason or time.monotonic() > until:
                raise TargetError(f"{self.service.address}: {method} refused: {printable(status.reason)}")
            time.sleep(0.2)

    def _cut(self, job: _Job) -> list[Send]:
        if job.action == "skip":
            return []
        for partition in (p for p in job.collection.partitions if p.name in job.partitions):
            tag = "" if partition.name == DEFAULT_PARTITION else partition.name  # never "_default" itself (§12)
            groups = cut(partition.pieces, job.collection.schema.row_bytes, self.options.message_bytes)
            for number, group in enumerate(groups):
                name = f"{job.name}/{partition.name}/{number}"
                job.tasks.append(Send(name, job, tag, tuple(group), sum(s.rows for s in group), self))
        return job.tasks

    def has_arrived(self, task: Send) -> bool:
        """Whether the open message of an interrupted run is there. Raises TargetError when the count cannot be explained."""
        assert self.ledger is not None
        job = task.job
        self.service.flush(job.name)
        expected = job.before + sum(t.rows for t in job.tasks if t.id in self.ledger.done)
        count = self.service.count(job.name)
        if count not in (expected, expected + task.rows):
            raise TargetError(
                f"{self.service.address}: {job.name} holds {count} rows, expected {expected} or {expected + task.rows}: "
                "something else writes into it. Start anew with --mode overwrite"
            )
        return count != expected

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Flushes, counts and indexes."""
        assert self.ledger is not None
        notes = Findings(self._notes)
        for job in self._jobs:
            if job.action == "skip":
                continue
            self.service.flush(job.name)
            expected = job.before + sum(results[t.id]["rows"] for t in job.tasks)
            count = self.service.count(job.name)
            if count != expected:
                text = f"the server counts {count} rows, expected {expected}"
                notes.error("verify-count", job.name, text, abs(expected - count))
            if job.action != "append" and job.settings.engine not in (EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP):
                self._index(job, notes)
        self.ledger.remove()
        return notes

    def _index(self, job: _Job, notes: Findings) -> None:
        request = {
            "collection_name": job.name,
            "index_type": int(job.settings.engine),
            "extra_params": [{"key": "params", "value": job.settings.index_params}],
        }
        try:
            self.service.call("CreateIndex", request, patience=None)
        except TargetError as e:
            text = f"the rows are there, the index is not: {e}"
            notes.warning("index-refused", job.name, text)
