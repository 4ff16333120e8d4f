"""Reading everything of a store and believing nothing: what `verify STORE` does (FORMAT §4, §5, §11)."""

from __future__ import annotations

import contextlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import DamageError, UsageError
from ..findings import Findings
from ..hashing import row_hashes
from ..model import Advance, Array, Batch, VectorType
from ..watch import Watch, watching
from .catalog.rows import Catalog, FileRow
from .layout import BLOOM_FILTER, FileType
from .segment.bloom import BloomFilter, read_filter
from .segment.files import Segment
from .segment.indexfile import check as check_index
from .segment.indexfile import read_index_file
from .segment.rawfile import RawFile
from .segment.restored import RestoredSegment
from .store import Partition, Store
from .wal.log import Walk


@dataclass
class Checked:
    """What was looked at, and what of it something else could be held against."""

    segments: int = 0
    rows: int = 0
    bytes: int = 0
    index_files: int = 0
    records: int = 0
    ids_in_filters: int = 0
    """Rows whose id was looked for in a bloom filter."""
    vectors_in_indexes: int = 0
    """Rows whose vector was compared with one that an index file holds as it was."""
    vectors_in_log: int = 0
    """Rows whose vector was compared with the record of the log that brought it."""
    compared: dict[tuple[str, str], int] = field(default_factory=dict, repr=False)
    """The rows of each segment that were compared with an index file."""
    on_nothing: int = 0
    """Rows whose vector nothing else holds: a flipped bit in it cannot be seen."""

    def to_json(self) -> dict[str, int]:
        """What could be checked, as `verify --json` has it."""
        return {
            "rows": self.rows,
            "ids_in_bloom_filters": self.ids_in_filters,
            "vectors_in_index_files": self.vectors_in_indexes,
            "vectors_in_log": self.vectors_in_log,
            "rows_on_nothing": self.on_nothing,
        }


@dataclass(frozen=True)
class CheckSegment:
    """Reads one segment through, with its bloom filter and its index files: a picklable task, for here or another machine."""

    id: str
    where: str
    segment: Segment | RawFile
    indexes: tuple[tuple[FileRow, Path | None], ...] = ()
    """The index files that the catalog lists, and where they are."""

    @property
    def rows(self) -> int:
        return self.segment.rows

    @property
    def bytes(self) -> int:
        return self.segment.bytes

    def run(self, advance: Advance) -> dict[str, Any]:
        """`rows` that came out and the sum of their ids, how many could be held against a bloom filter and an index file,
        `findings`, and what the watch saw."""
        notes = Findings()
        with watching() as met:
            told = Told(advance)
            bloom = _bloom(self.segment, self.where, notes) if isinstance(self.segment, Segment) else None
            rows, id_sum = _read_rows(self.where, self.segment, bloom, notes, told.advance)
            told.rest(self.rows, self.bytes)
        compared = 0
        if isinstance(self.segment, Segment):
            with watching():  # what is met by reading again was said
                for row, path in self.indexes:
                    compared = max(compared, min(rows, _check_index(path, self.segment, row, notes)))
        filtered = rows if bloom is not None else 0
        return {"rows": rows, "id_sum": id_sum, "filtered": filtered, "compared": compared, "findings": notes, **met.result()}


Run = Callable[[Sequence[CheckSegment]], Generator[dict[str, Any], None, None]]
"""Runs tasks, here or elsewhere, and gives what each of them found, in their order; is closed when no more is wanted."""


def check_store(
    store: Store, *, sample: float = 1.0, advance: Advance | None = None, run: Run | None = None
) -> tuple[Checked, Findings]:
    """Reads a store's segments, index files and log through and compares them with each other and with the catalog.

    `sample` is the share of segments whose rows, bloom filters and index files are read (chosen by their name, so the same ones
    each time); lengths and the log are always looked at. `run` reads the segments elsewhere; the log is always read here.
    Findings are those beyond the store's own.
    """
    tell = advance or (lambda rows, nbytes: None)
    notes = Findings()
    with watching() as met:
        done = _check(store, sample, tell, notes, met, run or (lambda tasks: (t.run(tell) for t in tasks)))
    return done, Findings([*notes, *met.findings()])


