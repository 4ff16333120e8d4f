"""HDF5 files as an export writes them, and where in them each dataset lies.

A file without compression is a header of known size with the datasets after it, one after the other, so that rows can be
written at their places in any order; HDF5 is not even loaded for it (`hdf5frame`). The others are written by HDF5.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from .. import fileio
from .._version import __version__
from ..errors import MissingPackageError
from ..manifest import EMBEDDINGS, IDS, OutFile, dataset_names, structure_checksum, structure_in
from ..milvus1.extents import Extent
from ..milvus1.layout import LENGTH
from ..milvus1.segment.files import Segment
from ..names import printable
from ..sharing import BLOCK, clone_range
from .hdf5frame import Dataset, frame

COMPRESSIONS = ("none", "lz4", "zstd", "gzip")
CHUNK_BYTES = 1 << 20
CLOSED_SUFFIX = ".closed"


def datasets_of(file: OutFile) -> list[Dataset]:
    """`embeddings`, `ids`, then the attributes in the schema's order."""
    schema = file.schema
    names = dataset_names(schema)
    return [
        Dataset(EMBEDDINGS, (file.rows, schema.width), schema.dtype.str),
        Dataset(IDS, (file.rows,), "<i8"),
        *(Dataset(names[a.name], (file.rows,), a.dtype) for a in schema.attributes),
    ]


class Place(NamedTuple):
    """Where a dataset without compression lies: row r begins at byte `offset` + r * `row_bytes`."""

    offset: int
    row_bytes: int


def places_of(file: OutFile) -> list[Place]:
    """The places in a file without compression, in the order of `datasets_of`, and after them one for the rows' end."""
    datasets = datasets_of(file)
    at = header_bytes(datasets)
    places = []
    for dataset in datasets:
        at += _pad_bytes(at) if file.aligned else 0
        places.append(Place(at, dataset.row_bytes))
        at += file.rows * dataset.row_bytes
    return [*places, Place(at, 1)]


def _pad_bytes(at: int) -> int:
    """Bytes from `at` on up to a place `LENGTH.size` bytes after a block; those bytes come along with the clone."""
    gap = (LENGTH.size - at) % BLOCK
    return gap if gap >= LENGTH.size else gap + BLOCK


