"""Segments of which there is nothing to say, opened at the price of the system calls: a store may have 100,000 of them.

`open_segment` (opening) looks into everything that can be wrong with a segment. Here stands the one picture on which it adds
no finding and decides nothing (FORMAT §1.2, §2.2, §4.1-4.3), in the order in which that is known:

- the folder holds `NAME.rv`, `NAME.uid` and `deleted_docs`, perhaps `bloom_filter` and files with numbers for names, and
  nothing else: nothing foreign, ambiguous or missing, and no attributes;
- the three are files, and each is as long as its header says;
- `.rv` and `.uid` hold equally many rows, one at least, and their bytes are the catalog's `file_size`;
- `deleted_docs` is empty, and the catalog's `row_count`, a witness of deletions (deletes.Witness), says that all rows are live.

Whatever differs, and whatever the disk or the system refuses, is left to `open_segment`, which begins anew. An index is not
looked at by either: all vectors are there.
"""

from __future__ import annotations

import os
from collections.abc import Set

from ... import fileio
from ...model import Schema
from ..layout import BLOOM_FILTER, DELETED_DOCS, ID, IDS_SUFFIX, LENGTH, RAW_SUFFIX
from .files import Segment


class PlainTable:
    """Opens the plain segments of one table. `folder` is the table's, on no bucket; `segment_ids` are the names in it."""

    def __init__(self, folder: str, segment_ids: Set[str], schema: Schema) -> None:
        self._folder = folder
        self._segment_ids = segment_ids
        self._schema = schema
        self._row_bytes = schema.row_bytes

    def open(self, segment_id: str, state: str, row_count: int, file_size: int) -> Segment | None:
        """The segment; None where `open_segment` has to look at it. `row_count` and `file_size` are the catalog's."""
        vectors, ids = row_count * self._row_bytes, row_count * ID.itemsize
        if row_count <= 0 or file_size != vectors + ids or segment_id not in self._segment_ids:
            return None
        folder = f"{self._folder}{os.sep}{segment_id}"
        try:
            names = set(fileio.names_in(folder))
        except OSError:
            return None
        raw_name, ids_name = segment_id + RAW_SUFFIX, segment_id + IDS_SUFFIX
        names -= {raw_name, ids_name, DELETED_DOCS, BLOOM_FILTER}
        if names and not all(name.isascii() and name.isdigit() for name in names):
            return None
        folder += os.sep
        raw_path, ids_path, deleted_path = folder + raw_name, folder + ids_name, folder + DELETED_DOCS
        if _holds(raw_path, vectors) and _holds(ids_path, ids) and _holds(deleted_path, 0):
            return Segment(segment_id, state, self._schema, raw_path, ids_path, deleted_path, row_count, 0, file_size)
        return None


def _holds(path: str, payload: int) -> bool:
    """Whether this is a file with a payload of so many bytes, and its header says so, too."""
    return fileio.is_just(path, LENGTH.size + payload, LENGTH.pack(payload))
