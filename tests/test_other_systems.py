"""What only Unix has is used where it is there, and missed by nothing: a stand-in for Windows, and in part for macOS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.builder import StoreBuilder, rows

WITHOUT = """
import asyncio, concurrent.futures, multiprocessing, os, sqlite3, subprocess, sys, tempfile
import click, faiss, fsspec, grpc, h5py, numpy, pymilvus, rich.console, sqlalchemy, yaml
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty"):
    sys.modules[name] = None
for name in ("geteuid", "getuid", "preadv", "pwrite", "pwritev", "pread", "posix_fadvise", "posix_fallocate", "copy_file_range",
             "sched_getaffinity", "sysconf", "register_at_fork", "O_NONBLOCK", "O_NOATIME",
             "O_CLOEXEC", "O_DIRECTORY", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
import importlib, pkgutil
import milvus_offline
for module in pkgutil.walk_packages(milvus_offline.__path__, "milvus_offline."):
    if module.name not in ("milvus_offline.__main__", "milvus_offline.engines.ray", "milvus_offline.engines.spark"):
        importlib.import_module(module.name)
from milvus_offline.cli import run
store, out = sys.argv[1:]
for words in (
    ["inspect", store], ["verify", store], ["export", store, out + "/a"], ["verify", out + "/a", "--against", store],
    ["export", store, out + "/b", "--format", "parquet"], ["search", store, "--id", "2"], ["rows", store, "--deleted"],
    ["load", store, "milvus1:" + out + "/new"], ["verify", out + "/new"],
):
    code = run([*words, "-q"])
    assert code == 0, (words, code)
"""


def test_what_only_unix_has_is_not_needed(tmp_path: Path) -> None:
    b = StoreBuilder(tmp_path / "store")
    b.collection("faces")
    b.segment("faces", rows(range(1, 500)), deleted=[3])
    b.wal.insert("faces", rows(900))
    command = [sys.executable, "-c", WITHOUT, str(b.write()), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
