"""Segments of a new store that share their blocks with the source's: the usual way to repair a store on a full disk.

Whole `.rv` and `.uid` files that are as a server writes them, without deleted rows, are cloned; their vectors are not read. All
else is written anew.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...guard import explained
from ...milvus1.extents import whole_segment
from ...milvus1.layout import BLOOM_FILTER, DELETED_DOCS, ID, IDS_SUFFIX, LENGTH, RAW_SUFFIX
from ...milvus1.segment.bloom import write_new_filter
from ...milvus1.segment.files import Segment
from ...milvus1.segment.writing import write_deleted
from ...model import Piece
from ...sharing import clone_file
from ...transfer import Advance, Result, Task
from ..slices import Slice, cut_rows

_IDS = 1 << 17
"""Ids that are read in one go."""
_counting = threading.Lock()
"""One task counts while another waits for the disk: two at once would hand the interpreter to and fro for twice as long."""


def groups(pieces: Sequence[Piece], rows_each: int, *, clone: bool) -> list[list[Slice]]:
    """What each new segment holds, in the order of the pieces; with `clone` whole segments are groups of their own."""
    if not clone:
        return cut_rows(pieces, rows_each)
    found: list[list[Slice]] = []
    rest: list[Piece] = []
    for piece in pieces:
        if whole_segment(piece) is not None:
            found += [*cut_rows(rest, rows_each), [Slice(piece, 0, piece.rows)]]
            rest = []
        else:
            rest.append(piece)
    return found + cut_rows(rest, rows_each)


@dataclass(frozen=True)
class CloneSegment:
    """Makes one segment folder of clones, with a bloom filter of its own (§4.1-4.4). Where it cannot, `otherwise` is done."""

    id: str
    folder: str
    segment_id: str
    rows: int
    bytes: int
    segment: Segment
    otherwise: Task

    def run(self, advance: Advance) -> Result:
        folder = Path(self.folder)
        with explained("write", folder):
            folder.mkdir(parents=True, exist_ok=True)
            clones = [folder / (self.segment_id + suffix) for suffix in (RAW_SUFFIX, IDS_SUFFIX)]
            for source, target in zip((self.segment.raw_path, self.segment.ids_path), clones, strict=True):
                if not clone_file(source, target) or os.path.getsize(target) != os.path.getsize(source):
                    return self.otherwise.run(advance)
            with (folder / BLOOM_FILTER).open("wb") as bloom, tempfile.TemporaryFile(dir=folder) as scratch, _counting:
                write_new_filter(bloom, self._ids(clones[1]), scratch)
            write_deleted(folder, ())
            for path in (folder / BLOOM_FILTER, folder / DELETED_DOCS, *clones):  # together: the first one waits for most of it
                fileio.sync_file(path)
            fileio.sync_folder(folder)
        advance(self.rows, self.bytes)
        return {"file_size": self.segment.bytes, "rows": self.rows}

    def _ids(self, path: Path) -> Iterator[npt.NDArray[np.int64]]:
        fd = fileio.open_read(path)
        try:
            for first in range(0, self.rows, _IDS):
                ids = np.empty(min(_IDS, self.rows - first), ID)
                fileio.read_into(fd, ids.view(np.uint8).data, LENGTH.size + first * ID.itemsize, path)
                yield ids
        finally:
            os.close(fd)
