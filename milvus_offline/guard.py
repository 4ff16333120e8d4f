"""What protects source and target while something is written: nothing goes into the source, and refusals say what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import TargetError, UsageError
from .fileio import is_remote


def keep_out(path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
    """Raises UsageError when `path` is, or lies in, a place of the source that `about` (see Source.describe) tells of."""
    named = [p for p in (about.get("path"), about.get("wal"), about.get("catalog"), *about.get("roots", ())) if p is not None]
    places = [str(p) for p in named]
    for root in about.get("roots", ()):
        with contextlib.suppress(OSError), os.scandir(os.path.join(root, "tables")) as entries:
            places += [os.path.join(root, "tables"), *(e.path for e in entries if e.is_symlink())]
    if is_remote(path):
        for place in filter(is_remote, places):
            if f"{path}/".startswith(f"{place}/"):
                raise UsageError(f"{path}: lies inside the source {place}, which is never written to; choose another place")
        return
    real = Path(os.path.realpath(path))
    for place in (p for p in places if not is_remote(p)):
        if real.is_relative_to(os.path.realpath(place)):
            raise UsageError(f"{path}: lies inside the source {place}, which is never written to; choose another place")


def check_file(path: str, what: str) -> None:
    """Raises what `explained` would at the end of a long run: at its beginning, where the file cannot be written."""
    with explained(what, path):
        if is_remote(path):
            return
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder: name a file")
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def free_space(path: str | os.PathLike[str]) -> tuple[Path, int | None]:
    """The folder that is there, of those above `path`, and the bytes that are free in it; None where nothing tells."""
    there = Path(os.path.abspath(path))
    while not there.is_dir() and there != there.parent:
        there = there.parent
    try:
        return there, shutil.disk_usage(there).free
    except OSError:
        return there, None


def missing_folder(path: object) -> str | None:
    """The folder of a file that is to be written, where there is none."""
    folder = os.path.dirname(os.path.abspath(str(path)))
    return None if os.path.isdir(folder) else folder


@contextlib.contextmanager
def explained(what: str, path: object, *, resumable: bool = True) -> Iterator[None]:
    """Turns the operating system's refusals on the *target* side into a message that says what to do.

    Not `resumable`: what was begun cannot be gone on with, only done again.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            again = "--resume" if resumable else "--overwrite"
            hint = f"the disk is full: free some space, then run the same command with {again}"
        elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "no permission to write there: choose another place or fix the permissions"
        elif e.errno == errno.EEXIST:
            hint = "a link that leads nowhere, or a file, is in its place: choose another one"
        elif e.errno == errno.ENOENT and (folder := missing_folder(path)):
            hint = f"there is no folder {folder}"
        else:
            hint = e.strerror or str(e)
        raise TargetError(f"{path}: cannot {what}: {hint}") from e
