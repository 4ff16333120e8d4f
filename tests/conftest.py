"""Fixtures that several test modules share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from support.mariadb import MariaDB, start_mariadb


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A running MariaDB, one per worker of pytest-xdist (it starts in half a second)."""
    folder = tmp_path_factory.mktemp("mariadb")
    server = start_mariadb(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)
