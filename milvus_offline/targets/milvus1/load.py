"""A load into Milvus 1.x: `milvus1:PATH` (a new store on disk) or `milvus1://HOST:PORT` (a running server)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...errors import UsageError
from ...fileio import printable
from ...findings import Findings
from ...model import Finding, Severity, Source
from ...transfer import Clock, Progress, execute
from .. import Target
from .store import Milvus1Store, Options

PREFIX = "milvus1:"
SERVER = "milvus1://"


@dataclass(frozen=True)
class LoadOptions1:
    """How a load into Milvus 1.x is done; what does not go with the kind of target is refused.

    `mode` (error, append, skip, overwrite) and `state` (folder of the ledger) are for a server, `catalog` (sqlite, mysql) and
    `server_root` for a new store.
    """

    mode: str = "error"
    metric: str | None = None
    index_file_size: int | None = None
    index: str = "keep"
    rename: Mapping[str, str] = field(default_factory=dict)
    ids: str = "keep"
    """`auto`: the target makes all ids; it always makes those that the source does not have."""
    per_partition: bool = False
    """MilvusDM's meaning of `mode`, see ServerOptions."""
    catalog: str = "sqlite"
    server_root: str | None = None
    message_bytes: int | None = None
    """Vectors per message to a server."""
    state: Path | None = None
    resume: bool = False
    dry_run: bool = False
    jobs: int | None = None
    confirm: Callable[[Sequence[str]], bool] = lambda names: True
    """Asked before collections of a server are dropped."""


@dataclass(frozen=True)
class LoadReport1:
    """What a load into Milvus 1.x did, or would do."""

    target: str
    rows: int
    bytes: int
    collections: Sequence[Mapping[str, Any]]
    seconds: float
    findings: tuple[Finding, ...]
    dry_run: bool = False
    state: str | None = None

    @property
    def exit_code(self) -> int:
        """4 when the target holds other counts than were sent, 3 when something needs attention, else 0."""
        if any(f.code.startswith("verify-") and f.severity is Severity.ERROR for f in self.findings):
            return 4
        return 3 if any(f.severity is not Severity.INFO for f in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "milvus-offline-load",
            "version": 1,
            "target": {"kind": "milvus1", "where": self.target},
            "plan": [dict(c) for c in self.collections],
            "state": self.state,
            "rows": self.rows,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "dry_run": self.dry_run,
            "findings": [f.to_json() for f in self.findings],
            "exit_code": self.exit_code,
        }

    def lines(self, *, with_findings: bool = True) -> list[str]:
        """The report for a person."""
        from ...report import amount, count, finding_lines, size

        if self.dry_run:
            result = [f"Would load into {self.target}:"]
        else:
            result = [f"{amount(self.rows, len(self.collections))} ({size(self.bytes)}) in {self.seconds:.1f} s: {self.target}"]
        for c in self.collections if self.dry_run else ():
            result.append(
                f"  {c['action']:<8} {printable(c['name'])}: {count(c['rows'], 'row')}, {count(c['partitions'], 'partition')}, "
                f"{c['dimension']} dimensions, {c['metric']}, {c['index']}"
            )
        return result + (finding_lines([f.to_json() for f in self.findings]) if self.findings and with_findings else [])


class _Target1(Target, Protocol):
    """What both kinds of target say beyond `Target`."""

    @property
    def state(self) -> Path | None: ...
    @property
    def parallel(self) -> bool: ...
    def close(self) -> None: ...
    def plan(self, source: Source) -> tuple[list[dict[str, Any]], Findings]: ...


def load_milvus1(source: Source, target: str, options: LoadOptions1, progress: Progress | None = None) -> LoadReport1:
    """Loads `source` into `milvus1:PATH` or `milvus1://HOST:PORT`. Raises UsageError, TargetError, DamageError."""
    clock = Clock()
    made = make_target(target, options, source)
    try:
        planned, notes = made.plan(source)
        rows = sum(c.rows for c in source.collections)
        nbytes = sum(c.rows * (c.schema.row_bytes + 8) for c in source.collections)
        if not options.dry_run:
            tasks = made.prepare(source, resume=options.resume)
            jobs = (options.jobs or min(2, os.cpu_count() or 1)) if made.parallel else 1
            results = execute(tasks, jobs=jobs, ledger=made.ledger, progress=progress)
            notes = Findings(made.finish(results))
            rows, nbytes = sum(t.rows for t in tasks), sum(t.bytes for t in tasks)
    finally:
        made.close()
    state = str(made.state) if made.state else None
    findings = (*source.findings, *notes)
    return LoadReport1(target, rows, nbytes, planned, clock.seconds, findings, options.dry_run, state)


def make_target(target: str, options: LoadOptions1, source: Source) -> _Target1:
    """The target that `milvus1:PATH` or `milvus1://HOST:PORT` names. Raises UsageError for options that do not go with it."""
    if options.index not in ("keep", "none"):
        raise UsageError(f"--index {options.index}: Milvus 1.x has no such index; keep or none")
    if target.startswith(SERVER):
        return _server(target, options, source)
    path = target.removeprefix(PREFIX)
    if not path:
        raise UsageError(f"{target}: expected milvus1:PATH or milvus1://HOST:PORT")
    if options.mode != "error":
        raise UsageError(f"--mode {options.mode}: a new store is never written into an existing one")
    made = Options(
        catalog=options.catalog,
        server_root=options.server_root,
        metric=options.metric,
        index=options.index,
        index_file_size=options.index_file_size,
        rename=options.rename,
        ids=options.ids,
    )
    return Milvus1Store(path, made)


def _server(target: str, options: LoadOptions1, source: Source) -> _Target1:
    from ..milvus.connection import Connection
    from ..milvus.load import default_state
    from .server import MESSAGE_BYTES, Milvus1Server, ServerOptions

    host, colon, port = target.removeprefix(SERVER).rstrip("/").rpartition(":")
    if not colon:
        host, port = port, "19530"
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "@" in host or "/" in host:
        raise UsageError(f"{printable(target)}: expected milvus1://HOST:PORT")
    if options.catalog != "sqlite" or options.server_root:
        raise UsageError("a catalog or a path of the server only goes with milvus1:PATH, a new store on disk")
    address = f"{host}:{port}"
    names = [f"{SERVER}{options.rename.get(c.schema.name, c.schema.name)}" for c in source.collections]
    return Milvus1Server(
        address,
        ServerOptions(
            state=(options.state or default_state(source, Connection(f"http://{address}"), names)).absolute(),
            mode=options.mode,
            metric=options.metric,
            index=options.index,
            index_file_size=options.index_file_size,
            rename=options.rename,
            ids=options.ids,
            confirm=options.confirm,
            per_partition=options.per_partition,
            message_bytes=options.message_bytes or MESSAGE_BYTES,
        ),
    )
