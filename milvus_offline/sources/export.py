"""Our own export folder as a source, by its manifest: only a finished one, only what the manifest names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DamageError, UsageError
from ..model import (
    Attribute,
    Finding,
    IndexSpec,
    Piece,
    Salvaged,
    Schema,
    Severity,
    SourceCollection,
    SourcePartition,
    VectorType,
)
from .hdf5 import fingerprint_files, look

MANIFEST = "manifest.json"
FORMAT = "milvus-offline-export"
VERSION = 1
MAX_MANIFEST = 1 << 30


@dataclass
class ExportSource:
    """See model.Source."""

    path: str
    collections: Sequence[SourceCollection]
    findings: Sequence[Finding]
    files: Sequence[str]
    kind: str = "export"
    salvage: Sequence[Salvaged] = field(default_factory=tuple)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "path": self.path, "files": len(self.files)}

    def fingerprint(self) -> str:
        """A digest of every file's name, size and time of change."""
        return fingerprint_files([os.path.join(self.path, MANIFEST), *self.files], "")


def open_export(path: str | os.PathLike[str]) -> ExportSource:
    """The export in the folder `path`.

    Raises UsageError for an export that was not finished or is of a later version, DamageError when a file is missing or
    does not hold what the manifest says.
    """
    root = Path(os.path.abspath(path))
    manifest = read_manifest(root)
    files: list[str] = []
    collections = []
    try:
        for c in manifest["collections"]:
            schema = _schema(c)
            partitions = []
            for p in c["partitions"]:
                pieces: list[Piece] = []
                for f in p["files"]:
                    files.append(_inside(root, f["path"]))
                    pieces += _pieces(files[-1], schema, int(f["rows"]))
                partitions.append(SourcePartition(str(p["name"]), pieces))
            collections.append(SourceCollection(schema, partitions))
        worrying = [f for f in manifest.get("findings", []) if f["severity"] != Severity.INFO.value]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DamageError(root / MANIFEST, f"not what a manifest holds: {e!r}") from e
    findings = []
    if worrying:
        codes = ", ".join(sorted({str(f["code"]) for f in worrying}))
        text = f"the export was made with {len(worrying)} findings ({codes}): see its manifest"
        findings.append(Finding(Severity.INFO, "export-findings", str(root), text))
    if manifest.get("salvage"):
        text = "rows that were salvaged apart from the live ones are not loaded; name their .h5 files to load them"
        findings.append(Finding(Severity.INFO, "salvage-left-out", str(root), text))
    return ExportSource(str(root), collections, findings, files)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a finished export."""
    path = root / MANIFEST
    if path.stat().st_size > MAX_MANIFEST:
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
    return manifest


def _schema(c: Mapping[str, Any]) -> Schema:
    index = c.get("index") or {}
    return Schema(
        name=str(c["name"]),
        dimension=int(c["dimension"]),
        vector_type=VectorType(c["vector_type"]),
        metric_type=c.get("metric_type"),
        index=IndexSpec(str(index.get("type", "FLAT")), dict(index.get("params") or {})),
        index_file_size=c.get("index_file_size"),
        auto_id=c.get("auto_id"),
        attributes=tuple(Attribute(str(a["name"]), str(a["dtype"])) for a in c.get("attributes", ())),
    )


def _inside(root: Path, relative: Any) -> str:
    path = os.path.abspath(root / str(relative))
    if os.path.commonpath([path, root]) != str(root):
        raise DamageError(root / MANIFEST, f"names a file outside of the export: {relative}")
    if not os.path.isfile(path):
        raise DamageError(path, "the manifest names this file, it is missing")
    return path


def _pieces(path: str, schema: Schema, rows: int) -> Sequence[Piece]:
    if path.endswith((".npy", ".parquet")):
        from .columnar import column_pieces

        return column_pieces(path, schema, rows)
    found = look(path)
    expected = (rows, schema.width, schema.vector_type)
    if (found.rows, found.width, found.vector_type) != expected or found.ids is None:
        raise DamageError(
            path,
            f"expected {rows} rows of {schema.width} {schema.vector_type.value} elements with ids, "
            f"found {found.rows} of {found.width} {found.vector_type.value}{'' if found.ids else ' without ids'}",
        )
    return found.pieces()
