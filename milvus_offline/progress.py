"""How far a run is: a bar on a terminal, a line each half minute elsewhere, or JSON lines for a program; all on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any

from .text import count, duration, named, size

STATS_SECONDS = 30.0
_REDRAW_SECONDS = 0.1
_WINDOW_SECONDS = 10.0
"""Over which the rate is smoothed."""


class Smooth:
    """A rate in bytes per second that does not jump: a mean in which what is ten seconds old counts little."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._at = self._begin = time.monotonic()
        self._pending = 0

    def add(self, nbytes: int, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        self._pending += nbytes
        passed = now - self._at
        if passed < _REDRAW_SECONDS:
            return
        fresh = self._pending / passed
        # at the beginning the plain mean
        weight = max(min(1.0, passed / _WINDOW_SECONDS), passed / max(now - self._begin, passed))
        self.rate += (fresh - self.rate) * weight
        self._at, self._pending = now, 0


@dataclass
class State:
    """What is known of a run at a moment."""

    what: str = ""
    rows: int = 0
    total_rows: int = 0
    bytes: int = 0
    total_bytes: int = 0
    rate: float = 0.0

    @property
    def share(self) -> float:
        """Between 0 and 1; by rows where there are no bytes."""
        done, total = (self.bytes, self.total_bytes) if self.total_bytes else (self.rows, self.total_rows)
        return min(1.0, done / total) if total else 1.0

    @property
    def seconds_left(self) -> float | None:
        return (self.total_bytes - self.bytes) / self.rate if self.rate > 0 else None

    def to_json(self) -> dict[str, Any]:
        left = self.seconds_left
        return {
            "format": "milvus-offline-progress",
            "version": 1,
            "what": self.what,
            "rows": self.rows,
            "total_rows": self.total_rows,
            "bytes": self.bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": round(self.rate),
            "seconds_left": None if left is None else round(left, 1),
        }

    def words(self) -> list[str]:
        """For a person, what matters most first."""
        left = self.seconds_left
        return [
            f"{100 * self.share:.0f} %",
            "" if left is None or self.share == 1 else f"{duration(left)} left",
            f"{size(self.bytes)} of {size(self.total_bytes)}",
            f"{size(self.rate)}/s" if self.rate else "",
            f"{self.rows:,} of {count(self.total_rows, 'row')}",
        ]


class Shown:
    """What all ways of showing a run share; see transfer.Progress."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self.state = State()
        self._rate = Smooth()

    def start(self, rows: int, nbytes: int, done_rows: int, done_bytes: int) -> None:
        self.state = State("", done_rows, rows, done_bytes, nbytes)
        self._rate = Smooth()
        self.begin()

    def advance(self, rows: int, nbytes: int) -> None:
        self.state.rows += rows
        self.state.bytes += nbytes
        self._rate.add(nbytes)
        self.state.rate = self._rate.rate
        self.show()

    def now(self, what: str) -> None:
        """Names what is worked on, a partition or `waiting for the disk`."""
        self.state.what = what
        self.show()

    def begin(self) -> None: ...
    def show(self) -> None: ...
    def close(self) -> None: ...


class Lines(Shown):
    """A line each `every` seconds, also while nothing moves, so that a log shows that the run lives."""

    def __init__(self, every: float = STATS_SECONDS, *, as_json: bool = False, stream: IO[str] | None = None) -> None:
        super().__init__(stream)
        self._every, self._json = every, as_json
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        self._ended.clear()
        if self._json:
            self._write()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        while not self._ended.wait(self._every):
            self._write()

    def _write(self) -> None:
        if self._json:
            line = json.dumps({**self.state.to_json(), "at": round(time.time(), 3)})
        else:
            what = f"{named(self.state.what)}: " if self.state.what else ""
            line = f"{time.strftime('%H:%M:%S')} {what}{', '.join(filter(None, self.state.words()))}"
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            if self._json:
                self._write()


class Bar(Shown):
    """A bar in the last line of a terminal; it holds less where the terminal is narrow."""

    _live: Any = None

    def begin(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self.close()
        if not (self.state.total_rows or self.state.total_bytes):
            return
        console = Console(file=self._stream, highlight=False, markup=False, emoji=False)
        self._live = Live(console=console, get_renderable=self._line, refresh_per_second=10, redirect_stdout=False)
        self._live.start(refresh=True)

    def _line(self) -> Any:
        from rich.cells import cell_len, set_cell_size
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = self._live.console.width if self._live else 80
        words = [w for w in self.state.words() if w]
        name = named(self.state.what) if self.state.what else ""
        room = min(24, max(0, width // 4))
        if cell_len(name) > room:
            name = set_cell_size(name, max(0, room - 1)) + "…"
        while len(words) > 2 and sum(cell_len(w) + 2 for w in words) + room + 12 > width:
            words.pop()
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(width=room, no_wrap=True)
        grid.add_column(ratio=1)
        for _ in words:
            grid.add_column(justify="right", no_wrap=True)
        grid.add_row(Text(name), ProgressBar(total=1.0, completed=self.state.share), *map(Text, words))
        return grid

    def close(self) -> None:
        if self._live is not None:
            self.state.what = "done" if self.state.share == 1 else ""
            self._live.stop()
            self._live = None
