"""Calls the user's function (``PINSTREAM_TRANSFORM``) in a thread of its own, so that a slow one stops nothing else.

While the function works the event loop goes on: Kafka is polled, calls are answered, the page is served. The loop
watches the thread, and reports a record that takes more than a second. A function that never returns can only be ended
with the process; its thread is a daemon, so a stop does not wait for it.

Python runs one thread at a time. A function of C that does not let others run (a regular expression that backtracks
without end) stops the loop, too. Then `watch_stacks`, which does not need the interpreter, writes the place to stderr.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from consumer.adapters.thread import OwnThread, unwatch_stacks, watch_stacks
from consumer.conversion.transform import Transformer
from consumer.engine.messages import Transform, Transformed, TransformIsSlow
from consumer.engine.model import CommerceEvent, Filtered, Rejection

# Seconds of work after which the results so far are handed over.
_AT_A_TIME: Final = 0.1
# Seconds between two checks at the thread.
_POLL_EVERY: Final = 0.2
# Seconds that one record may take before `say` is called; and until it is called again.
SLOW: Final = 1.0
_AGAIN: Final = 60.0
# Seconds without a turn of the event loop after which the stacks of all threads are written to stderr.
_STANDS_STILL: Final = 30.0

Result = CommerceEvent | Filtered | Rejection


class TransformThread:
    """The thread of one function."""

    def __init__(self, function: Transformer) -> None:
        self._function = function
        self._thread = OwnThread("pinstream-transform")
        # Time at which the function began its record (monotonic seconds).
        self._since = 0.0
        # The latest call that took long: its row, and its seconds. The loop may not have noticed it.
        self._took: tuple[int, float] | None = None

    async def run(self, command: Transform, say: Callable[[TransformIsSlow], None]) -> Transformed:
        """Call the function for some of these records; `say` is called while one of them takes long."""
        results: list[Result] = []
        self._took = None
        self._since = time.monotonic()
        work = asyncio.ensure_future(self._thread.run(self._work, command.events, results))
        reported, say_at, said = 0, 0.0, -1
        try:
            while True:
                # The timer is set again at each turn of the loop, so it fires only if there is none.
                watch_stacks(_STANDS_STILL)
                await asyncio.wait((work,), timeout=_POLL_EVERY)
                if work.done():
                    work.result()
                    # A call that kept the interpreter's lock is noticed only now.
                    if self._took is not None and self._took[0] > said:
                        row, seconds = self._took
                        say(TransformIsSlow(command.number, row, seconds, results[reported:row]))
                        reported = row
                    return Transformed(command.number, results[reported:])
                # Read in the reverse of the thread's order, so that a call never seems longer than it is.
                row, since, now = len(results), self._since, time.monotonic()
                if now - since >= SLOW and (row > reported or now >= say_at):
                    # Finished results are handed over, however long this call takes.
                    say(TransformIsSlow(command.number, row, now - since, results[reported:row]))
                    reported, say_at, said = row, now + _AGAIN, row
        finally:
            unwatch_stacks()
            work.cancel()

    def _work(self, events: Sequence[CommerceEvent], results: list[Result]) -> None:
        """Call the function for at least one of these, and for as many as fit into a moment. In the thread."""
        ends = time.monotonic() + _AT_A_TIME
        for event in events:
            if results and self._since >= ends:
                break
            result: Result
            try:
                result = self._function.apply(event)
            # Ctrl-C reaches the main thread only: the function itself has raised it.
            except KeyboardInterrupt as error:
                result = self._function.failed(error)
            now = time.monotonic()
            if now - self._since >= SLOW:
                self._took = len(results), now - self._since
            self._since = now
            results.append(result)

    async def close(self) -> None:
        """End the thread. Does not wait for a function that hangs."""
        self._thread.stop()
