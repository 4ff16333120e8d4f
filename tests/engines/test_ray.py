"""A store as a Ray dataset: read by Ray's own workers, it is the truth of every store."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder, rows
from support.examples import examples, run_example
from support.real import STORES, truth
from support.tables import bag_of_batches, bag_of_truth, catalog_of, collections

from milvus_offline.errors import UsageError

pytestmark = pytest.mark.server

ray = pytest.importorskip("ray")

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    for attempt in range(5):
        try:
            ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            break
        except RuntimeError:  # its servers have 30 s to start, which a busy machine may not give them
            ray.shutdown()
            if attempt == 4:
                raise
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


def source(*arguments: Any, **options: Any) -> Any:
    from milvus_offline.engines.ray import MilvusOffline

    return MilvusOffline(*arguments, **options)


def test_the_workers_read_the_truth_of_every_store(cluster: Any) -> None:
    @ray.remote
    def read(task: Any) -> list[Any]:
        return list(task())

    wanted, tasks = {}, {}
    for name in NAMES:
        for collection in collections(name):
            wanted[name, collection] = bag_of_truth(truth(name), collection)
            made = source(STORES / name / "store", collection, **catalog_of(name)).get_read_tasks(4)
            assert sum(t.metadata.num_rows for t in made) == wanted[name, collection].total()
            tasks[name, collection] = [read.remote(t) for t in made]
    for place, futures in tasks.items():
        assert bag_of_batches(t for part in ray.get(futures) for t in part) == wanted[place], place


def test_a_dataset_is_the_collection(cluster: Any) -> None:
    dataset = ray.data.read_datasource(source(STORES / "partitions" / "store", "parts"))
    found = bag_of_batches(dataset.iter_batches(batch_format="pyarrow", batch_size=None))
    assert found == bag_of_truth(truth("partitions"), "parts")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    year = builder.partition("faces", "2019")["table_id"]
    builder.segment("faces", rows(range(100), dim=8), deleted=[1])
    builder.segment(year, rows(range(200, 230), dim=8))
    return builder.write()


def test_the_example_of_the_documents_runs(cluster: Any, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = examples("engines.md", "import ray")
    run_example(block, faces)
    assert "129" in capsys.readouterr().out


def test_partitions_are_chosen_and_tasks_are_small_values(faces: Path) -> None:
    chosen = source(faces, partition="20*")
    assert chosen.estimate_inmemory_data_size() == 30 * (32 + 8)
    (task,) = chosen.get_read_tasks(8)
    from ray import cloudpickle

    assert len(cloudpickle.dumps(task.read_fn)) < 4096
    assert bag_of_batches(pickle.loads(cloudpickle.dumps(task.read_fn))()).total() == 30


def test_several_collections_are_refused(tmp_path: Path) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("a")
    builder.collection("b")
    with pytest.raises(UsageError, match=r"expected one collection, found 2 \(a, b\)"):
        source(builder.write())


def test_a_machine_that_does_not_see_the_store_says_so(faces: Path) -> None:
    (task, *_) = source(faces).get_read_tasks(1)
    faces.rename(faces.with_name("elsewhere"))
    with pytest.raises(Exception, match="does not see this file: every worker needs the store under the same path"):
        list(task())
