"""Which rows are live: the decision table of FORMAT §3.7, the crash states of §3.4, the row-id race of §3.6, orphans."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, append_garbage, bag, codes, content, declare, join, pieces_bag, rows, salvaged

from milvus_offline.errors import StoreError
from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect, survey
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Severity

NEW, RAW, TO_INDEX, INDEX, TO_DELETE, NEW_MERGE, NEW_INDEX, BACKUP = FileType
NOTHING: Counter[tuple[int, bytes]] = Counter()


# The decision table (§3.7) -----------------------------------------------------------------------------------------------

LIVE = [
    ((RAW,), None),
    ((TO_INDEX,), None),
    ((TO_INDEX, NEW_INDEX), None),
    ((TO_INDEX, TO_DELETE), None),
    ((RAW, TO_DELETE), None),
    ((RAW, NEW_INDEX, TO_DELETE), None),
    ((BACKUP, INDEX), None),
    ((BACKUP, INDEX, TO_DELETE), None),
    ((BACKUP, INDEX, NEW_INDEX), None),
    ((TO_INDEX, INDEX), "index-and-raw"),
    ((BACKUP, INDEX, INDEX), None),
    ((BACKUP,), "backup-without-index"),
    ((BACKUP, TO_DELETE), "backup-without-index"),
    ((BACKUP, NEW_INDEX), "backup-without-index"),
    ((INDEX,), "raw-row-missing"),
    ((INDEX, TO_DELETE), "raw-row-missing"),
]
DEAD = [
    ((TO_DELETE,), "to-delete"),
    ((TO_DELETE, TO_DELETE), "to-delete"),
    ((NEW,), "unfinished"),
    ((NEW_MERGE,), "unfinished"),
    ((NEW_MERGE, NEW), "unfinished"),
    ((NEW_MERGE, NEW_INDEX), "unfinished"),
    ((NEW_INDEX,), "orphans"),
    ((TO_DELETE, NEW_INDEX), "to-delete"),
    ((), "orphans"),
]


@pytest.mark.parametrize("deleted", [(), (1, 3)], ids=["whole", "with deletes"])
@pytest.mark.parametrize(("types", "code"), LIVE, ids=lambda v: "-".join(map(str, map(int, v))) if isinstance(v, tuple) else "")
def test_live_states(b: StoreBuilder, types: tuple[int, ...], code: str | None, deleted: tuple[int, ...]) -> None:
    other = rows(100, 101)
    b.segment("c", other)
    segment = b.segment("c", rows(range(5)), types, deleted=deleted)
    b.files.reverse()  # the order of catalog rows says nothing
    b.wal_folder = None
    store = open_store(b.write())
    expected = rows(0, 2, 4) if deleted else rows(range(5))
    assert content(store) == {("c", "_default"): bag(other, expected)}
    assert codes(store) == ([code] if code else [])
    assert [s.id for s in store["c"]["_default"].segments][1] == segment.id
    assert store["c"].deleted == len(deleted)


@pytest.mark.parametrize(("types", "kind"), DEAD, ids=lambda v: "-".join(map(str, map(int, v))) if isinstance(v, tuple) else "")
def test_dead_states(b: StoreBuilder, types: tuple[int, ...], kind: str | None) -> None:
    b.segment("c", rows(range(5)), types)
    b.segment("c", rows(100, 101))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(100, 101))}
    told = {
        (): ["segment-unknown"],
        (NEW_INDEX,): ["segment-unknown"],
        (TO_DELETE,): ["put-aside-alone"],
    }  # no later segment has the rows
    assert codes(store) == told.get(types, [])
    waiting = {k: n for k, n in survey(store).items() if n}
    assert waiting == ({kind: 5} if kind else {})
    if kind:
        assert salvaged(store, "all") == {(kind, "c", "_default"): bag(rows(range(5)))}


def test_every_combination_of_states_gives_rows_once_or_not_at_all(tmp_path: Path) -> None:
    """All sets of file types: a raw or an index row that is searchable, or a BACKUP, makes the segment live; never twice."""
    b = StoreBuilder(tmp_path / "store")
    expected = {}
    for size in range(len(FileType) + 1):
        for number, types in enumerate(itertools.combinations(FileType, size)):
            name = f"c_{size}_{number}"
            b.collection(name)
            segment_id, batch = b.new_id(), rows(number)
            b.folder(name, segment_id, batch)
            for t in types:
                is_index = t in (INDEX, NEW_INDEX, TO_DELETE)
                b.file(name, segment_id, t, file_id=b.new_id() if is_index else segment_id)
            expected[name, "_default"] = bag(batch) if {RAW, TO_INDEX, INDEX, BACKUP} & set(types) else NOTHING
    assert content(open_store(b.write())) == expected


def test_unknown_file_type(b: StoreBuilder) -> None:
    b.segment("c", rows(1), RAW)
    b.segment("c", rows(2), 9)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1))}
    assert codes(store) == ["file-type-unknown"]


# Crash states (§3.4) -----------------------------------------------------------------------------------------------------


def test_insert_not_flushed(b: StoreBuilder) -> None:
    """The row of a segment in memory, its folder empty or not made yet: the rows are in the log."""
    b.file("c", b.new_id(), NEW)
    segment_id = b.new_id()
    b.file("c", segment_id, NEW)
    (b.roots[0] / "tables" / "c" / segment_id).mkdir()
    b.wal.insert("c", rows(range(4)))
    store = open_store(b.write(checkpoint=False))
    assert content(store) == {("c", "_default"): bag(rows(range(4)))}
    assert codes(store) == ["wal-rows"]


def test_insert_not_flushed_without_log(b: StoreBuilder) -> None:
    b.segment("c", rows(1))
    b.file("c", b.new_id(), NEW)
    b.wal_folder = None
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1))}
    assert codes(store) == ["wal-missing"]
    b.config("wal:\n  enable: false\n")
    assert codes(open_store(b.root)) == []


def test_a_store_that_was_copied_without_its_log(b: StoreBuilder) -> None:
    """After an orderly stop all rows are in segments (§3.2), but nothing tells that it was one."""
    b.segment("c", rows(1))
    b.tables[0]["flush_lsn"] = 1234
    b.wal_folder = None
    found = open_store(b.write()).findings
    assert [(f.code, f.severity) for f in found] == [("wal-missing", Severity.INFO)]


def test_flush_torn_while_writing(b: StoreBuilder) -> None:
    """Files of a flush that never ended are no evidence, in whatever state: the log has the rows."""
    batch = rows(range(6))
    whole = b.segment("c", batch, NEW)
    short = b.segment("c", batch, NEW)
    declare(short.raw, 0)
    short.deleted.unlink()
    only_bloom = b.segment("c", batch, NEW)
    only_bloom.raw.unlink()
    only_bloom.ids.unlink()
    b.wal.insert("c", batch)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(batch)}
    assert codes(store) == ["wal-rows"]
    assert whole.raw.exists()
    assert salvaged(store, "unfinished") == {}  # all of them are live from the log


def test_merge_before_its_end(b: StoreBuilder) -> None:
    first, second = rows(range(5)), rows(range(5, 8))
    b.segment("c", first, RAW)
    b.segment("c", second, (BACKUP, INDEX))
    b.segment("c", join(first, second), NEW_MERGE)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(first, second)}
    assert codes(store) == []


def test_merge_after_its_end(b: StoreBuilder) -> None:
    """The sources stay on disk until they are removed: obsolete copies."""
    first, second = rows(range(5)), rows(range(5, 8))
    b.segment("c", first, TO_DELETE)
    b.segment("c", second, (TO_DELETE, TO_DELETE))
    b.segment("c", join(first, second), TO_INDEX)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(first, second)}
    assert survey(store)["to-delete"] == 8
    assert salvaged(store, "all") == {}


def test_index_build(b: StoreBuilder) -> None:
    b.segment("c", rows(range(5)), (TO_INDEX, NEW_INDEX))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(5)))}
    assert codes(store) == []


def test_deletes_half_applied(b: StoreBuilder) -> None:
    """deleted_docs new, row_count old: the file counts. The logged delete, replayed, changes nothing."""
    b.segment("c", rows(range(6)), deleted=[4, 1], row_count=6)
    b.wal.delete("c", [1, 4])
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(0, 2, 3, 5))}
    assert store["c"].deleted == 2
    assert codes(store) == []


@pytest.mark.parametrize("offsets", [[4, 1, 4, 1, 1], [1, 4], [4, 1]])
def test_deleted_docs_is_a_set(b: StoreBuilder, offsets: list[int]) -> None:
    b.tables[0]["version"] = "1.0.0"
    segment = b.segment("c", rows(range(6)), row_count=2**64 - 3, deleted=offsets)
    b.files[0]["row_count"] = -3  # what SQLite makes of it
    append_garbage(segment.deleted, b"\x00" * 8)
    (segment.folder / "temp_del").write_bytes(b"\x04\0\0\0\0\0\0\0\x00\0\0\0")
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(0, 2, 3, 5))}
    assert store["c"]["_default"].segments[0].live.tolist() == [True, False, True, True, False, True]
    assert codes(store) == []


def test_deleted_docs_outside(b: StoreBuilder) -> None:
    b.segment("c", rows(range(3)), deleted=[0, 3, -1, 2**31 - 1])
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
    assert codes(store) == ["deleted-docs-outside"]


def test_deleted_docs_missing(b: StoreBuilder) -> None:
    b.segment("c", rows(range(3)), deleted=[0]).deleted.unlink()
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(3)))}
    assert codes(store) == ["deleted-docs-missing"]


def test_all_rows_deleted(b: StoreBuilder) -> None:
    b.segment("c", rows(range(3)), deleted=[0, 1, 2])
    b.segment("c", rows())
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): NOTHING}
    assert (store["c"].rows, store["c"].deleted, codes(store)) == (0, 3, [])


def test_drop_between_its_transactions(b: StoreBuilder) -> None:
    """state 1, files still live in their own right: the collection is gone."""
    b.collection("gone", state=1)
    b.segment("gone", rows(1, 2), RAW)
    b.segment("gone", rows(3), (BACKUP, INDEX))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): NOTHING}
    assert codes(store) == ["drop-half-done"]
    assert survey(store)["dropped"] == 3
    assert salvaged(store, "dropped") == {("dropped", "gone", "_default"): bag(rows(1, 2, 3))}


def test_dropped_partition(b: StoreBuilder) -> None:
    kept = b.partition("c", "kept")
    gone = b.partition("c", "gone", state=1)
    b.segment(kept["table_id"], rows(1))
    b.segment(gone["table_id"], rows(2))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): NOTHING, ("c", "kept"): bag(rows(1))}
    assert salvaged(store, "all") == {("dropped", "c", "gone"): bag(rows(2))}


@pytest.mark.parametrize("owner_is", ["dropped", "missing"])
def test_zombie_partition(b: StoreBuilder, owner_is: str) -> None:
    """A live partition of a dropped collection: dropped with it, and said. While the collection is still there, its mark may
    be a damage."""
    if owner_is == "dropped":
        b.collection("gone", state=1)
    zombie = b.partition("gone", "tag")
    b.segment(zombie["table_id"], rows(1, 2))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): NOTHING}
    assert codes(store) == [*["drop-half-done"] * (owner_is == "dropped"), "zombie-partition"]
    assert salvaged(store, "dropped") == {("dropped", "gone", "tag"): bag(rows(1, 2))}


def test_collection_created_again(b: StoreBuilder) -> None:
    """The folder of a collection may hold segments of its namesake before, with another dimension (§16)."""
    old = b.segment("c", rows(range(6), dim=7), TO_DELETE)
    b.tables[0]["created_on"] = int(b.new_id()) // 1000
    b.segment("c", rows(1, 2))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
    assert codes(store) == []
    assert salvaged(store, "to-delete") == {("to-delete", "c", "_default"): bag(rows(range(6), dim=7))}
    assert old.raw.exists()


# States of a MySQL catalog (§3.4, second table) ----------------------------------------------------------------------------


def open_dump(b: StoreBuilder) -> Store:
    root, dump = b.write_dump()
    return open_store(root, dump)


@pytest.mark.parametrize("states", [(TO_DELETE, TO_DELETE), (TO_DELETE, RAW)], ids=["all sources", "some sources"])
def test_mysql_half_merge(b: StoreBuilder, states: tuple[int, int]) -> None:
    """Sources put aside, target not yet live: a server would lose the rows. The target holds all of them."""
    first, second, other = rows(range(5)), rows(range(5, 8)), rows(50)
    b.segment("c", first, states[0])
    b.segment("c", second, states[1])
    b.segment("c", other)
    target = b.segment("c", join(first, second), NEW_MERGE)
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(first, second, other)}
    assert codes(store) == ["merge-half-done"]
    assert target.id in [s.id for s in store["c"]["_default"].segments]


def test_mysql_half_merge_with_deletes(b: StoreBuilder) -> None:
    """The target holds the live rows of its sources only; a source still live is recognised all the same."""
    b.segment("c", rows(range(5)), TO_DELETE, deleted=[0])
    b.segment("c", rows(range(5, 8)), RAW, deleted=[2])
    b.segment("c", rows(1, 2, 3, 4, 5, 6), NEW_MERGE)
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(1, 7)))}
    assert codes(store) == ["merge-half-done"]


def test_mysql_merge_not_begun_to_end(b: StoreBuilder) -> None:
    b.segment("c", rows(range(5)), RAW)
    b.segment("c", rows(range(5, 8)), RAW)
    b.segment("c", rows(range(8)), NEW_MERGE)
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(8)))}
    assert codes(store) == []
    assert [s.state for s in store["c"]["_default"].segments] == ["RAW", "RAW"]


def test_mysql_merge_target_torn(b: StoreBuilder) -> None:
    """A target that was still being written is no source of rows; its sources are live then."""
    b.segment("c", rows(range(5)), RAW)
    torn = b.segment("c", rows(range(5)), NEW_MERGE)
    torn.raw.write_bytes(torn.raw.read_bytes()[:30])
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(5)))}
    assert codes(store) == []


def test_mysql_flush_that_never_ended_is_no_merge(b: StoreBuilder) -> None:
    """A complete segment whose row is still NEW: its rows are in the log, and come from there."""
    b.segment("c", rows(range(5)), NEW)
    b.wal.insert("c", rows(range(5)))
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(5)))}
    assert codes(store) == ["wal-rows"]


def test_mysql_half_compaction(b: StoreBuilder) -> None:
    b.segment("c", rows(range(10)), RAW, deleted=[0, 5])
    new = b.segment("c", rows(1, 2, 3, 4, 6, 7, 8, 9), RAW)
    b.segment("c", rows(1, 2, 3, 4, 6, 7, 8, 9, salt=1), RAW)  # as many rows, others: not its compacted form
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3, 4, 6, 7, 8, 9), rows(1, 2, 3, 4, 6, 7, 8, 9, salt=1))}
    assert codes(store) == ["compaction-half-done"]
    assert new.id in [s.id for s in store["c"]["_default"].segments]


def test_mysql_half_compaction_with_index(b: StoreBuilder) -> None:
    """A compacted segment may have been a BACKUP with its index still listed."""
    b.segment("c", rows(range(10)), (BACKUP, INDEX), deleted=[9])
    b.segment("c", rows(range(9)), TO_INDEX)
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(9)))}
    assert codes(store) == ["compaction-half-done"]


@pytest.mark.parametrize(
    ("old", "gone", "new", "gone_there"),
    [
        (range(5), [0, 1], range(11, 14), [0, 1, 2]),  # as many rows as are live in the other, none of them live
        (range(3), [0, 1], range(11, 12), [0]),
        (range(3), [0, 1, 2], range(7, 8), [0]),
        (range(3), [0, 1, 2], range(0), []),
        (range(5), [0], range(1, 6), []),  # a row that the old one never had
    ],
)
def test_mysql_segments_with_deletes_are_no_compaction(
    old: range, gone: list[int], new: range, gone_there: list[int], b: StoreBuilder
) -> None:
    b.segment("c", rows(old), deleted=gone)
    b.segment("c", rows(new), deleted=gone_there)
    kept = [i for n, i in enumerate(old) if n not in gone] + [i for n, i in enumerate(new) if n not in gone_there]
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(*kept))}
    assert codes(store) == []


@pytest.mark.parametrize("later", [[1], [1, 2], []])
def test_mysql_half_compaction_and_deletes_between_the_statements(later: list[int], b: StoreBuilder) -> None:
    """Both are live for a moment, and a delete reaches both, or the source alone."""
    b.segment("c", rows(range(5)), deleted=[0, *later])
    b.segment("c", rows(range(1, 5)), deleted=[n - 1 for n in later])
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(*(i for i in range(1, 5) if i not in later)))}
    assert codes(store) == ["compaction-half-done"]


def test_mysql_identical_segments_are_no_compaction(b: StoreBuilder) -> None:
    """The same batch inserted twice is twice there: nothing was deleted, so nothing was compacted."""
    b.segment("c", rows(range(10)))
    b.segment("c", rows(range(10)))
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(10)), rows(range(10)))}
    assert codes(store) == []


def test_mysql_index_and_raw(b: StoreBuilder) -> None:
    b.segment("c", rows(range(4)), (TO_INDEX, INDEX))
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(4)))}
    assert codes(store) == ["index-and-raw"]


def test_mysql_drop_index_between_statements(b: StoreBuilder) -> None:
    b.segment("c", rows(range(4)), (BACKUP, TO_DELETE), row_count=4)
    store = open_dump(b)
    assert content(store) == {("c", "_default"): bag(rows(range(4)))}
    [finding] = store.findings
    assert (finding.code, finding.rows, finding.severity) == ("backup-without-index", 4, Severity.WARNING)


def test_mysql_tags_encoded_twice(b: StoreBuilder) -> None:
    part = b.partition("c", "größe".encode().decode("cp1252"))
    b.segment(part["table_id"], rows(1))
    b.wal.insert("c", rows(2), "größe")
    store = open_dump(b)
    assert content(store) == {("c", "_default"): NOTHING, ("c", "größe"): bag(rows(1, 2))}
    assert codes(store) == ["tag-encoding", "wal-rows"]


# The row-id race (§3.6) --------------------------------------------------------------------------------------------------


def test_race(b: StoreBuilder) -> None:
    """The row of an old segment was overwritten by a new one's, all but its segment_id."""
    truth, source = rows(range(20)), rows(range(3))
    victim = b.folder("c", b.new_id(), source)
    meant = b.folder("c", b.new_id(), truth)
    b.file("c", victim.id, RAW, file_id=meant.id, file_size=truth.vectors.nbytes + truth.ids.nbytes, row_count=20)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(truth)}
    assert codes(store) == ["row-id-race"]
    assert store["c"]["_default"].segments[0].id == meant.id
    assert salvaged(store, "all") == {}  # the victim was a merge source: its rows are live


