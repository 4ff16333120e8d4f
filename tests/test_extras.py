"""What to type where an optional package is missing fits the installation that lacks it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder, rows
from support.command import call

import milvus_offline
from milvus_offline.errors import pip_install


def _pip_in(folder: Path) -> str:
    folder.mkdir()
    (folder / "pip").write_text("#!/bin/sh\n")
    (folder / "pip").chmod(0o755)
    return str(folder)


def test_in_an_activated_environment_pip_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", _pip_in(tmp_path / "bin"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert pip_install("lite") == "pip install 'milvus-offline[lite]'"


@pytest.mark.parametrize("there", [True, False], ids=["another pip", "no pip"])
def test_elsewhere_the_python_of_this_installation_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setenv("PATH", _pip_in(tmp_path / "bin") if there else str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my tools" / "python"))
    assert pip_install("lite") == f"'{tmp_path}/my tools/python' -m pip install 'milvus-offline[lite]'"


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, an export of it as Parquet, and a dump that is packed with zstd."""
    folder = tmp_path_factory.mktemp("extras")
    b = StoreBuilder(folder / "store")
    b.collection("faces")
    b.segment("faces", rows(1, 2))
    b.write()
    milvus_offline.export(folder / "store", folder / "parquet", file_format="parquet")
    (folder / "meta.sql.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(60))
    return folder


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("pyarrow", "parquet", "export store out --format parquet"),
        ("pyarrow", "parquet", "inspect parquet"),
        ("pyarrow", "parquet", "verify parquet --against store"),
        ("pyarrow", "parquet", "load parquet/faces milvus1:new"),
        ("pyarrow", "parquet", "inspect store --catalog meta.sql.zst"),
        ("hdf5plugin", "compress", "export store out --compression zstd"),
        ("milvus_lite", "lite", "load store x.db"),
        ("distributed", "dask", "export store out --cluster dask://127.0.0.1:1"),
        ("s3fs", "s3", "inspect s3://bucket/store"),
        ("s3fs", "s3", "export store s3://bucket/out --format npy"),
        ("gcsfs", "gcs", "inspect gs://bucket/store"),
        ("adlfs", "azure", "inspect az://bucket/store"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(
    package: str, extra: str, words: str, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import _registry as imported

    from milvus_offline import buckets

    for scheme in ("s3", "gs", "az"):  # fsspec remembers what it has imported once
        monkeypatch.delitem(imported, scheme, raising=False)
    buckets.forget()
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(there)
    done = call(*words.split())
    option = re.search("--(format parquet|compression|cluster)", words)
    assert (done.code, len(done.err.splitlines())) == (2 if option else 1, 1), done.err
    assert done.err.rstrip().endswith(pip_install(extra))
    assert not (there / "out").exists() and not (there / "new").exists()


ROWS: dict[str, Callable[[Any], Any]] = {
    "pyarrow": lambda faces: faces.to_arrow(),
    "pandas": lambda faces: faces.to_pandas(),
}


@pytest.mark.parametrize("package", ROWS)
def test_a_table_names_the_extra_that_it_lacks(package: str, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    faces = milvus_offline.open_store(there / "store")["faces"]
    extra = {"pyarrow": "parquet"}.get(package, package)
    for rows_of in (faces, faces["_default"]):
        with pytest.raises(milvus_offline.MilvusOfflineError) as told:
            ROWS[package](rows_of)
        assert str(told.value).endswith(pip_install(extra))


@pytest.mark.parametrize(("module", "package"), [("ray", "ray.data"), ("spark", "pyspark.sql.datasource")])
def test_an_engine_names_the_extra_that_it_lacks(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"milvus_offline.engines.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as told:
        importlib.import_module(f"milvus_offline.engines.{module}")
    assert pip_install(module) in str(told.value)


def test_an_installation_that_is_not_whole_says_what_mends_it(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (there / "x.yaml").write_text("jobs: 2")
    done = call("inspect", there / "store", "--config", there / "x.yaml")
    assert (done.code, done.err) == (1, f"milvus-offline: this installation lacks the package yaml: {pip_install()}\n")
