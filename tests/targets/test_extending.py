"""The target that docs/extending.md describes is one module and one line, and works."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command import call
from support.real import STORES, truth

from milvus_offline import targets
from milvus_offline.targets import Kind

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


def shown(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)^```$", TEXT, re.S | re.M)
    assert found
    return found[1]


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "milvus_offline.targets.arrays"
    (tmp_path / "arrays.py").write_text(shown("file: milvus_offline/targets/arrays.py"))
    spec = importlib.util.spec_from_file_location(name, tmp_path / "arrays.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    kind = eval(shown("line"), {"Kind": Kind})
    monkeypatch.setattr(targets, "SCHEMES", [kind, *targets.SCHEMES])


@pytest.mark.usefixtures("registered", "own_state")
def test_the_toy_target_loads_a_real_store(tmp_path: Path) -> None:
    target = f"arrays:{tmp_path / 'out'}"
    assert call("load", STORES / "binary" / "store", target, "--dry-run").code == 0
    assert not (tmp_path / "out").exists()
    done = call("load", STORES / "binary" / "store", target)
    assert done.code == 0, done.err
    for (collection, partition), rows in truth("binary").items():
        folder = tmp_path / "out" / collection / partition
        ids, vectors = np.load(folder / "ids.npy"), np.load(folder / "vectors.npy")
        assert sorted((int(i), v.tobytes()) for i, v in zip(ids, vectors, strict=True)) == sorted(rows.elements())
    assert call("load", STORES / "binary" / "store", target).code == 2


@pytest.mark.usefixtures("registered")
def test_options_that_do_not_go_with_it_are_refused(tmp_path: Path) -> None:
    refused = call("load", STORES / "binary" / "store", f"arrays:{tmp_path / 'out'}", "--shards", 5)
    assert refused.code == 2 and "--shards does not go with arrays:PATH" in refused.err
