"""Stores that lie in a bucket are read in place, over real HTTP, and give what they give on a disk."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.registry import _registry as imported_filesystems
from support.bucket import BUCKET, ENVIRONMENT, S3Server, s3_server
from support.builder import StoreBuilder, rows
from support.command import call, exported, manifest
from support.real import STORES, truth

from milvus_offline import buckets, fileio
from milvus_offline.buckets import objects
from milvus_offline.buckets.objects import SMALL
from milvus_offline.buckets.reading import BLOCK_BYTES
from milvus_offline.errors import DamageError, StoreError

pytestmark = pytest.mark.server

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def environment(server: S3Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
            patch.setenv(key, value)
        buckets.forget()
        yield
    buckets.forget()


@pytest.fixture(autouse=True)
def answers(server: S3Server) -> Iterator[None]:
    """No test finds the server as another one left it."""
    yield
    server.reset()


@pytest.fixture(scope="module")
def stored(server: S3Server) -> Callable[[str], None]:
    """Puts a real store into the bucket, once."""

    def put(name: str) -> None:
        server.upload(STORES / name / "store", f"cold/{name}/")

    return functools.cache(put)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, stored: Callable[[str], None]) -> str:
    """Each real store, in the bucket."""
    stored(request.param)
    return str(request.param)


@pytest.fixture
def partitions(stored: Callable[[str], None]) -> str:
    stored("partitions")
    return url("partitions")


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


def test_inspect_and_verify_say_the_same_as_on_a_disk(name: str) -> None:
    here = STORES / name / "store"
    there = ["--catalog", str(here / "meta.default.sql")] if catalog(name) else []
    for command in ("inspect", "verify"):
        remote, plain = call(command, url(name), "--json", *catalog(name)), call(command, here, "--json", *there)
        assert remote.code == plain.code, remote.err
        assert local(remote.json, name) == local(plain.json, name)
        assert remote.json["bucket"]["requests"] > 0


def test_export_equals_the_server(name: str, tmp_path: Path) -> None:
    done = call("export", url(name), tmp_path / "out", "--json", *catalog(name))
    assert done.code == (3 if any(f["severity"] != "info" for f in done.json["findings"]) else 0), done.err
    assert exported(tmp_path / "out") == truth(name)
    assert manifest(tmp_path / "out")["source"]["path"].startswith("s3://")
    assert done.json["bucket"]["requests"] > 0
    assert done.json["bucket"]["retries"] == 0


def test_a_busy_server_costs_repeated_requests_only(server: S3Server, partitions: str, tmp_path: Path) -> None:
    buckets.forget()
    server.busy_each = 3
    try:
        done = call("export", partitions, tmp_path / "out", "--json")
    finally:
        server.busy_each = 0
    assert done.code == 0, done.err
    assert exported(tmp_path / "out") == truth("partitions")
    spent = done.json["bucket"]
    assert 0 < spent["retries"] <= spent["requests"] // 3


def test_a_folder_is_listed_once(server: S3Server, partitions: str) -> None:
    buckets.forget()
    server.requests.clear()
    assert call("inspect", partitions).code == 0
    listings = [path for method, path in server.requests if method == "GET" and path.rstrip("/") == f"/{BUCKET}"]
    assert len(listings) <= 2  # the store, and what lies beside it, where a configuration may be


def test_a_listing_of_many_pages_is_read_to_its_end(server: S3Server, partitions: str, tmp_path: Path) -> None:
    buckets.forget()
    pages: list[str] = []

    def shorten(request: dict[str, Any]) -> None:
        if "list-type" in request["QUERY_STRING"]:
            request["QUERY_STRING"] += "&max-keys=5"
            pages.append(request["QUERY_STRING"])

    server.before = shorten
    try:
        done = call("export", partitions, tmp_path / "out")
        assert done.code == 0 and len(pages) > 5, done.err
        server.refuse = lambda method, path: "continuation-token" in pages[-1]
        assert "no permission" in sentence("inspect", partitions)
    finally:
        server.before = server.refuse = None
    assert exported(tmp_path / "out") == truth("partitions")


def test_large_files_are_read_by_a_few_ranged_requests(server: S3Server, tmp_path: Path) -> None:
    buckets.forget()
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=512)
    made = builder.segment("faces", rows(range(15_000), dim=512), deleted=range(3000, 9000))
    builder.write()
    server.upload(tmp_path / "store", "large/")
    server.requests.clear()
    done = call("export", f"s3://{BUCKET}/large", tmp_path / "out", "--jobs", "1", "--json")
    assert done.code == 0, done.err
    call("export", tmp_path / "store", tmp_path / "plain")
    assert exported(tmp_path / "out") == exported(tmp_path / "plain")
    size = made.raw.stat().st_size
    asked = [path for method, path in server.requests if method == "GET" and path.endswith(".rv")]
    assert size > 28 << 20
    assert len(asked) <= size // BLOCK_BYTES + 4
    assert done.json["bucket"]["bytes_read"] < 1.001 * sum(p.stat().st_size for p in (tmp_path / "store").rglob("*.*"))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_no_byte_of_a_large_file_is_asked_for_twice(
    jobs: str, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tasks share a segment: none reads ahead into what is another one's."""
    buckets.forget()
    monkeypatch.setattr("milvus_offline.targets.hdf5.TASK_BYTES", 11 << 20)
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(17_000), dim=512), deleted=[5, *range(9000, 9100), 16_999])
    builder.write()
    server.upload(tmp_path / "store", "shared/")
    asked: dict[str, list[tuple[int, int]]] = {".rv": [], ".uid": []}

    def before(request: dict[str, Any]) -> None:
        if span := request.get("HTTP_RANGE"):
            for suffix in (s for s in asked if request["PATH_INFO"].endswith(s)):
                first, last = span.removeprefix("bytes=").split("-")
                asked[suffix].append((int(first), int(last)))

    server.before = before
    assert call("export", f"s3://{BUCKET}/shared", tmp_path / "out", "--jobs", jobs).code == 0
    few = 2000  # of headers, and of ids that are looked at
    for spans in ([s for s in found if s[1] - s[0] > few] for found in asked.values()):
        spans.sort()
        assert spans and all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    call("export", tmp_path / "store", tmp_path / "plain")
    assert exported(tmp_path / "out") == exported(tmp_path / "plain")


