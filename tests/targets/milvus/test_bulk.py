"""Bulk imports: exactly once over kills, on servers of each dialect; the wrong bucket is found before anything goes there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from support.array_source import ArraySource, floats
from support.builder import StoreBuilder, rows
from support.command import call
from support.daskcluster import Cluster, cluster
from support.milvus_proxy import MilvusProxy, milvus_proxy
from support.milvus_server import S3_BUCKET, MilvusServer, own_name, shared_milvus

from milvus_offline import buckets
from milvus_offline.errors import MilvusOfflineError, TargetError, UsageError
from milvus_offline.loading import LoadReport, run_load
from milvus_offline.targets import open_target
from milvus_offline.targets.milvus import bulk, imports, target, wire
from milvus_offline.targets.milvus.client import Client
from milvus_offline.targets.milvus.connection import Connection
from milvus_offline.targets.milvus.imports import GrpcImports

pytestmark = pytest.mark.server
ROWS = 3000


class Killed(BaseException):
    """What ends a run as a kill would: nothing of ours catches it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return shared_milvus(tmp_path_factory)


@pytest.fixture(params=["2.3.5", "2.4.17", "2.5.10-rest", "2.6.24-rest"])
def proxy(request: pytest.FixtureRequest, server: Any) -> Iterator[MilvusProxy]:
    version, _, rest = request.param.partition("-")
    with milvus_proxy(server.uri, version) as proxy:
        proxy.rest = bool(rest)
        yield proxy


def source(name: str, rows: int = ROWS) -> ArraySource:
    return ArraySource(
        {name: {"_default": [(np.arange(rows), floats(rows))], "p": [(np.arange(rows, 2 * rows), floats(rows, seed=1))]}}
    )


def load(proxy: MilvusProxy, server: Any, name: str, state: Path, resume: bool = False, **options: Any) -> LoadReport:
    options = {"import_to": str(server.storage / name), "verify": "count", "inflight": 1, **options}
    return run_load(source(name), open_target(proxy.uri, **options), state=state, resume=resume)


def count(server: Any, name: str) -> int:
    client = MilvusClient(server.uri)
    client.load_collection(name)
    found = client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
    client.close()
    return int(found[0]["count(*)"])


