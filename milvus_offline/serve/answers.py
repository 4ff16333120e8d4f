"""The reading half of the 1.x service, answered from a store (FORMAT §12): what a restarted server 1.1.1 would say.

An answer is a mapping of the reply's fields, or its bytes where these are many; `Refused` is the Status of a wrong call. Rows
of the write-ahead log count as they do once a server has recovered them; they are shown as a segment of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ..milvus1.catalog.rows import FileRow
from ..milvus1.layout import CONFIG, ID, EngineType, FileType, MetricType
from ..milvus1.segment.files import Segment
from ..milvus1.store import Collection, Partition, Store
from ..milvus1.wal.rows import LogRows
from ..model import DEFAULT_PARTITION, Array, Piece, VectorType
from ..search import Hits, find_rows, search
from ..search.blocks import Opened
from ..search.exact import Cancelled
from ..search.lookup import Filters
from ..search.metrics import LARGEST, default_metric
from ..targets.milvus1.names import BLANKS, DEFAULT_INDEX_FILE_SIZE, MB
from ..targets.milvus1.proto import hits_bytes, ids_bytes, records_bytes, vectors_of
from . import rules
from .rules import Code, Refused

VERSION = "1.1.1"
"""The server whose answers these are."""
Answer = Mapping[str, Any] | bytes

_USED = (EngineType.FAISS_IVFFLAT, EngineType.FAISS_IVFSQ8, EngineType.FAISS_IVFSQ8H, EngineType.HNSW)
"""Kinds of index files that can be searched, see search.indexed."""


@dataclass
class Settings:
    """What one request may take, and who answers. `answer_bytes`: of a search; `searches`: at the same time; `jobs`: threads of
    all together."""

    answer_bytes: int = 64 << 20
    searches: int = 4
    jobs: int = 2
    version: str = VERSION
    """What Cmd answers to `version`: clients of before 1.0 refuse a server of another age."""


@dataclass
class _Served:
    """A collection and what the catalog says of it."""

    collection: Collection
    engine: int
    index_params: str
    opened: Opened
    filters: Filters = field(default_factory=Filters)

    def partition(self, tag: str) -> Partition | None:
        return next((p for p in self.collection.partitions if tag in (p.name, _text(p.name))), None)


@dataclass(frozen=True)
class _Question:
    """A search that was found to be in order."""

    served: _Served
    chosen: Sequence[Partition]
    queries: Array
    topk: int
    parameters: Mapping[str, Any]
    stopped: Callable[[], bool]


class Answers:
    """The methods of the service over an opened store, by their names. Safe for several threads.

    `names` limits the collections; `pool` has the threads that search; with `use_index` index files are searched where they can
    be, which is faster and not exact. Every method raises Refused, and DamageError for files
    that cannot be read any more.
    """

    def __init__(
        self, store: Store, pool: Executor, settings: Settings, names: Sequence[str] | None = None, *, use_index: bool = False
    ) -> None:
        self.store, self.settings = store, settings
        self._pool = pool
        self._searches = threading.BoundedSemaphore(settings.searches)
        tables = {c.table.table_id: c.table for c in store.selection.collections}
        opened = Opened()
        self._served = {
            c.name: _Served(c, int(tables[c.name].engine_type), _parameters_text(c), opened)
            for c in store.collections
            if names is None or c.name in names
        }
        self._indexes: dict[str, list[FileRow]] = {}
        for row in store.catalog.files:
            if row.file_type == FileType.INDEX:
                self._indexes.setdefault(row.segment_id, []).append(row)
        self._use_index: Any = None
        if use_index:
            from ..search.indexed import Indexes

            self._use_index = Indexes(self._index_path)

    @property
    def index_bytes(self) -> int:
        """Bytes of the index files that searches may bring into memory and keep there, by the catalog."""
        if self._use_index is None:
            return 0
        pieces = (s for c in self._served.values() for p in c.collection.partitions for s in p.segments)
        rows = (row for s in pieces for row in self._indexes.get(s.id, ())[:1])
        return sum(max(0, row.file_size) for row in rows if row.engine_type in _USED)

    def _index_path(self, segment: Segment) -> Path | None:
        row = next(iter(self._indexes.get(segment.id, ())), None)
        return self.store.disk.index_file(row.table_id, row.segment_id, row.file_id) if row else None

    # Collections and partitions ------------------------------------------------------------------------------------------

    def _of(self, name: str) -> _Served:
        rules.check_name(name)
        if name not in self._served:
            raise rules.no_collection(name)
        return self._served[name]

    def HasCollection(self, request: Any) -> Answer:
        rules.check_name(request.collection_name)
        return {"bool_reply": request.collection_name in self._served}

    def DescribeCollection(self, request: Any) -> Answer:
        schema = self._of(request.collection_name).collection.schema
        return {
            "collection_name": schema.name,
            "dimension": schema.dimension,
            "index_file_size": max(1, (schema.index_file_size or DEFAULT_INDEX_FILE_SIZE) // MB),
            "metric_type": int(MetricType[schema.metric_type or default_metric(schema.vector_type)]),
        }

    def CountCollection(self, request: Any) -> Answer:
        return {"collection_row_count": self._of(request.collection_name).collection.rows}

    def ShowCollections(self, request: Any) -> Answer:
        return {"collection_names": [_text(name) for name in self._served]}

    def ShowCollectionInfo(self, request: Any) -> Answer:
        served = self._of(request.collection_name)
        partitions = []
        for partition in served.collection.partitions:
            segments = [self._segment_info(partition, piece) for piece in partition.pieces]
            partitions.append({"row_count": partition.rows, "segments": segments or None, "tag": _text(partition.name)})
        info = {"partitions": partitions, "row_count": served.collection.rows}
        return {"json_info": json.dumps(info, separators=(",", ":"), ensure_ascii=False)}

    def _segment_info(self, partition: Partition, piece: Piece) -> dict[str, Any]:
        index = next(iter(self._indexes.get(piece.id, ())), None)
        return {
            "data_size": index.file_size if index else piece.bytes,  # type: ignore[attr-defined]
            "index_name": rules.INDEX_NAMES.get(index.engine_type, "Unknown") if index else rules.RAW_NAME,
            "name": _shown_name(partition, piece),
            "row_count": piece.rows,
        }

    def HasPartition(self, request: Any) -> Answer:
        served = self._of(request.collection_name)
        tag = request.tag.strip(BLANKS)
        return {"bool_reply": tag == DEFAULT_PARTITION or served.partition(tag) is not None}

    def ShowPartitions(self, request: Any) -> Answer:
        tags = [p.name for p in self._of(request.collection_name).collection.partitions]
        return {"partition_tag_array": [DEFAULT_PARTITION, *(_text(t) for t in tags if t != DEFAULT_PARTITION)]}

    def DescribeIndex(self, request: Any) -> Answer:
        served = self._of(request.collection_name)
        known = (
            served.engine if served.engine in rules.INDEX_NAMES else EngineType.FAISS_IDMAP
        )  # a damaged catalog may say anything
        kind = rules.FOR_CLIENTS.get(known, known)
        return {
            "collection_name": request.collection_name,
            "index_type": int(kind),
            "extra_params": [{"key": "params", "value": served.index_params}],
        }

    # Rows ------------------------------------------------------------------------------------------------------------------

    def GetVectorsByID(self, request: Any) -> Answer:
        ids = _asked_ids(request)
        served = self._of(request.collection_name)
        vectors, present = self._vectors(served, self._tagged(served, request.partition_tag), ids)
        return records_bytes(2, vectors, present)

    def _tagged(self, served: _Served, tag: str) -> Sequence[Partition]:
        """The partitions of a get: all, or the one with this tag. The default one has no rows under its name (§17)."""
        if not tag:
            return served.collection.partitions
        trimmed = tag.strip(BLANKS)
        found = served.partition(trimmed)
        if trimmed == DEFAULT_PARTITION:
            raise Refused(Code.UNEXPECTED_ERROR, "Collection or partition is empty")
        if found is None:
            name = served.collection.name
            raise Refused(Code.UNEXPECTED_ERROR, f"Collection {name}'s partition {trimmed} not found")
        return [found]

    def _vectors(
        self, served: _Served, partitions: Sequence[Partition], ids: npt.NDArray[np.int64]
    ) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The first row of each id: vectors of those that are there, and which are."""
        if not any(p.pieces for p in partitions):
            raise Refused(Code.UNEXPECTED_ERROR, "Collection or partition is empty")
        found = find_rows(
            served.collection.schema,
            partitions,
            ids,
            thorough=False,
            first_only=True,
            opened=served.opened,
            filters=served.filters,
        )
        present = np.zeros(len(ids), np.bool_)
        present[found.asked] = True
        return found.vectors, present

    def GetVectorIDs(self, request: Any) -> Answer:
        served = self._of(request.collection_name)
        if (piece := _piece_named(served, request.segment_name)) is not None:
            return ids_bytes(_ids_of(piece, served.opened))
        if any(_piece_named(other, request.segment_name) for other in self._served.values()):
            raise Refused(Code.UNEXPECTED_ERROR, "Segment does not belong to this collection")
        raise Refused(Code.UNEXPECTED_ERROR, "Segment does not exist")

    # Search ----------------------------------------------------------------------------------------------------------------

    def Search(self, request: Any, stopped: Callable[[], bool] = lambda: False) -> Answer:
        parameters = rules.parse_parameters(request.extra_params)
        served = self._check_search(request, len(request.query_record_array), parameters)
        queries = _queries(request, served.collection)
        chosen = self._chosen(served, request.partition_tag_array, stopped)
        return _answer_of(self._hits(_Question(served, chosen, queries, request.topk, parameters, stopped)))

    def SearchByID(self, request: Any, stopped: Callable[[], bool] = lambda: False) -> Answer:
        parameters = rules.parse_parameters(request.extra_params)
        ids = _asked_ids(request)
        served = self._check_search(request, len(ids), parameters)
        vectors, present = self._vectors(served, served.collection.partitions, ids)
        chosen = self._chosen(served, request.partition_tag_array, stopped)
        hits = self._hits(_Question(served, chosen, vectors, request.topk, parameters, stopped))
        k = hits.ids.shape[1]
        found, distances = np.full((len(ids), k), -1, np.int64), np.full((len(ids), k), LARGEST, np.float32)
        found[present], distances[present] = hits.ids, hits.distances
        return _answer_of(hits._replace(ids=found, distances=distances))

    def SearchInFiles(self, request: Any, stopped: Callable[[], bool] = lambda: False) -> Answer:
        asked = request.search_param
        parameters = rules.parse_parameters(asked.extra_params)
        served = self._check_search(asked, len(asked.query_record_array), parameters)
        queries = _queries(asked, served.collection)
        numbers = request.file_id_array
        chosen = self._files(served, numbers) if numbers else self._chosen(served, asked.partition_tag_array, stopped)
        return _answer_of(self._hits(_Question(served, chosen, queries, asked.topk, parameters, stopped)))

    def _check_search(self, request: Any, queries: int, parameters: Mapping[str, Any]) -> _Served:
        rules.check_name(request.collection_name)
        rules.check_topk(request.topk)
        rows = self._served[request.collection_name].collection.rows if request.collection_name in self._served else 0
        rules.check_result(queries, min(request.topk, max(1, rows)), self.settings.answer_bytes)
        rules.check_tags(request.partition_tag_array)
        served = self._of(request.collection_name)
        rules.check_parameters(parameters, served.engine, request.topk)
        return served

    def _chosen(self, served: _Served, tags: Sequence[str], stopped: Callable[[], bool] = lambda: False) -> Sequence[Partition]:
        """The partitions that a search's tags mean: all without tags."""
        partitions = served.collection.partitions
        if not tags:
            return partitions
        trimmed = [t.strip(BLANKS) for t in tags]
        meant = rules.meant([_text(p.name) for p in partitions if p.name != DEFAULT_PARTITION], trimmed, stopped)
        if DEFAULT_PARTITION in trimmed:  # no expression means it
            meant.add(DEFAULT_PARTITION)
        found = [p for p in partitions if _text(p.name) in meant]
        if not found:
            raise Refused(Code.UNEXPECTED_ERROR, "The specified partition does not exist")
        return found

    def _files(self, served: _Served, numbers: Sequence[str]) -> Sequence[Partition]:
        """The segments whose catalog rows have these ids, each as a partition."""
        wanted: set[int] = set()
        for text in numbers:
            if not text.strip().isascii() or not text.strip().isdigit():
                raise Refused(Code.UNEXPECTED_ERROR, "stoul")
            wanted.add(int(text))
        segments = {row.segment_id for row in self.store.catalog.files if row.id in wanted}
        chosen = []
        for partition in served.collection.partitions:
            kept = tuple(s for s in partition.segments if s.id in segments)
            if kept:
                chosen.append(Partition(partition.name, partition.schema, kept))
        if not chosen:
            raise Refused(Code.UNEXPECTED_ERROR, "Invalid file id")
        return chosen

    def _hits(self, question: _Question) -> Hits:
        metric = _metric(question.served, question.parameters)
        with self._turn(question.stopped):
            if self._use_index and metric is None:
                return self._indexed_hits(question)
            return self._exact_hits(question, question.chosen, metric)

    def _exact_hits(self, question: _Question, partitions: Sequence[Partition], metric: str | None = None) -> Hits:
        return search(
            question.served.collection.schema,
            partitions,
            question.queries,
            question.topk,
            metric=metric,
            jobs=self.settings.jobs,
            opened=question.served.opened,
            pool=self._pool,
            stopped=question.stopped,
        )

    def _indexed_hits(self, question: _Question) -> Hits:
        """Segments with an index that can be used by that index, the others and the log exactly."""
        from ..search.indexed import merged, search_indexes

        indexed, rest = [], []
        for number, partition in enumerate(question.chosen):
            found = {id(s): i for s in partition.segments if isinstance(s, Segment) and (i := self._use_index.of(s))}
            indexed += [(number, s, found[id(s)]) for s in partition.segments if id(s) in found and isinstance(s, Segment)]
            kept = tuple(s for s in partition.segments if id(s) not in found)
            rest.append(Partition(partition.name, partition.schema, kept, partition.log))
        exact = self._exact_hits(question, rest)
        k = min(question.topk, sum(p.rows for p in question.chosen))
        metric = question.served.collection.schema.metric_type or "L2"
        opened = question.served.opened
        answers = search_indexes(indexed, question.queries, question.topk, question.parameters, opened)
        return merged(exact, answers, k, metric, -LARGEST if metric == "IP" else LARGEST)

    @contextlib.contextmanager
    def _turn(self, stopped: Callable[[], bool]) -> Iterator[None]:
        """Waits until fewer than the greatest number of searches run."""
        while not self._searches.acquire(timeout=0.2):
            if stopped():
                raise Cancelled
        try:
            yield
        finally:
            self._searches.release()

    # The rest ----------------------------------------------------------------------------------------------------------------

    def PreloadCollection(self, request: Any) -> Answer:
        self._advise(request, getattr(os, "POSIX_FADV_WILLNEED", None))
        return {}

    def ReleaseCollection(self, request: Any) -> Answer:
        self._advise(request, getattr(os, "POSIX_FADV_DONTNEED", None))
        return {}

    def _advise(self, request: Any, advice: int | None) -> None:
        """Tells the system what it will and will not need of the files: 1.x loads them into its memory."""
        served = self._of(request.collection_name)
        advise(self._chosen(served, request.partition_tag_array), advice)

    def preload(self) -> None:
        """Has the files of all collections read ahead."""
        for served in self._served.values():
            advise(served.collection.partitions, getattr(os, "POSIX_FADV_WILLNEED", None))

    def ReloadSegments(self, request: Any) -> Answer:
        self._of(request.collection_name)
        return {}

    def Cmd(self, request: Any) -> Answer:
        command = request.cmd
        if command.startswith("set_config"):
            raise rules.read_only("set_config")
        if command.startswith("get_config"):
            return {"string_reply": self._configured(command)}
        replies = {
            "version": self.settings.version,
            "status": "OK",
            "mode": "CPU",
            "tasktable": "{}",
            "get_system_info": "{}",
            "build_commit_id": "milvus-offline",
            "requests": '{"requests":[]}',
        }
        return {"string_reply": replies.get(command, "Unknown command")}

    def _configured(self, command: str) -> str:
        """What the server's configuration says under a name such as `cache.cache_size`."""
        words = command.split()
        path = self.store.location.config.path or self.store.location.root / CONFIG
        keys = words[1].split(".") if len(words) == 2 else []
        if len(keys) < 2:
            raise Refused(Code.UNEXPECTED_ERROR, f"Invalid command: {command}")
        found: Any = None
        with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None or keys[-1] in ("meta_uri", "backend_url") or "secret" in keys[-1] or "key" in keys[-1]:
            raise Refused(Code.UNEXPECTED_ERROR, f"Config node invalid: {words[1]}")
        return str(found).lower() if isinstance(found, bool) else str(found)


