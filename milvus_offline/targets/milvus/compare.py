"""What a target holds against a source: what a load of all of it would have brought. Nothing is changed in the target."""

from __future__ import annotations

from dataclasses import replace

from ...errors import TargetError
from ...findings import Findings
from ...model import DEFAULT_PARTITION, Source, SourceCollection
from .. import words
from .client import Client
from .naming import sanitize, sanitize_collection
from .plan import make_plan
from .recall import compare_searches
from .scan import scan
from .tasks import MESSAGE_BYTES, MESSAGE_ROWS, CollectionJob, Link, messages_of
from .terms import CollectionPlan, Existing, LoadOptions, PartitionPlan, TargetFacts
from .verify import compare_counts, compare_rows


def compare(client: Client, decisions: LoadOptions, source: Source, *, full: bool, searches: int = 0) -> tuple[int, Findings]:
    """Rows of the source that were looked at, and what differs: `verify-...`, `search-differs`, ERROR.

    `full`: every row is read back. `searches`: so many sampled rows of each collection are searched for on both sides.
    """
    notes = Findings()
    rows = 0
    wanted = {c.schema.name: decisions.rename.get(c.schema.name, c.schema.name) for c in source.collections}
    facts = client.facts([*wanted.values(), *(sanitize_collection(n) for n in wanted.values())])
    for c in source.collections:
        names = (wanted[c.schema.name], sanitize_collection(wanted[c.schema.name]))
        name = next((n for n in names if n in facts.existing or n in facts.aliases), None)
        if name is None:
            text = f"the target has no collection {names[0]!r}"
            notes.error("verify-count", c.schema.name, text, c.rows)
            continue
        existing = facts.existing.get(name) or client.existing(name)
        found = replace(facts, existing={name: existing}, aliases={})
        plan = _plan(c, name, existing, found, decisions, notes)
        if plan is not None:
            rows += _compare(client, c, plan, existing, found, notes, full=full, searches=searches)
    return rows, notes


def _plan(
    c: SourceCollection, name: str, existing: Existing, facts: TargetFacts, decisions: LoadOptions, notes: Findings
) -> CollectionPlan | None:
    """The plan that a load had which put the rows where they are; None when it is another collection."""
    where = c.schema.name
    tags = [p.name for p in c.partitions]
    targets = {t: t if t in existing.partitions else sanitize(t, hyphens=facts.hyphens) for t in tags}
    missing = {t for t in tags if targets[t] not in existing.partitions}
    merged = bool(missing) and set(existing.partitions) == {DEFAULT_PARTITION}
    how: words.Partitions = "key" if existing.key_field else "merge" if merged else "keep"
    ids: words.Ids = "auto" if existing.auto_id else "keep"
    chosen = replace(
        decisions, mode="skip", names="sanitize", rename={}, partitions=how, ids=ids, key_field=existing.key_field or ""
    )
    made = make_plan([c], {}, chosen, replace(facts, existing={c.schema.name: existing}))
    differing = [f for f in made.findings if f.code == "skip-differs"]
    for f in differing:
        notes.error("verify-schema", where, f.message.replace("was left alone, but it ", ""), c.rows)
    if differing or existing.id_field is None or existing.vector_field is None:
        return None
    partitions = made.collections[0].partitions
    if how == "keep":
        for p in c.partitions:
            if p.name in missing and p.rows:
                notes.error("verify-count", f"{where}/{p.name}", f"the target has no partition {targets[p.name]!r}", p.rows)
        partitions = tuple(PartitionPlan(p.name, targets[p.name], None, p.rows) for p in c.partitions if p.name not in missing)
    return replace(
        made.collections[0],
        name=name,
        partitions=partitions,
        auto_id=existing.auto_id,
        id_field=existing.id_field,
        vector_field=existing.vector_field,
        key_field=existing.key_field,
    )


def _compare(  # many: two sides of a comparison, and what was decided of each
    client: Client,
    c: SourceCollection,
    plan: CollectionPlan,
    existing: Existing,
    facts: TargetFacts,
    notes: Findings,
    *,
    full: bool,
    searches: int,
) -> int:
    chosen = {p.source for p in plan.partitions}
    c = replace(c, partitions=[p for p in c.partitions if p.name in chosen])
    drop = "last" if facts.collapses and not plan.auto_id else None
    found = scan(c, ids=not plan.auto_id, drop_duplicates=drop, drop_nonfinite=not facts.collapses)
    plan = replace(plan, duplicate_rows=0 if drop else found.duplicate_rows)
    job = CollectionJob(plan, c.schema, found.dropped)
    job.tasks = messages_of(job, c, Link(client), message_bytes=MESSAGE_BYTES, message_rows=MESSAGE_ROWS)
    if client.kind != "lite" and not client.index_of(plan.name, plan.vector_field):
        stored, expected = client.stored(plan.name), sum(t.rows for t in job.tasks)
        if stored != expected:
            text = f"{stored:,} rows in the target, {expected:,} expected; without an index rows cannot be read back"
            notes.error("verify-count", plan.source, text, abs(stored - expected))
        else:
            notes.info("verify-limited", plan.source, "without an index rows cannot be read back: they were only counted")
        return expected
    was_loaded = client.loaded(plan.name)
    client.load(plan.name)
    try:
        notes += compare_counts(client, job, {})
        notes += compare_rows(client, job, {}, full=full or plan.auto_id)
        if searches:
            notes += compare_searches(client, plan, c, found.dropped, searches)
    except TargetError as e:
        notes.error("verify-rows", plan.source, str(e))
    finally:
        if not was_loaded:
            client.release(plan.name)
    return sum(t.rows for t in job.tasks)
