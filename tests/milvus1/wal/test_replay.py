"""The write-ahead log: which records count (FORMAT §5.4-5.6), what they do (§5.7), a flush that the catalog missed (§6.4)."""

from __future__ import annotations

import struct
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.builder import StoreBuilder, bag, codes, content, join, rows, salvaged

from milvus_offline.milvus1.layout import WAL_HEADER, FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import survey
from milvus_offline.milvus1.store import Store
from milvus_offline.milvus1.wal import deletes
from milvus_offline.milvus1.wal import table as logtable
from milvus_offline.model import Batch, Severity

NEW, RAW = FileType.NEW, FileType.RAW
NOTHING: Counter[tuple[int, bytes]] = Counter()
ROOT = ("c", "_default")


def opened(b: StoreBuilder) -> Store:
    return open_store(b.write())


# Which records count (§5.6) ----------------------------------------------------------------------------------------------


def test_nothing_but_the_log(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(-3, 2**63 - 1, -(2**63), 0))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, -3, 2**63 - 1, -(2**63), 0))}
    assert store["c"].wal_rows == 6
    [finding] = store.findings
    assert (finding.code, finding.where, finding.rows, finding.severity) == ("wal-rows", "c/_default", 6, Severity.INFO)


def test_flushed_records_are_passed_over(b: StoreBuilder) -> None:
    """After a clean stop the log still holds every record since its file began."""
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    assert content(opened(b)) == {ROOT: bag(rows(1, 2))}
    assert codes(open_store(b.root)) == []


def test_global_lsn_is_a_lower_bound(b: StoreBuilder) -> None:
    b.global_lsn = b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    assert content(opened(b)) == {ROOT: bag(rows(1, 2, 3))}


def test_lowest_flush_lsn_is_a_lower_bound(b: StoreBuilder) -> None:
    """Each table is compared with its own flush_lsn after the lowest of all."""
    b.collection("d")
    b.collection("e")
    first = b.wal.insert("c", rows(1))
    second = b.wal.insert("d", rows(2))
    b.wal.insert("c", rows(3))
    b.wal.insert("d", rows(4))
    third = b.wal.insert("e", rows(5))
    b.wal.insert("e", rows(6))
    for table, lsn in zip(b.tables, (first, second, third), strict=True):
        table["flush_lsn"] = lsn
    assert content(opened(b)) == {ROOT: bag(rows(3)), ("d", "_default"): bag(rows(4)), ("e", "_default"): bag(rows(6))}


def test_highest_flush_lsn_acknowledges(b: StoreBuilder) -> None:
    """What another table has flushed later was acknowledged, whatever an old mxlog.meta says."""
    b.collection("d")
    b.wal.insert("c", rows(1))
    b.tables[1]["flush_lsn"] = b.wal.insert("d", rows(2))
    b.wal.acknowledged = 0
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1)), ("d", "_default"): NOTHING}
    assert codes(store) == ["wal-rows"]


def test_filter_by_partition(b: StoreBuilder) -> None:
    first = b.wal.insert("c", rows(1), "p")
    b.wal.insert("c", rows(2), "p")
    b.wal.insert("c", rows(3))
    b.wal.insert("c", rows(4), "q")
    b.partition("c", "p", flush_lsn=first)
    b.partition("c", "q", flush_lsn=b.wal.position)
    expected = {ROOT: bag(rows(3)), ("c", "p"): bag(rows(2)), ("c", "q"): NOTHING}
    assert content(opened(b)) == expected


def test_filter_before_0_9_1_knows_only_the_collection(tmp_path: Path) -> None:
    """0.7.0-0.9.0 compare with the collection's flush_lsn alone. What such a server doubles comes out once, what it forgets
    can be salvaged; both are said."""
    b = StoreBuilder(tmp_path / "store", version="0.8.1")
    b.collection("c")
    b.partition("c", "p")
    b.partition("c", "q")
    b.segment(b.tables[1]["table_id"], rows(1, 2))
    b.tables[1]["flush_lsn"] = b.wal.insert("c", rows(1, 2), "p")
    b.wal.insert("c", rows(3))
    b.wal.insert("c", rows(4), "p")
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(3)), ("c", "p"): bag(rows(1, 2, 4)), ("c", "q"): NOTHING}
    assert codes(store) == ["partition-flushed", "wal-rows", "wal-rows"]
    assert [f.rows for f in store.findings if f.code == "partition-flushed"] == [2]

    b.wal.insert("c", rows(5), "q")
    b.tables[0]["flush_lsn"] = b.wal.position
    b.segment("c", rows(3))
    b.wal.insert("c", rows(6), "q")
    store = overwritten(b)
    assert content(store) == {ROOT: bag(rows(3)), ("c", "p"): bag(rows(1, 2)), ("c", "q"): bag(rows(6))}
    assert salvaged(store, "unseen") == {("unseen", "c", "p"): bag(rows(4)), ("unseen", "c", "q"): bag(rows(5))}


