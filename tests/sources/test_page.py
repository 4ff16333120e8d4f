"""Every row of the tables in docs/sources.md: what goes in, what comes out of it, which finding or refusal, which exit code."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import sqlite3
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, exported, manifest

ROOT = Path(__file__).parent.parent.parent
N, D = 24, 16
X = np.random.default_rng(3).standard_normal((N, D)).astype("<f4")
B = np.random.default_rng(4).integers(0, 256, (N, 8), "u1")
IDS = np.arange(N) * 2 + 1


def table_rows() -> dict[str, list[str]]:
    """First cell -> cells of every row of every table of the page."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            assert cells[0] not in found or cells[0] in ("stored as",)
            found[cells[0]] = cells
    return {k: v for k, v in found.items() if k not in ("kind", "stored as", "what the file has", "what")}


@dataclass
class Made:
    """What goes in and what is right. `right` None: nothing comes out; `text` is then in the message."""

    source: Path
    right: Any = None
    ids: Any = None
    codes: set[str] = field(default_factory=set)
    code: int = 0
    words: Sequence[object] = ()
    text: str = ""


def h5(folder: Path, vectors: Any, ids: Any = IDS, name: str = "a.h5", **options: Any) -> Path:
    with h5py.File(folder / name, "w") as h:
        h.create_dataset("embeddings", data=vectors, **options)
        if ids is not None:
            h["ids"] = ids
    return folder / name


def store(folder: Path) -> Path:
    b = StoreBuilder(folder / "store")
    b.collection("c", dim=D)
    b.segment("c", rows(range(N), dim=D))
    return b.write()


S = rows(range(N), dim=D)


def numbers(*dtypes: str) -> Callable[[Path], list[Made]]:
    def make(folder: Path) -> list[Made]:
        made = []
        for n, dtype in enumerate(map(np.dtype, dtypes)):
            data = (abs(X * 40) if dtype.kind == "u" else X * 40).astype(dtype)
            told = set() if dtype.newbyteorder("=") == "f4" else {"converted"}
            made.append(Made(h5(folder, data, name=f"{n}.h5"), data.astype("<f4"), IDS, told))
        return made

    return make


def beyond(folder: Path) -> list[Made]:
    data = X.astype("f8")
    data[2, 3] = 1e300
    path = h5(folder, data)
    with np.errstate(over="ignore"):
        right = data.astype("<f4")
    words = ["--beyond-float32", "inf"]
    return [
        Made(path, code=2, text="which float32 cannot: the largest is 3.4e38"),
        Made(path, right, IDS, {"converted", "beyond-float32"}, 3, words),
    ]


def bits(folder: Path) -> list[Made]:
    path = h5(folder, B)
    return [Made(path, B, IDS, {"taken-as-bits"}), Made(path, B, IDS, set(), words=["--metric", "HAMMING"])]


def bytes_as_numbers(folder: Path) -> list[Made]:
    path, right = h5(folder, B), B.astype("<f4")
    (folder / "x.bvecs").write_bytes(b"".join(struct.pack("<i", 8) + r.tobytes() for r in B))
    (folder / "x.u8bin").write_bytes(struct.pack("<ii", N, 8) + B.tobytes())
    made = [Made(path, right, IDS, {"converted"}, words=w) for w in (["--metric", "L2"], ["--vector-type", "float"])]
    for name in ("x.bvecs", "x.u8bin"):
        made.append(Made(folder / name, right, np.arange(N), {"converted", "no-ids"}, words=["--ids", "row"]))
    return made


def strings(folder: Path) -> list[Made]:
    data = B.copy()
    data[:, -1], data[5] = 0, 0
    return [Made(h5(folder, data.view("S8")[:, 0]), data, IDS, {"converted"})]


def bools(folder: Path) -> list[Made]:
    return [
        Made(h5(folder, X > 0), np.packbits(X > 0, axis=1), IDS, {"converted"}),
        Made(h5(folder, X[:, :9] > 0, name="b.h5"), code=2, text="a multiple of 8"),
    ]


