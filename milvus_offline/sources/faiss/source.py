"""A Faiss index file as a source: one collection, one partition.

What stores the vectors themselves is read by `faissfile`. Kinds unknown there, and approximate ones when the user asks for
them, are read by Faiss in a process of its own (`worker`).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DamageError, UsageError
from ...faissfile import (
    ROUNDED,
    Cursor,
    Duplicates,
    Extent,
    IdMap,
    Index,
    Inverse,
    NotInvertible,
    Rows,
    UnknownKind,
    find_duplicates,
    metric_name,
    milvus_metric,
    milvus_metrics,
    read_index,
    rows_of,
    single_run,
)
from ...fileio import open_read
from ...findings import Findings
from ...milvus1.layout import ID, IDS_SUFFIX, LENGTH
from ...milvus1.segment.files import read_header
from ...milvus1.segment.indexfile import INDEX_TYPES, read_index_file
from ...model import (
    BATCH_BYTES,
    DEFAULT_PARTITION,
    Batch,
    Finding,
    IndexSpec,
    Piece,
    Salvaged,
    Schema,
    Severity,
    SourceCollection,
    SourcePartition,
    VectorType,
)
from ...names import printable
from ..options import SourceOptions
from .pool import Child, ChildPiece

PIECE_BYTES = 256 << 20
"""Vector bytes of a piece: a large index is cut so that several processes can work on it."""

_PAIRS_EACH = 1 << 20
"""Equal vectors that are looked up at once: about 64 MiB."""

_CHILD_MEMORY = 4 << 30
_MAX_ID_FILE_HEADER = 1 << 16
_MIN_ID, _MAX_ID = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True)
class FaissPiece:
    """A slice of the rows of an index file."""

    id: str
    data: Rows | Duplicates

    @property
    def rows(self) -> int:
        return self.data.total

    @property
    def paths(self) -> tuple[str, ...]:
        rows = self.data.rows if isinstance(self.data, Duplicates) else self.data
        return rows.index_path, rows.path

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Rows in file order, in flat memory. Raises DamageError."""
        for ids, vectors in self.data.batches(max_bytes, start):
            yield Batch(ids, vectors)


@dataclass
class FaissSource:
    """See model.Source."""

    path: str
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    index_name: str
    files: tuple[str, ...]
    options: str
    kind: str = "faiss"
    salvage: Sequence[Salvaged] = ()

    def describe(self) -> dict[str, Any]:
        """Path, index type, rows and bytes."""
        size = sum(os.path.getsize(f) for f in self.files)
        return {"kind": self.kind, "path": self.path, "index": self.index_name, "rows": self.collections[0].rows, "bytes": size}

    def fingerprint(self) -> str:
        """A digest of the options and of each file's size, modification time, beginning and end."""
        digest = hashlib.sha256(self.options.encode())
        for path in self.files:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
                digest.update(file.read(1 << 16))
                file.seek(max(0, status.st_size - (1 << 16)))
                digest.update(file.read(1 << 16))
        return digest.hexdigest()


