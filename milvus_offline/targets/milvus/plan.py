"""What a load will do, decided before anything is created: pure functions from source, options and target to a plan.

Each decision that changes something (a name, a metric, an index, rows left out) is a finding with its reason. What cannot
be done is a refusal with the option that would allow it; all refusals of a load come at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import TargetError, UsageError
from ...model import DEFAULT_PARTITION, IndexSpec, Schema, Severity, SourceCollection, VectorType
from .. import words
from .naming import collection_names, describe, sanitize, target_name
from .scan import Scan
from .terms import CollectionPlan, Existing, LoadOptions, Notes, PartitionPlan, Plan, TargetFacts


def make_plan(
    collections: Sequence[SourceCollection],
    scans: Mapping[str, Scan],
    options: LoadOptions,
    facts: TargetFacts,
    rooms: Mapping[str, Room] | None = None,
) -> Plan:
    """Decides everything. `scans` and `rooms` by source name.

    Raises UsageError where an option would help, TargetError where the target itself cannot take it.
    """
    notes = Notes()
    names = collection_names([c.schema.name for c in collections], options, facts, notes)
    plans = []
    for c in collections:
        room = (rooms or {}).get(c.schema.name)
        chosen = replace(options, mode=room.mode) if room else options
        plan = _plan_collection(c, names[c.schema.name], scans.get(c.schema.name), chosen, facts, notes)
        plans.append(replace(plan, dropped_partitions=room.dropped) if room else plan)
    _check_room(plans, facts, notes)
    if notes.refusals:
        message = notes.refusals[0] if len(notes.refusals) == 1 else "\n  ".join(["this cannot be loaded:", *notes.refusals])
        raise (UsageError if notes.wrong_use else TargetError)(message)
    target = {"kind": facts.kind, "version": facts.version}
    return Plan(target, tuple(plans), tuple(notes.findings))


def _plan_collection(  # long: one decision after the other, in the order in which they depend on each other
    collection: SourceCollection,
    name: str,
    scan: Scan | None,
    options: LoadOptions,
    facts: TargetFacts,
    notes: Notes,
) -> CollectionPlan:
    schema = collection.schema
    where = schema.name
    auto_id = makes_ids(collection, options)
    if auto_id and collection.has_ids:
        notes.say(Severity.INFO, "ids-replaced", where, "the target makes new ids, those of the source are not kept")
    if schema.attributes:
        fields = ", ".join(a.name for a in schema.attributes)
        notes.say(Severity.WARNING, "attributes-left-out", where, f"scalar fields are not loaded: {fields}")
    _check_dimension(schema, facts, notes)
    if options.shards > facts.max_shards:
        notes.refuse(f"{where}: --shards {options.shards}: the target takes at most {facts.max_shards}")
    metric = _metric(schema, options, scan, notes)
    index = map_index(schema, metric, options, facts, notes)
    partitions, key_field = _partitions(collection, options, facts, notes)
    existing = facts.existing.get(name)
    action = _action(where, name, existing, options, notes)
    if existing and action == "skip":
        differing = _differences(schema, existing, auto_id, options, metric)
        if differing:
            text = f"{name!r} was left alone, but it is another collection: {'; '.join(differing)}"
            notes.say(Severity.WARNING, "skip-differs", where, text, collection.rows)
    _check_aliases(where, name, action, facts, notes)
    id_field, vector_field = options.id_field, options.vector_field
    shards = options.shards
    if existing and action in ("append", "reuse"):
        _check_existing(schema, name, existing, auto_id, options, metric, notes)
        id_field, vector_field = existing.id_field or id_field, existing.vector_field or vector_field
        shards = existing.shards
        if action == "append" and facts.collapses and not auto_id:
            notes.say(Severity.INFO, "append-replaces", where, "Milvus Lite replaces rows whose id it has already")
    elif auto_id and shards != 1:
        notes.refuse(f"{where}: with ids made by the target, only --shards 1 can be resumed without doubling rows")
    if options.part and auto_id:
        notes.refuse(f"{where}: with ids made by the target a load cannot be cut in parts: leave --part out")
    rows, duplicates = collection.rows, 0
    if scan and action != "skip":
        rows -= len(scan.dropped)
        duplicates = _judge_rows(scan, where, auto_id, options, facts, notes)
        if duplicates and options.part:
            notes.refuse(f"{where}: {duplicates:,} rows repeat an id, which --part cannot keep: --duplicates first or last")
    return CollectionPlan(
        source=schema.name,
        name=name,
        action=action,
        dimension=schema.dimension,
        vector_type=schema.vector_type,
        metric_type=metric,
        index=index,
        auto_id=auto_id,
        id_field=id_field,
        vector_field=vector_field,
        key_field=key_field,
        description=describe(schema.name, name, partitions, facts),
        partitions=tuple(partitions),
        shards=shards,
        rows=rows,
        duplicate_rows=duplicates,
    )


def makes_ids(collection: SourceCollection, options: LoadOptions) -> bool:
    """Whether the target makes the ids of a collection."""
    return options.ids == "auto" or not collection.has_ids


@dataclass(frozen=True)
class Room:
    """What `mode` means for one collection when it is about partitions: those that are loaded, those of the target that are
    dropped before, and the mode for the collection as a whole."""

    partitions: tuple[str, ...]
    dropped: tuple[str, ...]
    mode: words.Mode


def make_room(collection: SourceCollection, existing: Existing | None, default_rows: int, options: LoadOptions) -> Room:
    """MilvusDM's meaning of `mode`: an existing partition is left out (skip), added to (append), or dropped before (overwrite).

    The default partition, which is always there, counts as existing when it has rows (`default_rows`), and is overwritten
    together with its collection.
    """
    tags = {p.name: sanitize(p.name) if options.names == "sanitize" else p.name for p in collection.partitions}
    if existing is None or options.mode == "append":
        return Room(tuple(tags), (), "append")
    there = set(existing.partitions) - {DEFAULT_PARTITION}
    if options.mode == "skip":
        if default_rows:
            there.add(DEFAULT_PARTITION)
        left = tuple(old for old, new in tags.items() if new not in there)
        return Room(left, (), "append" if left else "skip")
    if DEFAULT_PARTITION in tags:
        return Room(tuple(tags), (), "overwrite")
    return Room(tuple(tags), tuple(t for t in tags.values() if t in there), "append")


# Partitions, room --------------------------------------------------------------------------------------------------


def _partitions(
    collection: SourceCollection, options: LoadOptions, facts: TargetFacts, notes: Notes
) -> tuple[list[PartitionPlan], str | None]:
    where = collection.schema.name
    if options.partitions == "keep":
        others = sum(p.name != DEFAULT_PARTITION for p in collection.partitions) + 1
        if others > facts.max_partitions:
            notes.refuse(
                f"{where}: {others} partitions, the target takes {facts.max_partitions}: "
                "use --partitions key (a field holds the partition) or --partitions merge"
            )
    plans = []
    for p in collection.partitions:
        if options.partitions == "keep":
            target = p.name
            if p.name != DEFAULT_PARTITION:
                target = target_name(p.name, "partition", f"{where}/{p.name}", options, facts, notes)
            plans.append(PartitionPlan(p.name, target, None, p.rows))
        else:
            plans.append(PartitionPlan(p.name, DEFAULT_PARTITION, p.name if options.partitions == "key" else None, p.rows))
    if options.partitions == "keep":
        targets = [p.target for p in plans]
        for twice in sorted({t for t in targets if targets.count(t) > 1}):
            notes.refuse(f"{where}: two partitions would be named {twice!r} in the target")
        return plans, None
    if options.partitions == "merge":
        if len(plans) > 1:
            notes.say(Severity.INFO, "partitions-merged", where, f"{len(plans)} partitions become one", collection.rows)
        return plans, None
    notes.say(Severity.INFO, "partitions-in-field", where, f"the field {options.key_field!r} holds the partition's name")
    return plans, options.key_field


def _check_room(plans: Sequence[CollectionPlan], facts: TargetFacts, notes: Notes) -> None:
    """All new collections together must find room in the target."""
    new = [p for p in plans if p.action in ("create", "recreate")]
    wanted = sum(len({q.target for q in p.partitions} | {DEFAULT_PARTITION}) * p.shards for p in new)
    if facts.capacity is not None and wanted > facts.capacity:
        notes.refuse(
            f"the target has room for {facts.capacity:,} more partitions (times shards), these collections need {wanted:,}: "
            "use --partitions key or merge, fewer --shards, or -c",
            wrong_use=False,
        )


# Dimension, metric, index ---------------------------------------------------------------------------------------------


def _check_dimension(schema: Schema, facts: TargetFacts, notes: Notes) -> None:
    if schema.vector_type is VectorType.BINARY:
        if not facts.binary:
            notes.refuse(
                f"{schema.name}: Milvus Lite cannot hold binary vectors: load it into a Milvus server, or leave it out "
                f"with --exclude {schema.name}",
                wrong_use=False,
            )
        elif not 8 <= schema.dimension <= 8 * facts.max_dimension or schema.dimension % 8:
            notes.refuse(
                f"{schema.name}: dimension {schema.dimension}: the target takes multiples of 8 up to {8 * facts.max_dimension}",
                wrong_use=False,
            )
    elif not facts.min_dimension <= schema.dimension <= facts.max_dimension:
        notes.refuse(
            f"{schema.name}: dimension {schema.dimension}: the target takes {facts.min_dimension} to {facts.max_dimension}",
            wrong_use=False,
        )


_FLOAT_METRICS = ("L2", "IP", "COSINE")
_BINARY_METRICS = ("HAMMING", "JACCARD", "SUBSTRUCTURE", "SUPERSTRUCTURE")


def _metric(schema: Schema, options: LoadOptions, scan: Scan | None, notes: Notes) -> str:
    floating = schema.vector_type is VectorType.FLOAT
    known = _FLOAT_METRICS if floating else _BINARY_METRICS
    if options.metric:
        metric = options.metric.upper()
        if metric not in known:
            notes.refuse(f"{schema.name}: --metric {metric}: for these vectors there are {', '.join(known)}")
        elif metric != schema.metric_type:
            notes.say(
                Severity.INFO, "metric-changed", schema.name, f"metric {schema.metric_type or 'unknown'} becomes {metric}"
            )
        return metric
    if schema.metric_type == "TANIMOTO":
        reason = (
            "TANIMOTO becomes JACCARD: 2.x has no TANIMOTO; it is a monotone function of JACCARD: same order, other distances"
        )
        notes.say(Severity.INFO, "metric-changed", schema.name, reason)
        return "JACCARD"
    if schema.metric_type is None:
        metric = "L2" if floating else "HAMMING"
        notes.say(Severity.INFO, "metric-assumed", schema.name, f"the source names no metric: {metric} (choose with --metric)")
        return metric
    if schema.metric_type not in known:
        notes.refuse(f"{schema.name}: the target has no metric {schema.metric_type}: choose one with --metric")
    if schema.metric_type == "IP" and scan and scan.norms and abs(scan.norms[0] - 1) < 1e-3 and abs(scan.norms[1] - 1) < 1e-3:
        low, high = scan.norms
        text = f"sampled vectors have length {low:.4f} to {high:.4f}: --metric COSINE would rank the same"
        notes.say(Severity.INFO, "unit-vectors", schema.name, text)
    return schema.metric_type


_NLIST_MAX = 65536
_LITE_INDEXES = ("FLAT", "IVF_FLAT", "IVF_SQ8", "HNSW")


def map_index(schema: Schema, metric: str, options: LoadOptions, facts: TargetFacts, notes: Notes) -> IndexSpec | None:
    """The target's index for that of 1.x; None for none."""
    if options.index == "none":
        return None
    where, old = schema.name, schema.index
    if options.index == "auto" or facts.auto_index_only:
        if options.index != "auto":
            notes.say(Severity.INFO, "index-changed", where, f"{old.type} becomes AUTOINDEX, the only index of this service")
        return IndexSpec("AUTOINDEX")
    new, reason = _index(schema, metric)
    if facts.kind == "lite" and new.type not in _LITE_INDEXES:
        new, reason = IndexSpec("FLAT"), f"Milvus Lite has no {new.type}"
    nlist = new.params.get("nlist")
    if isinstance(nlist, int) and nlist > _NLIST_MAX:
        new = IndexSpec(new.type, {**new.params, "nlist": _NLIST_MAX})
        reason = f"{reason}; nlist {nlist} is over the limit" if reason else f"nlist {nlist} is over the limit of {_NLIST_MAX}"
    if reason:
        notes.say(Severity.INFO, "index-changed", where, f"{_spell(old)} becomes {_spell(new)}: {reason}")
    return new


