"""SIGTERM and SIGINT: the first asks for an orderly stop, a later one ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

TOGETHER = 0.1
"""Seconds within which the same signal again is the same wish: `timeout` and terminals send it to process and group."""
_SHOW_CURSOR = "\x1b[?25h"
_FORCED = 130
"""128 + SIGINT, as a shell says of Ctrl-C. Not 0: whoever supervises us must not take it for the orderly end."""


def on_stop_signal(stop: Callable[[], None], leave: Callable[[], None] = lambda: None) -> None:
    """Call `stop` on the first SIGTERM or SIGINT; a further one ends the process there and then, `leave` before it.

    Ending at once loses nothing: what is not committed is read again.
    """
    loop = asyncio.get_running_loop()
    asked: tuple[int, float] | None = None

    def heard(number: int) -> None:
        nonlocal asked
        if asked is None:
            asked = number, loop.time()
            stop()
        elif number != asked[0] or loop.time() - asked[1] > TOGETHER:
            leave()
            _leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)


def _leave() -> NoReturn:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr.isatty():  # a progress bar hides the cursor, and nobody would show it again
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(_FORCED)
