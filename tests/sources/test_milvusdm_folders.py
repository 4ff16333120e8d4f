"""The folders that MilvusDM's M2H writes of real stores: both layouts of its three versions, bits as strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from support.builder import content
from support.command import call, exported, manifest
from support.real import STORES

from milvus_offline.milvus1.opening import open_store
from milvus_offline.model import VectorType

NAMES = sorted(p.name for p in STORES.iterdir() if (p / "store").is_dir())


def m2h(store: Any, rows: Any, run: Path, *, first_version: bool) -> None:
    """Version 0.1 joins collection and tag in a file's name; 1.0 and 2.0 make a folder of each collection.

    Bits of several segments, or of one with deletions, come out as strings of a fixed length; of one alone as uint8.
    """
    for collection in store.collections:
        schema = collection.schema
        binary = schema.vector_type is VectorType.BINARY
        for partition in collection.partitions:
            tag = None if partition.name == "_default" else partition.name
            name = f"{schema.name}_{tag}" if first_version else f"{schema.name}/{tag}"
            found = sorted(rows[schema.name, partition.name].elements())
            width = schema.dimension // 8 if binary else schema.dimension
            ids = np.array([i for i, _ in found], np.int64)
            vectors = np.frombuffer(b"".join(v for _, v in found), schema.vector_type.dtype).reshape(len(found), width)
            if binary and len(found) and (len(partition.segments) != 1 or partition.segments[0].deleted):
                vectors = np.array([v for _, v in found], f"S{schema.dimension // 8}")
            path, described = run / f"{name}.h5", run / "yamls" / f"{name}.yaml"
            for place in (path, described):
                place.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(path, "w") as h:
                h["embeddings"], h["ids"] = vectors, ids
            body = {
                "milvus-version" if first_version else "milvus_version": "1.x",
                "data_path": [f"/data/out/{name}.h5"],
                "data_dir": None,
                "dest_host": "127.0.0.1",
                "dest_port": 19530,
                "mode": "skip",
                "dest_collection_name": schema.name,
                "dest_partition_name": tag,
                "collection_parameter": {
                    "dimension": schema.dimension,
                    "index_file_size": 1024,
                    "metric_type": schema.metric_type,
                },
            }
            described.write_text(yaml.dump({"H2M": body}))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_folder_of_a_real_store_is_read_exactly(name: str, tmp_path: Path) -> None:
    dump = STORES / name / "store" / "meta.default.sql"
    store = open_store(STORES / name / "store", dump if dump.exists() else None)
    rows = content(store)
    for first_version in (True, False):
        run, out = tmp_path / f"run{first_version}", tmp_path / f"out{first_version}"
        run.mkdir()
        m2h(store, rows, run, first_version=first_version)
        done = call("export", run, out)
        assert (done.code, done.err) == (0, "")
        assert exported(out) == rows
        metrics = {c["name"]: c["metric_type"] for c in manifest(out)["collections"]}
        assert metrics == {c.schema.name: c.schema.metric_type for c in store.collections}


@pytest.mark.parametrize("name", ["binary", "partitions"])
def test_it_is_loaded_exactly(name: str, tmp_path: Path) -> None:
    store = open_store(STORES / name / "store")
    m2h(store, content(store), tmp_path / "run", first_version=False)
    assert call("load", tmp_path / "run", f"milvus1:{tmp_path / 'new'}").code == 0
    assert content(open_store(tmp_path / "new")) == content(store)
