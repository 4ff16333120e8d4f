"""What lies in a bucket is looked at anew by each call of the package, and once within it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextvars import ContextVar

_inside: ContextVar[bool] = ContextVar("inside", default=False)


@contextlib.contextmanager
def seen_anew() -> Iterator[None]:
    """What is asked of buckets within is asked in their present state, not in that of an earlier call of this process.

    A call within a call keeps what the outer one has listed: it costs no second listing.
    """
    if _inside.get():
        yield
        return
    if buckets := sys.modules.get(f"{__package__}.buckets"):  # not loaded: nothing is known
        buckets.renew()
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
