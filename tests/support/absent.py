"""What a machine lacks that a test needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(text: str) -> NoReturn:
    """Skips the test and says why; with CI=true it fails, as the gate installs what this is called for."""
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)
