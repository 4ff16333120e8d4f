"""Catalogs from elsewhere than a healthy database: dumps, and readable pages of a damaged SQLite file (FORMAT §2.1, §16)."""

from __future__ import annotations

from pathlib import Path

from ...errors import StoreError
from ...findings import Findings
from ...model import Severity
from .dump import read_dump
from .pages import salvage_pages
from .rows import Catalog, parse_catalog


def read_dump_catalog(path: Path, database: str | None = None) -> Catalog:
    """Reads a mysqldump file (`.sql`, `.sql.gz`, `--xml`). Raises StoreError when it holds no catalog of Milvus 1.x, UsageError
    when several databases in it do and `database` names none of them."""
    dump = read_dump(path, database)
    notes = Findings()
    for note in dump.notes:
        notes.add(Severity.INFO if dump.truncated else Severity.WARNING, "dump-note", str(path), note)
    if dump.truncated:
        notes.error("dump-truncated", str(path), "the dump ends early: collections or segments behind its end are lost")
    return parse_catalog(dump.tables, kind="dump", origin=str(path), findings=notes)


def rescue_sqlite(copy: Path, *, origin: Path, reason: str) -> Catalog:
    """Reads what pages of a damaged `meta.sqlite` can still be read; `copy` is private. Raises StoreError when none can."""
    salvaged = salvage_pages(copy, copy.with_name(copy.name + "-wal"))
    if not salvaged.tables.get("Tables"):
        raise StoreError(
            f"{origin}: the catalog is damaged ({reason}) and no collection can be read out of it. "
            "Restore it from a backup and name that with --catalog, or read the files without one: --no-catalog"
        )
    found = ", ".join(f"{len(rows)} rows of {name}" for name, rows in sorted(salvaged.tables.items()))
    notes = Findings()
    notes.error(
        "catalog-damaged",
        str(origin),
        f"the catalog is damaged ({reason}); {found} were read from its pages, {salvaged.unreadable} cells could not be. "
        "Collections, partitions or segments may be missing, and deleted ones may come back",
    )
    for note in salvaged.notes:
        notes.warning("catalog-damaged", str(origin), note)
    tables = {"TableFiles": [], **salvaged.tables}
    return parse_catalog(tables, kind="sqlite", origin=str(origin), findings=notes)
