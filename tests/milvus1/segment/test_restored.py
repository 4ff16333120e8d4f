"""Vectors of a lost or short `.rv` come out of index files that hold them; what stays lost is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.builder import bag, content, pieces_bag
from support.real import copy_store, truth

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.milvus1.segment.restored import RestoredSegment
from milvus_offline.milvus1.store import Store
from milvus_offline.model import Batch

HOLDING = {
    "ix_ivf_flat": "IVF_FLAT",
    "ix_hnsw": "HNSW",
    "ix_annoy": "ANNOY",
    "ix_rnsg": "RNSG",
    "ix_bin_ivf_flat_hamming": "BIN_IVF_FLAT",
    "ix_bin_ivf_flat_jaccard": "BIN_IVF_FLAT",
}


def indexed_segments(store: Store) -> list[tuple[str, Segment]]:
    return [
        (c.name, s)
        for c in store.values()
        for p in c.partitions
        for s in p.segments
        if s.state == "BACKUP" and isinstance(s, Segment)
    ]


def spoil(root: Path, how: str) -> None:
    for _, segment in indexed_segments(open_store(root)):
        path = Path(segment.raw_path)
        if how == "missing":
            path.unlink()
        else:
            os.truncate(path, 8 + path.stat().st_size // 3)


@pytest.mark.parametrize("how", ["missing", "short"])
def test_indexes_that_hold_vectors_restore_them(tmp_path: Path, how: str) -> None:
    root = copy_store("indexed", tmp_path)
    spoil(root, how)
    store = open_store(root)
    found, expected = content(store), truth("indexed")
    for collection, kind in HOLDING.items():
        assert found[collection, "_default"] == expected[collection, "_default"]
        notes = [f for f in store.findings if f"/{collection}/" in f.where]
        assert [f.code for f in notes] == ["vectors-restored"]
        assert kind in notes[0].message


@pytest.mark.parametrize(("how", "code"), [("missing", "segment-incomplete"), ("short", "rows-lost")])
def test_lossy_indexes_restore_nothing(tmp_path: Path, how: str, code: str) -> None:
    root = copy_store("indexed", tmp_path)
    spoil(root, how)
    store = open_store(root)
    notes = {f.code: f for f in store.findings if "/ix_ivf_sq8/" in f.where}
    assert notes[code].rows == (4300 if how == "missing" else 4300 - (137608 // 3) // 32)
    assert "does not hold the vectors" in notes["index-unusable"].message
    assert content(store)["ix_ivf_sq8", "_default"] <= truth("indexed")["ix_ivf_sq8", "_default"]


def test_the_index_of_other_rows_is_not_used(tmp_path: Path) -> None:
    root = copy_store("indexed", tmp_path)
    by_name = dict(indexed_segments(open_store(root)))
    victim, other = by_name["ix_ivf_flat"], by_name["ix_annoy"]
    data = bytearray(Path(victim.raw_path).read_bytes()[: 8 + 100 * 32])
    data[8 + 50 * 32] ^= 1  # row 50 of the readable part differs from the index
    Path(victim.raw_path).write_bytes(data)
    assert other.rows == victim.rows
    store = open_store(root)
    notes = {f.code: f for f in store.findings if "/ix_ivf_flat/" in f.where}
    assert "another segment's index" in notes["index-unusable"].message
    assert notes["rows-lost"].rows == 4200


def test_a_cut_index_restores_what_it_has(tmp_path: Path) -> None:
    root = copy_store("indexed", tmp_path)
    segment = dict(indexed_segments(open_store(root)))["ix_rnsg"]
    Path(segment.raw_path).unlink()
    index = next(p for p in Path(segment.raw_path).parent.iterdir() if p.name.isdigit())
    os.truncate(index, 50_000)
    shutil.rmtree(root / "wal")  # it still holds these rows
    store = open_store(root)
    found = content(store)["ix_rnsg", "_default"]
    notes = {f.code: f for f in store.findings if "/ix_rnsg/" in f.where}
    assert found < truth("indexed")["ix_rnsg", "_default"]
    assert notes["rows-lost"].rows == truth("indexed")["ix_rnsg", "_default"].total() - found.total() > 0
    after = dict(indexed_segments(store))["ix_rnsg"]
    for deleted in (after, after.with_wal_deletes(np.arange(after.stored))):
        whole = deleted.undeleted
        assert pieces_bag([whole]).total() == whole.rows == after.stored - len(after.absent) > 0


def test_deletes_apply_to_restored_rows_and_vectors_keep_the_order_of_ids(tmp_path: Path) -> None:
    root = copy_store("indexed", tmp_path)
    before = dict(indexed_segments(open_store(root)))["ix_hnsw"]
    vectors, ids = np.array(before.vectors), np.array(before.ids)
    Path(before.raw_path).unlink()
    after = dict(indexed_segments(open_store(root)))["ix_hnsw"]
    assert isinstance(after, RestoredSegment)
    assert (after.rows, after.deleted) == (before.rows, before.deleted) and before.deleted > 0
    assert np.array_equal(after.vectors, vectors)
    hit = after.with_wal_deletes(np.array([int(np.flatnonzero(before.live)[0])]))
    gone = int(ids[np.flatnonzero(before.live)[0]])
    assert hit.rows == after.rows - 1
    left = np.concatenate([b.ids.copy() for b in hit.batches()])
    assert len(left) == hit.rows and gone not in left
    whole = np.concatenate([b.ids.copy() for b in after.batches()])
    assert np.array_equal(np.concatenate([b.ids.copy() for b in after.batches(start=1000)]), whole[1000:])


@pytest.mark.parametrize("how", ["missing", "short"])
def test_deleted_rows_of_a_restored_segment(tmp_path: Path, how: str) -> None:
    """They, too, come out of the index file; in a file cut short some of them are lost."""
    root = copy_store("indexed", tmp_path)
    expected = {}
    for name, segment in indexed_segments(open_store(root)):
        if name in HOLDING:
            before = np.flatnonzero(~segment.live)  # the log knows of these, too
            offsets = np.union1d(before, [0, 5, 8, segment.stored - 1]).astype("<i4")
            gone = Batch(np.array(segment.ids[offsets]), np.array(segment.vectors[offsets]))
            deleted = (4 * len(offsets)).to_bytes(8, "little") + offsets.tobytes()
            Path(segment.ids_path).with_name("deleted_docs").write_bytes(deleted)
            expected[name] = bag(gone)
    spoil(root, how)
    salvaged, _ = collect(open_store(root), ["deleted"])
    found = {s.schema.name: s for s in salvaged if s.schema.name in HOLDING}
    assert found.keys() == expected.keys()
    for name, salvaged in found.items():
        assert sum(p.rows for p in salvaged.pieces) == expected[name].total()
        assert pieces_bag(salvaged.pieces) == pieces_bag(salvaged.pieces, max_bytes=64) == expected[name]
        (piece,) = salvaged.pieces
        assert [b.ids.tolist() for b in piece.batches(start=3)] == [[i for b in piece.batches() for i in b.ids][3:]]
