"""A Dask scheduler and workers in processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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

    def wait(self, workers: int) -> None:
        """Until so many workers are there."""
        from distributed import Client

        with Client(f"tcp://127.0.0.1:{self._port}", timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=90)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@contextlib.contextmanager
def cluster(folder: Path, workers: int = 3) -> Iterator[Cluster]:
    made = Cluster(folder)
    try:
        for _ in range(workers):
            made.add_worker()
        made.wait(workers)
        yield made
    finally:
        made.close()
        time.sleep(0)
