"""HDF5 of every kind of thing that people put into it: each is exact, or refused in a sentence that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from support.command import call, exported, manifest

N, D = 40, 8
X = np.random.default_rng(1).standard_normal((N, D)).astype("f4")
IDS = np.arange(N) * 3 + 1
WHOLE = np.trunc(abs(X) * 50)


def plain(vectors: Any, ids: Any = IDS, **options: Any) -> Callable[[h5py.File], None]:
    def write(h: h5py.File) -> None:
        h.create_dataset("embeddings", data=vectors, **options)
        h["ids"] = ids

    return write


def put(**datasets: Any) -> Callable[[h5py.File], None]:
    def write(h: h5py.File) -> None:
        for name, value in datasets.items():
            h[name.replace("__", "/")] = value

    return write


def low(dtype: Any, layout: int, data: Any) -> Callable[[h5py.File], None]:
    """A dataset of a type or layout that only HDF5's own calls make."""

    def write(h: h5py.File) -> None:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_layout(layout)
        h5py.h5d.create(h.id, b"embeddings", dtype, h5py.h5s.create_simple(data.shape), options)
        h["embeddings"][...] = data
        h["ids"] = IDS

    return write


def virtual(dtype: str, mapped: tuple[Any, Any]) -> Callable[[h5py.File], None]:
    def write(h: h5py.File) -> None:
        h["v"], h["ids"] = X.astype(dtype), IDS
        layout = h5py.VirtualLayout((N, D), "f4")
        layout[mapped] = h5py.VirtualSource(".", "v", (N, D), dtype=dtype)[mapped]
        h.create_virtual_dataset("embeddings", layout)

    return write


