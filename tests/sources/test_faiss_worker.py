"""Kinds that only Faiss itself reads, in its own process; and what the user says of an index."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.faiss_indexes import D, by_id, codes, ivf, quiet, rows_of, some_ids, vectors, write
from support.real import STORES, copy_store

from milvus_offline import open_store
from milvus_offline.cli import run
from milvus_offline.errors import DamageError, UsageError
from milvus_offline.milvus1.segment.indexfile import read_container
from milvus_offline.sources.faiss import pool, worker
from milvus_offline.sources.faiss.pool import Child, ChildPiece
from milvus_offline.sources.faiss.source import open_faiss

pytestmark = pytest.mark.slow

faiss = pytest.importorskip("faiss")


def panorama(folder: Path, x: Any) -> Path:
    """Holds its vectors, in a layout that is not known here."""
    index = faiss.IndexFlatL2Panorama(D, 4)
    index.add(x)
    return write(index, folder)


def on_disk(folder: Path, lists: Path, kind: str = "IVF8,PQ4x4") -> Path:
    """An index whose inverted lists are in the file `lists`."""
    x = vectors(300)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    moved = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(lists))
    moved.merge_from_1(index.invlists)
    index.replace_invlists(moved)
    return write(index, folder)


# The process -----------------------------------------------------------------------------------------------------------


def test_nothing_in_the_current_folder_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faiss.py", "json.py", "numpy.py", "struct.py", "sitecustomize.py"):
        (tmp_path / name).write_text("open('RAN', 'w')\nraise ImportError('not the real one')\n")
    x = vectors(30)
    path = panorama(tmp_path, x)
    monkeypatch.chdir(tmp_path)
    assert by_id(*rows_of(open_faiss(path))) == by_id(np.arange(30), x)
    assert not (tmp_path / "RAN").exists()


def test_files_are_opened_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = on_disk(tmp_path, tmp_path / "lists")
    flags = []
    read = faiss.read_index
    monkeypatch.setattr(faiss, "read_index", lambda name, how: (flags.append(how), read(name, how))[1])
    worker._load({"path": str(path), "binary": False, "follow": True})
    assert flags and all(how & faiss.IO_FLAG_READ_ONLY for how in flags)


@pytest.mark.parametrize("kind", ["IVF8,PQ4x4", "IVF8,SQ8", "IDMap,IVF8,PQ4x4"])
@pytest.mark.parametrize("start", [0, 1, 77, 299, 300])
def test_reading_begins_anywhere(kind: str, start: int, tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add_with_ids(x, some_ids(300))
    (piece,) = open_faiss(write(index, tmp_path), lossy=True).collections[0].partitions[0].pieces
    assert isinstance(piece, ChildPiece)
    whole = [(b.ids.copy(), b.vectors.copy()) for b in piece.batches()]
    rest = [(b.ids.copy(), b.vectors.copy()) for b in piece.batches(1000, start)]
    ids, rows = (np.concatenate([p[i] for p in whole]) for i in (0, 1))
    if start == 300:
        assert rest == []
        return
    assert np.concatenate([i for i, _ in rest]).tolist() == ids[start:].tolist()
    assert np.concatenate([v for _, v in rest]).tobytes() == rows[start:].tobytes()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started to read rows."""
    made: list[Any] = []
    start = Child.start

    def note(self: Child, action: str) -> Any:
        process = start(self, action)
        made.extend([process] if action == "rows" else [])
        return process

    monkeypatch.setattr(Child, "start", note)
    return made


def slices(piece: Any, step: int) -> dict[int, tuple[list[int], bytes]]:
    """What tasks read one after the other, each leaving off in the middle of a batch."""
    found = {}
    for first in range(0, piece.rows, step):
        batch = next(piece.batches(1 << 20, first))
        found[first] = (batch.ids[:step].tolist(), batch.vectors[:step].tobytes())
    return found


