"""Writing the files of a new segment (FORMAT §4.1-4.3, §13)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...model import Array, Attribute
from ..layout import ATTRIBUTE_SUFFIX, DELETED_DOCS, ID, IDS_SUFFIX, LENGTH, OFFSET, RAW_SUFFIX


class SegmentWriter:
    """Writes `.rv`, `.uid`, `.ra` and `deleted_docs` of a new segment batch by batch (§4.1-4.3, §13).

    The length headers are written by `close`, so that a torn segment is recognised as such. The bloom filter is not this
    class' business.
    """

    def __init__(self, folder: Path, segment_id: str, attributes: Sequence[Attribute] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rows = 0
        self.payload_bytes = 0
        self._attributes = attributes
        self._handed_over = 0
        names = [segment_id + RAW_SUFFIX, segment_id + IDS_SUFFIX, *(a.name + ATTRIBUTE_SUFFIX for a in attributes)]
        self._files: list[BinaryIO] = [(folder / n).open("wb", buffering=0) for n in names]
        for f in self._files:
            f.write(bytes(LENGTH.size))

    def append(self, ids: npt.NDArray[np.int64], vectors: Array, attributes: Mapping[str, Array] | None = None) -> None:
        """Adds rows: `ids` int64 [n], `vectors` float32 [n, d] or uint8 [n, d/8], `attributes` name -> [n]."""
        arrays = [vectors, ids.astype(ID, copy=False)]
        arrays += [(attributes or {})[a.name].astype(a.dtype, copy=False) for a in self._attributes]
        for f, array in zip(self._files, arrays, strict=True):
            _write_all(f, np.ascontiguousarray(array))
        self.rows += len(ids)
        self.payload_bytes += vectors.nbytes + ids.nbytes
        self._begin_writeback()

    def _begin_writeback(self) -> None:
        raw = self._files[0]
        position = os.lseek(raw.fileno(), 0, os.SEEK_CUR)
        if position - self._handed_over >= fileio.WRITEBACK_BYTES:
            fileio.begin_writeback(raw.fileno(), self._handed_over, position - self._handed_over)
            self._handed_over = position

    def close(self, deleted: npt.NDArray[np.int32] | Sequence[int] = (), *, sync: bool = False) -> None:
        """Writes the headers and `deleted_docs` with the given row offsets."""
        for f in self._files:
            size = f.tell() - LENGTH.size
            f.seek(0)
            f.write(LENGTH.pack(size))
            if sync:
                fileio.sync(f.fileno())
            f.close()
        write_deleted(self.folder, deleted, sync=sync)


def write_deleted(folder: Path, offsets: npt.NDArray[np.int32] | Sequence[int], *, sync: bool = False) -> None:
    """Writes `deleted_docs` with row offsets (§4.3)."""
    entries = np.asarray(offsets, OFFSET)
    with (folder / DELETED_DOCS).open("wb") as f:
        f.write(LENGTH.pack(entries.nbytes))
        f.write(entries.tobytes())
        if sync:
            f.flush()
            fileio.sync(f.fileno())


def _write_all(f: BinaryIO, array: Array) -> None:
    view = array.reshape(-1).view(np.uint8).data
    while len(view):
        view = view[f.write(view) :]
