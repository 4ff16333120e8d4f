"""A log that lost what it held, or that is another server's; and a catalog of another moment than the log (FORMAT §5, §16)."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, bag, codes, content, join, rows
from support.command import call
from support.real import copy_store

from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Severity

NEW, RAW = FileType.NEW, FileType.RAW
ROOT = ("c", "_default")


@pytest.fixture
def b(tmp_path: Path) -> StoreBuilder:
    builder = StoreBuilder(tmp_path / "store", wal_file_bytes=400)
    builder.collection("c")
    return builder


def opened(b: StoreBuilder) -> Store:
    return open_store(b.write())


# What the log lost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["zeros", "empty", "another meta"])
def test_a_log_without_what_the_catalog_knows_in_memory(b: StoreBuilder, how: str) -> None:
    """The picture after a power failure."""
    b.wal.insert("c", rows(1, 2))
    b.file("c", b.new_id(), NEW)
    b.wal.files = {0: bytearray(0 if how == "empty" else 150)}
    b.wal.meta = {"zeros": bytes(24), "empty": b"", "another meta": struct.pack("<QQQ", 0, 100, 100)}[how]
    store = opened(b)
    assert content(store) == {ROOT: bag()}
    assert "wal-lacks-rows" in codes(store)


def test_the_log_of_another_server(b: StoreBuilder) -> None:
    b.file("c", b.new_id(), NEW)
    b.wal.insert("theirs", rows(1, 2))
    store = opened(b)
    assert codes(store) == ["wal-lacks-rows"]


def test_rows_in_memory_that_the_log_has(b: StoreBuilder) -> None:
    """Also where deletes have taken all of them."""
    b.wal.insert("c", rows(1))
    b.wal.delete("c", [1])
    b.file("c", b.new_id(), NEW)
    store = opened(b)
    assert content(store) == {ROOT: bag()}
    assert codes(store) == []


def full_files(b: StoreBuilder) -> None:
    """Three files, all but the last of them full."""
    for i in range(0, 30, 3):
        b.wal.insert("c", rows(range(i, i + 3)))
    assert sorted(b.wal.files) == [0, 1, 2]


@pytest.mark.parametrize("records", [0, 1, 2])
def test_a_file_cut_where_a_record_ends(b: StoreBuilder, records: int) -> None:
    """The next file's first record would have fitted, so it was never meant to end there."""
    full_files(b)
    assert codes(opened(b)) == ["wal-rows"]
    size = 22 + 3 * 24
    b.wal.files[1] = b.wal.files[1][: records * size]
    b.clear_wal()
    b.wal.write(b.root / "wal")
    store = open_store(b.root)
    [finding] = [f for f in store.findings if f.severity is Severity.ERROR]
    assert (finding.code, finding.where) == ("wal-cut", str(b.root / "wal" / "1.wal"))


def test_a_file_that_begins_with_zeros(b: StoreBuilder) -> None:
    full_files(b)
    b.wal.files[1][:60] = bytes(60)
    store = opened(b)
    [finding] = [f for f in store.findings if f.severity is Severity.ERROR]
    assert (finding.code, finding.where) == ("wal-torn", str(b.root / "wal" / "1.wal"))
    assert "begin with zeros" in finding.message


def test_zeros_at_the_end_where_nothing_was_acknowledged_for_sure(b: StoreBuilder) -> None:
    """A record cut off by a crash begins with its LSN; zeros were put there by a file system."""
    b.wal.insert("c", rows(1))
    b.wal.insert("c", rows(2))
    b.wal.meta = None
    b.wal.files[0][-40:] = bytes(40)
    assert "wal-torn" not in codes(opened(b))
    at = len(b.wal.files[0]) // 2
    b.wal.files[0][at:] = bytes(len(b.wal.files[0]) - at)
    b.clear_wal()
    b.wal.write(b.root / "wal")
    assert "wal-torn" in codes(open_store(b.root))


def test_a_lost_block_in_vectors_of_the_log(tmp_path: Path) -> None:
    store = copy_store("crash_wal", tmp_path)
    path = max((store / "wal").glob("*.wal"), key=lambda p: p.stat().st_size)
    with path.open("r+b") as f:
        f.seek(8192)
        f.write(bytes(4096))
    done = call("export", store, tmp_path / "out")
    assert done.code == 3
    assert call("verify", store).code == 4
    [finding] = [f for f in open_manifest(tmp_path / "out") if f["severity"] == "error"]
    assert finding["code"] == "blocks-lost"
    assert finding["rows"] > 0


def open_manifest(out: Path) -> list[dict[str, object]]:
    import json

    found: list[dict[str, object]] = json.loads((out / "manifest.json").read_text())["findings"]
    return found


