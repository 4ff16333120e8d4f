"""HDF5 files as an export writes them, and where in them each dataset lies."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, fileio
from ..errors import UsageError
from ..manifest import EMBEDDINGS, IDS, OutFile, dataset_names

COMPRESSIONS = ("none", "lz4", "zstd", "gzip")
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """One dataset of a file. `dtype` is a numpy dtype string, little endian."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize


def datasets_of(file: OutFile) -> list[Dataset]:
    """`embeddings`, `ids`, then the attributes in the schema's order."""
    schema = file.schema
    names = dataset_names(schema)
    return [
        Dataset(EMBEDDINGS, (file.rows, schema.width), schema.dtype.str),
        Dataset(IDS, (file.rows,), "<i8"),
        *(Dataset(names[a.name], (file.rows,), a.dtype) for a in schema.attributes),
    ]


@dataclass(frozen=True)
class Place:
    """Where a dataset without compression lies: row r begins at byte `offset` + r * `row_bytes`."""

    offset: int
    row_bytes: int


def reserve(path: Path, file: OutFile) -> list[Place]:
    """A new file with contiguous datasets, allocated and not filled; returns their places, in the order of `datasets_of`."""
    with _create(path) as (h, _):
        for dataset in datasets_of(file):
            _create_contiguous(h, dataset)
        describe(h, file)
        places = _places(h, file)
    with path.open("r+b") as f:
        fileio.allocate(f, path.stat().st_size)
    return places


def reserved(path: Path, file: OutFile) -> list[Place] | None:
    """The places in a file that an earlier run reserved; None when it is not there or not what is needed."""
    import h5py

    try:
        with h5py.File(path, "r") as h:
            return _places(h, file) if all(h[d.name].shape == d.shape for d in datasets_of(file)) else None
    except (OSError, KeyError):
        return None


def _places(h: Any, file: OutFile) -> list[Place]:
    return [Place(h[d.name].id.get_offset() or 0, d.row_bytes) for d in datasets_of(file)]


def _create_contiguous(h: Any, dataset: Dataset) -> Any:
    """A dataset that is allocated and never filled."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # the same rows give the same bytes
    space, kind = h5py.h5s.create_simple(dataset.shape), h5py.h5t.py_create(np.dtype(dataset.dtype))
    h5py.h5d.create(h.id, dataset.name.encode(), kind, space, properties)
    return h[dataset.name]


@contextlib.contextmanager
def create_compressed(
    path: str | os.PathLike[str], file: OutFile, compression: str
) -> Iterator[tuple[list[Any], Callable[[], None]]]:
    """A new file with compressed datasets, in the order of `datasets_of`, and a function to call after writing; see
    `_create`."""
    options = filters(compression)
    rows = min(file.rows, chunk_rows(file.schema.row_bytes))
    with _create(path) as (h, check):
        created = []
        for dataset in datasets_of(file):
            if file.rows:
                chunks = (rows, *dataset.shape[1:])
                created.append(h.create_dataset(dataset.name, dataset.shape, dataset.dtype, chunks=chunks, **options))
            else:
                created.append(_create_contiguous(h, dataset))
        describe(h, file)
        yield created, check


def chunk_rows(row_bytes: int) -> int:
    """Rows in a chunk of a compressed dataset."""
    return max(1, CHUNK_BYTES // row_bytes)


def filters(compression: str) -> dict[str, Any]:
    """Keyword arguments of h5py. Raises UsageError where a package is missing."""
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError:
        raise UsageError(
            f"--compression {compression} needs the package hdf5plugin: pip install 'milvus-offline[compress]'"
        ) from None
    return dict(hdf5plugin.Bitshuffle(cname="lz4") if compression == "lz4" else hdf5plugin.Bitshuffle(cname="zstd", clevel=1))


def write_link(path: str | os.PathLike[str], file: OutFile, segments: Sequence[Any]) -> None:
    """A file whose datasets lie in the store's own files (HDF5 external storage): nothing is copied, they must stay."""
    with _create(path) as (h, _):
        for dataset, attribute in zip(datasets_of(file), ("raw_path", "ids_path"), strict=True):
            external = [(os.path.abspath(getattr(s, attribute)), 8, s.stored * dataset.row_bytes) for s in segments]
            h.create_dataset(dataset.name, dataset.shape, dataset.dtype, external=external)
        describe(h, file)


def describe(h: Any, file: OutFile) -> None:
    """Writes what is known about the collection into the file's attributes."""
    schema = file.schema
    values = {
        "collection": fileio.printable(schema.name),
        "partition": fileio.printable(file.partition),
        "dimension": schema.dimension,
        "vector_type": schema.vector_type.value,
        "metric_type": schema.metric_type,
        "index_type": schema.index.type,
        "index_params": json.dumps(dict(schema.index.params)),
        "index_file_size": schema.index_file_size,
        "auto_id": schema.auto_id,
        "rows": file.rows,
        "salvage": file.salvage,
        "written_by": f"milvus_offline {__version__}",
    }
    for key, value in values.items():
        if value is not None:
            h.attrs[key] = value


class _PatientFile(io.FileIO):
    """A file that keeps its first failure and drops what is written after it.

    HDF5 cannot live with a write that fails: closing the file then fails too, and the process crashes at its end.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:])
        except OSError as e:
            self.failure = e
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as e:
            self.failure = self.failure or e
            return size or 0

    def check(self) -> None:
        """Raises the first failure."""
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def _create(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A new HDF5 file, and a function that raises OSError when something could not be written; it is called at the end too."""
    import h5py

    with _PatientFile(path, "w+") as f:
        with h5py.File(f, "w") as h:
            yield h, f.check
        f.check()
