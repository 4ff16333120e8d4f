"""Catalogs: which one is read, how old it is, and what is taken from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.real import STORES

from milvus_offline.errors import StoreError, UsageError
from milvus_offline.milvus1.catalog.columns import SCHEMA
from milvus_offline.milvus1.catalog.database import parse_mysql_url
from milvus_offline.milvus1.catalog.rows import FieldRow, FileRow, TableRow
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect


def test_a_catalog_older_than_the_files_is_noticed(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2))
    b.folder("c", b.new_id(), rows(3, 4, 5))  # no row of the catalog speaks of it, and it is the newest
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
    assert [(f.code, f.rows) for f in store.findings] == [("catalog-older", 3)]
    salvaged, _ = collect(store, ["orphans"])
    assert [(s.kind, s.schema.name, s.partition, s.rows) for s in salvaged] == [("orphans", "c", "_default", 3)]


def test_a_newer_copy_of_live_rows_is_an_ordinary_orphan(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2))
    b.segment("c", rows(3))
    b.folder("c", b.new_id(), rows(1, 2, 3))  # a merge that a restart forgot
    store = open_store(b.write())
    assert codes(store) == []
    salvaged, notes = collect(store, ["orphans"])
    assert salvaged == [] and [n.code for n in notes] == ["salvage-copy"]


def test_a_dump_with_two_databases(tmp_path: Path) -> None:
    dump = (STORES / "mysql_crash" / "store" / "meta.databases.sql").read_text()
    both = tmp_path / "both.sql"
    both.write_text(dump + dump.replace("`milvus`", "`other`"))
    root = STORES / "mysql_crash" / "store"
    with pytest.raises(UsageError, match="other"):
        open_store(root, both)
    assert open_store(root, f"{both}#other").rows == open_store(root, root / "meta.default.sql").rows > 0
    with pytest.raises(UsageError):
        open_store(root, f"{both}#third")
    with pytest.raises(StoreError, match="no such catalog file"):
        open_store(root, tmp_path / "absent.sql#x")


@pytest.mark.parametrize(
    ("url", "quoted", "expected"),
    [
        ("mysql://root:a%40b%3A%2F@db:3307/milvus", True, ("root", "a@b:/", "db", 3307, "milvus")),
        ("mysql://root:a@b:c/d%@db:3307/milvus", False, ("root", "a@b:c/d%", "db", 3307, "milvus")),
        ("mysql+pymysql://u@[::1]:3306/m?charset=x", True, ("u", "", "::1", 3306, "m")),
        ("mysql://u:p@db/m", True, ("u", "p", "db", 3306, "m")),
    ],
)
def test_addresses(url: str, quoted: bool, expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILVUS_OFFLINE_CATALOG_PASSWORD", raising=False)
    a = parse_mysql_url(url, quoted=quoted)
    assert (a.user, a.password, a.host, a.port, a.database) == expected
    assert expected[1] == "" or str(expected[1]) not in f"{a} {a!r}"


@pytest.mark.parametrize("url", ["mysql://db", "mysql://u:secret@db:99999/m", "mysql://u:secret@db:x/m"])
def test_wrong_addresses_do_not_show_the_password(url: str) -> None:
    with pytest.raises(UsageError) as e:
        parse_mysql_url(url)
    assert "secret" not in str(e.value)


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_OFFLINE_CATALOG_PASSWORD", "s3cret")
    assert parse_mysql_url("mysql://u@db/m").password == "s3cret"
    assert parse_mysql_url("mysql://u:own@db/m").password == "own"


@pytest.mark.parametrize(("table", "row"), [("Tables", TableRow), ("TableFiles", FileRow), ("Fields", FieldRow)])
def test_what_is_read_of_a_row_are_columns_of_its_table(table: str, row: type) -> None:
    assert set(row.__annotations__) <= {c.name for c in SCHEMA[table]}
