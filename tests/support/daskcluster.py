"""A Dask scheduler and workers in processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Cluster:
    """`url` is what --cluster takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _free_port()
        self.url = f"dask://127.0.0.1:{self._port}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler: subprocess.Popen[bytes]
        self.start_scheduler()

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        environment |= {
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._folder,
            )

    def start_scheduler(self) -> None:
        where = ["--host", "127.0.0.1", "--port", str(self._port)]
        self.scheduler = self._start("scheduler", "dask_scheduler", *where, "--no-dashboard", "--no-show")

    def add_worker(self) -> None:
        where = [f"tcp://127.0.0.1:{self._port}", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        self.workers.append(self._start(f"worker{len(self.workers)}", "dask_worker", *where))

    def add_workers(self, number: int) -> None:
        """Starts so many, and waits until all that are alive are known to the scheduler."""
        for _ in range(number):
            self.add_worker()
        self._wait(len(self.workers))

    def renew(self, dead: int) -> None:
        """Others in place of so many that died, which is made sure of."""
        while len(alive := [w for w in self.workers if w.poll() is None]) > len(self.workers) - dead:
            time.sleep(0.01)
        self.workers = alive
        self.add_workers(dead)

    def restart(self, workers: int) -> None:
        """Another scheduler at the same address, with so many new workers: the old ones end with theirs."""
        for process in (self.scheduler, *self.workers):
            process.wait(timeout=600)
        self.workers = []
        self.start_scheduler()
        self.add_workers(workers)

    def _wait(self, workers: int) -> None:
        from distributed import Client

        with Client(f"tcp://127.0.0.1:{self._port}", timeout=600, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=600)

    def dies(self, task: str, pid: str | Path = "") -> None:
        """The next task of the class `task` (`module:Class`) that one of the workers runs does its work, and then kills this
        worker before anybody hears of it; or the process whose number stands, or will stand, in the file `pid`."""
        from distributed import Client

        with Client(f"tcp://127.0.0.1:{self._port}", set_as_default=False) as client:
            worker = min(client.scheduler_info(n_workers=-1)["workers"])
            client.run(_dies, task, str(pid), workers=[worker])

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


def _dies(task: str, pid: str) -> None:
    module, _, name = task.partition(":")
    kind: Any = getattr(importlib.import_module(module), name)
    work = kind.run

    def run(self: Any, *arguments: Any) -> Any:
        kind.run = work
        result = work(self, *arguments)
        while pid and not (Path(pid).exists() and Path(pid).read_text().endswith("\n")):
            time.sleep(0.01)
        os.kill(int(Path(pid).read_text()) if pid else os.getpid(), signal.SIGKILL)
        return result

    kind.run = run


@contextlib.contextmanager
def cluster(folder: Path, workers: int = 3) -> Iterator[Cluster]:
    made = Cluster(folder)
    try:
        made.add_workers(workers)
        yield made
    finally:
        made.close()
