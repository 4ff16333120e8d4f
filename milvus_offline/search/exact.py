"""The k nearest rows of some queries, exactly, in flat memory: one pass over all rows, whatever the number of queries.

Threads take blocks of rows; rows that may be among the nearest are collected and now and then sorted into the shared result.
Of rows with equal distance the one that an export would bring first comes first, so the result does not depend on the threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..machine import default_jobs
from ..model import Array, Schema, VectorType
from ..turns import wait_for
from ..watch import watch
from .blocks import Block, Named, Opened, Tile, blocks_of
from .metrics import DIRECT, Floats, Ints, Kernel, Scores, check_metric, default_metric, kernel

_TILE_SCORES = 1 << 18
"""Scores (queries times rows) worked on at once: they stay in the cache."""
_TILE_BYTES = 1 << 19
_ONE_TILE_BYTES = 16 << 20
"""Of a single query: there is nothing to find in the cache again."""
_MOST_ROWS = 1 << 15
_QUERIES = 256
"""Queries in one matrix product."""
_PENDING = 1 << 15
"""Candidates that a thread collects at least before it sorts them into the result."""
_EXACT_BYTES = 8 << 20
_NO_ROW = np.iinfo(np.int64).max
_NONE = np.empty(0, np.int64)


class Hits(NamedTuple):
    """The nearest rows, the best first. `ids` int64 [queries, k] with -1 where there are no more hits, `distances` float32
    [queries, k], `partitions` int32 [queries, k]: numbers of `names`, -1 where there is no hit. k is the number asked for, or
    that of all rows if there are fewer."""

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]
    partitions: npt.NDArray[np.int32]
    names: tuple[str, ...]


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


def as_queries(queries: npt.ArrayLike, schema: Schema) -> Array:
    """Queries as rows of the collection's kind: float32 [n, d] or uint8 [n, d/8]. Raises UsageError."""
    array = np.asarray(queries)
    if array.ndim == 1:
        array = array[None, :]
    binary = schema.vector_type is VectorType.BINARY
    kinds = "u" if binary else "fiu"
    if array.ndim != 2 or array.dtype.kind not in kinds or (binary and array.dtype != np.uint8):
        wanted = f"uint8 [n, {schema.width}]" if binary else f"float32 [n, {schema.width}]"
        raise UsageError(f"queries: expected {wanted}, found {array.dtype} {list(array.shape)}")
    if array.shape[1] != schema.width:
        unit = "bytes" if binary else "numbers"
        raise UsageError(f"queries: {schema.name} has vectors of {schema.width} {unit}, found {array.shape[1]}")
    return np.ascontiguousarray(array, schema.dtype)


