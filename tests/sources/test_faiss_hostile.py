"""Faiss files that lie: a clear error, in little memory and time."""

from __future__ import annotations

import importlib.util
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from milvus_offline.errors import DamageError, MilvusOfflineError, UsageError
from milvus_offline.sources.faiss.source import open_faiss

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures" / "faiss"
D = 4


def header(rows: int, d: int = D, metric: int = 1) -> bytes:
    return struct.pack("<iqqqBi", d, rows, 1 << 20, 1 << 20, 1, metric)


def flat(rows: int, count: int | None = None, d: int = D) -> bytes:
    n = rows * d if count is None else count
    return b"IxF2" + header(rows, d) + struct.pack("<Q", n % (1 << 64)) + bytes(min(n, 1000) * 4 if n > 0 else 0)


def ivf(nlist: int, lists: bytes, direct: bytes = b"\0" + bytes(8)) -> bytes:
    return b"IwFl" + header(5) + struct.pack("<QQ", nlist, 1) + flat(2) + direct + lists


def sizes(form: bytes, *numbers: int, nlist: int = 2, code_size: int = 4 * D) -> bytes:
    return b"ilar" + struct.pack("<QQ", nlist, code_size) + form + struct.pack(f"<{len(numbers) + 1}Q", len(numbers), *numbers)


def read(path: Path) -> int:
    found = open_faiss(path)
    return sum(len(b.ids) for p in found.collections[0].partitions[0].pieces for b in p.batches())


