"""Loads over TLS: the real server behind a terminator, with its certificate alone and with one of ours."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from support.array_source import ArraySource, floats
from support.certificates import Authority
from support.milvus_server import shared_milvus

from milvus_offline.errors import TargetError
from milvus_offline.loading import run_load
from milvus_offline.targets import open_target

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> str:
    return urlsplit(shared_milvus(tmp_path_factory).uri).netloc


@contextlib.contextmanager
def terminator(upstream: str, authority: Authority, *, two_way: bool) -> Iterator[str]:
    """TLS on a port of its own, plain to `upstream`."""
    pair = authority.sign("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.set_alpn_protocols(["h2"])
    if two_way:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.file)
    host, _, port = upstream.rpartition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def serve(outer: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(outer, server_side=True) as safe,
            socket.create_connection((host, int(port))) as inner,
        ):
            back = threading.Thread(target=pump, args=(inner, safe), daemon=True)
            back.start()
            pump(safe, inner)
            back.join()

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"https://localhost:{listener.getsockname()[1]}"


def load(uri: str, name: str, state: Path, **files: Any) -> tuple[int, int]:
    source = ArraySource({name: {"_default": [(np.arange(500), floats(500))]}})
    report = run_load(source, open_target(uri, verify="full", **{k: str(v) for k, v in files.items()}), state=state)
    return report.exit_code, report.rows


def test_the_authority_alone_is_one_way_tls(upstream: str, authority: Authority, tmp_path: Path) -> None:
    with terminator(upstream, authority, two_way=False) as uri:
        assert load(uri, "one_way", tmp_path, ca_pem=authority.file) == (0, 500)
        assert load(uri, "one_way_too", tmp_path / "2", server_pem=authority.file) == (0, 500)
        with pytest.raises(TargetError, match="--ca-pem"):
            load(uri, "unknown", tmp_path / "3")


def test_two_way_tls(upstream: str, authority: Authority, tmp_path: Path) -> None:
    ours = authority.sign("client")
    with terminator(upstream, authority, two_way=True) as uri:
        files = {"ca_pem": authority.file, "client_pem": ours.certificate, "client_key": ours.key}
        assert load(uri, "two_way", tmp_path, **files) == (0, 500)
        with pytest.raises(TargetError, match="--client-pem"):
            load(uri, "no_client", tmp_path / "2", ca_pem=authority.file)
