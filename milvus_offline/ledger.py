"""What is finished: the file that makes a run resumable.

One JSON line for the run's key (source, selection, target, options), then one per finished task, appended and synced after
the task's rows are safe. A line torn by a crash is ignored: its task runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from . import fileio
from .errors import UsageError

FORMAT = "milvus-offline-ledger"


class Ledger:
    """Finished tasks by id with their results. Use `Ledger.create` or `Ledger.resume`; one process at a time holds it."""

    durable = True
    """Whether `add` waits for the disk; not for a run that cannot be resumed."""

    def __init__(self, path: Path, file: BinaryIO, done: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.done = done
        self._file = file

    @classmethod
    def create(cls, path: Path, key: Mapping[str, Any], first: Callable[[], None] | None = None) -> Ledger:
        """Begins anew; `first` is called before an older ledger at `path` goes, when no other run can be there.

        Raises UsageError when another process holds it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_alone(path)
        try:
            if first is not None:
                first()
            return cls._begin(path, file, key)
        except BaseException:
            file.close()
            raise

    @classmethod
    def _begin(cls, path: Path, file: BinaryIO, key: Mapping[str, Any]) -> Ledger:
        file.truncate(0)
        file.write((json.dumps({"format": FORMAT, "version": 1, "key": dict(key)}) + "\n").encode())
        file.flush()
        return cls(path, file, {})

    @classmethod
    def resume(cls, path: Path, key: Mapping[str, Any]) -> Ledger:
        """Goes on where an earlier run stopped, or begins anew where there was none.

        Raises UsageError when that run had another source, selection or set of options, or is not over.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_alone(path)
        try:
            file.seek(0)
            lines = file.read().split(b"\n")
            whole = lines[:-1]  # what follows the last newline was torn
            try:
                head = json.loads(whole[0])
                ours = head["format"] == FORMAT and isinstance(head["key"], dict)
            except (IndexError, ValueError, KeyError, TypeError, RecursionError):
                ours = False
            if not ours:
                return cls._begin(path, file, key)
            require_same(path, head["key"], key)
            done = {}
            for line in whole[1:]:
                try:
                    entry = json.loads(line)
                    if isinstance(entry["id"], str) and isinstance(entry["result"], dict):
                        done[entry["id"]] = entry["result"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # damaged: its task runs again
            if lines[-1]:
                file.truncate(sum(len(line) + 1 for line in whole))
            return cls(path, file, done)
        except BaseException:
            file.close()
            raise

    def add(self, results: Mapping[str, dict[str, Any]]) -> None:
        """Records finished tasks by id; durable on return (see `durable`)."""
        lines = (json.dumps({"id": task_id, "result": result}) + "\n" for task_id, result in results.items())
        self._file.write("".join(lines).encode())
        self._file.flush()
        if self.durable:
            fileio.sync(self._file.fileno())
        self.done.update(results)

    def close(self) -> None:
        """Lets another process have it; it can be resumed."""
        self._file.close()

    def remove(self) -> None:
        """All is done."""
        if os.name == "nt":  # open files cannot be removed there
            self._file.close()
        self.path.unlink()
        self._file.close()
        if self.durable:
            fileio.sync_folder(self.path.parent)  # a finished run is not taken up again after a power failure


def _open_alone(path: Path) -> BinaryIO:
    """The file at `path`, there for this process alone until it is closed."""
    while True:
        file = path.open("a+b")
        try:
            if not fileio.lock(file):
                raise UsageError(f"{path.parent}: another run is writing here; wait for its end, or stop it")
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # the other run has just ended, and taken its ledger away
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def require_same(path: Path, earlier: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Raises UsageError when the earlier run, whose ledger is at `path`, was another one."""
    differing = sorted(k for k in {*earlier, *key} if earlier.get(k) != key.get(k))
    if differing:
        raise UsageError(
            f"{path}: cannot resume, the earlier run differs in: {', '.join(differing)}. "
            "Run it with the same source and options, or start anew (export --overwrite, load --mode overwrite)"
        )
