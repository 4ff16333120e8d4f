"""Runs what the documents show: their console blocks, in a sandbox, and what came out of them.

A block is fenced as `console`; a line that begins with `$ ` is a command, what follows is its output. A line
`<!-- set up: COMMAND -->` before a block runs unseen. The documents speak of /mnt/… and /data/…; a run puts folders of
its own under names of the same length in their place, so that every line breaks where the reader sees it break.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 80
_PART = re.compile(r"<!-- set up: (?P<setup>.*?) -->|^```console\n(?P<body>.*?)^```$", re.S | re.M)
_VOLATILE = (
    (re.compile(r"\b[0-9][0-9,.]* [KMGT]?i?B/s\b|\b[0-9][0-9,.]* rows/s\b"), "RATE"),
    (re.compile(r"\b[0-9]+(?:\.[0-9]+)? s\b"), "SECONDS"),
    (re.compile(r"\b[0-9.,]+ [KMGT]?i?B free\b|\bfree:? [0-9.,]+ [KMGT]?i?B\b"), "FREE"),
    (re.compile(r"\b20[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9:.]+(?:Z|[+-][0-9:]+)?"), "TIME"),
)


@dataclass(frozen=True)
class Shown:
    """A command as a document shows it, with the output that stands under it."""

    command: str
    output: str


def commands(body: str) -> list[Shown]:
    """The commands of one block."""
    shown: list[Shown] = []
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        lines = part.split("\n")
        n = 1
        while lines[n - 1].endswith("\\"):
            n += 1
        shown.append(Shown("\n".join(lines[:n]), "\n".join(lines[n:]).rstrip("\n")))
    return shown


def comparable(text: str) -> str:
    """Output without what differs from run to run: seconds, rates, free space, dates."""
    for pattern, name in _VOLATILE:
        text = pattern.sub(name, text)
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


class Sandbox:
    """Stand-ins for /mnt and /data, with `fixtures` at hand; commands of one document run in it one after the other."""

    def __init__(self) -> None:
        key = uuid.uuid4().hex
        self._home = Path("/tmp") / f"milvus-offline-{key[:12]}"
        self._home.mkdir()
        self.names = {"/mnt/milvus": f"/tmp/{key[:6]}", "/data/out": f"/tmp/{key[6:10]}", "/data/new": f"/tmp/{key[10:14]}"}

    def real(self, text: str) -> str:
        for shown, name in self.names.items():
            text = text.replace(shown, name)
        return text

    def shown(self, text: str) -> str:
        for shown, name in self.names.items():
            text = text.replace(name, shown)
        return text

    def run(self, command: str) -> str:
        """Runs a command of a document with a shell; its output, both streams, as the document would show it."""
        bin_ = Path(sys.executable).parent
        stub = self._home / "bin"
        if not stub.exists():
            stub.mkdir()
            (stub / "milvus-offline").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m milvus_offline "$@"\n')
            (stub / "milvus-offline").chmod(0o755)
        environment = {
            **os.environ,
            "PATH": f"{stub}:{bin_}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": str(COLUMNS),
            "FIXTURES": str(ROOT / "fixtures"),
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["bash", "-c", self.real(command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=300,
            cwd=self._home,
            env=environment,
            check=False,
        )
        return self.shown(done.stdout).rstrip("\n")

    def close(self) -> None:
        for name in (*self.names.values(), self._home):
            shutil.rmtree(name, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rewritten(text: str) -> str:
    """A document with the output of all its commands as it is today; where only seconds and the like differ, as it was."""
    with Sandbox() as sandbox:

        def one(part: re.Match[str]) -> str:
            if part["setup"]:
                if said := sandbox.run(f"set -e; {part['setup']}"):
                    raise AssertionError(f"{part['setup']}: {said}")
                return part[0]
            lines = []
            for shown in commands(part["body"]):
                output = sandbox.run(shown.command)
                same = comparable(output) == comparable(shown.output)
                lines += [f"$ {shown.command}", shown.output if same else output]
            return "```console\n" + "\n".join(line for line in lines if line) + "\n```"

        return _PART.sub(one, text)
