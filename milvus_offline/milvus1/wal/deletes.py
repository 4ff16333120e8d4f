"""Delete records of the log (FORMAT §5.7): kept once, and their ids read once, however many partitions they reach."""

from __future__ import annotations

import heapq
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ... import fileio
from ..layout import ID
from .log import Log, Record

Ids = npt.NDArray[np.int64]
Lsns = npt.NDArray[np.uint64]
EVER = (1 << 64) - 1


class DeleteRecords:
    """The delete records under one key of the log, in order: 32 bytes each, and 8 for each id once ids are asked for."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._data = array("Q")
        self._unique: dict[tuple[int, int], Ids] = {}

    def add(self, record: Record) -> None:
        self._data.extend((record.lsn, record.file, record.ids_at, record.rows))

    @cached_property
    def _table(self) -> npt.NDArray[np.uint64]:
        return np.array(self._data, np.uint64).reshape(-1, 4)

    @cached_property
    def lsns(self) -> Lsns:
        return np.ascontiguousarray(self._table[:, 0])

    @cached_property
    def ends(self) -> Ids:
        """Where the ids of each record end in `ids`, after a zero: int64 [records + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self._table[:, 3], dtype=np.int64)])

    @cached_property
    def ids(self) -> Ids:
        """The ids of all records. Raises DamageError when a file of the log ends before."""
        result = np.empty(int(self.ends[-1]), ID)
        paths = {f.number: f.path for f in self._log.files}
        opened, fd = None, -1
        try:
            for (_, number, at, _), first, last in zip(self._table.tolist(), self.ends[:-1], self.ends[1:], strict=True):
                if number != opened:
                    if fd >= 0:
                        os.close(fd)
                    opened, fd = number, fileio.open_read(paths[number])
                fileio.read_into(fd, result[first:last].view(np.uint8).data, at, paths[number])
        finally:
            if fd >= 0:
                os.close(fd)
        return result

    def span(self, after: int, until: int) -> tuple[int, int]:
        """The first record with an LSN in (after, until], and the one that follows the last."""
        first, last = np.searchsorted(self.lsns, np.array([after, until], np.uint64), "right")
        return int(first), max(int(first), int(last))

    def unique(self, after: int, until: int) -> Ids:
        """The ids of these records, sorted, each once. Partitions that were flushed together share the array."""
        span = self.span(after, until)
        if span not in self._unique:
            self._unique[span] = np.unique(self.ids[self.ends[span[0]] : self.ends[span[1]]])
        return self._unique[span]


@dataclass(frozen=True)
class Deletes:
    """What of some delete records counts: those with LSNs in (after, until], for each list of its own."""

    parts: tuple[tuple[DeleteRecords, int, int], ...] = ()

    def after(self, lsn: int) -> Deletes:
        """Only those with a higher LSN."""
        return replace(self, parts=tuple((d, max(low, lsn), high) for d, low, high in self.parts))

    def until(self, lsn: int) -> Deletes:
        """Only those up to an LSN."""
        return replace(self, parts=tuple((d, low, min(high, lsn)) for d, low, high in self.parts))

    def __add__(self, other: Deletes) -> Deletes:
        return Deletes(self.parts + other.parts)

    def __len__(self) -> int:
        return sum(last - first for first, last in (d.span(low, high) for d, low, high in self.parts))

    @property
    def lsns(self) -> Lsns:
        """Those of the records, uint64."""
        found = [d.lsns[slice(*d.span(low, high))] for d, low, high in self.parts]
        return np.concatenate([np.empty(0, np.uint64), *found])

    @property
    def ids(self) -> Ids:
        """The ids, sorted, each once."""
        found = [ids for d, low, high in self.parts if len(ids := d.unique(low, high))]
        return found[0] if len(found) == 1 else np.unique(np.concatenate([np.empty(0, ID), *found]))

    def last(self, least: int = 1) -> tuple[Ids, Lsns]:
        """The ids, sorted, each with the LSN of the last record that deletes it, of those with at least so many ids."""
        ids, lsns = [np.empty(0, ID)], [np.empty(0, np.uint64)]
        for d, low, high in self.parts:
            first, last = d.span(low, high)
            counts = np.diff(d.ends[first : last + 1])
            taken = np.repeat(counts >= least, counts)
            ids.append(d.ids[d.ends[first] : d.ends[last]][taken])
            lsns.append(np.repeat(d.lsns[first:last], counts)[taken])
        every, when = np.concatenate(ids), np.concatenate(lsns)
        order = np.lexsort((when, every))
        every, when = every[order], when[order]
        is_last = np.append(every[1:] != every[:-1], True)[: len(every)]
        return every[is_last], when[is_last]

    def by_id(self) -> tuple[Ids, Lsns]:
        """The ids of all, repeated as they are, each with its record's LSN: sorted by both."""
        ids, lsns = [np.empty(0, ID)], [np.empty(0, np.uint64)]
        for d, low, high in self.parts:
            first, last = d.span(low, high)
            ids.append(d.ids[d.ends[first] : d.ends[last]])
            lsns.append(np.repeat(d.lsns[first:last], np.diff(d.ends[first : last + 1])))
        every, when = np.concatenate(ids), np.concatenate(lsns)
        order = np.lexsort((when, every))
        return every[order], when[order]

    def single_ids(self) -> Ids:
        """The ids of records with one id, sorted, each once."""
        found = [np.empty(0, ID)]
        for d, low, high in self.parts:
            first, last = d.span(low, high)
            starts, counts = d.ends[first:last], np.diff(d.ends[first : last + 1])
            found.append(d.ids[starts[counts == 1]])
        return np.unique(np.concatenate(found))

    def naming(self, ids: Ids) -> Iterator[tuple[int, int, int]]:
        """(LSN, id, how many ids its record has) of each deleted id that is one of `ids`, in the log's order.

        `ids` are sorted, and there is one at least.
        """
        return heapq.merge(*(_naming(*part, ids) for part in self.parts), key=lambda r: r[0])


def _naming(deletes: DeleteRecords, after: int, until: int, ids: Ids) -> Iterator[tuple[int, int, int]]:
    first, last = deletes.span(after, until)
    every = deletes.ids[deletes.ends[first] : deletes.ends[last]]
    at = np.flatnonzero(ids[np.minimum(np.searchsorted(ids, every), len(ids) - 1)] == every)
    records = np.searchsorted(deletes.ends, at + deletes.ends[first], "right") - 1
    counts = deletes.ends[records + 1] - deletes.ends[records]
    return zip(deletes.lsns[records].tolist(), every[at].tolist(), counts.tolist(), strict=True)
