"""Exports by the workers of a real Dask cluster: the bytes are those of an export on one machine, whoever dies meanwhile."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, files, manifest
from support.daskcluster import Cluster, cluster
from support.real import STORES

import milvus_offline.cluster
from milvus_offline.checking import CheckFile
from milvus_offline.cluster import seen_files
from milvus_offline.sources import open_source
from milvus_offline.transfer import Task

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


@pytest.mark.parametrize("name", ["partitions", "crash_dup", "indexed", "lost_flush"])
def test_the_workers_verify_a_store(name: str, running: Cluster) -> None:
    there, here = (call("verify", STORES / name / "store", "--json", *w) for w in (["--cluster", running.url], []))
    assert there.code == here.code, there.err
    assert there.json == here.json


def test_damage_that_the_workers_find_is_told(running: Cluster, store: Path) -> None:
    raw = sorted(store.rglob("*.rv"))[5]
    raw.write_bytes(raw.read_bytes()[:4096] + bytes(8192) + raw.read_bytes()[12288:])
    there, here = (call("verify", store, "--json", *w) for w in (["--cluster", running.url], []))
    assert there.code == here.code == 4
    assert there.json == here.json


def test_a_target_is_compared_on_one_machine(running: Cluster, store: Path) -> None:
    refused = call("verify", "http://127.0.0.1:9", "--against", store, "--cluster", running.url)
    assert (refused.code, "--cluster goes with a store or an export" in refused.err) == (2, True)


def test_each_worker_gets_an_equal_share_and_who_waits_takes_of_it() -> None:
    from milvus_offline.cluster import Shares

    tasks = [CheckFile(str(n), "", None, {"rows": 5, "bytes": 100}) for n in range(40)]  # type: ignore[arg-type]
    shares = Shares(tasks, {"a": 1, "b": 1, "c": 2})
    each = {w: list(iter(partial(shares.own, w), None)) for w in "abc"}
    assert {w: len(found) for w, found in each.items()} == {"a": 10, "b": 10, "c": 20}
    assert [int(t.id) for t in each["c"]] == sorted(int(t.id) for t in each["c"]), "each in the order of the list"
    shares = Shares(tasks, {"a": 2, "b": 2})
    halves = [sum(t.bytes for t in iter(partial(shares.own, w), None)) for w in "ab"]
    assert halves == [2000, 2000], "of two workers of two threads each has exactly half of the bytes"
    shares = Shares(tasks, {"a": 1, "b": 1})
    assert len(list(iter(partial(shares.own, "a"), None))) == 20
    assert shares.left == len(list(iter(partial(shares.others, "a"), None))) == 20
    assert shares.own("b") is None and shares.others("b") is None


def test_the_work_is_split_equally_and_the_dashboard_shows_our_names(
    running: Cluster, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    from milvus_offline.cluster import Shares

    own, given = Shares.own, Counter[str]()

    def noted(self: Shares, worker: str) -> Task | None:
        if task := own(self, worker):
            given[worker] += task.rows
        return task

    monkeypatch.setattr(Shares, "own", noted)
    done = call("export", store, tmp_path / "out", "--cluster", running.url, "-v")
    assert done.code == 0, done.err
    with Client(running.url.replace("dask", "tcp"), set_as_default=False) as client:
        names = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.task_prefixes))
    assert {"a/_default.h5:0", "b/_default.h5:0", "c/_default.h5:0"} <= set(names)
    told = re.findall(r"worker tcp://\S+: \d+ tasks?, (\d+) rows", done.err)
    assert sorted(given.values()) == [7996, 7996, 8096], "to each of three workers one of three collections"
    assert sum(map(int, told)) == 24_088  # a task that waits behind a slow one may be done by another worker


@pytest.mark.parametrize("name", ["partitions", "crash_wal", "indexed", "binary"])
def test_real_stores(name: str, running: Cluster, tmp_path: Path) -> None:
    done = call("export", STORES / name / "store", tmp_path / "there", "--cluster", running.url)
    assert done.code == 0, done.err
    call("export", STORES / name / "store", tmp_path / "here")
    assert same(tmp_path / "there", tmp_path / "here")


def test_paths_that_not_every_worker_sees_are_named(running: Cluster, store: Path, tmp_path: Path) -> None:
    from milvus_offline.cluster import DaskCluster
    from milvus_offline.errors import TargetError

    raw = next(store.rglob("*.rv"))
    fd = os.dup2(os.open(raw, os.O_RDONLY), 700)
    with DaskCluster(running.url) as workers:
        workers.probe_files([str(raw)], tmp_path)
        with pytest.raises(TargetError, match=r"worker tcp://127.0.0.1:\d+ on .* does not see /proc/self/fd/700 of the source"):
            workers.probe_files([f"/proc/self/fd/{fd}"], tmp_path)  # a path that leads elsewhere in another process
        assert not list(tmp_path.glob(".milvus-offline-probe*"))
    os.close(fd)


def test_wrong_clusters_are_refused_in_one_sentence(store: Path, tmp_path: Path) -> None:
    for url, code, words in (
        ("tcp://127.0.0.1:1", 2, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1", 2, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1:port", 2, "expected dask://HOST:PORT"),
        ("dask://[::1:8786", 2, "expected dask://HOST:PORT"),
        ("dask://127.0.0.1:9", 1, "no Dask scheduler answers there"),
        ("dask://[::1]:9", 1, "no Dask scheduler answers there"),
    ):
        done = call("export", store, tmp_path / "out", "--cluster", url)
        assert (done.code, len(done.err.strip().splitlines())) == (code, 1), done.err
        assert words in done.err
    done = call("export", store, tmp_path / "out", "--cluster", "dask://127.0.0.1:9", "--jobs", "2")
    assert done.code == 2 and "--jobs is about this machine" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_service_is_not_taken_for_a_scheduler(
    says: bytes, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_offline.cluster, "_GREETING_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as service:
        if says:
            threading.Thread(target=lambda: service.accept()[0].sendall(says), daemon=True).start()
            monkeypatch.setattr(milvus_offline.cluster, "_GREETING_SECONDS", 60)
        done = call("export", store, tmp_path / "out", "--cluster", f"dask://127.0.0.1:{service.getsockname()[1]}")
    assert (done.code, "does not speak as a Dask scheduler: is this the port of its dashboard?" in done.err) == (1, True)


def test_workers_of_another_version_are_named(
    running: Cluster, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_offline.cluster, "__version__", "99.0")
    done = call("export", store, tmp_path / "out", "--cluster", running.url)
    assert done.code == 1 and not (tmp_path / "out").exists()
    told = r"not every worker has milvus_offline 99.0, so nothing was begun: (worker tcp://127.0.0.1:\d+: has [\d.]+(; )?){3}"
    assert re.search(told, done.err), done.err


def test_a_run_that_does_not_begin_leaves_everything_as_it_was(
    running: Cluster, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("export", store, tmp_path / "earlier")
    before = files(tmp_path)
    with next(store.rglob("*.rv")).open("rb") as raw:  # seen under another path by other processes
        fd = os.dup2(raw.fileno(), 700)
    monkeypatch.setattr(milvus_offline.cluster, "seen_files", lambda source: [f"/proc/self/fd/{fd}"])
    for words in (["earlier", "--overwrite"], ["a/new"]):
        done = call("export", store, tmp_path / words[0], *words[1:], "--cluster", running.url)
        assert done.code == 1 and "so nothing was begun" in done.err
    os.close(fd)
    inside = call("export", store, store / "db" / "out", "--cluster", running.url)
    assert inside.code == 2 and "lies inside the source" in inside.err
    assert files(tmp_path) == before and not (tmp_path / "a").exists() and not (store / "db" / "out").exists()


def test_a_package_that_a_worker_lacks_is_named(running: Cluster, store: Path, tmp_path: Path) -> None:
    from distributed import Client

    with Client(running.url.replace("dask", "tcp"), set_as_default=False) as client:
        client.run(lambda: __import__("pyarrow.parquet") and sys.modules.update(hidden=sys.modules["pyarrow"], pyarrow=None))
        try:
            done = call("export", store, tmp_path / "out", "--format", "parquet", "--cluster", running.url)
        finally:
            client.run(lambda: sys.modules.update(pyarrow=sys.modules.pop("hidden")))
    assert done.code == 1 and "a worker lacks a package: Parquet needs the package pyarrow: " in done.err
    again = call("export", store, tmp_path / "out", "--format", "parquet", "--cluster", running.url, "--resume")
    assert again.code == 0, again.err


def test_every_kind_of_source_names_files_that_workers_must_see(store: Path, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    vectors = np.arange(400, dtype="<f4").reshape(100, 4)
    np.save(tmp_path / "x.npy", vectors)
    index = faiss.IndexFlatL2(4)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    for form in ("hdf5", "npy", "parquet"):
        call("export", store, tmp_path / form, "--format", form)
    for name in ("x.npy", "x.faiss", "hdf5", "npy", "parquet"):
        seen = seen_files(open_source(tmp_path / name))
        assert seen and all(Path(p).is_relative_to(tmp_path / name) and Path(p).is_file() for p in seen), name


def test_a_path_from_here_on_is_the_same_for_workers(
    running: Cluster, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["export", "store", "out"], ["verify", "out", "--against", "store"], ["verify", "store"]):
        done = call(*words, "--cluster", running.url)
        assert done.code == 0, done.err


# Deaths: of a worker, of the client, of the scheduler ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("mortal"), 3) as made:
        yield made


KINDS = {
    "hdf5": "milvus_offline.targets.hdf5:WriteRows",
    "npy": "milvus_offline.targets.columnar:WriteChunk",
}


@pytest.mark.parametrize("form", KINDS)
def test_a_killed_worker_costs_its_tasks_only(form: str, mortal: Cluster, store: Path, tmp_path: Path) -> None:
    mortal.dies(KINDS[form])
    done = call("export", store, tmp_path / "there", "--format", form, "--cluster", mortal.url)
    assert done.code == 0, done.err
    mortal.renew(1)
    call("export", store, tmp_path / "here", "--format", form)
    assert same(tmp_path / "there", tmp_path / "here")


@pytest.mark.parametrize("what", ["store", "export"])
def test_a_worker_that_is_killed_over_a_verify_changes_nothing_of_its_answer(
    what: str, mortal: Cluster, store: Path, tmp_path: Path
) -> None:
    raw = sorted(store.rglob("*.rv"))[5]
    path = store
    if what == "export":
        path = tmp_path / "out"
        call("export", store, path)
        raw = path / "b" / "_default.h5"
    raw.write_bytes(raw.read_bytes()[:40960] + bytes(8192) + raw.read_bytes()[49152:])
    here = call("verify", path, "--json")
    mortal.dies("milvus_offline.milvus1.verify:CheckSegment" if what == "store" else "milvus_offline.checking:CheckFile")
    there = call("verify", path, "--json", "--cluster", mortal.url)
    mortal.renew(1)
    assert (there.code, there.json) == (here.code, here.json) and there.code == 4


def start(mortal: Cluster, pid: Path, *words: object) -> subprocess.Popen[bytes]:
    """A client in a process of its own, whose number is in `pid` then."""
    command = [sys.executable, "-m", "milvus_offline", *map(str, words), "--cluster", mortal.url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    pid.write_text(f"{process.pid}\n")
    return process


def test_a_killed_client_goes_on_with_resume(mortal: Cluster, store: Path, tmp_path: Path) -> None:
    mortal.dies(KINDS["npy"], tmp_path / "pid")
    words = ["export", store, tmp_path / "there", "--format", "npy"]
    with start(mortal, tmp_path / "pid", *words) as process:
        process.wait(timeout=120)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "there" / "manifest.json").exists()
    done = call(*words, "--cluster", mortal.url, "--resume")
    assert done.code == 0, done.err
    call("export", store, tmp_path / "here", "--format", "npy")
    assert same(tmp_path / "there", tmp_path / "here")


def test_a_scheduler_that_is_lost_is_said_and_the_next_one_finishes(mortal: Cluster, store: Path, tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{mortal.scheduler.pid}\n")
    mortal.dies(KINDS["hdf5"], tmp_path / "pid")
    words = ["export", store, tmp_path / "there", "--cluster", mortal.url]
    lost = call(*words)
    told = f"milvus-offline: {mortal.url}: the scheduler is lost; what is finished is kept: run it again with --resume\n"
    assert (lost.code, lost.err) == (1, told)
    mortal.restart(2)
    done = call(*words, "--resume")
    assert done.code == 0, done.err
    call("export", store, tmp_path / "here")
    assert same(tmp_path / "there", tmp_path / "here")

    (tmp_path / "pid").write_text(f"{mortal.scheduler.pid}\n")
    mortal.dies("milvus_offline.checking:CheckFile", tmp_path / "pid")
    lost = call("verify", tmp_path / "here", "--cluster", mortal.url)
    assert (lost.code, lost.err) == (1, f"milvus-offline: {mortal.url}: the scheduler is lost; run it again\n")
