"""Index files of Milvus 1.x, written by a real 1.1.1 server, and the raw files of 0.5/0.6."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milvus_offline.errors import DamageError, UsageError
from milvus_offline.milvus1.segment import indexfile
from milvus_offline.milvus1.segment.files import Segment
from milvus_offline.milvus1.segment.indexfile import StoredVectors, check, read_container, read_index_file
from milvus_offline.milvus1.segment.rawfile import RawFile, open_raw_file, raw_file_path
from milvus_offline.milvus1.segment.restored import restore
from milvus_offline.model import Piece, Schema, VectorType
from milvus_offline.sources.faiss.source import open_faiss

TABLES = Path(__file__).resolve().parents[3] / "fixtures" / "stores" / "indexed" / "store" / "db" / "tables"
ROWS = 4300
WITH_VECTORS = {
    "ix_ivf_flat": ("IVF_FLAT", 8),
    "ix_bin_ivf_flat_hamming": ("BIN_IVF_FLAT", 64),
    "ix_bin_ivf_flat_jaccard": ("BIN_IVF_FLAT", 64),
    "ix_hnsw": ("HNSW", 8),
    "ix_annoy": ("ANNOY", 8),
    "ix_rnsg": ("RNSG", 8),
}
WITHOUT_VECTORS = {"ix_ivf_sq8": ("IVF_SQ8", 4300), "ix_ivf_pq": ("IVF_PQ", 4300), "ix_ip": ("IVF_SQ8", 4500)}


def index_file(collection: str) -> Path:
    (path,) = [f for f in (TABLES / collection).glob("*/*") if f.name.isdigit()]
    return path


def segment(path: Path, stored: StoredVectors) -> Any:
    """The vectors of the segment's .rv file."""
    (rv,) = path.parent.glob("*.rv")
    return np.frombuffer(rv.read_bytes()[8:], stored.dtype).reshape(-1, stored.width)


def put_together(stored: StoredVectors, max_bytes: int, start: int = 0) -> tuple[Any, Any]:
    """(vectors by offset, how often each offset came)."""
    out = np.zeros((stored.rows + stored.lost, stored.width), stored.dtype)
    seen = np.zeros(len(out), int)
    for offsets, vectors in stored.batches(max_bytes, start):
        assert vectors.dtype == stored.dtype and (len(offsets) == 1 or vectors.nbytes <= max_bytes)
        out[offsets] = vectors
        np.add.at(seen, offsets, 1)
    return out, seen


@pytest.mark.parametrize("collection", WITH_VECTORS)
def test_a_lost_segment_is_put_together_again(collection: str) -> None:
    path = index_file(collection)
    stored = pickle.loads(pickle.dumps(read_index_file(path, rows=ROWS)))
    kind, dimension = WITH_VECTORS[collection]
    assert (stored.kind, stored.dimension, stored.rows, stored.lost) == (kind, dimension, ROWS, 0)
    assert stored.vector_type is (VectorType.BINARY if kind.startswith("BIN") else VectorType.FLOAT)
    expected = segment(path, stored)
    assert stored.row_bytes == expected[0].nbytes
    for max_bytes in (1, 1000, 1 << 20):
        got, seen = put_together(stored, max_bytes)
        assert got.tobytes() == expected.tobytes()
        assert (seen == 1).all()
    assert put_together(stored, 1000, start=ROWS - 5)[1].sum() == 5


