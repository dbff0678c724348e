"""The first example of docs/computed.md is a mapping that loads, and gives what the page says."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from consumer.engine.model import ConversionEvent
from tests.conversion.computed.test_values import converted
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import NOW
from tests.support import avro

PAGE = (Path(__file__).parents[3] / "docs" / "computed.md").read_text("utf-8")


def _record(name: str, **fields: Any) -> dict[str, Any]:
    return avro.record(name, *[avro.field(key, kind) for key, kind in fields.items()])


SCHEMA = _record(
    "Event",
    id="string",
    at=avro.logical("long", "timestamp-millis"),
    dept="int",
    meta=_record("Meta", type="string", sub="string"),
    buyer=_record("Buyer", email=["null", "string"], login="string"),
    shop=_record("Shop", country="string"),
    lines=avro.array(
        _record(
            "Line",
            number="string",
            sku="string",
            size="string",
            price=avro.decimal(9, 2),
            pieces="int",
            discount=["null", "double"],
        )
    ),
)
REST = """
[event_names]
"order.paid" = "checkout"
"""


def test_the_first_example() -> None:
    """The example gives price times quantity less discount as value, and all other fields that the page says."""
    example = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    own = '[fields]\nevent_id = "id"\nevent_time = "at"\naction_source = ""\n'
    overlay = example.replace("[fields]\n", own, 1) + REST
    overlay = overlay.replace("[event_names]", '[constants]\naction_source = "web"\n[event_names]')
    both = Both((SCHEMA, overlay))
    line = {"number": "7", "sku": "A", "size": "L", "price": Decimal("29.95"), "pieces": 2, "discount": None}
    event = {
        "id": "e-1",
        "at": int(NOW * 1000) - 5,
        "dept": 2,
        "meta": {"type": "order", "sub": "paid"},
        "buyer": {"email": None, "login": "jane@example.com"},
        "shop": {"country": "CH"},
        "lines": [line, {**line, "price": Decimal("5.00"), "discount": 1.5}],
    }
    result = converted(both, event)
    assert isinstance(result, ConversionEvent)
    assert result.name == "checkout"
    assert "em" in result.payload["user_data"]
    assert result.payload["custom_data"] == {
        "contents": [{"id": "A-L"}, {"id": "A-L"}],
        "content_ids": ["A-L", "A-L"],
        "currency": "CHF",
        "value": "68.40",
        "content_category": "hats",
        "order_id": "7",
    }
