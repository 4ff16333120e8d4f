"""Whether a folder holds just the files that it should: one look at a folder, and processes that look at very many.

What that costs are system calls, for each of which a thread gives the interpreter's lock away and waits for it again: threads
make it slower. So this file also runs as a program of its own. It imports nothing of the package and no numpy, and so begins
within some milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, cast

_READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_NOATIME = getattr(os, "O_NOATIME", 0)
_HEADER = 8
"""Bytes in front of a payload: its length, little endian (FORMAT §4.1-4.3)."""


def holds_just(folder: str, payloads: Mapping[str, int], others: Collection[str]) -> bool:
    """Whether a local folder holds these files and nothing else but, perhaps, `others` and files with numbers for names.

    Each of the files has a payload of so many bytes and says so in its header. Also False where the disk or the system refuses
    something.
    """
    try:
        names = set(os.listdir(folder))
        names.difference_update(payloads, others)
        if names and not all(name.isascii() and name.isdigit() for name in names):
            return False
        folder += os.sep
        return all(_holds(folder + name, payload) for name, payload in payloads.items())
    except OSError:
        return False


def _holds(path: str, payload: int) -> bool:
    try:
        fd = os.open(path, _READING | _NOATIME)
    except PermissionError:  # only the owner may ask for that
        fd = os.open(path, _READING)
    try:  # a folder cannot be read, nor has a pipe or a device both such a beginning and such an end
        return os.read(fd, _HEADER) == payload.to_bytes(_HEADER, "little") and os.lseek(fd, 0, os.SEEK_END) == _HEADER + payload
    finally:
        os.close(fd)


Question = tuple[str, int, int]
"""A folder's name, which is of digits, and two numbers: the payloads of its first two files, that of all others is 0."""


class Probe:
    """A process that looks at folders below `folder`. `files` are the names of the files in each, where * stands for the
    folder's own; `others` as in `holds_just`. Raises OSError when no process can be started."""

    def __init__(self, folder: str, files: Iterable[str], others: Iterable[str], questions: Sequence[Question]) -> None:
        import subprocess  # rarely needed

        self._names = [name for name, _, _ in questions]
        self._found: dict[str, bool] | None = None
        command = [sys.executable, "-I", "-S", __file__, " ".join(files), " ".join(others)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        asked = "\n".join([f"{name} {first} {second}" for name, first, second in questions])
        with contextlib.suppress(OSError), cast(IO[bytes], self._process.stdin) as stdin:
            stdin.write(asked.encode())

    def says(self, name: str) -> bool | None:
        """Whether the folder holds just what it should; None where the process was lost. Waits for its end."""
        if self._found is None:
            with self._process as process:
                self._found = dict(zip(self._names, map(bool, cast(IO[bytes], process.stdout).read()), strict=False))
        return self._found.get(name)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        with self._process as process:
            process.kill()


def named(files: Iterable[str], folder: str, first: int, second: int) -> dict[str, int]:
    """The payloads of a folder's files, by their names: what `holds_just` takes."""
    return dict(zip((name.replace("*", folder) for name in files), (first, second, 0), strict=True))


def main(files: Sequence[str], others: Sequence[str]) -> None:
    """The process: questions from its input, a byte for each of them to its output."""
    answers = bytearray()
    for line in sys.stdin.read().splitlines():
        folder, first, second = line.split(" ")
        answers.append(holds_just(folder, named(files, folder, int(first), int(second)), others))
    sys.stdout.buffer.write(answers)


if __name__ == "__main__":
    main(*(words.split(" ") for words in sys.argv[1:]))
