"""``python -m tests.app.hanging WHAT ARGUMENTS`` runs ``pinstream ARGUMENTS``, in which something hangs at the end.

WHAT is one of `WAYS`. A second word behind a colon, ``worker`` or ``supervisor``, leaves the other processes as they
are.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

_LONG = 600.0
STANDS_STILL = "the loop stands still"
"""What the process writes to stderr before its loop blocks."""


async def _waits(self: Any) -> None:
    await asyncio.sleep(_LONG)


async def _blocks(self: Any) -> None:
    time.sleep(_LONG)  # noqa: ASYNC251 - that is the point


async def _holds_the_interpreter(self: Any) -> None:
    re.match(r"(a+)+$", "a" * 100 + "b")


def _closes_by(close: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Return what makes the key store close so."""

    def replace() -> None:
        from consumer.adapters.key_store.disk_store import DiskKeyStore

        DiskKeyStore.close = close  # type: ignore[method-assign,assignment]

    return replace


def _page_blocks() -> None:
    from consumer.web.server import WebServer

    WebServer.stop = _blocks  # type: ignore[method-assign]


def _when_the_page_starts(act: Callable[[asyncio.AbstractEventLoop], object]) -> None:
    from consumer.web.server import WebServer

    start = WebServer.start

    async def starts(self: Any) -> Any:
        act(asyncio.get_running_loop())
        return await start(self)

    WebServer.start = starts  # type: ignore[method-assign]


def _loop_blocks() -> None:
    def block() -> None:
        os.write(2, f"{STANDS_STILL}\n".encode())
        time.sleep(_LONG)

    _when_the_page_starts(lambda loop: loop.call_later(0.5, block))


WAYS: dict[str, Callable[[], object]] = {
    "key store waits": _closes_by(_waits),
    "key store blocks": _closes_by(_blocks),
    "interpreter is held": _closes_by(_holds_the_interpreter),
    "page blocks": _page_blocks,
    "loop blocks": _loop_blocks,
    "thread stays": threading.Thread(target=time.sleep, args=(_LONG,), name="of-a-library").start,
    "handler blocks": partial(atexit.register, time.sleep, _LONG),
    "pool waits": lambda: _when_the_page_starts(lambda loop: loop.run_in_executor(None, time.sleep, _LONG)),
    "signals are taken": lambda: _when_the_page_starts(
        lambda loop: loop.add_signal_handler(signal.SIGUSR1, print)
    ),
}


if __name__ == "__main__":
    what, _, where = sys.argv.pop(1).partition(":")
    is_worker = "--worker" in sys.argv
    if not where or is_worker == (where == "worker"):
        WAYS[what]()
    from consumer.__main__ import enter

    enter()
