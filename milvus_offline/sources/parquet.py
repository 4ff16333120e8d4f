"""Parquet files as a source: a column of lists (or of fixed-size lists or bytes) and one of ids, as Milvus' import has them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamageError, MissingPackageError
from ..model import NOWHERE, Array, Places
from .columns import InFile, Read
from .files import FilesSource, assemble, find_files
from .names import EMBEDDINGS, Named
from .options import SourceOptions
from .tables import Table, file_of

SUFFIXES = (".parquet", ".pq")
_BATCH = 1 << 14
"""Rows that are decoded at once, at most."""
_FIRST = 64
"""Rows that tell how wide a column is."""
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class ParquetColumn(InFile):
    """One column of a file, decoded from the row group on in which a piece begins."""

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        pq = _pyarrow(self.path)
        with contextlib.ExitStack() as stack, damage(self.path):
            file = stack.enter_context(pq.ParquetFile(self.path, page_checksum_verification=True))
            groups = np.cumsum([0, *(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))])
            step = max(1, min(_BATCH, _BATCH_BYTES // max(1, self.items * np.dtype(self.dtype).itemsize)))
            batches: Iterator[Any] = iter(())
            rest, at = np.empty((0, self.items), self.dtype), -1

            def read(row: int, out: Array) -> Places:
                nonlocal batches, rest, at
                with damage(self.path):
                    if row != at:
                        group = int(np.searchsorted(groups, row, "right")) - 1
                        numbers = range(group, file.num_row_groups)
                        batches = file.iter_batches(batch_size=step, row_groups=numbers, columns=[self.name])
                        rest, at = rest[:0], int(groups[group])
                        while at < row:
                            rest = self._next(batches)
                            skip = min(row - at, len(rest))
                            rest, at = rest[skip:], at + skip
                    done = 0
                    while done < len(out):
                        if not len(rest):
                            rest = self._next(batches)
                        n = min(len(rest), len(out) - done)
                        out[done : done + n] = rest[:n]
                        rest, done, at = rest[n:], done + n, at + n
                return NOWHERE

            yield read

    def _next(self, batches: Iterator[Any]) -> Array:
        batch = next(batches, None)
        if batch is None:
            raise DamageError(self.path, f"{self.name}: the column ends before the file's number of rows")
        column = batch.column(0)
        if column.null_count:
            raise DamageError(self.path, f"column {self.name!r} has rows without a value")
        return _rows(self.path, self.name, column, self.items, np.dtype(self.dtype))


def _rows(path: str, name: str, column: Any, items: int, dtype: np.dtype[Any]) -> Array:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if dtype.kind == "O" or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = column.to_pylist()
        if dtype == np.uint8 and not all(len(v) == items for v in values):
            raise DamageError(path, f"column {name!r}: expected {items} bytes a row")
        if dtype == np.uint8:
            return np.frombuffer(b"".join(values), np.uint8).reshape(len(values), items)
        return np.array([str(v) for v in values], object).reshape(-1, 1)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.diff(column.offsets.to_numpy())
        if (lengths != items).any():
            raise DamageError(path, f"column {name!r}: expected {items} elements a row, found {lengths[lengths != items][0]}")
    flat = column.flatten() if pa.types.is_nested(kind) else column
    if flat.null_count:
        raise DamageError(path, f"column {name!r} has elements without a value")
    numbers: Array = flat.to_numpy(zero_copy_only=False).reshape(len(column), items)
    return numbers.astype(dtype, copy=False)


@contextlib.contextmanager
def damage(path: str) -> Iterator[None]:
    """Whatever pyarrow raises for a bad file becomes a DamageError."""
    import pyarrow as pa

    try:
        yield
    except PermissionError:
        raise
    except (OSError, pa.ArrowException, TypeError, ValueError, OverflowError) as e:
        raise DamageError(path, f"cannot be read as Parquet: {e}") from e


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingPackageError(f"{path}: Parquet", "pyarrow", "parquet", exit_code=1) from None
    return pq


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """A file, or a folder with some, which are one collection with one partition."""
    root = Path(os.path.abspath(path))
    files = [file_of(str(p), _columns(str(p), options), options, what="column") for p in find_files(root, SUFFIXES)]
    for file in files if root.is_dir() else ():
        file.partition = "_default"
    return assemble("parquet", root, files, options)


def _columns(path: str, options: SourceOptions) -> dict[str, Table]:
    pq = _pyarrow(path)
    result: dict[str, Table] = {}
    with damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.metadata.num_rows
        for field in file.schema_arrow:
            found = _type(file, field, options)
            if found is None:
                continue
            items, dtype, shape = found
            result[field.name] = Table(
                Named(field.name, (rows, *shape), dtype), ParquetColumn(field.name, dtype.str, items, path)
            )
    return result


def _type(file: Any, field: Any, options: SourceOptions) -> tuple[int, np.dtype[Any], Sequence[int]] | None:
    """(elements a row, their type, shape of a row) of a column; None for one that can be neither vectors nor ids.

    What is called ids and is no number is taken for texts, which say themselves whether they are ids.
    """
    import pyarrow as pa

    kind, named = field.type, Named(field.name, (), np.dtype("O"))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) and (
        named.is_called_vectors or field.name in (EMBEDDINGS, options.embeddings)
    ):
        width = _longest(file, field.name)
        return width, np.dtype("u1"), (width,)
    if pa.types.is_fixed_size_binary(kind):
        return kind.byte_width, np.dtype("u1"), (kind.byte_width,)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return 1, np.dtype("O"), ()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return 1, np.dtype(kind.to_pandas_dtype()), ()
    if pa.types.is_fixed_size_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
        return kind.list_size, np.dtype(kind.value_type.to_pandas_dtype()), (kind.list_size,)
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and not pa.types.is_nested(kind.value_type):
        if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            return None
        width = _longest(file, field.name)
        return width, np.dtype(kind.value_type.to_pandas_dtype()), (width,)
    if (named.is_called_ids or field.name == options.ids) and not pa.types.is_nested(kind):
        return 1, np.dtype("O"), ()
    return None


def _longest(file: Any, name: str) -> int:
    """Elements of the longest of the first rows: the others are compared with it when they are read."""
    first = next(file.iter_batches(batch_size=_FIRST, columns=[name]), None)
    return max((len(value.as_py()) for value in (first.column(0) if first is not None else ()) if value.is_valid), default=0)
