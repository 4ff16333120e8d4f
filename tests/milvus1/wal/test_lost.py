"""What a running 1.x server lost or kept by mistake (FORMAT §3.6, §17): brought back by the log or by folders, and told."""

from __future__ import annotations

from collections import Counter

import pytest
from support.builder import StoreBuilder, bag, codes, content, join, rows, salvaged

from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.store import Store

NEW, RAW, TO_DELETE, NEW_MERGE = FileType.NEW, FileType.RAW, FileType.TO_DELETE, FileType.NEW_MERGE
NOTHING: Counter[tuple[int, bytes]] = Counter()
ROOT = ("c", "_default")


def flush(b: StoreBuilder) -> None:
    """All tables, as the catalog has it after a flush of all."""
    for table in b.tables:
        table["flush_lsn"] = b.wal.position
    b.global_lsn = b.wal.position


def told(store: Store) -> list[tuple[str, str, int | None]]:
    return [(f.code, f.where, f.rows) for f in store.findings]


# A flush that failed as a whole -------------------------------------------------------------------------------------------


def test_rows_between_two_flushes_are_lost(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(3, 4, 5))
    b.wal.insert("c", rows(6))
    b.wal.insert("c", rows(7))
    b.segment("c", rows(7))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(range(1, 8)))}
    assert told(store) == [("flush-lost", "c/_default", 4)]


def test_deletes_after_the_failed_flush_count(b: StoreBuilder) -> None:
    """Those that the catalog calls flushed, and those that are still to be replayed."""
    b.wal.insert("c", rows(1))
    b.segment("c", rows(1))
    b.wal.insert("c", rows(2, 3, 4))
    b.wal.delete("c", [3])
    flush(b)
    b.wal.delete("c", [4])
    assert content(open_store(b.write())) == {ROOT: bag(rows(1, 2))}


def test_a_table_that_was_never_flushed_again(b: StoreBuilder) -> None:
    """Its flush_lsn stays behind, but global_lsn moves on, and a restarted server begins there."""
    b.collection("d")
    b.wal.insert("c", rows(1))
    b.wal.insert("d", rows(2))
    b.segment("d", rows(2))
    b.tables[1]["flush_lsn"] = b.global_lsn = b.wal.position
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1)), ("d", "_default"): bag(rows(2))}
    assert told(store) == [("flush-lost", "c/_default", 1)]


def test_all_that_a_partition_held_is_lost_with_what_is_known_to_be(b: StoreBuilder) -> None:
    """Nothing of it was flushed before; but rows logged before and after it were in memory with it, and it was there: a
    younger collection has an older row."""
    part = b.partition("c", "p")
    b.collection("d")
    b.wal.insert("d", rows(9))
    b.segment("d", rows(9))
    b.wal.insert("c", rows(1))
    b.segment("c", rows(1))
    b.wal.insert("c", rows(2))
    b.wal.insert("c", rows(3), "p")
    b.wal.insert("c", rows(4))
    b.wal.insert("c", rows(5), "p")
    b.segment(part["table_id"], rows(5))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 2, 4)), ("c", "p"): bag(rows(3, 5)), ("d", "_default"): bag(rows(9))}
    assert [t[:2] for t in told(store)] == [("flush-lost", "c/_default"), ("flush-lost", "c/p")]


def test_the_segment_in_memory_that_the_catalog_still_knows(b: StoreBuilder) -> None:
    """Nothing is after flush_lsn that it could hold: its rows were in the flush that failed."""
    b.wal.insert("c", rows(1, 2))
    b.file("c", b.new_id(), NEW)
    b.wal.insert("c", rows(3))
    b.segment("c", rows(3))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["flush-lost"]


