"""What the log says was inserted and deleted, against what the live segments hold (FORMAT §17).

A running 1.x server loses rows that it has acknowledged: in a flush that fails as a whole, and in segments whose catalog row
was overwritten (§3.6). flush_lsn moves on all the same, so no restart replays them; but their records stand in the log for as
long as its file is there. Ids decide whether a table needs a closer look, contents decide what is true.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...hashing import Hashes, row_hashes
from ...model import Array
from ..copies import hashes_and_unread, hashes_of
from ..layout import ID, LENGTH
from ..segment.files import Segment
from .deletes import Ids, Lsns
from .table import IDS_CHUNK, LoggedTable

_READ = 4 << 20
"""Bytes of vectors read at a time."""
_SEARCHED = 1 << 22
"""Ids of segments, the newest first, among which rows are sought that deletes in the log should have removed."""

Mask = npt.NDArray[np.bool_]


def _none() -> Ids:
    return np.empty(0, np.int64)


@dataclass(eq=False)
class Account:
    """One table's account. Row numbers are those of `table.old_log_rows()`, offsets those of a segment; all sorted.

    `lost` rows were inserted, nothing has deleted them, and no segment stores them; of those that are `differing` a segment
    stores the id with another vector, which the log does not know. `undeleted` are live offsets whose rows a flushed delete
    names, `doubled` those of rows that stand in segments more often than they were inserted; both by segment id.
    """

    table: LoggedTable
    lsns: Lsns
    """Of each row's record."""
    lost: Ids = field(default_factory=_none)
    differing: Mask = field(default_factory=lambda: np.empty(0, np.bool_))
    undeleted: dict[str, Ids] = field(default_factory=dict)
    doubled: dict[str, Ids] = field(default_factory=dict)
    own_from: int | None = None
    """The first record of which a live segment has a row: from there on all are this table's, not a dropped namesake's."""
    oldest_own: int | None = None
    """The smallest number of a live segment with such rows."""
    logged_before: list[tuple[int, int]] = field(default_factory=list)
    """(LSN, µs): the record had been logged by then, for a segment made at that time holds rows of it."""


@dataclass(eq=False)
class Stored:
    """Some rows of live segments, one array entry each: number of the segment, offset in it, id, whether it is live, and the
    place of its id among those that the log knows (-1: it does not)."""

    segments: list[Segment]
    segment: Ids
    offsets: Ids
    ids: Ids
    live: Mask
    place: Ids

    def only(self, mask: Mask) -> Stored:
        parts = (self.segment[mask], self.offsets[mask], self.ids[mask], self.live[mask], self.place[mask])
        return Stored(self.segments, *parts)

    def hashes(self) -> Hashes:
        parts = [np.empty(0, np.uint64)]
        for number, segment in enumerate(self.segments):  # the rows are in the order of the segments
            here = self.segment == number
            parts += _hashes(segment, self.offsets[here], self.ids[here])
        return np.concatenate(parts)

    def by_segment(self, rows: Ids) -> dict[str, Ids]:
        """Offsets of the given rows by segment id."""
        return {self.segments[n].id: self.offsets[rows[self.segment[rows] == n]] for n in np.unique(self.segment[rows])}


