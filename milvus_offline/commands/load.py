"""`milvus-offline load`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..names import printable
from .command import Command, SourcePath, Target, choice
from .common import bucket_costs, is_chosen, is_typed, print_json, progress, say_costs, source_options
from .log import set_up_log
from .options import (
    ID_FILES,
    STORE_OPTIONS,
    cluster_option,
    faiss_options,
    output_options,
    selection_options,
    store_options,
    vector_options,
)

if TYPE_CHECKING:
    from ..loading import LoadReport
    from ..model import Source
    from ..targets import Estimate
    from ..text import Places, Screen


class _Ids(click.ParamType[str]):
    name = "ids"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in ("keep", "auto", "row") and not text.endswith(ID_FILES):
            self.fail(f"{text!r} is not one of keep, auto, row, or a .npy or .uid file", param, ctx)
        return text


@click.command(
    "load",
    cls=Command,
    examples=[
        "milvus-offline load /var/lib/milvus ./milvus.db",
        "milvus-offline load /var/lib/milvus http://localhost:19530 -c faces --dry-run",
        "milvus-offline load ./milvus-export https://milvus.example:19530 --token-file token.txt",
        "milvus-offline load /var/lib/milvus milvus1:./milvus-repaired",
    ],
    groups={
        "What the target has already": ["mode", "yes", "resume", "state", "switch_alias"],
        "What the rows become": [
            *("names", "rename", "rename_map", "partitions", "duplicates", "nonfinite", "ids", "metric", "index"),
            *("field_names", "shards", "into", "into_partition"),
        ],
        "The server": [
            *("database", "token_file", "ask_token", "server_pem", "server_name", "ca_pem", "client_pem", "client_key"),
            *("message_mib", "inflight", "patience", "limit_rate", "part"),
        ],
        "Bulk import": ["import_to", "import_path", "import_format", "import_stage", "import_commit"],
        "A new store of Milvus 1.x": ["jobs", "new_catalog", "server_path"],
    },
)
@click.argument("path", metavar="SOURCE", type=SourcePath())
@click.argument("target", metavar="TARGET", type=Target())
@choice(
    "--mode", words=["error", "append", "skip", "overwrite"], help="What to do with collections that the target has already."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --mode overwrite drops collections.")
@click.option("-n", "--dry-run", is_flag=True, help="Show every decision, create nothing.")
@click.option("--resume", is_flag=True, help="Go on with a load that was interrupted.")
@click.option("--limit-rate", type=click.FloatRange(0.001), metavar="MIB", help="Send at most so many MiB a second.")
@click.option(
    "--part",
    metavar="I/N",
    help="Load only the I-th of N parts, as one of several machines (1/4 … 4/4); then verify TARGET --against SOURCE.",
)
@click.option("--state", metavar="DIR", help="Where the ledger is kept. [default: in the user's state folder]")
@choice("--names", words=["error", "sanitize"], help="Names that the target refuses: stop, or write other characters as _xHH_.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="A collection's name in the target; repeatable.")
@click.option(
    "--rename-map",
    type=click.Path(),
    metavar="FILE",
    help="A YAML or JSON file of names in the target: `faces: people`, `faces/2021: y2021` for a partition.",
)
@choice(
    "--partitions",
    words=["keep", "merge", "key"],
    help="Keep partitions, put all rows into one, or keep the partition's name in a field.",
)
@choice("--duplicates", words=["keep", "first", "last", "error"], help="Rows that share an id.")
@choice("--nonfinite", words=["error", "skip"], help="Rows that hold NaN or Inf.")
@click.option(
    "--ids",
    type=_Ids(),
    default="keep",
    show_default=True,
    metavar="keep|auto|row|FILE",
    help="keep: the source's ids (the target makes them where there are none). auto: the target makes all. row: row numbers "
    "where there are none. FILE: the ids of a Faiss index, an int64 array in a .npy or .uid file.",
)
@click.option(
    "--metric",
    metavar="NAME",
    help="Another metric than the source's: L2, IP, COSINE, HAMMING, JACCARD, ... A Faiss index keeps its own (or COSINE).",
)
@choice(
    "--index",
    words=["keep", "auto", "none"],
    help="keep: the source's index, or the nearest kind that the target has. auto: AUTOINDEX. none: no index.",
)
@click.option(
    "--field-names", metavar="ID,VECTOR", default="id,vector", show_default=True, help="Names of the fields in the target."
)
@click.option("--shards", type=click.IntRange(1, 64), default=1, show_default=True, help="Shards of a new collection.")
@click.option("--load/--no-load", "load_after", default=True, help="Load the collections into memory afterwards.")
@choice("--verify", words=["none", "count", "sample", "full"], help="What is read back and compared.", default="sample")
@click.option("--into", metavar="NAME", help="Files of other programs and Faiss: the collection's name.")
@click.option("--into-partition", metavar="TAG", help="Files of other programs: the partition of a single file.")
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
@click.option(
    "--message-mib",
    type=click.FloatRange(0.01, 60),
    metavar="N",
    help="Size of a message. [default: 4; Lite 2; a 1.x server 16]",
)
@click.option(
    "--inflight",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="Messages at the same time, or twice the imports.",
)
@click.option(
    "--patience", type=click.FloatRange(0), default=300, show_default=True, metavar="SECONDS", help="Time to wait for a server."
)
@click.option(
    "--import-to",
    metavar="DIR|URL",
    help="Bulk import instead of inserts, for large loads: write files there (a folder or s3://bucket/path in the server's "
    "own storage), and let the server take them in.",
)
@click.option(
    "--switch-alias",
    metavar="NAME",
    help="When the rows are verified, make this alias name the collection; load under a new name with --rename.",
)
@click.option("--import-path", metavar="PATH", help="What the server calls that place. [default: the same; s3: the key]")
@choice("--import-format", words=["npy", "parquet"], help="The kind of those files.")
@click.option(
    "--import-stage", is_flag=True, help="Only write the files; with --part on several machines. Then once: --import-commit."
)
@click.option("--import-commit", is_flag=True, help="Only start the imports of files that --import-stage has written.")
@cluster_option
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="milvus1:PATH: segments at the same time. [default: 2]")
@choice("--new-catalog", words=["sqlite", "mysql"], help="milvus1:PATH: a meta.sqlite, or a meta.sql to load into MySQL.")
@choice(
    "--reflink",
    words=["auto", "always", "never"],
    help="milvus1:PATH: unchanged segments share their blocks with the source's, where the volume can (XFS, Btrfs).",
)
@click.option("--server-path", metavar="PATH", help="milvus1:PATH: where the server will find it, as in a container.")
@vector_options
@faiss_options
@selection_options
@store_options
@output_options
def command(  # many: one for each option
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
    from ..loading import run_load
    from ..selection import SelectedSource, Selection
    from ..targets import open_target
    from ..verdict import attention_sums, places_of

    set_up_log(verbose)
    typed = {name for name in o if is_typed(name)}
    source: Source = SelectedSource(_open_source(path, o, typed), Selection(collection, partition, exclude))
    if o["rename_map"]:
        source = _renamed(source, o, typed)
    made = open_target(target, **_target_options(target, o, typed))
    _check_room(source, target, o, quiet or as_json)
    report = run_load(
        source,
        made,
        state=Path(o["state"]) if o["state"] else None,
        resume=o["resume"],
        dry_run=o["dry_run"],
        limit_rate=o["limit_rate"] * (1 << 20) if o["limit_rate"] else None,
        cluster=o["cluster"],
        progress=progress(quiet or as_json),
        confirm=lambda names: _confirm(names, o["yes"]),
    )
    told = load_verdict(report)
    if as_json:
        print_json({**report.to_json(), **attention_sums(report.findings), **bucket_costs(), "verdict": told})
    elif not quiet:
        _show(report, told, places_of(source), verbose > 0)
    elif report.exit_code:
        kept = f" (state: {report.state})" if report.state else ""
        click.echo(f"finished with findings; --json names them{kept}", err=True)
    return report.exit_code


_NAMES = {"load_after": "load", "ask_token": "token"}
"""Options of the command that a target knows by another name."""
_OF_THE_ROAD = ("state", "resume", "dry_run", "yes", "rename_map", "limit_rate", "cluster")
"""Options that every target has."""
_OF_SOURCES = (
    "into",
    "into_partition",
    "embeddings",
    "ids_dataset",
    "vector_type",
    "beyond_float32",
    "follow_external",
    "first_id",
    "lossy",
    "follow_ondisk",
    *STORE_OPTIONS,
)
"""Options that say something of the source."""


def _target_options(target: str, o: dict[str, Any], typed: set[str]) -> dict[str, Any]:
    """What was said about the target, by the names of its options. Raises UsageError, also for what does not go with it."""
    from ..targets import options_of

    known = options_of(target)
    names = typed | {n for n in o if is_chosen(n) and _NAMES.get(n, n) in known}  # from the environment or a file: if it fits
    given = {name: o[name] for name in names if name not in _OF_THE_ROAD and name not in _OF_SOURCES}
    if str(given.get("ids", "")).endswith(ID_FILES) or given.get("ids") == "row":
        del given["ids"]  # the source's business
    if "load_after" in given:
        given["load"] = given.pop("load_after")
    if "rename" in given:
        given["rename"] = renames(given["rename"])
    if "part" in given:
        given["part"] = _part(given["part"])
    if "field_names" in given:
        given["field_names"] = _field_names(given["field_names"])
    if given.pop("ask_token", False):
        if "token_file" in given:
            raise UsageError("--token-file and --ask-token contradict each other")
        given["token"] = ""
    if "token" in given and "token" in known:
        given["token"] = str(click.prompt("Token (user:password, or an API key)", hide_input=True, err=True))
    return given


def _open_source(path: str, o: dict[str, Any], typed: set[str]) -> Source:
    from ..sources import KINDS, kind_of, open_source

    kind = kind_of(path)
    takes = KINDS[kind].takes
    said = {n: o[n] for n in _OF_SOURCES if n in typed or n in takes}  # from the environment or a file: if it fits
    # the metric of an index is not the user's to choose, but COSINE may rank the same
    if kind in ("faiss", "langchain") and (o["metric"] or "").upper() != "COSINE":
        said["metric"] = o["metric"]
    if o["nonfinite"] == "skip" and "beyond_float32" in takes:
        said["beyond_float32"] = o["beyond_float32"] or "inf"  # these rows are among those that are left out
    return open_source(path, source_options(path, ids=o["ids"], target_metric=o["metric"], **said))


def _field_names(text: str) -> tuple[str, str]:
    names = [n.strip() for n in text.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UsageError(f"--field-names {text}: expected two names, as in id,vector")
    return names[0], names[1]


def _part(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--part {text}: expected I/N, as in 1/4")
    return int(number), int(of)


def renames(pairs: tuple[str, ...]) -> dict[str, str]:
    """`--rename OLD=NEW ...` as a mapping. Raises UsageError."""
    result: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--rename {pair}: expected OLD=NEW")
        if result.get(old, new) != new:
            raise UsageError(f"--rename {old}: two new names, {result[old]} and {new}: choose one")
        result[old] = new
    return result


def _renamed(source: Source, o: dict[str, Any], typed: set[str]) -> Source:
    """The source with the names of --rename-map; those of collections join --rename."""
    from ..renaming import RenamedSource, read_names

    names = read_names(o["rename_map"])
    collections = {c.schema.name for c in source.collections}
    mine = {old: new for old, new in names.items() if old in collections}
    o["rename"] = (*o["rename"], *(f"{old}={new}" for old, new in mine.items()))
    typed |= {"rename"} if mine else set()
    return RenamedSource(source, {old: new for old, new in names.items() if old not in mine})


def load_verdict(report: LoadReport) -> dict[str, str]:
    """The verdict of a load in one line, see verdict.verdict."""
    from ..text import count
    from ..verdict import headed, verdict

    what = "staged for an import" if report.staged else "loaded"
    done = f"{'would be' if report.dry_run else 'was' if report.rows == 1 else 'were'} {what}"
    told = verdict(report.rows, report.findings, done)
    if not report.rows and (there := sum(c.action == "skip" for c in report.plan.collections)):
        them = "it" if there == 1 else "them"
        nothing = f"Nothing {done.replace('were', 'was')}: {count(there, 'collection')} left alone, as the target has {them}"
        told["text"] = told["text"].replace("There are no live rows", nothing, 1)
    if report.exit_code == 4:
        told = headed(told, "VERIFICATION FOUND DIFFERENCES")
    return told


def _show(report: LoadReport, told: dict[str, str], places: Places, verbose: bool) -> None:
    from ..text import Screen
    from ..verdict import end

    screen = Screen()
    screen.verdict(told["level"], told["text"])
    for line in report_lines(report, with_findings=False):
        screen.say(line, hang=13 if line.startswith("  ") else 2)  # under the collection's name
    say_costs(screen, bucket_costs())
    if report.findings:
        screen.say()
        screen.findings([f.to_json() for f in report.findings], places, verbose=verbose)
    what_now(screen, report.target, report.first_use)
    end(screen, told, report.exit_code)


def what_now(screen: Screen, target: str, first_use: Sequence[str]) -> None:
    """How one goes on with the rows in the target."""
    title = "Next, a server on the new store:" if target.startswith("milvus1:") else "Next, in Python:"
    screen.steps([printable(line) for line in first_use], title)


def _check_room(source: Source, target: str, o: dict[str, Any], silent: bool) -> None:
    """Says on a terminal how much is free where a local target is made. Raises TargetError when there is no room for it.

    A new store of 1.x may share blocks with its source, and what there was of an interrupted load is written already.
    """
    from ..errors import TargetError
    from ..guard import free_space
    from ..text import size

    path = target.removeprefix("milvus1:")
    if "://" in target:
        return
    there, free = free_space(path)
    needed = sum(c.rows * (c.schema.row_bytes + 8) for c in source.collections)
    if free is None:
        return
    whole = path.endswith(".db") or o["reflink"] == "never"
    if whole and needed > free and not o["resume"] and not o["dry_run"]:
        raise TargetError(
            f"{path}: the disk is full: the rows take {size(needed)}, {size(free)} are free there: free some space, or choose "
            "another place"
        )
    if not silent and sys.stderr.isatty():
        click.echo(f"{size(needed)} to write, {size(free)} free in {there}", err=True)


def _confirm(dropped: Sequence[str], yes: bool) -> bool:
    if yes:
        return True
    names = ", ".join(printable(n) for n in dropped)
    if not sys.stdin.isatty():
        raise UsageError(f"--mode overwrite would drop {names}: add --yes")
    return click.confirm(f"Drop {names} in the target?", err=True)


_VERIFIED = {
    "none": "Not verified",
    "count": "Verified: the number of rows of each partition",
    "full": "Verified: every row was read back",
}
_CERTAINTY = 0.95


def verified_words(verified: str, checked: int, rows: int) -> str:
    """What verification proved. Of a sample: which share of wrong rows it would have found with a certainty of 95 %."""
    if verified != "sample":
        return _VERIFIED[verified]
    if not checked:
        return _VERIFIED["count"]
    counts = f"Verified: the number of rows of each partition, and {checked:,} of {rows:,} rows read back"
    if checked >= rows:
        return counts
    share = 1 - (1 - _CERTAINTY) ** (1 / checked)
    return f"{counts}, {_proof(share)}"


def _proof(share: float) -> str:
    return f"enough to notice, with {100 * _CERTAINTY:.0f} % certainty, that {100 * share:.2g} % of the rows are wrong"


def _estimate_lines(made: Estimate | None) -> list[str]:
    """What the load would take, for a person."""
    from ..text import count, duration, size

    if made is None or not made.rows:
        return []
    sending = f"To send: {size(made.bytes)}"
    if made.seconds is not None:
        known = [f"--limit-rate allows {size(int(made.limit))}/s"] if made.limit else []
        known += [f"the network gives {size(int(made.network))}/s"] if made.network else []
        known.append(
            f"how fast this target stores is not measured: one of its kind, on two cores, stored {size(int(made.storing))}/s"
        )
        sending += f", about {duration(max(1, made.seconds))} without indexes ({'; '.join(known)})"
    back = ""
    if made.verify_rows:
        share = 1 - (1 - _CERTAINTY) ** (1 / made.verify_rows)
        proof = f", {_proof(share)}"
        took = f", about {duration(made.verify_seconds)}" if made.verify_seconds and made.verify_seconds >= 1 else ""
        back = f"; {count(made.verify_rows, 'row')} read back{took}{'' if made.verify_rows >= made.rows else proof}"
    return [sending, f"To verify: {'nothing' if made.verify == 'none' else 'the number of rows of each partition'}{back}"]


def report_lines(report: LoadReport, *, with_findings: bool = True) -> list[str]:
    """A report for a person."""
    from ..text import amount, count, finding_lines, size

    if report.dry_run:
        found = report.plan.target
        kind = {"lite": "Milvus Lite"}.get(found.get("kind", ""), found.get("kind", ""))
        version = f" ({kind} {found['version']})".replace(" )", ")") if "version" in found else ""
        lines = [f"Would load into {report.target}{version}:"]
        for c in report.plan.collections:
            lines.append(f"  {c.action:<8} {printable(c.name)}: {count(c.rows, 'row')}, {c.summary()}")
        lines += _estimate_lines(report.plan.estimate)
    else:
        loaded = sum(c.action != "skip" for c in report.plan.collections)
        rate = report.rows_now / report.seconds_sending if report.seconds_sending else 0
        speed = f" ({rate:,.0f} rows/s)" if rate else ""
        lines = [f"{amount(report.rows, loaded)} ({size(report.bytes)}) in {report.seconds:.1f} s{speed}: {report.target}"]
        skipped = sum(c.rows for c in report.plan.collections if c.action == "skip")
        words = verified_words(report.verified, report.checked_rows, report.rows + skipped)
        lines.append(words if report.exit_code != 4 else "VERIFICATION FOUND DIFFERENCES")
    if report.findings and with_findings:
        lines += finding_lines([f.to_json() for f in report.findings])
    return lines
