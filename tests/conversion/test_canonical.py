"""Every shortcut of the compiled module gives what its rule gives."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Address
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumer.conversion.codes import Canonical
from consumer.conversion.placeholders import FIRST_BIRTH_YEAR, LAST_BIRTH_YEAR, is_public
from consumer.conversion.program import CANONICAL, COMPILED, canonical_of
from consumer.conversion.rules import CRAWLERS, CalendarDay, Rule, click_id_of, is_crawler
from consumer.conversion.targets import TARGETS
from tests.conversion.test_compiled import Both
from tests.conversion.test_compiled_shapes import EVENT, USD, schema_of
from tests.support import avro
from tests.support.avro import optional

if COMPILED is None:
    pytest.skip("the package was built without a C compiler", allow_module_level=True)

from consumer.conversion.native import _events

BY_DAYS = CalendarDay(1000, True, TARGETS["user_data.db"].rule)
RULES: dict[Canonical, Rule] = {kind: rule for rule, kind in CANONICAL.items()} | {
    canonical_of(BY_DAYS): BY_DAYS
}
SENT = (Canonical.ADDRESS, Canonical.AMOUNT, Canonical.WEB, Canonical.TEXT, Canonical.ORDER)
HASHED = tuple(kind for kind in RULES if kind not in SENT)
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


def at_a_glance(kind: Canonical, value: Any) -> Any:
    """Return the answer to a canonical value; None if the rule has to be asked."""
    return _events.Shortcut(lambda _: None, kind)(value)


@cache
def both_of(line: str, scale: int | None = None) -> Both:
    """Return the readings of events with an optional text `p`, or decimal of this scale, and a line of a mapping."""
    decimal = avro.decimal(18, scale or 0)
    kind = "string" if scale is None else decimal
    return Both((schema_of(optional("p", kind)), f"[fields]\n{line}\n[constants]\n{USD}"))


def read(both: Both, *values: Any) -> list[Any]:
    """Return what is said of events with these values of `p`: alike in one go and in two steps."""
    written = [both.value({**EVENT, "p": value}) for value in values]
    return both.check(*(value for value in written if value is not None))


FIELDS = {
    kind: name for name, target in TARGETS.items() for kind, rule in RULES.items() if target.rule is rule
}


@settings(max_examples=600, deadline=None)
@given(value=VALUES)
@example(value=" " + "0" * 64)
@example(value="0" * 64)
@example(value="0.0.0.0")
@example(value=Odd("a@b.c"))
@example(value=Odd("1.50"))
def test_an_answer_at_a_glance_is_the_rule_s(value: Any) -> None:
    """What is sent for a value, or its digest, is what the rule of each kind gives, if it is not asked."""
    for kind in (*HASHED, *SENT):
        answer = at_a_glance(kind, value)
        assert answer is None or answer == RULES[kind](value)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=5, max_size=10))
def test_text_of_a_record_is_written_as_the_rule_says(texts: list[str]) -> None:
    """A text of a record, of which no object is made if it is canonical, is written as in two steps in a field of each
    kind."""
    for name in FIELDS.values():
        read(both_of(f'"{name}" = "p"'), *texts)


@pytest.mark.parametrize(
    ("kind", "value", "normal"),
    [
        (Canonical.EMAIL, "Ann.Lee+x@Example.COM", "ann.lee+x@example.com"),
        (Canonical.PHONE, "+1 (415) 555-0100", "14155550100"),
        (Canonical.PHONE, "0049 30 1234567", "49301234567"),
        (Canonical.LOWERED, "C-0042", "c-0042"),
        (Canonical.AS_WRITTEN, "C-0042", "C-0042"),
        (Canonical.DIGITS, "02139", "02139"),
        (Canonical.LOWERED, 4711, "4711"),
        (Canonical.NAME, "Mary Ann O'Neill-Smith", "mary ann o'neill-smith"),
        (Canonical.CITY, "St. John's-by-the-Sea 2", "stjohnsbythesea2"),
        (Canonical.PHONE, 14155550100, "14155550100"),
        (Canonical.EMAIL, "A" * 43 + "@example.com", "a" * 43 + "@example.com"),
        (Canonical.LOWERED, "1" + "C" * 54, "1" + "c" * 54),
        (Canonical.BIRTHDAY, "1984-02-29", "19840229"),
        (Canonical.BIRTHDAY, "19840229", "19840229"),
        (Canonical.DAY, -1, "19691231"),
        (Canonical.DAY, 11_016, "20000229"),
        (Canonical.ADDRESS, "203.0.113.255", None),
        (Canonical.ADDRESS, "2001:db8:0:0:8:0800:200C:417a", None),
        *((Canonical.AMOUNT, value, None) for value in ("129.90", "0.5", "7", 7, 12.5, Decimal("12.50"))),
        *((Canonical.TEXT, value, None) for value in ("Blue shoes", 4711)),
        *((Canonical.ORDER, value, None) for value in ("4711", 4711)),
        (Canonical.WEB, "https://www.shop.example.com/thanks?a=b#c", None),
        (Canonical.WEB, "http://shop.example", None),
    ],
)
def test_canonical_values_are_answered_at_a_glance(kind: Canonical, value: Any, normal: str | None) -> None:
    """Usual values are hashed, or sent as they are, without asking the rule: so the tests above compare something."""
    wanted = str(value) if normal is None else hashlib.sha256(normal.encode()).hexdigest()
    assert at_a_glance(kind, value) == wanted


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Canonical.AMOUNT, "00.5"),
        (Canonical.ADDRESS, "1.2.3"),
        (Canonical.ADDRESS, "0:0:0:0:0:0:0:0"),
        (Canonical.WEB, "https://"),
        (Canonical.EMAIL, "a" * 50 + "@b.cde"),
        (Canonical.DAY, "19840229"),
        (Canonical.NOT_KNOWN, "a@b.c"),
    ],
)
def test_what_is_not_canonical_is_left_to_the_rule(kind: Canonical, value: str) -> None:
    """Values in an unusual spelling, and those that take more than one block to hash, are left to the rule."""
    assert at_a_glance(kind, value) is None


def test_every_kind_has_its_rule() -> None:
    """Each kind has a rule in these tests."""
    assert {*RULES, Canonical.NOT_KNOWN} == set(Canonical)
    assert {*RULES} - {*FIELDS} == {Canonical.AS_WRITTEN, Canonical.DAY}


@pytest.mark.parametrize("scale", [*range(5), 8, 18])
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**18 - 1), min_size=5))
@example([5, 10**18 - 1, 0])
def test_a_decimal_is_written_as_the_rule_writes_it(scale: int, numbers: list[int]) -> None:
    """A decimal is written as the rule writes it, from its digits and scale."""
    both = both_of('"custom_data.value" = "p"', scale)
    read(both, *(Decimal(number).scaleb(-scale) for number in numbers))


def test_the_processor_s_instructions_are_used_where_it_has_them() -> None:
    """The processor's instructions for hashing are used if it has them and they agree with `hashlib` or portable
    C, which is tried at start."""
    processor = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", processor.read_text() if processor.exists() else "", re.MULTILINE)
    flags = found[1].split() if found else []
    assert _events.hash_with_instructions(True) == ({"sha_ni", "sse4_1", "ssse3"} <= {*flags})
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
        assert at_a_glance(Canonical.DAY, day) == (wanted if isinstance(wanted, str) else None)


def test_each_crawler_is_found() -> None:
    """An agent with the name of a crawler gets the warning, however the name is written and wherever it stands."""
    both = both_of('"user_data.client_user_agent" = "p"')
    for crawler in chain.from_iterable(CRAWLERS.values()):
        assert is_crawler(f"x {crawler} y")
        names = (f"Mozilla/5.0 (compatible; {crawler}/1.0)", crawler, crawler.upper(), crawler.title())
        for _, *_, warnings in read(both, *names):
            assert [warning.code for warning in warnings] == ["crawler"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("bBoOtTiIdDeEaAlLhHpPuUrRsS ?&=k1"), max_size=40), min_size=5))
def test_an_agent_that_is_passed_over_is_no_crawler(agents: list[str]) -> None:
    """An agent that is not looked at by the rule is no crawler's."""
    read(both_of('"user_data.client_user_agent" = "p"'), *agents)


QUERIES = st.lists(
    st.sampled_from(["?", "&", "#", "=", "epik=", "epik", "epik=a", "b", "%41", "%", "+", "a" * 1024, "/"]),
    max_size=8,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(QUERIES, min_size=5))
@example(["?epik=" + "a" * 1025, "?x=1&epik=dj0yJnU9&y", "?x=%20&y", "?epik=%20", ""])
def test_a_click_id_is_that_of_the_rule(queries: list[str]) -> None:
    """The click id that is taken from an address is the rule's."""
    both = both_of('event_source_url = "p"')
    addresses = [f"https://shop.example/{query}" for query in queries]
    for address, said in zip(addresses, read(both, *addresses), strict=True):
        sent = re.search(rb'"click_id":"([^"]*)"', said[5])
        assert (sent and sent[1].decode()) == click_id_of(address)


def test_exactly_the_public_addresses_are_sent_at_a_glance() -> None:
    """Of addresses of IPv4, those that a shopper may have are sent without asking the rule, and no others."""
    for first in range(256):
        for second in range(256):
            address = f"{first}.{second}.3.4"
            assert (at_a_glance(Canonical.ADDRESS, address) is not None) == is_public(IPv4Address(address))
