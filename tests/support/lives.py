"""Whole lives of the modelled server: through several crashes, and after each the store is read and compared."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.wal import table as logtable

from . import history
from .builder import DIMENSION, content
from .history import Crash, Server

CODES = {"wal-rows", "wal-deletes", "wal-gap", "wal-torn", "flush-unrecorded", "zombie-partition", "catalog-older"}
"""What may be found after a crash of a healthy server; `wal-torn` where a restarted one left the rest of a cut call behind."""


def live(rng: Random, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """One server through several crashes; after each the store is read. Returns the findings of each look."""
    monkeypatch.setattr(logtable, "MEMORY_SEGMENT_BYTES", history.MEMORY_ROWS * 4 * DIMENSION)
    server = Server(rng, file_bytes=rng.choice((300, 1000, 1 << 20)))
    looks = []
    for number in range(rng.randrange(1, 5)):
        server.fuse = rng.randrange(3, 60)
        server.trap = (rng.choice(("T1", "T2", "half", "merge", "compact", "drop", "replayed")),) if rng.random() < 0.6 else ()
        try:
            if number:
                server.start()
            while server.fuse > 1:
                server.random_step()
                server.fuse -= 1
            server.fuse = 1 << 30
            server.stop()
        except Crash:
            server.die()
        looks.append(check(server, folder / str(number)))
        if not server.can_start():
            break
    return looks


def check(server: Server, folder: Path) -> list[str]:
    """Reads what the server has left, and compares."""
    store = open_store(server.render(folder))
    found, truth = content(store), server.expected()
    told = [f"{f.code} {f.where} {f.message}" for f in store.findings]
    if found != truth:
        differences = [f"{k}: too much {found[k] - truth[k]}, lacking {truth[k] - found[k]}" for k in truth if k in found]
        raise AssertionError("\n".join([*server.story, *told, f"{found.keys()} for {truth.keys()}", *differences]))
    codes = {f.code for f in store.findings}
    if not codes <= CODES or ("flush-unrecorded" in codes and not any(t.unrecorded for t in server.alive())):
        raise AssertionError("\n".join([*server.story, *told]))
    return sorted(codes)
