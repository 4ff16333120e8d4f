"""`milvus-offline export`."""

from __future__ import annotations

import os
from typing import Any

import click

from ..fileio import absolute, as_path, is_remote
from .common import (
    bucket_costs,
    echo_costs,
    file_options,
    open_given,
    output_options,
    print_json,
    progress,
    selection,
    selection_options,
    set_up_log,
    store_options,
)


@click.command("export")
@click.argument("path", metavar="STORE")
@click.argument("out", metavar="OUT")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["hdf5", "parquet", "npy"]),
    default="hdf5",
    show_default=True,
    help="What kind of files.",
)
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4", "zstd", "gzip"]),
    default="none",
    show_default=True,
    help="HDF5: compress. Only gzip can be read everywhere; the others need hdf5plugin.",
)
@click.option("--link", is_flag=True, help="HDF5 files that point into the store's files instead of copying them.")
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
    help="Also rescue rows that are not live, apart from the others: unseen, unacknowledged, orphans, unfinished, to-delete, "
    "dropped, deleted, or all; repeatable.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=None, metavar="N", help="Tasks at the same time. [default: cores, at most 4]"
)
@file_options
@selection_options
@store_options
@output_options
def command(
    path: str,
    out: str,
    file_format: str,
    compression: str,
    link: bool,
    overwrite: bool,
    resume: bool,
    no_sync: bool,
    salvage: tuple[str, ...],
    jobs: int | None,
    collection: tuple[str, ...],
    partition: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: int,
    **source: Any,
) -> int:
    """Write the live rows of STORE to files in the folder OUT.

    One HDF5 file per partition with the datasets `embeddings` and `ids`, and a manifest.json. STORE may also be a Faiss index,
    HDF5 files, or an earlier export.
    """
    from ..errors import UsageError
    from ..export import run_export
    from ..report import amount, count, finding_lines, needs_attention, size
    from ..selection import SelectedSource
    from ..targets import ExportTarget

    set_up_log(verbose)
    if resume and overwrite:
        raise UsageError("--resume and --overwrite contradict each other")
    if file_format != "hdf5" and (link or compression != "none"):
        raise UsageError("--link and --compression only go with --format hdf5")
    if file_format == "hdf5" and is_remote(out):
        raise UsageError(f"{out}: HDF5 files are not made in a bucket: add --format parquet or --format npy")
    opened = SelectedSource(open_given(path, salvage=salvage, **source), selection(collection, partition, exclude))
    target: ExportTarget
    if file_format == "hdf5":
        from ..targets.hdf5 import Hdf5Export

        target = Hdf5Export(out, compression=compression, overwrite=overwrite, link=link)
    else:
        from ..targets.columnar import ColumnarExport

        target = ColumnarExport(out, file_format=file_format, overwrite=overwrite)
    report = run_export(
        opened,
        target,
        jobs=jobs or min(4, os.cpu_count() or 1),
        resume=resume,
        sync=not no_sync,
        progress=progress(quiet or as_json),
    )
    attention = needs_attention(report.findings)
    if as_json:
        print_json(
            {**report.to_json(), **bucket_costs(), "out": str(absolute(as_path(out))), "exit_code": 3 if attention else 0}
        )
    elif not quiet:
        click.echo(
            f"{amount(report.rows, report.collections)} ({size(report.bytes)}) in {report.seconds:.1f} s: "
            f"{absolute(as_path(out))!s}"
        )
        echo_costs(bucket_costs())
        if report.salvaged_rows:
            click.echo(f"Salvaged apart from them: {count(report.salvaged_rows, 'row')}, see salvage/ in that folder")
        if report.findings:
            click.echo("\n".join(finding_lines([f.to_json() for f in report.findings])))
    elif attention:
        click.echo("finished with findings, see manifest.json", err=True)
    return 3 if attention else 0
