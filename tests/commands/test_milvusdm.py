"""MilvusDM's task files, run unchanged: every form, what is refused, and output that MilvusDM's own reading finds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pytest
import yaml
from support.array_source import bits, floats
from support.command import call
from support.mariadb import MariaDB
from support.milvus1_standin import Standin
from support.real import STORES, truth

from milvus_offline import cli
from milvus_offline.errors import UsageError
from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvusdm import KEYS, parse_version, read_task

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("own_state")]

# The files as MilvusDM's own documentation has them, with places to fill in.
M2H_1 = """\
M2H:
  milvus_version: 1.x
  source_milvus_path: '{store}'
  mysql_parameter:
    host: '127.0.0.1'
    user: 'root'
    port: {port}
    password: '{password}'
    database: 'milvus'
  source_collection: # specify the 'partition_1' and 'partition_2' partitions of the 'test' collection.
    test:
      - 'partition_1'
      - 'partition_2'
  data_dir: '{out}'
"""
M2H_SQLITE = """\
M2H:
  milvus_version: 2.0.x
  source_milvus_path: '{store}'
  mysql_parameter:
  source_collection:
    parts:
      - '2020'
      - 'a.b-c/d'
    autoid_parts:
  data_dir: '{out}'
"""
M2M_1 = """\
M2M:
  milvus_version: 0.10.5
  source_milvus_path: '{store}'
  mysql_parameter:
  source_collection: # specify the 'partition_1' and 'partition_2' partitions of the 'test' collection
    books:
  dest_host: '127.0.0.1'
  dest_port: {port}
  mode: 'append' # 'skip/append/overwrite'
"""
H2M_1 = """\
H2M:
  milvus-version: 1.x
  # Just config data_path or data_dir, while the other one is None.
  data_path:
    - '{files}/one.h5'
    - '{files}/two.h5'
  data_dir:
  dest_host: '127.0.0.1'
  dest_port: {port}
  mode: 'overwrite'        # 'skip/append/overwrite'
  dest_collection_name: 'test_bina'
  dest_partition_name: ''
  collection_parameter:
    dimension: 512
    index_file_size: 1024
    metric_type: 'HAMMING'

"""
F2M_1 = """\
F2M:
  milvus_version: 1.x
  data_path: '{index}'
  dest_host: '127.0.0.1'
  dest_port: {port}
  mode: 'append'
  dest_collection_name: 'test01'
  dest_partition_name: 'partition'
  collection_parameter:
    dimension: 16
    index_file_size: 512
    metric_type: 'L2'
"""


@pytest.fixture
def server() -> Iterator[Standin]:
    standin = Standin()
    yield standin
    standin.stop()


def write(folder: Path, text: str, **values: Any) -> str:
    path = folder / "task.yaml"
    path.write_text(text.format(**values))
    return str(path)


def changed(text: str, *path: str, **changes: Any) -> str:
    """The file with some keys of a mapping in it set, or removed where the value is `...`."""
    document = yaml.safe_load(text.replace("{port}", "19530"))
    body = next(iter(document.values()))
    for key in path:
        body = body[key]
    for key, value in changes.items():
        if value is ...:
            body.pop(key)
        else:
            body[key] = value
    return yaml.safe_dump(document)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["run", *arguments, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def milvusdm_reads(path: str) -> tuple[list[Any], list[int]]:
    """What MilvusDM's H2M reads of a file: `embeddings` as lists or bytes, `ids` as a list."""
    with h5py.File(path, "r") as f:
        vectors, ids = f["embeddings"], f["ids"]
        assert len(vectors) == len(ids)
        rows = [bytes(v.tolist()) for v in vectors] if vectors.dtype == np.uint8 else [v.tobytes() for v in np.array(vectors)]
        return rows, np.array(ids).tolist()


# M2H -----------------------------------------------------------------------------------------------------------------


