"""Small files that a person names on the command line: whatever else is there instead ends in one sentence, and soon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import fileio
from .errors import DamageError, UsageError
from .names import printable

_MOST = 16 << 20
"""Bytes; real ones have some thousand."""


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """The whole file; `what` is its name in a sentence, such as `the partition map`.

    Raises UsageError when it cannot be read, is no file (a device may never end, a pipe may wait for ever), or is too large.
    """
    try:
        fd = fileio.open_read(path)
        try:
            size = fileio.size_of(fd)
            if size > _MOST:
                raise UsageError(f"{path}: {what} has {size:,} bytes, expected {_MOST:,} at most")
            data = bytearray(size)
            fileio.read_into(fd, memoryview(data), 0, path)
        finally:
            os.close(fd)
    except DamageError as e:
        raise UsageError(f"cannot read {what}: {e}") from e
    except OSError as e:
        raise UsageError(f"{path}: cannot read {what}: {fileio.missing_link(Path(path)) or e.strerror}") from e
    return bytes(data)


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The same as text. Raises UsageError."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: cannot read {what}: not text in UTF-8") from e


def read_document(path: str | os.PathLike[str], what: str, decoded: Callable[[bytes], str | bytes] = lambda data: data) -> Any:
    """What a YAML file says, of which JSON is a part; `decoded` turns its bytes into text. Raises UsageError."""
    import yaml

    data = read_bytes(path, what)
    try:
        return yaml.safe_load(decoded(data))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as e:  # ValueError: a day such as 2001-99-99
        mark = getattr(e, "problem_mark", None)
        if isinstance(e, RecursionError):
            reason = "nested too deeply"
        else:
            reason = getattr(e, "problem", None) or (str(e) if isinstance(e, ValueError) else "unreadable")
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise UsageError(f"{place}: {what} is neither YAML nor JSON: {printable(reason)}") from e
