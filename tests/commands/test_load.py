"""`milvus-offline load`: options and the targets that they go with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest
from support.command import call
from support.real import STORES

from milvus_offline.commands.load import command, verified_words
from milvus_offline.targets import SCHEMES, defaults_of

STORE = STORES / "flat_basic" / "store"


@pytest.mark.parametrize(
    "words",
    [
        ["--shards", "5"],
        ["--database", "q"],
        ["--field-names", "a,b"],
        ["--nonfinite", "skip"],
        ["--duplicates", "first"],
        ["--duplicates", "keep"],
        ["--partitions", "merge"],
        ["--names", "sanitize"],
        ["--verify", "full"],
        ["--import-to", "X"],
        ["--import-path", "X"],
        ["--patience", "1"],
        ["--inflight", "1"],
        ["--message-mib", "1"],
        ["--no-load"],
        ["--ask-token"],
        ["--token-file", "X"],
        ["--server-pem", "X"],
        ["--mode", "append"],
        ["--index", "auto"],
        ["--state", "X"],
        ["--into", "NAME"],
        ["--into-partition", "p"],
        ["--embeddings", "foo"],
        ["--ids-dataset", "foo"],
        ["--first-id", "1"],
    ],
    ids=" ".join,
)
def test_what_a_new_store_does_not_know_is_refused(words: list[str], tmp_path: Path) -> None:
    outcome = call("load", STORE, f"milvus1:{tmp_path / 'new'}", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert words[0].removeprefix("--no-") in outcome.err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("target", "words", "names"),
    [
        ("milvus1://127.0.0.1:1", ["--shards", "2"], "http(s)://HOST:PORT"),
        ("milvus1://127.0.0.1:1", ["--new-catalog", "mysql"], "milvus1:PATH"),
        ("http://127.0.0.1:1", ["--jobs", "2"], "milvus1:PATH"),
        ("http://127.0.0.1:1", ["--server-path", "/x"], "milvus1:PATH"),
        ("some.db", ["--import-to", "x"], "http(s)://HOST:PORT"),
        ("some.db", ["--database", "x"], "http(s)://HOST:PORT"),
    ],
)
def test_a_refusal_names_the_targets_that_an_option_goes_with(target: str, words: list[str], names: str) -> None:
    outcome = call("load", STORE, target, *words)
    assert outcome.code == 2
    assert f"{words[0]} does not go with" in outcome.err
    assert f"it goes with {names}" in outcome.err


def test_what_the_environment_says_is_for_targets_that_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_DATABASE", "q")
    monkeypatch.setenv("MILVUS_OFFLINE_SHARDS", "3")
    assert call("load", STORE, f"milvus1:{tmp_path / 'new'}", "--dry-run").code == 0


def test_the_home_folder_is_known_after_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call("load", STORE, "milvus1:~/new").code == 0
    assert sorted(os.listdir(tmp_path)) == ["new"]


def test_the_help_gives_the_defaults_of_the_targets() -> None:
    params: dict[str, Any] = {p.name: p for p in command.params if isinstance(p, click.Option)}
    spelled = {"load": "load_after", "field_names": None, "rename": None}
    for kind in SCHEMES:
        for name, value in defaults_of(kind).items():
            option = params.get(spelled.get(name, name) or "")
            if option is not None and option.show_default and option.name != "ids":
                assert option.default == value, (kind.example, name)


@pytest.mark.parametrize(
    ("checked", "rows", "words"),
    [
        (0, 1000, "Verified: the number of rows of each partition"),
        (1000, 1000, "1,000 of 1,000 rows read back"),
        (256, 10_000, "enough to notice, with 95 % certainty, that 1.2 % of the rows are wrong"),
        (14, 10_000, "that 19 % of the rows"),
    ],
)
def test_a_sample_says_what_it_proves(checked: int, rows: int, words: str) -> None:
    assert words in verified_words("sample", checked, rows)


def test_the_report_counts_the_rows_that_were_read_back(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    outcome = call("load", STORE, tmp_path / "x.db", "--json", "-c", "books")
    assert outcome.json["checked_rows"] == 32  # one message, 32 rows of it


def test_export_refuses_by_the_same_rule(tmp_path: Path) -> None:
    for words in (["--link"], ["--compression", "gzip"]):
        outcome = call("export", STORE, tmp_path / "out", "--format", "npy", *words)
        assert (outcome.code, f"{words[0]}" in outcome.err) == (2, True)
        assert "does not go with --format npy; it goes with --format hdf5" in outcome.err.replace(" gzip", "")


@pytest.mark.parametrize(("target", "more"), [("x.db", []), ("milvus1:new", ["--reflink", "never"])])
def test_a_local_target_without_room_is_refused_before_anything_is_written(
    target: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("milvus_offline.guard.free_space", lambda path: (tmp_path, 1000))
    done = call("load", STORE, target, *more)
    assert (done.code, "the disk is full" in done.err, list(tmp_path.iterdir())) == (1, True, []), done.err
