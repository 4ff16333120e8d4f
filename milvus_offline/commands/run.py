"""`milvus-offline run`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..machine import default_jobs
from ..names import printable
from .command import Command, SourcePath, choice
from .common import is_typed, print_json, progress
from .log import set_up_log
from .options import output_options

if TYPE_CHECKING:
    from ..milvusdm import DmTask
    from ..model import Source


@click.command(
    "run",
    cls=Command,
    examples=["milvus-offline run M2H.yaml", "milvus-offline run M2M.yaml --dry-run", "milvus-offline run --yaml H2M.yaml"],
)
@click.argument("task", metavar="TASK.yaml", required=False, type=SourcePath())
@click.option(
    "--yaml", "yaml_file", type=click.Path(), metavar="FILE", help="The task file, as MilvusDM's command line had it."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what the file would do; no server is asked, nothing is written.")
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted.")
@click.option("--milvus-version", metavar="VERSION", help="Another version than the file's: 1.x or 2.x, the target server's.")
@click.option("--target", metavar="TARGET", help="Another target than the file's dest_host and dest_port; see load.")
@choice(
    "--names", words=["error", "sanitize"], help="Names that a server of 2.x refuses: stop, or write other characters as _xHH_."
)
@click.option("--embeddings", metavar="NAME", help="H2M: the dataset of vectors, where the files have other names.")
@click.option("--ids-dataset", metavar="NAME", help="H2M: the dataset of ids.")
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="Tasks at the same time. [default: cores, at most 4]")
@output_options
def command(task: str | None, yaml_file: str | None, as_json: bool, quiet: bool, verbose: int, **o: Any) -> int:
    """Do what a task file of MilvusDM says: M2H, M2M, H2M or F2M of 0.1, 1.0 or 2.0, unchanged.

    Rows go to a server of Milvus 0.10-1.x when the file's milvus_version is below 2, else to one of 2.x or 3.x.
    """
    from ..findings import Findings
    from ..milvusdm import open_task, parse_version, read_task
    from ..text import needs_attention

    set_up_log(verbose)
    if bool(task) == bool(yaml_file):
        raise UsageError("name one task file: milvus-offline run TASK.yaml")
    read = read_task(task or yaml_file or "")
    if o["milvus_version"]:
        read = replace(read, version=parse_version(o["milvus_version"]), version_text=o["milvus_version"])
    target = o["target"] or ("" if read.kind == "M2H" else read.target)
    source = open_task(read, o["embeddings"], o["ids_dataset"])
    if o["dry_run"]:
        document = _dry_run(read, source, target)
        code = 3 if needs_attention(source.findings) else 0
    elif read.kind == "M2H":
        if o["target"]:
            raise UsageError("--target: an M2H task writes files into its data_dir")
        document, code = _export(read, source, o, quiet or as_json)
    else:
        document, code = _load(read, source, target, o, quiet or as_json)
    notes = Findings()
    for note in read.notes:
        notes.info("task-note", task or yaml_file or "", note)
    document["findings"] = [*(f.to_json() for f in notes), *document["findings"]]
    told, sums = _told(document, read.kind, code)
    document = {"format": "milvus-offline-run", "version": 1, "task": read.kind, **document, **sums, "exit_code": code}
    document["verdict"] = told
    if as_json:
        print_json(document)
    elif not quiet:
        _show(document, source, verbose > 0)
    elif code:
        click.echo("finished with findings; --json names them", err=True)
    return code


def _told(document: dict[str, Any], kind: str, code: int) -> tuple[dict[str, str], dict[str, int]]:
    """The verdict, and how many rows are lost, restored or in doubt."""
    from ..model import Finding, Severity
    from ..verdict import attention_sums, headed, verdict

    findings = [Finding(Severity(f["severity"]), f["code"], f["where"], f["message"], f["rows"]) for f in document["findings"]]
    done = "exported" if kind == "M2H" else "loaded"
    form = "would be" if document["dry_run"] else "was" if document["rows"] == 1 else "were"
    told = verdict(document["rows"], findings, f"{form} {done}")
    if code == 4:
        told = headed(told, "VERIFICATION FOUND DIFFERENCES")
    return told, attention_sums(findings)


def _show(document: dict[str, Any], source: Source, verbose: bool) -> None:
    from ..text import Screen
    from ..verdict import end, places_of
    from .load import what_now

    screen, told = Screen(), document["verdict"]
    screen.verdict(told["level"], told["text"])
    for line in document["lines"]:
        if "first_use" in document:
            screen.say(printable(line), hang=2)
        else:  # a path stays whole
            screen.verbatim(printable(line))
    if document["findings"]:
        screen.say()
        screen.findings(document["findings"], places_of(source), verbose=verbose)
    what_now(screen, str(document.get("target")), document.get("first_use", ()))
    end(screen, told, document["exit_code"])


def _dry_run(task: DmTask, source: Source, target: str) -> dict[str, Any]:
    from ..milvusdm import dm_files
    from ..text import amount, count

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
    from ..exporting import run_export
    from ..milvusdm import dm_layout, export_folder, write_yamls
    from ..targets.hdf5 import Hdf5Export
    from ..text import amount, needs_attention, size

    assert task.data_dir is not None
    out = Path(os.path.abspath(export_folder(task.data_dir, resume=o["resume"])))
    jobs = o["jobs"] or default_jobs()
    report = run_export(source, Hdf5Export(out, layout=dm_layout), jobs=jobs, resume=o["resume"], progress=progress(silent))
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
    from ..loading import run_load
    from ..targets import open_target, options_of
    from .load import report_lines

    known = options_of(target)
    options: dict[str, Any] = {name: o[name] for name in ("names", "jobs") if is_typed(name)}
    if task.into and task.into.metric:
        options["metric"] = task.into.metric
    if "per_partition" in known:  # a new store has nothing to skip or to overwrite
        options |= {"mode": task.mode, "per_partition": True}
    if "field_names" in known:
        options["field_names"] = ("id", "embedding")  # MilvusDM 2.0 names them so
    made = open_target(target, **options)
    report = run_load(source, made, resume=o["resume"], progress=progress(silent))
    lines = report_lines(report, with_findings=False)
    findings = [f.to_json() for f in report.findings]
    document = {
        "dry_run": False,
        "rows": report.rows,
        "target": target,
        "lines": lines,
        "first_use": list(report.first_use),
        "findings": findings,
    }
    return document, report.exit_code
