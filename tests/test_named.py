"""Files that a person names and that are something else: one sentence, and soon."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.builder import StoreBuilder, rows
from support.command import call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(1, 2))
    return b.write()


def what_is_no_file(tmp_path: Path, kind: str) -> str:
    path = tmp_path / "named"
    if kind == "device":
        return "/dev/zero"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as f:
            f.truncate(1 << 40)
    elif kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "no day":
        path.write_text("a: 2001-99-99\n")
    else:
        path.write_bytes(b"\xff\xfe\x00")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "large", "deep", "no day", "bytes"])
@pytest.mark.parametrize("option", ["--partition-map", "task", "--rename-map", "--token-file", "--catalog"])
def test_a_file_that_is_none_is_one_sentence(option: str, kind: str, root: Path, tmp_path: Path) -> None:
    path = what_is_no_file(tmp_path, kind)
    if option == "--catalog" and kind in ("large", "deep", "no day", "bytes"):
        pytest.skip("a catalog is read page by page, or statement by statement")
    if option == "--token-file" and kind in ("deep", "no day"):
        pytest.skip("that is text")
    words: dict[str, tuple[object, ...]] = {
        "--partition-map": ("inspect", root, "--no-catalog", "--partition-map", path),
        "task": ("run", path),
        "--rename-map": ("load", root, tmp_path / "x.db", "--rename-map", path),
        "--token-file": ("load", root, "http://127.0.0.1:1", "--token-file", path),
        "--catalog": ("inspect", root, "--catalog", path),
    }
    outcome = call(*words[option])
    assert outcome.code == (1 if option == "--catalog" and kind in ("device", "pipe") else 2)
    assert "Traceback" not in outcome.err and len(outcome.err) < 600
    assert path in outcome.err


@pytest.mark.parametrize("place", ["c", "c/_default.h5", ".milvus-offline-ledger.jsonl", "manifest.json"])
def test_nothing_is_written_through_links(place: str, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("export", root, out).code == 0
    elsewhere = tmp_path / "elsewhere"
    if (out / place).exists():
        (out / place).rename(elsewhere)
    else:
        elsewhere.write_text((out / "manifest.json").read_text())
    before = [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in (elsewhere, *elsewhere.rglob("*"))]
    (out / place).symlink_to(elsewhere)
    outcome = call("export", root, out, "--overwrite")
    assert outcome.code == 2 and "nothing is written through links" in outcome.err
    assert [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in (elsewhere, *elsewhere.rglob("*"))] == before


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"id": 7, "result": {}}', '{"id": "x", "result": 7}', '{"id": {}, "result": {}}', "\x00", "null"]
)
def test_a_damaged_ledger_is_gone_on_with(line: str, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("export", root, out).code == 0
    whole = json.loads((out / "manifest.json").read_text())
    ledger = out / ".milvus-offline-ledger.jsonl"
    ledger.write_text(line + "\n")
    (out / "manifest.json").unlink()
    outcome = call("export", root, out, "--resume")
    assert outcome.code == 0, outcome.err
    assert json.loads((out / "manifest.json").read_text())["collections"] == whole["collections"]