def overwritten(b: StoreBuilder) -> Store:
    """Writes the store once more."""
    (b.roots[0] / "meta.sqlite").unlink()
    b.clear_wal()
    return opened(b)


@pytest.mark.parametrize("version", ["0.7.0", "0.8.1", "0.9.0", "0.9.1", "1.1.1"])
@pytest.mark.parametrize("binary", [False, True], ids=["float", "binary"])
def test_both_numberings(tmp_path: Path, version: str, binary: bool) -> None:
    """Insert and delete have other numbers since 0.9; the shape decides."""
    b = StoreBuilder(tmp_path / "store", version=version)
    b.collection("c", dim=64, metric="HAMMING" if binary else "L2")
    b.wal.insert("c", rows(range(5), dim=64, binary=binary))
    b.wal.delete("c", [1, 2])
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(0, 3, 4, dim=64, binary=binary))}


def test_stale_bytes_after_the_end(b: StoreBuilder) -> None:
    """A server that restarted goes on in the same file, over what an unacknowledged call had left there."""
    b.wal.insert("c", rows(1))
    position = b.wal.position
    b.wal.insert("c", rows(range(100, 110)), acknowledge=False)
    b.wal.position = position
    b.wal.insert("c", rows(2))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert codes(store) == ["wal-rows"]
    assert survey(store)["unacknowledged"] == 0


def test_unacknowledged_call_is_for_salvage_only(b: StoreBuilder) -> None:
    b.segment("c", rows(5))
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2, 3), acknowledge=False)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 5))}
    assert codes(store) == ["wal-rows"]
    assert survey(store)["unacknowledged"] == 2
    assert salvaged(store, "unacknowledged") == {("unacknowledged", "c", "_default"): bag(rows(2, 3))}


def test_unacknowledged_delete_does_nothing(b: StoreBuilder) -> None:
    b.segment("c", rows(5))
    b.wal.insert("c", rows(1))
    b.wal.delete("c", [1, 5], acknowledge=False)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 5))}
    assert codes(store) == ["wal-rows"]


@pytest.mark.parametrize("first_acknowledged", [True, False])
def test_a_call_is_atomic(tmp_path: Path, first_acknowledged: bool) -> None:
    """An insert over several files counts as a whole or not at all."""
    b = StoreBuilder(tmp_path / "store", wal_file_bytes=200)
    b.collection("c")
    b.wal.insert("c", rows(range(30)), acknowledge=first_acknowledged)
    assert len(b.wal.files) > 4
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(range(30))) if first_acknowledged else NOTHING}
    assert codes(store) == (["wal-rows"] if first_acknowledged else [])
    assert survey(store)["unacknowledged"] == (0 if first_acknowledged else 30)


# mxlog.meta (§5.2, §16) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta", [None, b"", b"\0" * 23], ids=["missing", "empty", "short"])
def test_mxlog_missing(b: StoreBuilder, meta: bytes | None) -> None:
    """A server would start without any of the rows; all complete records are taken."""
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.wal.meta = meta
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["mxlog-missing", "wal-rows"]


def test_mxlog_missing_with_nothing_unflushed(b: StoreBuilder) -> None:
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.meta = None
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert codes(store) == []


def test_mxlog_torn(b: StoreBuilder) -> None:
    """Second and third number differ: the first counts, the call being acknowledged was not."""
    b.wal.insert("c", rows(1))
    before = b.wal.acknowledged
    b.wal.insert("c", rows(2))
    b.wal.meta = struct.pack("<QQQ", before, b.wal.acknowledged, before)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1))}
    assert salvaged(store, "unacknowledged") == {("unacknowledged", "c", "_default"): bag(rows(2))}


def test_mxlog_older_than_the_log(b: StoreBuilder) -> None:
    """More than one call after it cannot be: then mxlog.meta is from another time."""
    b.wal.insert("c", rows(1))
    old = b.wal.acknowledged
    b.wal.insert("c", rows(2))
    b.wal.insert("c", rows(3))
    b.wal.acknowledged = old
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["mxlog-stale", "wal-rows"]


def test_mxlog_zeroed(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2))
    b.wal.meta = b"\0" * 24
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert codes(store) == ["mxlog-stale", "wal-rows"]


# Damaged logs (§16) ------------------------------------------------------------------------------------------------------


def test_torn_place_in_the_middle(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    torn = b.wal.position
    b.wal.insert("c", rows(2))
    after = b.wal.position
    b.wal.insert("c", rows(3, 4))
    b.wal.files[0][torn : torn + 8] = b"\xff" * 8
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 3, 4))}
    assert codes(store) == ["wal-rows", "wal-torn"]
    assert f"bytes {torn} to {after} " in next(f.message for f in store.findings if f.code == "wal-torn")


