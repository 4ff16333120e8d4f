"""Salvaging a catalog from pages: undamaged files against SQLite itself, damaged ones against what must survive."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from milvus_offline.errors import DamageError
from milvus_offline.milvus1.catalog import pages as sqlitepages
from milvus_offline.milvus1.catalog.columns import COLUMNS
from milvus_offline.milvus1.catalog.pages import ReadableTables, read_pages

CATALOGS = Path(__file__).parent.parent.parent.parent / "fixtures" / "catalogs"
STORES = sorted(p.name for p in CATALOGS.iterdir() if p.is_dir())


def truth(folder: Path, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What SQLite reads, on a copy."""
    copy = scratch / "truth"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    connection = sqlite3.connect(copy / "meta.sqlite")
    connection.row_factory = sqlite3.Row
    names = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'") if r[0] in COLUMNS]
    result = {n: [dict(r) for r in connection.execute(f"SELECT * FROM {n}")] for n in names}
    connection.close()
    return result


def synthetic(folder: Path, files: int = 400, page_size: int = 512, encoding: str = "UTF-8", wal: bool = False) -> Path:
    """A catalog with interior pages, overflow pages, negative and large numbers, and any text."""
    path = folder / "meta.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA page_size={page_size}")
    connection.execute(f"PRAGMA encoding='{encoding}'")
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
    kinds = {t: [c + (" INTEGER PRIMARY KEY" if c == "id" else "") for c in layouts[0]] for t, layouts in COLUMNS.items()}
    for table, columns in kinds.items():
        connection.execute(f"CREATE TABLE {table}({', '.join(columns)})")
    connection.execute("BEGIN")
    for i in range(files):
        name = str(10**18 + i)
        row = (i * 3 + 1, "c", name, 1, name, 1, (-1) ** i * 2 ** (i % 63), i, 10**15 + i, 127, 128, -32769)
        connection.execute(f"INSERT INTO TableFiles VALUES ({', '.join('?' * 12)})", row)
    for i, tag in enumerate(["", "größe", "🐟", "x" * 9000, "quo'te\n"]):
        row = (i + 1, f"t{i}", 0, 8, -1, 2, 1 << 40, 1, "{" + " " * i * 700 + "}", 1, "", tag, "1.1.1", i)
        connection.execute(f"INSERT INTO Tables VALUES ({', '.join('?' * 14)})", row)
    connection.execute("INSERT INTO Environment VALUES (9007199254740993)")
    connection.execute("INSERT INTO Fields VALUES ('c', 'f', 20, '{}')")
    connection.execute("COMMIT")
    if wal:
        keep = folder / "keep"
        keep.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(folder / f"meta.sqlite{suffix}", keep)
    connection.close()
    if wal:
        (folder / "meta.sqlite").unlink()
        for suffix in ("", "-wal"):
            shutil.move(keep / f"meta.sqlite{suffix}", folder)
        keep.rmdir()
    return path


def patch(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda r: r["id"])


# Undamaged ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_undamaged_catalogs_give_the_rows_of_sqlite(store: str, tmp_path: Path) -> None:
    expected = truth(CATALOGS / store, tmp_path)
    assert {"Tables", "TableFiles", "Environment"} <= set(expected)
    readable = read_pages(CATALOGS / store / "meta.sqlite")
    assert readable.tables == expected
    assert set(readable.walked) == set(expected)
    assert (readable.scanned, readable.unreadable, readable.notes) == ((), 0, [])


