"""Amounts and counts are exact and bounded, and never go through a float."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from consumer.conversion.amounts import MAX_COUNT, MAX_DIGITS, amount, count, exact, is_zero
from consumer.conversion.normalise import Omitted


@given(st.decimals(min_value=0, max_value=10**30, allow_nan=False, allow_infinity=False, places=9))
def test_a_decimal_is_sent_exactly(value: Decimal) -> None:
    """An amount keeps its exact value as `Decimal`, as text and as text with an exponent, and is sent without
    exponent."""
    for given_as in (value, str(value), f"{value:E}"):
        sent = amount(given_as)
        assert isinstance(sent, str)
        assert Decimal(sent) == value
        assert set(sent) <= set("0123456789.")


@given(st.integers(min_value=0, max_value=2**63))
def test_an_integer_is_sent_digit_by_digit(value: int) -> None:
    """An integer keeps all its digits."""
    assert amount(value) == amount(str(value)) == str(value)


@given(st.floats(min_value=1e-15, max_value=1e30))
def test_a_float_is_the_decimal_that_it_prints_as(value: float) -> None:
    """A float is sent as its shortest decimal."""
    sent = amount(value)
    assert isinstance(sent, str)
    assert Decimal(sent) == Decimal(repr(value))


def test_money_keeps_its_cents() -> None:
    """Trailing zeros stay, and 0.1 is not sent as 0.1000000000000000055."""
    assert amount("129.970") == "129.970"
    assert amount(Decimal("10.00")) == "10.00"
    assert amount(0.1) == "0.1"


@pytest.mark.parametrize(
    "text", ["1e999999999", "9" * 10_000_000, "1e9999", "0e9999", "1" + "0" * 64, f"1e-{10**9}"], ids=range(6)
)
def test_an_absurd_number_is_refused_at_once(text: str) -> None:
    """A number with more digits than the bound is malformed, which takes next to no time to find out."""
    before = time.process_time()
    assert amount(text) is Omitted.MALFORMED
    assert time.process_time() - before < 0.2


@pytest.mark.parametrize(
    "value",
    [Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1E+999999"), 10**5000],
    ids=("nan", "snan", "infinity", "exponent", "digits"),
)
def test_not_a_number_is_malformed(value: object) -> None:
    """Not-a-number, infinity and huge numbers are malformed, and none raises."""
    assert amount(value) is Omitted.MALFORMED
    assert count(value) is Omitted.MALFORMED


def test_the_bound_is_on_digits() -> None:
    """A number with the most digits allowed on either side of the point is sent."""
    assert amount(f"1e{MAX_DIGITS - 1}") == "1" + "0" * (MAX_DIGITS - 1)
    assert amount(f"1e-{MAX_DIGITS}") == "0." + "0" * (MAX_DIGITS - 1) + "1"


@pytest.mark.parametrize(
    ("text", "zero"), [("0", True), ("0.00", True), ("0.01", False), ("10", False), ("0.10", False)]
)
def test_zero_is_recognised(text: str, zero: bool) -> None:
    """Zero is recognised with any number of places."""
    assert is_zero(text) is zero


@pytest.mark.parametrize(
    ("value", "things"),
    [
        (2, 2),
        ("2", 2),
        (" 2 ", 2),
        (2.0, 2),
        (Decimal("2.00"), 2),
        ("2e1", 20),
        (0, 0),
        ("-0", 0),
        (MAX_COUNT, MAX_COUNT),
        (MAX_COUNT + 1, Omitted.MALFORMED),
        (1.5, Omitted.MALFORMED),
        ("two", Omitted.MALFORMED),
        (True, Omitted.MALFORMED),
        (float("nan"), Omitted.MALFORMED),
        (None, Omitted.BLANK),
        ("", Omitted.BLANK),
        (-1, None),
        ("-3", None),
        (-0.5, None),
    ],
)
def test_counts(value: object, things: object) -> None:
    """A count is a whole number that fits int64; `count` returns None for a negative one."""
    assert count(value) == things


@given(
    st.one_of(
        st.integers(),
        st.floats(),
        st.decimals(allow_nan=True, allow_infinity=True),
        st.from_regex(r"[+-]?[0-9]{0,70}(\.[0-9]{0,70})?(e[+-]?[0-9]{1,2})?", fullmatch=True),
        st.sampled_from(["", " ", "1,000", "0x1", "-0.00", True, None, b"1"]),
    )
)
@example(-0.0)
@example(Decimal("-0.00"))
def test_an_exact_number_is_what_its_amount_says(value: Any) -> None:
    """`exact` gives the same number as `amount` with the same places, if there is an amount."""
    number, sent = exact(value), amount(value)
    if isinstance(sent, str):
        assert number == Decimal(sent)
        assert f"{number:f}" == f"{Decimal(sent):f}"
    elif isinstance(number, Decimal):
        assert number < 0 or abs(number.adjusted()) < MAX_DIGITS
    else:
        assert number is sent


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_is_the_shortest_decimal_that_means_it(value: float) -> None:
    """A double that fits is the decimal that it is printed as."""
    number = exact(value)
    if isinstance(number, Decimal):
        assert float(number) == value
        assert number == Decimal(repr(value))
