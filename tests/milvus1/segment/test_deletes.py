"""A `deleted_docs` that lost what it held: nothing that was deleted comes back without a word."""

from __future__ import annotations

import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.command import call
from support.real import STORES, copy_store, truth

from milvus_offline.milvus1.opening import open_store

ROWS = 1000
DELETED = list(range(3, ROWS, 5))
LIVE = bag(rows(*(i for i in range(1, ROWS + 1) if i - 1 not in DELETED)))


def store(to: Path, *, filters: bool = True, version: str = "1.1.1", row_count: int = ROWS - len(DELETED)) -> Path:
    b = StoreBuilder(to)
    b.collection("c", version=version)
    b.segment("c", rows(range(1, ROWS + 1)), deleted=DELETED, bloom=filters, row_count=row_count)
    return b.write()


def change(root: Path, how: Callable[[bytearray], object], name: str = "deleted_docs") -> Path:
    path = next(root.rglob(name))
    data = bytearray(path.read_bytes())
    how(data)
    path.write_bytes(data)
    return root


def listed(*offsets: int) -> Callable[[bytearray], object]:
    def replace(data: bytearray) -> None:
        data[:] = struct.pack(f"<Q{len(offsets)}i", 4 * len(offsets), *offsets)

    return replace


def zeroed(first: int, last: int | None = None) -> Callable[[bytearray], object]:
    def zero(data: bytearray) -> None:
        end = len(data) if last is None else last
        data[first:end] = bytes(end - first)

    return zero


def cut(size: int) -> Callable[[bytearray], object]:
    return lambda data: data.__delitem__(slice(size, None))


DAMAGES = {
    "all zeros": (zeroed(0), "deleted-docs-damaged"),
    "first block": (zeroed(0, 512), "deleted-docs-damaged"),
    "a block inside": (zeroed(512, 640), "deleted-docs-damaged"),
    "erased flash": (lambda data: data.__setitem__(slice(512, 640), b"\xff" * 128), "deleted-docs-outside"),
    "empty, as of a new segment": (listed(), "row-count-differs"),
    "fewer": (listed(*DELETED[::2]), "row-count-differs"),
    "twice": (listed(*DELETED[:100], *DELETED[:100]), "deleted-docs-damaged"),
    "of other rows": (listed(*(o + 1 for o in DELETED)), "deleted-docs-damaged"),
    "of a larger segment": (listed(*(o * 100 for o in DELETED)), "deleted-docs-outside"),
    "cut": (cut(300), "deleted-docs-short"),
    "cut inside its header": (cut(5), "deleted-docs-short"),
}


@pytest.mark.parametrize(("how", "code"), DAMAGES.values(), ids=DAMAGES.keys())
def test_the_bloom_filter_brings_the_deletions_back(how: Callable[[bytearray], object], code: str, tmp_path: Path) -> None:
    """It knows which ids are gone; the few that it takes for live ones (§4.4) are counted."""
    root = change(store(tmp_path / "s"), how)
    opened = open_store(root)
    assert codes(opened) == [code]
    came = content(opened)["c", "_default"] - LIVE
    assert not LIVE - content(opened)["c", "_default"]
    assert came.total() <= 3
    (finding,) = opened.findings
    assert finding.rows and str(next(root.rglob("deleted_docs"))) in finding.message
    assert ("come back" in finding.message) == (came.total() > 0)
    assert call("export", root, tmp_path / "out").code == 3
    assert call("verify", root).code == 4


COUNTED = {name: damage for name, damage in DAMAGES.items() if name != "of other rows"}


@pytest.mark.parametrize(("how", "code"), COUNTED.values(), ids=COUNTED.keys())
def test_the_catalog_counts_what_is_lost(how: Callable[[bytearray], object], code: str, tmp_path: Path) -> None:
    """Without a filter; one that has other rows deleted, as many, then passes unseen."""
    root = change(store(tmp_path / "s", filters=False), how)
    opened = open_store(root)
    assert codes(opened) == [code]
    came = content(opened)["c", "_default"] - LIVE
    lost = came.total() - (LIVE - content(opened)["c", "_default"]).total()  # a wrong list takes live rows for deleted ones
    assert opened.findings[0].rows == lost >= 1
    assert f"Of {len(DELETED)} deletions that the catalog counts {lost} are lost" in opened.findings[0].message


def test_the_size_of_the_file_tells_where_nothing_else_does(tmp_path: Path) -> None:
    root = change(store(tmp_path / "s", filters=False, row_count=-1), zeroed(0, 512))
    opened = open_store(root)
    assert codes(opened) == ["deleted-docs-damaged"]
    assert opened.findings[0].rows == 126
    assert "Up to 126 deletions are lost" in opened.findings[0].message
    assert (content(opened)["c", "_default"] - LIVE).total() == len(DELETED) - (len(DELETED) - 126)


