"""Catalogs as people have them: tools' lines in a dump, packed, one file a table; and every damaged byte is told."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import call, exported
from support.real import STORES, copy_store, truth

from milvus_offline.errors import MilvusOfflineError, StoreError, UsageError
from milvus_offline.milvus1.catalog.dump import read_dump
from milvus_offline.milvus1.catalog.given import read_given
from milvus_offline.model import Severity

STORE = STORES / "mysql" / "store"
DUMPS = sorted(p.name for p in STORE.glob("meta.*"))
ROWS = ("Tables", "TableFiles", "Environment")


def rows(catalog: Any) -> tuple[Any, Any, int]:
    return catalog.tables, catalog.files, catalog.global_lsn


def severities(catalog: Any) -> set[tuple[str, str]]:
    return {(f.code, f.severity.value) for f in catalog.findings}


WARNING = b"mysqldump: [Warning] Using a password on the command line interface can be insecure."
GTID = b"Warning: A partial dump from a server that has GTIDs won't include the changes that don't belong to it."
STATUS = b"mysqldump: Couldn't execute 'SHOW PACKAGE STATUS'"
RIGHT = (
    b"mysqldump: Error: 'Access denied; you need (at least one of) the PROCESS privilege(s)' when trying to dump tablespaces"
)
FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "in front": lambda d: WARNING + b"\r\n" + d,
    "apostrophes": lambda d: GTID + b"\n" + d,
    "several": lambda d: WARNING + b"\n" + RIGHT + b"\n" + GTID + b"\n" + d,
    "at the end": lambda d: d + STATUS + b"\n",
    "a terminal": lambda d: b"Enter password: \r\n" + d.replace(b"\n", b"\r\n"),
}
PACKED: dict[str, Callable[[bytes, Path], None]] = {
    "dump.sql": lambda d, p: (p.write_bytes(d), None)[1],
    "dump.sql.gz": lambda d, p: (p.write_bytes(gzip.compress(d)), None)[1],
    "dump.bz2": lambda d, p: (p.write_bytes(bz2.compress(d)), None)[1],
    "dump.xz": lambda d, p: (p.write_bytes(lzma.compress(d)), None)[1],
    "dump.zip": lambda d, p: _zip(p, {"folder/dump.sql": d}),
    "dump.zst": lambda d, p: _zstd(d, p),
}


def _zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _zstd(data: bytes, path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("foreign", [None, *FOREIGN])
@pytest.mark.parametrize("form", ["meta.default.sql", "meta.data_only.sql", "meta.xml"])
def test_lines_of_tools_and_packing_change_nothing(form: str, foreign: str | None, packed: str, tmp_path: Path) -> None:
    if form == "meta.xml" and foreign in ("at the end", "a terminal"):
        pytest.skip("XML ends with its last tag, and keeps line breaks")
    data = (STORE / form).read_bytes()
    PACKED[packed](FOREIGN[foreign](data) if foreign else data, tmp_path / packed)
    found = read_given(tmp_path / packed)
    assert rows(found) == rows(read_given(STORE / form))
    assert severities(found) <= {("dump-note", "info")}
    assert bool(severities(found)) == (foreign is not None)


@pytest.mark.parametrize("form", DUMPS)
def test_every_form_of_a_dump_is_whole(form: str) -> None:
    told = severities(read_given(STORE / form))
    assert told == ({("dump-note", "warning")} if form == "meta.compatible_ansi.sql" else set())  # its texts are not UTF-8


def test_an_export_with_such_a_dump_brings_everything(tmp_path: Path) -> None:
    store = copy_store("mysql", tmp_path)
    (tmp_path / "dump.sql").write_bytes(FOREIGN["apostrophes"]((STORE / "meta.default.sql").read_bytes()))
    done = call("export", store, tmp_path / "out", "--catalog", tmp_path / "dump.sql")
    assert (done.code, done.err) == (0, "")
    assert exported(tmp_path / "out") == truth("mysql")


# One file a table -----------------------------------------------------------------------------------------------------


def parts() -> dict[str, str]:
    """Table -> its part of the default dump, each with the head."""
    text = (STORE / "meta.default.sql").read_text("utf-8", "surrogateescape")
    head, *found = text.split("-- Table structure for table ")
    foot = "\n/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;\n-- Dump completed on 2021-03-01\n"
    return {p.split("`")[1]: head + "-- Table structure for table " + p.rstrip() + foot for p in found}


@pytest.mark.parametrize("name", ["milvus_{}.sql", "{}.sql", "milvus.{}.sql"])
def test_a_folder_of_one_file_a_table(name: str, tmp_path: Path) -> None:
    for table, text in parts().items():
        (tmp_path / name.format(table)).write_text(text, "utf-8", "surrogateescape")
    (tmp_path / "notes.txt").write_text("made by hand\n")
    found = read_given(tmp_path)
    assert rows(found) == rows(read_given(STORE / "meta.default.sql"))
    assert severities(found) == set()


def test_a_dump_that_was_cut_by_tables(tmp_path: Path) -> None:
    """Only the last part has the lines that end a dump; a part that lacks its own end is cut."""
    head, *found = (STORE / "meta.default.sql").read_text("utf-8", "surrogateescape").split("-- Table structure for table ")
    for part in found:
        text = head + "-- Table structure for table " + part
        (tmp_path / f"milvus_{part.split('`')[1]}.sql").write_text(text, "utf-8", "surrogateescape")
    assert severities(read_given(tmp_path)) == set()
    cut = tmp_path / "milvus_TableFiles.sql"
    cut.write_text(cut.read_text("utf-8", "surrogateescape").partition("INSERT INTO")[0], "utf-8", "surrogateescape")
    assert "error" in {f.severity.value for f in read_given(tmp_path).findings}


@pytest.mark.parametrize(("structure", "data"), [("{}.sql", "{}.txt"), ("milvus@{}.sql", "milvus@{}@@0.tsv.gz")])
def test_a_folder_with_rows_separated_by_tabs(structure: str, data: str, tmp_path: Path) -> None:
    """mysqldump --tab and MySQL Shell."""
    right = read_dump(STORE / "meta.default.sql").tables
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\0": "\\0"})
    for table, text in parts().items():
        made = text.partition("LOCK TABLES")[0] + "\n/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;\n-- Dump completed\n"
        (tmp_path / structure.format(table)).write_text(made, "utf-8", "surrogateescape")
        lines = [
            "\t".join("\\N" if v is None else str(v).translate(escapes) for v in row.values()) + "\n" for row in right[table]
        ]
        content = "".join(lines).encode("utf-8", "surrogateescape")
        path = tmp_path / data.format(table)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    found = read_given(tmp_path)
    assert rows(found) == rows(read_given(STORE / "meta.default.sql"))
    assert severities(found) == set()


def test_a_folder_or_archive_with_a_database(tmp_path: Path) -> None:
    meta = STORES / "flat_basic" / "store" / "db" / "meta.sqlite"
    right = rows(read_given(meta))
    (tmp_path / "a").mkdir()
    shutil.copy(meta, tmp_path / "a" / "meta.sqlite")
    assert rows(read_given(tmp_path / "a")) == right
    (tmp_path / "meta.sqlite.gz").write_bytes(gzip.compress(meta.read_bytes()))
    found = read_given(tmp_path / "meta.sqlite.gz")
    assert (rows(found), found.origin) == (right, str(tmp_path / "meta.sqlite.gz"))
    _zip(tmp_path / "a.zip", {"db/meta.sqlite": meta.read_bytes()})
    assert rows(read_given(tmp_path / "a.zip")) == right


def test_several_dumps_in_a_folder_are_a_question(tmp_path: Path) -> None:
    for name in ("a.sql", "b.sql"):
        shutil.copy(STORE / "meta.default.sql", tmp_path / name)
    with pytest.raises(UsageError, match=r"several dumps or databases \(a.sql, b.sql\)"):
        read_given(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"the catalog is on the other server\n", "neither a catalog nor a dump of one: it begins with 'the catalog is"),
        (b"<!DOCTYPE html>\n<html></html>", "neither a catalog nor a dump"),
        (b"", "the file is empty"),
        (gzip.compress(b"some notes", mtime=0), "packed, and what is in it is neither"),
    ],
)
def test_what_is_no_catalog_is_never_called_a_damaged_one(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(StoreError, match=text) as e:
        read_given(tmp_path / "notes.txt")
    assert "damaged" not in str(e.value)
    with pytest.raises(
        UsageError, match=r"found a folder with neither a metadata database nor a dump of one; there are: notes\.txt"
    ):
        read_given(tmp_path)


# Damage ---------------------------------------------------------------------------------------------------------------


def small(form: str) -> bytes:
    """A short dump in the form of one of the real ones."""
    if form == "sqlite":
        return _sqlite_dump()
    return (STORE / f"meta.{form}").read_bytes()


def _sqlite_dump() -> bytes:
    connection = sqlite3.connect(":memory:")
    meta = STORES / "flat_basic" / "store" / "db" / "meta.sqlite"
    with sqlite3.connect(f"{meta.absolute().as_uri()}?mode=ro&immutable=1", uri=True) as source:
        source.backup(connection)
    source.close()
    lines = "\n".join(connection.iterdump()) + "\n"
    connection.close()
    return lines.encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["default.sql", "data_only.sql", "complete_insert.sql", "compatible_ansi.sql", "xml", "sqlite"]
)
def test_a_damaged_byte_never_loses_rows_in_silence(form: str, tmp_path: Path) -> None:
    """Every part of a dump is hit with each kind of byte: what then lacks rows says so, or is refused."""
    data = small(form)
    path = tmp_path / "meta.sql"
    path.write_bytes(data)
    right = {t: len(found) for t, found in read_dump(path).tables.items()}
    assert not read_dump(path).truncated
    for n, at in enumerate(range(n_first(form), len(data), max(1, len(data) // 150))):
        byte = (b"F", b"\0", b"'", b"-", b"#", b"`", b";")[n % 7]
        path.write_bytes(data[:at] + byte + data[at + 1 :])
        try:
            dump = read_dump(path)
        except MilvusOfflineError:
            continue
        lost = {t: n for t, n in right.items() if t in ROWS and len(dump.tables.get(t, ())) < n}
        assert dump.truncated or not lost, (at, byte, data[max(0, at - 40) : at + 20], lost)


def n_first(form: str) -> int:
    """Each form is hit at other places."""
    return sum(map(ord, form)) % 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("INSERT INTO `Tables`", "INSFRT INTO `Tables`"),
        ("INSERT INTO `Tables`", "-- ERT INTO `Tables`"),
        ("INSERT INTO `Tables`", "\0" * 20),
        ("for table `TableFiles`\n--\n\nLOCK TABLES", "\0" * 30),
        ("CREATE TABLE `Tables`", "CREATE TABLE `Tbbles`"),
        ("INSERT INTO `TableFiles`", "INSERT INTO `TableFilfs`"),
        ("`table_id`", "`tabxe_id`"),
        (" VALUES", " VALUFS"),
        ("),\n(", ")x\n("),
        ("(1,'", "(1,"),
        ("-- Dump completed", "-- Dump complexed"),
    ],
)
def test_damage_is_an_error_with_its_place(old: str, new: str, tmp_path: Path) -> None:
    store = copy_store("mysql", tmp_path)
    text = (STORE / "meta.default.sql").read_text("utf-8", "surrogateescape")
    assert old in text
    (tmp_path / "dump.sql").write_text(text.replace(old, new, 1), "utf-8", "surrogateescape")
    done = call("export", store, tmp_path / "out", "--catalog", tmp_path / "dump.sql")
    assert done.code in (1, 3)
    if done.code == 3:
        catalog = read_given(tmp_path / "dump.sql")
        told = [f for f in catalog.findings if f.code in ("dump-damaged", "dump-truncated")]
        assert told and all(f.severity is Severity.ERROR for f in told)
