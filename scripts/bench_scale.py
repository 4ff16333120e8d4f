#!/usr/bin/env python3
"""How time and memory grow with the number of segments, partitions, rows, and with the log: curves that must be straight.

    python scripts/bench_scale.py [--segments 1000 10000 100000] [--partitions 1000] [--rows 1000000000] [--wal-gib 0 1]
                                  [--folder DIR] [--svg DIR]

The segments are links to one and the same files, the billion rows are a hole in a file: what is measured is what is done for
each segment, partition and row, not the disk. Whole processes; prints seconds, processor seconds and peak memory.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from figures import line_chart, table

import milvus_offline
from milvus_offline.milvus1.catalog.rows import FileRow, TableRow
from milvus_offline.milvus1.catalog.write import write_sqlite
from milvus_offline.milvus1.layout import LENGTH, FileType
from milvus_offline.milvus1.segment.writing import SegmentWriter

_RUNNER = (
    "import atexit, re, sys; from milvus_offline.cli import main;"
    "peak = lambda: re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1];"
    "atexit.register(lambda: sys.stderr.write('PEAK ' + peak())); main(sys.argv[1:])"
)
_BASE = 1_678_354_366_132_931


@dataclass(frozen=True)
class Spent:
    seconds: float
    cpu: float
    mib: float


def run(*arguments: object) -> Spent:
    """One command in a process of its own. Raises RuntimeError when it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = done.stderr.decode()
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{' '.join(map(str, arguments))}: exit {done.returncode}: {text}")
    peak = re.findall(r"PEAK (\d+)", text)
    return Spent(seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, int(peak[-1]) / 1024)


def many_segments(root: Path, segments: int, *, partitions: int = 1, rows: int = 8, dimension: int = 16) -> Path:
    """A store whose segments are links to the files of one. Every partition has an equal share of them."""
    tables = root / "db" / "tables"
    template = root / "template"
    writer = SegmentWriter(template, "1")
    writer.append(np.arange(rows, dtype=np.int64), np.ones((rows, dimension), np.float32))
    writer.close()
    names = ["faces", *(str(_BASE * 1000 - 1000 * n) for n in range(1, partitions))]
    table_rows = [
        TableRow(
            n + 1, name, 0, dimension, owner_table="faces" if n else "", partition_tag=f"p{n}" if n else "", version="1.1.1"
        )
        for n, name in enumerate(names)
    ]
    files = []
    for n in range(segments):
        name, segment_id = names[n % partitions], str((_BASE + n) * 1000)
        folder = tables / name / segment_id
        folder.mkdir(parents=True)
        for there, here in (("1.rv", f"{segment_id}.rv"), ("1.uid", f"{segment_id}.uid"), ("deleted_docs", "deleted_docs")):
            try:
                os.link(template / there, folder / here)
            except OSError:  # a file has 65,000 names at most
                shutil.copyfile(template / there, template / "again")
                (template / "again").replace(template / there)
                os.link(template / there, folder / here)
        files.append(
            FileRow(n + 1, name, FileType.RAW, segment_id, file_id=segment_id, row_count=rows, file_size=writer.payload_bytes)
        )
    write_sqlite(root / "db" / "meta.sqlite", table_rows, files)
    shutil.rmtree(template)
    os.sync()  # or the disk would be busy with all these folders while they are looked at
    return root


def sparse_rows(root: Path, rows: int, dimension: int = 16) -> Path:
    """A store with one segment of `rows` rows of zeros, which takes no room."""
    segment_id = str(_BASE * 1000)
    folder = root / "db" / "tables" / "faces" / segment_id
    folder.mkdir(parents=True)
    for name, unit in ((f"{segment_id}.rv", 4 * dimension), (f"{segment_id}.uid", 8)):
        with (folder / name).open("wb") as f:
            f.write(LENGTH.pack(rows * unit))
            f.truncate(LENGTH.size + rows * unit)
    (folder / "deleted_docs").write_bytes(LENGTH.pack(0))
    size = rows * (4 * dimension + 8)
    row = FileRow(1, "faces", FileType.RAW, segment_id, file_id=segment_id, row_count=min(rows, 2**31 - 1), file_size=size)
    write_sqlite(root / "db" / "meta.sqlite", [TableRow(1, "faces", 0, dimension, version="1.1.1")], [row])
    return root