def test_any_part_of_a_file_can_be_read(server: S3Server) -> None:
    data = np.random.default_rng(3).bytes((20 << 20) + 77)
    server.client.put_object(Bucket=BUCKET, Key="parts/data", Body=data)
    fd = fileio.open_read(f"s3://{BUCKET}/parts/data")
    try:
        assert fileio.size_of(fd) == len(data)
        assert os.pread(fd, 10, 0) == b"", "code that knows nothing of buckets finds nothing, never other bytes"
        at = 0
        for step in [8, 100, 1 << 20, 1 << 20, 3 << 20, 9 << 20, 5, 1 << 20, -(14 << 20), 1 << 20, 1 << 20, 6 << 20]:
            at, length = at + min(0, step), max(step, 1 << 16) if step > 1000 else abs(step) % 1000 + 1
            buffer = bytearray(length)
            fileio.read_into(fd, memoryview(buffer), at)
            assert buffer == data[at : at + length]
            at += length
        with pytest.raises(DamageError, match="expected 100 bytes, the file ends after 77"):
            fileio.read_into(fd, memoryview(bytearray(100)), 20 << 20)
    finally:
        os.close(fd)
    with fileio.open_binary(f"s3://{BUCKET}/parts/data") as file:
        assert file.read() == data


@pytest.mark.parametrize("rest", [0, 1, 8, SMALL - 1, SMALL, SMALL + 1, BLOCK_BYTES - 1])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_short_rest_takes_no_request_of_its_own(blocks: int, rest: int, server: S3Server) -> None:
    """Segments are powers of two and 8 bytes more, so that rests are short."""
    size = blocks * BLOCK_BYTES + rest
    data = np.random.default_rng(size).bytes(size)
    key = f"rests/{size}"
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    buckets.forget()
    fd = fileio.open_read(f"s3://{BUCKET}/{key}")
    server.requests.clear()
    try:
        for at in range(0, size, step := (1 << 20) + 3):
            buffer = bytearray(min(step, size - at))
            fileio.read_into(fd, memoryview(buffer), at)
            assert buffer == data[at : at + step]
    finally:
        os.close(fd)
    asked = [path for method, path in server.requests if method == "GET" and path.endswith(key)]
    expected = min(1, size)  # for what is read first, which may be all that is asked for
    if size > step:
        expected += max(1, -(-(size - step - SMALL) // BLOCK_BYTES))
    assert len(asked) == expected


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_server_that_kept_its_segments_in_a_bucket(slash: str, server: S3Server, tmp_path: Path) -> None:
    """Keys are the paths that the files had on the server, with or without the slash before; catalog and log stayed there."""
    buckets.forget()
    builder = StoreBuilder(tmp_path / "milvus")
    builder.collection("faces")
    builder.segment("faces", rows(range(50)), deleted=[7])
    builder.wal.insert("faces", rows(range(100, 120)))
    builder.config("version: 0.5\nstorage:\n  s3_enabled: true\n  s3_bucket: segments\n")
    root = builder.write()
    call("export", root, tmp_path / "plain")
    server.client.create_bucket(Bucket="segments")
    try:
        for path in sorted((root / "db" / "tables").rglob("*")):
            if path.is_file():
                key = f"{slash}var/lib/milvus/{path.relative_to(root).as_posix()}"
                server.client.put_object(Bucket="segments", Key=key, Body=path.read_bytes())
        shutil.rmtree(root / "db" / "tables")
        hint = call("inspect", root)
        assert "s3://segments" in hint.out and "--catalog" in hint.out
        where = ["--catalog", root / "db" / "meta.sqlite", "--wal", root / "wal"]
        done = call("export", "s3://segments", tmp_path / "out", *where)
        assert done.code == 0, done.err
        assert exported(tmp_path / "out") == exported(tmp_path / "plain")
        assert call("verify", "s3://segments", *where).code == 0
    finally:
        for item in server.client.list_objects_v2(Bucket="segments").get("Contents", []):
            server.client.delete_object(Bucket="segments", Key=item["Key"])
        server.client.delete_bucket(Bucket="segments")


@pytest.mark.parametrize("where", ["whole", "whole/", "whole/db", "slashed/var/lib/milvus", "slashed//var/lib/milvus"])
def test_a_store_that_is_a_whole_bucket_or_has_keys_that_begin_with_a_slash(
    where: str, server: S3Server, tmp_path: Path
) -> None:
    buckets.forget()
    bucket, prefix = where.partition("/")[0], "/var/lib/milvus/" if where[0] == "s" else ""
    store = STORES / "binary" / "store"
    keys = {prefix + str(p.relative_to(store)): p for p in store.rglob("*") if p.is_file()}
    server.client.create_bucket(Bucket=bucket)
    try:
        for key, path in keys.items():
            server.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
        done = call("export", f"s3://{where}", tmp_path / "out")
        assert done.code == 0, done.err
        assert exported(tmp_path / "out") == truth("binary")
    finally:
        for key in keys:
            server.client.delete_object(Bucket=bucket, Key=key)
        server.client.delete_bucket(Bucket=bucket)


@pytest.mark.parametrize(
    "command", [["rows", "-n", "1"], ["search", "-c", "books", "--id", str(1 << 62)], ["inspect"], ["verify"]]
)
def test_what_it_costs_is_in_every_report(command: list[str], stored: Callable[[str], None]) -> None:
    stored("flat_basic")
    buckets.forget()
    given = [command[0], url("flat_basic"), *command[1:]]
    assert "\nObject store: " in call(*given).out
    assert call(*given, "--json").json["bucket"]["bytes_read"] > 0


def test_a_store_is_loaded_from_a_bucket(partitions: str, tmp_path: Path) -> None:
    done = call("load", partitions, f"milvus1:{tmp_path / 'again'}")
    assert done.code == 0, done.err
    assert "\nObject store: " in done.out
    call("export", tmp_path / "again", tmp_path / "out")
    assert exported(tmp_path / "out") == truth("partitions")


# Wrong calls: one sentence each, and no bucket is made ---------------------------------------------------------------


def test_an_export_of_hdf5_files_that_was_copied_into_a_bucket(server: S3Server, tmp_path: Path) -> None:
    buckets.forget()
    store = STORES / "partitions" / "store"
    assert call("export", store, tmp_path / "out").code == 0
    server.upload(tmp_path / "out", "hdf5/")
    url = f"s3://{BUCKET}/hdf5"
    assert call("inspect", url, "--json").json["collections"] == call("inspect", tmp_path / "out", "--json").json["collections"]
    assert call("verify", url, "--against", store).code == 0
    assert call("export", url, tmp_path / "again").code == 0
    assert exported(tmp_path / "again") == exported(tmp_path / "out")
    key = next(key for key, size in server.sizes("hdf5/").items() if key.endswith(".h5") and size > 1 << 14)
    data = bytearray(server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    data[5000] ^= 1
    server.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(data))
    buckets.forget()
    done = call("verify", url, "--json")
    assert done.code == 4 and [f["code"] for f in done.json["findings"]] == ["checksum"]


@pytest.mark.parametrize("command", ["inspect", "verify", "export"])
@pytest.mark.parametrize("option", [["--compression", "gzip"], ["--link"]])
def test_exports_that_only_hdf5_can_read_need_a_disk(option: list[str], command: str, server: S3Server, tmp_path: Path) -> None:
    buckets.forget()
    assert call("export", STORES / "flat_basic" / "store", tmp_path / "out", *option).code == 0
    server.upload(tmp_path / "out", f"{option[0]}/")
    done = call(command, f"s3://{BUCKET}/{option[0]}", *([tmp_path / "again"] if command == "export" else []))
    assert done.code == 2 and "copy this export to a disk first" in done.err


def sentence(*arguments: object) -> str:
    buckets.forget()
    done = call(*arguments)
    assert done.code == 1, done
    (line,) = done.err.strip().splitlines()
    assert "secret-of-reader" not in line
    return line


def test_an_unknown_scheme_is_refused() -> None:
    told = "is not on this machine, nor in a bucket (s3://, gs://, az://): copy it first, as with rclone copy ftp://a/b ./copy"
    for command in ("inspect", "verify"):
        assert told in sentence(command, "ftp://a/b")
    told = (
        "ftp://a/b is neither a folder on this machine nor in a bucket (s3://, gs://, az://): name one, and copy it there later"
    )
    assert told in sentence("export", STORES / "binary" / "store", "ftp://a/b")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):  # fsspec remembers what it has imported once
        monkeypatch.delitem(imported_filesystems, name, raising=False)
    assert "pip install 'milvus-offline[gcs]'" in sentence("inspect", "gs://backup/milvus")


def test_a_bucket_that_is_not_there_stays_so(server: S3Server) -> None:
    for command in ("inspect", "verify"):
        assert "no bucket 'bakcup'" in sentence(command, "s3://bakcup/milvus")
    assert server.buckets() == [BUCKET]


def test_a_folder_that_is_not_there(server: S3Server) -> None:
    buckets.forget()
    done = call("inspect", f"s3://{BUCKET}/nowhere")
    assert done.code == 1 and "nowhere: there is no such file or folder" in done.err


def test_missing_credentials_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no credentials were found" in sentence("inspect", url("flat_basic"))


def test_wrong_credentials_are_said(server: S3Server) -> None:
    server.refuse = lambda method, path: True
    try:
        assert "no permission" in sentence("inspect", url("flat_basic"))
    finally:
        server.refuse = None


def test_an_endpoint_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot reach the object store" in sentence("inspect", url("flat_basic"))


def test_the_name_of_a_folder_is_no_reason(server: S3Server) -> None:
    assert "no bucket 'bakcup'" in sentence("inspect", "s3://bakcup/credentials/milvus")
    assert "there is no such file or folder" in sentence("inspect", f"s3://{BUCKET}/credentials/milvus")


@pytest.fixture
def large(server: S3Server, tmp_path: Path) -> Iterator[str]:
    """The key of a file that takes three requests, in the store `odd`."""
    buckets.forget()
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=1024)
    builder.segment("faces", rows(range(2500), dim=1024), deleted=[7])
    server.upload(builder.write(), "odd/")
    yield next(key for key in server.sizes("odd/") if key.endswith(".rv"))
    server.before = server.refuse = None