def no_numbers(folder: Path) -> list[Made]:
    np.save(folder / "o.npy", X.astype(object))
    np.save(folder / "d.npy", np.zeros((N, D), "M8[s]"))
    return [
        Made(h5(folder, X.astype("c8")), code=1, text="expected numbers or bits, found complex64"),
        Made(h5(folder, np.zeros((N, D), [("a", "f4")]), name="b.h5"), code=1, text="expected numbers or bits"),
        Made(folder / "o.npy", code=2, text="Python objects"),
        Made(folder / "d.npy", code=1, text="expected numbers or bits"),
    ]


def ids(*kinds: Any) -> Callable[[Path], list[Made]]:
    return lambda folder: [Made(h5(folder, X, kind, f"{n}.h5"), X, IDS) for n, kind in enumerate(kinds)]


def whole_numbers(folder: Path) -> list[Made]:
    return [
        *ids(IDS, IDS.astype("u1"), IDS.astype(">i4"), IDS.astype("u8"))(folder),
        Made(h5(folder, X, IDS.astype("u8") + np.uint64(1 << 63), "big.h5"), code=2, text="an id is over 2**63 - 1"),
    ]


def floats_as_ids(folder: Path) -> list[Made]:
    inexact = Made(h5(folder, X, IDS + 2.0**53, "big.h5"), code=2, text="is no whole number up to 9007199254740992")
    return [*ids(IDS.astype("f8"), IDS.astype("f4"))(folder), inexact]


def digits(folder: Path) -> list[Made]:
    zeros = Made(h5(folder, X, np.array([b"%03d" % i for i in IDS]), "zeros.h5"), code=2, text="texts such as '001'")
    others = {"decimal": pa.array([Decimal(int(i)) for i in IDS]), "dictionary": pa.array(map(str, IDS)).dictionary_encode()}
    for name, column in others.items():
        pq.write_table(pa.table({"embeddings": list(X), "ids": column}), folder / f"{name}.parquet")
    made = [Made(folder / f"{name}.parquet", X, IDS) for name in others]
    return [*ids(np.array([b"%d" % i for i in IDS]))(folder), zeros, *made]


def other_ids(folder: Path) -> list[Made]:
    made = []
    for n, kind in enumerate((np.array([b"a%d" % i for i in IDS]), IDS + 0.5, np.where(IDS == 3, np.nan, IDS))):
        path = h5(folder, X, kind, f"{n}.h5")
        made += [
            Made(path, code=2, text="--ids row takes row numbers"),
            Made(path, X, np.arange(N), {"ids-not-numbers", "no-ids"}, words=["--ids", "row"]),
        ]
    return made


def linked(folder: Path) -> list[Made]:
    h5(folder, X, name="part.h5")
    (folder / "other").mkdir()
    h5(folder / "other", X, name="far.h5")
    with h5py.File(folder / "soft.h5", "w") as h:
        h["real/v"], h["embeddings"], h["ids"] = X, h5py.SoftLink("/real/v"), IDS
    with h5py.File(folder / "ext.h5", "w") as h:
        h["group"] = h5py.ExternalLink("part.h5", "/")
        h["embeddings"], h["ids"] = h5py.SoftLink("/group/embeddings"), h5py.ExternalLink("part.h5", "/ids")
    (folder / "beside").mkdir()
    with h5py.File(folder / "beside" / "up.h5", "w") as h:
        far = str(folder / "other" / "far.h5")
        h["embeddings"], h["ids"] = h5py.ExternalLink(far, "/embeddings"), h5py.ExternalLink(far, "/ids")
    path = folder / "beside" / "up.h5"
    return [
        *(Made(folder / n, X, IDS) for n in ("soft.h5", "ext.h5")),
        Made(path, code=2, text="--follow-external"),
        Made(path, X, IDS, words=["--follow-external"]),
    ]


def virtual(folder: Path, rows_there: int = N, *, gone: bool = False) -> Path:
    h5(folder, X, None, "source.h5")
    layout = h5py.VirtualLayout((N, D), "f4")
    layout[:rows_there] = h5py.VirtualSource("source.h5", "embeddings", (N, D))[:rows_there]
    with h5py.File(folder / "v.h5", "w") as h:
        h.create_virtual_dataset("embeddings", layout)
        h["ids"] = IDS
    if gone:
        (folder / "source.h5").unlink()
    return folder / "v.h5"


