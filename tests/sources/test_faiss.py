"""Faiss index files as a source, held against what Faiss itself gives back."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.faiss_indexes import BITS, D, bits, by_id, codes, ivf, odd_vectors, quiet, rows_of, some_ids, truth, vectors, write

from milvus_offline.errors import DamageError, UsageError
from milvus_offline.faissfile import Cursor, Rows, UnknownKind, read_index
from milvus_offline.model import Source, VectorType
from milvus_offline.sources.faiss import source as source
from milvus_offline.sources.faiss.source import ChildPiece, FaissPiece, open_faiss

pytestmark = pytest.mark.slow

faiss = pytest.importorskip("faiss")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "faiss"


FLOAT_KINDS: dict[str, Callable[[], Any]] = {
    "flat": lambda: faiss.IndexFlatL2(D),
    "flat_ip": lambda: faiss.IndexFlatIP(D),
    "idmap": lambda: faiss.IndexIDMap(faiss.IndexFlatL2(D)),
    "idmap2_ip": lambda: faiss.IndexIDMap2(faiss.IndexFlatIP(D)),
    "ivf": lambda: ivf(4),
    "ivf_ip": lambda: ivf(4, 0),
    "ivf_many_empty": lambda: ivf(500),
    "ivf_hnsw": lambda: faiss.index_factory(D, "IVF8_HNSW4,Flat"),
    "idmap_ivf": lambda: faiss.index_factory(D, "IDMap,IVF8,Flat"),
    "hnsw": lambda: faiss.IndexHNSWFlat(D, 4),
    "hnsw_ip": lambda: faiss.IndexHNSWFlat(D, 4, faiss.METRIC_INNER_PRODUCT),
    "idmap_hnsw": lambda: faiss.IndexIDMap2(faiss.IndexHNSWFlat(D, 4)),
    "nsg": lambda: faiss.index_factory(D, "NSG8,Flat"),
    "nndescent": lambda: faiss.IndexNNDescentFlat(D, 8),
    "refine_pq": lambda: faiss.index_factory(D, "PQ4x4,RFlat"),
    "refine_ivfpq": lambda: faiss.index_factory(D, "IVF4,PQ4x4,RFlat"),
    "refine_ivfsq": lambda: faiss.index_factory(D, "IVF4,SQ8,RFlat"),
    "refine_lsh": lambda: faiss.index_factory(D, "LSH,RFlat"),
    "refine_fastscan": lambda: faiss.index_factory(D, "PQ4x4fs,RFlat"),
    "cagra": lambda: faiss.IndexHNSWCagra(D, 8),
    "sq_fp16": lambda: faiss.index_factory(D, "SQfp16"),
    "sq_bf16": lambda: faiss.index_factory(D, "SQbf16"),
    "sq_hnsw_fp16": lambda: faiss.index_factory(D, "HNSW4,SQfp16"),
}
NEEDS_ROWS = {"nsg", "nndescent", "cagra"}


@pytest.mark.parametrize("n", [0, 1, 300])
@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_float_kinds_equal_what_faiss_gives_back(kind: str, n: int, tmp_path: Path) -> None:
    if kind in NEEDS_ROWS and n < 300:
        pytest.skip("Faiss builds this graph only over many rows")
    x = odd_vectors(n) if kind.startswith(("flat", "idmap2", "sq_fp16")) else vectors(n)
    index = quiet(FLOAT_KINDS[kind](), x)
    if "idmap" in kind or kind.startswith("ivf"):
        index.add_with_ids(x, some_ids(n))
        expected_ids = some_ids(n)
    else:
        if n:
            index.add(x)
        expected_ids = np.arange(n)
    path = write(index, tmp_path)
    found = open_faiss(path)
    schema = found.collections[0].schema
    assert (schema.name, schema.dimension, schema.vector_type) == ("some", D, VectorType.FLOAT)
    assert schema.metric_type == ("IP" if kind.endswith("_ip") else "L2")
    assert found.collections[0].rows == n
    for max_bytes in (1, 700, 1 << 20):
        rows = by_id(*rows_of(found, max_bytes))
        assert rows == truth(path)
        if not kind.startswith("sq_"):
            assert rows == by_id(expected_ids, x)
    assert codes(found) == ({"faiss-rounded"} if kind.startswith("sq_") and n else set())


BINARY_KINDS: dict[str, Callable[[], Any]] = {
    "flat": lambda: faiss.IndexBinaryFlat(BITS),
    "idmap": lambda: faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(BITS)),
    "idmap2": lambda: faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(BITS)),
    "hnsw": lambda: faiss.IndexBinaryHNSW(BITS, 4),
    "ivf": lambda: faiss.index_binary_factory(BITS, "BIVF8"),
    "multihash": lambda: faiss.IndexBinaryMultiHash(BITS, 2, 8),
    "hash": lambda: faiss.IndexBinaryHash(BITS, 5),
}


@pytest.mark.parametrize("n", [0, 1, 300])
@pytest.mark.parametrize("kind", BINARY_KINDS)
def test_binary_kinds_equal_what_faiss_gives_back(kind: str, n: int, tmp_path: Path) -> None:
    x = bits(n)
    index = BINARY_KINDS[kind]()
    index.train(np.random.default_rng(5).integers(0, 256, (500, D), dtype=np.uint8))
    own = "idmap" in kind or kind in ("ivf", "hash")
    if own:
        index.add_with_ids(x, some_ids(n))
    elif n:
        index.add(x)
    path = write(index, tmp_path, binary=True)
    found = open_faiss(path)
    schema = found.collections[0].schema
    assert (schema.dimension, schema.vector_type, schema.metric_type) == (BITS, VectorType.BINARY, "HAMMING")
    for max_bytes in (1, 700, 1 << 20):
        rows = by_id(*rows_of(found, max_bytes))
        assert rows == by_id(some_ids(n) if own else np.arange(n), x)
        if "hash" not in kind:  # Faiss has no way to give those back
            assert rows == truth(path, binary=True)
    assert found.findings == ()


@pytest.mark.parametrize("direct_map", [1, 2])
def test_direct_maps_are_passed_over(direct_map: int, tmp_path: Path) -> None:
    x = vectors(50)
    index = quiet(ivf(4), x)
    index.add(x)
    index.set_direct_map_type(direct_map)
    assert by_id(*rows_of(open_faiss(write(index, tmp_path)))) == by_id(np.arange(50), x)


def test_flat_1d_and_other_metrics(tmp_path: Path) -> None:
    x = vectors(20)[:, :1].copy()
    index = faiss.IndexFlat1D(True)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert found.collections[0].schema.dimension == 1
    assert by_id(*rows_of(found)) == by_id(np.arange(20), x)
    index = faiss.IndexFlat(D, faiss.METRIC_L1)
    index.add(vectors(20))
    path = write(index, tmp_path)
    found = open_faiss(path)
    assert found.collections[0].schema.metric_type is None and codes(found) == {"faiss-metric"}
    assert by_id(*rows_of(found)) == by_id(np.arange(20), vectors(20))
    assert open_faiss(path, metric="l2").collections[0].schema.metric_type == "L2"


def test_index_parameters_are_kept(tmp_path: Path) -> None:
    index = quiet(ivf(7), vectors(1))
    spec = open_faiss(write(index, tmp_path)).collections[0].schema.index
    assert (spec.type, dict(spec.params)) == ("IVF_FLAT", {"nlist": 7})
    spec = open_faiss(write(faiss.IndexFlatL2(D), tmp_path)).collections[0].schema.index
    assert (spec.type, dict(spec.params)) == ("FLAT", {})


def test_equal_vectors_of_a_dedup_index(tmp_path: Path) -> None:
    x = vectors(100)
    ids = some_ids(140)
    index = quiet(ivf(4, kind=faiss.IndexIVFFlatDedup), x)
    index.add_with_ids(x, ids[:100])
    index.add_with_ids(x[10:40], ids[100:130])
    index.add_with_ids(x[10:20], ids[130:])
    path = write(index, tmp_path)
    found = open_faiss(path)
    expected = by_id(ids, np.concatenate([x, x[10:40], x[10:20]]))
    assert found.collections[0].rows == 140 and found.findings == ()
    for max_bytes in (1, 700, 1 << 20):
        assert by_id(*rows_of(found, max_bytes)) == expected
    # a table that names an id that no list holds: one row is lost, and said to be
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<Q", 80)) + 8
    data[at : at + 8] = struct.pack("<q", 5)
    path.write_bytes(data)
    found = open_faiss(path)
    assert found.collections[0].rows == 139
    assert [(f.code, f.rows) for f in found.findings] == [("faiss-duplicates-lost", 1), ("faiss-row-count", 1)]


def test_equal_vectors_of_lists_on_disk(tmp_path: Path) -> None:
    x, ids = vectors(100), np.arange(140)
    index = quiet(ivf(4, kind=faiss.IndexIVFFlatDedup), x)
    index.add_with_ids(np.concatenate([x, x[30:70]]), ids)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "lists"))
    lists.merge_from_1(index.invlists)
    index.replace_invlists(lists, False)
    found = open_faiss(write(index, tmp_path))
    assert by_id(*rows_of(found, 700)) == by_id(ids, np.concatenate([x, x[30:70]]))


def test_equal_vectors_are_looked_up_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors(100)
    ids = some_ids(140)
    index = quiet(ivf(4, kind=faiss.IndexIVFFlatDedup), x)
    index.add_with_ids(x, ids[:100])
    index.add_with_ids(x[10:50], ids[100:])
    path = write(index, tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<Q", 80)) + 8
    data[at : at + 8] = struct.pack("<q", 5)
    path.write_bytes(data)
    monkeypatch.setattr(source, "_PAIRS_EACH", 7)
    found = open_faiss(path)
    pieces = found.collections[0].partitions[0].pieces
    assert [(p.id, p.rows) for p in pieces] == [
        ("0", 100),
        ("equal-0", 6),
        *((f"equal-{7 * k}", 7) for k in range(1, 5)),
        ("equal-35", 5),
    ]
    assert [(f.code, f.rows) for f in found.findings] == [("faiss-duplicates-lost", 1), ("faiss-row-count", 1)]
    rows = by_id(*rows_of(found))
    assert len(rows) == 139 and set(rows) < set(by_id(ids, np.concatenate([x, x[10:50]])))
    for piece in (pieces[2], pickle.loads(pickle.dumps(pieces[2]))):
        whole = np.concatenate([b.ids.copy() for b in piece.batches()])
        assert [b.ids.tolist() for b in piece.batches(1, 3)] == [[i] for i in whole[3:]]


@pytest.mark.parametrize("kind", ["RR16,Flat", "RR16,IVF4,Flat", "OPQ4_16,Flat", "PCA16,Flat", "OPQ4_32,Flat"])
def test_orthonormal_transforms_are_undone(kind: str, tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert codes(found) == {"faiss-transform-undone"}
    assert "within" in found.findings[0].message
    assert found.collections[0].schema.dimension == D
    ids, rows = rows_of(found)
    np.testing.assert_allclose(rows, x[ids], atol=2e-5)


@pytest.mark.parametrize("kind", ["PCA8,Flat", "L2norm,Flat", "ITQ16,Flat", "ITQ16,IVF8,Flat", "ITQ16,HNSW8,Flat"])
def test_other_transforms_are_labelled(kind: str, tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    stored = index.chain.at(0).apply(x) if index.chain.size() == 1 else index.index.reconstruct_n(0, 300)
    assert codes(found) == {"faiss-transformed"}
    assert found.collections[0].schema.dimension == stored.shape[1]
    assert by_id(*rows_of(found)) == by_id(np.arange(300), stored)


def test_remapped_dimensions_come_back_exactly(tmp_path: Path) -> None:
    x = vectors(30)
    index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(D, 24, False), faiss.IndexFlatL2(24))
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert by_id(*rows_of(found)) == by_id(np.arange(30), x)
    (finding,) = found.findings
    assert "changes no number" in finding.message and "rounding" not in finding.message


@pytest.mark.parametrize("kind", ["RR16", "OPQ4_32", "Centering", "Remap"])
@pytest.mark.parametrize("inner", ["IVF4,FlatPanorama4", "Panorama"])
def test_orthonormal_transforms_over_what_only_faiss_reads(kind: str, inner: str, tmp_path: Path) -> None:
    x = vectors(300)
    d = 32 if kind == "OPQ4_32" else D
    transform = {
        "RR16": lambda: faiss.RandomRotationMatrix(D, D),
        "OPQ4_32": lambda: faiss.OPQMatrix(D, 4, 32),
        "Centering": lambda: faiss.CenteringTransform(D),
        "Remap": lambda: faiss.RemapDimensionsTransform(D, D, False),
    }[kind]()
    base = faiss.IndexFlatL2Panorama(d, 4) if inner == "Panorama" else faiss.index_factory(d, inner)
    index = quiet(faiss.IndexPreTransform(transform, base), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert codes(found) == {"faiss-transform-undone"} and found.collections[0].schema.dimension == D
    ids, rows = rows_of(found)
    assert sorted(ids.tolist()) == list(range(300))
    np.testing.assert_allclose(rows, x[ids], atol=0 if kind == "Remap" else 2e-5)


@pytest.mark.parametrize("kind", ["PCA8", "PCAW16", "L2norm"])
def test_transforms_with_no_way_back_over_what_only_faiss_reads(kind: str, tmp_path: Path) -> None:
    x = vectors(300) * np.arange(1, 17, dtype="f4")
    transform = {
        "PCA8": lambda: faiss.PCAMatrix(D, 8),
        "PCAW16": lambda: faiss.PCAMatrix(D, D, -0.5),
        "L2norm": lambda: faiss.NormalizationTransform(D, 2.0),
    }[kind]()
    index = faiss.IndexPreTransform(transform, faiss.IndexFlatL2Panorama(transform.d_out, 4))
    index.train(x)
    index.add(x)
    path = write(index, tmp_path)
    with pytest.raises(UsageError, match="--lossy takes the approximations"):
        open_faiss(path)
    assert codes(open_faiss(path, lossy=True)) == {"faiss-lossy"}


# What holds the vectors, and what does not ------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "second"), [("Flat", "PQ4x4"), ("Flat", "SQ8"), ("Flat", "SQfp16"), ("IVF4,Flat", "SQ8")])
def test_a_refined_index_whose_base_holds_the_vectors(base: str, second: str, tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.IndexRefine(faiss.index_factory(D, base), quiet(faiss.index_factory(D, second), x)), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert found.findings == () and found.index_name.startswith("IndexRefine over Index")
    assert by_id(*rows_of(found)) == by_id(np.arange(300), x)


def test_a_refined_index_whose_base_only_faiss_reads(tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.IndexRefine(faiss.IndexFlatL2Panorama(D, 4), quiet(faiss.index_factory(D, "PQ4x4"), x)), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path))
    assert found.findings == () and by_id(*rows_of(found)) == by_id(np.arange(300), x)


NOTHING = ["PQ4x4", "SQ8", "SQfp16", "IVF4,PQ4x4", "LSH", "RR16,Flat", "PCA8,Flat", "L2norm,Flat", "IVF4,RaBitQ", "RR16,SQ8"]


@pytest.mark.parametrize("kind", NOTHING)
def test_of_no_rows_nothing_is_lost(kind: str, tmp_path: Path) -> None:
    index = quiet(faiss.index_factory(D, kind), vectors(1))
    found = open_faiss(write(index, tmp_path))
    assert found.findings == () and found.collections[0].rows == 0 and len(rows_of(found)[0]) == 0


@pytest.mark.parametrize("kind", ["IVF4,Flat", "IVF4,PQ4x4"])
def test_lists_on_disk_that_were_never_written(kind: str, tmp_path: Path) -> None:
    index = quiet(faiss.index_factory(D, kind), vectors(1))
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "none" / "lists"))
    index.replace_invlists(lists, False)
    found = open_faiss(write(index, tmp_path))
    assert found.findings == () and found.collections[0].rows == 0


# Codes that are numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["QT_8bit_direct", "QT_8bit_direct_signed"])
def test_direct_codes(name: str, tmp_path: Path) -> None:
    low = 0 if name == "QT_8bit_direct" else -128
    x = np.random.default_rng(1).integers(low, low + 256, (40, D)).astype("f4")
    index = faiss.IndexScalarQuantizer(D, getattr(faiss.ScalarQuantizer, name))
    index.add(x)
    assert by_id(*rows_of(open_faiss(write(index, tmp_path)))) == by_id(np.arange(40), x)


def test_residual_codes_are_approximate(tmp_path: Path) -> None:
    index = quiet(faiss.index_factory(D, "IVF4,SQfp16"), vectors(1))
    index.add(vectors(1))
    path = write(index, tmp_path)
    with pytest.raises(UsageError, match="IndexIVFScalarQuantizer: it stores the rounded difference to a centroid"):
        open_faiss(path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("PQ4x4", "IndexPQ: product quantization"),
        ("IVF4,PQ4x4", "IndexIVFPQ: product quantization"),
        ("SQ8", r"IndexScalarQuantizer: scalar quantization \(8bit\)"),
        ("IVF4,SQ4", r"IndexIVFScalarQuantizer: scalar quantization \(4bit\)"),
        ("LSH", "IndexLSH: hashing"),
        ("HNSW4_PQ4x4", "IndexHNSW over IndexPQ: product quantization"),
        ("IVF4,RQ4x4", "IndexIVFResidualQuantizer: Faiss can give back only approximate"),
        ("RR16,PQ4x4", "IndexPreTransform over IndexPQ: product quantization"),
    ],
)
def test_approximate_kinds_only_when_asked_for(kind: str, reason: str, tmp_path: Path) -> None:
    x = vectors(200)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    path = write(index, tmp_path)
    with pytest.raises(UsageError, match=reason):
        open_faiss(path)
    found = open_faiss(path, lossy=True)
    assert codes(found) == {"faiss-lossy"} and found.collections[0].rows == 200
    ids, rows = rows_of(found, 1000)
    assert sorted(ids) == list(range(200))
    if hasattr(index, "make_direct_map"):
        index.make_direct_map()
    # Faiss multiplies one row in another order than many: the last bits may differ after a rotation
    np.testing.assert_allclose(rows, np.stack([index.reconstruct(int(i)) for i in ids]), atol=1e-6 if "RR" in kind else 0)
    piece = found.collections[0].partitions[0].pieces[0]
    rest = [b.ids.copy() for b in piece.batches(1000, start=150)]
    np.testing.assert_array_equal(np.concatenate(rest), ids[150:])


@pytest.mark.parametrize("name", [k for k in dir(faiss.ScalarQuantizer) if k.startswith("QT_") and k != "QT_count"])
def test_scalar_quantizers_are_called_by_their_names(name: str, tmp_path: Path) -> None:
    x, number = vectors(300), getattr(faiss.ScalarQuantizer, name)
    flat = faiss.IndexScalarQuantizer(D, number)
    residual = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatL2(D), D, 4, number, faiss.METRIC_L2, True)
    for index in (flat, residual):
        quiet(index, x).add(x)
        path = write(index, tmp_path)
        with open(path, "rb") as file:
            cursor = Cursor(file.fileno(), path, 0, path.stat().st_size)
            found = read_index(cursor)
        assert cursor.left == 0 and found.declared == 300
        if name == "QT_0bit":
            with pytest.raises(UsageError, match=r"scalar quantization \(0bit\) keeps nothing of the vectors"):
                open_faiss(path, lossy=True)
        elif found.refusal is None or "difference" in found.refusal:
            assert name[3:] in ("fp16", "bf16", "8bit_direct", "8bit_direct_signed")
        else:
            assert found.refusal == f"scalar quantization ({name[3:]}) keeps only approximate vectors"


@pytest.mark.parametrize("kind", ["Panorama", "IVF4,PQ4x4fs,RFlat", "IVF4,FlatPanorama4"])
def test_kinds_of_faiss_alone_are_read_by_it(kind: str, tmp_path: Path) -> None:
    x = vectors(300)
    index = faiss.IndexFlatL2Panorama(D, 4) if kind == "Panorama" else quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    path = write(index, tmp_path)
    found = open_faiss(path)
    assert found.index_name.startswith(("IndexFlatL2Panorama", "IndexRefineFlat over IndexFlatL2", "IndexIVFFlatPanorama"))
    assert found.findings == ()
    assert by_id(*rows_of(found, 1000)) == by_id(np.arange(300), x)
    if not kind.startswith("IVF4,Flat"):
        assert by_id(*rows_of(open_faiss(path, first_id=7))) == by_id(np.arange(300) + 7, x)
    np.save(tmp_path / "ids.npy", some_ids(300))
    assert by_id(*rows_of(open_faiss(path, ids_file=tmp_path / "ids.npy"))) == by_id(some_ids(300), x)


def test_faiss_can_die_without_harm(tmp_path: Path) -> None:
    index = faiss.IndexFlatL2Panorama(D, 4)
    index.add(vectors(300))
    path = write(index, tmp_path)
    with pytest.raises(DamageError, match="Faiss cannot read it"):
        open_faiss(path, memory_limit=1 << 20)
    with pytest.raises(DamageError, match="Faiss did not open it within"):
        open_faiss(path, timeout=0.01)
    found = open_faiss(path)
    os.truncate(path, 2000)
    with pytest.raises(DamageError, match="Faiss cannot read it: RuntimeError"):
        rows_of(found)
    with pytest.raises(DamageError, match="Faiss cannot read it: RuntimeError"):
        open_faiss(path)
    piece = found.collections[0].partitions[0].pieces[0]
    assert isinstance(piece, ChildPiece)
    slow = replace(piece, child=replace(piece.child, timeout=0.01))
    with pytest.raises(DamageError, match=r"Faiss stopped while reading it \(signal 9\)"):
        list(slow.batches())


# Where ids come from -------------------------------------------------------------------------------------------------


def test_given_ids(tmp_path: Path) -> None:
    x, ids = vectors(30), some_ids(30)
    np.save(tmp_path / "ids.npy", ids)
    flat = faiss.IndexFlatL2(D)
    flat.add(x)
    path = write(flat, tmp_path)
    assert by_id(*rows_of(open_faiss(path, first_id=-5))) == by_id(np.arange(30) - 5, x)
    assert by_id(*rows_of(open_faiss(path, ids_file=tmp_path / "ids.npy"))) == by_id(ids, x)
    with pytest.raises(UsageError, match="--first-id and --ids"):
        open_faiss(path, ids_file=tmp_path / "ids.npy", first_id=1)
    np.save(tmp_path / "short.npy", ids[1:])
    with pytest.raises(UsageError, match=r"expected 30 int64 ids, found int64 of shape \(29,\)"):
        open_faiss(path, ids_file=tmp_path / "short.npy")
    np.save(tmp_path / "floats.npy", ids.astype("f8"))
    with pytest.raises(UsageError, match="found float64"):
        open_faiss(path, ids_file=tmp_path / "floats.npy")
    with pytest.raises(UsageError, match="not an array of numpy"):
        open_faiss(path, ids_file=path)
    numbered = quiet(ivf(4), x)  # row numbers in the lists: the file renames them
    numbered.add(x)
    assert by_id(*rows_of(open_faiss(write(numbered, tmp_path), ids_file=tmp_path / "ids.npy"))) == by_id(ids, x)
    mapped = faiss.IndexIDMap(faiss.IndexFlatL2(D))
    mapped.add_with_ids(x, ids)
    path = write(mapped, tmp_path)
    for option in ({"ids_file": tmp_path / "ids.npy"}, {"first_id": 3}):
        with pytest.raises(UsageError, match="has ids of its own"):
            open_faiss(path, **option)


def test_an_id_outside_of_its_map_is_damage(tmp_path: Path) -> None:
    x = vectors(30)
    index = quiet(ivf(2), x)
    index.add_with_ids(x, np.arange(30) + 1)
    np.save(tmp_path / "ids.npy", some_ids(30))
    with pytest.raises(DamageError, match="points outside of the 30 ids"):
        rows_of(open_faiss(write(index, tmp_path), ids_file=tmp_path / "ids.npy"))


def test_the_user_can_only_confirm(tmp_path: Path) -> None:
    path = write(faiss.IndexFlatIP(D), tmp_path)
    assert open_faiss(path, metric="ip", dimension=D, collection="c").collections[0].schema.name == "c"
    with pytest.raises(UsageError, match="has the metric IP, not L2"):
        open_faiss(path, metric="L2")
    with pytest.raises(UsageError, match="has 16 dimensions, not 17"):
        open_faiss(path, dimension=17)


def test_bytes_after_the_index_are_mentioned(tmp_path: Path) -> None:
    path = write(faiss.IndexFlatIP(D), tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    (finding,) = open_faiss(path).findings
    assert (finding.code, finding.message) == ("faiss-trailing-bytes", "4 bytes after the end of the index were not read")


# Pieces --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "idmap2_ip", "ivf", "ivf_many_empty", "idmap_ivf"])
def test_pieces_start_anywhere_and_travel(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE_BYTES", 70 * D * 4)
    x = vectors(300)
    index = quiet(FLOAT_KINDS[kind](), x)
    index.add(x) if kind == "flat" else index.add_with_ids(x, some_ids(300))
    found = open_faiss(write(index, tmp_path))
    pieces = pickle.loads(pickle.dumps(found.collections[0].partitions[0].pieces))
    assert [p.id for p in pieces] == ["0", "70", "140", "210", "280"]
    assert [p.rows for p in pieces] == [70, 70, 70, 70, 20]
    ids, rows = rows_of(found)
    for number, piece in enumerate(pieces):
        for start in (0, 1, 19, piece.rows - 1, piece.rows):
            got = [(b.ids.copy(), b.vectors.copy()) for b in piece.batches(900, start)]
            first, last = number * 70 + start, number * 70 + piece.rows
            assert b"".join(i.tobytes() for i, _ in got) == ids[first:last].tobytes()
            assert b"".join(v.tobytes() for _, v in got) == rows[first:last].tobytes()


def test_an_export_to_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    from milvus_offline.exporting import run_export
    from milvus_offline.sources import open_source
    from milvus_offline.targets.hdf5 import Hdf5Export

    x = vectors(300)
    index = quiet(ivf(16), x)
    index.add_with_ids(x, some_ids(300))
    path = write(index, tmp_path)
    found: Source = open_source(path)
    assert found.kind == "faiss" and found.describe()["index"] == "IndexIVFFlat"
    assert run_export(found, Hdf5Export(tmp_path / "out")).rows == 300
    with h5py.File(tmp_path / "out" / "some" / "_default.h5") as file:
        assert by_id(file["ids"][:], file["embeddings"][:]) == by_id(some_ids(300), x)


def test_fingerprint_follows_the_file(tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(D)
    index.add(vectors(5))
    path = write(index, tmp_path)
    before = open_faiss(path).fingerprint()
    assert before == open_faiss(path).fingerprint() != open_faiss(path, first_id=1).fingerprint()
    index.add(vectors(1))
    write(index, tmp_path)
    assert open_faiss(path).fingerprint() != before


# Lists in another file -----------------------------------------------------------------------------------------------


def on_disk(folder: Path, lists: Path, x: Any, ids: Any) -> Path:
    index = quiet(ivf(8), x)
    index.add_with_ids(x, ids)
    stored = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(lists))
    stored.merge_from_1(index.invlists)
    index.replace_invlists(stored, False)
    return write(index, folder)


def test_lists_on_disk_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    x, ids = vectors(100), some_ids(100)
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    path = on_disk(inside, outside / "lists.ivfdata", x, ids)
    with pytest.raises(UsageError, match=r"are in another file, '.*lists\.ivfdata', which was not read"):
        open_faiss(path)
    assert by_id(*rows_of(open_faiss(path, follow_ondisk=True))) == by_id(ids, x)
    (inside / "lists.ivfdata").symlink_to(outside / "lists.ivfdata")
    with pytest.raises(UsageError, match="which was not read"):
        open_faiss(path)
    (inside / "lists.ivfdata").unlink()
    shutil.move(outside / "lists.ivfdata", inside / "lists.ivfdata")
    found = open_faiss(path)
    assert by_id(*rows_of(found, 700)) == by_id(ids, x)
    assert len(found.files) == 2
    os.truncate(inside / "lists.ivfdata", 100)
    with pytest.raises(DamageError, match="bytes of inverted lists, found 100"):
        open_faiss(path)


def test_which_file_with_lists_is_read(tmp_path: Path) -> None:
    """The one beside the index, also where another is named: so that a moved index is read, and it is said."""
    x, ids = vectors(100), some_ids(100)
    named, folder = tmp_path / "named", tmp_path / "in"
    named.mkdir()
    folder.mkdir()
    path = on_disk(folder, named / "lists", x, ids)
    shutil.copy(named / "lists", folder / "lists")
    found = open_faiss(path)
    assert by_id(*rows_of(found)) == by_id(ids, x) and found.files[1] == str(folder / "lists")
    (finding,) = found.findings
    assert finding.severity.value == "info" and str(named / "lists") in finding.message
    assert str(folder / "lists") in finding.message
    with open(folder / "lists", "ab") as file:
        file.write(bytes(64))
    assert {f.code: f.severity.value for f in open_faiss(path).findings} == {
        "faiss-lists-elsewhere": "info",
        "faiss-lists-differ": "warning",
    }
    assert codes(open_faiss(path, follow_ondisk=True)) == set()
    beside = on_disk(folder, folder / "lists", x, ids)
    assert codes(open_faiss(beside)) == set()


# Other versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.index")), ids=lambda p: p.stem)
def test_files_of_old_versions(path: Path) -> None:
    x, ids, xb = (np.load(FIXTURES / f"{name}.npy") for name in ("vectors", "ids", "bits"))
    kind = path.stem.split("-")[1]
    found = open_faiss(path)
    got_ids, rows = rows_of(found)
    schema = found.collections[0].schema
    assert schema.metric_type == {"flat_ip": "IP", "ivf_sparse_ip": "IP", "flat_l1": None}.get(
        kind, "HAMMING" if kind.startswith("bits") else "L2"
    )
    if kind == "rotated":
        np.testing.assert_allclose(rows, x[got_ids], atol=2e-6)
    elif kind == "fp16":
        assert by_id(got_ids, rows) == by_id(np.arange(60), x.astype("f2").astype("f4"))
    elif kind == "dedup":
        assert by_id(got_ids, rows) == by_id(ids, np.concatenate([x[:50], x[:10]]))
    elif kind == "ivf_sparse_ip":
        assert by_id(got_ids, rows) == by_id(ids[:10], x[:10])
    else:
        own = kind in ("idmap2", "ivf_full", "bits_idmap", "bits_ivf")
        assert by_id(got_ids, rows) == by_id(ids if own else np.arange(60), xb if kind.startswith("bits") else x)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("kinds/*.index")), ids=lambda p: p.stem)
def test_files_of_other_kinds(path: Path) -> None:
    ids, rows = rows_of(open_faiss(path))
    x = np.load(FIXTURES / ("bits.npy" if "hash" in path.stem else "vectors.npy"))
    if path.stem in ("nsg", "nndescent", "cagra"):
        x = np.concatenate([x, 2 * x, 4 * x])
    if path.stem == "pca_ivf":
        np.testing.assert_allclose(rows, x[ids], atol=2e-6)
    elif path.stem == "bf16":
        np.testing.assert_allclose(rows, x, rtol=1 / 128)
    else:
        assert by_id(ids, rows) == by_id(np.arange(len(x)), x)


@pytest.mark.parametrize("kind", ["IvFL", "IvFl"])
def test_the_oldest_inverted_files(kind: str, tmp_path: Path) -> None:
    """Ids before the direct map, codes list by list, counted in bytes (IvFL) or floats (IvFl)."""
    x, ids = vectors(30), some_ids(30)
    header = struct.pack("<iqqqBi", D, 30, 1 << 20, 1 << 20, 1, 1)
    quantizer = b"IxF2" + struct.pack("<iqqqBi", D, 3, 0, 0, 1, 1) + struct.pack("<Q", 3 * D) + bytes(3 * D * 4)
    cuts = [(0, 10), (10, 10), (10, 30)]
    body = b"".join(struct.pack("<Q", b - a) + ids[a:b].tobytes() for a, b in cuts) + b"\0" + struct.pack("<Q", 0)
    unit = 4 * D if kind == "IvFL" else D
    body += b"".join(struct.pack("<Q", (b - a) * unit) + x[a:b].tobytes() for a, b in cuts)
    path = tmp_path / "old.index"
    path.write_bytes(kind.encode() + header + struct.pack("<QQ", 3, 1) + quantizer + body)
    assert by_id(*rows_of(open_faiss(path))) == by_id(ids, x)
    assert by_id(*rows_of(open_faiss(path))) == truth(path)


def test_lists_with_the_ids_first(tmp_path: Path) -> None:
    """`iloa`, which only the fork inside Milvus 1.x writes."""
    x, ids = vectors(30), some_ids(30)
    index = quiet(ivf(3), x)
    index.add_with_ids(x, ids)
    head = write(index, tmp_path).read_bytes()
    head = head[: head.rindex(b"ilar")]
    lists = b"iloa" + struct.pack("<QQ", 3, 4 * D) + struct.pack("<4Q", 3, 10, 0, 20) + struct.pack("<Q", 30)
    path = tmp_path / "fork.index"
    path.write_bytes(head + lists + ids.tobytes() + x.tobytes())
    assert by_id(*rows_of(open_faiss(path))) == by_id(ids, x)


def test_an_index_inside_another_file(tmp_path: Path) -> None:
    x = vectors(30)
    index = faiss.IndexIDMap(faiss.IndexFlatL2(D))
    index.add_with_ids(x, some_ids(30))
    data = write(index, tmp_path).read_bytes()
    path = tmp_path / "container"
    path.write_bytes(b"before" + data + b"after")
    fd = os.open(path, os.O_RDONLY)
    cursor = Cursor(fd, path, 6, 6 + len(data))
    found = read_index(cursor)
    assert cursor.left == 0 and found.runs is not None
    rows = Rows(str(path), str(path), found.runs, "f4", D)
    got = [(i.copy(), v.copy()) for i, v in rows.batches(300)]
    assert by_id(np.concatenate([i for i, _ in got]), np.concatenate([v for _, v in got])) == by_id(some_ids(30), x)
    with pytest.raises(DamageError):
        read_index(Cursor(fd, path, 6, 5 + len(data)))
    with pytest.raises(UnknownKind):
        read_index(Cursor(fd, path, 0, 6))
    os.close(fd)


def test_memory_stays_flat(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "big.index"
    rows, width = 1 << 16, 256
    header = b"IxF2" + struct.pack("<iqqqBi", width, rows, 0, 0, 1, 1) + struct.pack("<Q", rows * width)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + rows * width * 4)
    piece = open_faiss(path).collections[0].partitions[0].pieces[0]
    assert isinstance(piece, FaissPiece) and piece.rows == rows
    tracemalloc.start()
    assert sum(len(b.ids) for b in piece.batches()) == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
