"""What the readers of dumps gather: the Milvus tables of each database in a dump, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DamageError, StoreError, UsageError
from .columns import coerce
from .rows import RawTables

MAX_ROWS = 1_000_000
MAX_TEXT = 256 << 20
"""Rows and characters that are kept of all Milvus tables together: a small archive may unpack to anything."""


@dataclass(frozen=True)
class Dump:
    """What a dump holds. `cut`: it ends before its end. `notes`: sentences for a person."""

    tables: RawTables
    cut: bool = False
    notes: list[str] = field(default_factory=list)
    database: str | None = None
    damage: list[str] = field(default_factory=list)
    """What no tool writes, and where: rows may be missing, or others than they were."""
    foreign: list[str] = field(default_factory=list)
    """Lines of tools that got into the dump."""

    @property
    def truncated(self) -> bool:
        """Whether rows may be missing."""
        return self.cut or bool(self.damage)


class FoundRows:
    """The Milvus tables of every database in a dump."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.databases: dict[str | None, RawTables] = {}
        self.rows = self.text = 0
        self.damage: list[str] = []
        self.foreign: list[str] = []

    def damaged(self, what: str) -> None:
        """Notes something that no tool writes."""
        self.damage.append(what)

    def declare(self, database: str | None, table: str) -> None:
        self.databases.setdefault(database, {}).setdefault(table, [])

    def drop(self, database: str | None, table: str) -> None:
        self.databases.get(database, {}).pop(table, None)

    def add(self, database: str | None, table: str, columns: tuple[str, ...], values: list[object]) -> None:
        self.rows += 1
        self.text += sum(len(v) for v in values if isinstance(v, (str, bytes)))
        if self.rows > MAX_ROWS or self.text > MAX_TEXT:
            raise DamageError(
                self.path, f"expected a catalog of at most {MAX_ROWS} rows and {MAX_TEXT} characters, found a larger one"
            )
        row = {c: coerce(c, v) for c, v in zip(columns, values, strict=True)}
        self.databases.setdefault(database, {}).setdefault(table, []).append(row)

    def choose(self, database: str | None, truncated: bool, notes: list[str]) -> Dump:
        with_files = {n: t for n, t in self.databases.items() if "Tables" in t or "TableFiles" in t}
        candidates = {n: t for n, t in with_files.items() if "Tables" in t} or with_files
        names = ", ".join(sorted(repr(n) if n else "one without a name" for n in candidates))
        if not candidates:
            raise StoreError(
                f"{self.path}: expected a dump of Milvus' metadata, found none of the tables Tables and TableFiles"
                + (" (the file is cut)" if truncated else "")
            )
        if database is not None and database not in candidates:
            if set(candidates) != {None}:  # the dump does not tell its database's name
                raise UsageError(f"{self.path}: no database {database!r} with Milvus tables in this dump; it has {names}")
            database = None
        elif database is None:
            if len(candidates) > 1:
                raise UsageError(f"{self.path}: several databases hold Milvus tables, choose one of {names}")
            database = next(iter(candidates))
        tables = candidates[database]
        if not any(tables.values()):
            notes.append("the dump has the tables but no rows, as with mysqldump --no-data")
        if truncated:
            notes.append("the dump is cut before its end: rows may be missing")
        return Dump(tables, truncated, notes, database, self.damage, self.foreign)
