"""Export to HDF5: one file per partition with `embeddings` and `ids`, MilvusDM's layout, and a manifest.

The fast way preallocates contiguous datasets, closes the file, and lets every task write its rows at the datasets' offsets:
the speed of `cp`, in any order and from several threads. Compressed files are written whole, one after the other.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, fileio
from ..errors import TargetError, UsageError
from ..ledger import Ledger
from ..model import BATCH_BYTES, Array, Batch, Finding, Piece, Schema, Severity, Source
from ..transfer import Advance, Result, Task

MANIFEST = "manifest.json"
LEDGER = ".milvus-offline-ledger.jsonl"
FORMAT = "milvus-offline-export"
SALVAGE = "salvage"
EMBEDDINGS = "embeddings"
IDS = "ids"
COMPRESSIONS = ("none", "lz4", "zstd", "gzip")

_TASK_BYTES = 128 << 20
"""Vectors per task: what is lost at most when a run is killed, and the grain of parallel work."""


@dataclass(frozen=True)
class Slice:
    """Rows start..start+rows-1 of a piece."""

    piece: Piece
    start: int
    rows: int

    def batches(self, max_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
        left = self.rows
        for batch in self.piece.batches(max_bytes, self.start):
            if len(batch.ids) > left:
                batch = Batch(batch.ids[:left], batch.vectors[:left], {n: a[:left] for n, a in batch.attributes.items()})
            yield batch
            left -= len(batch.ids)
            if not left:
                return


def cut(pieces: Sequence[Piece], row_bytes: int, limit: int = _TASK_BYTES) -> list[list[Slice]]:
    """Cuts pieces into groups of slices of about `limit` bytes: large pieces are divided, small ones put together."""
    per_task = max(1, limit // row_bytes)
    groups: list[list[Slice]] = []
    room = 0
    for piece in pieces:
        start = 0
        while start < piece.rows:
            if room <= 0:
                groups.append([])
                room = per_task
            rows = min(piece.rows - start, room)
            groups[-1].append(Slice(piece, start, rows))
            start += rows
            room -= rows
    return groups


@dataclass(frozen=True)
class OutFile:
    """One file to be written. `path` is relative to the export's folder."""

    path: str
    schema: Schema
    partition: str
    rows: int
    salvage: str | None = None


class Checksums:
    """xxh3-128 of a run of rows: vectors and ids each, in the order of the rows."""

    def __init__(self) -> None:
        import xxhash

        self._vectors, self._ids = xxhash.xxh3_128(), xxhash.xxh3_128()

    def add(self, batch: Batch) -> None:
        self._vectors.update(_octets(batch.vectors))
        self._ids.update(_octets(batch.ids))

    def result(self) -> dict[str, str]:
        return {EMBEDDINGS: self._vectors.hexdigest(), IDS: self._ids.hexdigest()}


