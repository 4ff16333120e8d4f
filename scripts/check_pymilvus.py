#!/usr/bin/env python3
"""Loads a real store with each version of pymilvus that is claimed, and prints a table.

    python scripts/check_pymilvus.py [--server http://host:19530] [VERSION ...]

Each version gets an environment of its own. The target is a new Milvus Lite file, and the server where one is named; every row
is read back (`--verify full`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "fixtures" / "stores" / "flat_basic" / "store"
VERSIONS = ("2.5.5", "2.6.17", "")
"""The oldest that pyproject.toml allows, the last of 2.6, and the newest."""


def environment(folder: Path, version: str) -> Path:
    """An environment with this package and one version of pymilvus; its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = f"pymilvus=={version}" if version else "pymilvus"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-warn-script-location", str(ROOT), wanted, "milvus-lite"], check=True
    )
    return python


def load(python: Path, target: str, folder: Path) -> str:
    """What came of a load: the rows that were read back, or the reason."""
    command = [
        python,
        "-m",
        "milvus_offline",
        "load",
        STORE,
        target,
        "--verify",
        "full",
        "--mode",
        "overwrite",
        "--yes",
        "--json",
        "-q",
    ]
    done = subprocess.run(
        [*map(str, command), "--state", str(folder)],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=folder.parent,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1][:120]
    return f"{report['rows']} rows, exit {done.returncode}" if "rows" in report else str(report.get("error", report))[:120]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="also load into this Milvus server")
    parser.add_argument("versions", nargs="*", default=list(VERSIONS))
    arguments = parser.parse_args()
    print("| pymilvus | milvus-lite | Milvus Lite |" + (" server |" if arguments.server else ""))
    print("|---|---|---|" + ("---|" if arguments.server else ""))
    for version in arguments.versions:
        with tempfile.TemporaryDirectory() as folder:
            python = environment(Path(folder) / "venv", version)
            ask = "from importlib.metadata import version as v; print(v('pymilvus'), v('milvus-lite'))"
            found, lite = subprocess.check_output([python, "-c", ask], text=True).split()
            cells = [found, lite, load(python, f"{folder}/x.db", Path(folder) / "state")]
            if arguments.server:
                cells.append(load(python, arguments.server, Path(folder) / "state_server"))
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