def account(table: LoggedTable, segments: Sequence[Segment], until: int, *, raced: bool) -> Account:
    """Holds the flushed records of a table against its live segments; deletes count up to the LSN `until`.

    Where each id is found as often as it should be, no vector is read. `raced`: catalog rows of the table were overwritten, so
    rows may be doubled, and all are looked at. Raises DamageError, OSError where a file cannot be read.
    """
    ids = table.old_ids
    result = Account(table, table.old_row_lsns())
    gone = table.deleted_since(table.old_deletes + table.deletes)
    known, first, place, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    wanted = np.bincount(place[~gone], minlength=len(known))
    stored, found = _find(segments, known, wanted, counts, everything=raced)
    unflushed = np.concatenate([np.empty(0, ID), *table.log_rows().ids_only(IDS_CHUNK)])
    certain = (counts == 1) & ~np.isin(known, unflushed)  # else the row in the segment may be another one
    for number, segment in enumerate(stored.segments):
        places = stored.place[(stored.segment == number) & (stored.place >= 0)]
        if len(places := places[certain[places]]):
            lsns = result.lsns[first[places]]
            result.own_from = min(int(lsns.min()), result.own_from or int(lsns.min()))
            if segment.id.isdecimal():
                result.oldest_own = min(int(segment.id), result.oldest_own or int(segment.id))
                result.logged_before.append((int(lsns.max()), int(segment.id) // 1000))
    if raced:
        _compare(result, ids, gone, np.arange(len(ids)), stored, until, raced=True)
    elif (unequal := found != wanted).any():
        _compare(result, ids, gone, np.flatnonzero(unequal[place]), stored.only(unequal[stored.place]), until, raced=False)
    return result


def find_live(segments: Sequence[Segment], ids: Ids) -> Stored:
    """The live rows of all segments that have one of these ids (sorted, each once)."""
    endless = np.full(len(ids), np.iinfo(np.int64).max)
    stored = _find(segments, ids, endless, endless, everything=False)[0]
    return stored.only(stored.live)


def hashes_with_ids(segments: Sequence[Segment], ids: Ids) -> Hashes:
    """The hashes of stored rows, deleted ones too, that have one of these ids (sorted, each once)."""
    once = np.ones(len(ids), np.int64)
    return _find(segments, ids, once, once, everything=False)[0].hashes()


def _find(segments: Sequence[Segment], known: Ids, wanted: Ids, most: Ids, *, everything: bool) -> tuple[Stored, Ids]:
    """The rows whose id is one of the `known`, or all, and how often each id is live.

    The newest segments come first: what the log still holds was written not long ago. The search ends once each id is live as
    often as `wanted`, and stored as often as inserted (`most`). Rows that were deleted in memory are stored nowhere; they are
    sought among so many ids only.
    """
    order = sorted(segments, key=lambda s: (len(s.id), s.id), reverse=True)
    found, seen = np.zeros(len(known), np.int64), np.zeros(len(known), np.int64)
    parts: list[tuple[Array, ...]] = [tuple(np.empty(0, t) for t in (np.int64, np.int64, ID, np.bool_, np.int64))]
    searched = 0
    for number, segment in enumerate(order):
        if not everything and (found == wanted).all() and ((seen >= most).all() or searched > _SEARCHED):
            break
        searched += segment.stored
        offsets, ids, place = _hits(segment, known, everything)
        live = ~segment.is_dead(offsets) if len(offsets) else np.empty(0, np.bool_)
        parts.append((np.full(len(ids), number), offsets, ids, live, place))
        found += np.bincount(place[live & (place >= 0)], minlength=len(known))
        seen += np.bincount(place[place >= 0], minlength=len(known))
    return Stored(order[: len(parts) - 1], *(np.concatenate(column) for column in zip(*parts, strict=True))), found


def _hits(segment: Segment, known: Ids, everything: bool) -> tuple[Ids, Ids, Ids]:
    """(offset, id, place in `known` or -1) of each row whose id is known, or of all."""
    parts: list[tuple[Ids, ...]] = [(_none(), _none(), _none())]
    for rows, ids in segment.readable_ids(IDS_CHUNK):
        if everything:
            hits = np.arange(len(ids))
        elif len(known) and len(ids) and int(ids.min()) <= int(known[-1]) and int(ids.max()) >= int(known[0]):
            hits = np.flatnonzero((ids >= known[0]) & (ids <= known[-1]))
        else:
            continue
        some = ids[hits]
        place = np.searchsorted(known, some)
        place[known[np.minimum(place, len(known) - 1)] != some if len(known) else slice(None)] = -1
        kept = slice(None) if everything else place >= 0
        parts.append((rows[hits[kept]], some[kept], place[kept]))
    offsets, found, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    return offsets, found, places


def _compare(result: Account, ids: Ids, gone: Mask, rows: Ids, stored: Stored, until: int, *, raced: bool) -> None:
    # many: rows of the log and of segments, which only content tells apart
    """Decides by content: `rows` of the log against `stored` rows of segments that have their ids."""
    table = result.table
    hashes, unread = hashes_and_unread(table.old_log_rows().batches())
    logged = hashes[rows]
    values, number = np.unique(np.concatenate([logged, stored.hashes()]), return_inverse=True)
    in_log, in_segments = number[: len(rows)], number[len(rows) :]

    def count(numbers: Ids) -> Ids:
        return np.bincount(numbers, minlength=len(values))

    inserted, wanted = count(in_log), count(in_log[~gone[rows]])
    alive, dead = count(in_segments[stored.live]), count(in_segments[~stored.live])
    lacking = wanted - alive - np.maximum(0, dead - (inserted - wanted))
    candidates = np.flatnonzero(~(gone[rows] | np.isin(rows, unread)))  # of what the disk refuses nothing is known
    lost = rows[_last(candidates, in_log[candidates], lacking)]
    told = inserted + _unflushed(table, values)
    result.lost, result.differing = lost, np.isin(ids[lost], stored.ids[stored.live & (told[in_segments] == 0)])

    deleted = count(in_log[_deleted_for_certain(table, ids, until)[rows]])
    surplus = np.maximum(0, alive - np.where(told > 0, told - deleted, 1))
    undeleted = np.minimum(surplus, deleted)
    doubled = surplus - undeleted if raced else np.zeros_like(surplus)
    lives = np.flatnonzero(stored.live)
    result.doubled = stored.by_segment(twice := _last(lives, in_segments[lives], doubled))
    lives = np.setdiff1d(lives, twice)
    result.undeleted = stored.by_segment(_last(lives, in_segments[lives], undeleted))


def _last(places: Ids, numbers: Ids, counts: Ids) -> Ids:
    """Of the places with each number the last so many, sorted."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    after = np.searchsorted(ordered, ordered, "right") - np.arange(len(ordered))
    return np.sort(places[order[after <= counts[ordered]]])


def _deleted_for_certain(table: LoggedTable, ids: Ids, until: int) -> Mask:
    """Rows of the log that a flushed delete must have removed, whatever was in memory then: one of several ids, or one of a
    single id that no other row had. Of several rows in memory a single id takes the first alone (§5.7)."""
    deletes = table.applied_deletes.until(until)
    certain = table.deleted_since(deletes, least=2)
    single = table.deleted_since(deletes) & ~certain
    if single.any():
        _, place, counts = np.unique(ids, return_inverse=True, return_counts=True)
        single &= counts[place] == 1
        if first := table.log.files[0].number:  # another row with the id may have stood in the file before
            single &= table.old_row_lsns() >> np.uint64(32) != first
    return certain | single


def _unflushed(table: LoggedTable, values: Hashes) -> Ids:
    """How often the log inserts each content after flush_lsn."""
    if not table.inserted or not len(values):
        return np.zeros(len(values), np.int64)
    hashes = hashes_of(table.log_rows().batches())
    place = np.minimum(np.searchsorted(values, hashes), len(values) - 1)
    return np.bincount(place[values[place] == hashes], minlength=len(values))


def _hashes(segment: Segment, offsets: Ids, ids: Ids) -> Iterator[Hashes]:
    """The hashes of the rows at these offsets (sorted), in their order."""
    schema = segment.schema
    if type(segment) is not Segment:  # its vectors come out of an index file
        yield row_hashes(ids, segment.vectors[offsets])
        return
    step = max(1, _READ // schema.row_bytes)
    fd = fileio.open_read(segment.raw_path)
    try:
        done = 0
        while done < len(offsets):
            first = int(offsets[done])
            after = int(np.searchsorted(offsets, first + step))
            vectors = np.empty((int(offsets[after - 1]) - first + 1, schema.width), schema.dtype)
            octets = vectors.reshape(-1).view(np.uint8).data
            fileio.read_into(fd, octets, LENGTH.size + first * schema.row_bytes, segment.raw_path)
            yield row_hashes(ids[done:after], vectors[offsets[done:after] - first])
            done = after
    finally:
        os.close(fd)
