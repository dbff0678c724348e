"""The shell with an engine that reads no more: the guard has tripped, or a replay has read enough."""

from __future__ import annotations

import asyncio
from typing import Any

from consumer.engine.intake.admission import SLICE
from tests.engine.building import UNDECODABLE
from tests.service.driving import serve, settled, until, values
from tests.service.fakes import STEP, Process, World
from tests.service.virtual_time import now, run

BAD = 2 * SLICE
"""Enough records for what follows them to be in a block of its own: what is in the guard's block is read with it."""
GUARD: dict[str, Any] = {"dead_letter_share": 0.5, "dead_letter_sample": 20, "linger": 0.0}


def test_a_stop_of_a_guarded_process_ends_at_once_and_commits_nothing_of_what_is_open() -> None:
    """It does not wait for dead letters that will never be written."""
    world = World(p0=[*values(8), *[UNDECODABLE] * BAD, *values(50, "later")])
    process = Process(world, grace=25.0, **GUARD)

    async def scenario() -> float:
        running = asyncio.create_task(process.service.run())
        await until(lambda: len(world.processed) == 8)
        await asyncio.sleep(300.0)
        begun = now()
        process.service.request_stop()
        await running
        return now() - begun

    assert run(scenario()) < 1.0
    assert world.letters == []
    assert world.committed == {0: 8}
    assert len(process.reported("dead_letter_guard")) in (5, 6)


def test_a_guarded_process_still_polls() -> None:
    """The group must not throw it out: it polls with empty fetches, and its timer does not spin."""
    process = Process(World(p0=[UNDECODABLE] * 5000), **GUARD)

    async def scenario() -> int:
        running = asyncio.create_task(process.service.run())
        await until(lambda: bool(process.reported("dead_letter_guard")))
        before = process.pipeline.handled
        await asyncio.sleep(100.0)
        handled = process.pipeline.handled - before
        process.service.request_stop()
        await running
        return handled

    assert run(scenario()) < 400
    assert len(process.source.rooms) > 500
    assert not any(process.source.rooms[1:])
    assert process.world.letters == []


def test_a_restart_without_the_guard_reads_what_was_left_open() -> None:
    """Nothing is lost: every record is delivered or on the dead-letter topic, once."""
    world = World(p0=[*values(8), *[UNDECODABLE] * BAD, *values(50, "later")])
    first = Process(world, **GUARD)
    run(serve(first, lambda: len(world.processed) == 8))
    again = Process(world, linger=0.0)
    run(serve(again, lambda: world.committed == {0: 58 + BAD}))
    assert len(world.letters) == BAD
    assert len(world.processed) == len(set(world.processed)) == 58


def test_a_limit_is_what_is_read_and_committed() -> None:
    """Records beyond the limit that a fetch brought are ignored."""
    world = World(p0=values(50))
    process = Process(world, max_records=7, linger=0.0)
    run(serve(process, lambda: process.pipeline.enough() and len(world.processed) == 7))
    assert world.processed == [f"{n}" for n in range(7)]
    assert world.committed == {0: 7}


def test_a_pace_makes_a_replay_take_its_time() -> None:
    """Thirty events at ten a second take three seconds, less the burst at the start."""
    process = Process(World(p0=values(30)), events_per_second=10.0, linger=0.0)

    async def scenario() -> float:
        begun = now()
        await serve(process, settled(process))
        return now() - begun

    assert 2.8 - STEP <= run(scenario()) < 4.5
