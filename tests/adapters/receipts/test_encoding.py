"""Receipts as records: what the compiled module writes is what Python writes, and what fastavro reads."""

from __future__ import annotations

from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.receipts import native
from consumer.adapters.receipts.encoding import MAX_RECEIPT_BYTES, ReceiptEncoder
from consumer.avro.schema import fingerprint, parse
from consumer.conversion.targets import TARGETS
from consumer.engine.model import Disposition
from consumer.engine.receipts import Outcome
from tests.adapters.receipts.building import ABOUT, CALL, SCHEMA, encoder, read, rows, shop

# Text that looks like parts of an event, and text that needs escaping.
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ['"event_id":"x"', 'a":"b', "custom_data:{", '"custom_data":{', "\\", '"', ":", "{}", "ü€🛒"]
    ),
    st.text(st.characters(codec="utf-8"), min_size=200, max_size=900),
)
EVENT_FIELDS = ("event_id", "action_source", "event_source_url", "partner_name")
CUSTOM_FIELDS = ("currency", "value", "order_id", "content_name", "search_string")


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """The JSON of an event: fields in any order, texts of any kind, with other objects around `custom_data`."""
    event: dict[str, Any] = {"event_name": draw(TEXTS), "event_time": 1}
    event |= {name: draw(TEXTS) for name in draw(st.permutations(EVENT_FIELDS))[: draw(st.integers(2, 4))]}
    event.setdefault("event_id", draw(TEXTS))
    event.setdefault("action_source", "web")
    event["user_data"] = {"em": [draw(TEXTS)], "client_user_agent": draw(TEXTS)}
    if draw(st.booleans()):
        items = [{"id": draw(TEXTS), "item_price": "1", "quantity": 2}]
        custom = {name: draw(TEXTS) for name in draw(st.permutations(CUSTOM_FIELDS))[:3]}
        event["custom_data"] = {"contents": items, **custom}
    return orjson.dumps(event)


def plainly(of: ReceiptEncoder, receipts: Any) -> list[Any]:
    """The same records, each made in Python."""
    return [of.plain(receipts, row) for row in range(len(receipts.records))]


@given(st.lists(bodies() | st.just(b""), max_size=3))
def test_both_executors_write_the_same_of_any_event(given: list[bytes]) -> None:
    """Whatever an event's texts hold (names of fields, quotes, more than fits), and where there is no event."""
    receipts, made = rows(*given), encoder()
    assert made.encode(receipts) == plainly(made, receipts)


def test_a_receipt_of_an_event_is_read_by_any_reader_of_avro() -> None:
    """Events of the shop, as the service writes their JSON: the values that were sent, and nothing of user data."""
    receipts, made = shop(300), encoder(schema_id=7)
    messages = made.encode(receipts)
    assert messages == plainly(made, receipts)
    for message, body, record, time in zip(
        messages, receipts.bodies, receipts.records, receipts.times, strict=True
    ):
        if not body:
            continue
        event = orjson.loads(body)
        found, custom = read(message["value"]), event.get("custom_data", {})
        assert (message["value"][:5], found["schema_id"]) == (
            b"\0\0\0\0\7",
            fingerprint_of_events(record.value),
        )
        assert {name: found[name] for name in ("event_name", "event_id", "action_source")} == {
            name: event[name] for name in ("event_name", "event_id", "action_source")
        }
        assert [found[name] for name in ("order_id", "value", "currency")] == [
            custom.get(name) for name in ("order_id", "value", "currency")
        ]
        assert (found["event_time"], found["offset"], found["cut"]) == (time * 1000, record.offset, [])
        assert orjson.loads(message["key"]) == ["shop", "pinterest", "orders", None, 0, record.offset]
        personal = [text for text in orjson.dumps(event["user_data"]).split(b'"') if len(text) > 20]
        assert not [text for text in personal if text in message["value"] + message["key"]]


def fingerprint_of_events(value: bytes | None) -> str:
    """The fingerprint that a record in single-object encoding names."""
    return (value or b"")[2:10].hex()


def test_what_a_receipt_says() -> None:
    """All fields of a refused event; its value names the schema by the fingerprint if there is no registry."""
    body = orjson.dumps(
        {"event_name": "checkout", "event_time": 1, "action_source": "web", "event_id": "e-1"}
    )
    outcome = Outcome(Disposition.DEAD_LETTERED, 5, "rejected_by_api", 3, CALL)
    made = encoder(ABOUT._replace(by="replay", test=True))
    [message] = made.encode(rows(body, outcome=outcome))
    assert message["value"][:10].hex() == "c301" + fingerprint(parse(SCHEMA))
    assert message["key"] == b'["shop","pinterest","orders","AbCdEfGhIjKlMnOpQrStUv",3,10]'
    assert read(message["value"]) == {
        "outcome": "dead_lettered",
        "code": "rejected_by_api",
        "by": "replay",
        "at": 5,
        "group": "shop",
        "destination": "pinterest",
        "test": True,
        "topic": "orders",
        "topic_id": "AbCdEfGhIjKlMnOpQrStUv",
        "partition": 3,
        "offset": 10,
        "ad_account": "549755885175",
        "event_name": "checkout",
        "event_id": "e-1",
        "order_id": None,
        "event_time": 1_700_000_000_000,
        "action_source": "web",
        "value": None,
        "currency": None,
        "request_id": "req-1",
        "http_status": 200,
        "answered_at": 1_700_000_000_456,
        "attempts": 3,
        "schema_id": "7",
        "mapping": "0123456789abcdef",
        "member": "pod-7:1",
        "origin": None,
        "cut": [],
    }


