"""`milvus-offline export`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import TargetError, UsageError
from ..fileio import absolute, as_path, is_remote
from ..guard import check_file, free_space, keep_out
from ..machine import default_jobs
from .command import Command, OutFolder, SourcePath, choice
from .common import (
    bucket_costs,
    is_chosen,
    is_typed,
    open_given,
    print_json,
    progress,
    say_costs,
    several,
    source_words,
    write_lost_ids,
)
from .log import set_up_log
from .options import cluster_option, file_options, lost_ids_option, output_options, selection_options, store_options

if TYPE_CHECKING:
    from ..model import Source
    from ..selection import Selection


@click.command(
    "export",
    cls=Command,
    examples=[
        "milvus-offline export /var/lib/milvus ./milvus-export",
        "milvus-offline export /var/lib/milvus ./faces -c faces -p '2021*' --format parquet",
        "milvus-offline export /var/lib/milvus ./milvus-export --resume",
        "milvus-offline export /mnt/node1 /mnt/node2 ./both",
    ],
)
@click.argument("paths", metavar="STORE...", nargs=-1, required=True, type=SourcePath())
@click.argument("out", metavar="OUT", type=OutFolder())
@choice("--format", "file_format", words=["hdf5", "parquet", "npy"], help="What kind of files.")
@choice(
    "--compression",
    words=["none", "lz4", "zstd", "gzip"],
    help="HDF5: compress. Only gzip can be read everywhere; the others need hdf5plugin.",
)
@click.option("--link", is_flag=True, help="HDF5 files that point into the store's files instead of copying them.")
@choice(
    "--reflink",
    words=["auto", "always", "never"],
    help="HDF5: a partition of one unchanged segment shares its blocks with the store, where the volume can (XFS, Btrfs).",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be written, and whether there is room; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in OUT.")
@click.option("--resume", is_flag=True, help="Go on with an export that was interrupted.")
@click.option(
    "--no-sync",
    is_flag=True,
    help="Do not wait until the disk has everything: as fast as cp, but a power failure soon after may leave files with holes.",
)
@click.option(
    "--salvage",
    metavar="KIND",
    multiple=True,
    help="Also export rows that are not live, apart from the others: unseen, unacknowledged, orphans, unfinished, to-delete, "
    "dropped, deleted, or all; repeatable.",
)
@lost_ids_option
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=None, metavar="N", help="Tasks at the same time. [default: cores, at most 4]"
)
@cluster_option
@file_options
@selection_options
@store_options
@output_options
def command(  # many: one for each option
    paths: Sequence[str],
    out: str,
    collection: tuple[str, ...],
    partition: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: int,
    **o: Any,
) -> int:
    """Write the live rows of STORE to files in the folder OUT.

    One HDF5 file per partition with the datasets `embeddings` and `ids`, and a manifest.json. STORE may also be a Faiss index,
    HDF5 files, or an earlier export. Each of several STOREs gets a folder of its own in OUT.
    """
    from ..selection import Selection
    from ..targets import open_export

    set_up_log(verbose)
    if o["resume"] and o["overwrite"]:
        raise UsageError("--resume and --overwrite contradict each other: leave one of them out")
    if o["cluster"] and is_typed("jobs"):
        raise UsageError("--jobs is about this machine, --cluster has workers of its own: leave one of them out")
    options = {"overwrite": o["overwrite"], "sync": not o["no_sync"]}
    options |= {name: o[name] for name in ("compression", "link", "reflink") if is_typed(name) or (o[name] and is_chosen(name))}
    open_export(out, o["file_format"], **options)  # refuses what does not go with the format before anything is opened
    if o["file_format"] == "hdf5" and is_remote(out):
        raise UsageError(f"{out}: HDF5 files are not made in a bucket: add --format parquet or --format npy")
    if len(paths) > 1 and o["lost_ids"]:
        raise UsageError("--lost-ids goes with one store")
    chosen = Selection(collection, partition, exclude)
    documents = []
    for number, (path, place) in enumerate(zip(paths, _places(paths, out), strict=True)):
        document, show = _export(path, place, chosen, quiet or as_json, options, **o)
        documents.append(document)
        if not (quiet or as_json):
            from ..text import Screen

            screen = Screen()
            if number:
                screen.rule()
            show(screen, verbose > 0)
    code: int = max(d["exit_code"] for d in documents)
    if as_json:
        print_json(documents[0] if len(paths) == 1 else several(documents, code))
    elif quiet and code:
        click.echo("finished with findings, see manifest.json", err=True)
    return code


def _places(paths: Sequence[str], out: str) -> list[str]:
    """A folder for each store: OUT, or one in it named as the store's folder."""
    if len(paths) == 1:
        return [out]
    from ..names import file_names

    bases = [Path(p).resolve().name or "store" for p in paths]
    if len(set(map(os.path.realpath, paths))) < len(paths):
        raise UsageError("the same store is named twice: name each once")
    numbered = [f"{b}-{i + 1}" if bases.count(b) > 1 else b for i, b in enumerate(bases)]
    names = file_names(numbered)
    return [f"{out.rstrip('/')}/{names[n]}" if is_remote(out) else os.path.join(out, names[n]) for n in numbered]


