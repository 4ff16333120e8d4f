"""Plain segments and plain catalogs are read by a shorter road, which must lead to the same store as the careful one."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.builder import SegmentFiles, StoreBuilder, append_garbage, declare, rows
from support.damage import RECIPES
from support.healthy import base, store_names
from support.mutate import Bench, Case

from milvus_offline.errors import MilvusOfflineError
from milvus_offline.milvus1.catalog import rows as catalog_rows
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.segment import plain
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.milvus1.segment.plain import PlainTable

OF_FILES = sorted(name for name in RECIPES if name.startswith(("catalog", "deletes", "segment", "files", "second", "table")))


def told(root: Path, catalog: Path | None) -> tuple[Any, ...]:
    """All that opening a store decides."""
    try:
        store = open_store(root, catalog)
    except MilvusOfflineError as e:
        return (str(e),)
    pieces = [
        [repr(getattr(piece, f.name)) for f in fields(piece)] if isinstance(piece, Segment) else [piece.id, str(piece.rows)]
        for collection in store.collections
        for partition in collection.partitions
        for piece in partition.pieces
    ]
    return store.catalog.tables, store.catalog.files, store.selection.leftovers, store.findings, pieces


def by_both_roads(monkeypatch: pytest.MonkeyPatch, root: Path, catalog: Path | None = None) -> tuple[int, Any, Any]:
    """How many segments the shorter road opened, and what the two roads told."""
    opened = 0
    short = PlainTable.open

    def counted(self: PlainTable, *arguments: Any) -> Segment | None:
        nonlocal opened
        segment = short(self, *arguments)
        opened += segment is not None
        return segment

    with monkeypatch.context() as patch:
        patch.setattr(PlainTable, "open", counted)
        shorter = told(root, catalog)
    with monkeypatch.context() as patch:
        patch.setattr(PlainTable, "open", lambda *_: None)
        patch.setattr(catalog_rows, "_plain_columns", lambda *_: None)
        return opened, shorter, told(root, catalog)


def with_processes(patch: pytest.MonkeyPatch, python: str = sys.executable) -> None:
    """From now on other processes look at all but the first of a table's segments."""
    patch.setattr(plain, "_MANY", 1)
    patch.setattr(plain, "_processors", lambda: 4)
    patch.setattr(sys, "executable", python)


def test_both_roads_tell_the_same_of_all_real_stores_and_the_shorter_one_is_the_common_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = 0
    for name in store_names():
        real = base(name)
        opened, shorter, careful = by_both_roads(monkeypatch, real.root, real.root / real.dump if real.dump else None)
        assert shorter == careful, name
        total += opened
        with monkeypatch.context() as patch:
            with_processes(patch)
            assert by_both_roads(monkeypatch, real.root, real.root / real.dump if real.dump else None)[:2] == (opened, careful)
    assert total >= 50


@pytest.mark.slow
@pytest.mark.parametrize("recipe", OF_FILES)
def test_both_roads_tell_the_same_of_damaged_stores(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    for seed in range(4):
        with bench.mutant(Case(store_names()[(seed * 5 + len(recipe)) % len(store_names())], recipe, seed)) as mutant:
            dump = mutant.base.dump
            _, shorter, careful = by_both_roads(monkeypatch, mutant.root, mutant.root / dump if dump else None)
            assert shorter == careful, (mutant.base.name, seed)


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[SegmentFiles], object]] = {
    "none": lambda s: None,
    "a number beside it": lambda s: (s.folder / "1606123456789000000").write_bytes(b"an index"),
    "a digit that is no number": lambda s: (s.folder / "\u0661\u00b9").write_bytes(b""),
    "a foreign file": lambda s: (s.folder / "._x").write_bytes(b""),
    "a second raw file": lambda s: shutil.copy(s.raw, s.folder / "7.rv"),
    "an attribute": lambda s: (s.folder / "age.ra").write_bytes(b""),
    "a temporary file": lambda s: (s.folder / "temp_del").write_bytes(b""),
    "no deletes": lambda s: s.deleted.unlink(),
    "deletes longer": lambda s: append_garbage(s.deleted),
    "deletes declared": lambda s: declare(s.deleted, 8),
    "deletes empty": lambda s: s.deleted.write_bytes(b""),
    "deletes are a folder": lambda s: (s.deleted.unlink(), s.deleted.mkdir()),
    "deletes are a pipe": lambda s: (s.deleted.unlink(), os.mkfifo(s.deleted)),
    "no vectors": lambda s: s.raw.unlink(),
    "vectors longer": lambda s: append_garbage(s.raw),
    "vectors cut": lambda s: os.truncate(s.raw, s.raw.stat().st_size - 1),
    "vectors declared longer": lambda s: declare(s.raw, 1 << 40),
    "ids zeroed": lambda s: zeroed(s.ids),
    "ids cut": lambda s: os.truncate(s.ids, 4),
    "ids are a link to nowhere": lambda s: (s.ids.unlink(), s.ids.symlink_to("nowhere")),
    "the folder is a file": lambda s: (shutil.rmtree(s.folder), s.folder.write_bytes(b"")),
    "no folder": lambda s: shutil.rmtree(s.folder),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_roads_tell_the_same_of_each_damage_of_one_segment_among_others(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces")
    made = [builder.segment("faces", rows(range(n, n + 5)), bloom=True) for n in range(0, 40, 10)]
    DAMAGES[damage](made[2])
    opened, shorter, careful = by_both_roads(monkeypatch, builder.write())
    assert shorter == careful
    assert opened == (4 if damage in ("none", "a number beside it") else 3)
    with_processes(monkeypatch)
    assert by_both_roads(monkeypatch, builder.root)[:2] == (opened, careful), "other processes see what this one sees"


def test_processes_look_at_their_shares_only_and_those_that_are_lost_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = StoreBuilder(tmp_path / "store \udcff\n")
    builder.collection("faces")
    for n in range(0, 90, 10):
        builder.segment("faces", rows(range(n, n + 5)))
    root, looked = builder.write(), []
    here = plain.holds_just
    monkeypatch.setattr(plain, "holds_just", lambda folder, *rest: looked.append(folder) or here(folder, *rest))
    alone = told(root, None)
    assert len(looked) == 9
    for python, own in ((sys.executable, 1), ("/bin/false", 9), ("/nowhere", 9)):
        looked.clear()
        with monkeypatch.context() as patch:
            with_processes(patch, python)
            assert told(root, None) == alone
        assert len(looked) == own, python


@pytest.mark.parametrize(
    "columns",
    [{"row_count": 4}, {"row_count": 6}, {"row_count": -1}, {"row_count": 0}, {"file_size": 0}, {"file_size": 121}],
    ids=str,
)
def test_a_segment_whose_catalog_row_says_anything_else_is_looked_at(
    columns: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces")
    builder.segment("faces", rows(range(5)), **columns)
    opened, shorter, careful = by_both_roads(monkeypatch, builder.write())
    assert shorter == careful and opened == 0


@pytest.mark.parametrize("make", [{"version": "0.7.1"}, {"secondaries": 1}], ids=str)
def test_other_generations_and_roots_give_the_same_by_both_roads(
    make: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = StoreBuilder(tmp_path / "store", **make)
    builder.collection("faces")
    for n in range(4):
        builder.segment("faces", rows(range(n * 10, n * 10 + 5)), root=n % len(builder.roots))
    _, shorter, careful = by_both_roads(monkeypatch, builder.write())
    assert shorter == careful
