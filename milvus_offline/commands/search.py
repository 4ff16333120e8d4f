"""`milvus-offline search`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .command import Command, SourcePath
from .common import bucket_costs, open_given, print_json, say_costs, say_left_out
from .log import set_up_log
from .options import file_options, output_options, store_options

if TYPE_CHECKING:
    from ..model import Array, Source, SourceCollection


@click.command(
    "search",
    cls=Command,
    examples=[
        "milvus-offline search /var/lib/milvus -c faces --query queries.npy -k 10 --json",
        "milvus-offline search OUT -c faces -p '2021*' --id 1678354366132931000",
    ],
)
@click.argument("path", metavar="SOURCE", type=SourcePath())
@click.option("-c", "--collection", metavar="NAME", help="The collection; needed where there are several.")
@click.option("-p", "--partition", metavar="TAG", multiple=True, help="Only in this partition; a glob is fine; repeatable.")
@click.option(
    "--query",
    type=click.Path(),
    metavar="FILE",
    help="The query vectors: a .npy file, float32 [n, d], or uint8 [n, d/8] for binary vectors.",
)
@click.option("--id", "row_ids", type=int, multiple=True, metavar="ID", help="Search with the vector of this row; repeatable.")
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="How many of the nearest rows.")
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Threads. [default: processors, at most 4]")
@file_options
@store_options
@output_options
def command(  # many: one for each option
    path: str,
    collection: str | None,
    partition: tuple[str, ...],
    query: str | None,
    row_ids: tuple[int, ...],
    k: int,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    **o: Any,
) -> int:
    """The nearest rows of some vectors, exactly, straight from the files.

    SOURCE is a store, an export, HDF5 files or a Faiss index. What is searched is what an export would bring: deleted rows are
    out, rows of the write-ahead log are in. Distances are those of Milvus 1.x: L2 is squared, IP has the largest first.
    """
    from ..errors import UsageError
    from ..findings import Findings
    from ..search import search
    from ..search.metrics import default_metric
    from ..search.report import search_document, show_hits
    from ..text import Screen, needs_attention
    from ..watch import around_damage

    set_up_log(verbose)
    if (query is None) == (not row_ids):
        raise UsageError("name the query vectors: either --query FILE.npy or --id ID")
    source = open_given(path, **o)
    chosen = _collection(source, collection, partition)
    metric = chosen.schema.metric_type
    if metric is None:
        metric = default_metric(chosen.schema.vector_type)
        click.echo(f"the source names no metric; {metric} is used; --metric names another", err=True)
    whole = _collection(source, collection, ())
    given = _load(query) if query is not None else None
    queries, met = (given, Findings()) if given is not None else around_damage(lambda: _vectors_of(whole, row_ids))
    hits, left_out = around_damage(lambda: search(chosen.schema, chosen.partitions, queries, k, metric=metric, jobs=jobs))
    if as_json:
        print_json({**search_document(chosen.schema.name, metric, hits), **bucket_costs()})
    elif not quiet:
        screen = Screen()
        show_hits(screen, hits, list(row_ids))
        say_costs(screen, bucket_costs())
    say_left_out(left_out or met)
    return 3 if needs_attention((*source.findings, *met, *left_out)) else 0


def _collection(source: Source, name: str | None, partitions: tuple[str, ...]) -> SourceCollection:
    from ..errors import UsageError
    from ..names import printable
    from ..selection import Selection

    if name is None and len(source.collections) != 1:
        names = ", ".join(printable(c.schema.name) for c in source.collections[:20])
        raise UsageError(f"name one of the collections with -c: {names or 'there are none'}")
    found = Selection((name,) if name is not None else (), partitions, ()).apply(source.collections)
    if len(found) != 1:
        raise UsageError(f"-c {printable(name)} means {len(found)} collections, a search goes through one")
    return found[0]


def _load(path: str) -> Array:
    import numpy as np

    from ..errors import UsageError
    from ..fileio import unreadable

    if reason := unreadable(path):
        raise UsageError(f"--query names a .npy file of vectors; {reason}")
    try:
        loaded: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:  # what NumPy says would have a person load what may run any code
        raise UsageError(f"{path}: expected a .npy file of numbers, float32 [n, d] or uint8 [n, d/8], found another") from e
    if not isinstance(loaded, np.ndarray):
        raise UsageError(f"{path}: expected a .npy file with one array, found an archive of several")
    return loaded


def _vectors_of(collection: SourceCollection, ids: tuple[int, ...]) -> Array:
    from ..errors import UsageError
    from ..look import read_ids
    from ..search import find_rows
    from ..watch import watch

    wanted = read_ids(ids, None)
    assert wanted is not None
    found = find_rows(collection.schema, collection.partitions, wanted, first_only=True)
    if len(found) < len(wanted):
        absent = sorted(set(ids) - set(found.ids.tolist()))
        seen = watch()
        doubt = ", as far as its rows can be read: the disk refuses some" if seen is not None and seen.is_incomplete else ""
        raise UsageError(f"no live row of {collection.schema.name} has the id {', '.join(map(str, absent[:20]))}{doubt}")
    return found.vectors
