"""Waits of the main thread in short turns.

The kernel gives a signal to any thread, and Python handles it in the main thread alone: one wait without an end would sleep on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any, NoReturn

_TURN_SECONDS = 0.5


def wait_for(futures: Sequence[Future[Any]]) -> None:
    """Until all are done, whatever they ended with; Ctrl-C and SIGTERM end it soon."""
    while wait(futures, _TURN_SECONDS).not_done:
        pass


def wait_for_signal() -> NoReturn:
    """Until a signal ends it."""
    while True:
        time.sleep(_TURN_SECONDS)