def race(b: StoreBuilder, **columns: object) -> tuple[str, str]:
    """A victim with rows of its own, and the segment that took its row."""
    victim = b.folder("c", b.new_id(), rows(range(3)))
    meant = b.folder("c", b.new_id(), rows(range(10, 20)))
    size = 10 * (4 * 4 + 8)
    b.file("c", victim.id, RAW, **{"file_id": meant.id, "file_size": size, "row_count": 10, **columns})  # type: ignore[arg-type]
    return victim.id, meant.id


def test_race_with_a_victim_that_lost_its_rows(b: StoreBuilder) -> None:
    race(b)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(10, 20)))}
    assert codes(store) == ["row-id-race"]
    assert salvaged(store, "orphans") == {("orphans", "c", "_default"): bag(rows(range(3)))}


def test_race_whose_size_does_not_agree(b: StoreBuilder) -> None:
    """The folder named by file_id is not what the row was written for: the server's own answer stands, and it is said."""
    victim, meant = race(b, file_size=12345)
    b.segment("c", rows(50))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(3), 50))}
    assert codes(store) == ["row-id-race"]
    assert salvaged(store, "orphans") == {("orphans", "c", "_default"): bag(rows(range(10, 20)))}
    assert victim != meant


def test_race_whose_segment_is_gone(b: StoreBuilder) -> None:
    _, meant = race(b)
    shutil.rmtree(b.roots[0] / "tables" / "c" / meant)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(3)))}
    assert codes(store) == ["row-id-race"]


