"""Everything is read, once, and held against everything else that a store holds."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.real import STORES, copy_store

from milvus_offline.milvus1 import verify
from milvus_offline.milvus1.opening import open_store


def test_each_index_file_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    compare = verify._compare_vectors

    def noted(path: Path, *rest: Any) -> tuple[int, int]:
        seen.append(path)
        return compare(path, *rest)

    monkeypatch.setattr(verify, "_compare_vectors", noted)
    checked, notes = verify.check_store(open_store(STORES / "indexed" / "store"))
    assert not notes and len(seen) == len(set(seen)) == checked.index_files > 5


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
