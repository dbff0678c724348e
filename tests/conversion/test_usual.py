"""Every shortcut of the compiled module gives what its rule gives."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from decimal import Decimal
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumer.conversion.amounts import amount
from consumer.conversion.codes import Usual
from consumer.conversion.placeholders import FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR, is_public
from consumer.conversion.program import COMPILED, USUAL, usual_of
from consumer.conversion.rules import CRAWLERS, CalendarDay, Rule, click_id_of, is_crawler
from consumer.conversion.targets import TARGETS

if COMPILED is None:
    pytest.skip("the package was built without a C compiler", allow_module_level=True)

from consumer.conversion.native import _events

BY_DAYS = CalendarDay(1000, True, TARGETS["user_data.db"].rule)
RULES: dict[Usual, Rule] = {kind: rule for rule, kind in USUAL.items()} | {usual_of(BY_DAYS): BY_DAYS}
HASHED = (
    *(Usual.EMAIL, Usual.PHONE, Usual.LOWERED, Usual.AS_WRITTEN, Usual.DIGITS, Usual.NAME, Usual.CITY),
    *(Usual.BIRTHDAY, Usual.DAY),
)
SENT = (Usual.ADDRESS, Usual.AMOUNT, Usual.WEB, Usual.TEXT, Usual.ORDER)
PIECES = (
    *("@", ".", "+", "-", "/", ":", ",", "0", "1", "00", "255", "256", "1.2.3.4", "0.0.0.0", "http://", "https://"),
    *(" ", "\t", "\x1c", "\x1f", "\x00", "\x7f", "\x85", "\xa0", "\u2003", "\ufeff", "\ud800", "é", "İ", "K", "٣", "1"),
    *("null", "N/A", "undefined", "None", "Nan", "unknown", "(not set)"),
    *(";", "<", ">", "(", "]", '"', "mailto:", "10.0.0.1", "fe80::1"),
    *("Mary Ann", "O'Neill", "St. John's", "$", "_", "|"),
    *("a", "Z", "a@b.c", "A.B@C.de", "+1 415 555-0100", "94107", "94107.0", "a" * 63, "f" * 64, "9" * 65, "Ä@ö.de"),
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
    st.text(st.characters(min_codepoint=0, max_codepoint=127), max_size=70),
    st.from_regex(re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}"), fullmatch=True),
    st.from_regex(re.compile(r"[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{0,5}){6,8}"), fullmatch=True),
    st.builds(
        lambda text, times: (text * times)[:210],
        st.text("aZ9.@ -", min_size=1, max_size=9),
        st.integers(6, 40),
    ),
    st.from_regex(re.compile(r"[0-9]{1,66}(\.[0-9]{0,66})?"), fullmatch=True),
    st.from_regex(re.compile(r"https?://[a-z0-9.-]*(/[ -~]*)?"), fullmatch=True),
    st.from_regex(re.compile(r"\s?[0-9A-Fa-f]{62,66}\s?"), fullmatch=True),
    st.from_regex(re.compile(r"[0-9]{4}([-/.]?)[0-9]{2}([-/.]?)[0-9]{2}"), fullmatch=True),
    st.dates().map(str),
    st.text(max_size=20),
    st.text("0123456789. +", max_size=260),
)
DECIMALS = st.one_of(
    st.decimals(),
    st.builds(
        lambda whole, places: Decimal(whole).scaleb(-places),
        st.integers(-(10**12), 10**12),
        st.integers(0, 9),
    ),
)
VALUES = st.one_of(
    TEXTS,
    DECIMALS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 10**19),
    st.integers(-719_170, 2_932_900),
    st.sampled_from([-719_163, -719_162, 2_932_896, 2_932_897]),
    st.floats(),
    st.binary(max_size=4),
)


class Odd(str):
    """Text of a derived type."""

    __slots__ = ()


@pytest.mark.parametrize("kind", HASHED)
@settings(max_examples=600, deadline=None)
@given(value=VALUES)
@example(value=" " + "0" * 64)
@example(value="0" * 64)
@example(value=Odd("a@b.c"))
def test_a_digest_at_a_glance_is_the_rule_s(kind: Usual, value: Any) -> None:
    """A value that is hashed without asking the rule has the rule's digest."""
    digest = _events.digest_of(kind, value)
    assert digest is None or digest == RULES[kind](value)


