"""What the soak produces: a shop's events, each new, in spells of normal and of heavy ones, and what becomes of them.

Theory of operation. Encoding millions of events would cost more than consuming them. So some thousand events of the
sandbox's shop are encoded once, with `MARK` wherever a shopper or an order would be named: event id, e-mail, phone,
ids. A record is such a template with its serial number in place of every mark; no length changes, so the encoding
stays whole, and every record is a new shopper's: no cache of the process ever comes to rest.

Every `spell` records the mix changes, so that now the events' budget is the one that binds and now the bytes'; and a
heavy spell begins with one record far larger than all others. Duplicates repeat a recent record of their partition.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from consumer.avro.encode import Encoder
from consumer.demo.generator import EventGenerator, GeneratedEvent
from consumer.engine.model import Disposition

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "commerce_event.avsc"
PARTITIONS = 4
MARK = "########"
"""As long as a serial number."""
MAX_RECORDS = 10 ** len(MARK)
HEAVY_EVERY = 5
"""Of this many spells one has heavy records."""

_TEMPLATES = 2_000
_HEAVY_ITEMS = 25
_HUGE_BYTES = 256 * 1024
_INVALID = 0.01
_DUPLICATE = 0.05
_RECENT = 1_000
"""A duplicate repeats one of this many latest records of its partition: well within any window."""


class Template(NamedTuple):
    """An encoded record, split at its marks, and what must become of it."""

    parts: tuple[bytes, ...]
    expected: Disposition


class SoakRecord(NamedTuple):
    """One record to produce."""

    partition: int
    value: bytes


class Records:
    """An iterator of `count` records, of one kind for `spell` records in a row.

    What was taken so far: `tally` by disposition, `deliverable` by serial number.
    """

    def __init__(self, count: int, seed: int, spell: int) -> None:
        if not 0 < count < MAX_RECORDS:
            raise ValueError(f"{count} events cannot be numbered with {len(MARK)} digits")
        self._count = count
        self._spell = spell
        self._random = Random(seed)
        self._normal, self._heavy = _templates(seed)
        self._recent = [deque[bytes](maxlen=_RECENT) for _ in range(PARTITIONS)]
        self.tally: Counter[Disposition] = Counter()
        self.deliverable = bytearray(count)

    def __iter__(self) -> Iterator[SoakRecord]:
        for serial in range(self._count):
            yield SoakRecord(serial % PARTITIONS, self._value(serial))

    def _value(self, serial: int) -> bytes:
        recent = self._recent[serial % PARTITIONS]
        if recent and self._random.random() < _DUPLICATE:
            self.tally[Disposition.DUPLICATE] += 1
            return self._random.choice(recent)
        template = self._template(serial)
        value = (b"%08d" % serial).join(template.parts)
        self.tally[template.expected] += 1
        if template.expected is Disposition.DELIVERED:
            self.deliverable[serial] = 1
            recent.append(value)
        return value

    def _template(self, serial: int) -> Template:
        spell, place = divmod(serial, self._spell)
        if (spell + 1) % HEAVY_EVERY:
            return self._random.choice(self._normal)
        return _HUGE if place == 0 else self._random.choice(self._heavy)


_HUGE = Template((b"\xff" * _HUGE_BYTES,), Disposition.DEAD_LETTERED)
"""A value that cannot be decoded and is large: it becomes a dead letter."""


def _templates(seed: int) -> tuple[list[Template], list[Template]]:
    """The normal templates and the heavy ones."""
    encoder = Encoder(json.loads(SCHEMA.read_text()))
    normal = list(islice(EventGenerator(seed, time.time, invalid=_INVALID), _TEMPLATES))
    orders = [one for one in normal if one.event is not None and (one.event["order"] or {}).get("items")]
    heavy = [_made_heavy(one) for one in orders if one.expected is Disposition.DELIVERED]
    return [_template(encoder, one) for one in normal], [_template(encoder, one) for one in heavy]


def _made_heavy(one: GeneratedEvent) -> GeneratedEvent:
    """The same purchase with many more items."""
    event = dict(one.event or {})
    lines = event["order"]["items"]
    event["order"] = event["order"] | {"items": [lines[at % len(lines)] for at in range(_HEAVY_ITEMS)]}
    return one._replace(event=event)


def _template(encoder: Encoder, one: GeneratedEvent) -> Template:
    value = encoder.encode(_marked(one.event)) if one.event is not None else one.raw or b""
    return Template(tuple(value.split(MARK.encode())), one.expected)


def _marked(event: dict[str, Any]) -> dict[str, Any]:
    """The event with a mark wherever a shopper, an order or the event is named; fields without a value stay so."""
    customer = dict(event["customer"])
    shapes = {
        "emails": f"shopper.{MARK}@example.com",
        "phones": f"+4915{MARK}",
        "external_ids": f"C-{MARK}",
        "advertising_ids": f"{MARK}-0000-4000-8000-000000000000",
    }
    customer |= {name: [shape] for name, shape in shapes.items() if customer[name]}
    order = event["order"]
    if order is not None and order["order_id"] is not None:
        order = order | {"order_id": MARK}
    # A blank id is a defect, and has to stay one.
    event_id = f"soak-{MARK}" if event["event_id"].strip() else event["event_id"]
    return event | {"event_id": event_id, "customer": customer, "order": order}
