"""Checking a store, or an export: its files against its manifest, and every row against the store it came from."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamageError, MilvusOfflineError, MissingPackageError
from .fileio import absolute, as_path, is_remote
from .findings import Findings
from .hashing import Hashes
from .machine import default_jobs
from .manifest import (
    EMBEDDINGS,
    IDS,
    MANIFEST,
    Checksums,
    OutFile,
    checksum_of_parts,
    columns_of,
    octets,
    read_manifest,
    schema_of,
)
from .milvus1.copies import hashes_of
from .milvus1.verify import Checked, Told, check_store, weigh
from .model import NOWHERE, Batch, Piece, Schema, Source, SourcePartition
from .names import printable
from .sources.export import file_pieces
from .sources.hdf5 import damage, open_file
from .sources.milvus1 import StoreSource
from .sources.written import require_disk, says_where, structure_differs
from .targets.folder import SALVAGE
from .targets.hdf5file import description
from .transfer import Advance, Progress, Result, Silent, Task, in_order
from .watch import watching


@dataclass
class ExportCheck:
    """What was compared; every difference is a finding of severity ERROR."""

    rows: int = 0
    files: int = 0
    findings: Findings = field(default_factory=Findings)
    lacking: Findings = field(default_factory=Findings)
    """What the source could not give while it was compared: no difference, as the export lacks it, too."""

    def differs(self, code: str, where: str, message: str, rows: int | None = None) -> None:
        self.findings.error(code, where, message, rows)


def check_export(
    out: Path, *, against: Source | None = None, progress: Progress | None = None, cluster: str | None = None
) -> ExportCheck:
    """Reads an export through: files, sizes, counts, descriptions and checksums; with `against` also every id and vector.

    With `cluster` (`dask://HOST:PORT`) its workers read the files; rows are compared here.
    Raises UsageError when `out` is no complete export of ours.
    """
    result = ExportCheck()
    progress = progress or Silent()
    out = out if cluster is None else absolute(out)
    try:
        manifest = read_manifest(out)
        collections = [_Exported(schema_of(c), _list(c["partitions"])) for c in _list(manifest["collections"])]
        parts = [_Part(c.schema.name, p["name"], c.schema, _files(p)) for c in collections for p in c.partitions]
        listed = _list(manifest["salvage"])
        salvaged = [_Part(f"{SALVAGE}/{s['kind']}/{s['collection']}", s["partition"], None, _files(s)) for s in listed]
        rows, nbytes = (sum(f[key] for p in (*parts, *salvaged) for f in p.files) for key in ("rows", "bytes"))
        selected = bool(manifest["source"].get("selection"))
    except (DamageError, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        result.differs("manifest-damaged", str(out / MANIFEST), f"is not what was written: {e}")
        return result
    progress.start(rows, nbytes * (2 if against else 1), 0, 0)
    try:
        tasks = [CheckFile(e["path"], str(out), p, e) for p in (*parts, *salvaged) for e in p.files]
        with closing(_checked(tasks, progress, cluster)) as checked:
            for task, found in checked:
                result.files += 1
                result.rows += found["rows"]
                result.findings += found["findings"]
                task.part.damaged |= found["damaged"]
        if against is not None:
            with watching() as met:
                _compare(out, collections, parts, against, selected, result, progress)
            result.lacking += met.findings()
    finally:
        progress.close()
    return result


def check_source(
    source: StoreSource, *, sample: float = 1.0, progress: Progress | None = None, cluster: str | None = None
) -> tuple[Checked, Findings]:
    """Reads a store through, see milvus1.verify.check_store; with `cluster` (`dask://HOST:PORT`) by its workers."""
    store, progress = source.store, progress or Silent()
    progress.start(*weigh(store, sample), 0, 0)
    try:
        if cluster is None:
            return check_store(
                store,
                sample=sample,
                advance=progress.advance,
                run=lambda tasks: in_order(tasks, jobs=_jobs(tasks, store.location.roots), progress=progress),
            )
        from .cluster import DaskCluster

        with DaskCluster(cluster, resumable=False) as workers:
            workers.probe(source)
            run = partial(workers.in_order, progress=progress)
            return check_store(store, sample=sample, advance=progress.advance, run=run)
    finally:
        progress.close()


_WORTH_BYTES = 4 << 20
"""From which several threads pay, if tasks have so much in the mean: smaller ones are Python's work, for which they wait for
each other."""


def _jobs(tasks: Sequence[Task], roots: Iterable[object]) -> int:
    """Tasks at the same time; in a bucket several in any case, as each waits for its answers."""
    many = any(map(is_remote, roots)) or sum(t.bytes for t in tasks) >= _WORTH_BYTES * len(tasks)
    return default_jobs() if many else 1


@dataclass(frozen=True)
class CheckFile:
    """Reads one file of an export through, here or on another machine."""

    id: str
    out: str
    part: _Part
    entry: Mapping[str, Any]

    @property
    def where(self) -> str:
        return self.part.where

    @property
    def rows(self) -> int:
        return int(self.entry["rows"])

    @property
    def bytes(self) -> int:
        return int(self.entry["bytes"])

    def run(self, advance: Advance) -> Result:
        """`rows` that were read, `findings`, and whether the file is `damaged`."""
        require_disk(f"{self.out}/{self.id}", self.entry)
        found = ExportCheck()
        damaged = False
        told = Told(advance)
        try:
            _check_file(as_path(self.out), self.part, self.entry, found, told.advance)
        except MissingPackageError:  # nothing is wrong with the file
            raise
        except (MilvusOfflineError, OSError, KeyError, ValueError, TypeError) as e:
            damaged = True
            found.differs("file-unreadable", self.part.where, str(e), self.entry.get("rows"))
        told.rest(self.rows, self.bytes)
        return {"rows": found.rows, "findings": Findings(found.findings), "damaged": damaged or self.part.damaged}


def _checked(
    tasks: Sequence[CheckFile], progress: Progress, cluster: str | None
) -> Generator[tuple[CheckFile, Result], None, None]:
    """Each task with what it found, in their order."""
    if cluster is None:
        jobs = _jobs(tasks, (t.out for t in tasks[:1]))
        with closing(in_order(tasks, jobs=jobs, progress=progress)) as found:
            yield from zip(tasks, found, strict=True)
        return
    from .cluster import DaskCluster

    with DaskCluster(cluster, resumable=False) as workers:
        there = [path for t in tasks if as_path(path := f"{t.out}/{t.id}").is_file()]
        workers.probe_files(there)
        found = workers.in_order(tasks, progress)
        yield from zip(tasks, found, strict=True)


@dataclass
class _Exported:
    schema: Schema
    partitions: list[dict[str, Any]]


@dataclass
class _Part:
    """The files of one partition; listed ones have no schema in the manifest."""

    collection: str
    partition: str
    schema: Schema | None
    files: list[dict[str, Any]]
    damaged: bool = False

    @property
    def where(self) -> str:
        return f"{self.collection}/{self.partition}"


def _files(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of a partition in the manifest. Raises KeyError, TypeError or ValueError when they are not what we write."""
    files = _list(described["files"])
    for file in files:
        if not isinstance(file["path"], str) or not isinstance(file.get("ids_path", ""), str):
            raise ValueError(f"a file without a path in {described.get('name')!r}")
        for part in (file, *_list(file["parts"])):
            if type(part["rows"]) is not int or part["rows"] < 0:
                raise ValueError(f"{file['path']}: rows {part['rows']!r}")
        if type(file["bytes"]) is not int:
            raise ValueError(f"{file['path']}: bytes {file['bytes']!r}")
    return files


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list, found {type(value).__name__}")
    return value