def each(server: S3Server, key: str, number: int, do: Any) -> None:
    """Calls `do` with the `number`-th request for the file at `key`."""
    seen: list[str] = []

    def before(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "GET" and request["PATH_INFO"].endswith(key):
            seen.append(key)
            if len(seen) == number:
                do(request)

    server.before = before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: bytes(len(data)), "was replaced after it was listed"),
        (lambda data: data[:100], "changed since it was listed|become shorter"),  # which part is answered first
        (lambda data: None, "was removed after it was listed"),
    ],
)
def test_an_object_that_changes_while_it_is_read_ends_the_run(
    change: Any, told: str, large: str, server: S3Server, tmp_path: Path
) -> None:
    """Parts of two objects would be rows that nobody ever stored."""
    changed = change(server.keys(large)[large])
    put = (lambda _: server.client.put_object(Bucket=BUCKET, Key=large, Body=changed)) if changed else None
    each(server, large, 3, put or (lambda _: server.client.delete_object(Bucket=BUCKET, Key=large)))
    done = call("export", f"s3://{BUCKET}/odd", tmp_path / "out", "--jobs", "1")
    assert done.code == 1 and re.search(told, done.err), done.err
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("suffix", [".rv", ".uid", "deleted_docs", "meta.sqlite"])
def test_an_object_that_was_replaced_after_it_was_listed_ends_the_run(
    suffix: str, large: str, server: S3Server, tmp_path: Path
) -> None:
    """Before anything of it was read, and by one of the same size: a store of two times."""
    (key,) = (key for key in server.sizes("odd/") if key.endswith(suffix))
    data = bytearray(server.keys(key)[key])
    data[-1] ^= 1
    each(server, key, 1, lambda _: server.client.put_object(Bucket=BUCKET, Key=key, Body=bytes(data)))
    done = call("export", f"s3://{BUCKET}/odd", tmp_path / "out")
    assert done.code == 1 and f"{key}: this object was replaced after it was listed" in done.err
    server.before = None
    assert call("export", f"s3://{BUCKET}/odd", tmp_path / "out", "--overwrite").code == (3 if suffix == "deleted_docs" else 0)


