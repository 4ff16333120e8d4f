"""Compares ways into the same Milvus server: rows/s up to the flush and with it, client CPU a row, peak memory, server CPU.

    python scripts/bench_load.py [--rows N] [--more-rows N] [--dim D] [--repeat N] [--ways ours,client,orm,npy,parquet]

Each way runs in a process of its own on the same rows of an HDF5 file, interleaved, `--repeat` times; the best of each counts.
The server is the package `milvus` 2.3.5, started here in a network namespace; the clients run inside of it, without a relay.
`server CPU` is what its process used from the first message to the end of the flush: on a machine of C cores, a way whose
(server CPU + client CPU) comes near C times its time is bound by the machine, not by the client.

The last lines hold the figures against what is promised; the exit code is 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
URI = "http://127.0.0.1:19530"
WAYS = ("ours", "client", "orm", "npy", "parquet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--more-rows", type=int, default=4_000_000, help="once more with so many, for the memory; 0: not")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--inflight", type=int, help="messages (imports) at the same time, ours alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--rows-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--server-pid", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tuned = {"inflight": options.inflight} if options.inflight else {}
        print(json.dumps(run_one(options.one, options.rows_file, options.server_pid, tuned)))
        return 0
    from support.milvus_server import MilvusServer

    folder = Path(tempfile.mkdtemp(prefix="bench-load-"))
    results: dict[str, list[dict[str, float]]] = {}
    more: dict[str, dict[str, float]] = {}
    ways = options.ways.split(",")
    try:
        with MilvusServer(folder / "server") as server:
            rows = make_rows(folder / "rows.h5", options.rows, options.dim)
            for _ in range(options.repeat):
                for way in ways:
                    results.setdefault(way, []).append(run(server.pid, way, rows, options.inflight))
            rows.unlink()
            if options.more_rows:
                rows = make_rows(folder / "rows.h5", options.more_rows, options.dim)
                more = {way: run(server.pid, way, rows, options.inflight) for way in ways if way in ("ours", "npy")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    best = {way: {key: min(r[key] for r in runs) for key in runs[0]} for way, runs in results.items()}
    print(f"{options.rows:,} rows of {options.dim} floats, best of {options.repeat}, {os.cpu_count()} cores")
    show(best, options.rows)
    if more:
        print(f"{options.more_rows:,} rows, once")
        show(more, options.more_rows)
    return judge(best, more)


def make_rows(path: Path, rows: int, dim: int) -> Path:
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as h:
        vectors = h.create_dataset("embeddings", (rows, dim), np.float32)
        for at in range(0, rows, 100_000):
            vectors[at : at + 100_000] = random.standard_normal((min(100_000, rows - at), dim), np.float32)
        h["ids"] = np.arange(rows)
    return path


def run(server: int, way: str, rows: Path, inflight: int | None) -> dict[str, float]:
    """`run_one` in a process of its own, in the namespace of the server that the process `server` has started."""
    command = ["nsenter", "-t", str(server), "-n", sys.executable, __file__]
    command += ["--one", way, "--rows-file", str(rows), "--server-pid", str(server)]
    command += ["--inflight", str(inflight)] if inflight else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: failed, see above")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {way}: {found}", file=sys.stderr)
    return found


def show(measured: dict[str, dict[str, float]], rows: int) -> None:
    print(f"{'':10} {'rows/s':>10} {'with flush':>10} {'CPU us/row':>10} {'whole run':>10} {'server us':>10} {'peak MB':>8}")
    for way, m in measured.items():
        rates = f"{rows / m['send']:>10,.0f} {rows / m['total']:>10,.0f}"
        costs = " ".join(f"{1e6 * m[key] / rows:>10.2f}" for key in ("cpu", "whole_cpu", "server_cpu"))
        print(f"{way:10} {rates} {costs} {m['rss']:>8.0f}")


def judge(best: dict[str, dict[str, float]], more: dict[str, dict[str, float]]) -> int:
    """Says which promises hold; 1 when one does not."""
    bars: list[tuple[str, float, float, bool]] = []
    if {"ours", "client"} <= best.keys():
        ours, client = best["ours"], best["client"]
        bars.append(("rows/s up to the flush, ours over MilvusClient.insert", client["send"] / ours["send"], 3.5, True))
        bars.append(("client CPU a row, MilvusClient.insert over ours", client["cpu"] / ours["cpu"], 15, True))
    if {"ours", "npy"} <= best.keys():
        bars.append(("rows/s end to end, import over ours", best["ours"]["total"] / best["npy"]["total"], 1.5, True))
    for name, results in (("", best), (" (more rows)", more)):
        bars += [(f"peak MB of {way}{name}", results[way]["rss"], 250, False) for way in ("ours", "npy") if way in results]
    missed = 0
    for what, value, bar, at_least in bars:
        good = value >= bar if at_least else value <= bar
        missed += not good
        print(f"{'holds ' if good else 'MISSED'} {what}: {value:.1f} ({'at least' if at_least else 'at most'} {bar:g})")
    if "ours" in best:
        ours = best["ours"]
        print(
            f"       with ours the server used {ours['server_cpu'] / ours['total']:.2f} of {os.cpu_count()} cores, the client "
            f"{ours['cpu'] / ours['total']:.2f}"
        )
    return int(missed > 0)


def run_one(way: str, rows: Path, server: int, tuned: dict[str, int]) -> dict[str, float]:
    """Seconds up to the flush (`send`) and with it (`total`), CPU seconds of the sending and of all, of the server, MB."""
    from milvus_offline.targets.milvus.client import Client
    from milvus_offline.targets.milvus.connection import Connection

    with Client(Connection(URI)) as client:
        if client.has("bench"):
            client.drop("bench")
    watch = Stopwatch(server)
    if way in ("npy", "parquet"):
        ours(rows, watch, tuned, way)
    elif way == "ours":
        ours(rows, watch, tuned)
    else:
        {"client": by_client, "orm": by_orm}[way](rows, watch)
    return {**watch.times, "whole_cpu": time.process_time(), "rss": peak()}


def peak() -> float:
    """Peak memory of this process in MB (getrusage would count its parent's too)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cpu_below(pid: int) -> float:
    """CPU seconds that the processes have used that `pid` has started: the server."""
    used, found = 0.0, {pid}
    stats = [p.read_text().rpartition(")")[2].split() for p in Path("/proc").glob("[0-9]*/stat")]
    numbers = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat")]
    for number, stat in sorted(zip(numbers, stats, strict=False)):
        if int(stat[1]) in found:
            found.add(number)
            used += (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return used


class Stopwatch:
    """What sending and flushing take."""

    def __init__(self, server: int) -> None:
        self._server = server
        self.times: dict[str, float] = {}

    def send(self, call: Callable[[], Any]) -> Any:
        self._clock, self._used, self._served = time.monotonic(), time.process_time(), cpu_below(self._server)
        found = call()
        self.times["send"] = time.monotonic() - self._clock
        self.times["cpu"] = time.process_time() - self._used
        return found

    def flush(self, call: Callable[[], Any]) -> None:
        call()
        self.times["total"] = time.monotonic() - self._clock
        self.times["server_cpu"] = cpu_below(self._server) - self._served


def ours(rows: Path, watch: Stopwatch, tuned: dict[str, int], file_format: str | None = None) -> None:
    """The real load, without index and proof; the pass that looks for duplicates and NaN comes before the clock."""
    from milvus_offline import loading
    from milvus_offline.sources.hdf5 import open_hdf5
    from milvus_offline.targets import open_target

    place = str(rows.parent / "server" / "data" / "import")
    bucket = {"import_to": place, "import_format": file_format} if file_format else {}
    target = open_target(URI, index="none", metric="L2", verify="none", load=False, **bucket, **tuned)
    execute, flush = loading.execute, target.flush
    loading.execute = lambda *a, **k: watch.send(lambda: execute(*a, **k))
    target.flush = lambda: watch.flush(flush)
    with tempfile.TemporaryDirectory(dir=rows.parent) as state:
        loading.run_load(open_hdf5(rows, collection="bench"), target, state=Path(state) / "state")


def _create() -> Any:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(URI)
    return client, DataType


def _collection(client: Any, types: Any, dim: int) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.INT64, is_primary=True)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=dim)
    client.create_collection("bench", schema=schema, num_shards=1)


