"""Ctrl-C: the first one ends the run in order, the second at once, and none is lost."""

from __future__ import annotations

import subprocess
import sys

BEGIN = "import os, signal, sys\nfrom milvus_offline import cli\n"


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + body], capture_output=True, text=True, timeout=600)


def test_the_first_one_is_one_sentence_without_the_end_of_the_interpreter() -> None:
    body = "import atexit\natexit.register(print, 'torn down')\n"
    body += "cli.cli.main = lambda *a, **k: signal.raise_signal(signal.SIGINT)\n"
    done = run(body + "cli.main(['export', 'x', 'y'])")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("milvus-offline: interrupted") and "Traceback" not in done.stderr


def test_the_second_one_does_not_wait_for_the_first() -> None:
    body = "def slow(*a, **k):\n    try:\n        signal.raise_signal(signal.SIGTERM)\n"
    body += "    finally:\n        signal.raise_signal(signal.SIGINT)\n        print('waited')\n"
    done = run(body + "cli.cli.main = slow\ncli.main(['export', 'x', 'y'])")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_one_that_python_throws_away_comes_again() -> None:
    body = "class Tidy:\n    def __del__(self):\n        signal.raise_signal(signal.SIGINT)\n"
    body += "def work(*a, **k):\n    t = Tidy()\n    del t\n    import time\n    while True:\n        time.sleep(0.01)\n"
    done = run(body + "cli.cli.main = work\ncli.main(['export', 'x', 'y'])")
    assert done.returncode == 130 and "Traceback" not in done.stderr and "interrupted" in done.stderr


def test_before_all_is_imported_it_is_silent() -> None:
    body = "import milvus_offline.__main__ as m\nsys.modules['milvus_offline.cli'] = None\n"
    done = run(body + "m.signal.signal = lambda n, f: f() if n == signal.SIGINT else None\nm.main()")
    assert (done.returncode, done.stderr) == (130, "")