# A flush_lsn that is not the segments' ----------------------------------------------------------------------------------------


def flushed_and_merged(b: StoreBuilder) -> int:
    """Three flushes, two of them merged; returns the LSN of the first."""
    first = b.wal.insert("c", rows(1, 2))
    b.wal.insert("c", rows(3, 4))
    b.wal.delete("c", [3])
    b.wal.insert("c", rows(5), "")
    b.segment("c", join(rows(1, 2), rows(4)))
    b.segment("c", rows(5))
    return first


@pytest.mark.parametrize("lsn", ["first", "none"])
def test_flush_lsn_older_than_the_segments(b: StoreBuilder, lsn: str) -> None:
    """A catalog copied while the server ran: merged since, so that no segment is what was in memory."""
    first = flushed_and_merged(b)
    b.tables[0]["flush_lsn"] = first if lsn == "first" else 0
    b.wal.insert("c", rows(6))
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 4, 5, 6))}
    assert codes(store) == ["flush-unrecorded", "wal-rows"]


def test_a_delete_before_the_older_flush_lsn_takes_no_later_row(b: StoreBuilder) -> None:
    b.wal.insert("c", rows(1, 2))
    b.wal.delete("c", [1])
    b.wal.insert("c", rows(1, salt=1))
    b.segment("c", join(rows(1, 2), rows(1, salt=1)), deleted=[0])
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(2), rows(1, salt=1))}


def test_flush_lsn_where_no_record_ends(b: StoreBuilder) -> None:
    """One bit of it: what segments and log both hold is taken once."""
    flushed_and_merged(b)
    b.tables[0]["flush_lsn"] = b.wal.position - 7
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 4, 5))}
    assert codes(store) == ["flush-lsn-wrong", "flush-unrecorded"]


def test_flush_lsn_at_the_beginning_of_a_file(b: StoreBuilder) -> None:
    """That of a collection made right after a restart."""
    b.wal.next_file()
    b.tables[0]["flush_lsn"] = b.wal.position
    b.wal.insert("c", rows(1))
    assert codes(opened(b)) == ["wal-rows"]


# Many deletes -----------------------------------------------------------------------------------------------------------------


def test_one_delete_of_very_many_rows_in_the_log(tmp_path: Path) -> None:
    """Numbers in arrays: not an object for each of them."""
    import tracemalloc

    b = StoreBuilder(tmp_path / "store")
    b.collection("c", dim=8, metric="HAMMING")
    count = 300_000
    batch = rows(range(count), dim=8, binary=True)
    b.wal.insert("c", batch)
    b.wal.delete("c", np.arange(0, count - 5))
    b.write()
    tracemalloc.start()
    store = open_store(b.root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.rows == 5
    assert peak < 150 * count


# Names in records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["b", "\xe3", "!"])
@pytest.mark.parametrize("kind", ["insert", "delete"])
def test_a_record_whose_collection_was_hit(b: StoreBuilder, name: str, kind: str) -> None:
    """A bit in its name, which has no check of its own: nothing in the catalog speaks of such a collection, or of its drop."""
    b.wal.insert("c", rows(1, 2, 3))
    start = b.wal.position & 0xFFFFFFFF
    getattr(b.wal, kind)("c", rows(4) if kind == "insert" else [1])
    b.wal.files[0][start + 21] = ord(name)
    store = opened(b)
    assert content(store) == {ROOT: bag(rows(1, 2, 3))}
    assert [(f.code, f.rows) for f in store.findings if f.severity is Severity.WARNING] == [("log-stranger", 1)]


def test_a_record_whose_tag_was_hit(b: StoreBuilder) -> None:
    b.partition("c", "p1")
    b.wal.insert("c", rows(1, 2), "p1")
    b.wal.insert("c", rows(3), "p3")
    store = opened(b)
    assert [(f.code, f.rows) for f in store.findings if f.severity is Severity.WARNING] == [("log-stranger", 1)]


def test_a_dropped_collection_leaves_records_and_traces(b: StoreBuilder) -> None:
    """Its files wait ten seconds for their end (FORMAT §3.5); what was flushed after it is older than they are."""
    b.collection("d")
    b.wal.insert("c", rows(1))
    b.wal.insert("d", rows(2))
    b.file("d", b.new_id(), FileType.TO_DELETE)
    b.tables.pop()
    assert codes(opened(b)) == ["wal-rows"]


def test_a_collection_that_was_dropped_before_the_last_flush(b: StoreBuilder) -> None:
    b.wal.insert("b", rows(2))
    b.segment("c", rows(1))
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(1))
    assert codes(opened(b)) == []