def by_client(rows: Path, watch: Stopwatch, batch: int = 10_000) -> None:
    """MilvusClient.insert in its best form: rows as dictionaries with lists, ten thousand at a time."""
    import h5py

    client, types = _create()
    with h5py.File(rows) as h:
        vectors, ids = h["embeddings"], h["ids"]
        _collection(client, types, vectors.shape[1])

        def send() -> None:
            for at in range(0, len(ids), batch):
                some, numbers = vectors[at : at + batch].tolist(), ids[at : at + batch].tolist()
                client.insert("bench", [{"id": i, "vector": v} for i, v in zip(numbers, some, strict=True)])

        watch.send(send)
        watch.flush(lambda: client.flush("bench"))


def by_orm(rows: Path, watch: Stopwatch, batch: int = 10_000) -> None:
    """The ORM's insert of columns."""
    import warnings

    import h5py

    warnings.simplefilter("ignore")
    from pymilvus import Collection, connections

    client, types = _create()
    connections.connect(uri=URI)
    with h5py.File(rows) as h:
        vectors, ids = h["embeddings"], h["ids"]
        _collection(client, types, vectors.shape[1])
        collection = Collection("bench")

        def send() -> None:
            for at in range(0, len(ids), batch):
                collection.insert([ids[at : at + batch].tolist(), vectors[at : at + batch].tolist()])

        watch.send(send)
        watch.flush(lambda: client.flush("bench"))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    sys.exit(main())
