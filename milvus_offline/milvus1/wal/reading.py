"""From the log's folder to what it adds to a store and takes from it: found, read, applied, and told (FORMAT §5, §6 step 3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ... import fileio
from ...errors import DamageError
from ...findings import Findings
from ...model import Schema, Severity
from ..catalog.rows import Catalog, FileRow
from ..disk import Disk
from ..layout import WAL, FileType
from ..location import Location
from ..segment.files import Segment
from ..segment.opening import open_segment
from .outcome import Opened, Replay

if TYPE_CHECKING:
    from .log import Log

_ONCE_LIVE = (FileType.RAW, FileType.TO_INDEX, FileType.BACKUP, FileType.TO_DELETE)


def read_log(
    location: Location, opened: Opened, disk: Disk, findings: Findings, *, replay_wal: bool
) -> tuple[Log | None, Replay | None]:
    """The store's log, and what it does to the rows of segments; no replay where there is nothing to go by.

    What was noticed is added to `findings`. Without `replay_wal` the rows in the log are counted only.
    """
    log = _find(location, findings)
    if log is None or (not log.files and log.acknowledged is None):
        refused = any(f.code == "wal-unreadable" for f in findings)
        link = fileio.missing_link(location.root / WAL) if location.wal is None else ""
        where = str(location.wal or location.root)
        if location.config.wal_enabled is False or refused:
            return log, None
        if opened.selection.has_unflushed or link:
            in_memory = "the server was stopped with rows in memory that only its write-ahead log holds, and no log was found"
            text = f"{in_memory}: {link}" if link and opened.selection.has_unflushed else link or in_memory
            findings.warning("wal-missing", where, f"{text}. Name its folder with --wal")
        elif opened.catalog.knows_the_log and any(t.flush_lsn for t in opened.catalog.tables):  # without a log it is 0 (§5.8)
            stopped = "Nothing is missing if the server was stopped in order; after a crash the last rows and deletions are"
            text = f"the server had a write-ahead log, and none was found. {stopped} only in the log"
            findings.info("wal-missing", where, text)
        return log, None
    from .replay import Replayer

    if location.config.wal_enabled is False:
        _note_disabled(location, opened, Replayer(log, opened, wal_enabled=False).run(), findings)
        return log, None
    replay = Replayer(log, _with_folders(opened, disk, findings), wal_enabled=location.config.wal_enabled).run()
    if not replay_wal:
        if replay.row_count:
            findings.warning(
                "wal-not-replayed",
                str(location.wal),
                "unflushed rows in the write-ahead log are left out, as asked",
                replay.row_count,
            )
        return log, replay
    findings += replay.findings
    return log, replay


def _find(location: Location, findings: Findings) -> Log | None:
    if location.wal is None:
        return None
    from .log import open_log

    try:
        return open_log(location.wal)
    except DamageError as e:
        findings.error("wal-unreadable", str(location.wal), str(e))
        return None


def _note_disabled(location: Location, opened: Opened, replay: Replay, findings: Findings) -> None:
    """What a log holds that the configuration has switched off. Each flush without a log sets flush_lsn to 0 (§5.8)."""
    if not replay.row_count:
        return
    partitions = [p for c in opened.selection.collections for p in c.partitions]
    doubtful = any(replay.rows.get(p.table.table_id) and p.table.flush_lsn for p in partitions)
    text = "the configuration says wal.enable: false, so this log is a leftover from before; it is not replayed"
    if doubtful:
        text += ". But the catalog knows of flushes with a log, the last ones of their tables: --wal replays it"
    severity = Severity.WARNING if doubtful else Severity.INFO
    findings.add(severity, "wal-disabled", str(location.wal), text, replay.row_count)


def made_good(damage: Mapping[str, Findings], replay: Replay | None) -> Iterator[Findings]:
    """The errors of each table; warnings where the log still held all that the table's segments have lost."""
    for table_id, lost in damage.items():
        recovered = sum(r.rows for r in replay.rows.get(table_id, []) if r.id == "wal-flushed") if replay else 0
        whole = all(f.rows is not None for f in lost) and 0 < sum(f.rows or 0 for f in lost) <= recovered
        yield Findings(replace(f, severity=Severity.WARNING) for f in lost) if whole else lost


# Folders beside the live segments that the log may have to explain (§3.6, §17) ----------------------------------------------


def _with_folders(opened: Opened, disk: Disk, findings: Findings) -> Opened:
    tables = {p.table.table_id: opened.schemas[c.table.table_id] for c in opened.selection.collections for p in c.partitions}
    victims: dict[str, list[Segment]] = defaultdict(list)
    live = {(table_id, s.id) for table_id, segments in opened.segments.items() for s in segments}
    raced = set()
    for row in _overwritten(opened.catalog, disk, findings):
        for table_id in tables:
            if (table_id, row.segment_id) not in live and row.segment_id in disk.segments(table_id):
                raced.add(table_id)
                victims[table_id] += _complete(table_id, [row.segment_id], tables[table_id], disk)
        if row.table_id in tables:
            raced.add(row.table_id)
    numbers: dict[str, set[str]] = defaultdict(set)
    for x in opened.selection.leftovers:
        if x.kind == "unfinished" and x.table_id in tables:
            numbers[x.table_id].add(x.segment_id)
    unfinished = {}
    for table_id, names in numbers.items():
        if found := list(_complete(table_id, sorted(names), tables[table_id], disk)):
            unfinished[table_id] = found
    return opened._replace(raced=raced, victims=victims, unfinished=unfinished)


def _overwritten(catalog: Catalog, disk: Disk, findings: Findings) -> Iterator[FileRow]:
    """Rows of the catalog that the row-id race has overwritten: the file they name is another segment's folder. Those of live
    segments are told already."""
    for row in catalog.files:
        if row.file_id == row.segment_id or row.file_type not in _ONCE_LIVE:
            continue
        if row.file_type != FileType.TO_DELETE:
            yield row
        elif row.file_id in disk.segments(row.table_id) and disk.places(row.table_id, row.file_id)[0].is_dir():
            findings.warning(
                "row-id-race",
                f"{row.table_id}/{row.segment_id}",
                f"the catalog row was overwritten by that of segment {row.file_id} (a bug of 0.10.4-1.1.1) and put aside "
                "later: a 1.x server has merged the rows of one in place of the other's. The write-ahead log decides",
            )
            yield row


def _complete(table_id: str, segment_ids: Iterable[str], schema: Schema, disk: Disk) -> Iterator[Segment]:
    """Those folders that hold all files of a segment, whole. `deleted_docs` is written last (§3.3)."""
    for segment_id in segment_ids:
        try:
            folder = disk.folder(table_id, segment_id)
            if folder is None or not folder.raw or not folder.ids or not folder.has_deleted_docs:
                continue
            segment, notes = open_segment(folder, segment_id, schema, state=FileType.NEW.name)
        except DamageError:
            continue
        if segment is not None and segment.rows and not notes:
            yield segment
