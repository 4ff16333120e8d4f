"""Where rows come from: one module per kind of source, and how a path is recognised."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import UsageError
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

    Raises UsageError where nothing is, where an export was not finished, and where a store lies beside HDF5 files.
    """
    root = Path(path)
    if not root.exists():
        raise UsageError(f"{root}: there is no such file or folder")
    if root.is_file():
        with root.open("rb") as f:
            head = f.read(8)
        # a user block may come first; if it is damaged, say so as HDF5
        return "hdf5" if head == b"\x89HDF\r\n\x1a\n" or _is_hdf5(root.name) else "faiss"
    if is_export(root):
        return "export"
    if (root / LEDGER).is_file():
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
                entries = sorted(os.scandir(folder), key=lambda e: e.name)
            except OSError:
                continue
            yield folder, [e.name for e in entries if not e.is_dir()]
            if not _is_store(folder):
                below += [Path(e.path) for e in entries if e.is_dir()]
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


def open_source(path: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """The source at `path`: a store, an export folder, an HDF5 file or a folder of them, or a Faiss index.

    Raises UsageError, StoreError or DamageError; what is opened is only read.
    """
    options = options or SourceOptions()
    kind = kind_of(path)
    if kind == "export":
        from .export import open_export

        return open_export(path)
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
        from .faiss import open_faiss

        return cast(Source, open_faiss(path, collection=options.collection, metric=options.metric, **options.faiss))
    from .milvus1 import open_store_source

    return open_store_source(path, **options.store)
