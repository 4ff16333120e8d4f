"""HDF5 files as a source: MilvusDM's layout, and whatever else holds vectors in one dataset and ids in another.

    one file                    a collection named by option, by its attribute `collection`, or by the file
    a folder of .h5             a collection named as the folder, each file a partition
    a folder of such folders    a collection each (what MilvusDM and our export write)

`None.h5` is the default partition, as MilvusDM writes it. `embeddings` is float (n, d), or uint8 (n, d/8) for binary vectors;
`ids` is an integer (n). Contiguous datasets of the right type are read at their offset in the file, others through h5py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamageError, MilvusOfflineError, UsageError
from ..fileio import open_read, read_into, status
from ..findings import Findings
from ..model import (
    BATCH_BYTES,
    DEFAULT_PARTITION,
    Array,
    Batch,
    Finding,
    Salvaged,
    Schema,
    SourceCollection,
    SourcePartition,
    VectorType,
    buffer,
)

SUFFIXES = (".h5", ".hdf5", ".he5")
MAGIC = b"\x89HDF\r\n\x1a\n"
PIECE_BYTES = 256 << 20
MAX_CHUNK = 256 << 20
_REGISTERED_FILTER = 256
"""From this number on a filter is not HDF5's own."""
_DEPTH = 4


@dataclass(frozen=True)
class Column:
    """A dataset: its name, and where its bytes lie if they can be read without h5py."""

    name: str
    dtype: str
    offset: int | None


