"""Which rows of a damaged store are lost: those that its segments still name and that no live row has, and those whose vectors
a disk took (FORMAT §4.1, §4.2, §5.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import DamageError
from ..fileio import Ranges
from ..model import Finding, Piece, Severity
from ..watch import Watch, watching
from .disk import Disk
from .layout import DELETED_DOCS, ID, LENGTH
from .segment.files import Segment, read_deleted, read_header, rows_in
from .segment.opening import Folder
from .store import Partition, Store
from .wal.rows import LogRows

Ids = npt.NDArray[np.int64]
_NONE: Ids = np.empty(0, np.int64)
_ROWS = 1 << 18
"""Ids that are read in one go."""
_MET = {"blocks-lost", "segment-unreadable", "wal-unreadable"}
"""What is found only when rows are read."""


def lost_ids(store: Store, findings: Iterable[Finding] = ()) -> Iterator[tuple[str, str, Ids]]:
    """(collection, partition, ids int64 [n], sorted) of rows that are lost, and are not deleted.

    They stand in the `.uid` file of a damaged segment and do not come out of the store (§4.2), or `findings`, those of a run
    that read the rows, tell that blocks of their files are lost or cannot be read. Rows whose ids are lost cannot be named.
    """
    damaged = {part for f in store.findings if f.severity is Severity.ERROR for part in re.split(r"[/\\]", f.where)}
    met = {f.where for f in findings if f.code in _MET}
    log_met = any(log.where in met for c in store.values() for p in c.values() for log in p.log)  # tables share its files
    for collection, live in zip(store.collections, store.selection.collections, strict=True):
        for tag, _, choices in live.partitions:
            partition = collection[tag]
            held = [
                ids
                for choice in choices
                if choice.segment_id in damaged and (ids := _ids_of(store.disk, choice.table_id, choice.segment_id)) is not None
            ]
            if (
                held
                or any(isinstance(s, Segment) and s.where in met for s in partition.segments)
                or (log_met and partition.log)
            ):
                lost = _lost_of(partition, np.concatenate([_NONE, *held]))
                if len(lost):
                    yield collection.name, tag, lost


def _lost_of(partition: Partition, held: Ids) -> Ids:
    """The lost rows of a partition, which is read once for it, and of which no more than the ids of one piece are kept: of
    `held` those that do not come out."""
    held = np.unique(held)
    came = np.zeros(len(held), np.bool_)
    lost = []
    for piece in partition.pieces:
        with watching() as met:
            ids = np.concatenate([_NONE, *(batch.ids.copy() for batch in piece.batches())])
        came |= np.isin(held, ids)
        left_out, wrong = _met_by(piece, met)
        lost += [left_out, wrong[np.isin(wrong, ids)]]
    return np.unique(np.concatenate([held[~came], *lost]))


def _met_by(piece: Piece, met: Watch) -> tuple[Ids, Ids]:
    """Ids of a piece's rows that are left out, and of those that come out (or are deleted) with vectors that are wrong."""
    if isinstance(piece, Segment):
        return _of_segment(piece, met)
    return _of_log(piece, met) if isinstance(piece, LogRows) else (_NONE, _NONE)


def _of_segment(segment: Segment, met: Watch) -> tuple[Ids, Ids]:
    left_out = _numbers(met.left_out(segment.raw_path))
    wrong = _rows_of(met, segment.raw_path, LENGTH.size, segment.schema.row_bytes)
    if not len(left_out) + len(wrong):
        return _NONE, _NONE
    unnamed = _rows_of(met, segment.ids_path, LENGTH.size, ID.itemsize)
    found: tuple[list[Ids], list[Ids]] = ([_NONE], [_NONE])
    with watching():  # what is met by reading again was said
        for offsets, ids in segment.readable_ids(_ROWS):
            for rows, kept in zip((left_out, wrong), found, strict=True):
                kept.append(ids[np.isin(offsets, np.setdiff1d(rows, unnamed))])
    return np.concatenate(found[0]), np.concatenate(found[1])


def _of_log(log: LogRows, met: Watch) -> tuple[Ids, Ids]:
    """Records are looked at one by one, but only where there is something to find in their file."""
    refused = {f.path: met.places(f.path) for f in log.files}
    blank = {f.path: [(r.start, r.end) for r in met.lost_runs(f.path)] for f in log.files}
    left_out = np.concatenate([_NONE, *(_numbers(met.left_out(f.path)) for f in log.files)])
    found: tuple[list[Ids], list[Ids]] = ([_NONE], [_NONE])
    number = 0
    if not any((*refused.values(), *blank.values())):
        return _NONE, _NONE
    with watching():
        for path, ids_at, data_at, rows in log.places():
            hit = _inside(blank[path], data_at, log.schema.row_bytes, rows)
            gone = left_out[(left_out >= number) & (left_out < number + rows)] - number
            number += rows
            if not len(hit) + len(gone):
                continue
            unnamed = _inside([*blank[path], *refused[path]], ids_at, ID.itemsize, rows)
            for numbers, kept in zip((gone, hit), found, strict=True):
                named = np.setdiff1d(numbers, unnamed)
                kept += [fileio.read_array(path, ID, 1, ids_at + ID.itemsize * row) for row in named.tolist()]
    return np.concatenate(found[0]), np.concatenate(found[1])


def _rows_of(met: Watch, path: str, start: int, row_bytes: int) -> Ids:
    """Rows that lie in lost blocks of a file."""
    runs = [(r.start, r.end) for r in met.lost_runs(path)]
    return rows_in(runs, start, row_bytes) if runs else _NONE


def _inside(places: Ranges, start: int, row_bytes: int, rows: int) -> Ids:
    """Which of `rows` rows from the byte `start` on lie in these places, in whole or in part."""
    end = start + rows * row_bytes
    parts = [(max(a, start), min(b, end)) for a, b in places if a < end and b > start]
    return rows_in(parts, start, row_bytes) if parts else _NONE


def _numbers(ranges: Ranges) -> Ids:
    return np.concatenate([_NONE, *(np.arange(a, b) for a, b in ranges)])


def _ids_of(disk: Disk, table_id: str, segment_id: str) -> Ids | None:
    """The ids that a segment folder still has, without those of deleted rows; None where there are none."""
    try:
        folder: Folder | None = disk.folder(table_id, segment_id)
        if folder is None or len(folder.ids) != 1:
            return None
        path = folder.path / folder.ids[0]
        count = read_header(path).bytes // ID.itemsize
        ids = np.fromfile(path, ID, count, offset=LENGTH.size)
        alive = np.ones(len(ids), bool)
        for offsets in read_deleted(str(folder.path / DELETED_DOCS) if folder.has_deleted_docs else None):
            alive[offsets[(offsets >= 0) & (offsets < len(ids))]] = False
        return ids[alive]
    except (DamageError, OSError):
        return None