def _spell(index: IndexSpec) -> str:
    return index.type + (f" {dict(index.params)}" if index.params else "")


def _index(schema: Schema, metric: str) -> tuple[IndexSpec, str]:
    kind = schema.index.type.upper()
    params = {k: v for k, v in schema.index.params.items() if isinstance(v, int)}
    nlist = {"nlist": params.get("nlist", 1024)}
    stand_in = IndexSpec("HNSW", {"M": 16, "efConstruction": 200})
    if schema.vector_type is VectorType.BINARY:
        if kind in ("BIN_IVF_FLAT", "IVF_FLAT", "IVFLAT", "BIN_IVFFLAT"):
            if metric in ("HAMMING", "JACCARD"):
                return IndexSpec("BIN_IVF_FLAT", nlist), ""
            return IndexSpec("BIN_FLAT"), f"{metric} has no other index"
        return IndexSpec("BIN_FLAT"), ""
    if kind in ("FLAT", "IDMAP", "FAISS_IDMAP", "INVALID", ""):
        return IndexSpec("FLAT"), ""
    if kind in ("IVF_FLAT", "IVFLAT", "IVFFLAT"):
        return IndexSpec("IVF_FLAT", nlist), ""
    if kind in ("IVF_SQ8", "IVFSQ8"):
        return IndexSpec("IVF_SQ8", nlist), ""
    if kind in ("IVF_SQ8H", "IVFSQ8H", "IVF_SQ8_HYBRID", "IVFSQ8NR"):
        return IndexSpec("IVF_SQ8", nlist), "2.x has no hybrid of CPU and GPU"
    if kind in ("IVF_PQ", "PQ", "IVFPQ"):
        m = params.get("m", 0)
        if m and schema.dimension % m == 0:
            return IndexSpec("IVF_PQ", {**nlist, "m": m, "nbits": 8}), ""
        return IndexSpec("IVF_SQ8", nlist), f"m {m} does not divide dimension {schema.dimension}"
    if kind == "HNSW":
        m, ef = params.get("M", 16), params.get("efConstruction", 200)
        return IndexSpec("HNSW", {"M": min(max(m, 2), 2048), "efConstruction": max(ef, 1)}), ""
    return stand_in, f"2.x has no {kind}; HNSW is a graph index as well"


