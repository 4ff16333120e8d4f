"""Bits inside catalog pages that leave a sound database with another meaning."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.real import STORES, copy_store

from milvus_offline.milvus1.catalog.check import contradictions, one_byte_off
from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect

REAL = sorted(p.name for p in STORES.iterdir() if (p / "truth.npz").is_file())


@pytest.mark.parametrize("name", REAL)
def test_no_real_catalog_contradicts_itself(name: str) -> None:
    dump = STORES / name / "store" / "meta.default.sql"
    assert contradictions(open_store(STORES / name / "store", dump if dump.exists() else None).catalog) == []


def changed(tmp_path: Path, statement: str) -> list[str]:
    root = copy_store("partitions", tmp_path)
    with sqlite3.connect(root / "db/meta.sqlite") as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()
    return [f.code for f in open_store(root).findings if f.severity.value != "info"]


@pytest.mark.parametrize(
    "change",
    [
        "state = 1",
        "state = 4",
        "flag = flag | 1 | 2",
        "flag = 64",
        "engine_type = 9",
        "engine_type = 33",
        "index_params = '{\"nlist\": 16'",
        "owner_table = 'parts'",
        "table_id = 'qarts'",
        "metric_type = 3 - metric_type",
        "dimension = dimension + 1",
        "version = '1.1.3'",
    ],
)
def test_a_changed_row_of_a_collection(change: str, tmp_path: Path) -> None:
    assert changed(tmp_path, f"UPDATE Tables SET {change} WHERE table_id = 'parts'")


@pytest.mark.parametrize(
    "change", ["state = 1", "owner_table = 'qarts'", "owner_table = ''", "metric_type = 3 - metric_type", "dimension = 9"]
)
def test_a_changed_row_of_a_partition(change: str, tmp_path: Path) -> None:
    which = "(SELECT min(id) FROM Tables WHERE owner_table = 'parts' AND table_id IN (SELECT table_id FROM TableFiles))"
    assert changed(tmp_path, f"UPDATE Tables SET {change} WHERE id = {which}")


@pytest.mark.parametrize("file_type", [0, 3, 5, 6, 9, 17])
def test_a_changed_type_of_a_live_segment(file_type: int, tmp_path: Path) -> None:
    which = "(SELECT min(id) FROM TableFiles WHERE file_type = 1 AND row_count > 0)"
    assert changed(tmp_path, f"UPDATE TableFiles SET file_type = {file_type} WHERE id = {which}")


@pytest.mark.parametrize("change", ["table_id = 'qarts'", "segment_id = segment_id + 1", "file_id = file_id + 1"])
def test_a_changed_name_of_a_live_segment(change: str, tmp_path: Path) -> None:
    which = "(SELECT min(id) FROM TableFiles WHERE file_type = 1 AND row_count > 0)"
    assert changed(tmp_path, f"UPDATE TableFiles SET {change} WHERE id = {which}")


@pytest.mark.parametrize("table", ["Tables", "TableFiles"])
def test_a_row_that_is_gone(table: str, tmp_path: Path) -> None:
    which = "file_type = 1 AND row_count > 0" if table == "TableFiles" else "table_id IN (SELECT table_id FROM TableFiles)"
    assert changed(tmp_path, f"DELETE FROM {table} WHERE id = (SELECT min(id) FROM {table} WHERE {which})")


def test_a_state_that_is_neither_is_live_as_for_a_server(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", state=8)
    b.segment("c", rows(1, 2))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
    assert codes(store) == ["catalog-value"]


def test_a_finished_segment_that_is_called_unwritten_can_be_had(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2), FileType.NEW, file_size=48, row_count=2)
    b.wal_folder = None
    store = open_store(b.write())
    assert "catalog-value" in codes(store)
    assert [(s.kind, s.rows) for s in collect(store, ["unfinished"])[0]] == [("unfinished", 2)]


def test_one_byte_off() -> None:
    assert one_byte_off("qarts", ["c", "parts"]) == "parts"
    assert one_byte_off("parts", ["parts", "party", "part"]) == "party"
    assert one_byte_off("part", ["parts"]) is None
