"""Questions about the cluster: is it reachable, which topics and partitions exist, their settings and their offsets.

Every question goes through an AdminClient, blocks, and is bounded twice: by librdkafka and, a moment later, by us,
because librdkafka reports why a question timed out. Questions to a group's coordinator are bounded by us alone: see
`RenewedAdmin`. Each failure is one line that says what to change. (The group member asks through its own consumer,
which has the answers of its fetches at hand: see `watch` and `starts`.)
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from consumer.adapters.kafka import client_errors, configuration
from consumer.adapters.kafka.configuration import Config, ask_again, result_of, time_left
from consumer.adapters.thread import run_aside, run_blocking
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError, SettingsError, nearest

_Code = confluent_kafka.KafkaError

# Seconds of the first try of a first contact, after which errors are looked at. Each further try takes twice as long.
_FIRST_TRY: Final = 1.0
_RECONNECT_MS: Final = 1_000
# Seconds that a question about partitions gets even when the limit is nearly used up: leaders have to be found.
_LEAST: Final = 1.0
# A broker's APIs, as librdkafka logs them. 68: ConsumerGroupHeartbeat, with which a member joins under KIP-848. Its
# version 0 is the preview of Kafka 3.7 to 3.9, which librdkafka does not speak.
_ANY_API: Final = re.compile(r"ApiKey \w+ \(\d+\) Versions")
_HEARTBEAT_API: Final = re.compile(r"ApiKey \w+ \(68\) Versions \d+\.\.[1-9]")
_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # it has no annotations
_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # it has no annotations


class ClusterView(NamedTuple):
    """The cluster. Topics map to their number of partitions."""

    brokers: tuple[str, ...]
    """``host:port`` of each."""
    topics: Mapping[str, int]
    """The topics to consume: those named, and those that a pattern matches."""
    unmatched: tuple[str, ...]
    """Patterns that match no topic at present."""
    leaderless: tuple[TopicPartition, ...]
    """Partitions of `topics` that cannot be read now."""
    known: Mapping[str, int]
    """All topics that this user may see."""


async def cluster_id(config: Config, timeout: float) -> str:
    """Return the brokers' id of their cluster: a mark that was written in another cluster does not count here.

    Raises `KafkaError` and `SettingsError`, within `timeout` seconds.
    """
    metadata = await run_blocking("pinstream-kafka-cluster", fetch_metadata, config, timeout)
    return str(metadata.cluster_id or "")


async def describe_cluster(
    config: Config,
    topics: Sequence[str],
    timeout: float,
    *,
    own_topics: Sequence[str] = ("{topic}.dead-letters",),
    joins: bool = False,
    on_error: Callable[[confluent_kafka.KafkaError], None] = lambda error: None,
) -> ClusterView:
    """Describe the cluster and the topics (names, or patterns that start with ``^``), within `timeout` seconds.

    `own_topics`: see `configuration.never_matched`. `joins`: a member will join a group, so the brokers must have its
    protocol. `on_error` gets what goes wrong before the brokers answer, in another thread. Raises `KafkaError`
    (unreachable, refused, a topic or the protocol missing) and `SettingsError` (an invalid property or pattern).
    """
    metadata = await run_blocking("pinstream-kafka-cluster", fetch_metadata, config, timeout, on_error)
    if joins and configuration.uses_consumer_protocol(config):
        await run_blocking("pinstream-kafka-protocol", _check_group_protocol, config, timeout)
    known = {name: len(partitions) for name, partitions in known_partitions(metadata).items()}
    chosen, unmatched = _choose(topics, known, configuration.never_matched(own_topics))
    return ClusterView(
        tuple(f"{broker.host}:{broker.port}" for broker in metadata.brokers.values()),
        {name: known[name] for name in chosen},
        unmatched,
        tuple(
            TopicPartition(name, number)
            for name in chosen
            for number, partition in sorted(metadata.topics[name].partitions.items())
            if partition.leader < 0
        ),
        known,
    )


async def create_topic(config: Config, topic: str, partitions: int, timeout: float) -> bool:
    """Create the topic, unless it exists, within `timeout` seconds; return whether it was created.

    It has the brokers' number of replicas. Raises `KafkaError` and `SettingsError`.
    """
    return await run_blocking("pinstream-kafka-cluster", _create_topic, config, topic, partitions, timeout)


def _create_topic(config: Config, topic: str, partitions: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    with meet_cluster(config, timeout) as (client, metadata):
        if topic in metadata.topics:
            return False
        try:
            new = NewTopic(topic, num_partitions=partitions)
            result_of(
                client.create_topics([new], request_timeout=time_left(deadline))[topic],
                time.monotonic() + timeout,
            )
        except KafkaException as error:
            cause = client_errors.cause_of(error)
            if cause.code() == _Code.TOPIC_ALREADY_EXISTS:  # somebody was quicker
                return False
            why = client_errors.describe_error(cause)
            if cause.code() in client_errors.NOT_ALLOWED:
                raise KafkaError(
                    f"Kafka: this user may not create the topic {topic}: grant CREATE on it, or create it by other "
                    f"means ({why})"
                ) from error
            raise KafkaError(f"Kafka: the topic {topic} was not created: {why}") from error
        try:
            await_topic(client, topic, deadline)
        except KafkaException as error:
            raise KafkaError(
                f"Kafka: the topic {topic} was created, and no broker names it: try again"
            ) from error
    return True


def await_topic(client: AdminClient, topic: str, deadline: float) -> int:
    """Return the number of partitions of a topic that is just being created. Blocks; raises `KafkaException`."""

    def ask() -> int:
        entry: Any = client.list_topics(topic, timeout=time_left(deadline)).topics[topic]
        if entry.partitions:
            return len(entry.partitions)
        # An entry without partitions has an error, and is no answer: it may have some the next time.
        raise KafkaException(entry.error or _Code(_Code.LEADER_NOT_AVAILABLE))

    # The brokers hear of it from their controller, one after the other.
    passing = client_errors.MOVING_LEADER | client_errors.MISSING_TOPIC
    return ask_again(ask, deadline, lambda error: error.code() in passing)


def _check_group_protocol(config: Config, timeout: float) -> None:
    """Raise `KafkaError` if the brokers lack KIP-848. Blocks."""
    # Without KIP-848, librdkafka looks for another coordinator indefinitely and reports no error. Which APIs a broker
    # has is in its answer to ApiVersions, which librdkafka shows only in its log.
    logger = logging.Logger("consumer.kafka.features", logging.DEBUG)
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    loud = configuration.admin_client(config, debug="feature", logger=logger)
    with loud as client, contextlib.suppress(KafkaException):
        client.list_topics(timeout=timeout)
        client.poll(0)  # brings the log
    if lacks_consumer_protocol(" ".join(heard)):
        raise KafkaError(f"Kafka: {client_errors.PROTOCOL}")


def lacks_consumer_protocol(log: str) -> bool:
    """Return whether librdkafka's log of a broker's APIs shows that no member can join under KIP-848."""
    return _ANY_API.search(log) is not None and _HEARTBEAT_API.search(log) is None


def fetch_metadata(
    config: Config,
    timeout: float,
    on_error: Callable[[confluent_kafka.KafkaError], None] = lambda error: None,
) -> Any:
    """Return the cluster's metadata (confluent-kafka's `ClusterMetadata`). Blocks; raises `KafkaError`,
    `SettingsError`."""
    with meet_cluster(config, timeout, on_error) as (_, metadata):
        return metadata


@contextlib.contextmanager
def meet_cluster(
    config: Config,
    timeout: float,
    on_error: Callable[[confluent_kafka.KafkaError], None] = lambda error: None,
) -> Iterator[tuple[AdminClient, Any]]:
    """Return a client for questions and the cluster's metadata. Blocks; raises `KafkaError`, `SettingsError`."""
    heard: list[confluent_kafka.KafkaError] = []

    def hear(error: confluent_kafka.KafkaError) -> None:
        heard.append(error)
        on_error(error)

    deadline, one_try = time.monotonic() + timeout, _FIRST_TRY
    # A broker that was away is tried again soon.
    chosen = any(name.startswith("reconnect.") for name in config)
    soon = config if chosen else {**config, "reconnect.backoff.max.ms": _RECONNECT_MS}
    with configuration.admin_client(soon, error_cb=hear) as client:
        while True:
            left = deadline - time.monotonic()
            try:
                # Ask for all topics, never for one by name: a broker that creates topics on demand would create the
                # mistyped one.
                metadata = client.list_topics(timeout=max(0.1, min(one_try, left)))
                break
            except KafkaException as error:
                client.poll(0)  # collect what librdkafka reports about connections until then
                # Waiting does not help against these errors, if a first contact brings no others.
                hopeless = any(
                    client_errors.as_fatal(one)
                    or one.code() in (_Code._SSL, _Code._RESOLVE, _Code._CRIT_SYS_RESOURCE)
                    or client_errors.speaks_http(one)
                    for one in heard
                )
                if left <= one_try or hopeless:
                    raise client_errors.no_contact(
                        config, timeout, [*heard, client_errors.cause_of(error)]
                    ) from error
                one_try *= 2  # a slow broker never answers in time if each try is a new question
        yield client, metadata


