"""A consumer group from outside: its members, its committed offsets and new ones, where its partitions begin and end.

For `pinstream offsets`, the progress of a replay and its warnings; and for members that divide a quota, or that got no
partition (`GroupWatch`). Only `try_to_join` joins the group.

What the brokers say about a group (Apache Kafka 4, both protocols; tested): `describe_consumer_groups` names the
members of classic and of KIP-848 groups alike. A group without members is ``Empty``; an unknown one is ``Dead``, not an
error. The embedded broker cannot describe groups (``Unknown``), and refuses offsets from outside
for any group that ever had a member.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar

import confluent_kafka
from confluent_kafka import (
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    ConsumerGroupType,
    KafkaException,
)
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka import client_errors, cluster
from consumer.adapters.kafka.commits import read_position
from consumer.adapters.kafka.configuration import (
    Config,
    ask_again,
    consumer_config,
    make_client,
    result_of,
    time_left,
)
from consumer.adapters.thread import OwnThread, in_own_thread, run_blocking
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError

_Answer = TypeVar("_Answer")
_Code: Final = confluent_kafka.KafkaError

_POLL: Final = 0.2
_ASKED_AGAIN: Final = client_errors.PASSING | {"_TIMED_OUT"}
_LEAST_TRY: Final = 5.0
"""Least seconds of one of several tries, as far as there is time."""
_WHO: Final = "describe_consumer_groups"
"""The question for a group's state and members."""


# --------------------------------------------------------------------------------------- questions to a coordinator


def ask_committed(
    client: cluster.RenewedAdmin,
    group: str,
    deadline: float,
    partitions: Sequence[TopicPartition] | None = None,
) -> list[Position]:
    """Return what the group has committed, of `partitions` or of all that it has offsets for. One question, no retry.

    Waits until `deadline` (monotonic). Raises `KafkaException`, also where a single partition has an error.
    """
    describe_group(client, group, deadline)
    named = None if partitions is None else [RawPartition(*one) for one in partitions]
    asked = [ConsumerGroupTopicPartitions(group, named)]
    answer = client.ask("list_consumer_group_offsets", asked, deadline)
    answers: list[RawPartition] = answer.topic_partitions or []
    for one in answers:
        if one.error is not None:  # an error must not be taken for "no committed offset"
            raise KafkaException(one.error)
    # A partition without a committed offset has a negative offset here.
    return [read_position(one) for one in answers if one.offset >= 0]


def describe_group(client: cluster.RenewedAdmin, group: str, deadline: float) -> Any:
    """Return confluent-kafka's description of the group, None if the brokers cannot describe groups.

    Raises `KafkaException`, also when the coordinator has not answered at `deadline` (monotonic).
    """
    # When a question for offsets is answered "not the coordinator (yet)", the process ends with a segmentation fault:
    # librdkafka (2.16) calls its group handler, which an AdminClient does not have. (Seen on a cluster that had never
    # had a group; confluent-kafka-javascript #374 has the stack.) So this question comes first: it goes to the same
    # coordinator, needs the same permission, and fails without a crash. The risk that remains is a coordinator that
    # moves between the two questions.
    try:
        return client.ask(_WHO, [group], deadline)
    except KafkaException as error:
        if client_errors.cause_of(error).code() not in client_errors.CANNOT_SAY:
            raise
        return None


def group_has_offsets(config: Config, timeout: float) -> bool:
    """Return whether the group of a consumer of this `config` has committed an offset of any partition of any topic.

    The brokers omit topics that this user may not see. Raises `KafkaException`.
    """
    deadline = time.monotonic() + timeout
    # A client for this one question: it is rare, only for a partition without an offset under ``latest``.
    with contextlib.closing(cluster.RenewedAdmin(config)) as client:
        return bool(ask_committed(client, str(config["group.id"]), deadline))


