"""Finding a store and its parts, with a configuration whose paths are those of another machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, content, rows

from milvus_offline.milvus1.location import Config, locate, read_config
from milvus_offline.milvus1.opening import open_store

V1 = """\
version: 0.5
general:
  meta_uri: sqlite://:@:/
storage:
  path: /srv/milvus
wal:
  enable: true
  path: {wal}
"""
V08 = """\
version: 0.3
db_config:
  backend_url: sqlite://:@:/
storage_config:
  primary_path: /srv/milvus
  secondary_path: {secondary}
wal_config:
  enable: {enable}
  wal_path: /srv/milvus/wal
"""


def store_with_log(folder: Path, **more: int) -> StoreBuilder:
    b = StoreBuilder(folder, **more)
    b.collection("c")
    b.segment("c", rows(1))
    b.wal.insert("c", rows(2))
    return b


@pytest.mark.parametrize("place", ["", "conf", "..", "../conf"])
def test_configuration_is_found(place: str, tmp_path: Path) -> None:
    root = store_with_log(tmp_path / "up" / "store").write()
    (root / place).mkdir(exist_ok=True)
    (root / place / "server_config.yaml").write_text(V1.format(wal="/srv/milvus/wal"))
    found = locate(root)
    assert found.config.storage_path == "/srv/milvus"
    assert (found.root, found.roots, found.meta, found.wal) == (root, (root / "db",), root / "db" / "meta.sqlite", root / "wal")
    assert found.findings == ()


@pytest.mark.parametrize(
    ("configured", "here", "mapped"),
    [
        ("/srv/milvus/wal", "store/wal", False),
        ("/srv/milvus/logs/wal2", "store/logs/wal2", False),
        ("/srv/milvus-log", "milvus-log", True),
        ("/elsewhere/log", "store/wal", True),
    ],
)
def test_log_at_a_configured_place(configured: str, here: str, mapped: bool, tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store")
    b.config(V1.format(wal=configured))
    b.wal_folder = tmp_path / here
    store = open_store(b.write())
    assert store.location.wal == tmp_path / here
    assert ("path-mapped" in [f.code for f in store.findings]) == mapped
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}


def test_log_at_a_configured_place_that_is_here(tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store")
    b.wal_folder = tmp_path / "other" / "log"
    b.config(V1.format(wal=b.wal_folder))
    assert open_store(b.write()).location.wal == b.wal_folder


def test_secondary_roots_of_a_copied_volume(tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store", secondaries=2)
    b.segment("c", rows(5), root=1)
    b.segment("c", rows(6), root=2)
    b.config(V08.format(secondary="/disks/store-secondary0;/disks/store-secondary1", enable="true"))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1, 2, 5, 6))}
    mapped = [f for f in store.findings if f.code == "path-mapped"]
    assert len(mapped) == 2 and "/disks/store-secondary0" in mapped[0].message
    shutil.rmtree(b.roots[2])
    missing = [f for f in open_store(b.root).findings if f.code == "secondary-missing"]
    assert len(missing) == 1 and "/disks/store-secondary1" in missing[0].message and "--secondary" in missing[0].message
    assert content(open_store(b.root, secondary=[b.roots[1]]))["c", "_default"] == bag(rows(1, 2, 5))


def test_the_log_of_a_copy_goes_before_that_of_the_machine(tmp_path: Path) -> None:
    """The configured place is here as well, but may be that of a living server."""
    root = store_with_log(tmp_path / "copy").write()
    shutil.copytree(root / "wal", tmp_path / "log")
    (root / "server_config.yaml").write_text(V1.format(wal=tmp_path / "log"))
    found = locate(root)
    assert found.wal == root / "wal"
    assert [(f.code, f.severity.value, str(tmp_path / "log") in f.message) for f in found.findings] == [
        ("path-mapped", "warning", True)
    ]
    assert locate(root, wal=tmp_path / "log").findings == ()
    (root / "server_config.yaml").write_text(V1.format(wal=tmp_path / "log").replace("/srv/milvus", str(root)))
    assert (locate(root).wal, locate(root).findings) == (tmp_path / "log", ()), "not moved: the configuration is right"


def test_log_that_was_switched_off(tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store")
    b.config(V08.format(secondary="", enable="false"))
    store = open_store(b.write())
    assert content(store) == {("c", "_default"): bag(rows(1))}
    assert [f.code for f in store.findings] == ["wal-disabled"]


SENSELESS = ["", "just words", "[1, 2]", "storage: 5\nwal: [x]", "storage:\n  path:", "a: &a [*a]", "{" * 3000, "\x00"]


@pytest.mark.parametrize("text", [*SENSELESS, "storage: !!python/object:os.system {}"])
def test_configurations_without_sense(text: str, tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store")
    b.config(text)
    store = open_store(b.write())
    assert store.location.config.storage_path is None
    understood = text in ("storage: 5\nwal: [x]", "storage:\n  path:", "a: &a [*a]")
    assert [f.code for f in store.findings if f.code != "wal-rows"] == ([] if understood else ["config-unreadable"])
    assert content(store) == {("c", "_default"): bag(rows(1, 2))}


def test_configuration_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    assert read_config(None) == Config()
    assert read_config(tmp_path) == Config(tmp_path, problem="Is a directory")


def test_an_unreadable_configuration_keeps_its_secrets(tmp_path: Path) -> None:
    b = store_with_log(tmp_path / "store")
    b.config("general:\n  meta_uri: mysql://root:s3cret@db:3306/milvus\n bad: [s3cret\n")
    (found, _) = open_store(b.write()).findings
    assert (found.code, "not YAML, line 3" in found.message, "s3cret" in found.message) == ("config-unreadable", True, False)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "server_config.yaml"
    path.write_text("general:\n  meta_uri: mysql://root:s3cret@db:3306/milvus\n")
    config = read_config(path)
    assert config.mysql_uri == "mysql://root:s3cret@db:3306/milvus"
    assert "s3cret" not in repr(config)


def test_found_three_levels_below_but_not_four(tmp_path: Path) -> None:
    root = store_with_log(tmp_path / "a" / "b" / "milvus").write()
    assert locate(tmp_path / "a").root == root
    with pytest.raises(Exception, match="not a Milvus"):
        locate(tmp_path)


def test_segments_in_s3(tmp_path: Path) -> None:
    """1.1 with s3_enabled keeps .rv and .uid in a bucket only: what is missing here is there."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    made = b.segment("c", rows(1))
    root = b.write()
    config = root / "server_config.yaml"
    config.write_text(
        V1.format(wal="/srv/milvus/wal").replace("/srv/milvus\n", "/srv/milvus\n  s3_enabled: {}\n  s3_bucket: vectors\n")
    )
    text = config.read_text()
    config.write_text(text.format("false"))
    assert open_store(root).findings == ()
    config.write_text(text.format("true"))
    made.raw.unlink()
    made.ids.unlink()
    hint, lost = open_store(root).findings
    assert (hint.code, lost.code) == ("s3-storage", "segment-incomplete")
    assert "'vectors'" in hint.message and "s3://vectors" in hint.message
