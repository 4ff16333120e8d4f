"""A task reads its own part of a large log, not what stands before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, rows

from milvus_offline import fileio, open_store
from milvus_offline.milvus1.wal.rows import LogRows, SpanBuilder


@pytest.fixture
def piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogRows:
    """40 inserts of ten rows, with deletes and another collection's rows between them, in runs of some records."""
    monkeypatch.setattr(SpanBuilder, "_LONG", 9000)
    builder = StoreBuilder(tmp_path / "store", wal_file_bytes=40_000)
    for name in ("c", "other"):
        builder.collection(name, dim=64)
    for n in range(40):
        builder.wal.insert("c", rows(range(10 * n, 10 * n + 10), dim=64))
        if n % 7 == 3:
            builder.wal.delete("c", [10 * n, 10 * n + 1, 5 * n])
        if n % 9 == 4:
            builder.wal.insert("other", rows(range(3), dim=64))
    (made,) = open_store(builder.write())["c"]["_default"].pieces
    assert isinstance(made, LogRows) and len(made.spans) > 10 and len(made.dead) > 10
    return made


@pytest.mark.parametrize("first", [0, 10, 13, 137])
def test_a_part_is_what_the_whole_has_there(first: int, piece: LogRows) -> None:
    piece = replace(piece, first=first, dead=piece.dead[piece.dead >= first])
    whole = np.concatenate([b.ids.copy() for b in piece.batches()])
    vectors = np.concatenate([b.vectors.copy() for b in piece.batches()])
    assert len(whole) == piece.rows and vectors.tobytes() == rows(*whole.tolist(), dim=64).vectors.tobytes()
    for start in range(0, piece.rows, 7):
        found = [(b.ids.copy(), b.vectors.copy()) for b in piece.batches(4096, start)]
        assert np.concatenate([i for i, _ in found]).tolist() == whole[start:].tolist()
        assert np.concatenate([v for _, v in found]).tobytes() == vectors[start:].tobytes()
    assert list(piece.batches(start=piece.rows)) == []


def test_what_stands_before_is_not_read(piece: LogRows, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    pread = fileio.pread

    def counted(fd: int, view: memoryview, offset: int) -> int:
        nonlocal read
        got = pread(fd, view, offset)
        read += got
        return got

    monkeypatch.setattr(fileio, "pread", counted)
    list(piece.batches())
    whole, read = read, 0
    list(piece.batches(start=piece.rows - 5))
    assert read < whole / 4