def open_faiss(  # many: the options of a Faiss index, each by its name
    path: str | os.PathLike[str],
    *,
    collection: str | None = None,
    metric: str | None = None,
    dimension: int | None = None,
    ids_file: str | os.PathLike[str] | None = None,
    first_id: int = 0,
    lossy: bool = False,
    follow_ondisk: bool = False,
    memory_limit: int | None = None,
    timeout: float = 300.0,
) -> FaissSource:
    """The source that reads the Faiss index at `path`.

    The ids are those of the index; where it has none, the row numbers from `first_id` on, or the int64 array in the `.npy`
    file `ids_file`, which may also rename the row numbers in inverted lists. `metric` and `dimension` can only confirm what
    the index says, except that `metric` is taken where Milvus has no name for the metric of the index. Approximate kinds
    (PQ, SQ8, ...) are refused unless `lossy`. Inverted lists in another file are followed inside the folder of the index,
    elsewhere only with `follow_ondisk`. `memory_limit` and `timeout` bound Faiss where it has to be asked.

    Raises DamageError for a file that is no sound index, UsageError for what is refused or contradicts.
    """
    name = os.path.abspath(path)
    opening = _Opening(name, collection, metric, dimension, ids_file, first_id, lossy, follow_ondisk)
    size = _regular_size(name)
    fd = open_read(name)
    try:
        cursor = Cursor(fd, name, 0, size)
        if size > 4 and cursor.i32("the kind of an index") in INDEX_TYPES:
            return opening.milvus_index_file()
        cursor.at = 0
        try:
            index = read_index(cursor)
        except UnknownKind as e:
            if e.offset == 0 and not (e.kind.isascii() and e.kind.isalnum() and e.kind[0] in "IN"):
                raise DamageError(name, f"not a Faiss index (it begins with {e.kind!r})", offset=0) from None
            return opening.with_faiss(None, memory_limit, timeout)
        opening.trailing(cursor.left)
        if index.refusal is not None and not index.declared and not index.rows:
            index = replace(index, runs=single_run(1, 0, 0), encoding="f4", refusal=None)  # nothing of nothing is lost
        if index.refusal is not None:
            if index.absent:
                raise UsageError(f"{name}: {index.name}: {index.refusal}")
            if not lossy:
                raise opening.approximate(index.name, index.refusal)
            return opening.with_faiss(index, memory_limit, timeout)
        return opening.direct(fd, index)
    finally:
        os.close(fd)


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FaissSource:
    """The same, with the options of all sources."""
    return open_faiss(path, collection=options.collection, metric=options.metric, **options.faiss)


