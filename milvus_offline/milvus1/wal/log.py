"""The write-ahead log: files, records, and pieces that read rows out of it (FORMAT §5.1-5.5), written too.

A record is a 21-byte header (LSN, type, lengths), collection, tag, ids, vectors. Its LSN is file number << 32 | end offset, so
every record checks itself. Types were renumbered in 0.9: the shape decides, the number only has to agree with one numbering.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...findings import Findings
from ...model import BATCH_BYTES, Array, Batch, Finding, Schema, Severity, VectorType, buffer
from ..layout import ID, WAL_HEADER, WAL_META, WAL_META_STRUCT, WAL_SUFFIX
from ..segment.files import DeadRows

_WINDOW = 1 << 18
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


def pack_record(
    type_number: int, start_lsn: int, collection: bytes, tag: bytes, ids: npt.NDArray[np.int64], data: bytes
) -> bytes:
    """One record as the server writes it at position `start_lsn` (file number << 32 | offset) (§5.4)."""
    total = WAL_HEADER.size + len(collection) + len(tag) + ids.nbytes + len(data)
    header = WAL_HEADER.pack(start_lsn + total, type_number, len(collection), len(tag), len(ids), len(data))
    return header + collection + tag + ids.astype(ID).tobytes() + data


@dataclass(frozen=True)
class LogFile:
    number: int
    path: str
    size: int


@dataclass(frozen=True)
class Log:
    """The log's folder: its files in order, and what `mxlog.meta` says was acknowledged (None: nothing trustworthy)."""

    folder: Path
    files: tuple[LogFile, ...]
    acknowledged: int | None
    torn_meta: bool = False


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
    acknowledged, torn = None, False
    try:
        with fileio.open_binary(folder / WAL_META) as file:
            data = file.read(WAL_META_STRUCT.size)
        if len(data) == WAL_META_STRUCT.size:
            first, second, third = WAL_META_STRUCT.unpack(data)
            torn = second != third
            acknowledged = first if torn else second
    except (OSError, DamageError):
        pass
    return Log(folder, tuple(files), acknowledged, torn)


class _Reader:
    """Random access to one file through a window, so that small records cost no system call each."""

    def __init__(self, file: LogFile) -> None:
        self.file = file
        self.fd = fileio.open_read(file.path)
        self._buffer = bytearray(min(_WINDOW, file.size))
        self._first = self._last = 0

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
            fileio.read_into(self.fd, memoryview(self._buffer)[:count], offset, self.file.path)
            self._first, self._last = offset, offset + count
        return memoryview(self._buffer)[offset - self._first : offset - self._first + length]


def _parse(reader: _Reader, start: int) -> Record | None:
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


