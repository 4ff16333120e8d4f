"""Rows copied column by column are those that batches give, whatever the disk refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.badsectors import PAGE, refusing
from support.builder import StoreBuilder
from support.command import call

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.segment import files
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.model import Batch
from milvus_offline.targets.hdf5 import WriteRows
from milvus_offline.targets.hdf5file import Place
from milvus_offline.targets.slices import Slice
from milvus_offline.watch import Watch, watching


def segment_of(folder: Path, rows: int, dimension: int = 4, *, deleted: Sequence[int] = ()) -> Segment:
    b = StoreBuilder(folder)
    b.collection("c", dim=dimension)
    random = np.random.default_rng(7)
    ids = random.permutation(10 * rows)[:rows].astype(np.int64) + 1
    b.segment("c", Batch(ids, random.uniform(1, 2, (rows, dimension)).astype("<f4")), deleted=deleted)
    (piece,) = open_store(b.write()).collections[0].partitions[0].pieces
    assert isinstance(piece, Segment)
    return piece


def by_batches(segment: Segment, start: int, rows: int, step: int) -> tuple[bytes, bytes, int]:
    """Vectors, ids, and how many rows are left out."""
    batches = [(b.vectors.tobytes(), b.ids.tobytes(), len(b.lost)) for b in Slice(segment, start, rows).batches(step)]
    return b"".join(b[0] for b in batches), b"".join(b[1] for b in batches), sum(b[2] for b in batches)


def by_columns(segment: Segment, start: int, rows: int, step: int) -> tuple[bytes, bytes, int]:
    found = (bytearray(), bytearray())
    lost = [0, 0]
    for column, data, left_out in segment.columns(start, rows, step):
        assert column == 1 or len(data) <= max(step, segment.schema.row_bytes)
        found[column].extend(data)
        lost[column] += left_out
    assert lost[0] == lost[1]
    return bytes(found[0]), bytes(found[1]), lost[0]


def told_by(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, set[str]]]:
    """The findings of some tasks; which of a segment's files was met first does not matter."""
    return [
        (f.code, f.rows, set(re.findall(r"[^ ]+ the disk refuses [^;.]+", f.message))) for f in Watch.of(results).findings()
    ]