def known_partitions(metadata: Any) -> dict[str, list[int]]:
    """Return the partitions of each topic that has some, by the topics' names."""
    # An entry with an error has none: the topic is just being created, say. That is no topic of 0 partitions.
    return {name: list(one.partitions) for name, one in sorted(metadata.topics.items()) if one.partitions}


def _choose(
    topics: Sequence[str], known: Mapping[str, int], never_matched: str
) -> tuple[list[str], tuple[str, ...]]:
    """Return the topics that names and patterns select, in order and once each, and the patterns that match none."""
    chosen: dict[str, None] = {}
    unmatched: list[str] = []
    for topic in topics:
        if topic.startswith("^"):
            try:
                matches = re.compile(topic).search
            except re.error as error:
                raise SettingsError(f"KAFKA_TOPICS: the pattern {topic} cannot be read: {error}") from error
            # Match as librdkafka does, and select what the consumer will select.
            matching = [name for name in known if matches(name) and not re.match(never_matched, name)]
            unmatched.extend([] if matching else [topic])
            chosen.update(dict.fromkeys(matching))
        elif topic in known:
            chosen[topic] = None
        else:
            raise KafkaError(
                f"Kafka: the topic {topic} does not exist, or this user may not see it{nearest_topic(topic, known)}: "
                "create it, grant READ on it, or correct its name (KAFKA_TOPICS, or --topic)"
            )
    return list(chosen), tuple(unmatched)


