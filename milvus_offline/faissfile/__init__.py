"""Reads the rows of Faiss index files with numpy alone: no Faiss, no allocation that a hostile file could choose.

    with open_index(path) as (cursor, index):   # structure only
        ...
    rows_of(...)                                 # what to read, picklable

FORMAT §4.6 gives the layouts; `index.py` names the kinds and versions.
"""

from __future__ import annotations

from .cursor import Cursor, Extent
from .index import BINARY_METRICS, FLOAT_METRICS, METRICS, ROUNDED, Index, UnknownKind, read_index
from .lists import OnDisk
from .rows import Duplicates, IdMap, Rows, decode, find_duplicates
from .runs import Runs, single_run
from .transform import ORTHONORMAL, Inverse, NotInvertible, Transform

__all__ = [
    "BINARY_METRICS",
    "FLOAT_METRICS",
    "METRICS",
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
    "read_index",
    "single_run",
]
