"""Files whose frame is written here are to HDF5 what a file is that it has written itself."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.real import STORES

from milvus_offline.manifest import OutFile
from milvus_offline.milvus1.layout import ATTRIBUTE_DTYPES
from milvus_offline.model import Attribute, IndexSpec, Schema, VectorType
from milvus_offline.targets import hdf5file
from milvus_offline.targets.hdf5frame import Dataset, frame

SEEDS = range(60)
NAMES = ["a", "b" * 255, "größe", "価格", "x y", "-", "embeddings2", "Z", "0", "🙂", "ids2", "é" * 100, "🙂" * 250]


def some_file(seed: int) -> OutFile:
    rng = random.Random(seed)
    binary = rng.random() < 0.3
    names = rng.sample(NAMES, rng.choice([0, 0, 1, 2, 6, 7, len(NAMES)]))
    names += [f"field_{n}" for n in range(rng.choice([0, 0, 0, 40]))]
    dtypes = list(ATTRIBUTE_DTYPES.values())
    return OutFile(
        "c/p.h5",
        Schema(
            rng.choice(["faces", "", "人脸", "x" * 255]),
            rng.choice([8, 16, 128, 1000]) if binary else rng.choice([1, 3, 4, 128, 2048]),
            VectorType.BINARY if binary else VectorType.FLOAT,
            rng.choice([None, "L2", "JACCARD"]),
            IndexSpec("IVF_FLAT", rng.choice([{}, {"nlist": 16384}, {"note": "n" * rng.choice([4000, 100_000])}])),
            rng.choice([None, 0, 1024, 2**62, 2**63 + 1]),
            rng.choice([None, True, False]),
            tuple(Attribute(n, rng.choice(dtypes).str) for n in names),
        ),
        rng.choice(["_default", "2021", "", "日"]),
        rng.choice([0, 1, 2, 7, 300]),
        rng.choice([None, None, "deleted"]),  # type: ignore[arg-type]
        rng.random() < 0.3,
    )


def by_hdf5(path: Path, file: OutFile) -> Path:
    """The same written by HDF5 alone."""
    with h5py.File(path, "w") as h:
        for dataset in hdf5file.datasets_of(file):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            kind, space = h5py.h5t.py_create(np.dtype(dataset.dtype)), h5py.h5s.create_simple(dataset.shape)
            h5py.h5d.create(h.id, dataset.name.encode(), kind, space, plist)
        hdf5file.describe(h, file)
    return path


def here(path: Path, file: OutFile) -> Path:
    hdf5file.reserve(path, file)
    hdf5file.write_frame(path, file)
    return path


def properties(plist: Any) -> tuple[object, ...]:
    return plist.get_layout(), plist.get_alloc_time(), plist.get_fill_time(), plist.fill_value_defined(), plist.get_nfilters()


def require_alike(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    assert list(ours.attrs) == list(theirs.attrs)
    for name in theirs:
        a, b = ours[name].id, theirs[name].id
        assert a.get_type().equal(b.get_type()) and a.get_type().encode() == b.get_type().encode()
        assert a.get_space().shape == b.get_space().shape
        assert a.get_space().get_simple_extent_dims(True) == b.get_space().get_simple_extent_dims(True)
        assert a.get_storage_size() == b.get_storage_size()
        assert properties(a.get_create_plist()) == properties(b.get_create_plist())
        assert (a.get_offset() is None) == (b.get_offset() is None)
    for name, value in theirs.attrs.items():
        a, b = ours.attrs.get_id(name), theirs.attrs.get_id(name)
        assert a.get_type().encode() == b.get_type().encode() and a.shape == b.shape
        assert a.get_space().get_simple_extent_type() == b.get_space().get_simple_extent_type()
        assert type(ours.attrs[name]) is type(value) and ours.attrs[name] == value


@pytest.mark.parametrize("seed", SEEDS)
def test_hdf5_sees_no_difference_to_a_file_of_its_own(seed: int, tmp_path: Path) -> None:
    file = some_file(seed)
    with h5py.File(here(tmp_path / "a.h5", file)) as ours, h5py.File(by_hdf5(tmp_path / "b.h5", file)) as theirs:
        require_alike(ours, theirs)
        assert ours.id.get_filesize() == (tmp_path / "a.h5").stat().st_size
        places = hdf5file.places_of(file)
        for dataset, place in zip(hdf5file.datasets_of(file), places, strict=False):
            assert ours[dataset.name].id.get_offset() == (place.offset if file.rows else None)
            assert not file.aligned or place.offset % 4096 == 8
        ends = [p.offset + file.rows * p.row_bytes for p in places[:-1]]
        assert not file.aligned or all(p.offset - 8 >= end for p, end in zip(places[1:-1], ends, strict=False))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rows_are_where_hdf5_reads_them(seed: int, tmp_path: Path) -> None:
    file, rng = some_file(seed), np.random.default_rng(seed)
    path = tmp_path / "a.h5"
    hdf5file.reserve(path, file)
    written: dict[str, bytes] = {}
    with path.open("r+b") as f:
        for number, (dataset, place) in enumerate(zip(hdf5file.datasets_of(file), hdf5file.places_of(file), strict=False)):
            written[dataset.name] = rng.bytes(file.rows * dataset.row_bytes)
            if number == 1:  # some before the frame, some after it
                hdf5file.write_frame(path, file)
            f.seek(place.offset)
            f.write(written[dataset.name])
    with h5py.File(path) as h:
        assert {name: h[name][()].tobytes() for name in h} == written


@pytest.mark.parametrize("seed", SEEDS)
def test_a_user_changes_such_a_file(seed: int, tmp_path: Path) -> None:
    """Adds and removes datasets, groups and attributes: HDF5 moves and extends what was written here."""
    file, rng = some_file(seed), random.Random(seed)
    path = here(tmp_path / "a.h5", file)
    expected: dict[str, Any] = {}
    with h5py.File(path, "r+") as h:
        kept = {n: h[n][()] for n in h if n not in ("ids",)}
        notes = dict(h.attrs.items())
        for n in range(rng.choice([1, 5, 60])):
            h.attrs[f"note {n}"] = notes[f"note {n}"] = "text " * rng.choice([0, 1, 1000])
            h[f"more/{n}"] = expected[f"more/{n}"] = np.arange(rng.choice([0, 3, 5000]))
            h[f"n{n}"] = expected[f"n{n}"] = np.full(3, n)
        del h["ids"], h.attrs["rows"], notes["rows"]
        h.attrs["written_by"] = notes["written_by"] = "somebody else"
    with h5py.File(path) as h:
        assert set(h) == {*kept, *(n.partition("/")[0] for n in expected)}
        assert dict(h.attrs.items()) == notes
        for name, values in {**kept, **expected}.items():
            assert np.array_equal(h[name][()], values, equal_nan=values.dtype.kind == "f")


def test_more_datasets_and_texts_than_any_collection_has(tmp_path: Path) -> None:
    """A node of the group's tree holds them all, however many there are."""
    for many in (1, 8, 9, 200, 3000):
        columns = [Dataset(f"d{n}", (n % 5, 3), "<f4") for n in range(many)]
        *offsets, at = accumulate((c.nbytes for c in columns), initial=1 << 20)
        attributes: Mapping[str, str] = {f"a{n}": "v" * (n % 300) for n in range(many)}
        head, tail = frame(columns, offsets, attributes, at)
        (tmp_path / "a.h5").write_bytes(head.ljust(1 << 20, b"\0") + bytes(at - (1 << 20)) + tail)
        with h5py.File(tmp_path / "a.h5") as h:
            assert {n: h[n].shape for n in h} == {c.name: c.shape for c in columns}
            assert dict(h.attrs.items()) == attributes
            found = [h[c.name].id.get_offset() for c in columns]
            assert found == [at if c.nbytes else None for c, at in zip(columns, offsets, strict=True)]


def test_an_export_that_copies_never_loads_hdf5(tmp_path: Path) -> None:
    code = (
        "import sys; from milvus_offline.cli import run; code = run(sys.argv[1:]); "
        "print(sorted({'h5py', 'numpy'} & set(sys.modules))); sys.exit(code)"
    )
    for store in ("flat_basic", "binary", "crash_wal"):
        words = ["export", str(STORES / store / "store"), str(tmp_path / store), "-q"]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "['numpy']\n"), done.stderr
