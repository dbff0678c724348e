"""A world's records as real Avro, read and converted by what the product reads and converts with.

Theory of operation. The schema, small as it is, has what makes the fast path differ from the two steps: optional
records, items, a map, an enum, fields that a writer lacks, has on top, or has in another order or type. Which of the
writers' schemas a record is written with is its `Spec.ref`. The number of the record stands in ``order.number`` and so
goes into ``custom_data.order_id``, where the API finds it; what else must be in the event is worked out here from the
spec alone, without a mapping.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import fastavro

from consumer.avro.decode import Decoder, OneSchema, framing_of
from consumer.conversion.converter import Converter
from consumer.conversion.reading import CompiledReading
from consumer.engine.model import Filtered, Record, Rejection, SchemaRef
from consumer.engine.reading import Columns, TwoSteps
from tests.simulation.records import BROKEN, LATE, MAX_AGE, FakeForm, Form, RecordKind, RecordParts, Spec
from tests.simulation.truth import require
from tests.support.mapping import load_mapping

_PACKAGED = (Path(__file__).parents[2] / "schemas" / "commerce_event.mapping.toml").read_text("utf-8")
_MAPPING = """
[fields]
ad_account_id = "account"
"user_data.em" = "customer.emails"
"custom_data.order_id" = "order.number"
"custom_data.currency" = "order.currency"
"custom_data.value" = "order.total"
"custom_data.search_string" = "pad"
"custom_data.content_name" = "tags.name"
"custom_data.contents[].id" = "order.items[].sku"
"custom_data.contents[].item_price" = "order.items[].price"
"custom_data.contents[].quantity" = "order.items[].quantity"
"custom_data.content_ids" = "order.items[].sku"
"custom_data.num_items" = "order.items[].quantity"
"""
_TEXT = ["null", "string"]


def _record(record: str, /, **types: Any) -> dict[str, Any]:
    fields = [
        {"name": name, "type": kind, **({"default": None} if kind == _TEXT else {})}
        for name, kind in types.items()
    ]
    return {"type": "record", "name": record, "fields": fields}


def _event(order: dict[str, Any], *more: dict[str, Any]) -> dict[str, Any]:
    customer = _record("Customer", emails={"type": "array", "items": "string"})
    event = _record(
        "Event",
        event_id="string",
        event_type="string",
        occurred_at={"type": "long", "logicalType": "timestamp-millis"},
        channel={"type": "enum", "name": "Channel", "symbols": ["WEB", "OFFLINE"]},
        account=_TEXT,
        customer=["null", customer],
        order=["null", order],
        pad="string",
    )
    return {**event, "fields": [*event["fields"], *more]}


def _order(item: dict[str, Any], currency: Any) -> dict[str, Any]:
    return _record(
        "Order", number="string", currency=currency, total="string", items={"type": "array", "items": item}
    )


_TAGS = {"name": "tags", "type": {"type": "map", "values": "string"}, "default": {}}
OURS = _event(_order(_record("Item", sku="string", price=_TEXT, quantity="long"), _TEXT), _TAGS)
_OLDER = _event(
    _order(_record("Item", quantity="int", sku="string"), "string"), {"name": "legacy", "type": "double"}
)
"""Without tags and prices, with a field that our schema lacks, and with items in another order and of another type."""
_NEWER = _event(
    _order(_record("Item", sku="string", colour=_TEXT, price="string", quantity="long"), _TEXT),
    _TAGS,
    {"name": "campaign", "type": ["null", _record("Campaign", name="string")]},
)
"""With more fields in events and items than our schema has."""
_WRITERS: dict[SchemaRef | None, Any] = {None: OURS, LATE[0]: _OLDER, LATE[1]: _NEWER}
_PARSED = {ref: fastavro.parse_schema(schema) for ref, schema in _WRITERS.items()}
_BROKEN_SCHEMA = _record("Event", event_id="bytes", event_type={"type": "array", "items": "string"})
_OWN_FRAMING = next(iter(Decoder(OneSchema(OURS)).known))


@cache
def _converter() -> Converter:
    """One for all worlds: it is pure, apart from caches of pure results."""
    mapping = load_mapping(_MAPPING, OURS, default_toml=_PACKAGED)
    return Converter(mapping, accounts=("1", "2", "3"), max_event_age=MAX_AGE)


class TwoDecoders(Decoder):
    """Two decoders that learn the same schemas separately, so that neither helps the other."""

    def __init__(self) -> None:
        super().__init__(OneSchema(OURS))
        self.other = Decoder(OneSchema(OURS))

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = "AVRO") -> Rejection | Filtered | None:
        """Both learn it."""
        verdict = super().add_schema(ref, schema_json, kind)
        require(self.other.add_schema(ref, schema_json, kind) == verdict, "decoders learn the same", ref)
        return verdict

    def doubt(self, ref: SchemaRef) -> None:
        """Both doubt it."""
        super().doubt(ref)
        self.other.doubt(ref)

    def forget(self, ref: SchemaRef) -> None:
        """Both forget it."""
        super().forget(ref)
        self.other.forget(ref)


class BothReadings:
    """Reads all records on the fast path and in two steps, and requires equal results."""

    def __init__(self, decoder: TwoDecoders, converter: Converter) -> None:
        self._fast = CompiledReading(decoder, converter)
        self._two_steps = TwoSteps(decoder.other, converter)

    @property
    def in_two_steps(self) -> int:
        """How many records the fast path read in two steps."""
        return self._fast.in_two_steps

    def read(
        self,
        records: Sequence[Record | None],
        now: float,
        columns: Columns,
        topic: str = "",
        partition: int = -1,
    ) -> None:
        """See `Reading`."""
        expected = Columns(columns.make_key)
        self._two_steps.read(records, now, expected, topic, partition)
        self._fast.read(records, now, columns, topic, partition)
        for name in Columns.__slots__:
            fast, slow = getattr(columns, name), getattr(expected, name)
            require(fast == slow, "both readings give the same", (name, fast, slow))


class AvroForm(Form):
    """Real bytes, read in two steps, on the fast path, or in both ways."""

    def __init__(self, how: Literal["two-steps", "fast", "both"]) -> None:
        self._how = how

    def parts(self, specs: Any) -> RecordParts:
        """A new process knows our own schema and no other."""
        converter = _converter()
        if self._how == "both":
            decoders = TwoDecoders()
            return RecordParts(decoders, converter, BothReadings(decoders, converter))
        decoder = Decoder(OneSchema(OURS))
        return RecordParts(
            decoder, converter, CompiledReading(decoder, converter) if self._how == "fast" else None
        )

    def schema(self, ref: SchemaRef) -> str:
        """What the registry has."""
        return json.dumps(_BROKEN_SCHEMA if ref == BROKEN else _WRITERS[ref])

    def other_schema(self) -> str:
        """See `Form`."""
        return json.dumps(_BROKEN_SCHEMA)

    def headers(self, spec: Spec) -> tuple[tuple[str, bytes | None], ...]:
        """Every second record has some; a record without has its framing compared with that of the record before."""
        return (("h", b"1"), ("n", None)) if spec.number % 2 else ()

    def value(self, spec: Spec) -> bytes:
        """The bytes, damaged if they must not be readable."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, _PARSED.get(spec.ref) or _PARSED[None], _commerce_event(spec))
        framing = _OWN_FRAMING if spec.ref is None else framing_of(spec.ref)
        datum = out.getvalue()
        if spec.kind is RecordKind.UNDECODABLE:
            datum = (datum + b"\0", datum[:-1], b"\xff" * len(datum))[spec.number % 3]
        return framing + datum

    def payload(self, spec: Spec) -> dict[str, Any]:
        """What the API must receive."""
        custom: dict[str, Any] = {"currency": "USD", "value": "10.50"}
        contents = [_content(spec, place) for place in range(_items(spec))]
        if contents:
            custom["contents"] = contents
            custom["content_ids"] = [content["id"] for content in contents]
            custom["num_items"] = sum(content["quantity"] for content in contents)
        custom |= {"order_id": f"r{spec.number}", "search_string": _pad(spec)}
        if spec.ref != LATE[0] and spec.number % 3:
            custom["content_name"] = f"name {spec.number}"
        return {
            "event_name": "checkout",
            "action_source": "offline" if spec.number % 5 == 0 else "web",
            "event_time": spec.occurred_at,
            "event_id": spec.event_id,
            "user_data": {"em": [sha256(_email(spec).encode()).hexdigest()]},
            "custom_data": custom,
        }

    def number(self, event: dict[str, Any]) -> int:
        """The number of the record from which an event was made."""
        return int(event["custom_data"]["order_id"][1:])


