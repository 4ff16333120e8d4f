"""`verify`: of stores, of exports, and of exports against stores."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import h5py
import pytest
from builder import StoreBuilder, declare, rows
from real import STORES, copy_store

from milvus_offline.cli import run
from milvus_offline.milvus1.store import open_store

CLEAN = ["flat_basic", "partitions", "binary", "deletes_cleaned", "dropped", "dropped_killed", "indexed", "crash_rand_3"]


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object], list[str]]:
    code = run(["verify", *arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    return code, document, [f["code"] for f in document["findings"]]


@pytest.mark.parametrize("name", CLEAN)
def test_sound_stores_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = report(capsys, str(STORES / name / "store"))
    assert code == 0
    assert document["rows"] == sum(
        p["rows"] for c in json.loads((STORES / name / "truth.json").read_text())["collections"] for p in c["partitions"]
    )


def segment_file(root: Path, suffix: str) -> Path:
    """A file of a live segment that has rows."""
    segments = [s for c in open_store(root).values() for p in c.partitions for s in p.segments if s.rows]
    return next(Path(p) for s in segments for p in s.paths if p.endswith(suffix))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_a_changed_id_is_found_by_the_bloom_filter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_store("crash_index_1", tmp_path)
    flip(segment_file(root, ".uid"), 8 + 80 + 5)
    code, _, codes = report(capsys, str(root))
    assert code == 4 and codes == ["bloom-misses"]


@pytest.mark.parametrize(
    ("suffix", "code"),
    [("bloom_filter", "bloom-damaged"), (".index", "index-damaged"), (".rv", "rows-lost"), (".uid", "rows-lost")],
)
def test_cut_files_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, code: str) -> None:
    root = copy_store("indexed", tmp_path)
    if suffix == ".index":
        segments = [p for p in (root / "db" / "tables" / "ix_ivf_sq8").rglob("*") if p.is_file() and p.name.isdigit()]
        path = segments[0]
    else:
        path = next(p for p in sorted((root / "db" / "tables" / "ix_flat").rglob(f"*{suffix}")) if p.stat().st_size > 1000)
    os.truncate(path, path.stat().st_size // 2)
    exit_code, _, codes = report(capsys, str(root))
    assert code in codes
    assert exit_code == (4 if suffix in (".rv", ".uid") else 3)


def test_catalog_and_files_of_different_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2, 3), file_size=4096, row_count=2)
    code, _, codes = report(capsys, str(b.write()))
    assert code == 4 and sorted(codes) == ["bloom-missing", "row-count-differs", "size-differs"]


def test_a_sample_reads_less(capsys: pytest.CaptureFixture[str]) -> None:
    _, everything, _ = report(capsys, str(STORES / "indexed" / "store"))
    code, some, _ = report(capsys, str(STORES / "indexed" / "store"), "--sample", "30%")
    assert code == 0 and 0 < some["rows"] < everything["rows"]  # type: ignore[operator]
    for wrong in ("0", "120%", "few"):
        assert run(["verify", str(STORES / "indexed" / "store"), "--sample", wrong]) == 2


@pytest.fixture
def export(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    assert run(["export", str(STORES / "flat_basic" / "store"), str(out), "-q"]) == 0
    return out


def test_a_sound_export_passes(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, codes = report(capsys, str(export), "--against", str(STORES / "flat_basic" / "store"))
    assert (code, codes, document["rows"]) == (0, [], 5757)


@pytest.mark.parametrize(
    ("options", "name", "at"),
    [
        (["--format", "npy"], "vector.npy", -5),
        (["--format", "npy"], "id.npy", -5),
        (["--format", "parquet"], "00000.parquet", 200),
        (["--compression", "zstd"], "_default.h5", 20_000),
    ],
)
def test_every_format(options: list[str], name: str, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = str(STORES / "flat_basic" / "store"), tmp_path / "out"
    assert run(["export", store, str(out), "-q", *options]) == 0
    code, document, codes = report(capsys, str(out), "--against", store)
    assert (code, codes, document["rows"]) == (0, [], 5757)
    flip(next(out.rglob(name)), at)
    code, document, codes = report(capsys, str(out))
    assert code == 4 and set(codes) <= {"checksum", "file-unreadable"} and codes
    os.truncate(next(out.rglob(name)), 100)
    code, _, codes = report(capsys, str(out))
    assert code == 4 and "file-size" in codes
    next(out.rglob(name)).unlink()
    code, _, codes = report(capsys, str(out))
    assert code == 4 and "file-missing" in codes


@pytest.mark.parametrize("dataset", ["embeddings", "ids"])
def test_a_changed_row_is_found_without_the_store(export: Path, capsys: pytest.CaptureFixture[str], dataset: str) -> None:
    path = max(export.rglob("*.h5"), key=lambda p: p.stat().st_size)
    with h5py.File(path, "r+") as h:
        value = h[dataset][7]
        h[dataset][7] = -value - 1
    code, document, codes = report(capsys, str(export))
    assert code == 4 and codes == ["checksum"]
    assert f"`{dataset}` of rows 0 to" in document["findings"][0]["message"]  # type: ignore[index]


def test_missing_files_and_other_sizes_are_found(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(export.rglob("*.h5"), key=lambda p: p.stat().st_size)
    paths[0].unlink()
    with paths[-1].open("ab") as f:
        f.write(b"x")
    code, _, codes = report(capsys, str(export))
    assert code == 4 and sorted(codes) == ["file-missing", "file-size"]


def test_an_export_of_another_state_of_the_store(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_store("flat_basic", tmp_path)
    path = segment_file(root, ".rv")
    flip(path, 8 + 100)
    code, document, codes = report(capsys, str(export), "--against", str(root))
    assert code == 4 and codes == ["rows-differ"]
    assert document["findings"][0]["rows"] == 2  # type: ignore[index]


def test_rows_in_another_order_are_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = copy_store("flat_basic", tmp_path)
    out = tmp_path / "out"
    assert run(["export", str(root), str(out), "-q"]) == 0
    catalog = sqlite3.connect(root / "db" / "meta.sqlite")
    catalog.execute("UPDATE TableFiles SET id = 10000 - id")  # the segments come in another order
    catalog.commit()
    catalog.close()
    assert report(capsys, str(out), "--against", str(root))[::2] == (0, [])


def test_what_is_no_export_and_wrong_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(STORES / "flat_basic" / "store")
    assert run(["verify", store, "--against", store]) == 2
    assert "no manifest.json in it" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text('{"format": "something"}')  # somebody else's
    assert run(["verify", str(tmp_path)]) == 1
    assert "not a Milvus 1.x data folder" in capsys.readouterr().err
    shutil.rmtree(tmp_path)
    assert run(["verify", str(tmp_path)]) == 1


def test_a_short_file_in_the_store_is_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    files = b.segment("c", rows(1, 2, 3))
    root = b.write()
    declare(files.deleted, 1 << 33)
    code, _, codes = report(capsys, str(root))
    assert code == 3 and codes == ["deleted-docs-short", "bloom-missing"]
