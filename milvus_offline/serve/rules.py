"""What a server 1.1.1 refuses, with its error codes and its words (FORMAT §12): applications look at both.

Each rule raises Refused. The order in which a method asks them is part of what a client sees.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from ..milvus1.layout import EngineType
from ..search.exact import Cancelled
from ..targets.milvus1.names import BLANKS

MAX_TOPK = 16384
MAX_IDS = 1000
"""Ids in one GetVectorsByID."""
_MAX_NAME = 255


class Code(IntEnum):
    """ErrorCode of the service."""

    SUCCESS = 0
    UNEXPECTED_ERROR = 1
    PERMISSION_DENIED = 3
    COLLECTION_NOT_EXISTS = 4
    ILLEGAL_ARGUMENT = 5
    ILLEGAL_DIMENSION = 7
    ILLEGAL_COLLECTION_NAME = 9
    ILLEGAL_TOPK = 10
    ILLEGAL_ROWRECORD = 11


class Refused(Exception):
    """The Status that a client gets."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def read_only(method: str) -> Refused:
    """The answer to everything that would change data."""
    return Refused(
        Code.PERMISSION_DENIED,
        f"{method} is refused: this service (milvus-offline serve) reads the files of a stopped Milvus server and changes "
        "nothing. Write to the Milvus that the data are migrated to, or stop this service and start a server on the data",
    )


def check_name(name: str) -> None:
    """A collection's name."""
    if not name:
        raise Refused(Code.ILLEGAL_COLLECTION_NAME, "Collection name should not be empty.")
    wrong = ""
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME:
        wrong = "The length of a collection name must be less than 255 characters."
    elif not re.match(r"[A-Za-z_]", name):
        wrong = "The first character of a collection name must be an underscore or letter."
    elif not re.fullmatch(r"\w+", name, re.ASCII):
        wrong = "Collection name can only contain numbers, letters, and underscores."
    if wrong:
        raise Refused(Code.ILLEGAL_COLLECTION_NAME, f"Invalid collection name: {name}. {wrong}")


def no_collection(name: str) -> Refused:
    return Refused(
        Code.COLLECTION_NOT_EXISTS,
        f"Collection {name} does not exist. Use milvus.has_collection to verify whether the collection exists. "
        "You also can check whether the collection name exists.",
    )


def check_topk(topk: int) -> None:
    if not 0 < topk <= MAX_TOPK:
        raise Refused(Code.ILLEGAL_TOPK, f"Invalid topk: {topk}. The topk must be within the range of 1 ~ {MAX_TOPK}.")


def check_result(queries: int, topk: int, limit: int) -> None:
    """Whether the answer stays below `limit` bytes: 12 for each hit. A real server stops at 2 GiB."""
    if queries * topk * 12 >= limit:
        reason = f"Invalid nq {queries} topk {topk}. The search result size may exceed the RPC transmission limit."
        raise Refused(Code.ILLEGAL_TOPK, reason)


def check_tags(tags: Iterable[str]) -> None:
    """The tags of a search; 1.1.1 has no code of its own for them."""
    for tag in tags:
        trimmed = tag.strip(BLANKS)
        if not trimmed:
            raise Refused(Code.UNEXPECTED_ERROR, "Invalid partition tag: . Partition tag should not be empty.")
        if len(trimmed.encode("utf-8", "surrogatepass")) > _MAX_NAME:
            raise Refused(Code.UNEXPECTED_ERROR, f"Invalid partition tag: {trimmed}. Partition tag exceed max length(255).")


def check_dimension(queries: int, elements: int, total: int, wanted: int) -> None:
    """`queries` records with together `elements` numbers or bytes of the collection's kind (`total`: of either kind)."""
    if not queries or not total:
        reason = "The vector array is empty. Make sure you have entered vector records."
        raise Refused(Code.ILLEGAL_ROWRECORD, reason)
    reason = "The vector dimension must be equal to the collection dimension."
    if elements % queries:
        raise Refused(Code.ILLEGAL_ROWRECORD, reason)
    if elements // queries != wanted:
        raise Refused(Code.ILLEGAL_DIMENSION, reason)


class BadParameters(Exception):
    """`params` that are no JSON: a server breaks off the call."""


def parse_parameters(pairs: Sequence[Any]) -> dict[str, Any]:
    """The JSON object that stands under `params`; empty where there is none. Raises BadParameters."""
    found: Any = None
    for pair in pairs:
        if pair.key == "params":
            try:
                found = json.loads(pair.value, parse_constant=_no_number, parse_float=_finite)
            except (ValueError, RecursionError) as e:
                raise BadParameters from e
    return found if isinstance(found, dict) else {}


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _finite(text: str) -> float:
    """A number that a float64 can hold: nlohmann's JSON takes no other (out_of_range.406)."""
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


