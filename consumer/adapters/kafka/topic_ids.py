"""Which ids topics have, by an AdminClient: an id tells one life of a topic from the next (KIP-516).

The consumer itself does not say. librdkafka notices that a topic has another id and goes on at the offset where it was,
so a topic that was deleted and created again is read from its middle.

There are two ways to ask. `TopicIds.ask` blocks, before a partition begins: first the id, then the committed offset, so
that an offset of the earlier life never goes with the id of the next (`consumer.adapters.kafka.starts`).
`TopicIds.look` never blocks: it begins a question every few seconds, and returns the answer to an earlier one. It never
returns after an `ask` what was asked before it.

Brokers without topic ids (older than 2.8, the embedded one) give none, and topics go without. librdkafka asks the
controller, and waits where there is none. The embedded broker has none, a real cluster has none for a moment: so
`TopicIds.ask` looks for one first. As long as there is none, `look` asks seldom, and learns the ids once there is one.
"""

from __future__ import annotations

import concurrent.futures
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from consumer.adapters.kafka.configuration import Config, admin_config, end_client, make_client
from consumer.adapters.kafka.trouble import exception_error

_EVERY: Final = 3.0
"""Seconds between two questions."""
_HURRIED: Final = 0.5
"""The same, after a sign that a topic may be another one by now."""
_WITHOUT_CONTROLLER: Final = 30.0
"""The same, as long as there was no controller."""
_EACH: Final = 0.01
"""Least seconds between two questions for each topic: an answer takes 0.1 ms of CPU for a topic with ten partitions."""
_TIMEOUT: Final = 10.0
_SLACK: Final = 1.0
_LEAST: Final = 0.1

_NO_ID: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
    }
)
"""These are answers, although not an id: asking again would bring the same."""


MISSING_TOPIC: Final = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_ID}
)
OTHER_TOPIC: Final = MISSING_TOPIC | {
    KafkaError.INCONSISTENT_TOPIC_ID,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError._UNKNOWN_PARTITION,
}
"""Errors that also come with a topic that was deleted and created again."""


class IdSource(Protocol):
    """What a member needs of `TopicIds`."""

    def ask(self, topics: Collection[str], timeout: float) -> Mapping[str, str]: ...
    def look(self, topics: Collection[str]) -> Mapping[str, str]: ...
    def hurry(self) -> None: ...
    def close(self) -> None: ...


class TopicIds:
    """Asks for ids. Made, used and closed in one thread; the client is made with the first question."""

    def __init__(self, config: Config, *, make_admin: Callable[[dict[str, Any]], Any] = AdminClient) -> None:
        self._config = admin_config(config)
        self._make_admin = make_admin
        self._client: Any = None
        self._can_tell = False
        self._asked: dict[str, concurrent.futures.Future[Any]] = {}
        self._hurried = False
        self._asked_at = float("-inf")

    def ask(self, topics: Collection[str], timeout: float) -> Mapping[str, str]:
        """The ids of those topics for which the brokers have one, within `timeout` seconds.

        Raises `KafkaException` if they do not answer.
        """
        self._asked = {}
        until = time.monotonic() + timeout
        if not self._tells(timeout):
            self._asked_at = time.monotonic()
            return {}
        asked = self._describe(topics, max(_LEAST, until - time.monotonic()))
        return {name: found for name, one in asked.items() if (found := _id_of(one, until)) is not None}

    def look(self, topics: Collection[str]) -> Mapping[str, str]:
        """The answer to an earlier question, if it is there; asks again when it is time to."""
        now = time.monotonic()
        if self._asked:
            if not all(one.done() for one in self._asked.values()):
                return {}
            asked, self._asked = self._asked, {}
            told = {name: found for name, one in asked.items() if (found := _id_or_none(one)) is not None}
            self._can_tell = self._can_tell or bool(told)
            return told
        wait = (_HURRIED if self._hurried else _EVERY) if self._can_tell else _WITHOUT_CONTROLLER
        if topics and now >= self._asked_at + max(wait, len(topics) * _EACH):
            self._asked_at, self._hurried = now, False
            self._asked = self._describe(topics, _TIMEOUT)
        return {}

    def hurry(self) -> None:
        """Ask soon: there is a sign that a topic may be another one by now."""
        self._hurried = True

    def close(self) -> None:
        """End the client."""
        if self._client is not None:
            end_client(self._client)
            self._client = None

    def _opened(self) -> Any:
        if self._client is None:
            self._client = make_client(self._make_admin, self._config)
        return self._client

    def _tells(self, timeout: float) -> bool:
        if not self._can_tell:
            metadata: Any = self._opened().list_topics(timeout=timeout)
            self._can_tell = metadata.controller_id in metadata.brokers
        return self._can_tell

    def _describe(self, topics: Collection[str], timeout: float) -> dict[str, concurrent.futures.Future[Any]]:
        asked: dict[str, concurrent.futures.Future[Any]] = self._opened().describe_topics(
            TopicCollection(sorted(topics)), request_timeout=timeout
        )
        return asked


def ask_once(config: Config, topics: Collection[str], timeout: float) -> Mapping[str, str]:
    """The ids of these, as far as the brokers have them; none if they do not answer. Blocks."""
    ids = TopicIds(config)
    try:
        return ids.ask(topics, timeout)
    except KafkaException:  # without an id, nothing is compared later
        return {}
    finally:
        ids.close()


def _id_of(answer: concurrent.futures.Future[Any], until: float) -> str | None:
    """The id; None: there is none. Raises `KafkaException`."""
    try:
        # librdkafka has the same limit, and says why when it ends: it gets a moment more.
        return id_text(answer.result(max(0.0, until - time.monotonic()) + _SLACK).topic_id)
    except KafkaException as error:
        if exception_error(error).code() in _NO_ID:
            return None
        raise
    except TimeoutError:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None


def _id_or_none(answer: concurrent.futures.Future[Any]) -> str | None:
    """As `_id_of`, for an answer that is there; also None if it failed: it is asked again."""
    try:
        return _id_of(answer, 0.0)
    except KafkaException:
        return None


def id_text(uuid: Any) -> str | None:
    """A `confluent_kafka.Uuid` as Kafka writes it: base64url of 16 bytes, unpadded. None: the broker knows no ids."""
    both = (uuid.get_most_significant_bits(), uuid.get_least_significant_bits())
    if both == (0, 0):
        return None
    raw = b"".join(one.to_bytes(8, "big", signed=True) for one in both)
    return urlsafe_b64encode(raw).decode().rstrip("=")
