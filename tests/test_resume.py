"""An export that is killed and resumed gives the same bytes as one that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builder import StoreBuilder, rows
from support.command import call, files, fingerprint

import milvus_offline.targets.hdf5 as hdf5
import milvus_offline.transfer as transfer
from milvus_offline.manifest import LEDGER

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: killing was NOT tested")]

TASK_BYTES = 16 << 10
DIM = 16


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections, a partition, an empty one, deleted rows; some twenty tasks of 16 KiB."""
    b = StoreBuilder(tmp_path_factory.mktemp("resume") / "store")
    b.collection("a", dim=DIM)
    b.segment("a", rows(range(2000), dim=DIM), deleted=range(3, 2000, 17))
    b.segment("a", rows(range(2000, 2500), dim=DIM))
    part = b.partition("a", "p/1")
    for n in range(12):
        b.segment(part["table_id"], rows(range(3000 + 60 * n, 3060 + 60 * n), dim=DIM))
    b.partition("a", "nothing")
    b.collection("b", dim=64, metric="HAMMING")
    b.segment("b", rows(range(4000), dim=64, binary=True), deleted=range(0, 4000, 2))
    return b.write()


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "TASK_BYTES", TASK_BYTES)
    monkeypatch.setattr(transfer, "SETTLE_SECONDS", 0.0)


def reference(store: Path, folder: Path, *options: str) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    assert call("export", store, folder / "whole", "-q", *options).code == 0
    return files(folder / "whole")


def forked(work: Callable[[], object]) -> int:
    """Runs `work` in a copy of this process; returns its exit code, negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def export_until(store: Path, out: Path, last: int, *options: str) -> Callable[[], None]:
    """An export that dies at its `last`-th call that changes the disk; a write is torn in the middle."""
    left = last

    def guard(name: str) -> None:
        original = getattr(os, name)

        def guarded(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                if name == "pwrite":
                    fd, data, at = arguments
                    original(fd, data[: len(data) // 2], at)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(os, name, guarded)

    def work() -> None:
        for name in ("pwrite", "fsync", "replace", "unlink", "mkdir", "posix_fallocate"):
            guard(name)
        call("export", store, out, "-q", *options)

    return work


@pytest.mark.parametrize("settle", [0.0, 0.01, 9.0])
@pytest.mark.parametrize(
    "options", [["--jobs", "1"], ["--jobs", "3"], ["--compression", "gzip", "--jobs", "1"], ["--format", "npy", "--jobs", "1"]]
)
def test_killed_at_many_moments(
    options: list[str], settle: float, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SETTLE_SECONDS", settle)
    expected = reference(store, tmp_path, *options)
    before = fingerprint(store)
    rng = random.Random(str(settle))  # other moments for each
    moments, step = 0, 1
    while True:
        out = tmp_path / f"out{moments}"
        if forked(export_until(store, out, step, *options)) != -signal.SIGKILL:
            break  # it came to its end before
        if moments % 3 == 0:  # the resumed run is killed as well
            forked(export_until(store, out, rng.randint(1, 60), *options, "--resume"))
        if not (out / "manifest.json").exists() or (out / LEDGER).exists():
            done = call("export", store, out, "-q", *options, "--resume")
            assert (done.code, done.err) == (0, ""), f"killed at call {step}"
        assert files(out) == expected, f"killed at call {step}"
        shutil.rmtree(out)
        moments += 1
        step += rng.randint(1, 3 if {"gzip", "npy"} & {*options} else 8)
    assert files(out) == expected
    assert moments >= (4 if {"gzip", "npy"} & {*options} else 10)
    assert fingerprint(store) == before


def test_killed_at_random_times(store: Path, tmp_path: Path) -> None:
    """From outside, without any help of the program."""
    expected = reference(store, tmp_path)
    rng = random.Random(5)
    killed = 0
    for n in range(30):
        out = tmp_path / f"out{n}"
        pid = os.fork()
        if pid == 0:
            try:
                call("export", store, out, "-q")
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.001, 0.06))
        os.kill(pid, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) < 0
        if not (out / "manifest.json").exists() or (out / LEDGER).exists():
            assert call("export", store, out, "-q", "--resume").code == 0
        assert files(out) == expected
    assert killed >= 5


def interrupted(store: Path, out: Path, *options: str, stop: int = signal.SIGINT) -> subprocess.CompletedProcess[str]:
    """Ctrl-C as a terminal sends it, to all processes of a slow export, once something of it is finished."""
    code = (
        "import signal, sys, time\n"
        "import milvus_offline.targets.hdf5 as h\n"
        "import milvus_offline.transfer as t\n"
        f"h.TASK_BYTES = {TASK_BYTES}; t.SETTLE_SECONDS = 0.0\n"
        "update = h.Checksums.update\n"
        "def slow(self, column, data): time.sleep(0.15); update(self, column, data)\n"
        "h.Checksums.update = slow\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from milvus_offline.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code, "export", str(store), str(out), "-q", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    ledger = out / LEDGER
    deadline = time.monotonic() + 120
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 2:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(child.pid, stop)
    output, errors = child.communicate(timeout=120)
    return subprocess.CompletedProcess(command, child.returncode, output, errors)


@pytest.mark.parametrize("options", [["--jobs", "1"], ["--jobs", "4"], ["--compression", "gzip", "--jobs", "2"]])
def test_ctrl_c(options: list[str], store: Path, tmp_path: Path) -> None:
    expected = reference(store, tmp_path, *options)
    before = fingerprint(store)
    out = tmp_path / "out"
    done = interrupted(store, out, *options)
    assert done.returncode == 130
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "interrupted; what is finished is kept: run the same command with --resume to go on" in done.stderr
    assert not (out / "manifest.json").exists()
    assert fingerprint(store) == before
    assert call("export", store, out, "-q").code == 2, "only --resume goes on"
    assert call("export", store, out, "-q", "--resume", *options).code == 0
    assert files(out) == expected


def test_overwrite_begins_anew(store: Path, tmp_path: Path) -> None:
    expected = reference(store, tmp_path)
    out = tmp_path / "out"
    assert forked(export_until(store, out, 40)) == -signal.SIGKILL
    assert call("export", store, out, "-q", "-c", "b", "--overwrite").code == 0
    assert set(files(out)) == {"manifest.json", "b/_default.h5"}
    assert call("export", store, out, "-q", "--overwrite").code == 0
    assert files(out) == expected


def unfinished(store: Path, out: Path, *options: str) -> None:
    assert forked(export_until(store, out, 40, "--jobs", "1", *options)) == -signal.SIGKILL
    assert (out / LEDGER).read_bytes().count(b"\n") > 3


def test_finished_tasks_are_not_done_again(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    unfinished(store, out)
    finished = sum(b".h5:" in line for line in (out / LEDGER).read_bytes().splitlines()[1:])
    ran: list[str] = []
    for task in (hdf5.WriteRows, hdf5.WriteFrame):
        run = task.run
        monkeypatch.setattr(task, "run", lambda self, advance, run=run: (ran.append(self.id), run(self, advance))[1])
    assert call("export", store, out, "-q", "--resume").code == 0
    resumed = len(ran)
    assert call("export", store, tmp_path / "new", "-q").code == 0
    assert resumed == len(ran) - resumed - finished


@pytest.mark.parametrize(
    ("options", "word"),
    [(["-c", "a"], "files"), (["--exclude", "b"], "files"), (["--compression", "gzip"], "compression"), (["--link"], "link")],
)
def test_other_options_are_refused(options: list[str], word: str, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unfinished(store, out)
    before = files(out)
    done = call("export", store, out, "--resume", *options)
    assert done.code == 2
    assert "cannot resume, the earlier run differs in" in done.err and word in done.err
    assert files(out) == before


def test_another_size_of_tasks_is_refused(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version of this program may cut its work in another way."""
    out = tmp_path / "out"
    unfinished(store, out)
    monkeypatch.setattr(hdf5, "TASK_BYTES", 1 << 20)
    done = call("export", store, out, "--resume")
    assert (done.code, "task_bytes" in done.err) == (2, True)


