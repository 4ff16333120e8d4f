"""The real stores of fixtures/ as they are: their files, and every row in them, read as simply as can be.

Nothing here uses the reader under test, except that a `Base` opens its store once and holds it against its truth.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Piece

FIXTURES = Path(__file__).parent.parent.parent / "fixtures" / "stores"

Keys = Counter[bytes]
"""A multiset of rows, each as its id and its vector's bytes."""


@dataclass(frozen=True)
class LogRecord:
    """A record of the log as it was written: where it lies and the rows (or deleted ids) in it."""

    file: str
    start: int
    names_at: int
    ids_at: int
    end: int
    ids: tuple[int, ...]
    is_delete: bool
    keys: tuple[bytes, ...]


class Base:
    """An undamaged store of fixtures/: its files, and what comes out of it (checked against its truth)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = FIXTURES / name / "store"
        self.files = {p.relative_to(self.root).as_posix(): p for p in sorted(self.root.rglob("*")) if p.is_file()}
        self.dump = next((f for f in self.files if f == "meta.default.sql"), None)
        self.segments = sorted(
            {"/".join(f.split("/")[:4]) for f in self.files if f.startswith("db/tables/") and f.count("/") > 3}
        )
        self.bytes = sum(p.stat().st_size for p in self.files.values())
        opened = open_store(self.root, self.root / self.dump if self.dump else None)
        self.findings = {(f.code, f.where) for f in opened.findings}
        self.outcome = Outcome.of(opened)
        self.row_bytes = {c.name: c.schema.row_bytes for c in opened.collections}
        self.collection_of = {t.table_id: t.owner_table or t.table_id for t in opened.catalog.tables}
        self.live = {s.id: s for c in opened.collections for p in c.partitions for s in p.segments}
        self.wal_deleted = {
            int(i) for s in self.live.values() if s.wal_deleted is not None for i in np.asarray(s.ids)[s.wal_deleted]
        }
        truth = json.loads((FIXTURES / name / "truth.json").read_text())
        expected = {(c["name"], p["name"]): p["rows"] for c in truth["collections"] for p in c["partitions"]}
        assert {k: sum(p.rows for p in v.values()) for k, v in self.outcome.pieces.items()} == expected
        arrays = np.load(FIXTURES / name / "truth.npz")
        for c in truth["collections"]:
            for p in c["partitions"]:
                keys = keys_of(arrays[f"{p['arrays']}_ids"], arrays[f"{p['arrays']}_vectors"])
                assert self.outcome.keys(c["name"], p["name"]) == keys

    @cached_property
    def stored(self) -> Keys:
        """Every row in any segment folder and in the log, deleted ones too."""
        result: Keys = Counter()
        for folder in self.segments:
            naive = read_naively(self.root / folder)
            if naive is not None and naive.width:
                result += naive.stored
        return result + self.logged

    @cached_property
    def logged(self) -> Keys:
        """Every row that some record of the log inserts."""
        return Counter(key for record in self.records for key in record.keys)

    @cached_property
    def records(self) -> list[LogRecord]:
        result = []
        for name in self.files:
            if not name.endswith(".wal"):
                continue
            data = self.files[name].read_bytes()
            number, start = int(Path(name).stem), 0
            while start + 21 <= len(data):
                lsn, _, c, t, n, s = struct.unpack_from("<QBHHII", data, start)
                end = start + 21 + c + t + 8 * n + s
                if lsn != number << 32 | end:
                    break
                ids_at = start + 21 + c + t
                ids = np.frombuffer(data, "<i8", n, ids_at)
                vectors = np.frombuffer(data, "u1", s, ids_at + 8 * n).reshape(n, -1) if s else None
                keys = tuple(keys_of(ids, vectors).elements()) if vectors is not None else ()
                result.append(LogRecord(name, start, start + 21, ids_at, end, tuple(ids.tolist()), not s, keys))
                start = end
        return result

    @cached_property
    def catalog(self) -> dict[str, dict[Any, tuple[Any, ...]]] | None:
        return read_catalog(self.root / "db")


@cache
def base(name: str) -> Base:
    return Base(name)


@cache
def store_names() -> tuple[str, ...]:
    """Those of servers that lost nothing by themselves."""
    lost = {p.parent.name for p in FIXTURES.glob("*/acknowledged.npz")}
    return tuple(sorted(p.parent.name for p in FIXTURES.glob("*/truth.npz") if p.parent.name not in lost))


def keys_of(ids: Any, vectors: Any) -> Keys:
    n = len(ids)
    octets = np.ascontiguousarray(vectors).reshape(n, -1).view(np.uint8) if n else np.empty((0, 0), np.uint8)
    joined = np.concatenate([np.asarray(ids, "<i8").reshape(n, 1).view(np.uint8), octets], axis=1) if n else octets
    return Counter(row.tobytes() for row in joined)


@dataclass(frozen=True)
class PieceRows:
    """What one piece gave: `rows` announced, `given` counted, and a digest of them in order."""

    piece: Piece
    rows: int
    given: int
    digest: bytes

    def keys(self) -> Keys:
        result: Keys = Counter()
        for batch in self.piece.batches():
            result += keys_of(batch.ids, batch.vectors)
        return result


def read_piece(piece: Piece, max_bytes: int = 1 << 20) -> PieceRows:
    digest, given = hashlib.blake2b(digest_size=16), 0
    for batch in piece.batches(max_bytes):
        assert len(batch.ids) == len(batch.vectors)
        given += len(batch.ids)
        digest.update(hashlib.blake2b(np.ascontiguousarray(batch.ids)).digest())
        digest.update(hashlib.blake2b(np.ascontiguousarray(batch.vectors)).digest())
    return PieceRows(piece, piece.rows, given, digest.digest())


@dataclass
class Outcome:
    """(collection, partition) -> piece id -> rows."""

    pieces: dict[tuple[str, str], dict[str, PieceRows]]

    @classmethod
    def of(cls, store: Store) -> Outcome:
        return cls({(c.name, p.name): {q.id: read_piece(q) for q in p.pieces} for c in store.collections for p in c.partitions})

    def keys(self, collection: str, partition: str) -> Keys:
        result: Keys = Counter()
        for piece in self.pieces.get((collection, partition), {}).values():
            result += piece.keys()
        return result


@dataclass
class Naive:
    """A segment folder read in the simplest way. `consistent`: nothing in it betrays damage."""

    width: int
    rows: int
    stored: Keys
    """All rows for which there are bytes."""
    live: Keys
    consistent: bool


def read_naively(folder: Path, width: int | None = None) -> Naive | None:
    """None when the folder is not even one with a `.rv` and a `.uid`."""
    if not folder.is_dir():
        return None
    raw, ids = ([p for p in folder.iterdir() if p.suffix == suffix and p.is_file()] for suffix in (".rv", ".uid"))
    if len(raw) != 1 or len(ids) != 1:
        return None
    vectors, numbers = map_bytes(raw[0]), map_bytes(ids[0])
    consistent = True
    declared = []
    for data in (vectors, numbers):
        size = struct.unpack("<Q", bytes(data[:8]))[0] if len(data) >= 8 else -1
        consistent &= 0 <= size <= len(data) - 8  # bytes after the payload mean nothing
        declared.append(size)
    rows = max(0, len(numbers) - 8) // 8
    if consistent:
        rows = declared[1] // 8
    width = width or (max(0, len(vectors) - 8) // rows if rows else 0)
    consistent &= declared == [rows * width, rows * 8]
    both = min(max(0, len(numbers) - 8) // 8, max(0, len(vectors) - 8) // width) if width else 0
    all_ids = np.frombuffer(numbers, "<i8", both, 8) if both else np.empty(0, "<i8")
    all_vectors = np.frombuffer(vectors, "u1", both * width, 8).reshape(both, width) if both else np.empty((0, width), "u1")
    deleted_path = folder / "deleted_docs"
    consistent &= deleted_path.is_file() or not rows
    dead = np.empty(0, "<i4")
    if deleted_path.is_file():
        data = deleted_path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
        consistent &= 0 <= size <= len(data) - 8 and size % 4 == 0
        if len(data) >= 8:
            dead = np.frombuffer(data, "<i4", max(0, min(size, len(data) - 8)) // 4, 8)
    counted = rows if consistent else both
    consistent &= bool(((dead >= 0) & (dead < counted)).all())
    alive = np.arange(both) < counted
    alive[dead[(dead >= 0) & (dead < both)]] = False
    return Naive(width, rows, keys_of(all_ids, all_vectors), keys_of(all_ids[alive], all_vectors[alive]), consistent)


def map_bytes(path: Path) -> Any:
    """A file's bytes, mapped: it may have huge holes."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def read_catalog(db: Path) -> dict[str, dict[Any, tuple[Any, ...]]] | None:
    """Table -> row id -> row as SQLite itself gives them; None when it cannot, or finds its file damaged."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            if (db / f"meta.sqlite{suffix}").is_file():
                shutil.copyfile(db / f"meta.sqlite{suffix}", Path(folder) / f"meta.sqlite{suffix}")
        try:
            with contextlib.closing(sqlite3.connect(Path(folder) / "meta.sqlite")) as connection:
                connection.text_factory = bytes
                if connection.execute("PRAGMA integrity_check").fetchall() != [(b"ok",)]:
                    return None
                return {
                    table: {row[0]: row[1:] for row in connection.execute(f"SELECT rowid, * FROM {table}")}
                    for table in ("Tables", "TableFiles", "Environment")
                }
        except sqlite3.Error:
            return None
