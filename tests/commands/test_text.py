"""What a person sees: the verdict, findings by kind, any width of a terminal, any name, colour, progress, the log file."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder
from support.command import call, fingerprint, spawn
from support.damaged import NAMES, damaged_store, strange_store
from support.real import STORES

from milvus_offline.model import Finding, Severity
from milvus_offline.progress import Bar, Lines, Smooth
from milvus_offline.text import Places, Screen, duration, finding_lines, named
from milvus_offline.verdict import attention_sums, verdict

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return damaged_store(tmp_path / "store")


# The verdict ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("findings", "level", "text"),
    [
        ([], "good", "All 10 rows can be exported."),
        ([(Severity.INFO, "wal-rows", 3)], "good", "All 10 rows can be exported."),
        ([(Severity.WARNING, "flush-unrecorded", 3)], "doubt", "All 10 rows can be exported; 3 rows in doubt. 1 warning."),
        (
            [(Severity.WARNING, "vectors-restored", 4)],
            "doubt",
            "All 10 rows can be exported; 4 of them restored from other files. 1 warning.",
        ),
        ([(Severity.ERROR, "rows-lost", 1)], "loss", "10 rows can be exported; 1 row is lost. 1 error."),
        (
            [(Severity.ERROR, "rows-lost", 1), (Severity.ERROR, "segment-missing", 5), (Severity.WARNING, "wal-stale", None)],
            "loss",
            "10 rows can be exported; 6 rows are lost. 2 errors, 1 warning.",
        ),
        ([(Severity.ERROR, "wal-gap", None)], "loss", "10 rows can be exported; something is lost or damaged. 1 error."),
    ],
)
def test_verdict(findings: list[Any], level: str, text: str) -> None:
    made = [Finding(severity, code, "c", "m", n) for severity, code, n in findings]
    assert verdict(10, made, "can be exported") == {"level": level, "text": text}


def test_verdict_of_rows_in_the_log() -> None:
    assert verdict(5, [], "can be exported", log_rows=2)["text"] == (
        "All 5 rows can be exported; 2 of them only from the write-ahead log."
    )
    assert verdict(0, [], "can be exported")["text"] == "There are no live rows."


def test_every_report_begins_and_ends_with_the_verdict(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words in (["inspect", store], ["export", store, out], ["verify", store], ["export", store, out, "--dry-run"]):
        done = call(*words)
        *report, last = done.out.splitlines()
        assert done.code == (4 if words[0] == "verify" else 3)
        text = " ".join(" ".join(report).split())  # wherever the lines break
        verdict = re.match(r".*?95 rows are lost\. [45] errors[^.]*\.", text)
        assert verdict and text.endswith(verdict[0]) and text.count(verdict[0]) == 2, done.out
        assert last.startswith(f"Exit code {done.code}: "), done.out


def test_documents_count_what_is_lost(store: Path, tmp_path: Path) -> None:
    for words in (["inspect", store], ["export", store, tmp_path / "out"], ["verify", store]):
        document = call(*words, "--json").json
        counts = document.get("totals", document)
        assert (counts["lost_rows"], counts["restored_rows"], counts["doubtful_rows"]) == (95, 0, 0)
        assert document["verdict"]["level"] == "loss"


def test_health_of_segments(store: Path) -> None:
    document = call("inspect", store, "--json").json
    (c,) = document["collections"]
    assert [s["health"] for s in c["partitions"][0]["segments"]] == ["damaged"]
    assert document["totals"]["lost_segments"] == 2


def test_rows_of_other_codes_are_not_counted_as_lost() -> None:
    found = [Finding(Severity.ERROR, "bloom-misses", "c", "m", 7), Finding(Severity.INFO, "wal-rows", "c", "m", 3)]
    assert attention_sums(found) == {"lost_rows": 0, "restored_rows": 0, "doubtful_rows": 7}


# Findings ---------------------------------------------------------------------------------------------------------------


def test_findings_are_grouped_with_short_places(store: Path) -> None:
    text = call("inspect", store).out
    assert "segment-missing: 2 places, 35 rows" in text
    assert "in c/_default, c/red" in text
    findings = text[text.index("Findings:") : text.index("Next")]
    assert not re.search(r"\d{19}", findings) and str(store) not in findings
    assert "If it is on a volume that is not mounted, mount it" in findings
    told = call("inspect", store, "-v").out
    assert re.search(r"\d{19}", told) and str(store) in told


def test_findings_are_those_of_the_selection(store: Path, tmp_path: Path) -> None:
    found = call("export", store, tmp_path / "a", "-p", "red", "--json").json
    assert {(f["code"], f["rows"]) for f in found["findings"]} == {("segment-missing", 5), ("wal-rows", 2)}
    assert found["lost_rows"] == 5
    rest = call("export", store, tmp_path / "b", "-p", "_default", "--json").json
    assert rest["lost_rows"] == 90


def test_many_places_are_summed_up() -> None:
    findings = [Finding(Severity.WARNING, "flush-unrecorded", f"c/p{n}", "text", 1).to_json() for n in range(9)]
    lines = finding_lines(findings)
    assert lines[1].split() == ["WARN", "flush-unrecorded:", "9", "places,", "9", "rows"]
    assert lines[-1].strip() == "in c/p0, c/p1, c/p2, c/p3, and 5 more"


def test_many_collections_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: four times as many take four times as much."""
    from rich import cells

    measure, counts = cells.cell_len, []

    def counted(text: str, *more: Any) -> int:
        counts[-1] += 1
        return measure(text, *more)

    monkeypatch.setattr(cells, "cell_len", counted)
    for number in (10, 40):
        builder = StoreBuilder(tmp_path / str(number))
        for n in range(number):
            builder.collection(f"faces_{n}")
        counts.append(0)
        assert call("inspect", builder.write()).code == 0
    assert 0 < counts[1] < 5 * counts[0]


