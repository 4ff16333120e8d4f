"""What people take for a source and is none: named for what it is, with the way on."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ..errors import DamageError, StoreError, UsageError
from ..fileio import as_path, open_binary, scan
from ..milvus1.catalog.columns import is_foreign
from ..names import printable

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_DUMP = (b"-- MySQL dump", b"-- MariaDB dump", b"/*M!999999")
_OF_A_STORE = (".rv", ".uid", ".wal", ".ra", "deleted_docs", "bloom_filter", "mxlog.meta", ".sqlite-wal", ".sqlite-shm")
_COUNTED = ("vecs", ".fbin", ".u8bin", ".i8bin")
_WHOLE = "name the folder of the store (the one with db/ in it)"
_READ = "a store, an export, HDF5, Parquet, .npy, .npz, .fvecs/.bvecs/.ivecs, a Faiss index"


def packed(head: bytes) -> str | None:
    """The kind of archive or compressed file that begins so."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)


def known_as(path: str | os.PathLike[str], head: bytes | None = None) -> str | None:
    """What a file is that has the name of something else, and the way on: a sentence for any file. None: nothing is known."""
    if head is None:
        try:
            with open_binary(path) as f:
                head = f.read(512)
        except (OSError, DamageError):
            return None
    name, text = os.path.basename(path).lower(), head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return f"{path}: an empty file: copy it here again, or name another one"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)$", head, re.M)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"{path}: a Git LFS pointer, not the file itself{of}: run `git lfs pull`, or download the "
            "file from the repository's page"
        )
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text[:400]:
        return f"{path}: a web page, not the file itself, perhaps a login or error page: download it again"
    if (text.startswith(b"<?xml") and b"<mysqldump" not in text) or text.startswith((b'{"message', b'{"error', b"<error")):
        begin = printable(head[:60].decode("utf-8", "replace"))
        return f"{path}: a text that begins with {begin!r}, perhaps the error of a server: download the file again"
    if not any(head):
        return (
            f"{path}: begins with nothing but zeros: the download was interrupted, or a disk lost its blocks. Use another copy"
        )
    if head.startswith(b"SQLite format 3\0"):
        return _database(Path(path))
    if head.startswith(_DUMP):
        return f"{path}: a dump of a metadata database: {_WHOLE}, and add --catalog {path}"
    if name.endswith(_COUNTED):  # begin with a number, which may be anything
        return None
    if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".joblib")) or (head[:1] == b"\x80" and head[1:2] <= b"\x05"):
        return f"{path}: a pickle, which could run any code and is not read: save its arrays with numpy.save"
    if (kind := packed(head)) and not name.endswith(".npz"):
        return (
            f"{path}: a packed file ({kind}): unpack it, then {_WHOLE}, or the file that was in it; "
            "a packed dump or meta.sqlite can go to --catalog as it is"
        )
    return None


def refuse_file(path: Path, head: bytes) -> None:
    """Raises UsageError for a file that is none of the kinds of source; returns where Faiss' reader has to say what it is."""
    name, text = path.name.lower(), head.lstrip().lower()
    if why := known_as(path, head):
        raise UsageError(why)
    if name.endswith(_OF_A_STORE):
        raise UsageError(f"{path}: a single file of a store: {_WHOLE}")
    if name.endswith(".sql"):
        raise UsageError(f"{path}: a dump of a metadata database: {_WHOLE}, and add --catalog {path}")
    if name.endswith((".yaml", ".yml")):
        raise UsageError(f"{path}: if this is a task file of MilvusDM: milvus-offline run {path}")
    if text.startswith(b"{") and b'"collections"' in text and b'"segments"' in text:
        raise UsageError(f"{path}: a catalog that milvus-migration exported: {_WHOLE}, and add --catalog {path}")
    if name.endswith((".csv", ".tsv", ".json", ".jsonl", ".txt", ".md")):
        raise UsageError(f"{path}: a text file; read are {_READ}")
    faiss = head[:1] in (b"I", b"N") and head[:4].isalnum()
    milvus = len(head) > 4 and head[1:4] == b"\0\0\0" and (1 <= head[0] <= 16 or head[0] in (100, 101))
    if not (faiss or milvus or name.endswith((".index", ".faiss"))):
        raise UsageError(f"{path}: not a source: it begins with {_begin(head[:8])}; read are {_READ}")


def _begin(head: bytes) -> str:
    """The first bytes of a file for a person: a text, or numbers in hexadecimal."""
    return repr(head.decode()) if head.isascii() and head.decode().isprintable() else f"the bytes {head.hex(' ')}"