def with_log(root: Path, gib: float, dimension: int = 128, rows_each: int = 1000) -> Path:
    """A store whose rows are all in the log."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.builder import StoreBuilder, rows

    builder = StoreBuilder(root)
    builder.collection("faces", dim=dimension)
    batch = rows(range(rows_each), dim=dimension)
    for n in range(max(1, int(gib * 2**30 / (rows_each * (4 * dimension + 8))))):
        builder.wal.insert("faces", batch._replace(ids=batch.ids + n * rows_each))
    return builder.write()


Figures = dict[str, list[tuple[float, Spent]]]


def measure_segments(folder: Path, sizes: list[int], partitions: int = 1) -> Figures:
    """Of each size: what looks at each segment, what reads it, and what writes it."""
    out = folder / "out"
    commands = {
        "inspect": ("inspect", "--json"),
        "inspect --html": ("inspect", "--html", folder / "page.html", "-q"),
        "export --link": ("export", out, "--link", "-q"),
        "export": ("export", out, "-q"),
        "verify": ("verify", "-q"),
        "load": ("load", f"milvus1:{out}", "-q"),
    }
    found: Figures = {name: [] for name in commands}
    for size in sizes:
        root = many_segments(folder / f"s{size}", size, partitions=min(partitions, size))
        for name, (command, *words) in commands.items():
            found[name].append((size, run(command, root, *words)))
            shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(root)
    return found


def show(title: str, unit: str, figures: Figures, svg: Path | None) -> str:
    """The table, and with `svg` the chart beside it."""
    rows = [
        (name, f"{size:,.12g}", s.seconds, s.cpu, f"{s.mib:.0f} MiB", s.seconds / size * 1e6)
        for name, line in figures.items()
        for size, s in line
    ]
    if svg is not None and any(len(line) > 1 for line in figures.values()):
        lines = {name: [(size, s.seconds) for size, s in line] for name, line in figures.items()}
        svg.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", title.lower()).strip("-")
        (svg / f"{name}.svg").write_text(line_chart(title, unit, "seconds", lines, log=True))
    head = ["command", unit, "seconds", "of the processor", "memory", f"µs per {unit.removesuffix('s')}"]
    return f"### {title}\n\n" + table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--partitions", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, nargs="*", default=[10**7, 10**8, 10**9])
    parser.add_argument("--wal-gib", type=float, nargs="*", default=[0.25, 1])
    parser.add_argument("--folder")
    parser.add_argument("--svg", type=Path)
    o = parser.parse_args()
    compileall.compile_dir(Path(milvus_offline.__file__).parent, quiet=2)  # as pip does when it installs a package
    with tempfile.TemporaryDirectory(dir=o.folder, prefix="bench-scale-") as name:
        folder = Path(name)
        if o.segments:
            print(show("Segments", "segments", measure_segments(folder, o.segments), o.svg), flush=True)
        if o.partitions:
            found: Figures = {}
            for n in o.partitions:
                for command, line in measure_segments(folder, [n * 10], n).items():
                    found.setdefault(command, []).append((n, line[0][1]))
            print(show("Partitions of ten segments", "partitions", found, o.svg), flush=True)
        if o.rows:
            print(show("Rows of one segment", "rows", measure_rows(folder, o.rows), o.svg), flush=True)
        if o.wal_gib:
            print(show("A write-ahead log", "GiB", measure_log(folder, o.wal_gib), o.svg), flush=True)


def measure_rows(folder: Path, sizes: list[int]) -> Figures:
    """Of each number of rows: inspect, and an export of links."""
    found: Figures = {"inspect": [], "export --link": []}
    for rows in sizes:
        root = sparse_rows(folder / "sparse", rows)
        found["inspect"].append((rows, run("inspect", root, "--json")))
        found["export --link"].append((rows, run("export", root, folder / "out", "--link", "-q")))
        shutil.rmtree(folder / "out")
        shutil.rmtree(root)
    return found


def measure_log(folder: Path, sizes: list[float]) -> Figures:
    """Of each size of a log: inspect, which replays it."""
    found: Figures = {"inspect": []}
    for gib in sizes:
        root = with_log(folder / "log", gib)
        found["inspect"].append((gib, run("inspect", root, "--json")))
        shutil.rmtree(root)
    return found


if __name__ == "__main__":
    main()
