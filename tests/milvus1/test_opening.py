"""A store is opened stage by stage, and no stage changes what an earlier one decided."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.real import STORES

from milvus_offline.milvus1 import opening
from milvus_offline.milvus1.opening import open_store

STAGES = ("selected", "with_segments", "with_log", "compared", "with_collections")


@pytest.mark.parametrize("name", ["partitions", "crash_rand_3", "crash_dup", "race_partitions", "lost_flush"])
def test_each_stage_leaves_alone_what_was_decided_before(name: str) -> None:
    value = opening._begin(STORES / name / "store", None, None, (), None)
    for stage in STAGES:
        before = {name: repr(held) for name, held in value._asdict().items()}
        made = getattr(value, stage)(*([True] if stage in ("with_log", "with_collections") else []))
        assert {name: repr(held) for name, held in value._asdict().items()} == before
        assert made.findings[: len(value.findings)] == value.findings
        value = made
    assert content(value.store()) == content(open_store(STORES / name / "store"))


def test_a_server_that_runs_is_told(b: StoreBuilder) -> None:
    b.segment("c", rows(1, 2))
    root = b.write()
    hold = f"import fcntl, sys; f = open({str(root / 'lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline() == b"\n"  # it holds the lock now
        assert codes(open_store(root)) == ["server-running"]
        assert server.stdin is not None
        server.stdin.close()
    assert codes(open_store(root)) == []


def test_two_partitions_of_one_tag_are_read_as_one(b: StoreBuilder) -> None:
    for number in (1, 2):
        table = b.partition("c", "tag", table_id=f"c_{number}")
        b.segment(table["table_id"], rows(number))
    store = open_store(b.write())
    assert codes(store) == ["partition-twice"]
    assert content(store)["c", "tag"] == bag(rows(1, 2))
