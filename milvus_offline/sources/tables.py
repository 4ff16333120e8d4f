"""A file with named columns of rows (arrays of an .npz, columns of a Parquet file) as a `File`: names, types, ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import DamageError, UsageError
from ..findings import Findings
from .columns import Column, NotIds, check_ids
from .files import File
from .names import IDS, Named, choose
from .options import SourceOptions
from .vectors import vector_kind


class Table(NamedTuple):
    """One of the columns of a file: what it is, how it is read, and why it cannot be read, if so."""

    named: Named
    column: Column
    refusal: str | None = None


def file_of(
    path: str, there: Mapping[str, Table], options: SourceOptions, *, what: str, usual: bool = False, metric: str | None = None
) -> File:
    """Which of the columns are vectors and ids, and what they hold. Raises DamageError or UsageError."""
    chosen = choose(path, [t.named for t in there.values()], options.embeddings, options.ids, what)
    findings = Findings(chosen.findings)
    vectors = there[chosen.vectors.name]
    for table in (vectors, *([there[chosen.ids.name]] if chosen.ids else ())):
        if table.refusal:
            raise UsageError(f"{path}: {table.named.name}: {table.refusal}")
    metric = options.metric or metric
    kind = vector_kind(path, vectors.named.name, vectors.named.shape, vectors.named.dtype, options, metric, usual)
    findings += kind.findings
    rows = vectors.named.shape[0]
    ids = ids_column(path, rows, there[chosen.ids.name], options, findings) if chosen.ids else None
    return File(
        path, rows, kind.width, kind.vector_type, vectors.column, ids, metric, [(0, rows)], findings, (), options.beyond
    )


def ids_column(path: str, rows: int, table: Table, options: SourceOptions, findings: Findings) -> Column | None:
    """The column of ids; None where they cannot be ids and are not needed."""
    named = table.named
    if named.shape not in ((rows,), (rows, 1)):
        raise DamageError(path, f"{named.name!r}: expected shape ({rows},) as there are vectors, found {named.shape}")
    try:
        if not named.are_ids(rows):
            raise NotIds(f"{named.name}: {named.dtype} are no ids")
        check_ids(table.column, rows)
        return table.column
    except NotIds as e:
        reason = f"{IDS if not named.name else named.name!r}: {named.dtype} as ids: {e}"
    if options.need_ids:
        hint = "--ids auto lets the target make the ids (load), --ids row takes row numbers; --ids-dataset names another column"
        raise UsageError(f"{path}: {reason}. {hint}")
    findings.info("ids-not-numbers", path, f"{reason}; they are left out, as --ids says", rows)
    return None