def test_every_byte_of_a_header_matters(b: StoreBuilder) -> None:
    """Whatever byte of a record's head is flipped: the records around it come out, and nothing in its place unsaid."""
    b.wal.insert("c", rows(1))
    start = b.wal.position
    b.wal.insert("c", rows(2))
    b.wal.insert("c", rows(3))
    path = b.write() / "wal" / "0.wal"
    healthy = bytes(b.wal.files[0])
    for at in range(start, start + WAL_HEADER.size + 1):
        damaged = bytearray(healthy)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        store = open_store(b.root)
        found = content(store)[ROOT]
        assert found >= bag(rows(1, 3)), at
        assert found <= bag(rows(1, 2, 3)), at
        said = set(codes(store)) - {"wal-rows"} or survey(store)["dropped"]  # another name: of a collection that is gone
        assert found == bag(rows(1, 2, 3)) or said, at


def test_log_cut_short(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2))
    del b.wal.files[0][-1:]
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1))}
    assert "wal-short" in codes(store)


def test_gap_in_the_numbers(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    b.wal.next_file()
    b.wal.insert("c", rows(2))
    b.wal.next_file()
    b.wal.insert("c", rows(3))
    del b.wal.files[1]
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 3))}
    assert codes(store) == ["wal-gap", "wal-rows"]
    assert [(f.severity, f.where) for f in store.findings if f.code == "wal-gap"] == [
        (Severity.ERROR, str(b.root / "wal" / "1.wal"))
    ]


def test_last_file_missing(b: StoreBuilder) -> None:
    """mxlog.meta tells of records in a file that is not there."""
    b.wal.insert("c", rows(1))
    b.wal.next_file()
    b.wal.insert("c", rows(2))
    del b.wal.files[1]
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1))}
    assert codes(store) == ["wal-gap", "wal-rows"]


def test_all_files_missing(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    b.wal.files.clear()
    store = opened(b)
    assert content(store) == {ROOT: NOTHING}
    assert codes(store) == ["wal-gap"]


def test_no_file_and_nothing_to_replay(b: StoreBuilder) -> None:
    """Right after a clean stop and start the log may have no file at all."""
    b.tables[0]["flush_lsn"] = b.global_lsn = b.wal.acknowledged = 5 << 32 | 77
    b.segment("c", rows(1))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1))}
    assert codes(store) == []


def test_first_file_missing_after_a_clean_restart(b: StoreBuilder) -> None:
    """The state in which a 1.1.1 server cannot be started again; nothing is lost (§16)."""
    b.segment("c", rows(1))
    b.tables[0]["flush_lsn"] = b.global_lsn = b.wal.insert("c", rows(1))
    b.wal.next_file()
    b.wal.insert("c", rows(2, 3))
    del b.wal.files[0]
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["wal-gap", "wal-rows"]
    assert [f.severity for f in store.findings if f.code == "wal-gap"] == [Severity.WARNING]


def test_rest_of_a_call_that_an_earlier_crash_cut_off(tmp_path: Path) -> None:
    """It lies in the next file, complete, after a place that the restarted server wrote over."""
    b = StoreBuilder(tmp_path / "store", wal_file_bytes=300)
    b.collection("c")
    b.wal.insert("c", rows(1))
    position = b.wal.position
    b.wal.insert("c", rows(range(10, 24)), acknowledge=False)
    assert list(b.wal.files) == [0, 1]
    b.wal.position = position
    b.wal.insert("c", rows(2))
    b.wal.insert("c", rows(3), acknowledge=False)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert codes(store) == ["wal-rows"]


def test_foreign_files_in_the_folder(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1))
    root = b.write()
    for name in ("00.wal", "x.wal", "1.wal.bak", "-1.wal", "99999999999.wal"):
        (root / "wal" / name).write_bytes(bytes(b.wal.files[0]))
    (root / "wal" / "7.wal").mkdir()
    assert content(open_store(root)) == {ROOT: bag(rows(1))}


# What records do (§5.7) --------------------------------------------------------------------------------------------------


def test_tags(b: StoreBuilder) -> None:
    """A tag counts as it was sent: `_default` and blanks around it are never applied by a server, yet the rows are there."""
    b.partition("c", "sp")
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2), "sp")
    b.wal.insert("c", rows(3), "_default")
    b.wal.insert("c", rows(4), " sp\t")
    b.wal.insert("c", rows(5), "unknown")
    b.wal.insert("other", rows(6))
    b.wal.delete("c", [1, 2], "_default")
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1)), ("c", "sp"): bag(rows(2))}
    assert salvaged(store, "all") == {
        ("unseen", "c", "_default"): bag(rows(3)),
        ("unseen", "c", "sp"): bag(rows(4)),
        ("dropped", "c", "unknown"): bag(rows(5)),
        ("dropped", "other", "_default"): bag(rows(6)),
    }


def test_unseen_rows_are_found_after_a_flush_too(b: StoreBuilder) -> None:
    """As long as the file is there (§5.6)."""
    b.partition("c", "sp")
    b.wal.insert("c", rows(3), "_default")
    b.wal.insert("c", rows(1))
    b.segment("c", rows(1))
    for table in b.tables:
        table["flush_lsn"] = b.wal.position
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1)), ("c", "sp"): NOTHING}
    assert salvaged(store, "unseen") == {("unseen", "c", "_default"): bag(rows(3))}


