"""Whole lives of the modelled server: through several crashes, and after each the store is read and compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.salvage import collect
from milvus_offline.milvus1.verify import check_store
from milvus_offline.milvus1.wal import table as logtable
from milvus_offline.model import Severity

from . import history
from .builder import DIMENSION, content, pieces_bag
from .history import Crash, Server
from .unlucky import UnluckyServer

CODES = {
    "wal-rows",
    "wal-deletes",
    "wal-gap",
    "wal-torn",
    "flush-unrecorded",
    "zombie-partition",
    "catalog-older",
    "drop-half-done",
    "segment-unknown",
    "folder-unknown",
    "log-unknown",
}
"""What may be found after a crash of a healthy server; `wal-torn` where a restarted one left the rest of a cut call behind.
`segment-unknown` and `folder-unknown` need a crash in the middle of a flush, and then that every row of that flush is deleted,
or its collection dropped, before the next one: the folder that the crash left is then like one that the catalog has lost.
`log-unknown` needs that all collections were dropped, and then is no warning."""


LOST = {"flush-lost", "deletes-lost", "rows-doubled", "segment-forgotten", "race-undecided", "log-differs", "row-id-race"}
"""What may be found only where a server has lost something by itself."""


def live(rng: Random, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """One server through several crashes; after each the store is read. Returns the findings of each look."""
    monkeypatch.setattr(logtable, "MEMORY_SEGMENT_BYTES", history.MEMORY_ROWS * 4 * DIMENSION)
    server = Server(rng, file_bytes=rng.choice((300, 1000, 1 << 20)))
    looks = []
    for number in range(rng.randrange(1, 5)):
        server.fuse = rng.randrange(3, 60)
        server.trap = (rng.choice(("T1", "T2", "half", "merge", "compact", "drop", "replayed")),) if rng.random() < 0.6 else ()
        _one_life(server, restarted=number > 0)
        looks.append(check(server, folder / str(number)))
        if not server.can_start():
            break
    return looks


def _one_life(server: Server, *, restarted: bool) -> None:
    """Random steps until the server's fuse has burnt down, or a crash."""
    try:
        if restarted:
            server.start()
        while server.fuse > 1:
            server.random_step()
            server.fuse -= 1
        server.fuse = 1 << 30
        server.stop()
    except Crash:
        server.die()


def live_unlucky(rng: Random, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The same of a server that loses rows and deletes by itself. Returns the findings of each look, `exact` where all came."""
    monkeypatch.setattr(logtable, "MEMORY_SEGMENT_BYTES", history.MEMORY_ROWS * 4 * DIMENSION)
    racing = rng.random() < 0.5
    file_bytes = rng.choice((1000, 1 << 20, 1 << 20))
    server = UnluckyServer(rng, file_bytes=file_bytes, failing=not racing or rng.random() < 0.5, racing=racing)
    looks = []
    for number in range(rng.randrange(1, 4)):
        server.fuse = rng.randrange(20, 120)
        _one_life(server, restarted=number > 0)
        looks.append(check_unlucky(server, folder / str(number)))
        if not server.can_start():
            break
    return looks


def check_unlucky(server: UnluckyServer, folder: Path) -> list[str]:
    """Reads what the server has left. Where the whole log is there, all must come that clients have a right to find, and
    nothing else; what does not come is salvaged. Where it is not, nothing may come twice."""
    store = open_store(server.render(folder))
    found, owned = content(store), server.owned()
    codes = {f.code for f in store.findings}
    passed_over = server.passed_over()
    salvaged = sum((pieces_bag(s.pieces) for s in collect(store, ["unseen", "dropped"])[0]), Counter())
    problems = []
    if not server.struck and codes & LOST - ({"deletes-lost"} if server.skipped else set()):
        problems.append(f"nothing was lost, but {codes & LOST}")
    for place, have in found.items():
        want = owned[place[0], "" if place[1] == "_default" else place[1]]
        skipped = passed_over.get((place[0], "" if place[1] == "_default" else place[1]), set())
        have = Counter({r: n for r, n in have.items() if r in want or r[0] not in skipped})
        if server.doubles:
            have = Counter(dict.fromkeys(have, 1))
        missing, extra = want - have, have - want
        if min(server.log.files, default=1) == 0:
            if (missing - salvaged or extra) and not codes & LOST:
                problems.append(f"{place}: {len(missing)} missing, {len(extra)} too much, in silence")
            if lost := missing - salvaged:
                problems.append(f"{place}: lacking {sorted(r[0] for r in lost)}")
            if extra:
                problems.append(f"{place}: too much {sorted(r[0] for r in extra)}")
        if (twice := [r[0] for r, n in extra.items() if n > 1 or r in want]) and not server.hides_a_flush():
            problems.append(f"{place}: twice {sorted(twice)}")
    if problems:
        told = [f"{f.code} {f.where} {f.rows} {f.message}" for f in store.findings]
        raise AssertionError("\n".join([*server.story, *told, *problems]))
    return sorted(codes)


def check(server: Server, folder: Path) -> list[str]:
    """Reads what the server has left, and compares."""
    store = open_store(server.render(folder))
    found, truth = content(store), server.expected()
    owed = {(c, t or "_default"): ids for (c, t), ids in server.skipped.items()}
    for place in owed.keys() & truth.keys():  # the reader may carry out what the server's recovery has passed over
        if (truth[place] - found[place]).keys() <= {r for r in truth[place] if r[0] in owed[place]}:
            truth[place] &= found[place]
    told = [f"{f.code} {f.where} {f.message}" for f in store.findings]
    if found != truth:
        differences = [f"{k}: too much {found[k] - truth[k]}, lacking {truth[k] - found[k]}" for k in truth if k in found]
        raise AssertionError("\n".join([*server.story, *told, f"{found.keys()} for {truth.keys()}", *differences]))
    if differing := [f.message for f in check_store(store)[1] if f.code == "vectors-differ"]:
        raise AssertionError("\n".join([*server.story, *differing]))
    codes = {f.code for f in store.findings}
    assert not any(f.code == "log-unknown" and f.severity is Severity.WARNING for f in store.findings), told
    allowed = CODES | {"deletes-lost"} if owed else CODES
    if not codes <= allowed or ("flush-unrecorded" in codes and not any(t.unrecorded for t in server.alive())):
        raise AssertionError("\n".join([*server.story, *told]))
    return sorted(codes)
