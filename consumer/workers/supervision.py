"""Decide what to do when a worker joins, settles records or ends, and when a signal arrives.

Like the engine, this module is synchronous and has no clock. Each event is a method of `Supervision`; after it, the
caller asks for `commands(now)` and performs them, and asks for them again at `next_deadline()` at the latest.

The first worker starts alone. After it has joined, the others start. From then on, a worker that ends is started again
after a pause. `_exit_of` says after which ends the supervisor ends too. To stop, it asks all workers at once. Those
that are not gone by one common deadline are killed.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from consumer.engine.messages import Report
from consumer.engine.model import Backoff

RESTARTS = Backoff(base=1.0, cap=30.0)
# Seconds of life after which the next end starts a new row of ends.
LIVED = 60.0
# Ends of one worker in a row, without a record settled by any worker, after which the supervisor ends.
MAX_ENDS = 6
# Seconds that a worker may take beyond the grace, for closing down after its own deadline.
MARGIN = 1.0
# Exit codes after which a restart cannot help: each worker reads the same settings and has the same token.
SETTINGS, REFUSED = 2, 3


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start this worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class SignalWorker:
    """Send this worker a signal: SIGTERM asks it to stop, SIGKILL ends it at once."""

    worker: int
    number: signal.Signals


@dataclass(frozen=True, slots=True)
class Finish:
    """All workers are gone: end with this exit code and this reason."""

    code: int
    reason: str | None


SupervisorCommand = StartWorker | SignalWorker | Finish | Report


class WorkerState(Enum):
    """State of one worker."""

    WAITING = "waiting"
    """Waiting for the first worker to join."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    """Between an end and the next start."""
    GONE = "gone"
    """Ended, and not started again."""


ALIVE = frozenset({WorkerState.STARTING, WorkerState.RUNNING})


@dataclass(slots=True)
class WorkerRecord:
    """What `Supervision` knows about one worker."""

    number: int
    state: WorkerState = WorkerState.WAITING
    restarts: int = 0
    started_at: float = 0.0
    start_at: float = math.inf
    """When to start it, while it waits or pauses."""
    in_a_row: int = 0
    """Ends in a row, each before it had lived for `LIVED` seconds."""
    in_vain: int = 0
    """Ends since any worker last settled a record."""


class Supervision:
    """Supervises `count` workers, numbered from 1.

    `grace`: seconds that they may take to stop. `jitter` returns uniform random numbers from 0 to 1.
    """

    def __init__(self, count: int, *, grace: float, jitter: Callable[[], float]) -> None:
        self.workers: Sequence[WorkerRecord] = [WorkerRecord(number) for number in range(1, count + 1)]
        # Alone: if it cannot join (brokers away, no such topic, a bad mapping), none of the others can.
        self.workers[0].start_at = -math.inf
        self.stopping = False
        """True if no worker is started any more."""
        self._grace = grace
        self._jitter = jitter
        # True once any worker has joined.
        self._joined = False
        # What to end with once all workers are gone, and when those that are left are killed.
        self._finish = Finish(0, None)
        self._kill_at = math.inf
        self._finished = False
        self._commands: list[SupervisorCommand] = []

    def joined(self, worker: int, now: float) -> None:
        """Take note that a worker has found the cluster and its topics and joins the group."""
        one = self.workers[worker - 1]
        if one.state is WorkerState.STARTING:
            one.state = WorkerState.RUNNING
        if not self._joined:
            self._joined = True
            for other in self.workers:
                if other.state is WorkerState.WAITING:
                    other.start_at = now

    def progressed(self) -> None:
        """Take note that a worker has settled records."""
        # Any progress shows that restarts are not in vain.
        for one in self.workers:
            one.in_vain = 0

    def ended(self, worker: int, code: int, reason: str | None, now: float) -> None:
        """Take note that a worker has ended. `code`: as in `subprocess` (negative: a signal); `reason`: as reported."""
        one, reason = self.workers[worker - 1], reason or _how_it_ended(worker, code)
        if self.stopping:
            one.state = WorkerState.GONE
            # The first failure while stopping counts, if there is no other reason yet. A worker that has not installed
            # its handler is ended by our own SIGTERM: that is no failure.
            if self._finish.code == 0 and code not in (0, -signal.SIGTERM):
                self._finish = Finish(code if code in (SETTINGS, REFUSED) else 1, reason)
            return
        # A worker that lived for long was healthy: this is a new problem.
        one.in_a_row = 1 if now - one.started_at >= LIVED else one.in_a_row + 1
        one.in_vain += 1
        finish, pause = self._exit_of(one, code, reason), None
        if finish is None:
            # Full jitter, so that workers that failed for one reason do not all come back at one moment.
            pause = RESTARTS.delay(one.in_a_row, self._jitter())
            one.state, one.start_at = WorkerState.PAUSING, now + pause
        again = None if pause is None else round(pause, 3)
        self._commands.append(
            Report(
                "error",
                "worker_ended",
                {"worker": worker, "code": code, "reason": reason, "restart_seconds": again},
            )
        )
        if finish is not None:
            one.state, self._finish = WorkerState.GONE, finish
            self.stop(now)

    def stop(self, now: float) -> None:
        """Stop all workers: a signal arrived, or one ended for good. A second call changes nothing."""
        if self.stopping:
            return
        self.stopping = True
        # One deadline for all, so that the supervisor itself ends before it is killed.
        self._kill_at = now + self._grace + MARGIN
        for one in self.workers:
            if one.state in ALIVE:
                self._commands.append(SignalWorker(one.number, signal.SIGTERM))
            else:
                one.state = WorkerState.GONE

    def commands(self, now: float) -> Sequence[SupervisorCommand]:
        """Return what to do now, after an event or at the deadline."""
        for one in self.workers:
            if one.state in ALIVE and now >= self._kill_at:
                self._commands.append(
                    Report("error", "worker_killed", {"worker": one.number, "seconds": self._grace + MARGIN})
                )
                self._commands.append(SignalWorker(one.number, signal.SIGKILL))
            elif one.state in (WorkerState.WAITING, WorkerState.PAUSING) and now >= one.start_at:
                if one.state is WorkerState.PAUSING:
                    one.restarts += 1
                one.state, one.started_at = WorkerState.STARTING, now
                self._commands.append(StartWorker(one.number))
        if now >= self._kill_at:
            self._kill_at = math.inf  # once is enough
        # Only when all are gone, so that no process outlives its supervisor.
        if not self._finished and all(one.state is WorkerState.GONE for one in self.workers):
            self._finished, self._kill_at = True, math.inf
            self._commands.append(self._finish)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float:
        """Return when to ask for commands at the latest; infinity: only after an event."""
        # While stopping, no worker waits or pauses.
        pauses = [one.start_at for one in self.workers if one.state is WorkerState.PAUSING]
        return min([self._kill_at, *pauses])

    def _exit_of(self, one: WorkerRecord, code: int, reason: str) -> Finish | None:
        """Return exit code and reason if the supervisor must end; None: the worker is started again."""
        if code in (SETTINGS, REFUSED):
            return Finish(code, reason)
        # As a single process would: the first worker cannot join, so no other can.
        if not self._joined and code != 0:
            return Finish(1, reason)
        # While any worker settles records, `in_vain` is reset, and restarting the others is worth it.
        if one.in_vain >= MAX_ENDS:
            ends = f"worker {one.number} ended {one.in_vain} times and no record was settled in between"
            return Finish(1, f"{ends}; the last reason: {reason}")
        return None


def _how_it_ended(worker: int, code: int) -> str:
    if code >= 0:
        return f"worker {worker} ended with exit code {code}"
    if code == -signal.SIGKILL:
        return f"worker {worker} was killed (SIGKILL: by someone, or because memory ran out)"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"  # a real-time signal, which has no name
    return f"worker {worker} was ended by {name}"
