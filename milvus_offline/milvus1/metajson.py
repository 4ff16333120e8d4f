"""The meta.json of milvus-migration as a catalog: what that tool noted of a store of 1.x before it read its segments.

It lists the live segments of every collection and partition, with dimension, metric and rows; a partition stands there as a
collection with the number of its folder for a name. Names of partitions, indexes, kinds of ids, collections and partitions
without rows, and what was flushed of the log are not in it: partitions are named by the log where that holds their ids, and
the log is applied by content, as without a catalog.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ..errors import StoreError
from ..findings import Findings
from ..model import DEFAULT_PARTITION, Finding, Severity
from ..named import read_bytes
from ..names import printable
from .catalog.rows import Catalog, RawTables, parse_catalog
from .disk import Disk
from .layout import FileType
from .location import Location
from .nocatalog import Survey

KIND: Final = "meta.json"
_MANY = 1_000_000


def is_meta_json(path: Path) -> bool:
    """Whether a file begins as one of milvus-migration does: an object of collections, or its total of rows."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return False
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and b'"collections"' in head


def read_meta_json(path: Path, location: Location) -> Catalog:
    """The catalog that a meta.json describes. Raises StoreError where it is not one, or says what cannot be."""
    notes = Findings()
    try:
        document = json.loads(read_bytes(path, "the catalog").decode("utf-8-sig"))
        listed = list(_collections(document))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, _NotMeta) as e:
        raise StoreError(f"{path}: looks like a meta.json of milvus-migration, but cannot be used: {printable(e)}") from None
    if listed == []:
        raise StoreError(f"{path}: a meta.json of milvus-migration without a collection")
    survey = Survey(location, Disk(location.roots))
    places, indexes = survey.of({name: [s["segment"] for s in c["segments"]] for name, c in listed})
    owners = {name for name, _ in listed}
    tables: RawTables = {"Tables": [], "TableFiles": []}
    for number, (name, collection) in enumerate(listed, 1):
        owner, tag = places.get(name, (name, DEFAULT_PARTITION))
        is_partition = owner != name
        if survey.is_generated(name):
            notes.append(_partition(name, owner, tag, is_partition))
        engine, index_files = indexes.get(name, (1, []))
        row: dict[str, object] = {"id": number, "table_id": name, "state": 0, "dimension": collection["dim"], "flush_lsn": 0}
        row |= {"metric_type": collection["metric"], "engine_type": engine}
        if is_partition and owner not in owners:  # no row outside of its partitions, so that it is not listed
            owners.add(owner)
            tables["Tables"].append({**row, "id": len(listed) + len(owners), "table_id": owner})
        tables["Tables"].append(row | ({"owner_table": owner, "partition_tag": tag} if is_partition else {}))
        indexed = {r.segment_id for r in index_files}
        for segment in collection["segments"]:
            state = FileType.BACKUP if segment["segment"] in indexed else FileType.RAW
            tables["TableFiles"].append(_file(tables, name, segment["segment"], segment["segment"], state))
            tables["TableFiles"][-1] |= {"row_count": segment["rows"], "file_size": segment["fileSize"]}
        for index in index_files:
            tables["TableFiles"].append(_file(tables, name, index.segment_id, index.file_id, FileType.INDEX))
    text = (
        "a meta.json of milvus-migration: names of partitions, indexes, kinds of ids, collections and partitions without rows, "
        "and what was flushed of the log are not in it. The metadata database itself, or a dump of it, tells them"
    )
    notes.info("catalog-meta-json", str(path), text)
    return parse_catalog(tables, kind=KIND, origin=str(path), findings=notes)


def _file(tables: RawTables, table: str, segment: str, file: str, state: FileType) -> dict[str, object]:
    number = len(tables["TableFiles"]) + 1
    return {"id": number, "table_id": table, "segment_id": segment, "file_id": file, "file_type": int(state)}


def _partition(name: str, owner: str, tag: str, known: bool) -> Finding:
    if known:
        text = f"is {printable(owner)}/{printable(tag)}, by ids in the write-ahead log"
        return Finding(Severity.WARNING, "partition-named-by-log", name, text)
    text = (
        "the folder is that of a partition, and meta.json does not say of which collection; it is read as one of its own. Look "
        "for the metadata database itself, or name the partition with --no-catalog --partition-map"
    )
    return Finding(Severity.WARNING, "partition-unnamed", name, text)


class _NotMeta(Exception):
    pass


def _collections(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, entry) of every collection; counts that the document has twice are compared. Raises _NotMeta."""
    _need(document, {"collections": list, "rows": int}, "the document")
    total, seen = 0, set()
    for n, entry in enumerate(document["collections"]):
        where = f"collections[{n}]"
        _need(entry, {"collection": str, "metric": int, "rows": int, "dim": int, "segments": list}, where)
        name, rows = entry["collection"], 0
        for k, segment in enumerate(entry["segments"][:_MANY]):
            inside = f"{where}.segments[{k}]"
            _need(segment, {"collection": str, "segment": str, "dim": int, "rows": int, "fileSize": int}, inside)
            if segment["collection"] != name or segment["dim"] != entry["dim"]:
                raise _NotMeta(f"{inside} has another collection or dimension than its collection, {name!r}")
            if segment["segment"] in seen:
                raise _NotMeta(f"{inside}: the segment {segment['segment']!r} is there twice")
            seen.add(segment["segment"])
            rows += segment["rows"]
        if rows != entry["rows"]:
            raise _NotMeta(f"{where} ({name!r}) says {entry['rows']} rows, its segments have {rows}")
        total += rows
        yield name, entry
    if total != document["rows"]:
        raise _NotMeta(f"it says {document['rows']} rows, its collections have {total}")


def _need(value: Any, fields: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise _NotMeta(f"{where} is no object")
    for name, kind in fields.items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise _NotMeta(f"{where}: expected {name!r} as {kind.__name__}, found {str(value.get(name))[:60]!r}")
    if unknown := sorted(set(value) - set(fields)):
        raise _NotMeta(f"{where}: unknown {unknown[0][:60]!r}")
