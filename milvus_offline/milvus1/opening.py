"""A store: the live rows of every collection and partition, ready to be read (FORMAT §6).

>>> store = open_store("/var/lib/milvus")
>>> store["faces"]["_default"].read(limit=10).vectors
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import fileio
from ..errors import DamageError, StoreError, UsageError
from ..findings import Findings
from ..model import Schema
from ..names import printable
from ..watch import named, union, watching
from .catalog.check import contradictions
from .catalog.rows import Catalog, Generation, TableRow
from .choices import Choices
from .disk import Disk
from .layout import META
from .live import select
from .location import Location, locate
from .segment.files import attribute_schema
from .store import Collection, Partition, Store
from .unexplained import Unexplained

if TYPE_CHECKING:
    from .live import LiveSet
    from .nocatalog import Assumptions
    from .segment.files import Segment
    from .wal.rows import LogRows


_NAMED = 4
"""Files that a finding names."""


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

    Where a failing disk refuses what has to be compared here, the rest is compared, and a finding names the places; rows in
    them are told when they are read.
    """
    with watching() as met, fileio.forgiving() as refused:
        store = _open(path, catalog, wal, replay_wal, secondary, without_catalog)
    places = {**met.all_places(), **{path: union(found) for path, found in refused.items()}}
    if not places:
        return store
    texts = [f"{path}: {named(found)}" for path, found in sorted(places.items())[:_NAMED]]
    more = f"; and {len(places) - _NAMED} more files" if len(places) > _NAMED else ""
    findings = Findings(store.findings)
    findings.warning(
        "disk-refuses",
        str(store.path),
        f"places that the disk refuses: {'; '.join(texts)}{more}. What could not be compared is taken as it stands. Copy the "
        "disk with ddrescue before it gets worse, and read the copy",
    )
    return replace(store, findings=tuple(findings))


def _open(
    path: str | os.PathLike[str],
    catalog: str | os.PathLike[str] | None,
    wal: str | os.PathLike[str] | None,
    replay_wal: bool,
    secondary: Sequence[str | os.PathLike[str]],
    without_catalog: Assumptions | None,
) -> Store:
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
    if known.generation is Generation.SEGMENTED and known.kind != "none":
        findings += contradictions(known)
    selection = select(known, disk)
    findings += selection.findings
    schemas = {c.table.table_id: _schema(c.table, known) for c in selection.collections}
    if known.generation is Generation.V05:
        from .v05 import open_collections

        collections = open_collections(known, selection, schemas, location.roots, findings)
        return Store(location.root, location, known, collections, tuple(findings), selection, disk)
    disk.warm((x.table_id, x.segment_id) for c in selection.collections for p in c.partitions for x in p.choices)
    choices = Choices(known, disk, selection, findings)
    choices.look_for_tables()
    segments = {
        p.table.table_id: choices.open(p.table, p.choices, schemas[c.table.table_id])
        for c in selection.collections
        for p in c.partitions
    }
    from .wal.outcome import Opened
    from .wal.reading import read_log

    state = Opened(known, selection, schemas, segments, choices.damage)
    log, replay = read_log(location, state, disk, findings, replay_wal=replay_wal)
    now = {**segments, **replay.segments} if replay else segments
    Unexplained(known, selection, disk, schemas, now, replay.rows if replay else {}).compare(findings)
    if replay and replay_wal:
        opened = _collections(selection, schemas, replay.segments, replay.rows, findings)
    else:
        opened = _collections(selection, schemas, segments, {}, findings)
    return Store(location.root, location, known, opened, tuple(findings), selection, disk, log, replay)


def _collections(
    selection: LiveSet,
    schemas: Mapping[str, Schema],
    segments: Mapping[str, Sequence[Segment]],
    rows: Mapping[str, Sequence[LogRows]],
    findings: Findings,
) -> tuple[Collection, ...]:
    opened = []
    for c in selection.collections:
        schema = schemas[c.table.table_id]
        partitions = []
        for p in c.partitions:
            table_id = p.table.table_id
            partitions.append(Partition(p.tag, schema, tuple(segments.get(table_id, ())), tuple(rows.get(table_id, ()))))
        opened.append(Collection.of(schema, partitions, findings))
    return tuple(opened)


def load_catalog(location: Location, given: str | os.PathLike[str] | None) -> Catalog:
    """Reads the catalog that was named, or the one that belongs to the store. Raises StoreError, UsageError."""
    from ..buckets import SCHEMES
    from .catalog import database

    if given is not None:
        text = os.fspath(given)
        if re.match(r"[\w+.-]+:/", text) and text.partition("://")[0] not in (*SCHEMES, "file"):
            if re.match(r"sqlite(\+\w+)?:///", text):
                return database.read_sqlite(Path(text.split(":///", 1)[-1]))
            return database.read_mysql(database.parse_mysql_url(text))  # its refusals repeat nothing, a password may be in it
        path, dumped = fileio.as_path(text), None
        if not path.exists() and "#" in text:
            name, _, dumped = text.rpartition("#")
            path = fileio.as_path(name)
        from .catalog.given import read_given

        return read_given(path, dumped)
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
    if why := fileio.missing_link(location.roots[0] / META):
        raise StoreError(why)
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
            fd = fileio.open_read(folder / "lock")
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)
        except BlockingIOError:
            return True
        except (OSError, DamageError):
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


__all__ = ["Collection", "Partition", "Store", "load_catalog", "open_store"]
