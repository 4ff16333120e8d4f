"""The HDF5 target: every kind of file gives back the same rows, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, bag, rows
from support.command import call, exported, files, fingerprint, manifest
from support.real import STORES, copy_store, truth

from milvus_offline.fileio import unreadable
from milvus_offline.milvus1.layout import FieldType
from milvus_offline.model import Batch, buffer
from milvus_offline.sources.hdf5 import links
from milvus_offline.targets import hdf5, hdf5file
from milvus_offline.targets.slices import Slice, cut

SPECIAL = np.array(
    [0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001, 0x00000000], np.uint32
).view("<f4")
"""NaN with a payload, signalling NaN, both infinities, minus zero, the smallest subnormal number."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "store")
    b.collection("f", dim=8)
    ids = np.array([np.iinfo(np.int64).min, -1, 0, 1, np.iinfo(np.int64).max, 1, 1, 5], np.int64)
    b.segment("f", Batch(ids, np.stack([np.roll(SPECIAL, n) for n in range(8)])))
    b.segment("f", rows(range(100, 3000), dim=8), deleted=[0, *range(7, 2900, 11), 2899])
    b.segment("f", rows(range(5000, 5010), dim=8), deleted=range(10))
    b.partition("f", "empty")
    b.collection("wide", dim=4096)
    b.segment("wide", rows(range(130), dim=4096), deleted=[64])
    b.collection("bits", dim=24, metric="HAMMING")
    b.segment("bits", rows(range(999), dim=24, binary=True))
    b.wal.insert("f", rows(7001, 7002, dim=8))
    return b.write()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("compression", ["lz4", "zstd", "gzip"])
def test_compression(compression: str, jobs: int, store: Path, tmp_path: Path) -> None:
    assert call("export", store, tmp_path / "plain", "-q").code == 0
    done = call("export", store, tmp_path / "small", "-q", "--compression", compression, "--jobs", jobs)
    assert (done.code, done.err) == (0, "")
    assert exported(tmp_path / "small") == exported(tmp_path / "plain")
    plain, small = manifest(tmp_path / "plain"), manifest(tmp_path / "small")
    for a, b in zip(plain["collections"], small["collections"], strict=True):
        for p, q in zip(a["partitions"], b["partitions"], strict=True):
            assert [f["checksum"] for f in p["files"]] == [f["checksum"] for f in q["files"]]
            with (
                h5py.File(tmp_path / "plain" / p["files"][0]["path"]) as h,
                h5py.File(tmp_path / "small" / q["files"][0]["path"]) as k,
            ):
                assert h["ids"][:].tobytes() == k["ids"][:].tobytes()  # the order as well
                assert h["embeddings"][:].tobytes() == k["embeddings"][:].tobytes()
                assert dict(h.attrs) == dict(k.attrs)
                if q["rows"]:
                    assert k["embeddings"].chunks is not None and k["embeddings"]._filters


def test_gzip_needs_nothing_else(store: Path, tmp_path: Path) -> None:
    """Files with gzip are readable without hdf5plugin."""
    import subprocess
    import sys

    call("export", store, tmp_path / "out", "-q", "--compression", "gzip")
    code = f"import h5py; h = h5py.File({str(tmp_path / 'out' / 'bits' / '_default.h5')!r}); print(h['embeddings'][:].sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == int(rows(range(999), dim=24, binary=True).vectors.sum())


def test_compression_without_the_package(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "hdf5plugin", None)
    done = call("export", store, tmp_path / "out", "--compression", "zstd")
    assert (done.code, "milvus-offline[compress]" in done.err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["flat_basic", "binary", "partitions", "crash_wal_partial"])
@pytest.mark.parametrize(
    "options", [["--compression", "zstd"], ["--compression", "lz4"], ["--compression", "gzip"], ["--link"]]
)
def test_real_stores(name: str, options: Sequence[str], tmp_path: Path) -> None:
    done = call("export", STORES / name / "store", tmp_path / "out", "-q", *options)
    assert (done.code, done.err) == (0, "")
    assert exported(tmp_path / "out") == truth(name)


# Links -----------------------------------------------------------------------------------------------------------------


def test_link_copies_nothing(tmp_path: Path) -> None:
    store = copy_store("flat_basic", tmp_path)
    before = fingerprint(store)
    assert call("export", store, tmp_path / "plain", "-q").code == 0
    assert call("export", store, tmp_path / "out", "-q", "--link").code == 0
    assert exported(tmp_path / "out") == exported(tmp_path / "plain") == truth("flat_basic")
    assert fingerprint(store) == before
    for c in manifest(tmp_path / "out")["collections"]:
        for p in c["partitions"]:
            (f,) = p["files"]
            assert (f.get("linked"), f["checksum"]) == (True, None)
            assert (tmp_path / "out" / f["path"]).stat().st_size < 10_000
            with h5py.File(tmp_path / "out" / f["path"]) as h, h5py.File(tmp_path / "plain" / f["path"]) as k:
                assert h["embeddings"].external and all(os.path.isabs(name) for name, _, _ in h["embeddings"].external)
                assert h["ids"][:].tobytes() == k["ids"][:].tobytes()
                assert dict(h.attrs) == dict(k.attrs)