def test_m2h_writes_what_milvusdm_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2H_SQLITE, store=STORES / "partitions/store", out=tmp_path / "out")
    document = run_json(capsys, file)
    (folder,) = (tmp_path / "out").iterdir()
    assert document["out"] == str(folder)
    assert len(folder.name) == 36
    expected = truth("partitions")
    wanted = {
        ("parts", "2020"): "parts/2020",
        ("parts", "a.b-c/d"): "parts/a.b-c%2Fd",
        ("autoid_parts", "_default"): "autoid_parts/None",
        ("autoid_parts", "p"): "autoid_parts/p",
    }
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.h5")} == {f"{n}.h5" for n in wanted.values()}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.yaml")} == {f"yamls/{n}.yaml" for n in wanted.values()}
    for (collection, tag), name in wanted.items():
        body = yaml.safe_load((folder / "yamls" / f"{name}.yaml").read_text())["H2M"]
        (path,) = body["data_path"]
        vectors, ids = milvusdm_reads(path)
        assert Counter(zip(ids, vectors, strict=True)) == expected[collection, tag]
        schema = open_store(STORES / "partitions/store")[collection].schema
        assert body == {
            "milvus_version": "2.0.x",
            "data_path": [str(folder / f"{name}.h5")],
            "data_dir": None,
            "dest_host": "127.0.0.1",
            "dest_port": 19530,
            "mode": "skip",
            "dest_collection_name": collection,
            "dest_partition_name": None if tag == "_default" else tag,
            "collection_parameter": {"dimension": schema.dimension, "index_file_size": 1, "metric_type": schema.metric_type},
        }


def test_m2h_of_binary_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = changed(M2H_SQLITE, source_collection=None).replace("'{store}'", str(STORES / "binary/store"))
    file = write(tmp_path, text.replace("'{out}'", str(tmp_path / "out")))
    run_json(capsys, file)
    (folder,) = (tmp_path / "out").iterdir()
    for (collection, tag), rows in truth("binary").items():
        vectors, ids = milvusdm_reads(str(folder / collection / f"{'None' if tag == '_default' else tag}.h5"))
        assert Counter(zip(ids, vectors, strict=True)) == rows


@pytest.mark.parametrize("password", ["123456", "p@ss:w/rd%"], ids=["plain", "strange"])
def test_m2h_with_mysql(password: str, mariadb: MariaDB, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mariadb.load(STORES / "mysql/store/meta.default.sql", "milvus")
    mariadb.add_user("dm", password, "milvus")
    text = changed(M2H_1, source_collection={"sq": None})
    text = changed(text, "mysql_parameter", user="dm", port=mariadb.port, password=password)
    text = text.replace("'{store}'", str(STORES / "mysql/store")).replace("'{out}'", str(tmp_path / "out"))
    (tmp_path / "task.yaml").write_text(text)
    document = run_json(capsys, str(tmp_path / "task.yaml"))
    assert password not in json.dumps(document)
    assert document["rows"] == sum(truth("mysql")["sq", "_default"].values()) > 0
    assert password not in str(read_task(tmp_path / "task.yaml"))


def test_m2h_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, M2H_SQLITE, store=STORES / "partitions/store", out=tmp_path / "out")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("milvus_offline.targets.hdf5.Hdf5Export.finish", interrupted)
    assert cli.run(["run", file, "-q"]) == 130
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    document = run_json(capsys, file, "--resume")
    (folder,) = (tmp_path / "out").iterdir()
    assert document["out"] == str(folder)
    assert cli.run(["verify", str(folder), "-q"]) == 0
    run_json(capsys, file)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_findings_are_in_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = changed(M2H_SQLITE, source_collection=None).replace("'{store}'", str(STORES / "crash_cycle_3/store"))
    file = write(tmp_path, text.replace("'{out}'", str(tmp_path / "out")))
    assert run_json(capsys, file, code=3)["rows"] == sum(rows.total() for rows in truth("crash_cycle_3").values())


# M2M -----------------------------------------------------------------------------------------------------------------


def test_m2m(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1, store=STORES / "flat_basic/store", port=server.port)
    assert run_json(capsys, file)["rows"] == 4707
    assert list(server.tables) == ["books"]
    assert Counter(server.tables["books"].rows[""]) == truth("flat_basic")["books", "_default"]
    run_json(capsys, "--yaml", file)  # mode: append
    assert len(server.tables["books"].rows[""]) == 2 * 4707


@pytest.mark.parametrize(("mode", "rows"), [("skip", 4707), ("overwrite", 4707), ("append", 2 * 4707)])
def test_modes(mode: str, rows: int, server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1.replace("'append'", mode), store=STORES / "flat_basic/store", port=server.port)
    run_json(capsys, file)
    run_json(capsys, file)
    assert len(server.tables["books"].rows[""]) == rows


