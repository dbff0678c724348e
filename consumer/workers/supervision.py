"""What the supervisor does when a worker joins, works or ends, and when a signal comes. It has no clock: it is told.

Theory of operation. `Supervision.handle(input, now)` gives commands, `next_deadline()` says when to feed a `Tick` at
the latest; whoever owns it performs the commands and feeds how that went, as with the core.

The first worker starts alone. If it ends before it has joined (brokers away, no such topic, a bad mapping), all end
with its exit code and its one line, as a single process would. Once it has joined, the others start.

From then on a worker that ends is started again after a pause: full jitter, longer with each end in a row, short
again once it has lived for a while. Ends that no new start mends are for whoever started us: exit code 2 (settings) and
3 (the destination refuses) stop all in order, with that code; and so does, with 1, a worker that has ended too often
while nobody settled a single record. As long as anybody makes progress, nobody is given up.

To stop, all are asked at once, and have one deadline; who is not gone by then is killed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from consumer.engine.interface import Report
from consumer.engine.policy import Backoff

RESTARTS = Backoff(base=1.0, cap=30.0)
LIVED = 60.0
"""Seconds after which an end is not one more in a row."""
MOST_ENDS = 6
"""So many ends of one worker in a row, with nothing settled by anybody meanwhile, and it is given up."""
MARGIN = 1.5
"""Seconds that a worker may take beyond the grace: it keeps to that by itself, and has to take itself down after."""
SETTINGS, REFUSED = 2, 3
_KILLED = -signal.SIGKILL
_BEFORE_IT_COULD_HEAR = -signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Begun:
    """The supervisor is ready."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker has found all that it needs, and joins the group."""

    worker: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """A worker has settled something."""

    worker: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker is gone. `code` as `subprocess` has it: below zero a signal; `reason` is what it said, if anything."""

    worker: int
    code: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A signal came. Again: nothing changes."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Input = Begun | Joined | Progressed | Ended | StopRequested | Tick


@dataclass(frozen=True, slots=True)
class Start:
    """Start this worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask this worker to stop in order (SIGTERM)."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker at once (SIGKILL)."""

    worker: int


@dataclass(frozen=True, slots=True)
class Finish:
    """All are gone: end with this exit code, and say why."""

    code: int
    reason: str | None


Command = Start | Stop | Kill | Finish | Report


