"""A real MariaDB for the tests: Debian's `mariadb-server`, in a temporary folder, on loopback only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support.absent import absent

_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/usr/libexec"])


def _program(*names: str) -> str:
    found = next(filter(None, (shutil.which(name, path=_SEARCH) for name in names)), None)
    if found is None:
        absent(f"MariaDB is not installed (no {names[0]}): apt-get install mariadb-server; its tests did NOT run")
    return found


@dataclass
class MariaDB:
    """A running server; `root` logs in without a password over the socket and over TCP."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return str(self.folder / "s")

    def connect(self, database: str | None = None, charset: str = "utf8mb4", **more: Any) -> Any:
        import pymysql

        options: dict[str, Any] = {"user": "root", "unix_socket": self.socket, "autocommit": True, **more}
        return pymysql.connect(database=database, charset=charset, **options)

    def execute(self, *statements: str, database: str | None = None, charset: str = "utf8mb4") -> list[tuple[Any, ...]]:
        """Runs statements as root and returns the rows of the last one."""
        connection = self.connect(database, charset)
        try:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def load(self, dump: Path, database: str, charset: str = "latin1") -> None:
        """Makes `database` anew with `charset` as its default and loads a dump of SQL into it."""
        self.execute(f"DROP DATABASE IF EXISTS `{database}`", f"CREATE DATABASE `{database}` CHARACTER SET {charset}")
        client = [_program("mariadb", "mysql"), f"--socket={self.socket}", "--user=root", database]
        with open(dump, "rb") as file:
            subprocess.run(client, stdin=file, check=True, capture_output=True, timeout=600)

    def dump(self, database: str, *flags: str) -> bytes:
        """What `mariadb-dump` writes; give `--databases` among the flags to have it name the database."""
        program = [_program("mariadb-dump", "mysqldump"), f"--socket={self.socket}", "--user=root"]
        return subprocess.run([*program, *flags, database], check=True, capture_output=True, timeout=600).stdout

    def rows(self, database: str, tables: Iterable[str] = ("Tables", "TableFiles", "Environment", "Fields")) -> Any:
        """All rows as the server tells them: table -> list of dicts by column name, in the order of their ids."""
        import pymysql.cursors

        connection = self.connect(database, cursorclass=pymysql.cursors.DictCursor)
        try:
            with connection.cursor() as cursor:
                result = {}
                for table in tables:
                    cursor.execute(f"SELECT * FROM `{table}`")
                    result[table] = list(cursor.fetchall())
                return result
        finally:
            connection.close()

    def add_user(self, user: str, password: str, database: str) -> None:
        """A user who may only read `database`; the password may hold anything."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute("CREATE OR REPLACE USER %s@'%%' IDENTIFIED BY %s", (user, password))
                cursor.execute(f"GRANT SELECT ON `{database}`.* TO %s@'%%'", (user,))
        finally:
            connection.close()

    def url(self, database: str, user: str = "root", password: str = "", *, quoted: bool = True) -> str:
        """`mysql://user:password@127.0.0.1:port/database`; quoted=False leaves the password as Milvus' own meta_uri has it."""
        secret = quote(password, safe="") if quoted else password
        return f"mysql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        self.process.kill()  # its folder is thrown away
        self.process.wait(timeout=600)


def start_mariadb(folder: Path) -> MariaDB:
    """Installs a data folder into `folder` and starts a server there. Skips without MariaDB, fails when CI=true."""
    install, daemon = _program("mariadb-install-db", "mysql_install_db"), _program("mariadbd", "mysqld")
    data = folder / "data"
    as_root = ["--user=root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    small = ["--innodb-log-file-size=4M", "--innodb-buffer-pool-size=16M", "--innodb-flush-method=nosync"]
    subprocess.run(
        [
            install,
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            *small,
            *as_root,
        ],
        check=True,
        capture_output=True,
        timeout=600,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(folder / "log", "wb")  # noqa: SIM115 - the server's
    process = subprocess.Popen(
        [
            daemon,
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={folder / 's'}",
            f"--port={port}",
            f"--pid-file={folder / 'pid'}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--innodb-flush-log-at-trx-commit=0",
            *small,
            *as_root,
        ],
        stdout=log,
        stderr=log,
    )
    log.close()
    server = MariaDB(folder, port, process)
    import pymysql

    for _ in range(2400):  # two minutes
        try:
            server.execute("SELECT 1")
            return server
        except pymysql.err.OperationalError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    process.kill()
    pytest.fail("MariaDB does not start: " + (folder / "log").read_text(errors="replace")[-2000:])
