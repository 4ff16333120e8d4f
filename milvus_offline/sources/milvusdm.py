"""The folder that MilvusDM's M2H leaves: .h5 files and, in `yamls/`, what the catalog said of each.

`<run>/<collection>/<tag>.h5` goes with `<run>/yamls/<collection>/<tag>.yaml`; tags with `/` are folders below. The files name
each other by the paths they had on that machine, so that only their places count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..findings import Findings
from ..model import DEFAULT_PARTITION
from .files import File, FilesSource, assemble, find_files
from .hdf5 import look
from .hdf5.source import SUFFIXES
from .options import SourceOptions

YAMLS = "yamls"
_MAX_YAML = 1 << 20


@dataclass(frozen=True)
class Said:
    """What a yaml file says of the .h5 beside it. `index_file_size` is in bytes."""

    collection: str | None = None
    partition: str | None = None
    metric: str | None = None
    dimension: int | None = None
    index_file_size: int | None = None


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> FilesSource:
    """All .h5 files of a run, by what the yaml files say. Raises DamageError or UsageError."""
    root = Path(os.path.abspath(path))
    findings = Findings()
    said = {p: _read(root / YAMLS / p.with_suffix(".yaml")) for p in _described(root)}
    there = [p.relative_to(root) for p in find_files(root, SUFFIXES, depth=64)]
    for relative in sorted(said.keys() - set(there)):
        text = f"its {YAMLS}/{relative.with_suffix('.yaml')} is there, the file is not: its rows are missing"
        findings.error("file-missing", str(root / relative), text)
    files = [_file(root, relative, said.get(relative), options, findings) for relative in there]
    if not files:
        raise UsageError(f"{root}: {YAMLS}/ is here, but none of the .h5 files that it describes")
    return assemble("milvusdm", root, files, options, findings)


def _described(root: Path) -> list[Path]:
    """The .h5 files that the yaml files describe, relative to the run."""
    return [p.relative_to(root / YAMLS).with_suffix(".h5") for p in sorted((root / YAMLS).rglob("*.yaml"))]


def _read(path: Path) -> Said:
    """What a yaml file says; nothing where it is not what MilvusDM writes."""
    import yaml

    try:
        document = yaml.safe_load(path.read_bytes()) if path.stat().st_size <= _MAX_YAML else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return Said()
    body = document.get("H2M") if isinstance(document, dict) else None
    if not isinstance(body, dict):
        return Said()
    made = body.get("collection_parameter")
    made = made if isinstance(made, dict) else {}
    size = _number(made, "index_file_size")
    return Said(
        _text(body, "dest_collection_name"),
        _text(body, "dest_partition_name") or DEFAULT_PARTITION,
        (_text(made, "metric_type") or "").upper() or None,
        _number(made, "dimension"),
        size << 20 if size else None,
    )


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    return str(value) if isinstance(value, (str, int, float)) and str(value) else None


def _number(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _file(root: Path, relative: Path, said: Said | None, options: SourceOptions, findings: Findings) -> File:
    known = said or Said()
    file = look(root / relative, options._replace(metric=options.metric or known.metric, dimension=known.dimension))
    parts = relative.with_suffix("").parts
    file.collection = known.collection or (parts[0] if len(parts) > 1 else root.name)
    tag = "/".join(parts[1:]) or parts[0]
    file.partition = known.partition or (DEFAULT_PARTITION if tag == "None" else tag)
    file.metric = options.metric or known.metric or file.metric
    file.index_file_size = known.index_file_size
    if not file.metric:
        text = (
            f"{YAMLS}/ names no metric for this file: choose it with --metric. Its collection and partition follow from its "
            "path"
        )
        findings.warning("metric-unknown", str(root / relative), text, file.rows)
    return file
