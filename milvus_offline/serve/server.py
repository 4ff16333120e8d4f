"""The gRPC side: a server that hands requests to `Answers`, within limits, and says what it did.

No request can end the process: what is no message is answered as a 1.1.1 server answers it, damage and faults become a
Status, the size of messages, the threads and the searches at a time are bounded, and a search stops when its client has gone.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MilvusOfflineError, TargetError, UsageError
from ..names import printable
from ..search.exact import Cancelled
from ..targets.milvus1.proto import METHODS, SERVICE, messages
from . import rules
from .answers import Answer, Answers
from .rules import BadParameters, Code, Refused

HANDLERS = 16
"""Requests that are worked on or wait for their turn; others wait in gRPC."""
GRACE_SECONDS = 2.0
READ_ONLY = frozenset(
    {
        "CreateCollection", "DropCollection", "CreateIndex", "DropIndex", "CreatePartition", "DropPartition",
        "Insert", "DeleteByID", "Flush", "Compact",
    }
)  # fmt: skip
_SEARCHES = ("Search", "SearchByID", "SearchInFiles")
_WAITING = 1000
_log = logging.getLogger("milvus_offline.serve")


@dataclass(frozen=True)
class Access:
    """Who may connect: `certificate` and `key` (PEM files) for TLS, `token` that clients send as `authorization: Bearer …`."""

    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None


class Server:
    """The service on an address; use as a context manager. `address` is HOST:PORT with the port that was taken.

    Raises UsageError for a certificate that cannot be used, TargetError when the address is taken.
    """

    def __init__(self, answers: Answers, listen: str, *, max_message: int, access: Access) -> None:
        import grpc

        self._answers, self._access = answers, access
        self._pool = futures.ThreadPoolExecutor(HANDLERS, thread_name_prefix="request")
        self._server = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=_WAITING,
            options=[
                ("grpc.max_receive_message_length", max_message),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        handlers = {method: self._handler(method, *types) for method, types in METHODS.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.strip("/"), handlers),))
        host = listen.rpartition(":")[0]
        try:
            port = self._server.add_secure_port(listen, self._credentials()) if access.certificate else None
            port = self._server.add_insecure_port(listen) if port is None else port
        except RuntimeError as e:
            raise TargetError(f"{listen}: cannot listen there: the address is in use, or is not one of this machine") from e
        if not port:
            raise TargetError(f"{listen}: cannot listen there: the address is in use, or is not one of this machine")
        self.address = f"{host}:{port}"

    def _credentials(self) -> Any:
        import grpc

        access = self._access
        assert access.certificate is not None
        try:
            key = (access.key or access.certificate).read_bytes()
            return grpc.ssl_server_credentials([(key, access.certificate.read_bytes())])
        except OSError as e:
            raise UsageError(f"{e.filename}: cannot be read: {e.strerror}") from e

    def __enter__(self) -> Server:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(GRACE_SECONDS).wait()
        self._pool.shutdown(cancel_futures=True)  # the clients have gone: what still runs ends soon

    def _handler(self, method: str, asked: str, answered: str) -> Any:
        import grpc

        request_class, reply_class = messages()[asked], messages()[answered]

        def handle(raw: bytes, context: Any) -> bytes:
            began = time.monotonic()
            code, words, reply = Code.SUCCESS, "OK", b""
            broken_off: tuple[str, str] | None = None
            try:
                self._require_token(context)
                reply = _reply(reply_class, answered, code, words, self._answer(method, request_class, raw, context))
            except Refused as e:
                code, words = e.code, e.reason
            except tuple(_BROKEN_OFF) as e:
                broken_off = _BROKEN_OFF[type(e)]
            except MemoryError:
                code, words = Code.UNEXPECTED_ERROR, "out of memory"
            except (MilvusOfflineError, OSError) as e:
                code, words = Code.UNEXPECTED_ERROR, str(e)
                _log.warning("%s: %s", method, printable(e))
            except Exception:  # whatever it is, the next request is answered
                code, words = Code.UNEXPECTED_ERROR, f"{method} failed; the log of milvus-offline serve says why"
                _log.exception("%s failed", method)
            finally:
                milliseconds = (time.monotonic() - began) * 1000
                ended = broken_off[0] if broken_off else int(code)
                _log.info("%s %s %s %s %.1f ms", context.peer(), method, len(raw), ended, milliseconds)
            if broken_off:
                context.abort(grpc.StatusCode[broken_off[0]], broken_off[1])
            return reply or _reply(reply_class, answered, code, words, {})

        return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=None, response_serializer=None)

    def _answer(self, method: str, request_class: Any, raw: bytes, context: Any) -> Answer:
        from google.protobuf.message import DecodeError

        try:
            request = request_class.FromString(raw)
        except DecodeError as e:
            raise _BadMessage from e
        if method in READ_ONLY:
            raise rules.read_only(method)
        if method in _SEARCHES:
            return getattr(self._answers, method)(request, _gone(context))  # type: ignore[no-any-return]
        return getattr(self._answers, method)(request)  # type: ignore[no-any-return]

    def _require_token(self, context: Any) -> None:
        token = self._access.token
        if token is None:
            return
        given = next((str(v) for k, v in context.invocation_metadata() if k == "authorization"), "")
        if not hmac.compare_digest(given.removeprefix("Bearer ").encode(), token.encode()):
            raise _NoToken


class _NoToken(Exception):
    """A client that does not know the token."""


class _BadMessage(Exception):
    """Bytes that protobuf does not take for the message."""


_BROKEN_OFF: Mapping[type[Exception], tuple[str, str]] = {
    _NoToken: ("UNAUTHENTICATED", "expected metadata 'authorization: Bearer TOKEN' with the token"),
    _BadMessage: ("INTERNAL", "the request is no message of this method"),
    BadParameters: ("UNKNOWN", "Unexpected error in RPC handling"),
    Cancelled: ("CANCELLED", "the client has gone"),
}
"""Calls that end with a state of gRPC, and have no reply."""


def _gone(context: Any) -> Callable[[], bool]:
    """Whether the client does not wait for the answer any more."""
    ended = threading.Event()
    context.add_callback(ended.set)
    return ended.is_set


def _reply(reply_class: Any, answered: str, code: Code, words: str, answer: Answer) -> bytes:
    """A reply as bytes. A reason may hold what a client sent: what UTF-8 cannot say is replaced."""
    status = {"error_code": int(code), "reason": words.encode("utf-8", "replace").decode()}
    if answered == "Status":
        return reply_class(**status).SerializeToString()  # type: ignore[no-any-return]
    if isinstance(answer, bytes):
        return reply_class(status=status).SerializeToString() + answer  # type: ignore[no-any-return]
    return reply_class(status=status, **answer).SerializeToString()  # type: ignore[no-any-return]
