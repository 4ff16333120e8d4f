"""What a server 1.1.1 accepts as names and settings, and what a source's are there (FORMAT §2.5, §11)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import UsageError
from ...findings import Findings
from ...milvus1.catalog.write import no_index_for
from ...milvus1.layout import INDEX_NAMES, MAX_DIMENSION, EngineType, MetricType
from ...model import DEFAULT_PARTITION, Finding, Schema, Severity, SourceCollection, VectorType
from ...names import printable
from .. import LoadPlan, words
from ..milvus.naming import sanitize as sanitize_name
from ..milvus.naming import sanitize_collection

MB = 1 << 20
DEFAULT_INDEX_FILE_SIZE = 1024 * MB
MAX_INDEX_FILE_SIZE = 131072 * MB
MAX_PARTITIONS = 4096
BLANKS = " \n\r\t"
"""What the server trims from both ends of a tag."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_ENGINES = {name: engine for engine, name in INDEX_NAMES.items()}
_REQUIRED = {
    EngineType.FAISS_IVFFLAT: ("nlist",),
    EngineType.FAISS_IVFSQ8: ("nlist",),
    EngineType.FAISS_IVFSQ8H: ("nlist",),
    EngineType.FAISS_PQ: ("nlist", "m"),
    EngineType.NSG_MIX: ("search_length", "out_degree", "candidate_pool_size", "knng"),
    EngineType.FAISS_BIN_IVFFLAT: ("nlist",),
    EngineType.HNSW: ("M", "efConstruction"),
    EngineType.ANNOY: ("n_trees",),
}
_FOR_BINARY = (EngineType.FAISS_BIN_IDMAP, EngineType.FAISS_BIN_IVFFLAT)


@dataclass(frozen=True)
class Settings:
    """A collection's settings as the catalog and the service of 1.x spell them. `index_file_size` is in bytes."""

    metric: MetricType
    engine: EngineType
    index_params: str
    index_file_size: int
    findings: tuple[Finding, ...]


def settings_of(schema: Schema, metric: str | None = None, index_file_size: int | None = None, index: str = "keep") -> Settings:
    """What becomes of a collection's settings. `metric` and `index_file_size` win over the source's.

    Raises UsageError for a dimension or a metric that 1.x does not have.
    """
    notes = Findings()
    where = printable(schema.name)

    def note(code: str, message: str, severity: Severity = Severity.INFO) -> None:
        notes.add(severity, code, where, message)

    binary = schema.vector_type is VectorType.BINARY
    if not 1 <= schema.dimension <= MAX_DIMENSION or (binary and schema.dimension % 8):
        more = ", a multiple of 8 for binary vectors" if binary else ""
        raise UsageError(f"{where}: dimension {schema.dimension}; Milvus 1.x takes 1..{MAX_DIMENSION}{more}")
    name = metric.upper() if metric else schema.metric_type
    if name is None:
        name = "HAMMING" if binary else "L2"
        note("metric-assumed", f"the source names no metric; {name} is used; --metric names another")
    if name not in MetricType.__members__:
        known = ", ".join(MetricType.__members__)
        raise UsageError(f"{where}: metric {printable(name)} is none of Milvus 1.x ({known}); name one with --metric")
    chosen = MetricType[name]
    if (chosen >= MetricType.HAMMING) != binary:
        raise UsageError(f"{where}: metric {name} does not go with {schema.vector_type.value} vectors; name one with --metric")
    engine = _engine(schema, chosen, note) if index == "keep" else no_index_for(chosen)
    size = index_file_size or schema.index_file_size or DEFAULT_INDEX_FILE_SIZE
    if not MB <= size <= MAX_INDEX_FILE_SIZE:
        note("index-file-size", f"an index_file_size of {size} bytes is outside 1..131072 MB; 1024 MB is used")
        size = DEFAULT_INDEX_FILE_SIZE
    if schema.attributes:
        names = ", ".join(printable(a.name) for a in schema.attributes)
        note("attributes-left-out", f"Milvus 1.1 stores no attributes; these are left out: {names}", Severity.WARNING)
    plain = engine == no_index_for(chosen)
    params = "{}" if plain else json.dumps(dict(schema.index.params), separators=(",", ":"))
    return Settings(chosen, engine, params, size, tuple(notes))


def _engine(schema: Schema, metric: MetricType, note: Callable[[str, str], None]) -> EngineType:
    plain = no_index_for(metric)
    name = schema.index.type
    engine = _ENGINES.get(name)
    if engine is None or engine is EngineType.INVALID:
        note("index-unknown", f"Milvus 1.x has no index {printable(name)}; the collection gets none (FLAT)")
        return plain
    if engine in (EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP):
        return plain
    if (engine in _FOR_BINARY) != (metric >= MetricType.HAMMING) or (
        engine is EngineType.FAISS_BIN_IVFFLAT and metric in (MetricType.SUBSTRUCTURE, MetricType.SUPERSTRUCTURE)
    ):
        note("index-unfit", f"an index {name} does not go with metric {metric.name}; the collection gets none (FLAT)")
        return plain
    missing = [p for p in _REQUIRED.get(engine, ()) if p not in schema.index.params]
    if missing:
        note("index-incomplete", f"the index {name} lacks {', '.join(missing)}; the collection gets none (FLAT)")
        return plain
    return engine


