"""`serve`: the answers of 1.1.1 to wrong calls, hostile clients, limits, TLS and token, health, and how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, fingerprint
from support.served import Raw, Served

from milvus_offline.milvus1.layout import EngineType
from milvus_offline.search.exact import Cancelled
from milvus_offline.serve import rules
from milvus_offline.targets.milvus1.proto import METHODS, hits_bytes, ids_bytes, messages, records_bytes, vectors_of

pytestmark = pytest.mark.server
LARGEST = float(np.finfo(np.float32).max)


def changed(root: Path, statement: str) -> Path:
    """The store after a change of its catalog."""
    database = sqlite3.connect(root / "db" / "meta.sqlite")
    with database:
        database.execute(statement)
    database.close()
    return root


def build(folder: Path) -> StoreBuilder:
    """Float rows with an index in two partitions and the log, binary rows, an empty collection."""
    b = StoreBuilder(folder)
    b.collection("c", flush_lsn=b.wal.insert("c", rows(1)))
    b.collection("ivf", engine_type=int(EngineType.FAISS_IVFFLAT), index_params='{"nlist":16}')
    b.collection("hnsw", engine_type=int(EngineType.HNSW), index_params='{"M":16,"efConstruction":200}')
    b.collection("annoy", engine_type=int(EngineType.ANNOY), index_params='{"n_trees":8}')
    b.collection("nsg", engine_type=int(EngineType.NSG_MIX))
    b.collection("bits", dim=16, metric="JACCARD")
    b.collection("empty", dim=8, metric="IP")
    b.partition("c", "2020/a", table_id="1111111111111111111")
    b.partition("c", "nobody", table_id="2222222222222222222")
    b.segment("c", rows(1, 2, 3), deleted=[1], id="1700000000000000007")
    b.segment("1111111111111111111", rows(3, 5), id="1700000000000000008")
    for name in ("ivf", "hnsw", "annoy", "nsg"):
        b.segment(name, rows(1, 2, 3))
    b.segment("bits", rows(1, 2, dim=16, binary=True))
    b.wal.insert("c", rows(9))
    return b


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("served") / "store").write()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    before = fingerprint(folder)
    with Served(folder) as running:
        yield running
        code, said = running.stop()
    assert (code, said.replace("stopped\n", "")) == (0, "")
    assert fingerprint(folder) == before


@pytest.fixture
def raw(served: Served) -> Iterator[Raw]:
    with Raw(served.address) as connected:
        yield connected


def floats(*vectors: Any) -> list[dict[str, Any]]:
    return [{"float_data": list(v)} for v in vectors]


def params(text: str) -> list[dict[str, str]]:
    return [{"key": "params", "value": text}]


Q = floats([1, 2, 3, 4])
ABSENT = (
    4,
    "Collection absent does not exist. Use milvus.has_collection to verify whether the collection exists. "
    "You also can check whether the collection name exists.",
)
DIMENSION = "The vector dimension must be equal to the collection dimension."
EMPTY = "The vector array is empty. Make sure you have entered vector records."
TOPK = "The topk must be within the range of 1 ~ 16384."
HUGE = "Invalid topk: 2147483648. " + TOPK
NAME = "Invalid collection name: "
NO_ROWS = "Collection or partition is empty"
NOT_FOUND = "Collection c's partition x not found"

WRONG: list[tuple[str, dict[str, Any], int, str]] = [
    ("DescribeCollection", {"collection_name": "absent"}, *ABSENT),
    ("CountCollection", {"collection_name": "absent"}, *ABSENT),
    ("ShowCollectionInfo", {"collection_name": "absent"}, *ABSENT),
    ("ShowPartitions", {"collection_name": "absent"}, *ABSENT),
    ("HasPartition", {"collection_name": "absent", "tag": "x"}, *ABSENT),
    ("DescribeIndex", {"collection_name": "absent"}, *ABSENT),
    ("PreloadCollection", {"collection_name": "absent"}, *ABSENT),
    ("ReleaseCollection", {"collection_name": "absent"}, *ABSENT),
    ("GetVectorIDs", {"collection_name": "absent"}, *ABSENT),
    ("GetVectorsByID", {"collection_name": "absent", "id_array": [1]}, *ABSENT),
    ("Search", {"collection_name": "absent", "topk": 1, "query_record_array": Q}, *ABSENT),
    ("HasCollection", {"collection_name": ""}, 9, "Collection name should not be empty."),
    (
        "CountCollection",
        {"collection_name": "1x"},
        9,
        NAME + "1x. The first character of a collection name must be an underscore or letter.",
    ),
    (
        "CountCollection",
        {"collection_name": "a b"},
        9,
        NAME + "a b. Collection name can only contain numbers, letters, and underscores.",
    ),
    (
        "CountCollection",
        {"collection_name": "größe"},
        9,
        NAME + "größe. Collection name can only contain numbers, letters, and underscores.",
    ),
    (
        "HasCollection",
        {"collection_name": "a" * 256},
        9,
        NAME + "a" * 256 + ". The length of a collection name must be less than 255 characters.",
    ),
    ("GetVectorsByID", {"collection_name": "c"}, 5, "No vector id specified"),
    ("GetVectorsByID", {"collection_name": "c", "id_array": [7] * 1001}, 5, "Input id array size cannot exceed: 1000"),
    ("GetVectorsByID", {"collection_name": "empty", "id_array": [7]}, 1, NO_ROWS),
    ("GetVectorsByID", {"collection_name": "c", "id_array": [1], "partition_tag": "_default"}, 1, NO_ROWS),
    ("GetVectorsByID", {"collection_name": "c", "id_array": [1], "partition_tag": "x"}, 1, NOT_FOUND),
    ("GetVectorsByID", {"collection_name": "c", "id_array": [1], "partition_tag": "nobody"}, 1, NO_ROWS),
    ("GetVectorIDs", {"collection_name": "c", "segment_name": "5"}, 1, "Segment does not exist"),
    (
        "GetVectorIDs",
        {"collection_name": "bits", "segment_name": "1700000000000000007"},
        1,
        "Segment does not belong to this collection",
    ),
    ("Search", {"collection_name": "c", "topk": 0, "query_record_array": Q}, 10, "Invalid topk: 0. " + TOPK),
    ("Search", {"collection_name": "c", "topk": -5, "query_record_array": Q}, 10, "Invalid topk: -5. " + TOPK),
    ("Search", {"collection_name": "c", "topk": 16385, "query_record_array": Q}, 10, "Invalid topk: 16385. " + TOPK),
    ("Search", {"collection_name": "absent", "topk": 1 << 31, "query_record_array": Q}, 10, HUGE),
    ("Search", {"collection_name": "c", "topk": 1}, 11, EMPTY),
    ("Search", {"collection_name": "c", "topk": 1, "query_record_array": [{}]}, 11, EMPTY),
    ("Search", {"collection_name": "c", "topk": 1, "query_record_array": floats([1, 2, 3])}, 7, DIMENSION),
    ("Search", {"collection_name": "c", "topk": 1, "query_record_array": floats([1, 2, 3, 4], [1, 2, 3])}, 11, DIMENSION),
    ("Search", {"collection_name": "c", "topk": 1, "query_record_array": [{"binary_data": b"1234"}]}, 7, DIMENSION),
    ("Search", {"collection_name": "bits", "topk": 1, "query_record_array": Q}, 7, DIMENSION),
    ("Search", {"collection_name": "bits", "topk": 1, "query_record_array": [{"binary_data": b"123"}]}, 7, DIMENSION),
    (
        "Search",
        {"collection_name": "c", "topk": 1, "query_record_array": Q, "partition_tag_array": ["x"]},
        1,
        "The specified partition does not exist",
    ),
    (
        "Search",
        {"collection_name": "absent", "topk": 1, "query_record_array": Q, "partition_tag_array": [" \n"]},
        1,
        "Invalid partition tag: . Partition tag should not be empty.",
    ),
    (
        "Search",
        {"collection_name": "c", "topk": 1, "query_record_array": Q, "partition_tag_array": ["x" * 256]},
        1,
        f"Invalid partition tag: {'x' * 256}. Partition tag exceed max length(255).",
    ),
    ("Search", {"collection_name": "ivf", "topk": 1, "query_record_array": Q}, 5, "Parameter list must contain: nprobe"),
    (
        "Search",
        {"collection_name": "ivf", "topk": 1, "query_record_array": Q, "extra_params": params('{"nprobe": 0}')},
        5,
        "Invalid nprobe value: 0. Valid range is [1, 65536]",
    ),
    (
        "Search",
        {"collection_name": "ivf", "topk": 1, "query_record_array": Q, "extra_params": params('{"nprobe": "a"}')},
        5,
        "Invalid nprobe: [json.exception.type_error.302] type must be number, but is string",
    ),
    (
        "Search",
        {"collection_name": "ivf", "topk": 1, "query_record_array": Q, "extra_params": params('{"nprobe": true}')},
        5,
        "Invalid nprobe: [json.exception.type_error.302] type must be number, but is boolean",
    ),
    (
        "Search",
        {"collection_name": "hnsw", "topk": 100, "query_record_array": Q, "extra_params": params('{"ef": 50}')},
        5,
        "Invalid ef value: 50. Valid range is [100, 32768]",
    ),
    (
        "Search",
        {"collection_name": "nsg", "topk": 1, "query_record_array": Q, "extra_params": params('{"search_length": 5}')},
        5,
        "Invalid search_length value: 5. Valid range is [10, 300]",
    ),
    ("Search", {"collection_name": "annoy", "topk": 1, "query_record_array": Q}, 5, "Parameter list must contain: search_k"),
    (
        "Search",
        {"collection_name": "c", "topk": 1, "query_record_array": Q, "extra_params": params('{"metric_type": 3}')},
        5,
        "Illegal metric type",
    ),
    (
        "SearchInFiles",
        {"file_id_array": ["12345"], "search_param": {"collection_name": "c", "topk": 1, "query_record_array": Q}},
        1,
        "Invalid file id",
    ),
    (
        "SearchInFiles",
        {"file_id_array": ["x"], "search_param": {"collection_name": "c", "topk": 1, "query_record_array": Q}},
        1,
        "stoul",
    ),
    ("PreloadCollection", {"collection_name": "c", "partition_tag_array": ["x"]}, 1, "The specified partition does not exist"),
    ("Cmd", {"cmd": "get_config"}, 1, "Invalid command: get_config"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "fields", "code", "reason"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_call_gets_what_1_1_1_says(raw: Raw, method: str, fields: dict[str, Any], code: int, reason: str) -> None:
    assert raw.status(method, **fields) == (code, reason)


def test_every_method_answers(raw: Raw) -> None:
    for method in METHODS:
        assert raw.status(method)[1]


def test_what_is_asked_rightly_is_answered(raw: Raw) -> None:
    found = raw("Search", collection_name="c", topk=10, query_record_array=floats(rows(3).vectors[0]))
    assert (found.status.error_code, found.status.reason, found.row_num) == (0, "OK", 1)
    assert list(found.ids)[:2] == [3, 3]
    assert sorted(found.ids) == [1, 3, 3, 5, 9]
    found = raw("Search", collection_name="c", topk=2, query_record_array=floats([0] * 4), partition_tag_array=["2020.*"])
    assert sorted(found.ids) == [3, 5]
    assert raw("Search", collection_name="empty", topk=5, query_record_array=floats([0] * 8)).row_num == 0
    assert raw("Search", collection_name="c", topk=5, query_record_array=Q, partition_tag_array=["nobody"]).row_num == 0
    by_id = raw("SearchByID", collection_name="c", topk=1, id_array=[9, 77])
    assert (by_id.row_num, list(by_id.ids), list(by_id.distances)) == (2, [9, -1], [0, np.float32(LARGEST)])
    by_id = raw("SearchByID", collection_name="c", topk=2, id_array=[77])
    assert (by_id.row_num, list(by_id.ids)) == (1, [-1, -1])
    for name in ("c", "bits"):
        absent = raw("GetVectorsByID", collection_name=name, id_array=[77, -1])
        assert (absent.status.error_code, [v.ByteSize() for v in absent.vectors_data]) == (0, [0, 0])
    vectors = raw("GetVectorsByID", collection_name="c", id_array=[9, 2, 3]).vectors_data
    assert [list(v.float_data) for v in vectors] == [rows(9).vectors[0].tolist(), [], rows(3).vectors[0].tolist()]
    info = json.loads(raw("ShowCollectionInfo", collection_name="c").json_info)
    assert info["row_count"] == 5
    assert [(p["tag"], p["row_count"]) for p in info["partitions"]] == [("_default", 3), ("2020/a", 2), ("nobody", 0)]
    assert info["partitions"][2]["segments"] is None


def test_a_tag_that_is_no_utf8_is_shown_and_found(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.partition("c", "p", table_id="1111111111111111111")
    b.segment("1111111111111111111", rows(3))
    root = changed(b.write(), "UPDATE Tables SET partition_tag = CAST(X'67FF' AS TEXT) WHERE partition_tag = 'p'")
    with Served(root) as served, Raw(served.address) as raw:
        shown = raw("ShowPartitions", collection_name="c").partition_tag_array[1]
        assert shown.startswith("g")
        found = raw("Search", collection_name="c", topk=1, query_record_array=Q, partition_tag_array=[shown])
        assert list(found.ids) == [3]
        assert raw.status("ShowCollectionInfo", collection_name="c") == (0, "OK")


def test_a_name_that_is_no_utf8_hides_no_other_collection(tmp_path: Path) -> None:
    root = changed(
        build(tmp_path / "store").write(), "UPDATE Tables SET table_id = CAST(X'67FF' AS TEXT) WHERE table_id = 'empty'"
    )
    with Served(root) as served, Raw(served.address) as raw:
        assert sorted(raw("ShowCollections").collection_names) == ["annoy", "bits", "c", "g?", "hnsw", "ivf", "nsg"]


def test_a_damaged_catalogs_index_is_none(tmp_path: Path) -> None:
    root = changed(build(tmp_path / "store").write(), "UPDATE Tables SET engine_type = 99 WHERE table_id = 'ivf'")
    with Served(root) as served, Raw(served.address) as raw:
        assert raw("DescribeIndex", collection_name="ivf").index_type == EngineType.FAISS_IDMAP
        assert raw.status("Search", collection_name="ivf", topk=1, query_record_array=Q) == (0, "OK")


def test_another_metric_can_be_asked_for_without_an_index(raw: Raw) -> None:
    found = raw(
        "Search", collection_name="c", topk=5, query_record_array=floats([1] * 4), extra_params=params('{"metric_type": 2}')
    )
    assert list(found.distances) == sorted(found.distances, reverse=True)


def test_rows_of_a_search_may_be_ragged_when_their_sum_fits(raw: Raw) -> None:
    ragged = floats([1, 2, 3, 4, 5], [6, 7, 8])
    even = floats([1, 2, 3, 4], [5, 6, 7, 8])
    answers = [raw("Search", collection_name="c", topk=3, query_record_array=q).SerializeToString() for q in (ragged, even)]
    assert answers[0] == answers[1]


def test_tags_of_a_search_mean_themselves_or_are_patterns_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = [f"2020.{n}" for n in range(5000)]
    assert rules.meant(tags, tags) == set(tags)
    assert rules.meant(["a.b", "axb", "(", "c+"], ["a.b", "(", "[", ".*.*.*.*"]) == {"a.b", "axb", "("}
    with pytest.raises(Cancelled):
        rules.meant(tags, ["x.*"], lambda: True)
    monkeypatch.setattr(rules, "_MOST_COMPARISONS", 20_000)
    with pytest.raises(rules.Refused, match="6 partition tags are too many patterns for 5000 partitions"):
        rules.meant(tags, [f"x{n}.*" for n in range(6)])


# Hostile clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x1a\x02\x0a\x08", os.urandom(1000)])
def test_bytes_that_are_no_message_are_an_error_of_the_call(raw: Raw, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw("Search", data)
    assert caught.value.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
    assert raw.status("Cmd", cmd="status") == (0, "OK")


@pytest.mark.parametrize("text", ["{", "NaN", "[" * 100_000, '{"nprobe": NaN}', '{"nprobe": 1e999}', ""])
def test_parameters_that_are_no_json_break_off_the_call_as_they_do_in_1_1_1(raw: Raw, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw("Search", collection_name="ivf", topk=1, query_record_array=Q, extra_params=params(text))
    assert caught.value.code() is grpc.StatusCode.UNKNOWN  # type: ignore[attr-defined]


def test_queries_that_are_no_numbers_find_nothing(raw: Raw) -> None:
    found = raw(
        "Search", collection_name="c", topk=2, query_record_array=floats([float("nan")] * 4, [float("inf")] * 4, [0] * 4)
    )
    assert (found.row_num, list(found.ids)[:4]) == (3, [-1] * 4)
    assert -1 not in list(found.ids)[4:]


def test_patterns_that_would_run_for_ever_match_nothing(raw: Raw) -> None:
    for pattern in ("(2*)*$", "(.*)(.*)(.*)(.*)x", "(a|a)+", "[", "*", "\\"):
        code, _ = raw.status("Search", collection_name="c", topk=1, query_record_array=Q, partition_tag_array=[pattern])
        assert code == 1


def test_an_answer_that_would_be_too_large_is_refused_and_a_message_that_is_not_taken(folder: Path) -> None:
    with Served(folder, "--max-message", "1") as small, Raw(small.address) as raw:
        many = floats(*([0] * 4 for _ in range(30_000)))
        code, reason = raw.status("Search", collection_name="c", topk=16384, query_record_array=many)
        assert (code, "exceed the RPC transmission limit" in reason) == (10, True)
        with pytest.raises(grpc.RpcError) as caught:
            raw("Insert", b"\x0a" + bytes(2 << 20))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_clients_that_mix_all_of_it_get_what_each_of_them_should(served: Served) -> None:
    """Eight clients, one call in ten hostile; then the service has neither grown nor lost an answer."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        with Raw(served.address) as raw:
            for turn in range(60):
                if turn % 10 == 0:
                    try:
                        raw("Search", rng.bytes(200))
                    except grpc.RpcError:
                        continue
                vector = floats(rng.normal(size=4)) if turn % 10 != 5 else floats([float("nan")] * 4)
                code, _ = raw.status("Search", collection_name="c", topk=5, query_record_array=vector)
                fetched = raw("GetVectorsByID", collection_name="c", id_array=[3, 9])
                if code or [len(v.float_data) for v in fetched.vectors_data] != [4, 4]:
                    wrong.append((number, turn, code))

    def together() -> None:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    together()
    before = served.memory
    together()
    assert not wrong
    assert served.memory < before + (32 << 20)


