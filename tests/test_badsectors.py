"""Stores on a disk that refuses some sectors: everything else comes, what does not is named, and nothing else is blamed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.badsectors import PAGE, refusing
from support.builder import StoreBuilder
from support.command import Outcome, call, exported, manifest
from support.real import copy_store, truth

from milvus_offline import fileio
from milvus_offline.errors import DamageError
from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import Batch

ROWS = 2000


def numbers(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(1, 2, (rows, width)).astype("<f4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two segments of 2000 rows of 512 bytes, of which each third row is deleted, in one."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128)
    for first in (1, ROWS + 1):
        deleted = list(range(0, ROWS, 3)) if first > 1 else []
        b.segment("c", Batch(np.arange(first, first + ROWS), numbers(ROWS, 128)), bloom=True, deleted=deleted)
    return b.write()


def segment_file(root: Path, suffix: str, number: int = 0) -> Path:
    return sorted(root.rglob(f"*{suffix}"))[number]


def lost_of(outcome: Outcome) -> list[tuple[str, int]]:
    found = [f for f in outcome.json["findings"] if f["code"] == "segment-unreadable"]
    return [(re.search(r"[0-9]+(\.rv|\.uid)", f["message"])[1], f["rows"]) for f in found]


@pytest.mark.parametrize(
    "options", [[], ["--jobs", "1"], ["--compression", "gzip"], ["--format", "npy"], ["--format", "parquet"]]
)
@pytest.mark.parametrize(("suffix", "rows"), [(".rv", 9), (".uid", 512)])
def test_an_export_leaves_out_what_cannot_be_read(
    root: Path, tmp_path: Path, suffix: str, rows: int, options: list[str]
) -> None:
    """A page of 4096 bytes: nine vectors of 512 bytes (after a header of 8), or 512 ids."""
    bad = segment_file(root, suffix)
    with refusing({bad: [(PAGE, PAGE + 1)]}):
        done = call("export", root, tmp_path / "out", "--json", *options)
    assert (done.code, done.err) == (3, "")
    assert lost_of(done) == [(suffix, rows)]
    assert f"{bad}: the disk refuses bytes 4096 to 8191" in str(done.json["findings"])
    assert done.json["rows"] == ROWS + ROWS - 667 - rows
    (collection,) = manifest(tmp_path / "out")["collections"]
    assert [p["rows"] for p in collection["partitions"]] == [done.json["rows"]]
    assert call("verify", tmp_path / "out").code == 0
    with refusing({bad: [(PAGE, PAGE + 1)]}):
        again = call("verify", tmp_path / "out", "--against", root, "--json")
    assert again.code == 3 and lost_of(again) == [(suffix, rows)]
    assert [f["code"] for f in again.json["findings"]] == ["segment-unreadable"]


def test_the_right_rows_are_left_out(root: Path, tmp_path: Path) -> None:
    """Also where some of them are deleted: these are not counted as lost."""
    bad = segment_file(root, ".rv", 1)
    with refusing({bad: [(8 * PAGE, 9 * PAGE), (100 * PAGE, 100 * PAGE + 1)]}):
        done = call("export", root, tmp_path / "out", "--json")
    first = {ROWS + 1 + i for a in (8, 100) for i in range(8 * a - 1, 8 * a + 8)}
    lost = {i for i in first if (i - ROWS - 1) % 3}
    assert lost_of(done) == [(".rv", len(lost))]
    ids = {i for i, _ in exported(tmp_path / "out")["c", "_default"]}
    assert ids == {i for i in range(1, 2 * ROWS + 1) if i <= ROWS or (i - ROWS - 1) % 3} - lost


def test_nothing_is_read_twice(root: Path, tmp_path: Path) -> None:
    """Of a failing disk every attempt may be the last. `.uid` is not read before, as no delete in the log asks for it."""
    bad = segment_file(root, ".rv")
    with refusing({bad: [(50 * PAGE, 51 * PAGE), (70 * PAGE, 71 * PAGE)]}) as reads:
        assert call("export", root, tmp_path / "out", "--jobs", "1").code == 3
    covered = np.zeros(bad.stat().st_size, np.int64)
    for offset, got in reads:
        covered[offset : offset + got] += 1
    rows = covered[8:]  # the header, which tells how much there is, is compared when the segment is opened
    assert rows.max() == 1
    assert (rows == 0).sum() == 2 * PAGE


def test_a_sector_is_the_least_that_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = bytes(np.random.default_rng(0).integers(1, 256, 100_000, dtype="u1"))
    path.write_bytes(data)
    buffer = bytearray(90_003)
    fd = fileio.open_read(path)
    with refusing({path: [(1000, 1001), (50_000, 51_000), (90_010, 90_011)]}, page=512):
        lost = fileio.read_around(fd, memoryview(buffer), 8, path)
        assert lost == [(512, 1024), (49_664, 51_200), (89_600, 90_011)]
        expected = bytearray(data[8:90_011])
        for a, b in lost:
            expected[a - 8 : b - 8] = bytes(b - a)
        assert buffer == expected
        with pytest.raises(DamageError, match="x at byte 512: cannot be read: Input/output error"):
            fileio.read_into(fd, memoryview(buffer), 8, path)


def test_who_does_not_watch_is_told_at_once(root: Path) -> None:
    with refusing({segment_file(root, ".rv"): [(PAGE, PAGE + 1)]}):
        store = open_store(root)
        with pytest.raises(DamageError, match="cannot be read"):
            store["c"]["_default"].read()


def test_verify_names_the_rows(root: Path) -> None:
    with refusing({segment_file(root, ".rv"): [(PAGE, PAGE + 1)], segment_file(root, ".uid", 1): [(0, 1)]}):
        done = call("verify", root, "--json")
    assert done.code == 4
    assert lost_of(done) == [(".rv", 9), (".uid", 511 * 2 // 3)]


def test_a_new_store_gets_the_rest(root: Path, tmp_path: Path) -> None:
    with refusing({segment_file(root, ".rv"): [(PAGE, PAGE + 1)]}):
        done = call("load", root, f"milvus1:{tmp_path / 'new'}", "--json", "--yes")
    assert done.code == 3 and "segment-unreadable" in done.out
    assert open_store(tmp_path / "new").rows == 2 * ROWS - 667 - 9
    assert call("verify", tmp_path / "new").code == 0


def test_a_real_store(tmp_path: Path) -> None:
    store = copy_store("flat_basic", tmp_path)
    bad = max(store.rglob("*.rv"), key=lambda p: p.stat().st_size)
    with refusing({bad: [(PAGE, 3 * PAGE)]}):
        done = call("export", store, tmp_path / "out", "--json")
    rows = exported(tmp_path / "out")
    missing = {where: here - rows[where] for where, here in truth("flat_basic").items()}
    assert done.code == 3 and sum(n for _, n in lost_of(done)) == sum(m.total() for m in missing.values()) > 0
    assert all(not rows[where] - here for where, here in truth("flat_basic").items())


@pytest.mark.parametrize("rows_each", [1, 700])
def test_a_log_with_an_unreadable_place(tmp_path: Path, rows_each: int) -> None:
    """Records that hold some rows, and one that holds many: what stands around comes."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128)
    for first in range(1, 701, rows_each):
        b.wal.insert("c", Batch(np.arange(first, first + rows_each), numbers(rows_each, 128)))
    root = b.write()
    assert call("export", root, tmp_path / "whole").code == 0
    (log,) = root.rglob("*.wal")
    with refusing({log: [(20 * PAGE, 20 * PAGE + 1)]}):
        done = call("export", root, tmp_path / "out", "--json")
        inspected = call("inspect", root, "--json")
        assert call("verify", root).code == 4
    assert (done.code, inspected.code) == (3, 3)
    assert f"{log}" in done.out and "the disk refuses bytes 81920 to 86015" in done.out
    whole, came = (exported(tmp_path / name)["c", "_default"] for name in ("whole", "out"))
    lost = whole - came
    assert not came - whole and 7 <= lost.total() <= 10
    assert manifest(tmp_path / "out")["collections"][0]["partitions"][0]["rows"] == 700 - lost.total()


