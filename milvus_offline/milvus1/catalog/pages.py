"""The catalog from the pages of a SQLite file that SQLite itself refuses to open (FORMAT §2.1, §2.2).

File format (https://www.sqlite.org/fileformat2.html), big endian: a database is an array of pages, page 1 begins with a header
of 100 bytes. A table is a b-tree: interior pages (0x05) point to leaf pages (0x0d), whose cells are records. The -wal has newer
versions of pages in frames, each with two salts and a running checksum; frames up to the last commit count.

First the b-trees are walked from their roots, which gives what a query gives. Only where a tree is damaged are all leaf pages
of the file looked at; rows found that way may be older than the last change.
"""

# long: one format, read from its pages up to its records

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DamageError
from ..layout import META
from .columns import COLUMNS, TEXT_COLUMNS, canonical_table, create_columns, is_milvus, known_columns
from .rows import RawTables

MAX_FILE = 1 << 30
"""Bytes of the database or of its -wal; a catalog has some MiB at most."""
MAX_RECORD = 1 << 20
_MAGIC = b"SQLite format 3\0"
_SIZES = tuple(1 << i for i in range(9, 17))
_INTERIOR, _LEAF = 0x05, 0x0D
_ENCODINGS = {1: "utf-8", 2: "utf-16-le", 3: "utf-16-be"}
_FRAME = 24
_WAL_HEADER = 32
_SHM_VERSION = 3007000
_SHM_COUNTS = 96
"""Offset in the -shm of the number of frames that were copied to the database; the header stands before it, twice."""

Values = list[object]


@dataclass(frozen=True)
class ReadableTables:
    """What could be read. `walked`: tables whose b-tree was whole, so that their rows are complete and current.

    `scanned`: tables with rows from single pages: some may be missing, some may be older than the last change.
    `unreadable`: cells and pages that could not be read. `notes`: sentences for a person.
    """

    tables: RawTables
    walked: tuple[str, ...] = ()
    scanned: tuple[str, ...] = ()
    unreadable: int = 0
    notes: list[str] = field(default_factory=list)


class _Bad(Exception):
    """A page, a cell or a record that the format does not allow."""


def read_pages(db_path: str | os.PathLike[str], wal_path: str | os.PathLike[str] | None = None) -> ReadableTables:
    """Reads the Milvus tables from the pages of `db_path` and the valid frames of `wal_path` (default: the `-wal` beside it).

    An undamaged database gives the rows that SQLite gives, in the same order. Raises OSError when the file cannot be read and
    DamageError when it is larger than 1 GiB; anything inside the files is survived.
    """
    db_path = Path(db_path)
    wal = Path(wal_path) if wal_path is not None else db_path.with_name(db_path.name + "-wal")
    pages = _Pages(_read(db_path), _read(wal) if wal.exists() else b"")
    return _Salvage(pages).run()


def log_damage(db_path: Path) -> str | None:
    """Why SQLite would silently leave committed changes out of the `-wal` beside `db_path`, in words; None when it would not.

    SQLite stops at the first damaged frame and takes what was before it. The -shm still counts the frames, as long as no other
    SQLite has opened the files since the server wrote them. Raises OSError, and DamageError when a file is larger than 1 GiB.
    """
    wal_path, shm_path = (db_path.with_name(db_path.name + suffix) for suffix in ("-wal", "-shm"))
    wal = _read(wal_path) if wal_path.is_file() else b""
    with open(db_path, "rb") as file:
        pages = _Pages(file.read(100), wal)
    if pages.damage:
        return pages.damage
    shm = b""
    if shm_path.is_file():
        with open(shm_path, "rb") as file:
            shm = file.read(_SHM_COUNTS + 4)
    known = len(shm) == _SHM_COUNTS + 4 and shm[:48] == shm[48:96] and struct.unpack_from("<I", shm)[0] == _SHM_VERSION
    if known and (len(wal) < _WAL_HEADER or shm[32:40] == wal[16:24]):
        (written,), (copied,) = struct.unpack_from("<I", shm, 16), struct.unpack_from("<I", shm, _SHM_COUNTS)
        if written <= max(pages.whole, copied):
            return None
        state = "is missing" if not wal_path.is_file() else f"holds {pages.whole} of the {written} frames that were committed"
        return f"its {META}-wal {state}, it belongs to the catalog"
    return "the last frames of the -wal are damaged" if pages.torn else None


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE:
            raise DamageError(path, f"expected a catalog of at most {MAX_FILE} bytes, found {size}")
        return file.read()