_NPROBE = ("nprobe", 1, 65536)
_RANGES: Mapping[int, tuple[str, int, int | None]] = {
    EngineType.FAISS_IVFFLAT: _NPROBE,
    EngineType.FAISS_IVFSQ8: _NPROBE,
    EngineType.FAISS_IVFSQ8H: _NPROBE,
    EngineType.FAISS_PQ: _NPROBE,
    EngineType.FAISS_BIN_IVFFLAT: _NPROBE,
    EngineType.NSG_MIX: ("search_length", 10, 300),
    EngineType.HNSW: ("ef", 0, 32768),
    EngineType.ANNOY: ("search_k", -(1 << 63), (1 << 63) - 1),
}


_KINDS = {str: "string", type(None): "null", bool: "boolean", list: "array"}
"""How nlohmann's JSON names what is no number."""


def check_parameters(parameters: Mapping[str, Any], engine: int, topk: int) -> None:
    """What a search of a collection with this index has to say, although an exact answer does not need it."""
    if engine not in _RANGES:
        return
    name, low, high = _RANGES[engine]
    low = topk if name == "ef" else low
    if name not in parameters:
        raise Refused(Code.ILLEGAL_ARGUMENT, f"Parameter list must contain: {name}")
    value = parameters[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        kind = _KINDS.get(type(value), "object")
        reason = f"Invalid {name}: [json.exception.type_error.302] type must be number, but is {kind}"
        raise Refused(Code.ILLEGAL_ARGUMENT, reason)
    if not low <= int(value) <= (high or 0):
        raise Refused(Code.ILLEGAL_ARGUMENT, f"Invalid {name} value: {int(value)}. Valid range is [{low}, {high}]")


_MOST_REPEATS = 3
_MOST_COMPARISONS = 10_000_000
"""Tags held against expressions in one request: some seconds."""


def _expression(pattern: str) -> re.Pattern[str] | None:
    """A search's tag as a regular expression; None where it means no other tag than itself.

    An expression that could run for ever (more than three repetitions, a repeated group) matches nothing.
    """
    if not re.search(r"[\\^$.|?*+(\[{]", pattern):
        return None
    plain = re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "x", pattern, flags=re.S)
    if len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS or re.search(r"\)[*+{]", plain):
        return None
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None


def meant(tags: Sequence[str], patterns: Iterable[str], stopped: Callable[[], bool] = lambda: False) -> set[str]:
    """Those of the partitions' `tags` that a search's tags mean: a tag itself, or a regular expression for all of it.

    Raises Cancelled as soon as `stopped` says so.
    """
    asked = dict.fromkeys(patterns)
    found = set(tags).intersection(asked)
    left = [tag for tag in tags if tag not in found]
    compared = 0
    for pattern in asked:
        if not left:
            break
        expression = _expression(pattern)
        compared += len(left) if expression else 1
        if compared > _MOST_COMPARISONS:
            raise Refused(
                Code.UNEXPECTED_ERROR, f"{len(asked)} partition tags are too many patterns for {len(tags)} partitions"
            )
        if stopped():
            raise Cancelled
        if expression:
            found.update(tag for tag in left if expression.fullmatch(tag))
            left = [tag for tag in left if tag not in found]
    return found


# Names of indexes --------------------------------------------------------------------------------------------------------

RAW_NAME = "IDMAP"
INDEX_NAMES: Mapping[int, str] = {
    EngineType.FAISS_IDMAP: "IDMAP", EngineType.FAISS_IVFFLAT: "IVFFLAT", EngineType.FAISS_IVFSQ8: "IVFSQ8",
    EngineType.NSG_MIX: "NSG", EngineType.FAISS_IVFSQ8H: "IVFSQ8H", EngineType.FAISS_PQ: "PQ",
    EngineType.SPTAG_KDT: "KDT", EngineType.SPTAG_BKT: "BKT", EngineType.FAISS_BIN_IDMAP: "IDMAP",
    EngineType.FAISS_BIN_IVFFLAT: "IVFFLAT", EngineType.HNSW: "HNSW", EngineType.ANNOY: "ANNOY",
}  # fmt: skip
"""As ShowCollectionInfo names them."""

FOR_CLIENTS: Mapping[int, int] = {
    EngineType.FAISS_BIN_IDMAP: EngineType.FAISS_IDMAP,
    EngineType.FAISS_BIN_IVFFLAT: EngineType.FAISS_IVFFLAT,
}
"""Numbers of indexes for clients, who know no others."""
