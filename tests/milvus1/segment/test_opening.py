"""What of a segment's folder can be read where files are cut, uneven, or of no field (FORMAT §4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.builder import StoreBuilder, bag, codes, content, rows

from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import Severity


@pytest.fixture
def hybrid(tmp_path: Path) -> StoreBuilder:
    builder = StoreBuilder(tmp_path / "s", version="1.0.0")
    builder.collection("c")
    builder.field("c", "age", 3)
    builder.field("c", "vec", 100)
    return builder


def test_an_attribute_with_too_few_values_is_not_believed(hybrid: StoreBuilder) -> None:
    files = hybrid.segment("c", rows(1, 2, 3), attributes={"age": np.array([10, 20, 30], "<i4")})
    (attribute,) = files.folder.glob("age.*")
    attribute.write_bytes((8).to_bytes(8, "little") + np.array([10, 20], "<i4").tobytes())
    store = open_store(hybrid.write())
    assert [(f.code, f.severity, f.rows) for f in store.findings] == [("attribute-short", Severity.ERROR, 3)]
    assert "age" in store.findings[0].message and "holds 2 values, expected 3" in store.findings[0].message
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3))}


def test_an_attribute_of_no_field_is_left_out(hybrid: StoreBuilder) -> None:
    ages = {"age": np.array([10, 20], "<i4"), "gone": np.array([1, 2], "<i4")}
    hybrid.segment("c", rows(1, 2), attributes=ages)
    store = open_store(hybrid.write())
    assert [(f.code, f.severity) for f in store.findings] == [("attribute-unknown", Severity.INFO)]
    assert list(store["c"]["_default"].read().attributes) == ["age"]


def test_bytes_that_make_no_whole_row_are_left_out(b: StoreBuilder) -> None:
    files = b.segment("c", rows(1, 2, 3))
    payload = files.raw.read_bytes()[8:] + b"\7" * 5
    files.raw.write_bytes(len(payload).to_bytes(8, "little") + payload)
    store = open_store(b.write())
    assert "payload-uneven" in codes(store)
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 3))}
