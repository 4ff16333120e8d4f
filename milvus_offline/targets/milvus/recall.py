"""Whether a target answers searches as its rows demand: sampled rows as queries, exact search over the source beside it.

An index that compares every row (FLAT, BIN_FLAT) must give the exact answer. Of an approximate one the recall is measured:
the share of the true nearest rows that it finds, and which of its parameter finds 95 % of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...findings import Findings
from ...model import BATCH_BYTES, Array, Batch, Piece, Schema, SourceCollection, SourcePartition
from .client import Client
from .tasks import chosen
from .terms import CollectionPlan

K = 10
WANTED = 0.95
EXACT = ("FLAT", "BIN_FLAT")
SEARCH_PARAMS: Mapping[str, Mapping[str, int]] = {
    "IVF_FLAT": {"nprobe": 16},
    "IVF_SQ8": {"nprobe": 16},
    "IVF_PQ": {"nprobe": 16},
    "BIN_IVF_FLAT": {"nprobe": 16},
    "HNSW": {"ef": 64},
    "RNSG": {"search_length": 40},
    "ANNOY": {"search_k": 640},
}
"""How exact a first search should be, by kind of index; the last two are of 1.x alone."""
_LARGEST = {"HNSW": 1024, "RNSG": 300, "ANNOY": 10_240}
_QUERIES = 50
"""Queries of one call."""
_SPARE = 4
"""Times K: so many of the exact answer are known, so that rows of equal distance are no difference."""
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
"""Distances of float32 vectors that are summed up in another order."""
_NAMED = 5

Answers = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]
"""For each query the ids and distances of its hits, the best first."""


@dataclass(frozen=True)
class _Loaded:
    """A piece as it was loaded: without the rows left out; `unit`: each vector has length 1. `first`: its place in the
    collection, which `dropped` counts by."""

    piece: Piece
    first: int
    dropped: npt.NDArray[np.int64]
    unit: bool

    @property
    def id(self) -> str:
        return self.piece.id

    @property
    def rows(self) -> int:
        return self.piece.rows - len(self._left_out)

    @property
    def _left_out(self) -> npt.NDArray[np.int64]:
        """The places of the rows left out, in the piece."""
        low, high = np.searchsorted(self.dropped, (self.first, self.first + self.piece.rows))
        return np.asarray(self.dropped[low:high]) - self.first

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        left_out = self._left_out
        start += int(np.searchsorted(left_out - np.arange(len(left_out)), start, "right"))
        place = self.first + start
        for batch in self.piece.batches(max_bytes, start):
            ids, vectors = chosen(batch.ids, batch.vectors, batch.lost, self.dropped, place)
            place += batch.span
            if len(ids):
                yield Batch(ids, _unit(vectors) if self.unit else vectors)


def _unit(vectors: Array) -> Array:
    wide = vectors.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    unit: Array = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0).astype(np.float32)
    return unit


def compare_searches(
    client: Client, plan: CollectionPlan, c: SourceCollection, dropped: npt.NDArray[np.int64], count: int
) -> Findings:
    """Searches the target, which must be loaded, and the source for `count` sampled rows.

    `search-differs` (ERROR) where an exact index gives other hits, `search-recall` (INFO) for an approximate one.
    """
    from ...search.compare import sample_rows

    notes = Findings()
    where, metric = plan.source, plan.metric_type
    if plan.duplicate_rows:
        text = f"{plan.duplicate_rows:,} rows repeat an id, of which a server's search gives one: searches were not compared"
        notes.info("verify-limited", where, text)
        return notes
    schema = replace(c.schema, metric_type="IP" if metric == "COSINE" else metric)
    partitions = _loaded(c, dropped, unit=metric == "COSINE")
    queries = sample_rows(schema, partitions, count)
    if metric == "JACCARD":  # of two vectors without a bit
        queries = queries[queries.any(axis=1)]
    if not len(queries):
        return notes
    targets = [] if plan.key_field else list(dict.fromkeys(p.target for p in plan.partitions))
    if client.count(plan.name, targets) != sum(p.rows for part in partitions for p in part.pieces):
        notes.info("verify-limited", where, "the target holds other rows too, or lacks some: searches were not compared")
        return notes
    exact = exact_answers(schema, partitions, queries)
    index = client.index_of(plan.name, plan.vector_field)
    kind = str(index.get("index_type") or "FLAT")

    def ask(params: Mapping[str, int]) -> Answers:
        found: Answers = []
        for at in range(0, len(queries), _QUERIES):
            some = queries[at : at + _QUERIES]
            found += _search(client, plan, some, params, targets)
        return found

    if kind in EXACT:
        judge_exact(notes, where, exact, ask({}), f"{kind}, {metric}", ids=not plan.auto_id)
    elif plan.auto_id:
        notes.info("verify-limited", where, f"ids made by the target: the recall of {kind} was not measured")
    else:
        notes.info("search-recall", where, recall_words(kind, index, lambda params: recall(exact, ask(params)), len(queries)))
    return notes


def judge_exact(  # many: what was asked, of what, and both answers
    notes: Findings, where: str, exact: Answers, there: Answers, what: str, *, ids: bool
) -> None:
    """`search-differs` where the hits of an index that compares all rows are not the nearest; else `search-recall` says so."""
    wrong = [n for n, pair in enumerate(zip(exact, there, strict=True)) if not agree(*pair, ids=ids)]
    if wrong:
        some = ", ".join(f"that of query {n}" for n in wrong[:_NAMED])
        text = f"{len(wrong)} of {len(exact)} searches for sampled rows give other hits ({some}); {what}, k {K}"
        notes.error("search-differs", where, text, len(wrong))
    else:
        notes.info("search-recall", where, f"{len(exact)} searches for sampled rows give the exact {K} nearest ({what})")


def _search(
    client: Client, plan: CollectionPlan, queries: Array, params: Mapping[str, int], partitions: Sequence[str]
) -> Answers:
    data = list(queries) if queries.dtype != np.uint8 else [row.tobytes() for row in queries]
    found = client.call(
        "search",
        lambda: client.pymilvus.search(
            plan.name,
            data=data,
            anns_field=plan.vector_field,
            limit=K,
            search_params={"metric_type": plan.metric_type, "params": dict(params)},
            partition_names=list(partitions) or None,
            consistency_level="Strong",
        ),
    )
    return [
        (np.array([h["id"] for h in hits], np.int64), np.array([h["distance"] for h in hits], np.float64)) for hits in found
    ]


def _loaded(c: SourceCollection, dropped: npt.NDArray[np.int64], *, unit: bool) -> list[SourcePartition]:
    first, made = 0, []
    for partition in c.partitions:
        pieces: list[Piece] = []
        for piece in partition.pieces:
            pieces.append(_Loaded(piece, first, dropped, unit) if len(dropped) or unit else piece)
            first += piece.rows
        made.append(SourcePartition(partition.name, pieces))
    return made


def exact_answers(schema: Schema, partitions: Sequence[SourcePartition], queries: Array) -> Answers:
    from ...search.exact import search

    hits = search(schema, partitions, queries, _SPARE * K)
    return [
        (ids[there >= 0], distances[there >= 0].astype(np.float64))
        for ids, distances, there in zip(hits.ids, hits.distances, hits.partitions, strict=True)
    ]


def agree(exact: tuple[Array, Array], there: tuple[Array, Array], *, ids: bool) -> bool:
    """Whether `there` are the first of `exact`; rows of equal distance come in any order. `ids` False: only distances count."""
    count = min(K, len(exact[0]))
    if len(there[0]) != count or not np.allclose(exact[1][:count], there[1], _RELATIVE, _ABSOLUTE, equal_nan=True):
        return False
    return not ids or not count or bool(np.isin(there[0], _nearest(exact)).all())


def _nearest(exact: tuple[Array, Array]) -> Array:
    """The ids that may be among the first K: all that are as near as the last of those."""
    ids, distances = exact
    last = distances[min(K, len(ids)) - 1]
    near = np.isclose(distances, last, _RELATIVE, _ABSOLUTE)
    near[: min(K, len(ids))] = True
    return ids[near] if not near.all() else ids


def recall(exact: Answers, there: Answers) -> float:
    """The share of the true nearest rows that were found."""
    wanted = sum(min(K, len(ids)) for ids, _ in exact)
    found = sum(
        min(K, len(e[0]), int(np.isin(t[0][:K], _nearest(e)).sum())) for e, t in zip(exact, there, strict=True) if len(e[0])
    )
    return found / wanted if wanted else 1.0


def recall_words(kind: str, index: Mapping[str, object], ask: Callable[[Mapping[str, int]], float], queries: int) -> str:
    """How exact the index is: with the parameters of a first search, and which find enough."""
    usual = SEARCH_PARAMS.get(kind, {})
    share = ask(usual)
    said = " ".join(f"{k} {v}" for k, v in usual.items())
    text = f"{kind} finds {share:.1%} of the {K} nearest rows{f' with {said}' if said else ''} ({queries} searches)"
    name = next(iter(usual), None)
    if name is None:
        return text
    best = 0.0
    for value in _steps(kind, index):
        best = share if usual.get(name) == value else ask({name: value})
        if best >= WANTED:
            return f"{text}; {name} {value} reaches {best:.1%}"
    return f"{text}; no {name} reaches {WANTED:.0%}, the largest gives {best:.1%}"


def _steps(kind: str, index: Mapping[str, object]) -> list[int]:
    """Values of the index's parameter, each twice the one before."""
    if kind == "HNSW":
        return [K, *(1 << n for n in range(4, _LARGEST[kind].bit_length()))]
    if kind in _LARGEST:
        return [K << n for n in range((_LARGEST[kind] // K).bit_length())]
    nlist = max(1, int(str(index.get("nlist") or 1024)))
    return sorted({1 << n for n in range(nlist.bit_length())} | {nlist})
