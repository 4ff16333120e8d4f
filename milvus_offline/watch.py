"""What reading meets on the way: places that cannot be read, and blocks that a disk lost.

Whoever wants the rest of a source although some of it cannot be read, reads within `watching()`: rows that lie in unreadable
places are then left out and noted, and lost blocks are looked for in the bytes that are read anyway. Without it, an
unreadable place is a DamageError. What is noted are plain values (JSON), so that tasks can hand it on, from other processes
and earlier runs too; `Watch.findings` says it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from .errors import DamageError
from .fileio import SECTOR, Ranges
from .findings import Findings
from .model import Piece

_NAMED = 6
"""Byte ranges that a message names."""
_SHARE = 100
"""One in so many runs of equal bytes at least must be a lost block: in sparse vectors a few look like one by chance (1 in
16384)."""

OPEN = -1
"""An end of a run at which nothing was read that would tell."""


class Run(NamedTuple):
    """A run of bytes that are all 0, or all 255: from `start` up to `end`, in `rows` rows.

    `sharp_start`, `sharp_end`: whether it begins and ends with a disk's sector, with other values beside it: 0, 1 or OPEN.
    `inside_start`, `inside_end`: whether within a row.
    """

    start: int
    end: int
    rows: int
    fill: int
    sharp_start: int
    sharp_end: int
    inside_start: int
    inside_end: int

    @property
    def is_lost(self) -> bool:
        """Whether a disk made it: vectors may hold zeros of their own, but those begin and end anywhere. Where an end is open
        (the file's end), they may be whole vectors unless they begin inside of one."""
        if self.end - self.start < SECTOR:
            return False
        if self.sharp_start == OPEN:
            return self.sharp_end == 1 and bool(self.inside_end)
        if self.sharp_end == OPEN:
            return self.sharp_start == 1 and bool(self.inside_start)
        return self.sharp_start == self.sharp_end == 1


class _File(NamedTuple):
    where: str
    runs: list[int]
    """How many there were, in a list of one."""
    kept: list[Run]
    unreadable: Ranges
    lost: Ranges
    """Rows, by their number in the segment or log."""
    foreign: list[int]
    """Rows whose ids are another segment's, as often as somebody counted them."""
    damaged: list[tuple[int, int, str]]
    """Rows first..last-1 whose bytes can be read and mean nothing, and why."""


class LostBlocks(NamedTuple):
    """Sectors that seem lost; `rows` are those that lie in them, in whole or in part; `first` is where the first one begins."""

    sectors: int
    rows: int
    first: int


class Watch:
    """The notes of one thread, or of many put together."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def _file(self, where: str, path: str) -> _File:
        if path not in self._files:
            self._files[path] = _File(where, [0], [], [], [], [], [])
        return self._files[path]

    def note_unreadable(self, where: str, path: str, places: Ranges, rows: Ranges) -> None:
        """Bytes of a file that cannot be read, and the rows (numbered within `where`) that are left out for it."""
        file = self._file(where, path)
        file.unreadable.extend(places)
        file.lost.extend(rows)

    def note_damaged(self, where: str, path: str, rows: Ranges, reason: str) -> None:
        """Rows (numbered within `where`) that are left out because what is stored of them means nothing."""
        self._file(where, path).damaged.extend((first, last, reason) for first, last in rows)

    def note_runs(self, where: str, path: str, count: int, kept: Iterable[Run]) -> None:
        """Runs of equal bytes: how many, and those that may be lost blocks."""
        file = self._file(where, path)
        file.runs[0] += count
        file.kept.extend(kept)

    def note_foreign(self, where: str, path: str, rows: int) -> None:
        """Rows of a file of ids that are not this segment's."""
        if rows:
            self._file(where, path).foreign.append(rows)

    def __bool__(self) -> bool:
        return bool(self._files)

    @property
    def is_incomplete(self) -> bool:
        """Whether rows were left out."""
        return any(f.lost or f.damaged for f in self._files.values())

    def result(self) -> dict[str, Any]:
        """All of it as JSON values, under one key; nothing when there is nothing."""
        return {"seen": {path: list(file) for path, file in self._files.items()}} if self._files else {}

    def add(self, result: Mapping[str, Any]) -> None:
        """Takes what another one's `result` gave."""
        for path, (where, runs, kept, unreadable, lost, *more) in result.get("seen", {}).items():
            foreign, damaged = (*more, [], [])[:2]
            self.note_runs(where, path, runs[0], (Run(*r) for r in kept))
            self.note_foreign(where, path, max(foreign, default=0))
            self.note_unreadable(where, path, [(a, b) for a, b in unreadable], [(a, b) for a, b in lost])
            self._file(where, path).damaged.extend((first, last, reason) for first, last, reason in damaged)

    @classmethod
    def of(cls, results: Iterable[Mapping[str, Any]]) -> Watch:
        """All that tasks noted."""
        watch = cls()
        for result in results:
            watch.add(result)
        return watch

    def all_places(self) -> dict[str, Ranges]:
        """The bytes that cannot be read, by the file's path."""
        return {path: union(file.unreadable) for path, file in self._files.items() if file.unreadable}

    def places(self, path: str) -> Ranges:
        """The bytes of a file that cannot be read."""
        return list(self._files[path].unreadable) if path in self._files else []

    def left_out(self, path: str) -> Ranges:
        """The rows that are left out because their bytes in a file cannot be read."""
        return union(self._files[path].lost) if path in self._files else []

    def lost_runs(self, path: str) -> list[Run]:
        """The blocks that seem lost of a file, in their order."""
        file = self._files.get(path)
        lost = [r for r in _joined(file.kept) if r.is_lost] if file else []
        return [] if file is None or len(lost) * _SHARE < file.runs[0] else lost

    def lost_blocks(self, path: str) -> LostBlocks | None:
        """What seems lost of a file."""
        lost = self.lost_runs(path)
        if not lost:
            return None
        sectors = sum(-(-(r.end - r.start) // SECTOR) for r in lost)
        return LostBlocks(sectors, sum(r.rows for r in lost), min(r.start for r in lost))

    def _paths(self, where: str) -> list[str]:
        return [path for path, file in self._files.items() if file.where == where and file.unreadable]

    def findings(self) -> Findings:
        """What is to be said of all of it, in the order of the files."""
        notes = Findings()
        places: dict[str, list[str]] = {}
        rows: dict[str, Ranges] = {}
        for path, file in self._files.items():
            if file.unreadable:
                places.setdefault(file.where, []).append(f"{path}: the disk refuses {in_words(union(file.unreadable))}")
                rows.setdefault(file.where, []).extend(file.lost)
        for where, texts in places.items():
            code = "wal-unreadable" if all(p.endswith(".wal") for p in self._paths(where)) else "segment-unreadable"
            code = "rows-unreadable" if where in self._files else code  # a file that is no part of a store
            count = sum(b - a for a, b in union(rows[where]))
            text = (
                f"{'; '.join(texts)}. The rows there are left out, all others are read. Copy the disk with ddrescue before it "
                "gets worse, and try again with the copy"
            )
            notes.error(code, where, text, count)
        for path, file in self._files.items():
            if file.damaged:
                lost_rows = union((first, last) for first, last, _ in file.damaged)
                text = (
                    f"{path}: {in_words(lost_rows, 'row')} cannot be read: {file.damaged[0][2]}. They are left out, all others "
                    "are read. Look for a complete copy of the file"
                )
                told = sum(b - a for a, b in union(file.lost))
                notes.error("rows-unreadable", file.where, text, sum(b - a for a, b in union(lost_rows + file.lost)) - told)
            lost = self.lost_blocks(path)
            if lost is not None:
                text = (
                    f"{path}: {lost.sectors * SECTOR} bytes are zeros or all ones, in whole disk blocks, from byte "
                    f"{lost.first}: this looks like the copy of a failing disk. The original values are lost and these "
                    "rows are "
                    "wrong. Use an older copy if there is one"
                )
                notes.error("blocks-lost", file.where, text, lost.rows)
            if file.foreign:
                text = (
                    f"{path}: these ids are not in the segment's bloom filter, which has every id of the segment: the file "
                    "belongs to another segment, or holds no ids. Look for an older copy of this folder"
                )
                notes.error("ids-foreign", file.where, text, max(file.foreign))
        return notes


def in_words(places: Ranges, what: str = "byte") -> str:
    """Ranges of bytes, or of what else is counted, in words."""
    names = [f"{what}s {a} to {b - 1}" for a, b in places[:_NAMED]]
    if more := places[_NAMED:]:
        names.append(f"{len(more)} more places, {sum(b - a for a, b in more)} {what}s together, up to {what} {more[-1][1] - 1}")
    return ", ".join(names)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same places, in order and without overlaps."""
    result: Ranges = []
    for a, b in sorted(ranges):
        if result and a <= result[-1][1]:
            result[-1] = (result[-1][0], max(b, result[-1][1]))
        else:
            result.append((a, b))
    return result


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Puts runs together that go on where another one ends: at the borders of what was read in one go."""
    result: list[Run] = []
    for run in sorted(set(runs)):
        last = result[-1] if result else None
        if last is not None and last.end == run.start and last.fill == run.fill and last.sharp_end == run.sharp_start == OPEN:
            result[-1] = last._replace(
                end=run.end, rows=last.rows + run.rows, sharp_end=run.sharp_end, inside_end=run.inside_end
            )
        else:
            result.append(run)
    return result


def findings_of(pieces: Iterable[Piece], advance: Callable[[int, int], None]) -> Findings:
    """Reads all rows of some pieces, and says what cannot be read and what is lost. Raises DamageError."""
    with watching() as met:
        for batch in (b for piece in pieces for b in piece.batches()):
            advance(batch.span, batch.vectors.nbytes + batch.ids.nbytes)
    return met.findings()


T = TypeVar("T")


def around_damage(run: Callable[[], T]) -> tuple[T, Findings]:
    """What `run` gives; where it meets what cannot be read, what it gives of the rest, and the findings that name the places.
    Raises DamageError where that does not help."""
    try:
        return run(), Findings()
    except DamageError:
        with watching() as met:
            result = run()
        return result, met.findings()


_current = threading.local()


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """What is read within, in this thread, leaves out what cannot be read, and is looked through for lost blocks."""
    before = watch()
    _current.watch = mine = Watch()
    try:
        yield mine
    finally:
        _current.watch = before


def watch() -> Watch | None:
    """The watch of this thread; None when nobody watches."""
    return getattr(_current, "watch", None)
