"""`verify TARGET --against SOURCE`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from support.command import call
from support.milvus1_standin import Standin
from support.milvus_server import own_name, shared_milvus
from support.real import STORES
from support.served import Served

from milvus_offline.sources.milvus1 import open_store_source
from milvus_offline.targets.milvus1.service import Service

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("own_state")]

STORE = STORES / "partitions" / "store"


@pytest.fixture(params=["lite", "server"])
def target(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "lite":
        pytest.importorskip("milvus_lite")
        yield str(tmp_path / "lite.db")
        return
    yield shared_milvus(tmp_path_factory).uri


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return own_name(request.node.name)


def changed(target: str, name: str, change: Any) -> None:
    client = MilvusClient(target, dedicated=True)
    try:
        client.load_collection(name)
        change(client)
        client.flush(name)
    finally:
        client.close()
        if target.endswith(".db"):
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(target)


@pytest.mark.server
def test_a_target_is_held_against_its_source(target: str, name: str) -> None:
    words = ["-c", "parts", "--rename", f"parts={name}", "--names", "sanitize", "--duplicates", "last", "--mode", "overwrite"]
    assert call("load", STORE, target, *words, "--yes").code == 0
    check = ["verify", target, "--against", STORE, "--rename", f"parts={name}", "--json"]
    whole = call(*check)
    # the other collections were not loaded, and rows with equal ids were left out of the server
    assert {f["code"] for f in whole.json["findings"] if f["where"].startswith("parts")} <= {"verify-count", "verify-rows"}
    assert whole.code == 4
    assert any("the target has no collection 'autoid_parts'" in f["message"] for f in whole.json["findings"])


@pytest.mark.server
@pytest.mark.parametrize("harm", ["none", "deleted", "other", "partition"])
def test_differences_are_found(target: str, name: str, harm: str, tmp_path: Path) -> None:
    import h5py

    folder = tmp_path / name
    folder.mkdir()
    vectors = np.random.default_rng(3).standard_normal((300, 8)).astype("<f4")
    for tag, part in (("None", slice(0, 200)), ("p", slice(200, 300))):
        with h5py.File(folder / f"{tag}.h5", "w") as h:
            h["embeddings"], h["ids"] = vectors[part], np.arange(300)[part]
    assert call("load", folder, target, "--mode", "overwrite", "--yes").code == 0

    def change(client: MilvusClient) -> None:
        if harm == "deleted":
            client.delete(name, filter="id in [7]")
        elif harm == "other":
            client.delete(name, filter="id in [7]")
            client.insert(name, [{"id": 7, "vector": vectors[8].tolist()}])
        elif harm == "partition":
            client.release_collection(name)
            client.drop_partition(name, "p")

    changed(target, name, change)
    outcome = call("verify", target, "--against", folder, "--json")
    found = outcome.json
    expected = {
        "none": [],
        "deleted": ["verify-count", "verify-rows"],
        "other": ["verify-rows"],
        "partition": ["verify-count", "verify-rows"],
    }
    codes = [f["code"] for f in found["findings"] if f["severity"] == "error"]
    assert codes == expected[harm]
    assert (outcome.code, found["kind"]) == (0 if harm == "none" else 4, "target")


def test_a_running_1x_server(tmp_path: Path) -> None:
    server = Standin()
    try:
        store = STORES / "flat_basic" / "store"
        assert call("load", store, server.target).code == 0
        assert call("verify", server.target, "--against", store).code == 0
        rows = server.tables["books"].rows[""]
        rows[5] = (rows[5][0], rows[6][1])
        outcome = call("verify", server.target, "--against", store, "--json")
        assert (outcome.code, [f["code"] for f in outcome.json["findings"]]) == (4, ["verify-rows"])
        rows.pop()
        assert "verify-count" in call("verify", server.target, "--against", store, "--json").out
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["binary", "indexed", "partitions"])
def test_searches_of_a_running_1x_service_are_those_of_the_rows(name: str) -> None:
    """`serve` answers as a 1.x server does; each metric and each kind of index."""
    store = STORES / name / "store"
    with Served(store) as service:
        found = call("verify", f"milvus1://{service.address}", "--against", store, "--search", "100", "--json")
    assert found.code == 0, found.out
    told = {f["where"]: f["message"] for f in found.json["findings"] if f["code"] == "search-recall"}
    sources = open_store_source(store).collections
    assert told.keys() == {c.schema.name for c in sources if c.rows}
    for c in sources:
        exact = c.schema.index.type in ("FLAT", "IVF_FLAT", "BIN_FLAT", "BIN_IVF_FLAT", "IDMAP", "IVFFLAT")
        assert c.rows == 0 or not exact or f", {c.schema.metric_type})" in told[c.schema.name]


def test_hits_that_are_not_the_nearest_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = STORES / "flat_basic" / "store"
    real = Service.search

    def shifted(self: Service, *arguments: Any) -> Any:
        answers = real(self, *arguments)
        return [*answers[1:], answers[0]]

    monkeypatch.setattr(Service, "search", shifted)
    with Served(store) as service:
        found = call("verify", f"milvus1://{service.address}", "--against", store, "--search", "5", "--json")
    assert (found.code, {f["code"] for f in found.json["findings"]}) == (4, {"search-differs"})


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    assert "--against a source" in call("verify", "http://127.0.0.1:1").err
    assert call("verify", f"milvus1:{tmp_path}", "--against", STORE).code == 2
    assert "goes with a target" in call("verify", STORE, "--rename", "a=b").err
    assert "there is no such file or folder" in call("verify", tmp_path / "x.db", "--against", STORE).err


def test_the_lines_for_a_first_search_work_as_they_are_printed(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    lite = str(tmp_path / "lite.db")
    outcome = call("load", STORES / "indexed" / "store", lite, "-c", "ix_hnsw", "--json")
    assert outcome.code == 0, outcome.err
    *setup, search = outcome.json["first_use"]
    assert setup[0] == f"# how exact HNSW is: milvus-offline verify {lite} --against SOURCE --search 100"
    names: dict[str, Any] = {}
    try:
        exec("\n".join(setup), names)
        (hits,) = eval(search, names)
        assert len(hits) == 10
    finally:
        names["client"].close()
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(lite)
    assert "Next, in Python:" in call("load", STORES / "indexed" / "store", lite, "-c", "ix_hnsw", "--mode", "append").out


def test_a_new_store_says_how_a_server_starts_on_it(tmp_path: Path) -> None:
    out = call("load", STORES / "flat_basic" / "store", f"milvus1:{tmp_path / 'new'}").out
    assert f"docker run -d -p 19530:19530 -v {tmp_path / 'new'}:/var/lib/milvus milvusdb/milvus:1.1.1" in out
