"""Everything this package raises on purpose.

A message names the file, the byte offset where that helps, what was expected, what was found, and what to do next.
The exit code of the command line is the error's `exit_code`.
"""

from __future__ import annotations

import sys


class MilvusOfflineError(Exception):
    """Root of all errors that a user can meet; the message is meant for a person."""

    exit_code = 1


class UsageError(MilvusOfflineError):
    """The call itself cannot be meant: an unknown collection, a target that is not ours, contradicting options."""

    exit_code = 2


class MissingPackageError(MilvusOfflineError):
    """What was asked for needs a package that is not installed; the message ends with the command that adds it.

    An option that cannot be had here is a wrong call (2), a file or an address that cannot be opened here a failure (1).
    """

    def __init__(self, what: str, package: str, extra: str, *, exit_code: int = UsageError.exit_code) -> None:
        self.package, self.extra, self.exit_code = package, extra, exit_code
        super().__init__(f"{what} needs the package {package}: {pip_install(extra)}")

    def __reduce__(self) -> tuple[object, ...]:
        return _missing, (self.args[0], self.package, self.extra, self.exit_code)


def _missing(text: str, package: str, extra: str, exit_code: int) -> MissingPackageError:
    error = MissingPackageError("", package, extra, exit_code=exit_code)
    error.args = (text,)
    return error


class StoreError(MilvusOfflineError):
    """The path is not a store, its catalog cannot be read, or a bucket does not give or take what is asked of it."""


class DamageError(MilvusOfflineError):
    """A file of a store, an export or an index holds something that its format does not allow."""

    def __init__(self, path: object, message: str, *, offset: int | None = None) -> None:
        self.path = str(path)
        self.offset = offset
        self.reason = message
        where = self.path if offset is None else f"{self.path} at byte {offset}"
        super().__init__(f"{where}: {message}")

    def __reduce__(self) -> tuple[object, ...]:
        return _damage, (self.path, self.reason, self.offset)


def _damage(path: str, message: str, offset: int | None) -> DamageError:
    return DamageError(path, message, offset=offset)


class TargetError(MilvusOfflineError):
    """The target refuses or cannot take the rows: disk full, no permission, a server's answer."""


def pip_install(extra: str = "") -> str:
    """The command that adds one of our extras, or what we always need, to this very installation, whichever `pip` the shell
    would find.

    A tool that was installed with pipx, or is called by its path, has a Python that the shell does not know.
    """
    import shlex  # rarely needed, and every command loads this module
    import shutil
    from pathlib import Path

    here, found = Path(sys.executable), shutil.which("pip")
    ours = found is not None and Path(found).parent == here.parent
    pip = "pip" if ours else f"{shlex.quote(str(here))} -m pip"
    return f"{pip} install 'milvus-offline[{extra}]'" if extra else f"{pip} install milvus-offline"
