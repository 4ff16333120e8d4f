"""What a large load needs: few messages and questions, parts for several machines, a pace, and words for each phase."""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2
from support.array_source import ArraySource, floats
from support.milvus_proxy import milvus_proxy
from support.milvus_server import own_name, shared_milvus

from milvus_offline import loading
from milvus_offline.commands.load import report_lines
from milvus_offline.errors import TargetError, UsageError
from milvus_offline.loading import LoadReport, Pace, run_compare, run_load
from milvus_offline.targets import Estimate, open_target
from milvus_offline.targets.milvus import estimate as estimates
from milvus_offline.targets.milvus.client import Client
from milvus_offline.targets.milvus.connection import Connection
from milvus_offline.targets.milvus.refusals import Busy
from milvus_offline.targets.milvus.target import MilvusTarget
from milvus_offline.targets.milvus.wire import Layout

pytestmark = pytest.mark.server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_milvus(tmp_path_factory).uri


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return own_name(request.node.name)


def load(of: Any, address: str, state: Path, **options: Any) -> LoadReport:
    road = {k: options.pop(k) for k in ("resume", "progress", "limit_rate") if k in options}
    return run_load(of, open_target(address, **options), state=state, **road)


def many_tags(name: str, tags: int = 250, rows: int = 3) -> ArraySource:
    return ArraySource({name: {f"t{i}": [(np.arange(rows) + rows * i, floats(rows, 8, i))] for i in range(tags)}})


