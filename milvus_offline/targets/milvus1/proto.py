"""The gRPC service of Milvus 0.10-1.1.1 but for its hybrid methods (FORMAT §12), without generated code.

Generated modules are tied to the release of protobuf that made them. `PROTO` is our own small definition; a reader for just
its subset makes the message classes when they are needed, with whatever protobuf there is. Tests compare that with `protoc`.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model import Array, VectorType
from ..milvus.wire import varint, varints

SERVICE = "/milvus.grpc.MilvusService/"

PROTO = """\
syntax = "proto3";
package milvus.grpc;

message Status { int32 error_code = 1; string reason = 2; }
message KeyValuePair { string key = 1; string value = 2; }
message CollectionName { string collection_name = 1; }
message CollectionNameList { Status status = 1; repeated string collection_names = 2; }
message CollectionSchema {
  Status status = 1;
  string collection_name = 2;
  int64 dimension = 3;
  int64 index_file_size = 4;
  int32 metric_type = 5;
  repeated KeyValuePair extra_params = 6;
}
message PartitionParam { string collection_name = 1; string tag = 2; }
message PartitionList { Status status = 1; repeated string partition_tag_array = 2; }
message RowRecord { repeated float float_data = 1; bytes binary_data = 2; }
message InsertParam {
  string collection_name = 1;
  repeated RowRecord row_record_array = 2;
  repeated int64 row_id_array = 3;
  string partition_tag = 4;
  repeated KeyValuePair extra_params = 5;
}
message VectorIds { Status status = 1; repeated int64 vector_id_array = 2; }
message VectorsIdentity { string collection_name = 1; repeated int64 id_array = 2; string partition_tag = 3; }
message VectorsData { Status status = 1; repeated RowRecord vectors_data = 2; }
message FlushParam { repeated string collection_name_array = 1; }
message IndexParam {
  Status status = 1;
  string collection_name = 2;
  int32 index_type = 3;
  repeated KeyValuePair extra_params = 4;
}
message CollectionRowCount { Status status = 1; int64 collection_row_count = 2; }
message CollectionInfo { Status status = 1; string json_info = 2; }
message Command { string cmd = 1; }
message StringReply { Status status = 1; string string_reply = 2; }
message BoolReply { Status status = 1; bool bool_reply = 2; }
message DeleteByIDParam { string collection_name = 1; repeated int64 id_array = 2; string partition_tag = 3; }
message GetVectorIDsParam { string collection_name = 1; string segment_name = 2; }
message PreloadCollectionParam { string collection_name = 1; repeated string partition_tag_array = 2; }
message ReLoadSegmentsParam { string collection_name = 1; repeated string segment_id_array = 2; }
message SearchParam {
  string collection_name = 1;
  repeated string partition_tag_array = 2;
  repeated RowRecord query_record_array = 3;
  int64 topk = 4;
  repeated KeyValuePair extra_params = 5;
}
message SearchInFilesParam { repeated string file_id_array = 1; SearchParam search_param = 2; }
message SearchByIDParam {
  string collection_name = 1;
  repeated string partition_tag_array = 2;
  repeated int64 id_array = 3;
  int64 topk = 4;
  repeated KeyValuePair extra_params = 5;
}
message TopKQueryResult { Status status = 1; int64 row_num = 2; repeated int64 ids = 3; repeated float distances = 4; }
"""
"""An enum travels as an int32 does, so error codes are plain numbers here."""

METHODS = {
    "CreateCollection": ("CollectionSchema", "Status"),
    "HasCollection": ("CollectionName", "BoolReply"),
    "DescribeCollection": ("CollectionName", "CollectionSchema"),
    "CountCollection": ("CollectionName", "CollectionRowCount"),
    "ShowCollectionInfo": ("CollectionName", "CollectionInfo"),
    "ShowCollections": ("Command", "CollectionNameList"),
    "DropCollection": ("CollectionName", "Status"),
    "CreateIndex": ("IndexParam", "Status"),
    "DescribeIndex": ("CollectionName", "IndexParam"),
    "CreatePartition": ("PartitionParam", "Status"),
    "DropPartition": ("PartitionParam", "Status"),
    "ShowPartitions": ("CollectionName", "PartitionList"),
    "Insert": ("InsertParam", "VectorIds"),
    "GetVectorsByID": ("VectorsIdentity", "VectorsData"),
    "Flush": ("FlushParam", "Status"),
    "Cmd": ("Command", "StringReply"),
    "HasPartition": ("PartitionParam", "BoolReply"),
    "GetVectorIDs": ("GetVectorIDsParam", "VectorIds"),
    "Search": ("SearchParam", "TopKQueryResult"),
    "SearchByID": ("SearchByIDParam", "TopKQueryResult"),
    "SearchInFiles": ("SearchInFilesParam", "TopKQueryResult"),
    "PreloadCollection": ("PreloadCollectionParam", "Status"),
    "ReleaseCollection": ("PreloadCollectionParam", "Status"),
    "ReloadSegments": ("ReLoadSegmentsParam", "Status"),
    "DropIndex": ("CollectionName", "Status"),
    "DeleteByID": ("DeleteByIDParam", "Status"),
    "Compact": ("CollectionName", "Status"),
}
"""Method -> names of its request and reply."""

_TYPES = {"bool": 8, "bytes": 12, "double": 1, "float": 2, "int32": 5, "int64": 3, "string": 9}
"""Numbers of FieldDescriptorProto.Type."""
_MESSAGE, _OPTIONAL, _REPEATED = 11, 1, 3


@cache
def descriptor() -> Any:
    """`PROTO` as a FileDescriptorProto."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    package = re.search(r"package ([\w.]+);", PROTO)
    assert package
    file = FileDescriptorProto(name="milvus1.proto", package=package[1], syntax="proto3")
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", PROTO, re.S):
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body):
            added = message.field.add(name=field, number=int(number), label=_REPEATED if repeated else _OPTIONAL)
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = _MESSAGE, f".{package[1]}.{kind}"
    return file