def advise(partitions: Sequence[Partition], advice: int | None) -> None:
    """Advice to the page cache about the files of partitions; errors mean no more than that it is not taken."""
    if advice is None:
        return
    for path in (path for p in partitions for s in p.segments for path in s.paths[:2]):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            try:
                os.posix_fadvise(fd, 0, 0, advice)
            finally:
                os.close(fd)


def _answer_of(hits: Hits) -> bytes:
    """A search's reply: without any row it has no queries either."""
    rows = len(hits.ids) if hits.ids.shape[1] else 0
    return hits_bytes(rows, hits.ids[:rows], hits.distances[:rows])


def _asked_ids(request: Any) -> npt.NDArray[np.int64]:
    ids = np.array(request.id_array, np.int64)
    if not len(ids):
        raise Refused(Code.ILLEGAL_ARGUMENT, "No vector id specified")
    if len(ids) > rules.MAX_IDS:
        raise Refused(Code.ILLEGAL_ARGUMENT, f"Input id array size cannot exceed: {rules.MAX_IDS}")
    return ids


def _queries(request: Any, collection: Collection) -> Array:
    """The query vectors of a search: float32 [n, d] or uint8 [n, d/8]. A long record may make up for a short one."""
    records = request.query_record_array
    schema = collection.schema
    floats, octets = vectors_of(records)
    binary = schema.vector_type is VectorType.BINARY
    if len(floats):
        octets = octets[:0]  # a server looks at one kind, and at the numbers first
    data: Array = octets if binary else floats
    rules.check_dimension(len(records), len(data), len(floats) + len(octets), schema.width)
    return data.reshape(len(records), schema.width)