@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
@pytest.mark.parametrize("wal", [False, True])
def test_every_page_size_and_encoding(page_size: int, encoding: str, wal: bool, tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    path = synthetic(folder, page_size=page_size, encoding=encoding, wal=wal)
    assert path.with_name("meta.sqlite-wal").exists() == wal
    expected = truth(folder, tmp_path)
    assert len(expected["TableFiles"]) == 400
    readable = read_pages(path)
    assert readable.tables == expected
    assert (readable.scanned, readable.unreadable, readable.notes) == ((), 0, [])


def test_the_source_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    path = synthetic(folder, wal=True)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    read_pages(path)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before


# Damaged --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["indexed", "partitions"])
def test_without_the_first_page_everything_is_found(store: str, tmp_path: Path) -> None:
    expected = truth(CATALOGS / store, tmp_path)
    path = tmp_path / "meta.sqlite"
    path.write_bytes((CATALOGS / store / "meta.sqlite").read_bytes())
    patch(path, 0, bytes(4096))
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT * FROM Tables").fetchall()
    readable = read_pages(path)
    assert readable.walked == ()
    for table in ("Tables", "TableFiles", "Environment"):
        assert readable.tables[table] == expected[table]
    assert readable.notes == [
        "the header of the database is damaged",
        "rows of Tables, TableFiles, Environment come from single pages: some may be missing or out of date",
        "1 cells or pages could not be read",
    ]


def test_a_lost_root_page_costs_no_row(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    expected = truth(tmp_path, tmp_path)
    connection = sqlite3.connect(path)
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'TableFiles'").fetchone()[0]
    connection.close()
    patch(path, (root - 1) * 512, bytes(512))
    readable = read_pages(path)
    assert readable.tables == expected
    assert readable.scanned == ("TableFiles",)
    assert readable.walked == ("Tables", "Environment", "Fields")


def test_one_lost_leaf_costs_its_rows_only(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    expected = truth(tmp_path, tmp_path)
    raw = path.read_bytes()
    leaf = next(
        n
        for n in range(5, len(raw) // 512)
        if raw[n * 512] == 13 and str(10**18 + 100).encode() in raw[n * 512 : n * 512 + 512]
    )
    on_leaf = int.from_bytes(raw[leaf * 512 + 3 : leaf * 512 + 5], "big")
    patch(path, leaf * 512, b"\xff" * 512)
    readable = read_pages(path)
    got = readable.tables["TableFiles"]
    assert len(got) == 400 - on_leaf
    assert all(row in expected["TableFiles"] for row in got)
    assert readable.tables["Tables"] == expected["Tables"]
    assert readable.unreadable == 1


def test_schema_text_damaged(tmp_path: Path) -> None:
    path = synthetic(tmp_path, page_size=4096)
    expected = truth(tmp_path, tmp_path)
    raw = path.read_bytes()
    patch(path, raw.index(b"TableFiles"), b"TubleFiles")
    patch(path, raw.index(b"flush_lsn"), b"flusX_lsn")
    assert read_pages(path).tables == expected


def test_rows_of_freed_pages_stay_dead(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA secure_delete=OFF")
    connection.execute("DELETE FROM TableFiles WHERE id > 30")
    connection.commit()
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'TableFiles'").fetchone()[0]
    connection.close()
    expected = truth(tmp_path, tmp_path)["TableFiles"]
    assert len(expected) == 10
    assert read_pages(path).tables["TableFiles"] == expected
    assert str(10**18 + 300).encode() in path.read_bytes()
    damaged = path.read_bytes()[(root - 1) * 512]
    assert damaged in (5, 13)
    patch(path, (root - 1) * 512, b"\x01")
    ids = {row["id"] for row in read_pages(path).tables.get("TableFiles", [])}
    assert ids <= {row["id"] for row in expected}


def test_a_cycle_in_a_tree_ends(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    raw = path.read_bytes()
    for number in range(1, len(raw) // 512):
        if raw[number * 512] == 5:
            patch(path, number * 512 + 8, (number + 1).to_bytes(4, "big"))
    readable = read_pages(path)
    assert readable.unreadable > 0
    assert len(readable.tables["TableFiles"]) == 400


def test_a_damaged_frame_hides_only_itself(tmp_path: Path) -> None:
    shutil.copytree(CATALOGS / "crash_rand_3", tmp_path, dirs_exist_ok=True)
    expected = truth(CATALOGS / "crash_rand_3", tmp_path)
    wal = tmp_path / "meta.sqlite-wal"
    frames = wal.stat().st_size // 4120
    seen = []
    for number in range(frames):
        at = 32 + number * 4120 + 24 + 2000
        original = wal.read_bytes()[at : at + 1]
        patch(wal, at, bytes([original[0] ^ 1]))
        readable = read_pages(tmp_path / "meta.sqlite")
        patch(wal, at, original)
        assert readable.notes[0] == "1 frames of the -wal are damaged and left out: rows may be out of date"
        seen.append(readable.tables == expected)
    assert sum(seen) > frames // 2  # most frames were replaced by later ones
    assert read_pages(tmp_path / "meta.sqlite").tables == expected


@pytest.mark.parametrize("at", [0, 8, 16, 24])
def test_a_damaged_wal_header(at: int, tmp_path: Path) -> None:
    shutil.copytree(CATALOGS / "crash_dup", tmp_path, dirs_exist_ok=True)
    expected = truth(CATALOGS / "crash_dup", tmp_path)
    patch(tmp_path / "meta.sqlite-wal", at, b"\x5a\x5a\x5a\x5a")
    readable = read_pages(tmp_path / "meta.sqlite")
    assert "the header of the -wal is damaged" in readable.notes
    assert {t: r for t, r in readable.tables.items() if r} == {t: r for t, r in expected.items() if r}


def test_the_database_alone_without_its_wal(tmp_path: Path) -> None:
    path = tmp_path / "meta.sqlite"
    path.write_bytes((CATALOGS / "crash_dup" / "meta.sqlite").read_bytes())
    readable = read_pages(path)
    assert readable.tables == {}
    assert readable.notes == ["nothing is left of Tables and TableFiles"]
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert read_pages(empty).tables == {}
    only_wal = read_pages(empty, CATALOGS / "crash_dup" / "meta.sqlite-wal")
    assert only_wal.tables == truth(CATALOGS / "crash_dup", tmp_path)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlitepages, "MAX_FILE", 5000)
    with pytest.raises(DamageError, match="expected a catalog of at most 5000 bytes, found 24576"):
        read_pages(CATALOGS / "indexed" / "meta.sqlite")


def check_shape(readable: ReadableTables) -> None:
    for table, rows in readable.tables.items():
        assert table in COLUMNS
        for row in rows:
            assert set(row) in [set(layout) for layout in COLUMNS[table]]
            assert all(isinstance(v, (int, str, type(None))) for v in row.values())


@pytest.mark.parametrize("store", STORES)
def test_any_damage_is_survived(store: str, tmp_path: Path) -> None:
    generator = random.Random(store)
    originals = {p.name: p.read_bytes() for p in (CATALOGS / store).iterdir()}
    expected = truth(CATALOGS / store, tmp_path)
    kept = total = 0
    for _ in range(60):
        for name, original in originals.items():
            raw = bytearray(original)
            for _ in range(generator.choice((1, 1, 4, 40))):
                kind = generator.randrange(4)
                at = generator.randrange(len(raw))
                if kind == 0:
                    raw[at] ^= 1 << generator.randrange(8)
                elif kind == 1:
                    raw[at : at + 4] = generator.randbytes(min(4, len(raw) - at))
                elif kind == 2:
                    size = min(generator.choice((16, 512, 4096)), len(raw) - at)
                    raw[at : at + size] = bytes(size)
                else:
                    at = generator.randrange(128)  # headers are hit more often
                    raw[at : at + 1] = generator.randbytes(1)
            if generator.random() < 0.1:
                del raw[generator.randrange(len(raw)) :]
            (tmp_path / name).write_bytes(bytes(raw))
        readable = read_pages(tmp_path / "meta.sqlite")
        check_shape(readable)
        identities = {(r["table_id"], r["file_id"]) for r in readable.tables.get("TableFiles", [])}
        kept += sum((r["table_id"], r["file_id"]) in identities for r in expected["TableFiles"])
        total += len(expected["TableFiles"])
    assert kept > total // 4


def test_noise_is_survived(tmp_path: Path) -> None:
    generator = random.Random(3)
    path = tmp_path / "meta.sqlite"
    for _ in range(100):
        noise = bytearray(generator.randbytes(generator.randrange(20000)))
        noise[: 16 * generator.randrange(2)] = b"SQLite format 3\0" * generator.randrange(2)
        path.write_bytes(bytes(noise))
        (tmp_path / "meta.sqlite-wal").write_bytes(b"\x37\x7f\x06\x82" + generator.randbytes(generator.randrange(9000)))
        check_shape(read_pages(path))
