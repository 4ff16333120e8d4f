"""The statements of a dump of SQL: a lexer over a stream of bytes, and the few statements that tell of rows (FORMAT §16).

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

from ...errors import DamageError
from ...names import printable
from .columns import COLUMNS, canonical_table, create_columns, decode, is_milvus, is_misspelt, known_columns, unquote
from .dumprows import Found

LOOKAHEAD = 2048
"""Bytes that are kept in the buffer, so that no identifier or number is cut."""
MAX_CREATE = 1 << 20
"""Bytes of a CREATE TABLE statement."""
MAX_TOKEN = 16 << 20
"""The longest string or comment that is accepted; Milvus' own columns hold at most 512 characters."""

_SPACE = re.compile(rb"(?:[\s\x00]+|\*/|/\*M?!(?!999999)\d{0,6}|/\*.*?\*/|--(?=\s|\Z)[^\n]*|#[^\n]*)", re.S)
_IDENTIFIER = re.compile(rb"`(?:[^`]|``){0,512}`|\"(?:[^\"]|\"\"){0,512}\"|\[[^\]]{0,512}\]|[\w$\x80-\xff]+")
_QUOTED = re.compile(rb"'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|\"[^\"\\]*(?:(?:\\.|\"\")[^\"\\]*)*\"", re.S)
_QUOTED_PLAIN = re.compile(rb"'[^']*(?:''[^']*)*'|\"[^\"]*(?:\"\"[^\"]*)*\"", re.S)
_LITERAL = re.compile(rb"0[xX][0-9a-fA-F]+|[xXbB]'[0-9a-fA-F]*'|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z_]\w*")
_PLAIN = re.compile(rb"'([^'\\\x00-\x1f\x7f-\xff]*)'|(-?\d{1,40}|NULL)")
_PLAIN_ROW = re.compile(rb"\((?:%b)(?:,(?:%b))*\)" % ((_PLAIN.pattern.replace(b"(", b"(?:"),) * 2))
_PUNCTUATION = re.compile(rb".", re.S)
_SKIP = re.compile(rb"(?:[^;'\"`#/\-*]+|'[^'\\]*'|\"[^\"\\]*\"|`[^`]*`|[/*](?=[^*/])|-(?=[^-]))+")
_BODY_PLAIN = {q: re.compile(b"[^Q]*(?:QQ[^Q]*)*".replace(b"Q", q)) for q in (b"'", b'"', b"`")}
_BODY = {q: re.compile(rb"[^\\Q]*(?:(?:\\.|QQ)[^\\Q]*)*".replace(b"Q", q), re.S) for q in (b"'", b'"')}
_BODY[b"`"] = _BODY_PLAIN[b"`"]
_LINE = re.compile(rb"[^\n]*\n?")
_DELIMITER_BACK = re.compile(rb"\s*DELIMITER\s+;\s*$", re.I)
_OPENING: dict[re.Pattern[bytes], tuple[bytes, ...]] = {
    _SPACE: (b"/*",),
    _QUOTED: (b"'", b'"'),
    _QUOTED_PLAIN: (b"'", b'"'),
    _LITERAL: (b"x'", b"X'", b"b'", b"B'"),
}
"""How tokens begin that may be cut by the end of the buffer."""
_ESCAPES = {b"0": b"\0", b"b": b"\b", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"Z": b"\x1a", b"%": b"\\%", b"_": b"\\_"}
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
_HIDDEN = re.compile(rb"\bINTO\b.*\bVALUES?\b|\bVALUES?\s*\(|\b(?:REATE|CREATE)\s+TABLE\s+(?!`?structure)[`\"\[]|^#", re.I)
"""A comment that was a statement before a byte of it was damaged; no tool of today writes comments with `#`."""


_OURS = (
    rb"(?:(?:INSERT|REPLACE)\s+INTO|CREATE\s+TABLE)\s+(?:IF\s+NOT\s+EXISTS\s+)?[`\"\[]?"
    rb"(?:Tables|TableFiles|Fields|Environment)\b"
)
_SWALLOWED = re.compile(rb"\)[,;]\s*\n|\n\s*(?:UNLOCK\s+TABLES|LOCK\s+TABLES|DROP\s+TABLE|/\*!|\) ENGINE)|\n\s*" + _OURS, re.I)
"""In a text: a quote was lost, and the next one ends it."""
_WITHIN = re.compile(rb"\n\s*" + _OURS, re.I)
"""In another statement: its end was lost."""


