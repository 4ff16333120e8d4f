"""Stores without their metadata database."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.real import copy_store, truth

from milvus_offline.cli import run
from milvus_offline.errors import StoreError, UsageError
from milvus_offline.milvus1.layout import MetricType
from milvus_offline.milvus1.nocatalog import Assumptions
from milvus_offline.milvus1.opening import open_store

GUESSED = Assumptions()


@pytest.mark.parametrize(
    "name",
    [
        "flat_basic",
        "binary",
        "deletes_cleaned",
        "indexed",
        "crash_index_1",
        "crash_dup",
        "crash_rand_3",
        "crash_wal",
        "crash_tags",
    ],
)
def test_real_stores_come_out_without_a_catalog(tmp_path: Path, name: str) -> None:
    root = copy_store(name, tmp_path)
    for file in (root / "db").glob("meta.sqlite*"):
        file.unlink()
    store = open_store(root, without_catalog=GUESSED)
    found = content(store)
    assert {k: v for k, v in found.items() if v} == {k: v for k, v in truth(name).items() if v}
    assert "no-catalog" in codes(store) and "metric-guessed" in codes(store)


@pytest.mark.parametrize("place", ["log", "root", "option"])
def test_only_the_log_is_left(place: str, tmp_path: Path) -> None:
    root = copy_store("crash_wal", tmp_path)
    (tmp_path / "only" / "wal").parent.mkdir()
    (root / "wal").rename(tmp_path / "only" / "wal")
    (tmp_path / "nothing").mkdir()
    log = tmp_path / "only" / "wal"
    given = {"log": log, "root": log.parent, "option": tmp_path / "nothing"}[place]
    store = open_store(given, wal=log if place == "option" else None, without_catalog=GUESSED)
    assert {k: v for k, v in content(store).items() if v} == {k: v for k, v in truth("crash_wal").items() if v}
    assert store.location.wal == log


def test_metrics_are_taken_from_the_user(tmp_path: Path) -> None:
    root = copy_store("binary", tmp_path)
    store = open_store(root, without_catalog=Assumptions(metrics={"bin_jaccard": MetricType.JACCARD}))
    schema = store["bin_jaccard"].schema
    assert (schema.metric_type, schema.dimension, schema.vector_type.value) == ("JACCARD", 128, "binary")
    assert "bin_jaccard" not in [f.where for f in store.findings if f.code == "metric-guessed"]


def test_an_unnamed_partition_gets_its_name_from_the_map(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    folder = b.partition("c", "p", flush_lsn=0)["table_id"]
    b.segment("c", rows(1, 2))
    b.segment(folder, rows(3))
    root = b.write()
    unnamed = open_store(root, without_catalog=GUESSED)
    assert content(unnamed) == {("c", "_default"): bag(rows(1, 2)), (folder, "_default"): bag(rows(3))}
    assert "partition-unnamed" in codes(unnamed)
    places = tmp_path / "map.json"
    places.write_text(json.dumps({folder: "c/größe/2"}))
    named = open_store(root, without_catalog=Assumptions.parse(str(places), ["c=IP"]))
    assert content(named) == {("c", "_default"): bag(rows(1, 2)), ("c", "größe/2"): bag(rows(3))}
    assert named["c"].schema.metric_type == "IP"


def test_sources_of_a_merge_are_left_out(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2, 3), deleted=[0])
    b.segment("c", rows(4))
    b.segment("c", rows(2, 3, 4))  # the merged one
    b.segment("c", rows(5))
    store = open_store(b.write(), without_catalog=GUESSED)
    assert content(store) == {("c", "_default"): bag(rows(2, 3, 4, 5))}
    assert codes(store).count("segment-contained") == 2


def test_rows_of_the_log_come_once_and_deletes_apply(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3, 4))
    b.wal.delete("c", [1, 4])
    b.wal.insert("c", rows(4, salt=1))
    store = open_store(b.write(), without_catalog=GUESSED)
    assert content(store) == {("c", "_default"): bag(rows(2, 3), rows(4, salt=1))}


def test_wrong_maps_and_assumptions_are_refused(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1))
    root = b.write()
    for text in ("c=NEAREST", "c"):
        with pytest.raises(UsageError, match="COLLECTION=METRIC"):
            Assumptions.parse(None, [text])
    with pytest.raises(UsageError, match="no such folder"):
        open_store(root, without_catalog=Assumptions(places={"17": ("c", "p")}))
    with pytest.raises(UsageError, match="there are: c"):
        open_store(root, without_catalog=Assumptions(metrics={"d": MetricType.L2}))
    broken = tmp_path / "map.yaml"
    broken.write_text("[1, 2")
    with pytest.raises(UsageError, match="neither YAML nor JSON"):
        Assumptions.parse(str(broken), [])
    (tmp_path / "empty" / "db" / "tables").mkdir(parents=True)
    with pytest.raises(StoreError, match="nothing to read"):
        open_store(tmp_path / "empty", without_catalog=GUESSED)


def test_a_lost_catalog_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_store("flat_basic", tmp_path)
    for file in (root / "db").glob("meta.sqlite*"):
        file.unlink()
    assert run(["export", str(root), str(tmp_path / "out")]) == 1
    assert "--no-catalog" in capsys.readouterr().err
    assert run(["export", str(root), str(tmp_path / "out"), "--no-catalog"]) == 3
    assert run(["verify", str(tmp_path / "out"), "--against", str(root), "--no-catalog"]) == 3  # the source itself is not whole


# Vectors that are gone ---------------------------------------------------------------------------------------------------


def test_a_collection_whose_vectors_are_all_gone_is_counted(tmp_path: Path) -> None:
    """Of 700 rows merged from 500 and 200, and 50 newer ones, two of them deleted."""
    b = StoreBuilder(tmp_path / "s")
    b.segment("c", rows(range(500)))
    b.segment("c", rows(range(500, 700)))
    b.segment("c", rows(range(700)))
    b.segment("c", rows(range(700, 750)), deleted=[0, 7])
    b.segment("d", rows(1))
    for raw in (b.roots[0] / "tables" / "c").glob("*/*.rv"):
        raw.unlink()
    store = open_store(b.write(), without_catalog=Assumptions())
    assert content(store) == {("d", "_default"): bag(rows(1))}
    assert [(f.severity.value, f.rows) for f in store.findings if f.code == "collection-lost"] == [("error", 748)]


def test_a_lost_segment_that_was_merged_is_no_loss(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    old, lost = b.segment("c", rows(1, 2)), b.segment("c", rows(7, 8, 9), deleted=[1])
    b.segment("c", rows(1, 2, 3))
    old.raw.unlink(), lost.raw.unlink()
    store = open_store(b.write(), without_catalog=Assumptions())
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3))}
    told = {(f.code, f.rows) for f in store.findings if "c/" in f.where}
    assert told == {("segment-contained", 2), ("segment-incomplete", 2)}


def test_a_folder_without_rows_is_left_out(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2))
    (b.roots[0] / "tables" / "empty" / "1600000000000000000").mkdir(parents=True)
    store = open_store(b.write(), without_catalog=GUESSED)
    assert ("collection-empty", "empty") in [(f.code, f.where) for f in store.findings]
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
