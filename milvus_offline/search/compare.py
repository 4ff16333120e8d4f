"""Whether two copies of a collection answer searches alike: sampled rows as queries, ids and distances compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..findings import Findings
from ..model import Array, Piece, Schema, SourceCollection
from .blocks import Named
from .exact import Hits, search
from .metrics import default_metric

K = 10
_RELATIVE = 1e-5
_ABSOLUTE = 1e-6
_NAMED = 5


def sample_rows(schema: Schema, partitions: Sequence[Named], count: int) -> Array:
    """The vectors of `count` live rows that lie evenly in the collection (fewer where it has fewer): [n, width]."""
    pieces = [piece for partition in partitions for piece in partition.pieces if piece.rows]
    ends = np.cumsum([piece.rows for piece in pieces]) if pieces else np.zeros(1, np.int64)
    total = int(ends[-1])
    count = min(count, total)
    rows = np.arange(count) * total // max(1, count)
    owners = np.searchsorted(ends, rows, "right")
    vectors = np.empty((count, schema.width), schema.dtype)
    for place, (row, owner) in enumerate(zip(rows.tolist(), owners.tolist(), strict=True)):
        vectors[place] = _row(pieces[owner], row - int(ends[owner]) + pieces[owner].rows)
    return vectors


def _row(piece: Piece, number: int) -> Array:
    batches: Iterator[Any] = iter(piece.batches(1, number))
    return next(batches).vectors[0]  # type: ignore[no-any-return]


def compare_hits(here: Hits, there: Hits) -> list[int]:
    """The queries whose hits differ: another number of them, other distances (beyond 1e-5 of their size), or other ids.

    Rows of equal distance may come in any order, and of those at the end of the list either side may have chosen others.
    """
    return [n for n, pair in enumerate(zip(_answers(here), _answers(there), strict=True)) if not _same(*pair)]


def _answers(hits: Hits) -> Iterator[tuple[Array, Array]]:
    for ids, distances, partitions in zip(hits.ids, hits.distances, hits.partitions, strict=True):
        yield ids[partitions >= 0], distances[partitions >= 0].astype(np.float64)


def _same(here: tuple[Array, Array], there: tuple[Array, Array]) -> bool:
    ids, distances = here
    other_ids, others = there
    if len(ids) != len(other_ids) or not np.allclose(distances, others, _RELATIVE, _ABSOLUTE, equal_nan=True):
        return False
    if not len(ids):
        return True
    inner = ~np.isclose(distances, distances[-1], _RELATIVE, _ABSOLUTE)
    return Counter(ids[inner].tolist()) == Counter(other_ids[inner].tolist())


def check_searches(
    here: Sequence[SourceCollection],
    there: Sequence[SourceCollection],
    count: int,
    findings: Findings,
    *,
    jobs: int | None = None,
) -> int:
    """Searches both copies for `count` sampled rows of each collection of `here` that `there` has, too; says what differs.

    Only partitions that `here` has are searched. Returns the number of queries. Raises DamageError for rows that cannot be
    read.
    """
    others = {c.schema.name: c for c in there}
    asked = 0
    for ours in here:
        other = others.get(ours.schema.name)
        if other is None or other.schema.width != ours.schema.width or other.schema.vector_type is not ours.schema.vector_type:
            continue
        names = {p.name for p in ours.partitions}
        other = replace(other, partitions=[p for p in other.partitions if p.name in names])
        queries = sample_rows(other.schema, other.partitions, count)
        if not len(queries):
            continue
        metric = other.schema.metric_type or default_metric(other.schema.vector_type)
        answers = [search(c.schema, c.partitions, queries, K, metric=metric, jobs=jobs) for c in (ours, other)]
        wrong = compare_hits(*answers)
        asked += len(queries)
        if wrong:
            some = ", ".join(f"that of query {n}" for n in wrong[:_NAMED])
            text = f"{len(wrong)} of {len(queries)} searches for sampled rows give other hits ({some}); metric {metric}, k {K}"
            findings.error("search-differs", ours.schema.name, text, len(wrong))
    return asked
