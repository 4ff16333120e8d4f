#!/usr/bin/env python3
"""Measures reading a store out of a bucket against plain ranged gets by the same client; the fastest of several runs counts.

    python scripts/bench_buckets.py [--gib 2] [--runs 3] [--folder DIR]

The server is a small one of this file, in a process of its own, that answers what S3's clients ask when they read, and sends
files as fast as the system can: an emulator would be the limit. Bars: `verify`, which reads every byte, at 70 % of the speed of
plain gets, in less than 250 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from bench_scale import Spent, run
from make_store import make_store

BUCKET = "bench"
_SPEED, _MIB = 0.7, 250e6 / 2**20
_PLAIN = """
import sys
from concurrent.futures import ThreadPoolExecutor
import s3fs
fs = s3fs.S3FileSystem()
sizes = {key: info["size"] for key, info in fs.find(sys.argv[1], detail=True).items()}
ranges = [(key, at, min(at + (4 << 20), size)) for key, size in sizes.items() for at in range(0, size, 4 << 20)]
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    for data in pool.map(lambda r: fs.cat_file(r[0], start=r[1], end=r[2]), ranges):
        pass
"""
"""All bytes by requests of 4 MiB, some at a time, as our reader asks for them."""


class Files(BaseHTTPRequestHandler):
    """The files below a folder as the objects of a bucket: ListObjectsV2, HEAD and GET with a range."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the last bytes of an answer would wait for the client, 40 ms

    def __init__(self, root: Path, *arguments: object) -> None:
        self._root = root
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = self._root / unquote(url.path).lstrip("/").partition("/")[2]
        if "list-type" in query:
            self._list(query.get("prefix", ""), query.get("delimiter", ""))
        elif path.is_file():
            self._send(path)
        else:
            self._head(404, 0)

    def _send(self, path: Path) -> None:
        size = path.stat().st_size
        first, last = 0, size - 1
        if asked := self.headers.get("Range"):
            start, _, end = asked.partition("=")[2].partition("-")
            first, last = int(start), min(int(end or last), last)
            self._head(206, last - first + 1, {"Content-Range": f"bytes {first}-{last}/{size}"})
        else:
            self._head(200, size)
        if self.command == "GET":
            with path.open("rb") as f:
                while first <= last:
                    first += os.sendfile(self.connection.fileno(), f.fileno(), first, last + 1 - first)

    def _head(self, code: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(length), "ETag": '"0"', **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _list(self, prefix: str, delimiter: str) -> None:
        found, folders = [], set()
        for path in sorted(p for p in self._root.rglob("*") if p.is_file()):
            key = path.relative_to(self._root).as_posix()
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                when = "<LastModified>2021-01-01T00:00:00.000Z</LastModified>"
                found.append(f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size>{when}</Contents>")
        found += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
        head = "<ListBucketResult><IsTruncated>false</IsTruncated>"
        body = f"<?xml version='1.0'?>{head}{''.join(found)}</ListBucketResult>".encode()
        self._head(200, len(body))
        self.wfile.write(body)


class Server(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def served(root: Path) -> Iterator[None]:
    """The folder as the bucket, and an environment in which clients find it."""
    command = [sys.executable, __file__, "--serve", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{process.stdout.readline().strip()}",
            AWS_ACCESS_KEY_ID="bench",
            AWS_SECRET_ACCESS_KEY="bench",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
        )
        try:
            yield
        finally:
            process.terminate()


def plain(inflight: int) -> float:
    """Seconds of the client alone."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", _PLAIN, f"{BUCKET}/store", str(inflight)], check=True)
    return time.perf_counter() - begun


def measure(folder: Path, gib: float, runs: int) -> tuple[dict[str, float], float]:
    """Seconds by way, the least of `runs` that take turns, and the peak memory in MiB of ours."""
    make_store(folder / "store", rows=int(gib * 2**30) // 512, dimension=128, segments=max(2, round(gib * 4)), deleted=0)
    os.sync()  # or the disk would be busy with the store while an export writes
    source = f"s3://{BUCKET}/store"
    found: dict[str, float] = {}
    peak = 0.0

    def note(name: str, seconds: float) -> None:
        found[name] = min(seconds, found.get(name, seconds))

    with served(folder), tempfile.TemporaryDirectory(dir=folder.parent) as out:
        for _ in range(runs):
            note("plain ranged gets, 3 at a time", plain(3))
            read: Spent = run("verify", source, "-q")
            note("milvus-offline verify", read.seconds)
            for _ in range(2):  # the second one finds memory to write to, see `bench_export.timed`
                written: Spent = run("export", source, f"{out}/export", "-q", "--no-sync")
                shutil.rmtree(f"{out}/export")
                note("milvus-offline export", written.seconds)
            peak = max(peak, read.mib, written.mib)
    return found, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.serve:
        server = Server(("127.0.0.1", 0), functools.partial(Files, o.serve))
        print(server.server_address[1], flush=True)
        server.serve_forever()
    with tempfile.TemporaryDirectory(dir=o.folder, prefix="bench-buckets-") as name:
        found, peak = measure(Path(name) / "bucket", o.gib, o.runs)
    first = next(iter(found.values()))
    for way, seconds in found.items():
        print(f"{way:32} {seconds:7.2f} s {o.gib * 1024 / seconds:7.0f} MiB/s {first / seconds:6.0%}")
    print(f"{'peak memory':32} {peak:7.0f} MiB   bars: verify at {_SPEED:.0%}, {_MIB:.0f} MiB")


if __name__ == "__main__":
    main()
