"""The catalog and the configuration of a new store, as a server 1.1.1 makes them (FORMAT §2.2, §13).

The tables are created with the server's own statements: it validates columns and types when it starts. `read` of the same
tables is in `catalog` and `database`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import UsageError
from ..layout import EngineType, FileType, MetricType
from .columns import COLUMNS, SCHEMA, encode_twice
from .private import connect_alone
from .rows import FieldRow, FileRow, TableRow

VERSION = "1.1.1"

SQLITE_SCHEMA = tuple(
    f"CREATE TABLE {table}({','.join(f'{c.name} {c.sqlite}' for c in columns if c.sqlite)})"
    for table, columns in SCHEMA.items()
)
"""What a server 1.1.1 says to SQLite, letter by letter, in its order."""

MYSQL_SCHEMA = tuple(
    f"CREATE TABLE IF NOT EXISTS {table}({','.join(f'{c.name} {c.mysql}' for c in columns if c.mysql)})"
    for table, columns in SCHEMA.items()
)

CONFIG_PATH = re.compile(r"/\w+(?:(?:-/?|/)\w+)*(?:-/?|/)?", re.ASCII)
r"""Paths that a server 1.1.1 accepts in its configuration: those of `^/(\w+-?/?)+$`, matched in linear time (§11.12)."""

_MYSQL_NAMES = " DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin"


def microseconds() -> int:
    """Now, as the catalog counts time (§2.2)."""
    return time.time_ns() // 1000


def date_of(created_on: int) -> int:
    """The column `date`: local (year - 1900) * 10000 + (month - 1) * 100 + day (§2.2)."""
    day = time.localtime(created_on / 1e6)
    return (day.tm_year - 1900) * 10000 + (day.tm_mon - 1) * 100 + day.tm_mday


def write_sqlite(path: Path, tables: Iterable[TableRow], files: Iterable[FileRow]) -> None:
    """Creates a `meta.sqlite` that must not be there yet; complete and closed on return. Nobody else may know its name yet."""
    connection = connect_alone(path)
    try:
        connection.execute("BEGIN")
        for statement in SQLITE_SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO Environment VALUES (0)")
        for name, rows in (("Tables", tables), ("TableFiles", files)):
            for row in rows:
                values = _values(name, row)
                marks = ",".join("CAST(? AS TEXT)" if isinstance(v, str) else "?" for v in values)
                raw = [v.encode("utf-8", "surrogateescape") if isinstance(v, str) else v for v in values]
                connection.execute(f"INSERT INTO {name} VALUES ({marks})", raw)
        connection.execute("COMMIT")
    finally:
        connection.close()


def write_mysql(path: Path, tables: Sequence[TableRow], files: Sequence[FileRow]) -> None:
    """Writes a file of SQL that fills an empty MySQL or MariaDB database with the same catalog.

    Text outside ASCII is stored as a server stores it, which talks through a latin1 connection: UTF-8, encoded twice (§16).
    """
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as f:
        f.write(
            "-- Catalog of a Milvus 1.1.1 store. Load it into an empty database: mysql DATABASE < this file\n"
            "-- Names outside ASCII are encoded twice, as Milvus 1.x stores them through its latin1 connection.\n"
            "SET NAMES utf8mb4;\nSET SQL_MODE='NO_AUTO_VALUE_ON_ZERO';\n"
        )
        for statement in MYSQL_SCHEMA:
            f.write(statement + _MYSQL_NAMES + ";\n")
        f.write("START TRANSACTION;\nINSERT INTO `Environment` VALUES (0);\n")
        for name, rows in (("Tables", tables), ("TableFiles", files)):
            for row in rows:
                f.write(f"INSERT INTO `{name}` VALUES ({','.join(map(_mysql_literal, _values(name, row)))});\n")
        f.write("COMMIT;\n")


def _values(table: str, row: TableRow | FileRow | FieldRow) -> list[int | str]:
    return [getattr(row, c) for c in COLUMNS[table][0] if hasattr(row, c)]


_ESCAPES = {"\\": "\\\\", "'": "\\'", '"': '\\"', "\n": "\\n", "\r": "\\r", "\0": "\\0", "\x1a": "\\Z"}


def _mysql_literal(value: int | str) -> str:
    if isinstance(value, int):
        return str(int(value))  # of an enum, too: before Python 3.11 its text is its name
    return "'" + "".join(_ESCAPES.get(c, c) for c in encode_twice(value)) + "'"


def check_mysql(name: str, dimension: int, index_params: str) -> None:
    """Raises UsageError for a collection that a MySQL catalog has no room for (§2.2)."""
    if dimension > 32767:
        raise UsageError(f"{name}: dimension {dimension} does not fit MySQL's SMALLINT; use SQLite")
    if len(index_params) > 512:
        raise UsageError(f"{name}: index parameters of {len(index_params)} characters, MySQL takes 512; use SQLite")


def file_type_for(engine_type: int, rows: int) -> FileType:
    """What a raw file of a collection waits for: its index, when one is wanted and the file has enough rows (§15)."""
    plain = (EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP)
    return FileType.TO_INDEX if engine_type not in plain and rows >= BUILD_INDEX_THRESHOLD else FileType.RAW


BUILD_INDEX_THRESHOLD = 4096
"""Rows from which on a server builds an index for a segment (§15)."""


def no_index_for(metric: MetricType) -> EngineType:
    """The engine type of a collection without an index."""
    return EngineType.FAISS_BIN_IDMAP if metric >= MetricType.HAMMING else EngineType.FAISS_IDMAP


def server_config(root: str, *, mysql: bool = False) -> str:
    """A `server_config.yaml` for a store that the server finds at `root`."""
    meta = "mysql://USER:PASSWORD@127.0.0.1:3306/DATABASE" if mysql else "sqlite://:@:/"
    note = "  # fill this in after loading the catalog into that database" if mysql else ""
    return _CONFIG.format(root=root.rstrip("/"), meta=meta, note=note)


def is_server_path(path: str | os.PathLike[str]) -> bool:
    """Whether a server 1.1.1 accepts this path in its configuration (§11.12): no dots, no blanks."""
    return CONFIG_PATH.fullmatch(os.fspath(path)) is not None


_CONFIG = """\
# Configuration of Milvus 1.1.1 for this store. In a container, set bind.address to 0.0.0.0; give
# cache_size more on a machine that has more memory.
version: 0.5
cluster:
  enable: false
  role: rw
general:
  timezone: UTC+8
  meta_uri: {meta}{note}
network:
  bind.address: 127.0.0.1
  bind.port: 19530
  http.enable: false
  http.port: 19121
storage:
  path: {root}
  auto_flush_interval: 1
wal:
  enable: true
  recovery_error_ignore: false
  buffer_size: 256MB
  path: {root}/wal
cache:
  cache_size: 1GB
  insert_buffer_size: 1GB
  preload_collection:
gpu:
  enable: false
  cache.enable: false
  cache_size: 1GB
  gpu_search_threshold: 1000
  search_devices:
    - gpu0
  build_index_devices:
    - gpu0
logs:
  level: info
  trace.enable: false
  path: {root}/logs
  max_log_file_size: 1024MB
  log_rotate_num: 0
  log_to_stdout: false
  log_to_file: true
metric:
  enable: false
  address: 127.0.0.1
  port: 9091
"""
