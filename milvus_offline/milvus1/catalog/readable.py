"""Catalogs from elsewhere than a healthy database: dumps, and readable pages of a damaged SQLite file (FORMAT §2.1, §16)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import StoreError
from ...findings import Findings
from ...model import Severity
from ...names import printable
from .dump import read_dump, read_dumps
from .dumpfiles import Witnesses
from .dumprows import Dump
from .pages import read_pages
from .rows import Catalog, parse_catalog


def read_dumps_catalog(
    origin: Path, parts: Sequence[tuple[str | None, str, Path]], database: str | None, witnesses: Witnesses
) -> Catalog:
    """The same of a folder with one file a table, see dump.read_dumps."""
    return _catalog(read_dumps(origin, parts, database, witnesses), str(origin))


def read_dump_catalog(path: Path, database: str | None = None, origin: str | None = None) -> Catalog:
    """Reads a mysqldump file (`.sql`, `.sql.gz`, `--xml`). Raises StoreError when it holds no catalog of Milvus 1.x, UsageError
    when several databases in it do and `database` names none of them."""
    return _catalog(read_dump(path, database), origin or str(path))


def _catalog(dump: Dump, path: str) -> Catalog:
    notes = Findings()
    for note in dump.notes:
        notes.add(Severity.INFO if dump.truncated else Severity.WARNING, "dump-note", path, note)
    if dump.foreign:
        lines = "1 line" if len(dump.foreign) == 1 else f"{len(dump.foreign)} lines"
        text = f"passed over {lines} that the tools which made the dump printed into it: {dump.foreign[0]}"
        notes.info("dump-note", path, text)
    if dump.damage:
        more = f"; and {len(dump.damage) - 5} more" if len(dump.damage) > 5 else ""
        text = (
            f"the dump holds what no tool writes: {'; '.join(dump.damage[:5])}{more}. Collections, partitions or segments may "
            "be missing. Make the dump again, or look for another copy"
        )
        notes.error("dump-damaged", path, text)
    if dump.cut:
        notes.error("dump-truncated", path, "the dump ends early: collections or segments after its end are lost")
    return parse_catalog(dump.tables, kind="dump", origin=path, findings=notes)


def read_damaged_sqlite(copy: Path, *, origin: Path, reason: str) -> Catalog:
    """Reads what pages of a damaged `meta.sqlite` can still be read; `copy` is private. Raises StoreError when none can."""
    readable = read_pages(copy, copy.with_name(copy.name + "-wal"))
    if not readable.tables.get("Tables"):
        with copy.open("rb") as file:
            head = file.read(60)
        if head and not head.startswith(b"SQLite"):
            begins = (
                f"begins with {printable(head.decode('utf-8', 'replace').strip())!r}" if any(head) else "holds only zeros there"
            )
            raise StoreError(
                f"{origin}: neither a catalog nor a dump of one: expected a SQLite database, but it {begins}, and no page of "
                "one is in it. Name a catalog with --catalog, or read the files without one: --no-catalog"
            )
        raise StoreError(
            f"{origin}: the catalog is damaged ({reason}) and no collection can be read out of it. "
            "Restore it from a backup and name that with --catalog, or read the files without one: --no-catalog"
        )
    found = ", ".join(f"{len(rows)} rows of {name}" for name, rows in sorted(readable.tables.items()))
    notes = Findings()
    notes.error(
        "catalog-damaged",
        str(origin),
        f"the catalog is damaged ({reason}); {found} were read from its pages, {readable.unreadable} cells could not be. "
        "Collections, partitions or segments may be missing, and deleted ones may come back",
    )
    for note in readable.notes:
        notes.warning("catalog-damaged", str(origin), note)
    tables = {"TableFiles": [], **readable.tables}
    return parse_catalog(tables, kind="sqlite", origin=str(origin), findings=notes)