def header_bytes(datasets: Sequence[Dataset]) -> int:
    """Bytes before the first dataset: the frame's head, and some more. An interrupted export counts on them."""
    return -(-(2048 + sum(512 + 4 * len(d.name) for d in datasets)) // 4096) * 4096


def reserve(path: Path, file: OutFile) -> None:
    """A new file with room for the rows and the header."""
    with path.open("wb") as f:
        size = places_of(file)[-1].offset
        if file.aligned:
            f.truncate(size)  # its blocks come from elsewhere
        else:
            fileio.allocate(f, size)


def clone_columns(path: Path, file: OutFile, segment: Segment) -> bool:
    """Makes the rows of a new, reserved file share the blocks of a segment's files; False where that cannot be."""
    with path.open("r+b") as f:
        for place, source in zip(places_of(file)[:-1], (segment.raw_path, segment.ids_path), strict=True):
            whole = LENGTH.size + file.rows * place.row_bytes
            shared = whole - whole % BLOCK
            fd = fileio.open_read(source)
            try:
                if not clone_range(fd, 0, f.fileno(), place.offset - LENGTH.size, shared):
                    return False
                rest = bytearray(whole - shared)
                fileio.read_into(fd, memoryview(rest), shared, source)
                fileio.write_at(f.fileno(), memoryview(rest), place.offset - LENGTH.size + shared)
            finally:
                os.close(fd)
    return True


def is_reserved(path: Path, file: OutFile) -> bool:
    """Whether an earlier run made that room."""
    return path.is_file() and path.stat().st_size >= places_of(file)[-1].offset


def close_gaps(path: Path, file: OutFile, runs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Replaces a file of which only some `runs` of rows (first, number) were written by one that holds these alone; returns
    what `write_frame` does."""
    shorter = file._replace(rows=sum(rows for _, rows in runs))
    beside = path.with_name(path.name + CLOSED_SUFFIX)
    try:
        reserve(beside, shorter)
        with path.open("rb") as old, beside.open("r+b", buffering=0) as new:
            for before, after in zip(places_of(file)[:-1], places_of(shorter)[:-1], strict=True):
                new.seek(after.offset)
                for first, rows in runs:
                    at = before.offset + first * before.row_bytes
                    fileio.copy_range(old.fileno(), at, new.fileno(), rows * before.row_bytes, path)
        beside.replace(path)
        told = write_frame(path, shorter)
        fileio.sync_file(path)
        return told
    finally:
        beside.unlink(missing_ok=True)


def write_frame(path: Path, file: OutFile) -> dict[str, Any]:
    """Makes a reserved file an HDF5 file; its rows, which others may be writing meanwhile, are not touched.

    Returns what the manifest says of it: where its datasets lie, and a checksum of all that is no row.
    """
    datasets, (*places, end) = datasets_of(file), places_of(file)
    head, tail = frame(datasets, [p.offset for p in places], description(file), end.offset)
    start = header_bytes(datasets)
    assert len(head) <= start, "rows begin where their file's header is"
    with path.open("r+b", buffering=0) as f:
        fileio.write_at(f.fileno(), memoryview(head := head.ljust(start, b"\0")), 0)
        fileio.write_at(f.fileno(), memoryview(tail), end.offset)
        f.truncate(end.offset + len(tail))
    told = [
        {"name": d.name, "dtype": d.dtype, "shape": d.shape, "offset": place.offset}
        for d, place in zip(datasets, places, strict=True)
    ]
    ranges = [[0, start], [end.offset, end.offset + len(tail)]]
    return {"datasets": told, "structure": {"ranges": ranges, "checksum": structure_checksum([head, tail])}}


def structure_of(path: str | os.PathLike[str], *, chunks: bool) -> dict[str, Any]:
    """What the manifest says of a file that HDF5 has written: a checksum of all of it but for the `chunks` of its datasets."""
    rows: list[tuple[int, int]] = []
    if chunks:
        import h5py

        with h5py.File(path, "r", locking=False) as h:
            for dataset in h.values():
                if dataset.chunks:
                    dataset.id.chunk_iter(lambda chunk: rows.append((chunk.byte_offset, chunk.byte_offset + chunk.size)))
    rows = [(0, 0), *sorted(rows), (os.path.getsize(path),) * 2]
    ranges = [(end, start) for (_, end), (start, _) in pairwise(rows) if end < start]
    return {"structure": {"ranges": ranges, "checksum": structure_in(path, ranges)}}


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
            how = {"chunks": (rows, *dataset.shape[1:]), **options} if file.rows else {}
            created.append(h.create_dataset(dataset.name, dataset.shape, dataset.dtype, **how))
        describe(h, file)
        yield created, check


def shorten(made: Sequence[Any], rows: int) -> None:
    """Gives the datasets of a compressed file another number of rows: some could not be read."""
    for dataset in made:
        dataset.resize(rows, axis=0)
    made[0].file.attrs["rows"] = rows


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
        raise MissingPackageError(f"--compression {compression}", "hdf5plugin", "compress") from None
    return dict(hdf5plugin.Bitshuffle(cname="lz4") if compression == "lz4" else hdf5plugin.Bitshuffle(cname="zstd", clevel=1))


_MAX_LINKED = 2500
"""Places that one dataset can point to: the header of a message, at most 64 KiB, names them all."""
MAX_EXTENTS = 100_000
"""Places that a file points to at all: beyond them the rows are copied, as HDF5 opens a file for each."""
_PARTS = "linked"
"""Group of the datasets that a virtual one puts together."""


def write_link(path: str | os.PathLike[str], file: OutFile, extents: Sequence[Extent]) -> None:
    """A file whose datasets lie in the store's own files (HDF5 external storage): nothing is copied, they must stay.

    Where there are more extents than a dataset can name, it is a virtual one over several that are in the group `linked`.
    """
    with _create(path) as (h, _):
        embeddings, ids = datasets_of(file)
        _link(h, embeddings, [(e.vectors_path, e.vectors_at, e.rows) for e in extents])
        _link(h, ids, [(e.ids_path, e.ids_at, e.rows) for e in extents])
        describe(h, file)


def _link(h: Any, dataset: Dataset, extents: Sequence[tuple[str, int, int]]) -> None:
    """`extents`: (file, offset, rows)."""
    import h5py

    def create(name: str, part: Sequence[tuple[str, int, int]]) -> Any:
        shape = (sum(rows for _, _, rows in part), *dataset.shape[1:])
        external = [(os.path.abspath(file), at, rows * dataset.row_bytes) for file, at, rows in part]
        return h.create_dataset(name, shape, dataset.dtype, external=external)

    if len(extents) <= _MAX_LINKED:
        create(dataset.name, extents)
        return
    layout, row = h5py.VirtualLayout(dataset.shape, dataset.dtype), 0
    for number, first in enumerate(range(0, len(extents), _MAX_LINKED)):
        part = create(f"{_PARTS}/{dataset.name}/{number:05}", extents[first : first + _MAX_LINKED])
        layout[row : row + len(part)] = h5py.VirtualSource(".", part.name, part.shape, part.dtype)
        row += len(part)
    h.create_virtual_dataset(dataset.name, layout)


def describe(h: Any, file: OutFile) -> None:
    """Writes what is known about the collection into the file's attributes."""
    attributes = h.attrs
    for key, value in description(file).items():
        attributes[key] = value


def description(file: OutFile) -> dict[str, Any]:
    """A file's attributes by name."""
    schema = file.schema
    values = {
        "collection": printable(schema.name),
        "partition": printable(file.partition),
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
    return {key: value for key, value in values.items() if value is not None}


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
        with h5py.File(f, "w", locking=False) as h:
            yield h, f.check
        f.check()
