"""The bounded source on a fake consumer: cases that no broker produces on demand, above all within one consume."""

from __future__ import annotations

import asyncio
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, KafkaException, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.adapters.kafka.bounded import BoundedSource
from consumer.adapters.kafka.ranges import Range
from consumer.engine.model import Chunk, TopicPartition
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import offsets
from tests.adapters.kafka.member import scripted_member

NOBODY = "127.0.0.1:9"


class FakeConsumer(scripted_member.FakeConsumer):
    """A consumer that returns a list of messages for each consume that waits (``consume(1, …)``)."""

    def __init__(self, *lots: list[Message]) -> None:
        super().__init__({})
        self.script = [scripted_member.brings(*lot) for lot in lots]

    def made(self, config: dict[str, Any]) -> Any:
        """Keep the configuration; return this consumer in place of a new one."""
        self.config = config
        return self

    def numbers(self, call: str) -> list[tuple[int, int]]:
        """Return partitions and offsets of all calls of this name."""
        return [one for name, *places in self.calls if name == call for one in places[0]]


def record(offset: int, partition: int = 0, *, timestamp: int = 1000, by_broker: bool = False) -> Message:
    """Return a record of topic ``t``."""
    kind = TIMESTAMP_LOG_APPEND_TIME if by_broker else TIMESTAMP_CREATE_TIME
    return Message("t", partition, offset, b"k", b"v", None, None, (kind, timestamp), 0.0, 0)


def failing(code: int, partition: int = 0, offset: int = -1) -> Message:
    """Return the error message of topic ``t`` that a consume returns instead of a record."""
    error = confluent_kafka.KafkaError(code)
    return Message("t", partition, offset, error=error)


_Code = confluent_kafka.KafkaError


async def play(fake: FakeConsumer, *ranges: Range) -> tuple[BoundedSource, list[Chunk], list[str]]:
    """Read to the end or as far as the script goes; return the source, its chunks and the codes of its troubles."""
    reported: list[str] = []
    source = BoundedSource(
        {"bootstrap.servers": NOBODY},
        ranges,
        on_error=lambda code, _: reported.append(code),
        make_consumer=fake.made,
    )
    await source.start()
    found: list[Chunk] = []
    while fake.script and not source.done:
        found += await source.fetch(1000, 0.0)
    await asyncio.sleep(0)
    return source, found, reported


@st.composite
def logs(draw: st.DrawFn) -> list[Message]:
    """Draw a log of one partition, with gaps, times in any order and leader epochs that rise."""
    steps = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(0, 1)), max_size=40))
    offset, leader, found = -1, 0, []
    for step, timestamp, rise in steps:
        offset, leader = offset + step, leader + rise
        kind = (TIMESTAMP_CREATE_TIME, timestamp)
        found.append(Message("t", 0, offset, b"k", b"v", None, None, kind, 0.0, leader))
    return found


def _offset(message: Message) -> int:
    return message.offset() or 0


@settings(deadline=None)  # each example has its own thread
@given(
    logs(), st.tuples(*[st.integers(0, 60)] * 2), st.tuples(*[st.none() | st.integers(0, 9)] * 2), st.data()
)
async def test_any_log_cut_anyhow_gives_exactly_the_range(
    log: list[Message], bounds: tuple[int, int], times: tuple[int | None, int | None], data: st.DataObject
) -> None:
    """Each record of the range and its time comes once, in order, and the source is done."""
    begin, end = sorted(bounds)
    since, until = (-1 if times[0] is None else times[0]), (99 if times[1] is None else times[1])
    left = [one for one in log if _offset(one) >= begin]
    wanted = [_offset(one) for one in left if _offset(one) < end and since <= one.timestamp()[1] < until]
    lots = []
    left.append(failing(_Code._PARTITION_EOF, 0, data.draw(st.integers(60, 200))))
    while left:
        size = data.draw(st.integers(1, len(left)))
        lots.append(left[:size])
        del left[:size]
    source, found, reported = await play(FakeConsumer(*lots), Range("t", 0, begin, end, *times))
    assert (offsets(found), source.done, reported) == (wanted, True, [])
    assert list(source.figures.values()) == [end]
    await source.close(1.0)


async def test_records_after_the_end_in_one_consume_are_dropped() -> None:
    """Also under another leader epoch; the partition is unassigned once."""
    later = Message("t", 0, 7, b"k", b"v", None, None, (1, 1000), 0.0, 5)
    fake = FakeConsumer(
        [record(3), record(4), record(5), record(6), later, failing(_Code._PARTITION_EOF, 0, 8)]
    )
    source, found, _ = await play(fake, Range("t", 0, 3, 5))
    assert (offsets(found), source.done, fake.numbers("incremental_unassign")) == ([3, 4], True, [(0, -1001)])
    assert fake.numbers("incremental_assign") == [(0, 3)]