class State(Enum):
    """Of one worker."""

    WAITING = "waiting"
    """For the first one to join."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    """Between an end and the next start."""
    GONE = "gone"
    """And not started again."""


ALIVE = frozenset({State.STARTING, State.RUNNING})


@dataclass(slots=True)
class Worker:
    """The books on one worker."""

    number: int
    state: State = State.WAITING
    restarts: int = 0
    started_at: float = 0.0
    start_at: float = 0.0
    """When it pauses: until then."""
    in_a_row: int = 0
    """Ends in a row, none of which came after it had lived for a while."""
    in_vain: int = 0
    """Ends since anybody made progress."""


class Supervision:
    """The books on `count` workers, numbered from 1.

    `grace`: seconds they may take to stop. `jitter` gives uniform random numbers from 0 to 1.
    """

    def __init__(self, count: int, *, grace: float, jitter: Callable[[], float]) -> None:
        self.workers: Sequence[Worker] = [Worker(number) for number in range(1, count + 1)]
        self._grace = grace
        self._jitter = jitter
        self._joined = False
        """Whether any worker ever has."""
        self._ending: _Ending | None = None
        self._commands: list[Command] = []

    @property
    def stopping(self) -> bool:
        """Whether no worker is started any more."""
        return self._ending is not None

    def handle(self, happened: Input, now: float) -> Sequence[Command]:
        """What to do now that this has happened."""
        match happened:
            case Begun() if self._ending is None:
                self._start(self.workers[0], now)
            case Joined(number):
                self._join(self._worker(number), now)
            case Progressed():
                for one in self.workers:
                    one.in_vain = 0
            case Ended():
                self._end(self._worker(happened.worker), happened, now)
            case StopRequested():
                self._stop_all(0, None, now)
            case _:  # time has passed, or it was told to stop before it had begun
                pass
        self._keep_time(now)
        commands, self._commands = self._commands, []
        return commands

    def next_deadline(self) -> float | None:
        """When to feed a `Tick` at the latest; None: only when something happens."""
        if self._ending is not None:
            return None if self._ending.killed or self._ending.finished else self._ending.kill_at
        return min((one.start_at for one in self.workers if one.state is State.PAUSING), default=None)

    def _worker(self, number: int) -> Worker:
        return self.workers[number - 1]

    # -- starting

    def _start(self, one: Worker, now: float) -> None:
        one.state, one.started_at = State.STARTING, now
        self._commands.append(Start(one.number))

    def _join(self, one: Worker, now: float) -> None:
        if one.state is State.STARTING:
            one.state = State.RUNNING
        if self._joined or self._ending is not None:
            return
        self._joined = True
        for other in self.workers:
            if other.state is State.WAITING:
                self._start(other, now)

    def _keep_time(self, now: float) -> None:
        ending = self._ending
        if ending is None:
            for one in self.workers:
                if one.state is State.PAUSING and one.start_at <= now:
                    one.restarts += 1
                    self._start(one, now)
            return
        if now >= ending.kill_at and not ending.killed:
            ending.killed = True
            for one in self.workers:
                if one.state in ALIVE:
                    self._commands += [
                        Report(
                            "error", "worker_killed", {"worker": one.number, "seconds": self._grace + MARGIN}
                        ),
                        Kill(one.number),
                    ]
        self._finish_if_all_are_gone(ending)

    # -- an end

    def _end(self, one: Worker, end: Ended, now: float) -> None:
        if self._ending is not None:
            one.state = State.GONE
            self._ending.take(end)
            return
        one.in_a_row = 1 if now - one.started_at >= LIVED else one.in_a_row + 1
        one.in_vain += 1
        verdict = self._verdict(one, end)
        if verdict is None:
            self._pause(one, end, now)
            return
        one.state = State.GONE
        self._report(one, end, None)
        self._stop_all(*verdict, now)

    def _verdict(self, one: Worker, end: Ended) -> tuple[int, str] | None:
        """With which exit code and why all end; None: the worker is started again."""
        reason = told(end)
        if end.code in (SETTINGS, REFUSED):
            return end.code, reason
        if not self._joined and end.code != 0:
            return 1, reason
        if one.in_vain >= MOST_ENDS:
            return 1, (
                f"worker {one.number} ended {one.in_vain} times and no record was settled in between; the last time: "
                f"{reason}"
            )
        return None

    def _pause(self, one: Worker, end: Ended, now: float) -> None:
        pause = RESTARTS.delay(one.in_a_row, self._jitter())
        one.state, one.start_at = State.PAUSING, now + pause
        self._report(one, end, pause)

    def _report(self, one: Worker, end: Ended, pause: float | None) -> None:
        again = None if pause is None else round(pause, 3)
        self._commands.append(
            Report(
                "error",
                "worker_ended",
                {"worker": one.number, "code": end.code, "reason": told(end), "restart_seconds": again},
            )
        )

    # -- stopping

    def _stop_all(self, code: int, reason: str | None, now: float) -> None:
        if self._ending is not None:
            return
        self._ending = _Ending(code, reason, now + self._grace + MARGIN)
        for one in self.workers:
            if one.state in ALIVE:
                self._commands.append(Stop(one.number))
            else:
                one.state = State.GONE

    def _finish_if_all_are_gone(self, ending: _Ending) -> None:
        if not ending.finished and all(one.state is State.GONE for one in self.workers):
            ending.finished = True
            self._commands.append(Finish(ending.code, ending.reason))


@dataclass(slots=True)
class _Ending:
    """All are to stop, and what the process will end with."""

    code: int
    reason: str | None
    kill_at: float
    killed: bool = False
    finished: bool = field(default=False)

    def take(self, end: Ended) -> None:
        """A worker ended as it was asked to, or otherwise: that is the exit code, if there is no other yet."""
        if self.code == 0 and end.code not in (0, _BEFORE_IT_COULD_HEAR):
            self.code = end.code if end.code in (SETTINGS, REFUSED) else 1
            self.reason = told(end)


def told(end: Ended) -> str:
    """Why a worker ended, in words."""
    if end.reason is not None:
        return end.reason
    if end.code >= 0:
        return f"worker {end.worker} ended with exit code {end.code}"
    if end.code == _KILLED:
        return f"worker {end.worker} was killed (SIGKILL: by someone, or for want of memory)"
    return f"worker {end.worker} was ended by {_name(-end.code)}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