@pytest.mark.parametrize("kind", ["IVF64,PQ4x4", "IVF8,RaBitQ", "Panorama"])
def test_one_process_reads_slice_after_slice(kind: str, tmp_path: Path, started: list[Any]) -> None:
    x = vectors(1000)
    index = faiss.IndexFlatL2Panorama(D, 4) if kind == "Panorama" else quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    (piece,) = open_faiss(write(index, tmp_path), lossy=True).collections[0].partitions[0].pieces
    ids, rows = rows_of(open_faiss(tmp_path / "some.index", lossy=True))
    before = len(started)
    for step in (70, 333):
        for first, (got, octets) in slices(piece, step).items():
            assert got == ids[first : first + step].tolist()
            assert octets == rows[first : first + step].tobytes()
    assert len(started) == before + 1
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda first: next(piece.batches(1 << 20, first)).ids[0], range(0, 1000, 10)))
    assert parts == ids[::10].tolist()
    assert len(started) <= before + 4


def test_a_process_does_not_outlive_what_it_has_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Any]
) -> None:
    path = panorama(tmp_path, vectors(30))
    before = open_faiss(path)
    assert len(rows_of(before)[0]) == 30
    panorama(tmp_path, 2 * vectors(30))  # another index in its place
    assert by_id(*rows_of(open_faiss(path))) == by_id(np.arange(30), 2 * vectors(30))
    monkeypatch.setattr(pool, "_IDLE_SECONDS", 0.1)
    piece = open_faiss(path).collections[0].partitions[0].pieces[0]
    assert next(piece.batches()).ids.tolist() == list(range(30))
    assert started[-1].wait(timeout=120) == -9


def test_a_process_that_died_while_it_waited_is_replaced(tmp_path: Path, started: list[Any]) -> None:
    piece = open_faiss(panorama(tmp_path, vectors(30))).collections[0].partitions[0].pieces[0]
    assert next(piece.batches()).ids.tolist() == list(range(30))
    started[-1].kill()
    started[-1].wait()
    assert next(piece.batches(1 << 20, 7)).ids.tolist() == list(range(7, 30))


def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    path = panorama(tmp_path, vectors(30))
    code = (
        "import os, sys; from milvus_offline.sources.faiss import pool\n"
        "from milvus_offline.sources.faiss.source import open_faiss\n"
        "piece = open_faiss(sys.argv[1]).collections[0].partitions[0].pieces[0]; batches = piece.batches(64); next(batches)\n"
        "if sys.argv[2] == 'idle': del batches\n"
        "readers = [r for r, _ in pool._idle._waiting] or [batches.gi_frame.f_locals['reader']]\n"
        "print(readers[0].process.pid, flush=True)\n"
        "if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)"
    )
    for how in ("idle", "reading", "killed"):
        ended = subprocess.run([sys.executable, "-c", code, str(path), how], capture_output=True, text=True)
        assert ended.returncode == (-9 if how == "killed" else 0) and ended.stderr == ""
        for _ in range(1200):
            if not Path(f"/proc/{ended.stdout.strip()}").exists():
                break
            time.sleep(0.1)
        else:
            pytest.fail("it still runs")


@pytest.mark.parametrize("kind", ["IVF8,PQ4x4fs", "IVF8,RQ2x4fs_Nrq2x4", "IVF8,LSQ2x4fs_Nlsq2x4"])
def test_fast_scan(kind: str, tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.index_factory(D, kind), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path), lossy=True)
    ids, rows = rows_of(found)
    assert sorted(ids.tolist()) == list(range(300)) and codes(found) == {"faiss-lossy"}
    assert np.mean((rows - x[ids]) ** 2) < np.mean(x**2)  # an approximation, not noise


def test_what_faiss_cannot_give_back_is_refused_at_once(tmp_path: Path) -> None:
    x = vectors(300)
    index = quiet(faiss.index_factory(D, "ITQ16,LSH"), x)
    index.add(x)
    with pytest.raises(UsageError, match=r"Faiss cannot give back the vectors: .*not implemented"):
        open_faiss(write(index, tmp_path), lossy=True)


