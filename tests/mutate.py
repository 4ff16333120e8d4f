"""Damages copies of real stores in seeded ways, opens what is left, and judges the outcome.

A case is (store, recipe, seed). The recipe changes some files of a copy; `judge` then knows from the changed bytes alone what
may come out: it reads segments, catalog and log by itself, far simpler than the reader does, and asks that

- nothing but MilvusOfflineError is raised, in bounded time, and the store is not touched;
- every piece gives as many rows as it announces;
- rows of untouched segments come out exactly, as long as catalog and log are untouched;
- rows differ from the truth only where the damage cannot be seen (bits inside vectors, ids, names, catalog values),
  or beside a WARNING or ERROR that names the place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from milvus_offline.errors import MilvusOfflineError
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.store import Store, open_store
from milvus_offline.model import Finding, Piece, Severity
from milvus_offline.report import inspect_document, inspect_text

FIXTURES = Path(__file__).parent.parent / "fixtures" / "stores"
SECONDS = 20
"""More than this for one case counts as a hang."""
SLACK = 48 << 20
"""Bytes that a reader may take beyond the sizes of the store's files."""
EXTREMES = (0, 1, 7, 8, 9, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)

Keys = Counter[bytes]
"""A multiset of rows, each as its id and its vector's bytes."""


# What a healthy store holds -----------------------------------------------------------------------------------------------


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
                keys = _keys(arrays[f"{p['arrays']}_ids"], arrays[f"{p['arrays']}_vectors"])
                assert self.outcome.keys(c["name"], p["name"]) == keys

    @cached_property
    def stored(self) -> Keys:
        """Every row in any segment folder and in the log, deleted ones too."""
        result: Keys = Counter()
        for folder in self.segments:
            naive = read_naively(self.root / folder)
            if naive is not None and naive.width:
                result += naive.stored
        for record in self.records:
            result.update(record.keys)
        return result

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
                keys = tuple(_keys(ids, vectors).elements()) if vectors is not None else ()
                result.append(LogRecord(name, start, start + 21, ids_at, end, tuple(ids.tolist()), not s, keys))
                start = end
        return result

    @cached_property
    def catalog(self) -> dict[str, dict[Any, tuple[Any, ...]]] | None:
        return read_catalog(self.root / "db")


@cache
def base(name: str) -> Base:
    return Base(name)


@lru_cache(maxsize=1)
def store_names() -> tuple[str, ...]:
    return tuple(sorted(p.name for p in FIXTURES.iterdir() if (p / "truth.npz").is_file()))


def _keys(ids: Any, vectors: Any) -> Keys:
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
            result += _keys(batch.ids, batch.vectors)
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
    vectors, numbers = raw[0].read_bytes(), ids[0].read_bytes()
    consistent = True
    declared = []
    for data in (vectors, numbers):
        size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
        consistent &= 0 <= size <= len(data) - 8  # bytes behind the payload mean nothing
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
    return Naive(width, rows, _keys(all_ids, all_vectors), _keys(all_ids[alive], all_vectors[alive]), consistent)


def read_catalog(db: Path) -> dict[str, dict[Any, tuple[Any, ...]]] | None:
    """Table -> row id -> row as SQLite itself gives them; None when it cannot, or finds its file damaged."""
    import tempfile

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


# Damage -------------------------------------------------------------------------------------------------------------------


class Mutant:
    """A copy of a store that can be damaged: files are hard links to a copy of the base until they are changed."""

    def __init__(self, original: Base, links: Path, root: Path) -> None:
        self.base = original
        self.root = root
        self.touched: set[str] = set()
        self.log: list[str] = []
        for folder in sorted({Path(f).parent for f in original.files}):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in original.files:
            os.link(links / name, root / name)

    def files(self, *suffixes: str, folder: str = "") -> list[str]:
        found = (f for f in self.base.files if f.startswith(folder) and f.endswith(suffixes or ("",)))
        return [f for f in found if (self.root / f).is_file()]

    def read(self, name: str) -> bytearray:
        return bytearray((self.root / name).read_bytes())

    def write(self, name: str, data: bytes | bytearray, what: str) -> None:
        self.remove(name, what)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(data)

    def remove(self, name: str, what: str = "removed") -> None:
        self.touched |= {name, *(f for f in self.base.files if f.startswith(name + "/"))}
        self.log.append(f"{name}: {what}")
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


Recipe = Callable[[Mutant, random.Random], Any]
RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    RECIPES[function.__name__.replace("_", "-")] = function
    return function


def _flip(data: bytearray, rng: random.Random, low: int = 0, high: int | None = None) -> str:
    if not data:
        return "empty, nothing to flip"
    places = [rng.randrange(low, min(high or len(data), len(data))) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    for at in places:
        data[at] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places}"