def test_race_where_the_meant_segment_has_rows_of_its_own(b: StoreBuilder) -> None:
    """A second row names the same folder rightly: its rows are taken once."""
    victim, meant = race(b)
    b.file("c", meant, RAW, row_count=10)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(10, 20)))}
    assert codes(store) == ["row-id-race"]
    assert salvaged(store, "orphans") == {("orphans", "c", "_default"): bag(rows(range(3)))}
    assert victim


def test_race_worst_case(b: StoreBuilder) -> None:
    """The row of another collection was overwritten, its table_id too: that collection lost a segment.

    The server would look for tables/c/<victim>, which does not exist; the data meant are in tables/c/<meant>.
    """
    b.collection("d")
    b.segment("d", rows(1, 2))
    lost = b.folder("d", b.new_id(), rows(range(30, 35)))
    meant = b.folder("c", b.new_id(), rows(range(10, 20)))
    b.file("c", lost.id, RAW, file_id=meant.id, file_size=10 * 24, row_count=10)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(10, 20))), ("d", "_default"): bag(rows(1, 2))}
    assert codes(store) == ["row-id-race"]
    assert salvaged(store, "orphans") == {("orphans", "d", "_default"): bag(rows(range(30, 35)))}


def test_race_without_a_row_left(b: StoreBuilder) -> None:
    """A completely flushed segment whose row was removed at the next start: an orphan, with rows that the log has no more."""
    b.collection("d", flush_lsn=1 << 32)
    b.folder("d", b.new_id(), rows(range(5)))
    store = open_store(b.write())
    assert content(store)["d", "_default"] == NOTHING
    assert survey(store)["orphans"] == 5
    assert salvaged(store, "orphans") == {("orphans", "d", "_default"): bag(rows(range(5)))}