def test_deleted_rows_are_not_unseen(b: StoreBuilder) -> None:
    """Rows that were flushed and deleted, by a delete before or after the flush of other tables."""
    part = b.partition("c", "p")
    b.collection("d")
    b.wal.insert("c", rows(1, 2, 3, 4), "p")
    b.wal.delete("c", [1])
    b.wal.delete("c", [2], "p")
    b.segment(part["table_id"], rows(3, 4))
    part["flush_lsn"] = b.tables[0]["flush_lsn"] = b.wal.position
    store = opened(b)
    assert content(store) == {ROOT: NOTHING, ("c", "p"): bag(rows(3, 4)), ("d", "_default"): NOTHING}
    assert salvaged(store, "unseen") == {}


def test_delete_without_tag_reaches_all_partitions(b: StoreBuilder) -> None:
    part = b.partition("c", "p")
    b.segment("c", rows(1, 2))
    b.segment(part["table_id"], rows(1, 3))
    b.wal.insert("c", rows(1, salt=1), "p")
    b.wal.insert("c", rows(4), "p")
    b.wal.delete("c", [1])
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(2)), ("c", "p"): bag(rows(3, 4))}
    assert codes(store) == ["wal-deletes", "wal-deletes", "wal-rows"]


def test_deletes_are_read_once_for_all_partitions(b: StoreBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {ROOT: NOTHING}
    for n in range(20):
        b.segment(b.partition("c", f"p{n}")["table_id"], rows(range(40)))
        b.wal.insert("c", rows(range(40), salt=n + 1), f"p{n}")
        expected["c", f"p{n}"] = bag(rows(range(30, 40)), rows(range(30, 40), salt=n + 1))
    for n in range(30):
        b.wal.delete("c", [n])
    read: list[int] = []
    original = deletes.fileio.read_into

    def counted(fd: int, buffer: memoryview, *rest: Any) -> None:
        read.append(len(buffer))
        original(fd, buffer, *rest)

    monkeypatch.setattr(deletes, "fileio", SimpleNamespace(open_read=deletes.fileio.open_read, read_into=counted))
    assert content(opened(b)) == expected
    assert read == [8] * 30


def test_delete_with_tag_reaches_one(b: StoreBuilder) -> None:
    part = b.partition("c", "p")
    b.segment("c", rows(1, 2))
    b.segment(part["table_id"], rows(1, 3))
    b.wal.delete("c", [1, 99], "p")
    assert content(opened(b)) == {ROOT: bag(rows(1, 2)), ("c", "p"): bag(rows(3))}


def test_delete_without_tag_is_tested_against_the_root(b: StoreBuilder) -> None:
    """A crash between the flushes of root and partition: the root's flush_lsn decides for all, as in the server."""
    part = b.partition("c", "p")
    b.wal.insert("c", rows(1, 2), "p")
    b.wal.delete("c", [1])
    b.tables[0]["flush_lsn"] = b.wal.position
    assert content(opened(b)) == {ROOT: NOTHING, ("c", "p"): bag(rows(1, 2))}

    b.tables[0]["flush_lsn"] = 0
    b.segment(part["table_id"], rows(2), row_count=1)
    b.segment(part["table_id"], rows(1, salt=5))  # inserted again, flushed: the replayed delete takes it
    part["flush_lsn"] = b.wal.position
    assert content(overwritten(b)) == {ROOT: NOTHING, ("c", "p"): bag(rows(2))}


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_delete_before_a_flushed_insert_of_the_partition(version: str, tmp_path: Path) -> None:
    """Up to 0.9.0 a server would delete the row that was inserted again, and insert it once more: it stays as it was."""
    b = StoreBuilder(tmp_path / "store", version=version)
    b.collection("c")
    part = b.partition("c", "p")
    b.wal.insert("c", rows(100))
    b.wal.insert("c", rows(5), "p")
    b.wal.delete("c", [5, 6])
    part["flush_lsn"] = b.wal.insert("c", rows(5, 9, salt=1), "p")
    b.segment(part["table_id"], rows(5, 9, salt=1))
    b.wal.delete("c", [9])
    assert content(opened(b)) == {ROOT: bag(rows(100)), ("c", "p"): bag(rows(5, salt=1))}


def test_delete_before_an_unrecorded_flush_of_the_root(b: StoreBuilder) -> None:
    """All was flushed, and the catalog knows of the partition's flush: the delete has reached both, the rows after it stay."""
    part = b.partition("c", "p")
    b.partition("c", "q")  # nothing of it is flushed: there the delete counts
    b.wal.insert("c", rows(5), "p")
    b.wal.insert("c", rows(5, 7), "q")
    b.wal.delete("c", [5, 6])
    b.wal.insert("c", rows(5, 9, salt=1), "p")
    b.wal.insert("c", rows(100))
    part["flush_lsn"] = b.wal.position
    b.segment(part["table_id"], rows(5, 9, salt=1))
    b.segment("c", rows(100))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(100)), ("c", "p"): bag(rows(5, 9, salt=1)), ("c", "q"): bag(rows(7))}
    assert codes(store) == ["flush-unrecorded", "wal-rows"]


