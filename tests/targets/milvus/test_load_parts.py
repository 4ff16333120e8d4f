"""The parts of a load that need no server: bytes on the wire, the pass over the rows, the plan, the sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.array_source import ArraySource, bits, floats

from milvus_offline.errors import DamageError, TargetError, UsageError
from milvus_offline.manifest import CHECKSUM
from milvus_offline.model import IndexSpec, Schema, Source, SourceCollection, SourcePartition, VectorType
from milvus_offline.selection import SelectedSource, Selection
from milvus_offline.sources import kind_of, open_source
from milvus_offline.sources.export import open_export
from milvus_offline.sources.hdf5 import open_hdf5
from milvus_offline.targets.columnar import ColumnarExport
from milvus_offline.targets.milvus import scan as milvus_scan
from milvus_offline.targets.milvus import verify as milvus_verify
from milvus_offline.targets.milvus import wire as milvus_wire
from milvus_offline.targets.milvus.connection import Connection, lite_facts
from milvus_offline.targets.milvus.naming import restore, sanitize, sanitize_collection
from milvus_offline.targets.milvus.plan import make_plan
from milvus_offline.targets.milvus.terms import CollectionPlan, LoadOptions, Plan, TargetFacts
from milvus_offline.transfer import execute

SERVER = TargetFacts("server", "v2.5.1", True, False, True, True, 2, 32768, 1024, False)
OLD = TargetFacts("server", "v2.3.5", True, False, True, False, 1, 32768, 1024, False)


# The wire -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_varints(values: list[int]) -> None:
    from google.protobuf.internal.encoder import _EncodeSignedVarint  # the reference, in Python

    expected = bytearray()
    for value in values:
        _EncodeSignedVarint(expected.extend, value)
    assert milvus_wire.varints(np.array(values, np.int64)) == bytes(expected)


def test_the_generated_classes_read_our_bytes() -> None:
    assert milvus_wire.encoder_agrees()


@pytest.mark.parametrize("kind", VectorType)
def test_rows_of_an_answer(kind: VectorType) -> None:
    from pymilvus.grpc_gen import milvus_pb2, schema_pb2

    vectors = floats(5, 6) if kind is VectorType.FLOAT else bits(5, 16)
    layout = milvus_wire.Layout("v", kind, 6 if kind is VectorType.FLOAT else 16, "i")
    request = milvus_pb2.InsertRequest.FromString(milvus_wire.insert_request(layout, "c", "", np.arange(5) - 2, vectors))
    answer = milvus_pb2.QueryResults(fields_data=list(request.fields_data))
    ids, found = milvus_wire.rows_of(answer, layout, "i")
    assert ids.tolist() == [-2, -1, 0, 1, 2]
    assert found.tobytes() == vectors.tobytes()
    assert isinstance(request.fields_data[0], schema_pb2.FieldData)


# The pass over the rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", [1 << 20, 8])
@given(ids=st.lists(st.integers(-5, 25), max_size=60), policy=st.sampled_from([None, "first", "last"]))
def test_duplicates_are_counted(bucket: int, ids: list[int], policy: str | None) -> None:
    source = ArraySource(
        {
            "c": {
                "a": [(np.array(ids[:20], np.int64), floats(len(ids[:20])))],
                "b": [(np.array(ids[20:], np.int64), floats(len(ids[20:])))],
            }
        }
    )
    before, milvus_scan.BUCKET_ROWS = milvus_scan.BUCKET_ROWS, bucket
    try:
        found = milvus_scan.scan(source.collections[0], drop_duplicates=policy)
    finally:
        milvus_scan.BUCKET_ROWS = before
    repeated = {i for i in ids if ids.count(i) > 1}
    assert (found.duplicate_ids, found.duplicate_rows) == (len(repeated), len(ids) - len(set(ids)))
    keep = {i: (ids.index(i) if policy == "first" else len(ids) - 1 - ids[::-1].index(i)) for i in repeated}
    expected = [n for n, i in enumerate(ids) if i in repeated and keep[i] != n] if policy else []
    assert found.dropped.tolist() == expected


def test_finite_rows() -> None:
    huge = np.full((3, 4), 3e38, "<f4")
    assert milvus_scan.finite_rows(huge) is None  # the sum overflows, the rows are finite
    huge[1, 2] = np.inf
    found = milvus_scan.finite_rows(huge)
    assert found is not None
    assert found.tolist() == [True, False, True]


def test_the_digest_knows_rows_but_not_their_order() -> None:
    rows = floats(100, 7)
    assert milvus_verify.digest(rows) == milvus_verify.digest(rows[::-1])
    changed = rows.copy()
    changed[5, 3] = np.nextafter(changed[5, 3], np.float32(9))
    assert milvus_verify.digest(rows) != milvus_verify.digest(changed)


# The plan ---------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
@example("_x_")
def test_sanitized_names_can_be_restored(name: str) -> None:
    new = sanitize(name)
    assert new and all(c.isascii() and (c.isalnum() or c == "_") for c in new)
    if len(new) < 200:
        assert restore(new) == name
    assert restore(sanitize_collection(name)) == name or len(new) >= 200


@given(st.lists(st.text(max_size=8), max_size=20, unique=True))
def test_sanitized_names_stay_different(names: list[str]) -> None:
    assert len({sanitize(n) for n in names}) == len(names)


def plan(schema: Schema, facts: TargetFacts = SERVER, partitions: int = 1, **options: Any) -> tuple[CollectionPlan, list[str]]:
    names = ["_default", *(f"p{i}" for i in range(1, partitions))]
    collection = SourceCollection(schema, [SourcePartition(n, []) for n in names])
    made: Plan = make_plan([collection], {}, LoadOptions(**options), facts)
    return made.collections[0], [f.code for f in made.findings]


@pytest.mark.parametrize(
    ("old", "params", "new", "told"),
    [
        ("FLAT", {}, IndexSpec("FLAT"), False),
        ("IVFFLAT", {"nlist": 100}, IndexSpec("IVF_FLAT", {"nlist": 100}), False),
        ("IVF_SQ8", {"nlist": 999999}, IndexSpec("IVF_SQ8", {"nlist": 65536}), True),
        ("IVF_SQ8H", {"nlist": 16}, IndexSpec("IVF_SQ8", {"nlist": 16}), True),
        ("IVF_PQ", {"nlist": 16, "m": 4}, IndexSpec("IVF_PQ", {"nlist": 16, "m": 4, "nbits": 8}), False),
        ("IVF_PQ", {"nlist": 16, "m": 5}, IndexSpec("IVF_SQ8", {"nlist": 16}), True),
        ("HNSW", {"M": 16, "efConstruction": 300}, IndexSpec("HNSW", {"M": 16, "efConstruction": 300}), False),
        ("RNSG", {"out_degree": 50}, IndexSpec("HNSW", {"M": 16, "efConstruction": 200}), True),
        ("ANNOY", {"n_trees": 8}, IndexSpec("HNSW", {"M": 16, "efConstruction": 200}), True),
    ],
)
def test_indexes(old: str, params: dict[str, int], new: IndexSpec, told: bool) -> None:
    got, codes = plan(Schema("c", 8, VectorType.FLOAT, "L2", IndexSpec(old, params)))
    assert got.index == new
    assert ("index-changed" in codes) is told


def test_binary_metrics_and_indexes() -> None:
    ivf = IndexSpec("IVF_FLAT", {"nlist": 8})
    got, codes = plan(Schema("c", 64, VectorType.BINARY, "TANIMOTO", ivf))
    assert (got.metric_type, got.index, codes) == ("JACCARD", IndexSpec("BIN_IVF_FLAT", {"nlist": 8}), ["metric-changed"])
    got, codes = plan(Schema("c", 64, VectorType.BINARY, "SUBSTRUCTURE", ivf))
    assert (got.metric_type, got.index, codes) == ("SUBSTRUCTURE", IndexSpec("BIN_FLAT"), ["index-changed"])


@pytest.mark.parametrize(
    ("facts", "dimension", "good"), [(SERVER, 1, False), (OLD, 1, True), (SERVER, 2, True), (SERVER, 32769, False)]
)
def test_dimensions(facts: TargetFacts, dimension: int, good: bool) -> None:
    schema = Schema("c", dimension, VectorType.FLOAT, "L2")
    if good:
        assert plan(schema, facts)[0].dimension == dimension
    else:
        with pytest.raises(TargetError, match=f"dimension {dimension}: the target takes"):
            plan(schema, facts)


def test_too_many_partitions() -> None:
    schema = Schema("c", 8, VectorType.FLOAT, "L2")
    assert len(plan(schema, partitions=1024)[0].partitions) == 1024
    with pytest.raises(UsageError, match="1025 partitions, the target takes 1024"):
        plan(schema, partitions=1025)
    keyed = make_plan(
        [SourceCollection(schema, [SourcePartition(f"p{i}", []) for i in range(1500)])],
        {},
        LoadOptions(partitions="key"),
        SERVER,
    ).collections[0]
    assert keyed.key_field == "partition"
    assert [p.key for p in keyed.partitions][-1] == "p1499"


def test_all_refusals_at_once() -> None:
    collections = [SourceCollection(Schema(n, 8, VectorType.BINARY, "HAMMING"), []) for n in ("a", "b")]
    with pytest.raises(TargetError, match=r"(?s)a: Milvus Lite cannot hold binary.*b: Milvus Lite cannot"):
        make_plan(collections, {}, LoadOptions(), lite_facts())


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Connection("http://127.0.0.1:1", token="root:secret"))


# Sources ----------------------------------------------------------------------------------------------------------------


def rows(source: Source) -> dict[tuple[str, str], tuple[list[int], bytes]]:
    result = {}
    for c in source.collections:
        for p in c.partitions:
            for size in (1 << 20, 100):  # also in small batches, and from the middle
                ids: list[int] = []
                data = b""
                for piece in p.pieces:
                    for start in {0, piece.rows // 2}:
                        got = [(b.ids.tolist(), b.vectors.tobytes()) for b in piece.batches(size, start)]
                        if start == 0:
                            whole = got
                        assert sum(len(i) for i, _ in got) == piece.rows - start
                    ids += [i for part, _ in whole for i in part]
                    data += b"".join(d for _, d in whole)
            result[c.schema.name, p.name] = (ids, data)
    return result


def test_milvusdm_folder(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for tag, n in (("None", 40), ("2020", 3)):
        with h5py.File(folder / f"{tag}.h5", "w") as h:
            h["embeddings"], h["ids"] = floats(n, 5), np.arange(n) - 7
    assert kind_of(tmp_path) == kind_of(folder) == "hdf5"
    expected = {("books", t): ((np.arange(n) - 7).tolist(), floats(n, 5).tobytes()) for t, n in (("_default", 40), ("2020", 3))}
    for path in (tmp_path, folder):
        source = open_source(path)
        assert rows(source) == expected
        assert source.collections[0].schema == Schema("books", 5)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_other_floats(tmp_path: Path, dtype: str, chunked: bool) -> None:
    values = floats(50, 6).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as h:
        h.create_dataset("x", data=values, **({"chunks": (7, 6), "compression": "gzip"} if chunked else {}))
        h.create_dataset("n", data=np.arange(50, dtype=">i4").reshape(50, 1))
    source = open_hdf5(tmp_path / "a.h5", embeddings="x", ids="n", metric="IP")
    assert rows(source)["a", "_default"] == (list(range(50)), values.astype("<f4").tobytes())
    assert source.collections[0].schema.metric_type == "IP"
    assert [f.code for f in source.findings] == (["converted"] if dtype in ("<f2", "<f8") else [])


def test_no_ids(tmp_path: Path) -> None:
    for n, tag in ((5, "None"), (4, "p")):
        with h5py.File(tmp_path / f"{tag}.h5", "w") as h:
            h["embeddings"] = bits(n, 16)
    name = tmp_path.name
    assert [(c.schema.name, c.has_ids) for c in open_hdf5(tmp_path).collections] == [(name, False)]
    numbered = open_hdf5(tmp_path, row_ids=True)
    assert numbered.collections[0].has_ids
    assert sorted(i for ids, _ in rows(numbered).values() for i in ids) == list(range(9))
    assert numbered.collections[0].schema.dimension == 16


def test_bad_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\xff" * 500)
    with pytest.raises(DamageError, match="HDF5 cannot read it"):
        open_source(path)
    for make, text in (
        (lambda h: h.create_dataset("other", data=[1]), "no dataset 'embeddings'; there are: other"),
        (lambda h: h.create_dataset("embeddings", data=[1.0]), "expected two dimensions"),
        (lambda h: h.create_dataset("embeddings", data=[[1j]]), "expected numbers or bits"),
    ):
        with h5py.File(path, "w") as h:
            make(h)
        with pytest.raises(DamageError, match=text):
            open_hdf5(path)
    with h5py.File(path, "w") as h:
        h["embeddings"], h["ids"] = floats(5), np.arange(4)
    with pytest.raises(DamageError, match=r"expected shape \(5,\)"):
        open_hdf5(path)
    with h5py.File(path, "w") as h:
        h["embeddings"], h["ids"] = floats(1000), np.arange(1000)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4000])
    with pytest.raises(DamageError):
        open_hdf5(path)


@pytest.mark.parametrize("file_format", ["npy", "parquet", "hdf5"])
def test_exports_come_back(tmp_path: Path, file_format: str) -> None:
    from milvus_offline.targets.hdf5 import Hdf5Export

    data = {
        "a/ü": {"_default": [(np.arange(30) - 9, floats(30))], "x y": [(np.arange(7), floats(7))], "none": []},
        "b": {"_default": [(np.arange(20), bits(20, 24))]},
    }
    source = ArraySource(data)
    out = tmp_path / "out"
    for again in (False, True):
        target: Any = (
            Hdf5Export(out, overwrite=again)
            if file_format == "hdf5"
            else ColumnarExport(out, file_format=file_format, overwrite=again)
        )
        target.finish(execute(target.prepare(source, resume=False), ledger=target.ledger))
    assert kind_of(out) == "export"
    found = open_export(out)
    assert rows(found) == rows(source)
    assert [c.schema.metric_type for c in found.collections] == ["L2", "HAMMING"]
    assert list(rows(SelectedSource(found, Selection(("a*",), ("x y",))))) == [("a/ü", "x y")]
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["complete"] = False
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="was not finished"):
        open_export(out)
    manifest["complete"] = True
    del manifest[CHECKSUM]  # an earlier version wrote none
    manifest["collections"][0]["partitions"][0]["files"][0]["rows"] = 29
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match=r"expected"):
        open_export(out)
    manifest["collections"][0]["partitions"][0]["files"][0]["path"] = "../../etc/passwd"
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamageError, match="outside of the export"):
        open_export(out)


def test_parquet_is_what_servers_accept(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    target = ColumnarExport(tmp_path / "out", file_format="parquet")
    target.finish(
        execute(
            target.prepare(ArraySource({"c": {"_default": [(np.arange(9), floats(9))]}}), resume=False), ledger=target.ledger
        )
    )
    found = pq.read_table(tmp_path / "out" / "c" / "_default" / "00000.parquet")
    assert [str(f.type) for f in found.schema] == ["int64", "list<element: float not null>"]
    assert np.array(found["vector"].to_pylist(), "<f4").tobytes() == floats(9).tobytes()