@pytest.mark.parametrize("collection", [*WITH_VECTORS, *WITHOUT_VECTORS])
def test_check_reads_the_structure_to_its_last_byte(collection: str, tmp_path: Path) -> None:
    path = index_file(collection)
    report = check(path)
    kind, number = WITH_VECTORS.get(collection) or WITHOUT_VECTORS[collection]
    assert report.type_name == kind
    assert report.holds_vectors == (collection in WITH_VECTORS)
    assert report.rows == (ROWS if report.holds_vectors else number)
    assert report.blobs[-1].at + report.blobs[-1].size == path.stat().st_size
    data = path.read_bytes()
    broken = tmp_path / "broken"
    broken.write_bytes(data[:-1])
    with pytest.raises(DamageError):
        check(broken)
    broken.write_bytes(data + b"\0")
    with pytest.raises(DamageError, match="of the length of a name, 1 are left"):
        check(broken)
    last = report.blobs[-1]
    if last.name in ("IVF", "BinaryIVF", "HNSW", "NSG"):  # one byte more inside the part
        broken.write_bytes(data[: last.at - 8] + struct.pack("<q", last.size + 1) + data[last.at :] + b"\0")
        with pytest.raises(DamageError, match="1 bytes after the end of"):
            check(broken)


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50, 1 << 18])
def test_links_of_hnsw_are_walked_in_windows(window: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexfile, "_LINK_WINDOW", window)
    rows, size = 40, 200
    links = [bytes((36 * (k % 3)) if k % 5 else 0) for k in range(rows)]
    body = hnsw(rows, size) + bytes(size * rows)
    table = b"".join(struct.pack("<I", len(part)) + part for part in links)
    path = tmp_path / "hnsw"
    path.write_bytes(container(15, (b"HNSW", body + table)))
    assert check(path).rows == rows
    for wrong, message in (
        (table[:-1], "links of an HNSW index"),
        (table + bytes(4), "4 bytes after the end of 'HNSW'"),
        (table[:-4] + struct.pack("<I", 1 << 31), "links of an HNSW index"),
        (table[:4] + struct.pack("<I", 37) + table[8:] + bytes(4), "37 bytes of links"),
    ):
        path.write_bytes(container(15, (b"HNSW", body + wrong)))
        with pytest.raises(DamageError, match=message):
            check(path)


@pytest.mark.parametrize("collection", WITHOUT_VECTORS)
def test_compressed_kinds_do_not_hold_the_vectors(collection: str) -> None:
    with pytest.raises(UsageError, match=r"does not hold the vectors: (scalar|product) quantization"):
        read_index_file(index_file(collection))


def test_another_number_of_rows_is_damage() -> None:
    with pytest.raises(DamageError, match="an index of 4300 rows for a segment of 4301"):
        read_index_file(index_file("ix_hnsw"), rows=ROWS + 1)


@pytest.mark.parametrize("collection", WITH_VECTORS)
@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 0.95])
def test_the_readable_part_of_a_cut_file(collection: str, part: float, tmp_path: Path) -> None:
    path = index_file(collection)
    data = path.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DamageError):
        read_index_file(cut, rows=ROWS)
    stored = read_index_file(cut, rows=ROWS, partial=True)
    assert stored.rows + stored.lost == ROWS
    assert stored.rows > 0.9 * ROWS * part - 400 or stored.lost == 0
    expected = segment(path, stored)
    got, seen = put_together(stored, 5000)
    assert seen.sum() == stored.rows and seen.max() == 1
    assert got[seen == 1].tobytes() == expected[seen == 1].tobytes()


def test_a_cut_annoy_file_needs_the_number_of_rows(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(index_file("ix_annoy").read_bytes()[:30000])
    with pytest.raises(DamageError, match="does not tell its number of rows"):
        read_index_file(cut, partial=True)


def test_an_offset_outside_of_the_segment_is_damage(tmp_path: Path) -> None:
    path = index_file("ix_hnsw")
    data = bytearray(path.read_bytes())
    header = read_container(path).blobs[0].at
    size, label_at = struct.unpack_from("<QQ", data, header + 48)
    struct.pack_into("<Q", data, header + 9 * 8 + 48 + 5 * size + label_at, ROWS)
    broken = tmp_path / "broken"
    broken.write_bytes(data)
    with pytest.raises(DamageError, match="a row offset outside of the 4300 rows"):
        list(read_index_file(broken).batches())
    struct.pack_into("<Q", data, header + 9 * 8 + 48 + 5 * size + label_at, 7)
    broken.write_bytes(data)
    lost = Segment("1", "RAW", Schema("c", 8), "", "", None, ROWS, 0, 0)
    with pytest.raises(DamageError, match="1 row offsets are there twice"):
        restore(lost, read_index_file(broken), 0, None)


def container(kind: int, *blobs: tuple[bytes, bytes]) -> bytes:
    parts = (struct.pack("<Q", len(n)) + n + struct.pack("<q", len(b)) + b for n, b in blobs)
    return struct.pack("<i", kind) + b"".join(parts)


def hnsw(count: int, size: int) -> bytes:
    return struct.pack("<9Qi4x3QdQ", 0, 32, 8, 0, count, count, size, 192, 100, *[0] * 6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "4 bytes of the index type, 0 are left"),
        (container(99, (b"IVF", b"")), "at byte 0: 99 is no index type"),
        (container(2), "an index file without parts"),
        (container(2, (b"HNSW", b"")), "an index file of IVF_FLAT without a part 'IVF'"),
        (container(2, (b"IVF", b""), (b"IVF", b"")), "a second part 'IVF'"),
        (container(2, (b"IVF", b"nonsense")), "no index of a kind that Milvus 1.x writes"),
        (struct.pack("<iQ", 2, 1 << 63), "a name of 9223372036854775808 bytes"),
        (container(2, (b"IVF", b""))[:-8] + struct.pack("<q", -1), "expected -1 bytes of the part 'IVF'"),
        (container(2, (b"IVF", b""))[:-8] + struct.pack("<q", (1 << 63) - 1), "the part 'IVF', 0 are left"),
        (container(15, (b"HNSW", hnsw(1 << 62, 200))), "4611686018427387904 elements of 200 bytes"),
        (container(15, (b"HNSW", hnsw(9, 20))), "elements of 20 bytes with 8 dimensions at 100 and a label at 192"),
        (container(12, (b"NSG", struct.pack("<iQQq", 0, 1 << 62, 8, 0))), "4611686018427387904 vectors of 32 bytes"),
        (container(12, (b"NSG", struct.pack("<iQQq", 0, 1, 1 << 40, 0))), "1099511627776 dimensions"),
    ],
)  # fmt: skip
def test_lies_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "lie"
    path.write_bytes(data)
    for partial in (False, True):
        if partial and "are left" in message:
            continue
        with pytest.raises(DamageError, match=message):
            read_index_file(path, partial=partial)