class _Opening:
    """One call of `open_faiss`: its options and what it finds."""

    def __init__(  # many: the options of open_faiss
        self,
        path: str,
        collection: str | None,
        metric: str | None,
        dimension: int | None,
        ids_file: str | os.PathLike[str] | None,
        first_id: int,
        lossy: bool,
        follow: bool,
    ) -> None:
        self.path = path
        self.collection = Path(path).stem if collection is None else collection
        self.metric = metric
        self.dimension = dimension
        self.ids_file = None if ids_file is None else os.fspath(ids_file)
        self.first_id = first_id
        self.lossy = lossy
        self.follow = follow
        self.findings = Findings()
        if first_id and ids_file is not None:
            raise UsageError("--first-id and --ids both say where the ids come from: give one of them")

    def find(self, severity: Severity, code: str, message: str, rows: int | None = None) -> None:
        finding = Finding(severity, code, self.path, message, rows)
        if finding not in self.findings:
            self.findings.append(finding)

    def trailing(self, left: int) -> None:
        if left:
            self.find(Severity.INFO, "faiss-trailing-bytes", f"{left} bytes after the end of the index were not read")

    def approximate(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self.path}: {name}: {reason}; --lossy takes the approximations")

    # Our own reader --------------------------------------------------------------------------------------------------

    def direct(self, fd: int, index: Index) -> FaissSource:
        assert index.runs is not None
        files = [self.path]
        vectors_file = None
        if index.on_disk is not None and index.runs.total:
            vectors_file = self._lists_file(index.on_disk.name, index.on_disk.size)
            files.append(vectors_file)
        rows = index.runs.total + (index.duplicates.count if index.duplicates else 0)
        has_ids = index.own_ids and (index.nlist is None or index.id_maps != ())
        maps = self._given_ids(has_ids, max(rows, index.declared), files)  # rows that no list took are numbered too
        self._check_first_id(index.own_ids, rows)
        data = rows_of(index, self.path, vectors_file)
        data = replace(data, id_maps=(*data.id_maps, *maps))
        if self.first_id:
            assert index.runs.first is not None
            data = replace(data, runs=replace(index.runs, first=index.runs.first + self.first_id))
        data = self._undone(fd, index, data)
        pieces = self._cut(data)
        if index.duplicates is not None:
            pieces += self._duplicates(index.duplicates, data)
        self._declared(index.declared, sum(p.rows for p in pieces))
        if index.encoding in ROUNDED and rows:
            stored = "the transform is undone on these" if data.undo else "these come out exactly"
            text = f"the index rounded the vectors to {ROUNDED[index.encoding]} when they were added: {stored}"
            self.find(Severity.INFO, "faiss-rounded", text, rows)
        metric, own = _metric(index.metric, index.binary)
        schema = self._schema(data.dimension, index.binary, metric, own, _index_spec(index.binary, index.nlist, index.kinds))
        return self._source(schema, pieces, index.name, files)

    def _undone(self, fd: int, index: Index, data: Rows) -> Rows:
        """The rows before the transforms, where there is a way back."""
        if not index.transforms:
            return data
        kinds = ", ".join(t.kind for t in index.transforms)
        try:
            inverse = Inverse(Cursor(fd, self.path, 0, _regular_size(self.path)), index.transforms)
        except NotInvertible as e:
            if data.total:
                text = f"the index transformed the vectors ({kinds}), and they are read as it holds them: {e}"
                self.find(Severity.WARNING, "faiss-transformed", text, data.total)
            return data
        if all(t.exact for t in index.transforms):
            text = f"a map of dimensions ({kinds}) was undone, which changes no number"
        else:
            _, sample = next(data.slice(0, 1000).batches(1 << 22), (None, np.empty((0, data.dimension), "<f4")))
            error = inverse.error(sample)
            text = f"an orthonormal transform ({kinds}) was undone; applied again to {len(sample)} rows, it gives the stored"
            text += f" values within {error:.3g}, so the vectors equal those that were added up to rounding"
        if index.encoding in ROUNDED:
            text += f", apart from what {ROUNDED[index.encoding]} rounded"
        if data.total:
            self.find(Severity.INFO, "faiss-transform-undone", text, data.total)
        return replace(data, dimension=index.transforms[0].d_in, undo=index.transforms)

    def _duplicates(self, table: Extent, data: Rows) -> list[Piece]:
        pieces: list[Piece] = []
        missing = 0
        step = min(_rows_each(data), _PAIRS_EACH)
        for first in range(0, table.count, step):
            part = find_duplicates(data, Extent(table.at + 16 * first, min(step, table.count - first)))
            pieces += [FaissPiece(f"equal-{first}", part)] if part.total else []
            missing += part.missing
        if missing:
            text = f"the index lists {missing} ids as duplicates of vectors that its lists do not hold"
            self.find(Severity.ERROR, "faiss-duplicates-lost", text, missing)
        return pieces

    def _declared(self, declared: int, rows: int) -> None:
        if declared != rows:
            text = f"the header says {declared} rows, the index holds {rows}"
            self.find(Severity.WARNING, "faiss-row-count", text, abs(declared - rows))

    def _cut(self, data: Rows) -> list[Piece]:
        step = _rows_each(data)
        return [FaissPiece(str(first), data.slice(first, first + step)) for first in range(0, data.total, step)]

    def _lists_file(self, name: str, size: int) -> str:
        """The file with the inverted lists: the one named, or one of that name beside the index."""
        if "\0" in name or not name:
            raise DamageError(self.path, f"the inverted lists are in a file named {name!r}")
        folder = os.path.dirname(os.path.realpath(self.path))
        named = os.path.join(folder, name)
        for candidate in (named, os.path.join(folder, os.path.basename(name))):
            inside = os.path.dirname(os.path.realpath(candidate)) == folder
            if (inside or self.follow) and os.path.isfile(candidate):
                actual = os.path.getsize(candidate)
                if actual < size:
                    raise DamageError(candidate, f"expected {size} bytes of inverted lists, found {actual}", offset=actual)
                if os.path.realpath(candidate) != os.path.realpath(named):
                    text = f"the index says that its lists are in {printable(name)!r}; {candidate} beside the index is read"
                    self.find(Severity.INFO, "faiss-lists-elsewhere", text)
                if actual > size:
                    text = f"{candidate} has {actual} bytes, the index expects {size}: it may be that of another index"
                    self.find(Severity.WARNING, "faiss-lists-differ", text)
                return candidate
        hint = "put that file beside the index" + ("" if self.follow else ", or follow the name with --follow-ondisk")
        raise UsageError(f"{self.path}: the inverted lists are in another file, {name!r}, which was not read: {hint}")

    # Index files of Milvus 1.x ---------------------------------------------------------------------------------------

    def milvus_index_file(self) -> FaissSource:
        """Faiss and other indexes in Milvus' own container (FORMAT §4.6)."""
        stored = read_index_file(self.path, user_ids=True)
        own_ids = stored.kind == "FLAT" and stored.own_ids
        files = [self.path]
        given = self._given_ids(own_ids, stored.rows + stored.lost, files)
        if self.first_id:
            raise UsageError(f"{self.path}: an index file of Milvus has row numbers: --first-id does not apply, --ids does")
        if not given and not own_ids:
            text = (
                f"an index file ({stored.kind}) of a Milvus 1.x server: the ids are row numbers within its segment (in 0.5 and "
                "0.6 the user's ids). The user's ids are in the segment's .uid file: name it with --ids"
            )
            self.find(Severity.WARNING, "row-numbers", text, stored.rows)
        self._declared(stored.rows + stored.lost, stored.rows)
        data = replace(stored.data, id_maps=(*stored.data.id_maps, *given))
        binary = stored.vector_type is VectorType.BINARY
        schema = self._schema(stored.dimension, binary, stored.metric, f"unknown in {stored.kind}", IndexSpec(stored.kind))
        return self._source(schema, self._cut(data), f"Milvus {stored.kind}", files)

    # Faiss -----------------------------------------------------------------------------------------------------------

    def with_faiss(self, index: Index | None, memory_limit: int | None, timeout: float) -> FaissSource:
        with open(self.path, "rb") as file:
            binary = file.read(4)[:2] == b"IB"
        files = [self.path]
        if index is not None and index.on_disk is not None:
            files.append(self._lists_file(index.on_disk.name, index.on_disk.size))
        memory = _CHILD_MEMORY + 3 * sum(map(_regular_size, files)) if memory_limit is None else memory_limit
        child = Child(self.path, binary, self.follow, memory, timeout)
        info = child.info()
        name = " over ".join(info["kinds"])
        if info["lists"]:
            files = [self.path, self._lists_file(*info["lists"])]
        if info["failure"] is not None:
            raise UsageError(f"{self.path}: {name}: Faiss cannot give back the vectors: {info['failure']}")
        if not info["exact"] and info["rows"]:
            if not self.lossy:
                reason = "Faiss can give back only approximate vectors" if index is None else str(index.refusal)
                raise self.approximate(name, reason)
            text = f"{name}: the vectors are approximations, which --lossy takes"
            self.find(Severity.WARNING, "faiss-lossy", text, info["rows"])
        elif info["transforms"] and info["rows"]:
            kinds = ", ".join(info["transforms"])
            text = f"Faiss undid an orthonormal transform ({kinds}): the vectors equal those that were added up to rounding"
            self.find(Severity.INFO, "faiss-transform-undone", text, info["rows"])
        self._declared(info["declared"], info["rows"])
        has_ids = "IndexIDMap" in name or "BinaryIDMap" in name
        given = self._given_ids(has_ids, max(info["rows"], info["declared"]), files)
        self._check_first_id(info["own_ids"], info["rows"])
        vector_type = VectorType.BINARY if binary else VectorType.FLOAT
        piece = ChildPiece("0", info["rows"], child, vector_type, info["dimension"], self.first_id, given[0] if given else None)
        metric, own = _metric(info["metric"], binary)
        schema = self._schema(info["dimension"], binary, metric, own, _index_spec(binary, None, ()))
        return self._source(schema, [piece] if piece.rows else [], name, files)

    # Common ----------------------------------------------------------------------------------------------------------

    def _check_first_id(self, own_ids: bool, rows: int) -> None:
        if self.first_id and own_ids:
            raise UsageError(f"{self.path} has ids of its own: --first-id does not apply")
        if not _MIN_ID <= self.first_id <= _MAX_ID - max(rows - 1, 0):
            raise UsageError(f"--first-id {self.first_id}: the ids of {rows} rows must lie in {_MIN_ID}..{_MAX_ID}")

    def _given_ids(self, has_ids: bool, rows: int, files: list[str]) -> list[IdMap]:
        if self.ids_file is None:
            return []
        if has_ids:
            raise UsageError(f"{self.path} has ids of its own: {self.ids_file} does not apply")
        files.append(self.ids_file)
        return [(_uid_ids if self.ids_file.endswith(IDS_SUFFIX) else _npy_ids)(self.ids_file, rows)]

    def _schema(self, dimension: int, binary: bool, metric: str | None, own: str, index: IndexSpec) -> Schema:
        """`metric` is Milvus' name of it, None where it has none; `own` is what the index calls it."""
        if self.dimension not in (None, dimension):
            raise UsageError(f"{self.path} has {dimension} dimensions, not {self.dimension}")
        wanted = self.metric.upper() if self.metric else None
        known = milvus_metrics(binary)
        if wanted is not None and wanted not in known:
            raise UsageError(f"--metric {wanted}: for these vectors there are {', '.join(known)}")
        if metric is None:
            metric = wanted
            text = f"the metric of the index, {own}, has no name in Milvus; " + (
                f"{wanted} is used, as --metric says" if wanted else "name the one to use with --metric"
            )
            self.find(Severity.INFO if wanted else Severity.WARNING, "faiss-metric", text)
        elif wanted not in (None, metric):
            raise UsageError(f"{self.path} has the metric {metric}, not {wanted}")
        vector_type = VectorType.BINARY if binary else VectorType.FLOAT
        return Schema(self.collection, dimension, vector_type, metric, index)

    def _source(self, schema: Schema, pieces: list[Piece], name: str, files: list[str]) -> FaissSource:
        collection = SourceCollection(schema, (SourcePartition(DEFAULT_PARTITION, tuple(pieces)),))
        options = json.dumps([self.collection, self.first_id, self.lossy, schema.metric_type])
        return FaissSource(self.path, (collection,), tuple(self.findings), name, tuple(files), options)


