"""Every kind of file that people hold is read exactly, or named for what it is; docs/sources.md tells the same."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import sqlite3
import struct
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from support.badsectors import refusing
from support.builder import StoreBuilder
from support.command import call, exported
from support.foreign import rows_of

from milvus_offline.errors import DamageError, UsageError
from milvus_offline.model import Source
from milvus_offline.sources import KINDS, SourceOptions, kind_of, open_source
from milvus_offline.sources.langchain import _Unpickler

ROOT = Path(__file__).parent.parent.parent


def floats(n: int = 60, d: int = 8) -> Any:
    return np.random.default_rng(1).standard_normal((n, d)).astype("<f4")


def same(path: Path, right: Any, ids: Any, **options: Any) -> Source:
    source = open_source(path, SourceOptions(**options))
    found_ids, found = rows_of(source)
    assert (found_ids.tolist(), found.tobytes()) == (list(ids), right.tobytes())
    (piece,) = source.collections[0].partitions[0].pieces
    assert np.concatenate([b.ids.copy() for b in piece.batches(200, start=7)]).tolist() == list(ids)[7:]
    return source


def test_a_file_of_which_the_disk_refuses_the_beginning_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.bin"
    path.write_bytes(bytes(range(1, 256)) * 40)
    with refusing({path: [(0, 512)]}), pytest.raises(DamageError, match=r"vectors\.bin at byte 0: cannot be read"):
        kind_of(path)


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "|i1"])
def test_npy_with_ids_beside_it(dtype: str, tmp_path: Path) -> None:
    data = (floats() * 50).astype(dtype)
    np.save(tmp_path / "vector.npy", data)
    assert not open_source(tmp_path / "vector.npy").collections[0].has_ids
    np.save(tmp_path / "id.npy", np.arange(60) + 5)
    assert kind_of(tmp_path / "vector.npy") == kind_of(tmp_path) == "npy"
    same(tmp_path / "vector.npy", data.astype("<f4"), range(5, 65))
    source = same(tmp_path, data.astype("<f4"), range(5, 65))
    assert (source.collections[0].schema.name, source.collections[0].partitions[0].name) == (tmp_path.name, "_default")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_stored_or_compressed(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", vectors=floats(), ids=np.arange(60), labels=np.array(["x"] * 60))
    same(tmp_path / "a.npz", floats(), range(60))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamageError, match="zip archive"):
        open_source(tmp_path / "a.npz")


def test_arrays_that_are_cut_or_hold_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", floats())
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-1])
    with pytest.raises(DamageError, match="expected 1920 bytes of an array"):
        open_source(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(UsageError, match="Python objects"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4"])
def test_arrays_that_are_stored_column_by_column(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milvus_offline.sources.columns._BLOCK_BYTES", 700)  # several blocks, of which a batch ends in none
    data = np.asfortranarray((floats() * 50).astype(dtype))
    np.save(tmp_path / "a.npy", data)
    assert b"'fortran_order': True" in (tmp_path / "a.npy").read_bytes()
    same(tmp_path / "a.npy", data.astype("<f4", order="C"), range(60), row_ids=True)
    np.savez(tmp_path / "a.npz", emb=data, ids=np.arange(60) + 9)
    same(tmp_path / "a.npz", data.astype("<f4", order="C"), range(9, 69))
    np.savez_compressed(tmp_path / "b.npz", emb=data, ids=np.arange(60))
    with pytest.raises(UsageError, match=r"column by column \(Fortran order\): save it again"):
        open_source(tmp_path / "b.npz")
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    with pytest.raises(DamageError, match="bytes of an array"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize("n", [60, 4000])
@pytest.mark.parametrize(("save", "order"), [(np.savez, "C"), (np.savez, "F"), (np.savez_compressed, "C")])
def test_a_flipped_bit_in_an_npz_is_seen_by_its_checksum(save: Callable[..., None], order: Any, n: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, vectors=np.array(floats(n), order=order), ids=np.arange(n))
    assert call("export", path, tmp_path / "whole").code == 0
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    done = call("export", path, tmp_path / "out")
    assert done.code == 1 and "a.npz: cannot be read as a zip archive" in done.err


def test_an_array_behind_the_array_of_an_npy_file(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as f:
        np.save(f, floats())
        np.save(f, floats())
    done = call("export", tmp_path / "a.npy", tmp_path / "out")
    assert done.code == 3 and "2048 bytes after these, perhaps another array, are not read" in " ".join(done.out.split())


def test_a_flipped_bit_in_a_parquet_file_with_checksums(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": np.arange(60), "vec": list(floats())})
    pq.write_table(table, tmp_path / "a.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[1000] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    assert call("export", tmp_path / "a.parquet", tmp_path / "out").code == 1


@pytest.mark.parametrize("save", ["npy", "npz"])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 8), "c8"),
        np.zeros(5, [("id", "i8"), ("v", "f4", 8)]),
        np.zeros((5, 8), "M8[s]"),
        np.zeros((5, 8), "m8[s]"),
        np.zeros((5, 8), "V4"),
        np.zeros((5, 8), "U4"),
        np.zeros((5, 2, 4), "f4"),
        np.zeros(5, "f4"),
        np.float32(1),
        np.zeros((5, 0), "f4"),
        np.zeros((5, 8), "f4").astype(object),
    ],
    ids=lambda a: f"{a.dtype.str}-{'x'.join(map(str, a.shape))}",
)
def test_arrays_that_are_no_vectors_are_refused_in_words(array: Any, save: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{save}"
    np.save(path, array) if save == "npy" else np.savez(path, emb=array)
    done = call("export", path, tmp_path / "out", "--ids", "row")
    code = 2 if array.dtype == object and save == "npy" else 1  # no array can be told in it: it is no source
    assert done.code == code and done.err.startswith(f"milvus-offline: {path}"), done.err
    assert "damaged" not in done.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("suffix", "dtype"), [("fvecs", "<f4"), ("bvecs", "|u1"), ("ivecs", "<i4")])
def test_vecs(suffix: str, dtype: str, tmp_path: Path) -> None:
    data = (np.abs(floats()) * 40).astype(dtype)
    path = tmp_path / f"x.{suffix}"
    content = b"".join(struct.pack("<i", 8) + r.tobytes() for r in data)
    path.write_bytes(content)
    source = same(path, data.astype("<f4"), range(60))
    assert not source.collections[0].has_ids
    path.write_bytes(content[:-1])
    cut = open_source(path)
    assert (cut.collections[0].rows, [f.code for f in cut.findings if f.severity.value == "error"]) == (59, ["file-short"])
    path.write_bytes(content[: 5 * len(content) // 60] + struct.pack("<i", 9) + content[5 * len(content) // 60 + 4 :])
    with pytest.raises(DamageError, match="row 5: expected 8 dimensions, found 9"):
        rows_of(open_source(path))


@pytest.mark.parametrize(("suffix", "dtype"), [("fbin", "<f4"), ("u8bin", "|u1"), ("i8bin", "|i1")])
def test_bins(suffix: str, dtype: str, tmp_path: Path) -> None:
    data = (np.abs(floats()) * 20).astype(dtype)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(struct.pack("<II", 60, 8) + data.tobytes())
    same(path, data.astype("<f4"), range(60))
    path.write_bytes(struct.pack("<II", 70, 8) + data.tobytes())
    assert [(f.code, f.rows) for f in open_source(path).findings if f.severity.value == "error"] == [("file-short", 10)]


@pytest.mark.parametrize("how", ["list", "large list", "fixed list", "doubles", "bytes", "integers"])
@pytest.mark.parametrize("group", [7, 60])
def test_parquet(how: str, group: int, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = floats()
    kinds = {
        "list": pa.list_(pa.float32()),
        "large list": pa.large_list(pa.float32()),
        "fixed list": pa.list_(pa.float32(), 8),
        "doubles": pa.list_(pa.float64()),
        "integers": pa.list_(pa.int8()),
    }
    if how == "bytes":
        data = np.random.default_rng(2).integers(0, 256, (60, 8), "u1")
        column = pa.array([r.tobytes() for r in data], pa.binary(8))
    else:
        data = (data * 30).astype("i1").astype("<f4") if how == "integers" else data
        column = pa.array([r.tolist() if how != "integers" else r.astype(int).tolist() for r in data], kinds[how])
    table = pa.table({"id": np.arange(60) * 2, "vector": column, "text": ["x"] * 60})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=group)
    same(tmp_path / "a.parquet", data, range(0, 120, 2))
    assert kind_of(tmp_path) == "parquet"
    rough = pa.table({"id": [1, 2], "vector": pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32()))})
    pq.write_table(rough, tmp_path / "a.parquet")
    with pytest.raises(DamageError, match="expected 2 elements a row, found 1"):
        rows_of(open_source(tmp_path / "a.parquet"))


def test_an_export_of_arrays_can_be_verified_against_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", emb=floats(), pk=np.arange(60))
    assert call("export", tmp_path / "a.npz", tmp_path / "out").code == 0
    assert exported(tmp_path / "out")["a", "_default"] == {(i, v.tobytes()): 1 for i, v in enumerate(floats())}
    assert call("verify", tmp_path / "out", "--against", tmp_path / "a.npz").code == 0


PARQUET_IDS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "texts in a dictionary": (lambda pa, ids: pa.array([str(i) for i in ids]).dictionary_encode(), ""),
    "numbers in a dictionary": (lambda pa, ids: pa.array(ids).dictionary_encode(), ""),
    "decimals": (lambda pa, ids: pa.array([Decimal(int(i)) for i in ids]), ""),
    "decimals with a fraction": (
        lambda pa, ids: pa.array([Decimal(int(i) + 1) / 2 for i in ids]),
        "are no whole numbers of 64 bits",
    ),
    "times": (lambda pa, ids: pa.array(ids, pa.timestamp("us")), "texts such as '1970-01-01"),
    "truth": (lambda pa, ids: pa.array([bool(i % 2) for i in ids]), "texts such as 'False'"),
    "names": (lambda pa, ids: pa.array([f"u{i}" for i in ids]), "texts such as 'u0'"),
    "some without": (lambda pa, ids: pa.array([None, *ids[1:]], pa.int64()), "has rows without a value"),
}


@pytest.mark.parametrize("name", PARQUET_IDS)
def test_ids_of_parquet_of_other_types_are_exact_or_refused_and_never_left_out(name: str, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    make, text = PARQUET_IDS[name]
    ids = [int(i) for i in range(0, 120, 2)]
    pq.write_table(pa.table({"vectors": list(floats()), "pk": make(pa, ids)}), tmp_path / "a.parquet")
    done = call("export", tmp_path / "a.parquet", tmp_path / "out")
    if text:
        code = 2 if "--ids auto" in done.err else 1  # with an option it can be read
        assert (done.code, text in done.err) == (code, True), done.err
    else:
        assert done.code == 0, done.err
        assert exported(tmp_path / "out")["a", "_default"] == {(i, v.tobytes()): 1 for i, v in zip(ids, floats(), strict=True)}


def test_bytes_of_any_length_in_parquet_are_vectors_where_they_are_called_so(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bits = np.random.default_rng(2).integers(0, 256, (60, 8), "u1")
    table = {"id": np.arange(60), "page": [b"x" * n for n in range(60)], "vector": [r.tobytes() for r in bits]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    same(tmp_path / "a.parquet", bits, range(60), metric="HAMMING")
    pq.write_table(pa.table({"id": np.arange(60), "vector": [b"x" * (n % 9) for n in range(60)]}), tmp_path / "b.parquet")
    done = call("export", tmp_path / "b.parquet", tmp_path / "out", "--metric", "HAMMING")
    assert (done.code, "expected 8 bytes a row" in done.err) == (1, True), done.err


def test_a_block_of_vectors_that_is_longer_than_it_says(tmp_path: Path) -> None:
    (tmp_path / "x.fbin").write_bytes(struct.pack("<ii", 50, 8) + floats().tobytes())
    source = open_source(tmp_path / "x.fbin")
    assert [(f.code, f.severity.value) for f in source.findings if f.code != "no-ids"] == [("file-longer", "warning")]


# LangChain ------------------------------------------------------------------------------------------------------------


class InMemoryDocstore:
    def __init__(self, documents: Any) -> None:
        self._dict = documents


class Document:
    def __init__(self, text: str) -> None:
        self.page_content = text


InMemoryDocstore.__module__ = "langchain_community.docstore.in_memory"
Document.__module__ = "langchain_core.documents.base"


@pytest.fixture
def langchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What FAISS.save_local writes; the classes are stood in for under LangChain's names."""
    import sys
    import types

    for c in (InMemoryDocstore, Document):
        parts = c.__module__.split(".")
        for n in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:n]), types.ModuleType(".".join(parts[:n])))
        setattr(sys.modules[c.__module__], c.__name__, c)
    folder = tmp_path / "store"
    folder.mkdir()
    index = faiss.IndexFlatL2(8)
    index.add(floats())
    faiss.write_index(index, str(folder / "index.faiss"))
    names = {n: f"uuid-{n}" for n in range(60)}
    content = pickle.dumps((InMemoryDocstore({u: Document(f"text {n}") for n, u in names.items()}), names))
    (folder / "index.pkl").write_bytes(content)
    return folder


