"""The catalog: what the metadata database says, as plain values (FORMAT §2).

Rows come from SQLite, MySQL, a dump or salvaged pages as `RawTables`, always by column name; the generation is recognised by
the columns that are present, not by `version` (§2.3).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from itertools import islice, repeat
from typing import Any, Literal, NamedTuple, TypeVar

from ...errors import StoreError
from ...findings import Findings
from ...model import Finding, IndexSpec, Severity, VectorType
from ...names import printable
from ..layout import FLAG_AUTO_ID, FLAG_USER_ID, INDEX_NAMES, MAX_DIMENSION, MetricType, TableState

RawTables = dict[str, list[dict[str, object]]]
"""Table name (`Tables`, `TableFiles`, `Environment`, `Fields`) -> rows by column name."""


_AT_ONCE = 4096
"""Rows that a database is asked for at a time."""


class RawRows(Sequence[dict[str, object]]):
    """The rows of one table as a database gives them, kept as columns: there may be hundreds of thousands."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self._names = columns
        self._values: list[list[Any]] = [[] for _ in columns]
        self._count = 0
        rows = iter(rows)
        while some := list(islice(rows, _AT_ONCE)):
            self._count += len(some)
            for values, more in zip(self._values, zip(*some, strict=True), strict=True):
                values += more if len(set(more)) > 1 else repeat(more[0], len(some))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: Any) -> Any:
        return {name: values[number] for name, values in zip(self._names, self._values, strict=True)}

    def columns(self) -> dict[str, Sequence[Any]]:
        """The values of each column."""
        return dict(zip(self._names, self._values, strict=True))


class Generation(str, Enum):
    """Which family of servers wrote the catalog (§2.3)."""

    V05 = "0.5-0.6"
    """Raw files are Faiss files under a date folder, no WAL (§8)."""
    SEGMENTED = "0.7-1.1"


class TableRow(NamedTuple):
    """A row of `Tables`: a collection, or a partition when `owner_table` is set."""

    id: int
    table_id: str
    state: int
    dimension: int
    created_on: int = 0
    flag: int = 0
    index_file_size: int = 0
    engine_type: int = 1
    index_params: str = "{}"
    metric_type: int = 1
    owner_table: str = ""
    partition_tag: str = ""
    version: str = ""
    flush_lsn: int = 0
    nlist: int = 0

    @property
    def is_dropped(self) -> bool:
        return self.state == TableState.TO_DELETE  # what a server asks for, whatever else stands there (§3.1)

    @property
    def vector_type(self) -> VectorType:
        """Decided by the metric alone (§2.5)."""
        return VectorType.BINARY if self.metric_type >= MetricType.HAMMING else VectorType.FLOAT

    @property
    def metric_name(self) -> str | None:
        try:
            return MetricType(self.metric_type).name
        except ValueError:
            return None

    @property
    def auto_id(self) -> bool | None:
        """None when nothing was inserted yet, or a crash came before the flag was set (§7.2)."""
        return True if self.flag & FLAG_AUTO_ID else False if self.flag & FLAG_USER_ID else None

    @property
    def index_spec(self) -> IndexSpec:
        name = next((n for e, n in INDEX_NAMES.items() if e == self.engine_type), f"UNKNOWN_{self.engine_type}")
        if self.vector_type is VectorType.BINARY and name == "FLAT":
            name = "BIN_FLAT"  # DropIndex resets the last two metrics to 1 (§2.5)
        try:
            params = json.loads(self.index_params or "{}", parse_constant=str, parse_float=_finite)
        except (ValueError, RecursionError):
            params = {}
        if not isinstance(params, dict):
            params = {}
        if not params and self.nlist and name.startswith("IVF"):
            params = {"nlist": self.nlist}
        return IndexSpec(name, params)


class FileRow(NamedTuple):
    """A row of `TableFiles`: a raw file when `file_id` equals `segment_id`, else an index file."""

    id: int
    table_id: str
    file_type: int
    segment_id: str = ""
    engine_type: int = 1
    file_id: str = ""
    file_size: int = 0
    row_count: int = 0
    updated_time: int = 0
    created_on: int = 0
    date: int = -1
    flush_lsn: int = 0

    @property
    def known_rows(self) -> int | None:
        """`row_count`, where a segment can have so many; None where nothing counted them, or the value is damaged."""
        return self.row_count if 0 <= self.row_count < 1 << 31 else None


class FieldRow(NamedTuple):
    """A row of `Fields` (hybrid collections of 0.9-1.0)."""

    collection_id: str
    field_name: str
    field_type: int
    field_params: str = ""


