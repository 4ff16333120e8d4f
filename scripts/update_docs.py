#!/usr/bin/env python3
"""Writes the tables of options in docs/commands.md from the commands themselves; a test fails when they are stale.

python scripts/update_docs.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from milvus_offline.cli import cli
from milvus_offline.commands import options
from milvus_offline.findings import SECTIONS
from milvus_offline.milvus1.salvage import KINDS

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENTS = [DOCS / "commands.md", DOCS / "findings.md"]
SHARED = {
    "store": options.store_options,
    "selection": options.selection_options,
    "file": options.file_options,
    "faiss": options.faiss_options,
    "output": options.output_options,
}
"""Groups that hold another one come before it."""
_BLOCK = re.compile(r"(<!-- (?:options|written): (\S+) -->\n).*?(<!-- end -->)", re.S)


def shared_options(decorator: Callable[[Any], Any]) -> list[click.Option]:
    """The options of a group that several commands have."""

    def probe() -> None: ...

    decorator(probe)
    return [p for p in reversed(getattr(probe, "__click_params__", [])) if isinstance(p, click.Option)]


def options_of(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option)]


def table(options: Iterable[click.Option]) -> str:
    lines = ["| option | meaning |", "|---|---|"]
    for o in options:
        choices = "\\|".join(o.type.choices) if isinstance(o.type, click.Choice) else None
        value = "" if o.is_flag or o.count else " " + (choices or (o.metavar or "N").replace("|", "\\|"))
        names = ", ".join(f"`{n}`" for n in (*o.opts, *o.secondary_opts))
        meaning = (o.help or "").replace("|", "\\|").strip()
        if o.show_default and not o.is_flag and o.default not in (None, ""):
            meaning = f"{meaning} Default: {o.default}.".strip()
        lines.append(f"| {names}{value} | {meaning} |")
    return "\n".join(lines) + "\n"


def findings() -> str:
    """The table of all findings, section by section."""
    lines = []
    for section in SECTIONS:
        lines += [f"## {section.title}", "", "| code | severity | meaning, and what helps |", "|---|---|---|"]
        for code in section.codes:
            severities = ", ".join(s.value for s in code.severities)
            lines.append(f"| `{code.name}` | {severities} | {' '.join(filter(None, (code.meaning, code.help)))} |")
        lines.append("")
    return "\n".join(lines)


def block(name: str) -> str:
    """What stands between the marks of one block: a group of shared options, or a command's own ones."""
    if name == "salvage-kinds":
        return "\n".join(
            [
                "| KIND | rows |",
                "|---|---|",
                *(f"| `{k}` | {text} |" for k, text in KINDS.items()),
                "| `all` | each of them |",
                "",
            ]
        )
    if name == "findings":
        return findings()
    if name in SHARED:
        return table(shared_options(SHARED[name]))
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        return ""
    own, groups = options_of(command), []
    for group, decorator in SHARED.items():
        names = {o.name for o in shared_options(decorator)}
        if names <= {o.name for o in own}:
            own = [o for o in own if o.name not in names]
            groups.append(f"[{group}](#{group}-options)")
    text = table(own) if own else ""
    return text + (f"\nand the options for {', '.join(groups)}.\n" if groups else "")


def updated(text: str) -> str:
    """The document with all its blocks written anew."""
    return _BLOCK.sub(lambda m: m[1] + block(m[2]) + m[3], text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text(encoding="utf-8")), encoding="utf-8")
    if "--run" in sys.argv[1:]:  # what the documents' commands print
        sys.path.insert(0, str(DOCS.parent / "tests"))
        from support.consoles import rewritten

        for document in (*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")):
            text = document.read_text(encoding="utf-8")
            if "```console\n" in text and (now := rewritten(text)) != text:
                document.write_text(now, encoding="utf-8")
                print(f"{document.relative_to(DOCS.parent)}: written anew")
