#!/usr/bin/env python3
"""Writes a man page for each command into a folder (click-man).

python scripts/make_man.py build/man && man -l build/man/milvus-offline-export.1
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from milvus_offline._version import __version__
from milvus_offline.cli import COMMANDS, cli

_EXIT_STATUS, _EXAMPLES = ".SH EXIT STATUS", ".SH EXAMPLES"


def _verbatim(line: str) -> str:
    return line.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")


def _ending(command: click.Command) -> str:
    """What click-man leaves out: examples and exit codes."""
    lines = []
    if examples := getattr(command, "examples", ()):
        lines += [_EXAMPLES, ".nf", *map(_verbatim, examples), ".fi"]
    codes = (cli.epilog or "").removeprefix("Exit codes: ")
    return "\n".join([*lines, _EXIT_STATUS, codes, ""])


def main(folder: str = "build/man") -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    group = copy.copy(cli)
    group.short_help = "reads the data of stopped or crashed Milvus 1.x servers straight from disk"
    group.commands = {}  # loaded one by one otherwise
    context = click.Context(cli)
    for name in cli.list_commands(context):
        if found := cli.get_command(context, name):
            group.commands[name] = command = copy.copy(found)
            command.short_help = COMMANDS[name].rstrip(".")  # click-man would break it off after 45 letters
    write_man_pages("milvus-offline", group, version=__version__, target_dir=folder)
    for page, command in {"": group, **{f"-{name}": c for name, c in group.commands.items()}}.items():
        with (Path(folder) / f"milvus-offline{page}.1").open("a", encoding="utf-8") as out:
            out.write(_ending(command))


if __name__ == "__main__":
    main(*sys.argv[1:2])
