"""Names in the target: which ones it takes, what the others become, and where that is told."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...model import DEFAULT_PARTITION, Severity, Source
from .terms import LoadOptions, Notes, PartitionPlan, TargetFacts

MAX_NAME = 255

_EMPTY = "_x_"
_ESCAPE = re.compile(rf"_x([0-9a-f]+)_|\A{_EMPTY}\Z")


def sanitize(name: str, *, hyphens: bool = False) -> str:
    """A name of letters, digits and `_`: other characters become `_x` + code point in hex + `_`, the empty name `_x_`;
    `restore` undoes it.

    Too long names are cut and end in a digest; those stand in the collection's description.
    """
    name = _ESCAPE.sub(lambda m: f"_x5f_{m[0][1:]}", name) or _EMPTY
    name = re.sub(r"[^A-Za-z0-9_-]|^-" if hyphens else r"[^A-Za-z0-9_]", lambda m: f"_x{ord(m[0]):x}_", name)
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def sanitize_collection(name: str) -> str:
    """The same for a collection, whose name begins with no digit."""
    new = sanitize(name)
    return f"_x{ord(new[0]):x}_{new[1:]}" if new[:1].isdigit() else new


def restore(name: str) -> str:
    """What `sanitize` made a name from (if it was not cut)."""
    return _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else "", name)


def _allowed(name: str, kind: str, facts: TargetFacts) -> str | None:
    """Why the target would not take this name; None if it does."""
    if not name or len(name.encode()) > MAX_NAME:
        return f"must have 1 to {MAX_NAME} bytes"
    if not facts.strict_names:
        return None
    if kind == "collection":
        good = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    else:
        good = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*" if facts.hyphens else r"[A-Za-z0-9_]+", name)
    if good:
        return None
    first = ", not a digit first" if kind == "collection" else ", not - first" if facts.hyphens else ""
    return f"may hold only letters, digits and _{' and -' if kind != 'collection' and facts.hyphens else ''}{first}"


def target_name(name: str, kind: str, where: str, options: LoadOptions, facts: TargetFacts, notes: Notes) -> str:
    reason = _allowed(name, kind, facts)
    if reason is None and facts.strict_names and options.names == "sanitize" and _ESCAPE.search(name):
        reason = "would look like an encoded name"
    if reason is None:
        return name
    if options.names == "error":
        way = "--names sanitize or --rename OLD=NEW" if kind == "collection" else "--names sanitize"
        notes.refuse(f"{where}: the target refuses the {kind} name {name!r}: it {reason}. Use {way}")
        return name
    new = sanitize_collection(name) if kind == "collection" else sanitize(name, hyphens=facts.hyphens)
    notes.say(Severity.INFO, "renamed", where, f"{kind} {name!r} becomes {new!r}: in the target it {reason}")
    return new


def collection_names(names: list[str], options: LoadOptions, facts: TargetFacts, notes: Notes) -> dict[str, str]:
    unknown = sorted(set(options.rename) - set(names))
    if unknown:
        notes.refuse(f"--rename names collections that are not in the source: {', '.join(unknown)}")
    result = {}
    for name in names:
        if name in options.rename:
            notes.say(Severity.INFO, "renamed", name, f"collection {name!r} becomes {options.rename[name]!r}")
        result[name] = target_name(options.rename.get(name, name), "collection", name, options, facts, notes)
    for target in {t for t in result.values() if list(result.values()).count(t) > 1}:
        both = ", ".join(repr(n) for n, t in result.items() if t == target)
        notes.refuse(f"collections {both} would share the name {target!r} in the target: use --rename")
    return result


_DESCRIBED = "milvus_offline: "


def describe(source: str, name: str, partitions: Sequence[PartitionPlan], facts: TargetFacts) -> str:
    """What the target's collection says of names that had to change: JSON, or nothing. What `restore` gives anyway may be
    left out where there is little room, then all partitions, then all of it."""
    said: dict[str, Any] = {"collection": source} if source != name else {}
    renamed = {p.target: p.source for p in partitions if p.key is None and p.target not in (p.source, DEFAULT_PARTITION)}
    if renamed:
        said["partitions"] = renamed
    lost = {k: v for k, v in renamed.items() if restore(k) != v}
    for shorter in (said, {**said, "partitions": lost}, {k: v for k, v in said.items() if k != "partitions"}):
        text = f"{_DESCRIBED}{json.dumps(shorter, ensure_ascii=False)}" if any(shorter.values()) else ""
        if len(text.encode()) <= facts.max_description:
            return text
    return ""


def possible_names(source: Source, rename: Mapping[str, str]) -> list[str]:
    """Names that the plan may give to collections in the target."""
    names = [rename.get(c.schema.name, c.schema.name) for c in source.collections]
    return [*names, *(sanitize_collection(n) for n in names)]
