"""Whether the ids of a segment are its own: its bloom filter has each of them (FORMAT §4.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...watch import watching
from ..layout import BLOOM_FILTER
from .bloom import probe, read_filter
from .dead import DeadRows

_SAMPLE = 4
_CHUNK = 1 << 17


class Ids(Protocol):
    """What a segment offers of its ids, see `files.Segment`."""

    ids_path: str
    stored: int

    @property
    def rows(self) -> int: ...
    def id_at(self, row: int) -> npt.NDArray[np.int64]: ...
    def ids_in_chunks(self, max_rows: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]: ...


def foreign_ids(segment: Ids, dead: DeadRows | None) -> int:
    """How many live rows (all but the `dead`) have ids that are not in the segment's filter, if most do and the filter is
    that of other ids; 0 when there is nothing to say.

    No filter misses a live id, for a server adds each and removes those of deleted rows alone. What a crash leaves half changed
    up to 1.0.0 are the deletes of one flush, and its largest id, which stays, is still the segment's. So ids are foreign only
    where that differs, too: `.uid` is another segment's, or holds what are no ids. Reads some bytes of a healthy segment.
    """
    path = Path(segment.ids_path).with_name(BLOOM_FILTER)
    rows = np.linspace(0, segment.stored - 1, min(segment.stored, _SAMPLE)).astype(np.int64)
    rows = rows if dead is None else rows[~dead.contains(rows)]
    if not len(rows):
        return 0
    with fileio.forgiving(False), contextlib.suppress(DamageError, OSError):  # what cannot be read proves nothing
        if 2 * int(probe(path, np.concatenate([segment.id_at(row) for row in rows.tolist()])).sum()) > len(rows):
            return 0
        bloom = read_filter(path)
        missing, largest = 0, 0
        with watching():
            for first, ids in segment.ids_in_chunks(_CHUNK):
                absent = ~bloom.contains(ids)
                missing += int((absent if dead is None else absent & ~dead.window(first, first + len(ids))).sum())
                largest = max(largest, int(ids.view(np.uint64).max()))
        return missing if bloom.max_id not in (0, largest) and 2 * missing > segment.rows else 0
    return 0
