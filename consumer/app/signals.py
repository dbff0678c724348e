"""SIGTERM and SIGINT: the first asks for an orderly stop, the second ends at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

_FORCED = 130
"""128 + SIGINT, as a shell says of Ctrl-C. Not 0: whoever supervises us must not take it for the orderly end."""


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT; a further one ends the process there and then.

    Ending at once loses nothing: what is not committed is read again.
    """
    loop = asyncio.get_running_loop()
    asked = False

    def heard() -> None:
        nonlocal asked
        if asked:
            os._exit(_FORCED)
        asked = True
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)
