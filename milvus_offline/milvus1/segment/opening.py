"""Opening a segment folder: what files it has, what of them can be read, what is wrong with them (FORMAT §4.7, §11).

Every row that is readable is offered. Of two files that disagree the shorter one counts; a header that contradicts the other
file gives way to the file's size; vectors that `.rv` has lost come out of an index file where one holds them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ... import fileio
from ...errors import DamageError
from ...findings import Findings
from ...model import Schema, Severity
from ...names import printable
from ..layout import ATTRIBUTE_SUFFIX, BLOOM_FILTER, DELETED_DOCS, ID, IDS_SUFFIX, RAW_SUFFIX
from .deletes import NO_WITNESS, Note, Witness, count_deleted
from .files import Payload, Segment, read_header


class Folder(NamedTuple):
    """The files of a segment folder by what they are, as a listing found them."""

    path: Path
    raw: tuple[str, ...]
    ids: tuple[str, ...]
    attributes: tuple[str, ...]
    others: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    """Files that no server wrote: what copiers, synchronisers and file managers leave."""

    def file(self, name: str) -> str:
        """The path of one of them, as text: there may be hundreds of thousands."""
        return f"{self.path}{os.sep}{name}"

    @property
    def has_deleted_docs(self) -> bool:
        return DELETED_DOCS in self.others


def list_folder(path: Path) -> Folder | None:
    """Lists the files of a segment folder; None when there is none. Raises DamageError when it cannot be listed or is a file.

    Folders, pipes and links to nowhere in place of a file count as missing; what cannot be asked is said when it is opened.
    """
    try:
        names = sorted(e.name for e in fileio.scan(path) if _may_be_file(e))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DamageError(path, "expected the folder of a segment, found a file") from None
    except OSError as e:
        raise DamageError(path, f"cannot list the segment's folder: {e.strerror}") from e
    foreign = tuple(name for name in names if _is_foreign(name, path.name, names))
    names = [name for name in names if name not in foreign]
    by_suffix: dict[str, list[str]] = {RAW_SUFFIX: [], IDS_SUFFIX: [], ATTRIBUTE_SUFFIX: []}
    others: list[str] = []
    for name in names:
        by_suffix.get(name[name.rfind(".") :] if "." in name else "", others).append(name)
    raw, ids, attributes = (tuple(by_suffix[s]) for s in (RAW_SUFFIX, IDS_SUFFIX, ATTRIBUTE_SUFFIX))
    return Folder(path, raw, ids, attributes, tuple(others), foreign)


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return True


_OTHERS = re.compile(f"{DELETED_DOCS}|{BLOOM_FILTER}|temp_del|temp_bloom|[0-9]+")
"""What a server puts beside `.rv`, `.uid` and `.ra`; index files have numbers for names (§1.2, §4.3, §4.4)."""


def _is_foreign(name: str, segment_id: str, names: Sequence[str]) -> bool:
    """Whether a file is not the server's: the one that counts is named like the segment (§1.2).

    `._NAME` (macOS), `NAME (1).rv`, `NAME.sync-conflict-….rv` beside NAME.rv; a lone one of these may be all that is left.
    """
    base, suffix = os.path.splitext(name)
    if name.startswith("._"):
        return True
    if suffix in (RAW_SUFFIX, IDS_SUFFIX):
        return base != segment_id and not base.isdecimal() and segment_id + suffix in names
    return suffix != ATTRIBUTE_SUFFIX and not _OTHERS.fullmatch(name)


def open_segment(  # many: all but the first three have a meaning when left out
    folder: Folder,
    segment_id: str,
    schema: Schema,
    *,
    state: str = "RAW",
    indexes: Sequence[Path] = (),
    file_size: int = 0,
    witness: Witness = NO_WITNESS,
) -> tuple[Segment | None, Findings]:
    """Opens a segment folder and measures what of it can be read.

    Returns the segment (None when no row of it is readable although there should be) and what is wrong with it. Every row
    that is readable is offered: of two files that disagree the shorter one counts. Vectors that `.rv` has lost are taken from
    one of the index files `indexes`, where these hold them. `file_size` counts vectors and ids in the catalog, 0 where
    it does not tell; `witness`: what else it knows. Raises DamageError for a file without a header, and for vectors of another
    width than the schema's.
    """
    notes = Findings()
    folder = _own_files(folder, segment_id, witness.hint, notes)
    segment = _open_files(folder, segment_id, schema, state, file_size, notes)
    if indexes and folder.ids and len(folder.ids) == 1 and len(folder.raw) <= 1:
        ids = read_header(folder.file(folder.ids[0]))
        wanted = ids.bytes // ID.itemsize
        if wanted > (segment.stored if segment else 0):
            restored = _restored(folder, segment_id, schema, state, indexes, segment, notes, witness)
            if restored is not None:
                return restored
    if segment is not None:
        whole = all(f.severity is Severity.INFO for f in notes)
        segment = count_deleted(segment, witness if whole else NO_WITNESS, _note_to(notes, folder))
    return segment, notes


def _note_to(notes: Findings, folder: Folder) -> Note:
    def note(severity: Severity, code: str, message: str, rows: int | None = None) -> None:
        notes.add(severity, code, str(folder.path), message, rows)

    return note


def _own_files(folder: Folder, segment_id: str, rows: int | None, notes: Findings) -> Folder:
    """The folder without the files of another segment, the rows of which would come twice.

    A server writes `.rv` and `.uid` under the segment's own name (§1.2). Where no segment has the other name, somebody gave it.
    """
    where = str(folder.path)
    if folder.foreign:
        names = ", ".join(map(printable, folder.foreign))
        notes.info("foreign-file", where, f"{names}: no server wrote these; the files named after the segment are used")
    strange = {n: n.rsplit(".", 1)[0] for n in (*folder.raw, *folder.ids) if n.rsplit(".", 1)[0] != segment_id}
    theirs = {name: base for name, base in strange.items() if base.isdecimal() and _is_segment(folder.path, base)}
    if theirs:
        text = f"{', '.join(theirs)}: files of another segment, which has a folder of its own; the rows of this one are lost"
        notes.error("files-of-another-segment", where, text, rows)
    for name in (
        n for names in (folder.raw, folder.ids) if len(names) == 1 for n in names if n in strange.keys() - theirs.keys()
    ):
        text = f"{printable(name)}: expected a file named {segment_id}, and no segment here has that name; it is used"
        notes.warning("file-name-differs", where, text)
    return folder._replace(
        raw=tuple(n for n in folder.raw if n not in theirs),
        ids=tuple(n for n in folder.ids if n not in theirs),
    )


def _is_segment(folder: Path, name: str) -> bool:
    """Whether there is a folder of this name, in the same table or another one."""
    tables = [folder.parent, *(Path(e.path) for e in fileio.scan(folder.parent.parent))]
    return any((fileio.as_path(table) / name).is_dir() for table in tables)


def _restored(  # many: what open_segment was given, and what it found so far
    folder: Folder,
    segment_id: str,
    schema: Schema,
    state: str,
    indexes: Sequence[Path],
    readable: Segment | None,
    notes: Findings,
    witness: Witness,
) -> tuple[Segment, Findings] | None:
    from .restored import find_vectors, restore  # rarely needed, and it loads the formats of all index files

    where = str(folder.path)
    ids = read_header(folder.file(folder.ids[0]))
    stored = ids.bytes // ID.itemsize
    found, reasons = find_vectors(indexes, schema, stored)
    before = readable.stored if readable else 0
    if found is not None and found.rows > before:
        deleted_path = folder.file(DELETED_DOCS) if folder.has_deleted_docs else None
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
        kept = Findings(n for n in notes if n.code not in ("segment-incomplete", "file-short", "rows-lost"))
        bare = count_deleted(bare, witness, _note_to(kept, folder))
        try:
            segment = restore(bare, found, before, folder.path / folder.raw[0] if folder.raw else None)
        except DamageError as e:
            reasons.append(str(e))
        else:
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
        notes.info("index-unusable", where, f"cannot stand in for lost vectors: {reason}")
    return None


def _open_files(folder: Folder, segment_id: str, schema: Schema, state: str, file_size: int, notes: Findings) -> Segment | None:
    note = _note_to(notes, folder)
    for kind, names in ((RAW_SUFFIX, folder.raw), (IDS_SUFFIX, folder.ids)):
        if len(names) > 1:
            note(
                Severity.ERROR,
                "segment-ambiguous",
                f"expected one {kind} file, found {len(names)}: {', '.join(map(printable, names))}; "
                "no server writes this, so none of them is read. In a copy of the store, remove the wrong ones",
            )
            return None
    if not folder.raw or not folder.ids:
        missing = " and ".join(k for k, n in ((RAW_SUFFIX, folder.raw), (IDS_SUFFIX, folder.ids)) if not n)
        rows = None
        links = (fileio.missing_link(folder.path / f"{folder.path.name}{s}") for s in (RAW_SUFFIX, IDS_SUFFIX))
        why = next((f" ({link})" for link in links if link), "")
        if folder.raw or folder.ids:
            present = read_header(folder.path / (folder.raw or folder.ids)[0])
            rows = present.bytes // (schema.row_bytes if folder.raw else ID.itemsize)
        if not notes or folder.raw or folder.ids:
            note(
                Severity.ERROR,
                "segment-incomplete",
                f"the {missing} file is missing{why}, its rows cannot be put together",
                rows,
            )
        return None

    raw = read_header(folder.file(folder.raw[0]))
    ids = read_header(folder.file(folder.ids[0]))
    if file_size == raw.declared + ids.declared == raw.present + ids.present:
        _require_width(folder.path, raw.declared, ids.declared // ID.itemsize, schema)
    in_raw, in_ids = _agreed_rows(raw, ids, schema.row_bytes, note)
    stored = min(in_raw, in_ids)

    return Segment(
        id=segment_id,
        state=state,
        schema=schema,
        raw_path=raw.path,
        ids_path=ids.path,
        deleted_path=folder.file(DELETED_DOCS) if folder.has_deleted_docs else None,
        stored=stored,
        deleted=0,
        bytes=stored * (schema.row_bytes + ID.itemsize),
        attribute_paths=_attribute_paths(folder, schema, stored, note),
    )


def _attribute_paths(folder: Folder, schema: Schema, stored: int, note: Note) -> tuple[tuple[str, str, str], ...]:
    """Field, dtype and file of the scalar fields whose files hold a value for each of the `stored` rows."""
    attribute_paths = []
    dtypes = {a.name: a.dtype for a in schema.attributes}
    for name in folder.attributes:
        field = name.removesuffix(ATTRIBUTE_SUFFIX)
        if field not in dtypes:
            note(Severity.INFO, "attribute-unknown", f"{name} belongs to no field in the catalog and is not exported")
            continue
        held = read_header(folder.file(name)).bytes // np.dtype(dtypes[field]).itemsize
        if held < stored:
            note(
                Severity.ERROR,
                "attribute-short",
                f"{name} holds {held} values, expected {stored}; its values are 0 here",
                stored,
            )
        else:
            attribute_paths.append((field, dtypes[field], folder.file(name)))

    if absent := sorted(set(dtypes) - {f.removesuffix(ATTRIBUTE_SUFFIX) for f in folder.attributes}):
        note(
            Severity.ERROR,
            "attribute-missing",
            f"the fields {', '.join(absent)} have no file here; their values are 0",
            stored,
        )

    return tuple(attribute_paths)


def _require_width(path: Path, raw_bytes: int, rows: int, schema: Schema) -> None:
    """Files that are as large as the catalog says have lost nothing: vectors of another width are those of other rows."""
    if rows and raw_bytes % rows == 0 and raw_bytes // rows != schema.row_bytes:
        raise DamageError(
            path,
            f"expected vectors of {schema.row_bytes} bytes, found {rows} ids and {raw_bytes // rows} bytes for each: these are "
            "rows of an earlier collection of this name, or the catalog's dimension is wrong",
        )


def _note_longer(this: Payload, rows: int, note: Note) -> None:
    """`.rv` and `.uid` are written once, header and payload (§4.1, §4.2): nothing can stand after."""
    note(
        Severity.WARNING,
        "file-longer",
        f"{Path(this.path).name} at byte 0: the header says {this.declared} bytes, {this.present} follow. No server writes "
        "more than the header says: unless the extra bytes are at the end, all rows after them are wrong. Use an older copy if "
        "there is one",
        rows,
    )


def _agreed_rows(raw: Payload, ids: Payload, row_bytes: int, note: Note) -> tuple[int, int]:
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
            if this.declared < this.present:
                _note_longer(this, rows[this.path], note)
        elif this.present % unit == 0 and by_size in other_rows and this.present > 0:
            rows[this.path] = by_size
            note(
                Severity.WARNING,
                "header-wrong",
                f"{Path(this.path).name} at byte 0: the header says {this.declared} bytes, the file holds {this.present}, "
                f"which fits the other file ({by_size} rows); the file's size is used",
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
            else:
                _note_longer(this, rows[this.path], note)
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