@cache
def messages() -> dict[str, Any]:
    """Message name -> class."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(descriptor().SerializeToString())
    return {
        m.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{descriptor().package}.{m.name}"))
        for m in descriptor().message_type
    }


def insert_bytes(
    collection: str, tag: str, ids: npt.NDArray[np.int64] | None, vectors: Array, vector_type: VectorType
) -> bytes:
    """An InsertParam of `vectors` (float32 [n, d] or uint8 [n, d/8]) as bytes, made without an object per row."""
    rows = np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)
    data = varint((1 if vector_type is VectorType.FLOAT else 2) << 3 | 2) + varint(rows.shape[1])
    head = np.frombuffer(varint(2 << 3 | 2) + varint(len(data) + rows.shape[1]) + data, np.uint8)
    records = np.empty((len(rows), len(head) + rows.shape[1]), np.uint8)
    records[:, : len(head)] = head
    records[:, len(head) :] = rows
    name, key = collection.encode(), tag.encode("utf-8", "surrogateescape")
    parts: list[bytes | memoryview] = [varint(1 << 3 | 2), varint(len(name)), name, records.data]
    if ids is not None:
        packed = varints(ids)
        parts += [varint(3 << 3 | 2), varint(len(packed)), packed]
    if key:
        parts += [varint(4 << 3 | 2), varint(len(key)), key]
    return b"".join(parts)


def _field(number: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """A length-delimited field: tag, length, content."""
    return [varint(number << 3 | 2), varint(sum(len(p) for p in parts)), *parts]


def records_bytes(number: int, rows: Array, present: npt.NDArray[np.bool_]) -> bytes:
    """RowRecords as field `number` of a message, one for each of `present` (bool [n]): the next of `rows` (float32 [m, d] or
    uint8 [m, d/8]) where it is true, an empty one where not."""
    octets = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.shape[1] * rows.itemsize)
    kind = 2 if rows.dtype == np.uint8 else 1
    empty = b"".join(_field(number))
    head = b"".join(_field(kind, octets[0].data)[:2]) if len(rows) else b""
    head = varint(number << 3 | 2) + varint(len(head) + octets.shape[1]) + head
    parts: list[bytes | memoryview] = []
    following = iter(octets)
    for there in present.tolist():
        parts += [head, next(following).data] if there else [empty]
    return b"".join(parts)


def hits_bytes(rows: int, ids: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> bytes:
    """The fields of a TopKQueryResult but for its status; `ids` and `distances` [rows, k]."""
    packed = varints(ids.reshape(-1))
    floats = np.ascontiguousarray(distances, "<f4").reshape(-1).view(np.uint8).data
    return b"".join([varint(2 << 3), varint(rows), *_field(3, packed), *_field(4, floats)])


def ids_bytes(ids: npt.NDArray[np.int64]) -> bytes:
    """The ids of a VectorIds."""
    return b"".join(_field(2, varints(ids)))


def vectors_of(records: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """All numbers and all bytes of RowRecords, one record after the other: float32 [n], uint8 [m]."""
    floats = [
        np.frombuffer(data, "<f4", count, at) for r in records if (count := len(r.float_data)) for data, at in (_raw(r, count),)
    ]
    octets = [np.frombuffer(r.binary_data, np.uint8) for r in records if r.binary_data]
    return (
        np.concatenate(floats) if floats else np.empty(0, np.float32),
        np.concatenate(octets) if octets else np.empty(0, np.uint8),
    )


def _raw(record: Any, count: int) -> tuple[bytes, int]:
    """A record as bytes, and where its `count` numbers begin in them: packed, the first field."""
    return record.SerializeToString(), 1 + len(varint(4 * count))
