"""From bounds to offsets, on brokers: which part of each partition a replay reads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

import pytest

from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.errors import KafkaError, UsageError
from tests.adapters.kafka.bounded_reading import begin_transaction, delete_before, end_transaction, write
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, produce, unique
from tests.support.limits import LATE

BEGINNING, END = Bound("beginning"), Bound("end")
TEN: list[bytes | None] = [b"%d" % number for number in range(10)]
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


async def told(
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


@pytest.mark.kafka
class TestOffsets:
    """Beginning, end and offsets."""

    async def test_all_of_all_partitions(self, each_kafka: Kafka) -> None:
        """Ranges are ordered by partition, and an empty partition has an empty range."""
        topic = create_topic(each_kafka, 4)
        produce(each_kafka, topic, TEN, partition=1)
        produce(each_kafka, topic, TEN[:3], partition=3)
        assert await ranges(each_kafka, topic) == [(0, 0, 0), (1, 0, 10), (2, 0, 0), (3, 0, 3)]

    async def test_the_end_is_fixed(self, each_kafka: Kafka) -> None:
        """Records written later do not change a range that was made before."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        before = await resolve_ranges(each_kafka.config, [topic], ["0"], BEGINNING, END, WITHIN)
        produce(each_kafka, topic, TEN)
        assert before == [Range(topic, 0, 0, 10)]
        assert await ranges(each_kafka, topic, partitions=["0"]) == [(0, 0, 20)]

    @pytest.mark.parametrize(
        ("start", "stop", "expected"),
        [
            (offset(3), END, (3, 10)),
            (BEGINNING, offset(3), (0, 3)),
            (offset(3), offset(7), (3, 7)),
            (offset(3), offset(3), (3, 3)),
            (offset(10), END, (10, 10)),
            (END, END, (10, 10)),
            (BEGINNING, BEGINNING, (0, 0)),
        ],
    )
    async def test_offsets(
        self, each_kafka: Kafka, start: Bound, stop: Bound, expected: tuple[int, int]
    ) -> None:
        """From is inclusive, to exclusive, and a range may be empty."""
        topic = create_topic(each_kafka)
        produce(each_kafka, topic, TEN)
        assert await ranges(each_kafka, topic, start, stop, ["0"]) == [(0, *expected)]

    async def test_an_offset_out_of_range_is_refused_with_the_range(self, each_kafka: Kafka) -> None:
        """An offset out of range is an error with option, topic, partition and the offsets there, or the next
        one of an empty partition."""
        topic = create_topic(each_kafka, 4)
        produce(each_kafka, topic, TEN)
        line = await told(each_kafka, topic, offset(99999), END, ["0"])
        assert line == f"--from offset:99999: offset 99999 is not in {topic}[0], which holds 0 to 9"
        assert "--to offset:11" in await told(each_kafka, topic, BEGINNING, offset(11), ["0"])
        line = await told(each_kafka, topic, offset(1), END, ["2"])
        assert line.endswith(f"{topic}[2], which is empty (its next offset is 0)")

    @pytest.mark.real_kafka
    async def test_a_beginning_that_has_moved(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """After retention `beginning` is the first record left, and an offset below it is out of range."""
        name = topic()
        produce(kafka, name, TEN)
        delete_before(kafka, name, 4)
        assert await ranges(kafka, name) == [(0, 4, 10)]
        assert await ranges(kafka, name, offset(4)) == [(0, 4, 10)]
        assert (await told(kafka, name, offset(3))).endswith("which holds 4 to 9")
        delete_before(kafka, name, 10)
        assert await ranges(kafka, name) == [(0, 10, 10)]
        assert (await told(kafka, name, offset(9))).endswith("which is empty (its next offset is 10)")

    @pytest.mark.real_kafka
    async def test_the_end_is_where_an_open_transaction_begins(
        self, kafka: Kafka, topic: Callable[..., str]
    ) -> None:
        """The end is where an open transaction begins, since a reader of committed records cannot pass it until
        it is closed."""
        name = topic()
        produce(kafka, name, TEN)
        producer = begin_transaction(kafka)
        write(producer, name, TEN[:2])
        produce(kafka, name, TEN[:1])
        assert await ranges(kafka, name) == [(0, 0, 10)]
        assert (await told(kafka, name, BEGINNING, offset(13))).endswith("which holds 0 to 9")
        end_transaction(kafka, name, producer, commit=False)
        assert await ranges(kafka, name) == [(0, 0, 14)]  # with the marker of the abort


@pytest.mark.kafka
@pytest.mark.real_kafka
class TestTimes:
    """Bounds by the records' timestamps."""

    async def test_begins_at_the_first_record_that_is_late_enough(
        self, kafka: Kafka, topic: Callable[..., str]
    ) -> None:
        """The range begins at the first record in the log at or after the time; the end is the partition's, and the
        range carries both times."""
        name = topic()
        for timestamp in (5000, 1000, 3000, 2000, 4000, 1000):
            produce(kafka, name, [b"x"], timestamp=timestamp)
        found = await resolve_ranges(kafka.config, [name], [], at(3000), at(4000), WITHIN)
        assert found == [Range(name, 0, 0, 6, 3000, 4000)]
        produce(kafka, name, [b"x"], timestamp=6000)
        for since, begin in ((5000, 0), (5001, 6), (6000, 6), (6001, 7), (0, 0), (-1000, 0)):
            assert await ranges(kafka, name, at(since)) == [(0, begin, 7)]

    async def test_only_an_end_by_time(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """With a time as its end alone, a range carries that time alone."""
        name = topic()
        produce(kafka, name, TEN, timestamp=1000)
        found = await resolve_ranges(kafka.config, [name], [], offset(2), at(500), WITHIN)
        assert found == [Range(name, 0, 2, 10, None, 500)]

    async def test_nothing_is_late_enough(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """In partitions without a record late enough, and in empty ones, the range is empty and at the end."""
        name = topic(3)
        produce(kafka, name, TEN, timestamp=1000)
        produce(kafka, name, TEN, timestamp=3000, partition=1)
        assert await ranges(kafka, name, at(2000)) == [(0, 10, 10), (1, 0, 10), (2, 0, 0)]

    async def test_a_late_record_after_the_end_makes_an_empty_range(
        self, kafka: Kafka, topic: Callable[..., str]
    ) -> None:
        """A late record of an open transaction does not make the range begin after its end."""
        name = topic()
        produce(kafka, name, TEN, timestamp=1000)
        producer = begin_transaction(kafka)
        write(producer, name, TEN)
        assert await ranges(kafka, name, at(2000)) == [(0, 10, 10)]
        end_transaction(kafka, name, producer, commit=False)

    async def test_a_time_after_the_offset_is_refused(self, kafka: Kafka, topic: Callable[..., str]) -> None:
        """When the time of `from` is found after the offset of `to`, an error names the time's offset and the
        partition."""
        name = topic()
        produce(kafka, name, TEN, timestamp=1000)
        produce(kafka, name, TEN, timestamp=2000)
        line = await told(kafka, name, at(2000), offset(7))
        assert f"offset 10 of {name}[0]" in line
        assert "--to offset:7" in line


@pytest.mark.kafka
class TestNames:
    """Which topics and partitions are selected."""

    async def test_partitions_of_one_or_of_all_topics(self, each_kafka: Kafka) -> None:
        """``P`` selects a partition of each topic, ``TOPIC:P`` one of that topic; repeated names are used once,
        in order."""
        first, second = create_topic(each_kafka, 4, unique("a")), create_topic(each_kafka, 4, unique("b"))
        found = await resolve_ranges(
            each_kafka.config, [second, first, first], ["2", f"{second}:0", "2"], BEGINNING, END, WITHIN
        )
        assert [one[:2] for one in found] == [(first, 2), (second, 0), (second, 2)]

    async def test_an_unknown_topic_is_named_with_the_nearest(self, each_kafka: Kafka) -> None:
        """An unknown topic is an error with the nearest name and the option to correct, not the variable."""
        topic = create_topic(each_kafka)
        line = await told(each_kafka, f"{topic}s")
        assert f"nearest that does is {topic}" in line
        assert "--topic" in line
        assert "KAFKA_TOPICS" not in line

    async def test_an_unknown_partition_is_named_with_the_known_ones(self, each_kafka: Kafka) -> None:
        """An unknown partition is an error with the topic, the number and the partitions that the topic has."""
        topic = create_topic(each_kafka, 4)
        assert f"{topic} has no partition 4; it has 0 to 3" in await told(each_kafka, topic, partitions=["4"])
        assert "no partition 4" in await told(each_kafka, topic, partitions=["0", f"{topic}:4"])

    @pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "1,2", ":1", "1:", "٣", "9" * 11])
    async def test_a_text_that_names_no_partition_is_refused(self, each_kafka: Kafka, text: str) -> None:
        """A text that names no partition is an error with both valid forms."""
        line = await told(each_kafka, create_topic(each_kafka), partitions=[text])
        assert "write P, or TOPIC:P" in line

    async def test_a_partition_of_a_topic_that_is_not_asked_for(self, each_kafka: Kafka) -> None:
        """A partition of a topic that is not selected is an error that names the missing option."""
        line = await told(each_kafka, create_topic(each_kafka), partitions=["orders:1"])
        assert "add --topic orders" in line


async def test_unreachable_brokers_are_reported_in_time() -> None:
    """When no broker listens, an error of one line names the address, within the time limit."""
    started = time.monotonic()
    with pytest.raises(KafkaError, match=NOBODY):
        await resolve_ranges({"bootstrap.servers": NOBODY}, ["orders"], [], BEGINNING, END, 1.5)
    assert time.monotonic() - started < LATE


async def test_silent_brokers_are_reported_in_time() -> None:
    """When a server listens but never answers, an error names its address within the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(KafkaError, match=address):
            await resolve_ranges({"bootstrap.servers": address}, ["orders"], [], BEGINNING, END, 1.5)
    assert time.monotonic() - started < LATE
