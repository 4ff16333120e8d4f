"""Rows out of the log: pieces that read what insert records hold, and the runs of records they are made of (FORMAT §5.4)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...fileio import Ranges
from ...model import BATCH_BYTES, NOWHERE, Array, Batch, Places, Schema, buffer
from ...watch import in_words, union, watch
from ..layout import ID
from ..segment.dead import DeadRows
from ..segment.files import rows_in, runs_of
from ..segment.zeros import Finder
from .log import WINDOW, LogFile, Reader, Record, parse_record

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LogRows:
    """The rows that some insert records of one table hold, in the log's order; a piece of its partition.

    `spans` is uint64 [k, 4]: file number, first and last byte of runs of adjacent records of the same table, and the rows that
    these insert; deletes inside are passed over. `dead` are row numbers (counted over all inserts of the spans) that later
    deletes removed; rows before `first` are in a segment already.
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

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that its rows are read from."""
        return tuple(f.path for f in self.files)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Rows in the log's order; see model.Piece."""
        dead = None
        if len(self.dead):
            dead = DeadRows(self.inserted)
            dead.add(self.dead)
        step = max(1, min(max_bytes // self.schema.row_bytes, self.rows - start))
        ids = np.empty(step, ID)
        vectors = buffer((step, self.schema.width), self.schema.dtype)
        names = [a.name for a in self.schema.attributes]
        attributes = {a.name: np.zeros(step, a.dtype) for a in self.schema.attributes}
        columns = (ids, vectors, *attributes.values())
        filled = 0
        lost: list[Places] = []
        begin = self._row_of(start) if start else self.first
        number, spans = self._spans_from(begin)
        for record, count, reader in self._inserts(spans):
            rows = record.rows * count
            done = min(rows, max(0, begin - number))
            number += done
            if done == rows:
                continue
            with _Payload(reader, record, count, self.schema, self.where) as payload:
                while done < rows:
                    take = min(rows - done, step - filled)
                    place = slice(filled, filled + take)
                    refused = payload.read(done, ids[place], vectors[place])
                    for name in names:
                        _read_attribute(reader, record, name, done, attributes[name][place])
                    alive = np.arange(take) if dead is None else np.flatnonzero(~dead.window(number, number + take))
                    if len(refused):
                        is_lost = np.isin(alive, refused)
                        payload.tell(alive[is_lost] + number)
                        lost.append(np.flatnonzero(is_lost) + filled + sum(map(len, lost)))
                        alive = alive[~is_lost]
                    if len(alive) < take:
                        for column in columns:
                            column[filled : filled + len(alive)] = column[place][alive]
                    filled += len(alive)
                    number += take
                    done += take
                    if filled == step:
                        yield Batch(ids, vectors, attributes, np.concatenate(lost) if lost else NOWHERE)
                        filled, lost = 0, []
        if filled or lost:
            rest = {n: a[:filled] for n, a in attributes.items()}
            yield Batch(ids[:filled], vectors[:filled], rest, np.concatenate(lost) if lost else NOWHERE)

    def _row_of(self, live: int) -> int:
        """The row with the number `live` among the live ones, counted over all inserts. None before `first` is in `dead`."""
        if not len(self.dead):
            return self.first + live
        dead = DeadRows(self.inserted)
        dead.add(self.dead)
        return dead.row_of_live(self.first + live)

    def _spans_from(self, row: int) -> tuple[int, npt.NDArray[np.uint64]]:
        """The spans from the one on that holds `row`, and the number of rows before them: a task reads its part of the log."""
        ends = np.cumsum(self.spans[:, 3], dtype=np.int64)
        at = int(np.searchsorted(ends, row, side="right"))
        return int(ends[at - 1]) if at else 0, self.spans[at:]

    @property
    def where(self) -> str:
        """How findings name it."""
        return f"{self.schema.name}/{self.id}"

    def ids_only(self, max_rows: int) -> Iterator[npt.NDArray[np.int64]]:
        """The ids of all inserted rows, dead ones too, in chunks."""
        for record, count, reader in self._inserts():
            if count > 1:
                yield _run(reader, record, count, self.schema)[0]
                continue
            for done in range(0, record.rows, max_rows):
                ids = np.empty(min(max_rows, record.rows - done), ID)
                _read(reader, ids, record.ids_at + 8 * done)
                yield ids

    def places(self) -> Iterator[tuple[str, int, int, int]]:
        """(file, byte of the ids, byte of the vectors, rows) of each insert record, dead rows and those before `first` too."""
        for record, count, reader in self._inserts():
            size = record.end - record.start
            for n in range(count):
                yield reader.file.path, record.ids_at + n * size, record.data_at + n * size, record.rows

    def _inserts(self, spans: npt.NDArray[np.uint64] | None = None) -> Iterator[tuple[Record, int, Reader]]:
        """Insert records of all spans, or of these; equal ones in a row, but for ids and vectors, as the first of them and
        their number."""
        readers: dict[int, Reader] = {}
        by_number = {f.number: f for f in self.files}
        try:
            for number, first, last, _ in (self.spans if spans is None else spans).tolist():
                if number not in readers:
                    for reader in readers.values():
                        reader.close()
                    readers = {number: Reader(by_number[number])}
                position, size = first, 0
                while position < last:
                    record = parse_record(readers[number], position)
                    if record is None:
                        raise DamageError(
                            by_number[number].path, "the record is gone: the log changed while it was read", offset=position
                        )
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


def _run(reader: Reader, record: Record, count: int, schema: Schema) -> tuple[npt.NDArray[np.int64], Array]:
    """Ids and vectors of `count` equal records."""
    size = record.end - record.start
    window = reader.get(record.start, count * size)
    if window is None:
        raise DamageError(reader.file.path, "the records are gone: the log changed while it was read", offset=record.start)
    octets = np.frombuffer(window, np.uint8).reshape(count, size)
    ids_at, data_at = record.ids_at - record.start, record.data_at - record.start
    ids = octets[:, ids_at:data_at].copy().view(ID).reshape(-1)
    vectors = octets[:, data_at : data_at + record.data_bytes].copy().view(schema.dtype).reshape(-1, schema.width)
    return ids, vectors


class _Payload:
    """Reads ids and vectors of an insert record, or of several equal ones, around unreadable places while somebody watches."""

    def __init__(self, reader: Reader, record: Record, count: int, schema: Schema, where: str) -> None:
        self._reader, self._record, self._schema, self._where = reader, record, schema, where
        self._watch = watch()
        self._run = _run(reader, record, count, schema) if count > 1 else None
        self._refused: Ranges = []
        self._finders: list[Finder] = []
        path = reader.file.path
        if self._watch is None:
            if self._run is not None and reader.refused:
                raise DamageError(path, f"the disk refuses {in_words(union(reader.refused))}")
            return
        if self._run is not None:
            size = record.end - record.start
            finder = Finder(self._watch, where, path, size, rows_each=record.rows, bounds=(True, True))
            octets = np.frombuffer(reader.get(record.start, count * size) or b"", np.uint8)
            finder.look(octets, record.start)
            finder.close()
            self._refused = [(a, b) for a, b in reader.refused if a < record.start + count * size and b > record.start]
        else:
            self._finders = [
                Finder(self._watch, where, path, ID.itemsize, ID.itemsize, bounds=(True, False)),
                Finder(self._watch, where, path, schema.row_bytes, bounds=(False, True)),
            ]

    def __enter__(self) -> _Payload:
        return self

    def __exit__(self, *_: object) -> None:
        for finder in self._finders:
            finder.close()

    def read(self, first: int, ids: Ids, vectors: Array) -> Places:
        """Fills both with the rows from `first` on; which of them lie in places that cannot be read."""
        record, row_bytes = self._record, self._schema.row_bytes
        if self._run is not None:
            last = first + len(ids)
            ids[:], vectors[:] = self._run[0][first:last], self._run[1][first:last]
            if not self._refused:
                return NOWHERE
            records = rows_in(self._refused, record.start, record.end - record.start)
            return np.flatnonzero(np.isin(np.arange(first, last) // record.rows, records))
        if self._watch is None:
            _read(self._reader, ids, record.ids_at + ID.itemsize * first)
            _read(self._reader, vectors, record.data_at + row_bytes * first)
            return NOWHERE
        self._refused, lost = [], NOWHERE
        parts = ((ids, record.ids_at, ID.itemsize), (vectors, record.data_at, row_bytes))
        for finder, (out, at, width) in zip(self._finders, parts, strict=True):
            octets = out.reshape(-1).view(np.uint8)
            refused = fileio.read_around(self._reader.fd, octets.data, at + width * first, self._reader.file.path)
            if refused:
                lost = np.union1d(lost, rows_in(refused, at + width * first, width))
                self._refused += refused
            else:
                finder.look(octets, at + width * first)
        return lost

    def tell(self, rows: Ids) -> None:
        """Tells the watch of the unreadable places of the last `read`, and which live rows are left out for them."""
        if self._watch is not None:
            self._watch.note_unreadable(self._where, self._reader.file.path, self._refused, runs_of(rows))


def _read(reader: Reader, out: Array, offset: int) -> None:
    fileio.read_into(reader.fd, out.reshape(-1).view(np.uint8).data, offset, reader.file.path)


def _read_attribute(reader: Reader, record: Record, name: str, first: int, out: Array) -> None:
    for field, at, nbytes in record.attributes:
        if field.decode("utf-8", "replace") == name and record.rows and nbytes % record.rows == 0:
            width = nbytes // record.rows
            kind = {"f": {4: "<f4", 8: "<f8"}, "i": {1: "i1", 2: "<i2", 4: "<i4", 8: "<i8"}}[out.dtype.kind].get(width)
            if kind:
                values = np.empty(len(out), kind)
                _read(reader, values, at + first * width)
                out[:] = values
                return
    out[:] = 0


class SpanBuilder:
    """Collects records of one table as runs of adjacent bytes: 32 bytes a run."""

    _LONG = 16 << 20
    """A run of so many bytes is not made longer: who begins in the midst of the log walks over a part of one run."""

    def __init__(self) -> None:
        self._runs = array("Q")
        """File number, first byte, last byte, inserted rows of each run, one after the other."""

    def add(self, record: Record) -> None:
        runs = self._runs
        rows = record.rows if record.data_bytes else 0
        if runs and runs[-2] == record.start and runs[-4] == record.file and runs[-2] - runs[-3] < self._LONG:
            runs[-2] = record.end
            runs[-1] += rows
        else:
            runs.extend((record.file, record.start, record.end, rows))

    def build(self) -> npt.NDArray[np.uint64]:
        return np.array(self._runs, np.uint64).reshape(-1, 4)