@pytest.mark.parametrize(
    ("proxy", "moment"),
    [
        *(("2.3.5", moment) for moment in ("asked", "started", "running")),
        *(("2.6.24-rest", moment) for moment in ("asked", "started", "running")),
        ("2.4.17", "asked"),  # the services of these are those of the others, but for what they call things
        ("2.5.10-rest", "started"),
    ],
    indirect=["proxy"],
)
def test_a_killed_import_is_followed_and_not_started_again(
    proxy: MilvusProxy,
    server: Any,
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    name = own_name(request.node.name)
    starts = 0
    real_start = bulk.Importer.start
    service_start = {s: s.start for s in (imports.GrpcImports, imports.RestImports)}

    def start(self: Any, *arguments: Any) -> str:
        nonlocal starts
        starts += 1
        job = real_start(self, *arguments)
        if moment == "started":
            raise Killed
        return job

    def asked(self: Any, collection: str, partition: str, files: Any, key: str) -> str:
        job = service_start[type(self)](self, collection, partition, files, key)
        if "probe" not in key:
            raise Killed  # the server has the request, we never saw its answer
        return job

    def follow(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(bulk.Importer, "start", start)
        if moment == "asked":
            for service in service_start:
                patched.setattr(service, "start", asked)
        if moment == "running":
            patched.setattr(bulk.Importer, "follow", follow)
        with pytest.raises(Killed):
            load(proxy, server, name, tmp_path)
    assert starts == 1
    report = load(proxy, server, name, tmp_path, resume=True)
    assert (report.exit_code, report.rows) == (0, 2 * ROWS)
    assert count(server, name) == 2 * ROWS


def test_where_nothing_tells_whether_a_job_was_started_the_run_stops(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(self: Any, *_: Any, **__: Any) -> str:
        raise Killed

    with milvus_proxy(server.uri, "2.4.17") as proxy:
        proxy.rest = False
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(bulk.Importer, "check_seen", lambda *_: None)
            patched.setattr(imports.GrpcImports, "start", asked)
            load(proxy, server, "unknown_job", tmp_path)
        client = MilvusClient(server.uri)
        client.insert("unknown_job", [{"id": 1 << 40, "vector": [0.0] * 8}])  # a stranger's, so that the count tells nothing
        client.close()
        with pytest.raises(TargetError, match=r"its job is not known: the target holds 1 rows, expected 0 without it or 3000"):
            load(proxy, server, "unknown_job", tmp_path, resume=True)


@pytest.mark.parametrize("proxy", ["2.3.5", "2.6.24-rest"], indirect=True)
def test_an_import_goes_into_the_database_of_the_address(proxy: MilvusProxy, server: Any, tmp_path: Path) -> None:
    name, folder = f"c{proxy.version}".replace(".", "_"), str(server.storage / "in_database")
    admin = MilvusClient(server.uri)
    if "imported" not in admin.list_databases():
        admin.create_database("imported")
    report = run_load(source(name, 300), open_target(f"{proxy.uri}/imported", import_to=folder), state=tmp_path)
    assert (report.exit_code, report.rows) == (0, 600)
    assert not admin.has_collection(name)
    there = MilvusClient(server.uri, db_name="imported", dedicated=True)
    assert there.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"] == 600


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("abc://bucket/x", "this scheme is unknown; there are: s3://"),
        ("s3://", "the name of a bucket is missing"),
        ("s3://bucket/x", "no credentials were found: give them"),
        ("az://bucket/x", "no credentials were found: give them as AZURE_"),
    ],
)
def test_a_bucket_that_cannot_be_had_is_one_sentence(
    server: Any, place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place.startswith("az"):
        pytest.importorskip("adlfs")
    s3fs = pytest.importorskip("s3fs")
    for key in [k for k in os.environ if k.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    buckets.forget()
    with pytest.raises(MilvusOfflineError, match=re.escape(words)) as told:
        run_load(source("no_bucket"), open_target(server.uri, import_to=place), state=tmp_path / "state")
    assert "\n" not in str(told.value)
    client = MilvusClient(server.uri)
    assert not client.has_collection("no_bucket")


def test_a_place_that_the_server_does_not_see(proxy: MilvusProxy, server: Any, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="does not see what is written to"):
        name = f"nowhere{proxy.version.replace('.', '_')}"
        load(proxy, server, name, tmp_path, import_to=str(tmp_path / "elsewhere"), import_path=str(tmp_path / "not here"))
    assert not list((tmp_path / "elsewhere").rglob("*.npy"))


def test_the_older_interface_serves_where_the_newer_one_is_gone(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "channel_of", lambda client: None)
    with milvus_proxy(server.uri, "2.3.5") as proxy:
        report = load(proxy, server, "older_interface", tmp_path)
        with pytest.raises(TargetError, match="imports into the default database alone"):  # where it would go, unseen
            GrpcImports(Client(Connection(f"{proxy.uri}/default")))
    assert (report.exit_code, count(server, "older_interface")) == (0, 2 * ROWS)


def test_zilliz_cloud_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="Leave out --import-to"):
        bulk.check_importable("zilliz", "https://x.zillizcloud.com")


# Files that a cluster writes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    with cluster(tmp_path_factory.mktemp("dask"), 2) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of several chunks, with deleted rows and rows of the log."""
    monkeypatch.setattr(target, "CHUNK_BYTES", 1000 * 64)
    monkeypatch.setattr(bulk, "POLL_SECONDS", 0.1)
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=16)
    for n in range(2):
        builder.segment("faces", rows(range(1000 * n, 1000 * n + 1000), dim=16), deleted=[5])
    builder.wal.insert("faces", rows(range(9000, 9100), dim=16))
    return builder.write()


def test_the_workers_of_a_cluster_write_the_files(
    dask: Cluster, server: Any, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    words = ["--rename", "faces=by_a_cluster", "--import-to", server.storage / "by_a_cluster", "--state", tmp_path / "state"]
    words += ["--cluster", dask.url, "--verify", "full", "--json"]
    with monkeypatch.context() as patched:
        patched.setattr(bulk.Importer, "follow", lambda *_: (_ for _ in ()).throw(TargetError("stopped")))
        stopped = call("load", store, server.uri, *words)
    assert (stopped.code, stopped.err) == (1, "milvus-offline: stopped\n")
    done = call("load", store, server.uri, *words, "--resume")
    assert done.code == 0, done.err
    assert (done.json["rows"], done.json["checked_rows"]) == (2098, 2098)
    assert not list((server.storage / "by_a_cluster").rglob("*.npy"))
    with Client(dask.url.replace("dask", "tcp"), set_as_default=False) as client:
        names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes))
    assert sum(name.startswith("faces/_default") for name in names) == 3


