"""Stores of Milvus 0.5 and 0.6: which of their files give rows (FORMAT §3.4, §8).

There are no segments. Every raw file that the catalog calls RAW, TO_INDEX or BACKUP is live, and all of its rows are. An index
file holds the rows of one raw file once more, and nothing says of which. So index files are read only where raw files have
lost rows, or are fewer than the index files; which of them stands for a lost raw file is then told by content: its rows are in
no readable one. Comparing takes 8 bytes per row of such a table.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DamageError, UsageError
from ..findings import Findings
from ..hashing import Hashes
from ..model import Finding, SalvageKind, Schema, Severity
from .catalog.rows import Catalog, FileRow
from .copies import Contents, all_in, drop_contained, end_merges, hashes_of, holds
from .layout import FileType, MetricType
from .live import Choice, Leftover, LivePartition, LiveSet
from .segment.indexfile import read_index_file, read_raw_file, type_of
from .segment.rawfile import RawFile, files_by_date, open_raw_file, raw_file_path
from .store import Collection, Partition, Store


def open_collections(
    catalog: Catalog, selection: LiveSet, schemas: Mapping[str, Schema], roots: Sequence[Path], findings: Findings
) -> tuple[Collection, ...]:
    """The live collections with their raw files; `schemas` by table_id. What a person should know is added to `findings`."""
    rows: dict[str, list[FileRow]] = defaultdict(list)
    for row in catalog.files:
        rows[row.table_id].append(row)
    opened = []
    for c in selection.collections:
        schema = schemas[c.table.table_id]
        files = ((p.tag, _open_table(p, rows[p.table.table_id], schema, roots, findings, catalog)) for p in c.partitions)
        opened.append(Collection.of(schema, [Partition(tag, schema, tuple(found)) for tag, found in files], findings))
    return tuple(opened)


@dataclass(frozen=True)
class _Damaged:
    """A raw file that has lost rows: `rows` is how many it had, if anything tells, `raw` what can still be read of it."""

    finding: Finding
    rows: int | None
    raw: RawFile | None = None


def _open_table(
    p: LivePartition,
    rows: Sequence[FileRow],
    schema: Schema,
    roots: Sequence[Path],
    findings: Findings,
    catalog: Catalog,
) -> list[RawFile]:
    files: list[RawFile] = []
    damaged: list[_Damaged] = []
    for choice in p.choices:
        found = _open(choice, schema, roots, findings)
        if isinstance(found, _Damaged):
            damaged.append(found)
        else:
            files.append(found)
    indexes = [r for r in rows if r.file_type == FileType.INDEX]
    merges = [r for r in rows if r.file_type == FileType.NEW_MERGE] if catalog.statements_commit_alone else []
    backups = sum(r.file_type == FileType.BACKUP for r in rows)
    if not (catalog.from_files or damaged or merges or len(indexes) > backups):
        return files
    contents = Contents()
    if catalog.from_files:
        files = drop_contained(files, contents, _place, findings)
        damaged = _without_parts_of_merges(damaged, files, contents, findings)
    files = end_merges(files, _open_merges(merges, schema, roots), contents, _place, findings)
    return _restore(files, damaged, indexes, schema, roots, contents, findings)


def _open(choice: Choice, schema: Schema, roots: Sequence[Path], findings: Findings) -> RawFile | _Damaged:
    row = choice.row
    where = _where(row)
    hint = row.known_rows or None
    path = raw_file_path(roots, row.table_id, row.date, row.file_id)
    if path is None:
        text = (
            "the catalog lists this raw file, but it is not there; its rows are lost. The server could keep files in "
            "secondary paths as well: if this one did, name their places with --secondary"
        )
        return _Damaged(Finding(Severity.ERROR, "segment-missing", where, text, hint), hint)
    try:
        raw, notes = open_raw_file(path, file_id=row.file_id, schema=schema, where=where, state=choice.state)
    except (DamageError, UsageError, OSError) as e:
        return _Damaged(Finding(Severity.ERROR, "segment-unreadable", where, str(e), hint), hint)
    _compare_count(row, raw, findings)
    findings += [f for f in notes if f.code != "rows-lost"]
    lost = [f for f in notes if f.code == "rows-lost"]
    return _Damaged(lost[0], raw.rows + raw.lost, raw) if lost else raw


def _without_parts_of_merges(
    damaged: Sequence[_Damaged], kept: Sequence[RawFile], contents: Contents, findings: Findings
) -> list[_Damaged]:
    """Without a catalog: a cut file whose readable rows are in other files is a merge's source, or was to be its result."""
    lost = []
    for d in damaged:
        if d.raw is None or not d.raw.rows or not all_in(contents.live(d.raw), map(contents.live, kept)):
            lost.append(d)
            continue
        text = "the file is cut; all rows that can be read are in other files as well: it is treated as part of a merge"
        findings.warning("segment-contained", d.finding.where, text, d.rows)
    return lost