def test_langchain_gives_the_vectors_and_tells_of_the_texts(langchain: Path) -> None:
    source = open_source(langchain)
    assert rows_of(source)[1].tobytes() == floats().tobytes()
    assert [(f.code, f.rows) for f in source.findings] == [("attributes-left-out", 60)]
    (langchain / "index.pkl").write_bytes(pickle.dumps((InMemoryDocstore({}), {0: "a"})))
    assert [f.code for f in open_source(langchain).findings] == ["documents-differ"]


def test_a_pickle_runs_nothing(langchain: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "run").touch, ())

    (langchain / "index.pkl").write_bytes(pickle.dumps((Evil(), {})))
    with pytest.raises(UsageError, match="could run any code"):
        open_source(langchain)
    assert not (tmp_path / "run").exists()
    for module, name in (("builtins", "eval"), ("os", "system"), ("langchain.schema", "getattr"), ("builtins", "getattr")):
        with pytest.raises(pickle.UnpicklingError, match="none of LangChain's documents"):
            _Unpickler(io.BytesIO()).find_class(module, name)


# What is none ---------------------------------------------------------------------------------------------------------


OTHERS: dict[str, tuple[bytes, str]] = {
    "x.index": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "a Git LFS pointer, not the file itself of 12,345",
    ),
    "x.h5": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n", "a Git LFS pointer"),
    "page.index": (b"<!DOCTYPE html>\n<html></html>", "a web page"),
    "x.7z": (b"7z\xbc\xaf\x27\x1c....", "a packed file (7z)"),
    "x.rar": (b"Rar!\x1a\x07\0....", "a packed file (rar)"),
    "x.pt": (b"\x80\x02}q\0.", "a pickle"),
    "task.yaml": (b"M2H:\n", "milvus-offline run"),
    "a.csv": (b"1,2,3\n", "a text file"),
    "empty.index": (b"", "an empty file"),
    "page.h5": (b"<!DOCTYPE html>\n<html></html>", "a web page"),
    "page.parquet": (b"\n<html></html>", "a web page"),
    "page.npz": (b"<html></html>", "a web page"),
    "page.fvecs": (b"\xef\xbb\xbf<!doctype html>", "a web page"),
    "s3.index": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "perhaps the error of a server"),
    "api.faiss": (b'{"message": "Not Found"}', "perhaps the error of a server"),
    "x.npz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n", "a Git LFS pointer"),
    "packed.h5": (gzip.compress(b"\x89HDF\r\n\x1a\n"), "a packed file (gzip)"),
    "zip.h5": (b"PK\x03\x04....", "a packed file (zip)"),
    "empty.h5": (b"", "an empty file"),
    "empty.fvecs": (b"", "an empty file"),
    "empty.parquet": (b"", "an empty file"),
    "zeros.h5": (bytes(4096), "begins with nothing but zeros"),
    "zeros.npy": (bytes(4096), "begins with nothing but zeros"),
    "zeros.index": (bytes(4096), "begins with nothing but zeros"),
    "pickled.npy": (pickle.dumps([1]), "a pickle"),
    "model.pt": (b"PK\x03\x04archive/data.pkl", "a pickle"),
    "catalog.h5": (b"SQLite format 3\0" + bytes(84), "a metadata database"),
    "dump.npz": (b"-- MySQL dump 10.13  Distrib 5.7.33\n", "a dump of a metadata database"),
    "cut.fvecs": (struct.pack("<i", 640) + bytes(99), "the first row has 640 dimensions"),
    "x.bin": (b"\xde\xad\xbe\xef" * 4, "not a source: it begins with"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_source_is_named(name: str, tmp_path: Path) -> None:
    content, text = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, tmp_path):
        done = call("inspect", place)
        assert done.code in (1, 2), done.err
        assert "damaged" not in done.err and "Traceback" not in done.err
        assert text in done.err or place == tmp_path


