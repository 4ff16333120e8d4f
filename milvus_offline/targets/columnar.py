"""Files that a Milvus server imports by itself: `.npy` pairs or Parquet, one chunk of a partition each.

    OUT/<collection>/<partition>/00000/id.npy, vector.npy      int64 (n), and float32 (n, d) or uint8 (n, d/8), C order
    OUT/<collection>/<partition>/00000.parquet                 id: int64, vector: list<float> or list<uint8>

The columns are named as the fields of the collection that imports them. Parquet keeps to what servers accept: no fixed-size
lists, no byte stream split. `.npy` is cheaper to write and imported three times as fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from .. import fileio
from ..errors import MissingPackageError, TargetError, UsageError
from ..guard import explained
from ..ledger import Ledger
from ..manifest import LEDGER, MANIFEST, Checksums, OutFile, build_manifest, checksum_of_parts, columns_of, octets
from ..model import BATCH_BYTES, Batch, Finding, Schema, Severity, Source, VectorType
from ..names import file_names, printable
from ..transfer import Advance, Result, Task
from ..watch import Watch, watching
from .folder import begin_export, end_export
from .slices import Slice, cut

CHUNK_BYTES = 512 << 20
"""Vectors in a file: well under every server's limit, and a grain for parallel imports."""
PARQUET_GROUP_BYTES = 16 << 20
FORMATS = ("npy", "parquet")


@dataclass(frozen=True)
class Fields:
    """Names of the columns."""

    id: str = "id"
    vector: str = "vector"


def file_paths(stem: str, file_format: str, fields: Fields) -> list[str]:
    """The files of a chunk, the one with the vectors first."""
    if file_format == "parquet":
        return [f"{stem}.parquet"]
    return [f"{stem}/{fields.vector}.npy", f"{stem}/{fields.id}.npy"]


def write_npy(batches: Iterable[Batch], rows: int, schema: Schema, vectors: IO[bytes], ids: IO[bytes] | None) -> int:
    """Writes a pair of `.npy` files (`ids` None: only the vectors); returns the rows written."""
    from numpy.lib import format as npy

    def write_headers(rows: int) -> None:
        for file, shape, dtype in ((vectors, (rows, schema.width), schema.dtype), (ids, (rows,), np.dtype("<i8"))):
            if file:
                npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})

    write_headers(rows)
    written = 0
    for batch in batches:
        vectors.write(octets(batch.vectors))
        if ids:
            ids.write(octets(batch.ids))
        written += len(batch.vectors)
    if written != rows:  # some could not be read; numpy's header leaves room for any number of rows
        for file in filter(None, (vectors, ids)):
            if not file.seekable():
                raise TargetError("some rows cannot be read, and the upload has begun: export into a folder, and upload that")
            file.seek(0)
        write_headers(written)
    return written


