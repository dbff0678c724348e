"""The machine's clock is wrong: no event becomes a dead letter for it, the log says so, and the service
recovers by itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.faults.clocks import WrongClock
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import commerce_event, dead_letters, new_group, new_topic, write_events
from tests.support.kafka.harness import Kafka

RECORDS = 1_200
"""More records than the dead-letter guard needs for a judgement."""
DAYS = 3 * 86_400.0
"""More than the window for which delivered keys are remembered."""


@pytest.mark.parametrize("off", [-3_600.0, -400.0, 7_200.0, 8 * 86_400.0], ids=str)
def test_a_clock_that_is_wrong(kafka: Kafka, api: Api, tmp_path: Path, off: float) -> None:
    """From the start on: all is delivered, with the times at which it happened; it is said who is wrong, how much."""
    clock = WrongClock(tmp_path, off)
    topic, group = new_topic(kafka, 1), new_group()
    env = {**run_environment(tmp_path, kafka, topic, group, api.url), **clock.env}
    begun = int(time.time())
    write_events(kafka, topic, [commerce_event("first")])
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: api.accepted(), "the first one")
        clock.set(off)
        write_events(kafka, topic, [commerce_event(f"event-{n}") for n in range(RECORDS)])
        ledger = process.until_settled(RECORDS + 1)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (RECORDS + 1, 0)
        reported = process.until_logged("clock_off")
        assert reported["behind_seconds"] == pytest.approx(-off, abs=5)
        status = process.status()["clock"]
        assert status["behind_platform"] == pytest.approx(-off, abs=5)
        assert status["corrected"] == status["behind_platform"]
        assert 'pinstream_clock_behind_seconds{by="platform"}' in process.get("/metrics")[1]
        clock.set(0.0)
        process.until(lambda: process.status()["clock"]["corrected"] == 0, "the clock that is right again")
        process.until_logged("clock_right")
        assert process.stop()[0] == 0
    assert dead_letters(kafka, topic) == []
    assert all(begun <= event["event_time"] <= time.time() for event in api.events)


def test_a_clock_that_is_a_week_ahead_at_the_start(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Before the first answer all events look too old: they wait while the API is away, and are delivered once it says
    what time it is. What is really too old becomes a dead letter then, and is not sent."""
    clock = WrongClock(tmp_path, 8 * 86_400.0)
    topic, group = new_topic(kafka, 1), new_group()
    env = {**run_environment(tmp_path, kafka, topic, group, api.url), **clock.env}
    api.set_faults(middleman=Chance(share=1.0))
    old = commerce_event("old", occurred_at=int((time.time() - 30 * 86_400) * 1000))
    write_events(kafka, topic, [old, *(commerce_event(f"event-{n}") for n in range(RECORDS))])
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["clock"]["early"] == RECORDS + 1, "all records")
        api.set_faults()
        ledger = process.until_settled(RECORDS + 1)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (RECORDS, 1)
        reported = process.until_logged("clock_off")
        assert (reported["by"], reported["behind_seconds"]) == ("platform", pytest.approx(-8 * 86_400, abs=5))
        assert process.stop()[0] == 0
    [(_, headers)] = dead_letters(kafka, topic)
    assert headers["code"] == "expired"
    assert "old" not in {event["event_id"] for event in api.events}


def test_a_clock_that_is_behind_and_an_api_that_is_away(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The right time cannot be had: the events wait, and the status says for what. When the clock is set right,
    they are sent."""
    clock = WrongClock(tmp_path, -3_600.0)
    topic, group = new_topic(kafka, 1), new_group()
    env = {**run_environment(tmp_path, kafka, topic, group, api.url), **clock.env}
    api.set_faults(middleman=Chance(share=1.0))
    write_events(kafka, topic, [commerce_event(f"event-{n}") for n in range(50)])
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["clock"]["early"] == 50, "all records")
        reported = process.until_logged("clock_off")
        assert (reported["by"], reported["certain"]) == ("records", 0)
        clock.set(0.0)
        process.until(lambda: process.status()["clock"]["early"] == 0, "the clock that is right again")
        api.set_faults()
        assert process.until_settled(50)["delivered"] == 50
        assert process.stop()[0] == 0
    assert dead_letters(kafka, topic) == []


@pytest.mark.parametrize("store", ["disk", "redis"])
@pytest.mark.parametrize("off", [DAYS, -DAYS], ids=["ahead", "behind"])
def test_a_clock_that_jumps_forgets_nothing(
    kafka: Kafka, api: Api, tmp_path: Path, request: pytest.FixtureRequest, off: float, store: str
) -> None:
    """A delivered event that is read again is a duplicate while the clock is wrong, after a restart meanwhile, and
    when it is right again; the jump is told."""
    # A clock that is behind is so from the start: then the deliveries themselves are stored under a wrong clock.
    clock = WrongClock(tmp_path, min(off, 0.0))
    topic, group = new_topic(kafka, 1), new_group()
    env = {**run_environment(tmp_path, kafka, topic, group, api.url), **clock.env}
    if store == "redis":
        url = request.getfixturevalue("redis").url
        env["PINSTREAM_KEY_STORE"] = f"{url}?prefix={topic}"
    events = [commerce_event(f"event-{n}") for n in range(RECORDS)]

    def read_again(process: Process) -> None:
        """Write all events again, and wait until each is a duplicate."""
        before = process.status()["ledger"]
        write_events(kafka, topic, events)
        ledger = process.until_settled(before["read"] + RECORDS)
        assert ledger["duplicate"] == before["duplicate"] + RECORDS, ledger

    with Process(tmp_path, "run", env=env) as process:
        write_events(kafka, topic, events)
        assert process.until_settled(RECORDS)["delivered"] == RECORDS
        clock.set(off)
        read_again(process)
        assert process.stop()[0] == 0
    with Process(tmp_path, "run", env=env) as process:
        read_again(process)
        clock.set(0.0)
        read_again(process)
        reported = process.until_logged("clock_jumped")
        assert reported["seconds"] == pytest.approx(-off, abs=5)
        assert "remembered" in reported["means"]
        assert process.status()["clock"]["jumps"] == 1
        assert "pinstream_clock_jumps_total 1" in process.get("/metrics")[1]
        assert process.status()["counts"]["keys_forgotten_early"] == 0
        assert process.stop()[0] == 0
    assert len(api.events) == RECORDS