@pytest.mark.parametrize("kind", SENT)
@settings(max_examples=600, deadline=None)
@given(value=VALUES)
@example(value="0.0.0.0")
@example(value=Odd("1.50"))
def test_what_passes_at_a_glance_passes_the_rule_as_it_is(kind: Usual, value: Any) -> None:
    """A value that is sent without asking the rule is what the rule would send."""
    sent = _events.text_of(kind, value)
    assert sent is None or sent == RULES[kind](value)


@pytest.mark.parametrize("kind", [kind for kind in Usual if kind not in HASHED])
@given(value=VALUES)
def test_what_is_sent_as_it_is_is_never_hashed(kind: Usual, value: Any) -> None:
    """A kind of a field that is not hashed has no digest."""
    assert _events.digest_of(kind, value) is None


@pytest.mark.parametrize("kind", [kind for kind in Usual if kind not in SENT])
@given(value=VALUES)
def test_what_is_hashed_never_passes_as_it_is(kind: Usual, value: Any) -> None:
    """A kind of a hashed field is never sent as text, whatever the value looks like."""
    assert _events.text_of(kind, value) is None


@pytest.mark.parametrize(
    ("kind", "value", "normal"),
    [
        (Usual.EMAIL, "Ann.Lee+x@Example.COM", "ann.lee+x@example.com"),
        (Usual.PHONE, "+1 (415) 555-0100", "14155550100"),
        (Usual.PHONE, "0049 30 1234567", "49301234567"),
        (Usual.LOWERED, "C-0042", "c-0042"),
        (Usual.AS_WRITTEN, "C-0042", "C-0042"),
        (Usual.DIGITS, "02139", "02139"),
        (Usual.LOWERED, 4711, "4711"),
        (Usual.NAME, "Mary Ann O'Neill-Smith", "mary ann o'neill-smith"),
        (Usual.CITY, "St. John's-by-the-Sea 2", "stjohnsbythesea2"),
        (Usual.PHONE, 14155550100, "14155550100"),
        *(
            (Usual.EMAIL, "A" * size + "@example.com", "a" * size + "@example.com")
            for size in (43, 44, 60, 188)
        ),
        *(
            (Usual.LOWERED, "1" + "C" * (size - 1), "1" + "c" * (size - 1))
            for size in (55, 56, 63, 65, 80, 200)
        ),
        (Usual.BIRTHDAY, "1984-02-29", "19840229"),
        (Usual.BIRTHDAY, "19840229", "19840229"),
        (Usual.DAY, -1, "19691231"),
        (Usual.DAY, 11_016, "20000229"),
    ],
)
def test_what_is_usual_is_hashed_at_a_glance(kind: Usual, value: Any, normal: str) -> None:
    """Usual values are hashed without asking the rule, so that the tests above compare something."""
    assert _events.digest_of(kind, value) == hashlib.sha256(normal.encode()).hexdigest()


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**18), st.integers(0, 18))
@example(10**18, 18)
@example(5, 8)
def test_a_decimal_is_written_as_the_rule_writes_it(number: int, scale: int) -> None:
    """A decimal is written as the rule writes it, from its digits and scale."""
    assert _events.digits_with_point(number, scale) == amount(Decimal(number).scaleb(-scale))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Usual.ADDRESS, "203.0.113.255"),
        (Usual.ADDRESS, "2001:db8:0:0:8:0800:200C:417a"),
        (Usual.AMOUNT, "129.90"),
        (Usual.AMOUNT, "0.5"),
        (Usual.AMOUNT, "7"),
        (Usual.AMOUNT, 7),
        (Usual.AMOUNT, 12.5),
        (Usual.AMOUNT, Decimal("12.50")),
        (Usual.TEXT, "Blue shoes"),
        (Usual.TEXT, 4711),
        (Usual.ORDER, "4711"),
        (Usual.ORDER, 4711),
        (Usual.WEB, "https://www.shop.example.com/thanks?a=b#c"),
        (Usual.WEB, "http://shop.example"),
    ],
)
def test_what_is_usual_passes_at_a_glance(kind: Usual, value: Any) -> None:
    """Usual values are sent without asking the rule, so that the tests above compare something."""
    assert _events.text_of(kind, value) == str(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Usual.AMOUNT, "00.5"),
        (Usual.ADDRESS, "1.2.3"),
        (Usual.ADDRESS, "0:0:0:0:0:0:0:0"),
        (Usual.WEB, "https://"),
    ],
)
def test_what_is_not_usual_is_left_to_the_rule(kind: Usual, value: str) -> None:
    """Values in an unusual spelling are left to the rule."""
    assert _events.text_of(kind, value) is None


