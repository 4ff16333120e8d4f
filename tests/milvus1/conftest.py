"""Fixtures of the tests of stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.builder import StoreBuilder


@pytest.fixture
def b(tmp_path: Path) -> StoreBuilder:
    """A store that is being built, with an empty collection `c`."""
    builder = StoreBuilder(tmp_path / "s")
    builder.collection("c")
    return builder