def test_a_server_may_answer_with_other_etags_than_it_lists(large: str, server: S3Server, tmp_path: Path) -> None:
    """That is found out once, by one more listing; what is replaced while it is read is still found."""

    def listings() -> int:
        server.requests.clear()
        assert call("export", f"s3://{BUCKET}/odd", tmp_path / "out", "--overwrite").code == 0
        return sum(method == "GET" and path.strip("/") == BUCKET for method, path in server.requests)

    usual = listings()
    buckets.forget()
    server.tag = 'W/"{}-of-a-gateway"'
    try:
        assert listings() == usual + 1
        assert sum(exported(tmp_path / "out")["faces", "_default"].values()) == 2499
        changed = bytes(len(server.keys(large)[large]))
        each(server, large, 3, lambda _: server.client.put_object(Bucket=BUCKET, Key=large, Body=changed))
        done = call("export", f"s3://{BUCKET}/odd", tmp_path / "again", "--jobs", "1")
        assert done.code == 1 and "was replaced after it was listed" in done.err
    finally:
        server.tag = '"{}"'


def test_a_server_that_gives_more_than_was_asked_for_is_not_believed(large: str, server: S3Server, tmp_path: Path) -> None:
    each(server, large, 3, lambda request: request.pop("HTTP_RANGE"))
    assert "gives no parts of objects" in sentence("export", f"s3://{BUCKET}/odd", tmp_path / "out", "--jobs", "1")