def test_rows_that_no_list_took(tmp_path: Path) -> None:
    """Vectors that are no numbers are counted by the header, and in no list."""
    x = vectors(300)
    x[3, 0], x[9, 1] = np.nan, np.inf
    index = quiet(faiss.index_factory(D, "IVF8,PQ4x4"), x)
    index.add(x)
    found = open_faiss(write(index, tmp_path), lossy=True)
    assert {f.code: f.rows for f in found.findings} == {"faiss-lossy": 298, "faiss-row-count": 2}
    kept = np.isfinite(x).all(axis=1)
    np.save(tmp_path / "ids.npy", some_ids(300))
    flat = quiet(faiss.index_factory(D, "IVF8,Flat"), x)
    flat.add(x)
    for kind in (index, flat):
        named = open_faiss(write(kind, tmp_path), ids_file=tmp_path / "ids.npy", lossy=True)
        assert sorted(rows_of(named)[0].tolist()) == sorted(some_ids(300)[kept].tolist())
    index = quiet(faiss.index_factory(D, "IDMap,IVF8,Flat"), x)
    index.add_with_ids(x, some_ids(300))
    found = open_faiss(write(index, tmp_path))
    assert {f.code: f.rows for f in found.findings} == {"faiss-row-count": 2}
    assert by_id(*rows_of(found)) == by_id(some_ids(300)[kept], x[kept])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="every file name is Unicode there")
def test_a_file_name_that_is_not_unicode(tmp_path: Path) -> None:
    x = vectors(30)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.index"))
    panorama(tmp_path, x).rename(path)
    assert by_id(*rows_of(open_faiss(path))) == by_id(np.arange(30), x)
    assert run(["export", str(path), str(tmp_path / "out"), "-q"]) == 0
    assert run(["verify", str(tmp_path / "out"), "--against", str(path), "-q"]) == 0
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(DamageError, match="Faiss cannot read it"):
        open_faiss(path)


