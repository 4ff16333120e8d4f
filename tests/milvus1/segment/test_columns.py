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


@pytest.mark.parametrize("dimension", [1, 4, 700])
@pytest.mark.usefixtures("in_short_pieces")
def test_columns_give_what_batches_give(dimension: int, tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 3000, dimension)
    assert segment.is_plain
    for start, rows in ((0, 3000), (0, 1), (2999, 1), (1234, 1000), (5, 700), (700, 1401)):
        for step in (1, 100, 4096, 1 << 21):
            assert by_columns(segment, start, rows, step) == by_batches(segment, start, rows, step), (start, rows, step)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("in_short_pieces")
def test_what_the_disk_refuses_is_left_out_and_told_alike(seed: int, tmp_path: Path) -> None:
    """Some pages of either file, or of both, anywhere, the first and the last ones too."""
    segment = segment_of(tmp_path, 3000, 32)
    random = np.random.default_rng(seed)
    bad = {}
    for path, nbytes in ((segment.raw_path, 3000 * 128), (segment.ids_path, 3000 * 8)):
        pages = random.choice(-(-nbytes // PAGE), int(random.integers(0, 5)), replace=False)
        bad[Path(path)] = sorted((int(p) * PAGE, int(p) * PAGE + 1) for p in pages)
    seen = []
    for way in (by_batches, by_columns):
        with refusing(bad), watching() as watch:
            found = way(segment, 0, 3000, 4096)
        seen.append((found, told_by([watch.result()])))
    assert seen[0] == seen[1]
    assert seen[0][0][2] or not any(bad.values())


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
    monkeypatch.setattr(Segment, "is_plain", False)
    assert copied() == with_columns
    with refusing(bad), watching():
        assert by_batches(segment, 0, 3000, 4096)[:2] == with_columns[1:]


def test_segments_with_more_to_look_at_are_not_plain(tmp_path: Path) -> None:
    segment = segment_of(tmp_path, 100, deleted=[4])
    assert not segment.is_plain
    assert segment.undeleted.is_plain
    assert not segment.undeleted.with_wal_deletes(np.array([3])).is_plain
    b = StoreBuilder(tmp_path / "hybrid")
    b.collection("h", dim=4)
    b.field("h", "a", 1)
    ids = np.arange(1, 11)
    b.segment("h", Batch(ids, np.ones((10, 4), "<f4")), attributes={"a": ids.astype("i1")})
    (piece,) = open_store(b.write()).collections[0].partitions[0].pieces
    assert isinstance(piece, Segment)
    assert not piece.is_plain


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
