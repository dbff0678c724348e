"""The start of a member: from its first second until it joins its group.

Theory of operation. A start may wait for long: a large key store is read, a broker comes up last, a name is not known
yet. A member that runs would wait, too. So the page comes first and says what the start waits for, a stop ends it at
once, and an outage of the brokers is waited for: a restart would not help (CrashLoopBackOff).
Whether an error may pass is said where it is translated (`KafkaError.may_pass`). Every other one ends the process.

An attempt is short at first, so that the log soon names the cause. Each one is made with a new client, which reads
certificates again and resolves names again. Brokers that answer slowly need a longer one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import confluent_kafka
import structlog

from consumer.adapters.aws import msk
from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.cluster import describe_cluster
from consumer.adapters.thread import run_blocking
from consumer.engine.figures.outside import silence_of_brokers
from consumer.engine.figures.statistics import Statistics
from consumer.errors import KafkaError
from consumer.settings import Settings

# Seconds of the first attempt to find the brokers, of all others, and of the only one with --fail-fast.
_FIRST_ATTEMPT = 5.0
_ATTEMPT = 30.0
_FAIL_FAST = 15.0
# Seconds between two attempts: an unknown name ends an attempt at once.
_PAUSE = 1.0
# Seconds after which an error of one broker is taken for that of all: the others have had time to answer.
_SILENT_AFTER = 1.0
# Seconds after which brokers of which nothing was heard are silent: an attempt also looks for the cause.
_UNHEARD_AFTER = 8.0
_THEN = "it goes on asking until there is an answer; --fail-fast would end it instead"
# Seconds between two log lines about the same start.
_REMIND_EVERY = 300.0


@dataclass(eq=False)
class Start:
    """What a member's start waits for. `fail_fast`: it does not wait for brokers that do not answer. `find`: asks the
    brokers, once."""

    settings: Settings
    fail_fast: bool = False
    find: Callable[..., Awaitable[object]] = describe_cluster
    waits_for: str | None = "the start has begun"
    """In one line, for people; None: the start is over."""
    _asked_at: float = math.inf
    """When the brokers were asked first, by the loop's clock; infinite: they were not."""
    _heard: confluent_kafka.KafkaError | None = None
    """What went wrong last when they were asked."""
    _silent: bool = False
    """Whether that was that they do not answer."""

    def shown(self, statistics: Statistics) -> Statistics:
        """Return the figures of a member with what its start waits for."""
        if self.waits_for is None:
            return statistics
        silence, seconds = None, asyncio.get_running_loop().time() - self._asked_at
        after = _SILENT_AFTER if self._silent else _UNHEARD_AFTER if self._heard is None else math.inf
        if seconds >= after:
            why = client_errors.why_silent(self.settings.kafka.client_properties(), self._heard)
            silence = silence_of_brokers(why, seconds)
        return replace(statistics, starting=self.waits_for, brokers_silent=silence)

    async def find_topics(self) -> None:
        """Return once the brokers have named the topics.

        Raises `KafkaError` for what does not pass by itself, and `SettingsError`.
        """
        kafka = self.settings.kafka
        self.waits_for = f"the brokers have not answered yet ({kafka.bootstrap_servers})"
        self._asked_at = asyncio.get_running_loop().time()

        async def attempt(timeout: float) -> None:
            try:
                await self.find(
                    kafka.client_properties(),
                    kafka.topics,
                    timeout=timeout,
                    own_topics=self.settings.pinstream.own_topics,
                    joins=True,
                    on_error=self._hear,
                )
            except KafkaError:
                # Brokers that accept connections and say nothing cause no error of their own.
                self._silent = self._silent or self._heard is None
                raise

        await self._until_it_passes(attempt)

    async def find_token(self) -> None:
        """Return once there is a token for a login with IAM, which no client can be made without. Raises as
        `find_topics`."""
        config = self.settings.kafka.client_properties()
        if msk.asked(config):
            self.waits_for = "AWS has not answered yet: a token is needed for the login at the brokers"
            await self._until_it_passes(
                lambda _: run_blocking("pinstream-kafka-token", msk.tokens_for, config)
            )

    async def _until_it_passes(self, attempt: Callable[[float], Awaitable[object]]) -> None:
        """Make attempts until one succeeds; each gets its time limit, in seconds."""
        loop, log = asyncio.get_running_loop(), structlog.get_logger()
        begun, remind_at = loop.time(), -math.inf
        timeout = _FAIL_FAST if self.fail_fast else _FIRST_ATTEMPT
        while True:
            try:
                await attempt(timeout)
                break
            except KafkaError as error:
                if self.fail_fast or not error.may_pass:
                    raise
                self.waits_for, now = str(error), loop.time()
                if now >= remind_at:
                    remind_at = now + _REMIND_EVERY
                    log.warning("start_waits", reason=str(error), then=_THEN, seconds=round(now - begun, 3))
            timeout = _ATTEMPT
            await asyncio.sleep(_PAUSE)
        if remind_at > begun:
            log.info("start_goes_on", seconds=round(loop.time() - begun, 3))
        self.waits_for = None

    def _hear(self, error: confluent_kafka.KafkaError) -> None:
        """Take note of what goes wrong during an attempt; called in another thread."""
        if error.code() != confluent_kafka.KafkaError._ALL_BROKERS_DOWN:
            self._heard, self._silent = error, client_errors.is_of_a_broker(error)