CatalogKind = Literal["sqlite", "mysql", "dump", "meta.json", "none"]
"""Where the rows come from; `meta.json` is that of milvus-migration, with `none` they follow from the files."""


@dataclass(frozen=True)
class Catalog:
    """All that the metadata database holds. `origin` says where it was read, without secrets."""

    kind: CatalogKind
    origin: str
    generation: Generation
    tables: tuple[TableRow, ...]
    files: tuple[FileRow, ...]
    fields: tuple[FieldRow, ...] = ()
    global_lsn: int = 0
    findings: tuple[Finding, ...] = ()

    @cached_property
    def version(self) -> str:
        """The newest server version that created anything, e.g. `1.1.1`; '' when nothing tells."""
        known = [t.version for t in self.tables if re.fullmatch(r"\d+(\.\d+)*", t.version)]
        return max(known, key=version_key, default="")

    @property
    def from_files(self) -> bool:
        """Whether there is none, so that names follow from folders and log records."""
        return self.kind == "none"

    @property
    def knows_the_log(self) -> bool:
        """Whether it says what was flushed, and has all columns of a database."""
        return not self.from_files and self.kind != "meta.json"

    @cached_property
    def statements_commit_alone(self) -> bool:
        """MySQL catalogs know crash states inside what is one transaction in SQLite (§3.4)."""
        return self.kind in ("mysql", "dump")


def _finite(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text  # JSON has no infinity


@lru_cache
def version_key(version: str) -> tuple[int, ...]:
    """`0.10.4` -> (0, 10, 4), for comparison."""
    return tuple(int(n[:9]) for n in re.findall(r"\d+", version))  # a damaged one may have thousands of digits


Row = TypeVar("Row", TableRow, FileRow, FieldRow)

_KNOWN_0_11 = {"Collection", "CollectionCommit", "SegmentCommit", "SchemaCommit"}


def parse_catalog(
    raw: Mapping[str, Sequence[dict[str, object]]], *, kind: CatalogKind, origin: str, findings: Iterable[Finding] = ()
) -> Catalog:
    """Turns rows as read, by the name of the table, into a Catalog. Rows that cannot be what they claim are left out, each with
    a finding.

    Raises StoreError when the database is not one of Milvus 0.5-1.1.1.
    """
    if len(_KNOWN_0_11 & set(raw)) >= 2:
        raise StoreError(
            f"{origin}: this is the catalog of Milvus 0.11, a preview with another storage engine, not read here. "
            "Start that server once more and export through its API"
        )
    missing = [t for t in ("Tables", "TableFiles") if t not in raw]
    if missing:
        found = ", ".join(sorted(raw)) or "no table at all"
        raise StoreError(
            f"{origin}: expected the tables `Tables` and `TableFiles` of Milvus 1.x, found {found}. "
            "A meta.sqlite without its meta.sqlite-wal is often empty: copy both, or read the files with --no-catalog"
        )
    notes = Findings(findings)
    tables = _rows(TableRow, raw["Tables"], "Tables", origin, notes)
    files = _rows(FileRow, raw["TableFiles"], "TableFiles", origin, notes)
    field_rows = _rows(FieldRow, raw.get("Fields", []), "Fields", origin, notes)
    dated = bool(raw["TableFiles"]) and not any("segment_id" in r for r in raw["TableFiles"])
    if not raw["TableFiles"] and raw["Tables"]:
        dated = not any("flush_lsn" in r for r in raw["Tables"])
    lsns = [v for r in raw.get("Environment", []) if isinstance(v := r.get("global_lsn"), int) and v >= 0]
    return Catalog(
        kind=kind,
        origin=origin,
        generation=Generation.V05 if dated else Generation.SEGMENTED,
        tables=tuple(_checked_tables(tables, origin, notes)),
        files=tuple(_checked_files(files, origin, notes)),
        fields=tuple(field_rows),
        global_lsn=max(lsns, default=0),
        findings=tuple(notes),
    )


def _rows(cls: type[Row], raw: Sequence[dict[str, object]], table: str, origin: str, notes: Findings) -> list[Row]:
    if isinstance(raw, RawRows) and raw and (values := _plain_columns(cls, raw.columns())):
        return list(map(cls, *values))
    result = []
    for number, row in enumerate(raw):
        try:
            result.append(_convert(cls, row))
        except (ValueError, TypeError) as e:
            notes.error(
                "catalog-row-unreadable",
                f"{origin}: {table} row {row.get('id', number)!r}",
                f"left out, its values cannot be right: {printable(e)}",
            )
    return result


def _plain_columns(cls: type[Row], columns: Mapping[str, Sequence[Any]]) -> list[Iterable[Any]] | None:
    """The columns in the order of `cls`, where `_convert` would take each of their values as it stands, as in all healthy
    catalogs; None where it has to look at one after the other."""
    values: list[Iterable[Any]] = []
    for name, is_number in _COLUMNS[cls]:
        column = columns.get(name)
        if column is None:
            if name not in cls._field_defaults:
                return None
            values.append(repeat(cls._field_defaults[name]))
            continue
        if set(map(type, column)) != {int if is_number else str}:
            return None
        if is_number and (min(column) < _LEAST or max(column) >= _MOST):
            return None
        if not is_number and max(map(len, column)) > _LONGEST.get(name, _MAX_TEXT):
            return None
        values.append(column)
    return values


_MAX_TEXT = 1 << 16
_LONGEST = dict.fromkeys(("table_id", "segment_id", "file_id", "owner_table", "partition_tag", "version"), 1020)
"""Characters of names: 255 bytes (§11.3), each encoded twice by a latin1 connection (§16)."""


def _convert(cls: type[Row], row: Mapping[str, object]) -> Row:
    values: dict[str, Any] = {}
    for name, is_number in _COLUMNS[cls]:
        value = row.get(name)
        if value is None:
            continue  # absent in this generation, or NULL: the default holds
        if is_number:
            if not isinstance(value, int):
                value = int(str(value))
            if not _LEAST <= value < _MOST:
                raise ValueError(f"{name} is {value}")
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "surrogateescape")
        elif not isinstance(value, str):
            value = str(value)
        most = _LONGEST.get(name, _MAX_TEXT)
        if isinstance(value, str) and len(value) > most:
            raise ValueError(f"{name} has {len(value):,} characters, expected {most:,} at most")
        values[name] = value
    return cls(**values)


