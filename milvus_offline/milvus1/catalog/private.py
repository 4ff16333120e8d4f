"""A private copy of a SQLite catalog: SQLite changes what it opens, so it never sees the original (FORMAT §2.1).

The copy's folder holds a lock for as long as the process lives. A copy that a killed process left behind has none, and goes
when the next one is made. SQLite itself is told to take no locks: nobody else knows the copy, and where it lies the file system
may have none (NFS, CIFS).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ... import fileio
from ...errors import StoreError
from ...watch import in_words

if TYPE_CHECKING:
    import sqlite3

_PREFIX = "milvus-offline-catalog-"
_LOCK = "lock"
SIDECARS = ("-shm", "-wal", "-journal")
"""In the order of copying: what the -shm counts must be in the -wal, also when a server is still writing."""


@contextlib.contextmanager
def private_copies(path: Path) -> Iterator[tuple[Path, Path, str]]:
    """Two places for private copies of a `meta.sqlite`, with its sidecars in the first (`make_copy` fills the second), and what
    the disk refused of it.

    Raises StoreError when the original cannot be read, or there is no room for a copy.
    """
    remove_left_copies()
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    except OSError as e:
        raise _no_room(e) from e
    try:
        with _locked(folder):
            first = folder / "meta.sqlite"
            refused = make_copy(path, first, SIDECARS)
            yield first, folder / "again.sqlite", refused
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def connect_alone(path: Path) -> sqlite3.Connection:
    """Opens a SQLite file that only this process knows, without the locks that some file systems refuse. Commits by itself."""
    import sqlite3

    address = Path(os.path.abspath(path)).as_uri() + ("?vfs=unix-none" if os.name == "posix" else "")
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # a -wal is then read without memory shared with others
    return connection


def make_copy(path: Path, copy: Path, suffixes: tuple[str, ...]) -> str:
    """Copies a `meta.sqlite` and those of its sidecars that are there; says what the disk refused. Raises StoreError."""
    refused = []
    for suffix in ("", *suffixes):
        original = path.with_name(path.name + suffix)
        if (why := fileio.missing_link(original)) and suffix != "-shm":
            raise StoreError(why)
        if not original.is_file() or (suffix == "-shm" and fileio.unreadable(original)):  # that one holds no data
            continue
        try:
            if lost := fileio.copy_file(original, copy.with_name(copy.name + suffix)):
                refused.append(f"the disk refuses {in_words(lost)} of {original.name}")
        except OSError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) or e.filename == str(copy.with_name(copy.name + suffix)):
                raise _no_room(e) from e
            if isinstance(e, PermissionError):
                text = "no permission to read the catalog: run as a user with permission, or copy it"
            else:
                text = f"cannot read the catalog: {e.strerror}"
            raise StoreError(f"{original}: {text}") from e
    return "; ".join(refused)


def _no_room(error: OSError) -> StoreError:
    try:
        place = tempfile.gettempdir()
    except OSError:  # none of the usual places can be written to
        place = os.environ.get("TMPDIR", "TMPDIR")
    return StoreError(
        f"{place}: cannot make a private copy of the catalog here ({error.strerror}): free some space there, or name another "
        "folder in the environment variable TMPDIR"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. The file has another name until it is locked: nobody finds it free before, nor where no lock
    can be had."""
    new, final = folder / "new", folder / _LOCK
    with new.open("wb") as file:
        if _take(file):
            new.rename(final)
        yield


def remove_left_copies() -> None:
    """Removes copies whose process was killed: those of this user whose lock nobody holds."""
    with contextlib.suppress(OSError):
        for entry in fileio.scan(tempfile.gettempdir()):
            if entry.name.startswith(_PREFIX) and _is_ours(entry) and _is_free(Path(entry.path) / _LOCK):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _is_free(path: Path) -> bool:
    """Whether there is such a lock and no process holds it."""
    try:
        with path.open("rb") as file:
            return _take(file)
    except OSError:
        return False


def _take(file: IO[bytes]) -> bool:
    """Locks a file until it is closed; False where another process has it, and where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
