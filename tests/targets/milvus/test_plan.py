"""What a plan says of the rows and of the target, before anything is created: no server is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support.array_source import ArraySource

from milvus_offline.errors import UsageError
from milvus_offline.model import Schema, VectorType
from milvus_offline.targets.milvus.limits import server_facts
from milvus_offline.targets.milvus.plan import make_plan
from milvus_offline.targets.milvus.scan import scan
from milvus_offline.targets.milvus.terms import Existing, LoadOptions, Plan

HELD = Existing(5, 4, VectorType.FLOAT, "id", False, "vector", None, "L2", ("_default",))
SERVER = server_facts("server", "v2.4.1", {})


def vectors(n: int, *, unit: bool = False) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(1).standard_normal((n, 4)).astype("<f4")
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True) if unit else drawn


def planned(numbers: list[int], facts: Any = SERVER, *, metric: str = "L2", unit: bool = False, **options: Any) -> Plan:
    """The plan of a collection `c` with these numbers as ids in the partition `_default` and one row in `p`."""
    rows = np.array(numbers, np.int64), vectors(len(numbers), unit=unit)
    other = np.array([100], np.int64), vectors(1, unit=unit)
    schema = Schema("c", 4, VectorType.FLOAT, metric)
    source = ArraySource({"c": {"_default": [rows], "p": [other]}}, {"c": schema})
    (collection,) = source.collections
    chosen = LoadOptions(**options)
    found = scan(collection, drop_duplicates=chosen.duplicates if chosen.duplicates in ("first", "last") else None)
    return make_plan([collection], {"c": found}, chosen, facts)


def codes(plan: Plan) -> dict[str, int | None]:
    return {f.code: f.rows for f in plan.findings}


@pytest.mark.parametrize("keep", ["first", "last"])
def test_rows_of_an_id_are_left_out_as_asked(keep: str) -> None:
    assert codes(planned([1, 2, 2, 2], duplicates=keep)) == {"duplicates-dropped": 2}


def test_a_server_holds_all_rows_of_an_id() -> None:
    assert codes(planned([1, 2, 2])) == {"duplicates-kept": 1}


def test_rows_of_an_id_can_be_an_error() -> None:
    with pytest.raises(UsageError, match=r"1 row repeats an id \(1 id: 2\): choose --duplicates"):
        planned([1, 2, 2], duplicates="error")


def test_the_largest_id_is_not_shown_by_servers() -> None:
    assert codes(planned([1, 2**63 - 1])) == {"id-not-shown": 1}


def test_new_ids_replace_those_of_the_source() -> None:
    assert codes(planned([1, 2, 2], ids="auto")) == {"ids-replaced": None}


def test_partitions_become_one_as_asked() -> None:
    plan = planned([1, 2], partitions="merge")
    assert "partitions-merged" in codes(plan)
    assert {p.target for p in plan.collections[0].partitions} == {"_default"}


def test_a_collection_that_is_there_is_left_alone_as_asked() -> None:
    plan = planned([1, 2], server_facts("server", "v2.4.1", {"c": HELD}), mode="skip")
    assert (plan.collections[0].action, list(codes(plan))) == ("skip", ["skipped"])


def test_vectors_of_length_one_could_have_another_metric() -> None:
    assert codes(planned([1, 2, 3], metric="IP", unit=True)) == {"unit-vectors": None}
    assert codes(planned([1, 2, 3], metric="IP")) == {}
