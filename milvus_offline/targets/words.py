"""Values that options and plans of targets can have, as the command line and the JSON documents spell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["error", "append", "skip", "overwrite"]
"""What becomes of a collection that the target has already."""
Names = Literal["error", "sanitize"]
Partitions = Literal["keep", "merge", "key"]
Duplicates = Literal["keep", "first", "last", "error"]
Nonfinite = Literal["error", "skip"]
Ids = Literal["keep", "auto"]
Index = Literal["keep", "auto", "none"]
Verify = Literal["none", "count", "sample", "full"]
Action = Literal["create", "recreate", "reuse", "append", "skip", "refused"]
"""What a load does with one collection of the target. `reuse`: it is there and empty; `refused`: in a dry run alone."""
Server = Literal["lite", "server", "zilliz"]
"""Kinds of a Milvus 2.x target."""


@dataclass(frozen=True, kw_only=True)
class LoadChoices:
    """What a person may choose for every load into Milvus 2.x."""

    mode: Mode = "error"
    names: Names = "error"
    partitions: Partitions = "keep"
    duplicates: Duplicates = "keep"
    nonfinite: Nonfinite = "error"
    ids: Ids = "keep"
    index: Index = "keep"
    metric: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
