#!/usr/bin/env python3
"""Writes a man page for each command into a folder (click-man).

python scripts/make_man.py build/man && man -l build/man/milvus-offline-export.1
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click_man.core import write_man_pages

from milvus_offline._version import __version__
from milvus_offline.cli import cli


def main(folder: str = "build/man") -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    context = click.Context(cli)
    cli.commands = {
        n: c for n in cli.list_commands(context) if (c := cli.get_command(context, n))
    }  # loaded one by one otherwise
    write_man_pages("milvus-offline", cli, version=__version__, target_dir=folder)


if __name__ == "__main__":
    main(*sys.argv[1:2])
