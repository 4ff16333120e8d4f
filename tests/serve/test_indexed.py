"""`serve --use-index`: index files of a real server, searched by Faiss with the request's parameters; not damaged ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nearest import near
from support.real import STORES, copy_store

from milvus_offline import open_store
from milvus_offline.serve.answers import Answers, Settings
from milvus_offline.targets.milvus1.proto import messages

KINDS = {"ix_ivf_flat": 1.0, "ix_ivf_sq8": 0.9, "ix_hnsw": 0.98, "ix_ip": 0.9, "ix_del": 0.9}
"""Collections with an index that is used, and how many of the true neighbours it has to find when it looks everywhere."""
THOROUGH = '{"nprobe": 65536, "ef": 1000, "search_k": -1, "search_length": 50}'


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def found(answers: Answers, name: str, queries: Any, parameters: str, topk: int = 10) -> tuple[Any, Any]:
    request = messages()["SearchParam"](
        collection_name=name,
        topk=topk,
        query_record_array=[{"float_data": q.tolist()} for q in queries],
        extra_params=[{"key": "params", "value": parameters}],
    )
    reply = messages()["TopKQueryResult"].FromString(answers.Search(request))
    shape = (len(queries), -1)
    return np.array(reply.ids).reshape(shape), np.array(reply.distances).reshape(shape)


def queries_of(collection: Any) -> Any:
    return near(np.concatenate([p.read().vectors for p in collection.values()]), 40, np.random.default_rng(5))


@pytest.mark.parametrize("name", KINDS)
def test_an_index_finds_what_an_exact_search_finds_and_no_deleted_row(name: str, pool: Executor) -> None:
    store = open_store(STORES / "indexed" / "store")
    indexed, exact = Answers(store, pool, Settings(), use_index=True), Answers(store, pool, Settings())
    assert any(indexed._use_index.of(s) for p in store[name].values() for s in p.segments)
    queries = queries_of(store[name])
    (ids, distances), (true_ids, _) = (found(a, name, queries, THOROUGH) for a in (indexed, exact))
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids.tolist(), true_ids.tolist(), strict=True)]) >= KINDS[name]
    assert set(ids.ravel()) <= {int(i) for p in store[name].values() for i in p.read().ids}
    ordered = np.sort(distances, axis=1)
    assert np.array_equal(distances, ordered[:, ::-1] if store[name].schema.metric_type == "IP" else ordered)


def test_a_smaller_nprobe_looks_less_far(pool: Executor) -> None:
    store = open_store(STORES / "indexed" / "store")
    answers = Answers(store, pool, Settings(), use_index=True)
    queries = queries_of(store["ix_ivf_flat"])
    near_by, everywhere = (found(answers, "ix_ivf_flat", queries, p)[1] for p in ('{"nprobe": 1}', THOROUGH))
    assert near_by.sum() > everywhere.sum()


def test_more_rows_than_an_index_has_are_asked_for(pool: Executor) -> None:
    store = open_store(STORES / "indexed" / "store")
    ids, _ = found(
        Answers(store, pool, Settings(), use_index=True), "ix_ivf_flat", queries_of(store["ix_ivf_flat"])[:2], THOROUGH, 16384
    )
    assert ids.shape == (2, store["ix_ivf_flat"].rows)
    assert sorted(ids[0]) == sorted(i for p in store["ix_ivf_flat"].values() for i in p.read().ids)


@pytest.mark.parametrize("name", ["ix_ivf_flat", "ix_ivf_sq8", "ix_hnsw"])
@pytest.mark.parametrize("damage", ["cut", "zeros", "ones", "another"])
def test_a_damaged_index_is_not_used_and_its_rows_are_searched_exactly(
    name: str, damage: str, pool: Executor, tmp_path: Path
) -> None:
    root = copy_store("indexed", tmp_path)
    store = open_store(root)
    exact = Answers(store, pool, Settings())
    answers = Answers(store, pool, Settings(), use_index=True)
    segments = [s for p in store[name].values() for s in p.segments]
    for path in {p for s in segments if (p := answers._index_path(s))}:
        data = bytearray(path.read_bytes())
        half = len(data) // 2
        if damage == "cut":
            del data[half:]
        elif damage == "another":
            other = next(p for s in store["ix_del"]["_default"].segments if (p := answers._index_path(s)))
            data = bytearray(other.read_bytes())
        else:
            data[30 : half if damage == "ones" else 120] = (b"\xff" if damage == "ones" else b"\0") * len(
                data[30 : half if damage == "ones" else 120]
            )
        path.write_bytes(data)
    assert not any(answers._use_index.of(s) for s in segments)
    queries = queries_of(store[name])[:5]
    assert found(answers, name, queries, THOROUGH)[0].tolist() == found(exact, name, queries, THOROUGH)[0].tolist()


def test_the_memory_that_indexes_may_take_is_known_before(pool: Executor) -> None:
    store = open_store(STORES / "indexed" / "store")
    every, one, none = (
        Answers(store, pool, Settings(), names, use_index=use).index_bytes
        for names, use in ((None, True), (["ix_hnsw"], True), (None, False))
    )
    raw = next(Path(s.raw_path) for s in store["ix_hnsw"]["_default"].segments)  # type: ignore[union-attr]
    files = [p for p in raw.parent.iterdir() if p.name.isdigit()]
    assert one == sum(p.stat().st_size for p in files) < every
    assert none == 0
