"""How the metadata database is opened without touching it (FORMAT §2.1): SQLite on a private copy, MySQL in one read-only
consistent snapshot.

SQLite goes through Python's own sqlite3: SQLAlchemy alone would take longer to import than all else that an export does to
begin. It serves MySQL, where it is worth that.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ...errors import StoreError, UsageError, pip_install
from ...names import printable
from .columns import canonical_table, is_column, is_foreign, is_misspelt
from .private import SIDECARS, connect_alone, make_copy, private_copies
from .rows import Catalog, RawRows, parse_catalog

if TYPE_CHECKING:
    import sqlite3

    from sqlalchemy.engine import Connection

PASSWORD_VARIABLE = "MILVUS_OFFLINE_CATALOG_PASSWORD"

MAX_VALUE = 1 << 20
"""Bytes of a value or a row; the longest that Milvus writes are index parameters, of some hundred."""
_TEXTS = 4096
"""Texts that are remembered."""
_STEPS, _STEPS_A_BYTE, _STEPS_AT_ONCE = 10_000_000, 20, 100_000
"""Instructions of SQLite's machine: for any file, for each byte of it, and between two looks at the clock."""


def read_sqlite(path: Path, origin: str | None = None) -> Catalog:
    """Reads a `meta.sqlite` together with its -wal, -shm and -journal on a private copy; the original is only read.

    Where SQLite itself gives up, the pages that can still be read are used, with a finding. Raises StoreError when the file is
    missing, unreadable, or not a catalog of Milvus 1.x.
    """
    if not path.is_file():
        raise StoreError(f"{path}: expected the SQLite catalog here, found no file")
    import sqlite3

    place = origin or str(path)
    with private_copies(path) as (copy, fresh, refused):
        if refused:
            from .readable import read_damaged_sqlite

            return read_damaged_sqlite(copy, origin=path, reason=refused)
        try:
            return parse_catalog(_read_copy(copy, place), kind="sqlite", origin=place)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as e:  # SQLite quotes damaged names in its messages
            from .readable import read_damaged_sqlite  # rarely needed

            make_copy(path, fresh, ("-wal",))  # opening may have changed the first copy
            return read_damaged_sqlite(fresh, origin=path, reason=f"{str(e) or type(e).__name__:.200}")


def _read_copy(path: Path, origin: str) -> dict[str, Sequence[dict[str, object]]]:
    import sqlite3

    if any(path.with_name(path.name + s).exists() for s in SIDECARS):
        from .pages import log_damage

        if damage := log_damage(path):  # SQLite would take an older state without a word
            raise sqlite3.DatabaseError(damage)
    with contextlib.closing(connect_alone(path)) as connection:
        connection.text_factory = _Texts().__getitem__
        _bound(connection, sum(p.stat().st_size for p in path.parent.glob(path.name + "*")))
        connection.execute("PRAGMA synchronous = OFF")  # the copy is thrown away: nothing has to wait for the disk
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(str(verdict))
        tables: dict[str, Sequence[dict[str, object]]] = {}
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            known = canonical_table(name)
            if known is None:
                tables[name] = []
                continue
            quoted = name.replace('"', '""')
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{quoted}")')]  # no generated ones
            if known in ("Tables", "TableFiles") and is_foreign(known, columns):
                raise StoreError(
                    f"{origin}: a SQLite database of another application: its table {printable(name)} has the columns "
                    f"{printable(', '.join(columns[:8]))}, which are not those of Milvus 1.x. Name the right catalog with "
                    "--catalog, or read the files without one: --no-catalog"
                )
            if is_misspelt(known, columns):
                raise sqlite3.DatabaseError(f"the columns of {known} have other names than Milvus gives them")
            columns = [c for c in columns if is_column(known, c)]
            names = ", ".join(f'"{c}"' for c in columns)
            rows = connection.execute(f'SELECT {names} FROM "{quoted}"') if columns else ()
            tables[known] = RawRows(columns, rows)
        return tables


class _Texts(dict[bytes, str]):
    """Texts out of a database: most names stand in it many times, or twice in a row, and are kept once."""

    def __missing__(self, raw: bytes) -> str:
        if len(self) >= _TEXTS:
            self.clear()
        self[raw] = text = raw.decode("utf-8", "surrogateescape")
        return text


