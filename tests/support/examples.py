"""The Python of a document, to be run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def examples(document: str, word: str) -> list[str]:
    """The ```python blocks of docs/`document` in which `word` stands."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if word in block]


def run_example(block: str, store: Path) -> dict[str, object]:
    """Runs a block with `store` in place of /mnt/milvus; returns what it defined."""
    names: dict[str, object] = {}
    exec(compile(block.replace("/mnt/milvus", str(store)), "<example>", "exec"), names)
    return names
