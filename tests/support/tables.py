"""Rows of engines' tables as the tests compare them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from milvus_offline import open_store
from support.real import STORES

Bag = Counter[tuple[str, int, bytes]]


def bag_of_batches(batches: Iterable[Any]) -> Bag:
    """(partition, id, vector bytes) of pyarrow batches or tables with the columns of arrow."""
    found: Bag = Counter()
    for batch in batches:
        names, ids = batch.column("partition").to_pylist(), batch.column("id").to_pylist()
        found.update(zip(names, ids, map(octets, batch.column("vector").to_pylist()), strict=True))
    return found


def octets(vector: Any) -> bytes:
    return bytes(vector) if isinstance(vector, (bytes, bytearray)) else np.array(vector, "<f4").tobytes()


def bag_of_truth(rows: dict[tuple[str, str], Counter[tuple[int, bytes]]], collection: str) -> Bag:
    """What `support.real.truth` says of one collection."""
    found: Bag = Counter()
    for (name, partition), bag in rows.items():
        if name == collection:
            found.update({(partition, i, v): n for (i, v), n in bag.items()})
    return found


def catalog_of(name: str) -> dict[str, str]:
    """Where the catalog of a real store is that had MySQL."""
    return {"catalog": str(STORES / name / "store" / "meta.default.sql")} if name.startswith("mysql") else {}


def collections(name: str) -> list[str]:
    """The collections of a real store."""
    return list(open_store(STORES / name / "store", **catalog_of(name)))
