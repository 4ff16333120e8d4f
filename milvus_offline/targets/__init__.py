"""Where rows go: one module per kind of target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..ledger import Ledger
from ..model import Finding, Source
from ..transfer import Result, Task


def is_milvus1(target: str) -> bool:
    """Whether a target as typed means Milvus 1.x: `milvus1:PATH` or `milvus1://HOST:PORT`."""
    return target.startswith("milvus1:")


class Target(Protocol):
    """Turns a source into tasks, and closes the work when they are done."""

    processes: bool
    """Whether its tasks hold the interpreter and so want processes rather than threads."""
    ledger: Ledger | None
    """What is finished; there after `prepare`."""

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        """Checks that the whole job is sound, creates what the tasks write into, and returns them in a stable order.

        Nothing is created when something is refused (UsageError, TargetError).
        """

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Makes the work visible under its final names; the results are those of all tasks, of earlier runs too."""


class ExportTarget(Target, Protocol):
    """A target of `export`: files in a folder."""

    manifest: dict[str, Any]
    """What was written; there after `finish`."""

    def settle(self, tasks: Sequence[Task]) -> None:
        """Makes durable what these tasks, which are finished, have written."""
