"""A running server of Milvus 1.x as a target, against a stand-in that keeps the rules of FORMAT §12."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.array_source import ArraySource, bits, floats
from support.milvus1_standin import Standin
from support.real import STORES, truth

from milvus_offline import cli
from milvus_offline.errors import TargetError, UsageError
from milvus_offline.loading import LoadReport, run_compare, run_load
from milvus_offline.model import IndexSpec, Schema, VectorType
from milvus_offline.sources.milvus1 import open_store_source
from milvus_offline.targets import open_target
from milvus_offline.targets.milvus1.proto import METHODS, PROTO, descriptor, insert_bytes, messages

pytestmark = pytest.mark.usefixtures("own_state")


@pytest.fixture
def server() -> Iterator[Standin]:
    standin = Standin()
    yield standin
    standin.stop()


def load(source: Any, server: Standin, **options: Any) -> LoadReport:
    road = {name: options.pop(name) for name in ("resume", "dry_run", "confirm") if name in options}
    if "message_bytes" in options:
        options["message_mib"] = options.pop("message_bytes") / (1 << 20)
    return run_load(source, open_target(server.target, **options), **road)


def held(server: Standin) -> dict[tuple[str, str], Counter[tuple[int, bytes]]]:
    return {(n, tag or "_default"): Counter(rows) for n, t in server.tables.items() for tag, rows in t.rows.items()}


def small(rows: int = 10, **schema: Any) -> ArraySource:
    given = Schema("c", 8, **{"metric_type": "L2", "auto_id": False, **schema})
    return ArraySource({"c": {"_default": [(np.arange(rows), floats(rows))]}}, {"c": given})


# The definition ------------------------------------------------------------------------------------------------------


def test_our_reading_of_the_definition_is_that_of_protoc(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    (tmp_path / "milvus1.proto").write_text(PROTO)
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{tmp_path}",
        f"-o{tmp_path / 'set'}",
        str(tmp_path / "milvus1.proto"),
    ]
    subprocess.run(command, check=True)
    (compiled,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    for message in compiled.message_type:
        for field in message.field:
            field.ClearField("json_name")
    assert compiled == descriptor()


def test_every_method_has_its_messages() -> None:
    assert {m for pair in METHODS.values() for m in pair} <= set(messages())


@pytest.mark.parametrize("kind", list(VectorType))
@pytest.mark.parametrize("with_ids", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_rows_as_bytes_are_those_of_protobuf(kind: VectorType, with_ids: bool, rows: int) -> None:
    vectors = floats(rows, 40) if kind is VectorType.FLOAT else bits(rows, 1600)
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, rows)
    parsed = messages()["InsertParam"].FromString(insert_bytes("c", "größe", ids if with_ids else None, vectors, kind))
    assert parsed.collection_name == "c"
    assert parsed.partition_tag == "größe"
    assert list(parsed.row_id_array) == (ids.tolist() if with_ids else [])
    field = "float_data" if kind is VectorType.FLOAT else "binary_data"
    assert [np.array(list(getattr(r, field)), vectors.dtype).tobytes() for r in parsed.row_record_array] == [
        v.tobytes() for v in vectors
    ]
    assert insert_bytes("c", "", None, vectors, kind)[-1:] == vectors.tobytes()[-1:]


# Loads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flat_basic", "binary", "partitions", "crash_dup"])
def test_a_real_store_arrives_whole(name: str, server: Standin) -> None:
    source = open_store_source(STORES / name / "store")
    report = load(source, server)
    expected = {k: v for k, v in truth(name).items() if v}
    assert held(server) == expected
    assert server.lost == 0
    assert report.rows == sum(sum(v.values()) for v in expected.values())
    for collection in source.collections:
        table = server.tables[collection.schema.name]
        assert table.dimension == collection.schema.dimension
        assert table.index_file_size << 20 == collection.schema.index_file_size
        assert {"_default", *table.partitions} == {"_default", *(p.name for p in collection.partitions)}


def test_messages_keep_their_size(server: Standin) -> None:
    load(small(100), server, message_bytes=1000)
    assert server.calls.count("Insert") == -(-100 // (1000 // 32))
    assert sum(map(len, server.tables["c"].rows.values())) == 100


def test_the_index_comes_with_it(server: Standin) -> None:
    assert load(small(index=IndexSpec("HNSW", {"M": 8, "efConstruction": 100})), server).exit_code == 0
    assert server.tables["c"].index == (11, '{"M":8,"efConstruction":100}')
    assert server.calls[-4:] == ["Flush", "CreateIndex", "CountCollection", "GetVectorsByID"]
    load(small(index=IndexSpec("HNSW", {"M": 8, "efConstruction": 100})), server, mode="overwrite", index="none")
    assert server.tables["c"].index == (1, "{}")


def test_a_refused_index_is_told(server: Standin) -> None:
    server.refuse_index = True
    report = load(small(index=IndexSpec("IVF_FLAT", {"nlist": 4})), server)
    assert [(f.code, f.where) for f in report.findings] == [("index-refused", "c")]
    assert report.exit_code == 3
    assert len(server.tables["c"].rows[""]) == 10


def test_ids_made_by_the_server(server: Standin) -> None:
    load(small(), server, ids="auto")
    assert server.tables["c"].with_ids is False
    assert [i for i, _ in server.tables["c"].rows[""]] == list(range(1_700_000_000_000_000_000, 1_700_000_000_000_000_010))


def test_lost_rows_are_noticed(server: Standin) -> None:
    server.lose_on_flush = 3
    report = load(small(), server)
    assert [(f.code, f.rows) for f in report.findings] == [("verify-count", 3), ("verify-rows", 3)]
    assert report.exit_code == 4


# What is there already -----------------------------------------------------------------------------------------------


def test_modes(server: Standin) -> None:
    load(small(10), server)
    with pytest.raises(UsageError, match="'c' exists; --mode append, skip or overwrite"):
        load(small(5), server)
    assert load(small(5), server, mode="append").rows == 5
    assert len(server.tables["c"].rows[""]) == 15
    assert load(small(5), server, mode="skip").rows == 0
    assert len(server.tables["c"].rows[""]) == 15
    asked: list[Any] = []
    with pytest.raises(UsageError, match="nothing was dropped"):
        load(small(4), server, mode="overwrite", confirm=lambda names: bool(asked.append(names)))
    assert asked == [["c"]]
    assert len(server.tables["c"].rows[""]) == 15
    load(small(4), server, mode="overwrite")
    assert len(server.tables["c"].rows[""]) == 4


def test_append_to_what_does_not_fit(server: Standin) -> None:
    load(small(), server)
    with pytest.raises(UsageError, match="has 8 dimensions, L2; the source 8, IP"):
        load(small(metric_type="IP"), server, mode="append")
    with pytest.raises(TargetError, match=r"Insert refused \(code 12\)"):
        load(small(), server, mode="append", ids="auto")


def test_a_dry_run_changes_nothing(server: Standin) -> None:
    report = load(small(), server, dry_run=True)
    assert [(c.name, c.action, c.rows) for c in report.plan.collections] == [("c", "create", 10)]
    assert server.tables == {}
    load(small(), server)
    again = load(small(), server, dry_run=True)
    assert (again.exit_code, [f.code for f in again.findings]) == (3, ["refused"])
    server.tables.clear()
    server.calls.clear()
    load(small(), server, dry_run=True)
    assert set(server.calls) == {"Cmd", "HasCollection"}


# Interruptions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize("mode", ["error", "append"])
def test_a_lost_answer_neither_loses_nor_doubles(calls: int, mode: str, server: Standin) -> None:
    if mode == "append":
        load(small(7), server)
    server.break_after = {"Insert": calls}
    with pytest.raises(TargetError, match="go on with --resume"):
        load(small(150), server, mode=mode, message_bytes=1000)
    server.break_after = {}
    load(small(150), server, mode=mode, message_bytes=1000, resume=True)
    assert sum(map(len, server.tables["c"].rows.values())) == 150 + (7 if mode == "append" else 0)


def test_a_message_that_never_arrived_is_sent_again(server: Standin) -> None:
    server.break_after = {"Insert": 2}
    with pytest.raises(TargetError):
        load(small(150), server, message_bytes=1000)
    server.break_after = {}
    lost = -(-1000 // 32)
    table = server.tables["c"]
    del table.pending[-(1000 // 32) :]
    assert lost
    load(small(150), server, message_bytes=1000, resume=True)
    assert Counter(i for i, _ in table.rows[""]) == Counter(range(150))


def test_a_stranger_is_noticed(server: Standin) -> None:
    server.break_after = {"Insert": 2}
    with pytest.raises(TargetError):
        load(small(150), server, message_bytes=1000)
    server.break_after = {}
    server.tables["c"].pending.append(("", 999, b""))
    with pytest.raises(TargetError, match="something else writes into it"):
        load(small(150), server, message_bytes=1000, resume=True)


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["load", str(STORES / "flat_basic/store"), "milvus1://127.0.0.1:1", "-q"]) == 1
    assert "start the server" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["milvus1://", "milvus1://host:x", "milvus1://host:99999", "milvus1://u@host:1", "milvus1:"])
def test_addresses_that_cannot_be(target: str) -> None:
    with pytest.raises(UsageError, match="expected milvus1:"):
        open_target(target)


# The command line ----------------------------------------------------------------------------------------------------


def test_the_command(server: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["load", str(STORES / "flat_basic/store"), server.target, "--json"]
    assert cli.run(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 5757
    assert document["target"]["where"] == server.target
    assert cli.run(command) == 2
    assert "exists; --mode" in capsys.readouterr().err
    assert cli.run([*command, "--mode", "overwrite"]) == 2
    assert "add --yes" in capsys.readouterr().err
    assert cli.run([*command, "--mode", "overwrite", "--yes"]) == 0


# What a real 1.1.1 server refuses ---------------------------------------------------------------------------------------


def test_binary_indexes_are_asked_for_by_the_services_own_numbers(server: Standin) -> None:
    given = Schema("c", 64, VectorType.BINARY, "JACCARD", IndexSpec("BIN_IVF_FLAT", {"nlist": 4}), auto_id=False)
    report = load(ArraySource({"c": {"_default": [(np.arange(10), bits(10, 64))]}}, {"c": given}), server)
    assert (report.exit_code, server.tables["c"].index) == (0, (2, '{"nlist":4}'))


QUOTED = {"c": {"it's": [(np.arange(5), floats(5))], "_default": [(np.arange(5, 9), floats(4))]}}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_quote_in_a_tag_is_told_before_anything_is_created(dry_run: bool, server: Standin) -> None:
    with pytest.raises(UsageError, match=r"partition \"it's\" of 'c': .*quote; use --names sanitize"):
        load(ArraySource(QUOTED), server, dry_run=dry_run)
    assert server.tables == {}


def test_a_tag_with_a_quote_is_written_otherwise(server: Standin) -> None:
    report = load(ArraySource(QUOTED), server, names="sanitize")
    assert (report.exit_code, [f.code for f in report.findings]) == (0, ["renamed"])
    assert {k: sum(v.values()) for k, v in held(server).items()} == {("c", "it_x27_s"): 5, ("c", "_default"): 4}


def test_a_server_with_mysql_takes_quotes(server: Standin) -> None:
    server.meta_uri = "mysql://root:1@127.0.0.1:3306/milvus"
    assert load(ArraySource(QUOTED), server).exit_code == 0
    assert ("c", "it's") in held(server)


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_rows_are_read_back(verify: str, server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    insert = Standin._Insert

    def garbled(self: Standin, request: Any) -> Any:
        for record in request.row_record_array:
            record.float_data[3] += 1
        return insert(self, request)

    monkeypatch.setattr(Standin, "_Insert", garbled)
    report = load(small(100), server, verify=verify)
    assert report.exit_code == 4
    assert [(f.code, f.rows) for f in report.findings] == [("verify-rows", 100 if verify == "full" else 32)]


def test_rows_that_share_an_id_are_no_difference(server: Standin) -> None:
    ids = np.r_[np.arange(50), np.arange(50)]
    source = ArraySource({"c": {"_default": [(ids, floats(100))]}})
    assert load(source, server, verify="full").exit_code == 0


def test_a_server_that_gives_no_rows_back_is_counted(server: Standin) -> None:
    server.refuse_reading = True
    report = load(small(), server)
    assert (report.exit_code, [f.code for f in report.findings]) == (0, ["verify-limited"])


def test_what_is_skipped_is_compared(server: Standin) -> None:
    load(small(10), server)
    assert load(small(10), server, mode="skip").exit_code == 0
    report = load(small(12), server, mode="skip")
    assert (report.exit_code, [f.code for f in report.findings]) == (3, ["skip-differs"])


def test_a_version_that_is_not_known_is_told() -> None:
    standin = Standin(version="2.9.9")
    try:
        report = load(small(), standin)
    finally:
        standin.stop()
    assert (report.exit_code, report.rows, [f.code for f in report.findings]) == (0, 10, ["server-version"])
    assert "'2.9.9'" in report.findings[0].message


def test_another_collection_of_the_name_is_a_difference(server: Standin) -> None:
    load(small(), server)
    rows, findings = run_compare(small(metric_type="IP"), open_target(server.target))
    assert (rows, [(f.code, f.severity.value, f.rows) for f in findings]) == (0, [("verify-schema", "error", 10)])
