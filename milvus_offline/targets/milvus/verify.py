"""Whether what was loaded is there: counts for each partition, and rows read back and compared to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...hashing import vector_hashes
from ...model import Array, Finding, Severity
from .client import Client
from .tasks import CollectionJob, LoadTask, same_rows
from .terms import PartitionPlan
from .together import together

UNSHOWN = 2**63 - 1
"""The largest id: a server (2.3.5) stores and counts its row, but no query shows it."""
SAMPLE_TASKS = 8
SAMPLE_ROWS = 32
READ_ROWS = 8000
READ_BYTES = 4 << 20
KEYS_A_PAGE = 1000
"""Values of the key field that are read at once."""


def count_partitions(client: Client, job: CollectionJob) -> dict[str, int]:
    """Rows by source partition as the loaded target sees them; merged partitions are counted together under the first.

    Where a field holds the partition's name and partitions are small, the field is read: a page of it has the rows of many.
    """
    plan = job.plan
    if plan.key_field and sum(p.rows for p in plan.partitions) <= KEYS_A_PAGE * len(plan.partitions):
        held = Counter(client.values(plan.name, plan.key_field, KEYS_A_PAGE))
        return {p.source: held[str(p.key)] for p in plan.partitions}

    def count(p: PartitionPlan) -> int:
        if plan.key_field:
            return client.count(plan.name, (), f"{plan.key_field} == {_quoted(p)}")
        return client.count(plan.name, [p.target])

    chosen = _counted(job)
    return dict(zip((p.source for p in chosen), together(count, chosen), strict=True))


def _counted(job: CollectionJob) -> list[PartitionPlan]:
    """Partitions that can be counted apart."""
    return list(job.plan.partitions) if job.plan.key_field else _first_of_each(job)


def _quoted(partition: PartitionPlan) -> str:
    key = str(partition.key).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{key}"'


def expected_counts(job: CollectionJob, before: Mapping[str, int]) -> dict[str, int]:
    """Rows that `count_partitions` has to find: those there before, and those sent."""
    heads = {p.target: p.source for p in _first_of_each(job)} if not job.plan.key_field else {}
    expected = {p.source: before.get(p.source, 0) for p in _counted(job)}
    for task in job.tasks:
        position = task.position
        for partition, rows in task.shares or ((task.partition, task.source_rows),):
            low, high = np.searchsorted(job.dropped, (position, position + rows))
            expected[heads.get(partition.target, partition.source)] += rows - int(high - low)
            position += rows
    return expected


def _first_of_each(job: CollectionJob) -> list[PartitionPlan]:
    first: dict[str, PartitionPlan] = {}
    for p in job.plan.partitions:
        first.setdefault(p.target, p)
    return list(first.values())


def compare_counts(client: Client, job: CollectionJob, before: Mapping[str, int]) -> list[Finding]:
    """One finding of severity ERROR, code `verify-count`, for each partition that differs.

    Rows that Milvus Lite replaces go from another partition at once, or after a while if they were flushed already: until then
    that partition still counts them.
    """
    expected = expected_counts(job, before)
    found = count_partitions(client, job)
    still = {p.source: job.plan.replaced.get(p.target, 0) for p in job.plan.partitions}
    return [
        _differs(job, name, "verify-count", f"{found[name]:,} rows in the target, {rows:,} expected", abs(found[name] - rows))
        for name, rows in expected.items()
        if not rows <= found[name] <= rows + still.get(name, 0)
    ]


def compare_rows(client: Client, job: CollectionJob, results: Mapping[str, Mapping[str, Any]], *, full: bool) -> list[Finding]:
    """Reads rows back and compares ids and vectors; `full` means every row, else a sample spread over each partition."""
    if job.plan.auto_id and full:  # ids are not known, so whole partitions are compared
        return _compare_digests(client, job)
    tasks: dict[str, list[LoadTask]] = {}
    for task in job.tasks:
        tasks.setdefault(task.partition.source, []).append(task)

    chosen = [t for ts in tasks.values() for t in (ts if full else _spread(ts, SAMPLE_TASKS))]

    def compare(task: LoadTask) -> tuple[str, int, list[int]]:
        checked, wrong = 0, []
        for ids, same in _compare_task(client, task, results.get(task.id, {}), full=full):
            checked += len(ids)
            wrong += ids[~same].tolist()
        return task.partition.source, checked, wrong

    bad: dict[str, list[int]] = {}
    checked: dict[str, int] = {}
    for partition, n, wrong in together(compare, chosen):
        checked[partition] = checked.get(partition, 0) + n
        job.checked += n
        if wrong:
            bad.setdefault(partition, []).extend(wrong)
    return [
        _differs(
            job,
            partition,
            "verify-rows",
            f"{len(wrong)} of {checked[partition]} rows read back are missing or differ, ids {', '.join(map(str, wrong[:5]))}",
            len(wrong),
        )
        for partition, wrong in bad.items()
    ]


def _compare_task(
    client: Client, task: LoadTask, result: Mapping[str, Any], *, full: bool
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    job = task.job
    ids, vectors = task.read()
    if job.plan.auto_id:
        known = np.unique(np.array(result.get("ids", []), np.int64).reshape(-1, 2), axis=0)
        ids, vectors = known[:, 1], vectors[known[:, 0]]
    elif not full and len(ids) > SAMPLE_ROWS:
        at = np.linspace(0, len(ids) - 1, SAMPLE_ROWS).astype(np.int64)
        ids, vectors = ids[at], vectors[at]
    step = max(1, min(READ_ROWS, READ_BYTES // max(1, job.schema.row_bytes)))
    for start in range(0, len(ids), step):
        some, ours = ids[start : start + step], vectors[start : start + step]
        for strong in (False, True):  # a reader that lags behind makes no difference
            there_ids, there = client.rows(
                job.layout, job.plan.name, task.scope, np.unique(some), job.plan.id_field, strong=strong
            )
            same = same_rows(some, ours, there_ids, there)
            if job.plan.duplicate_rows:  # a query shows one row of an id: any of ours will do
                same = _any_of(job, task, some, same, there_ids, there)
            if client.kind != "lite":
                same |= (some == UNSHOWN) & ~np.isin(some, there_ids)
            if same.all():
                break
        yield some, same


def _any_of(
    job: CollectionJob,
    task: LoadTask,
    ids: npt.NDArray[np.int64],
    same: npt.NDArray[np.bool_],
    there_ids: npt.NDArray[np.int64],
    there: Array,
) -> npt.NDArray[np.bool_]:
    """Also right where the row that the target shows for an id equals another row of that id in the same partition."""
    open_ids = np.setdiff1d(np.intersect1d(ids[~same], there_ids), [])
    if not len(open_ids):
        return same
    for other in (t for t in job.tasks if t.scope == task.scope):
        theirs, vectors = other.read()
        at = np.flatnonzero(np.isin(theirs, open_ids))
        good = theirs[at][same_rows(theirs[at], vectors[at], there_ids, there)]
        same = same | np.isin(ids, good)
        open_ids = np.setdiff1d(open_ids, good)
        if not len(open_ids):
            break
    return same


def _spread(tasks: list[LoadTask], count: int) -> list[LoadTask]:
    if len(tasks) <= count:
        return tasks
    return [tasks[i] for i in np.linspace(0, len(tasks) - 1, count).astype(int)]


def _compare_digests(client: Client, job: CollectionJob) -> list[Finding]:
    """For ids made by the target: sums of row hashes, which do not depend on the order of rows."""
    findings = []
    plan = job.plan
    if job.held_rows:
        text = "rows with ids made by the target cannot be told from those that were there before: only counted"
        return [Finding(Severity.INFO, "verify-limited", plan.source, text)]
    groups: list[tuple[str, str | None, str, list[PartitionPlan]]]
    if plan.key_field:
        groups = [(plan.partitions[0].source, None, "", list(plan.partitions))]
    else:
        by_target: dict[str, list[PartitionPlan]] = {}
        for p in plan.partitions:
            by_target.setdefault(p.target, []).append(p)
        groups = [(ps[0].source, t, "", ps) for t, ps in by_target.items()]
    for name, target, expression, planned in groups:
        ours = theirs = 0
        for task in job.tasks:
            if task.partition in planned:
                ours += digest(task.read()[1])
        for _, vectors in client.pages(job.layout, plan.name, target, expression, plan.id_field):
            theirs += digest(vectors)
            job.checked += len(vectors)
        if (ours - theirs) % (1 << 64):
            findings.append(_differs(job, name, "verify-rows", "the vectors in the target are not those of the source", None))
    return findings


def digest(vectors: Array) -> int:
    """A sum (modulo 2**64) over rows of a hash of each row's bytes; the same for any order of the rows."""
    return int(vector_hashes(vectors).sum(dtype=np.uint64))


def _differs(job: CollectionJob, partition: str, code: str, text: str, rows: int | None) -> Finding:
    return Finding(Severity.ERROR, code, f"{job.plan.source}/{partition}", text, rows)
