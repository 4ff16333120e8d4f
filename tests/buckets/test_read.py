"""Stores that lie in a bucket are read in place, over real HTTP, and give what they give on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bucket import BUCKET, ENVIRONMENT, S3Server, s3_server
from support.command import call, exported, manifest
from support.real import STORES, truth

from milvus_offline import buckets

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        for name in NAMES:
            running.upload(STORES / name / "store", f"cold/{name}/")
        yield running


@pytest.fixture(scope="module", autouse=True)
def environment(server: S3Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(key, value)
        buckets.forget()
        yield
    buckets.forget()


def url(name: str) -> str:
    return f"s3://{BUCKET}/cold/{name}"


def catalog(name: str) -> list[str]:
    return ["--catalog", f"{url(name)}/meta.default.sql"] if name.startswith("mysql") else []


def local(document: Any, name: str) -> Any:
    """A document with the paths that the store has on the disk, without what only a bucket has."""
    if isinstance(document, dict):
        left_out = ("bucket", "next", "path", "seconds")
        return {k: local(v, name) for k, v in document.items() if k not in left_out}
    if isinstance(document, list):
        return [local(v, name) for v in document]
    return document.replace(url(name), str(STORES / name / "store")) if isinstance(document, str) else document


@pytest.mark.parametrize("name", NAMES)
def test_inspect_and_verify_say_the_same_as_on_a_disk(name: str) -> None:
    here = STORES / name / "store"
    there = ["--catalog", str(here / "meta.default.sql")] if catalog(name) else []
    for command in ("inspect", "verify"):
        remote, plain = call(command, url(name), "--json", *catalog(name)), call(command, here, "--json", *there)
        assert remote.code == plain.code, remote.err
        assert local(remote.json, name) == local(plain.json, name)
        assert remote.json["bucket"]["requests"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_export_equals_the_server(name: str, tmp_path: Path) -> None:
    done = call("export", url(name), tmp_path / "out", "--json", *catalog(name))
    assert done.code in (0, 3), done.err
    assert exported(tmp_path / "out") == truth(name)
    assert manifest(tmp_path / "out")["source"]["path"].startswith("s3://")
    assert done.json["bucket"]["requests"] > 0
    assert done.json["bucket"]["retries"] == 0