def _parse_attributes(
    reader: _Reader, at: int, plain_bytes: int, end: int
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


@dataclass
class Walk:
    """Walks over the records of a log in order; `findings` tells of gaps and torn places met on the way."""

    log: Log
    findings: Findings

    def records(self, start_lsn: int = 0, end_lsn: int | None = None) -> Iterator[Record]:
        """Complete records behind `start_lsn` up to `end_lsn` (all when None), file by file.

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
            reader = _Reader(file)
        except OSError as e:
            self._note(Severity.ERROR, "wal-unreadable", file, f"cannot be read: {e.strerror}")
            return
        try:
            while position < limit:
                record = _parse(reader, position)
                if record is None:
                    found = _next_record(reader, position + 1, min(limit, file.size))
                    behind = found if found is not None else min(limit, file.size)
                    if behind - position >= _LEAST_RECORD and (found is not None or not may_be_torn):
                        self._note(
                            Severity.ERROR,
                            "wal-torn",
                            file,
                            f"bytes {position} to {behind} hold no complete record; the rows in them cannot be recovered",
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
                        f"the acknowledged records are said to end at byte {limit}, inside the record at byte {position}; "
                        "it is taken as a whole",
                    )
                yield record
                position = record.end
            if limit > file.size:
                self._note(Severity.ERROR, "wal-short", file, f"ends at byte {file.size}, acknowledged records reach {limit}")
        except DamageError as e:
            self._note(Severity.ERROR, "wal-unreadable", file, str(e))
        finally:
            reader.close()

    def _note(self, severity: Severity, code: str, file: LogFile, message: str) -> None:
        finding = Finding(severity, code, file.path, message)
        if finding not in self.findings:
            self.findings.append(finding)


def _next_record(reader: _Reader, position: int, limit: int) -> int | None:
    """Offset of the next complete record in position..limit. Candidates carry the file's number in the LSN's upper half."""
    number = _U4.pack(reader.file.number)
    step = _WINDOW - 32
    while position + WAL_HEADER.size <= limit:
        count = min(_WINDOW, limit - position)
        window = reader.get(position, count)
        if window is None:
            return None
        chunk = bytes(window)
        at = chunk.find(number, 4)
        while at >= 4:
            start = position + at - 4
            end = _U4.unpack_from(chunk, at - 4)[0]
            if start + WAL_HEADER.size < end <= limit and _parse(reader, start) is not None:
                return start
            at = chunk.find(number, at + 1)
        if count < _WINDOW:
            return None
        position += step
    return None


# Rows out of the log -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogRows:
    """The rows that some insert records of one table hold, in the log's order; a piece of its partition.

    `spans` is uint64 [k, 3]: file number, first and last byte of runs of adjacent records of the same table; deletes inside are
    passed over. `dead` are row numbers (counted over all inserts of the spans) that later deletes removed; rows before
    `first` are in a segment already.
    """

    id: str
    schema: Schema
    files: tuple[LogFile, ...]
    spans: npt.NDArray[np.uint64]
    inserted: int
    dead: npt.NDArray[np.int64]
    first: int = 0

    @property
    def rows(self) -> int:
        return self.inserted - self.first - len(self.dead)

    @property
    def bytes(self) -> int:
        """Bytes of vectors and ids of the live rows."""
        return self.rows * (self.schema.row_bytes + ID.itemsize)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Rows in the log's order; see model.Piece."""
        dead = None
        if len(self.dead):
            dead = DeadRows(self.inserted)
            dead.add(self.dead)
        step = max(1, max_bytes // self.schema.row_bytes)
        ids = np.empty(step, ID)
        vectors = buffer((step, self.schema.width), self.schema.dtype)
        names = [a.name for a in self.schema.attributes]
        attributes = {a.name: np.zeros(step, a.dtype) for a in self.schema.attributes}
        filled = number = 0
        for record, count, reader in self._inserts():
            rows = record.rows * count
            done = min(rows, max(0, self.first - number))
            number += done
            run = _run(reader, record, count, self.schema) if count > 1 else None
            while done < rows:
                take = min(rows - done, step - filled)
                place = slice(filled, filled + take)
                if run is not None:
                    ids[place], vectors[place] = run[0][done : done + take], run[1][done : done + take]
                else:
                    _read(reader.fd, ids[place], record.ids_at + 8 * done, record)
                    _read(reader.fd, vectors[place], record.data_at + done * self.schema.row_bytes, record)
                for name in names:
                    _read_attribute(reader.fd, record, name, done, attributes[name][place])
                kept = take
                if dead is not None:
                    alive = np.flatnonzero(~dead.window(number, number + take))
                    kept = len(alive)
                    if kept < take:
                        for column in (ids, vectors, *attributes.values()):
                            column[filled : filled + kept] = column[place][alive]
                if start:
                    dropped = min(start, kept)
                    start -= dropped
                    if kept > dropped and dropped:
                        for column in (ids, vectors, *attributes.values()):
                            column[filled : filled + kept - dropped] = column[filled + dropped : filled + kept].copy()
                    kept -= dropped
                filled += kept
                number += take
                done += take
                if filled == step:
                    yield Batch(ids, vectors, attributes)
                    filled = 0
        if filled:
            yield Batch(ids[:filled], vectors[:filled], {n: a[:filled] for n, a in attributes.items()})

    def ids_only(self, max_rows: int) -> Iterator[npt.NDArray[np.int64]]:
        """The ids of all inserted rows, dead ones too, in chunks."""
        for record, count, reader in self._inserts():
            if count > 1:
                yield _run(reader, record, count, self.schema)[0]
                continue
            for done in range(0, record.rows, max_rows):
                ids = np.empty(min(max_rows, record.rows - done), ID)
                _read(reader.fd, ids, record.ids_at + 8 * done, record)
                yield ids

    def places(self) -> Iterator[tuple[str, int, int, int]]:
        """(file, byte of the ids, byte of the vectors, rows) of each insert record, dead rows and those before `first` too."""
        for record, count, reader in self._inserts():
            size = record.end - record.start
            for n in range(count):
                yield reader.file.path, record.ids_at + n * size, record.data_at + n * size, record.rows

    def _inserts(self) -> Iterator[tuple[Record, int, _Reader]]:
        """Insert records; equal ones in a row, but for ids and vectors, as the first of them and their number."""
        readers: dict[int, _Reader] = {}
        by_number = {f.number: f for f in self.files}
        try:
            for number, first, last in self.spans.tolist():
                if number not in readers:
                    for reader in readers.values():
                        reader.close()
                    readers = {number: _Reader(by_number[number])}
                position, size = first, 0
                while position < last:
                    record = _parse(readers[number], position)
                    if record is None:
                        raise DamageError(by_number[number].path, "the record is gone; did the log change?", offset=position)
                    before, size = size, record.end - position
                    count = _run_length(readers[number], record, last) if size == before else 1
                    if record.data_bytes:
                        yield record, count, readers[number]
                    position += count * size
        finally:
            for reader in readers.values():
                reader.close()


def _run_length(reader: _Reader, record: Record, last: int) -> int:
    """How many records from `record` on, up to the byte `last`, differ in their LSN, ids and vectors only."""
    size = record.end - record.start
    count = min(last - record.start, _WINDOW) // size
    if count < 2 or record.attributes:
        return 1
    window = reader.get(record.start, count * size)
    if window is None:
        return 1
    octets = np.frombuffer(window, np.uint8).reshape(count, size)
    lsns = octets[:, :8].copy().view("<u8")[:, 0]
    head = record.ids_at - record.start
    same = lsns == np.uint64(record.lsn) + np.arange(count, dtype=np.uint64) * np.uint64(size)
    same &= (octets[:, 8:head] == octets[0, 8:head]).all(axis=1)
    return count if same.all() else int(np.argmin(same))


def _run(reader: _Reader, record: Record, count: int, schema: Schema) -> tuple[npt.NDArray[np.int64], Array]:
    """Ids and vectors of `count` equal records."""
    size = record.end - record.start
    window = reader.get(record.start, count * size)
    if window is None:
        raise DamageError(reader.file.path, "the records are gone; did the log change?", offset=record.start)
    octets = np.frombuffer(window, np.uint8).reshape(count, size)
    ids_at, data_at = record.ids_at - record.start, record.data_at - record.start
    ids = octets[:, ids_at:data_at].copy().view(ID).reshape(-1)
    vectors = octets[:, data_at : data_at + record.data_bytes].copy().view(schema.dtype).reshape(-1, schema.width)
    return ids, vectors


def _read(fd: int, out: Array, offset: int, record: Record) -> None:
    fileio.read_into(fd, out.reshape(-1).view(np.uint8).data, offset, f"WAL file {record.file}")


def _read_attribute(fd: int, record: Record, name: str, first: int, out: Array) -> None:
    for field, at, nbytes in record.attributes:
        if field.decode("utf-8", "replace") == name and record.rows and nbytes % record.rows == 0:
            width = nbytes // record.rows
            kind = {"f": {4: "<f4", 8: "<f8"}, "i": {1: "i1", 2: "<i2", 4: "<i4", 8: "<i8"}}[out.dtype.kind].get(width)
            if kind:
                values = np.empty(len(out), kind)
                _read(fd, values, at + first * width, record)
                out[:] = values
                return
    out[:] = 0


def read_ids(file: LogFile, offset: int, rows: int) -> npt.NDArray[np.int64]:
    """The ids of one record, int64 [rows]."""
    ids = np.empty(rows, ID)
    fd = fileio.open_read(file.path)
    try:
        fileio.read_into(fd, ids.view(np.uint8).data, offset, file.path)
    finally:
        os.close(fd)
    return ids


class SpanBuilder:
    """Collects records of one table as runs of adjacent bytes: 24 bytes a run."""

    def __init__(self) -> None:
        self._runs = array("Q")
        """File number, first byte, last byte of each run, one behind the other."""

    def add(self, record: Record) -> None:
        runs = self._runs
        if runs and runs[-1] == record.start and runs[-3] == record.file:
            runs[-1] = record.end
        else:
            runs.extend((record.file, record.start, record.end))

    def build(self) -> npt.NDArray[np.uint64]:
        return np.array(self._runs, np.uint64).reshape(-1, 3)


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