def _rows_each(data: Rows) -> int:
    return max(1, PIECE_BYTES // (data.dimension * 4 if data.encoding != "bits" else data.dimension // 8))


def _metric(number: int, binary: bool) -> tuple[str | None, str]:
    """(Milvus' name of a metric or None, Faiss' name of it)."""
    return milvus_metric(number, binary), metric_name(number)


def _index_spec(binary: bool, nlist: int | None, kinds: tuple[str, ...]) -> IndexSpec:
    prefix = "BIN_" if binary else ""
    if nlist and not any("IDMap" not in k and "IVF" not in k and "Pre" not in k for k in kinds):
        return IndexSpec(f"{prefix}IVF_FLAT", {"nlist": nlist})
    return IndexSpec(f"{prefix}FLAT")


def _regular_size(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is not a file")
    return status.st_size


def _uid_ids(path: str, rows: int) -> IdMap:
    """Where the ids lie in the `.uid` file of a segment (FORMAT §4.2)."""
    ids = read_header(path)
    if ids.bytes != rows * ID.itemsize or ids.is_short:
        raise UsageError(f"{path}: expected {rows} ids, found {ids.bytes // ID.itemsize}")
    return IdMap(path, LENGTH.size, rows)


def _npy_ids(path: str, rows: int) -> IdMap:
    """Where the ids lie in an int64 `.npy` file of `rows` numbers."""
    size = _regular_size(path)
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file, max_header_size=_MAX_ID_FILE_HEADER)
            at = file.tell()
    except (ValueError, OSError) as e:
        raise UsageError(f"{path}: not an array of numpy: {e}") from e
    if dtype != np.dtype("<i8") or shape != (rows,):
        raise UsageError(f"{path}: expected {rows} int64 ids, found {dtype} of shape {shape}")
    if size < at + 8 * rows:
        raise DamageError(path, f"expected {rows} ids, the file ends before", offset=size)
    return IdMap(path, at, rows)
