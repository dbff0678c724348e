"""SIGTERM and SIGINT: the first one asks for an orderly stop, the next one ends the process immediately."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

# Seconds within which a repeated signal counts as one: `timeout` and terminals send it to process and group.
TOGETHER = 0.1
_SHOW_CURSOR = "\x1b[?25h"
# 128 + SIGINT, as in a shell. Not 0, because a supervisor must not take it for an orderly end.
FORCED = 130


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT. On the next one, end the process. For a service: `app.ending`."""
    loop = asyncio.get_running_loop()
    asked: tuple[int, float] | None = None

    def heard(number: int) -> None:
        nonlocal asked
        if asked is None:
            asked = number, loop.time()
            stop()
        elif is_repeated(asked, number, loop.time()):
            end_at_once()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)


def is_repeated(first: tuple[int, float], number: int, now: float) -> bool:
    """Return whether a signal is a second wish; `first`: the number and the time of the first one."""
    return number != first[0] or now - first[1] > TOGETHER


def end_at_once() -> NoReturn:
    """End the process, and lose nothing: records that are not committed are read again."""
    # stderr may be closed, or None.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # A progress bar hides the cursor, and its end, which shows it again, is skipped here.
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(FORCED)
