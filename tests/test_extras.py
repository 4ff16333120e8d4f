"""What to type where an optional package is missing fits the installation that lacks it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from milvus_offline.errors import pip_install


def _pip_in(folder: Path) -> str:
    folder.mkdir()
    (folder / "pip").write_text("#!/bin/sh\n")
    (folder / "pip").chmod(0o755)
    return str(folder)


def test_in_an_activated_environment_pip_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", _pip_in(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert pip_install("lite") == "pip install 'milvus-offline[lite]'"


@pytest.mark.parametrize("there", [True, False], ids=["another pip", "no pip"])
def test_elsewhere_the_python_of_this_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setenv("PATH", _pip_in(tmp_path / "bin") if there else str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my tools" / "python"))
    assert pip_install("lite") == f"'{tmp_path}/my tools/python' -m pip install 'milvus-offline[lite]'"