def try_to_join(config: Config, topics: Sequence[str], timeout: float) -> None:
    """Join the group of `config` (``group.id``), which has no members, and leave it. Blocks.

    Raises `KafkaError` if the brokers refuse a member under this group protocol.
    """
    heard: list[confluent_kafka.KafkaError] = []
    assigned = threading.Event()

    def take_none(consumer: confluent_kafka.Consumer, _: object) -> None:
        consumer.incremental_assign([])
        assigned.set()

    complete = {**consumer_config(config, offset_reset="error", ignore=None), "error_cb": heard.append}
    complete.pop("group.instance.id", None)  # as a static member it would keep its partitions after leaving
    with contextlib.closing(make_client(confluent_kafka.Consumer, complete)) as consumer:
        consumer.subscribe(list(topics), on_assign=take_none)
        deadline = time.monotonic() + timeout
        # Ignore errors that pass: only those that would end the service count.
        while not assigned.is_set() and time.monotonic() < deadline:
            polled = consumer.poll(_POLL)
            if polled is not None and (error := polled.error()) is not None:
                heard.append(error)  # a refused member gets the error in place of a record
            for error in heard:
                if (fatal := client_errors.as_fatal(error)) is not None:
                    raise fatal


# -------------------------------------------------------------------------------------------------- for members

_COUNT_EVERY: Final = 10.0
"""Seconds between two questions for the members."""
_COUNT_AGAIN: Final = 0.5
"""Seconds between two questions while the group rebalances or does not list this process as a member."""
_COUNT_PATIENCE: Final = 30.0
"""Seconds without an answer after which the client is replaced."""


@dataclass(eq=False, repr=False)
class GroupWatch:
    """Asks from time to time who is in the group, and never waits for the answer. Used in one thread.

    One question at a time, so that they do not pile up if the coordinator does not answer.
    """

    group: str
    client: cluster.RenewedAdmin
    """The client that asks. Its owner closes it."""
    on_error: client_errors.OnError

    def __post_init__(self) -> None:
        self.members: Collection[str] = ()
        """Ids of the members by the last answer; empty if none came since the last rebalance of this member."""
        self._asked: concurrent.futures.Future[Any] | None = None
        self._asked_at, self._asked_of = 0.0, 0
        self._outdated = False
        """Whether partitions were assigned or revoked since the question was asked."""
        self._due = 0.0
        self._reported_refusal = False

    def poll(self, us: str | None = None) -> int | None:
        """Return how many members hold partitions if a new answer says so, else None; ask again when it is time to.

        `us`: the id of a member that waits until the group lists it; until then the questions are more frequent.
        """
        now = time.monotonic()
        if self._wait_or_give_up(now):
            return None
        answered, self._asked = self._asked, None
        try:
            if answered is None or self._outdated:
                if now >= self._due:
                    self._asked_at, self._due, self._outdated = now, now + _COUNT_EVERY, False
                    self._asked_of = self.client.replaced
                    self._asked = self.client.begin(_WHO, [self.group])
                return None
            group = answered.result()
        except KafkaException as failed:  # the last number stays valid, and the question is asked again
            error = client_errors.cause_of(failed)
            if error.name() in client_errors.PASSING:
                self._due = now + _COUNT_AGAIN
            if error.code() in client_errors.NOT_ALLOWED and not self._reported_refusal:
                self._reported_refusal = True
                self.on_error(
                    error.name(),
                    f"the brokers do not let this user see who is in the group {self.group}: grant DESCRIBE on it; "
                    "until then PINSTREAM_CALLS_PER_MINUTE is not divided among processes, and with "
                    "KAFKA_GROUP_PROTOCOL=consumer a process without partitions does not become ready",
                )
            return None
        self.members = [one.member_id for one in group.members]
        # Members of a classic group that rebalances still agree on who holds what. In a KIP-848 group partitions move
        # while the others are read, and the coordinator knows the target.
        agreed = group.state == ConsumerGroupState.STABLE or group.type == ConsumerGroupType.CONSUMER
        if not agreed or (us is not None and us not in self.members):
            self._due = min(self._due, now + _COUNT_AGAIN)
        if not agreed:
            return None
        return sum(
            any(
                part is not None and part.topic_partitions for part in (one.assignment, one.target_assignment)
            )
            for one in group.members
        )

    def _wait_or_give_up(self, now: float) -> bool:
        """Return whether an answer may still come; after long enough, forget the question and replace the client."""
        if self._asked is None or self._asked.done():
            return False
        if self._asked_of == self.client.replaced:
            if now < self._asked_at + _COUNT_PATIENCE:
                return True
            self.client.give_up()
        self._asked = None  # the answer of a client that is gone never comes
        return False

    def expire_cache(self) -> None:
        """Ask soon, because partitions were assigned or revoked: the answer to an earlier question may be out of
        date."""
        self._outdated, self._due, self.members = True, 0.0, ()


