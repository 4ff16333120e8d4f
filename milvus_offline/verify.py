"""Checking an export: its files against its manifest, and every row against the store it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamageError, MilvusOfflineError, UsageError
from .milvus1.rows import Hashes, hashes_of
from .model import Batch, Finding, Severity, Source, SourcePartition
from .sources.export import open_export
from .targets.hdf5 import MANIFEST, Checksums, checksum_of_parts

Advance = Callable[[int, int], None]


@dataclass
class ExportCheck:
    """What was compared; every difference is a finding of severity ERROR."""

    rows: int = 0
    files: int = 0
    findings: list[Finding] = field(default_factory=list)

    def differs(self, code: str, where: str, message: str, rows: int | None = None) -> None:
        self.findings.append(Finding(Severity.ERROR, code, where, message, rows))


def check_export(out: Path, *, against: Source | None = None, advance: Advance | None = None) -> ExportCheck:
    """Reads an export through: files, sizes, counts and checksums; with `against` also every id and vector.

    Raises UsageError when `out` is no complete export of ours.
    """
    result = ExportCheck()
    manifest = _manifest(out)
    parts = [
        (f"{c['name']}/{p['name']}", p["rows"], f) for c in manifest["collections"] for p in c["partitions"] for f in p["files"]
    ]
    parts += [
        (f"salvage/{s['kind']}/{s['collection']}/{s['partition']}", s["rows"], f)
        for s in manifest.get("salvage", [])
        for f in s["files"]
    ]
    for where, _, entry in parts:
        result.files += 1
        try:
            _check_file(out, where, entry, result, advance)
        except (MilvusOfflineError, OSError, KeyError, ValueError) as e:
            result.differs("file-unreadable", where, f"{entry.get('path')}: {e}", entry.get("rows"))
    if against is not None:
        _compare(out, against, result, advance)
    return result


def _manifest(out: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
        ours = manifest["format"] == "milvus-offline-export" and manifest["complete"] is True
        shaped = all(isinstance(f["path"], str) for c in manifest["collections"] for p in c["partitions"] for f in p["files"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{out}: expected a complete export of this tool (a folder with {MANIFEST}): {e}") from e
    if not ours or not shaped:
        raise UsageError(f"{out / MANIFEST}: not the manifest of a complete export")
    result: dict[str, Any] = manifest
    return result


def _check_file(out: Path, where: str, entry: Mapping[str, Any], result: ExportCheck, advance: Advance | None) -> None:
    path = out / entry["path"]
    if not path.is_file():
        result.differs("file-missing", where, f"{path} is not there", entry["rows"])
        return
    size = path.stat().st_size
    if size != entry["bytes"]:
        result.differs(
            "file-size", where, f"{path}: the manifest says {entry['bytes']} bytes, the file has {size}", entry["rows"]
        )
    checker = {".h5": _check_hdf5}.get(path.suffix, _check_plain)
    checker(path, where, entry, result, advance)


def _check_plain(path: Path, where: str, entry: Mapping[str, Any], result: ExportCheck, advance: Advance | None) -> None:
    """Files of other formats carry a checksum of their bytes."""
    name, _, expected = str(entry["checksum"]).partition(":")
    digest = _digest(name)
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
            if advance is not None:
                advance(0, len(chunk))
    result.rows += entry["rows"]
    if digest.hexdigest() != expected:
        result.differs("checksum", where, f"{path}: its bytes are not those that were written", entry["rows"])


def _digest(name: str) -> Any:
    if name == "xxh3-128":
        import xxhash

        return xxhash.xxh3_128()
    return hashlib.new(name)


def _check_hdf5(path: Path, where: str, entry: Mapping[str, Any], result: ExportCheck, advance: Advance | None) -> None:
    import h5py

    with h5py.File(path, "r") as h:
        vectors, ids = h["embeddings"], h["ids"]
        if len(vectors) != entry["rows"] or len(ids) != entry["rows"]:
            message = f"{path}: {len(vectors)} embeddings and {len(ids)} ids, the manifest says {entry['rows']}"
            result.differs("rows", where, message, entry["rows"])
            return
        row = 0
        step = max(1, (1 << 20) // max(1, vectors.dtype.itemsize * int(np.prod(vectors.shape[1:]))))
        for part in entry["parts"]:
            sums, end = Checksums(), row + part["rows"]
            for first in range(row, end, step):
                last = min(first + step, end)
                batch = Batch(ids[first:last], vectors[first:last])
                sums.add(batch)
                if advance is not None:
                    advance(last - first, batch.vectors.nbytes + batch.ids.nbytes)
            found = sums.result()
            for name in ("embeddings", "ids"):
                if found[name] != part[name]:
                    result.differs("checksum", where, f"{path}: `{name}` of rows {row} to {end - 1} changed", part["rows"])
            row = end
        result.rows += entry["rows"]
    if entry["parts"] and checksum_of_parts(entry["parts"]) != entry["checksum"]:
        result.differs("checksum", where, "the manifest's own checksums contradict each other")


# Against the source ----------------------------------------------------------------------------------------------------


def _compare(out: Path, source: Source, result: ExportCheck, advance: Advance | None) -> None:
    exported = open_export(out)
    theirs = {(c.schema.name, p.name): p for c in source.collections for p in c.partitions}
    for collection in exported.collections:
        for partition in collection.partitions:
            where = f"{collection.schema.name}/{partition.name}"
            other = theirs.get((collection.schema.name, partition.name))
            if other is None:
                result.differs("partition-unknown", where, "is in the export, but not in the store", partition.rows)
                continue
            try:
                if not _same_order(partition, other, advance):
                    _compare_sets(where, partition, other, result)
            except (DamageError, OSError) as e:
                result.differs("file-unreadable", where, str(e))


def _same_order(ours: SourcePartition, other: SourcePartition, advance: Advance | None) -> bool:
    """Whether both give the same rows in the same order, bit for bit."""
    if ours.rows != other.rows:
        return False
    left, right = _stream(ours), _stream(other)
    a = b = None
    while True:
        a = a if a is not None and len(a.ids) else next(left, None)
        b = b if b is not None and len(b.ids) else next(right, None)
        if a is None or b is None:
            return a is None and b is None
        n = min(len(a.ids), len(b.ids))
        if not np.array_equal(a.ids[:n], b.ids[:n]) or _octets(a.vectors[:n]) != _octets(b.vectors[:n]):
            return False
        if advance is not None:
            advance(n, 0)
        a, b = Batch(a.ids[n:], a.vectors[n:]), Batch(b.ids[n:], b.vectors[n:])


def _stream(partition: SourcePartition) -> Iterator[Batch]:
    for piece in partition.pieces:
        yield from piece.batches()


def _octets(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _compare_sets(where: str, ours: SourcePartition, other: SourcePartition, result: ExportCheck) -> None:
    """Counts rows that only one side has: 8 bytes a row, only after the order differed."""
    here, there = (np.sort(hashes_of(_stream(p))) for p in (ours, other))
    missing, extra = _surplus(there, here), _surplus(here, there)
    if missing or extra:
        message = f"{missing} rows of the store are not in the export, {extra} rows of the export are not in the store"
        result.differs("rows-differ", where, message, missing + extra)


def _surplus(left: Hashes, right: Hashes) -> int:
    """How many elements of `left` have no counterpart in `right`, as multisets; both sorted."""
    values, counts = np.unique(left, return_counts=True)
    there = np.searchsorted(right, values, "right") - np.searchsorted(right, values, "left")
    return int(np.maximum(counts - there, 0).sum())
