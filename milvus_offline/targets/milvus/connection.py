"""Where a target is, how to get in, and what can be said of it before anything is opened."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from ...errors import MissingPackageError, TargetError, UsageError, pip_install
from .terms import TargetFacts


@dataclass(frozen=True)
class Connection:
    """Where the target is and how to get in. `token` is `user:password` or an API key; it is never printed.

    The path of the address is the database: `http://host:port/proj1`.
    """

    uri: str
    database: str = ""
    token: str = field(default="", repr=False)
    server_pem: str = ""
    server_name: str = ""
    ca_pem: str = ""
    client_pem: str = ""
    client_key: str = ""

    def __post_init__(self) -> None:
        if not self.lite:
            parts = urlsplit(self.uri)
            try:
                _ = parts.port
            except ValueError as e:
                host = parts.netloc.rpartition("@")[2]
                raise UsageError(f"{parts.scheme}://{host}: expected a port from 1 to 65535 after the host") from e
            if parts.scheme not in ("http", "https", "tcp") or not parts.hostname:
                raise UsageError(f"{self.name}: the name of the server is missing: http://HOST:19530")
            if parts.username or parts.password:
                raise UsageError(
                    "the target's address holds a user or a password, which other users of this machine can see: "
                    "use the environment (MILVUS_TOKEN), --token-file or --ask-token"
                )
            path = unquote(parts.path.strip("/"))
            if path and self.database and path != self.database:
                raise UsageError(f"the address names the database {path!r}, --database {self.database!r}: name one")
            if "/" in path:
                raise UsageError(f"{self.name}: the address has the path {path!r}, expected a database's name or nothing")
            if path:
                object.__setattr__(self, "database", path)
                object.__setattr__(self, "uri", urlunsplit((parts.scheme, parts.netloc, "", "", "")))

    @property
    def lite(self) -> bool:
        return "://" not in self.uri and self.uri.endswith(".db")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted: asked for by the address or by a file that only makes sense with it."""
        return not self.lite and (
            urlsplit(self.uri).scheme == "https" or bool(self.server_pem or self.server_name or self.ca_pem or self.client_pem)
        )

    @property
    def name(self) -> str:
        """The address without what may be secret."""
        if "://" not in self.uri:
            return self.uri
        return self._address + (f"/{self.database}" if self.database else "")

    @property
    def python(self) -> str:
        """The call that connects with pymilvus; a token is named, not shown."""
        token = ", token=TOKEN" if self.token else ""
        return f"MilvusClient({self.uri!r}{token}{f', db_name={self.database!r}' if self.database else ''})"

    @property
    def _address(self) -> str:
        parts = urlsplit(self.uri)
        return f"{parts.scheme}://{self._host}{f':{parts.port}' if parts.port else ''}"

    @property
    def _host(self) -> str:
        host = urlsplit(self.uri).hostname or ""
        return f"[{host}]" if ":" in host else host

    @property
    def base(self) -> str:
        """Scheme, host and port: what paths of the server's REST service follow."""
        parts = urlsplit(self.uri)
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self._host}:{parts.port or (443 if scheme == 'https' else 19530)}"

    @property
    def where(self) -> str:
        """Names the target in the ledger, next to the database: the same for the same target."""
        return str(Path(self.uri).absolute()) if self.lite else self._address


def lite_to_be(connection: Connection) -> bool:
    """Whether the target is a Milvus Lite folder that does not exist yet. Raises TargetError when it cannot be made."""
    if not connection.lite or Path(connection.uri).exists():
        return False
    check_lite_path(Path(connection.uri))
    return True


def lite_facts(names: Sequence[str] = ()) -> TargetFacts:
    """What Milvus Lite 3 can do, for a new folder."""
    return TargetFacts(
        kind="lite",
        version="",
        binary=False,
        collapses=True,
        strict_names=False,
        hyphens=True,
        min_dimension=1,
        max_dimension=32768,
        max_partitions=1 << 20,
        auto_index_only=False,
    )


LITE_SINCE = (3, 0)


def lite_version() -> tuple[int, ...]:
    """The installed milvus-lite, as (3, 2); empty where nothing tells."""
    try:
        found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("milvus-lite"))
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(map(int, found.groups())) if found else ()


def check_lite_path(path: Path) -> None:
    if path.is_file():
        raise TargetError(f"{path}: is a file, and Milvus Lite 3 keeps a folder (older ones kept files): choose another name")
    if importlib.util.find_spec("milvus_lite") is None:
        raise MissingPackageError(f"{path}: Milvus Lite", "milvus-lite", "lite", exit_code=1)
    if (version := lite_version()) and version < LITE_SINCE:
        installed = ".".join(map(str, version))
        raise TargetError(
            f"{path}: milvus-lite {installed} is installed, which keeps rows in another way and lacks calls that a load needs: "
            f"{pip_install('lite')} installs 3 or newer"
        )
    if not path.absolute().parent.is_dir():
        raise TargetError(f"{path.parent}: no such folder: create it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise TargetError(f"{path}: no permission to write there: choose another place or fix the permissions")


def tls_options(c: Connection) -> dict[str, Any]:
    """Keyword arguments of MilvusClient. pymilvus ignores a lone `ca_pem_path`; here it is what checks the server."""
    if not c.tls:
        return {}
    both = bool(c.client_pem and c.client_key and c.ca_pem)
    files = {
        "server_pem_path": c.server_pem or ("" if both else c.ca_pem),
        "server_name": c.server_name,
        "ca_pem_path": c.ca_pem if both else "",
        "client_pem_path": c.client_pem,
        "client_key_path": c.client_key,
    }
    return {**{k: v for k, v in files.items() if v}, "secure": True}
