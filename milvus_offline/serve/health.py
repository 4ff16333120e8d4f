"""`/healthz` for load balancers and process managers: an HTTP answer beside the gRPC service."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import TargetError

_SECONDS = 5
_AT_ONCE = 16
_LONGEST = 4096
_PATHS = (b"/", b"/healthz")


class Health:
    """Answers GET /healthz on an address with what `state` says; use as a context manager. Raises TargetError.

    A request is one line; headers are not read. The library's own HTTP server would take longer to load than all of this.
    """

    def __init__(self, listen: str, state: Callable[[], Mapping[str, Any]]) -> None:
        host, _, port = listen.rpartition(":")
        places = threading.BoundedSemaphore(_AT_ONCE)

        class Handler(socketserver.StreamRequestHandler):
            timeout = _SECONDS

            def handle(self) -> None:
                words = self.rfile.readline(_LONGEST).split()
                known = len(words) > 1 and words[0] in (b"GET", b"HEAD") and words[1].partition(b"?")[0] in _PATHS
                body = json.dumps(dict(state()) if known else {"error": "only GET /healthz is answered"}).encode() + b"\n"
                status = b"200 OK" if known else b"404 Not Found"
                head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                self.wfile.write(head % (status, len(body)) + (b"" if words[:1] == [b"HEAD"] else body))

        class Bounded(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = _AT_ONCE

            def process_request(self, request: Any, client_address: Any) -> None:
                if places.acquire(blocking=False):
                    super().process_request(request, client_address)
                else:
                    self.shutdown_request(request)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    places.release()

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        try:
            self._server = Bounded((host.strip("[]"), int(port)), Handler)
        except OSError as e:
            raise TargetError(f"{listen}: cannot listen there for /healthz: {e.strerror}") from e
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
