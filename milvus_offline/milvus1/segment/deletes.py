"""Which rows of a segment are deleted: `deleted_docs`, and what else knows of deletions where that file lost some.

Deletion may be a legal duty, so that a `deleted_docs` that says less than it did must not pass for one that says nothing. Two
others know of deletions: the catalog's `row_count` counts live rows (§2.2, §7.6), and the bloom filter, from which ids are
removed when their rows are deleted (§4.4), has both their number and, nearly, which they are. In every segment that a server
wrote, up to now and in all versions from 0.8 on, the three agree. What makes them differ without damage:

- a crash between `deleted_docs` and the others (§3.4): then it knows *more* deletions than they do;
- a delete that was applied twice up to 1.1.0 (§4.3): its offset is there twice, and `row_count` was decremented twice;
- up to 1.0.0 the filter is changed in place before `deleted_docs` is written: it is asked only where the catalog agrees.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...model import Finding, Severity
from ...watch import in_words, union, watching
from ..layout import BLOOM_FILTER, DELETED_DOCS, OFFSET
from .dead import DeadRows
from .files import ArrayInFile, Segment, read_columns, read_header

OF_DELETES = frozenset(
    {"row-count-differs", *(f"deleted-docs-{x}" for x in ("missing", "short", "unreadable", "damaged", "outside"))}
)
"""The findings of this module: they say nothing of the vectors and ids."""

_CHUNK_BYTES = 1 << 20
_IDS = 1 << 17
_MANY = 8
"""So many equal entries side by side are no repeated delete (§4.3): each would need a crash at the same place."""
_SAMPLE = 16
NO_IDS = np.empty(0, np.int64)
_SUSPICIOUS = 8
"""One deleted id in so many that the bloom filter still has is worth a look at all: by chance it has one in 200 (§4.4)."""


class Witness(NamedTuple):
    """What the catalog knows. `row_count`: live rows, None where it does not tell. `may_repeat`: whether the server may have
    written an offset twice, as up to 1.1.0."""

    row_count: int | None = None
    may_repeat: bool = True

    @property
    def hint(self) -> int | None:
        """How many rows are concerned when the segment is lost."""
        return self.row_count if self.row_count is not None and 0 <= self.row_count < 1 << 31 else None


NO_WITNESS = Witness()


class Note(Protocol):
    """Takes a finding about the segment."""

    def __call__(self, severity: Severity, code: str, message: str, rows: int | None = None) -> None: ...


@dataclass(eq=False)
class _Listed:
    """What stands in `deleted_docs`, and what is wrong with it: (code, text)."""

    dead: DeadRows
    entries: int = 0
    lost: int = 0
    """Entries that were there and are not any more, as far as their places tell."""
    repeats: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)


def count_deleted(segment: Segment, witness: Witness, note: Note) -> Segment:
    """The segment with its deletions: those of `deleted_docs`, or where it lost some, those that the bloom filter knows."""
    with fileio.forgiving(False):  # a filter with holes would delete rows
        return _count_deleted(segment, witness, note)


def _count_deleted(segment: Segment, witness: Witness, note: Note) -> Segment:
    expected = None
    if witness.row_count is not None and 0 <= witness.row_count <= segment.stored:
        expected = segment.stored - witness.row_count
    listed = _read(segment, witness)
    known = len(listed.dead)
    lacking = expected is not None and expected - known > (listed.repeats if witness.may_repeat else 0)
    if not listed.wrong and not lacking and not _contradicts(segment, listed, expected):
        return replace(segment, deleted=known)
    dead, rest, outcome = _settle(segment, listed, expected)
    offsets = dead.offsets()
    changed = len(np.setxor1d(offsets, listed.dead.offsets()))
    rows = changed + rest
    path = Path(segment.ids_path).with_name(DELETED_DOCS)
    if listed.wrong:
        text = f"{path}: {'; '.join(text for _, text in listed.wrong)}. {outcome}"
        note(Severity.WARNING, listed.wrong[0][0], text, rows or None)
    else:
        text = f"the catalog counts {witness.row_count} live rows, {path} leaves {segment.stored - known}. {outcome}"
        note(Severity.WARNING, "row-count-differs", text, rows or None)
        if not changed:
            return replace(segment, deleted=known)
    return replace(segment, deletes=offsets, deleted=len(offsets))


def _read(segment: Segment, witness: Witness) -> _Listed:
    listed = _Listed(DeadRows(segment.stored))
    wrong = listed.wrong
    if segment.deleted_path is None:
        if segment.stored:
            link = fileio.missing_link(fileio.as_path(segment.ids_path).with_name(DELETED_DOCS))
            wrong.append(("deleted-docs-missing", link or "the file is missing"))
        return listed
    try:
        payload = read_header(segment.deleted_path)
        size = payload.bytes
        if payload.is_unreadable:
            wrong.append(("deleted-docs-unreadable", "the disk refuses its header; its size is used"))
        elif not payload.declared and payload.present:
            size = payload.present
            text = f"at byte 0: the header says 0 bytes, but {size} follow, which no server writes"
            wrong.append(("deleted-docs-damaged", text))
        elif payload.is_short:
            text = f"at byte 0: the header says {payload.declared} bytes, the file holds {payload.present}"
            listed.lost += min(segment.stored, (payload.declared - payload.present) // OFFSET.itemsize)
            wrong.append(("deleted-docs-short", text))
        elif payload.bytes % OFFSET.itemsize:
            text = f"at byte 0: the header says {payload.declared} bytes, expected a multiple of {OFFSET.itemsize}"
            wrong.append(("deleted-docs-short", text))
        listed.entries = size // OFFSET.itemsize
        if listed.entries:
            _read_entries(segment, segment.deleted_path, listed, witness)
    except DamageError as e:
        wrong.append(("deleted-docs-unreadable", str(e)))
    return listed


def _read_entries(segment: Segment, path: str, listed: _Listed, witness: Witness) -> None:
    outside = zeros = equal = came = 0
    last = -1
    with watching() as met:
        for (chunk,), _ in read_columns([ArrayInFile(path, OFFSET, 1)], listed.entries, 0, _CHUNK_BYTES, None, segment.where):
            entries = chunk[:, 0]
            came += len(entries)
            outside += listed.dead.add(entries)
            zeros += int((entries == 0).sum())
            equal += int((np.diff(entries, prepend=last) == 0).sum())
            last = int(entries[-1]) if len(entries) else -1
    if came < listed.entries:
        listed.lost += listed.entries - came
        text = f"the disk refuses {in_words(union(met.places(path)))}"
        listed.wrong.append(("deleted-docs-unreadable", text))
    listed.repeats = came - outside - len(listed.dead)
    blank = zeros if zeros >= _MANY or (zeros > 1 and not witness.may_repeat) else 0
    if blank:
        listed.dead.remove(0)
        listed.lost += blank
        listed.wrong.append(
            ("deleted-docs-damaged", f"{blank} of its {listed.entries} entries are zeros, as a lost block has them")
        )
    elif listed.repeats and (not witness.may_repeat or equal >= _MANY):
        text = f"{listed.repeats} of its {listed.entries} entries are there twice, which no server of this version writes"
        listed.lost += listed.repeats
        listed.wrong.append(("deleted-docs-damaged", text))
    if outside:
        listed.lost += outside
        text = f"it names {outside} offsets outside 0..{segment.stored - 1}, which are ignored"
        listed.wrong.append(("deleted-docs-outside", text))


def says_too_much(segment: Segment, row_count: int, named: npt.NDArray[np.int64] | None) -> Finding | None:
    """A finding about a list that names more deletions than catalog and bloom filter know of, both the same number.

    A crash between the files leaves that, too (§3.4), and then the log holds the deletes: `named` are the sorted ids that it
    deletes, None where there is no log. It may stay so after the server's recovery, and the log may go: nothing tells that
    apart, but it takes a kill between two renames.
    """
    from .bloom import live_count, probe

    known, expected = segment.deleted, segment.stored - row_count
    if segment.deletes is not None or segment.deleted_path is None or not 0 <= expected < known:
        return None
    try:
        path = Path(segment.ids_path).with_name(BLOOM_FILTER)
        if live_count(path) != row_count:
            return None
        dead = segment.dead_rows()
        ids = np.concatenate([segment.id_at(row) for row in dead.spread(_SAMPLE).tolist()]) if dead is not None else NO_IDS
        still = ids[probe(path, ids)]
    except (DamageError, OSError):
        return None
    if named is not None and np.isin(still, named).any():
        return None
    text = (
        f"{segment.deleted_path} names {known} deleted rows, but catalog and bloom filter know of {expected}: it may belong to "
        "another segment. The rows that it names are left out; --salvage deleted exports them"
    )
    return Finding(Severity.WARNING, "deleted-docs-damaged", segment.where, text, known)


def exchanged(segment: Segment, row_count: int, others: Iterable[Segment]) -> tuple[Segment, Finding] | None:
    """The segment with its own deletions, where its list and that of one of `others` have changed places: its list is what the
    other's bloom filter knows, and the other's what its own does. Otherwise None, and nothing tells (see `says_too_much`)."""
    expected = segment.stored - row_count
    if segment.deletes is not None or segment.deleted_path is None or not 0 <= expected < segment.deleted:
        return None
    with fileio.forgiving(False):
        removed, listed = _removed(segment, expected), _read(segment, NO_WITNESS).dead.offsets()
        if removed is None or len(removed[0]) != expected:
            return None
        own = removed[0].offsets()
        for other in others:
            if other.deletes is None or not np.array_equal(other.deletes, listed):
                continue
            if np.array_equal(_read(other, NO_WITNESS).dead.offsets(), own):
                text = (
                    f"{segment.deleted_path} is that of segment {other.id}, and {other.deleted_path} is this one's, as catalog "
                    "and bloom filters tell: the two files have changed places. The rows that were deleted here are left out"
                )
                finding = Finding(Severity.WARNING, "deleted-docs-damaged", segment.where, text, segment.deleted - expected)
                return replace(segment, deletes=own, deleted=len(own)), finding
    return None


def _contradicts(segment: Segment, listed: _Listed, expected: int | None) -> bool:
    """Whether the bloom filter says that this `deleted_docs` is another one; reads a little of it."""
    known = len(listed.dead)
    if expected is not None and not known:
        return False
    from .bloom import live_count, probe

    path = Path(segment.ids_path).with_name(BLOOM_FILTER)
    text = ""
    try:
        if expected is None:
            live = live_count(path)
            if live is not None and live < segment.stored - known:
                text = f"it leaves {segment.stored - known} live rows, the bloom filter holds {live}"
        else:
            ids = np.concatenate([segment.id_at(row) for row in listed.dead.spread(_SAMPLE).tolist()])
            if _SUSPICIOUS * int(probe(path, ids).sum()) > len(ids) and (foreign := _foreign(segment, listed)):
                text = (
                    f"the bloom filter shows {foreign} deleted rows that the list does not name: some of its entries are wrong"
                )
    except (DamageError, OSError):  # the filter proves nothing then
        return False
    if text:
        listed.wrong.append(("deleted-docs-damaged", text))
    return bool(text)


def _foreign(segment: Segment, listed: _Listed) -> int:
    """How many live rows have ids that are not in the bloom filter: of a filter and a list of one segment there is none."""
    from .bloom import read_filter

    bloom = read_filter(Path(segment.ids_path).with_name(BLOOM_FILTER))
    return sum(
        int((~bloom.contains(ids) & ~listed.dead.window(first, first + len(ids))).sum())
        for first, ids in segment.ids_in_chunks(_IDS)
    )


def _settle(segment: Segment, listed: _Listed, expected: int | None) -> tuple[DeadRows, int, str]:
    """The deletions, how many more there were as far as anything tells, and what that rests on."""
    removed = _removed(segment, expected)
    known = len(listed.dead)
    if removed is None:
        if expected is None:
            if listed.lost:
                text = f"Up to {listed.lost} deletions are lost, and these rows come back"
            else:
                text = "Deleted rows may come back; nothing tells how many"
            return listed.dead, listed.lost, text
        rest = max(0, expected - known)
        if not rest:
            return listed.dead, 0, f"The catalog counts {expected} deletions, and {known} are known: none is lost"
        return listed.dead, rest, f"Of {expected} deletions that the catalog counts {rest} are lost, and these rows come back"
    dead, count = removed
    offsets = listed.dead.offsets()
    if len(dead) < count and 2 * int(dead.contains(offsets).sum()) >= known:  # a filter takes few deleted ids for live ones
        dead.add(offsets)
    rest = max(0, count - len(dead))
    text = f"The bloom filter shows {count} deletions"
    if not rest:
        return dead, 0, f"{text} and which rows they are: these rows are left out"
    return (
        dead,
        rest,
        f"{text}, and for {count - rest} of them which rows they are: these are left out, the other {rest} come back",
    )


def _removed(segment: Segment, expected: int | None) -> tuple[DeadRows, int] | None:
    """The rows whose ids are not in the bloom filter, and how many it says were deleted; None when it cannot be trusted.

    It has to agree with the catalog's number, to name no more rows than that, and to have this segment's largest id.
    """
    from .bloom import read_filter

    try:
        bloom = read_filter(Path(segment.ids_path).with_name(BLOOM_FILTER))
        count = segment.stored - sum(f.count for f in bloom.filters)
        if not 0 <= count <= segment.stored or expected not in (None, count) or (expected is None and bloom.legacy):
            return None
        dead, largest = DeadRows(segment.stored), 0
        with watching() as met:
            for first, ids in segment.ids_in_chunks(_IDS):
                dead.add(np.flatnonzero(~bloom.contains(ids)) + first)
                largest = max(largest, int(ids.view(np.uint64).max()))
        if met.places(segment.ids_path):
            return None
    except (DamageError, OSError):
        return None
    return (dead, count) if len(dead) <= count and largest == bloom.max_id else None
