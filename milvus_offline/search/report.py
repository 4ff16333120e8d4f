"""What a search found, as a document and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..names import printable
from .exact import Hits


def search_document(collection: str, metric: str, hits: Hits) -> dict[str, Any]:
    """What `search --json` prints. A distance that JSON has no number for (TANIMOTO without a common bit) is null."""
    return {
        "format": "milvus-offline-search",
        "version": 1,
        "collection": collection,
        "metric_type": metric,
        "results": [
            [{"id": i, "distance": d if math.isfinite(d) else None, "partition": p} for i, d, p in _rows(hits, number)]
            for number in range(len(hits.ids))
        ],
    }


def search_text(hits: Hits, queries: Sequence[int]) -> str:
    """The hits as text; `queries`: the ids of the query rows, if they are rows."""
    lines: list[str] = []
    for number in range(len(hits.ids)):
        found = [(str(i), f"{d:.6g}", printable(p)) for i, d, p in _rows(hits, number)]
        title = f"id {queries[number]}" if queries else f"query {number}"
        lines.append(f"{title}: {len(found)} hit{'' if len(found) == 1 else 's'}")
        widths = [max((len(row[i]) for row in found), default=0) for i in (0, 1)]
        lines += [f"  {i.rjust(widths[0])}  {d.rjust(widths[1])}  {p}" for i, d, p in found]
    return "\n".join(lines)


def _rows(hits: Hits, number: int) -> Iterator[tuple[int, float, str]]:
    """Id, distance and partition of a query's hits."""
    for i, d, p in zip(hits.ids[number], hits.distances[number], hits.partitions[number], strict=True):
        if p >= 0:
            yield int(i), float(d), hits.names[p]
