"""Which of the datasets, arrays or columns of a file are the vectors and the ids, where nobody has said it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DamageError, UsageError
from ..findings import Findings
from ..names import printable

EMBEDDINGS, IDS = "embeddings", "ids"
"""MilvusDM's names."""
_VECTORS = re.compile(r"(?:embeddings?|vectors?|embs?|features?|feats?|vecs?|xb|base|train)", re.I)
_IDS = re.compile(r"(?:\w*_)?(?:ids?|pks?|keys?|uids?|uuids?)", re.I)
_BESIDE_TRAIN = {"test", "neighbors", "distances"}
"""What the files of ann-benchmarks hold beside the vectors of a collection."""


@dataclass(frozen=True)
class Named:
    """Something in a file that has a shape and a type: `rows` of `width` elements each (1 for a list of numbers)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def is_vectors(self) -> bool:
        if self.dtype.kind == "S" and self.dtype.itemsize > 1 and self.shape[1:] in ((), (1,)):
            return not self.is_called_ids
        return len(self.shape) == 2 and self.shape[1] > 1 and self.dtype.kind in "fiub"

    @property
    def is_called_ids(self) -> bool:
        return _IDS.fullmatch(self.name.rsplit("/", 1)[-1]) is not None

    @property
    def is_called_vectors(self) -> bool:
        return _VECTORS.fullmatch(self.name.rsplit("/", 1)[-1]) is not None

    def are_ids(self, rows: int) -> bool:
        return self.shape in ((rows,), (rows, 1)) and self.dtype.kind in "iufSUO"

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.shape} {self.dtype}"


@dataclass(frozen=True)
class Chosen:
    vectors: Named
    ids: Named | None
    findings: Findings


def choose(path: str, there: Sequence[Named], embeddings: str | None, ids: str | None, what: str = "dataset") -> Chosen:
    """The vectors and ids among what is in a file. Names that were given have to be there.

    Otherwise MilvusDM's names count, then what is the only candidate: of vectors by its shape or by a usual name, of ids by a
    usual name. Raises UsageError when a person has to say it.
    """
    by_name = {n.name: n for n in there}
    vectors = _vectors(path, by_name, embeddings, what)
    if not vectors.shape:
        raise DamageError(path, f"{printable(vectors.name)!r}: expected two dimensions (rows, elements), found a single value")
    number = _ids(path, by_name, vectors, ids, what)
    said = Findings()
    if embeddings is None and vectors.name != EMBEDDINGS:
        others = [n.name for n in there if n.is_vectors and n is not vectors]
        text = f"the vectors are read from {what} {vectors}" + (f", not from {', '.join(others)}" if others else "")
        said.info("columns-chosen", path, text + "; --embeddings names another")
    if ids is None and number is not None and number.name != IDS:
        said.info("columns-chosen", path, f"the ids are read from {what} {number}; --ids-dataset names another")
    return Chosen(vectors, number, said)


def _vectors(path: str, there: Mapping[str, Named], given: str | None, what: str) -> Named:
    wanted = there.get(given.strip("/") if given else EMBEDDINGS)
    if wanted is not None:
        return wanted
    listed = "; ".join(str(n) for n in list(there.values())[:20]) or "none"
    if given:
        raise UsageError(f"{path}: no {what} {printable(given)!r} (--embeddings); there are: {listed}")
    candidates = [n for n in there.values() if n.is_vectors]
    if any(n.name == "train" for n in candidates):
        candidates = [n for n in candidates if n.name not in _BESIDE_TRAIN]
    usual = [n for n in candidates if n.is_called_vectors]
    for found in (candidates, usual):
        if len(found) == 1:
            return found[0]
    if candidates:
        raise UsageError(f"{path}: which {what} holds the vectors? --embeddings names it; there are: {listed}")
    raise DamageError(path, f"no {what} {EMBEDDINGS!r}; there are: {listed}; --embeddings names one")


def _ids(path: str, there: Mapping[str, Named], vectors: Named, given: str | None, what: str) -> Named | None:
    wanted = there.get(given.strip("/") if given else IDS)
    if wanted is not None:
        return wanted
    if given:
        listed = "; ".join(str(n) for n in list(there.values())[:20])
        raise UsageError(f"{path}: no {what} {printable(given)!r} (--ids-dataset); there are: {listed}")
    rows = vectors.shape[0]
    named = [n for n in there.values() if n is not vectors and n.is_called_ids and n.shape in ((rows,), (rows, 1))]
    usual = [n for n in named if n.are_ids(rows)] or named  # ids of another type are not left out without a word
    if len(usual) > 1:
        listed = "; ".join(map(str, usual))
        raise UsageError(f"{path}: which {what} holds the ids? --ids-dataset names it; it could be: {listed}")
    return usual[0] if usual else None
