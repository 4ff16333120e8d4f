"""The command line: words a person types, and what each exit code means. Commands are loaded when they are called."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import signal
import sys
from typing import Any

import click

from ._version import __version__

COMMANDS = {
    "inspect": "What is in a store, how healthy it is, what a copy would bring.",
    "verify": "Read everything, believe nothing: a store or an export.",
    "export": "Write a store's rows to files.",
    "load": "Bring a store, an export, HDF5 files or a Faiss index into Milvus.",
    "run": "Do what a MilvusDM task file says.",
    "dump": "Export everything (the same as export).",
    "restore": "Load an export (the same as load).",
}
_ALIASES = {"dump": "export", "restore": "load"}


class _Commands(click.Group):
    """Imports a command's module only when that command runs, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _module_exists(_ALIASES.get(name, name))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS or not _module_exists(target):
            return None
        module = importlib.import_module(f"{__package__}.commands.{target}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


def _module_exists(name: str) -> bool:
    return importlib.util.find_spec(f"{__package__}.commands.{name}") is not None


_EPILOG = (
    "Exit codes: 0 all is well; 1 failed; 2 wrong usage; 3 finished, but some rows could not be recovered or some state was "
    "ambiguous (the report names all); 4 verification found a difference; 130 interrupted (--resume goes on)."
)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="milvus-offline")
def cli() -> None:
    """Reads the data of stopped or crashed Milvus 1.x servers straight from disk, row for row.

    The source is never written to.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns foreseeable errors into one clear message and an exit code.

    What is imported lives until the end: looking through it for garbage, also at the end, would take a fifth of the start.
    """
    gc.set_threshold(100_000)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would spin beside the first second of the copy
    _open_standard_streams()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by a service manager: as by Ctrl-C
    code = run(arguments)
    gc.freeze()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Gives a process that was started without them (`2>&-`) streams to nowhere: the next file that is opened would take their
    place, and get what is meant for a person. What a terminal's encoding lacks is escaped."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str] | None = None) -> int:
    """The exit code of a command line; see `_EPILOG`."""
    from .errors import MilvusOfflineError

    words = sys.argv[1:] if arguments is None else arguments
    try:
        result: Any = cli.main(arguments, prog_name="milvus-offline", standalone_mode=False)
        return int(result or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return _document(words, e.format_message(), 2)
    except MilvusOfflineError as e:
        return _say(words, str(e), e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        kept = "; what is finished is kept, the same command with --resume goes on" if _can_resume(words) else ""
        return _say(words, f"interrupted{kept}", 130)
    except BrokenPipeError:  # the reader of stdout has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _say(words, "out of memory: run with fewer --jobs, or on a machine with more memory", 1)
    except OSError as e:
        return _say(words, f"{e.filename or 'file system'}: {e.strerror or e}", 1)


def _can_resume(words: list[str]) -> bool:
    if "--no-sync" in words:
        return False
    name = next((w for w in words if not w.startswith("-")), "")
    command = cli.get_command(click.Context(cli), name)
    return command is not None and any(p.name == "resume" for p in command.params)


def _say(words: list[str], message: str, code: int) -> int:
    from .fileio import printable

    text = "\n".join(printable(line) for line in message.splitlines())
    click.echo(f"milvus-offline: {text}", err=True)
    return _document(words, text, code)


def _document(words: list[str], message: str, code: int) -> int:
    """With --json there is one document on stdout, whatever happens."""
    if "--json" in words:
        import json

        with contextlib.suppress(OSError):
            click.echo(json.dumps({"format": "milvus-offline-error", "version": 1, "error": message, "exit_code": code}))
    return code
