"""`--lost-ids`: of rows that a disk took the ids are written, where these are not lost with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.badsectors import PAGE, refusing
from support.builder import StoreBuilder
from support.command import Outcome, call
from support.real import copy_store

from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import Batch

ROWS = 1000
DIM = 128


def rows(first: int, count: int = ROWS, dim: int = DIM) -> Batch:
    vectors = np.random.default_rng(first).uniform(1, 2, (count, dim)).astype("<f4")
    return Batch(np.arange(first, first + count), vectors)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A segment with the ids 1 to 1000, of which each third is deleted and 12 by the log; one with 5001 to 6000."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=DIM, flush_lsn=0)
    b.segment("c", rows(1), bloom=True, deleted=list(range(2, ROWS, 3)))
    b.segment("c", rows(5001), bloom=True)
    b.wal.delete("c", [10])
    return b.write()


def blank(path: Path, first: int, last: int) -> None:
    data = bytearray(path.read_bytes())
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def lost(command: str, root: Path, tmp_path: Path) -> tuple[Outcome, set[int]]:
    """What a run writes, and the ids in it."""
    out = [tmp_path / "out", "--overwrite"] if command == "export" else []
    done = call(command, root, *out, "--lost-ids", tmp_path / "lost.csv", "--json")
    head, *lines = (tmp_path / "lost.csv").read_text().splitlines()
    assert head == "collection,partition,id" and done.json["lost_ids"] == len(lines)
    return done, {int(line.removeprefix("c,_default,")) for line in lines}


@pytest.mark.parametrize("command", ["export", "verify"])
def test_rows_whose_vectors_lie_in_lost_blocks_are_named(command: str, root: Path, tmp_path: Path) -> None:
    """Bytes 4096 to 8191 hold the rows 7 to 15, after a header of 8 bytes."""
    blank(sorted(root.rglob("*.rv"))[0], PAGE, 2 * PAGE)
    done, ids = lost(command, root, tmp_path)
    assert ids == {8, 11, 13, 14, 16}  # 9, 12 and 15 are deleted, 10 is by the log
    assert [f["code"] for f in done.json["findings"] if f["severity"] == "error"] == ["blocks-lost"]


def test_rows_whose_ids_are_lost_cannot_be_named(root: Path, tmp_path: Path) -> None:
    """Of ids a block holds 64; vectors that are lost in these rows too are not named by what stands in their place."""
    blank(sorted(root.rglob("*.uid"))[1], 512, 1024)
    assert lost("export", root, tmp_path)[1] == set()
    blank(sorted(root.rglob("*.rv"))[1], 56 * 512, 72 * 512)  # rows 55 to 71: ids of 63 to 126 are lost
    assert lost("export", root, tmp_path)[1] == set(range(5056, 5064))


@pytest.mark.parametrize("command", ["export", "verify"])
def test_rows_in_places_that_the_disk_refuses_are_named(command: str, root: Path, tmp_path: Path) -> None:
    with refusing({sorted(root.rglob("*.rv"))[0]: [(PAGE, 2 * PAGE)]}):
        assert lost(command, root, tmp_path)[1] == {8, 11, 13, 14, 16}
    with refusing({sorted(root.rglob("*.uid"))[1]: [(PAGE, 2 * PAGE)]}):
        assert lost(command, root, tmp_path)[1] == set()


@pytest.mark.parametrize("each", [1, 60])
@pytest.mark.parametrize("is_refused", [False, True])
def test_rows_of_the_log_are_named(each: int, is_refused: bool, tmp_path: Path) -> None:
    """Two collections share the log's file; of two rows that are hit, one is deleted."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("a", dim=4 * DIM)
    b.collection("c", dim=4 * DIM)
    b.wal.insert("a", rows(9001, 5, 4 * DIM))
    for first in range(1, 61, each):
        b.wal.insert("c", rows(first, each, 4 * DIM))
    b.wal.delete("c", [31])
    root = b.write()
    (piece,) = open_store(root)["c"]["_default"].log
    begins = [data_at + 2048 * row for _, _, data_at, count in piece.places() for row in range(count)]
    hit = [-(-begins[n] // 512) * 512 for n in (20, 30)]  # the first whole sector of these vectors
    (log,) = root.rglob("*.wal")
    if is_refused:
        with refusing({log: [(at, at + 512) for at in hit]}, page=512):
            assert lost("export", root, tmp_path)[1] == {21}
    else:
        for at in hit:
            blank(log, at, at + 512)
        assert lost("export", root, tmp_path)[1] == {21}


def test_of_a_real_store_those_in_lost_blocks_are_named(tmp_path: Path) -> None:
    store = copy_store("flat_basic", tmp_path)
    before = {(c.name, p.name): p.read() for c in open_store(store).values() for p in c.values()}
    blank(max(store.rglob("*.rv"), key=lambda p: p.stat().st_size), PAGE, 2 * PAGE)
    after = {(c.name, p.name): p.read() for c in open_store(store).values() for p in c.values()}
    changed = {
        f"{c},{p},{i}"
        for (c, p), batch in before.items()
        for i in batch.ids[(batch.vectors != after[c, p].vectors).any(axis=1)]
    }
    call("verify", store, "--lost-ids", tmp_path / "lost.csv")
    assert set((tmp_path / "lost.csv").read_text().splitlines()[1:]) == changed and changed