_LEAST, _MOST = -(1 << 63), 1 << 64


_COLUMNS: dict[type[Any], tuple[tuple[str, bool], ...]] = {
    row: tuple((name, getattr(kind, "__forward_arg__", kind) == "int") for name, kind in row.__annotations__.items())
    for row in (TableRow, FileRow, FieldRow)
}
"""The columns of each table, and whether they hold numbers."""


_IN_NO_NAME = re.compile(r"[/\\\x00]")


def is_plain_name(name: str) -> bool:
    """Whether `name` can be one folder's name: a catalog must never lead out of `tables/`."""
    return (
        bool(name)
        and name not in (".", "..")
        and _IN_NO_NAME.search(name) is None
        and (len(name) < 64 or len(name.encode("utf-8", "replace")) <= 255)
    )


def _checked_tables(rows: list[TableRow], origin: str, notes: Findings) -> Iterable[TableRow]:
    seen: set[str] = set()
    for row in sorted(rows, key=lambda r: r.id):
        where = f"{origin}: Tables row {row.id}"
        if not is_plain_name(row.table_id):
            notes.append(_refused(where, f"table_id {printable(row.table_id)!r:.300} is not the name of a folder"))
        elif row.table_id in seen:
            notes.append(_refused(where, f"table_id {printable(row.table_id)!r} is there twice"))
        elif not row.is_dropped and not 1 <= row.dimension <= MAX_DIMENSION:
            notes.append(_refused(where, f"dimension {row.dimension} is not in 1..{MAX_DIMENSION}"))
        elif not row.is_dropped and not row.vector_type.width(row.dimension):
            notes.append(_refused(where, f"dimension {row.dimension} is too small for binary vectors: expected 8 at least"))
        elif not row.is_dropped and row.metric_name is None:
            notes.append(_refused(where, f"metric_type {row.metric_type} is unknown"))
        else:
            seen.add(row.table_id)
            yield row


def _checked_files(rows: list[FileRow], origin: str, notes: Findings) -> Iterable[FileRow]:
    named = {name for row in rows for name in (row.table_id, row.segment_id or "0", row.file_id)}
    refused = {name for name in named if not is_plain_name(name)}
    for row in sorted(rows, key=lambda r: r.id):
        if refused and (bad := [n for n in (row.table_id, row.segment_id or "0", row.file_id) if n in refused]):
            notes.append(
                _refused(
                    f"{origin}: TableFiles row {row.id}", f"{printable(bad[0])!r:.300} is not the name of a file or folder"
                )
            )
        else:
            yield row


def _refused(where: str, message: str) -> Finding:
    return Finding(Severity.ERROR, "catalog-row-refused", where, f"left out: {message}")
