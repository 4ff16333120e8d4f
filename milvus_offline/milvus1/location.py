"""Finding a store: its folders, its configuration, and what it is when it is something else (FORMAT §1, §9)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .. import fileio
from ..errors import StoreError, UsageError
from ..findings import Findings
from ..model import Finding, Severity
from ..names import printable
from .layout import CONFIG, DB, META, TABLES, WAL, WAL_META, WAL_SUFFIX

_SEARCH_DEPTH = 3
"""How many folders below the given one a store is looked for."""
_BUCKET_DEPTH = 8
"""The same in a bucket, where keys may hold the whole path that a file had on the server (§1.4)."""
_MAX_CONFIG = 1 << 20
"""Bytes of a configuration; real ones have a few thousand."""


@dataclass(frozen=True)
class Config:
    """What a `server_config.yaml` says that matters here; None where it says nothing."""

    path: Path | None = None
    storage_path: str | None = None
    secondary_paths: tuple[str, ...] = ()
    meta_uri: str | None = field(default=None, repr=False)
    wal_path: str | None = None
    wal_enabled: bool | None = None
    s3_bucket: str | None = None
    """Where 1.1 kept segment files when it was told to; '' where that bucket has no name (§1.4)."""
    problem: str | None = None
    """Why nothing could be read of a file that is there."""

    @property
    def mysql_uri(self) -> str | None:
        """The `meta_uri` when it names a MySQL server; may hold a password."""
        uri = self.meta_uri or ""
        return uri if uri.startswith("mysql://") else None


class Location(NamedTuple):
    """The folders of one store. `roots` contain `tables/`, the primary one first."""

    root: Path
    roots: tuple[Path, ...]
    meta: Path | None
    wal: Path | None
    config: Config
    findings: tuple[Finding, ...] = ()


def locate(
    path: str | os.PathLike[str],
    *,
    wal: str | os.PathLike[str] | None = None,
    secondary: Iterable[str | os.PathLike[str]] = (),
) -> Location:
    """Finds the store at `path`: the Milvus root, its `db/` folder, or a folder above it.

    Where only a write-ahead log is left, in `path`, its `wal/` or the folder `wal`, the `db/` of what is found does not exist.
    Raises StoreError when there is none, when there are several, or when it belongs to another version of Milvus, and says what
    to do then; UsageError when `wal` or `secondary` name no folder.
    """
    given = fileio.as_path(path)
    fileio.list_once(given)
    if not given.exists():
        raise StoreError(fileio.missing_link(given) or f"{given}: there is no such file or folder")
    if not given.is_dir():
        raise StoreError(f"{given}: expected the data folder of a Milvus 1.x server (it holds `db/`), found a file")
    given = fileio.absolute(given)
    log = fileio.as_path(wal) if wal is not None else next((p for p in (given / WAL, given) if _holds_wal(p)), None)
    db = _find_db(given, log)
    root = db.parent if db.name == DB else db
    config = read_config(
        _first_file(root / CONFIG, root / "conf" / CONFIG, root.parent / CONFIG, root.parent / "conf" / CONFIG)
    )
    notes = Findings()
    if config.problem is not None:
        text = f"cannot be read ({config.problem}): what it says of the catalog, the log and secondary roots is not known"
        notes.info("config-unreadable", str(config.path), text)
    if config.s3_bucket is not None:
        notes.append(_in_s3(config, db))
    roots = [db]
    if extra := [fileio.as_path(s) for s in secondary]:
        for folder in extra:
            fileio.list_once(folder)
            if not (folder / TABLES).is_dir():
                raise UsageError(f"{folder}: expected a secondary root, a folder that holds `tables/`")
        roots += extra
    else:
        roots += [r for s in config.secondary_paths if (r := _secondary(s, root, config, notes))]
    meta = db / META
    if wal is not None:
        folder = fileio.as_path(wal)
        fileio.list_once(folder)
        if not folder.is_dir():
            raise UsageError(f"{folder}: --wal must name the folder that holds the .wal files")
        own = _wal_folder(root, config, Findings()) if db.exists() and not _holds_wal(folder) else None
        if own is not None and _holds_wal(own):
            raise UsageError(f"{folder}: no .wal file is in the folder of --wal, and {own} holds some: leave --wal out")
        wal_folder: Path | None = folder
        config = replace(config, wal_enabled=config.wal_enabled or None)  # who names a log wants it, see `wal-disabled`
    elif not db.exists():
        wal_folder = log
    else:
        wal_folder = _wal_folder(root, config, notes)
    return Location(root, tuple(roots), meta if meta.exists() else None, wal_folder, config, tuple(notes))


def _is_db(path: Path) -> bool:
    """Also true for an empty `db/` beside a log: a catalog that is lost before anything was flushed."""
    if (path / META).is_file() or (path / TABLES).is_dir():
        return True
    return path.name == DB and path.is_dir() and _holds_wal(path.parent / WAL)


def _find_db(given: Path, log: Path | None) -> Path:
    for folder in (given, given / DB):
        if why := fileio.closed(folder):
            raise StoreError(why)
    for candidate in (given / DB, given):
        if candidate.is_dir() and _is_db(candidate):
            _refuse_preview(candidate)
            return candidate
    for link in (given / DB, given / TABLES, given / META):
        if why := fileio.missing_link(link):
            raise StoreError(why)
    _refuse_others(given)
    level, found = [given], []
    depth = _BUCKET_DEPTH if fileio.is_remote(given) else _SEARCH_DEPTH
    for _ in range(depth):
        below: list[Path] = []
        for folder in level:
            try:
                children = sorted(e.path for e in fileio.scan(folder) if e.is_dir())
            except OSError:
                continue
            below += map(fileio.as_path, children)
        found = [p for p in below if p.name == DB and _is_db(p)]
        if found:
            break
        level = below[:1000]
    if len(found) > 1:
        names = "\n  ".join(str(p.parent) for p in found)
        raise StoreError(f"{given}: several stores are below this folder, name one of them:\n  {names}")
    if found:
        return found[0]
    if not fileio.is_remote(given) and not os.access(given, os.R_OK | os.X_OK):
        raise StoreError(f"{given}: no permission to look into this folder")
    if log == given and _is_db(given.parent / DB):
        raise StoreError(f"{given}: this is the write-ahead log of the store {given.parent}: name that folder")
    if log is not None and _holds_wal(log):
        return given / DB
    real = given if fileio.is_remote(given) else given.resolve()
    around = next((p for p in list(real.parents)[: _SEARCH_DEPTH + 1] if p.name == DB and _is_db(p)), None)
    if around is not None and not fileio.is_remote(given):
        raise StoreError(f"{given}: a folder inside of the store {around.parent}: name that folder")
    raise StoreError(
        f"{given}: not a Milvus 1.x data folder: expected `db/{META}` or `db/{TABLES}/` in it, its `db/` folder, or at most "
        f"{depth} folders below. Name the folder of the server's setting storage.path (often /var/lib/milvus)"
    )


def _refuse_others(given: Path) -> None:
    names: set[str] = set()
    with contextlib.suppress(OSError):
        names = {e.name for e in fileio.scan(given)}
    if names & {"insert_log", "delta_log", "stats_log", "rdb_data", "rdb_data_meta_kv"} or {"etcd", "minio"} <= names:
        raise StoreError(
            f"{given}: this is data of Milvus 2.x (object storage with insert_log/, a standalone's rdb_data/, or container "
            "volumes). This tool reads 1.x; for 2.x use milvus-backup"
        )
    _refuse_preview(given)


def _refuse_preview(db: Path) -> None:
    for folder in (db, db / TABLES):
        for first in folder.glob("C_*"):
            if any(re.fullmatch(r"P_\d+", p.name) for p in first.glob("P_*")):
                raise StoreError(
                    f"{first}: folders named C_<id>/P_<id> are those of Milvus 0.11, a preview with another storage engine, "
                    "not read here. Start that server once more and export through its API"
                )


def _first_file(*paths: Path) -> Path | None:
    return next((p for p in paths if p.is_file() or fileio.missing_link(p)), None)


def read_config(path: Path | None) -> Config:
    """Reads a `server_config.yaml` of 0.5-1.1.1; of an unreadable one only its `problem` is known."""
    if path is None:
        return Config()
    import yaml

    try:
        if path.stat().st_size > _MAX_CONFIG:
            return Config(path, problem="too large for a configuration")
        document = yaml.safe_load(path.read_bytes())
    except OSError as e:
        return Config(path, problem=fileio.missing_link(path) or e.strerror or str(e))
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date or a number that is none
        mark = getattr(e, "problem_mark", None)  # the error's own text may show a password
        return Config(path, problem="not YAML" + (f", line {mark.line + 1}" if mark else ""))
    if not isinstance(document, dict):
        return Config(path, problem="no sections in it")

    def get(*keys: str) -> Any:
        for key in keys:
            section, _, name = key.partition("/")
            part = document.get(section)
            if isinstance(part, dict) and part.get(name) is not None:
                return part[name]
        return None

    def text(*keys: str) -> str | None:
        value = get(*keys)
        return str(value).strip() or None if isinstance(value, (str, int, float)) else None

    def flag(*keys: str) -> bool | None:
        value = get(*keys)
        if isinstance(value, str):
            value = {"true": True, "on": True, "false": False, "off": False}.get(value.lower())
        return value if isinstance(value, bool) else None

    return Config(
        path=path,
        storage_path=text("storage/path", "storage_config/primary_path", "db_config/primary_path"),
        secondary_paths=tuple(
            s.strip() for s in (text("storage_config/secondary_path", "db_config/secondary_path") or "").split(";") if s.strip()
        ),
        meta_uri=text("general/meta_uri", "db_config/backend_url"),
        wal_path=text("wal/path", "wal_config/wal_path"),
        wal_enabled=flag("wal/enable", "wal_config/enable"),
        s3_bucket=(text("storage/s3_bucket") or "") if flag("storage/s3_enabled") else None,
    )


def _relative(configured: str, storage: str | None) -> PurePosixPath | None:
    """A configured path relative to the configured storage path, when it is below it."""
    if storage is None:
        return None
    try:
        return PurePosixPath(configured).relative_to(PurePosixPath(storage))
    except ValueError:
        return None


def _secondary(configured: str, root: Path, config: Config, notes: Findings) -> Path | None:
    candidates = []
    if inside := _relative(configured, config.storage_path):
        candidates.append(root / inside)
    else:
        # a copied volume: the secondary lies beside the root as it did on the server
        name = PurePosixPath(configured).name
        candidates += [root / name, root.parent / name, Path(configured)]
    for candidate in candidates:
        if (candidate / TABLES).is_dir():
            if candidate != Path(configured):
                notes.append(_mapped("secondary path", configured, candidate))
            return candidate
    notes.warning(
        "secondary-missing",
        str(config.path),
        f"the configuration names the secondary path {configured}, which is not here; segments in it are missing. "
        "Name the place with --secondary",
    )
    return None


def _wal_folder(root: Path, config: Config, notes: Findings) -> Path | None:
    beside = root / WAL
    if config.wal_path is None:
        return beside if beside.is_dir() else None
    inside = _relative(config.wal_path, config.storage_path)
    outside = Path(config.wal_path)
    if inside is not None and (root / inside).is_dir():
        return root / inside
    if inside is None and _holds_wal(outside):
        moved = config.storage_path is not None and os.path.realpath(config.storage_path) != os.path.realpath(root)
        if moved and _holds_wal(beside) and os.path.realpath(beside) != os.path.realpath(outside):
            text = f"used as the log of this copy; the configured log {outside} exists too. Choose with --wal"
            notes.warning("path-mapped", str(beside), text)
            return beside
        return outside
    for candidate in (beside, root.parent / outside.name):
        if _holds_wal(candidate):
            notes.append(_mapped("WAL", config.wal_path, candidate))
            return candidate
    return beside if beside.is_dir() else None


def _in_s3(config: Config, db: Path) -> Finding:
    return Finding(
        Severity.INFO,
        "s3-storage",
        str(config.path),
        f"the server kept .rv, .uid and index files in the S3 bucket {printable(config.s3_bucket)!r} and not on its disk. Read "
        f"them there: s3://{printable(config.s3_bucket)} in place of {db.parent}, with --catalog {db / META} (and --wal); "
        "AWS_ENDPOINT_URL names the server's s3_address and s3_port",
    )


def _holds_wal(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(e.name == WAL_META or e.name.endswith(WAL_SUFFIX) for e in fileio.scan(folder))
    except OSError:
        return False


def _mapped(what: str, configured: str, used: Path) -> Finding:
    return Finding(
        Severity.INFO, "path-mapped", str(used), f"used as the {what}; the server's configuration names {configured}"
    )
