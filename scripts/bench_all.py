#!/usr/bin/env python3
"""Makes docs/performance.md and its charts, where every figure of the documents comes from. Ten minutes on a quiet machine.

    python scripts/bench_all.py [--gib 1] [--runs 3] [--folder DIR] [--out docs] [--only NAME ...]

Whole processes, interleaved with `cp`; of several runs the fastest counts. All runs find the store in memory.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import bench_buckets
from bench_scale import many_segments, run, sparse_rows
from figures import bar_chart, line_chart, table
from make_store import make_store

import milvus_offline

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

_PREDECESSOR = """
import sys, glob, h5py, numpy as np
store, out, dimension = sys.argv[1], sys.argv[2], int(sys.argv[3])
vectors, ids = np.empty((0, dimension), "<f4"), np.empty(0, "<i8")
for raw in sorted(glob.glob(store + "/db/tables/*/*/*.rv")):
    some = np.fromfile(raw, "<f4", offset=8).reshape(-1, dimension)
    numbers = np.fromfile(raw[:-3] + ".uid", "<i8", offset=8)
    dead = np.unique(np.fromfile(raw.rpartition("/")[0] + "/deleted_docs", "<i4", offset=8))
    vectors = np.append(vectors, np.delete(some, dead, axis=0), axis=0)
    ids = np.append(ids, np.delete(numbers, dead))
with h5py.File(out, "w") as f:
    f["embeddings"], f["ids"] = vectors, ids
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
"""What the tool before this one does, after its description: a partition in memory, np.delete and np.append per segment."""

_DIMENSION = 128