def _check(store: Store, sample: float, advance: Advance, notes: Findings, met: Watch, run: Run) -> Checked:
    by_segment: dict[tuple[str, str], list[FileRow]] = {(table_id, s.id): [] for _, s, table_id in _segments(store)}
    for row in store.catalog.files:
        if (listed := by_segment.get((row.table_id, row.segment_id))) is not None:
            listed.append(row)
    uncounted = {f.where for f in store.findings if f.code == "row-count-differs"}
    for f in store.findings:
        if f.code == "file-longer":
            notes.error("file-differs", f.where, "a file of this segment is not what the server wrote")  # its rows are counted
    alike: dict[tuple[str, int, int], _Alike] = defaultdict(_Alike)
    done = Checked()
    work = list(_work(store, sample, by_segment))
    with contextlib.closing(run([task for _, _, task in work if task is not None])) as results:
        for segment, table_id, task in work:
            if isinstance(segment, Segment):
                _compare_deletes(store.catalog, segment, table_id, by_segment.get((table_id, segment.id), []), uncounted, notes)
            if task is None:
                continue
            found = next(results)
            met.add(found)
            notes += found["findings"]
            rows, compared = found["rows"], found["compared"]
            if isinstance(segment, Segment):
                with watching():  # the same
                    _find_twin(task.where, segment, alike[table_id, rows, found["id_sum"]], notes)
            done.segments += 1
            done.bytes += segment.bytes
            done.index_files += len(task.indexes)
            done.rows += rows
            done.ids_in_filters += found["filtered"]
            done.vectors_in_indexes += compared
            done.on_nothing += rows - compared
            done.compared[table_id, segment.id] = compared
    if sample >= 1:
        _hold_against_log(store, done, met, notes)
    logged = _read_log_rows(store, notes, advance)
    done.rows += logged
    done.on_nothing += logged
    if store.wal is not None:
        walk = Walk(store.wal, Findings())
        start = (store.replay.start if store.replay else 0) if store.wal.files else 0
        first = min((f.number for f in store.wal.files), default=0) << 32
        done.records = sum(1 for _ in walk.records(min(first, start)))
    return done


def _work(
    store: Store, sample: float, by_segment: Mapping[tuple[str, str], list[FileRow]]
) -> Iterator[tuple[Segment | RawFile, str, CheckSegment | None]]:
    """All segments with the id of their table, and the task that reads those that were chosen."""
    chosen = _chosen(store, sample)
    for partition, segment, table_id in _segments(store):
        legacy = isinstance(segment, RawFile)
        if not legacy and segment.id not in chosen:
            yield segment, table_id, None
            continue
        listed = by_segment.get((table_id, segment.id), ()) if not legacy else ()  # a legacy file may itself be an index
        indexes = [(r, store.disk.index_file(table_id, segment.id, r.file_id)) for r in listed if r.file_type == FileType.INDEX]
        where = f"{partition.schema.name}/{partition.name}/{segment.id}"
        yield segment, table_id, CheckSegment(f"{table_id}/{segment.id}", where, segment, tuple(indexes))


def _compare_deletes(  # many: a segment, and what its store says of it
    catalog: Catalog, segment: Segment, table_id: str, rows: list[FileRow], uncounted: Set[str], notes: Findings
) -> None:
    if segment.deletes is not None or str(Path(segment.ids_path).parent) in uncounted:
        text = "the deletions in the files are not those that the server made; another finding says what is known of them"
        notes.error("deletes-differ", f"{table_id}/{segment.id}", text)
    else:
        _compare_counts(catalog, segment, table_id, rows, notes)


class Told:
    """Tells the progress of one thing that is read, and in the end that all of it was looked at: deleted rows, headers, and
    what is damaged."""

    def __init__(self, tell: Advance) -> None:
        self._tell = tell
        self._rows = self._bytes = 0

    def advance(self, rows: int, nbytes: int) -> None:
        self._rows += rows
        self._bytes += nbytes
        self._tell(rows, nbytes)

    def rest(self, rows: int, nbytes: int) -> None:
        """All of it has so many rows and bytes."""
        self._tell(rows - self._rows, nbytes - self._bytes)


def weigh(store: Store, sample: float) -> tuple[int, int]:
    """Rows and bytes that `check_store` reads of a store, for its progress."""
    chosen = _chosen(store, sample)
    read = [s for _, s, _ in _segments(store) if s.id in chosen or isinstance(s, RawFile)]
    logs = [rows for c in store.collections for p in c.partitions for rows in p.log]
    return sum(x.rows for x in (*read, *logs)), sum(x.bytes for x in (*read, *logs))


def _segments(store: Store) -> Iterator[tuple[Partition, Segment | RawFile, str]]:
    for collection, live in zip(store.collections, store.selection.collections, strict=True):
        tables = {p.tag: p.table.table_id for p in live.partitions}
        for partition in collection.partitions:
            for segment in partition.segments:
                yield partition, segment, tables[partition.name]


