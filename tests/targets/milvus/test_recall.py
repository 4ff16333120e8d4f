"""Searches of a target held against exact search over the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.array_source import ArraySource, bits, floats
from support.milvus_server import shared_milvus

from milvus_offline.findings import Findings
from milvus_offline.loading import run_compare, run_load
from milvus_offline.model import Batch, IndexSpec
from milvus_offline.targets import open_target
from milvus_offline.targets.milvus.recall import _Loaded, recall

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shared_milvus(tmp_path_factory).uri)


FLOATS = ("L2", "IP", "COSINE")
BITS = ("HAMMING", "JACCARD", "SUBSTRUCTURE", "SUPERSTRUCTURE")


def source(*metrics: str, index: IndexSpec | None = None, rows: int = 400) -> ArraySource:
    """A collection of two partitions for each metric."""
    data, schemas, half = {}, {}, rows // 2
    for metric in metrics:
        vectors = floats(rows, 8) if metric in FLOATS else bits(rows, 32)
        if metric.endswith("STRUCTURE"):  # few bits: some rows have all bits of another
            vectors = vectors & bits(rows, 32, 1) & bits(rows, 32, 2)
        ids = np.arange(rows)
        data[f"recall_{metric.lower()}"] = {"_default": [(ids[:half], vectors[:half])], "p": [(ids[half:], vectors[half:])]}
    for c in ArraySource(data).collections:
        metric = c.schema.name.split("_", 1)[1].upper()
        schemas[c.schema.name] = replace(c.schema, metric_type=metric, index=index or c.schema.index)
    return ArraySource(data, schemas)


def searched(of: Any, target: str, state: Path, **options: Any) -> Findings:
    report = run_load(of, open_target(target, mode="overwrite", **options), state=state)
    assert report.exit_code in (0, 3)
    return run_compare(of, open_target(target), searches=100)[1]


@pytest.mark.parametrize("where", ["lite", "server"])
def test_an_exact_index_gives_the_exact_nearest(where: str, server: str, tmp_path: Path) -> None:
    lite = where == "lite"
    of = source(*FLOATS, *([] if lite else BITS))
    of.data = {**of.data, "recall_twice": {"_default": [(np.arange(200) // 2, floats(200, 8))]}}
    *notes, last = searched(of, str(tmp_path / "x.db") if lite else server, tmp_path / "1")
    for metric, note in zip((*FLOATS, *BITS), notes, strict=False):
        index = "FLAT" if metric in FLOATS else "BIN_FLAT"
        assert note.message == f"100 searches for sampled rows give the exact 10 nearest ({index}, {metric})"
    assert len(notes) == (3 if lite else 7)
    assert ("exact 10 nearest" if lite else "repeat an id, of which a server's search gives one") in last.message


def test_other_vectors_give_other_hits(tmp_path: Path) -> None:
    of, lite = source("L2"), str(tmp_path / "x.db")
    assert run_load(of, open_target(lite), state=tmp_path / "1").exit_code == 0
    other = ArraySource(
        {
            "recall_l2": {
                tag: [(ids, vectors[::-1].copy()) for ids, vectors in pieces] for tag, pieces in of.data["recall_l2"].items()
            }
        }
    )
    _, notes = run_compare(other, open_target(lite), searches=20)
    (found,) = [f for f in notes if f.code == "search-differs"]
    assert (found.severity.value, found.rows) == ("error", 20)


def test_of_an_approximate_index_the_recall_is_told_with_what_reaches_95_percent(tmp_path: Path) -> None:
    made = source("L2", index=IndexSpec("IVF_FLAT", {"nlist": 64}), rows=3000)
    (note,) = searched(made, str(tmp_path / "x.db"), tmp_path / "1")
    assert (note.code, note.severity.value) == ("search-recall", "info")
    assert "nprobe 16 (100 searches); nprobe " in note.message
    assert " reaches " in note.message


def test_a_target_with_other_rows_is_not_searched(tmp_path: Path) -> None:
    of, lite = source("L2"), str(tmp_path / "x.db")
    run_load(of, open_target(lite), state=tmp_path / "1")
    more = ArraySource({"recall_l2": {"_default": [(np.arange(900, 910), floats(10, 8, 5))]}})
    run_load(more, open_target(lite, mode="append"), state=tmp_path / "2")
    _, notes = run_compare(of, open_target(lite), searches=20)
    assert "searches were not compared" in " ".join(f.message for f in notes)


@pytest.mark.parametrize("dropped", [[], [100, 101], [102, 105, 106, 119, 120], list(range(100, 120)), [3, 99, 120]])
def test_a_row_is_found_without_those_before_it_and_those_left_out(dropped: list[int]) -> None:
    begun: list[int] = []

    class Begun:
        id, rows = "a", 20

        def batches(self, max_bytes: int, start: int) -> Iterator[Batch]:
            begun.append(start)
            for n in range(start, 20):
                yield Batch(np.array([n + 100]), floats(1, 8, n))

    kept = [n for n in range(100, 120) if n not in dropped]
    piece = _Loaded(Begun(), 100, np.array(dropped, np.int64), False)
    assert piece.rows == len(kept)
    for start in range(len(kept)):
        begun.clear()
        assert [int(b.ids[0]) for b in piece.batches(1, start)] == kept[start:]
        assert begun == [kept[start] - 100]
    assert list(piece.batches(1, len(kept))) == []


def test_recall_counts_rows_of_equal_distance_as_found() -> None:
    def hits(*pairs: tuple[int, float]) -> Any:
        return np.array([i for i, _ in pairs]), np.array([d for _, d in pairs])

    exact = hits(*((i, float(min(i, 9))) for i in range(14)))  # five rows are the tenth nearest
    assert recall([exact], [hits(*((i, float(i)) for i in range(9)), (13, 9.0))]) == 1.0
    assert recall([exact], [hits(*((i, 0.0) for i in range(5)), *((i, 0.0) for i in range(90, 95)))]) == 0.5
    assert recall([hits()], [hits()]) == 1.0
