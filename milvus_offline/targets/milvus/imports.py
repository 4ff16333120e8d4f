"""The server's import service, in the dialects of its versions.

| server | asked by | its list of jobs names their files | after a kill, a job is found by |
|---|---|---|---|
| 2.2, 2.3 | gRPC | yes | its id in the ledger, or its files |
| 2.4 and newer, REST answers | REST `/v2/vectordb/jobs/import/` | yes, job by job | its id in the ledger, or its files |
| 2.4 and newer, gRPC alone | gRPC | no (id 0, no files) | its id in the ledger, or the partition's row count |

The ledger says that a job is asked for before it is, and its id once that is known; one is asked for at a time. So at most
one job of an interrupted load is not known by its id.
"""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...errors import TargetError
from .client import Client
from .connection import Connection

CALL_SECONDS = 60
JOBS_LISTED = 1000
_IDEMPOTENT_SINCE = ((2, 6, 24), (3, 0, 2))
"""REST servers from these on start a job once for each `Idempotency-Key`."""

Phase = Literal["running", "completed", "failed"]


@dataclass(frozen=True)
class JobState:
    """What a server says of a job. `rows` are those imported so far; `mark` changes when there is progress."""

    phase: Phase
    rows: int
    mark: str
    reason: str = ""


class ImportService(Protocol):
    """Starts import jobs and follows them; a job's id is text."""

    names_files: bool
    """Whether `find` can tell that there is no job."""
    takes_sets: bool
    """Whether a job takes several file sets."""

    def start(self, collection: str, partition: str, sets: Sequence[Sequence[str]], key: str) -> str:
        """Asks the server to import file sets (each a file a column, or a Parquet file); the job. `key` is the same when the
        same job is asked for again."""

    def state(self, job: str) -> JobState | None:
        """None: the server does not know the job (any more)."""

    def find(self, collection: str, files: Sequence[str]) -> str | None:
        """The job that imports, or has imported, these files; None if there is none, it failed, or the server does not tell."""

    def running(self, collection: str) -> bool:
        """Whether any job of the collection is under way."""


def import_service(client: Client) -> ImportService:
    """The dialect that the server behind `client` answers in."""
    if version_of(client.version) >= (2, 4) and not client.connection.lite:
        rest = RestImports(client.connection, version_of(client.version))
        if rest.answers():
            return rest
    return GrpcImports(client)


def version_of(text: str) -> tuple[int, ...]:
    """`v2.6.1-dev` as (2, 6, 1); (2, 3) where nothing is said."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(n) for n in found.groups() if n) if found else (2, 3)


# gRPC -----------------------------------------------------------------------------------------------------------------


class GrpcImports:
    """Import, GetImportState and ListImportTasks of the gRPC service."""

    takes_sets = False

    def __init__(self, client: Client) -> None:
        self._client = client
        self.names_files = version_of(client.version) < (2, 4)
        self._calls = _grpc_calls(client)

    def start(self, collection: str, partition: str, sets: Sequence[Sequence[str]], key: str) -> str:
        (files,) = sets

        def ask() -> Any:
            return self._calls.start(collection, partition, list(files))

        return str(int(self._client.once("start an import", ask)))

    def state(self, job: str) -> JobState | None:
        try:
            found = self._client.call("follow an import", lambda: self._calls.state(int(job)))
        except TargetError as e:
            if re.search(r"not found|cannot find|can't find|does ?n[o']t exist", str(e)):
                return None
            raise
        return _state(found)

    def find(self, collection: str, files: Sequence[str]) -> str | None:
        for job in self._list(collection):
            listed = str(job.infos.get("files", ""))
            if all(f in listed for f in files) and _state(job).phase != "failed":
                return str(int(job.task_id))
        return None

    def running(self, collection: str) -> bool:
        return any(_state(job).phase == "running" for job in self._list(collection))

    def _list(self, collection: str) -> Sequence[Any]:
        found: Sequence[Any] = self._client.call("list imports", lambda: self._calls.list(collection))
        return found


def _state(job: Any) -> JobState:
    name = str(job.state_name).lower()
    phase: Phase = "failed" if "fail" in name else "completed" if name.endswith("completed") else "running"
    rows, progress = _number(job, "row_count"), _number(job, "progress")
    return JobState(phase, rows, f"{name} {progress} {rows}", str(job.failed_reason))


def _number(job: Any, name: str) -> int:
    """A number of a job; 0 where the server leaves it out, as those from 2.4 on do in lists."""
    try:
        return int(getattr(job, name))
    except ValueError:
        return 0


@dataclass(frozen=True)
class _Calls:
    start: Callable[[str, str, list[str]], Any]
    state: Callable[[int], Any]
    list: Callable[[str], Any]


def _grpc_calls(client: Client) -> _Calls:
    """MilvusClient has no public import calls, and those of its connection forget the database: calls of our own, else those
    of pymilvus' older interface. Raises TargetError where that cannot name the database."""
    if client.fast:
        return _own_calls(client)
    c = client.connection
    if c.database:
        raise TargetError(
            f"{c.name}: this pymilvus imports into the default database alone: leave out --import-to, or use another version"
        )
    from pymilvus import connections, utility

    alias = f"milvus-offline-{id(client)}"
    connections.connect(alias, uri=c.uri, token=c.token, **client.tls)
    return _Calls(
        lambda c, p, files: utility.do_bulk_insert(c, files, p or None, CALL_SECONDS, alias),
        lambda job: utility.get_bulk_insert_state(job, CALL_SECONDS, alias),
        lambda c: utility.list_bulk_insert_tasks(JOBS_LISTED, c, CALL_SECONDS, alias),
    )


