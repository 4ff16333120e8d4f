"""A command of ours: options in groups with an example in its help, values from the environment and a file, and what people
type by mistake told in one sentence.

Plain click: cloup adds a tenth of a second to every start, rich-click as much to every help.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from ..errors import StoreError, TargetError, UsageError

ENVIRONMENT = "MILVUS_OFFLINE_"
DOCUMENTATION = "docs/commands.md"
OWN_GROUP = "Options"
SELECTION_GROUP = "What is taken"
STORE_GROUP = "The store"
FILES_GROUP = "Files of other programs, Faiss indexes"
OUTPUT_GROUP = "Output"
_RANKS = {OWN_GROUP: 0, SELECTION_GROUP: 1, STORE_GROUP: 3, FILES_GROUP: 4, OUTPUT_GROUP: 5, "Help": 6}
"""The order of headings; those of a command alone come after what is taken."""

F = TypeVar("F", bound=Callable[..., Any])


def chain(*decorators: Callable[[F], F], group: str = OWN_GROUP) -> Callable[[F], F]:
    """Options that several commands have, under a heading of their own in the help."""

    def apply(function: F) -> F:
        before = len(getattr(function, "__click_params__", []))
        for decorator in reversed(decorators):
            function = decorator(function)
        for param in function.__click_params__[before:]:  # type: ignore[attr-defined]
            param.group = getattr(param, "group", group)
        return function

    return apply


def choice(*names: str, words: Sequence[str], help: str, default: str | None = "") -> Callable[[F], F]:
    """An option that is one of `words`: the first one where nothing is said, or `default`; with None there is no default."""
    default = words[0] if default == "" else default
    return click.option(
        *names, type=click.Choice(words, case_sensitive=False), default=default, show_default=default is not None, help=help
    )


def variable_of(option: click.Option) -> str:
    """The environment variable of an option: `--no-wal` is MILVUS_OFFLINE_NO_WAL."""
    return ENVIRONMENT + max(option.opts, key=len).lstrip("-").upper().replace("-", "_")


class Command(click.Command):
    """`examples` stand at the end of the help; `groups` are headings with the names of the command's own options."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), groups: Mapping[str, Sequence[str]] | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.examples = examples
        headings = {name: title for title, names in (groups or {}).items() for name in names}
        for param in self.params:
            if not isinstance(param, click.Option):
                continue
            if param.name in headings:
                param.group = headings[param.name]  # type: ignore[attr-defined]
            if isinstance(param.type, (click.IntRange, click.FloatRange)) and not param.metavar and not param.count:
                param.metavar = "N"
            own, given = variable_of(param), param.envvar
            param.envvar = [own, *([given] if isinstance(given, str) else given or [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                group = "Help" if "--help" in param.opts else getattr(param, "group", OWN_GROUP)
                sections.setdefault(group, []).append((_one_line(record[0]), _readable(record[1])))
        for title in sorted(sections, key=lambda t: _RANKS.get(t, 2)):
            with formatter.section(title):
                formatter.write_dl(sections[title], col_max=min(30, formatter.width // 3))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    for line in _folded(example, formatter.width - formatter.current_indent):
                        formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        formatter.write_text(
            f"Every option can be given as an environment variable ({ENVIRONMENT}NO_WAL=1 for --no-wal) or in the file "
            f"of --config. All about the command: {DOCUMENTATION}"
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as e:
            raise click.UsageError(self._unknown(ctx, e.option_name), ctx) from e
        for param in self.params:
            value = ctx.params.get(str(param.name))
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and (found := _NO_BUCKET.match(text)) and not os.path.exists(text):
                    place = text.partition(":")[2].strip("/") or "BUCKET/FOLDER"
                    raise click.UsageError(f"{text} names no bucket: did you mean {found[1]}://{place}?", ctx)
            if isinstance(param.type, click.Path) and "" in (value if isinstance(value, tuple) else (value,)):
                what = max(param.opts, key=len) if isinstance(param, click.Option) else param.make_metavar(ctx)
                raise click.UsageError(f"{what} is empty: name a file or folder (is a shell variable unset?)", ctx)
        return rest

    def _unknown(self, ctx: click.Context, option: str) -> str:
        """What was meant by an option that this command does not have."""
        own = [o for p in self.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")]
        group = ctx.parent.command if ctx.parent else None
        others: list[str] = []
        if isinstance(group, click.Group) and ctx.parent:
            for other in group.list_commands(ctx.parent):
                command = group.get_command(ctx.parent, other)
                if command and command.name == other and any(option in (*p.opts, *p.secondary_opts) for p in command.params):
                    others.append(other)  # an alias has the name of what it stands for
        name = str(ctx.info_name)
        word = option.lstrip("-").lower()
        for argument in (p for p in self.params if isinstance(p, click.Argument)):
            if word in (argument.name, *_ARGUMENTS.get(str(argument.name), ())):
                typed = f"{argument.make_metavar(ctx).strip('[].')} is typed without {option}"
                return f"{typed}: milvus-offline {name} {' '.join(self.collect_usage_pieces(ctx))}"
        if others:
            return f"{option} does not go with {name}, but with {' and '.join(others[:3])}: milvus-offline {others[0]} --help"
        meant = next((p for p in self.params if word in _OTHER_WORDS.get(str(p.name), ())), None)
        if meant is not None:
            record = meant.get_help_record(ctx)
            return f"{name} has no option {option}: did you mean {_one_line(record[0]) if record else meant.opts[0]}?"
        from difflib import get_close_matches

        near = get_close_matches(option, own, 3, 0.65)
        hint = f"did you mean {' or '.join(near)}?" if near else f"milvus-offline {name} --help lists all"
        return f"{name} has no option {option}: {hint}"


_ARGUMENTS = {
    "out": ("o", "output", "out-dir", "output-dir", "dest", "destination", "target", "to", "dir"),
    "target": ("t", "dest", "destination", "to", "uri", "url", "host", "out", "output", "o"),
    "path": ("i", "s", "input", "source", "src", "store", "from", "data", "dir", "file"),
    "paths": ("i", "s", "input", "source", "src", "store", "from", "data", "dir", "file", "path"),
    "task": ("f", "file"),
}
"""Options of other programs for what is an argument here, by its name."""
_OTHER_WORDS = {
    "listen": ("port", "host", "bind", "address"),
    "verbose": ("log-level", "debug"),
    "overwrite": ("force", "f"),
    "limit": ("limit", "head", "count"),
    "k": ("top-k", "topk", "limit", "nearest"),
    "jobs": ("j", "threads", "workers", "processes", "parallel"),
    "ask_token": ("password", "user", "username", "u"),
}
"""What other programs call an option, by its name."""


def _folded(command: str, width: int) -> list[str]:
    """A command in lines that can be pasted together."""
    lines = [""]
    for word in command.split(" "):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > width and len(command) > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _readable(text: str) -> str:
    """The limits of a number as a person says them."""
    text = re.sub(r"([\d.]+)<=x<=([\d.]+)", r"\1 to \2", text)
    return re.sub(r"; x>=\d+\b|\s*\[x>=[\d.]+\]", "", text)


def _one_line(record: str) -> str:
    return re.sub(r"\s+", " ", record)


# Types of arguments -----------------------------------------------------------------------------------------------------

_BUCKETS = ("s3://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
"""What is read and written in place, see milvus_offline/buckets."""
_READ = ", ".join(_BUCKETS[:2] + _BUCKETS[3:4])
_NO_BUCKET = re.compile(rf"({'|'.join(b[:-3] for b in _BUCKETS)}):(?:/{{0,2}}$|///)")
_REMOTE = re.compile(r"^(?:[a-z][a-z0-9+.-]+://|[\w.-]+@?[\w.-]*:/)", re.I)


class SourcePath(click.Path):
    """A file or folder that is read; the shell completes it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        if text == "-":
            self.fail("standard input cannot be read: name a file or folder", param, ctx)
        if _REMOTE.match(text) and not text.startswith(_BUCKETS) and not os.path.exists(text):
            if meant := _as_path(text):
                self.fail(f"{text}: did you mean {meant}?", param, ctx)
            kind = (
                "is the address of a server, and this command reads files"
                if text.startswith(("http", "milvus"))
                else "is not on this machine"
            )
            copy = f"rsync -a {text} ./copy" if "://" not in text else f"rclone copy {text} ./copy"
            what = "name the folder of the store" if text.startswith(("http", "milvus")) else f"copy it first, as with {copy}"
            if _is_elsewhere(text):
                raise StoreError(f"{text} {kind}, nor in a bucket ({_READ}): {what}")
            self.fail(f"{text} {kind}: {what}", param, ctx)
        return text


class SourceOrTarget(SourcePath):
    """A file or folder that is read, or the target of a load."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        if is_target(text):
            return text if "://" in text else text.rstrip(os.sep)
        return super().convert(value, param, ctx)


def is_target(text: str) -> bool:
    """Whether a path means a target of load, and no store, export or file."""
    folder = text.rstrip(os.sep)
    return text.startswith(("http://", "https://", "tcp://", "milvus1:")) or (folder.endswith(".db") and os.path.isdir(folder))


class OutFolder(click.Path):
    """A folder that is written."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        if text == "-":
            self.fail("an export is a folder of files, which cannot go to standard output: name a folder", param, ctx)
        if _REMOTE.match(text) and not text.startswith(_BUCKETS):
            if meant := _as_path(text):
                self.fail(f"{text}: did you mean {meant}?", param, ctx)
            where = (
                "milvus-offline load brings rows into a server"
                if text.startswith(("http", "milvus"))
                else "copy it there later"
            )
            if _is_elsewhere(text):
                raise TargetError(
                    f"{text} is neither a folder on this machine nor in a bucket ({_READ}): name one, and {where}"
                )
            self.fail(f"{text} is not a folder on this machine: name one, and {where}", param, ctx)
        return text


def _is_elsewhere(text: str) -> bool:
    """Whether this is an address whose scheme nobody here knows: not a wrong word, but a place that cannot be reached."""
    return "://" in text and not text.startswith(("http", "milvus"))


class OutFile(click.Path):
    """A file that is written, on this machine."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        option = max(param.opts, key=len) if param else "this"
        if text == "-":
            raise UsageError(f"{option} cannot go to standard output: name a file")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
            meant = _as_path(text) if text.lower().startswith("file:") else None
            hint = f"did you mean {meant}?" if meant else "name one on this machine, and copy it there later"
            raise UsageError(f"{option} writes a file, and {without_login(text)} is none: {hint}")
        return text


def _as_path(url: str) -> str | None:
    """What was meant by a URL that is a path of this machine, or one of a bucket in a spelling that only others take."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "file" and rest.startswith("/"):
        return re.sub(r"^(//(localhost(?=/))?)?/*", "/", rest)
    if scheme.lower() in ("s3a", "s3n"):
        return f"s3:{rest}"
    if scheme != scheme.lower() and f"{scheme.lower()}://" in _BUCKETS:
        return f"{scheme.lower()}:{rest}"
    if f"{scheme}://" in _BUCKETS and rest.strip("/"):
        return f"{scheme}://{rest.lstrip('/')}"
    return None


class Target(click.Path):
    """A target of a load: PATH.db, http(s)://host:port, milvus1:PATH (with `~` expanded) or milvus1://host:port."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        if text.startswith("milvus1:") and not text.startswith("milvus1://"):
            return "milvus1:" + os.path.expanduser(text.removeprefix("milvus1:"))
        if text.rstrip(os.sep).endswith(".db") and "://" not in text:  # the shell completes a folder with a slash
            return os.path.expanduser(text).rstrip(os.sep)
        if text.startswith(("http://", "https://", "milvus1://")):
            return text
        from ..targets import SCHEMES

        if "://" not in text and any(kind.recognises(text) for kind in SCHEMES):  # a kind that was added to the table
            return text
        first = str(ctx.params.get("path") or "") if ctx else ""
        if os.path.exists(text) and first.endswith(".db") and not os.path.exists(first):
            turned = f"milvus-offline load {shlex.quote(text)} {shlex.quote(first)}"
            raise click.BadParameter(f"the source comes first, then the target: {turned}", ctx, param)
        raise click.BadParameter(f"{without_login(text)}: {_meant(text)}", ctx, param)


def _meant(target: str) -> str:
    kinds = "a target is PATH.db (Milvus Lite), http://host:19530, milvus1:PATH (a new 1.x store) or milvus1://host:19530"
    if target == "-":
        return f"standard output is no target; {kinds}"
    if found := re.match(r"(https?|milvus1):?/+([^/].*)$", target, re.I):
        return f"did you mean {found[1].lower()}://{found[2]}?"
    if target.lower().startswith("milvus1:"):
        return f"did you mean milvus1:{target.partition(':')[2]}?"
    scheme, colon, rest = target.partition("://")
    if colon:
        rest = rest.rpartition("@")[2]
        near = {"tcp": "http", "grpc": "http", "grpcs": "https", "milvus": "http", "milvuss": "https"}.get(scheme.lower())
        from difflib import get_close_matches

        near = near or next(iter(get_close_matches(scheme.lower(), ["http", "https", "milvus1"], 1, 0.6)), None)
        if near:
            return f"did you mean {near}://{rest}?"
        if f"{scheme.lower()}://" in _BUCKETS:
            return f"rows go into a bucket as files: export SOURCE {target} --format parquet; {kinds}"
        return f"{scheme}:// is not known; {kinds}"
    if re.search(r"\.(h5|hdf5|npy|npz|parquet|sqlite3?|json|csv|txt|ya?ml)$", target, re.I):
        return f"files are written by milvus-offline export SOURCE OUT; {kinds}"
    if re.fullmatch(r"[\w.-]+:\d+/?", target):
        return f"did you mean http://{target}?"
    if os.path.exists(target) or os.sep in target:
        return f"did you mean milvus1:{target} (a new 1.x store there), or {target.rstrip(os.sep)}.db (Milvus Lite)? {kinds}"
    if re.fullmatch(r"(?:[\w-]+\.)+[\w-]+|localhost", target):
        return f"did you mean http://{target}:19530? Otherwise: {kinds}"
    return kinds


def without_login(address: str) -> str:
    """An address as it may be shown: without what stands before an `@`."""
    return re.sub(r"//[^/]*@", "//", address)


# A file of options ------------------------------------------------------------------------------------------------------


def read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Makes what a YAML or JSON file says the default of options: `option: value`, also below a command's name."""
    if not value:
        return
    from ..named import read_document

    try:
        given = read_document(value, "the configuration") or {}
    except UsageError as e:
        raise click.BadParameter(str(e), ctx, param) from e
    if not isinstance(given, dict):
        raise click.BadParameter(f"{value}: expected lines such as `jobs: 2`", ctx, param)
    commands = (
        set(ctx.parent.command.list_commands(ctx.parent))
        if ctx.parent and isinstance(ctx.parent.command, click.Group)
        else set()
    )
    plain = {k: v for k, v in given.items() if k not in commands}
    mine = given.get(ctx.info_name) or {}
    if not isinstance(mine, dict):
        raise click.BadParameter(f"{value}: expected the options of {ctx.info_name} below its name", ctx, param)
    known = {o.lstrip("-"): p for p in ctx.command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    defaults = {}
    for name, setting in {**plain, **mine}.items():
        option = known.get(str(name).replace("_", "-"))
        if option is None:
            if name in plain and name not in mine and _of_another(ctx, str(name)):
                continue
            from difflib import get_close_matches

            near = get_close_matches(str(name), list(known), 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise click.BadParameter(f"{value}: {ctx.info_name} has no option {name}{hint}", ctx, param)
        no = f"--{str(name).replace('_', '-')}" in option.secondary_opts
        if option.multiple and not isinstance(setting, list):
            setting = [setting]
        defaults[str(option.name)] = not setting if no else setting
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _of_another(ctx: click.Context, name: str) -> bool:
    group = ctx.parent
    if group is None or not isinstance(group.command, click.Group):
        return False
    option = f"--{name.replace('_', '-')}"
    commands = (group.command.get_command(group, n) for n in group.command.list_commands(group))
    return any(option in (*p.opts, *p.secondary_opts) for c in commands if c for p in c.params)