# Lies about and orphans (§11.4) ------------------------------------------------------------------------------------------


def test_orphans(b: StoreBuilder) -> None:
    b.folder("c", b.new_id(), rows(1, 2, 3))  # all live elsewhere
    b.folder("c", b.new_id(), rows(3, 4, 5))  # one of them is not
    b.folder("unknown", b.new_id(), rows(8, 9, dim=6))
    b.segment("c", rows(range(5)))
    (b.roots[0] / "tables" / "c" / "stray").write_text("not a folder")
    (b.roots[0] / "tables" / "stray").write_text("not a folder")
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(5)))}
    assert codes(store) == ["folder-unknown"]
    assert survey(store)["orphans"] == 8
    found, notes = collect(store, ["orphans"])
    assert {s.schema.name: pieces_bag(s.pieces) for s in found} == {
        "c": bag(rows(3, 4, 5)),
        "unknown": bag(rows(8, 9, dim=6)),
    }
    assert sorted(n.code for n in notes) == ["salvage-copy", "salvage-unreadable", "schema-guessed"]


def test_orphan_newer_than_the_catalog(b: StoreBuilder) -> None:
    """Rows in a segment newer than all that the catalog knows: it may be an old copy, or without its -wal."""
    b.segment("c", rows(range(5)))
    newer = b.folder("c", b.new_id(), rows(5, 6))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(5)))}
    assert [(f.code, f.where, f.rows) for f in store.findings] == [("catalog-older", f"c/{newer.id}", 2)]


