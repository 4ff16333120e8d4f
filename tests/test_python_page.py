"""The code of docs/python.md runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.consoles import ROOT
from support.real import STORES


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 6
    names = {"PATH": STORES / "flat_basic" / "store", "OUT": tmp_path}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
