"""Blocks of zeros that a disk left, told apart from zeros that were stored."""

from __future__ import annotations

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

from milvus_offline.milvus1.segment import zeros
from milvus_offline.milvus1.segment.zeros import SECTOR, LostBlocks, lost_blocks
from milvus_offline.model import Batch


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
    monkeypatch.setattr(zeros, "_CHUNK", chunk)
    path = written(tmp_path / "x.rv", numbers(100, 100))  # 40,008 bytes, 78 blocks and a piece
    assert lost_blocks(path, 100, 400) is None
    blank(path, 3)  # bytes 1536 to 2047: rows 3 to 5
    blank(path, 10, 8)  # bytes 5120 to 9215: rows 12 to 23
    assert lost_blocks(path, 100, 400) == LostBlocks(9, 3 + 11 + 1, 1536)
    blank(path, 76, 4)  # up to the end
    assert lost_blocks(path, 100, 400) == LostBlocks(12, 15 + 3, 1536)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), max_size=6), st.integers(1, 7))
@settings(deadline=None)
def test_runs_do_not_depend_on_how_the_file_is_read(blocks: list[tuple[int, int]], chunk: int) -> None:
    sectors = numbers(50, 128).view("<u4").copy()
    for first, count in blocks:
        sectors[first : min(first + count, 49)] = 0
    search, whole = zeros._Search(533, 48, 4), zeros._Search(533, 48, 4)
    for at in range(0, len(sectors), chunk):
        search.look(sectors[at : at + chunk])
    whole.look(sectors)
    expected = int((~sectors.any(axis=1)).sum())
    for found in (search.result(), whole.result()):
        assert (found.sectors if found else 0) == expected


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
    assert f"{suffix}: 512 bytes are zeros, in blocks as a disk has them, the first at byte 2048" in finding["message"]
