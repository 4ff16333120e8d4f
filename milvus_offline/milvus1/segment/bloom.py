"""`bloom_filter`: a counting, scaling bloom filter over the decimal text of ids (FORMAT §4.4).

| since | change                                                                               |
|-------|--------------------------------------------------------------------------------------|
| 0.7   | the bare bitmap, capacity 500000, error rate 0.01                                    |
| 1.1   | a header with magic, capacity, error rate and length; the capacity is the row count  |

A reader of rows does not need the filter; it tells what a server would fail to delete or find. A writer must produce it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from .idhash import Hashes, Ids, id_hashes

MAGIC = 0x00305F6D6F6F6C62
HEADER = struct.Struct("<QIdQ")
"""Magic, capacity, error rate, bytes of the bitmap."""
BITMAP = struct.Struct("<QQQ")
"""Largest id (unsigned), memory sequence, disk sequence."""
FILTER = struct.Struct("<QI4x")
"""First id, count; then the counters."""

ERROR_RATE = 0.01
LEGACY_CAPACITY = 500000
MAX_FILTERS = 512
"""More would need error rates that a double cannot hold."""

_CHUNK = 8192
"""Ids that are hashed at once: the words of a chunk stay in the cache."""
_COUNTED = 1 << 18
"""Hashes that are counted at once."""
_THREADS = 2
"""Functions that are counted at once; sorting, which is most of it, leaves the interpreter to others."""


def filter_shape(capacity: int, error_rate: float, index: int) -> tuple[int, int]:
    """Number of hash functions and counters per function of the `index`-th filter."""
    error = error_rate * 0.5 ** (index + 1)
    functions = math.ceil(math.log(1 / error) / math.log(2))
    return functions, math.ceil(capacity * abs(math.log(error)) / (functions * math.log(2) ** 2))


@dataclass(eq=False)
class CountingFilter:
    """One of the filters: `counters` uint8 [(functions * per_function + 1) // 2] holds two 4-bit counters a byte."""

    first_id: int
    count: int
    functions: int
    per_function: int
    counters: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return FILTER.size + len(self.counters)


@dataclass(eq=False)
class BloomFilter:
    """A whole `bloom_filter` file."""

    capacity: int
    error_rate: float = ERROR_RATE
    max_id: int = 0
    """Largest id ever added, as unsigned 64 bits."""
    sequence: int = 1
    """1 + additions + removals."""
    disk_sequence: int = 0
    legacy: bool = False
    """Without a header, as up to 1.0.0."""
    filters: list[CountingFilter] = field(default_factory=list)

    @property
    def bitmap_bytes(self) -> int:
        return BITMAP.size + sum(f.nbytes for f in self.filters)

    def contains(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of `ids` (int64 [n]) the server would look for in this segment: bool [n]. False is certain, True is not."""
        array = np.ascontiguousarray(ids, np.int64)
        result = np.zeros(len(array), np.bool_)
        for at in range(0, len(array), _CHUNK):
            hashes = id_hashes(array[at : at + _CHUNK])
            part = result[at : at + _CHUNK]
            for one in self.filters:
                if one.per_function:  # a segment without rows has no counters
                    part |= _member(one, hashes)
        return result

    def write(self, file: IO[bytes]) -> int:
        """Writes the file's content and returns its size."""
        if not self.legacy:
            file.write(HEADER.pack(MAGIC, self.capacity, self.error_rate, self.bitmap_bytes))
        file.write(BITMAP.pack(self.max_id, self.sequence, self.disk_sequence))
        for one in self.filters:
            file.write(FILTER.pack(one.first_id, one.count))
            file.write(one.counters.data)
        return self.bitmap_bytes + (0 if self.legacy else HEADER.size)


@dataclass(frozen=True)
class _Head:
    """One counting filter but for its counters, which begin at byte `at`."""

    first_id: int
    count: int
    functions: int
    per_function: int
    at: int

    @property
    def nbytes(self) -> int:
        return (self.functions * self.per_function + 1) // 2


def _read_heads(fd: int, path: str | os.PathLike[str]) -> tuple[BloomFilter, list[_Head]]:
    """A filter without its counting filters, and where these are. Raises DamageError."""
    size = fileio.size_of(fd)

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        fileio.read_into(fd, memoryview(buffer), offset, path)
        return bytes(buffer)

    head = read(0, min(size, HEADER.size))
    if len(head) >= 8 and int.from_bytes(head[:8], "little") == MAGIC:
        if len(head) < HEADER.size:
            raise DamageError(path, f"expected a header of {HEADER.size} bytes, the file ends after {len(head)}")
        _, capacity, error_rate, length = HEADER.unpack(head)
        start, legacy = HEADER.size, False
        if not 1e-6 <= error_rate < 1:
            raise DamageError(path, f"expected an error rate from 0.000001 to 1, found {error_rate}", offset=12)
        if length > size - start:
            raise DamageError(path, f"expected a bitmap of {length} bytes, found {size - start}", offset=20)
    else:
        capacity, error_rate, length, start, legacy = LEGACY_CAPACITY, ERROR_RATE, size, 0, True
    end = start + length
    if length < BITMAP.size:
        raise DamageError(path, f"expected a bitmap of at least {BITMAP.size} bytes, found {length}", offset=start)
    max_id, sequence, disk_sequence = BITMAP.unpack(read(start, BITMAP.size))
    result = BloomFilter(capacity, error_rate, max_id, sequence, disk_sequence, legacy)
    at = start + BITMAP.size
    heads: list[_Head] = []
    while end - at >= FILTER.size and len(heads) < MAX_FILTERS:
        functions, per_function = filter_shape(capacity, error_rate, len(heads))
        nbytes = (functions * per_function + 1) // 2
        if nbytes > end - at - FILTER.size:
            if heads:
                break  # bytes after the last filter mean nothing
            raise DamageError(path, f"expected {nbytes} bytes of counters, found {end - at - FILTER.size}", offset=at)
        first_id, count = FILTER.unpack(read(at, FILTER.size))
        heads.append(_Head(first_id, count, functions, per_function, at + FILTER.size))
        at += FILTER.size + nbytes
    if not heads:
        raise DamageError(path, "expected at least one filter, found none", offset=at)
    return result, heads


def read_filter(path: str | os.PathLike[str]) -> BloomFilter:
    """Reads a filter of either form. Raises OSError, and DamageError where it is none."""
    fd = fileio.open_read(path)
    try:
        result, heads = _read_heads(fd, path)
        for head in heads:
            octets = np.empty(head.nbytes, np.uint8)
            fileio.read_into(fd, octets.data, head.at, path)
            result.filters.append(CountingFilter(head.first_id, head.count, head.functions, head.per_function, octets))
    finally:
        os.close(fd)
    return result


def live_count(path: str | os.PathLike[str]) -> int | None:
    """How many rows the filter has as live; None for those of up to 1.0.0, which a crash may leave half changed (§4.4).

    Reads some bytes only. Raises DamageError, OSError.
    """
    fd = fileio.open_read(path)
    try:
        found, heads = _read_heads(fd, path)
    finally:
        os.close(fd)
    return None if found.legacy else sum(head.count for head in heads)


def probe(path: str | os.PathLike[str], ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """`BloomFilter.contains` for a few ids, of which only the counters are read. Raises DamageError, OSError."""
    fd = fileio.open_read(path)
    try:
        return _probe(fd, path, _read_heads(fd, path)[1], ids)
    finally:
        os.close(fd)


class FilterFile:
    """A `bloom_filter` file that is probed again and again. Raises OSError, and DamageError where the file is not a filter."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        fd = fileio.open_read(path)
        try:
            _, self._heads = _read_heads(fd, path)
        finally:
            os.close(fd)

    @property
    def count(self) -> int:
        """Ids that it holds."""
        return sum(head.count for head in self._heads)

    def contains(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """See `probe`. Raises OSError, and DamageError when the file has become shorter."""
        fd = fileio.open_read(self._path)
        try:
            return _probe(fd, self._path, self._heads, ids)
        finally:
            os.close(fd)


def _probe(fd: int, path: object, heads: Iterable[_Head], ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = np.ascontiguousarray(ids, np.int64)
    result = np.zeros(len(array), np.bool_)
    if not len(array):
        return result
    hashes = id_hashes(array)
    for head in heads:
        if head.per_function:  # a segment without rows has no counters
            result |= _member_on_disk(fd, path, head, hashes)
    return result


def _member_on_disk(fd: int, path: object, head: _Head, hashes: Hashes) -> npt.NDArray[np.bool_]:
    """One byte a function and id, as long as all before it spoke for the id."""
    left = np.arange(len(hashes))
    octet = bytearray(1)
    for i in range(head.functions):
        counter = counter_index(hashes[left], i, head.per_function).astype(np.int64) + i * head.per_function
        octets = np.empty(len(left), np.uint8)
        for place, offset in enumerate((counter >> 1).tolist()):
            fileio.read_into(fd, memoryview(octet), head.at + offset, path)
            octets[place] = octet[0]
        left = left[_nibbles(octets, counter) != 0]
    result = np.zeros(len(hashes), np.bool_)
    result[left] = True
    return result


def _nibbles(octets: npt.NDArray[np.uint8], counter: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The values of counters in their bytes: even ones are the high nibbles."""
    found: npt.NDArray[np.uint8] = (octets >> (((counter & 1) ^ 1).astype(np.uint8) << np.uint8(2))) & np.uint8(15)
    return found


def write_new_filter(file: IO[bytes], batches: Iterable[npt.ArrayLike], scratch: IO[bytes]) -> int:
    """Writes what a server would that adds the ids in this order, in flat memory, and returns the size.

    The ids come in batches (int64 [n]). As many as there are is the capacity, so one filter takes them all, in any order.
    `scratch` is an empty file for reading and writing (8 bytes per id).
    """
    from concurrent.futures import ThreadPoolExecutor  # every command loads this module

    max_id = rows = 0
    for chunk in chunks(batches):
        max_id = max(max_id, int(chunk.view(np.uint64).max()))
        scratch.write(id_hashes(chunk).data)
        rows += len(chunk)
    scratch.flush()
    empty = BloomFilter(rows)
    functions, per_function = filter_shape(rows, empty.error_rate, 0)
    nbytes = (functions * per_function + 1) // 2
    file.write(HEADER.pack(MAGIC, rows, empty.error_rate, BITMAP.size + FILTER.size + nbytes))
    file.write(BITMAP.pack(max_id, rows + 1, 0))
    file.write(FILTER.pack(0, rows))
    pending = np.empty(0, np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, functions, _THREADS):  # no more than are written next: each is as large as two bytes an id
            some = range(first, min(first + _THREADS, functions))
            for counts in pool.map(lambda i: _count_spilled(scratch.fileno(), rows, i, per_function), some):
                counts = np.concatenate((pending, counts))
                even = len(counts) & ~1
                file.write((counts[0:even:2] << np.uint8(4) | counts[1:even:2]).data)
                pending = counts[even:]
    file.write((pending << np.uint8(4)).data)
    return HEADER.size + BITMAP.size + FILTER.size + nbytes


def _count_spilled(fd: int, rows: int, function: int, per_function: int) -> npt.NDArray[np.uint8]:
    """The counters of one function, each at most 15: uint8 [per_function]."""
    hashes = np.empty(min(rows, _COUNTED), np.uint64)
    wide: type[np.unsignedinteger[Any]]
    for wide in (np.uint8, np.uint32):
        counts = np.zeros(per_function, wide)
        for first in range(0, rows, _COUNTED):
            part = hashes[: rows - first]
            fileio.read_into(fd, part.view(np.uint8).data, 8 * first)
            at = counter_index(part, function, per_function)
            at.sort()  # from one end of the counters to the other: they are more than a processor's cache holds
            np.add.at(counts, at.astype(np.int64), wide(1))
        if int(counts.sum(dtype=np.int64)) == rows:  # otherwise an id is there so often that its counter went round
            break
    np.minimum(counts, 15, out=counts)
    return counts.astype(np.uint8, copy=False)


def chunks(batches: Iterable[npt.ArrayLike]) -> Iterator[Ids]:
    for batch in batches:
        array = np.ascontiguousarray(batch, np.int64)
        for at in range(0, len(array), _CHUNK):
            yield array[at : at + _CHUNK]


def counter_index(hashes: Hashes, function: int, per_function: int) -> npt.NDArray[np.uint32]:
    """Which of its counters a function takes: the low half of the hash and `function` times the high one, in 32 bits."""
    value = (hashes >> np.uint64(32)).astype(np.uint32)
    value *= np.uint32(function)
    value += hashes.astype(np.uint32)
    value -= value // np.uint32(per_function) * np.uint32(per_function)  # much faster than %
    return value


def _member(one: CountingFilter, hashes: Hashes) -> npt.NDArray[np.bool_]:
    result = np.ones(len(hashes), np.bool_)
    for i in range(one.functions):
        counter = counter_index(hashes, i, one.per_function).astype(np.int64) + i * one.per_function
        result &= _nibbles(one.counters[counter >> 1], counter) != 0
    return result
