"""Rows that no one wrote: HDF5 shows a fill value where a chunk, a file or a source is missing, without a word.

A converter that died leaves datasets without storage or without most of their chunks; a volume that is not mounted leaves a
virtual dataset without its sources. A dataset that was written as a whole has none of this: storage is only missing where
nothing was ever written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DamageError, MilvusOfflineError, UsageError
from ...names import printable
from .links import Following, Place, damage, locate, open_dataset, open_file

_MOST_SOURCES = 8
"""Virtual datasets of virtual datasets of …"""


@dataclass(frozen=True)
class Hole:
    """Rows first..last-1 that have no values, and why."""

    first: int
    last: int
    reason: str


def holes_of(place: Place, following: Following, depth: int = 0) -> list[Hole]:
    """The rows of a dataset that no one wrote, in order. Raises UsageError for files that are not to be followed, DamageError
    for a virtual dataset of which nothing can be told row by row."""
    with open_file(place.path) as h, damage(place.path):
        dataset = open_dataset(h, place)
        if not dataset.size:
            return []
        if dataset.is_virtual:
            sources = dataset.virtual_sources()
            return _joined(_virtual(place, dataset, sources, following, depth))
        if dataset.external:
            return _external(place, dataset, following)
        if dataset.chunks:
            return _joined(_chunks(dataset))
        layout = dataset.id.get_create_plist().get_layout()
        if layout == _contiguous() and not dataset.id.get_storage_size():
            return [Hole(0, dataset.shape[0], "were never written")]
        return []


def _contiguous() -> int:
    import h5py

    return int(h5py.h5d.CONTIGUOUS)


def _chunks(dataset: Any) -> Iterator[Hole]:
    """Chunks that were never allocated, as whole rows."""
    shape, chunks = dataset.shape, dataset.chunks
    grid = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    if dataset.id.get_num_chunks() >= int(np.prod(grid)):
        return
    written = np.zeros(grid[0], np.int64)

    def note(chunk: Any) -> None:
        written[chunk.chunk_offset[0] // chunks[0]] += 1

    dataset.id.chunk_iter(note)
    for n in np.flatnonzero(written < int(np.prod(grid[1:]))):
        yield Hole(int(n) * chunks[0], min((int(n) + 1) * chunks[0], shape[0]), "were never written")


def extents(place: Place, dataset: Any, following: Following) -> tuple[list[tuple[str, int, int]], str | None]:
    """(file, offset, bytes) of external storage as far as it is there, and what is missing."""
    result: list[tuple[str, int, int]] = []
    sizes: dict[str, int] = {}
    left = dataset.nbytes
    for named, offset, length in dataset.external:
        if not left:
            break
        want = min(int(length), left)
        try:
            path = following.file(place.path, os.fsdecode(named), f"dataset {place.name!r}")
        except DamageError as e:
            return result, str(e)
        if path not in sizes:
            sizes[path] = os.path.getsize(path)
        there = max(0, min(want, sizes[path] - offset))
        result += [(path, int(offset), there)] if there else []
        left -= there
        if there < want:
            return result, f"{path} is too short: expected {offset + want} bytes, found {sizes[path]}"
    return result, f"the files that the dataset names hold {left} bytes less than it has" if left else None


def _external(place: Place, dataset: Any, following: Following) -> list[Hole]:
    parts, missing = extents(place, dataset, following)
    if missing is None:
        return []
    whole = sum(n for _, _, n in parts) // (dataset.nbytes // dataset.shape[0])
    return [Hole(int(whole), int(dataset.shape[0]), f"are missing: {missing}")]


# Virtual datasets -----------------------------------------------------------------------------------------------------


def _virtual(place: Place, dataset: Any, sources: Sequence[Any], following: Following, depth: int) -> Iterator[Hole]:
    if depth >= _MOST_SOURCES:
        raise DamageError(place.path, f"{place.name!r}: virtual datasets of virtual datasets, {depth} deep")
    rows, width = dataset.shape[0], int(np.prod(dataset.shape[1:]))
    covered = np.zeros(rows + 1, np.int64)
    by_columns = points = 0
    for source in sources:
        _require_fixed(place, source)
        (low, high), whole = _rows_of(source.vspace, width)
        points += source.vspace.get_select_npoints()
        by_columns += not whole
        covered[low] += 1
        covered[high] -= 1
        for hole in _source_holes(place, source, width, following, depth):
            if not whole or hole.first is None:
                yield Hole(low, high, hole.reason)
            else:
                yield Hole(low + hole.first, min(high, low + hole.last), hole.reason)
    if by_columns and points < rows * width:
        raise DamageError(
            place.path,
            f"{place.name!r}: its sources cover {points} of {rows * width} numbers; which rows are whole cannot be told",
        )
    open_rows = np.flatnonzero(np.cumsum(covered[:-1]) == 0)
    for first, last in _runs(open_rows):
        yield Hole(first, last, "are in none of the sources of the virtual dataset")


def _require_fixed(place: Place, source: Any) -> None:
    """Raises UsageError for sources that are counted while the dataset is read: what is missing would not be noticed."""
    what = f"the virtual dataset {place.name!r}"
    named = source.file_name
    if "%b" in named or "%b" in source.dset_name:
        raise UsageError(
            f"{place.path}: {what} names its sources by a pattern ({printable(named)!r}); join them with h5repack first"
        )
    try:
        source.vspace.get_select_npoints()
    except Exception as e:  # h5py raises what HDF5's stack holds
        raise UsageError(
            f"{place.path}: {what} takes a source without an end ({printable(named)!r}); join them with h5repack first"
        ) from e


def _source_holes(place: Place, source: Any, width: int, following: Following, depth: int) -> list[Any]:
    """Holes of the part of a source that is used, counted from its first row there; `first` None: all of it."""
    named = source.file_name
    what = f"the virtual dataset {place.name!r}"
    try:
        other = place.path if named == "." else following.file(place.path, named, what)
        found = locate(other, source.dset_name, following)
        if found is None:
            return [_All(f"are missing: {other} has no dataset {printable(source.dset_name)!r}, a source of {what}")]
        with open_file(found.path) as h, damage(found.path):
            there = open_dataset(h, found).shape
            (low, high), whole = _rows_of(source.src_space, width, there[0])
        if (high - low) * width < source.vspace.get_select_npoints():
            return [_All(f"are missing: {found.path} has {high - low} rows, fewer than {what} expects")]
        holes = holes_of(found, following, depth + 1)
    except UsageError:
        raise
    except MilvusOfflineError as e:
        return [_All(f"are missing: {e}")]
    if there[0] < high:
        holes = [*holes, Hole(there[0], high, f"are missing: {found.path} has {there[0]} rows, {what} expects {high}")]
    used = [Hole(max(h.first, low) - low, min(h.last, high) - low, h.reason) for h in holes if h.first < high and h.last > low]
    return used if whole or not used else [_All(used[0].reason)]


@dataclass(frozen=True)
class _All:
    reason: str
    first: None = None


def _rows_of(space: Any, width: int, everything: int | None = None) -> tuple[tuple[int, int], bool]:
    """((first, last + 1), whether that is just these rows as a whole) of a selection; `everything`: the rows of all of it."""
    import h5py

    if everything is not None and space.get_select_type() == h5py.h5s.SEL_ALL:  # stored without its extent
        return (0, everything), True
    low, high = space.get_select_bounds()
    rows = int(low[0]), int(high[0]) + 1
    return rows, space.get_select_npoints() == (rows[1] - rows[0]) * width


def _joined(holes: Iterator[Hole]) -> list[Hole]:
    """Neighbours of one reason as one, in order."""
    result: list[Hole] = []
    for hole in sorted(holes, key=lambda h: (h.first, h.last)):
        if result and result[-1].reason == hole.reason and hole.first <= result[-1].last:
            result[-1] = Hole(result[-1].first, max(hole.last, result[-1].last), hole.reason)
        else:
            result.append(hole)
    return result


def _runs(rows: Any) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers as (first, last + 1)."""
    if len(rows):
        breaks = np.flatnonzero(np.diff(rows) != 1)
        for first, last in zip((0, *(breaks + 1)), (*breaks, len(rows) - 1), strict=True):
            yield int(rows[first]), int(rows[last]) + 1


def whole_rows(rows: int, holes: Sequence[Hole]) -> list[tuple[int, int]]:
    """The rows that are in none of the holes, as ranges (first, last + 1)."""
    result, at = [], 0
    for hole in sorted(holes, key=lambda h: h.first):
        if hole.first > at:
            result.append((at, hole.first))
        at = max(at, hole.last)
    return [*result, (at, rows)] if at < rows else result