def nearest_topic(topic: str, known: Iterable[str]) -> str:
    """Return the end of a message about a topic that does not exist: the existing topic that may be meant; else
    empty."""
    near = nearest(topic, (name for name in known if not name.startswith("__")))
    return f"; the nearest that does is {near}" if near else ""


# ---------------------------------------------------------------------------------------- how topics are set


class TopicSettings(NamedTuple):
    """Whether a topic is compacted, and the largest batch that it accepts, in bytes."""

    compacted: bool
    largest: int


async def topic_settings(
    config: Config, topics: Collection[str], timeout: float
) -> Mapping[str, TopicSettings]:
    """Return the settings of the topics for which the brokers report them within `timeout` seconds."""

    def ask() -> Mapping[str, TopicSettings]:
        deadline = time.monotonic() + timeout
        with configuration.admin_client(config) as client, contextlib.suppress(KafkaException):
            if has_controller(client.list_topics(timeout=timeout)):
                # One topic at a time: some brokers refuse a question about several topics if one of them is not
                # allowed.
                answers = ((name, ask_settings(client, name, time_left(deadline))) for name in topics)
                return {name: one for name, one in answers if one is not None}
        return {}

    return await run_blocking("pinstream-kafka-settings", ask)


def ask_settings(client: AdminClient, topic: str, timeout: float) -> TopicSettings | None:
    """Return the settings of `topic`; None if the brokers do not report them. Blocks."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        asked = client.describe_configs([resource], request_timeout=timeout)[resource]
        answer = result_of(asked, time.monotonic() + timeout)
        compacted = "compact" in answer["cleanup.policy"].value  # it may be "compact,delete"
        return TopicSettings(compacted, int(answer["max.message.bytes"].value))
    except (KafkaException, KeyError, TypeError, ValueError, AttributeError):
        # A user who may read and write a topic need not be allowed to see its settings.
        return None


def setting_command(servers: str, topic: str, setting: str) -> str:
    """Return the command of Kafka's own tool that sets ``name=value`` for a topic."""
    tool = ["kafka-configs.sh", "--bootstrap-server", servers, "--alter", "--entity-type", "topics"]
    return f"`{shlex.join([*tool, '--entity-name', topic, '--add-config', setting])}`"


