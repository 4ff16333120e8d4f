"""Stores of Milvus 0.5 and 0.6: which of their files give rows (FORMAT §3.4, §8).

There are no segments. Every raw file that the catalog calls RAW, TO_INDEX or BACKUP is live, and all of its rows are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DamageError, UsageError
from ..fileio import printable
from ..model import Finding, Schema, Severity
from .catalog import Catalog, FileRow
from .contents import Collection, Partition
from .legacy import LegacyRawFile, open_raw_file, raw_file_path
from .live import LivePartition, Selection


def open_collections(
    catalog: Catalog, selection: Selection, schemas: Mapping[str, Schema], roots: Sequence[Path], findings: list[Finding]
) -> tuple[Collection, ...]:
    """The live collections with their raw files; `schemas` by table_id. What a person should know is added to `findings`."""
    opened = []
    for c in selection.collections:
        schema = schemas[c.table.table_id]
        partitions: dict[str, Partition] = {}
        for p in c.partitions:
            partition = Partition(p.tag, schema, tuple(_open_table(p, schema, roots, findings)))
            if p.tag in partitions:
                text = "two live partitions have this tag; their rows are put together"
                findings.append(Finding(Severity.WARNING, "partition-twice", f"{schema.name}/{printable(p.tag)}", text))
                partition = replace(partition, segments=partitions[p.tag].segments + partition.segments)
            partitions[p.tag] = partition
        opened.append(Collection(schema, tuple(partitions.values())))
    return tuple(opened)


def _open_table(p: LivePartition, schema: Schema, roots: Sequence[Path], findings: list[Finding]) -> list[LegacyRawFile]:
    files = []
    for choice in p.choices:
        row = choice.row
        where = _where(row)
        hint = row.row_count if 0 < row.row_count < 1 << 31 else None
        path = raw_file_path(roots, row.table_id, row.date, row.file_id)
        if path is None:
            text = (
                "the catalog lists this raw file, but it is not there; its rows are lost. The server could keep files in "
                "secondary paths as well: if this one did, name their places with --secondary"
            )
            findings.append(Finding(Severity.ERROR, "segment-missing", where, text, hint))
            continue
        try:
            raw, notes = open_raw_file(path, file_id=row.file_id, schema=schema, where=where, state=choice.state)
        except (DamageError, UsageError, OSError) as e:
            findings.append(Finding(Severity.ERROR, "segment-unreadable", where, str(e), hint))
            continue
        findings += notes
        _compare_count(row, raw, findings)
        files.append(raw)
    return files


def _where(row: FileRow) -> str:
    return f"{row.table_id}/{row.date}/{row.file_id}"


def _compare_count(row: FileRow, raw: LegacyRawFile, findings: list[Finding]) -> None:
    """`row_count` is a hint only (§7.6); without a catalog it is -1."""
    rows = raw.rows + raw.lost
    if row.row_count not in (rows, -1):
        text = f"the catalog's row_count is {row.row_count}, the file says {rows}; the file is right"
        findings.append(Finding(Severity.INFO, "row-count-differs", _where(row), text))