def test_a_record_that_is_no_event() -> None:
    """It has the ids that can be read, and no more; one without a call has none of its fields."""
    made, outcome = encoder(), Outcome(Disposition.FILTERED, 5, "consent")
    [message] = made.encode(rows(b"", outcome=outcome, value=b"no Avro"))
    found = read(message["value"])
    assert (found["outcome"], found["code"], found["event_id"]) == ("filtered", "consent", "orders-id")
    unknown = ("order_id", "ad_account", "event_name", "event_time", "action_source", "value", "schema_id")
    assert {found[name] for name in (*unknown, "request_id", "http_status", "answered_at")} == {None}
    halves = ReceiptEncoder(SCHEMA, None, ABOUT, lambda *_: ("e-\ud800", "o-\udfff"))
    found = read(halves.encode(rows(b"", outcome=outcome))[0]["value"])
    assert (found["event_id"], found["order_id"]) == ("e-?", "o-?"), "half of a pair is no text"


@pytest.mark.parametrize(
    ("value", "headers", "named"),
    [
        (b"\0\1\0\0\0datum", (), "16777216"),
        (b"\xc3\x01abcdefghdatum", (), b"abcdefgh".hex()),
        (b"\3\0" + bytes(range(16)) + b"datum", (), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (b"\3\5" + bytes(range(16)) + b"zipped", (), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (b"datum", (("__value_schema_id", b"\1" + bytes(16)),), "00000000-0000-0000-0000-000000000000"),
        (b"\0\0\0\0\7datum", (("traceparent", b"x"),), "7"),
        (b"", (), None),
    ],
)
def test_the_schema_of_the_record(value: bytes, headers: Any, named: str | None) -> None:
    """A receipt names the writer's schema as the record does, in each wire format."""
    body = b'{"event_name":"a","action_source":"web","event_time":1,"event_id":"e"}'
    made, receipts = encoder(), rows(body, body, value=value, headers=headers)
    messages = made.encode(receipts)
    assert {read(one["value"])["schema_id"] for one in messages} == {named}
    assert messages == plainly(made, receipts)


def test_no_receipt_is_too_large() -> None:
    """Long texts are halved until a receipt has 1 KiB, the longest first, and it says which; where it is from stays."""
    topic, names = "t" * 249, ("event_id", "order_id", "value")
    long = orjson.dumps(
        {"action_source": "web", "event_id": "ü" * 500, "custom_data": {"order_id": "o" * 300}}
    )
    huge = orjson.dumps(
        {"action_source": "web", "event_id": "e" * 9000, "custom_data": dict.fromkeys(names, "v" * 9000)}
    )
    about = ABOUT._replace(by="redrive", group="g" * 200)
    headers = tuple(
        (f"pinstream.{name}", text)
        for name, text in (("topic", b"o" * 249), ("partition", b"1"), ("offset", b"2"))
    )
    [first] = encoder().encode(rows(long))
    [second] = encoder(about).encode(rows(huge, topic=topic, headers=headers))
    for message, cut in ((first, {"event_id"}), (second, {"event_id", "order_id", "value"})):
        found = read(message["value"])
        assert len(message["value"]) <= MAX_RECEIPT_BYTES
        assert set(found["cut"]) == cut
        assert all(len(found[name]) >= 8 for name in cut)
    assert (found["topic"], found["group"]) == (topic, "g" * 200)
    assert found["origin"] == f"{'o' * 249}:1:2"
    assert orjson.loads(second["key"])[2] == topic


def test_no_other_object_of_an_event_has_a_field_of_such_a_name() -> None:
    """The compiled module finds fields by their names alone."""
    named = [target.key for target in TARGETS.values()]
    assert {named.count(one) for one in ("event_id", "action_source", "value", "currency", "order_id")} == {1}


@pytest.mark.skipif(native.encode is None, reason="the package was built without a C compiler")
def test_the_compiled_module_takes_every_record_of_the_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing would be compared, and each record would cost fifty times as much."""
    receipts, made = shop(200), encoder()
    asked: list[int] = []
    monkeypatch.setattr(made, "plain", lambda receipts, row: asked.append(row))
    made.encode(receipts)
    assert asked == []


def test_the_schema_can_grow() -> None:
    """What may be absent has a default, so that later versions can be read as this one, and this one as later ones."""
    later = {**SCHEMA, "fields": [field for field in SCHEMA["fields"] if "default" not in field]}
    assert {field["name"] for field in later["fields"]} >= {"outcome", "by", "at", "group", "topic", "offset"}
    assert fastavro.parse_schema(later)
