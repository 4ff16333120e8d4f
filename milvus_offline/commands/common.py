"""Opening what was named, and showing what came of it: what commands share."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import StoreError, UsageError
from ..fileio import unreadable
from ..guard import keep_out
from .log import begin_log_file, log_store, logging_asked
from .options import FILE_OPTIONS, STORE_OPTIONS, setting

if TYPE_CHECKING:
    from ..model import Finding, Source
    from ..sources import SourceOptions
    from ..text import Screen
    from ..transfer import Progress


def bucket_costs() -> dict[str, Any]:
    """What this run has asked object stores for, as a part of its document; nothing where there were none."""
    buckets = sys.modules.get("milvus_offline.buckets")
    found = buckets.costs() if buckets is not None else None
    return {"bucket": found} if found else {}


def say_costs(screen: Screen, document: Mapping[str, Any]) -> None:
    """The same for a person."""
    if found := document.get("bucket"):
        from ..text import size

        again = f" ({found['retries']:,} of them repeated)" if found["retries"] else ""
        written = f", {size(found['bytes_written'])} written" if found["bytes_written"] else ""
        screen.say(f"Object store: {found['requests']:,} requests{again}, {size(found['bytes_read'])} read{written}")


def store_arguments(  # many: one for each of store_options
    catalog: str | None,
    wal: str | None,
    no_wal: bool,
    secondary: tuple[str, ...],
    no_catalog: bool,
    partition_map: str | None,
    assume: tuple[str, ...],
) -> dict[str, Any]:
    """Keyword arguments of open_store from the options. Raises UsageError when they contradict each other."""
    if wal and no_wal:
        raise UsageError("--wal and --no-wal contradict each other: leave one of them out")
    if catalog and no_catalog:
        raise UsageError("--catalog and --no-catalog contradict each other: leave one of them out")
    if (partition_map or assume) and not no_catalog:
        raise UsageError("--partition-map and --assume only go with --no-catalog")
    result: dict[str, Any] = {"catalog": catalog, "wal": wal, "replay_wal": not no_wal, "secondary": secondary}
    if no_catalog:
        from ..milvus1.nocatalog import Assumptions

        result["without_catalog"] = Assumptions.parse(partition_map, assume)
    return result


def source_words(options: Mapping[str, Any]) -> list[str]:
    """What `file_options` and `store_options` were given, as words of a command line; without the password of a catalog."""
    words: list[str] = []
    for name in (*FILE_OPTIONS, *STORE_OPTIONS):
        given = options[name]
        for value in given if isinstance(given, tuple) else [given] if given else []:
            words.append(f"--{name.replace('_', '-')}")
            if name == "catalog":
                value = re.sub(r"^([\w+]+://[^:/@]*):.*@", r"\1@", value, flags=re.S)
            if value is not True:
                words.append(str(value))
    return words


def open_given(path: str, **given: Any) -> Source:
    """The source at `path` with what `file_options` and `store_options` say of it.

    Raises UsageError for an option that says nothing of such a source.
    """
    from ..sources import open_source

    if reason := unreadable(path):
        raise StoreError(reason)
    _keep_freed_memory()
    opened = open_source(path, source_options(path, **given))
    begin_log_file(opened)
    if logging_asked() and (store := getattr(opened, "store", None)) is not None:
        log_store(store)
    return opened


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def _keep_freed_memory() -> None:
    """Has the C library keep what arrays free for those to come, where it can: that of GNU gives some hundred KiB back to the
    system at once otherwise, and each page of the next array costs as much as what is done with it."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 32 << 20)


