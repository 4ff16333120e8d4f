"""What every target of a load has to do, whichever it is: counted, refused, killed and gone on with, never doubled.

`PLACES` says for each where it is and how its rows are read back. Milvus servers cost seconds a collection, so the suite's long
parts run on them with fewer interruptions.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.array_source import ArraySource, floats
from support.examples import examples
from support.milvus1_standin import Standin
from support.milvus_server import own_name, shared_milvus

from milvus_offline import targets
from milvus_offline.errors import MilvusOfflineError, UsageError
from milvus_offline.ledger import Ledger
from milvus_offline.loading import LoadReport, run_load
from milvus_offline.model import Schema
from milvus_offline.targets import SCHEMES, defaults_of, open_target, scheme_of

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("own_state")]

Held = dict[tuple[str, str], Counter[tuple[int, bytes]]]
NAME = own_name(f"suite {os.environ.get('PYTEST_XDIST_WORKER', '')}")
"""Workers share the server."""


@dataclass
class Place:
    """A target under test. `small`: options that cut the rows into many tasks."""

    address: str
    rows: Callable[[], Held]
    small: Mapping[str, Any]
    steps: int
    """Interruptions that are tried, at most."""


# Places ---------------------------------------------------------------------------------------------------------------


def new_store(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    from milvus_offline.milvus1.opening import open_store

    def rows() -> Held:
        if not (tmp_path / "new" / "db").exists():
            return {}
        found = open_store(tmp_path / "new").collections
        batches = {(c.name, p.name): p.read() for c in found for p in c.partitions}
        return {k: counted(b.ids, b.vectors) for k, b in batches.items()}

    return Place(f"milvus1:{tmp_path / 'new'}", rows, {"index_file_size": 1 << 20, "jobs": 1}, 9)


def running_1x(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    server = Standin()
    request.addfinalizer(server.stop)

    def rows() -> Held:
        return {(n, tag or "_default"): Counter(r) for n, t in server.tables.items() for tag, r in t.rows.items()}

    return Place(server.target, rows, {"message_mib": 0.002}, 9)


def lite(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    pytest.importorskip("milvus_lite")
    return milvus(str(tmp_path / "lite.db"), 4)


def server(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    return milvus(shared_milvus(request.getfixturevalue("tmp_path_factory")).uri, 2)


def milvus(address: str, steps: int) -> Place:
    from milvus_offline.targets.milvus.client import Client
    from milvus_offline.targets.milvus.connection import Connection
    from milvus_offline.targets.milvus.wire import Layout

    def rows() -> Held:
        if address.endswith(".db") and not Path(address).exists():
            return {}
        with Client(Connection(address)) as client:
            if not client.has(NAME):
                return {}
            client.load(NAME)
            existing = client.existing(NAME)
            layout = Layout("vector", existing.vector_type, existing.dimension, "id")
            held: Held = {}
            for partition in existing.partitions:
                held[NAME, partition] = Counter()
                for ids, vectors in client.pages(layout, NAME, partition, "", "id"):
                    held[NAME, partition] += counted(ids, vectors)
            return held

    return Place(address, rows, {"message_mib": 0.002}, steps)


def documented(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    """The target that docs/extending.md shows, added as it says: a module and a line."""
    module = types.ModuleType("milvus_offline.targets.arrays")
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (code,) = examples("extending.md", "class ArraysTarget")
    (line,) = examples("extending.md", "Kind(")
    exec(compile(code, "docs/extending.md", "exec"), module.__dict__)
    monkeypatch.setattr(targets, "SCHEMES", [*SCHEMES, eval(line, {"Kind": targets.Kind})])
    folder = tmp_path / "arrays"

    def rows() -> Held:
        places = {(p.parent.parent.name, p.parent.name): p.parent for p in folder.rglob("ids.npy")}
        return {k: counted(np.load(p / "ids.npy"), np.load(p / "vectors.npy")) for k, p in places.items()}

    return Place(f"arrays:{folder}", rows, {}, 3)


PLACES = {
    "new_store": new_store,
    "running_1x": running_1x,
    "lite": lite,
    "server": pytest.param(server, marks=pytest.mark.server),
    "documented": documented,
}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = request.param(tmp_path, request)
    if made.address.startswith("http"):  # the server is everybody's
        from pymilvus import MilvusClient

        MilvusClient(made.address).drop_collection(NAME)
    yield made


def counted(ids: Any, vectors: Any) -> Counter[tuple[int, bytes]]:
    return Counter((int(i), v.tobytes()) for i, v in zip(ids, vectors, strict=True))


# Rows -----------------------------------------------------------------------------------------------------------------

WIDE = 300
"""Dimensions: so that a 1.x segment, at least 1 MiB, has some hundred rows."""


def source(rows: int = 2000, seed: int = 0) -> ArraySource:
    parts = {
        "_default": [(np.arange(rows), floats(rows, WIDE, seed))],
        "p": [(np.arange(rows, rows + 40), floats(40, WIDE, 9))],
    }
    return ArraySource({NAME: parts}, {NAME: Schema(NAME, WIDE, metric_type="L2", auto_id=False)})


def expected(of: ArraySource) -> Held:
    return {(NAME, p): counted(*pieces[0]) for p, pieces in of.data[NAME].items()}


def load(place: Place, of: ArraySource, **road: Any) -> LoadReport:
    options = {**place.small, **road.pop("options", {})}
    return run_load(of, open_target(place.address, **options), **road)


class Killed(BaseException):
    pass


def killed(
    place: Place, of: ArraySource, step: int, *, noted: bool, monkeypatch: pytest.MonkeyPatch, **road: Any
) -> LoadReport | None:
    """A load that ends at the `step`-th entry of its ledger, before or after that is written down; its report when it came to
    its end before."""
    add, seen = Ledger.add, [0]

    def stop(self: Ledger, results: Any) -> None:
        seen[0] += 1
        if seen[0] < step or noted:
            add(self, results)
        if seen[0] >= step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", stop)
        try:
            return load(place, of, **road)
        except Killed:
            return None


# The suite ------------------------------------------------------------------------------------------------------------


def test_every_row_arrives_and_is_counted(place: Place) -> None:
    of = source()
    report = load(place, of)
    assert place.rows() == expected(of)
    assert (report.rows, report.rows_now, report.exit_code) == (2040, 2040, 0)
    assert report.verified != "none"
    assert report.to_json()["format"] == "milvus-offline-load"


def test_a_dry_run_creates_nothing(place: Place, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    report = load(place, source(), dry_run=True)
    assert [(c.name, c.action, c.rows) for c in report.plan.collections] == [(NAME, "create", 2040)]
    assert (report.rows, report.state) == (2040, None)
    assert place.rows() == {}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("noted", [False, True])
def test_killed_after_any_step_and_gone_on_with(place: Place, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is a collection that is created, or a task. Not `noted`: what was done is not in the ledger, as after a kill
    between the two; done again, it must not be doubled."""
    of = source(600 if place.steps == 2 else 2000)
    report = None
    for step in range(place.steps):
        report = killed(place, of, 1 if step < 2 else 2, noted=noted, monkeypatch=monkeypatch, resume=step > 0)
        if report:
            break
    report = report or load(place, of, resume=True)
    assert place.rows() == expected(of)
    assert (report.rows, report.exit_code) == (sum(map(Counter.total, expected(of).values())), 0)


