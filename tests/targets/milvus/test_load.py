"""Loading into Milvus Lite and into a real server; what arrived is read back with pymilvus' public calls alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pymilvus import MilvusClient
from support.absent import absent
from support.array_source import ArraySource, bits, floats
from support.milvus_server import MilvusServer, Unavailable, own_name, shared_milvus
from support.real import STORES, truth
from support.tables import catalog_of

from milvus_offline.errors import TargetError, UsageError
from milvus_offline.loading import LoadReport, run_compare, run_load
from milvus_offline.model import Schema, Severity, SourceCollection, VectorType
from milvus_offline.sources.milvus1 import open_store_source
from milvus_offline.targets import open_target
from milvus_offline.targets.milvus.client import Client
from milvus_offline.targets.milvus.connection import Connection
from milvus_offline.targets.milvus.naming import restore, sanitize

pytestmark = pytest.mark.server

pytest.importorskip("milvus_lite")
Rows = dict[str, Counter[tuple[int, bytes]]]


def start(what: Any) -> Any:
    try:
        return what()
    except Unavailable as e:
        absent(f"NO MILVUS SERVER, so nothing is known about loading into one: {e}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_milvus(tmp_path_factory).uri


@pytest.fixture(params=["lite", "server"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "lite":
        return str(tmp_path / "lite.db")
    return str(request.getfixturevalue("server"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A collection's name that no other test uses."""
    return own_name(request.node.name)


def load(source: Any, target: str, state: Path, verify: Any = "full", resume: bool = False, **options: Any) -> LoadReport:
    if "message_bytes" in options:
        options["message_mib"] = options.pop("message_bytes") / (1 << 20)
    return run_load(source, open_target(target, verify=verify, **options), state=state, resume=resume)


def read_back(target: str, collection: str, vector_type: VectorType = VectorType.FLOAT) -> Rows:
    """Rows by partition, read with the public query iterator."""
    client = MilvusClient(target, dedicated=True)
    try:
        client.load_collection(collection)
        described = client.describe_collection(collection)["fields"]
        keyed = any(f.get("is_partition_key") for f in described)

        def read(partition: str) -> Counter[tuple[int, bytes]]:
            rows: Counter[tuple[int, bytes]] = Counter()
            iterator = client.query_iterator(
                collection,
                batch_size=1000,
                output_fields=["id", "vector"],
                partition_names=None if keyed else [partition],
                consistency_level="Strong",
            )
            while page := iterator.next():
                for row in page:
                    value = row["vector"]
                    data = np.asarray(value, "<f4").tobytes() if vector_type is VectorType.FLOAT else bytes(value[0])
                    rows[row["id"], data] += 1
            iterator.close()
            return rows

        names = ["_default"] if keyed else client.list_partitions(collection)
        with ThreadPoolExecutor(8) as pool:  # each waits for the server's clock
            found = dict(zip(names, pool.map(read, names), strict=True))
    finally:
        client.close()
        if target.endswith(".db"):
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(target)
    return found


def rows_of(ids: Any, vectors: Any) -> Counter[tuple[int, bytes]]:
    return Counter((int(i), v.tobytes()) for i, v in zip(ids, vectors, strict=True))


# What arrives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [False, True], ids=["wire", "public"])
def test_every_row_arrives(target: str, tmp_path: Path, name: str, public: bool) -> None:
    ids = np.r_[np.arange(-700, 800), [-(2**63), 2**63 - 1, -(2**62)]]
    vectors = floats(len(ids))
    vectors[:3] = [[-0.0] * 8, [1e-45] * 8, [3.4028235e38] * 8]
    parts = {
        "_default": [(ids[:500], vectors[:500]), (ids[500:], vectors[500:])],
        "empty": [],
        "2020": [(np.arange(9000, 9003), floats(3))],
    }
    made = open_target(target, public_insert=public, message_mib=4000 / (1 << 20), verify="full")
    report = run_load(ArraySource({name: parts}), made, state=tmp_path / "state")
    server = not target.endswith(".db")
    assert report.exit_code == (3 if server else 0)  # the largest id, see below
    assert [f.code for f in report.findings] == (["id-not-shown"] if server else [])
    assert made.client.fast is not public
    assert (report.rows, report.rows_now) == (1506, 1506)
    found = read_back(target, name)
    shown = ids != 2**63 - 1 if server else np.ones(len(ids), bool)
    assert found == {
        "_default": rows_of(ids[shown], vectors[shown]),
        "empty": Counter(),
        "2020": rows_of(range(9000, 9003), floats(3)),
    }


