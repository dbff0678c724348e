"""What delivered events are worth: exact sums in whole units, and steps that show no single order."""

from __future__ import annotations

from array import array
from decimal import Decimal
from math import floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer.engine.figures.value import DeliveredValue, ValueSnapshot, Worth, Worths
from consumer.engine.model import CURRENCY_BITS, VALUE_PARTS
from consumer.engine.native import plain, sum_values
from consumer.engine.reading import currency_of, packed_value
from tests.engine.building import PROPERTY, Core, event
from tests.engine.building import filtered as not_sent

_AMOUNTS = st.decimals(0, 10**9, allow_nan=False, allow_infinity=False, places=3)
_PACKED = st.sampled_from([0, 5, 7 << 15 | 3, (10**14 - 1) << 15 | 9])
_WAITS = st.sampled_from([0, 1, 61, 899, 3_601, 40_000])
_ORDERS = st.lists(
    st.tuples(
        _WAITS, st.sampled_from(["checkout", "signup"]), st.sampled_from(["EUR", "JPY"]), st.integers(1, 12)
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize(
    ("custom", "parts"),
    [
        ({"value": "59.90", "currency": "EUR"}, 599_000),
        ({"value": "0", "currency": "USD"}, 0),
        ({"value": "007.5", "currency": "EUR"}, 75_000),
        ({"value": "0.123456", "currency": "EUR"}, 1_234),
        ({"value": "9999999999.9999", "currency": "IDR"}, 99_999_999_999_999),
        ({"value": "10000000000", "currency": "IDR"}, None),
        ({"currency": "EUR"}, None),
        ({}, None),
    ],
)
def test_value_and_currency_are_one_number(custom: dict[str, str], parts: int | None) -> None:
    """Of values up to ten digits, with four decimals; 0 is none, and a value of zero is one."""
    packed = packed_value(custom)
    assert (packed == 0) is (parts is None)
    if parts is not None:
        assert (packed >> CURRENCY_BITS, currency_of(packed)) == (parts, custom["currency"])


@PROPERTY
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 5, 7 << 15 | 3, (10**14 - 1) << 15 | 9]), st.integers(0, 255)),
        max_size=80,
    )
)
def test_both_add_up_the_same(rows: list[tuple[int, int]]) -> None:
    """The compiled function and the plain one, with more kinds than are added up at once."""
    values, kinds = array("q", [value for value, _ in rows]), bytes(kind for _, kind in rows)
    for first in {0, len(rows) // 3}:
        assert sum_values(values, kinds, first, len(rows)) == plain.sum_values(
            values, kinds, first, len(rows)
        )


def windows_of(shown: ValueSnapshot) -> tuple[Worths, Worths, Worths]:
    """All that is shown."""
    return shown.total, shown.hour, shown.day


@PROPERTY
@given(_ORDERS)
@example([(0, "checkout", "EUR", 9), (0, "checkout", "EUR", 1)])
def test_no_reading_shows_fewer_than_ten_orders(orders: list[tuple[int, str, str, int]]) -> None:
    """What a figure has, and what it gains between two readings, is of no event or of ten at least; what leaves it is
    what came as one step. In the end at most nine events of each name and currency are missing."""
    counted, now, worth = DeliveredValue(), 0, 7
    given_: dict[tuple[str, str], list[int]] = {}
    before = counted.snapshot(0.0)
    for wait, name, currency, count in orders:
        now += wait
        parts = [worth * VALUE_PARTS + at for at in range(count)]
        worth = worth * 3 % 1_000_003
        # What leaves the windows is a difference of its own.
        for coming in ({}, {(name, currency): (count, sum(parts))}):
            counted.add(coming, now)
            shown = counted.snapshot(now)
            for window, earlier in zip(windows_of(shown), windows_of(before), strict=True):
                for names in {*window, *earlier}:
                    new, old = (one.get(names, Worth(0, 0)) for one in (window, earlier))
                    assert new.events == 0 or new.events >= 10
                    assert new == old or abs(new.events - old.events) >= 10
            before = shown
        given_.setdefault((name, currency), []).extend(parts)
    for names, parts in given_.items():
        shown_of = shown.total.get(names, Worth(0, 0))
        assert len(parts) - 9 <= shown_of.events <= len(parts)
        assert shown_of.value == sum(parts[: shown_of.events]) // VALUE_PARTS


def test_names_are_bounded() -> None:
    """Of two hundred names 64 are kept, and the others are one; nothing is lost."""
    counted = DeliveredValue()
    for number in range(200):
        counted.add({(f"name{number}", "EUR"): (10, 10 * VALUE_PARTS)}, 0.0)
    total = counted.snapshot(0.0).total
    assert len(total) == 65
    assert sum(one.value for one in total.values()) == 2_000


@PROPERTY
@given(st.lists(_AMOUNTS, min_size=10, max_size=40))
def test_the_engine_adds_up_what_it_delivers(amounts: list[Decimal]) -> None:
    """Exactly, and only events that were delivered: no duplicate, and nothing that was filtered."""
    core = Core()
    core.assign()
    core.fetch(*(event(f"{n}", value=f"{one}", currency="EUR") for n, one in enumerate(amounts)))
    core.fetch(event("0", value="5", currency="EUR"), not_sent(), event("none"))
    core.deliver()
    shown = core.statistics().value
    [(names, worth)] = shown.total.items()
    assert names == ("checkout", "EUR")
    assert (worth.events, worth.value) == (len(amounts), floor(sum(amounts)))
    assert shown.hour == shown.day == shown.total
