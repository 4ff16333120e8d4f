"""What the commands do, for Python: `export`, `load` and `verify` of a path, or of what `open_store` and `open_source` gave.

>>> import milvus_offline
>>> milvus_offline.export("/var/lib/milvus", "./milvus-export", collections=["faces"]).rows
>>> milvus_offline.load("./milvus-export", "http://localhost:19530", mode="append", progress=print).verified
>>> milvus_offline.verify("./milvus-export", against="/var/lib/milvus").exit_code
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import fileio
from .errors import UsageError
from .exporting import ExportReport, run_export
from .findings import Findings
from .loading import LoadReport, run_load
from .machine import default_jobs
from .milvus1.store import Store
from .model import Source
from .present import seen_anew
from .progress import Shown, State
from .selection import SelectedSource, Selection
from .sources import kind_of, open_source
from .sources.milvus1 import StoreSource
from .text import verified_code
from .transfer import Progress

Given = str | os.PathLike[str] | Store | Source
"""A path (see `sources.kind_of`), a store that `open_store` opened, or any source."""
Told = Callable[[State], None]
"""Is called with how far a run is, at most ten times a second, and at its end."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` read and found; `findings` hold those of opening the store, too."""

    rows: int
    findings: Findings

    @property
    def exit_code(self) -> int:
        """4 when something is not as it must be, 3 when state was ambiguous, else 0."""
        return verified_code(self.findings)


@seen_anew()
def export(  # many: the options of the command `export`, each by its name
    source: Given,
    out: str | os.PathLike[str],
    *,
    collections: Sequence[str] = (),
    partitions: Sequence[str] = (),
    exclude: Sequence[str] = (),
    file_format: str = "hdf5",
    salvage: Sequence[str] = (),
    jobs: int | None = None,
    resume: bool = False,
    progress: Told | None = None,
    **options: Any,
) -> ExportReport:
    """Writes the live rows of `source` to files in the folder `out`, as `milvus-offline export` does.

    `collections`, `partitions` and `exclude` are names or globs; `options` those of the format (`overwrite`, `compression`,
    `link`, `sync`). Raises UsageError, StoreError, DamageError, TargetError; what is finished is kept for `resume`.
    """
    from .targets import open_export

    chosen = _selected(_opened(source, salvage), collections, partitions, exclude)
    target = open_export(os.fspath(out), file_format, **options)
    return run_export(chosen, target, jobs=jobs or default_jobs(), resume=resume, progress=_telling(progress))


@seen_anew()
def load(  # many: the options of the command `load`, each by its name
    source: Given,
    target: str,
    *,
    collections: Sequence[str] = (),
    partitions: Sequence[str] = (),
    exclude: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    drop: bool = False,
    progress: Told | None = None,
    **options: Any,
) -> LoadReport:
    """Brings `source` into `target` (`x.db`, `http://host:port`, `milvus1:PATH`) and proves it, as `milvus-offline load` does.

    `options` are those of the target by their Python names (`mode`, `rename`, `verify`, ...); `drop` allows
    `mode="overwrite"` to drop collections. Raises UsageError, TargetError, DamageError; what is finished is kept for `resume`.
    """
    from .targets import open_target

    return run_load(
        _selected(_opened(source, ()), collections, partitions, exclude),
        open_target(target, **options),
        state=Path(state) if state is not None else None,
        resume=resume,
        dry_run=dry_run,
        progress=_telling(progress),
        confirm=lambda names: drop,
    )


@seen_anew()
def verify(
    source: str | os.PathLike[str] | Store, *, against: Given | None = None, sample: float = 1.0, progress: Told | None = None
) -> VerifyReport:
    """Reads a store or an export through, as `milvus-offline verify` does; an export `against` a source, row for row.

    `sample` is the share of a store's segments that are read. Raises UsageError for what can be neither.
    """
    shown = _telling(progress)
    if not isinstance(source, Store) and kind_of(source) == "export":
        from .checking import check_export

        compared = None if against is None else _opened(against, ())
        result = check_export(fileio.as_path(source), against=compared, progress=shown)
        return VerifyReport(result.rows, Findings([*result.findings, *result.lacking]))
    from .checking import check_source

    opened = StoreSource(source) if isinstance(source, Store) else _opened(source, ())
    if not isinstance(opened, StoreSource) or against is not None:
        raise UsageError(f"{source}: expected a store, or an export to be compared with a source")
    checked, notes = check_source(opened, sample=sample, progress=shown)
    return VerifyReport(checked.rows, Findings([*opened.store.findings, *notes]))


def _opened(given: Given, salvage: Sequence[str]) -> Source:
    if isinstance(given, Store):
        return StoreSource(given, salvage)
    if isinstance(given, (str, os.PathLike)):
        if salvage:
            from .sources.milvus1 import open_store_source

            return open_store_source(given, salvage=salvage)
        return open_source(given)
    return given


def _selected(source: Source, collections: Sequence[str], partitions: Sequence[str], exclude: Sequence[str]) -> Source:
    for name, value in (("collections", collections), ("partitions", partitions), ("exclude", exclude)):
        if isinstance(value, str):
            raise UsageError(f"{name}: expected a list of names, found the text {value!r}")
    return SelectedSource(source, Selection(tuple(collections), tuple(partitions), tuple(exclude)))


class _Telling(Shown):
    """Calls back with the state of a run, a value of its own each time: it may be kept."""

    def __init__(self, tell: Told) -> None:
        super().__init__()
        self._tell = tell
        self._next = 0.0

    def begin(self) -> None:
        self._tell(replace(self.state))

    def show(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.1
            self._tell(replace(self.state))

    def close(self) -> None:
        self._tell(replace(self.state))


def _telling(progress: Told | None) -> Progress | None:
    return None if progress is None else _Telling(progress)


__all__ = ["ExportReport", "LoadReport", "State", "VerifyReport", "export", "load", "open_source", "verify"]
