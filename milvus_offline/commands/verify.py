"""`milvus-offline verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from .. import fileio
from ..guard import check_file
from .command import Command, OutFile, SourceOrTarget, SourcePath, is_target
from .common import bucket_costs, is_typed, open_given, print_json, progress, say_costs, several, source_words, write_lost_ids
from .log import set_up_log
from .options import cluster_option, file_options, lost_ids_option, output_options, store_options

if TYPE_CHECKING:
    from ..findings import Findings
    from ..model import Finding, Source
    from ..text import Places

    _Verified: TypeAlias = tuple[dict[str, Any], Places, dict[str, Any]]
    """The document of one path, how its places are called, and what `inspect` says of it."""


class _Share(click.ParamType[float]):
    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is not a share such as 5% or 0.05", param, ctx)
        return share


@click.command(
    "verify",
    cls=Command,
    examples=[
        "milvus-offline verify /var/lib/milvus",
        "milvus-offline verify /var/lib/milvus --sample 5%",
        "milvus-offline verify ./milvus-export --against /var/lib/milvus",
        "milvus-offline verify http://localhost:19530 --against /var/lib/milvus --search 100",
    ],
)
@click.argument("paths", metavar="STORE|EXPORT|TARGET...", nargs=-1, required=True, type=SourceOrTarget())
@click.option(
    "--against",
    type=SourcePath(),
    metavar="STORE",
    help="With an export or a target: compare every id and vector with this store or other source.",
)
@click.option(
    "--search",
    "searches",
    type=click.IntRange(1),
    metavar="N",
    help="With --against: also search both for N sampled rows of each collection, and compare ids and distances; of a target's "
    "approximate index the recall is measured.",
)
@click.option("--sample", type=_Share(), default=1.0, metavar="SHARE", help="Read only this share of the segments, e.g. 5%.")
@click.option("--rename", metavar="OLD=NEW", multiple=True, help="With a target: a collection's name there; repeatable.")
@click.option("--database", metavar="NAME", envvar="MILVUS_DATABASE", help="With a target: its database.")
@click.option("--token-file", metavar="FILE", help="With a target: a file that holds the token. Otherwise: MILVUS_TOKEN.")
@click.option("--html", type=OutFile(), metavar="FILE", help="Also write a report that a browser shows.")
@lost_ids_option
@cluster_option
@file_options
@store_options
@output_options
def command(
    paths: Sequence[str], html: str | None, lost_ids: str | None, as_json: bool, quiet: bool, verbose: int, **o: Any
) -> int:
    """Read everything, believe nothing.

    For a STORE: lengths, ids against bloom filters, vectors against index files, catalog against disk, the log's records.
    For an EXPORT (a folder with manifest.json): checksums and counts, and with --against every row.
    For a TARGET of load (http://host:port, ./some.db, milvus1://host:port) with --against: counts, ids and vectors.
    """
    from ..errors import UsageError

    set_up_log(verbose)
    if len(paths) > 1 and (html or lost_ids or o["against"]):
        raise UsageError("--html, --lost-ids and --against go with one path")
    for file, what in ((html, "write the report"), (lost_ids, "write the lost ids")):
        if file:
            check_file(file, what)
    for name in ("rename", "database", "token_file"):
        if is_typed(name) and not all(map(is_target, paths)):
            raise UsageError(f"--{name.replace('_', '-')} goes with a target: milvus-offline verify http://… --against STORE")
    chosen = {name: o.pop(name) for name in ("against", "searches", "sample", "cluster")}
    asked = _Asked(**chosen, quiet=quiet or as_json, lost_ids=lost_ids)
    found = [_verify(path, asked, **o) for path in paths]
    documents = [document for document, _, _ in found]
    documents[-1] |= bucket_costs()
    code: int = max(d["exit_code"] for d in documents)
    if html:
        from ..html import write_html

        document, places, inspected = found[0]
        write_html(html, inspected, places, verified=document)
    if as_json:
        print_json(documents[0] if len(paths) == 1 else several(documents, code))
    elif not quiet:
        from ..text import Screen

        screen = Screen()
        for number, (document, places, _) in enumerate(found):
            if number:
                screen.rule()
            _show(screen, document, places, verbose=verbose > 0)
        say_costs(screen, documents[-1])
    return code


@dataclass(frozen=True)
class _Asked:
    """What is to be verified, whatever the path is; the other options are for opening a source."""

    against: str | None
    searches: int | None
    sample: float
    quiet: bool
    lost_ids: str | None
    cluster: str | None


def _verify(path: str, asked: _Asked, *, rename: tuple[str, ...], database: str, token_file: str | None, **o: Any) -> _Verified:
    from ..errors import StoreError, UsageError
    from ..sources import kind_of

    if is_target(path):
        if asked.cluster:
            raise UsageError(f"--cluster goes with a store or an export; the target {path} is compared on this machine")
        return _verify_target(path, asked, {"rename": rename, "database": database, "token_file": token_file}, **o)
    if reason := fileio.unreadable(path):
        raise StoreError(reason)
    if fileio.as_path(path).is_dir() and kind_of(path) == "export":
        return _verify_export(path, asked, **o)
    return _verify_store(path, asked, **o)


def _verify_target(path: str, asked: _Asked, about: dict[str, Any], **o: Any) -> _Verified:
    from ..errors import UsageError
    from ..loading import run_compare
    from ..report import source_document
    from ..targets import open_target, options_of
    from ..text import count
    from ..verdict import places_of
    from .load import renames

    if not asked.against:
        raise UsageError(f"{path}: a target is verified --against a source: the store, export or file that was loaded")
    if asked.lost_ids:
        raise UsageError("--lost-ids goes with a store")
    options = {"rename": renames(about["rename"]), "verify": "full" if asked.sample == 1.0 else "sample"}
    known = options_of(path)
    options |= {name: about[name] for name in ("database", "token_file") if about[name] and (name in known or is_typed(name))}
    target = open_target(path, **options)
    source = open_given(asked.against, **o)
    rows, findings = run_compare(source, target, searches=asked.searches or 0, progress=progress(asked.quiet))
    how = "every row" if asked.sample == 1.0 else "counts and a sample"
    document = _document(path, "target", rows, findings, f"{count(rows, 'row')} compared with {asked.against}: {how}")
    document |= {"path": target.name, "against": asked.against}
    inspected = source_document(source)
    about_it = {"path": target.name, "kind": "target", "roots": [str(fileio.absolute(fileio.as_path(asked.against)))]}
    inspected |= {"store": {**inspected["store"], **about_it}, "next": []}
    return document, places_of(source), inspected


def _verify_export(path: str, asked: _Asked, **o: Any) -> _Verified:
    from ..checking import check_export
    from ..errors import MilvusOfflineError, UsageError
    from ..model import Severity
    from ..report import source_document, unread_document
    from ..sources.export import open_export
    from ..text import Places, count, verified_code
    from ..verdict import places_of

    if asked.sample != 1.0:
        raise UsageError("--sample goes with a store; an export is always read through")
    if asked.lost_ids:
        raise UsageError("--lost-ids goes with a store: an export does not know the rows that it lacks")
    if asked.searches and not asked.against:
        raise UsageError("--search goes with --against: it compares the answers of both")
    source = open_given(asked.against, **o) if asked.against else None
    result = check_export(fileio.as_path(path), against=source, progress=progress(asked.quiet), cluster=asked.cluster)
    answers = _compare_searches(path, source, asked.searches, result.findings) if source and asked.searches else 0
    summary = f"{count(result.rows, 'row')} in {count(result.files, 'file')} read" + (
        f", compared with {asked.against}" if asked.against else ""
    )
    summary += f", {count(answers, 'answer')} to searches compared" if answers else ""
    # what the source itself cannot give is missing in both, which is no difference
    lacking = [*(f for f in source.findings if f.severity is not Severity.INFO), *result.lacking] if source else []
    document = _document(path, "export", result.rows, [*result.findings, *lacking], summary)
    if lacking and verified_code(result.findings) != 4:  # 3 where the source is not whole, 4 where the two differ
        document["exit_code"] = 3
        document["verdict"]["text"] = f"No difference found, but the source itself is not whole: {summary}."
    document |= {"files": result.files, "against": asked.against}
    try:
        inspected = source_document(open_export(path))
    except MilvusOfflineError:  # the findings tell why
        inspected = unread_document("export", document["path"])
    return document, places_of(source) if source else Places([str(fileio.absolute(fileio.as_path(path)))]), inspected


def _compare_searches(path: str, source: Source, count: int, findings: Findings) -> int:
    """Searches the export and its source; returns how many queries were asked of both."""
    from ..errors import DamageError
    from ..search.compare import check_searches
    from ..sources.export import open_export

    try:
        return check_searches(open_export(path).collections, source.collections, count, findings)
    except DamageError as e:
        findings.error("file-unreadable", path, str(e))
        return 0


def _verify_store(path: str, asked: _Asked, **o: Any) -> _Verified:
    from ..checking import check_source
    from ..errors import UsageError
    from ..manifest import MANIFEST
    from ..report import inspect_document
    from ..sources import KINDS, kind_of
    from ..sources.milvus1 import StoreSource
    from ..text import count
    from ..verdict import places_of

    if asked.against or asked.searches:
        option = "--against" if asked.against else "--search"
        raise UsageError(f"{option} goes with an export; {path} is none (no manifest.json in it)")
    given = open_given(path, **o)
    if not isinstance(given, StoreSource):
        kind = KINDS[kind_of(path)].what
        if (Path(path) / MANIFEST).is_file():
            raise UsageError(
                f"{path}: {MANIFEST} is not that of an export of this tool, or it is damaged. Export again: without it there "
                "is nothing to check the files against"
            )
        raise UsageError(
            f"{path}: {kind} of other programs, which carry no checksums. Export them first, then run: milvus-offline "
            f"verify OUT --against {path}"
        )
    opened = given.store
    checked, own = check_source(given, sample=asked.sample, progress=progress(asked.quiet), cluster=asked.cluster)
    findings = [*opened.findings, *own]
    summary = (
        f"{count(checked.rows, 'row')} in {count(checked.segments, 'segment')}, "
        f"{count(checked.index_files, 'index file')} and {count(checked.records, 'log record')} read"
    )
    document = _document(path, "store", checked.rows, findings, summary)
    document |= {"segments": checked.segments, "index_files": checked.index_files, "wal_records": checked.records}
    document["checked"] = checked.to_json()
    if asked.lost_ids:
        document["lost_ids"] = write_lost_ids(asked.lost_ids, given, findings)
    return document, places_of(given), inspect_document(opened, source_words(o))


def _document(path: str, kind: str, rows: int, findings: Sequence[Finding], summary: str) -> dict[str, Any]:
    from ..text import verified_code
    from ..verdict import attention_sums, headed, verdict

    code = verified_code(findings)
    told = verdict(rows, findings, "were read")
    if code == 0:
        told["text"] = f"No difference found: {summary}."
    elif code == 4:
        told = headed(told, "DIFFERENCES FOUND")
    return {
        "format": "milvus-offline-verify",
        "version": 1,
        "path": str(fileio.absolute(fileio.as_path(path))),
        "kind": kind,
        "verdict": told,
        "summary": summary,
        "rows": rows,
        **attention_sums(findings),
        "findings": [f.to_json() for f in findings],
        "exit_code": code,
    }


def _show(screen: Any, document: dict[str, Any], places: Places, *, verbose: bool) -> None:
    from ..verdict import end, reach

    told = document["verdict"]
    screen.verdict(told["level"], told["text"])
    if document["summary"] not in told["text"]:
        screen.say(document["summary"])
    if "checked" in document:
        screen.say(reach(document["checked"]))
    if document["findings"]:
        screen.say()
        screen.findings(document["findings"], places, verbose=verbose)
        end(screen, told, document["exit_code"])
