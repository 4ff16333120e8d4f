"""What --verbose and --log-file tell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..guard import keep_out, missing_folder
from ..names import printable
from .options import keep, setting

if TYPE_CHECKING:
    from ..milvus1.store import Store
    from ..model import Source

_WAITING = "waiting log file"


def set_up_log(verbose: int) -> None:
    """What happens, and messages of libraries, go to stderr when asked for, and to --log-file."""
    keep("verbose", verbose)
    path = setting("log_file")
    if not verbose and not path:
        return
    import logging
    from logging.handlers import MemoryHandler

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(printable, super().format(record).splitlines()))

    handlers: list[logging.Handler] = []
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setFormatter(Lines("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    if path:  # nothing is written before it is known that the file does not lie in the source
        memory = MemoryHandler(1 << 20, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        keep(_WAITING, (path, memory))
        handlers.append(memory)
    logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.INFO, handlers=handlers, force=True)


def begin_log_file(source: Source) -> None:
    """Writes --log-file from here on, with what was kept until the source was known; refuses a file inside of the source."""
    waiting = setting(_WAITING)
    if waiting is None:
        return
    import logging

    path, memory = waiting
    keep_out(path, source.describe())
    try:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as e:
        folder = missing_folder(path)
        reason = f"there is no folder {folder}" if folder else f"{e.strerror}: name a file"
        raise UsageError(f"--log-file {path}: cannot be written: {reason}") from e
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    memory.setTarget(file)
    memory.flush()
    logging.getLogger().removeHandler(memory)
    logging.getLogger().addHandler(file)
    keep(_WAITING, None)


def logging_asked() -> bool:
    """Whether --verbose or --log-file want to know what is done."""
    return bool(setting("verbose") or setting("log_file"))


def log_store(store: Store) -> None:
    """Says what was opened."""
    import logging

    from ..text import count

    log = logging.getLogger("milvus_offline")
    log.info("store %s, roots %s", store.path, ", ".join(map(str, store.location.roots)))
    log.info("catalog %s, version %s", store.catalog.origin, store.catalog.version or "unknown")
    if store.wal is None:
        log.info("no write-ahead log")
    else:
        log.info(
            "write-ahead log %s, %s, acknowledged LSN %s",
            store.wal.folder,
            count(len(store.wal.files), "file"),
            store.wal.acknowledged,
        )
    for c in store.collections:
        for p in c.partitions:
            log.info("%s/%s: %s, %s", c.schema.name, p.name, count(len(p.segments), "segment"), count(p.rows, "row"))
            for s in p.segments:
                log.debug("%s/%s: segment %s, %s, %d rows, %d deleted", c.schema.name, p.name, s.id, s.state, s.rows, s.deleted)
