"""A collection in parts, for the engines: as many as were asked for, and what is wrong with them is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.builder import StoreBuilder, rows
from support.tables import bag_of_batches

from milvus_offline.engines import table
from milvus_offline.engines.table import open_table
from milvus_offline.errors import UsageError


@pytest.mark.parametrize("wanted", [1, 2, 3, 7, 1000])
def test_there_are_at_most_as_many_parts_as_asked_for(wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_MIN_BYTES", 1)
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("c")
    for n in range(5):
        tag = builder.partition("c", f"p{n}")["table_id"]
        builder.segment(tag, rows(range(10 * n, 10 * n + 7)), deleted=[n])
    builder.wal.insert("c", rows(100, 101), "p1")
    opened = open_table(builder.write(), "c", None)
    parts = opened.parts(wanted)
    assert len(parts) == min(wanted, 32) and sum(p.rows for p in parts) == opened.rows == 32
    found = [(r["partition"], r["id"]) for p in parts for b in p.batches() for r in b.to_pylist()]
    expected = [(f"p{n}", 10 * n + i) for n in range(5) for i in range(7) if i != n] + [("p1", 100), ("p1", 101)]
    assert sorted(found) == sorted(expected)


def test_lost_rows_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("c")
    segment = builder.segment("c", rows(1, 2, 3))
    root = builder.write()
    with caplog.at_level(logging.WARNING, "milvus_offline"):
        open_table(root, "c", None).warn()
        assert not caplog.messages, "a healthy store has nothing to tell"
        segment.raw.unlink()
        lossy = open_table(root, "c", None)
        lossy.warn()
    assert bag_of_batches(b for p in lossy.parts(2) for b in p.batches()).total() == 0
    (told,) = caplog.messages
    assert f"{root}: error segment-incomplete: 1 place, 3 rows" in told
    assert [f.code for f in lossy.findings] == ["segment-incomplete"]


def test_rows_that_are_not_live_are_no_table(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("c")
    builder.segment("c", rows(1, 2, 3), deleted=[1])
    with pytest.raises(UsageError, match="a table has live rows only; milvus-offline export --salvage"):
        open_table(builder.write(), "c", None, {"salvage": ["deleted"]})
