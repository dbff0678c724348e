"""Damaged batches on a fake consumer: neither they nor what is behind them is read until they are repaired."""

from __future__ import annotations

import itertools

import confluent_kafka
import pytest
from confluent_kafka import Message

from consumer.engine.model import TopicPartition
from tests.adapters.kafka.member.scripted_member import Bench, Clock, brings, message, offsets, taken

P0, P1 = TopicPartition("t", 0), TopicPartition("t", 1)


def damaged(offset: int, code: int = confluent_kafka.KafkaError._BAD_MSG, partition: int = 0) -> Message:
    """Return the message that librdkafka yields for a damaged batch."""
    error = confluent_kafka.KafkaError(code, "failed CRC32C check")
    return Message("t", partition, offset, None, None, None, error, (0, -1), 0.0, -1)


@pytest.mark.parametrize("code", ["_BAD_MSG", "_BAD_COMPRESSION", "_NOT_IMPLEMENTED", "INVALID_MSG"])
def test_what_follows_a_damaged_batch_is_dropped(clock: Clock, code: str) -> None:
    """In that consume and later: librdkafka may go on anywhere. Other partitions are read."""
    bench = Bench()
    bench.assign(0, 1)
    error = damaged(5, getattr(confluent_kafka.KafkaError, code))
    lot = [message(3), message(4), error, message(9), message(0), message(7, partition=1), damaged(77, -192)]
    assert offsets(bench.fetch(brings(*lot))) == [3, 4, 7]
    assert offsets(bench.fetch(brings(message(10), damaged(5), message(8, partition=1)))) == [8]
    assert bench.calls("pause") == [("pause", [(0, -1001)])]
    assert [
        one for one in bench.reported.errors if "t[0] cannot be read further than offset 5" in one[1]
    ] == [bench.reported.errors[0]]
    assert bench.reported.errors[0][0] == code
    assert bench.member.end_offsets().unreadable == {P0: 5}


def test_a_damaged_batch_is_tried_again_less_and_less_often(clock: Clock) -> None:
    """After half a second, then in doubled intervals up to 30 s, until it is read."""
    bench = Bench()
    bench.assign(0)
    bench.fetch(brings(message(3), damaged(4)))
    asked = []
    for _ in range(1500):
        clock.now += 0.1
        sought = len(bench.calls("seek"))
        bench.fetch()
        if len(bench.calls("seek")) > sought:
            asked.append(round(clock.now - 1000.0, 1))
            bench.fetch(brings(damaged(4)))
    assert [round(after - before) for before, after in itertools.pairwise(asked[1:])] == [
        *(2, 4, 8, 16, 30, 30, 30)
    ]
    assert set(map(str, bench.calls("seek"))) == {"('seek', [(0, 4)])"}
    clock.now += 30.0
    assert offsets(bench.fetch(brings(message(4)))) == [4]
    assert bench.member.end_offsets().unreadable == {}
    names = [call[0] for call in bench.consumer.calls if call[0] in ("pause", "resume", "seek")]
    assert names == ["pause", "resume", "seek"] * (len(names) // 3)


def test_a_damaged_partition_of_which_nothing_was_read_is_tried_from_its_start(clock: Clock) -> None:
    """A partition of which nothing was read is tried again from its committed offset, or from the beginning."""
    bench = Bench()
    bench.consumer.stored = {1: 7}
    bench.assign(0, 1)
    bench.fetch(brings(damaged(0), damaged(5, partition=1)))
    clock.now += 1.0
    bench.fetch()
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)]), ("seek", [(1, 7)])]
    assert bench.member.end_offsets().unreadable == {P0: 0, P1: 7}


def test_a_beginning_that_a_login_interrupts_is_asked_for_again(clock: Clock) -> None:
    """Under ``error`` librdkafka gives it up with a login that was not judged: it is read half a second later."""
    bench = Bench()
    bench.assign(0, 1)
    words = "failed to query logical offset: Local: Authentication failure (broker 1)"
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError._AUTO_OFFSET_RESET, words)
    bench.fetch(brings(Message("t", 0, -1, None, None, None, error, (0, -1), 0.0, -1)))
    [(code, text)] = bench.reported.errors
    assert code == "_AUTO_OFFSET_RESET"
    assert text.startswith("t[0] cannot be read further than its beginning: the client had to log in")
    clock.now += 0.5
    assert offsets(bench.fetch(brings(message(3)))) == [3]
    assert bench.calls("seek") == [("seek", [(0, confluent_kafka.OFFSET_BEGINNING)])]


def test_a_damaged_partition_stays_paused_without_room(clock: Clock) -> None:
    """With room the others go on, and it does when it is tried again."""
    bench = Bench()
    bench.assign(0, 1)
    bench.fetch(brings(damaged(0)))
    clock.now += 2.0
    bench.fetch(room=0)
    clock.now += 2.0
    bench.fetch(room=0)
    assert bench.calls("seek") == bench.calls("resume") == []
    bench.fetch()
    assert bench.calls("resume") == [("resume", [(1, -1001)]), ("resume", [(0, -1001)])]
    assert len(bench.calls("seek")) == 1


def test_a_damaged_partition_is_forgotten_with_its_revocation(clock: Clock) -> None:
    """Assigned again, it is read from its committed offset."""
    bench = Bench()
    bench.assign(0)
    bench.fetch(brings(damaged(0)))
    bench.fetch(taken(0))
    assert bench.member.end_offsets().unreadable == {}
    clock.now += 5.0
    bench.assign(0)
    assert bench.calls("seek") == []
    assert bench.calls("resume") == [("resume", [(0, -1001)])]
    assert offsets(bench.fetch(brings(message(0)))) == [0]