def test_a_cluster_is_only_for_files(dask: Cluster, server: Any, store: Path, tmp_path: Path) -> None:
    refused = call("load", store, server.uri, "--cluster", dask.url, "--state", tmp_path / "state")
    assert (refused.code, "--import-to" in refused.err) == (2, True)
    refused = call("load", store, f"milvus1:{tmp_path / 'new'}", "--cluster", dask.url)
    assert (refused.code, "--cluster" in refused.err) == (2, True)


@pytest.mark.parametrize("victim", ["worker", "client", "scheduler"])
def test_what_a_cluster_stages_is_the_same_whoever_dies(
    victim: str, server: Any, dask: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "POLL_SECONDS", 0.1)
    builder = StoreBuilder(tmp_path / "store")
    for n in range(3):
        builder.collection(f"{victim}{n}", dim=16)
        builder.segment(f"{victim}{n}", rows(range(1000 * n, 1000 * n + 1000), dim=16), deleted=[5])
    store = builder.write()
    with milvus_proxy(server.uri, "3.0.2") as proxy:
        proxy.flush_seconds = 0

        def words(place: str) -> list[object]:
            return [store, proxy.uri, "--import-to", server.storage / place, "--state", tmp_path / place, "--import-stage"]

        there, pid = [*words(f"{victim}s"), "--cluster", dask.url], tmp_path / "pid"
        dask.dies("milvus_offline.targets.milvus.bulk:WriteFiles", "" if victim == "worker" else pid)
        if victim == "client":
            with subprocess.Popen([sys.executable, "-m", "milvus_offline", "load", *map(str, there)]) as process:
                pid.write_text(f"{process.pid}\n")
                assert process.wait(timeout=120) == -signal.SIGKILL
        else:
            pid.write_text(f"{dask.scheduler.pid}\n")
            done = call("load", *there)
            assert done.code == (0 if victim == "worker" else 1), done.err
            assert victim == "worker" or "the scheduler is lost; what is finished is kept" in done.err
        if victim == "worker":
            dask.renew(1)
        else:
            if victim == "scheduler":
                dask.restart(2)
            done = call("load", *there, "--resume")
            assert done.code == 0, done.err
        done = call("load", *words(f"{victim}-here"))
        assert done.code == 0, done.err
        assert staged(server.storage / f"{victim}s") == staged(server.storage / f"{victim}-here") != []