def test_delete_on_disk_takes_all_of_an_id_whatever_its_age(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 1, 2, 1), deleted=[1])
    b.segment("c", rows(1, 3, salt=1), FileType.BACKUP)
    b.wal.delete("c", [1])
    b.wal.insert("c", rows(1, salt=2))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(2), rows(3, salt=1), rows(1, salt=2))}
    assert store["c"].deleted == 4


def test_one_id_deletes_the_first_in_memory_several_delete_all(b: StoreBuilder) -> None:
    """(R): [1,1,1,2,2,3] less a delete of 1 is [1,1,2,2,3]; a delete of two ids takes all."""
    b.wal.insert("c", join(rows(1), rows(1, salt=1), rows(1, salt=2), rows(2), rows(2, salt=1), rows(3)))
    b.wal.delete("c", [1])
    assert content(opened(b)) == {ROOT: bag(rows(1, salt=1), rows(1, salt=2), rows(2), rows(2, salt=1), rows(3))}
    b.wal.delete("c", [1])
    b.wal.insert("c", rows(1, salt=3))
    b.wal.delete("c", [2, 77])
    assert content(overwritten(b)) == {ROOT: bag(rows(1, salt=2), rows(1, salt=3), rows(3))}
    b.wal.delete("c", [1, 1])
    assert content(overwritten(b)) == {ROOT: bag(rows(3))}


def test_segments_in_memory_end_at_a_size(b: StoreBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single-id delete takes the first such row of *each* segment in memory; they are cut at 128 MiB of vectors."""
    monkeypatch.setattr(logtable, "MEMORY_SEGMENT_BYTES", 4 * 16)
    copies = [rows(1, salt=s) for s in range(10)]
    b.wal.insert("c", join(*copies[:3]))
    b.wal.insert("c", join(*copies[3:]))
    b.wal.delete("c", [1])
    kept = [c for i, c in enumerate(copies) if i % 4]
    assert content(opened(b)) == {ROOT: bag(*kept)}
    b.wal.delete("c", [1])  # what is deleted does not make room: the cuts stay
    b.wal.insert("c", rows(1, salt=10))
    b.wal.insert("c", join(rows(1, salt=11), rows(1, salt=12)))
    b.wal.delete("c", [1])
    kept = [rows(1, salt=s) for s in (3, 7, 11)]
    assert content(overwritten(b)) == {ROOT: bag(*kept)}


def test_segments_in_memory_begin_after_the_flush(b: StoreBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtable, "MEMORY_SEGMENT_BYTES", 4 * 16)
    b.segment("c", rows(8, 9, 10))
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(8, 9, 10))
    b.wal.insert("c", join(*(rows(1, salt=s) for s in range(5))))
    b.wal.delete("c", [1])
    assert content(opened(b)) == {ROOT: bag(rows(8, 9, 10), *(rows(1, salt=s) for s in (1, 2, 3)))}


def test_rows_inserted_after_a_delete_survive(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.delete("c", [1, 2])
    b.wal.insert("c", rows(1, salt=1))
    assert content(opened(b)) == {ROOT: bag(rows(1, salt=1))}


def test_created_again(b: StoreBuilder) -> None:
    """A collection created again under its name carries the LSN of that moment: records of its namesake are not its own."""
    b.wal.insert("c", rows(1, 2))
    b.wal.delete("c", [5])
    b.tables[0]["flush_lsn"] = b.wal.acknowledged
    b.wal.insert("c", rows(3))
    assert content(opened(b)) == {ROOT: bag(rows(3))}


def test_dropped_collection_in_the_log(b: StoreBuilder) -> None:
    b.collection("gone", state=1, dim=6)
    b.wal.insert("gone", rows(1, 2, dim=6))
    b.wal.insert("c", rows(3))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(3))}
    assert salvaged(store, "dropped") == {("dropped", "gone", "_default"): bag(rows(1, 2, dim=6))}


def test_vectors_of_another_size(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, dim=5))
    b.wal.insert("c", rows(2))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(2))}
    assert [(f.code, f.rows) for f in store.findings] == [("wal-shape", 1), ("wal-rows", 1)]


def test_type_of_the_other_kind_of_vector(tmp_path: Path) -> None:
    """A float insert in a binary collection has the wrong type even where the size would fit."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", dim=128, metric="JACCARD")
    b.wal.insert("c", rows(1, dim=4))  # 16 bytes as well
    b.wal.insert("c", rows(2, dim=128, binary=True))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(2, dim=128, binary=True))}
    assert codes(store) == ["wal-rows", "wal-shape"]


def test_records_without_rows(b: StoreBuilder) -> None:
    b.wal.record(2, "c", "", np.empty(0, np.int64), b"")
    b.wal.acknowledge()
    b.wal.insert("c", rows(1))
    assert content(opened(b)) == {ROOT: bag(rows(1))}


