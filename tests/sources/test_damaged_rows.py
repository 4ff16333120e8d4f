"""Files of which some rows cannot be read: a chunk is damaged, or the disk refuses it. The others come, and these are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.badsectors import PAGE, refusing
from support.command import Outcome, call, exported

from milvus_offline.errors import DamageError
from milvus_offline.sources import open_source

N, D, CHUNK = 1000, 32, 64
VECTORS = np.random.default_rng(1).standard_normal((N, D)).astype("<f4")
IDS = np.arange(N, dtype=np.int64) * 7 + 100


def write(path: Path, **storage: Any) -> Path:
    with h5py.File(path, "w") as f:
        f.create_dataset("embeddings", data=VECTORS, **{**storage, "chunks": (CHUNK, D // 2)} if storage else {})
        f.create_dataset("ids", data=IDS, **{**storage, "chunks": (CHUNK,)} if storage else {})
    return path


def spoil(path: Path, dataset: str, *chunks: int) -> set[int]:
    """Damages these chunks of a dataset; the rows that they hold."""
    with h5py.File(path, "r") as f:
        stored = f[dataset]
        infos = [stored.id.get_chunk_info(i) for i in chunks]
        height = stored.chunks[0]
    with path.open("r+b") as f:
        for info in infos:
            f.seek(info.byte_offset + info.size // 2)
            octets = f.read(3)
            f.seek(info.byte_offset + info.size // 2)
            f.write(bytes(b ^ 0xFF for b in octets))
    return {row for i in infos for row in range(i.chunk_offset[0], min(N, i.chunk_offset[0] + height))}


def without(lost: set[int]) -> dict[int, bytes]:
    return {int(IDS[row]): VECTORS[row].tobytes() for row in range(N) if row not in lost}


def rows_in(out: Path) -> dict[int, bytes]:
    (bag,) = exported(out).values()
    assert set(bag.values()) <= {1}
    return dict(bag.keys())


def told(done: Outcome) -> list[tuple[str, int]]:
    return [(f["code"], f["rows"]) for f in done.json["findings"] if f["severity"] == "error"]


STORAGE = [{"compression": "gzip"}, {"compression": "gzip", "shuffle": True}, {"fletcher32": True}]


@pytest.mark.parametrize(
    ("storage", "options"),
    [*((s, []) for s in STORAGE), *((STORAGE[0], o) for o in (["--format", "parquet"], ["--compression", "gzip"]))],
    ids=str,
)
@pytest.mark.parametrize(("dataset", "chunks"), [("embeddings", [0]), ("embeddings", [5, 6, 31]), ("ids", [15]), ("ids", [3])])
def test_a_damaged_chunk_costs_its_own_rows(
    dataset: str, chunks: list[int], storage: dict[str, Any], options: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "faces.h5", **storage)
    lost = spoil(path, dataset, *chunks)
    done = call("export", path, tmp_path / "out", "--json", *options)
    assert (done.code, done.err) == (3, "")
    assert told(done) == [("rows-unreadable", len(lost))]
    (text,) = [f["message"] for f in done.json["findings"] if f["severity"] == "error"]
    first = min(lost)
    assert f"{path}: rows {first} to " in text and "cannot be read: HDF5: " in text
    if "parquet" not in options:
        assert rows_in(tmp_path / "out") == without(lost)
    assert call("verify", tmp_path / "out").code == 0


def test_a_load_brings_the_other_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "faces.h5", compression="gzip")
    lost = spoil(path, "embeddings", 4) | spoil(path, "ids", 9)
    done = call("load", path, f"milvus1:{tmp_path / 'new'}", "--metric", "L2", "--json")
    assert done.code == 3, done.err
    assert told(done) == [("rows-unreadable", len(lost))]
    assert call("export", tmp_path / "new", tmp_path / "out").code == 0
    assert rows_in(tmp_path / "out") == without(lost)


def test_ids_that_are_no_integers_are_read_around_damage_too(tmp_path: Path) -> None:
    path = tmp_path / "faces.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("embeddings", data=VECTORS)
        f.create_dataset("ids", data=np.char.mod("%d", IDS).astype("S8"), chunks=(CHUNK,), compression="gzip")
    lost = spoil(path, "ids", 2)
    done = call("export", path, tmp_path / "out", "--json")
    assert (done.code, told(done)) == (3, [("rows-unreadable", len(lost))])
    assert rows_in(tmp_path / "out") == without(lost)


def test_rows_that_are_lost_twice_are_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "faces.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("embeddings", data=VECTORS, chunks=(CHUNK, D), compression="gzip")
        f.create_dataset("ids", data=IDS)
        begin = f["ids"].id.get_offset()
    damaged = spoil(path, "embeddings", 4)
    first = (begin + 8 * (4 * CHUNK + 10)) // PAGE * PAGE  # a page with ids of that chunk
    refused = {row for row in range(N) if first < begin + 8 * row + 8 and begin + 8 * row < first + PAGE}
    assert damaged & refused
    with refusing({path: [(first, first + 1)]}):
        done = call("export", path, tmp_path / "out", "--json")
    assert rows_in(tmp_path / "out") == without(damaged | refused)
    assert sum(rows for _, rows in told(done)) == len(damaged | refused)


def test_an_interrupted_run_that_goes_on_tells_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_offline.targets import hdf5

    monkeypatch.setattr(hdf5, "TASK_BYTES", 300 * D * 4)
    path = write(tmp_path / "faces.h5", compression="gzip")
    lost = spoil(path, "embeddings", 2)
    run, count = hdf5.WriteRows.run, 0

    def stop_at_the_third(task: Any, advance: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return run(task, advance)

    monkeypatch.setattr(hdf5.WriteRows, "run", stop_at_the_third)
    assert call("export", path, tmp_path / "out", "--jobs", "1").code == 130
    monkeypatch.setattr(hdf5.WriteRows, "run", run)
    done = call("export", path, tmp_path / "out", "--resume", "--json")
    assert (done.code, told(done)) == (3, [("rows-unreadable", len(lost))])
    assert rows_in(tmp_path / "out") == without(lost)


def test_in_python_nobody_watches_and_damage_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "faces.h5", compression="gzip")
    spoil(path, "embeddings", 4)
    (piece,) = open_source(path).collections[0].partitions[0].pieces
    with pytest.raises(DamageError, match="HDF5 cannot read it"):
        list(piece.batches())


# Disks ----------------------------------------------------------------------------------------------------------------


def fvecs(path: Path) -> None:
    head = np.full((N, 1), D, "<i4").view("<f4")
    np.hstack([head, VECTORS]).tofile(path)


def fbin(path: Path) -> None:
    path.write_bytes(np.array([N, D], "<u4").tobytes() + VECTORS.tobytes())


WRITERS: dict[str, Callable[[Path], Any]] = {
    "faces.h5": write,
    "faces.npy": lambda path: np.save(path, VECTORS),
    "faces.npz": lambda path: np.savez(path, vectors=VECTORS, ids=IDS),
    "faces.fvecs": fvecs,
    "faces.fbin": fbin,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("pages", [(5, 6), (9, 12), (30, 31)], ids=str)
def test_what_the_disk_refuses_costs_its_own_rows(name: str, pages: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path, whole)
    ids = [] if name in ("faces.h5", "faces.npz") else ["--ids", "row"]
    with refusing({path: [(pages[0] * PAGE, pages[1] * PAGE)]}):
        done = call("export", path, tmp_path / "out", "--json", *ids)
    assert (done.code, done.err) == (3, "")
    ((code, count),) = told(done)
    assert code == "rows-unreadable"
    assert f"the disk refuses bytes {pages[0] * PAGE} to {pages[1] * PAGE - 1}" in str(done.json["findings"])
    assert call("export", whole / name, tmp_path / "right", *ids).code == 0
    right, found = rows_in(tmp_path / "right"), rows_in(tmp_path / "out")
    assert len(right) == N and found.items() <= right.items()
    assert len(right) - len(found) == count
    each = D * 4 + (4 if name == "faces.fvecs" else 0)
    assert (pages[1] - pages[0]) * PAGE / each <= count <= (pages[1] - pages[0]) * PAGE / each + 2
    assert "The rows there are left out" in str(done.json["findings"])


def test_parquet_and_compressed_archives_are_refused_as_a_whole(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"vector": pa.FixedSizeListArray.from_arrays(VECTORS.ravel(), D), "id": IDS})
    pq.write_table(table, tmp_path / "faces.parquet", write_page_checksum=True, compression="none")
    np.savez_compressed(tmp_path / "faces.npz", vectors=VECTORS, ids=IDS)
    for path in (tmp_path / "faces.parquet", tmp_path / "faces.npz"):
        octets = bytearray(path.read_bytes())
        octets[60_000] ^= 0xFF
        path.write_bytes(octets)
        done = call("export", path, tmp_path / "out", "--overwrite")
        assert done.code == 1 and str(path) in done.err
