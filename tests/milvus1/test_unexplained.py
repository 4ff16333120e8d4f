"""Is this the catalog of these files: what the folders hold and the catalog does not describe, and the other way round."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, pieces_bag, rows
from support.command import call
from support.real import copy_store, truth

from milvus_offline.milvus1.catalog.columns import SCHEMA
from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.unexplained import headline
from milvus_offline.model import Severity

NEW, RAW, TO_DELETE, NEW_MERGE = FileType.NEW, FileType.RAW, FileType.TO_DELETE, FileType.NEW_MERGE


def sql(root: Path, *statements: str) -> None:
    with sqlite3.connect(root / "db/meta.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def orphans(store: object) -> dict[str, object]:
    found, _ = collect(store, ["orphans"])  # type: ignore[arg-type]
    return {s.schema.name: pieces_bag(s.pieces) for s in found}


# Tables that the catalog has lost ----------------------------------------------------------------------------------------


def test_live_rows_of_a_table_that_is_not_there_are_told_and_salvaged(b: StoreBuilder) -> None:
    b.collection("lost")
    b.segment("lost", rows(1, 2, 3), deleted=[0])
    b.segment("lost", rows(7), TO_DELETE)
    b.segment("c", rows(4))
    b.tables = [t for t in b.tables if t["table_id"] != "lost"]
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(4))}
    assert [(f.code, f.where, f.rows) for f in store.findings] == [("table-missing", "lost", 2)]
    assert orphans(store) == {"lost": bag(rows(2, 3))}


def test_files_of_a_dropped_collection_wait_for_their_end(b: StoreBuilder) -> None:
    """Its row goes first, its files stay for seconds, or for good on a stopped server (§3.5): nothing to worry about."""
    b.collection("gone")
    b.segment("gone", rows(1, 2), TO_DELETE)
    b.tables = [t for t in b.tables if t["table_id"] != "gone"]
    store = open_store(b.write())
    assert codes(store) == []
    found, _ = collect(store, ["dropped"])
    assert [(s.kind, s.schema.name, pieces_bag(s.pieces)) for s in found] == [("dropped", "gone", bag(rows(1, 2)))]


def test_the_catalog_of_a_real_store_that_lost_a_collection(tmp_path: Path) -> None:
    root = copy_store("flat_basic", tmp_path)
    sql(root, "DELETE FROM Tables WHERE table_id = 'books'")
    store = open_store(root)
    assert [(f.code, f.where, f.rows) for f in store.findings] == [("table-missing", "books", 4707)]
    assert orphans(store) == {"books": truth("flat_basic")["books", "_default"]}


# Folders that the catalog has never known ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["autoid_parts", ""])
def test_an_older_catalog_and_a_new_empty_one(kept: str, tmp_path: Path) -> None:
    root = copy_store("partitions", tmp_path)
    known = f"SELECT table_id FROM Tables WHERE table_id = '{kept}' OR (owner_table = '{kept}' AND owner_table != '')"
    sql(
        root,
        f"DELETE FROM TableFiles WHERE table_id NOT IN ({known})",
        f"DELETE FROM Tables WHERE table_id NOT IN ({known})",
    )
    for file in (root / "wal").iterdir():
        file.unlink()
    expected = sum(b.total() for (name, _), b in truth("partitions").items() if name != kept)
    store = open_store(root)
    assert sum(f.rows or 0 for f in store.findings if f.code == "folder-unknown") == expected
    result = call("inspect", root)
    assert result.code == 3
    text = " ".join(result.out.split())  # wherever the lines break
    assert text.startswith(f"This catalog is not that of these files, or not all of it: {expected:,} rows")
    assert "--catalog (mysql://" in text and "--no-catalog" in text and "--salvage" in text
    assert sum(b.total() for b in orphans(store).values()) == expected  # type: ignore[attr-defined]


def test_a_catalog_without_tables_beside_no_folders_is_only_empty(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    store = open_store(b.write())
    assert codes(store) == [] and headline(store.findings) is None


@pytest.mark.parametrize("name", ["crash_wal", "crash_tags", "crash_wal_partial", "crash_wal_v081"])
@pytest.mark.parametrize("folders", ["kept", "lost"])
def test_a_new_empty_catalog_of_a_log(name: str, folders: str, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    sql(root, "DELETE FROM TableFiles", "DELETE FROM Tables")
    if folders == "lost":
        shutil.rmtree(root / "db/tables", ignore_errors=True)  # git knows no empty folders
    found = {f.code: f for f in open_store(root).findings}
    assert found["log-unknown"].severity is Severity.WARNING and found["log-unknown"].rows
    result = call("export", root, tmp_path / "out")
    assert result.code == 3
    assert "in the log are not in it" in " ".join(call("inspect", root).out.split()[:40])


def test_a_log_of_which_everything_was_dropped_is_no_reason_to_worry(tmp_path: Path) -> None:
    """A restarted server removes the last rows of dropped collections with their folders, and leaves their records (§3.5)."""
    b = StoreBuilder(tmp_path / "s")
    b.wal.insert("gone", rows(1, 2, 3))
    root = b.write()
    assert [(f.code, f.severity, f.rows) for f in open_store(root).findings] == [("log-unknown", Severity.INFO, 3)]
    result = call("inspect", root)
    assert result.code == 0 and "not that of these files" not in result.out


def test_unfinished_segments_of_unknown_tables_are_nothing(b: StoreBuilder) -> None:
    """A crash in the middle of a flush, then a drop: without deleted_docs it was never whole (§3.3)."""
    made = b.folder("dropped_later", b.new_id(), rows(1, 2))
    made.deleted.unlink()
    assert codes(open_store(b.write())) == []


# Segments of known tables that the catalog does not list ----------------------------------------------------------------------


def test_a_segment_whose_row_is_gone(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 2))
    b.folder("c", b.new_id(), rows(3, 4, 5))
    b.segment("c", rows(6))
    store = open_store(b.write())
    assert [(f.code, f.rows) for f in store.findings] == [("segment-unknown", 3)]
    assert orphans(store) == {"c": bag(rows(3, 4, 5))}


def test_a_merge_that_a_restart_forgot_is_no_loss_though_rows_were_deleted_since(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 2))
    b.segment("c", rows(3), deleted=[0])
    b.folder("c", b.new_id(), rows(1, 2, 3))
    b.segment("c", rows(9))
    assert codes(open_store(b.write())) == []


def test_a_flush_that_a_restart_forgot_is_in_the_log(b: StoreBuilder) -> None:
    """Its row was NEW and went; the log brings the rows back into memory, and the server was killed once more."""
    b.folder("c", b.new_id(), rows(1, 2, 3))
    b.segment("c", rows(), NEW)
    b.wal.insert("c", rows(1, 2, 3))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3))}
    assert codes(store) == ["wal-rows"]


def test_a_segment_that_was_live_for_sure(b: StoreBuilder) -> None:
    """Deletes are applied to live segments only: half of its ids are elsewhere, and yet its row is missing."""
    b.segment("c", rows(1, 2))
    b.folder("c", b.new_id(), rows(2, 3, 4), deleted=[2])
    b.segment("c", rows(6))
    assert [(f.code, f.rows) for f in open_store(b.write()).findings] == [("segment-unknown", 2)]


def test_a_segment_that_was_compacted_away_while_its_index_was_built(b: StoreBuilder) -> None:
    """A crash leaves the index's row behind, and with it the folder (§3.1, §3.5)."""
    b.segment("c", rows(range(5)), (FileType.NEW_INDEX,), deleted=[2])
    b.segment("c", rows(0, 1, 3, 4))
    assert codes(open_store(b.write())) == []


