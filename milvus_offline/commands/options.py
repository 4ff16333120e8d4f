"""Options that several commands have, and what was said about the output."""

from __future__ import annotations

from typing import Any

import click

from .command import FILES_GROUP, OUTPUT_GROUP, SELECTION_GROUP, STORE_GROUP, OutFile, chain, choice, read_config

_SETTINGS = "milvus_offline.settings"


def keep(name: str, value: Any) -> None:
    """Keeps a setting of the command that runs; nothing outside of one."""
    if context := click.get_current_context(silent=True):
        context.meta.setdefault(_SETTINGS, {})[name] = value


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Options of the output are kept for `progress` and `set_up_log`: no command has to hand them around."""
    keep(str(param.name), value)


def setting(name: str) -> Any:
    """What was said about the output of the command that runs; None for what was not said, and outside of a command."""
    context = click.get_current_context(silent=True)
    return context.meta.get(_SETTINGS, {}).get(name) if context else None


output_options = chain(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no report, only errors."),
    click.option("-v", "--verbose", count=True, help="Say on stderr what is opened and finished; -vv: each segment, too."),
    click.option(
        "--stats",
        type=click.FloatRange(0),
        metavar="SECONDS",
        expose_value=False,
        callback=_keep,
        help="Without a terminal: a line on stderr each so many seconds, 0 for none. [default: 30]",
    ),
    click.option("--json-progress", is_flag=True, expose_value=False, callback=_keep, help="Progress as JSON lines on stderr."),
    click.option(
        "--log-file",
        type=OutFile(),
        metavar="FILE",
        expose_value=False,
        callback=_keep,
        help="Also write what -v says to this file, with the date.",
    ),
    click.option(
        "--config",
        type=click.Path(),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="A YAML or JSON file of options, as in `jobs: 2`.",
    ),
    group=OUTPUT_GROUP,
)

STORE_OPTIONS = ("catalog", "wal", "no_wal", "secondary", "no_catalog", "partition_map", "assume")
"""Names of `store_options`."""

store_options = chain(
    click.option(
        "--catalog",
        type=click.Path(),
        metavar="URL|FILE",
        help="Metadata database elsewhere: mysql://user@host/db, a meta.sqlite, a mysqldump .sql[.gz] "
        "(FILE#DATABASE where it holds several), a meta.json of milvus-migration. "
        "The password comes from MILVUS_OFFLINE_CATALOG_PASSWORD.",
    ),
    click.option(
        "--wal", type=click.Path(), metavar="DIR", help="The folder of the write-ahead log, where it is not found by itself."
    ),
    click.option("--no-wal", is_flag=True, help="Leave out unflushed rows in the write-ahead log (they are counted)."),
    click.option(
        "--secondary", type=click.Path(), metavar="DIR", multiple=True, help="A secondary root (Milvus up to 0.9); repeatable."
    ),
    click.option("--no-catalog", is_flag=True, help="Work from the files alone, when the metadata database is lost."),
    click.option(
        "--partition-map",
        type=click.Path(),
        metavar="FILE",
        help="With --no-catalog: JSON or YAML that names folders and their collections.",
    ),
    click.option(
        "--assume",
        metavar="COLLECTION=METRIC",
        multiple=True,
        help="With --no-catalog: a collection's metric (L2, IP, HAMMING, ...), which also says float or binary; repeatable.",
    ),
    group=STORE_GROUP,
)

FILE_OPTIONS = (
    *("into", "metric", "ids", "embeddings", "ids_dataset", "vector_type", "beyond_float32", "follow_external"),
    *("first_id", "lossy", "follow_ondisk"),
)
"""Names of `file_options`."""

faiss_options = chain(
    click.option(
        "--first-id", type=int, metavar="N", help="Faiss: the id of the first row, where the index has no ids. [default: 0]"
    ),
    click.option("--lossy", is_flag=True, help="Faiss: also read kinds that hold approximate vectors only (PQ, SQ8, ...)."),
    click.option("--follow-ondisk", is_flag=True, help="Faiss: follow inverted lists to a file outside of the index's folder."),
    group=FILES_GROUP,
)

vector_options = chain(
    click.option("--embeddings", metavar="NAME", help="The dataset, array or column of vectors."),
    click.option("--ids-dataset", metavar="NAME", help="The dataset, array or column of ids."),
    choice(
        "--vector-type",
        words=["float", "binary"],
        help="What uint8 are, numbers or bits. [default: by the metric, else bits, as MilvusDM writes them]",
        default=None,
    ),
    choice(
        "--beyond-float32",
        words=["error", "inf"],
        help="Numbers that float32 cannot hold: stop, or take them as infinity. [default: error]",
        default=None,
    ),
    click.option("--follow-external", is_flag=True, help="HDF5: also read files outside of its folder that it links to."),
    group=FILES_GROUP,
)

file_options = chain(
    click.option("--into", metavar="NAME", help="The collection's name."),
    click.option("--metric", metavar="NAME", help="The collection's metric."),
    click.option(
        "--ids",
        metavar="row|FILE",
        help="row: row numbers, where a file has no ids that are whole numbers. FILE: the ids of a Faiss index, an int64 array "
        "in a .npy or .uid file.",
    ),
    vector_options,
    faiss_options,
    group=FILES_GROUP,
)

ID_FILES = (".npy", ".uid")

cluster_option = chain(
    click.option(
        "--cluster",
        metavar="dask://HOST:PORT",
        help="The workers of a Dask cluster do it (of a load: write for --import-to); they must see what is read and written.",
    )
)

selection_options = chain(
    click.option("-c", "--collection", metavar="NAME", multiple=True, help="Only this collection; a glob is fine; repeatable."),
    click.option("-p", "--partition", metavar="TAG", multiple=True, help="Only this partition; a glob is fine; repeatable."),
    click.option(
        "--exclude", metavar="NAME", multiple=True, help="Leave out a collection or collection/partition; repeatable."
    ),
    group=SELECTION_GROUP,
)


lost_ids_option = click.option(
    "--lost-ids",
    type=OutFile(),
    metavar="FILE",
    help="Write the ids of rows that are lost to a CSV file: what is to be embedded again. Rows of which the ids themselves "
    "are lost (in the .uid file, or with their record of the log) are counted by the findings only.",
)
