"""The columns of the catalog, for who reads it and who writes it: names, order and types per version, and what values mean
(FORMAT §2.2, §2.3, §16)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class CatalogColumn(NamedTuple):
    """One column: its declarations in the CREATE TABLE of a server 1.1.1, to SQLite and to MySQL, letter by letter."""

    name: str
    sqlite: str = ""
    mysql: str = ""
    versions: str = "0.5 0.6 0.7"
    """The families of servers whose tables have it; 0.7 stands for all that came later."""

    @property
    def is_text(self) -> bool:
        return self.sqlite.startswith("TEXT")


_LATER = "0.7"
_SINCE_06 = "0.6 0.7"

SCHEMA: dict[str, tuple[CatalogColumn, ...]] = {
    "Environment": (CatalogColumn("global_lsn", "INTEGER DEFAULT (0) NOT NULL", "BIGINT NOT NULL"),),
    "Tables": (
        CatalogColumn("id", "INTEGER PRIMARY KEY NOT NULL", "BIGINT PRIMARY KEY AUTO_INCREMENT"),
        CatalogColumn("table_id", "TEXT UNIQUE NOT NULL", "VARCHAR(255) UNIQUE NOT NULL"),
        CatalogColumn("state", "INTEGER NOT NULL", "INT NOT NULL"),
        CatalogColumn("dimension", "INTEGER NOT NULL", "SMALLINT NOT NULL"),
        CatalogColumn("created_on", "INTEGER NOT NULL", "BIGINT NOT NULL"),
        CatalogColumn("flag", "INTEGER DEFAULT (0) NOT NULL", "BIGINT DEFAULT 0 NOT NULL"),
        CatalogColumn("index_file_size", "INTEGER NOT NULL", "BIGINT DEFAULT 1024 NOT NULL"),
        CatalogColumn("engine_type", "INTEGER NOT NULL", "INT DEFAULT 1 NOT NULL"),
        CatalogColumn("index_params", "TEXT NOT NULL", "VARCHAR(512) NOT NULL", _LATER),
        CatalogColumn("nlist", versions="0.5 0.6"),
        CatalogColumn("metric_type", "INTEGER NOT NULL", "INT DEFAULT 1 NOT NULL"),
        CatalogColumn("owner_table", "TEXT DEFAULT ('') NOT NULL", "VARCHAR(255) NOT NULL", _SINCE_06),
        CatalogColumn("partition_tag", "TEXT DEFAULT ('') NOT NULL", "VARCHAR(255) NOT NULL", _SINCE_06),
        CatalogColumn("version", "TEXT DEFAULT ('1.1.1') NOT NULL", "VARCHAR(64) DEFAULT '1.1.1'", _SINCE_06),
        CatalogColumn("flush_lsn", "INTEGER NOT NULL", "BIGINT DEFAULT 0 NOT NULL", _LATER),
    ),
    "TableFiles": (
        CatalogColumn("id", "INTEGER PRIMARY KEY NOT NULL", "BIGINT PRIMARY KEY AUTO_INCREMENT"),
        CatalogColumn("table_id", "TEXT NOT NULL", "VARCHAR(255) NOT NULL"),
        CatalogColumn("segment_id", "TEXT DEFAULT ('') NOT NULL", "VARCHAR(255) NOT NULL", _LATER),
        CatalogColumn("engine_type", "INTEGER NOT NULL", "INT DEFAULT 1 NOT NULL"),
        CatalogColumn("file_id", "TEXT NOT NULL", "VARCHAR(255) NOT NULL"),
        CatalogColumn("file_type", "INTEGER NOT NULL", "INT DEFAULT 0 NOT NULL"),
        CatalogColumn("file_size", "INTEGER DEFAULT (0) NOT NULL", "BIGINT DEFAULT 0 NOT NULL"),
        CatalogColumn("row_count", "INTEGER DEFAULT (0) NOT NULL", "BIGINT DEFAULT 0 NOT NULL"),
        CatalogColumn("updated_time", "INTEGER NOT NULL", "BIGINT NOT NULL"),
        CatalogColumn("created_on", "INTEGER NOT NULL", "BIGINT NOT NULL"),
        CatalogColumn("date", "INTEGER NOT NULL", "INT DEFAULT -1 NOT NULL"),
        CatalogColumn("flush_lsn", "INTEGER NOT NULL", "BIGINT DEFAULT 0 NOT NULL", _LATER),
    ),
    "Fields": (
        CatalogColumn("collection_id", "TEXT NOT NULL", "VARCHAR(255) NOT NULL"),
        CatalogColumn("field_name", "TEXT NOT NULL", "VARCHAR(255) NOT NULL"),
        CatalogColumn("field_type", "INTEGER NOT NULL", "INT DEFAULT 0 NOT NULL"),
        CatalogColumn("field_params", "TEXT NOT NULL", "VARCHAR(255) NOT NULL"),
    ),
}
"""The tables of a catalog in the order in which a server creates them, with their columns in order (§2.2, §2.3)."""


def _layouts(table: str) -> tuple[tuple[str, ...], ...]:
    layouts = (tuple(c.name for c in SCHEMA[table] if v in c.versions.split()) for v in ("0.7", "0.6", "0.5"))
    return tuple(dict.fromkeys(layouts))


COLUMNS = {table: _layouts(table) for table in ("Tables", "TableFiles", "Environment", "Fields")}
"""Columns in the order of CREATE TABLE: 0.7-1.1.1 first, then 0.6, then 0.5. The number of columns tells the version."""

TEXT_COLUMNS = frozenset(c.name for columns in SCHEMA.values() for c in columns if c.is_text)

_REQUIRED = {
    "Tables": {"table_id", "state", "dimension"},
    "TableFiles": {"table_id", "file_id", "file_type"},
    "Environment": {"global_lsn"},
    "Fields": {"collection_id", "field_name"},
}
_CANONICAL_TABLES = {name.lower(): name for name in COLUMNS}
_CANONICAL_COLUMNS = {c.lower(): c for layouts in COLUMNS.values() for layout in layouts for c in layout}
_INTEGER = re.compile(r"[-+]?\d{1,40}")
_NUMBER = re.compile(r"[-+]?\d{1,20}\.0*")


def canonical_table(name: str) -> str | None:
    """`Tables` for `tables` (servers with lower_case_table_names); None for a table that Milvus does not have."""
    return _CANONICAL_TABLES.get(name.lower())


def canonical_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Columns in Milvus' own spelling; unknown ones stay."""
    return tuple(_CANONICAL_COLUMNS.get(n.lower(), n) for n in names)