def _cut(data: bytearray, rng: random.Random) -> str:
    size = rng.choice((0, 1, 7, 8, 9, len(data) - 1, len(data) - 8, len(data) // 2, rng.randint(0, len(data))))
    del data[max(0, size) :]
    return f"cut to {len(data)} bytes"


def _zero(data: bytearray, rng: random.Random) -> str:
    block = rng.choice((8, 512, 4096))
    first = rng.randint(0, len(data)) // block * block
    last = min(len(data), first + block * rng.choice((1, 1, 4)))
    data[first:last] = bytes(last - first)
    return f"zeroed {first}..{last}"


def _stretch(data: bytearray, rng: random.Random) -> str:
    more = rng.choice((1, 4, 8, 4096))
    data += rng.randbytes(more)
    return f"{more} bytes behind its end"


def _spoil(mutant: Mutant, rng: random.Random, name: str) -> None:
    data = mutant.read(name)
    mutant.write(name, data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))


def _pick(mutant: Mutant, rng: random.Random, *suffixes: str, folder: str = "db/tables/") -> str | None:
    """A file of a live segment; now and then any other."""
    names = mutant.files(*suffixes, folder=folder)
    live = [n for n in names if n.split("/")[3] in mutant.base.live]
    return rng.choice(live if live and rng.random() < 0.95 else names) if names else None


_ROWS = (".rv", ".uid", "deleted_docs")


@recipe
def segment_bits(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        data = m.read(name)
        m.write(name, data, _flip(data, rng, 0, rng.choice((8, 16, None))))


@recipe
def segment_cut(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        data = m.read(name)
        m.write(name, data, _cut(data, rng))


@recipe
def segment_zeroed(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        data = m.read(name)
        m.write(name, data, _zero(data, rng))


@recipe
def segment_stretched(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        data = m.read(name)
        m.write(name, data, _stretch(data, rng))


@recipe
def segment_header(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        data = m.read(name)
        size = len(data) - 8
        near = [max(0, size + d) for d in (-8, -4, -1, 1, 4, 8)] + [size * 2, size // 2]
        value = rng.choice([*EXTREMES, *near])
        data[:8] = struct.pack("<Q", value)
        m.write(name, data, f"header {value} instead of {size}")


@recipe
def segment_sparse(m: Mutant, rng: random.Random) -> None:
    """A file that claims to be, and is, far larger than it should (it has holes)."""
    if name := _pick(m, rng, ".rv", ".uid"):
        data = m.read(name)
        data[:8] = struct.pack("<Q", (1 << 33) - 8)
        m.write(name, data, "stretched to 8 GiB, header too")
        os.truncate(m.root / name, 1 << 33)


@recipe
def segment_swapped(m: Mutant, rng: random.Random) -> None:
    suffix = rng.choice(_ROWS)
    first, second = _pick(m, rng, suffix), _pick(m, rng, suffix)
    if first and second:
        a, b = m.read(first), m.read(second)
        m.write(first, b, f"swapped with {second}")
        m.write(second, a, f"swapped with {first}")


@recipe
def segment_pair_swapped(m: Mutant, rng: random.Random) -> None:
    """Vectors and ids of one segment in place of another's."""
    first, second = _pick(m, rng, ".rv"), _pick(m, rng, ".rv")
    if first and second:
        for suffix in (".rv", ".uid"):
            name, other = (str(Path(f).with_suffix(suffix)) for f in (first, second))
            if (m.root / other).is_file():
                m.write(name, m.read(other), f"copied from {other}")


@recipe
def segment_kinds_swapped(m: Mutant, rng: random.Random) -> None:
    if (raw := _pick(m, rng, ".rv")) and (m.root / raw).with_suffix(".uid").is_file():
        ids = str(Path(raw).with_suffix(".uid"))
        a, b = m.read(raw), m.read(ids)
        m.write(raw, b, f"swapped with {ids}")
        m.write(ids, a, f"swapped with {raw}")


@recipe
def segment_deletes_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, "deleted_docs"):
        other = rng.choice([n for s in store_names() for n in [s]])
        theirs = [f for f in base(other).files if f.endswith("deleted_docs")]
        if theirs:
            source = rng.choice(theirs)
            m.write(name, base(other).files[source].read_bytes(), f"copied from {other}/{source}")


@recipe
def segment_deletes_made_up(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, "deleted_docs"):
        entries = [rng.choice((0, 1, -1, 2**31 - 1, -(2**31), rng.randint(0, 3000))) for _ in range(rng.randint(1, 2000))]
        m.write(name, struct.pack(f"<Q{len(entries)}i", 4 * len(entries), *entries), "offsets made up")


@recipe
def segment_file_removed(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        m.remove(name)


@recipe
def segment_removed(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".uid"):
        m.remove(name.rsplit("/", 1)[0])


@recipe
def segment_is_file(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".uid"):
        m.write(name.rsplit("/", 1)[0], rng.randbytes(rng.choice((0, 8, 100))), "a file in place of the folder")


@recipe
def segment_file_is_folder(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS, "bloom_filter"):
        m.remove(name, "a folder in its place")
        (m.root / name).mkdir()


@recipe
def segment_file_is_pipe(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        m.remove(name, "a named pipe in its place")
        os.mkfifo(m.root / name)


@recipe
def segment_file_is_dead_link(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        m.remove(name, "a link to itself in its place")
        (m.root / name).symlink_to((m.root / name).name)


@recipe
def segment_raw_twice(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, ".rv", ".uid"):
        m.write(f"{name.rsplit('/', 1)[0]}/7{Path(name).suffix}", m.read(name), "a second file of the kind")


@recipe
def segment_beside(m: Mutant, rng: random.Random) -> None:
    """Damage in files that no live row depends on: bloom filters and index files; the rows must stay."""
    others = [n for n in m.files(folder="db/tables/") if not n.endswith(_ROWS)]
    if others:
        _spoil(m, rng, rng.choice(others))


@recipe
def segment_several(m: Mutant, rng: random.Random) -> None:
    if name := _pick(m, rng, *_ROWS):
        for other in m.files(folder=name.rsplit("/", 1)[0]):
            if rng.random() < 0.5:
                _spoil(m, rng, other)


@recipe
def raw_lost_index_damaged(m: Mutant, rng: random.Random) -> None:
    raws = [r for r in m.files(".rv") if _indexes(m, r)]
    if not raws:
        return segment_several(m, rng)
    raw = rng.choice(raws)
    if rng.random() < 0.5:
        m.remove(raw)
    else:
        data = m.read(raw)
        m.write(raw, data, _cut(data, rng))
    for index in _indexes(m, raw):
        if rng.random() < 0.7:
            data = m.read(index)
            if rng.random() < 0.5:
                at = rng.randrange(0, min(len(data), 400))
                value = rng.choice(EXTREMES)
                data[at : at + 8] = struct.pack("<Q", value)
                m.write(index, data, f"{value} at byte {at}")
            else:
                m.write(index, data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))
    return None


def _indexes(m: Mutant, raw: str) -> list[str]:
    return [f for f in m.files(folder=raw.rsplit("/", 1)[0] + "/") if f.rsplit("/", 1)[1].isdigit()]


@recipe
def table_removed(m: Mutant, rng: random.Random) -> None:
    if m.base.segments:
        m.remove("/".join(rng.choice(m.base.segments).split("/")[: rng.choice((2, 3, 3, 3))]))


@recipe
def table_is_file(m: Mutant, rng: random.Random) -> None:
    if m.base.segments:
        m.write("/".join(rng.choice(m.base.segments).split("/")[:3]), b"x", "a file in place of the folder")


# The log


def _log(m: Mutant, rng: random.Random) -> str | None:
    names = m.files(".wal")
    return rng.choice(names) if names else None


@recipe
def wal_spoiled(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        _spoil(m, rng, name)


@recipe
def wal_record_header(m: Mutant, rng: random.Random) -> None:
    """One field of one record's header: extreme, or off by one."""
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        at, form = rng.choice(((0, "<Q"), (0, "<I"), (4, "<I"), (8, "<B"), (9, "<H"), (11, "<H"), (13, "<I"), (17, "<I")))
        old = struct.unpack_from(form, data, record.start + at)[0]
        limit = 1 << 8 * struct.calcsize(form)
        value = rng.choice([e % limit for e in EXTREMES] + [(old + 1) % limit, (old - 1) % limit, old ^ 1 << rng.randrange(8)])
        struct.pack_into(form, data, record.start + at, value)
        m.write(record.file, data, f"record at {record.start}: {value} instead of {old} at +{at}")


@recipe
def wal_bits_in_headers(m: Mutant, rng: random.Random) -> None:
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        m.write(record.file, data, _flip(data, rng, record.start, record.ids_at))


@recipe
def wal_record_removed(m: Mutant, rng: random.Random) -> None:
    """Bytes of one record are zeroed or cut out."""
    if m.base.records:
        record = rng.choice(m.base.records)
        data = m.read(record.file)
        if rng.random() < 0.5:
            data[record.start : record.end] = bytes(record.end - record.start)
        else:
            del data[record.start : record.end]
        m.write(record.file, data, f"record at {record.start} is gone")


@recipe
def wal_hostile_record(m: Mutant, rng: random.Random) -> None:
    """A whole, self-consistent record with names of 64 KiB or no ids behind the last one."""
    if name := _log(m, rng):
        data, number = m.read(name), int(Path(name).stem)
        c, t = (rng.randbytes(rng.choice((0, 1, 255, 65535))) for _ in range(2))
        n, s = rng.choice((0, 1, 7)), rng.choice((0, 1, 32, 4096))
        kind, total = rng.choice((0, 1, 2, 3, 5, 6, 255)), 21 + len(c) + len(t) + 8 * n + s
        head = struct.pack("<QBHHII", number << 32 | len(data) + total, kind, len(c), len(t), n, s)
        m.write(
            name, data + head + c + t + rng.randbytes(8 * n + s), f"record of type {kind}, {len(c)}+{len(t)}+{n}*8+{s} bytes"
        )
        _acknowledge(m, rng, number << 32 | len(data) + total)


def _acknowledge(m: Mutant, rng: random.Random, lsn: int) -> None:
    if m.files("mxlog.meta") and rng.random() < 0.7:
        m.write("wal/mxlog.meta", struct.pack("<3Q", lsn, lsn, lsn), f"acknowledges {lsn}")


@recipe
def wal_entity_record(m: Mutant, rng: random.Random) -> None:
    """A record with attributes whose tables lie."""
    if name := _log(m, rng):
        data, number = m.read(name), int(Path(name).stem)
        count = rng.choice((0, 1, 2, 2**31, 2**32 - 1))
        table = b"".join(struct.pack("<Q", rng.choice(EXTREMES)) for _ in range(3 * min(count, 4)))
        body = struct.pack("<I", count) + table + rng.randbytes(rng.choice((0, 64, 300)))
        end = len(data) + 21 + len(body) + rng.choice((0, 0, 1))
        head = struct.pack("<QBHHII", number << 32 | end, 6, rng.choice((0, 3)), 0, rng.choice((0, 1)), rng.choice((0, 32)))
        m.write(name, data + head + body, f"entity record with {count} attributes")
        _acknowledge(m, rng, number << 32 | end)


@recipe
def wal_file_removed(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        m.remove(name)


@recipe
def wal_renumbered(m: Mutant, rng: random.Random) -> None:
    if name := _log(m, rng):
        number = int(Path(name).stem) + rng.choice((1, 2, 7))
        data = m.read(name)
        if rng.random() < 0.7:
            m.remove(name)
        m.write(f"wal/{number}.wal", data, f"a copy of {name}")


@recipe
def wal_folder(m: Mutant, rng: random.Random) -> None:
    how = rng.choice(("removed", "file", "emptied", "folder for file"))
    if how == "removed":
        m.remove("wal")
    elif how == "file":
        m.write("wal", b"x", "a file in place of the folder")
    elif how == "emptied":
        m.remove("wal", how)
        (m.root / "wal").mkdir()
    elif name := _log(m, rng):
        m.remove(name, how)
        (m.root / name).mkdir()


@recipe
def wal_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    other = base(rng.choice(store_names()))
    m.remove("wal", f"that of {other.name}")
    shutil.copytree(other.root / "wal", m.root / "wal")


@recipe
def mxlog_damaged(m: Mutant, rng: random.Random) -> None:
    if m.files("mxlog.meta"):
        data = m.read("wal/mxlog.meta")
        how = rng.randrange(4)
        if how == 0:
            m.remove("wal/mxlog.meta")
        elif how == 1:
            m.write("wal/mxlog.meta", data, rng.choice((_flip, _cut, _zero, _stretch))(data, rng))
        elif how == 2:
            lsn = struct.unpack_from("<Q", data, 8)[0]
            value = rng.choice((*EXTREMES, lsn + 1, lsn - 1, lsn + (1 << 32), lsn + 4096, lsn // 2))
            m.write("wal/mxlog.meta", struct.pack("<3Q", value, value, value), f"{value} instead of {lsn}")
        else:
            first, _, lsn = struct.unpack("<3Q", data)
            m.write("wal/mxlog.meta", struct.pack("<3Q", first, lsn, rng.choice(EXTREMES)), "torn")


# The catalog


@recipe
def catalog_spoiled(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal"):
        _spoil(m, rng, rng.choice([n for n in names if m.read(n)]))


@recipe
def catalog_bits_at_front(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal"):
        name = rng.choice([n for n in names if m.read(n)])
        data = m.read(name)
        m.write(name, data, _flip(data, rng, 0, 120))


@recipe
def catalog_pages(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite"):
        data = m.read(names[0])
        page, other = (4096 * rng.randrange(len(data) // 4096) for _ in range(2))
        how = rng.choice(("zeroed", "random", "from another page", "bytes within"))
        if how == "zeroed":
            data[page : page + 4096] = bytes(4096)
        elif how == "random":
            data[page : page + 4096] = rng.randbytes(4096)
        elif how == "from another page":
            data[page : page + 4096] = data[other : other + 4096]
        else:
            at = page + rng.choice((0, 3, 5, 8, rng.randrange(4000)))
            data[at : at + 4] = struct.pack(">I", rng.choice(EXTREMES) % 2**32)
        m.write(names[0], data, f"page at {page} {how}")


@recipe
def catalog_frames(m: Mutant, rng: random.Random) -> None:
    """One frame of the -wal: its header or its page, or the -wal cut at or inside of it."""
    name = "db/meta.sqlite-wal"
    if m.files(name) and len(data := m.read(name)) > 4152:
        at = 32 + 4120 * rng.randrange((len(data) - 32) // 4120)
        if rng.random() < 0.3:
            del data[at + rng.choice((0, 0, 24, 2000)) :]
            m.write(name, data, f"cut to {len(data)}")
        else:
            m.write(name, data, _flip(data, rng, at, at + rng.choice((24, 4120))))


@recipe
def catalog_file_removed(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm"):
        for name in rng.sample(names, rng.randint(1, len(names))):
            m.remove(name)


@recipe
def catalog_is_folder(m: Mutant, rng: random.Random) -> None:
    if names := m.files("meta.sqlite", "meta.sqlite-wal", "meta.sqlite-shm"):
        name = rng.choice(names)
        m.remove(name, "a folder in its place")
        (m.root / name).mkdir()


@recipe
def catalog_shm(m: Mutant, rng: random.Random) -> None:
    data = (
        bytearray(rng.randbytes(32768))
        if rng.random() < 0.5
        else bytearray(m.read("db/meta.sqlite-shm") if m.files("-shm") else b"")
    )
    if m.files("meta.sqlite"):
        m.write("db/meta.sqlite-shm", data, "-shm: " + rng.choice((_flip, _cut, _zero))(data, rng))


@recipe
def catalog_from_elsewhere(m: Mutant, rng: random.Random) -> None:
    if m.files("meta.sqlite"):
        other = base(rng.choice(store_names()))
        for suffix in ("", "-wal", "-shm"):
            m.remove(f"db/meta.sqlite{suffix}", f"that of {other.name}")
            if f"db/meta.sqlite{suffix}" in other.files:
                m.write(f"db/meta.sqlite{suffix}", other.files[f"db/meta.sqlite{suffix}"].read_bytes(), f"that of {other.name}")


HOSTILE: tuple[Any, ...] = (
    *(
        None,
        b"",
        b"\xff\xfe",
        "",
        " ",
        "..",
        ".",
        "../../etc",
        "a/b",
        "\0",
        "x" * 65536,
        "\udcff".encode("utf-8", "surrogatepass"),
    ),
    *(
        -1,
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        99,
        2**15,
        2**31,
        2**31 - 1,
        2**32,
        2**62,
        2**63 - 1,
        -(2**63),
        1.5,
        1e300,
        float("inf"),
    ),
    *(
        "{",
        '{"nlist": 1e999}',
        "[" * 5000,
        '{"a": ' * 3000,
        "0" * 5000,
        "9" * 5000,
        "1.1.1",
        "९",
        "+1",
        "1_000",
        "\x1b[31m",
        "'",
    ),
)


@recipe
def catalog_values(m: Mutant, rng: random.Random) -> None:
    """The catalog stays a valid database, with values that no server writes."""
    if not m.files("meta.sqlite"):
        return dump_spoiled(m, rng)
    db = m.root / "db/meta.sqlite"
    for suffix in ("", "-wal"):
        if f"db/meta.sqlite{suffix}" in m.base.files:
            m.write(f"db/meta.sqlite{suffix}", m.read(f"db/meta.sqlite{suffix}"), "values changed")
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        for _ in range(rng.choice((1, 1, 2, 5))):
            table = rng.choice(("Tables", "TableFiles", "TableFiles", "Environment"))
            columns = [c[1] for c in connection.execute(f"PRAGMA table_info({table})")]
            column, value = rng.choice(columns), rng.choice(HOSTILE)
            rows = [r[0] for r in connection.execute(f"SELECT rowid FROM {table}")]
            if rows:
                with contextlib.suppress(sqlite3.Error):
                    row = rng.choice(rows)
                    connection.execute(f"UPDATE {table} SET {column}=? WHERE rowid=?", (value, row))
                    m.log.append(f"{table} {row}: {column} = {value!r:.60}")
    for suffix in ("-wal", "-shm"):
        m.remove(f"db/meta.sqlite{suffix}")
    return None


@recipe
def catalog_schema(m: Mutant, rng: random.Random) -> None:
    """Tables dropped, renamed, emptied, with columns too many, or of another kind."""
    if not m.files("meta.sqlite"):
        return dump_spoiled(m, rng)
    table = rng.choice(("Tables", "TableFiles", "Environment", "Fields"))
    sql = rng.choice(
        (
            f"DROP TABLE IF EXISTS {table}",
            f"DELETE FROM {table}",
            f"ALTER TABLE {table} RENAME TO {table}_old",
            f"ALTER TABLE {table} ADD COLUMN more BLOB DEFAULT x'00ff'",
            "ALTER TABLE TableFiles DROP COLUMN segment_id",
            "ALTER TABLE Tables DROP COLUMN dimension",
            "ALTER TABLE Tables RENAME COLUMN table_id TO other",
            "ALTER TABLE TableFiles RENAME TO x; CREATE VIEW TableFiles AS SELECT * FROM x",
            "ALTER TABLE Tables RENAME TO x; CREATE VIEW Tables AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) "
            "SELECT * FROM x, n",
            'CREATE TABLE "a""b;--"(x); CREATE TABLE collection(x); CREATE TABLE Collection2(x)',
            "CREATE TABLE Collection(x); CREATE TABLE CollectionCommit(x); CREATE TABLE SegmentCommit(x)",
        )
    )
    for suffix in ("", "-wal"):
        if f"db/meta.sqlite{suffix}" in m.base.files:
            m.write(f"db/meta.sqlite{suffix}", m.read(f"db/meta.sqlite{suffix}"), sql)
    with contextlib.closing(sqlite3.connect(m.root / "db/meta.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        with contextlib.suppress(sqlite3.Error):
            connection.executescript(sql)
    for suffix in ("-wal", "-shm"):
        m.remove(f"db/meta.sqlite{suffix}")
    return None


@recipe
def dump_spoiled(m: Mutant, rng: random.Random) -> None:
    if m.base.dump is None:
        return catalog_spoiled(m, rng)
    assert m.base.dump
    data = m.read(rng.choice(m.files(".sql", ".xml")))
    how = rng.randrange(6)
    if how == 0:
        what = _flip(data, rng)
    elif how == 1:
        what = _cut(data, rng)
    elif how == 2:
        what = _zero(data, rng)
    elif how == 3:
        at = rng.randrange(len(data))
        more = rng.choice(
            (b"'", b'"', b"`", b"(", b")", b";", b"/*", b"*/", b"\\", b"\0", b",", b"\n-- ", b"9" * 5000, b"x" * 65536)
        )
        data[at:at] = more
        what = f"{more[:8]!r} put in at {at}"
    elif how == 4:
        first, last = sorted(rng.randrange(len(data)) for _ in range(2))
        data[first:first] = data[first:last]
        what = f"{first}..{last} is there twice"
    else:
        import gzip

        data = bytearray(gzip.compress(bytes(data)))
        what = "compressed; " + rng.choice((_flip, _cut, _zero))(data, rng)
    m.write(m.base.dump, data, what)
    return None


# The rest


_CONFIGS = (
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"- a\n- b\n",
    b"storage: [1, 2]\nwal: 7\ngeneral: {meta_uri: {a: b}}\n",
    b"storage:\n  path: 2020-13-45\n",
    b"storage:\n  path: !!python/object/apply:os.system [echo]\n",
    b"storage: {path: &a [*a]}\n",
    b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
    b"g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\nstorage: {path: *h}\n",
    b"[" * 20000,
    b'wal: {path: "\\0"}\nstorage: {path: "\\0"}\n',
    b"wal: {path: " + b"x" * 65536 + b", enable: maybe}\n",
    b'wal: {path: /, enable: 3}\nstorage: {path: /}\nstorage_config: {secondary_path: /;/proc;;..;"\\0"}\n',
    b"wal: {enable: !!int x}\n",
    b"x: !!timestamp 9999-99-99\n",
    b"? {a: b}\n: c\n",
    b"storage: {path: " + b"9" * 5000 + b"}\n",
)


@recipe
def config_damaged(m: Mutant, rng: random.Random) -> None:
    name = "server_config.yaml"
    if rng.random() < 0.5:
        m.write(name, rng.choice(_CONFIGS), "another configuration")
    elif m.files(name):
        _spoil(m, rng, name)


@recipe
def anything(m: Mutant, rng: random.Random) -> None:
    """Several files anywhere in the store, as after a bad disk."""
    for name in rng.sample(m.files(), min(len(m.files()), rng.randint(2, 12))):
        if (m.root / name).is_file():
            if rng.random() < 0.2:
                m.remove(name)
            else:
                _spoil(m, rng, name)


# Cases --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    store: str
    recipe: str
    seed: int

    def __str__(self) -> str:
        return f"{self.store}:{self.recipe}:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Case:
        store, name, seed = text.split(":")
        return cls(store, name, int(seed))


def case_of(seed: int) -> Case:
    """The case of a seed: all recipes in turn, all stores at random."""
    names = sorted(RECIPES)
    return Case(random.Random(seed).choice(store_names()), names[seed % len(names)], seed)


@dataclass
class Result:
    case: Case
    damage: list[str]
    problems: list[str] = field(default_factory=list)
    error: str | None = None
    """The error with which the store was refused."""
    peak: int = 0


class _Hang(BaseException):
    pass


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _state(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything about the tree that changes when somebody writes to it (a ctime cannot be put back)."""
    found = {}
    for path in (root, *root.rglob("*")):
        s = path.lstat()
        found[str(path)] = (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return found


class Bench:
    """Runs cases in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: set[str] = set()

    def _links(self, name: str) -> Path:
        links = self.folder / "base" / name
        if name not in self._made:
            shutil.copytree(base(name).root, links)
            for path in links.rglob("*"):
                path.chmod(path.stat().st_mode | 0o200)
            self._made.add(name)
        return links

    @contextlib.contextmanager
    def mutant(self, case: Case) -> Iterator[Mutant]:
        root = self.folder / "mutant"
        shutil.rmtree(root, ignore_errors=True)
        mutant = Mutant(base(case.store), self._links(case.store), root)
        RECIPES[case.recipe](mutant, random.Random(f"{case.recipe} {case.seed}"))
        yield mutant

    def run(self, case: Case, *, measured: bool = False, salvaged: bool = False) -> Result:
        """Opens, reads and reports the damaged store, and judges it. `measured`: the memory, too (slow)."""
        with self.mutant(case) as mutant:
            result = Result(case, mutant.log)
            before = _state(mutant.root)
            if measured:
                tracemalloc.start()
            store = outcome = None
            try:
                with _limited(SECONDS * (5 if measured else 1)):
                    dump = mutant.base.dump
                    store = open_store(mutant.root, mutant.root / dump if dump else None)
                    outcome = Outcome.of(store)
                    json.dumps(document := inspect_document(store))
                    inspect_text(document).encode("utf-8")
                    if salvaged:
                        self._salvage(store, result)
            except MilvusOfflineError as e:
                result.error = f"{type(e).__name__}: {e}"
                if store is not None:
                    result.problems.append(f"opened, but reading it fails: {result.error}")
            except _Hang:
                result.problems.append(f"hangs for more than {SECONDS} s")
            except Exception as e:
                import traceback

                place = traceback.extract_tb(e.__traceback__)[-1]
                own = [f for f in traceback.extract_tb(e.__traceback__) if "milvus_offline" in f.filename][-1]
                result.problems.append(
                    f"{type(e).__name__}: {e} ({Path(own.filename).name}:{own.lineno} {own.name}; {Path(place.filename).name})"
                )
            finally:
                if measured:
                    result.peak = tracemalloc.get_traced_memory()[1]
                    tracemalloc.stop()
                    if result.peak > mutant.base.bytes + SLACK:
                        result.problems.append(f"took {result.peak >> 20} MiB for a store of {mutant.base.bytes >> 20} MiB")
            if _state(mutant.root) != before:
                result.problems.append("the source was changed")
            if not result.problems:
                with _limited(60):
                    result.problems += judge(mutant, store, outcome, result.error)
        return result

    def _salvage(self, store: Store, result: Result) -> None:
        for item in collect(store, ["all"])[0]:
            for piece in item.pieces:
                read = read_piece(piece, 5000)
                if read.rows != read.given:
                    result.problems.append(f"salvaged {item.kind} {piece.id}: {read.rows} rows announced, {read.given} came")


# Judging ------------------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, store: Store | None, outcome: Outcome | None, error: str | None) -> list[str]:
    """What is wrong with the outcome, in sentences."""
    touched = {_class_of(name) for name in mutant.touched}
    if store is None or outcome is None:
        only_rows = touched <= {"segment", "beside", "log"} and ((mutant.root / "db/tables").is_dir() or not mutant.base.dump)
        return [f"refused although only {', '.join(sorted(touched))} is damaged: {error}"] if only_rows else []
    problems = [
        f"{where} {piece_id}: {p.rows} rows announced, {p.given} came"
        for where, pieces in outcome.pieces.items()
        for piece_id, p in pieces.items()
        if p.rows != p.given
    ]
    alarms = [f for f in store.findings if f.severity is not Severity.INFO and (f.code, f.where) not in mutant.base.findings]
    if touched <= {"segment", "beside"}:
        return problems + _judge_segments(mutant, outcome, alarms)
    if touched <= {"log"}:
        return problems + _judge_log(mutant, outcome, alarms)
    if touched <= {"catalog"} and not mutant.base.dump:
        return problems + _judge_catalog(mutant, store, outcome, alarms)
    if touched <= {"config"}:
        return problems + _judge_config(mutant, outcome, alarms)
    if not alarms and "segment" not in touched and "log" not in touched:
        problems += _only_stored(mutant, outcome)
    return problems


def _class_of(name: str) -> str:
    if name.startswith("wal/") or name == "wal":
        return "log"
    if name.startswith("db/tables"):
        is_rows = name.endswith(_ROWS) or name.count("/") < 4
        return "segment" if is_rows else "beside"
    if name.startswith(("db/meta.", "meta.")):
        return "catalog"
    return "config" if name == "server_config.yaml" else "other"


def _difference(expected: Outcome, outcome: Outcome, where: tuple[str, str]) -> tuple[Keys, Keys]:
    """Rows of a partition that are missing, and rows that are there beyond."""
    a, b = expected.pieces.get(where, {}), outcome.pieces.get(where, {})
    if {k: p.digest for k, p in a.items()} == {k: p.digest for k, p in b.items()}:
        return Counter(), Counter()
    before, now = expected.keys(*where), outcome.keys(*where)
    return before - now, now - before


def _all_differences(mutant: Mutant, outcome: Outcome) -> dict[tuple[str, str], tuple[Keys, Keys]]:
    places = {**mutant.base.outcome.pieces, **outcome.pieces}
    found = {w: _difference(mutant.base.outcome, outcome, w) for w in places}
    return {w: d for w, d in found.items() if d[0] or d[1]}


def _only_stored(mutant: Mutant, outcome: Outcome) -> list[str]:
    differences = _all_differences(mutant, outcome)
    strangers = sum((extra - mutant.base.stored).total() for _, extra in differences.values())
    return [f"{strangers} rows came out that are stored nowhere, without a finding"] if strangers else []


def _summary(differences: dict[tuple[str, str], tuple[Keys, Keys]]) -> str:
    return "; ".join(f"{w}: {a.total()} missing, {b.total()} too many" for w, (a, b) in differences.items())


def _judge_segments(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    problems = []
    damaged = {n.split("/")[3] for n in mutant.touched if n.count("/") > 3 and _class_of(n) == "segment"}
    damaged |= {s.split("/")[3] for s in mutant.base.segments if not (mutant.root / s).is_dir()}
    for where, expected in mutant.base.outcome.pieces.items():
        given = outcome.pieces.get(where, {})
        recovered = any(f.code == "rows-from-log" for f in alarms)
        allowed: Keys = Counter()
        unsure = False  # an index with flipped bits may have given other vectors
        for piece_id, piece in expected.items():
            got = given.get(piece_id)
            if piece_id not in damaged:
                if (got is None or got.digest != piece.digest) and not (piece_id == "wal" and recovered):
                    rows = f"{piece.rows} rows, now {got.rows if got else 'no piece'}"
                    problems.append(f"{where} {piece_id} is untouched but differs: {rows}")
                continue
            folder = mutant.root / next(s for s in mutant.base.segments if s.endswith("/" + piece_id))
            naive = read_naively(folder, mutant.base.row_bytes[where[0]])
            alarmed = any(piece_id in f.where for f in alarms)
            now = got.keys() if got else Counter()
            stored = mutant.base.live[piece_id]
            original = _keys(stored.ids, stored.vectors)
            if naive is not None and naive.consistent:
                by_log = Counter({k: n for k, n in naive.live.items() if _id(k) in mutant.base.wal_deleted})
                if now != naive.live and (now - naive.live or (naive.live - now) - by_log) and not alarmed:
                    problems.append(f"{where} {piece_id}: looks sound, {naive.live.total()} rows, but {now.total()} came out")
                catalogued = _catalogued_bytes(mutant, piece_id)
                size = naive.rows * (naive.width + 8)
                if not alarmed and catalogued is not None and catalogued != size:
                    problems.append(f"{where} {piece_id}: {size} bytes where the catalog says {catalogued}, without a finding")
            elif not alarmed and now != piece.keys():
                problems.append(f"{where} {piece_id}: {piece.rows} rows became {now.total()} without a finding")
            if not _index_touched(mutant, piece_id):
                allowed += original + (naive.stored if naive else Counter())
            else:
                unsure = True
        if any(p in damaged for p in expected):
            strangers = outcome.keys(*where) - mutant.base.outcome.keys(*where) - allowed
            if strangers and not unsure:
                problems.append(f"{where}: {strangers.total()} rows that are stored nowhere, or twice")
    return problems


def _index_touched(mutant: Mutant, segment_id: str) -> bool:
    return any(f"/{segment_id}/" in n and _class_of(n) == "beside" for n in mutant.touched)


def _catalogued_bytes(mutant: Mutant, segment_id: str) -> int | None:
    rows = (mutant.base.catalog or {}).get("TableFiles", {})
    return next((r[6] for r in rows.values() if r[2] == r[4] == segment_id.encode() and r[5] in (1, 2, 7)), None)


def _id(key: bytes) -> int:
    return int.from_bytes(key[:8], "little", signed=True)


def _judge_log(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    differences = _all_differences(mutant, outcome)
    if not differences or any(f.code.startswith(("wal", "mxlog", "flush")) for f in alarms) or "that of" in str(mutant.log):
        return []
    missing = sum((d[0] for d in differences.values()), Counter())
    extra = sum((d[1] for d in differences.values()), Counter())
    ids, rows = set(), Counter()
    for name in mutant.touched:
        path = mutant.root / name
        if not name.endswith(".wal") or name not in mutant.base.files or not path.is_file():
            continue
        old, new = (np.frombuffer(p.read_bytes(), np.uint8) for p in (mutant.base.files[name], path))
        if len(new) < len(old):
            break
        hit = np.flatnonzero(old != new[: len(old)])
        for record in (r for r in mutant.base.records if r.file == name):
            inside = hit[(hit >= record.start) & (hit < record.end)]
            if len(inside) and (inside >= record.names_at).all():  # names, ids and vectors carry no check
                if record.is_delete:
                    ids |= set(record.ids)
                    ids |= set(new[record.ids_at : record.end].view("<i8").tolist())
                else:
                    rows.update(record.keys)
    count = rows.total()
    foreseen = set(rows) | {k for k in (missing | extra) if _id(k) in ids}
    lost = Counter({k: n for k, n in missing.items() if k not in foreseen})
    surplus = Counter({k: n for k, n in extra.items() if k not in foreseen})
    if lost or surplus.total() > count:
        return [f"without a finding about the log: {_summary(differences)}"]
    return []


def _judge_catalog(mutant: Mutant, store: Store, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    if alarms:
        return []
    differences = _all_differences(mutant, outcome)
    if not differences:
        return []
    before, now = mutant.base.catalog, read_catalog(mutant.root / "db")
    assert before is not None
    if now is None:
        return [f"the catalog is damaged, no finding says so: {_summary(differences)}"]
    problems = _only_stored(mutant, outcome)
    changed = {
        table: {r for r in before[table].keys() | now[table].keys() if before[table].get(r) != now[table].get(r)}
        for table in before
    }
    removed = [f"db/meta.sqlite{s}" for s in ("-wal", "-shm") if not (mutant.root / f"db/meta.sqlite{s}").exists()]
    wal_lost = "db/meta.sqlite-wal" in mutant.touched and "values" not in str(mutant.log) and "ALTER" not in str(mutant.log)
    if (
        wal_lost
        and len(removed) < 2
        and "that of" not in str(mutant.log)
        and "TABLE" not in str(mutant.log)
        and "DELETE" not in str(mutant.log)
    ):
        problems.append(f"the -wal is damaged, no finding says so: {_summary(differences)}")
    if changed["Environment"] or _lsns(before) != _lsns(now):
        return problems
    names = {
        r[i].decode("utf-8", "replace") if isinstance(r[i], bytes) else str(r[i])
        for table, rows in changed.items()
        for rowid in rows
        for r in (before[table].get(rowid), now[table].get(rowid))
        if r is not None
        for i in ((0, 1, 10) if table == "Tables" else (0, 1))
    }
    concerned = names | {mutant.base.collection_of.get(n, n) for n in names}
    for where in differences:
        if where[0] not in concerned:
            problems.append(f"{where} is not concerned by the damage of the catalog but differs")
    return problems


def _lsns(catalog: dict[str, dict[Any, tuple[Any, ...]]]) -> dict[Any, Any]:
    return {rowid: row[-1] for rowid, row in catalog["Tables"].items()}


def _judge_config(mutant: Mutant, outcome: Outcome, alarms: list[Finding]) -> list[str]:
    differences = _all_differences(mutant, outcome)
    if not differences or alarms:
        return []
    import yaml

    documents = []
    for path in (mutant.root / "server_config.yaml", mutant.base.files.get("server_config.yaml")):
        try:
            document = yaml.safe_load(path.read_bytes()) if path and path.is_file() else None
        except (yaml.YAMLError, ValueError, RecursionError):
            document = None
        documents.append(document if isinstance(document, dict) else {})
    if all(documents[0].get(k) == documents[1].get(k) for k in ("storage", "wal", "general")):
        return [f"the configuration means the same, but: {_summary(differences)}"]
    return _only_stored(mutant, outcome)
