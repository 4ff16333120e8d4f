"""Rows as a person looks at them: where each comes from, what its vector begins and ends with, how long it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import UsageError
from .guard import explained
from .milvus1.segment.files import Segment
from .milvus1.wal.rows import LogRows
from .model import Array, Batch, Piece, Schema, SourceCollection, VectorType
from .names import printable
from .search import find_rows

Ids = npt.NDArray[np.int64]
_SHOWN = 3
"""Components at the beginning and at the end of a vector."""
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Row:
    """One row. `origin` is `segment NAME`, `log` or `file NAME`; `vector` float32 [d] or uint8 [d/8]."""

    id: int
    partition: str
    origin: str
    vector: Array

    @property
    def norm(self) -> float:
        """The vector's length; of a binary vector the number of its bits that are 1."""
        if self.vector.dtype == np.uint8:
            return float(np.bitwise_count(self.vector).sum())
        return float(np.linalg.norm(self.vector.astype(np.float64)))


@dataclass(frozen=True)
class Look:
    """Some rows of one collection. `of` counts the rows of the same kind that there are, where ids were not asked for."""

    schema: Schema
    rows: Sequence[Row]
    of: int | None = None
    deleted: bool = False


def read_ids(given: Sequence[int], path: str | None) -> Ids | None:
    """The ids of --id and --ids-file; None when neither was given. Raises UsageError for what is no int64."""
    if not given and path is None:
        return None
    parts = [_as_ids(list(given), "--id")] if given else []
    if path is not None:
        try:
            if path.endswith(".npy"):
                parts.append(_as_ids(np.load(path, allow_pickle=False), path))
            else:
                parts.append(_as_ids([int(line) for line in Path(path).read_text().split()], path))
        except (OSError, ValueError) as e:
            raise UsageError(f"{path}: expected whole numbers, one a line, or an int64 array in a .npy file: {e}") from e
        if not len(parts[-1]):
            raise UsageError(f"{path}: there are no ids in this file")
    return np.concatenate(parts)


def _as_ids(values: Any, where: str) -> Ids:
    array = np.asarray(values)
    if array.size and (array.dtype.kind not in "iu" or int(array.max()) > np.iinfo(np.int64).max):
        raise UsageError(f"{where}: expected whole numbers of 64 bits (-2**63 to 2**63 - 1), found {array.reshape(-1)[0]!r}")
    result: Ids = array.reshape(-1).astype(np.int64)
    return result


def look_at(collection: SourceCollection, limit: int, deleted: bool = False) -> Look:
    """The first `limit` rows of each partition, live ones or deleted ones that can still be read."""
    rows: list[Row] = []
    total = 0
    for partition in collection.partitions:
        left = limit
        for piece in partition.pieces:
            total += piece.rows if not deleted else piece.deleted_rows if isinstance(piece, Segment) else 0
            batches = _deleted(piece) if deleted else piece.batches(_READ_BYTES)
            for batch in batches if left else ():
                taken = min(left, len(batch.ids))
                rows += [
                    Row(int(batch.ids[i]), partition.name, origin_of(piece), batch.vectors[i].copy()) for i in range(taken)
                ]
                left -= taken
                if not left:
                    break
    return Look(collection.schema, rows, total, deleted)


def _deleted(piece: Piece) -> Sequence[Batch] | Any:
    return piece.deleted_batches(_READ_BYTES) if isinstance(piece, Segment) and piece.deleted_rows else ()


def look_up(collection: SourceCollection, ids: Ids) -> Look:
    """All live rows with one of these ids."""
    found = find_rows(collection.schema, collection.partitions, np.unique(ids))
    pieces = {(p.name, piece.id): piece for p in collection.partitions for piece in p.pieces}
    rows = [
        Row(int(i), tag, origin_of(pieces[tag, piece]), vector)
        for i, tag, piece, vector in zip(found.ids, found.partitions, found.pieces, found.vectors, strict=True)
    ]
    return Look(collection.schema, rows)


