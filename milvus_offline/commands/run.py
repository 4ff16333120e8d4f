"""`milvus-offline run`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..fileio import explained, printable, write_text
from ..model import Finding, Source
from .common import output_options, print_json, progress, set_up_log

if TYPE_CHECKING:
    from ..milvusdm import DmTask


@click.command("run")
@click.argument("task", metavar="TASK.yaml", required=False)
@click.option("--yaml", "yaml_file", metavar="FILE", help="The task file, as MilvusDM's command line had it.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what the file would do; no server is asked, nothing is written.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--milvus-version", metavar="VERSION", help="Another version than the file's: 1.x or 2.x, the target server's.")
@click.option("--target", metavar="TARGET", help="Another target than the file's dest_host and dest_port; see load.")
@click.option(
    "--names",
    type=click.Choice(["error", "sanitize"]),
    default="error",
    show_default=True,
    help="Names that a server of 2.x refuses: stop, or write other characters as _xHH_.",
)
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Tasks at the same time. [default: cores, at most 4]")
@output_options
def command(task: str | None, yaml_file: str | None, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """Do what a task file of MilvusDM says: M2H, M2M, H2M or F2M of 0.1, 1.0 or 2.0, unchanged.

    Rows go to a server of Milvus 0.10-1.x when the file's milvus_version is below 2, else to one of 2.x or 3.x.
    """
    from ..milvusdm import open_task, parse_version, read_task
    from ..report import finding_lines, needs_attention

    set_up_log(verbose)
    if bool(task) == bool(yaml_file):
        raise UsageError("name one task file: milvus-offline run TASK.yaml")
    read = read_task(task or yaml_file or "")
    if o["milvus_version"]:
        read = replace(read, version=parse_version(o["milvus_version"]), version_text=o["milvus_version"])
    source = open_task(read)
    target = o["target"] or read.target
    if o["dry_run"]:
        document = _dry_run(read, source, target)
        code = 3 if needs_attention(source.findings) else 0
    elif read.kind == "M2H":
        if o["target"]:
            raise UsageError("--target: an M2H task writes files into its data_dir")
        document, code = _export(read, source, o, quiet or as_json)
    else:
        document, code = _load(read, source, target, o, quiet or as_json)
    document = {"format": "milvus-offline-run", "version": 1, "task": read.kind, **document, "exit_code": code}
    if as_json:
        print_json(document)
    elif not quiet:
        click.echo("\n".join(printable(line) for line in document["lines"]))
        if document["findings"]:
            click.echo("\n".join(finding_lines(document["findings"])))
    elif code:
        click.echo("finished with findings; --json names them", err=True)
    return code


def _dry_run(task: DmTask, source: Source, target: str) -> dict[str, Any]:
    from ..milvusdm import dm_files
    from ..report import amount, count

    findings = [f.to_json() for f in source.findings]
    rows = sum(c.rows for c in source.collections)
    lines = [f"{task.kind} would write {amount(rows, len(source.collections))}"]
    if task.kind == "M2H":
        lines[0] += f" into {task.data_dir}{os.sep}<a new folder>"
        lines += [f"  {file}: {count(p.rows, 'row')}" for file, p, _ in dm_files(source.collections)]
    else:
        lines[0] += f" into {target}, mode {task.mode}"
        for c in source.collections:
            s = c.schema
            lines.append(
                f"  {s.name}: {count(c.rows, 'row')}, {s.vector_type.value} {s.dimension}, {s.metric_type or 'no metric'}"
            )
            lines += [f"    {p.name}: {count(p.rows, 'row')}" for p in c.partitions]
    place = None if task.kind == "M2H" else target
    return {"dry_run": True, "rows": rows, "target": place, "lines": lines, "findings": findings}


def _export(task: DmTask, source: Source, o: dict[str, Any], silent: bool) -> tuple[dict[str, Any], int]:
    from ..export import run_export
    from ..milvusdm import DmExport, export_folder, write_yamls
    from ..report import amount, needs_attention, size

    assert task.data_dir is not None
    out = Path(os.path.abspath(export_folder(task.data_dir, resume=o["resume"])))
    jobs = o["jobs"] or min(4, os.cpu_count() or 1)
    report = run_export(source, DmExport(out), jobs=jobs, resume=o["resume"], progress=progress(silent))
    yamls = write_yamls(out, source, task.version_text)
    lines = [
        f"{amount(report.rows, report.collections)} ({size(report.bytes)}) in {report.seconds:.1f} s: {out}",
        f"H2M files to load them: {out / 'yamls'}",
    ]
    document = {
        "dry_run": False,
        "rows": report.rows,
        "out": str(out),
        "yamls": [str(p) for p in yamls],
        "lines": lines,
        "findings": [f.to_json() for f in report.findings],
    }
    return document, 3 if needs_attention(report.findings) else 0


def _load(task: DmTask, source: Source, target: str, o: dict[str, Any], silent: bool) -> tuple[dict[str, Any], int]:
    from ..targets import is_milvus1

    metric = task.into.metric if task.into else None
    if is_milvus1(target):
        from ..targets.milvus1.load import SERVER, LoadOptions1, load_milvus1

        mode = task.mode if target.startswith(SERVER) else "error"  # a new store has nothing to skip or to overwrite
        options = LoadOptions1(mode=mode, metric=metric, resume=o["resume"], jobs=o["jobs"], per_partition=True)
        report = load_milvus1(source, target, options, progress(silent))
        rows, findings, lines, code = report.rows, report.findings, report.lines(with_findings=False), report.exit_code
    else:
        rows, findings, lines, code = _load_2(task, source, target, o, silent)
    document = {"dry_run": False, "rows": rows, "target": target, "lines": lines, "findings": [f.to_json() for f in findings]}
    return document, code


def _load_2(
    task: DmTask, source: Source, target: str, o: dict[str, Any], silent: bool
) -> tuple[int, tuple[Finding, ...], list[str], int]:
    """Rows, findings, lines and exit code of a load into Milvus 2.x."""
    from ..milvusdm import make_room, only
    from ..report import amount
    from ..targets.milvus.client import Client
    from ..targets.milvus.connection import Connection
    from ..targets.milvus.load import RunOptions, default_state, run_load
    from ..targets.milvus.plan import LoadOptions
    from .load import _token

    connection = Connection(uri=target, token=_token(None, False))
    state = default_state(source, connection, [c.schema.name for c in source.collections]).absolute()
    decided = state / "partitions.json"
    mode = task.mode
    if mode != "error":
        if o["resume"] and decided.exists():
            chosen = json.loads(decided.read_text(encoding="utf-8"))
        else:
            with Client(connection) as client:
                chosen = make_room(source, client, mode, o["names"])
            with explained("keep the state of the load", state):
                state.mkdir(parents=True, exist_ok=True)
                write_text(decided, json.dumps(chosen))
        if not chosen:
            return 0, tuple(source.findings), [f"All partitions are there already: {connection.name}"], 0
        source, mode = only(source, chosen), "append"
    # MilvusDM 2.0 names the fields so
    options = LoadOptions(
        mode=mode, names=o["names"], metric=task.into.metric if task.into else None, id_field="id", vector_field="embedding"
    )
    run = RunOptions(state=state, resume=o["resume"])
    report = run_load(source, connection, options, run, progress=progress(silent))
    lines = [f"{amount(report.rows, len(source.collections))} in {report.seconds:.1f} s: {connection.name}"]
    return report.rows, tuple(report.findings), lines, report.exit_code
