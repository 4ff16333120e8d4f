"""What other machines refuse: a file system without locks (NFS, CIFS), and a user who may not read everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import Outcome

_NO_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int fd, int operation) { errno = ENOLCK; return -1; }
static int answer(const char *name, int fd, int command, void *argument) {
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, name);
    if (command == F_GETLK || command == F_SETLK || command == F_SETLKW || (command >= 36 && command <= 38)) {
        errno = ENOLCK;
        return -1;
    }
    return real(fd, command, argument);
}
#define LIKE(name) int name(int fd, int command, ...) { \
    va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \
    return answer(#name, fd, command, argument); }
LIKE(fcntl)
LIKE(fcntl64)
"""


def without_locks(folder: Path) -> dict[str, str]:
    """The environment of a process that gets no lock on any file, neither of flock's nor of fcntl's."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("FILE SYSTEMS WITHOUT LOCKS WERE NOT TESTED: this needs Linux and a C compiler")
    source, library = folder / "locks.c", folder / "locks.so"
    source.write_text(_NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    probe = "import fcntl, tempfile; fcntl.{}(tempfile.TemporaryFile(), fcntl.LOCK_EX)"
    for call in ("flock", "lockf"):
        done = subprocess.run([sys.executable, "-c", probe.format(call)], env=environment, capture_output=True, text=True)
        assert "No locks available" in done.stderr
    return environment


def powerless(*arguments: object, **options: object) -> Outcome:
    """`milvus-offline ARGUMENTS` as root without the capabilities that let root read everything, or as the user that runs this.

    Root in a container often has none of them; where nobody may drop them the test is skipped.
    """
    command = [sys.executable, "-m", "milvus_offline", *map(str, arguments)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("UNREADABLE FILES WERE NOT TESTED: root needs setpriv to be refused anything")
        drop = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]
    return Outcome(done.returncode, done.stdout, done.stderr)
