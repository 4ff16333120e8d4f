"""The command line: words a person types, and what each exit code means. Commands are loaded when they are called."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import re
import signal
import sys
from typing import Any

import click

from ._version import __version__

COMMANDS = {
    "inspect": "What is in a store, how healthy it is, what an export would contain.",
    "verify": "Read everything, believe nothing: a store or an export.",
    "export": "Write a store's rows to files.",
    "load": "Bring a store, an export, HDF5 files or a Faiss index into Milvus.",
    "run": "Do what a MilvusDM task file says.",
    "rows": "Look at rows, find ids.",
    "search": "Exact nearest neighbours, straight from the files.",
    "serve": "Answer as a read-only Milvus 1.x server over a dead store.",
    "explain": "What a finding means, and what helps.",
    "dump": "Export everything (the same as export).",
    "restore": "Load an export (the same as load).",
}
_ALIASES = {"dump": "export", "restore": "load"}
_MEANT = {
    word: command
    for command, words in {
        "inspect": "ls list info show stat status describe count tree health collections",
        "verify": "check fsck compare diff scan validate test",
        "export": "backup copy cp save extract recover",
        "load": "import migrate insert upload convert repair fix",
        "rows": "get head cat find",
        "search": "query knn",
        "serve": "start server",
        "explain": "why man doc",
    }.items()
    for word in words.split()
}
"""What other programs call a command."""


class _Commands(click.Group):
    """Imports a command's module only when that command runs, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.commands.{_ALIASES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(self._meant(ctx, args[0], args[1:]), ctx)
        return super().resolve_command(ctx, args)

    def _meant(self, ctx: click.Context, word: str, rest: list[str]) -> str:
        """What to type instead of a command that there is not."""
        import difflib
        import shlex

        from .names import printable

        there = self.list_commands(ctx)
        if word.lower() == "version":
            return "there is no command version: milvus-offline --version"
        if word in ("help", "-?", "/?"):
            topic = rest[0] if rest and rest[0] in there else None
            return f"there is no command help: milvus-offline {f'{topic} ' if topic else ''}--help"
        if os.path.exists(word) or word.startswith(("./", "../", "/", "~")):
            return (
                f"no command before the path {printable(word)}: milvus-offline inspect {shlex.quote(word)} says what is in it"
            )
        near = [m for m in (_MEANT.get(word.lower()),) if m in there] or difflib.get_close_matches(word.lower(), there, 2, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(there)}"
        return f"there is no command {printable(word)}: {hint}"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            commands = [(n, self.get_command(ctx, n)) for n in self.list_commands(ctx) if n not in _ALIASES]
            having = [n for n, c in commands if c and any(e.option_name in (*p.opts, *p.secondary_opts) for p in c.params)]
            if not having:
                raise click.UsageError(f"there is no option {e.option_name}: milvus-offline --help", ctx) from e
            of = having[0] if len(having) == 1 else "COMMAND"
            where = f"milvus-offline {of} ... {e.option_name}"
            raise click.UsageError(f"{e.option_name} goes after the command: {where}", ctx) from e

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


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
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log, we say
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads would spin beside the first second of the copy
    _open_standard_streams()
    with contextlib.suppress(ValueError):  # not the main thread
        interrupt = _Interrupt()
        for number in (signal.SIGINT, signal.SIGTERM):  # stopped by a service manager: as by Ctrl-C
            signal.signal(number, interrupt)
        sys.unraisablehook = interrupt.swallowed
    code = run(arguments)
    gc.freeze()
    if code == 130:  # threads may still be inside HDF5, which the end of the interpreter would take from under them
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


