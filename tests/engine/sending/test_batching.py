"""Batches per ad account: by count, by bytes, by age; batches to be retried are sent first."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine.model import Policy, TopicPartition
from consumer.engine.records.runs import Run, divide, each_of
from consumer.engine.sending.gate import Gate
from consumer.engine.sending.queue import AccountQueue, Batch
from tests.engine.building import ACCOUNT, AT_ONCE, MACHINE, MANY, TOPIC, Books, make_runs

MIB = 1024 * 1024


def queue_of(**policy: float) -> AccountQueue:
    """Return an account's queue under this policy."""
    chosen = Policy(**AT_ONCE | policy)
    return AccountQueue(ACCOUNT, chosen, Gate(chosen))


def test_the_linger_counts_from_the_oldest_event() -> None:
    """The linger counts from when a batch's oldest event came, whatever held it up; later events do not extend it."""
    queue = queue_of(linger=0.5)
    [first], [second], [third] = (make_runs(1, since=since) for since in (10.1, 10.0, 10.4))
    queue.add(first, 10.2)
    queue.add(second, 10.3)
    queue.add(third, 10.4)
    assert queue.due() == 10.5
    assert queue.take(10.49, 1) is None
    batch = queue.take(10.5, 1)
    assert batch is not None
    assert [*each_of(batch.runs)] == [first, second, third]
    assert queue.due() is None


def test_the_linger_counts_from_the_batch_before() -> None:
    """Events that came while the batch before filled wait from when it was closed, so that batches keep their
    distance; those that have waited since go at once."""
    queue = queue_of(linger=0.5, batch_events=2)
    first, second, third = make_runs(3, since=9.0)
    for one in (first, second, third):
        queue.add(one, 10.0)
    assert queue.take(10.0, 1) is not None
    assert queue.due() == 10.5
    assert queue.take(10.5, 2) is not None
    [later] = make_runs(1, since=10.4)
    queue.add(later, 11.2)
    assert queue.take(11.2, 3) is not None


def test_the_body_never_exceeds_the_limit() -> None:
    """A body has at most 4 MiB with envelope and commas (one comma more is counted than is sent, never fewer)."""
    size = (4 * MIB - 15) // 4
    [*four, larger] = [*make_runs(4, size=size), *make_runs(1, size=size + 1)]
    for fifth, held in ((four[3], 4), (larger, 3)):
        queue = queue_of(batch_bytes=11 + 4 * (size + 1), batch_events=1000, linger=0.0)
        for one in [*four[:3], fifth]:
            queue.add(one, 1.0)
        batch = queue.take(1.0, 1)
        assert batch is not None
        assert batch.events == held
        body = b"".join(batch.parts())
        assert len(body) <= 4 * MIB
        assert len(orjson.loads(body)["data"]) == held


@pytest.mark.parametrize("rows", range(1, 41))
def test_a_call_keeps_little_more_in_memory_than_it_sends(rows: int) -> None:
    """A call that does not copy its bodies keeps the pages of whole blocks, so small parts of a page are copied."""
    block = make_runs(40, size=50)[0].block
    parts = Batch(1, ACCOUNT, [Run(block, 0, rows)]).parts()
    held = sum(memoryview(part.obj).nbytes if isinstance(part, memoryview) else len(part) for part in parts)
    assert len(orjson.loads(b"".join(parts))["data"]) == rows
    assert held <= 4 * sum(map(len, parts))
    # Of a large part of a page, the call keeps the page and copies nothing.
    assert isinstance(parts[1], memoryview) == (rows > 10)


def test_retries_go_first_when_their_time_has_come() -> None:
    """A batch to be retried is sent first when it is due: it holds the oldest records, which hold the commit."""
    queue = queue_of(linger=0.0)
    old, new = make_runs(2)
    retry = Batch(1, ACCOUNT, [old], attempts=1)
    queue.put_back(retry, 5.0)
    queue.add(new, 1.0)
    fresh = queue.take(1.0, 2)
    assert fresh is not None
    assert fresh.runs == [new]
    queue.add(new, 5.0)
    assert queue.take(5.0, 3) is retry
    assert (retry.number, retry.attempts) == (3, 1)


