"""A redrive is killed wherever it may be, and run again: every letter back exactly once, all marked, delivered once."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import PARTITIONS, new_group, new_topic, records_on
from tests.end_to_end.replay.redrive_points import LOT
from tests.end_to_end.replay.redriving import asked, bury, kafka_environment, letter, redriven
from tests.support.kafka.harness import WITHIN, Kafka

POINTS = ("started", "unsent", "half_written", "whole", "committed")
LETTERS = 120
KILLS = 12
MANY = 900
BLIND = 4
"""Every so manieth kill may come at any moment since the start; the others when the process has begun to write."""
RATE = 250
"""Letters a second, so that a redrive takes seconds and a kill finds it at work."""


def under(point: str, times: int = 1) -> tuple[str, ...]:
    """Start the product so that it dies there the n-th time."""
    return (sys.executable, "-m", "tests.end_to_end.replay.redrive_points", point, "-n", str(times))


def check_all_back(kafka: Kafka, topic: str, letters: int, env: dict[str, str]) -> None:
    """Every letter's copy is there once for whoever reads what is committed, and every letter is marked."""
    found = redriven(kafka, topic)
    assert found == Counter(dict.fromkeys(found, 1)), "put back twice"
    assert len(found) == letters
    listed = asked("list", env=env)
    assert (listed["waiting"], listed["done"]) == (0, letters)


def check_delivered(kafka: Kafka, api: Api, folder: Path, topic: str, group: str, letters: int) -> None:
    """``run`` reads them all, and the API accepts each event once."""
    env = run_environment(folder, kafka, topic, group, api.url)
    with Process(folder, "run", env=env) as process:
        ledger = process.until_settled(letters)
        assert process.stop()[0] == 0
    assert (ledger["read"], ledger["delivered"]) == (letters, letters)
    assert api.accepted() == {f"event-{number}": 1 for number in range(letters)}


@pytest.mark.real_kafka  # the embedded broker has no transactions to speak of
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_and_run_again(
    kafka: Kafka, api: Api, tmp_path: Path, point: str, times: int
) -> None:
    """Nothing of the lot under way is seen unless it is marked; the next run goes on with exactly the rest."""
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(LETTERS)])
    env = kafka_environment(tmp_path, kafka, topic, group)
    started = 1 if point == "started" else times
    with Process(tmp_path, "dead-letters", "redrive", env=env, under=under(point, started)) as process:
        assert process.wait() == -9
        assert [line["event"] for line in process.log] == ["crash_point"]
    rest = asked("redrive", env=env)
    lots_before = {"started": 0, "committed": started}.get(point, started - 1)
    assert (rest["done_before"], rest["redriven"]) == (lots_before * LOT, LETTERS - lots_before * LOT)
    check_all_back(kafka, topic, LETTERS, env)
    check_delivered(kafka, api, tmp_path, topic, group, LETTERS)


@pytest.mark.real_kafka
def test_a_killed_one_stops_readers_only_for_seconds(kafka: Kafka, tmp_path: Path) -> None:
    """Its open transaction is given up by the broker within half a minute, also if nobody runs it again."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, number) for number in range(20)])
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    with Process(tmp_path, "dead-letters", "redrive", env=env, under=under("whole")) as process:
        assert process.wait() == -9
    begun = time.monotonic()
    while not stable(kafka, topic):
        assert time.monotonic() - begun < 45
        time.sleep(0.2)
    assert sum(redriven(kafka, topic).values()) == 0


def stable(kafka: Kafka, topic: str) -> bool:
    """Whether no transaction is open on the topic: it ends at the same offset for all readers."""
    ends = []
    for level in ("read_committed", "read_uncommitted"):
        config = {**kafka.config, "group.id": "ends", "isolation.level": level, "log_level": 0}
        consumer = Consumer(config)
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        ends.append([consumer.get_watermark_offsets(place, WITHIN)[1] for place in places])
        consumer.close()
    return ends[0] == ends[1]


@pytest.mark.timeout(300)
@pytest.mark.real_kafka
def test_killed_again_and_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Twelve kills at random moments, most of them at work: in the end each letter is back once."""
    dice = random.Random(4)
    topic, group = new_topic(kafka), new_group()
    bury(kafka, [letter(topic, number) for number in range(MANY)])
    env = kafka_environment(tmp_path, kafka, topic, group)
    before, worked = 0, 0
    for number in range(1, KILLS + 1):
        arguments = ("dead-letters", "redrive", "--rate", str(RATE))
        with Process(tmp_path, *arguments, env=env, under=under("never")) as process:
            if number % BLIND:
                there = records_on(kafka, topic)
                process.until(partial(more_than, kafka, topic, there), "a lot of its own")
                time.sleep(dice.uniform(0.0, 0.4))
            else:
                time.sleep(dice.uniform(0.0, 2.0))
            process.kill()
        found = redriven_so_far(kafka, topic, env)
        assert set(found.values()) <= {1}
        assert len(found) >= before, "what was back is gone"
        worked += len(found) > before
        print(f"kill {number:2}/{KILLS}: {len(found)} of {MANY} back", file=sys.stderr)
        before = len(found)
        assert before < MANY, "killed too late to show anything"
    assert worked >= KILLS // 2, "hardly ever at work: that shows nothing"
    last = asked("redrive", env=env)
    assert last["left"] == 0
    check_all_back(kafka, topic, MANY, env)
    check_delivered(kafka, api, tmp_path, topic, group, MANY)


def more_than(kafka: Kafka, topic: str, records: int) -> bool:
    """Whether there are more now, committed or not."""
    return records_on(kafka, topic) > records


def redriven_so_far(kafka: Kafka, topic: str, env: dict[str, str]) -> Counter[str]:
    """What is back, once the dead one's transaction is out of the way: the next redrive's start ends it."""
    asked("redrive", "--code", "none-that-is", env=env)
    return redriven(kafka, topic)
