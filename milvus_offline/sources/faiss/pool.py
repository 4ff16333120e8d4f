"""Faiss in a process of its own, seen from this side: a piece whose rows it gives (`worker` is the other side).

Tasks take slices of a piece one after the other, and to open an index can take Faiss longer than to read a slice of it. So a
process that has answered waits a while for the next slice of the same piece.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import DamageError
from ...faissfile import IdMap
from ...model import BATCH_BYTES, Batch, VectorType
from .worker import DONE, FAILED, FRAME, QUESTION

_IDLE_SECONDS = 20.0
_MOST_IDLE = 4
_MAX_MESSAGE = 4096

_START_CHILD = (
    f"import sys; sys.path[:] = sys.argv[1].split('\\n'); from {__package__}.worker import main; sys.exit(main(sys.argv[2]))"
)


def _module_paths() -> list[str]:
    """Where the child finds modules: as here, but never in the current folder, which may hold a `faiss.py` of somebody."""
    root, here = str(Path(__file__).resolve().parents[3]), os.getcwd()
    return [root, *(p for p in sys.path if p and os.path.abspath(p) not in (here, root))]


@dataclass(frozen=True)
class Child:
    """How Faiss is started in a process of its own. `timeout` is in seconds without any answer, `memory` in bytes.

    `opened` tells apart what was opened when: a file can be another one by then.
    """

    path: str
    binary: bool
    follow: bool
    memory: int
    timeout: float
    opened: str = field(default_factory=lambda: os.urandom(8).hex())

    def start(self, action: str) -> subprocess.Popen[bytes]:
        request = {"path": self.path, "binary": self.binary, "follow": self.follow, "memory": self.memory, "action": action}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _START_CHILD, "\n".join(_module_paths()), json.dumps(request)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)

    def info(self) -> dict[str, Any]:
        """What Faiss says about the index. Raises DamageError when it refuses or does not answer."""
        process = self.start("info")
        try:
            answer, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            raise DamageError(self.path, f"Faiss did not open it within {self.timeout:g} seconds") from None
        finally:
            process.kill()
            process.wait()
        found: dict[str, Any] = json.loads(answer) if answer else {"error": _death(process)}
        if "error" in found:
            elsewhere = "could not open" in found["error"] and not self.follow
            hint = "; inverted lists outside of the index's folder are followed only with --follow-ondisk" if elsewhere else ""
            raise DamageError(self.path, f"Faiss cannot read it: {found['error']}{hint}")
        return found


class _ReplyReader:
    """A process that has the index open and answers one question after the other."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.process = child.start("rows")

    def ask(self, start: int, rows: int, row: np.dtype[Any], width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """At most `rows` rows from the `start`-th on; none at the end. The process is killed when it says nothing for too long.

        Raises DamageError.
        """
        watch = threading.Timer(self.child.timeout, self.process.kill)
        watch.daemon = True
        watch.start()
        try:
            question, path = cast(IO[bytes], self.process.stdin), self.child.path
            with contextlib.suppress(BrokenPipeError):  # it has said why before it ended
                question.write(QUESTION.pack(start, rows))
            n = self._number()
            if n == FAILED:
                text = self._read(np.empty(min(self._number(), _MAX_MESSAGE), np.uint8)).tobytes()
                raise DamageError(path, f"Faiss cannot read it: {text.decode('utf-8', 'replace')}")
            n = 0 if n == DONE else n
            if not 0 <= n <= rows:
                raise DamageError(path, f"Faiss gives {n} rows, {rows} were requested")
            return self._read(np.empty(n, "<i8")), self._read(np.empty((n, width), row))
        finally:
            watch.cancel()

    def _number(self) -> int:
        return int(FRAME.unpack(self._read(np.empty(FRAME.size, np.uint8)).tobytes())[0])

    def _read(self, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
        view = target.reshape(-1).data.cast("B") if target.nbytes else memoryview(b"")
        answer: Any = self.process.stdout
        while view:
            got = answer.readinto(view)
            if not got:
                self.process.wait()
                raise DamageError(self.child.path, f"Faiss stopped while reading it ({_death(self.process)})")
            view = view[got:]
        return target

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            cast(IO[bytes], stream).close()
        self.process.wait()


class _Idle:
    """Processes that wait for the next slice of what they have open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[_ReplyReader, threading.Timer]] = []
        self._ending = False

    def take(self, child: Child) -> _ReplyReader:
        """One that has it open, or a new one."""
        while (reader := self._pop(child)) is not None:
            if reader.process.poll() is None:
                return reader
            reader.close()
        return _ReplyReader(child)

    def _pop(self, child: Child) -> _ReplyReader | None:
        with self._lock:
            for k, (reader, timer) in enumerate(self._waiting):
                if reader.child == child:
                    timer.cancel()
                    del self._waiting[k]
                    return reader
        return None

    def put(self, reader: _ReplyReader) -> None:
        if self._ending:  # a thread that begins now would never run
            reader.close()
            return
        timer = threading.Timer(_IDLE_SECONDS, self._end, [reader])
        timer.daemon = True
        with self._lock:
            self._waiting.append((reader, timer))
            surplus = [r for r, _ in self._waiting[:-_MOST_IDLE]]
        timer.start()
        for old in surplus:
            self._end(old)

    def _end(self, reader: _ReplyReader) -> None:
        with self._lock:
            mine = [(r, t) for r, t in self._waiting if r is reader]
            self._waiting = [(r, t) for r, t in self._waiting if r is not reader]
        for r, timer in mine:
            timer.cancel()
            r.close()

    def end_all(self) -> None:
        self._ending = True
        for reader, _ in list(self._waiting):
            self._end(reader)

    def forget(self) -> None:
        """After a fork: the processes are those of the other one."""
        self._lock, self._waiting = threading.Lock(), []


_idle = _Idle()
atexit.register(_idle.end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.forget)


@dataclass(frozen=True)
class ChildPiece:
    """All rows of an index that only Faiss can read. `dimension` counts bits for binary vectors."""

    id: str
    rows: int
    child: Child
    vector_type: VectorType
    dimension: int
    first_id: int = 0
    id_map: IdMap | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.child.path,)

    def batches(self, max_bytes: int = BATCH_BYTES, start: int = 0) -> Iterator[Batch]:
        """Rows in Faiss' order, in flat memory here. Raises DamageError."""
        dtype, width = self.vector_type.dtype, self.vector_type.width(self.dimension)
        capacity = max(1, max_bytes // (width * dtype.itemsize))
        content = None if self.id_map is None else self.id_map.open()
        reader = _idle.take(self.child)
        try:
            while start < self.rows:
                ids, vectors = reader.ask(start, capacity, dtype, width)
                start += len(ids)
                if not len(ids) or start > self.rows:
                    raise DamageError(self.child.path, f"Faiss returned {start} rows, it had announced {self.rows}")
                if self.id_map is not None and content is not None:
                    ids = self.id_map.apply(content, ids)
                yield Batch(ids + self.first_id, vectors)
        except GeneratorExit:
            _idle.put(reader)  # whoever read has enough
            raise
        except BaseException:
            reader.close()
            raise
        _idle.put(reader)


def _death(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
