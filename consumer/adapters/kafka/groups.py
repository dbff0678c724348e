"""A consumer group from outside: its members, what it has committed, where partitions begin and end; and new offsets.

For `pinstream offsets` and for the warnings of a replay. Nothing here joins the group.

What the brokers say about a group (Apache Kafka 4, both protocols; tested): `describe_consumer_groups` names the
members of classic and of KIP-848 groups alike. A group without members is ``Empty``; an unknown one is ``Dead``, not an
error. Offsets of a group with members are refused for each partition with UNKNOWN_MEMBER_ID, under both protocols,
whatever was seen a moment before: so the look at the members is for a clear message, and the broker's refusal is what
protects a running group. The embedded broker cannot describe groups (``Unknown``), and refuses offsets from outside
for any group that ever had a member.

New offsets carry no metadata: the offset map of the old position must not hold for the new one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import confluent_kafka
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.cluster import fetch_metadata
from consumer.adapters.kafka.configuration import Config, admin_config, end_client, make_client
from consumer.adapters.kafka.offsets import (
    CANNOT_SAY,
    Extent,
    ask_committed,
    ask_patiently,
    find_at,
    find_extents,
    limit,
    read_position,
    result_of,
)
from consumer.adapters.kafka.trouble import GROUP_IN_USE, as_fatal, describe_error, exception_error
from consumer.adapters.thread import OwnThread
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError

_Code: Final = confluent_kafka.KafkaError

_LEAST: Final = 0.1
"""Seconds that a question gets even when the limit is nearly used up."""


class ActiveMember(NamedTuple):
    """A member of the group, as the brokers know it."""

    client_id: str
    host: str


class GroupView(NamedTuple):
    """A group at this moment. `state` in Kafka's words: ``Stable``, ``Empty``, ``Dead`` (no such group), …"""

    state: str
    members: tuple[ActiveMember, ...]

    @property
    def active(self) -> bool:
        """Whether it has members, or some that are just joining."""
        return bool(self.members) or self.state not in ("Empty", "Dead", "Unknown")


class GroupInUse(KafkaError):
    """The brokers refused new offsets because the group has members."""


async def committed(
    config: Config, group: str, topics: Collection[str], timeout: float
) -> Mapping[TopicPartition, int]:
    """What the group has committed for partitions of these topics, where it has. Raises `KafkaError`."""
    async with GroupOffsets(config, group, timeout) as offsets:
        found = await offsets.positions(await offsets.partitions(topics))
    return {one: position.next_offset for one, position in found.items() if one.topic in topics}


async def group_members(config: Config, group: str, timeout: float) -> GroupView:
    """The group's state and members. Raises `KafkaError`."""
    async with GroupOffsets(config, group, timeout) as offsets:
        return await offsets.view()


def group_has_offsets(config: Config, timeout: float) -> bool:
    """Whether the group of `config` (``group.id``) has committed an offset of any partition of any topic.

    Blocks, with a client of its own: it is only asked for a partition without an offset under ``latest``. The brokers
    leave out topics that this user may not see. Raises `KafkaException`.
    """
    deadline = time.monotonic() + timeout
    client = make_client(AdminClient, admin_config(config))
    try:
        return bool(ask_committed(client, str(config["group.id"]), deadline, slack=0.0))
    finally:
        end_client(client)


def is_member(config: Config, member: str, timeout: float) -> bool:
    """Whether the coordinator of the group of `config` (``group.id``) counts `member` (its id) among its members.

    Blocks, with a client of its own. False where the brokers cannot say.
    """
    deadline = time.monotonic() + timeout
    client = make_client(AdminClient, admin_config(config))
    try:
        [asked] = client.describe_consumer_groups([str(config["group.id"])], request_timeout=timeout).values()
        return any(one.member_id == member for one in result_of(asked, deadline).members)
    except KafkaException:
        return False
    finally:
        end_client(client)