def _open_merges(merges: Iterable[FileRow], schema: Schema, roots: Sequence[Path]) -> Iterator[RawFile]:
    """The complete ones of the files that merges were writing."""
    for row in merges:
        path = raw_file_path(roots, row.table_id, row.date, row.file_id)
        try:
            if path is None:
                continue
            target, notes = open_raw_file(path, file_id=row.file_id, schema=schema, state=FileType.NEW_MERGE.name)
        except (DamageError, UsageError, OSError):
            continue
        if not notes:
            yield target


def _restore(  # many: raw files and index files of one table, and where both are looked for
    files: Sequence[RawFile],
    damaged: Iterable[_Damaged],
    indexes: Iterable[FileRow],
    schema: Schema,
    roots: Sequence[Path],
    contents: Contents,
    findings: Findings,
) -> list[RawFile]:
    """`files` and what is left of the `damaged` ones, or in their place the index files that still hold their rows."""
    result = list(files)
    found = _without_raw_file([contents.live(f) for f in files], indexes, schema, roots, findings)
    # first those that content tells, then those whose number of rows does
    for d in sorted(damaged, key=lambda d: (d.raw is None or not d.raw.rows, d.rows is None)):
        index = _stand_in(d, found)
        if index is None:
            findings.append(d.finding)
            if d.raw is not None:
                result.append(d.raw)
            continue
        result.append(index)
        where, kind = d.finding.where, index.vectors.kind
        text = f"the raw file is missing or damaged ({d.finding.code}); its rows are read from the {kind} index {index.path}"
        findings.warning("vectors-restored", where, text, index.rows)
        if index.lost:
            text = "the index file is cut or lacks these rows; they are lost"
            findings.error("rows-lost", where, text, index.lost)
    for index, _ in found:
        text = f"no raw file holds the rows of this index file ({index.vectors.kind}); they are read from it"
        findings.warning("raw-row-missing", _place(index), text, index.rows)
        if index.lost:
            text = "the index file is cut or lacks these rows"
            findings.error("rows-lost", _place(index), text, index.lost)
        result.append(index)
    return result


def _without_raw_file(
    held: list[Hashes], indexes: Iterable[FileRow], schema: Schema, roots: Sequence[Path], findings: Findings
) -> list[tuple[RawFile, Hashes]]:
    """The index files whose rows are in none of the raw files, whose rows are `held`. Of two with the same rows the first."""
    found = []
    for row in indexes:
        path = raw_file_path(roots, row.table_id, row.date, row.file_id)
        try:
            if path is None:
                raise DamageError(_where(row), "it is not there")
            stored = read_index_file(path, partial=True, user_ids=True)
            if stored.vector_type is not schema.vector_type or stored.dimension != schema.dimension:
                raise DamageError(path, f"holds {stored.vector_type.value} vectors of dimension {stored.dimension}")
            if not stored.own_ids:
                raise DamageError(path, "the file is cut before the ids")
            index = RawFile(row.file_id, str(path), schema, stored, FileType.INDEX.name)
            rows = np.sort(hashes_of(index.batches()))
        except (DamageError, UsageError, OSError) as e:
            findings.info("index-unusable", _where(row), f"its rows cannot be used: {e}")
            continue
        if len(rows) and not any(holds(h, rows) for h in held):
            held.append(rows)
            found.append((index, rows))
    return found


def _stand_in(d: _Damaged, found: list[tuple[RawFile, Hashes]]) -> RawFile | None:
    """Takes the index file out of `found` that belongs to the damaged raw file; None when it has none, or no more rows."""
    left = hashes_of(d.raw.batches()) if d.raw is not None else ()
    for k, (index, rows) in enumerate(found):
        if d.rows in (None, index.rows + index.lost) and (not len(left) or np.isin(left, rows).any()):
            del found[k]
            return index if index.rows > len(left) else None
    return None


def _where(row: FileRow) -> str:
    return f"{row.table_id}/{row.date}/{row.file_id}"


def _place(file: RawFile) -> str:
    return "/".join(Path(file.path).parts[-3:])


