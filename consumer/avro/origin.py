"""What a record has in Kafka beside its value: key, headers, timestamp, topic, partition and offset.

Theory of operation. A mapping names these as sources (``@key``, ``@header.ce_type``): steps below the part `ORIGIN` of
a commerce event, which whatever reads a path reads, too. An event gets this part only if something below it is asked
for, and of key and headers only what is asked for.

The key has no schema of ours: its own bytes say what it is. In Confluent's framing, or with Confluent's header, it is a
datum of the schema that they name, read in that schema's shape (`decode.Decoder`). Otherwise it is UTF-8 text; or, of
four or eight bytes, the number that Kafka's own serialisers write. Any other key has no value. A number of eight bytes
from 2**24 on may look like Confluent's framing, and is taken for it: nothing in the bytes tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from consumer.avro.paths import Asked, within
from consumer.engine.model import Record, Rejection, SchemaRef

Origin = dict[str, Any]
OriginOf = Callable[[Record], Origin | Rejection | SchemaRef]
"""From a record to what it has in Kafka; or why its key cannot be read, or the schema of the key if it is not known."""

_OURS: Final = "pinstream."  # how the names of our own headers begin: no record has them at its origin


def origin_of(
    parts: Asked, key_of: Callable[[Record], Any]
) -> Callable[[str, int, Record], Origin | Rejection | SchemaRef] | None:
    """Return what gives the origin of a partition's record, with these parts of it; None: none is asked for."""
    if not parts:
        return None
    asks_key = within(parts, "key")
    headers = within(parts, "header")
    names = None if () in headers else {steps[0] for steps in headers}  # None: all

    def origin(topic: str, partition: int, record: Record) -> Origin | Rejection | SchemaRef:
        found: Origin = {
            "timestamp": None if record.timestamp < 0 else record.timestamp,
            "topic": topic,
            "partition": partition,
            "offset": record.offset,
        }
        if headers:
            found["header"] = _headers(record, names)
        if asks_key:
            key = found["key"] = key_of(record)
            if isinstance(key, Rejection | SchemaRef):
                return key
        return found

    return origin


def _headers(record: Record, names: Collection[str] | None) -> dict[str, str | None]:
    """Return the text of these headers; of several of one name that of the last, as with Kafka's own clients."""
    found = dict(record.headers)
    wanted = [one for one in found if not one.startswith(_OURS)] if names is None else found.keys() & names
    return {one: _text(found[one] or b"") for one in wanted}


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def plain_key(key: bytes) -> str | int | None:
    """Return what a key without a schema is: text, a number, or nothing."""
    if (text := _text(key)) is not None and text.isprintable():
        return text
    return int.from_bytes(key, "big", signed=True) if len(key) in (4, 8) else None
