#!/usr/bin/env python3
"""Measures search, get and serve on a synthetic store that is in the page cache; the minimum of several runs counts.

    python scripts/bench_search.py [--gib 1] [--rows 10000000] [--jobs N] [--runs 5] [--folder DIR]

Prints, with the bars: one query and 100 queries in one call against faiss.IndexFlatL2 in memory with as many threads, and
against reading the same bytes once; the memory of a process that searches, without its maps; the first answer of `serve` after
its start; a get of 1,000 ids. CPU seconds are beside the wall's: on a busy machine they tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does

import faiss
import grpc
import numpy as np
from make_store import make_store

from milvus_offline import open_store
from milvus_offline.machine import default_jobs
from milvus_offline.targets.milvus1.proto import SERVICE, messages

DIMENSION = 128
SMALL = 8
"""Dimensions of the store that ids are looked for in."""
_MEMORY = """
import sys, numpy as np
from milvus_offline import open_store
c = open_store(sys.argv[1])["big"]
q = next(c.batches()).vectors[:100].copy()
for n in (1, 100):
    c.search(q[:n], 10, jobs=int(sys.argv[2]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


def best(work: Callable[[], Any], runs: int) -> tuple[float, float]:
    """Wall and CPU seconds: the least of several runs, each."""
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def one_pass(parts: list[np.ndarray[Any, Any]], jobs: int) -> None:
    """Reads all bytes once, in as many threads as a search."""

    def work(number: int) -> None:
        for part in parts:
            step = len(part) // (8 * jobs) + 1
            for at in range(number * step, len(part), jobs * step):
                np.max(part[at : at + step])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(jobs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def show(what: str, ours: tuple[float, float], other: tuple[float, float], bar: float) -> None:
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    a, b = (f"{wall * 1e3:8.1f} ms (CPU {cpu * 1e3:7.1f})" for wall, cpu in (ours, other))
    print(f"{what:44} {a} against {b}: x{ratios[0]:.2f} (CPU x{ratios[1]:.2f}), bar x{bar}")


def measure_search(store: Path, jobs: int, runs: int) -> None:
    collection = open_store(store)["big"]
    segments = [np.asarray(s.vectors) for s in collection["_default"].segments]  # type: ignore[union-attr]
    words = [s.reshape(-1).view(np.uint8) for s in segments]
    rng = np.random.default_rng(0)
    queries = segments[0][rng.integers(len(segments[0]), size=100)] + rng.normal(size=(100, DIMENSION)).astype(np.float32)
    faiss.omp_set_num_threads(jobs)
    flat = faiss.IndexFlatL2(DIMENSION)
    for s in segments:
        flat.add(s)
    for count in (1, 100):
        collection.search(queries[:count], 10, jobs=jobs)
    passed = best(lambda: one_pass(words, jobs), runs)
    one = best(lambda: collection.search(queries[:1], 10, jobs=jobs), runs)
    show("one query, against one pass over the bytes", one, passed, 1.5)
    show("one query, against IndexFlatL2", one, best(lambda: flat.search(queries[:1], 10), runs), 1.3)
    many = best(lambda: collection.search(queries, 10, jobs=jobs), runs)
    show("100 queries in one call, against IndexFlatL2", many, best(lambda: flat.search(queries, 10), runs), 1.3)
    found, (_, ids) = collection.search(queries, 10, jobs=jobs), flat.search(queries, 10)
    print(f"{'the same ids as IndexFlatL2':44} {np.mean(found.ids == ids):8.1%}")
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(store), str(jobs)], capture_output=True, text=True, check=True)
    print(f"{'memory of a process that searches, no maps':44} {int(done.stdout) / 1024:8.1f} MiB   bar 200 MB")


def measure_serve(store: Path, runs: int) -> None:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        command = [sys.executable, "-m", "milvus_offline", "serve", str(store), "--listen", "127.0.0.1:0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            lines = ""
            for line in process.stdout:
                lines += line
                if line == "}\n":
                    break
            request = messages()["CollectionName"](collection_name="big").SerializeToString()
            with grpc.insecure_channel(json.loads(lines)["address"]) as channel:
                call = channel.unary_unary(f"{SERVICE}CountCollection")
                call(request, timeout=60)
            seconds.append(time.perf_counter() - start)
            process.terminate()
    print(f"{'first answer of serve after its start':44} {min(seconds) * 1e3:8.1f} ms   bar 1000 ms")


def measure_get(store: Path, runs: int) -> None:
    collection = open_store(store)["big"]
    rng = np.random.default_rng(0)

    def get() -> None:
        wanted = rng.integers(collection.rows, size=1000)
        found = collection.get(wanted)
        assert (found.ids == wanted[found.asked]).all()

    get()
    wall, cpu = best(get, runs)
    print(
        f"{f'get of 1,000 ids out of {collection.rows:,} rows':44} {wall * 1e3:8.1f} ms  CPU {cpu * 1e3:8.1f} ms   bar 300 ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="vectors of 128 dimensions that are searched (default 1)")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows that ids are looked for in (default 10 million)")
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=default_jobs())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=o.folder) as folder:
        vectors, ids = Path(folder) / "vectors", Path(folder) / "ids"
        make_store(vectors, rows=int(o.gib * (1 << 30)) // (4 * DIMENSION), dimension=DIMENSION, segments=o.segments, deleted=0)
        print(f"{o.gib} GiB of {DIMENSION} dimensions in {o.segments} segments, {o.jobs} threads")
        measure_search(vectors, o.jobs, o.runs)
        measure_serve(vectors, o.runs)
        make_store(ids, rows=o.rows, dimension=SMALL, segments=o.segments, deleted=1)
        measure_get(ids, o.runs)


if __name__ == "__main__":
    main()
