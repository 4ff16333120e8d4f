"""The set of dead rows against a plain array of truth values."""

from __future__ import annotations

import numpy as np
import pytest

from milvus_offline.milvus1.segment import dead as module
from milvus_offline.milvus1.segment.dead import DeadRows

SETS = [(rows, share) for rows in (0, 1, 7, 8, 9, 64, 300, 1001) for share in (0.0, 0.03, 0.5, 0.97, 1.0)]


def made(rows: int, share: float) -> tuple[DeadRows, np.ndarray]:
    mask = np.random.default_rng(rows).random(rows) < share
    dead = DeadRows(rows)
    dead.add(np.flatnonzero(mask))
    return dead, mask


def test_windows_count_and_the_other_rows() -> None:
    for rows, share in SETS:
        dead, mask = made(rows, share)
        assert len(dead) == mask.sum(), (rows, share)
        assert dead.offsets().tolist() == np.flatnonzero(mask).tolist(), (rows, share)
        assert dead.others().offsets().tolist() == np.flatnonzero(~mask).tolist(), (rows, share)
        for first in range(0, rows, 13):
            assert dead.window(first, min(rows, first + 29)).tolist() == mask[first : first + 29].tolist(), (rows, share)


@pytest.mark.parametrize("block", [1, 5, 1 << 14])
def test_the_place_of_each_live_row(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    for rows, share in SETS:
        dead, mask = made(rows, share)
        live = np.flatnonzero(~mask).tolist()
        assert [dead.row_of_live(n) for n in range(len(live) + 2)] == [*live, rows, rows], (rows, share)


def test_how_many_rows_are_dead_right_before_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 100)
    for rows, share in SETS:
        dead, mask = made(rows, share)
        for row in range(0, rows + 1, 3):
            live = np.flatnonzero(~mask[:row])
            assert dead.right_before(row) == row - (int(live[-1]) + 1 if len(live) else 0), (rows, share)
