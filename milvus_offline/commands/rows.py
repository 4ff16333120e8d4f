"""`milvus-offline rows`."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any

import click

from .. import fileio
from .command import Command, OutFile, SourcePath
from .common import bucket_costs, open_given, print_json, say_costs, say_left_out
from .log import set_up_log
from .options import file_options, output_options, selection_options, store_options

if TYPE_CHECKING:
    from ..findings import Findings
    from ..look import Ids, Look
    from ..model import Source


@click.command(
    "rows",
    cls=Command,
    examples=[
        "milvus-offline rows /var/lib/milvus -c faces -n 3",
        "milvus-offline rows /var/lib/milvus --id 1678354366132931000 --json",
        "milvus-offline rows OUT --ids-file ids.txt -c faces --npy vectors.npy",
    ],
)
@click.argument("path", metavar="SOURCE", type=SourcePath())
@click.option("-n", "--rows", "limit", type=click.IntRange(0), default=10, show_default=True, help="Rows of each partition.")
@click.option("--id", "row_ids", type=int, multiple=True, metavar="ID", help="The rows with this id; repeatable.")
@click.option(
    "--ids-file", "ids_path", metavar="FILE", help="The rows with these ids: one a line, or an int64 array in a .npy file."
)
@click.option("--deleted", is_flag=True, help="Deleted rows that are still in the files, instead of the live ones (stores).")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values: id, partition, from, norm, the vector.")
@click.option(
    "--npy",
    type=OutFile(),
    metavar="FILE",
    help="Write the vectors to FILE, as in x.npy, and their ids beside it, as x.ids.npy.",
)
@file_options
@selection_options
@store_options
@output_options
def command(path: str, limit: int, as_csv: bool, npy: str | None, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    # many: one for each option
    """Look at rows: the first ones of each partition, or those with the ids that are asked for.

    SOURCE is a store, an export, HDF5 files or a Faiss index. Each row is shown with its id, its partition, where it comes
    from (a segment, the write-ahead log, a file), the first and last components of its vector, and the vector's length.
    Ids are found by the segments' bloom filters and id files; vectors are read of the rows that are shown only. Ids that no
    live row has are looked for in all that --salvage of an export brings.
    """
    from ..errors import UsageError
    from ..guard import check_file, keep_out
    from ..look import absent_ids, document, ids_file_of, look_elsewhere, missing, read_ids, show_rows, write_npy
    from ..selection import SelectedSource, Selection
    from ..sources import KINDS, kind_of
    from ..text import Screen, count, needs_attention

    set_up_log(verbose)
    if as_csv + as_json + bool(npy) > 1:
        raise UsageError("--json, --csv and --npy are three ways to say the same: choose one")
    ids, ids_path, deleted = o.pop("row_ids"), o.pop("ids_path"), o.pop("deleted")
    chosen = Selection(o.pop("collection"), o.pop("partition"), o.pop("exclude"))
    wanted = read_ids(ids, ids_path)
    if wanted is not None and deleted:
        raise UsageError("--deleted shows the first deleted rows; ids are looked for everywhere without it: leave it out")
    given = open_given(path, **o)
    if deleted and (kind := kind_of(path)) != "milvus1":
        raise UsageError(f"--deleted only goes with a store: in {KINDS[kind].what} no row is marked as deleted")
    for file in (npy, npy and ids_file_of(npy)):
        if file:
            check_file(file, "write rows")
            keep_out(file, given.describe())
    source = SelectedSource(given, chosen)
    looks, met = _looks(source, wanted, limit, deleted)
    elsewhere = look_elsewhere(given, chosen, missing(looks, wanted)) if wanted is not None else []
    if npy:
        write_npy(npy, looks)
    elif as_csv:
        _print_csv(looks)
    elif as_json:
        where = str(fileio.absolute(fileio.as_path(path)))
        print_json({**document(where, looks, wanted, elsewhere), **bucket_costs()})
    if npy and not quiet:
        click.echo(f"{count(sum(len(look.rows) for look in looks), 'vector')}: {npy}")
    elif not quiet and not as_csv and not as_json:
        screen = Screen()
        show_rows(screen, looks, wanted, elsewhere)
        say_costs(screen, bucket_costs())
    if (npy or as_csv) and not quiet and wanted is not None:
        for line in absent_ids(looks, wanted, elsewhere):
            click.echo(line, err=True)
    say_left_out(met)
    return 3 if needs_attention((*source.findings, *met)) else 0


def _looks(source: Source, wanted: Ids | None, limit: int, deleted: bool) -> tuple[list[Look], Findings]:
    """What is shown of each collection, and what cannot be read of it."""
    from functools import partial

    from ..findings import Findings
    from ..look import look_at, look_up
    from ..watch import around_damage

    looks: list[Look] = []
    met = Findings()
    for collection in source.collections:
        look, left_out = around_damage(
            partial(look_up, collection, wanted) if wanted is not None else partial(look_at, collection, limit, deleted)
        )
        looks.append(look)
        met += left_out
    return looks, met


def _print_csv(looks: list[Look]) -> None:
    from ..look import components

    writer = csv.writer(sys.stdout)
    width = max((look.schema.width for look in looks), default=0)
    writer.writerow(["collection", "partition", "id", "from", "norm", *(f"v{i}" for i in range(width))])
    for look in looks:
        for row in look.rows:
            writer.writerow([look.schema.name, row.partition, row.id, row.origin, row.norm, *components(row.vector)])
