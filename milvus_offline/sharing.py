"""Files that share blocks on the disk (reflinks): XFS, Btrfs and others on Linux. A clone costs no room and hardly any time."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from . import fileio
from .errors import TargetError

Reflink = Literal["auto", "always", "never"]
BLOCK = 4096
"""Clones begin and end at multiples of it; larger blocks than a page are refused by the system, and then copied."""

_FICLONERANGE = 0x4020940D
_RANGE = struct.Struct("=qQQQ")
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF, errno.ETXTBSY)


def clone_range(source: int, at: int, target: int, target_at: int, nbytes: int) -> bool:
    """Makes a range of one open file share its blocks with another's (0 bytes: up to the end); False where that cannot be.

    Offsets and size are multiples of `BLOCK`, but for a size that ends with the source.
    """
    try:
        import fcntl
    except ImportError:
        return False
    ioctl: Any = fcntl.ioctl
    try:
        ioctl(target, _FICLONERANGE, _RANGE.pack(source, at, nbytes, target_at))
    except OSError as e:
        if e.errno not in _CANNOT:
            raise
        return False
    return True


def clone_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """A new file at `target` that shares all blocks; False, and no file, where that cannot be."""
    if fileio.is_remote(source):
        return False
    fd = fileio.open_read(source)
    try:
        with open(target, "wb") as file:
            made = clone_range(fd, 0, file.fileno(), 0, 0)
        if not made:
            os.unlink(target)
        return made
    finally:
        os.close(fd)


def can_share(sources: Iterable[str], folder: Path, wish: Reflink) -> bool:
    """Whether files in `folder` can share blocks with all of `sources`: tried with a clone of one of each device.

    Raises TargetError where it must (`always`) and cannot.
    """
    if wish == "never":
        return False
    devices = {os.stat(path).st_dev: path for path in sources if not fileio.is_remote(path)}
    if wish == "always" and not devices:
        raise TargetError(
            f"{folder}: nothing of the source can be shared: that takes a segment of at least 1 MiB on a disk, without deleted "
            "rows and attributes, for an export one that is a whole partition; leave --reflink always out to copy"
        )
    able = bool(devices) and all(_try(path, folder) for path in devices.values())
    if wish == "always" and not able:
        raise TargetError(
            f"{folder}: cannot share blocks with the store: both must lie on one volume that can (XFS with reflink=1, Btrfs); "
            "leave --reflink always out to copy"
        )
    return able


def _try(path: str, folder: Path) -> bool:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(dir=folder, prefix=".reflink-") as scratch:
        return clone_file(path, os.path.join(scratch, "probe"))