# What is there, and the rows --------------------------------------------------------------------------------------------


def _check_aliases(where: str, name: str, action: str, facts: TargetFacts, notes: Notes) -> None:
    if name in facts.aliases:
        notes.refuse(
            f"{where}: {name!r} is an alias of the target's collection {facts.aliases[name]!r}, so no collection can have that "
            f"name: use --rename {where}=NEW, or load into {facts.aliases[name]!r} with --rename and --mode",
            wrong_use=False,
        )
    mine = sorted(alias for alias, of in facts.aliases.items() if of == name)
    if mine and action == "recreate" and not facts.drops_aliased:
        notes.refuse(
            f"{where}: the target drops no collection that has aliases, and {name!r} has {', '.join(mine)}: load under another "
            f"name with --rename {where}=NEW --switch-alias {mine[0]}, which moves the alias when the rows are verified",
            wrong_use=False,
        )


def _action(where: str, name: str, existing: Existing | None, options: LoadOptions, notes: Notes) -> words.Action:
    if existing is None:
        return "create"
    if options.mode == "skip":
        notes.say(Severity.INFO, "skipped", where, f"{name!r} exists in the target with {existing.rows:,} rows: left alone")
        return "skip"
    if options.mode == "overwrite":
        notes.say(Severity.INFO, "overwritten", where, f"{name!r} with {existing.rows:,} rows in the target is dropped first")
        return "recreate"
    if not existing.rows or options.part:
        return "reuse"
    if options.mode == "append":
        notes.say(Severity.INFO, "appended", where, f"{name!r} has {existing.rows:,} rows already")
        return "append"
    notes.refuse(
        f"{where}: the target's collection {name!r} has {existing.rows:,} rows already: if they are of this load, --resume "
        "goes on with it, or proves it where it is complete; otherwise choose --mode append, skip or overwrite",
        wrong_use=False,
    )
    return "append"


