"""Where rows come from: one module per kind of source, and how a path is recognised.

A new kind is one module with `open_source(path, options)` that returns a model.Source, and one line in `KINDS`.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast

from ..errors import DamageError, StoreError, UsageError
from ..fileio import as_path, closed, is_remote, list_once, read_start, scan, unreadable
from ..manifest import LEDGER, is_export
from ..model import Source
from ..present import seen_anew
from .options import SourceOptions

__all__ = ["KINDS", "Kind", "SourceOptions", "kind_of", "open_source"]

_DEPTH = 4
_MOST_FOLDERS = 1000
"""That are looked into at one depth."""


class Kind(NamedTuple):
    """A kind of source. `suffixes`: of files whose first bytes tell nothing, and of those that a folder is searched for."""

    module: str
    what: str
    """In a sentence, as in 'only goes with HDF5 files'."""
    takes: frozenset[str]
    """The options that say something of it."""
    magic: tuple[bytes, ...] = ()
    suffixes: tuple[str, ...] = ()
    folder: Callable[[Path], bool] | None = None


def _is_store(folder: Path) -> bool:
    """Also one whose `db/` cannot be looked into: its own reader says so."""
    places = (folder, folder / "db")
    return any(os.path.basename(p) == "db" and closed(p) for p in places) or any(
        _there(place / name) for place in places if not closed(place) for name in ("meta.sqlite", "tables")
    )


def _there(path: Path) -> bool:
    with suppress(PermissionError):  # of a folder on the way, as below /proc
        return path.exists()
    return False


def _has_yamls(folder: Path) -> bool:
    return (folder / "yamls").is_dir() and next((folder / "yamls").rglob("*.yaml"), None) is not None


def _is_langchain(folder: Path) -> bool:
    return (folder / "index.faiss").is_file() and (folder / "index.pkl").is_file()


_STORE = frozenset({"catalog", "wal", "no_wal", "secondary", "no_catalog", "partition_map", "assume", "salvage"})
_NAMES = frozenset({"into", "metric"})
_FAISS = frozenset({*_NAMES, "ids_file", "first_id", "lossy", "follow_ondisk"})
_BARE = frozenset({*_NAMES, "into_partition", "vector_type", "beyond_float32", "ids_row"})
_ARRAYS = frozenset({*_BARE, "embeddings", "ids_dataset"})
_HDF5 = frozenset({*_ARRAYS, "follow_external"})

KINDS: Mapping[str, Kind] = {
    "export": Kind("export", "an export", frozenset(), folder=is_export),
    "milvusdm": Kind("milvusdm", "HDF5 files", _HDF5, folder=_has_yamls),
    "langchain": Kind("langchain", "a Faiss index", _FAISS, folder=_is_langchain),
    "hdf5": Kind("hdf5", "HDF5 files", _HDF5, (b"\x89HDF\r\n\x1a\n",), (".h5", ".hdf5", ".he5")),
    "parquet": Kind("parquet", "Parquet files", _ARRAYS, (b"PAR1",), (".parquet", ".pq")),
    "npz": Kind("npz", ".npz files", _ARRAYS, (), (".npz",)),
    "npy": Kind("npy", ".npy files", _ARRAYS, (b"\x93NUMPY",), (".npy",)),
    "vecs": Kind(
        "vecs", "files of vectors (.fvecs, .bin)", _BARE, (), (".fvecs", ".bvecs", ".ivecs", ".fbin", ".u8bin", ".i8bin")
    ),
    "milvus1": Kind("milvus1", "a store", _STORE, folder=_is_store),
    "faiss": Kind("faiss.source", "a Faiss index", _FAISS, (b"Ix", b"Iw", b"IH", b"IN", b"IB")),
}
"""In the order in which they are asked."""


@seen_anew()
def kind_of(path: str | os.PathLike[str]) -> str:
    """The name of a kind of `KINDS`, from the first bytes of a file and the names in a folder.

    Raises StoreError where nothing is that can be read, UsageError where a file is known not to be a source, where an export
    was not finished, and where a store lies beside files of another kind.
    """
    root = as_path(path)
    list_once(root)
    if reason := unreadable(root):
        raise StoreError(reason)
    if root.is_dir():
        return _kind_of_folder(root)
    head, _, refused = read_start(root, 512)
    for name, kind in KINDS.items():
        if kind.magic and head.startswith(kind.magic):
            return name
    for name, kind in KINDS.items():
        # a user block may come first; if it is damaged, its own reader says so
        if root.name.lower().endswith(kind.suffixes or "\0") and not head.startswith(b"version https://git-lfs"):
            return name
    if refused:
        raise DamageError(root, f"cannot be read: {os.strerror(errno.EIO)}", offset=refused[0][0])
    from .others import refuse_file

    refuse_file(root, head)
    return "faiss"


def _kind_of_folder(root: Path) -> str:
    for name in ("export", "milvusdm", "langchain"):
        if (here := KINDS[name].folder) and here(root):
            return name
    if (root / LEDGER).is_file():
        raise UsageError(f"{root}: holds an unfinished run; finish it with the same command and --resume")
    if _is_store(root):
        return "milvus1"
    store: Path | None = None
    found: dict[str, Path] = {}
    for folder, names in _folders(root):
        if store is None and _is_store(folder):
            store = folder
        for name, kind in KINDS.items():
            if name not in found and kind.suffixes:
                at = next((folder / n for n in names if n.lower().endswith(kind.suffixes) and not n.startswith(".")), None)
                found |= {name: at} if at else {}
    if store and "hdf5" in found:
        raise UsageError(f"{root}: holds a store ({store}) and HDF5 files ({found['hdf5']}): name the one that is meant")
    if store:
        return "milvus1"
    from .others import refuse_folder

    refuse_folder(root)
    if "hdf5" in found:
        return "hdf5"
    if (index := _faiss_index_in(root)) is not None:
        raise UsageError(f"{root}: a folder with Faiss indexes, which are read one at a time: name a file, such as {index}")
    if len(found) > 1:
        raise UsageError(
            f"{root}: holds files of several kinds ({', '.join(map(str, found.values()))}): name the one that is meant"
        )
    return next(iter(found), "milvus1")


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
            folders = [e for e in entries if _is_dir(e)]
            yield folder, [e.name for e in entries if e not in folders]
            if not _is_store(folder):
                below += [as_path(e.path) for e in folders]
        level = below


def _is_dir(entry: os.DirEntry[str]) -> bool:
    with suppress(PermissionError):  # a link to where we may not look, as below /proc
        return entry.is_dir()
    return False


def _faiss_index_in(folder: Path) -> Path | None:
    """A file directly in the folder that begins as a Faiss index does."""
    with suppress(OSError):  # whoever opens it says what is wrong
        for path in sorted(folder.iterdir())[:1000]:
            if path.is_file():
                with path.open("rb") as f:
                    head = f.read(4)
                if head[:2] in KINDS["faiss"].magic and head.isalnum():
                    return path
    return None


@seen_anew()
def open_source(path: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """The source at `path`, whatever of `KINDS` it is.

    Raises UsageError, StoreError or DamageError; what is opened is only read.
    """
    name = kind_of(path)
    kind = KINDS[name]
    if is_remote(path) and name not in ("export", "milvus1"):
        raise UsageError(f"{path}: {kind.what}: only stores and exports are read from a bucket; copy this to a disk first")
    module = importlib.import_module(f".{kind.module}", __name__)
    try:
        return cast(Source, module.open_source(path, options or SourceOptions()))
    except DamageError as e:  # of a file that a folder holds, or that has the suffix of another kind
        from .others import known_as

        if kind.suffixes and (why := known_as(e.path)):
            raise StoreError(why) from e
        raise
