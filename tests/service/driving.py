"""Runs a fake process until something holds: what the service's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.engine.building import event
from tests.service.fakes import STEP, Process, World


class AdapterFailure(Exception):
    """An error outside an adapter's Protocol."""


def values(count: int, prefix: str = "") -> list[bytes | None]:
    """Deliverable values."""
    return [event(f"{prefix}{n}") for n in range(count)]


async def until(done: Callable[[], bool], limit: float = 3600.0) -> None:
    """Wait on a condition, in virtual time."""
    async with asyncio.timeout(limit):
        while not done():
            await asyncio.sleep(STEP)


async def serve(process: Process, done: Callable[[], bool]) -> None:
    """Run until `done`, then stop."""
    running = asyncio.create_task(process.service.run())
    watching = asyncio.create_task(until(done))
    await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await watching
        process.service.request_stop()
    watching.cancel()
    await running


def all_committed(world: World) -> Callable[[], bool]:
    """Whether every record's offset is committed."""
    return lambda: all(world.committed[n] == len(log) for n, log in world.log.items())


def settled(process: Process) -> Callable[[], bool]:
    """Whether all of the log was read and is settled."""
    total = sum(map(len, process.world.log.values()))

    def done() -> bool:
        totals = process.service.statistics().totals
        return totals.read == total and not totals.open

    return done


def something_processed(process: Process) -> Callable[[], bool]:
    """Whether the API has processed an event."""
    return lambda: bool(process.world.processed)
