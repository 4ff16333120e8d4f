"""Google's and Azure's object stores, by their emulators: stores are read there and exports written, as on a disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.absent import absent
from support.command import call, exported
from support.real import STORES, truth

from milvus_offline import buckets
from milvus_offline.buckets.objects import objects
from milvus_offline.buckets.ranges import is_listed
from milvus_offline.errors import StoreError

pytestmark = pytest.mark.server

BUCKET = "backup"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key that Microsoft documents for its emulator."""


def _emulator(scheme: str, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command of an emulator, and what a client needs to find it; skips loudly where there is none."""
    where = f"http://127.0.0.1:{port}"
    if scheme == "gs":
        if importlib.util.find_spec("gcp_storage_emulator") is None or importlib.util.find_spec("gcsfs") is None:
            absent("no gcp-storage-emulator or gcsfs: gs:// is NOT tested")
        command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
        client = {
            "STORAGE_EMULATOR_HOST": where,
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC, which the emulator does not speak
        }
        return [*command, "--default-bucket", BUCKET, "--in-memory", "--quiet"], client
    program = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if program is None or importlib.util.find_spec("adlfs") is None:
        absent("no azurite-blob (npm install azurite; AZURITE_BLOB names it) or adlfs: az:// is NOT tested")
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    account = f"AccountName=devstoreaccount1;AccountKey={_KEY};BlobEndpoint={where}/devstoreaccount1;"
    client = {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account}"}
    return [*command, "--skipApiVersionCheck"], client


def _wait(port: int) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < until, "the emulator does not start"
            time.sleep(0.1)


@pytest.fixture(scope="module", params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The scheme, and a client of another make to prepare the bucket with."""
    import fsspec

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command, client = _emulator(request.param, port, tmp_path_factory.mktemp("cloud"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in client.items():
                patch.setenv(name, value)
            buckets.forget()
            fs = fsspec.filesystem(request.param, use_listings_cache=False, skip_instance_cache=True)
            if request.param == "az":
                fs.mkdir(BUCKET)
            yield request.param, fs
        buckets.forget()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("name", ["binary", "crash_wal"])
def test_a_store_is_read_there(name: str, cloud: tuple[str, Any], tmp_path: Path) -> None:
    scheme, fs = cloud
    root = STORES / name / "store"
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        fs.pipe_file(f"{BUCKET}/cold/{name}/{path.relative_to(root).as_posix()}", path.read_bytes())
    url = f"{scheme}://{BUCKET}/cold/{name}"
    for command in ("inspect", "verify"):
        there, here = call(command, url, "--json"), call(command, root, "--json")
        assert there.code == here.code == 0, there.err
        assert [f["code"] for f in there.json["findings"]] == [f["code"] for f in here.json["findings"]]
    assert call("export", url, tmp_path / "out").code == 0
    assert exported(tmp_path / "out") == truth(name)


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_an_export_is_written_there(form: str, cloud: tuple[str, Any]) -> None:
    scheme, fs = cloud
    out, store = f"{scheme}://{BUCKET}/out-{form}", STORES / "flat_basic" / "store"
    done = call("export", store, out, "--format", form)
    assert done.code == 0, done.err
    buckets.forget()
    verified = call("verify", out, "--against", store)
    assert verified.code == 0, verified.err
    assert "complete export" in call("export", store, out, "--format", form).err
    assert call("export", store, out, "--format", form, "--overwrite").code == 0
    assert not [name for name in fs.find(f"{BUCKET}/out-{form}") if "ledger" in name]


def test_what_is_not_there_is_said_in_one_sentence(cloud: tuple[str, Any]) -> None:
    scheme, _ = cloud
    store = STORES / "flat_basic" / "store"
    for words, said in (
        (["inspect", f"{scheme}://no-such-bucket/x"], "no bucket 'no-such-bucket'"),
        (["inspect", f"{scheme}://{BUCKET}/nothing"], "there is no such file or folder"),
        (["inspect", f"{scheme}://"], f"did you mean {scheme}://BUCKET/FOLDER?"),
        (["export", store, f"{scheme}://no-such-bucket/x", "--format", "npy"], "no bucket 'no-such-bucket'"),
        (["load", store, f"milvus1:{scheme}://{BUCKET}/new"], "is not a folder on this machine"),
    ):
        done = call(*words)
        assert done.code in (1, 2)
        assert said in done.err and len(done.err.strip().splitlines()) == 1, done.err


def test_what_keeps_clients_away_is_told_in_each_clouds_words() -> None:
    from milvus_offline.buckets.failures import explain

    silent = pytest.importorskip("azure.core.exceptions").ServiceRequestError("Cannot connect to host 127.0.0.1:9")
    assert explain(silent, "az://b/x").startswith("az://b/x: cannot reach the object store: Cannot connect")
    for url, words in (("az://b", "AZURE_STORAGE_CONNECTION_STRING"), ("gs://b", "GOOGLE_APPLICATION_CREDENTIALS")):
        told = explain(ValueError("no credentials"), url)
        assert told.startswith(f"{url}: no credentials were found: give them") and words in told


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_an_address_that_nobody_listens_at_is_said(scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buckets.forget()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    _, client = _emulator(scheme, 9, tmp_path)
    for name, value in client.items():
        monkeypatch.setenv(name, value)
    done = call("inspect", f"{scheme}://{BUCKET}/x")
    assert done.code == 1
    assert f"{scheme}://: cannot reach the object store at 127.0.0.1:9: Connection refused" in done.err
    buckets.forget()


def test_an_object_that_was_replaced_after_it_was_listed_ends_the_run(cloud: tuple[str, Any]) -> None:
    """Azure's ETag says so. Google is asked for the generation that it listed, which the emulator does not know."""
    scheme, fs = cloud
    buckets.forget()
    store = objects(scheme)
    for name in ("kept", "replaced"):
        fs.pipe_file(f"{BUCKET}/now/{name}", b"0123456789")
    store.mount(f"{BUCKET}/now")
    fs.pipe_file(f"{BUCKET}/now/replaced", b"9876543210")
    kept, replaced = (store.known(f"{BUCKET}/now/{name}") for name in ("kept", "replaced"))
    assert kept is not None and replaced is not None
    assert store.fetch(kept, 2, 6) == b"2345"
    if scheme == "az":
        assert is_listed(scheme, store.fs, kept.key, kept.tag)
        assert not is_listed(scheme, store.fs, replaced.key, replaced.tag)
        with pytest.raises(StoreError, match=r"now/replaced: this object was replaced after it was listed"):
            store.fetch(replaced, 2, 6)
    assert store.fetch(kept, 0, 10) == b"0123456789"
    fs.rm_file(f"{BUCKET}/now/kept")
    with pytest.raises(StoreError, match=r"now/kept: this object was removed (or replaced )?after it was listed"):
        store.fetch(kept, 0, 10)
    buckets.forget()