def test_segment_folder_is_gone(b: StoreBuilder) -> None:
    lost = b.segment("c", rows(range(5)))
    b.segment("c", rows(7))
    shutil.rmtree(lost.folder)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(7))}
    [finding] = store.findings
    assert (finding.code, finding.rows, finding.severity) == ("segment-missing", 5, Severity.ERROR)


def test_two_raw_files_are_refused(b: StoreBuilder) -> None:
    segment = b.segment("c", rows(range(5)))
    shutil.copy(segment.raw, segment.folder / "other.rv")
    segment.raw.rename(segment.folder / "another.rv")
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): NOTHING}
    assert codes(store) == ["segment-ambiguous"]


def test_raw_file_of_another_name(b: StoreBuilder) -> None:
    """The server takes the .rv and .uid that it finds (§1.2)."""
    segment = b.segment("c", rows(range(5)))
    segment.raw.rename(segment.folder / "x.rv")
    segment.ids.rename(segment.folder / "y.uid")
    assert content(open_store(b.write())) == {("c", "_default"): bag(rows(range(5)))}


def test_row_count_is_only_a_hint(b: StoreBuilder) -> None:
    """Where it counts more than there are (§7.6)."""
    for count in (4, 5, -1, 2**63 - 1):
        b.segment("c", rows(range(4)), row_count=count)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(*[rows(range(4))] * 4)}
    assert codes(store) == []


