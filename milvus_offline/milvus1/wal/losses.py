"""What a running 1.x server has lost or kept by mistake, decided over all tables of a log (FORMAT §3.6, §17)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...model import DEFAULT_PARTITION
from ..copies import hashes_of
from ..segment.files import Segment
from .account import Account, Mask
from .deletes import Ids, Lsns
from .rows import LogRows
from .table import LoggedTable, without
from .unrecorded import stored_hashes


class Verdict(NamedTuple):
    """What becomes of the lost rows of an account: `taken` for certain, `differing` ones, whose ids segments have with other
    vectors, `namesake` ones of a dropped table of that name, and `open` ones, of which nothing tells whether they ever were
    this table's. Row numbers of `table.old_log_rows()`."""

    account: Account
    taken: Ids
    differing: Ids
    namesake: Ids
    open: Ids

    def rows(self, name: str, numbers: Ids) -> LogRows:
        """These rows alone."""
        found = self.account.table.old_log_rows(name)
        return replace(found, dead=np.setdiff1d(np.arange(found.inserted), numbers))


def judge(
    accounts: Sequence[Account],
    *,
    odd_tags: Collection[str],
    never_flushed: Collection[str],
    tails: Collection[int],
    unfinished: Mapping[str, Sequence[Segment]],
) -> list[Verdict]:
    """Decides whose the lost rows are.

    A healthy server has rows in the log that no segment holds and no delete names for three reasons: they were those of a
    dropped table of the same name; they were sent under a tag that the server took for none of its partitions (§5.6); or their
    call, the last in its file, was never acknowledged. So rows count as lost only where that is excluded: an earlier record has
    rows in the table's segments, or was logged after the table was made; the catalog has not seen the table flush that far; the
    ids, which the server gave, are times after its creation; or the catalog still has, or a folder still is, the segment that
    the rows were in. What was logged between two such rows, after the table was made, was in memory with them.

    By table_id: `odd_tags` of partitions whose tag was also sent with blanks, `never_flushed` of tables that never had a
    segment, `unfinished` the complete folders that no flush or merge has ended. `tails` are LSNs of the last records of files.
    """
    logged_before = [pair for a in accounts for pair in a.logged_before]
    verdicts, certain = [], []
    for a in accounts:
        lsns = a.lsns[a.lost]
        namesake = _before_creation(a, lsns, logged_before, a.table.table_id in never_flushed)
        own = _own(a, lsns, accounts, a.table.table_id in odd_tags)
        own |= _in_folders(a, unfinished.get(a.table.table_id, ()))
        own &= ~namesake & ~np.isin(lsns, np.array([*tails], np.uint64))
        certain.append(lsns[own & ~a.differing])
        verdicts.append((a, lsns, namesake, own))
    every = np.concatenate([np.empty(0, np.uint64), *certain])
    result = []
    for a, lsns, namesake, own in verdicts:
        if len(every) and a.table.table_id not in odd_tags:
            own = own | ((lsns >= every.min()) & (lsns <= every.max()) & _after_creation(a, lsns, accounts) & ~namesake)
        parts = own & ~a.differing, own & a.differing, namesake, ~own & ~namesake
        result.append(Verdict(a, *(a.lost[part] for part in parts)))
    return result


def _own(a: Account, lsns: Lsns, accounts: Iterable[Account], odd_tag: bool) -> Mask:
    table = a.table
    own = np.zeros(len(lsns), np.bool_)
    if a.own_from is not None:
        own |= lsns >= a.own_from
    if odd_tag:
        return own
    if table.memory_since is not None and not table.inserted and table.memory_since <= (a.oldest_own or table.memory_since):
        own[:] = True  # what else was in the segment in memory, which is older than the rows that segments have?
    if table.partition != DEFAULT_PARTITION:
        return own
    own |= lsns > table.flush_lsn
    own |= _after_creation(a, lsns, accounts)
    if table.schema.auto_id and len(lsns):
        own |= table.old_ids[a.lost] >= table.created_on * 1000
    return own


def _after_creation(a: Account, lsns: Lsns, accounts: Iterable[Account]) -> Mask:
    """Rows that were logged after the table was made: a row of a table as young, or younger, was logged before."""
    since = [b.own_from for b in accounts if b.own_from is not None and b.table.created_on >= a.table.created_on]
    return lsns >= min(since) if since else np.zeros(len(lsns), np.bool_)


def _before_creation(a: Account, lsns: Lsns, logged_before: Iterable[tuple[int, int]], never_flushed: bool) -> Mask:
    """Rows that were logged before the table was made."""
    limit = max((lsn for lsn, time in logged_before if time <= a.table.created_on), default=0)
    if never_flushed and a.table.partition == DEFAULT_PARTITION:  # then flush_lsn is that of its creation (§5.7)
        limit = max(limit, a.table.flush_lsn)
    return lsns <= limit


def _in_folders(a: Account, folders: Iterable[Segment]) -> Mask:
    found = np.zeros(len(a.lost), np.bool_)
    hashes = None
    for folder in folders if len(a.lost) else ():
        if hashes is None:
            hashes = hashes_of(a.table.old_log_rows().batches())[a.lost]
        found |= np.isin(hashes, stored_hashes(folder))
    return found


def forgotten(table: LoggedTable, segments: Iterable[Segment], folders: Iterable[Segment]) -> list[Segment]:
    """Of complete folders that no flush or merge has ended: the rows that neither the log nor a live segment has, each once,
    but for those that a delete in the log names.

    A healthy server leaves none. What it flushes stands in the log until the catalog knows of it (§5.5), and what it merges
    stands in segments that are live until the merged one is (§3.3).
    """
    hashes = [hashes_of(table.old_log_rows().batches()), hashes_of(table.log_rows().batches())]
    known = np.concatenate([*hashes, *(stored_hashes(s) for s in segments)])
    deleted = (table.old_deletes + table.deletes).ids
    result = []
    for folder in sorted(folders, key=lambda s: s.id):
        found = stored_hashes(folder)
        out = np.isin(found, known) | folder.is_dead(np.arange(folder.stored))
        out |= np.isin(np.asarray(folder.ids), deleted)
        if not out.all():
            result.append(without(folder, np.flatnonzero(out)))
            known = np.concatenate([known, found[~out]])
    return result