def _items(spec: Spec) -> int:
    return spec.number % 4


def _email(spec: Spec) -> str:
    return f"shopper-{spec.number}@shop.example"


def _pad(spec: Spec) -> str:
    return "x" * spec.padding


def _content(spec: Spec, place: int) -> dict[str, Any]:
    content = {"id": f"sku-{spec.number}-{place}", "item_price": f"{place}.5", "quantity": 1 + place}
    if spec.ref == LATE[0]:
        del content["item_price"]
    return content


def _commerce_event(spec: Spec) -> dict[str, Any]:
    """The record, with a flaw of its kind."""
    number = spec.number
    emails = [_email(spec)] if number % 7 else ["not an address", _email(spec)]
    event: dict[str, Any] = {
        "event_id": spec.event_id,
        "event_type": "order_placed" if number % 2 else "checkout",
        "occurred_at": spec.occurred_at * 1000 + 7,
        "channel": "OFFLINE" if number % 5 == 0 else "WEB",
        # The first account is that of records that name none.
        "account": None if spec.account == "1" else spec.account,
        "customer": {"emails": emails},
        "order": {
            "number": f"r{number}",
            "currency": "usd",
            "total": "10.50",
            "items": [
                {"sku": content["id"], "price": f"{place}.5", "quantity": content["quantity"], "colour": None}
                for place in range(_items(spec))
                for content in [_content(spec, place)]
            ],
        },
        "pad": _pad(spec),
        "tags": {"name": f"name {number}"} if number % 3 else {},
        "legacy": 1.5,
        "campaign": {"name": "spring"} if number % 2 else None,
    }
    if spec.kind is RecordKind.FILTERED:
        event["event_type"] = "cart_viewed"
    elif spec.kind is RecordKind.UNCONVERTIBLE:
        event["order"]["currency"] = "nothing"
    elif (
        spec.kind is RecordKind.UNSERIALISABLE
    ):  # Avro holds no such text; another flaw, which is not reported
        event["customer"] = None
    return event


# How the records of a world are written and read, by name. ``both`` reads all of it in two steps and on the fast path,
# and requires the same of both. The engine sees nothing else of a reading, so what holds in such a world holds in a
# world of either of them.
FORMS: dict[str, Form] = {
    "fake": FakeForm(),
    "two-steps": AvroForm("two-steps"),
    "fast": AvroForm("fast"),
    "both": AvroForm("both"),
}
CANONICAL = ("fake", "both")
"""The readings with which each seed is run; together they cover the others."""
