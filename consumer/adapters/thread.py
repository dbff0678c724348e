"""One thread of our own for one librdkafka client.

The Consumer is used from this thread alone: polls, commits and close run here, and rebalance callbacks run here
inside a poll. It is not `asyncio`'s shared pool, whose threads may all be waiting when a callback needs one
(confluent-kafka-python #2211), and not a `ThreadPoolExecutor`, which the interpreter joins at exit: a client that
hangs in a call must not keep the process from ending at its deadline. So it is a daemon with a queue.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


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

    def stop(self) -> None:
        """End the thread after what is queued. Does not wait."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


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