def test_a_segment_of_which_the_catalog_has_lost_all_but_the_index_being_built(b: StoreBuilder) -> None:
    b.segment("c", rows(range(5)), (FileType.NEW_INDEX,), deleted=[2])
    b.segment("c", rows(100))
    store = open_store(b.write())
    assert [(f.code, f.rows) for f in store.findings] == [("segment-unknown", 4)]
    assert orphans(store) == {"c": bag(rows(0, 1, 3, 4))}


def test_segments_of_a_namesake_that_was_dropped(b: StoreBuilder) -> None:
    old = b.new_id()
    b.folder("c", old, rows(1, 2))
    b.tables[0]["created_on"] = int(b.new_id()) // 1000
    b.segment("c", rows(6))
    assert codes(open_store(b.write())) == []


def test_forty_copies_of_live_rows_are_compared_in_one_reading(b: StoreBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_offline.milvus1.segment import files

    live = b.segment("c", rows(range(1000)))
    for i in range(40):
        b.folder("c", b.new_id(), rows(i))
    b.segment("c", rows(5000))
    read = []
    original = files.read_columns
    monkeypatch.setattr(files, "read_columns", lambda c, *a: (read.append(c[-1].path), original(c, *a))[1])
    assert codes(open_store(b.write())) == []
    assert read.count(str(live.raw)) == 1


def test_what_is_read_has_the_columns_that_are_written() -> None:
    assert [c.name for c in SCHEMA["Environment"]] == ["global_lsn"]


def test_a_table_in_memory_that_is_not_in_the_catalog(b: StoreBuilder) -> None:
    """Its segment's row is NEW; a drop would have put it aside (§3.3)."""
    b.collection("late")
    b.segment("late", rows(), NEW)
    b.wal.insert("late", rows(1, 2))
    b.tables[-1]["table_id"] = "mate"
    store = open_store(b.write())
    assert ("table-missing", "late") in {(f.code, f.where) for f in store.findings}
    assert [(s.kind, s.rows) for s in collect(store, ["dropped"])[0]] == [("dropped", 2)]


def test_a_segment_of_which_only_an_index_is_listed(b: StoreBuilder) -> None:
    """Its raw row is gone; where it was merged, its rows are elsewhere."""
    b.segment("c", rows(1, 2), FileType.NEW_INDEX)
    b.segment("c", rows(5, 6), FileType.NEW_INDEX)
    b.segment("c", rows(6, 5, 7))
    found = open_store(b.write()).findings
    assert [(f.code, f.rows) for f in found] == [("segment-unknown", 2)]


@pytest.mark.parametrize("type", [RAW, NEW])
def test_a_partition_of_a_dropped_collection_whose_files_are_not_put_aside(b: StoreBuilder, type: int) -> None:
    """A drop goes on with the partitions; where it did not, the collection's mark may be a damage."""
    table = b.partition("c", "p")["table_id"]
    b.segment(table, rows(1, 2), type)
    b.tables[0]["state"] = 1
    found = open_store(b.write()).findings
    assert [(f.code, f.rows) for f in found if f.severity.value == "warning"] == [
        ("drop-half-done", 2 if type == RAW else None)
    ]


@pytest.mark.parametrize(("tag", "whole"), [("p3", True), ("p3", False), ("elsewhere", True)])
def test_a_partition_whose_rows_were_logged_under_another_tag(tag: str, whole: bool, b: StoreBuilder) -> None:
    """One byte differs, or all of the log is here, so that the partition's own record would be."""
    if not whole:
        b.wal.next_file()
    table = b.partition("c", "p1")
    b.segment(table["table_id"], rows(1, 2))
    table["flush_lsn"] = b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2), "p1")
    root = b.write()
    assert codes(open_store(root)) == []
    sql(root, f"UPDATE Tables SET partition_tag = '{tag}' WHERE partition_tag = 'p1'")
    found = open_store(root).findings
    assert [(f.code, f.where) for f in found] == [("catalog-value", f"c/{tag}")]


