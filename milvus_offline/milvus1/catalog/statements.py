"""The statements of a dump of SQL that tell of rows (FORMAT §16), put together from `tokens`.

Understood are INSERT, REPLACE, CREATE TABLE, DROP TABLE, USE, DELIMITER and SQLite's PRAGMA and ROLLBACK, in the spelling of
MySQL, MariaDB (also with ANSI quotes) and SQLite. Other statements that tools write are passed over, and so are rows of other
tables. What is neither a statement nor a comment is never passed over in silence: a line of a tool's own is a note, all else is
damage, and so is what a statement's own words contradict.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator
from pathlib import Path

from .columns import COLUMNS, canonical_table, create_columns, decode, is_milvus, is_misspelt, known_columns, unquote
from .dumprows import FoundRows
from .tokens import IDENTIFIER, LINE, LITERAL, PUNCTUATION, QUOTED, QUOTED_PLAIN, Cut, Strange, Tokens, shown, unquoted

MAX_CREATE = 1 << 20
"""Bytes of a CREATE TABLE statement."""
_PLAIN = re.compile(rb"'([^'\\\x00-\x1f\x7f-\xff]*)'|(-?\d{1,40}|NULL)")
_PLAIN_ROW = re.compile(rb"\((?:%b)(?:,(?:%b))*\)" % ((_PLAIN.pattern.replace(b"(", b"(?:"),) * 2))
_DELIMITER_BACK = re.compile(rb"\s*DELIMITER\s+;\s*$", re.I)
_UNISTR = re.compile(r"\\(?:\\|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|\+([0-9a-fA-F]{6})|([0-9a-fA-F]{4}))")

_KNOWN = frozenset(
    b"; INSERT REPLACE CREATE DROP USE PRAGMA ROLLBACK DELIMITER SET LOCK UNLOCK ALTER BEGIN START COMMIT ANALYZE CHANGE "
    b"SAVEPOINT RELEASE FLUSH TRUNCATE DELETE UPDATE CALL GRANT END PREPARE EXECUTE DEALLOCATE SELECT RESET STOP VACUUM".split()
)
"""The first words of statements that dump tools write."""
_MADE = frozenset(
    b"DATABASE SCHEMA VIEW TRIGGER PROCEDURE FUNCTION EVENT INDEX UNIQUE USER ALGORITHM DEFINER OR TEMPORARY PACKAGE ROLE "
    b"SEQUENCE SERVER FULLTEXT SPATIAL IF AGGREGATE SQL VIRTUAL PREPARE SYSTEM ONLINE".split()
)
"""What else than tables is created and dropped."""
TOOL_LINE = re.compile(
    rb"\s*(?:(?:mysqldump|mysqlpump|mariadb-dump|mysql|mariadb|mydumper|docker|kubectl|\w*sh): (?!.*\bINTO\b)"
    rb"|(?:(?i:warning|note|info|\[warning\])\b|Enter password|\*\* ?\(|Defaulted container|Unable to use a TTY"
    rb"|(?:real|user|sys)\s"
    rb"|\d{4}-\d\d-\d\d)[^`;]*$)"
)
"""Lines that tools print beside a dump, and that `2>&1` or a terminal of docker put into it."""
_LOWER = [t.lower() for t in COLUMNS]


FRAME = frozenset({"banner", "settings"})
"""What mysqldump's first lines open and its last ones close."""


