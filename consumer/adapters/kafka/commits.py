"""Commits: those on their way, the last one of a partition that goes, and the goodbye to the group.

A commit on its way is sent without waiting and answered by librdkafka in a later poll. The answer (`on_commit`) names
the offsets but not the call, so it is matched to the oldest commit of exactly these offsets. When the caller no longer
waits for an answer, it finds its entry abandoned, or none.

*Leaving* in the middle of a rebalance is mostly waiting, as long as the deadline allows. A broker answers a
connection's requests one after the other, and answers a member that joins again only once all others have joined again
too: one that drains takes its time, one that died takes as long as its session. All that this member asks meanwhile
waits behind that answer: its commits, and its goodbye. And librdkafka sends the goodbye only once every commit is
answered. A process that ends without a goodbye makes the whole group wait until its session times out.

*The last commit* that was held up like this is refused, since it names the previous generation; and so is one for
which the group waits for its leader's plan. Both conditions pass, and no later commit could make up for this one: so it
is tried again. That is safe: the broker takes a commit only from a member, and gives a partition to no other before
this one gave it back. A commit that is refused because its metadata is too large is tried again without metadata.

*The goodbye* of a member with partitions is sent when they are revoked, which closing does. For a member without any,
closing may send none. So it unsubscribes first, which sends it; but librdkafka puts that off until the rebalance under
way is over, and closing would forget it. Whether it was sent shows in the member id, which goes with it (not under
KIP-848, where the id is the client's own and the goodbye waits for nothing). A static member (``group.instance.id``)
sends none, by intent: it will be back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.configuration import RawConsumer, uses_consumer_protocol
from consumer.adapters.kafka.trouble import MOVING_COORDINATOR, exception_error
from consumer.engine.messages import CommitTrouble
from consumer.engine.model import Position, TopicPartition

_AGAIN_AFTER: Final = 0.05
_LOOK: Final = 0.1
"""Seconds between two checks whether the goodbye was sent. The answer to a first joining may take as long, too."""


BETWEEN_GENERATIONS: Final = frozenset(
    {"ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS", "STALE_MEMBER_EPOCH"} | MOVING_COORDINATOR
)
"""Kafka's names for a refused commit that the same member may repeat: it just joined again (the client has not
heard of its new generation, or the group waits for its leader's plan), or the coordinator moves."""
METADATA_TOO_LARGE: Final = frozenset({"OFFSET_METADATA_TOO_LARGE", "INVALID_COMMIT_OFFSET_SIZE"})
"""Kafka's names for it: this broker takes less than the default 4,096 bytes, or less of all commits' together."""
ASSIGNMENT_LOST: Final = "_ASSIGNMENT_LOST"
"""librdkafka's name for it: the partition is another member's by now."""


class CommitResult(NamedTuple):
    """What the broker took. `failure`: the code of the first position that it refused, if any."""

    committed: tuple[Position, ...]
    failure: str | None

    @property
    def trouble(self) -> CommitTrouble:
        """What kind of failure it is."""
        if self.failure in METADATA_TOO_LARGE:
            return CommitTrouble.METADATA
        passing = self.failure in BETWEEN_GENERATIONS or self.failure == ASSIGNMENT_LOST
        return CommitTrouble.PASSING if passing else CommitTrouble.OTHER


Answer = Callable[[CommitResult], None]
_Offsets = frozenset[tuple[str, int, int]]


class _Sent(NamedTuple):
    offsets: _Offsets
    positions: tuple[Position, ...]
    left_out: str | None
    answer: Answer


class SentCommits:
    """The commits that were sent and not answered, oldest first. Used in the consumer's thread."""

    def __init__(self) -> None:
        self._sent: list[_Sent] = []

    def add(self, positions: Sequence[Position], left_out: str | None, answer: Answer) -> None:
        """These were sent. `left_out`: why others that were asked for were not."""
        self._sent.append(_Sent(_offsets_of(raw_positions(positions)), tuple(positions), left_out, answer))

    def heard(self, error: confluent_kafka.KafkaError | None, partitions: Iterable[RawPartition]) -> None:
        """librdkafka's `on_commit`."""
        partitions = list(partitions)
        offsets = _offsets_of(partitions)
        for index, sent in enumerate(self._sent):
            if sent.offsets == offsets:
                del self._sent[index]
                sent.answer(read_commit_answer(error, partitions, sent.positions, sent.left_out))
                return

    def drop(self, failure: str) -> None:
        """No answer will come any more."""
        for sent in self._sent:
            sent.answer(CommitResult((), failure))
        self._sent.clear()


