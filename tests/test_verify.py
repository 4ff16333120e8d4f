"""`verify`: of stores, of exports, and of exports against stores."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, declare, join, rows
from support.command import spawn
from support.real import STORES, copy_store

from milvus_offline.cli import run
from milvus_offline.manifest import LEDGER
from milvus_offline.milvus1.layout import FieldType
from milvus_offline.milvus1.opening import open_store

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
    assert code == 4 and sorted(codes) == ["bloom-misses", "flush-lost"]  # the log still has the row as it was


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


@pytest.mark.parametrize("collection", ["ix_ivf_flat", "ix_hnsw", "ix_annoy", "ix_rnsg", "ix_bin_ivf_flat_hamming"])
@pytest.mark.parametrize("where", ["vectors", "index"])
def test_a_changed_bit_is_found_by_the_index(
    collection: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_store("indexed", tmp_path)
    segment = next(s for p in open_store(root)[collection].partitions for s in p.segments if s.state == "BACKUP")
    raw = Path(segment.paths[0])
    if where == "vectors":
        flip(raw, 8 + 77 * segment.schema.row_bytes)
    else:
        index = next(p for p in raw.parent.iterdir() if p.name.isdigit())
        vector = raw.read_bytes()[8 + 77 * segment.schema.row_bytes :][: segment.schema.row_bytes]
        flip(index, index.read_bytes().index(vector))
    code, document, codes = report(capsys, str(root))
    assert (code, codes) == (4, ["vectors-differ"])
    assert document["findings"][0]["rows"] == 1 and str(raw) in document["findings"][0]["message"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["flat_basic", "binary", "deletes_cleaned"])
def test_a_changed_bit_is_found_by_the_log(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As long as the record stands there that brought the vector."""
    root = copy_store(name, tmp_path)
    store = open_store(root)
    segment = next(s for c in store.collections for p in c.partitions for s in p.segments if s.rows > 20)
    flip(Path(segment.paths[0]), 8 + int(np.flatnonzero(segment.live)[7]) * segment.schema.row_bytes)
    code, document, codes = report(capsys, str(root))
    assert (code, codes) == (4, ["vectors-differ"])
    (finding,) = [f for f in document["findings"] if f["severity"] == "error"]  # type: ignore[attr-defined]
    assert finding["rows"] == 1 and ".wal" in finding["message"] and str(segment.paths[0]) in finding["message"]


@pytest.mark.parametrize("name", ["dropped", "crash_index_1"])
def test_vectors_that_changed_places_are_found_by_the_log(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_store(name, tmp_path)
    sizes: dict[int, list[Path]] = {}
    for segment in (s for c in open_store(root).collections for p in c.partitions for s in p.segments):
        sizes.setdefault(segment.bytes, []).append(Path(segment.paths[0]))
    first, second = next(paths for paths in sizes.values() if len(paths) > 1)[:2]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b), second.write_bytes(a)
    code, _, codes = report(capsys, str(root))
    assert (code, set(codes)) == (4, {"vectors-differ"})


def test_an_id_that_was_deleted_and_inserted_again_is_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.wal.insert("c", rows(1, 2))
    b.wal.delete("c", [1])
    b.wal.insert("c", rows(1, salt=5))
    b.segment("c", join(rows(2), rows(1, salt=5)), bloom=True)
    b.tables[0]["flush_lsn"] = b.wal.position
    b.wal.insert("c", rows(3))
    code, document, codes = report(capsys, str(b.write()))
    assert (code, codes) == (0, ["wal-rows"])
    assert document["checked"]["vectors_in_log"] == 1  # type: ignore[index]


def test_catalog_and_files_of_different_age(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2, 3), file_size=4096, row_count=2)
    code, _, codes = report(capsys, str(b.write()))
    assert code == 4 and sorted(codes) == ["bloom-missing", "deletes-differ", "row-count-differs", "size-differs"]


