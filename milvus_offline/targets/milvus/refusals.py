"""What a target's refusals mean: whether rows may be stored, whether to wait, and what to do."""

from __future__ import annotations

import re
from typing import Any

from ...errors import TargetError
from .connection import Connection

MAX_REASON = 600


class TooLarge(Exception):
    """The server takes no message of this size."""


class Busy(Exception):
    """The server refused for now and stored nothing: rate limits, quotas, low memory."""


class Unclear(Exception):
    """The call failed in a way that does not tell whether the rows were stored."""


def error_of(connection: Connection, what: str, e: BaseException) -> TargetError:
    """What is raised for a call that failed: in the target's words, without the token, with a hint."""
    reason = reason_of(e)
    cause: BaseException | None = e
    for _ in range(5):  # a refused token is known only to a call below; pymilvus' chains may be loops
        cause = cause.__cause__ or cause.__context__ if cause else None
        if cause and "auth" in reason_of(cause).lower():
            reason = reason_of(cause)
            break
    if connection.token:
        reason = reason.replace(connection.token, "***")
    low = reason.lower()
    if what == "connect" and "unimplemented" in low:
        return TargetError(
            f"{connection.name}: a gRPC server answers there, but not as Milvus 2 or newer does: name Milvus' port (usually "
            f"19530); a server of Milvus 1.x is milvus1://{connection.base.partition('://')[2]}"
        )
    if len(reason) > MAX_REASON:
        reason = f"{reason[: MAX_REASON // 2]} ... {reason[-MAX_REASON // 2 :]}"
    hint = ""
    if connection.lite and "open local milvus failed" in low:
        hint = "another process holds it, it was made by another version of Milvus Lite, or its file system has no locks"
    elif "auth" in low or "permission" in low or "unauthenticated" in low:
        hint = "check the token (MILVUS_TOKEN, or MILVUS_USER and MILVUS_PASSWORD) and the user's rights"
    elif "fail connecting" in low or "unavailable" in low or "retry run out" in low:
        hint = "check the address, that the server runs, and whether it speaks http or https"
    elif "no space left" in low or "disk" in low:
        hint = "the target's disk is full: make room, then run the same command with --resume"
    return TargetError(f"{connection.name}: cannot {what}: {reason}" + (f" ({hint})" if hint else ""))


def broken(connection: Connection, e: Any) -> Exception:
    """What it means that the connection failed while rows were sent (`e`: grpc.RpcError)."""
    import grpc

    code, details = e.code(), e.details() or ""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge(details) if "larger than max" in details.lower() else Busy(details)
    if code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ):
        return Unclear(f"{code.name}: {details}")
    return error_of(connection, "insert", e)


def refusal(connection: Connection, code: Any, old_code: int, reason: str, retriable: bool) -> Exception:
    """What it means that the server refused rows that were sent."""
    low = reason.lower()
    if "no space left" in low or "disk quota" in low:
        return error_of(connection, "insert", TargetError(reason))
    if code == 1102 or "larger than max" in low or "message too large" in low or "maxinsertsize" in low:
        return TooLarge(reason)
    if code in (3, 8, 9) or old_code == 49 or "rate limit" in low or "quota" in low:
        return Busy(reason)
    if not isinstance(code, int) or retriable or code in (1, 2, 4, 5) or "not ready" in low or "unavailable" in low:
        return Unclear(reason)
    return error_of(connection, "insert", TargetError(reason))


_AWAY = re.compile(
    r"unavailable|not ready|fail connecting|retry run out|retry timeout|initializing|not healthy|closed channel|"
    r"connection refused|no available|node not match|(session|node|channel) not found|node offline",
    re.IGNORECASE,
)


def is_away(e: BaseException) -> bool:
    """Whether the server may only be starting, or out of reach for a moment."""
    return bool(_AWAY.search(reason_of(e)))


def is_wrong_call(e: BaseException | None) -> bool:
    """Whether pymilvus itself refuses a call: asking again changes nothing."""
    from pymilvus.exceptions import ParamError

    return isinstance(e, ParamError)


def reason_of(e: BaseException) -> str:
    """An exception's own words, whether pymilvus, gRPC or Python raised it."""
    details = getattr(e, "details", None)
    return str(getattr(e, "message", "") or (details() if callable(details) else "") or e)