async def test_a_partition_that_cannot_be_unassigned_is_dropped() -> None:
    """Its later records and errors are dropped, and the others are read."""
    fake = FakeConsumer(
        [record(0), record(1)],
        [record(2), failing(_Code._AUTO_OFFSET_RESET), record(0, 1)],
        [record(3), record(1, 1)],
    )
    fake.refused["incremental_unassign"] = KafkaException(_Code(_Code._STATE))
    source, found, reported = await play(fake, Range("t", 0, 0, 1), Range("t", 1, 0, 2))
    assert [(one.partition, *offsets([one])) for one in found] == [(0, 0), (1, 0), (1, 1)]
    assert source.done
    assert set(reported) == {"_STATE"}


async def test_the_end_of_the_partition_counts_from_the_end_of_the_range_on() -> None:
    """An end of the partition before the range's end moves the figure; at or after it, the source is done."""
    name = TopicPartition("t", 0)
    fake = FakeConsumer([record(0), failing(_Code._PARTITION_EOF, 0, 4)])
    source, _, _ = await play(fake, Range("t", 0, 0, 6))
    assert (source.done, source.figures) == (False, {name: 4})
    fake.script.append(scripted_member.brings(failing(_Code._PARTITION_EOF, 0, 9)))
    assert await source.fetch(1000, 0.0) == []
    assert (source.done, source.figures) == (True, {name: 6})


async def test_only_times_of_the_broker_end_a_range() -> None:
    """A record too late ends the range only if the broker gave its time, which each record says for itself."""
    lots = [
        [record(0, timestamp=10), record(1, timestamp=99), record(2, timestamp=11)],
        [record(3, timestamp=99), record(4, timestamp=12), record(5, timestamp=99, by_broker=True)],
        [record(6, timestamp=13)],
    ]
    source, found, _ = await play(FakeConsumer(*lots), Range("t", 0, 0, 100, 10, 20))
    assert (offsets(found), source.done, source.outside_time) == ([0, 2, 4], True, 3)


async def test_a_record_without_a_time_is_omitted_only_after_a_beginning_in_time() -> None:
    """A record without a timestamp is read unless the range has a beginning in time."""
    without = Message("t", 0, 0, b"k", b"v", None, None, (0, -1), 0.0, 0)
    for since, until, expected in ((None, None, [0]), (None, 5, [0]), (0, None, [])):
        _, found, _ = await play(FakeConsumer([without]), Range("t", 0, 0, 1, since, until))
        assert offsets(found) == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (_Code._AUTO_OFFSET_RESET, r"t\[0\] cannot be read further than offset 2"),
        (_Code._LOG_TRUNCATION, r"t\[0\] cannot be read further than offset 2"),
        (_Code.UNKNOWN_TOPIC_OR_PART, r"t\[0\] does not exist any more"),
        (_Code._UNKNOWN_PARTITION, r"t\[0\] does not exist any more"),
        (_Code.TOPIC_AUTHORIZATION_FAILED, "grant READ"),
    ],
)
async def test_an_error_that_does_not_pass_ends_the_reading(code: int, text: str) -> None:
    """In one line; one that passes, of a partition or of none, is reported, and reading goes on."""
    passing = [Message(error=_Code(_Code._TRANSPORT)), failing(_Code.NOT_LEADER_FOR_PARTITION)]
    source, found, reported = await play(FakeConsumer(passing, [record(0)]), Range("t", 0, 0, 1))
    assert (offsets(found), source.done) == ([0], True)
    assert reported == ["_TRANSPORT", "NOT_LEADER_FOR_PARTITION"]
    fake = FakeConsumer([record(0), record(1)], [failing(code)])
    with pytest.raises(KafkaError, match=text) as raised:
        await play(fake, Range("t", 0, 0, 9))
    assert "\n" not in str(raised.value)


async def test_errors_of_the_client_end_the_reading_too() -> None:
    """A refused login at every fetch; a deleted topic only if its partition is still read."""
    fake = FakeConsumer([record(0)])
    source, _, reported = await play(fake, Range("t", 0, 0, 1), Range("t", 1, 0, 1))
    hear, missing = fake.config["error_cb"], _Code.UNKNOWN_TOPIC_OR_PART
    for other in ("t", "other"):
        hear(_Code(missing, f"{other} [0]: topic does not exist"))
        assert await source.fetch(1000, 0.0) == []
    assert reported == ["UNKNOWN_TOPIC_OR_PART"] * 2
    hear(_Code(missing, "t [1]: does not exist"))
    with pytest.raises(KafkaError, match=r"t\[1\] does not exist any more"):
        await source.fetch(1000, 0.0)
    fake = FakeConsumer()
    source, _, _ = await play(fake, Range("t", 0, 0, 1))
    fake.config["error_cb"](_Code(_Code._AUTHENTICATION, "authentication error: invalid"))
    for _ in range(2):
        with pytest.raises(KafkaError, match="KAFKA_SASL_PASSWORD"):
            await source.fetch(1000, 0.0)
