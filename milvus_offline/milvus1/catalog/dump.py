"""The catalog from a dump: mysqldump's SQL and XML, and SQLite's `.dump`, plain or compressed (FORMAT §2.2, §2.3, §16).

A dump is read as a stream; statements of other tables are skipped without being held. A dump that was cut gives the rows
before the cut. SQL is never executed: the few statements that matter are understood, all others are passed over.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ... import fileio
from ...errors import DamageError, MissingPackageError, StoreError
from ...names import printable
from .columns import (
    COLUMNS,
    canonical_columns,
    canonical_table,
    decode,
    is_milvus,
    is_misspelt,
    known_columns,
)
from .dumpfiles import Witnesses
from .dumprows import Dump, FoundRows
from .statements import TOOL_LINE, Statements

__all__ = ["Dump", "looks_like_dump", "read_dump"]

CHUNK = 1 << 20
MAX_VALUE = 16 << 20
"""The longest value or tag that is accepted in XML; Milvus' own columns hold at most 512 characters."""
_PACKERS: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ\x00": lzma}
_ZSTD = b"\x28\xb5\x2f\xfd"
_CUT = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
_CUT_NOTE = "the compressed file is damaged or cut"

_LEADING_COMMENTS = re.compile(rb"\A(?:\s+|--[^\n]*(?:\n|\Z)|#[^\n]*(?:\n|\Z)|/\*(?:(?!!|M!)|M!999999).*?\*/)*", re.S)
_BANNER = re.compile(rb"^-- (?:MySQL|MariaDB) dump ", re.M)
_XML_AFTER = re.compile(rb"^<\?xml[^>]*>\s*<mysqldump\b", re.M)
_XML_START = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*<(?:!DOCTYPE\s+)?mysqldump\b", re.S)
_SQL_START = re.compile(
    rb"(?:/\*M?!\d*\s*)?(?:(?:INSERT|REPLACE)\s+(?:\w+\s+)*INTO\b|CREATE\s+(?:TABLE|DATABASE|SCHEMA)\b|DROP\s+(?:TABLE|DATABASE)\b"
    rb"|LOCK\s+TABLES\b|USE\s+[`\"\w]|SET\s+[@\w]|BEGIN(?:\s+TRANSACTION)?\s*;|START\s+TRANSACTION|PRAGMA\s+\w)",
    re.I,
)


def looks_like_dump(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a dump of SQL or mysqldump's XML; False also for what cannot be read."""
    try:
        head = next(chunks(fileio.as_path(path), []), b"")[: 1 << 16]
    except (OSError, DamageError):
        return False
    return is_dump(head)


def is_dump(head: bytes) -> bool:
    """The same of its first bytes; lines that a tool printed may stand before it."""
    if _BANNER.search(head) or _XML_AFTER.search(head[:4096]):
        return True
    for _ in range(20):
        if _XML_START.match(head) or _SQL_START.match(_LEADING_COMMENTS.sub(b"", head)):
            return True
        line, newline, head = head.partition(b"\n")
        if not newline or not TOOL_LINE.match(line.rstrip()):
            return False
    return False


def read_dump(path: str | os.PathLike[str], database: str | None = None) -> Dump:
    """Reads the Milvus tables of a dump; `database` chooses where a dump holds several that have them.

    Raises UsageError when the choice is missing or wrong, StoreError when the dump cannot be read or has no Milvus tables,
    DamageError for what no dump holds (an entity declaration in XML, a string of more than 16 MiB where a row is expected).
    """
    path = fileio.as_path(path)
    notes: list[str] = []
    found = FoundRows(path)
    return found.choose(database, any(_read_into(found, path, notes)), notes)


def read_dumps(origin: Path, parts: Sequence[tuple[str | None, str, Path]], database: str | None, witnesses: Witnesses) -> Dump:
    """The same of a folder with one file a table: (database, table, file), those with the structure first.

    Files of SQL are read as dumps; others hold rows separated by tabs, as mysqldump --tab and MySQL Shell write them, in the
    order of the columns that the table's own file of SQL gives. What the tool noted beside is compared with what was read.
    """
    notes: list[str] = []
    found = FoundRows(origin)
    cut, frames = False, []
    lengths: dict[str, int] = {}
    columns: dict[tuple[str | None, str], tuple[str, ...]] = {}
    for name, table, path in parts:
        if looks_like_dump(path):
            part_is_cut, unclosed = _read_into(found, path, notes, name, columns)
            cut |= part_is_cut
            frames.append(unclosed)
        else:
            lengths[path.name] = _read_tabs(found, path, notes, name, table, columns)
    for what in witnesses.against(found.databases, lengths):
        found.damaged(what)
    return found.choose(database, cut or (bool(frames) and all(frames)), notes)


def _read_tabs(
    found: FoundRows,
    path: Path,
    notes: list[str],
    database: str | None,
    table: str,
    columns: dict[tuple[str | None, str], tuple[str, ...]],
) -> int:
    """Reads the rows of a file; its unpacked bytes."""
    length = 0
    name = canonical_table(table) or table
    rest, last = b"", b"\n"
    for chunk in (*chunks(path, notes), b""):
        last = chunk[-1:] or last
        length += len(chunk)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop() if chunk else b""
        while lines and lines[-1].endswith(b"\\") and not lines[-1].endswith(b"\\\\"):  # a line break within a value
            rest = lines.pop() + b"\n" + rest
        for line in filter(None, lines):
            values = [_field(v) for v in line.rstrip(b"\r").split(b"\t")]
            names = columns.get((database, name)) or known_columns(name, len(values))
            if names is None or len(names) != len(values):
                found.damaged(f"in {path.name} a line of {len(values)} values")
                continue
            found.add(database, name, names, values)
    if last != b"\n":
        found.damaged(f"in {path.name} a last line without its end")
    return length


_TAB_ESCAPES = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"0": b"\0", b"b": b"\b", b"Z": b"\x1a"}