def half_written(h: h5py.File) -> None:
    h.create_dataset("embeddings", (N, D), "f4", fillvalue=7, chunks=(10, D))[: N // 2] = X[: N // 2]
    h["ids"] = IDS


ALL = slice(None)
EXACT: dict[str, tuple[Callable[[h5py.File], None], Any]] = {
    **{
        f"as {t}": (plain(WHOLE.astype(t)), WHOLE.astype("f4"))
        for t in ("u2", "u4", "u8", "i2", "i4", "i8", ">u2", ">i8", "f2")
    },
    "signed bytes": (plain((X * 20).astype("i1")), (X * 20).astype("i1").astype("f4")),
    "long doubles": (plain(X.astype(np.longdouble)), X),
    "compact": (low(h5py.h5t.IEEE_F32LE, h5py.h5d.COMPACT, X), X),
    "compact, the other byte order": (low(h5py.h5t.IEEE_F64BE, h5py.h5d.COMPACT, X.astype("f8")), X),
    "zstd": (plain(X, **hdf5plugin.Zstd()), X),
    "lz4": (plain(X, **hdf5plugin.LZ4()), X),
    "blosc": (plain(X, **hdf5plugin.Blosc()), X),
    "bitshuffle": (plain(X, **hdf5plugin.Bitshuffle()), X),
    "fletcher32": (plain(X, fletcher32=True, chunks=(5, 8)), X),
    "scale-offset of whole numbers": (plain(WHOLE.astype("i4"), scaleoffset=0, chunks=(5, 8)), WHOLE.astype("f4")),
    "chunks that cut vectors": (plain(X, chunks=(7, 3)), X),
    "chunks of one column": (plain(X, chunks=(N, 1), compression="gzip"), X),
    "may grow": (plain(X, maxshape=(None, D)), X),
    "a fill value": (plain(X, fillvalue=7), X),
    "ids below zero": (plain(X, IDS - 100), X),
    "ids in a column": (plain(X, IDS.reshape(-1, 1)), X),
    "ids that repeat": (plain(X, IDS * 0 + 5), X),
    "other names": (put(vectors=X, pk=IDS), X),
    "in capitals": (put(EMBEDDINGS=X, IDS=IDS), X),
    "five groups down": (put(a__b__c__d__e__emb=X, a__b__c__d__e__id=IDS), X),
    "a group of that name": (put(embeddings__data=X, embeddings__ids=IDS), X),
    "a virtual dataset of doubles": (virtual("f8", (ALL, ALL)), X),
}


@pytest.mark.parametrize("name", EXACT)
def test_is_exact(name: str, tmp_path: Path) -> None:
    write, right = EXACT[name]
    with h5py.File(tmp_path / "a.h5", "w") as h:
        write(h)
        ids = next(
            h[k][:] for k in ("ids", "pk", "IDS", "embeddings/ids", "a/b/c/d/e/id") if isinstance(h.get(k), h5py.Dataset)
        )
    done = call("export", tmp_path / "a.h5", tmp_path / "out")
    assert done.code == 0, done.err
    ((_, found),) = exported(tmp_path / "out").items()
    assert sorted(found.elements()) == sorted((int(i), v.tobytes()) for i, v in zip(ids.reshape(-1), right, strict=True))
    assert {f["severity"] for f in manifest(tmp_path / "out")["findings"]} <= {"info"}


REFUSED: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "complex numbers": (plain(X.astype("c8")), "expected numbers or bits, found complex64"),
    "compounds": (plain(np.zeros((N, D), [("a", "f4"), ("b", "f4")])), "expected numbers or bits"),
    "compounds of id and vector": (plain(np.zeros(N, [("id", "i8"), ("v", "f4", D)])), "expected two dimensions"),
    "opaque bytes": (plain(X.view("V4").reshape(N, D)), "expected numbers or bits, found |V4"),
    "short strings in a matrix": (plain(np.array([[b"ab"] * D] * N)), "expected numbers or bits, found |S2"),
    "strings of any length": (plain(np.array(["ab"] * N, object).astype(h5py.string_dtype())), "expected two dimensions"),
    "three dimensions": (plain(X.reshape(N, 2, 4)), "expected two dimensions (rows, elements), found (40, 2, 4)"),
    "one dimension": (plain(X[:, 0]), "expected two dimensions"),
    "a single number": (plain(np.float32(3)), "found a single value"),
    "nothing at all": (put(embeddings=h5py.Empty("f4"), ids=IDS), "no dataset 'embeddings'"),
    "vectors without elements": (plain(X[:, :0]), "expected two dimensions"),
    "fewer ids": (plain(X, IDS[:-1]), "'ids': expected shape (40,) as there are vectors, found (39,)"),
    "more ids": (plain(X, np.arange(N + 1)), "expected shape (40,)"),
    "two ids each": (plain(X, np.c_[IDS, IDS]), "expected shape (40,)"),
    "one id": (plain(X, np.int64(3)), "expected shape (40,)"),
    "ids beyond 63 bits": (plain(X, IDS.astype("u8") + np.uint64(1 << 63)), "an id is over 2**63 - 1"),
    "fractions as ids": (plain(X, IDS + 0.5), "1.5 at row 0"),
    "NaN as an id": (plain(X, np.where(IDS == 4, np.nan, IDS)), "nan at row 1"),
    "ids that float32 rounds": (plain(X, (IDS + (1 << 25)).astype("f4")), "is no whole number up to 16777216"),
    "truth as ids": (plain(X, IDS % 2 == 0), "bool are no ids"),
    "ids with zeros in front": (plain(X, np.array([b"%04d" % i for i in IDS])), "texts such as '0001'"),
    "ids with a sign": (plain(X, np.array([b"+%d" % i for i in IDS])), "texts such as '+1'"),
    "ids with strokes": (plain(X, np.array([b"1_%d" % i for i in IDS])), "texts such as '1_1'"),
    "ids too long": (plain(X, np.array([b"9" * 25] * N)), "are no whole numbers of 64 bits"),
    "two that could be it": (put(a=X, b=X), "--embeddings names it; there are: a (40, 8) float32; b (40, 8) float32"),
    "ids behind a link to nowhere": (put(embeddings=X, ids=h5py.SoftLink("/nowhere")), "a link to '/nowhere', which is not in"),
    "links in a circle": (put(embeddings=h5py.SoftLink("/b"), b=h5py.SoftLink("/embeddings"), ids=IDS), "lead in a circle"),
    "a file elsewhere": (
        put(embeddings=h5py.ExternalLink("/etc/passwd", "/x"), ids=IDS),
        "follow the name with --follow-external",
    ),
    "half of the columns": (virtual("f4", (ALL, slice(0, 4))), "its sources cover 160 of 320 numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_words(name: str, tmp_path: Path) -> None:
    write, text = REFUSED[name]
    with h5py.File(tmp_path / "a.h5", "w") as h:
        write(h)
    done = call("export", tmp_path / "a.h5", tmp_path / "out")
    options = ("--ids auto", "which dataset holds", "with --follow-external")  # with one of them it can be read
    assert (done.code, text in done.err) == (2 if any(o in done.err for o in options) else 1, True), done.err
    assert done.err.startswith(f"milvus-offline: {tmp_path / 'a.h5'}") and "damaged" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("write", [half_written, virtual("f4", (slice(0, N // 2), ALL))], ids=["chunks", "virtual"])
def test_what_no_one_wrote_is_left_out_and_told(write: Callable[[h5py.File], None], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as h:
        write(h)
    assert call("export", tmp_path / "a.h5", tmp_path / "out").code == 3
    ((_, found),) = exported(tmp_path / "out").items()
    assert found == {(int(i), v.tobytes()): 1 for i, v in zip(IDS[: N // 2], X, strict=False)}
    assert [(f["code"], f["rows"]) for f in manifest(tmp_path / "out")["findings"]] == [("rows-never-written", N // 2)]
