"""`milvus-offline load`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..model import Source
from .common import (
    faiss_arguments,
    faiss_options,
    output_options,
    print_json,
    progress,
    selection,
    selection_options,
    set_up_log,
    store_arguments,
    store_options,
)

if TYPE_CHECKING:
    from ..targets.milvus.bulk import Bucket
    from ..targets.milvus.plan import LoadOptions


_ID_FILES = (".npy", ".uid")


class _Ids(click.ParamType[str]):
    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in ("keep", "auto", "row") and not text.endswith(_ID_FILES):
            self.fail(f"{text!r} is not one of keep, auto, row, or a .npy or .uid file", param, ctx)
        return text


@click.command("load")
@click.argument("path", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@click.option(
    "--mode",
    type=click.Choice(["error", "append", "skip", "overwrite"]),
    default="error",
    show_default=True,
    help="What to do with collections that the target has already.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --mode overwrite drops collections.")
@click.option("-n", "--dry-run", is_flag=True, help="Show every decision, create nothing.")
@click.option("--resume", is_flag=True, help="Go on with a load that was interrupted.")
@click.option("--state", metavar="DIR", help="Where the ledger is kept. [default: in the user's state folder]")
@click.option(
    "--names",
    type=click.Choice(["error", "sanitize"]),
    default="error",
    show_default=True,
    help="Names that the target refuses: stop, or write other characters as _xHH_.",
)
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="A collection's name in the target; repeatable.")
@click.option(
    "--partitions",
    type=click.Choice(["keep", "merge", "key"]),
    default="keep",
    show_default=True,
    help="Keep partitions, put all rows into one, or keep the partition's name in a field.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["keep", "first", "last", "error"]),
    default="keep",
    show_default=True,
    help="Rows that share an id.",
)
@click.option(
    "--nonfinite",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Rows that hold NaN or Inf.",
)
@click.option(
    "--ids",
    type=_Ids(),
    default="keep",
    show_default=True,
    metavar="keep|auto|row|FILE",
    help="The source's ids (made by the target where it has none), ids made by the target, row numbers where it has none, or "
    "for a Faiss index an int64 array in a .npy or .uid file.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Another metric than the source's: L2, IP, COSINE, HAMMING, JACCARD, ... A Faiss index keeps its own (or COSINE).",
)
@click.option(
    "--index",
    type=click.Choice(["keep", "auto", "none"]),
    default="keep",
    show_default=True,
    help="The source's index or its nearest kin, AUTOINDEX, or none.",
)
@click.option(
    "--field-names", metavar="ID,VECTOR", default="id,vector", show_default=True, help="Names of the fields in the target."
)
@click.option("--shards", type=click.IntRange(1, 64), default=1, show_default=True, help="Shards of a new collection.")
@click.option("--load/--no-load", "load_after", default=True, help="Load the collections into memory afterwards.")
@click.option(
    "--verify",
    type=click.Choice(["none", "count", "sample", "full"]),
    default="sample",
    show_default=True,
    help="What is read back and compared.",
)
@click.option("--into", metavar="NAME", help="HDF5 and Faiss: the collection's name.")
@click.option("--into-partition", metavar="TAG", help="HDF5: the partition of a single file.")
@click.option("--embeddings", metavar="DATASET", default="embeddings", show_default=True, help="HDF5: the vectors.")
@click.option("--ids-dataset", metavar="DATASET", default="ids", show_default=True, help="HDF5: the ids.")
@click.option("--database", metavar="NAME", envvar="MILVUS_DATABASE", default="", help="Database of the target.")
@click.option("--token-file", metavar="FILE", help="A file that holds the token (user:password, or an API key).")
@click.option(
    "--ask-token", is_flag=True, help="Ask for the token. Otherwise: MILVUS_TOKEN, or MILVUS_USER and MILVUS_PASSWORD."
)
@click.option("--server-pem", metavar="FILE", default="", help="TLS: the server's certificate.")
@click.option("--server-name", metavar="NAME", default="", help="TLS: the name in the server's certificate.")
@click.option("--ca-pem", metavar="FILE", default="", help="TLS, both ways: the authority's certificate.")
@click.option("--client-pem", metavar="FILE", default="", help="TLS, both ways: the client's certificate.")
@click.option("--client-key", metavar="FILE", default="", help="TLS, both ways: the client's key.")
@click.option("--message-mib", type=click.FloatRange(0.01, 60), metavar="N", help="Size of a message. [default: 8; Lite 2]")
@click.option("--inflight", type=click.IntRange(1, 32), default=2, show_default=True, help="Messages at the same time.")
@click.option(
    "--patience", type=click.FloatRange(0), default=300, show_default=True, metavar="SECONDS", help="Time to wait for a server."
)
@click.option(
    "--import-to",
    metavar="DIR|URL",
    help="Bulk import instead of inserts, for large loads: write files there (a folder or s3://bucket/path in the server's "
    "own storage), and let the server take them in.",
)
@click.option("--import-path", metavar="PATH", help="What the server calls that place. [default: the same; s3: the key]")
@click.option(
    "--import-format",
    type=click.Choice(["npy", "parquet"]),
    default="npy",
    show_default=True,
    help="The kind of those files.",
)
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="milvus1:PATH: segments at the same time. [default: 2]")
@click.option(
    "--new-catalog",
    type=click.Choice(["sqlite", "mysql"]),
    default="sqlite",
    show_default=True,
    help="milvus1:PATH: a meta.sqlite, or a meta.sql to load into MySQL.",
)
@click.option("--server-path", metavar="PATH", help="milvus1:PATH: where the server will find it, as in a container.")
@faiss_options
@selection_options
@store_options
@output_options
def command(
    path: str,
    target: str,
    collection: tuple[str, ...],
    partition: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: int,
    **o: Any,
) -> int:
    """Bring SOURCE into TARGET, with schema, partitions, metric and index, and check that it arrived.

    SOURCE is a store, an export folder, HDF5 files or a Faiss index. TARGET is ./some.db (Milvus Lite) or http(s)://host:port
    (Milvus 2.x, 3.x, Zilliz Cloud), milvus1:PATH (a new store of Milvus 1.1.1, never an existing one) or milvus1://host:port
    (a running Milvus 0.10 or 1.x).
    """
    from ..selection import SelectedSource
    from ..sources import SourceOptions, kind_of, open_source
    from ..targets import is_milvus1
    from ..targets.milvus.connection import Connection
    from ..targets.milvus.load import RunOptions, run_load
    from ..targets.milvus.plan import LoadOptions

    set_up_log(verbose)
    id_field, vector_field = _field_names(o["field_names"])
    options = LoadOptions(
        mode=o["mode"],
        names=o["names"],
        partitions=o["partitions"],
        duplicates=o["duplicates"],
        nonfinite=o["nonfinite"],
        ids="auto" if o["ids"] == "auto" else "keep",
        index=o["index"],
        metric=o["metric"].upper() if o["metric"] else None,
        rename=_renames(o["rename"]),
        id_field=id_field,
        vector_field=vector_field,
        shards=o["shards"],
    )
    run = RunOptions(
        state=Path(o["state"]) if o["state"] else None,
        resume=o["resume"],
        message_bytes=int(o["message_mib"] * (1 << 20)) if o["message_mib"] else None,
        inflight=o["inflight"],
        patience=o["patience"],
        load=o["load_after"],
        verify=o["verify"],
        bucket=_bucket(o["import_to"], o["import_path"], o["import_format"]),
    )
    kind = kind_of(path)
    ids_file = o["ids"] if o["ids"].endswith(_ID_FILES) else None
    # the metric of an index is not the user's to choose, but COSINE may rank the same
    confirmed = o["metric"] if kind == "faiss" and (o["metric"] or "").upper() != "COSINE" else None
    names = ("catalog", "wal", "no_wal", "secondary", "no_catalog", "partition_map", "assume")
    opened = open_source(
        path,
        SourceOptions(
            collection=o["into"],
            metric=confirmed,
            partition=o["into_partition"],
            embeddings=o["embeddings"],
            ids=o["ids_dataset"],
            row_ids=o["ids"] == "row",
            store=store_arguments(**{n: o[n] for n in names}),
            faiss=faiss_arguments(kind, ids_file, o["first_id"], lossy=o["lossy"], follow_ondisk=o["follow_ondisk"]),
        ),
    )
    if is_milvus1(target):
        chosen = SelectedSource(opened, selection(collection, partition, exclude))
        return _load_milvus1(chosen, target, options, o, as_json, quiet)
    connection = Connection(
        uri=target,
        database=o["database"],
        token=_token(o["token_file"], o["ask_token"]),
        server_pem=o["server_pem"],
        server_name=o["server_name"],
        ca_pem=o["ca_pem"],
        client_pem=o["client_pem"],
        client_key=o["client_key"],
    )
    report = run_load(
        SelectedSource(opened, selection(collection, partition, exclude)),
        connection,
        options,
        run,
        dry_run=o["dry_run"],
        progress=progress(quiet or as_json),
        confirm=lambda plan: _confirm(plan, o["yes"]),
    )
    if as_json:
        print_json({**report.to_json(), "dry_run": o["dry_run"], "exit_code": report.exit_code})
    elif not quiet:
        click.echo("\n".join(_lines(report, connection.name, o["dry_run"])))
    elif report.exit_code:
        click.echo(f"finished with findings, see {report.state}", err=True)
    return report.exit_code


def _load_milvus1(source: Source, target: str, options: LoadOptions, o: dict[str, Any], as_json: bool, quiet: bool) -> int:
    from ..targets.milvus1.load import LoadOptions1, load_milvus1

    for name, value in (("partitions", "keep"), ("duplicates", "keep"), ("names", "error")):
        if o[name] != value:
            raise UsageError(f"--{name} {o[name]} does not go with a target of Milvus 1.x")
    report = load_milvus1(
        source,
        target,
        LoadOptions1(
            mode=options.mode,
            metric=options.metric,
            index=options.index,
            rename=options.rename,
            ids=options.ids,
            catalog=o["new_catalog"],
            server_root=o["server_path"],
            message_bytes=int(o["message_mib"] * (1 << 20)) if o["message_mib"] else None,
            state=Path(o["state"]) if o["state"] else None,
            resume=o["resume"],
            dry_run=o["dry_run"],
            jobs=o["jobs"],
            confirm=lambda names: _confirm_names(names, o["yes"]),
        ),
        progress(quiet or as_json),
    )
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        click.echo("\n".join(report.lines()))
    elif report.exit_code:
        click.echo("finished with findings, the report names them", err=True)
    return report.exit_code


def _field_names(text: str) -> tuple[str, str]:
    names = [n.strip() for n in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UsageError(f"--field-names {text}: expected two names, as in id,vector")
    return names[0], names[1]


def _renames(pairs: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename {pair}: expected OLD=NEW")
        result[old] = new
    return result


def _bucket(folder: str | None, seen_as: str | None, file_format: str) -> Bucket | None:
    from ..targets.milvus.bulk import Bucket

    if folder is None:
        if seen_as:
            raise UsageError("--import-path only goes with --import-to")
        return None
    if "://" in folder:
        return Bucket(folder, seen_as or folder.split("://", 1)[1].partition("/")[2], file_format)
    folder = os.path.abspath(folder)
    return Bucket(folder, seen_as or folder, file_format)


def _token(file: str | None, ask: bool) -> str:
    """The secret, from where neither `ps` nor a log shows it."""
    if file and ask:
        raise UsageError("--token-file and --ask-token contradict each other")
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"{file}: the token cannot be read: {getattr(e, 'strerror', None) or 'not text'}") from e
    if ask:
        return str(click.prompt("Token (user:password, or an API key)", hide_input=True, err=True))
    if token := os.environ.get("MILVUS_TOKEN"):
        return token
    user, password = os.environ.get("MILVUS_USER"), os.environ.get("MILVUS_PASSWORD")
    return f"{user}:{password}" if user and password else ""


def _confirm(plan: Any, yes: bool) -> bool:
    return _confirm_names([c.name for c in plan.collections if c.action == "recreate"], yes)


def _confirm_names(dropped: Sequence[str], yes: bool) -> bool:
    if yes:
        return True
    names = ", ".join(dropped)
    if not sys.stdin.isatty():
        raise UsageError(f"--mode overwrite would drop {names}: add --yes")
    return click.confirm(f"Drop {names} in the target?", err=True)


def _lines(report: Any, target: str, dry_run: bool) -> list[str]:
    from ..fileio import printable
    from ..report import amount, count, finding_lines

    lines = []
    if dry_run:
        lines.append(
            f"Would load into {target} ({report.plan.target['kind']} {report.plan.target['version']}):".replace(" )", ")")
        )
        for c in report.plan.collections:
            index = f"{c.index.type} {dict(c.index.params) or ''}".strip() if c.index else "no index"
            ids = "ids made by the target" if c.auto_id else "ids kept"
            lines.append(
                f"  {c.action:<8} {printable(c.name)}: {count(c.rows, 'row')}, {count(len(c.partitions), 'partition')}, "
                f"{c.vector_type.value} {c.dimension}, {c.metric_type}, {index}, {ids}"
            )
    else:
        rate = report.rows_now / report.seconds_sending if report.seconds_sending else 0
        loaded = sum(c.action != "skip" for c in report.plan.collections)
        lines.append(f"{amount(report.rows, loaded)} in {report.seconds:.1f} s ({rate:,.0f} rows/s up to the flush): {target}")
        lines.append(f"Verified: {report.verified}" if report.exit_code != 4 else "VERIFICATION FOUND DIFFERENCES")
    if report.findings:
        lines += finding_lines([f.to_json() for f in report.findings])
    return lines
