"""The write-ahead log: its files and records, read and written (FORMAT §5.1-5.5).

A record is a 21-byte header (LSN, type, lengths), collection, tag, ids, vectors. Its LSN is file number << 32 | end offset, so
every record checks itself. Types were renumbered in 0.9: the shape decides, the number only has to agree with one numbering.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...fileio import Ranges
from ...findings import Findings
from ...model import Finding, Schema, Severity, VectorType
from ...watch import in_words, union
from ..layout import ID, WAL_HEADER, WAL_META, WAL_META_STRUCT, WAL_SUFFIX

WINDOW = 1 << 18
"""Bytes read at a time while walking over headers."""

_LEAST_RECORD = WAL_HEADER.size + 1 + ID.itemsize
"""Bytes of the smallest record that does anything: less can be the rest of a call that an earlier crash cut off."""

_ENTITY = 6
_U4 = struct.Struct("<I")


class Kind(Enum):
    INSERT = "insert"
    DELETE = "delete"
    ENTITY = "entity"
    """An insert with attributes (hybrid collections of 0.9-1.0); a restarted server drops it, a reader need not (§5.4)."""


class Record(NamedTuple):
    """One record. Offsets are those of the file; `tag` is as the client sent it."""

    lsn: int
    type: int
    collection: bytes
    tag: bytes
    rows: int
    file: int
    """Number of the file."""
    start: int
    ids_at: int
    data_at: int
    data_bytes: int
    end: int
    attributes: tuple[tuple[bytes, int, int], ...] = ()
    """(field name, offset of its values, bytes) of an entity record."""

    @property
    def kind(self) -> Kind:
        return Kind.DELETE if not self.data_bytes else Kind.ENTITY if self.attributes else Kind.INSERT


class LogFile(NamedTuple):
    number: int
    path: str
    size: int


class Log(NamedTuple):
    """The log's folder: its files in order, and what `mxlog.meta` says was acknowledged (None: nothing trustworthy)."""

    folder: Path
    files: tuple[LogFile, ...]
    acknowledged: int | None
    torn_meta: bool = False
    refused: str = ""
    """Why `mxlog.meta` cannot be read though it is there."""


def open_log(folder: Path) -> Log:
    """Lists a WAL folder and reads `mxlog.meta` (§5.1, §5.2). Raises DamageError when the folder cannot be listed."""
    files = []
    try:
        for entry in fileio.scan(folder):
            match = re.fullmatch(r"(0|[1-9]\d{0,9})" + re.escape(WAL_SUFFIX), entry.name)
            if match and entry.is_file() and int(match[1]) < 1 << 32:
                files.append(LogFile(int(match[1]), entry.path, entry.stat().st_size))
    except OSError as e:
        raise DamageError(folder, f"cannot list the WAL folder: {e.strerror}") from e
    files.sort(key=lambda f: f.number)
    acknowledged, torn, refused = None, False, ""
    try:
        with fileio.open_binary(folder / WAL_META) as file:
            data = file.read(WAL_META_STRUCT.size)
        if len(data) == WAL_META_STRUCT.size:
            first, second, third = WAL_META_STRUCT.unpack(data)
            torn = second != third
            acknowledged = first if torn else second
    except FileNotFoundError:
        refused = fileio.missing_link(folder / WAL_META)
    except (OSError, DamageError) as e:
        refused = str(e) if isinstance(e, DamageError) else e.strerror or str(e)
    return Log(folder, tuple(files), acknowledged, torn, refused)


class Reader:
    """Random access to one file through a window, so that small records cost no system call each."""

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.fd = fileio.open_read(file.path)
        self._buffer = bytearray(min(WINDOW, file.size))
        self._first = self._last = 0
        self.refused: Ranges = []
        """What the disk refused; there are zeros instead, which are no record."""

    def close(self) -> None:
        os.close(self.fd)

    def get(self, offset: int, length: int) -> memoryview | None:
        """`length` bytes at `offset`, or None when the file ends before. Valid until the next call."""
        if offset + length > self.file.size:
            return None
        if length > len(self._buffer):
            self._buffer = bytearray(length)
            self._first = self._last = 0
        if offset < self._first or offset + length > self._last:
            count = min(len(self._buffer), self.file.size - offset)
            window = memoryview(self._buffer)[:count]
            for place in fileio.read_around(self.fd, window, offset, self.file.path):
                if place not in self.refused:
                    self.refused.append(place)
            self._first, self._last = offset, offset + count
        return memoryview(self._buffer)[offset - self._first : offset - self._first + length]


