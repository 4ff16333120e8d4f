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

MAGIC = 0x00305F6D6F6F6C62
HEADER = struct.Struct("<QIdQ")
"""Magic, capacity, error rate, bytes of the bitmap."""
BITMAP = struct.Struct("<QQQ")
"""Largest id (unsigned), memory sequence, disk sequence."""
FILTER = struct.Struct("<QI4x")
"""First id, count; then the counters."""

ERROR_RATE = 0.01
LEGACY_CAPACITY = 500000
SEED = 0x97C29B3A
MAX_FILTERS = 512
"""More would need error rates that a double cannot hold."""

_CHUNK = 8192
"""Ids that are hashed at once: the words of a chunk stay in the cache."""

Ids = npt.NDArray[np.int64]
_U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]


def filter_shape(capacity: int, error_rate: float, index: int) -> tuple[int, int]:
    """Number of hash functions and counters per function of the `index`-th filter."""
    error = error_rate * 0.5 ** (index + 1)
    functions = math.ceil(math.log(1 / error) / math.log(2))
    return functions, math.ceil(capacity * abs(math.log(error)) / (functions * math.log(2) ** 2))


@dataclass
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


@dataclass
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
            h1, h2 = _hashes(array[at : at + _CHUNK])
            part = result[at : at + _CHUNK]
            for one in self.filters:
                if one.per_function:  # a segment without rows has no counters
                    part |= _member(one, h1, h2)
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
                break  # bytes behind the last filter mean nothing
            raise DamageError(path, f"expected {nbytes} bytes of counters, found {end - at - FILTER.size}", offset=at)
        first_id, count = FILTER.unpack(read(at, FILTER.size))
        heads.append(_Head(first_id, count, functions, per_function, at + FILTER.size))
        at += FILTER.size + nbytes
    if not heads:
        raise DamageError(path, "expected at least one filter, found none", offset=at)
    return result, heads


def read_filter(path: str | os.PathLike[str], *, counters: bool = True) -> BloomFilter:
    """Reads a filter of either form, its counters only if asked to. Raises OSError, and DamageError where it is none."""
    fd = fileio.open_read(path)
    try:
        result, heads = _read_heads(fd, path)
        for head in heads:
            octets = np.empty(head.nbytes if counters else 0, np.uint8)
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