def test_entities(tmp_path: Path) -> None:
    """Inserts of hybrid collections, which a restarted server drops (§5.4); values come as 8 bytes and are stored narrower."""
    b = StoreBuilder(tmp_path / "store", version="1.0.0")
    b.collection("c")
    b.field("c", "age", 1)
    b.field("c", "score", 40)
    b.segment("c", rows(1), attributes={"age": np.array([7], "i1"), "score": np.array([0.25], "<f4")})
    b.wal.entity("c", rows(2, 3, 4), {"score": np.array([1.5, 2.5, 3.5]), "age": np.array([10, -20, 30])})
    b.wal.delete("c", [3])
    b.wal.entity("c", rows(5), {"age": np.array([50])})
    store = opened(b)
    batch = store["c"]["_default"].read()
    assert batch.ids.tolist() == [1, 2, 4, 5]
    assert bag(batch) == bag(rows(1, 2, 4, 5))
    assert {n: (a.dtype.str, a.tolist()) for n, a in batch.attributes.items()} == {
        "age": ("|i1", [7, 10, 30, 50]),
        "score": ("<f4", [0.25, 1.5, 3.5, 0.0]),
    }


@pytest.mark.parametrize("file_bytes", [150, 333, 1000])
def test_calls_over_several_files(tmp_path: Path, file_bytes: int) -> None:
    b = StoreBuilder(tmp_path / "store", wal_file_bytes=file_bytes)
    b.collection("c")
    b.partition("c", "p")
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(range(40)))
    b.segment("c", rows(range(40)))
    b.wal.insert("c", rows(range(100, 160)))
    b.wal.insert("c", rows(range(200, 230)), "p")
    b.wal.delete("c", [*range(0, 40, 2), *range(100, 160, 3), *range(200, 230, 4)])
    b.wal.insert("c", rows(100, 0))
    store = opened(b)
    assert content(store) == {
        ROOT: bag(rows(range(1, 40, 2)), rows(*(i for i in range(100, 160) if (i - 100) % 3)), rows(100, 0)),
        ("c", "p"): bag(rows(*(i for i in range(200, 230) if (i - 200) % 4))),
    }
    assert set(codes(store)) == {"wal-rows", "wal-deletes"}


# A crash between T1 and T2 (§3.4, §6.4) ----------------------------------------------------------------------------------


def doubled(b: StoreBuilder, expected: Batch, count: int) -> None:
    """The rows come out once, and it is said."""
    store = opened(b)
    assert content(store) == {ROOT: bag(expected)}
    assert [(f.rows, f.severity) for f in store.findings if f.code == "flush-unrecorded"] == [(count, Severity.INFO)]


def test_flushed_but_not_recorded(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.segment("c", rows(1, 2, 3))
    doubled(b, rows(1, 2, 3), 3)


def test_flushed_but_not_recorded_with_more_after(b: StoreBuilder) -> None:
    b.segment("c", rows(50, 51))
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(50, 51))
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.wal.delete("c", [1, 50])
    doubled(b, rows(51, 2, 3), 2)


def test_flushed_but_not_recorded_with_deletes_in_memory(b: StoreBuilder) -> None:
    """Rows deleted while in memory never reached the segment, those deleted on disk were deleted before."""
    b.segment("c", rows(50, 51), deleted=[0])
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(50, 51))
    b.wal.insert("c", rows(range(10)))
    b.wal.delete("c", [3, 4, 50])
    b.wal.insert("c", rows(4, salt=1))
    b.segment("c", join(rows(0, 1, 2, *range(5, 10)), rows(4, salt=1)))
    doubled(b, join(rows(51, 0, 1, 2, *range(5, 10)), rows(4, salt=1)), 9)


def test_flushed_but_not_recorded_in_several_segments(b: StoreBuilder) -> None:
    b.segment("c", rows(90))
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(90))
    b.wal.insert("c", rows(range(10)))
    b.segment("c", rows(range(4)))
    b.segment("c", rows(range(4, 8)))
    b.segment("c", rows(8, 9))
    b.wal.insert("c", rows(10))
    doubled(b, rows(90, range(11)), 10)


def test_flushed_but_not_recorded_beside_a_merge(b: StoreBuilder) -> None:
    """A segment gets its number with its first row in memory: a merge of older ones, done meanwhile, has a higher one."""
    old = b.wal.insert("c", rows(range(20, 26)))
    b.tables[0]["flush_lsn"] = old
    in_memory = b.new_id()
    b.segment("c", rows(range(20, 26)))  # the merge's target
    b.wal.insert("c", rows(1, 2, 3))
    b.segment("c", rows(1, 2, 3), id=in_memory)
    doubled(b, rows(1, 2, 3, range(20, 26)), 3)


def test_flushed_but_not_recorded_in_a_partition(b: StoreBuilder) -> None:
    part = b.partition("c", "p")
    b.wal.insert("c", rows(1, 2), "p")
    b.wal.insert("c", rows(3))
    b.wal.delete("c", [1])
    b.segment(part["table_id"], rows(2))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(3)), ("c", "p"): bag(rows(2))}
    assert codes(store) == ["flush-unrecorded", "wal-rows"]