def _check_existing(  # many: a collection as it is, as it is to be, and where that is told
    schema: Schema, name: str, existing: Existing, auto_id: bool, options: LoadOptions, metric: str, notes: Notes
) -> None:
    differing = _differences(schema, existing, auto_id, options, metric)
    if existing.others:
        differing.append(f"it requires more fields: {', '.join(existing.others)}")
    if differing:
        notes.refuse(
            f"{schema.name}: the target's collection {name!r} is another: {'; '.join(differing)}. "
            "Use --rename, --metric or --mode overwrite",
            wrong_use=False,
        )


def _differences(schema: Schema, existing: Existing, auto_id: bool, options: LoadOptions, metric: str) -> list[str]:
    """What a collection of the target has otherwise."""
    differing = []
    if existing.dimension != schema.dimension:
        differing.append(f"dimension {existing.dimension} there, {schema.dimension} here")
    if existing.vector_type is not schema.vector_type:
        there = existing.vector_type.value if existing.vector_type else "other"
        differing.append(f"{there} vectors there, {schema.vector_type.value} here")
    if existing.id_field is None:
        differing.append("its primary key is not INT64")
    elif existing.auto_id != auto_id:
        differing.append("it makes its ids itself (--ids auto)" if existing.auto_id else "it does not make ids itself")
    wanted_key = options.key_field if options.partitions == "key" else None
    if existing.key_field != wanted_key:
        differing.append(f"partition key {existing.key_field} there, {wanted_key} here")
    if existing.metric_type not in (None, metric):
        differing.append(f"metric {existing.metric_type} there, {metric} here")
    return differing


