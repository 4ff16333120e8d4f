"""Disks that refuse some sectors: the read function fails there as it does on a real one (`tests/test_faileddisk.py`)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from milvus_offline import fileio

PAGE = 4096
"""A file system reads no less."""


@contextlib.contextmanager
def refusing(places: Mapping[Path, list[tuple[int, int]]], page: int = PAGE) -> Iterator[list[tuple[int, int]]]:
    """Reading of these ranges of these files is an input/output error; gives all that is read of them, (offset, bytes)."""
    bad = {
        os.stat(path).st_ino: [(a // page * page, -(-b // page) * page) for a, b in ranges] for path, ranges in places.items()
    }
    real, reads = fileio.pread, []

    def pread(fd: int, view: memoryview, offset: int) -> int:
        ranges = bad.get(os.fstat(fd).st_ino, [])
        wanted = offset + len(view)
        for first, last in ranges:
            if first <= offset < last:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if offset < first:
                wanted = min(wanted, first)  # up to there it goes well
        got = real(fd, view[: wanted - offset], offset)
        if ranges:
            reads.append((offset, got))
        return got

    fileio.pread = pread
    try:
        yield reads
    finally:
        fileio.pread = real
