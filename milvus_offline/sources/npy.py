""".npy files as a source: an array of vectors, with the ids in the array beside it if there is one."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from ..errors import DamageError, UsageError
from ..findings import Findings
from .columns import Column, FileColumn, StripedColumn
from .files import FilesSource, assemble, find_files
from .names import EMBEDDINGS, IDS, Named
from .options import SourceOptions
from .tables import Table, file_of

SUFFIXES = (".npy",)
_IDS_BESIDE = ("ids.npy", "id.npy")
_MAX_HEADER = 1 << 16


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """A file of vectors, or a folder with some: `vectors.npy`, and its ids in `ids.npy` or `id.npy` beside it."""
    root = Path(os.path.abspath(path))
    files = [p for p in find_files(root, SUFFIXES) if p.name not in _IDS_BESIDE or p == root]
    if not files:
        raise UsageError(f"{root}: no .npy files with vectors in this folder")
    found = []
    for file in files:
        notes = Findings()
        vectors, column = array(str(file), notes)
        tables = {EMBEDDINGS: Table(replace_name(vectors, EMBEDDINGS), column)}
        beside = next((file.with_name(n) for n in _IDS_BESIDE if file.with_name(n).is_file() and file.name != n), None)
        others: list[str] = []
        if beside is not None:
            ids, ids_column = array(str(beside), notes)
            if ids.are_ids(vectors.shape[0] if vectors.shape else 0):
                tables[IDS] = Table(replace_name(ids, IDS), ids_column)
                others.append(str(beside))
        made = file_of(str(file), tables, options, what="array")
        made.findings += notes
        if others:
            made.findings.info("columns-chosen", str(file), f"the ids are read from {others[0]} beside it")
        made.files = others
        found.append(made)
    if root.is_dir() and len(found) == 1:
        found[0].collection, found[0].partition = root.name, "_default"
    return assemble("npy", root, found, options)


def replace_name(named: Named, name: str) -> Named:
    return Named(name, named.shape, named.dtype)


def array(path: str, findings: Findings) -> tuple[Named, Column]:
    """Shape and place of the array in a .npy file; that something follows it is a finding. Raises DamageError for one that is
    cut, UsageError for one of objects."""
    with open(path, "rb") as f:
        shape, dtype, at, striped = header(f, path)
        size = os.fstat(f.fileno()).st_size
    nbytes = math.prod(shape) * dtype.itemsize
    if size - at < nbytes:
        raise DamageError(path, f"expected {nbytes} bytes of an array of shape {shape}, found {size - at}", offset=at)
    if left := size - at - nbytes:
        text = f"the header says {shape} of {dtype}; the {left} bytes after these, perhaps another array, are not read"
        findings.warning("file-longer", path, text)
    name, items = os.path.basename(path), math.prod(shape[1:])
    plain = FileColumn(name, dtype.str, items, ((path, at, nbytes),))
    return Named(name, shape, dtype), StripedColumn(name, dtype.str, items, path, at, shape[0]) if striped else plain


def header(f: IO[bytes], path: str) -> tuple[tuple[int, ...], np.dtype[Any], int, bool]:
    """(shape, dtype, offset of the numbers, whether they are stored column by column) of the array that begins here."""
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(f)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, columns_first, dtype = read(f, max_header_size=_MAX_HEADER)
    except BadZipFile:
        raise
    except Exception as e:  # numpy parses the header as Python, and raises whatever that raises
        raise DamageError(path, f"not an .npy file: {e}") from e
    if dtype.hasobject:
        raise UsageError(f"{path}: an array of Python objects, which could run any code and is not read: save it as numbers")
    return shape, dtype, f.tell(), bool(columns_first and len(shape) > 1 and min(shape) > 1)
