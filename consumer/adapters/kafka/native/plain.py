"""From a run of the client's messages to records, with one call into the client for each attribute of a message.

`consumer.adapters.kafka.native` does the same in compiled code, which reads the message's memory: the nine calls for
each message take half a microsecond.
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from consumer.engine.model import UNREADABLE_HEADERS, Record
from consumer.engine.native.plain import size_of_headers


def gather(messages: list[Message], at: int, records: list[Record], maximum: int) -> tuple[int, int]:
    """Add the records of the run that begins at `at`: of one topic, partition and leader epoch, with rising offsets.

    An error ends the run, and so does the record with which it has `maximum` bytes. Return where it ended, and its
    bytes.
    """
    first = messages[at]
    run = first.topic(), first.partition(), first.leader_epoch()
    size, before = 0, -1
    for end in range(at, len(messages)):
        message = messages[end]
        offset: Any = message.offset()
        of = message.topic(), message.partition(), message.leader_epoch()
        if message.error() is not None or of != run or offset <= before:
            return end, size
        kind, timestamp = message.timestamp()
        key, value, headers = message.key(), message.value(), headers_of(message)
        # Headers count as Python objects, which may take twenty times their bytes.
        size += len(key or b"") + len(value or b"") + (size_of_headers(headers) if headers else 0)
        records.append(
            Record(offset, -1 if kind == TIMESTAMP_NOT_AVAILABLE else timestamp, key, value, headers)
        )
        before = offset
        if size >= maximum:
            return end + 1, size
    return len(messages), size


def headers_of(message: Message) -> tuple[Any, ...]:
    """Return the headers of a message. The client makes their objects in this call."""
    try:
        return tuple(message.headers() or ())
    except SystemError:
        # The client decodes names as UTF-8, but any bytes can be a name: such a record must not stop a topic.
        return UNREADABLE_HEADERS
