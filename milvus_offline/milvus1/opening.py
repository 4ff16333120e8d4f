"""A store: the live rows of every collection and partition, ready to be read (FORMAT §6).

>>> store = open_store("/var/lib/milvus")
>>> store["faces"]["_default"].read(limit=10).vectors
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import fileio
from ..errors import DamageError, StoreError, UsageError
from ..fileio import printable
from ..findings import Findings
from ..model import Schema, Severity
from .catalog.rows import Catalog, Generation, TableRow, version_key
from .copies import Contents, all_in, drop_contained, end_compactions, end_merges, hashes_of
from .disk import Disk
from .layout import FileType
from .live import Choice, LiveSet, select
from .location import Location, locate
from .segment.files import Segment, attribute_schema
from .segment.opening import open_segment
from .store import Collection, Partition, Store

if TYPE_CHECKING:
    from .nocatalog import Assumptions
    from .wal.log import Log
    from .wal.replay import Replay


def open_store(
    path: str | os.PathLike[str],
    catalog: str | os.PathLike[str] | None = None,
    *,
    wal: str | os.PathLike[str] | None = None,
    replay_wal: bool = True,
    secondary: Sequence[str | os.PathLike[str]] = (),
    without_catalog: Assumptions | None = None,
) -> Store:
    """Opens the store at `path` (the Milvus root, its `db/` folder, or a folder above) for reading.

    `catalog` names a metadata database elsewhere (`mysql://…`, a `meta.sqlite`, a mysqldump file), `wal` the folder of the
    write-ahead log, `secondary` further roots that hold `tables/` (Milvus up to 0.9). Without `replay_wal` unflushed rows are
    only counted. `without_catalog` reads the files alone, with what the user assumes instead. Raises StoreError when this is
    not a readable store of Milvus 0.5-1.1.1, UsageError when options contradict.
    """
    location = locate(path, wal=wal, secondary=secondary)
    disk = Disk(location.roots)
    if without_catalog is not None:
        if catalog is not None:
            raise UsageError("a catalog and reading without one contradict each other")
        from .nocatalog import infer_catalog

        known = infer_catalog(location, disk, without_catalog)
    else:
        known = load_catalog(location, catalog)
    findings = Findings([*location.findings, *known.findings])
    known = _repair_tags(known, findings)
    if _is_running(location):
        findings.warning(
            "server-running",
            str(location.root),
            "a server holds this store's lock and may change it while it is read; stop it, or read a snapshot",
        )
    selection = select(known, disk)
    findings += selection.findings
    schemas = {c.table.table_id: _schema(c.table, known) for c in selection.collections}
    if known.generation is Generation.V05:
        from .v05 import open_collections

        collections = open_collections(known, selection, schemas, location.roots, findings)
        return Store(location.root, location, known, collections, tuple(findings), selection, disk)
    disk.warm((x.table_id, x.segment_id) for c in selection.collections for p in c.partitions for x in p.choices)
    segments: dict[str, list[Segment]] = {}
    damage: dict[str, Findings] = {}
    for c in selection.collections:
        for p in c.partitions:
            notes = Findings()
            schema = schemas[c.table.table_id]
            segments[p.table.table_id] = _open_segments(p.table, p.choices, schema, known, selection, disk, notes)
            if lost := Findings(f for f in notes if f.severity is Severity.ERROR):
                damage[p.table.table_id] = lost
            findings += notes
    _compare_age(known, selection, disk, schemas, segments, findings)
    log, replay = _read_log(location, known, selection, schemas, segments, damage, replay_wal, findings)
    opened = []
    for c in selection.collections:
        schema = schemas[c.table.table_id]
        partitions = []
        for p in c.partitions:
            table_id = p.table.table_id
            found = replay.segments.get(table_id, []) if replay and replay_wal else segments[table_id]
            rows = replay.rows.get(table_id, []) if replay and replay_wal else []
            partitions.append(Partition(p.tag, schema, tuple(found), tuple(rows)))
        opened.append(Collection.of(schema, partitions, findings))
    return Store(location.root, location, known, tuple(opened), tuple(findings), selection, disk, log, replay)


def load_catalog(location: Location, given: str | os.PathLike[str] | None) -> Catalog:
    """Reads the catalog that was named, or the one that belongs to the store. Raises StoreError, UsageError."""
    from ..buckets import SCHEMES
    from .catalog import database

    if given is not None:
        text = os.fspath(given)
        if "://" in text and not text.startswith("file:") and text.partition("://")[0] not in SCHEMES:
            if text.startswith("sqlite"):
                return database.read_sqlite(Path(text.split(":///", 1)[-1]))
            return database.read_mysql(database.parse_mysql_url(text))
        path, dumped = fileio.as_path(text), None
        if not path.exists() and "#" in text:
            name, _, dumped = text.rpartition("#")
            path = fileio.as_path(name)
        if path.is_dir():
            raise UsageError(f"{path}: --catalog must name a meta.sqlite, a mysqldump file or mysql://…, found a folder")
        if not path.exists():
            raise StoreError(f"{path}: there is no such catalog file")
        from .catalog.dump import looks_like_dump

        if looks_like_dump(path):
            from .catalog.readable import read_dump_catalog

            return read_dump_catalog(path, dumped)
        return database.read_sqlite(path)
    if location.meta is not None and location.config.mysql_uri is None:
        return database.read_sqlite(location.meta)
    if location.config.mysql_uri is not None:
        try:
            return database.read_mysql(database.parse_mysql_url(location.config.mysql_uri, quoted=False))
        except (StoreError, UsageError) as e:
            raise StoreError(
                f"{e} (This address is from {location.config.path}.) Name the catalog with --catalog "
                "(mysql://user@host/database, a mysqldump file, a meta.sqlite), or read the files without one: --no-catalog"
            ) from e
    if not location.roots[0].exists():
        raise StoreError(
            f"{location.root}: a write-ahead log without a store. Name the folder that holds db/, and the log with --wal; if "
            "that folder is lost, --no-catalog reads the rows that the log still holds"
        )
    raise StoreError(
        f"{location.roots[0]}: there is no meta.sqlite, so the catalog was in MySQL or is lost. Name it with --catalog "
        "(mysql://user@host/database or a mysqldump file), or read the files without one: --no-catalog"
    )


def _repair_tags(catalog: Catalog, findings: Findings) -> Catalog:
    """Undoes the double encoding of tags that went through a latin1 connection (§16)."""
    if not catalog.statements_commit_alone:
        return catalog
    from .catalog.columns import repair_double_encoding

    taken = {(t.owner_table, t.partition_tag) for t in catalog.tables}
    tables = []
    for table in catalog.tables:
        repaired = repair_double_encoding(table.partition_tag) if table.partition_tag else None
        if repaired is not None and (table.owner_table, repaired) not in taken:
            findings.info(
                "tag-encoding",
                f"{table.owner_table}/{printable(repaired)}",
                f"the catalog holds this tag encoded twice ({printable(table.partition_tag)!r}); it is repaired",
            )
            table = replace(table, partition_tag=repaired)
        tables.append(table)
    return replace(catalog, tables=tuple(tables))


def _is_running(location: Location) -> bool:
    """Whether a server of 0.10 or later holds the lock (§1.1); asking changes nothing."""
    try:
        import fcntl
    except ImportError:
        return False
    for folder in filter(None, (location.root, location.wal)):
        try:
            if fileio.is_remote(folder):
                continue  # nobody runs in a bucket
            with open(folder / "lock", "rb") as f:
                fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(f, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        except OSError:
            continue
    return False


def _schema(table: TableRow, catalog: Catalog) -> Schema:
    fields = [(f.field_name, f.field_type) for f in catalog.fields if f.collection_id == table.table_id]
    return Schema(
        name=table.table_id,
        dimension=table.dimension,
        vector_type=table.vector_type,
        metric_type=table.metric_name,
        index=table.index,
        index_file_size=table.index_file_size or None,
        auto_id=table.auto_id,
        attributes=attribute_schema(fields),
    )


def _open_segments(
    table: TableRow,
    choices: Sequence[Choice],
    schema: Schema,
    catalog: Catalog,
    selection: LiveSet,
    disk: Disk,
    findings: Findings,
) -> list[Segment]:
    segments, created_on = [], {}
    for choice in choices:
        before = len(findings)
        segment = _open_choice(choice, schema, disk, findings)
        if segment is not None:
            if all(f.severity is Severity.INFO for f in findings[before:]):
                _compare_size(segment, choice, table, findings)
            segments.append(segment)
            created_on[segment.id] = choice.row.created_on
    contents = Contents()

    def where(segment: Segment) -> str:
        return f"{table.table_id}/{segment.id}"

    if catalog.kind == "none":
        return drop_contained(segments, contents, where, findings)
    if catalog.statements_commit_alone:
        segments = end_compactions(segments, created_on, contents, where, findings)
        merges = [x.segment_id for x in selection.leftovers if x.is_merge and x.table_id == table.table_id]
        segments = end_merges(segments, _open_merges(table, merges, schema, disk), contents, where, findings)
        taken = {s.id for s in segments}
        selection.leftovers[:] = [x for x in selection.leftovers if x.table_id != table.table_id or x.segment_id not in taken]
    return segments


def _open_merges(table: TableRow, merges: Iterable[str], schema: Schema, disk: Disk) -> Iterator[Segment]:
    """The complete ones of the segments that merges were writing."""
    for segment_id in merges:
        with contextlib.suppress(DamageError):
            folder = disk.folder(table.table_id, segment_id)
            if folder and folder.raw and folder.ids:
                target, notes = open_segment(folder, segment_id, schema, state=FileType.NEW_MERGE.name)
                if target is not None and not notes:
                    yield target


def _open_choice(choice: Choice, schema: Schema, disk: Disk, findings: Findings) -> Segment | None:
    where = f"{choice.table_id}/{choice.segment_id}"
    hint = choice.row.row_count if 0 <= choice.row.row_count < 1 << 31 else None
    try:
        folder = disk.folder(choice.table_id, choice.segment_id)
        if folder is None:
            expected = disk.roots[0] / "tables" / choice.table_id / choice.segment_id
            findings.error(
                "segment-missing",
                where,
                f"the catalog lists this segment, but the folder {expected} is not there; its rows are lost",
                hint,
            )
            return None
        indexes = [p for i in choice.index_ids if (p := disk.index_file(choice.table_id, choice.segment_id, i))]
        segment, notes = open_segment(
            folder, choice.segment_id, schema, state=choice.state, indexes=indexes, file_size=choice.row.file_size
        )
    except DamageError as e:
        findings.error("segment-unreadable", where, str(e), hint)
        return None
    findings += notes
    return segment


def _compare_size(segment: Segment, choice: Choice, table: TableRow, findings: Findings) -> None:
    """`file_size` of a raw file is the payload of `.rv` and `.uid` since 0.8 (§2.2)."""
    row = choice.row
    if row.file_id != segment.id or not row.file_size or segment.schema.attributes or version_key(table.version) < (0, 8):
        return
    if row.file_size != segment.bytes:
        findings.error(
            "size-differs",
            f"{choice.table_id}/{choice.segment_id}",
            f"the catalog says {row.file_size} bytes of vectors and ids, the files hold {segment.bytes}: catalog and files "
            "are of different age, or a file was cut",
            segment.rows,
        )


def _compare_age(
    catalog: Catalog,
    selection: LiveSet,
    disk: Disk,
    schemas: Mapping[str, Schema],
    segments: Mapping[str, list[Segment]],
    findings: Findings,
) -> None:
    """Notices folders newer than all the catalog knows, with rows of their own: then the catalog is the older one."""
    newest = max((int(f.segment_id) for f in catalog.files if f.segment_id.isdigit()), default=0)
    owners = {p.table.table_id: c.table.table_id for c in selection.collections for p in c.partitions}
    for leftover in selection.leftovers:
        if leftover.kind != "orphans" or not leftover.segment_id.isdigit() or int(leftover.segment_id) <= newest:
            continue
        table_id = leftover.table_id
        if table_id not in owners:
            continue
        try:
            folder = disk.folder(table_id, leftover.segment_id)
            if folder is None or not folder.raw or not folder.ids or not folder.has_deleted_docs:
                continue
            segment, notes = open_segment(folder, leftover.segment_id, schemas[owners[table_id]])
            if segment is None or notes or not segment.rows:
                continue
            if not all_in(hashes_of(segment.batches()), (np.sort(hashes_of(s.batches())) for s in segments[table_id])):
                findings.warning(
                    "catalog-older",
                    f"{table_id}/{leftover.segment_id}",
                    "the segment is newer than all that the catalog knows, and its rows are in no live segment: the "
                    "catalog may be older than the files (is its -wal missing?). --salvage orphans brings them",
                    segment.rows,
                )
        except (DamageError, OSError):
            continue


def _read_log(
    location: Location,
    catalog: Catalog,
    selection: LiveSet,
    schemas: Mapping[str, Schema],
    segments: Mapping[str, list[Segment]],
    damage: Mapping[str, Findings],
    replay_wal: bool,
    findings: Findings,
) -> tuple[Log | None, Replay | None]:
    log = None
    if location.wal is not None:
        from .wal.log import open_log

        try:
            log = open_log(location.wal)
        except DamageError as e:
            findings.error("wal-unreadable", str(location.wal), str(e))
            return None, None
    if log is None or (not log.files and log.acknowledged is None):
        if selection.has_unflushed and location.config.wal_enabled is not False:
            findings.warning(
                "wal-missing",
                str(location.wal or location.root),
                "the server was stopped with rows in memory that only its write-ahead log holds, and no log was found. "
                "Name its folder with --wal",
            )
        return log, None
    from .wal.replay import Replayer

    enabled = location.config.wal_enabled
    replay = Replayer(log, catalog, selection, schemas, segments, wal_enabled=enabled, damaged=damage).run()
    if enabled is False:
        if replay.row_count:
            text = "the configuration says wal.enable: false, so this log is a leftover from before; it is not replayed"
            # each flush without a log sets flush_lsn to 0 (§5.8)
            doubtful = any(
                replay.rows.get(p.table.table_id) and p.table.flush_lsn for c in selection.collections for p in c.partitions
            )
            if doubtful:
                text += ". But the catalog knows of flushes with a log, the last ones of their tables: --wal replays it"
            severity = Severity.WARNING if doubtful else Severity.INFO
            findings.add(severity, "wal-disabled", str(location.wal), text, replay.row_count)
        return log, None
    if not replay_wal:
        if replay.row_count:
            findings.warning(
                "wal-not-replayed",
                str(location.wal),
                "unflushed rows in the write-ahead log are left out, as asked",
                replay.row_count,
            )
        return log, replay
    for table_id, lost in damage.items():
        recovered = sum(r.rows for r in replay.rows.get(table_id, []) if r.id == "wal-flushed")
        if all(f.rows is not None for f in lost) and 0 < sum(f.rows or 0 for f in lost) <= recovered:
            findings[:] = [replace(f, severity=Severity.WARNING) if f in lost else f for f in findings]
    findings += replay.findings
    return log, replay


__all__ = ["Collection", "Partition", "Store", "load_catalog", "open_store"]
