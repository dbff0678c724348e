"""Records are taken from the client in slices bounded in bytes, although the client limits them by number only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

import pytest
from confluent_kafka import Consumer, KafkaError, Message

from consumer.adapters.kafka.chunks import MAX_FETCH_BYTES, MAX_RECORDS, Inbox
from tests.adapters.kafka.member.scripted_member import Clock

HEADER = 184
GATHER = 0.12


class Queue:
    """A client's queue; `asked` are the numbers of records asked for, call by call."""

    def __init__(self, *messages: Message) -> None:
        self._left = deque(messages)
        self.asked: list[int] = []
        self.timeouts: list[float] = []

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        self.asked.append(num_messages)
        self.timeouts.append(timeout)
        return [self._left.popleft() for _ in range(min(num_messages, len(self._left)))]


def inbox_of(queue: Queue | Arriving) -> Inbox:
    """Return an inbox that takes from `queue`."""
    return Inbox(cast(Consumer, queue), gather=GATHER)


def message(offset: int, value: bytes, key: bytes = b"", headers: int = 0) -> Message:
    """Return a record of one partition."""
    many: list[tuple[str, str | bytes | None]] = [("abc", b"d")] * headers
    return Message(
        topic="t", partition=0, offset=offset, key=key, value=value, headers=many, timestamp=(1, 1)
    )


def test_small_records_come_as_many_as_there_is_room_for() -> None:
    """As many small records as there is room for come in one chunk, in order; only the first is waited for."""
    queue = Queue(*(message(offset, b"v" * 500) for offset in range(MAX_RECORDS + 100)))
    inbox = inbox_of(queue)
    taken = inbox.take(5_000, 0.5)
    [chunk] = taken.chunks({("t", 0): 1}.get)
    assert [record.offset for record in chunk.records] == list(range(MAX_RECORDS))
    assert (queue.timeouts[0] > 0, set(queue.timeouts[1:])) == (True, {0})
    assert len(inbox.take(70, 0.5).messages) == 70


def test_a_fetch_ends_with_a_slice_that_is_not_full() -> None:
    """A slice that is not full ends the fetch, without another query."""
    queue = Queue(*(message(offset, b"v") for offset in range(10)))
    inbox = inbox_of(queue)
    assert len(inbox.take(1000, 0.5).messages) == 10
    assert queue.asked == [1, 256]
    assert inbox.take(1000, 0.5).messages == []


class Arriving:
    """A client whose records arrive at set times, with a clock that a wait moves at once."""

    def __init__(self, clock: Clock, *times: float) -> None:
        self._times = deque(times)
        self._clock = clock
        clock.now = 0.0

    @property
    def now(self) -> float:
        return self._clock.now

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:
        until, found = self.now + timeout, list[Message]()
        while self._times and len(found) < num_messages and self._times[0] <= until:
            self._clock.now = max(self.now, self._times.popleft())
            found.append(message(len(self._times), b"v"))
        if len(found) < num_messages:
            self._clock.now = until
        return found


def test_records_that_come_one_by_one_are_gathered(clock: Clock) -> None:
    """The first at once, the others seven times a second; they say how long the first of them has waited."""
    queue = Arriving(clock, *(1 + at / 100 for at in range(100)))
    inbox = inbox_of(queue)
    taken = []
    while len((found := inbox.take(1000, 2.0)).messages):
        taken.append((len(found.messages), round(queue.now, 3), round(found.waited, 3)))
    assert taken[:3] == [(1, 1.0, 0.0), (13, 1.132, 0.122), (13, 1.262, 0.122)]
    assert len(taken) == 9


def test_what_is_gathered_ends_with_an_answer(clock: Clock) -> None:
    """The records of the last answer do not wait, and all parts of an answer come together."""
    queue = Arriving(clock, 0.1, 0.15, 0.2, 0.25, 0.2505, 0.251, 0.3)
    inbox = inbox_of(queue)
    assert len(inbox.take(1000, 2.0).messages) == 1
    assert len(inbox.take(1000, 2.0).messages) == 5
    assert queue.now == pytest.approx(0.252)


def test_a_record_that_comes_alone_does_not_wait(clock: Clock) -> None:
    """Nor just after a fetch that brought none."""
    queue = Arriving(clock, 0.1, 0.3, 1.11, 1.12)
    inbox = inbox_of(queue)
    assert [len(inbox.take(1000, 0.8).messages) for _ in range(4)] == [1, 1, 0, 1]
    assert queue.now == 1.11


def test_records_that_fill_the_room_do_not_wait(clock: Clock) -> None:
    """Also while others are gathered, and after a fetch that left some."""
    queue = Arriving(clock, *[0.1] * 300, 0.101, *[0.102] * 700)
    inbox = inbox_of(queue)
    assert len(inbox.take(1000, 2.0).messages) == 300
    assert (len(inbox.take(300, 2.0).messages), queue.now) == (300, 0.102)
    assert (len(inbox.take(300, 2.0).messages), queue.now) == (300, 0.102)


def test_nothing_waits_long_for_a_fetch_that_gathers(clock: Clock) -> None:
    """A commit, or a partition that can be read, ends a fetch that gathers."""
    queue = Arriving(clock, 0.1, 0.11, 0.15, 0.16, 0.18)
    inbox = inbox_of(queue)
    assert len(inbox.take(1000, 2.0).messages) == 1
    assert len(inbox.take(1000, 2.0, lambda: queue.now >= 0.12, 0.05).messages) == 3
    assert queue.now == pytest.approx(0.16)