def _check_file(out: Path, part: _Part, entry: Mapping[str, Any], result: ExportCheck, advance: Advance) -> None:
    where, rows = part.where, entry["rows"]
    paths = [out / entry[key] for key in ("path", "ids_path") if key in entry]
    for path in paths:
        if not path.is_file():
            part.damaged = True
            result.differs("file-missing", where, f"{path} is not there", rows)
            return
    size = sum(p.stat().st_size for p in paths)
    if size != entry["bytes"]:
        result.differs("file-size", where, f"{paths[0]}: the manifest says {entry['bytes']} bytes, found {size}", rows)
    stream = _Stream(file_pieces(str(paths[0]), part.schema, entry))
    if says_where(entry, str(paths[0])) and (differs := structure_differs(str(paths[0]), entry)):
        result.differs("structure-differs", where, f"{paths[0]}: {differs}")
    elif part.schema is not None and paths[0].suffix == ".h5" and not is_remote(out):
        _check_description(paths[0], OutFile(entry["path"], part.schema, part.partition, rows), result)
    if entry.get("linked"):
        text = f"{paths[0]} points into the store's own files, which carry no checksums; --against compares its rows"
        result.findings.info("linked-unchecked", where, text, rows)
        return
    attributes = part.schema.attributes if part.schema is not None and paths[0].suffix == ".h5" else ()
    row = 0
    for written in entry["parts"]:
        sums = Checksums(attributes)
        for batch in stream.take(written["rows"]):
            sums.add(columns_of(batch, attributes))
            advance(len(batch.ids), batch.vectors.nbytes + batch.ids.nbytes)
        end = row + written["rows"]
        for name, found, expected in _sums(sums.result(), written):
            if found != expected:
                result.differs("checksum", where, f"{paths[0]}: `{name}` of rows {row} to {end - 1} changed", written["rows"])
        row = end
    result.rows += rows
    if entry["parts"] and checksum_of_parts(entry["parts"]) != entry["checksum"]:
        result.differs("checksum", where, "the manifest's own checksums contradict each other")


