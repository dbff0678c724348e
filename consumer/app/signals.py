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
_FORCED = 130


def on_stop_signal(stop: Callable[[], None], leave: Callable[[], None] = lambda: None) -> None:
    """Call `stop` on the first SIGTERM or SIGINT. On the next one, call `leave` and end the process."""
    loop = asyncio.get_running_loop()
    asked: tuple[int, float] | None = None

    def heard(number: int) -> None:
        nonlocal asked
        if asked is None:
            asked = number, loop.time()
            stop()
        elif number != asked[0] or loop.time() - asked[1] > TOGETHER:
            # This loses nothing: records that are not committed are read again.
            leave()
            _end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)


def _end() -> NoReturn:
    # stderr may be closed, or None.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # A progress bar hides the cursor, and its end, which shows it again, is skipped here.
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(_FORCED)
