"""A store without its metadata database: what the files themselves tell (FORMAT §1.2, §4, §5.4).

Folder names give collections, file sizes give widths, log records give names of partitions and whether vectors are binary.
What cannot be known is taken from the user or guessed, and every guess is a finding.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import DamageError, StoreError, UsageError
from ..findings import Findings
from ..model import DEFAULT_PARTITION
from ..named import read_document
from ..names import printable
from .catalog.rows import Catalog, FileRow, Generation, TableRow, is_plain_name
from .copies import by_ids, ids_alone, newest_of
from .disk import Disk
from .layout import BLOOM_FILTER, DELETED_DOCS, ID, INDEX_NAMES, LENGTH, MAX_DIMENSION, EngineType, FileType, MetricType
from .location import Location
from .segment.files import read_header
from .segment.opening import Folder
from .segment.rawfile import files_by_date
from .wal.log import Walk, open_log, read_ids

_GENERATED = re.compile(r"\d{16,20}")
"""Names that the server generates for partitions (§1.2)."""
_SAMPLED_IDS = 4096
_SAMPLED_BYTES = 1 << 18


@dataclass(frozen=True)
class Assumptions:
    """What the user says instead of the catalog: table folder -> (collection, partition), and collection -> metric."""

    places: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    metrics: Mapping[str, MetricType] = field(default_factory=dict)

    @classmethod
    def parse(cls, partition_map: str | None, assume: Iterable[str]) -> Assumptions:
        """From the command line: a JSON or YAML file `{folder: "collection/partition"}` and `COLLECTION=METRIC` texts.

        Raises UsageError.
        """
        metrics = {}
        for text in assume:
            name, _, metric = text.rpartition("=")
            try:
                metrics[name] = MetricType[metric.upper()]
            except KeyError:
                known = ", ".join(m.name for m in MetricType)
                raise UsageError(f"--assume {printable(text)!r}: expected COLLECTION=METRIC with one of {known}") from None
        return cls(_read_map(Path(partition_map)) if partition_map else {}, metrics)


def _read_map(path: Path) -> dict[str, tuple[str, str]]:
    document = read_document(path, "the partition map")
    places = {}
    if not isinstance(document, dict):
        raise UsageError(f'{path}: expected a map of folder names to "collection/partition"')
    for folder, place in document.items():
        if isinstance(place, dict):
            collection, partition = place.get("collection"), place.get("partition", DEFAULT_PARTITION)
        else:
            collection, _, partition = (str(place) if isinstance(place, (str, int)) else "").partition("/")
            partition = partition or DEFAULT_PARTITION
        if not isinstance(collection, (str, int)) or not isinstance(partition, (str, int)) or not collection:
            raise UsageError(f"{path}: the entry {printable(folder)!r} names no collection")
        places[str(folder)] = (str(collection), str(partition))
    return places


@dataclass
class _Found:
    folder: str
    row_bytes: int | None = None
    rows: list[FileRow] = field(default_factory=list)
    sample: Path | None = None
    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    engine: int = EngineType.FAISS_IDMAP
    metric: MetricType | None = None
    place: tuple[str, str] | None = None
    ids_alone: int = 0
    """Live rows of which only the ids are there."""


def infer_catalog(location: Location, disk: Disk, assumptions: Assumptions) -> Catalog:
    """A catalog put together from files. Raises StoreError when there is nothing to go by, UsageError for a wrong map."""
    notes = Findings()
    tables, generation = _survey_all([name for name in disk.tables() if is_plain_name(name)], disk, notes)
    if unknown := sorted(set(assumptions.places) - set(tables)):
        raise UsageError(f"the partition map names {printable(unknown[0])!r}, but there is no such folder below tables/")
    log = _LogHints(location)
    log.name_partitions(tables)
    if not tables and not log.keys:
        raise StoreError(f"{location.roots[0]}: neither a folder below tables/ nor a log record, so there is nothing to read")
    for table in tables.values():
        table.place = assumptions.places.get(table.folder) or log.places.get(table.folder)
        if table.place is None:
            table.place = (table.folder, DEFAULT_PARTITION)
            if _GENERATED.fullmatch(table.folder):
                notes.warning(
                    "partition-unnamed",
                    table.folder,
                    "the folder is that of a partition, but nothing says of which collection; it is read as one of its own. "
                    "Name it with --partition-map",
                )
        elif table.folder in log.places and table.folder not in assumptions.places:
            notes.warning("partition-named-by-log", table.folder, f"is {'/'.join(table.place)}, by ids in the write-ahead log")
    rows = list(_table_rows(tables, log, assumptions, notes))
    notes.warning(
        "no-catalog",
        str(location.root),
        "read without a catalog: names, metrics and indexes are inferred, dropped collections and segments may be among these",
    )
    return Catalog(
        kind="none",
        origin="none",
        generation=generation,
        tables=tuple(rows),
        files=tuple(r for t in tables.values() for r in t.rows),
        findings=tuple(notes),
    )


class Survey:
    """What folders and log tell of tables that are known otherwise."""

    def __init__(self, location: Location, disk: Disk) -> None:
        self._location, self._disk = location, disk

    @staticmethod
    def is_generated(name: str) -> bool:
        """Whether a server gives such names to the folders of partitions (§1.2)."""
        return _GENERATED.fullmatch(name) is not None

    def of(
        self, wanted: Mapping[str, Collection[str]]
    ) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[int, list[FileRow]]]]:
        """(collection, tag) of the folders of partitions whose ids the log holds, and the engine and index files of each table.

        `wanted`: the segments of each table.
        """
        tables = {name: _survey(name, self._disk, Findings(), only) for name, only in wanted.items() if is_plain_name(name)}
        log = _LogHints(self._location)
        log.name_partitions(tables)
        indexes = {n: (t.engine, [r for r in t.rows if r.file_type == FileType.INDEX]) for n, t in tables.items()}
        return log.places, indexes


def _survey_all(names: Iterable[str], disk: Disk, notes: Findings) -> tuple[dict[str, _Found], Generation]:
    """What all tables tell. Segments are of 0.7 or later; where there are none, files below dates are of 0.5 or 0.6 (§8)."""
    tables = {name: _survey(name, disk, notes) for name in names}
    older = {name: files for name in tables if (files := files_by_date(disk.roots, name))}
    if not older or any(t.rows for t in tables.values()):
        for name, files in older.items():
            notes.warning(
                "dated-files", name, f"{len(files)} files of Milvus 0.5 or 0.6 lie beside segments; they are not read"
            )
        return tables, Generation.SEGMENTED
    from .v05 import survey_table

    for name in older:
        found = survey_table(name, disk.roots, notes)
        row_bytes = None if found.dimension is None else 4 * found.dimension
        engine = max((_engine_named(n) for n in found.index_types), default=EngineType.FAISS_IDMAP)
        tables[name] = _Found(name, row_bytes, list(found.files), engine=engine, metric=found.metric)
    return tables, Generation.V05


def _survey(name: str, disk: Disk, notes: Findings, only: Collection[str] | None = None) -> _Found:
    """What the segment folders of a table tell: bytes per row (as most of them have it), index types, some ids."""
    table = _Found(name)
    widths: Counter[int] = Counter()
    folders: list[tuple[Folder, str]] = []
    for number, segment_id in enumerate(sorted(disk.segments(name)), 1):
        if only is not None and segment_id not in only:
            continue
        try:
            folder = disk.folder(name, segment_id)
        except DamageError as e:
            notes.error("segment-unreadable", f"{name}/{segment_id}", str(e))
            continue
        if folder is None or not (folder.raw or folder.ids):
            continue
        indexes = [o for o in folder.others if o not in (DELETED_DOCS, BLOOM_FILTER) and o.isdecimal()]
        state = FileType.BACKUP if indexes else FileType.RAW
        table.rows.append(FileRow(number * 100, name, state, segment_id, file_id=segment_id, row_count=-1))
        for k, index in enumerate(indexes[:99], 1):
            table.rows.append(FileRow(number * 100 + k, name, FileType.INDEX, segment_id, file_id=index))
            table.engine = _engine_of(folder.path / index) or table.engine
        _measure(table, folder, widths)
        folders.append((folder, segment_id))
    if widths:
        table.row_bytes = widths.most_common(1)[0][0]
    else:
        bare = [s for s in starmap(ids_alone, folders) if s is not None]
        table.ids_alone = sum(s.rows for s in newest_of(bare, by_ids())[0])
    return table


def _measure(table: _Found, folder: Folder, widths: Counter[int]) -> None:
    if not folder.raw or not folder.ids:
        if folder.ids and (width := _width_of_indexes(folder)) is not None:
            widths[width] += read_header(folder.path / folder.ids[0]).bytes // ID.itemsize
        return
    raw, ids = read_header(folder.path / folder.raw[0]), read_header(folder.path / folder.ids[0])
    rows = ids.bytes // ID.itemsize
    if not rows or raw.is_short or raw.bytes % rows:
        return
    widths[raw.bytes // rows] += rows
    table.sample = fileio.as_path(raw.path)
    table.ids.append(fileio.read_array(ids.path, ID, min(rows, _SAMPLED_IDS), LENGTH.size))


def _width_of_indexes(folder: Folder) -> int | None:
    """Bytes of a vector by an index file that holds the vectors, where the .rv is lost."""
    from .segment.indexfile import read_index_file

    for name in folder.others:
        if name.isdecimal():
            with contextlib.suppress(DamageError, UsageError, OSError):
                index = read_index_file(folder.path / name)
                return index.vector_type.width(index.dimension) * index.vector_type.dtype.itemsize
    return None


def _engine_of(path: Path) -> int | None:
    from .segment.indexfile import type_of

    try:
        return _engine_named(type_of(path))
    except (DamageError, OSError):
        return None


def _engine_named(name: str) -> int:
    return next(int(e) for e, n in INDEX_NAMES.items() if n == name)


class _LogHints:
    """What insert records tell: which ids went to which collection and tag, and whether vectors are binary."""

    def __init__(self, location: Location) -> None:
        self.places: dict[str, tuple[str, str]] = {}
        self.row_bytes: dict[str, int] = {}
        self.keys: set[tuple[str, str]] = set()
        self._types: dict[str, set[int]] = defaultdict(set)
        self._delete_types: set[int] = set()
        self._log = None
        if location.wal is not None:
            try:
                self._log = open_log(location.wal)
            except DamageError:
                return

    def name_partitions(self, tables: Mapping[str, _Found]) -> None:
        if self._log is None:
            return
        unnamed = [t for t in tables.values() if _GENERATED.fullmatch(t.folder) and t.ids]
        ids = np.concatenate([np.empty(0, ID), *(i for t in unnamed for i in t.ids)])
        owners = np.repeat(np.arange(len(unnamed)), [sum(map(len, t.ids)) for t in unnamed])
        order = np.argsort(ids, kind="stable")
        ids, owners = ids[order], owners[order]
        votes: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        files = {f.number: f for f in self._log.files}
        for record in Walk(self._log, Findings()).records():
            collection, tag = (b.decode("utf-8", "surrogateescape") for b in (record.collection, record.tag))
            tag = tag.strip()
            if not record.data_bytes:
                self._delete_types.add(record.type)
                continue
            if not record.rows or record.data_bytes % record.rows:
                continue
            self._types[collection].add(record.type)
            self.row_bytes[collection] = record.data_bytes // record.rows
            self.keys.add((collection, "" if tag == DEFAULT_PARTITION else tag))
            if len(ids) and tag and tag != DEFAULT_PARTITION:
                inserted = np.sort(read_ids(files[record.file], record.ids_at, record.rows))
                hit = inserted[np.minimum(np.searchsorted(inserted, ids), len(inserted) - 1)] == ids
                for owner, count in zip(*np.unique(owners[hit], return_counts=True), strict=True):
                    votes[unnamed[owner].folder][collection, tag] += int(count)
        taken: set[tuple[str, str]] = set()
        for folder, counter in sorted(votes.items(), key=lambda v: -v[1].most_common(1)[0][1]):
            place = next((p for p, _ in counter.most_common() if p not in taken), None)
            if place:
                taken.add(place)
                self.places[folder] = place

    def is_binary(self, collection: str) -> bool | None:
        """By the record types: both numberings are told apart by the deletes and by types that only one has (§5.4)."""
        everything = {t for types in self._types.values() for t in types}
        types = self._types.get(collection, set())
        if 3 in self._delete_types or 2 in everything:
            return types == {1} if types and types <= {1, 2} else None
        if 2 in self._delete_types or 0 in everything:
            return types == {0} if types and types <= {0, 1} else None
        return None


def _table_rows(tables: Mapping[str, _Found], log: _LogHints, assumptions: Assumptions, notes: Findings) -> Iterable[TableRow]:
    members: dict[str, list[_Found]] = defaultdict(list)
    for table in tables.values():
        assert table.place is not None
        members[table.place[0]].append(table)
    for collection in sorted({name for name, _ in log.keys} - set(members)):
        members[collection] = []
        notes.warning("collection-from-log", printable(collection), "known from log records only; it may be dropped")
    if unknown := sorted(set(assumptions.metrics) - set(members)):
        raise UsageError(f"--assume names the collection {printable(unknown[0])!r}; there are: {', '.join(sorted(members))}")
    number = 0
    for collection, parts in sorted(members.items()):
        row_bytes = next((t.row_bytes for t in parts if t.row_bytes), None) or log.row_bytes.get(collection)
        if row_bytes is None:
            lost = sum(t.ids_alone for t in parts)
            if lost:
                text = "all vectors of this collection are gone, and no index file has them: only the ids of its rows are left"
                notes.error("collection-lost", collection, text, lost)
            else:
                text = "neither a segment nor a log record says what its dimension is; it is left out"
                notes.warning("collection-empty", collection, text)
            continue
        metric = _metric(collection, parts, row_bytes, log, assumptions, notes)
        dimension = row_bytes * 8 if metric >= MetricType.HAMMING else row_bytes // 4
        if not 1 <= dimension <= MAX_DIMENSION or (metric < MetricType.HAMMING and row_bytes % 4):
            raise UsageError(f"{collection}: vectors of {row_bytes} bytes cannot be of metric {metric.name}")
        named = {t.place[1]: t for t in parts if t.place}
        engine = max((t.engine for t in parts), default=int(EngineType.FAISS_IDMAP))
        owner = named.get(DEFAULT_PARTITION)
        if owner is not None and owner.folder != collection:
            raise UsageError(
                f"the folder {printable(owner.folder)!r} cannot be the default partition of {printable(collection)!r}: that "
                "folder always has the collection's name. In the partition map, rename the collection, or give the folder "
                "another partition"
            )
        number += 1
        yield TableRow(number, collection, 0, dimension, engine_type=engine, metric_type=metric)
        tags = set(named) | {tag for name, tag in log.keys if name == collection and tag}
        for tag in sorted(tags - {DEFAULT_PARTITION}):
            number += 1
            part = named.get(tag)
            table_id = part.folder if part else f"{collection} log {number}"
            if part is None:
                where = f"{collection}/{printable(tag)}"
                notes.warning("partition-from-log", where, "known from log records only; it may be dropped")
            yield TableRow(
                number,
                table_id,
                0,
                dimension,
                engine_type=engine,
                metric_type=metric,
                owner_table=collection,
                partition_tag=tag,
            )


def _metric(
    collection: str, parts: list[_Found], row_bytes: int, log: _LogHints, assumptions: Assumptions, notes: Findings
) -> MetricType:
    assumed = assumptions.metrics.get(collection)
    told = next((t.metric for t in parts if t.metric), None)
    if assumed and told not in (None, assumed):
        raise UsageError(f"--assume {printable(collection)}={assumed.name}: its raw files have the metric {told.name}")
    return assumed or told or _guess_metric(collection, parts, row_bytes, log, notes)


def _guess_metric(collection: str, parts: list[_Found], row_bytes: int, log: _LogHints, notes: Findings) -> MetricType:
    binary = log.is_binary(collection)
    how = "by the log's records"
    if row_bytes % 4:
        binary, how = True, "by the size of a vector"
    if binary is None:
        binary, how = not any(_looks_float(t.sample) for t in parts if t.sample), "by how their bytes look"
    metric = MetricType.HAMMING if binary else MetricType.L2
    notes.warning(
        "metric-guessed",
        collection,
        f"vectors of {row_bytes} bytes are read as {'binary' if binary else 'float'} ({how}); the metric {metric.name} "
        f"is a guess: name the right one with --assume {collection}=METRIC",
    )
    return metric


def _looks_float(path: Path) -> bool:
    """Whether nearly all words are floats of an ordinary size; of random bits only about half are."""
    words = np.abs(fileio.read_array(path, "<f4", _SAMPLED_BYTES // 4, LENGTH.size))
    with np.errstate(invalid="ignore"):
        ordinary = (words == 0) | ((words > 1e-20) & (words < 1e20))
    return bool(len(words)) and float(ordinary.mean()) > 0.9
