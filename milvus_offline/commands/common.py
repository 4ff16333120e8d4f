"""Options and output that commands share."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import UsageError
from ..fileio import is_remote
from ..model import Source
from ..selection import Selection
from ..transfer import Progress, Silent

if TYPE_CHECKING:
    from ..milvus1.opening import Store

F = TypeVar("F", bound=Callable[..., Any])


def _chain(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


output_options = _chain(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no report, only errors."),
    click.option("-v", "--verbose", count=True, help="Say on stderr what is opened and finished; -vv: each segment, too."),
)

store_options = _chain(
    click.option(
        "--catalog",
        metavar="URL|FILE",
        help="Metadata database elsewhere: mysql://user@host/db, a meta.sqlite, a mysqldump .sql[.gz] "
        "(FILE#DATABASE where it holds several). "
        "The password comes from MILVUS_OFFLINE_CATALOG_PASSWORD.",
    ),
    click.option("--wal", metavar="DIR", help="The folder of the write-ahead log, where it is not found by itself."),
    click.option("--no-wal", is_flag=True, help="Leave out unflushed rows in the write-ahead log (they are counted)."),
    click.option("--secondary", metavar="DIR", multiple=True, help="A secondary root (Milvus up to 0.9); repeatable."),
    click.option("--no-catalog", is_flag=True, help="Work from the files alone, when the metadata database is lost."),
    click.option(
        "--partition-map", metavar="FILE", help="With --no-catalog: JSON or YAML that names folders and their collections."
    ),
    click.option(
        "--assume",
        metavar="COLLECTION=METRIC",
        multiple=True,
        help="With --no-catalog: a collection's metric (L2, IP, HAMMING, ...), which also says float or binary; repeatable.",
    ),
)

faiss_options = _chain(
    click.option(
        "--first-id", type=int, metavar="N", help="Faiss: the id of the first row, where the index has no ids. [default: 0]"
    ),
    click.option("--lossy", is_flag=True, help="Faiss: also read kinds that hold approximate vectors only (PQ, SQ8, ...)."),
    click.option("--follow-ondisk", is_flag=True, help="Faiss: follow inverted lists to a file outside of the index's folder."),
)

file_options = _chain(
    click.option("--into", metavar="NAME", help="HDF5 and Faiss: the collection's name."),
    click.option("--metric", metavar="NAME", help="HDF5 and Faiss: the collection's metric."),
    click.option("--ids", "ids_file", metavar="FILE", help="Faiss: the rows' ids, an int64 array in a .npy or .uid file."),
    faiss_options,
)

selection_options = _chain(
    click.option("-c", "--collection", metavar="NAME", multiple=True, help="Only this collection; a glob is fine; repeatable."),
    click.option("-p", "--partition", metavar="TAG", multiple=True, help="Only this partition; a glob is fine; repeatable."),
    click.option(
        "--exclude", metavar="NAME", multiple=True, help="Leave out a collection or collection/partition; repeatable."
    ),
)


def store_arguments(
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
    for name in ("catalog", "wal", "no_wal", "secondary", "no_catalog", "partition_map", "assume"):
        given = options[name]
        for value in given if isinstance(given, tuple) else [given] if given else []:
            words.append(f"--{name.replace('_', '-')}")
            if name == "catalog":
                value = re.sub(r"^([\w+]+://[^:/@]*):.*@", r"\1@", value, flags=re.S)
            if value is not True:
                words.append(str(value))
    return words


def open_given(
    path: str,
    *,
    into: str | None,
    metric: str | None,
    ids_file: str | None,
    first_id: int | None,
    lossy: bool,
    follow_ondisk: bool,
    salvage: tuple[str, ...] = (),
    **store: Any,
) -> Source:
    """The source at `path` with what `file_options` and `store_options` say of it.

    Raises UsageError for an option that says nothing of such a source.
    """
    from ..sources import SourceOptions, kind_of, open_source
    from ..sources.milvus1 import open_store_source

    kind = kind_of(path) if is_remote(path) or os.path.exists(path) else "milvus1"
    faiss = faiss_arguments(kind, ids_file, first_id, lossy, follow_ondisk)
    if kind not in ("hdf5", "faiss"):
        _refuse({"into": into, "metric": metric}, "HDF5 files or a Faiss index")
    if kind == "milvus1":
        opened = open_store_source(path, salvage=salvage, **store_arguments(**store))
        if _verbose:
            _log_store(opened.store)
        return opened
    _refuse({"salvage": salvage, **store}, "a store")
    return open_source(path, SourceOptions(collection=into, metric=metric, faiss=faiss))


def _refuse(options: Mapping[str, Any], what: str) -> None:
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} only goes with {what}")


def faiss_arguments(kind: str, ids_file: str | None, first_id: int | None, lossy: bool, follow_ondisk: bool) -> dict[str, Any]:
    """Keyword arguments of open_faiss from the options. Raises UsageError when the source is no Faiss index."""
    given = {"--ids": ids_file, "--first-id": first_id, "--lossy": lossy or None, "--follow-ondisk": follow_ondisk or None}
    used = [name for name, value in given.items() if value is not None]
    if used and kind != "faiss":
        raise UsageError(f"{used[0]} only goes with a Faiss index")
    return {"ids_file": ids_file, "first_id": first_id or 0, "lossy": lossy, "follow_ondisk": follow_ondisk}


def selection(collection: tuple[str, ...], partition: tuple[str, ...], exclude: tuple[str, ...]) -> Selection:
    return Selection(collection, partition, exclude)


def print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def bucket_costs() -> dict[str, Any]:
    """What this run has asked object stores for, as a part of its document; nothing where there were none."""
    import sys

    buckets = sys.modules.get("milvus_offline.buckets")
    found = buckets.costs() if buckets is not None else None
    return {"bucket": found} if found else {}


def echo_costs(document: Mapping[str, Any]) -> None:
    """The same for a person."""
    if found := document.get("bucket"):
        from ..report import size

        again = f" ({found['retries']:,} of them repeated)" if found["retries"] else ""
        written = f", {size(found['bytes_written'])} written" if found["bytes_written"] else ""
        click.echo(f"Object store: {found['requests']:,} requests{again}, {size(found['bytes_read'])} read{written}")


def set_up_log(verbose: int) -> None:
    """What happens, and messages of libraries, go to stderr when asked for."""
    global _verbose
    _verbose = verbose > 0
    if verbose:
        import logging

        from ..fileio import printable

        class Lines(logging.Formatter):
            def format(self, record: logging.LogRecord) -> str:
                return "\n".join(map(printable, super().format(record).splitlines()))

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Lines("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        logging.basicConfig(level=logging.INFO if verbose == 1 else logging.DEBUG, handlers=[handler], force=True)


_verbose = False


def _log_store(store: Store) -> None:
    import logging

    log = logging.getLogger("milvus_offline")
    log.info("store %s, roots %s", store.path, ", ".join(map(str, store.location.roots)))
    log.info("catalog %s, version %s", store.catalog.origin, store.catalog.version or "unknown")
    if store.log is None:
        log.info("no write-ahead log")
    else:
        log.info(
            "write-ahead log %s, %d files, acknowledged LSN %s", store.log.folder, len(store.log.files), store.log.acknowledged
        )
    for c in store.collections:
        for p in c.partitions:
            log.info("%s/%s: %d segments, %d rows", c.schema.name, p.name, len(p.segments), p.rows)
            for s in p.segments:
                log.debug("%s/%s: segment %s, %s, %d rows, %d deleted", c.schema.name, p.name, s.id, s.state, s.rows, s.deleted)


class Bar:
    """Rows, bytes, rate and time left on stderr; quiet when that is no terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._rows = self._total_rows = 0

    def start(self, rows: int, nbytes: int, done_rows: int, done_bytes: int) -> None:
        from tqdm import tqdm

        self._rows, self._total_rows = done_rows, rows
        self._bar = tqdm(
            total=nbytes, initial=done_bytes, unit="B", unit_scale=True, unit_divisor=1024, disable=None, file=sys.stderr
        )
        self._show()

    def advance(self, rows: int, nbytes: int) -> None:
        self._rows += rows
        self._bar.update(nbytes)
        self._show()

    def _show(self) -> None:
        if not self._bar.disable:
            self._bar.set_postfix_str(f"{self._rows:,}/{self._total_rows:,} rows", refresh=False)

    def close(self) -> None:
        self._bar.close()


def progress(quiet: bool) -> Progress:
    """The bar of this run: none beside the lines of --verbose."""
    return Silent() if quiet or _verbose or not sys.stderr.isatty() else Bar()
