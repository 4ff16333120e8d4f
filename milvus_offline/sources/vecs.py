"""Files of bare vectors as a source: .fvecs/.bvecs/.ivecs (rows after their dimension), .fbin/.u8bin/.i8bin (one header)."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DamageError
from ..fileio import status
from ..findings import Findings
from ..model import Array, Places
from .columns import Column, FileColumn, InFile, Read
from .files import File, FilesSource, assemble, find_files
from .options import SourceOptions
from .vectors import vector_kind

_ROWS = {".fvecs": "<f4", ".bvecs": "|u1", ".ivecs": "<i4"}
_BLOCKS = {".fbin": "<f4", ".u8bin": "|u1", ".i8bin": "|i1"}
_MOST_DIMENSIONS = 1 << 20


@dataclass(frozen=True)
class VecsColumn(InFile):
    """Rows of an int32 dimension, which is the same everywhere, and as many numbers."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        each = 4 + self.items * np.dtype(self.dtype).itemsize
        with FileColumn(self.name, "|u1", each, ((self.path, 0, status(self.path).st_size),)).open() as read_octets:

            def read(row: int, out: Array) -> Places:
                raw = np.empty((len(out), each), np.uint8)
                lost = read_octets(row, raw)
                said = np.ascontiguousarray(raw[:, :4]).view("<i4")[:, 0]
                wrong = said != self.items
                wrong[lost] = False
                if wrong.any():
                    at = int(np.flatnonzero(wrong)[0])
                    where = (row + at) * each
                    raise DamageError(
                        self.path, f"row {row + at}: expected {self.items} dimensions, found {said[at]}", offset=where
                    )
                out.view(np.uint8).reshape(len(out), each - 4)[...] = raw[:, 4:]
                return lost

            yield read


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """A file, or a folder with some. There are no ids: the target makes them, or they are row numbers."""
    root = Path(os.path.abspath(path))
    return assemble("vecs", root, [_look(p, options) for p in find_files(root, (*_ROWS, *_BLOCKS))], options)


def _look(path: Path, options: SourceOptions) -> File:
    suffix, size, findings = path.suffix.lower(), path.stat().st_size, Findings()
    with path.open("rb") as f:
        head = f.read(8)
    if suffix in _ROWS:
        column, rows = _rows(str(path), head, size, _ROWS[suffix], findings)
    else:
        column, rows = _block(str(path), head, size, _BLOCKS[suffix], findings)
    dtype = np.dtype(column.dtype)
    if suffix in (".bvecs", ".u8bin") and options.vector_type is None:  # numbers by definition
        options = options._replace(vector_type="float")
    kind = vector_kind(str(path), column.name, (rows, column.items), dtype, options, options.metric, usual=False)
    if suffix == ".ivecs":
        findings.info("converted", str(path), "an .ivecs file mostly holds the neighbours of queries, not vectors")
    findings += kind.findings
    return File(
        str(path), rows, kind.width, kind.vector_type, column, ranges=[(0, rows)], findings=findings, beyond=options.beyond
    )


def _rows(path: str, head: bytes, size: int, dtype: str, findings: Findings) -> tuple[Column, int]:
    (items,) = struct.unpack("<i", head[:4]) if len(head) >= 4 else (0,)
    each = 4 + items * np.dtype(dtype).itemsize
    if not 0 < items <= _MOST_DIMENSIONS or size < each:
        raise DamageError(path, f"the first row has {items} dimensions, which {size} bytes cannot hold", offset=0)
    if left := size % each:
        text = (
            f"expected rows of {each} bytes, found {left} more at the end: the file was cut; {size // each} whole rows are read"
        )
        findings.error("file-short", path, text, 1)
    return VecsColumn(os.path.basename(path), dtype, items, path), size // each


def _block(path: str, head: bytes, size: int, dtype: str, findings: Findings) -> tuple[Column, int]:
    rows, items = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
    each = items * np.dtype(dtype).itemsize
    if not 0 < items <= _MOST_DIMENSIONS:
        raise DamageError(path, f"the header says {items} dimensions, expected 1 to {_MOST_DIMENSIONS}", offset=4)
    there = min(rows, (size - 8) // each)
    if there < rows:
        findings.error("file-short", path, f"the header says {rows} rows, the file holds {there}: it was cut", rows - there)
    elif left := size - 8 - rows * each:
        text = (
            f"the header says {rows} rows of {items} dimensions; the {left} bytes after them are not read. If that number is "
            "wrong, rows are missing"
        )
        findings.warning("file-longer", path, text)
    return FileColumn(os.path.basename(path), dtype, items, ((path, 8, there * each),)), there
