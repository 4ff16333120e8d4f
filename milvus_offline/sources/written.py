"""HDF5 files of an export, as its manifest describes them: rows that lie there as they are are read without HDF5.

HDF5 believes what a file says of itself: one damaged byte of that can end the process, or keep it for ever.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import fileio
from ..errors import DamageError, UsageError
from ..manifest import EMBEDDINGS, IDS, dataset_names, structure_in
from ..model import Schema, VectorType
from ..watch import in_words
from .columns import FileColumn
from .files import File


class _Dataset(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def items(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def end(self) -> int:
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


def says_where(entry: Mapping[str, Any], path: str) -> bool:
    """Whether `entry` of a manifest says where the rows of the file lie (not of compressed and linked files, nor in earlier
    versions), and the file has the length that it was written with."""
    return "datasets" in entry and fileio.status(path).st_size == entry["bytes"]


def require_disk(path: str, entry: Mapping[str, Any]) -> None:
    """Raises UsageError for a file in a bucket that HDF5 would have to read."""
    if path.endswith(".h5") and "datasets" not in entry and fileio.is_remote(path):
        raise UsageError(
            f"{path}: HDF5 files that are compressed or linked, or that an earlier version wrote, are not read from a bucket; "
            "copy this export to a disk first"
        )


def written_file(path: str, entry: Mapping[str, Any], schema: Schema | None) -> File:
    """The file that `entry` describes. Without a schema any vectors will do.

    Raises DamageError where it holds others, KeyError or ValueError where a manifest says no such thing.
    """
    there, rows = _datasets(path, entry), int(entry["rows"])
    names, fields = (dataset_names(schema), schema.attributes) if schema else ({}, ())
    vectors = there[EMBEDDINGS]
    vector_type = schema.vector_type if schema else VectorType.BINARY if vectors.dtype.itemsize == 1 else VectorType.FLOAT
    width = schema.width if schema else vectors.items
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        EMBEDDINGS: (vector_type.dtype.str, (rows, width)),
        IDS: ("<i8", (rows,)),
        **{names[a.name]: (np.dtype(a.dtype).str, (rows,)) for a in fields},
    }
    for name, (dtype, shape) in expected.items():
        found = there[name].dtype.str, there[name].shape
        if found != (dtype, shape):
            raise DamageError(path, f"{name!r}: expected {shape} of {dtype}, the manifest says {found[1]} of {found[0]}")
    columns = {name: FileColumn(name, d.dtype.str, d.items, ((path, d.offset, d.end - d.offset),)) for name, d in there.items()}
    attributes = tuple((a.name, columns[names[a.name]]) for a in fields)
    return File(path, rows, width, vector_type, columns[EMBEDDINGS], columns[IDS], ranges=[(0, rows)], attributes=attributes)


def structure_differs(path: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with the bytes that tell HDF5 what the file holds; None where they are as they were written, and where
    that is not known: of earlier versions, and of a file that has another length by now.

    Raises OSError where the file cannot be opened, ValueError where a manifest says no such thing.
    """
    if "structure" not in entry or fileio.status(path).st_size != entry["bytes"]:
        return None
    with _plain(path):
        ranges = [(int(a), int(b)) for a, b in entry["structure"]["ranges"]]
        expected = entry["structure"]["checksum"]
        if any(not 0 <= a <= b <= entry["bytes"] for a, b in ranges):
            raise ValueError(f"{ranges} do not lie in {path}")
    try:
        if structure_in(path, ranges) == expected:
            return None
        wrong = "are not those that were written"
    except DamageError as e:
        wrong = f"cannot be read ({e.reason})"
    done = "its rows are read without it, where the manifest says that they lie" if "datasets" in entry else "it was not asked"
    text = f"which tell HDF5 what the file holds, {wrong}. HDF5 may refuse this file, or fail over it"
    return f"{in_words(ranges)}, {text}; {done}"


def _datasets(path: str, entry: Mapping[str, Any]) -> dict[str, _Dataset]:
    there = {}
    with _plain(path):
        for d in entry["datasets"]:
            dataset = _Dataset(np.dtype(str(d["dtype"])), tuple(map(int, d["shape"])), int(d["offset"]))
            if dataset.offset < 0 or min(dataset.shape) < 0 or dataset.end > int(entry["bytes"]):
                raise ValueError(f"{d['name']!r} does not lie in {path}")
            there[str(d["name"])] = dataset
    return there


@contextlib.contextmanager
def _plain(path: str) -> Iterator[None]:
    """Whatever is wrong with the values of a manifest is a ValueError."""
    try:
        yield
    except (KeyError, TypeError, OverflowError) as e:
        raise ValueError(f"no description of {path}: {e!r}") from e