def test_a_row_count_of_fewer_rows_is_a_warning(b: StoreBuilder) -> None:
    b.segment("c", rows(range(4)), row_count=3)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(4)))}
    assert [(f.code, f.severity.value, f.rows) for f in store.findings] == [("row-count-differs", "warning", 1)]


# Places (§1.3), kinds (§2.5), versions (§2.3) ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.7.1", "0.8.1", "0.9.1", "1.0.0", "1.1.1"])
@pytest.mark.parametrize("checkpoint", [True, False], ids=["clean", "in -wal"])
def test_versions_of_the_catalog(tmp_path: Path, version: str, checkpoint: bool) -> None:
    b = StoreBuilder(tmp_path / "store", version=version)
    b.collection("c", flush_lsn=0)
    b.partition("c", "p/ö")
    b.segment("c", rows(1, 2), deleted=[0])
    b.segment(b.tables[1]["table_id"], rows(3))
    b.wal.insert("c", rows(4))
    b.wal.delete("c", [3])
    store = open_store(b.write(checkpoint=checkpoint))
    assert content(store) == {("c", "_default"): bag(rows(2, 4)), ("c", "p/ö"): NOTHING}
    assert store.catalog.version == version


def test_catalog_only_in_its_wal_is_not_lost(b: StoreBuilder) -> None:
    b.segment("c", rows(1))
    root = b.write(checkpoint=False)
    assert (root / "db" / "meta.sqlite").stat().st_size == 4096
    (root / "db" / "meta.sqlite-wal").rename(root / "moved")
    with pytest.raises(StoreError, match=r"meta\.sqlite-wal"):
        open_store(root)
    (root / "moved").rename(root / "db" / "meta.sqlite-wal")
    assert content(open_store(root)) == {("c", "_default"): bag(rows(1))}


