"""`milvus-offline verify`."""

from __future__ import annotations

from typing import Any

import click

from .. import fileio
from ..findings import Findings
from ..model import Severity
from .common import (
    bucket_costs,
    echo_costs,
    file_options,
    open_given,
    output_options,
    print_json,
    progress,
    set_up_log,
    store_options,
)


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


@click.command("verify")
@click.argument("path", metavar="STORE|EXPORT")
@click.option("--against", metavar="STORE", help="With an export: compare every id and vector with this store or other source.")
@click.option("--sample", type=_Share(), default=1.0, metavar="SHARE", help="Read only this share of the segments, e.g. 5%.")
@file_options
@store_options
@output_options
def command(path: str, against: str | None, sample: float, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """Read everything, believe nothing.

    For a STORE: lengths, ids against bloom filters, vectors against index files, catalog against disk, the log's records.
    For an EXPORT (a folder with manifest.json): checksums and counts, and with --against every row.
    """
    from ..errors import UsageError
    from ..report import count, finding_lines
    from ..sources import kind_of

    set_up_log(verbose)
    shown = progress(quiet or as_json)
    given = fileio.as_path(path)
    document: dict[str, Any] = {"format": "milvus-offline-verify", "version": 1, "path": str(fileio.absolute(given))}
    if given.is_dir() and kind_of(path) == "export":
        from ..verify import check_export

        if sample != 1.0:
            raise UsageError("--sample goes with a store; an export is always read through")
        source = open_given(against, **o) if against else None
        result = check_export(given, against=source, progress=shown)
        findings, own = result.findings, result.findings
        summary = f"{count(result.rows, 'row')} in {count(result.files, 'file')} read" + (
            f", compared with {against}" if against else ""
        )
        document |= {"kind": "export", "rows": result.rows, "files": result.files, "against": against}
    else:
        from ..milvus1.verify import check_store
        from ..sources.milvus1 import StoreSource

        if against:
            raise UsageError(f"--against goes with an export; {path} is none (no manifest.json in it)")
        found = open_given(path, **o)
        if not isinstance(found, StoreSource):
            raise UsageError(f"{path}: expected a store or an export; of this, an export can be compared: verify OUT --against")
        opened = found.store
        shown.start(opened.rows, sum(c.bytes for c in opened.collections), 0, 0)
        checked, own = check_store(opened, sample=sample, advance=shown.advance)
        shown.close()
        findings = Findings([*opened.findings, *own])
        summary = (
            f"{count(checked.rows, 'row')} in {count(checked.segments, 'segment')}, "
            f"{count(checked.index_files, 'index file')} and {count(checked.records, 'log record')} read"
        )
        document |= {
            "kind": "store",
            "rows": checked.rows,
            "segments": checked.segments,
            "index_files": checked.index_files,
            "wal_records": checked.records,
        }
    code = _exit_code(findings)
    document |= bucket_costs()
    document |= {"findings": [f.to_json() for f in findings], "exit_code": code}
    if as_json:
        print_json(document)
    elif not quiet:
        click.echo(summary)
        echo_costs(document)
        click.echo("\n".join(finding_lines(document["findings"])) if findings else "No difference found.")
    return code


def _exit_code(findings: Findings) -> int:
    """4 when something is not as it must be; 3 when state was ambiguous."""
    severities = {f.severity for f in findings}
    return 4 if Severity.ERROR in severities else 3 if Severity.WARNING in severities else 0
