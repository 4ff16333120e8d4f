"""Searching with the index files of a store instead of exactly (FORMAT §4.6): IVF_FLAT, IVF_SQ8 and HNSW, by Faiss.

An index file covers all stored rows of its segment by their offsets, deleted ones too; these are masked. IVF indexes are in a
form that Faiss reads; those of hnswlib are put together as Faiss' own HNSW, link by link. A file that does not fit its segment,
or is damaged, is not used: its segment is searched exactly.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DamageError, UsageError
from ..fileio import read_array
from ..milvus1.segment.files import Segment
from ..milvus1.segment.indexfile import HNSW_HEADER, Blob, check, read_container
from ..model import Array, Schema
from .blocks import Opened
from .exact import Hits

_log = logging.getLogger("milvus_offline.search")
_IVF_KINDS = ("IVF_FLAT", "IVF_SQ8", "IVF_SQ8H")
_ENTRY_AT = 76
"""Where the header of an HNSW index has the number of its entry point."""


@dataclass(frozen=True)
class _Loaded:
    """An index in memory; `labels`: the row offset of each of its vectors, None where these are the numbers themselves."""

    index: Any
    kind: str
    labels: npt.NDArray[np.int64] | None

    def search(
        self, queries: Array, k: int, parameters: Mapping[str, Any], live: npt.NDArray[np.bool_] | None
    ) -> tuple[Array, Array]:
        """Distances and row offsets (-1: no more) of the nearest rows, float32 and int64 [queries, k]."""
        faiss: Any = importlib.import_module("faiss")
        options: dict[str, Any] = {}
        if live is not None:
            ordered = live if self.labels is None else live[self.labels]
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(ordered, bitorder="little"))
        if self.kind == "HNSW":
            chosen = faiss.SearchParametersHNSW(efSearch=int(parameters.get("ef", max(k, 64))), **options)
        else:
            chosen = faiss.SearchParametersIVF(nprobe=int(parameters.get("nprobe", 16)), **options)
        distances, found = self.index.search(queries, k, params=chosen)
        if self.labels is not None:
            found = np.where(found >= 0, self.labels[np.maximum(found, 0)], -1)
        return distances, found


class Indexes:
    """The usable index files of a store's segments, loaded when asked for and kept. `path_of` names a segment's file."""

    def __init__(self, path_of: Callable[[Segment], Path | None]) -> None:
        self._path_of = path_of
        self._loaded: dict[str, _Loaded | None] = {}
        self._lock = threading.Lock()

    def of(self, segment: Segment) -> _Loaded | None:
        """The index of a segment, None where there is none that can be used."""
        with self._lock:
            if segment.raw_path not in self._loaded:
                path = self._path_of(segment)
                self._loaded[segment.raw_path] = _load(path, segment) if path is not None else None
            return self._loaded[segment.raw_path]


def _load(path: Path, segment: Segment) -> _Loaded | None:
    try:
        container = read_container(path)
        if container.type_name not in (*_IVF_KINDS, "HNSW"):
            return None
        check(path)
        blob = container.blobs[0]
        data = read_array(path, np.uint8, blob.size, blob.at)
        if container.type_name == "HNSW":
            index, labels = _hnsw(path, data, segment.schema)
        else:
            faiss: Any = importlib.import_module("faiss")
            index, labels = faiss.deserialize_index(data), None
        _require_fit(path, index, blob, segment)
    except (DamageError, UsageError, OSError, RuntimeError, ValueError, IndexError) as e:
        _log.warning("the index of segment %s is not used, its rows are searched exactly: %s", segment.id, e)
        return None
    return _Loaded(index, container.type_name, labels)


def _require_fit(path: Path, index: Any, blob: Blob, segment: Segment) -> None:
    schema = segment.schema
    metric = {0: "IP", 1: "L2"}.get(int(index.metric_type))
    if (index.ntotal, index.d, metric) != (segment.stored, schema.dimension, schema.metric_type):
        found = f"{index.ntotal} vectors of {index.d} dimensions, {metric}"
        expected = f"{segment.stored} of {schema.dimension}, {schema.metric_type}"
        raise DamageError(path, f"expected {expected}; found {found}", offset=blob.at)


def _hnsw(path: Path, data: npt.NDArray[np.uint8], schema: Schema) -> tuple[Any, npt.NDArray[np.int64]]:
    """Faiss' HNSW with the links of hnswlib's, and the row offset of each of its elements."""
    faiss: Any = importlib.import_module("faiss")
    metric, _, dim, _, _, count, size, label_at, data_at, top, max_m, max_m0, m, *_ = HNSW_HEADER.unpack_from(data.data)
    entry = int(data[_ENTRY_AT : _ENTRY_AT + 4].view("<u4")[0])
    if max_m != m or max_m0 != 2 * m or not count:
        raise DamageError(path, f"expected links of {m} and {2 * m} neighbours, found {max_m} and {max_m0}")
    first = HNSW_HEADER.size
    elements = data[first : first + count * size].reshape(count, size)
    vectors = np.ascontiguousarray(elements[:, data_at : data_at + 4 * dim]).view("<f4")
    labels = np.ascontiguousarray(elements[:, label_at : label_at + 8]).view("<i8")[:, 0]
    links = np.ascontiguousarray(elements[:, : 4 + 4 * max_m0]).view("<u4")
    levels, upper = _upper_links(data[first + count * size :], count, 1 + int(max_m))
    offsets = np.zeros(count + 1, np.uint64)
    np.cumsum(max_m0 + levels * max_m, out=offsets[1:])
    neighbours = np.full(int(offsets[-1]), -1, np.int32)
    base = offsets[:-1].astype(np.int64)
    place = np.arange(max_m0)
    known = place < (links[:, :1] & 0xFFFF)
    neighbours[(base[:, None] + place)[known]] = links[:, 1:][known]
    for node, level, found in upper:
        at = int(base[node]) + max_m0 + level * max_m
        neighbours[at : at + len(found)] = found
    inside = (labels >= 0) & (labels < count)
    if neighbours.max(initial=-1) >= count or not 0 <= entry < count or not inside.all() or len(np.unique(labels)) != count:
        raise DamageError(path, "a link or a label is outside of the index")
    index = faiss.IndexHNSWFlat(int(dim), int(m), faiss.METRIC_INNER_PRODUCT if metric == 1 else faiss.METRIC_L2)
    index.storage.add(vectors)
    index.ntotal = int(count)
    graph = index.hnsw
    faiss.copy_array_to_vector((levels + 1).astype(np.int32), graph.levels)
    faiss.copy_array_to_vector(offsets, graph.offsets)
    faiss.copy_array_to_vector(neighbours, graph.neighbors)
    graph.entry_point, graph.max_level = entry, int(top)
    if int(levels[entry]) != top or dim != schema.dimension:
        raise DamageError(path, f"the entry point is on level {levels[entry]}, expected {top}")
    return index, labels


def _upper_links(
    tail: npt.NDArray[np.uint8], count: int, words: int
) -> tuple[npt.NDArray[np.int64], list[tuple[int, int, npt.NDArray[np.uint32]]]]:
    """The level of each element, and (element, level - 1, neighbours) above level 0: a length, then levels of `words`."""
    values = tail[: len(tail) // 4 * 4].view("<u4")
    levels = np.zeros(count, np.int64)
    found = []
    there = np.flatnonzero(values)
    node = at = 0
    while (following := int(np.searchsorted(there, at))) < len(there) and node < count:
        node += int(there[following]) - at  # elements of one level only have a length of 0
        at = int(there[following])
        height, rest = divmod(int(values[at]), 4 * words)
        if rest or node >= count or at + 1 + height * words > len(values):
            raise ValueError(f"element {node} of an HNSW index has links of {values[at]} bytes")
        levels[node] = height
        for level in range(height):
            start = at + 1 + level * words
            found.append((node, level, values[start + 1 : start + 1 + min(int(values[start]) & 0xFFFF, words - 1)]))
        at += 1 + height * words
        node += 1
    return levels, found


def search_indexes(
    segments: Sequence[tuple[int, Segment, _Loaded]], queries: Array, k: int, parameters: Mapping[str, Any], opened: Opened
) -> list[tuple[Array, Array, Array]]:
    """Scores (ascending), ids and partition numbers [queries, k] of each of (partition number, segment, its index)."""
    answers = []
    for number, segment, loaded in segments:
        files = opened.files(segment)
        live = ~files.dead.window(0, segment.stored) if files.dead is not None else None
        distances, offsets = loaded.search(np.ascontiguousarray(queries), min(k, segment.stored), parameters, live)
        none = offsets < 0
        ids = np.where(none, -1, files.ids[np.maximum(offsets, 0)])
        scores = np.where(none, np.inf, -distances if segment.schema.metric_type == "IP" else distances)
        answers.append((scores, ids, np.where(none, -1, number)))
    return answers


def merged(exact: Hits, answers: Sequence[tuple[Array, Array, Array]], k: int, metric: str, pad: float) -> Hits:
    """The `k` best of an exact search of some rows and of the indexes of others."""
    sign = -1.0 if metric == "IP" else 1.0
    scores = [np.where(exact.partitions < 0, np.inf, sign * exact.distances), *(a[0] for a in answers)]
    ids, numbers = [exact.ids, *(a[1] for a in answers)], [exact.partitions, *(a[2] for a in answers)]
    every = np.concatenate(scores, axis=1)
    best = np.argsort(every, axis=1, kind="stable")[:, :k]
    chosen = [np.take_along_axis(np.concatenate(column, axis=1), best, axis=1) for column in (ids, numbers)]
    distances = (sign * np.take_along_axis(every, best, axis=1)).astype(np.float32)
    distances[chosen[1] < 0] = pad
    return Hits(chosen[0], distances, chosen[1].astype(np.int32), exact.names)
