"""Exports are read where their manifests say that rows lie: damage to what HDF5 reads costs nothing, and ends no process."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.badsectors import refusing
from support.builder import StoreBuilder, rows
from support.command import call, exported
from support.real import STORES

from milvus_offline.manifest import checksum_of

NAMES = sorted(p.name for p in STORES.iterdir() if not p.name.startswith("mysql"))


def entries(out: Path) -> Iterator[dict[str, Any]]:
    document = json.loads((out / "manifest.json").read_text())
    for part in [p for c in document["collections"] for p in c["partitions"]] + document["salvage"]:
        yield from part["files"]


def forbid_hdf5(patch: pytest.MonkeyPatch, path: Path) -> None:
    """HDF5 is not asked about this file."""
    opened = h5py.File

    def guarded(name: Any, *more: Any, **options: Any) -> Any:
        assert Path(name) != path, "HDF5 was asked"
        return opened(name, *more, **options)

    patch.setattr(h5py, "File", guarded)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_says_where_each_dataset_lies(name: str, tmp_path: Path) -> None:
    assert call("export", STORES / name / "store", tmp_path / "out", "--salvage", "all").code in (0, 3)
    found = list(entries(tmp_path / "out"))
    for entry in found:
        path = tmp_path / "out" / entry["path"]
        with h5py.File(path) as h:
            assert list(h) == sorted(d["name"] for d in entry["datasets"])
            for d in entry["datasets"]:
                assert (h[d["name"]].dtype.str, h[d["name"]].shape) == (d["dtype"], tuple(d["shape"]))
                if entry["rows"]:
                    mapped = np.memmap(path, d["dtype"], "r", d["offset"], tuple(d["shape"]))
                    assert np.array_equal(mapped, h[d["name"]][...], equal_nan=d["dtype"] == "<f4")
        held = sum(b - a for a, b in entry["structure"]["ranges"])
        held += sum(int(np.prod(d["shape"])) * np.dtype(d["dtype"]).itemsize for d in entry["datasets"])
        assert held == path.stat().st_size, "every byte is a row or is held by the checksum"
    assert found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    assert call("export", STORES / "partitions" / "store", tmp_path / "out").code == 0
    return tmp_path / "out"


def test_a_changed_byte_of_the_structure_is_told_and_costs_no_row(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of them: HDF5, which crashes or never ends over some, is not asked."""
    before = exported(out)
    entry = next(e for e in entries(out) if e["rows"])
    path, rng = out / entry["path"], random.Random(7)
    data = path.read_bytes()
    places = [at for a, b in entry["structure"]["ranges"] for at in range(a, b)]
    for number, at in enumerate(rng.sample(places, 120)):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        forbid_hdf5(monkeypatch, path)
        done = call("verify", out, "--json")
        assert done.code == 4 and [f["code"] for f in done.json["findings"]] == ["structure-differs"], at
        assert done.json["rows"] == sum(e["rows"] for e in entries(out))
        if number % 20:
            continue
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        done = call("export", out, tmp_path / "again", "--json")
        assert done.code == 0 and [f["code"] for f in done.json["findings"]] == ["structure-differs"]
        monkeypatch.undo()
        assert exported(tmp_path / "again") == before
        assert call("verify", tmp_path / "again").code == 0


