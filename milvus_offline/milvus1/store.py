"""What a store holds: collections, partitions, and their pieces, as values to look into and to read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .. import fileio
from ..errors import MissingPackageError
from ..findings import Findings
from ..model import BATCH_BYTES, Batch, Finding, Piece, Schema, Vectors
from ..names import printable
from ..text import count
from .catalog.rows import Catalog
from .disk import Disk
from .layout import ID
from .live import LiveSet
from .location import Location
from .segment.files import Segment

if TYPE_CHECKING:
    from ..search import Found, Hits
    from ..search.blocks import Opened
    from .segment.rawfile import RawFile
    from .wal.log import Log
    from .wal.outcome import Replay
    from .wal.rows import LogRows


@dataclass(frozen=True, eq=False)
class Partition:
    """One partition: its live segments in catalog order, then its rows from the write-ahead log."""

    name: str
    schema: Schema
    segments: tuple[Segment | RawFile, ...]
    log: tuple[LogRows, ...] = ()

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        return (*self.segments, *self.log)

    @cached_property
    def rows(self) -> int:
        """Live rows, those of the log included: what an export brings."""
        return sum(p.rows for p in self.pieces)

    @cached_property
    def deleted(self) -> int:
        """Rows on disk that are deleted."""
        return sum(s.deleted for s in self.segments)

    @cached_property
    def wal_rows(self) -> int:
        return sum(r.rows for r in self.log)

    @cached_property
    def bytes(self) -> int:
        """Bytes of vectors and ids in segment files (deleted rows included) and in the log."""
        return sum(p.bytes for p in (*self.segments, *self.log))

    def batches(self, max_bytes: int = BATCH_BYTES, *, copy: bool = True) -> Iterator[Batch]:
        """All live rows; ids int64 [n], vectors float32 [n, d] or uint8 [n, d/8].

        With `copy=False`, which is faster, the arrays of a batch are overwritten by the next one.
        """
        for piece in self.pieces:
            yield from map(_kept, piece.batches(max_bytes)) if copy else piece.batches(max_bytes)

    def read(self, limit: int | None = None) -> Batch:
        """The live rows (the first `limit` of them) as arrays of their own. Without a limit all must fit in memory.

        Raises ValueError for a negative limit.
        """
        if limit is not None and limit < 0:
            raise ValueError(f"limit: expected 0 or more, found {limit}")
        rows = self.rows if limit is None else min(limit, self.rows)
        result = Batch(
            np.empty(rows, ID),
            np.empty((rows, self.schema.width), self.schema.dtype),
            {a.name: np.zeros(rows, a.dtype) for a in self.schema.attributes},
        )
        done = 0
        for batch in self.batches(copy=False):
            take = min(len(batch.ids), rows - done)
            result.ids[done : done + take] = batch.ids[:take]
            result.vectors[done : done + take] = batch.vectors[:take]
            for name, values in batch.attributes.items():
                result.attributes[name][done : done + take] = values[:take]
            done += take
            if done == rows:
                break
        return result

    def head(self, n: int = 5) -> Batch:
        """The first `n` live rows, see `read`."""
        return self.read(n)

    def to_arrow(self) -> Any:
        """All live rows as a pyarrow.Table, see `to_reader`, which streams them. All must fit in memory."""
        return self.to_reader().read_all()

    def to_pandas(self, limit: int | None = None) -> Any:
        """The live rows (the first `limit` of them) as a pandas.DataFrame: `id`, `vector` (an array a row), attributes
        (`arrow.attribute_columns`).

        Raises UsageError without pandas.
        """
        from ..arrow import attribute_columns

        pandas = _pandas()
        batch = self.read(limit)
        columns = zip(attribute_columns(self.schema), self.schema.attributes, strict=True)
        attributes = {column: batch.attributes[a.name] for column, a in columns}
        return pandas.DataFrame({"id": batch.ids, "vector": list(batch.vectors), **attributes})

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[tuple[int, Vectors]]:
        """(id, vector float32 [d] or uint8 [d/8]) of each live row, for looking at some; many are faster by `batches`."""
        for batch in self.batches(copy=False):
            for i, vector in zip(batch.ids.tolist(), batch.vectors, strict=True):
                yield i, vector.copy()

    def to_reader(self, batch_rows: int | None = None, *, with_name: bool = False) -> Any:
        """All live rows as a pyarrow.RecordBatchReader, streamed (see arrow.py); `with_name` adds a column `partition`."""
        from ..arrow import to_reader

        return to_reader(self.schema, [(self.name if with_name else None, self.pieces)], batch_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        kept = [(f"segment {s.id}", s.rows, s.deleted) for s in self.segments[:_SHOWN]]
        if more := self.segments[_SHOWN:]:
            kept.append((f"{len(more):,} more segments", sum(s.rows for s in more), sum(s.deleted for s in more)))
        if self.wal_rows:
            kept.append(("write-ahead log", self.wal_rows, 0))
        head = f"<p><b>{_escape(printable(self.name))}</b>: {self.rows:,} rows</p>"
        return head + _table(["where", "rows", "deleted"], kept)

    def __repr__(self) -> str:
        return f"<Partition {self.name!r}: {count(self.rows, 'row')}>"


@dataclass(frozen=True, eq=False)
class Collection(Mapping[str, Partition]):
    """One collection; a mapping of partition names to partitions, `_default` first."""

    schema: Schema
    partitions: tuple[Partition, ...]

    @classmethod
    def of(cls, schema: Schema, partitions: Iterable[Partition], findings: Findings) -> Collection:
        """The collection of these partitions; two with the same tag become one, with a finding."""
        by_tag: dict[str, Partition] = {}
        for partition in partitions:
            tag = partition.name
            if tag in by_tag:
                text = "two live partitions have this tag; their rows are put together"
                findings.warning("partition-twice", f"{schema.name}/{printable(tag)}", text)
                first = by_tag[tag]
                partition = replace(first, segments=first.segments + partition.segments, log=first.log + partition.log)
            by_tag[tag] = partition
        return cls(schema, tuple(by_tag.values()))

    @property
    def name(self) -> str:
        return self.schema.name

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.partitions)

    @property
    def deleted(self) -> int:
        return sum(p.deleted for p in self.partitions)

    @property
    def wal_rows(self) -> int:
        return sum(p.wal_rows for p in self.partitions)

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.partitions)

    def __getitem__(self, name: str) -> Partition:
        for partition in self.partitions:
            if partition.name == name:
                return partition
        raise UnknownName("partition", name, list(self))

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in self.partitions)

    def __len__(self) -> int:
        return len(self.partitions)

    @overload
    def get(self, key: str, default: Any = None, /) -> Any: ...
    @overload
    def get(self, key: npt.ArrayLike, default: None = None, /) -> Found: ...
    def get(self, key: Any, default: Any = None, /) -> Any:
        """All live rows with one of some ids (int64 [n]), see search.Found; with a name, the partition of that name as in any
        mapping. Raises DamageError for rows that cannot be read."""
        if isinstance(key, str):
            return super().get(key, default)
        from ..search import find_rows

        return find_rows(self.schema, self.partitions, key, opened=self._opened)

    @cached_property
    def _opened(self) -> Opened:
        """Files that one search leaves open for the next."""
        from ..search.blocks import Opened

        return Opened()

    def search(
        self, queries: npt.ArrayLike, k: int = 10, partitions: Sequence[str] | None = None, *, jobs: int | None = None
    ) -> Hits:
        """The `k` nearest live rows for each query (float32 [n, d] or uint8 [n, d/8]), exactly, see search.Hits.

        `partitions` names those to be searched, `jobs` is the number of threads (all processors, at most 4). Raises KeyError
        for an unknown partition, UsageError for queries of another shape, DamageError for rows that cannot be read.
        """
        from ..search import search

        chosen = self.partitions if partitions is None else [self[name] for name in partitions]
        return search(self.schema, chosen, queries, k, jobs=jobs, opened=self._opened)

    def batches(self, max_bytes: int = BATCH_BYTES, *, copy: bool = True) -> Iterator[Batch]:
        """All live rows of all partitions, see Partition.batches."""
        for partition in self.partitions:
            yield from partition.batches(max_bytes, copy=copy)

    def head(self, n: int = 5) -> Batch:
        """The first `n` live rows of its partitions together."""
        parts, left = [], n
        for partition in self.partitions:
            parts.append(partition.read(left))
            left -= len(parts[-1].ids)
        names = [a.name for a in self.schema.attributes]
        return Batch(
            np.concatenate([b.ids for b in parts]),
            np.concatenate([b.vectors for b in parts]),
            {name: np.concatenate([b.attributes[name] for b in parts]) for name in names},
        )

    def to_arrow(self) -> Any:
        """All live rows as a pyarrow.Table with a column `partition`, see `to_reader`."""
        return self.to_reader().read_all()

    def to_pandas(self) -> Any:
        """All live rows as a pandas.DataFrame with a column `partition`, see Partition.to_pandas."""
        pandas = _pandas()
        frames = [p.to_pandas().assign(partition=p.name) for p in self.partitions]
        return pandas.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)

    def to_reader(self, batch_rows: int | None = None, *, with_name: bool = True) -> Any:
        """All live rows of all partitions, with the column `partition`, see Partition.to_reader."""
        from ..arrow import to_reader

        parts = [(p.name if with_name else None, p.pieces) for p in self.partitions]
        return to_reader(self.schema, parts, batch_rows)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        rows = [(p.name, p.rows, p.deleted, p.wal_rows) for p in self.partitions]
        head = f"<p><b>{_escape(printable(self.name))}</b>: {_escape(repr(self)[1:-1].partition(': ')[2])}</p>"
        return head + _table(["partition", "rows", "deleted", "in the log"], rows)

    def __repr__(self) -> str:
        s = self.schema
        return f"<Collection {s.name!r}: {s.vector_type.value} {s.dimension}, {s.metric_type}, {count(self.rows, 'row')}>"


class UnknownName(KeyError):
    """A collection or partition that there is not; the message names those that are like it."""

    def __init__(self, what: str, name: object, there: Sequence[str]) -> None:
        super().__init__(name)
        from difflib import get_close_matches

        near = get_close_matches(str(name), there, 3, 0.5)
        known = ", ".join(map(repr, there[:20])) + (", …" if len(there) > 20 else "")
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {known or 'none'}"
        self._message = f"no {what} {name!r}; {hint}"

    def __str__(self) -> str:
        return self._message


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingPackageError("a DataFrame", "pandas", "pandas") from None
    return pandas


def _size_and_time(path: str) -> str:
    """Of a file, or what the disk says that refuses even these. Raises OSError where there is none."""
    try:
        status = fileio.status(path)
    except OSError as e:
        if isinstance(e, FileNotFoundError) or fileio.is_remote(path):
            raise
        return str(e.errno)
    return f"{status.st_size} {status.st_mtime_ns}"


def _kept(batch: Batch) -> Batch:
    """A batch of its own, which the next one does not overwrite."""
    return Batch(batch.ids.copy(), batch.vectors.copy(), {k: v.copy() for k, v in batch.attributes.items()})


def _escape(text: str) -> str:
    from html import escape

    return escape(text)


_SHOWN = 20
"""Segments of a partition that a notebook shows."""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table for a notebook; every name is escaped."""

    def line(cells: Sequence[object], tag: str) -> str:
        shown = (f"{c:,}" if isinstance(c, int) else _escape(printable(c)) for c in cells)
        return "<tr>" + "".join(f"<{tag} style='text-align:left'>{c}</{tag}>" for c in shown) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(r, 'td') for r in rows)}</table>"


