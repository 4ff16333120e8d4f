"""A store: the live rows of every collection and partition, ready to be read (FORMAT §6).

>>> store = open_store("/var/lib/milvus")
>>> store["faces"]["_default"].read(limit=10).vectors
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import fileio
from ..errors import DamageError, StoreError, UsageError
from ..findings import Findings
from ..model import Finding, Schema
from ..names import printable, without_password
from ..present import seen_anew
from ..watch import in_words, union, watching
from .aside import PutAside
from .catalog.check import contradictions
from .catalog.rows import Catalog, Generation, TableRow
from .choices import Choices
from .disk import Disk
from .layout import META
from .live import LiveSet, select
from .location import Location, locate
from .segment.deletes import OF_DELETES, says_too_much
from .segment.files import attribute_schema
from .store import Collection, Partition, Store
from .unexplained import Unexplained

if TYPE_CHECKING:
    from .nocatalog import Assumptions
    from .segment.files import Segment
    from .wal.deletes import Ids
    from .wal.log import Log
    from .wal.outcome import Replay


_NAMED = 4
"""Files that a finding names."""


@seen_anew()
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
        opening = _begin(path, catalog, wal, secondary, without_catalog)
        opening = opening.selected()
        if opening.catalog.generation is Generation.V05:
            opening = opening.with_files_of_v05()
        else:
            opening = opening.with_segments().with_log(replay_wal).compared().with_collections(replay_wal)
    places = {**met.all_places(), **{path: union(found) for path, found in refused.items()}}
    return opening.refused_by_disk(places).store()


class Opening(NamedTuple):
    """A store on its way to being open: what the stages before have decided, in their order.

    A stage gives a new value with what it adds, and nothing changes what an earlier one decided; `findings` are told, and only
    `damage` waits until the log has been read."""

    location: Location
    disk: Disk
    catalog: Catalog
    findings: tuple[Finding, ...]
    live: LiveSet = LiveSet.empty()
    schemas: Mapping[str, Schema] = {}
    """By the collection's table_id; what follows is by table_id of each partition."""
    segments: Mapping[str, list[Segment]] = {}
    damage: Mapping[str, Findings] = {}
    """Errors about segments whose rows the log may still hold."""
    log: Log | None = None
    replay: Replay | None = None
    collections: tuple[Collection, ...] = ()

    def selected(self) -> Opening:
        """Which segments are live."""
        live = select(self.catalog, self.disk)
        schemas = {c.table.table_id: schema_of(c.table, self.catalog) for c in live.collections}
        return self._replace(live=live, schemas=schemas, findings=(*self.findings, *live.findings))

    def with_files_of_v05(self) -> Opening:
        """The collections of a store of 0.5 or 0.6, which has neither segments nor a log."""
        from .v05 import open_collections

        findings = Findings(self.findings)
        opened = open_collections(self.catalog, self.live, self.schemas, self.location.roots, findings)
        return self._replace(collections=opened, findings=tuple(findings))

    def with_segments(self) -> Opening:
        """The live segments, and what stands in for those that are missing."""
        partitions = [(c, p) for c in self.live.collections for p in c.partitions]
        self.disk.warm((x.table_id, x.segment_id) for _, p in partitions for x in p.choices)
        choices = Choices(self.catalog, self.disk, self.live)
        choices.look_for_tables()
        segments = {p.table.table_id: choices.open(p.table, p.choices, self.schemas[c.table.table_id]) for c, p in partitions}
        return self._replace(
            segments=choices.exchanged(segments),
            live=self.live._replace(leftovers=choices.leftovers()),
            damage=choices.damage,
            findings=(*self.findings, *choices.findings),
        )

    def with_log(self, replay_wal: bool) -> Opening:
        """What the log adds to the segments and takes from them; and what of the damage it makes good."""
        from .wal.outcome import Opened
        from .wal.reading import made_good, read_log

        findings = Findings()
        state = Opened(self.catalog, self.live, self.schemas, self.segments, self.damage)
        log, replay = read_log(self.location, state, self.disk, findings, replay_wal=replay_wal)
        damage = [f for lost in made_good(self.damage, replay if replay_wal else None) for f in lost]
        if any(f.code == "tables-missing" for f in self.findings):
            damage = [f for f in damage if f.code != "segment-missing"]  # that was told for all of them at once
        return self._replace(log=log, replay=replay, findings=(*self.findings, *damage, *findings))

    def compared(self) -> Opening:
        """Whether this is the catalog of these files."""
        findings = Findings()
        replay = self.replay
        segments, rows = ({**self.segments, **replay.segments}, replay.rows) if replay else (self.segments, {})
        salvage = replay.salvage if replay else []
        Unexplained(self.catalog, self.live, self.disk, self.schemas, segments, rows, salvage).compare(findings)
        if self.catalog.kind != "none":
            tables = [p.table for c in self.live.collections for p in c.partitions]
            PutAside(self.catalog, self.disk, segments, rows).look(tables, findings)
        named = replay.deleted if replay is not None else {}
        if named or any(f.code in OF_DELETES for f in self.findings):
            findings += self._lists_that_say_too_much(named)
        return self._replace(findings=(*self.findings, *findings))

    def _lists_that_say_too_much(self, named: Mapping[str, Ids]) -> Iterator[Finding]:
        """Lists of deletions that neither the catalog nor the bloom filter nor the log explain; `named` are ids by table."""
        for p in (p for c in self.live.collections for p in c.partitions):
            table_id = p.table.table_id
            counts = {c.segment_id: c.row.row_count for c in p.choices if c.row.file_id == c.segment_id}
            for s in (s for s in self.segments[table_id] if s.id in counts):
                if (found := says_too_much(s, counts[s.id], named.get(table_id))) is not None:
                    yield found

    def with_collections(self, replay_wal: bool) -> Opening:
        """Segments and rows of the log, as the catalog orders them."""
        findings = Findings()
        replay = self.replay if replay_wal else None
        segments, rows = (replay.segments, replay.rows) if replay else (self.segments, {})
        opened = []
        for c in self.live.collections:
            schema = self.schemas[c.table.table_id]
            tables = [(p.tag, p.table.table_id) for p in c.partitions]
            parts = [Partition(tag, schema, tuple(segments.get(t, ())), tuple(rows.get(t, ()))) for tag, t in tables]
            opened.append(Collection.of(schema, parts, findings))
        return self._replace(collections=tuple(opened), findings=(*self.findings, *findings))

    def refused_by_disk(self, places: Mapping[str, list[tuple[int, int]]]) -> Opening:
        """Says where a failing disk refused what had to be compared: `places` by file."""
        if not places:
            return self
        findings = Findings(self.findings)
        texts = [f"{path}: {in_words(found)}" for path, found in sorted(places.items())[:_NAMED]]
        more = f"; and {len(places) - _NAMED} more files" if len(places) > _NAMED else ""
        findings.warning(
            "disk-refuses",
            str(self.location.root),
            f"places that the disk refuses: {'; '.join(texts)}{more}. What could not be compared is used as it is. Copy the "
            "disk with ddrescue before it gets worse, and read the copy",
        )
        return self._replace(findings=tuple(findings))

    def store(self) -> Store:
        """The open store."""
        return Store(
            self.location.root,
            self.location,
            self.catalog,
            self.collections,
            self.findings,
            self.live,
            self.disk,
            self.log,
            self.replay,
        )


