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

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Set

from ...machine import processors
from ...model import Schema
from ..layout import BLOOM_FILTER, DELETED_DOCS, ID, IDS_SUFFIX, RAW_SUFFIX
from .files import Segment
from .probe import Probe, holds_just

_FILES = (f"*{RAW_SUFFIX}", f"*{IDS_SUFFIX}", DELETED_DOCS)
_MANY = 4000
"""Segments for which it is worth to begin a process: that takes as long as to look at a thousand."""
_MOST = 4
"""Processes that look, this one included."""

Row = tuple[str, int, int]
"""What the catalog says of a segment: its id, `row_count` and `file_size`."""


class PlainTable:
    """Opens the plain segments of one table. `folder` is the table's, on no bucket; `segment_ids` are the names in it."""

    def __init__(self, folder: str, segment_ids: Set[str], schema: Schema) -> None:
        self._folder = folder
        self._segment_ids = segment_ids
        self._schema = schema
        self._row_bytes = schema.row_bytes
        self._probes: dict[str, Probe] = {}
        """Who looks at a segment, if not this process."""

    @contextlib.contextmanager
    def helped(self, rows: Iterable[Row]) -> Iterator[None]:
        """Where very many segments are to be opened, other processes look at theirs meanwhile; `rows` are in that order."""
        asked = [(name, n * self._row_bytes, n * ID.itemsize) for name, n, size in rows if self._may_be_plain(name, n, size)]
        shares = min(_MOST, _processors(), len(asked) // _MANY)
        own = len(asked) * 4 // (5 * shares - 1) if shares > 1 else len(asked)  # it has more to do with all of them
        probes = []
        try:
            with contextlib.suppress(OSError):
                for i in range(shares - 1):
                    rest = len(asked) - own
                    share = asked[own + rest * i // (shares - 1) : own + rest * (i + 1) // (shares - 1)]
                    share = [question for question in share if question[0].isdigit() and question[0].isascii()]
                    probes.append(Probe(self._folder, _FILES, (BLOOM_FILTER,), share))
                    self._probes.update((name, probes[-1]) for name, _, _ in share)
            yield
        finally:
            self._probes.clear()
            for probe in probes:
                probe.close()

    def _may_be_plain(self, segment_id: str, row_count: int, file_size: int) -> bool:
        return file_size == row_count * (self._row_bytes + ID.itemsize) > 0 and segment_id in self._segment_ids

    def open(self, segment_id: str, state: str, row_count: int, file_size: int) -> Segment | None:
        """The segment; None where `open_segment` has to look at it. `row_count` and `file_size` are the catalog's."""
        if not self._may_be_plain(segment_id, row_count, file_size):
            return None
        folder = f"{self._folder}{os.sep}{segment_id}"
        raw_name, ids_name = segment_id + RAW_SUFFIX, segment_id + IDS_SUFFIX
        found = self._probes[segment_id].says(segment_id) if segment_id in self._probes else None
        if found is None:
            payloads = {raw_name: row_count * self._row_bytes, ids_name: row_count * ID.itemsize, DELETED_DOCS: 0}
            found = holds_just(folder, payloads, (BLOOM_FILTER,))
        if not found:
            return None
        folder += os.sep
        raw_path, ids_path, deleted_path = folder + raw_name, folder + ids_name, folder + DELETED_DOCS
        return Segment(segment_id, state, self._schema, raw_path, ids_path, deleted_path, row_count, 0, file_size)


def _processors() -> int:
    """How many processes can run at once; 1 where this program is not an interpreter that begins another one."""
    if not sys.executable or getattr(sys, "frozen", False):
        return 1
    return processors()