def elsewhere(folder: Path) -> list[Made]:
    (folder / "raw.bin").write_bytes(b"head" + X.tobytes())
    with h5py.File(folder / "s.h5", "w") as h:
        h.create_dataset("embeddings", (N, D), "<f4", external=[("raw.bin", 4, X.nbytes)])
        h["ids"] = IDS
    with h5py.File(folder / "etc.h5", "w") as h:
        h.create_dataset("embeddings", (N, D), "<f4", external=[("/etc/passwd", 0, X.nbytes)])
        h["ids"] = IDS
    refused = Made(folder / "etc.h5", code=2, text="names a file outside of this folder, '/etc/passwd'")
    return [Made(virtual(folder), X, IDS), Made(folder / "s.h5", X, IDS), refused]


def missing(folder: Path) -> list[Made]:
    with h5py.File(folder / "half.h5", "w") as h:
        h.create_dataset("embeddings", (N, D), "f4", chunks=(4, D), compression="gzip")[:12] = X[:12]
        h["ids"] = IDS
    (folder / "raw.bin").write_bytes(X[:10].tobytes())
    with h5py.File(folder / "s.h5", "w") as h:
        h.create_dataset("embeddings", (N, D), "<f4", external=[("raw.bin", 0, X.nbytes)])
        h["ids"] = IDS
    made = ((folder / "half.h5", 12), (folder / "s.h5", 10), (virtual(folder, 8), 8))
    return [Made(path, X[:n], IDS[:n], {"rows-never-written"}, 3) for path, n in made]


def never(folder: Path) -> list[Made]:
    with h5py.File(folder / "never.h5", "w") as h:
        h.create_dataset("embeddings", (N, D), "f4")
        h["ids"] = IDS
    return [Made(p, code=1, text=f"{N} of {N} rows have no values") for p in (folder / "never.h5", virtual(folder, gone=True))]


def zeros(folder: Path) -> list[Made]:
    vectors, numbers_ = X.copy(), IDS.copy()
    vectors[20:], numbers_[20:] = 0, 0
    return [Made(h5(folder, vectors, numbers_), vectors, numbers_, {"rows-look-unwritten"}, 3)]


def packed_h5(folder: Path) -> list[Made]:
    import hdf5plugin

    ways: list[dict[str, Any]] = [{"compression": "gzip"}, {"compression": "lzf"}, {**hdf5plugin.LZ4()}, {**hdf5plugin.Zstd()}]
    return [Made(h5(folder, X, name=f"{n}.h5", **way), X, IDS) for n, way in enumerate(ways)]


