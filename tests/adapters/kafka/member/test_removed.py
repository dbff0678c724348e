"""Records removed from a log: where it begins now is reported with the first record after a gap, or with the
ends if none comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaException

from consumer.engine.model import TopicPartition
from tests.adapters.kafka.bounded_reading import TEN, delete_before
from tests.adapters.kafka.member.scripted_member import Bench, Clock, brings, message, taken
from tests.support.kafka.harness import Kafka, Member, commit, produce, unique


def test_where_the_log_begins_is_searched_at_gaps_alone() -> None:
    """Before or within fetched records, but not at the first read from the beginning."""
    bench = Bench()
    bench.consumer.cached_begin = 4
    bench.consumer.stored = {1: 2}
    bench.assign(0, 1)
    lots = ([message(5), message(6)], [message(7)], [message(9)], [message(10), message(12)])
    assert [bench.fetch(brings(*lot))[0].log_start for lot in lots] == [-1, -1, 4, 4]
    assert [one.log_start for one in bench.fetch(brings(message(2, partition=1)))] == [-1]
    assert [one.log_start for one in bench.fetch(brings(message(9, partition=1)))] == [4]


def test_where_the_log_began_is_kept_from_the_assignment(clock: Clock) -> None:
    """A first record from elsewhere, and only that, says where the log begins now; unknown keeps no start."""
    bench = Bench()
    bench.consumer.cached_begin, bench.consumer.beginnings = 9, {0: 4, 1: 9}
    bench.assign(0, 1)
    assert [(one.start, one.beginning) for one in bench.reported.assignments] == [(None, 4), (None, 9)]
    found = bench.fetch(brings(message(9), message(9, partition=1)))
    assert [one.log_start for one in found] == [9, -1]
    bench.fetch(taken(0, 1))
    timed_out = confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT)
    bench.consumer.refused["offsets_for_times"] = KafkaException(timed_out)
    bench.assign(0, 1)
    assert [one.beginning for one in bench.reported.assignments[2:]] == [None, None]
    assert bench.reported.errors == []


@pytest.mark.real_kafka
async def test_what_is_removed_before_a_first_read_is_reported(
    kafka: Kafka, topic: Callable[..., str], protocol: dict[str, Any]
) -> None:
    """The assignment says where the log began, the first chunk where it begins now."""
    name = topic()
    produce(kafka, name, TEN * 3)
    delete_before(kafka, name, 5)
    async with Member(kafka, [name], unique("group"), config=protocol) as member:
        member.room = 0
        await member.until(lambda: bool(member.assignments), "the assignment")
        await member.until(lambda: member.source._joined()._held.full, "the pause")
        delete_before(kafka, name, 20)
        member.room = 1000
        await member.until(lambda: bool(member.records), "a record")
    [reported] = member.assignments
    assert (reported.start, reported.beginning) == (None, 5)
    assert (member.chunks[0].log_start, member.records[0].offset) == (20, 20)


@pytest.mark.real_kafka
@pytest.mark.parametrize("away", [True, False], ids=["while it was away", "under a running member"])
async def test_what_was_removed_is_reported(kafka: Kafka, topic: Callable[..., str], away: bool) -> None:
    """The first record after removed ones comes with the log's beginning; gaps of transactions lie above it."""
    name, group = topic(), unique("group")
    produce(kafka, name, TEN * 3)
    if away:
        commit(kafka, group, name, 5)
        delete_before(kafka, name, 20)
    async with Member(kafka, [name], group) as member:
        if not away:
            await member.until(lambda: len(member.records) == 30)
            await member.obeys(0)
            await member.until(lambda: member.source._joined()._held.full, "the pause")
            produce(kafka, name, TEN)
            delete_before(kafka, name, 35)
            member.room = 1000
        await member.until(lambda: any(chunk.log_start > 0 for chunk in member.chunks), "a gap")
    [gap] = [chunk for chunk in member.chunks if chunk.log_start > 0]
    expected = (20, 20) if away else (35, 35)
    assert (gap.log_start, gap.records[0].offset) == expected


@pytest.mark.real_kafka
async def test_an_emptied_log_is_reported_with_its_end(kafka: Kafka, topic: Callable[..., str]) -> None:
    """For a log that was emptied, its beginning and end are reported although no record comes."""
    name, group = topic(), unique("group")
    produce(kafka, name, TEN)
    commit(kafka, group, name, 5)
    delete_before(kafka, name, 10)
    tp = TopicPartition(name, 0)
    async with Member(kafka, [name], group) as member:
        await member.until(lambda: member.source._joined().end_offsets().begins.get(tp) == 10)
        assert (await member.source.end_offsets()).begins == {tp: 10}
        await member.until(lambda: member.source._joined().end_offsets().ends.get(tp) == 10)
    assert member.records == []
