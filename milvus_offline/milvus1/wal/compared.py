"""Vectors in segments held against the records of the log that brought them: what `verify` asks of a log (FORMAT §5.4, §5.5).

Flushed records stay in the log until their file is removed, the oldest first. So of an id that the log inserts once and no
later record deletes, and that is live once, the row in the segment is that of the record: had an older record brought it,
the newer one would have brought another. Only a server that ran with its log switched off in between, and replaced rows then,
leaves it otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ...findings import Findings
from ...watch import Watch
from ..copies import hashes_and_unread
from ..layout import ID
from ..segment.files import Segment
from .account import find_live
from .deletes import Ids, Lsns
from .settlement import place_in_log
from .table import IDS_CHUNK, LoggedTable


class Held(NamedTuple):
    """A segment of which `rows` vectors were compared; `wrong`: the LSNs of the records that have others."""

    segment: Segment
    rows: int
    wrong: Lsns


def against_log(table: LoggedTable, segments: Sequence[Segment], tails: Sequence[int]) -> Iterator[Held]:
    """Compares what the table has flushed with its live segments; `tails` are LSNs of the last records of files, which may
    never have been applied. 24 bytes a row of the log. Raises DamageError, OSError where a file cannot be read."""
    lsns = table.old_row_lsns()
    gone = table.deleted_since(table.old_deletes + table.deletes) | np.isin(lsns, np.array(tails, np.uint64))
    known, first, counts = np.unique(table.old_ids, return_index=True, return_counts=True)
    unflushed = np.concatenate([np.empty(0, ID), *table.log_rows().ids_only(IDS_CHUNK)])
    once = (counts == 1) & ~gone[first] & ~np.isin(known, unflushed)
    known, first = known[once], first[once]
    if not len(known):
        return
    logged, unread = hashes_and_unread(table.old_log_rows().batches())
    readable = ~np.isin(first, unread)
    stored = find_live([s for s in segments if type(s) is Segment], known)
    times = np.bincount(stored.place, minlength=len(known))
    stored = stored.only((times == 1)[stored.place] & readable[stored.place])
    rows: Ids = first[stored.place]
    wrong = stored.hashes() != logged[rows]
    for number in np.unique(stored.segment):
        here = stored.segment == number
        yield Held(stored.segments[number], int(here.sum()), lsns[rows[here & wrong]])


def tell(table: LoggedTable, held: Held, met: Watch, notes: Findings) -> None:
    """A finding where vectors differ; those of lost blocks are counted already."""
    if len(held.wrong):
        path = held.segment.raw_path
        notes.error(
            "vectors-differ",
            f"{table.table_id}/{held.segment.id}",
            f"{len(held.wrong)} of {held.rows} vectors in {path} are not those that the write-ahead log has for their ids "
            f"({place_in_log(held.wrong)}): one of both is damaged",
            None if met.lost_blocks(path) or met.places(path) else len(held.wrong),
        )