@dataclass(frozen=True)
class Hdf5Piece:
    """Rows first..first+rows-1 of a file. Without an ids column the ids are `first_id` + row number."""

    id: str
    path: str
    first: int
    rows: int
    width: int
    vectors: Column
    ids: Column | None
    first_id: int = 0
    attributes: tuple[tuple[str, Column], ...] = ()
    """(field, column) of a hybrid collection's attributes."""

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        dtype = np.dtype("u1") if self.vectors.dtype == "|u1" else np.dtype("<f4")
        step = max(1, min(max_bytes // max(1, self.width * dtype.itemsize), self.rows - start))
        vectors = buffer((step, self.width), dtype)
        ids = np.empty(step, np.int64)
        values = {field: np.empty(step, column.dtype) for field, column in self.attributes}
        with self._reader() as read:
            for at in range(start, self.rows, step):
                n = min(step, self.rows - at)
                row = self.first + at
                read(self.vectors, row, vectors[:n])
                if self.ids:
                    read(self.ids, row, ids[:n])
                else:
                    ids[:n] = np.arange(self.first_id + row, self.first_id + row + n)
                for field, column in self.attributes:
                    read(column, row, values[field][:n])
                yield Batch(ids[:n], vectors[:n], {field: column[:n] for field, column in values.items()})

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Any]:
        columns = [c for c in (self.vectors, self.ids, *(c for _, c in self.attributes)) if c]
        with contextlib.ExitStack() as stack:
            fd = -1
            if any(c.offset is not None for c in columns):
                fd = open_read(self.path)
                stack.callback(os.close, fd)
            datasets: dict[str, Any] = {}
            if any(c.offset is None for c in columns):
                h = stack.enter_context(open_file(self.path))
                datasets = {c.name: _readable(h[c.name], self.path) for c in columns if c.offset is None}

            def read(column: Column, row: int, out: Array) -> None:
                if column.offset is not None:
                    raw = out.reshape(-1).view(np.uint8).data
                    read_into(fd, raw, column.offset + row * (raw.nbytes // max(1, len(out))), self.path)
                    return
                with damage(self.path):
                    found = datasets[column.name][row : row + len(out)].reshape(out.shape)
                if found.dtype.kind == "u" and out.dtype == np.int64 and len(found) and found.max() > np.iinfo(np.int64).max:
                    raise DamageError(self.path, f"{column.name}: an id is over 2**63 - 1, near row {row}")
                out[...] = found

            yield read


@dataclass
class Hdf5Source:
    """See model.Source."""

    path: str
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    files: Sequence[str]
    options: str
    kind: str = "hdf5"
    salvage: Sequence[Salvaged] = field(default_factory=tuple)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "files": len(self.files)}

    def fingerprint(self) -> str:
        """A digest of the options and of every file's name, size and time of change."""
        return fingerprint_files(self.files, self.options)


def fingerprint_files(files: Sequence[str], options: str) -> str:
    """A digest that changes with `options`, and with the path, size or time of change of a file."""
    digest = hashlib.sha256(options.encode())
    for path in files:
        found = status(path)
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_hdf5(
    path: str | os.PathLike[str],
    *,
    collection: str | None = None,
    partition: str | None = None,
    metric: str | None = None,
    embeddings: str = "embeddings",
    ids: str = "ids",
    row_ids: bool = False,
) -> Hdf5Source:
    """A file, or a folder of files. `embeddings` and `ids` name the datasets; `row_ids`: row numbers where there are no ids.

    Row numbers run through all partitions of a collection. `collection` puts all files into that collection, `partition` a
    single file into that partition. Raises DamageError for a file that is no sound HDF5 file or lacks the dataset,
    UsageError when the files of one collection do not fit together.
    """
    root = Path(os.path.abspath(path))
    files = _find(root)
    if partition is not None and len(files) > 1:
        raise UsageError(f"{root}: holds {len(files)} files: a partition can be named for a single file only")
    findings = Findings()
    found: dict[str, list[_File]] = {}
    for f in files:
        looked = look(f, embeddings, ids)
        findings += looked.findings
        single = f == root
        name = collection or looked.described.get("collection") or (f.stem if single else f.parent.name)
        tag = partition or looked.described.get("partition") or (DEFAULT_PARTITION if single or f.stem == "None" else f.stem)
        looked.partition = str(tag)
        found.setdefault(str(name), []).append(looked)
    idless = {n for n, fs in found.items() if any(f.ids is None for f in fs)}
    for name in sorted(idless):
        if any(f.ids for f in found[name]):
            raise UsageError(f"{root}: collection {name!r}: some of its files have ids ({ids!r}), some do not: load them apart")
        text = f"no dataset {ids!r}: ids are row numbers" if row_ids else f"no dataset {ids!r}: the target makes the ids"
        findings.info("no-ids", name, text)
    collections = [_collection(name, fs, metric, row_ids or name not in idless) for name, fs in found.items()]
    options = repr((collection, partition, metric, embeddings, ids, row_ids))
    return Hdf5Source(str(root), collections, findings, [str(f) for f in files], options)


def _find(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        if len(Path(folder).relative_to(root).parts) >= _DEPTH:
            folders.clear()
        found += [Path(folder) / n for n in sorted(names) if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    if not found:
        raise UsageError(f"{root}: no HDF5 files in this folder")
    return found


def _collection(name: str, files: list[_File], metric: str | None, has_ids: bool) -> SourceCollection:
    first = files[0]
    partitions: dict[str, list[Hdf5Piece]] = {}
    row = 0
    for f in files:
        if (f.width, f.vector_type) != (first.width, first.vector_type):
            raise UsageError(
                f"{f.path}: holds {f.vector_type.value} vectors of {f.width} elements, {first.path} "
                f"{first.vector_type.value} ones of {first.width}: both cannot be in collection {name!r}"
            )
        partitions.setdefault(f.partition, []).extend(f.pieces(first_id=row, prefix=f"{len(partitions)}-"))
        row += f.rows
    said = first.described.get("metric_type")
    dimension = first.width * (8 if first.vector_type is VectorType.BINARY else 1)
    schema = Schema(name, dimension, first.vector_type, metric or (str(said) if said else None))
    return SourceCollection(schema, [SourcePartition(tag, pieces) for tag, pieces in partitions.items()], has_ids)


# One file -------------------------------------------------------------------------------------------------------------


@dataclass
class _File:
    path: str
    rows: int
    width: int
    vector_type: VectorType
    vectors: Column
    ids: Column | None
    described: dict[str, Any]
    findings: Findings
    attributes: tuple[tuple[str, Column], ...] = ()
    partition: str = DEFAULT_PARTITION

    def pieces(self, *, first_id: int = 0, prefix: str = "") -> list[Hdf5Piece]:
        row_bytes = self.width * self.vector_type.dtype.itemsize
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        name = f"{prefix}{Path(self.path).name}"
        return [
            Hdf5Piece(
                f"{name}:{at}",
                self.path,
                at,
                min(step, self.rows - at),
                self.width,
                self.vectors,
                self.ids,
                first_id,
                self.attributes,
            )
            for at in range(0, self.rows, step)
        ]


@contextlib.contextmanager
def damage(path: object) -> Iterator[None]:
    """Whatever h5py raises for a bad file becomes a DamageError."""
    try:
        yield
    except MilvusOfflineError:
        raise
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as e:
        raise DamageError(path, f"HDF5 cannot read it: {e}") from e


@contextlib.contextmanager
def open_file(path: str) -> Iterator[Any]:
    """The file, open for reading."""
    import h5py

    with damage(path):
        h = h5py.File(path, "r", locking="best-effort")
    with h:
        yield h


def look(
    path: str | os.PathLike[str],
    embeddings: str = "embeddings",
    ids: str = "ids",
    attributes: Mapping[str, tuple[str, str]] | None = None,
) -> _File:
    """Checks a file's datasets against each other and against the file's size.

    `attributes` names further ones: field -> (dataset, numpy dtype).
    """
    import h5py

    name = str(path)
    findings = Findings()
    size = os.stat(name).st_size
    with open_file(name) as h, damage(name):
        if not isinstance(h.get(embeddings), h5py.Dataset):
            there: list[str] = []
            h.visititems(lambda n, o: there.append(n) if isinstance(o, h5py.Dataset) and len(there) < 20 else None)
            raise DamageError(name, f"no dataset {embeddings!r}; there are: {', '.join(there) or 'none'} (see --embeddings)")
        data = h[embeddings]
        if data.ndim != 2 or not data.shape[1]:
            raise DamageError(name, f"dataset {embeddings!r}: expected two dimensions (rows, elements), found {data.shape}")
        if data.dtype.kind not in "f" and data.dtype != np.uint8:
            raise DamageError(name, f"dataset {embeddings!r}: expected floats or uint8 (binary vectors), found {data.dtype}")
        rows, width = data.shape
        kind = VectorType.BINARY if data.dtype == np.uint8 else VectorType.FLOAT
        if kind is VectorType.FLOAT and data.dtype.newbyteorder("=") != np.dtype("f4"):
            exact = data.dtype.itemsize < 4
            text = f"{data.dtype} becomes float32" + ("" if exact else ", which rounds")
            findings.info("converted", name, text, int(rows))
        id_column = None
        if ids in h:
            numbers = h[ids]
            if not isinstance(numbers, h5py.Dataset) or numbers.dtype.kind not in "iu":
                raise DamageError(name, f"dataset {ids!r}: expected integers")
            if numbers.shape not in ((rows,), (rows, 1)):
                raise DamageError(name, f"dataset {ids!r}: expected shape ({rows},) as {embeddings!r}, found {numbers.shape}")
            id_column = _column(name, ids, numbers, np.dtype("<i8"), size)
        vectors = _column(name, embeddings, data, kind.dtype, size)
        columns = []
        for field, (dataset, dtype) in (attributes or {}).items():
            found = h.get(dataset)
            if not isinstance(found, h5py.Dataset) or (found.shape, found.dtype) != ((rows,), np.dtype(dtype)):
                raise DamageError(name, f"dataset {dataset!r}: expected {rows} values of {dtype}, found {found}")
            columns.append((field, _column(name, dataset, found, np.dtype(dtype), size)))
        described = {k: _plain(h.attrs.get(k)) for k in ("collection", "partition", "metric_type")}
    described = {k: v for k, v in described.items() if v is not None}
    return _File(name, int(rows), int(width), kind, vectors, id_column, described, findings, tuple(columns))


def _readable(dataset: Any, path: str) -> Any:
    """The dataset, with what HDF5 needs to decompress it. Raises UsageError where a package is missing."""
    filters = dataset.id.get_create_plist()
    if any(filters.get_filter(n)[0] >= _REGISTERED_FILTER for n in range(filters.get_nfilters())):
        try:
            import hdf5plugin  # noqa: F401 - makes the filters known to HDF5
        except ImportError:
            raise UsageError(
                f"{path}: is compressed in a way that needs the package hdf5plugin: pip install 'milvus-offline[compress]'"
            ) from None
    return dataset


def _plain(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None


def _column(path: str, name: str, dataset: Any, wanted: np.dtype[Any], size: int) -> Column:
    if dataset.is_virtual:
        for part in dataset.virtual_sources():
            if part.file_name == "." and part.dset_name in dataset.file:
                _column(path, part.dset_name, dataset.file[part.dset_name], wanted, size)
    for file, offset, length in dataset.external or ():
        other = os.path.join(os.path.dirname(path), os.fsdecode(file))
        there = os.path.getsize(other) if os.path.isfile(other) else -1
        if length < (1 << 62) and there < offset + length:
            raise DamageError(path, f"dataset {name!r} lies in {other}, which is missing or too short")
    _readable(dataset, path)
    if dataset.chunks and int(np.prod(dataset.chunks)) * dataset.dtype.itemsize > MAX_CHUNK:
        raise DamageError(path, f"dataset {name!r}: chunks of {dataset.chunks} are too large")
    offset = dataset.id.get_offset() if dataset.chunks is None and not dataset.is_virtual and not dataset.external else None
    if offset is not None and dataset.dtype == wanted:
        if offset + dataset.nbytes > size:
            raise DamageError(path, f"dataset {name!r}: needs {dataset.nbytes} bytes, the file ends before", offset=offset)
        return Column(name, wanted.str, offset)
    return Column(name, wanted.str if wanted == np.uint8 else dataset.dtype.str, None)