def test_binary_rows(server: str, tmp_path: Path, name: str) -> None:
    source = ArraySource(
        {name: {"_default": [(np.arange(300), bits(300, 24))]}, f"{name}_p": {"p": [(np.arange(5), bits(5, 8))]}}
    )
    assert load(source, server, tmp_path / "state").exit_code == 0
    assert read_back(server, name, VectorType.BINARY)["_default"] == rows_of(range(300), bits(300, 24))
    assert read_back(server, f"{name}_p", VectorType.BINARY)["p"] == rows_of(range(5), bits(5, 8))


def test_odd_partition_names(server: str, tmp_path: Path, name: str) -> None:
    tags = ["größe", "東京", "a.b-c/d", "emoji🙂", "with blank", "_x2f_"]
    source = ArraySource({name: {t: [(np.arange(10 * i, 10 * i + 10), floats(10, seed=i))] for i, t in enumerate(tags)}})
    with pytest.raises(UsageError, match=r"refuses the partition name 'größe'.*--names sanitize"):
        load(source, server, tmp_path / "state")
    client = MilvusClient(server)
    assert not client.has_collection(name)
    assert load(source, server, tmp_path / "state", names="sanitize").exit_code == 0
    found = read_back(server, name)
    assert {restore(p) for p in found} == {*tags, "_default"}
    for i, tag in enumerate(tags):
        assert found[sanitize(tag)] == rows_of(range(10 * i, 10 * i + 10), floats(10, seed=i))
    said = json.loads(client.describe_collection(name)["description"].removeprefix("milvus_offline: "))
    assert said["partitions"][sanitize("東京")] == "東京"


@pytest.mark.parametrize("policy", ["keep", "first", "last"])
def test_duplicates(target: str, tmp_path: Path, name: str, policy: str) -> None:
    first, last, single = floats(10, seed=1), floats(10, seed=2), floats(5, seed=3)
    source = ArraySource(
        {name: {"_default": [(np.arange(10), first), (np.arange(100, 105), single)], "p": [(np.arange(10), last)]}}
    )
    report = load(source, target, tmp_path / "state", duplicates=policy)
    found = read_back(target, name)
    lite = target.endswith(".db")
    ones, tens = rows_of(range(100, 105), single), rows_of(range(10), first)
    if policy == "keep" and not lite:
        assert report.exit_code == 0
        assert found == {"_default": ones + tens, "p": rows_of(range(10), last)}
    elif policy == "first":
        assert report.exit_code == 0
        assert found == {"_default": ones + tens, "p": Counter()}
    else:
        assert report.exit_code == (3 if policy == "keep" else 0)
        assert found == {"_default": ones, "p": rows_of(range(10), last)}
    with pytest.raises(UsageError, match="10 rows repeat an id"):
        load(source, target, tmp_path / "state", duplicates="error", mode="overwrite")


def test_ids_by_the_target(target: str, tmp_path: Path, name: str) -> None:
    vectors = floats(2500)
    source = ArraySource(
        {name: {"_default": [(np.arange(2500), vectors)], "p": [(np.arange(10), floats(10, seed=9))]}},
        without_ids=frozenset({name}),
    )
    report = load(source, target, tmp_path / "state", message_bytes=20_000)
    assert report.exit_code == 0
    found = read_back(target, name)
    assert Counter(v for _, v in found["_default"].elements()) == Counter(v.tobytes() for v in vectors)
    assert Counter(v for _, v in found["p"].elements()) == Counter(v.tobytes() for v in floats(10, seed=9))


@pytest.mark.parametrize("how", ["merge", "key"])
def test_partitions_otherwise(target: str, tmp_path: Path, name: str, how: str) -> None:
    parts = {'a "b"\\c': [(np.arange(50), floats(50))], "東京": [(np.arange(50, 80), floats(30, seed=1))]}
    assert load(ArraySource({name: parts}), target, tmp_path / "state", partitions=how).exit_code == 0
    everything = sum(read_back(target, name).values(), Counter())
    assert everything == rows_of(range(50), floats(50)) + rows_of(range(50, 80), floats(30, seed=1))
    if how == "key":
        with Client(Connection(target)) as client:
            client.load(name)
            assert client.count(name, (), 'partition == "東京"') == 30


