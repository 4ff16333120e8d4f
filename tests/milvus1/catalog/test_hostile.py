"""Catalogs that attack, and what their private copies leave behind."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.command import call

from milvus_offline.errors import StoreError, UsageError
from milvus_offline.milvus1.catalog import private
from milvus_offline.milvus1.location import locate
from milvus_offline.milvus1.opening import load_catalog, open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2))
    return b.write()


def change(root: Path, *statements: str) -> None:
    with sqlite3.connect(root / "db/meta.sqlite", isolation_level=None) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_generated_columns_are_not_computed(root: Path) -> None:
    change(root, "ALTER TABLE TableFiles ADD COLUMN more BLOB AS (zeroblob(900000000)) VIRTUAL")
    assert content(open_store(root)) == {("c", "_default"): bag(rows(1, 2))}


@pytest.mark.parametrize("column", ["table_id", "partition_tag", "index_params"])
def test_names_of_many_megabytes_are_refused_before_they_are_printed(column: str, root: Path) -> None:
    change(root, f"UPDATE Tables SET {column} = replace(hex(zeroblob(4000000)), '0', 'x')")
    outcome = call("inspect", root)
    assert outcome.code == 1
    assert len(outcome.out) + len(outcome.err) < 20_000


def test_a_query_without_an_end_is_stopped(root: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    change(root, f"CREATE TABLE x(i CHECK (i < ({'9' * 10})))", f"CREATE VIEW more AS {endless}", "PRAGMA writable_schema = ON")
    change(root, "PRAGMA writable_schema = ON", "UPDATE sqlite_master SET type = 'table' WHERE name = 'more'")
    assert call("inspect", root).code == 3


def test_a_temporary_folder_that_is_full_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(root / "db/meta.sqlite"))

    monkeypatch.setattr(private.fileio, "copy_file", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StoreError, match=f"{tmp_path}: cannot make a private copy .* TMPDIR"):
        open_store(root)


def test_copies_of_killed_processes_are_removed_and_those_of_others_stay(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    script = (
        "import os, sys, time\nfrom pathlib import Path\nfrom milvus_offline.milvus1.catalog.private import private_copies\n"
        "with private_copies(Path(sys.argv[1])):\n    print('there', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(root / "db/meta.sqlite")]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    running, killed = (
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    for process in (running, killed):
        assert process.stdout is not None and process.stdout.readline() == "there\n"
    killed.kill()
    killed.communicate()
    assert len(list((tmp_path / "tmp").iterdir())) == 2
    open_store(root)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    running.communicate("")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "url", ["mysql:/root:secret@h/db", "sqlite://root:secret@h/db", "mysql://root:secret@/", "postgresql://root:secret@h/db"]
)
def test_wrong_addresses_of_catalogs_never_repeat_the_password(url: str, root: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_catalog(locate(root), url)
    assert "secret" not in str(error.value)


def test_a_folder_of_tables_that_was_not_copied_is_one_error(root: Path) -> None:
    (root / "db/tables").rename(root / "elsewhere")
    store = open_store(root)
    assert [(f.code, f.rows) for f in store.findings] == [("tables-missing", 2)]
    (root / "db/tables").symlink_to("/mnt/milvus/tables")
    (finding,) = open_store(root).findings
    assert "is a link to /mnt/milvus/tables, which does not exist here" in finding.message


def test_links_to_a_volume_that_is_not_mounted(root: Path) -> None:
    (root / "db").rename(root / "elsewhere")
    (root / "db").symlink_to("/mnt/milvus/db")
    with pytest.raises(StoreError, match="db is a link to /mnt/milvus/db, which does not exist here"):
        open_store(root)


def test_a_segment_behind_a_link_to_nowhere(root: Path) -> None:
    (folder,) = (root / "db/tables/c").iterdir()
    folder.rename(root / "elsewhere")
    folder.symlink_to("/mnt/disk2/segment")
    store = open_store(root)
    assert codes(store) == ["segment-missing"]
    assert "/mnt/disk2/segment" in store.findings[0].message


@pytest.mark.parametrize(
    "words", [("load", "milvus1://u:secret@h:1"), ("load", "http://u:secret@127.0.0.1:1/x"), ("export", "x")]
)
def test_no_message_repeats_a_password(words: tuple[str, str], root: Path, tmp_path: Path) -> None:
    catalog = ("--catalog", "mysql://u:secret@127.0.0.1:1/db") if words[0] == "export" else ()
    outcome = call(words[0], root, words[1] if words[0] == "load" else tmp_path / "out", *catalog)
    assert outcome.code == (1 if words[0] == "export" else 2)
    assert "secret" not in outcome.out + outcome.err


@pytest.mark.skipif(not hasattr(os, "O_NOATIME"), reason="the system has no such flag")
def test_times_of_access_stay(root: Path) -> None:
    files = [p for p in root.rglob("*") if p.is_file()]
    for p in files:
        os.utime(p, (1, p.stat().st_mtime))
    store = open_store(root)
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}
    read = [p for p in files if p.suffix in (".rv", ".uid", ".sqlite") or p.name == "deleted_docs"]
    assert len(read) == 4 and {p.stat().st_atime for p in read} == {1.0}
