"""Where a crash left the same rows in two places: which copy counts, decided by content (FORMAT §3.4).

Rows are compared whatever their order, by a 64-bit hash per (id, vector bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..findings import Findings
from ..hashing import Hashes, mixed, row_hashes
from ..model import Batch, Piece, Schema
from .layout import DELETED_DOCS, ID
from .segment.files import Segment, read_header
from .segment.opening import Folder


def hashes_of(batches: Iterable[Batch]) -> Hashes:
    """One hash per row, in their order: 8 bytes a row. Rows that cannot be read have numbers that no other row has."""
    return hashes_and_unread(batches)[0]


def hashes_and_unread(batches: Iterable[Batch]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """The same, and the places of the rows that cannot be read."""
    parts, unread, first = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], 0
    for batch in batches:
        hashes = row_hashes(batch.ids, batch.vectors)
        if len(batch.lost):
            every = mixed(np.arange(batch.span, dtype=np.uint64) + np.uint64(next(_numbers) << 32))
            every[np.delete(np.arange(batch.span), batch.lost)] = hashes
            hashes = every
            unread.append(batch.lost + first)
        parts.append(hashes)
        first += batch.span
    return np.concatenate(parts), np.concatenate(unread)


_numbers = count(1)
"""Of batches: with that of a row within it no two are alike."""


def hashes_among(pieces: Iterable[Piece], ids: npt.NDArray[np.int64]) -> Hashes:
    """The hashes of those rows that have one of `ids` (sorted), sorted; the others are read and forgotten."""
    found = [np.empty(0, np.uint64)]
    for batch in (b for piece in pieces for b in piece.batches()):
        same = among(batch.ids, ids)
        if same.any():
            found.append(row_hashes(batch.ids[same], batch.vectors[same]))
    return np.sort(np.concatenate(found))


def contains(whole: Hashes, part: Hashes, *, is_sorted: bool = False) -> bool:
    """Whether `whole`, as a multiset, holds all of `part`; `is_sorted`, when `whole` is."""
    values, counts = np.unique(part, return_counts=True)
    return bool((_count_in(whole if is_sorted else np.sort(whole), values) >= counts).all())


def among(values: npt.NDArray[Any], ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of `values` are in `ordered`, which is sorted: np.isin would sort it each time."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    found: npt.NDArray[np.bool_] = ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values
    return found


def matched(part: Hashes, whole: Hashes) -> npt.NDArray[np.bool_]:
    """Which rows of `part` have a partner in `whole`, each partner for one of them: the first of equal ones come first."""
    order = np.argsort(part, kind="stable")
    ordered = part[order]
    rank = np.arange(len(ordered)) - np.searchsorted(ordered, ordered, "left")
    result = np.zeros(len(part), np.bool_)
    result[order] = rank < _count_in(np.sort(whole), ordered)
    return result


def _count_in(ordered: Hashes, values: Hashes) -> npt.NDArray[np.int64]:
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


# Which copy counts ---------------------------------------------------------------------------------------------------

_COMPACT_RATIO = 0.1
"""Deleted share from which on the server compacts a segment (§16)."""

P = TypeVar("P", bound=Piece)


class Contents:
    """The rows of the pieces of one table by content, or by what else `read` makes of a piece. Each piece is read once; 8 bytes
    a row are kept, sorted."""

    def __init__(self, read: Callable[[Piece], Hashes] = lambda piece: hashes_of(piece.batches())) -> None:
        self._read = read
        self._live: dict[str, Hashes] = {}
        self._stored: dict[str, Hashes] = {}

    def live(self, piece: Piece) -> Hashes:
        """The hashes of the piece's live rows, sorted."""
        if piece.id not in self._live:
            self._live[piece.id] = np.sort(self._read(piece))
        return self._live[piece.id]

    def stored(self, piece: Piece) -> Hashes:
        """The same with its deleted rows."""
        if not isinstance(piece, Segment) or not piece.deleted:
            return self.live(piece)
        if piece.id not in self._stored:
            self._stored[piece.id] = np.sort(self._read(piece.undeleted))
        return self._stored[piece.id]


def by_ids() -> Contents:
    """Pieces compared by the ids of their rows alone."""
    return Contents(lambda piece: np.concatenate([np.empty(0, ID), *live_ids(piece)]).view(np.uint64))


def live_ids(piece: Piece) -> Iterator[npt.NDArray[np.int64]]:
    """The ids of a piece's rows, in parts that are arrays of their own."""
    return (batch.ids.copy() for batch in piece.batches())