# Lists in another file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["IVF8,PQ4x4", "IVF8,RaBitQ", "IVF8,Flat"])
def test_lists_elsewhere_are_followed_when_asked(kind: str, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    path = on_disk(inside, outside / "lists", kind)
    with pytest.raises((UsageError, DamageError), match="--follow-ondisk"):
        open_faiss(path, lossy=True)
    found = open_faiss(path, lossy=True, follow_ondisk=True)
    assert found.collections[0].rows == 300
    before = found.fingerprint()
    os.utime(outside / "lists", ns=(1, 1))
    assert found.fingerprint() != before
    (inside / "lists").symlink_to("../out/lists")
    with pytest.raises(UsageError, match="--follow-ondisk"):
        open_faiss(path, lossy=True)


# What the user says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("child", [False, True])
@pytest.mark.parametrize("first", [-(1 << 63), (1 << 63) - 30, 0, -7])
def test_first_id_up_to_the_last_number(child: bool, first: int, tmp_path: Path) -> None:
    x = vectors(30)
    flat = faiss.IndexFlatL2(D)
    flat.add(x)
    path = panorama(tmp_path, x) if child else write(flat, tmp_path)
    assert rows_of(open_faiss(path, first_id=first))[0].tolist() == list(range(first, first + 30))


@pytest.mark.parametrize("first", [-(1 << 63) - 1, (1 << 63) - 29, 1 << 63, 10**30])
def test_first_id_beyond_is_refused(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = faiss.IndexFlatL2(D)
    flat.add(vectors(30))
    assert run(["export", str(write(flat, tmp_path)), str(tmp_path / "out"), "--first-id", str(first)]) == 2
    assert "the ids of 30 rows must lie in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("transform", [False, True])
def test_an_independent_quantizer(transform: bool, tmp_path: Path) -> None:
    x = vectors(300)
    inner = ivf(8)
    if transform:
        turn = faiss.RandomRotationMatrix(D, D)
        turn.init(3)
        index = faiss.IndexIVFIndependentQuantizer(faiss.IndexFlatL2(D), inner, turn)
    else:
        index = faiss.IndexIVFIndependentQuantizer(faiss.IndexFlatL2(D), inner)
    quiet(index, x).add(x)
    found = open_faiss(write(index, tmp_path))
    ids, rows = rows_of(found)
    assert sorted(ids.tolist()) == list(range(300))
    assert codes(found) == ({"faiss-transform-undone"} if transform else set())
    np.testing.assert_allclose(rows, x[ids], atol=1e-5 if transform else 0)


def test_a_rotation_over_rounded_codes_claims_no_more_than_is_true(tmp_path: Path) -> None:
    x = vectors(300)
    x[5, 2] = np.nan
    index = quiet(faiss.index_factory(D, "RR16,SQfp16"), vectors(300))
    index.add(x)
    messages = {f.code: f.message for f in open_faiss(write(index, tmp_path)).findings}
    assert "apart from what float16 rounded" in messages["faiss-transform-undone"]
    assert "nan" not in messages["faiss-transform-undone"]
    assert "these come out exactly" not in messages["faiss-rounded"]


def test_the_metric_can_be_confirmed_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = faiss.IndexFlatIP(D)
    flat.add(vectors(30))
    path = str(write(flat, tmp_path))
    for command in (["export", path, str(tmp_path / "o")], ["load", path, f"milvus1:{tmp_path / 'm'}"], ["inspect", path]):
        assert run([*command, "--metric", "L2"]) == 2
        assert "has the metric IP, not L2" in capsys.readouterr().err
        assert run([*command, "--metric", "bogus"]) == 2
        assert "there are IP, L2" in capsys.readouterr().err
    assert run(["load", path, f"milvus1:{tmp_path / 'm'}", "--metric", "ip", "-q"]) == 0


def test_verify_against_an_index_takes_the_same_options(tmp_path: Path) -> None:
    flat = faiss.IndexFlatL2(D)
    flat.add(vectors(30))
    path, out = str(write(flat, tmp_path)), str(tmp_path / "out")
    options = ["--first-id", "100", "--into", "mine"]
    assert run(["export", path, out, "-q", *options]) == 0
    assert run(["verify", out, "--against", path, "-q", *options]) == 0
    assert run(["verify", out, "--against", path, "-q", "--into", "mine"]) == 4


def test_inspect_says_what_it_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = quiet(faiss.index_factory(D, "IVF8,PQ4x4"), vectors(300))
    index.add(vectors(300))
    path = str(write(index, tmp_path))
    assert run(["inspect", path]) == 3
    shown = capsys.readouterr().out
    assert "IndexIVFPQ" in shown and "--lossy" in shown and "300" in shown
    assert run(["export", path, str(tmp_path / "out")]) == 2
    assert "--lossy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--catalog", "x"], ["--no-catalog"], ["--wal", "x"], ["--salvage", "orphans"], ["--secondary", "x"]]
)
def test_options_of_a_store_do_not_go_with_an_index(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = faiss.IndexFlatL2(D)
    flat.add(vectors(30))
    assert run(["export", str(write(flat, tmp_path)), str(tmp_path / "out"), *option]) == 2
    assert f"{option[0]} only goes with a store" in capsys.readouterr().err


# Index files of Milvus ------------------------------------------------------------------------------------------------------


def index_files(root: Path) -> list[tuple[str, Path, Path]]:
    """(index type, index file, .uid file) of a real store."""
    found = []
    for uid in sorted(root.rglob("*.uid")):
        found += [(read_container(p).type_name, p, uid) for p in sorted(uid.parent.iterdir()) if p.name.isdigit()]
    return found


def test_index_files_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given directly, they come out with row numbers, or with the ids of the segment."""
    root = copy_store("indexed", tmp_path)
    seen = set()
    for kind, path, uid in index_files(root):
        out = tmp_path / f"out-{path.name}"
        if kind in ("IVF_SQ8", "IVF_SQ8H", "IVF_PQ"):
            assert run(["export", str(path), str(out)]) == 2
            assert "does not hold the vectors" in capsys.readouterr().err
            continue
        seen.add(kind)
        segment = next(s for c in open_store(root).values() for p in c.values() for s in p.segments if s.id == uid.parent.name)
        found = open_faiss(path)
        assert codes(found) >= {"row-numbers"}
        metric = "L2" if not kind.startswith("BIN") else found.collections[0].schema.metric_type
        assert found.collections[0].schema.metric_type == metric
        assert by_id(*rows_of(found)) == by_id(np.arange(segment.stored), segment.vectors)
        named = open_faiss(path, ids_file=uid)
        assert not codes(named)
        assert by_id(*rows_of(named)) == by_id(segment.ids, segment.vectors)
    assert seen == {"IVF_FLAT", "BIN_IVF_FLAT", "HNSW", "ANNOY", "RNSG"}
    assert (STORES / "indexed").is_dir()
