"""`milvus-offline serve` in a process of its own, and raw calls of its service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any

import grpc

from milvus_offline.targets.milvus1.proto import METHODS, SERVICE, messages


class Served:
    """A running service; `address`, `health` and `document` are what it said at its start."""

    def __init__(self, *words: object, listen: str = "127.0.0.1:0", **options: Any) -> None:
        command = [sys.executable, "-m", "milvus_offline", "serve", *map(str, words), "--listen", listen, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        assert self.process.stdout
        lines = ""
        while (line := self.process.stdout.readline()) and not lines.endswith("}\n"):
            lines += line
            if line == "}\n":
                break
        if not lines.endswith("}\n"):
            raise AssertionError(f"serve ended: {lines}{self.process.stderr.read() if self.process.stderr else ''}")
        self.document = json.loads(lines)
        self.address, self.health = self.document["address"], self.document["health"]

    @property
    def memory(self) -> int:
        """Resident bytes that are no file's."""
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) << 10 for line in f if line.startswith("RssAnon"))

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class Raw:
    """Calls with whatever fields or bytes; use as a context manager."""

    def __init__(self, address: str, credentials: Any = None, metadata: Any = ()) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        secure = credentials is not None
        self._channel = (
            grpc.secure_channel(address, credentials, options) if secure else grpc.insecure_channel(address, options)
        )
        self._metadata = metadata

    def __call__(self, method: str, request: Any = None, **fields: Any) -> Any:
        """The reply; `request` are bytes, or None for a message of `fields`. Raises grpc.RpcError."""
        asked, answered = METHODS[method]
        data = messages()[asked](**fields).SerializeToString() if request is None else request
        call = self._channel.unary_unary(SERVICE + method, None, messages()[answered].FromString)
        return call(data, timeout=120, metadata=self._metadata)

    def status(self, method: str, request: Any = None, **fields: Any) -> tuple[int, str]:
        """Error code and reason."""
        reply = self(method, request, **fields)
        status = reply if METHODS[method][1] == "Status" else reply.status
        return status.error_code, status.reason

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()