def partition_task(folder: Path, port: int, mode: str, tags: str) -> str:
    text = M2M_1.replace("    books:\n", f"    parts: {tags}\n").replace("'append'", mode)
    return write(folder, text, store=STORES / "partitions/store", port=port)


def counts(server: Standin) -> dict[str, int]:
    return {tag: len(rows) for tag, rows in server.tables["parts"].rows.items()}


def test_modes_are_about_partitions(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (sum(truth("partitions")["parts", tag].values()) for tag in ("2020", "b_1"))
    run_json(capsys, partition_task(tmp_path, server.port, "skip", "['2020']"))
    assert counts(server) == {"2020": first}
    run_json(capsys, partition_task(tmp_path, server.port, "skip", "['2020', b_1]"))
    assert counts(server) == {"2020": first, "b_1": second}
    run_json(capsys, partition_task(tmp_path, server.port, "append", "['2020']"))
    assert counts(server) == {"2020": 2 * first, "b_1": second}
    run_json(capsys, partition_task(tmp_path, server.port, "overwrite", "['2020']"))
    assert counts(server) == {"2020": first, "b_1": second}
    run_json(capsys, partition_task(tmp_path, server.port, "overwrite", "[_default, b_1]"))
    assert counts(server).get("b_1") == second
    assert "2020" not in counts(server)
    assert run_json(capsys, partition_task(tmp_path, server.port, "skip", "[_default, b_1]"))["rows"] == 0


def test_modes_are_about_partitions_of_lite_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("milvus_lite")
    from pymilvus import MilvusClient

    lite = str(tmp_path / "lite.db")

    def held() -> dict[str, int]:
        client = MilvusClient(lite)
        try:
            client.load_collection("parts")
            return {
                p: len(client.query("parts", filter="id >= -9223372036854775807", partition_names=[p], output_fields=["id"]))
                for p in client.list_partitions("parts")
                if p != "_default"
            }
        finally:
            client.close()

    first, second = (sum(truth("partitions")["parts", tag].values()) for tag in ("2020", "b_1"))
    # 12 ids are in both partitions: Lite shows one row for each where all partitions are asked, so the code is 3
    for mode, tags, rows, expected, code in [
        ("skip", "['2020']", first, {"2020": first}, 0),
        ("skip", "['2020', b_1]", second, {"2020": first, "b_1": second}, 3),
        ("overwrite", "['2020']", first, {"2020": first, "b_1": second}, 3),
        ("skip", "['2020', b_1]", 0, {"2020": first, "b_1": second}, 0),
    ]:
        file = partition_task(tmp_path, 1, mode, tags)
        assert run_json(capsys, file, "--milvus-version", "2.x", "--target", lite, code=code)["rows"] == rows
        assert held() == expected


def test_a_run_to_lite_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite")
    from milvus_offline.targets.milvus import tasks as milvus

    lite, sent = str(tmp_path / "lite.db"), milvus.LoadTask._send
    monkeypatch.setattr("milvus_offline.targets.milvus.target.LITE_MESSAGE_ROWS", 100)
    calls: list[int] = []

    def interrupted(self: Any, *a: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sent(self, *a)

    monkeypatch.setattr(milvus.LoadTask, "_send", interrupted)
    file = partition_task(tmp_path, 1, "skip", "['2020', b_1]")
    command = ["run", file, "--milvus-version", "2.x", "--target", lite]
    assert cli.run([*command, "-q"]) == 130
    monkeypatch.setattr(milvus.LoadTask, "_send", sent)
    expected = sum(sum(truth("partitions")["parts", tag].values()) for tag in ("2020", "b_1"))
    document = run_json(capsys, *command[1:], "--resume", code=3)
    assert document["rows"] == expected - document["findings"][0]["rows"]
    assert [f["code"] for f in document["findings"]] == ["duplicates-collapsed"]  # the partitions share ids


def test_several_collections_with_their_own_tags(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = M2M_1.replace("    books:\n", "    parts: ['2020', '東京']\n    autoid_parts: [p]\n")
    file = write(tmp_path, text, store=STORES / "partitions/store", port=server.port)
    run_json(capsys, file)
    assert {(n, t) for n, table in server.tables.items() for t in table.rows} == {
        ("parts", "2020"),
        ("parts", "東京"),
        ("autoid_parts", "p"),
    }


def test_a_collection_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1.replace("books", "cooks"), store=STORES / "flat_basic/store", port=1)
    assert cli.run(["run", file]) == 2
    assert "no collection matches 'cooks'; there are: auto_ids, books" in capsys.readouterr().err
    file = write(tmp_path, M2M_1.replace("books:", "books: [x]"), store=STORES / "flat_basic/store", port=1)
    assert cli.run(["run", file]) == 2
    assert "no partition matches 'x'" in capsys.readouterr().err


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1, store=STORES / "flat_basic/store", port=1)
    assert cli.run(["run", file, "-q"]) == 1
    assert "start the server" in capsys.readouterr().err


def test_another_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1, store=STORES / "flat_basic/store", port=1)
    run_json(capsys, file, "--target", f"milvus1:{tmp_path / 'new'}")
    assert open_store(tmp_path / "new").rows == 4707


