"""One thread of our own that does a store's blocking work, job after job.

Not a `ThreadPoolExecutor`: the interpreter waits at its exit for an executor's thread, and so would hang on a disk
that never answers. This thread is a daemon, and every wait for it has a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from consumer.errors import KeyStoreError

_T = TypeVar("_T")


class _Job:
    """A function to call and the future, of the event loop that asked, which takes its result."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def perform(self) -> None:
        result, failure = None, None
        try:
            result = self._function()
        except BaseException as raised:  # whatever it is, it belongs to the one who waits
            failure = raised
        try:
            self._loop.call_soon_threadsafe(self._settle, result, failure)
        except RuntimeError:  # the loop is closed: no one waits any more
            return

    def _settle(self, result: Any, failure: BaseException | None) -> None:
        if self.future.done():
            return
        if failure is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(failure)


class Undisturbed:
    """While the thread is in this context, the event loop stands still for it, `most` seconds at the most.

    For work that lets go of the GIL over and over and asks for it again at once: beside a busy event loop it would
    wait each time for its turn, and every turn costs more than the work. Standing still for a few milliseconds is
    cheaper for both.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: float) -> None:
        self._loop = loop
        self._most = most
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._done.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody disturbs
            self._loop.call_soon_threadsafe(self._done.wait, self._most)

    def __exit__(self, *_: object) -> None:
        self._done.set()


class Worker:
    """The thread. Started when made; `run` and `stop` are for the event loop's thread."""

    def __init__(self, name: str, time_limit: float) -> None:
        """`time_limit`: seconds after which a caller no longer waits for its job."""
        self._time_limit = time_limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], _T]) -> _T:
        """Call `function` on the thread and return what it returns.

        Raises `KeyStoreError` when the time limit passes; the job itself cannot be taken back and may yet be done.
        """
        job = _Job(function, asyncio.get_running_loop())
        self._jobs.put(job)
        done, _ = await asyncio.wait([job.future], timeout=self._time_limit)
        if not done:
            raise KeyStoreError(
                f"the key store's disk did not answer within {self._time_limit:g} s: check the disk, "
                "and whether another process that shares the key store is stopped or hangs"
            )
        result: _T = job.future.result()
        return result

    async def stop(self) -> bool:
        """End the thread after the jobs it has; False when the time limit passes first."""
        try:
            await self.run(lambda: None)
        except KeyStoreError:
            return False
        self._jobs.put(None)
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.perform()