def pattern(folder: Path) -> list[Made]:
    """Parts that are found by counting: part0.h5, part1.h5, …"""
    for n in (0, 1):
        h5(folder, X[n * 12 :][:12], None, f"part{n}.h5")
    whole, part = h5py.h5s.create_simple((N, D), (h5py.h5s.UNLIMITED, D)), h5py.h5s.create_simple((12, D))
    whole.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (12, 1), (12, D))
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_virtual(whole, b"part%b.h5", b"embeddings", part)
    with h5py.File(folder / "p.h5", "w") as h:
        space = h5py.h5s.create_simple((N, D), (h5py.h5s.UNLIMITED, D))
        h5py.h5d.create(h.id, b"embeddings", h5py.h5t.IEEE_F32LE, space, options)
    endless = h5py.VirtualLayout((12, D), "f4", maxshape=(None, D))
    source = h5py.VirtualSource("part0.h5", "embeddings", (12, D), maxshape=(None, D))
    endless[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    with h5py.File(folder / "e.h5", "w") as h:
        h.create_virtual_dataset("embeddings", endless)
    return [
        Made(folder / "p.h5", code=2, text="names its sources by a pattern ('part%b.h5')", words=["--ids", "row"]),
        Made(folder / "e.h5", code=2, text="takes a source without an end ('part0.h5')", words=["--ids", "row"]),
    ]


# Kinds ----------------------------------------------------------------------------------------------------------------


def stores(folder: Path) -> list[Made]:
    root = store(folder)
    return [Made(p, S.vectors, S.ids) for p in (root, root / "db", folder)]


def export(folder: Path) -> list[Made]:
    assert call("export", store(folder), folder / "e").code == 0
    return [Made(folder / "e", S.vectors, S.ids)]


def milvusdm(folder: Path) -> list[Made]:
    run = folder / "run"
    (run / "c").mkdir(parents=True)
    (run / "yamls" / "c").mkdir(parents=True)
    h5(run / "c", X, name="None.h5")
    described = run / "yamls" / "c" / "None.yaml"
    body = {"dest_collection_name": "c", "collection_parameter": {"dimension": D, "metric_type": "IP"}}
    described.write_text(json.dumps({"H2M": body}))
    first = Made(run, X, IDS)
    (folder / "again").mkdir()
    h5(folder / "again", X, name="c.h5")
    (folder / "again" / "yamls").mkdir()
    (folder / "again" / "yamls" / "c.yaml").write_text("H2M: {}\n")
    return [first, Made(folder / "again", X, IDS, {"metric-unknown"}, 3)]


def files_of_hdf5(folder: Path) -> list[Made]:
    (folder / "many").mkdir()
    h5(folder / "many", X, name="None.h5")
    return [*(Made(h5(folder, X, name=f"a.{s}"), X, IDS) for s in ("h5", "hdf5", "he5")), Made(folder / "many", X, IDS)]


def parquet(folder: Path) -> list[Made]:
    flat = pa.array(X.reshape(-1))
    columns = {
        "a.parquet": pa.ListArray.from_arrays(pa.array(np.arange(N + 1) * D, pa.int32()), flat),
        "b.pq": pa.FixedSizeListArray.from_arrays(flat, D),
    }
    for name, column in columns.items():
        pq.write_table(pa.table({"embeddings": column, "ids": IDS}), folder / name)
    pq.write_table(pa.table({"embeddings": pa.array([r.tobytes() for r in B], pa.binary(8)), "ids": IDS}), folder / "c.parquet")
    made = [Made(folder / name, X, IDS) for name in columns]
    return [*made, Made(folder / "c.parquet", B, IDS, words=["--metric", "HAMMING"])]


def npy(folder: Path) -> list[Made]:
    made = []
    for name, ids_name, order in (("a", "ids.npy", "C"), ("b", "id.npy", "F")):
        (folder / name).mkdir()
        np.save(folder / name / "vectors.npy", np.asarray(X, order=order))
        np.save(folder / name / ids_name, IDS)
        made.append(Made(folder / name, X, IDS, {"columns-chosen"}))
        made.append(Made(folder / name / "vectors.npy", X, IDS, {"columns-chosen"}))
    return made


def npz(folder: Path) -> list[Made]:
    np.savez(folder / "a.npz", embeddings=X, ids=IDS)
    np.savez_compressed(folder / "b.npz", embeddings=X, ids=IDS)
    return [Made(folder / name, X, IDS) for name in ("a.npz", "b.npz")]


def vecs(folder: Path) -> list[Made]:
    made = []
    for suffix, dtype in (
        (".fvecs", "<f4"),
        (".bvecs", "u1"),
        (".ivecs", "<i4"),
        (".fbin", "<f4"),
        (".u8bin", "u1"),
        (".i8bin", "i1"),
    ):
        data = abs(X * 40).astype(dtype)
        path = folder / f"x{suffix}"
        rows_of = b"".join(struct.pack("<i", D) + r.tobytes() for r in data)
        path.write_bytes(rows_of if suffix.endswith("vecs") else struct.pack("<ii", N, D) + data.tobytes())
        told = {"no-ids"} | ({"converted"} if dtype != "<f4" else set())
        made.append(Made(path, data.astype("<f4"), np.arange(N), told, words=["--ids", "row"]))
    return made


def index(folder: Path) -> Path:
    made = faiss.IndexIDMap(faiss.IndexFlatL2(D))
    made.add_with_ids(X, IDS)
    faiss.write_index(made, str(folder / "x.index"))
    return folder / "x.index"


def langchain(folder: Path) -> list[Made]:
    (folder / "chain").mkdir()
    made = faiss.IndexFlatL2(D)
    made.add(X)
    faiss.write_index(made, str(folder / "chain" / "index.faiss"))
    (folder / "chain" / "index.pkl").write_bytes(pickle.dumps(({}, {n: f"u{n}" for n in range(N)})))
    return [Made(folder / "chain", code=2, text="index.pkl")]


# Catalogs -------------------------------------------------------------------------------------------------------------


def catalog(*named: Any, code: int = 0, codes: set[str] = frozenset(), text: str = "") -> Callable[[Path], list[Made]]:  # type: ignore[assignment]
    """A store whose own catalog is gone; each of `named` is made of a folder and of a dump that describes the store."""

    def make(folder: Path) -> list[Made]:
        root = store(folder)
        database = root / "db" / "meta.sqlite"
        with sqlite3.connect(database) as c:
            dump = "\n".join(c.iterdump()).encode() + b"\n"
        c.close()
        made = []
        for n, write in enumerate(named):
            (folder / f"k{n}").mkdir()
            given = write(folder / f"k{n}", dump, database.read_bytes())
            right = None if text else S
            made.append(Made(root, right and right.vectors, right and right.ids, set(codes), code, ["--catalog", given], text))
        return made

    return make


def put(
    name: str, change: Callable[[bytes], bytes] = lambda d: d, *, meta: bool = False
) -> Callable[[Path, bytes, bytes], Path]:
    def write(folder: Path, dump: bytes, database: bytes) -> Path:
        (folder / name).write_bytes(change(database if meta else dump))
        return folder / name

    return write


def zipped(folder: Path, dump: bytes, database: bytes) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as z:
        z.writestr("dump.sql", dump)
    return folder / "a.zip"


def zstd(folder: Path, dump: bytes, database: bytes) -> Path:
    with pa.CompressedOutputStream(str(folder / "a.zst"), "zstd") as stream:
        stream.write(dump)
    return folder / "a.zst"


def by_tables(folder: Path, dump: bytes, database: bytes) -> Path:
    """One file of SQL a table, and the rows of Tables separated by tabs."""
    for statement in re.findall(rb"CREATE TABLE .*?\);", dump, re.S):
        table = re.search(rb"CREATE TABLE \"?(\w+)", statement)
        assert table is not None
        inserts = re.findall(rb"INSERT INTO \"?%b\"? .*?\);\n" % table[1], dump)
        (folder / f"milvus.{table[1].decode()}.sql").write_bytes(statement + b"\n" + b"".join(inserts))
    return folder


def meta_json(folder: Path, dump: bytes, database: bytes) -> Path:
    (folder / "meta.sqlite").write_bytes(database)
    with sqlite3.connect(folder / "meta.sqlite") as c:
        (segment,) = c.execute("SELECT segment_id FROM TableFiles").fetchone()
    c.close()
    part = {"collection": "c", "segment": segment, "dim": D, "rows": N, "fileSize": N * (4 * D + 8)}
    whole = {"collection": "c", "metric": 1, "rows": N, "dim": D, "segments": [part]}
    (folder / "meta.json").write_text(json.dumps({"collections": [whole], "rows": N}))
    return folder / "meta.json"


NOTE = b"mysqldump: [Warning] Using a password on the command line interface can be insecure.\n"

ROWS: dict[str, Callable[[Path], list[Made]] | str] = {
    "`milvus1`": stores,
    "`export`": export,
    "`milvusdm`": milvusdm,
    "`hdf5`": files_of_hdf5,
    "`parquet`": parquet,
    "`npy`": npy,
    "`npz`": npz,
    "`vecs`": vecs,
    "`faiss`": lambda folder: [Made(index(folder), X, IDS)],
    "`langchain`": langchain,
    "float32, any byte order": numbers("<f4", ">f4"),
    "float16, int8, int16, uint16": numbers("<f2", "<i2", ">i2", "<u2"),
    "float64, int32, int64, uint32, uint64": numbers("<f8", ">f8", "<i4", "<i8", "<u4", "<u8"),
    "numbers beyond float32's range": beyond,
    "uint8 with a metric of bits, or in MilvusDM's layout": bits,
    "uint8 with L2, IP or COSINE, or `--vector-type float`; .bvecs, .u8bin": bytes_as_numbers,
    "strings of a fixed length, as MilvusDM writes binary vectors": strings,
    "true and false": bools,
    "complex numbers, compounds, objects, dates": no_numbers,
    "integers": whole_numbers,
    "whole numbers as floats, as far as each is exact (2^53 for float64)": floats_as_ids,
    "texts of digits without leading zeros; in Parquet also decimals without a fraction, and dictionaries of either": digits,
    "other texts, fractions, NaN, times, truth": other_ids,
    "none": lambda folder: [Made(h5(folder, X, None), X, np.arange(N), {"no-ids"}, words=["--ids", "row"])],
    "soft links, external links, groups that are links": linked,
    "virtual datasets, external storage": elsewhere,
    "a source, a storage or a chunk that is missing": missing,
    "a dataset without any row that was written": never,
    "a compressed or checksummed chunk that is damaged": "tests/sources/test_damaged_rows.py",
    "zeros with the id 0 at the end": zeros,
    "gzip, szip, LZF": packed_h5,
    "virtual datasets whose sources are named by a pattern, or have no end": pattern,
    "meta.sqlite, with its -wal and -journal": catalog(put("meta.sqlite", meta=True)),
    "mysql://": "tests/milvus1/catalog/test_mariadb.py",
    "dumps of mysqldump, mariadb-dump, MySQL Shell, mydumper, Workbench, SQLite; SQL and XML": catalog(
        put("a.sql")  # of the others every byte: tests/milvus1/catalog/test_dump_bytes.py
    ),
    "packed: gzip, bzip2, xz, zip, zstd (with pyarrow)": catalog(
        put("a.gz", gzip.compress),
        put("a.bz2", lambda d: __import__("bz2").compress(d)),
        put("a.xz", lambda d: __import__("lzma").compress(d)),
        zipped,
        zstd,
        put("m.sqlite.gz", gzip.compress, meta=True),
    ),
    "a folder with one file a table, of SQL or of rows separated by tabs": catalog(by_tables),
    "lines that the tools printed into the dump": catalog(put("a.sql", lambda d: NOTE + d), codes={"dump-note"}),
    "anything else between the statements, names or words that contradict each other": catalog(
        put("a.sql", lambda d: d.replace(b"CREATE TABLE Fields", b"CREATF TABLE Fields")),
        put("b.sql", lambda d: d + b"rows that were\n"),
        code=3,
        codes={"dump-damaged"},
    ),
    "a dump that ends before its end": catalog(put("a.sql", lambda d: d[:-9]), code=3, codes={"dump-truncated", "dump-note"}),
    "meta.json of milvus-migration": catalog(meta_json, codes={"catalog-meta-json"}),
    "any other text": catalog(
        put("a.txt", lambda d: b"on the other server\n"), code=1, text="neither a catalog nor a dump of one"
    ),
}


def test_every_row_of_the_page_is_held_by_a_test() -> None:
    there = table_rows()
    assert set(there) == set(ROWS)
    for name, held in ROWS.items():
        assert not isinstance(held, str) or (ROOT / held).is_file(), name


@pytest.mark.parametrize("row", [name for name, held in ROWS.items() if callable(held)])
def test_a_row_of_the_page(row: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    make = ROWS[row]
    assert callable(make)
    named = set(re.findall(r"`([a-z]+(?:-[a-z0-9]+)+)`", " ".join(table_rows()[row])))
    told: set[str] = set()
    for made in make(tmp_path):
        out = tmp_path_factory.mktemp("out") / "out"
        done = call("export", made.source, out, *made.words)
        assert done.code == made.code, (made, done.out, done.err)
        if made.right is None:
            assert made.text in done.err and not (out / "manifest.json").exists(), (made, done.err)
            continue
        found = [i for part in exported(out).values() for i in part.elements()]
        assert sorted(found) == sorted((int(i), v.tobytes()) for i, v in zip(made.ids, made.right, strict=True)), made
        codes = {f["code"] for f in manifest(out)["findings"]}
        assert codes == made.codes, made
        told |= codes
    assert named - {"follow-external", "beyond-float32"} <= told | {"columns-chosen", "attributes-left-out"}
