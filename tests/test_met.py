"""Stores as people bring them: real ones with one damage each, through the command line, and what is right for each."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.command import call, exported, fingerprint
from support.real import STORES, copy_store, truth


def sql(root: Path, *statements: str) -> None:
    with sqlite3.connect(root / "db/meta.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def live(root: Path) -> list[Path]:
    """Folders of the segments that the catalog serves."""
    with sqlite3.connect(root / "db/meta.sqlite") as connection:
        rows = connection.execute(
            "SELECT table_id, segment_id FROM TableFiles WHERE file_type IN (1, 2, 7) ORDER BY id"
        ).fetchall()
    connection.close()
    return [root / "db/tables" / table / segment for table, segment in rows]


def zero(path: Path, first: int = 0, count: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    last = len(data) if count is None else min(len(data), first + count)
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def export(root: Path, *options: object) -> tuple[int, Counter[Any], dict[str, Counter[str]]]:
    """Exit code, the rows of all partitions together, and how many findings of each code there are, by severity."""
    before, out = fingerprint(root), root.parent / "out"
    done = call("export", root, out, "--json", *options)
    assert fingerprint(root) == before and "Traceback" not in done.err
    rows: Counter[Any] = Counter()
    for (collection, _), found in exported(out).items():
        rows.update({(collection, *row): n for row, n in found.items()})
    shutil.rmtree(out)
    codes: dict[str, Counter[str]] = {"info": Counter(), "warning": Counter(), "error": Counter()}
    for f in done.json["findings"]:
        codes[f["severity"]][f["code"]] += f["rows"] or 0
    return done.code, rows, codes


def every(name: str) -> Counter[Any]:
    """All rows that the server had."""
    return Counter({(c, *row): n for (c, _), found in truth(name).items() for row, n in found.items()})


def verify(root: Path, *options: object) -> int:
    return call("verify", root, *options).code


@pytest.mark.parametrize(("name", "size", "rows"), [("deletes_cleaned", None, 7), ("indexed", 64, 42)], ids=["all", "begin"])
def test_deletes_zeroed(name: str, size: int | None, rows: int, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    for path in (root / "db/tables").rglob("deleted_docs"):
        if path.stat().st_size > 8:
            zero(path, 0, size)
    code, came, codes = export(root)
    assert came == every(name)
    assert (code, codes["warning"]["deleted-docs-damaged"]) == (3, rows)
    assert verify(root) == 4


def test_deletes_swapped(tmp_path: Path) -> None:
    root = copy_store("deletes_cleaned", tmp_path)
    first, second = [d for s in live(root) if (d := s / "deleted_docs").stat().st_size > 8][:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b), second.write_bytes(a)
    code, came, codes = export(root)
    assert (code, len(codes["warning"])) == (3, 2)
    assert came == every("deletes_cleaned")
    assert verify(root) == 4


def test_catalog_lost_a_table(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    sql(root, "DELETE FROM Tables WHERE table_id = 'books'")
    code, came, codes = export(root)
    assert (code, came.total(), codes["warning"]) == (3, 1050, {"table-missing": 4707})
    assert "--salvage orphans" in " ".join(call("inspect", root).out.split())


def foreign(root: Path, rows: int) -> None:
    """The folders hold so many rows that the catalog does not know: the first line and each command say so."""
    code, _, codes = export(root)
    assert (code, codes["warning"]["folder-unknown"]) == (3, rows)
    told = call("inspect", root)
    text = " ".join(told.out.split())
    assert told.code == 3 and text.startswith(f"This catalog is not that of these files, or not all of it: {rows:,} rows")
    assert all(way in text for way in ("--catalog (mysql://", "--no-catalog", "--salvage orphans"))
    assert verify(root) == 3


@pytest.mark.parametrize(("kept", "rows"), [("autoid_parts", 3576), ("", 3776)], ids=["older", "new and empty"])
def test_catalog_older_and_catalog_new_and_empty(kept: str, rows: int, tmp_path: Path) -> None:
    root = copy_store("partitions", tmp_path)
    known = f"SELECT table_id FROM Tables WHERE table_id = '{kept}' OR (owner_table = '{kept}' AND owner_table != '')"
    files, tables = (f"DELETE FROM {t} WHERE table_id NOT IN ({known})" for t in ("TableFiles", "Tables"))
    sql(root, files, tables)
    shutil.rmtree(root / "wal")
    foreign(root, rows)


def test_catalog_of_before_mysql(tmp_path: Path) -> None:
    """An old meta.sqlite with one forgotten collection still lies there."""
    root = copy_store("mysql", tmp_path)
    for path in (*root.glob("meta.*"), root / "server_config.yaml"):
        path.unlink(missing_ok=True)
    shutil.rmtree(root / "wal")
    old = STORES / "flat_basic/store/db"
    shutil.copy(old / "meta.sqlite", root / "db/meta.sqlite")
    sql(root, "DELETE FROM TableFiles WHERE table_id != 'books'", "DELETE FROM Tables WHERE table_id != 'books'")
    shutil.copytree(old / "tables/books", root / "db/tables/books")
    foreign(root, 5966)


def test_copied_while_running(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    shutil.rmtree(root / "wal")
    for folder in live(root):
        shutil.rmtree(folder)
    code, came, codes = export(root)
    assert (code, came) == (3, every("flat_basic"))
    assert not codes["error"] and set(codes["warning"]) == {"copied-while-running"}


def test_files_of_another_segment(tmp_path: Path) -> None:
    root = copy_store("dropped", tmp_path)
    shutil.rmtree(root / "wal")
    sizes: dict[int, list[Path]] = {}
    for folder in live(root):
        sizes.setdefault((folder / f"{folder.name}.uid").stat().st_size, []).append(folder)
    first, second = next(folders for folders in sizes.values() if len(folders) > 1)[:2]
    shutil.rmtree(first), shutil.copytree(second, first)
    code, came, codes = export(root)
    assert code == 3 and codes["error"]["files-of-another-segment"] > 0
    assert came.total() == every("dropped").total() - codes["error"]["files-of-another-segment"]
    assert verify(root) == 4


@pytest.mark.parametrize("name", ["._{0}", "{1} (1){2}", "{1}.sync-conflict-20210301-101010-ABCDEFG{2}"])
def test_second_file_of_a_copier(name: str, tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    for path in [p for folder in live(root) for p in folder.iterdir() if p.suffix in (".rv", ".uid")]:
        data = path.read_bytes()
        other = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60) if name.startswith("._") else data[: len(data) - 400]
        (path.parent / name.format(path.name, path.stem, path.suffix)).write_bytes(other)
    code, came, codes = export(root)
    assert (code, came, set(codes["info"])) == (0, every("flat_basic"), {"foreign-file"})


def test_longer_than_its_header(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    a, b = sorted(live(root))[:2]
    raw, ids = a / f"{a.name}.rv", b / f"{b.name}.uid"
    data = raw.read_bytes()
    raw.write_bytes(data[:5000] + b"Z" + data[5000:])
    ids.write_bytes(ids.read_bytes() + b"Z" * 100)
    code, _, codes = export(root)
    assert (code, codes["warning"]) == (3, {"file-longer": 5757})
    assert verify(root) == 4


@pytest.mark.parametrize(("name", "fill"), [("crash_wal", True), ("crash_rand_3", False)], ids=["zeros", "empty"])
def test_log_all_zero(name: str, fill: bool, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    for path in (*(root / "wal").glob("*.wal"), root / "wal/mxlog.meta"):
        path.write_bytes(bytes(path.stat().st_size) if fill else b"")
    code, _, codes = export(root)
    assert code == 3 and "wal-lacks-rows" in codes["warning"]


@pytest.mark.parametrize(
    ("name", "file", "size", "rows"),
    [("crash_wal", "*.wal", 4096, 65), ("flat_basic", "*.rv", 8 * 4096, 513)],
    ids=["log_with_zero_block", "disk_blocks_lost"],
)
def test_log_with_zero_block_and_disk_blocks_lost(name: str, file: str, size: int, rows: int, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    segments = [folder / f"{folder.name}.rv" for folder in live(root)]
    path = max((p for p in segments or root.rglob(file) if p.match(file)), key=lambda p: p.stat().st_size)
    zero(path, 8192, size)
    code, _, codes = export(root)
    assert (code, codes["error"]["blocks-lost"]) == (3, rows)
    out = tmp_path / "export"
    assert call("export", root, out).code == 3
    against = call("verify", out, "--against", root, "--json")
    assert (against.code, against.json["lost_rows"]) == (3, rows)
    done = call("verify", root, "--json")
    assert (done.code, done.json["lost_rows"]) == (4, rows)
    assert call("load", root, f"milvus1:{tmp_path / 'new'}").code == 3
    assert call("inspect", "--read", root).code == 3


def test_no_catalog_lost_vectors(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    shutil.rmtree(root / "wal"), (root / "db/meta.sqlite").unlink()
    for path in (root / "db/tables/auto_ids").rglob("*.rv"):
        path.unlink()
    done = call("inspect", "--no-catalog", root, "--json")
    assert done.code == 3
    assert [(f["code"], f["rows"]) for f in done.json["findings"] if f["severity"] == "error"] == [("collection-lost", 1050)]


def test_links_to_elsewhere(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    shutil.rmtree(root / "db")
    (root / "db").symlink_to(tmp_path / "mnt/milvus_data/db")
    done = call("inspect", root)
    assert done.code == 1 and "mnt/milvus_data/db, which" in done.err and "not mounted" in done.err


def test_tables_not_copied(tmp_path: Path) -> None:
    """One sentence, not one for each segment."""
    root = copy_store("flat_basic", tmp_path)
    shutil.rmtree(root / "db/tables"), shutil.rmtree(root / "wal")
    code, came, codes = export(root)
    assert (code, came.total(), codes["error"]) == (3, 0, {"tables-missing": 5757})


def test_a_password_in_the_address_of_a_catalog_is_not_repeated(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    for address, code in (("sqlite:///u:s3cret@h", 1), ("mysql:/u:s3cret@h/db", 2), ("milvus1://u:s3cret@h", 2)):
        done = call("inspect", root, "--catalog", address)
        assert done.code == code and "s3cret" not in done.out + done.err
