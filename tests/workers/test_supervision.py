"""What the supervisor does when workers end and signals come, on virtual time."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer.engine.messages import Report
from consumer.workers.supervision import (
    MARGIN,
    MAX_ENDS,
    RESTARTS,
    Finish,
    SignalWorker,
    StartWorker,
    Supervision,
    SupervisorCommand,
    WorkerState,
)

GRACE = 25.0


class World:
    """A supervision, its clock, and the processes that its commands have started."""

    def __init__(self, count: int = 3, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self.now = 100.0
        self.supervision = Supervision(count, grace=GRACE, jitter=jitter)
        self.alive: set[int] = set()
        self.reports: list[Report] = []
        self.finished: Finish | None = None

    def feed(self) -> list[SupervisorCommand]:
        """What it commands now, without log lines."""
        commands = self.supervision.commands(self.now)
        self.reports += [one for one in commands if isinstance(one, Report)]
        done: list[SupervisorCommand] = [one for one in commands if not isinstance(one, Report)]
        for one in done:
            self._perform(one)
        return done

    def joined(self, worker: int) -> list[SupervisorCommand]:
        """A worker joins the group."""
        self.supervision.joined(worker, self.now)
        return self.feed()

    def ended(self, worker: int, code: int, reason: str | None = None) -> list[SupervisorCommand]:
        """A worker ends."""
        self.alive.remove(worker)
        self.supervision.ended(worker, code, reason, self.now)
        return self.feed()

    def stop(self) -> list[SupervisorCommand]:
        """A signal arrives."""
        self.supervision.stop(self.now)
        return self.feed()

    def _perform(self, command: SupervisorCommand) -> None:
        assert self.finished is None, "nothing after the end"
        if isinstance(command, StartWorker):
            assert command.worker not in self.alive, "two processes of one worker"
            self.alive.add(command.worker)
        elif isinstance(command, SignalWorker):
            assert command.worker in self.alive
        elif isinstance(command, Finish):
            assert not self.alive
            self.finished = command

    def begin(self) -> None:
        """All workers are members of the group."""
        self.feed()
        for number in range(1, len(self.supervision.workers) + 1):
            self.joined(number)

    def wait(self) -> list[SupervisorCommand]:
        """Let the time pass until the deadline that it asked for."""
        deadline = self.supervision.next_deadline()
        assert deadline < math.inf
        self.now = max(self.now, deadline)
        return self.feed()


class TestRestarting:
    """A worker that ended is started again after a pause."""

    @pytest.mark.parametrize(
        ("code", "said", "reason"),
        [
            (0, None, "worker 2 ended with exit code 0"),
            (1, "said", "said"),
            (-signal.SIGKILL, None, "worker 2 was killed (SIGKILL: by someone, or because memory ran out)"),
        ],
    )
    def test_any_end_is_followed_by_a_restart(self, code: int, said: str | None, reason: str) -> None:
        """Also after exit code 0, because no one had asked for the end. The others go on; the log says why it ended."""
        world = World()
        world.begin()
        assert world.ended(2, code, said) == []
        assert world.alive == {1, 3}
        report = world.reports[-1]
        assert (report.level, report.event) == ("error", "worker_ended")
        assert (report.fields["code"], report.fields["reason"]) == (code, reason)
        assert world.wait() == [StartWorker(2)]
        assert world.supervision.workers[1].restarts == 1


class TestGivingUp:
    """Ends that a restart cannot help."""

    def test_restarts_without_progress_end(self) -> None:
        """No record is settled in between: the supervisor ends with code 1 and the last reason."""
        world = World(2)
        world.begin()
        for _ in range(MAX_ENDS - 1):
            assert world.ended(2, 1, "the key store is full") == []
            world.wait()
        assert world.ended(2, 1, "the key store is full") == [SignalWorker(1, signal.SIGTERM)]
        world.ended(1, 0)
        assert world.finished is not None
        assert world.finished.code == 1
        assert "the key store is full" in (world.finished.reason or "")


class TestStopping:
    """A signal: all workers are asked at once and have one deadline."""

    def test_in_order(self) -> None:
        """Workers that wait or pause are not asked, and not started any more; after the last one the supervisor
        ends with 0."""
        world = World()
        world.begin()
        world.ended(2, 1)
        assert world.stop() == [SignalWorker(1, signal.SIGTERM), SignalWorker(3, signal.SIGTERM)]
        assert world.stop() == []
        assert world.supervision.stopping
        assert world.ended(1, 0) == []
        assert world.ended(3, 0) == [Finish(0, None)]

    def test_a_worker_that_does_not_end_is_killed(self) -> None:
        """After the grace and a margin it is killed; the exit code is 1, because it did not end in order."""
        world = World(2)
        world.begin()
        asked = world.now
        world.stop()
        world.ended(1, 0)
        assert world.wait() == [SignalWorker(2, signal.SIGKILL)]
        assert world.now == asked + GRACE + MARGIN
        assert world.reports[-1].event == "worker_killed"
        assert world.supervision.next_deadline() == math.inf
        world.ended(2, -signal.SIGKILL)
        assert world.finished is not None
        assert world.finished.code == 1


class AnyOrder(RuleBasedStateMachine):
    """In any order of inputs: at most one process a worker, none after the end, and the supervisor does end."""

    @initialize(count=st.integers(1, 4), jitter=st.floats(0, 1))
    def begin(self, count: int, jitter: float) -> None:
        self.world = World(count, lambda: jitter)
        self.stopped_at: float | None = None
        self.world.feed()

    def _one(self, data: Any) -> int:
        number: int = data.draw(st.sampled_from(sorted(self.world.alive)))
        return number

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data())
    def joins(self, data: Any) -> None:
        self.world.joined(self._one(data))

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data())
    def progresses(self, data: Any) -> None:
        self.world.supervision.progressed()

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 2, 3, -9, -15]))
    def ends(self, data: Any, code: int) -> None:
        self.world.ended(self._one(data), code)

    @rule()
    def is_stopped(self) -> None:
        if self.world.finished is None:
            self.world.stop()

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        deadline = self.world.supervision.next_deadline()
        self.world.now += seconds
        if deadline <= self.world.now:
            self.world.feed()

    @invariant()
    def states_match_processes(self) -> None:
        if not hasattr(self, "world"):
            return
        workers = self.world.supervision.workers
        alive = {one.number for one in workers if one.state in (WorkerState.STARTING, WorkerState.RUNNING)}
        assert alive == self.world.alive
        if self.world.finished is None:
            # A worker lives or is to be started: it never just stands there.
            assert alive or self.world.supervision.next_deadline() < math.inf
            longest = max(
                (one.start_at - self.world.now for one in workers if one.state is WorkerState.PAUSING),
                default=0,
            )
            assert longest <= RESTARTS.cap

    def teardown(self) -> None:
        """After a stop, and with all workers gone, it ends."""
        if hasattr(self, "world") and self.world.finished is None:
            self.world.stop()
            for number in sorted(self.world.alive):
                self.world.ended(number, 0)
            assert self.world.finished is not None


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)
