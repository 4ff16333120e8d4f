"""What a load will take, said before it begins: bytes and time of sending, rows and time of reading back.

The network is measured with one message to a collection that does not exist, which the server reads and refuses. How fast a
target stores rows is not known before: what 2.3.5 and Milvus Lite did on two cores is used, and the plan says so.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import numpy as np

from ...errors import MilvusOfflineError
from ...model import Finding, Severity, VectorType
from .. import Estimate
from .client import Client
from .refusals import Busy, TooLarge, Unclear
from .terms import CollectionPlan
from .wire import Layout

STORED_BYTES = 16e6
"""Bytes of ids and vectors a second that a server stores (2.3.5, two cores, 128 dimensions)."""
IMPORT_FACTOR = 1.25
"""How much faster the same server imports files."""
LITE_BYTES = 5e6
"""Bytes a second that Milvus Lite stores, flush included (3.2.2)."""
READ_BACK_ROWS = 11_000
"""Rows a second that both give back."""
WORTH_BYTES = 64 << 20
"""Loads below this are over before an estimate helps."""
WORTH_SECONDS = 60.0
"""What an import has to save for a hint."""
_DIMENSION = 128


def estimate(  # many: what is loaded, how, and where
    client: Client | None,
    plans: Sequence[CollectionPlan],
    row_bytes: Sequence[int],
    verify: str,
    message: tuple[int, int],
    *,
    imported: bool = False,
    parts: int = 1,
) -> Estimate:
    """Of the collections that are not skipped; `row_bytes` of each. `client` None: an own Milvus Lite that is not there yet.

    `message`: bytes and rows of a message at most. `imported`: as files, past the network that is measured here. `parts`:
    of as many parts this load sends one.
    """
    chosen = [(p, b) for p, b in zip(plans, row_bytes, strict=True) if p.action != "skip"]
    rows = sum(p.rows for p, _ in chosen) // parts
    nbytes = sum(p.rows * (b + 8) for p, b in chosen) // parts
    lite = client is None or client.kind == "lite"
    storing = LITE_BYTES if lite else STORED_BYTES * (IMPORT_FACTOR if imported else 1)
    network = seconds = None
    if nbytes >= WORTH_BYTES:
        if client is not None and not (lite or imported):
            network = network_rate(client, message[0])
        seconds = nbytes / min(network or storing, storing)
    back = rows if verify == "full" else 0
    if verify == "sample":
        back = sum(_sampled(q.rows, b, message) for p, b in chosen for q in p.partitions)
    return Estimate(rows, nbytes, network, storing, seconds, verify, back, back / READ_BACK_ROWS if seconds else None)


def _sampled(rows: int, row_bytes: int, message: tuple[int, int]) -> int:
    """Rows of a partition that a sample reads back."""
    from .verify import SAMPLE_ROWS, SAMPLE_TASKS

    each = max(1, min(message[1], message[0] // (row_bytes + 10)))
    full, last = divmod(rows, each)
    full = min(full, SAMPLE_TASKS - bool(last))  # the last message is always among those
    return full * min(each, SAMPLE_ROWS) + min(last, SAMPLE_ROWS)


def network_rate(client: Client, nbytes: int) -> float | None:
    """Bytes a second to the server; None where it cannot be measured. Nothing is stored."""
    rows = max(1, nbytes // (4 * _DIMENSION))
    layout = Layout("vector", VectorType.FLOAT, _DIMENSION, "id")
    nowhere = f"milvus_offline_probe_{secrets.token_hex(8)}"
    took = 0.0
    for count in (1, rows):  # the first finds out what a round trip takes
        vectors, ids = np.zeros((count, _DIMENSION), np.float32), np.arange(count)
        clock = time.monotonic()
        try:
            client.insert(layout, nowhere, "", ids, vectors, ())
        except (MilvusOfflineError, Busy, TooLarge, Unclear):
            took = time.monotonic() - clock - took
    return nbytes / max(took, 1e-3)


def import_hint(made: Estimate, kind: str) -> Finding | None:
    """Where files that the server imports would save minutes."""
    if kind != "server" or made.seconds is None or made.network is None:
        return None
    imported = made.bytes / min(made.network, IMPORT_FACTOR * STORED_BYTES)
    if made.seconds - imported < WORTH_SECONDS:
        return None
    from ...text import duration, size

    text = (
        f"{size(made.bytes)} as messages take about {duration(made.seconds)}, as files that the server imports about "
        f"{duration(imported)}: --import-to, with a folder or bucket that the server reads"
    )
    return Finding(Severity.INFO, "import-faster", "", text)