def test_links_to_more_segments_than_a_file_can_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5file, "_MAX_LINKED", 2)
    b = StoreBuilder(tmp_path / "store")
    for name, count in (("few", 2), ("many", 3)):
        b.collection(name)
        for n in range(count):
            b.segment(name, rows(n))
    done = call("export", b.write(), tmp_path / "out", "--link")
    assert done.code == 0
    assert manifest(tmp_path / "out")["findings"] == []
    with (
        h5py.File(tmp_path / "out" / "few" / "_default.h5") as few,
        h5py.File(tmp_path / "out" / "many" / "_default.h5") as many,
    ):
        assert (few["ids"].is_virtual, many["ids"].is_virtual) == (False, True)
    assert exported(tmp_path / "out") == {("few", "_default"): bag(rows(0, 1)), ("many", "_default"): bag(rows(0, 1, 2))}
    with h5py.File(tmp_path / "limit.h5", "w") as h:  # and 2500, the real limit, is one that HDF5 takes
        h.create_dataset("x", (2500,), "u1", external=[("x" * 200, 8, 1)] * 2500)


def test_links_around_deleted_rows_and_into_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.segment("c", rows(range(100)), deleted=[0, 5, 6, 50, 99])
    b.segment("c", rows(range(100, 110)))
    b.segment("c", rows(range(110, 120)), deleted=range(10))
    b.wal.insert("c", rows(range(200, 230)))
    b.wal.insert("c", rows(range(230, 231)))
    b.wal.delete("c", [3, 107, 210, 211])
    b.wal.insert("c", rows(3, salt=1))
    store = b.write()
    assert call("export", store, tmp_path / "plain").code == 0
    for limit in (2500, 3):
        monkeypatch.setattr(hdf5file, "_MAX_LINKED", limit)
        out = tmp_path / f"out{limit}"
        assert call("export", store, out, "--link").code == 0
        (part,) = manifest(out)["collections"][0]["partitions"]
        assert part["files"][0]["linked"] and exported(out) == exported(tmp_path / "plain")
        with h5py.File(out / "c" / "_default.h5") as h, h5py.File(tmp_path / "plain" / "c" / "_default.h5") as k:
            assert h["ids"][:].tolist() == k["ids"][:].tolist(), "in the same order"
        assert call("verify", out, "--against", store).code == 0
        assert call("load", out, f"milvus1:{tmp_path / f'again{limit}'}").code == 0


def test_rows_in_too_many_places_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "MAX_EXTENTS", 4)
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.segment("c", rows(range(10)), deleted=[1, 3, 5, 7])
    done = call("export", b.write(), tmp_path / "out", "--link")
    assert done.code == 0
    assert [f["code"] for f in manifest(tmp_path / "out")["findings"]] == ["link-copied"]
    assert exported(tmp_path / "out")["c", "_default"] == bag(rows(0, 2, 4, 6, 8, 9))


def test_a_file_that_is_named_for_each_of_many_rows_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.segment("c", rows(range(400)), deleted=range(0, 400, 2))
    assert call("export", b.write(), tmp_path / "out", "--link").code == 0
    looked: list[str] = []
    monkeypatch.setattr(links, "unreadable", lambda path: looked.append(path) or unreadable(path))
    assert call("verify", tmp_path / "out").code == 0
    assert 0 < len(looked) < 20


def test_a_virtual_file_whose_store_is_gone_is_damaged_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5file, "_MAX_LINKED", 1)
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    gone = b.segment("c", rows(range(10)))
    b.segment("c", rows(range(10, 20)))
    assert call("export", b.write(), tmp_path / "out", "--link").code == 0
    gone.raw.unlink()
    done = call("load", tmp_path / "out", f"milvus1:{tmp_path / 'again'}")
    assert done.code == 1 and "10 of 20 rows have no values" in done.err and "there is no such file" in done.err


def test_a_store_with_deletes_and_a_log_is_linked_whole(store: Path, tmp_path: Path) -> None:
    assert call("export", store, tmp_path / "plain", "-q").code == 0
    done = call("export", store, tmp_path / "out", "--link")
    assert done.code == 0
    assert exported(tmp_path / "out") == exported(tmp_path / "plain")
    assert not [f for f in manifest(tmp_path / "out")["findings"] if f["code"] == "link-copied"]
    linked = {
        f["path"]
        for c in manifest(tmp_path / "out")["collections"]
        for p in c["partitions"]
        for f in p["files"]
        if "linked" in f
    }
    assert linked == {"bits/_default.h5", "f/_default.h5", "wide/_default.h5"}


