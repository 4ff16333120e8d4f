"""Working off tasks: what a killed run may have done without writing it down."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from milvus_offline.ledger import Ledger
from milvus_offline.transfer import UNNOTED_EACH, Advance, QuickTurns, Result, Silent, execute, in_order


@dataclass
class Watched:
    """Tasks that say when they begin, and the ledger's entries."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    begun: list[int] = field(default_factory=list)
    noted: set[int] = field(default_factory=set)
    most: int = 0

    def begin(self, number: int) -> None:
        with self.lock:
            self.begun.append(number)
            self.most = max(self.most, len(self.begun) - len(self.noted))

    def lost(self) -> list[int]:
        """Tasks that a kill now would leave without an entry although they have begun."""
        with self.lock:
            return sorted(set(self.begun) - self.noted)


@dataclass
class Number:
    watched: Watched
    number: int
    seconds: float = 0.0
    rows: int = 1
    bytes: int = 1

    @property
    def id(self) -> str:
        return str(self.number)

    def run(self, advance: Advance) -> Result:
        self.watched.begin(self.number)
        time.sleep(self.seconds)
        advance(1, 1)
        return {"n": self.number}


class SlowLedger(Ledger):
    """On a disk that takes its time."""

    watched: Watched

    def add(self, results: Mapping[str, dict[str, Any]]) -> None:
        lost = self.watched.lost()
        first_open = [n for n in range(200) if n not in self.watched.noted][: UNNOTED_EACH * 3]
        assert set(lost) <= set(first_open), (lost, first_open)
        time.sleep(0.02)
        super().add(results)
        with self.watched.lock:
            self.watched.noted |= {int(i) for i in results}


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.03])
def test_a_slow_ledger_holds_the_workers_back(seconds: float, tmp_path: Path) -> None:
    watched = Watched()
    ledger = SlowLedger.create(tmp_path / "ledger", {})
    ledger.watched = watched  # type: ignore[attr-defined]
    results = execute([Number(watched, n, seconds) for n in range(60)], jobs=3, ledger=ledger)
    ledger.close()
    assert sorted(r["n"] for r in results.values()) == list(range(60)) and len(watched.noted) == 60
    assert watched.most <= UNNOTED_EACH * 3


def test_what_was_done_before_an_error_is_noted(tmp_path: Path) -> None:
    class Broken(Number):
        def run(self, advance: Advance) -> Result:
            raise ValueError("broken")

    watched = Watched()
    ledger = SlowLedger.create(tmp_path / "ledger", {})
    ledger.watched = watched  # type: ignore[attr-defined]
    tasks = [Number(watched, n, 0.001) for n in range(20)]
    with pytest.raises(ValueError, match="broken"):
        execute([*tasks[:10], Broken(watched, 10), *tasks[11:]], jobs=3, ledger=ledger)
    ledger.close()
    again = Ledger.resume(tmp_path / "ledger", {})
    again.close()
    assert {int(i) for i in again.done} == watched.noted >= set(range(4))
    assert len(watched.begun) < 20


def test_a_task_ends_while_another_thread_imports_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As h5py does, whose import takes longer than a small task; the module is there then, and almost empty."""
    half = types.SimpleNamespace(modules={"logging": types.ModuleType("logging")})
    monkeypatch.setattr("milvus_offline.transfer.sys", half)
    ledger = Ledger.create(tmp_path / "ledger", {})
    assert list(execute([Number(Watched(), 1)], jobs=1, ledger=ledger)) == ["1"]
    ledger.close()


@dataclass
class Last(Number):
    """The first of several that waits for the one after it, and so ends after it."""

    after: threading.Event = field(default_factory=threading.Event)
    before: threading.Event = field(default_factory=threading.Event)

    def run(self, advance: Advance) -> Result:
        assert self.after.wait(60)
        self.before.set()
        return super().run(advance)


def test_what_tasks_find_comes_in_their_order_not_in_that_of_their_ends() -> None:
    watched = Watched()
    second, first = threading.Event(), threading.Event()
    second.set()
    tasks = [Last(watched, 0, after=first), Last(watched, 1, after=second, before=first)]
    tasks += [Number(watched, n) for n in range(2, 40)]  # type: ignore[list-item]
    assert [r["n"] for r in in_order(tasks, jobs=3, progress=Silent())] == list(range(40))
    assert watched.begun[0] == 1
    assert list(in_order([], jobs=3, progress=Silent())) == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_tasks_of_one_id_are_several(jobs: int) -> None:
    """A manifest may name a file twice."""
    tasks = [Number(Watched(), n) for n in (5, 5, 5, 6, 5)]
    assert [r["n"] for r in in_order(tasks, jobs=jobs, progress=Silent())] == [5, 5, 5, 6, 5]


@pytest.mark.parametrize("jobs", [1, 3])
def test_who_wants_no_more_of_what_tasks_find_stops_them(jobs: int) -> None:
    watched = Watched()
    threads = threading.active_count()
    with contextlib.closing(in_order([Number(watched, n) for n in range(100)], jobs=jobs, progress=Silent())) as found:
        assert next(found) == {"n": 0}
    assert len(watched.begun) <= 1 + UNNOTED_EACH * jobs + jobs and threading.active_count() == threads


def test_the_interpreters_switch_interval_comes_back_with_the_end_of_the_last_run() -> None:
    """Of two runs in one program the first to begin may be the first to end."""
    before = sys.getswitchinterval()
    turns = QuickTurns()
    turns.begin()
    turns.begin()
    turns.end()
    assert sys.getswitchinterval() < before
    turns.end()
    assert sys.getswitchinterval() == before
