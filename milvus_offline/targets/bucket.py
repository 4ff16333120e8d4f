"""The folder of an export in a bucket: what `folder.py` is on a disk.

An object is there as a whole or not at all, and nothing can be appended to it. So the ledger is a folder of small objects, one
for each time that something was finished. Nothing keeps two runs from writing to the same place at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..buckets import Bucket
from ..errors import DamageError, UsageError
from ..ledger import FORMAT, Ledger, require_same
from ..manifest import LEDGER, MANIFEST, as_text, paths_in


class BucketLedger(Ledger):
    """See ledger.Ledger."""

    def __init__(self, bucket: Bucket, folder: Path, done: dict[str, dict[str, Any]], written: int) -> None:
        self.path = folder
        self.done = done
        self._bucket = bucket
        self._written = written

    def add(self, results: Mapping[str, dict[str, Any]]) -> None:
        self._put(results)
        self.done.update(results)

    def _put(self, document: Mapping[str, Any]) -> None:
        self._bucket.put(self.path / f"{self._written:06}.json", json.dumps(document).encode())
        self._written += 1

    def begin(self, key: Mapping[str, Any]) -> None:
        """Writes what the run is, which `begin_export` reads."""
        self._put({"format": FORMAT, "version": 1, "key": dict(key)})

    def close(self) -> None: ...

    def remove(self) -> None:
        self._bucket.remove([self.path / f"{n:06}.json" for n in reversed(range(self._written))])


def begin_export(out: Path, key: Mapping[str, Any], *, overwrite: bool, resume: bool) -> Ledger:
    """As folder.begin_export. Raises StoreError where the bucket is not there or may not be written, UsageError."""
    bucket = Bucket(out)
    names = bucket.names(out)
    pieces = sorted(n for n in bucket.names(out / LEDGER) if n.endswith(".json"))
    manifest = _read(bucket, out / MANIFEST) if MANIFEST in names else None
    complete = manifest is not None and not pieces
    if complete and not overwrite:
        more = "; there is nothing to go on with" if resume else ""
        raise UsageError(f"{out}: holds a complete export{more}; choose another place, or replace it with --overwrite")
    if pieces and not (overwrite or resume):
        raise UsageError(f"{out}: holds an unfinished export; go on with --resume, or begin anew with --overwrite")
    if names and not complete and not pieces:
        raise UsageError(f"{out}: the folder is not empty and holds no export of this tool; choose an empty or new one")
    earlier = [_read(bucket, out / LEDGER / name) or {} for name in pieces]
    if earlier and resume:
        require_same(out / LEDGER, earlier[0].get("key", {}), key)
        done = {task_id: result for part in earlier[1:] for task_id, result in part.items()}
        return BucketLedger(bucket, out / LEDGER, done, int(pieces[-1].removesuffix(".json")) + 1)
    _remove(bucket, out, manifest, earlier, pieces)
    ledger = BucketLedger(bucket, out / LEDGER, {}, 0)
    ledger.begin(key)
    return ledger


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Puts the manifest beside the files."""
    Bucket(out).put(out / MANIFEST, as_text(manifest).encode())


def _read(bucket: Bucket, path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(bucket.get(path))
    except ValueError as e:
        raise DamageError(path, f"not JSON: {e}") from e
    ours = isinstance(document, dict) and str(document.get("format", FORMAT)).startswith("milvus-offline-")
    return document if ours else None


def _remove(
    bucket: Bucket, out: Path, manifest: dict[str, Any] | None, earlier: list[dict[str, Any]], pieces: list[str]
) -> None:
    """Removes an earlier export's own objects, the manifest first."""
    paths = paths_in(manifest or {})
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        paths |= {path for path, _ in earlier[0]["key"]["files"]}
    own = [out / p for p in sorted(paths) if ".." not in p.split("/") and not p.startswith("/")]
    bucket.remove([*([out / MANIFEST] if manifest else []), *own, *(out / LEDGER / name for name in reversed(pieces))])