def _database(path: Path) -> str:
    tables: set[str] = set()
    ours = False
    with contextlib.suppress(sqlite3.Error, OSError):
        uri = f"{Path(os.path.abspath(path)).as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            tables = {
                str(name).lower() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            ours = any(
                not is_foreign(name, [str(row[1]) for row in connection.execute(f"PRAGMA table_info({name})")])
                for name in ("Tables", "TableFiles")
            )
    if "collection_meta" in tables:
        return (
            f"{path}: a file of Milvus Lite 2.4 or 2.5, which is not read here: open it with that release (pip install "
            "'milvus-lite<3') and its own `milvus-lite dump`, or pymilvus' query iterator"
        )
    if tables & {"collectioncommit", "segmentcommit"}:
        return f"{path}: the catalog of Milvus 0.11, a preview with another storage engine, not read here"
    if tables and not ours:
        listed = ", ".join(sorted(map(printable, tables))[:8])
        return (
            f"{path}: a SQLite database, but none of Milvus 1.x (no Tables and TableFiles as Milvus has them; it has {listed})"
        )
    return f"{path}: a metadata database: {_WHOLE}; if this file lies elsewhere, add --catalog {path}"


# Folders --------------------------------------------------------------------------------------------------------------

_FEW = 20
_OF_2 = {"insert_log", "delta_log", "stats_log", "index_files", "rdb_data", "rdb_data_meta_kv"}


def refuse_folder(root: Path) -> None:
    """Raises StoreError for data of another Milvus, in this folder or up to two below it."""
    for folder, names in _near(root):
        if names >= {"collections", "LOCK"} or (names >= {"schema.json", "manifest.json", "partitions"}):
            raise StoreError(
                f"{folder}: a database of Milvus Lite 3, which is a target here, not a source: open it with pymilvus "
                f"(MilvusClient('{folder}')) and its query iterator"
            )
        if (folder / "meta" / "backup_meta.json").is_file() or names >= {"backup_meta.json"} or "binlogs" in names:
            raise StoreError(f"{folder}: a backup of Milvus 2.x by milvus-backup: restore it with `milvus-backup restore`")
        if _is_preview(folder, names):
            raise StoreError(
                f"{folder}: folders named C_<id>/P_<id> are those of Milvus 0.11, a preview with another storage engine, "
                "not read here. Start that server once more and export through its API"
            )
        if names & _OF_2 or ".minio.sys" in names or {"etcd", "minio"} <= names:
            what = "a bucket of MinIO" if ".minio.sys" in names else "object storage with insert_log/, or container volumes"
            raise StoreError(f"{folder}: this is data of Milvus 2.x ({what}). This tool reads 1.x; for 2.x use milvus-backup")
        if names == {"member"} and (folder / "member" / "wal").is_dir():
            raise StoreError(f"{folder}: the data of etcd, the catalog of a Milvus 2.x. This tool reads 1.x")
        if "ibdata1" in names:
            raise StoreError(
                f"{folder}: the data folder of a MySQL server: start MySQL on it, then {_WHOLE}, and add --catalog "
                "mysql://user@host/database"
            )
    _refuse_lone_files(root)


def _refuse_lone_files(root: Path) -> None:
    """Raises UsageError where a folder holds nothing but a packed file or a database."""
    with contextlib.suppress(OSError):
        there = [e for e in scan(root) if not e.name.startswith(".")]
        if there and all(e.is_file() for e in there) and len(there) <= _FEW:
            for path in sorted(as_path(e.path) for e in there):
                with open_binary(path) as f:
                    head = f.read(512)
                if head.startswith(b"SQLite format 3\0") and path.name != "meta.sqlite":
                    raise UsageError(_database(path))
                if packed(head) and len(there) == 1:
                    raise UsageError(str(known_as(path, head)))


def _is_preview(folder: Path, names: set[str]) -> bool:
    return any(re.fullmatch(r"C_\d+", n) and any(folder.joinpath(n).glob("P_*")) for n in sorted(names)[:1000])


def _near(root: Path) -> Iterator[tuple[Path, set[str]]]:
    level = [root]
    for _ in range(3):
        below: list[Path] = []
        for folder in level[:200]:
            with contextlib.suppress(OSError):
                there = [(e.name, e.is_dir()) for e in scan(folder)]
                yield folder, {name for name, _ in there}
                below += [folder / name for name, is_folder in sorted(there) if is_folder]
        level = below
