"""What a search found, as a document and as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..text import Screen, count, named
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


def show_hits(screen: Screen, hits: Hits, queries: Sequence[int]) -> None:
    """The hits for a person; `queries`: the ids of the query rows, if they are rows."""
    from rich.cells import cell_len

    for number in range(len(hits.ids)):
        found = [(str(i), f"{d:.6g}", named(p)) for i, d, p in _rows(hits, number)]
        if number:
            screen.say()
        screen.say(f"{f'id {queries[number]}' if queries else f'query {number}'}: {count(len(found), 'hit')}", "bold")
        lines = [("id", "distance", "partition"), *found]
        widths = [max(len(row[i]) for row in lines) for i in (0, 1)]
        for line, (i, d, p) in enumerate(lines if found else ()):
            name = screen.fitted(p, max(8, min(cell_len(p), screen.width - sum(widths) - 6)))
            screen.verbatim(
                f"{i.rjust(widths[0])}  {d.rjust(widths[1])}  {name}".rstrip(), indent=2, style="" if line else "dim"
            )


def _rows(hits: Hits, number: int) -> Iterator[tuple[int, float, str]]:
    """Id, distance and partition of a query's hits."""
    for i, d, p in zip(hits.ids[number], hits.distances[number], hits.partitions[number], strict=True):
        if p >= 0:
            yield int(i), float(d), hits.names[p]