def has_controller(metadata: Any) -> bool:
    """Return whether there is a controller. The embedded broker has none, and never answers a question for a
    controller."""
    return metadata.controller_id in metadata.brokers


# --------------------------------------------------------------------------------------- what partitions hold


class Extent(NamedTuple):
    """What a partition holds now: the offsets [low, end), up to the first open transaction."""

    low: int
    end: int


def find_extents(
    client: Any, names: Sequence[TopicPartition], deadline: float
) -> dict[TopicPartition, Extent]:
    """Return what each partition holds. Blocks; raises `KafkaError`. `client`: an AdminClient."""
    lows = _ask_offsets(client, names, _EARLIEST, deadline)
    ends = _ask_offsets(client, names, _LATEST, deadline)
    return {name: Extent(low, max(low, ends[name])) for name, low in lows.items()}


def find_at(
    client: Any, names: Sequence[TopicPartition], milliseconds: int, deadline: float
) -> dict[TopicPartition, int]:
    """Return the offset of each partition's first record with this timestamp or a later one; absent if there is none.

    Blocks; raises `KafkaError`.
    """
    # Below 0 the protocol has other meanings for a timestamp: -1 is the end. An offset of -1 means that there is none.
    found = _ask_offsets(client, names, OffsetSpec.for_timestamp(max(0, milliseconds)), deadline)
    return {name: offset for name, offset in found.items() if offset >= 0}


async def behind_transactions(
    config: Config, names: Sequence[TopicPartition], timeout: float
) -> Mapping[TopicPartition, int]:
    """Return how many offsets of each partition lie at or behind an open transaction, where no reader gets to yet.

    Only the partitions that have some. Raises `KafkaError`.
    """

    def ask() -> dict[TopicPartition, int]:
        deadline = time.monotonic() + timeout
        with meet_cluster(config, timeout) as (client, _):
            stable = _ask_offsets(client, names, _LATEST, deadline)
            written = _ask_offsets(client, names, _LATEST, deadline, IsolationLevel.READ_UNCOMMITTED)
        return {name: high - stable[name] for name, high in written.items() if high > stable[name]}

    return await run_blocking("pinstream-kafka-offsets", ask)