class GroupOffsets:
    """One group's offsets, by one client in a thread of its own; an async context manager.

    `timeout`: seconds for each call. Everything raises `KafkaError` where the brokers do not answer or refuse.
    """

    def __init__(self, config: Config, group: str, timeout: float) -> None:
        self._config = config
        self._group = group
        self._timeout = timeout
        self._client: AdminClient = make_client(AdminClient, admin_config(config))
        self._thread = OwnThread("pinstream-kafka-group")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.end(partial(end_client, self._client))

    async def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        """All partitions of those `topics` that exist."""
        metadata = await self._thread.run(fetch_metadata, self._config, self._timeout)
        return [
            TopicPartition(topic, number)
            for topic in topics
            if topic in metadata.topics
            for number in sorted(metadata.topics[topic].partitions)
        ]

    async def view(self) -> GroupView:
        """State and members; the state is ``Unknown`` where the brokers cannot say."""
        return await self._thread.run(self._view)

    async def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position]:
        """What is committed for `partitions`, and for any other that the group has offsets for."""
        return await self._thread.run(self._positions, partitions)

    async def extents(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Extent]:
        """What these hold. The end is the last stable offset: how far they can be read now."""
        left = limit(self._timeout)
        found = await self._thread.run(find_extents, self._client, partitions, left)
        return dict(zip(partitions, found, strict=True))

    async def first_since(
        self, partitions: Sequence[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        """Of each, the offset of its first record with this timestamp or a later one; absent if there is none."""
        left = limit(self._timeout)
        found = await self._thread.run(find_at, self._client, partitions, milliseconds, left)
        return {one: offset for one, offset in zip(partitions, found, strict=True) if offset >= 0}

    async def put(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these, without metadata: one try. Raises `GroupInUse` while the group has members."""
        await self._thread.run(self._put, offsets)

    async def known_groups(self) -> list[str]:
        """The names of all groups that this user may see; none if the brokers do not give them."""
        return await self._thread.run(self._known_groups)

    # What follows runs in the thread.

    def _view(self) -> GroupView:
        def ask(deadline: float) -> Any:
            left = max(_LEAST, deadline - time.monotonic())
            [asked] = self._client.describe_consumer_groups([self._group], request_timeout=left).values()
            return result_of(asked, deadline)

        try:
            found = ask_patiently(ask, self._timeout)
        except KafkaException as error:
            if exception_error(error).code() in CANNOT_SAY:
                return GroupView("Unknown", ())
            raise self._failure("the members", error) from error
        members = (ActiveMember(one.client_id, one.host.removeprefix("/")) for one in found.members)
        # ``PREPARING_REBALANCING``, as librdkafka has it, in Kafka's own words: ``PreparingRebalance``.
        state = found.state.name.title().replace("_", "").replace("Rebalancing", "Rebalance")
        return GroupView(state, tuple(sorted(members)))

    def _positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position]:
        # Ask for all, and by name: the embedded broker answers only for those that are named.
        asked: list[Sequence[TopicPartition] | None] = [None, partitions] if partitions else [None]
        found: dict[TopicPartition, Position] = {}
        for names in asked:

            def ask(deadline: float, names: Sequence[TopicPartition] | None = names) -> list[RawPartition]:
                return ask_committed(self._client, self._group, deadline, names)

            try:
                told = ask_patiently(ask, self._timeout)
            except KafkaException as error:
                raise self._failure("the offsets", error) from error
            found.update({TopicPartition(raw.topic, raw.partition): read_position(raw) for raw in told})
        return found

    def _put(self, offsets: Mapping[TopicPartition, int]) -> None:
        raw = [RawPartition(*one, offset) for one, offset in sorted(offsets.items())]
        asked = [ConsumerGroupTopicPartitions(self._group, raw)]
        deadline = time.monotonic() + self._timeout
        try:
            [altered] = self._client.alter_consumer_group_offsets(
                asked, request_timeout=self._timeout
            ).values()
            answer = result_of(altered, deadline)
        except KafkaException as error:
            raise self._refusal(exception_error(error)) from error
        for one in answer.topic_partitions:
            if one.error is not None:
                raise self._refusal(one.error)

    def _known_groups(self) -> list[str]:
        def ask(deadline: float) -> Any:
            left = max(_LEAST, deadline - time.monotonic())
            return result_of(self._client.list_consumer_groups(request_timeout=left), deadline)

        try:
            return sorted(one.group_id for one in ask_patiently(ask, self._timeout).valid)
        except KafkaException:
            return []

    def _failure(self, what: str, error: KafkaException) -> KafkaError:
        told = exception_error(error)
        return as_fatal(told) or KafkaError(
            f"Kafka: the brokers do not give {what} of the group {self._group}: try again, or check the brokers "
            f"({describe_error(told)})"
        )

    def _refusal(self, error: confluent_kafka.KafkaError) -> KafkaError:
        if error.name() in GROUP_IN_USE:
            return GroupInUse(f"the group {self._group} has active members ({describe_error(error)})")
        return as_fatal(error) or KafkaError(
            f"Kafka: the brokers did not accept all offsets of the group {self._group}: look at them with "
            f"`pinstream offsets show`, and set them again ({describe_error(error)})"
        )
