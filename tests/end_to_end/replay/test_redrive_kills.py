"""A redrive is killed at any point and run again: no letter is lost or redriven twice, and no event is sent
twice unless it was in flight."""

from __future__ import annotations

import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from consumer.adapters.kafka.letters import read_done
from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import ENCODER, PARTITIONS, commerce_event, new_group, new_topic
from tests.end_to_end.replay.redriving import asked, bury, committed, event_ids, headers_of, letter
from tests.support.kafka.harness import WITHIN, Kafka, ask
from tests.support.switches import switched

FURTHER = pytest.mark.slow("a further point of the same kind")
POINTS = [
    *("half_sent", "storing", "half_written", "marked"),
    *(pytest.param(one, marks=FURTHER) for one in ("started", "unsent", "unread", "answered", "stored")),
    *(pytest.param(one, marks=FURTHER) for one in ("unmarked", "whole")),
]
"""Before the answer, after the call, and when the event is delivered."""
TRANSACTION = [
    *("half_written", "marked"),
    *(pytest.param(one, marks=FURTHER) for one in ("unmarked", "whole")),
]
LETTERS = 60
IN_FLIGHT = 2 * 5
"""Calls at once, and events in each of them."""
LIMITS = {
    "PINSTREAM_BATCH_EVENTS": "5",
    "PINSTREAM_CONCURRENCY": "2",
    **switched(commit_interval=0.1),
}
KILLS = 8
MANY = 600


def under(point: str, times: int = 1) -> tuple[str, ...]:
    """Start the product so that it dies at the point the n-th time."""
    return (sys.executable, "-m", "tests.end_to_end.replay.redrive_points", point, "-n", str(times))


def killed(folder: Path, env: dict[str, str], point: str, times: int, *arguments: str) -> dict[str, Any]:
    """Run a redrive that dies at a point; return the evidence."""
    command = ("dead-letters", "redrive", *arguments)
    with Process(folder, *command, env=env, under=under(point, times)) as process:
        assert process.wait() == -9, process.stderr[-2000:]
        [evidence] = [line for line in process.log if line["event"] == "crash_point"]
    return evidence


def check_all_done(env: dict[str, str], letters: int, waiting: int = 0) -> None:
    """Check how many letters are marked and how many wait."""
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (waiting, letters)


@pytest.mark.real_kafka
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_and_run_again(kafka: Kafka, api: Api, tmp_path: Path, point: str) -> None:
    """Every letter is delivered and marked in the end. Only what was in flight may be sent again, and nothing
    whose mark was being written: its key was stored before."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(LETTERS)])
    env = run_environment(tmp_path, kafka, topic, group, api.url, **LIMITS)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.1)
    evidence = killed(tmp_path, env, point, 1 if point == "started" else 3)
    before = api.accepted()
    assert set(before.values()) <= {1}
    if point == "started":
        assert not before
    api.set_faults()
    rest = asked("redrive", env=env)
    assert rest["done_before"] + rest["redriven"] == LETTERS
    accepted = api.accepted()
    assert accepted.keys() == event_ids(LETTERS).keys()
    assert sum(accepted.values()) - LETTERS <= IN_FLIGHT
    for partition, text in evidence.get("marks", ()):
        for begin, end in read_done(text) or ():
            for offset in range(begin, end):
                assert accepted[f"event-{offset * PARTITIONS + partition}"] == 1
    if point == "started":
        assert rest["done_before"] == 0
    if point == "marked":
        assert rest["done_before"] > 0
    check_all_done(env, LETTERS)


@pytest.mark.real_kafka
@pytest.mark.parametrize("point", TRANSACTION)
def test_killed_where_letters_die_again_at_a_point(
    kafka: Kafka, api: Api, tmp_path: Path, point: str
) -> None:
    """The new letter and the mark of the old one are one transaction: wherever it is killed, one letter waits
    for each record."""
    topic, group = new_topic(kafka), new_group()
    bury_hopeless(kafka, topic, LETTERS)
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_DEAD_LETTER_SHARE="1", **LIMITS)
    killed(tmp_path, env, point, 3)
    asked("redrive", env=env)
    check_each_waits_once(kafka, env, topic, LETTERS)
    assert api.calls == 0


def bury_hopeless(kafka: Kafka, topic: str, letters: int) -> None:
    """Write letters whose records become dead letters again in every redrive."""
    broken = ENCODER.encode(commerce_event("x", event_type="odd"))
    bury(kafka, [letter(topic, number, value=broken) for number in range(letters)])


def check_each_waits_once(kafka: Kafka, env: dict[str, str], topic: str, letters: int) -> None:
    """Of each record one letter waits, each trip has one letter, and all others are marked."""
    found: Counter[tuple[Any, ...]] = Counter()
    for message in committed(kafka, f"{topic}.dead-letters"):
        texts = dict(headers_of(message))
        if "pinstream.stage" in texts:
            names = ("pinstream.partition", "pinstream.offset", "pinstream.trips")
            found[tuple(texts.get(name) for name in names)] += 1
    assert [one for one, count in found.items() if count > 1] == []
    check_all_done(env, sum(found.values()) - letters, waiting=letters)


@pytest.mark.slow("half a minute until the broker aborts")
@pytest.mark.real_kafka
def test_a_killed_one_holds_up_readers_only_for_seconds(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The broker aborts its open transaction within half a minute, also if no redrive follows."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(20)])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    killed(tmp_path, env, "whole", 1)
    begun = time.monotonic()
    while not stable(kafka, f"{topic}.dead-letters"):
        assert time.monotonic() - begun < 45
        time.sleep(0.2)
    check_all_done(env, 0, waiting=20)


def stable(kafka: Kafka, topic: str) -> bool:
    """Whether the topic has no open transaction: it ends at the same offset for all readers."""
    ends = []
    for level in ("read_committed", "read_uncommitted"):
        config = {**kafka.config, "group.id": "ends", "isolation.level": level, "log_level": 0}
        consumer = Consumer(config)
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        ends.append([ask(partial(consumer.get_watermark_offsets, one, WITHIN))[1] for one in places])
        consumer.close()
    return ends[0] == ends[1]