def checksum_of_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    """A file's checksum: xxh3-128 over its parts' digests, in order."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(bytes.fromhex(part[EMBEDDINGS]) + bytes.fromhex(part[IDS]))
    return f"xxh3-128:{digest.hexdigest()}"


def _octets(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class WriteRows:
    """Copies some slices into a preallocated file."""

    id: str
    path: str
    rows: int
    bytes: int
    first: int
    slices: tuple[Slice, ...]
    row_bytes: int
    embeddings_at: int
    ids_at: int
    attributes_at: tuple[tuple[str, str, int], ...]
    """(field, numpy dtype, offset of the dataset)."""

    def run(self, advance: Advance) -> Result:
        sums = Checksums()
        row = begun = self.first
        per_write = max(1, fileio.WRITEBACK_BYTES // self.row_bytes)
        with fileio.explained("write", self.path):
            fd = os.open(self.path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
            try:
                for piece in self.slices:
                    for batch in piece.batches():
                        n = len(batch.ids)
                        fileio.write_at(fd, _octets(batch.vectors), self.embeddings_at + row * self.row_bytes)
                        fileio.write_at(fd, _octets(batch.ids), self.ids_at + row * 8)
                        for name, dtype, at in self.attributes_at:
                            values = batch.attributes.get(name)
                            if values is not None:
                                fileio.write_at(fd, _octets(values), at + row * np.dtype(dtype).itemsize)
                        sums.add(batch)
                        row += n
                        if row - begun >= per_write:
                            at = self.embeddings_at + begun * self.row_bytes
                            fileio.begin_writeback(fd, at, (row - begun) * self.row_bytes)
                            begun = row
                        advance(n, batch.vectors.nbytes + batch.ids.nbytes)
                _require_rows(self.path, row - self.first, self.rows)
                os.fsync(fd)
            finally:
                os.close(fd)
        return {"parts": [{"rows": self.rows, **sums.result()}]}


@dataclass(frozen=True)
class WriteCompressed:
    """Writes one whole compressed file."""

    id: str
    path: str
    rows: int
    bytes: int
    file: OutFile
    groups: tuple[tuple[Slice, ...], ...]
    compression: str

    def run(self, advance: Advance) -> Result:
        parts, row = [], 0
        with fileio.explained("write", self.path), create_file(self.path) as (h, check):
            datasets = _create_datasets(h, self.file, _filters(self.compression, self.file.schema.row_bytes))
            for group in self.groups:
                sums, before = Checksums(), row
                for piece in group:
                    for batch in piece.batches(_chunk_rows(self.file.schema.row_bytes) * self.file.schema.row_bytes):
                        n = len(batch.ids)
                        datasets[EMBEDDINGS][row : row + n] = batch.vectors
                        datasets[IDS][row : row + n] = batch.ids
                        for name, values in batch.attributes.items():
                            datasets[f"attribute {name}"][row : row + n] = values
                        check()
                        sums.add(batch)
                        row += n
                        advance(n, batch.vectors.nbytes + batch.ids.nbytes)
                parts.append({"rows": row - before, **sums.result()})
            _require_rows(self.path, row, self.rows)
        with fileio.explained("write", self.path):
            fileio.sync_file(self.path)
        return {"parts": parts}


def _require_rows(path: str, written: int, expected: int) -> None:
    if written != expected:
        raise TargetError(f"{path}: the source gave {written} rows, {expected} were announced; did it change meanwhile?")


def _chunk_rows(row_bytes: int) -> int:
    return max(1, (1 << 20) // row_bytes)


def _filters(compression: str, row_bytes: int) -> dict[str, Any]:
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    try:
        import hdf5plugin
    except ImportError:
        raise UsageError(
            f"--compression {compression} needs the package hdf5plugin: pip install 'milvus-offline[compress]'"
        ) from None
    return dict(hdf5plugin.Bitshuffle(cname="lz4") if compression == "lz4" else hdf5plugin.Bitshuffle(cname="zstd", clevel=1))


def _dataset_names(schema: Schema) -> dict[str, str]:
    """Attribute -> name of its dataset; what cannot be a name in HDF5 is percent-encoded."""
    return fileio.file_names((a.name for a in schema.attributes), reserved=(EMBEDDINGS, IDS))


def _create_datasets(h: Any, file: OutFile, filters: dict[str, Any] | None) -> dict[str, Any]:
    """Creates all datasets and attributes of a file; without filters they are contiguous, allocated and not filled."""
    import h5py

    schema = file.schema
    wanted = [(EMBEDDINGS, EMBEDDINGS, (file.rows, schema.width), schema.dtype), (IDS, IDS, (file.rows,), np.dtype("<i8"))]
    names = _dataset_names(schema)
    wanted += [(f"attribute {a.name}", names[a.name], (file.rows,), np.dtype(a.dtype)) for a in schema.attributes]
    datasets = {}
    for key, name, shape, dtype in wanted:
        if filters is None or not file.rows:
            space = h5py.h5s.create_simple(shape)
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.CONTIGUOUS)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # the same rows give the same bytes
            h5py.h5d.create(h.id, name.encode(), h5py.h5t.py_create(dtype), space, properties)
            datasets[key] = h[name]
        else:
            rows = min(file.rows, _chunk_rows(schema.row_bytes))
            datasets[key] = h.create_dataset(name, shape, dtype, chunks=(rows, *shape[1:]), **filters)
    describe(h, file)
    return datasets


def describe(h: Any, file: OutFile) -> None:
    """Writes what is known about the collection into the file's attributes."""
    schema = file.schema
    values = {
        "collection": fileio.printable(schema.name),
        "partition": fileio.printable(file.partition),
        "dimension": schema.dimension,
        "vector_type": schema.vector_type.value,
        "metric_type": schema.metric_type,
        "index_type": schema.index.type,
        "index_params": json.dumps(dict(schema.index.params)),
        "index_file_size": schema.index_file_size,
        "auto_id": schema.auto_id,
        "rows": file.rows,
        "salvage": file.salvage,
        "written_by": f"milvus_offline {__version__}",
    }
    for key, value in values.items():
        if value is not None:
            h.attrs[key] = value


