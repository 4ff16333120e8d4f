"""Stores of 0.5 and 0.6: raw files are Faiss files, written here by the real faiss-cpu (FORMAT §8)."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections import Counter
from pathlib import Path

import faiss
import numpy as np
import pytest
from support.builder import StoreBuilder, bag, codes, content, rows, salvaged

from milvus_offline.cli import run
from milvus_offline.errors import UsageError
from milvus_offline.milvus1.layout import MetricType
from milvus_offline.milvus1.nocatalog import Assumptions
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect, survey
from milvus_offline.milvus1.store import Store
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


def put(path: Path, kind: int, blob: bytes, name: bytes = b"IVF") -> None:
    """A container of the given type with one part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<iQ", kind, len(name)) + name + struct.pack("<q", len(blob)) + blob)


def raw_file(path: Path, rows: Batch, *, inner_product: bool = False) -> None:
    """A container of type 1 with the blob `IVF`: an IDMap over a flat index with the user's ids."""
    dimension = rows.vectors.shape[1]
    index = faiss.IndexIDMap(faiss.IndexFlatIP(dimension) if inner_product else faiss.IndexFlatL2(dimension))
    index.add_with_ids(rows.vectors, rows.ids)
    put(path, 1, faiss.serialize_index(index).tobytes())


def index_file(path: Path, rows: Batch, kind: str = "IVF4,Flat") -> None:
    """What a server of 0.5/0.6 builds from a raw file: the user's ids are inside."""
    dimension = rows.vectors.shape[1]
    if kind == "NSG":
        head = struct.pack("<QQq", len(rows.ids), dimension, 0)
        put(path, 12, head + rows.vectors.tobytes() + rows.ids.tobytes() + bytes(8 * len(rows.ids)), b"NSG")
        return
    index = faiss.index_factory(dimension, kind)
    index.train(np.random.default_rng(0).standard_normal((400, dimension)).astype("f4"))
    index.add_with_ids(rows.vectors, rows.ids)
    put(path, 8 if "SQ8" in kind else 2, faiss.serialize_index(index).tobytes())


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
            if file_type != 3:  # an index file holds the rows of the raw file before it
                rows = some(1000 * number, 50 + number)
            file_id = f"15{number:017d}"
            catalog.execute(
                "INSERT INTO TableFiles (table_id, engine_type, file_id, file_type, row_count, date) VALUES (?, 1, ?, ?, ?, ?)",
                (table_id, file_id, file_type, len(rows.ids), DATE),
            )
            path = db / "tables" / table_id / str(DATE) / file_id
            if file_type == 3:
                index_file(path, rows)
            else:
                raw_file(path, rows, inner_product=metric == 2)
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


# Raw files that are lost, and index files that still hold their rows ---------------------------------------------------


