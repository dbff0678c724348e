"""From receipts to the records that hold them: their keys and values.

Theory of operation. A receipt is an object in the shape of schemas/receipt.avsc, written by fastavro (`plain`): slow,
and what the compiled module is tested against, which leaves to it what it cannot write. The ids of a record that became
no event are read by the paths of the mapping, as far as they can be.

No value has more than `MAX_RECEIPT_BYTES`, so that no topic is too small for a receipt: the longest text is halved
until it fits, and ``cut`` names it. Nothing of ``user_data`` is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from consumer.adapters.kafka.letters import Place, origin_place
from consumer.adapters.receipts import native
from consumer.avro.decode import IN_HEADER, IN_VALUE, named_schema, split_framing
from consumer.avro.encode import Encoder
from consumer.avro.paths import AvroSchema
from consumer.engine.model import Record, SchemaRef
from consumer.engine.receipts import Outcome, Receipts

MAX_RECEIPT_BYTES: Final = 1024
"""Bytes of a value at most."""
REDRIVE: Final = "redrive"
_KEY: Final = ("group", "destination", "topic", "topic_id", "partition", "offset")
_PLACE: Final = frozenset({*_KEY, "origin"})
_HEAD: Final = ("outcome", "code", "by", "at", "test", *_KEY[:5])
_ANSWER: Final = ("request_id", "http_status", "answered_at", "attempts")
_LAST: Final = ("mapping", "member", "origin", "cut")
_SHORT: Final = 16

Message = dict[str, Any]
"""A record's ``key`` and ``value``, as the client's `produce_batch` takes them."""
ReadIds = Callable[[Record, str, int], tuple[str | None, str | None]]
"""From a record of a partition to event id and order id, as far as they can be read."""


class About(NamedTuple):
    """What all receipts of a process have in common, by the names of the schema."""

    by: str
    group: str
    destination: str
    test: bool
    mapping: str
    member: str


class ReceiptEncoder:
    """Makes the records of receipts. `schema_id`: the schema's id in a registry; None: its values name it by its
    fingerprint."""

    def __init__(self, schema: AvroSchema, schema_id: int | None, about: About, read_ids: ReadIds) -> None:
        self._encoder = Encoder(schema, schema_id)
        self._about = about
        self._read_ids = read_ids
        self._head, self._answer, last = (
            Encoder({**schema, "fields": [one for one in schema["fields"] if one["name"] in names]})
            for names in (_HEAD, _ANSWER, _LAST)
        )
        self._last = _bare(last, {"mapping": about.mapping, "member": about.member})
        # Runs may be of one record each, and all events of a call have the same outcome.
        self._known_parts = lru_cache(64)(self._parts)

    def encode(self, receipts: Receipts) -> list[Message]:
        """Return the records of these receipts, in order."""
        if native.encode is None or self._about.by == REDRIVE:
            return [self.plain(receipts, row) for row in range(len(receipts.records))]
        parts = self._known_parts(receipts.topic, receipts.topic_id, receipts.partition, receipts.outcome)
        made: list[Message] = native.encode(receipts, self.plain, schema_of, self._ids, *parts, self._last)
        return made

    def _parts(
        self, topic: str, topic_id: str | None, partition: int, what: Outcome
    ) -> tuple[bytes, bytes, bytes]:
        """Return what receipts of this outcome have in common: the begin of their keys, and two parts of their
        values."""
        common = self._common(topic, topic_id, partition, what)
        head = self._encoder.framing + _bare(self._head, {name: common[name] for name in _HEAD})
        answer = _bare(self._answer, {name: common[name] for name in _ANSWER})
        return self._key(common)[:-1] + b",", head, answer

    def _common(self, topic: str, topic_id: str | None, partition: int, what: Outcome) -> dict[str, Any]:
        """Return the fields that all receipts of this outcome have in common."""
        request_id, http_status, answered_at = what.call or (None, None, None)
        return {
            **self._about._asdict(),
            "outcome": what.disposition.value,
            "code": what.code,
            "at": what.at_ms,
            "topic": topic,
            "topic_id": topic_id,
            "partition": partition,
            "request_id": request_id,
            "http_status": http_status,
            "answered_at": answered_at,
            "attempts": what.attempts,
        }

    @staticmethod
    def _key(receipt: dict[str, Any]) -> bytes:
        return orjson.dumps([receipt[name] for name in _KEY if name in receipt])

    def _ids(self, record: Record, topic: str, partition: int) -> tuple[str | None, str | None]:
        """Return event id and order id of a record that became no event."""
        event_id, order_id = self._read_ids(record, topic, partition)
        # An id with half of a surrogate pair is not text that a receipt can hold.
        return (
            event_id and event_id.encode(errors="replace").decode(),
            order_id and order_id.encode(errors="replace").decode(),
        )

    def plain(self, receipts: Receipts, row: int) -> Message:
        """Return the record of one receipt."""
        record = receipts.records[row]
        receipt = self._common(receipts.topic, receipts.topic_id, receipts.partition, receipts.outcome)
        receipt["offset"], receipt["schema_id"] = record.offset, schema_of(record)
        key = self._key(receipt)
        if (kind := receipts.kinds[row]) is None:
            ids = self._ids(record, receipts.topic, receipts.partition)
            receipt["event_id"], receipt["order_id"] = ids
        else:
            event = orjson.loads(receipts.bodies[row])
            custom = event.get("custom_data", {})
            receipt |= {name: event.get(name) for name in ("event_id", "action_source")}
            receipt |= {name: custom.get(name) for name in ("order_id", "value", "currency")}
            receipt |= {"ad_account": kind.account, "event_name": kind.name}
            receipt["event_time"] = receipts.times[row] * 1000
        if self._about.by == REDRIVE:
            origin = origin_place(record, Place(receipts.topic, receipts.partition, record.offset))
            receipt["origin"] = str(origin)
        while len(value := self._encoder.encode(receipt)) > MAX_RECEIPT_BYTES:
            texts = {name: one.encode() for name, one in receipt.items() if isinstance(one, str)}
            # What says whose receipt it is comes last.
            others = [name for name in texts if name not in _PLACE and len(texts[name]) > _SHORT]
            longest = max(others or texts, key=lambda name: len(texts[name]))
            receipt[longest] = texts[longest][: len(texts[longest]) // 2].decode("utf-8", "ignore")
            receipt["cut"] = list(dict.fromkeys([*receipt.get("cut", ()), longest]))
        return {"key": key, "value": value}


def schema_of(record: Record) -> str | None:
    """Return the name of the writer's schema, as the record has it; None: it names none in any way that we read."""
    framing, start = split_framing(record, record.value or b"")
    if start and framing[:2] == b"\3\5":  # AWS Glue: the datum behind it is compressed, the name is not
        framing = b"\3\0" + framing[2:]
    ref = named_schema(framing, IN_VALUE if start else IN_HEADER)
    return ref.value if isinstance(ref, SchemaRef) else None


def _bare(encoder: Encoder, fields: dict[str, Any]) -> bytes:
    """Return the fields as they are within a value."""
    return encoder.encode(fields)[len(encoder.framing) :]
