"""Values that options and plans of targets can have, as the command line and the JSON documents spell them."""

from __future__ import annotations

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
