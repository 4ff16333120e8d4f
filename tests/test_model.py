"""Random histories of a modelled server, killed at any step: the reader gives what a restarted server would (FORMAT §3, §5).

`scripts/run_histories.py` runs thousands of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import history
import pytest
from builder import DIMENSION, content
from history import Crash, Server
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from milvus_offline.milvus1 import logtable
from milvus_offline.milvus1.store import open_store

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


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,  # the same slice each time: a change is not stopped by what it did not break
    phases=(Phase.explicit, Phase.generate),  # shrinking a history takes minutes; it is told step by step instead
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def test_histories(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        live(rng, Path(folder), monkeypatch)