def test_every_kind_has_its_rule() -> None:
    """Each kind has a rule in these tests, and is either hashed or sent."""
    assert {*RULES, Usual.NOT_KNOWN} == set(Usual) == {*HASHED, *SENT, Usual.NOT_KNOWN}


def test_the_processor_s_instructions_are_used_where_it_has_them() -> None:
    """The processor's instructions for hashing are used if it has them and they agree with `hashlib` or portable
    C, which is tried at start."""
    processor = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", processor.read_text() if processor.exists() else "", re.MULTILINE)
    flags = found[1].split() if found else []
    assert _events.hashes_with_instructions() == ({"sha_ni", "sse4_1", "ssse3"} <= {*flags})
    assert _events.hashes_four_keys() == ("avx2" in flags)


def test_every_day_of_the_calendar_is_hashed_at_a_glance() -> None:
    """Every day on which a shopper may be born is hashed without asking the rule, also the first and the last one,
    and those around leap days; no other day is."""
    days = [*range(-719_162, 2_932_897, 997), -719_162, 2_932_896]
    leap = [date(year, 2, 28).toordinal() - date(1970, 1, 1).toordinal() for year in range(1, 10_000, 7)]
    edges = [date(year, month, day).toordinal() - date(1970, 1, 1).toordinal()
             for year in (FIRST_BIRTH_YEAR - 1, FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR, LAST_BIRTH_YEAR + 1)
             for month, day in ((1, 1), (12, 31))]  # fmt: skip
    for day in [*days, *leap, *(one + 1 for one in leap), *edges, *range(-25_600, 20_900)]:
        wanted = BY_DAYS(day)
        assert _events.digest_of(Usual.DAY, day) == (wanted if isinstance(wanted, str) else None)


@pytest.mark.parametrize("crawler", [*chain.from_iterable(CRAWLERS.values())])
def test_each_crawler_is_looked_at_by_the_rule(crawler: str) -> None:
    """For each name of a crawler the agent is looked at by the rule."""
    for name in (crawler, crawler.upper(), crawler.title()):
        assert _events.may_be_a_crawler(f"Mozilla/5.0 (compatible; {name}/1.0)".encode())
        assert _events.may_be_a_crawler(name.encode())
        assert is_crawler(f"x {name} y")


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("bBoOtTiIdDeEaAlLhHpPuUrRsS ?&=k1"), max_size=40))
def test_an_agent_that_is_passed_over_is_no_crawler(text: str) -> None:
    """An agent that is not looked at by the rule is no crawler's."""
    assert _events.may_be_a_crawler(text.encode()) or not is_crawler(text)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["?", "&", "#", "=", "epik=", "epik", "epik=a", "b", "%41", "%", "+", "a" * 1024, "/"]
        ),
        max_size=8,
    ).map("".join)
)
@example("?epik=" + "a" * 1025)
def test_a_click_id_that_is_told_at_a_glance_is_that_of_the_rule(query: str) -> None:
    """The click id of an address is the rule's; an address that has to be decoded is left to the rule."""
    address = f"https://shop.example/{query}"
    told = _events.click_id_in(address.encode())
    if told is not None:
        assert (told.decode() or None) == click_id_of(address)
    else:
        assert "%" in query


def test_usual_addresses_are_told_at_a_glance() -> None:
    """Usual addresses, with a click id and without one, are answered without asking the rule."""
    assert _events.click_id_in(b"https://a/?x=1&epik=dj0yJnU9&y") == b"dj0yJnU9"
    assert _events.click_id_in(b"https://a/?x=%20&y") == b""
    assert _events.click_id_in(b"") == b""
    assert _events.click_id_in(b"https://a/?epik=%20") is None


def test_exactly_the_public_addresses_are_sent_at_a_glance() -> None:
    """Of addresses of IPv4, those that a shopper may have are sent without asking the rule, and no others."""
    for first in range(256):
        for second in range(256):
            address = f"{first}.{second}.3.4"
            assert (_events.text_of(Usual.ADDRESS, address) is not None) == is_public(IPv4Address(address))
