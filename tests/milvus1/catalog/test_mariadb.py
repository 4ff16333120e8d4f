"""The catalog of a live MariaDB, and the helper that starts one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import mariadb as helper
from support.mariadb import MariaDB

from milvus_offline.errors import StoreError
from milvus_offline.milvus1.catalog.database import parse_mysql_url, read_mysql
from milvus_offline.milvus1.catalog.dump import read_dump
from milvus_offline.milvus1.catalog.rows import parse_catalog

pytestmark = pytest.mark.server

DUMP = Path(__file__).parent.parent.parent.parent / "fixtures" / "stores" / "mysql" / "store" / "meta.default.sql"


@pytest.mark.parametrize("charset", ["latin1", "utf8mb4"])
def test_the_live_catalog_is_that_of_the_dump(charset: str, mariadb: MariaDB) -> None:
    mariadb.load(DUMP, "live", charset=charset)
    live = read_mysql(parse_mysql_url(mariadb.url("live")))
    dumped = parse_catalog(read_dump(DUMP).tables, kind="dump", origin=str(DUMP))
    assert live.tables == dumped.tables
    assert live.files == dumped.files
    assert "größe" in {t.partition_tag for t in live.tables}


@pytest.mark.parametrize("password", ["", "plain", "a@b:c/d%e", "@:/%", "p%40x", "#?&=+ ", "größe 日"])
def test_any_password(password: str, mariadb: MariaDB) -> None:
    mariadb.load(DUMP, "guarded")
    mariadb.add_user("reader", password, "guarded")
    for quoted in (True, False):
        url = mariadb.url("guarded", "reader", password, quoted=quoted)
        assert len(read_mysql(parse_mysql_url(url, quoted=quoted)).tables) == 15
    with pytest.raises(StoreError) as refused:
        read_mysql(parse_mysql_url(mariadb.url("guarded", "reader", password + "x!9")))
    assert "refused" in str(refused.value)
    assert "x!9" not in str(refused.value)


def test_a_missing_server_is_loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(helper, "_SEARCH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="its tests did NOT run"):
        helper.start_mariadb(tmp_path)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="its tests did NOT run"):
        helper.start_mariadb(tmp_path)