def test_secondary_roots(tmp_path: Path) -> None:
    """Raw files where `TableFiles.id mod (1+n)` put them; the folder of the index under another root is empty of rows."""
    b = StoreBuilder(tmp_path / "store", version="0.8.1", secondaries=2)
    b.collection("c")
    batches = [rows(range(10 * i, 10 * i + 5)) for i in range(4)]
    for i, batch in enumerate(batches):
        segment = b.segment("c", batch, (BACKUP, INDEX), root=i % 3)
        (b.roots[(i + 1) % 3] / "tables" / "c" / segment.id).mkdir(parents=True)
    names = ";".join(f"/data/{r.name}" for r in b.roots[1:])
    b.config(f"storage_config:\n  primary_path: /data/store\n  secondary_path: {names}\n")
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(*batches)}
    assert [f.code for f in store.findings] == ["path-mapped"] * 2
    (b.root / "server_config.yaml").unlink()
    assert content(open_store(b.root, secondary=b.roots[1:])) == {("c", "_default"): bag(*batches)}
    assert codes(open_store(b.root)) == ["segment-incomplete", "segment-missing"]


@pytest.mark.parametrize("metric", ["HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE"])
def test_binary_is_decided_by_the_metric(tmp_path: Path, metric: str) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", dim=64, metric=metric, engine_type=1)  # DropIndex resets the last two to 1
    b.segment("c", rows(range(9), dim=64, binary=True), deleted=[8])
    b.wal.insert("c", rows(9, dim=64, binary=True))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(range(8), 9, dim=64, binary=True))}
    assert store["c"].schema.index.type == "BIN_FLAT"


