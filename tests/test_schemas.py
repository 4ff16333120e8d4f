"""Every document of --json, and the manifest, is what docs/schemas says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command import call
from support.real import STORES

pytestmark = pytest.mark.slow

jsonschema = pytest.importorskip("jsonschema")
SCHEMAS = Path(__file__).resolve().parents[1] / "docs" / "schemas"
NAMES = sorted(p.parent.name for p in STORES.glob("*/store") if not p.parent.name.startswith("mysql"))


def check(name: str, document: Any) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


@pytest.mark.parametrize("name", NAMES)
def test_documents_of_real_stores(name: str, tmp_path: Path) -> None:
    store = STORES / name / "store"
    check("inspect", call("inspect", store, "--json").json)
    check("verify", call("verify", store, "--json").json)
    check("export", call("export", store, tmp_path / "out", "--json").json)
    check("manifest", json.loads((tmp_path / "out" / "manifest.json").read_text()))
    check("verify", call("verify", tmp_path / "out", "--against", store, "--json").json)
    check("inspect", call("inspect", tmp_path / "out", "--json").json)
    check("load", call("load", store, f"milvus1:{tmp_path / 'new'}", "--json").json)
    check("rows", call("rows", store, "-n", "2", "--json").json)


def test_search_explain_and_errors(tmp_path: Path) -> None:
    store = STORES / "crash_rand_3" / "store"
    found = call("rows", store, "-c", "b", "-n", "1", "--json").json["collections"][0]["rows"][0]["id"]
    check("search", call("search", store, "-c", "b", "--id", found, "-k", "3", "--json").json)
    check("explain", call("explain", "wal-rows", "--json").json)
    check("error", call("inspect", tmp_path / "nothing", "--json").json)
