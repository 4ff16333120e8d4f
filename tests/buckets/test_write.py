"""Exports into a bucket: what is there is what a disk would have, also after a stopped run; nothing else is touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bucket import BUCKET, ENVIRONMENT, S3Server
from support.builder import StoreBuilder, rows
from support.command import call, files
from support.real import STORES

from milvus_offline import buckets
from milvus_offline.manifest import checksum_of
from milvus_offline.targets import columnar

pytestmark = pytest.mark.server

OUT = f"s3://{BUCKET}/out"


@pytest.fixture
def server(running: S3Server) -> Iterator[S3Server]:
    buckets.forget()
    yield running
    running.reset()
    running.clear()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    builder.partition("faces", "a/b")
    for n in range(4):
        builder.segment("faces", rows(range(100 * n, 100 * n + 100), dim=8), deleted=[n])
    return builder.write()


def exported(server: S3Server, prefix: str = "out/") -> dict[str, bytes]:
    return {k.removeprefix(prefix): v for k, v in server.keys(prefix).items()}


def without_manifest(found: dict[str, bytes]) -> dict[str, bytes]:
    return {k: v for k, v in found.items() if k != "manifest.json"}


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_the_objects_are_the_files_of_a_disk(form: str, server: S3Server, store: Path, tmp_path: Path) -> None:
    server.requests.clear()
    done = call("export", store, OUT, "--format", form, "--json")
    assert done.code == 0, done.err
    call("export", store, tmp_path / "plain", "--format", form)
    here, there = files(tmp_path / "plain"), exported(server)
    assert without_manifest(there) == without_manifest(here)
    written, plain = json.loads(there["manifest.json"]), json.loads(here["manifest.json"])
    assert (written["collections"], written["checksum"]) == (plain["collections"], checksum_of(written))
    looks = [path for method, path in server.requests if method == "HEAD" and path.strip("/") != BUCKET]
    assert sorted(looks) == sorted(f"/{BUCKET}/out/{name}" for name in without_manifest(there)), (
        "one for each, when it is there"
    )
    assert done.json["out"] == OUT
    assert done.json["bucket"]["bytes_written"] >= sum(map(len, without_manifest(there).values()))


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_what_was_exported_into_a_bucket_is_verified_inspected_and_loaded_from_there(
    form: str, server: S3Server, store: Path, tmp_path: Path
) -> None:
    call("export", store, OUT, "--format", form)
    verified = call("verify", OUT, "--against", store, "--json")
    assert (verified.code, verified.json["rows"]) == (0, 396), verified.err + verified.out
    assert sum(c["rows"] for c in call("inspect", OUT, "--json").json["collections"]) == 396
    loaded = call("load", OUT, f"milvus1:{tmp_path / 'again'}")
    assert loaded.code == 0, loaded.err
    assert call("inspect", tmp_path / "again", "--json").json["totals"]["rows"] == 396
    name = next(k for k in server.keys("out/") if k.endswith((".parquet", "vector.npy")))
    broken = bytearray(server.keys(name)[name])
    broken[len(broken) // 2] ^= 1
    server.client.put_object(Bucket=BUCKET, Key=name, Body=bytes(broken))
    assert call("verify", OUT).code == 4


def test_an_interrupted_export_goes_on_where_it_stopped(
    server: S3Server, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "CHUNK_BYTES", 100 * 32)
    server.refuse = lambda method, path: method == "PUT" and "/00002/" in path
    broken = call("export", store, OUT, "--format", "npy", "--jobs", "1")
    assert broken.code == 1
    assert len(broken.err.strip().splitlines()) == 1 and "--resume goes on" in broken.err
    assert "manifest.json" not in exported(server)
    server.refuse = None
    assert "--resume" in call("export", store, OUT, "--format", "npy").err
    server.requests.clear()
    done = call("export", store, OUT, "--format", "npy", "--resume", "--jobs", "1")
    assert done.code == 0, done.err
    put = [path for method, path in server.requests if method == "PUT"]
    assert not [p for p in put if "_default/00000/" in p or "_default/00001/" in p], "finished chunks are not written again"
    call("export", store, tmp_path / "plain", "--format", "npy")
    assert without_manifest(exported(server)) == without_manifest(files(tmp_path / "plain"))
    assert not [k for k in server.keys("out/") if "ledger" in k]
    assert "complete export" in call("export", store, OUT, "--format", "npy", "--resume").err


def test_overwrite_removes_what_the_earlier_export_wrote_and_nothing_else(server: S3Server, store: Path) -> None:
    call("export", store, OUT, "--format", "npy")
    server.client.put_object(Bucket=BUCKET, Key="out/notes.txt", Body=b"mine")
    refused = call("export", store, OUT, "--format", "parquet")
    assert refused.code == 2 and "--overwrite" in refused.err
    done = call("export", store, OUT, "--format", "parquet", "--overwrite")
    assert done.code == 0, done.err
    found = exported(server)
    assert found.pop("notes.txt") == b"mine"
    assert Counter(k.rpartition(".")[2] for k in found) == {"parquet": 2, "json": 1}


def test_objects_larger_than_a_part_are_sent_in_parts(server: S3Server, tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=1024)
    builder.segment("faces", rows(range(10_000), dim=1024))
    done = call("export", builder.write(), OUT, "--format", "npy", "--json")
    assert done.code == 0, done.err
    call("export", tmp_path / "store", tmp_path / "plain", "--format", "npy")
    assert without_manifest(exported(server)) == without_manifest(files(tmp_path / "plain"))
    assert len([1 for method, path in server.requests if method == "PUT" and path.endswith("vector.npy")]) >= 3


def test_a_busy_server_costs_repeated_requests_only(server: S3Server, store: Path, tmp_path: Path) -> None:
    server.busy_each = 5
    done = call("export", store, OUT, "--format", "npy", "--json")
    server.busy_each = 0
    assert done.code == 0, done.err
    assert done.json["bucket"]["retries"] > 0
    call("export", store, tmp_path / "plain", "--format", "npy")
    assert without_manifest(exported(server)) == without_manifest(files(tmp_path / "plain"))


def refused(done: Any, *words: str, code: int = 2) -> None:
    assert done.code == code, done
    (line,) = done.err.strip().splitlines()
    assert all(w in line for w in words), line


def test_what_cannot_be_written_is_refused_in_one_sentence(server: S3Server, store: Path) -> None:
    refused(call("export", store, OUT), "--format parquet")
    refused(call("export", store, "s3://no-such-bucket/out", "--format", "npy"), "no bucket 'no-such-bucket'", code=1)
    refused(call("export", store, "s3://", "--format", "npy"), "did you mean s3://BUCKET/FOLDER?")
    server.client.put_object(Bucket=BUCKET, Key="out/notes.txt", Body=b"mine")
    refused(call("export", store, OUT, "--format", "npy"), "is not empty and holds no export")
    assert server.buckets() == [BUCKET]
    assert list(server.keys()) == ["out/notes.txt"]


def only_below(prefix: str, server: S3Server) -> None:
    """As for a user who may list one folder of the bucket, and not what is around it."""
    listed: list[str] = [""]
    server.before = lambda request: listed.append(request["QUERY_STRING"])
    server.refuse = lambda method, path: path.strip("/") == BUCKET and f"prefix={prefix}" not in listed[-1]


def test_whoever_may_use_one_folder_of_a_bucket_only_reads_and_writes_there(server: S3Server, store: Path) -> None:
    server.upload(store, "cold/milvus/")
    server.upload(store / "wal", "cold/milvus-wal/")
    only_below("cold%2Fmilvus", server)
    there = f"s3://{BUCKET}/cold/milvus"
    for command in (["inspect"], ["verify"], ["inspect", "--wal", f"{there}-wal"]):
        done = call(command[0], there, *command[1:])
        assert done.code == 0, done.err
    out = f"s3://{BUCKET}/cold/milvus-out"
    done = call("export", there, out, "--format", "npy")
    assert done.code == 0, done.err
    assert call("verify", out, "--against", there).code == 0
    refused(call("inspect", f"s3://{BUCKET}/hot/milvus"), "no permission", code=1)
    refused(call("inspect", there, "--wal", f"s3://{BUCKET}/hot/wal"), "hot/wal: no permission", code=1)


def test_what_looks_like_a_manifest_and_is_none_is_left_alone(server: S3Server, store: Path) -> None:
    server.client.put_object(Bucket=BUCKET, Key="out/manifest.json", Body=b'{"format": 5}')
    refused(call("export", store, OUT, "--format", "npy", "--overwrite"), "holds no export of this tool")


def test_an_export_never_goes_into_its_source(server: S3Server) -> None:
    server.upload(STORES / "flat_basic" / "store", "cold/")
    refused(call("export", f"s3://{BUCKET}/cold", f"s3://{BUCKET}/cold/db/out", "--format", "npy"), "lies inside the source")


def test_credentials_that_come_later_are_taken(
    server: S3Server, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook goes on in the process in which they were missing."""
    with monkeypatch.context() as without:
        for key in [k for k in ENVIRONMENT if "KEY" in k]:
            without.delenv(key)
        without.setenv("AWS_EC2_METADATA_DISABLED", "true")
        without.setenv("HOME", str(tmp_path))
        lacking = call("export", store, OUT, "--format", "npy")
        assert (lacking.code, "no credentials were found" in lacking.err) == (1, True), lacking.err
    assert call("export", store, OUT, "--format", "npy").code == 0
