"""Several calls of a server at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...turns import wait_for

T = TypeVar("T")
R = TypeVar("R")

_PARALLEL = 8
"""Most of each call is waiting for the server's clock."""


def together(call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `call` gives for each item, in their order; raises what it raises.

    After an error or Ctrl-C nobody waits for answers that are still to come, as a server may take hours to load a collection:
    these calls end with the connection.
    """
    pool = ThreadPoolExecutor(_PARALLEL)
    try:
        for future in [pool.submit(call, item) for item in items]:
            wait_for([future])
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
