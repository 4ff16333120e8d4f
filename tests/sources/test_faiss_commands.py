"""Faiss indexes through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.real import STORES

from milvus_offline import open_store
from milvus_offline.cli import run

INDEXES = Path(__file__).parent.parent.parent / "fixtures" / "faiss"
FLAT = str(INDEXES / "1.5.3-flat.index")


@pytest.fixture
def ids(tmp_path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values = np.arange(60, dtype=np.int64) * 7 - 100
    np.save(tmp_path / "ids.npy", values)
    return values


def test_an_index_becomes_an_export_and_a_store(tmp_path: Path, ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    option = ["--ids", str(tmp_path / "ids.npy")]
    assert run(["export", FLAT, str(tmp_path / "out"), *option, "-q"]) == 0
    assert run(["verify", str(tmp_path / "out")]) == 0
    assert run(["load", FLAT, f"milvus1:{tmp_path / 'new'}", *option, "--into", "flat", "-q"]) == 0
    found = open_store(tmp_path / "new")["flat"]["_default"].read()
    assert np.array_equal(found.ids, ids)
    assert np.array_equal(found.vectors, np.load(INDEXES / "vectors.npy")[:60])


def test_row_numbers_begin_where_asked(tmp_path: Path) -> None:
    assert run(["load", FLAT, f"milvus1:{tmp_path / 'new'}", "--first-id", "1000", "--into", "flat", "-q"]) == 0
    assert open_store(tmp_path / "new")["flat"]["_default"].read().ids.tolist() == list(range(1000, 1060))


def test_inspect_says_what_an_index_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(INDEXES / "1.5.3-ivf_full.index"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (collection,) = document["collections"]
    assert (document["store"]["kind"], collection["dimension"], collection["index"]["type"]) == ("faiss", 8, "IVF_FLAT")
    assert collection["rows"] == 60
    assert document["next"] and not any("--lossy" in step for step in document["next"])  # nothing is approximate


@pytest.mark.parametrize("option", [["--first-id", "3"], ["--lossy"], ["--follow-ondisk"], ["--ids", "x.npy"]])
@pytest.mark.parametrize("command", ["export", "load"])
def test_options_for_an_index_are_refused_for_a_store(
    tmp_path: Path, command: str, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(STORES / "crash_tags" / "store")
    assert run([command, store, f"milvus1:{tmp_path / 'n'}" if command == "load" else str(tmp_path / "n"), *option]) == 2
    assert "only goes with a Faiss index" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


def test_a_folder_of_indexes_is_told_from_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect", str(INDEXES)], ["export", str(INDEXES), str(tmp_path / "out")]):
        assert run(command) == 2
        shown = capsys.readouterr().err
        assert "one at a time" in shown and ".index" in shown
    (tmp_path / "empty").mkdir()
    assert run(["inspect", str(tmp_path / "empty")]) == 1
    assert "not a Milvus 1.x data folder" in capsys.readouterr().err
