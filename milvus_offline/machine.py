"""What the machine gives to this process."""

from __future__ import annotations

import os

_MOST = 4


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """Tasks at the same time if nobody says how many: a thread for each processor, at most 4."""
    return min(_MOST, processors())