@pytest.fixture
def in_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows have many pieces of ids."""
    monkeypatch.setattr(files, "_IDS_AT_ONCE", 700)


DELETED = {
    "none": [],
    "some": [i for i in range(3000) if i * 7919 % 100 < 3],
    "first and last": [*range(10), 2998, 2999],
    "whole pieces": [*range(650, 2200), 2500],
    "all but one": [i for i in range(3000) if i != 1471],
}


@pytest.mark.parametrize("deleted", DELETED)
@pytest.mark.parametrize("dimension", [1, 4, 700])
@pytest.mark.usefixtures("in_short_pieces")
def test_columns_give_what_batches_give(dimension: int, deleted: str, tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 3000, dimension, deleted=DELETED[deleted])
    assert segment.has_columns
    live = segment.rows
    assert live == 3000 - len(DELETED[deleted])
    for start, rows in ((0, live), (0, 1), (live - 1, 1), (live // 3, live // 2), (5, 700), (700, 1401)):
        if 0 < rows <= live - start:
            for step in (1, 100, 4096, 1 << 21):
                assert by_columns(segment, start, rows, step) == by_batches(segment, start, rows, step), (start, rows, step)


@pytest.mark.parametrize("deleted", DELETED)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("in_short_pieces")
def test_what_the_disk_refuses_is_left_out_and_told_alike(seed: int, deleted: str, tmp_path: Path) -> None:
    """Some pages of either file, or of both, anywhere, the first and the last ones too. Which of them are read although only
    deleted rows lie there depends on the size of what is read at once."""
    segment = segment_of(tmp_path, 3000, 32, deleted=DELETED[deleted])
    random = np.random.default_rng(seed)
    bad = {}
    for path, nbytes in ((segment.raw_path, 3000 * 128), (segment.ids_path, 3000 * 8)):
        pages = random.choice(-(-nbytes // PAGE), int(random.integers(0, 5)), replace=False)
        bad[Path(path)] = sorted((int(p) * PAGE, int(p) * PAGE + 1) for p in pages)
    seen = []
    for way in (by_batches, by_columns):
        with refusing(bad), watching() as watch:
            found = way(segment, 0, segment.rows, 4096)
        told = told_by([watch.result()])
        seen.append((found, told if deleted == "none" else [(code, rows) for code, rows, _ in told]))
    assert seen[0] == seen[1]
    assert seen[0][0][2] or deleted != "none" or not any(bad.values())


@pytest.mark.usefixtures("in_short_pieces")
def test_blocks_of_zeros_are_found_alike(tmp_path: Path) -> None:
    """Also right behind deleted rows that nobody reads."""
    segment = segment_of(tmp_path, 3000, 32, deleted=DELETED["whole pieces"])
    with open(segment.raw_path, "r+b") as f:
        for at, size in ((20 * PAGE, 512), (2200 * 128 // 512 * 512, 4096), (40 * PAGE, 3 * PAGE)):
            f.seek(at)
            f.write(bytes(size))
    told = []
    for way in (by_batches, by_columns):
        with watching() as watch:
            way(segment, 0, segment.rows, 4096)
        told.append(sorted((f.code, f.rows or 0) for f in Watch.of([watch.result()]).findings()))
    assert told[0] == told[1] and told[0]


@pytest.mark.parametrize("there", [False, True], ids=["written", "cloned"])
@pytest.mark.usefixtures("in_short_pieces")
def test_rows_after_lost_ones_move_up(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the bytes are there already, as clones, only what comes after the first lost row is written."""
    segment = segment_of(tmp_path / "s", 3000, 32)
    bad = {Path(segment.raw_path): [(20 * PAGE, 21 * PAGE)], Path(segment.ids_path): [(3 * PAGE, 3 * PAGE + 1)]}
    out = tmp_path / "x"

    def copied() -> tuple[object, bytes, bytes]:
        vectors, ids = Path(segment.raw_path).read_bytes()[8:], Path(segment.ids_path).read_bytes()[8:]
        out.write_bytes(vectors + ids if there else bytes(len(vectors) + len(ids)))
        places = (Place(0, 128), Place(len(vectors), 8))
        moved = [0, 0]

        def advance(rows: int, nbytes: int) -> None:
            moved[0] += rows
            moved[1] += nbytes

        slices = (Slice(segment, 0, 1100), Slice(segment, 1100, 1900))
        with refusing(bad):
            result = WriteRows("t", str(out), 3000, 3000 * 136, 0, slices, segment.schema, places, False, there).run(advance)
        (part,) = result["parts"]
        told = told_by([result])
        assert moved == [part["rows"], part["rows"] * 136]
        written, kept = out.read_bytes(), part["rows"]
        return (part, told), written[: kept * 128], written[len(vectors) : len(vectors) + kept * 8]

    with_columns = copied()
    monkeypatch.setattr(Segment, "has_columns", False)
    assert copied() == with_columns
    with refusing(bad), watching():
        assert by_batches(segment, 0, 3000, 4096)[:2] == with_columns[1:]


def test_rows_that_lie_elsewhere_have_no_columns(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "hybrid", version="1.0.0")
    b.collection("h", dim=4)
    b.field("h", "a", 1)
    ids = np.arange(1, 11)
    b.segment("h", Batch(ids, np.ones((10, 4), "<f4")), attributes={"a": ids.astype("i1")})
    (piece,) = open_store(b.write()).collections[0].partitions[0].pieces
    assert isinstance(piece, Segment)
    assert not piece.has_columns


def test_ids_of_another_segment_are_told_once(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c", dim=4)
    for first in (1, 5001):
        ids = np.arange(first, first + 1000)
        b.segment("c", Batch(ids, np.full((1000, 4), first, "<f4")), bloom=True)
    root = b.write()
    one, other = sorted(root.rglob("*.uid"))
    one.write_bytes(other.read_bytes())
    done = call("export", root, tmp_path / "out", "--json")
    (finding,) = [f for f in done.json["findings"] if f["code"] == "ids-foreign"]
    assert 900 < finding["rows"] <= 1000  # the filter takes some for its own
