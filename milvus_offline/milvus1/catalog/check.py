"""Values of a catalog that no server writes, and rows that contradict each other (FORMAT §2.2-2.5, §7, §11).

SQLite has no checksum: a bit that flipped inside a page may leave a sound database that means something else. What a catalog
says twice, or can say in few ways only, is compared here. Each rule holds for every row of all real stores seen (0.8.1 to
1.1.1). What a flipped bit can change unseen is listed in docs/format.md.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

from ...findings import Findings
from ...model import VectorType
from ...names import printable
from ..layout import INDEX_NAMES, EngineType, FileType, TableState
from .rows import Catalog, FileRow, TableRow

_BINARY_ENGINES = {EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP, EngineType.FAISS_BIN_IVFFLAT}
_LIVE = {FileType.RAW, FileType.TO_INDEX, FileType.INDEX, FileType.BACKUP}
_UNWRITTEN = {FileType.NEW, FileType.NEW_MERGE, FileType.NEW_INDEX}


def contradictions(catalog: Catalog) -> Findings:
    """What cannot be right in a catalog of 0.7 or later; where a reading of it was chosen, the message says which."""
    findings = Findings()
    tables = {t.table_id: t for t in catalog.tables}
    files: dict[str, list[FileRow]] = defaultdict(list)
    for row in catalog.files:
        files[row.table_id].append(row)
    for table in catalog.tables:
        for text in (*_values(table), *_against_owner(table, tables.get(table.owner_table))):
            findings.warning("catalog-value", _name(table), f"{text}. No server writes that: the catalog is damaged")
        owner = tables.get(table.owner_table)
        if table.is_dropped or (owner is not None and owner.is_dropped):
            _dropped(table, files[table.table_id], findings)
        elif table.owner_table and table.owner_table not in tables:
            _without_owner(table, tables, findings)
    for row in catalog.files:
        if row.file_id == row.segment_id and row.file_type in _UNWRITTEN and row.file_size > 0 and row.row_count > 0:
            kind = FileType(row.file_type).name
            text = (
                f"the catalog marks this segment as {kind} (not yet written), and yet says that it has {row.row_count} rows in"
            )
            findings.warning(
                "catalog-value",
                f"{row.table_id}/{row.segment_id}",
                f"{text} {row.file_size} bytes: a server writes these numbers only with the state of a finished segment. It is "
                "left out; --salvage unfinished exports its rows",
                row.known_rows,
            )
    return findings


def one_byte_off(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that differs from `name` in a single byte, as after a bit that flipped; None without such a one."""
    own = name.encode("utf-8", "surrogateescape")
    for other in names:
        theirs = other.encode("utf-8", "surrogateescape")
        if len(own) == len(theirs) and sum(a != b for a, b in zip(own, theirs, strict=True)) == 1:
            return other
    return None


def _values(table: TableRow) -> Iterator[str]:
    if table.state not in (TableState.NORMAL, TableState.TO_DELETE):
        yield f"state is {table.state}, expected 0 or 1; it counts as live, as for a server"
    if table.flag not in (0, 1, 2):
        yield f"flag is {table.flag}, expected 0, 1 or 2"
    if table.engine_type not in {int(e) for e in INDEX_NAMES} - {EngineType.INVALID}:
        yield f"engine_type is {table.engine_type}, which is no index"
    elif table.vector_type is VectorType.BINARY and table.engine_type not in _BINARY_ENGINES:
        yield f"engine_type {table.engine_type} is an index for floats, but by its metric the vectors are binary"
    elif table.vector_type is VectorType.FLOAT and table.engine_type in _BINARY_ENGINES - {EngineType.FAISS_IDMAP}:
        yield f"engine_type {table.engine_type} is an index for binary vectors, but by its metric the vectors are floats"
    if not table.owner_table and not (table.table_id[:1].isalpha() or table.table_id[:1] == "_"):
        yield f"the collection's name {printable(table.table_id)!r} begins with no letter: a partition that lost its owner"
    if not table.owner_table and table.partition_tag:
        yield f"a collection has the partition tag {printable(table.partition_tag)!r}: a partition that lost its owner"
    if not _is_object(table.index_params):
        yield f"index_params is {printable(table.index_params)!r:.60}, expected a JSON object; it is left out"


def _is_object(text: str) -> bool:
    try:
        return text == "" or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _against_owner(table: TableRow, owner: TableRow | None) -> Iterator[str]:
    """A partition's row repeats its collection's facts (§7.5)."""
    if owner is None or table.is_dropped or owner.is_dropped:
        return
    if owner.owner_table:
        yield f"its collection {printable(table.owner_table)!r} is itself a partition; it counts as dropped"
    for column in ("dimension", "metric_type", "version"):
        mine, theirs = getattr(table, column), getattr(owner, column)
        if mine != theirs:
            yield f"{column} is {printable(mine)} here and {printable(theirs)} in the collection, which counts"


def _dropped(table: TableRow, files: Iterable[FileRow], findings: Findings) -> None:
    """A server puts the files aside right after it has marked the table, and then does the same with its partitions, whose rows
    it removes at the next start (§3.3)."""
    own = [f for f in files if f.file_id == f.segment_id]
    live = [f for f in own if f.file_type in _LIVE]
    if live or any(f.file_type == FileType.NEW for f in own):
        findings.warning(
            "drop-half-done",
            _name(table),
            f"the catalog calls it dropped, but its segments {'live' if live else 'still to be flushed'}: the server died in "
            "the middle of the drop, or the mark is a damage. It counts as dropped; --salvage dropped exports its rows",
            sum(f.known_rows or 0 for f in live) if live else None,
        )


def _without_owner(table: TableRow, tables: dict[str, TableRow], findings: Findings) -> None:
    """A crash in the middle of a drop leaves such partitions for good (§3.4), but not with nearly the name of a collection."""
    owner = one_byte_off(table.owner_table, [t.table_id for t in tables.values() if not t.owner_table and not t.is_dropped])
    if owner is not None:
        findings.warning(
            "catalog-value",
            _name(table),
            f"there is no collection {printable(table.owner_table)!r}, but {printable(owner)!r}, which differs in one byte: "
            "this is probably its partition, and the catalog is damaged. It counts as dropped; --salvage dropped exports it",
        )


def _name(table: TableRow) -> str:
    return f"{table.owner_table}/{printable(table.partition_tag)}" if table.owner_table else table.table_id