def known_columns(table: str, count: int) -> tuple[str, ...] | None:
    """The columns of `table` in the version that had `count` of them, or None."""
    return next((layout for layout in COLUMNS[table] if len(layout) == count), None)


def is_milvus(table: str, columns: Sequence[str]) -> bool:
    """Whether a table of this name with these columns is Milvus': other applications have a `Tables`, too."""
    return set(columns) >= _REQUIRED[table]


def is_misspelt(table: str, columns: Sequence[str]) -> bool:
    """Whether there are columns that Milvus does not have while some of its own are missing: a damaged CREATE TABLE.

    As many columns as a version had are those of that version: without a damaged name an older one's may still be whole.
    """
    found = set(canonical_columns(columns))
    strangers = any(c.lower() not in _CANONICAL_COLUMNS for c in columns)
    layout = known_columns(table, len(columns))
    return strangers and (
        not any(set(known) <= found for known in COLUMNS[table]) or (layout is not None and found != set(layout))
    )


def is_foreign(table: str, columns: Sequence[str]) -> bool:
    """Whether the columns are those of another application's table of this name: fewer than half of any version's are there,
    where damage garbles a name or two."""
    found = set(canonical_columns(columns))
    return all(2 * len(found & set(known)) < len(known) for known in COLUMNS[table])


def is_column(table: str, name: str) -> bool:
    """Whether Milvus has this column in the table, in any version."""
    return any(name.lower() == c.name for c in SCHEMA[table])


def coerce(column: str, value: object) -> object:
    """The value as Milvus means it: quoted or hexadecimal numbers become int, hexadecimal text becomes str."""
    if column in TEXT_COLUMNS:
        if isinstance(value, bytes):
            return decode(value)
        return str(value) if isinstance(value, int) else value
    if isinstance(value, bytes) and len(value) <= 16 and column in _CANONICAL_COLUMNS:
        return int.from_bytes(value, "big")
    if isinstance(value, str) and column in _CANONICAL_COLUMNS:
        if _INTEGER.fullmatch(value):
            return int(value)
        if _NUMBER.fullmatch(value):
            return int(value[: value.index(".")])
    return value


# Text ----------------------------------------------------------------------------------------------------------------

_CP1252 = {b: bytes([b]).decode("cp1252" if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "latin-1") for b in range(256)}
_CP1252_BYTES = {ord(c): b for b, c in _CP1252.items()}


def decode(raw: bytes) -> str:
    """UTF-8 where it is valid UTF-8, else MySQL's latin1: cp1252 with 81 8d 8f 90 9d passed through (FORMAT §16)."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(map(_CP1252.__getitem__, raw))


def repair_double_encoding(text: str) -> str | None:
    """What a client with a latin1 connection meant (FORMAT §16): `größe` for `grÃ¶ÃŸe`; None for honest text.

    Text is repaired only where its bytes in MySQL's latin1 are valid UTF-8 and give another text.
    """
    if text.isascii():
        return None
    try:
        repaired = bytes(_CP1252_BYTES[ord(c)] for c in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
    return repaired if repaired != text else None


def encode_twice(text: str) -> str:
    """What a client with a latin1 connection stores: the inverse of `repair_double_encoding` (FORMAT §16)."""
    return "".join(map(_CP1252.__getitem__, text.encode("utf-8", "surrogateescape")))


# CREATE TABLE --------------------------------------------------------------------------------------------------------

_PIECE = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|[\w$]+|\s+|.""", re.S)
_CONSTRAINTS = {"primary", "unique", "key", "constraint", "index", "fulltext", "spatial", "foreign", "check", "period"}


def unquote(name: str) -> str:
    """An identifier without its quotes: `a`, "a", [a] and, from SQLite, 'a'."""
    if len(name) >= 2 and name[0] in "`\"'" and name[-1] == name[0]:
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[:1] == "[" and name[-1:] == "]" else name


def create_columns(sql: str) -> tuple[str, ...]:
    """Column names of a CREATE TABLE statement in their order, of MySQL, MariaDB or SQLite; empty when there are none."""
    names: list[str] = []
    depth, fresh = 0, False
    for match in _PIECE.finditer(sql):
        piece = match[0]
        if piece == "(":
            depth += 1
            fresh = depth == 1
        elif piece == ")":
            depth -= 1
            if depth == 0:
                break
        elif piece == "," and depth == 1:
            fresh = True
        elif fresh and depth == 1 and not piece.isspace() and not piece.startswith(("--", "/*")):
            fresh = False
            if piece.lower() not in _CONSTRAINTS:
                names.append(unquote(piece))
    return canonical_columns(names)