def _judge_rows(scan: Scan, where: str, auto_id: bool, options: LoadOptions, facts: TargetFacts, notes: Notes) -> int:
    """Speaks of duplicates and of vectors that are not finite; returns how many loaded rows share their id with another."""
    from ...text import count

    if scan.nonfinite_rows:
        hold, ids = ("holds", "id") if scan.nonfinite_rows == 1 else ("hold", "ids")
        examples = _list(scan.nonfinite_examples, scan.nonfinite_rows)
        some = f"{count(scan.nonfinite_rows, 'row')} {hold} NaN or Inf ({ids} {examples})"
        if options.nonfinite == "error":
            notes.refuse(f"{where}: {some}: --nonfinite skip leaves them out")
        else:
            notes.say(Severity.ERROR, "nonfinite-skipped", where, f"{some}: left out", scan.nonfinite_rows)
    if scan.largest_id == 2**63 - 1 and not auto_id and facts.kind != "lite":
        text = "the row of id 9223372036854775807 is loaded, but queries of a server do not show it (it is counted)"
        notes.say(Severity.WARNING, "id-not-shown", where, text, 1)
    if auto_id or not scan.duplicate_rows:
        return 0
    examples = _list(scan.duplicate_examples, scan.duplicate_ids)
    repeat = "repeats" if scan.duplicate_rows == 1 else "repeat"
    some = f"{count(scan.duplicate_rows, 'row')} {repeat} an id ({count(scan.duplicate_ids, 'id')}: {examples})"
    if options.duplicates == "error":
        notes.refuse(f"{where}: {some}: choose --duplicates first, last or keep")
    elif options.duplicates == "keep" and not facts.collapses:
        text = f"{some}: all are loaded; a query by id shows one row each"
        notes.say(Severity.INFO, "duplicates-kept", where, text, scan.duplicate_rows)
        return scan.duplicate_rows
    elif options.duplicates == "keep":
        text = f"{some}: Milvus Lite holds one row for each id, the last one (load --duplicates chooses)"
        notes.say(Severity.ERROR, "duplicates-collapsed", where, text, scan.duplicate_rows)
    else:
        text = f"{some}: the {options.duplicates} of each is loaded"
        notes.say(Severity.INFO, "duplicates-dropped", where, text, scan.duplicate_rows)
    return 0


def _list(examples: Sequence[int], count: int) -> str:
    return ", ".join(map(str, examples)) + (", ..." if count > len(examples) else "")
