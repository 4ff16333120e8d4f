"""Rows as a person looks at them: where each comes from, what its vector begins and ends with, how long it is."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DamageError, UsageError
from .guard import explained
from .milvus1.salvage import everything
from .milvus1.segment.files import Segment
from .milvus1.store import Store
from .milvus1.wal.rows import LogRows
from .model import Array, Batch, Piece, Schema, Source, SourceCollection, SourcePartition, VectorType
from .names import printable
from .search import find_rows
from .selection import Selection
from .text import Screen, count, named

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
        if not Path(path).exists():  # a pipe is fine
            raise UsageError(f"{path}: there is no such file or folder")
        try:
            if path.endswith(".npy"):
                parts.append(_as_ids(np.load(path, allow_pickle=False), path))
            else:
                parts.append(_as_ids([int(line) for line in Path(path).read_text().split()], path))
        except (OSError, ValueError) as e:
            wrong = re.search(r"with base 10: ('.*')", str(e))
            found = f"found {wrong[1]}" if wrong else str(e)
            raise UsageError(f"{path}: expected whole numbers, one a line, or an int64 array in a .npy file: {found}") from e
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


def _deleted(piece: Piece) -> Iterable[Batch]:
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


@dataclass(frozen=True)
class NotLive:
    """Ids of rows that are in the files and not live. `kind` is what --salvage calls them."""

    kind: str
    collection: str
    partition: str
    ids: Sequence[int]


def look_elsewhere(source: Source, chosen: Selection, ids: Sequence[int]) -> list[NotLive]:
    """Where ids that no live row has are still in a store: deleted rows, and all else that can be salvaged and read."""
    store: Store | None = getattr(source, "store", None)
    found: dict[tuple[str, str, str], set[int]] = {}
    for salvaged in everything(store) if store is not None and ids else ():
        name, partition = salvaged.schema.name, salvaged.partition
        if chosen.takes(name, partition):
            with contextlib.suppress(DamageError, OSError):
                there = find_rows(salvaged.schema, [SourcePartition(partition, salvaged.pieces)], ids).ids
                if len(there):
                    found.setdefault((salvaged.kind, name, partition), set()).update(there.tolist())
    return [NotLive(*place, sorted(there)) for place, there in found.items()]


def document(path: str, looks: Sequence[Look], ids: Ids | None, elsewhere: Sequence[NotLive] = ()) -> dict[str, Any]:
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
        result["not_live"] = [
            {"id": i, "collection": e.collection, "partition": e.partition, "salvage": e.kind} for e in elsewhere for i in e.ids
        ]
    return result


def ids_file_of(path: str) -> str:
    """The file of ids beside the file of vectors `path`."""
    return f"{path.removesuffix('.npy')}.ids.npy"


def write_npy(path: str, looks: Sequence[Look]) -> None:
    """The vectors as one array in `path`, their ids beside it. Raises UsageError when they do not fit into one array."""
    kinds = {(look.schema.width, look.schema.vector_type) for look in looks}
    if len(kinds) != 1:
        raise UsageError("the collections have vectors of different kinds, which are no single array: choose one with -c")
    schema = looks[0].schema
    rows = [row for look in looks for row in look.rows]
    vectors = np.array([row.vector for row in rows], schema.dtype).reshape(len(rows), schema.width)
    ids = np.array([row.id for row in rows], np.int64)
    for target, array in ((path, vectors), (ids_file_of(path), ids)):
        with explained("write rows", target), open(target, "wb") as f:
            np.save(f, array)


def absent_ids(looks: Sequence[Look], ids: Ids, elsewhere: Sequence[NotLive] = ()) -> list[str]:
    """The sentences on ids that no live row has; nothing where each has one."""
    absent = missing(looks, ids)
    lines = [f"No live row has the id{'s' if len(absent) > 1 else ''} {_some(absent)}"] if absent else []
    return lines + [
        f"Not live, but still there: {_some(e.ids)} in {named(e.collection)}/{named(e.partition)}; an export with --salvage "
        f"{e.kind} brings such rows apart from the live ones"
        for e in elsewhere
    ]


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:20])) + (", …" if len(ids) > 20 else "")


def show_rows(screen: Screen, looks: Sequence[Look], ids: Ids | None, elsewhere: Sequence[NotLive] = ()) -> None:
    """Rows for a person, in lines that the screen has room for."""
    shown = [look for look in looks if ids is None or look.rows]
    for number, look in enumerate(shown):
        schema = look.schema
        kind = "binary, " if schema.vector_type is VectorType.BINARY else ""
        many = "" if look.of is None else _how_many(look)
        metric = f", {schema.metric_type}" if schema.metric_type else ""
        if number:
            screen.say()
        facts = f": {kind}dimension {schema.dimension}{metric}{': ' + many if many else ''}"
        screen.parts([(named(schema.name), "bold"), (facts, "")])
        if look.rows:
            _show_table(screen, look.rows, "bits" if kind else "norm")
    if ids is not None and (told := absent_ids(looks, ids, elsewhere)):
        if shown:
            screen.say()
        for line in told:
            screen.say(line)


def _how_many(look: Look) -> str:
    kind = "deleted row" if look.deleted else "row"
    if not look.of:
        return f"no {kind} is in its files" if look.deleted else "no rows"
    return f"{len(look.rows):,} of {count(look.of, kind)}"


def _show_table(screen: Screen, rows: Sequence[Row], length: str) -> None:
    """Id, partition, origin, length and as many components as there is room for: names are cut before the last two."""
    from rich.cells import cell_len

    ids, norms = (["id", *(str(r.id) for r in rows)], [length, *(f"{r.norm:.6g}" for r in rows)])
    names, origins = (["partition", *(named(r.partition) for r in rows)], ["from", *(printable(r.origin) for r in rows)])
    wide = [max(map(cell_len, column)) for column in (ids, norms, names, origins)]
    least = wide[0] + wide[1] + min(wide[2], 8) + min(wide[3], 8)
    vectors: list[str] = []
    for most, digits in (*((n, 5) for n in range(_SHOWN, 0, -1)), (1, 3), (1, 2)):
        vectors = [_short(r.vector, most, digits) for r in rows]
        others = wide[0] + wide[1] + min(wide[2], 24) + wide[3] if most > 1 else least
        needed = others + max(map(len, vectors)) + 10
        if needed <= screen.width:
            break
    if sum(wide) + max(map(len, vectors)) + 10 > screen.width:
        origins = [origins[0], *(re.sub(r"\b\d*(\d{6})$", r"…\1", origin) for origin in origins[1:])]
        wide[3] = max(map(cell_len, origins))
    left = screen.width - wide[0] - wide[1] - max(map(len, vectors)) - 10
    origin = min(wide[3], max(left - wide[2], left // 2, 8))
    name = min(wide[2], max(left - origin, 8))
    cells = zip(ids, names, origins, norms, ["vector", *vectors], strict=True)
    for number, (i, n, o, length, vector) in enumerate(cells):
        texts = (i.rjust(wide[0]), screen.fitted(n, name), screen.fitted(o, origin), length.rjust(wide[1]), vector)
        screen.verbatim("  ".join(texts).rstrip(), indent=2, style="" if number else "dim")


def _short(vector: Array, most: int = _SHOWN, digits: int = 5) -> str:
    """The first and the last `most` components."""
    texts = [f"{x:02x}" for x in vector] if vector.dtype == np.uint8 else [f"{x:.{digits}g}" for x in vector]
    if len(texts) > 2 * most + 1:
        texts = [*texts[:most], "…", *texts[-most:]]
    return " ".join(texts)
