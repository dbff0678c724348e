"""Event types and other values of a mapping that no record of its schema can have are errors at start."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.errors import MappingError
from tests.conversion.test_mapping import BARE, field, load, record
from tests.support import avro


def booking(kind: Any) -> dict[str, Any]:
    """Return a schema whose event types are of this Avro type."""
    fields = [one for one in BARE["fields"] if one["name"] != "event_type"]
    return {**BARE, "fields": [*fields, field("event_type", kind)]}


STATES = avro.enum("State", "BookingConfirmed", "BookingCancelled", "Asked")
BRANCHES = [
    record(field("id", "string"), name="BookingConfirmed"),
    record(field("why", "string"), name="Asked"),
]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (STATES, '"event_type"'),
        (["null", STATES], '"event_type"'),
        (BRANCHES, '{ branch = "event_type" }'),
        (STATES, '{ first = [{ path = "event_type", when = { channel = "a" } }, { value = "checkout" }] }'),
        ("int", '{ of = "event_type", table = { "1" = "BookingConfirmed" }, otherwise = "checkout" }'),
    ],
    ids=["enum", "enum or null", "branch", "alternatives", "table"],
)
def test_an_event_type_that_never_comes_is_an_error(kind: Any, source: str) -> None:
    """A line of [event_names] for an event type that no record has is an error which names the nearest, where the
    schema or the mapping itself says which there are: the events that it was meant for would be filtered."""
    lines = f'unknown_event_name = "filter"\n[fields]\nevent_name = {source}\n[event_names]\n'
    load(f'{lines}BookingConfirmed = "checkout"', booking(kind))
    with pytest.raises(
        MappingError,
        match=r"^my.toml: \[event_names\] 'BookingConfirmd': .* is never 'BookingConfirmd'; the nearest is "
        "'BookingConfirmed'$",
    ):
        load(f'{lines}BookingConfirmd = "checkout"\nBookingConfirmed = "checkout"', booking(kind))


def test_event_types_that_may_be_any_text_are_not_checked() -> None:
    """Where an event type is text, any line of [event_names] may be right."""
    assert (
        load('[event_names]\nBookingConfirmd = "checkout"', BARE).event_names["BookingConfirmd"] == "checkout"
    )


def test_only_the_users_own_lines_are_compared_with_the_schema() -> None:
    """Lines of the packaged mapping, whether they are repeated or removed, may name event types that a schema does not
    have; a line that removes what nobody wrote is a misspelled one."""
    load("[event_names]\nAsked = 'lead'", booking(STATES))
    load("[event_names]\nAsked = 'lead'\norder_placed = 'checkout'\ncart_viewed = ''", booking(STATES))
    with pytest.raises(MappingError, match=r"\[event_names\] 'order_placd': .* known: 'Asked'"):
        load("[event_names]\norder_placd = ''\nAsked = 'lead'", booking(STATES))
    # This line says something else, and of a type that never comes.
    with pytest.raises(MappingError, match="'order_placed': 'event_type' is never 'order_placed'"):
        load("[event_names]\norder_placed = 'lead'\nAsked = 'lead'", booking(STATES))


def test_an_event_name_of_the_mapping_itself_is_known_or_an_error() -> None:
    """Where unknown event types are filtered, an event type that the mapping makes itself must be a known one: all its
    events would be filtered. Where they are sent as custom, it may be any."""
    source = '[fields]\nevent_name = { of = "event_type", table = { "1" = "chekout" } }'
    with pytest.raises(MappingError, match="'chekout' is not an event type of"):
        load(f'unknown_event_name = "filter"\n{source}', booking("int"))
    load(f'unknown_event_name = "filter"\n{source}\n[event_names]\nchekout = "!filter"', booking("int"))
    load(f'unknown_event_name = "custom"\n{source}', booking("int"))


def test_a_list_of_hundreds_of_known_names_is_cut() -> None:
    """Where no symbol of an enum is near, the message lists some of hundreds."""
    symbols = [f"T{number}" for number in range(500)]
    schema = booking({"type": "enum", "name": "State", "symbols": symbols})
    with pytest.raises(MappingError) as caught:
        load('[event_names]\nBooking = "checkout"', schema)
    assert "known: 'T0', 'T1'" in str(caught.value)
    assert str(caught.value).endswith("and 470 more")