def test_databases_that_are_no_catalog_are_named(tmp_path: Path) -> None:
    for table, text in (
        ("collection_meta", "Milvus Lite 2.4 or 2.5"),
        ("CollectionCommit", "Milvus 0.11"),
        ("notes", "none of Milvus 1.x"),
    ):
        path = tmp_path / f"{table}.db"
        with sqlite3.connect(path) as c:
            c.execute(f"create table {table} (id integer)")
        c.close()
        done = call("inspect", path)
        assert (done.code, text in done.err) == (2, True)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["x/db/C_1/P_1/S_1/F_1.map"], "Milvus 0.11"),
        (["C_1/P_1/S_1"], "Milvus 0.11"),
        (["minio/.minio.sys/format.json"], "Milvus 2.x"),
        (["a-bucket/files/insert_log/1"], "Milvus 2.x"),
        (["backup/my/meta/backup_meta.json"], "by milvus-backup"),
        (["binlogs/insert_log/1"], "by milvus-backup"),
        (["x.db/collections/a/manifest.json", "x.db/LOCK"], "Milvus Lite 3"),
        (["collections/a/manifest.json", "LOCK"], "Milvus Lite 3"),
        (["data/db/C_12/P_1/S_1/F_1.map"], "Milvus 0.11"),
        (["minio/a-bucket/files/insert_log/1", "etcd/member/snap/db"], "Milvus 2.x"),
        (["volumes/minio/.minio.sys/format.json", "volumes/etcd/member/wal/0.wal"], "Milvus 2.x"),
        (["rdb_data/CURRENT"], "Milvus 2.x"),
        (["member/wal/0.wal", "member/snap/db"], "data of etcd"),
        (["backup/a/meta/full_meta.json", "backup/a/meta/backup_meta.json"], "by milvus-backup"),
        (["ibdata1", "milvus/Tables.ibd"], "the data folder of a MySQL server"),
    ],
)
def test_folders_of_another_milvus_are_named(files: list[str], text: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    done = call("inspect", tmp_path / "in")
    assert (done.code, text in done.err) == (1, True), done.err


def test_a_folder_with_nothing_but_a_packed_file_or_a_database_of_others(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "milvus.tar.gz").write_bytes(gzip.compress(b"x"))
    done = call("inspect", tmp_path / "a")
    assert (done.code, "milvus.tar.gz: a packed file (gzip): unpack it" in done.err) == (2, True)
    (tmp_path / "b").mkdir()
    with sqlite3.connect(tmp_path / "b" / "demo.db") as c:
        c.execute("create table collection_meta (id integer)")
    c.close()
    done = call("inspect", tmp_path / "b")
    assert (done.code, "Milvus Lite 2.4 or 2.5" in done.err) == (2, True)


@pytest.mark.parametrize(
    "content", [bytes(4096), b"\x7fELF\2\1\1" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(99), pickle.dumps([1]), b"GGUF\3\0\0\0"]
)
def test_what_is_no_catalog_is_never_called_a_damaged_one(content: bytes, tmp_path: Path) -> None:
    root = StoreBuilder(tmp_path / "s").write()
    for place, words in ((tmp_path / "x", ["--catalog", tmp_path / "x"]), (root / "db" / "meta.sqlite", [])):
        place.write_bytes(content)
        done = call("inspect", root, *words)
        assert (done.code, "neither a catalog nor a dump of one" in done.err, "damaged" in done.err) == (1, True, False), (
            done.err
        )


# The document ---------------------------------------------------------------------------------------------------------


def test_the_document_names_every_kind_and_every_finding() -> None:
    text = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    assert {k for k in KINDS if f"`{k}`" not in text} == set()
    for kind in KINDS.values():
        assert {s for s in kind.suffixes if f"`{s}`" not in text} == set()
    from milvus_offline.findings import CODES

    named = set(re.findall(r"`([a-z][a-z0-9]*(?:-[a-z0-9]+)+)`", text))
    assert {n for n in named if n not in CODES and f"--{n}" not in text} == set()
    ours = (
        "rows-never-written",
        "rows-look-unwritten",
        "taken-as-bits",
        "columns-chosen",
        "ids-not-numbers",
        "converted",
        "no-ids",
    )
    assert {
        c for c in (*ours, "metric-of-file", "beyond-float32", "dump-damaged", "task-note") if f"`{c}`" not in text
    } == set()
