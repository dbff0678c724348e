"""Asking an AdminClient for a group's offsets without the process dying of it.

librdkafka answers "not the coordinator (yet)" to a question for offsets by telling its own group handler, and an
AdminClient has none: the process ends with a segmentation fault (seen with librdkafka 2.16 on a cluster that had never
had a group; confluent-kafka-javascript #374 has the stack). The question who is in the group goes to the same
coordinator, needs the same permission, and its errors are only errors. So it comes first, until it is answered. What is
left is a coordinator that moves between the two.
"""

from __future__ import annotations

from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaException

from consumer.adapters.kafka.trouble import exception_error

CANNOT_SAY: Final = frozenset(
    {
        confluent_kafka.KafkaError._UNSUPPORTED_FEATURE,
        confluent_kafka.KafkaError.UNSUPPORTED_VERSION,
    }
)
"""What a broker that cannot describe groups (the embedded one) answers."""


def meet_coordinator(client: Any, group: str, timeout: float, slack: float) -> None:
    """Return when the group's coordinator answers. Raises `KafkaException`, also when the time is up.

    `timeout`: seconds for librdkafka, which gets `slack` more to say why it ended.
    """
    try:
        client.describe_consumer_groups([group], request_timeout=timeout)[group].result(timeout + slack)
    except KafkaException as error:
        if exception_error(error).code() not in CANNOT_SAY:
            raise
    except TimeoutError:
        raise KafkaException(confluent_kafka.KafkaError(confluent_kafka.KafkaError._TIMED_OUT)) from None
