"""Clients of librdkafka: how they are configured, made, asked and closed.

The user's ``KAFKA_…`` variables arrive as one dictionary of librdkafka properties. Each client gets three layers, the
later one winning: our defaults, the user's properties, and what the delivery guarantee fixes. The settings refuse a
property that is fixed, with the reason (`consumer.settings.passthrough`): if it were overridden silently, it would look
as if it worked.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, TypeVar

import orjson
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from consumer import errors
from consumer.adapters.aws import msk
from consumer.adapters.kafka import client_errors
from consumer.engine.messages import BrokersSilent, BrokerTimes
from consumer.errors import SettingsError, nearest

# Seconds that a question gets beyond librdkafka's own limit, so that librdkafka can report why it timed out.
_SLACK: Final = 1.0
_LEAST: Final = 0.1
_AGAIN_AFTER: Final = 0.2

Value = str | int | float | bool
Config = Mapping[str, Value]
Client = TypeVar("Client")
_Answer = TypeVar("_Answer")

_COORDINATOR: Final = "GroupCoordinator"
"""librdkafka's name for the connection to the group's coordinator."""
_GROUP: Final = re.compile(r'"cgrp": *\{ *"state": *"([^"]*)"')
"""In the statistics of a consumer: the state of its connection to that coordinator."""

# librdkafka's own log lines. They name brokers and topics, and never hold a record's content or a password.
LOGGER: Final = logging.getLogger("consumer.kafka")
LOGGER.addHandler(logging.NullHandler())  # silent until the application configures logging


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether to show this line of librdkafka. The debug level shows all lines."""
    args = record.args if isinstance(record.args, tuple) else ()
    # A connection that failed, or a client that ended: librdkafka also hands it to `error_cb`, which reports it.
    known = args[:1] in (("FAIL",), ("FATAL",))
    # Ignore properties without effect: each client gets all properties of the user, also those for other kinds of
    # client.
    known = known or (args[:1] == ("CONFWARN",) and "will be ignored by this" in str(args[-1]))
    return not known or logging.getLogger().isEnabledFor(logging.DEBUG)


LOGGER.addFilter(_is_news)

_UNKNOWN: Final = re.compile(r'No such configuration property: "([^"]+)"')
_QUOTED: Final = re.compile(r'["`]([a-z]+(?:\.[a-z0-9]+)+)["`]')
# With ``group.protocol=consumer`` the broker decides these properties; librdkafka refuses them.
_NOT_WITH_KIP_848: Final = (
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "partition.assignment.strategy",
    "group.protocol.type",
)

FETCH_BYTES: Final = 64 * 1024
"""Compressed bytes of one fetch from one broker, unless its first batch is larger."""

_DEFAULTS: Final[Config] = {
    "client.id": "pinstream",
    # For a request to a broker that does not answer. A commit inside a revocation is tried three times.
    "socket.timeout.ms": 10_000,
    # A new client asks for something, and librdkafka then opens its first connection after half of this time: 50 ms by
    # default, four times in a row at a start. It doubles while a broker is away.
    "reconnect.backoff.ms": 20,
}
_CONSUMER_DEFAULTS: Final[Config] = {
    "group.id": "pinstream",
    "partition.assignment.strategy": "cooperative-sticky",
    # Limits of what is fetched ahead of the engine's own budget. librdkafka checks its queue before it asks a broker,
    # not while it decompresses an answer. The bytes are those of values, without keys and headers: so there is also a
    # limit in records.
    "queued.max.messages.kbytes": 16 * 1024,
    "queued.min.messages": 2_000,
    # Compressed bytes; only the codec limits the decompressed size. One batch is sent whatever its size, so where
    # producers make large batches this limit costs nothing.
    "fetch.max.bytes": FETCH_BYTES,
    "fetch.message.max.bytes": FETCH_BYTES,
    # Limit of one answer, and (zstd) of one decompressed batch: a larger one is never read.
    "receive.message.max.bytes": 512 * 1024 * 1024,
    # Where few records come, a broker answers twenty times a second and not once a record: an answer costs 0.1 ms, and
    # 1 ms with a thousand partitions. The wait also delays a partition that was resumed, sought or assigned: it is
    # fetched once the fetch that was sent without it is answered, and its first record then waits again. Both
    # together are at most what the first wait alone was with a minimum of one byte and 100 ms.
    "fetch.min.bytes": FETCH_BYTES,
    "fetch.wait.max.ms": 50,
    # The queue of fetched records is soon empty: check it again after this time, not after librdkafka's default of a
    # second.
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
    # Without the check a flipped byte is delivered. It costs less than 0.01 µs for a record of 300 bytes.
    "check.crcs": True,
}
# Other names of properties that have a default here: with two names it would not be clear which one counts.
_ALIASES: Final = {"max.partition.fetch.bytes": "fetch.message.max.bytes"}
_PRODUCER_DEFAULTS: Final[Config] = {"compression.type": "lz4"}
_PRODUCER_FIXED: Final[Config] = {"acks": "all", "enable.idempotence": True}
UNLIMITED_QUEUE: Final[Config] = {
    # The topic decides how large a letter may be. Only what exceeds one request (a broker's
    # socket.request.max.bytes is 100 MiB) must be refused here: the broker would just close the connection.
    "message.max.bytes": 100_000_000,
    # What waits is limited before it comes here. A queue that is smaller than a letter would never take it.
    "queue.buffering.max.messages": 0,
    "queue.buffering.max.kbytes": 2_000_000,
}
"""Properties of producers whose callers limit what is queued, beside `producer_config`."""