def read_commit_answer(
    error: confluent_kafka.KafkaError | None,
    partitions: Iterable[RawPartition],
    positions: Sequence[Position],
    left_out: str | None = None,
) -> CommitResult:
    """Which of `positions` were taken, by the broker's answer for each partition."""
    if error is not None and error.code() != confluent_kafka.KafkaError.NO_ERROR:
        return CommitResult((), error.name())
    refused = {(one.topic, one.partition): one.error.name() for one in partitions if one.error is not None}
    taken = tuple(one for one in positions if (one.topic, one.partition) not in refused)
    # That the metadata is too large must not hide behind another partition's error.
    of_size = next((name for name in refused.values() if name == "OFFSET_METADATA_TOO_LARGE"), None)
    return CommitResult(taken, of_size or next(iter(refused.values()), left_out))


def raw_positions(positions: Iterable[Position]) -> list[RawPartition]:
    """As librdkafka names them, with the leader epoch (apache/kafka PR 23183: never without)."""
    return [raw_partition(*one) for one in positions]


def raw_partition(
    topic: str, partition: int, offset: int, leader_epoch: int | None, metadata: str = ""
) -> RawPartition:
    """librdkafka's form of an offset in a partition. An unknown leader epoch must be left out.

    So must empty metadata: it is sent with a NUL behind it, and a broker that allows no byte refuses that.
    """
    known: dict[str, Any] = {} if leader_epoch is None else {"leader_epoch": leader_epoch}
    if metadata:
        known["metadata"] = metadata
    return RawPartition(topic, partition, offset, **known)


class ResumePoint(NamedTuple):
    """Where reading goes on: an offset (None: the beginning), and the leader epoch of what is before it."""

    offset: int | None
    leader_epoch: int | None


def raw_place(name: TopicPartition, place: ResumePoint) -> RawPartition:
    """As librdkafka names it."""
    if place.offset is None:
        return RawPartition(*name, confluent_kafka.OFFSET_BEGINNING)
    return raw_partition(*name, place.offset, place.leader_epoch)


def _offsets_of(partitions: Iterable[RawPartition]) -> _Offsets:
    return frozenset((one.topic, one.partition, one.offset) for one in partitions)


def commit_last(consumer: RawConsumer, positions: Sequence[Position], until: float) -> str | None:
    """Commit these; try again until `until` (monotonic) while the group is between generations.

    Returns why not all were taken, if so. Only librdkafka bounds a single try: three times ``socket.timeout.ms``.
    """
    left, failure = _commit_now(consumer, positions)
    if failure in METADATA_TOO_LARGE:  # better without than not at all: there is no later commit
        left, failure = _commit_now(consumer, [one._replace(metadata="") for one in left])
    # No later commit makes up for this one, and no other member has the partition before we give it back.
    while failure in BETWEEN_GENERATIONS and time.monotonic() + _AGAIN_AFTER < until:
        time.sleep(_AGAIN_AFTER)
        left, failure = _commit_now(consumer, left)
    return failure


def _commit_now(
    consumer: RawConsumer, positions: Sequence[Position]
) -> tuple[Sequence[Position], str | None]:
    """Commit and wait. Returns what the broker did not take, and why."""
    if not positions:
        return (), None
    try:
        answered = consumer.commit(offsets=raw_positions(positions), asynchronous=False)
    except KafkaException as error:
        return positions, exception_error(error).name()
    taken, failure = read_commit_answer(None, answered, positions)
    return [one for one in positions if one not in taken], failure


def leave_without_partitions(consumer: RawConsumer, config: Mapping[str, Any], until: float) -> None:
    """Say goodbye before `consumer` is closed; wait for a rebalance under way, at most until `until` (monotonic)."""
    consumer.unsubscribe()  # this sends the goodbye, but not before a rebalance under way is over
    consumer.consume(1, _LOOK)
    # The member id goes with the goodbye. Under KIP-848 it is the client's own, and the goodbye waits for nothing.
    while not uses_consumer_protocol(config) and consumer.memberid() and time.monotonic() + _LOOK < until:
        consumer.consume(1, _LOOK)