_OWN = (
    *("file_format", "compression", "link", "reflink", "dry_run", "overwrite"),
    *("resume", "no_sync", "lost_ids", "jobs", "cluster"),
)
"""Options that are about the export, not about its source."""


def _export(
    path: str, out: str, chosen: Selection, silent: bool, options: Mapping[str, Any], **o: Any
) -> tuple[dict[str, Any], Any]:
    """The document of one export, and what shows it on a screen."""
    from ..exporting import run_export
    from ..selection import SelectedSource
    from ..targets import open_export
    from ..text import amount, count, needs_attention, size
    from ..verdict import attention_sums, end, places_of, verdict

    own = {k: o.pop(k) for k in _OWN}
    given = open_given(path, **o)
    if own["lost_ids"]:
        if given.kind != "milvus1":
            raise UsageError("--lost-ids goes with a store")
        check_file(own["lost_ids"], "write the lost ids")
        keep_out(own["lost_ids"], given.describe())
    opened = SelectedSource(given, chosen)
    room = _room(opened, out, own, silent)
    base = {"out": str(absolute(as_path(out))), "free_bytes": room[1]}
    if own["dry_run"]:
        return _dry_run(opened, out, own, base)
    report = run_export(
        opened,
        open_export(out, own["file_format"], **options),
        jobs=own["jobs"] or default_jobs(),
        resume=own["resume"],
        progress=progress(silent),
        cluster=own["cluster"],
    )
    done = f"{'was' if report.rows == 1 else 'were'} exported"
    told = verdict(report.rows, report.findings, done, log_rows=_log_rows(opened))
    code = 3 if needs_attention(report.findings) else 0
    document = {
        **report.to_json(),
        **attention_sums(report.findings),
        "verdict": told,
        **bucket_costs(),
        **base,
        "exit_code": code,
    }
    if own["lost_ids"]:
        document["lost_ids"] = write_lost_ids(own["lost_ids"], given, report.findings)

    def show(screen: Any, verbose: bool) -> None:
        screen.verdict(told["level"], told["text"])
        screen.verbatim(
            f"{amount(report.rows, report.collections)} ({size(report.bytes)}) in {report.seconds:.1f} s: {base['out']}"
        )
        say_costs(screen, document)
        if report.salvaged_rows:
            screen.say(f"Salvaged apart from them: {count(report.salvaged_rows, 'row')}, see salvage/ in that folder")
        if report.findings:
            screen.say()
            screen.findings(document["findings"], places_of(opened), verbose=verbose)
        if report.rows:
            screen.steps([shlex.join(["milvus-offline", *words]) for words in _next(path, out, source_words(o))])
        end(screen, told, code)

    return document, show