def _metric(served: _Served, parameters: Mapping[str, Any]) -> str | None:
    """The metric of a search: collections without an index let the client choose another of the same kind of vectors."""
    asked = parameters.get("metric_type")
    if asked is None or served.engine not in (EngineType.FAISS_IDMAP, EngineType.FAISS_BIN_IDMAP):
        return None
    binary = served.collection.schema.vector_type is VectorType.BINARY
    if type(asked) is int and asked in MetricType._value2member_map_ and (asked >= MetricType.HAMMING) == binary:
        return MetricType(asked).name
    raise Refused(Code.ILLEGAL_ARGUMENT, "Illegal metric type")


def _parameters_text(collection: Collection) -> str:
    return json.dumps(dict(sorted(collection.schema.index.params.items())), separators=(",", ":"))


def _shown_name(partition: Partition, piece: Piece) -> str:
    """A segment's name; rows of the log, which have none, get one that is different in each partition."""
    return f"{piece.id}/{_text(partition.name)}" if isinstance(piece, LogRows) else piece.id


def _text(name: str) -> str:
    """A name as a message can hold it: bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "replace").decode()


def _piece_named(served: _Served, name: str) -> Piece | None:
    """The piece that is shown under this name."""
    pieces = ((partition, piece) for partition in served.collection.partitions for piece in partition.pieces)
    return next((piece for partition, piece in pieces if _shown_name(partition, piece) == name), None)


def _ids_of(piece: Piece, opened: Opened) -> npt.NDArray[np.int64]:
    """The live ids of a piece."""
    if isinstance(piece, Segment):
        files = opened.files(piece)
        ids = files.read(0, piece.stored, True)[:, 0]
        return ids if files.dead is None else ids[~files.dead.window(0, piece.stored)]
    found = [batch.ids.copy() for batch in piece.batches()]
    return np.concatenate(found) if found else np.empty(0, ID)