def test_records_for_a_whole_call_do_not_wait(clock: Clock) -> None:
    """What gathers ends with as many as a call takes; without a wait twice as many are taken."""
    queue = Arriving(clock, 0.1, *(0.11 + at / 10_000 for at in range(1_500)), *[1.0] * 3_000)
    inbox = inbox_of(queue)
    assert len(inbox.take(2000, 2.0).messages) == 1
    taken = [(len(inbox.take(2000, 2.0).messages), round(queue.now, 4)) for _ in range(3)]
    assert taken == [(1000, 0.2099), (500, 0.3919), (2000, 1.0)]


def test_large_records_come_a_few_at_a_time() -> None:
    """Large records come a few at a time: keys and values count, and one larger than the bound comes alone."""
    queue = Queue(*(message(offset, b"v" * 500_000, b"k" * 500_000) for offset in range(20)))
    assert len(inbox_of(queue).take(1000, 0.5).messages) == MAX_FETCH_BYTES // 1_000_000
    queue = Queue(*(message(offset, b"v" * MAX_FETCH_BYTES) for offset in range(3)))
    assert len(inbox_of(queue).take(1000, 0.5).messages) == 1


def test_headers_count_as_objects() -> None:
    """Headers count with the size of their objects, also in records after many without headers."""
    small = [message(offset, b"v") for offset in range(100)]
    queue = Queue(*small, *(message(100 + offset, b"v", headers=20_000) for offset in range(20)))
    inbox = inbox_of(queue)
    taken = inbox.take(1000, 0.5)
    assert 100 < len(taken.messages) <= 102
    assert taken.size >= (len(taken.messages) - 100) * 20_000 * HEADER


def test_records_kept_back_come_next_and_in_order() -> None:
    """Records that are kept back come next, once and in order, and each fetch polls the client."""
    queue = Queue(*(message(offset, b"v", headers=20_000 * (offset % 7 == 0)) for offset in range(300)))
    inbox, offsets, fetches = inbox_of(queue), [], 0
    while taken := inbox.take(1000, 0.5).messages:
        offsets += [one.offset() for one in taken]
        fetches += 1
        assert len(queue.asked) >= fetches
    assert offsets == list(range(300))
    assert fetches > 20


def test_without_room_records_kept_back_stay() -> None:
    """With none kept back one is taken all the same: it may be an error."""
    queue = Queue(*(message(offset, b"v", headers=30_000 * min(offset, 1)) for offset in range(5)))
    inbox = inbox_of(queue)
    assert [one.offset() for one in inbox.take(0, 0.5).messages] == [0]
    assert [one.offset() for one in inbox.take(0, 0.5).messages] == [1]
    queue = Queue(*(message(offset, b"v", headers=30_000 * min(offset, 1)) for offset in range(5)))
    inbox = inbox_of(queue)
    assert [one.offset() for one in inbox.take(9, 0.5).messages] == [0, 1]
    assert inbox.take(0, 0.5).messages == []
    assert max(queue.timeouts[-2:]) > 0
    assert inbox.first_offsets() == {("t", 0): 2}
    assert [one.offset() for one in inbox.take(9, 0.5).messages] == [2]


@pytest.mark.parametrize("end", [lambda inbox: inbox.keep(()), lambda inbox: inbox.keep({("t", 1): 7})])
def test_records_kept_back_end_with_their_assignment(end: Callable[[Inbox], None]) -> None:
    """And when their partition is read from elsewhere: they would come twice, or out of order."""
    inbox = inbox_of(Queue(*(message(offset, b"v", headers=30_000 * min(offset, 1)) for offset in range(5))))
    assert [one.offset() for one in inbox.take(9, 0.5).messages] == [0, 1]
    assert inbox.first_offsets() == {("t", 0): 2}
    end(inbox)
    assert inbox.first_offsets() == {}
    assert inbox.take(9, 0.5).messages == []


def test_a_slice_that_meets_large_records_is_the_last() -> None:
    """Where large records follow small ones, the slice that meets them is the last."""
    small = [message(offset, b"v" * 100) for offset in range(300)]
    large = [message(300 + offset, b"v" * 20_000) for offset in range(600)]
    queue = Queue(*small, *large)
    inbox_of(queue).take(1000, 0.5)
    assert sum(queue.asked) <= 300 + 256 + 1


def test_errors_and_records_of_partitions_not_held_are_kept_apart() -> None:
    """An error parts no chunk; records of partitions that are not held are dropped."""
    error = Message(topic="t", partition=0, error=KafkaError(KafkaError._TRANSPORT))
    taken = inbox_of(Queue(message(1, b"v"), error, message(2, b"v"))).take(1000, 0.5)
    [chunk] = taken.chunks({("t", 0): 1}.get)
    assert [record.offset for record in chunk.records] == [1, 2]
    assert (taken.errors, taken.damaged) == ([error], {})
    assert taken.chunks({}.get) == []


def test_what_follows_a_damaged_batch_counts_into_the_bound() -> None:
    """It is dropped, but takes memory until the fetch ends."""
    error = KafkaError(KafkaError._BAD_MSG, "failed CRC32C check")
    damaged = Message("t", 0, 0, None, None, None, error, (0, -1), 0.0, -1)
    queue = Queue(damaged, *(message(offset, b"v" * 1_000_000) for offset in range(1000)))
    inbox = inbox_of(queue)
    taken = inbox.take(5_000, 0.5)
    assert (taken.chunks({("t", 0): 1}.get), taken.errors, [*taken.damaged]) == ([], [], [("t", 0)])
    assert MAX_FETCH_BYTES <= taken.size < MAX_FETCH_BYTES + 1_000_000