# Pages ---------------------------------------------------------------------------------------------------------------


class _Pages:
    """The newest committed version of each page; numbers begin at 1."""

    def __init__(self, db: bytes, wal: bytes) -> None:
        self.db = db
        self.notes: list[str] = []
        self.damage = ""
        """What is wrong with the -wal, apart from its end."""
        self.whole = 0
        """Frames of the -wal up to the last good one."""
        self.torn = False
        """Whether bad frames follow: damage, or a transaction that was being written when the server died."""
        self.size = self._page_size(db, wal)
        self.frames: dict[int, int] = {}
        """Page -> offset of its content in the -wal."""
        self.wal = wal
        in_db = -(-len(db) // self.size)
        committed = self._read_wal()
        self.count = max(in_db, max(self.frames, default=0))
        self.numbers = sorted({*range(1, in_db + 1), *self.frames})
        if committed:  # the last commit tells how many pages there are
            self.numbers = [n for n in self.numbers if n <= committed]
        first = self.page(1)
        good = first[:16] == _MAGIC
        reserved = first[20] if good else 0
        self.usable = self.size - (reserved if reserved <= self.size - 480 else 0)
        self.encoding = _ENCODINGS.get(struct.unpack(">I", first[56:60])[0] if good else 1, "utf-8")
        if not good:
            self.notes.append("the header of the database is damaged")
        self.freelist = self._freelist(first) if good else set()

    def page(self, number: int) -> bytes:
        """The content of a page, filled up with zeros where the file is cut."""
        if number in self.frames:
            at = self.frames[number]
            return self.wal[at : at + self.size]
        return self.db[(number - 1) * self.size : number * self.size].ljust(self.size, b"\0")

    def newness(self, number: int) -> int:
        """Larger for what was written later: the -wal after the database."""
        return self.frames.get(number, 0)

    @staticmethod
    def _page_size(db: bytes, wal: bytes) -> int:
        """From either header; where both are damaged, the size at which most pages look like pages of a b-tree."""
        candidates = []
        if db[:16] == _MAGIC:
            candidates.append(int.from_bytes(db[16:18], "big"))
        if len(wal) >= _WAL_HEADER and struct.unpack(">I", wal[:4])[0] & ~1 == 0x377F0682:
            candidates.append(int.from_bytes(wal[8:12], "big"))
        for size in candidates:
            if (size := 65536 if size == 1 else size) in _SIZES:
                return size

        def looks_right(size: int) -> int:
            heads = (db[at : at + 8] for at in range(size, len(db), size))
            right = sum(len(h) == 8 and h[0] in (2, 5, 10, 13) and 0 < int.from_bytes(h[5:7], "big") <= size for h in heads)
            return int(right * size)

        return max((4096, *_SIZES), key=looks_right)

    def _read_wal(self) -> int:
        """Takes the valid frames up to the last commit; returns the size of the database in pages then, 0 without a commit.

        A frame is checked with the checksum that stands in the frame before it, so one damaged frame hides only itself.
        """
        wal, step = self.wal, _FRAME + self.size
        if len(wal) < _WAL_HEADER + step:
            if wal and len(wal) != _WAL_HEADER:
                self.damage = "the -wal ends within its first frame"
            return 0
        magic, salts, seed = wal[:4], wal[16:24], wal[24:32]
        order = "<" if magic == b"\x37\x7f\x06\x82" else ">"
        if magic not in (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83") or _checksum(wal[:24], b"\0" * 8, order) != seed:
            self.damage = "the header of the -wal is damaged"
            self.notes.append(self.damage)
            salts = Counter(wal[at + 8 : at + 16] for at in range(_WAL_HEADER, len(wal) - step + 1, step)).most_common(1)[0][0]
            order = "<"
        pending: dict[int, int] = {}
        committed = damaged = certain = strangers = 0
        for at in range(_WAL_HEADER, len(wal) - step + 1, step):
            head = wal[at : at + _FRAME]
            number, size = struct.unpack(">II", head[:8])
            if head[8:16] != salts:
                strangers += 1  # damaged, or from here on only what an older turn of the log left behind
                seed = head[16:24]
                continue
            damaged, strangers = damaged + strangers, 0
            content = at + _FRAME
            valid = _checksum(wal[content : content + self.size], _checksum(head[:8], seed, order), order) == head[16:24]
            seed = head[16:24]
            if not valid or not 0 < number <= 1 << 24:
                damaged += 1
                continue
            pending[number] = content
            certain, self.whole = damaged, 1 + (at - _WAL_HEADER) // step
            if size:
                self.frames.update(pending)
                pending.clear()
                committed = size
        self.torn = damaged > certain
        if certain:
            self.damage = f"{certain} frames of the -wal are damaged"
        if damaged:
            self.notes.append(f"{damaged} frames of the -wal are damaged and left out: rows may be out of date")
        return committed

    def _freelist(self, first: bytes) -> set[int]:
        """Pages that hold nothing any more; empty when the list itself cannot be right."""
        trunk, total = struct.unpack(">II", first[32:40])
        free: set[int] = set()
        while trunk and len(free) <= total:
            if not 1 < trunk <= self.count or trunk in free:
                return set()
            free.add(trunk)
            page = self.page(trunk)
            following, n = struct.unpack(">II", page[:8])
            if n > self.usable // 4 - 2:
                return set()
            free.update(struct.unpack(f">{n}I", page[8 : 8 + 4 * n]))
            trunk = following
        return free if len(free) == total else set()


def _checksum(data: bytes, seed: bytes, order: str) -> bytes:
    """SQLite's checksum of the -wal, of words in `order`, going on from `seed`.

    One step is (s0, s1) -> M (s0, s1) + (x0, x0 + x1) with M = ((1, 1), (1, 2)); the powers of M are Fibonacci numbers, so
    all steps are two dot products modulo 2^32.
    """
    words = np.frombuffer(data, order + "u4").astype(np.uint32)
    even = words[0::2]
    both = even + words[1::2]
    low, middle, high = _weights(len(even))
    s0, s1 = struct.unpack(">II", seed)
    sum0 = int(np.dot(low[:-1], even)) + int(np.dot(middle[:-1], both)) + int(low[-1]) * s0 + int(middle[-1]) * s1
    sum1 = int(np.dot(middle[:-1], even)) + int(np.dot(high[:-1], both)) + int(middle[-1]) * s0 + int(high[-1]) * s1
    return struct.pack(">II", sum0 & 0xFFFFFFFF, sum1 & 0xFFFFFFFF)


_cached_weights: dict[int, tuple[npt.NDArray[np.uint32], ...]] = {}


def _weights(pairs: int) -> tuple[npt.NDArray[np.uint32], ...]:
    """Entries (0, 0), (0, 1), (1, 1) of M^(pairs-1), ..., M^0, and M^pairs at the end."""
    if pairs not in _cached_weights:
        rows, (a, b, c) = [], (1, 0, 1)
        for _ in range(pairs + 1):
            rows.append((a, b, c))
            a, b, c = (a + b) & 0xFFFFFFFF, (a + 2 * b) & 0xFFFFFFFF, (b + 2 * c) & 0xFFFFFFFF
        ordered = [*rows[pairs - 1 :: -1], rows[pairs]] if pairs else [rows[0]]
        _cached_weights[pairs] = tuple(np.array(column, np.uint32) for column in zip(*ordered, strict=True))
    return _cached_weights[pairs]


# Records -------------------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer (two's complement of 64 bits) and the offset after it."""
    value = 0
    for i in range(9):
        if at + i >= len(data):
            raise _Bad
        byte = data[at + i]
        if i == 8:
            value = value << 8 | byte
            break
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return (value - (1 << 64) if value >= 1 << 63 else value), at + i + 1


_INT_SIZES = (0, 1, 2, 3, 4, 6, 8)


def _record(payload: bytes, encoding: str) -> Values:
    """The values of a record."""
    header, at = _varint(payload, 0)
    if not at <= header <= len(payload):
        raise _Bad
    types = []
    while at < header:
        kind, at = _varint(payload, at)
        types.append(kind)
    if at != header:
        raise _Bad
    values: Values = []
    for kind in types:
        if kind < 0 or kind in (10, 11):
            raise _Bad
        size = _INT_SIZES[kind] if kind < 7 else 8 if kind == 7 else 0 if kind < 10 else (kind - 12) // 2
        body = payload[at : at + size]
        if len(body) != size:
            raise _Bad
        at += size
        if kind == 0:
            values.append(None)
        elif kind < 7:
            values.append(int.from_bytes(body, "big", signed=True))
        elif kind == 7:
            values.append(str(struct.unpack(">d", body)[0]))
        elif kind < 10:
            values.append(kind - 8)
        elif kind % 2:
            values.append(body.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace"))
        else:
            values.append(body)
    if at != len(payload):
        raise _Bad
    return values


_PageRows = dict[str, dict[int, dict[str, object]]]
"""Table -> row id -> row."""


class _Salvage:
    """One attempt at one database."""

    def __init__(self, pages: _Pages) -> None:
        self.pages = pages
        self.clean: set[int] = set()
        """Pages of trees that are whole: there is nothing more to find on them."""
        self.lost: set[tuple[int, int]] = set()
        """Page and offset of what cannot be read; offset 0 for the page itself."""
        self.allowance = 8 * (len(pages.db) + len(pages.wal))
        """Bytes of records to read at most: damaged pointers may lead to the same bytes again and again."""

    def run(self) -> ReadableTables:
        notes = self.pages.notes
        found: _PageRows = {}
        walked: list[str] = []
        whole, roots = self._schema()
        for table, (root, columns) in roots.items():
            found[table] = {}
            before = len(self.lost)
            seen: set[int] = set()
            for number, at, rowid, values in self._walk(root, seen):
                row = _row(rowid, values, columns)
                if row is None or rowid in found[table]:
                    self.lost.add((number, at))
                else:
                    found[table][rowid] = row
            if len(self.lost) == before:
                walked.append(table)
                self.clean |= seen
        suspects = [t for t in COLUMNS if t not in walked and (t in roots or not whole or t in ("Tables", "TableFiles"))]
        if suspects:
            self._scan(suspects, found, {t: columns for t, (_, columns) in roots.items()})
        if scanned := tuple(t for t in suspects if found.get(t)):
            notes.append(f"rows of {', '.join(scanned)} come from single pages: some may be missing or out of date")
        if missing := [t for t in ("Tables", "TableFiles") if t not in found]:
            notes.append(f"nothing is left of {' and '.join(missing)}")
        if self.lost:
            notes.append(f"{len(self.lost)} cells or pages could not be read")
        tables: RawTables = {t: [row for _, row in sorted(rows.items())] for t, rows in found.items()}
        return ReadableTables(tables, tuple(walked), scanned, len(self.lost), notes)

    def _schema(self) -> tuple[bool, dict[str, tuple[int, tuple[str, ...]]]]:
        """Whether sqlite_master is whole, and per Milvus table its root page and columns."""
        roots: dict[str, tuple[int, tuple[str, ...]]] = {}
        seen: set[int] = set()
        for _, _, _, values in self._walk(1, seen):
            if len(values) != 5 or values[0] != "table":
                continue
            name, root, sql = values[1], values[3], values[4]
            if not (isinstance(name, str) and isinstance(root, int) and isinstance(sql, str) and len(sql) < 1 << 16):
                continue
            table = canonical_table(name)
            columns = create_columns(sql)
            if table and is_milvus(table, columns):
                columns = known_columns(table, len(columns)) or columns
                if len(set(columns)) == len(columns):
                    roots[table] = root, columns
        if not self.lost:
            self.clean |= seen
        return not self.lost, roots

    # B-trees

    def _walk(self, root: int, seen: set[int]) -> Iterator[tuple[int, int, int, Values]]:
        """Page, offset, row id and values of all records below `root`, in order; `seen` takes the pages."""
        stack = [root]
        while stack:
            number = stack.pop()
            if not 0 < number <= self.pages.count or number in seen or number in self.clean:
                self.lost.add((number, 0))
                continue
            seen.add(number)
            page = self.pages.page(number)
            try:
                kind, cells, right = self._cells(page, number)
            except _Bad:
                self.lost.add((number, 0))
                continue
            if kind == _INTERIOR:
                children = [int.from_bytes(page[at : at + 4], "big") for at in cells]
                stack += [right, *reversed(children)]
            else:
                yield from self._records(number, page, cells)

    def _cells(self, page: bytes, number: int) -> tuple[int, tuple[int, ...], int]:
        """Kind of a page of a table, the offsets of its cells, and its right-most child."""
        start = 100 if number == 1 else 0
        kind, _, count, _, _ = struct.unpack(">BHHHB", page[start : start + 8])
        head = start + (12 if kind == _INTERIOR else 8)
        if kind not in (_INTERIOR, _LEAF) or head + 2 * count > self.pages.usable:
            raise _Bad
        right = struct.unpack(">I", page[start + 8 : start + 12])[0] if kind == _INTERIOR else 0
        return kind, struct.unpack(f">{count}H", page[head : head + 2 * count]), right

    def _records(self, number: int, page: bytes, cells: tuple[int, ...]) -> Iterator[tuple[int, int, int, Values]]:
        for at in cells:
            try:
                size, body = _varint(page, at)
                rowid, body = _varint(page, body)
                yield number, at, rowid, _record(self._payload(page, size, body), self.pages.encoding)
            except _Bad:
                self.lost.add((number, at))

    def _payload(self, page: bytes, size: int, at: int) -> bytes:
        """The record of a cell, with what continues on overflow pages."""
        usable = self.pages.usable
        self.allowance -= size
        if not 0 < size <= MAX_RECORD or self.allowance < 0:
            raise _Bad
        local, most = size, usable - 35
        if size > most:
            least = (usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (usable - 4)
            local = local if local <= most else least
        if at + local + (4 if local < size else 0) > usable:
            raise _Bad
        parts = [page[at : at + local]]
        if local < size:
            following = struct.unpack(">I", page[at + local : at + local + 4])[0]
            while local < size:
                if not 1 < following <= self.pages.count:
                    raise _Bad
                more = self.pages.page(following)
                part = more[4 : min(usable, 4 + size - local)]
                parts.append(part)
                local += len(part)
                following = struct.unpack(">I", more[:4])[0]
        return b"".join(parts)

    # Single pages

    def _scan(self, wanted: list[str], found: _PageRows, columns: dict[str, tuple[str, ...]]) -> None:
        """Adds rows of `wanted` from all leaf pages outside of whole trees; of several versions of a row the newest is kept."""
        best: dict[str, dict[int, tuple[tuple[int, int], dict[str, object]]]] = {t: {} for t in wanted}
        for number in self.pages.numbers:
            if number in self.clean or number in self.pages.freelist:
                continue
            page = self.pages.page(number)
            try:
                kind, cells, _ = self._cells(page, number)
            except _Bad:
                continue
            if kind != _LEAF:
                continue
            for _, _, rowid, values in self._records(number, page, cells):
                match = _classify(rowid, values, wanted, columns)
                if match is not None:
                    table, row = match
                    stamp = row.get("updated_time") or row.get("flush_lsn")
                    age = (stamp if isinstance(stamp, int) else 0, self.pages.newness(number))
                    if rowid not in best[table] or best[table][rowid][0] < age:
                        best[table][rowid] = age, row
        for table, rows in best.items():
            for rowid, (_, row) in rows.items():
                found.setdefault(table, {}).setdefault(rowid, row)


def _row(rowid: int, values: Values, columns: tuple[str, ...]) -> dict[str, object] | None:
    """A record as a row; None when its values cannot be those of the columns."""
    if len(values) != len(columns):
        return None
    row = dict(zip(columns, values, strict=True))
    if "id" in row and row["id"] is None:  # INTEGER PRIMARY KEY: the row id stands for it
        row["id"] = rowid
    for column, value in row.items():
        if value is not None and not isinstance(value, str if column in TEXT_COLUMNS else int):
            return None
    if row.get("table_id", "") is None or ("id" in row and row["id"] != rowid):
        return None
    return row


def _classify(
    rowid: int, values: Values, wanted: list[str], columns: dict[str, tuple[str, ...]]
) -> tuple[str, dict[str, object]] | None:
    """The table that a record belongs to, by the number and the types of its values, and its row."""
    for table in wanted:
        for layout in (columns[table],) if table in columns else COLUMNS[table]:
            if len(values) == len(layout) and None not in values[layout[0] == "id" :]:
                row = _row(rowid, values, layout)
                if row is not None:
                    return table, row
    return None
