"""Before pymilvus opens a connection: can the address be reached at all, and does it speak what the target's URL says?

pymilvus has the same words for a name that nobody knows, a closed port, a web server, a wrong certificate and a hanging
machine. A few bytes on a socket of our own tell them apart. What goes through a proxy is not probed.
"""

from __future__ import annotations

import socket
import ssl
import time
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ...errors import TargetError
from .connection import Connection

HTTPS_PORT, MILVUS_PORT = 443, 19530
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What an HTTP/2 client begins with, and an empty SETTINGS frame (RFC 9113, 3.4); a server answers with its SETTINGS."""
_SETTINGS = 4
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG")
_NAMES, _EXPIRED, _NOT_YET = (62, 64), 10, 9
"""OpenSSL's verify codes: for a name and for an IP address, ...; 18 to 21 are the forms of an authority that is not known."""


def check_reachable(connection: Connection, seconds: float) -> None:
    """Raises TargetError, with what to do, when no Milvus server can be at the address. Takes `seconds` at most."""
    parts = urlsplit(connection.uri)
    host, tls = parts.hostname or "", connection.tls
    port = parts.port or (HTTPS_PORT if parts.scheme == "https" else MILVUS_PORT)
    if {"http", "https", "grpc", "all"} & getproxies().keys() and not proxy_bypass(host):
        return
    until = time.monotonic() + seconds
    stream = _connect(connection.name, host, port, seconds)
    try:
        if tls:
            stream.settimeout(max(0.1, until - time.monotonic()))
            stream = _encrypted(connection, stream, host)
        _speaks_http2(connection, stream, until)
    finally:
        stream.close()


def _connect(name: str, host: str, port: int, seconds: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=seconds)
    except socket.gaierror as e:
        raise TargetError(f"{name}: the name {host!r} is not known on this machine ({e.strerror}): check its spelling") from e
    except ConnectionRefusedError as e:
        raise TargetError(
            f"{name}: nothing listens on port {port} of {host}: start the server, or name its gRPC port (usually 19530)"
        ) from e
    except TimeoutError as e:
        raise TargetError(
            f"{name}: no answer from {host}:{port} within {seconds:.0f} s: check the address, and firewalls in between"
        ) from e
    except OSError as e:
        raise TargetError(f"{name}: {host}:{port} cannot be reached: {e.strerror or e}") from e


def _encrypted(connection: Connection, stream: socket.socket, host: str) -> ssl.SSLSocket:
    name = connection.name
    context = _context(connection)
    context.set_alpn_protocols(["h2"])
    try:
        return context.wrap_socket(stream, server_hostname=connection.server_name or host)
    except ssl.SSLCertVerificationError as e:
        raise TargetError(f"{name}: {_refused_certificate(e, connection, host)}") from e
    except ssl.SSLError as e:
        if e.reason in _NO_TLS:
            raise TargetError(f"{name}: the server speaks without TLS: use http://{urlsplit(connection.uri).netloc}") from e
        raise TargetError(f"{name}: TLS fails: {e.reason or e}{_client_hint(connection)}") from e
    except (TimeoutError, ConnectionError, EOFError) as e:
        how = "does not answer" if isinstance(e, TimeoutError) else "ends it"
        raise TargetError(
            f"{name}: accepts the connection, then {how}: the server is starting or hanging, or speaks without TLS "
            f"(http://{urlsplit(connection.uri).netloc})"
        ) from e


def _context(connection: Connection) -> ssl.SSLContext:
    authority = connection.server_pem or connection.ca_pem
    try:
        context = ssl.create_default_context(cafile=authority or None)
    except (ssl.SSLError, OSError) as e:
        raise TargetError(f"{authority}: cannot be read as certificates in PEM form: {e}") from e
    if connection.client_pem:
        key = connection.client_key
        try:
            context.load_cert_chain(connection.client_pem, key or None, "")  # a password would be asked for
        except (ssl.SSLError, OSError) as e:
            with_key = f"with {key} as its key" if key else "with its key (which may be in a file of its own: --client-key)"
            raise TargetError(f"{connection.client_pem}: cannot be read as a certificate in PEM form {with_key}: {e}") from e
    return context


def _refused_certificate(e: ssl.SSLCertVerificationError, connection: Connection, host: str) -> str:
    if e.verify_code in _NAMES:
        return (
            f"the server's certificate is for another name than {connection.server_name or host!r}: use its name "
            "in the address, or give it with --server-name"
        )
    if e.verify_code in (_EXPIRED, _NOT_YET):
        state = "out of date" if e.verify_code == _EXPIRED else "not valid yet"
        return f"the server's certificate is {state}: renew it, or set this machine's clock"
    file = connection.server_pem or connection.ca_pem
    known = f"{file} does not hold" if file else "this machine does not know"
    return f"{known} the authority of the server's certificate ({e.verify_message}): name that authority's file with --ca-pem"


def _client_hint(connection: Connection) -> str:
    if connection.client_pem:
        return ": the server may not know the authority that signed --client-pem"
    return ": the server may ask for a certificate of ours; name it with --client-pem and --client-key"


def check_plain(name: str, host: str, port: int, seconds: float) -> None:
    """The same for a server of Milvus 1.x, which never speaks TLS."""
    until = time.monotonic() + seconds
    with _connect(name, host, port, seconds) as stream:
        if not _greets(answer := _answer(name, stream, until)):
            what = "an HTTP server answers there that" if answer.startswith(b"HTTP/") else "what answers there"
            raise TargetError(f"{name}: {what} is not Milvus' gRPC service: is {port} its port (usually {MILVUS_PORT})?")


def _greets(answer: bytes) -> bool:
    """Whether this is how a gRPC server begins."""
    return len(answer) >= 9 and answer[3] == _SETTINGS and int.from_bytes(answer[:3], "big") % 6 == 0


def _answer(name: str, stream: socket.socket, until: float) -> bytes:
    """What the server says to a greeting; b"" where it closes the connection. Raises TargetError where it says nothing."""
    answer = b""
    try:
        stream.sendall(_PREFACE)
        while len(answer) < 9:
            stream.settimeout(max(0.1, until - time.monotonic()))
            if not (more := stream.recv(512)):
                break
            answer += more
    except TimeoutError as e:
        raise TargetError(
            f"{name}: accepts connections and does not answer: it is starting or hanging, or another program has this port"
        ) from e
    except ssl.SSLError:
        raise
    except ConnectionError:
        return b""
    return answer


def _speaks_http2(connection: Connection, stream: socket.socket, until: float) -> None:
    """Raises TargetError unless the server answers as a gRPC server does."""
    name = connection.name
    try:
        answer = _answer(name, stream, until)
    except ssl.SSLError as e:
        raise TargetError(f"{name}: TLS fails: {e.reason or e}{_client_hint(connection)}") from e
    if _greets(answer):
        return
    netloc = urlsplit(connection.uri).netloc
    if answer.startswith((b"HTTP/", b"<")):
        text = "an HTTP server answers there that is not Milvus' gRPC service: check the port (usually 19530)"
        raise TargetError(f"{name}: {text}")
    if answer[:2] == b"\x15\x03":
        raise TargetError(f"{name}: the server asks for TLS: use https://{netloc}")
    if answer:
        raise TargetError(f"{name}: another program has this port: it answers {answer[:20]!r}. Name Milvus' gRPC port")
    if connection.tls:
        raise TargetError(f"{name}: the server closes the connection{_client_hint(connection)}")
    raise TargetError(
        f"{name}: the connection is closed at once: the server may ask for TLS (https://{netloc}), be down behind a proxy, or "
        "not be Milvus"
    )
