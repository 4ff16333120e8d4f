"""Blocks of zeros that a disk left, told apart from zeros that were stored."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builder import StoreBuilder
from support.command import call

from milvus_offline.fileio import SECTOR
from milvus_offline.milvus1.segment import zeros
from milvus_offline.milvus1.segment.zeros import lost_blocks
from milvus_offline.model import Batch
from milvus_offline.watch import LostBlocks, Watch


def written(path: Path, values: npt.NDArray[np.generic]) -> Path:
    path.write_bytes(values.nbytes.to_bytes(8, "little") + values.tobytes())
    return path


def numbers(rows: int, width: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).uniform(1, 2, (rows, width)).astype("<f4")


def blank(path: Path, first: int, count: int = 1) -> None:
    data = bytearray(path.read_bytes())
    end = min(len(data), (first + count) * SECTOR)
    data[first * SECTOR : end] = bytes(end - first * SECTOR)
    path.write_bytes(data)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4096])
def test_blocks_are_found_and_their_rows_counted(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeros, "_CHUNK", chunk * SECTOR)
    path = written(tmp_path / "x.rv", numbers(100, 100))  # 40,008 bytes, 78 blocks and a piece
    assert lost_blocks(path, 100, 400) is None
    blank(path, 3)  # bytes 1536 to 2047: rows 3 to 5
    blank(path, 10, 8)  # bytes 5120 to 9215: rows 12 to 23
    assert lost_blocks(path, 100, 400) == LostBlocks(9, 3 + 11 + 1, 1536)
    blank(path, 76, 4)  # up to the end
    assert lost_blocks(path, 100, 400) == LostBlocks(12, 15 + 3, 1536)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.sampled_from([0, 255])), max_size=6),
    st.sampled_from([4, 12, 48, 400, 512, 4096]),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_runs_do_not_depend_on_how_the_file_is_read(
    blocks: list[tuple[int, int, int]], row_bytes: int, cuts: list[int], rng: random.Random
) -> None:
    """Nor on the order in which its parts are read, and by how many (parts that end with a sector, which few do, apart)."""
    sectors = numbers(50, 128).view("u1").copy()
    for first, count, fill in blocks:
        sectors[first : min(first + count, 49)] = fill
    octets = sectors.reshape(-1)
    rows = (len(octets) - 8) // row_bytes
    bounds = [8 + row_bytes * row for row in sorted({0, rows, *(c * rows // 41 for c in cuts)})]
    bounds = [b for b in bounds if b % SECTOR or b == bounds[-1]]
    parts = list(itertools.pairwise(bounds))
    rng.shuffle(parts)
    whole, watches = Watch(), [Watch() for _ in parts]
    read(whole, octets, 8, bounds[-1], row_bytes)
    for watch, (first, last) in zip(watches, parts, strict=True):
        read(watch, octets, first, last, row_bytes)
    found = Watch.of(json.loads(json.dumps(w.result())) for w in watches).lost_blocks("x")
    lost = {i for first, count, _ in blocks for i in range(first, min(first + count, 49)) if i < bounds[-1] // SECTOR}
    for one in (found, whole.lost_blocks("x")):
        assert (one.sectors if one else 0) == len(lost)
        assert (one.first if one else None) == (min(lost) * SECTOR if lost else None)


def read(watch: Watch, octets: npt.NDArray[np.uint8], first: int, last: int, row_bytes: int) -> None:
    finder = zeros.Finder(watch, "c/1", "x", row_bytes)
    for at in range(first, last, 4096 // row_bytes * row_bytes):
        finder.look(octets[at : min(at + 4096 // row_bytes * row_bytes, last)], at)
    finder.close()


@pytest.mark.parametrize("width", [16, 100, 126, 128, 2048])
def test_vectors_of_zeros_are_no_lost_blocks(width: int, tmp_path: Path) -> None:
    values = numbers(4000, width)
    rng = random.Random(width)
    for _ in range(30):
        first = rng.randrange(4000)
        values[first : first + rng.randint(1, 40)] = 0
    values[-50:] = 0
    assert lost_blocks(written(tmp_path / "x.rv", values), 4000, 4 * width) is None
    sparse = np.zeros((4000, width), "<f4")
    for row in sparse:
        row[rng.randrange(width)] = 1
    assert lost_blocks(written(tmp_path / "x.rv", sparse), 4000, 4 * width) is None
    nothing = np.zeros((4000, width), "<f4")
    assert lost_blocks(written(tmp_path / "x.rv", nothing), 4000, 4 * width) is None


def test_what_lies_behind_the_rows_does_not_count(tmp_path: Path) -> None:
    path = written(tmp_path / "x.rv", numbers(128, 128))
    with path.open("ab") as f:
        f.write(bytes(4096))
    assert lost_blocks(path, 128, 512) is None


def test_a_file_of_zeros_alone_has_lost_its_header_too(tmp_path: Path) -> None:
    path = written(tmp_path / "x.rv", numbers(100, 100))
    blank(path, 0, 100)
    assert lost_blocks(path, 100, 400) == LostBlocks(79, 100, 8)


@pytest.mark.parametrize("deleted", [20, 250])
@pytest.mark.parametrize(("sector", "lost"), [(4, True), (0, False)])
def test_blocks_that_begin_in_deleted_rows(deleted: int, sector: int, lost: bool, tmp_path: Path) -> None:
    """Nobody reads those at the beginning, but they tell whether a disk or a client made the zeros that go on behind them."""
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=100)
    values = numbers(1000, 100)
    if not sector:
        values[5:] = 0
    made = b.segment("c", Batch(np.arange(1, 1001), values), deleted=range(deleted))
    if sector:
        blank(made.raw, sector, 1000)
    done = call("export", b.write(), tmp_path / "out", "--json")
    assert done.code == (3 if lost else 0)
    assert [f["code"] for f in json.loads(done.out)["findings"]] == ["blocks-lost"] * lost


@pytest.mark.parametrize("suffix", [".rv", ".uid"])
def test_verify_tells(suffix: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=128)
    b.segment("c", Batch(np.arange(1, 1001), numbers(1000, 128)), bloom=True)
    root = b.write()
    assert call("verify", root).code == 0
    blank(next(root.rglob(f"*{suffix}")), 4)
    done = call("verify", root, "--json")
    (finding,) = [f for f in json.loads(done.out)["findings"] if f["code"] == "blocks-lost"]
    assert (done.code, finding["rows"]) == (4, {".rv": 2, ".uid": 64}[suffix])
    assert f"{suffix}: 512 bytes are zeros or all ones, in whole disk blocks, from byte 2048" in str(finding)
