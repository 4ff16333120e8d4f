"""Files of others by the command line: what the report tells to run next, and rows that no one wrote in every command."""

from __future__ import annotations

import shlex
import sqlite3
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.builder import StoreBuilder, rows
from support.command import call, exported


def floats(n: int = 20) -> Any:
    return np.random.default_rng(3).random((n, 8), dtype="f4")


def h5(path: Path, vectors: Any, ids: Any = None, names: tuple[str, str] = ("embeddings", "ids")) -> Path:
    with h5py.File(path, "w") as h:
        h[names[0]] = vectors
        if ids is not None:
            h[names[1]] = ids
    return path


def told(out: str, command: str) -> list[str]:
    """The words of a command that a report tells to run next."""
    line = next(line for line in out.splitlines() if line.strip().startswith(f"milvus-offline {command}"))
    return shlex.split(line)[1:]


@pytest.mark.parametrize(
    ("vectors", "ids", "names", "options"),
    [
        (np.arange(160, dtype="u1").reshape(20, 8), np.arange(20), ("embeddings", "ids"), ["--metric", "L2"]),
        (np.arange(160, dtype="u1").reshape(20, 8), np.arange(20), ("embeddings", "ids"), ["--vector-type", "float"]),
        (floats(), np.array([b"a%d" % n for n in range(20)]), ("embeddings", "ids"), ["--ids", "row"]),
        (floats(), np.arange(20), ("a b", "key"), ["--embeddings", "a b", "--ids-dataset", "key", "--into", "books"]),
    ],
)
def test_what_a_report_tells_to_run_next_takes_the_file_as_this_run_did(
    vectors: Any, ids: Any, names: tuple[str, str], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    h5(tmp_path / "a.h5", vectors, ids, names)
    looked = call("inspect", "a.h5", *options)
    done = call(*told(looked.out, "export"))
    assert done.code == 0, done.err
    ((_, found),) = exported(next(tmp_path.glob("*-export"))).items()
    assert sorted(v for _, v in found) == sorted(v.tobytes() for v in vectors.astype("<f4"))
    checked = call(*told(done.out, "verify"))
    assert checked.code == 0, checked.out


def test_a_missing_file_of_a_virtual_dataset_is_an_error_of_every_command(tmp_path: Path) -> None:
    layouts = {"embeddings": h5py.VirtualLayout((40, 8), "f4"), "ids": h5py.VirtualLayout((40,), "i8")}
    for n in (0, 1):
        h5(tmp_path / f"part{n}.h5", floats(), np.arange(20) + 20 * n)
        for name, layout in layouts.items():
            layout[20 * n : 20 * n + 20] = h5py.VirtualSource(f"part{n}.h5", name, (20, *layout.shape[1:]))
    with h5py.File(tmp_path / "all.h5", "w") as h:
        for name, layout in layouts.items():
            h.create_virtual_dataset(name, layout)
    (tmp_path / "part1.h5").unlink()
    done = call("export", tmp_path / "all.h5", tmp_path / "out", "--json")
    assert (done.code, [f["rows"] for f in done.json["findings"] if f["severity"] == "error"]) == (3, [20])
    ((_, found),) = exported(tmp_path / "out").items()
    assert found == {(i, v.tobytes()): 1 for i, v in enumerate(floats())}
    for words in (
        ("load", tmp_path / "all.h5", f"milvus1:{tmp_path / 'new'}"),
        ("verify", tmp_path / "out", "--against", tmp_path / "all.h5"),
        ("inspect", tmp_path / "all.h5"),
    ):
        done = call(*words)
        assert (done.code, "rows 20 to 39 of 'embeddings' are missing" in " ".join(done.out.split())) == (3, True)


@pytest.mark.parametrize(
    "schema",
    [
        "create table Tables (id integer primary key, room text, seats int); create table TableFiles (id integer, path text)",
        "create table tables (name text); create table tablefiles (file text); create table Environment (key, value)",
        "create table Tables (id, state, version); create table TableFiles (id, date, file_size)",
    ],
)
def test_tables_of_another_application_are_no_damaged_catalog(schema: str, tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path / "store")
    store.collection("c")
    store.segment("c", rows(1))
    root = store.write()
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as c:
        c.executescript(schema)
    c.close()
    done = call("inspect", root, "--catalog", other)
    assert (done.code, "of another application" in done.err, "damaged" in done.err) == (1, True, False)
    done = call("inspect", other)
    assert (done.code, "none of Milvus 1.x" in done.err) == (2, True)
