"""One HDF5 file: which datasets it offers, what they hold, and where their bytes lie."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DamageError, MilvusOfflineError, MissingPackageError, UsageError
from ...findings import Findings
from ...model import NOWHERE, Array, Places
from ...names import printable
from ...watch import Watch, watch
from ..columns import Column, FileColumn, Read
from ..files import File
from ..names import EMBEDDINGS, IDS, Named, choose
from ..options import SourceOptions
from ..tables import Table, ids_column
from ..vectors import metric_of_distance, vector_kind
from .holes import extents, holes_of, whole_rows
from .links import Following, Place, damage, locate, open_dataset, open_file

MAX_CHUNK = 256 << 20
_DEEPEST = 6
_MOST_DATASETS = 200


@dataclass(frozen=True)
class DatasetColumn:
    """A dataset that HDF5 has to read: chunked, compressed, virtual, or of a type that is not simply bytes."""

    name: str
    dtype: str
    items: int
    place: Place

    @contextlib.contextmanager
    def open(self) -> Iterator[Read]:
        path = self.place.path
        with open_file(path) as h:
            with damage(path):
                dataset = _readable(open_dataset(h, self.place), path)
                stored = dataset.id.get_type() if dataset.dtype.kind == "S" else None

            def read_all(row: int, out: Array) -> None:
                with damage(path):
                    shape = (len(out), *dataset.shape[1:])
                    if stored is None:
                        dataset.read_direct(out.reshape(shape), np.s_[row : row + len(out)])
                        return
                    import h5py

                    space, memory = dataset.id.get_space(), h5py.h5s.create_simple(shape)
                    space.select_hyperslab((row, *(0 for _ in shape[1:])), shape)
                    texts = np.empty(shape, dataset.dtype)
                    dataset.id.read(memory, space, texts, stored)  # as stored: not cut at a NUL
                    out[...] = texts.view(np.uint8).reshape(out.shape) if out.dtype == np.uint8 else texts.reshape(out.shape)

            def read(row: int, out: Array) -> Places:
                try:
                    read_all(row, out)
                except DamageError:
                    seen = watch()
                    if seen is None or dataset.chunks is None:
                        raise
                    return _around_damage(seen, path, dataset.chunks[0], read_all, row, out)
                return NOWHERE

            yield read


def _around_damage(seen: Watch, path: str, chunk: int, read: Callable[[int, Array], None], row: int, out: Array) -> Places:
    """Reads rows `row`.. into `out` chunk by chunk; the places of those that cannot be read, of which `seen` is told."""
    lost = [NOWHERE]
    last = row + len(out)
    for first in range(row - row % chunk, last, chunk):
        a, b = max(row, first), min(last, first + chunk)
        try:
            read(a, out[a - row : b - row])
        except DamageError as e:
            out[a - row : b - row] = np.zeros(1, out.dtype)
            lost.append(np.arange(a - row, b - row))
            seen.note_damaged(path, path, [(a, b)], f"HDF5: {e.__cause__ or e.reason}")
    return np.concatenate(lost)


def look(
    path: str | os.PathLike[str],
    options: SourceOptions | None = None,
    attributes: Mapping[str, tuple[str, str]] | None = None,
    *,
    segments: bool = False,
) -> File:
    """Checks a file's datasets against each other and against what is really stored.

    `attributes` names further ones: field -> (dataset, numpy dtype). `segments`: files of segments of a store are followed
    anywhere, as an export with links names them. Raises DamageError or UsageError.
    """
    options = options or SourceOptions()
    name = str(path)
    following = Following(anywhere=options.follow_external, segments=segments)
    with open_file(name) as h, damage(name):
        described = {
            k: v for k in ("collection", "partition", "metric_type", "vector_type", "distance") if (v := _plain(h.attrs.get(k)))
        }
        there = _datasets(name, h, options, following)
    found = choose(name, [n for n, _ in there.values()], options.embeddings, options.ids)
    findings = Findings(found.findings)
    data, place = there[found.vectors.name]
    metric = options.metric or described.get("metric_type")
    if metric is None and (metric := metric_of_distance(described.get("distance"))):
        text = f"the file says distance {printable(described['distance'])!r}: the metric is {metric}; --metric names another"
        findings.info("metric-of-file", name, text)
    if options.vector_type is None and described.get("vector_type") in ("float", "binary"):  # an export of ours
        options = options._replace(vector_type=described["vector_type"])
    usual = found.vectors.name == EMBEDDINGS and (found.ids is None or found.ids.name == IDS)
    kind = vector_kind(name, repr(data.name), data.shape, data.dtype, options, metric, usual)
    findings += kind.findings
    rows = data.shape[0]
    vectors = _column(data.name, place, following)
    holes = [(found.vectors.name, hole) for hole in holes_of(place, following)]
    ids = None
    if found.ids is not None:
        at = there[found.ids.name][1]
        ids = ids_column(name, rows, Table(found.ids, _column(found.ids.name, at, following, texts=True)), options, findings)
        lost = holes_of(at, following) if ids is not None else []
        if lost and not options.need_ids:
            text = f"ids of {found.ids.name!r} were never written; all are left out, as --ids says"
            findings.info("ids-not-numbers", name, text, rows)
            ids, lost = None, []
        holes += [(found.ids.name, hole) for hole in lost]
    ranges = whole_rows(rows, [hole for _, hole in holes])
    _lost(name, rows, found.ids.name if found.ids else None, holes, ranges, findings)
    result = File(
        name, rows, kind.width, kind.vector_type, vectors, ids, metric, ranges, findings, following.files, options.beyond
    )
    result.collection, result.partition = described.get("collection"), described.get("partition")
    result.attributes = tuple(_attribute(name, rows, f, d, t, following) for f, (d, t) in (attributes or {}).items())
    if not holes and not segments and ids is not None and rows > 1:
        with contextlib.suppress(DamageError):  # who reads it to the end tells that
            _zeros_at_the_end(result)
    return result


def _datasets(path: str, h: Any, options: SourceOptions, following: Following) -> dict[str, tuple[Named, Place]]:
    """The datasets of a file by name, behind their links; a link that cannot be followed counts only where it is needed."""
    import h5py

    result: dict[str, tuple[Named, Place]] = {}
    needed = {(options.embeddings or EMBEDDINGS).strip("/"), (options.ids or IDS).strip("/")}

    def note(name: str) -> None:
        try:
            place = locate(path, name, following)
            if place is None:
                return
            with open_file(place.path) as other, damage(place.path):
                dataset = other[place.name]
                if dataset.shape is not None:
                    result[name] = Named(name, dataset.shape, dataset.dtype), place
        except MilvusOfflineError:
            if name in needed:
                raise

    def walk(group: Any, prefix: str, depth: int) -> None:
        for key in group:
            name, link = prefix + key, group.get(key, getlink=True)
            if len(result) >= _MOST_DATASETS:
                return
            if isinstance(link, h5py.HardLink) and group.get(key, getclass=True) is h5py.Group:
                if depth < _DEEPEST:
                    walk(group[key], f"{name}/", depth + 1)
            else:
                note(name)

    for name in sorted(needed):
        note(name)
    if EMBEDDINGS not in result or IDS not in result or options.embeddings or options.ids:
        walk(h, "", 0)
    return result


def _lost(
    path: str, rows: int, ids: str | None, holes: list[tuple[str, Any]], ranges: list[tuple[int, int]], findings: Findings
) -> None:
    if not holes:
        return
    left = sum(last - first for first, last in ranges)
    told = [f"rows {h.first} to {h.last - 1} of {printable(name)!r} {h.reason}" for name, h in holes[:5]]
    told += [f"and {len(holes) - 5} further gaps"] if len(holes) > 5 else []
    text = (
        f"{rows - left} of {rows} rows have no values: {'; '.join(told)}. HDF5 would show zeros; they are left out. "
        "The program that wrote the file was interrupted, or a file is missing. Look for a complete copy"
    )
    if all(name == ids for name, _ in holes):
        text += ". The vectors without their ids: --ids row, or --ids auto (load)"
    if not left:
        raise DamageError(path, text)
    findings.error("rows-never-written", path, text, rows - left)


def _zeros_at_the_end(file: File) -> None:
    """Rows at the end that are zeros with the id 0: HDF5 fills a dataset with these when its first row is written.

    Ids are unique in what people keep, so that several rows of id 0 with nothing but zeros are no rows.
    """
    assert file.ids is not None
    count, step = 0, 1 << 12
    with file.vectors.open() as vectors, file.ids.open() as ids:
        last = file.rows
        n = 2
        while last:
            n = min(n, last)
            found = np.empty((n, file.vectors.items), file.vectors.dtype)
            number = np.empty((n, 1), file.ids.dtype)
            if number.dtype.kind not in "iuf":
                return
            vectors(last - n, found)
            ids(last - n, number)
            zero = ~(found.view(np.uint8).reshape(n, -1).any(axis=1) | (number[:, 0] != 0))
            if not zero.all():
                count += n - 1 - int(np.flatnonzero(~zero)[-1])
                break
            count, last, n = count + n, last - n, step
    if count < 2:
        return
    text = (
        f"the last {count} rows are zeros with the id 0: it looks as if the program that wrote the file was interrupted. They "
        "are read as they are; look for a complete copy"
    )
    file.findings.warning("rows-look-unwritten", file.path, text, count)


def _attribute(path: str, rows: int, field: str, name: str, dtype: str, following: Following) -> tuple[str, Column]:
    place = locate(path, name, following)
    column = _column(name, place, following) if place else None
    shape = None
    if place:
        with open_file(place.path) as h, damage(place.path):
            shape = h[place.name].shape
    if column is None or shape != (rows,) or np.dtype(column.dtype) != np.dtype(dtype):
        found = f"{shape} of {column.dtype}" if column else "none"
        raise DamageError(path, f"dataset {name!r}: expected {rows} values of {dtype}, found {found}")
    return field, column


def _column(name: str, place: Place, following: Following, *, texts: bool = False) -> Column:
    """How to read a dataset: its bytes where they lie if they are simply there, else through HDF5.

    Strings are their bytes, unless they are `texts`.
    """
    path = place.path
    size = os.stat(path).st_size
    with open_file(path) as h, damage(path):
        dataset = _readable(open_dataset(h, place), path)
        dtype = dataset.dtype
        items = int(np.prod(dataset.shape[1:]))
        if dtype.kind == "S" and not texts:
            dtype, items = np.dtype("u1"), items * dtype.itemsize
        if dataset.chunks and int(np.prod(dataset.chunks)) * dataset.dtype.itemsize > MAX_CHUNK:
            raise DamageError(path, f"dataset {name!r}: chunks of {dataset.chunks} are too large")
        if dataset.external and not dataset.is_virtual:
            return FileColumn(name, _plain_type(path, dataset, dtype), items, tuple(extents(place, dataset, following)[0]))
        offset = None if dataset.chunks or dataset.is_virtual else dataset.id.get_offset()
        if offset is None or not _is_plain(dataset):
            return DatasetColumn(name, dtype.str if dtype.kind != "O" else "O", items, place)
        if offset + dataset.nbytes > size:
            raise DamageError(path, f"dataset {name!r}: needs {dataset.nbytes} bytes, the file ends before", offset=offset)
        return FileColumn(name, dtype.str, items, ((path, int(offset), int(dataset.nbytes)),))


def _is_plain(dataset: Any) -> bool:
    """Whether numpy has the dataset's bytes as they are stored."""
    import h5py

    if dataset.dtype.kind == "S":
        return True
    return dataset.dtype.kind in "iuf" and bool(dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def _plain_type(path: str, dataset: Any, dtype: np.dtype[Any]) -> str:
    if not _is_plain(dataset):
        raise UsageError(f"{path}: external storage of {dataset.dtype} is not read; copy the file with h5repack first")
    return dtype.str


def _readable(dataset: Any, path: str) -> Any:
    """The dataset, with what HDF5 needs to decompress it. Raises UsageError where a filter is missing."""
    import h5py

    plist = dataset.id.get_create_plist()
    for number, _, _, name in (plist.get_filter(n) for n in range(plist.get_nfilters())):
        if h5py.h5z.filter_avail(number):
            continue
        with contextlib.suppress(ImportError):
            import hdf5plugin  # noqa: F401 - makes the filters known to HDF5
        if not h5py.h5z.filter_avail(number):
            text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
            what = f"{path}: is compressed with filter {number} ({printable(text.strip())}), which"
            raise MissingPackageError(what, "hdf5plugin", "compress", exit_code=1)
    return dataset


def _plain(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None
