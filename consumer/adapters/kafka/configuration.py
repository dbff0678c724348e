"""Clients of librdkafka: their configuration, how they are made and ended, and what of a consumer is used.

The user's ``KAFKA_…`` variables arrive as one dictionary of librdkafka properties. Each client gets three layers, the
later one winning: our defaults, the user's properties (without those for another kind of client, about which
librdkafka would only warn), and what the delivery guarantee fixes. The settings refuse `REFUSED_PROPERTIES` with a
reason: what is fixed silently would look as if it worked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from confluent_kafka import KafkaException, Message
from confluent_kafka import TopicPartition as RawPartition

from consumer.errors import SettingsError, nearest

Value = str | int | float | bool
Config = Mapping[str, Value]
Client = TypeVar("Client")

LOGGER: Final = logging.getLogger("consumer.kafka")
"""librdkafka's own log lines. They name brokers and topics, and never hold a record's content or a password."""
LOGGER.addHandler(logging.NullHandler())  # silent until the application says where logs go


def _is_news(record: logging.LogRecord) -> bool:
    """False for what is reported elsewhere already: each connection that failed (``FAIL``).

    librdkafka logs it besides handing it to the client's ``error_cb``. The debug level still shows it.
    """
    reported_already = isinstance(record.args, tuple) and record.args[:1] == ("FAIL",)
    return not reported_already or logging.getLogger().isEnabledFor(logging.DEBUG)


LOGGER.addFilter(_is_news)

_COMMITS = "pinstream itself commits what is settled, and only that; anything else would lose events"
_ONLY_COMMITTED = "records of aborted transactions must not be delivered: it is always read_committed"
_ACKNOWLEDGED = "a dead letter counts as stored only when all in-sync replicas have it"
_MOCK = "a mock broker inside the process holds no real records; use `pinstream demo`"
_OWN_LIMIT = "pinstream sets the time limit of a dead letter itself"

REFUSED_PROPERTIES: Final[Mapping[str, str]] = {
    "enable.auto.commit": _COMMITS,
    "auto.commit.enable": _COMMITS,
    "auto.commit.interval.ms": _COMMITS,
    "enable.auto.offset.store": _COMMITS,
    "offset.store.method": _COMMITS,
    "offset.store.path": _COMMITS,
    "offset.store.sync.interval.ms": _COMMITS,
    "isolation.level": _ONLY_COMMITTED,
    "acks": _ACKNOWLEDGED,
    "request.required.acks": _ACKNOWLEDGED,
    "enable.idempotence": _ACKNOWLEDGED,
    "delivery.report.only.error": _ACKNOWLEDGED,
    "transactional.id": "dead letters are not written in transactions",
    "delivery.timeout.ms": _OWN_LIMIT,
    "message.timeout.ms": _OWN_LIMIT,
    "enable.partition.eof": "pinstream has no use for end-of-partition events",
    "allow.auto.create.topics": "a mistyped topic would be created, empty, and look healthy",
    "check.crcs": "a record that was changed on its way must not be delivered: checksums are always checked",
    "plugin.library.paths": "it would load foreign code into the process",
    "test.mock.num.brokers": _MOCK,
    "test.mock.broker.rtt": _MOCK,
}
"""Properties that settings refuse (librdkafka's spelling), each with the reason to show."""

_CONSUMER_ONLY: Final = frozenset(
    {
        "group.id",
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "session.timeout.ms",
        "partition.assignment.strategy",
        "heartbeat.interval.ms",
        "coordinator.query.interval.ms",
        "max.poll.interval.ms",
        "enable.auto.commit",
        "auto.commit.interval.ms",
        "enable.auto.offset.store",
        "queued.min.messages",
        "check.crcs",
        "queued.max.messages.kbytes",
        "fetch.wait.max.ms",
        "fetch.queue.backoff.ms",
        "fetch.message.max.bytes",
        "fetch.max.bytes",
        "max.partition.fetch.bytes",
        "fetch.min.bytes",
        "fetch.error.backoff.ms",
        "isolation.level",
        "enable.partition.eof",
        "auto.offset.reset",
        "allow.auto.create.topics",
        "client.rack",
        "topic.blacklist",
    }
)
_PRODUCER_ONLY: Final = frozenset(
    {
        "transactional.id",
        "transaction.timeout.ms",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "linger.ms",
        "retries",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.ms",
        "message.send.max.retries",
        "queue.buffering.backpressure.threshold",
        "compression.codec",
        "compression.type",
        "compression.level",
        "batch.size",
        "batch.num.messages",
        "sticky.partitioning.linger.ms",
        "acks",
        "request.required.acks",
        "request.timeout.ms",
        "delivery.timeout.ms",
        "message.timeout.ms",
        "partitioner",
    }
)
_KNOWN: Final = sorted(
    _CONSUMER_ONLY
    | _PRODUCER_ONLY
    | {
        *("bootstrap.servers", "client.id", "client.dns.lookup", "security.protocol", "debug", "log_level"),
        *("sasl.mechanism", "sasl.username", "sasl.password", "sasl.oauthbearer.config"),
        *("ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password"),
        *("ssl.endpoint.identification.algorithm", "enable.ssl.certificate.verification"),
        *("socket.timeout.ms", "socket.keepalive.enable", "socket.connection.setup.timeout.ms"),
        *("metadata.max.age.ms", "topic.metadata.refresh.interval.ms", "reconnect.backoff.ms"),
        *("message.max.bytes", "receive.message.max.bytes", "statistics.interval.ms"),
    }
)
"""Properties that an unknown one may be a slip for; librdkafka has no list of them to ask for."""
_UNKNOWN: Final = re.compile(r'No such configuration property: "([^"]+)"')
_NOT_WITH_KIP_848: Final = (
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
    "group.protocol.type",
)
"""With ``group.protocol=consumer`` the broker decides these; librdkafka refuses them."""

FETCH_BYTES: Final = 64 * 1024
"""Compressed bytes of one fetch from one broker, unless its first batch is larger."""

_DEFAULTS: Final[Config] = {
    "client.id": "pinstream",
    # A request to a broker that has gone silent. A commit inside a revocation is tried three times.
    "socket.timeout.ms": 10_000,
}
_CONSUMER_DEFAULTS: Final[Config] = {
    "group.id": "pinstream",
    "partition.assignment.strategy": "cooperative-sticky",
    # What is fetched ahead of the engine's own budget. librdkafka looks at its queue before it asks a broker, never
    # while it decompresses an answer. It counts values there, neither keys nor headers: so records have a limit, too.
    "queued.max.messages.kbytes": 16 * 1024,
    "queued.min.messages": 2_000,
    # Compressed bytes; what they decompress to has no limit but the codec's. One batch comes whatever its size, so
    # where producers make large batches this costs nothing.
    "fetch.max.bytes": FETCH_BYTES,
    "fetch.message.max.bytes": FETCH_BYTES,
    # Of one answer, and (zstd) of one decompressed batch: a larger one is never read.
    "receive.message.max.bytes": 512 * 1024 * 1024,
    # A resumed partition is fetched again when the broker has answered the fetch that went out without it.
    "fetch.wait.max.ms": 100,
    # What was fetched ahead is soon used up: look again after this, not after librdkafka's default of a second.
    "fetch.queue.backoff.ms": 10,
    # How soon the members of a classic group see a new topic that a pattern matches, and added partitions.
    "topic.metadata.refresh.interval.ms": 30_000,
}
_CONSUMER_FIXED: Final[Config] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": False,
    "allow.auto.create.topics": False,
    # Without it a flipped byte is delivered. Its cost is not measurable: below 0.01 µs a record of 300 bytes.
    "check.crcs": True,
}
_ALIASES: Final = {"max.partition.fetch.bytes": "fetch.message.max.bytes"}
"""Other names of properties that have a default here: with two names it would not be clear which one counts."""
_PRODUCER_DEFAULTS: Final[Config] = {"compression.type": "lz4"}
_PRODUCER_FIXED: Final[Config] = {"acks": "all", "enable.idempotence": True}


