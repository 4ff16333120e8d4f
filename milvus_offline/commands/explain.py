"""`milvus-offline explain`."""

from __future__ import annotations

from typing import Any

import click

from .command import Command
from .common import print_json
from .options import output_options

_SEVERITIES = ("info", "warn", "warning", "error")
_MEANING = "info: nothing is missing; WARN: what came out may be wrong or incomplete; ERROR: rows are lost."


class _Code(click.ParamType[str]):
    """The code of a finding; the shell completes it."""

    name = "code"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        from ..findings import CODES

        return [CompletionItem(name, help=code.meaning) for name, code in CODES.items() if name.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        import difflib

        from ..findings import CODES

        code = str(value).strip().rstrip(":").lower()
        if code.isdecimal():
            from ..verdict import explained_code

            meaning = explained_code(int(code)) or "If it is an exit code, milvus-offline --help says what it means."
            self.fail(f"{code} is no finding. {meaning}", param, ctx)
        if code in _SEVERITIES:
            self.fail(f"{value} is how bad a finding is, its code stands beside it. {_MEANING}", param, ctx)
        if code not in CODES:
            near = difflib.get_close_matches(code, CODES, 3, 0.5) or [c for c in CODES if code in c][:3]
            hint = f"did you mean {' or '.join(near)}?" if near else "without a code explain lists all of them"
            self.fail(f"there is no finding {code!r}: {hint}", param, ctx)
        return code


@click.command("explain", cls=Command, examples=["milvus-offline explain segment-missing", "milvus-offline explain | less"])
@click.argument("codes", metavar="[CODE...]", nargs=-1, type=_Code())
@output_options
def command(codes: tuple[str, ...], as_json: bool, quiet: bool, verbose: int) -> int:
    """What a finding means, and what helps; without a CODE a list of all."""
    from ..findings import CODES, SECTIONS

    chosen = [CODES[c] for c in codes] or list(CODES.values())
    if as_json:
        print_json(
            {
                "format": "milvus-offline-explain",
                "version": 1,
                "findings": [
                    {"code": c.name, "severities": [s.value for s in c.severities], "meaning": c.meaning, "help": c.help}
                    for c in chosen
                ],
            }
        )
    elif not quiet:
        from ..text import MARKS, STYLES, Screen

        screen = Screen()
        for section in SECTIONS:
            listed = [c for c in section.codes if c in chosen]
            if listed and not codes:
                screen.say(section.title, "bold")
            for code in listed:
                marks = ", ".join(MARKS[s.value] for s in code.severities)
                screen.parts([(code.name, "bold"), ("  ", ""), (marks, STYLES[code.severities[0].value])])
                screen.say(code.meaning.replace("`", ""), indent=2)
                if code.help:
                    screen.say(f"→ {code.help.replace('`', '')}", indent=2, hang=4)
            if listed and not codes:
                screen.say()
        if codes:
            screen.say(_MEANING, "dim")
    return 0
