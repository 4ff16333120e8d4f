"""Our own export folder as a source, by its manifest: only a finished one, only what the manifest names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import fileio
from ..errors import DamageError
from ..findings import Findings
from ..manifest import EMBEDDINGS, IDS, MANIFEST, dataset_names, read_manifest, schema_of
from ..model import Finding, Piece, Salvaged, Schema, Severity, SourceCollection, SourcePartition
from .options import SourceOptions, fingerprint_files
from .written import require_disk, says_where, structure_differs, written_file


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
    root = fileio.absolute(fileio.as_path(path))
    fileio.list_once(root)
    manifest = read_manifest(root)
    files: list[str] = []
    collections = []
    structures = Findings()
    try:
        for c in manifest["collections"]:
            schema = schema_of(c)
            partitions = []
            for p in c["partitions"]:
                pieces: list[Piece] = []
                for f in p["files"]:
                    files.append(_inside(root, f["path"]))
                    pieces += file_pieces(files[-1], schema, f)
                    if says_where(f, files[-1]) and (differs := structure_differs(files[-1], f)):
                        structures.info("structure-differs", files[-1], f"{files[-1]}: {differs}")
                partitions.append(SourcePartition(str(p["name"]), pieces))
            collections.append(SourceCollection(schema, partitions))
        # what the export could not bring is not in its copy either
        findings = Findings(
            Finding(Severity(f["severity"]), str(f["code"]), str(f["where"]), str(f["message"]), f.get("rows"))
            for f in manifest.get("findings", [])
            if f["severity"] != Severity.INFO.value
        )
        findings += structures
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DamageError(root / MANIFEST, f"not what a manifest holds: {e!r}") from e
    if manifest.get("salvage"):
        text = "rows that were salvaged apart from the live ones are not loaded; name their .h5 files to load them"
        findings.info("salvage-left-out", str(root), text)
    return ExportSource(str(root), collections, findings, files)


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> ExportSource:
    """`open_export`; nothing more can be said of an export."""
    return open_export(path)


def _inside(root: Path, relative: Any) -> str:
    path = str(root / str(relative)) if fileio.is_remote(root) else os.path.abspath(root / str(relative))
    if ".." in path.split("/") or os.path.commonpath([path, root]) != os.path.commonpath([root]):
        raise DamageError(root / MANIFEST, f"names a file outside of the export: {relative}")
    if not fileio.as_path(path).is_file():
        raise DamageError(path, "the manifest names this file, it is missing")
    return path


def file_pieces(path: str, schema: Schema | None, entry: Mapping[str, Any]) -> Sequence[Piece]:
    """The rows of one file of an export, which `entry` of the manifest describes; without a schema any vectors will do. Raises
    DamageError when it holds others, UsageError for a file in a bucket that HDF5 would have to read."""
    rows = int(entry["rows"])
    require_disk(path, entry)
    if says_where(entry, path):
        return written_file(path, entry, schema).pieces()
    if path.endswith((".npy", ".parquet")) and schema is not None:
        from .columnar import column_pieces

        return column_pieces(path, schema, rows)
    if differs := structure_differs(path, entry):
        raise DamageError(path, f"{differs}; take another copy of this export")
    from .hdf5 import look

    names = dataset_names(schema) if schema else {}
    said = SourceOptions(embeddings=EMBEDDINGS, ids=IDS, vector_type=schema.vector_type.value if schema else None)
    attributes = {a.name: (names[a.name], a.dtype) for a in schema.attributes} if schema else {}
    found = look(path, said, attributes, segments=True)
    shape = (found.width, found.vector_type)
    expected = (schema.width, schema.vector_type) if schema else shape
    if found.rows != rows or shape != expected or found.ids is None:
        raise DamageError(
            path,
            f"expected {rows} rows of {expected[0]} {expected[1].value} elements with ids, "
            f"found {found.rows} of {found.width} {found.vector_type.value}{'' if found.ids else ' without ids'}",
        )
    for finding in found.findings:
        if finding.severity is Severity.ERROR:
            raise DamageError(path, finding.message)
    return found.pieces()
