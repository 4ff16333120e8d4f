"""The package as a library: names, iteration, batches that stay what they are, tables, and the commands as functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.builder import StoreBuilder, bag, rows
from support.command import exported, fingerprint
from support.damaged import damaged_store
from support.real import STORES

import milvus_offline
from milvus_offline import open_store
from milvus_offline.errors import UsageError
from milvus_offline.progress import State


@pytest.fixture
def path(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "store")
    b.collection("faces")
    b.segment("faces", rows(range(1000)))
    b.segment("faces", rows(range(1000, 1300)), deleted=[0])
    b.segment(b.partition("faces", "<b>red</b>")["table_id"], rows(5000, 5001))
    b.partition("faces", "empty")
    b.wal.insert("faces", rows(9000))
    return b.write()


def test_batches_stay_what_they_were(path: Path) -> None:
    """A list of batches holds every row: each has arrays of its own, unless the faster form is asked for."""
    faces = open_store(path)["faces"]
    kept = list(faces.batches(256))
    assert len(kept) > 10
    assert bag(*kept) == bag(faces["_default"].read(), faces["<b>red</b>"].read())
    reused = list(faces["_default"].batches(256, copy=False))
    assert len({b.vectors.ctypes.data for b in reused}) < len(reused)


def test_names(path: Path) -> None:
    store = open_store(path)
    assert (len(store), list(store), len(store["faces"]), len(store["faces"]["_default"])) == (1, ["faces"], 3, 1300)
    assert store["faces"]["empty"] and len(store["faces"]["empty"]) == 0
    with pytest.raises(KeyError, match="no collection 'face'; did you mean 'faces'"):
        store["face"]
    with pytest.raises(KeyError, match="no partition 'blue'; there are: '_default', '<b>red</b>', 'empty'"):
        store["faces"]["blue"]
    assert "face" not in store and store["faces"].get("blue") is None


def test_rows_of_a_partition(path: Path) -> None:
    part = open_store(path)["faces"]["_default"]
    pairs = list(part)
    assert [i for i, _ in pairs] == part.read().ids.tolist()
    assert np.array_equal(np.stack([v for _, v in pairs]), part.read().vectors)
    assert part.head(3).ids.tolist() == [0, 1, 2]
    assert open_store(path)["faces"].head(1301).ids.tolist()[-1] == 5000


def test_tables_for_a_notebook(path: Path) -> None:
    store = open_store(path)
    for shown in (store._repr_html_(), store["faces"]._repr_html_()):
        assert "<table>" in shown and "1,302" in shown and "<b>red" not in shown
    assert "&lt;b&gt;red" in store["faces"]._repr_html_()
    shown = store["faces"]["_default"]._repr_html_()
    assert "<table>" in shown and "1,300" in shown and "write-ahead log" in shown


def test_pandas_and_arrow(path: Path) -> None:
    faces = open_store(path)["faces"]
    table = pytest.importorskip("pyarrow") and faces.to_arrow()
    assert table.num_rows == 1302 and set(table.column_names) == {"id", "vector", "partition"}
    assert faces["_default"].to_arrow()["id"].to_pylist() == faces["_default"].read().ids.tolist()
    pytest.importorskip("pandas")
    frame = faces.to_pandas()
    assert list(frame.columns) == ["id", "vector", "partition"] and len(frame) == 1302
    assert frame.vector[0].tolist() == faces["_default"].read(1).vectors[0].tolist()
    assert len(faces["empty"].to_pandas()) == 0


def test_export_load_and_verify_are_functions(path: Path, tmp_path: Path) -> None:
    before = fingerprint(path)
    told: list[tuple[int, int]] = []

    def tell(state: State) -> None:
        told.append((state.rows, state.total_rows))

    report = milvus_offline.export(path, tmp_path / "out", partitions=["_default"], progress=tell)
    assert (report.rows, told[0], told[-1]) == (1300, (0, 1300), (1300, 1300))
    assert exported(tmp_path / "out") == {("faces", "_default"): bag(open_store(path)["faces"]["_default"].read())}
    assert milvus_offline.export(open_store(path), tmp_path / "parquet", file_format="parquet").rows == 1302
    assert milvus_offline.verify(tmp_path / "out", against=path).exit_code == 0
    assert milvus_offline.verify(open_store(path), progress=tell).rows == 1302
    loaded = milvus_offline.load(tmp_path / "out", f"milvus1:{tmp_path / 'new'}", rename={"faces": "people"})
    assert (loaded.rows, loaded.exit_code) == (1300, 0)
    assert open_store(tmp_path / "new")["people"].rows == 1300
    assert milvus_offline.open_source(tmp_path / "out").collections[0].rows == 1300
    assert fingerprint(path) == before


def test_what_progress_is_told_may_be_kept(path: Path, tmp_path: Path) -> None:
    """Each call has a value of its own: a list of them begins with what there was to do."""
    states: list[State] = []
    milvus_offline.export(path, tmp_path / "out", jobs=1, progress=states.append)
    assert [s.rows for s in (states[0], states[-1])] == [0, 1302]


def test_what_is_lost_is_in_the_report(tmp_path: Path) -> None:
    store = damaged_store(tmp_path / "s")
    assert milvus_offline.verify(store).exit_code == 4
    assert {f.code for f in milvus_offline.export(store, tmp_path / "o").findings} >= {"rows-lost", "segment-missing"}


@pytest.mark.parametrize("call", [{"collections": "faces"}, {"link": True, "file_format": "npy"}, {"collections": ["x"]}])
def test_calls_that_cannot_be_meant(call: dict[str, Any], path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        milvus_offline.export(path, tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_importing_is_quick_and_light() -> None:
    code = "import sys, milvus_offline; print(*sys.modules); print(dir(milvus_offline))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"numpy", "h5py", "rich", "click", "pandas", "pyarrow"}
    assert "'export'" in done.stdout


@pytest.mark.parametrize("name", ["flat_basic", "crash_wal_partial"])
def test_nothing_is_left_open(name: str, tmp_path: Path) -> None:
    """With every warning an error a run says nothing: no file is left to the garbage collector."""
    for words in (["inspect"], ["verify"], ["export", tmp_path / "out"]):
        command = [words[0], STORES / name / "store", *words[1:]]
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-m", "milvus_offline", *map(str, command)],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