def test_flushed_but_not_recorded_after_the_root(b: StoreBuilder) -> None:
    """The root's flush is recorded, the partition's is not: deletes that recovery would pass over were applied in memory."""
    part = b.partition("c", "p")
    b.wal.insert("c", rows(1, 2, 3), "p")
    b.wal.delete("c", [1])
    b.tables[0]["flush_lsn"] = b.wal.position
    b.segment(part["table_id"], rows(2, 3))
    store = opened(b)
    assert content(store) == {ROOT: NOTHING, ("c", "p"): bag(rows(2, 3))}
    assert codes(store) == ["flush-unrecorded"]


def test_flushed_but_not_recorded_by_a_restarted_server(b: StoreBuilder) -> None:
    """The root's flush is recorded, so a restarted server passes over the delete, and flushes all rows of the partition."""
    part = b.partition("c", "p")
    b.wal.insert("c", rows(1, 2, 3), "p")
    b.wal.delete("c", [1])
    b.tables[0]["flush_lsn"] = b.wal.position
    b.segment(part["table_id"], rows(1, 2, 3))
    store = opened(b)
    assert content(store) == {ROOT: NOTHING, ("c", "p"): bag(rows(1, 2, 3))}
    assert codes(store) == ["flush-unrecorded"]


def test_crash_in_the_recovery_of_an_unrecorded_flush(b: StoreBuilder) -> None:
    """The server has replayed the rows once more and died again: still they were inserted once, and the whole log says so."""
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.file("c", b.new_id(), NEW)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert codes(store) == ["flush-unrecorded"]


def test_identical_batch_after_one_that_lost_rows(b: StoreBuilder) -> None:
    """The first of two equal batches was flushed without a row deleted before; the second was flushed but not recorded."""
    b.wal.insert("c", rows(1, 2, 9))
    b.tables[0]["flush_lsn"] = b.wal.delete("c", [9, 77])
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2, 9))
    b.segment("c", rows(1, 2, 9))
    doubled(b, rows(1, 2, 1, 2, 9), 3)


def test_identical_batches_are_not_one(b: StoreBuilder) -> None:
    """The same batch inserted and flushed, then inserted once more and not flushed: twice is right."""
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2), rows(1, 2))}
    assert codes(store) == ["wal-rows"]


def test_identical_batches_whose_first_record_is_gone(b: StoreBuilder) -> None:
    """With the old file removed only the catalog's row of a segment in memory tells that these rows are not flushed."""
    b.wal.next_file()
    b.tables[0]["flush_lsn"] = b.global_lsn = b.wal.position + 100
    b.wal.position += 100
    b.wal.files[1] = bytearray(100)
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.file("c", b.new_id(), NEW)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2), rows(1, 2), rows(3))}
    assert codes(store) == ["wal-rows"]


def test_identical_batches_both_unflushed(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    assert content(opened(b)) == {ROOT: bag(rows(1, 2), rows(1, 2))}


def test_identical_batches_flushed_together_but_not_recorded(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2, 1, 2))
    doubled(b, rows(1, 2, 1, 2), 4)


def test_identical_batch_again_after_an_unrecorded_flush(b: StoreBuilder) -> None:
    """One of the two is in the segment, the other in the log only: after the crash's flush nothing is taken away."""
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(1, 2))
    doubled(b, rows(1, 2, 1, 2), 2)


# Logs that are not to be replayed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_begins", [True, False])
def test_rows_loaded_again(log_begins: bool, b: StoreBuilder) -> None:
    """Flushed rows deleted and inserted again, most of them as they were: no flush that the catalog does not know."""
    if log_begins:
        b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(range(10)))
    else:  # the file of the first inserts is gone
        b.wal.next_file()
        b.tables[0]["flush_lsn"] = b.global_lsn = b.wal.position + 100
        b.wal.position += 100
        b.wal.files[1] = bytearray(100)
    b.segment("c", rows(range(10)))
    b.wal.delete("c", range(10))
    b.wal.insert("c", join(rows(range(8)), rows(8, 9, salt=1)))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(range(8)), rows(8, 9, salt=1))}
    assert codes(store) == ["wal-deletes", "wal-rows"]


def test_row_inserted_and_deleted_again_and_again(b: StoreBuilder) -> None:
    """The row was inserted and flushed, deleted, and inserted and flushed once more; then once more, not flushed."""
    b.wal.insert("c", rows(22, 1, 2, 3))
    b.wal.delete("c", [22])
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(22))
    b.segment("c", rows(22, 1, 2, 3), deleted=[0])
    b.segment("c", rows(22))
    b.wal.insert("c", rows(22))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3, 22, 22))}
    assert codes(store) == ["wal-rows"]


def test_log_switched_off_by_the_configuration(b: StoreBuilder) -> None:
    """§5.8: a leftover from before."""
    b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2, 3))
    b.config("wal:\n  enable: false\n")
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert [(f.code, f.severity, f.rows) for f in store.findings] == [("wal-disabled", Severity.INFO, 2)]


