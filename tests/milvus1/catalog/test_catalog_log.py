"""What SQLite keeps to itself about the -wal of a catalog: damaged frames, a cut end, a file that was left behind."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from milvus_offline.errors import StoreError
from milvus_offline.milvus1.catalog.pages import log_damage
from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import Severity

STORES = Path(__file__).parent.parent.parent.parent / "fixtures" / "stores"
FRAME = 24 + 4096
FRAMES = 38
"""Frames in the -wal of `crash_wal_partial`, all committed."""


@pytest.fixture
def db(tmp_path: Path) -> Path:
    shutil.copytree(STORES / "crash_wal_partial" / "store", tmp_path / "store")
    return tmp_path / "store" / "db" / "meta.sqlite"


def wal_of(db: Path) -> Path:
    return db.with_name("meta.sqlite-wal")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_every_real_catalog_is_sound() -> None:
    catalogs = [p for s in sorted(STORES.iterdir()) if (p := s / "store" / "db" / "meta.sqlite").is_file()]
    assert len(catalogs) >= 15
    for path in catalogs:
        assert log_damage(path) is None, path


@pytest.mark.parametrize("at", [32 + 5 * FRAME + 4, 32 + 5 * FRAME + 18, 32 + 30 * FRAME + 2000, 9, 20])
def test_a_damaged_frame_or_header(db: Path, at: int) -> None:
    flip(wal_of(db), at)
    expected = r"the header of the -wal is damaged" if at < 32 else r"[12] frames of the -wal are damaged"
    assert re.fullmatch(expected, log_damage(db) or "")
    store = open_store(db.parent.parent)
    assert [f.code for f in store.findings if f.severity is Severity.ERROR][:1] == ["catalog-damaged"]


@pytest.mark.parametrize("at", [8, 18, 2000], ids=["salt", "checksum", "page"])
def test_the_last_frame(db: Path, at: int) -> None:
    """With the -shm it is known that the last frame was committed, without it nobody can tell."""
    flip(wal_of(db), 32 + (FRAMES - 1) * FRAME + at)
    expected = f"its meta.sqlite-wal holds {FRAMES - 1} of the {FRAMES} frames that were committed, it belongs to the catalog"
    assert log_damage(db) == expected
    db.with_name("meta.sqlite-shm").unlink()
    assert log_damage(db) == (None if at == 8 else "the last frames of the -wal are damaged")


def test_a_frame_that_was_being_written(db: Path) -> None:
    """The server died between the header of a frame and its page: the -shm does not count it, nothing is lost."""
    data = wal_of(db).read_bytes()
    wal_of(db).write_bytes(data + data[-FRAME : -FRAME + 24] + bytes(4096))
    assert log_damage(db) is None
    assert not [f for f in open_store(db.parent.parent).findings if f.code.startswith("catalog")]
    wal_of(db).write_bytes(data + data[-FRAME : -FRAME + 24] + bytes(100))
    assert log_damage(db) is None


@pytest.mark.parametrize("frames", [0, 1, 20, FRAMES - 1])
def test_a_cut_end(db: Path, frames: int) -> None:
    os.truncate(wal_of(db), 32 + frames * FRAME)
    assert f"holds {frames} of the {FRAMES} frames" in str(log_damage(db))


def test_a_wal_left_behind(db: Path) -> None:
    wal_of(db).unlink()
    assert log_damage(db) == "its meta.sqlite-wal is missing, it belongs to the catalog"
    with pytest.raises(StoreError, match=r"meta\.sqlite-wal is missing.*--no-catalog"):
        open_store(db.parent.parent)


def test_an_unusable_shm_says_nothing(db: Path) -> None:
    shm = db.with_name("meta.sqlite-shm")
    for data in (b"", os.urandom(136), bytes(32768)):
        shm.write_bytes(data)
        assert log_damage(db) is None
    os.truncate(wal_of(db), 32 + 20 * FRAME)
    assert log_damage(db) is None
