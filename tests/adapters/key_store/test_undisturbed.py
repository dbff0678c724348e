"""The event loop stands still for the writer's thread while keys are entered, and never for long."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from consumer.adapters.key_store.lmdb_store import Undisturbed
from consumer.adapters.thread import OwnThread

LIMIT = 10.0


async def test_the_loop_stands_still_until_the_work_is_done() -> None:
    """Nothing runs on the loop between the moment it stands still and the end of the work."""
    thread = OwnThread("test")
    loop = asyncio.get_running_loop()
    undisturbed = Undisturbed(loop, LIMIT)
    order: list[str] = []
    standing = threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(standing.set)  # the last thing that the loop does before it stands still
        with undisturbed:
            assert standing.wait(LIMIT)
            loop.call_soon_threadsafe(order.append, "loop")
            order.append("work")

    await thread.run(work)
    await asyncio.sleep(0)
    assert order == ["work", "loop"]
    await thread.end()


async def test_work_that_takes_long_holds_the_loop_up_for_its_limit_only() -> None:
    """A disk that hangs in the middle of it must not stop the event loop."""
    thread = OwnThread("test")
    gate = threading.Event()
    undisturbed = Undisturbed(asyncio.get_running_loop(), 0.01)

    def work() -> None:
        with undisturbed:
            assert gate.wait(LIMIT)

    begun = time.monotonic()
    task = asyncio.ensure_future(thread.run(work))
    await asyncio.sleep(0.05)  # the loop is alive while the work hangs
    assert time.monotonic() - begun < LIMIT / 2
    assert not task.done()
    gate.set()
    await task
    await thread.end()


async def test_a_failure_of_the_work_lets_the_loop_go_on() -> None:
    """And it can be used again."""
    thread = OwnThread("test")
    undisturbed = Undisturbed(asyncio.get_running_loop(), LIMIT)

    def work(fails: bool) -> str:
        with undisturbed:
            if fails:
                raise ValueError("no")
            return "done"

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            await thread.run(lambda: work(True))
        assert await thread.run(lambda: work(False)) == "done"
    await thread.end()