def test_ids_that_the_server_gave_tell_the_time(b: StoreBuilder) -> None:
    b.tables[0].update(flag=1)
    made = b.tables[0]["created_on"] * 1000
    b.wal.insert("c", rows(made - 5, made - 4))  # those of a namesake
    b.wal.insert("c", rows(made + 5, made + 6))
    b.wal.insert("c", rows(made + 7))
    b.segment("c", rows(made + 7))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(made + 5, made + 6, made + 7))}
    assert told(store) == [("flush-lost", "c/_default", 2)]


def test_rows_of_a_dropped_namesake_are_not_lost(b: StoreBuilder) -> None:
    """A segment made before the collection holds rows that were logged later than these."""
    b.collection("d")
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("d", rows(3))
    b.segment("d", rows(3))
    b.tables[0]["created_on"] = int(b.new_id()) // 1000
    b.wal.insert("c", rows(4))
    b.segment("c", rows(4))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(4)), ("d", "_default"): bag(rows(3))}
    assert told(store) == []
    assert salvaged(store, "dropped") == {("dropped", "c", "_default"): bag(rows(1, 2))}


def test_rows_of_which_nothing_tells_whose_they_were_can_be_salvaged(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.segment("c", rows(3))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(3))}
    assert told(store) == []
    assert salvaged(store, "unseen") == {("unseen", "c", "_default"): bag(rows(1, 2))}


def test_the_last_call_of_a_file_may_never_have_been_acknowledged(b: StoreBuilder) -> None:
    """A server that was killed after it goes on in the next file."""
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2))
    b.wal.next_file()
    b.wal.insert("c", rows(3))
    b.segment("c", rows(1, 3))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 3))}
    assert told(store) == []
    assert salvaged(store, "unseen") == {("unseen", "c", "_default"): bag(rows(2))}


def test_equal_rows_are_counted(b: StoreBuilder) -> None:
    """Inserted twice, flushed once."""
    b.wal.insert("c", rows(3))
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(3, 1, 2))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 1, 2, 2, 3))}
    assert told(store) == [("flush-lost", "c/_default", 2)]


def test_another_vector_under_the_id_is_told_and_not_added(b: StoreBuilder) -> None:
    """The segment's row may be the older one, or a damaged one."""
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2))
    b.wal.insert("c", rows(2, salt=1))
    b.segment("c", join(rows(1), rows(2, salt=9)))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1), rows(2, salt=9))}
    assert told(store) == [("log-differs", "c/_default", 2)]
    assert salvaged(store, "unseen") == {("unseen", "c", "_default"): bag(rows(2), rows(2, salt=1))}


# Deletes that were lost ---------------------------------------------------------------------------------------------------


def test_a_lost_delete_is_carried_out(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2, 3, 4))
    made = b.segment("c", rows(1, 2, 3, 4))
    b.wal.delete("c", [2, 3])
    b.wal.delete("c", [4])
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1))}
    assert told(store) == [("deletes-lost", f"c/{made.id}", 3)]
    assert salvaged(store, "deleted") == {("deleted", "c", "_default"): bag(rows(2, 3, 4))}


def test_what_a_single_id_leaves_in_memory_is_no_lost_delete(b: StoreBuilder) -> None:
    """It takes the first of several rows in memory alone (§5.7)."""
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(1, salt=1))
    b.wal.delete("c", [1])
    b.segment("c", join(rows(2), rows(1, salt=1)))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(2), rows(1, salt=1))}
    assert told(store) == []


def test_rows_after_a_delete_are_not_touched(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.delete("c", [1, 2])
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    flush(b)
    store = open_store(b.write())
    assert (content(store), told(store)) == ({ROOT: bag(rows(1, 2))}, [])


# The row-id race ----------------------------------------------------------------------------------------------------------


def test_a_flushed_segment_that_stayed_new(b: StoreBuilder) -> None:
    """The log does not reach back to it: its folder has the rows. Those that the log deletes are not taken."""
    b.wal.next_file()
    b.wal.insert("c", rows(9))
    b.wal.delete("c", [2])
    b.segment("c", rows(9))
    made = b.segment("c", rows(1, 2, 3), NEW)
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(9, 1, 3))}
    assert told(store) == [("segment-forgotten", f"c/{made.id}", 2)]


