"""milvus_offline: reads the data of stopped or crashed Milvus 1.x servers straight from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .milvus1.opening import open_store as open_store

__all__ = ["__version__", "open_store"]


def __getattr__(name: str) -> Any:
    if name == "open_store":  # loaded when used: `--help` must not wait for numpy
        from .milvus1.opening import open_store

        return open_store
    raise AttributeError(name)