def _ask_offsets(
    client: Any,
    names: Sequence[TopicPartition],
    spec: OffsetSpec,
    deadline: float,
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> dict[TopicPartition, int]:
    """Return one offset for each partition, in this order. Ask again where a leader changes or a login failed without
    a verdict."""
    if not names:
        return {}
    found: dict[TopicPartition, int] = {}
    asking = ""

    def ask() -> dict[TopicPartition, int]:
        nonlocal asking
        until = time.monotonic() + time_left(deadline, _LEAST)
        missing = {name: RawPartition(*name) for name in names if name not in found}
        asked = client.list_offsets(
            dict.fromkeys(missing.values(), spec), isolation_level=isolation, request_timeout=time_left(until)
        )
        for name, raw in missing.items():
            asking = str(name)
            found[name] = int(result_of(asked[raw], until).offset)
        return {name: found[name] for name in names}

    try:
        return ask_again(
            ask,
            deadline,
            lambda error: (
                error.code() in client_errors.MOVING_LEADER or client_errors.is_unjudged_login(error)
            ),
        )
    except KafkaException as error:
        text = f"the brokers do not say what {asking} holds: check that they are healthy, then start again"
        raise client_errors.kafka_failure(error, text) from error


# ------------------------------------------------------------------- a client that may have to be given up

_LONGEST: Final = 3600.0
"""Seconds: the longest ``request_timeout`` that librdkafka accepts (`rd_kafka_AdminOptions_init`)."""


@dataclass(eq=False, repr=False)  # the configuration holds passwords
class RenewedAdmin:
    """An AdminClient, replaced when it does not answer: for questions to the coordinators of groups above all.

    All questions to a coordinator go through here, since librdkafka (2.16) must never be the one that times them out.
    If it does before the coordinator is found and connected, the question stays in ``rk_coord_reqs``. Once the
    coordinator is there, however much later, `rd_kafka_admin_coord_request` frees the question's `rd_kafka_enq_once_t`
    and `rd_kafka_coord_req_fail` uses it again, which ends the process: "Assertion `eonce->refcnt > 0' failed".

    So librdkafka gets the longest possible time limit, and the real one is kept here. When that has passed, the client
    is destroyed, which ends the question properly (`rd_kafka_coord_reqs_term`), and the next question gets a new
    client. The new client may also get an answer that the old one would never get: librdkafka looks for a coordinator
    three times, and after that only when the connection to a broker comes or goes.

    Used in one thread. The AdminClient is made for the first question. If none can be made, that counts as no answer:
    the configuration is right, since a consumer or a first contact (`meet_cluster`) has used it before, but a
    certificate may be missing while it is replaced.
    """

    config: Config
    make_admin: Callable[[Config], Any] = configuration.admin_client
    _admin: Any = None
    replaced: int = 0
    """How many clients were destroyed: the answers to their questions never come."""

    @property
    def admin(self) -> Any:
        """Return the present AdminClient, for questions to brokers other than a coordinator: those may time out in
        librdkafka. Raises `KafkaException` if none can be made."""
        if self._admin is None:
            try:
                self._admin = self.make_admin(self.config)
            except SettingsError as error:
                raise KafkaException(_Code(_Code._FAIL, str(error))) from error
        return self._admin

    def begin(self, question: str, about: Sequence[Any]) -> concurrent.futures.Future[Any]:
        """Ask without waiting: `question` is a method of AdminClient, `about` its one argument.

        The answer may never come: the caller has to call `give_up` in time.
        """
        found: Mapping[Any, concurrent.futures.Future[Any]]
        found = getattr(self.admin, question)(about, request_timeout=_LONGEST)
        [answer] = found.values()
        return answer

    def ask(self, question: str, about: Sequence[Any], deadline: float) -> Any:
        """Ask as `begin` does, and wait for the answer until `deadline` (monotonic). Raises `KafkaException`."""
        answer = self.begin(question, about)
        try:
            return answer.result(time_left(deadline))
        except TimeoutError:
            self.give_up()
            raise KafkaException(_Code(_Code._TIMED_OUT)) from None

    def give_up(self) -> None:
        """Destroy the AdminClient. Its unanswered futures never complete."""
        admin, self._admin = self._admin, None
        self.replaced += 1
        # Destroying a client takes a millisecond, also while no broker answers, but it may wait for threads that wait
        # for a name server. In that time the consumer's thread has to go on polling. About 4 KB of each unanswered
        # question leak.
        if admin is not None:
            run_aside("pinstream-kafka-ending", partial(admin.__exit__, None, None, None))

    def close(self) -> None:
        """Destroy the AdminClient, if there is one, and wait for its end."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.__exit__(None, None, None)  # the only way: it has no `close`
