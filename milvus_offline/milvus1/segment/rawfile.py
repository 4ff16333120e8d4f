"""The raw files of Milvus 0.5 and 0.6, before there were segments (FORMAT §8).

A raw file is an index file (`indexfile.py`) of type 1 whose part `IVF` is a Faiss IDMap over a flat index; the ids inside
are the user's. Nothing can be deleted by id in these versions, so all rows of a raw file are live. An index file (type 3 in
the catalog) holds the same rows once more; which files of a store count is decided in `v05.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DamageError
from ...findings import Findings
from ...model import BATCH_BYTES, Batch, Schema, VectorType
from ..layout import TABLES
from .indexfile import StoredVectors, read_raw_file

_DATE = re.compile(r"1\d{6}")
"""(year - 1900) * 10000 + (month - 1) * 100 + day (FORMAT §2.2)."""


def raw_file_path(roots: Sequence[Path], table_id: str, date: int, file_id: str) -> Path | None:
    """Where the file of a TableFiles row lies: `tables/<table_id>/<date>/<file_id>` below the first root that has it.

    `roots` are the data root (`<root>/db`) and the secondary roots in the order of the configuration. None when none has it.
    """
    for root in roots:
        path = root / TABLES / table_id / str(date) / file_id
        if path.is_file():
            return path
    return None


def files_by_date(roots: Iterable[Path], table_id: str) -> dict[tuple[int, str], Path]:
    """Every file `tables/<table_id>/<date>/<file_id>` by (date, file_id); of several the first root's, as above."""
    found: dict[tuple[int, str], Path] = {}
    for root in reversed(list(roots)):
        for folder in (root / TABLES / table_id).glob("1??????"):
            if _DATE.fullmatch(folder.name):
                found.update({(int(folder.name), path.name): path for path in folder.glob("*") if path.is_file()})
    return dict(sorted(found.items()))


@dataclass(frozen=True, eq=False)
class RawFile:
    """The rows of one file of 0.5/0.6 as a piece of a partition.

    `id` is its file_id; `lost` rows were cut off with the file's end. `state` is the type of the file as Milvus names it:
    that of a raw file, or `INDEX` where the rows come out of an index file.
    """

    id: str
    path: str
    schema: Schema
    vectors: StoredVectors
    state: str = "RAW"
    deleted: int = 0
    """Nothing is deleted by id in these versions."""

    @property
    def rows(self) -> int:
        return self.vectors.rows

    @property
    def lost(self) -> int:
        return self.vectors.lost

    @property
    def bytes(self) -> int:
        """Bytes of vectors and ids."""
        return self.rows * (self.vectors.row_bytes + 8)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that its rows are read from."""
        return (self.path,)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """All rows with the user's ids in file order. Raises DamageError."""
        for ids, vectors in self.vectors.batches(max_bytes, start):
            yield Batch(ids, vectors)


def open_raw_file(
    path: str | os.PathLike[str], *, file_id: str, schema: Schema, where: str | None = None, state: str = "RAW"
) -> tuple[RawFile, Findings]:
    """The raw file at `path`, as far as it can be read, and what is wrong with it (said of `where`).

    A cut file gives the rows that have both their vector and their id. As the ids stand after all vectors, a file that was
    cut inside the vectors has none. Raises DamageError, and UsageError when the index inside does not hold the vectors.
    """
    stored, odd = read_raw_file(path)
    where = os.fspath(path) if where is None else where
    if stored.vector_type is not VectorType.FLOAT:
        raise DamageError(path, "expected a raw file of Milvus 0.5 or 0.6, found binary vectors")
    if stored.dimension != schema.dimension:
        raise DamageError(path, f"vectors of {stored.dimension} dimensions in a collection of {schema.dimension}")
    notes = Findings()
    for text in odd:
        notes.warning("container-wrong", where, f"{text}; its rows are complete", stored.rows)
    if stored.lost:
        text = "the file is cut; the rows at its end are lost"
        notes.error("rows-lost", where, text, stored.lost)
    if not stored.own_ids and stored.rows:
        text = "the file holds no ids, which no server writes: row numbers are used instead"
        notes.warning("row-numbers", where, text, stored.rows)
    return RawFile(file_id, os.fspath(path), schema, stored, state), notes
