"""Receipts to write, and how a reader with no code of ours reads them."""

from __future__ import annotations

import io
import json
import time
from array import array
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import fastavro

from consumer.adapters.receipts.encoding import About, ReceiptEncoder
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.encode import Encoder
from consumer.conversion.converter import Converter
from consumer.conversion.reading import CompiledReading
from consumer.demo.generator import EventGenerator
from consumer.engine.model import Disposition, Record
from consumer.engine.reading import Columns, Keys, Kind
from consumer.engine.receipts import Call, Outcome, Receipts
from tests.support.mapping import load_mapping

SCHEMAS = Path(__file__).parents[3] / "schemas"
SCHEMA: dict[str, Any] = json.loads((SCHEMAS / "receipt.avsc").read_text("utf-8"))
EVENTS: dict[str, Any] = json.loads((SCHEMAS / "commerce_event.avsc").read_text("utf-8"))
MAPPING = (SCHEMAS / "commerce_event.mapping.toml").read_text("utf-8")
ABOUT = About("run", "shop", "pinterest", False, "0123456789abcdef", "pod-7:1")
CALL = Call("req-1", 200, 1_700_000_000_456)
DELIVERED = Outcome(Disposition.DELIVERED, 1_700_000_000_123, None, 2, CALL)
KIND = Kind("549755885175", "checkout", 0)


def encoder(about: About = ABOUT, schema_id: int | None = None) -> ReceiptEncoder:
    """The encoder of a process; of a record that is no event the ids say where it lies."""
    return ReceiptEncoder(SCHEMA, schema_id, about, lambda record, topic, partition: (f"{topic}-id", None))


def rows(*bodies: bytes, topic: str = "orders", outcome: Outcome = DELIVERED, **record: Any) -> Receipts:
    """Receipts of events with these bodies; an empty one is of a record that is no event."""
    parts = {"timestamp": -1, "key": None, "value": b"\0\0\0\0\7datum", "headers": (), **record}
    records = [Record(10 + number, **parts) for number in range(len(bodies))]
    parted = [body + b"," if body else b"" for body in bodies]
    times = array("q", [1_700_000_000 if body else 0 for body in bodies])
    # Behind what is on the page of the block before them.
    ends = array("q", accumulate((len(one) for one in parted), initial=50))[1:]
    place = (topic, 3, "AbCdEfGhIjKlMnOpQrStUv")
    return Receipts(*place, outcome, records, b"".join(parted), 50, ends, [KIND], bytes(len(bodies)), times)


def shop(count: int) -> Receipts:
    """Receipts of events of the made-up shop, as the compiled program, or the plain path, has written them."""
    mapping = load_mapping(None, EVENTS, default_toml=MAPPING)
    decoder = Decoder(OneSchema(EVENTS, mapping.asked))
    converter = Converter(mapping, accounts=(KIND.account,), max_event_age=7 * 86400.0)
    made, write = islice(EventGenerator(3, time.time), count), Encoder(EVENTS).encode
    records = [Record(number, -1, None, write(one.event), ()) for number, one in enumerate(made) if one.event]
    columns = Columns(Keys())
    CompiledReading(decoder, converter).read(records, time.time(), columns, "orders", 0)
    page, kinds = bytes(columns.page), [*columns.kinds]
    numbers, times = columns.kind_numbers, columns.times
    return Receipts("orders", 0, None, DELIVERED, records, page, 0, columns.ends, kinds, numbers, times)


def read(value: bytes) -> dict[str, Any]:
    """A receipt, read by fastavro alone; times are numbers."""
    start = 5 if value[:1] == b"\0" else 10
    plain = json.loads(json.dumps(SCHEMA).replace('"logicalType": "timestamp-millis"', '"x": 0'))
    found = fastavro.schemaless_reader(io.BytesIO(value[start:]), fastavro.parse_schema(plain), None)
    assert isinstance(found, dict)
    return found
