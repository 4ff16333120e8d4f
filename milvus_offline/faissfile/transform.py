"""The linear transforms in front of an index (`IndexPreTransform`) and their inverses, as far as they have one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .cursor import Cursor, Extent

_COMMON = struct.Struct("<iiB")
_NOWHERE = Extent(0, 0)
_MAX_ELEMENTS = 1 << 24
"""Of the matrices of a chain together: one of 4096 x 4096 takes seconds to look through."""
ORTHONORMAL = 4e-5
"""Faiss' own tolerance when it decides that a matrix is orthonormal."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Transform:
    """One transform y = f(x) with x of `d_in` and y of `d_out` dimensions; its numbers stay in the file.

    `kind` is Faiss' four characters. `matrix` is float32 [d_out, d_in], `vector` the bias or the mean (float32), or the map of
    a RemapDimensionsTransform (int32 [d_out], -1 = zero).
    """

    kind: str
    d_in: int
    d_out: int
    matrix: Extent = _NOWHERE
    vector: Extent = _NOWHERE

    @property
    def linear(self) -> bool:
        return self.kind in _LINEAR

    @property
    def exact(self) -> bool:
        """Whether the way back does not round."""
        return self.kind == "RmDT"

    @property
    def complete(self) -> bool:
        """Whether all numbers are there that the dimensions ask for."""
        if self.linear:
            return self.matrix.count >= self.d_in * self.d_out and self.vector.count in (0, self.d_out)
        return self.vector.count >= {"RmDT": self.d_out, "VCnt": self.d_in}.get(self.kind, 0)


_LINEAR = ("rrot", "PCAm", "PcAm", "Pcam", "Viqm", "LTra")


def read_transform(cursor: Cursor) -> Transform | None:
    """The transform at the cursor, or None when its kind is not known here."""
    at = cursor.at
    kind = cursor.fourcc("the kind of a vector transform")
    matrix = vector = _NOWHERE
    if kind in _LINEAR:
        if kind in ("PCAm", "PcAm", "Pcam"):
            flags = {"PCAm": 5, "PcAm": 9, "Pcam": 13}[kind]  # eigen_power, [epsilon,] random_rotation [, balanced_bins]
            cursor.skip(flags, "the parameters of a PCA")
            for what in ("the mean", "the eigenvalues", "the matrix"):
                cursor.vector(4, f"{what} of a PCA")
        elif kind == "Viqm":
            cursor.skip(8, "the parameters of an ITQ matrix")
        has_bias = cursor.u8("the flag for a bias")
        matrix = cursor.vector(4, "a transform matrix")
        bias = cursor.vector(4, "the bias of a transform")
        vector = bias if has_bias else _NOWHERE
    elif kind == "RmDT":
        vector = cursor.vector(4, "a map of dimensions")
    elif kind == "VNrm":
        cursor.skip(4, "the norm of a normalisation")
    elif kind == "VCnt":
        vector = cursor.vector(4, "the mean of a centering")
    elif kind == "Viqt":
        cursor.vector(4, "the mean of an ITQ transform")
        cursor.skip(1, "the flag for a PCA")
        for _ in range(2):
            inner = cursor.at
            if cursor.fourcc("the kind of a vector transform") not in _LINEAR:
                raise cursor.damage("an ITQ transform that is not made of two matrices", inner)
            cursor.at = inner
            read_transform(cursor)
    else:
        return None
    d_in, d_out, _ = cursor.unpack(_COMMON, "the dimensions of a transform")
    if d_in <= 0 or d_out <= 0:
        raise cursor.damage(f"a transform from {d_in} to {d_out} dimensions", at)
    return Transform(kind, d_in, d_out, matrix, vector)


class Inverse:
    """The way back through a chain of transforms, with its numbers in memory. Raises NotInvertible."""

    def __init__(self, cursor: Cursor, chain: tuple[Transform, ...]) -> None:
        elements = sum(t.d_in * t.d_out for t in chain if t.linear)
        if elements > _MAX_ELEMENTS:
            raise NotInvertible(f"the matrices have {elements} elements, more than {_MAX_ELEMENTS} are not turned back")
        self.steps = [_Step(cursor, t) for t in chain]

    def back(self, vectors: Floats) -> Floats:
        """float32 [n, d_out of the last] -> float32 [n, d_in of the first], computed in float64."""
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are allowed
            x = vectors.astype(np.float64)
            for step in reversed(self.steps):
                x = step.back(x)
            return x.astype("<f4")

    def error(self, vectors: Floats) -> float:
        """Largest absolute difference between the finite ones of `vectors` and what the chain makes of `back(vectors)`."""
        with np.errstate(invalid="ignore", over="ignore"):
            vectors = vectors[np.isfinite(vectors).all(axis=1)]
            x = self.back(vectors).astype(np.float64)
            for step in self.steps:
                x = step.forth(x)
            return float(np.abs(x - vectors).max(initial=0.0))


class NotInvertible(ValueError):
    """The transform loses something; the message says what."""


class _Step:
    def __init__(self, cursor: Cursor, t: Transform) -> None:
        self.t = t
        self.matrix: npt.NDArray[Any] = np.empty(0)
        dtype = "<i4" if t.kind == "RmDT" else "<f4"
        self.vector: npt.NDArray[Any] = cursor.array(t.vector, dtype, "the vector of a transform", _MAX_ELEMENTS)
        if t.kind in ("VNrm", "Viqt"):
            raise NotInvertible("the vectors were normalised, their lengths are not stored")
        if t.kind == "RmDT":
            self.vector = self.vector[: t.d_out]
            kept = self.vector[self.vector >= 0]
            if kept.size and kept.max() >= t.d_in:
                raise cursor.damage("a map of dimensions points outside", t.vector.at)
            if len(np.unique(kept)) < t.d_in:
                raise NotInvertible("some dimensions were dropped")
        elif t.linear:
            if t.d_out < t.d_in:
                raise NotInvertible(f"{t.d_in} dimensions were reduced to {t.d_out}")
            flat = cursor.array(t.matrix, "<f4", "a transform matrix", _MAX_ELEMENTS)
            with np.errstate(invalid="ignore", over="ignore"):
                self.matrix = flat[: t.d_out * t.d_in].reshape(t.d_out, t.d_in).astype(np.float64)
                square = self.matrix.T @ self.matrix
                square[np.diag_indices(t.d_in)] -= 1
            if not np.abs(square).max() < ORTHONORMAL:  # also when it is NaN
                raise NotInvertible("the matrix of the transform is not orthonormal")
            self.vector = self.vector[: t.d_out].astype(np.float64)
        else:
            self.vector = self.vector[: t.d_in].astype(np.float64)

    def back(self, y: Doubles) -> Doubles:
        x: Doubles
        if self.t.kind == "RmDT":
            x = np.zeros((len(y), self.t.d_in))
            used = np.flatnonzero(self.vector >= 0)
            x[:, self.vector[used]] = y[:, used]
        elif self.t.linear:
            x = (y - self.vector if self.vector.size else y) @ self.matrix
        else:
            x = y + self.vector
        return x

    def forth(self, x: Doubles) -> Doubles:
        y: Doubles
        if self.t.kind == "RmDT":
            y = np.where(self.vector >= 0, x[:, np.maximum(self.vector, 0)], 0.0)
        elif self.t.linear:
            y = x @ self.matrix.T + (self.vector if self.vector.size else 0.0)
        else:
            y = x - self.vector
        return y
