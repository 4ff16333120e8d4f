"""Puts right what a running 1.x server has lost, or kept by mistake (FORMAT §3.6, §17), and tells of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import DamageError
from ...model import SalvageKind
from ..layout import FileType
from ..segment.files import Segment
from .account import Account, account
from .deletes import Ids, Lsns
from .losses import Verdict, forgotten, judge
from .outcome import LogSalvage, Opened, Replay
from .table import LoggedTable, without


@dataclass(eq=False)
class Settlement:
    """Works on the tables of one log before it is replayed. `segments` are changed by table_id, the rest goes to `result`.

    `odd_tags` are table_ids of partitions whose tag was also sent with blanks, `tails` LSNs of the last records of files.
    """

    opened: Opened
    segments: dict[str, list[Segment]]
    result: Replay
    odd_tags: set[str] = field(default_factory=set)
    tails: list[int] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    """Tables to which a folder was added."""

    @property
    def struck(self) -> bool:
        """Whether the server has lost something by itself."""
        return bool(self.opened.raced) or any(f.code in ("flush-lost", "deletes-lost") for f in self.result.findings)

    def run(self, tables: Collection[LoggedTable]) -> None:
        """Brings back what the server has lost, and leaves out what it kept by mistake."""
        tables = [t for t in tables if t.table_id not in self.opened.damaged]
        flushed = {f.table_id for f in self.opened.catalog.files if f.file_type != FileType.NEW}
        verdicts = judge(
            [a for t in tables if (a := self._account(t)) is not None],
            odd_tags=self.odd_tags,
            never_flushed={t.table_id for t in tables} - flushed,
            tails=self.tails,
            unfinished=self.opened.unfinished,
        )
        for verdict in verdicts:
            self._bring_back(verdict)
            self._leave_out(verdict.account)
        for table in tables:
            if table.flush_lsn or self.opened.catalog.global_lsn:
                self._take_folders(table)

    def _account(self, table: LoggedTable) -> Account | None:
        raced = table.table_id in self.opened.raced
        if not table.old_rows and not raced:
            return None
        try:
            return account(table, self.segments[table.table_id], max(table.flush_lsn, self.result.start), raced=raced)
        except (DamageError, OSError):
            return None  # whoever reads the segment's rows will tell

    def _bring_back(self, verdict: Verdict) -> None:
        a, table = verdict.account, verdict.account.table
        if len(verdict.taken):
            place = place_in_log(a.lsns[verdict.taken])
            self.result.rows[table.table_id].append(verdict.rows("wal-lost", verdict.taken))
            self._warn(
                "flush-lost",
                table.place,
                "the server acknowledged these rows and lost them, in a flush that failed or in a segment that its catalog "
                f"forgot; they are read from the write-ahead log ({place}). A 1.x server would not show them",
                len(verdict.taken),
            )
        if len(verdict.differing):
            place = place_in_log(a.lsns[verdict.differing])
            self._warn(
                "log-differs",
                table.place,
                f"segments hold other vectors for these ids than the write-ahead log ({place}): one of them is damaged, or "
                "newer rows were lost. Those of the segments are used; --salvage unseen exports the others",
                len(verdict.differing),
            )
        told: tuple[tuple[SalvageKind, str, Ids, str], ...] = (
            ("unseen", "wal-unseen", verdict.open, "acknowledged and logged, but the server never applied them"),
            ("unseen", "wal-differing", verdict.differing, "logged with other vectors than segments hold for their ids"),
            ("dropped", "wal-namesake", verdict.namesake, "inserted before the collection or partition was made anew"),
        )
        for kind, name, rows, reason in told:
            if len(rows):
                found = LogSalvage(kind, table.collection, table.partition, verdict.rows(name, rows), reason)
                self.result.salvage.append(found)

    def _leave_out(self, a: Account) -> None:
        for offsets, code, message in (
            (
                a.undeleted,
                "deletes-lost",
                "deletes in the write-ahead log name these rows, yet they are live here: deleted_docs lost its contents, or a "
                "flush failed. They are left out; --salvage deleted exports them",
            ),
            (
                a.doubled,
                "rows-doubled",
                "these rows stand in segments more often than they were inserted, for the server merged a wrong folder (a bug "
                "of 0.10.4-1.1.1); they are read once",
            ),
        ):
            for segment_id, rows in offsets.items():
                self._warn(code, f"{a.table.table_id}/{segment_id}", message, len(rows))
            found = self.segments[a.table.table_id]
            self.segments[a.table.table_id] = [without(s, offsets[s.id]) if s.id in offsets else s for s in found]

    def _take_folders(self, table: LoggedTable) -> None:
        for segment in self._beside(table, self.opened.unfinished):
            self.segments[table.table_id].append(segment)
            self.taken.add(table.table_id)
            self._warn(
                "segment-forgotten",
                f"{table.table_id}/{segment.id}",
                "the catalog says that the segment was never finished, but its folder is complete and its rows are nowhere "
                "else; they are read. A 1.x server would not show them",
                segment.rows,
            )
        for segment in self._beside(table, self.opened.victims):
            self._warn(
                "race-undecided",
                f"{table.table_id}/{segment.id}",
                "the segment's catalog row was overwritten (a bug of 0.10.4-1.1.1), and its rows are nowhere else; the files "
                "cannot tell whether they were live or deleted. They are left out; --salvage orphans exports them",
                segment.rows,
            )

    def _beside(self, table: LoggedTable, folders: Mapping[str, Sequence[Segment]]) -> Iterable[Segment]:
        found = folders.get(table.table_id)
        return forgotten(table, self.segments[table.table_id], found) if found else ()

    def _warn(self, code: str, where: str, message: str, rows: int) -> None:
        self.result.findings.warning(code, where, message, rows)


def place_in_log(lsns: Lsns | Ids) -> str:
    """Where in the log records end, for a person."""
    first, last = int(lsns.min()), int(lsns.max())
    if first == last:
        return f"{first >> 32}.wal, the record that ends at byte {first & 0xFFFFFFFF}"
    if first >> 32 == last >> 32:
        return f"{first >> 32}.wal, records that end at bytes {first & 0xFFFFFFFF} to {last & 0xFFFFFFFF}"
    return f"{first >> 32}.wal to {last >> 32}.wal"
