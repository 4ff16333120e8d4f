"""What a target of Milvus is before a load: databases, aliases, limits, what it holds already."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2
from support.array_source import ArraySource, floats
from support.milvus_proxy import milvus_proxy
from support.milvus_proxy import refusal as busy
from support.milvus_server import own_name, shared_milvus

from milvus_offline.commands.load import load_verdict
from milvus_offline.errors import TargetError, UsageError
from milvus_offline.loading import LoadReport, run_load
from milvus_offline.model import Finding, Schema, Severity, SourceCollection, SourcePartition, VectorType
from milvus_offline.targets import open_target
from milvus_offline.targets.milvus.client import Client
from milvus_offline.targets.milvus.connection import Connection
from milvus_offline.targets.milvus.limits import server_facts
from milvus_offline.targets.milvus.naming import restore
from milvus_offline.targets.milvus.plan import make_plan
from milvus_offline.targets.milvus.refusals import TooLarge, refusal
from milvus_offline.targets.milvus.terms import Existing, LoadOptions, Plan


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_milvus(tmp_path_factory).uri


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return own_name(request.node.name)


def source(name: str, rows: int = 20, seed: int = 0, first: int = 0, dim: int = 8) -> ArraySource:
    return ArraySource({name: {"_default": [(np.arange(first, first + rows), floats(rows, dim, seed))]}})


def load(of: Any, address: str, state: Path, *, dry_run: bool = False, **options: Any) -> LoadReport:
    return run_load(of, open_target(address, **options), state=state, dry_run=dry_run)


def codes(report: LoadReport) -> list[str]:
    return [f.code for f in report.findings]


# Databases ------------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_the_path_of_the_address_is_the_database(server: str, tmp_path: Path, name: str) -> None:
    admin = MilvusClient(server)
    if "proj1" not in admin.list_databases():
        admin.create_database("proj1")
    for public in (False, True):
        options: dict[str, Any] = {"public_insert": public, "mode": "overwrite", "verify": "full"}
        report = load(source(name), f"{server}/proj1", tmp_path / f"{public}", **options)
        assert (report.exit_code, report.rows, report.target) == (0, 20, f"{server}/proj1")
        there = MilvusClient(server, db_name="proj1", dedicated=True)
        assert there.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"] == 20
        assert not MilvusClient(server, dedicated=True).has_collection(name)
    with pytest.raises(TargetError, match=f"{server}/proj1: .*20 rows already|has 20 rows already"):
        load(source(name), server, tmp_path / "again", database="proj1")


def test_two_databases_are_refused() -> None:
    with pytest.raises(UsageError, match="names the database 'a', --database 'b'"):
        open_target("http://localhost:19530/a", database="b")
    with pytest.raises(UsageError, match="expected a database's name"):
        open_target("http://localhost:19530/a/b")
    assert open_target("http://localhost:19530/a/", database="a").where == ("http://localhost:19530", "a")


# Aliases --------------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_name_that_is_an_alias_is_refused_in_the_plan(server: str, tmp_path: Path, name: str) -> None:
    load(source(f"{name}_v1"), server, tmp_path / "1")
    MilvusClient(server).create_alias(f"{name}_v1", name)
    for dry_run in (True, False):
        with pytest.raises(TargetError, match=f"'{name}' is an alias of the target's collection '{name}_v1'.*--rename"):
            load(source(name), server, tmp_path / "2", dry_run=dry_run)


@pytest.mark.server
def test_an_alias_is_switched_when_the_rows_are_verified(
    server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aliased() -> str:
        return str(MilvusClient(server, dedicated=True).describe_collection(alias)["collection_name"])

    alias = f"{name}_alias"
    report = load(source(name), server, tmp_path / "1", rename={name: f"{name}_v1"}, switch_alias=alias)
    assert (codes(report)[-1], aliased()) == ("alias-switched", f"{name}_v1")
    load(source(name, seed=1), server, tmp_path / "2", rename={name: f"{name}_v2"}, switch_alias=alias)
    assert aliased() == f"{name}_v2"
    wrong = Finding(Severity.ERROR, "verify-rows", name, "differs", 1)
    monkeypatch.setattr("milvus_offline.targets.milvus.target.compare_rows", lambda *a, **k: [wrong])
    report = load(source(name, seed=2), server, tmp_path / "3", rename={name: f"{name}_v3"}, switch_alias=alias)
    assert (report.exit_code, codes(report)[-1], aliased()) == (4, "alias-kept", f"{name}_v2")
    with pytest.raises(UsageError, match="needs verified rows"):
        open_target(server, switch_alias=alias, verify="none")


def test_newer_servers_do_not_drop_what_has_aliases(name: str) -> None:
    facts = server_facts("server", "v2.4.1", {"c": HELD}, aliases={"a": "c"})
    with pytest.raises(TargetError, match=r"drops no collection that has aliases.*--switch-alias a"):
        planned(Schema("c", 8, metric_type="L2"), facts, mode="overwrite")
    old = server_facts("server", "v2.3.5", {"c": HELD}, aliases={"a": "c"})
    assert planned(Schema("c", 8, metric_type="L2"), old, mode="overwrite").collections[0].action == "recreate"


# Limits by version ----------------------------------------------------------------------------------------------------

HELD = Existing(5, 8, VectorType.FLOAT, "id", False, "vector", None, "L2", ("_default",))


def planned(schema: Schema, facts: Any, tags: tuple[str, ...] = ("_default",), **options: Any) -> Plan:
    collection = SourceCollection(schema, [SourcePartition(t, []) for t in tags])
    return make_plan([collection], {}, LoadOptions(**options), facts)


@pytest.mark.parametrize(
    ("version", "tag", "taken"),
    [
        ("v2.3.5", "a-b", False),
        ("v2.4.18", "a-b", False),
        ("2.4.19", "a-b", True),
        ("v2.5.0", "a-b", True),
        ("v2.6.1", "-1", False),
        ("3.0.2", "-1", False),
        ("3.0.2", "1-", True),
    ],
)
def test_hyphens_in_partition_names(version: str, tag: str, taken: bool) -> None:
    facts = server_facts("server", version, {})
    schema = Schema("c", 8, metric_type="L2")
    if taken:
        assert planned(schema, facts, (tag,)).collections[0].partitions[0].target == tag
    else:
        with pytest.raises(UsageError, match="refuses the partition name"):
            planned(schema, facts, (tag,))
    (partition,) = planned(schema, facts, (tag,), names="sanitize").collections[0].partitions
    assert restore(partition.target) == tag
    assert not partition.target.startswith("-")


@pytest.mark.parametrize(("version", "room"), [("v2.5.4", 60_000), ("v2.6.19", 1024), ("v3.0.0", 1024)])
def test_descriptions_fit(version: str, room: int) -> None:
    tags = tuple(f"größe {i}" for i in range(300))
    (plan,) = planned(Schema("c", 8, metric_type="L2"), server_facts("server", version, {}), tags, names="sanitize").collections
    assert 0 <= len(plan.description.encode()) <= room
    assert ("größe 299" in plan.description) is (room > 1024)


def test_shards_and_partitions_have_a_limit() -> None:
    facts = server_facts("server", "v2.5.0", {})
    with pytest.raises(UsageError, match="--shards 17: the target takes at most 16"):
        planned(Schema("c", 8, metric_type="L2"), facts, shards=17)
    nearly_full = replace(facts, capacity=7)
    tags = ("_default", "a", "b", "c")
    assert planned(Schema("c", 8, metric_type="L2"), nearly_full, tags).collections[0].shards == 1
    with pytest.raises(TargetError, match=r"room for 7 more partitions .*these collections need 8"):
        planned(Schema("c", 8, metric_type="L2"), nearly_full, tags, shards=2)


def test_a_message_over_the_servers_own_limit_is_made_smaller() -> None:
    reason = "parameter too large[exceeds maxInsertSize]"
    assert isinstance(refusal(Connection("http://localhost:19530"), 1102, 0, reason, False), TooLarge)


# What is there already ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["lite", "server"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "lite.db") if request.param == "lite" else request.getfixturevalue("server")


@pytest.mark.server
def test_skip_compares(target: str, tmp_path: Path, name: str) -> None:
    load(source(name, 20), target, tmp_path / "1")
    same = load(source(name, 20), target, tmp_path / "2", mode="skip")
    assert (same.exit_code, codes(same)) == (0, ["skipped"])
    for other in (source(name, 40), source(name, 20, seed=3), source(name, 20, dim=16)):
        report = load(other, target, tmp_path / "3", mode="skip")
        assert (report.exit_code, set(codes(report))) == (3, {"skipped", "skip-differs"}), report.findings


def test_rows_that_an_append_to_lite_replaces_are_named(tmp_path: Path, name: str) -> None:
    lite = str(tmp_path / "lite.db")
    load(source(name, 20), lite, tmp_path / "1")
    plan = load(source(name, 10, seed=1, first=15), lite, tmp_path / "2", mode="append", dry_run=True)
    report = load(source(name, 10, seed=1, first=15), lite, tmp_path / "3", mode="append", verify="full")
    for told in (plan, report):
        (lost,) = [f for f in told.findings if f.code == "duplicates-collapsed"]
        assert (lost.rows, told.exit_code) == (5, 3)
        assert "15, 16, 17, 18, 19" in lost.message
    assert not [f for f in report.findings if f.code.startswith("verify-")]  # 15 from before, 10 new
    again = load(source(name, 10, seed=2, first=15), lite, tmp_path / "4", mode="append", verify="full")
    assert [f.rows for f in again.findings if f.code == "duplicates-collapsed"] == [10]
    assert not [f for f in again.findings if f.code.startswith("verify-")]
    clean = load(source(name, 10, seed=2, first=100), lite, tmp_path / "5", mode="append", verify="full")
    assert (clean.exit_code, "duplicates-collapsed" in codes(clean)) == (0, False)


@pytest.mark.server
def test_a_refused_load_into_memory_is_told(server: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Client, collection: str) -> None:
        raise TargetError("load segment failed, OOM if load")

    monkeypatch.setattr(Client, "load", refuse)
    report = load(source(name), server, tmp_path / "1")
    assert (report.exit_code, report.rows, codes(report)) == (3, 20, ["load-refused", "verify-limited"])


@pytest.mark.server
def test_no_load_loads_nothing(server: str, tmp_path: Path, name: str) -> None:
    report = load(source(name), server, tmp_path / "1", load=False)
    assert (report.exit_code, codes(report)) == (0, ["verify-limited"])
    with Client(Connection(server)) as client:
        assert not client.loaded(name)


@pytest.mark.server
def test_what_newer_servers_refuse_is_kept_to_waited_for_or_told(
    server: str, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A message over their own limit, a description too long, a state in which they take no rows, a flush too soon,
    no memory to load."""
    tags = [f"a tag of many letters and blanks, {'x' * 80} {n}" for n in range(9)]
    rows = ArraySource({name: {t: [(np.arange(400) + 400 * n, floats(400, 8, n))] for n, t in enumerate(tags)}})
    with milvus_proxy(server, "2.6.19") as proxy:
        refuse = proxy._refuse_Insert

        def once(request: bytes) -> Any:
            answer = refuse(request)
            proxy.deny = ""
            return answer

        proxy.max_insert, proxy.deny, proxy.no_memory = 10_000, "force deny", True
        too_soon = iter([milvus_pb2.FlushResponse(status=busy(8, "rate limit exceeded[rate=0.1]", retriable=True))])
        proxy._refuse_Insert = once  # type: ignore[method-assign]
        proxy._refuse_Flush = lambda request: next(too_soon, None)  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING, "milvus_offline"):
            report = load(rows, proxy.uri, tmp_path, names="sanitize")
    assert (report.exit_code, report.rows) == (3, 3600)
    assert "load-refused" in codes(report)
    assert proxy.calls.count("Insert") > 9 + 1
    assert proxy.calls.count("Flush") == 2
    told, *_ = [r.getMessage() for r in caplog.records if "waiting" in r.getMessage()]
    assert "waiting for the server, up to 300 s: quota exceeded[reason=force deny]" in told
    with Client(Connection(server)) as client:
        client.load(name)
        assert client.count(name, ()) == 3600


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_collections_name_that_no_server_takes_is_refused_by_the_plan(server: str, tmp_path: Path, name: str) -> None:
    of = source(f"{name}-1")
    with pytest.raises(UsageError, match=r"refuses the collection name .*-1'.*Use --names sanitize or --rename"):
        load(of, server, tmp_path / "1", dry_run=True)
    assert load(of, server, tmp_path / "2", names="sanitize").plan.collections[0].name == f"{name}_x2d_1"


def test_milvus_lite_2_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.5.1")
    with pytest.raises(TargetError, match=r"milvus-lite 2\.5 is installed.*pip install"):
        load(source("c"), str(tmp_path / "x.db"), tmp_path / "1")
    assert not (tmp_path / "x.db").exists()


def test_a_load_that_skips_all_says_so(tmp_path: Path) -> None:
    lite = str(tmp_path / "x.db")
    load(source("c"), lite, tmp_path / "1")
    report = load(source("c"), lite, tmp_path / "2", mode="skip")
    assert load_verdict(report)["text"] == "Nothing was loaded: 1 collection left alone, as the target has it."
