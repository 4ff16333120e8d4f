"""What is finished: the file that makes a run resumable.

One JSON line for the run's key (source, selection, target, options), then one per finished task, appended and synced after
the task's rows are safe. A line torn by a crash is ignored: its task runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UsageError

FORMAT = "milvus-offline-ledger"


class Ledger:
    """Finished tasks by id with their results. Use `Ledger.create` or `Ledger.resume`; not safe for several processes."""

    def __init__(self, path: Path, done: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.done = done
        self._file = path.open("a", encoding="utf-8")

    @classmethod
    def create(cls, path: Path, key: Mapping[str, Any]) -> Ledger:
        """Begins anew; an older ledger at `path` is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, "version": 1, "key": dict(key)}) + "\n", encoding="utf-8")
        return cls(path, {})

    @classmethod
    def resume(cls, path: Path, key: Mapping[str, Any]) -> Ledger:
        """Goes on where an earlier run stopped, or begins anew where there was none.

        Raises UsageError when that run had another source, selection or set of options.
        """
        if not path.exists():
            return cls.create(path, key)
        lines = path.read_bytes().split(b"\n")
        whole = lines[:-1]  # what follows the last newline was torn
        try:
            head = json.loads(whole[0])
            ours = head["format"] == FORMAT and isinstance(head["key"], dict)
        except (IndexError, ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            return cls.create(path, key)
        differing = sorted(k for k in {*head["key"], *key} if head["key"].get(k) != key.get(k))
        if differing:
            raise UsageError(
                f"{path}: cannot resume, the earlier run differs in: {', '.join(differing)}. "
                "Run it with the same source and options, or start anew with --overwrite"
            )
        done = {}
        for line in whole[1:]:
            try:
                entry = json.loads(line)
                done[entry["id"]] = entry["result"]
            except (ValueError, KeyError, TypeError):
                continue
        if lines[-1]:
            with path.open("r+b") as f:
                f.truncate(sum(len(line) + 1 for line in whole))
        return cls(path, done)

    def add(self, results: Mapping[str, dict[str, Any]]) -> None:
        """Records finished tasks by id; durable on return."""
        self._file.writelines(json.dumps({"id": task_id, "result": result}) + "\n" for task_id, result in results.items())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(results)

    def close(self) -> None:
        self._file.close()
