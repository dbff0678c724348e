"""The line between a worker and its supervisor: snapshots one way, and the end of the line both ways.

Theory of operation. A worker's stdin and stdout are pipes to the supervisor. It takes both away first of all, so that
nobody else in its process reads or writes them by mistake. What it says are frames: a length, then a pickled `Said`.
(Both ends are the same program, one started by the other, and nobody else holds the pipes: as in `multiprocessing`.)

The worker says how things are; it does not wait for anybody to listen. A thread writes, and of what it has not begun to
write only the latest is kept. Another waits for the end of stdin: the supervisor has gone, in whatever way. Then the
worker is asked to stop as it always is, by SIGTERM, and if it has not ended within its grace, it is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import struct
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from consumer.engine.statistics import Statistics
from consumer.errors import PinstreamError

_LENGTH = struct.Struct(">I")
MOST_BYTES = 64 * 1024 * 1024
"""Of one frame. A snapshot has some ten thousand."""
_LAST_WORD = 2.0
"""Seconds that the last frame of a worker may take."""
_ALONE = 70
"""The exit code of a worker whose supervisor is gone and that did not end by itself. Nobody is there to read it."""


class Said(NamedTuple):
    """How things are with a worker."""

    joined: bool = False
    """It has found all that it needs, and works."""
    statistics: Statistics | None = None
    """None: they could not be had, or it ends and there are none."""
    sickness: str | None = None
    """What its health says."""
    key_store: Mapping[str, Any] | None = None
    """What /status has of the key store."""
    error: str | None = None
    """Why it ends, if not in order."""


def frame(said: Said) -> bytes:
    """As it goes over the line."""
    body = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def hear(reader: asyncio.StreamReader | None) -> Said | None:
    """What a worker says next; None: it says no more. Raises for what no worker says."""
    if reader is None:
        return None
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MOST_BYTES:
            raise PinstreamError("a worker's report cannot be read; please report this")
        said = pickle.loads(await reader.readexactly(length))  # noqa: S301 - see above: it is our own
    except asyncio.IncompleteReadError:  # killed in the middle of it
        return None
    return said if isinstance(said, Said) else None


class Line:
    """The worker's end. `out` and `lifeline` are file descriptors, which it has for itself."""

    def __init__(self, out: int, lifeline: int) -> None:
        self._out = out
        self._lifeline = lifeline
        self._waiting: list[Said] = []
        self._over = False
        self._changed = threading.Condition()
        self._writer = threading.Thread(target=self._write_all, name="worker-line", daemon=True)
        self._writer.start()

    @classmethod
    def take(cls) -> Self:
        """Take stdin and stdout for the line; what is printed from now on goes to stderr."""
        line = cls(os.dup(1), os.dup(0))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # stderr is closed (`2>&-`)
            os.dup2(nothing, 1)
        os.close(nothing)
        return line

    def end_with_it(self, grace: float) -> None:
        """From now on: when the supervisor is gone, stop in order; after `grace` seconds, by force."""
        threading.Thread(
            target=_wait_for_the_end, args=(self._lifeline, grace), name="worker-lifeline", daemon=True
        ).start()

    def say(self, said: Said) -> None:
        """Have it written; it takes the place of what is not being written yet. Never waits."""
        with self._changed:
            self._waiting = [said]
            self._changed.notify()

    def end(self, last: Said | None = None) -> None:
        """No more is said, but for a last word; waits for a moment until all is written."""
        with self._changed:
            if last is not None:
                self._waiting.append(last)
            self._over = True
            self._changed.notify()
        self._writer.join(_LAST_WORD)

    def _write_all(self) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more: the other thread sees to that
            while (said := self._take()) is not None:
                left = memoryview(frame(said))
                while left:
                    left = left[os.write(self._out, left) :]

    def _take(self) -> Said | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over)
            return self._waiting.pop(0) if self._waiting else None


def _wait_for_the_end(lifeline: int, grace: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(_ALONE)