def test_retries_due_at_the_same_time_go_in_order_of_their_numbers() -> None:
    """Retries due at the same time are sent in order of their numbers: the same seed gives the same commands."""
    queue = queue_of()
    batches = [Batch(number, ACCOUNT, make_runs(1)) for number in (3, 1, 2)]
    for batch in batches:
        queue.put_back(batch, 0.0)
    assert [queue.take(0.0, number) for number in (7, 8, 9)] == [batches[1], batches[2], batches[0]]
    assert [batch.number for batch in batches] == [9, 7, 8]


@pytest.mark.parametrize("count", [2, 3, 1000])
def test_halves_hold_the_whole(count: int) -> None:
    """Halves hold all events in order, each with its own number and the attempts and failures in a row so far."""
    batch = Batch(1, ACCOUNT, make_runs(count), attempts=4)
    batch.failures = 3
    first, second = batch.halves(5, 6)
    assert [*first.runs, *second.runs] == batch.runs
    assert abs(first.events - second.events) <= 1
    assert [(half.number, half.attempts, half.failures) for half in (first, second)] == [(5, 4, 3), (6, 4, 3)]


class QueueMachine(RuleBasedStateMachine):
    """An account's queue against the set of events that were added and not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = queue_of(batch_events=4, batch_bytes=600, linger=1.0)
        self.ledger = Books()
        self.states = [self.ledger.begin(TopicPartition(TOPIC, n), 1, 0, False) for n in (0, 1)]
        self.now = 0.0
        self.number = 0
        self.inside: list[Run] = []
        self.taken: list[Batch] = []

    @rule(partition=st.integers(0, 1), sizes=st.lists(st.integers(2, 700), max_size=5))
    def add(self, partition: int, sizes: list[int]) -> None:
        for size in sizes if self.states[partition].live else []:
            [one] = make_runs(1, size=size, state=self.states[partition])
            self.queue.add(one, self.now)
            self.inside.append(one)

    @rule(wait=st.sampled_from([0.0, 0.25, 1.0]))
    def take(self, wait: float) -> None:
        self.now += wait
        due = self.queue.due()
        self.number += 1
        batch = self.queue.take(self.now, self.number)
        assert (batch is not None) == (due is not None and due <= self.now)
        if batch is None:
            return
        assert batch.runs
        assert batch.events <= 4
        assert len(b"".join(batch.parts())) <= 600 or batch.events == 1
        for one in each_of(batch.runs):
            assert one.accepted
            self.inside.remove(one)
        self.taken.append(batch)

    @precondition(lambda self: self.taken)
    @rule(delay=st.sampled_from([0.0, 0.5, 3.0]), bisect=st.booleans())
    def put_back(self, delay: float, bisect: bool) -> None:
        batch = self.taken.pop()
        batch.runs, _ = divide(batch.runs)
        again = [batch]
        if bisect and batch.events > 1:
            self.number += 2
            again = list(batch.halves(self.number - 1, self.number))
        for one in again:
            if one.runs:
                self.queue.put_back(one, self.now + delay)
                self.inside += each_of(one.runs)

    @rule(partition=st.integers(0, 1))
    def revoke(self, partition: int) -> None:
        self.ledger.drop(self.states[partition].tp)
        gone = self.queue.purge()
        assert set(each_of(gone)) == {one for one in self.inside if not one.accepted}
        self.inside = [one for one in self.inside if one.accepted]
        self.states[partition] = self.ledger.begin(TopicPartition(TOPIC, partition), 2, 0, False)

    @invariant()
    def it_holds_what_was_put_in(self) -> None:
        waiting = [*self.queue.ready, self.queue.filling, *(batch.runs for _, _, batch in self.queue.again)]
        held = [row for runs in waiting for row in each_of(runs)]
        assert len(held) == len(self.inside) == self.queue.queued
        assert set(held) == set(self.inside)
        assert (self.queue.due() is None) == (not held)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_queue_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(QueueMachine, settings=MANY)
