"""milvus_offline: reads the data of stopped or crashed Milvus 1.x servers straight from disk.

`open_store` looks into a store, `open_source` at anything else that rows come from; `export`, `load` and `verify` do what the
commands of these names do. What they raise on purpose is a `MilvusOfflineError`; its kinds are in `milvus_offline.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import export as export
    from .api import load as load
    from .api import open_source as open_source
    from .api import verify as verify
    from .errors import MilvusOfflineError as MilvusOfflineError
    from .milvus1.opening import open_store as open_store

__all__ = ["MilvusOfflineError", "__version__", "export", "load", "open_source", "open_store", "verify"]


def __getattr__(name: str) -> Any:
    """What is public is loaded when it is used: `--help` must not wait for numpy."""
    if name == "open_store":
        from .milvus1.opening import open_store

        return open_store
    if name == "MilvusOfflineError":
        from .errors import MilvusOfflineError

        return MilvusOfflineError
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