def _next(path: str, out: str, options: Sequence[str]) -> list[list[str]]:
    return [["verify", out, "--against", path, *options], ["load", out, "http://localhost:19530"]]


def _log_rows(source: Any) -> int:
    from ..milvus1.wal.rows import LogRows

    pieces = (x for c in source.collections for p in c.partitions for x in p.pieces)
    return sum(x.rows for x in pieces if isinstance(x, LogRows))


def _shared(source: Source, out: str, folder: Path, own: dict[str, Any]) -> int:
    """Bytes of an export that take no room, as they are clones."""
    from ..targets.hdf5 import shared_bytes

    keep_out(out, source.describe())  # it is tried with a file in the folder
    return shared_bytes(source, folder) if own["file_format"] == "hdf5" and own["reflink"] == "auto" else 0


def _room(source: Source, out: str, own: dict[str, Any], silent: bool) -> tuple[int, int | None]:
    """Bytes that the export writes and that are free there; says so on a terminal. Raises TargetError when there is no room."""
    from ..text import size

    needed = sum(c.rows * (c.schema.row_bytes + 8) for c in source.collections)
    needed += sum(s.rows * (s.schema.row_bytes + 8) for s in source.salvage)
    if is_remote(out):
        return needed, None
    there, free = free_space(out)
    if free is None:
        return needed, None
    plain = own["file_format"] != "parquet" and own["compression"] == "none" and not own["link"]
    plain = plain and own["reflink"] != "always"
    refuse = plain and needed > free and not own["resume"] and not own["overwrite"] and not own["dry_run"]
    if refuse and needed - _shared(source, out, there, own) > free:
        raise TargetError(
            f"{out}: the disk is full: the export takes {size(needed)}, {size(free)} are free there: free some space, then run "
            "the same command with --resume; or choose another place"
        )
    if not silent and sys.stderr.isatty():
        click.echo(f"{'At most ' if not plain else ''}{size(needed)} to write, {size(free)} free in {there}", err=True)
    return needed, free


def _dry_run(source: Any, out: str, own: dict[str, Any], base: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What an export would write; nothing is written."""
    from ..text import amount, count, named, needs_attention, size
    from ..verdict import attention_sums, end, places_of, verdict

    rows = sum(c.rows for c in source.collections)
    nbytes = sum(c.rows * (c.schema.row_bytes + 8) for c in source.collections)
    salvaged = sum(s.rows for s in source.salvage)
    told = verdict(rows, source.findings, "would be exported", log_rows=_log_rows(source))
    code = 3 if needs_attention(source.findings) else 0
    document = {
        "format": "milvus-offline-report",
        "version": 1,
        "command": "export",
        "dry_run": True,
        "collections": len(source.collections),
        "rows": rows,
        "bytes": nbytes,
        "salvaged_rows": salvaged,
        "seconds": 0.0,
        "findings": [f.to_json() for f in source.findings],
        **attention_sums(source.findings),
        "verdict": told,
        **base,
        "exit_code": code,
    }

    def show(screen: Any, verbose: bool) -> None:
        screen.verdict(told["level"], told["text"])
        screen.verbatim(f"Would write {amount(rows, len(source.collections))} ({size(nbytes)}) to {base['out']}")
        if base["free_bytes"] is not None:
            screen.say(f"{size(base['free_bytes'])} are free there" + (", too little" if base["free_bytes"] < nbytes else ""))
        table = [
            [f"{named(c.schema.name)}/{named(p.name)}", f"{p.rows:,}", size(p.rows * (c.schema.row_bytes + 8))]
            for c in source.collections
            for p in c.partitions
        ]
        screen.table(["partition", "rows", "bytes"], table, indent=2)
        if salvaged:
            screen.say(f"Salvaged apart from them: {count(salvaged, 'row')}")
        if source.findings:
            screen.say()
            screen.findings(document["findings"], places_of(source), verbose=verbose)
        end(screen, told, code)

    return document, show
