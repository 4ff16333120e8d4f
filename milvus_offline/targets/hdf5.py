"""Export to HDF5: one file per partition with `embeddings` and `ids`, MilvusDM's layout, and a manifest.

The fast way reserves the file and lets every task write its rows at their places: the speed of `cp`, in any order and from
several threads. Compressed files are written whole, one after the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import fileio
from ..errors import TargetError, UsageError
from ..findings import Findings
from ..guard import explained, free_space, keep_out
from ..ledger import Ledger
from ..manifest import LEDGER, MANIFEST, Checksums, OutFile, build_manifest, checksum_of_parts, columns_of, octets
from ..milvus1.extents import Extent, extents_of, whole_segment
from ..milvus1.segment.files import Segment
from ..model import Finding, Piece, Schema, Source
from ..names import file_name, file_names
from ..sharing import Reflink, can_share
from ..transfer import Advance, Result, Task
from ..watch import Watch, watching
from .folder import SALVAGE, begin_export, end_export
from .hdf5file import (
    CHUNK_BYTES,
    COMPRESSIONS,
    MAX_EXTENTS,
    Place,
    clone_columns,
    close_gaps,
    create_compressed,
    filters,
    is_reserved,
    places_of,
    reserve,
    shorten,
    structure_of,
    write_frame,
    write_link,
)
from .slices import Slice, cut

_SHARING = "sharing"
TASK_BYTES = 128 << 20
"""Vectors per task: what is lost at most when a run is killed, and the grain of parallel work."""


class WriteFrame(NamedTuple):
    """Makes a reserved file an HDF5 file, before, while or after its rows are written."""

    id: str
    path: str
    file: OutFile
    durable: bool = True
    rows: int = 0
    bytes: int = 0

    def run(self, advance: Advance) -> Result:
        with explained("write", self.path, resumable=self.durable):
            return {"parts": [], **write_frame(Path(self.path), self.file)}


class WriteRows(NamedTuple):
    """Copies some slices to their places in a reserved file."""

    id: str
    path: str
    rows: int
    bytes: int
    first: int
    slices: tuple[Slice, ...]
    schema: Schema
    places: tuple[Place, ...]
    durable: bool = True
    there: bool = False
    """Whether the rows are there already, as clones: they are only read, unless some of them cannot be."""

    def run(self, advance: Advance) -> Result:
        with explained("write", self.path, resumable=self.durable), watching() as seen:
            fd = os.open(self.path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
            try:
                copy = _Copy(self, fd, advance)
                for piece in self.slices:
                    copy.add(piece)
                part = copy.end()
            finally:
                os.close(fd)
        return {"parts": [part], **seen.result()}


class _Copy:
    """Copies the rows of one task."""

    def __init__(self, task: WriteRows, fd: int, advance: Advance) -> None:
        self._task, self._fd, self._advance = task, fd, advance
        self._attributes = task.schema.attributes
        self._sums = Checksums(self._attributes)
        self._ends = [place.offset + task.first * place.row_bytes for place in task.places]
        """Where the next bytes of each column go."""
        self._begun = self._ends[0]
        self._lost = 0
        self._writers: list[_Writer] = []
        if not task.there:
            self._begin_writing()

    def _begin_writing(self) -> None:
        self._writers = [_Writer(self._fd, end) for end in self._ends]

    def add(self, piece: Slice) -> None:
        """All rows of a slice."""
        if isinstance(piece.piece, Segment) and piece.piece.has_columns:
            for column, data, lost in piece.piece.columns(piece.start, piece.rows):
                self._put(column, data, lost)
            return
        for batch in piece.batches():
            for column, values in enumerate(columns_of(batch, self._attributes)):
                self._put(column, octets(values), len(batch.lost))

    def _put(self, column: int, data: memoryview, lost: int) -> None:
        """Bytes of one column, of which so many rows are left out."""
        if lost and not self._writers:  # the later ones move up
            self._begin_writing()
        if self._writers:
            self._writers[column].add(data)
        self._sums.update(column, data)
        self._ends[column] += len(data)
        if column == 0:
            self._lost += lost
            self._hand_over()
            row_bytes = self._task.places[0].row_bytes
            self._advance(len(data) // row_bytes, len(data) // row_bytes * (row_bytes + 8))

    def _hand_over(self) -> None:
        if self._ends[0] - self._begun >= fileio.WRITEBACK_BYTES:
            if self._task.durable and self._writers:
                fileio.begin_writeback(self._fd, self._begun, self._ends[0] - self._begun)
            self._begun = self._ends[0]

    def end(self) -> dict[str, Any]:
        """Writes what is gathered; what the manifest says of the rows."""
        place = self._task.places[0]
        rows = (self._ends[0] - place.offset) // place.row_bytes - self._task.first
        _require_rows(self._task.path, rows + self._lost, self._task.rows)
        for writer in self._writers:
            writer.flush()
        return {"rows": rows, **self._sums.result()}


class _Writer:
    """Writes what it is given from byte `at` on. Small pieces are gathered: a file has one lock, for which all writers wait."""

    _WORTH = 1 << 17

    def __init__(self, fd: int, at: int) -> None:
        self._fd, self._at = fd, at
        self._gathered = bytearray()

    def add(self, data: memoryview) -> None:
        if self._gathered or len(data) < self._WORTH:
            self._gathered += data
            if len(self._gathered) >= self._WORTH:
                self.flush()
        else:
            self._write(data)

    def flush(self) -> None:
        self._write(memoryview(self._gathered))
        self._gathered = bytearray()

    def _write(self, data: memoryview) -> None:
        fileio.write_at(self._fd, data, self._at)
        self._at += len(data)


class WriteCompressed(NamedTuple):
    """Writes one whole compressed file."""

    id: str
    path: str
    rows: int
    bytes: int
    file: OutFile
    groups: tuple[tuple[Slice, ...], ...]
    compression: str
    durable: bool = True

    def run(self, advance: Advance) -> Result:
        parts, row, lost = [], 0, 0
        schema = self.file.schema
        with (
            explained("write", self.path, resumable=self.durable),
            watching() as seen,
            create_compressed(self.path, self.file, self.compression) as (made, check),
        ):
            for group in self.groups:
                sums, before = Checksums(schema.attributes), row
                for piece in group:
                    for batch in piece.batches(max(CHUNK_BYTES, schema.row_bytes)):
                        n = len(batch.ids)
                        columns = columns_of(batch, schema.attributes)
                        for dataset, values in zip(made, columns, strict=True):
                            dataset[row : row + n] = values
                        check()
                        sums.add(columns)
                        row += n
                        lost += len(batch.lost)
                        advance(n, batch.vectors.nbytes + batch.ids.nbytes)
                parts.append({"rows": row - before, **sums.result()})
            _require_rows(self.path, row + lost, self.rows)
            if lost:
                shorten(made, row)
        with explained("write", self.path, resumable=self.durable):
            told = structure_of(self.path, chunks=True)
        return {"parts": parts, "sizes": [os.path.getsize(self.path)], **told, **seen.result()}


def _require_rows(path: str, written: int, expected: int) -> None:
    if written != expected:
        raise TargetError(
            f"{path}: the source gave {written} rows, {expected} were announced; the source may have changed meanwhile"
        )


@dataclass(frozen=True)
class Options:
    """Options of `export --format hdf5`."""

    compression: Literal["none", "lz4", "zstd", "gzip"] = "none"
    link: bool = False
    overwrite: bool = False
    sync: bool = True
    reflink: Reflink = "auto"

    def open(self, address: str) -> Hdf5Export:
        if self.reflink == "always" and (self.link or self.compression != "none"):
            other = "--link" if self.link else f"--compression {self.compression}"
            raise UsageError(f"--reflink always and {other} contradict each other: leave one of them out")
        made = Hdf5Export(address, compression=self.compression, overwrite=self.overwrite, link=self.link, sync=self.sync)
        made.reflink = self.reflink
        return made


Layout = Callable[[Source], Iterator[tuple[OutFile, Sequence[Piece]]]]
"""The files to be written and the pieces whose rows go there."""


class Hdf5Export:
    """The target of `export --format hdf5`. `out` is the export's folder, `layout` says which files it gets."""

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        compression: str = "none",
        overwrite: bool = False,
        link: bool = False,
        sync: bool = True,
        layout: Layout | None = None,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise UsageError(f"compression {compression!r} is unknown; there are: {', '.join(COMPRESSIONS)}")
        if link and compression != "none":
            raise UsageError("--link copies nothing, so there is nothing to compress: leave one of the two options out")
        self.out = Path(os.path.abspath(out))
        self.compression = compression
        self.overwrite = overwrite
        self.link = link
        self.sync = sync
        self._layout = layout or plain_layout
        self.processes = compression != "none"
        self.ledger: Ledger | None = None
        self.manifest: dict[str, Any] = {}
        self._source: Source
        self._files: list[tuple[OutFile, list[list[Slice]]]] = []
        self._linked: set[str] = set()
        self.reflink: Reflink = "auto"
        """Whether a file with the rows of one whole segment shares its blocks, where the volume can."""

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        if self.compression in ("lz4", "zstd"):
            filters(self.compression)  # refuse before anything is created
        self._source = source
        self._files = [(f, cut(pieces, f.schema.row_bytes, TASK_BYTES)) for f, pieces in self._layout(source)]
        key = {
            "source": source.fingerprint(),
            "files": [[f.path, f.rows] for f, _ in self._files],
            "compression": self.compression,
            "link": self.link,
            "task_bytes": TASK_BYTES,
        }
        if self.reflink == "always" and not resume:  # refuse before anything is created, or an earlier export goes
            keep_out(self.out, source.describe())
            self._can_share(free_space(self.out)[0])
        self.ledger = begin_export(self.out, source, key, overwrite=self.overwrite, resume=resume, durable=self.sync)
        with explained("create", self.out, resumable=self.sync):
            self._decide_sharing()
            return [task for file, groups in self._files for task in self._tasks(file, groups)]

    def _decide_sharing(self) -> None:
        """Once for a run and those that go on with it."""
        assert self.ledger is not None
        if self.compression != "none" or self.link:
            return
        if _SHARING not in self.ledger.done:
            self.ledger.add({_SHARING: {"share": self._can_share(self.out)}})
        if self.ledger.done[_SHARING]["share"]:
            self._files = [(f._replace(aligned=_whole(groups) is not None), groups) for f, groups in self._files]

    def _can_share(self, folder: Path) -> bool:
        paths = [s.raw_path for _, groups in self._files if (s := _whole(groups)) is not None]
        return (bool(paths) or self.reflink == "always") and can_share(paths, folder, self.reflink)

    def _tasks(self, file: OutFile, groups: list[list[Slice]]) -> Iterator[Task]:
        """Creates the file as far as needed and gives the tasks that fill it."""
        final = self.out / file.path
        part = final.with_name(final.name + ".part")
        final.parent.mkdir(parents=True, exist_ok=True)
        row_bytes = file.schema.row_bytes + 8
        assert self.ledger is not None
        done = self.ledger.done
        if self.link and file.rows and (extents := _extents(groups)) is not None:
            write_link(part, file, extents)
            self._linked.add(file.path)
            return
        ids = self._task_ids(file, groups)
        if self.compression != "none":
            known = done.get(file.path, {}).get("sizes")
            if known is None or known not in (fileio.sizes([part]), fileio.sizes([final])):
                done.pop(file.path, None)
            yield WriteCompressed(
                file.path,
                str(part),
                file.rows,
                file.rows * row_bytes,
                file,
                tuple(map(tuple, groups)),
                self.compression,
                self.sync,
            )
            return
        if final.exists() and all(i in done for i in ids):
            part = final
        elif not any(i in done for i in ids) or not is_reserved(part, file):
            for i in ids:
                done.pop(i, None)
            reserve(part, file)
            segment = _whole(groups) if file.aligned else None
            if segment is not None and not clone_columns(part, file, segment):
                raise TargetError(f"{part}: cannot share blocks with {segment.raw_path}: run it again with --reflink never")
        yield WriteFrame(ids[0], str(part), file, self.sync)
        places = tuple(places_of(file)[:-1])
        first = 0
        for task_id, group in zip(ids[1:], groups, strict=True):
            rows = sum(s.rows for s in group)
            yield WriteRows(
                task_id, str(part), rows, rows * row_bytes, first, tuple(group), file.schema, places, self.sync, file.aligned
            )
            first += rows

    def _task_ids(self, file: OutFile, groups: Sequence[object]) -> list[str]:
        if self.compression != "none":
            return [file.path]
        return [f"{file.path}:frame", *(f"{file.path}:{n}" for n in range(len(groups)))]

    def settle(self, tasks: Sequence[Task]) -> None:
        """Syncs the files of these tasks, each once."""
        if not self.sync:
            return
        with explained("write", self.out):
            fileio.sync_files(dict.fromkeys(t.path for t in tasks if isinstance(t, (WriteFrame, WriteRows, WriteCompressed))))

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Renames the files and writes the manifest last."""
        entries: dict[str, dict[str, Any]] = {}
        notes = Findings()
        with explained("finish", self.out, resumable=self.sync):
            folders = set()
            if self.sync:  # the others are settled
                fileio.sync_files(self.out / f"{path}.part" for path in sorted(self._linked))
            for file, groups in self._files:
                final = self.out / file.path
                part = final.with_name(final.name + ".part")
                linked = file.path in self._linked
                told = structure_of(part, chunks=False) if linked else self._close_gaps(part, file, groups, results)
                if part.exists():
                    part.replace(final)
                folders |= {final.parent, final.parent.parent}
                parts = [] if linked else [p for i in self._task_ids(file, groups) for p in results[i]["parts"]]
                rows = file.rows if linked else sum(p["rows"] for p in parts)
                entries[file.path] = {
                    "path": file.path,
                    "rows": rows,
                    "bytes": final.stat().st_size,
                    "checksum": None if linked else checksum_of_parts(parts),
                    "parts": parts,
                    **{key: told[key] for key in ("datasets", "structure") if key in told},
                }
                if linked:
                    entries[file.path]["linked"] = True
                elif self.link and file.rows:
                    notes.info(
                        "link-copied",
                        file.path,
                        "copied, not linked: rows of this partition lie nowhere as they are (attributes, restored vectors, a "
                        f"bucket), or in more than {MAX_EXTENTS:,} places, with deleted rows between them",
                        file.rows,
                    )
            for folder in sorted(folders) if self.sync else ():
                fileio.sync_folder(folder)
            notes += Watch.of(results.values()).findings()
            self.manifest = build_manifest(self._source, entries, [f for f, _ in self._files], notes)
            assert self.ledger is not None
            end_export(self.out, self.ledger, self.manifest)
        return notes

    def _close_gaps(
        self, part: Path, file: OutFile, groups: Sequence[Sequence[Slice]], results: Mapping[str, Result]
    ) -> Mapping[str, Any]:
        """Where rows could not be read, those that came move together; what is known of the file's structure."""
        first, *ids = self._task_ids(file, groups)
        announced = [sum(s.rows for s in group) for group in groups]
        came = [sum(p["rows"] for p in results[i]["parts"]) for i in ids]
        if self.compression != "none" or came == announced:
            return results[first]
        if not part.exists():  # an earlier run has shortened it
            return {}
        firsts = [sum(announced[:n]) for n in range(len(groups))]
        return close_gaps(part, file, list(zip(firsts, came, strict=True)))