def longest_commit(config: Config) -> float:
    """Seconds that a commit inside a revocation may take: only librdkafka bounds it, by three tries."""
    default = int(_DEFAULTS["socket.timeout.ms"])
    try:
        return 3 * int(config.get("socket.timeout.ms", default)) / 1000
    except ValueError:  # librdkafka says what is wrong with it
        return 3 * default / 1000


def uses_consumer_protocol(config: Config) -> bool:
    """Whether the group runs KIP-848 (``group.protocol=consumer``)."""
    return str(config.get("group.protocol", "classic")).lower() == "consumer"


def is_cooperative(config: Config) -> bool:
    """Whether assignments come as increments (cooperative, KIP-848) rather than whole (eager)."""
    strategy = str(config.get("partition.assignment.strategy", ""))
    return uses_consumer_protocol(config) or "cooperative" in strategy


def consumer_config(user: Config, *, offset_reset: str, ignore: str | None) -> dict[str, Any]:
    """A consumer's configuration.

    `offset_reset` is ours, not librdkafka's: under ``latest`` librdkafka still gets ``earliest``, since only an
    explicit start offset may ever skip records. `ignore`: regular expression of topics that must not be seen.
    """
    own = {_ALIASES.get(name, name): value for name, value in user.items() if name not in _PRODUCER_ONLY}
    config: dict[str, Any] = {**_DEFAULTS, **_CONSUMER_DEFAULTS, **own, **_CONSUMER_FIXED}
    # A limit for what is produced; librdkafka wants a fetch to be no smaller than it.
    config["message.max.bytes"] = min(FETCH_BYTES, int(config["fetch.max.bytes"]))
    config["auto.offset.reset"] = "error" if offset_reset == "error" else "earliest"
    if uses_consumer_protocol(config):
        for name in _NOT_WITH_KIP_848:
            config.pop(name, None)
    if ignore is not None:
        config["topic.blacklist"] = ",".join(filter(None, (str(user.get("topic.blacklist", "")), ignore)))
    return config


