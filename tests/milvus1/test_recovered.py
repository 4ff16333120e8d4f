"""Rows of lost segments that the write-ahead log still holds (FORMAT §4.7)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.real import copy_store, truth

from milvus_offline.milvus1.opening import open_store


@pytest.mark.parametrize("name", ["flat_basic", "indexed", "binary", "partitions", "deletes_cleaned", "crash_rand_3"])
@pytest.mark.parametrize("what", [".rv", ".uid", "folder"])
def test_the_log_brings_back_lost_segments_exactly(tmp_path: Path, name: str, what: str) -> None:
    root = copy_store(name, tmp_path)
    for collection in open_store(root).values():
        for partition in collection.partitions:
            for segment in partition.segments[:1]:
                path = Path(segment.paths[1 if what == ".uid" else 0])
                shutil.rmtree(path.parent) if what == "folder" else path.unlink()
    store = open_store(root)
    assert content(store) == truth(name)
    told = {"rows-from-log", "copied-while-running"} & set(codes(store))
    assert told, "their sources in a merge, where these still are, or the log"
    if "rows-from-log" in told:
        assert open_store(root, replay_wal=False).rows < store.rows


def test_deleted_and_stored_rows_do_not_come_back(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    table = b.collection("c")
    b.wal.insert("c", rows(1, 2, 3, 4, 5))
    b.wal.insert("c", rows(6, 7))
    b.wal.delete("c", [2])
    table["flush_lsn"] = b.wal.insert("c", rows(2, 3, salt=9))
    b.wal.delete("c", [5])
    lost = b.segment("c", rows(1, 2, 3, 4, 5), deleted=[1])
    b.segment("c", rows(6, 7))
    b.segment("c", rows(2, 3, salt=9))
    root = b.write()
    lost.raw.unlink()
    store = open_store(root)
    assert content(store) == {("c", "_default"): bag(rows(1, 3, 4), rows(6, 7), rows(2, 3, salt=9))}
    found = {f.code: f for f in store.findings}
    assert found["rows-from-log"].rows == 3
