"""What is said to a person, the same way in every command: numbers, names, findings, next steps, on the terminal's width.

Widths count cells of a terminal (a Chinese character takes two), by rich, which is loaded when something is said. Colour comes
on a terminal only, or as NO_COLOR and FORCE_COLOR ask.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import IO, Any, NamedTuple

from .model import Finding, Severity
from .names import printable

WIDTH = 100
"""Columns where no terminal tells."""
_LEAST = 40
_SHELL = re.compile(r"(?:milvus-offline|docker) [^'\"\\]*$")
"""Commands of a shell whose blanks all lie between words."""
_WIDE = 80
PLACES = 4
"""Places of findings of one kind that are named; all with --verbose."""

MARKS = {Severity.ERROR.value: "ERROR", Severity.WARNING.value: "WARN", Severity.INFO.value: "info"}
STYLES = {Severity.ERROR.value: "bold red", Severity.WARNING.value: "yellow", Severity.INFO.value: "cyan"}
LEVELS = {"good": "bold green", "doubt": "bold yellow", "loss": "bold red"}
_ORDER = [s.value for s in (Severity.ERROR, Severity.WARNING, Severity.INFO)]


# Numbers and names -----------------------------------------------------------------------------------------------------


def size(nbytes: float) -> str:
    """Bytes for a person: `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def count(n: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def amount(rows: int, collections: int) -> str:
    """`2,000 rows of 1 collection`."""
    return f"{count(rows, 'row')} of {count(collections, 'collection')}"


def duration(seconds: float) -> str:
    """`12 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def named(name: str) -> str:
    """A name as it is shown: in quotes where blanks or quotes would mislead, control characters escaped."""
    text = printable(name)
    return repr(text) if not text or text != text.strip() or "  " in text or text[0] in "'\"" else text