def producer_config(user: Config, *, delivery_timeout: float) -> dict[str, Any]:
    """A producer's configuration: idempotent, all replicas; `delivery_timeout` in seconds, retries included."""
    own = {name: value for name, value in user.items() if name not in _CONSUMER_ONLY}
    fixed = {**_PRODUCER_FIXED, "delivery.timeout.ms": int(delivery_timeout * 1000)}
    return {**_DEFAULTS, **_PRODUCER_DEFAULTS, **own, **fixed}


def admin_config(user: Config) -> dict[str, Any]:
    """What a client that only asks questions needs: how to reach the brokers and log in."""
    other = _CONSUMER_ONLY | _PRODUCER_ONLY
    return {**_DEFAULTS, **{name: value for name, value in user.items() if name not in other}}


def dead_letter_topic(template: str, topic: str) -> str:
    """The dead-letter topic of `topic`; `template` may hold ``{topic}``, or name one topic for all."""
    return template.replace("{topic}", topic)


def dead_letter_pattern(template: str) -> str:
    """A regular expression of all topics that `template` can name; POSIX and Python read it alike."""
    # Of what a topic's name may hold (letters, digits, dot, dash, underscore) only the dot means something.
    before, mark, after = template.replace(".", r"\.").partition("{topic}")
    return f"^{before}{'.+' if mark else ''}{after}$"


def make_client(make: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
    """A client of this configuration. Raises `SettingsError` naming the variable that librdkafka refuses."""
    try:
        return make({**config, "logger": LOGGER})
    except KafkaException as error:
        text = error.args[0].str()
        unknown = _UNKNOWN.search(text)
        if unknown is None:
            raise SettingsError(f"the Kafka settings cannot be used: {_with_variables(text)}") from error
        near = nearest(unknown[1], _KNOWN, similar=True)
        hint = f"did you mean {variable(near)}?" if near else "correct or remove it"
        raise SettingsError(f"{variable(unknown[1])} is not a librdkafka property; {hint}") from error
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the Kafka settings cannot be used: {_with_variables(str(error))}") from error


def end_client(client: Any) -> None:
    """Destroy an AdminClient at once, as the end of its ``with`` block does. Used again, it raises RuntimeError."""
    client.__exit__(None, None, None)


def _with_variables(text: str) -> str:
    """librdkafka's words, with the environment variable in place of each property that it quotes."""
    line = " ".join(text.split())
    return re.sub(r'["`]([a-z]+(?:\.[a-z0-9]+)+)["`]', lambda found: variable(found[1]), line)


def variable(name: str) -> str:
    """The environment variable of a librdkafka property: ``sasl.username`` is ``KAFKA_SASL_USERNAME``."""
    return "KAFKA_" + name.upper().replace(".", "_")


class RawConsumer(Protocol):
    """What a group member uses of `confluent_kafka.Consumer`; tests drive it with a fake."""

    def subscribe(
        self,
        topics: list[str],
        on_assign: Callable[..., None] | None = ...,
        on_revoke: Callable[..., None] | None = ...,
        on_lost: Callable[..., None] | None = ...,
    ) -> None: ...
    def consume(self, num_messages: int = ..., timeout: float = ...) -> list[Message]: ...
    def commit(self, *, offsets: list[RawPartition], asynchronous: Any) -> Any: ...
    def assign(self, partitions: list[RawPartition]) -> None: ...
    def unassign(self) -> None: ...
    def incremental_assign(self, partitions: list[RawPartition]) -> None: ...
    def incremental_unassign(self, partitions: list[RawPartition]) -> None: ...
    def pause(self, partitions: list[RawPartition]) -> None: ...
    def resume(self, partitions: list[RawPartition]) -> None: ...
    def committed(self, partitions: list[RawPartition], timeout: float = ...) -> list[RawPartition]: ...
    def get_watermark_offsets(
        self, partition: RawPartition, timeout: float = ..., cached: bool = ...
    ) -> tuple[int, int]: ...
    def seek(self, partition: RawPartition) -> None: ...
    def position(self, partitions: list[RawPartition]) -> list[RawPartition]: ...
    def unsubscribe(self) -> None: ...
    def memberid(self) -> str | None: ...
    def close(self) -> None: ...
