"""The live view of `pinstream demo` on a terminal: a few lines of figures, below those of the log.

Theory of operation. `Below` owns the terminal while the view is up: it draws the view, and it is the stream of the log.
For each line of the log it erases the view, writes the line and draws the view again, in one write and under one lock,
so that neither tears the other, whichever thread logs. No line of the view is wider than the terminal, and all of them
together are less high, or the count of lines to erase would be wrong. If the size changes, a terminal moves what it
shows in ways of its own: then the screen is cleared, and the latest lines of the log are written again above the view.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumer.commands.results import time_taken
from consumer.engine.figures.statistics import Statistics

_ERASE_DOWN: Final = "\x1b[J"
_CLEAR: Final = "\x1b[H\x1b[2J"
_MAX_LOG: Final = 200  # lines that are written again after a change of size
_REFUSALS: Final = 3


class Below:
    """Draws a view below the lines of the log; it is the stream that the log is written to."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.RLock()
        self._view: list[str] = []
        self._table = Table.grid()
        self._log: deque[str] = deque(maxlen=_MAX_LOG)
        self._size = self._measured()

    def isatty(self) -> bool:
        """Return True: the log is for people."""
        return True

    def write(self, text: str) -> int:
        """Write lines of the log above the view."""
        with self._lock:
            self._log.extend(text.splitlines())
            self._redraw(text)
        return len(text)

    def flush(self) -> None:
        """Everything is written at once."""

    def draw(self, table: Table) -> None:
        """Draw another view."""
        with self._lock:
            self._table = table
            self._redraw()

    def close(self) -> None:
        """Erase the view. What comes next is written in its place."""
        with self._lock:
            self._table = Table.grid()
            self._redraw()

    def _redraw(self, text: str = "") -> None:
        size, before = self._measured(), self._size
        self._size = columns, lines = size
        up = f"\x1b[{len(self._view) - 1}A" if len(self._view) > 1 else ""
        # No wider and no higher than the terminal, see above. The last column stays free: some terminals wrap there.
        drawn = Console(file=io.StringIO(), force_terminal=True, width=max(1, columns - 1), highlight=False)
        with drawn.capture() as captured:
            drawn.print(self._table)
        self._view = captured.get().splitlines()[: max(1, lines - 1)]
        begin = f"\r{up}{_ERASE_DOWN}{text}"
        if size != before:
            begin = _CLEAR + "".join(f"{line}\r\n" for line in self._latest(columns, lines - len(self._view)))
        self._out.write(begin + "\r\n".join(self._view))
        self._out.flush()

    def _latest(self, columns: int, room: int) -> Sequence[str]:
        """Return the latest lines of the log that fit into this many rows."""
        latest: deque[str] = deque()
        for line in reversed(self._log):
            room -= max(1, -(-cell_len(Text.from_ansi(line).plain) // max(1, columns)))
            if room < 0:
                break
            latest.appendleft(line)
        return latest

    def _measured(self) -> tuple[int, int]:
        try:
            columns, lines = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return 80, 24
        # Some terminals say 0 at first.
        return columns or 80, lines or 24


def live_view(
    statistics: Statistics, rates: Mapping[str, float], progress: str, where: str, latest: int = _REFUSALS
) -> Table:
    """Return the figures of a moment. `rates`: by name, a second; `progress`: how far it is; `where`: the page."""
    totals = statistics.totals
    ended = " + ".join(
        f"{getattr(totals, name):,} {name.replace('_', '-')}"
        for name in ("delivered", "duplicate", "filtered", "dead_lettered", "open")
    )
    calls = statistics.latency
    taken = ", ".join(
        f"{name} {time_taken(value)}"
        for name, value in (("p50", calls.p50), ("p95", calls.p95), ("p99", calls.p99))
        if value is not None
    )
    waits = max((one.lag_seconds or 0.0 for one in statistics.partitions), default=0.0)
    flight = sum(one.in_flight for one in statistics.accounts)
    rows = [
        ("page", where),
        ("settled", progress),
        ("rates", ", ".join(f"{rate:,.0f}/s {name}" for name, rate in rates.items())),
        ("ledger", f"{totals.read:,} read = {ended}"),
        ("destination", f"{statistics.destination}, calls in flight: {flight}"),
        (
            "lag",
            f"{sum(one.lag or 0 for one in statistics.partitions):,} records, oldest {time_taken(waits)}",
        ),
        ("latency", taken or "no call yet"),
        *(("refused", f"{one.stage.value} {one.code}: {one.message}") for one in statistics.letters[:latest]),
    ]
    view = Table.grid(padding=(0, 2))
    view.add_column(no_wrap=True, style="bold", min_width=len("destination"))
    # One line each: what does not fit is cut.
    view.add_column(no_wrap=True, overflow="ellipsis")
    for name, text in rows:
        view.add_row(Text(name), Text(text))
    return view