class _Interrupt:
    """What Ctrl-C does: the first one ends the run in order. Who asks again does not wait for that: what is finished is in the
    ledger, as after a kill."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, *_: Any) -> None:
        if self._asked:
            os._exit(130)
        self._asked = True
        raise KeyboardInterrupt

    def swallowed(self, unraisable: Any) -> None:
        """Python throws exceptions away that come while it tidies up some object; an interrupt among them comes again."""
        if unraisable.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(unraisable)
            return
        import threading

        self._asked = False
        threading.Timer(0.02, signal.raise_signal, (signal.SIGINT,)).start()


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
    from .present import seen_anew

    words = sys.argv[1:] if arguments is None else arguments
    try:
        with seen_anew():
            result: Any = cli.main(arguments, prog_name="milvus-offline", standalone_mode=False)
        return int(result or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        return _say(words, _sentence(e), 2)
    except MilvusOfflineError as e:
        return _say(words, str(e), e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        kept = "; what is finished is kept: run the same command with --resume to go on" if _can_resume(words) else ""
        return _say(words, f"interrupted{kept}", 130)
    except BrokenPipeError:  # the reader of stdout has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _say(words, "out of memory: run with fewer --jobs, or on a machine with more memory", 1)
    except ModuleNotFoundError as e:  # an installation that is not whole
        from .errors import pip_install

        package = (e.name or "").partition(".")[0]
        if package in ("", "milvus_offline"):
            raise
        return _say(words, f"this installation lacks the package {package}: {pip_install()}", 1)
    except OSError as e:
        hint = ": run as a user with permission, or copy it" if isinstance(e, PermissionError) else ""
        return _say(words, f"{e.filename or 'file system'}: {e.strerror or e}{hint}", 1)


def _sentence(error: click.ClickException) -> str:
    """A wrong call in one sentence, with what to do about it."""
    context = getattr(error, "ctx", None)
    name = context.info_name if context is not None and context.parent is not None else None
    if isinstance(error, click.MissingParameter) and context is not None:
        needed = [p.make_metavar(context).strip("[].") for p in context.command.params if isinstance(p, click.Argument)]
        usage = " ".join(context.command.collect_usage_pieces(context))
        is_needed = "are needed" if len(needed) > 1 else "is missing"
        return f"{' and '.join(needed)} {is_needed}: milvus-offline {name} {usage}"
    if isinstance(error, click.BadParameter) and isinstance(error.param, click.Option):
        option = max(error.param.opts, key=len)
        several = error.param.multiple and "," in error.message
        hint = f": each one has an option of its own, as in {option} 1 {option} 2" if several else ""
        return f"{option}: {_value_refused(error.param.type, error.message)}{hint}"
    if isinstance(error, click.BadParameter):
        return error.message
    if isinstance(error, click.BadOptionUsage) and error.message.endswith("requires an argument."):
        return f"{error.option_name} needs a value behind it, as {error.option_name} VALUE"
    text = error.format_message()
    if context is not None and (found := re.match(r"Got unexpected extra arguments? \((.*)\)", text, re.S)):
        return f"{found[1]}: {_one_too_many(context, found[1])}"
    if not name or any(way in text for way in ("milvus-offline ", "--help", "did you mean")):
        return text
    return f"{text.rstrip('.')}: milvus-offline {name} --help"


def _one_too_many(context: click.Context, words: str) -> str:
    """What to do about words behind the last argument that a command takes."""
    usage = " ".join(context.command.collect_usage_pieces(context))
    options = [p for p in context.command.params if isinstance(p, click.Option) and p.multiple]
    typed = [p for p in options if context.params.get(str(p.name))]
    ids = [p for p in options if "--id" in p.opts and words.split()[0].isdecimal()]
    first = words.split()[0]
    hint = f"; did you mean {max((ids or typed)[0].opts, key=len)} {first}?" if ids or typed else ""
    return f"one word too many; the command is milvus-offline {context.info_name} {usage}{hint}"


def _value_refused(kind: click.ParamType[Any], message: str) -> str:
    """What click says of a value that is none of the choices, or no such number, as a person says it."""
    found = re.match(r"(?:'(.*?)'|(\S+)) is not (?:one of|in the range|a valid)\b", message)
    given = (found[1] or found[2] or "") if found else None
    if given is not None and isinstance(kind, click.Choice):
        import difflib

        near = difflib.get_close_matches(given.lower(), kind.choices, 1, 0.5)
        hint = f"did you mean {near[0]}? There are" if near else "there are"
        return f"{given!r} is not known; {hint}: {', '.join(kind.choices)}"
    if given is not None and isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
        number = "a whole number" if isinstance(kind, click.types.IntParamType) else "a number"
        low, high = getattr(kind, "min", None), getattr(kind, "max", None)
        limits = f" from {low:g}" if low is not None else ""
        limits += f" to {high:g}" if high is not None else " on" if limits else ""
        return f"{given!r} is not {number}{limits}"
    return message


def _can_resume(words: list[str]) -> bool:
    if "--no-sync" in words:
        return False
    name = next((w for w in words if not w.startswith("-")), "")
    command = cli.get_command(click.Context(cli), name)
    return command is not None and any(p.name == "resume" for p in command.params)


def _say(words: list[str], message: str, code: int) -> int:
    from .names import printable, without_password

    text = "\n".join(printable(line) for line in without_password(message).splitlines())
    click.echo(_folded(f"milvus-offline: {text}") if sys.stderr.isatty() else f"milvus-offline: {text}", err=True)
    return _document(words, text, code)


def _folded(text: str) -> str:
    """A message on a terminal: its lines end between words."""
    import shutil
    from itertools import pairwise

    width = shutil.get_terminal_size().columns
    if all(len(line) <= width // 2 for line in text.splitlines()):
        return text
    from .text import breaks

    lines = []
    for line in text.splitlines():
        lines += [line[start:end].rstrip() for start, end in pairwise([0, *breaks(line, width), len(line)])]
    return "\n".join(lines)


def _document(words: list[str], message: str, code: int) -> int:
    """With --json there is one document on stdout, whatever happens."""
    if "--json" in words:
        import json

        with contextlib.suppress(OSError):
            click.echo(json.dumps({"format": "milvus-offline-error", "version": 1, "error": message, "exit_code": code}))
    return code
