"""A store as a Spark table, read by Spark's own workers."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.absent import absent
from support.builder import StoreBuilder, rows
from support.examples import ROOT, examples, run_example
from support.real import STORES, truth
from support.tables import bag_of_batches, bag_of_truth, catalog_of, collections, octets

pytestmark = pytest.mark.server

pytest.importorskip("pyspark")

NAMES = sorted(p.parent.name for p in STORES.glob("*/truth.json"))


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    if shutil.which("java") is None:
        absent("Spark needs Java (apt-get install default-jre-headless): the Spark reader was NOT tested in Spark")
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()
        yield session
        session.stop()


def test_the_reader_gives_the_truth_of_every_store() -> None:
    from milvus_offline.engines.spark import MilvusOffline

    for name in NAMES:
        for collection in collections(name):
            options = {"path": str(STORES / name / "store"), "collection": collection, **catalog_of(name)}
            reader = MilvusOffline(options).reader(None)
            found = bag_of_batches(b for part in reader.partitions() for b in reader.read(part))
            assert found == bag_of_truth(truth(name), collection), (name, collection)


def test_sparks_workers_read_the_truth_of_every_store(spark: Any) -> None:
    from pyspark.sql.functions import lit

    from milvus_offline.engines.spark import MilvusOffline

    spark.dataSource.register(MilvusOffline)
    frames: dict[str, Any] = {}  # one job for each type of vectors
    wanted, found = Counter[Any](), Counter[Any]()
    for name in NAMES:
        bags = {c: bag_of_truth(truth(name), c) for c in collections(name)}
        collection = max(bags, key=lambda c: len(bags[c]))
        reader = spark.read.format("milvus1").option("collection", collection).options(**catalog_of(name))
        frame = reader.load(str(STORES / name / "store")).select(lit(name).alias("store"), "partition", "id", "vector")
        kind = frame.schema["vector"].dataType.typeName()
        frames[kind] = frames[kind].union(frame) if kind in frames else frame
        wanted.update((name, *row) for row in bags[collection].elements())
    for frame in frames.values():
        found.update((r.store, r.partition, r.id, octets(r.vector)) for r in frame.collect())
    assert set(frames) == {"array", "binary"}
    assert found == wanted


def test_the_example_of_the_documents_runs(spark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder = StoreBuilder(tmp_path / "store")
    builder.collection("faces", dim=8)
    builder.segment("faces", rows(range(100), dim=8))
    builder.segment(builder.partition("faces", "2019")["table_id"], rows(range(200, 230), dim=8), deleted=[0])
    (block,) = examples("engines.md", "SparkSession")
    run_example(block, builder.write())
    assert capsys.readouterr().out.strip().endswith("29")


@pytest.mark.parametrize("parts", ["", "0", "-1", "many", "1.5"])
def test_the_number_of_tasks_is_a_number(parts: str) -> None:
    from milvus_offline.engines.spark import MilvusOffline
    from milvus_offline.errors import UsageError

    with pytest.raises(UsageError, match=f"parts: expected a number of tasks, 1 or more, found '{parts}'"):
        MilvusOffline({"path": "nowhere", "parts": parts}).reader(None)


def test_a_path_must_be_named() -> None:
    from milvus_offline.engines.spark import MilvusOffline
    from milvus_offline.errors import UsageError

    with pytest.raises(UsageError, match=r"expected \.option"):
        MilvusOffline({}).schema()


def test_an_unknown_option_is_named() -> None:
    from milvus_offline.engines.spark import MilvusOffline
    from milvus_offline.errors import UsageError

    with pytest.raises(UsageError, match="there is no option colection; there are: path, collection"):
        MilvusOffline({"path": "nowhere", "colection": "faces"}).schema()
