"""Small Faiss indexes of one shape, and what comes out of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milvus_offline.sources.faiss.source import FaissSource
from milvus_offline.sources.faiss.worker import _Tree

faiss = pytest.importorskip("faiss")

D = 16
BITS = 8 * D


def vectors(n: int) -> Any:
    x = np.random.default_rng(1).standard_normal((n, D)).astype("f4")
    x[:1, 3] = -0.0
    return x


def odd_vectors(n: int) -> Any:
    """Some are not finite; Faiss cannot assign those to a list."""
    x = vectors(n)
    x[:1, 0], x[1:2, 1], x[2:3, 2] = np.nan, np.inf, -np.inf
    return x


def bits(n: int) -> Any:
    return np.random.default_rng(2).integers(0, 256, (n, D), dtype=np.uint8)


def some_ids(n: int) -> Any:
    return np.random.default_rng(3).permutation(n * 10)[:n].astype("i8") * 1234567891011 - (1 << 62)


def rows_of(found: FaissSource, max_bytes: int = 1 << 20) -> tuple[Any, Any]:
    schema = found.collections[0].schema
    ids, parts = [np.empty(0, "i8")], [np.empty((0, schema.width), schema.dtype)]
    for piece in found.collections[0].partitions[0].pieces:
        count = 0
        for batch in piece.batches(max_bytes):
            assert batch.ids.dtype == np.int64 and batch.vectors.dtype == schema.dtype
            assert len(batch.ids) == 1 or batch.vectors.nbytes <= max_bytes
            ids.append(batch.ids.copy())
            parts.append(batch.vectors.copy())
            count += len(batch.ids)
        assert count == piece.rows
    return np.concatenate(ids), np.concatenate(parts)


def by_id(ids: Any, rows: Any) -> list[tuple[int, bytes]]:
    return sorted((int(i), r.tobytes()) for i, r in zip(ids, rows, strict=True))


def codes(found: FaissSource) -> set[str]:
    return {f.code for f in found.findings}


def write(index: Any, folder: Path, binary: bool = False) -> Path:
    path = folder / "some.index"
    (faiss.write_index_binary if binary else faiss.write_index)(index, str(path))
    return path


def truth(path: Path, binary: bool = False) -> list[tuple[int, bytes]]:
    """What Faiss gives back from the same file."""
    index = (faiss.read_index_binary if binary else faiss.read_index)(str(path))
    parts = list(_Tree(index, binary).batches(1000))
    return sorted(row for ids, rows in parts for row in by_id(ids, rows))


def quiet(index: Any, x: Any) -> Any:
    """Trains on clean data: no NaN, and enough of it to keep Faiss silent. A rotation is one after its first step, too."""
    for n in range(index.chain.size() if isinstance(index, faiss.IndexPreTransform) else 0):
        if isinstance(transform := faiss.downcast_VectorTransform(index.chain.at(n)), faiss.OPQMatrix):
            transform.niter = transform.niter_pq_0 = 1
    index.train(np.random.default_rng(9).standard_normal((2000, x.shape[1])).astype("f4"))
    return index


def ivf(nlist: int, metric: int = 1, kind: Callable[..., Any] | None = None) -> Any:
    return (kind or faiss.IndexIVFFlat)(faiss.IndexFlat(D, metric), D, nlist, metric)