def _whole(groups: list[list[Slice]]) -> Segment | None:
    """The segment that a file's rows are, whole and as they lie on the disk."""
    pieces = {id(s.piece): s.piece for g in groups for s in g}
    return whole_segment(next(iter(pieces.values()))) if len(pieces) == 1 else None


def shared_bytes(source: Source, folder: Path) -> int:
    """Bytes of an export of `source` that would be clones, where files in `folder` can share blocks with the store's."""
    single = (p.pieces[0] for c in source.collections for p in c.partitions if len(p.pieces) == 1)
    whole = [s for piece in single if (s := whole_segment(piece)) is not None]
    with contextlib.suppress(OSError):
        return sum(s.bytes for s in whole) if whole and can_share([s.raw_path for s in whole], folder, "auto") else 0
    return 0


def _extents(groups: list[list[Slice]]) -> list[Extent] | None:
    """Where the rows of a partition lie in the store's files; None when they cannot be pointed to."""
    pieces = {id(s.piece): s.piece for g in groups for s in g}
    return extents_of(pieces.values(), MAX_EXTENTS)


def plain_layout(source: Source) -> Iterator[tuple[OutFile, Sequence[Piece]]]:
    """`<collection>/<partition>.h5`, and salvaged rows below `salvage/`."""
    folders = file_names((c.schema.name for c in source.collections), reserved=(MANIFEST, SALVAGE, LEDGER))
    for collection in source.collections:
        names = file_names(p.name for p in collection.partitions)
        for partition in collection.partitions:
            path = f"{folders[collection.schema.name]}/{names[partition.name]}.h5"
            yield OutFile(path, collection.schema, partition.name, partition.rows), partition.pieces
    folders = file_names(sorted({s.schema.name for s in source.salvage}))
    taken: set[str] = set()
    for salvaged in source.salvage:
        base = f"{SALVAGE}/{salvaged.kind}/{folders[salvaged.schema.name]}/{file_name(salvaged.partition)}"
        number = 1
        path = f"{base}.h5"
        while path.casefold() in taken:
            number += 1
            path = f"{base}~{number}.h5"
        taken.add(path.casefold())
        yield OutFile(path, salvaged.schema, salvaged.partition, salvaged.rows, salvaged.kind), salvaged.pieces
