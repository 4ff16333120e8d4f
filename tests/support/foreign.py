"""Files of vectors as others write them, with the rows that are right: dtypes × layouts × names × links."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from milvus_offline.model import Source

ROWS, WIDTH = 123, 16


@dataclass(frozen=True)
class Foreign:
    """A way of writing vectors and ids, and what is right: float32 or bits, and ids."""

    name: str
    vectors: Any
    ids: Any
    right: Any
    options: Mapping[str, Any]


def _random(dtype: str) -> Any:
    r = np.random.default_rng(5)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return r.standard_normal((ROWS, WIDTH)).astype(kind)
    if kind.kind == "b":
        return r.integers(0, 2, (ROWS, WIDTH)).astype(bool)
    low = max(np.iinfo(kind).min, -(1 << 20))
    return r.integers(low, min(np.iinfo(kind).max, 1 << 20), (ROWS, WIDTH)).astype(kind)


def strings() -> Any:
    """Bits as MilvusDM writes them of several segments; trailing zeros in some rows, one row of nothing else."""
    bits = np.random.default_rng(6).integers(0, 256, (ROWS, WIDTH), "u1")
    bits[:, -1], bits[7, -9:], bits[11] = 0, 0, 0
    return bits


VECTORS: dict[str, tuple[Callable[[], tuple[Any, Any]], Mapping[str, Any]]] = {
    **{
        f"float {t}": ((lambda t=t: (_random(t), _random(t).astype("<f4"))), {})
        for t in ("<f2", "<f4", ">f4", "<f8", ">f8", "i1", "<i2", ">i4", "<i8", "<u2", "<u4")
    },
    "uint8 as numbers": (lambda: (_random("u1"), _random("u1").astype("<f4")), {"vector_type": "float"}),
    "uint8 with a metric": (lambda: (_random("u1"), _random("u1").astype("<f4")), {"metric": "L2"}),
    "uint8 as bits": (lambda: (_random("u1"), _random("u1")), {"metric": "HAMMING"}),
    "strings": (lambda: (strings().view(f"S{WIDTH}")[:, 0], strings()), {}),
    "bools": (lambda: (_random("?"), np.packbits(_random("?"), axis=1)), {}),
}
IDS: dict[str, Callable[[Any], Any]] = {
    "int64": lambda i: i,
    "int32": lambda i: i.astype("<i4"),
    "uint64": lambda i: i.astype("<u8"),
    "big-endian column": lambda i: i.astype(">i8").reshape(-1, 1),
    "float64": lambda i: i.astype("f8"),
    "texts": lambda i: np.array([str(x).encode() for x in i]),
    "strings of any length": lambda i: np.array([str(x) for x in i], object),
}
LAYOUTS: dict[str, Mapping[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": True},
    "ragged chunks": {"chunks": (7,)},
    "gzip": {"chunks": (20,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (20,), "compression": "lzf"},
}
LINKS = ("none", "soft", "external", "group", "virtual", "storage")


def write(
    path: Path, vectors: Any, ids: Any, layout: str = "contiguous", link: str = "none", names: Any = ("embeddings", "ids")
) -> None:
    """Writes a file; with a `link`, the datasets are elsewhere: under another name, in another file, in another's storage."""
    made = dict(LAYOUTS[layout])

    def dataset(group: Any, name: str, data: Any) -> None:
        options = dict(made)
        if isinstance(options.get("chunks"), tuple):
            options["chunks"] = (*options["chunks"], *data.shape[1:])
        kind = h5py.string_dtype() if data.dtype == object else None
        group.create_dataset(name, data=data, dtype=kind, **options)

    with h5py.File(path, "w") as h:
        for name, data in zip(names, (vectors, ids), strict=True):
            if link == "none":
                dataset(h, name, data)
            elif link == "soft":
                dataset(h, f"real/{name}", data)
                h[name] = h5py.SoftLink(f"/real/{name}")
            elif link == "storage":
                (path.parent / f"{path.stem}.{name}").write_bytes(b"head" + data.tobytes())
                h.create_dataset(name, data.shape, data.dtype, external=[(f"{path.stem}.{name}", 4, data.nbytes)])
            else:
                _elsewhere(path, h, name, data, dataset, link)


def _elsewhere(path: Path, h: Any, name: str, data: Any, dataset: Callable[..., None], link: str) -> None:
    parts = np.array_split(np.arange(len(data)), 3) if link == "virtual" else [np.arange(len(data))]
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    for n, part in enumerate(parts):
        other = path.with_name(f"{path.stem}-{name}-{n}.h5")
        with h5py.File(other, "w") as o:
            dataset(o, "group/data", data[part])
        layout[part[0] : part[-1] + 1] = h5py.VirtualSource(other.name, "group/data", data[part].shape)
    if link == "virtual":
        h.create_virtual_dataset(name, layout)
    elif link == "external":
        h[name] = h5py.ExternalLink(other.name, "/group/data")
    else:
        h[f"{name}-group"] = h5py.ExternalLink(other.name, "group")
        h[name] = h5py.SoftLink(f"{name}-group/./data")


def cases() -> Iterator[tuple[str, str, str, str]]:
    """(vectors, ids, layout, link): each value of each with each of the others' most usual, and some at random."""
    usual = ("float <f4", "int64", "contiguous", "none")
    every = (tuple(VECTORS), tuple(IDS), tuple(LAYOUTS), LINKS)
    seen = set()
    for n, values in enumerate(every):
        for value in values:
            seen.add((*usual[:n], value, *usual[n + 1 :]))
    r = np.random.default_rng(7)
    seen |= {tuple(str(v[r.integers(len(v))]) for v in every) for _ in range(120)}
    for vectors, ids, layout, link in sorted(seen):
        plain = ids != "strings of any length" and vectors != "bools"
        if link == "storage" and (layout != "contiguous" or not plain):
            continue
        if link == "virtual" and ids == "strings of any length":
            continue
        yield vectors, ids, layout, link


def rows_of(source: Source, max_bytes: int = 999) -> tuple[Any, Any]:
    """All ids and vectors of a source, read in small batches."""
    batches = [
        (b.ids.copy(), b.vectors.copy())
        for c in source.collections
        for p in c.partitions
        for q in p.pieces
        for b in q.batches(max_bytes)
    ]
    return np.concatenate([i for i, _ in batches]), np.concatenate([v for _, v in batches])
