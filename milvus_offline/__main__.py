"""Where the program begins: from here on Ctrl-C ends in one sentence, or before that in silence, never in a traceback."""

import os
import signal
from typing import Any


def main() -> None:
    """Entry point of `milvus-offline` and of `python -m milvus_offline`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _not_begun)
    from .cli import main as run

    run()


def _not_begun(*_: Any) -> None:
    os._exit(130)  # while Python still imports, there is nothing to tidy up


if __name__ == "__main__":
    main()
