"""`verify --search`: an export answers searches as its store does, and what is not so is seen; ties count as equal."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call
from support.real import STORES

from milvus_offline.search import Hits
from milvus_offline.search.compare import compare_hits, sample_rows
from milvus_offline.sources import open_source


def hits(ids: list[int], distances: list[float]) -> Hits:
    return Hits(
        np.array([ids]), np.array([distances], np.float32), np.where(np.array([ids]) < 0, -1, 0).astype(np.int32), ("p",)
    )


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        (([1, 2, 3], [0, 1, 2]), ([1, 2, 3], [0, 1.000001, 2]), True),
        (([1, 2, 3], [0, 1, 1]), ([1, 3, 2], [0, 1, 1]), True),
        (([1, 2, 3, 4], [0, 1, 1, 2]), ([1, 3, 2, 4], [0, 1, 1, 2]), True),
        (([1, 2], [0, 1]), ([1, 9], [0, 1]), True),  # 2 and 9 may be equally far
        (([1, 2, 3], [0, 1, 2]), ([1, 9, 3], [0, 1, 2]), False),
        (([1, 2, 3], [0, 1, 2]), ([1, 2, 3], [0, 1, 2.1]), False),
        (([1, 2, -1], [0, 1, 9]), ([1, 2, -1], [0, 1, 3]), True),
        (([1, 2, -1], [0, 1, 9]), ([1, 2, 3], [0, 1, 9]), False),
        (([1, 1, 2], [0, 0, 3]), ([1, 7, 2], [0, 0, 3]), False),
    ],
)
def test_hits_are_compared_up_to_ties_and_rounding(
    here: tuple[list[int], list[float]], there: tuple[list[int], list[float]], same: bool
) -> None:
    assert compare_hits(hits(*here), hits(*there)) == ([] if same else [0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["binary", "partitions", "crash_wal", "deletes_cleaned"])
def test_an_export_answers_as_its_store(name: str, tmp_path: Path) -> None:
    store = STORES / name / "store"
    assert call("export", store, tmp_path / "out").code == 0
    done = call("verify", tmp_path / "out", "--against", store, "--search", "7", "--json")
    assert done.code == 0
    assert "search" in call("verify", tmp_path / "out", "--against", store, "--search", "7").out


def test_other_vectors_in_the_export_are_seen(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.segment("c", rows(range(50)))
    store = b.write()
    assert call("export", store, tmp_path / "out").code == 0
    with h5py.File(tmp_path / "out" / "c" / "_default.h5", "r+") as h:
        h["embeddings"][20] = 0
    document = call("verify", tmp_path / "out", "--against", store, "--search", "50", "--json").json
    found = {f["code"]: f for f in document["findings"]}
    assert document["exit_code"] == 4
    assert found["search-differs"]["rows"] > 0
    assert "L2" in found["search-differs"]["message"]


def test_search_is_asked_for_with_something_to_compare(tmp_path: Path) -> None:
    store = STORES / "partitions" / "store"
    assert call("export", store, tmp_path / "out", "-c", "parts", "-p", "2020").code == 0
    assert call("verify", tmp_path / "out", "--search", "3").code == 2
    assert call("verify", store, "--search", "3").code == 2
    assert call("verify", tmp_path / "out", "--against", store, "--search", "3").code == 0


def test_samples_lie_evenly_in_all_pieces() -> None:
    collection = next(c for c in open_source(STORES / "partitions" / "store").collections if c.rows > 1000)
    found = sample_rows(collection.schema, collection.partitions, 20)
    everything = np.concatenate([b.vectors.copy() for p in collection.partitions for x in p.pieces for b in x.batches()])
    assert found.tobytes() == everything[np.arange(20) * len(everything) // 20].tobytes()
    assert len(sample_rows(collection.schema, collection.partitions, 10**6)) == collection.rows
