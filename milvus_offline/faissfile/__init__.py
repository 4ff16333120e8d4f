"""Reads the rows of Faiss index files with numpy alone: no Faiss, no allocation that a hostile file could choose.

    index = read_index(Cursor(fd, path, 0, size))   # structure only
    rows_of(index, path)                            # what to read, picklable

FORMAT §4.6 gives the layouts; `index.py` names the kinds and versions.
"""

from __future__ import annotations

from .cursor import Cursor, Extent
from .index import Index, UnknownKind, read_index
from .lists import OnDisk
from .numbers import ROUNDED, metric_name, milvus_metric, milvus_metrics
from .rows import Duplicates, IdMap, Rows, decode, find_duplicates, rows_of
from .runs import Runs, single_run
from .transform import ORTHONORMAL, Inverse, NotInvertible, Transform

__all__ = [
    "ORTHONORMAL",
    "ROUNDED",
    "Cursor",
    "Duplicates",
    "Extent",
    "IdMap",
    "Index",
    "Inverse",
    "NotInvertible",
    "OnDisk",
    "Rows",
    "Runs",
    "Transform",
    "UnknownKind",
    "decode",
    "find_duplicates",
    "metric_name",
    "milvus_metric",
    "milvus_metrics",
    "read_index",
    "rows_of",
    "single_run",
]
