"""An S3-compatible server on loopback (moto's), with a bucket, that can answer as busy servers do."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "reader",
    "AWS_SECRET_ACCESS_KEY": "secret-of-reader",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "backup"


class S3Server:
    """`url` is its endpoint. Every `busy_each`-th request is answered with 503 (0: none)."""

    def __init__(self, port: int, app: Any) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.requests: list[tuple[str, str]] = []
        self._app = app
        self._numbers = itertools.count(1)
        self.reset()

    def reset(self) -> None:
        """It answers as it did at the beginning; what it stores stays."""
        self.busy_each = 0
        self.refuse: Callable[[str, str], bool] | None = None
        """Which requests (method, path) are answered with 403."""
        self.refuse_with = "<Code>AccessDenied</Code><Message>Access Denied</Message>"
        self.before: Callable[[dict[str, Any]], None] | None = None
        """Called with each request (as WSGI has it) before it is answered; may change it."""
        self.tag = '"{}"'
        """With which ETag objects are answered; listings give their own."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if self.before is not None:
            self.before(environ)
        if self.busy_each and next(self._numbers) % self.busy_each == 0:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
        if self.refuse is not None and self.refuse(*self.requests[-1]):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [f"<Error>{self.refuse_with}</Error>".encode()]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            tagged = [(k, self.tag.format(v.strip('"'))) if k.lower() == "etag" else (k, v) for k, v in headers]
            return start_response(status, tagged, *rest)

        return self._app(environ, start)

    @functools.cached_property
    def client(self) -> Any:
        """A client of another make than the one under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        )

    def upload(self, folder: Path, prefix: str = "") -> None:
        """Puts all files below `folder` into the bucket, keys as their relative paths after `prefix`."""
        client = self.client
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=BUCKET, Key=prefix + path.relative_to(folder).as_posix(), Body=path.read_bytes())

    def keys(self, prefix: str = "") -> dict[str, bytes]:
        """The objects below `prefix` with their bytes."""
        client = self.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        names = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {name: client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """The objects below `prefix` with their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def clear(self) -> None:
        """Removes all objects."""
        names = list(self.sizes())
        for at in range(0, len(names), 1000):
            some = {"Objects": [{"Key": name} for name in names[at : at + 1000]]}
            self.client.delete_objects(Bucket=BUCKET, Delete=some)

    def buckets(self) -> list[str]:
        return [b["Name"] for b in self.client.list_buckets()["Buckets"]]


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs a server of its own, with the bucket `backup`."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None: ...

    app = S3Server(0, DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    app.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        app.client.create_bucket(Bucket=BUCKET)
        yield app
    finally:
        server.shutdown()
        thread.join()