def _sums(found: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(dataset, its checksum, what it should be)."""
    for name in (EMBEDDINGS, IDS):
        yield name, found[name], written[name]
    for name, value in found.get("attributes", {}).items():
        yield name, value, written["attributes"][name]


def _check_description(path: Path, file: OutFile, result: ExportCheck) -> None:
    """The attributes of an HDF5 file against what the manifest says of it."""
    with open_file(str(path)) as h, damage(path):
        found = {name: h.attrs.get(name) for name in description(file)}
    for name, value in description(file).items():
        if found[name] != value and name != "written_by":
            where = f"{file.schema.name}/{file.partition}"
            message = f"{path}: {name} is {printable(found[name])} in the file, {printable(value)} in the manifest"
            result.differs("description", where, message, file.rows)


class _Stream:
    """The rows of some pieces, one after the other."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._batches = (b for p in pieces for b in p.batches())
        self._rest: Batch | None = None

    def take(self, rows: int) -> Iterator[Batch]:
        """The next `rows` rows, fewer at the end; a batch is overwritten by the next one."""
        while rows:
            batch = self._rest or next(self._batches, None)
            if batch is None:
                return
            batch = batch._replace(lost=NOWHERE)
            n = min(rows, len(batch.ids))
            self._rest = batch.part(n, len(batch.ids)) if n < len(batch.ids) else None
            yield batch.part(0, n)
            rows -= n


# Against the source ----------------------------------------------------------------------------------------------------


def _compare(  # many: an export in three forms, the source, and where it is told
    out: Path,
    collections: Sequence[_Exported],
    parts: Sequence[_Part],
    source: Source,
    selected: bool,
    result: ExportCheck,
    progress: Progress,
) -> None:
    theirs = {(c.schema.name, p.name): p for c in source.collections for p in c.partitions}
    schemas = {c.schema.name: c.schema for c in source.collections}
    for collection in collections:
        if other := schemas.get(collection.schema.name):
            _compare_schemas(collection.schema, other, result)
    for part in parts:
        progress.now(part.where)
        told = Told(lambda rows, nbytes: progress.advance(0, nbytes))
        partition = theirs.pop((part.collection, part.partition), None)
        if partition is None:
            rows = sum(f["rows"] for f in part.files)
            result.differs("partition-unknown", part.where, "is in the export, but not in the source", rows)
        elif not part.damaged:
            try:
                pieces = [p for f in part.files for p in file_pieces(str(out / f["path"]), part.schema, f)]
                ours = SourcePartition(part.partition, pieces)
                names = sorted(_attributes(part.schema) & _attributes(schemas[part.collection]))
                if not _same_order(ours, partition, names, told.advance):
                    _compare_sets(part.where, ours, partition, names, result)
                result.rows += sum(f["rows"] for f in part.files if f.get("linked"))
            except (DamageError, OSError) as e:
                result.differs("file-unreadable", part.where, str(e))
        told.rest(0, sum(f["bytes"] for f in part.files))
    left_out = {f"{c}/{p}": partition.rows for (c, p), partition in theirs.items()}
    if selected and left_out:
        text = f"{len(left_out)} partitions of the source were not selected for this export"
        result.findings.info("not-selected", str(out), text, sum(left_out.values()))
    elif not selected:
        for where, rows in left_out.items():
            result.differs("partition-missing", where, "is in the source, but not in the export", rows)


def _compare_schemas(ours: Schema, other: Schema, result: ExportCheck) -> None:
    for name in ("dimension", "vector_type", "metric_type", "index", "index_file_size", "auto_id"):
        here, there = getattr(ours, name), getattr(other, name)
        if here != there:
            result.differs("schema-differs", ours.name, f"{name} is {here} in the export, {there} in the source")


def _attributes(schema: Schema | None) -> set[str]:
    return {a.name for a in schema.attributes} if schema else set()


def _same_order(ours: SourcePartition, other: SourcePartition, names: Sequence[str], advance: Advance) -> bool:
    """Whether both give the same rows with these attributes in the same order, bit for bit."""
    if ours.rows != other.rows:
        return False
    stream = _Stream(other.pieces)
    for batch in (b for p in ours.pieces for b in p.batches()):
        done = 0
        for there in stream.take(len(batch.ids)):
            n = len(there.ids)
            here = batch.part(done, done + n)
            pairs = [(here.ids, there.ids), (here.vectors, there.vectors)]
            pairs += [(here.attributes[name], there.attributes[name]) for name in names]
            if any(octets(a) != octets(b) for a, b in pairs):
                return False
            done += n
            advance(n, here.vectors.nbytes + here.ids.nbytes)
        if done < len(batch.ids):
            return False
    return True


def _compare_sets(where: str, ours: SourcePartition, other: SourcePartition, names: Sequence[str], result: ExportCheck) -> None:
    """Counts rows that only one side has: 8 bytes a row, only after the order differed."""

    def rows(partition: SourcePartition) -> Iterator[Batch]:
        for batch in (b for p in partition.pieces for b in p.batches()):
            columns = [batch.vectors, *(batch.attributes[name] for name in names)]
            octet_rows = [np.ascontiguousarray(c).view(np.uint8).reshape(len(batch.ids), -1) for c in columns]
            yield Batch(batch.ids, np.hstack(octet_rows) if names else batch.vectors)

    here, there = (np.sort(hashes_of(rows(p))) for p in (ours, other))
    missing, extra = _surplus(there, here), _surplus(here, there)
    if missing or extra:
        message = (
            f"{missing:,} row{'' if missing == 1 else 's'} of the store {'is' if missing == 1 else 'are'} not in the export, "
            f"{extra:,} row{'' if extra == 1 else 's'} of the export {'is' if extra == 1 else 'are'} not in the store"
        )
        result.differs("rows-differ", where, message, missing + extra)


def _surplus(left: Hashes, right: Hashes) -> int:
    """How many elements of `left` have no counterpart in `right`, as multisets; both sorted."""
    values, counts = np.unique(left, return_counts=True)
    there = np.searchsorted(right, values, "right") - np.searchsorted(right, values, "left")
    return int(np.maximum(counts - there, 0).sum())
