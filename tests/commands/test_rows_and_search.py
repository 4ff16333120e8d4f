"""`rows` and `search`: what a person and what a script gets, from every kind of source."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, fingerprint
from support.consoles import ROOT
from support.nearest import near, scores
from support.real import STORES

from milvus_offline import open_store

FAISS = ROOT / "fixtures" / "faiss"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", flush_lsn=b.wal.insert("c", rows(1, 2, 3)))
    b.collection("bits", dim=16, metric="TANIMOTO")
    b.partition("c", "p", table_id="1111111111111111111")
    b.segment("c", rows(1, 2, 3), deleted=[1], id="1700000000000000007")
    b.segment("1111111111111111111", rows(3, 5))
    b.segment("bits", rows(1, 2, dim=16, binary=True))
    b.wal.insert("c", rows(9))
    return b.write()


def test_rows_shows_the_first_of_each_partition_with_where_they_come_from(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # names are cut where the terminal ends
    before = fingerprint(store)
    done = call("rows", store, "-c", "c")
    assert done.code == 0
    assert "c: dimension 4, L2: 5 of 5 rows" in done.out
    lines = [line.split()[:4] for line in done.out.splitlines()[2:]]
    assert lines[0][:4] == ["1", "_default", "segment", "1700000000000000007"]
    assert lines[2][:3] == ["9", "_default", "log"]
    assert [line[0] for line in lines] == ["1", "3", "9", "3", "5"]
    assert fingerprint(store) == before


def test_rows_as_json_holds_whole_vectors_and_says_which_ids_are_missing(store: Path) -> None:
    document = call("rows", store, "--id", "3", "--id", "2", "--json").json
    assert document["format"] == "milvus-offline-rows"
    assert document["missing"] == []  # 2 is deleted in c, and live in bits
    c, bits = document["collections"]
    assert [(r["id"], r["partition"], r["from"], r["deleted"]) for r in c["rows"]] == [
        (3, "_default", "segment 1700000000000000007", False),
        (3, "p", c["rows"][1]["from"], False),
    ]
    expected = rows(3).vectors[0]
    assert np.float32(c["rows"][0]["vector"]).tobytes() == expected.tobytes()
    assert c["rows"][0]["norm"] == pytest.approx(np.linalg.norm(expected.astype(float)))
    assert bytes(bits["rows"][0]["vector"]) == rows(2, dim=16, binary=True).vectors[0].tobytes()
    assert call("rows", store, "--id", "77", "--json").json["missing"] == [77]
    assert "No live row has the id 77" in call("rows", store, "--id", "77").out


def test_ids_that_no_live_row_has_are_looked_for_everywhere(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    red = b.partition("c", "red")["table_id"]
    b.segment("c", rows(1, 2, 3), deleted=[1])
    b.folder(red, "1500000000000000000", rows(4, 5))  # no catalog row describes it
    b.wal.insert("c", rows(6), acknowledge=False)
    store = b.write()
    before = fingerprint(store)
    ids = [word for i in (1, 2, 4, 6, 7) for word in ("--id", str(i))]
    found = call("rows", store, *ids, "--json").json
    assert (found["missing"], [r["id"] for r in found["collections"][0]["rows"]]) == ([2, 4, 6, 7], [1])
    assert {(e["id"], e["partition"], e["salvage"]) for e in found["not_live"]} == {
        (2, "_default", "deleted"),
        (4, "red", "orphans"),
        (6, "_default", "unacknowledged"),
    }
    said = " ".join(call("rows", store, *ids).out.split())
    assert "No live row has the ids 2, 4, 6, 7 Not live, but still there: " in said
    assert "4 in c/red; an export with --salvage orphans brings such rows" in said
    assert call("rows", store, *ids, "-p", "red", "--json").json["not_live"] == [
        {"id": 4, "collection": "c", "partition": "red", "salvage": "orphans"}
    ]
    assert fingerprint(store) == before
    assert call("rows", tmp_path / "s", "--id", "1").out.count("live") == 0


def test_rows_shows_deleted_ones_on_request(store: Path) -> None:
    (row,) = call("rows", store, "-c", "c", "--deleted", "--json").json["collections"][0]["rows"]
    assert (row["id"], row["deleted"]) == (2, True)


def test_rows_by_a_file_of_ids_as_csv_and_as_npy(store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("5\n77\n1\n")
    np.save(tmp_path / "ids.npy", np.array([5, 1]))
    done = call("rows", store, "-c", "c", "--ids-file", tmp_path / "ids.txt", "--csv")
    assert done.err == "No live row has the id 77\n"
    table = list(csv.reader(io.StringIO(done.out)))
    assert table[0][:6] == ["collection", "partition", "id", "from", "norm", "v0"]
    assert [row[2] for row in table[1:]] == ["1", "5"]
    assert call("rows", store, "-c", "c", "--ids-file", tmp_path / "ids.npy", "--npy", tmp_path / "out.npy").code == 0
    assert np.load(tmp_path / "out.ids.npy").tolist() == [1, 5]
    assert np.load(tmp_path / "out.npy").tobytes() == rows(1, 5).vectors.tobytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json", "--csv"], "choose one"),
        (["--ids-file", "nothing.txt"], "nothing.txt"),
        (["--ids-file", os.devnull], "there are no ids in this file"),
        (["--id", "99999999999999999999"], "64 bits"),
        (["--deleted", "--id", "1"], "--deleted"),
        (["--npy", "x.npy"], "different kinds"),
        (["-c", "nothing"], "no collection matches"),
    ],
)
def test_wrong_calls_of_rows(store: Path, words: list[str], said: str) -> None:
    done = call("rows", store, *words)
    assert done.code == 2
    assert said in done.err


def test_search_as_json_is_what_the_contract_says(store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", rows(3, 9).vectors)
    document = call("search", store, "-c", "c", "--query", tmp_path / "q.npy", "-k", "2", "--json").json
    assert set(document) == {"format", "version", "collection", "metric_type", "results"}
    assert (document["format"], document["version"], document["collection"]) == ("milvus-offline-search", 1, "c")
    assert document["metric_type"] == "L2"
    assert document["results"][0] == [
        {"id": 3, "distance": 0.0, "partition": "_default"},
        {"id": 3, "distance": 0.0, "partition": "p"},
    ]
    assert document["results"][1][0] == {"id": 9, "distance": 0.0, "partition": "_default"}


def test_search_by_id_in_a_partition_as_text(store: Path) -> None:
    done = call("search", store, "-c", "c", "--id", "1", "-p", "p", "-k", "5")
    assert done.code == 0
    assert done.out.splitlines()[0] == "id 1: 2 hits"
    assert done.out.splitlines()[1].split() == ["id", "distance", "partition"]
    assert {line.split()[2] for line in done.out.splitlines()[2:]} == {"p"}


def test_an_infinite_distance_is_null_in_json(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("bits", dim=8, metric="TANIMOTO")
    made = rows(1, dim=8, binary=True)
    made.vectors[:] = 0b1111
    b.segment("bits", made)
    np.save(tmp_path / "q.npy", np.array([[0b110000]], np.uint8))
    document = call("search", b.write(), "--query", tmp_path / "q.npy", "--json").json
    assert document["results"] == [[{"id": 1, "distance": None, "partition": "_default"}]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either --query"),
        (["--id", "1"], "-c"),
        (["-c", "*", "--id", "1"], "2 collections"),
        (["-c", "c", "--id", "2"], "no live row of c has the id 2"),
        (["-c", "c", "--query", "nothing.npy"], "nothing.npy"),
        (["-c", "c", "--id", "1", "-k", "0"], "-k"),
        (["-c", "c", "-p", "nothing", "--id", "1"], "no partition matches"),
    ],
)
def test_wrong_calls_of_search(store: Path, words: list[str], said: str) -> None:
    done = call("search", store, *words)
    assert done.code == 2
    assert said in done.err


def test_queries_of_another_dimension_are_refused(store: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", np.ones((2, 3), np.float32))
    done = call("search", store, "-c", "c", "--query", tmp_path / "q.npy")
    assert (done.code, "c has vectors of 4 numbers, found 3" in done.err) == (2, True)


@pytest.mark.parametrize("form", ["hdf5", "npy", "parquet"])
def test_an_export_answers_as_its_store_does(form: str, tmp_path: Path) -> None:
    source = STORES / "partitions" / "store"
    assert call("export", source, tmp_path / "out", "--format", form).code == 0
    for name, collection in open_store(source).items():
        if not collection.rows:
            continue
        vectors = np.concatenate([p.read().vectors for p in collection.values()])
        np.save(tmp_path / "q.npy", near(vectors, 5, np.random.default_rng(1)))
        words = ["-c", name, "--query", tmp_path / "q.npy", "--json"]
        assert call("search", source, *words).json == call("search", tmp_path / "out", *words).json
        some = [w for i in collection["_default"].read(3).ids for w in ("--id", str(i))]
        theirs, ours = (call("rows", p, "-c", name, *some, "--json").json for p in (source, tmp_path / "out"))
        for a, b in zip(theirs["collections"][0]["rows"], ours["collections"][0]["rows"], strict=True):
            assert {**a, "from": ""} == {**b, "from": ""}


def test_hdf5_files_and_faiss_indexes_are_searched_too(tmp_path: Path) -> None:
    vectors = np.load(FAISS / "vectors.npy")
    np.save(tmp_path / "q.npy", vectors[:2])
    done = call("search", FAISS / "1.5.3-flat.index", "--query", tmp_path / "q.npy", "-k", "3", "--json")
    found: Any = done.json["results"]
    expected = np.argsort(scores("L2", vectors, vectors[:2]), axis=1, kind="stable")[:, :3]
    assert [[hit["id"] for hit in query] for query in found] == expected.tolist()
    assert call("export", STORES / "flat_basic" / "store", tmp_path / "out", "-c", "books").code == 0
    file = tmp_path / "out" / "books" / "_default.h5"
    done = call("search", file, "--id", str(open_store(STORES / "flat_basic" / "store")["books"]["_default"].read(1).ids[0]))
    assert done.code == 0
    assert "(" not in done.err