def staged(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((str(p.relative_to(folder)), p.read_bytes()) for p in folder.rglob("*") if p.is_file())


# A server whose segments are in a bucket -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_bucket(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with MilvusServer(tmp_path_factory.mktemp("in_bucket"), "S3") as milvus, pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", milvus.s3_url)
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(key, "minioadmin")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        buckets.forget()
        yield milvus
    buckets.forget()


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_an_import_through_a_bucket(in_bucket: MilvusServer, tmp_path: Path, file_format: str) -> None:
    name = f"through_{file_format}"
    options = {"import_to": f"s3://{S3_BUCKET}/imports", "import_format": file_format, "verify": "full"}
    report = run_load(source(name), open_target(in_bucket.uri, **options), state=tmp_path)
    assert (report.exit_code, report.rows) == (0, 2 * ROWS)
    import boto3

    listed = boto3.client("s3").list_objects_v2(Bucket=S3_BUCKET, Prefix="imports/")
    assert listed.get("KeyCount") == 0


@pytest.mark.parametrize("bucket", ["s3://no-such-bucket/imports", f"s3://{S3_BUCKET}-typo/x"])
def test_a_bucket_that_is_not_there_is_not_made(in_bucket: MilvusServer, tmp_path: Path, bucket: str) -> None:
    import boto3

    with pytest.raises(MilvusOfflineError, match=bucket.split("/")[2]):
        run_load(source("no_bucket"), open_target(in_bucket.uri, import_to=bucket), state=tmp_path)
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == [S3_BUCKET]


def test_a_path_that_is_not_where_the_server_looks(in_bucket: MilvusServer, tmp_path: Path) -> None:
    options = {"import_to": f"s3://{S3_BUCKET}/imports", "import_path": "elsewhere"}
    with pytest.raises(TargetError, match="does not see what is written to"):
        run_load(source("no_path"), open_target(in_bucket.uri, **options), state=tmp_path)


# Several file sets a job, and writing apart from importing ---------------------------------------------------------------


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three file sets for each of the two partitions."""
    monkeypatch.setattr("milvus_offline.targets.milvus.target.CHUNK_BYTES", 50_000)


def test_a_job_takes_many_file_sets_where_the_server_can(server: Any, tmp_path: Path, small_sets: None) -> None:
    with milvus_proxy(server.uri, "2.6.24") as proxy:
        report = load(proxy, server, "sets", tmp_path, inflight=8)
        assert (report.exit_code, report.rows, count(server, "sets")) == (0, 2 * ROWS, 2 * ROWS)
        assert proxy.calls.count("rest:create") == 2 + 1  # a job for each partition, and the one that asks about the place
        assert "Flush" not in proxy.calls  # it has stored all, and lets a client wait for the next flush
    assert not list((server.storage / "sets").rglob("*.npy"))


@pytest.mark.parametrize("seconds", [0.1, 3, 11, 600])
def test_the_end_of_a_job_is_noticed_soon(seconds: float) -> None:
    took = asked = 0.0
    while took < seconds:
        took += bulk._pause(took)
        asked += 1
    assert took - seconds <= min(1, max(0.05, seconds / 40))
    assert asked < 200 + seconds


def test_parts_are_staged_and_committed_exactly_once(
    server: Any, tmp_path: Path, small_sets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "staged"
    with milvus_proxy(server.uri, "3.0.2") as proxy:
        proxy.flush_seconds = 0
        with pytest.raises(UsageError, match=r"nothing is staged in .* run the same command with --import-stage"):
            load(proxy, server, name, tmp_path / "c0", import_commit=True)
        for part in (1, 2):
            if part == 2:
                with pytest.raises(UsageError, match="of 2 parts these are not staged yet: 2"):
                    load(proxy, server, name, tmp_path / "c1", import_commit=True)
            report = load(proxy, server, name, tmp_path / f"s{part}", import_stage=True, part=(part, 2))
            assert (report.exit_code, report.rows, report.staged) == (0, ROWS, True)
            assert [f.code for f in report.findings] == ["import-staged"]
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(bulk.Importer, "follow", killed)
            load(proxy, server, name, tmp_path / "c2", import_commit=True)
        with pytest.raises(MilvusOfflineError, match=r"another run has begun to commit this|rows already"):
            load(proxy, server, name, tmp_path / "c3", import_commit=True)
        report = load(proxy, server, name, tmp_path / "c2", resume=True, import_commit=True, verify="full")
        assert (report.exit_code, report.rows, count(server, name)) == (0, 2 * ROWS, 2 * ROWS)
        assert proxy.calls.count("rest:create") <= 2 + 6  # both jobs, and a question about the place by each run
    assert not [p for p in (server.storage / name).rglob("*") if p.is_file()]


def killed(*_: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"import_stage": True}, "only goes with --import-to"),
        ({"import_to": "/x", "import_stage": True, "import_commit": True}, "two steps"),
        ({"import_to": "/x", "import_commit": True, "part": (1, 2)}, "leave --part out"),
        ({"import_to": "/x", "import_stage": True, "mode": "append"}, "leave --mode"),
    ],
)
def test_steps_that_contradict_each_other(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        open_target("http://localhost:19530", **options)
