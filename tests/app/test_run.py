"""A member that is stopped, or cancelled, at each step of its start and of its work."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumer.app import run
from consumer.app.run import Member
from consumer.app.start import Start
from consumer.errors import KafkaError
from consumer.settings import Settings
from tests.service import virtual_time
from tests.settings.environment import with_
from tests.web.building import empty

STEPS = 15
"""Turns of the loop: more than a start takes that waits for nothing."""


class Opened:
    """A member, what became of the one part that it opens, and its service."""

    def __init__(self, settings: Settings, refusal: KafkaError | None) -> None:
        self.log: list[str] = []
        self._refusal = refusal
        self._asked = asyncio.Event()
        no_pipeline: Any = None
        self.member = Member(Start(settings, find=self._find), no_pipeline, self._open)

    async def _open(self) -> Any:
        await asyncio.sleep(0)
        self.log.append("opened")
        self.member.parts.add("the part", self._close)
        await asyncio.sleep(0)
        return self

    async def _close(self) -> None:
        self.log.append("closed")

    async def _find(self, *_: object, **__: object) -> None:
        try:
            await asyncio.sleep(0)
        finally:  # also if it is cancelled, as a client's error may come with that
            if self._refusal is not None:
                raise self._refusal

    def request_stop(self) -> None:
        """See `Service`."""
        self._asked.set()

    async def run(self) -> None:
        """See `Service`."""
        self.log.append("joined")
        await self._asked.wait()
        self.log.append("left")

    def statistics(self) -> Any:
        """See `Service`."""
        return empty()


@pytest.mark.parametrize("refusal", [None, KafkaError("Kafka: the broker refused the login")])
@pytest.mark.parametrize("cancels", [False, True], ids=["stopped", "cancelled"])
def test_an_end_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: KafkaError | None, *, cancels: bool
) -> None:
    """What was opened is closed, what was joined is left, nothing goes on afterwards, and no error is lost."""
    monkeypatch.setattr(run, "tune_memory", lambda: None)
    settings = with_(HOME=str(tmp_path))
    lost: list[Any] = []

    async def ended(turns: int) -> tuple[list[str], BaseException | None]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        others = asyncio.all_tasks()
        opened = Opened(settings, refusal)
        async with opened.member.parts:
            serving = asyncio.create_task(opened.member.serve())
            for _ in range(turns):
                await asyncio.sleep(0)
            act: Callable[[], object] = serving.cancel if cancels else opened.member.stop
            act()
            await asyncio.wait((serving,))
        assert asyncio.all_tasks() == others
        return opened.log, None if serving.cancelled() else serving.exception()

    seen = set()
    for turns in range(STEPS):
        log, error = virtual_time.run(ended(turns))
        assert log.count("opened") == log.count("closed")
        assert log.count("joined") == log.count("left") or cancels
        assert error is None or (error is refusal and "opened" in log)
        seen.add((*log, error))
    gc.collect()  # the loop hears now of errors of tasks that were not asked for
    assert lost == []
    assert len(seen) > 1
