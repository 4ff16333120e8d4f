"""Newer Milvus servers, as far as a load sees them: a proxy before the real 2.3.5 that changes single answers.

No server newer than 2.3.5 can be installed from a package index. Rows, schema, searches and imports stay real; what newer
servers say differently is changed on the way, each with the file of Milvus' source that it follows:

| answer | since | follows |
|---|---|---|
| `GetVersion`, `Connect`: the version | any | internal/proxy/impl.go |
| `ListImportTasks` names no files, and the id 0 | 2.4 | internal/proxy/impl.go, convertToV1ListImportResponse |
| REST `/v2/vectordb/jobs/import/` | 2.4 | internal/distributed/proxy/httpserver/handler_v2.go |
| `Insert` over `maxInsertSize`: code 1102 | 2.4 | internal/proxy/task_insert.go |
| `Flush` of a collection at most each 10 s | 2.4 | configs/milvus.yaml, quotaAndLimits.flushRate |
| `DropCollection` with an alias is refused | 2.4 | internal/rootcoord/drop_collection_task.go |
| a description of at most 1024 bytes | 2.6.19 | internal/proxy/util.go |
| `Idempotency-Key` | 2.6.24, 3.0.2 | internal/distributed/proxy/httpserver/handler_v2.go |

gRPC and REST come to one port, as they do there: the first bytes of a connection tell which it is.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any
from urllib.parse import urlsplit

import grpc
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

_LONG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_PASSED_OVER = (":", "grpc-", "user-agent", "content-type", "te")


def refusal(code: int, reason: str, *, retriable: bool = False) -> Any:
    """A Status as newer servers give it: `code`, and 1 (UnexpectedError) for clients that look at the old field."""
    return common_pb2.Status(code=code, error_code=1, reason=reason, retriable=retriable)


class MilvusProxy:
    """A server of `version` at `uri`. Attributes switch answers on and off while it runs."""

    def __init__(self, upstream: str, version: str) -> None:
        self.version = version
        self.rest = True
        """Whether the REST service answers; it can be switched off in newer servers."""
        self.max_insert = 0
        """Bytes of an Insert that are taken; 0: no limit."""
        self.deny = ""
        """Why inserts are refused (code 9, force deny)."""
        self.no_memory = False
        """Whether LoadCollection is refused (code 3)."""
        self.flush_seconds = 10.0
        """How long a collection is not flushed again (quotaAndLimits.flushRate 0.1)."""
        self.before: dict[str, Callable[[], None]] = {}
        """Method -> what is done before its answer goes back; an exception in it cuts the connection."""
        self.calls: list[str] = []
        self._flushed: dict[str, float] = {}
        self._aliases: set[str] = set()
        self._channel = grpc.insecure_channel(urlsplit(upstream).netloc, options=_LONG)
        self._jobs: dict[str, dict[str, Any]] = {}
        self._keys: dict[str, str] = {}
        self._numbers = itertools.count(450_000_000_000_000_001)
        self._grpc = grpc.server(futures.ThreadPoolExecutor(32), handlers=[_Handler(self)], options=_LONG)
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _rest_handler(self))
        self._front = _Front(("127.0.0.1", 0), self._grpc_port, self._http.server_port)
        for server in (self._http, self._front):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        self.uri = f"http://127.0.0.1:{self._front.server_address[1]}"

    def close(self) -> None:
        self._front.shutdown()
        self._front.server_close()
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(None)
        self._channel.close()

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.version.lstrip("v").split(".")[:3])

    def pass_on(self, method: str, request: bytes, metadata: Any = ()) -> bytes:
        """The real server's answer."""
        answer: bytes = self._channel.unary_unary(method)(request, metadata=metadata, timeout=600)
        return answer

    def ask(self, name: str, request: Any, answer: Any) -> Any:
        found = answer()
        found.ParseFromString(self.pass_on(f"/milvus.proto.milvus.MilvusService/{name}", request.SerializeToString()))
        return found

    # gRPC -------------------------------------------------------------------------------------------------------------

    def refused(self, name: str, request: bytes) -> bytes | None:
        """What newer servers refuse; None: the call goes on."""
        check = getattr(self, f"_refuse_{name}", None)
        found = check(request) if check else None
        return None if found is None else found.SerializeToString()

    def changed(self, name: str, answer: bytes) -> bytes:
        change = getattr(self, f"_change_{name}", None)
        return change(answer).SerializeToString() if change else answer

    def _refuse_Insert(self, request: bytes) -> Any:
        status = None
        if self.deny:
            status = refusal(9, f"quota exceeded[reason={self.deny}]")
        elif self.max_insert and len(request) > self.max_insert:
            status = refusal(1102, "parameter too large[message=insert request size exceeds maxInsertSize]")
        return status and milvus_pb2.MutationResult(status=status)

    def _refuse_Flush(self, request: bytes) -> Any:
        if self.numbers < (2, 4):
            return None
        now = time.monotonic()
        for name in milvus_pb2.FlushRequest.FromString(request).collection_names:
            if now - self._flushed.get(name, -1e9) < self.flush_seconds:
                reason = "request is rejected by grpc RateLimiter middleware, please retry later: rate limit exceeded[rate=0.1]"
                return milvus_pb2.FlushResponse(status=refusal(8, reason, retriable=True))
            self._flushed[name] = now
        return None

    def _refuse_CreateCollection(self, request: bytes) -> Any:
        schema = schema_pb2.CollectionSchema.FromString(milvus_pb2.CreateCollectionRequest.FromString(request).schema)
        if self.numbers >= (2, 6, 19) and len(schema.description.encode()) > 1024:
            return refusal(1100, "the length of a collection description must not exceed 1024 bytes: invalid parameter")
        return None

    def _refuse_CreateAlias(self, request: bytes) -> Any:
        self._aliases.add(milvus_pb2.CreateAliasRequest.FromString(request).collection_name)

    def _refuse_DropAlias(self, request: bytes) -> Any:
        self._aliases.clear()

    def _refuse_DropCollection(self, request: bytes) -> Any:
        name = milvus_pb2.DropCollectionRequest.FromString(request).collection_name
        if self.numbers >= (2, 4) and name in self._aliases:
            return refusal(
                65535, f"unable to drop the collection [{name}] because it has associated aliases, please remove them first"
            )
        return None

    def _refuse_LoadCollection(self, request: bytes) -> Any:
        return (
            refusal(3, "load segment failed, OOM if load: memory limit exceeded[predict=9000][limit=8000]")
            if self.no_memory
            else None
        )

    def _change_GetVersion(self, answer: bytes) -> Any:
        return milvus_pb2.GetVersionResponse(status=common_pb2.Status(), version=self.version)

    def _change_Connect(self, answer: bytes) -> Any:
        found = milvus_pb2.ConnectResponse.FromString(answer)
        found.server_info.build_tags = self.version
        return found

    def _change_ListImportTasks(self, answer: bytes) -> Any:
        found = milvus_pb2.ListImportTasksResponse.FromString(answer)
        if self.numbers < (2, 4):
            return found
        changed = milvus_pb2.ListImportTasksResponse(status=found.status)
        for task in found.tasks:
            new = changed.tasks.add(status=task.status, state=task.state)
            for key in ("failed_reason", "progress_percent"):
                new.infos.add(key=key, value=next((i.value for i in task.infos if i.key == key), ""))
        return changed

    # REST -------------------------------------------------------------------------------------------------------------

    def rest_import(self, what: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        """The answer of `/v2/vectordb/jobs/import/WHAT`."""
        if what == "create":
            if key and key in self._keys and self.numbers >= (2, 6, 24):
                return {"code": 0, "data": {"jobId": self._keys[key]}}
            tasks = []
            for files in body["files"]:
                request = milvus_pb2.ImportRequest(
                    db_name=body.get("dbName", ""),
                    collection_name=body["collectionName"],
                    partition_name=body.get("partitionName", ""),
                    files=files,
                )
                answer = self.ask("Import", request, milvus_pb2.ImportResponse)
                if answer.status.error_code:
                    return {"code": 2100, "message": answer.status.reason}
                tasks += answer.tasks
            job = str(next(self._numbers))
            self._jobs[job] = {"collection": body["collectionName"], "files": body["files"], "tasks": tasks}
            if key:
                self._keys[key] = job
            return {"code": 0, "data": {"jobId": job}}
        if what == "describe":
            if body["jobId"] not in self._jobs:
                return {"code": 2100, "message": f"import job not exist, jobID={body['jobId']}"}
            return {"code": 0, "data": self._described(body["jobId"])}
        wanted = body.get("collectionName")
        records = [self._described(j) for j, kept in self._jobs.items() if wanted in (None, kept["collection"])]
        return {"code": 0, "data": {"records": [{k: r[k] for k in ("jobId", "state", "progress")} for r in records]}}

    def _described(self, job: str) -> dict[str, Any]:
        kept = self._jobs[job]
        states = [
            self.ask("GetImportState", milvus_pb2.GetImportStateRequest(task=t), milvus_pb2.GetImportStateResponse)
            for t in kept["tasks"]
        ]
        names = [common_pb2.ImportState.Name(s.state) for s in states]
        failed = next((s for s, n in zip(states, names, strict=True) if "Failed" in n), None)
        over = all(n == "ImportCompleted" for n in names)
        rows = sum(s.row_count for s in states)
        return {
            "jobId": job,
            "collectionName": kept["collection"],
            "state": "Failed" if failed else "Completed" if over else "Importing",
            "progress": 100 if over else 50,
            "importedRows": rows,
            "totalRows": rows,
            "reason": next((i.value for i in failed.infos if i.key == "failed_reason"), "") if failed else "",
            "details": [{"fileName": f"id:{n} paths:{json.dumps(files)}"} for n, files in enumerate(kept["files"])],
        }


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, proxy: MilvusProxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        method = details.method
        name = method.rsplit("/", 1)[1]

        def call(request: bytes, context: Any) -> bytes:
            proxy = self._proxy
            proxy.calls.append(name)
            if (refused := proxy.refused(name, request)) is not None:
                return refused
            metadata = [(k, v) for k, v in context.invocation_metadata() if not k.startswith(_PASSED_OVER)]
            try:
                answer = proxy.pass_on(method, request, metadata)
            except grpc.RpcError as e:
                context.abort(e.code(), e.details())
            if name in proxy.before:
                proxy.before[name]()
            return proxy.changed(name, answer)

        return grpc.unary_unary_rpc_method_handler(call)


def _rest_handler(proxy: MilvusProxy) -> type[http.server.BaseHTTPRequestHandler]:
    class Rest(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            start = "/v2/vectordb/jobs/import/"
            if not proxy.rest or proxy.numbers < (2, 4) or not self.path.startswith(start):
                self.send_error(404)
                return
            what = self.path.removeprefix(start)
            proxy.calls.append(f"rest:{what}")
            answer = json.dumps(proxy.rest_import(what, body, self.headers.get("Idempotency-Key"))).encode()
            if f"rest:{what}" in proxy.before:
                proxy.before[f"rest:{what}"]()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    return Rest


class _Front(socketserver.ThreadingTCPServer):
    """One port for both: HTTP/2 goes to gRPC, all else to REST."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], grpc_port: int, http_port: int) -> None:
        def relay(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 18):
                    target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        class Relay(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                first = self.request.recv(4, socket.MSG_PEEK)
                with socket.create_connection(("127.0.0.1", grpc_port if first == b"PRI " else http_port)) as other:
                    back = threading.Thread(target=relay, args=(other, self.request), daemon=True)
                    back.start()
                    relay(self.request, other)
                    back.join()

        super().__init__(address, Relay)


@contextlib.contextmanager
def milvus_proxy(upstream: str, version: str) -> Iterator[MilvusProxy]:
    proxy = MilvusProxy(upstream, version)
    try:
        yield proxy
    finally:
        proxy.close()