def test_a_sample_reads_less(capsys: pytest.CaptureFixture[str]) -> None:
    _, everything, _ = report(capsys, str(STORES / "indexed" / "store"))
    code, some, _ = report(capsys, str(STORES / "indexed" / "store"), "--sample", "30%")
    assert code == 0 and 0 < some["rows"] < everything["rows"]  # type: ignore[operator]
    assert report(capsys, str(STORES / "indexed" / "store"), "--sample", "0.0001%")[1]["segments"] == 1
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
    code, _, codes = report(capsys, str(out), "--against", str(root))
    assert code == 3 and set(codes) == {"put-aside-alone"}  # no difference; but results of merges before their sources are odd


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
    assert code == 4 and codes == ["deleted-docs-short", "deletes-differ", "bloom-missing"]


def test_hybrid_attributes_are_verified_and_exported_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s", version="1.0.0")
    b.collection("h")
    for name, kind in (("age", FieldType.INT32), ("height", FieldType.DOUBLE)):
        b.field("h", name, kind)
    values = {"age": np.arange(50, dtype="<i4") - 9, "height": np.linspace(0, 1, 50)}
    b.segment("h", rows(range(50)), deleted=[3], attributes=values)
    store, first, again = str(b.write()), tmp_path / "first", tmp_path / "again"
    assert run(["export", store, str(first), "-q"]) == 0
    assert run(["export", str(first), str(again), "-q", "--compression", "gzip"]) == 0
    with h5py.File(again / "h" / "_default.h5") as h:
        assert h["age"][:].tolist() == np.delete(values["age"], 3).tolist()
        assert h["height"][:].tobytes() == np.delete(values["height"], 3).tobytes()
    for out in (first, again):
        assert report(capsys, str(out), "--against", store)[::2] == (0, [])
        with h5py.File(out / "h" / "_default.h5", "r+") as h:
            h["height"][20] = 7.5
        code, document, codes = report(capsys, str(out))
        codes = [c for c in codes if c != "file-size"]
        assert code == 4 and codes == ["checksum"] and "`height` of rows 0 to 48" in document["findings"][-1]["message"]  # type: ignore[index]
        code, document, codes = report(capsys, str(out), "--against", store)
        assert code == 4 and codes[-1] == "rows-differ" and document["findings"][-1]["rows"] == 2  # type: ignore[index]


def test_a_linked_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = copy_store("flat_basic", tmp_path), tmp_path / "out"
    assert run(["export", str(root), str(out), "-q", "--link"]) == 0
    code, _, codes = report(capsys, str(out))
    assert code == 0 and set(codes) == {"linked-unchecked"}
    code, document, _ = report(capsys, str(out), "--against", str(root))
    assert (code, document["rows"]) == (0, 5757)
    segment_file(root, ".rv").unlink()
    code, _, codes = report(capsys, str(out), "--against", str(STORES / "flat_basic" / "store"))
    assert code == 4 and "file-unreadable" in codes


