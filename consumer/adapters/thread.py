"""The one thread class: a daemon with a queue, for whatever blocks (a Kafka client, a disk, a name server, a pipe).

A Kafka client is used from its own thread alone: polls, commits and close run here, and rebalance callbacks run here
inside a poll. It is not asyncio's shared pool, whose threads may all be waiting when a callback needs one
(confluent-kafka-python #2211), and not a `ThreadPoolExecutor`, whose threads the interpreter joins at exit: a call
that hangs must not keep the process from ending at its deadline.

A daemon thread that still runs while the interpreter shuts down may crash the process, for example in the middle of
destroying a client whose own threads and callbacks need an interpreter. So each client is destroyed explicitly, in its
thread, before its owner hears that it is closed (dropping the reference would not do: an error keeps the frames that
it passed through). And the exit of the process waits a moment for the threads that were told to end.
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
from typing import Final, ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_GOODBYE: Final = 1.0
"""Seconds for the orderly end of a client. One that hangs is abandoned."""
_LAST_MOMENT: Final = 0.5
"""Seconds that the exit of the process waits, for all threads that were told to end together."""
_ending: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class OwnThread:
    """Runs functions one after the other. Started when it is made; used from the event loop's thread."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        # A daemon: a call that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(
        self, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Call `function` in the thread and return its result. Cancelling the wait does not undo the call."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def fail(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        def job() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # whatever it is, the caller gets it, and the thread goes on
                post(loop, fail, error)
            else:
                post(loop, settle, future, result)

        self._jobs.put(job)
        return await future

    def begin(self, function: Callable[[], object]) -> None:
        """Queue `function`; nothing waits for it. It must not raise."""
        self._jobs.put(function)

    async def end(self, last: Callable[[], object] = lambda: None, *, timeout: float = _GOODBYE) -> None:
        """Run `last` after what is queued and end the thread; wait for it at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.run(last)
        self.stop()

    def stop(self) -> None:
        """End the thread after what is queued. Does not wait."""
        self._jobs.put(None)
        _ending.add(self._thread)

    def join(self, timeout: float) -> None:
        """Wait for the end after `stop`, at most `timeout` seconds. Blocks."""
        self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


async def run_blocking(
    name: str,
    function: Callable[_Parameters, _Result],
    *args: _Parameters.args,
    **kwargs: _Parameters.kwargs,
) -> _Result:
    """Run one blocking call in a thread of its own, called `name`."""
    thread = OwnThread(name)
    try:
        return await thread.run(function, *args, **kwargs)
    finally:
        thread.stop()


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Call `function` on the loop, from another thread. Does nothing if the loop is closed already."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def settle(future: asyncio.Future[_Result], result: _Result) -> None:
    """Set the result, unless the future is done already (its waiter was cancelled)."""
    if not future.done():
        future.set_result(result)


@atexit.register
def _wait_for_the_ending() -> None:
    deadline = time.monotonic() + _LAST_MOMENT
    for thread in list(_ending):
        thread.join(max(0.0, deadline - time.monotonic()))
