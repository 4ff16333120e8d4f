""".npz files as a source: arrays by name in a zip archive, stored as they are or compressed."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DamageError, UsageError
from ..model import NOWHERE, Array, Places
from .columns import Column, FileColumn, InFile, Read, StripedColumn
from .files import FilesSource, assemble, find_files
from .names import Named
from .npy import header
from .options import SourceOptions
from .tables import Table, file_of

_LOCAL = struct.Struct("<4s22xHH")
"""Signature, length of the name, length of the extra field of a member's own header."""
_SPREAD = (
    "compressed and stored column by column (Fortran order): save it again with numpy.savez, or with "
    "numpy.ascontiguousarray first"
)
"""Each of its rows is spread over the whole array."""
_BAD = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError)


@dataclass(frozen=True)
class PackedColumn(InFile):
    """An array that is compressed in the archive: read from its beginning on, wherever a piece starts."""

    at: int
    """Bytes before its first number."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        with contextlib.ExitStack() as stack:
            stream: IO[bytes] | None = None
            done = 0

            def read(row: int, out: Array) -> Places:
                nonlocal stream, done
                with _damage(self.path):
                    start = self.at + row * self.items * out.dtype.itemsize
                    if stream is None or start < done:
                        stream, done = stack.enter_context(zipfile.ZipFile(self.path)).open(self.name + ".npy"), 0
                    while done < start:
                        done += len(stream.read(min(start - done, 1 << 20))) or _short(self.path, self.name)
                    raw = out.reshape(-1).view(np.uint8).data
                    while len(raw):
                        piece = stream.read(len(raw))
                        n = len(piece) or _short(self.path, self.name)
                        raw[:n] = piece
                        raw, done = raw[n:], done + n
                return NOWHERE

            yield read


@dataclass(frozen=True)
class StoredColumn(InFile):
    """An array that is stored as it is, read as `plain`. After its last row, it is held against the checksum of the archive, as
    numpy does."""

    plain: Column
    rows: int

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        with self.plain.open() as plain:
            whole = True

            def read(row: int, out: Array) -> Places:
                nonlocal whole
                lost = plain(row, out)
                whole = whole and not len(lost)
                if row + len(out) == self.rows and whole:
                    with _damage(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.name + ".npy") as member:
                        while member.read(1 << 20):
                            pass
                return lost

            yield read


def _short(path: str, name: str) -> int:
    raise DamageError(path, f"{name}: the array ends before its last row")


@contextlib.contextmanager
def _damage(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise
    except _BAD as e:
        raise DamageError(path, f"cannot be read as a zip archive: {e}") from e


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """An archive, or a folder with some; which arrays are vectors and ids is found as in HDF5."""
    root = Path(os.path.abspath(path))
    files = [file_of(str(p), _arrays(str(p)), options, what="array") for p in find_files(root, (".npz",))]
    return assemble("npz", root, files, options)


def _arrays(path: str) -> dict[str, Table]:
    result: dict[str, Table] = {}
    with _damage(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist()[:1000]:
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                try:
                    shape, dtype, at, striped = header(member, f"{path}: {name}")
                except UsageError:  # it may be one of labels or texts that no one needs
                    continue
            nbytes = math.prod(shape) * dtype.itemsize
            if info.file_size < at + nbytes:
                raise DamageError(
                    path, f"{name}: expected {nbytes} bytes of an array of shape {shape}, found {info.file_size - at}"
                )
            column = _column(path, info, name, shape, dtype, at, striped)
            spread = striped and isinstance(column, PackedColumn)
            result[name] = Table(Named(name, shape, dtype), column, _SPREAD if spread else None)
    if not result:
        raise DamageError(path, "holds no arrays of numbers (.npy): expected an archive of numpy.savez")
    return result


def _column(  # many: what the header of an array says, field by field
    path: str, info: zipfile.ZipInfo, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], at: int, striped: bool
) -> Column:
    items = math.prod(shape[1:])
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return PackedColumn(name, dtype.str, items, path, at)
    nbytes = math.prod(shape) * dtype.itemsize
    with open(path, "rb") as f:
        f.seek(info.header_offset)
        _, name_bytes, extra_bytes = _LOCAL.unpack(f.read(_LOCAL.size))
    offset = info.header_offset + _LOCAL.size + name_bytes + extra_bytes + at
    if offset + nbytes > os.path.getsize(path):
        raise DamageError(path, f"{name}: needs {nbytes} bytes, the file ends before", offset=offset)
    rows = shape[0] if shape else 0
    plain: Column = FileColumn(name, dtype.str, items, ((path, offset, nbytes),))
    if striped:
        plain = StripedColumn(name, dtype.str, items, path, offset, rows)
    return StoredColumn(name, dtype.str, items, path, plain, rows)