def test_what_the_manifest_and_the_files_say(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = max(export.rglob("*.h5"), key=lambda p: p.stat().st_size)
    with h5py.File(path, "r+") as h:
        h.attrs["metric_type"] = "IP"
    code, document, codes = report(capsys, str(export))
    assert code == 4 and set(codes) - {"file-size"} == {"description"}
    assert "metric_type is IP in the file, L2 in the manifest" in document["findings"][-1]["message"]  # type: ignore[index]


def change_manifest(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = out / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    document.pop("checksum", None)  # as somebody who knows what they do
    path.write_text(json.dumps(document))


def test_collections_that_only_one_side_has(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(STORES / "flat_basic" / "store")
    (first, *_) = json.loads((export / "manifest.json").read_text())["collections"]
    change_manifest(export, lambda m: m["collections"].pop(0))
    code, document, codes = report(capsys, str(export), "--against", store)
    assert code == 4 and codes == ["partition-missing"] * len(first["partitions"])
    assert sum(f["rows"] for f in document["findings"]) == sum(p["rows"] for p in first["partitions"])  # type: ignore[attr-defined]
    part = tmp_path / "part"
    assert run(["export", store, str(part), "-q", "-c", first["name"]]) == 0
    code, document, codes = report(capsys, str(part), "--against", store)
    assert (code, codes) == (0, ["not-selected"])
    code, _, codes = report(capsys, str(export), "--against", str(part))
    assert code == 4 and "partition-unknown" in codes


def test_a_schema_that_differs(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(STORES / "flat_basic" / "store")
    other = export.with_name("other")
    shutil.copytree(export, other)
    change_manifest(other, lambda m: m["collections"][0].update(auto_id=not m["collections"][0]["auto_id"]))
    code, _, codes = report(capsys, str(other), "--against", store)
    assert code == 4 and set(codes) == {"description", "schema-differs"}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["collections"][0].pop("partitions"),
        lambda m: m["collections"][0].update(dimension="many"),
        lambda m: m["collections"][0]["partitions"][0]["files"][0].update(rows="x"),
        lambda m: m["collections"][0]["partitions"][0]["files"][0].update(rows=None),
        lambda m: m["collections"][0]["partitions"][0]["files"][0].pop("path"),
        lambda m: m["collections"][0]["partitions"][0].update(files=3),
        lambda m: m.update(collections={}),
        lambda m: m.update(source=None),
    ],
)
def test_a_damaged_manifest(change: Callable[[dict[str, Any]], None], export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(export, change)
    code, _, codes = report(capsys, str(export))
    assert code == 4 and codes == ["manifest-damaged"]


def test_an_unfinished_export_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / LEDGER).write_text("{}\n")
    for command in (["verify", str(out)], ["inspect", str(out)], ["export", str(out), str(tmp_path / "again")]):
        assert run(command) == 2
        assert "holds an unfinished run; finish it with the same command and --resume" in capsys.readouterr().err


def test_a_folder_with_a_store_and_hdf5_files(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy_store("flat_basic", tmp_path / "both")
    shutil.copy(next(export.rglob("*.h5")), tmp_path / "both" / "x.h5")
    assert run(["inspect", str(tmp_path / "both")]) == 2
    assert "name the one that is meant" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_filters_are_loaded_when_needed(compression: str, tmp_path: Path) -> None:
    store, out, again = str(STORES / "flat_basic" / "store"), str(tmp_path / "out"), str(tmp_path / "again")
    assert spawn("export", store, out, "-q", "--compression", compression).code == 0
    assert spawn("verify", out, "--against", store, "-q").code == 0
    assert spawn("export", out, again, "-q").code == 0
    assert spawn("verify", again, "--against", store, "-q").code == 0


def test_a_damaged_npy_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = str(STORES / "flat_basic" / "store"), tmp_path / "out"
    assert run(["export", store, str(out), "-q", "--format", "npy"]) == 0
    path = max(out.rglob("vector.npy"), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    end = 10 + int.from_bytes(whole[8:10], "little")
    for header in (b"{", b"()" * 20, b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, -16)}", b"[" * 100, b"\0"):
        path.write_bytes(whole[:10] + header.ljust(end - 10) + whole[end:])
        code, document, codes = report(capsys, str(out))
        assert (code, codes) == (4, ["file-unreadable"])
        assert str(path) in document["findings"][0]["message"]  # type: ignore[index]


def test_rows_that_a_restarted_server_doubled_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(range(100)))
    b.segment("c", rows(range(100)))
    b.segment("c", rows(range(99, -1, -1)))  # in another order
    b.segment("c", rows(range(1, 100)), deleted=[5])
    b.segment("c", rows(range(100), salt=7))  # other vectors
    code, document, codes = report(capsys, str(b.write()))
    assert (code, codes.count("segments-equal"), document["rows"]) == (0, 2, 498)
