"""A Milvus 1.x store as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..milvus1.opening import open_store
from ..milvus1.store import Store
from ..model import Finding, Salvaged, SourceCollection, SourcePartition
from .options import SourceOptions


class StoreSource:
    """The live rows of a store, and what was asked to be salvaged."""

    kind = "milvus1"

    def __init__(self, store: Store, salvage: Sequence[str] = ()) -> None:
        self.store = store
        self.collections: Sequence[SourceCollection] = [
            SourceCollection(c.schema, [SourcePartition(p.name, p.pieces) for p in c.partitions]) for c in store.collections
        ]
        self.tables = {
            p.table.table_id: f"{c.table.table_id}/{p.tag}" for c in store.selection.collections for p in c.partitions
        }
        """Tables of the catalog, of which findings tell, by their `collection/partition`."""
        self.findings: Sequence[Finding] = store.findings
        self.salvage: Sequence[Salvaged] = []
        if salvage:
            from ..milvus1.salvage import collect

            self.salvage, notes = collect(store, salvage)
            self.findings = [*store.findings, *notes]

    def describe(self) -> dict[str, Any]:
        """The manifest's `source`."""
        store = self.store
        return {
            "kind": self.kind,
            "path": str(store.path),
            "version": store.catalog.version or None,
            "catalog": store.catalog.origin,
            "wal": str(store.location.wal) if store.location.wal else None,
            "roots": [str(r) for r in store.location.roots],
        }

    def fingerprint(self) -> str:
        return self.store.fingerprint


def open_store_source(path: str | os.PathLike[str], *, salvage: Sequence[str] = (), **options: Any) -> StoreSource:
    """Opens the store at `path`; `options` are those of milvus1.store.open_store."""
    return StoreSource(open_store(path, **options), salvage)


def open_source(path: str | os.PathLike[str], options: SourceOptions) -> StoreSource:
    """The same, with the options of all sources."""
    return open_store_source(path, **options.store)
