"""Files on any platform, and in buckets: positioned I/O, syncing, renaming.

What a source is read through takes URLs of buckets, too (`buckets/`): `as_path`, `open_read`, `read_into`, `open_binary`,
`size_of`, `scan`, `status`, `warm`, and the methods of the paths that `as_path` gives.

Linux and macOS have `preadv` and `pwrite`; elsewhere (or with POSITIONED = False) a seek and a read under a lock do the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from .errors import DamageError, MilvusOfflineError

if TYPE_CHECKING:
    import numpy.typing as npt

POSITIONED = hasattr(os, "preadv") and hasattr(os, "pwrite")
"""Whether the fast system calls are used; tests switch this off to exercise the portable way."""

_seek_lock = threading.Lock()
_BINARY = getattr(os, "O_BINARY", 0)
_READING = os.O_RDONLY | _BINARY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_NOATIME = getattr(os, "O_NOATIME", 0)
"""Even the time of the last access stays as it was, where the system lets us ask for that."""
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_UNREADABLE = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO), getattr(errno, "EREMOTEIO", errno.EIO))
"""What a disk, or a file system with checksums, answers for a place that cannot be read; other errors are of the whole file."""

_SMALL = 1 << 20

SECTOR = 512
"""The least that a disk loses."""

Ranges = list[tuple[int, int]]
"""Byte ranges of a file, each up to but without its second number."""


def is_remote(path: object) -> bool:
    """Whether `path` (a text, or what `as_path` gives) names something in a bucket."""
    return type(path) is not _PLAIN and "://" in str(path) and _buckets().is_url(path)


_PLAIN = type(Path())


def _buckets() -> ModuleType:
    from . import buckets  # rarely needed

    return buckets


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of a source; of a URL one whose methods ask the bucket, and whose text is the URL."""
    if is_remote(path):
        return cast(Path, _buckets().BucketPath(path))
    return Path(path)


def absolute(path: Path) -> Path:
    """`path` from the root on."""
    return path if is_remote(path) else Path(os.path.abspath(path))


def list_once(path: Path) -> None:
    """A folder in a bucket is listed with all below it; nothing otherwise."""
    if is_remote(path):
        _buckets().list_once(path)


def missing_link(path: Path) -> str:
    """Why `path` is not there, where it or a folder above it is a link to nowhere; '' otherwise. A clause for a message."""
    if is_remote(path):
        return ""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            to = os.readlink(place)
            return f"{place} is a link to {to}, which does not exist here (perhaps on a volume that is not mounted)"
    return ""


