"""What goes into the replay of a log, and what comes out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ...findings import Findings
from ...model import SalvageKind, Schema
from ..catalog.rows import Catalog
from ..live import LiveSet
from ..segment.files import Segment

if TYPE_CHECKING:
    from .rows import LogRows
    from .table import LoggedTable


class LogSalvage(NamedTuple):
    """Rows in the log that a server never shows."""

    kind: SalvageKind
    collection: str
    partition: str
    rows: LogRows
    reason: str


@dataclass(eq=False)
class Replay:
    """The outcome: rows to append and segments after deletes, per table_id."""

    rows: dict[str, list[LogRows]] = field(default_factory=lambda: defaultdict(list))
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    salvage: list[LogSalvage] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    deleted: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """By table_id: the ids that any delete in the log names, sorted; nothing of a log without records."""
    logged: list[LoggedTable] = field(default_factory=list)
    """Tables whose flushed records can be held against their segments, but for those that end at `tails`."""
    tails: list[int] = field(default_factory=list)
    start: int = 0
    end: int | None = None
    """LSNs between which records were looked at; an `end` of None means all there were."""

    @property
    def row_count(self) -> int:
        return sum(r.rows for found in self.rows.values() for r in found)


class Opened(NamedTuple):
    """What of a store is open when its log is read: `schemas` by collection, the rest by table_id.

    `segments` are the live ones, `damaged` the errors of tables whose segments have lost rows. `unfinished` are complete
    folders that no flush or merge has ended, `raced` tables whose catalog rows were overwritten, `victims` the folders that
    these rows had spoken of.
    """

    catalog: Catalog
    selection: LiveSet
    schemas: Mapping[str, Schema]
    segments: Mapping[str, list[Segment]]
    damaged: Mapping[str, Findings] = {}
    unfinished: Mapping[str, list[Segment]] = {}
    raced: Collection[str] = ()
    victims: Mapping[str, list[Segment]] = {}
