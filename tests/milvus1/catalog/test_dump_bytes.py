"""One byte of a dump, wherever it is and whatever became of it, loses and moves nothing without a word.

`python tests/milvus1/catalog/test_dump_bytes.py 1 [FORM …]` goes through every byte; the suite through some.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dumps import FORMS, ROWS, changes

from milvus_offline.errors import MilvusOfflineError
from milvus_offline.milvus1.catalog.given import read_given
from milvus_offline.model import Severity

STRIDE = 97


def write(form: str, folder: Path) -> Path:
    """The files of a form; the path that is given to --catalog."""
    for name, data in FORMS[form].items():
        (folder / name).write_bytes(data)
    return folder if len(FORMS[form]) > 1 else folder / next(iter(FORMS[form]))


def read(path: Path) -> tuple[list[list[dict[str, Any]]], bool]:
    """Tables, files and the position in the log as plain values; whether something is said of them."""
    catalog = read_given(path)
    found = [[r._asdict() for r in rows] for rows in (catalog.tables, catalog.files)]
    return [*found, [{"global_lsn": catalog.global_lsn}]], any(f.severity is not Severity.INFO for f in catalog.findings)


def differing(right: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]) -> list[tuple[str, Any, Any]] | None:
    """The values that differ; None where rows are missing or too many."""
    if [len(rows) for rows in right] != [len(rows) for rows in found]:
        return None
    pairs = [(a, b) for one, other in zip(right, found, strict=True) for a, b in zip(one, other, strict=True)]
    return [(c, a[c], b[c]) for a, b in pairs for c in a if a[c] != b[c]]


def silent(form: str, folder: Path, stride: int) -> Iterator[tuple[str, int, str, Any]]:
    """Changes of one byte that alter more than the one value that they stand in, and of which nothing is said."""
    entry = write(form, folder)
    right, told = read(entry)
    assert not told
    at = sum(map(ord, form)) % stride
    for name, data in FORMS[form].items():
        for place in range(at, len(data), stride):
            for change, changed in changes(data, place):
                (folder / name).write_bytes(changed)
                try:
                    found, told = read(entry)
                except MilvusOfflineError:
                    continue
                different = differing(right, found)
                if not told and (different is None or len(different) > 1):
                    yield name, place, change, (data[max(0, place - 30) : place + 20], different)
        (folder / name).write_bytes(data)
        at = (at - len(data)) % stride


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_changed_byte_is_told_or_changes_the_value_that_it_is_in(form: str, tmp_path: Path) -> None:
    assert list(silent(form, tmp_path, STRIDE)) == []


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_all_rows(form: str, tmp_path: Path) -> None:
    (tables, files, environment), told = read(write(form, tmp_path))
    assert not told
    for found, wanted in ((tables, ROWS["Tables"]), (environment, ROWS["Environment"])):
        assert [tuple(r.values())[: len(w)] for r, w in zip(found, wanted, strict=True)] == wanted
    assert {r["segment_id"] for r in files} == {r[2] for r in ROWS["TableFiles"]}


NOTES = {
    "a row of mydumper's is gone": ("mydumper", "milvus.TableFiles.00000.sql", lambda d: d[: d.rindex(b"\n,(2")] + b";\n"),
    "mydumper did not finish": ("mydumper", "metadata", lambda d: d[: d.rindex(b"# Finished")]),
    "a line of MySQL Shell's is gone": ("shell", "milvus@Tables@@0.tsv", lambda d: d[: d.index(b"\n") + 1]),
    "a file of MySQL Shell's is gone": ("shell", "milvus@Tables@@0.tsv", None),
    "MySQL Shell did not finish": ("shell", "@.done.json", None),
    "the last line of --tab is cut": ("tab", "Tables.txt", lambda d: d[:-9]),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_the_tool_counted_is_compared(name: str, tmp_path: Path) -> None:
    form, file, change = NOTES[name]
    entry = write(form, tmp_path)
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(change(FORMS[form][file]))
    assert {f.code for f in read_given(entry).findings if f.severity is Severity.ERROR} & {"dump-damaged", "dump-truncated"}


@pytest.mark.parametrize("form", ["tab", "mydumper", "shell"])
def test_a_folder_whose_files_were_packed_or_unpacked_since_is_whole(form: str, tmp_path: Path) -> None:
    right = read(write(form, tmp_path))
    for name, data in FORMS[form].items():
        if name.endswith((".sql", ".txt", ".tsv")):
            (tmp_path / name).unlink()
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    assert read(tmp_path) == right
    done = tmp_path / "@.done.json"
    if form == "shell":  # made with zstd, and unpacked
        for name, data in FORMS[form].items():
            (tmp_path / f"{name}.gz").unlink(missing_ok=True)
            (tmp_path / name).write_bytes(data)
        done.write_bytes(done.read_bytes().replace(b".tsv", b".tsv.zst"))
        assert read(tmp_path) == right
        (tmp_path / "milvus@Tables@@0.tsv").unlink()
        assert read(tmp_path)[1]


if __name__ == "__main__":
    for form in sys.argv[2:] or FORMS:
        with tempfile.TemporaryDirectory() as scratch:
            for found in silent(form, Path(scratch), int(sys.argv[1])):
                print(form, *found)