# ------------------------------------------------------------------------------------------------- for commands


class ActiveMember(NamedTuple):
    """A member of the group, as the brokers report it."""

    client_id: str
    host: str


class GroupView(NamedTuple):
    """A group at this moment. `state` is Kafka's term: ``Stable``, ``Empty``, ``Dead`` (no such group), …"""

    state: str
    members: tuple[ActiveMember, ...]

    @property
    def active(self) -> bool:
        """Return whether the group has members, or some that are just joining."""
        return bool(self.members) or self.state not in ("Empty", "Dead", "Unknown")


class SharedPartition(NamedTuple):
    """A partition of the group's topics. `member`: the client id and host of who has it; None: nobody, or the brokers
    cannot say. `lag` counts from the committed offset, else from the beginning of the log."""

    place: TopicPartition
    member: str | None
    lag: int


async def read_group(
    config: Config, group: str, own: Collection[TopicPartition], timeout: float
) -> tuple[str, Sequence[SharedPartition]]:
    """Return the group's state (`GroupView.state`) and all partitions of its topics; `own`: what is known to be read.

    For a service that looks while it runs. Raises `KafkaError`, `SettingsError`.
    """

    def ask() -> tuple[str, Sequence[SharedPartition]]:
        deadline = time.monotonic() + timeout
        with (
            cluster.meet_cluster(config, timeout) as (_, metadata),
            contextlib.closing(cluster.RenewedAdmin(config)) as client,
        ):
            found = describe_group(client, group, deadline)
            holders = {
                TopicPartition(part.topic, part.partition): f"{one.client_id} ({one.host.removeprefix('/')})"
                for one in (found.members if found else ())
                for part in (one.assignment.topic_partitions if one.assignment else ())
            }
            topics = {place.topic for place in (*holders, *own)}
            known = cluster.known_partitions(metadata)
            places = [TopicPartition(topic, n) for topic in sorted(topics) for n in known.get(topic, ())]
            # An AdminClient that asks for offsets may end the process (`describe_group`); a consumer, which never
            # joins here, does not.
            complete = {**consumer_config(config, offset_reset="error", ignore=None), "group.id": group}
            with contextlib.closing(make_client(confluent_kafka.Consumer, complete)) as consumer:
                committed = consumer.committed([RawPartition(*one) for one in places], time_left(deadline))
            extents = cluster.find_extents(client.admin, places, deadline)
        rows = [
            SharedPartition(
                place, holders.get(place), max(0, extents[place].end - max(raw.offset, extents[place].low))
            )
            for place, raw in zip(places, committed, strict=True)
        ]
        return _state_of(found), rows

    try:
        return await run_blocking("pinstream-kafka-group", ask)
    except KafkaException as error:
        raise client_errors.kafka_failure(
            error, f"the brokers do not say who is in the group {group}"
        ) from error


def _state_of(found: Any) -> str:
    """Return a group's state in Kafka's own words; librdkafka writes ``PREPARING_REBALANCING``."""
    if found is None:
        return "Unknown"
    return str(found.state.name).title().replace("_", "").replace("Rebalancing", "Rebalance")


