"""The whole read API of a real pymilvus 1.1.2 against `serve` over stores that real servers left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.absent import absent
from support.client_1x import Client, Unavailable, environment
from support.command import fingerprint
from support.nearest import near, scores
from support.real import STORES
from support.served import Served

from milvus_offline import open_store
from milvus_offline.milvus1.layout import MetricType

pytestmark = pytest.mark.server

NAMES = ["binary", "flat_basic", "indexed", "partitions", "crash_wal", "crash_dup", "crash_rand_3", "dropped", "mysql"]
NAMES += ["crash_tags", "lost_flush", "race_partitions", "mysql_crash"]
PARAMETERS = {"nprobe": 32, "ef": 200, "search_k": 100, "search_length": 50}


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with pymilvus 1.1.2, one for all workers."""
    base = tmp_path_factory.getbasetemp()
    try:
        return environment((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pymilvus-1.1.2")
    except Unavailable as e:
        absent(f"no pymilvus 1.1.2, its tests of the 1.x service are NOT run: {e}")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def catalog(name: str) -> list[Any]:
    return ["--catalog", STORES / name / "store" / "meta.default.sql"] if name.startswith("mysql") else []


@pytest.fixture(scope="module")
def store(name: str, catalog: list[Any]) -> Any:
    return open_store(STORES / name / "store", catalog=catalog[1] if catalog else None)


@pytest.fixture(scope="module")
def client(name: str, python: Path, catalog: list[Any]) -> Iterator[Client]:
    before = fingerprint(STORES / name / "store")
    with Served(STORES / name / "store", *catalog) as served, Client(python, served.address) as connected:
        yield connected
        code, said = served.stop()
    assert (code, "Traceback" in said) == (0, False)
    assert fingerprint(STORES / name / "store") == before


def ok(answer: Any) -> Any:
    status, value = answer
    assert status["code"] == 0, status
    return value


def sent(vectors: Any) -> Any:
    """Vectors as a client sends them."""
    return [{"bytes": v.tobytes().hex()} for v in vectors] if vectors.dtype == np.uint8 else vectors.tolist()


def received(vectors: Any, dtype: Any) -> list[bytes]:
    return [bytes.fromhex(v["bytes"]) if isinstance(v, dict) else np.array(v, dtype).tobytes() for v in vectors]


def test_what_the_server_says_of_itself(client: Client) -> None:
    assert ok(client.server_version()) == "1.1.1"
    assert ok(client.server_status()) == "OK"
    assert ok(client._cmd("mode")) == "CPU"
    assert ok(client._cmd("nonsense")) == "Unknown command"
    assert client.get_config("nothing", "here")[0]["code"] == 1
    assert client.set_config("cache", "cache_size", "1GB")[0]["code"] == 3


def test_collections_are_listed_described_and_counted(client: Client, store: Any) -> None:
    assert ok(client.list_collections()) == list(store)
    for c in store.values():
        assert ok(client.has_collection(c.name))
        described = ok(client.get_collection_info(c.name))
        assert described["collection_name"] == c.name
        assert described["dimension"] == c.schema.dimension
        assert described["metric_type"] == MetricType[c.schema.metric_type]
        assert described["index_file_size"] == c.schema.index_file_size >> 20
        assert ok(client.count_entities(c.name)) == c.rows
        index = ok(client.get_index_info(c.name))
        assert index["params"] == dict(c.schema.index.params)
    assert ok(client.has_collection("nothing")) is False


def test_partitions_are_listed_and_found(client: Client, store: Any) -> None:
    for c in store.values():
        assert [p["tag"] for p in ok(client.list_partitions(c.name))] == list(c)
        assert ok(client.has_partition(c.name, "_default"))
        assert all(ok(client.has_partition(c.name, f" {tag}\n")) for tag in c)
        assert not ok(client.has_partition(c.name, "no such tag"))


def test_statistics_name_segments_whose_ids_can_be_asked_for(client: Client, store: Any) -> None:
    for c in store.values():
        statistics = ok(client.get_collection_stats(c.name))
        assert statistics["row_count"] == c.rows
        assert {p["tag"]: p["row_count"] for p in statistics["partitions"]} == {p.name: p.rows for p in c.values()}
        for partition in statistics["partitions"]:
            found: list[int] = []
            for segment in partition["segments"] or []:
                ids = ok(client.list_id_in_segment(c.name, segment["name"]))
                assert len(ids) == segment["row_count"]
                found += ids
            assert sorted(found) == sorted(c[partition["tag"]].read().ids.tolist())


def test_rows_come_back_bit_for_bit_and_empty_where_there_is_none(client: Client, store: Any) -> None:
    for c in store.values():
        rows: dict[int, set[bytes]] = {}
        for batch in c.batches():
            for i, v in zip(batch.ids.tolist(), batch.vectors, strict=True):
                rows.setdefault(i, set()).add(v.tobytes())
        ids = [i for i in list(rows)[:: max(1, len(rows) // 40)] if i >= 0]  # pymilvus itself refuses negative ones
        if not ids:
            continue
        vectors = ok(client.get_entity_by_id(c.name, [*ids, (1 << 61) + 7, ids[0]]))
        *first, absent, again = received(vectors, c.schema.dtype)
        assert all(v in rows[i] for i, v in zip(ids, first, strict=True))
        assert (absent, again) == (b"", first[0])
        for tag, partition in c.items():
            inside = [i for i in partition.read(5).ids.tolist() if i >= 0]
            if tag != "_default" and inside:
                assert all(ok(client.get_entity_by_id(c.name, inside, partition_tag=tag)))


def test_every_search_is_exact_whatever_the_index(client: Client, store: Any) -> None:
    rng = np.random.default_rng(7)
    for c in store.values():
        if not c.rows:
            continue
        batch = [p.read() for p in c.values()]
        ids, vectors = np.concatenate([b.ids for b in batch]), np.concatenate([b.vectors for b in batch])
        finite = vectors[np.isfinite(vectors.astype(np.float64)).all(axis=1)]
        queries = near(finite, 4, rng)
        found = ok(client.search(c.name, 20, sent(queries), params=PARAMETERS))
        every = scores(c.schema.metric_type, vectors, queries)
        for q in range(4):
            expected = np.sort(every[q])[:20]
            expected = expected[np.isfinite(expected)]
            given = np.array(found["distances"][q]) * (-1 if c.schema.metric_type == "IP" else 1)
            if -1 in ids:  # pymilvus takes this id for the end of the list
                expected = expected[: len(given)]
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)
            for i, distance in zip(found["ids"][q], given, strict=True):
                assert min(abs(every[q][ids == i] - distance)) < 1e-4 * max(1, abs(distance))


def test_searches_take_tags_and_patterns(client: Client, store: Any) -> None:
    for c in store.values():
        tags = [t for t in c if t != "_default" and c[t].rows]
        if not tags:
            continue
        tag = tags[0]
        batch = c[tag].read()
        query = sent(batch.vectors[:1])
        inside = {p: set(c[p].read().ids.tolist()) for p in c}
        every = {t for t in c if t != "_default"}
        for asked, meant in (
            ([tag], {tag}),
            ([f"  {tag} "], {tag}),
            ([".*"], every),
            (["_default", tag], {"_default", tag}),
            (["_default"], {"_default"}),
            ([f"{tag[0]}.*"], {t for t in every if t.startswith(tag[0])}),
        ):
            found = ok(client.search(c.name, 50, query, partition_tags=asked, params=PARAMETERS))
            ids = found["ids"][0] if found["ids"] else []
            assert set(ids) <= set.union(*(inside[t] for t in meant))
            assert len(ids) >= min(50, sum(len(inside[t]) for t in meant)) or c.schema.metric_type.endswith("STRUCTURE")


def test_search_in_segments_and_by_id(client: Client, store: Any) -> None:
    for c in store.values():
        segment = next((s for p in c.values() for s in p.segments if s.rows), None)
        if segment is None:
            continue
        row = next(f for f in store.catalog.files if f.segment_id == segment.id)
        vector = next(segment.batches()).vectors[:1]
        found = ok(client.search_in_segment(c.name, [row.id], sent(vector), 5, params=PARAMETERS))
        assert set(found["ids"][0]) <= set(np.asarray(segment.ids).tolist())


def test_advice_is_taken_and_changes_are_refused(client: Client, store: Any) -> None:
    c = next(iter(store.values()))
    assert client.load_collection(c.name)["code"] == 0
    assert client.release_collection(c.name)["code"] == 0
    assert client.reload_segments(c.name, ["1"])["code"] == 0
    vector = sent(np.ones((1, c.schema.width), c.schema.dtype))
    for answer in (
        client.insert(c.name, vector)[0],
        client.delete_entity_by_id(c.name, [1]),
        client.flush([c.name]),
        client.compact(c.name),
        client.drop_collection(c.name),
        client.drop_index(c.name),
        client.create_partition(c.name, "new"),
        client.drop_partition(c.name, "new"),
        client.create_collection({"collection_name": "new", "dimension": 8}),
    ):
        assert answer["code"] == 3
        assert "changes nothing" in answer["message"]
