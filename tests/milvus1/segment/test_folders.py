"""What else lies in a segment's folder: files of another segment, of copiers and synchronisers; files that are too long."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.builder import StoreBuilder, bag, codes, content, rows
from support.command import call

from milvus_offline.milvus1.opening import open_store
from milvus_offline.milvus1.segment.writing import SegmentWriter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    b = StoreBuilder(tmp_path / "s")
    b.collection("c")
    b.segment("c", rows(range(1, 101)), bloom=True)
    b.segment("c", rows(range(101, 201)), bloom=True)
    return b.write()


def folders(root: Path) -> list[Path]:
    return sorted(p.parent for p in root.rglob("*.uid"))


def test_files_of_another_segment_are_not_taken_twice(root: Path, tmp_path: Path) -> None:
    first, second = folders(root)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    opened = open_store(root)
    assert codes(opened) == ["files-of-another-segment"]
    assert opened.findings[0].rows == 100
    assert content(opened) == {("c", "_default"): bag(rows(range(1, 101)))}
    assert call("export", root, tmp_path / "out").code == 3 and call("verify", root).code == 4


@pytest.mark.parametrize("suffix", [".rv", ".uid"])
def test_one_file_of_another_segment(root: Path, suffix: str) -> None:
    first, second = folders(root)
    (second / f"{second.name}{suffix}").unlink()
    shutil.copy(first / f"{first.name}{suffix}", second)
    opened = open_store(root)
    assert codes(opened) == ["files-of-another-segment", "segment-incomplete"]
    assert content(opened) == {("c", "_default"): bag(rows(range(1, 101)))}


def test_a_file_that_somebody_renamed_is_taken_as_a_server_takes_it(root: Path) -> None:
    second = folders(root)[1]
    (second / f"{second.name}.rv").rename(second / "restored.rv")
    opened = open_store(root)
    assert codes(opened) == ["file-name-differs"]
    assert "restored.rv" in opened.findings[0].message
    assert content(opened) == {("c", "_default"): bag(rows(range(1, 201)))}


@pytest.mark.parametrize(
    "name",
    ["._{}", "{} (1)", "Copy of {}", "{}~", "{}.sync-conflict-20210301-101010-ABCDEFG", "{}.bak", ".DS_Store", "Thumbs.db"],
)
def test_what_copiers_leave_is_named_and_nothing_else(root: Path, name: str, tmp_path: Path) -> None:
    for folder in folders(root):
        for path in list(folder.iterdir()):
            other = path.stem if "(1)" in name or "sync" in name else path.name
            suffix = path.suffix if other == path.stem else ""
            (folder / (name.format(other) + suffix)).write_bytes(path.read_bytes()[:-3])
    done = call("export", root, tmp_path / "out", "--json")
    assert done.code == 0
    assert {(f["severity"], f["code"]) for f in done.json["findings"]} == {("info", "foreign-file")}
    assert content(open_store(root)) == {("c", "_default"): bag(rows(range(1, 201)))}
    assert call("verify", root).code == 0


@pytest.mark.parametrize("suffix", [".rv", ".uid"])
@pytest.mark.parametrize("at", [None, 60])
def test_a_file_that_is_longer_than_its_header(root: Path, suffix: str, at: int | None, tmp_path: Path) -> None:
    path = folders(root)[0] / f"{folders(root)[0].name}{suffix}"
    data = path.read_bytes()
    path.write_bytes(data + b"Z" if at is None else data[:at] + b"Z" + data[at:])
    done = call("export", root, tmp_path / "out", "--json")
    assert done.code == 3
    found = [(f["code"], f["rows"]) for f in done.json["findings"]]
    shifted = [("ids-foreign", 93)] if (suffix, at) == (".uid", 60) else []  # six ids stand before the byte that was put in
    assert found == [("file-longer", 100), *shifted]
    verified = call("verify", root, "--json")
    assert verified.code == 4 and "file-differs" in {f["code"] for f in json.loads(verified.out)["findings"]}


def test_pipes_and_devices_in_place_of_files(root: Path) -> None:
    import os

    for name in ("lock", "db/lock", "wal/mxlog.meta", "wal/0.wal", "server_config.yaml"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    assert content(open_store(root)) == {("c", "_default"): bag(rows(range(1, 201)))}
    assert call("verify", root).code == 0


def test_a_segment_named_like_its_files_is_what_a_writer_makes(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path / "7", "7")
    writer.append(*rows(1, 2)[:2])
    writer.close()
    assert {p.name for p in (tmp_path / "7").iterdir()} == {"7.rv", "7.uid", "deleted_docs"}


def test_ids_of_another_segment_under_the_right_name(root: Path, tmp_path: Path) -> None:
    """The bloom filter has each id of its segment (FORMAT §4.4)."""
    first, second = folders(root)
    for suffix in (".uid", ".rv"):
        (first / f"{first.name}{suffix}").write_bytes((second / f"{second.name}{suffix}").read_bytes())
    done = call("export", root, tmp_path / "out", "--json")
    assert done.code == 3
    assert [(f["code"], f["rows"]) for f in done.json["findings"]] == [("ids-foreign", 99)]  # it takes one of them for its own


def test_a_damaged_bloom_filter_says_nothing_against_ids(root: Path, tmp_path: Path) -> None:
    """Its largest id is still the segment's."""
    for folder in folders(root):
        data = bytearray((folder / "bloom_filter").read_bytes())
        data[80:] = bytes(len(data) - 80)
        (folder / "bloom_filter").write_bytes(data)
    assert call("export", root, tmp_path / "out").code == 0


@pytest.mark.parametrize("place", ["c", "c/*", "c/*/*.rv", "c/*/*.uid", "c/*/deleted_docs"])
def test_what_cannot_be_looked_into_costs_its_own_rows_only(place: str, tmp_path: Path) -> None:
    """A link that leads in a circle is refused by the system as a damaged folder is by a disk; the other collection comes."""
    b = StoreBuilder(tmp_path / "s")
    for name in ("c", "d"):
        b.collection(name)
        b.segment(name, rows(1, 2, 3), deleted=[0], bloom=True)
    path = next((b.write() / "db/tables").glob(place))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.name)
    done = call("export", b.root, tmp_path / "out", "--json")
    found = {f["code"] for f in json.loads(done.out)["findings"]}
    deletes = place.endswith("deleted_docs")
    assert (done.code, found) == (3, {"deleted-docs-unreadable" if deletes else "segment-unreadable"})
    assert json.loads(done.out)["rows"] == (4 if deletes else 2)
