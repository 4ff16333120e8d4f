"""A process that asks for the same URL again sees what lies there now, and lists it once for each call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bucket import BUCKET, S3Server
from support.builder import StoreBuilder, rows

import milvus_offline
from milvus_offline import buckets

pytestmark = pytest.mark.server

STORE, EXPORT = f"s3://{BUCKET}/store", f"s3://{BUCKET}/out"


@pytest.fixture
def server(running: S3Server) -> Iterator[S3Server]:
    yield running
    running.clear()


def put(server: S3Server, folder: Path, count: int) -> None:
    """A store of `count` rows, and an export of it, where STORE and EXPORT point to; nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    builder = StoreBuilder(folder / "store")
    builder.collection("faces", dim=8)
    for at in range(0, count, 100):
        builder.segment("faces", rows(range(at, at + 100), dim=8))
    server.clear()
    server.upload(builder.write(), "store/")
    milvus_offline.export(folder / "store", folder / "out", file_format="npy")
    server.upload(folder / "out", "out/")


ENTRIES: dict[str, Callable[[Path], int]] = {
    "open_store": lambda _: len(milvus_offline.open_store(STORE)["faces"]["_default"].read().ids),
    "open_source": lambda _: sum(
        x.rows for c in milvus_offline.open_source(EXPORT).collections for p in c.partitions for x in p.pieces
    ),
    "export": lambda to: milvus_offline.export(STORE, to / "copy").rows,
    "export of an export": lambda to: milvus_offline.export(EXPORT, to / "copy").rows,
    "load": lambda to: milvus_offline.load(STORE, f"milvus1:{to / 'new'}").rows,
    "verify": lambda _: milvus_offline.verify(STORE).rows,
    "verify of an export": lambda _: milvus_offline.verify(EXPORT).rows,
    "verify against": lambda _: 200 * (milvus_offline.verify(EXPORT, against=STORE).exit_code == 0),
}


def listings(server: S3Server) -> int:
    return sum(method == "GET" and path.rstrip("/") == f"/{BUCKET}" for method, path in server.requests)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_call_sees_the_present_state_and_lists_it_once(entry: str, server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    put(server, tmp_path / "source", 100)
    buckets.forget()
    server.requests.clear()
    first = ENTRIES[entry](tmp_path / "a")
    once = listings(server)
    put(server, tmp_path / "source", 200)
    server.requests.clear()
    again = ENTRIES[entry](tmp_path / "b")
    assert (first, again) == ((200, 200) if entry == "verify against" else (100, 200))
    assert 0 < listings(server) == once <= 5  # the places themselves, and what lies beside a store


def test_a_store_that_was_opened_before_is_read_without_another_listing(server: S3Server, tmp_path: Path) -> None:
    put(server, tmp_path / "source", 300)
    store = milvus_offline.open_store(STORE)
    milvus_offline.open_source(EXPORT)
    server.requests.clear()
    assert sorted(store["faces"]["_default"].read().ids) == list(range(300))
    assert listings(server) == 0


def test_a_small_file_that_changed_is_read_anew(server: S3Server, tmp_path: Path) -> None:
    """Of the same length, within the same second."""
    put(server, tmp_path / "source", 100)
    assert milvus_offline.verify(EXPORT).exit_code == 0
    name = next(k for k in server.keys("out/") if k.endswith("vector.npy"))
    data = bytearray(server.keys(name)[name])
    data[-1] ^= 1
    server.client.put_object(Bucket=BUCKET, Key=name, Body=bytes(data))
    assert milvus_offline.verify(EXPORT).exit_code == 4
