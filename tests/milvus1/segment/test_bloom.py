"""Bloom filters: against real servers' files, byte for byte, and against the plain algorithm of FORMAT §4.4."""

from __future__ import annotations

import io
import lzma
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from support.filters import build_filter

from milvus_offline.errors import DamageError
from milvus_offline.milvus1.segment import bloom as bloom_module
from milvus_offline.milvus1.segment.bloom import BloomFilter, filter_shape, read_filter, write_new_filter
from milvus_offline.milvus1.segment.idhash import id_hashes

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parent.parent.parent.parent / "fixtures"
SEGMENTS = sorted(p.parent for p in (FIXTURES / "stores").glob("*/store/db/tables/*/*/bloom_filter"))
MASK = (1 << 64) - 1


def read_ids(path: Path) -> np.ndarray:
    return np.fromfile(path, "<i8")[1:]


def content(bloom: BloomFilter) -> bytes:
    file = io.BytesIO()
    assert bloom.write(file) == len(file.getvalue())
    return file.getvalue()


def written(batches: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    with tempfile.TemporaryFile() as scratch:
        size = write_new_filter(file, batches, scratch)
    assert size == len(file.getvalue())
    return file.getvalue()


def murmur(key: bytes, seed: int = 0x97C29B3A) -> int:
    """The first 64 bits of MurmurHash3 x64_128, written down plainly."""

    def rotl(x: int, r: int) -> int:
        return (x << r | x >> 64 - r) & MASK

    def final(k: int) -> int:
        k = (k ^ k >> 33) * 0xFF51AFD7ED558CCD & MASK
        k = (k ^ k >> 33) * 0xC4CEB9FE1A85EC53 & MASK
        return k ^ k >> 33

    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = h2 = seed
    for at in range(0, len(key) // 16 * 16, 16):
        k1, k2 = struct.unpack("<QQ", key[at : at + 16])
        h1 ^= rotl(k1 * c1 & MASK, 31) * c2 & MASK
        h1 = ((rotl(h1, 27) + h2) * 5 + 0x52DCE729) & MASK
        h2 ^= rotl(k2 * c2 & MASK, 33) * c1 & MASK
        h2 = ((rotl(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    tail = key[len(key) // 16 * 16 :]
    h2 ^= rotl(int.from_bytes(tail[8:], "little") * c2 & MASK, 33) * c1 & MASK
    h1 ^= rotl(int.from_bytes(tail[:8], "little") * c1 & MASK, 31) * c2 & MASK
    h1, h2 = h1 ^ len(key), h2 ^ len(key)
    h1 = (h1 + h2) & MASK
    h2 = (h2 + h1) & MASK
    return (final(h1) + final(h2)) & MASK


def plain_build(ids: list[int], capacity: int, limit: int) -> tuple[int, list[tuple[int, int, list[int]]]]:
    """The server's loop, id by id."""
    filters: list[tuple[int, int, list[int]]] = []

    def begin(first: int) -> None:
        functions, per_function = filter_shape(capacity, 0.01, len(filters))
        filters.append((first, 0, [0] * (functions * per_function)))

    begin(0)
    max_id = 0
    for value in ids:
        unsigned = value & MASK
        k = max(i for i, f in enumerate(filters) if unsigned >= f[0])
        if unsigned > max_id and filters[k][1] >= limit:
            begin(max_id + 1)
            k = len(filters) - 1
        max_id = max(max_id, unsigned)
        functions, per_function = filter_shape(capacity, 0.01, k)
        h = murmur(str(value).encode())
        first, count, counters = filters[k]
        for i in range(functions):
            j = ((h & 0xFFFFFFFF) + i * (h >> 32)) % (1 << 32) % per_function + i * per_function
            counters[j] = min(15, counters[j] + 1)
        filters[k] = first, count + 1, counters
    return max_id, filters


def unpacked(packed: np.ndarray, n: int) -> list[int]:
    return [int(x) for x in np.stack([packed >> 4, packed & 15], 1).ravel()[:n]]


# Real files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", SEGMENTS, ids=lambda p: "/".join(p.parts[-2:]))
def test_the_servers_own_filters(segment: Path) -> None:
    path = segment / "bloom_filter"
    ids = read_ids(next(segment.glob("*.uid")))
    docs = segment / "deleted_docs"
    deleted = np.fromfile(docs, "<i4")[2:] if docs.exists() else np.zeros(0, "<i4")
    live = np.ones(len(ids), bool)
    live[deleted] = False
    bloom = read_filter(path)
    assert bloom.contains(ids)[live].all()
    if not len(deleted):
        assert content(build_filter([ids], len(ids), legacy=bloom.legacy)) == path.read_bytes()
        if not bloom.legacy:
            assert written([ids]) == path.read_bytes()
    assert content(bloom) == path.read_bytes()


def test_there_are_real_files() -> None:
    assert len(SEGMENTS) >= 20


def test_the_form_of_0_8_1(tmp_path: Path) -> None:
    raw = lzma.decompress((FIXTURES / "bloom" / "v081.bloom_filter.xz").read_bytes())
    assert len(raw) == 2756980
    path = tmp_path / "bloom_filter"
    path.write_bytes(raw)
    ids = read_ids(FIXTURES / "bloom" / "v081.uid")
    bloom = read_filter(path)
    assert (bloom.legacy, bloom.capacity, bloom.max_id, bloom.sequence, bloom.disk_sequence) == (True, 500000, 99, 101, 101)
    assert bloom.contains(ids).all()
    assert not bloom.contains(np.arange(1000, 3000)).any()
    assert content(build_filter([ids], len(ids), legacy=True)) == raw


def test_deleted_ids_are_removed_by_the_server() -> None:
    ids = read_ids(FIXTURES / "bloom" / "deleted.uid")
    live = np.ones(len(ids), bool)
    live[np.fromfile(FIXTURES / "bloom" / "deleted.deleted_docs", "<i4")[2:]] = False
    bloom = read_filter(FIXTURES / "bloom" / "deleted.bloom_filter")
    assert (len(ids), int(live.sum())) == (200, 150)
    assert bloom.contains(ids)[live].all()
    assert not bloom.contains(ids)[~live].any()
    assert bloom.filters[0].count == 150
    assert bloom.sequence == 1 + 200 + 50


# The algorithm --------------------------------------------------------------------------------------------------------


def test_hashes_of_every_length_and_sign() -> None:
    values = [0, 1, -1, 9, 10, -(2**63), 2**63 - 1, 9999, 10000, -9999, -10000, 123456789012345678]
    values += [sign * (10**digits + delta) for sign in (1, -1) for digits in range(19) for delta in (-1, 0, 7)]
    values += [int(v) for v in np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 300)]
    assert id_hashes(np.array(values, np.int64)).tolist() == [murmur(str(v).encode()) for v in values]


@pytest.mark.parametrize("length", range(2, 20))
def test_hashes_of_neighbouring_ids(length: int) -> None:
    """Runs of ids with the same first letters, which end anywhere; also backwards, below zero and shuffled."""
    steps = sorted({min(step, 10 ** (length - 2)) for step in (1, 3, 999, 10**7 + 1)})
    ids = np.concatenate([np.arange(30) * step + 10 ** (length - 1) + 10 ** (length - 1) // 7 for step in steps])
    for same in (ids, ids[::-1].copy(), -ids, np.random.default_rng(length).permutation(ids), np.repeat(ids[:30], 20)):
        assert id_hashes(same).tolist() == [murmur(str(v).encode()) for v in same]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch", [1, 7, 10_000])
def test_scaling_follows_the_server(seed: int, batch: int) -> None:
    generator = np.random.default_rng(seed)
    ids = [
        np.arange(300),
        np.arange(300)[::-1],
        generator.integers(0, 1000, 300),
        generator.integers(-(2**63), 2**63 - 1, 300),
        np.array([5] * 40 + [6, 7, -1, 8, 9] * 10),
        np.concatenate([np.arange(100, 250), generator.permutation(400)]),
    ][seed].astype(np.int64)
    capacity = [50, 50, 70, 40, 10, 64][seed]
    bloom = build_filter([ids[at : at + batch] for at in range(0, len(ids), batch)], capacity)
    max_id, filters = plain_build([int(i) for i in ids], capacity, capacity)
    assert bloom.max_id == max_id
    assert [(f.first_id, f.count) for f in bloom.filters] == [f[:2] for f in filters]
    for mine, (_, _, counters) in zip(bloom.filters, filters, strict=True):
        assert unpacked(mine.counters, len(counters)) == counters
    assert len(bloom.filters) > 1 or seed == 1  # descending ids never begin a new filter
    assert bloom.contains(ids).all()


@pytest.mark.parametrize("counted", [7, 64, 1 << 18])
@pytest.mark.parametrize(
    "ids",
    [
        np.arange(0),
        np.arange(1),
        np.arange(500)[::-1] * 37 - 200,
        np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 301),
        np.repeat(np.arange(10**15, 10**15 + 3), 400),  # more often than a byte counts
        np.repeat([5, 7], [255, 256]),
        np.full(512, 42),
    ],
    ids=lambda ids: f"{len(ids)} ids",
)
def test_a_new_filter_is_what_the_server_would_write(ids: np.ndarray, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloom_module, "_COUNTED", counted)
    raw = written([ids[:5], ids[5:5], ids[5:]])
    assert raw == content(build_filter([ids], len(ids)))
    functions, per_function = filter_shape(len(ids), 0.01, 0)
    found = unpacked(np.frombuffer(raw, np.uint8, offset=68), functions * per_function)
    expected = np.zeros(functions * per_function, int)
    for value in ids.tolist():
        h = murmur(str(value).encode())
        for i in range(functions):
            expected[((h & 0xFFFFFFFF) + i * (h >> 32)) % (1 << 32) % per_function + i * per_function] += 1
    assert found == np.minimum(expected, 15).tolist()


def test_counters_saturate() -> None:
    bloom = build_filter([np.full(40_000, 42)], 40_000)
    counters = unpacked(bloom.filters[0].counters, 8 * bloom.filters[0].per_function)
    assert set(counters) == {0, 15}
    assert counters.count(15) == 8
    assert bloom.filters[0].count == 40_000


def test_false_positives_are_rare() -> None:
    bloom = build_filter([np.arange(20_000)], 20_000)
    assert bloom.contains(np.arange(20_000)).all()
    assert 0.002 < bloom.contains(np.arange(10**6, 10**6 + 50_000)).mean() < 0.01


def test_a_segment_without_rows(tmp_path: Path) -> None:
    bloom = build_filter([], 0)
    raw = content(bloom)
    assert len(raw) == 68
    path = tmp_path / "bloom_filter"
    path.write_bytes(raw)
    again = read_filter(path)
    assert (again.capacity, len(again.filters), again.filters[0].per_function) == (0, 1, 0)
    assert not again.contains([1, 2, 3]).any()
    assert again.contains([]).shape == (0,)
    with pytest.raises(ValueError, match="capacity 0"):
        build_filter([[1]], 0)


def test_many_filters_survive_a_round_trip(tmp_path: Path) -> None:
    bloom = build_filter([np.arange(1000)], 100)
    assert len(bloom.filters) == 10
    path = tmp_path / "bloom_filter"
    path.write_bytes(content(bloom) + b"trailing")
    again = read_filter(path)
    assert content(again) == content(bloom)
    assert again.contains(np.arange(1000)).all()


# Damage and speed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[:8], "expected a header of 28 bytes, the file ends after 8"),
        (lambda r: r[:12] + struct.pack("<d", 0.0) + r[20:], "at byte 12: expected an error rate .*, found 0.0"),
        (lambda r: r[:12] + struct.pack("<d", 5e-324) + r[20:], "at byte 12: expected an error rate .*, found 5e-324"),
        (lambda r: r[:12] + struct.pack("<d", float("nan")) + r[20:], "at byte 12: expected an error rate .*, found nan"),
        (lambda r: r[:20] + struct.pack("<Q", 1 << 60) + r[28:], "at byte 20: expected a bitmap of 1152921504606846976 bytes"),
        (lambda r: r[:20] + struct.pack("<Q", 23) + r[28:], "at byte 28: expected a bitmap of at least 24 bytes, found 23"),
        (lambda r: r[:20] + struct.pack("<Q", 24) + r[28:], "at byte 52: expected at least one filter, found none"),
        (lambda r: r[:8] + b"\xff\xff\xff\xff" + r[12:], "at byte 52: expected 23681920136 bytes of counters, found"),
        (lambda r: r[:-1], "at byte 20: expected a bitmap of"),
        (lambda r: b"", "expected a bitmap of at least 24 bytes, found 0"),
        (lambda r: r[1:], "at byte 24: expected 2756940 bytes of counters, found"),
    ],
)
def test_damage(change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bloom_filter"
    path.write_bytes(change(content(build_filter([np.arange(100)], 100))))  # type: ignore[operator]
    with pytest.raises(DamageError, match=message):
        read_filter(path)


def test_every_flipped_byte_is_survived(tmp_path: Path) -> None:
    raw = content(build_filter([np.arange(10)], 10))
    path = tmp_path / "bloom_filter"
    for at in range(80):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            read_filter(path).contains(np.arange(20))
        except DamageError:
            continue


def test_no_time_per_row() -> None:
    ids = np.arange(500_000) * 1000 + 1678354366132931000
    build_filter([ids[:1000]], 1000)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        bloom = build_filter([ids], len(ids))
        assert bloom.contains(ids).all()
        seconds.append(time.process_time() - start)
    assert min(seconds) < 3  # measured: 0.08 s of the processor; a loop in Python takes 10 s