def test_what_to_do_next_follows_from_what_was_found(store: Path) -> None:
    steps = call("inspect", store, "--json").json["next"]
    assert steps[0].startswith("milvus-offline explain ")
    unseen = call("inspect", STORES / "crash_tags" / "store", "--json").json["next"]
    assert any("export" in s and s.endswith("--salvage unseen") for s in unseen)
    assert any(" load " in s for s in unseen)
    assert not any(
        "--salvage" in s or "explain" in s for s in call("inspect", STORES / "flat_basic" / "store", "--json").json["next"]
    )


def test_explain(tmp_path: Path) -> None:
    done = call("explain", "segment-missing")
    assert done.code == 0 and "--secondary" in done.out and "ERROR" in done.out
    wrong = call("explain", "segment-mising")
    assert wrong.code == 2 and "did you mean segment-missing" in wrong.err
    from milvus_offline.findings import CODES

    assert {f["code"] for f in call("explain", "--json").json["findings"]} == set(CODES)
    listed = call("explain").out
    assert all(code in listed for code in CODES)


def test_ids_of_lost_rows(store: Path, tmp_path: Path) -> None:
    before = fingerprint(store)
    document = call("export", store, tmp_path / "out", "--lost-ids", tmp_path / "lost.csv", "--json").json
    lines = (tmp_path / "lost.csv").read_text().splitlines()
    assert lines == ["collection,partition,id", *(f"c,_default,{n}" for n in range(40, 100))]
    assert document["lost_ids"] == 60  # of the segments whose folders are gone nothing is left to name the rows by
    assert call("verify", store, "--lost-ids", store / "x.csv").code == 2
    assert fingerprint(store) == before


# Widths -----------------------------------------------------------------------------------------------------------------


