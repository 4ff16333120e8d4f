"""Exact search: brute force on real stores, all metrics, ties, padding, odd numbers, files that are cut meanwhile."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import spawn
from support.nearest import assert_nearest, near
from support.real import STORES

from milvus_offline import open_store
from milvus_offline.errors import DamageError, UsageError
from milvus_offline.model import Batch, Schema, SourcePartition, VectorType
from milvus_offline.search import blocks, exact, find_rows, lookup, search

BINARY = ("HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE")
NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


def opened(name: str) -> Any:
    store = STORES / name / "store"
    return open_store(store, catalog=store / "meta.default.sql" if name.startswith("mysql") else None)


class Given:
    """A piece of rows in memory, in batches of three rows."""

    def __init__(self, ids: Any, vectors: Any) -> None:
        self.id, self.ids, self.vectors = "given", np.asarray(ids, np.int64), vectors
        self.rows = len(self.ids)

    def batches(self, max_bytes: int = 0, start: int = 0) -> Any:
        for at in range(start, self.rows, 3):
            yield Batch(self.ids[at : at + 3], self.vectors[at : at + 3])


def given(vectors: Any, metric: str) -> tuple[Schema, list[SourcePartition]]:
    binary = vectors.dtype == np.uint8
    kind = VectorType.BINARY if binary else VectorType.FLOAT
    schema = Schema("c", vectors.shape[1] * (8 if binary else 1), kind, metric)
    return schema, [SourcePartition("_default", [Given(range(len(vectors)), vectors)])]


@pytest.mark.parametrize("name", NAMES)
def test_a_search_of_a_real_store_is_brute_force_over_what_an_export_brings(name: str) -> None:
    rng = np.random.default_rng(1)
    for collection in opened(name).values():
        ids = np.concatenate([p.read().ids for p in collection.values()])
        vectors = np.concatenate([p.read().vectors for p in collection.values()])
        for count, k in ((1, 10), (7, 5), (30, 100)):
            if not len(ids):
                assert (
                    collection.search(np.zeros((count, collection.schema.width), collection.schema.dtype), k).ids.shape[1] == 0
                )
                continue
            queries = near(vectors, count, rng)
            found = collection.search(queries, k, jobs=2)
            assert_nearest(found, collection.schema.metric_type, ids, vectors, queries, k)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["L2", "IP", *BINARY])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_every_metric_with_few_and_many_queries_over_many_tiles(metric: str, count: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(exact, "_MOST_ROWS", 64)
    rng = np.random.default_rng(2)
    vectors = rng.integers(0, 256, (1000, 9), np.uint8) if metric in BINARY else rng.normal(size=(1000, 9)).astype(np.float32)
    vectors[500:] = vectors[:500]
    queries = near(vectors, count, rng)
    for k in (1, 20, 1500):
        schema, partitions = given(vectors, metric)
        assert_nearest(search(schema, partitions, queries, k, jobs=2), metric, np.arange(1000), vectors, queries, k)


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rounding_of_float32_never_changes_which_rows_are_nearest(count: int, offset: float) -> None:
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(5000, 64)) + offset).astype(np.float32)
    queries = near(vectors, count, rng)
    schema, partitions = given(vectors, "L2")
    assert_nearest(search(schema, partitions, queries, 10), "L2", np.arange(5000), vectors, queries, 10)


def test_of_equal_distances_the_first_row_of_an_export_comes_first_whatever_the_threads_do(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.partition("c", "p", table_id="1111111111111111111")
    same = np.ones((400, 4), np.float32)
    for table, first in (("c", 1000), ("1111111111111111111", 0), ("c", 3000)):
        b.segment(table, Batch(np.arange(first, first + 400, dtype=np.int64), same))
    collection = open_store(b.write())["c"]
    for jobs in (1, 4):
        hits = collection.search(np.zeros((1, 4), np.float32), 805, jobs=jobs)
        assert hits.ids[0].tolist() == [*range(1000, 1400), *range(3000, 3400), 0, 1, 2, 3, 4]
        assert [hits.names[p] for p in hits.partitions[0, [0, 799, 800]]] == ["_default", "_default", "p"]
        assert set(hits.distances[0].tolist()) == {4.0}


def test_deleted_rows_never_appear_rows_of_the_log_do_and_duplicates_as_often_as_they_are_there(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=b.wal.insert("c", rows(1, 2, 3, 3)))
    b.segment("c", rows(1, 2, 3, 3), deleted=[0])
    b.wal.insert("c", rows(4, 3))
    b.wal.delete("c", [2, 77])
    collection = open_store(b.write())["c"]
    hits = collection.search(rows(3).vectors, 10)
    assert hits.ids[0].tolist() == [3, 3, 3, 4]
    assert hits.distances[0, :3].tolist() == [0, 0, 0]
    assert collection.get([1, 2, 3]).ids.tolist() == [3, 3, 3]


def test_partitions_limit_what_is_searched(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.partition("c", "p", table_id="1111111111111111111")
    b.segment("c", rows(1, 2))
    b.segment("1111111111111111111", rows(3))
    collection = open_store(b.write())["c"]
    assert collection.search(rows(1).vectors, 5, ["p"]).ids.tolist() == [[3]]
    assert collection.search(rows(1).vectors[0], 5).ids.shape == (1, 3)
    with pytest.raises(KeyError):
        collection.search(rows(1).vectors, 5, ["q"])


@pytest.mark.parametrize("count", [1, 40])
def test_rows_and_queries_that_are_no_numbers_are_no_hits(count: int) -> None:
    vectors = np.ones((50, 4), np.float32)
    vectors[3], vectors[7, 0], vectors[9, 1], vectors[11] = np.nan, np.inf, -np.inf, 3e38
    schema, partitions = given(vectors, "L2")
    queries = np.ones((count, 4), np.float32)
    queries[0] = np.nan
    hits = search(schema, partitions, queries, 50)
    assert (hits.ids[0] == -1).all()
    assert (hits.distances[0] == np.finfo(np.float32).max).all()
    assert all(sorted(set(range(50)) - {3, 7, 9, 11}) == row[:46].tolist() for row in hits.ids[1:])
    hits = search(*given(vectors, "IP"), np.ones((count, 4), np.float32), 50)
    assert hits.ids[0, :2].tolist() == [7, 11]  # 1.x counts what is over the largest number as infinite, which is a hit here
    assert hits.ids[0, -2:].tolist() == [-1, -1]
    assert hits.distances[0, -1] == -np.finfo(np.float32).max


def test_no_row_of_a_structure_search_that_does_not_match_is_a_hit() -> None:
    vectors = np.array([[0b1100], [0b1000], [0b0011]], np.uint8)
    hits = search(*given(vectors, "SUBSTRUCTURE"), np.array([[0b1000]], np.uint8), 3)
    assert hits.ids.tolist() == [[0, 1, -1]]
    assert hits.distances.tolist() == [[0, 0, np.inf]]
    assert search(*given(vectors, "SUPERSTRUCTURE"), np.array([[0b1110]], np.uint8), 3).ids.tolist() == [[0, 1, -1]]


def test_without_maps_of_the_system_the_same_rows_are_read(monkeypatch: Any) -> None:
    collection = (
        opened("deletes_cleaned")["x"] if "x" in opened("deletes_cleaned") else next(iter(opened("deletes_cleaned").values()))
    )
    query = next(iter(collection.batches())).vectors[:3].copy()
    before = search(collection.schema, collection.partitions, query, 20)
    monkeypatch.setattr(blocks, "_libc", lambda: None)
    after = search(collection.schema, collection.partitions, query, 20)
    assert before.ids.tolist() == after.ids.tolist()
    assert before.distances.tolist() == after.distances.tolist()


@pytest.mark.parametrize("file", ["raw", "ids"])
@pytest.mark.parametrize("searched", [False, True])
def test_a_file_that_is_cut_after_the_store_was_opened_is_an_error_not_the_end(
    tmp_path: Path, file: str, searched: bool
) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=64)
    segment = b.segment("c", rows(range(2000), dim=64))
    collection = open_store(b.write())["c"]
    if searched:
        collection.search(rows(5, dim=64).vectors, 5)
    path = getattr(segment, file)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size // 2)
    with pytest.raises(DamageError, match="cut"):
        collection.search(rows(5, dim=64).vectors, 5)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("words", [["search", "-k", "40"], ["rows"]])
def test_a_store_may_have_more_segments_than_a_process_may_have_open_files(tmp_path: Path, words: list[str]) -> None:
    import resource

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    for n in range(80):
        b.segment("c", rows(n))
    found = spawn(words[0], b.write(), "-c", "c", "--id", 0, "--id", 79, "--json", *words[1:], preexec_fn=few)
    assert (found.code, found.err) == (0, "")
    if words[0] == "search":
        assert [len({h["id"] for h in hits}) for hits in found.json["results"]] == [40, 40]


class Endless:
    """A piece that is read on and on, for a minute, and in whose midst Ctrl-C comes."""

    id, rows = "endless", 1 << 40

    def __init__(self) -> None:
        self.is_over = False

    def batches(self, max_bytes: int = 0, start: int = 0) -> Any:
        end = time.monotonic() + 60
        signal.raise_signal(signal.SIGINT)
        while time.monotonic() < end:
            yield Batch(np.arange(3), np.ones((3, 4), np.float32))
        self.is_over = True


def test_ctrl_c_does_not_wait_for_the_end_of_a_search() -> None:
    endless = Endless()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            search(Schema("c", 4, VectorType.FLOAT, "L2"), [SourcePartition("_default", [endless])], np.zeros((1, 4)), 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not endless.is_over


@pytest.mark.parametrize(
    "queries",
    [np.ones((1, 5)), np.ones((1, 4), np.complex64), np.ones((1, 1, 4)), np.array([["a"] * 4])],
)
def test_queries_that_do_not_fit_are_refused(queries: Any) -> None:
    with pytest.raises(UsageError, match="queries"):
        search(*given(np.ones((3, 4), np.float32), "L2"), queries, 1)


def test_a_metric_that_does_not_fit_and_no_k_are_refused() -> None:
    with pytest.raises(UsageError, match="HAMMING"):
        search(*given(np.ones((3, 4), np.float32), "HAMMING"), np.ones((1, 4)), 1)
    with pytest.raises(UsageError, match="1 or more"):
        search(*given(np.ones((3, 4), np.float32), "L2"), np.ones((1, 4)), 0)


# Rows by id -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_rows_by_id_are_those_of_the_export(name: str) -> None:
    for collection in opened(name).values():
        parts = [(p.name, p.read()) for p in collection.values()]
        ids = np.concatenate([b.ids for _, b in parts])
        if not len(ids):
            continue
        wanted = np.random.default_rng(4).choice(np.unique(ids), min(50, len(np.unique(ids))), replace=False)
        there = {(int(i), tag, v.tobytes()) for tag, b in parts for i, v in zip(b.ids, b.vectors, strict=True)}
        found = collection.get(wanted)
        assert len(found) == np.isin(ids, wanted).sum()
        assert found.ids.tolist() == wanted[found.asked].tolist()
        assert {
            (int(i), tag, v.tobytes()) for i, tag, v in zip(found.ids, found.partitions, found.vectors, strict=True)
        } <= there
        first = find_rows(collection.schema, collection.partitions, [*wanted, -(1 << 62)], first_only=True)
        assert first.asked.tolist() == list(range(len(wanted)))


def test_few_ids_of_a_large_segment_are_found_by_its_filter(tmp_path: Path, monkeypatch: Any) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(range(20000)), bloom=True)
    b.segment("c", rows(range(50000, 70000)), bloom=True)
    collection = open_store(b.write())["c"]
    looked: list[str] = []
    real = lookup._offsets
    monkeypatch.setattr(lookup, "_offsets", lambda files, wanted: (looked.append(files.segment.id), real(files, wanted))[1])
    assert collection.get([50007, 50009]).ids.tolist() == [50007, 50009]
    assert looked == [collection["_default"].segments[1].id]


def test_a_filter_that_lies_hides_no_row(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    segment = b.segment("c", rows(range(20000)), bloom=True)
    path = segment.folder / "bloom_filter"
    data = bytearray(path.read_bytes())
    data[80:] = bytes(len(data) - 80)
    path.write_bytes(data)
    collection = open_store(b.write())["c"]
    assert collection.get([5]).ids.tolist() == [5]
    assert collection.get([5, 5, -1]).asked.tolist() == [0, 1]
    assert collection.get("_default") is collection["_default"]
    assert collection.get("none", 7) == 7