def _own_calls(client: Client) -> _Calls:
    from pymilvus import BulkInsertState
    from pymilvus.exceptions import MilvusException
    from pymilvus.grpc_gen import milvus_pb2 as pb

    def ask(method: str, request: Any, answer: Any) -> Any:
        found = client.wired(f"/milvus.proto.milvus.MilvusService/{method}", request.SerializeToString(), answer)
        if found.status.code or found.status.error_code:
            raise MilvusException(found.status.code, found.status.reason, found.status.error_code)
        return found

    def start(collection: str, partition: str, files: list[str]) -> int:
        request = pb.ImportRequest(
            db_name=client.connection.database, collection_name=collection, partition_name=partition, files=files
        )
        tasks = ask("Import", request, pb.ImportResponse).tasks
        if not tasks:
            raise MilvusException(1, "the server names no import job")
        return int(tasks[0])

    def state(job: int) -> Any:
        found = ask("GetImportState", pb.GetImportStateRequest(task=job), pb.GetImportStateResponse)
        return BulkInsertState(job, found.state, found.row_count, found.id_list, found.infos, found.create_ts)

    def listed(collection: str) -> Sequence[Any]:
        request = pb.ListImportTasksRequest(db_name=client.connection.database, collection_name=collection, limit=JOBS_LISTED)
        tasks = ask("ListImportTasks", request, pb.ListImportTasksResponse).tasks
        return [BulkInsertState(t.id, t.state, t.row_count, t.id_list, t.infos, t.create_ts) for t in tasks]

    return _Calls(start, state, listed)


# REST -----------------------------------------------------------------------------------------------------------------


class RestImports:
    """`/v2/vectordb/jobs/import/` of servers from 2.4 on, at the same address as the gRPC service."""

    names_files = True
    takes_sets = True

    def __init__(self, connection: Connection, version: tuple[int, ...]) -> None:
        self._connection, self._version = connection, version
        self._ssl = _context(connection) if connection.tls else None

    def answers(self) -> bool:
        """Whether the server has this service: some are set up without it."""
        try:
            self._ask("list", {})
        except TargetError:
            return False
        return True

    def start(self, collection: str, partition: str, sets: Sequence[Sequence[str]], key: str) -> str:
        body: dict[str, Any] = {"collectionName": collection, "files": [list(files) for files in sets]}
        if partition:
            body["partitionName"] = partition
        keyed = any(self._version[:2] == since[:2] and self._version >= since for since in _IDEMPOTENT_SINCE)
        return str(self._ask("create", body, {"Idempotency-Key": key} if keyed else {})["jobId"])

    def state(self, job: str) -> JobState | None:
        try:
            found = self._ask("describe", {"jobId": job})
        except TargetError as e:
            if re.search(r"not found|does ?n[o']t exist", str(e)):
                return None
            raise
        name = str(found.get("state", "")).lower()
        phase: Phase = "failed" if "fail" in name else "completed" if name == "completed" else "running"
        rows = int(found.get("importedRows") or 0)
        return JobState(phase, rows, f"{name} {found.get('progress')} {rows}", str(found.get("reason") or ""))

    def find(self, collection: str, files: Sequence[str]) -> str | None:
        for job in self._list(collection):
            if "fail" in str(job.get("state", "")).lower():
                continue
            described = self._ask("describe", {"jobId": str(job["jobId"])})
            listed = " ".join(str(d.get("fileName", "")) for d in described.get("details") or [])
            if all(f in listed for f in files):
                return str(job["jobId"])
        return None

    def running(self, collection: str) -> bool:
        over = ("completed", "failed")
        return any(str(job.get("state", "")).lower() not in over for job in self._list(collection))

    def _list(self, collection: str) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = self._ask("list", {"collectionName": collection}).get("records") or []
        return records

    def _ask(self, what: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        c = self._connection
        if c.database:
            body = {**body, "dbName": c.database}
        sent = {"Content-Type": "application/json", **(headers or {})}
        if c.token:
            sent["Authorization"] = f"Bearer {c.token}"
        url = f"{c.base}/v2/vectordb/jobs/import/{what}"
        request = urllib.request.Request(url, json.dumps(body).encode(), sent, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=CALL_SECONDS, context=self._ssl) as answer:
                found = json.loads(answer.read(16 << 20))
        except (OSError, ValueError) as e:
            reason = f"HTTP {e.code}" if isinstance(e, urllib.error.HTTPError) else str(getattr(e, "reason", e))
            raise TargetError(f"{c.name}: no answer from its REST service (import/{what}): {reason}") from e
        if not isinstance(found, dict) or found.get("code") not in (0, 200):
            reason = str(found.get("message", found) if isinstance(found, dict) else found)
            raise TargetError(f"{c.name}: import/{what} was refused: {reason[:600]}")
        return dict(found.get("data") or {})


def _context(connection: Connection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=connection.server_pem or connection.ca_pem or None)
    if connection.client_pem:
        context.load_cert_chain(connection.client_pem, connection.client_key or None)
    if connection.server_name:
        context.check_hostname = False  # the probe has compared the name that was given
    return context
