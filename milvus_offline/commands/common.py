"""Options and output that commands share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import StoreError, UsageError
from ..fileio import unreadable
from ..guard import keep_out
from ..model import Source
from ..names import printable
from ..selection import Selection
from ..transfer import Progress, Silent
from .command import chain, choice, read_config

if TYPE_CHECKING:
    from logging.handlers import MemoryHandler

    from ..milvus1.opening import Store
    from ..sources import SourceOptions
    from ..text import Screen

_SETTINGS = "milvus_offline.settings"


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Options of the output are kept for `progress` and `set_up_log`: no command has to hand them around."""
    ctx.meta.setdefault(_SETTINGS, {})[param.name] = value


def _setting(name: str) -> Any:
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
        type=click.Path(),
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
    group="Output",
)

STORE_OPTIONS = ("catalog", "wal", "no_wal", "secondary", "no_catalog", "partition_map", "assume")
"""Names of `store_options`."""

store_options = chain(
    click.option(
        "--catalog",
        type=click.Path(),
        metavar="URL|FILE",
        help="Metadata database elsewhere: mysql://user@host/db, a meta.sqlite, a mysqldump .sql[.gz] "
        "(FILE#DATABASE where it holds several). "
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
    group="The store",
)

faiss_options = chain(
    click.option(
        "--first-id", type=int, metavar="N", help="Faiss: the id of the first row, where the index has no ids. [default: 0]"
    ),
    click.option("--lossy", is_flag=True, help="Faiss: also read kinds that hold approximate vectors only (PQ, SQ8, ...)."),
    click.option("--follow-ondisk", is_flag=True, help="Faiss: follow inverted lists to a file outside of the index's folder."),
    group="Files of others and Faiss indexes",
)

vector_options = chain(
    click.option("--embeddings", metavar="NAME", help="Files of others: the dataset, array or column of vectors."),
    click.option("--ids-dataset", metavar="NAME", help="Files of others: the dataset, array or column of ids."),
    choice(
        "--vector-type",
        words=["float", "binary"],
        help="Files of others: what uint8 are, numbers or bits. [default: by the metric, else bits, as MilvusDM writes them]",
        default=None,
    ),
    choice(
        "--beyond-float32",
        words=["error", "inf"],
        help="Files of others: numbers that float32 cannot hold: stop, or take them as infinity. [default: error]",
        default=None,
    ),
    click.option("--follow-external", is_flag=True, help="HDF5: also read files outside of its folder that it links to."),
    group="Files of others and Faiss indexes",
)

file_options = chain(
    click.option("--into", metavar="NAME", help="Files of others and Faiss: the collection's name."),
    click.option("--metric", metavar="NAME", help="Files of others and Faiss: the collection's metric."),
    click.option(
        "--ids",
        metavar="row|FILE",
        help="row: row numbers, where a file has no ids that are whole numbers. FILE: the ids of a Faiss index, an int64 array "
        "in a .npy or .uid file.",
    ),
    vector_options,
    faiss_options,
    group="Files of others and Faiss indexes",
)

ID_FILES = (".npy", ".uid")

cluster_option = chain(
    click.option(
        "--cluster", metavar="dask://HOST:PORT", help="Let the workers of a Dask cluster do it; they must see STORE and OUT."
    )
)

selection_options = chain(
    click.option("-c", "--collection", metavar="NAME", multiple=True, help="Only this collection; a glob is fine; repeatable."),
    click.option("-p", "--partition", metavar="TAG", multiple=True, help="Only this partition; a glob is fine; repeatable."),
    click.option(
        "--exclude", metavar="NAME", multiple=True, help="Leave out a collection or collection/partition; repeatable."
    ),
    group="What is taken",
)


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


lost_ids_option = click.option(
    "--lost-ids",
    type=click.Path(),
    metavar="FILE",
    help="Write the ids of rows that are known and cannot be recovered to a CSV file: what is to be embedded again.",
)


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
        raise UsageError("--wal and --no-wal contradict each other")
    if catalog and no_catalog:
        raise UsageError("--catalog and --no-catalog contradict each other")
    if (partition_map or assume) and not no_catalog:
        raise UsageError("--partition-map and --assume only go with --no-catalog")
    result: dict[str, Any] = {"catalog": catalog, "wal": wal, "replay_wal": not no_wal, "secondary": secondary}
    if no_catalog:
        from ..milvus1.nocatalog import Assumptions

        result["without_catalog"] = Assumptions.parse(partition_map, assume)
    return result


def store_words(options: Mapping[str, Any]) -> list[str]:
    """What `store_options` were given, as words of a command line; without the password of a catalog."""
    words: list[str] = []
    for name in STORE_OPTIONS:
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
    opened = open_source(path, source_options(path, **given))
    _begin_log_file(opened)
    if logging_asked() and (store := getattr(opened, "store", None)) is not None:
        _log_store(store)
    return opened


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
            raise UsageError(f"--{option} only goes with {' or '.join(', '.join(goes_with).rsplit(', ', 1))}")
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


def selection(collection: tuple[str, ...], partition: tuple[str, ...], exclude: tuple[str, ...]) -> Selection:
    return Selection(collection, partition, exclude)


def is_typed(name: str) -> bool:
    """Whether an option of the running command was typed, rather than left at its default or found in the environment or in
    the file of --config."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def is_chosen(name: str) -> bool:
    """Whether an option of the running command has another source than its default."""
    return click.get_current_context().get_parameter_source(name) not in (None, ParameterSource.DEFAULT)


def write_lost_ids(path: str, source: Source) -> int:
    """Writes `collection,partition,id` of the rows of a store that are known and lost; how many they are.

    Raises UsageError for another source, and for a file in the store.
    """
    import csv

    from ..guard import explained
    from ..milvus1.lost import lost_ids
    from ..sources.milvus1 import StoreSource

    if not isinstance(source, StoreSource):
        raise UsageError("--lost-ids goes with a store")
    keep_out(path, source.describe())
    found = 0
    with (
        explained("write the lost ids", path),
        open(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["collection", "partition", "id"])
        for collection, partition, ids in lost_ids(source.store):
            writer.writerows((collection, partition, i) for i in ids.tolist())
            found += len(ids)
    return found


def print_json(document: Any) -> None:
    text = json.dumps(document)
    if len(text) < _INDENTED:  # the indenting encoder is written in Python
        text = json.dumps(document, indent=1)
    sys.stdout.write(text + "\n")


_INDENTED = 1 << 20
"""Characters of a document up to which it is indented for a person."""


def set_up_log(verbose: int) -> None:
    """What happens, and messages of libraries, go to stderr when asked for, and to --log-file."""
    global _verbose, _log_file
    _verbose, _log_file = verbose > 0, None
    path = _setting("log_file")
    if not verbose and not path:
        return
    import logging
    from logging.handlers import MemoryHandler

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(printable, super().format(record).splitlines()))

    handlers: list[logging.Handler] = []
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setFormatter(Lines("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    if path:  # nothing is written before it is known that the file does not lie in the source
        _log_file = path, MemoryHandler(1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        handlers.append(_log_file[1])
    logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.INFO, handlers=handlers, force=True)


def _begin_log_file(source: Source) -> None:
    global _log_file
    if _log_file is None:
        return
    import logging

    path, memory = _log_file
    keep_out(path, source.describe())
    try:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        raise UsageError(f"--log-file {path}: cannot be written: {e.strerror}") from e
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    memory.setTarget(file)
    memory.flush()
    logging.getLogger().removeHandler(memory)
    logging.getLogger().addHandler(file)
    _log_file = None


_verbose = False
_log_file: tuple[str, MemoryHandler] | None = None


def logging_asked() -> bool:
    """Whether --verbose or --log-file want to know what is done."""
    return _verbose or bool(_setting("log_file"))


def _log_store(store: Store) -> None:
    import logging

    from ..text import count

    log = logging.getLogger("milvus_offline")
    log.info("store %s, roots %s", store.path, ", ".join(map(str, store.location.roots)))
    log.info("catalog %s, version %s", store.catalog.origin, store.catalog.version or "unknown")
    if store.log is None:
        log.info("no write-ahead log")
    else:
        log.info(
            "write-ahead log %s, %s, acknowledged LSN %s",
            store.log.folder,
            count(len(store.log.files), "file"),
            store.log.acknowledged,
        )
    for c in store.collections:
        for p in c.partitions:
            log.info("%s/%s: %s, %s", c.schema.name, p.name, count(len(p.segments), "segment"), count(p.rows, "row"))
            for s in p.segments:
                log.debug("%s/%s: segment %s, %s, %d rows, %d deleted", c.schema.name, p.name, s.id, s.state, s.rows, s.deleted)


def progress(quiet: bool) -> Progress:
    """How this run shows how far it is: nothing beside the lines of --verbose."""
    from ..progress import STATS_SECONDS, Bar, Lines

    every = _setting("stats")
    if _setting("json_progress"):
        return Lines(every or 1.0, as_json=True)
    if quiet or _verbose or every == 0:
        return Silent()
    if sys.stderr.isatty() and every is None:
        return Bar()
    return Lines(every or STATS_SECONDS)