def test_a_file_that_is_cut_is_an_error_of_its_collection_only(tmp_path: Path) -> None:
    b = build(tmp_path / "store")
    made = b.segment("ivf", rows(range(100, 3000)))
    with Served(b.write()) as served, Raw(served.address) as raw:
        asked = {"topk": 1, "query_record_array": Q, "extra_params": params('{"nprobe": 1}')}
        assert raw.status("Search", collection_name="ivf", **asked)[0] == 0
        with made.raw.open("r+b") as f:
            f.truncate(4096)
        code, reason = raw.status("Search", collection_name="ivf", **asked)
        assert (code, "cut" in reason) == (1, True)
        assert raw.status("GetVectorsByID", collection_name="ivf", id_array=[2999])[0] == 1
        assert raw.status("Search", collection_name="c", topk=1, query_record_array=Q) == (0, "OK")


# Access, health, beginning and end ------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_and_never_shown(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("very secret\n")
    with Served(folder, "--token-file", tmp_path / "token", "-v") as served:
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            with Raw(served.address, metadata=metadata) as raw, pytest.raises(grpc.RpcError) as caught:
                raw("Cmd", cmd="status")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        with Raw(served.address, metadata=(("authorization", "Bearer very secret"),)) as raw:
            assert raw.status("Cmd", cmd="status") == (0, "OK")
        _, said = served.stop()
    assert [line.split()[-3] for line in said.splitlines() if " Cmd " in line] == ["UNAUTHENTICATED", "UNAUTHENTICATED", "0"]
    assert "very secret" not in said


