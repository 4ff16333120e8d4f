"""A source made of arrays, for tests of targets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from milvus_offline.model import (
    BATCH_BYTES,
    Array,
    Batch,
    Finding,
    Salvaged,
    Schema,
    SourceCollection,
    SourcePartition,
    VectorType,
)


@dataclass(frozen=True)
class ArrayPiece:
    id: str
    ids: Array
    vectors: Array

    @property
    def rows(self) -> int:
        return len(self.ids)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        step = max(1, max_bytes // max(1, self.vectors[:1].nbytes))
        for at in range(start, self.rows, step):
            yield Batch(self.ids[at : at + step], self.vectors[at : at + step])


@dataclass
class ArraySource:
    """`data`: collection -> partition -> [(ids, vectors), ...], one pair a piece; `schemas` overrides what follows from it."""

    data: Mapping[str, Mapping[str, Sequence[tuple[Array, Array]]]]
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    without_ids: frozenset[str] = frozenset()
    kind: str = "arrays"
    findings: Sequence[Finding] = ()
    salvage: Sequence[Salvaged] = ()

    @property
    def collections(self) -> list[SourceCollection]:
        result = []
        for name, partitions in self.data.items():
            vectors = next((v for pieces in partitions.values() for _, v in pieces), np.empty((0, 8), "<f4"))
            kind = VectorType.BINARY if vectors.dtype == np.uint8 else VectorType.FLOAT
            width = vectors.shape[1]
            schema = Schema(
                name, width * 8 if kind is VectorType.BINARY else width, kind, "L2" if kind is VectorType.FLOAT else "HAMMING"
            )
            made = [
                SourcePartition(tag, [ArrayPiece(f"{tag}-{i}", *pair) for i, pair in enumerate(pieces)])
                for tag, pieces in partitions.items()
            ]
            result.append(SourceCollection(self.schemas.get(name, schema), made, name not in self.without_ids))
        return result

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, partitions in self.data.items():
            for tag, pieces in partitions.items():
                digest.update(f"{name}/{tag}".encode())
                for ids, vectors in pieces:
                    digest.update(ids.tobytes() + vectors.tobytes())
        return digest.hexdigest()


def floats(n: int, dim: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype("<f4")


def bits(n: int, dim: int = 64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, dim // 8), np.uint8)
