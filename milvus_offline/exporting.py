"""One export: a source into an export target."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from .guard import keep_out
from .model import Finding, Source
from .targets import ExportTarget
from .transfer import Clock, Progress, execute

if TYPE_CHECKING:
    from .cluster import DaskCluster


class ExportReport(NamedTuple):
    """What an export did."""

    rows: int
    bytes: int
    collections: int
    salvaged_rows: int
    seconds: float
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "milvus-offline-report",
            "version": 1,
            "command": "export",
            "collections": self.collections,
            "rows": self.rows,
            "bytes": self.bytes,
            "salvaged_rows": self.salvaged_rows,
            "seconds": round(self.seconds, 3),
            "findings": [f.to_json() for f in self.findings],
        }


def _workers(url: str) -> DaskCluster:
    from .cluster import DaskCluster

    return DaskCluster(url)


def run_export(
    source: Source,
    target: ExportTarget,
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> ExportReport:
    """Writes all of `source`; raises what the source and the target raise. What is finished is kept for `resume`.

    `cluster` (`dask://HOST:PORT`) names the workers that do it, instead of this machine.
    """
    clock = Clock()
    try:
        with contextlib.nullcontext() if cluster is None else _workers(cluster) as workers:
            if workers is not None:  # before anything of an earlier export goes
                keep_out(target.out, source.describe())
                workers.probe(source, target.out)
            tasks = target.prepare(source, resume=resume)
            results = execute(
                tasks,
                jobs=jobs,
                processes=target.processes,
                ledger=target.ledger,
                settle=target.settle,
                progress=progress,
                cluster=workers,
            )
        notes = target.finish(results)
    finally:
        if target.ledger is not None:
            target.ledger.close()
    rows = [sum(p["rows"] for p in c["partitions"]) for c in target.manifest["collections"]]
    return ExportReport(
        rows=sum(rows),
        bytes=sum(n * (c.schema.row_bytes + 8) for n, c in zip(rows, source.collections, strict=True)),
        collections=len(source.collections),
        salvaged_rows=sum(s["rows"] for s in target.manifest["salvage"]),
        seconds=clock.seconds,
        findings=(*source.findings, *notes),
    )