class GroupOffsets:
    """One group's offsets, by one client in a thread of its own; an async context manager.

    `timeout`: seconds for each call. Everything raises `KafkaError` where the brokers do not answer or refuse.
    """

    def __init__(self, config: Config, group: str, timeout: float) -> None:
        self._group = group
        self._timeout = timeout
        self._client = cluster.RenewedAdmin(config)
        self._thread = OwnThread("pinstream-kafka-group")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._thread.end(self._client.close)

    @in_own_thread
    def view(self) -> GroupView:
        """Return state and members; the state is ``Unknown`` if the brokers cannot describe groups."""
        found = self._ask("members", partial(describe_group, self._client, self._group))
        if found is None:
            return GroupView("Unknown", ())
        # Brokers write a host as ``/10.0.0.1``.
        members = (ActiveMember(one.client_id, one.host.removeprefix("/")) for one in found.members)
        return GroupView(_state_of(found), tuple(sorted(members)))

    @in_own_thread
    def positions(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, Position]:
        """Return what is committed for `partitions` and for any other partition that the group has offsets for."""
        # Ask for all, and by name: the embedded broker answers only for those that are named.
        found: list[Position] = []
        for names in [None, partitions] if partitions else [None]:
            question = partial(ask_committed, self._client, self._group, partitions=names)
            found += self._ask("offsets", question)
        return {TopicPartition(one.topic, one.partition): one for one in found}

    @in_own_thread
    def extents(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, cluster.Extent]:
        """Return what each partition holds. The end is the last stable offset: how far it can be read now."""
        return cluster.find_extents(self._client.admin, partitions, time.monotonic() + self._timeout)

    @in_own_thread
    def first_since(
        self, partitions: Sequence[TopicPartition], milliseconds: int
    ) -> dict[TopicPartition, int]:
        """Return the offset of each partition's first record with this timestamp or a later one; absent if there is
        none."""
        return cluster.find_at(self._client.admin, partitions, milliseconds, time.monotonic() + self._timeout)

    @in_own_thread
    def put(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit these offsets: one try. Refused while the group has members."""
        # Committed without metadata: the offset map of the old position must not apply to the new one.
        raw = [RawPartition(*one, offset) for one, offset in sorted(offsets.items())]
        try:
            answered = self._alter(raw, self._timeout)
            if refused := next((one.error for one in answered if one.error is not None), None):
                raise KafkaException(refused)
        except KafkaException as error:
            cause = client_errors.cause_of(error)
            # Under both protocols the brokers refuse this, even if the group had no members a moment before. Only this
            # refusal protects a running group; checking the members beforehand just names them.
            if cause.name() in client_errors.GROUP_IN_USE:
                said = client_errors.describe_error(cause)
                text = f"the group {self._group} has active members: stop every member first ({said})"
                raise KafkaError(text) from error
            raise client_errors.kafka_failure(
                cause,
                f"the brokers did not accept all offsets of the group {self._group}: look at them with "
                "`pinstream offsets show`, and set them again",
            ) from error

    def _ask(self, what: str, question: Callable[[float], _Answer]) -> _Answer:
        """Ask until the coordinator answers; `question` gets a deadline (monotonic) and may raise `KafkaException`."""
        deadline = time.monotonic() + self._timeout

        def ask() -> _Answer:
            # One try does not get all of the time: its client may never get an answer where another one would
            # (`RenewedAdmin`).
            now = time.monotonic()
            return question(min(deadline, now + max(_LEAST_TRY, (deadline - now) / 2)))

        try:
            # A coordinator that starts or moves answers within seconds.
            return ask_again(ask, deadline, lambda error: error.name() in _ASKED_AGAIN)
        except KafkaException as error:
            text = f"the brokers do not give the {what} of the group {self._group}: try again, or check the brokers"
            raise client_errors.kafka_failure(error, text) from error

    def _alter(self, raw: Sequence[RawPartition], timeout: float) -> Sequence[RawPartition]:
        """Commit offsets without being a member: one try. Return the answer for each partition. Raises
        `KafkaException`."""
        asked = [ConsumerGroupTopicPartitions(self._group, list(raw))]
        answer = self._client.ask("alter_consumer_group_offsets", asked, time.monotonic() + timeout)
        answered: Sequence[RawPartition] = answer.topic_partitions
        return answered

    @in_own_thread
    def known_groups(self) -> list[str]:
        """Return the names of all groups that this user may see; none if the brokers do not report them."""
        deadline = time.monotonic() + self._timeout
        try:
            asked = self._client.admin.list_consumer_groups(request_timeout=self._timeout)
            return sorted(one.group_id for one in result_of(asked, deadline).valid)
        except KafkaException:
            return []
