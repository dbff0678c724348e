"""From bounds to offsets: which part of each partition a replay reads, on brokers and on a fake client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError as Error
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.cluster import find_extents
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError, UsageError
from tests.adapters.kafka.bounded_reading import TEN, begin_transaction, delete_before, end_transaction, write
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, produce, unique

BEGINNING, END = Bound("beginning"), Bound("end")
NOBODY = "127.0.0.1:9"


def offset(number: int) -> Bound:
    """Return the bound ``offset:N``."""
    return Bound("offset", number)


def at(milliseconds: int) -> Bound:
    """Return the bound of a time."""
    return Bound("time", milliseconds)


async def ranges(
    kafka: Kafka, topic: str, start: Bound = BEGINNING, stop: Bound = END, partitions: Sequence[str] = ()
) -> list[tuple[int, int, int]]:
    """Return partition, begin and end of each range of one topic."""
    found = await resolve_ranges(kafka.config, [topic], partitions, start, stop, WITHIN)
    assert {one.topic for one in found} <= {topic}
    return [(one.partition, one.begin, one.end) for one in found]


async def reported(
    kafka: Kafka,
    topics: str | Sequence[str],
    start: Bound = BEGINNING,
    stop: Bound = END,
    partitions: Sequence[str] = (),
) -> str:
    """Return the one line of the `UsageError`."""
    topics = [topics] if isinstance(topics, str) else topics
    with pytest.raises(UsageError) as raised:
        await resolve_ranges(kafka.config, topics, partitions, start, stop, WITHIN)
    line = str(raised.value)
    assert "\n" not in line
    return line


async def test_offsets(each_kafka: Kafka) -> None:
    """In order of partition; `to` is exclusive; an end is fixed; one out of range is named with what is there."""
    topic = create_topic(each_kafka, 4)
    produce(each_kafka, topic, TEN, partition=1)
    produce(each_kafka, topic, TEN[:3], partition=3)
    assert await ranges(each_kafka, topic) == [(0, 0, 0), (1, 0, 10), (2, 0, 0), (3, 0, 3)]
    for start, stop, expected in (
        (offset(3), END, (3, 10)),
        (BEGINNING, offset(3), (0, 3)),
        (offset(3), offset(7), (3, 7)),
        (offset(3), offset(3), (3, 3)),
        (offset(10), END, (10, 10)),
        (END, END, (10, 10)),
        (BEGINNING, BEGINNING, (0, 0)),
    ):
        assert await ranges(each_kafka, topic, start, stop, ["1"]) == [(1, *expected)]
    line = await reported(each_kafka, topic, offset(99999), END, ["1"])
    assert line == f"--from offset:99999: offset 99999 is not in {topic}[1], which holds 0 to 9"
    assert "--to offset:11" in await reported(each_kafka, topic, BEGINNING, offset(11), ["1"])
    line = await reported(each_kafka, topic, offset(1), END, ["2"])
    assert line.endswith(f"{topic}[2], which is empty (its next offset is 0)")
    before = await resolve_ranges(each_kafka.config, [topic], ["1"], BEGINNING, END, WITHIN)
    produce(each_kafka, topic, TEN, partition=1)
    assert before == [Range(topic, 1, 0, 10)]
    assert await ranges(each_kafka, topic, partitions=["1"]) == [(1, 0, 20)]


@pytest.mark.real_kafka
async def test_beginnings_that_move_and_open_transactions(kafka: Kafka, topic: Callable[..., str]) -> None:
    """The first record that is left; and the end is where a transaction is open."""
    name = topic()
    produce(kafka, name, TEN)
    delete_before(kafka, name, 4)
    assert await ranges(kafka, name) == await ranges(kafka, name, offset(4)) == [(0, 4, 10)]
    assert (await reported(kafka, name, offset(3))).endswith("which holds 4 to 9")
    producer = begin_transaction(kafka)
    write(producer, name, TEN[:2])
    produce(kafka, name, TEN[:1])
    assert await ranges(kafka, name) == [(0, 4, 10)]
    assert (await reported(kafka, name, BEGINNING, offset(13))).endswith("which holds 4 to 9")
    end_transaction(kafka, name, producer, commit=False)
    assert await ranges(kafka, name) == [(0, 4, 14)]  # with the marker of the abort
    delete_before(kafka, name, 14)
    assert await ranges(kafka, name) == [(0, 14, 14)]
    assert (await reported(kafka, name, offset(9))).endswith("which is empty (its next offset is 14)")


@pytest.mark.real_kafka
async def test_times(kafka: Kafka, topic: Callable[..., str]) -> None:
    """From the first record in the log of that time or later; both times go with the range."""
    name = topic(3)
    for timestamp in (5000, 1000, 3000, 2000, 4000, 1000):
        produce(kafka, name, [b"x"], timestamp=timestamp)
    produce(kafka, name, TEN, timestamp=3000, partition=1)
    first = ["0"]
    for start, stop, begin, since, until in (
        (at(3000), at(4000), 0, 3000, 4000),
        (offset(2), at(500), 2, None, 500),
    ):
        found = await resolve_ranges(kafka.config, [name], first, start, stop, WITHIN)
        assert found == [Range(name, 0, begin, 6, since, until)]
    assert await ranges(kafka, name, at(5001)) == [(0, 6, 6), (1, 10, 10), (2, 0, 0)]
    produce(kafka, name, [b"x"], timestamp=6000)
    for since, begin in ((5000, 0), (5001, 6), (6000, 6), (6001, 7), (0, 0), (-1000, 0)):
        assert await ranges(kafka, name, at(since), partitions=first) == [(0, begin, 7)]
    line = await reported(kafka, name, at(6000), offset(5), first)
    assert f"offset 6 of {name}[0]" in line
    assert "--to offset:5" in line
    producer = begin_transaction(kafka)
    write(producer, name, TEN)
    assert await ranges(kafka, name, at(7000), partitions=first) == [(0, 7, 7)]
    end_transaction(kafka, name, producer, commit=False)


async def test_names(each_kafka: Kafka) -> None:
    """``P`` of each topic or ``TOPIC:P``, once, in order; what does not exist is named with what there is."""
    first, second = create_topic(each_kafka, 4, unique("a")), create_topic(each_kafka, 4, unique("b"))
    found = await resolve_ranges(
        each_kafka.config, [second, first, first], ["2", f"{second}:0", "2"], BEGINNING, END, WITHIN
    )
    assert [one[:2] for one in found] == [(first, 2), (second, 0), (second, 2)]
    line = await reported(each_kafka, f"{first}s")
    assert f"nearest that does is {first}" in line
    assert "--topic" in line
    assert "KAFKA_TOPICS" not in line
    assert f"{first} has no partition 4; it has 0 to 3" in await reported(each_kafka, first, partitions=["4"])
    assert "no partition 4" in await reported(each_kafka, first, partitions=["0", f"{first}:4"])
    assert "add --topic orders" in await reported(each_kafka, first, partitions=["orders:1"])
    for text in ("", "x", "-1", "1.0", "1,2", ":1", "1:", "٣", "9" * 11):
        assert "write P, or TOPIC:P" in await reported(each_kafka, first, partitions=[text])


class Admin:
    """An admin client that plays answers query by query: for each partition an offset, or the code of an error."""

    def __init__(self, *answers: dict[int, int]) -> None:
        self.asked: list[list[int]] = []
        self._answers = list(answers)

    def list_offsets(self, asked: dict[RawPartition, Any], **_: Any) -> dict[RawPartition, Any]:
        """Return the next answers; the last ones are repeated."""
        self.asked.append([one.partition for one in asked])
        said = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

        def answered(code: int) -> Any:
            def result(_: float) -> SimpleNamespace:
                if code in (MOVING, LOGGING_IN, REFUSED):
                    raise KafkaException(Error(code))
                return SimpleNamespace(offset=code)

            return SimpleNamespace(result=result)

        return {one: answered(said[one.partition]) for one in asked}


NAMES = [TopicPartition("t", 0), TopicPartition("t", 1)]
MOVING, REFUSED = Error.NOT_LEADER_FOR_PARTITION, Error.INVALID_REQUEST
LOGGING_IN = Error._AUTHENTICATION
"""The answer to a query during which the connection had to log in again."""


@pytest.mark.parametrize("passing", [MOVING, LOGGING_IN])
def test_a_partition_whose_question_fails_for_a_moment_is_asked_for_again(passing: int) -> None:
    """A partition whose query fails for a moment is queried again alone, until it answers."""
    admin = Admin({0: 5, 1: passing}, {1: passing}, {1: 7}, {0: 9, 1: 9})
    extents = find_extents(admin, NAMES, time.monotonic() + 30.0)
    assert [(one.low, one.end) for one in extents.values()] == [(5, 9), (7, 9)]
    assert admin.asked == [[0, 1], [1], [1], [0, 1]]


@pytest.mark.parametrize(("code", "timeout"), [(MOVING, 0.0), (REFUSED, 30.0)])
def test_without_time_or_with_a_lasting_error_the_query_fails_at_once(code: int, timeout: float) -> None:
    """In one line that names the partition."""
    admin = Admin({0: 50, 1: code})
    with pytest.raises(KafkaError, match=r"t\[1\]"):
        find_extents(admin, NAMES, time.monotonic() + timeout)
    assert len(admin.asked) == 1