def parse_record(reader: Reader, start: int) -> Record | None:
    """The record at `start`, or None when what stands there is not a whole record (§5.4 self check)."""
    number, size = reader.file.number, reader.file.size
    head = reader.get(start, WAL_HEADER.size)
    if head is None:
        return None
    lsn, type_number, c, t, n, s = WAL_HEADER.unpack(head)
    if lsn >> 32 != number:
        return None
    end = lsn & 0xFFFFFFFF
    names_at = start + WAL_HEADER.size
    if end == names_at + c + t + 8 * n + s:
        attributes: tuple[tuple[bytes, int, int], ...] = ()
    elif type_number == _ENTITY:
        parsed = _parse_attributes(reader, names_at, c + t + 8 * n + s, end)
        if parsed is None:
            return None
        names_at, attributes = parsed
    else:
        return None
    if end > size:
        return None
    names = reader.get(names_at, c + t)
    if names is None:
        return None
    text = bytes(names)
    ids_at = names_at + c + t
    return Record(lsn, type_number, text[:c], text[c:], n, number, start, ids_at, ids_at + 8 * n, s, end, attributes)


def is_record(file: LogFile, offset: int) -> bool:
    """Whether a whole record begins at this place."""
    try:
        reader = Reader(file)
    except OSError:
        return False
    try:
        return parse_record(reader, offset) is not None
    except (DamageError, OSError):
        return False
    finally:
        reader.close()


def _parse_attributes(
    reader: Reader, at: int, plain_bytes: int, end: int
) -> tuple[int, tuple[tuple[bytes, int, int], ...]] | None:
    head = reader.get(at, 4)
    if head is None:
        return None
    (count,) = _U4.unpack(head)
    if not 0 < count <= (end - at) // 24:
        return None
    table = reader.get(at + 4, 24 * count)
    if table is None:
        return None
    name_sizes, value_bytes, _ = (struct.unpack_from(f"<{count}Q", table, 8 * count * i) for i in range(3))
    names_at = at + 4 + 24 * count
    fields_at = names_at + plain_bytes
    values_at = fields_at + sum(name_sizes)
    if values_at + sum(value_bytes) != end:
        return None
    fields = reader.get(fields_at, sum(name_sizes))
    if fields is None:
        return None
    result, position = [], 0
    for name_size, nbytes in zip(name_sizes, value_bytes, strict=True):
        result.append((bytes(fields[position : position + name_size]), values_at, nbytes))
        position += name_size
        values_at += nbytes
    return names_at, tuple(result)


