"""Checking an export: its files against its manifest, and every row against the store it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamageError, MilvusOfflineError, UsageError
from .manifest import EMBEDDINGS, IDS, MANIFEST, Checksums, checksum_of_parts, octets, read_manifest, schema_of
from .milvus1.rows import Hashes, hashes_of
from .model import Batch, Finding, Piece, Schema, Severity, Source, SourcePartition
from .sources.export import file_pieces, open_export

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
    for where, schema, entry in _files(out):
        result.files += 1
        try:
            _check_file(out, where, schema, entry, result, advance)
        except (MilvusOfflineError, OSError, KeyError, ValueError) as e:
            result.differs("file-unreadable", where, f"{entry.get('path')}: {e}", entry.get("rows"))
    if against is not None:
        _compare(out, against, result, advance)
    return result


def _files(out: Path) -> list[tuple[str, Schema | None, dict[str, Any]]]:
    """(what it is, its schema, its entry in the manifest) of every file; salvaged ones have no schema there."""
    try:
        manifest = read_manifest(out)
        live = [
            (f"{c['name']}/{p['name']}", schema_of(c), f)
            for c in manifest["collections"]
            for p in c["partitions"]
            for f in p["files"]
        ]
        salvaged = [
            (f"salvage/{s['kind']}/{s['collection']}/{s['partition']}", None, f)
            for s in manifest.get("salvage", [])
            for f in s["files"]
        ]
        shaped = all(isinstance(f["path"], str) for _, _, f in (*live, *salvaged))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamageError) as e:
        raise UsageError(f"{out}: expected a complete export of this tool (a folder with {MANIFEST}): {e}") from e
    if not shaped:
        raise UsageError(f"{out / MANIFEST}: not the manifest of a complete export")
    return [*live, *salvaged]


def _check_file(
    out: Path, where: str, schema: Schema | None, entry: Mapping[str, Any], result: ExportCheck, advance: Advance | None
) -> None:
    paths = [out / entry[key] for key in ("path", "ids_path") if key in entry]
    for path in paths:
        if not path.is_file():
            result.differs("file-missing", where, f"{path} is not there", entry["rows"])
            return
    size = sum(p.stat().st_size for p in paths)
    if size != entry["bytes"]:
        found = f"{paths[0]}: the manifest says {entry['bytes']} bytes, the file has {size}"
        result.differs("file-size", where, found, entry["rows"])
    stream = _Stream(file_pieces(str(paths[0]), schema, entry["rows"]))
    row = 0
    for part in entry["parts"]:
        sums = Checksums()
        for batch in stream.take(part["rows"]):
            sums.add(batch)
            if advance is not None:
                advance(len(batch.ids), batch.vectors.nbytes + batch.ids.nbytes)
        found_sums, end = sums.result(), row + part["rows"]
        for name in (EMBEDDINGS, IDS):
            if found_sums[name] != part[name]:
                result.differs("checksum", where, f"{paths[0]}: `{name}` of rows {row} to {end - 1} changed", part["rows"])
        row = end
    result.rows += entry["rows"]
    if entry["parts"] and checksum_of_parts(entry["parts"]) != entry["checksum"]:
        result.differs("checksum", where, "the manifest's own checksums contradict each other")


class _Stream:
    """The rows of some pieces, one behind the other."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._batches = (b for p in pieces for b in p.batches())
        self._rest: Batch | None = None

    def take(self, rows: int) -> Iterator[Batch]:
        """The next `rows` rows, fewer at the end; a batch is overwritten by the next one."""
        while rows:
            batch = self._rest or next(self._batches, None)
            if batch is None:
                return
            n = min(rows, len(batch.ids))
            self._rest = Batch(batch.ids[n:], batch.vectors[n:]) if n < len(batch.ids) else None
            yield Batch(batch.ids[:n], batch.vectors[:n])
            rows -= n


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
    stream = _Stream(other.pieces)
    for ids, vectors, _ in (b for p in ours.pieces for b in p.batches()):
        done = 0
        for batch in stream.take(len(ids)):
            n = len(batch.ids)
            if not np.array_equal(ids[done : done + n], batch.ids):
                return False
            if octets(vectors[done : done + n]) != octets(batch.vectors):
                return False
            done += n
            if advance is not None:
                advance(n, 0)
        if done < len(ids):
            return False
    return True


def _compare_sets(where: str, ours: SourcePartition, other: SourcePartition, result: ExportCheck) -> None:
    """Counts rows that only one side has: 8 bytes a row, only after the order differed."""
    here, there = (np.sort(hashes_of(b for q in p.pieces for b in q.batches())) for p in (ours, other))
    missing, extra = _surplus(there, here), _surplus(here, there)
    if missing or extra:
        message = f"{missing} rows of the store are not in the export, {extra} rows of the export are not in the store"
        result.differs("rows-differ", where, message, missing + extra)


def _surplus(left: Hashes, right: Hashes) -> int:
    """How many elements of `left` have no counterpart in `right`, as multisets; both sorted."""
    values, counts = np.unique(left, return_counts=True)
    there = np.searchsorted(right, values, "right") - np.searchsorted(right, values, "left")
    return int(np.maximum(counts - there, 0).sum())