def test_hybrid_attributes(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store", version="1.0.0")
    b.collection("c")
    b.field("c", "age", 3)
    b.field("c", "score", 41)
    b.field("c", "vec", 100)
    ages, scores = np.array([10, 20, 30], "<i4"), np.array([0.5, 1.5, 2.5], "<f8")
    b.segment("c", rows(1, 2, 3), deleted=[1], attributes={"age": ages, "score": scores})
    store = open_store(b.write())
    batch = store["c"]["_default"].read()
    assert batch.ids.tolist() == [1, 3]
    assert {n: (a.dtype.str, a.tolist()) for n, a in batch.attributes.items()} == {
        "age": ("<i4", [10, 30]),
        "score": ("<f8", [0.5, 2.5]),
    }


def test_batches_of_any_size_and_start(b: StoreBuilder) -> None:
    """Pieces give the same rows in the same order for any batch size and from any row on."""
    b.segment("c", rows(range(50)), deleted=[0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 49])
    b.wal.insert("c", rows(range(100, 120)))
    b.wal.delete("c", [20, 100, 119])
    b.wal.insert("c", rows(range(200, 203)))
    pieces = open_store(b.write())["c"]["_default"].pieces
    for piece in pieces:
        whole = [(i, v.tobytes()) for p in piece.batches() for i, v in zip(p.ids, p.vectors, strict=True)]
        assert len(whole) == piece.rows
        for max_bytes, start in itertools.product((1, 16, 17, 100, 1000), range(piece.rows + 2)):
            again = [(i, v.tobytes()) for p in piece.batches(max_bytes, start) for i, v in zip(p.ids, p.vectors, strict=True)]
            assert again == whole[start:]


def test_deleted_rows_have_their_attributes(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store", version="1.0.0")
    b.collection("c")
    b.field("c", "age", 3)
    b.segment("c", rows(range(20)), deleted=[1, 17, 3], attributes={"age": np.arange(20, dtype="<i4") * 10})
    (salvaged,), _ = collect(open_store(b.write()), ["deleted"])
    (batch,) = (x for p in salvaged.pieces for x in p.batches())
    assert (batch.ids.tolist(), batch.attributes["age"].tolist()) == ([1, 3, 17], [10, 30, 170])
    assert [x.ids.tolist() for p in salvaged.pieces for x in p.batches(1, start=1)] == [[3], [17]]


def test_the_fingerprint_sees_every_file_that_rows_come_from(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store", version="1.0.0")
    b.collection("c")
    b.field("c", "age", 3)
    b.segment("c", rows(1, 2, 3), deleted=[1], attributes={"age": np.arange(3, dtype="<i4")})
    b.wal.insert("c", rows(7))
    root = b.write()
    seen = {open_store(root).fingerprint}
    paths = [p for p in root.rglob("*") if p.suffix in (".rv", ".uid", ".ra", ".wal") or p.name == "deleted_docs"]
    assert len(paths) == 5
    for path in paths:
        os.utime(path, (1, 1))
        now = open_store(root).fingerprint
        assert now not in seen
        seen.add(now)


def test_reading_some_rows(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2, 3), deleted=[0])
    b.wal.insert("c", rows(9))
    store = open_store(b.write())
    partition = store["c"]["_default"]
    assert [partition.read(limit=n).ids.tolist() for n in (0, 1, 3, 99)] == [[], [2], [2, 3, 9], [2, 3, 9]]
    with pytest.raises(ValueError, match="expected 0 or more"):
        partition.read(limit=-1)
    assert store == store and store != open_store(store.path)
    assert partition != open_store(store.path)["c"]["_default"]


def test_rows_of_an_earlier_collection_of_the_name(tmp_path: Path) -> None:
    """A crash left the partition of a dropped collection (§3.4), and the name was used again with another dimension."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=4)
    p = b.partition("c", "old")["table_id"]
    b.segment(p, rows(range(10), dim=8))
    b.segment("c", rows(20, dim=4))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(20, dim=4)), ("c", "old"): bag()}
    (finding,) = [f for f in store.findings if f.code == "segment-unreadable"]
    assert "10 ids and 32 bytes for each" in finding.message and finding.rows == 10