def _field(raw: bytes) -> object:
    if raw == b"\\N":
        return None
    return decode(re.sub(rb"\\(.)", lambda m: _TAB_ESCAPES.get(m[1], m[1]), raw, flags=re.S))


def _read_into(
    found: FoundRows,
    path: Path,
    notes: list[str],
    database: str | None = None,
    columns: dict[tuple[str | None, str], tuple[str, ...]] | None = None,
) -> tuple[bool, bool]:
    """Reads one file; whether it is cut, and whether its last lines are missing.

    `columns` of tables, known from other files, are used and added to."""
    source = chunks(path, notes)
    try:
        first = next(source, b"")
        if after := _XML_AFTER.search(first[:4096]):
            found.foreign += [printable(line.decode("utf-8", "replace")) for line in first[: after.start()].splitlines()]
            first = first[after.start() :]
        if _XML_START.match(first[:4096]):
            cut, unclosed = _read_xml(path, first, source, found, notes), False
        else:
            reader = Statements(path, first, source, found, notes)
            reader.database = database
            if columns is not None:
                reader.columns = columns
                reader.made |= set(columns)
            cut, unclosed = reader.read(), reader.unclosed
    except OSError as e:
        raise StoreError(f"{path}: cannot read the dump: {e.strerror or e}") from e
    finally:
        source.close()
    return cut or any(n.startswith(_CUT_NOTE) for n in notes), unclosed


def unpacked(path: Path) -> bytes | None:
    """The first bytes of what a packed file holds; None for a file that is not packed."""
    with fileio.open_binary(path) as file:
        magic = file.read(6)
    if not magic.startswith((*_PACKERS, _ZSTD)):
        return None
    return next(chunks(path, []), b"")


def _zstd(path: Path, file: Any) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        what = f"{path}: packed with zstd: unpack it with zstd -d; reading it as it is"
        raise MissingPackageError(what, "pyarrow", "parquet", exit_code=1) from None
    return _Stream(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))


