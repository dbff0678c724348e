"""Letting go: the last commit of partitions, and the goodbye to the group. All of it runs in the consumer's thread.

A broker answers a connection's requests one after the other, and answers a member that joins again only once all others
have joined again too: one that drains takes its time, one that died as long as its session. All that this member asks
meanwhile waits behind that answer: its commits, and its goodbye. And librdkafka sends the goodbye only once every
commit is answered. So leaving in the middle of a rebalance is mostly waiting, as long as the deadline allows; a process
that ends without a goodbye makes the whole group wait until its session times out.

*The last commit* that was held up so is refused, since it names the generation before; and so is one for which the
group waits for its leader's plan. Both pass, and no later commit could make up for it: so it is tried again. That is
safe: the broker takes a commit only from a member, and gives a partition to no other before this one gave it back. One
that is refused since its metadata is too large is tried again without any.

*The goodbye* of a member with partitions is sent when they are revoked, which closing does. For a member without any,
closing may say none. So it unsubscribes first, which says it; but librdkafka puts that off until the rebalance under
way is over, and closing would forget it. Whether it was said shows in the member id, which goes with it (not under
KIP-848, where it is the client's own, and the goodbye waits for nobody). A static member (``group.instance.id``) says
none, by intent: it will be back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException

from consumer.adapters.kafka.commits import raw_positions, read_answer
from consumer.adapters.kafka.configuration import uses_consumer_protocol
from consumer.adapters.kafka.raw_consumer import RawConsumer
from consumer.adapters.kafka.trouble import exception_error
from consumer.engine.messages import BETWEEN_GENERATIONS, METADATA_TOO_LARGE
from consumer.engine.model import Position

_AGAIN_AFTER: Final = 0.05
_LOOK: Final = 0.1
"""Seconds between two looks whether the goodbye was said; so long the answer to a first joining may take, too."""


def commit_last(consumer: RawConsumer, positions: Sequence[Position], until: float) -> str | None:
    """Commit these, again until then (monotonic) while the group is between generations. Why not all were taken.

    A single try is bounded by librdkafka alone: it tries thrice, each for ``socket.timeout.ms``.
    """
    left, failure = _commit_now(consumer, positions)
    if failure in METADATA_TOO_LARGE:  # better without than not at all: there is no later commit
        left, failure = _commit_now(consumer, [one._replace(metadata="") for one in left])
    while failure in BETWEEN_GENERATIONS and time.monotonic() + _AGAIN_AFTER < until:
        time.sleep(_AGAIN_AFTER)
        left, failure = _commit_now(consumer, left)
    return failure


def _commit_now(
    consumer: RawConsumer, positions: Sequence[Position]
) -> tuple[Sequence[Position], str | None]:
    """Commit and wait: what the broker did not take, and why."""
    if not positions:
        return (), None
    try:
        answered = consumer.commit(offsets=raw_positions(positions), asynchronous=False)
    except KafkaException as error:
        return positions, exception_error(error).name()
    taken, failure = read_answer(None, answered, positions)
    return [one for one in positions if one not in taken], failure


def says_goodbye(config: Mapping[str, Any]) -> bool:
    """Whether a member of this configuration leaves its group when it ends."""
    return not config.get("group.instance.id")


def leave_without_partitions(consumer: RawConsumer, config: Mapping[str, Any], until: float) -> None:
    """Say goodbye, before `consumer` is closed; waits for a rebalance under way until then (monotonic), no longer."""
    consumer.unsubscribe()
    consumer.consume(1, _LOOK)
    while not uses_consumer_protocol(config) and consumer.memberid() and time.monotonic() + _LOOK < until:
        consumer.consume(1, _LOOK)
