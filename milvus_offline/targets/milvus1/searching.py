"""Whether a running 1.x server answers searches as its rows demand; see `targets.milvus.recall`, which does it for 2.x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...findings import Findings
from ...milvus1.layout import EngineType, MetricType
from ...model import SourceCollection
from ...search.compare import sample_rows
from ..milvus.recall import Answers, K, exact_answers, judge_exact, recall, recall_words
from .service import Service

_KINDS = {
    0: "FLAT",  # none is built
    EngineType.FAISS_IDMAP: "FLAT",
    EngineType.FAISS_BIN_IDMAP: "FLAT",
    EngineType.FAISS_IVFFLAT: "IVF_FLAT",
    EngineType.FAISS_BIN_IVFFLAT: "IVF_FLAT",
    EngineType.FAISS_IVFSQ8: "IVF_SQ8",
    EngineType.FAISS_IVFSQ8H: "IVF_SQ8",
    EngineType.FAISS_PQ: "IVF_PQ",
    EngineType.NSG_MIX: "RNSG",
    EngineType.HNSW: "HNSW",
    EngineType.ANNOY: "ANNOY",
}
_BIT = (MetricType.JACCARD, MetricType.TANIMOTO)
"""Of two vectors without a bit these have no distance."""


def compare_searches(service: Service, name: str, metric: MetricType, c: SourceCollection, count: int) -> Findings:
    """Searches the server's collection `name` and the source for `count` sampled rows.

    `search-differs` (ERROR) where an index that compares all rows gives other hits, `search-recall` (INFO) for others.
    """
    notes = Findings()
    where = c.schema.name
    schema = replace(c.schema, metric_type=metric.name)
    queries = sample_rows(schema, c.partitions, count)
    if metric in _BIT:
        queries = queries[queries.any(axis=1)]
    if not len(queries):
        return notes
    exact = exact_answers(schema, c.partitions, queries)
    number, index = service.index(name)
    kind = _KINDS.get(number)

    def ask(params: Mapping[str, int]) -> Answers:
        return service.search(name, queries, K, params)

    if kind is None:
        notes.info("verify-limited", where, f"the server's index (number {number}) is not known: searches were not compared")
    elif kind == "FLAT":
        judge_exact(notes, where, exact, ask({}), f"{kind}, {metric.name}", ids=c.has_ids)
    elif kind == "IVF_FLAT":  # with all its lists it compares all rows
        nlist = max(1, int(index.get("nlist") or 1024))
        judge_exact(notes, where, exact, ask({"nprobe": nlist}), f"{kind} nprobe {nlist}, {metric.name}", ids=c.has_ids)
    elif c.has_ids:
        told = recall_words(kind, index, lambda params: recall(exact, ask(params)), len(queries))
        notes.info("search-recall", where, told)
    return notes
