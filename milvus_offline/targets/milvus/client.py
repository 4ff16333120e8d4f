"""A connection to Milvus Lite, a Milvus server or Zilliz Cloud: what a load needs of it, with its refusals told apart.

Only `insert` and `query` go below pymilvus' public names (see `wire`); both have a public way to fall back to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ...errors import TargetError, UsageError
from ...model import Array, IndexSpec, VectorType
from .. import words
from . import wire
from .connection import Connection, check_lite_path, lite_facts, tls_options
from .limits import server_facts
from .probe import check_reachable
from .refusals import Unclear, broken, error_of, is_away, refusal
from .terms import CollectionPlan, Existing, TargetFacts, existing_of

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
CONNECT_SECONDS = 10.0
CALL_SECONDS = 120.0
IDS_PER_CALL = 10_000
CLAIM = "milvus_offline_loading_"
"""What names of aliases begin with that say that a load is filling a collection."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a collection or an alias may be called; a server refuses to look for another name."""


class Client:
    """One connection, shared by all threads of a load. Use as a context manager."""

    def __init__(self, connection: Connection, *, public: bool = False, patience: float = CONNECT_SECONDS) -> None:
        """`public`: rows go through `MilvusClient.insert` even if the faster way works. `patience`: seconds to connect."""
        self.connection = connection
        _hush()
        from pymilvus import MilvusClient

        _hush()  # its import sets up its log anew

        c = connection
        if c.lite:
            check_lite_path(Path(c.uri))
        for path in (c.server_pem, c.ca_pem, c.client_pem, c.client_key):
            if path and not Path(path).is_file():
                raise UsageError(f"{path}: no such file (TLS)")
        self.tls = tls_options(c)
        """Keyword arguments of pymilvus for an encrypted connection."""
        seconds = CONNECT_SECONDS if c.lite else min(CONNECT_SECONDS, max(1.0, patience))
        options: dict[str, Any] = dict(self.tls)
        if not c.lite:
            check_reachable(c, seconds)
        if c.lite:  # it mistakes pymilvus' keepalive every 10 s for an attack, and drops the connection
            options["grpc_options"] = {"grpc.keepalive_time_ms": 2**31 - 1}
        self.patience = 0.0
        """Seconds for which calls wait for a server that went away; none until a load is under way."""

        def connect() -> Any:
            return MilvusClient(c.uri, token=c.token, db_name=c.database, timeout=seconds, **options)

        self.pymilvus = self.call("connect", connect)
        self.version = str(self.call("connect", self.pymilvus.get_server_version))
        host = "" if c.lite else urlsplit(c.uri).hostname or ""
        self.kind: words.Server = "lite" if c.lite else "zilliz" if re.search(r"(^|\.)zilliz(cloud)?\.", host) else "server"
        channel = wire.channel_of(self.pymilvus)
        self._channel = channel if channel and not public and wire.encoder_agrees() else None

    @property
    def fast(self) -> bool:
        """Whether rows go to the wire as bytes."""
        return self._channel is not None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.pymilvus.close()
        if self.connection.lite:
            with contextlib.suppress(Exception):  # gives up its lock, so that others can open the folder
                from milvus_lite.server_manager import server_manager_instance

                server_manager_instance.release_server(self.connection.uri)

    def call(self, what: str, call: Callable[[], T]) -> T:
        """Calls the server; while it is away, again and again up to `patience` seconds. `call` may run several times."""
        import grpc
        from pymilvus.exceptions import MilvusException

        until, wait = time.monotonic() + self.patience, FIRST_WAIT
        while True:
            try:
                return call()
            except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ValueError) as e:
                away = is_away(e)
                if not away and type(e) is ValueError:
                    raise
                if not away or time.monotonic() >= until:
                    raise error_of(self.connection, what, e) from e
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def once(self, what: str, call: Callable[[], T]) -> T:
        """Calls the server a single time: for what must not happen twice."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            return call()
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as e:
            raise error_of(self.connection, what, e) from e

    # What is there ----------------------------------------------------------------------------------------------------

    def facts(self, names: Sequence[str]) -> TargetFacts:
        """What the target can do, and which of `names` it has."""
        there = set(self.call("list collections", self.pymilvus.list_collections))
        if self.kind == "lite":
            return replace(lite_facts(), version=self.version, existing={n: self.existing(n) for n in names if n in there})
        aliases = self.aliases(there, names)
        there |= {name for name, collection in aliases.items() if name == collection}  # made since the list was
        existing = {n: self.existing(n) for n in names if n in there}
        others = {alias: collection for alias, collection in aliases.items() if alias != collection}
        return server_facts(self.kind, self.version, existing, aliases=others)

    def aliases(self, there: Collection[str], names: Sequence[str]) -> dict[str, str]:
        """Alias -> collection, of those in `names` that are aliases and of those of collections in `names`; a collection that
        is not `there` names itself."""
        found = {}
        for name in names:
            if name not in there and _NAME.fullmatch(name) and self.has(name):  # a server finds a collection by its alias, too
                found[name] = str(self.describe(name).get("collection_name") or "")
            elif name in there:
                all_aliases = map(str, self.describe(name).get("aliases") or ())
                found.update((alias, name) for alias in all_aliases if not alias.startswith(CLAIM))
        return found

    def claims(self, collection: str) -> list[str]:
        """Aliases by which loads say that they are filling the collection."""

        def listed() -> Sequence[str]:
            found: Sequence[str] = self.pymilvus.list_aliases(collection)["aliases"]
            return found

        if self.connection.lite:  # it lets in one process
            return []
        try:
            aliases = self.call("list aliases", listed)  # of the coordinator itself: what describes it may lag behind
        except TargetError:
            aliases = self.describe(collection).get("aliases") or ()
        return sorted(a for a in aliases if a.startswith(CLAIM))

    def drop_alias(self, alias: str) -> None:
        self.call(f"drop the alias {alias!r}", partial(self.pymilvus.drop_alias, alias))

    def switch_alias(self, alias: str, collection: str) -> None:
        """Makes `alias` name the collection, whether it exists already or not."""

        def switch() -> None:
            if self.pymilvus.has_collection(alias):
                self.pymilvus.alter_alias(collection, alias)
            else:
                self.pymilvus.create_alias(collection, alias)

        self.call(f"switch the alias {alias!r}", switch)

    def capacity_used(self) -> int:
        """Partitions times shards, summed over all collections of the database."""
        used = 0
        for name in self.call("list collections", self.pymilvus.list_collections):
            shards = int(self.describe(name).get("num_shards") or 1)
            used += shards * len(self.call("list partitions", partial(self.pymilvus.list_partitions, name)))
        return used

    def has(self, collection: str) -> bool:
        return bool(self.call("look for the collection", lambda: self.pymilvus.has_collection(collection)))

    def describe(self, collection: str) -> dict[str, Any]:
        return dict(self.call("describe the collection", lambda: self.pymilvus.describe_collection(collection)))

    def identity(self, collection: str) -> str:
        """Differs when the collection was dropped and made again, where the target tells."""
        described = self.describe(collection)
        return f"{described.get('collection_id', '')}/{described.get('created_timestamp', '')}"

    def existing(self, collection: str) -> Existing:
        """The collection as a load that meets it has to know it."""
        described = self.describe(collection)
        partitions = tuple(self.call("list partitions", lambda: self.pymilvus.list_partitions(collection)))
        rows = self.stored(collection) or self.stored(collection, flush=True)
        found = existing_of(described, rows, partitions)
        metric = self.index_of(collection, found.vector_field).get("metric_type") if found.vector_field else None
        return replace(found, metric_type=metric)

    def index_of(self, collection: str, vector_field: str) -> dict[str, Any]:
        """The index of the vectors as the server describes it; empty if there is none."""

        def find() -> dict[str, Any]:
            for name in self.pymilvus.list_indexes(collection):
                described = self.pymilvus.describe_index(collection, name) or {}
                if described.get("field_name") == vector_field:
                    return dict(described)
            return {}

        return self.call("describe the index", find)

    # Collections ------------------------------------------------------------------------------------------------------

    def create(self, plan: CollectionPlan) -> None:
        """Creates the collection where it is missing, and its partitions where they are."""
        from pymilvus import DataType

        def create() -> None:
            if self.pymilvus.has_collection(plan.name):
                return
            schema = self.pymilvus.create_schema(auto_id=plan.auto_id, enable_dynamic_field=False, description=plan.description)
            schema.add_field(plan.id_field, DataType.INT64, is_primary=True, description=plan.mark)
            kind = DataType.FLOAT_VECTOR if plan.vector_type is VectorType.FLOAT else DataType.BINARY_VECTOR
            schema.add_field(plan.vector_field, kind, dim=plan.dimension)
            if plan.key_field:
                schema.add_field(plan.key_field, DataType.VARCHAR, max_length=1024, is_partition_key=True)
            self.pymilvus.create_collection(plan.name, schema=schema, num_shards=plan.shards)

        def create_partitions() -> None:
            there = set(self.pymilvus.list_partitions(plan.name))
            for partition in dict.fromkeys(p.target for p in plan.partitions):
                if partition not in there:
                    self.pymilvus.create_partition(plan.name, partition)

        self.call(f"create collection {plan.name!r}", create)
        if not plan.key_field:
            self.call(f"create partitions of {plan.name!r}", create_partitions)

    def drop(self, collection: str) -> None:
        self.call(f"drop collection {collection!r}", lambda: self.pymilvus.drop_collection(collection))

    def drop_partition(self, collection: str, partition: str) -> None:
        def drop() -> None:
            if self.pymilvus.has_partition(collection, partition):
                if self.kind == "lite":
                    self.pymilvus.release_collection(collection)
                else:
                    self.pymilvus.release_partitions(collection, [partition])
                self.pymilvus.drop_partition(collection, partition)

        self.call(f"drop partition {partition!r} of {collection!r}", drop)

    def flush(self, collection: str) -> None:
        self.call(f"flush {collection!r}", lambda: self.pymilvus.flush(collection, timeout=10 * CALL_SECONDS))

    def build_index(self, collection: str, vector_field: str, index: IndexSpec, metric: str) -> None:
        params = self.pymilvus.prepare_index_params()
        params.add_index(vector_field, index_type=index.type, metric_type=metric, params=dict(index.params))
        self.call(f"build the index of {collection!r}", lambda: self.pymilvus.create_index(collection, params))

    def loaded(self, collection: str) -> bool:
        from pymilvus.client.types import LoadState

        return bool(
            self.call("ask for the load state", lambda: self.pymilvus.get_load_state(collection))["state"] == LoadState.Loaded
        )

    def load(self, collection: str) -> None:
        self.call(f"load {collection!r}", lambda: self.pymilvus.load_collection(collection))

    def refresh(self, collection: str) -> None:
        """Loads what was imported since the collection was loaded."""
        self.call(f"load {collection!r}", lambda: self.pymilvus.refresh_load(collection))

    def release(self, collection: str) -> None:
        self.call(f"release {collection!r}", lambda: self.pymilvus.release_collection(collection))

    def stored(self, collection: str, partition: str | None = None, *, flush: bool = False) -> int:
        """Rows by the statistics: those flushed, deleted ones included (a server); exact with Lite."""
        if flush:
            self.flush(collection)

        def ask() -> Any:
            if partition is None:
                return self.pymilvus.get_collection_stats(collection)
            return self.pymilvus.get_partition_stats(collection, partition)

        return int(self.call("count rows", ask)["row_count"])

    def count(self, collection: str, partitions: Sequence[str], expression: str = "") -> int:
        """Rows of these partitions (of all when none is named) that a query sees now; the collection must be loaded."""
        if self.kind == "lite" and partitions and not expression:
            return sum(self.stored(collection, p) for p in partitions)  # its count(*) ignores partitions
        found = self.call(
            "count rows",
            lambda: self.pymilvus.query(
                collection,
                filter=expression,
                output_fields=["count(*)"],
                partition_names=list(partitions) or None,
                consistency_level="Strong",
            ),
        )
        return int(found[0]["count(*)"])

    # Rows -------------------------------------------------------------------------------------------------------------

    def insert(
        self,
        layout: wire.Layout,
        collection: str,
        partition: str,
        ids: npt.NDArray[np.int64],
        vectors: Array,
        keys: wire.Keys,
    ) -> npt.NDArray[np.int64]:
        """Sends one message and waits for the acknowledgement; returns the ids as the server gives them.

        Raises TooLarge, Busy, Unclear or TargetError.
        """
        import grpc
        from pymilvus.exceptions import MilvusException
        from pymilvus.grpc_gen import milvus_pb2

        partition = "" if layout.key_field else partition
        if self._channel is None:
            rows = wire.insert_rows(layout, ids, vectors, keys)
            try:
                answer = self.pymilvus.insert(
                    collection, rows, partition_name=partition, timeout=CALL_SECONDS, retry_times=0, retry_on_rate_limit=False
                )
            except MilvusException as e:
                raise refusal(self.connection, e.code, e.compatible_code, e.message, e.retriable) from e
            except grpc.RpcError as e:
                raise broken(self.connection, e) from e
            returned, count = np.array(answer["ids"], np.int64), answer["insert_count"]
        else:
            message = wire.insert_request(
                layout, collection, partition, ids, vectors, database=self.connection.database, keys=keys
            )
            try:
                result = self.wired(wire.INSERT, message, milvus_pb2.MutationResult)
            except grpc.RpcError as e:
                raise broken(self.connection, e) from e
            except ValueError as e:  # pymilvus is reconnecting
                raise Unclear(str(e)) from e
            status = result.status
            if status.code or status.error_code:
                raise refusal(self.connection, status.code, status.error_code, status.reason, status.retriable)
            returned, count = np.array(result.IDs.int_id.data, np.int64), result.insert_cnt
        if count != len(vectors):
            raise TargetError(f"{self.connection.name}: {collection}: {len(vectors)} rows sent, {count} acknowledged")
        return returned

    def wired(self, method: str, request: bytes, answer: Any) -> Any:
        """The answer (a generated class) of a call below pymilvus' names, in this connection's database; where it is `fast`."""
        assert self._channel is not None
        call = self._channel().unary_unary(method, request_serializer=None, response_deserializer=answer.FromString)
        metadata = [("dbname", self.connection.database)] if self.connection.database else []
        return call(request, timeout=CALL_SECONDS, metadata=metadata)

    def _among(self, ids: npt.NDArray[np.int64], id_field: str) -> str:
        """The expression for rows of these ids. A server's parser takes the sign for an operator: it knows no -2**63."""
        listed = str(ids.tolist())
        if self.kind != "lite":
            listed = listed.replace("-9223372036854775808", "-9223372036854775807 - 1")
        return f"{id_field} in {listed}"

    def delete(self, collection: str, partition: str | None, ids: npt.NDArray[np.int64], id_field: str) -> None:
        """Deletes by id. Rows inserted afterwards are not concerned, they are newer."""
        for start in range(0, len(ids), IDS_PER_CALL):
            some = self._among(ids[start : start + IDS_PER_CALL], id_field)
            within = {"partition_name": partition} if partition else {}  # an empty name is refused by newer clients
            delete = partial(self.pymilvus.delete, collection, filter=some, **within)
            self.call("delete rows of an interrupted message", delete)

    def rows(
        self,
        layout: wire.Layout,
        collection: str,
        partition: str | None,
        ids: npt.NDArray[np.int64],
        id_field: str,
        *,
        strong: bool = True,
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """Ids and vectors of those of `ids` that are there. The collection must be loaded.

        Without `strong` the server does not wait for what was sent last, and answers at once.
        """
        from pymilvus.exceptions import MilvusException
        from pymilvus.grpc_gen import milvus_pb2

        expression = self._among(ids, id_field)
        fields = [id_field, layout.vector_field]
        partitions = [partition] if partition else []
        if self._channel is not None:
            request = wire.query_request(
                collection, expression, fields, partitions, database=self.connection.database, strong=strong
            )

            def ask() -> Any:
                result = self.wired(wire.QUERY, request, milvus_pb2.QueryResults)
                if result.status.code or result.status.error_code:
                    raise MilvusException(result.status.code, result.status.reason)
                return result

            return wire.rows_of(self.call("read rows back", ask), layout, id_field)
        found = self.call(
            "read rows back",
            lambda: self.pymilvus.query(
                collection,
                expression,
                output_fields=fields,
                partition_names=partitions or None,
                consistency_level="Strong" if strong else "Eventually",
            ),
        )
        return wire.columns_of(found, layout, id_field)

    def ids_there(self, collection: str, partition: str, ids: npt.NDArray[np.int64], id_field: str) -> npt.NDArray[np.int64]:
        """Those of `ids` that a partition has, int64 [n]. The collection must be loaded."""
        found: list[int] = []
        for start in range(0, len(ids), IDS_PER_CALL):
            ask = partial(
                self.pymilvus.query,
                collection,
                filter=self._among(ids[start : start + IDS_PER_CALL], id_field),
                output_fields=[id_field],
                partition_names=[partition],
                consistency_level="Strong",
            )
            found += [row[id_field] for row in self.call("look for ids", ask)]
        return np.unique(np.array(found, np.int64))

    def values(self, collection: str, field: str, batch: int) -> Iterator[Any]:
        """The values of a scalar field in all rows. The collection must be loaded."""
        iterator = self.call(
            "read a field",
            lambda: self.pymilvus.query_iterator(
                collection, batch_size=batch, filter="", output_fields=[field], consistency_level="Strong"
            ),
        )
        try:
            while found := self.call("read a field", iterator.next):
                yield from (row[field] for row in found)
        finally:
            iterator.close()

    def pages(
        self, layout: wire.Layout, collection: str, partition: str | None, expression: str, id_field: str
    ) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
        """All rows of a partition, a thousand at a time. The collection must be loaded."""
        iterator = self.call(
            "read rows back",
            lambda: self.pymilvus.query_iterator(
                collection,
                batch_size=1000,
                filter=expression,
                output_fields=[id_field, layout.vector_field],
                partition_names=[partition] if partition else None,
                consistency_level="Strong",
            ),
        )
        try:
            while found := self.call("read rows back", iterator.next):
                yield wire.columns_of(found, layout, id_field)
        finally:
            iterator.close()


def _hush() -> None:
    """These libraries log what they raise, gRPC's C++ part straight to stderr, and pymilvus prints a warning of its own."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for name in ("pymilvus", "milvus_lite", "grpc", "pymilvus.client.iterator.query_iterator"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
