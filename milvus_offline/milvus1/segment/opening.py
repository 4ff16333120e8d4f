"""Opening a segment folder: what files it has, what of them can be read, what is wrong with them (FORMAT §4.7, §11).

Every row that is readable is offered. Of two files that disagree the shorter one counts; a header that contradicts the other
file gives way to the file's size; vectors that `.rv` has lost come out of an index file where one holds them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import fileio
from ...errors import DamageError
from ...findings import Findings
from ...model import Schema, Severity
from ..layout import ATTRIBUTE_SUFFIX, DELETED_DOCS, ID, IDS_SUFFIX, OFFSET, RAW_SUFFIX
from .files import DeadRows, Payload, Segment, read_deleted, read_header


@dataclass(frozen=True)
class Folder:
    """The files of a segment folder by what they are, as a listing found them."""

    path: Path
    raw: tuple[str, ...]
    ids: tuple[str, ...]
    attributes: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def has_deleted_docs(self) -> bool:
        return DELETED_DOCS in self.others


def list_folder(path: Path) -> Folder | None:
    """Lists the files of a segment folder; None when there is none. Raises DamageError when it cannot be listed or is a file.

    Folders, pipes and links to nowhere in place of a file count as missing.
    """
    try:
        names = sorted(e.name for e in fileio.scan(path) if e.is_file())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DamageError(path, "expected the folder of a segment, found a file") from None
    except OSError as e:
        raise DamageError(path, f"cannot list the segment's folder: {e.strerror}") from e
    by_suffix: dict[str, list[str]] = {RAW_SUFFIX: [], IDS_SUFFIX: [], ATTRIBUTE_SUFFIX: []}
    others: list[str] = []
    for name in names:
        by_suffix.get(os.path.splitext(name)[1], others).append(name)
    raw, ids, attributes = (tuple(by_suffix[s]) for s in (RAW_SUFFIX, IDS_SUFFIX, ATTRIBUTE_SUFFIX))
    return Folder(path, raw, ids, attributes, tuple(others))


def open_segment(
    folder: Folder,
    segment_id: str,
    schema: Schema,
    *,
    state: str = "RAW",
    indexes: Sequence[Path] = (),
    file_size: int = 0,
) -> tuple[Segment | None, Findings]:
    """Opens a segment folder and measures what of it can be read.

    Returns the segment (None when no row of it is readable although there should be) and what is wrong with it. Every row
    that is readable is offered: of two files that disagree the shorter one counts. Vectors that `.rv` has lost are taken from
    one of the index files `indexes`, where these hold them. `file_size` counts vectors and ids in the catalog, 0 where
    it does not tell. Raises DamageError for a file without a header, and for vectors of another width than the schema's.
    """
    segment, notes = _open_files(folder, segment_id, schema, state, file_size)
    if indexes and folder.ids and len(folder.ids) == 1 and len(folder.raw) <= 1:
        ids = read_header(folder.path / folder.ids[0])
        wanted = ids.bytes // ID.itemsize
        if wanted > (segment.stored if segment else 0):
            return _restored(folder, segment_id, schema, state, indexes, segment, notes)
    return segment, notes


def _restored(
    folder: Folder,
    segment_id: str,
    schema: Schema,
    state: str,
    indexes: Sequence[Path],
    readable: Segment | None,
    notes: Findings,
) -> tuple[Segment | None, Findings]:
    from .restored import find_vectors, restore  # rarely needed, and all of the index files' formats behind it

    where = str(folder.path)
    ids = read_header(folder.path / folder.ids[0])
    stored = ids.bytes // ID.itemsize
    found, reasons = find_vectors(indexes, schema, stored)
    before = readable.stored if readable else 0
    if found is not None and found.rows > before:
        deleted_path = str(folder.path / DELETED_DOCS) if folder.has_deleted_docs else None
        bare = Segment(
            id=segment_id,
            state=state,
            schema=schema,
            raw_path="",
            ids_path=ids.path,
            deleted_path=deleted_path,
            stored=stored,
            deleted=0,
            bytes=stored * (schema.row_bytes + ID.itemsize),
        )
        try:
            segment = restore(bare, found, before, folder.path / folder.raw[0] if folder.raw else None)
        except DamageError as e:
            reasons.append(str(e))
        else:
            kept = Findings(n for n in notes if n.code not in ("segment-incomplete", "file-short", "rows-lost"))
            kept.warning(
                "vectors-restored",
                where,
                f"the .rv file is missing or short; the vectors are restored from the {found.kind} index {found.path}",
                segment.rows,
            )
            if segment.lost_live:
                message = "the index file is cut or lacks these rows; they have lost their vectors"
                kept.error("rows-lost", where, message, segment.lost_live)
            return segment, kept
    for reason in reasons:
        notes.info("index-unusable", where, f"no vectors out of it: {reason}")
    return readable, notes


def _open_files(folder: Folder, segment_id: str, schema: Schema, state: str, file_size: int) -> tuple[Segment | None, Findings]:
    notes = Findings()
    where = str(folder.path)

    def note(severity: Severity, code: str, message: str, rows: int | None = None) -> None:
        notes.add(severity, code, where, message, rows)

    for kind, names in ((RAW_SUFFIX, folder.raw), (IDS_SUFFIX, folder.ids)):
        if len(names) > 1:
            note(
                Severity.ERROR,
                "segment-ambiguous",
                f"expected one {kind} file, found {len(names)}: {', '.join(map(fileio.printable, names))}; "
                "no server writes this, so none of them is taken. Move the wrong ones away in a copy of the store",
            )
            return None, notes
    if not folder.raw or not folder.ids:
        missing = " and ".join(k for k, n in ((RAW_SUFFIX, folder.raw), (IDS_SUFFIX, folder.ids)) if not n)
        rows = None
        if folder.raw or folder.ids:
            present = read_header(folder.path / (folder.raw or folder.ids)[0])
            rows = present.bytes // (schema.row_bytes if folder.raw else ID.itemsize)
        note(Severity.ERROR, "segment-incomplete", f"the {missing} file is missing, its rows cannot be put together", rows)
        return None, notes

    raw = read_header(folder.path / folder.raw[0])
    ids = read_header(folder.path / folder.ids[0])
    if file_size == raw.declared + ids.declared == raw.present + ids.present:
        _require_width(folder.path, raw.declared, ids.declared // ID.itemsize, schema)
    in_raw, in_ids = _agreed_rows(raw, ids, schema.row_bytes, note)
    stored = min(in_raw, in_ids)

    attribute_paths = []
    dtypes = {a.name: a.dtype for a in schema.attributes}
    for name in folder.attributes:
        field = name.removesuffix(ATTRIBUTE_SUFFIX)
        if field not in dtypes:
            note(Severity.INFO, "attribute-unknown", f"{name} belongs to no field in the catalog and is not exported")
            continue
        held = read_header(folder.path / name).bytes // np.dtype(dtypes[field]).itemsize
        if held < stored:
            note(
                Severity.ERROR,
                "attribute-short",
                f"{name} holds {held} values, expected {stored}; its values are 0 here",
                stored,
            )
        else:
            attribute_paths.append((field, dtypes[field], str(folder.path / name)))

    if absent := sorted(set(dtypes) - {f.removesuffix(ATTRIBUTE_SUFFIX) for f in folder.attributes}):
        note(
            Severity.ERROR,
            "attribute-missing",
            f"the fields {', '.join(absent)} have no file here; their values are 0",
            stored,
        )

    deleted_path = None
    if folder.has_deleted_docs:
        deleted_path = str(folder.path / DELETED_DOCS)
    elif stored:
        note(
            Severity.WARNING,
            "deleted-docs-missing",
            "deleted_docs is missing: all rows are taken as live; deleted ones may come back",
        )
    segment = Segment(
        id=segment_id,
        state=state,
        schema=schema,
        raw_path=raw.path,
        ids_path=ids.path,
        deleted_path=deleted_path,
        stored=stored,
        deleted=0,
        bytes=stored * (schema.row_bytes + ID.itemsize),
        attribute_paths=tuple(attribute_paths),
    )
    return _count_deleted(segment, note), notes


def _require_width(path: Path, raw_bytes: int, rows: int, schema: Schema) -> None:
    """Files that are as large as the catalog says have lost nothing: vectors of another width are those of other rows."""
    if rows and raw_bytes % rows == 0 and raw_bytes // rows != schema.row_bytes:
        raise DamageError(
            path,
            f"expected vectors of {schema.row_bytes} bytes, found {rows} ids and {raw_bytes // rows} bytes for each: these are "
            "rows of an earlier collection of this name, or the catalog's dimension is wrong",
        )


def _agreed_rows(raw: Payload, ids: Payload, row_bytes: int, note: Any) -> tuple[int, int]:
    """Rows that `.rv` and `.uid` hold. Where a header contradicts the other file but the size does not, the size counts."""
    units = {raw.path: row_bytes, ids.path: ID.itemsize}
    rows = {}
    for this, other in ((raw, ids), (ids, raw)):
        unit, other_unit = units[this.path], units[other.path]
        by_size = this.present // unit
        exact = this.declared % unit == 0 and not this.is_short
        other_rows = {other.bytes // other_unit, other.present // other_unit}
        if this.declared == this.present or (exact and this.declared // unit in other_rows):
            rows[this.path] = this.bytes // unit
        elif this.present % unit == 0 and by_size in other_rows and this.present > 0:
            rows[this.path] = by_size
            note(
                Severity.WARNING,
                "header-wrong",
                f"{Path(this.path).name} at byte 0: the header says {this.declared} bytes, the file holds {this.present}, "
                f"which fits the other file ({by_size} rows); the file's size is taken",
            )
        else:
            rows[this.path] = this.bytes // unit
            if this.is_short:
                note(
                    Severity.ERROR,
                    "file-short",
                    f"{Path(this.path).name} at byte 0: the header says {this.declared} bytes, the file holds {this.present}; "
                    f"its first {rows[this.path]} rows can be read",
                )
    in_raw, in_ids = rows[raw.path], rows[ids.path]
    if in_raw != in_ids:
        low, high = sorted((in_raw, in_ids))
        lost = "their ids" if in_ids == low else "their vectors"
        note(
            Severity.ERROR,
            "rows-lost",
            f"{Path(raw.path).name} holds {in_raw} rows, {Path(ids.path).name} {in_ids}: "
            f"the rows from offset {low} to {high - 1} have lost {lost}",
            high - low,
        )
    elif raw.bytes % row_bytes and not raw.is_short:
        note(
            Severity.WARNING,
            "payload-uneven",
            f"{Path(raw.path).name}: {raw.bytes} bytes are not a multiple of the row's {row_bytes}; the rest is ignored",
        )
    return in_raw, in_ids


def _count_deleted(segment: Segment, note: Any) -> Segment:
    if segment.deleted_path is None:
        return segment
    try:
        payload = read_header(segment.deleted_path)
        if payload.is_short:
            note(
                Severity.WARNING,
                "deleted-docs-short",
                f"deleted_docs at byte 0: the header says {payload.declared} bytes, the file holds {payload.present}; "
                "deleted rows may come back",
            )
        elif payload.bytes % OFFSET.itemsize:
            note(
                Severity.WARNING,
                "deleted-docs-short",
                f"deleted_docs at byte 0: the header says {payload.declared} bytes, expected a multiple of {OFFSET.itemsize}; "
                "deleted rows may come back",
            )
        if not payload.bytes:
            return segment
        dead = DeadRows(segment.stored)
        outside = sum(dead.add(chunk) for chunk in read_deleted(segment.deleted_path))
    except DamageError as e:
        note(Severity.WARNING, "deleted-docs-unreadable", f"{e}: all rows are taken as live")
        return replace(segment, deleted_path=None)
    if outside:
        note(
            Severity.WARNING,
            "deleted-docs-outside",
            f"deleted_docs names {outside} offsets outside 0..{segment.stored - 1}; they are ignored",
        )
    return replace(segment, deleted=len(dead))