@pytest.mark.parametrize("after", [False, True], ids=["before_the_plan_is_kept", "after"])
def test_killed_before_anything_was_sent_and_gone_on_with(place: Place, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of, kind = source(100), type(open_target(place.address))
    remember = kind.remember

    def dies(self: Any, folder: Any) -> None:
        if after:
            remember(self, folder)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, "remember", dies)
        load(place, of)
    assert load(place, of, resume=True).exit_code == 0
    assert place.rows() == expected(of)


def test_another_source_is_not_gone_on_with(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = {} if open_target(place.address).home else {"state": tmp_path / "own"}
    assert killed(place, source(), 1, noted=True, monkeypatch=monkeypatch, **state) is None
    with pytest.raises(UsageError, match=r"differs in: .*source"):
        load(place, source(seed=5), resume=True, **state)
    assert load(place, source(), resume=True, **state).exit_code == 0
    assert place.rows() == expected(source())


def test_what_is_there_is_not_touched_unasked(place: Place) -> None:
    of = source(200)
    load(place, of)
    with pytest.raises(MilvusOfflineError):
        load(place, source(100, seed=1))
    assert place.rows() == expected(of)


def test_nothing_is_dropped_without_being_asked_for(place: Place) -> None:
    try:
        open_target(place.address, mode="overwrite").close()
    except UsageError as e:
        assert "--mode" in str(e) and "does not go with" in str(e)
        return
    of, other = source(200), source(100, seed=1)
    load(place, of)
    asked: list[Any] = []
    with pytest.raises(UsageError, match="nothing was dropped"):
        load(place, other, options={"mode": "overwrite"}, confirm=lambda names: bool(asked.append(list(names))))
    assert asked == [[NAME]]
    assert place.rows() == expected(of)
    assert load(place, other, options={"mode": "overwrite"}).exit_code == 0
    assert place.rows() == expected(other)


def test_options_that_do_not_go_with_it_are_refused(place: Place) -> None:
    kind = scheme_of(place.address)
    known = defaults_of(kind)
    foreign = {name for other in targets.SCHEMES for name in defaults_of(other)} - set(known)
    assert foreign
    refused = re.escape(f"does not go with {kind.example}; it goes with")
    for name in foreign:
        with pytest.raises(UsageError, match=refused):
            open_target(place.address, **{name: 1})
    with pytest.raises(UsageError, match="does not go with"):
        open_target(place.address, mode="sideways")