def test_a_filter_of_another_segment_deletes_nothing(tmp_path: Path) -> None:
    root = store(tmp_path / "s")
    other = StoreBuilder(tmp_path / "other")
    other.collection("c")
    other.segment("c", rows(range(5001, 6001)), deleted=DELETED, bloom=True)
    shutil.copy(next(other.write().rglob("bloom_filter")), next(root.rglob("bloom_filter")))
    change(root, zeroed(0))
    opened = open_store(root)
    assert content(opened)["c", "_default"] == bag(rows(range(1, ROWS + 1)))
    assert opened.findings[0].rows == len(DELETED)


def test_a_damaged_filter_deletes_nothing(tmp_path: Path) -> None:
    root = change(change(store(tmp_path / "s"), zeroed(0)), zeroed(512, 1024), "bloom_filter")
    assert content(open_store(root))["c", "_default"] == bag(rows(range(1, ROWS + 1)))


def test_deletes_that_an_older_server_applied_twice_are_no_damage(tmp_path: Path) -> None:
    """Up to 1.1.0 a crash makes an offset stand there twice, and row_count is decremented twice (§4.3, §7.6)."""
    twice = listed(*DELETED, *DELETED[-7:])
    healthy = change(store(tmp_path / "a", version="1.0.0", row_count=ROWS - len(DELETED) - 7), twice)
    assert codes(open_store(healthy)) == []
    assert call("verify", healthy).code == 0
    assert codes(open_store(change(store(tmp_path / "b"), twice))) == ["deleted-docs-damaged"]


def test_a_crash_before_the_filter_is_written_is_no_damage(tmp_path: Path) -> None:
    """deleted_docs is replaced first, the filter next, row_count last (§3.4)."""
    root = store(tmp_path / "s", row_count=ROWS - 10)
    b = StoreBuilder(tmp_path / "older")
    b.collection("c")
    b.segment("c", rows(range(1, ROWS + 1)), deleted=DELETED[:10], bloom=True)
    shutil.copy(next(b.write().rglob("bloom_filter")), next(root.rglob("bloom_filter")))
    assert codes(open_store(root)) == []


@pytest.mark.parametrize("name", sorted(p.name for p in STORES.iterdir()))
def test_no_real_store_is_doubted(name: str) -> None:
    """Of any version, stopped or killed: the three who know of deletions agree."""
    root = STORES / name / "store"
    dump = next(iter(sorted(root.glob("meta.default.sql*"))), None)
    told = {c for c in codes(open_store(root, dump)) if c.startswith(("deleted-docs", "row-count", "file", "foreign"))}
    assert told == set()


def test_two_real_segments_that_changed_their_lists(tmp_path: Path) -> None:
    root = copy_store("deletes_cleaned", tmp_path)
    lists = [p for p in sorted(root.rglob("deleted_docs")) if p.stat().st_size > 8]
    first, second = (p.read_bytes() for p in lists[:2])
    lists[0].write_bytes(second)
    lists[1].write_bytes(first)
    done = call("export", root, tmp_path / "out")
    assert done.code == 3 and call("verify", root).code == 4
    came: Counter[tuple[int, bytes]] = sum((c for c in content(open_store(root)).values()), Counter())
    true: Counter[tuple[int, bytes]] = sum(truth("deletes_cleaned").values(), Counter())
    assert (came - true).total() == 0


def test_a_list_with_an_unreadable_block(tmp_path: Path) -> None:
    from support.badsectors import refusing

    root = store(tmp_path / "s")
    with refusing({next(root.rglob("deleted_docs")): [(512, 513)]}, page=512):
        opened = open_store(root)
        assert codes(opened) == ["deleted-docs-unreadable"]
        assert "the disk refuses bytes 512 to 807" in opened.findings[0].message
        assert (content(opened)["c", "_default"] - LIVE).total() <= 3
        assert np.array_equal(np.sort(open_store(root)["c"]["_default"].segments[0].deletes)[:126], DELETED[:126])


@pytest.mark.parametrize("logged", [False, True])
def test_a_list_that_names_rows_which_nothing_has_deleted(logged: bool, tmp_path: Path) -> None:
    """That of another segment, in place of an empty one: catalog and filter know of no deletion. After a crash the log does."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    made = b.segment("c", rows(1, 2, 3, 4), bloom=True)
    b.segment("c", rows(5), bloom=True)
    b.tables[0]["flush_lsn"] = b.wal.insert("c", rows(5))
    if logged:
        b.wal.delete("c", [2, 3])
    made.deleted.write_bytes(struct.pack("<Qii", 8, 1, 2))
    found = open_store(b.write()).findings
    told = [(f.code, f.rows) for f in found if f.severity.value == "warning"]
    assert told == ([] if logged else [("deleted-docs-damaged", 2)])


@pytest.mark.parametrize("entry", range(4))
def test_one_wrong_entry_of_a_short_list_of_a_real_store(entry: int, tmp_path: Path) -> None:
    """Its deletions stand side by side, as those of rows that were inserted together do."""
    root = copy_store("deletes_cleaned", tmp_path)
    shutil.rmtree(root / "wal")  # its deletes are there, too
    path = next(p for p in sorted(root.rglob("deleted_docs")) if p.stat().st_size == 8 + 4 * 4)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 8 + 4 * entry, 700)
    path.write_bytes(data)
    assert "deleted-docs-damaged" in codes(open_store(root))