class AllStores:
    """The real stores at once, their collections renamed `store__collection`: one flush and one load for all. Of the
    collections only those are there that bring a property which none before them has: a server takes seconds for each."""

    kind = "milvus1"
    findings = ()
    salvage = ()

    def __init__(self, *, floating_only: bool) -> None:
        known: set[tuple[Any, ...]] = set()
        self.collections: list[SourceCollection] = []
        self.truth: dict[str, dict[str, Counter[tuple[int, bytes]]]] = {}
        for name in sorted(p.name for p in STORES.iterdir() if (p / "truth.npz").exists()):
            source = open_store_source(STORES / name / "store", **catalog_of(name))
            for c in source.collections:
                if floating_only and c.schema.vector_type is VectorType.BINARY:
                    continue
                rows = {p: rows for (n, p), rows in truth(name).items() if n == c.schema.name}
                if (properties := _properties(c.schema, rows)) <= known:
                    continue
                known |= properties
                new = f"{name}__{c.schema.name}"
                self.collections.append(replace(c, schema=replace(c.schema, name=new)))
                self.truth[new] = rows

    def describe(self) -> dict[str, Any]:
        return {}

    def fingerprint(self) -> str:
        return "all"


def _properties(schema: Schema, rows: Mapping[str, Counter[tuple[int, bytes]]]) -> set[tuple[Any, ...]]:
    """All that makes a target treat a collection otherwise than another: its shape, and what is special in its ids."""
    ids = Counter(i for bag in rows.values() for i, _ in bag.elements())
    special = {
        "none": not ids,
        "repeated": max(ids.values(), default=0) > 1,
        "largest": max(ids, default=0) == 2**63 - 1,
        "negative": min(ids, default=0) < 0,
        "partitions": len(rows) > 1,
        schema.metric_type: True,
        schema.index.type: True,
    }
    return {(schema.vector_type, what) for what, holds in special.items() if holds}


def test_every_kind_of_real_collection(target: str, tmp_path: Path) -> None:
    source = AllStores(floating_only=target.endswith(".db"))
    report = load(source, target, tmp_path / "state", names="sanitize", verify="count")
    assert report.exit_code == 3, report.findings  # repeated ids in Lite; the largest id in a server
    left = {"duplicates-collapsed"} if target.endswith(".db") else {"id-not-shown"}
    assert {f.code for f in report.findings if f.severity is not Severity.INFO} == left
    assert len(source.collections) >= 10
    with ThreadPoolExecutor(1 if target.endswith(".db") else 4) as pool:
        all_found = list(pool.map(lambda c: read_back(target, c.schema.name, c.schema.vector_type), source.collections))
    for c, found in zip(source.collections, all_found, strict=True):
        expected = source.truth[c.schema.name]
        if not target.endswith(".db"):
            expected = {p: Counter({r: n for r, n in rows.items() if r[0] != 2**63 - 1}) for p, rows in expected.items()}
        repeated = Counter(i for rows in expected.values() for i, _ in rows.elements())
        for partition, rows in expected.items():
            there = found[partition if target.endswith(".db") or partition == "_default" else sanitize(partition)]
            single = Counter({r: n for r, n in rows.items() if repeated[r[0]] == 1})
            assert Counter({r: n for r, n in there.items() if repeated[r[0]] == 1}) == single, (c.schema.name, partition)
            assert set(there) <= set(rows)
        ids = {i for rows in found.values() for i, _ in rows}
        assert ids == set(repeated)
    if not target.endswith(".db"):  # one of each metric and index: a server takes seconds for each collection
        source.collections = list({(c.schema.metric_type, c.schema.index.type): c for c in source.collections}.values())
    _, notes = run_compare(source, open_target(target, verify="sample"), searches=100)
    searched = " ".join(f.message for f in notes if f.code == "search-recall")
    assert "search-differs" not in {f.code for f in notes}
    assert "100 searches for sampled rows give the exact 10 nearest (FLAT, L2)" in searched
    assert target.endswith(".db") or "give the exact 10 nearest (BIN_FLAT, JACCARD)" in searched


# Kills ------------------------------------------------------------------------------------------------------------------


