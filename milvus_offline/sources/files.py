"""Files of vectors as a source, whatever their kind: one file is one partition, files of one name are one collection.

A kind of file gives a `File` for each path; what is common to all kinds is done here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..findings import Findings
from ..model import (
    DEFAULT_PARTITION,
    Finding,
    Piece,
    Salvaged,
    Schema,
    SourceCollection,
    SourcePartition,
    VectorType,
)
from .columns import Column, ColumnsPiece, cut
from .options import SourceOptions, fingerprint_files


@dataclass
class File:
    """What one file holds. `ranges`: the rows that are there, as (first, last + 1); `files`: others that belong to it."""

    path: str
    rows: int
    width: int
    vector_type: VectorType
    vectors: Column
    ids: Column | None = None
    metric: str | None = None
    ranges: Sequence[tuple[int, int]] = ()
    findings: Findings = field(default_factory=Findings)
    files: Sequence[str] = ()
    beyond: str = "error"
    attributes: tuple[tuple[str, Column], ...] = ()
    collection: str | None = None
    """What the file itself, or one beside it, says of its collection and partition."""
    partition: str | None = None
    index_file_size: int | None = None

    def pieces(self, *, first_id: int = 0, prefix: str = "") -> list[ColumnsPiece]:
        name = f"{prefix}{Path(self.path).name}"
        return [
            ColumnsPiece(
                f"{name}:{at}",
                self.path,
                at,
                rows,
                self.width,
                self.vector_type,
                self.vectors,
                self.ids,
                first_id,
                self.attributes,
                self.beyond,
            )
            for at, rows in cut(self.ranges, self.width * self.vector_type.dtype.itemsize)
        ]


@dataclass
class FilesSource:
    """See model.Source."""

    kind: str
    path: str
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    files: Sequence[str]
    options: str
    salvage: Sequence[Salvaged] = field(default_factory=tuple)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "files": len(self.files)}

    def fingerprint(self) -> str:
        """A digest of the options and of every file's name, size and time of change."""
        return fingerprint_files(self.files, self.options)


def assemble(
    kind: str, root: Path, files: Sequence[File], options: SourceOptions, findings: Iterable[Finding] = ()
) -> FilesSource:
    """Files as collections and partitions. Row numbers run through all partitions of a collection.

    Raises UsageError when the files of one collection do not fit together.
    """
    if options.partition is not None and len(files) > 1:
        raise UsageError(f"{root}: holds {len(files)} files: a partition can be named for a single file only")
    said = Findings(findings)
    found: dict[str, list[File]] = {}
    for f in files:
        said += f.findings
        path = Path(f.path)
        single = path == root
        name = options.collection or f.collection or (path.stem if single else path.parent.name)
        f.partition = options.partition or f.partition or (DEFAULT_PARTITION if single or path.stem == "None" else path.stem)
        found.setdefault(name, []).append(f)
    collections = []
    for name, its in found.items():
        with_ids = [f for f in its if f.ids is not None]
        if with_ids and len(with_ids) < len(its):
            lacking = next(f for f in its if f.ids is None)
            raise UsageError(f"{lacking.path}: has no ids, other files of collection {name!r} have some: load them apart")
        if not with_ids:
            text = "there are no ids: " + ("they are row numbers" if options.row_ids else "the target makes them")
            said.info("no-ids", name, text)
        collections.append(_collection(name, its, options.metric, bool(with_ids) or options.row_ids))
    consulted = dict.fromkeys([*(f.path for f in files), *(other for f in files for other in f.files)])
    return FilesSource(kind, str(root), collections, said, [*consulted], options.described())


def _collection(name: str, files: Sequence[File], metric: str | None, has_ids: bool) -> SourceCollection:
    first = files[0]
    partitions: dict[str, list[Piece]] = {}
    row = 0
    for f in files:
        if (f.width, f.vector_type) != (first.width, first.vector_type):
            raise UsageError(
                f"{f.path}: holds {f.vector_type.value} vectors of {f.width} elements, {first.path} "
                f"{first.vector_type.value} ones of {first.width}: both cannot be in collection {name!r}"
            )
        partitions.setdefault(str(f.partition), []).extend(f.pieces(first_id=row, prefix=f"{len(partitions)}-"))
        row += f.rows
    dimension = first.width * (8 if first.vector_type is VectorType.BINARY else 1)
    said = metric or next((f.metric for f in files if f.metric), None)
    size = next((f.index_file_size for f in files if f.index_file_size), None)
    schema = Schema(name, dimension, first.vector_type, said, index_file_size=size)
    return SourceCollection(schema, [SourcePartition(tag, pieces) for tag, pieces in partitions.items()], has_ids)


def find_files(root: Path, suffixes: tuple[str, ...], depth: int = 4) -> Iterator[Path]:
    """The files of such names in a folder and below it, in order; the path itself when it is a file."""
    if not root.is_dir():
        yield root
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        if len(Path(folder).relative_to(root).parts) >= depth:
            folders.clear()
        yield from (Path(folder) / n for n in sorted(names) if n.lower().endswith(suffixes) and not n.startswith("."))