@pytest.mark.parametrize("change", ["touch", "delete", "wal"])
def test_a_changed_source_is_refused(change: str, tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("c", dim=DIM)
    made = [b.segment("c", rows(range(1000 * n, 1000 * n + 1000), dim=DIM)) for n in range(5)]
    b.wal.insert("c", rows(9001, dim=DIM))
    store, out = b.write(), tmp_path / "out"
    unfinished(store, out)
    if change == "touch":
        os.utime(made[0].raw, ns=(1, 1))
    elif change == "delete":
        with made[0].deleted.open("wb") as f:
            f.write((4).to_bytes(8, "little") + (7).to_bytes(4, "little"))
    else:
        b.wal.insert("c", rows(9002, dim=DIM))
        b.wal.write(store / "wal")
    done = call("export", store, out, "--resume")
    assert done.code == 2
    assert "the earlier run differs in" in done.err and "source" in done.err


def test_torn_ledger(store: Path, tmp_path: Path) -> None:
    expected = reference(store, tmp_path)
    out = tmp_path / "out"
    unfinished(store, out)
    ledger = out / LEDGER
    whole = ledger.read_bytes()
    for size in (0, 5, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 7):
        shutil.copytree(out, tmp_path / "torn")
        (tmp_path / "torn" / LEDGER).write_bytes(whole[:size])
        assert call("export", store, tmp_path / "torn", "-q", "--resume").code == 0
        assert files(tmp_path / "torn") == expected
        shutil.rmtree(tmp_path / "torn")


def test_a_lost_part_is_written_again(store: Path, tmp_path: Path) -> None:
    """The ledger says that rows are there, but the file is gone or is another one."""
    expected = reference(store, tmp_path)
    out = tmp_path / "out"
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"x" * 5000)):
        shutil.rmtree(out, ignore_errors=True)
        unfinished(store, out)
        for part in out.rglob("*.part"):
            damage(part)
        assert call("export", store, out, "-q", "--resume").code == 0
        assert files(out) == expected


