"""Which letters the options of the dead-letter commands select."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.letters import DeadRecord, Place
from consumer.commands.dead_letters.options import Filters, parse_origin, parse_place
from consumer.engine.model import Record, Stage
from consumer.errors import UsageError
from tests.engine.building import PROPERTY

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


@PROPERTY
@given(
    st.text("abcXYZ019._-", min_size=1, max_size=20),
    st.none() | st.integers(0, 2**31 - 1),
    st.none() | st.integers(0, 2**63 - 1),
)
def test_origins_are_written_as_places_are(topic: str, partition: int | None, offset: int | None) -> None:
    """An origin is written as ``TOPIC[:PARTITION[:OFFSET]]``, as a place is."""
    parts = (
        (topic,)
        if partition is None
        else (topic, partition)
        if offset is None
        else (topic, partition, offset)
    )
    text = ":".join(map(str, parts))
    assert parse_origin(text) == parts
    if len(parts) == 3:
        assert str(parse_place(text)) == text


@pytest.mark.parametrize(
    "text", ["", ":", "a:", "a:b", "a:1:", "a:1:x", "a:1:2:3", "a b", "a:-1", "ä", "a:99999999999", "a:1:2 "]
)
def test_what_is_no_origin_is_no_place_either(text: str) -> None:
    """Text that is no origin is no place either, and the error says in one line how to write it."""
    with pytest.raises(UsageError, match="write TOPIC"):
        parse_origin(text)
    with pytest.raises(UsageError, match="write TOPIC:PARTITION:OFFSET"):
        parse_place(text)


@PROPERTY
@given(st.text(max_size=30))
def test_any_text_is_a_place_or_a_usage_error(text: str) -> None:
    """Any text is read as an origin and as a place, or is a usage error."""
    for parse in (parse_origin, parse_place):
        with contextlib.suppress(UsageError):
            parse(text)