def test_rows_that_no_list_took(tmp_path: Path) -> None:
    """A vector that is no number is counted, and in no list; the others are not lost with it."""
    import faiss

    x = np.random.default_rng(1).standard_normal((300, 8)).astype("f4")
    x[7, 1] = np.nan
    index = faiss.index_factory(8, "IVF4,Flat")
    index.train(np.random.default_rng(2).standard_normal((300, 8)).astype("f4"))
    index.add(x)
    path = tmp_path / "index"
    path.write_bytes(container(2, (b"IVF", faiss.serialize_index(index).tobytes())))
    stored = read_index_file(path, rows=300)
    assert (stored.rows, stored.lost) == (299, 1)
    out, seen = put_together(stored, 1000)
    assert np.flatnonzero(seen != 1).tolist() == [7] and np.delete(out, 7, 0).tobytes() == np.delete(x, 7, 0).tobytes()
    assert check(path).rows == 300
    uids = tmp_path / "1.uid"
    uids.write_bytes(struct.pack("<Q", 2400) + np.arange(300).tobytes())
    found = open_faiss(path, ids_file=uids)
    assert [(f.code, f.rows) for f in found.findings] == [("faiss-row-count", 1)] and found.collections[0].rows == 299


# Raw files of 0.5 and 0.6 --------------------------------------------------------------------------------------------


def raw_file(x: Any, ids: Any, metric: int = 1, kind: int = 1) -> bytes:
    """FORMAT §8: a container of type 1 with one part IVF, a Faiss IDMap over a flat index."""
    header = struct.pack("<iqqqBi", x.shape[1], len(x), 1 << 20, 1 << 20, 1, metric)
    flat = (b"IxF2" if metric else b"IxFI") + header + struct.pack("<Q", x.size) + x.tobytes()
    return container(kind, (b"IVF", b"IxMp" + header + flat + struct.pack("<Q", len(ids)) + ids.tobytes()))


