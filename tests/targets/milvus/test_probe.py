"""An address without a Milvus server is told apart before pymilvus speaks, each cause in words of its own."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.certificates import Authority

from milvus_offline.errors import TargetError
from milvus_offline.targets.milvus.client import Client
from milvus_offline.targets.milvus.connection import Connection
from milvus_offline.targets.milvus.probe import check_reachable


class _Nothing(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> None:
        return None


@contextlib.contextmanager
def grpc_server(credentials: Any = None) -> Iterator[int]:
    """A gRPC server without any method."""
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[_Nothing()])
    port = server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


def of(pair: Any, authority: Path | None = None) -> Any:
    chain = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    return grpc.ssl_server_credentials(chain, authority.read_bytes() if authority else None, authority is not None)


def refused(uri: str, seconds: float = 10, **files: Any) -> str:
    with pytest.raises(TargetError) as e:
        check_reachable(Connection(uri, **{k: str(v) for k, v in files.items()}), seconds)
    return str(e.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_a_server_is_reached(authority: Authority) -> None:
    with grpc_server() as port:
        check_reachable(Connection(f"http://localhost:{port}"), 10)
    with grpc_server(of(authority.sign("localhost"))) as port:
        check_reachable(Connection(f"https://localhost:{port}", ca_pem=str(authority.file)), 10)
        check_reachable(Connection(f"http://localhost:{port}", ca_pem=str(authority.file)), 10)


def test_a_server_that_wants_a_certificate(authority: Authority) -> None:
    mine = authority.sign("client")
    with grpc_server(of(authority.sign("localhost"), authority.file)) as port:
        uri, files = f"https://localhost:{port}", {"ca_pem": str(authority.file)}
        check_reachable(Connection(uri, client_pem=str(mine.certificate), client_key=str(mine.key), **files), 10)
        assert "--client-pem and --client-key" in refused(uri, **files)


def test_a_name_that_nobody_knows() -> None:
    assert "the name 'milvus.invalid' is not known" in refused("http://milvus.invalid:19530")


def test_a_port_that_nobody_listens_on() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        assert "nothing listens" in refused(f"http://127.0.0.1:{s.getsockname()[1]}")


def test_a_port_that_hangs() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        assert "does not answer" in refused(f"http://127.0.0.1:{s.getsockname()[1]}", 0.2)
        assert "then does not answer" in refused(f"https://127.0.0.1:{s.getsockname()[1]}", 0.2)


def test_a_web_server() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "an HTTP server answers there" in refused(f"http://127.0.0.1:{server.server_port}")
        assert "use http://" in refused(f"https://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_another_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        threading.Thread(target=lambda: s.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), daemon=True).start()
        assert "another program has this port: it answers b'SSH-2.0-" in refused(f"http://127.0.0.1:{s.getsockname()[1]}")


def test_a_grpc_server_that_is_not_milvus() -> None:
    with grpc_server() as port, pytest.raises(TargetError, match=f"not as Milvus 2 or newer does.* milvus1://localhost:{port}"):
        Client(Connection(f"http://localhost:{port}"))


def test_an_ipv6_address_keeps_its_brackets() -> None:
    assert Connection("http://[::1]:19530/db").name == "http://[::1]:19530/db"
    assert Connection("http://[::1]:19530").base == "http://[::1]:19530"


def test_tls_where_there_is_none_and_none_where_there_is(authority: Authority) -> None:
    with grpc_server() as port:
        assert f"use http://localhost:{port}" in refused(f"https://localhost:{port}")
    with grpc_server(of(authority.sign("localhost"))) as port:
        assert f"https://localhost:{port}" in refused(f"http://localhost:{port}")


def test_a_certificate_is_refused_with_its_reason(authority: Authority, tmp_path: Path) -> None:
    with grpc_server(of(authority.sign("milvus.example"))) as port:
        uri = f"https://localhost:{port}"
        assert "--server-name" in refused(uri, ca_pem=authority.file)
        assert "--server-name" in refused(uri.replace("localhost", "127.0.0.1"), ca_pem=authority.file)
        check_reachable(Connection(uri, ca_pem=str(authority.file), server_name="milvus.example"), 10)
        assert re.search("this machine does not know the authority.*--ca-pem", refused(uri))
        assert "does not hold the authority" in refused(uri, ca_pem=Authority(tmp_path, "stranger").file)
    with grpc_server(of(authority.sign("localhost", ended=True))) as port:
        assert "out of date" in refused(f"https://localhost:{port}", ca_pem=authority.file)


def test_files_that_are_no_certificates(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no certificate")
    with grpc_server(of(authority.sign("localhost"))) as port:
        assert "x.pem" in refused(f"https://localhost:{port}", ca_pem=tmp_path / "x.pem")
        mine = authority.sign("client").certificate
        assert "client.crt: cannot be read" in refused(f"https://localhost:{port}", client_pem=mine)
        assert "--client-key" in refused(f"https://localhost:{port}", client_pem=mine)
