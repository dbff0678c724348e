"""Asks Pinterest a few times a day what it sees of our events, with a token that may read.

Theory of operation. Each process asks for itself: four calls a day for each ad account are no load, and no member
depends on another one. The questions have a client of their own, so that they never wait for a connection of the
delivery, and it never for theirs. A question without an answer is logged once, until there is an answer again; the last
answer is shown on. Nothing else follows from it.

The first question is asked some minutes after the start, and each time is drawn at random: members that start together
do not ask together, and a process that starts again and again asks nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from consumer import __version__
from consumer.adapters.account_reads import AccountReads, NotKnown
from consumer.adapters.conversions_api import ConversionsApi, Token
from consumer.app import building
from consumer.engine.figures.quality import AccountQuality, EventQuality
from consumer.engine.figures.statistics import Statistics
from consumer.settings import Settings
from consumer.settings.values import SecretFile

# Seconds until the first question, from one to the next, and to the next after one without an answer; and the share
# of them by which a time may be earlier or later.
_FIRST, _EVERY, _AGAIN, _JITTER = 180.0, 6 * 3600.0, 3600.0, 0.3
# Seconds between two checks of the group: the largest number of members within the last minute is counted.
_CHECK_EVERY = 30.0
# Seconds of a call at most.
_TIMEOUT = 30.0


def account_reads(settings: Settings) -> AccountReads | None:
    """Return what asks with PINTEREST_READ_TOKEN; None: it is not set. Raises `SettingsError`."""
    given, account = settings.pinterest.read_token, settings.pinterest.ad_account_ids[0]
    if given is None:
        return None
    token = building.token_file(given) if isinstance(given, SecretFile) else Token(given.get_secret_value())
    timeout, agent = min(_TIMEOUT, settings.pinstream.request_timeout), f"pinstream/{__version__}"
    way, url = building.network(settings), settings.pinterest.api_url
    return AccountReads(
        ConversionsApi(url, token, account=account, timeout=timeout, concurrency=1, agent=agent, network=way)
    )


class QualityWatch:
    """Asks as long as it is open. `figures`: those of this process."""

    def __init__(self, settings: Settings, reads: AccountReads, figures: Callable[[], Statistics]) -> None:
        self._reads, self._figures, self._workers = reads, figures, settings.workers
        # In test mode Pinterest records nothing. With a shared key store members are not counted.
        self._compares = not settings.pinterest.test_mode and building.quota_members(settings) > 0
        self._answers = {
            one: AccountQuality(one, None, None, ()) for one in settings.pinterest.ad_account_ids
        }
        # By the loop's clock: when it was answered last, and since when this process and the other workers have been
        # all of the group; infinite: they are not.
        self._answered_at, self._whole_since = 0.0, float("inf")
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ask no more, and close the connection."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reads.api.close()

    def quality(self) -> EventQuality:
        """Return what Pinterest said last."""
        whole_for = max(0.0, self._answered_at - self._whole_since) if self._compares else None
        return EventQuality(tuple(self._answers.values()), whole_for)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _drawn(_FIRST)
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            figures = self._figures()
            whole = figures.joined and figures.quota_members <= self._workers
            self._whole_since = min(self._whole_since, loop.time()) if whole else float("inf")
            if loop.time() >= due:
                known = [await self._ask(account) for account in self._answers]
                due = loop.time() + _drawn(_EVERY if all(known) else _AGAIN)

    async def _ask(self, account: str) -> bool:
        """Ask once about an account; return whether there was an answer."""
        before = self._answers[account]
        try:
            scores = await self._reads.scores(account)
        except NotKnown as error:
            self._answers[account] = replace(before, problem=str(error))
            if before.problem is None:
                structlog.get_logger().warning("event_quality_not_known", account=account, reason=str(error))
            return False
        self._answers[account] = AccountQuality(account, int(time.time()), None, scores)
        self._answered_at = asyncio.get_running_loop().time()
        return True


def _drawn(seconds: float) -> float:
    return seconds * random.SystemRandom().uniform(1 - _JITTER, 1 + _JITTER)
