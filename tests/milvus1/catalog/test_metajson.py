"""The meta.json of milvus-migration as a catalog."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder, content, rows
from support.command import call, exported
from support.real import copy_store

from milvus_offline.milvus1.opening import open_store


def meta_json(root: Path) -> dict[str, Any]:
    """What that tool's export makes of a catalog: tables that are not dropped, with segments of the types 1, 2 and 7."""
    with sqlite3.connect(root / "db" / "meta.sqlite") as c:
        tables = c.execute("SELECT table_id, dimension, metric_type FROM Tables WHERE state = 0").fetchall()
        files = c.execute("SELECT table_id, segment_id, row_count, file_size FROM TableFiles WHERE file_type IN (1, 2, 7)")
        found = files.fetchall()
    c.close()
    collections = []
    for table, dim, metric in tables:
        parts = [
            {"collection": table, "segment": s, "dim": dim, "rows": n, "fileSize": size}
            for t, s, n, size in found
            if t == table
        ]
        if parts:
            total = sum(p["rows"] for p in parts)
            collections.append({"collection": table, "metric": metric, "rows": total, "dim": dim, "segments": parts})
    return {"collections": collections, "rows": sum(c["rows"] for c in collections)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A collection with deleted rows, one of bits with a partition that the log names, a dropped one, rows in the log."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("a", flush_lsn=0)
    b.segment("a", rows(range(50)), deleted=[3, 4])
    b.collection("bits", dim=64, metric="HAMMING", flush_lsn=0)
    part = b.partition("bits", "2020/01", table_id="1678354366132931000", flush_lsn=0)
    b.segment(part["table_id"], rows(range(100, 140), dim=64, binary=True))
    b.wal.insert("bits", rows(range(100, 140), dim=64, binary=True), "2020/01")
    b.wal.insert("a", rows(range(70, 75)))
    return b.write()


def test_gives_the_rows_of_the_store(root: Path, tmp_path: Path) -> None:
    truth = content(open_store(root))
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(meta_json(root), separators=(",", ":")))
    (root / "db" / "meta.sqlite").unlink()
    found = {k: v for k, v in content(open_store(root, path)).items() if v}
    assert found["a", "_default"] == truth["a", "_default"] and found["a", "_default"].total() == 53
    assert found["bits", "2020/01"].total() == 40
    done = call("export", root, tmp_path / "out", "--catalog", path)
    assert done.code == 3
    assert "partition-named-by-log" in done.err + done.out and "catalog-meta-json" in done.err + done.out
    assert exported(tmp_path / "out")["bits", "2020/01"].total() == 40


@pytest.mark.parametrize("name", ["flat_basic", "indexed", "crash_rand_3"])
def test_gives_the_rows_of_real_stores(name: str, tmp_path: Path) -> None:
    root = copy_store(name, tmp_path)
    truth = content(open_store(root))
    (tmp_path / "meta.json").write_text(json.dumps(meta_json(root)))
    assert content(open_store(root, tmp_path / "meta.json")) == truth


WRONG: dict[str, tuple[Any, str]] = {
    "cut": (lambda d: json.dumps(d)[:-9], "cannot be used: "),
    "a row fewer": (lambda d: d | {"rows": d["rows"] - 1}, "rows, its collections have"),
    "a segment lost": (lambda d: d["collections"][0]["segments"].pop() and d, "its segments have"),
    "a segment twice": (
        lambda d: d["collections"][0]["segments"].append(d["collections"][0]["segments"][0]) or d,
        "is there twice",
    ),
    "another dimension": (lambda d: d["collections"][0]["segments"][0].update(dim=9) or d, "another collection or dimension"),
    "a text for a number": (lambda d: d["collections"][0].update(metric="L2") or d, "expected 'metric' as int"),
    "another name": (lambda d: d["collections"][0].update(metrik=1) or d, "unknown 'metrik'"),
    "none": (lambda d: d | {"collections": [], "rows": 0}, "without a collection"),
    "of something else": (lambda d: {"collections": {"a": 1}}, "expected 'collections' as list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused(name: str, root: Path, tmp_path: Path) -> None:
    change, text = WRONG[name]
    document = change(meta_json(root))
    (tmp_path / "meta.json").write_text(document if isinstance(document, str) else json.dumps(document))
    done = call("inspect", root, "--catalog", tmp_path / "meta.json")
    assert (done.code, text in done.err, "damaged" in done.err) == (1, True, False), done.err


def test_in_a_sources_place_it_is_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps(meta_json(root), separators=(",", ":")))
    done = call("inspect", tmp_path / "meta.json")
    assert (done.code, "a catalog that milvus-migration exported" in done.err) == (2, True)
