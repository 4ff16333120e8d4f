"""Which records of a log a restarted server replays, and what speaks against it (FORMAT §5.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ... import fileio
from ...findings import Findings
from ...model import Severity
from ..layout import WAL_SUFFIX
from .log import Log, Walk, is_record
from .table import LoggedTable


def check_flush_lsns(log: Log, tables: Iterable[LoggedTable], global_lsn: int, findings: Findings) -> int:
    """Replaces each flush_lsn that no server has written by the end of the record before it, and gives such a global_lsn.

    Both are LSNs of records, or of a file's beginning (§5.6, §5.7). What stands after one may have been written anew after a
    crash, what stands before it never, so that a record ends there as long as its file is whole up to there.
    """
    for table in tables:
        whole = _end_before(log, table.flush_lsn)
        if whole is not None:
            findings.warning(
                "flush-lsn-wrong",
                table.place,
                f"the catalog says that the log was flushed up to byte {table.flush_lsn & 0xFFFFFFFF} of "
                f"{table.flush_lsn >> 32}.wal, but no record ends there: the catalog is damaged, or the log is that of another "
                "server (--wal names the right one). What segments and log both hold is read once",
            )
            table.flush_lsn, table.flush_lsn_wrong = whole, True
    whole = _end_before(log, global_lsn)
    return global_lsn if whole is None else whole


def _end_before(log: Log, lsn: int) -> int | None:
    """The LSN of the last record before `lsn`, if this is none itself although its file is whole up to there; else None."""
    offset = lsn & 0xFFFFFFFF
    file = next((f for f in log.files if f.number == lsn >> 32), None)
    if file is None or not offset or offset >= file.size or lsn == log.acknowledged or is_record(file, offset):
        return None
    notes = Findings()
    before = file.number << 32
    for record in Walk(log, notes).records(before, lsn):
        if record.lsn == lsn:
            return None
        if record.lsn < lsn:
            before = record.lsn
    torn = any(f.severity is Severity.ERROR for f in notes)
    return None if torn else before


class Window:
    """LSNs between which records count; an `end` of None means all there are. What is odd about them is in `findings`."""

    def __init__(self, log: Log, flushed: Sequence[int], global_lsn: int) -> None:
        self.log = log
        self.findings = Findings()
        applied, self.start = log.acknowledged or 0, global_lsn
        if flushed:
            applied = max(applied, max(flushed))
            self.start = max(self.start, min(flushed))
        self.end: int | None = max(applied, self.start)
        if self._is_end_unknown(self.end, max(self.start, *flushed, 0)):
            self.end = None
        self._check_numbers()
        self._check_ends()

    def _is_end_unknown(self, end: int, flushed: int) -> bool:
        """Whether mxlog.meta cannot be what the server last wrote there."""
        where, acknowledged = str(self.log.folder), self.log.acknowledged
        calls = self._calls_after(end)
        if not calls:
            return acknowledged is None
        if acknowledged is None:
            state = f"cannot be read ({self.log.refused})" if self.log.refused else "is missing or short"
            what_then = (
                ": run as a user with permission to read it"
                if self.log.refused
                else ". A 1.x server would start without any of them"
            )
            self._warn(
                "mxlog-missing",
                where,
                f"mxlog.meta {state}, so nothing says which records were acknowledged; all complete ones are used{what_then}",
            )
            return True
        if calls > 1:
            self._warn(
                "mxlog-stale",
                where,
                f"mxlog.meta is out of date: {calls} calls follow the last one that it lists, and at most one can be "
                "unacknowledged. "
                "All complete records are used; a 1.x server would drop these",
            )
            return True
        if acknowledged < flushed:
            self._warn(
                "mxlog-stale",
                where,
                "mxlog.meta is older than the catalog, so nothing says whether the last call in the log was acknowledged; it "
                "is used. A 1.x server would drop it",
            )
            return True
        if self.log.torn_meta:
            self._warn(
                "mxlog-torn",
                where,
                "mxlog.meta was being written when the server died, so the last call in the log counts as never acknowledged, "
                "as for a 1.x server; --salvage unacknowledged exports its rows",
            )
        return False

    def _calls_after(self, lsn: int) -> int:
        """Calls with complete records after `lsn`. A call's records are split only where a file ends (§5.4).

        After a gap one call does not count: it may be the tail of a call that an earlier crash cut off.
        """
        calls, broken, previous = 0, 0, None
        sizes = {f.number: f.size for f in self.log.files}
        position = lsn
        for record in Walk(self.log, Findings()).records(lsn):
            file, offset = position >> 32, position & 0xFFFFFFFF
            if record.file == file:
                broken |= record.start != offset
            else:
                broken |= record.start != 0 or sizes.get(file, offset) > offset
            goes_on = previous and record.start == 0 and record[1:4] == previous[1:4]
            calls += not goes_on
            previous, position = record, record.lsn
            if calls > 1 + broken:
                break
        return max(calls - broken, min(calls, 1))

    def _check_numbers(self) -> None:
        wanted, end = self.start >> 32, self.end
        if end is not None and end <= self.start:
            return
        later = [f.number for f in self.log.files if f.number >= wanted]
        if later and later[0] != wanted and (self.start or (end is not None and end >> 32 < later[0])):
            self._warn(
                "wal-gap",
                self._path(wanted),
                f"{self._absent(wanted, wanted)}; the log goes on in {later[0]}.wal. After a clean restart that is harmless "
                "(its records were flushed), otherwise rows are lost. A 1.x server refuses to start in this state",
            )
        for before, after in pairwise(later):
            if after != before + 1:
                message = f"{self._absent(before + 1, after - 1)}; unflushed rows in them are lost"
                self._fail("wal-gap", self._path(before + 1), message)
        first = later[-1] + 1 if later else wanted
        if end is not None and end & 0xFFFFFFFF and end >> 32 >= first:
            message = f"{self._absent(first, end >> 32)}; acknowledged rows in them are lost"
            self._fail("wal-gap", self._path(first), message)

    def _absent(self, first: int, last: int) -> str:
        what = f"the files {first}.wal to {last}.wal are missing" if last > first else f"the file {first}.wal is missing"
        link = fileio.missing_link(self.log.folder / f"{first}{WAL_SUFFIX}")
        return f"{what} ({link})" if link else what

    def _check_ends(self) -> None:
        """A file ends where not one more row of the next record fits (§5.1, §5.4): earlier, its end was lost.

        A server begins another file before that only at a clean restart, and then removes those before. How much fits is taken
        from the largest file. (After the configuration's buffer_size was raised, and a crash with files of both sizes that
        still are to be replayed, this would be wrong.)
        """
        most = max((f.size for f in self.log.files), default=0)
        for file, following in pairwise(f for f in self.log.files if f.number >= self.start >> 32):
            if self.end is not None and (self.end <= self.start or following.number > self.end >> 32):
                return
            record = next(Walk(self.log, Findings()).records(following.number << 32), None)
            if record is None or record.attributes or record.file != following.number or record.start or not record.rows:
                continue
            least = record.ids_at - record.start + 8 + record.data_bytes // record.rows
            if following.number == file.number + 1 and file.size + least <= most:
                self._fail(
                    "wal-cut",
                    file.path,
                    f"ends at byte {file.size}, but the next record, in {following.number}.wal, would have fitted here "
                    "(files of this "
                    f"log reach {most} bytes): the end of the file is lost, with the acknowledged rows in it",
                )

    def _path(self, number: int) -> str:
        return str(self.log.folder / f"{number}.wal")

    def _warn(self, code: str, where: str, message: str) -> None:
        self.findings.warning(code, where, message)

    def _fail(self, code: str, where: str, message: str) -> None:
        self.findings.error(code, where, message)
