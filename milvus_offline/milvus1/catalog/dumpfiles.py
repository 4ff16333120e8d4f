"""What dump tools note beside a folder of files: how many rows and bytes they wrote. A file that lost some says so by this."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...names import printable
from .columns import canonical_table
from .rows import RawTables

_MOST = 1 << 24
_SECTION = re.compile(r"^\[`(?P<database>[^`\n]+)`\.`(?P<table>[^`\n]+)`\]$(?P<lines>(?:\n(?!\[).*)*)", re.M)
_PACKED = re.compile(r"\.(?:gz|bz2|xz|zst)(?=$|\.idx$)")
_OURS = re.compile(r"@(?:Tables|TableFiles|Environment|Fields)@", re.I)
_ROWS = re.compile(r"^rows *= *(\d{1,18})$", re.M)


@dataclass(frozen=True)
class Witnesses:
    """`rows`: (database, table) -> rows that a tool counted, and where it says so. `sizes`: file -> bytes, packed or not."""

    rows: Mapping[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    packed: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What contradicts already."""

    def against(self, databases: Mapping[str | None, RawTables], lengths: Mapping[str, int]) -> Iterator[str]:
        """What the rows and the unpacked bytes that were read contradict."""
        yield from self.problems
        read = {_plain(name): length for name, length in lengths.items()}
        for (database, name), (wanted, where) in self.rows.items():
            table = canonical_table(name) or name
            found = sum(len(t[table]) for d, t in databases.items() if d in (database, None) and table in t)
            if found != wanted:
                yield f"{found} rows of {table}, of which {where} counts {wanted}"
        for name, (wanted, where) in self.sizes.items():
            if name in read and wanted not in (read[name], self.packed.get(name)):
                yield f"{read[name]} bytes in {name}, of which {where} counts {wanted}"


def witnesses_in(files: Iterable[Path]) -> Witnesses:
    """The notes of mydumper (`metadata`) and of MySQL Shell (`@.json`, `@.done.json`, `….idx`) in a folder."""
    by_name = {_plain(p.name): p for p in files}
    rows: dict[tuple[str, str], tuple[int, str]] = {}
    sizes: dict[str, tuple[int, str]] = {}
    problems: list[str] = []
    if "metadata" in by_name:
        problems += _mydumper(_text(by_name["metadata"]), rows)
    if "@.json" in by_name:
        problems += _shell(by_name, rows, sizes)
    for name, path in by_name.items():
        data = name.removesuffix(".idx")
        if data != name and data in by_name:
            length = path.stat().st_size
            if length % 8:
                problems.append(f"a file {name} that is not what MySQL Shell writes")
            elif length:
                with path.open("rb") as file:
                    file.seek(-8, os.SEEK_END)
                    sizes[data] = (int.from_bytes(file.read(8), "big"), name)
    packed = {name: by_name[name].stat().st_size for name in sizes if name in by_name}
    return Witnesses(rows, sizes, packed, tuple(problems))


def _mydumper(text: str, rows: dict[tuple[str, str], tuple[int, str]]) -> Iterator[str]:
    for section in _SECTION.finditer(text):
        if canonical_table(section["table"]) is not None and (counted := _ROWS.search(section["lines"])):
            rows[section["database"], section["table"]] = (int(counted[1]), "the file metadata")
    started, finished = (re.search(rf"^#? ?{word} dump at", text, re.I | re.M) for word in ("Started", "Finished"))
    if started and not finished:
        yield "the file metadata without its last line: mydumper did not finish"


def _shell(
    files: Mapping[str, Path], rows: dict[tuple[str, str], tuple[int, str]], sizes: dict[str, tuple[int, str]]
) -> Iterator[str]:
    if "@.done.json" not in files:
        yield "no file @.done.json: MySQL Shell did not finish"
        return
    document: Any = None
    with suppress(ValueError, RecursionError):
        document = json.loads(_text(files["@.done.json"]))
    if not isinstance(document, dict):
        yield "a file @.done.json that is not what MySQL Shell writes"
        return
    chunks, tables = document.get("chunkFileBytes"), document.get("tableRows")
    for name, size in chunks.items() if isinstance(chunks, dict) else ():
        if not _OURS.search(name):
            continue
        if (file := files.get(_plain(name))) is None:
            yield f"no file {printable(name)}, which @.done.json lists"
        elif isinstance(size, int) and file.name == name:  # not where it was packed or unpacked since
            sizes[_plain(name)] = (size, "@.done.json")
    for database, counts in tables.items() if isinstance(tables, dict) else ():
        for table, count in counts.items() if isinstance(counts, dict) else ():
            if canonical_table(table) is not None and isinstance(count, int):
                rows[database, table] = (count, "@.done.json")


def _plain(name: str) -> str:
    """A file's name without what tells how it is packed: people unpack such folders, or pack them."""
    return _PACKED.sub("", name)


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST).decode("utf-8", "replace")
