"""A bounded run ends when all records are settled, and reports how it ended; on virtual time, over the
service's fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from consumer.commands.replay.bounded_run import Ran, ReplayEnd, run_to_end
from consumer.engine import messages as m
from consumer.engine.model import Chunk, TopicPartition
from consumer.errors import KafkaError
from consumer.service import Service
from tests.engine.building import TOPIC, event, filtered, unconvertible
from tests.service.driving import AdapterFailure, until, values
from tests.service.fakes import Answering, FakeSource, Process, World
from tests.service.virtual_time import run


class FiniteFake(FakeSource):
    """The fake source, which is done at the end of the log."""

    held: asyncio.Event | None = None
    """Set up and not set: fetches with room wait for it. None: they do not wait."""
    waiting = False

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        if self.held is not None and room:
            self.waiting = True
            await self.held.wait()
        return await super().fetch(room, timeout)

    @property
    def done(self) -> bool:
        return bool(self.positions) and all(
            self.positions[one] >= len(log) for one, log in self._world.log.items()
        )

    def figures(self) -> Mapping[TopicPartition, int]:
        return {TopicPartition(TOPIC, one): at for one, at in self.positions.items()}


class Bounded(Process):
    """A process whose source ends."""

    source: FiniteFake

    def _connect(self, listener: Service) -> FiniteFake:
        self.source = FiniteFake(self, listener)
        return self.source

    async def replay(self) -> Ran:
        """Run the process to its end."""
        self.checks = 0

        def check() -> None:
            self.checks += 1

        return await run_to_end(self.service, self.source, check)


def replay(world: World, **policy: Any) -> tuple[Bounded, Ran]:
    """Return the process and the result of one bounded run over `world`."""

    async def main() -> tuple[Bounded, Ran]:
        process = Bounded(world, **policy)
        return process, await process.replay()

    return run(main())


def test_it_ends_when_all_is_settled() -> None:
    """All records are delivered, filtered or dead-lettered and committed; progress was shown meanwhile."""
    world = World(p0=values(50), p1=[event("a"), filtered(), unconvertible(), event("a"), None])
    process, ran = replay(world)
    totals = ran.statistics.totals
    assert (ran.end, totals.read, totals.open, totals.released) == (ReplayEnd.COMPLETE, 55, 0, 0)
    assert (totals.delivered, totals.duplicate, totals.filtered, totals.dead_lettered) == (51, 1, 2, 1)
    assert world.committed == {0: 50, 1: 5}
    assert process.checks > 1
    assert ran.seconds >= 0


@pytest.mark.parametrize(
    ("records", "limit", "end"),
    [
        (100, 1, ReplayEnd.LIMITED),
        (100, 64, ReplayEnd.LIMITED),
        (100, 99, ReplayEnd.LIMITED),
        (10, 21, ReplayEnd.COMPLETE),
        (0, 1, ReplayEnd.COMPLETE),
    ],
)
def test_a_limit_is_kept_to_the_record(records: int, limit: int, end: ReplayEnd) -> None:
    """Exactly `limit` records are read and settled, although more were fetched; fewer are the whole range."""
    world = World(p0=values(records), p1=values(records, "other-"))
    _, ran = replay(world, max_records=limit)
    totals, number = ran.statistics.totals, min(limit, 2 * records)
    assert (ran.end, totals.read, totals.delivered, totals.open) == (end, number, number, 0)
    assert sum(world.committed.values()) == number


def test_a_small_budget_holds_records_and_still_ends() -> None:
    """Records that were fetched but do not fit a small budget are still delivered before the run ends."""
    _, ran = replay(World(p0=values(200)), max_open_events=8, batch_events=4)
    assert (ran.end, ran.statistics.totals.delivered) == (ReplayEnd.COMPLETE, 200)


def test_a_stop_drains_the_run_and_is_reported() -> None:
    """Records in flight are settled, the others released; a second run delivers the rest."""
    world = World(p0=values(500))

    async def main() -> Ran:
        process = Bounded(world, max_open_events=50, batch_events=10)
        running = asyncio.create_task(process.replay())
        await until(lambda: len(world.processed) > 100)
        process.service.request_stop()
        return await running

    ran = run(main())
    totals = ran.statistics.totals
    assert ran.end is ReplayEnd.INTERRUPTED
    assert totals.open == 0
    assert totals.read == totals.delivered == len(world.processed) < 500
    _, rest = replay(world)
    assert rest.end is ReplayEnd.COMPLETE
    assert sorted(world.processed) == sorted(f"{n}" for n in range(500))


def test_a_stop_at_the_very_end_interrupts_nothing() -> None:
    """A run that is stopped after all records are settled is complete."""
    world = World(p0=values(20))

    async def main() -> Ran:
        process = Bounded(world)
        running = asyncio.create_task(process.replay())
        await until(lambda: process.source.done and process.service.statistics().totals.delivered == 20)
        process.service.request_stop()
        return await running

    assert run(main()).end is ReplayEnd.COMPLETE


def test_the_guard_ends_it() -> None:
    """The run ends as soon as the guard trips, since no operator watches it, and releases what is open."""
    world = World(p0=[unconvertible() for _ in range(1000)])
    _, ran = replay(world, dead_letter_share=0.5, dead_letter_sample=20)
    assert ran.end is ReplayEnd.GUARDED
    assert ran.statistics.guard is not None
    assert ran.statistics.totals.open == 0
    assert len(world.letters) < 1000
    assert world.committed[0] == len(world.letters)


def test_a_bug_is_raised() -> None:
    """An exception that is no `PinstreamError` is raised, and no task is left running."""

    async def main() -> None:
        process = Bounded(World(p0=values(10)))
        process.broken["fetch"] = AdapterFailure("a fetch")
        with pytest.raises(AdapterFailure):
            await process.replay()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_a_failure_outside_is_reported_with_the_figures_up_to_then() -> None:
    """If Kafka fails in the middle, the result has the failure and what was delivered before it."""
    world = World(p0=values(500))

    async def main() -> Ran:
        process = Bounded(world, max_open_events=50, batch_events=10)
        running = asyncio.create_task(process.replay())
        await until(lambda: len(world.processed) > 100)
        process.broken["fetch"] = KafkaError("gone")
        return await running

    ran = run(main())
    assert (ran.end, str(ran.failure)) == (ReplayEnd.FAILED, "gone")
    assert ran.statistics.totals.delivered > 0


def test_a_chunk_that_comes_while_it_stops_is_not_done() -> None:
    """The run is interrupted, although the source is done."""
    world = World(p0=values(60))

    async def main() -> Ran:
        process = Bounded(world)
        process.api.answering = slowly(process)
        running = asyncio.create_task(process.replay())
        await until(lambda: process.api.in_flight > 0)
        process.source.held = asyncio.Event()
        await until(lambda: process.source.waiting)
        world.log[0] += values(5, "late-")
        process.service.request_stop()
        process.source.held.set()
        await until(lambda: process.source.done)
        return await running

    ran = run(main())
    assert ran.end is ReplayEnd.INTERRUPTED
    assert ran.statistics.totals.released == 5


def slowly(process: Bounded) -> Answering:
    """Return answers that take longer than the next fetch."""

    async def answer(command: m.Send) -> m.Answered:
        await asyncio.sleep(6.0)
        return await process.api.accept(command)

    return answer
