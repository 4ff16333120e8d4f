"""The folder of an export: whether it may be written, how an earlier one there goes, how a new one begins and ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import fileio
from ..errors import MilvusOfflineError, TargetError, UsageError
from ..guard import explained, keep_out
from ..ledger import Ledger
from ..manifest import LEDGER, MANIFEST, paths_in, read_manifest, write_manifest
from ..model import Source

SALVAGE = "salvage"


def begin_export(
    out: Path, source: Source, key: Mapping[str, Any], *, overwrite: bool, resume: bool, durable: bool = True
) -> Ledger:
    """The ledger of a new export in `out`, or with `resume` that of an interrupted one. Raises UsageError, TargetError.

    With `overwrite` an earlier export's own files are removed, nothing else. One that is not `durable` is never gone on with.
    """
    if resume and not durable:
        raise UsageError("--no-sync and --resume contradict each other: what was not synced may be missing. Use --overwrite")
    if not durable:
        key = {**key, "sync": False}
    if fileio.is_remote(out):
        from . import bucket

        keep_out(out, source.describe())
        ledger = bucket.begin_export(out, key, overwrite=overwrite, resume=resume)
        ledger.durable = durable
        return ledger
    begun = _check(out, source, overwrite=overwrite, resume=resume)
    with explained("create", out, resumable=durable):
        out.mkdir(parents=True, exist_ok=True)
        path = out / LEDGER
        if resume:
            ledger = Ledger.resume(path, key)
        else:
            ledger = Ledger.create(path, key, (lambda: _remove_export(out)) if begun else None)
        (out / MANIFEST).unlink(missing_ok=True)
    ledger.durable = durable
    return ledger


def end_export(out: Path, ledger: Ledger, manifest: Mapping[str, Any]) -> None:
    """The manifest comes last; with it the ledger goes."""
    if fileio.is_remote(out):
        from . import bucket

        bucket.write_manifest(out, manifest)
    else:
        write_manifest(out, manifest, durable=ledger.durable)
    ledger.remove()


def names_in(folder: Path, what: str) -> set[str]:
    """What is in the folder that `what` is to go to; nothing where it is not there yet. Raises UsageError or TargetError."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder for {what}, found a file")
    try:
        return set(os.listdir(folder)) if folder.exists() else set()
    except PermissionError as e:
        raise TargetError(f"{folder}: no permission to look into this folder") from e


def _check(out: Path, source: Source, *, overwrite: bool, resume: bool) -> bool:
    """Whether `out` holds an export of ours. Raises UsageError when it may not be written: inside of the source, not ours, or
    not to be replaced."""
    keep_out(out, source.describe())
    names = names_in(out, "the export")
    if not names:
        return False
    complete = _our_manifest(out) is not None and LEDGER not in names
    if not complete and LEDGER not in names:
        if MANIFEST in names:
            raise UsageError(
                f"{out}: holds no whole export of this tool ({_why_not_ours(out)}). Nothing in it is replaced: choose another "
                "folder, or remove this one yourself"
            )
        raise UsageError(f"{out}: the folder is not empty and holds no export of this tool; choose an empty or new one")
    if overwrite or (resume and not complete):
        _refuse_links(out)
        return True
    if complete and resume:
        raise UsageError(
            f"{out}: this export is complete, there is nothing to go on with; `milvus-offline verify` reads it through, "
            "--overwrite begins anew"
        )
    if complete:
        raise UsageError(f"{out}: holds a complete export; choose another place, or replace it with --overwrite")
    raise UsageError(f"{out}: holds an unfinished export; go on with --resume, or begin anew with --overwrite")


def _refuse_links(out: Path) -> None:
    """Raises UsageError for a link in an earlier export: this program makes none, and what it wrote would lie elsewhere."""
    for folder, folders, files in os.walk(out):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                raise UsageError(f"{path}: a link to {os.readlink(path)}; nothing is written through links. Remove it first")


def _why_not_ours(out: Path) -> str:
    """What is wrong with the manifest there."""
    try:
        read_manifest(out)
    except OSError as e:
        return f"{MANIFEST}: {e.strerror}"
    except MilvusOfflineError as e:
        return str(e)
    return f"{MANIFEST} is that of another program"


def _our_manifest(out: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(out)
    except (OSError, MilvusOfflineError):
        return None


def _remove_export(out: Path) -> None:
    paths = paths_in(_our_manifest(out) or {})
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        head = json.loads((out / LEDGER).read_text().split("\n", 1)[0])
        paths |= {str(path) for path, _ in head["key"]["files"]}
    folders = set()
    for relative in sorted(paths):
        path = out / relative
        if Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(out)):
            for suffix in ("", ".part", ".part.closed"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            folders |= {p for p in path.parents if out in p.parents}
    (out / MANIFEST).unlink(missing_ok=True)
    for folder in sorted(folders, reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
