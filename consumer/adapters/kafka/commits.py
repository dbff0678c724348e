"""Commits in flight, the last commit of a revoked partition, and leaving the group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.configuration import uses_consumer_protocol
from consumer.engine.messages import CommitDone, CommitError
from consumer.engine.model import Position

_AGAIN_AFTER: Final = 0.05
# Seconds between two checks whether LeaveGroup was sent. The answer to a first joining may take as long, too.
_POLL_EVERY: Final = 0.1


def commit_done(committed: Sequence[Position], failure: str | None) -> CommitDone:
    """Return the answer to a commit: what the broker accepted, and the code of the first position that it refused, if
    any."""
    if failure in client_errors.METADATA_TOO_LARGE:
        return CommitDone(committed, failure, CommitError.METADATA)
    passing = failure in client_errors.BETWEEN_GENERATIONS or failure == client_errors.ASSIGNMENT_LOST
    return CommitDone(committed, failure, CommitError.PASSING if passing else CommitError.OTHER)


Answer = Callable[[CommitDone], None]


class Sent(NamedTuple):
    """A commit that was sent. `omitted`: why some of the positions that were asked for were not sent; None: all
    were."""

    positions: Sequence[Position]
    omitted: str | None
    answer: Answer


@dataclass(eq=False)
class SentCommits:
    """The commits that are sent and not answered yet, oldest first. Used in the consumer's thread.

    A commit is sent without waiting, and librdkafka answers it in a later poll.
    """

    sent: list[Sent] = field(default_factory=list)

    def on_commit(self, error: confluent_kafka.KafkaError | None, partitions: Iterable[RawPartition]) -> None:
        """Handle the answer to a commit, as librdkafka's `on_commit`."""
        partitions = list(partitions)
        # The answer names the offsets and not the call: it is for the oldest commit of exactly these offsets. That its
        # caller may have stopped waiting is harmless.
        offsets = {(one.topic, one.partition, one.offset) for one in partitions}
        for index, sent in enumerate(self.sent):
            if offsets == {one[:3] for one in sent.positions}:
                del self.sent[index]
                sent.answer(read_commit_answer(error, partitions, sent.positions, sent.omitted))
                return

    def drop(self, failure: str) -> None:
        """Answer all commits with `failure`: the broker's answers will not come any more."""
        for sent in self.sent:
            sent.answer(commit_done((), failure))
        self.sent.clear()


def read_commit_answer(
    error: confluent_kafka.KafkaError | None,
    partitions: Iterable[RawPartition],
    positions: Sequence[Position],
    omitted: str | None = None,
) -> CommitDone:
    """Return which of `positions` were accepted, by the broker's answer for each partition."""
    if error is not None and error.code() != confluent_kafka.KafkaError.NO_ERROR:
        return commit_done((), error.name())
    refused = {(one.topic, one.partition): one.error.name() for one in partitions if one.error is not None}
    taken = tuple(one for one in positions if (one.topic, one.partition) not in refused)
    # That the metadata is too large must not hide behind another partition's error.
    of_size = next((name for name in refused.values() if name in client_errors.METADATA_TOO_LARGE), None)
    return commit_done(taken, of_size or next(iter(refused.values()), omitted))


def raw_partition(
    topic: str, partition: int, offset: int | None, leader_epoch: int | None, metadata: str = ""
) -> RawPartition:
    """Return librdkafka's form of an offset in a partition (None is the beginning), or of a whole `Position`.

    Every commit has its leader epoch (apache/kafka PR 23183).
    """
    known: dict[str, Any] = {}
    if leader_epoch is not None:  # librdkafka takes any number for a known epoch
        known["leader_epoch"] = leader_epoch
    if metadata:  # empty metadata is sent with a NUL behind it, and a broker that allows no byte refuses that
        known["metadata"] = metadata
    return RawPartition(topic, partition, OFFSET_BEGINNING if offset is None else offset, **known)


def read_position(raw: RawPartition) -> Position:
    """Return what was committed for one partition, from librdkafka's answer."""
    try:
        metadata = raw.metadata or ""
    except UnicodeDecodeError:
        # confluent_kafka decodes metadata only now. Brokers do not check it, and we write ASCII: so another program
        # wrote it.
        metadata = ""
    leader = raw.leader_epoch
    return Position(raw.topic, raw.partition, raw.offset, leader if (leader or 0) >= 0 else None, metadata)


def commit_last(
    consumer: Consumer, positions: Sequence[Position], until: float, on_error: client_errors.OnError
) -> None:
    """Commit `positions`; try again until `until` (monotonic) while the group is between generations, or the
    connection to its coordinator is lost.

    Only librdkafka bounds a single try: three times ``socket.timeout.ms``.
    """
    left, failure = list(positions), None
    while left:
        try:
            answered = consumer.commit(offsets=[raw_partition(*one) for one in left], asynchronous=False)
        except KafkaException as error:
            failure = client_errors.cause_of(error).name()
        else:
            done = read_commit_answer(None, answered, left)
            left, failure = [one for one in left if one not in done.committed], done.failure
        if failure in client_errors.METADATA_TOO_LARGE and any(one.metadata for one in left):
            # Better a commit without metadata than none: no later one follows.
            left = [one._replace(metadata="") for one in left]
        elif failure in client_errors.LAST_COMMIT_AGAIN and time.monotonic() + _AGAIN_AFTER < until:
            # The broker refuses a delayed commit, which names the previous generation, and a commit while the group
            # waits for its leader's plan. Both pass, as a lost connection does, and no later commit replaces this one.
            # A retry is safe: the broker accepts a commit only from a member, and no other member gets the partition
            # before we return it.
            time.sleep(_AGAIN_AFTER)
        else:
            break
    if failure is not None:
        on_error(failure, "the last commit of a partition failed: some records will be read again")


def leave_without_partitions(consumer: Consumer, config: Mapping[str, Any], until: float) -> None:
    """Leave the group before `consumer` is closed; wait for a rebalance under way until `until` (monotonic)."""
    # A process that ends without LeaveGroup makes the whole group wait until its session times out. For a member
    # without partitions, closing may not send it. Unsubscribing sends it, but only when the rebalance under way is over
    # and every commit is answered; a client that is closed before that never does.
    try:
        consumer.unsubscribe()
    except KafkaException:  # a failed client is no member any more
        return
    consumer.consume(1, _POLL_EVERY)
    # In the middle of a rebalance this is mostly waiting. A broker answers a connection's requests one after the other,
    # and answers a member that joins again only once all others have joined again: one that drains may take long, and
    # one that died takes as long as its session. Commits and LeaveGroup wait behind that answer. The member id is given
    # up with LeaveGroup. Under KIP-848 the client makes its own member id, and leaving does not wait.
    while (
        not uses_consumer_protocol(config) and consumer.memberid() and time.monotonic() + _POLL_EVERY < until
    ):
        consumer.consume(1, _POLL_EVERY)
