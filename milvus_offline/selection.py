"""Choosing collections and partitions by name, with globs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from .errors import UsageError
from .model import DEFAULT_PARTITION, Finding, Salvaged, Source, SourceCollection
from .names import printable


@dataclass(frozen=True)
class Selection:
    """What to take. Empty `collections` or `partitions` mean all; `exclude` holds `collection` or `collection/partition`."""

    collections: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def apply(self, collections: Sequence[SourceCollection]) -> list[SourceCollection]:
        """The chosen part, in order. Raises UsageError for a name or glob that matches nothing."""
        names = [c.schema.name for c in collections]
        tags = [p.name for c in collections if self._takes(self.collections, c.schema.name) for p in c.partitions]
        pairs = [f"{c.schema.name}/{p.name}" for c in collections for p in c.partitions]
        _require("collection", self.collections, names)
        _require("partition", self.partitions, tags)
        _require("excluded name", self.exclude, [*names, *pairs])
        result = []
        for c in collections:
            name = c.schema.name
            if not self._takes(self.collections, name) or (self.exclude and self._takes(self.exclude, name)):
                continue
            partitions = [p for p in c.partitions if self.takes(name, p.name)]
            if partitions or not c.partitions:
                result.append(replace(c, partitions=tuple(partitions)))
        if collections and not result:
            there = ", ".join(printable(pair) for pair in pairs[:20]) + (", …" if len(pairs) > 20 else "")
            raise UsageError(f"with this selection and --exclude nothing is left; there are: {there}")
        return result

    def describe(self) -> dict[str, Any]:
        """What was asked for, as the manifest says it; empty when that was everything."""
        asked = {"collections": self.collections, "partitions": self.partitions, "exclude": self.exclude}
        return {key: list(names) for key, names in asked.items() if names}

    def takes(self, collection: str, partition: str) -> bool:
        """Whether a partition is chosen."""
        return (
            self._takes(self.collections, collection)
            and self._takes(self.partitions, partition)
            and not (self.exclude and self._takes(self.exclude, collection))
            and not (self.exclude and self._takes(self.exclude, f"{collection}/{partition}"))
        )

    @staticmethod
    def _takes(patterns: tuple[str, ...], name: str) -> bool:
        return not patterns or any(matches(p, name) for p in patterns)


def matches(pattern: str, name: str) -> bool:
    """Whether a name is meant by a pattern: literally, or as a glob (a tag may itself hold `[` or `*`)."""
    return pattern == name or fnmatchcase(name, pattern)


def _require(what: str, patterns: tuple[str, ...], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(pattern, n) for n in names):
            known = sorted(set(names))
            if len(known) > 20:
                from difflib import get_close_matches

                near = get_close_matches(pattern, known, 5, 0.5)
                known = [*near, *(n for n in known if n not in near)]
            there = ", ".join(printable(n) for n in known[:20]) + (", …" if len(known) > 20 else "")
            raise UsageError(
                f"no {what} matches {printable(pattern)!r}{_meant(what, pattern, names)}; there are: {there or 'none'}"
            )


def _meant(what: str, pattern: str, names: Sequence[str]) -> str:
    """Several names in one option, or a partition with its collection, where each has an option of its own."""
    option = {"collection": "-c", "partition": "-p"}.get(what)
    parts = [p.strip() for p in pattern.split(",")]
    if len(parts) > 1 and any(p in names for p in parts):
        each = " ".join(f"{option or '--exclude'} {printable(p)}" for p in parts)
        return f" (each name has an option of its own: {each})"
    collection, slash, tag = pattern.partition("/")
    if slash and option and (collection in names or what == "partition"):
        return f" (a partition of one collection: -c {printable(collection)} -p {printable(tag)})"
    return ""


_TABLES = re.compile(r"^.*/tables/")
_SEGMENT = re.compile(r"\d+(/|$)")


class SelectedSource:
    """A source reduced to a selection."""

    def __init__(self, source: Source, selection: Selection) -> None:
        self._source = source
        self._selection = selection
        self.kind = source.kind
        self.collections: Sequence[SourceCollection] = selection.apply(source.collections)
        self.tables: Mapping[str, str] = getattr(source, "tables", {})
        places = [(c.schema.name, p.name) for c in source.collections for p in c.partitions]
        self.findings: Sequence[Finding] = [f for f in source.findings if self._concerns(f, places)]
        self.salvage: Sequence[Salvaged] = [s for s in source.salvage if selection.takes(s.schema.name, s.partition)]

    def _concerns(self, finding: Finding, places: Sequence[tuple[str, str]]) -> bool:
        """Whether a finding tells of something that was chosen; what tells of no partition concerns all."""
        if not self._selection.describe():
            return True
        where = _TABLES.sub("", finding.where)
        table, _, rest = where.partition("/")
        where = (
            f"{self.tables[table]}/{rest}" if table in self.tables and self.tables[table].partition("/")[0] != table else where
        )
        for collection, partition in sorted(places, key=lambda place: -len(place[1])):
            if f"{where}/".startswith(f"{collection}/{partition}/"):
                return self._selection.takes(collection, partition)
        mine = [p for c, p in places if c == table]
        if rest and table in self.tables and _SEGMENT.match(rest):
            return self._selection.takes(table, DEFAULT_PARTITION)
        return not mine or any(self._selection.takes(table, p) for p in mine)

    def describe(self) -> dict[str, Any]:
        chosen = self._selection.describe()
        return {**self._source.describe(), **({"selection": chosen} if chosen else {})}

    def fingerprint(self) -> str:
        return self._source.fingerprint()