def test_credentials_that_end_half_way_and_archived_objects_are_said(large: str, server: S3Server, tmp_path: Path) -> None:
    def end(_: Any) -> None:
        server.refuse = lambda method, path: path.endswith(large)

    each(server, large, 3, end)
    command = "export", f"s3://{BUCKET}/odd", tmp_path / "out", "--jobs", "1"
    told = sentence(*command)
    assert "no permission" in told and told.endswith("what is finished is kept, --resume goes on")
    server.refuse_with = "<Code>InvalidObjectState</Code><Message>not valid for the storage class</Message>"
    assert "archive class" in sentence(*command, "--resume")
    server.before = server.refuse = None
    assert call(*command, "--resume").code == 0
    assert sum(exported(tmp_path / "out")["faces", "_default"].values()) == 2499


def test_a_server_that_never_answers_is_not_waited_for_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK has waited then, several times."""
    from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

    buckets.forget()
    store = objects.objects("s3")
    asked: list[int] = []

    def silent(error: Exception) -> Any:
        asked.append(1)
        raise error

    with pytest.raises(StoreError, match="cannot reach the object store"):
        store.call(lambda: silent(ConnectTimeoutError(endpoint_url="http://192.0.2.1")), f"{BUCKET}/x")
    monkeypatch.setattr(objects, "_PATIENCE_SECONDS", -1)
    with pytest.raises(StoreError, match="takes requests and does not answer"):
        store.call(lambda: silent(ReadTimeoutError(endpoint_url="http://192.0.2.1")), f"{BUCKET}/x")
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["rows.h5", "index.faiss"])
def test_what_is_not_read_from_a_bucket_is_said(name: str, server: S3Server) -> None:
    buckets.forget()
    server.client.put_object(Bucket=BUCKET, Key=f"other/{name}", Body=b"\x89HDF\r\n\x1a\n" if name[0] == "r" else b"IxF2")
    done = call("inspect", f"s3://{BUCKET}/other/{name}")
    assert done.code == 2 and "copy this to a disk first" in done.err