def test_lost_compressed_file_is_written_again(store: Path, tmp_path: Path) -> None:
    expected = reference(store, tmp_path, "--compression", "gzip")
    out = tmp_path / "out"
    for last in range(1, 100):
        assert forked(export_until(store, out, last, "--compression", "gzip", "--jobs", "1")) == -signal.SIGKILL
        if (out / LEDGER).exists() and (out / LEDGER).read_bytes().count(b"\n") > 2:
            break
        shutil.rmtree(out, ignore_errors=True)
    gone = [p.unlink() for p in out.rglob("*.h5*")]
    assert len(gone) >= 2
    assert call("export", store, out, "-q", "--compression", "gzip", "--resume").code == 0
    assert files(out) == expected


@pytest.mark.parametrize("file_format", ["npy", "parquet"])
def test_a_lost_chunk_is_written_again(file_format: str, store: Path, tmp_path: Path) -> None:
    options = ["--format", file_format]
    expected = reference(store, tmp_path, *options)
    out = tmp_path / "out"
    for damage in (lambda p: p.unlink(), lambda p: os.truncate(p, p.stat().st_size - 8)):
        last = 1
        while len(chunks := sorted(p for p in out.rglob(f"*.{file_format}"))) < 2:
            shutil.rmtree(out, ignore_errors=True)
            assert forked(export_until(store, out, last, "--jobs", "1", *options)) == -signal.SIGKILL
            last += 1
        damage(chunks[0])
        assert call("export", store, out, "-q", "--resume", *options).code == 0
        assert files(out) == expected
        shutil.rmtree(out)


# Several processes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--resume"], ["--overwrite"]])
def test_two_runs_in_one_folder(options: list[str], store: Path, tmp_path: Path) -> None:
    """The second one is refused, and the first goes on undisturbed."""
    expected = reference(store, tmp_path)
    out = tmp_path / "out"
    reading, writing = os.pipe()
    resuming, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        update = hdf5.Checksums.update
        waited = False

        def paused(self: Any, column: int, data: Any) -> None:
            nonlocal waited
            if not waited:
                waited = True
                os.write(writing, b"x")
                os.read(resuming, 1)
            update(self, column, data)

        hdf5.Checksums.update = paused  # type: ignore[method-assign]
        os._exit(call("export", store, out, "-q", "--jobs", "1").code)
    os.read(reading, 1)
    done = call("export", store, out, "-q", *options)
    os.write(going, b"x")
    assert (done.code, "another run is writing here" in done.err) == (2, True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert files(out) == expected


def test_workers_end_with_a_killed_parent(store: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "import milvus_offline.targets.hdf5 as h\n"
        f"h.TASK_BYTES = {TASK_BYTES}\n"
        "update = h.Checksums.update\n"
        "def slow(self, column, data): os.write(1, b'%d\\n' % os.getpid()); time.sleep(600); update(self, column, data)\n"
        "h.Checksums.update = slow\n"
        "from milvus_offline.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, "export", str(store), str(out), "-q", "--compression", "gzip", "--jobs", "2"]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the worker is still there")
    assert call("export", store, out, "-q", "--compression", "gzip", "--resume").code == 0


def test_sigterm_is_an_interruption(store: Path, tmp_path: Path) -> None:
    expected = reference(store, tmp_path)
    out = tmp_path / "out"
    done = interrupted(store, out, stop=signal.SIGTERM)
    assert (done.returncode, "with --resume to go on" in done.stderr) == (130, True)
    assert call("export", store, out, "-q", "--resume").code == 0
    assert files(out) == expected


def test_without_sync_the_disk_is_not_waited_for(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(os, "fsync", waited.append)
    expected = reference(store, tmp_path)
    assert waited
    waited.clear()
    assert call("export", store, tmp_path / "out", "-q", "--no-sync").code == 0
    assert (waited, files(tmp_path / "out") == expected) == ([], True)
    assert call("export", store, tmp_path / "again", "-q").code == 0  # the next one in the same process does again
    assert waited


def test_what_was_not_synced_is_not_gone_on_with(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert forked(export_until(store, out, 40, "--jobs", "1", "--no-sync")) == -signal.SIGKILL
    assert (out / LEDGER).exists()
    refused = call("export", store, out, "--resume")
    assert (refused.code, "differs in: sync" in refused.err) == (2, True)
    refused = call("export", store, out, "--resume", "--no-sync")
    assert (refused.code, "contradict" in refused.err) == (2, True)
    assert call("export", store, out, "-q", "--overwrite").code == 0
    assert files(out) == reference(store, tmp_path)
