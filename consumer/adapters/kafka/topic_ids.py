"""Asks for topics' ids with an AdminClient: the id distinguishes a topic from the one that was deleted before it
(KIP-516).

The consumer itself does not notice: librdkafka goes on at its offset, in the middle of a topic that was created again.

There are two ways to ask. `TopicIdWatch.ask` blocks, before a partition begins: first the id, then the committed
offset, so that an offset of a deleted topic never goes with the id of the next (`consumer.adapters.kafka.starts`).
`TopicIdWatch.poll` never blocks: it begins a question every few seconds, and returns the answer to an earlier one.
Brokers without topic ids (older than 2.8, the embedded one) report none; their topics have no ids.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection, Uuid

from consumer.adapters.kafka.client_errors import CANNOT_SAY, NOT_ALLOWED, cause_of
from consumer.adapters.kafka.cluster import RenewedAdmin, has_controller
from consumer.adapters.kafka.configuration import Config, admin_client, result_of, time_left

_EVERY: Final = 3.0
"""Seconds between two questions."""
_EXPIRED: Final = 0.5
"""Seconds between two questions after a sign that a topic may have been created again."""
_WITHOUT_CONTROLLER: Final = 30.0
"""Seconds between two questions as long as no controller was found."""
# Least seconds between two questions for each topic: an answer takes 0.1 ms of CPU for a topic with ten partitions.
_EACH: Final = 0.01
_TIMEOUT: Final = 10.0
_PATIENCE: Final = 20.0
"""Seconds without an answer to any question after which the client is replaced."""

# Errors that are answers: asking again would bring the same.
_NO_ID: Final = NOT_ALLOWED | CANNOT_SAY | {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_EXCEPTION}
_UNKNOWN_ID: Final = 22 * "A"
_URL_SAFE: Final = str.maketrans("+/", "-_")


class TopicIdWatch:
    """Asks for topic ids. Made, used and closed in one thread; the client is made with the first question.

    A client that brings no answer for a while is replaced, since it may never bring one (`BrokerWatch`). The member's
    other questions go through the same client (`client`): an idle one costs 0.2 ms of CPU a second.
    """

    def __init__(self, config: Config, make_admin: Callable[[Config], Any] = admin_client) -> None:
        self.client = RenewedAdmin(config, make_admin)
        self._has_ids = False
        self._asked: dict[str, concurrent.futures.Future[Any]] = {}
        self._asked_of = 0
        """`RenewedAdmin.replaced` when they were asked."""
        self._expired = False
        self._asked_at = float("-inf")
        self._silent_since = math.inf
        """Time (monotonic) since which no question has been answered; infinite: the last one was answered."""

    def ask(self, topics: Collection[str], timeout: float) -> Mapping[str, str]:
        """Return the ids of the topics for which the brokers have one, within `timeout` seconds.

        Raises `KafkaException` if they do not answer.
        """
        self._asked = {}  # `poll` must not return the answer to an earlier question
        deadline = time.monotonic() + timeout
        try:
            if not self._has_ids:
                # librdkafka asks the controller, and waits where there is none: the embedded broker has none, and
                # a real cluster may have none for a moment.
                self._has_ids = has_controller(self.client.admin.list_topics(timeout=timeout))
            if not self._has_ids:
                self._asked_at = time.monotonic()
                return {}
            asked = self.client.admin.describe_topics(
                TopicCollection(sorted(topics)), request_timeout=time_left(deadline)
            )
            # Wait for the ids before a partition starts:
            # the offset of a deleted topic must not go with the id of the next.
            ids = {name: found for name, one in asked.items() if (found := _id_of(one, deadline)) is not None}
        except KafkaException:
            self._heard(an_answer=False)
            raise
        self._heard(an_answer=True)
        return ids

    def poll(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the answer to an earlier question if it has come, else nothing; ask again when it is time to."""
        now = time.monotonic()
        if not self._asked:
            # Without a controller ask seldom: once there is one, the answer shows it.
            wait = (_EXPIRED if self._expired else _EVERY) if self._has_ids else _WITHOUT_CONTROLLER
            if topics and now >= self._asked_at + max(wait, len(topics) * _EACH):
                self._asked_at, self._expired = now, False
                with contextlib.suppress(KafkaException):  # no new client can be made now
                    self._asked_of = self.client.replaced
                    self._asked = self.client.admin.describe_topics(
                        TopicCollection(sorted(topics)), request_timeout=_TIMEOUT
                    )
            return {}
        if not all(one.done() for one in self._asked.values()):
            # The answer of a client that is gone never comes.
            self._asked = self._asked if self._asked_of == self.client.replaced else {}
            return {}
        asked, self._asked = self._asked, {}
        found: dict[str, str | None] = {}
        for name, one in asked.items():
            with contextlib.suppress(KafkaException):  # the next question asks for it again
                found[name] = _id_of(one, now)
        self._heard(an_answer=bool(found))
        ids = {name: one for name, one in found.items() if one is not None}
        self._has_ids = self._has_ids or bool(ids)
        return ids

    def expire_cache(self) -> None:
        """Ask soon, because there is a sign that a topic was created again."""
        self._expired = True

    def close(self) -> None:
        """Close the client."""
        self.client.close()

    def _heard(self, *, an_answer: bool) -> None:
        now = time.monotonic()
        self._silent_since = math.inf if an_answer else min(self._silent_since, now)
        if now >= self._silent_since + _PATIENCE:
            # The client may have lost its brokers for good. It is not replaced sooner, since a new client has to
            # connect and log in.
            self._silent_since = math.inf
            self.client.give_up()


def ask_once(config: Config, topics: Collection[str], timeout: float) -> Mapping[str, str]:
    """Return the ids of these topics, as far as the brokers have them; none if they do not answer. Blocks."""
    # Errors are ignored: without an id, nothing is compared later.
    with contextlib.closing(TopicIdWatch(config)) as ids, contextlib.suppress(KafkaException):
        return ids.ask(topics, timeout)
    return {}


def _id_of(answer: concurrent.futures.Future[Any], deadline: float) -> str | None:
    """Return the id as Kafka writes it; None: there is none. Raises `KafkaException`."""
    try:
        return id_text(result_of(answer, deadline).topic_id)
    except KafkaException as error:
        if cause_of(error).code() in _NO_ID:
            return None
        raise


def id_text(uuid: Uuid) -> str | None:
    """Return the id as Kafka writes it, in URL-safe base64; None: the broker has no ids."""
    text = str(uuid).translate(_URL_SAFE)
    return None if text == _UNKNOWN_ID else text
