"""A new, healthy store of Milvus 1.1.1: catalog, segments with bloom filters, configuration, no log (FORMAT §13).

Everything is written into `db.part`; the catalog comes last, and the folder gets its name `db` when all of it is complete. A
store that is only half there is so recognised by anybody, and by a server as no store at all.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ... import fileio
from ...errors import TargetError, UsageError
from ...findings import Findings
from ...guard import explained, free_space
from ...ledger import Ledger
from ...machine import processors
from ...manifest import LEDGER
from ...milvus1.catalog import write as catalog
from ...milvus1.catalog.rows import FileRow, TableRow
from ...milvus1.extents import whole_segment
from ...milvus1.layout import BLOOM_FILTER, CONFIG, DB, FLAG_AUTO_ID, FLAG_USER_ID, ID, META, TABLES, WAL
from ...milvus1.segment.bloom import write_new_filter
from ...milvus1.segment.writing import SegmentWriter
from ...model import DEFAULT_PARTITION, Finding, Severity, Source, SourceCollection, SourcePartition
from ...names import printable
from ...sharing import can_share
from ...transfer import Advance, Result, Task
from ...watch import Watch, watching
from .. import LoadTarget, words
from ..folder import names_in
from ..slices import Slice
from .cloning import CloneSegment, groups
from .names import CollectionPlan, Plan, Settings, check_names, makes_ids, settings_of

PREFIX = "milvus1:"
_IMAGE = "milvusdb/milvus:1.1.1-cpu-d061621-330cc6"
UNFINISHED = "db.part"
MYSQL_CATALOG = "meta.sql"
_PLAN = "plan"
_MAX_ROWS = (1 << 31) - 1
_STEP = 1000
"""Generated numbers are microseconds times 1000 (§1.2)."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a load into `milvus1:PATH`.

    `new_catalog`: `sqlite`, or `mysql` for a file of SQL to load into a database. `server_path`: where the server will find the
    store, when that is another path than here (a container's mount). `metric`, `index_file_size` (bytes): others than the
    source's. `ids`: `auto` for ids as a server makes them, which collections without ids get in any case. `jobs`: segments that
    are written at the same time. `reflink`: whether unchanged segments share their blocks with the source's, where volumes can.
    """

    mode: Literal["error"] = field(default="error", metadata={"why": "a new store is never written into an existing one"})
    metric: str | None = None
    index: Literal["keep", "none"] = "keep"
    index_file_size: int | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    ids: words.Ids = "keep"
    new_catalog: Literal["sqlite", "mysql"] = "sqlite"
    server_path: str | None = None
    jobs: int | None = None
    reflink: Literal["auto", "always", "never"] = "auto"

    def open(self, address: str) -> StoreTarget:
        path = address.removeprefix(PREFIX)
        if not path:
            raise UsageError(f"{address}: expected milvus1:PATH or milvus1://HOST:PORT")
        return StoreTarget(os.path.expanduser(path), self)


@dataclass(frozen=True)
class WriteSegment:
    """Writes one whole segment folder (§4.1-4.4)."""

    id: str
    folder: str
    segment_id: str
    rows: int
    bytes: int
    slices: tuple[Slice, ...]
    first_id: int | None
    """Where the target makes the ids: that of the first row."""

    def run(self, advance: Advance) -> Result:
        folder = Path(self.folder)
        with explained("write", folder), watching() as seen, ThreadPoolExecutor(1) as disk:
            folder.mkdir(parents=True, exist_ok=True)
            writer = SegmentWriter(folder, self.segment_id)
            closing: list[Future[None]] = []
            try:
                with (folder / BLOOM_FILTER).open("wb") as bloom, tempfile.TemporaryFile(dir=folder) as scratch:
                    write_new_filter(bloom, self._copy(writer, disk, closing, advance), scratch)
                    bloom.flush()
                    fileio.sync(bloom.fileno())
            finally:
                if not closing:  # given up
                    closing.append(disk.submit(writer.close))
                closing[0].result()
            fileio.sync_folder(folder)
        return {"file_size": writer.payload_bytes, "rows": writer.rows, **seen.result()}

    def _copy(
        self, writer: SegmentWriter, disk: Executor, closing: list[Future[None]], advance: Advance
    ) -> Iterator[npt.NDArray[np.int64]]:
        """Writes all rows, and gives their ids to who counts them while the disk is busy."""
        lost = 0
        for piece in self.slices:
            for batch in piece.batches():
                ids = batch.ids
                if self.first_id is not None:
                    ids = np.arange(writer.rows, writer.rows + len(ids), dtype=ID) + self.first_id
                lost += len(batch.lost)
                if writer.rows + lost + len(ids) > self.rows:
                    raise _changed(self.folder, writer.rows + lost + len(ids), self.rows)
                writing = disk.submit(writer.append, ids, batch.vectors)
                yield ids
                writing.result()
                advance(len(ids), batch.vectors.nbytes + ids.nbytes)
        if writer.rows + lost != self.rows:
            raise _changed(self.folder, writer.rows + lost, self.rows)
        closing.append(disk.submit(writer.close, sync=True))


def _changed(path: str, found: int, expected: int) -> TargetError:
    return TargetError(
        f"{path}: the source gave {found} rows, {expected} were announced; the source may have changed meanwhile"
    )


@dataclass(frozen=True)
class _Segment:
    """A segment of the plan."""

    id: str
    task_id: str
    slices: tuple[Slice, ...]
    rows: int


@dataclass(frozen=True)
class _NewTable:
    """A collection or a partition of the plan, with its segments."""

    row: TableRow
    segments: tuple[_Segment, ...]
    row_bytes: int
    first_id: int | None


class Numbers:
    """Unique numbers as the server's generator makes them: microseconds * 1000, counting up (§1.2)."""

    def __init__(self, start: int) -> None:
        self._next = start

    def take(self) -> str:
        self._next += 1
        return str((self._next - 1) * _STEP)


class StoreTarget(LoadTarget):
    """The target `milvus1:PATH`. `path` must not exist, or be an empty folder, or what an interrupted run left there."""

    ledger_name = LEDGER
    verified = "count"

    def __init__(self, path: str | os.PathLike[str], options: Options | None = None) -> None:
        if fileio.is_remote(path):
            raise UsageError(f"{PREFIX}{path} is not a folder on this machine: name one, and copy the new store there later")
        self.path = Path(os.path.abspath(path))
        self.options = options or Options()
        self.name = f"{PREFIX}{path}"
        self.where = (PREFIX, str(self.path))
        self.jobs = self.options.jobs or min(2, processors())
        self._ledger: Ledger
        self._tables: list[_NewTable] = []
        self._settings: list[Settings] = []
        self._clone = False
        self._names: dict[str, str] = {}

    @property
    def home(self) -> Path:
        return self.path

    def claim(self, source: Source, *, resume: bool) -> None:
        _claim(self.path, resume=resume)

    def key(self) -> Mapping[str, Any]:
        o = self.options
        return {"options": [o.new_catalog, o.metric, o.index, o.index_file_size, dict(o.rename), o.ids]}

    def plan(self, source: Source, folder: Path | None) -> Plan:
        o = self.options
        if o.reflink == "always" and folder is not None:  # refuse before anything is created
            self._can_clone(source, free_space(self.path)[0])
        self._settings = [settings_of(c.schema, o.metric, o.index_file_size, o.index) for c in source.collections]
        self._names = check_names(source.collections, o.rename)
        notes = Findings(note for found in self._settings for note in found.findings)
        if o.new_catalog == "sqlite":
            notes += [_tag_with_quote(c, p) for c in source.collections for p in c.partitions if "'" in p.name]
        planned = []
        for c, found in zip(source.collections, self._settings, strict=True):
            name = self._names[c.schema.name]
            if o.new_catalog == "mysql":
                catalog.check_mysql(name, c.schema.dimension, found.index_params)
            planned.append(CollectionPlan.of(c, found, name))
        return Plan({"kind": "milvus1", "where": self.name}, planned, notes)

    def begin(self, source: Source, ledger: Ledger, *, resumed: bool) -> Sequence[Task]:
        """Creates the folders of all collections and partitions."""
        self._ledger = ledger
        with explained("create", self.path):
            if _PLAN not in ledger.done:
                ledger.add({_PLAN: {"created_on": catalog.microseconds(), "clone": self._can_clone(source, self.path)}})
            created_on = int(ledger.done[_PLAN]["created_on"])
            self._clone = bool(ledger.done[_PLAN].get("clone"))
            self._tables = list(self._lay_out(source.collections, created_on))
            for table in self._tables:
                (self._db / TABLES / table.row.table_id).mkdir(parents=True, exist_ok=True)
            return [task for table in self._tables for task in self._tasks(table)]

    def _can_clone(self, source: Source, folder: Path) -> bool:
        if self.options.reflink == "never":
            return False
        collections = [c for c in source.collections if not makes_ids(c, self.options.ids)]
        whole = (whole_segment(p) for c in collections for partition in c.partitions for p in partition.pieces)
        paths = [s.raw_path for s in whole if s is not None]
        return (bool(paths) or self.options.reflink == "always") and can_share(paths, folder, self.options.reflink)

    @property
    def _db(self) -> Path:
        finished = self.path / DB
        return finished if finished.is_dir() else self.path / UNFINISHED

    def _lay_out(self, collections: Sequence[SourceCollection], created_on: int) -> Iterator[_NewTable]:
        numbers = Numbers(created_on)
        row_id = 0
        for collection, chosen in zip(collections, self._settings, strict=True):
            schema = collection.schema
            name = self._names[schema.name]
            auto = makes_ids(collection, self.options.ids)
            given = collection.rows or schema.auto_id is False
            flag = FLAG_AUTO_ID if schema.auto_id or auto else FLAG_USER_ID if given else 0
            next_id = created_on * _STEP
            by_name = {p.name: p for p in collection.partitions}
            own = by_name.pop(DEFAULT_PARTITION, SourcePartition(DEFAULT_PARTITION, ()))
            for partition in (own, *by_name.values()):
                row_id += 1
                root = partition is own
                row = TableRow(
                    id=row_id,
                    table_id=name if root else numbers.take(),
                    state=0,
                    dimension=schema.dimension,
                    created_on=created_on + row_id,
                    flag=flag if root else 0,
                    index_file_size=chosen.index_file_size,
                    engine_type=chosen.engine,
                    index_params=chosen.index_params,
                    metric_type=chosen.metric,
                    owner_table="" if root else name,
                    partition_tag="" if root else partition.name,
                    version=catalog.VERSION,
                    flush_lsn=0,
                )
                rows_each = _rows_per_segment(chosen.index_file_size, schema.row_bytes)
                segments = [
                    _Segment(number := numbers.take(), f"{row_id}:{number}", tuple(group), sum(s.rows for s in group))
                    for group in groups(partition.pieces, rows_each, clone=self._clone and not auto)
                ]
                yield _NewTable(row, tuple(segments), schema.row_bytes, next_id if auto else None)
                next_id += partition.rows

    def _tasks(self, table: _NewTable) -> Iterator[Task]:
        next_id = table.first_id
        for segment in table.segments:
            folder = self._db / TABLES / table.row.table_id / segment.id
            nbytes = segment.rows * (table.row_bytes + ID.itemsize)
            write = WriteSegment(segment.task_id, str(folder), segment.id, segment.rows, nbytes, segment.slices, next_id)
            piece = segment.slices[0].piece if self._clone and next_id is None and len(segment.slices) == 1 else None
            whole = whole_segment(piece) if piece is not None and piece.rows == segment.rows else None
            if whole is not None:
                yield CloneSegment(segment.task_id, str(folder), segment.id, segment.rows, nbytes, whole, write)
            else:
                yield write
            if next_id is not None:
                next_id += segment.rows

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Writes the catalog and the configuration, and gives the store its name."""
        notes = Findings(Watch.of(results.values()).findings())
        mysql = self.options.new_catalog == "mysql"
        with explained("finish", self.path):
            db = self._db
            for table in self._tables:
                fileio.sync_folder(db / TABLES / table.row.table_id)
            (db / TABLES).mkdir(parents=True, exist_ok=True)
            fileio.sync_folder(db / TABLES)
            files = list(self._files(results))
            rows = [t.row for t in self._tables]
            if mysql:
                self._replace(self.path / MYSQL_CATALOG, lambda p: catalog.write_mysql(p, rows, files))
            else:
                self._replace(db / META, lambda p: catalog.write_sqlite(p, rows, files))
            for folder in (WAL, "logs"):
                (self.path / folder).mkdir(exist_ok=True)
            fileio.write_text(self.path / CONFIG, catalog.server_config(self._server_root(notes), mysql=mysql))
            if db.name == UNFINISHED:
                db.rename(self.path / DB)
            fileio.sync_folder(self.path)
            self._ledger.remove()
        if mysql:
            text = f"the catalog is {self.path / MYSQL_CATALOG}: load it into an empty database and name that in {CONFIG}"
            notes.info("catalog-sql", str(self.path), text)
        return notes

    def first_use(self) -> Sequence[str]:
        if self.options.new_catalog == "mysql" or self.options.server_path:
            return ()
        return (f"docker run -d -p 19530:19530 -v {shlex.quote(str(self.path.absolute()))}:/var/lib/milvus {_IMAGE}",)

    def prove(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Opens the new store as any other and counts."""
        from ...milvus1.opening import open_store

        given = self.path / MYSQL_CATALOG if self.options.new_catalog == "mysql" else None
        store = open_store(self.path, catalog=given)
        found = {(c.schema.name, p.name): p.rows for c in store.collections for p in c.partitions}
        notes = Findings()
        for table in self._tables:
            name = table.row.owner_table or table.row.table_id
            tag = table.row.partition_tag or DEFAULT_PARTITION
            expected = sum(int(results[s.task_id]["rows"]) for s in table.segments)
            there = found.get((name, tag), 0)
            if there != expected:
                text = f"{there} rows in the new store, {expected} expected"
                notes.error("verify-count", f"{name}/{tag}", text, abs(expected - there))
        return notes

    def _files(self, results: Mapping[str, Result]) -> Iterator[FileRow]:
        number = 0
        for table in self._tables:
            for segment in table.segments:
                number += 1
                created_on = int(segment.id) // _STEP
                yield FileRow(
                    id=number,
                    table_id=table.row.table_id,
                    segment_id=segment.id,
                    engine_type=table.row.engine_type,
                    file_id=segment.id,
                    file_type=catalog.file_type_for(table.row.engine_type, int(results[segment.task_id]["rows"])),
                    file_size=int(results[segment.task_id]["file_size"]),
                    row_count=int(results[segment.task_id]["rows"]),
                    updated_time=created_on,
                    created_on=created_on,
                    date=catalog.date_of(created_on),
                    flush_lsn=0,
                )

    def _server_root(self, notes: Findings) -> str:
        root = self.options.server_path or str(self.path)
        if catalog.is_server_path(root):
            return root
        text = (
            f"a 1.1.1 server does not accept the path {root} (only letters, digits, _ and single -); {CONFIG} names "
            "/var/lib/milvus: "
            "move or mount the store there, or name its place"
        )
        notes.info("server-path", str(self.path / CONFIG), text)
        return "/var/lib/milvus"

    @staticmethod
    def _replace(path: Path, write: Callable[[Path], Any]) -> None:
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        write(part)
        fileio.publish(part, path)


def _tag_with_quote(collection: SourceCollection, partition: SourcePartition) -> Finding:
    text = (
        "the tag holds a quote: the rows are there and are found by a search of all partitions, but a 1.1.1 server cannot "
        "address this partition with SQLite (it can with MySQL)"
    )
    where = f"{collection.schema.name}/{printable(partition.name)}"
    return Finding(Severity.WARNING, "tag-quote", where, text, partition.rows)


def _rows_per_segment(index_file_size: int, row_bytes: int) -> int:
    """As many rows as reach `index_file_size`: a server merges what is smaller, so one row less would be written again."""
    return min(-(-index_file_size // (row_bytes + ID.itemsize)), _MAX_ROWS)


def _claim(path: Path, *, resume: bool) -> None:
    """Makes sure that nothing is at `path` yet but, when resuming, our own unfinished work. Raises UsageError."""
    names = names_in(path, "the new store")
    if not names or (resume and LEDGER in names):
        return
    if LEDGER in names:
        raise UsageError(f"{path}: holds an unfinished new store; go on with --resume, or remove the folder")
    if DB in names or META in names or TABLES in names:
        raise UsageError(f"{path}: holds a store already; existing stores are never modified. Choose an empty or new folder")
    raise UsageError(f"{path}: the folder is not empty; a new store needs an empty or new one")