def probe(path: str | os.PathLike[str], ids: Ids) -> npt.NDArray[np.bool_]:
    """`BloomFilter.contains` for a few ids, of which only the counters are read. Raises DamageError, OSError."""
    result = np.zeros(len(ids), np.bool_)
    h1, h2 = _hashes(np.ascontiguousarray(ids, np.int64))
    octet = bytearray(1)
    fd = fileio.open_read(path)
    try:
        for head in _read_heads(fd, path)[1]:
            if not head.per_function:
                continue
            member = np.ones(len(ids), np.bool_)
            for i in range(head.functions):
                counters = _index(h1, h2, i, head.per_function) + i * head.per_function
                for place in np.flatnonzero(member).tolist():
                    counter = int(counters[place])
                    fileio.read_into(fd, memoryview(octet), head.at + counter // 2, path)
                    member[place] = octet[0] >> (0 if counter & 1 else 4) & 15 != 0  # even counters are the high nibbles
            result |= member
    finally:
        os.close(fd)
    return result


class FilterFile:
    """A `bloom_filter` file that is asked about few ids: only the counters concerned are read.

    Raises DamageError where the file is not a filter.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._filter = read_filter(path, counters=False)

    @property
    def count(self) -> int:
        """Ids that it holds."""
        return sum(one.count for one in self._filter.filters)

    def contains(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """See BloomFilter.contains. Raises OSError, and DamageError when the file has become shorter."""
        array = np.ascontiguousarray(ids, np.int64)
        result = np.zeros(len(array), np.bool_)
        if not len(array):
            return result
        h1, h2 = _hashes(array)
        at = BITMAP.size + (0 if self._filter.legacy else HEADER.size)
        fd = fileio.open_read(self._path)
        try:
            for one in self._filter.filters:
                at += FILTER.size
                nbytes = (one.functions * one.per_function + 1) // 2
                if one.per_function:
                    result |= self._member(fd, one, at, h1, h2)
                at += nbytes
        finally:
            os.close(fd)
        return result

    def _member(self, fd: int, one: CountingFilter, at: int, h1: _U32, h2: _U32) -> npt.NDArray[np.bool_]:
        """One byte a function and id, as long as all before it spoke for the id."""
        left = np.arange(len(h1))
        octet = bytearray(1)
        for i in range(one.functions):
            counter = _index(h1[left], h2[left], i, one.per_function) + i * one.per_function
            octets = np.empty(len(left), np.uint8)
            for place, offset in enumerate((counter >> 1).tolist()):
                fileio.read_into(fd, memoryview(octet), at + offset, self._path)
                octets[place] = octet[0]
            shift = ((counter & 1) ^ 1).astype(np.uint8) << 2  # even counters are the high nibbles
            left = left[(octets >> shift) & 15 != 0]
        result = np.zeros(len(h1), np.bool_)
        result[left] = True
        return result


def build_filter(batches: Iterable[npt.ArrayLike], capacity: int, *, legacy: bool = False) -> BloomFilter:
    """The filter that a server makes when it adds the ids (arrays int64 [n]) in this order; `capacity` is the row count.

    Takes memory of the order of the filter itself: eight bytes per id while it is built, whatever the ids are. Raises
    ValueError when ids come but the capacity is 0 (the server would divide by zero).
    """
    result = BloomFilter(LEGACY_CAPACITY if legacy else capacity, legacy=legacy)
    limit = result.capacity - 1 if legacy else result.capacity
    hashes: list[list[tuple[_U32, _U32]]] = [[]]
    firsts, counts = [0], [0]
    for chunk in _chunks(batches):
        if limit <= 0:
            raise ValueError("a bloom filter of capacity 0 cannot take ids")
        unsigned = chunk.view(np.uint64)
        before = np.maximum.accumulate(np.concatenate((np.array([result.max_id], np.uint64), unsigned)))[:-1]
        h1, h2 = _hashes(chunk)
        at = 0
        while at < len(chunk):
            at += _take(unsigned[at:], before[at:], h1[at:], h2[at:], limit, firsts, counts, hashes)
            if at < len(chunk):
                firsts.append(int(before[at]) + 1)
                counts.append(0)
                hashes.append([])
        result.max_id = max(int(before[-1]), int(unsigned[-1]))
        result.sequence += len(chunk)
    if legacy:
        result.disk_sequence = result.sequence
    for index, (first_id, count, parts) in enumerate(zip(firsts, counts, hashes, strict=True)):
        functions, per_function = filter_shape(result.capacity, result.error_rate, index)
        result.filters.append(CountingFilter(first_id, count, functions, per_function, _count(parts, functions, per_function)))
        parts.clear()
    return result


def write_new_filter(file: IO[bytes], batches: Iterable[npt.ArrayLike], scratch: IO[bytes]) -> int:
    """Writes what `build_filter(batches, rows).write(file)` would, in flat memory, and returns the size.

    The ids come in batches (int64 [n]). As many as there are is the capacity, so one filter takes them all, in any order.
    `scratch` is an empty file for reading and writing (8 bytes per id).
    """
    max_id = 0
    sizes: list[int] = []
    for chunk in _chunks(batches):
        max_id = max(max_id, int(chunk.view(np.uint64).max()))
        scratch.write(np.stack(_hashes(chunk)).data)
        sizes.append(len(chunk))
    scratch.flush()
    rows = sum(sizes)
    empty = BloomFilter(rows)
    functions, per_function = filter_shape(rows, empty.error_rate, 0)
    nbytes = (functions * per_function + 1) // 2
    file.write(HEADER.pack(MAGIC, rows, empty.error_rate, BITMAP.size + FILTER.size + nbytes))
    file.write(BITMAP.pack(max_id, rows + 1, 0))
    file.write(FILTER.pack(0, rows))
    pending = np.empty(0, np.uint8)
    for i in range(functions):
        counts = np.concatenate((pending, _count_spilled(scratch, sizes, i, per_function)))
        even = len(counts) & ~1
        file.write((counts[0:even:2] << np.uint8(4) | counts[1:even:2]).data)
        pending = counts[even:]
    file.write((pending << np.uint8(4)).data)
    return HEADER.size + BITMAP.size + FILTER.size + nbytes


def _count_spilled(scratch: IO[bytes], sizes: list[int], function: int, per_function: int) -> npt.NDArray[np.uint8]:
    """The counters of one function, each at most 15: uint8 [per_function]."""
    wide: type[np.unsignedinteger[Any]]
    for wide in (np.uint8, np.uint32):
        counts = np.zeros(per_function, wide)
        scratch.seek(0)
        for size in sizes:
            h1, h2 = np.frombuffer(scratch.read(8 * size), np.uint32).reshape(2, size)
            np.add.at(counts, _index(h1, h2, function, per_function), wide(1))
        if int(counts.sum(dtype=np.int64)) == sum(sizes):  # otherwise an id is there so often that its counter went round
            break
    return np.minimum(counts, 15).astype(np.uint8)


def _chunks(batches: Iterable[npt.ArrayLike]) -> Iterator[Ids]:
    for batch in batches:
        array = np.ascontiguousarray(batch, np.int64)
        for at in range(0, len(array), _CHUNK):
            yield array[at : at + _CHUNK]


def _take(  # many: the state of a loop over millions of ids, as plain arrays
    ids: _U64,
    before: _U64,
    h1: _U32,
    h2: _U32,
    limit: int,
    firsts: list[int],
    counts: list[int],
    hashes: list[list[tuple[_U32, _U32]]],
) -> int:
    """Gives ids to the filters until the next one would begin a new filter; returns how many were given.

    An id belongs to the last filter that begins at or before it. `before`: the largest id ahead of each.
    """
    top = ids >= np.uint64(firsts[-1])
    n = len(ids)
    if counts[-1] + n > limit:  # otherwise the filter cannot be full before the end
        full = (ids > before) & (counts[-1] + np.cumsum(top) - top >= limit)
        if full.any():
            n = int(np.argmax(full))
    owner = np.searchsorted(np.array(firsts, np.uint64), ids[:n], side="right") - 1 if len(firsts) > 1 else None
    for index in range(len(firsts)):
        mine = slice(0, n) if owner is None else np.flatnonzero(owner == index)
        part = h1[:n][mine], h2[:n][mine]
        if len(part[0]):
            hashes[index].append(part)
            counts[index] += len(part[0])
    return n


def _count(parts: list[tuple[_U32, _U32]], functions: int, per_function: int) -> npt.NDArray[np.uint8]:
    """The packed counters, each at most 15, of all hashes; one function after the other, so that its counters stay close."""
    nibbles = np.zeros(functions * per_function + functions * per_function % 2, np.uint8)
    one = np.uint32(1)  # of the counters' own type: thirty times as fast as a plain 1
    for i in range(functions):
        counts = np.zeros(per_function, np.uint32)
        for h1, h2 in parts:
            np.add.at(counts, _index(h1, h2, i, per_function), one)
        np.minimum(counts, 15, out=counts)
        nibbles[i * per_function : (i + 1) * per_function] = counts
    nibbles[0::2] <<= 4
    return nibbles[0::2] | nibbles[1::2]


def _index(h1: _U32, h2: _U32, function: int, per_function: int) -> npt.NDArray[np.int64]:
    value = h1 + h2 * np.uint32(function)
    value -= value // np.uint32(per_function) * np.uint32(per_function)  # much faster than %
    return value.astype(np.int64)


def _member(one: CountingFilter, h1: _U32, h2: _U32) -> npt.NDArray[np.bool_]:
    result = np.ones(len(h1), np.bool_)
    for i in range(one.functions):
        counter = _index(h1, h2, i, one.per_function) + i * one.per_function
        shift = ((counter & 1) ^ 1).astype(np.uint8) << 2  # even counters are the high nibbles
        result &= (one.counters[counter >> 1] >> shift) & 15 != 0
    return result


# Hashing -------------------------------------------------------------------------------------------------------------

_DIGITS4 = np.array([int.from_bytes(b"%04d" % i, "little") for i in range(10000)], np.uint32)
_POWERS = np.array([10**i for i in range(1, 20)], np.uint64)
_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)


def _hashes(ids: Ids) -> tuple[_U32, _U32]:
    """Low and high half of the first 64 bits of MurmurHash3 x64_128 over the decimal text of each id: uint32 [n] each."""
    negative = ids < 0
    signed = bool(negative.any())
    unsigned = ids.view(np.uint64)
    magnitude = np.where(negative, ~unsigned + np.uint64(1), unsigned) if signed else unsigned
    lengths = np.searchsorted(_POWERS, magnitude, side="right") + 1 + negative
    text = np.empty((len(ids), 6), np.uint32)
    rest = magnitude
    for column in range(5, 0, -1):
        quotient = rest // np.uint64(10000)
        text[:, column] = _DIGITS4[(rest - quotient * np.uint64(10000)).astype(np.int64)]
        rest = quotient
    text[:, 0] = 0x30303030
    letters = text.view(np.uint8)
    if signed:
        rows = np.flatnonzero(negative)
        letters[rows, 24 - lengths[rows]] = ord("-")
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest == longest:
        return _murmur(_left(letters, shortest), shortest)
    h1, h2 = np.empty(len(ids), np.uint32), np.empty(len(ids), np.uint32)
    for length in range(shortest, longest + 1):
        rows = np.flatnonzero(lengths == length)
        if len(rows):
            h1[rows], h2[rows] = _murmur(_left(letters[rows], length), length)
    return h1, h2


def _left(letters: npt.NDArray[np.uint8], length: int) -> _U64:
    """The last `length` of 24 letters, moved to the front and filled up with zeros, as three words: uint64 [3, n]."""
    padded = np.zeros((len(letters), 24), np.uint8)
    padded[:, :length] = letters[:, 24 - length :]
    return np.ascontiguousarray(padded.view("<u8").T)


def _murmur(words: _U64, length: int) -> tuple[_U32, _U32]:
    """MurmurHash3 x64_128 of texts of `length` bytes, 1 to 20."""
    n = words.shape[1]
    h1, h2 = np.full(n, SEED, np.uint64), np.full(n, SEED, np.uint64)
    tail = words
    if length >= 16:
        h1 ^= _mix(words[0], _C1, 31, _C2)
        h1 = (_rotl(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
        h2 ^= _mix(words[1], _C2, 33, _C1)
        h2 = (_rotl(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
        tail = words[2:]
    if length % 16 > 8:
        h2 ^= _mix(tail[1], _C2, 33, _C1)
    if length % 16:
        h1 ^= _mix(tail[0], _C1, 31, _C2)
    h1 ^= np.uint64(length)
    h2 ^= np.uint64(length)
    h1 += h2
    h2 += h1
    h1 = _final(h1) + _final(h2)
    return h1.astype(np.uint32), (h1 >> np.uint64(32)).astype(np.uint32)


def _rotl(x: _U64, bits: int) -> _U64:
    return x << np.uint64(bits) | x >> np.uint64(64 - bits)


def _mix(k: _U64, first: np.uint64, bits: int, second: np.uint64) -> _U64:
    return _rotl(k * first, bits) * second


def _final(k: _U64) -> _U64:
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    k = (k ^ k >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return k ^ k >> np.uint64(33)