def _begin(
    path: str | os.PathLike[str],
    catalog: str | os.PathLike[str] | None,
    wal: str | os.PathLike[str] | None,
    secondary: Sequence[str | os.PathLike[str]],
    without_catalog: Assumptions | None,
) -> Opening:
    """Where everything is, and the catalog."""
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
    if known.generation is Generation.SEGMENTED and known.knows_the_log:
        findings += contradictions(known)
    return Opening(location, disk, known, tuple(findings))


def load_catalog(location: Location, given: str | os.PathLike[str] | None) -> Catalog:
    """Reads the catalog that was named, or the one that belongs to the store. Raises StoreError, UsageError."""
    from .catalog import database

    if given is not None:
        from ..buckets import SCHEMES

        text = os.fspath(given)
        if re.match(r"[\w+.-]+:/", text) and text.partition("://")[0] not in (*SCHEMES, "file"):
            if re.match(r"sqlite(\+\w+)?:///", text):
                there = Path(text.split(":///", 1)[-1])
                if not there.exists():  # what was meant for a server may hold a password
                    raise StoreError(
                        f"{without_password(text)}: there is no such file: name the file itself, without sqlite://"
                    )
                return database.read_sqlite(there)
            if text.startswith("sqlite:"):
                raise UsageError(
                    "sqlite://… is what a server's configuration says of the meta.sqlite in db/: leave --catalog out, or name "
                    "that file itself"
                )
            return database.read_mysql(database.parse_mysql_url(text))  # its refusals repeat nothing, a password may be in it
        path, dumped = fileio.as_path(text), None
        if not path.exists() and "#" in text:
            name, _, dumped = text.rpartition("#")
            path = fileio.as_path(name)
        from .catalog.given import read_given
        from .metajson import is_meta_json, read_meta_json

        if is_meta_json(path):
            return read_meta_json(path, location)
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
            table = table._replace(partition_tag=repaired)
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


def schema_of(table: TableRow, catalog: Catalog) -> Schema:
    """What the catalog says of a collection, whose row is `table`."""
    fields = [(f.field_name, f.field_type) for f in catalog.fields if f.collection_id == table.table_id]
    return Schema(
        name=table.table_id,
        dimension=table.dimension,
        vector_type=table.vector_type,
        metric_type=table.metric_name,
        index=table.index_spec,
        index_file_size=table.index_file_size or None,
        auto_id=table.auto_id,
        attributes=attribute_schema(fields),
    )
