"""What can be said of a load into Milvus Lite and into a server, by the names of the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from ...errors import UsageError
from ...named import read_text
from .. import words

if TYPE_CHECKING:
    from .bucket import Bucket
    from .connection import Connection
    from .terms import LoadOptions


@dataclass(frozen=True, kw_only=True)
class LiteOptions(words.LoadChoices):
    """Options of a load into Milvus Lite, a folder on this machine.

    `field_names`: those of the ids and of the vectors. `load`: whether collections are loaded into memory afterwards.
    `message_mib`: size of a message. `per_partition`: MilvusDM's meaning of `mode`, by which what exists is a partition.
    `public_insert`: send through `MilvusClient.insert`, the way out if pymilvus changes below.
    """

    field_names: tuple[str, str] = ("id", "vector")
    load: bool = True
    verify: words.Verify = "sample"
    message_mib: float | None = None
    inflight: int = 4
    patience: float = 300.0
    per_partition: bool = False
    public_insert: bool = False

    @property
    def shards_wanted(self) -> int:
        return 1

    @property
    def alias_wanted(self) -> str | None:
        return None

    @property
    def part_wanted(self) -> tuple[int, int] | None:
        return None

    @property
    def staging(self) -> Literal["stage", "commit"] | None:
        """Which half of a bulk import is wanted; None: both."""
        return None

    def connection(self, address: str) -> Connection:
        """Raises UsageError for an address that cannot be."""
        from .connection import Connection

        return Connection(address)

    def bucket(self) -> Bucket | None:
        """Where files for a bulk import go; None: rows are inserted."""
        return None

    def decisions(self) -> LoadOptions:
        """The part that decides what a collection becomes."""
        from .terms import LoadOptions

        id_field, vector_field = self.field_names
        chosen = {f.name: getattr(self, f.name) for f in fields(words.LoadChoices)}
        return LoadOptions(
            **{**chosen, "metric": self.metric.upper() if self.metric else None},
            id_field=id_field,
            vector_field=vector_field,
            shards=self.shards_wanted,
            per_partition=self.per_partition,
            part=self.part_wanted,
        )


@dataclass(frozen=True, kw_only=True)
class ServerOptions(LiteOptions):
    """Options of a load into a Milvus server or Zilliz Cloud.

    `token` is `user:password` or an API key; without it it comes from `token_file` or the environment (MILVUS_TOKEN, or
    MILVUS_USER and MILVUS_PASSWORD). `import_to`, `import_path`, `import_format`: see bucket.Bucket; `import_stage`,
    `import_commit`: see staging. `switch_alias`: an alias
    that names the collection when its rows are verified. `part`: (i, n), the i-th of n parts of the tasks, for n machines.
    """

    shards: int = 1
    database: str = ""
    token: str = field(default="", repr=False)
    token_file: str | None = None
    server_pem: str = ""
    server_name: str = ""
    ca_pem: str = ""
    client_pem: str = ""
    client_key: str = ""
    import_to: str | None = None
    import_path: str | None = None
    import_format: Literal["npy", "parquet"] = "npy"
    import_stage: bool = False
    import_commit: bool = False
    switch_alias: str | None = None
    part: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.part and (self.mode != "error" or self.switch_alias):
            raise UsageError("--part fills a new collection together with the others: leave --mode and --switch-alias out")
        if self.token and self.token_file:
            raise UsageError("--token-file and --ask-token contradict each other: leave one of them out")
        if self.switch_alias and self.verify == "none":
            raise UsageError("--switch-alias needs verified rows: leave --verify none out")
        if self.import_path and not self.import_to:
            raise UsageError("--import-path only goes with --import-to")
        for flag, chosen in (("--import-stage", self.import_stage), ("--import-commit", self.import_commit)):
            if chosen and not self.import_to:
                raise UsageError(f"{flag} only goes with --import-to")
        if self.import_stage and self.import_commit:
            raise UsageError("--import-stage and --import-commit are two steps: leave both out to do them in one")
        if self.import_commit and self.part:
            raise UsageError("--import-commit imports what all parts have staged: leave --part out")
        if self.import_stage and (self.mode != "error" or self.switch_alias):
            raise UsageError("--import-stage writes files for a new collection: leave --mode and --switch-alias out")
        if self.import_to and self.partitions == "key":
            raise UsageError("--import-to does not go with --partitions key: leave one of the two out")

    @property
    def shards_wanted(self) -> int:
        return self.shards

    @property
    def alias_wanted(self) -> str | None:
        return self.switch_alias

    @property
    def part_wanted(self) -> tuple[int, int] | None:
        return self.part

    @property
    def staging(self) -> Literal["stage", "commit"] | None:
        return "stage" if self.import_stage else "commit" if self.import_commit else None

    def connection(self, address: str) -> Connection:
        from .connection import Connection

        return Connection(
            uri=address,
            database=self.database,
            token=self.token or find_token(self.token_file),
            server_pem=self.server_pem,
            server_name=self.server_name,
            ca_pem=self.ca_pem,
            client_pem=self.client_pem,
            client_key=self.client_key,
        )

    def bucket(self) -> Bucket | None:
        from .bucket import Bucket

        if self.import_to is None:
            return None
        folder = self.import_to
        if "://" in folder:
            return Bucket(folder, self.import_path or folder.split("://", 1)[1].partition("/")[2], self.import_format)
        folder = os.path.abspath(folder)
        return Bucket(folder, self.import_path or folder, self.import_format)


def find_token(file: str | None = None) -> str:
    """The secret, from where neither `ps` nor a log shows it: a file, else the environment."""
    if file:
        return read_text(file, "the token").strip()
    if token := os.environ.get("MILVUS_TOKEN"):
        return token
    user, password = os.environ.get("MILVUS_USER"), os.environ.get("MILVUS_PASSWORD")
    return f"{user}:{password}" if user and password else ""