def counted(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    calls: list[int] = []
    original = getattr(Client, method)

    def count(self: Client, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Client, method, count)
    return calls


@pytest.mark.parametrize("where", ["lite", pytest.param("server", marks=pytest.mark.server)])
def test_partitions_in_a_field_share_messages_and_questions(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "lite.db") if where == "lite" else request.getfixturevalue("server")
    inserts, counts = counted(monkeypatch, "insert"), counted(monkeypatch, "count")
    source = many_tags(name)
    options = {"partitions": "key", "verify": "full", "message_mib": 0.01}
    report = load(source, target, tmp_path / "1", **options)
    assert (report.exit_code, report.rows) == (0, 750)
    assert len(inserts) < 12
    assert not counts  # the field is read instead, a thousand rows at once
    with Client(Connection(target)) as client:
        client.load(name)
        layout = Layout("vector", client.existing(name).vector_type, 8, "id")  # type: ignore[arg-type]
        for tag in ("t0", "t131", "t249"):
            held: Counter[int] = Counter()
            for ids, _ in client.pages(layout, name, None, f'partition == "{tag}"', "id"):
                held.update(ids.tolist())
            assert sorted(held) == source.data[name][tag][0][0].tolist()


def test_a_partition_whose_count_differs_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send = Client.insert

    def forgetful(self: Client, layout: Any, collection: str, partition: str, ids: Any, vectors: Any, keys: Any) -> Any:
        given = [(k, n) if k != "t7" else ("t8", n) for k, n in keys]
        return send(self, layout, collection, partition, ids, vectors, given)

    monkeypatch.setattr(Client, "insert", forgetful)
    report = load(many_tags(name, 20), str(tmp_path / "lite.db"), tmp_path / "1", partitions="key", verify="count")
    assert [(f.code, f.where, f.rows) for f in report.findings] == [
        ("partitions-in-field", name, None),
        ("verify-count", f"{name}/t7", 3),
        ("verify-count", f"{name}/t8", 3),
    ]


@pytest.mark.server
def test_parts_of_a_load_fill_one_collection(server: str, tmp_path: Path, name: str) -> None:
    ids = np.arange(3000)
    source = ArraySource({name: {"_default": [(ids[:2000], floats(2000))], "p": [(ids[2000:], floats(1000, seed=1))]}})
    rows = 0
    for i in (2, 1, 3):
        report = load(source, server, tmp_path / f"{i}", part=(i, 3), message_mib=0.01)
        assert report.exit_code == 0, report.findings
        assert "verify-limited" in [f.code for f in report.findings]
        rows += report.rows
        whole, differing = run_compare(source, open_target(server, verify="full"))
        assert (whole, bool(differing)) == (3000, i != 3)
    assert rows == 3000


def test_what_cannot_be_loaded_in_parts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --mode"):
        open_target("http://127.0.0.1:1", part=(1, 2), mode="append")
    with pytest.raises(UsageError, match="--part does not go with"):
        open_target(str(tmp_path / "x.db"), part=(1, 2))


def test_a_pace_is_kept_by_all_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

    monkeypatch.setattr(loading.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(loading.time, "sleep", lambda seconds: setattr(Clock, "now", Clock.now + seconds))
    pace = Pace(1000)
    for _ in range(5):
        pace.wait(500, lambda rows, nbytes: None)
    assert Clock.now == pytest.approx(102.5)


def test_a_limited_load_arrives_whole(tmp_path: Path, name: str) -> None:
    source = ArraySource({name: {"_default": [(np.arange(100), floats(100))]}})
    report = load(source, str(tmp_path / "lite.db"), tmp_path / "1", limit_rate=1e9)
    assert (report.exit_code, report.rows) == (0, 100)


def test_a_server_that_wants_to_be_waited_for_is_told_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send, refused = Client.insert, []

    def busy(self: Client, *arguments: Any) -> Any:
        if not refused:
            refused.append(1)
            raise Busy("quota exceeded[reason=memory quota exceeded, please allocate more resources]")
        return send(self, *arguments)

    monkeypatch.setattr(Client, "insert", busy)
    source = ArraySource({name: {"_default": [(np.arange(10), floats(10))]}})
    with caplog.at_level(logging.WARNING, "milvus_offline"):
        assert load(source, str(tmp_path / "lite.db"), tmp_path / "1").exit_code == 0
    (told,) = [r.getMessage() for r in caplog.records if "waiting" in r.getMessage()]
    assert "waiting for the server, up to 300 s: quota exceeded[reason=memory quota" in told


def test_every_phase_is_shown(tmp_path: Path, name: str) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.said: list[str] = []
            self.rows = 0

        def start(self, rows: int, nbytes: int, done_rows: int, done_bytes: int) -> None:
            self.said.append(f"start {rows}")

        def advance(self, rows: int, nbytes: int) -> None:
            self.rows += rows

        def now(self, what: str) -> None:
            self.said.append(what)

        def close(self) -> None: ...

    shown = Recorder()
    source = ArraySource({name: {"_default": [(np.arange(10), floats(10))]}})
    load(source, str(tmp_path / "lite.db"), tmp_path / "1", progress=shown)
    named = [s for s in shown.said if not s.startswith("start")]
    assert named[0] == "reading the source once"
    assert named[-3:] == ["waiting until the target has all rows", "indexing", "verifying"]
    assert shown.said[0] == "start 10"
    assert shown.rows == 20  # read once, sent once


# What it will take ----------------------------------------------------------------------------------------------------


def test_the_plan_says_what_sending_and_reading_back_will_take(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "WORTH_BYTES", 0)
    source = ArraySource({name: {t: [(np.arange(400), floats(400, 8))] for t in ("_default", "p")}})
    report = load(source, server, tmp_path / "1", message_mib=0.005)
    made = report.plan.estimate
    assert made is not None
    assert (made.rows, made.bytes, made.verify) == (800, 800 * 40, "sample")
    assert made.network and made.seconds and made.verify_seconds
    assert made.verify_rows == report.checked_rows  # what the plan says is what is done
    with Client(Connection(server)) as client:
        assert not [c for c in client.pymilvus.list_collections() if "probe" in c]


def test_the_plan_says_what_its_times_rest_on(server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "WORTH_BYTES", 0)
    source = ArraySource({name: {"_default": [(np.arange(800), floats(800, 8))]}})

    def made(address: str, limit_rate: float | None = None, **options: Any) -> tuple[Estimate, str]:
        report = run_load(source, open_target(address, **options), dry_run=True, limit_rate=limit_rate)
        assert report.plan.estimate
        return report.plan.estimate, "\n".join(report_lines(report))

    lite, said = made(str(tmp_path / "x.db"), 1000)
    assert (lite.bytes, lite.network, lite.storing, lite.seconds) == (32_000, None, estimates.LITE_BYTES, 32)
    assert "To send: 31.2 KiB, about 32 s without indexes (--limit-rate allows 1000 B/s; how fast this target " in said
    imported, said = made(server, import_to=str(tmp_path))
    assert imported.network is None and imported.seconds == 32_000 / estimates.STORED_BYTES / estimates.IMPORT_FACTOR
    assert "the network" not in said
    part, said = made(server, part=(2, 4))
    assert (part.rows, part.bytes, part.verify_rows) == (200, 8000, 0)
    assert "the network gives" in said


@pytest.mark.parametrize(
    ("gigabytes", "network", "kind", "said"),
    [(8, 1e9, "server", True), (0.5, 1e9, "server", False), (4, 1e6, "server", False), (4, 1e9, "zilliz", False)],
)
def test_an_import_is_suggested_where_it_saves_minutes(gigabytes: float, network: float, kind: str, said: bool) -> None:
    nbytes = int(gigabytes * 1e9)
    made = Estimate(1, nbytes, network, estimates.STORED_BYTES, nbytes / min(network, estimates.STORED_BYTES), "none", 0, 0.0)
    hint = estimates.import_hint(made, kind)
    assert (hint is not None) == said
    assert hint is None or "8 min 20 s, as files that the server imports about 6 min 40 s: --import-to" in hint.message


def test_ctrl_c_does_not_wait_until_the_server_has_loaded_a_collection(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, interrupts = time.monotonic() + 60, iter([signal.SIGINT])

    def loading(answer: bytes) -> Any:
        for number in interrupts:
            signal.raise_signal(number)
        return milvus_pb2.GetLoadingProgressResponse(progress=0 if time.monotonic() < end else 100)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        with milvus_proxy(server, "2.3.5") as proxy, pytest.raises(KeyboardInterrupt):
            monkeypatch.setattr(proxy, "_change_GetLoadingProgress", loading, raising=False)
            load(many_tags(name, 2), proxy.uri, tmp_path / "state")
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() < end


# Two loads at once ----------------------------------------------------------------------------------------------------


def at_once(calls: list[Any]) -> list[Any]:
    """What each call returned or raised; they begin together."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [f.exception() or f.result() for f in futures]


def test_of_two_loads_that_create_a_collection_at_once_one_is_refused(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, planned = ArraySource({name: {"_default": [(np.arange(50), floats(50, 8))]}}), threading.Barrier(2)
    create = Client.create

    def together(self: Client, plan: Any) -> None:
        planned.wait(60)  # neither has created it
        create(self, plan)

    monkeypatch.setattr(Client, "create", together)
    done = at_once([lambda i=i: load(source, server, tmp_path / f"{i}") for i in (1, 2)])
    (refused,) = [d for d in done if isinstance(d, TargetError)]
    assert "another load has created it" in str(refused)
    (report,) = [d for d in done if isinstance(d, LoadReport)]
    assert (report.exit_code, report.rows) == (0, 50)


def test_of_two_loads_that_fill_an_empty_collection_at_once_one_is_refused(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ArraySource({name: {"_default": [(np.arange(50), floats(50, 8))]}})
    load(ArraySource({name: {"_default": []}}), server, tmp_path / "empty")
    insert, other = Client.insert, []

    def meanwhile(self: Client, *arguments: Any) -> Any:
        if not other:
            other.append(at_once([lambda: load(source, server, tmp_path / "other")])[0])
        return insert(self, *arguments)

    monkeypatch.setattr(Client, "insert", meanwhile)
    report = load(source, server, tmp_path / "mine", verify="full")
    assert (report.exit_code, report.rows) == (0, 50)
    assert "is being filled by another load, as an alias says" in str(other[0])
    with Client(Connection(server)) as client:
        assert client.claims(name) == []


def test_an_interrupted_load_keeps_others_out_of_an_empty_collection_until_it_goes_on(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ArraySource({name: {"_default": [(np.arange(50), floats(50, 8))]}})
    load(ArraySource({name: {"_default": []}}), server, tmp_path / "empty")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Client, "insert", unlucky)
        patched.setattr(MilvusTarget, "close", lambda self: None)  # as after kill -9
        load(source, server, tmp_path / "mine")
    with pytest.raises(TargetError) as refused:
        load(source, server, tmp_path / "other")
    assert load(source, server, tmp_path / "mine", resume=True, verify="full").exit_code == 0
    assert load(source, server, tmp_path / "again", mode="overwrite", verify="full").exit_code == 0
    said = re.search(
        rf"killed for good, free it in Python: MilvusClient\('{server}'\)\.drop_alias\('milvus_offline_loading_\w+'\)",
        str(refused.value),
    )
    assert said


def test_a_load_that_begins_anew_takes_away_what_a_killed_one_left(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ArraySource({name: {"_default": [(np.arange(50), floats(50, 8))]}})
    load(ArraySource({name: {"_default": []}}), server, tmp_path / "empty", verify="none", load=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Client, "insert", unlucky)
        patched.setattr(MilvusTarget, "close", lambda self: None)  # as after kill -9
        load(source, server, tmp_path / "mine")
    assert load(source, server, tmp_path / "mine", verify="none", load=False).rows == 50
    with Client(Connection(server)) as client:
        assert client.claims(name) == []


def unlucky(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_parts_that_run_at_once_fill_one_collection(server: str, tmp_path: Path, name: str) -> None:
    source = many_tags(name, 8, 40)
    done = at_once([lambda i=i: load(source, server, tmp_path / f"{i}", part=(i, 3), message_mib=0.001) for i in (1, 2, 3)])
    assert not [d for d in done if not isinstance(d, LoadReport)]
    assert sum(d.rows for d in done) == 320, done
    _, notes = run_compare(source, open_target(server, verify="full"))
    assert not notes


def test_a_collection_that_another_part_makes_while_one_looks_around_is_no_alias(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reports = many_tags(name, 2, 10), []
    listed = MilvusClient.list_collections

    def first_part_meanwhile(client: MilvusClient, *arguments: Any) -> Any:
        found = listed(client, *arguments)
        monkeypatch.undo()
        reports.append(load(source, server, tmp_path / "1", part=(1, 2), message_mib=0.001))
        return found

    monkeypatch.setattr(MilvusClient, "list_collections", first_part_meanwhile)
    reports.append(load(source, server, tmp_path / "2", part=(2, 2), message_mib=0.001))
    assert [r.exit_code for r in reports] == [0, 0] and sum(r.rows for r in reports) == 20


@pytest.mark.parametrize("where", ["lite", "server"])
def test_a_killed_load_goes_on_where_a_field_holds_the_partition(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(tmp_path / "lite.db") if where == "lite" else request.getfixturevalue("server")
    source, options = many_tags(name, 40, 20), {"partitions": "key", "message_mib": 0.002}
    insert, calls = Client.insert, iter(range(100))

    def dies(self: Client, *arguments: Any) -> Any:
        answer = insert(self, *arguments)
        if next(calls) == 5:
            raise KeyboardInterrupt  # the rows are there, and nobody wrote that down
        return answer

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Client, "insert", dies)
        load(source, target, tmp_path / "state", **options)
    report = load(source, target, tmp_path / "state", resume=True, verify="full", **options)
    assert (report.exit_code, report.rows, report.checked_rows) == (0, 800, 800)
    assert logging.getLogger("pymilvus").level == logging.CRITICAL  # what it logs, we raise