def search(  # many: a query, and what its caller lends: threads, open files
    schema: Schema,
    partitions: Sequence[Named],
    queries: npt.ArrayLike,
    k: int,
    *,
    metric: str | None = None,
    jobs: int | None = None,
    opened: Opened | None = None,
    pool: Executor | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Hits:
    """The `k` nearest rows of `partitions` for each query.

    `metric` is the schema's unless given (L2 or HAMMING where it has none). `opened` keeps files for the next call, `pool`
    lends its threads. Raises UsageError for queries or a metric that do not fit, DamageError for rows that cannot be read
    (within `watching()` they are left out and noted), Cancelled as soon as `stopped` says so.
    """
    if k < 1:
        raise UsageError(f"k: expected 1 or more, found {k}")
    array = as_queries(queries, schema)
    name = check_metric(metric or schema.metric_type or default_metric(schema.vector_type), schema.vector_type)
    k = min(k, sum(p.rows for partition in partitions for p in partition.pieces))
    blocks, firsts = blocks_of(partitions, opened or Opened(), watch())
    result = _Nearest(len(array), k)
    if k and len(array):
        scan = _Scan(name, array, result, blocks, stopped)
        _run(scan, min(jobs or default_jobs(), len(blocks)), pool, len(array) >= DIRECT)
    numbers = np.searchsorted(np.array(firsts, np.int64), result.rows, "right").astype(np.int32) - 1
    made = kernel(name, array[:1]) if len(array) else None
    with np.errstate(all="ignore"):
        distances = made.distance(result.scores) if made else np.empty((0, k), np.float32)
    none = result.rows == _NO_ROW
    if made:
        distances[none] = made.pad
    numbers[none] = -1
    return Hits(result.ids, distances, numbers, tuple(p.name for p in partitions))


def _run(scan: _Scan, jobs: int, pool: Executor | None, multiplies: bool) -> None:
    """A scan, which may multiply matrices, in several threads; raises what one of them raised. Ctrl-C ends it soon."""
    own = None if pool else ThreadPoolExecutor(jobs)
    try:
        futures = [(pool or own).submit(_alone, scan.work, multiplies) for _ in range(jobs)]  # type: ignore[union-attr]
        wait_for(futures)
    finally:
        scan.end()
        if own:
            own.shutdown()
    if errors := [e for f in futures if (e := f.exception())]:
        raise errors[0]


def _alone(work: Callable[[], None], multiplies: bool) -> None:
    """`work` in a thread of its own that starts no others."""
    import faiss

    faiss.omp_set_num_threads(1)
    with _single if multiplies else contextlib.nullcontext():
        work()


class _SingleBlas:
    """While at least one thread is inside, matrix products start no threads of their own, which would wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                from threadpoolctl import ThreadpoolController

                self._limit = ThreadpoolController().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_single = _SingleBlas()


class _Nearest:
    """The best rows so far: `scores` float64, `rows` (numbers) and `ids` int64, all [queries, k]."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.full((queries, k), np.inf)
        self.rows = np.full((queries, k), _NO_ROW, np.int64)
        self.ids = np.full((queries, k), -1, np.int64)
        self._lock = threading.Lock()

    def limit(self) -> Floats:
        """The score that a row must not exceed to be among the best, per query."""
        return self.scores[:, -1].copy()

    def add(self, query: Ints, score: Floats, row: Ints, ids: Ints) -> None:
        """Sorts candidates in, all arrays [n]."""
        with self._lock:
            hit = np.unique(query)
            local = np.concatenate([np.repeat(np.arange(len(hit)), self.k), np.searchsorted(hit, query)])
            scores = np.concatenate([self.scores[hit].ravel(), score])
            rows = np.concatenate([self.rows[hit].ravel(), row])
            all_ids = np.concatenate([self.ids[hit].ravel(), ids])
            order = np.lexsort((rows, scores, local))
            starts = np.searchsorted(local[order], np.arange(len(hit)))
            best = order[(starts[:, None] + np.arange(self.k)).ravel()]
            for target, source in ((self.scores, scores), (self.rows, rows), (self.ids, all_ids)):
                target[hit] = source[best].reshape(len(hit), self.k)


class _Scan:
    """One search: blocks that several threads take one after the other."""

    def __init__(
        self, metric: str, queries: Array, result: _Nearest, blocks: Sequence[Block], stopped: Callable[[], bool]
    ) -> None:
        self._metric, self._queries, self._result, self._stopped = metric, queries, result, stopped
        self._blocks: Iterator[Block] = iter(blocks)
        self._lock = threading.Lock()
        self._ended = False
        row_bytes = queries.shape[1] * queries.itemsize
        together = min(len(queries), _QUERIES)
        tile = _ONE_TILE_BYTES if len(queries) == 1 and metric == "L2" else _TILE_BYTES
        self._rows = max(1, min(_MOST_ROWS, _TILE_SCORES // together, max(64, tile // row_bytes)))

    def _next(self) -> Block | None:
        with self._lock:
            if self._stopped():
                raise Cancelled
            return None if self._ended else next(self._blocks, None)

    def end(self) -> None:
        """Nobody wants the result any more, or all of it is there."""
        self._ended = True

    def work(self) -> None:
        """Takes blocks until there are no more."""
        collected = _Collected(self._result)
        starts = range(0, len(self._queries), _QUERIES)
        kernels = [(at, kernel(self._metric, self._queries[at : at + _QUERIES])) for at in starts]
        try:
            with np.errstate(all="ignore"):
                while (block := self._next()) is not None:
                    limit = self._result.limit()
                    for tile in block.tiles(self._rows):
                        if self._ended or self._stopped():
                            break
                        for at, made in kernels:
                            self._look(tile, made, at, limit[at : at + _QUERIES], collected)
                    collected.sort_in()
                collected.sort_in(everything=True)
        except BaseException:
            self.end()
            raise

    def _look(self, tile: Tile, made: Kernel, at: int, limit: Floats, collected: _Collected) -> None:
        """Collects the rows of a tile that may be among the best; lowers `limit` where the tile alone allows it."""
        scores = made.scores(tile.vectors)
        if tile.dead is not None:
            scores.values[:, tile.dead] = np.inf
        query, row = _candidates(scores, limit, self._result.k)
        if not len(row):
            return
        if tile.dead is not None:
            alive = ~tile.dead[row]
            query, row = query[alive], row[alive]
        step = max(1, _EXACT_BYTES // (8 * tile.vectors.shape[1]))
        for first in range(0, len(row), step):
            part = slice(first, first + step)
            score = made.exact(tile.vectors, scores, query[part], row[part])
            good = np.flatnonzero((score <= limit[query[part]]) & (score < np.inf))
            collected.add(query[part][good] + at, score[good], row[part][good] + tile.first, tile.ids[row[part][good]])


def _candidates(scores: Scores, limit: Floats, k: int) -> tuple[Ints, Ints]:
    """Query and row numbers within a tile whose score may be at most `limit` [queries], and among the tile's `k` best.

    Lowers `limit` to what the k-th best of this tile surely does not exceed. NaN counts as small: `exact` decides.
    """
    values, largest = scores.values, scores.largest(limit)
    far = values.min(axis=1) > largest
    if far.all():
        return _NONE, _NONE
    hit = np.flatnonzero(~far)
    query, row = np.nonzero(~(values[hit] > largest[hit, None]))
    query = hit[query]
    many = np.flatnonzero(np.bincount(query, minlength=len(values)) > 4 * k + 64)
    if not len(many):
        return query, row
    ordered = np.where(np.isnan(values[many]), np.float32(np.inf), values[many])
    worst = np.full(len(values), np.inf)
    worst[many] = np.partition(ordered, k - 1, axis=1)[:, k - 1]
    worst += scores.shift
    lower = worst + scores.margin(worst)
    np.copyto(limit, lower, where=lower < limit)
    kept = ~(values[query, row] > scores.largest(lower)[query])
    return query[kept], row[kept]


class _Collected:
    """Candidates of one thread."""

    def __init__(self, result: _Nearest) -> None:
        self._result = result
        self._parts: list[tuple[Ints, Floats, Ints, Ints]] = []
        self._count = 0

    def add(self, query: Ints, score: Floats, row: Ints, ids: Ints) -> None:
        if len(query):
            self._parts.append((query, score, row, np.asarray(ids).copy()))
            self._count += len(query)
            if self._count > max(8 * _PENDING, self._result.scores.size):
                self.sort_in(everything=True)

    def sort_in(self, everything: bool = False) -> None:
        """Hands over what was collected; not so often where sorting takes long."""
        if self._count and (everything or self._count >= self._result.scores.size // 4 or self._result.scores.size < _PENDING):
            self._result.add(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))
            self._parts.clear()
            self._count = 0
