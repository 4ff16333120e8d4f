"""Where rows come from: one module per kind of source, and how a path is recognised."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import UsageError
from ..fileio import as_path, is_remote, list_once, scan
from ..manifest import LEDGER, is_export
from ..model import Source

_DEPTH = 4
_MOST_FOLDERS = 1000
"""That are looked into at one depth."""


@dataclass(frozen=True)
class SourceOptions:
    """What can be said of a source. `store` and `faiss` are keyword arguments of their own openers."""

    collection: str | None = None
    """Name of the collection, for sources that have none of their own."""
    partition: str | None = None
    metric: str | None = None
    embeddings: str = "embeddings"
    ids: str = "ids"
    row_ids: bool = False
    store: Mapping[str, Any] = field(default_factory=dict)
    faiss: Mapping[str, Any] = field(default_factory=dict)


def kind_of(path: str | os.PathLike[str]) -> str:
    """`milvus1`, `export`, `hdf5` or `faiss`, from the first bytes of a file and the names in a folder.

    Raises UsageError where nothing is, where a file is known not to be a source, where an export was not finished, and where a
    store lies beside HDF5 files.
    """
    root = as_path(path)
    list_once(root)
    if not root.exists():
        raise UsageError(f"{root}: there is no such file or folder")
    if root.is_file():
        with root.open("rb") as f:
            head = f.read(512)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return "hdf5"
        _require_source(root, head)
        # a user block may come first; if it is damaged, say so as HDF5
        return "hdf5" if _is_hdf5(root.name) else "faiss"
    if is_export(root):
        return "export"
    if (root / LEDGER).exists():
        raise UsageError(f"{root}: what was begun here is not finished: run the same command again with --resume")
    if _is_store(root):
        return "milvus1"
    store = file = None
    for folder, names in _folders(root):
        if store is None and _is_store(folder):
            store = folder
        if file is None:
            file = next((folder / n for n in names if _is_hdf5(n)), None)
    if store and file:
        raise UsageError(f"{root}: holds a store ({store}) and HDF5 files ({file}): name the one that is meant")
    if file:
        return "hdf5"
    if store is None and (index := _faiss_index_in(root)) is not None:
        raise UsageError(f"{root}: a folder with Faiss indexes, which are read one at a time: name a file, such as {index}")
    return "milvus1"


_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_OF_A_STORE = (".rv", ".uid", ".wal", ".ra", "deleted_docs", "bloom_filter", "mxlog.meta")


def _require_source(path: Path, head: bytes) -> None:
    """Raises UsageError for the files beside, in and around a store that people take for one."""
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed is None and head[257:262] == b"ustar":
        packed = "tar"
    whole = "name the folder of the store (the one with db/ in it)"
    if packed:
        raise UsageError(f"{path}: a packed file ({packed}): unpack it, then {whole}; a dump of its metadata goes to --catalog")
    if head.startswith(b"SQLite format 3\0"):
        raise UsageError(f"{path}: a metadata database: {whole}; if this file lies elsewhere, add --catalog {path}")
    if path.name.endswith(_OF_A_STORE):
        raise UsageError(f"{path}: a single file of a store: {whole}")
    if path.suffix.lower() == ".sql" or head.startswith((b"-- MySQL dump", b"-- MariaDB dump", b"/*M!999999")):
        raise UsageError(f"{path}: a dump of a metadata database: {whole}, and add --catalog {path}")


def _is_hdf5(name: str) -> bool:
    return name.lower().endswith((".h5", ".hdf5", ".he5"))


def _is_store(folder: Path) -> bool:
    return any((place / name).exists() for place in (folder, folder / "db") for name in ("meta.sqlite", "tables"))


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders up to `_DEPTH` below `root`, the nearest first, with the names of their files; not those inside of a store."""
    level = [root]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for folder in level[:_MOST_FOLDERS]:
            try:
                entries = sorted(scan(folder), key=lambda e: e.name)
            except OSError:
                continue
            yield folder, [e.name for e in entries if not e.is_dir()]
            if not _is_store(folder):
                below += [as_path(e.path) for e in entries if e.is_dir()]
        level = below


def _faiss_index_in(folder: Path) -> Path | None:
    """A file directly in the folder that begins as a Faiss index does."""
    with contextlib.suppress(OSError):  # whoever opens it says what is wrong
        for path in sorted(folder.iterdir())[:1000]:
            if path.is_file():
                with path.open("rb") as f:
                    head = f.read(4)
                if head[:2] in (b"Ix", b"Iw", b"IH", b"IN", b"IB") and head.isalnum():
                    return path
    return None


def require_local(path: str | os.PathLike[str], kind: str) -> None:
    """Raises UsageError for what is not read from a bucket."""
    if kind in ("hdf5", "faiss") and is_remote(path):
        raise UsageError(f"{path}: HDF5 files and Faiss indexes are not read from a bucket: copy them to a disk first")


def open_source(path: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """The source at `path`: a store, an export folder, an HDF5 file or a folder of them, or a Faiss index.

    Raises UsageError, StoreError or DamageError; what is opened is only read.
    """
    options = options or SourceOptions()
    kind = kind_of(path)
    if kind == "export":
        from .export import open_export

        return open_export(path)
    require_local(path, kind)
    if kind == "hdf5":
        from .hdf5 import open_hdf5

        return open_hdf5(
            path,
            collection=options.collection,
            partition=options.partition,
            metric=options.metric,
            embeddings=options.embeddings,
            ids=options.ids,
            row_ids=options.row_ids,
        )
    if kind == "faiss":
        from .faiss.source import open_faiss

        return cast(Source, open_faiss(path, collection=options.collection, metric=options.metric, **options.faiss))
    from .milvus1 import open_store_source

    return open_store_source(path, **options.store)