def test_tls(folder: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        capture_output=True,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl to make a certificate with: TLS is NOT tested")
    with Served(folder, "--tls-cert", certificate, "--tls-key", key, listen="localhost:0") as served:
        with Raw(served.address, grpc.ssl_channel_credentials(certificate.read_bytes())) as raw:
            assert raw.status("Cmd", cmd="status") == (0, "OK")
        with Raw(served.address) as raw, pytest.raises(grpc.RpcError):
            raw("Cmd", cmd="status")


def test_health_is_answered_over_http(served: Served) -> None:
    with urllib.request.urlopen(f"http://{served.health}/healthz", timeout=60) as reply:
        assert json.load(reply)["status"] == "ok"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{served.health}/etc/passwd", timeout=60)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(folder: Path, tmp_path: Path, how: int) -> None:
    before = fingerprint(folder)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    served = Served(folder, env=environment, start_new_session=True)
    with Raw(served.address) as raw:
        assert raw.status("Search", collection_name="c", topk=5, query_record_array=Q)[0] == 0
    code, said = served.stop(how)
    assert code == (-how if how == signal.SIGKILL else 0)
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    assert fingerprint(folder) == before
    members = subprocess.run(["ps", "-o", "pid=", "-s", str(served.process.pid)], capture_output=True, text=True).stdout
    assert members.split() == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_many_collections_take_no_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    import resource

    b = StoreBuilder(tmp_path / "store")
    for n in range(60):
        b.collection(f"c{n}")
        b.segment(f"c{n}", rows(n))
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (96, 96))
    with Served(b.write(), preexec_fn=few) as served, Raw(served.address) as raw:
        for n in range(60):
            assert raw.status("Search", collection_name=f"c{n}", topk=1, query_record_array=Q) == (0, "OK")


