"""Files in a bucket, read by ranged requests; from front to back with several in flight."""

from __future__ import annotations

import errno
import io
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, BinaryIO, NamedTuple, cast

from .objects import HEAD, SMALL, Item, Objects, objects, place_of

BLOCK_BYTES = 4 << 20
"""One ranged request of a file that is read from front to back."""
AHEAD = 2
"""Blocks of one file that are on their way while one is used."""
_GAP = 16 << 20
"""Bytes that may be left out of a file that is still said to be read from front to back."""


class BucketFd(int):
    """The descriptor of a file in a bucket: a real one, of an empty file. So `os.close` works, and code that reads from it
    without `fileio` finds nothing there, never other bytes."""

    file: ObjectFile


def open_read(url: str, span: tuple[int, int] | None = None) -> BucketFd:
    """A descriptor for `fileio.read_into`. Raises OSError where there is no such file.

    `span`: the bytes, from the first up to the second, that are about to be read from front to back.
    """
    file = ObjectFile.of(url, span)
    fd = BucketFd(os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    fd.file = file
    return fd


class _Block(NamedTuple):
    """What is asked for at once: bytes start..end-1."""

    start: int
    end: int
    data: Future[bytes]


class ObjectFile:
    """An open file in a bucket. One thread uses it."""

    def __init__(self, store: Objects, item: Item, span: tuple[int, int] | None = None) -> None:
        self._store, self._item = store, item
        self.size = item.size
        self._end, self._until = span or (-1, item.size)
        """Where the last read ended, and up to where blocks are asked for."""
        self._run = 0 if span is None else AHEAD
        """Reads in a row that went on where the one before ended."""
        self._blocks: deque[_Block] = deque()
        """One behind the other, the first one in use."""

    @classmethod
    def of(cls, url: str, span: tuple[int, int] | None = None) -> ObjectFile:
        """The file at `url`. Raises OSError where there is no such file."""
        scheme, key = place_of(url)
        store = objects(scheme)
        item = store.known(key)
        if item is None or item.is_dir:
            code = errno.ENOENT if item is None else errno.EISDIR
            raise OSError(code, os.strerror(code), str(url))
        return cls(store, item, span)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset` on; returns how many bytes there were."""
        length = max(0, min(len(buffer), self.size - offset))
        done = 0
        while done < length:
            data = self._some(offset + done, length - done)
            if not data:
                break
            buffer[done : done + len(data)] = data
            done += len(data)
        return done

    def _some(self, at: int, wanted: int) -> bytes | memoryview:
        if self.size <= SMALL or at + wanted <= HEAD:
            return memoryview(self._store.begin(self._item))[at : at + wanted]
        goes_on = 0 <= at - self._end <= _GAP and self._end > 0
        self._run = self._run + 1 if goes_on else 0
        while self._blocks and not self._blocks[0].start <= at < self._blocks[0].end:
            self._blocks.popleft().data.cancel()
        if goes_on:
            self._ask(at)
        if self._blocks:
            found = memoryview(self._blocks[0].data.result())[at - self._blocks[0].start :][:wanted]
        else:
            found = memoryview(self._store.fetch(self._item, at, min(at + wanted, self.size)))
        self._end = at + len(found)
        return found

    def _ask(self, at: int) -> None:
        """Asks for the block that begins at `at`, unless there is one, and for some after it."""
        until = self._until if at < self._until else self.size
        start = self._blocks[-1].end if self._blocks else at
        while start < until and len(self._blocks) <= min(self._run, AHEAD):
            end = start + BLOCK_BYTES
            if until - end <= SMALL:  # a short rest takes no request of its own
                end = until
            self._blocks.append(_Block(start, end, self._store.pool.submit(self._store.fetch, self._item, start, end)))
            start = end


class _Raw(io.RawIOBase):
    """The same as a file object."""

    def __init__(self, file: ObjectFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        got = self._file.read_into(memoryview(buffer).cast("B"), self._at)
        self._at += got
        return got


def open_binary(url: str) -> BinaryIO:
    """The file for reading, with a buffer."""
    return cast(BinaryIO, io.BufferedReader(_Raw(ObjectFile.of(url)), 1 << 16))


def warm(urls: Iterable[str]) -> None:
    """Fetches the beginnings of many files at once."""
    by_scheme: dict[str, list[str]] = {}
    for url in urls:
        scheme, _, key = url.partition("://")
        by_scheme.setdefault(scheme, []).append(key)
    for scheme, keys in by_scheme.items():
        objects(scheme).warm(keys)
