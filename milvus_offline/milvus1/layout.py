"""Where Milvus 0.5-1.1.1 puts things, and the shapes of its structures (FORMAT §1, §2, §4, §5). All little endian, packed.

| since | change                                                                    |
|-------|---------------------------------------------------------------------------|
| 0.5   | raw vectors are Faiss IDMap files under tables/<table>/<date>/ (§8)        |
| 0.6   | partitions                                                                |
| 0.7   | segments (.rv, .uid, deleted_docs, bloom_filter), WAL, Environment table   |
| 0.9   | Fields table, attributes (.ra) of hybrid collections, WAL types shifted    |
| 0.10  | secondary roots are gone                                                  |
| 1.1   | bloom filter with a header, deletes with a partition tag                   |
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np

DB = "db"
TABLES = "tables"
META = "meta.sqlite"
WAL = "wal"
CONFIG = "server_config.yaml"
RAW_SUFFIX = ".rv"
IDS_SUFFIX = ".uid"
ATTRIBUTE_SUFFIX = ".ra"
DELETED_DOCS = "deleted_docs"
BLOOM_FILTER = "bloom_filter"
WAL_META = "mxlog.meta"
WAL_SUFFIX = ".wal"

MEMORY_SEGMENT_BYTES = 134217728
"""Vector bytes at which the server begins a new segment in memory (§5.7)."""

LENGTH = struct.Struct("<Q")
"""Header of .rv, .uid, deleted_docs and .ra: payload bytes (§4.1-4.3, §4.5)."""

ID = np.dtype("<i8")
OFFSET = np.dtype("<i4")

WAL_HEADER = struct.Struct("<QBHHII")
"""LSN, type, length of collection name, length of tag, number of ids, data bytes (§5.4)."""

WAL_META_STRUCT = struct.Struct("<QQQ")


class TableState(IntEnum):
    """`Tables.state` (§2.2)."""

    NORMAL = 0
    TO_DELETE = 1


class FileType(IntEnum):
    """`TableFiles.file_type` (§2.4)."""

    NEW = 0
    RAW = 1
    TO_INDEX = 2
    INDEX = 3
    TO_DELETE = 4
    NEW_MERGE = 5
    NEW_INDEX = 6
    BACKUP = 7


class MetricType(IntEnum):
    """`Tables.metric_type` (§2.5). From HAMMING on the vectors are binary."""

    L2 = 1
    IP = 2
    HAMMING = 3
    JACCARD = 4
    TANIMOTO = 5
    SUBSTRUCTURE = 6
    SUPERSTRUCTURE = 7


class EngineType(IntEnum):
    """`Tables.engine_type`, `TableFiles.engine_type` (§2.5)."""

    INVALID = 0
    FAISS_IDMAP = 1
    FAISS_IVFFLAT = 2
    FAISS_IVFSQ8 = 3
    NSG_MIX = 4
    FAISS_IVFSQ8H = 5
    FAISS_PQ = 6
    SPTAG_KDT = 7
    SPTAG_BKT = 8
    FAISS_BIN_IDMAP = 9
    FAISS_BIN_IVFFLAT = 10
    HNSW = 11
    ANNOY = 12


INDEX_NAMES = {
    EngineType.INVALID: "INVALID",
    EngineType.FAISS_IDMAP: "FLAT",
    EngineType.FAISS_IVFFLAT: "IVF_FLAT",
    EngineType.FAISS_IVFSQ8: "IVF_SQ8",
    EngineType.NSG_MIX: "RNSG",
    EngineType.FAISS_IVFSQ8H: "IVF_SQ8H",
    EngineType.FAISS_PQ: "IVF_PQ",
    EngineType.SPTAG_KDT: "SPTAG_KDT",
    EngineType.SPTAG_BKT: "SPTAG_BKT",
    EngineType.FAISS_BIN_IDMAP: "BIN_FLAT",
    EngineType.FAISS_BIN_IVFFLAT: "BIN_IVF_FLAT",
    EngineType.HNSW: "HNSW",
    EngineType.ANNOY: "ANNOY",
}
"""The names that the clients of 1.x use for the engine types."""


class FieldType(IntEnum):
    """`Fields.field_type` (§2.2), hybrid collections of 0.9-1.0."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    STRING = 20
    BOOL = 30
    FLOAT = 40
    DOUBLE = 41
    VECTOR = 100
    UNKNOWN = 9999


ATTRIBUTE_DTYPES: dict[int, np.dtype[Any]] = {
    FieldType.INT8: np.dtype("i1"),
    FieldType.INT16: np.dtype("<i2"),
    FieldType.INT32: np.dtype("<i4"),
    FieldType.INT64: np.dtype("<i8"),
    FieldType.FLOAT: np.dtype("<f4"),
    FieldType.DOUBLE: np.dtype("<f8"),
}
"""What a `.ra` file holds per row (§4.5)."""

FLAG_AUTO_ID = 1
FLAG_USER_ID = 2
MAX_DIMENSION = 32768