def write_parquet(batches: Iterable[Batch], schema: Schema, file: IO[bytes], fields: Fields, *, ids: bool = True) -> int:
    """Writes a Parquet file, a row group for each batch; returns the rows written."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingPackageError("Parquet", "pyarrow", "parquet") from None

    element = pa.float32() if schema.vector_type is VectorType.FLOAT else pa.uint8()
    vector_type = pa.list_(pa.field("element", element, nullable=False))
    columns = [pa.field(fields.id, pa.int64(), nullable=False)] if ids else []
    columns.append(pa.field(fields.vector, vector_type, nullable=False))
    table = pa.schema(columns)
    written = 0
    with pq.ParquetWriter(file, table, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for batch in batches:
            n = len(batch.vectors)
            offsets = pa.array(np.arange(0, (n + 1) * schema.width, schema.width, dtype=np.int32))
            values = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1), element)
            arrays = [pa.array(batch.ids)] if ids else []
            arrays.append(pa.ListArray.from_arrays(offsets, values, type=vector_type))
            writer.write_batch(pa.record_batch(arrays, schema=table))
            written += n
    return written


def batch_bytes(file_format: str) -> int:
    """How much to read at once for a format."""
    return PARQUET_GROUP_BYTES if file_format == "parquet" else BATCH_BYTES


@dataclass(frozen=True)
class WriteChunk:
    """Writes one chunk. `paths` are absolute, vectors first; files appear under their names when they are whole."""

    id: str
    paths: tuple[str, ...]
    rows: int
    bytes: int
    schema: Schema
    slices: tuple[Slice, ...]
    file_format: str
    fields: Fields
    durable: bool = True

    def run(self, advance: Advance) -> Result:
        sums = Checksums()

        lost = 0

        def batches() -> Iterator[Batch]:
            nonlocal lost
            for piece in self.slices:
                for batch in piece.batches(batch_bytes(self.file_format)):
                    sums.add(columns_of(batch, ()))
                    lost += len(batch.lost)
                    if len(batch.ids):
                        yield batch
                    advance(len(batch.ids), batch.vectors.nbytes + batch.ids.nbytes)

        parts = [Path(p + ".part") for p in self.paths]
        remote = fileio.is_remote(self.paths[0])

        def create(number: int) -> IO[bytes]:
            return fileio.upload(self.paths[number]) if remote else parts[number].open("wb")

        with explained("write", self.paths[0], resumable=self.durable), watching() as seen:
            if not remote:
                parts[0].parent.mkdir(parents=True, exist_ok=True)
            written = write_chunk(batches(), self.rows, self.schema, self.file_format, self.fields, create)
            if written + lost != self.rows:
                raise TargetError(
                    f"{self.paths[0]}: the source gave {written} rows, {self.rows} were announced; the source may have "
                    "changed meanwhile"
                )
            for part, path in zip(parts, self.paths, strict=True):
                if not remote:
                    fileio.publish(part, Path(path), durable=self.durable)
            sizes = fileio.sizes(self.paths)
        return {"parts": [{"rows": written, **sums.result()}], "sizes": sizes, **seen.result()}


def write_chunk(  # many: rows, their form, and where they go; `ids` by its name
    batches: Iterable[Batch],
    rows: int,
    schema: Schema,
    file_format: str,
    fields: Fields,
    open_file: Callable[[int], IO[bytes]],
    *,
    ids: bool = True,
) -> int:
    """Writes the files of a chunk through `open_file`, which gets their number; returns the rows written."""
    with open_file(0) as first:
        if file_format == "parquet":
            return write_parquet(batches, schema, first, fields, ids=ids)
        if not ids:
            return write_npy(batches, rows, schema, first, None)
        with open_file(1) as second:
            return write_npy(batches, rows, schema, first, second)


@dataclass(frozen=True)
class NpyOptions:
    """Options of `export --format npy`."""

    overwrite: bool = False
    sync: bool = True
    file_format: ClassVar[str] = "npy"

    def open(self, address: str) -> ColumnarExport:
        return ColumnarExport(address, file_format=self.file_format, overwrite=self.overwrite, sync=self.sync)


@dataclass(frozen=True)
class ParquetOptions(NpyOptions):
    """Options of `export --format parquet`."""

    file_format: ClassVar[str] = "parquet"


class ColumnarExport:
    """The target of `export --format npy|parquet`. `out` is the export's folder."""

    processes = False

    def __init__(self, out: str | os.PathLike[str], *, file_format: str, overwrite: bool = False, sync: bool = True) -> None:
        if file_format not in FORMATS:
            raise UsageError(f"format {file_format!r} is unknown; there are: {', '.join(FORMATS)}")
        self.out = fileio.absolute(fileio.as_path(out))
        self.file_format = file_format
        self.overwrite = overwrite
        self.sync = sync
        self.ledger: Ledger | None = None
        self.manifest: dict[str, Any] = {}
        self._source: Source
        self._chunks: list[tuple[OutFile, list[str], list[Slice]]] = []

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        if self.file_format == "parquet":
            with Path(os.devnull).open("wb") as nowhere:  # refuse before anything is created
                write_parquet([], Schema("probe", 8), nowhere, Fields())
        if source.salvage:
            raise UsageError("--salvage only goes with --format hdf5")
        self._source = source
        self._chunks = list(self._plan(source))
        key = {
            "source": source.fingerprint(),
            "files": [[path, f.rows] for f, paths, _ in self._chunks for path in paths],
            "format": self.file_format,
        }
        self.ledger = begin_export(self.out, source, key, overwrite=self.overwrite, resume=resume, durable=self.sync)
        for file, paths, _ in self._chunks:
            known = self.ledger.done.get(file.path)  # in a bucket each look is a request
            if known is not None and fileio.sizes([self.out / p for p in paths]) != known.get("sizes"):
                del self.ledger.done[file.path]
        return [
            WriteChunk(
                id=file.path,
                paths=tuple(str(self.out / p) for p in paths),
                rows=file.rows,
                bytes=file.rows * (file.schema.row_bytes + 8),
                schema=file.schema,
                slices=tuple(slices),
                file_format=self.file_format,
                fields=Fields(),
                durable=self.sync,
            )
            for file, paths, slices in self._chunks
        ]

    def _plan(self, source: Source) -> Iterator[tuple[OutFile, list[str], list[Slice]]]:
        folders = file_names((c.schema.name for c in source.collections), reserved=(MANIFEST, LEDGER))
        for c in source.collections:
            names = file_names(p.name for p in c.partitions)
            for p in c.partitions:
                for number, slices in enumerate(cut(p.pieces, c.schema.row_bytes, CHUNK_BYTES) or [[]]):
                    stem = f"{folders[c.schema.name]}/{names[p.name]}/{number:05}"
                    paths = file_paths(stem, self.file_format, Fields())
                    yield OutFile(paths[0], c.schema, p.name, sum(s.rows for s in slices)), paths, slices

    def settle(self, tasks: Sequence[Task]) -> None:
        """Nothing: a chunk appears under its name when it is durable."""

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Writes the manifest."""
        entries: dict[str, dict[str, Any]] = {}
        notes = [
            Finding(
                Severity.WARNING,
                "attributes-left-out",
                c.schema.name,
                f"{self.file_format} files hold ids and vectors; an export to HDF5 has the attributes {', '.join(names)} too",
                c.rows,
            )
            for c in self._source.collections
            if (names := [printable(a.name) for a in c.schema.attributes])
        ]
        notes += Watch.of(results.values()).findings()
        with explained("finish", self.out, resumable=self.sync):
            for file, paths, _ in self._chunks:
                parts = results[file.path]["parts"]
                entries[file.path] = {
                    "path": file.path,
                    "rows": sum(p["rows"] for p in parts),
                    "bytes": sum(results[file.path]["sizes"]),
                    "checksum": checksum_of_parts(parts),
                    "parts": parts,
                    **({"ids_path": paths[1]} if len(paths) > 1 else {}),
                }
            files = [file for file, _, _ in self._chunks]
            self.manifest = build_manifest(self._source, entries, files, notes, attributes=False)
            assert self.ledger is not None
            end_export(self.out, self.ledger, self.manifest)
        return notes