def _chosen(store: Store, share: float) -> set[str]:
    """Ids of about this share of the segments, of one at least."""
    order = sorted({s.id for _, s, _ in _segments(store)}, key=lambda i: zlib.crc32(i.encode()))
    return {i for n, i in enumerate(order) if not n or zlib.crc32(i.encode()) < share * (1 << 32)}


def _compare_counts(catalog: Catalog, segment: Segment, table_id: str, rows: list[FileRow], notes: Findings) -> None:
    """`row_count` is a hint only (§7.6): that there are fewer live rows than it says is no damage."""
    raw = next((r for r in rows if r.file_id == segment.id and r.file_type != FileType.TO_DELETE), None)
    if raw is None or catalog.from_files or segment.schema.attributes:
        return
    if raw.row_count != segment.stored - segment.deleted and segment.wal_deleted is None:
        notes.info(
            "row-count-differs",
            f"{table_id}/{segment.id}",
            f"the catalog's row_count is {raw.row_count}, the files hold {segment.rows} live rows; the files are right",
        )


def _read_rows(
    where: str, segment: Segment | RawFile, bloom: BloomFilter | None, notes: Findings, advance: Advance
) -> tuple[int, int]:
    """How many rows came, and the sum of their ids modulo 2^64."""
    rows = absent = strange = id_sum = 0
    try:
        for batch in segment.batches():
            rows += batch.span
            id_sum = (id_sum + int(batch.ids.sum())) % (1 << 64)
            if bloom is not None:
                absent += int((~bloom.contains(batch.ids)).sum())
            strange += _not_finite(batch, segment.schema.vector_type)
            advance(len(batch.ids), batch.vectors.nbytes + batch.ids.nbytes)
    except (DamageError, OSError) as e:
        notes.error("segment-unreadable", where, str(e), segment.rows - rows)
        return rows, id_sum
    if rows != segment.rows:
        notes.error("rows-differ", where, f"{rows} rows were read, {segment.rows} were counted before")
    if absent:
        notes.error(
            "bloom-misses",
            where,
            "live ids are not in the bloom filter: ids or filter are damaged; no server can find or delete these",
            absent,
        )
    if strange:
        notes.info("not-finite", where, "vectors hold NaN or infinity; Milvus 2.x refuses them", strange)
    return rows, id_sum


def _find_twin(where: str, segment: Segment, alike: _Alike, notes: Findings) -> None:
    """Says it when a segment of the table holds the same rows."""
    twin = alike.twin_of(segment) if segment.rows else None
    if twin is not None:
        text = (
            f"the same rows as in segment {twin.id}: they were inserted twice, or a server that was killed while it flushed "
            "doubled them when it started again. A 1.x server shows both"
        )
        notes.info("segments-equal", where, text, segment.rows)


class _Alike:
    """Segments of a table with as many rows and the same sum of ids. Once there are two, each is read once more."""

    def __init__(self) -> None:
        self._first: Segment | None = None
        """Not read again so far."""
        self._known: dict[tuple[int, int], Segment] = {}

    def twin_of(self, segment: Segment) -> Segment | None:
        """The first of the segments so far that holds the same rows, if one does; this one is compared with later ones."""
        if self._first is None and not self._known:
            self._first = segment
            return None
        twin = None
        for each in (self._first, segment) if self._first else (segment,):
            with contextlib.suppress(DamageError, OSError):  # said by who read the rows
                known = self._known.setdefault(_digest(each), each)
                twin = None if known is each else known
        self._first = None
        return twin


def _digest(segment: Segment) -> tuple[int, int]:
    """A digest of a segment's rows whatever their order: two sums of 64 bits of hashes. Raises DamageError, OSError."""
    plain = mixed = 0
    for batch in segment.batches():
        hashes = row_hashes(batch.ids, batch.vectors)
        plain += int(hashes.sum(dtype=np.uint64))
        mixed += int((hashes * hashes).sum(dtype=np.uint64))
    return plain % (1 << 64), mixed % (1 << 64)


def _read_log_rows(store: Store, notes: Findings, advance: Advance) -> int:
    rows = 0
    for collection in store.collections:
        for partition in collection.partitions:
            try:
                for batch in (b for piece in partition.log for b in piece.batches()):
                    rows += len(batch.ids)
                    advance(len(batch.ids), batch.vectors.nbytes + batch.ids.nbytes)
            except (DamageError, OSError) as e:
                notes.error("wal-unreadable", f"{collection.name}/{partition.name}", str(e))
    return rows


