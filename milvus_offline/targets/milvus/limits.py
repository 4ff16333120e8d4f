"""What Milvus servers accept, by version; where a server tells it is asked (`client.facts`).

| | 2.3 | 2.4 | 2.5 | 2.6, 3.0 |
|---|---|---|---|---|
| smallest float dimension | 1 | 2 | 2 | 2 |
| `-` in partition names (never first) | no | from 2.4.19 on | yes | yes |
| description of a collection | 60,000 bytes | same | same | 1,024 bytes (a server refuses more from 2.6.19 on) |
| a collection with aliases can be dropped | yes | no | no | no |

In all: 1,024 partitions of a collection, 16 shards, 65,536 partitions x shards of all collections together, dimension 32,768.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import words
from .terms import Existing, TargetFacts

MAX_SHARDS = 16
MAX_CAPACITY = 65_536
"""Partitions times shards, summed over all collections."""


def server_facts(
    kind: words.Server,
    version: str,
    existing: Mapping[str, Existing],
    *,
    aliases: Mapping[str, str] | None = None,
    capacity_used: int | None = None,
) -> TargetFacts:
    """What a server of this version can do. `aliases`: alias -> collection.

    `capacity_used`: see MAX_CAPACITY; None: unknown.
    """
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    number = (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (2, 3, 0)
    return TargetFacts(
        kind=kind,
        version=version,
        binary=True,
        collapses=False,
        strict_names=True,
        hyphens=number >= (2, 4, 19),
        min_dimension=2 if number >= (2, 4, 0) else 1,
        max_dimension=32768,
        max_partitions=1024,
        auto_index_only=kind == "zilliz",
        existing=existing,
        max_shards=MAX_SHARDS,
        max_description=1024 if number >= (2, 6, 0) else 60_000,
        capacity=None if capacity_used is None else MAX_CAPACITY - capacity_used,
        aliases=aliases or {},
        drops_aliased=number < (2, 4, 0),
    )