def test_a_person_is_told_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2M_1, store=STORES / "flat_basic/store", port=1)
    assert cli.run(["run", file, "--target", f"milvus1:{tmp_path / 'new'}"]) == 0
    assert f"Next, a server on the new store:\n  docker run -d -p 19530:19530 -v {tmp_path / 'new'}:" in capsys.readouterr().out


def test_the_version_chooses_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version, target in [
        ("0.10.5", "milvus1://127.0.0.1:7"),
        ("1.x", "milvus1://127.0.0.1:7"),
        ("2.0", "http://127.0.0.1:7"),
    ]:
        text = M2M_1.replace("0.10.5", version)
        file = write(tmp_path, text, store=STORES / "flat_basic/store", port=7)
        assert run_json(capsys, file, "--dry-run")["target"] == target
    assert run_json(capsys, file, "--dry-run", "--milvus-version", "1.1")["target"] == "milvus1://127.0.0.1:7"


def test_m2m_to_milvus_lite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("milvus_lite")
    from pymilvus import MilvusClient

    text = M2M_1.replace("0.10.5", "2.x").replace("append", "overwrite").replace("books", "auto_ids")
    file = write(tmp_path, text, store=STORES / "flat_basic/store", port=1)
    assert run_json(capsys, file, "--target", str(tmp_path / "lite.db"))["rows"] == 1050
    client = MilvusClient(str(tmp_path / "lite.db"))
    try:
        fields = {f["name"] for f in client.describe_collection("auto_ids")["fields"]}
        assert fields == {"id", "embedding"}
    finally:
        client.close()


# H2M and F2M -----------------------------------------------------------------------------------------------------------