OnBrokers = Callable[[Sequence[BrokerTimes]], None]
OnSilence = Callable[[BrokersSilent], None]

# Milliseconds between two statistics of a client. Three without an answer are silence: within eight seconds.
_STATISTICS_EVERY: Final = 2_000
_IN_A_ROW: Final = 3
_TIMES_OVER: Final = 5
"""Number of consecutive statistics, ten seconds, over which times are reported."""
_ALONE: Final = 10
"""Number of consecutive statistics without a broker after which the client will never have one again."""


class _Lasting:
    """How long consecutive statistics have shown the same, by the client's clock."""

    def __init__(self) -> None:
        self._since: float | None = None
        """Time of the latest statistics that did not show it."""
        self._count = 0
        self.enough = _IN_A_ROW
        """How many statistics must show it."""

    def seconds(self, shown: bool, now: float) -> float | None:
        """Take the next statistics. Return how long all have shown it, once there are enough of them."""
        if not shown or self._since is None:
            self._since, self._count = now, 0
            return None
        # Counted, too: after this process stood still, the first statistics know of nothing for a long time.
        self._count += 1
        return now - self._since if self._count >= self.enough else None


class BrokerWatch:
    """Reports what a client measures of its brokers, and whether they and the group's coordinator answer.

    `on_brokers` and `on_silence` are called in the thread that polls the client; `on_silence` as long as no broker
    answers, and once when one does again. Clients that replace each other may share one watch.

    It also notices when a client is `stranded`. When an answer names topics and no brokers, librdkafka (2.16, issue
    #5301) drops all its brokers, including the configured ones, and never connects again. A broker that has just lost
    its controller answers so. Only another client helps.
    """

    def __init__(self, on_brokers: OnBrokers, on_silence: OnSilence = lambda silence: None) -> None:
        self._on_brokers = on_brokers
        self._on_silence = on_silence
        self._throttled: Counter[str] = Counter()
        """Seconds that requests were throttled, by broker."""
        self._trips: dict[str, deque[tuple[int, float, float]]] = {}
        """The latest round trips, by broker: how many, their average, and their 99th percentile."""
        self._config: Mapping[str, Any] = {}
        self._alone = 0
        """Number of consecutive statistics that named no broker."""
        self.stranded = False
        """Whether the client has no broker left, so that it has to be replaced."""
        self._answers = 0
        self._silence, self._without_coordinator = _Lasting(), _Lasting()
        self._is_silent = False
        """Whether silence was reported last."""
        self._error: KafkaError | None = None
        """The latest error of a broker since one answered, or of the interval in which one did: it may be what ended
        the answers."""
        self._error_is_old = False
        self.coordinator_silent: float | None = None
        """Seconds for which no coordinator has answered, while brokers have; None: it answers."""

    def watching(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with what is needed to watch its client."""
        self._alone, self.stranded, self._answers, self._config = 0, False, 0, config
        # A broker that has no records answers a fetch only then.
        self._silence.enough = _IN_A_ROW + milliseconds(config, "fetch.wait.max.ms", 0) // _STATISTICS_EVERY
        return {**config, "statistics.interval.ms": _STATISTICS_EVERY, "stats_cb": self.take}

    def heard(self, error: KafkaError) -> None:
        """Take an error that the client reports."""
        if client_errors.is_of_a_broker(error):
            self._error, self._error_is_old = error, False

    def take(self, text: str) -> None:
        """Take librdkafka's statistics, as JSON; they are about the time since the last ones, except for counters."""
        # Cut off the partitions, which come after the brokers: a megabyte for a thousand of them, which is not needed.
        head, found, _ = text.partition(', "topics":')
        # Another version of librdkafka may write statistics in another form: that must not raise an error from the
        # poll.
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            document = orjson.loads(head + "}" if found else text)
            group = _GROUP.search(text, max(0, text.rfind('"cgrp"')))
            brokers = document["brokers"].values()
            # The coordinator's connection does not count: without the other brokers the client cannot find it again.
            known = any(one["source"] in ("configured", "learned") for one in brokers)
            self._alone = 0 if known else self._alone + 1
            self.stranded = self._alone >= _ALONE
            self._on_brokers([stats for one in brokers if (stats := self._times(one)) is not None])
            self._listen(brokers, group is None or group[1] in ("up", "term"), document["ts"] / 1e6)

    def _listen(self, brokers: Collection[Mapping[str, Any]], coordinated: bool, now: float) -> None:
        """Report whether any broker answers, at this time of the client's clock. `coordinated`: whether there is a
        connection to the coordinator, or none is needed."""
        answers = sum(one["rx"] for one in brokers)
        # The coordinator may take minutes to answer who joins: it waits for the other members.
        waits = any(one["waitresp_cnt"] for one in brokers if one["name"] != _COORDINATOR)
        waits = waits or not any(one["state"] in ("UP", "UPDATE") for one in brokers)
        missing = waits and answers <= self._answers
        seconds = self._silence.seconds(missing, now)
        if seconds is not None:
            self._on_silence(BrokersSilent(client_errors.why_silent(self._config, self._error), seconds))
        elif self._is_silent:
            self._on_silence(BrokersSilent(None))
        if not missing:
            self._error, self._error_is_old = None if self._error_is_old else self._error, True
        self._answers, self._is_silent = answers, seconds is not None
        # While no broker answers, that is all there is to say.
        alone = not coordinated and not self._is_silent
        self.coordinator_silent = self._without_coordinator.seconds(alone, now)

    def _times(self, one: Mapping[str, Any]) -> BrokerTimes | None:
        # Configured brokers are listed a second time under their ids, once the ids are known.
        broker = "coordinator" if one["name"] == _COORDINATOR else str(one["nodeid"])
        if one["source"] == "configured" or broker.startswith("-"):
            return None
        trip, held = one["rtt"], one["throttle"]
        self._throttled[broker] += held["sum"] / 1000
        # A value beyond the histogram's range is missing in its p99.
        slow = trip["max" if trip["outofrange"] else "p99"]
        trips = self._trips.setdefault(broker, deque(maxlen=_TIMES_OVER))
        trips.append((trip["cnt"], trip["avg"], slow))
        asked, throttled = sum(count for count, _, _ in trips), self._throttled[broker]
        if not asked:
            # A broker that this client has no connection to is omitted.
            return BrokerTimes(broker, None, None, throttled) if throttled else None
        average = sum(count * mean for count, mean, _ in trips) / asked
        p99 = max(slow for count, _, slow in trips if count)
        return BrokerTimes(broker, average / 1e6, p99 / 1e6, throttled)


def milliseconds(config: Mapping[str, Any], name: str, default: int) -> int:
    """Return the value of a property; the default, if it is no number: librdkafka reports what is wrong with it."""
    with contextlib.suppress(ValueError):
        return int(config.get(name, default))
    return default


def longest_commit(config: Config) -> float:
    """Return the seconds that a commit inside a revocation may take: only librdkafka bounds it, by three tries."""
    return 3 * milliseconds(config, "socket.timeout.ms", int(_DEFAULTS["socket.timeout.ms"])) / 1000


def uses_consumer_protocol(config: Config) -> bool:
    """Return whether the group runs KIP-848 (``group.protocol=consumer``)."""
    return str(config.get("group.protocol", "classic")).lower() == "consumer"


def is_cooperative(config: Config) -> bool:
    """Return whether assignments are incremental (cooperative, KIP-848) rather than whole (eager)."""
    strategy = str(config.get("partition.assignment.strategy", ""))
    return uses_consumer_protocol(config) or "cooperative" in strategy


def consumer_config(user: Config, *, offset_reset: str, ignore: str | None) -> dict[str, Any]:
    """Return a consumer's configuration.

    `offset_reset` is our setting, not librdkafka's: under ``latest`` librdkafka still gets ``earliest``. `ignore`:
    regular expression of topics that must not be seen.
    """
    own = {_ALIASES.get(name, name): value for name, value in user.items()}
    config: dict[str, Any] = {**_DEFAULTS, **_CONSUMER_DEFAULTS, **own, **_CONSUMER_FIXED}
    # A limit for producing; librdkafka requires the limit of a fetch to be no smaller.
    config["message.max.bytes"] = min(FETCH_BYTES, int(config["fetch.max.bytes"]))
    # Only an explicit start offset may ever skip records.
    config["auto.offset.reset"] = "error" if offset_reset == "error" else "earliest"
    if uses_consumer_protocol(config):
        for name in _NOT_WITH_KIP_848:
            config.pop(name, None)
    if ignore is not None:
        config["topic.blacklist"] = ",".join(filter(None, (str(user.get("topic.blacklist", "")), ignore)))
    return config


def producer_config(user: Config, *, delivery_timeout: float) -> dict[str, Any]:
    """Return a producer's configuration: idempotent, all replicas; `delivery_timeout` in seconds, retries included."""
    fixed = {**_PRODUCER_FIXED, "delivery.timeout.ms": int(delivery_timeout * 1000)}
    return {**_PRODUCER_DEFAULTS, **admin_config(user), **fixed}


def admin_config(user: Config) -> dict[str, Any]:
    """Return the configuration of a client that only asks questions: how to reach the brokers and log in."""
    # Topics that are excluded from consuming may be written to and asked about.
    return {**_DEFAULTS, **{name: value for name, value in user.items() if name != "topic.blacklist"}}


OF_KAFKA: Final = "^__(consumer_offsets|transaction_state|share_group_state)$"
"""A regular expression of the topics that Kafka keeps for itself."""


def dead_letter_topic(template: str, topic: str) -> str:
    """Return the dead-letter topic of `topic`; `template` may hold ``{topic}``, or name one topic for all."""
    return template.replace("{topic}", topic)


def dead_letter_pattern(template: str) -> str:
    """Return a regular expression of all topics that `template` can name; POSIX and Python read it alike."""
    # Topic names have letters, digits, dots, dashes and underscores: only the dot is special in an expression.
    before, mark, after = template.replace(".", r"\.").partition("{topic}")
    return f"^{before}{'.+' if mark else ''}{after}$"


def never_matched(own_topics: Sequence[str]) -> str:
    """Return a regular expression of all topics that no pattern of KAFKA_TOPICS selects: those that we write (names or
    templates), and Kafka's own, which other clients omit, too."""
    return "|".join((*map(dead_letter_pattern, own_topics), OF_KAFKA))


def check_files(config: Config) -> None:
    """Raise `SettingsError` if the file of a certificate or a key does not exist, or cannot be opened."""
    # For such a file, librdkafka reports only that something failed.
    for name, value in config.items():
        if name.startswith("ssl.") and name.endswith(".location") and value != "probe":
            try:
                # It may be a folder of authorities. A pipe must not block.
                os.close(os.open(str(value), os.O_RDONLY | os.O_NONBLOCK))
            except OSError as error:
                raise SettingsError(f"{variable(name)}: {value} cannot be read: {error.strerror}") from error


def make_client(make: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
    """Return a client of this configuration.

    Raises `SettingsError` naming the variable that librdkafka refuses, `msk.NoToken` if it cannot log in with IAM now.
    """
    if msk.asked(config):
        config = msk.with_tokens(config)
    check_files(config)
    try:
        return make({"logger": LOGGER, **config})
    except (KafkaException, TypeError, ValueError) as error:
        text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        # "Failed to create thread", "Failed to create background thread", or no memory for either.
        if "thread" in text or errors.limit_met(error):
            raise errors.KafkaError(f"Kafka: {errors.NO_ROOM} ({text})") from error
        if unknown := _UNKNOWN.search(text):
            near = nearest(unknown[1], _known_properties())
            hint = f"did you mean {variable(near)}?" if near else "correct or remove it"
            raise SettingsError(f"{variable(unknown[1])} is not a librdkafka property; {hint}") from error
        if "No provider for SASL mechanism GSSAPI" in text:
            raise SettingsError(_no_mechanism(config)) from error
        # librdkafka's text, with the environment variable in place of each property that it quotes.
        line = _QUOTED.sub(lambda found: variable(found[1]), " ".join(text.split()))
        bare = "|".join(map(re.escape, sorted(_known_properties(), key=len, reverse=True)))
        line = re.sub(bare, lambda found: variable(found[0]), line)
        if "KAFKA_SECURITY_PROTOCOL" in line:
            line = f"{line}: it is PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
        raise SettingsError(f"the Kafka settings cannot be used: {line}") from error


def _known_properties() -> list[str]:
    """Return properties to suggest for one that may be misspelled: librdkafka cannot list its own."""
    return files("consumer.adapters.kafka").joinpath("properties.txt").read_text("utf-8").split()


def _no_mechanism(config: Config) -> str:
    """Return what to do where librdkafka would log in with Kerberos: that is its default, and its wheels lack it."""
    others = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or AWS_MSK_IAM"
    if {"sasl.mechanism", "sasl.mechanisms"} & config.keys():
        return (
            f"KAFKA_SASL_MECHANISM=GSSAPI needs a librdkafka with Kerberos, which this one is not: use {others}, or "
            "install confluent-kafka from its sources"
        )
    protocol = str(config["security.protocol"]).upper()
    return (
        f"KAFKA_SECURITY_PROTOCOL={protocol} is a login, and KAFKA_SASL_MECHANISM does not say which: set it to "
        f"{others}, with KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD for the first three; without a login it is "
        f"KAFKA_SECURITY_PROTOCOL={'SSL' if protocol == 'SASL_SSL' else 'PLAINTEXT'}"
    )


def admin_client(config: Config, **own: object) -> AdminClient:
    """Return a client for questions, also a context manager. `own`: further properties and callbacks. Raises
    `SettingsError` as `make_client` does."""
    return make_client(AdminClient, {**admin_config(config), **own})


def time_left(deadline: float, least: float = _LEAST) -> float:
    """Return the seconds until `deadline` (monotonic); a question gets `least` even if less is left."""
    return max(least, deadline - time.monotonic())


def result_of(answer: concurrent.futures.Future[Any], deadline: float) -> Any:
    """Return the answer of an AdminClient; `deadline` (monotonic) is librdkafka's. Raises `KafkaException`."""
    try:
        return answer.result(time_left(deadline, 0.0) + _SLACK)
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


def ask_again(
    question: Callable[[], _Answer], deadline: float, passes: Callable[[KafkaError], bool]
) -> _Answer:
    """Return the answer to a question that is asked again, until `deadline` (monotonic), after errors that pass.

    Raises the last `KafkaException`.
    """
    while True:
        try:
            return question()
        except KafkaException as error:
            if not passes(client_errors.cause_of(error)) or time.monotonic() + _AGAIN_AFTER > deadline:
                raise
        time.sleep(_AGAIN_AFTER)


def variable(name: str) -> str:
    """Return the environment variable of a librdkafka property: ``sasl.username`` is ``KAFKA_SASL_USERNAME``."""
    return "KAFKA_" + name.upper().replace(".", "_")
