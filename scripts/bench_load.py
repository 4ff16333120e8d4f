"""Compares ways into the same Milvus server: rows/s up to the flush, client CPU per row, peak memory.

    python scripts/bench_load.py [--rows N] [--dim D]

Each way runs in a process of its own on the same rows of an HDF5 file, interleaved, `--repeat` times; the best of each counts.
The server is the package `milvus` 2.3.5, started here in a network namespace; the clients run inside of it, without a relay.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.folder)))
        return
    import h5py
    from support.milvus_server import MilvusServer

    folder = Path(tempfile.mkdtemp(prefix="bench-load-"))
    with h5py.File(folder / "rows.h5", "w") as h:
        h["embeddings"] = np.random.default_rng(0).standard_normal((options.rows, options.dim), np.float32)
        h["ids"] = np.arange(options.rows)
    results: dict[str, list[dict[str, float]]] = {}
    try:
        with MilvusServer(folder / "server") as server:
            for _ in range(options.repeat):
                for way in options.ways.split(","):
                    command = ["nsenter", "-t", str(server.pid), "-n", sys.executable, __file__]
                    done = subprocess.run(
                        [*command, "--one", way, "--folder", str(folder)], check=True, capture_output=True, text=True
                    )
                    results.setdefault(way, []).append(json.loads(done.stdout.splitlines()[-1]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.rows:,} rows of {options.dim} floats, best of {options.repeat}")
    print(f"{'':10} {'rows/s':>10} {'with flush':>10} {'CPU us/row':>10} {'peak MB':>8}")
    for way, runs in results.items():
        best = min(runs, key=lambda r: r["send"])
        print(
            f"{way:10} {options.rows / best['send']:>10,.0f} {options.rows / min(r['total'] for r in runs):>10,.0f} "
            f"{1e6 * min(r['cpu'] for r in runs) / options.rows:>10.2f} {min(r['rss'] for r in runs):>8.0f}"
        )


def run_one(way: str, folder: Path) -> dict[str, float]:
    """Seconds up to the flush (`send`) and with it (`total`), CPU seconds of the sending, peak memory in MB."""
    from milvus_offline.targets.milvus.client import Client
    from milvus_offline.targets.milvus.connection import Connection

    with Client(Connection(URI)) as client:
        if client.has("bench"):
            client.drop("bench")
    return {"npy": lambda: ours(folder, "npy"), "parquet": lambda: ours(folder, "parquet")}.get(
        way, lambda: {"ours": ours, "client": by_client, "orm": by_orm}[way](folder)
    )()


def peak() -> float:
    """Peak memory of this process in MB (getrusage would count its parent's too)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measured(send: Callable[[], Any], flush: Callable[[], Any]) -> dict[str, float]:
    cpu, clock = time.process_time(), time.monotonic()
    send()
    sent, used = time.monotonic() - clock, time.process_time() - cpu
    flush()
    return {"send": sent, "total": time.monotonic() - clock, "cpu": used, "rss": peak()}


def ours(folder: Path, file_format: str | None = None) -> dict[str, float]:
    """The real load, without index and proof; the pass that looks for duplicates and NaN comes before the clock."""
    from milvus_offline import loading
    from milvus_offline.sources.hdf5 import open_hdf5
    from milvus_offline.targets import open_target
    from milvus_offline.targets.milvus.client import Client

    place = str(folder / "server" / "data" / "import")
    bucket = {"import_to": place, "import_format": file_format} if file_format else {}
    target = open_target(URI, index="none", metric="L2", verify="none", load=False, **bucket)
    times: dict[str, float] = {}
    execute, flush = loading.execute, Client.flush

    def timed(*a: Any, **k: Any) -> Any:
        result: list[Any] = []
        times.update(measured(lambda: result.append(execute(*a, **k)), lambda: None))
        return result[0]

    def timed_flush(self: Client, collection: str) -> None:
        clock = time.monotonic()
        flush(self, collection)
        times["total"] += time.monotonic() - clock

    loading.execute, Client.flush = timed, timed_flush  # type: ignore[assignment, method-assign]
    source = open_hdf5(folder / "rows.h5", collection="bench")
    loading.run_load(source, target, state=folder / "state")
    times["rss"] = peak()
    return times


def _create() -> Any:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(URI)
    return client, DataType


def _collection(client: Any, types: Any, dim: int) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", types.INT64, is_primary=True)
    schema.add_field("vector", types.FLOAT_VECTOR, dim=dim)
    client.create_collection("bench", schema=schema, num_shards=1)


def by_client(folder: Path, batch: int = 10_000) -> dict[str, float]:
    """MilvusClient.insert in its best form: rows as dictionaries with lists, ten thousand at a time."""
    import h5py

    client, types = _create()
    with h5py.File(folder / "rows.h5") as h:
        vectors, ids = h["embeddings"], h["ids"]
        _collection(client, types, vectors.shape[1])

        def send() -> None:
            for at in range(0, len(ids), batch):
                some, numbers = vectors[at : at + batch].tolist(), ids[at : at + batch].tolist()
                client.insert("bench", [{"id": i, "vector": v} for i, v in zip(numbers, some, strict=True)])

        return measured(send, lambda: client.flush("bench"))


def by_orm(folder: Path, batch: int = 10_000) -> dict[str, float]:
    """The ORM's insert of columns."""
    import warnings

    import h5py

    warnings.simplefilter("ignore")
    from pymilvus import Collection, connections

    client, types = _create()
    connections.connect(uri=URI)
    with h5py.File(folder / "rows.h5") as h:
        vectors, ids = h["embeddings"], h["ids"]
        _collection(client, types, vectors.shape[1])
        collection = Collection("bench")

        def send() -> None:
            for at in range(0, len(ids), batch):
                collection.insert([ids[at : at + batch].tolist(), vectors[at : at + batch].tolist()])

        return measured(send, lambda: client.flush("bench"))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    main()
