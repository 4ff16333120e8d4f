"""The words that all rooms share: what a collection is, what a batch of rows is, what a finding is.

Plain frozen values without I/O. A *source* offers collections, a collection has partitions, a partition has pieces, and a
piece gives batches. Pieces are picklable, so that the same list can be worked off here, in a pool or on a cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

DEFAULT_PARTITION = "_default"
"""Name of the partition that every collection has (FORMAT §1.2)."""

Advance = Callable[[int, int], None]
"""advance(rows, bytes): so much more is done. Called after each batch; raises Stopped when the run is being given up."""

BATCH_BYTES = 2 << 20
"""Default size of a batch: a reused buffer that fits the caches is as fast as `cp`."""

Array = npt.NDArray[Any]
Vectors = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""Vectors as stored: float32 [n, d], or uint8 [n, d/8] whose bits are the dimensions; of one collection all are alike."""

_ALIGNMENT = 64


def buffer(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """A new, uninitialised array that files are read into: it begins at a multiple of 64 bytes.

    The system copies what lies 8 bytes after a page several times slower to 16 bytes after one, where numpy puts large arrays.
    """
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    octets = np.empty(nbytes + _ALIGNMENT, np.uint8)
    at = -octets.ctypes.data % _ALIGNMENT
    return octets[at : at + nbytes].view(kind).reshape(shape)


class VectorType(str, Enum):
    """How a vector is stored: float32 per dimension, or one bit per dimension."""

    FLOAT = "float"
    BINARY = "binary"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of a row: little-endian float32, or uint8 holding eight dimensions."""
        return np.dtype("<f4") if self is VectorType.FLOAT else np.dtype("u1")

    def width(self, dimension: int) -> int:
        """Elements per row."""
        return dimension if self is VectorType.FLOAT else dimension // 8


@dataclass(frozen=True)
class IndexSpec:
    """The index that the user asked for, by its Milvus name (`FLAT`, `IVF_FLAT`, `HNSW`, ...) with its build parameters."""

    type: str = "FLAT"
    params: Mapping[str, Any] = field(default_factory=dict)


class Attribute(NamedTuple):
    """A scalar field of a hybrid collection (Milvus 0.9-1.0)."""

    name: str
    dtype: str
    """numpy dtype string, little endian, e.g. `<i4`."""


class VectorShape:
    """What a vector of one kind and dimension takes, for classes that have these two."""

    dimension: int
    vector_type: VectorType

    @property
    def width(self) -> int:
        """Elements per vector as stored."""
        return self.vector_type.width(self.dimension)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of a vector as stored."""
        return self.vector_type.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector as stored."""
        return self.width * self.dtype.itemsize


@dataclass(frozen=True)
class Schema(VectorShape):
    """What a collection is, apart from its rows.

    `dimension` counts bits for binary vectors. `metric_type` and `index` use Milvus' names. `index_file_size` is in bytes.
    `auto_id` is None where nothing tells (nothing was inserted yet, or the source has no such notion).
    """

    name: str
    dimension: int
    vector_type: VectorType = VectorType.FLOAT
    metric_type: str | None = None
    index: IndexSpec = IndexSpec()
    index_file_size: int | None = None
    auto_id: bool | None = None
    attributes: tuple[Attribute, ...] = ()


Places = npt.NDArray[np.int64]
NOWHERE: Places = np.empty(0, np.int64)


class Batch(NamedTuple):
    """Some rows. `ids` int64 [n]; `vectors` float32 [n, d] or uint8 [n, d/8]; `attributes` name -> [n].

    `lost`: rows that cannot be read and are left out, by their places, sorted, among the n + len(lost) that the batch would
    have; there are none but while somebody watches (`watch.py`). Arrays may be views of a buffer that the next batch
    overwrites: copy what is to be kept.
    """

    ids: npt.NDArray[np.int64]
    vectors: Vectors
    attributes: Mapping[str, Array] = {}
    lost: Places = NOWHERE

    def __repr__(self) -> str:
        return f"<Batch of {len(self.ids):,} rows: vectors {self.vectors.dtype} {list(self.vectors.shape)}>"

    @property
    def span(self) -> int:
        """Rows, those that are left out as well."""
        return len(self.ids) + len(self.lost)

    def part(self, first: int, last: int) -> Batch:
        """The batch's rows from the place `first` up to `last`; a place is as in `lost`."""
        a, b = first, last
        if len(self.lost):
            a, b = (place - int(np.searchsorted(self.lost, place)) for place in (first, last))
        attributes = {name: values[a:b] for name, values in self.attributes.items()}
        inside = self.lost[(self.lost >= first) & (self.lost < last)] - first if len(self.lost) else NOWHERE
        return Batch(self.ids[a:b], self.vectors[a:b], attributes, inside)


@runtime_checkable
class Piece(Protocol):
    """A part of a partition that can be read on its own. Picklable."""

    @property
    def id(self) -> str:
        """Stable name within its partition: the same source gives the same ids in the same order."""

    @property
    def rows(self) -> int:
        """Rows that `batches` gives, exactly, but for those that are `Batch.lost`."""

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """All rows in a stable order from the `start`-th on; a batch holds at most `max_bytes` of vectors (at least a row)."""


def files_of(piece: Piece) -> Sequence[str]:
    """The files that a piece is read from, where its `paths` tell."""
    paths: Sequence[str] = getattr(piece, "paths", ())
    return paths


class SourcePartition(NamedTuple):
    """One partition as a source offers it."""

    name: str
    pieces: Sequence[Piece]

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.pieces)


@dataclass(frozen=True)
class SourceCollection:
    """One collection as a source offers it."""

    schema: Schema
    partitions: Sequence[SourcePartition]
    has_ids: bool = True
    """False: the ids of its batches are only row numbers, so a target that can makes its own."""

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.partitions)


SalvageKind = Literal["unseen", "unacknowledged", "orphans", "unfinished", "to-delete", "dropped", "deleted"]
"""What each means: `milvus1.salvage.KINDS`."""


class Salvaged(NamedTuple):
    """Rows that a server never shows, salvaged on request; they are always kept apart from live ones."""

    kind: SalvageKind
    schema: Schema
    partition: str
    pieces: Sequence[Piece]
    reason: str

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.pieces)


class Severity(str, Enum):
    """INFO: nothing is missing, or a state was resolved with certainty. WARNING: what came out may be wrong or incomplete.
    ERROR: rows, or what belongs to them, are lost or differ.

    A run with any WARNING or ERROR ends with exit code 3.
    """

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """Something a person should know, as data. `code` is a stable slug; `rows` the number of rows concerned, if known."""

    severity: Severity
    code: str
    where: str
    message: str
    rows: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "severity": self.severity.value}


class Source(Protocol):
    """Where rows come from."""

    kind: str
    """What it is: a name of `sources.KINDS`."""
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    salvage: Sequence[Salvaged]
    """What was asked to be salvaged; empty for sources other than stores."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source; no secrets."""

    def fingerprint(self) -> str:
        """Changes when the source changes; a resumed run refuses a source that is not the one it began with."""
