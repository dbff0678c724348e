"""What a start waits for and what ends it, on virtual time."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from structlog.testing import capture_logs

from consumer.app.start import Start
from consumer.errors import KafkaError, PinstreamError, SettingsError
from consumer.settings import Settings
from consumer.web.health import why_not_ready
from tests.service import virtual_time
from tests.settings.environment import with_
from tests.web.building import empty

AWAY = KafkaError("Kafka: no broker answered at b:9092 within 5 s", may_pass=True)
FINAL = KafkaError("Kafka: the broker refused the login")
REFUSED = confluent_kafka.KafkaError(
    confluent_kafka.KafkaError._TRANSPORT,
    "b:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)",
)


class Brokers:
    """Brokers that are away until `until`, in virtual seconds from the first question; then `outcome` is raised.

    `said`: what librdkafka reports of them meanwhile.
    """

    def __init__(
        self,
        until: float,
        outcome: PinstreamError | None = None,
        said: confluent_kafka.KafkaError | None = REFUSED,
    ) -> None:
        self._said = said
        self._until = until
        self._outcome = outcome
        self._first: float | None = None
        self.limits: list[float] = []

    async def find(
        self,
        _config: object,
        _topics: object,
        *,
        timeout: float,
        on_error: Callable[[confluent_kafka.KafkaError], None],
        **_: Any,
    ) -> None:
        """Answer as `describe_cluster` does."""
        self.limits.append(timeout)
        now = virtual_time.now()
        self._first = now if self._first is None else self._first
        left = self._first + self._until - now
        if left > 0:
            if self._said is not None:
                on_error(self._said)
            on_error(confluent_kafka.KafkaError(confluent_kafka.KafkaError._ALL_BROKERS_DOWN, "1/1 are down"))
            await asyncio.sleep(min(left, timeout))
            if left > timeout:
                raise AWAY
        if self._outcome is not None:
            raise self._outcome


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The least that `run` needs."""
    return with_(HOME=str(tmp_path), KAFKA_BOOTSTRAP_SERVERS="b:9092")


def start(settings: Settings, brokers: Brokers, *, fail_fast: bool = False) -> tuple[Start, list[Any]]:
    """Let a start find its topics on virtual time; return it and what it logged."""
    one = Start(settings, fail_fast, brokers.find)
    with capture_logs() as lines:
        virtual_time.run(one.find_topics())
    return one, lines


def test_a_start_waits_for_hours_and_says_so_now_and_then(settings: Settings) -> None:
    """The first line comes with the first attempt that fails, then one in five minutes, and one when it goes on."""
    one, lines = start(settings, Brokers(until=2 * 3600))
    waits = [line for line in lines if line["event"] == "start_waits"]
    assert [line for line in lines if line not in waits] == [
        {"event": "start_goes_on", "log_level": "info", "seconds": 7200}
    ]
    assert {(line["log_level"], line["reason"]) for line in waits} == {("warning", str(AWAY))}
    assert all("goes on asking" in line["then"] and "--fail-fast" in line["then"] for line in waits)
    seconds = [line["seconds"] for line in waits]
    assert seconds[0] == 5
    assert all(300 <= after - before <= 332 for before, after in itertools.pairwise(seconds))
    assert len(seconds) > 7200 / 332
    assert one.waits_for is None


@pytest.mark.parametrize(("until", "limits", "lines"), [(0, [5.0], 0), (20, [5.0, 30.0], 2)])
def test_later_attempts_leave_slow_brokers_more_time(
    settings: Settings, until: float, limits: list[float], lines: int
) -> None:
    """A first answer may take longer than the first attempt, which is short so that the cause is soon logged. Brokers
    that are there are asked once, and nothing is logged about it."""
    brokers = Brokers(until)
    one, logged = start(settings, brokers)
    assert (one.waits_for, brokers.limits, len(logged)) == (None, limits, lines)


def test_what_it_waits_for_is_known_at_every_moment(settings: Settings) -> None:
    """First which brokers are asked. After a second, in which another may answer, the latest error of one, in the words
    that a running member has for it."""

    async def watch(brokers: Brokers) -> list[str | None]:
        one = Start(settings, find=brokers.find)

        def seen() -> str | None:
            return why_not_ready(one.shown(replace(empty(), joined=False)))

        ready = [seen()]
        task = asyncio.create_task(one.find_topics())
        await asyncio.sleep(0)
        for seconds in (0.0, 1.0, 8.0):
            await asyncio.sleep(seconds)
            ready.append(seen())
        await task
        assert one.shown(empty()) == empty()
        return ready

    asked = "the brokers have not answered yet (b:9092)"
    refused = "The brokers do not answer (b:9092, connection refused) for"
    assert virtual_time.run(watch(Brokers(until=60))) == [
        "the start has begun",
        asked,
        *(f"{refused} {seconds} s" for seconds in (1, 9)),
    ]
    assert virtual_time.run(watch(Brokers(until=60, said=None))) == [
        "the start has begun",
        asked,
        asked,
        "The brokers do not answer (b:9092, no answer) for 9 s",
    ]
    # No token for the login: that says the error itself, and not that brokers are silent.
    token = confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTHENTICATION, "no token")
    assert virtual_time.run(watch(Brokers(until=60, said=token)))[-1] == str(AWAY)


def test_brokers_that_say_nothing_are_named_within_ten_seconds(settings: Settings) -> None:
    """However long an attempt takes."""

    async def find(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    async def watch() -> list[str | None]:
        one, ready = Start(settings, find=find), []
        task = asyncio.create_task(one.find_topics())
        for _ in range(2):
            await asyncio.sleep(4.5)
            ready.append(why_not_ready(one.shown(replace(empty(), joined=False))))
        await task
        return ready

    assert virtual_time.run(watch()) == [
        "the brokers have not answered yet (b:9092)",
        "The brokers do not answer (b:9092, no answer) for 9 s",
    ]


@pytest.mark.parametrize(
    "outcome", [FINAL, SettingsError("KAFKA_TOPICS: the pattern ^( cannot be read")], ids=str
)
@pytest.mark.parametrize("until", [0.0, 100.0])
def test_what_cannot_pass_ends_it(settings: Settings, until: float, outcome: PinstreamError) -> None:
    """Also where the brokers were waited for first."""
    with pytest.raises(PinstreamError) as raised:
        start(settings, Brokers(until, outcome))
    assert raised.value is outcome


@pytest.mark.parametrize(("until", "ends"), [(10.0, False), (16.0, True), (math.inf, True)])
def test_fail_fast_ends_it_after_one_attempt(settings: Settings, until: float, ends: bool) -> None:
    """--fail-fast: fifteen seconds, then the error, and no line that says it waits."""
    brokers = Brokers(until)
    if not ends:
        assert start(settings, brokers, fail_fast=True)[1] == []
    else:
        with pytest.raises(KafkaError) as raised:
            start(settings, brokers, fail_fast=True)
        assert raised.value is AWAY
    assert brokers.limits == [15.0]


def test_a_stop_ends_the_wait(settings: Settings) -> None:
    """A wait that is cancelled is over at that moment, in an attempt as between two of them."""

    async def wait(seconds: float) -> float:
        task = asyncio.create_task(Start(settings, find=Brokers(math.inf).find).find_topics())
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait((task,))
        return virtual_time.now() - virtual_time.START

    assert virtual_time.run(wait(3.0)) == 3.0
    assert virtual_time.run(wait(5.5)) == 5.5
