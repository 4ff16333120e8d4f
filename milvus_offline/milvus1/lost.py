"""Which rows of a damaged store are lost: the ids that its segments still name, and that no live row has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..errors import DamageError
from ..model import Severity
from .disk import Disk
from .layout import DELETED_DOCS, ID, LENGTH
from .segment.files import read_deleted, read_header
from .segment.opening import Folder
from .store import Store

Ids = npt.NDArray[np.int64]


def lost_ids(store: Store) -> Iterator[tuple[str, str, Ids]]:
    """(collection, partition, ids int64 [n]) of rows that stand in the `.uid` file of a damaged segment, are not deleted, and
    do not come out of the store (§4.2). Rows whose ids are lost too cannot be named."""
    disk = store.disk
    damaged = {part for f in store.findings if f.severity is Severity.ERROR for part in re.split(r"[/\\]", f.where)}
    for collection, live in zip(store.collections, store.selection.collections, strict=True):
        for partition in live.partitions:
            held = [
                ids
                for choice in partition.choices
                if choice.segment_id in damaged and (ids := _ids_of(disk, choice.table_id, choice.segment_id)) is not None
            ]
            if not held:
                continue
            there = [b.ids for b in collection[partition.tag].batches()]
            wanted = np.concatenate(held)
            lost = wanted[~np.isin(wanted, np.concatenate(there))] if there else wanted
            if len(lost):
                yield collection.name, partition.tag, lost


def _ids_of(disk: Disk, table_id: str, segment_id: str) -> Ids | None:
    """The ids that a segment folder still has, without those of deleted rows; None where there are none."""
    try:
        folder: Folder | None = disk.folder(table_id, segment_id)
        if folder is None or len(folder.ids) != 1:
            return None
        path = folder.path / folder.ids[0]
        count = read_header(path).bytes // ID.itemsize
        ids = np.fromfile(path, ID, count, offset=LENGTH.size)
        alive = np.ones(len(ids), bool)
        for offsets in read_deleted(str(folder.path / DELETED_DOCS) if folder.has_deleted_docs else None):
            alive[offsets[(offsets >= 0) & (offsets < len(ids))]] = False
        return ids[alive]
    except (DamageError, OSError):
        return None