class _Stream:
    """pyarrow's stream with the method of Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read1(self, n: int) -> bytes:
        return bytes(self._stream.read(n))


def chunks(path: Path, notes: list[str], *, recode: bool = True) -> Generator[bytes]:
    """The unpacked bytes as they are; UTF-16 (a dump made with PowerShell's `>`) becomes UTF-8 unless `recode` is False."""
    with fileio.open_binary(path) as file:
        magic = file.read(6)
        file.seek(0)
        packer = next((p for m, p in _PACKERS.items() if magic.startswith(m)), None)
        stream: Any = packer.open(file) if packer else _zstd(path, file) if magic.startswith(_ZSTD) else file
        decoder: codecs.IncrementalDecoder | None = None
        first = True
        while True:
            try:
                chunk: bytes = stream.read1(CHUNK)  # gives what stands before a damage
            except (*_CUT, OSError) as e:
                if isinstance(e, OSError) and e.errno is not None:
                    raise
                notes.append(f"{_CUT_NOTE}: {e}")
                return
            if not chunk:
                return
            if first and recode and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                decoder = codecs.getincrementaldecoder("utf-16")("replace")
            elif first and recode and chunk.startswith(codecs.BOM_UTF8):
                chunk = chunk[3:]
            first = False
            if decoder is not None:
                chunk = decoder.decode(chunk).encode("utf-8", "replace")
            if chunk:
                yield chunk


# XML -----------------------------------------------------------------------------------------------------------------


_PRIVATE = 0xE000
"""mysqldump writes control characters as they are, which XML forbids: they travel as characters of private use."""
_XML_ILLEGAL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_XML_ILLEGAL_CR = re.compile(rb"[\x00-\x08\x0b-\x1f]")  # XML turns a lone CR into LF
_XML_BACK = {_PRIVATE + i: i for i in range(32)}


def _read_xml(path: Path, first: bytes, source: Generator[bytes], found: FoundRows, notes: list[str]) -> bool:
    """mysqldump --xml. Parsed as latin1, so that no byte is an error, and decoded like SQL. Returns whether it was cut."""
    from xml.parsers import expat

    parser = expat.ParserCreate("iso-8859-1")
    parser.buffer_text = True
    reader = _Xml(path, found)
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    chunk, fed = first, 0
    illegal = _XML_ILLEGAL if b"\r\n" in first else _XML_ILLEGAL_CR
    try:
        while chunk:
            parser.Parse(illegal.sub(lambda m: b"&#x%X;" % (_PRIVATE + m[0][0]), chunk), False)
            fed += len(chunk)
            if fed - parser.CurrentByteIndex > MAX_VALUE:
                raise DamageError(path, f"expected tags of at most {MAX_VALUE} bytes, found a longer one")
            chunk = next(source, b"")
        parser.Parse(b"", True)
    except expat.ExpatError as e:
        if chunk:
            notes.append(f"the XML cannot be read from line {e.lineno} on: {expat.ErrorString(e.code)}")
        return True
    return False


_TAGS = frozenset(
    {"mysqldump", "database", "table_structure", "table_data", "row", "field", "key", "options", "resultset"}
    | {"events", "event", "routines", "routine", "triggers", "trigger", "view"}
)


class _Xml:
    """Elements of mysqldump --xml -> rows."""

    def __init__(self, path: Path, found: FoundRows) -> None:
        self.path, self.found = path, found
        self.database: str | None = None
        self.table: str | None = None
        self.row: dict[str, object] = {}
        self.field: str | None = None
        self.parts: list[str] = []
        self.structure: list[str] = []
        self.made: set[tuple[str | None, str]] = set()
        self.name = ""
        self.nil = self.hex = False
        self.size = 0

    def refuse(self, *_: object) -> None:
        raise DamageError(self.path, "expected mysqldump's XML, found a document type or an entity declaration")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        name = _xml_text(attributes.get("name", ""))
        if tag in ("database", "table_data", "table_structure") or (tag == "field" and "Field" not in attributes):
            if not name:
                self.found.damaged(f"a <{tag}> without a name")
        elif tag not in _TAGS:
            self.found.damaged(f"an element <{printable(tag)}>")
        if tag == "database":
            self.database = name
        elif tag in ("table_data", "table_structure"):
            self.table, self.name = canonical_table(name), name
            self.structure = []
            if tag == "table_structure":
                self.made.add((self.database, name))
            elif self.made and (self.database, name) not in self.made:
                self.found.damaged(f"rows of a table {name!r} without its structure")
        elif tag == "row":
            self.row = {}
        elif tag == "field" and "Field" in attributes:
            self.structure.append(attributes["Field"])
        elif tag == "field" and self.table:
            self.field, self.parts, self.size = name, [], 0
            self.nil = attributes.get("xsi:nil") == "true"
            self.hex = attributes.get("xsi:type") == "xs:hexBinary"

    def text(self, text: str) -> None:
        if self.field is not None:
            self.size += len(text)
            if self.size > MAX_VALUE:
                raise DamageError(self.path, f"expected a value of at most {MAX_VALUE} bytes, found a longer one")
            self.parts.append(text)

    def end(self, tag: str) -> None:
        if tag == "field" and self.field is not None:
            value: object = _xml_text("".join(self.parts))
            if self.nil:
                value = None
            elif self.hex and isinstance(value, str):
                value = bytes.fromhex(value) if re.fullmatch(r"(?:[0-9a-fA-F]{2})*", value) else value
            self.row[self.field] = value
            self.field = None
        elif tag == "row" and self.table:
            columns = canonical_columns(list(self.row))
            if is_misspelt(self.table, columns):
                self.found.damaged(f"a row of {self.table} with fields of other names than Milvus gives them")
                columns = known_columns(self.table, len(columns)) or columns
            if is_milvus(self.table, columns):
                self.found.add(self.database, self.table, columns, list(self.row.values()))
        elif tag == "table_structure":
            columns = canonical_columns(self.structure)
            if self.table and is_milvus(self.table, columns):
                self.found.declare(self.database, self.table)
            elif self.table is None and len(columns) > 3 and any(is_milvus(t, columns) for t in COLUMNS):
                self.found.damaged(f"a table {self.name!r} with the columns of Milvus")
            self.table = None
        elif tag == "table_data":
            self.table = None


def _xml_text(text: str) -> str:
    try:
        return decode(text.translate(_XML_BACK).encode("latin-1"))
    except UnicodeEncodeError:  # a character reference
        return text
