"""On a volume whose files can share blocks, unchanged rows take no room: real XFS, real clones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from support.builder import StoreBuilder, bag, rows
from support.command import call, exported, manifest
from support.volumes import used, xfs

from milvus_offline.targets import hdf5

MIB = 1 << 20


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with xfs(tmp_path_factory.mktemp("volume")) as place:
        yield place


def make_store(root: Path) -> Path:
    """Two whole segments of 16 MiB, one with deleted rows, a small one, and rows of the log."""
    builder = StoreBuilder(root)
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(8000), dim=512))
    builder.segment("faces", rows(range(8000, 8100), dim=512))
    builder.segment("faces", rows(range(10_000, 12_000), dim=512), deleted=range(5))
    builder.segment(builder.partition("faces", "p")["table_id"], rows(range(20_000, 28_000), dim=512))
    builder.wal.insert("faces", rows(range(30_000, 30_100), dim=512))
    return builder.write()


def shares(one: Path, other: Path) -> bool:
    """Whether two files have their first block at the same place of the disk."""
    import fcntl
    import struct

    places = []
    for path in (one, other):
        with path.open("rb") as f:
            request = struct.pack("=QQLLLL", 0, 8 * MIB, 1, 0, 1, 0) + bytes(56)  # FS_IOC_FIEMAP, one extent, synced
            answer = fcntl.ioctl(f, 0xC020660B, request)
            places.append(struct.unpack_from("=QQ", answer, 32)[1])
    return places[0] == places[1] != 0


def test_a_repaired_store_shares_the_vectors_of_whole_segments(volume: Path, tmp_path: Path) -> None:
    store = make_store(volume / "store")
    before = used(volume)
    done = call("load", store, f"milvus1:{volume / 'new'}")
    assert done.code == 0, done.err
    assert used(volume) - before < 8 * MIB, "of 36 MiB only what is no whole segment is written"
    call("export", store, tmp_path / "one")
    call("export", volume / "new", tmp_path / "two")
    assert exported(tmp_path / "one") == exported(tmp_path / "two")
    assert call("verify", volume / "new").code == 0
    new = sorted((volume / "new").rglob("*.rv"), key=lambda p: p.stat().st_size)[-1]
    assert any(shares(new, old) for old in store.rglob("*.rv"))


def test_the_bytes_are_those_of_a_store_that_was_written(volume: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    os.makedirs(volume / "same")
    call("load", store, f"milvus1:{tmp_path / 'new'}", "--reflink", "never")
    builder = StoreBuilder(volume / "same" / "store")
    builder.collection("faces", dim=512)
    segment = builder.segment("faces", rows(range(8000), dim=512))
    call("load", builder.write(), f"milvus1:{volume / 'same' / 'new'}", "--reflink", "always")
    (cloned,) = (volume / "same" / "new").rglob("*.rv")
    assert cloned.read_bytes() == segment.raw.read_bytes()
    assert shares(cloned, segment.raw)
    call("load", builder.root, f"milvus1:{volume / 'same' / 'written'}", "--reflink", "never")
    (written,) = (volume / "same" / "written").rglob("*.rv")
    assert written.read_bytes() == cloned.read_bytes() and not shares(written, segment.raw)
    for name in ("bloom_filter", "deleted_docs"):
        (one,), (other,) = ((volume / "same" / folder).rglob(name) for folder in ("new", "written"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("damage", ["header", "tail"])
def test_files_that_are_not_as_a_server_writes_them_are_not_cloned(damage: str, volume: Path) -> None:
    folder = volume / damage
    builder = StoreBuilder(folder / "store")
    builder.collection("faces", dim=512)
    segment = builder.segment("faces", rows(range(8000), dim=512))
    store = builder.write()
    with segment.raw.open("r+b") as f:
        if damage == "header":
            f.write(b"\xff" * 8)
        else:
            f.seek(0, os.SEEK_END)
            f.write(b"after")
    done = call("load", store, f"milvus1:{folder / 'new'}")
    assert done.code == 3, done.err
    (made,) = (folder / "new").rglob("*.rv")
    assert made.stat().st_size == 8 + 8000 * 2048
    assert int.from_bytes(made.read_bytes()[:8], "little") == 8000 * 2048


def test_where_blocks_cannot_be_shared_always_is_refused(volume: Path, tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(8000), dim=512))
    store = builder.write()
    refused = call("load", store, f"milvus1:{volume / 'other'}", "--reflink", "always")
    assert refused.code == 1
    assert "cannot share blocks with the store" in refused.err
    assert not (volume / "other").exists()


# Exports -------------------------------------------------------------------------------------------------------------


def test_an_export_of_one_segment_shares_its_blocks(volume: Path, tmp_path: Path) -> None:
    store = make_store(volume / "exported")
    before = used(volume)
    assert call("export", store, volume / "out").code == 0
    call("export", store, volume / "plain", "--reflink", "never")
    assert exported(volume / "out") == exported(volume / "plain")
    one, other = manifest(volume / "out"), manifest(volume / "plain")
    sums = [[f["checksum"] for c in m["collections"] for p in c["partitions"] for f in p["files"]] for m in (one, other)]
    assert sums[0] == sums[1]
    assert call("verify", volume / "out", "--against", store).code == 0
    with h5py.File(volume / "out" / "faces" / "p.h5") as h:
        assert sorted(h) == ["embeddings", "ids"]
        assert h["embeddings"].id.get_offset() % 4096 == h["ids"].id.get_offset() % 4096 == 8
    shutil.rmtree(volume / "plain")
    call("export", store, volume / "single", "-p", "p")
    assert used(volume) - before < 24 * MIB, "the partition of one segment takes no room, in both exports"


def test_an_interrupted_export_of_clones_goes_on(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "TASK_BYTES", 4 * MIB)
    builder = StoreBuilder(volume / "begun")
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(8000), dim=512))
    store = builder.write()
    run, seen = hdf5.WriteRows.run, []

    def stop_at_the_second(task: Any, advance: Any) -> Any:
        seen.append(task.id)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run(task, advance)

    monkeypatch.setattr(hdf5.WriteRows, "run", stop_at_the_second)
    assert call("export", store, volume / "resumed", "--jobs", "1").code == 130
    monkeypatch.setattr(hdf5.WriteRows, "run", run)
    assert call("export", store, volume / "resumed", "--resume").code == 0
    assert call("verify", volume / "resumed", "--against", store).code == 0


def test_an_export_to_another_volume_is_copied(volume: Path, tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(1000), dim=512))
    store = builder.write()
    assert call("export", store, volume / "copied").code == 0
    assert exported(volume / "copied")["faces", "_default"] == bag(rows(range(1000), dim=512))
    assert "cannot share blocks" in call("export", store, volume / "refused", "--reflink", "always").err
    assert not (volume / "refused").exists()
    assert "cannot share blocks" in call("export", store, volume / "copied", "--reflink", "always", "--overwrite").err
    assert exported(volume / "copied")["faces", "_default"] == bag(rows(range(1000), dim=512))
    before = (store / "db").stat().st_mtime_ns
    assert "never written to" in call("export", store, store / "db" / "out", "--reflink", "always").err
    assert (store / "db").stat().st_mtime_ns == before
    wrong = call("export", store, tmp_path / "parquet", "--format", "parquet", "--reflink", "always")
    assert wrong.code == 2
    for other in ("--link", "--compression=gzip"):
        wrong = call("export", store, volume / "refused", "--reflink", "always", other)
        assert wrong.code == 2 and "contradict each other" in wrong.err


def test_where_no_segment_is_whole_always_says_so(volume: Path) -> None:
    builder = StoreBuilder(volume / "deleted")
    builder.collection("faces", dim=512)
    builder.segment("faces", rows(range(1000), dim=512), deleted=[3])
    store = builder.write()
    for command in (["export", store, volume / "nothing"], ["load", store, f"milvus1:{volume / 'nothing-new'}"]):
        refused = call(*command, "--reflink", "always")
        assert refused.code == 1 and "nothing of the source can be shared" in refused.err


def test_a_full_volume_takes_what_shares_its_blocks(tmp_path: Path) -> None:
    with xfs(tmp_path, 320) as volume:
        builder = StoreBuilder(volume / "store")
        builder.collection("faces", dim=512)
        builder.segment("faces", rows(range(20_000), dim=512))
        store = builder.write()
        with (volume / "fill").open("wb") as f:
            os.posix_fallocate(f.fileno(), 0, shutil.disk_usage(volume).free - 20 * MIB)
        assert "the disk is full" in call("export", store, volume / "copied", "--reflink", "never").err
        for done in (call("export", store, volume / "out"), call("load", store, f"milvus1:{volume / 'new'}")):
            assert done.code == 0, done.err
        assert call("verify", volume / "out", "--against", volume / "new").code == 0
        inside = call("export", store, store / "db" / "out")
        assert inside.code == 2 and "lies inside the source" in inside.err