@pytest.mark.skipif(sys.platform != "linux", reason="signals to one thread are sent by a call of Linux")
def test_the_end_is_noticed_when_another_thread_gets_the_signal(folder: Path) -> None:
    with Served(folder) as served:
        pid = served.process.pid
        other = next(int(t) for t in os.listdir(f"/proc/{pid}/task") if int(t) != pid)
        ctypes.CDLL(None).tgkill(pid, other, int(signal.SIGTERM))
        assert served.process.wait(timeout=120) == 0


def test_a_running_search_ends_with_the_service_and_with_its_client(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("big", dim=64)
    for n in range(8):
        b.segment("big", rows(range(n * 20_000, (n + 1) * 20_000), dim=64))
    with Served(b.write(), "--jobs", "1") as served:
        with Raw(served.address) as raw:
            many = floats(*([float(n)] * 64 for n in range(200)))
            asked = messages()["SearchParam"](collection_name="big", topk=5, query_record_array=many).SerializeToString()
            threads = [threading.Thread(target=_quietly, args=(raw, asked)) for _ in range(12)]
            for t in threads:
                t.start()
            time.sleep(0.3)
            code, said = served.stop()
            for t in threads:
                t.join(timeout=120)
        assert (code, said, any(t.is_alive() for t in threads)) == (0, "stopped\n", False)


def _quietly(raw: Raw, asked: bytes) -> None:
    with contextlib.suppress(grpc.RpcError, ValueError):
        raw("Search", asked)


def test_wrong_calls_of_the_command(folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call("serve", folder, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert (done.code, "in use" in done.err) == (1, True)
    (tmp_path / "empty").write_text("\n")
    for words, said in (
        (["--listen", "19530"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["-c", "nothing"], "no collection matches"),
        (["--token-file", tmp_path / "absent"], "absent"),
        (["--token-file", tmp_path / "empty"], "no token"),
        (["--tls-cert", tmp_path / "absent"], "absent"),
    ):
        done = (
            call("serve", folder, "--listen", "127.0.0.1:0", *words)
            if "--listen" not in words
            else call("serve", folder, *words)
        )
        assert done.code == 2
        assert said in done.err


def test_only_the_chosen_collections_are_there(folder: Path) -> None:
    with Served(folder, "-c", "b*") as served, Raw(served.address) as raw:
        assert list(raw("ShowCollections").collection_names) == ["bits"]
        assert raw.status("CountCollection", collection_name="c")[0] == 4


def test_clients_of_before_1_1_are_told_the_version_that_they_want(folder: Path) -> None:
    with Served(folder, "--server-version", "0.10.6") as served, Raw(served.address) as raw:
        assert raw("Cmd", cmd="version").string_reply == "0.10.6"


def test_a_folder_that_may_only_be_read_is_served(tmp_path: Path) -> None:
    root = build(tmp_path / "store").write()
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with Served(root, "--preload") as served, Raw(served.address) as raw:
            assert raw.status("Search", collection_name="c", topk=5, query_record_array=Q)[0] == 0
            assert raw.status("PreloadCollection", collection_name="c") == (0, "OK")
    finally:
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


# Bytes ---------------------------------------------------------------------------------------------------------------------


def test_replies_as_bytes_are_those_of_protobuf() -> None:
    ids = np.array([[1, -1], [1 << 62, -(1 << 63)]])
    found = messages()["TopKQueryResult"].FromString(hits_bytes(2, ids, np.array([[0.5, 1], [2, np.inf]], np.float32)))
    assert (found.row_num, list(found.ids), list(found.distances)) == (2, ids.ravel().tolist(), [0.5, 1, 2, np.inf])
    assert list(messages()["VectorIds"].FromString(ids_bytes(ids[0])).vector_id_array) == [1, -1]
    for vectors in (np.ones((2, 3), np.float32), np.ones((2, 3), np.uint8)):
        data = messages()["VectorsData"].FromString(records_bytes(2, vectors, np.array([True, False, True]))).vectors_data
        assert [len(r.float_data) + len(r.binary_data) for r in data] == [3, 0, 3]
        numbers, octets = vectors_of(data)
        assert (numbers.tobytes() or octets.tobytes()) == vectors.tobytes()
    assert sys.byteorder == "little"