def test_a_merged_segment_that_stayed_unfinished(b: StoreBuilder) -> None:
    """Its sources were put aside. What is live elsewhere comes once."""
    b.wal.next_file()
    b.wal.insert("c", rows(9))
    b.segment("c", rows(1, 2), TO_DELETE)
    b.segment("c", rows(3, 4), TO_DELETE)
    made = b.segment("c", rows(1, 2, 3, 4), NEW_MERGE)
    b.segment("c", rows(9, 4))
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 2, 3, 4, 9))}
    assert told(store) == [("segment-forgotten", f"c/{made.id}", 3)]


@pytest.mark.parametrize("type", [NEW, NEW_MERGE])
def test_a_complete_folder_of_a_flush_or_merge_in_progress(b: StoreBuilder, type: int) -> None:
    """A crash came before its transaction: the rows are in the log, or in the sources."""
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    flush(b)
    b.wal.insert("c", rows(3))
    b.segment("c", rows(3) if type == NEW else rows(1, 2), type)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["wal-rows"]


def wrong_folder(b: StoreBuilder) -> str:
    """A segment flushed as the merged row of two others, and a merge of the wrong one: 1 to 4 doubled, 5 and 6 lost."""
    merged, flushed = b.new_id(), b.new_id()
    b.folder("c", merged, rows(1, 2, 3, 4))
    b.file("c", merged, TO_DELETE, file_id=flushed, file_size=48, row_count=2)
    b.segment("c", rows(5, 6), NEW, id=flushed, file_size=0, row_count=0)
    b.segment("c", rows(1, 2, 3, 4, 7), TO_DELETE)
    return b.segment("c", rows(1, 2, 3, 4, 1, 2, 3, 4, 7)).id


def test_a_wrong_folder_was_merged(b: StoreBuilder) -> None:
    for ids in ((1, 2), (3, 4), (5, 6), (7,)):
        b.wal.insert("c", rows(*ids))
    made = wrong_folder(b)
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(range(1, 8)))}
    assert [t for t in told(store) if t[0] != "row-id-race"] == [
        ("flush-lost", "c/_default", 2),
        ("rows-doubled", f"c/{made}", 4),
    ]


def test_a_wrong_folder_was_merged_and_the_log_is_gone(b: StoreBuilder) -> None:
    b.wal.next_file()
    b.wal.insert("c", rows(8))
    b.segment("c", rows(8))
    made = wrong_folder(b)
    flush(b)
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(range(1, 9)))}
    assert {t[0] for t in told(store)} == {"row-id-race", "rows-doubled", "segment-forgotten"}
    assert ("rows-doubled", f"c/{made}", 4) in told(store)


def test_a_segment_whose_row_became_another_tables(b: StoreBuilder) -> None:
    """By the log where it reaches; else they are named and can be salvaged."""
    b.collection("d")
    victim, other = b.new_id(), b.new_id()
    b.folder("c", victim, rows(1, 2))
    b.folder("d", other, rows(3))
    b.file("d", victim, RAW, file_id=other, file_size=24, row_count=1)
    b.segment("c", rows(4))
    b.wal.insert("c", rows(4))
    b.wal.insert("c", rows(1))
    b.wal.insert("d", rows(3))
    b.wal.insert("c", rows(5))
    flush(b)
    b.segment("c", rows(5))
    store = open_store(b.write())
    assert content(store) == {ROOT: bag(rows(1, 4, 5)), ("d", "_default"): bag(rows(3))}
    assert sorted(told(store)) == [
        ("flush-lost", "c/_default", 1),
        ("race-undecided", f"c/{victim}", 1),
        ("row-id-race", f"d/{victim}", 1),
    ]
    assert salvaged(store, "orphans") == {("orphans", "c", "_default"): bag(rows(1, 2))}
