"""`/healthz` for load balancers and process managers: an HTTP answer beside the gRPC service."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ..errors import TargetError

_SECONDS = 5
_AT_ONCE = 16


class Health:
    """Answers GET /healthz on an address with what `state` says; use as a context manager. Raises TargetError."""

    def __init__(self, listen: str, state: Callable[[], Mapping[str, Any]]) -> None:
        host, _, port = listen.rpartition(":")
        places = threading.BoundedSemaphore(_AT_ONCE)

        class Handler(BaseHTTPRequestHandler):
            timeout = _SECONDS

            def do_GET(self) -> None:
                known = self.path.split("?")[0] in ("/healthz", "/")
                body = json.dumps(dict(state()) if known else {"error": "only /healthz is here"}).encode() + b"\n"
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        class Bounded(ThreadingHTTPServer):
            daemon_threads = True

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
