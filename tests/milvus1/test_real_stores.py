"""Stores that a real Milvus left behind, exported through the command line, row for row against what the server had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command import call, exported, fingerprint, manifest, spawn
from support.real import STORES, truth

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))
AMBIGUOUS = {
    "crash_cycle_3": {"wal-gap"},  # its first log file is gone
    "lost_flush": {"flush-lost"},
    "race_partitions": {"row-id-race", "flush-lost", "deletes-lost"},
    "race_wrong_folder": {"row-id-race", "flush-lost", "deletes-lost", "rows-doubled"},
}
IN_MYSQL = [n for n in NAMES if n.startswith("mysql")]


def catalog(name: str) -> list[str]:
    return ["--catalog", str(STORES / name / "store" / "meta.default.sql")] if name in IN_MYSQL else []


def test_every_store_is_there() -> None:
    assert len(NAMES) >= 20
    assert not [p for p in STORES.rglob("*") if p.is_dir() and not any(p.iterdir())], "git keeps no empty folder"


@pytest.mark.parametrize("name", NAMES)
def test_export_equals_the_server(name: str, tmp_path: Path) -> None:
    store, out = STORES / name / "store", tmp_path / "out"
    before = fingerprint(store)
    done = call("export", store, out, *catalog(name))
    codes = {f["code"] for f in manifest(out)["findings"] if f["severity"] != "info"}
    assert codes == AMBIGUOUS.get(name, set())
    assert done.code == (3 if name in AMBIGUOUS else 0)
    assert exported(out) == truth(name)
    assert fingerprint(store) == before


@pytest.mark.parametrize("name", NAMES)
def test_schemas(name: str, tmp_path: Path) -> None:
    call("export", STORES / name / "store", tmp_path / "out", *catalog(name))
    expected = json.loads((STORES / name / "truth.json").read_text())["collections"]
    found = {c["name"]: c for c in manifest(tmp_path / "out")["collections"]}
    assert set(found) == {c["name"] for c in expected}
    for c in expected:
        assert found[c["name"]]["metric_type"] == c["metric_type"]
        if any(p["rows"] for p in c["partitions"]):  # `gone` was made again with another dimension, and stayed empty
            assert found[c["name"]]["dimension"] == c["dimension"]
    binary = ("HAMMING", "JACCARD", "TANIMOTO", "SUBSTRUCTURE", "SUPERSTRUCTURE")
    for c in found.values():
        assert c["vector_type"] == ("binary" if c["metric_type"] in binary else "float")


@pytest.mark.parametrize("name", NAMES)
def test_inspect_tells_what_an_export_brings(name: str) -> None:
    store = STORES / name / "store"
    before = fingerprint(store)
    done = call("inspect", store, "--json", *catalog(name))
    assert done.code == (3 if name in AMBIGUOUS else 0)
    rows = {(c["name"], p["name"]): p["rows"] for c in done.json["collections"] for p in c["partitions"]}
    assert rows == {place: bag.total() for place, bag in truth(name).items()}
    text = call("inspect", store, *catalog(name)).out
    assert max(map(len, text.replace(str(store), "").splitlines())) <= 100
    assert fingerprint(store) == before


@pytest.mark.parametrize("name", IN_MYSQL)
@pytest.mark.parametrize("charset", ["latin1", "utf8mb4"])
def test_catalog_in_a_real_mariadb(name: str, charset: str, mariadb: Any, tmp_path: Path) -> None:
    mariadb.load(STORES / name / "store" / "meta.default.sql", "milvus", charset)
    done = call("export", STORES / name / "store", tmp_path / "out", "-q", "--catalog", mariadb.url("milvus"))
    assert (done.code, done.err) == (0, "")
    assert exported(tmp_path / "out") == truth(name)


def test_catalog_named_by_the_configuration(mariadb: Any, tmp_path: Path) -> None:
    import shutil

    store = Path(shutil.copytree(STORES / "mysql" / "store", tmp_path / "store"))
    mariadb.load(store / "meta.default.sql", "from_config")
    mariadb.add_user("reader", "p@ss:w/ord%41", "from_config")
    config = store / "server_config.yaml"
    uri = mariadb.url("from_config", "reader", "p@ss:w/ord%41", quoted=False)
    config.write_text(config.read_text().replace("mysql://milvus:milvus@127.0.0.1:33069/milvus", uri))
    done = call("export", store, tmp_path / "out")
    assert done.code == 0, done.err
    assert exported(tmp_path / "out") == truth("mysql")
    assert "p@ss" not in done.out + done.err + (tmp_path / "out" / "manifest.json").read_text()


def test_as_a_process_and_silent(tmp_path: Path) -> None:
    done = spawn("export", STORES / "flat_basic" / "store", tmp_path / "out", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert exported(tmp_path / "out") == truth("flat_basic")
