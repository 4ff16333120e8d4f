"""Pieces as blocks of rows for several threads: what lies in segment files is seen in place, all else comes in batches.

A page that cannot be read (a failing disk, a file that was cut) would end the process in the middle of a memory map. So the
pages of a block are asked for first (`MADV_POPULATE_READ`, Linux 5.14), which says so instead; where the system cannot do
that, rows are read into a buffer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Protocol, TypeGuard, cast
from weakref import WeakMethod

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import DamageError
from ..milvus1.layout import ID, LENGTH
from ..milvus1.segment.dead import DeadRows
from ..milvus1.segment.files import Segment
from ..milvus1.segment.restored import RestoredSegment
from ..model import Array, Piece, buffer
from ..watch import Watch, watching

BLOCK_BYTES = 32 << 20
"""Vectors that one thread takes at a time."""
BATCH_BYTES = 4 << 20

_MOST_MAPPED = 8192
"""Linux gives a process 65,530 maps."""
_POPULATE_READ = 22
_UNREADABLE = (errno.EFAULT, errno.EIO, getattr(errno, "EHWPOISON", errno.EIO))
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Named(Protocol):
    """A partition: its name and its pieces."""

    @property
    def name(self) -> str: ...
    @property
    def pieces(self) -> Sequence[Piece]: ...


@dataclass(frozen=True)
class Tile:
    """Some rows: `ids` int64 [n], `vectors` [n, width], `dead` bool [n] or None. `first`: the number of the first one."""

    ids: npt.NDArray[np.int64]
    vectors: Array
    first: int
    dead: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Block:
    """What one thread takes at a time. `tiles(rows)` gives it in tiles of at most so many rows."""

    tiles: Callable[[int], Iterator[Tile]]
    opened: Opened | None = None
    """Who counts the open files; lives as long as this does."""


@dataclass(eq=False)
class Files:
    """The files of one segment, opened once for all threads and requests: maps, and which rows are dead.

    `used` is told whenever a map is asked for; it is weak, so that no circle keeps the files open. Raises DamageError where a
    file is shorter than when the store was opened.
    """

    segment: Segment
    used: WeakMethod[Callable[[Files], None]]
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)
    _populated: set[int] = field(default_factory=set, repr=False)

    @property
    def vectors(self) -> Array:
        """All stored vectors, a memory map [stored, width]."""
        s = self.segment
        return self._mapped("vectors", lambda: self._map(s.raw_path, s.schema.row_bytes, lambda: s.vectors))

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The ids of all stored rows, a memory map [stored]."""
        s = self.segment
        return self._mapped("ids", lambda: self._map(s.ids_path, ID.itemsize, lambda: s.ids))

    @property
    def dead(self) -> DeadRows | None:
        """The rows that are not live; None when all are."""
        return cast("DeadRows | None", self._once("dead", self.segment.dead_rows))

    def unmap(self) -> None:
        """Closes the files as soon as nobody looks at them any more; the next who asks opens them again."""
        with self._lock:
            self._kept = {name: kept for name, kept in self._kept.items() if name == "dead"}
            self._populated.clear()

    def _mapped(self, name: str, make: Callable[[], Array]) -> Array:
        found = cast(Array, self._once(name, make))
        if (used := self.used()) is not None:
            used(self)
        return found

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = make()
            return self._kept[name]

    def _map(self, path: str, row_bytes: int, make: Callable[[], Array]) -> Array:
        self._check(path, row_bytes)
        with _explained(path):
            return np.asarray(make())

    def _check(self, path: str, row_bytes: int) -> None:
        with _explained(path):
            size = fileio.status(path).st_size
        expected = LENGTH.size + self.segment.stored * row_bytes
        if size < expected:
            raise DamageError(path, f"expected {expected} bytes, found {size}: the file was cut meanwhile")

    def blocks(self, base: int) -> Iterator[Block]:
        """All rows; the number of a row is `base` + its offset."""
        s = self.segment
        step = max(1, BLOCK_BYTES // s.schema.row_bytes)
        for first in range(0, s.stored, step):
            last = min(first + step, s.stored)
            yield Block(partial(self._tiles, base, first, last))

    def _tiles(self, base: int, first: int, last: int, rows: int) -> Iterator[Tile]:
        vectors, ids, dead = self.vectors, self.ids, self.dead
        self._check(self.segment.raw_path, self.segment.schema.row_bytes)
        self._check(self.segment.ids_path, ID.itemsize)
        seen = self._see(vectors[first:last], ids[first:last], first)
        for at in range(first, last, rows):
            end = min(at + rows, last)
            gone = dead.window(at, end) if dead is not None else None
            if gone is not None and not gone.any():
                gone = None
            if seen:
                yield Tile(ids[at:end], vectors[at:end], base + at, gone)
            else:
                yield Tile(self.read(at, end, True)[:, 0], self.read(at, end, False), base + at, gone)

    def _see(self, vectors: Array, ids: Array, first: int) -> bool:
        """Whether the pages of a block can be looked at in place; asking is cheap where they have been there before."""
        if first in self._populated and is_resident(vectors) and is_resident(ids):
            return True
        seen = populate(vectors, self.segment.raw_path) and populate(ids, self.segment.ids_path)
        mine = hasattr(os, "geteuid") and os.stat(self.segment.raw_path).st_uid == os.geteuid()
        if seen and mine:  # of others' files the system says nothing
            self._populated.add(first)
        return seen

    def read(self, first: int, last: int, of_ids: bool) -> Array:
        """Rows first..last-1 of the ids [n, 1] or the vectors [n, width], read into memory of their own."""
        s = self.segment
        path, dtype, width = (s.ids_path, np.dtype("<i8"), 1) if of_ids else (s.raw_path, s.schema.dtype, s.schema.width)
        out = buffer((last - first, width), dtype)
        with _explained(path):
            fd = fileio.open_read(path)
            try:
                fileio.read_into(fd, out.reshape(-1).view(np.uint8).data, LENGTH.size + first * width * dtype.itemsize, path)
            finally:
                os.close(fd)
        return out

    def at(self, offsets: npt.NDArray[np.int64]) -> Array:
        """The vectors at some offsets: [n, width]."""
        s = self.segment
        out = buffer((len(offsets), s.schema.width), s.schema.dtype)
        with _explained(s.raw_path):
            fd = fileio.open_read(s.raw_path)
            try:
                for row, offset in zip(out, offsets.tolist(), strict=True):
                    fileio.read_into(fd, row.view(np.uint8).data, LENGTH.size + offset * s.schema.row_bytes, s.raw_path)
            finally:
                os.close(fd)
        return out


class _explained:
    """The system's refusal to read a file becomes a DamageError."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise DamageError(self.path, f"cannot be read: {error.strerror}") from error


def _most_mapped() -> int:
    """Segments that are mapped at a time: each of their two maps keeps a file open, and a process may have 1,024 open."""
    try:
        import resource
    except ImportError:  # Windows
        return _MOST_MAPPED
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_MAPPED if allowed < 0 else max(1, min(allowed // 4, _MOST_MAPPED))


class Opened:
    """Files of segments, kept for the next search of the same store, as many as this process may have open. What is pickled is
    empty again."""

    def __init__(self) -> None:
        self._files: dict[tuple[str, str], Files] = {}
        self._mapped: OrderedDict[Files, None] = OrderedDict()
        """The one that was used longest ago is the first."""
        self._most = _most_mapped()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Opened], tuple[()]]:
        return Opened, ()

    def files(self, segment: Segment) -> Files:
        with self._lock:
            key = segment.raw_path, segment.id
            found = self._files.get(key)
            if found is None or found.segment is not segment:
                found = self._files[key] = Files(segment, WeakMethod(self._used))
            return found

    def _used(self, files: Files) -> None:
        with self._lock:
            self._mapped[files] = None
            self._mapped.move_to_end(files)
            surplus = [self._mapped.popitem(last=False)[0] for _ in range(len(self._mapped) - self._most)]
        for other in surplus:
            other.unmap()


def in_place(piece: Piece) -> TypeGuard[Segment]:
    """Whether a piece is a segment whose files can be looked at where they are."""
    return has_files(piece) and not fileio.is_remote(piece.raw_path)


def has_files(piece: Piece) -> TypeGuard[Segment]:
    """Whether a piece is a segment with its vectors and ids in files of their own."""
    return isinstance(piece, Segment) and not isinstance(piece, RestoredSegment)


def blocks_of(partitions: Sequence[Named], opened: Opened, noted: Watch | None = None) -> tuple[list[Block], list[int]]:
    """All rows of some partitions as blocks, and the number of the first row of each partition.

    Rows are numbered in the order of the partitions, their pieces and their files; numbers are not without gaps. With a watch
    all is read in batches, rows that cannot be read are left out, and the threads that do so note it there.
    """
    blocks: list[Block] = []
    firsts: list[int] = []
    base = 0
    for partition in partitions:
        firsts.append(base)
        for piece in partition.pieces:
            if noted is None and in_place(piece):
                blocks += (replace(b, opened=opened) for b in opened.files(piece).blocks(base))
                base += piece.stored
            else:
                blocks.append(Block(partial(_batches, piece, base, noted)))
                base += piece.rows
    return blocks, firsts


def _batches(piece: Piece, first: int, noted: Watch | None, rows: int) -> Iterator[Tile]:
    with contextlib.nullcontext() if noted is None else _noting(noted):
        for batch in piece.batches(BATCH_BYTES):
            for at in range(0, len(batch.ids), rows):
                yield Tile(batch.ids[at : at + rows], batch.vectors[at : at + rows], first + at)
            first += len(batch.ids)


_handing_over = threading.Lock()


@contextlib.contextmanager
def _noting(noted: Watch) -> Iterator[None]:
    """What this thread notes within goes to another one's watch."""
    with watching() as met:
        yield
    with _handing_over:
        noted.add(met.result())


@cache
def _libc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    return libc


def _pages(array: Array) -> tuple[int, int]:
    """The pages of a part of a memory map, as address and bytes."""
    start = array.ctypes.data
    return start - start % _PAGE, array.nbytes + start % _PAGE


def populate(array: Array, path: str) -> bool:
    """Whether all pages of a part of a memory map are there now. Raises DamageError when one cannot be read."""
    libc = _libc()
    if not array.nbytes or libc is None:
        return not array.nbytes
    if libc.madvise(*_pages(array), _POPULATE_READ) == 0:
        return True
    if ctypes.get_errno() in _UNREADABLE:
        raise DamageError(path, "a part of it cannot be read: the disk fails, or the file was cut meanwhile")
    return False


def is_resident(array: Array) -> bool:
    """Whether all pages of a part of a memory map are in memory."""
    libc = _libc()
    if not array.nbytes or libc is None:
        return not array.nbytes
    start, nbytes = _pages(array)
    pages = np.empty((nbytes + _PAGE - 1) // _PAGE, np.uint8)
    return bool(libc.mincore(start, nbytes, pages.ctypes.data) == 0 and (pages & 1).all())
