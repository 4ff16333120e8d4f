"""The folders below `tables/` of all roots (FORMAT §1.2, §1.3), listed once for each store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from .. import fileio
from ..errors import DamageError, StoreError
from .layout import DELETED_DOCS, ID, TABLES
from .segment.files import read_header
from .segment.opening import Folder, list_folder


class Disk:
    """The table and segment folders of one store: what there is, whatever the catalog says."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self._tables: list[str] | None = None
        self._segments: dict[str, list[tuple[Path, Set[str] | None]]] = {}

    def tables(self) -> list[str]:
        """Names of all table folders, sorted. Raises StoreError without the permission to look."""
        if self._tables is None:
            self._tables = sorted({e.name for root in self.roots for e in _scan(root / TABLES) if _is_folder(e)})
        return self._tables

    def has_tables(self, root: Path) -> bool:
        """Whether a root has a folder `tables/`."""
        return (root / TABLES).is_dir()

    def segments(self, table_id: str) -> Set[str]:
        """Names of the segment folders of a table, under all roots (files in their place too)."""
        found = [names for _, names in self._listed(table_id) if names is not None]
        return found[0] if len(found) == 1 else frozenset().union(*found)

    def places(self, table_id: str, segment_id: str) -> list[Path]:
        """The folders of a segment: one of each root that has it, or whose disk refuses to say what it has."""
        return [f / segment_id for f, names in self._listed(table_id) if names is None or segment_id in names]

    def local_folder(self, table_id: str) -> tuple[str, Set[str]] | None:
        """A table's folder and the names in it, where it is under one root, which is no bucket."""
        found = [(folder, names) for folder, names in self._listed(table_id) if names]
        return (str(found[0][0]), found[0][1]) if len(found) == 1 and not fileio.is_remote(found[0][0]) else None

    def _listed(self, table_id: str) -> list[tuple[Path, Set[str] | None]]:
        if table_id not in self._segments:
            folders = [root / TABLES / table_id for root in self.roots]
            self._segments[table_id] = [(folder, _names(folder)) for folder in folders]
        return self._segments[table_id]

    def folder(self, table_id: str, segment_id: str) -> Folder | None:
        """The folder of a segment; of several the one that holds the raw vectors. Raises DamageError."""
        folders = [f for p in self.places(table_id, segment_id) if (f := list_folder(p))]
        return next((f for f in folders if f.raw), folders[0] if folders else None)

    def warm(self, segments: Iterable[tuple[str, str]]) -> None:
        """Says which segments are about to be opened: in a bucket the beginnings of their files come at once."""
        if fileio.is_remote(self.roots[0]):
            fileio.warm(path for table_id, segment_id in segments for path in self._beginnings(table_id, segment_id))

    def _beginnings(self, table_id: str, segment_id: str) -> Iterator[Path]:
        try:
            folder = self.folder(table_id, segment_id)
        except DamageError:  # whoever opens it says so
            return
        if folder is not None:
            names = (*folder.raw, *folder.ids, *folder.attributes, *((DELETED_DOCS,) if folder.has_deleted_docs else ()))
            yield from (folder.path / name for name in names)

    def complete(self, table_id: str, segment_id: str) -> Folder | None:
        """The folder of a segment that was written to its end (`deleted_docs` is the last file, §3.3); None for any other."""
        try:
            folder = self.folder(table_id, segment_id)
        except DamageError:
            return None
        return folder if folder and folder.raw and folder.ids and folder.has_deleted_docs else None

    def index_file(self, table_id: str, segment_id: str, file_id: str) -> Path | None:
        """An index file; raw and index files of one segment may be under different roots (§1.3)."""
        candidates = (p / file_id for p in self.places(table_id, segment_id))
        return next((c for c in candidates if c.is_file()), None)

    def payload_bytes(self, table_id: str, segment_id: str) -> int | None:
        """Bytes of vectors and ids in a segment folder, None when it has no such files: what `TableFiles.file_size` counts."""
        try:
            folder = self.folder(table_id, segment_id)
            if not folder or not folder.raw or not folder.ids:
                return None
            return sum(read_header(folder.path / names[0]).bytes for names in (folder.raw, folder.ids))
        except DamageError:
            return None

    def rows(self, table_id: str, segment_id: str) -> int:
        """Rows that a segment folder stores, by the header of its ids; 0 where there are no vectors for them."""
        try:
            folder = self.folder(table_id, segment_id)
            if not folder or not folder.raw or not folder.ids:
                return 0
            return read_header(folder.path / folder.ids[0]).bytes // ID.itemsize
        except DamageError:
            return 0


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    with _permitted(folder):
        return fileio.scan(folder)
    return []


def _names(folder: Path) -> Set[str] | None:
    """What is in a folder; None where the disk refuses to list it, which whoever opens something in it says."""
    with _permitted(folder):
        try:
            return frozenset(fileio.names_in(folder))
        except OSError as e:
            if not isinstance(e, (FileNotFoundError, NotADirectoryError, PermissionError)) and not fileio.is_remote(folder):
                return None
            raise
    return frozenset()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle, a place that the disk refuses
        return False


@contextlib.contextmanager
def _permitted(folder: Path) -> Iterator[None]:
    """What is no folder is empty; what cannot be looked into is a StoreError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:
        raise StoreError(fileio.closed(folder) or f"{folder}: cannot be looked into: {e.strerror}") from e
