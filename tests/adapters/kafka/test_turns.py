"""Where many partitions lag they are read by turns: at less cost, in order, and none for long after the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.held import StartedPartition, Turns
from consumer.adapters.kafka.watch import Ends
from consumer.engine.model import TopicPartition
from tests.adapters.kafka.member.scripted_member import Bench, Clock, brings, message, taken
from tests.support.kafka.harness import Kafka, Member, create_topic, unique

MANY = 200
LONGEST_REST = 5.0
"""Seconds that a partition rests at most, as docs/guarantees.md has it."""


def lagging(count: int, lag: int = 1000) -> tuple[dict[TopicPartition, StartedPartition], Ends]:
    """Return partitions that begin at offset 10 and whose logs end `lag` records later."""
    names = [TopicPartition("t", number) for number in range(count)]
    ends = Ends(None, lambda code, text: None)  # type: ignore[arg-type]  # asks nothing here
    ends.begins, ends.ends = dict.fromkeys(names, 10), dict.fromkeys(names, 10 + lag)
    return {
        name: StartedPartition(at, RawPartition(*name, confluent_kafka.OFFSET_BEGINNING))
        for at, name in enumerate(names)
    }, ends


def turns_of(
    turns: Turns, held: dict[TopicPartition, StartedPartition], step: float, *, drained: bool
) -> Iterator[tuple[float, set[TopicPartition]]]:
    """Yield the time and what is read then, with a fetch every `step` seconds."""
    for now in itertools.takewhile(lambda at: at < 12.0, itertools.count(0.0, step)):
        turns.next(held, drained, now)
        yield now, held.keys() - turns.resting


@pytest.mark.parametrize("drained", [True, False])
@pytest.mark.parametrize("count", [128, 200, 1_000, 5_000])
def test_no_partition_rests_for_long(count: int, drained: bool) -> None:
    """Each partition has a turn within five seconds, however many lag and however slowly their records are taken."""
    held, ends = lagging(count)
    turns = Turns()
    turns.plan(ends.lags(held), 0.0)
    read = dict.fromkeys(held, 0.0)
    maximum = 0
    for now, group in turns_of(turns, held, 0.02, drained=drained):
        maximum = max(maximum, len(group) if turns.resting else 0)
        read |= dict.fromkeys(group, now)
        assert now - min(read.values()) <= LONGEST_REST
    assert 64 <= maximum <= max(127, math.ceil(count / 16)), "and few are read at a time"


def test_few_that_lag_wait_for_no_turn() -> None:
    """Nor many that lag by little; what was read over behind the last record does not count."""
    for count, lag, reached in ((127, 1_000_000, 0), (1_000, 63, 0), (1_000, 1_000, 997)):
        held, ends = lagging(count, lag)
        ends.reached = dict.fromkeys(held, 10 + reached)
        turns = Turns()
        turns.plan(ends.lags(held), 0.0)
        assert (turns.next(held, True, 0.0), turns.resting, turns.due) == (set(), set(), math.inf)


def test_what_rests_goes_on_where_few_lag_any_more() -> None:
    """The turns end, and all partitions are read, once most have been read to their ends."""
    held, ends = lagging(1_000)
    turns = Turns()
    turns.plan(ends.lags(held), 0.0)
    turns.next(held, True, 0.0)
    rested = set(turns.resting)
    few = set(itertools.islice(held, 127))
    ends.ends = {name: 2_000 if name in few else 20 for name in held}
    turns.plan(ends.lags(held), 0.05)
    assert len(rested) > 900
    assert turns.next(held, True, 0.1) == rested
    assert (turns.resting, turns.due) == (set(), math.inf)


def many_lag(clock: Clock) -> Bench:
    """Return a member of which many partitions lag, in the first turn."""
    bench = Bench()
    bench.consumer.cached_begin, bench.consumer.cached_end = 0, 1_000
    bench.assign(*range(MANY))
    clock.now += 1.0
    bench.fetch()
    bench.fetch()
    return bench


def paused(bench: Bench) -> set[int]:
    """Return which partitions the client has paused, by its calls."""
    found: set[int] = set()
    for call, *arguments in bench.consumer.calls:
        if call in ("pause", "resume"):
            numbers = {number for number, _ in arguments[0]}
            assert call == "pause" or numbers <= found, "a partition was resumed that was not paused"
            found = found | numbers if call == "pause" else found - numbers
    return found


def test_a_turn_pauses_the_others(clock: Clock) -> None:
    """A group is read at a time, and each partition is in one: then the next group has its turn."""
    bench = many_lag(clock)
    groups = [set(range(MANY)) - paused(bench)]
    for _ in range(2):
        clock.now += 0.1
        bench.fetch()
        groups.append(set(range(MANY)) - paused(bench))
    assert sorted(itertools.chain(*groups)) == list(range(MANY))
    bench.consumer.cached_end = 10
    for seconds in (1.0, 0.1):
        clock.now += seconds
        bench.fetch()
    assert paused(bench) == set(), "all are read where none lags any more"


def test_records_that_were_taken_of_a_group_come_after_its_turn(clock: Clock) -> None:
    """What was fetched and kept back is handed out when its partitions rest already."""
    bench = many_lag(clock)
    first = [one for one in range(MANY) if one not in paused(bench)]
    chunks = bench.fetch(brings(*(message(at, first[0]) for at in range(3))), room=1)
    for _ in range(3):
        clock.now += 0.4
        chunks += bench.fetch(room=1)
    assert [record.offset for chunk in chunks for record in chunk.records] == [0, 1, 2]


def test_without_room_all_rest_and_no_turn_begins(clock: Clock) -> None:
    """Without room all are paused, however long, and with room again only those whose turn it is go on."""
    bench = many_lag(clock)
    bench.fetch(room=0)
    clock.now += 1.5
    bench.fetch(room=0)
    assert paused(bench) == set(range(MANY))
    before = len(bench.consumer.calls)
    for _ in range(5):
        clock.now += 1.0
        bench.fetch(room=0)
    assert not [call for call in bench.consumer.calls[before:] if call[0] in ("pause", "resume")]
    bench.fetch()
    assert 64 <= MANY - len(paused(bench)) < 128


def test_each_has_its_turn_where_there_is_room_for_moments(clock: Clock) -> None:
    """Where there is room for less than a turn, and none for long in between, another group has it each time."""
    bench = many_lag(clock)
    read = []
    for _ in range(3):
        for room in (0, 0, 1):
            clock.now += 1.1
            bench.fetch(brings(message(0), message(1)), room=room)
        read.append(set(range(MANY)) - paused(bench))
    assert sorted(itertools.chain(*read)) == list(range(MANY))


def test_a_partition_that_came_back_is_read(clock: Clock) -> None:
    """One that was taken away while it rested is read when it is assigned again where none lags."""
    bench = many_lag(clock)
    rested = min(paused(bench))
    bench.fetch(taken(*range(MANY)))
    bench.assign(rested)
    assert rested not in paused(bench)


def test_a_damaged_partition_stays_paused_in_its_turn(clock: Clock) -> None:
    """A turn does not resume a partition that waits until it is tried again."""
    bench = many_lag(clock)
    reading = min(set(range(MANY)) - paused(bench))
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._BAD_MSG, "failed CRC32C check")
    bench.fetch(brings(Message("t", reading, 0, None, None, None, error, (0, -1), 0.0, -1)))
    for _ in range(4):
        clock.now += 0.1
        bench.fetch()
        assert reading in paused(bench)


def numbered(partition: int, count: int) -> list[bytes]:
    """Return the values of a partition."""
    return [b"%d-%d " % (partition, number) + b"x" * 300 for number in range(count)]


@pytest.mark.real_kafka
async def test_turns_lose_double_and_reorder_nothing(kafka: Kafka, protocol: dict[str, Any]) -> None:
    """On a real broker, with a member that joins in the middle."""
    topic, group = create_topic(kafka, MANY), unique("group")
    expected = {number: numbered(number, 300 + number % 7) for number in range(MANY)}
    fill(kafka, topic, expected)
    first = Member(kafka, [topic], group, config=protocol)
    first.room = 1
    turned = False

    def has_turned() -> bool:
        nonlocal turned
        member = first.source._joined()
        member._watch.due = 0.0  # look at the ends at once: in the second until then, most would be read
        turned = turned or bool(member._held.turns.resting)
        return turned

    async with first:
        await first.until(has_turned, "a turn")
        first.room = 250
        async with Member(kafka, [topic], group, config=protocol) as second:
            count = sum(map(len, expected.values()))
            await first.until(lambda: len(first.values) + len(second.values) >= count, "all records")
            got: dict[int, list[bytes | None]] = {number: [] for number in range(MANY)}
            for chunk in (*first.chunks, *second.chunks):
                got[chunk.partition] += [record.value for record in chunk.records]
            assert got == expected
            assert (first.failure, second.failure) == (None, None)


def fill(kafka: Kafka, topic: str, values: dict[int, list[bytes]]) -> None:
    """Put these values on their partitions."""
    producer = confluent_kafka.Producer({**kafka.config, "log_level": 0})
    for partition, some in values.items():
        for value in some:
            producer.produce(topic, value, partition=partition)
        producer.poll(0)
    assert producer.flush(30.0) == 0
