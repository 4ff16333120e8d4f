"""What must be known of all rows before the first is sent: ids that occur twice, and vectors that are not finite.

One pass over the source. Memory stays flat at any number of rows: ids go with their positions into buckets on disk (16
bytes a row, removed afterwards), which are sorted one by one. Positions number the rows of a collection in source order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...guard import explained
from ...model import SourceCollection, Vectors, VectorType

Positions = npt.NDArray[np.int64]

BUCKET_ROWS = 1 << 20
"""Ids that are sorted at once (about 40 MB)."""
EXAMPLES = 10


@dataclass(frozen=True)
class Scan:
    """What the pass found. `dropped`: sorted positions of the rows that the chosen policies leave out, or that cannot be read
    (while somebody watches, see `watch.py`)."""

    rows: int
    duplicate_ids: int
    duplicate_rows: int
    duplicate_examples: tuple[int, ...]
    nonfinite_rows: int
    nonfinite_examples: tuple[int, ...]
    norms: tuple[float, float] | None
    dropped: Positions
    largest_id: int | None = None


def scan(  # long: one pass over the rows, and all the counters belong to it
    collection: SourceCollection,
    *,
    ids: bool = True,
    drop_duplicates: str | None = None,
    drop_nonfinite: bool = False,
    folder: Path | None = None,
    advance: Callable[[int, int], None] = lambda rows, nbytes: None,
) -> Scan:
    """Reads every row of `collection` once.

    `ids` False: ids do not matter, they are not compared. `drop_duplicates`: `first` or `last` keeps that one of the rows
    of an id. `drop_nonfinite`: rows holding NaN or Inf are left out (they do not count as duplicates either).
    `folder` is where buckets go when there are too many rows for the memory.
    """
    schema = collection.schema
    floating = schema.vector_type is VectorType.FLOAT
    bad_positions: list[Positions] = []
    bad_examples: list[int] = []
    norms: tuple[float, float] | None = None
    position = 0
    unreadable: list[Positions] = []
    largest = -(2**63)
    with explained("compare ids", folder or tempfile.gettempdir()), _Buckets(collection.rows if ids else 0, folder) as buckets:
        for partition in collection.partitions:
            for piece in partition.pieces:
                for number, batch in enumerate(piece.batches()):
                    n = len(batch.vectors)
                    good = slice(None)
                    here = np.arange(position, position + batch.span)
                    if len(batch.lost):
                        unreadable.append(here[batch.lost])
                        here = np.delete(here, batch.lost)
                    if floating:
                        finite = finite_rows(batch.vectors)
                        if finite is not None:
                            bad = np.flatnonzero(~finite)
                            bad_positions.append(here[bad])
                            bad_examples += batch.ids[bad[: EXAMPLES - len(bad_examples)]].tolist()
                            good = np.flatnonzero(finite)  # type: ignore[assignment]
                        elif number == 0:
                            norms = _norms(batch.vectors[:256], norms)
                    if ids:
                        largest = max(largest, int(batch.ids[good].max(initial=largest)))
                        buckets.add(batch.ids[good], here[good])
                    advance(n, batch.vectors.nbytes)
                    position += batch.span
        found = buckets.resolve(drop_duplicates)
    nonfinite = np.concatenate([np.empty(0, np.int64), *bad_positions])
    dropped = np.union1d(found.dropped, nonfinite) if drop_nonfinite else found.dropped
    if unreadable:
        dropped = np.union1d(dropped, np.concatenate(unreadable))
    return Scan(
        position,
        found.ids,
        found.rows,
        tuple(found.examples),
        len(nonfinite),
        tuple(bad_examples),
        norms,
        np.asarray(dropped, np.int64),
        largest if ids and position else None,
    )


def finite_rows(vectors: Vectors) -> npt.NDArray[np.bool_] | None:
    """None when all rows are finite, else which are. One sum decides in the usual case."""
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(vectors, axis=None)):
            return None
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(vectors), axis=1)
    return None if finite.all() else finite


def _norms(vectors: Vectors, so_far: tuple[float, float] | None) -> tuple[float, float] | None:
    if not len(vectors):
        return so_far
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors.astype(np.float64), vectors))
    low, high = float(lengths.min()), float(lengths.max())
    return (low, high) if so_far is None else (min(low, so_far[0]), max(high, so_far[1]))


@dataclass
class _Found:
    ids: int
    rows: int
    examples: list[int]
    dropped: Positions


class _Buckets:
    """Pairs (id, position), split by a hash of the id so that equal ids meet in one bucket."""

    def __init__(self, rows: int, folder: Path | None) -> None:
        self._bits = max(0, (rows - 1) // BUCKET_ROWS).bit_length()
        self._pairs: list[npt.NDArray[np.int64]] = []
        self._held = 0
        self._folder = tempfile.TemporaryDirectory(prefix="ids-", dir=folder) if self._bits else None

    def __enter__(self) -> _Buckets:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            self._folder.cleanup()

    def add(self, ids: npt.NDArray[np.int64], positions: Positions) -> None:
        self._pairs.append(np.column_stack((ids, positions)))
        self._held += len(ids)
        if self._bits and self._held >= BUCKET_ROWS:
            self._spill()

    def _spill(self) -> None:
        assert self._folder
        pairs = np.concatenate(self._pairs)
        bucket = (pairs[:, 0].view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - self._bits)
        order = np.argsort(bucket, kind="stable")
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=1 << self._bits))
        start = 0
        for number, end in enumerate(ends.tolist()):
            if end > start:
                with (Path(self._folder.name) / str(number)).open("ab") as f:
                    pairs[order[start:end]].tofile(f)
            start = end
        self._pairs, self._held = [], 0

    def _each(self) -> Iterator[npt.NDArray[np.int64]]:
        if not self._folder:
            if self._pairs:
                yield np.concatenate(self._pairs)
            return
        if self._pairs:
            self._spill()
        for path in sorted(Path(self._folder.name).iterdir()):
            yield np.fromfile(path, np.int64).reshape(-1, 2)
            path.unlink()

    def resolve(self, drop: str | None) -> _Found:
        found = _Found(0, 0, [], np.empty(0, np.int64))
        dropped: list[Positions] = []
        for pairs in self._each():
            pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
            same = pairs[1:, 0] == pairs[:-1, 0]
            if not same.any():
                continue
            twice = np.unique(pairs[1:, 0][same])
            found.ids += len(twice)
            found.rows += int(same.sum())
            found.examples += twice[: EXAMPLES - len(found.examples)].tolist()
            if drop == "first":
                dropped.append(pairs[1:, 1][same])
            elif drop == "last":
                dropped.append(pairs[:-1, 1][same])
        if dropped:
            found.dropped = np.sort(np.concatenate(dropped))
        return found
