"""Runs the command line in this process, and looks at what it left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - lets h5py read lz4 and zstd

from milvus_offline.cli import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_no_json)


def _no_json(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def call(*arguments: object) -> Outcome:
    """`milvus-offline ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def spawn(*arguments: object, **options: Any) -> Outcome:
    """`milvus-offline ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "milvus_offline", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


def fingerprint(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below `root` with its size, mode, inode and time of change."""
    return {
        str(p.relative_to(root)): (s.st_size, s.st_mode, s.st_ino, s.st_mtime_ns)
        for p in (root, *root.rglob("*"))
        for s in (p.lstat(),)
    }


def files(root: Path) -> dict[str, bytes]:
    """The bytes of all files below `root`."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def manifest(out: Path) -> Any:
    return json.loads((out / "manifest.json").read_bytes())


def exported(out: Path) -> dict[tuple[str, str], Counter[tuple[int, bytes]]]:
    """The rows of an export by (collection, partition); asserts that the manifest's counts are those of the files."""
    result: dict[tuple[str, str], Counter[tuple[int, bytes]]] = {}
    for c in manifest(out)["collections"]:
        for p in c["partitions"]:
            rows: Counter[tuple[int, bytes]] = Counter()
            for f in p["files"]:
                with h5py.File(out / f["path"], "r") as h:
                    ids, vectors = h["ids"][:], h["embeddings"][:]
                assert len(ids) == len(vectors) == f["rows"]
                rows.update((int(i), v.tobytes()) for i, v in zip(ids, vectors, strict=True))
            assert rows.total() == p["rows"]
            assert (c["name"], p["name"]) not in result
            result[c["name"], p["name"]] = rows
    return result