def source_options(path: str, *, ids: str | None = None, target_metric: str | None = None, **given: Any) -> SourceOptions:
    """What the options say of the source at `path`. `ids` is None, keep, auto, row or a file of ids.

    Raises UsageError for an option that says nothing of such a source.
    """
    from ..sources import KINDS, SourceOptions, kind_of

    kind = kind_of(path)
    ids_file = ids if ids and ids not in ("keep", "auto", "row") else None
    given["ids_file"] = ids_file
    for name, value in given.items():
        if value not in (None, False, ()) and name not in KINDS[kind].takes:
            option = "ids FILE" if name == "ids_file" else name.replace("_", "-")
            goes_with = dict.fromkeys(k.what for k in KINDS.values() if name in k.takes)
            only = " or ".join(", ".join(goes_with).rsplit(", ", 1))
            raise UsageError(f"{path}: found {KINDS[kind].what}, and --{option} only goes with {only}: leave it out")
    faiss = {
        "ids_file": ids_file,
        "first_id": given.get("first_id") or 0,
        "lossy": given.get("lossy", False),
        "follow_ondisk": given.get("follow_ondisk", False),
    }
    store = store_arguments(**{name: given[name] for name in STORE_OPTIONS}) if kind == "milvus1" else {}
    if kind == "milvus1" and given.get("salvage"):
        store["salvage"] = given["salvage"]
    return SourceOptions(
        collection=given.get("into"),
        partition=given.get("into_partition"),
        metric=given.get("metric"),
        target_metric=target_metric,
        embeddings=given.get("embeddings"),
        ids=given.get("ids_dataset"),
        row_ids=ids == "row",
        need_ids=ids not in ("row", "auto"),
        vector_type=given.get("vector_type"),
        follow_external=given.get("follow_external", False),
        beyond=given.get("beyond_float32") or "error",
        store=store,
        faiss=faiss,
    )


def say_left_out(findings: Sequence[Finding]) -> None:
    """Says on stderr what rows were left out because they cannot be read."""
    from ..text import finding_lines

    for line in finding_lines([f.to_json() for f in findings]) if findings else ():
        click.echo(line, err=True)


def is_typed(name: str) -> bool:
    """Whether an option of the running command was typed, rather than left at its default or found in the environment or in
    the file of --config."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def is_chosen(name: str) -> bool:
    """Whether an option of the running command has another source than its default."""
    return click.get_current_context().get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


def write_lost_ids(path: str, source: Source, findings: Iterable[Finding]) -> int:
    """Writes `collection,partition,id` of the rows of a store that are known and lost; how many they are. `findings` are those
    of the run.

    Raises UsageError for another source, and for a file in the store.
    """
    import csv

    from ..guard import explained
    from ..milvus1.lost import lost_ids
    from ..sources.milvus1 import StoreSource

    if not isinstance(source, StoreSource):
        raise UsageError("--lost-ids goes with a store: leave it out")
    keep_out(path, source.describe())
    found = 0
    with (
        explained("write the lost ids", path),
        open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["collection", "partition", "id"])
        for collection, partition, ids in lost_ids(source.store, findings):
            writer.writerows((collection, partition, i) for i in ids.tolist())
            found += len(ids)
    return found


def several(documents: Sequence[dict[str, Any]], code: int) -> dict[str, Any]:
    """The document of a run on several stores."""
    return {"format": "milvus-offline-several", "version": 1, "documents": list(documents), "exit_code": code}


def print_json(document: Any) -> None:
    text = json.dumps(document)
    if len(text) < _INDENTED:  # the indenting encoder is written in Python
        text = json.dumps(document, indent=1)
    sys.stdout.write(text + "\n")


_INDENTED = 1 << 20
"""Characters of a document up to which it is indented for a person."""


def progress(quiet: bool) -> Progress:
    """How this run shows how far it is: nothing beside the lines of --verbose."""
    from ..progress import STATS_SECONDS, Bar, Lines
    from ..transfer import Silent

    every = setting("stats")
    if setting("json_progress"):
        return Lines(every or 1.0, as_json=True)
    if quiet or setting("verbose") or every == 0:
        return Silent()
    if sys.stderr.isatty() and every is None:
        return Bar()
    return Lines(every or STATS_SECONDS)
