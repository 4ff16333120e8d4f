"""milvus_offline: reads the data of stopped or crashed Milvus 1.x servers straight from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .milvus1.opening import open_store as open_store

__version__ = "0.1.0"
__all__ = ["__version__", "open_store"]


def __getattr__(name: str) -> Any:
    if name == "open_store":  # loaded when used: `--help` must not wait for numpy
        from .milvus1.opening import open_store

        return open_store
    raise AttributeError(name)
