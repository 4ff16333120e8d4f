"""The command line: help, documents, selection, aliases, silence, interruption; docs/commands.md holds what is there."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from support.absent import absent
from support.builder import StoreBuilder, bag, rows
from support.command import call, exported, files, fingerprint, manifest, spawn
from support.real import STORES

from milvus_offline.cli import COMMANDS, cli
from milvus_offline.commands.common import source_words
from milvus_offline.commands.options import FILE_OPTIONS, STORE_OPTIONS
from milvus_offline.milvus1.salvage import KINDS

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import update_docs

DOCUMENT = update_docs.DOCUMENTS[0].read_text(encoding="utf-8")
PRESENT = cli.list_commands(click.Context(cli))


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """faces: _default, red, red/dark; fakes: _default."""
    b = StoreBuilder(tmp_path / "store")
    b.collection("faces")
    b.segment("faces", rows(1, 2, 3), deleted=[1])
    for n, tag in enumerate(("red", "red/dark")):
        part = b.partition("faces", tag)
        b.segment(part["table_id"], rows(10 + n))
    b.collection("fakes", metric="JACCARD", dim=16, index_params='{"nlist": 7}', flag=1)
    b.segment("fakes", rows(20, 21, dim=16, binary=True))
    b.wal.insert("faces", rows(30, 31), "red")
    return b.write()


# Help ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESENT)
def test_help_lists_every_option(name: str) -> None:
    done = call(name, "--help")
    assert (done.code, done.err) == (0, "")
    words = set(re.findall(r"(?<![\w-])--?[\w-]+", done.out))
    for option in update_docs.options_of(command_of(name)):
        assert option.help, f"{name} {option.opts[0]} has no help"
        assert {*option.opts, *option.secondary_opts} <= words


@pytest.mark.parametrize("name", PRESENT)
def test_no_two_options_share_a_name(name: str) -> None:
    """One would get the value of the other."""
    names = [p.name for p in command_of(name).params]
    assert len(set(names)) == len(names)


def test_help_names_what_can_be_salvaged() -> None:
    assert ", ".join(KINDS) + ", or all" in " ".join(call("export", "--help").out.split())


def test_help_of_the_program() -> None:
    done = call("--help")
    assert done.code == 0
    for name in ("inspect", "verify", "export", "load", "dump", "restore"):
        assert re.search(rf"^  {name}\b.*\w", done.out, re.M)
    for code in ("0 all is well", "1 failed", "2 wrong usage", "3 finished", "4 verification", "130 interrupted"):
        assert code in " ".join(done.out.split())
    assert re.fullmatch(r"milvus-offline, version \d+\.\d+\.\d+\n", call("--version").out)


def test_help_answers_at_once() -> None:
    """In less than 0.2 s (of processor time: the machine may be busy), so without what is in `_HEAVY`."""
    code = "import sys; from milvus_offline.cli import run; run(['--help']); print(*sys.modules, sep=',', file=sys.stderr)"
    loaded, seconds = _loaded_and_seconds(code)
    assert not loaded & _HEAVY
    assert seconds < 0.2


def test_the_help_of_each_command_loads_nothing_heavy() -> None:
    each = f"for name in {list(COMMANDS)}: assert run([name, '--help']) == 0"
    code = f"import sys; from milvus_offline.cli import run\n{each}\nprint(*sys.modules, sep=',', file=sys.stderr)"
    loaded, _ = _loaded_and_seconds(code, times=1)
    assert not loaded & _HEAVY


_HEAVY = {"numpy", "h5py", "sqlalchemy", "pymilvus", "faiss", "yaml", "sqlite3", "asyncio", "pyarrow"}


def _loaded_and_seconds(code: str, times: int = 3) -> tuple[set[str], float]:
    """The modules that a process of Python names at its end on stderr, and the least processor time that one took."""
    seconds = []
    for _ in range(times):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return set(done.stderr.strip().split(",")), min(seconds)


@pytest.mark.parametrize(("command", "more"), [("inspect", []), ("export", ["out"])])
def test_a_store_is_read_without_heavy_packages(command: str, more: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from milvus_offline.cli import run; assert run(sys.argv[1:]) == 0;"
        "print(','.join(sorted(sys.modules)), file=sys.stderr)"
    )
    arguments = [command, str(STORES / "flat_basic" / "store"), *(str(tmp_path / m) for m in more), "-q"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.strip().split(","))
    assert not loaded & {"sqlalchemy", "pymilvus", "faiss", "pyarrow", "pymysql", "asyncio", "multiprocessing.process"}
    rooms = {
        "buckets",
        "html",
        "search",
        "milvus1.running_copy",
        "milvus1.nocatalog",
        "milvus1.segment.restored",
        "sources.others",
    }
    assert not loaded & {f"milvus_offline.{room}" for room in rooms}


# docs/commands.md ------------------------------------------------------------------------------------------------------


def test_documented_options_are_those_that_exist() -> None:
    assert update_docs.updated(DOCUMENT) == DOCUMENT, "run scripts/update_docs.py"


@pytest.mark.parametrize("name", PRESENT)
def test_every_command_is_documented(name: str) -> None:
    assert re.search(rf"^## (?:.*\b)?{name}\b", DOCUMENT, re.M), f"docs/commands.md has no section on {name}"
    if COMMANDS[name] and name not in ("dump", "restore"):
        assert f"<!-- options: {name} -->" in DOCUMENT


def shape(text: str) -> set[str]:
    return set(re.findall(r'"([a-z_]+)"', text)) | {"severity", "code", "where", "message", "rows", "level", "text"}


def keys(document: Any) -> set[str]:
    """All keys of a document; names that are data (index parameters, kinds of salvage) left out."""
    if isinstance(document, dict):
        inner = (v for k, v in document.items() if k not in ("params", "salvage"))
        return set(document) | {k for v in inner for k in keys(v)}
    return {k for v in document for k in keys(v)} if isinstance(document, list) else set()


def section(name: str) -> str:
    return DOCUMENT.split(f"\n## {name}\n")[1].split("\n## ")[0]


# Documents -------------------------------------------------------------------------------------------------------------


def test_inspect_json(store: Path) -> None:
    done = call("inspect", store, "--json")
    assert (done.code, done.err) == (0, "")
    d = done.json
    assert (d["format"], d["version"]) == ("milvus-offline-inspect", 1)
    assert set(d["store"]) >= {"path", "version", "catalog", "wal"}
    assert d["store"]["path"] == str(store) and d["store"]["version"] == "1.1.1"
    assert d["store"]["catalog"] == str(store / "db" / "meta.sqlite")
    assert d["store"]["wal"]["rows"] == 2
    faces, fakes = d["collections"]
    assert {k: faces[k] for k in ("name", "dimension", "vector_type", "metric_type", "index", "auto_id")} == {
        "name": "faces",
        "dimension": 4,
        "vector_type": "float",
        "metric_type": "L2",
        "index": {"type": "FLAT", "params": {}},
        "auto_id": False,
    }
    assert (fakes["vector_type"], fakes["metric_type"], fakes["dimension"]) == ("binary", "JACCARD", 16)
    assert (fakes["index"], fakes["auto_id"]) == ({"type": "BIN_FLAT", "params": {"nlist": 7}}, True)
    assert {k: faces[k] for k in ("rows", "deleted", "wal_rows")} == {"rows": 6, "deleted": 1, "wal_rows": 2}
    counts = {p["name"]: (p["rows"], p["deleted"], p["wal_rows"], len(p["segments"])) for p in faces["partitions"]}
    assert counts == {"_default": (2, 1, 0, 1), "red": (3, 0, 2, 1), "red/dark": (1, 0, 0, 1)}
    (segment,) = faces["partitions"][0]["segments"]
    assert segment == {"id": segment["id"], "state": "RAW", "rows": 2, "deleted": 1, "bytes": 3 * 24, "health": "ok"}
    assert d["totals"]["rows"] == 8 and d["totals"]["export_bytes"] == 6 * 24 + 2 * 10
    assert all(set(f) == {"severity", "code", "where", "message", "rows"} for f in d["findings"])
    assert keys(d) <= shape(section("inspect"))


def test_export_json_and_manifest(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("export", store, out, "--json")
    assert (done.code, done.err) == (0, "")
    d = done.json
    assert (d["format"], d["version"], d["command"]) == ("milvus-offline-report", 1, "export")
    assert (d["rows"], d["collections"], d["exit_code"], d["out"]) == (8, 2, 0, str(out))
    m = manifest(out)
    assert (m["format"], m["version"], m["complete"]) == ("milvus-offline-export", 1, True)
    assert m["source"]["path"] == str(store)
    assert [(p["name"], p["rows"]) for p in m["collections"][0]["partitions"]] == [("_default", 2), ("red", 3), ("red/dark", 1)]
    for c in m["collections"]:
        assert set(c) >= {
            "name",
            "dimension",
            "vector_type",
            "metric_type",
            "index",
            "index_file_size",
            "auto_id",
            "partitions",
        }
        for p in c["partitions"]:
            (f,) = p["files"]
            assert f["bytes"] == (out / f["path"]).stat().st_size
            assert f["checksum"].startswith("xxh3-128:")
    assert m["findings"] == d["findings"]
    assert keys(m) | keys(d) <= shape(section("export"))
    assert set(files(out)) == {
        "manifest.json",
        "faces/_default.h5",
        "faces/red.h5",
        "faces/red%2Fdark.h5",
        "fakes/_default.h5",
    }


def test_verify_json(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("export", store, out)
    for path, more in ((store, []), (out, []), (out, ["--against", store])):
        done = call("verify", path, "--json", *more)
        assert (done.code, done.err) == (0, ""), done
        assert done.json["format"] == "milvus-offline-verify"
        assert keys(done.json) <= shape(section("verify"))


def test_checksums_are_those_of_the_rows(store: Path, tmp_path: Path) -> None:
    import h5py
    import xxhash

    call("export", store, tmp_path / "out")
    for c in manifest(tmp_path / "out")["collections"]:
        for p in c["partitions"]:
            (f,) = p["files"]
            with h5py.File(tmp_path / "out" / f["path"]) as h:
                vectors, ids = h["embeddings"][:].tobytes(), h["ids"][:].tobytes()
            (part,) = f["parts"]
            digests = [xxhash.xxh3_128(b).digest() for b in (vectors, ids)]
            assert [part["embeddings"], part["ids"]] == [d.hex() for d in digests]
            assert f["checksum"] == "xxh3-128:" + xxhash.xxh3_128(b"".join(digests)).hexdigest()


def test_attributes_of_the_files(store: Path, tmp_path: Path) -> None:
    import h5py

    call("export", store, tmp_path / "out")
    with h5py.File(tmp_path / "out" / "fakes" / "_default.h5") as h:
        assert set(h) == {"embeddings", "ids"}
        assert (h["embeddings"].dtype.str, h["embeddings"].shape) == ("|u1", (2, 2))
        assert (h["ids"].dtype.str, h["ids"].shape) == ("<i8", (2,))
        attributes = dict(h.attrs)
    assert (attributes["collection"], attributes["partition"], attributes["metric_type"]) == ("fakes", "_default", "JACCARD")
    assert (attributes["dimension"], attributes["vector_type"], attributes["index_params"]) == (16, "binary", '{"nlist": 7}')


# Text ------------------------------------------------------------------------------------------------------------------


def test_inspect_for_a_person(store: Path) -> None:
    done = call("inspect", store)
    assert (done.code, done.err) == (0, "")
    assert "faces: float 4, L2, FLAT, ids by the user" in done.out
    assert "fakes: binary 16, JACCARD, BIN_FLAT nlist=7, automatic ids" in done.out
    assert re.search(r"^    red\s+3\s+0\s+2\s+1\s+\d+ B$", done.out, re.M)
    assert "2 unflushed rows" in done.out
    assert re.search(r"An export brings 8 rows .*2 of them from the write-ahead log", done.out)


def test_inspect_tells_of_rows_that_no_server_shows(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c")
    b.wal.insert("c", rows(1, 2), "_default")
    text = " ".join(call("inspect", b.write()).out.split())  # wherever the lines break
    assert "Nothing points to a crash: all rows that are live were flushed." in text
    assert "2 more rows were acknowledged and logged, but no server would show them; --salvage unseen" in text


def test_export_for_a_person(store: Path, tmp_path: Path) -> None:
    done = call("export", store, tmp_path / "out")
    lines = done.out.splitlines()
    assert lines[0] == lines[-1] == "All 8 rows were exported; 2 of them only from the write-ahead log."
    assert lines[1].startswith("8 rows of 2 collections (164 B) in ")
    assert str(tmp_path / "out") in done.out
    assert "wal-rows" in done.out


@pytest.mark.parametrize("command", ["inspect", "export", "verify"])
def test_quiet(command: str, store: Path, tmp_path: Path) -> None:
    done = spawn(command, store, *([tmp_path / "out"] if command == "export" else []), "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_verbose(store: Path, tmp_path: Path) -> None:
    quiet = spawn("inspect", store)
    for option in ("-v", "-vv", "--verbose"):
        done = spawn("inspect", store, option)
        assert (done.code, done.out.splitlines()[0]) == (quiet.code, quiet.out.splitlines()[0])
        assert "meta.sqlite" in done.err and "faces/red: 1 segment, 3 rows" in done.err
        assert ("segment " in done.err) == (option == "-vv")
    done = spawn("export", store, tmp_path / "out", "-v")
    assert "done faces/red.h5:0, 3 rows" in done.err and "Traceback" not in done.err


def test_reader_of_stdout_goes_away(store: Path) -> None:
    """As with `| head`: no traceback."""
    command = f"{sys.executable} -m milvus_offline inspect {store} --json | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_progress_on_a_terminal(store: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, "-m", "milvus_offline", "export", str(store), str(tmp_path / "out")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert done.returncode == 0
    assert "8 of 8 rows" in shown and "100 %" in shown
    assert "8 rows of 2 collections" in done.stdout


def test_module_and_program(store: Path) -> None:
    program = Path(sys.executable).parent / "milvus-offline"
    if not program.exists():
        absent("the program is not installed beside this Python")
    done = subprocess.run([program, "inspect", store, "--json"], capture_output=True, text=True)
    assert done.stdout == spawn("inspect", store, "--json").out


# Selection -------------------------------------------------------------------------------------------------------------

ALL = {("faces", "_default"), ("faces", "red"), ("faces", "red/dark"), ("fakes", "_default")}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ALL),
        (["-c", "faces"], {p for p in ALL if p[0] == "faces"}),
        (["-c", "fa*"], ALL),
        (["-c", "f[!a]*", "-c", "fakes"], None),
        (["-c", "fakes", "-c", "faces"], ALL),
        (["-p", "red"], {("faces", "red")}),
        (["-p", "red*"], {("faces", "red"), ("faces", "red/dark")}),
        (["-p", "_default"], {("faces", "_default"), ("fakes", "_default")}),
        (["-c", "fakes", "-p", "_default"], {("fakes", "_default")}),
        (["-c", "fakes", "-p", "red"], None),
        (["--exclude", "fakes"], {p for p in ALL if p[0] == "faces"}),
        (["--exclude", "faces/red*"], {("faces", "_default"), ("fakes", "_default")}),
        (["--exclude", "faces/red/dark"], ALL - {("faces", "red/dark")}),
        (["-c", "faces", "--exclude", "faces/red", "--exclude", "faces/_default"], {("faces", "red/dark")}),
        (["-c", "Faces"], None),
    ],
)
def test_selection(options: list[str], expected: set[tuple[str, str]] | None, store: Path, tmp_path: Path) -> None:
    done = call("export", store, tmp_path / "out", "-q", *options)
    if expected is None:
        assert done.code == 2 and "matches" in done.err
        assert not (tmp_path / "out").exists()
    else:
        assert done.code == 0
        assert set(exported(tmp_path / "out")) == expected


def test_no_wal(store: Path, tmp_path: Path) -> None:
    done = call("export", store, tmp_path / "out", "--no-wal")
    assert done.code == 3
    (left,) = [f for f in manifest(tmp_path / "out")["findings"] if f["code"] == "wal-not-replayed"]
    assert left["rows"] == 2
    assert exported(tmp_path / "out")["faces", "red"] == bag(rows(10))


def test_log_elsewhere(store: Path, tmp_path: Path) -> None:
    (store / "wal").rename(tmp_path / "log")
    assert call("export", store, tmp_path / "a", "-q").code == 0
    assert exported(tmp_path / "a")["faces", "red"] == bag(rows(10))
    assert call("export", store, tmp_path / "b", "-q", "--wal", tmp_path / "log").code == 0
    assert exported(tmp_path / "b")["faces", "red"] == bag(rows(10, 30, 31))


def test_catalog_elsewhere(store: Path, tmp_path: Path) -> None:
    (store / "db" / "meta.sqlite").rename(tmp_path / "saved.sqlite")
    assert call("export", store, tmp_path / "out", "-q", "--catalog", tmp_path / "saved.sqlite").code == 0
    assert set(exported(tmp_path / "out")) == ALL


def test_aliases(store: Path, tmp_path: Path) -> None:
    assert call("export", store, tmp_path / "a", "-q").code == call("dump", store, tmp_path / "b", "-q").code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    own, other = call("load", "--help").out, call("restore", "--help").out
    assert own.split("\n", 1)[1] == other.split("\n", 1)[1]


@pytest.mark.parametrize("jobs", ["1", "2", "7"])
def test_jobs_give_the_same_bytes(jobs: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milvus_offline.targets.hdf5.TASK_BYTES", 16)
    call("export", store, tmp_path / "a", "-q", "--jobs", "1")
    assert call("export", store, tmp_path / "b", "-q", "--jobs", jobs).code == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_nothing_else_in_the_source(store: Path, tmp_path: Path) -> None:
    before = fingerprint(store)
    for number, arguments in enumerate(
        [["inspect", store], ["inspect", store / "db", "--json"], ["verify", store], ["export", store, tmp_path / "o"]]
    ):
        assert call(*arguments).code == 0, number
    call("verify", tmp_path / "o", "--against", store)
    assert fingerprint(store) == before


def test_suggested_commands_take_the_same_options(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "db" / "meta.sqlite").rename(tmp_path / "the saved.sqlite")
    (store / "wal").rename(tmp_path / "log")
    (tmp_path / "second" / "tables").mkdir(parents=True)
    options = ["--catalog", tmp_path / "the saved.sqlite", "--wal", tmp_path / "log", "--secondary", tmp_path / "second"]
    for number, tail in enumerate((options, [*options[:2], "--no-wal"], ["--no-catalog", "--assume", "faces=IP"])):
        done = call("inspect", store, "--json", *tail)
        assert done.err == ""
        suggested = done.json["next"]
        words = [shlex.split(s) for s in suggested]
        assert all(w[0] == "milvus-offline" and set(map(str, tail)) <= set(w) for w in words)
        commands = [w[1] for w in words]
        assert commands == ["verify", "export", "verify", *(["load", "load"] if "--no-catalog" not in tail else [])]
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        for line in (*words[:3], *words[4:]):
            assert call(*line[1:]).code == done.code, line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql://u:secret@h:3306/milvus", "mysql://u@h:3306/milvus"),
        ("mysql+pymysql://u:se@cr:et/@h/milvus", "mysql+pymysql://u@h/milvus"),
        ("mysql://u@h/milvus", "mysql://u@h/milvus"),
    ],
)
def test_a_suggested_command_has_no_password(url: str, shown: str) -> None:
    given: dict[str, Any] = dict.fromkeys((*FILE_OPTIONS, *STORE_OPTIONS)) | {"secondary": (), "assume": ()}
    assert source_words({**given, "catalog": url}) == ["--catalog", shown]


def test_a_copy_of_an_export_tells_what_the_export_lacks(store: Path, tmp_path: Path) -> None:
    assert call("export", store, tmp_path / "out", "--no-wal", "-q").code == 3
    done = call("export", tmp_path / "out", tmp_path / "again")
    assert (done.code, "wal-not-replayed" in done.out) == (3, True)
    first, second = manifest(tmp_path / "out")["findings"], manifest(tmp_path / "again")["findings"]
    assert second == [f for f in first if f["severity"] != "info"]


@pytest.mark.parametrize(("command", "goes_on"), [("export", True), ("inspect", False), ("verify", False)])
def test_interrupted(command: str, goes_on: bool, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("milvus_offline.sources.milvus1.open_store_source", interrupt)
    done = call(command, store, *([tmp_path / "out"] if command == "export" else []))
    assert (done.code, "interrupted" in done.err, "--resume" in done.err) == (130, True, goes_on)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, store: Path, tmp_path: Path) -> None:
    """What is opened first must not get the place of a stream: messages would be written into it."""
    for words in (["export", store, tmp_path / "out"], ["verify", tmp_path / "out", "--against", store]):
        command = shlex.join([sys.executable, "-m", "milvus_offline", *map(str, words)])
        assert subprocess.run(f"{command} {closed}", shell=True, capture_output=True).returncode == 0
    assert set(exported(tmp_path / "out")) == ALL
    command = shlex.join([sys.executable, "-m", "milvus_offline", "inspect", str(tmp_path / "nothing")])
    assert subprocess.run(f"{command} {closed}", shell=True, capture_output=True).returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin1", "utf-8"])
def test_terminals_of_any_encoding(encoding: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "s")
    b.collection("東京")
    b.segment("東京", rows(1))
    done = spawn("inspect", b.write(), env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["inspect", "nowhere"], 1),
        (["verify", "nowhere"], 1),
        (["export", "nowhere", "out"], 1),
        (["load", "nowhere", "x.db"], 1),
        (["inspect"], 2),
        (["inspect", "--wrong"], 2),
        (["export", "STORE", "out", "-c", "unknown"], 2),
        (["run", "nowhere.yaml"], 2),
    ],
)
def test_json_of_failures(words: list[str], code: int, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*(store if w == "STORE" else w for w in words), "--json")
    document = done.json
    assert (done.code, document["exit_code"], document["format"]) == (code, code, "milvus-offline-error")
    assert document["error"] in done.err


@pytest.mark.parametrize("place", ["s/x.html", "s/db/x.html", "log/x.html", "second/x.html", "disk/t/x.html", "saved.sqlite"])
def test_a_report_is_not_written_into_the_source(place: str, store: Path, tmp_path: Path) -> None:
    (store / "wal").rename(tmp_path / "log")
    (store / "db" / "meta.sqlite").rename(tmp_path / "saved.sqlite")
    (tmp_path / "second" / "tables").mkdir(parents=True)
    (tmp_path / "disk" / "t").mkdir(parents=True)
    (store / "db" / "tables" / "elsewhere").symlink_to(tmp_path / "disk" / "t")
    store.rename(tmp_path / "s")
    before = fingerprint(tmp_path)
    options = ["--wal", tmp_path / "log", "--secondary", tmp_path / "second", "--catalog", tmp_path / "saved.sqlite"]
    done = call("inspect", tmp_path / "s", "--html", tmp_path / place, *options)
    assert (done.code, "lies inside the source" in done.err) == (2, True)
    assert call("export", tmp_path / "s", tmp_path / place, *options).code == 2
    assert fingerprint(tmp_path) == before


def test_a_report_that_cannot_be_written_leaves_nothing(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = call("inspect", store, "--html", tmp_path / "report.html")
    assert (done.code, "the disk is full" in done.err) == (1, True)
    assert not [p for p in tmp_path.iterdir() if "report" in p.name]
