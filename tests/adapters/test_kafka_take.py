"""Records are taken from the client in slices that are bounded in bytes: it hands them out by their number only."""

from __future__ import annotations

from collections import deque

from confluent_kafka import Message

from consumer.adapters.kafka.chunks import MOST_BYTES, MOST_RECORDS, take

HEADER = 184


class Queue:
    """A client's queue; `asked` is how many records were asked for, one call after the other."""

    def __init__(self, *messages: Message) -> None:
        self._left = deque(messages)
        self.asked: list[int] = []
        self.timeouts: list[float] = []

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        self.asked.append(num_messages)
        self.timeouts.append(timeout)
        return [self._left.popleft() for _ in range(min(num_messages, len(self._left)))]


def message(offset: int, value: bytes, key: bytes = b"", headers: int = 0) -> Message:
    """A record of one partition."""
    many: list[tuple[str, str | bytes | None]] = [("abc", b"d")] * headers
    return Message(
        topic="t", partition=0, offset=offset, key=key, value=value, headers=many, timestamp=(1, 1)
    )


def test_small_records_come_as_many_as_there_is_room_for() -> None:
    """One chunk, in order; only the first is waited for."""
    queue = Queue(*(message(offset, b"v" * 500) for offset in range(2_000)))
    taken = take(queue, 5_000, 0.5)
    [chunk] = taken.chunks({("t", 0): 1})
    assert [record.offset for record in chunk.records] == list(range(MOST_RECORDS))
    assert (queue.timeouts[0], set(queue.timeouts[1:])) == (0.5, {0})
    assert len(take(queue, 70, 0.5).messages) == 70


def test_it_ends_with_what_is_there() -> None:
    """A slice that is not full is the last one: nothing is asked for twice."""
    queue = Queue(*(message(offset, b"v") for offset in range(10)))
    assert len(take(queue, 1000, 0.5).messages) == 10
    assert queue.asked == [1, 64]
    assert take(queue, 1000, 0.5).messages == []


def test_large_records_come_a_few_at_a_time() -> None:
    """Values and keys count; what is larger than all of it comes alone."""
    queue = Queue(*(message(offset, b"v" * 500_000, b"k" * 500_000) for offset in range(20)))
    assert len(take(queue, 1000, 0.5).messages) == MOST_BYTES // 1_000_000
    assert (
        len(take(Queue(*(message(offset, b"v" * MOST_BYTES) for offset in range(3))), 1000, 0.5).messages)
        == 1
    )


def test_headers_count_as_objects() -> None:
    """Twenty thousand of four bytes are four megabytes."""
    queue = Queue(*(message(offset, b"v", headers=20_000) for offset in range(20)))
    taken = take(queue, 1000, 0.5)
    assert len(taken.messages) <= 2
    assert taken.size >= len(taken.messages) * 20_000 * HEADER


def test_one_slice_is_all_that_comes_unforeseen() -> None:
    """Small records before large ones: the slice that meets them is the last."""
    small = [message(offset, b"v" * 100) for offset in range(300)]
    large = [message(300 + offset, b"v" * 200_000) for offset in range(300)]
    assert len(take(Queue(*small, *large), 1000, 0.5).messages) < 300 + 64 + 1


def test_errors_are_among_them_and_no_records() -> None:
    """What is no record of what is held is dropped."""
    taken = take(Queue(message(0, b"a")), 1000, 0.5)
    assert taken.chunks({}) == []
    assert taken.errors == []