def test_flushed_records_with_an_unreadable_place_are_compared_row_by_row(tmp_path: Path) -> None:
    """Rows that a flush has lost come from the log, those in the place that the disk refuses do not."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128)
    first, second = (Batch(np.arange(a, a + 300), numbers(300, 128)) for a in (1, 301))
    b.wal.insert("c", first)
    b.segment("c", first)
    b.tables[0]["flush_lsn"] = b.wal.insert("c", second)
    root = b.write()
    (log,) = root.rglob("*.wal")
    with refusing({log: [(50 * PAGE, 50 * PAGE + 1)]}):
        done = call("export", root, tmp_path / "out", "--json")
    assert done.code == 3 and {f["code"] for f in done.json["findings"]} >= {"flush-lost", "wal-unreadable"}
    ids = {i for i, _ in exported(tmp_path / "out")["c", "_default"]}
    assert ids >= set(range(1, 301)) and 585 <= len(ids) <= 595


def test_a_catalog_with_an_unreadable_page(tmp_path: Path) -> None:
    store = copy_store("flat_basic", tmp_path)
    catalog = store / "db" / "meta.sqlite"
    with refusing({catalog: [(catalog.stat().st_size - 1, catalog.stat().st_size)]}):
        done = call("export", store, tmp_path / "out", "--json")
    assert done.code == 3
    assert "the disk refuses bytes" in done.out + done.err and "meta.sqlite" in done.out + done.err


def test_deletes_of_the_log_and_an_unreadable_page_of_ids(tmp_path: Path) -> None:
    """Ids are compared when the store is opened; the pages that the disk refuses stop nothing."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128, flush_lsn=0)
    b.segment("c", Batch(np.arange(1, ROWS + 1), numbers(ROWS, 128)))
    b.wal.delete("c", [0, 5, 1900])  # no id that cannot be read passes for 0
    root = b.write()
    with refusing({segment_file(root, ".uid"): [(PAGE, PAGE + 1)]}):
        done = call("export", root, tmp_path / "out", "--json")
        inspected = call("inspect", root, "--json")
    assert inspected.code == done.code == 3
    assert [f["code"] for f in inspected.json["findings"] if f["severity"] != "info"] == ["disk-refuses"]
    assert lost_of(done) == [(".uid", 512)]
    ids = {i for i, _ in exported(tmp_path / "out")["c", "_default"]}
    assert ids == set(range(1, ROWS + 1)) - {5, 1900} - set(range(512, 1024))


