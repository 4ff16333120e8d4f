"""Stores of 0.5 and 0.6: raw files are Faiss files, written here by the real faiss-cpu (FORMAT §8)."""

from __future__ import annotations

import os
import sqlite3
import struct
from pathlib import Path

import faiss
import numpy as np
import pytest
from builder import bag, codes, content

from milvus_offline.cli import run
from milvus_offline.milvus1.store import open_store
from milvus_offline.model import Array, Batch

DATE = 1191107
_TABLES_05 = (
    "id INTEGER PRIMARY KEY NOT NULL, table_id TEXT UNIQUE NOT NULL, state INTEGER, dimension INTEGER, "
    "created_on INTEGER, flag INTEGER DEFAULT 0, index_file_size INTEGER, engine_type INTEGER, nlist INTEGER, "
    "metric_type INTEGER"
)
TABLES = {
    "0.5": _TABLES_05,
    "0.6": f"{_TABLES_05}, owner_table TEXT DEFAULT '', partition_tag TEXT DEFAULT '', version TEXT DEFAULT '0.6.0'",
}
FILES = (
    "id INTEGER PRIMARY KEY NOT NULL, table_id TEXT, engine_type INTEGER, file_id TEXT, file_type INTEGER, "
    "file_size INTEGER DEFAULT 0, row_count INTEGER DEFAULT 0, updated_time INTEGER, created_on INTEGER, "
    "date INTEGER DEFAULT -1"
)


def raw_file(path: Path, rows: Batch, *, inner_product: bool = False) -> None:
    """A container of type 1 with the blob `IVF`: an IDMap over a flat index with the user's ids."""
    dimension = rows.vectors.shape[1]
    index = faiss.IndexIDMap(faiss.IndexFlatIP(dimension) if inner_product else faiss.IndexFlatL2(dimension))
    index.add_with_ids(rows.vectors, rows.ids)
    blob = faiss.serialize_index(index).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<iQ", 1, 3) + b"IVF" + struct.pack("<q", len(blob)) + blob)


def some(first: int, count: int, dimension: int = 8) -> Batch:
    vectors = np.random.default_rng(first).standard_normal((count, dimension)).astype(np.float32)
    return Batch(np.arange(first, first + count, dtype=np.int64) * (-1 if first % 2 else 1), vectors)


@pytest.fixture(params=["0.5", "0.6"])
def dated(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, dict[tuple[str, str], list[Batch]]]:
    version = request.param
    root = tmp_path / "milvus"
    db = root / "db"
    db.mkdir(parents=True)
    catalog = sqlite3.connect(db / "meta.sqlite")
    catalog.execute(f"CREATE TABLE 'Tables' ({TABLES[version]})")
    catalog.execute(f"CREATE TABLE 'TableFiles' ({FILES})")
    expected: dict[tuple[str, str], list[Batch]] = {("l2", "_default"): [], ("ip", "_default"): []}
    tables = [("l2", 1, ""), ("ip", 2, "")]
    if version == "0.6":
        tables.append(("part one", 1, "l2"))
        expected["l2", "tag/1"] = []
    number = 0
    for table_id, metric, owner in tables:
        columns = "table_id, state, dimension, flag, index_file_size, engine_type, nlist, metric_type"
        values: list[object] = [table_id, 0, 8, 2, 1 << 20, 2, 64, metric]
        if version == "0.6":
            columns += ", owner_table, partition_tag"
            values += [owner, "tag/1" if owner else ""]
        catalog.execute(f"INSERT INTO Tables ({columns}) VALUES ({', '.join('?' * len(values))})", values)
        place = expected["l2", "tag/1"] if owner else expected[table_id, "_default"]
        for file_type, live in ((1, True), (2, True), (7, True), (3, False), (4, False), (0, False), (5, False), (6, False)):
            number += 1
            rows = some(1000 * number, 50 + number)
            file_id = f"15{number:017d}"
            catalog.execute(
                "INSERT INTO TableFiles (table_id, engine_type, file_id, file_type, row_count, date) VALUES (?, 1, ?, ?, ?, ?)",
                (table_id, file_id, file_type, len(rows.ids), DATE),
            )
            raw_file(db / "tables" / table_id / str(DATE) / file_id, rows, inner_product=metric == 2)
            if live:
                place.append(rows)
    catalog.commit()
    catalog.close()
    return version, root, expected


def test_raw_files_come_out_exactly(dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]], tmp_path: Path) -> None:
    _, root, expected = dated
    store = open_store(root)
    assert content(store) == {k: bag(*v) for k, v in expected.items()}
    assert codes(store) == []
    assert store["l2"].schema.index.params == {"nlist": 64}
    assert run(["export", str(root), str(tmp_path / "out")]) == 0
    assert run(["verify", str(tmp_path / "out"), "--against", str(root)]) == 0
    assert run(["verify", str(root)]) == 0


def test_a_cut_raw_file_is_named_and_the_rest_comes_out(
    dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]],
) -> None:
    _, root, expected = dated
    first = sorted((root / "db" / "tables" / "ip" / str(DATE)).iterdir())[0]
    os.truncate(first, first.stat().st_size - 100)
    store = open_store(root)
    found = content(store)["ip", "_default"]
    assert found < bag(*expected["ip", "_default"]) and found >= bag(*expected["ip", "_default"][1:])
    lost = [f for f in store.findings if f.code == "rows-lost"]
    assert sum(f.rows or 0 for f in lost) == bag(*expected["ip", "_default"]).total() - found.total()
    first.unlink()
    store = open_store(root)
    assert content(store)["ip", "_default"] == bag(*expected["ip", "_default"][1:])
    assert [(f.code, f.rows) for f in store.findings] == [("segment-missing", len(expected["ip", "_default"][0].ids))]


def test_an_index_in_place_of_a_raw_file_is_refused(dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]]) -> None:
    _, root, _ = dated
    first = sorted((root / "db" / "tables" / "ip" / str(DATE)).iterdir())[0]
    data: Array = np.frombuffer(first.read_bytes(), np.uint8).copy()
    data[0] = 2  # the container says IVF_FLAT
    first.write_bytes(data.tobytes())
    assert "segment-unreadable" in codes(open_store(root))


def test_row_counts_of_the_catalog_are_hints(dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]]) -> None:
    _, root, expected = dated
    catalog = sqlite3.connect(root / "db" / "meta.sqlite")
    catalog.execute("UPDATE TableFiles SET row_count = 7 WHERE table_id = 'ip' AND file_type IN (1, 4)")
    catalog.commit()
    catalog.close()
    store = open_store(root)
    assert content(store) == {k: bag(*v) for k, v in expected.items()}
    assert [(f.severity.value, f.code) for f in store.findings] == [("info", "row-count-differs")]


def test_files_below_a_secondary_root_are_asked_for_and_found(
    dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]], tmp_path: Path
) -> None:
    _, root, expected = dated
    second = tmp_path / "second"
    moved = sorted((root / "db" / "tables" / "ip" / str(DATE)).iterdir())[0]
    place = second / "tables" / "ip" / str(DATE)
    place.mkdir(parents=True)
    moved.rename(place / moved.name)
    (finding,) = open_store(root).findings
    assert finding.code == "segment-missing" and "--secondary" in finding.message
    assert content(open_store(root, secondary=[second])) == {k: bag(*v) for k, v in expected.items()}
