"""Random histories of a modelled server, killed at any step: the reader gives what a restarted server would (FORMAT §3, §5).

`scripts/run_histories.py` runs thousands of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.lives import live, live_unlucky

pytestmark = pytest.mark.slow


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,  # the same slice each time: a change is not stopped by what it did not break
    phases=(Phase.explicit, Phase.generate),  # shrinking a history takes minutes; it is told step by step instead
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def test_histories(rng: Random) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        live(rng, Path(folder), monkeypatch)


@pytest.mark.parametrize("part", range(3))
def test_histories_of_a_server_that_loses_rows_by_itself(part: int) -> None:
    """Flushes that fail as a whole, and the row-id race (FORMAT §3.6, §17): what clients have a right to find comes out."""
    for seed in range(30 * part, 30 * part + 30):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            live_unlucky(Random(seed), Path(folder), monkeypatch)
