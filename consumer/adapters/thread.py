"""One thread of our own for one librdkafka client.

The Consumer is used from this thread alone: polls, commits and close run here, and rebalance callbacks run here
inside a poll. It is not `asyncio`'s shared pool, whose threads may all be waiting when a callback needs one
(confluent-kafka-python #2211), and not a `ThreadPoolExecutor`, which the interpreter joins at exit: a client that
hangs in a call must not keep the process from ending at its deadline. So it is a daemon with a queue.

A daemon that still runs while the interpreter is taken down may crash the process: in the middle of destroying a
client, say, whose own threads and callbacks need an interpreter. So clients are destroyed by name, in their thread,
before anyone is told that it is done (a reference would not do: errors keep the frames that they went through); and
threads that were told to end get a last moment for it when the process does.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_GOODBYE = 1.0
"""Seconds for a client's orderly end; one that hangs is left to itself."""
_LAST_MOMENT = 0.5
"""Seconds that the process's end waits, for all threads that were told to end together."""
_ending: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class OwnThread:
    """Runs functions one after the other; `run` awaits one of them."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(
        self, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """`function` in the thread. Cancelling the wait does not undo the call: it still runs, or ran."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                post(loop, _fail, future, error)
            else:
                post(loop, settle, future, result)

        self._jobs.put(job)
        return await future

    async def end(self, last: Callable[[], object]) -> None:
        """Run `last` after what is queued, and end the thread. What hangs is left to itself after a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                await self.run(last)
        self.stop()

    def stop(self) -> None:
        """End the thread after what is queued. Does not wait."""
        self._jobs.put(None)
        wait_at_exit(self._thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


async def apart(
    name: str,
    function: Callable[_Parameters, _Result],
    *args: _Parameters.args,
    **kwargs: _Parameters.kwargs,
) -> _Result:
    """The answer to one question that blocks, asked in a thread of its own."""
    thread = OwnThread(name)
    try:
        return await thread.run(function, *args, **kwargs)
    finally:
        thread.stop()


def wait_at_exit(thread: threading.Thread) -> None:
    """A daemon was told to end: the process's end waits a moment for it."""
    _ending.add(thread)


@atexit.register
def _wait_for_the_ending() -> None:
    deadline = time.monotonic() + _LAST_MOMENT
    for thread in list(_ending):
        thread.join(max(0.0, deadline - time.monotonic()))


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Call `function` on the loop, from another thread; nothing if the loop is gone already."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def settle(future: asyncio.Future[_Result], result: _Result) -> None:
    """Set the result unless nobody waits for it any more."""
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[_Result], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
