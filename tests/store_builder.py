"""Builds Milvus 1.x stores with the project's own segment writer and a catalog as server 1.1.1 makes it.

builder = StoreBuilder(tmp_path / "store")
table = builder.collection("faces", dimension=16)
builder.segment(table, ids, vectors, deleted=[3, 4])
builder.close()
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milvus_offline.milvus1.layout import FileType, MetricType
from milvus_offline.milvus1.segment import SegmentWriter
from milvus_offline.model import Array, VectorType

SCHEMA = """
CREATE TABLE Environment(global_lsn INTEGER DEFAULT (0) NOT NULL);
CREATE TABLE Tables(id INTEGER PRIMARY KEY NOT NULL,table_id TEXT UNIQUE NOT NULL,state INTEGER NOT NULL,
  dimension INTEGER NOT NULL,created_on INTEGER NOT NULL,flag INTEGER DEFAULT (0) NOT NULL,index_file_size INTEGER NOT NULL,
  engine_type INTEGER NOT NULL,index_params TEXT NOT NULL,metric_type INTEGER NOT NULL,owner_table TEXT DEFAULT ('') NOT NULL,
  partition_tag TEXT DEFAULT ('') NOT NULL,version TEXT DEFAULT ('1.1.1') NOT NULL,flush_lsn INTEGER NOT NULL);
CREATE TABLE TableFiles(id INTEGER PRIMARY KEY NOT NULL,table_id TEXT NOT NULL,segment_id TEXT DEFAULT ('') NOT NULL,
  engine_type INTEGER NOT NULL,file_id TEXT NOT NULL,file_type INTEGER NOT NULL,file_size INTEGER DEFAULT (0) NOT NULL,
  row_count INTEGER DEFAULT (0) NOT NULL,updated_time INTEGER NOT NULL,created_on INTEGER NOT NULL,date INTEGER NOT NULL,
  flush_lsn INTEGER NOT NULL);
CREATE TABLE Fields(collection_id TEXT NOT NULL,field_name TEXT NOT NULL,field_type INTEGER NOT NULL,
  field_params TEXT NOT NULL);
"""
_FIRST_ID = 1_600_000_000_000_000_000


class StoreBuilder:
    """Writes the store below `root`; `close` makes the catalog complete."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tables = root / "db" / "tables"
        self.tables.mkdir(parents=True)
        self.meta = root / "db" / "meta.sqlite"
        self._db = sqlite3.connect(self.meta, isolation_level=None)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(SCHEMA)
        self._db.execute("INSERT INTO Environment VALUES(0)")
        self._db.execute("BEGIN")
        self._schemas: dict[str, tuple[int, VectorType]] = {}
        self._last = _FIRST_ID

    def _next(self) -> int:
        self._last += 1000
        return self._last

    def execute(self, sql: str, *values: Any) -> None:
        """Changes the catalog by hand."""
        self._db.execute(sql, values)

    def collection(self, table_id: Any, dimension: int = 8, metric: MetricType = MetricType.L2, **columns: Any) -> Any:
        """A row of `Tables`; returns `table_id`. `columns` override what a server would put there."""
        vector_type = VectorType.BINARY if metric >= MetricType.HAMMING else VectorType.FLOAT
        self._schemas[table_id] = (dimension, vector_type)
        row = {
            "table_id": table_id,
            "state": 0,
            "dimension": dimension,
            "created_on": self._next() // 1000,
            "flag": 2,
            "index_file_size": 1 << 30,
            "engine_type": 9 if vector_type is VectorType.BINARY else 1,
            "index_params": "{}",
            "metric_type": int(metric),
            "flush_lsn": 0,
            **columns,
        }
        self._insert("Tables", row)
        return table_id

    def partition(self, owner: str, tag: Any, **columns: Any) -> str:
        """A partition of a collection; returns its table_id."""
        dimension, vector_type = self._schemas[owner]
        metric = MetricType.HAMMING if vector_type is VectorType.BINARY else MetricType.L2
        name = str(self._next())
        return self.collection(name, dimension, metric, owner_table=owner, partition_tag=tag, **columns)

    def segment(self, table_id: str, ids: Array, vectors: Array, deleted: Array | Sequence[int] = (), **columns: Any) -> Path:
        """Writes a segment's files and its catalog row; returns its folder."""
        segment_id = str(self._next())
        writer = SegmentWriter(self.tables / table_id / segment_id, segment_id)
        writer.append(ids, vectors)
        writer.close(deleted)
        self.file_row(table_id, segment_id, len(ids) - len(np.unique(np.asarray(deleted))), **columns)
        return writer.folder

    def file_row(self, table_id: Any, segment_id: Any, rows: int = 0, **columns: Any) -> None:
        """A row of `TableFiles` for a raw segment."""
        row = {
            "table_id": table_id,
            "segment_id": segment_id,
            "engine_type": 1,
            "file_id": segment_id,
            "file_type": int(FileType.RAW),
            "file_size": 0,
            "row_count": rows,
            "updated_time": self._last // 1000,
            "created_on": self._last // 1000,
            "date": 0,
            "flush_lsn": 0,
            **columns,
        }
        self._insert("TableFiles", row)

    def _insert(self, table: str, row: dict[str, Any]) -> None:
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))

    def close(self) -> Path:
        """Commits the catalog; returns the store's root."""
        self._db.execute("COMMIT")
        self._db.close()
        return self.root


def some_rows(count: int, dimension: int = 8, seed: int = 1, *, binary: bool = False) -> tuple[Array, Array]:
    """Random ids (int64 [count], all different) and vectors."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(count, dtype=np.int64)) * 7 - 3 * seed
    if binary:
        return ids, rng.integers(0, 256, (count, dimension // 8), np.uint8)
    return ids, rng.standard_normal((count, dimension), np.float32)
