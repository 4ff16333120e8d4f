"""Stores of Milvus 0.5 and 0.6: which of their files give rows (FORMAT §3.4, §8).

There are no segments. Every raw file that the catalog calls RAW, TO_INDEX or BACKUP is live, and all of its rows are. An index
file holds the rows of one raw file once more, and nothing says of which. So index files are read only where raw files have
lost rows, or are fewer than the index files; which of them stands for a lost raw file is then told by content: its rows are in
no readable one. Comparing takes 8 bytes per row of such a table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DamageError, UsageError
from ..fileio import printable
from ..model import Finding, Schema, Severity
from .catalog import Catalog, FileRow
from .contents import Collection, Partition
from .indexfile import read_index_file
from .layout import FileType
from .legacy import LegacyRawFile, open_raw_file, raw_file_path
from .live import Choice, LivePartition, Selection
from .rows import Hashes, contains, hashes_of


def open_collections(
    catalog: Catalog, selection: Selection, schemas: Mapping[str, Schema], roots: Sequence[Path], findings: list[Finding]
) -> tuple[Collection, ...]:
    """The live collections with their raw files; `schemas` by table_id. What a person should know is added to `findings`."""
    indexes: dict[str, list[FileRow]] = defaultdict(list)
    for row in catalog.files:
        if row.file_type == FileType.INDEX:
            indexes[row.table_id].append(row)
    opened = []
    for c in selection.collections:
        schema = schemas[c.table.table_id]
        partitions: dict[str, Partition] = {}
        for p in c.partitions:
            files = _open_table(p, indexes[p.table.table_id], schema, roots, findings)
            partition = Partition(p.tag, schema, tuple(files))
            if p.tag in partitions:
                text = "two live partitions have this tag; their rows are put together"
                findings.append(Finding(Severity.WARNING, "partition-twice", f"{schema.name}/{printable(p.tag)}", text))
                partition = replace(partition, segments=partitions[p.tag].segments + partition.segments)
            partitions[p.tag] = partition
        opened.append(Collection(schema, tuple(partitions.values())))
    return tuple(opened)


@dataclass(frozen=True)
class _Damaged:
    """A raw file that has lost rows: `rows` is how many it had, if anything tells, `raw` what can still be read of it."""

    finding: Finding
    rows: int | None
    raw: LegacyRawFile | None = None


def _open_table(
    p: LivePartition, indexes: Sequence[FileRow], schema: Schema, roots: Sequence[Path], findings: list[Finding]
) -> list[LegacyRawFile]:
    files: list[LegacyRawFile] = []
    damaged: list[_Damaged] = []
    for choice in p.choices:
        found = _open(choice, schema, roots, findings)
        if isinstance(found, _Damaged):
            damaged.append(found)
        else:
            files.append(found)
    if damaged or len(indexes) > sum(c.row.file_type == FileType.BACKUP for c in p.choices):
        files = _restore(files, damaged, indexes, schema, roots, findings)
    return files


def _open(choice: Choice, schema: Schema, roots: Sequence[Path], findings: list[Finding]) -> LegacyRawFile | _Damaged:
    row = choice.row
    where = _where(row)
    hint = row.row_count if 0 < row.row_count < 1 << 31 else None
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


def _restore(
    files: list[LegacyRawFile],
    damaged: Iterable[_Damaged],
    indexes: Iterable[FileRow],
    schema: Schema,
    roots: Sequence[Path],
    findings: list[Finding],
) -> list[LegacyRawFile]:
    """`files` and what is left of the `damaged` ones, or in their place the index files that still hold their rows."""
    result = list(files)
    found = _without_raw_file([hashes_of(f.batches()) for f in files], indexes, schema, roots, findings)
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
        text = f"the raw file is missing or damaged ({d.finding.code}); its rows are taken from the {kind} index {index.path}"
        findings.append(Finding(Severity.WARNING, "vectors-restored", where, text, index.rows))
        if index.lost:
            text = "the index file is cut as well; these rows are lost"
            findings.append(Finding(Severity.ERROR, "rows-lost", where, text, index.lost))
    for index, _ in found:
        text = f"no raw file holds the rows of this index file ({index.vectors.kind}); they are taken from it"
        findings.append(Finding(Severity.WARNING, "raw-row-missing", index.path, text, index.rows))
        if index.lost:
            findings.append(Finding(Severity.ERROR, "rows-lost", index.path, "the index file is cut", index.lost))
        result.append(index)
    return result


def _without_raw_file(
    held: list[Hashes], indexes: Iterable[FileRow], schema: Schema, roots: Sequence[Path], findings: list[Finding]
) -> list[tuple[LegacyRawFile, Hashes]]:
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
            index = LegacyRawFile(row.file_id, str(path), schema, stored, FileType.INDEX.name)
            rows = hashes_of(index.batches())
        except (DamageError, UsageError, OSError) as e:
            findings.append(Finding(Severity.INFO, "index-unusable", _where(row), f"no rows out of it: {e}"))
            continue
        if len(rows) and not any(_holds(h, rows) for h in held):
            held.append(rows)
            found.append((index, rows))
    return found


def _holds(whole: Hashes, part: Hashes) -> bool:
    return len(whole) >= len(part) and bool((whole == part[0]).any()) and contains(whole, part)


def _stand_in(d: _Damaged, found: list[tuple[LegacyRawFile, Hashes]]) -> LegacyRawFile | None:
    """Takes the index file out of `found` that belongs to the damaged raw file; None when it has none, or no more rows."""
    left = hashes_of(d.raw.batches()) if d.raw is not None else ()
    for k, (index, rows) in enumerate(found):
        if d.rows in (None, index.rows + index.lost) and (not len(left) or np.isin(left, rows).any()):
            del found[k]
            return index if index.rows > len(left) else None
    return None


def _where(row: FileRow) -> str:
    return f"{row.table_id}/{row.date}/{row.file_id}"


def _compare_count(row: FileRow, raw: LegacyRawFile, findings: list[Finding]) -> None:
    """`row_count` is a hint only (§7.6); without a catalog it is -1."""
    rows = raw.rows + raw.lost
    if row.row_count not in (rows, -1):
        text = f"the catalog's row_count is {row.row_count}, the file says {rows}; the file is right"
        findings.append(Finding(Severity.INFO, "row-count-differs", _where(row), text))