class Statements(Tokens):
    """Walks the statements of a dump, one after the other."""

    def __init__(self, path: Path, first: bytes, source: Generator[bytes], found: FoundRows, notes: list[str]) -> None:
        super().__init__(path, first, source, found)
        self.notes = notes
        self.database: str | None = None
        self.columns: dict[tuple[str | None, str], tuple[str, ...]] = {}
        self.made: set[tuple[str | None, str]] = set()
        """Tables of any name that the dump creates."""
        self.name = ""
        """Of the table that was named last."""
        self.cut = False
        self.filled: dict[tuple[str | None, str], int] = {}
        """Tables of any name that rows are inserted into, with the first place."""
        self.not_utf8 = 0

    def read(self) -> bool:
        """Reads everything; returns whether rows may be missing."""
        try:
            while self._space():
                self._statement()
        except Cut:
            self.cut = True
        if self.not_utf8:
            self.notes.append(f"{self.not_utf8} texts are not UTF-8; they are read as latin1")
        for (database, table), at in self.filled.items():
            if self.columns and (database, table.lower()) not in {(d, t.lower()) for d, t in self.made}:
                self.damaged(at, f"rows of a table {table!r} that the dump does not create")
        return self.cut or not self.open <= FRAME

    @property
    def unclosed(self) -> bool:
        """Whether the last lines of a dump are missing; of one that was split by tables, only the last part has them."""
        return bool(self.open & FRAME)

    # Statements

    def _statement(self) -> None:
        start = self.base + self.at
        word = self._word().upper()
        if word not in _KNOWN:
            self.at = start - self.base
            self._foreign(start)
            return
        try:
            if word == b";":
                return
            if word == b"DELIMITER":
                self._delimiter()
                return
            if word in (b"INSERT", b"REPLACE"):
                self._insert()
            elif word == b"CREATE":
                self._create()
            elif word == b"DROP":
                self._drop()
            elif word == b"USE":
                self.database = _name(self._word())
            elif word == b"PRAGMA":  # only SQLite writes this
                self.backslash = False
            elif word in (b"BEGIN", b"START"):
                self.open.add("transaction")
            elif word == b"COMMIT":
                self.open.discard("transaction")
            elif word == b"LOCK":
                self.open.add("lock")
            elif word == b"UNLOCK":
                self.open.discard("lock")
            elif word == b"SET":
                self._set()
            elif word == b"ROLLBACK":
                self.damaged(start, "ROLLBACK: SQLite met errors while it made the dump")
        except Strange:
            self.damaged(start, f"a statement that is not understood at byte {self.base + self.at}")
        self._skip()

    def _foreign(self, start: int) -> None:
        """Passes over a line that is no statement."""
        line = self._take(LINE) or self._need(PUNCTUATION)
        if TOOL_LINE.match(line.rstrip()):
            self.found.foreign.append(shown(line))
        else:
            self.damaged(start, f"neither a statement nor a comment ({shown(line)})")

    def _set(self) -> None:
        """mysqldump saves the settings in its first lines and restores them in its last ones."""
        words = self._word(), self._word()
        if words == (b"@", b"OLD_SQL_NOTES"):
            self.open.add("settings")
        elif words[0] == b"SQL_NOTES":
            self.open.discard("settings")

    def _delimiter(self) -> None:
        """Passes over the bodies of triggers and procedures: everything until `DELIMITER ;`."""
        line = self._take(LINE)
        if line.strip() == b";":
            return
        while line := self._take(LINE):
            if _DELIMITER_BACK.match(line):
                return
        raise Cut

    def _table(self, word: bytes | None = None) -> tuple[str | None, str | None]:
        """`name` or `database.name` -> (database, canonical name or None)."""
        word = word or self._word()
        self.mysql = self.mysql or word.startswith(b"`")
        database, name = self.database, _name(word)
        if self._peek() == b".":
            self._need(PUNCTUATION)
            database, name = name, _name(self._word())
        self.name = name
        return database, canonical_table(name)

    def _create(self) -> None:
        kind = self._word().upper()
        if kind != b"TABLE":
            if kind not in _MADE:
                raise Strange
            return
        at, word = self.base + self.at, self._word()
        if word.upper() == b"IF":
            self._word()
            self._word()
            word = self._word()
        database, table = self._table(word)
        self.made.add((database, self.name))
        if self._peek() != b"(":
            return
        text = self._parenthesised()
        columns = create_columns(text)
        if self._peek() == b"," or any(set(c) & set("\n(,") for c in columns):
            raise Strange
        if table is None:
            if (like := next((t for t in COLUMNS if is_milvus(t, columns)), None)) and len(columns) > 3:
                self.damaged(at, f"a table {self.name!r} with the columns of {like}")
            return
        if is_milvus(table, columns):
            if is_misspelt(table, columns):
                self.damaged(at, f"columns of {table} have other names than Milvus gives them")
                columns = known_columns(table, len(columns)) or columns
            self.columns[database, table] = columns
            self.found.declare(database, table)
        elif len(set(columns) & set(known := known_columns(table, len(columns)) or ())) >= len(known) // 2 and known:
            self.damaged(
                at, f"columns of {table} have other names than Milvus gives them; they are read in the order of Milvus' columns"
            )
            self.columns[database, table] = known
            self.found.declare(database, table)
        else:
            if sum(len(c) > 6 and c in text for c in COLUMNS[table][-1]) >= 3:
                raise Strange  # another application's table of this name has other columns
            self.columns[database, table] = ()

    def _parenthesised(self) -> str:
        """The text from here to the matching parenthesis, without comments."""
        parts: list[bytes] = []
        depth = size = 0
        while True:
            if (mark := self._peek()) == b"'":  # a comment or default; in SQLite's oldest schema also a name
                text = self._text(self._need(QUOTED if self.backslash else QUOTED_PLAIN))
                piece = mark + text.replace(mark, mark * 2) + mark
            else:
                piece = self._take(IDENTIFIER) or self._need(PUNCTUATION)
            parts.append(piece)
            size += len(piece)
            if size > MAX_CREATE:
                raise Strange
            if piece == b";":
                raise Strange
            depth += (piece == b"(") - (piece == b")")
            if depth == 0:
                return b" ".join(parts).decode("utf-8", "replace")

    def _drop(self) -> None:
        kind = self._word().upper()
        if kind != b"TABLE":
            if kind not in _MADE:
                raise Strange
            return
        word = self._word()
        if word.upper() == b"IF":
            self._word()
            word = self._word()
        database, table = self._table(word)
        if table is not None:
            self.columns.pop((database, table), None)
            self.found.drop(database, table)

    def _insert(self) -> None:
        for _ in range(6):  # LOW_PRIORITY, IGNORE, OR REPLACE
            if self._word().upper() == b"INTO":
                break
        else:
            raise Strange
        at = self.base + self.at
        database, table = self._table()
        self.filled.setdefault((database, self.name), at)
        if table is None:
            if (database, self.name) not in self.made and difflib.get_close_matches(self.name.lower(), _LOWER, 1, 0.8):
                self.damaged(at, f"rows of a table {self.name!r}, a name close to one of Milvus")
            return
        columns: tuple[str, ...] | None = None
        if self._peek() == b"(":
            columns = create_columns(self._parenthesised())
        if self._word().upper() not in (b"VALUES", b"VALUE"):
            raise Strange
        if columns is None:
            columns = self.columns.get((database, table))
        if columns is not None and is_misspelt(table, columns) and self.columns.get((database, table)) != ():
            if (known := known_columns(table, len(columns))) is None:
                raise Strange
            self.damaged(
                at, f"columns of {table} have other names than Milvus gives them; they are read in the order of Milvus' columns"
            )
            columns = known
        if columns is not None and not is_milvus(table, columns):
            if self.columns.get((database, table)) != () and sum(c in COLUMNS[table][-1] for c in columns) >= 3:
                raise Strange
            return
        self._rows(database, table, columns)

    def _rows(self, database: str | None, table: str, columns: tuple[str, ...] | None) -> None:
        # where SQLite's PRAGMA is cut off, its `VALUES(` tells: mysqldump puts a blank or a line break before the row
        backslash = self.backslash and (self.mysql or self.buffer[self.at : self.at + 1] != b"(")
        if self._peek() != b"(":
            raise Strange
        while self._peek() == b"(":
            values = self._plain_row() or self._any_row(backslash)
            names = columns or known_columns(table, len(values))
            if names is None:
                return  # not Milvus' table
            if len(names) != len(values):
                raise Strange
            self.found.add(database, table, names, values)
            if self._peek() == b",":
                self._need(PUNCTUATION)
                if self._peek() != b"(":
                    raise Strange
            elif self._peek() not in (b";", b"O"):  # ON DUPLICATE KEY
                raise Strange

    def _plain_row(self) -> list[object]:
        """A row of plain numbers, NULL and ASCII text without escapes, as nearly all are; empty for any other."""
        match = _PLAIN_ROW.match(self.buffer, self.at)
        if match is None or match.end() == len(self.buffer):
            return []
        self.at = match.end()
        return [t.decode() if t else None if n == b"NULL" else int(n) if n else "" for t, n in _PLAIN.findall(match[0])]

    def _any_row(self, backslash: bool) -> list[object]:
        self._need(PUNCTUATION)
        values: list[object] = []
        mark = b","
        while mark == b",":
            values.append(self._value(backslash))
            self._peek()
            mark = self._need(PUNCTUATION)
        if mark != b")":
            raise Strange
        return values

    def _value(self, backslash: bool, depth: int = 0) -> object:
        if depth > 8:
            raise Strange
        if self._peek() in (b"'", b'"'):
            token = self._need(QUOTED if backslash else QUOTED_PLAIN)
            self._text(token)
            raw = unquoted(token, backslash)
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                self.not_utf8 += 1
                return decode(raw)
        word = self._need(LITERAL)
        if word[:2] in (b"0x", b"0X"):
            return _unhex(word[2:])
        if word[1:2] == b"'":
            return _unhex(word[2:-1]) if word[:1] in b"xX" else _unbit(word[2:-1])
        upper = word.upper()
        if upper == b"NULL":
            return None
        if upper in (b"TRUE", b"FALSE"):
            return int(upper == b"TRUE")
        if word[:1] == b"_":  # a character set: _binary '...', _utf8mb4 X'...'
            return self._value(backslash, depth + 1)
        if word[:1].isalpha():
            return self._function(upper, backslash, depth)
        return int(word) if word.lstrip(b"-+").isdigit() and len(word) <= 40 else word.decode()

    def _function(self, name: bytes, backslash: bool, depth: int) -> object:
        """The three functions that SQLite's `.dump` writes for line breaks: replace, char and unistr."""
        if self._peek() != b"(":
            raise Strange
        arguments: list[object] = []
        mark = self._need(PUNCTUATION)
        while mark != b")" and len(arguments) < 64:
            arguments.append(self._value(backslash, depth + 1))
            self._peek()
            mark = self._need(PUNCTUATION)
        texts = [a for a in arguments if isinstance(a, str)]
        if name == b"REPLACE" and len(texts) == len(arguments) == 3 and texts[1]:
            return texts[0].replace(texts[1], texts[2])
        if name == b"UNISTR" and len(texts) == len(arguments) == 1:
            return _UNISTR.sub(_unistr, texts[0])
        if name == b"CHAR" and all(isinstance(a, int) and 0 <= a < 0xD800 for a in arguments):
            return "".join(chr(a) for a in arguments if isinstance(a, int))
        raise Strange


def _name(raw: bytes) -> str:
    return unquote(decode(raw))


def _unhex(digits: bytes) -> bytes:
    return bytes.fromhex("0" * (len(digits) % 2) + digits.decode())


def _unbit(digits: bytes) -> int:
    if not re.fullmatch(rb"[01]{0,64}", digits):
        raise Strange
    return int(digits or b"0", 2)


def _unistr(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3] or match[4]
    number = int(digits, 16) if digits else 0x5C
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
