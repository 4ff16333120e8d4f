"""A stand-in for a server of Milvus 1.1.1: the gRPC service of FORMAT §12 with the rules that a client has to keep.

A row that the real server acknowledges and loses is lost here, too; nothing is counted before a flush.
"""

from __future__ import annotations

import json
import threading
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from milvus_offline.targets.milvus1.proto import METHODS, SERVICE, messages

MAX_INSERT = 256 << 20
BLANKS = " \n\r\t"


@dataclass
class Table:
    dimension: int
    index_file_size: int
    metric: int
    partitions: list[str] = field(default_factory=list)
    rows: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)
    with_ids: bool | None = None
    index: tuple[int, str] = (1, "{}")


class Standin:
    """The server; `tables` is what it holds, `lost` rows acknowledged and dropped as the real one does."""

    def __init__(self, version: str = "1.1.1") -> None:
        self.tables: dict[str, Table] = {}
        self.deleting: dict[str, int] = {}
        self.version = version
        self.lost = 0
        self.calls: list[str] = []
        self.break_after: dict[str, int] = {}
        """Method -> number of its calls after which the server answers nothing any more (the last one has its effect)."""
        self.next_id = 1_700_000_000_000_000_000
        self.refuse_index = self.refuse_reading = False
        self.meta_uri = "sqlite://:@:/"
        self.lose_on_flush = 0
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(4),
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)],
        )
        handlers = {m: self._handler(m, *types) for m, types in METHODS.items()}
        name = SERVICE.strip("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def target(self) -> str:
        return f"milvus1://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _handler(self, method: str, asked: str, answered: str) -> Any:
        request_class, reply_class = messages()[asked], messages()[answered]

        def handle(raw: bytes, context: Any) -> Any:
            request = request_class.FromString(raw)
            with self._lock:
                self.calls.append(method)
                result = getattr(self, f"_{method}")(request)
                left = self.break_after.get(method)
                if left is not None:
                    if left == 0:
                        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is gone")
                    self.break_after[method] = left - 1
            code, reason, fields = result if isinstance(result, tuple) else (0, "", result)
            if answered == "Status":
                return reply_class(error_code=code, reason=reason)
            return reply_class(status={"error_code": code, "reason": reason}, **fields)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=None, response_serializer=lambda m: m.SerializeToString()
        )

    def _missing(self, name: str) -> tuple[int, str, dict[str, Any]] | None:
        return None if name in self.tables else (4, f"Collection {name} does not exist", {})

    def _Cmd(self, r: Any) -> Any:
        known = {"version": self.version, "get_config general.meta_uri": self.meta_uri}
        return {"string_reply": known.get(r.cmd, "OK")}

    def _CreateCollection(self, r: Any) -> Any:
        name = r.collection_name
        if self.deleting.get(name, 0):
            self.deleting[name] -= 1
            return 1, "Collection is in delete state, try again later", {}
        if name in self.tables:
            return 9, f"Collection already exist: {name}", {}
        if not (name and (name[0].isalpha() or name[0] == "_") and name.replace("_", "a").isalnum() and name.isascii()):
            return 9, f"Invalid collection name: {name}", {}
        if not 1 <= r.dimension <= 32768 or (r.metric_type >= 3 and r.dimension % 8):
            return 7, "Invalid dimension", {}
        if not 1 <= r.index_file_size <= 131072:
            return 5, "Invalid index file size", {}
        self.tables[name] = Table(r.dimension, r.index_file_size, r.metric_type, index=(1, "{}"))
        return {}

    def _HasCollection(self, r: Any) -> Any:
        return {"bool_reply": r.collection_name in self.tables}

    def _ShowCollections(self, r: Any) -> Any:
        return {"collection_names": list(self.tables)}

    def _DescribeCollection(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        t = self.tables[r.collection_name]
        return {
            "collection_name": r.collection_name,
            "dimension": t.dimension,
            "index_file_size": t.index_file_size,
            "metric_type": t.metric,
        }

    def _DropCollection(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        del self.tables[r.collection_name]
        self.deleting[r.collection_name] = 2
        return {}

    def _CreatePartition(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        tag = r.tag.strip(BLANKS)
        if "'" in tag and self.meta_uri.startswith("sqlite"):
            return 15, f'near "{tag}": syntax error', {}
        if tag == "_default" or not 1 <= len(tag.encode()) <= 255:
            return 5, f"Invalid partition tag: {tag}", {}
        if tag in self.tables[r.collection_name].partitions:
            return 5, "Partition already exists", {}
        self.tables[r.collection_name].partitions.append(tag)
        return {}

    def _DropPartition(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        t = self.tables[r.collection_name]
        if r.tag not in t.partitions:
            return 5, f"Invalid partition tag: {r.tag}", {}
        t.partitions.remove(r.tag)
        t.rows.pop(r.tag, None)
        t.pending = [p for p in t.pending if p[0] != r.tag]
        return {}

    def _ShowPartitions(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        return {"partition_tag_array": ["_default", *self.tables[r.collection_name].partitions]}

    def _Insert(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        t = self.tables[r.collection_name]
        records = r.row_record_array
        binary = t.metric >= 3
        if not records:
            return 11, "The vector array is empty", {}
        size = sum(len(x.binary_data) if binary else 4 * len(x.float_data) for x in records)
        if size > MAX_INSERT:
            return 11, "The amount of data inserted each time cannot exceed 256 MB", {}
        if r.row_id_array and len(r.row_id_array) != len(records):
            return 12, "The size of vector ID array must be equal to the size of the vector", {}
        if t.with_ids is not None and t.with_ids != bool(r.row_id_array):
            return 12, "Entity IDs are auto-generated" if r.row_id_array else "Entity IDs are user-defined", {}
        for x in records:
            if (len(x.binary_data) if binary else len(x.float_data)) != (t.dimension // 8 if binary else t.dimension):
                return 7, "The vector dimension must be equal to the collection dimension", {}
        if r.partition_tag.strip(BLANKS) not in ("", "_default", *t.partitions):
            return 5, "Partition tag does not exist", {}
        t.with_ids = bool(r.row_id_array)
        ids = list(r.row_id_array)
        if not ids:
            ids = list(range(self.next_id, self.next_id + len(records)))
            self.next_id += len(records)
        if r.partition_tag not in ("", *t.partitions):
            self.lost += len(records)  # acknowledged, never visible (§5.6)
            return {"vector_id_array": ids}
        for i, x in zip(ids, records, strict=True):
            t.pending.append((r.partition_tag, i, x.binary_data if binary else np.array(x.float_data, "<f4").tobytes()))
        return {"vector_id_array": ids}

    def _Flush(self, r: Any) -> Any:
        for name in r.collection_name_array:
            if missing := self._missing(name):
                return missing
        for name in r.collection_name_array or list(self.tables):
            t = self.tables[name]
            for tag, i, vector in t.pending[self.lose_on_flush :]:
                t.rows.setdefault(tag, []).append((i, vector))
            t.pending.clear()
        return {}

    def _CountCollection(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        return {"collection_row_count": sum(map(len, self.tables[r.collection_name].rows.values()))}

    def _ShowCollectionInfo(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        rows = {tag or "_default": len(found) for tag, found in self.tables[r.collection_name].rows.items()}
        tags = ["_default", *self.tables[r.collection_name].partitions]
        described = [{"tag": t, "row_count": rows.get(t, 0), "segments": []} for t in tags if rows.get(t)]
        return {"json_info": json.dumps({"row_count": sum(rows.values()), "partitions": described})}

    def _CreateIndex(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        params = {p.key: p.value for p in r.extra_params}
        binary = self.tables[r.collection_name].metric >= 3
        if self.refuse_index or r.index_type not in ((1, 2) if binary else (1, 2, 3, 4, 5, 6, 11, 12)):
            return 8, "Invalid index type", {}
        json.loads(params["params"])
        self.tables[r.collection_name].index = (r.index_type, params["params"])
        return {}

    def _DescribeIndex(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        kind, params = self.tables[r.collection_name].index
        return {"index_type": kind, "extra_params": [{"key": "params", "value": params}]}

    def _GetVectorsByID(self, r: Any) -> Any:
        if missing := self._missing(r.collection_name):
            return missing
        if self.refuse_reading:
            return 5, "not in this stand-in", {}
        if len(r.id_array) > 1000:
            return 5, "the number of ids should be less than 1000", {}
        t = self.tables[r.collection_name]
        there: dict[int, bytes] = {}
        for rows in t.rows.values():
            for i, vector in rows:
                there.setdefault(i, vector)
        field = "binary_data" if t.metric >= 3 else "float_data"
        found = [there.get(i) for i in r.id_array]
        values = [v if v is None or t.metric >= 3 else np.frombuffer(v, "<f4").tolist() for v in found]
        return {"vectors_data": [{} if v is None else {field: v} for v in values]}
