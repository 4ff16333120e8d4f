"""The manifest of an export: what it says, how it is written, read and checked. Its layout is a contract (docs/commands.md)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import fileio
from ._version import __version__
from .errors import DamageError, UsageError
from .model import Array, Attribute, Batch, Finding, IndexSpec, SalvageKind, Schema, Source, VectorType
from .names import file_names

MANIFEST = "manifest.json"
LEDGER = ".milvus-offline-ledger.jsonl"
"""Beside the manifest, or in a new store, while it is being written."""
FORMAT = "milvus-offline-export"
CHECKSUM = "checksum"
"""The manifest's own; manifests of earlier versions have none."""
VERSION = 1
EMBEDDINGS = "embeddings"
IDS = "ids"
_MAX_BYTES = 1 << 30
_PIECE = 1 << 20


class OutFile(NamedTuple):
    """One file of an export. `path` is relative to the export's folder."""

    path: str
    schema: Schema
    partition: str
    rows: int
    salvage: SalvageKind | None = None
    aligned: bool = False
    """Whether each dataset begins 8 bytes after a block of the disk, as the payload of a segment file does."""


def build_manifest(
    source: Source,
    entries: Mapping[str, dict[str, Any]],
    files: Iterable[OutFile],
    notes: Sequence[Finding],
    *,
    attributes: bool = True,
) -> dict[str, Any]:
    """The manifest of a finished export; `entries` by the path of the file that they describe.

    `attributes`: whether the files hold those of hybrid collections.
    """
    by_place: dict[tuple[SalvageKind | None, str, str], list[dict[str, Any]]] = {}
    for file in files:
        by_place.setdefault((file.salvage, file.schema.name, file.partition), []).append(entries[file.path])
    reasons = {(s.kind, s.schema.name, s.partition): s.reason for s in source.salvage}
    return {
        "format": FORMAT,
        "version": VERSION,
        "complete": True,
        "written_by": f"milvus_offline {__version__}",
        "source": source.describe(),
        "collections": [
            {
                **describe_schema(c.schema if attributes else replace(c.schema, attributes=())),
                "partitions": [
                    {"name": p.name, "rows": sum(f["rows"] for f in found), "files": found}
                    for p in c.partitions
                    for found in (by_place[None, c.schema.name, p.name],)
                ],
            }
            for c in source.collections
        ],
        "salvage": [
            {
                "kind": kind,
                "collection": collection,
                "partition": partition,
                "reason": reasons[kind, collection, partition],
                "rows": sum(f["rows"] for f in found),
                "files": found,
            }
            for (kind, collection, partition), found in by_place.items()
            if kind is not None
        ],
        "findings": [f.to_json() for f in (*source.findings, *notes)],
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any], *, durable: bool = True) -> None:
    """Writes the manifest into an export's folder, as a whole."""
    fileio.write_text(folder / MANIFEST, as_text(manifest), durable=durable)


def as_text(manifest: Mapping[str, Any]) -> str:
    """What stands in the file: the manifest with a checksum of its own."""
    return json.dumps({**manifest, CHECKSUM: checksum_of(manifest)}, indent=1) + "\n"


