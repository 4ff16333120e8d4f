"""An S3 server for the tests of a module, and an environment that leads to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bucket import ENVIRONMENT, S3Server, s3_server

from milvus_offline import buckets


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for key, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(key, value)
        buckets.forget()
        yield server
    buckets.forget()
