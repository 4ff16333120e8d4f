"""A catalog that a person names: a database or a dump, plain or packed, or a folder with one file a table (FORMAT §2.1, §16).

What is neither is said to be neither: it is never called a damaged catalog.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ... import fileio
from ...errors import DamageError, StoreError, UsageError
from ...fileio import unreadable
from ...names import printable
from .columns import canonical_table
from .database import read_sqlite
from .dump import is_dump, looks_like_dump, unpacked
from .dumpfiles import witnesses_in
from .readable import read_dump_catalog, read_dumps_catalog
from .rows import Catalog

_SQLITE = b"SQLite format 3\0"
_MAX_UNPACKED = 4 << 30
_TABLE = re.compile(r"(?:(?P<database>.+?)[._@])?(?P<table>Tables|TableFiles|Environment|Fields)(?=[-._@]|$)", re.I)
"""In a file's name: `milvus.Tables-schema.sql`, `milvus@Tables@@0.tsv`, `milvus_Tables.sql`, `Tables.txt`."""
_LIKELY = {".sql", ".xml", ".gz", ".zst", ".bz2", ".xz", ".sqlite", ".db"}
_ROWS = re.compile(r"\.(?:txt|tsv|csv|dat)(?:\.(?:gz|bz2|xz|zst))?$", re.I)


def read_given(path: Path, database: str | None = None) -> Catalog:
    """The catalog in a file or folder. `database` chooses where a dump holds several.

    Raises StoreError for what is no catalog or cannot be read, UsageError when a person has to choose.
    """
    if reason := unreadable(path):
        raise StoreError(reason.replace("no such file or folder", "no such catalog file"))
    if path.is_dir():
        return _folder(path, path, database)
    with fileio.open_binary(path) as file:
        head = file.read(1 << 16)
    if head.startswith(b"PK\x03\x04"):
        with _extracted(path) as folder:
            return _folder(folder, path, database)
    first = unpacked(path)
    if first is not None and first.startswith(_SQLITE):
        with tempfile.TemporaryDirectory(prefix="milvus-offline-") as name:
            copy = Path(name) / "meta.sqlite"
            _unpack(path, copy)
            return read_sqlite(copy, origin=str(path))
    if first is not None or looks_like_dump(path):
        if first is not None and not is_dump(first[: 1 << 16]):
            raise StoreError(f"{path}: packed, and what is in it is neither a SQLite database nor a dump: {_begins(first)}")
        return read_dump_catalog(path, database)
    if not head.startswith(_SQLITE) and (text := _text(head)) is not None:
        raise StoreError(f"{path}: neither a catalog nor a dump of one: {text}")
    return read_sqlite(path)


def _text(head: bytes) -> str | None:
    """What a text file begins with; None for bytes, which may be a damaged database."""
    if not head:
        return "the file is empty"
    if b"\0" in head:
        return None
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as e:
        if e.start < len(head) - 4:
            return None
    return _begins(head)


def _begins(head: bytes) -> str:
    return f"it begins with {printable(head[:60].decode('utf-8', 'replace').strip())!r}"


def _unpack(path: Path, to: Path) -> None:
    from .dump import chunks

    notes: list[str] = []
    done = 0
    with to.open("wb") as file:
        for chunk in chunks(path, notes, recode=False):
            done += len(chunk)
            if done > _MAX_UNPACKED:
                raise DamageError(path, f"unpacks to more than {_MAX_UNPACKED} bytes, which no catalog has")
            file.write(chunk)
    if notes:
        raise DamageError(path, notes[0])


@contextlib.contextmanager
def _extracted(path: Path) -> Iterator[Path]:
    """A zip archive's files in a private folder, without their own folders."""
    with tempfile.TemporaryDirectory(prefix="milvus-offline-") as name:
        folder, left = Path(name), _MAX_UNPACKED
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist()[:10_000]:
                    if info.is_dir():
                        continue
                    left -= info.file_size
                    if left < 0:
                        raise DamageError(path, f"unpacks to more than {_MAX_UNPACKED} bytes, which no catalog has")
                    with archive.open(info) as member, (folder / os.path.basename(info.filename)).open("wb") as file:
                        shutil.copyfileobj(member, file)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as e:
            raise StoreError(f"{path}: cannot be unpacked: {e}") from e
        yield folder


# Folders --------------------------------------------------------------------------------------------------------------


def _folder(folder: Path, origin: Path, database: str | None) -> Catalog:
    """A folder with a `meta.sqlite`, with one dump, or with files of one table each."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    for file in files:
        if file.name in ("meta.sqlite", "meta.sqlite.gz"):
            return read_sqlite(file, origin=str(origin)) if file.suffix == ".sqlite" else read_given(file, database)
    for file in files:  # what may not be read is not left out
        if (_TABLE.match(file.name) or file.suffix.lower() in _LIKELY) and (why := unreadable(file)):
            raise StoreError(why)
    parts = [(m["database"], m["table"], p) for p in files if (m := _TABLE.match(p.name))]
    dumps = [p for p in files if looks_like_dump(p)]
    whole = [p for p in dumps if not _TABLE.match(p.name)]
    if parts and any(canonical_table(table) == "Tables" for _, table, _ in parts):
        ordered = sorted(parts, key=lambda part: (bool(_ROWS.search(part[2].name)), part[2].name))
        chosen = [(d, t, p) for d, t, p in ordered if _ROWS.search(p.name) or looks_like_dump(p)]
        return read_dumps_catalog(origin, chosen, database, witnesses_in(files))
    if len(whole) == 1:
        return read_dump_catalog(whole[0], database, origin=str(origin))
    databases = [p for p in files if _begins_with(p, _SQLITE)]
    if len(databases) == 1 and not whole:
        return read_sqlite(databases[0], origin=str(origin))
    if len(whole) + len(databases) > 1:
        listed = ", ".join(p.name for p in (*whole, *databases)[:10])
        raise UsageError(f"{origin}: holds several dumps or databases ({listed}): name one with --catalog")
    listed = ", ".join(p.name for p in files[:10]) or "no file"
    raise UsageError(
        f"{origin}: expected a catalog, found a folder with neither a metadata database nor a dump of one; there are: {listed}"
    )


def _begins_with(path: Path, magic: bytes) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(magic)) == magic
    return False
