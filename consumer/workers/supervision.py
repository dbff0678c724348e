"""Decide what to do when a worker joins, settles records or ends, and when a signal arrives.

Like the engine, this module is synchronous and has no clock: `Supervision.handle(input, now)` returns commands, and
`next_deadline()` says when to feed a `TimePassed` at the latest. The caller performs the commands.

The first worker starts alone. After it has joined, the others start. From then on, a worker that ends is started again
after a pause. `_exit_of` says after which ends the supervisor ends too. To stop, it asks all workers at once. Those
that are not gone by one common deadline are killed.
"""

from __future__ import annotations

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
MOST_ENDS = 6
# Seconds that a worker may take beyond the grace, for closing down after its own deadline.
MARGIN = 1.5
SETTINGS, REFUSED = 2, 3
_KILLED = -signal.SIGKILL
_TERMINATED = -signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Begun:
    """The supervisor is ready."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker has found the cluster and its topics and joins the group."""

    worker: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """A worker has settled records."""

    worker: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker is gone. `code` is as in `subprocess` (negative: a signal); `reason` is its last report's, if any."""

    worker: int
    code: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StopSignalled:
    """A signal to stop arrived. A second one changes nothing."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time has passed."""


Input = Begun | Joined | Progressed | Ended | StopSignalled | TimePassed


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start this worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Ask this worker to stop (SIGTERM)."""

    worker: int


@dataclass(frozen=True, slots=True)
class KillWorker:
    """End this worker at once (SIGKILL)."""

    worker: int


@dataclass(frozen=True, slots=True)
class Finish:
    """All workers are gone: end with this exit code and this reason."""

    code: int
    reason: str | None


Command = StartWorker | StopWorker | KillWorker | Finish | Report


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
    start_at: float = 0.0
    """The end of its pause, while it pauses."""
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
        self._grace = grace
        self._jitter = jitter
        # True once any worker has joined.
        self._joined = False
        self._ending: _Ending | None = None
        self._commands: list[Command] = []

    @property
    def stopping(self) -> bool:
        """True if no worker is started any more."""
        return self._ending is not None

    def handle(self, happened: Input, now: float) -> Sequence[Command]:
        """Return the commands that follow from this input."""
        match happened:
            case Begun() if self._ending is None:
                # Alone: if it cannot join (brokers away, no such topic, a bad mapping), none of the others can.
                self._start(self.workers[0], now)
            case Joined(number):
                self._join(self.workers[number - 1], now)
            case Progressed():
                # Any progress shows that restarts are not in vain.
                for one in self.workers:
                    one.in_vain = 0
            case Ended():
                self._end(self.workers[happened.worker - 1], happened, now)
            case StopSignalled():
                self._stop_all(0, None, now)
            case _:  # time has passed, or the stop came before the begin
                pass
        # After every input, because an end may be the last one that the supervisor waits for.
        self._keep_time(now)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """When to feed a `TimePassed` at the latest; None: only when something happens."""
        if self._ending is not None:
            return None if self._ending.killed or self._ending.finished else self._ending.kill_at
        return min((one.start_at for one in self.workers if one.state is WorkerState.PAUSING), default=None)

    # -- starting

    def _start(self, one: WorkerRecord, now: float) -> None:
        one.state, one.started_at = WorkerState.STARTING, now
        self._commands.append(StartWorker(one.number))

    def _join(self, one: WorkerRecord, now: float) -> None:
        if one.state is WorkerState.STARTING:
            one.state = WorkerState.RUNNING
        if self._joined or self._ending is not None:
            return
        self._joined = True
        for other in self.workers:
            if other.state is WorkerState.WAITING:
                self._start(other, now)

    def _keep_time(self, now: float) -> None:
        ending = self._ending
        if ending is None:
            for one in self.workers:
                if one.state is WorkerState.PAUSING and one.start_at <= now:
                    one.restarts += 1
                    self._start(one, now)
            return
        # One deadline for all, so that the supervisor itself ends before it is killed.
        if now >= ending.kill_at and not ending.killed:
            ending.killed = True
            for one in self.workers:
                if one.state in ALIVE:
                    seconds = self._grace + MARGIN
                    self._commands += [
                        Report("error", "worker_killed", {"worker": one.number, "seconds": seconds}),
                        KillWorker(one.number),
                    ]
        if not ending.finished and all(one.state is WorkerState.GONE for one in self.workers):
            ending.finished = True
            self._commands.append(Finish(ending.code, ending.reason))

    # -- an end

    def _end(self, one: WorkerRecord, end: Ended, now: float) -> None:
        if self._ending is not None:
            one.state = WorkerState.GONE
            self._ending.take(end)
            return
        # A worker that lived for long was healthy: this is a new problem.
        one.in_a_row = 1 if now - one.started_at >= LIVED else one.in_a_row + 1
        one.in_vain += 1
        verdict, again = self._exit_of(one, end), None
        if verdict is None:
            # Full jitter, so that workers that failed for one reason do not all come back at one moment.
            pause = RESTARTS.delay(one.in_a_row, self._jitter())
            one.state, one.start_at, again = WorkerState.PAUSING, now + pause, round(pause, 3)
        self._commands.append(
            Report(
                "error",
                "worker_ended",
                {"worker": one.number, "code": end.code, "reason": end_reason(end), "restart_seconds": again},
            )
        )
        if verdict is not None:
            one.state = WorkerState.GONE
            self._stop_all(*verdict, now)

    def _exit_of(self, one: WorkerRecord, end: Ended) -> tuple[int, str] | None:
        """Return exit code and reason if the supervisor must end; None: the worker is started again."""
        reason = end_reason(end)
        if end.code in (SETTINGS, REFUSED):
            return end.code, reason  # a restart cannot help
        if not self._joined and end.code != 0:
            return 1, reason  # as a single process would: the first worker cannot join, so no other can
        # While any worker settles records, `in_vain` is reset, and restarting the others is worth it.
        if one.in_vain >= MOST_ENDS:
            return 1, (
                f"worker {one.number} ended {one.in_vain} times and no record was settled in between; the last reason: "
                f"{reason}"
            )
        return None

    # -- stopping

    def _stop_all(self, code: int, reason: str | None, now: float) -> None:
        if self._ending is not None:
            return
        self._ending = _Ending(code, reason, now + self._grace + MARGIN)
        for one in self.workers:
            if one.state in ALIVE:
                self._commands.append(StopWorker(one.number))
            else:
                one.state = WorkerState.GONE


@dataclass(slots=True)
class _Ending:
    """All workers are being stopped: exit code and reason of the supervisor."""

    code: int
    reason: str | None
    kill_at: float
    killed: bool = False
    finished: bool = False

    def take(self, end: Ended) -> None:
        """Take over the exit code of a worker that failed while stopping, if there is no other yet."""
        # A worker that has not installed its handler yet is ended by our own SIGTERM: that is no failure.
        if self.code == 0 and end.code not in (0, _TERMINATED):
            self.code = end.code if end.code in (SETTINGS, REFUSED) else 1
            self.reason = end_reason(end)


def end_reason(end: Ended) -> str:
    """Return why a worker ended, for a message."""
    if end.reason is not None:
        return end.reason
    if end.code >= 0:
        return f"worker {end.worker} ended with exit code {end.code}"
    if end.code == _KILLED:
        return f"worker {end.worker} was killed (SIGKILL: by someone, or because memory ran out)"
    try:
        name = signal.Signals(-end.code).name
    except ValueError:
        name = f"signal {-end.code}"
    return f"worker {end.worker} was ended by {name}"