def test_rows_that_a_client_put_into_another_partition_later(b: StoreBuilder) -> None:
    """p1 was dropped, and p3 made for the same rows: its own record is in the log."""
    table = b.partition("c", "p3")
    b.segment(table["table_id"], rows(1, 2))
    b.wal.insert("c", rows(1, 2), "p1")
    table["flush_lsn"] = b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2), "p3")
    assert codes(open_store(b.write())) == []


# Segments that were put aside ----------------------------------------------------------------------------------------------


def merged(b: StoreBuilder) -> None:
    """Two sources of a merge, and a segment that was flushed since."""
    for ids in (range(1, 5), range(5, 9)):
        b.segment("c", rows(ids), TO_DELETE)
    b.segment("c", rows(range(1, 9)))
    b.segment("c", rows(20, 21))


def test_a_live_segment_whose_row_says_that_it_was_put_aside(b: StoreBuilder) -> None:
    """One bit of its file_type: no later segment has its rows."""
    merged(b)
    b.files[2]["file_type"] = TO_DELETE
    store = open_store(b.write())
    # the sources are in the merged segment, whatever its row says
    assert [(f.code, f.where.split("/")[0], f.rows) for f in store.findings] == [("put-aside-alone", "c", 8)]
    assert content(store) == {("c", "_default"): bag(rows(20, 21))}


def test_sources_of_merges_are_explained_though_most_rows_were_deleted_since(b: StoreBuilder) -> None:
    merged(b)
    b.segment("c", rows(range(1, 9)), TO_DELETE, deleted=range(7))
    b.segment("c", rows(8, 30, 31))
    assert codes(open_store(b.write())) == []


def test_a_source_whose_merged_segment_cannot_be_read_may_be_explained(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 2), TO_DELETE)
    b.segment("c", rows(1, 2)).ids.unlink()
    assert "put-aside-alone" not in codes(open_store(b.write()))


@pytest.mark.parametrize("name", ["flat_basic", "partitions", "deletes_cleaned", "indexed"])
def test_each_live_segment_of_a_real_store_called_put_aside(name: str, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    shutil.rmtree(root / "wal")  # its log would bring the rows back
    with sqlite3.connect(root / "db/meta.sqlite") as connection:
        live = connection.execute(
            "SELECT id, segment_id FROM TableFiles WHERE file_type IN (1, 2) AND row_count > 0 ORDER BY id"
        ).fetchall()
    connection.close()
    for number, segment_id in live:
        sql(root, f"UPDATE TableFiles SET file_type = 4 WHERE id = {number}")
        told = {f.where.split("/")[1] for f in open_store(root).findings if f.code == "put-aside-alone"}
        assert told == {segment_id}
        sql(root, f"UPDATE TableFiles SET file_type = 1 WHERE id = {number}")
