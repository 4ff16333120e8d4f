"""Milvus Lite and servers as kinds of a load target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .options import LiteOptions, ServerOptions

if TYPE_CHECKING:
    from .target import MilvusTarget


@dataclass(frozen=True, kw_only=True)
class MilvusLite(LiteOptions):
    """A load into Milvus Lite."""

    def open(self, address: str) -> MilvusTarget:
        return _open(self, address)


@dataclass(frozen=True, kw_only=True)
class MilvusServer(ServerOptions):
    """A load into a server or Zilliz Cloud."""

    def open(self, address: str) -> MilvusTarget:
        return _open(self, address)


def _open(options: LiteOptions, address: str) -> MilvusTarget:
    from .target import MilvusTarget

    return MilvusTarget(options.connection(address), options)