def cells(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_columns_are_aligned_and_no_word_is_broken(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = strange_store(tmp_path / "s")
    words = set(call("inspect", store).out.split())
    monkeypatch.setenv("COLUMNS", str(columns))
    text = call("inspect", store).out
    commands = [line for line in text.splitlines() if "milvus-offline" in line or str(tmp_path) in line]
    assert max(cells(line) for line in text.splitlines() if line not in commands) <= columns
    cut = {w for w in text.split() if w not in words and "…" not in w and not w.startswith(("x", "東"))}
    assert not cut
    table = [line for line in text.splitlines() if re.search(r" 0  +\d+  +\d+  +\d+ B$", line)]
    assert len(table) == len(NAMES) + 1
    assert len({cells(line) for line in table}) == 1


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_rows_fit_however_long_their_numbers(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of the builder are numbers such as 3.1951e+09; names are cut before a number is."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = call("rows", strange_store(tmp_path / "s"), "-n", "1").out.splitlines()
    assert len(lines) == len(NAMES) + 2 and max(map(cells, lines)) <= columns
    assert all(re.search(r"e[+]\d\d$", line) for line in lines[2:])


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_fits(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_offline.cli import COMMANDS

    monkeypatch.setenv("COLUMNS", str(columns))
    for name in COMMANDS:
        text = call(name, "--help").out
        assert max(map(cells, text.splitlines())) <= columns, name
        assert "catalog URL" not in text or "MILVUS_OFFLINE_CATALOG_PASSWORD" in text


def test_a_refusal_is_folded_between_words_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "here"
    path.mkdir()
    shown = [line for line in on_a_terminal(60, ["inspect", str(path)]) if line]
    said = call("inspect", path).err
    assert len(said.splitlines()) == 1 and len(shown) > 2
    assert " ".join(said.split()).replace(" ", "") == "".join(shown).replace(" ", "")
    assert set(said.split()) - set(" ".join(shown).split()) <= {f"{path}:"}  # which alone is longer than a line


def test_names_are_shown_as_they_are() -> None:
    assert named(" blank ") == "' blank '" and named("") == "''" and named("a  b") == "'a  b'"
    assert named("größe 東京") == "größe 東京"
    assert named("\x1b[31mred\u202e") == "\\x1b[31mred\\u202e"


def on_a_terminal(columns: int, words: list[str], **environment: str) -> list[str]:
    """The lines that a terminal of this width shows after a command."""
    pty = pytest.importorskip("pty")
    pyte = pytest.importorskip("pyte")
    import fcntl
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "milvus_offline", *words]
    env = {**{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}, "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=env)
    os.close(slave)
    screen = pyte.HistoryScreen(columns, 50, history=10_000)
    stream = pyte.ByteStream(screen)
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        if not data:
            break
        stream.feed(data)
    os.close(master)
    process.wait()
    top = ["".join(line[x].data for x in range(columns)) for line in screen.history.top]
    return [line.rstrip() for line in [*top, *screen.display]]


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize(
    "command", ["inspect", "verify", "export", "dry-run", "explain", "help", "load", "load-dry-run", "search", "run", "rows"]
)
def test_on_a_real_terminal(command: str, columns: int, tmp_path: Path) -> None:
    """The terminal shows each line as it was written, so none is broken by it; but for paths and commands, which stay whole."""
    store, out = damaged_store(tmp_path / "s"), str(tmp_path / "o")
    words = {
        "dry-run": ["export", str(store), out, "--dry-run"],
        "export": ["export", str(store), out, "--overwrite"],
        "explain": ["explain"],
        "help": ["export", "--help"],
        "load": ["load", str(store), f"milvus1:{tmp_path / 'new'}"],
        "load-dry-run": ["load", str(store), f"milvus1:{tmp_path / 'new'}", "--dry-run"],
        "search": ["search", str(store), "--id", "1", "-k", "3"],
        "rows": ["rows", str(store), "-n", "2"],
        "run": ["run", str(tmp_path / "task.yaml"), "--dry-run"],
    }.get(command, [command, str(store)])
    if command == "export":
        spawn("export", store, out)
    task = f"M2H:\n  source_milvus_path: {store}\n  data_dir: {out}\n  source_collection: {{c: [red]}}\n"
    (tmp_path / "task.yaml").write_text(task)
    shown = on_a_terminal(columns, words)
    if command == "load":
        shutil.rmtree(tmp_path / "new")
    written = spawn(*words, env={**os.environ, "COLUMNS": str(columns)}).out.splitlines()
    assert len(written) > 2
    changing = re.compile(r"\d\.\d s\b| free there|rows/s")  # not the same twice, and where the lines around break neither
    for before, line, after in zip(["", *written], written, [*written[1:], ""], strict=False):
        if len(line) > columns:
            assert str(tmp_path) in line or "milvus-offline" in line
        elif not any(map(changing.search, (before, line, after))):
            assert line in shown


def test_colour_only_where_it_is_wanted(store: Path) -> None:
    plain = spawn("inspect", store).out
    assert "\x1b" not in plain
    assert "\x1b[" in spawn("inspect", store, env={**os.environ, "FORCE_COLOR": "1"}).out
    assert "\x1b[3" not in spawn("inspect", store, env={**os.environ, "FORCE_COLOR": "1", "NO_COLOR": "1"}).out


# Progress ---------------------------------------------------------------------------------------------------------------


def test_progress_reaches_the_end(store: Path, tmp_path: Path) -> None:
    call("export", store, tmp_path / "out", "-q")
    for words in (["verify", store], ["verify", tmp_path / "out"], ["verify", tmp_path / "out", "--against", store]):
        lines = [json.loads(line) for line in call(*words, "--json-progress").err.splitlines()]
        last = lines[-1]
        assert last["format"] == "milvus-offline-progress"
        assert (last["bytes"], last["rows"]) == (last["total_bytes"], last["total_rows"]), words
    export = [json.loads(line) for line in call("export", store, tmp_path / "b", "--json-progress").err.splitlines()]
    assert (export[0]["rows"], export[-1]["rows"], export[-1]["total_rows"]) == (0, 42, 42)


def test_a_log_shows_that_the_run_lives() -> None:
    stream = io.StringIO()
    shown = Lines(0.01, stream=stream)
    shown.start(10, 1 << 20, 0, 0)
    shown.now("c/red")
    shown.advance(5, 1 << 19)
    until = time.monotonic() + 120
    while "c/red" not in stream.getvalue() and time.monotonic() < until:
        time.sleep(0.01)
    shown.close()
    assert re.search(r"^\d\d:\d\d:\d\d c/red: 50 %,.* 512.0 KiB of 1.0 MiB,.* 5 of 10 rows$", stream.getvalue(), re.M)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_bar_fits_every_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    bar = Bar(io.StringIO())
    bar.state.what, bar.state.rows, bar.state.total_rows = "東京/" + "x" * 50, 3_559_331, 4_152_000
    bar.state.bytes, bar.state.total_bytes, bar.state.rate = 1_730_000_000, 2_010_000_000, 145e6
    console = Console(file=io.StringIO(), width=columns)
    bar._live = type("Live", (), {"console": console})()
    console.print(bar._line())
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert cells(line) <= columns and "86 %" in line and "left" in line


def test_a_long_command_can_be_pasted_from_a_narrow_terminal(store: Path) -> None:
    shown = on_a_terminal(len(str(store)) + 8, ["inspect", str(store)])  # the path alone fits into a line
    lines = [" ".join(line.split()) for line in "\n".join(shown).replace(" \\\n", " ").splitlines()]
    commands = call("inspect", store, "--json").json["next"]
    assert commands and any(line.endswith(" \\") for line in shown)
    assert [c for c in commands if c not in lines] == []


def test_the_rate_does_not_jump() -> None:
    rate = Smooth()
    now = rate._begin
    seen = []
    for n in range(200):
        now += 0.1
        rate.add(20_000_000 if n % 2 else 1_000_000, now)
        seen.append(rate.rate)
    assert max(seen[100:]) / min(seen[100:]) < 1.3


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3600, 7325)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "2 h 2 min"]


def test_log_file(store: Path, tmp_path: Path) -> None:
    done = spawn("export", store, tmp_path / "out", "--log-file", tmp_path / "log.txt")
    text = (tmp_path / "log.txt").read_text()
    assert done.err == "" and "meta.sqlite" in text and "done c/_default.h5:0" in text
    assert re.match(r"\d{4}-\d\d-\d\d ", text)
    before = fingerprint(store)
    refused = spawn("inspect", store, "--log-file", store / "log.txt")
    assert (refused.code, "lies inside the source" in refused.err) == (2, True)
    assert fingerprint(store) == before


# Options from elsewhere -------------------------------------------------------------------------------------------------


def test_options_from_the_environment_and_a_file(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "options.yaml"
    config.write_text("no-wal: true\njobs: 1\nexport:\n  partition: [red]\n")
    assert call("inspect", store, "--config", config, "--json").json["totals"]["wal_rows"] == 0
    done = call("export", store, tmp_path / "a", "--config", config, "--json").json
    assert {f["code"] for f in done["findings"]} == {"segment-missing", "wal-not-replayed"}
    monkeypatch.setenv("MILVUS_OFFLINE_NO_WAL", "1")
    assert call("inspect", store, "--json").json["totals"]["wal_rows"] == 0
    monkeypatch.setenv("MILVUS_OFFLINE_NO_WAL", "0")
    assert call("inspect", store, "--config", config, "--json").json["totals"]["wal_rows"] == 2
    for text, word in (("no-wall: 1", "did you mean no-wal"), ("- a", "expected lines"), ("a: [", "line 1")):
        config.write_text(text)
        wrong = call("inspect", store, "--config", config)
        assert (wrong.code, word in wrong.err, str(config) in wrong.err) == (2, True, True), wrong.err


def test_several_stores(store: Path, tmp_path: Path) -> None:
    other = strange_store(tmp_path / "other")
    both = call("inspect", store, other, "--json").json
    assert (both["format"], [d["store"]["path"] for d in both["documents"]]) == (
        "milvus-offline-several",
        [str(store), str(other)],
    )
    assert both["exit_code"] == 3
    done = call("export", store, other, tmp_path / "out")
    assert done.code == 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["other", "store"]
    assert call("verify", tmp_path / "out" / "other", tmp_path / "out" / "store").code == 0


def test_dry_run_of_an_export(store: Path, tmp_path: Path) -> None:
    done = call("export", store, tmp_path / "out", "--dry-run", "--json")
    assert done.code == 3 and done.json["dry_run"] and done.json["rows"] == 42 and done.json["free_bytes"] > 0
    assert not (tmp_path / "out").exists()


def test_a_screen_folds_at_blanks_only() -> None:
    buffer = io.StringIO()
    screen = Screen(buffer)
    screen.width = 40
    screen.say("a path /x/" + "y" * 60 + " and 東京東京東京東京東京東京東京東京 more words", indent=4, hang=6)
    lines = buffer.getvalue().splitlines()
    assert "      /x/" + "y" * 60 in lines
    assert all(cells(line) <= 40 for line in lines if "/x/" not in line)
    assert Places(["/data/s"], {"17": "c/red"}).short("17/1700000000000000001") == "c/red"


# load -------------------------------------------------------------------------------------------------------------------


def test_a_load_says_what_it_did_and_what_comes_next(store: Path, tmp_path: Path) -> None:
    done = call("load", store, tmp_path / "x.db")
    lines = done.out.splitlines()
    assert done.code == 3
    text = " ".join(" ".join(lines[:-1]).split())  # wherever the lines break
    verdict = re.match(r".*?95 rows are lost\. 4 errors[^.]*\.", text)
    assert verdict and text.endswith(verdict[0]) and text.count(verdict[0]) == 2, done.out
    said = r"Verified: the number of rows of each partition, and \d+ of 42 rows read back, enough to notice,"
    assert re.search(rf"{said} with 95 % certainty, that [\d.]+ % of the rows are wrong", text), done.out
    assert "  client.load_collection('c')" in lines
    again = call("load", store, f"milvus1:{tmp_path / 'new'}", "--json").json
    assert (again["lost_rows"], again["verdict"]["level"]) == (95, "loss")
    assert "docker run" in call("load", store, f"milvus1:{tmp_path / 'other'}").out


def test_what_a_load_prints_next_works(store: Path, tmp_path: Path) -> None:
    out = call("load", store, tmp_path / "x.db").out
    code = [line.strip() for line in out.split("Next, in Python:\n")[1].split("\n\n")[0].splitlines()]
    code[-2:] = [f"print(len({code[-2]}))", f"print(len({code[-1]}[0]))"]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True)
    assert done.stdout.split() == ["3", "10"], done.stderr


def test_other_names_from_a_file(store: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.yaml"
    names.write_text("c: people\nc/red: rot\n")
    target = tmp_path / "new"
    assert call("load", store, f"milvus1:{target}", "--rename-map", names).code == 3
    found = call("inspect", target, "--json").json["collections"]
    assert [(c["name"], [p["name"] for p in c["partitions"]]) for c in found] == [("people", ["_default", "rot"])]
    for text, word in (("c/blue: x", "did you mean c/red"), ("c/red: _default", "would be called"), ("- x", "expected lines")):
        names.write_text(text)
        wrong = call("load", store, f"milvus1:{tmp_path / 'no'}", "--rename-map", names)
        assert (wrong.code, word in wrong.err) == (2, True), wrong.err
    assert not (tmp_path / "no").exists()
