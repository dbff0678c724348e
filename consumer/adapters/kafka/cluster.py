"""Questions about the cluster: is it there, which topics and partitions exist, how are topics set.

For `pinstream check` and the start of `pinstream run`: each failure is one line that says what to change, within a
bounded time. Metadata of all topics is asked for, never of one by name: a broker that creates topics on demand would
otherwise create the mistyped one.

A user who may read and write a topic need not be allowed to see its settings, and the embedded broker does not have
them: a topic whose settings are not known is absent from the answer, never an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    ConfigResource,
    ResourceType,
)

from consumer.adapters.kafka.configuration import Config, admin_config, dead_letter_pattern, make_client
from consumer.adapters.kafka.trouble import as_fatal, describe_error, exception_error
from consumer.adapters.thread import run_blocking
from consumer.engine.model import TopicPartition
from consumer.errors import KafkaError, SettingsError, nearest

_ONE_TRY = 1.0
_Code = confluent_kafka.KafkaError

_HOPELESS: Mapping[int, str] = {
    _Code._SSL: "the TLS handshake failed: check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_CA_LOCATION",
    _Code._RESOLVE: "a broker's name cannot be resolved: check KAFKA_BOOTSTRAP_SERVERS and the DNS",
}
"""Errors that waiting does not help against, if a first contact brings nothing else."""


_WANTED: Mapping[str, str] = {"plaintext": "SASL_SSL, SSL or SASL_PLAINTEXT", "sasl_plaintext": "SASL_SSL"}
"""What a broker may require if it ends connections of this security protocol."""


class ClusterView(NamedTuple):
    """The cluster. Topics map to their number of partitions."""

    brokers: tuple[str, ...]
    """``host:port`` of each."""
    topics: Mapping[str, int]
    """The topics to consume: those named, and those that a pattern matches."""
    unmatched: tuple[str, ...]
    """Patterns that match no topic (yet)."""
    leaderless: tuple[TopicPartition, ...]
    """Partitions of `topics` that cannot be read now."""
    known: Mapping[str, int]
    """All topics that this user may see."""


async def cluster_id(config: Config, timeout: float) -> str:
    """The brokers' id of their cluster: a mark that was written in another cluster does not hold here.

    Raises `KafkaError` and `SettingsError`, within `timeout` seconds.
    """
    metadata = await run_blocking("pinstream-kafka-cluster", fetch_metadata, config, timeout)
    return str(metadata.cluster_id or "")


async def describe(
    config: Config, topics: Sequence[str], timeout: float, *, dead_letter_topic: str = "{topic}.dead-letters"
) -> ClusterView:
    """The cluster and the topics (names, or patterns that start with ``^``), within `timeout` seconds.

    Raises `KafkaError` (unreachable, refused, a topic missing) and `SettingsError` (an invalid property or pattern).
    """
    # Not asyncio's own pool: the interpreter would wait for its threads, also when the answer is not needed any more.
    metadata = await run_blocking("pinstream-kafka-cluster", fetch_metadata, config, timeout)
    known = {name: len(topic.partitions) for name, topic in sorted(metadata.topics.items())}
    chosen, unmatched = _choose(topics, known, dead_letter_pattern(dead_letter_topic))
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


def fetch_metadata(config: Config, timeout: float) -> Any:
    """The cluster's metadata (confluent-kafka's `ClusterMetadata`). Blocks; raises `KafkaError`, `SettingsError`."""
    heard: list[confluent_kafka.KafkaError] = []
    deadline = time.monotonic() + timeout
    with make_client(AdminClient, {**admin_config(config), "error_cb": heard.append}) as client:
        while True:
            left = deadline - time.monotonic()
            try:
                return client.list_topics(timeout=max(0.1, min(_ONE_TRY, left)))
            except KafkaException as error:
                client.poll(0)  # collect what librdkafka says about the connections meanwhile
                _raise_hopeless(heard)
                if left <= _ONE_TRY:
                    raise _unreachable(config, timeout, [*heard, exception_error(error)]) from error


def _raise_hopeless(heard: Sequence[confluent_kafka.KafkaError]) -> None:
    for error in heard:
        fatal = as_fatal(error)
        if fatal is None and error.code() in _HOPELESS:
            fatal = KafkaError(f"Kafka: {_HOPELESS[error.code()]} ({describe_error(error)})")
        if fatal is not None:
            raise fatal


def _unreachable(config: Config, timeout: float, heard: Sequence[confluent_kafka.KafkaError]) -> KafkaError:
    reasons = [error for error in heard if error.code() != _Code._ALL_BROKERS_DOWN]
    where = f"Kafka: no broker answered at {config.get('bootstrap.servers')} within {timeout:g} s"
    told = describe_error(reasons[0])
    # librdkafka reports each connection that cannot be made, but not one that is made and then ended by the broker.
    wanted = _WANTED.get(str(config.get("security.protocol", "plaintext")).lower())
    if wanted is not None and [error.code() for error in reasons] == [_Code._TRANSPORT]:
        return KafkaError(
            f"{where}: it accepts connections and closes them at once, as a broker does that requires TLS or a login: "
            f"set KAFKA_SECURITY_PROTOCOL ({wanted}), or correct KAFKA_BOOTSTRAP_SERVERS ({told})"
        )
    return KafkaError(
        f"{where}: check KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL and the network ({told})"
    )


def _choose(
    topics: Sequence[str], known: Mapping[str, int], dead_letters: str
) -> tuple[list[str], tuple[str, ...]]:
    """The topics that are meant, in order and once each, and the patterns that match none."""
    chosen: dict[str, None] = {}
    unmatched: list[str] = []
    for topic in topics:
        if topic.startswith("^"):
            matching = [name for name in known if _matcher(topic)(name) and not re.match(dead_letters, name)]
            unmatched.extend([] if matching else [topic])
            chosen.update(dict.fromkeys(matching))
        elif topic in known:
            chosen[topic] = None
        else:
            raise _missing(topic, known)
    return list(chosen), tuple(unmatched)


def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    try:
        return re.compile(pattern).search
    except re.error as error:
        raise SettingsError(f"KAFKA_TOPICS: the pattern {pattern} cannot be read: {error}") from error


def _missing(topic: str, known: Mapping[str, int]) -> KafkaError:
    return KafkaError(
        f"Kafka: the topic {topic} does not exist, or this user may not see it{nearest_topic(topic, known)}: "
        "create it, or correct its name (KAFKA_TOPICS, or --topic)"
    )


def nearest_topic(topic: str, known: Iterable[str]) -> str:
    """The end of a message about a topic that does not exist: which one that does may be meant, if any."""
    near = nearest(topic, (name for name in known if not name.startswith("__")), similar=True)
    return f"; the nearest that does is {near}" if near else ""


class TopicSettings(NamedTuple):
    """Whether a topic is compacted, and how large a batch it takes."""

    compacted: bool
    largest: int


async def topic_settings(
    config: Config, topics: Collection[str], timeout: float
) -> Mapping[str, TopicSettings]:
    """The settings of those topics for which the brokers give them within `timeout` seconds."""
    return await run_blocking("pinstream-kafka-settings", _ask_settings, config, topics, timeout)


def _ask_settings(config: Config, topics: Collection[str], timeout: float) -> Mapping[str, TopicSettings]:
    deadline = time.monotonic() + timeout
    with make_client(AdminClient, admin_config(config)) as client:
        return _ask_each_setting(client, topics, deadline) if _can_tell(client, timeout) else {}


def _ask_each_setting(
    client: AdminClient, topics: Collection[str], deadline: float
) -> Mapping[str, TopicSettings]:
    asked = {name: ConfigResource(ResourceType.TOPIC, name) for name in topics}
    found = {}
    for name, resource in asked.items():
        try:
            # One at a time: some brokers refuse a question about several topics if one of them is not allowed.
            left = max(0.1, deadline - time.monotonic())
            answer: Any = client.describe_configs([resource], request_timeout=left)[resource].result(left + 1)
            found[name] = TopicSettings(
                "compact" in answer["cleanup.policy"].value, int(answer["max.message.bytes"].value)
            )
        except (KafkaException, TimeoutError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _can_tell(client: AdminClient, timeout: float) -> bool:
    """Whether there is a controller. The embedded broker has none, and would never answer the question."""
    try:
        metadata: Any = client.list_topics(timeout=timeout)
    except KafkaException:
        return False
    return metadata.controller_id in metadata.brokers
