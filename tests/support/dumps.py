"""A small catalog in every form that dump tools give it, and what may become of a byte of it.

`FORMS`: name -> the files of the dump. The frame of each is what the tool prints around its rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from milvus_offline.milvus1.catalog.columns import SCHEMA

ROWS: dict[str, list[tuple[Any, ...]]] = {
    "Environment": [(95083,)],
    "Fields": [],
    "TableFiles": [
        (
            1,
            "c",
            "1795371749215519000",
            1,
            "1795371749215519000",
            1,
            36000,
            500,
            1795371749248265,
            1795371749215521,
            1261023,
            0,
        ),
        (
            2,
            "77",
            "1795371749234708000",
            1,
            "1795371749234708000",
            1,
            21600,
            300,
            1795371749247726,
            1795371749234710,
            1261023,
            0,
        ),
    ],
    "Tables": [
        (1, "c", 0, 8, 1795371749000000, 2, 1048576, 2, '{"nlist":16}', 1, "", "", "1.1.1", 7),
        (2, "77", 0, 8, 1795371749100000, 0, 1048576, 2, '{"nlist":16}', 1, "c", "p 'q'", "1.1.1", 7),
    ],
}
_COLUMNS = {table: [c for c in columns if c.mysql and "PRIMARY" not in c.name] for table, columns in SCHEMA.items()}
_NAMES = {table: [c.name.strip("`") for c in columns] for table, columns in _COLUMNS.items()}

_HEAD = """-- MySQL dump 10.13  Distrib 8.0.36, for Linux (x86_64)
--
-- Host: localhost    Database: milvus
-- ------------------------------------------------------
-- Server version\t8.0.36

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!50503 SET NAMES utf8mb4 */;
/*!40103 SET @OLD_TIME_ZONE=@@TIME_ZONE */;
/*!40111 SET @OLD_SQL_NOTES=@@SQL_NOTES, SQL_NOTES=0 */;
"""
_FOOT = """/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE */;
/*!40101 SET CHARACTER_SET_CLIENT=@OLD_CHARACTER_SET_CLIENT */;
/*!40111 SET SQL_NOTES=@OLD_SQL_NOTES */;