def _hold_against_log(store: Store, done: Checked, met: Watch, notes: Findings) -> None:
    """Compares vectors with the records that brought them, as far as the log still has these."""
    if store.replay is None or not store.replay.logged:
        return
    from .wal.compared import against_log, tell

    for table in store.replay.logged:
        if table.schema.attributes:
            continue
        try:
            with watching():  # what is met by reading again was said
                for held in against_log(table, store.replay.segments.get(table.table_id, ()), store.replay.tails):
                    if not _is_told(notes, table.table_id, held.segment):
                        tell(table, held, met, notes)
                    done.vectors_in_log += held.rows
                    in_index = done.compared.get((table.table_id, held.segment.id), 0)
                    done.on_nothing -= max(0, held.rows - in_index)
        except (DamageError, OSError):
            continue  # whoever reads the rows says so


def _is_told(notes: Findings, table_id: str, segment: Segment) -> bool:
    """Whether an index file has contradicted the segment's vectors already."""
    return any(f.code == "vectors-differ" and f.where.startswith(f"{table_id}/{segment.id}/") for f in notes)


def _bloom(segment: Segment, where: str, notes: Findings) -> BloomFilter | None:
    if isinstance(segment, RestoredSegment) or not segment.rows:
        return None
    path = fileio.as_path(segment.ids_path).with_name(BLOOM_FILTER)
    if not path.exists():
        notes.info("bloom-missing", where, "there is no bloom_filter; a server up to 1.1.0 needs one")
        return None
    try:
        return read_filter(path)
    except PermissionError as e:
        notes.info("bloom-missing", where, f"bloom_filter cannot be read ({e.strerror}), so the ids were not compared with it")
        return None
    except (DamageError, OSError) as e:
        notes.warning("bloom-damaged", where, f"{e}; no row needs it, but a server up to 1.1.0 does")
        return None


def _not_finite(batch: Batch, vector_type: VectorType) -> int:
    if vector_type is VectorType.BINARY:
        return 0
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(batch.vectors.sum()):  # cheap: one strange value spoils the sum
            return 0
    return int((~np.isfinite(batch.vectors).all(axis=1)).sum())


def _check_index(path: Path | None, segment: Segment, row: FileRow, notes: Findings) -> int:
    """How many of the segment's vectors were compared with this index file's."""
    where = f"{row.table_id}/{segment.id}/{row.file_id}"
    if path is None:
        notes.warning("index-missing", where, "the catalog lists this index file, but it is missing")
        return 0
    try:
        report = check_index(path)
        size = path.stat().st_size
        compared, wrong = (0, 0) if isinstance(segment, RestoredSegment) else _compare_vectors(path, segment)
    except (DamageError, OSError) as e:
        notes.warning("index-damaged", where, f"{e}; the rows do not depend on it")
        return 0
    if report.rows is not None and report.rows != segment.stored:
        message = f"the index has {report.rows} rows, the segment {segment.stored}"
        notes.warning("index-differs", where, message)
    elif row.file_size and size != row.file_size:
        message = f"the catalog says {row.file_size} bytes, the file has {size}"
        notes.warning("index-differs", where, message)
    elif wrong:
        message = (
            f"{wrong} of {segment.stored} vectors in {segment.raw_path} are not those of this index: one of the two files is "
            "damaged"
        )
        notes.error("vectors-differ", where, message, wrong)
    return compared


def _compare_vectors(path: Path, segment: Segment) -> tuple[int, int]:
    """How many vectors of the segment were compared with an index file that holds them as they were (§4.6), and how many are
    others there; 9 bytes a row."""
    try:
        index = read_index_file(path)
    except UsageError:  # one that holds none, or approximations
        return 0, 0
    if index.rows != segment.stored:
        return 0, 0
    if index.vector_type is not segment.schema.vector_type or index.dimension != segment.schema.dimension:
        return 0, 0
    stored, known, row = np.zeros(segment.stored, np.uint64), np.ones(segment.stored, np.bool_), 0
    for batch in segment.undeleted.batches():
        known[row + batch.lost] = False
        stored[row + np.delete(np.arange(batch.span), batch.lost)] = row_hashes(_numbers(batch.vectors), batch.vectors)
        row += batch.span
    wrong = 0
    for offsets, vectors in index.batches():
        wrong += int(((row_hashes(_numbers(vectors), vectors) != stored[offsets]) & known[offsets]).sum())
    return int(known.sum()), wrong


def _numbers(vectors: Array) -> npt.NDArray[np.int64]:
    return np.zeros(len(vectors), np.int64)
