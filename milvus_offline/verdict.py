"""What a command says of a whole run: how many rows, how many of them are lost or in doubt, and what its exit code means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .model import Finding, Severity, Source
from .text import Places, Screen, count

RESTORED = frozenset({"vectors-restored", "rows-from-log"})
_NOT_LOST = frozenset(
    {"size-differs", "attribute-short", "attribute-missing", "bloom-misses", "rows-differ", "vectors-differ", "file-differs"}
)
"""Errors whose rows are there, but not as they should be."""


def attention_sums(findings: Iterable[Finding]) -> dict[str, int]:
    """Rows by what became of them: `lost_rows` cannot be had, `restored_rows` came from an index file or the log instead of
    their own files, `doubtful_rows` are there and may be wrong. Lost rows whose number nothing tells are not in it."""
    sums = {"lost_rows": 0, "restored_rows": 0, "doubtful_rows": 0}
    for f in findings:
        if f.rows is None:
            continue
        if f.code in RESTORED:
            sums["restored_rows"] += f.rows
        elif f.severity is Severity.ERROR:
            sums["doubtful_rows" if f.code in _NOT_LOST else "lost_rows"] += f.rows
        elif f.severity is Severity.WARNING and f.code != "segment-missing":  # then its rows are among those from the log
            sums["doubtful_rows"] += f.rows
    return sums


def verdict(rows: int, findings: Sequence[Finding], done: str, *, log_rows: int = 0) -> dict[str, str]:
    """`{"level": "good" | "doubt" | "loss", "text"}`: how many of how many rows, what is lost or in doubt, in one line.

    `done` is what can be or was done with the rows, such as `can be exported`.
    """
    sums = attention_sums(findings)
    kinds = Counter(f.severity for f in findings)
    errors, warnings = kinds[Severity.ERROR], kinds[Severity.WARNING]
    level = "loss" if errors else "doubt" if warnings else "good"
    lost = sums["lost_rows"]
    if rows or errors:
        text = f"{'All ' if rows > 1 and not errors else ''}{count(rows, 'row')} {done}"
    else:
        text = "There are no live rows"
    if from_log := min(log_rows, rows):
        text += f"; {'all' if from_log == rows else f'{from_log:,}'} of them only from the write-ahead log"
    elif sums["restored_rows"]:
        text += f"; {sums['restored_rows']:,} of them restored from other files"
    if lost:
        text += f"; {count(lost, 'row')} {'is' if lost == 1 else 'are'} lost"
    elif errors:
        text += "; something is lost or damaged"
    if sums["doubtful_rows"]:
        text += f"; {count(sums['doubtful_rows'], 'row')} in doubt"
    notes = [count(n, noun) for n, noun in ((errors, "error"), (warnings, "warning")) if n]
    text += f". {', '.join(notes).capitalize()}." if notes else "."
    return {"level": level, "text": text}


def reach(checked: Mapping[str, int]) -> str:
    """What the silence of verify proves, and what not."""
    return (
        f"Of {count(checked['rows'], 'row')} read, bloom filters confirm the ids of {checked['ids_in_bloom_filters']:,}, index "
        f"files the vectors of {checked['vectors_in_index_files']:,}, and the log those of {checked['vectors_in_log']:,}. "
        f"Nothing confirms the vectors of {checked['rows_on_nothing']:,}: a flipped bit in these cannot be seen."
    )


def headed(told: Mapping[str, str], head: str) -> dict[str, str]:
    """The verdict with something before it that must not be overlooked."""
    text = told["text"]
    return {**told, "text": f"{head}: {text[0].lower()}{text[1:]}"}


def explained_code(code: int) -> str:
    """What an exit code that is not 0 means, for the screen."""
    return {
        3: "Exit code 3: finished, but rows are lost, or in doubt; the findings name them.",
        4: "Exit code 4: verification found a difference; the findings name it.",
    }.get(code, "")


def places_of(source: Source) -> Places:
    """How the places in a source's findings are called for a person."""
    about = source.describe()
    roots = [str(r) for r in (*about.get("roots", ()), about.get("path")) if r]
    return Places(roots, getattr(source, "tables", {}))


def end(screen: Screen, told: Mapping[str, str], exit_code: int) -> None:
    """The last lines of every report: the verdict once more, and what the exit code means."""
    screen.say()
    screen.verdict(told["level"], told["text"])
    if meaning := explained_code(exit_code):
        screen.say(meaning, "dim")
