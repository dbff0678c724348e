"""A process that queries a group's coordinator again and again: ``python -m`` with a route and the brokers'
address.

It is a separate process, since the fault under test would end it. It prints ``answered`` after the first answer, waits
for a line (from then on the broker is away), prints ``unanswered`` after `VAIN` queries without an answer, and ends
with ``answered`` after the next answer. Its time limits are short.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from consumer.adapters.kafka import groups, replay_progress
from consumer.adapters.kafka.groups import GroupOffsets
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import open_plan
from consumer.engine.model import Position
from consumer.errors import KafkaError
from tests.support.kafka.harness import WITHIN, Kafka, Member, create_topic, unique

LIMIT: Final = 0.5
"""Seconds that each query gets."""
VAIN: Final = 4
Ask = Callable[[], Awaitable[bool]]
"""A function that queries once and returns whether an answer came."""


@asynccontextmanager
async def group_size(kafka: Kafka) -> AsyncIterator[Ask]:
    """Let a running member count the members of its group."""
    # These constants are final, but a test cannot take as long as they say.
    groups._COUNT_EVERY = LIMIT / 4  # type: ignore[misc]
    groups._COUNT_PATIENCE = LIMIT  # type: ignore[misc]
    reported: list[int] = []

    async def ask() -> bool:
        before = len(reported)
        await asyncio.sleep(2 * LIMIT)
        return len(reported) > before

    async with Member(kafka, [create_topic(kafka)], unique("group"), on_group_size=reported.append):
        yield ask


@asynccontextmanager
async def offsets(kafka: Kafka) -> AsyncIterator[Ask]:
    """Read what a group has committed and who its members are, as `pinstream offsets` and a replay's warnings do."""

    async def ask() -> bool:
        try:
            await found.view()
            await found.positions([])
        except KafkaError:
            return False
        return True

    async with GroupOffsets(kafka.config, unique("group"), LIMIT) as found:
        yield ask


@asynccontextmanager
async def progress(kafka: Kafka) -> AsyncIterator[Ask]:
    """Commit the progress of a named replay."""
    replay_progress._COMMIT_TIMEOUT = LIMIT  # type: ignore[misc]  # as above
    topic = create_topic(kafka)

    async def resolve() -> list[Range]:
        return [Range(topic, 0, 0, 10)]

    async def ask() -> bool:
        return (await kept.commit([Position(topic, 0, 1, None)])).failure is None

    plan = await open_plan(kafka.config, unique("group"), "arguments", resolve, 0.0, WITHIN)
    assert plan.progress is not None
    kept = plan.progress
    try:
        yield ask
    finally:
        await kept.close()


ROUTES: Final = {one.__name__: one for one in (group_size, offsets, progress)}


async def main(route: str, servers: str) -> None:
    """Run the route as the module says."""
    async with ROUTES[route](Kafka(servers, "real")) as ask:
        while not await ask():
            pass
        print("answered", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        vain = 0
        while vain < VAIN:  # an answer may still have come just before the broker ended
            vain = 0 if await ask() else vain + 1
        print("unanswered", flush=True)
        while not await ask():
            pass
        print("answered", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