def scan(path: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What is directly in a folder. Raises OSError."""
    if is_remote(path):
        return cast("list[os.DirEntry[str]]", _buckets().scan(path))
    with os.scandir(path) as entries:
        return list(entries)


def names_in(path: str | os.PathLike[str]) -> list[str]:
    """The names of what is directly in a folder. Raises OSError."""
    return [entry.name for entry in scan(path)] if is_remote(path) else os.listdir(path)


def status(path: str | os.PathLike[str]) -> os.stat_result:
    """Size and time of a file. Raises OSError."""
    return as_path(path).stat() if is_remote(path) else os.stat(path)


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """A file object for reading bytes. Raises OSError, and DamageError for what is no file."""
    if is_remote(path):
        return cast(BinaryIO, _buckets().open_binary(os.fspath(path)))
    return os.fdopen(open_read(path), "rb")


def read_array(path: str | os.PathLike[str], dtype: npt.DTypeLike, count: int, offset: int) -> npt.NDArray[Any]:
    """Up to `count` values from byte `offset` of a file on, fewer where it ends before: [n]. Raises OSError."""
    import numpy as np  # every command loads this module, also for its help

    fd = open_read(path)
    try:
        kind = np.dtype(dtype)
        there = max(0, size_of(fd) - offset) // kind.itemsize
        values = np.empty(min(count, there), kind)
        read_into(fd, values.view(np.uint8).data, offset, path)
        return values
    finally:
        os.close(fd)


def copy_file(source: Path, target: Path) -> Ranges:
    """Copies a small file of a source to a place of ours; which bytes are unreadable, and zero in the copy.

    Raises OSError, and DamageError for what is no file.
    """
    fd = open_read(source)
    try:
        lost: Ranges = []
        size = size_of(fd)
        buffer = memoryview(bytearray(min(size, 1 << 20)))
        with target.open("wb") as copy:
            for at in range(0, size, 1 << 20):
                part = buffer[: size - at]
                lost += read_around(fd, part, at, source)
                copy.write(part)
        return lost
    finally:
        os.close(fd)


def warm(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Files that are about to be looked into: in a bucket their beginnings are fetched at once, many at a time."""
    if remote := [os.fspath(p) for p in paths if is_remote(p)]:
        _buckets().warm(remote)


def _open(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, _READING | _NOATIME)
    except PermissionError:  # only the owner may ask for that
        return os.open(path, _READING)


def open_read(path: str | os.PathLike[str], span: tuple[int, int] | None = None) -> int:
    """A file descriptor for `read_into`, `read_around` and `size_of`; the caller closes it (os.close).

    `span`: the bytes, from the first up to the second, that are about to be read from front to back, if that is known.
    Raises OSError, and DamageError for what is no file: a pipe would wait for ever for somebody who writes into it, a device
    may never end.
    """
    if is_remote(path):
        return cast(int, _buckets().open_read(os.fspath(path), span))
    fd = _open(path)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise DamageError(path, f"expected a file, found {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def pread(fd: int, view: memoryview, offset: int) -> int:
    """Reads into `view` what the system gives at once; 0 at the file's end. Every byte of a source passes through
    here, but for the few that `milvus1.segment.probe` compares."""
    if (remote := getattr(fd, "file", None)) is not None:
        return int(remote.read_into(view, offset))
    if POSITIONED:
        return os.preadv(fd, [view], offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        piece = os.read(fd, min(len(view), 1 << 20))
    view[: len(piece)] = piece
    return len(piece)


def size_of(fd: int) -> int:
    """Bytes of a file that `open_read` opened."""
    remote = getattr(fd, "file", None)
    return os.fstat(fd).st_size if remote is None else int(remote.size)


def read_into(fd: int, buffer: memoryview, offset: int, path: object = "file") -> None:
    """Fills `buffer` (bytes) from `offset` on.

    Raises DamageError when the file ends before, or cannot be read: what the source refuses is no fault of the target.
    """
    done = 0
    while done < len(buffer):
        try:
            got = pread(fd, buffer[done:], offset + done)
        except OSError as e:
            forgiven: dict[str, Ranges] | None = getattr(_local, "forgiven", None)
            if forgiven is None or e.errno not in _UNREADABLE:
                raise DamageError(path, f"cannot be read: {e.strerror}", offset=offset + done) from e
            forgiven.setdefault(str(path), []).extend(read_around(fd, buffer[done:], offset + done, path))
            return
        if got == 0:
            raise DamageError(path, f"expected {len(buffer)} bytes, the file ends after {done}", offset=offset)
        done += got


_local = threading.local()


@contextlib.contextmanager
def forgiving(forgive: bool = True) -> Iterator[dict[str, Ranges]]:
    """For what is only compared: within, in this thread, `read_into` gives zeros for what the disk refuses.

    Gives the refused bytes by the file's path. Within `forgiving(False)` it raises again: for what decides.
    """
    before = getattr(_local, "forgiven", None)
    mine: dict[str, Ranges] = {}
    _local.forgiven = mine if forgive else None
    try:
        yield mine
    finally:
        _local.forgiven = before


def read_around(fd: int, buffer: memoryview, offset: int, path: object = "file") -> Ranges:
    """Fills `buffer` (bytes) as `read_into` does, around what the disk refuses; returns the ranges that are unreadable.

    Those bytes are zero in `buffer`. A refused piece is tried in halves, down to a sector; what was read is never read again,
    for each attempt may be the last one of a failing disk. Raises DamageError when the file ends before.
    """
    done, size = 0, len(buffer)
    lost: Ranges = []
    while done < len(buffer):
        at = offset + done
        try:
            got = pread(fd, buffer[done : done + size], at)
        except OSError as e:
            if e.errno not in _UNREADABLE:
                raise DamageError(path, f"cannot be read: {e.strerror}", offset=at) from e
            to_boundary = SECTOR - at % SECTOR
            size = min(size, len(buffer) - done)
            if size > to_boundary:
                size = max(to_boundary, (at + size // 2) // SECTOR * SECTOR - at)
                continue
            buffer[done : done + size] = bytes(size)
            if lost and lost[-1][1] == at:
                lost[-1] = (lost[-1][0], at + size)
            else:
                lost.append((at, at + size))
            done, size = done + size, SECTOR
            continue
        if got == 0:
            raise DamageError(path, f"expected {len(buffer)} bytes, the file ends after {done}", offset=offset)
        done, size = done + got, size if not lost else 2 * size
    return lost


def read_start(path: str | os.PathLike[str], nbytes: int) -> tuple[bytes, int, Ranges]:
    """The first bytes of a file, fewer where it ends before; its size; which of them are unreadable (and zero here).

    Raises OSError when it cannot be opened, DamageError for what is no file.
    """
    fd = open_read(path)
    try:
        size = size_of(fd)
        buffer = bytearray(min(nbytes, size))
        lost = read_around(fd, memoryview(buffer), 0, path)
    finally:
        os.close(fd)
    return bytes(buffer), size, lost


def write_at(fd: int, buffer: memoryview, offset: int) -> None:
    """Writes all of `buffer` (bytes) at `offset`."""
    done = 0
    while done < len(buffer):
        if POSITIONED:
            done += os.pwrite(fd, buffer[done:], offset + done)
        else:
            with _seek_lock:
                os.lseek(fd, offset + done, os.SEEK_SET)
                done += os.write(fd, buffer[done:])


def copy_range(source: int, offset: int, target: int, nbytes: int, path: object = "file") -> None:
    """Copies `nbytes` bytes at `offset` of one file to the position of another, by the operating system where it can.

    Raises DamageError when the source (`path`) ends before.
    """
    if hasattr(os, "copy_file_range"):
        try:
            while nbytes and (done := os.copy_file_range(source, target, nbytes, offset)):
                offset, nbytes = offset + done, nbytes - done
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM):
                raise
    buffer = memoryview(bytearray(min(nbytes, 1 << 20)))
    while nbytes:
        part = buffer[:nbytes]
        read_into(source, part, offset, path)
        offset, nbytes = offset + len(part), nbytes - len(part)
        while part:
            part = part[os.write(target, part) :]


def upload(path: str) -> IO[bytes]:
    """A new object in a bucket, for `with`: it appears at its end, and not at all after an error."""
    return cast("IO[bytes]", _buckets().Upload(path))


WRITEBACK_BYTES = 4 << 20
"""Vectors after which the system is told to write them to disk."""


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Lets the system write a finished range to disk while the next one is copied, so that the sync at the end waits less."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def unreadable(path: str | os.PathLike[str]) -> str | None:
    """Why a file or folder that should be there cannot be read, with its name; None when it can.

    What may not be read is not missing, and a link that leads nowhere is not its target.
    """
    if is_remote(path):
        list_once(as_path(path))
        return None if as_path(path).exists() else f"{path}: there is no such file or folder{_near(as_path(path))}"
    try:
        if os.path.isdir(path):
            os.scandir(path).close()
        else:
            os.close(open_read(path))
    except DamageError as e:
        return str(e)
    except (FileNotFoundError, NotADirectoryError):
        place = Path(os.path.abspath(path))
        return missing_link(place) or f"{path}: there is no such file or folder{_near(place)}"
    except PermissionError as e:
        place = Path(os.path.abspath(path))
        folder = next((why for p in reversed((place, *place.parents)) if (why := closed(p))), None)
        return folder or f"{path} cannot be read: {e.strerror}: run as a user with permission"
    except OSError as e:
        return f"{path} cannot be read: {e.strerror}"
    return None


def _near(path: Path) -> str:
    """What may have been meant by a path that is not there, as the end of a sentence."""
    import difflib

    from .names import printable

    folder = path.parent
    try:
        if not folder.is_dir():
            return f": not even {folder} is there"
        near = difflib.get_close_matches(path.name, names_in(folder)[:10_000], 1, 0.6)
    except (OSError, MilvusOfflineError):
        return ""
    where = "" if is_remote(path) else f" in {folder}"
    return f": did you mean {printable(str(folder / near[0]))}?" if near else f"{where}: check the name"


def closed(folder: Path) -> str | None:
    """Why a folder that is there cannot be looked into, with its name; None where it can, and where none is there."""
    if is_remote(folder):
        return None
    try:
        os.scandir(folder).close()
        os.stat(os.path.join(folder, os.curdir))  # whether names in it can be followed is another right than to list them
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return f"{folder}: no permission to look into this folder: run as a user with permission, or copy it"
    except OSError as e:
        return f"{folder}: cannot be looked into: {e.strerror}"
    return None


def sizes(paths: Iterable[str | os.PathLike[str]]) -> list[int] | None:
    """The sizes of all these files as they are now; None when one of them is not there."""
    paths = list(paths)
    if any(map(is_remote, paths)):
        found = [_buckets().size_now(os.fspath(path)) for path in paths]
        return None if None in found else found
    try:
        return [os.stat(path).st_size for path in paths]
    except OSError:
        return None


def sync(fd: int) -> None:
    """Makes what was written to a file durable."""
    os.fsync(fd)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Makes renames in a folder durable, where the platform has a way to."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:  # some network file systems refuse
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def sync_file(path: str | os.PathLike[str]) -> None:
    """The same of a closed file."""
    fd = os.open(path, os.O_RDWR | _BINARY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """The same of many: all are on their way to the disk before the first is waited for, so that they wait for one commit of
    the file system, not for one each."""
    several = list(paths)
    for path in several if len(several) > 1 else ():
        fd = os.open(path, os.O_RDWR | _BINARY)
        begin_writeback(fd, 0, _SMALL)  # of large files most is on its way
        os.close(fd)
    for path in several:
        sync_file(path)


def publish(temporary: Path, final: Path, *, durable: bool = True) -> None:
    """Syncs `temporary`, gives it its final name, and makes the rename durable. Not `durable`: nothing waits for the disk."""
    if durable:
        sync_file(temporary)
    temporary.replace(final)
    if durable:
        sync_folder(final.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces a small file as a whole: a reader sees the old or the new one, never a part."""
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        publish(temporary, path, durable=durable)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def allocate(file: IO[Any], size: int) -> None:
    """Reserves `size` bytes so that a full disk is noticed at the start; where that is unsupported the file is extended."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    file.truncate(size)


def lock(file: IO[Any]) -> bool:
    """Takes the file for this process until it is closed; False when another process has it.

    Where the platform or the file system has no such locks, every process is told that it may.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