def test_log_switched_off_after_flushes_with_a_log(b: StoreBuilder) -> None:
    """A flush without a log would have set flush_lsn to 0: these rows may have been lost only when it was switched off."""
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1, 2))
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.config("wal:\n  enable: false\n")
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert [(f.code, f.severity, f.rows) for f in store.findings] == [("wal-disabled", Severity.WARNING, 1)]
    store = open_store(b.root, wal=b.root / "wal")
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert codes(store) == ["wal-rows"]


def test_stale_log_without_a_configuration(b: StoreBuilder) -> None:
    """flush_lsn 0 although rows of the log are in segments: the server ran without its log later on."""
    b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3))
    b.segment("c", rows(1, 2, 3, 4))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3, 4))}
    assert codes(store) == ["wal-stale"]


def test_log_switched_on_by_the_configuration(b: StoreBuilder) -> None:
    b.config("wal:\n  enable: true\n")
    b.segment("c", rows(5))
    b.wal.insert("c", rows(1, 2))
    assert content(opened(b)) == {ROOT: bag(rows(1, 2, 5))}


def test_without_replay_rows_are_counted(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 2))
    b.wal.insert("c", rows(3, 4))
    b.wal.delete("c", [1, 3])
    store = open_store(b.write(), replay_wal=False)
    assert content(store) == {ROOT: bag(rows(1, 2))}
    assert [(f.code, f.severity, f.rows) for f in store.findings] == [("wal-not-replayed", Severity.WARNING, 1)]
    assert content(open_store(b.root)) == {ROOT: bag(rows(2, 4))}


def test_log_elsewhere(b: StoreBuilder, tmp_path: Path) -> None:
    b.wal_folder = tmp_path / "elsewhere"
    b.wal.insert("c", rows(1))
    assert content(opened(b)) == {ROOT: NOTHING}
    assert content(open_store(b.root, wal=b.wal_folder)) == {ROOT: bag(rows(1))}


def test_runs_of_equal_records(b: StoreBuilder) -> None:
    """Records of one shape in a row are read at once; what is between them, in sizes and kinds, breaks the row."""
    part = b.partition("c", "p")
    b.segment(part["table_id"], rows(999))
    part["flush_lsn"] = b.wal.insert("c", rows(999), "p")
    expected: dict[str, list[Batch]] = {"": [], "p": [rows(999)]}
    for i in range(300):
        tag = "p" if i % 29 == 7 else ""
        batch = rows(*range(1000 * i, 1000 * i + (2 if i % 41 > 35 else 1)))
        b.wal.insert("c", batch, tag)
        expected[tag].append(batch)
        if i % 31 == 5:
            b.wal.delete("c", [-1])
        if i % 97 == 0:
            b.wal.next_file()
    store = opened(b)
    assert content(store) == {ROOT: bag(*expected[""]), ("c", "p"): bag(*expected["p"])}
    [piece] = store["c"]["_default"].pieces
    whole = join(*expected[""])
    for max_bytes, start in ((1, 0), (64, 17), (1000, 250), (1 << 20, 3)):
        got = join(*(Batch(x.ids.copy(), x.vectors.copy()) for x in piece.batches(max_bytes, start)))
        assert (got.ids == whole.ids[start:]).all()
        assert (got.vectors == whole.vectors[start:]).all()


# Many small records ------------------------------------------------------------------------------------------------------


def test_many_records_of_one_row(b: StoreBuilder) -> None:
    """200,000 calls of one row each, some deletes among them: seconds, not minutes."""
    count = 200_000
    batch = rows(range(count))
    vectors = batch.vectors.view(np.uint8)
    head = WAL_HEADER.size + 1
    record = head + 8 + 16
    data = np.zeros((count, record), np.uint8)
    for i, name in enumerate(("<u8", "u1", "<u2", "<u2", "<u4", "<u4")):
        values = [(np.arange(count) + 1) * record, 2, 1, 0, 1, 16][i]
        at = (0, 8, 9, 11, 13, 17)[i]
        width = np.dtype(name).itemsize
        data[:, at : at + width] = np.broadcast_to(np.asarray(values, name).reshape(-1, 1).view(np.uint8), (count, width))
    data[:, 21] = ord("c")
    data[:, head : head + 8] = batch.ids.view(np.uint8).reshape(count, 8)
    data[:, head + 8 :] = vectors
    b.wal.raw(data.tobytes())
    b.wal.acknowledge()
    b.wal.delete("c", range(0, count, 1000))
    b.wal.insert("c", rows(5, salt=1))
    root = b.write()
    begun = time.process_time()
    store = open_store(root)
    got = store["c"]["_default"].read()
    seconds = time.process_time() - begun
    alive = np.flatnonzero(np.arange(count) % 1000)
    assert got.ids.tolist() == [*alive.tolist(), 5]
    assert (got.vectors == np.concatenate([batch.vectors[alive], rows(5, salt=1).vectors])).all()
    assert seconds < 10