def h5(path: Path, vectors: Any, ids: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f["embeddings"] = vectors
        if ids is not None:
            f["ids"] = ids


def test_h2m_of_several_files(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5(tmp_path / "one.h5", bits(10, 512), np.arange(10))
    h5(tmp_path / "two.h5", bits(5, 512, 1), np.arange(-5, 0))
    file = write(tmp_path, H2M_1, files=tmp_path, port=server.port)
    for _ in range(2):  # mode: overwrite
        assert run_json(capsys, file)["rows"] == 15
    table = server.tables["test_bina"]
    assert (table.dimension, table.metric, table.index_file_size) == (512, 3, 1024)
    vectors = np.concatenate([bits(10, 512), bits(5, 512, 1)])
    ids = [*range(10), *range(-5, 0)]
    assert table.rows == {"": [(i, v.tobytes()) for i, v in zip(ids, vectors, strict=True)]}


def test_h2m_of_a_folder_with_files_of_one_name(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5(tmp_path / "in/a/x.h5", floats(4, 16), np.arange(4))
    h5(tmp_path / "in/b/x.h5", floats(4, 16, 1), np.arange(4, 8))
    text = changed(H2M_1, data_path=None, data_dir=str(tmp_path / "in"), dest_partition_name="tag", dest_port=server.port)
    text = changed(text, "collection_parameter", dimension=16, metric_type="ip")
    (tmp_path / "task.yaml").write_text(text)
    run_json(capsys, str(tmp_path / "task.yaml"))
    table = server.tables["test_bina"]
    assert table.metric == 2
    assert [i for i, _ in table.rows["tag"]] == list(range(8))


def test_h2m_without_ids(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5(tmp_path / "one.h5", bits(10, 512))
    h5(tmp_path / "two.h5", bits(10, 512))
    file = write(tmp_path, H2M_1, files=tmp_path, port=server.port)
    run_json(capsys, file)
    assert server.tables["test_bina"].with_ids is False
    h5(tmp_path / "two.h5", bits(10, 512), np.arange(10))
    assert cli.run(["run", file]) == 2
    assert "some files have ids, some do not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parameter", "message"),
    [({"dimension": 256}, "dimension is 256, the vectors have 512"), ({"metric_type": "L2"}, "the vectors are binary")],
)
def test_h2m_of_other_vectors(parameter: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h5(tmp_path / "one.h5", bits(10, 512), np.arange(10))
    h5(tmp_path / "two.h5", bits(10, 512), np.arange(10))
    file = write(tmp_path, changed(H2M_1, "collection_parameter", **parameter), files=tmp_path)
    assert cli.run(["run", file]) == 2
    assert message in capsys.readouterr().err


def test_m2h_and_its_own_h2m_files(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2H_SQLITE, store=STORES / "partitions/store", out=tmp_path / "out")
    made = run_json(capsys, file, "--milvus-version", "1.x")["yamls"]
    expected = truth("partitions")
    for path in sorted(made, reverse=True):  # p before None: an empty default partition is no reason to skip it
        text = (
            Path(path)
            .read_text()
            .replace("dest_port: 19530", f"dest_port: {server.port}")
            .replace("mode: skip", "mode: append")
        )
        Path(path).write_text(text)
        run_json(capsys, path)
    held = {(n, t or "_default"): Counter(rows) for n, table in server.tables.items() for t, rows in table.rows.items()}
    wanted = [("parts", "2020"), ("parts", "a.b-c/d"), ("autoid_parts", "p"), ("autoid_parts", "_default")]
    assert held == {k: expected[k] for k in wanted}


def test_f2m(server: Standin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = floats(500, 16)
    index = faiss.IndexIDMap(faiss.IndexFlatL2(16))
    index.add_with_ids(vectors, np.arange(100, 600))
    faiss.write_index(index, str(tmp_path / "x.index"))
    file = write(tmp_path, F2M_1, index=tmp_path / "x.index", port=server.port)
    assert run_json(capsys, file)["rows"] == 500
    table = server.tables["test01"]
    assert table.index_file_size == 512
    assert table.rows == {"partition": [(i + 100, v.tobytes()) for i, v in enumerate(vectors)]}


# What is refused, what is only said -----------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, M2H_SQLITE, store=STORES / "partitions/store", out=tmp_path / "out")
    assert cli.run(["run", file, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "autoid_parts/None.h5: " in text
    assert "parts/2020.h5: 227 rows" in text
    assert not (tmp_path / "out").exists()
    file = write(tmp_path, M2M_1, store=STORES / "flat_basic/store", port=1)
    assert cli.run(["run", file, "-n"]) == 0
    assert "M2M would write 4,707 rows of 1 collection into milvus1://127.0.0.1:1, mode append" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(M2M_1, dest_hosts="x"), "unknown key M2M.dest_hosts; did you mean dest_host?"),
        (changed(M2H_1, "mysql_parameter", passwd="x"), "unknown key mysql_parameter.passwd; did you mean password?"),
        (changed(H2M_1, "collection_parameter", metric="L2"), "collection_parameter.metric; did you mean metric_type?"),
        (changed(M2M_1, mode="apend"), "mode: expected skip, append, overwrite, found 'apend'"),
        (changed(M2M_1, dest_port="x"), "dest_port: expected a number from 1 to 65535, found 'x'"),
        (changed(M2M_1, dest_port=0), "dest_port: expected a number"),
        (changed(M2M_1, dest_host=None), "dest_host: is missing"),
        (changed(M2M_1, source_milvus_path=...), "source_milvus_path: is missing"),
        (changed(M2M_1, milvus_version="latest"), "milvus_version: expected a version such as 1.x or 2.0"),
        (changed(M2M_1, source_collection=5), "source_collection: expected keys and values"),
        (changed(M2H_1, "mysql_parameter", database=""), "mysql_parameter.database: is missing"),
        (changed(H2M_1, data_dir="x"), "data_path: give either data_path or data_dir"),
        (changed(H2M_1, data_path=None), "data_path: give either data_path or data_dir"),
        (changed(H2M_1, dest_collection_name=""), "dest_collection_name: is missing"),
        (changed(H2M_1, "collection_parameter", index_file_size=0), "expected a number from 1 to 131072"),
        (changed(H2M_1, milvus_version="2.x"), "the version is given twice"),
        ("M2X:\n  a: 1\n", "unknown key M2X; did you mean M2M?"),
        ("M2H: {}\nM2M: {}\n", "holds 2 tasks"),
        ("[1, 2]", "expected one of these tasks at the top: M2H, M2M, H2M, F2M"),
        ("", "expected one of these tasks at the top"),
        ("a: [", "neither YAML nor JSON"),
        ("M2H: 5", "M2H: expected keys and values, found '5'"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.yaml").write_text(text)
    assert cli.run(["run", str(tmp_path / "task.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(tmp_path / "task.yaml") in error


def test_other_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["run"]) == 2
    assert cli.run(["run", "a", "--yaml", "b"]) == 2
    assert cli.run(["run", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.10.5", 1), ("1.x", 1), ("1", 1), ("v1.1.1", 1), ("0.x", 1), ("2.x", 2), ("2.0", 2), ("2.0.0rc1", 2), ("3.1", 2)],
)
def test_versions(text: str, version: int) -> None:
    assert parse_version(text) == version
    with pytest.raises(UsageError):
        parse_version(f"x{text}")


def test_files_without_what_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("M2M:\n  source_milvus_path: /m\n  dest_host: h\n")
    task = read_task(path)
    assert (task.version, task.catalog, dict(task.selection), task.port, task.mode) == (1, None, {}, 19530, "error")
    assert task.target == "milvus1://h:19530"
    assert set(KEYS) == {"M2H", "M2M", "H2M", "F2M"}


# What MilvusDM took ---------------------------------------------------------------------------------------------------


def dm_run(folder: Path, metric: dict[str, str]) -> None:
    """A run's folder as M2H leaves it: binary collections as strings, tags with `/` as folders, yamls beside."""
    for collection, tag, first in (("books", None, 0), ("bits", None, 50), ("bits", "2020/01", 100)):
        path = folder / collection / f"{tag}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        binary = collection == "bits"
        with h5py.File(path, "w") as h:
            h["embeddings"] = bits(30, 64).view("S8")[:, 0] if binary else floats(30)
            h["ids"] = np.arange(first, first + 30)
        body = {
            "milvus_version": "1.1.1",
            "data_path": [f"/elsewhere/{collection}/{tag}.h5"],
            "data_dir": None,
            "dest_host": "127.0.0.1",
            "dest_port": 19530,
            "mode": "skip",
            "dest_collection_name": collection,
            "dest_partition_name": tag,
            "collection_parameter": {
                "dimension": 64 if binary else 8,
                "index_file_size": 512,
                "metric_type": metric[collection],
            },
        }
        described = folder / "yamls" / collection / f"{tag}.yaml"
        described.parent.mkdir(parents=True, exist_ok=True)
        described.write_text(yaml.safe_dump({"H2M": body}))


def test_a_folder_of_m2h_is_a_source_with_partitions_and_metrics(tmp_path: Path) -> None:
    dm_run(tmp_path / "run", {"books": "IP", "bits": "JACCARD"})
    done = call("load", tmp_path / "run", f"milvus1:{tmp_path / 'new'}")
    assert (done.code, done.err) == (0, "")
    store = open_store(tmp_path / "new")
    assert {c.schema.name: c.schema.metric_type for c in store.collections} == {"books": "IP", "bits": "JACCARD"}
    assert [p.name for p in store["bits"].partitions] == ["_default", "2020/01"]
    assert store["bits"]["2020/01"].read().vectors.tobytes() == bits(30, 64).tobytes()
    assert store["books"].schema.index_file_size == 512 << 20


def test_a_folder_of_m2h_that_lacks_files_says_so(tmp_path: Path) -> None:
    dm_run(tmp_path / "run", {"books": "IP", "bits": "JACCARD"})
    (tmp_path / "run" / "bits" / "None.h5").unlink()
    (tmp_path / "run" / "yamls" / "books" / "None.yaml").unlink()
    done = call("inspect", tmp_path / "run", "--json")
    assert done.code == 3
    assert {(f["code"], f["severity"]) for f in done.json["findings"]} >= {
        ("file-missing", "error"),
        ("metric-unknown", "warning"),
    }


@pytest.mark.parametrize("key", ["mode: 'overwrite'", "dest_port: 19530", "xyz: 1"])
def test_keys_that_milvusdm_ignored_are_noted(key: str, tmp_path: Path) -> None:
    store = STORES / "partitions" / "store"
    file = tmp_path / "task.yaml"
    file.write_text(
        f"M2H:\n  source_milvus_path: '{store}'\n  source_collection:\n    autoid_parts:\n  data_dir: '{tmp_path}'\n  {key}\n"
    )
    done = call("run", file, "--json")
    assert done.code == 0
    (told,) = [f for f in done.json["findings"] if f["code"] == "task-note"]
    assert (told["severity"], f"M2H.{key.partition(':')[0]} has no meaning here" in told["message"]) == ("info", True)


def test_a_blank_partition_is_the_default_one_and_comments_may_be_gbk(tmp_path: Path) -> None:
    store = STORES / "partitions" / "store"
    text = f"M2H:  # 版本\n  source_milvus_path: '{store}'\n  source_collection:\n    autoid_parts:\n      - ''\n"
    file = tmp_path / "task.yaml"
    file.write_bytes(f"{text}  data_dir: '{tmp_path / 'out'}'\n".encode("gbk"))
    done = call("run", file, "--dry-run", "--json")
    assert (done.code, "read as GBK" in done.json["findings"][0]["message"]) == (0, True)
    assert [line.strip() for line in done.json["lines"]][1:] == [f"autoid_parts/None.h5: {done.json['rows']} rows"]


@pytest.mark.parametrize(
    ("host", "version", "target"),
    [
        ("http://10.0.0.1", "1.x", "milvus1://10.0.0.1:19530"),
        ("http://10.0.0.1:19531/", "2.x", "http://10.0.0.1:19531"),
        ("https://db.example", "2.x", "https://db.example:19530"),
        ("tcp://[::1]", "1.x", "milvus1://[::1]:19530"),
    ],
)
def test_a_host_may_be_a_url(host: str, version: str, target: str, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(f"M2M:\n  milvus_version: {version}\n  source_milvus_path: x\n  dest_host: '{host}'\n")
    assert read_task(file).target == target


def test_a_metric_that_does_not_exist_is_refused_by_a_dry_run(tmp_path: Path) -> None:
    h5(tmp_path / "one.h5", bits(10, 512), np.arange(10))
    h5(tmp_path / "two.h5", bits(10, 512), np.arange(10))
    file = write(tmp_path, changed(H2M_1, "collection_parameter", metric_type="HAMING"), files=tmp_path)
    done = call("run", file, "--dry-run")
    assert (done.code, "metric_type: expected L2" in done.err) == (2, True)


def test_h2m_of_strings_is_exact(tmp_path: Path, server: Standin) -> None:
    """A server of 1.x gets the bytes with the zeros that numpy does not show."""
    vectors = bits(10, 512)
    vectors[:, -1], vectors[3] = 0, 0
    for n, name in enumerate(("one", "two")):
        h5(tmp_path / f"{name}.h5", vectors.view("S64")[:, 0], np.arange(10) + 10 * n)
    file = write(tmp_path, H2M_1, files=tmp_path, port=server.target.rpartition(":")[2])
    assert call("run", file).code == 0
    assert [v for _, v in server.tables["test_bina"].rows[""]] == [v.tobytes() for v in vectors] * 2


def test_the_datasets_of_h2m_can_be_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.h5", "w") as h:
        h["a"], h["b"], h["number"] = floats(10), floats(10), np.arange(10)
    path = tmp_path / "task.yaml"
    path.write_text(
        f"H2M:\n  data_path: ['{tmp_path / 'one.h5'}']\n  dest_host: h\n  mode: append\n  dest_collection_name: c\n"
    )
    done = call("run", path, "--dry-run")
    assert (done.code, "--embeddings names it" in done.err) == (2, True), done.err
    done = call("run", path, "--dry-run", "--embeddings", "b", "--ids-dataset", "number")
    assert (done.code, "All 10 rows would be loaded." in done.out) == (0, True), done.err
    path.write_text(f"M2H:\n  source_milvus_path: '{STORES / 'partitions/store'}'\n  data_dir: o\n")
    done = call("run", path, "--dry-run", "--embeddings", "b")
    assert (done.code, "go with H2M" in done.err) == (2, True), done.err
