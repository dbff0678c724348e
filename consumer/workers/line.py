"""A worker's process, and the pipes between it and its supervisor: reports one way, and end of file both ways.

A worker's stdin and stdout are pipes to the supervisor. On stdout it writes frames: a length, then a pickled
`WorkerReport`. The end of stdin means that the supervisor is gone: the worker then stops.
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
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Self

from consumer.adapters.thread import OwnThread
from consumer.engine.figures.statistics import Statistics
from consumer.errors import PinstreamError

# Seconds between two reports of a worker: its heartbeat.
REPORT_EVERY = 0.5
_LENGTH = struct.Struct(">I")
# Bytes that the supervisor reads ahead.
_BUFFER = 1024 * 1024
# Maximum size of a frame. A snapshot has about ten thousand bytes.
MAX_FRAME_BYTES = 64 * 1024 * 1024
# Seconds that writing the last frame of a worker may take.
_LAST_WORD = 2.0
# Exit code of a worker that did not stop within its grace after its supervisor was gone.
_ALONE = 70


class WorkerReport(NamedTuple):
    """What a worker reports to its supervisor."""

    statistics: Statistics | None = None
    """None: they could not be read, or the worker ended before it had any."""
    unhealthy: str | None = None
    """Why its health check fails; None: it is healthy."""
    error: str | None = None
    """Why the worker ends, if it was not asked to."""


def frame(said: WorkerReport) -> bytes:
    """Encode a report as it is sent through the pipe."""
    body = pickle.dumps(said, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def hear(reader: asyncio.StreamReader | None) -> WorkerReport | None:
    """Read a worker's next report; None: there are no more. Raises `PinstreamError` for an invalid frame."""
    if reader is None:
        return None
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        # Something else was written to the pipe: its bytes are no length.
        if length > MAX_FRAME_BYTES:
            raise PinstreamError("a worker's report cannot be read; please report this bug")
        # Pickle is safe here: both ends are the same program, and no other process has the pipe.
        said = pickle.loads(await reader.readexactly(length))  # noqa: S301
    except asyncio.IncompleteReadError:  # the worker was killed while it wrote
        return None
    return said if isinstance(said, WorkerReport) else None


@dataclass(eq=False)
class WorkerProcess:
    """One process of a worker, from its start to its end."""

    said: WorkerReport | None = None
    """Its latest report."""
    heard_at: float = field(default_factory=time.monotonic)
    """When the latest report came; before the first one, the start: a new worker has as long for its first report."""
    error: str | None = None
    """Why it ended, if it was not asked to."""
    pid: int | None = None
    """None: there is no process yet."""
    _process: asyncio.subprocess.Process | None = None
    # A signal that was sent before the process existed.
    _wanted: signal.Signals | None = None

    async def live(self, arguments: Sequence[str], hears: Callable[[WorkerReport], None]) -> int:
        """Run the process to its end. Return its exit code."""
        # In a session of its own, so that Ctrl-C in the terminal reaches only the supervisor.
        process = self._process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_BUFFER,
        )
        self.pid = process.pid
        if self._wanted is not None:
            self.send(self._wanted)
        try:
            while (said := await hear(process.stdout)) is not None:
                hears(said)
        except Exception:  # without reports it cannot be supervised: end it
            self.send(signal.SIGKILL)
            await process.wait()
            raise
        return await process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, as soon as there is a process."""
        if self._process is None:
            self._wanted = number
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


class ReportLine:
    """The worker's end of the pipes. It owns `out` and `lifeline`, two file descriptors."""

    def __init__(self, out: int, lifeline: int) -> None:
        self._out = out
        self._lifeline = lifeline
        # The report that the thread will write next.
        self._next: WorkerReport | None = None
        self._lock = threading.Lock()
        # A thread of its own writes: a supervisor that does not read must not block the worker's event loop.
        self._writer = OwnThread("worker-line")
        # A child that a function of the user forks must not keep the pipe open: its end tells the supervisor that the
        # worker has ended.
        os.register_at_fork(after_in_child=partial(_close_in_child, weakref.ref(self)))

    @classmethod
    def take(cls) -> Self:
        """Take over stdin and stdout; from now on, print writes to stderr."""
        line = cls(os.dup(1), os.dup(0))
        # Replace both descriptors, so that nothing else in this process uses the pipes by mistake.
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)
        return line

    def end_with_it(self, grace: float) -> None:
        """Stop this process when the supervisor is gone: by SIGTERM, and after `grace` seconds by force."""
        # Also a thread: the event loop may be what hangs.
        OwnThread("worker-lifeline").begin(partial(_wait_for_the_end, self._lifeline, grace))

    def say(self, said: WorkerReport) -> None:
        """Queue `said` for writing, in place of a report that is still queued. Never waits."""
        with self._lock:
            # Only the latest report matters. If the supervisor is slow to read, older ones are dropped.
            waits, self._next = self._next is not None, said
        if not waits:
            self._writer.begin(self._write_next)

    def end(self, last: WorkerReport | None = None) -> None:
        """Write the queued report and `last`, then end; wait at most `_LAST_WORD` seconds."""
        if last is not None:
            self._writer.begin(partial(self._write, last))
        self._writer.stop()
        self._writer.join(_LAST_WORD)

    def _write_next(self) -> None:
        with self._lock:
            said, self._next = self._next, None
        # Without the lock: the pipe may be full, and `say` must not wait for the supervisor.
        if said is not None:
            self._write(said)

    def _write(self, said: WorkerReport) -> None:
        left = memoryview(frame(said))
        with contextlib.suppress(OSError):  # the supervisor is gone: the other thread notices it too
            while left:
                left = left[os.write(self._out, left) :]


def _close_in_child(line: weakref.ref[ReportLine]) -> None:
    if (one := line()) is not None:
        os.close(one._out)


def _wait_for_the_end(lifeline: int, grace: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    # If the event loop hangs, the signal has no effect. No member may outlive its supervisor.
    os._exit(_ALONE)