def ids_alone(folder: Folder | None, segment_id: str) -> Segment | None:
    """A segment whose ids and deleted rows can be read, whatever its vectors are: as its vectors it has the ids again."""
    if folder is None or not folder.ids:
        return None
    ids = folder.path / folder.ids[0]
    deleted = str(folder.path / DELETED_DOCS) if folder.has_deleted_docs else None
    try:
        stored = read_header(ids).bytes // ID.itemsize
        return Segment(
            segment_id, "", Schema(segment_id, ID.itemsize // 4), str(ids), str(ids), deleted, stored, 0, 0
        ).recounted()
    except DamageError:
        return None


def holds(ordered: Hashes, part: Hashes) -> bool:
    """Whether `ordered`, which is sorted, holds all of `part`, which has one row at least."""
    if not len(part) or len(part) > len(ordered) or not among(part[:1], ordered)[0]:
        return False
    return contains(ordered, part, is_sorted=True)


def all_in(part: Hashes, wholes: Iterable[Hashes]) -> bool:
    """Whether `part` is contained in the union of `wholes`, which are sorted, as multisets."""
    values, counts = np.unique(part, return_counts=True)
    found = np.zeros(len(values), np.int64)
    for whole in wholes:
        found += _count_in(whole, values)
    return bool((found >= counts).all())


def newest_of(pieces: Sequence[P], contents: Contents) -> tuple[list[P], list[tuple[P, P]]]:
    """The pieces whose live rows no newer one stores, and the others, each with the one that does: its result in a merge."""
    order = sorted(pieces, key=lambda s: (len(s.id), s.id))
    kept: list[P] = []
    dropped: list[tuple[P, P]] = []
    if len(order) > 1:
        for i, piece in enumerate(order):
            newer = next((n for n in order[i + 1 :] if holds(contents.stored(n), contents.live(piece))), None)
            if newer is None:
                kept.append(piece)
            else:
                dropped.append((piece, newer))
        return kept, dropped
    return order, []


def drop_contained(pieces: Sequence[P], contents: Contents, where: Callable[[P], str], findings: Findings) -> list[P]:
    """Without a catalog: leaves out pieces whose live rows a newer one stores, for these are sources of a merge."""
    kept, dropped = newest_of(pieces, contents)
    for piece, newer in dropped:
        findings.info(
            "segment-contained",
            where(piece),
            f"all of its rows are in the newer segment {newer.id} as well; it is treated as the source of a merge",
            piece.rows,
        )
    return kept


def end_merges(
    pieces: Sequence[P], targets: Iterable[P], contents: Contents, where: Callable[[P], str], findings: Findings
) -> list[P]:
    """Ends merges that a crash stopped between two statements of MySQL (§3.4, second table).

    A complete merge target whose rows are not all in live pieces has lost its sources: it is taken, and the live pieces that it
    holds are left out.
    """
    result = list(pieces)
    for target in targets:
        merged = contents.live(target)
        if not len(merged) or all_in(merged, map(contents.live, result)):
            continue
        result = [s for s in result if not holds(merged, contents.live(s))] + [target]
        findings.info(
            "merge-half-done",
            where(target),
            "the server crashed while it finished a merge; the merged segment is complete and is used. A restarted 1.x server "
            "would delete it and lose its rows",
            target.rows,
        )
    return result


def end_compactions(
    segments: Sequence[Segment],
    created_on: Mapping[str, int],
    contents: Contents,
    where: Callable[[Segment], str],
    findings: Findings,
) -> list[Segment]:
    """Leaves out the sources of finished compactions: a newer segment stores all rows that are live in one, and no others than
    it stored. Rows deleted between the two statements are deleted in the source alone, or in both."""
    obsolete: set[str] = set()
    for old in segments:
        if not old.rows or old.deleted / old.stored < _COMPACT_RATIO:
            continue
        for new in segments:
            newer = created_on.get(new.id, 0) > created_on.get(old.id, 0)
            if not newer or not old.rows <= new.stored < old.stored:
                continue
            if holds(contents.stored(old), contents.stored(new)) and holds(contents.stored(new), contents.live(old)):
                obsolete.add(old.id)
                findings.info(
                    "compaction-half-done",
                    where(old),
                    f"a crash left it beside its compacted form {new.id}; its rows are read once, from the newer one",
                    old.rows,
                )
                break
    return [s for s in segments if s.id not in obsolete]
