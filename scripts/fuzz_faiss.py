"""Damages Faiss index files and index files of Milvus 1.x in many ways and reads them: a sound error or sound rows, quickly
and in little memory, and nothing else.

    python scripts/fuzz_faiss.py --cases 20000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from milvus_offline.errors import DamageError, MilvusOfflineError
from milvus_offline.milvus1.segment import indexfile
from milvus_offline.sources.faiss import source as source
from milvus_offline.sources.faiss.pool import Child

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SECONDS = 5.0
MEMORY = 2 << 30
_VALUES = (0, 1, 2, 7, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 33, 1 << 40, (1 << 60) + 1, (1 << 63) - 1, 1 << 63)
_KINDS = (
    b"IxMp",
    b"IxM2",
    b"IxPT",
    b"IwFl",
    b"IwFd",
    b"IHNf",
    b"INSf",
    b"IBMp",
    b"IBwF",
    b"IxRF",
    b"ilod",
    b"sprs",
    b"full",
    b"IBHh",
)


def corpus() -> list[tuple[str, bytes]]:
    """The fixtures, cut down in number; a Milvus index file is told by its name of digits."""
    files = sorted((FIXTURES / "faiss").rglob("*.index"))
    tables = FIXTURES / "stores" / "indexed" / "store" / "db" / "tables"
    files += [f for f in sorted(tables.glob("ix_*/*/*")) if f.name.isdigit()]
    found = [(f.name, f.read_bytes()) for f in files]
    # a raw file of Milvus 0.5 is an ID map in such a container
    raw = [(str(k), data) for k, (name, data) in enumerate(found) if name.endswith("-idmap2.index")]
    return found + [(name, struct.pack("<iQ3sq", 1, 3, b"IVF", len(data)) + data) for name, data in raw]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to three wounds, most of them near the beginning, where the structure is."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        reach = len(out) if rng.random() < 0.4 else min(len(out), 400)
        at = rng.randrange(max(reach, 1))
        what = rng.randrange(6)
        if what == 0:
            del out[at:]
        elif what == 1 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif what == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice(_VALUES) if rng.random() < 0.8 else (1 << 64) - rng.randrange(1, 9))
        elif what == 3:
            out[at : at + 4] = struct.pack("<I", rng.choice(_VALUES) & 0xFFFFFFFF)
        elif what == 4:
            out[at : at + 4] = rng.choice(_KINDS)
        else:
            start = rng.randrange(max(len(out), 1))
            out[at:at] = out[start : start + rng.randrange(1, 200)]
    return bytes(out)


def read(path: Path, milvus: bool) -> int:
    """Reads everything there is, and returns the number of rows."""
    if milvus:
        if indexfile.type_of(path) == "FLAT":
            stored, _ = indexfile.read_raw_file(path)
        else:
            indexfile.check(path)
            stored = indexfile.read_index_file(path, partial=True)
        rows = sum(len(ids) for ids, _ in stored.batches())
        assert rows == stored.rows, (rows, stored.rows)
        return rows
    found = source.open_faiss(path)
    partition = found.collections[0].partitions[0]
    rows = sum(len(batch.ids) for piece in partition.pieces for batch in piece.batches())
    assert rows == partition.rows, (rows, partition.rows)
    return rows


def _no_faiss(child: Child) -> dict[str, object]:
    raise DamageError(child.path, "only Faiss would know")


def fuzz(cases: int, seed: int, folder: Path) -> Iterator[tuple[str, bytes, str, float, BaseException | None]]:
    """(name, bytes, outcome, seconds, the error that must not be) of each case. Faiss itself is never asked."""
    rng = random.Random(seed)
    originals = corpus()
    Child.info, kept = _no_faiss, Child.info  # type: ignore[method-assign, assignment]
    try:
        for _ in range(cases):
            name, data = rng.choice(originals)
            broken = damaged(data, rng)
            path = folder / "case.index"
            path.unlink(missing_ok=True)  # ext4 waits for the disk when a file is written over
            path.write_bytes(broken)
            begin, wrong = time.perf_counter(), None
            try:
                read(path, name.isdigit())
                outcome = "read"
            except MilvusOfflineError as e:
                outcome = type(e).__name__
            except BaseException as e:
                outcome, wrong = "WRONG", e
            yield name, broken, outcome, time.perf_counter() - begin, wrong
    finally:
        Child.info = kept  # type: ignore[method-assign]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faiss"), help="where wrong cases are kept")
    options = parser.parse_args()
    import resource
    import tempfile

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, data, outcome, seconds, wrong) in enumerate(fuzz(options.cases, options.seed, Path(folder))):
            outcomes[outcome] += 1
            slowest = max(slowest, seconds)
            if wrong is not None or seconds > SECONDS:
                bad += 1
                options.keep.mkdir(exist_ok=True)
                (options.keep / f"{options.seed}-{number}-{name}").write_bytes(data)
                print(f"case {number} from {name}: {wrong!r} after {seconds:.2f} s")
                if wrong is not None:
                    traceback.print_exception(wrong)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{options.cases} cases, seed {options.seed}: {dict(outcomes)}, slowest {slowest:.3f} s, peak {peak} MiB, {bad} wrong"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