def _compare_count(row: FileRow, raw: RawFile, findings: Findings) -> None:
    """`row_count` is a hint only (§7.6); without a catalog it is -1."""
    rows = raw.rows + raw.lost
    if row.row_count not in (rows, -1):
        text = f"the catalog's row_count is {row.row_count}, the file says {rows}; the file is right"
        findings.info("row-count-differs", _where(row), text)


# Without a catalog -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SurveyedTable:
    """What the files of a table tell: a catalog row for each, and the dimension and the metric that most rows have."""

    files: tuple[FileRow, ...]
    dimension: int | None
    metric: MetricType | None
    index_types: frozenset[str]
    """In the names of 1.x."""


def survey_table(table_id: str, roots: Sequence[Path], notes: Findings) -> SurveyedTable:
    """Raw files are containers of type FLAT, index files all others; which raw files are obsolete cannot be seen from them."""
    files: list[FileRow] = []
    dimensions: Counter[int] = Counter()
    metrics: Counter[str] = Counter()
    kinds = set()
    for (date, file_id), path in files_by_date(roots, table_id).items():
        row = FileRow(len(files) + 1, table_id, FileType.RAW, file_id=file_id, row_count=-1, date=date)
        try:
            kind = type_of(path)
            if kind != "FLAT":
                row = row._replace(file_type=FileType.INDEX)
                kinds.add(kind)
            files.append(row)
            stored = read_raw_file(path)[0] if kind == "FLAT" else read_index_file(path, partial=True, user_ids=True)
        except UsageError:
            continue  # an index that holds no vectors
        except (DamageError, OSError) as e:
            if row not in files:
                notes.error("segment-unreadable", _where(row), str(e))
            continue
        weight = stored.rows + stored.lost if kind == "FLAT" else 0
        dimensions[stored.dimension] += weight
        if stored.metric:
            metrics[stored.metric] += weight
    dimension = max(dimensions, key=lambda d: dimensions[d], default=None)
    metric = max(metrics, key=lambda m: metrics[m], default=None)
    return SurveyedTable(tuple(files), dimension, MetricType[metric] if metric else None, frozenset(kinds))


# Salvage ---------------------------------------------------------------------------------------------------------------


def leftovers(store: Store) -> list[Leftover]:
    """Files beside the live raw files, with `<date>/<file_id>` for a segment; index files are among them."""
    rows = {(r.table_id, r.date, r.file_id): r for r in store.catalog.files}
    tables = {t.table_id for t in store.catalog.tables}
    dropped = {t.table_id for t in store.selection.dropped}
    live = {s.paths[0] for c in store.collections for p in c.partitions for s in p.segments}
    result = []
    for table_id in store.disk.tables():
        for (date, file_id), path in files_by_date(store.location.roots, table_id).items():
            if str(path) in live:
                continue
            row = rows.get((table_id, date, file_id))
            kind: SalvageKind
            if table_id in dropped:
                kind, reason = "dropped", "its collection or partition was dropped"
            elif row is None:
                kind = "orphans"
                reason = "no catalog row describes it" if table_id in tables else "its collection is not in the catalog"
            elif row.file_type in _NOT_LIVE:
                kind, reason = _NOT_LIVE[row.file_type]
            else:
                continue
            result.append(Leftover(kind, table_id, f"{date}/{file_id}", reason))
    return result


_NOT_LIVE: dict[int, tuple[SalvageKind, str]] = {
    int(FileType.TO_DELETE): ("to-delete", "the server had put it aside for deletion"),
    int(FileType.NEW): ("unfinished", "a flush was to write it"),
    int(FileType.NEW_MERGE): ("unfinished", "a merge was writing it"),
}


def open_leftover(leftover: Leftover, schema: Schema | None, roots: Sequence[Path]) -> tuple[RawFile | None, Findings]:
    """The raw file of a leftover; None for an index file. What the file tells goes before `schema`.

    Raises DamageError, UsageError, OSError.
    """
    date, _, file_id = leftover.segment_id.partition("/")
    path = raw_file_path(roots, leftover.table_id, int(date), file_id)
    if path is None or type_of(path) != "FLAT":
        return None, Findings()
    stored, _ = read_raw_file(path)
    if schema is None:
        schema = Schema(leftover.table_id, stored.dimension, metric_type=stored.metric)
    schema = replace(schema, dimension=stored.dimension)
    where = f"{leftover.table_id}/{leftover.segment_id}"
    return open_raw_file(path, file_id=file_id, schema=schema, where=where, state=leftover.kind)
