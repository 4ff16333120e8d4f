"""Rows out of the log: pieces that read what insert records hold, and the runs of records they are made of (FORMAT §5.4)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...model import BATCH_BYTES, Array, Batch, Schema, buffer
from ...watch import watch
from ..layout import ID
from ..segment.files import DeadRows
from ..segment.zeros import Finder
from .log import WINDOW, LogFile, Reader, Record, parse_record


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
        finders = _Finders(self)
        for record, count, reader in self._inserts():
            rows = record.rows * count
            done = min(rows, max(0, self.first - number))
            number += done
            run = _run(reader, record, count, self.schema) if count > 1 else None
            if run is not None:
                finders.look(run[2], record.start, record)
            while done < rows:
                take = min(rows - done, step - filled)
                place = slice(filled, filled + take)
                if run is not None:
                    ids[place], vectors[place] = run[0][done : done + take], run[1][done : done + take]
                else:
                    _read(reader.fd, ids[place], record.ids_at + 8 * done, record)
                    at = record.data_at + done * self.schema.row_bytes
                    _read(reader.fd, vectors[place], at, record)
                    finders.look(vectors[place].reshape(-1).view(np.uint8), at, record)
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
        finders.close()
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

    def _inserts(self) -> Iterator[tuple[Record, int, Reader]]:
        """Insert records; equal ones in a row, but for ids and vectors, as the first of them and their number."""
        readers: dict[int, Reader] = {}
        by_number = {f.number: f for f in self.files}
        try:
            for number, first, last in self.spans.tolist():
                if number not in readers:
                    for reader in readers.values():
                        reader.close()
                    readers = {number: Reader(by_number[number])}
                position, size = first, 0
                while position < last:
                    record = parse_record(readers[number], position)
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


def _run_length(reader: Reader, record: Record, last: int) -> int:
    """How many records from `record` on, up to the byte `last`, differ in their LSN, ids and vectors only."""
    size = record.end - record.start
    count = min(last - record.start, WINDOW) // size
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


def _run(reader: Reader, record: Record, count: int, schema: Schema) -> tuple[npt.NDArray[np.int64], Array, Array]:
    """Ids and vectors of `count` equal records, and all their bytes."""
    size = record.end - record.start
    window = reader.get(record.start, count * size)
    if window is None:
        raise DamageError(reader.file.path, "the records are gone; did the log change?", offset=record.start)
    octets = np.frombuffer(window, np.uint8).reshape(count, size)
    ids_at, data_at = record.ids_at - record.start, record.data_at - record.start
    ids = octets[:, ids_at:data_at].copy().view(ID).reshape(-1)
    vectors = octets[:, data_at : data_at + record.data_bytes].copy().view(schema.dtype).reshape(-1, schema.width)
    return ids, vectors, octets.reshape(-1)


class _Finders:
    """Looks for lost blocks in what is read of the records of one table, while somebody watches (`watch.py`).

    A block that takes in a record's header is a place without a record, and told as such. In a run of equal records one of them
    stands for a row.
    """

    def __init__(self, rows: LogRows) -> None:
        self._watch, self._rows = watch(), rows
        self._finder: Finder | None = None
        self._key = (-1, -1)

    def look(self, octets: Array, offset: int, record: Record) -> None:
        if self._watch is None:
            return
        row_bytes = self._rows.schema.row_bytes if offset != record.start else record.end - record.start
        if self._key != (record.file, row_bytes):
            self.close()
            self._key = (record.file, row_bytes)
            path = next(f.path for f in self._rows.files if f.number == record.file)
            where, each = f"{self._rows.schema.name}/{self._rows.id}", record.rows if offset == record.start else 1
            self._finder = Finder(self._watch, where, path, row_bytes, rows_each=each)
        if self._finder is not None:
            self._finder.look(octets, offset)

    def close(self) -> None:
        if self._finder is not None:
            self._finder.close()


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
