"""The index files of Milvus 0.5-1.1.1: the container, and the vectors that some kinds hold (FORMAT §4.6).

An index file covers all rows of its segment, deleted ones too, and numbers them by their offset in the segment. Where it
stores the vectors themselves, a lost `.rv` can be put together again:

    stored = read_index_file(path, rows=rows_of_the_uid_file)
    for offsets, vectors in stored.batches():
        out[offsets] = vectors

| since | change                                                                                        |
|-------|-----------------------------------------------------------------------------------------------|
| 0.5   | the container; `IVF` of type 1 is a raw file (`rawfile.py`); the ids inside are the user's        |
| 0.7   | the ids inside are row offsets                                                                |
| 0.8   | ANNOY                                                                                         |
| later | `NSG` begins with the metric (in 0.5 and 0.6 it does not)                                      |
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ...errors import DamageError, UsageError
from ...faissfile import Cursor, Index, Rows, UnknownKind, milvus_metric, read_index, rows_of, single_run
from ...faissfile.runs import ID_BYTES, Int64s
from ...fileio import open_read, size_of
from ...model import BATCH_BYTES, Array, VectorShape, VectorType

INDEX_TYPES = {
    1: "FLAT", 2: "IVF_FLAT", 3: "IVF_FLAT", 4: "IVF_FLAT", 5: "IVF_PQ", 6: "IVF_PQ", 7: "SPTAG_KDT", 8: "IVF_SQ8",
    9: "IVF_SQ8", 10: "IVF_SQ8", 11: "IVF_SQ8H", 12: "RNSG", 13: "IVF_PQ", 14: "SPTAG_BKT", 15: "HNSW", 16: "ANNOY",
    100: "BIN_FLAT", 101: "BIN_IVF_FLAT",
}  # fmt: skip
"""The int32 at the start of the container, in the names of 1.x; several numbers are one index on CPU, GPU or both."""

_RAW_PART = struct.pack("<Q3s", 3, b"IVF")
_FAISS_BLOBS = {"IVF": False, "BinaryIVF": True}
HNSW_HEADER = struct.Struct("<9Qi4x3QdQ")
"""metric, data_size, dim, offsetLevel0, max_elements, cur_count, size_per_element, label_offset, offsetData, maxlevel,
enterpoint (unused), maxM, maxM0, M, mult, ef_construction."""
_OLD_NSG = struct.Struct("<QQq")
"""ntotal, dim, navigation point."""
_NSG = struct.Struct("<iQQq")
"""The metric in front of these."""
_ANNOY_L2_AT, _ANNOY_IP_AT = 32, 28
_LINK_WINDOW = 1 << 18
_MAX_NAME, _MAX_BLOBS, _MAX_DIMENSION = 256, 64, 1 << 20


@dataclass(frozen=True)
class Blob:
    """One named part of the container: `size` bytes from byte `at` on."""

    name: str
    at: int
    size: int


@dataclass(frozen=True)
class Container:
    """What `read_container` found. `cut` when the file ends inside the last blob, whose `size` is then what is left."""

    path: str
    type: int
    blobs: tuple[Blob, ...]
    cut: bool = False

    @property
    def type_name(self) -> str:
        return INDEX_TYPES.get(self.type, f"type {self.type}")

    def blob(self, name: str) -> Blob:
        for blob in self.blobs:
            if blob.name == name:
                return blob
        raise DamageError(self.path, f"an index file of {self.type_name} without a part {name!r}")


@dataclass(frozen=True, eq=False)
class StoredVectors(VectorShape):
    """The vectors inside an index file. Picklable.

    `rows` can be read, `lost` more were there before the file was cut, or were in no list of an IVF index. `kind` is the index
    type, `metric` that of the index where it is known what its number means. `offsets_in_range` is how many rows the segment
    has: every offset is below it, or reading raises DamageError; None where the ids are the user's. `own_ids` is False where no
    ids are stored at all.
    """

    path: str
    kind: str
    vector_type: VectorType
    dimension: int
    rows: int
    lost: int
    data: Rows
    offsets_in_range: int | None
    metric: str | None = None
    own_ids: bool = True

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[tuple[Int64s, Array]]:
        """(row offsets int64 [n], vectors float32 [n, d] or uint8 [n, d/8]) in file order, in flat memory.

        The arrays are overwritten by the next batch. Raises DamageError.
        """
        for offsets, vectors in self.data.batches(max_bytes, start):
            limit = self.offsets_in_range
            if limit is not None and len(offsets) and not (0 <= int(offsets.min()) <= int(offsets.max()) < limit):
                raise DamageError(self.path, f"a row offset outside of the {limit} rows of the segment")
            yield offsets, vectors


@dataclass(frozen=True)
class IndexReport:
    """What `check` found in a sound index file. `rows` and `dimension` are None where the kind does not tell."""

    path: str
    type_name: str
    blobs: tuple[Blob, ...]
    rows: int | None
    dimension: int | None
    holds_vectors: bool


def type_of(path: str | os.PathLike[str]) -> str:
    """The type of an index file, from its first bytes. Raises DamageError, OSError."""
    fd = open_read(path)
    try:
        return INDEX_TYPES[_read_type(Cursor(fd, os.fspath(path), 0, size_of(fd)))]
    finally:
        os.close(fd)


def _read_type(cursor: Cursor) -> int:
    kind = cursor.i32("the index type")
    if kind not in INDEX_TYPES:
        raise cursor.damage(f"{kind} is no index type of Milvus 0.5 to 1.1.1", 0)
    return kind


def read_container(path: str | os.PathLike[str], *, partial: bool = False) -> Container:
    """The parts of an index file. With `partial` the last one may be cut. Raises DamageError."""
    fd = open_read(path)
    try:
        cursor = Cursor(fd, os.fspath(path), 0, size_of(fd))
        kind = _read_type(cursor)
        blobs: list[Blob] = []
        while cursor.left:
            at = cursor.at
            try:
                length = cursor.u64("the length of a name")
                if not 0 < length <= _MAX_NAME or len(blobs) == _MAX_BLOBS:
                    raise cursor.damage(f"part {len(blobs) + 1} has a name of {length} bytes", at)
                name = cursor.take(length, "the name of a part").decode("utf-8", "replace")
                size = cursor.i64(f"the length of {name!r}")
            except DamageError:
                if partial and blobs and cursor.end - at < 8 + _MAX_NAME + 8:
                    return Container(str(cursor.path), kind, tuple(blobs), True)
                raise
            if any(b.name == name for b in blobs):
                raise cursor.damage(f"a second part {name!r}", at)
            if partial and size > cursor.left:
                blobs.append(Blob(name, cursor.at, cursor.left))
                return Container(str(cursor.path), kind, tuple(blobs), True)
            blobs.append(Blob(name, cursor.at, size))
            cursor.skip(size, f"the part {name!r}")
        if not blobs:
            raise cursor.damage("an index file without parts")
        return Container(str(cursor.path), kind, tuple(blobs))
    finally:
        os.close(fd)


def read_index_file(
    path: str | os.PathLike[str], *, rows: int | None = None, partial: bool = False, user_ids: bool = False
) -> StoredVectors:
    """The vectors of an index file of IVF_FLAT, BIN_IVF_FLAT, HNSW, ANNOY, RNSG, or of a raw file of 0.5/0.6.

    `rows` is what the segment should have; another number inside is DamageError. With `partial` a cut file gives what is
    left, and `lost` says how many rows are missing; a cut ANNOY file needs `rows` for that. `user_ids` (0.5, 0.6, whose
    indexes hold the user's ids) skips the check that ids are offsets. Raises DamageError, and UsageError for a kind that
    does not hold the vectors.
    """
    container = read_container(path, partial=partial)
    fd = open_read(path)
    try:
        found = _stored(fd, container, rows, partial)
    finally:
        os.close(fd)
    total = found.rows + found.lost
    if rows is not None and total != rows:
        raise DamageError(path, f"an index of {total} rows for a segment of {rows}")
    return replace(found, offsets_in_range=None) if user_ids or found.kind == "FLAT" else found


def read_raw_file(path: str | os.PathLike[str]) -> tuple[StoredVectors, list[str]]:
    """The rows of a raw file of 0.5/0.6, as far as they are there, and in words what its container tells wrongly (FORMAT §8).

    The Faiss index inside tells its own length. So it is read up to the end of the file; the length of its part, and what
    stands after it, are only compared. Raises DamageError, and UsageError for an index that does not hold the vectors.
    """
    fd = open_read(path)
    try:
        cursor = Cursor(fd, os.fspath(path), 0, size_of(fd))
        if (found := INDEX_TYPES[_read_type(cursor)]) != "FLAT":
            raise cursor.damage(f"expected a raw file of Milvus 0.5 or 0.6, found an index of type {found}", 0)
        if cursor.take(len(_RAW_PART), "the name of a part") != _RAW_PART:
            raise cursor.damage("expected the part 'IVF' of a raw file of Milvus 0.5 or 0.6", 4)
        size = cursor.i64("the length of 'IVF'")
        at = cursor.at
        stored = replace(_faiss_vectors(cursor, "FLAT", partial=True), offsets_in_range=None)
        odd = []
        if not stored.lost and size != cursor.at - at:
            odd.append(f"the length of the part 'IVF' is {size}, its index has {cursor.at - at} bytes")
        if cursor.left:
            odd.append(f"{cursor.left} bytes after the end of the index were not read")
        return stored, odd
    finally:
        os.close(fd)


def check(path: str | os.PathLike[str]) -> IndexReport:
    """Walks through the structure of an index file up to its last byte. Raises DamageError for what does not fit."""
    container = read_container(path)
    fd = open_read(path)
    try:
        rows = dimension = None
        holds = False
        for blob in container.blobs:
            cursor = _cursor(fd, container, blob)
            if blob.name in _FAISS_BLOBS:
                index = _faiss(cursor, partial=False)
                rows, dimension, holds = index.declared, index.dimension, index.refusal is None
            elif blob.name in ("HNSW", "NSG"):
                _walk_hnsw(cursor) if blob.name == "HNSW" else _walk_nsg(cursor)
            else:
                continue
            if cursor.left:
                raise cursor.damage(f"{cursor.left} bytes after the end of {blob.name!r}")
        if container.type_name in ("HNSW", "RNSG", "ANNOY"):
            stored = _stored(fd, container, None, False)
            rows, dimension, holds = stored.rows, stored.dimension, True
    finally:
        os.close(fd)
    return IndexReport(str(path), container.type_name, container.blobs, rows, dimension, holds)


def _cursor(fd: int, container: Container, blob: Blob) -> Cursor:
    return Cursor(fd, container.path, blob.at, blob.at + blob.size)


def _stored(fd: int, container: Container, rows: int | None, partial: bool) -> StoredVectors:
    name = container.type_name
    partial = partial and container.cut
    if name == "HNSW":
        return _hnsw(_cursor(fd, container, container.blob("HNSW")), partial)
    if name == "RNSG":
        return _nsg(_cursor(fd, container, container.blob("NSG")), partial)
    if name == "ANNOY":
        return _annoy(fd, container, rows, partial)
    if name.startswith("SPTAG"):
        raise UsageError(f"{container.path}: an index of type {name} is not read; the vectors have to come from elsewhere")
    blob = container.blob("BinaryIVF" if name.startswith("BIN_") else "IVF")
    return _faiss_vectors(_cursor(fd, container, blob), name, partial=partial)


def _faiss_vectors(cursor: Cursor, name: str, *, partial: bool) -> StoredVectors:
    """The rows of the Faiss index at the cursor, which moves past it."""
    path = str(cursor.path)
    index = _faiss(cursor, partial)
    if index.runs is None or index.refusal:
        raise UsageError(f"{path}: an index of type {name} does not hold the vectors: {index.refusal}")
    vector_type = VectorType.BINARY if index.binary else VectorType.FLOAT
    count = index.runs.total
    lost = index.declared - count  # cut off, or in no list, as vectors that are no numbers
    if lost < index.lost or (lost > index.lost and index.nlist is None):
        raise DamageError(path, f"{count + index.lost} rows in the lists of an index of {index.declared}")
    metric = milvus_metric(index.metric, index.binary)
    data = rows_of(index, path)
    return StoredVectors(path, name, vector_type, index.dimension, count, lost, data, index.declared, metric, index.own_ids)


def _faiss(cursor: Cursor, partial: bool) -> Index:
    at = cursor.at
    try:
        index = read_index(cursor, partial=partial)
    except UnknownKind as e:
        raise DamageError(cursor.path, f"no index of a kind that Milvus 1.x writes (found {e.kind!r})", offset=at) from e
    if index.on_disk or index.transforms or index.duplicates:
        raise DamageError(cursor.path, f"Milvus 1.x does not write an {index.name}", offset=at)
    return index


def _float_rows(  # many: what an index file says of its rows, field by field
    cursor: Cursor, kind: str, dimension: int, rows: int, lost: int, data: Rows, metric: str | None
) -> StoredVectors:
    path = str(cursor.path)
    return StoredVectors(path, kind, VectorType.FLOAT, dimension, rows, lost, data, rows + lost, metric)


def _checked_dimension(cursor: Cursor, dimension: int) -> int:
    if not 0 < dimension <= _MAX_DIMENSION:
        raise cursor.damage(f"{dimension} dimensions")
    return dimension


# HNSW ----------------------------------------------------------------------------------------------------------------


def _hnsw(cursor: Cursor, partial: bool) -> StoredVectors:
    """hnswlib: elements of a fixed size, each with its links, its vector and its label (the row offset)."""
    at = cursor.at
    metric, data_size, dim, _, _, count, size, label_at, data_at, *_ = cursor.unpack(HNSW_HEADER, "the header of an HNSW index")
    _checked_dimension(cursor, dim)
    if data_size != 4 * dim or size > 1 << 30 or data_at + data_size > label_at or label_at + ID_BYTES > size:
        raise cursor.damage(f"elements of {size} bytes with {dim} dimensions at {data_at} and a label at {label_at}", at)
    here = min(count, cursor.left // size) if partial else count
    first = cursor.at
    if here * size > cursor.left:
        raise cursor.damage(f"{count} elements of {size} bytes, {cursor.left} bytes are left")
    cursor.skip(here * size, "the elements")
    runs = single_run(data_size, first + data_at, here, stride=size, ids_at=first + label_at, id_stride=size)
    path = str(cursor.path)
    data = Rows(path, path, runs, "f4", dim)
    return _float_rows(cursor, "HNSW", dim, here, count - here, data, {0: "L2", 1: "IP"}.get(metric))


def _walk_hnsw(cursor: Cursor) -> None:
    """The links of the upper levels: for each element a uint32 length and as many bytes; mostly the length is 0."""
    remaining = _hnsw(cursor, False).rows
    while remaining:
        window = cursor.take(min(cursor.left // 4, _LINK_WINDOW) * 4 or 4, "the links of an HNSW index")
        words = np.frombuffer(window, "<u4").tolist()
        at, end = 0, len(words)
        while remaining and at < end:
            length = words[at]
            if length % 4:
                raise cursor.damage(f"{length} bytes of links, which are numbers of 4 bytes", cursor.at - 4 * (end - at))
            at += 1 + length // 4
            remaining -= 1
        cursor.at -= 4 * (end - min(at, end))
        cursor.skip(4 * max(at - end, 0), "the links of an HNSW index")


# NSG -----------------------------------------------------------------------------------------------------------------


def _nsg(cursor: Cursor, partial: bool) -> StoredVectors:
    """All vectors, all ids (row offsets), then the graph. A file cut before the ids has them in order, as Milvus writes."""
    metric, count, dim = _nsg_header(cursor)
    width = 4 * _checked_dimension(cursor, dim)
    first = cursor.at
    here = min(count, cursor.left // width) if partial else count
    if here * width > cursor.left:
        raise cursor.damage(f"{count} vectors of {width} bytes, {cursor.left} bytes are left")
    cursor.skip(here * width, "the vectors")
    ids_at: int | None = cursor.at
    if cursor.left >= count * ID_BYTES:
        cursor.skip(count * ID_BYTES, "the ids")
    elif partial:
        cursor.at, ids_at = cursor.end, None
    else:
        raise cursor.damage(f"{count} ids, {cursor.left} bytes are left")
    path = str(cursor.path)
    data = Rows(path, path, single_run(width, first, here, ids_at=ids_at), "f4", dim)
    found = _float_rows(cursor, "RNSG", dim, here, count - here, data, {0: "L2"}.get(metric))
    return replace(found, own_ids=ids_at is not None)


def _nsg_header(cursor: Cursor) -> tuple[int, int, int]:
    """(metric, rows, dimension), with the metric in front or without (0.5 and 0.6, which had L2 only).

    Taken for the other one, the header of either form has 2^32 dimensions or more.
    """
    at = cursor.at
    count, dim, _ = cursor.unpack(_OLD_NSG, "the header of an NSG index")
    if 0 < dim <= _MAX_DIMENSION:
        return 0, count, dim
    cursor.at = at
    metric, count, dim, _ = cursor.unpack(_NSG, "the header of an NSG index")
    return metric, count, dim


def _walk_nsg(cursor: Cursor) -> None:
    for _ in range(_nsg(cursor, False).rows):
        degree = cursor.u64("the degree of a node")
        if degree > cursor.left // 8:
            raise cursor.damage(f"a node with {degree} neighbours, {cursor.left} bytes are left")
        cursor.skip(degree * 8, "the neighbours of a node")


# ANNOY ---------------------------------------------------------------------------------------------------------------


def _annoy(fd: int, container: Container, rows: int | None, partial: bool) -> StoredVectors:
    """Nodes of a fixed size; the first n are the rows in order, and the last, a root, tells n (as annoy itself finds out)."""
    numbers = _cursor(fd, container, container.blob("annoy_dim"))
    dim = _checked_dimension(numbers, numbers.u64("the dimension"))
    nodes = _cursor(fd, container, container.blob("annoy_index_data"))
    inner_product = _annoy_metric(fd, container, nodes, dim, rows)
    vector_at = _ANNOY_IP_AT if inner_product else _ANNOY_L2_AT
    size = vector_at + 4 * dim
    count = nodes.left // size
    first = nodes.at
    if container.cut and container.blobs[-1].name == "annoy_index_data":
        if rows is None:
            raise nodes.damage("a cut ANNOY index does not tell its number of rows")
        total, here = rows, min(rows, count)
    else:
        if nodes.left % size:
            raise nodes.damage(f"{nodes.left} bytes are no whole number of nodes of {size} bytes")
        total = here = 0
        if count:
            nodes.skip((count - 1) * size, "the nodes")
            total = here = nodes.u64("the number of rows below the root")
        if here > count:
            raise nodes.damage(f"{here} rows in {count} nodes")
    path = container.path
    data = Rows(path, path, single_run(4 * dim, first + vector_at, here, stride=size), "f4", dim)
    return _float_rows(nodes, "ANNOY", dim, here, total - here, data, "IP" if inner_product else "L2")


def _annoy_metric(fd: int, container: Container, nodes: Cursor, dim: int, rows: int | None) -> bool:
    """Whether the metric is IP. In a cut file the name of the metric, which comes last, is gone: then the node size tells."""
    if not container.cut:
        text = _cursor(fd, container, container.blob("annoy_metric_type"))
        name = text.take(min(text.left, 16), "the metric")
        if name not in (b"L2", b"IP"):
            raise text.damage(f"the metric is {name!r}, expected 'L2' or 'IP'")
        return name == b"IP"
    # every row is a leaf: its first field, the number of descendants, is 1
    probe = min(rows or 0, nodes.left // (_ANNOY_L2_AT + 4 * dim), 64)
    for vector_at in (_ANNOY_L2_AT, _ANNOY_IP_AT):
        size = vector_at + 4 * dim
        walk = Cursor(fd, container.path, nodes.at, nodes.end)
        if all(_leaf(walk, nodes.at + i * size) for i in range(probe)):
            return vector_at == _ANNOY_IP_AT
    raise nodes.damage("nodes that are not those of an ANNOY index")


def _leaf(walk: Cursor, at: int) -> bool:
    walk.at = at
    return walk.i64("a node") == 1
