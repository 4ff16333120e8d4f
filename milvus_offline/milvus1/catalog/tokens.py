"""The tokens of a dump of SQL: a lexer over a stream of bytes that holds a chunk of it (FORMAT §16)."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

from ...errors import DamageError
from ...names import printable
from .dumprows import FoundRows

LOOKAHEAD = 2048
"""Bytes that are kept in the buffer, so that no identifier or number is cut."""
MAX_TOKEN = 16 << 20
"""The longest string or comment that is accepted; Milvus' own columns hold at most 512 characters."""

SPACE = re.compile(rb"(?:[\s\x00]+|\*/|/\*M?!(?!999999)\d{0,6}|/\*.*?\*/|--(?=\s|\Z)[^\n]*|#[^\n]*)", re.S)
IDENTIFIER = re.compile(rb"`(?:[^`]|``){0,512}`|\"(?:[^\"]|\"\"){0,512}\"|\[[^\]]{0,512}\]|[\w$\x80-\xff]+")
QUOTED = re.compile(rb"'[^'\\]*(?:(?:\\.|'')[^'\\]*)*'|\"[^\"\\]*(?:(?:\\.|\"\")[^\"\\]*)*\"", re.S)
QUOTED_PLAIN = re.compile(rb"'[^']*(?:''[^']*)*'|\"[^\"]*(?:\"\"[^\"]*)*\"", re.S)
LITERAL = re.compile(rb"0[xX][0-9a-fA-F]+|[xXbB]'[0-9a-fA-F]*'|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[A-Za-z_]\w*")
PUNCTUATION = re.compile(rb".", re.S)
_SKIP = re.compile(rb"(?:[^;'\"`#/\-*]+|'[^'\\]*'|\"[^\"\\]*\"|`[^`]*`|[/*](?=[^*/])|-(?=[^-]))+")
_BODY_PLAIN = {q: re.compile(b"[^Q]*(?:QQ[^Q]*)*".replace(b"Q", q)) for q in (b"'", b'"', b"`")}
_BODY = {q: re.compile(rb"[^\\Q]*(?:(?:\\.|QQ)[^\\Q]*)*".replace(b"Q", q), re.S) for q in (b"'", b'"')}
_BODY[b"`"] = _BODY_PLAIN[b"`"]
LINE = re.compile(rb"[^\n]*\n?")
_OPENING: dict[re.Pattern[bytes], tuple[bytes, ...]] = {
    SPACE: (b"/*",),
    QUOTED: (b"'", b'"'),
    QUOTED_PLAIN: (b"'", b'"'),
    LITERAL: (b"x'", b"X'", b"b'", b"B'"),
}
"""How tokens begin that may be cut by the end of the buffer."""
_ESCAPES = {b"0": b"\0", b"b": b"\b", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"Z": b"\x1a", b"%": b"\\%", b"_": b"\\_"}

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


class Cut(Exception):
    """The dump ends within a statement."""


class Strange(Exception):
    """A row is not written as any dump writes it."""


class Tokens:
    """Walks the tokens of a dump, holding a chunk and at most one of them."""

    def __init__(self, path: Path, first: bytes, source: Generator[bytes], found: FoundRows) -> None:
        self.path, self.source, self.found = path, source, found
        self.buffer, self.at, self.base = first, 0, 0
        self.backslash = True
        """Whether strings hold backslash escapes: MySQL's do, SQLite's do not."""
        self.mysql = False
        self.open: set[str] = set()
        """What was begun and has to be ended by a line of its own: is left when a dump was cut between two statements."""

    def damaged(self, at: int, what: str) -> None:
        """Notes something that no tool writes; of many places the first are told."""
        self.found.damaged(f"at byte {at} {what}")

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
        """The token at the current place; raises Cut at the end of the file, Strange when it is of another kind."""
        token = self._take(pattern)
        if not token:
            raise Cut if self.at >= len(self.buffer) or self._opens(pattern) else Strange
        return token

    def _space(self) -> bool:
        """Passes over blanks and comments; returns False at the end of the file."""
        while token := self._take(SPACE):
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
                self.damaged(at, f"a comment that looks like a statement ({shown(token)})")
            elif b"\0" in token:  # a lost block, which may have joined a comment to the statement after it
                self.damaged(at, f"a comment with {token.count(0)} bytes of zeros in it")
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
        return unquoted(token, self.backslash)

    def _peek(self) -> bytes:
        if not self._space():
            raise Cut
        return self.buffer[self.at : self.at + 1]

    def _word(self) -> bytes:
        """The next identifier or keyword as written, or one character."""
        self._peek()
        return self._take(IDENTIFIER) or self._need(PUNCTUATION)

    def _skip(self) -> None:
        """Moves past the end of this statement in constant memory."""
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
                if token := self._take(SPACE):
                    self._passed(token)
                else:
                    if self._opens(SPACE):  # a comment without an end
                        raise Cut
                    self.at += 1
            elif not self._more():
                raise Cut

    def _skip_string(self, quote: bytes) -> None:
        """Moves past the closing quote; a doubled quote just opens the string again."""
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
                raise Cut


def shown(line: bytes) -> str:
    """The beginning of a line for a message."""
    return printable(line[:80].decode("utf-8", "replace").strip())


def unquoted(token: bytes, backslash: bool) -> bytes:
    quote, body = token[:1], token[1:-1]
    if not backslash or b"\\" not in body:
        return body.replace(quote * 2, quote) if quote in body else body
    unescape = re.compile(rb"\\(.)|" + quote * 2, re.S)
    return unescape.sub(lambda m: _ESCAPES.get(m[1], m[1]) if m[1] is not None else quote, body)
