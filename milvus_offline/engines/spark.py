"""Spark (4.0 or later): `spark.read.format("milvus1").option("path", "/mnt/milvus").load()`. Needs `milvus-offline[spark]`.

Register it first: `spark.dataSource.register(MilvusOffline)`. Options: `path`, `collection`, `partition` (a name or a glob),
`catalog`, `wal`, `parts` (tasks, at most; 64). Every executor must see the store's files. What is lost or in doubt is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..arrow import PARTITION, attribute_columns
from ..errors import UsageError, pip_install
from ..model import VectorType
from .table import Part, Table, open_table

try:
    from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
except ImportError as e:
    raise ImportError(f"this module needs pyspark 4.0 or newer: {pip_install('spark')} ({e})") from e

_OPTIONS = ("path", "collection", "partition", "catalog", "wal", "parts")
_TYPES = {"|i1": "tinyint", "<i2": "smallint", "<i4": "int", "<i8": "bigint", "<f4": "float", "<f8": "double"}


class MilvusOffline(DataSource):  # type: ignore[misc]
    """The live rows of one collection. Columns: `id` bigint, `vector` array<float> or binary, attributes, `partition`."""

    @classmethod
    def name(cls) -> str:
        return "milvus1"

    def _open(self) -> Table:
        unknown = [name for name in self.options if name.lower() not in _OPTIONS]
        if unknown:
            raise UsageError(f"milvus1: there is no option {', '.join(sorted(unknown))}; there are: {', '.join(_OPTIONS)}")
        path = self.options.get("path")
        if not path:
            raise UsageError("milvus1: expected .option('path', …) or .load(path), the folder of the store")
        store = {name: self.options[name] for name in ("catalog", "wal") if name in self.options}
        return open_table(path, self.options.get("collection"), self.options.get("partition"), store)

    def schema(self) -> str:
        schema = self._open().schema
        vector = "array<float>" if schema.vector_type is VectorType.FLOAT else "binary"
        names = (name.replace("`", "``") for name in attribute_columns(schema))
        attributes = [f"`{name}` {_TYPES[a.dtype]}" for name, a in zip(names, schema.attributes, strict=True)]
        return ", ".join(["id bigint", f"vector {vector}", *attributes, f"{PARTITION} string"])

    def reader(self, schema: Any) -> DataSourceReader:
        parts = self.options.get("parts", "64")
        if not parts.isdecimal() or not int(parts):
            raise UsageError(f"milvus1: parts: expected a number of tasks, 1 or more, found {parts!r}")
        table = self._open()
        table.warn()
        return _SparkReader(table, int(parts))


class _Partition(InputPartition):  # type: ignore[misc]
    def __init__(self, part: Part) -> None:
        super().__init__(part)


class _SparkReader(DataSourceReader):  # type: ignore[misc]
    def __init__(self, table: Table, wanted: int) -> None:
        self._parts = table.parts(wanted)

    def partitions(self) -> list[InputPartition]:
        return [_Partition(part) for part in self._parts]

    def read(self, partition: InputPartition) -> Iterator[Any]:
        """Record batches with the vectors as Spark has them: lists, or bytes of any length."""
        import pyarrow as pa

        part: Part = partition.value
        for batch in part.batches():
            ids, vectors, *others = batch.columns
            vectors = vectors.cast(pa.list_(pa.float32()) if part.schema.vector_type is VectorType.FLOAT else pa.binary())
            yield pa.RecordBatch.from_arrays([ids, vectors, *others], names=batch.schema.names)