def cli(*words: str, env: Mapping[str, str] | None = None, **popen: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "milvus_offline", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
        **popen,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.mark.parametrize("kind", ["ids", "duplicates", "none"])
def test_killed_and_resumed(target: str, tmp_path: Path, name: str, kind: str) -> None:
    lite = target.endswith(".db")
    n = 12_000 if lite else 24_000
    rng = random.Random(7)
    numbers = np.random.default_rng(7).permutation(n) - n // 2
    if kind == "duplicates":
        numbers = np.r_[numbers[: n - n // 4], numbers[: n // 4]]
    vectors = floats(n, 32)
    folder = tmp_path / "source"
    folder.mkdir()
    with h5py.File(folder / "None.h5", "w") as h:
        h["embeddings"] = vectors
        if kind != "none":
            h["ids"] = numbers
    state = tmp_path / "state"
    words = ["load", str(folder), target, "--into", name, "--state", str(state), "--verify", "none", "--message-mib", "0.02"]
    ledger = state / "ledger.jsonl"
    kills = 0
    resume: list[str] = []
    for _ in range(3):
        process = cli(*words, *resume)
        before = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
        wanted = before + rng.randrange(3, 40)
        while process.poll() is None and (ledger.read_bytes().count(b"\n") if ledger.exists() else 0) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() / 50)
        if process.poll() is None:
            process.kill()
            kills += 1
        code, _, err = finish(process)
        assert code in (0, 3, -9), err
        resume = ["--resume"]
    assert kills >= 2
    code, out, err = finish(cli(*words[:-4], "--message-mib", "0.02", "--verify", "full", "--json", "--resume"))
    assert code == (3 if lite and kind == "duplicates" else 0), (out, err)
    found = read_back(target, name)["_default"]
    if kind == "none":
        assert Counter(v for _, v in found.elements()) == Counter(v.tobytes() for v in vectors)
    elif kind == "ids":
        assert found == rows_of(numbers, vectors)
    else:
        ours = rows_of(numbers, vectors)
        assert set(found) <= set(ours)
        assert {i for i, _ in found} == {i for i, _ in ours}
        with Client(Connection(target)) as client:
            assert client.count(name, ["_default"]) == (len(set(numbers.tolist())) if lite else n)


SLOW_DISK = """
import os, sys, time
fsync = os.fsync
os.fsync = lambda fd: (time.sleep(0.3), fsync(fd))
from milvus_offline.cli import main
main()
"""


def test_killed_while_the_ledger_is_behind(server: str, tmp_path: Path, name: str) -> None:
    """Messages are quick and the state's disk is slow: no more may be under way than a resumed run looks for."""
    folder = tmp_path / "source"
    folder.mkdir()
    with h5py.File(folder / "None.h5", "w") as h:
        h["embeddings"] = floats(60_000, 32)
        h["ids"] = np.arange(60_000)
    state = tmp_path / "state"
    words = ["load", str(folder), server, "--into", name, "--state", str(state), "--message-mib", "0.02"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_DISK, *words], stderr=subprocess.PIPE)
    ledger = state / "ledger.jsonl"
    while process.poll() is None and (ledger.read_bytes().count(b"\n") if ledger.exists() else 0) < 6:
        time.sleep(0.01)
    time.sleep(0.25)
    process.kill()
    process.communicate()
    assert process.returncode == -9
    code, out, err = finish(cli(*words, "--verify", "full", "--json", "--resume"))
    assert code == 0, (out, err)


def test_the_server_is_killed_meanwhile(tmp_path: Path) -> None:
    with start(lambda: MilvusServer(tmp_path / "server")) as own:
        n = 60_000
        source = ArraySource({"plain": {"_default": [(np.arange(n), floats(n, 32))]}})
        done = threading.Event()

        def interrupt() -> None:
            ledger = tmp_path / "state" / "ledger.jsonl"
            while not done.is_set() and (not ledger.exists() or ledger.read_bytes().count(b"\n") < 20):
                time.sleep(0.005)
            own.kill()
            own.start()

        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            report = load(source, own.uri, tmp_path / "state", message_bytes=50_000)
        finally:
            done.set()
            thread.join()
        assert report.seconds_sending > 4  # it waited for the restart
        assert (report.exit_code, report.rows) == (0, n)


def test_append_and_resume_leaves_rows_of_others(server: str, tmp_path: Path, name: str) -> None:
    theirs, ours = floats(100, seed=1), floats(100, seed=2)
    assert load(ArraySource({name: {"_default": [(np.arange(100), theirs)]}}), server, tmp_path / "a").exit_code == 0
    source = ArraySource({name: {"_default": [(np.arange(50, 150), ours)]}})
    state = tmp_path / "b"
    load(source, server, state, mode="append", message_bytes=1000, verify="none")
    lines = (state / "ledger.jsonl").read_text().splitlines(keepends=True)
    (state / "ledger.jsonl").write_text("".join(lines[:-3]))  # three acknowledged messages without an entry
    report = load(source, server, state, mode="append", message_bytes=1000, verify="none", resume=True)
    assert report.rows == 100
    with Client(Connection(server)) as client:
        assert client.count(name, ["_default"]) == 200


# Refusals ---------------------------------------------------------------------------------------------------------------


def small(name: str, **changes: Any) -> ArraySource:
    return ArraySource({name: {"_default": [(np.arange(20), floats(20))]}}, **changes)


def test_rows_already_there(target: str, tmp_path: Path, name: str) -> None:
    assert load(small(name), target, tmp_path / "1").exit_code == 0
    with pytest.raises(TargetError, match=r"has 20 rows already.*--mode append"):
        load(small(name), target, tmp_path / "2")
    report = load(small(name), target, tmp_path / "2", mode="skip")
    assert (report.rows, [f.code for f in report.findings]) == (0, ["skipped"])
    other = ArraySource({name: {"_default": [(np.arange(5), floats(5, 16))]}})
    with pytest.raises(TargetError, match="dimension 8 there, 16 here"):
        load(other, target, tmp_path / "2", mode="append")
    assert load(other, target, tmp_path / "2", mode="overwrite").rows == 5
    assert read_back(target, name)["_default"] == rows_of(range(5), floats(5, 16))


def test_not_finite(target: str, tmp_path: Path, name: str) -> None:
    vectors = floats(20)
    vectors[3, 1], vectors[7, 0] = np.nan, -np.inf
    source = ArraySource({name: {"_default": [(np.arange(20), vectors)]}})
    with pytest.raises(UsageError, match=r"2 rows hold NaN or Inf \(ids 3, 7\).*--nonfinite skip"):
        load(source, target, tmp_path / "state")
    if target.endswith(".db"):
        assert not Path(target).exists()
    report = load(source, target, tmp_path / "state", nonfinite="skip")
    assert (report.exit_code, report.rows) == (3, 18)
    keep = np.isfinite(vectors).all(axis=1)
    assert read_back(target, name)["_default"] == rows_of(np.flatnonzero(keep), vectors[keep])


def test_wrong_dimension(target: str, tmp_path: Path, name: str) -> None:
    wide = ArraySource({name: {"_default": [(np.arange(2), floats(2, 32769))]}})
    with pytest.raises(TargetError, match=r"dimension 32769: the target takes \d to 32768"):
        load(wide, target, tmp_path / "state")


def test_binary_into_lite(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Milvus Lite cannot hold binary vectors"):
        load(ArraySource({"b": {"_default": [(np.arange(3), bits(3))]}}), str(tmp_path / "x.db"), tmp_path / "state")
    assert not (tmp_path / "x.db").exists()


def test_too_large_messages_shrink(server: str, tmp_path: Path, name: str) -> None:
    n = 36_000  # 72 MB in one message; the server takes 64 MiB
    source = ArraySource({name: {"_default": [(np.arange(n), floats(n, 500))]}})
    report = load(source, server, tmp_path / "state", message_bytes=80 << 20, verify="sample")
    assert (report.exit_code, report.rows) == (0, n)


def h5(path: Path) -> str:
    with h5py.File(path, "w") as h:
        h["embeddings"], h["ids"] = floats(10), np.arange(10)
    return str(path)


def test_refusals_on_the_command_line(tmp_path: Path) -> None:
    source = h5(tmp_path / "a.h5")
    for words, code, text in (
        (["http://127.0.0.1:1"], 1, "nothing listens on port 1"),
        (["http://me:secret@127.0.0.1:1"], 2, "other users of this machine can see"),
        (["ftp://nowhere"], 2, "a target is"),
        ([str(tmp_path / "no" / "x.db")], 1, "no such folder"),
        ([str(tmp_path / "x.db"), "--rename", "b=c"], 2, "not in the source"),
        ([str(tmp_path / "x.db"), "--state", source], 2, "inside the source"),
    ):
        got, _, err = finish(cli("load", source, *words))
        assert (got, "secret" in err, "Traceback" in err) == (code, False, False), err
        assert text in err
    assert not (tmp_path / "x.db").exists()


def test_dry_run_creates_nothing(tmp_path: Path) -> None:
    source = h5(tmp_path / "a.h5")
    state = tmp_path / "home"
    code, out, err = finish(
        cli("load", source, str(tmp_path / "x.db"), "--dry-run", "--json", env={"XDG_STATE_HOME": str(state)})
    )
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert [(c["name"], c["action"], c["rows"], c["dimension"]) for c in plan] == [("a", "create", 10, 8)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]


@pytest.mark.skipif(os.geteuid() != 0 or not sys.platform.startswith("linux"), reason="mounts a small file system")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        with h5py.File(tmp_path / "a.h5", "w") as h:
            h["embeddings"] = floats(20_000, 64)
        code, _, err = finish(cli("load", str(tmp_path / "a.h5"), str(disk / "x.db"), "--state", str(tmp_path / "s")))
        assert code == 1
        assert "disk is full" in err
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[MilvusServer]:
    with start(lambda: MilvusServer(tmp_path / "server", "authorization_enabled=true")) as own:
        yield own


def test_wrong_and_right_token(guarded: MilvusServer, tmp_path: Path) -> None:
    source = h5(tmp_path / "a.h5")
    words = ["load", source, guarded.uri, "--state", str(tmp_path / "s")]
    for env in ({}, {"MILVUS_TOKEN": "root:wrong-secret"}):
        code, out, err = finish(cli(*words, env=env))
        assert code == 1
        assert "check the token" in err
        assert "wrong-secret" not in out + err
    (tmp_path / "token").write_text("root:Milvus\n")
    code, out, err = finish(cli(*words, "--token-file", str(tmp_path / "token"), "-v"))
    assert code == 0, err
    assert not [p for p in (tmp_path / "s").iterdir() if b"root:Milvus" in p.read_bytes()]


def test_metric_and_index_are_carried_over(server: str, tmp_path: Path, name: str) -> None:
    from milvus_offline.model import IndexSpec

    schema = Schema(name, 8, VectorType.FLOAT, "IP", IndexSpec("IVFSQ8", {"nlist": 100_000}))
    report = load(small(name, schemas={name: schema}), server, tmp_path / "state")
    assert report.exit_code == 0
    with Client(Connection(server)) as client:
        found = client.index_of(name, "vector")
    assert (found["index_type"], found["metric_type"], int(found["nlist"])) == ("IVF_SQ8", "IP", 65536)
    assert any("nlist 100000 is over the limit" in f.message for f in report.findings)


# Bulk import ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_bulk_import(server: str, tmp_path: Path, name: str, file_format: str) -> None:
    base = tmp_path.parents[1] if "PYTEST_XDIST_WORKER" in os.environ else tmp_path.parent
    storage = next(p for p in (base, *base.parents) if (p / "milvus").is_dir()) / "milvus" / "data" / "data" / name
    bucket = {"import_to": str(storage), "import_format": file_format}
    ids = np.r_[np.arange(2000), np.arange(20)]
    parts = {"_default": [(ids, floats(2020))], "p": [(np.arange(5000, 5100), floats(100, seed=1))], "none": []}
    source = ArraySource({name: parts, f"{name}_b": {"_default": [(np.arange(300), bits(300))]}})
    report = load(source, server, tmp_path / "state", duplicates="first", **bucket)
    assert (report.exit_code, report.rows) == (0, 2400)
    found = read_back(server, name)
    first = rows_of(ids[:2000], floats(2020)[:2000])
    assert found == {"_default": first, "p": rows_of(range(5000, 5100), floats(100, seed=1)), "none": Counter()}
    assert read_back(server, f"{name}_b", VectorType.BINARY)["_default"] == rows_of(range(300), bits(300))
    assert not [p for p in storage.rglob("*") if p.is_file()]
    ledger = tmp_path / "state" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))  # killed after the last import, before that was written down
    again = load(source, server, tmp_path / "state", duplicates="first", **bucket, resume=True)
    assert (again.exit_code, again.rows) == (0, 2400)


def test_lite_is_not_pinged(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the pings of an idle connection by closing it, with an error on stderr: the option must be there."""
    given: dict[str, Any] = {}

    class Spy(MilvusClient):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            given.update(options)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("pymilvus.MilvusClient", Spy)
    with Client(Connection(target)):
        pass
    assert ("grpc_options" in given) == target.endswith(".db")