BIG, HUGE = 1 << 33, 1 << 63
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "at byte 0: expected 4 bytes of the kind of an index, 0 are left"),
    "text": (b"hello, world, this is not an index", "at byte 0: not a Faiss index"),
    "negative rows": (flat(-1, 0), "at byte 8: -1 rows"),
    "more rows than bytes": (flat(BIG, BIG * D), "bytes of the vectors, 4000 are left"),
    "rows and count differ": (flat(3, 11), "44 bytes of vectors for 3 rows of 16 bytes"),
    "count of 2^63": (flat(1, HUGE), "bytes of vectors for 1 rows"),
    "no dimensions": (flat(1, 4, d=0), "at byte 4: 0 dimensions"),
    "negative dimensions": (flat(1, 4, d=-4), "at byte 4: -4 dimensions"),
    "2^30 dimensions": (flat(0, 0, d=1 << 30), "1073741824 dimensions"),
    "2^33 lists": (ivf(BIG, sizes(b"full", 1, nlist=BIG)), "1 list sizes for 8589934592 lists"),
    "a list of 2^33 rows": (ivf(2, sizes(b"full", BIG, 1)), "inverted lists of about 8.58993e.09 rows"),
    "a list of 2^63 rows": (ivf(2, sizes(b"full", HUGE, HUGE)), "inverted lists of about"),
    "sizes that overflow": (ivf(2, sizes(b"full", HUGE - 1, HUGE + 1)), "inverted lists of about"),
    "sparse list outside": (ivf(2, sizes(b"sprs", 2, 1)), "sparse list sizes that do not belong to 2 lists"),
    "sparse list twice": (ivf(2, sizes(b"sprs", 1, 1, 1, 1)), "sparse list sizes out of order"),
    "sparse sizes odd": (ivf(2, sizes(b"sprs", 1)), "sparse list sizes that do not belong to 2 lists"),
    "sizes of another form": (ivf(2, sizes(b"what", 1, 1)), "expected 'full' or 'sprs', found 'what'"),
    "other lists": (ivf(2, sizes(b"full", 1, 1, nlist=3)), "lists of 3 x 16 bytes in an index with 2 lists of 16 bytes"),
    "other codes": (ivf(2, sizes(b"full", 1, 1, code_size=17)), "lists of 2 x 17 bytes"),
    "direct map of 2^61": (ivf(2, b"", b"\1" + struct.pack("<Q", 1 << 61)), "the direct map has 2305843009213693952 elements"),
    "ids missing": (b"IxMp" + header(2) + flat(2) + struct.pack("<Q", 1) + bytes(8), "1 ids for 2 rows"),
    "ids of 2^63": (b"IxMp" + header(2) + flat(2) + struct.pack("<Q", HUGE), "the ids has 9223372036854775808 elements"),
    "a map of another width": (b"IxMp" + header(0, 5) + flat(0) + bytes(8), "an IndexIDMap of 5 dimensions over one of 4"),
    "deep": (b"".join(b"IxMp" + header(0) for _ in range(3000)) + flat(0), "indexes nested more than 24 deep"),
    "a graph of 2^63": (b"IHNf" + header(1) + struct.pack("<Q", HUGE), "probabilities of an HNSW graph has"),
    "2^31 transforms": (b"IxPT" + header(1) + struct.pack("<i", (1 << 31) - 1), "2147483647 transforms"),
    "-1 transforms": (b"IxPT" + header(1) + struct.pack("<i", -1), "-1 transforms"),
    "an odd table": (b"IwFd" + header(1) + bytes(16) + flat(1) + bytes(9) + struct.pack("<Q3q", 3, 1, 2, 3), "odd length"),
    "bits of no byte": (b"IBxF" + struct.pack("<iiqBi", 12, 1, 1, 1, 1) + struct.pack("<QB", 1, 1), "12 bits in 1 bytes"),
    "an NSG without end": (b"INSf" + header(9) + bytes(21) + struct.pack("<i20xB", 9, 1) + bytes(400), "9 nodes too early"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str, tmp_path: Path) -> None:
    data, message = LIES[lie]
    path = tmp_path / "lie.index"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DamageError, match=message) as caught:
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.index")), ids=lambda p: p.stem)
def test_a_file_cut_anywhere_is_damage(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.index"
    for end in [*range(min(len(data), 140)), *range(140, len(data), 29 + len(data) // 60), len(data) - 1]:
        cut.unlink(missing_ok=True)  # ext4 waits for the disk when a file is written over
        cut.write_bytes(data[:end])
        with pytest.raises(DamageError):
            read(cut)
    assert open_faiss(path).collections[0].rows > 0


def lists_elsewhere(name: bytes, total: int, triples: list[tuple[int, int, int]]) -> bytes:
    table = b"".join(struct.pack("<QQQ", *t) for t in triples)
    body = struct.pack("<Q", len(triples)) + table + struct.pack("<Q", 0) + struct.pack("<Q", len(name)) + name
    return ivf(2, b"ilod" + struct.pack("<QQ", 2, 4 * D) + body + struct.pack("<Q", total))


@pytest.mark.parametrize(
    "name", [b"/etc/passwd", b"../secret", b"sub/secret", b"/dev/zero", b"missing", b"..", b".", b"x" * 4000]
)
def test_another_file_is_not_opened(name: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for secret in (tmp_path / "secret", folder / "sub" / "secret"):
        secret.write_bytes(bytes(1000))
    path = folder / "lie.index"
    path.write_bytes(lists_elsewhere(name, 48, [(1, 1, 0), (1, 1, 24)]))
    with pytest.raises(UsageError, match="are in another file"):
        open_faiss(path)


@pytest.mark.parametrize("name", [b"", b"a\0b"])
def test_a_name_that_cannot_be_one(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lie.index"
    path.write_bytes(lists_elsewhere(name, 48, [(1, 1, 0), (1, 1, 24)]))
    with pytest.raises(DamageError, match="are in a file named"):
        open_faiss(path)


@pytest.mark.parametrize(
    "triples",
    [
        [(2, 1, 0), (1, 1, 24)],
        [(1, 1, 25), (1, 1, 24)],
        [(1, 1 << 63, 0), (1, 1, 24)],
        [(1, 1, (1 << 64) - 24), (1, 1, 24)],
        [(1, 2, 0), (1, 1, 0)],
        [(1, 1, 0)],
    ],
)
def test_lists_elsewhere_that_do_not_fit(triples: list[tuple[int, int, int]], tmp_path: Path) -> None:
    path = tmp_path / "lie.index"
    path.write_bytes(lists_elsewhere(b"lists", 48, triples))
    (tmp_path / "lists").write_bytes(bytes(48))
    with pytest.raises(DamageError, match="do not fit the file that they name"):
        open_faiss(path)
    path.write_bytes(lists_elsewhere(b"lists", 48, [(1, 1, 0), (1, 1, 24)]))
    assert read(path) == 2


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        open_faiss(tmp_path / "none.index")
    with pytest.raises(UsageError, match="is not a file"):
        open_faiss(tmp_path)


def test_errors_travel() -> None:
    import pickle

    from milvus_offline.faissfile import UnknownKind

    error = pickle.loads(pickle.dumps(UnknownKind("p", "IwXX", 7)))
    assert (error.kind, error.offset, str(error)) == ("IwXX", 7, str(UnknownKind("p", "IwXX", 7)))
    assert isinstance(error, MilvusOfflineError)


def _fuzzer() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_faiss", ROOT / "scripts" / "fuzz_faiss.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_slice_of_fuzzing(tmp_path: Path) -> None:
    fuzzer = _fuzzer()
    outcomes: dict[str, int] = {}
    for name, _, outcome, seconds, wrong in fuzzer.fuzz(600, 42, tmp_path):
        assert wrong is None, (name, wrong)
        assert seconds < fuzzer.SECONDS
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["DamageError"] > 100 and outcomes["read"] > 100  # wounds that matter, and wounds in the vectors
