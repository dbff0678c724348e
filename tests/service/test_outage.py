"""The API is down for ten minutes, on virtual time: a full budget, few calls, and then everything, once.

Theory of operation. `CallOutage` stands between the service and the fake API: from `BEGIN` on, for `LENGTH` seconds, it
fails every call in one way, and afterwards lets all through. A watcher looks twice a second at what must hold: the
budget is kept, what is read stands still, nothing is committed past, the group is polled all the same, and neither
tasks nor claims pile up. The log is ten times the budget, so that there is always more to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Backoff
from tests.engine.building import event, event_ids
from tests.service.driving import all_committed, until, values
from tests.service.fakes import Process, World
from tests.service.virtual_time import START, now, run

LENGTH = 600.0
BEGIN = START + 0.5
END = BEGIN + LENGTH
BATCH, CONCURRENCY, BUDGET = 10, 4, 100
RECORDS = 10 * BUDGET
POLICY: dict[str, Any] = {
    "batch_events": BATCH,
    "concurrency": CONCURRENCY,
    "max_open_events": BUDGET,
    "linger": 0.05,
    "commit_interval": 0.2,
}
BACKOFF = Backoff()
GRACE = 25.0
FILLING = 2.0
"""Seconds within which the budget fills up."""
HEALING = BACKOFF.cap + 10.0
"""Seconds after the outage within which everything is delivered: the longest delay, and the work itself."""
MAX_CALLS = (BUDGET // BATCH) * int(LENGTH / (BACKOFF.cap / 2) + 6) * 3 // 2
"""Each open batch is tried every 15 seconds on average (half of the cap, full jitter), and six times before the
backoff reaches it: 46 calls a batch. Half as many more are allowed, because delays are random."""

Failure = Callable[[m.Send], Coroutine[Any, Any, m.Answered | m.Unanswered]]


async def refused(command: m.Send) -> m.Unanswered:
    """Nothing listens."""
    return m.Unanswered(command.number, "connect")


async def silent(command: m.Send) -> m.Unanswered:
    """The call times out."""
    await asyncio.sleep(30.0)
    return m.Unanswered(command.number, "timeout")


async def unavailable(command: m.Send) -> m.Answered:
    """A gateway answers 503."""
    return m.Answered(command.number, 503, {}, b"no healthy upstream")


async def throttling(command: m.Send) -> m.Answered:
    """Every call is answered with 429."""
    return m.Answered(command.number, 429, {"retry-after": "20"}, b"{}")


class CallOutage:
    """Fails the calls of one process from `BEGIN` to `END`."""

    def __init__(self, process: Process, failure: Failure) -> None:
        self._accept = process.api.answering
        self._failure = failure
        self._api = process.api
        self.calls: list[tuple[float, list[str]]] = []
        """When each failed call was made, and the events in it."""
        self.at_once: list[tuple[float, int]] = []
        """When each call was made, and how many were in flight then."""
        process.api.answering = self.answer

    async def answer(self, command: m.Send) -> m.Answered | m.Unanswered:
        self.at_once.append((now(), self._api.in_flight))
        if not BEGIN <= now() < END:
            return await self._accept(command)
        self.calls.append((now(), event_ids(command)))
        return await self._failure(command)


class Watcher:
    """What a process shows, twice a second."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.read: list[int] = []
        """How much was read, in each sample from `FILLING` seconds after the beginning of the outage until its end."""
        self.committed: list[int] = []
        """The sum of the committed offsets in the same samples."""
        self.max_tasks = 0
        self.states: set[str] = set()

    async def watch(self) -> None:
        """Take samples until cancelled."""
        while True:
            self._check()
            await asyncio.sleep(0.5)

    def _check(self) -> None:
        statistics = self._process.service.statistics()
        world = self._process.world
        assert statistics.totals.open <= BUDGET
        assert statistics.claims <= BUDGET
        assert sum(world.committed.values()) <= len(world.processed)
        self.max_tasks = max(self.max_tasks, len(asyncio.all_tasks()))
        self.states.add(statistics.destination)
        if BEGIN + FILLING <= now() < END:
            assert statistics.totals.open == BUDGET
            assert statistics.room == 0
            self.read.append(statistics.totals.read)
            self.committed.append(sum(world.committed.values()))


