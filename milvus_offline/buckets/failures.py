"""What goes wrong between a program and an object store: what may pass, and each failure in one sentence."""

from __future__ import annotations

import errno

_AZURE = "as AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
CREDENTIALS = {
    "s3": "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws/credentials, or by the machine's role",
    **dict.fromkeys(("gs", "gcs"), "as GOOGLE_APPLICATION_CREDENTIALS, by gcloud auth, or by the machine's role"),
    **dict.fromkeys(("az", "abfs", "abfss"), _AZURE),
}
"""How they are given, by scheme."""

_PASSING = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.EAGAIN}
_PASSING |= {getattr(errno, "EREMOTEIO", errno.EIO)}


def may_pass(e: Exception) -> bool:
    """Whether the same request may be answered when it is tried again."""
    names = {c.__name__ for c in type(e).__mro__}
    if names & {"NoCredentialsError", "EndpointConnectionError", "ConnectTimeoutError", "FileNotFoundError", "PermissionError"}:
        return False
    if names & {"TimeoutError", "ConnectionError", "HTTPClientError", "ClientPayloadError", "FSTimeoutError", "HttpError"}:
        return True
    if names & {"IncompleteReadError", "IncompleteRead", "ResponseParserError"}:
        return True
    return isinstance(e, OSError) and e.errno in _PASSING


MISSING: tuple[type[Exception], ...] = (FileNotFoundError, NotADirectoryError)
"""What a request for what is not there raises."""
AGAIN = ": run this again when nothing writes there"


def _code(e: Exception) -> str:
    """What S3 calls an error; '' where it was none of a server."""
    response = getattr(e.__cause__ or e, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


_UNREACHABLE = {
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ConnectionError",
    "ClientConnectorError",
    "ServiceRequestError",
}


def explain(e: Exception, url: str) -> str:
    """One sentence that says what is wrong and what helps."""
    names = {c.__name__ for c in type(e).__mro__}
    scheme = url.partition("://")[0]
    bucket = url.partition("://")[2].partition("/")[0]
    text = " ".join(str(e).split()) or type(e).__name__
    told = isinstance(e, (PermissionError, FileNotFoundError))  # by a server; its text may hold a name
    if any("Credential" in n for n in names) or ("credential" in text.lower() and not told):
        return f"{url}: no credentials were found: give them {CREDENTIALS.get(scheme, 'to the SDK')}"
    if _code(e) == "InvalidObjectState":
        return f"{url}: this object lies in an archive class of the object store (Glacier): restore it there first ({text})"
    if _code(e) in ("InvalidRange", "416"):
        return f"{url}: this object has become shorter after it was listed{AGAIN}"
    if isinstance(e, PermissionError):
        return f"{url}: no permission: the credentials are wrong, or do not allow this in the bucket {bucket!r} ({text})"
    if isinstance(e, FileNotFoundError):
        return f"{url}: there is no such object, or no bucket {bucket!r} (none is ever created): check the spelling"
    if names & _UNREACHABLE:
        where = " (AWS_ENDPOINT_URL names another address than Amazon's)" if scheme == "s3" else ""
        return f"{url}: cannot reach the object store{where}: {text}"
    if names & {"TimeoutError", "FSTimeoutError"}:
        return f"{url}: the object store takes requests and does not answer: {text}"
    return f"{url}: unexpected answer of the object store: {text}"
