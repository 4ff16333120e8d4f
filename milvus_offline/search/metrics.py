"""The seven metrics of Milvus 1.x as kernels over tiles of rows (FORMAT §2.5, §7).

A *score* is what is sorted, ascending; `distance` makes of it what a 1.x server answers. For float vectors a tile is first
scored in float32 at the speed of BLAS or of Faiss' vector code, then the few rows that may be among the nearest are scored
in float64: the bound of the rounding error (`margin`) makes sure that none of them is missed.

| metric         | distance of 1.x                                                                     |
|----------------|-------------------------------------------------------------------------------------|
| L2             | the squared Euclidean distance                                                      |
| IP             | the inner product, the largest first; vectors are not normalised                     |
| HAMMING        | bits that differ                                                                    |
| JACCARD        | 1 - common bits / bits of either; 1 where neither has any                            |
| TANIMOTO       | -log2(1 - Jaccard): infinite without a common bit                                    |
| SUBSTRUCTURE   | 0 for rows that have all bits of the query; no other row is a hit                     |
| SUPERSTRUCTURE | 0 for rows without a bit that the query lacks; no other row is a hit                  |
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..model import Array, VectorType

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)
"""What a 1.x server pads the distances of ascending metrics with; of IP with its negative."""
FLOAT_METRICS = ("L2", "IP")
BINARY_METRICS = ("HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE")
DIRECT = 24
"""With fewer queries a tile is scored query by query: then a matrix product is slower."""
_UNIT = 2.0**-23
"""Twice the unit roundoff of float32: covers what the summation order may do, too."""


@dataclass(frozen=True)
class Scores:
    """The approximate scores of a tile: `values` float32 [queries, rows] plus `shift`, float64 [queries].

    A row's true score is off by at most `absolute` (float64 [queries]) plus `relative` times its size.
    """

    values: Array
    shift: Floats | float = 0.0
    absolute: Floats | float = 0.0
    relative: float = 0.0

    def margin(self, score: Floats) -> Floats | float:
        """How far an approximation of these scores (float64 [queries]) may be from the truth."""
        return self.absolute + self.relative * np.abs(score) if self.relative else self.absolute

    def largest(self, score: Floats) -> npt.NDArray[np.float32]:
        """What `values` of rows whose score is at most `score` do not exceed."""
        wide = score + self.margin(score) - self.shift
        result: npt.NDArray[np.float32] = np.nextafter(wide.astype(np.float32), np.float32(np.inf))
        return result


class Kernel(Protocol):
    """One metric and some queries."""

    pad: float
    """The distance beside an id of -1."""

    def scores(self, tile: Array) -> Scores:
        """Approximate scores of all rows of a tile. The arrays are used again by the next call."""

    def exact(self, tile: Array, scores: Scores, query: Ints, row: Ints) -> Floats:
        """The true scores of pairs of query and row numbers; infinite where a row can be no hit."""

    def distance(self, score: Floats) -> npt.NDArray[np.float32]:
        """What a server answers for these scores."""


def default_metric(vector_type: VectorType) -> str:
    """What is taken for sources that name no metric."""
    return "L2" if vector_type is VectorType.FLOAT else "HAMMING"


def check_metric(metric: str, vector_type: VectorType) -> str:
    """Raises UsageError for a metric that does not go with the vectors, or that 1.x does not have."""
    fitting = FLOAT_METRICS if vector_type is VectorType.FLOAT else BINARY_METRICS
    if metric not in fitting:
        raise UsageError(f"metric {metric} does not go with {vector_type.value} vectors; expected {', '.join(fitting)}")
    return metric


def kernel(metric: str, queries: Array) -> Kernel:
    """The kernel for `queries`: float32 [n, d] or uint8 [n, d/8]. One for each thread: kernels have buffers."""
    if metric in FLOAT_METRICS:
        return FloatKernel(metric, queries)
    return BinaryKernel(metric, queries)


class FloatKernel:
    """L2 and IP."""

    def __init__(self, metric: str, queries: Array) -> None:
        self._l2 = metric == "L2"
        self.pad = LARGEST if self._l2 else -LARGEST
        self._queries = np.ascontiguousarray(queries, np.float32)
        self._wide = self._queries.astype(np.float64)
        self._squares: Floats = np.einsum("ij,ij->i", self._wide, self._wide)
        self._scaled = np.ascontiguousarray(self._queries * np.float32(-2 if self._l2 else -1))
        self._error = (queries.shape[1] + 8) * _UNIT
        self._buffer = np.empty(0, np.float32)

    def scores(self, tile: Array) -> Scores:
        faiss: Any = importlib.import_module("faiss")  # its stubs do not know the functions below
        count, dimension = tile.shape
        if len(self._buffer) < count * len(self._queries):
            self._buffer = np.empty(count * len(self._queries), np.float32)
        flat = self._buffer[: count * len(self._queries)]
        data = faiss.swig_ptr(tile)
        direct = len(self._queries) < DIRECT
        values = flat.reshape(-1, count) if direct else flat.reshape(count, -1).T
        if direct and self._l2:
            for query, out in zip(self._queries, values, strict=True):
                faiss.fvec_L2sqr_ny(faiss.swig_ptr(out), faiss.swig_ptr(query), data, dimension, count)
            return Scores(values, relative=self._error)
        norms = np.empty(count, np.float32)
        faiss.fvec_norms_L2sqr(faiss.swig_ptr(norms), data, dimension, count)
        largest = float(norms.max())
        if direct:
            for query, out in zip(self._scaled, values, strict=True):
                faiss.fvec_inner_products_ny(faiss.swig_ptr(out), faiss.swig_ptr(query), data, dimension, count)
        else:
            np.matmul(tile, self._scaled.T, out=values.T)
        if not self._l2:
            return Scores(values, absolute=self._error * np.sqrt(self._squares * largest))
        values += norms
        return Scores(values, self._squares, 4 * self._error * (self._squares + largest))

    def exact(self, tile: Array, scores: Scores, query: Ints, row: Ints) -> Floats:
        rows = tile[row].astype(np.float64)
        if self._l2:
            rows -= self._wide[query]
            result: Floats = np.einsum("ij,ij->i", rows, rows)
            result[~(result < LARGEST)] = np.inf
            return result
        product: Floats = -np.einsum("ij,ij->i", rows, self._wide[query])
        product[~(product < LARGEST)] = np.inf
        return product

    def distance(self, score: Floats) -> npt.NDArray[np.float32]:
        return (score if self._l2 else -score).astype(np.float32)


class BinaryKernel:
    """The metrics of binary vectors, all from the number of common bits."""

    def __init__(self, metric: str, queries: Array) -> None:
        self._metric = metric
        self.pad = np.inf if metric in ("SUBSTRUCTURE", "SUPERSTRUCTURE") else LARGEST
        self._queries = _words(np.ascontiguousarray(queries, np.uint8))
        self._bits = _bit_counts(self._queries)

    def scores(self, tile: Array) -> Scores:
        rows = _words(tile)
        bits = _bit_counts(rows)
        values = np.empty((len(self._queries), len(rows)), np.float32)
        for query, own, out in zip(self._queries, self._bits, values, strict=True):
            common = _bit_counts(rows & query)
            if self._metric == "HAMMING":
                np.subtract(own + bits, 2 * common, out=out, casting="unsafe")
            elif self._metric == "SUBSTRUCTURE":
                out[:] = np.where(common == own, 0, np.inf)
            elif self._metric == "SUPERSTRUCTURE":
                out[:] = np.where(common == bits, 0, np.inf)
            else:
                either = (own + bits - common).astype(np.float32)
                out[:] = np.where(either > 0, (either - common) / np.maximum(either, 1), 1)
        return Scores(values)

    def exact(self, tile: Array, scores: Scores, query: Ints, row: Ints) -> Floats:
        result: Floats = scores.values[query, row].astype(np.float64)
        return result

    def distance(self, score: Floats) -> npt.NDArray[np.float32]:
        if self._metric != "TANIMOTO":
            return score.astype(np.float32)
        return np.where(score == 0, 0, -np.log2(1 - score)).astype(np.float32)


def _words(rows: Array) -> Array:
    """The same bytes in the largest words that fit into a row."""
    width = rows.shape[1]
    for size in (8, 4, 2):
        if width % size == 0:
            return np.ascontiguousarray(rows).view(f"<u{size}")
    return rows


def _bit_counts(words: Array) -> npt.NDArray[np.int32]:
    counts: npt.NDArray[np.int32] = np.bitwise_count(words).sum(axis=-1, dtype=np.int32)
    return counts
