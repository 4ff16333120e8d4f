"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support.mariadb import MariaDB, start_mariadb

from milvus_offline.findings import CODES
from milvus_offline.model import Finding, Severity

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # no test may depend on an idle machine


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A running MariaDB, one per worker of pytest-xdist (it starts in half a second)."""
    folder = tmp_path_factory.mktemp("mariadb")
    server = start_mariadb(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers of loads go to a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# Findings --------------------------------------------------------------------------------------------------------------
#
# Each finding that a test's own process makes must be in the table, with its severity; with CI=true a whole run of the suite
# must have produced each code of the table.

_produced: set[str] = set()


_make = Finding.__init__


def _noted(self: Finding, severity: Severity, code: str, *rest: Any, **named: Any) -> None:
    assert code in CODES, f"the finding {code} is not in the table (milvus_offline/findings.py)"
    if rest:  # not where `replace` repeats one of salvaged rows: these are never more than info
        assert severity in CODES[code].severities, f"the finding {code} is never of severity {severity.value}, says the table"
    _produced.add(code)
    _make(self, severity, code, *rest, **named)


Finding.__init__ = _noted  # type: ignore[method-assign]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _produced.update(getattr(node, "workeroutput", {}).get("findings", ()))


def _never_produced(config: pytest.Config) -> list[str]:
    """Codes that a run of the whole suite did not produce in the tests' own processes."""
    o = config.option
    whole = not (o.keyword or o.markexpr or o.collectonly) and config.args == config.getini("testpaths")
    return sorted(set(CODES) - _produced) if whole else []


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["findings"] = sorted(_produced)
    elif os.environ.get("CI") and not session.exitstatus and _never_produced(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if missing := _never_produced(config):
        terminalreporter.write_line(f"findings that no test produced: {', '.join(missing)}", red=True)
