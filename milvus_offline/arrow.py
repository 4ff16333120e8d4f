"""Rows as Arrow record batches: the word that DuckDB, Polars, pandas, Lance, Ray and Spark understand.

    id: int64 · vector: fixed_size_list<float32>[dimension], or fixed_size_binary[dimension / 8] · one column per attribute ·
    `partition`: utf8, where it was asked for

An attribute has the column of its name, with `_` behind it where another column has that (`attribute_columns`).
The schema's metadata tell what the collection is: `milvus.collection`, `milvus.metric_type`, `milvus.dimension`, `milvus.index`
(JSON), `milvus.auto_id`, as far as it is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .errors import MissingPackageError
from .milvus1.segment.files import Segment
from .model import Batch, Piece, Schema, VectorType

BATCH_BYTES = 16 << 20
"""Vectors in a batch, where nothing else is asked for."""
PARTITION = "partition"


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingPackageError("Arrow", "pyarrow", "parquet") from None
    return pyarrow


def attribute_columns(schema: Schema) -> list[str]:
    """The column of each attribute: its name, with as many `_` behind it as tell it from all columns before it, `id`, `vector`
    and `partition` among them; as in SQL, capitals do not tell names apart."""
    taken, columns = {"id", "vector", PARTITION}, []
    for attribute in schema.attributes:
        name = _text(attribute.name)
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        columns.append(name)
    return columns


def _text(name: str) -> str:
    """A damaged name may be no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def arrow_schema(schema: Schema, *, partition: bool = False) -> Any:
    """The pyarrow.Schema of a collection's rows; `partition` adds the column with the partition's name."""
    pa = _arrow()
    float_vector = schema.vector_type is VectorType.FLOAT
    element = pa.field("item", pa.float32(), nullable=False)
    vector = pa.list_(element, schema.dimension) if float_vector else pa.binary(schema.row_bytes)
    fields = [pa.field("id", pa.int64(), nullable=False), pa.field("vector", vector, nullable=False)]
    for name, attribute in zip(attribute_columns(schema), schema.attributes, strict=True):
        fields.append(pa.field(name, pa.from_numpy_dtype(np.dtype(attribute.dtype)), nullable=False))
    if partition:
        fields.append(pa.field(PARTITION, pa.utf8(), nullable=False))
    known = {
        "collection": schema.name,
        "metric_type": schema.metric_type,
        "dimension": str(schema.dimension),
        "index": json.dumps({"type": schema.index.type, "params": dict(schema.index.params)}),
        "auto_id": None if schema.auto_id is None else str(schema.auto_id).lower(),
    }
    return pa.schema(fields, {f"milvus.{k}": v.encode("utf-8", "surrogateescape") for k, v in known.items() if v is not None})


def to_reader(schema: Schema, parts: Iterable[tuple[str | None, Sequence[Piece]]], batch_rows: int | None = None) -> Any:
    """A pyarrow.RecordBatchReader of the rows of some partitions, (name, pieces) each; a name None leaves its column out.

    A batch has at most `batch_rows` rows (default: 16 MiB of vectors) of one piece and owns its memory; nothing else is kept.
    Raises UsageError without pyarrow, ValueError for `batch_rows` below 1; while it is read DamageError and OSError, as pyarrow
    passes them on.
    """
    pa = _arrow()
    if batch_rows is not None and batch_rows < 1:
        raise ValueError(f"batch_rows: expected 1 or more, found {batch_rows}")
    parts = list(parts)
    named = any(name is not None for name, _ in parts)
    made = arrow_schema(schema, partition=named)
    rows = batch_rows or max(1, BATCH_BYTES // schema.row_bytes)
    batches = (
        record_batch(b, schema, made, name) for name, pieces in parts for p in pieces for b in owned_batches(p, schema, rows)
    )
    return pa.RecordBatchReader.from_batches(made, batches)


def owned_batches(piece: Piece, schema: Schema, rows: int, start: int = 0, count: int | None = None) -> Iterator[Batch]:
    """Rows `start` to `start + count - 1` of a piece in batches of at most `rows` rows whose arrays are nobody else's.

    Those of a segment without deleted rows are read from its files straight to where they stay.
    """
    end = piece.rows if count is None else start + count
    if type(piece) is Segment and not piece.deleted:
        for first in range(start, end, rows):
            until = replace(piece, stored=min(first + rows, end))
            yield from until.batches(rows * schema.row_bytes, first)
    else:
        left = end - start
        for batch in piece.batches(rows * schema.row_bytes, start) if left else ():
            b = batch.part(0, left) if batch.span > left else batch
            yield Batch(b.ids.copy(), b.vectors.copy(), {name: a.copy() for name, a in b.attributes.items()})
            left -= b.span
            if not left:
                return


def record_batch(batch: Batch, schema: Schema, made: Any, partition: str | None = None) -> Any:
    """A pyarrow.RecordBatch of the schema `made` around the arrays of a batch, which it keeps and does not copy."""
    pa = _arrow()
    n = len(batch.ids)
    flat = np.ascontiguousarray(batch.vectors).reshape(-1)
    if schema.vector_type is VectorType.FLOAT:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=made.field(1).type)
    else:
        vectors = pa.FixedSizeBinaryArray.from_buffers(pa.binary(schema.row_bytes), n, [None, pa.py_buffer(flat)])
    columns = [pa.array(np.ascontiguousarray(batch.ids)), vectors]
    for a in schema.attributes:
        values = batch.attributes.get(a.name)
        columns.append(pa.array(np.zeros(n, a.dtype) if values is None else np.ascontiguousarray(values)))
    if len(made) > len(columns):
        columns.append(pa.repeat(pa.scalar(_text(partition or ""), pa.utf8()), n))
    return pa.RecordBatch.from_arrays(columns, schema=made)