@dataclass(frozen=True)
class CollectionPlan:
    """What becomes of one collection; see targets.PlannedCollection. `index_file_size` is in bytes.

    `loaded`: the source's partitions that are loaded, with their tags in the target; `dropped`: tags that go before.
    """

    source: str
    name: str
    action: words.Action
    rows: int
    partitions: int
    dimension: int
    metric: str
    index: str
    index_params: Mapping[str, Any]
    index_file_size: int
    loaded: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @classmethod
    def of(cls, collection: SourceCollection, settings: Settings, name: str, action: words.Action = "create") -> CollectionPlan:
        return cls(
            source=collection.schema.name,
            name=name,
            action=action,
            rows=collection.rows,
            partitions=len(collection.partitions),
            dimension=collection.schema.dimension,
            metric=settings.metric.name,
            index=INDEX_NAMES[settings.engine],
            index_params=json.loads(settings.index_params),
            index_file_size=settings.index_file_size,
            loaded={p.name: p.name for p in collection.partitions},
        )

    def summary(self) -> str:
        partitions = f"{self.partitions:,} partition{'s' if self.partitions != 1 else ''}"
        return f"{partitions}, {self.dimension} dimensions, {self.metric}, {self.index}"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("loaded", "dropped")}


Plan = LoadPlan[CollectionPlan]


def makes_ids(collection: SourceCollection, ids: words.Ids) -> bool:
    """Whether the target makes the ids of a collection."""
    return ids == "auto" or not collection.has_ids


def check_names(
    collections: Sequence[SourceCollection], rename: Mapping[str, str], *, sanitize: bool = False
) -> dict[str, str]:
    """Source collection -> its name in 1.x, after renaming. Raises UsageError that lists all names a server refuses (§11.3).

    With `sanitize` names get other characters as `_xHH_` instead; tags are then the business of `tags_of`.
    """
    names: dict[str, str] = {}
    unknown = sorted(set(rename) - {c.schema.name for c in collections})
    wrong = [f"--rename names a collection that is not in the source: {printable(n)}" for n in unknown]
    for collection in collections:
        old = collection.schema.name
        new = names[old] = rename.get(old, old)
        if sanitize and not _NAME.fullmatch(new):
            new = names[old] = sanitize_collection(new)
        if not _NAME.fullmatch(new):
            wrong.append(f"collection {printable(new)!r}: expected 1..255 letters, digits and _, no digit first")
        if len(collection.partitions) > MAX_PARTITIONS:
            wrong.append(f"collection {new!r}: {len(collection.partitions)} partitions, at most {MAX_PARTITIONS}")
        faults = {p.name: fault for p in collection.partitions if (fault := _tag_fault(p.name))} if not sanitize else {}
        wrong += [f"partition {printable(tag)!r} of {new!r}: {fault}" for tag, fault in faults.items()]
    for name in {n for n in names.values() if list(names.values()).count(n) > 1}:
        wrong.append(f"two collections would be named {name!r}")
    _refuse(wrong)
    return names


def tags_of(collection: SourceCollection, name: str, *, sanitize: bool, quotes: bool) -> tuple[dict[str, str], Findings]:
    """Source partition -> its tag in a running server, and what was changed. `quotes`: the server takes tags with a `'`
    (its metadata is in MySQL; with SQLite it fails at the first one). Raises UsageError for what it would refuse."""
    tags: dict[str, str] = {}
    wrong: list[str] = []
    notes = Findings()
    for p in collection.partitions:
        fault = _tag_fault(p.name)
        if fault is None and "'" in p.name and not quotes:
            fault = "a server with SQLite cannot create a partition whose tag holds a quote"
        tags[p.name] = p.name
        if fault and sanitize:
            tags[p.name] = new = sanitize_name(p.name)
            text = f"partition {printable(p.name)!r} becomes {new!r}: {fault}"
            notes.info("renamed", f"{collection.schema.name}/{printable(p.name)}", text, p.rows)
        elif fault:
            wrong.append(f"partition {printable(p.name)!r} of {name!r}: {fault}; use --names sanitize")
    for tag in {t for t in tags.values() if list(tags.values()).count(t) > 1}:
        wrong.append(f"two partitions of {name!r} would have the tag {tag!r}")
    _refuse(wrong)
    return tags, notes


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        what = "Milvus 1.x does not accept these names; --rename OLD=NEW and --rename-map FILE give others:"
        raise UsageError("\n  ".join([what, *wrong]))


def _tag_fault(tag: str) -> str | None:
    size = len(tag.encode("utf-8", "surrogateescape"))
    if tag == DEFAULT_PARTITION:
        return None
    if tag.strip(BLANKS) != tag:
        return "the server cuts blanks off both ends"
    if not 1 <= size <= 255:
        return f"it has {size} bytes, and the server takes 1..255"
    return None