class Dated:
    """A store of 0.6 with one collection `c`, file by file."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.rows: list[tuple[object, ...]] = []

    def file(self, file_type: int, rows: Batch, kind: str = "raw", *, row_count: int | None = None) -> Path:
        file_id = f"15{len(self.rows) + 1:017d}"
        path = self.root / "db" / "tables" / "c" / str(DATE) / file_id
        raw_file(path, rows) if kind == "raw" else index_file(path, rows, kind)
        self.rows.append((file_id, file_type, len(rows.ids) if row_count is None else row_count))
        return path

    def write_dump(self) -> tuple[Path, Path]:
        """With the catalog in MySQL."""
        dump = self.root.with_suffix(".sql")
        files = "".join(f"INSERT INTO `TableFiles` VALUES (1,'c',1,'{i}',{t},0,{n},0,0,{DATE});\n" for i, t, n in self.rows)
        dump.write_text(
            "-- MySQL dump 10.13\n"
            + "".join(
                f"CREATE TABLE `{name}` (\n" + ",\n".join(f"  `{c.split()[0]}` text" for c in columns.split(", ")) + "\n);\n"
                for name, columns in (("Tables", TABLES["0.6"]), ("TableFiles", FILES))
            )
            + f"INSERT INTO `Tables` VALUES (1,'c',0,8,0,2,1024,2,64,1,'','','0.6.0');\n{files}-- Dump completed\n"
        )
        return self.root, dump

    def write(self) -> Path:
        catalog = sqlite3.connect(self.root / "db" / "meta.sqlite")
        catalog.execute(f"CREATE TABLE 'Tables' ({TABLES['0.6']})")
        catalog.execute(f"CREATE TABLE 'TableFiles' ({FILES})")
        catalog.execute("INSERT INTO Tables (table_id, state, dimension, engine_type, metric_type) VALUES ('c', 0, 8, 2, 1)")
        catalog.executemany(
            f"INSERT INTO TableFiles (table_id, file_id, file_type, row_count, date) VALUES ('c', ?, ?, ?, {DATE})", self.rows
        )
        catalog.commit()
        catalog.close()
        return self.root


def found_in(root: Path) -> tuple[Counter[tuple[int, bytes]], list[tuple[str, str, int | None]]]:
    store = open_store(root)
    return content(store)["c", "_default"], [(f.severity.value, f.code, f.rows) for f in store.findings]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["IVF4,Flat", "NSG"])
@pytest.mark.parametrize("damage", ["missing", "no ids", "some ids", "rubbish"])
def test_a_lost_raw_file_comes_out_of_its_index(kind: str, damage: str, tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b, c = some(1000, 40), some(2001, 50), some(3000, 50)
    d.file(7, a)
    d.file(3, a, kind)
    lost = d.file(7, b)
    d.file(3, b, kind)
    d.file(1, c)
    root = d.write()
    assert found_in(root) == (bag(a, b, c), [])
    if damage == "missing":
        lost.unlink()
    elif damage == "rubbish":
        lost.write_bytes(bytes(1000))
    else:
        os.truncate(lost, lost.stat().st_size - (100 if damage == "some ids" else 500))
    assert found_in(root) == (bag(a, b, c), [("warning", "vectors-restored", 50)])
    assert run(["export", str(root), str(tmp_path / "out")]) == 3
    assert run(["verify", str(tmp_path / "out"), "--against", str(root)]) == 3
    assert run(["verify", str(root)]) == 3


def test_an_index_that_is_cut_too_gives_what_it_has(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a = some(1000, 40)
    raw, index = d.file(7, a), d.file(3, a, "NSG")
    root = d.write()
    os.truncate(raw, raw.stat().st_size - 8 * 25)
    os.truncate(index, 4 + 11 + 8 + 24 + 32 * 30)  # no ids in it, so its rows are of no use
    found, findings = found_in(root)
    assert found <= bag(a) and len(found) == 15
    assert findings == [("info", "index-unusable", None), ("error", "rows-lost", 25)]
    index_file(index, a)
    os.truncate(index, index.stat().st_size - 100)
    found, findings = found_in(root)
    assert found <= bag(a) and 15 < len(found) < 40
    assert findings == [("warning", "vectors-restored", len(found)), ("error", "rows-lost", 40 - len(found))]
    os.truncate(index, index.stat().st_size - 1100)
    found, findings = found_in(root)
    assert len(found) == 15 and findings == [("error", "rows-lost", 25)]


def test_rows_of_an_index_come_once(tmp_path: Path) -> None:
    """After a crash between two statements of MySQL: two index files of one raw file."""
    d = Dated(tmp_path)
    a, b = some(1000, 40), some(2001, 50)
    lost = d.file(7, a)
    d.file(3, a, "IVF4,Flat")
    d.file(3, a, "NSG")
    d.file(2, b)
    d.file(3, b, "IVF4,Flat")
    root = d.write()
    assert found_in(root) == (bag(a, b), [])
    lost.unlink()
    assert found_in(root) == (bag(a, b), [("warning", "vectors-restored", 40)])


def test_a_merge_between_two_statements_of_mysql(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b, c = some(1000, 40), some(2001, 50), some(3000, 60)
    both = Batch(np.concatenate([a.ids, b.ids]), np.concatenate([a.vectors, b.vectors]))
    d.file(4, a)
    source = d.file(1, b)
    d.file(1, c)
    target = d.file(5, both)
    d.file(5, c)  # its source is live: as if it were not there
    root, dump = d.write_dump()
    store = open_store(root, catalog=dump)
    assert content(store) == {("c", "_default"): bag(a, b, c)}
    assert [(f.severity.value, f.code, f.rows) for f in store.findings] == [("info", "merge-half-done", 90)]
    assert sorted(s.id for s in store["c"]["_default"].segments) == sorted([target.name, "1500000000000000003"])
    assert {s.kind for s in collect(store, ["all"])[0]} == set()  # all of it is live
    assert source.name not in {s.id for s in store["c"]["_default"].segments}
    os.truncate(target, target.stat().st_size - 8)
    assert content(open_store(root, catalog=dump)) == {("c", "_default"): bag(b, c)}
    assert found_in(d.write())[0] == bag(b, c)  # in SQLite the statements are one transaction


def test_an_index_without_a_raw_file_in_the_catalog(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b = some(1000, 40), some(2001, 50)
    d.file(1, a)
    d.file(3, b, "IVF4,Flat")
    assert found_in(d.write()) == (bag(a, b), [("warning", "raw-row-missing", 50)])


def test_what_no_index_holds_stays_lost(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b, c = some(1000, 40), some(2001, 50), some(3000, 60)
    d.file(7, a).unlink()
    d.file(3, a, "IVF4,SQ8")
    d.file(7, b).unlink()
    d.file(3, b, "IVF4,Flat").unlink()
    d.file(7, c, row_count=0).unlink()
    d.file(3, c, "IVF4,Flat")
    found, findings = found_in(d.write())
    assert found == bag(c)
    assert sorted(findings) == [
        ("error", "segment-missing", 40),
        ("error", "segment-missing", 50),
        ("info", "index-unusable", None),
        ("info", "index-unusable", None),
        ("warning", "vectors-restored", 60),
    ]


# Without a catalog -----------------------------------------------------------------------------------------------------


def without_catalog(root: Path, assumptions: Assumptions | None = None) -> Store:
    return open_store(root, without_catalog=assumptions or Assumptions())


def test_without_a_catalog_all_is_told_by_the_files(
    dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]], tmp_path: Path
) -> None:
    """Types cannot be seen: files that were NEW, NEW_MERGE or TO_DELETE come out too, as they hold rows of their own here."""
    version, root, _ = dated
    (root / "db" / "meta.sqlite").unlink()
    store = without_catalog(root)
    for name in ("l2", "ip"):
        schema = store[name].schema
        assert (schema.dimension, schema.metric_type, schema.index.type) == (8, name.upper(), "IVF_FLAT")
        assert len(store[name]["_default"].segments) == 7  # all but the index file
    if version == "0.6":
        places = Assumptions(places={"part one": ("l2", "tag/1")})
        assert set(without_catalog(root, places)["l2"]) == {"_default", "tag/1"}
    assert codes(store) == ["no-catalog"]
    assert run(["export", str(root), str(tmp_path / "out"), "--no-catalog"]) == 3
    assert run(["verify", str(tmp_path / "out"), "--against", str(root), "--no-catalog"]) == 3
    with pytest.raises(UsageError, match="its raw files have the metric IP"):
        without_catalog(root, Assumptions(metrics={"ip": MetricType.L2}))


def test_without_a_catalog_sources_of_a_merge_are_left_out(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b, c, e = some(1000, 40), some(2001, 50), some(3000, 60), some(4001, 20)
    d.file(1, a)
    d.file(1, b)
    d.file(1, Batch(np.concatenate([a.ids, b.ids]), np.concatenate([a.vectors, b.vectors])))
    d.file(1, c)
    d.file(1, e)
    d.file(3, c, "IVF4,Flat")
    cut = d.file(5, Batch(np.concatenate([e.ids, c.ids]), np.concatenate([e.vectors, c.vectors])))
    os.truncate(cut, cut.stat().st_size - 8 * 30)
    d.file(3, c, "IVF4,SQ8")
    store = without_catalog(d.root)
    assert content(store) == {("c", "_default"): bag(a, b, c, e)}
    assert [(f.severity.value, f.code, f.rows) for f in store.findings] == [
        ("warning", "no-catalog", None),
        ("info", "segment-contained", 40),
        ("info", "segment-contained", 50),
        ("warning", "segment-contained", 80),
        ("info", "index-unusable", None),
    ]


def test_without_a_catalog_lost_raw_files_come_out_of_their_index(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    a, b, c = some(1000, 40), some(2001, 50), some(3000, 60)
    d.file(7, a)
    d.file(3, a, "NSG")
    d.file(7, b).unlink()
    d.file(3, b, "IVF4,Flat")
    cut = d.file(7, c)
    os.truncate(cut, cut.stat().st_size - 1000)
    d.file(3, c, "IVF4,Flat")
    (cut.parent / "1500000000000000099").write_bytes(bytes(100))
    store = without_catalog(d.root)
    assert content(store) == {("c", "_default"): bag(a, b, c)}
    assert [(f.severity.value, f.code, f.rows) for f in store.findings] == [
        ("error", "segment-unreadable", None),
        ("warning", "no-catalog", None),
        ("warning", "vectors-restored", 60),
        ("warning", "raw-row-missing", 50),
    ]
    for file in cut.parent.iterdir():
        if int.from_bytes(file.read_bytes()[:4], "little") == 1:
            file.unlink()
    assert content(without_catalog(d.root)) == {("c", "_default"): bag(a, b, c)}


def test_files_of_0_6_beside_segments_are_named(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2))
    raw_file(b.root / "db" / "tables" / "c" / str(DATE) / "15", some(1000, 40))
    store = without_catalog(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2))} and "dated-files" in codes(store)


# Salvage ---------------------------------------------------------------------------------------------------------------


def test_rows_that_are_not_live_can_be_salvaged(tmp_path: Path) -> None:
    d = Dated(tmp_path)
    live, deleted, merging, flushing, orphan, copied = (some(1000 * n, 40 + n) for n in range(1, 7))
    d.file(1, Batch(np.concatenate([live.ids, copied.ids]), np.concatenate([live.vectors, copied.vectors])))
    d.file(4, deleted)
    d.file(4, copied)
    d.file(4, deleted, "IVF4,Flat")
    d.file(6, live, "IVF4,Flat")
    cut = d.file(5, merging)
    os.truncate(cut, cut.stat().st_size - 8 * 40)
    d.file(0, flushing)
    root = d.write()
    raw_file(cut.parent / "77", orphan)
    raw_file(cut.parent.parent.parent / "gone" / str(DATE) / "78", some(9000, 9, dimension=6), inner_product=True)
    (cut.parent / "79").write_bytes(bytes(9))
    store = open_store(root)
    assert content(store) == {("c", "_default"): bag(live, copied)} and codes(store) == []
    expected = {
        ("to-delete", "c", "_default"): bag(deleted),
        ("unfinished", "c", "_default"): bag(Batch(merging.ids[:3], merging.vectors[:3]), flushing),
        ("orphans", "c", "_default"): bag(orphan),
        ("orphans", "gone", "_default"): bag(some(9000, 9, dimension=6)),
    }
    assert salvaged(open_store(root), "all") == expected
    assert salvaged(open_store(root), "to-delete") == {k: v for k, v in expected.items() if k[0] == "to-delete"}
    found, notes = collect(store, ["all"])
    assert {s.schema.metric_type for s in found if s.schema.name == "gone"} == {"IP"}
    assert sorted((f.severity.value, f.code, f.rows) for f in notes) == [
        ("info", "rows-lost", 40),
        ("info", "salvage-copy", 46),
        ("info", "salvage-unreadable", None),
    ]
    assert {k: n for k, n in survey(store).items() if n} == {"to-delete": 42 + 46, "unfinished": 3 + 44, "orphans": 45 + 9}
    out = tmp_path / "out"
    assert run(["export", str(root), str(out), "--salvage", "all"]) == 0
    assert run(["verify", str(out)]) == 0
    assert (out / "salvage" / "to-delete" / "c" / "_default.h5").is_file()


def test_dropped_tables_of_0_6_can_be_salvaged(dated: tuple[str, Path, dict[tuple[str, str], list[Batch]]]) -> None:
    version, root, expected = dated
    catalog = sqlite3.connect(root / "db" / "meta.sqlite")
    catalog.execute("UPDATE Tables SET state = 1 WHERE table_id <> 'ip'")
    catalog.commit()
    catalog.close()
    found = salvaged(open_store(root), "dropped")
    partitions = {"_default", "tag/1"} if version == "0.6" else {"_default"}
    assert set(found) == {("dropped", "l2", p) for p in partitions}
    assert all(found["dropped", "l2", p] >= bag(*expected["l2", p]) for p in partitions)