@pytest.mark.parametrize("rows", [0, 1, 100])
@pytest.mark.parametrize("metric", [0, 1])
def test_raw_files_of_0_5(rows: int, metric: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, 6)).astype("<f4")
    ids = rng.integers(-(1 << 62), 1 << 62, rows)
    path = tmp_path / "1574067145"
    path.write_bytes(raw_file(x, ids, metric))
    opened, notes = open_raw_file(path, file_id="7", schema=Schema("c", 6))
    piece: RawFile = pickle.loads(pickle.dumps(opened))
    assert notes == []
    assert isinstance(piece, Piece) and (piece.id, piece.rows, piece.lost) == ("7", rows, 0)
    for start in (0, rows // 2, rows):
        got = [(b.ids.copy(), b.vectors.copy()) for b in piece.batches(100, start)]
        assert b"".join(i.tobytes() for i, _ in got) == ids[start:].tobytes()
        assert b"".join(v.tobytes() for _, v in got) == x[start:].tobytes()
    assert check(path).holds_vectors


def test_a_cut_raw_file_gives_the_rows_that_have_an_id(tmp_path: Path) -> None:
    x, ids = np.arange(60, dtype="<f4").reshape(10, 6), np.arange(10) - 5
    data = raw_file(x, ids)
    path = tmp_path / "cut"
    for missing, left in ((1, 9), (8, 9), (9, 8), (80, 0), (88, 0), (200, 0)):
        path.write_bytes(data[:-missing])
        piece, notes = open_raw_file(path, file_id="1", schema=Schema("c", 6))
        assert [(f.severity.value, f.code, f.rows) for f in notes] == [("error", "rows-lost", 10 - left)]
        assert (piece.rows, piece.lost) == (left, 10 - left)
        assert [int(i) for b in piece.batches() for i in b.ids] == list(range(-5, left - 5))


def test_raw_files_that_contradict_the_catalog(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(raw_file(np.zeros((3, 6), "<f4"), np.arange(3)))
    with pytest.raises(DamageError, match="vectors of 6 dimensions in a collection of 7"):
        open_raw_file(path, file_id="1", schema=Schema("c", 7))
    with pytest.raises(DamageError, match=r"expected a raw file of Milvus 0\.5 or 0\.6, found an index of type IVF_FLAT"):
        open_raw_file(index_file("ix_ivf_flat"), file_id="1", schema=Schema("c", 8))


@pytest.mark.parametrize(
    ("wrong", "after"), [(0, 0), (-1, 0), (1, 0), (1 << 40, 0), (-(1 << 63), 0), (0, 1), (0, 300), (-9, 300)]
)
def test_a_raw_file_whose_container_is_wrong_is_complete(wrong: int, after: int, tmp_path: Path) -> None:
    """The Faiss index inside tells its own length."""
    x, ids = np.arange(60, dtype="<f4").reshape(10, 6), np.arange(10) - 5
    data = bytearray(raw_file(x, ids) + b"\7" * after)
    (size,) = struct.unpack_from("<q", data, 15)
    struct.pack_into("<q", data, 15, size + wrong)
    path = tmp_path / "raw"
    path.write_bytes(data)
    piece, notes = open_raw_file(path, file_id="1", schema=Schema("c", 6), where="here")
    assert [int(i) for b in piece.batches() for i in b.ids] == ids.tolist()
    assert b"".join(b.vectors.tobytes() for b in piece.batches()) == x.tobytes()
    expected = [("warning", "container-wrong", "here", 10)] * ((wrong != 0) + (after != 0))
    assert [(f.severity.value, f.code, f.where, f.rows) for f in notes] == expected


def test_a_raw_file_without_ids_says_that_they_are_row_numbers(tmp_path: Path) -> None:
    x = np.arange(60, dtype="<f4").reshape(10, 6)
    whole = raw_file(x, np.arange(10))
    at = whole.index(b"IxF2")
    path = tmp_path / "raw"
    path.write_bytes(container(1, (b"IVF", whole[at : at + 37 + 8 + x.nbytes])))
    piece, notes = open_raw_file(path, file_id="1", schema=Schema("c", 6))
    assert [int(i) for b in piece.batches() for i in b.ids] == list(range(10))
    assert [(f.severity.value, f.code, f.rows) for f in notes] == [("warning", "row-numbers", 10)]
    assert {f.code for f in open_faiss(path).findings} == {"row-numbers"}
    np.save(tmp_path / "ids.npy", np.arange(10) * 7)
    (named,) = open_faiss(path, ids_file=tmp_path / "ids.npy").collections[0].partitions[0].pieces
    assert [int(i) for b in named.batches() for i in b.ids] == list(range(0, 70, 7))


@pytest.mark.parametrize("rows", [1, 40])
def test_nsg_of_0_5_has_no_metric_in_front(rows: int, tmp_path: Path) -> None:
    x, ids = np.random.default_rng(4).standard_normal((rows, 6)).astype("<f4"), np.arange(rows) * 3 - 50
    path = tmp_path / "nsg"
    graph = b"".join(struct.pack("<qq", 1, i) for i in range(rows))
    path.write_bytes(container(12, (b"NSG", struct.pack("<QQq", rows, 6, 0) + x.tobytes() + ids.tobytes() + graph)))
    stored = read_index_file(path, user_ids=True)
    assert (stored.rows, stored.dimension, stored.metric) == (rows, 6, "L2")
    ((got, vectors),) = stored.batches()
    assert got.tolist() == ids.tolist() and vectors.tobytes() == x.tobytes()
    assert check(path).rows == rows


def test_where_raw_files_lie(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "db", tmp_path / "b"
    path = second / "tables" / "t" / "1191107" / "99"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert raw_file_path([first, second], "t", 1191107, "99") == path
    assert raw_file_path([first], "t", 1191107, "99") is None
