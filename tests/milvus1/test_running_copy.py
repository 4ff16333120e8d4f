"""Copies that were taken while the server ran: catalog and folders are of two moments, with merges between them."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, pieces_bag, rows
from support.real import STORES, copy_store, truth

from milvus_offline.milvus1.layout import FileType
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect

RAW, TO_DELETE, NEW_MERGE = FileType.RAW, FileType.TO_DELETE, FileType.NEW_MERGE


class Server:
    """Flushes and merges one table as a server does: a merge puts its sources aside in the transaction that ends it."""

    def __init__(self, b: StoreBuilder) -> None:
        self.b = b
        self.clock = 1_800_000_000_000_000

    def _tick(self) -> int:
        self.clock += 10_000
        return self.clock

    def _segment(self, batch, **more):  # type: ignore[no-untyped-def]
        now = self._tick()
        made = self.b.segment("c", batch, id=f"{now}000", created_on=now + 3, updated_time=now + 500, **more)
        return made, self.b.files[-1]

    def flush(self, *ids: int, deleted: tuple[int, ...] = ()):  # type: ignore[no-untyped-def]
        return self._segment(rows(*ids), deleted=deleted)

    def merge(self, ids: tuple[int, ...], *sources, deleted: tuple[int, ...] = ()):  # type: ignore[no-untyped-def]
        made, row = self._segment(rows(*ids), deleted=deleted)
        end = self._tick()
        for k, (_, source) in enumerate(sources):
            source.update(file_type=int(TO_DELETE), updated_time=end + 9 * k)
        row["updated_time"] = end + 9 * len(sources)
        return made, row


def without(made) -> None:  # type: ignore[no-untyped-def]
    shutil.rmtree(made[0].folder)


def test_the_catalog_is_newer_by_a_merge(b: StoreBuilder) -> None:
    s = Server(b)
    first, second = s.flush(1, 2, 3, deleted=(1,)), s.flush(4)
    merged = s.merge((1, 3, 4), first, second)
    without(merged)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 3, 4))}
    assert [(f.code, f.severity.value, f.rows) for f in store.findings] == [("copied-while-running", "warning", 3)]


def test_the_catalog_is_newer_by_a_chain_of_merges(b: StoreBuilder) -> None:
    s = Server(b)
    first = s.merge((1, 2), s.flush(1), s.flush(2))
    second = s.merge((1, 2, 3), first, s.flush(3))
    s.flush(4)
    without(first), without(second)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3, 4))}
    assert codes(store) == ["copied-while-running"]
    assert collect(store, ["to-delete"])[0] == []


def test_older_forms_of_the_sources_stay_out(b: StoreBuilder) -> None:
    """Segments that were merged into a source are here too: each row comes once."""
    s = Server(b)
    first = s.merge((1, 2), s.flush(1), s.flush(2))
    without(s.merge((1, 2, 3), first, s.flush(3)))
    assert content(open_store(b.write())) == {("c", "_default"): bag(rows(1, 2, 3))}


def test_rows_deleted_after_the_merge_come_back_and_are_counted(b: StoreBuilder) -> None:
    s = Server(b)
    without(s.merge((1, 2, 3), s.flush(1, 2), s.flush(3), deleted=(0,)))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3))}
    assert "1 of them were deleted later" in store.findings[0].message


def test_a_source_that_is_missing_too_leaves_the_loss(b: StoreBuilder) -> None:
    s = Server(b)
    first, second = s.flush(1, 2), s.flush(3)
    without(s.merge((1, 2, 3), first, second))
    without(second)
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag()}
    (finding,) = store.findings
    assert (finding.code, finding.severity.value, finding.rows) == ("segment-missing", "error", 3)
    assert "--salvage to-delete" in finding.message
    found, _ = collect(store, ["to-delete"])
    assert [pieces_bag(x.pieces) for x in found] == [bag(rows(1, 2))]


def test_the_folders_are_newer_by_a_merge(b: StoreBuilder) -> None:
    """The sources were removed before they were copied; the catalog is from before the merge."""
    s = Server(b)
    first, second = s.flush(1, 2, 3, deleted=(1,)), s.flush(4)
    s.flush(9)
    without(first), without(second)
    b.folder("c", f"{s._tick()}000", rows(1, 3, 4))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 3, 4, 9))}
    assert [(f.code, f.rows) for f in store.findings] == [("copied-while-running", 3)]


def test_the_folders_are_newer_and_a_source_is_still_here(b: StoreBuilder) -> None:
    s = Server(b)
    first = s.flush(1, 2)
    s.flush(3)
    without(first)
    b.folder("c", f"{s._tick()}000", rows(1, 2, 3))
    assert content(open_store(b.write())) == {("c", "_default"): bag(rows(1, 2, 3))}


def test_which_unknown_segment_it_is_cannot_be_told(b: StoreBuilder) -> None:
    s = Server(b)
    without(s.flush(1, 2))
    for ids in ((5, 6), (7, 8)):
        b.folder("c", f"{s._tick()}000", rows(*ids))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag()}
    assert codes(store) == ["catalog-older", "catalog-older", "segment-missing"]
    assert "--salvage orphans" in next(f.message for f in store.findings if f.code == "segment-missing")


@pytest.mark.parametrize("with_log", [True, False])
def test_a_real_store_without_its_merged_segments(tmp_path: Path, with_log: bool) -> None:
    root = copy_store("flat_basic", tmp_path)
    with sqlite3.connect(root / "db/meta.sqlite") as c:
        live = c.execute("SELECT table_id, segment_id FROM TableFiles WHERE file_type IN (1, 2, 7)").fetchall()
    for table, segment in live:
        shutil.rmtree(root / "db/tables" / table / segment)
    if not with_log:
        shutil.rmtree(root / "wal")
    store = open_store(root)
    assert content(store) == truth("flat_basic")
    assert codes(store) == ["copied-while-running"] * 2 + ["wal-missing"] * (not with_log)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in STORES.iterdir() if (p / "truth.npz").is_file()))
def test_whatever_merged_segment_of_a_real_store_is_missing(name: str, tmp_path: Path) -> None:
    """Each live segment in turn: its sources bring just its rows, or it is told as lost, or the log has the rows."""
    dump = STORES / name / "store" / "meta.default.sql"
    catalog = dump if dump.exists() else None
    whole, root = open_store(STORES / name / "store", catalog), copy_store(name, tmp_path)
    expected = content(whole)
    for where, segment in (((c.name, p.name), s) for c in whole.collections for p in c.partitions for s in p.segments):
        folder = Path(segment.ids_path).parent  # type: ignore[union-attr]
        folder = root / folder.relative_to(STORES / name / "store")
        folder.rename(tmp_path / "aside")
        store = open_store(root, catalog)
        told = {f.code for f in store.findings if f.severity.value != "info"}
        deleted_later = "deleted later" in " ".join(f.message for f in store.findings)
        found = content(store)
        if deleted_later:
            assert not expected[where] - found[where]
        elif "copied-while-running" in told:
            assert found == expected
        elif found[where] != expected[where]:
            assert "segment-missing" in told
        (tmp_path / "aside").rename(folder)
