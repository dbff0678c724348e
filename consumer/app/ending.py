"""The end of a process: asked for by a signal, of a service orderly within its grace, and by force if something hangs.

`on_stop_signal` is for commands that end by themselves, `Ending` for a service. The first SIGTERM or SIGINT asks for an
orderly stop, the next one ends the process at once.

Theory of operation of `Ending`. The system writes the number of a signal into a pipe, and a thread of its own reads it:
so a signal is heard while the event loop stands still. The thread has the loop begin the orderly stop, and watches the
time. Parts are closed under their names, each within what is left of the grace; one that hangs is left behind, and the
end goes on. If the process is still there `BEYOND_GRACE` seconds after the grace, the thread says what hangs and ends
it with code 1, in the state that a kill leaves: what is not committed is read again. If the thread gets no turn,
because something holds the interpreter, `adapters.thread.watch_stacks` does the same without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import structlog

from consumer import logs
from consumer.adapters.thread import busy_threads, post, watch_stacks

# Seconds within which a repeated signal counts as one: `timeout` and terminals send it to process and group.
TOGETHER = 0.1
_SHOW_CURSOR = "\x1b[?25h"
# 128 + SIGINT, as in a shell. Not 0, because a supervisor must not take it for an orderly end.
_FORCED = 130
# Seconds after the grace at which the process is gone, at the latest.
BEYOND_GRACE = 2.0
# How long before that the thread acts, and `watch_stacks` does.
_MARGIN, _LAST_MOMENT = 0.5, 0.2
_LAST_LINE = 0.25
# Seconds for closing a part if nothing is left of the grace.
_LEAST = 0.1
# Seconds for closing a part before it is known how many are left.
_CLOSE_TIMEOUT = 10.0
_HUNG = 1

_doing: list[str] = []


def on_stop_signal(stop: Callable[[], None]) -> None:
    """Call `stop` on the first SIGTERM or SIGINT. On the next one, end the process."""
    loop = asyncio.get_running_loop()
    asked: tuple[int, float] | None = None

    def heard(number: int) -> None:
        nonlocal asked
        if asked is None:
            asked = number, loop.time()
            stop()
        elif _is_repeated(asked, number, loop.time()):
            _end_at_once()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard, number)


def _is_repeated(first: tuple[int, float], number: int, now: float) -> bool:
    """Return whether a signal is a second wish; `first`: the number and the time of the first one."""
    return number != first[0] or now - first[1] > TOGETHER


def _end_at_once() -> NoReturn:
    """End the process, and lose nothing: records that are not committed are read again."""
    # stderr may be closed, or None.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # A progress bar hides the cursor, and its end, which shows it again, is skipped here.
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(_FORCED)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what is being done, for the line that says what hangs."""
    _doing.append(what)
    try:
        yield
    finally:
        _doing.remove(what)


class Parts(contextlib.AsyncExitStack):
    """The open parts of a process; closed in reverse order, each within `left()` seconds.

    `closes` is called before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left: Callable[[], float] = lambda: _CLOSE_TIMEOUT
        self.closes: Callable[[], None] = lambda: None

    async def __aexit__(self, *error: Any) -> bool | None:
        self.closes()
        return await super().__aexit__(*error)

    def add(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Take note of a part that is open now."""
        self.push_async_callback(self._close, name, close)

    async def _close(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        try:
            with doing(f"closing {name}"):
                async with asyncio.timeout(max(_LEAST, self.left())) as limit:
                    await close()
        except TimeoutError:
            if not limit.expired():
                raise
            structlog.get_logger().warning("not_closed", part=name)


class Ending:
    """Calls `stop` on the event loop at the first SIGTERM or SIGINT; ends the process at the next one.

    Made on the loop, in the main thread. `grace`: seconds that the end may take. `leave` is called before an end that
    is not orderly, in another thread. `is_worker`: a second signal changes nothing, and SIGINT is for the supervisor.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        leave: Callable[[], None] = lambda: None,
        *,
        grace: float,
        slack: float = BEYOND_GRACE,
        is_worker: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = stop
        self._leave = leave
        self._grace, self._within = grace, grace + slack
        self._numbers = (signal.SIGTERM,) if is_worker else (signal.SIGTERM, signal.SIGINT)
        self._again = not is_worker
        self._asked: tuple[int, float] | None = None
        self._ends_at = math.inf
        self._heard, self._signals = os.pipe()
        os.set_blocking(self._signals, False)
        # The pipe first: a signal between the two calls is heard, too.
        signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, self._forward)
        # A child that a function of the user forks: what it is sent must not be heard here.
        os.register_at_fork(
            before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, self._numbers),
            after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, self._numbers),
            after_in_child=self._forget,
        )
        threading.Thread(target=self._listen, name="ending", daemon=True).start()

    def _forward(self, number: int, _: object) -> None:
        """Hand a signal to the thread if it has not heard it: a library may have set a descriptor of its own.

        `loop.add_signal_handler` does. That descriptor stays, for the signals that it is for.
        """
        theirs = signal.set_wakeup_fd(self._signals, warn_on_full_buffer=False)
        if theirs != self._signals:
            signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
            with contextlib.suppress(OSError):
                os.write(self._signals, bytes((number,)))

    def _forget(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)

    def begin(self) -> None:
        """Watch the time from now on: the process ends, by a signal or by itself."""
        if self._ends_at == math.inf:
            self._ends_at = time.monotonic() + self._within
            watch_stacks(self._within - _LAST_MOMENT, exits=True)
            os.write(self._signals, b"\0")  # for the thread

    def _listen(self) -> None:
        while True:
            left = self._ends_at - _MARGIN - time.monotonic()
            if left <= 0:
                self._end_by_force()
            ready, _, _ = select.select([self._heard], [], [], None if left == math.inf else left)
            for number in os.read(self._heard, 64) if ready else b"":
                if number in self._numbers:
                    self._hear(number)

    def _hear(self, number: int) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked = number, now
            self.begin()
            post(self._loop, self._stop)
        elif self._again and _is_repeated(self._asked, number, now):
            self._leave()
            os._exit(_FORCED)

    def _end_by_force(self) -> None:
        self._leave()
        logs.end_with(
            f"pinstream: the end did not come within {self._grace:g} s (PINSTREAM_SHUTDOWN_GRACE), so the process ends "
            f"as if it was killed, and what is not committed is read again; what hung: {what_hangs()}",
            within=_LAST_LINE,
        )
        os._exit(_HUNG)


def what_hangs() -> str:
    """Say what the process is doing: what it closes, at what the event loop stands, which threads are busy."""
    found = [*_doing]
    main = threading.main_thread()
    frame = sys._current_frames().get(main.ident or 0)
    if frame is not None and Path(frame.f_code.co_filename).stem != "selectors":
        found.append(f"the main thread ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})")
    # The interpreter waits at its end for threads that are no daemons.
    waits_for = [one.name for one in threading.enumerate() if not one.daemon and one is not main]
    found += [f"the thread {name}" for name in (*busy_threads(), *waits_for)]
    return ", ".join(found) or "nothing of pinstream's own"
