"""What a plan is made of: the user's options, what the target can do and has, and how each collection is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...findings import Findings
from ...model import Finding, IndexSpec, Severity, VectorType
from .. import LoadPlan, words


@dataclass(frozen=True, kw_only=True)
class LoadOptions(words.LoadChoices):
    """What decides what a collection becomes; the values of the command line's options."""

    id_field: str = "id"
    vector_field: str = "vector"
    key_field: str = "partition"
    shards: int = 1
    per_partition: bool = False
    """MilvusDM's meaning of `mode`: what exists is a partition; see `make_room`."""
    part: tuple[int, int] | None = None
    """The i-th of n parts that fill one collection."""


@dataclass(frozen=True)
class Existing:
    """A collection that the target has already."""

    rows: int
    dimension: int | None
    vector_type: VectorType | None
    id_field: str | None
    auto_id: bool
    vector_field: str | None
    key_field: str | None
    metric_type: str | None
    partitions: tuple[str, ...]
    others: tuple[str, ...] = ()
    """Required fields that a load would not fill."""
    shards: int = 1


def existing_of(described: Mapping[str, Any], rows: int, partitions: tuple[str, ...]) -> Existing:
    """What pymilvus' description of a collection means for a load into it; the metric is its index's and not in it."""
    from pymilvus import DataType

    kinds = {DataType.FLOAT_VECTOR: VectorType.FLOAT, DataType.BINARY_VECTOR: VectorType.BINARY}
    id_field = vector_field = key_field = dimension = vector_type = None
    others = []
    for f in described["fields"]:
        if f.get("is_primary"):
            id_field = f["name"] if f["type"] == DataType.INT64 else None
        elif f["type"] in kinds and vector_field is None:
            vector_field, vector_type = f["name"], kinds[f["type"]]
            dimension = int(f["params"]["dim"])
        elif f.get("is_partition_key") and f["type"] == DataType.VARCHAR:
            key_field = f["name"]
        elif not f.get("nullable") and f.get("default_value") is None:
            others.append(f["name"])
    return Existing(
        rows=rows,
        dimension=dimension,
        vector_type=vector_type,
        id_field=id_field,
        auto_id=bool(described.get("auto_id")),
        vector_field=vector_field,
        key_field=key_field,
        metric_type=None,
        partitions=partitions,
        others=tuple(others),
        shards=int(described.get("num_shards") or 1),
    )


@dataclass(frozen=True)
class TargetFacts:
    """What the target can do. `collapses`: a second row of an id replaces the first."""

    kind: words.Server
    version: str
    binary: bool
    collapses: bool
    strict_names: bool
    hyphens: bool
    min_dimension: int
    max_dimension: int
    max_partitions: int
    auto_index_only: bool
    existing: Mapping[str, Existing] = field(default_factory=dict)
    max_shards: int = 1
    max_description: int = 60_000
    """Bytes."""
    capacity: int | None = None
    """Partitions times shards that there is still room for; None: nobody knows."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias -> collection."""
    drops_aliased: bool = True
    """Whether a collection that has aliases can be dropped."""


@dataclass(frozen=True)
class PartitionPlan:
    """`target` is the partition's name there, `key` the value of the key field where partitions are kept in one."""

    source: str
    target: str
    key: str | None
    rows: int


@dataclass(frozen=True)
class CollectionPlan:
    """How one collection is loaded."""

    source: str
    name: str
    action: words.Action
    dimension: int
    vector_type: VectorType
    metric_type: str
    index: IndexSpec | None
    auto_id: bool
    id_field: str
    vector_field: str
    key_field: str | None
    description: str
    partitions: tuple[PartitionPlan, ...]
    shards: int
    rows: int
    """Rows that will arrive."""
    duplicate_rows: int = 0
    """Rows whose id another loaded row has too."""
    dropped_partitions: tuple[str, ...] = ()
    """The target's partitions that go before."""
    replaced: Mapping[str, int] = field(default_factory=dict)
    """Rows of the target that go when rows with their ids arrive, by the target's partition (Milvus Lite)."""
    mark: str = ""
    """What this load is known by where another could fill the collection as well, see `claiming`."""

    def summary(self) -> str:
        index = f"{self.index.type} {dict(self.index.params) or ''}".strip() if self.index else "no index"
        ids = "ids made by the target" if self.auto_id else "ids kept"
        partitions = f"{len(self.partitions):,} partition{'s' if len(self.partitions) != 1 else ''}"
        return f"{partitions}, {self.vector_type.value} {self.dimension}, {self.metric_type}, {index}, {ids}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Plan = LoadPlan[CollectionPlan]


def plan_to_json(plan: Plan) -> dict[str, Any]:
    return {
        "target": dict(plan.target),
        "collections": [c.to_json() for c in plan.collections],
        "findings": [f.to_json() for f in plan.findings],
    }


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """The inverse of `plan_to_json`. Raises KeyError, TypeError or ValueError for what is not one."""
    collections = []
    for c in stored["collections"]:
        changed = {
            "index": IndexSpec(c["index"]["type"], c["index"]["params"]) if c["index"] else None,
            "partitions": tuple(PartitionPlan(**p) for p in c["partitions"]),
            "vector_type": VectorType(c["vector_type"]),
            "dropped_partitions": tuple(c["dropped_partitions"]),
        }
        collections.append(CollectionPlan(**{**c, **changed}))
    findings = [Finding(**{**f, "severity": Severity(f["severity"])}) for f in stored["findings"]]
    return Plan(stored["target"], tuple(collections), tuple(findings))


class Notes:
    """Findings and refusals while a plan is made."""

    def __init__(self) -> None:
        self.findings = Findings()
        self.refusals: list[str] = []
        self.wrong_use = True

    def say(self, severity: Severity, code: str, where: str, message: str, rows: int | None = None) -> None:
        self.findings.add(severity, code, where, message, rows)

    def refuse(self, message: str, *, wrong_use: bool = True) -> None:
        self.refusals.append(message)
        self.wrong_use &= wrong_use