_LOWER = [t.lower() for t in COLUMNS]


class _Cut(Exception):
    """The dump ends within a statement."""


class _Strange(Exception):
    """A row is not written as any dump writes it."""


FRAME = frozenset({"banner", "settings"})
"""What mysqldump's first lines open and its last ones close."""


class Statements:
    """Walks the statements of a dump, holding a chunk and at most one token."""

    def __init__(self, path: Path, first: bytes, source: Generator[bytes], found: Found, notes: list[str]) -> None:
        self.path, self.source, self.found, self.notes = path, source, found, notes
        self.buffer, self.at, self.base = first, 0, 0
        self.database: str | None = None
        self.columns: dict[tuple[str | None, str], tuple[str, ...]] = {}
        self.made: set[tuple[str | None, str]] = set()
        """Tables of any name that the dump creates."""
        self.name = ""
        """Of the table that was named last."""
        self.backslash = True
        """Whether strings hold backslash escapes: MySQL's do, SQLite's do not."""
        self.mysql = False
        self.open: set[str] = set()
        """What was begun and has to be ended by a line of its own: is left when a dump was cut between two statements."""
        self.cut = False
        self.filled: dict[tuple[str | None, str], int] = {}
        """Tables of any name that rows are inserted into, with the first place."""
        self.not_utf8 = 0

    def read(self) -> bool:
        """Reads everything; returns whether rows may be missing."""
        try:
            while self._space():
                self._statement()
        except _Cut:
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

    def damaged(self, at: int, what: str) -> None:
        """Notes something that no tool writes; of many places the first are told."""
        self.found.damaged(f"at byte {at} {what}")

    # Tokens

    def _more(self) -> bool:
        if len(self.buffer) - self.at > MAX_TOKEN:
            where = self.base + self.at
            raise DamageError(self.path, f"expected a token of at most {MAX_TOKEN} bytes, found a longer one", offset=where)
        chunk = next(self.source, b"")
        self.base += self.at
        self.buffer = self.buffer[self.at :] + chunk
        self.at = 0
        return bool(chunk)

    def _take(self, pattern: re.Pattern[bytes]) -> bytes:
        """The token at the current place, or b"" when it is of another kind or not complete at the end of the file."""
        while True:
            match = pattern.match(self.buffer, self.at)
            if match and match.end() < len(self.buffer):
                break
            open_end = match or len(self.buffer) - self.at < LOOKAHEAD or self._opens(pattern)
            if not (open_end and self._more()):
                break
        if match is None:
            return b""
        self.at = match.end()
        return match[0]

    def _opens(self, pattern: re.Pattern[bytes]) -> bool:
        return self.buffer.startswith(_OPENING.get(pattern, ()), self.at)

    def _need(self, pattern: re.Pattern[bytes]) -> bytes:
        """The token at the current place; raises _Cut at the end of the file, _Strange when it is of another kind."""
        token = self._take(pattern)
        if not token:
            raise _Cut if self.at >= len(self.buffer) or self._opens(pattern) else _Strange
        return token

    def _space(self) -> bool:
        """Passes over blanks and comments; returns False at the end of the file."""
        while token := self._take(_SPACE):
            if token.startswith((b"-- MySQL dump ", b"-- MariaDB dump ")):
                self.open.add("banner")
            elif token.startswith(b"-- Dump completed"):
                self.open.clear()
            elif token.startswith((b"/*!", b"/*M!")):
                self.mysql = True
            else:
                self._passed(token)
        return self.at < len(self.buffer)

    def _passed(self, token: bytes) -> None:
        """Looks at blanks and comments that were passed over: some are what is left of a statement."""
        at = self.base + self.at - len(token)
        if token[:2] in (b"--", b"/*") or token[:1] == b"#":
            if _HIDDEN.search(token):
                self.damaged(at, f"a comment that looks like a statement ({_shown(token)})")
        elif b"\0" in token and self.at < len(self.buffer):
            self.damaged(at, f"{token.count(0)} bytes of zeros")

    def _lost_end(self, passed: bytes) -> None:
        """Looks at what is passed over of a statement: none of Milvus' tables may begin in it."""
        if found := _WITHIN.search(passed):
            self.damaged(self.base + self.at + found.start(), "a statement within another one, whose end or quote is lost")

    def _text(self, token: bytes) -> bytes:
        """The content of a quoted text, which holds no statements unless a quote was lost."""
        if _SWALLOWED.search(token):
            self.damaged(self.base + self.at - len(token), "a quote that is not closed where it should be")
        return _unquoted(token, self.backslash)

    def _peek(self) -> bytes:
        if not self._space():
            raise _Cut
        return self.buffer[self.at : self.at + 1]

    def _word(self) -> bytes:
        """The next identifier or keyword as written, or one character."""
        self._peek()
        return self._take(_IDENTIFIER) or self._need(_PUNCTUATION)

    def _skip(self) -> None:
        """Goes behind the end of this statement in constant memory."""
        while True:
            match = _SKIP.match(self.buffer, self.at)
            if match:
                self._lost_end(match[0])
                self.at = match.end()
            head = self.buffer[self.at : self.at + 1]
            if head in (b"'", b'"', b"`"):
                self.at += 1
                self._skip_string(head)
            elif head == b";":
                self.at += 1
                return
            elif head:
                if token := self._take(_SPACE):
                    self._passed(token)
                else:
                    if self._opens(_SPACE):  # a comment without an end
                        raise _Cut
                    self.at += 1
            elif not self._more():
                raise _Cut

    def _skip_string(self, quote: bytes) -> None:
        """Goes behind the closing quote; a doubled quote just opens the string again."""
        body = (_BODY if self.backslash else _BODY_PLAIN)[quote]
        while True:
            match = body.match(self.buffer, self.at)
            if match:
                self._lost_end(match[0])
                self.at = match.end()
            if self.buffer.startswith(quote, self.at):
                self.at += 1
                return
            if not self._more():
                raise _Cut

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
        except _Strange:
            self.damaged(start, f"a statement that is not understood at byte {self.base + self.at}")
        self._skip()

    def _foreign(self, start: int) -> None:
        """Passes over a line that is no statement."""
        line = self._take(_LINE) or self._need(_PUNCTUATION)
        if TOOL_LINE.match(line.rstrip()):
            self.found.foreign.append(_shown(line))
        else:
            self.damaged(start, f"neither a statement nor a comment ({_shown(line)})")

    def _set(self) -> None:
        """mysqldump saves the settings in its first lines and restores them in its last ones."""
        words = self._word(), self._word()
        if words == (b"@", b"OLD_SQL_NOTES"):
            self.open.add("settings")
        elif words[0] == b"SQL_NOTES":
            self.open.discard("settings")

    def _delimiter(self) -> None:
        """Passes over the bodies of triggers and procedures: everything until `DELIMITER ;`."""
        line = self._take(_LINE)
        if line.strip() == b";":
            return
        while line := self._take(_LINE):
            if _DELIMITER_BACK.match(line):
                return
        raise _Cut

    def _table(self, word: bytes | None = None) -> tuple[str | None, str | None]:
        """`name` or `database.name` -> (database, canonical name or None)."""
        word = word or self._word()
        self.mysql = self.mysql or word.startswith(b"`")
        database, name = self.database, _name(word)
        if self._peek() == b".":
            self._need(_PUNCTUATION)
            database, name = name, _name(self._word())
        self.name = name
        return database, canonical_table(name)

    def _create(self) -> None:
        kind = self._word().upper()
        if kind != b"TABLE":
            if kind not in _MADE:
                raise _Strange
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
            raise _Strange
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
            self.damaged(at, f"columns of {table} have other names than Milvus gives them; they are taken by their places")
            self.columns[database, table] = known
            self.found.declare(database, table)
        else:
            if sum(len(c) > 6 and c in text for c in COLUMNS[table][-1]) >= 3:
                raise _Strange  # another application's table of this name has other columns
            self.columns[database, table] = ()

    def _parenthesised(self) -> str:
        """The text from here to the matching parenthesis, without comments."""
        parts: list[bytes] = []
        depth = size = 0
        while True:
            if (mark := self._peek()) == b"'":  # a comment or default; in SQLite's oldest schema also a name
                text = self._text(self._need(_QUOTED if self.backslash else _QUOTED_PLAIN))
                piece = mark + text.replace(mark, mark * 2) + mark
            else:
                piece = self._take(_IDENTIFIER) or self._need(_PUNCTUATION)
            parts.append(piece)
            size += len(piece)
            if size > MAX_CREATE:
                raise _Strange
            if piece == b";":
                raise _Strange
            depth += (piece == b"(") - (piece == b")")
            if depth == 0:
                return b" ".join(parts).decode("utf-8", "replace")

    def _drop(self) -> None:
        kind = self._word().upper()
        if kind != b"TABLE":
            if kind not in _MADE:
                raise _Strange
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
            raise _Strange
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
            raise _Strange
        if columns is None:
            columns = self.columns.get((database, table))
        if columns is not None and is_misspelt(table, columns) and self.columns.get((database, table)) != ():
            if (known := known_columns(table, len(columns))) is None:
                raise _Strange
            self.damaged(at, f"columns of {table} have other names than Milvus gives them; they are taken by their places")
            columns = known
        if columns is not None and not is_milvus(table, columns):
            if self.columns.get((database, table)) != () and sum(c in COLUMNS[table][-1] for c in columns) >= 3:
                raise _Strange
            return
        self._rows(database, table, columns)

    def _rows(self, database: str | None, table: str, columns: tuple[str, ...] | None) -> None:
        # where SQLite's PRAGMA is cut off, its `VALUES(` tells: mysqldump puts a blank or a line break before the row
        backslash = self.backslash and (self.mysql or self.buffer[self.at : self.at + 1] != b"(")
        if self._peek() != b"(":
            raise _Strange
        while self._peek() == b"(":
            values = self._plain_row() or self._any_row(backslash)
            names = columns or known_columns(table, len(values))
            if names is None:
                return  # not Milvus' table
            if len(names) != len(values):
                raise _Strange
            self.found.add(database, table, names, values)
            if self._peek() == b",":
                self._need(_PUNCTUATION)
                if self._peek() != b"(":
                    raise _Strange
            elif self._peek() not in (b";", b"O"):  # ON DUPLICATE KEY
                raise _Strange

    def _plain_row(self) -> list[object]:
        """A row of plain numbers, NULL and ASCII text without escapes, as nearly all are; empty for any other."""
        match = _PLAIN_ROW.match(self.buffer, self.at)
        if match is None or match.end() == len(self.buffer):
            return []
        self.at = match.end()
        return [t.decode() if t else None if n == b"NULL" else int(n) if n else "" for t, n in _PLAIN.findall(match[0])]

    def _any_row(self, backslash: bool) -> list[object]:
        self._need(_PUNCTUATION)
        values: list[object] = []
        mark = b","
        while mark == b",":
            values.append(self._value(backslash))
            self._peek()
            mark = self._need(_PUNCTUATION)
        if mark != b")":
            raise _Strange
        return values

    def _value(self, backslash: bool, depth: int = 0) -> object:
        if depth > 8:
            raise _Strange
        if self._peek() in (b"'", b'"'):
            token = self._need(_QUOTED if backslash else _QUOTED_PLAIN)
            self._text(token)
            raw = _unquoted(token, backslash)
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                self.not_utf8 += 1
                return decode(raw)
        word = self._need(_LITERAL)
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
            raise _Strange
        arguments: list[object] = []
        mark = self._need(_PUNCTUATION)
        while mark != b")" and len(arguments) < 64:
            arguments.append(self._value(backslash, depth + 1))
            self._peek()
            mark = self._need(_PUNCTUATION)
        texts = [a for a in arguments if isinstance(a, str)]
        if name == b"REPLACE" and len(texts) == len(arguments) == 3 and texts[1]:
            return texts[0].replace(texts[1], texts[2])
        if name == b"UNISTR" and len(texts) == len(arguments) == 1:
            return _UNISTR.sub(_unistr, texts[0])
        if name == b"CHAR" and all(isinstance(a, int) and 0 <= a < 0xD800 for a in arguments):
            return "".join(chr(a) for a in arguments if isinstance(a, int))
        raise _Strange


def _shown(line: bytes) -> str:
    """The beginning of a line for a message."""
    return printable(line[:80].decode("utf-8", "replace").strip())


def _name(raw: bytes) -> str:
    return unquote(decode(raw))


def _unhex(digits: bytes) -> bytes:
    return bytes.fromhex("0" * (len(digits) % 2) + digits.decode())


def _unbit(digits: bytes) -> int:
    if not re.fullmatch(rb"[01]{0,64}", digits):
        raise _Strange
    return int(digits or b"0", 2)


def _unquoted(token: bytes, backslash: bool) -> bytes:
    quote, body = token[:1], token[1:-1]
    if not backslash or b"\\" not in body:
        return body.replace(quote * 2, quote) if quote in body else body
    unescape = re.compile(rb"\\(.)|" + quote * 2, re.S)
    return unescape.sub(lambda m: _ESCAPES.get(m[1], m[1]) if m[1] is not None else quote, body)


def _unistr(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3] or match[4]
    number = int(digits, 16) if digits else 0x5C
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"
