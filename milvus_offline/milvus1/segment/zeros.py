"""Blocks of zeros or of ones in place of what a disk did not give back: in copies of failing disks (ddrescue, `dd
conv=noerror,sync`), on some file systems after a power loss, and in erased flash.

Vectors may hold zeros of their own. But a run of those begins and ends anywhere, while a lost block does so at a multiple of
512 bytes, with other values right before and after. No server pads or aligns anything (§4.1, §5.4), so that this does not
come about in a healthy file but by chance, once in 16384 runs of zeros; `Watch.lost_blocks` asks for one in a hundred.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import DamageError
from ...fileio import SECTOR
from ...model import buffer
from ...watch import OPEN, LostBlocks, Run, Watch
from ..layout import LENGTH

_CHUNK = 1 << 21
"""Bytes that are looked at in one go."""
_BLANK = (0, 255)
_WORD = 8
_ONE = np.uint64(1)

Octets = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.int64]


def lost_blocks(path: str | os.PathLike[str], rows: int, row_bytes: int, *, value_bytes: int = 4) -> LostBlocks | None:
    """What seems lost of a `.rv` or `.uid` file with this many rows (§4.1, §4.2), whose values have 4 or 8 bytes.

    Raises DamageError, OSError.
    """
    watch = Watch()
    finder = Finder(watch, "", os.fspath(path), row_bytes, value_bytes)
    step = max(1, _CHUNK // row_bytes) * row_bytes
    end = LENGTH.size + rows * row_bytes
    space = buffer((step,), np.uint8)
    fd = fileio.open_read(path)
    try:
        for at in range(LENGTH.size, end, step):
            part = space[: min(step, end - at)]
            fileio.read_into(fd, part.data, at, path)
            finder.look(part, at, LENGTH.size if at == LENGTH.size else 0)
    finally:
        os.close(fd)
    finder.close()
    return watch.lost_blocks(os.fspath(path))


class Finder:
    """Looks for lost blocks in the bytes of one file as they are read, piece by piece.

    Each piece begins with a row of `row_bytes`; pieces that follow each other in the file are looked at together. `rows_each`:
    how many rows of the user's such a row is. What is found goes to `watch`, said of `where`. `bounds`: whether something that
    is no blank stands right before the first and right after the last piece; where nothing is known of it, False.
    """

    def __init__(  # many: the shape of one file's rows, field by field
        self,
        watch: Watch,
        where: str,
        path: str,
        row_bytes: int,
        value_bytes: int = 4,
        *,
        rows_each: int = 1,
        bounds: tuple[bool, bool] = (False, False),
    ) -> None:
        self._bounds = bounds

        self._watch, self._where, self._path = watch, where, path
        self._row_bytes, self._value, self._rows_each = row_bytes, value_bytes, rows_each
        self._end = -1
        self._unread = 0
        self._tail: Run | None = None
        """A run that goes up to `_end`."""
        self._before = b""
        """The last bytes before `_end`."""

    def look(self, octets: Octets, offset: int, unread: int = 0) -> None:
        """The next piece, uint8 [n], which begins at byte `offset` of the file. So many bytes right before it nobody looks at:
        those of deleted rows, and the header.

        Costs some microseconds: one word a sector is looked at, and only where that is blank, all of it.
        """
        if not len(octets):
            return
        if offset != self._end:
            self._break()
        self._unread = unread
        lead = -offset % SECTOR
        whole = max(0, (len(octets) - lead) // SECTOR)
        end = offset + len(octets)
        before = octets[-_WORD:].tobytes()
        suspect = (
            self._tail is not None or _is_blank(octets[: min(lead, _WORD)].tobytes()) or _is_blank(before[-(end % SECTOR) :])
        )
        words = octets[lead : lead + whole * SECTOR].view("<u8").reshape(whole, SECTOR // _WORD)
        firsts = words[:, 0] + _ONE
        if suspect or (whole and int(firsts.min()) <= 1):  # 0, or all ones
            self._search(octets, offset, lead, words, firsts)
        self._end = end
        self._before = before[-self._value :]

    def close(self) -> None:
        """To be called after the last piece."""
        self._break()
        self._end = -1

    def _break(self) -> None:
        if self._tail is not None:
            run, self._tail = self._tail, None
            if self._bounds[1]:
                run = run._replace(sharp_end=int(run.end % SECTOR == 0))
            self._watch.note_runs(self._where, self._path, 1, [run])
        self._before = b""

    def _search(self, octets: Octets, offset: int, lead: int, words: _Words, firsts: _Words) -> None:
        """All runs of blank blocks of the piece; the first and the last block may be parts of sectors."""
        head = [0] if 0 < lead < len(octets) else []
        sectors = np.arange(min(lead, len(octets) if head else 0), len(octets), SECTOR)
        bounds = np.concatenate((np.array(head, np.int64), sectors, [len(octets)]))
        fills = self._fills(octets, bounds, lead, words, firsts)
        if self._tail is None and not (fills >= 0).any():
            return
        changes = np.flatnonzero(np.diff(fills)) + 1
        firsts = np.concatenate(([0], changes))
        lasts = np.concatenate((changes, [len(fills)]))
        pending, self._tail = self._tail, None
        kept, count = [], 0
        if pending is not None and fills[0] != pending.fill:
            kept.append(
                pending._replace(sharp_end=int(pending.end % SECTOR == 0 and _differs(octets[: self._value], pending.fill)))
            )
            pending, count = None, 1
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            fill = int(fills[first])
            if fill < 0:
                continue
            run = self._run(octets, offset, int(bounds[first]), int(bounds[last]), fill)
            if pending is not None:
                run = run._replace(
                    start=pending.start,
                    rows=pending.rows + run.rows,
                    sharp_start=pending.sharp_start,
                    inside_start=pending.inside_start,
                )
                pending = None
            if int(bounds[last]) == len(octets):
                self._tail = run
            else:
                count += 1
                if run.sharp_start and run.sharp_end:
                    kept.append(run)
        kept = [r for r in kept if r.sharp_start and r.sharp_end]
        if count:
            self._watch.note_runs(self._where, self._path, count, kept)

    def _fills(self, octets: Octets, bounds: _Numbers, lead: int, words: _Words, firsts: _Words) -> _Numbers:
        """The byte of which each block consists; -1 for other blocks. Some words are looked at first: sparse vectors have many
        sectors that begin with a zero, and few that are. `firsts` are the first words of all whole sectors, plus one."""
        fills = np.full(len(bounds) - 1, -1, np.int64)
        skipped = int(np.searchsorted(bounds, lead))
        for fill, first, word in ((0, _ONE, np.uint64(0)), (255, np.uint64(0), ~np.uint64(0))):
            chosen = np.flatnonzero(firsts == first)
            for at in (63, 31, 47, 15, 55, 7, 39, 23):
                if len(chosen):
                    chosen = chosen[words[chosen, at] == word]
            if len(chosen):
                chosen = chosen[(words[chosen] == word).all(axis=1)]
            fills[chosen + skipped] = fill
            for block in (0, len(fills) - 1):
                is_part = not skipped <= block < skipped + len(words)
                if is_part and (octets[bounds[block] : bounds[block + 1]] == fill).all():
                    fills[block] = fill
        return fills

    def _run(self, octets: Octets, offset: int, first: int, last: int, fill: int) -> Run:
        start, end, row_bytes = offset + first, offset + last, self._row_bytes
        inside_start = int(first % row_bytes != 0)
        if first:
            sharp_start = int(start % SECTOR == 0 and _differs(octets[max(0, first - self._value) : first], fill))
        elif self._before and self._end == offset:
            sharp_start = int(start % SECTOR == 0 and _differs(np.frombuffer(self._before, np.uint8), fill))
        elif self._unread:
            sharp_start, inside_start = self._in_front(start, fill)
        else:
            sharp_start = int(start % SECTOR == 0) if self._bounds[0] else OPEN
        sharp_end = OPEN if last == len(octets) else int(_differs(octets[last : last + self._value], fill))
        rows = ((last - 1) // row_bytes - first // row_bytes + 1) * self._rows_each
        return Run(start, end, rows, fill, sharp_start, sharp_end, inside_start, int(last % row_bytes != 0))

    def _in_front(self, start: int, fill: int) -> tuple[int, int]:
        """`sharp_start` and `inside_start` of a run that begins with its piece, from what stands unread in front of it."""
        floor, first = start - self._unread, start
        try:
            fd = fileio.open_read(self._path)
            try:
                while first > floor:
                    octets = np.empty(min(_CHUNK, first - floor), np.uint8)
                    fileio.read_into(fd, octets.data, first - len(octets), self._path)
                    others = np.flatnonzero(octets != fill)
                    first -= len(octets) - (int(others[-1]) + 1 if len(others) else 0)
                    if len(others):
                        break
            finally:
                os.close(fd)
        except (DamageError, OSError):
            return OPEN, 0
        if not first:
            return 1, 1  # where rows follow, the header is not blank (§4.1)
        if first in (floor, *range(LENGTH.size + 1)):
            return OPEN, 0
        sector = -(-first // SECTOR) * SECTOR
        return int(sector <= start and sector - first < self._value), int((sector - LENGTH.size) % self._row_bytes != 0)


def _is_blank(part: bytes) -> bool:
    return bool(part) and part.count(part[:1]) == len(part) and part[0] in _BLANK


def _differs(octets: Octets, fill: int) -> bool:
    return bool((octets != fill).any())
