"""Which letters the options of the dead-letter commands select."""

from __future__ import annotations

import pytest

from consumer.adapters.kafka.letters import DeadRecord, Place
from consumer.commands.dead_letters.options import Filters, parse_origin, parse_place
from consumer.engine.model import Record, Stage
from consumer.errors import UsageError

AT = 1_700_000_000_007
LETTER = DeadRecord(
    place=Place("orders.dead-letters", 2, 7),
    origin=Place("orders", 2, 41),
    stage=Stage.CONVERT,
    code="unknown_currency",
    reason="no such currency",
    timestamp=AT - 5,
    attempts=0,
    at_ms=AT,
    trips=0,
    omitted={},
    record=Record(7, AT, b"k", b"v", ()),
)


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        (Filters(), True),
        (Filters(stages=(Stage.CONVERT.value, Stage.DECODE.value)), True),
        (Filters(stages=(Stage.DECODE.value,)), False),
        (Filters(codes=frozenset({"unknown_currency"})), True),
        (Filters(codes=frozenset({"expired"})), False),
        (Filters(since=AT), True),
        (Filters(since=AT + 1), False),
        (Filters(until=AT + 1), True),
        (Filters(until=AT), False),
        (Filters(origins=(("others",), ("orders",))), True),
        (Filters(origins=(("orders", 2),)), True),
        (Filters(origins=(("orders", 2, 41),)), True),
        (Filters(origins=(("orders", 3),)), False),
        (Filters(origins=(("orders", 2, 42),)), False),
        (Filters(codes=frozenset({"unknown_currency"}), stages=(Stage.DELIVER.value,)), False),
    ],
)
def test_filters(filters: Filters, holds: bool) -> None:
    """A letter must match each filter, and one of several values of a filter. A time range excludes its end."""
    assert filters.hold(LETTER) is holds


@pytest.mark.parametrize("parts", [("a.B_9-",), ("orders", 0), ("orders", 2**31 - 1, 2**63 - 1)])
def test_origins_are_written_as_places_are(parts: tuple[str | int, ...]) -> None:
    """An origin is written as ``TOPIC[:PARTITION[:OFFSET]]``, as a place is."""
    text = ":".join(map(str, parts))
    assert parse_origin(text) == parts
    assert len(parts) < 3 or str(parse_place(text)) == text


@pytest.mark.parametrize(
    "text", ["", ":", "a:", "a:b", "a:1:", "a:1:x", "a:1:2:3", "a b", "a:-1", "ä", "a:99999999999", "a:1:2 "]
)
def test_what_is_no_origin_is_no_place_either(text: str) -> None:
    """Text that is no origin is no place either, and the error says in one line how to write it."""
    with pytest.raises(UsageError, match="write TOPIC"):
        parse_origin(text)
    with pytest.raises(UsageError, match="write TOPIC:PARTITION:OFFSET"):
        parse_place(text)
