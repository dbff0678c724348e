"""An event loop on virtual time: a test of an hour takes a millisecond, and always the same one.

Theory of operation. The loop's clock stands still while anything is ready to run. When nothing is, the loop asks
its selector to wait until the next timer: this selector does not wait, it sets the clock forward by as much. When
there is no timer either, nothing will ever happen again, and the test is told so instead of hanging. (There must be
no threads and no sockets then: nothing else may wake the loop.)
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_000.0


class Stuck(AssertionError):
    """Nothing is ready, and no timer is set: the awaited event will never come."""


class _Selector(selectors.SelectSelector):
    """Moves the clock forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` jumps to the next timer."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(main: Coroutine[Any, Any, T], *, limit: float = 7 * 86_400.0) -> T:
    """Run a coroutine on virtual time; `limit` bounds it, in virtual seconds."""

    async def bounded() -> T:
        async with asyncio.timeout(limit):
            return await main

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(bounded())


def now() -> float:
    """The running loop's clock."""
    return asyncio.get_running_loop().time()