@dataclass
class Page:
    """What is written, chapter by chapter."""

    out: Path
    folder: Path
    gib: float
    runs: int
    text: list[str] = field(default_factory=list)

    def chapter(self, title: str, words: str, figures: str, svg: str | None = None) -> None:
        self.text.append(f"## {title}\n\n{words}\n\n{figures}")
        if svg is not None:
            name = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
            (self.out / "figures").mkdir(parents=True, exist_ok=True)
            (self.out / "figures" / f"{name}.svg").write_text(svg)
            self.text.append(f"![{title}](figures/{name}.svg)\n")

    def store(self, name: str, gib: float, *, segments: int = 4, deleted: float = 0) -> Path:
        """A new store of so many GiB of vectors, which is in memory."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        rows = max(1000, int(gib * 2**30) // (4 * _DIMENSION))
        make_store(root, rows=rows, dimension=_DIMENSION, segments=segments, deleted=deleted)
        subprocess.run(["cat", *files(root)], stdout=subprocess.DEVNULL, check=True)
        return root

    def best(self, ways: dict[str, Callable[[Path], float]]) -> dict[str, float]:
        """Seconds of each way, the fastest of some runs that take turns, every other round backwards; each writes to a place
        that is removed after it. Each runs twice, and the second time counts: `bench_export.timed` says why."""
        found: dict[str, float] = {}
        target = self.folder / "target"
        for n in range(self.runs):
            for name in list(ways)[:: -1 if n % 2 else 1]:
                for _ in range(2):
                    seconds = ways[name](target)
                    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
                found[name] = min(found.get(name, seconds), seconds)
        return {name: found[name] for name in ways}


def files(root: Path) -> list[str]:
    return [str(p) for suffix in (".rv", ".uid") for p in sorted(root.rglob(f"*{suffix}"))]


def seconds_of(*command: str) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def cp(store: Path, *, sync: bool = False, options: tuple[str, ...] = ()) -> Callable[[Path], float]:
    def copy(target: Path) -> float:
        target.mkdir()
        if not sync:
            return seconds_of("cp", *options, *files(store), str(target))
        return seconds_of("sh", "-c", 'to=$1; shift; cp "$@" "$to" && sync "$to"/*', "sh", str(target), *files(store))

    return copy


def ours(*words: str) -> Callable[[Path], float]:
    """A command line in which OUT stands for the target."""
    return lambda target: run(*(w.replace("OUT", str(target)) for w in words)).seconds


def export(page: Page) -> None:
    store = page.store("export", page.gib)
    predecessor = [sys.executable, "-c", _PREDECESSOR, str(store)]
    found = page.best(
        {
            "cp": cp(store),
            "milvus-offline export --no-sync": ours("export", str(store), "OUT", "-q", "--no-sync", "--reflink", "never"),
            "cp && sync": cp(store, sync=True),
            "milvus-offline export": ours("export", str(store), "OUT", "-q", "--reflink", "never"),
            "milvus-offline, Parquet": ours("export", str(store), "OUT", "-q", "--format", "parquet"),
            "milvus-offline, npy": ours("export", str(store), "OUT", "-q", "--format", "npy"),
            "the predecessor's way": lambda target: seconds_of(*predecessor, str(target), str(_DIMENSION)),
        }
    )
    rows = [(name, s, s / found["cp"], page.gib / s) for name, s in found.items()]
    words = f"{page.gib:g} GiB of vectors of dimension {_DIMENSION} in four segments, none deleted, to HDF5 with checksums."
    chart = bar_chart("Export", "s", found)
    page.chapter("Export against cp", words, table(["way", "seconds", "times cp", "GiB/s"], rows), chart)


def deletes(page: Page) -> None:
    gib, found = page.gib / 2, []
    for share in (0, 3, 10, 25, 50):
        store = page.store("deletes", gib, deleted=share)
        best = page.best({"cp": cp(store), "ours": ours("export", str(store), "OUT", "-q", "--no-sync", "--reflink", "never")})
        found.append((share, best["cp"], best["ours"]))
    lines = {"cp of everything": [(s, c) for s, c, _ in found], "export of the rest": [(s, o) for s, _, o in found]}
    words = f"{gib:g} GiB, of which a share is deleted at random: every window has to be compacted."
    chart = line_chart("Deleted rows", "deleted, %", "seconds", lines)
    page.chapter("Deleted rows", words, table(["deleted, %", "cp, s", "export, s"], found), chart)


def memory(page: Page) -> None:
    found = []
    for gib in (page.gib / 8, page.gib / 2, page.gib):
        store = page.store("memory", gib)
        peak = run("export", store, page.folder / "target", "-q", "--reflink", "never").mib
        shutil.rmtree(page.folder / "target")
        command = [sys.executable, "-c", _PREDECESSOR, str(store), str(page.folder / "target.h5"), str(_DIMENSION)]
        theirs = int(subprocess.run(command, check=True, capture_output=True).stdout) / 1024
        (page.folder / "target.h5").unlink()
        found.append((gib, peak, theirs))
    lines = {"milvus-offline": [(g, a) for g, a, _ in found], "the predecessor's way": [(g, b) for g, _, b in found]}
    words = "Peak memory of an export, over the size of the partition."
    chart = line_chart("Memory", "GiB", "MiB", lines)
    page.chapter("Memory over size", words, table(["GiB", "ours, MiB", "the predecessor's way, MiB"], found), chart)


def loads(page: Page) -> None:
    gib = page.gib / 4
    store = page.store("loads", gib)
    exported = page.folder / "exported"
    run("export", store, exported, "-q")
    found = page.best(
        {
            "cp && sync": cp(store, sync=True),
            "milvus-offline, store to milvus1:": ours("load", str(store), "milvus1:OUT", "-q", "--reflink", "never"),
            "milvus-offline, export to milvus1:": ours("load", str(exported), "milvus1:OUT", "-q"),
        }
    )
    shutil.rmtree(exported)
    rows = [(name, s, gib * 2**30 / (4 * _DIMENSION) / s) for name, s in found.items()]
    words = f"{gib:g} GiB into a new store of Milvus 1.1.1, bloom filters included. Loads into servers: scripts/bench_load.py."
    page.chapter("Load", words, table(["way", "seconds", "rows per second"], rows), bar_chart("Load", "s", found))


def faiss_index(page: Page) -> None:
    import faiss
    import numpy as np

    rows = int(page.gib / 4 * 2**30) // (4 * _DIMENSION)
    index = faiss.IndexFlatL2(_DIMENSION)
    index.add(np.random.default_rng(1).standard_normal((rows, _DIMENSION), np.float32))
    path = page.folder / "flat.faiss"
    faiss.write_index(index, str(path))
    del index
    found = page.best(
        {
            "cp": lambda target: seconds_of("cp", str(path), str(target)),
            "milvus-offline export --no-sync": ours("export", str(path), "OUT", "-q", "--no-sync"),
        }
    )
    path.unlink()
    words = f"A flat Faiss index of {page.gib / 4:g} GiB to HDF5. Other kinds: scripts/bench_faiss.py."
    page.chapter("Faiss", words, table(["way", "seconds"], list(found.items())), bar_chart("Faiss", "s", found))


def links(page: Page) -> None:
    store = page.store("links", page.gib, segments=1)
    found = page.best({"cp": cp(store), "milvus-offline export --link": ours("export", str(store), "OUT", "-q", "--link")})
    with ExitStack() as stack:
        volume = _xfs(page, stack)
        if volume is not None:
            inside = volume / "store"
            shutil.copytree(store, inside)
            there = Page(page.out, volume, page.gib, page.runs)
            found |= there.best(
                {
                    "cp --reflink, XFS": cp(inside, options=("--reflink=always",)),
                    "milvus-offline export, XFS": ours("export", str(inside), "OUT", "-q", "--reflink", "always"),
                    "milvus-offline repaired store, XFS": ours("load", str(inside), "milvus1:OUT", "-q", "--reflink", "always"),
                }
            )
    words = (
        f"One segment of {page.gib:g} GiB. An export reads all rows once for their checksums, a repaired store only the ids."
    )
    if volume is None:
        words += " No XFS could be mounted on this machine."
    page.chapter("No copy", words, table(["way", "seconds"], list(found.items())), bar_chart("No copy", "s", found))


def _xfs(page: Page, stack: ExitStack) -> Path | None:
    image, place = page.folder / "xfs.img", page.folder / "xfs"
    place.mkdir(exist_ok=True)
    with image.open("wb") as f:
        f.truncate(int(2.5 * page.gib * 2**30) + (1 << 30))
    if shutil.which("mkfs.xfs") is None or subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)]).returncode:
        return None
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True).returncode:
        return None
    stack.callback(subprocess.run, ["umount", str(place)], check=True)
    return place


def bucket(page: Page) -> None:
    gib = 2 * page.gib
    found, peak = bench_buckets.measure(page.folder / "bucket", gib, page.runs)
    shutil.rmtree(page.folder / "bucket")
    rows = [(name, s, gib * 1024 / s) for name, s in found.items()]
    words = f"{gib:g} GiB out of a small server on the same machine, which shares its cores; peak memory {peak:.0f} MiB."
    page.chapter("Out of a bucket", words, table(["way", "seconds", "MiB/s"], rows), bar_chart("Out of a bucket", "s", found))


def partitions(page: Page) -> None:
    sizes = [10, 100, 1000] if page.gib >= 1 else [10, 100]
    rows, lines = [], dict[str, list[tuple[float, float]]]()
    for size in sizes:
        store = many_segments(page.folder / "parts", size, partitions=size)
        ways = {
            "cp -r": lambda target, store=store: seconds_of("cp", "-r", str(store), str(target)),
            "export --no-sync": ours("export", str(store), "OUT", "-q", "--no-sync"),
            "export": ours("export", str(store), "OUT", "-q"),
        }
        found = page.best(ways)
        rows.append((size, *found.values()))
        for name, seconds in found.items():
            lines.setdefault(name, []).append((size, seconds))
        shutil.rmtree(store)
    words = "One segment of a few rows in each: what a file of its own costs. `cp -r` copies the store, with a folder for each."
    head = ["partitions", "cp -r, s", "export --no-sync, s", "export, s"]
    page.chapter("Partitions", words, table(head, rows), line_chart("Partitions", "partitions", "seconds", lines, log=True))


def scale(page: Page) -> None:
    sizes = [1000, 10_000, 100_000] if page.gib >= 1 else [100, 1000]
    found = []
    for size in sizes:
        root = many_segments(page.folder / "many", size)
        looked = run("inspect", root, "--json")
        linked = run("export", root, page.folder / "target", "--link", "-q")
        found.append((size, looked.seconds, looked.mib, linked.seconds))
        shutil.rmtree(page.folder / "target")
        shutil.rmtree(root)
    billion = run("inspect", sparse_rows(page.folder / "sparse", 10**9), "--json")
    shutil.rmtree(page.folder / "sparse")
    lines = {"inspect": [(n, s) for n, s, _, _ in found], "export --link": [(n, s) for n, _, _, s in found]}
    words = "Segments of a few rows: what is done for each. "
    words += f"`inspect` of a billion rows: {billion.seconds:.2f} s, {billion.mib:.0f} MiB."
    chart = line_chart("Scale", "segments", "seconds", lines, log=True)
    head = ["segments", "inspect, s", "inspect, MiB", "export --link, s"]
    page.chapter("Scale", words, table(head, found), chart)


CHAPTERS = (export, deletes, memory, loads, faiss_index, links, bucket, partitions, scale)


def machine(folder: Path) -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True).stdout.strip()
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "h5py", "pyarrow"))
    load = os.getloadavg()[0]
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory_gib:.0f} GiB of memory, {kind} file system, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {packages}. Load before the first run: {load:.1f}. {datetime.date.today()}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    parser.add_argument("--only", nargs="*", choices=[c.__name__ for c in CHAPTERS])
    o = parser.parse_args()
    compileall.compile_dir(Path(milvus_offline.__file__).parent, quiet=2)  # as pip does when it installs a package
    with tempfile.TemporaryDirectory(dir=o.folder, prefix="bench-all-") as name:
        page = Page(o.out, Path(name), o.gib, o.runs)
        about = machine(page.folder)
        for chapter in CHAPTERS:
            if not o.only or chapter.__name__ in o.only:
                begun = time.perf_counter()
                chapter(page)
                print(f"{chapter.__name__}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    head = f"# Performance\n\nMade by `python scripts/bench_all.py`; nothing here is written by hand.\n\nMeasured on: {about}\n"
    (o.out / "performance.md").write_text("\n".join([head, *page.text]))


if __name__ == "__main__":
    main()
