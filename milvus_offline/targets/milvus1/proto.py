"""The gRPC service of Milvus 0.10-1.1.1 as far as a load needs it (FORMAT §12), without generated code.

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