def test_link_of_damaged_segments(tmp_path: Path) -> None:
    """Only rows that are wholly there: a cut .rv, a wrong header, bytes after the payload."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    one, two, three = (b.segment("c", rows(range(10 * n, 10 * n + 10))) for n in range(3))
    one.raw.write_bytes(one.raw.read_bytes()[: 8 + 16 * 4])
    two.ids.write_bytes(b"\xff" * 8 + two.ids.read_bytes()[8:])
    three.raw.write_bytes(three.raw.read_bytes() + b"after")
    assert call("export", b.write(), tmp_path / "out", "--link").code == 3
    assert exported(tmp_path / "out")["c", "_default"] == bag(rows(range(4)), rows(range(10, 30)))


# The rest --------------------------------------------------------------------------------------------------------------


def test_special_values_and_ids(store: Path, tmp_path: Path) -> None:
    call("export", store, tmp_path / "out", "-q")
    with h5py.File(tmp_path / "out" / "f" / "_default.h5") as h:
        assert h["embeddings"][:8].tobytes() == np.stack([np.roll(SPECIAL, n) for n in range(8)]).tobytes()
        assert h["ids"][:8].tolist() == [-(2**63), -1, 0, 1, 2**63 - 1, 1, 1, 5]
        assert h["ids"][-2:].tolist() == [7001, 7002]
        assert h["ids"].dtype.str == "<i8" and h["embeddings"].dtype.str == "<f4"


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_attributes_of_hybrid_collections(compression: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store", version="1.0.0")
    b.collection("h")
    for name, kind in (
        ("age", FieldType.INT32),
        ("height", FieldType.DOUBLE),
        ("ids", FieldType.INT64),
        ("a/b", FieldType.INT8),
    ):
        b.field("h", name, kind)
    values: dict[str, Any] = {
        "age": np.arange(50, dtype="<i4") - 9,
        "height": np.linspace(0, 1, 50),
        "ids": np.arange(50, dtype="<i8") * 3,
    }
    b.segment("h", rows(range(50)), deleted=[0, 49], attributes=values)
    assert call("export", b.write(), tmp_path / "out", "--compression", compression).code == 3
    (c,) = manifest(tmp_path / "out")["collections"]
    names = {a["name"]: a["dataset"] for a in c["attributes"]}
    assert set(names) == {"age", "height", "ids", "a/b"}
    assert len(set(names.values()) | {"embeddings", "ids"}) == 6 and "/" not in names["a/b"]
    with h5py.File(tmp_path / "out" / "h" / "_default.h5") as h:
        for name, column in values.items():
            assert h[names[name]][:].tolist() == column[1:49].tolist()
            assert h[names[name]].dtype == column.dtype
        assert h[names["a/b"]][:].tolist() == [0] * 48
    (lost,) = [f for f in manifest(tmp_path / "out")["findings"] if f["severity"] != "info"]
    assert (lost["code"], lost["rows"], "a/b" in lost["message"]) == ("attribute-missing", 50, True)


class Numbers:
    """A piece of `count` rows."""

    def __init__(self, count: int) -> None:
        self.rows = count


@pytest.mark.parametrize("sizes", [[], [0], [1], [10], [3, 3, 3], [100], [0, 5, 0, 25, 1, 1, 1]])
def test_cut(sizes: list[int]) -> None:
    """Every row is in exactly one slice, in order; no group is larger than the limit."""
    pieces: Any = [Numbers(n) for n in sizes]
    groups = cut(pieces, 4, 40)
    assert all(0 < sum(s.rows for s in g) <= 10 for g in groups)
    flat: list[Slice] = [s for g in groups for s in g]
    for piece in pieces:
        mine = [(s.start, s.rows) for s in flat if s.piece is piece]
        assert [r for start, count in mine for r in range(start, start + count)] == list(range(piece.rows))
    assert len(groups) == -(-sum(sizes) // 10)


def test_the_same_rows_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    import time

    call("export", store, tmp_path / "a", "-q")
    time.sleep(1.1)  # HDF5 would note the second
    call("export", store, tmp_path / "b", "-q")
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("sizes", [[1, 1, 1], [5, (1 << 17) - 5, 7], [1 << 17, 3, 1 << 18, 2], [3, 1 << 18], []])
def test_gathered_writes(sizes: list[int], tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(sum(sizes))
    path = tmp_path / "file"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY)
    writer, at = hdf5._Writer(fd, 6), 0
    for size in sizes:
        piece = bytearray(content[at : at + size])
        writer.add(memoryview(piece))
        piece[:] = bytes(size)  # what was given is used again
        at += size
    writer.flush()
    os.close(fd)
    assert path.read_bytes() == b"before" + content


@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (3, 5), (4096, 128)])
@pytest.mark.parametrize("dtype", ["<f4", "u1", "<i8"])
def test_buffers_are_aligned(shape: tuple[int, ...], dtype: str) -> None:
    made = buffer(shape, dtype)
    assert (made.shape, made.dtype) == (shape, np.dtype(dtype))
    assert made.ctypes.data % 64 == 0 or not made.size
    assert made.flags.writeable and made.flags.c_contiguous
