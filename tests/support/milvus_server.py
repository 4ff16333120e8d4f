"""A real Milvus server for tests: the PyPI package `milvus` 2.3.5, reachable on the loopback interface only.

The server binds wildcard addresses, so it runs in a network namespace of its own. This file is both sides of it: tests use
`MilvusServer`; run as a program it opens a port on 127.0.0.1, moves into a new namespace, starts the server there and
relays the port. It takes `kill`, `start` and `stop` on its standard input and ends when that is closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PROXY_PORT, S3_PORT = 19530, 9000
S3_BUCKET = "a-bucket"
S3_OPTIONS = (
    "common.storageType=minio",
    "minio.address=127.0.0.1",
    f"minio.port={S3_PORT}",
    "minio.accessKeyID=minioadmin",
    "minio.secretAccessKey=minioadmin",
    "minio.useSSL=false",
    f"minio.bucketName={S3_BUCKET}",
    "minio.rootPath=files",
)


class Unavailable(Exception):
    """No server can run here: another platform, no package, or no permission for a namespace."""


class MilvusServer:
    """The server as a context manager. `uri` stays the same over `kill` and `start`."""

    def __init__(self, data: Path, *options: str, watch: int | None = None) -> None:
        """`options` are settings as `key=value`; `S3` alone keeps segments in an S3-compatible server (moto's), see `s3_url`.
        With `watch` the server lives as long as that process, not as this object."""
        if not sys.platform.startswith("linux"):
            raise Unavailable("the server package runs on Linux only")
        try:
            import milvus  # noqa: F401
        except ImportError as e:
            raise Unavailable("the package `milvus` 2.3.5 is not installed") from e
        self.data = data
        data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(data), str(watch or 0), *options]
        log = (data / "launcher.log").open("wb")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        port, _, s3_port = self._answer().partition(" ")
        self.uri = f"http://127.0.0.1:{port}"
        self.s3_url = f"http://127.0.0.1:{s3_port}" if s3_port else ""

    @property
    def storage(self) -> Path:
        """Where the server keeps its files; bulk imports are read from below it."""
        return self.data / "data"

    @property
    def pid(self) -> int:
        """The launcher, whose network namespace is the server's."""
        return self._process.pid

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line.startswith("ok"):
            self.close()
            raise Unavailable((self.data / "launcher.log").read_text(errors="replace")[-2000:] or "the launcher died")
        return line[3:]

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._answer()

    def kill(self) -> None:
        """Ends the server as a power cut would: SIGKILL."""
        self._tell("kill")

    def start(self) -> None:
        """Starts it again on the same data; returns when it is healthy."""
        self._tell("start")

    def close(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> MilvusServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def shared_server(folder: Path, owner: int) -> str:
    """The URI of one server for all test workers: the first to ask starts it, it ends with the process `owner`. Its lease is
    long, so that it outlives a machine that stands still for a while; where it ends all the same, it is started again."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = folder / "uri"
        if not known.exists():
            try:
                known.write_text(MilvusServer(folder / "data", "common.session.ttl=120", watch=owner).uri)
            except Unavailable as e:
                known.write_text(f"unavailable: {e}")
        uri = known.read_text()
    if uri.startswith("unavailable"):
        raise Unavailable(uri)
    return uri


@dataclass(frozen=True)
class Shared:
    """The server that all test workers share. What is imported lies below `storage`."""

    uri: str
    storage: Path


def shared_milvus(tmp_path_factory: Any) -> Shared:
    """The shared server, for a session's or a module's fixture. Skips loudly where none can run, and fails with CI=true."""
    from support.absent import absent

    base = tmp_path_factory.getbasetemp()
    worker = "PYTEST_XDIST_WORKER" in os.environ
    owner = os.getppid() if worker else os.getpid()
    folder = (base.parent if worker else base) / "milvus"
    try:
        return Shared(shared_server(folder, owner), folder / "data" / "data")
    except Unavailable as e:
        absent(f"NO MILVUS SERVER, so nothing is known about loading into one: {e}")


def own_name(test: str) -> str:
    """A collection's name that no other test on the shared server has: `test` is the test's name, with its parameters."""
    return re.sub(r"\W", "_", f"t{zlib.crc32(test.encode()):08x}_{test}", flags=re.ASCII)[:60]


# The program ---------------------------------------------------------------------------------------------------------


def main() -> int:
    data, watch, options = Path(sys.argv[1]).absolute(), int(sys.argv[2]), sys.argv[3:]
    listener = socket.create_server(("127.0.0.1", 0))
    with_s3 = "S3" in options
    s3_listener = socket.create_server(("127.0.0.1", 0)) if with_s3 else None
    _enter_namespace()
    if s3_listener:
        _start_s3(s3_listener)
        options = [*(o for o in options if o != "S3"), *S3_OPTIONS]
    import milvus

    port = listener.getsockname()[1]
    threading.Thread(target=_relay, args=(listener, PROXY_PORT), daemon=True).start()
    server: milvus.MilvusServer | None = None

    class Config(milvus.MilvusServerConfig):  # type: ignore[misc]
        def try_bind_port(self, port: int) -> socket.socket | None:
            """As the package does it, but connections of a killed server do not count."""
            try:
                return socket.create_server(("127.0.0.1", port))
            except OSError:
                return None

    def start() -> milvus.MilvusServer:
        config = Config()
        new = milvus.MilvusServer(config)
        new.set_base_dir(str(data))
        config.configs["proxy_port"] = PROXY_PORT
        for option in options:
            key, _, value = option.partition("=")
            kind = config.configurable_items[key][0] if key in config.configurable_items else str
            config.set(key, value == "true" if kind is bool else kind(value))
        new.start()
        return new

    server = start()
    print("ok", port, *([s3_listener.getsockname()[1]] if s3_listener else []), flush=True)
    while watch and Path(f"/proc/{watch}").exists():
        if server.server_proc and server.server_proc.poll() is not None:
            server = start()
        time.sleep(0.5)
    for line in sys.stdin:
        word = line.strip()
        if word == "kill" and server.server_proc:
            server.server_proc.kill()
            server.server_proc.wait()
        elif word == "start":
            server = start()
        print("ok", flush=True)
    server.stop()
    return 0


def _enter_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "no network namespace: " + os.strerror(ctypes.get_errno()))
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # `ip link set lo up`
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))


def _start_s3(listener: socket.socket) -> None:
    """An S3 server with the bucket in this namespace, which comes out at `listener`."""
    import boto3
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer("127.0.0.1", S3_PORT, verbose=False).start()
    keys = {"aws_access_key_id": "minioadmin", "aws_secret_access_key": "minioadmin", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{S3_PORT}", **keys).create_bucket(Bucket=S3_BUCKET)
    threading.Thread(target=_relay, args=(listener, S3_PORT), daemon=True).start()


def _relay(listener: socket.socket, port: int) -> None:
    while True:
        outer, _ = listener.accept()
        try:
            inner = socket.create_connection(("127.0.0.1", port))
        except OSError:
            outer.close()
            continue
        for source, sink in ((outer, inner), (inner, outer)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 18))
    with contextlib.suppress(OSError):
        while got := source.recv_into(buffer):
            sink.sendall(buffer[:got])
    for s in (source, sink):
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)
            s.close()


if __name__ == "__main__":
    sys.exit(main())