def origin_of(piece: Piece) -> str:
    """Where the rows of a piece come from, in words."""
    if isinstance(piece, LogRows):
        return "log"
    return f"{'segment' if isinstance(piece, Segment) else 'file'} {piece.id}"


def missing(looks: Sequence[Look], ids: Ids) -> list[int]:
    """Those of `ids` that no row has."""
    there = {row.id for look in looks for row in look.rows}
    return sorted({int(i) for i in ids} - there)


def components(vector: Array) -> list[Any]:
    """A vector as JSON numbers: float32 as the shortest number that means it, None for what is no number."""
    if vector.dtype == np.uint8:
        return [int(x) for x in vector]
    return [float(str(x)) if math.isfinite(x) else None for x in vector]


def document(path: str, looks: Sequence[Look], ids: Ids | None) -> dict[str, Any]:
    """What `rows --json` prints."""
    result: dict[str, Any] = {"format": "milvus-offline-rows", "version": 1, "path": path}
    result["collections"] = [
        {
            "name": look.schema.name,
            "dimension": look.schema.dimension,
            "vector_type": look.schema.vector_type.value,
            "metric_type": look.schema.metric_type,
            "rows": [
                {
                    "id": row.id,
                    "partition": row.partition,
                    "from": row.origin,
                    "deleted": look.deleted,
                    "norm": row.norm if math.isfinite(row.norm) else None,
                    "vector": components(row.vector),
                }
                for row in look.rows
            ],
        }
        for look in looks
    ]
    if ids is not None:
        result["missing"] = missing(looks, ids)
    return result


def write_npy(path: str, looks: Sequence[Look]) -> None:
    """The vectors as one array in `path`, their ids beside it. Raises UsageError when they do not fit into one array."""
    kinds = {(look.schema.width, look.schema.vector_type) for look in looks}
    if len(kinds) != 1:
        raise UsageError("the collections have vectors of different kinds, which are no single array: choose one with -c")
    schema = looks[0].schema
    rows = [row for look in looks for row in look.rows]
    vectors = np.array([row.vector for row in rows], schema.dtype).reshape(len(rows), schema.width)
    ids = np.array([row.id for row in rows], np.int64)
    for target, array in ((path, vectors), (f"{path.removesuffix('.npy')}.ids.npy", ids)):
        with explained("write rows", target), open(target, "wb") as f:
            np.save(f, array)


def table(looks: Sequence[Look], ids: Ids | None) -> str:
    """Rows as text."""
    lines: list[str] = []
    for look in looks:
        schema = look.schema
        if ids is not None and not look.rows:
            continue
        kind = "binary, " if schema.vector_type is VectorType.BINARY else ""
        shown = f"{len(look.rows):,} of {look.of:,} {'deleted ' if look.deleted else ''}rows" if look.of is not None else ""
        metric = f", {schema.metric_type}" if schema.metric_type else ""
        lines.append(f"{printable(schema.name)}: {kind}dimension {schema.dimension}{metric}{': ' + shown if shown else ''}")
        cells = [("id", "partition", "from", "bits" if kind else "norm", "vector")]
        cells += [
            (str(r.id), printable(r.partition), printable(r.origin), f"{r.norm:.6g}", _short(r.vector)) for r in look.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(4)]
        for row in cells if look.rows else ():
            texts = (row[0].rjust(widths[0]), row[1].ljust(widths[1]), row[2].ljust(widths[2]), row[3].rjust(widths[3]), row[4])
            lines.append("  " + "  ".join(texts))
        lines.append("")
    if ids is not None and (absent := missing(looks, ids)):
        some = ", ".join(map(str, absent[:20])) + (", …" if len(absent) > 20 else "")
        lines.append(f"No live row has the id{'s' if len(absent) > 1 else ''} {some}")
    return "\n".join(lines).rstrip()


def _short(vector: Array) -> str:
    """The first and the last components."""
    texts = [f"{x:02x}" for x in vector] if vector.dtype == np.uint8 else [f"{x:.5g}" for x in vector]
    if len(texts) > 2 * _SHOWN + 1:
        texts = [*texts[:_SHOWN], "…", *texts[-_SHOWN:]]
    return " ".join(texts)
