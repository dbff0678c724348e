"""``pinstream run`` from records on a broker to events at the API: nothing lost, nothing sent twice, and an
orderly end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from consumer.demo.generator import Defect, GeneratedEvent
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import (
    PARTITIONS,
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    value_of,
    write_generated,
)
from tests.support.kafka.harness import Kafka, commit, read_all
from tests.support.limits import LATE

CODES = {
    Defect.UNDECODABLE: ("decode", "unknown_wire_format"),
    Defect.NO_IDENTITY: ("convert", "no_identity"),
    Defect.BAD_CURRENCY: ("convert", "unknown_currency"),
    Defect.NEGATIVE_VALUE: ("convert", "malformed_value"),
    Defect.GROUPED_VALUE: ("convert", "malformed_value"),
    Defect.UNKNOWN_TYPE: ("convert", "unknown_event_name"),
    Defect.UNKNOWN_CHANNEL: ("convert", "unknown_action_source"),
    Defect.BLANK_EVENT_ID: ("convert", "missing_event_id"),
    Defect.TOO_OLD: ("convert", "expired"),
    Defect.FUTURE: ("convert", "future_event_time"),
}
"""The stage and code in the dead letter's headers for each defect of the generator."""


@pytest.mark.real_kafka  # the embedded broker takes no commit from outside a group
def test_every_record_ends_as_it_must(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Ledger, API, dead letters and commits agree with the generator; and again after two restarts."""
    topic, group = new_topic(kafka), new_group()
    generator, events = generated(3000, duplicates=0.1, invalid=0.05)
    write_generated(kafka, topic, events)
    env = run_environment(tmp_path, kafka, topic, group, api.url)

    with Process(tmp_path, "run", env=env, fresh=True) as first:
        ledger = first.until_settled(len(events))
        assert {one: ledger[one.value] for one in Disposition} == generator.tally
        assert first.get("/healthz")[0] == first.get("/readyz")[0] == 200
        code, seconds = first.stop()
        assert (code, first.stdout) == (0, "")
        assert seconds < LATE
        assert first.log[-1]["event"] == "stopped"
    counts = api.counts()
    assert counts.distinct_event_ids == counts.accepted_events == generator.tally[Disposition.DELIVERED]
    assert counts.value_sum == generator.value_sum
    assert sum(committed_offsets(kafka, group, topic)) == len(events)
    check_dead_letters(kafka, topic, [one for one in events if one.defect])

    # Nothing is left to do for the next one.
    calls = api.calls
    with Process(tmp_path, "run", env=env, fresh=True) as second:
        second.until(lambda: len(second.status()["partitions"]) == PARTITIONS, "its partitions")
        assert second.stop()[0] == 0
    assert (api.calls, second.log[-1]["read"]) == (calls, 0)

    # And were the commits lost, the delivered keys are still known: nothing is sent again.
    for number in range(PARTITIONS):
        commit(kafka, group, topic, 0, number)
    with Process(tmp_path, "run", env=env, fresh=True) as third:
        ledger = third.until_settled(len(events))
        assert third.stop()[0] == 0
    tally = generator.tally
    assert ledger["delivered"] == 0
    assert ledger["duplicate"] == tally[Disposition.DELIVERED] + tally[Disposition.DUPLICATE]
    assert api.calls == calls


def check_dead_letters(kafka: Kafka, topic: str, broken: list[GeneratedEvent]) -> None:
    """Each broken record is on the dead-letter topic with its own bytes, key and reason."""
    letters = dead_letters(kafka, topic)
    reasons = {value_of(one): CODES[one.defect] for one in broken if one.defect is not None}
    assert sorted(message.value() or b"" for message, _ in letters) == sorted(map(value_of, broken))
    keys = {value_of(one): one.key for one in broken}
    for message, headers in letters:
        value = message.value() or b""
        assert (headers["stage"], headers["code"]) == reasons[value]
        assert message.key() == keys[value]
        assert headers["topic"] == topic
        assert int(headers["partition"]) == message.partition()
        assert int(headers["timestamp"]) > 1_700_000_000_000
        assert headers["attempts"] == "0"
        assert headers["message"]
        assert headers["at"].endswith("Z")
    places = {(headers["partition"], headers["offset"]) for _, headers in letters}
    assert len(places) == len(letters)


def test_stops_in_order_in_the_middle_of_work(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGTERM with calls in flight: it waits for their answers and commits, so a restart sends none again."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(2000)
    write_generated(kafka, topic, events)
    delivered = sum(one.expected is Disposition.DELIVERED for one in events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.7)
    env = run_environment(
        tmp_path, kafka, topic, group, api.url,
        PINSTREAM_BATCH_EVENTS="50", PINSTREAM_CONCURRENCY="4", PINSTREAM_SHUTDOWN_GRACE="60s",
    )  # fmt: skip
    with Process(tmp_path, "run", env=env, fresh=True) as first:
        first.until(lambda: api.calls > 4, "a second round of calls")
        code, seconds = first.stop()
    assert code == 0
    assert seconds < 2 * LATE
    assert 0 < api.counts().accepted_events < delivered
    assert first.log[-1]["open"] == 0
    assert first.log[-1]["delivered"] == api.counts().accepted_events

    api.set_faults()
    with Process(tmp_path, "run", env=env, fresh=True) as second:
        second.until(lambda: sum(committed_offsets(kafka, group, topic)) == len(events), "the rest")
        assert second.stop()[0] == 0
    assert set(api.accepted().values()) == {1}
    assert api.counts().distinct_event_ids == delivered


def test_a_grace_that_is_too_short_still_ends_in_time(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """An API that answers too late does not delay the end; what had no answer is not committed."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(200)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=60.0)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_SHUTDOWN_GRACE="1s")
    with Process(tmp_path, "run", env=env, fresh=True) as process:
        process.until(lambda: api.calls >= 1, "a call in flight")
        code, seconds = process.stop()
    assert code == 0
    assert seconds < 1 + LATE
    assert process.log[-1]["delivered"] == 0
    first_delivered = [
        next((offset for offset, one in enumerate(of_partition) if one.expected is Disposition.DELIVERED), 0)
        for of_partition in by_partition(kafka, topic, events)
    ]
    for offset, limit in zip(committed_offsets(kafka, group, topic), first_delivered, strict=True):
        assert offset <= limit


def by_partition(kafka: Kafka, topic: str, events: list[GeneratedEvent]) -> list[list[GeneratedEvent]]:
    """The events on each partition of `topic`."""
    known = {value_of(one): one for one in events}
    lying: list[list[GeneratedEvent]] = [[] for _ in range(PARTITIONS)]
    for message in sorted(read_all(kafka, topic, len(events)), key=lambda one: one.offset() or 0):
        lying[message.partition() or 0].append(known[message.value() or b""])
    return lying


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_second_signal_ends_at_once(kafka: Kafka, api: Api, tmp_path: Path, protocol: str) -> None:
    """It ends at once with exit code 130; under both group protocols."""
    topic, group = new_topic(kafka), new_group()
    write_generated(kafka, topic, generated(100)[1])
    api.set_faults(slow=Chance(share=1.0), slow_seconds=60.0)
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, KAFKA_GROUP_PROTOCOL=protocol, PINSTREAM_SHUTDOWN_GRACE="60s"
    )
    with Process(tmp_path, "run", env=env, fresh=True) as process:
        process.until(lambda: api.calls >= 1, "a call in flight")
        process.send(signal.SIGTERM)
        process.until(lambda: process.status()["stopping"], "the first signal's effect")
        code, seconds = process.stop(signal.SIGINT)
    assert code == 130
    assert seconds < LATE


def test_in_test_mode_nothing_is_recorded(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``PINTEREST_TEST_MODE``: every call has ``test=true`` and at most 20 events; a warning says that it is on."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(100)
    write_generated(kafka, topic, events)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINTEREST_TEST_MODE="true")
    with Process(tmp_path, "run", env=env, fresh=True) as process:
        ledger = process.until_settled(len(events))
        assert process.stop()[0] == 0
    assert ledger["delivered"] == len(api.events) > 80
    assert set(api.queries) == {"test=true"}
    assert api.calls >= len(api.events) / 20
    assert (api.counts().accepted_events, api.counts().rejected_events) == (0, {})
    assert any("PINTEREST_TEST_MODE" in line.get("text", "") for line in process.log)
