"""Other names for collections and partitions, from a file: what a target, or a person, does not want to keep."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import UsageError
from .model import Finding, Salvaged, Source, SourceCollection
from .named import read_document
from .names import printable


def read_names(path: str) -> dict[str, str]:
    """The lines `old: new` of a YAML or JSON file; `collection/partition` names a partition. Raises UsageError."""
    given = read_document(path, "the file of --rename-map")
    if not isinstance(given, dict) or not all(isinstance(v, (str, int)) and str(v) for v in given.values()):
        raise UsageError(f"--rename-map {path}: expected lines such as `faces: people` or `faces/2021: y2021`")
    return {str(old): str(new) for old, new in given.items()}


class RenamedSource:
    """A source whose partitions have other names; `names` has `collection/partition` -> partition, by the source's names."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        """Raises UsageError for a name that is not there, and for two partitions that would share one."""
        self._source = source
        self._names = dict(names)
        self.kind = source.kind
        self.findings: Sequence[Finding] = source.findings
        self.salvage: Sequence[Salvaged] = source.salvage
        self.tables: Mapping[str, str] = getattr(source, "tables", {})
        there = [f"{c.schema.name}/{p.name}" for c in source.collections for p in c.partitions]
        for old in names:
            if old not in there:
                near = difflib.get_close_matches(old, there, 3, 0.3)
                hint = f"did you mean {', '.join(map(printable, near))}?" if near else "inspect lists them"
                raise UsageError(f"--rename-map names {printable(old)}, which is not in the source: {hint}")
        self.collections: Sequence[SourceCollection] = [self._renamed(c) for c in source.collections]

    def _renamed(self, collection: SourceCollection) -> SourceCollection:
        name = collection.schema.name
        partitions = [p._replace(name=self._names.get(f"{name}/{p.name}", p.name)) for p in collection.partitions]
        twice = [n for n, many in Counter(p.name for p in partitions).items() if many > 1]
        if twice:
            raise UsageError(f"--rename-map: two partitions of {printable(name)} would be called {printable(twice[0])}")
        return replace(collection, partitions=partitions)

    def describe(self) -> dict[str, Any]:
        return {**self._source.describe(), **({"renamed": self._names} if self._names else {})}

    def fingerprint(self) -> str:
        return self._source.fingerprint()