@dataclass(frozen=True, eq=False)
class Store(Mapping[str, Collection]):
    """An opened store; a mapping of collection names to collections. Nothing in it is ever written."""

    path: Path
    location: Location
    catalog: Catalog
    collections: tuple[Collection, ...]
    findings: tuple[Finding, ...]
    selection: LiveSet = field(repr=False)
    disk: Disk = field(repr=False)
    wal: Log | None = None
    replay: Replay | None = None

    def __getitem__(self, name: str) -> Collection:
        for collection in self.collections:
            if collection.name == name:
                return collection
        raise UnknownName("collection", name, list(self))

    def __iter__(self) -> Iterator[str]:
        return (c.name for c in self.collections)

    def __len__(self) -> int:
        return len(self.collections)

    @property
    def rows(self) -> int:
        return sum(c.rows for c in self.collections)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what would be read: names, row counts, and sizes and times of the files."""
        import xxhash

        digest = xxhash.xxh3_128()
        for collection in self.collections:
            digest.update(repr(collection.schema).encode())
            for partition in collection.partitions:
                digest.update(f"{partition.name!r} {partition.rows}".encode("utf-8", "surrogateescape"))
                for segment in partition.segments:
                    digest.update(f"{segment.id} {segment.rows} {segment.deleted}".encode())
                    for path in segment.paths:
                        digest.update(_size_and_time(path).encode())
                for rows in partition.log:
                    for file in rows.files:
                        digest.update(f"{file.number} {_size_and_time(file.path)}".encode())
                    digest.update(rows.spans.tobytes() + rows.dead.tobytes() + rows.first.to_bytes(8, "little"))
        return digest.hexdigest()

    def _repr_html_(self) -> str:
        rows = [
            (
                c.name,
                c.rows,
                len(c.partitions),
                f"{c.schema.vector_type.value} {c.schema.dimension}",
                c.schema.metric_type or "",
            )
            for c in self.collections
        ]
        head = f"<p>Milvus store <code>{_escape(printable(self.path))}</code>: {self.rows:,} rows</p>"
        return head + _table(["collection", "rows", "partitions", "vectors", "metric"], rows)

    def __repr__(self) -> str:
        lines = [f"<Store {str(self.path)!r}: {count(len(self), 'collection')}, {count(self.rows, 'row')}>"]
        lines += [f"  {c!r}" for c in self.collections]
        return "\n".join(lines)
