"""Where rows come from: one module per kind of source, and how a path is recognised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import UsageError
from ..model import Source


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
    """`milvus1`, `export`, `hdf5` or `faiss`, from the first bytes of a file and the names in a folder."""
    root = Path(path)
    if not root.exists():
        raise UsageError(f"{root}: there is no such file or folder")
    if root.is_file():
        with root.open("rb") as f:
            head = f.read(8)
            if head != b"\x89HDF\r\n\x1a\n" and root.suffix.lower() in (".h5", ".hdf5", ".he5"):
                return "hdf5"  # a user block may come first; if it is damaged, say so as HDF5
        return "hdf5" if head == b"\x89HDF\r\n\x1a\n" else "faiss"
    if (root / "manifest.json").is_file():
        return "export"
    for _, folders, names in os.walk(root):
        if "tables" in folders or "db" in folders or any(n.endswith((".rv", ".uid")) for n in names):
            return "milvus1"
        if any(n.lower().endswith((".h5", ".hdf5", ".he5")) for n in names):
            return "hdf5"
    return "milvus1"


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
