"""A server that loses what it has acknowledged, as a running 1.1.1 does (FORMAT §3.6, §17): flushes fail as a whole, and
catalog rows are overwritten by those of other segments. Its ledger knows what it has acknowledged; no id is given twice.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from support.builder import rows
from support.history import BACKUP, NEW, RAW, TO_INDEX, File, Row, Segment, Server, Table


class FlushFailed(Exception):
    """The server returns from a flush at the first error."""


class UnluckyServer(Server):
    """`failing`: flushes may fail; `racing`: the row-id race strikes where a segment begins while something is created."""

    def __init__(self, rng: Random, *, file_bytes: int = 1 << 20, failing: bool = True, racing: bool = False) -> None:
        super().__init__(rng, file_bytes=file_bytes)
        self.failing, self.racing = failing, racing
        self.ledger: dict[str, dict[int, bytes]] = {}
        """By table_id: what clients have a right to find."""
        self.struck = False
        """Whether something was lost, or kept by mistake."""
        self.doubles = False
        """Whether a restart has inserted rows once more that a flush had written (§3.4)."""
        self.wrong: dict[int, File] = {}
        """By the identity of a row of TableFiles: the row that its next update hits."""
        self._next_row = 0

    # Clients -----------------------------------------------------------------------------------------------------------

    def insert(self, *, acknowledge: bool = True, apply: bool = True) -> None:
        if not self.alive():
            return
        table = self.rng.choice(self.alive())
        count = self.rng.choice((1, 1, 2, 3, 5, 9))
        batch = rows(range(self._next_row, self._next_row + count), salt=self._next_row)
        self._next_row += count
        before = self.log.position
        self.log.insert(table.collection, batch, table.tag, acknowledge=acknowledge)
        self.story.append(f"insert {table.key} {batch.ids.tolist()} lsn {self.log.position}")
        if acknowledge:
            self.ledger.setdefault(table.table_id, {}).update(
                (int(i), v.tobytes()) for i, v in zip(batch.ids, batch.vectors, strict=True)
            )
        self._apply(before, apply and acknowledge)

    def delete(self, *, acknowledge: bool = True, apply: bool = True) -> None:
        if not self.alive() or not self._next_row:
            return
        table = self.rng.choice(self.alive())
        ids = [self.rng.randrange(self._next_row) for _ in range(self.rng.choice((1, 1, 1, 2, 4)))]
        tag = self.rng.choice(("", "", table.tag))
        before = self.log.position
        self.log.delete(table.collection, ids, tag, acknowledge=acknowledge)
        self.story.append(f"delete {table.collection}/{tag!r} {ids} lsn {self.log.position}")
        for other in self.alive() if acknowledge else ():
            if other.collection == table.collection and tag in ("", other.tag):
                for one in ids:
                    self.ledger.get(other.table_id, {}).pop(one, None)
        self._apply(before, apply and acknowledge)

    # Flushes that fail ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """The tables are taken out of memory, and written one after the other; what follows the first error is forgotten."""
        self._forget_on_failure([t for t in self.alive() if t.lsn], super().flush)

    def flush_collection(self) -> None:
        self._forget_on_failure([t for t in self.alive() if t.lsn], super().flush_collection)

    def _forget_on_failure(self, waiting: list[Table], flush: Any) -> None:
        try:
            flush()
        except FlushFailed as e:
            self.struck = True
            for table in waiting:
                if table.lsn and str(e) in ("", table.collection):
                    table.memory, table.pending, table.lsn = [], set(), 0
            self.tick("flush failed")

    def _flush_table(self, table: Table, lsn: int) -> None:
        lacking = [f for f in self.raw_files(table, RAW, TO_INDEX, BACKUP) if (f.table_id, f.segment_id) not in self.folders]
        if (table.pending and lacking) or (self.failing and self.rng.random() < 0.1):
            raise FlushFailed(table.collection if lsn == table.lsn else "")
        super()._flush_table(table, lsn)

    # The row-id race -----------------------------------------------------------------------------------------------------

    def begun(self, file: File) -> None:
        if self.racing and len(self.files) > 1 and self.rng.random() < 0.05:
            self.wrong[id(file)] = self.rng.choice(self.files[:-1])

    def update(self, file: File, type: int, rows: int) -> None:
        victim = self.wrong.pop(id(file), None)
        if victim is None:
            super().update(file, type, rows)
        elif victim in self.files:
            self.struck = True
            self.story.append(f"{victim} becomes that of {file.table_id}/{file.file_id}")
            victim.table_id, victim.file_id = file.table_id, file.file_id
            super().update(victim, type, rows)
        else:
            self.struck = True  # no row matches: the segment is written, and nothing speaks of it

    def raw_files(self, table: Table, *types: int) -> list[File]:
        """What the server takes for a segment: all but index files, whatever the names."""
        return [f for f in self.files if f.table_id == table.table_id and f.type in types]

    def segment(self, file: File) -> Segment:
        """From the folder that `segment_id` names. One that cannot be read counts as empty (§15, MergeTask)."""
        return self.folders.get((file.table_id, file.segment_id), Segment(file.segment_id))

    # Lives ---------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.doubles = self.doubles or any(t.unrecorded for t in self.alive())
        super().start()

    def hides_a_flush(self) -> bool:
        """Whether rows that a flush left in memory's name hide another flush, whose transactions a crash has parted."""
        parted = [t for t in self.alive() if t.unrecorded]
        return min(self.log.files, default=1) != 0 and any(self.raw_files(t, NEW) for t in parted)

    def owned(self) -> dict[tuple[str, str], Counter[Row]]:
        """What clients have a right to find, by collection and partition."""
        return {t.key: Counter(self.ledger.get(t.table_id, {}).items()) for t in self.alive()}
