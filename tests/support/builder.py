"""Builds stores of Milvus 0.7-1.1.1 on disk from plain descriptions, with the package's own writing halves.

    b = StoreBuilder(folder)
    b.collection("c", flush_lsn=0)
    b.segment("c", rows(1, 2, 3), deleted=[0])
    b.wal.insert("c", rows(4))
    content(open_store(b.write())) == {("c", "_default"): bag(rows(2, 3, 4))}

Whatever a catalog column can say can be said: keyword arguments of `collection`, `partition`, `segment` and `file` are columns.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milvus_offline.milvus1.catalog.columns import SCHEMA
from milvus_offline.milvus1.layout import (
    BLOOM_FILTER,
    DB,
    DELETED_DOCS,
    ID,
    LENGTH,
    META,
    TABLES,
    WAL,
    WAL_HEADER,
    WAL_META,
    WAL_META_STRUCT,
    WAL_SUFFIX,
    FileType,
    MetricType,
)
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.segment.writing import SegmentWriter, write_deleted
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Array, Attribute, Batch

from .filters import build_filter

DIMENSION = 4


# Rows ----------------------------------------------------------------------------------------------------------------


def pack_record(type_number: int, start_lsn: int, collection: bytes, tag: bytes, ids: Array, data: bytes) -> bytes:
    """One record as the server writes it at position `start_lsn` (file number << 32 | offset) (§5.4)."""
    total = WAL_HEADER.size + len(collection) + len(tag) + ids.nbytes + len(data)
    header = WAL_HEADER.pack(start_lsn + total, type_number, len(collection), len(tag), len(ids), len(data))
    return header + collection + tag + ids.astype(ID).tobytes() + data


def rows(*ids: int | range, dim: int = DIMENSION, salt: int = 0, binary: bool = False) -> Batch:
    """Rows with the given ids; a vector follows from id and `salt`, so that equal arguments mean identical rows."""
    flat = [i for part in ids for i in (part if isinstance(part, range) else [part])]
    array = np.array(flat, np.int64)
    width = dim // 8 if binary else dim
    seeds = array.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0xBF58476D1CE4E5B9 % (1 << 64))
    words = (seeds[:, None] + np.arange(width, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)) >> np.uint64(32)
    vectors = (words & np.uint64(255)).astype(np.uint8) if binary else words.astype("<f4")
    return Batch(array, vectors)


def join(*batches: Batch) -> Batch:
    """All rows of several batches."""
    return Batch(np.concatenate([b.ids for b in batches]), np.concatenate([b.vectors for b in batches]))


def bag(*batches: Batch) -> Counter[tuple[int, bytes]]:
    """Rows as a multiset of (id, vector bytes)."""
    result: Counter[tuple[int, bytes]] = Counter()
    for b in batches:
        result.update((int(i), v.tobytes()) for i, v in zip(b.ids, b.vectors, strict=True))
    return result


def pieces_bag(pieces: Iterable[Any], max_bytes: int = 1 << 20) -> Counter[tuple[int, bytes]]:
    """What pieces give, as a multiset; asserts that they give as many rows as they promise."""
    result: Counter[tuple[int, bytes]] = Counter()
    for piece in pieces:
        found: Counter[tuple[int, bytes]] = Counter()
        for batch in piece.batches(max_bytes):
            found.update(bag(batch))
        assert found.total() == piece.rows
        result.update(found)
    return result


def salvaged(store: Store, *kinds: str) -> dict[tuple[str, str, str], Counter[tuple[int, bytes]]]:
    """What a salvage brings, by (kind, collection, partition)."""
    found, _ = collect(store, kinds)
    return {(s.kind, s.schema.name, s.partition): pieces_bag(s.pieces) for s in found}


def content(store: Any) -> dict[tuple[str, str], Counter[tuple[int, bytes]]]:
    """All live rows of a store by (collection, partition)."""
    return {(c.name, p.name): pieces_bag(p.pieces) for c in store.collections for p in c.partitions}


def codes(store: Any) -> list[str]:
    """The codes of the findings, sorted."""
    return sorted(f.code for f in store.findings)


# Log -----------------------------------------------------------------------------------------------------------------


class LogBuilder:
    """Writes a write-ahead log record by record. `position` is the LSN at which the next record begins (§5.3).

    A call of several records, or of a record that does not fit the `file_bytes` of a file, goes on in the next file (§5.4).
    """

    def __init__(self, *, old_numbering: bool = False, file_bytes: int = 1 << 27) -> None:
        self.files: dict[int, bytearray] = {}
        self.position = 0
        self.acknowledged = 0
        self.meta: bytes | bool | None = True
        """True: as acknowledged; None: no file; bytes: exactly these."""
        self.old_numbering = old_numbering
        self.file_bytes = file_bytes

    def insert(self, collection: str, batch: Batch, tag: str = "", *, acknowledge: bool = True) -> int:
        """One call; returns the LSN of its last record."""
        binary = batch.vectors.dtype == np.uint8
        number = (1 if not binary else 0) + (0 if self.old_numbering else 1)
        row_bytes = batch.vectors[0].nbytes + 8 if len(batch.ids) else 8
        done = 0
        while done < len(batch.ids):
            take = self._room(collection, tag, row_bytes, len(batch.ids) - done)
            part = slice(done, done + take)
            self.record(number, collection, tag, batch.ids[part], np.ascontiguousarray(batch.vectors[part]).tobytes())
            done += take
        return self._end_call(acknowledge)

    def delete(self, collection: str, ids: Iterable[int], tag: str = "", *, acknowledge: bool = True) -> int:
        """One call; returns the LSN of its last record."""
        array = np.array(list(ids), np.int64)
        done = 0
        while done < len(array):
            take = self._room(collection, tag, 8, len(array) - done)
            self.record(2 if self.old_numbering else 3, collection, tag, array[done : done + take], b"")
            done += take
        return self._end_call(acknowledge)

    def entity(self, collection: str, batch: Batch, attributes: Mapping[str, Array], tag: str = "") -> int:
        """An insert of a hybrid collection (§5.4); `attributes` as the client sends them (8-byte values)."""
        names = [n.encode() for n in attributes]
        values = [a.tobytes() for a in attributes.values()]
        count = len(names)
        table = struct.pack("<I", count)
        table += struct.pack(f"<{count}Q", *map(len, names))
        table += struct.pack(f"<{count}Q", *map(len, values))
        table += struct.pack(f"<{count}Q", *(a.itemsize for a in attributes.values()))
        c, t, data = collection.encode(), tag.encode(), batch.vectors.tobytes()
        body = table + c + t + batch.ids.tobytes() + data + b"".join(names) + b"".join(values)
        lsn = self.position + WAL_HEADER.size + len(body)
        self.raw(WAL_HEADER.pack(lsn, 6, len(c), len(t), len(batch.ids), len(data)) + body)
        return self._end_call(True)

    def record(self, number: int, collection: str, tag: str, ids: Array, data: bytes) -> int:
        """One record of any kind, not acknowledged by itself."""
        self.raw(pack_record(number, self.position, collection.encode(), tag.encode(), ids, data))
        return self.position

    def raw(self, data: bytes) -> None:
        """Writes bytes at the position, over what a server before a restart may have left there."""
        file, at = self.position >> 32, self.position & 0xFFFFFFFF
        self.files.setdefault(file, bytearray())[at : at + len(data)] = data
        self.position += len(data)

    def next_file(self) -> None:
        """The next record begins a new file."""
        self.position = (self.position >> 32) + 1 << 32

    def acknowledge(self) -> int:
        self.acknowledged = self.position
        return self.position

    def _room(self, collection: str, tag: str, row_bytes: int, wanted: int) -> int:
        head = WAL_HEADER.size + len(collection.encode()) + len(tag.encode())
        fits = (self.file_bytes - (self.position & 0xFFFFFFFF) - head) // row_bytes
        if fits < 1:
            self.next_file()
            fits = (self.file_bytes - head) // row_bytes
        return min(wanted, fits)

    def _end_call(self, acknowledge: bool) -> int:
        return self.acknowledge() if acknowledge else self.position

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in self.files.items():
            (folder / f"{number}{WAL_SUFFIX}").write_bytes(data)
        if self.meta is True:
            lsn = self.acknowledged
            (folder / WAL_META).write_bytes(WAL_META_STRUCT.pack(lsn, lsn, lsn))
        elif isinstance(self.meta, bytes):
            (folder / WAL_META).write_bytes(self.meta)


# Store ---------------------------------------------------------------------------------------------------------------

_TABLES, _FILES, _FIELDS = ({c.name: c.sqlite for c in SCHEMA[t] if c.sqlite} for t in ("Tables", "TableFiles", "Fields"))

_FIRST_ID = 1_700_000_000_000_000_000
_STEP = 1_000_000


@dataclass
class SegmentFiles:
    """A segment as built, for tests that damage it afterwards."""

    id: str
    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / f"{self.id}.rv"

    @property
    def ids(self) -> Path:
        return self.folder / f"{self.id}.uid"

    @property
    def deleted(self) -> Path:
        return self.folder / DELETED_DOCS


class StoreBuilder:
    """One store below `folder`. Segment folders are written at once, the catalog and the log by `write`."""

    def __init__(self, folder: Path, *, version: str = "1.1.1", secondaries: int = 0, wal_file_bytes: int = 1 << 27) -> None:
        self.root = folder
        self.version = version
        self.roots = [folder / DB, *(folder.parent / f"{folder.name}-secondary{i}" for i in range(secondaries))]
        for root in self.roots:
            (root / TABLES).mkdir(parents=True)
        short = tuple(int(n) for n in version.split("."))
        self.wal = LogBuilder(old_numbering=short < (0, 9), file_bytes=wal_file_bytes)
        self.has_fields = short >= (0, 9)
        self.tables: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []
        self.fields: list[dict[str, Any]] = []
        self.global_lsn: int | None = None
        self.wal_folder: Path | None = folder / WAL
        self._next = 0

    def new_id(self) -> str:
        """A 19-digit number, larger than all before it (§1.2)."""
        self._next += 1
        return str(_FIRST_ID + self._next * _STEP)

    def collection(self, name: str, *, dim: int = DIMENSION, metric: str = "L2", **columns: Any) -> dict[str, Any]:
        """Adds a row to `Tables`; the row can be changed until `write`."""
        return self._table(
            {
                "table_id": name,
                "dimension": dim,
                "metric_type": int(MetricType[metric]),
                "engine_type": 1 if metric in ("L2", "IP") else 9,
                **columns,
            }
        )

    def partition(self, owner: str, tag: str, *, table_id: str | None = None, **columns: Any) -> dict[str, Any]:
        """Adds the row of a partition; dimension and metric are the owner's where it has one."""
        parent = next((t for t in self.tables if t["table_id"] == owner), {"dimension": DIMENSION, "metric_type": 1})
        shared = {k: parent[k] for k in ("dimension", "metric_type", "engine_type") if k in parent}
        return self._table(
            {"table_id": table_id or self.new_id(), **shared, "owner_table": owner, "partition_tag": tag, "flag": 0, **columns}
        )

    def _table(self, row: dict[str, Any]) -> dict[str, Any]:
        defaults = {
            "id": len(self.tables) + 1,
            "state": 0,
            "created_on": _FIRST_ID // 1000 + len(self.tables),
            "flag": 2,
            "index_file_size": 1 << 30,
            "engine_type": 1,
            "index_params": "{}",
            "owner_table": "",
            "partition_tag": "",
            "version": self.version,
            "flush_lsn": 0,
        }
        self.tables.append({**defaults, **row})
        (self.roots[0] / TABLES / row["table_id"]).mkdir(exist_ok=True)
        return self.tables[-1]

    def field(self, collection: str, name: str, field_type: int) -> None:
        """A field of a hybrid collection (0.9-1.0)."""
        self.fields.append({"collection_id": collection, "field_name": name, "field_type": field_type, "field_params": "{}"})

    def segment(
        self,
        table: str,
        batch: Batch,
        type: int | Sequence[int] = FileType.RAW,
        *,
        deleted: Sequence[int] = (),
        id: str | None = None,
        root: int = 0,
        attributes: Mapping[str, Array] | None = None,
        bloom: bool = False,
        **columns: Any,
    ) -> SegmentFiles:
        """A complete segment with its catalog rows: `type` lists the raw file's type and those of index files, any mixture.

        INDEX, NEW_INDEX and the second TO_DELETE become rows of index files (without the file); no type, no row.
        """
        segment_id = id or self.new_id()
        types = [type] if isinstance(type, int) else list(type)
        made = self.folder(table, segment_id, batch, deleted=deleted, root=root, attributes=attributes, bloom=bloom)
        has_raw = False
        for t in types:
            raw = t in (FileType.NEW, FileType.RAW, FileType.TO_INDEX, FileType.NEW_MERGE, FileType.BACKUP)
            raw = raw or (t == FileType.TO_DELETE and types == [FileType.TO_DELETE])
            if raw and not has_raw:
                size = batch.vectors.nbytes + batch.ids.nbytes
                count = len(batch.ids) - len({*deleted})
                if t in (FileType.NEW, FileType.NEW_MERGE):
                    size = count = 0  # a server writes them with the state of a finished segment (§3.3)
                self.file(table, segment_id, t, **{"file_size": size, "row_count": count, **columns})
                has_raw = True
            else:
                self.file(table, segment_id, t, file_id=self.new_id(), row_count=len(batch.ids))
        return made

    def folder(
        self,
        table: str,
        segment_id: str,
        batch: Batch,
        *,
        deleted: Sequence[int] = (),
        root: int = 0,
        attributes: Mapping[str, Array] | None = None,
        bloom: bool = False,
    ) -> SegmentFiles:
        """A complete segment folder that no catalog row speaks of."""
        fields = [Attribute(n, a.dtype.str) for n, a in (attributes or {}).items()]
        made = SegmentFiles(segment_id, self.roots[root] / TABLES / table / segment_id)
        writer = SegmentWriter(made.folder, segment_id, fields)
        writer.append(batch.ids, batch.vectors, attributes)
        writer.close(deleted)
        if bloom:
            bloom_filter = build_filter([np.delete(batch.ids, list(deleted))], len(batch.ids))  # as after removing ids (§4.4)
            bloom_filter.max_id = int(batch.ids.view(np.uint64).max(initial=0))
            bloom_filter.sequence += 2 * len({*deleted})
            with (made.folder / BLOOM_FILTER).open("wb") as f:
                bloom_filter.write(f)
        return made

    def file(self, table: str, segment_id: str, type: int, **columns: Any) -> dict[str, Any]:
        """Adds a row to `TableFiles`, a raw file's unless `file_id` is given; the row can be changed until `write`."""
        number = max((f["id"] for f in self.files), default=0) + 1
        row = {
            "id": number,
            "table_id": table,
            "segment_id": segment_id,
            "engine_type": 1,
            "file_id": segment_id,
            "file_type": int(type),
            "file_size": 0,
            "row_count": 0,
            "updated_time": _FIRST_ID // 1000 + number,
            "created_on": _FIRST_ID // 1000 + number,
            "date": 1231015,
            "flush_lsn": 0,
            **columns,
        }
        self.files.append(row)
        return row

    def config(self, text: str) -> None:
        """A `server_config.yaml` beside the data."""
        (self.root / "server_config.yaml").write_text(text)

    # Writing -----------------------------------------------------------------------------------------------------------

    def write(self, *, checkpoint: bool = True) -> Path:
        """Writes catalog and log; without `checkpoint` the catalog is left in `meta.sqlite-wal`, as after a crash."""
        path = self.roots[0] / META
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=OFF")
        if not checkpoint:
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN")
        for name, columns, data in self._catalog():
            connection.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {t}' for c, t in columns.items())})")
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", [[r[c] for c in columns] for r in data])
        connection.execute("COMMIT")
        if not checkpoint:
            kept = {p: p.read_bytes() for p in path.parent.glob("meta.sqlite-*")}
            main = path.read_bytes()
        connection.close()
        if not checkpoint:
            path.write_bytes(main)
            for p, data_ in kept.items():
                p.write_bytes(data_)
        if self.wal_folder:
            self.wal.write(self.wal_folder)
        return self.root

    def write_dump(self, *, insert_per_row: bool = False) -> tuple[Path, Path]:
        """Writes the log, and the catalog as `mysqldump` does; returns the store and the dump."""
        lines = ["-- MySQL dump 10.19  Distrib 10.3.39-MariaDB", "SET NAMES utf8mb4;"]
        for name, columns, data in self._catalog():
            kinds = ",\n".join(f"  `{c}` {'bigint(20)' if 'INT' in t else 'varchar(255)'}" for c, t in columns.items())
            lines += [f"DROP TABLE IF EXISTS `{name}`;", f"CREATE TABLE `{name}` (\n{kinds}\n) ENGINE=InnoDB;"]
            values = ["(" + ",".join(_sql(r[c]) for c in columns) + ")" for r in data]
            lines += [f"INSERT INTO `{name}` VALUES {v};" for v in (values if insert_per_row else [",\n".join(values)]) if v]
        lines.append("-- Dump completed on 2026-11-22 12:00:00\n")
        path = self.root.parent / f"{self.root.name}.sql"
        path.write_text("\n".join(lines), encoding="utf-8")
        if self.wal_folder:
            self.wal.write(self.wal_folder)
        return self.root, path

    def _catalog(self) -> Iterator[tuple[str, dict[str, str], list[dict[str, Any]]]]:
        yield "Environment", {"global_lsn": "INTEGER"}, [{"global_lsn": self.global_lsn}] if self.global_lsn is not None else []
        yield "Tables", _TABLES, self.tables
        yield "TableFiles", _FILES, self.files
        if self.has_fields:
            yield "Fields", _FIELDS, self.fields

    def clear_wal(self) -> None:
        """Removes the log's folder written before."""
        if self.wal_folder:
            shutil.rmtree(self.wal_folder, ignore_errors=True)


def _sql(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def append_garbage(path: Path, data: bytes = b"\xff" * 12) -> None:
    """Bytes after the payload, as an untruncated rewrite leaves them (§4.3)."""
    with path.open("ab") as f:
        f.write(data)


def declare(path: Path, length: int) -> None:
    """Overwrites a file's length header."""
    with path.open("r+b") as f:
        f.write(LENGTH.pack(length))


__all__ = [
    "LogBuilder",
    "SegmentFiles",
    "StoreBuilder",
    "append_garbage",
    "bag",
    "codes",
    "content",
    "declare",
    "join",
    "pieces_bag",
    "rows",
    "salvaged",
    "write_deleted",
]
