"""The one thread class: a daemon with a queue, for all that blocks (a Kafka client, a disk, a name server, a pipe).

A Kafka client is used from its own thread alone: polls, commits and close run here, and rebalance callbacks run here
inside a poll.

Each client is destroyed explicitly, in its thread, before its owner's `close` returns. Dropping the reference would not
be enough: an error keeps the frames that it passed through.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import faulthandler
import functools
import os
import queue
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

# Seconds for closing a client in order. One that hangs is abandoned.
_END_TIMEOUT: Final = 1.0
_LAST_MOMENT: Final = 0.5
"""Seconds that the exit of the process waits for all ending threads together."""
_ending: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_busy: set[str] = set()


class OwnThread:
    """Runs functions one after the other. Started when it is made; used from the event loop's thread."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        # Not asyncio's shared pool: its threads may all be waiting when a callback needs one (confluent-kafka-python
        # #2211). Not a `ThreadPoolExecutor`: the interpreter joins its threads at exit. A daemon: a call that never
        # returns must not keep the process from ending at its deadline.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(
        self, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Call `function` in the thread and return its result. Cancelling the wait does not undo the call."""
        # Not a `concurrent.futures.Future`: cancelling it would drop a call that has not begun.
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # the caller gets any error, and the thread goes on
                post(loop, settle, future, None, error)
            else:
                post(loop, settle, future, result)

        self._jobs.put(job)
        return await future

    def has_waiting(self) -> bool:
        """Return whether a call waits for the one that runs now. Also for the thread itself."""
        return not self._jobs.empty()

    def begin(self, function: Callable[[], object]) -> None:
        """Queue `function`; nothing waits for it. It must not raise."""
        self._jobs.put(function)

    async def end(self, last: Callable[[], object] = lambda: None, *, timeout: float = _END_TIMEOUT) -> None:
        """Run `last` after all queued calls and end the thread; wait for `last` at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):  # a call that hangs is abandoned
            async with asyncio.timeout(timeout):
                await self.run(last)
        self.stop()

    def stop(self) -> None:
        """End the thread after all queued calls. Does not wait."""
        # Behind a job that hangs, this one is never reached: then the thread stays, as a daemon.
        self._jobs.put(None)
        _ending.add(self._thread)

    def join(self, timeout: float) -> None:
        """Wait for the end after `stop`, at most `timeout` seconds. Blocks."""
        self._thread.join(timeout)

    def _work(self) -> None:
        name = self._thread.name
        while (job := self._jobs.get()) is not None:
            _busy.add(name)
            job()
            _busy.discard(name)


def busy_threads() -> Sequence[str]:
    """Return the names of the threads that are in a call now."""
    return sorted(_busy)


_stacks = threading.Lock()
_exits = False


def watch_stacks(seconds: float, *, exits: bool = False) -> None:
    """In `seconds`, unless called again before, write the stacks of all threads to stderr: files and lines, no values.
    This needs no turn of the interpreter. `exits`: then end the process with code 1; later calls change nothing."""
    global _exits
    with _stacks:
        if _exits:
            return
        _exits = exits
        # If stderr has no file, as in some embeddings, it cannot be set.
        with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
            faulthandler.dump_traceback_later(seconds, exit=exits, file=_stderr_that_never_blocks())


def unwatch_stacks() -> None:
    """Take back `watch_stacks`, unless it exits."""
    with _stacks:
        if not _exits:
            faulthandler.cancel_dump_traceback_later()


def _stderr_that_never_blocks() -> int:
    # Who takes the timer back waits for stacks that are being written: a reader that stands still would stop the loop,
    # and an end by force would not come.
    if sys.stderr is None:  # closed (`2>&-`)
        return _open_once(os.devnull)
    descriptor = sys.stderr.fileno()
    with contextlib.suppress(OSError):  # a socket cannot be opened again; or there is no /proc
        return _open_once(f"/proc/self/fd/{descriptor}")
    _, takes_some, _ = select.select([], [descriptor], [], 0)
    return descriptor if takes_some else _open_once(os.devnull)


@functools.cache
def _open_once(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that resolves names in daemon threads.

    `getaddrinfo` waits as long as the name server does not answer, and cannot be cancelled. asyncio runs it in a pool
    of threads that the process waits for at its end, past every deadline.
    """

    async def getaddrinfo(self, host: Any, port: Any, **options: int) -> Any:
        return await run_blocking("pinstream-resolver", partial(socket.getaddrinfo, host, port, **options))


def run_on_loop(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` to its end, as `asyncio.run` does, on a loop that waits for no name server."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


class _HasThread(Protocol):
    _thread: OwnThread


_Owner = TypeVar("_Owner", bound=_HasThread)


def in_own_thread(
    method: Callable[Concatenate[_Owner, _Parameters], _Result],
) -> Callable[Concatenate[_Owner, _Parameters], Coroutine[Any, Any, _Result]]:
    """Make a blocking method awaitable: it runs in ``self._thread``."""

    @functools.wraps(method)
    async def call(self: _Owner, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return await self._thread.run(method, self, *args, **kwargs)

    return call


async def run_blocking(
    name: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """Run one blocking call in a thread of its own, called `name`."""
    # Not one thread for all such calls: one that hangs would block the others.
    thread = OwnThread(name)
    try:
        return await thread.run(function, *args, **kwargs)
    finally:
        thread.stop()


def run_aside(name: str, function: Callable[[], object]) -> None:
    """Run one blocking call in a thread of its own, called `name`; nothing waits for its end. It must not raise."""
    thread = OwnThread(name)
    thread.begin(function)
    thread.stop()


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Call `function` on the loop, from another thread. Does nothing if the loop is closed already."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def settle(future: asyncio.Future[_Result], result: _Result, failure: BaseException | None = None) -> None:
    """Set the result or, if there is one, the exception."""
    if future.done():  # its waiter was cancelled
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


@atexit.register
def _wait_for_the_ending() -> None:
    # A daemon thread that still runs while the interpreter shuts down may crash the process, for example in the middle
    # of destroying a client whose own threads and callbacks need an interpreter.
    deadline = time.monotonic() + _LAST_MOMENT
    for thread in list(_ending):
        thread.join(max(0.0, deadline - time.monotonic()))