-- Dump completed on 2021-03-01 10:10:10
"""


def _value(value: Any) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _row(row: tuple[Any, ...]) -> str:
    return f"({','.join(map(_value, row))})"


def _create(table: str) -> str:
    lines = [f"  `{c.name.strip('`')}` {c.mysql.lower().replace(' primary key', '').strip()}" for c in _COLUMNS[table]]
    if _NAMES[table][0] == "id":
        lines.append("  PRIMARY KEY (`id`)")
    return f"CREATE TABLE `{table}` (\n" + ",\n".join(lines) + "\n) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;\n"


def _structure(table: str) -> str:
    note = f"--\n-- Table structure for table `{table}`\n--\n\nDROP TABLE IF EXISTS `{table}`;\n"
    return f"\n{note}/*!50503 SET character_set_client = utf8mb4 */;\n{_create(table)}"


def _data(table: str, style: str) -> str:
    rows = ROWS[table]
    names = f" ({', '.join(f'`{n}`' for n in _NAMES[table])})" if "complete" in style else ""
    if "single" in style:
        inserts = "".join(f"INSERT INTO `{table}`{names} VALUES {_row(r)};\n" for r in rows)
    else:
        inserts = f"INSERT INTO `{table}`{names} VALUES {','.join(map(_row, rows))};\n" if rows else ""
    return (
        f"\n--\n-- Dumping data for table `{table}`\n--\n\nLOCK TABLES `{table}` WRITE;\n"
        f"/*!40000 ALTER TABLE `{table}` DISABLE KEYS */;\n{inserts}/*!40000 ALTER TABLE `{table}` ENABLE KEYS */;\n"
        "UNLOCK TABLES;\n"
    )


def _mysqldump(style: str) -> dict[str, bytes]:
    return {"meta.sql": (_HEAD + "".join(_structure(t) + _data(t, style) for t in ROWS) + _FOOT).encode()}


def _xml() -> dict[str, bytes]:
    def escaped(value: Any) -> str:
        return str(value).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")

    parts = []
    for table, rows in ROWS.items():
        columns = (f'\t\t<field Field="{n}" Type="int" Null="NO" Key="" Extra="" Comment="" />\n' for n in _NAMES[table])
        options = f'\t\t<options Name="{table}" Engine="InnoDB" Version="10" Rows="{len(rows)}" Comment="" />\n'
        parts.append(f'\t<table_structure name="{table}">\n{"".join(columns)}{options}\t</table_structure>\n')
        parts.append(f'\t<table_data name="{table}">\n')
        for row in rows:
            fields = (f'\t\t<field name="{n}">{escaped(v)}</field>\n' for n, v in zip(_NAMES[table], row, strict=True))
            parts.append(f"\t<row>\n{''.join(fields)}\t</row>\n")
        parts.append("\t</table_data>\n")
    head = (
        '<?xml version="1.0"?>\n<mysqldump xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n<database name="milvus">\n'
    )
    return {"meta.xml": (head + "".join(parts) + "</database>\n</mysqldump>\n").encode()}


def _tabs(table: str) -> bytes:
    def text(value: Any) -> str:
        return str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")

    return "".join("\t".join(map(text, r)) + "\n" for r in ROWS[table]).encode()


def _tab() -> dict[str, bytes]:
    made = {f"{t}.sql": (_HEAD + _structure(t) + _FOOT).encode() for t in ROWS}
    return made | {f"{t}.txt": _tabs(t) for t in ROWS}


def _mydumper() -> dict[str, bytes]:
    head = "/*!40101 SET NAMES binary*/;\n/*!40014 SET FOREIGN_KEY_CHECKS=0*/;\n"
    told = "".join(f"\n[`milvus`.`{t}`]\nreal_table_name={t}\nrows = {len(r)}\n" for t, r in ROWS.items())
    files = {
        "metadata": f"# Started dump at: 2023-03-01 10:10:10\n[config]\nquote-character = BACKTICK\n{told}"
        "# Finished dump at: 2023-03-01 10:10:11\n",
        "milvus-schema-create.sql": f"{head}CREATE DATABASE /*!32312 IF NOT EXISTS*/ `milvus`;\n",
    }
    for table, rows in ROWS.items():
        files[f"milvus.{table}-schema.sql"] = f"{head}\n{_create(table)}"
        if rows:
            values = "\n,".join(map(_row, rows))
            zone = "/*!40103 SET TIME_ZONE='+00:00' */;\n"
            files[f"milvus.{table}.00000.sql"] = f"{head}{zone}INSERT INTO `{table}` VALUES{values};\n"
    return {name: text.encode() for name, text in files.items()}


def _shell() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    sizes = []
    for table in ROWS:
        head = (
            "-- MySQLShell dump 2.0.1  Distrib Ver 8.0.36 for Linux on x86_64\n--\n-- Host: localhost    Database: milvus    "
        )
        files[f"milvus@{table}.sql"] = (
            f"{head}Table: {table}\n-- ------------------------------------------------------\n\n--\n"
            f"-- Table structure for table `{table}`\n--\n\n/*!50503 SET character_set_client = utf8mb4 */;\n"
            f"{_create(table).replace('CREATE TABLE', 'CREATE TABLE IF NOT EXISTS')}"
        ).encode()
        data = _tabs(table)
        files[f"milvus@{table}@@0.tsv"] = data
        files[f"milvus@{table}@@0.tsv.idx"] = struct.pack(">Q", len(data))
        sizes.append(f'"milvus@{table}@@0.tsv": {len(data)}')
    files["@.json"] = (
        b'{\n    "dumper": "mysqlsh Ver 8.0.36",\n    "version": "2.0.1",\n    "schemas": [\n        "milvus"\n    ]\n}'
    )
    files["@.done.json"] = (
        '{\n    "end": "2021-03-01 10:10:11",\n    "chunkFileBytes": {' + ", ".join(sizes) + "}\n}"
    ).encode()
    return files


FORMS: dict[str, dict[str, bytes]] = {
    "default": _mysqldump(""),
    "complete": _mysqldump("complete"),
    "single": _mysqldump("single"),
    "complete single": _mysqldump("complete single"),
    "xml": _xml(),
    "tab": _tab(),
    "mydumper": _mydumper(),
    "shell": _shell(),
}


def changes(data: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """(what was done, the bytes with it): one byte replaced by others, a flipped bit, or deleted."""
    seen = {data[at]}
    for byte in (
        b"\0",
        b"'",
        b"-",
        b"#",
        b"`",
        b";",
        b"F",
        b"\n",
        b",",
        b")",
        b"/",
        bytes([data[at] ^ 1]),
        bytes([data[at] ^ 0x20]),
    ):
        if byte[0] not in seen:
            seen.add(byte[0])
            yield repr(byte), data[:at] + byte + data[at + 1 :]
    yield "deleted", data[:at] + data[at + 1 :]
