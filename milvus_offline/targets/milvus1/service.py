"""The gRPC service of a running server of Milvus 0.10-1.1.1 (FORMAT §12): calls, and what their refusals mean."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import TargetError
from ...model import DEFAULT_PARTITION, Array, Schema, VectorType
from ...names import printable
from .proto import METHODS, SERVICE, messages

IDS_PER_CALL = 1000
"""GetVectorsByID takes no more."""
_QUERIES = 50
"""Queries of one call."""
_NOTHING = 3.4e38
"""Where there are fewer hits than asked for the rest have the id -1 and the largest float32 as their distance."""
_IN_DELETE_STATE = 1
_DROP_SECONDS = 60.0
_CALL_SECONDS = 300.0
_REACH_SECONDS = 10.0


class Service:
    """A connection to the service; like every method raises TargetError when the server says no. Use as a context manager."""

    def __init__(self, address: str) -> None:
        import grpc

        from ..milvus.probe import check_plain

        host, _, port = address.rpartition(":")
        check_plain(address, host.strip("[]"), int(port), _REACH_SECONDS)
        self.address = address
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=unlimited)
        self._calls: dict[str, Any] = {}
        self.answered = False
        """Whether it ever did."""

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, *, allow: Sequence[int] = (), patience: float | None = _CALL_SECONDS) -> Any:
        """The reply. `request` is a mapping of fields or serialised bytes; error codes in `allow` are the caller's business."""
        import grpc

        asked, answered = METHODS[method]
        if not isinstance(request, bytes):
            request = messages()[asked](**request).SerializeToString()
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(
                SERVICE + method, request_serializer=None, response_deserializer=messages()[answered].FromString
            )
        try:
            reply = self._calls[method](request, timeout=patience)
        except grpc.RpcError as e:
            raise TargetError(f"{self.address}: {self._explain(method, e)}") from None
        self.answered = True
        status = reply if answered == "Status" else reply.status
        if status.error_code and status.error_code not in allow:
            raise TargetError(f"{self.address}: {method} refused (code {status.error_code}): {printable(status.reason)}")
        return reply

    def _explain(self, method: str, error: Any) -> str:
        import grpc

        code = error.code()
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "no Milvus 0.10-1.x answers there; a newer server is addressed as http://host:port"
        if code is grpc.StatusCode.UNAVAILABLE:
            if not self.answered:
                return "nothing answers there: check the address and that the server runs"
            return f"no answer to {method}: check that the server runs. What arrived is kept: go on with --resume"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer to {method} in time; go on with --resume"
        return f"{method}: {code.name}: {error.details()}"

    def version(self) -> str:
        return str(self.call("Cmd", {"cmd": "version"}, patience=10).string_reply)

    def count(self, collection: str) -> int:
        """Rows that are flushed."""
        return int(self.call("CountCollection", {"collection_name": collection}).collection_row_count)

    def default_rows(self, collection: str) -> int:
        """Rows of the default partition."""
        self.flush(collection)
        info = self.call("ShowCollectionInfo", {"collection_name": collection}).json_info
        try:
            partitions = json.loads(info or "{}").get("partitions") or []
            return sum(int(p["row_count"]) for p in partitions if p["tag"] == DEFAULT_PARTITION)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise TargetError(f"{self.address}: ShowCollectionInfo gave an unexpected reply: {printable(info[:200])}") from e

    def flush(self, collection: str) -> None:
        self.call("Flush", {"collection_name_array": [collection]}, patience=None)

    def schema(self, collection: str) -> Any | None:
        """A CollectionSchema, or None when there is no such collection."""
        name = {"collection_name": collection}
        return self.call("DescribeCollection", name) if self.call("HasCollection", name).bool_reply else None

    def create(self, method: str, request: Mapping[str, Any]) -> None:
        """Creates what was perhaps dropped a moment ago: that goes away after a while."""
        until = time.monotonic() + _DROP_SECONDS
        while True:
            status = self.call(method, request, allow=(_IN_DELETE_STATE,))
            if not status.error_code:
                return
            if "delete" not in status.reason or time.monotonic() > until:
                raise TargetError(f"{self.address}: {method} refused: {printable(status.reason)}")
            time.sleep(0.2)

    def index(self, collection: str) -> tuple[int, Mapping[str, Any]]:
        """The number of the index by the service's or the catalog's enum, and its parameters."""
        reply = self.call("DescribeIndex", {"collection_name": collection})
        try:
            params = json.loads(next((p.value for p in reply.extra_params if p.key == "params"), "") or "{}")
        except ValueError:
            params = None
        return int(reply.index_type), params if isinstance(params, dict) else {}

    def search(
        self, collection: str, queries: Array, k: int, params: Mapping[str, int]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """For each query the ids and distances of its hits, in all partitions."""
        binary = queries.dtype == np.uint8
        found = []
        for at in range(0, len(queries), _QUERIES):
            some = queries[at : at + _QUERIES]
            reply = self.call(
                "Search",
                {
                    "collection_name": collection,
                    "query_record_array": [
                        {"binary_data": q.tobytes()} if binary else {"float_data": q.tolist()} for q in some
                    ],
                    "topk": k,
                    "extra_params": [{"key": "params", "value": json.dumps(dict(params))}],
                },
            )
            ids, distances = np.array(reply.ids, np.int64), np.array(reply.distances, np.float64)
            if reply.row_num != len(some) or len(ids) != len(distances) or len(ids) % len(some):
                raise TargetError(f"{self.address}: Search gave {len(ids)} hits for {len(some)} queries")
            there = (ids != -1) | (np.abs(distances) < _NOTHING)
            rows = (a.reshape(len(some), -1) for a in (ids, distances, there))
            found += [(i[there], d[there]) for i, d, there in zip(*rows, strict=True)]
        return found

    def keeps_metadata_in_mysql(self) -> bool:
        """Whether the server says so; one that does not answer that question is taken for one with SQLite."""
        try:
            return str(self.call("Cmd", {"cmd": "get_config general.meta_uri"}).string_reply).startswith("mysql")
        except TargetError:
            return False

    def vectors(self, collection: str, ids: npt.NDArray[np.int64], schema: Schema) -> tuple[npt.NDArray[np.bool_], Array]:
        """Which of at most `IDS_PER_CALL` ids are there (bool [n]), and their vectors [n, width]; of an id with several rows
        the server shows one."""
        reply = self.call("GetVectorsByID", {"collection_name": collection, "id_array": ids.tolist()})
        there = np.zeros(len(ids), bool)
        vectors = np.zeros((len(ids), schema.width), schema.dtype)
        for row, record in enumerate(reply.vectors_data[: len(ids)]):
            found = record.float_data if schema.vector_type is VectorType.FLOAT else np.frombuffer(record.binary_data, "u1")
            if len(found) == schema.width:
                there[row], vectors[row] = True, found
        return there, vectors