def a_process() -> Process:
    """A process with ten times its budget to read, on two partitions."""
    world = World(p0=values(RECORDS // 2), p1=values(RECORDS // 2, "x"))
    return Process(world, grace=GRACE, **POLICY)


async def live_through(process: Process, watcher: Watcher, done: Callable[[], bool]) -> tuple[float, float]:
    """Serve until `done`, then stop; return how long each took, in virtual seconds."""
    running = asyncio.create_task(process.service.run())
    watching = asyncio.create_task(watcher.watch())
    waiting = asyncio.create_task(until(done))
    await asyncio.wait({running, watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
    done_at = now()
    watching.cancel()
    await asyncio.wait({watching})
    if not watching.cancelled():
        watching.result()
    process.service.request_stop()
    await running
    waiting.result()
    return done_at - START, now() - done_at


@pytest.mark.parametrize("failure", [refused, silent, unavailable, throttling])
def test_ten_minutes_without_the_api(failure: Failure) -> None:
    """Intake pauses at the budget, calls become rare and go one at a time with the same batches, and everything is
    delivered and committed, once, afterwards."""
    process = a_process()
    outage, watcher = CallOutage(process, failure), Watcher(process)
    took, _ = run(live_through(process, watcher, all_committed(process.world)))

    assert len(watcher.read) > LENGTH, "two looks a second at a process that waits"
    assert len(set(watcher.read)) == len(set(watcher.committed)) == 1, "it stood still"
    assert watcher.max_tasks <= CONCURRENCY + 20
    assert 10 < len(outage.calls) <= MAX_CALLS
    assert process.calls.count("fetch") > LENGTH * 5, "the group was polled all the time"
    assert took < END - START + HEALING
    if failure is silent:  # the first calls all run into their time-out; then the pace is down to one
        during = [count for at, count in outage.at_once if BEGIN + 2 * 30.0 < at < END]
        assert (len(during) > 10, set(during)) == (True, {1})
        assert max(count for at, count in outage.at_once if at > END) == CONCURRENCY
    if failure is refused:  # the same events travel together again
        batches = {tuple(ids) for _, ids in outage.calls}
        assert (len(batches), len({one for ids in batches for one in ids})) == (BUDGET // BATCH, BUDGET)

    expected = [f"{prefix}{n}" for prefix in ("", "x") for n in range(RECORDS // 2)]
    assert sorted(process.world.processed) == sorted(expected)
    totals = process.pipeline.ledger.totals()
    assert (totals.read, totals.delivered, totals.open) == (RECORDS, RECORDS, 0)
    assert not process.world.letters


@pytest.mark.parametrize("failure", [refused, silent])
def test_stopped_in_the_middle_of_it(failure: Failure) -> None:
    """A stop in the tenth minute ends within the grace; what was not delivered is not committed, and the next
    process delivers it."""
    process = a_process()
    CallOutage(process, failure)
    took, stopping = run(live_through(process, Watcher(process), lambda: now() > END - 60.0))
    assert took < END - START - 59.0
    assert stopping <= GRACE
    assert process.source.closed
    delivered = len(process.world.processed)
    assert 0 < delivered < RECORDS - BUDGET
    assert sum(process.world.committed.values()) == delivered

    after = Process(process.world, **POLICY)
    run(live_through(after, Watcher(after), all_committed(process.world)))
    assert len(process.world.processed) == len(set(process.world.processed)) == RECORDS


def test_a_budget_in_bytes_holds_as_well() -> None:
    """With large events the bytes run out first; everything else is the same."""
    padding = "a" * 1000
    world = World(p0=[event(str(n), text=padding) for n in range(200)])
    maximum = 64 * 1024
    process = Process(world, **{**POLICY, "max_open_bytes": maximum, "batch_bytes": maximum})
    outage = CallOutage(process, refused)
    seen: list[int] = []

    async def check() -> None:
        while True:
            seen.append(process.service.statistics().open_bytes)
            await asyncio.sleep(0.5)

    async def scenario() -> None:
        running, checking = asyncio.create_task(process.service.run()), asyncio.create_task(check())
        await until(all_committed(world))
        checking.cancel()
        process.service.request_stop()
        await running

    run(scenario())
    assert maximum * 0.8 < max(seen) <= maximum
    assert outage.calls
    assert sorted(world.processed, key=int) == [str(n) for n in range(200)]
