"""Partitions and collections as Arrow streams: what DuckDB, Polars and others read is the truth, type for type."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pytest
from support.builder import StoreBuilder, join, rows
from support.examples import examples, run_example
from support.real import STORES, truth
from support.tables import catalog_of, octets

from milvus_offline import open_store
from milvus_offline.arrow import owned_batches
from milvus_offline.milvus1.layout import FieldType
from milvus_offline.model import Batch

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


def bag_of(reader: pa.RecordBatchReader) -> Counter[tuple[int, bytes]]:
    found: Counter[tuple[int, bytes]] = Counter()
    for batch in reader:
        ids, vectors = batch.column("id").to_numpy(), batch.column("vector")
        octets = vectors.flatten().to_numpy().reshape(len(ids), -1) if hasattr(vectors, "flatten") else vectors.to_pylist()
        found.update((int(i), bytes(v)) for i, v in zip(ids, octets, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_gives_the_rows_of_the_server(name: str) -> None:
    store = open_store(STORES / name / "store", **catalog_of(name))
    found = {(c.name, p.name): bag_of(p.to_reader(batch_rows=7)) for c in store.collections for p in c.partitions}
    assert found == truth(name)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    builder = StoreBuilder(tmp_path / "store", version="1.0.0")
    builder.collection("faces", dim=8, metric="IP", index_params='{"nlist":16}', engine_type=2, flag=2)
    year = builder.partition("faces", "2019")["table_id"]
    builder.field("faces", "age", FieldType.INT32)
    builder.segment("faces", rows(range(100), dim=8), attributes={"age": np.arange(100, dtype="<i4")})
    builder.segment(year, rows(range(200, 230), dim=8), attributes={"age": np.zeros(30, "<i4")}, deleted=[3, 4])
    return builder.write()


def test_the_schema_tells_what_the_collection_is(store: Path) -> None:
    schema = open_store(store)["faces"]["_default"].to_reader().schema
    assert schema.field("id").type == pa.int64()
    assert schema.field("vector").type == pa.list_(pa.field("item", pa.float32(), nullable=False), 8)
    assert schema.field("age").type == pa.int32()
    assert schema.names == ["id", "vector", "age"]
    assert schema.metadata[b"milvus.metric_type"] == b"IP"
    assert schema.metadata[b"milvus.dimension"] == b"8"
    assert schema.metadata[b"milvus.collection"] == b"faces"
    assert schema.metadata[b"milvus.auto_id"] == b"false"
    assert json.loads(schema.metadata[b"milvus.index"]) == {"type": "IVF_FLAT", "params": {"nlist": 16}}


def test_a_collection_names_the_partition_of_each_row(store: Path) -> None:
    table = pa.table(open_store(store)["faces"])
    assert Counter(table.column("partition").to_pylist()) == {"_default": 100, "2019": 28}
    assert table.column("age").to_pylist()[:100] == list(range(100))
    assert 203 not in table.column("id").to_pylist()


def test_a_partitions_name_is_its_own_also_where_it_is_no_text(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("c")
    for tag in ("tab\tx", "p"):
        builder.segment(builder.partition("c", tag)["table_id"], rows(1, 2))
    root = builder.write()
    with sqlite3.connect(root / "db" / "meta.sqlite") as database:
        database.execute("UPDATE Tables SET partition_tag = CAST(X'67FF' AS TEXT) WHERE partition_tag = 'p'")
    database.close()
    names = pa.table(open_store(root)["c"]).column("partition").to_pylist()
    assert Counter(names) == {"tab\tx": 2, "g\\udcff": 2}


def test_attributes_have_columns_of_their_own_whatever_their_names(tmp_path: Path) -> None:
    names = ["id", "Vector", "partition", "age", "AGE", "age_"]
    builder = StoreBuilder(tmp_path / "store", version="1.0.0")
    builder.collection("c")
    for name in names:
        builder.field("c", name, FieldType.INT32)
    values = {name: np.arange(3, dtype="<i4") + 10 * n for n, name in enumerate(names, 1)}
    builder.segment("c", rows(1, 2, 3), attributes=values)
    collection = open_store(builder.write())["c"]
    columns = ["id_", "Vector_", "partition_", "age", "AGE_", "age__"]
    table, frame = pa.table(collection), collection.to_pandas()
    assert table.schema.names == [*frame.columns] == ["id", "vector", *columns, "partition"]
    assert (
        [table.column(c).to_pylist() for c in columns]
        == [[*frame[c]] for c in columns]
        == [v.tolist() for v in values.values()]
    )
    assert table.column("id").to_pylist() == [*frame["id"]] == [1, 2, 3]


def test_binary_vectors_are_fixed_size_binary(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("bits", dim=16, metric="HAMMING")
    builder.segment("bits", rows(range(5), dim=16, binary=True))
    table = pa.table(open_store(builder.write())["bits"]["_default"])
    assert table.schema.field("vector").type == pa.binary(2)
    assert table.column("vector").to_pylist() == [v.tobytes() for v in rows(range(5), dim=16, binary=True).vectors]


@pytest.mark.parametrize("binary", [False, True])
def test_partitions_of_any_kind_are_streams_to_everybody(binary: bool, tmp_path: Path) -> None:
    def some(*ids: int) -> Batch:
        return rows(*ids, dim=16, binary=binary)

    builder = StoreBuilder(tmp_path / "store")
    builder.collection("odd", dim=16, metric="JACCARD" if binary else "IP")
    builder.partition("odd", "empty")
    builder.segment(builder.partition("odd", "all deleted")["table_id"], some(1, 2, 3), deleted=[0, 1, 2])
    half = builder.partition("odd", "half")["table_id"]
    builder.segment(half, some(4, 5, 6, 7), deleted=[0, 3])
    builder.wal.insert("odd", some(8, 9), "half")
    builder.partition("odd", "only in the log")
    builder.wal.insert("odd", some(10), "only in the log")
    odd = open_store(builder.write())["odd"]
    expected = {"_default": [], "empty": [], "all deleted": [], "half": [5, 6, 8, 9], "only in the log": [10]}
    assert list(odd) == list(expected)
    for name, ids in expected.items():
        partition = odd[name]
        table = pa.table(partition)
        assert table.schema == partition.to_reader().schema and table.column("id").to_pylist() == ids
        assert [octets(v) for v in table.column("vector").to_pylist()] == (
            [v.tobytes() for v in some(*ids).vectors] if ids else []
        )
        assert polars.DataFrame(partition).get_column("id").to_list() == ids
        assert duckdb.sql("SELECT count(*) FROM partition").fetchall() == [(len(ids),)]
        assert pa.RecordBatchReader.from_stream(partition, schema=table.schema).read_all() == table
    names = pa.table(odd).column("partition").to_pylist()
    assert Counter(names) == {name: len(ids) for name, ids in expected.items() if ids}


def test_batches_are_no_larger_than_asked_and_stay_when_others_are_read(store: Path) -> None:
    batches = list(open_store(store)["faces"].to_reader(batch_rows=32))
    assert [b.num_rows for b in batches] == [32, 32, 32, 4, 28]
    ids = [i for b in batches for i in b.column("id").to_pylist()]
    assert ids == [*range(100), *range(200, 203), *range(205, 230)]


@pytest.mark.parametrize("batch_rows", [10**9, 1 << 62])
def test_batches_take_no_more_memory_than_their_rows(batch_rows: int, tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("c")
    builder.segment("c", rows(1, 2, 3), deleted=[0])
    builder.wal.insert("c", rows(4, 5))
    batches = open_store(builder.write())["c"].to_reader(batch_rows=batch_rows)
    assert [b.column("id").to_pylist() for b in batches] == [[2, 3], [4, 5]]


def test_clean_segments_are_read_to_where_arrow_keeps_them(store: Path) -> None:
    partition = open_store(store)["faces"]["_default"]
    batch = next(owned_batches(partition.pieces[0], partition.schema, 50))
    made = partition.to_reader(batch_rows=50).read_next_batch()
    assert made.column("vector").flatten().to_numpy().base is not None
    from milvus_offline.arrow import arrow_schema, record_batch

    wrapped = record_batch(batch, partition.schema, arrow_schema(partition.schema))
    assert wrapped.column("vector").flatten().buffers()[1].address == batch.vectors.ctypes.data
    assert wrapped.column("id").buffers()[1].address == batch.ids.ctypes.data


def test_vectors_are_taken_by_dlpack_without_a_copy(store: Path) -> None:
    """As PyTorch takes them."""
    for partition in open_store(store)["faces"].partitions:
        for batch in partition.to_reader(batch_rows=7):
            flat = batch["vector"].flatten()
            taken = np.from_dlpack(flat)
            assert taken.__array_interface__["data"][0] == flat.to_numpy().__array_interface__["data"][0]
            assert taken.reshape(batch.num_rows, -1).tolist() == batch["vector"].to_pylist()


def test_a_batch_of_no_rows_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="batch_rows: expected 1 or more, found 0"):
        open_store(store)["faces"].to_reader(batch_rows=0)


def test_rows_of_the_log_come_too(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=4)
    builder.segment("faces", rows(range(10), dim=4))
    builder.wal.insert("faces", rows(range(10, 15), dim=4))
    partition = open_store(builder.write())["faces"]["_default"]
    found = pa.table(partition)
    assert polars.DataFrame(partition).get_column("id").to_list() == list(range(15))
    assert found.column("id").to_pylist() == list(range(15))
    expected = join(rows(range(10), dim=4), rows(range(10, 15), dim=4)).vectors.tolist()
    assert found.column("vector").to_pylist() == expected


@pytest.mark.parametrize("word", ["batch_rows=10_000", "import duckdb", "import polars"])
def test_the_examples_of_the_documents_run(word: str, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = examples("engines.md", word)
    names: dict[str, Any] = run_example(block, store)
    out = capsys.readouterr().out
    if word == "import duckdb":
        assert "2019" in out and "229" in out
    elif word == "import polars":
        assert dict(names["frame"].group_by("partition").len().rows()) == {"_default": 100, "2019": 28}
    else:
        assert names["rows"] == 100 and "IP" in out
