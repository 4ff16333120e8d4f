"""Exports by the workers of a real Dask cluster: the bytes are those of an export on one machine, whoever dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builder import StoreBuilder, rows
from support.command import call, files, manifest
from support.daskcluster import Cluster, cluster
from support.real import STORES

pytestmark = pytest.mark.server

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("dask")) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Path:
    builder = StoreBuilder(tmp_path / "store")
    for name in ("a", "b", "c"):
        builder.collection(name, dim=256)
        for n in range(4):
            builder.segment(name, rows(range(2000 * n, 2000 * n + 2000), dim=256), deleted=[n])
    builder.wal.insert("a", rows(range(10_000, 10_100), dim=256))
    return builder.write()


def same(one: Path, other: Path) -> bool:
    """Whether two exports have the same files, and manifests that say the same of them."""
    here, there = files(one), files(other)
    return {k: v for k, v in here.items() if k != "manifest.json"} == {
        k: v for k, v in there.items() if k != "manifest.json"
    } and manifest(one)["collections"] == manifest(other)["collections"]


@pytest.mark.parametrize("options", [[], ["--compression", "gzip"], ["--format", "npy"], ["--format", "parquet"]])
def test_the_bytes_are_those_of_one_machine(options: list[str], running: Cluster, store: Path, tmp_path: Path) -> None:
    done = call("export", store, tmp_path / "there", "--cluster", running.url, "--json", *options)
    assert done.code == 0, done.err
    call("export", store, tmp_path / "here", *options)
    assert same(tmp_path / "there", tmp_path / "here")


@pytest.mark.parametrize("form", ["hdf5", "parquet"])
def test_the_workers_verify_an_export(form: str, running: Cluster, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("export", store, out, "--format", form)
    done = call("verify", out, "--cluster", running.url, "--against", store, "--json")
    assert done.code == 0, done.err
    assert done.json["rows"] == call("verify", out, "--json").json["rows"]
    broken = sorted(out.rglob("*.h5" if form == "hdf5" else "*.parquet"))[-1]
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    there, here = call("verify", out, "--cluster", running.url, "--json"), call("verify", out, "--json")
    assert there.code == here.code == 4
    assert there.json["findings"] == here.json["findings"] != []
    refused = call("verify", store, "--cluster", running.url)
    assert refused.code == 2 and "--cluster goes with an export" in refused.err


@pytest.mark.parametrize("name", ["partitions", "crash_wal", "indexed", "binary"])
def test_real_stores(name: str, running: Cluster, tmp_path: Path) -> None:
    done = call("export", STORES / name / "store", tmp_path / "there", "--cluster", running.url)
    assert done.code == 0, done.err
    call("export", STORES / name / "store", tmp_path / "here")
    assert same(tmp_path / "there", tmp_path / "here")


def test_a_killed_client_goes_on_with_resume(running: Cluster, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    command = [sys.executable, "-m", "milvus_offline", "export", str(store), str(out), "--format", "npy"]
    process = subprocess.Popen([*command, "--cluster", running.url])
    ledger = out / ".milvus-offline-ledger.jsonl"
    while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (out / "manifest.json").exists():
        done = call("export", store, out, "--format", "npy", "--cluster", running.url, "--resume")
        assert done.code == 0, done.err
    call("export", store, tmp_path / "here", "--format", "npy")
    assert same(out, tmp_path / "here")


def test_paths_that_not_every_worker_sees_are_named(running: Cluster, store: Path, tmp_path: Path) -> None:
    from milvus_offline.cluster import DaskCluster
    from milvus_offline.errors import TargetError

    raw = next(store.rglob("*.rv"))
    fd = os.dup2(os.open(raw, os.O_RDONLY), 700)
    with DaskCluster(running.url) as workers:
        workers.probe([str(raw)], tmp_path)
        with pytest.raises(TargetError, match=r"worker tcp://127.0.0.1:\d+ on .* does not see /proc/self/fd/700 of the source"):
            workers.probe([f"/proc/self/fd/{fd}"], tmp_path)  # a path that leads elsewhere in another process
        assert not list(tmp_path.glob(".milvus-offline-probe*"))
    os.close(fd)


def test_wrong_clusters_are_refused_in_one_sentence(store: Path, tmp_path: Path) -> None:
    for url, code, words in (
        ("tcp://127.0.0.1:1", 2, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1", 2, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1:9", 1, "no Dask scheduler answers there"),
    ):
        done = call("export", store, tmp_path / "out", "--cluster", url)
        assert (done.code, len(done.err.strip().splitlines())) == (code, 1), done.err
        assert words in done.err
    assert not (tmp_path / "out").exists()


def test_a_killed_worker_costs_its_tasks_only(store: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, 3) as made:
        out = tmp_path / "there"
        command = [sys.executable, "-m", "milvus_offline", "export", str(store), str(out), "--format", "npy"]
        process = subprocess.Popen([*command, "--cluster", made.url], stderr=subprocess.PIPE)
        while process.poll() is None and not any(out.rglob("vector.npy*")):
            time.sleep(0.01)
        made.kill(made.workers[0])
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    call("export", store, tmp_path / "here", "--format", "npy")
    assert same(out, tmp_path / "here")


def test_a_scheduler_that_is_lost_is_said_and_another_one_finishes(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "there"
    with cluster(tmp_path, 1) as made:
        command = [sys.executable, "-m", "milvus_offline", "export", str(store), str(out), "--format", "npy"]
        process = subprocess.Popen([*command, "--cluster", made.url], stderr=subprocess.PIPE)
        while process.poll() is None and not any(out.rglob("vector.npy")):
            time.sleep(0.01)
        made.kill(made.scheduler)
        _, err = process.communicate(timeout=120)
        finished = process.returncode == 0
        assert finished or b"run it again with --resume" in err, err
    if not finished:
        with cluster(tmp_path, 1) as made:
            done = call("export", store, out, "--format", "npy", "--cluster", made.url, "--resume")
            assert done.code == 0, done.err
    call("export", store, tmp_path / "here", "--format", "npy")
    assert same(out, tmp_path / "here")
