"""A flush that the catalog does not know of: a crash came between its transactions, and the rows are in a segment and in the
log (FORMAT §3.4, §6 step 4). It is recognised by content; without it a server's recovery doubles the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ...findings import Findings
from ...hashing import Hashes
from ...model import Severity
from ..copies import among, contains, hashes_of, matched
from ..layout import ID
from ..segment.files import Segment
from .account import hashes_with_ids
from .deletes import Deletes, Ids
from .rows import LogRows
from .table import IDS_CHUNK, LoggedTable

_SAMPLE = 64
"""Ids of a segment that are looked up before all of its rows are compared."""
_SUMS = 1 << 64
"""Sums of hashes are taken modulo this."""


def already_flushed(table: LoggedTable, segments: Sequence[Segment], findings: Findings) -> tuple[int, set[str]]:
    """LSN up to which the table's records stand in segments although flush_lsn does not say so, and the ids of these
    segments, the newest whose rows all are in the log; (0, {}) when there is no such flush.

    A segment that the catalog still knows in memory speaks against it: that row became RAW with the flush, and the log's
    thread, which makes another, was busy with it. Rows that are in a segment and in the log then were inserted twice, or a
    restarted server was killed while it replayed them; where the whole log is there, that decides (Replayer).
    """
    log_rows = table.log_rows()
    order = _with_ids_of(log_rows, segments)
    if not order:
        return 0, set()
    hashes = hashes_of(log_rows.batches())
    ordered = np.sort(hashes)
    hashes_by_id = {s.id: h for s in order if contains(ordered, h := stored_hashes(s), is_sorted=True)}
    order = [s for s in order if s.id in hashes_by_id]
    variants = [table.memory_deletes]
    if len(table.deletes) != len(table.memory_deletes):
        variants.append(table.deletes)  # a server that was restarted since has passed over the others
    for deletes in variants:
        for lsn, rows, newest in _moments(table, hashes, order, hashes_by_id, deletes):
            ids = {s.id for s in newest}
            if _accounted_before(table, [s for s in segments if s.id not in ids], rows, lsn):
                continue
            _note(
                findings,
                Severity.INFO,
                "flush-unrecorded",
                f"{table.collection}/{table.partition}",
                f"the server crashed after it had written {', '.join(s.id for s in newest)} and before its catalog recorded "
                "it, so these rows are in the segment and in the log. They are read once; a restarted server would double them",
                len(rows),
            )
            return lsn, ids
    return 0, set()


def _moments(
    table: LoggedTable, hashes: Hashes, order: Sequence[Segment], hashes_by_id: Mapping[str, Hashes], deletes: Deletes
) -> Iterator[tuple[int, Hashes, list[Segment]]]:
    """LSNs, the latest first, after which the rows left in memory are those of some newest segments; and both of these.

    `hashes` are those of all inserts; `order` are the segments by age, with `hashes_by_id`.
    """
    stored_after: dict[int, int] = {}
    total = 0
    for k, segment in enumerate(reversed(order), 1):
        total += segment.stored
        stored_after.setdefault(total, k)
    ends, lsns = np.array(table.insert_ends, np.int64), np.array(table.insert_lsns, np.uint64)
    moments = np.union1d(lsns, deletes.lsns)
    inserted = np.concatenate([[0], ends])[np.searchsorted(lsns, moments, "right")]
    removed, removed_lsns = table.removals(deletes, 0)
    left = inserted - np.searchsorted(removed_lsns, moments, "right")
    matches = [i for i in range(len(moments)) if left[i] > 0 and int(left[i]) in stored_after]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)])
    removed_sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes[removed], dtype=np.uint64)])
    for i in reversed(matches):
        newest = list(order[len(order) - stored_after[int(left[i])] :])
        gone = int(np.searchsorted(removed_lsns, moments[i], "right"))
        memory = (int(sums[inserted[i]]) - int(removed_sums[gone])) % _SUMS
        if memory == sum(int(hashes_by_id[s.id].sum(dtype=np.uint64)) for s in newest) % _SUMS:
            yield int(moments[i]), np.delete(hashes[: inserted[i]], removed[:gone]), newest


def partly_flushed(
    table: LoggedTable, segments: Sequence[Segment], findings: Findings, *, share: float
) -> tuple[int, set[str], Ids]:
    """The same where the log or a segment is damaged, so that they no longer match as a whole: at least this share of a
    segment's rows is in the log, and no earlier record explains them. Also gives the rows of the log that stand in such
    segments, one for one."""
    log_rows = table.log_rows()
    order = _with_ids_of(log_rows, segments, share)
    if not order:
        return 0, set(), np.empty(0, ID)
    hashes = hashes_of(log_rows.batches())
    ordered = np.sort(hashes)
    held = {s.id: h for s in order if among(h := stored_hashes(s), ordered).mean() >= share}
    if not held:
        return 0, set(), np.empty(0, ID)
    rows = np.flatnonzero(matched(hashes, np.concatenate(list(held.values()))))
    ends, lsns = np.array(table.insert_ends, np.int64), np.array(table.insert_lsns, np.uint64)
    lsn = int(lsns[np.searchsorted(ends, rows[-1], "right")])
    others = [s for s in segments if s.id not in held]
    if not _stored_in(others, _equal_before(table, hashes[rows]), stored_hashes):
        return 0, set(), np.empty(0, ID)  # the segment is that of equal rows, flushed before
    _note(
        findings,
        Severity.WARNING,
        "flush-unrecorded",
        f"{table.collection}/{table.partition}",
        f"{len(rows)} rows are both in the log and in {', '.join(held)}, but their flush was never recorded and other "
        "rows there "
        f"differ: the log or the segment is damaged. The {len(rows)} rows are read once",
        len(rows),
    )
    return lsn, set(held), rows


def older_than_segments(
    table: LoggedTable, segments: Sequence[Segment], findings: Findings, *, for_certain: bool
) -> tuple[int, Ids]:
    """The same where flush_lsn is older than the list of segments: a catalog copied while the server ran, a damaged number.

    LSN up to which all records stand in segments, whatever was merged since, and the rows of the log after it that do; (0,
    none) when the first record does not. Contents that earlier records inserted are accounted for. A client that sends rows
    once more, word for word, leaves the same picture only where their records are gone and the server had not yet begun on
    them; else the catalog knows a segment in memory, or the earlier record is there.
    """
    removed = table.removals(table.deletes, 0)[0]
    log_rows = table.log_rows()
    hashes = hashes_of(log_rows.batches())
    ids = np.unique(np.concatenate([np.empty(0, ID), *log_rows.ids_only(IDS_CHUNK)]))
    stored = hashes_with_ids(segments, ids)
    if not len(stored):
        return 0, np.empty(0, ID)
    if table.old_rows:
        stored = stored[~matched(stored, hashes_of(table.old_log_rows().batches()))]
    there = matched(hashes, stored)
    lacking = np.delete(np.flatnonzero(~there), np.flatnonzero(np.isin(np.flatnonzero(~there), removed)))
    ends = np.array(table.insert_ends, np.int64)
    whole = int(np.searchsorted(ends, lacking[0], "right")) if len(lacking) else len(ends)
    lsn, done = (table.insert_lsns[whole - 1], int(ends[whole - 1])) if whole else (0, 0)
    if not there[:done].any():
        lsn, done = 0, 0
    beyond = np.flatnonzero(there[done:]) + done if for_certain else np.empty(0, ID)
    if count := int(there[:done].sum()) + len(beyond):
        findings.warning(
            "flush-unrecorded",
            table.place,
            "these rows are both in the log and in segments, although the catalog calls them not flushed: its flush_lsn "
            "is older "
            "than its list of segments. They are read once",
            count,
        )
    return lsn, beyond


def _accounted_before(table: LoggedTable, others: Sequence[Segment], memory: Hashes, lsn: int) -> bool:
    """Whether what is taken for a flush up to `lsn` of the rows `memory` was the flush of equal ones by earlier records: these
    are in no other segment, and nothing has deleted them since."""
    if table.in_memory:  # a sign of rows not flushed, and the benefit of doubt is theirs
        return not _stored_in(others, _equal_before(table, memory), stored_hashes)
    kept = ~table.deleted_since(table.old_deletes + table.deletes.until(lsn))
    return not _stored_in(others, _equal_before(table, memory, kept), lambda s: hashes_of(s.batches()))


def _equal_before(table: LoggedTable, memory: Hashes, kept: npt.NDArray[np.bool_] | None = None) -> Hashes:
    """Of the rows that earlier records inserted, those (that are `kept`) that equal one of `memory`."""
    if not table.old_rows:
        return np.empty(0, np.uint64)
    earlier = hashes_of(table.old_log_rows().batches())
    again = np.isin(earlier, memory)
    return earlier[again if kept is None else again & kept]


def _stored_in(segments: Sequence[Segment], rows: Hashes, hashes: Callable[[Segment], Hashes]) -> bool:
    """Whether the segments together hold all these rows, each for itself."""
    return not len(rows) or (bool(segments) and contains(np.concatenate([hashes(s) for s in segments]), rows))


def _with_ids_of(log_rows: LogRows, segments: Iterable[Segment], share: float = 1.0) -> list[Segment]:
    """The segments, in the order of their numbers, that may consist of rows of the log: a sample of their ids is in it,
    or `share` of the sample."""
    most = log_rows.inserted / share
    order = sorted((s for s in segments if 0 < s.stored <= most), key=lambda s: s.id)
    if not order:
        return []
    logged = np.unique(np.concatenate(list(log_rows.ids_only(IDS_CHUNK))))
    return [s for s in order if among(_sampled_ids(s), logged).mean() >= share]


def _sampled_ids(segment: Segment) -> Ids:
    step = -(-segment.stored // _SAMPLE)
    return np.concatenate([ids[-first % step :: step] for first, ids in segment.ids_in_chunks(IDS_CHUNK)])


def stored_hashes(segment: Segment) -> Hashes:
    """Hashes of all stored rows, deleted ones too."""
    return hashes_of(segment.undeleted.batches(1 << 20))


def _note(findings: Findings, severity: Severity, code: str, where: str, message: str, rows: int | None = None) -> None:
    findings.add(severity, code, where, message, rows)