def _bound(connection: sqlite3.Connection, size: int) -> None:
    """Bounds what a hostile file can make SQLite do: no functions in its schema, no value longer than any that Milvus writes,
    and no more steps than reading and checking a file of this size take."""
    import sqlite3

    connection.execute("PRAGMA trusted_schema = OFF")
    if hasattr(connection, "setlimit"):  # Python 3.11
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    steps = _STEPS + _STEPS_A_BYTE * size

    def stop() -> bool:
        nonlocal steps
        steps -= _STEPS_AT_ONCE
        return steps < 0

    connection.set_progress_handler(stop, _STEPS_AT_ONCE)


def _read_mysql_tables(connection: Connection) -> dict[str, Sequence[dict[str, object]]]:
    from sqlalchemy import inspect, text

    quote = connection.dialect.identifier_preparer.quote_identifier
    tables: dict[str, Sequence[dict[str, object]]] = {}
    for name in inspect(connection).get_table_names():
        known = canonical_table(name)
        if known is None:
            tables[name] = []
        else:
            rows = connection.execute(text(f"SELECT * FROM {quote(name)}"))
            tables[known] = RawRows(list(rows.keys()), rows)
    return tables


@dataclass(frozen=True)
class MySqlAddress:
    """Where a MySQL catalog is. Its text never shows the password."""

    host: str
    port: int
    user: str
    database: str
    password: str

    def __repr__(self) -> str:
        return f"mysql://{self.user}@{self.host}:{self.port}/{self.database}"

    __str__ = __repr__


def parse_mysql_url(url: str, *, quoted: bool = True) -> MySqlAddress:
    """Reads `mysql://user:password@host:port/database` (also with `+driver`).

    Milvus takes its own `meta_uri` as it stands, so a password there may hold `@`, `:` or `%` (quoted=False); on the command
    line percent-encoding is undone. An absent password comes from the environment variable MILVUS_OFFLINE_CATALOG_PASSWORD.
    Raises UsageError; its text does not repeat the URL.
    """
    match = re.fullmatch(
        r"(?:mysql|mariadb)(?:\+\w+)?://(?:([^:]*)(?::(.*))?@)?([^:/@]*|\[[^\]]*\])(?::(\d*))?/([^/?]+)(?:\?.*)?", url, re.S
    )
    if not match:
        raise UsageError(
            "the catalog's URL must look like mysql://user@host:3306/database (password in " + PASSWORD_VARIABLE + ")"
        )
    user, password, host, port, database = match.groups()
    decode = unquote if quoted else str
    if password is None or password == "":
        password = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        password = decode(password)
    number = int(port) if port else 3306
    if not 0 < number < 65536:
        raise UsageError(f"the catalog's URL has port {number}, expected 1..65535")
    return MySqlAddress((host or "127.0.0.1").strip("[]"), number, decode(user or ""), decode(database), password)


def read_mysql(address: MySqlAddress) -> Catalog:
    """Reads a live MySQL or MariaDB in one read-only transaction with a consistent snapshot. Raises StoreError."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    url = URL.create(
        "mysql+pymysql",
        username=address.user,
        password=address.password,
        host=address.host,
        port=address.port,
        database=address.database,
        query={"charset": "utf8mb4"},
    )
    arguments = {"connect_timeout": 10, "read_timeout": 300, "password": address.password.encode()}  # PyMySQL: str is latin1
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            connection.execute(text("START TRANSACTION READ ONLY, WITH CONSISTENT SNAPSHOT"))
            try:
                tables = _read_mysql_tables(connection)
            finally:
                connection.execute(text("ROLLBACK"))
    except (SQLAlchemyError, RuntimeError, OSError) as e:
        raise StoreError(f"{address}: cannot read the catalog: {_reason(e, address)}") from None
    return parse_catalog(tables, kind="mysql", origin=str(address))


def _reason(error: BaseException, address: MySqlAddress) -> str:
    cause = getattr(error, "orig", None) or error
    number = cause.args[0] if cause.args and isinstance(cause.args[0], int) else None
    if isinstance(cause, RuntimeError) and "cryptography" in str(cause):
        return f"this server's logins need the package cryptography: {pip_install('mysql')}"
    if number == 1045:
        return f"user {address.user!r} or the password is refused (password from the URL or {PASSWORD_VARIABLE})"
    if number == 1049:
        return f"there is no database {address.database!r}"
    if number in (2003, 2013):
        return f"no answer from {address.host}:{address.port}: check that the database runs and that this machine can reach it"
    text = str(cause.args[1]) if number is not None and len(cause.args) > 1 else str(cause)
    return text.replace(address.password, "***") if address.password else text
