"""Every command that README and the documents show is run, and prints what they say it prints."""

from __future__ import annotations

import difflib

import pytest
from support.consoles import ROOT, rewritten

DOCUMENTS = [p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if "```console\n" in p.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_document_shows_is_what_comes_out(document: object) -> None:
    text = document.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    now = rewritten(text)
    difference = "\n".join(difflib.unified_diff(text.splitlines(), now.splitlines(), "as written", "as it is", lineterm=""))
    assert now == text, f"run scripts/update_docs.py --run\n{difference}"
