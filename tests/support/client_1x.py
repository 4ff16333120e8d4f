"""A real client of Milvus 1.x: pymilvus 1.1.2 in an environment of its own, driven over pipes.

This file is both sides: tests use `environment` and `Client`; run by the other Python it connects to an address and does
what the lines of its standard input say. pymilvus 1.1.2 asks for a grpcio that no longer installs; with a current one it works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGES = (("--no-deps", "pymilvus==1.1.2"), ("grpcio", "protobuf<3.21", "ujson", "requests", "setuptools"))


class Unavailable(Exception):
    """The packages cannot be had here."""


def environment(folder: Path) -> Path:
    """The Python of an environment with pymilvus 1.1.2; made once for all test workers. Raises Unavailable."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    python, done = folder / "env" / "bin" / "python", folder / "done"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            done.write_text(_make(folder / "env", python))
        problem = done.read_text()
    if problem:
        raise Unavailable(problem)
    return python


def _make(folder: Path, python: Path) -> str:
    """What is wrong; nothing when all went well."""
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    for words in PACKAGES:
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *words]
        made = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if made.returncode:
            return f"pip install {' '.join(words)}: {made.stderr[-500:]}"
    tried = subprocess.run([str(python), "-c", "import milvus"], capture_output=True, text=True, timeout=120)
    return tried.stderr[-500:] if tried.returncode else ""


class Client:
    """Calls methods of `milvus.Milvus` by name: `client.search("c", 5, vectors)` is what pymilvus returns, as JSON values.

    A Status is {"code", "message"}, a result of a search {"ids", "distances"}, other objects are their attributes.
    """

    def __init__(self, python: Path, address: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [str(python), __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean
        )

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps([name, args, kwargs]) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["value"]

        return call

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=120)


# The program ---------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "id_array"):
        return {"ids": value.id_array, "distances": value.distance_array}
    if hasattr(value, "code") and hasattr(value, "message"):
        return {"code": _plain(value.code), "message": value.message}
    if hasattr(value, "name") and hasattr(value, "value"):  # an enum
        return value.name if isinstance(value.value, tuple) else value.value
    if value is None or isinstance(value, (int, float, str)):
        return value
    return {k.lstrip("_"): _plain(v) for k, v in vars(value).items()}


def _given(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return bytes.fromhex(value["bytes"])
    return [_given(v) for v in value] if isinstance(value, list) else value


def main() -> None:
    import logging

    from milvus import Milvus

    logging.disable(logging.CRITICAL)
    host, _, port = sys.argv[1].rpartition(":")
    client = Milvus(host=host, port=port)
    for line in sys.stdin:
        name, args, kwargs = json.loads(line)
        try:
            answer = {"value": _plain(getattr(client, name)(*map(_given, args), **kwargs))}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
