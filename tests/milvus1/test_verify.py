"""Everything is read, once, and held against everything else that a store holds."""

from __future__ import annotations

import itertools
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.builder import StoreBuilder, rows
from support.real import STORES, copy_store

from milvus_offline import checking
from milvus_offline.checking import check_source
from milvus_offline.milvus1 import verify
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.sources.milvus1 import open_store_source


def test_each_index_file_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    compare = verify._compare_vectors

    def noted(path: Path, *rest: Any) -> tuple[int, int]:
        seen.append(path)
        return compare(path, *rest)

    monkeypatch.setattr(verify, "_compare_vectors", noted)
    checked, notes = verify.check_store(open_store(STORES / "indexed" / "store"))
    assert not notes and len(seen) == len(set(seen)) == checked.index_files > 5


@pytest.mark.parametrize("name", sorted(p.name for p in STORES.iterdir() if not p.name.startswith("mysql")))
def test_several_threads_find_what_one_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(checking, "_WORTH_BYTES", 0)
    for jobs in (1, 4):
        monkeypatch.setattr(checking, "default_jobs", lambda jobs=jobs: jobs)
        found.append(check_source(open_store_source(STORES / name / "store")))
    assert found[0] == found[1]
    assert found[0] == verify.check_store(open_store(STORES / name / "store"))


def test_small_segments_are_read_by_one_thread_unless_they_lie_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "default_jobs", lambda: 4)
    small, large = SimpleNamespace(bytes=10_000), SimpleNamespace(bytes=200 << 20)

    def jobs(tasks: list[Any], *roots: object) -> int:
        return checking._jobs(tasks, roots)

    assert jobs([small] * 50, Path("/data")) == 1 and jobs([small] * 50, Path("/data"), "s3://bucket/key") == 4
    assert jobs([large], Path("/data")) == jobs([small, large], Path("/data")) == 4
    assert jobs([], Path("/data")) == 4 and jobs([large, *[small] * 100], Path("/data")) == 1


def test_several_segments_are_read_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the first three waits until the others have begun, too."""
    barrier = threading.Barrier(3)
    begun = itertools.count()
    read = verify._read_rows

    def waiting(*arguments: Any) -> tuple[int, int]:
        if next(begun) < barrier.parties:
            barrier.wait(60)
        return read(*arguments)

    monkeypatch.setattr(verify, "_read_rows", waiting)
    monkeypatch.setattr(checking, "_WORTH_BYTES", 0)
    monkeypatch.setattr(checking, "default_jobs", lambda: 3)
    checked, notes = check_source(open_store_source(STORES / "indexed" / "store"))
    assert checked.segments > 3 and not notes


def test_each_of_many_twins_is_read_once_more_and_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    made = [builder.segment("faces", rows(range(50), dim=8)) for _ in range(30)]
    builder.segment("faces", rows(range(50), dim=8, salt=3))
    digest, digested = verify._digest, []

    def noted(segment: Segment) -> tuple[int, int]:
        digested.append(segment.id)
        return digest(segment)

    monkeypatch.setattr(verify, "_digest", noted)
    _, notes = verify.check_store(open_store(builder.write()))
    assert len(digested) == len(set(digested)) == len(made) + 1
    assert [f.code for f in notes if f.code == "segments-equal"] == ["segments-equal"] * 29
    (first,) = {f.message.split()[6].rstrip(":") for f in notes if f.code == "segments-equal"}
    assert first == min(digested, key=int)


def test_a_twin_that_cannot_be_read_keeps_no_other_from_being_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    for _ in range(3):
        builder.segment("faces", rows(range(50), dim=8))
    digest, asked = verify._digest, itertools.count()

    def failing(segment: Segment) -> tuple[int, int]:
        if next(asked) == 0:
            raise OSError(5, "Input/output error")
        return digest(segment)

    monkeypatch.setattr(verify, "_digest", failing)
    _, notes = verify.check_store(open_store(builder.write()))
    assert [f.code for f in notes if f.code == "segments-equal"] == ["segments-equal"]


def index_files(root: Path) -> list[Path]:
    """Files in segments' folders whose names are numbers, as the servers name their index files."""
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name.isdecimal())


def test_an_index_file_that_is_missing_is_told(tmp_path: Path) -> None:
    root = copy_store("indexed", tmp_path)
    gone = index_files(root)[0]
    gone.unlink()
    _, notes = verify.check_store(open_store(root))
    assert [(f.code, f.where.split("/")[-1]) for f in notes] == [("index-missing", gone.name)]


def test_an_index_file_of_another_size_is_told(tmp_path: Path) -> None:
    root = copy_store("indexed", tmp_path)
    catalog = sqlite3.connect(root / "db" / "meta.sqlite")
    catalog.execute("UPDATE TableFiles SET file_size = file_size + 1 WHERE file_type = 3")
    catalog.commit()
    catalog.close()
    checked, notes = verify.check_store(open_store(root))
    assert [f.code for f in notes] == ["index-differs"] * checked.index_files