@dataclass(eq=False)
class Walk:
    """Walks over the records of a log in order; `findings` tells of gaps and torn places met on the way."""

    log: Log
    findings: Findings

    def records(self, start_lsn: int = 0, end_lsn: int | None = None) -> Iterator[Record]:
        """Complete records after `start_lsn` up to `end_lsn` (all when None), file by file.

        Where a record fails its self check although more of them must follow, the next complete one is searched.
        """
        first_file, offset = start_lsn >> 32, start_lsn & 0xFFFFFFFF
        for file in self.log.files:
            if file.number < first_file:
                continue
            if end_lsn is not None and file.number > end_lsn >> 32:
                return
            limit = file.size
            if end_lsn is not None and file.number == end_lsn >> 32:
                limit = end_lsn & 0xFFFFFFFF
            may_be_torn = end_lsn is None and file is self.log.files[-1]
            yield from self._file_records(file, offset if file.number == first_file else 0, limit, may_be_torn)

    def _file_records(self, file: LogFile, position: int, limit: int, may_be_torn: bool) -> Iterator[Record]:
        """`may_be_torn`: nothing tells whether what stands at the file's end was ever a whole record."""
        if not file.size and not limit:
            return
        try:
            reader = Reader(file)
        except OSError as e:
            self._note(Severity.ERROR, "wal-unreadable", file, f"cannot be read: {e.strerror}")
            return
        try:
            while position < limit:
                record = parse_record(reader, position)
                if record is None:
                    found = _next_record(reader, position + 1, min(limit, file.size))
                    after = found if found is not None else min(limit, file.size)
                    zeros = _begins_with_zeros(reader, position)
                    if after - position >= _LEAST_RECORD and (found is not None or not may_be_torn or zeros):
                        what = "begin with zeros, which no server writes" if zeros else "hold no complete record"
                        self._note(
                            Severity.ERROR,
                            "wal-torn",
                            file,
                            f"bytes {position} to {after} {what}; the rows in them cannot be recovered",
                        )
                    if found is None:
                        if limit > file.size:
                            self._note(
                                Severity.ERROR,
                                "wal-short",
                                file,
                                f"ends at byte {file.size}, acknowledged records reach {limit}",
                            )
                        return
                    position = found
                    continue
                if record.end > limit:
                    self._note(
                        Severity.WARNING,
                        "mxlog-inside",
                        file,
                        f"mxlog.meta says that acknowledged records end at byte {limit}, inside the record at byte {position}; "
                        "the whole record is used",
                    )
                yield record
                position = record.end
            if limit > file.size:
                self._note(Severity.ERROR, "wal-short", file, f"ends at byte {file.size}, acknowledged records reach {limit}")
        except DamageError as e:
            self._note(Severity.ERROR, "wal-unreadable", file, str(e))
        finally:
            if reader.refused:
                text = f"the disk refuses {in_words(union(reader.refused))}; copy it with ddrescue, and try again with the copy"
                self._note(Severity.ERROR, "wal-unreadable", file, text)
            reader.close()

    def _note(self, severity: Severity, code: str, file: LogFile, message: str) -> None:
        finding = Finding(severity, code, file.path, message)
        if finding not in self.findings:
            self.findings.append(finding)


def _begins_with_zeros(reader: Reader, position: int) -> bool:
    """Whether zeros stand where a record should begin: not the first part of one, for its LSN is never 0 (§5.3)."""
    head = reader.get(position, WAL_HEADER.size)
    return head is not None and not any(head)


def _next_record(reader: Reader, position: int, limit: int) -> int | None:
    """Offset of the next complete record in position..limit. Candidates carry the file's number in the LSN's upper half."""
    step = WINDOW - 32
    while position + WAL_HEADER.size <= limit:
        count = min(WINDOW, limit - position)
        window = reader.get(position, count)
        if window is None:
            return None
        octets = np.frombuffer(bytes(window), np.uint8)
        ends, numbers = (_numbers_at_each_byte(octets[at : len(octets) - 4 + at]) for at in (0, 4))
        starts = np.arange(position, position + len(ends))
        fits = (numbers == reader.file.number) & (ends > starts + WAL_HEADER.size) & (ends <= limit)
        start: int
        for start in starts[fits].tolist():
            if parse_record(reader, start) is not None:
                return start
        if count < WINDOW:
            return None
        position += step
    return None


def _numbers_at_each_byte(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The four bytes from each one on as a number, little endian: int64 [n - 3]."""
    wide = octets.astype(np.int64)
    n = len(octets) - 3
    return wide[:n] | wide[1 : n + 1] << 8 | wide[2 : n + 2] << 16 | wide[3:] << 24


def read_ids(file: LogFile, offset: int, rows: int) -> npt.NDArray[np.int64]:
    """The ids of one record, int64 [rows]."""
    ids = np.empty(rows, ID)
    fd = fileio.open_read(file.path)
    try:
        fileio.read_into(fd, ids.view(np.uint8).data, offset, file.path)
    finally:
        os.close(fd)
    return ids


def schema_fits(record: Record, schema: Schema) -> bool:
    """Whether an insert's data have the schema's shape, and its type agrees with one of the two numberings (§5.4)."""
    types = {1, 2, _ENTITY} if schema.vector_type is VectorType.FLOAT else {0, 1, _ENTITY}
    return record.data_bytes == record.rows * schema.row_bytes and record.type in types


def is_new_numbering(records: Sequence[tuple[Record, Schema]]) -> bool | None:
    """Whether the types are those of 0.9-1.1.1 (True) or of 0.7-0.8.1 (False); None when no record tells."""
    for record, schema in records:
        if record.kind is Kind.DELETE:
            return record.type == 3
        if schema.vector_type is VectorType.FLOAT:
            return record.type != 1
        return record.type != 0
    return None