def widest(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """One row with the widest cell of each column (none of no rows): as wide as all of them, and measured once."""
    from rich.cells import cell_len

    return [[max(column, key=cell_len) for column in zip(*rows, strict=True)]] if rows else []


# Findings ---------------------------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """How the places in findings are called: folders of the store left out, a table of the catalog by its partition's name."""

    roots: Sequence[str] = ()
    tables: Mapping[str, str] = {}

    def short(self, where: str) -> str:
        """`where` of a finding as `collection/partition`, or a path relative to the store."""
        text = self.relative(where).removeprefix("tables" + os.sep)
        table, *rest = text.split("/")
        rest = [part for part in rest if not _NUMBER.fullmatch(part)]
        if table in self.tables and (not rest or self.tables[table].partition("/")[0] != table):
            table = self.tables[table]
        return printable("/".join([table, *rest]))

    def relative(self, text: str) -> str:
        """`text` with the store's paths made relative to it."""
        for root in self.roots:
            text = text.replace(root.rstrip(os.sep) + os.sep, "")
        return text

    def message(self, text: str) -> str:
        """A message without the store's folder and with ids of segments as their last six digits."""
        return printable(_NUMBER.sub(lambda m: "…" + m[0][-6:], self.relative(text)))


_NUMBER = re.compile(r"(?<!\d)\d{19}(?!\d)")


def _help(code: str) -> str:
    """What helps with a kind of finding, from the table."""
    from .findings import CODES

    return CODES[code].help.replace("`", "") if code in CODES else ""


class Group(NamedTuple):
    """Findings of one code and severity."""

    severity: str
    code: str
    findings: Sequence[Mapping[str, Any]]

    @property
    def rows(self) -> int | None:
        known = [f["rows"] for f in self.findings if f["rows"] is not None]
        return sum(known) if known else None


def grouped(findings: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Findings by severity and code, the worst first; in the order in which they were met."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for f in findings:
        groups.setdefault((f["severity"], f["code"]), []).append(f)
    return [Group(s, c, fs) for (s, c), fs in sorted(groups.items(), key=lambda item: _ORDER.index(item[0][0]))]


def needs_attention(findings: Iterable[Finding]) -> bool:
    """Whether a run with these findings ends with exit code 3."""
    return any(f.severity is not Severity.INFO for f in findings)


def verified_code(findings: Iterable[Finding]) -> int:
    """The exit code of a verification: 4 when something is not as it must be, 3 when state was ambiguous, else 0."""
    severities = {f.severity for f in findings}
    return 4 if Severity.ERROR in severities else 3 if Severity.WARNING in severities else 0


def finding_lines(findings: Iterable[Mapping[str, Any]], places: Places | None = None, *, verbose: bool = False) -> list[str]:
    """Findings for a person as plain lines, grouped by code."""
    buffer = io.StringIO()
    Screen(buffer).findings(list(findings), places or Places(), verbose=verbose)
    return buffer.getvalue().strip("\n").splitlines()


def breaks(text: str, width: int) -> list[int]:
    """Where a text is to be divided so that its lines have at most `width` cells; a longer word stays whole, to be copied."""
    from rich.cells import cell_len

    found: list[int] = []
    used = 0
    for word in re.finditer(r"\S+\s*", text):
        cells = cell_len(word[0].rstrip())
        if used and used + cells > width:
            found.append(word.start())
            used = 0
        used += cell_len(word[0])
    return found


# The screen -------------------------------------------------------------------------------------------------------------


class Screen:
    """Writes to a terminal, a pipe or a buffer: folded at blanks to the width that is there, never inside of a word."""

    def __init__(self, file: IO[str] | None = None) -> None:
        from rich.console import Console

        self._file = file or sys.stdout
        terminal = self._file.isatty()
        self._console = Console(
            file=self._file,
            width=None if terminal else _columns(),
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False if not terminal else None,
        )
        self.width = max(_LEAST, self._console.width)

    def say(self, text: str = "", style: str = "", *, indent: int = 0, hang: int | None = None) -> None:
        """A paragraph; lines after the first are indented by `hang` (as the first where it is None)."""
        self.parts([(text, style)], indent=indent, hang=hang)

    def parts(self, parts: Sequence[tuple[str, str]], *, indent: int = 0, hang: int | None = None) -> None:
        """A paragraph of pieces with a style each."""
        from rich.text import Text

        hang = indent if hang is None else hang
        text = Text.assemble(*((t, s) for t, s in parts))
        room = max(_LEAST // 2, self.width - max(indent, hang))
        lines = text.divide(breaks(text.plain, room)) if text.plain else [Text()]
        for number, line in enumerate(lines):
            line.rstrip()
            whole = Text(" " * (hang if number else indent)) + line
            self._console.print(whole, soft_wrap=True, end="\n")

    def verbatim(self, text: str, *, indent: int = 0, style: str = "") -> None:
        """A line that is not folded, so that it can be copied."""
        from rich.text import Text

        self._console.print(Text(" " * indent) + Text(text, style), soft_wrap=True)

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        indent: int = 0,
        among: Sequence[Sequence[str]] | None = None,
        headed: bool = True,
    ) -> None:
        """Aligned columns: the first is a name, which is cut where the line would be too long; the others are numbers.

        Where the table is a part of a longer one, `among` is that one's rows (or their `widest`), and only the first part is
        `headed`.
        Blanks around a heading make its column so wide at least, where there is room for them.
        """
        from rich.cells import cell_len

        if self.width < _WIDE:
            head = [h.strip() for h in head]
        measured = (head, *(rows if among is None else among))
        widths = [max(cell_len(r[i]) for r in measured) for i in range(1, len(head))]
        room = max(8, self.width - indent - sum(widths) - 2 * len(widths))
        first = min(room, max(cell_len(r[0]) for r in measured))
        for number, row in enumerate((head, *rows)):
            if number or headed:
                cells = [" " * (w - cell_len(c)) + c for c, w in zip(row[1:], widths, strict=True)]
                line = "  ".join([self.fitted(row[0], first), *cells]).rstrip()
                self.verbatim(line, indent=indent, style="" if number else "dim")

    def fitted(self, name: str, width: int) -> str:
        """A name in a column of so many cells: cut, or filled up."""
        from rich.cells import cell_len, set_cell_size

        shown = name if cell_len(name) <= width else set_cell_size(name, width - 1) + "…"
        return shown + " " * (width - cell_len(shown))

    def rule(self) -> None:
        """Between the reports on two stores."""
        self.say()
        self.verbatim("─" * min(self.width, WIDTH), style="dim")
        self.say()

    def verdict(self, level: str, text: str) -> None:
        self.say(text, LEVELS.get(level, ""))

    def findings(self, findings: Sequence[Mapping[str, Any]], places: Places, *, verbose: bool = False) -> None:
        """Findings grouped by code: how many, how many rows, what, where, and what helps."""
        groups = grouped(findings)
        if not groups:
            self.say("No findings.")
            return
        self.say("Findings:")
        for group in groups:
            self._group(group, places, verbose)

    def _group(self, group: Group, places: Places, verbose: bool) -> None:
        first = group.findings[0]
        rows = f", {count(group.rows, 'row')}" if group.rows is not None else ""
        many = count(len(group.findings), "place")
        mark = f"  {MARKS[group.severity]:<5}  "
        self.parts([(mark, STYLES[group.severity]), (group.code, "bold"), (f": {many}{rows}", "")], hang=9)
        if verbose:
            for f in group.findings:
                told = f" ({count(f['rows'], 'row')})" if f["rows"] is not None else ""
                self.say(f"{printable(f['where'])}: {printable(f['message'])}{told}", indent=9, hang=11)
            return
        self.say(places.message(first["message"]), indent=9)
        if help_text := _help(group.code):
            self.say(f"→ {help_text}", indent=9, hang=11)
        names: dict[str, int] = {}
        for f in group.findings:
            place = places.short(f["where"])
            names[place] = names.get(place, 0) + 1
        shown = [f"{n} ({k})" if k > 1 else n for n, k in list(names.items())[:PLACES]]
        more = f", and {len(names) - PLACES:,} more" if len(names) > PLACES else ""
        self.say(f"in {', '.join(shown)}{more}", "dim", indent=9, hang=11)

    def steps(self, commands: Sequence[str], title: str = "Next:") -> None:
        """Commands that can be pasted."""
        if commands:
            self.say()
            self.say(title)
            for command in commands:
                self.command(command, indent=2)

    def command(self, command: str, *, indent: int = 0) -> None:
        """A command that can be pasted: whole, or on a narrow terminal with a backslash where its lines break."""
        from rich.cells import cell_len

        if not self._console.is_terminal or indent + cell_len(command) <= self.width:
            self.verbatim(command, indent=indent)
            return
        if not _SHELL.match(command):
            self._python(command, indent)
            return
        words = command.split(" ")
        line, room = words[0], self.width - indent - 2
        for word in words[1:]:
            if cell_len(line) + 1 + cell_len(word) > room and line.strip():
                self.verbatim(f"{line} \\", indent=indent)
                line, room = f"    {word}", self.width - indent - 2
            else:
                line += f" {word}"
        self.verbatim(line, indent=indent)

    def _python(self, line: str, indent: int) -> None:
        """A call in Python, with line breaks between its arguments where it is too long; a comment on several lines."""
        from rich.cells import cell_len

        if line.startswith("# "):
            for start, end in pairwise([2, *(2 + at for at in breaks(line[2:], self.width - indent - 2)), len(line)]):
                self.verbatim(f"# {line[start:end].rstrip()}", indent=indent)
            return
        room, deeper = self.width - indent, "    "
        parts = re.split(r"(?<=, )(?=\w+=)", line)
        shown = parts[0]
        for part in parts[1:]:
            if cell_len(shown) + cell_len(part.rstrip()) > room:
                self.verbatim(shown.rstrip(), indent=indent)
                shown = deeper
            shown += part
        self.verbatim(shown, indent=indent)


def _columns() -> int:
    try:
        return max(_LEAST, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        return WIDTH