@pytest.mark.parametrize(
    "options", [["--compression", "gzip"], ["--compression", "lz4"], ["--compression", "zstd"], ["--link"]]
)
def test_hdf5_is_not_asked_about_a_file_whose_structure_changed(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of these files nobody else can read the rows."""
    out, rng = tmp_path / "out", random.Random(3)
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=64)
    builder.segment("faces", rows(range(30_000), dim=64))
    builder.write()
    assert call("export", tmp_path / "store", out, *options).code == 0
    assert call("verify", out).code == 0
    (entry,) = entries(out)
    path = out / entry["path"]
    with h5py.File(path) as h:
        chunks = [h[name].id.get_chunk_info(n) for name in h if h[name].chunks for n in range(h[name].id.get_num_chunks())]
    held = sum(b - a for a, b in entry["structure"]["ranges"])
    assert held + sum(c.size for c in chunks) == entry["bytes"], "every byte is a row or is held by the checksum"
    assert (len(chunks) > 7) is ("--link" not in options)
    data = path.read_bytes()
    forbid_hdf5(monkeypatch, path)
    for at in rng.sample([at for a, b in entry["structure"]["ranges"] for at in range(a, b)], 40):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        done = call("verify", out, "--json")
        assert done.code == 4 and [f["code"] for f in done.json["findings"]] == ["file-unreadable"], at
        refused = call("export", out, tmp_path / "again")
        assert refused.code == 1 and "are not those that were written" in refused.err


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("mode", ["r+", "a"])
@pytest.mark.parametrize("options", [[], ["--compression", "gzip"], ["--link"]])
def test_who_opens_a_file_for_writing_and_changes_nothing_changes_nothing(
    options: list[str], mode: str, libver: str, tmp_path: Path
) -> None:
    assert call("export", STORES / "partitions" / "store", tmp_path / "out", *options).code == 0
    for entry in entries(tmp_path / "out"):
        with h5py.File(tmp_path / "out" / entry["path"], mode, libver=libver) as h:
            assert len(h["ids"][...]) == entry["rows"] and dict(h.attrs)
            h.flush()
    done = call("verify", tmp_path / "out", "--json")
    assert done.code == 0 and {f["code"] for f in done.json["findings"]} <= {"linked-unchecked"}


def test_changed_rows_are_told_beside_a_changed_structure(out: Path) -> None:
    entry = next(e for e in entries(out) if e["rows"])
    data = bytearray((out / entry["path"]).read_bytes())
    data[0] ^= 1
    data[entry["datasets"][1]["offset"] + 3] ^= 1
    (out / entry["path"]).write_bytes(data)
    done = call("verify", out, "--json")
    assert done.code == 4 and sorted(f["code"] for f in done.json["findings"]) == ["checksum", "structure-differs"]


def test_a_disk_that_refuses_the_structure_costs_no_row(out: Path, tmp_path: Path) -> None:
    before = exported(out)
    entry = next(e for e in entries(out) if e["rows"])
    with refusing({out / entry["path"]: [(0, 4096)]}):
        done = call("verify", out, "--json")
        assert call("export", out, tmp_path / "again").code == 0
    assert done.code == 4 and [f["code"] for f in done.json["findings"]] == ["structure-differs"]
    assert "cannot be read" in done.json["findings"][0]["message"]
    assert exported(tmp_path / "again") == before


def test_rows_whose_disk_refuses_them_leave_a_manifest_of_the_others(tmp_path: Path) -> None:
    """The rows that came move together, and the manifest says where to."""
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    made = builder.segment("faces", rows(range(5000), dim=8))
    builder.write()
    with refusing({made.raw: [(40_960, 45_056)]}):
        assert call("export", tmp_path / "store", tmp_path / "out").code == 3
    (entry,) = entries(tmp_path / "out")
    assert 0 < entry["rows"] < 5000 and entry["datasets"][0]["shape"] == [entry["rows"], 8]
    assert call("verify", tmp_path / "out").code == 0
    assert len(exported(tmp_path / "out")["faces", "_default"]) == entry["rows"]


def test_a_file_that_an_interrupted_run_shortened_is_read_by_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its name already, and no longer the places that were planned for its rows."""
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    made = builder.segment("faces", rows(range(5000), dim=8))
    builder.write()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with refusing({made.raw: [(40_960, 45_056)]}):
        with monkeypatch.context() as patch:
            patch.setattr("milvus_offline.targets.hdf5.end_export", full)
            assert call("export", tmp_path / "store", tmp_path / "out").code == 1
        assert next((tmp_path / "out").rglob("*.h5")).exists()
        assert call("export", tmp_path / "store", tmp_path / "out", "--resume").code == 3
    (entry,) = entries(tmp_path / "out")
    assert 0 < entry["rows"] < 5000 and "datasets" not in entry
    assert call("verify", tmp_path / "out").code == 0
    assert len(exported(tmp_path / "out")["faces", "_default"]) == entry["rows"]


def rewrite(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes each file of a manifest, which gets a checksum that fits."""
    document = json.loads((out / "manifest.json").read_text())
    for entry in [f for c in document["collections"] for p in c["partitions"] for f in p["files"]]:
        change(entry)
    document["checksum"] = checksum_of(document)
    (out / "manifest.json").write_text(json.dumps(document))


def without(entry: dict[str, Any]) -> None:
    del entry["datasets"], entry["structure"]


def test_exports_of_earlier_versions_are_read_by_hdf5(out: Path, tmp_path: Path) -> None:
    rewrite(out, without)
    assert call("verify", out, "--against", STORES / "partitions" / "store").code == 0
    assert call("export", out, tmp_path / "again").code == 0
    assert exported(tmp_path / "again") == exported(out)


def test_a_file_that_somebody_packed_anew_is_read_by_hdf5(out: Path, tmp_path: Path) -> None:
    before = exported(out)
    entry = next(e for e in entries(out) if e["rows"])
    path = out / entry["path"]
    path.rename(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5") as old, h5py.File(path, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            new.create_dataset(name, data=old[name][...], compression="gzip", chunks=True)
    done = call("verify", out, "--json")
    assert done.code == 4 and [f["code"] for f in done.json["findings"]] == ["file-size"]
    assert call("export", out, tmp_path / "again").code == 0
    assert exported(tmp_path / "again") == before


LIES: list[Callable[[dict[str, Any]], object]] = [
    lambda e: e.update(datasets=3),
    lambda e: e.update(datasets=[]),
    lambda e: e.update(structure=None),
    lambda e: e.update(structure={"ranges": [[0, 10**15]], "checksum": e["structure"]["checksum"]}),
    lambda e: e.update(structure={"ranges": [[5, 4]], "checksum": e["structure"]["checksum"]}),
    lambda e: e["datasets"][0].update(offset=-1),
    lambda e: e["datasets"][0].update(offset=e["bytes"] - 8 if e["rows"] else -1),
    lambda e: e["datasets"][0].update(offset=float("inf")),
    lambda e: e["datasets"][0].update(shape=[10**12, 10**12]),
    lambda e: e["datasets"][0].update(shape=[]),
    lambda e: e["datasets"][0].update(dtype="no such"),
    lambda e: e["datasets"][0].update(dtype="<f8"),
    lambda e: e["datasets"][1].update(dtype="O"),
    lambda e: e["datasets"][1].pop("dtype"),
    lambda e: e["datasets"].pop(),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_says_what_cannot_be_is_refused(
    lie: Callable[[dict[str, Any]], object], out: Path, tmp_path: Path
) -> None:
    rewrite(out, lie)
    done = call("verify", out, "--json")
    assert done.code == 4 and {f["code"] for f in done.json["findings"]} == {"file-unreadable"}
    refused = call("export", out, tmp_path / "again")
    assert (
        refused.code == 1 and refused.err.count("milvus-offline: ") == 1 and not (tmp_path / "again" / "manifest.json").exists()
    )
