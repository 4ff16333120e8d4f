"""Brute force in float64: what an exact search has to find."""

from __future__ import annotations

import numpy as np

from milvus_offline.model import Array, VectorType
from milvus_offline.search import Hits


def scores(metric: str, rows: Array, queries: Array) -> Array:
    """What is sorted, ascending: float64 [queries, rows]; infinite for rows that are no hit."""
    if metric == "L2":
        difference = rows[None].astype(np.float64) - queries[:, None].astype(np.float64)
        return (difference**2).sum(axis=-1)
    if metric == "IP":
        return -(queries.astype(np.float64) @ rows.astype(np.float64).T)
    a, b = (np.unpackbits(x, axis=1).astype(np.int64) for x in (queries, rows))
    common, ours, theirs = a @ b.T, a.sum(1)[:, None], b.sum(1)[None]
    either = ours + theirs - common
    jaccard = np.where(either > 0, 1 - common / np.maximum(either, 1), 1)
    with np.errstate(divide="ignore"):
        return {
            "HAMMING": ours + theirs - 2 * common,
            "JACCARD": jaccard,
            "TANIMOTO": -np.log2(1 - jaccard),
            "SUBSTRUCTURE": np.where(common == ours, 0, np.inf),
            "SUPERSTRUCTURE": np.where(common == theirs, 0, np.inf),
        }[metric].astype(np.float64)


def assert_nearest(hits: Hits, metric: str, ids: Array, rows: Array, queries: Array, k: int) -> None:
    """Asserts that `hits` are the `k` nearest of `rows`: distances to 1e-5, ids and their order up to equal distances."""
    every = scores(metric, rows, queries)
    count = min(k, len(rows))
    assert hits.ids.shape == hits.distances.shape == hits.partitions.shape == (len(queries), count)
    order = np.argsort(every, axis=1, kind="stable")[:, :count]
    for query, nearest in enumerate(order):
        expected = every[query, nearest]
        is_hit = np.ones(count, bool) if metric == "TANIMOTO" else np.isfinite(expected)
        found = hits.partitions[query] >= 0
        assert found.sum() == is_hit.sum()
        assert (hits.ids[query][~found] == -1).all()
        given = hits.distances[query][found].astype(np.float64) * (-1 if metric == "IP" else 1)
        np.testing.assert_allclose(given, expected[is_hit], rtol=1e-5, atol=1e-6)
        other = hits.ids[query][found] != ids[nearest[is_hit]]
        places = {int(i): set(np.flatnonzero(ids == i)) for i in hits.ids[query][found][other]}
        for i, distance in zip(hits.ids[query][found][other].tolist(), expected[is_hit][other], strict=True):
            np.testing.assert_allclose(min(every[query, p] for p in places[i]), distance, rtol=1e-5, atol=1e-6)


def near(rows: Array, count: int, rng: np.random.Generator) -> Array:
    """Queries: some rows, every second one a little changed."""
    queries = rows[rng.integers(len(rows), size=count)].copy()
    if queries.dtype == VectorType.BINARY.dtype:
        shape = queries[1::2].shape
        queries[1::2] ^= (rng.integers(0, 256, shape) & rng.integers(0, 256, shape)).astype(np.uint8)
    else:
        queries[1::2] += rng.normal(size=queries[1::2].shape).astype(np.float32)
    return queries