def paths_in(manifest: Mapping[str, Any]) -> set[str]:
    """The files that a manifest lists, relative to the export's folder; none where it only looks like one."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        parts = [p for c in manifest.get("collections", []) for p in c.get("partitions", [])] + manifest.get("salvage", [])
        return {str(f[key]) for p in parts for f in p.get("files", []) for key in ("path", "ids_path") if key in f}
    return set()


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """xxh3-128 of the manifest's values, however they are laid out in the file: of the compact JSON with sorted keys, without
    the checksum itself."""
    import xxhash

    values = {key: value for key, value in manifest.items() if key != CHECKSUM}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(text.encode())}"


def is_export(folder: Path) -> bool:
    """Whether the folder holds a manifest of ours, sound or not; also one that may not be read: its reader says so."""
    try:
        with (folder / MANIFEST).open("rb") as f:
            return FORMAT.encode() in f.read(4096)
    except PermissionError:
        return fileio.closed(folder) is None
    except OSError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished export.

    Raises OSError when there is none, DamageError when it is not what this program writes, UsageError when the export was not
    finished or is of a later version.
    """
    path = folder / MANIFEST
    if path.stat().st_size > _MAX_BYTES:
        raise DamageError(path, f"expected a manifest, found {path.stat().st_size} bytes")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise DamageError(path, f"not JSON: {e}") from e
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamageError(path, f"not the manifest of an export: expected format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise UsageError(f"{path}: export of version {manifest.get('version')!r}, this program reads version {VERSION}")
    if manifest.get("complete") is not True:
        raise UsageError(f"{path}: the export was not finished: run it again with --resume")
    if CHECKSUM in manifest and manifest[CHECKSUM] != checksum_of(manifest):
        raise DamageError(path, "its values are not those that were written: its own checksum is another one")
    return manifest


# Schemas --------------------------------------------------------------------------------------------------------------------


def dataset_names(schema: Schema) -> dict[str, str]:
    """Attribute -> name of its dataset; what cannot be a name in HDF5 is percent-encoded."""
    return file_names((a.name for a in schema.attributes), reserved=(EMBEDDINGS, IDS))


def describe_schema(schema: Schema) -> dict[str, Any]:
    """A schema as the manifest and `inspect --json` show it."""
    result: dict[str, Any] = {
        "name": schema.name,
        "dimension": schema.dimension,
        "vector_type": schema.vector_type.value,
        "metric_type": schema.metric_type,
        "index": {"type": schema.index.type, "params": dict(schema.index.params)},
        "index_file_size": schema.index_file_size,
        "auto_id": schema.auto_id,
    }
    if schema.attributes:
        names = dataset_names(schema)
        result["attributes"] = [{"name": a.name, "dtype": a.dtype, "dataset": names[a.name]} for a in schema.attributes]
    return result


def schema_of(described: Mapping[str, Any]) -> Schema:
    """What `describe_schema` described. Raises KeyError, TypeError or ValueError when it did not."""
    index = described.get("index") or {}
    return Schema(
        name=str(described["name"]),
        dimension=int(described["dimension"]),
        vector_type=VectorType(described["vector_type"]),
        metric_type=described.get("metric_type"),
        index=IndexSpec(str(index.get("type", "FLAT")), dict(index.get("params") or {})),
        index_file_size=described.get("index_file_size"),
        auto_id=described.get("auto_id"),
        attributes=tuple(Attribute(str(a["name"]), str(a["dtype"])) for a in described.get("attributes", ())),
    )


# Checksums ------------------------------------------------------------------------------------------------------------------


def octets(array: Array) -> memoryview:
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def columns_of(batch: Batch, attributes: Sequence[Attribute]) -> list[Array]:
    """Vectors, ids, then the attributes in the schema's order, of zeros where a segment has lost them."""
    lost = {a.name: np.zeros(len(batch.ids), a.dtype) for a in attributes if a.name not in batch.attributes}
    return [batch.vectors, batch.ids, *(lost[a.name] if a.name in lost else batch.attributes[a.name] for a in attributes)]


class Checksums:
    """xxh3-128 of a run of rows: vectors, ids and attributes each, in the order of the rows."""

    def __init__(self, attributes: Sequence[Attribute] = ()) -> None:
        import xxhash

        self._attributes = attributes
        self._digests = [xxhash.xxh3_128() for _ in range(2 + len(attributes))]

    def add(self, columns: Sequence[Array]) -> None:
        """Takes what `columns_of` gives."""
        for number, column in enumerate(columns):
            self.update(number, octets(column))

    def update(self, column: int, data: memoryview) -> None:
        """Takes bytes of one column, by its place in `columns_of`."""
        self._digests[column].update(data)

    def result(self) -> dict[str, Any]:
        vectors, ids, *values = (d.hexdigest() for d in self._digests)
        found: dict[str, Any] = {EMBEDDINGS: vectors, IDS: ids}
        if self._attributes:
            found["attributes"] = {a.name: v for a, v in zip(self._attributes, values, strict=True)}
        return found


def structure_checksum(parts: Iterable[bytes | memoryview]) -> str:
    """xxh3-128 of the bytes of an HDF5 file that are no rows."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return f"xxh3-128:{digest.hexdigest()}"


def structure_in(path: str | os.PathLike[str], ranges: fileio.Ranges) -> str:
    """The same of a file that is there. Raises OSError, DamageError."""
    pieces = [(a, min(a + _PIECE, end)) for start, end in ranges for a in range(start, end, _PIECE)]
    return structure_checksum(fileio.read_array(path, np.uint8, b - a, a).data for a, b in pieces)


def checksum_of_parts(parts: Iterable[Mapping[str, Any]]) -> str:
    """A file's checksum: xxh3-128 over its parts' digests, in order."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        for value in (part[EMBEDDINGS], part[IDS], *part.get("attributes", {}).values()):
            digest.update(bytes.fromhex(value))
    return f"xxh3-128:{digest.hexdigest()}"