class Hdf5Export:
    """The target of `export --format hdf5`. `out` is the export's folder."""

    def __init__(
        self, out: str | os.PathLike[str], *, compression: str = "none", overwrite: bool = False, link: bool = False
    ) -> None:
        if compression not in COMPRESSIONS:
            raise UsageError(f"compression {compression!r} is unknown; there are: {', '.join(COMPRESSIONS)}")
        if link and compression != "none":
            raise UsageError("--link copies nothing, so there is nothing to compress: leave one of the two options out")
        self.out = Path(os.path.abspath(out))
        self.compression = compression
        self.overwrite = overwrite
        self.link = link
        self.processes = compression != "none"
        self.ledger: Ledger | None = None
        self.manifest: dict[str, Any] = {}
        self._source: Source
        self._files: list[tuple[OutFile, list[list[Slice]]]] = []
        self._linked: set[str] = set()

    def prepare(self, source: Source, *, resume: bool) -> Sequence[Task]:
        if self.compression in ("lz4", "zstd"):
            _filters(self.compression, 4)  # refuse before anything is created
        self._source = source
        self._files = list(self._plan(source))
        key = {
            "source": source.fingerprint(),
            "files": [(f.path, f.rows) for f, _ in self._files],
            "compression": self.compression,
            "link": self.link,
            "task_bytes": _TASK_BYTES,
        }
        key = json.loads(json.dumps(key))
        claim_folder(self.out, source, overwrite=self.overwrite, resume=resume)
        with fileio.explained("create", self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            path = self.out / LEDGER
            self.ledger = Ledger.resume(path, key) if resume else Ledger.create(path, key)
            (self.out / MANIFEST).unlink(missing_ok=True)
            return [task for file, groups in self._files for task in self._tasks(file, groups)]

    def _plan(self, source: Source) -> Iterator[tuple[OutFile, list[list[Slice]]]]:
        folders = fileio.file_names((c.schema.name for c in source.collections), reserved=(MANIFEST, SALVAGE, LEDGER))
        for collection in source.collections:
            names = fileio.file_names(p.name for p in collection.partitions)
            for partition in collection.partitions:
                path = f"{folders[collection.schema.name]}/{names[partition.name]}.h5"
                file = OutFile(path, collection.schema, partition.name, partition.rows)
                yield file, cut(partition.pieces, collection.schema.row_bytes)
        salvaged = sorted({s.schema.name for s in source.salvage})
        folders = fileio.file_names(salvaged)
        taken: set[str] = set()
        for rescued in source.salvage:
            base = f"{SALVAGE}/{rescued.kind}/{folders[rescued.schema.name]}/{fileio.file_name(rescued.partition)}"
            number = 1
            path = f"{base}.h5"
            while path.casefold() in taken:
                number += 1
                path = f"{base}~{number}.h5"
            taken.add(path.casefold())
            file = OutFile(path, rescued.schema, rescued.partition, rescued.rows, rescued.kind)
            yield file, cut(rescued.pieces, rescued.schema.row_bytes)

    def _tasks(self, file: OutFile, groups: list[list[Slice]]) -> Iterator[Task]:
        """Creates the file as far as needed and gives the tasks that fill it."""
        final = self.out / file.path
        part = final.with_name(final.name + ".part")
        final.parent.mkdir(parents=True, exist_ok=True)
        nbytes = file.rows * (file.schema.row_bytes + 8)
        assert self.ledger is not None
        if self.link and file.rows and (sources := _linkable(groups)):
            self._linked.add(file.path)
            _write_link(part, file, sources)
            return
        if self.compression != "none":
            if not final.exists() and not part.exists():
                self.ledger.done.pop(file.path, None)
            yield WriteCompressed(
                file.path, str(part), file.rows, nbytes, file, tuple(tuple(g) for g in groups), self.compression
            )
            return
        ids = [f"{file.path}:{number}" for number in range(len(groups))]
        if final.exists() and all(i in self.ledger.done for i in ids):
            part = final
        offsets = _existing_offsets(part, file) if any(i in self.ledger.done for i in ids) else None
        if offsets is None:
            for i in ids:
                self.ledger.done.pop(i, None)
            offsets = _preallocate(part, file)
        first = 0
        for task_id, group in zip(ids, groups, strict=True):
            rows = sum(s.rows for s in group)
            yield WriteRows(
                id=task_id,
                path=str(part),
                rows=rows,
                bytes=rows * (file.schema.row_bytes + 8),
                first=first,
                slices=tuple(group),
                row_bytes=file.schema.row_bytes,
                embeddings_at=offsets[EMBEDDINGS],
                ids_at=offsets[IDS],
                attributes_at=tuple((a.name, a.dtype, offsets[f"attribute {a.name}"]) for a in file.schema.attributes),
            )
            first += rows

    def finish(self, results: Mapping[str, Result]) -> Sequence[Finding]:
        """Renames the files and writes the manifest last."""
        entries: dict[str, dict[str, Any]] = {}
        notes: list[Finding] = []
        with fileio.explained("finish", self.out):
            folders = set()
            for file, groups in self._files:
                final = self.out / file.path
                part = final.with_name(final.name + ".part")
                if part.exists():
                    fileio.publish(part, final, sync_parent=False)
                folders |= {final.parent, final.parent.parent}
                linked = file.path in self._linked
                ids = [file.path] if self.compression != "none" else [f"{file.path}:{n}" for n in range(len(groups))]
                parts = [] if linked else [p for i in ids for p in results[i]["parts"]]
                entries[file.path] = {
                    "path": file.path,
                    "rows": file.rows,
                    "bytes": final.stat().st_size,
                    "checksum": None if linked else checksum_of_parts(parts),
                    "parts": parts,
                }
                if linked:
                    entries[file.path]["linked"] = True
                elif self.link and file.rows:
                    notes.append(
                        Finding(
                            Severity.INFO,
                            "link-copied",
                            file.path,
                            "copied, not linked: rows of this partition are deleted, in the log, or in a damaged segment",
                            file.rows,
                        )
                    )
            for folder in sorted(folders):
                fileio.sync_folder(folder)
            self.manifest = build_manifest(self._source, entries, [f for f, _ in self._files], notes)
            fileio.write_text(self.out / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")
            assert self.ledger is not None
            self.ledger.close()
            (self.out / LEDGER).unlink()
        return notes


def build_manifest(
    source: Source, entries: Mapping[str, dict[str, Any]], files: Sequence[OutFile], notes: Sequence[Finding]
) -> dict[str, Any]:
    """The manifest of an export (its layout is a contract)."""
    by_place: dict[tuple[str | None, str, str], list[dict[str, Any]]] = {}
    for file in files:
        by_place.setdefault((file.salvage, file.schema.name, file.partition), []).append(entries[file.path])
    reasons = {(s.kind, s.schema.name, s.partition): s.reason for s in source.salvage}
    return {
        "format": FORMAT,
        "version": 1,
        "complete": True,
        "written_by": f"milvus_offline {__version__}",
        "source": source.describe(),
        "collections": [
            {
                **describe_schema(c.schema),
                "partitions": [
                    {"name": p.name, "rows": p.rows, "files": by_place[None, c.schema.name, p.name]} for p in c.partitions
                ],
            }
            for c in source.collections
        ],
        "salvage": [
            {
                "kind": kind,
                "collection": collection,
                "partition": partition,
                "reason": reasons[kind, collection, partition],
                "rows": sum(f["rows"] for f in found),
                "files": found,
            }
            for (kind, collection, partition), found in by_place.items()
            if kind is not None
        ],
        "findings": [f.to_json() for f in (*source.findings, *notes)],
    }


def describe_schema(schema: Schema) -> dict[str, Any]:
    """A schema as the manifest and `inspect --json` show it."""
    result: dict[str, Any] = {
        "name": schema.name,
        "dimension": schema.dimension,
        "vector_type": schema.vector_type.value,
        "metric_type": schema.metric_type,
        "index": {"type": schema.index.type, "params": dict(schema.index.params)},
        "index_file_size": schema.index_file_size,
        "auto_id": schema.auto_id,
    }
    if schema.attributes:
        names = _dataset_names(schema)
        result["attributes"] = [{"name": a.name, "dtype": a.dtype, "dataset": names[a.name]} for a in schema.attributes]
    return result


class _PatientFile(io.FileIO):
    """A file that keeps its first failure and drops what is written after it.

    HDF5 cannot live with a write that fails: closing the file then fails too, and the process crashes at its end.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:])
        except OSError as e:
            self.failure = e
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as e:
            self.failure = self.failure or e
            return size or 0

    def check(self) -> None:
        """Raises the first failure."""
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def create_file(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A new HDF5 file, and a function that raises OSError when something could not be written; it is called at the end too."""
    import h5py

    with _PatientFile(path, "w+") as f:
        with h5py.File(f, "w") as h:
            yield h, f.check
        f.check()


# Files ----------------------------------------------------------------------------------------------------------------------


def _preallocate(part: Path, file: OutFile) -> dict[str, int]:
    with create_file(part) as (h, _):
        datasets = _create_datasets(h, file, None)
        offsets = {key: d.id.get_offset() or 0 for key, d in datasets.items()}
    with part.open("r+b") as f:
        fileio.allocate(f, part.stat().st_size)
    return offsets


def _existing_offsets(part: Path, file: OutFile) -> dict[str, int] | None:
    """The datasets' offsets in a file of an earlier run; None when it is not there or not what is needed."""
    import h5py

    try:
        with h5py.File(part, "r") as h:
            names = {EMBEDDINGS: EMBEDDINGS, IDS: IDS}
            names |= {f"attribute {a}": n for a, n in _dataset_names(file.schema).items()}
            if h[EMBEDDINGS].shape != (file.rows, file.schema.width):
                return None
            return {key: h[name].id.get_offset() or 0 for key, name in names.items()}
    except (OSError, KeyError):
        return None


def _linkable(groups: list[list[Slice]]) -> list[Any] | None:
    """The segments of a partition when its files hold exactly its rows; None otherwise."""
    from ..milvus1.segment import Segment

    pieces = list(dict.fromkeys(id(s.piece) for g in groups for s in g))
    segments = {id(s.piece): s.piece for g in groups for s in g}
    chosen = [segments[i] for i in pieces]
    if any(type(s) is not Segment or s.deleted or s.schema.attributes for s in chosen):
        return None
    return chosen


def _write_link(part: Path, file: OutFile, segments: list[Any]) -> None:
    """A file whose datasets lie in the store's own files (HDF5 external storage): nothing is copied, they must stay."""
    with create_file(part) as (h, _):
        for name, shape, dtype, attribute, width in (
            (EMBEDDINGS, (file.rows, file.schema.width), file.schema.dtype, "raw_path", file.schema.row_bytes),
            (IDS, (file.rows,), np.dtype("<i8"), "ids_path", 8),
        ):
            external = [(os.path.abspath(getattr(s, attribute)), 8, s.stored * width) for s in segments]
            h.create_dataset(name, shape, dtype, external=external)
        describe(h, file)


def claim_folder(out: Path, source: Source, *, overwrite: bool, resume: bool) -> None:
    """Makes sure that `out` may be written: not inside the source, and empty or an export of ours that may be replaced.

    With `overwrite` an earlier export's own files are removed, nothing else. Raises UsageError.
    """
    about = source.describe()
    for place in (about.get("path"), about.get("wal"), *about.get("roots", ())):
        if place is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(place)):
            raise UsageError(f"{out}: lies inside the source {place}, which is never written to; choose another place")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder for the export, found a file")
    try:
        names = set(os.listdir(out)) if out.exists() else set()
    except PermissionError as e:
        raise TargetError(f"{out}: no permission to look into this folder") from e
    if not names:
        return
    manifest = _our_manifest(out)
    if manifest is None and LEDGER not in names:
        raise UsageError(f"{out}: the folder is not empty and holds no export of this tool; choose an empty or new one")
    if resume and LEDGER in names:
        return
    if overwrite:
        with fileio.explained("remove the earlier export in", out):
            _remove_export(out, manifest)
        return
    if manifest is not None and LEDGER not in names:
        raise UsageError(f"{out}: holds a complete export; choose another place, or replace it with --overwrite")
    raise UsageError(f"{out}: holds an unfinished export; go on with --resume, or begin anew with --overwrite")


def _our_manifest(out: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        return manifest if manifest.get("format") == FORMAT else None
    except (OSError, ValueError, AttributeError):
        return None


def _remove_export(out: Path, manifest: dict[str, Any] | None) -> None:
    paths: set[str] = set()
    if manifest is not None:
        parts = [p for c in manifest.get("collections", []) for p in c.get("partitions", [])] + manifest.get("salvage", [])
        paths |= {f["path"] for p in parts for f in p.get("files", [])}
    try:
        head = json.loads((out / LEDGER).read_text().split("\n", 1)[0])
        paths |= {path for path, _ in head["key"]["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    folders = set()
    for relative in sorted(paths):
        path = out / relative
        if Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(out)):
            for name in (path, path.with_name(path.name + ".part")):
                name.unlink(missing_ok=True)
            folders |= {p for p in path.parents if out in p.parents}
    for own in (MANIFEST, LEDGER):
        (out / own).unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
