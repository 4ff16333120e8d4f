"""`.npy` pairs and Parquet files of an export, as pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamageError, MissingPackageError
from ..fileio import as_path, is_remote, open_binary, open_read, read_into, status
from ..model import BATCH_BYTES, Batch, Schema, buffer


@dataclass(frozen=True)
class NpyPiece:
    """A pair of `.npy` files with the offsets of their rows."""

    id: str
    rows: int
    schema: Schema
    vectors_path: str
    vectors_at: int
    ids_path: str
    ids_at: int

    @property
    def paths(self) -> tuple[str, ...]:
        return self.vectors_path, self.ids_path

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        width = self.schema.row_bytes
        step = max(1, min(max_bytes // width, self.rows - start))
        vectors, ids = buffer((step, self.schema.width), self.schema.dtype), np.empty(step, np.int64)
        vectors_fd = open_read(self.vectors_path)
        ids_fd = open_read(self.ids_path)
        try:
            for at in range(start, self.rows, step):
                n = min(step, self.rows - at)
                read_into(
                    vectors_fd, vectors[:n].reshape(-1).view(np.uint8).data, self.vectors_at + at * width, self.vectors_path
                )
                read_into(ids_fd, ids[:n].view(np.uint8).data, self.ids_at + at * 8, self.ids_path)
                yield Batch(ids[:n], vectors[:n])
        finally:
            os.close(vectors_fd)
            os.close(ids_fd)


@dataclass(frozen=True)
class ParquetPiece:
    """A Parquet file with an integer column and a list column."""

    id: str
    rows: int
    schema: Schema
    path: str
    ids: str
    vectors: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        import pyarrow as pa

        try:
            with _opened(self.path) as file:
                yield from self._batches(file, max_bytes, start)
        except (OSError, pa.ArrowException, TypeError, ValueError) as e:  # a damaged file can hold what fits no array
            raise DamageError(self.path, f"cannot be read as Parquet: {e}") from e

    def _batches(self, file: Any, max_bytes: int, start: int) -> Iterator[Batch]:
        step = max(1, max_bytes // self.schema.row_bytes)
        width = self.schema.width
        skip = start
        for group in range(file.num_row_groups):
            n = file.metadata.row_group(group).num_rows
            if skip >= n:
                skip -= n
                continue
            table = file.read_row_group(group, columns=[self.ids, self.vectors])
            ids = table.column(self.ids).combine_chunks().to_numpy().astype(np.int64, copy=False)
            flat = table.column(self.vectors).combine_chunks().flatten().to_numpy(zero_copy_only=False)
            if len(flat) != n * width:
                raise DamageError(self.path, f"row group {group}: expected {n} vectors of {width} elements, found {len(flat)}")
            vectors = flat.astype(self.schema.dtype, copy=False).reshape(n, width)
            for at in range(skip, n, step):
                yield Batch(ids[at : at + step], vectors[at : at + step])
            skip = 0


def _opened(path: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(open_binary(path) if is_remote(path) else path)


def column_pieces(path: str, schema: Schema, rows: int) -> Sequence[NpyPiece | ParquetPiece]:
    """The piece in a file of an export. Raises DamageError when it does not hold `rows` rows of `schema`."""
    if path.endswith(".parquet"):
        return [_parquet(path, schema, rows)]
    ids = str(as_path(path).with_name("id.npy"))
    at = _npy(path, schema.dtype, (rows, schema.width))
    return [NpyPiece(f"{Path(path).parent.name}", rows, schema, path, at, ids, _npy(ids, np.dtype("<i8"), (rows,)))]


def _npy(path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    from numpy.lib import format as npy

    if not as_path(path).is_file():
        raise DamageError(path, "this file is missing")
    with open_binary(path) as f:
        try:
            version = npy.read_magic(f)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            found = npy.read_array_header_1_0(f)
        except Exception as e:  # numpy parses the header as Python, and raises whatever that raises
            raise DamageError(path, f"not an .npy file: {e}") from e
        at = f.tell()
    if found != (shape, False, dtype):
        raise DamageError(path, f"expected shape {shape} of {dtype}, found {found[0]} of {found[2]}", offset=0)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    size = status(path).st_size
    if size != at + nbytes:
        raise DamageError(path, f"expected {at + nbytes} bytes, found {size}", offset=at)
    return at


def _parquet(path: str, schema: Schema, rows: int) -> ParquetPiece:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingPackageError(f"{path}: Parquet", "pyarrow", "parquet", exit_code=1) from None
    try:
        with _opened(path) as file:
            found, names = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pa.ArrowException) as e:
        raise DamageError(path, f"not a Parquet file: {e}") from e
    if found != rows or names != ["id", "vector"]:
        raise DamageError(path, f"expected {rows} rows of id and vector, found {found} of {', '.join(names)}")
    return ParquetPiece(Path(path).stem, rows, schema, path, "id", "vector")