def test_inspect_reads_the_rows_when_it_is_asked_to(root: Path) -> None:
    bad = segment_file(root, ".rv")
    with refusing({bad: [(PAGE, PAGE + 1)]}):
        assert call("inspect", root).code == 0
        done = call("inspect", root, "--read", "--json")
    assert done.code == 3 and lost_of(done) == [(".rv", 9)]
    data = bytearray(bad.read_bytes())
    data[8192:12288] = bytes(4096)
    bad.write_bytes(data)
    done = call("inspect", root, "--read", "--json")
    assert [(f["code"], f["rows"]) for f in done.json["findings"] if f["severity"] == "error"] == [("blocks-lost", 9)]


def test_vectors_that_end_with_zeros_are_no_lost_blocks_in_the_log(tmp_path: Path) -> None:
    """After each of them a record's header stands, which a lost block would have taken along."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=512)
    padded = numbers(600, 512)
    padded[:, 300:] = 0
    for number in range(600):
        b.wal.insert("c", Batch(np.array([number + 1]), padded[number : number + 1]))
    root = b.write()
    assert call("export", root, tmp_path / "out").code == 0


def test_lost_blocks_in_records_of_the_log(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128)
    b.wal.insert("c", Batch(np.arange(1, 701), numbers(700, 128)))
    root = b.write()
    (log,) = root.rglob("*.wal")
    for fill in (b"\0", b"\xff"):
        data = bytearray(log.read_bytes())
        data[20 * PAGE : 21 * PAGE] = fill * PAGE
        log.write_bytes(data)
        done = call("export", root, tmp_path / f"out{fill[0]}", "--json")
        assert done.code == 3
        assert [(f["code"], f["rows"]) for f in done.json["findings"] if f["severity"] == "error"] == [("blocks-lost", 9)]
        assert call("verify", root).code == 4
        assert call("verify", tmp_path / f"out{fill[0]}", "--against", root).code == 3
