"""Each shortcut in front of a rule gives what the rule without it gives.

The shortcuts around the normalisers take only plain text, so text of a derived type gives the rule's own answer. The
shortcuts inside the normalisers are compared with the rules of the platform's table, written again here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from consumer.conversion import normalise
from consumer.conversion.normalise import HASHED_FIELDS, Omitted, client_ip_address, hashing, trim
from consumer.conversion.placeholders import NAMES, is_public
from consumer.conversion.targets import TARGETS


class DerivedFields(str):
    """Text of a derived type, which no shortcut takes."""

    __slots__ = ()


_CANONICAL = (
    "jane.doe+tag@example.com", "+14155550132", "(415) 555-0132", "94107", "94107-1234", "94107.0", "New York",
    "Saint-Étienne", "c-00000042", "203.0.113.255", "0.0.0.0", "255.255.255.256", "01.2.3.4",
    "2001:db8:1:2:3:4:5:6789", "2001:db8::1", "1.2.3.4:443", "[2001:db8::1]:443", "172.15.0.1", "fe80:1:2:3:4:5:6:7",
    "null", "N/A", "Jane <jane@example.com>", "0:0:0:0:0:ffff:0:0", "0:0:0:0:0:0:0:0", "::ffff:192.0.2.1",
    "203.0.113.1, 10.0.0.1", "129.90", "007.5", "0.00", "1e3", "-0", "https://www.shop.example.com/a?b=c#d",
    "http://shop:99999/", "a" * 64, "0" * 64, "00000000-0000-0000-0000-000000000000",
)  # fmt: skip
_PIECES = (
    *_CANONICAL, *"0179aAfFzZ@+-.,:/%\u066b",
    *" \t\n\v\f\r\x1c\x1f\x85\xa0\u2003\u2028\u180e\u200b\ufeff", *"\0\x7f\ud800\udfff",
    *"\u0663\uff15\u00b2\u2460\U0001d7d9", *"İßÅé\u0301\u0327", "9" * 256, "9" * 257, "+" * 9, "\u0301" * 300,
)  # fmt: skip
"""Characters that are no digits here (Arabic, full-width, superscript, circled, mathematical), every kind of
blank, lone surrogates, letters that change their length with their case, and text that is too long."""

HOSTILE = st.one_of(
    st.sampled_from(_CANONICAL),
    st.lists(st.sampled_from(_PIECES), max_size=6).map("".join),
    st.builds(
        lambda canonical, at, piece: canonical[:at] + piece + canonical[at:],
        st.sampled_from(_CANONICAL),
        st.integers(0, 24),
        st.sampled_from(_PIECES),
    ),
    st.text(),
)
_UNICODE = HOSTILE.map(lambda text: text.encode("utf-8", "ignore").decode())
TRIMMED = _UNICODE.map(trim).filter(bool)
"""Text as normalisers get it: trimmed, and not empty."""


def digits_of(text: str) -> str:
    """Return the digits 0-9 in `text`."""
    return "".join(char for char in text if char in "0123456789")


def without_fraction(text: str) -> str:
    """Return `text` without the .0 of a number that was exported as a float."""
    return re.sub(r"\A([0-9]+)\.0+\Z", r"\1", text)


@given(text=HOSTILE)
def test_every_rule_says_the_same_of_text_of_a_derived_type(text: str) -> None:
    """For any text a rule gives the same plain text with and without its shortcut."""
    for target in TARGETS.values():
        short, long = target.rule(text), target.rule(DerivedFields(text))
        assert short == long
        assert type(short) is type(long)


@given(text=HOSTILE)
@example("0" * 64 + "-")
@example(" " + "A" * 64)
def test_a_hashed_field_is_the_digest_of_its_normalised_text(text: str) -> None:
    """Trimming, normalising and hashing in one go gives what the three steps give; a ready digest is not hashed."""
    ready = re.fullmatch("[0-9A-Fa-f]{64}", trim(text))
    for normaliser, _, _ in HASHED_FIELDS.values():
        rule = hashing(normaliser)
        digest = rule(DerivedFields(text))
        assert rule(text) == digest
        if isinstance(digest, str) and not ready:
            plain = normaliser(trim(text))
            assert isinstance(plain, str)
            assert digest == hashlib.sha256(plain.encode()).hexdigest()


@given(text=_UNICODE)
def test_ascii_text_is_trimmed_as_any_text(text: str) -> None:
    """`trim` removes white space from both ends of any text, and nothing else."""
    kept = trim(text)
    assert kept in text
    assert not kept or not (is_white(kept[0]) or is_white(kept[-1]))
    assert all(map(is_white, text.replace(kept, "", 1))) or not kept


def is_white(char: str) -> bool:
    """Return whether Python calls the character white space, or it is one of the invisible ones that copying leaves."""
    return char.isspace() or char in "\u180e\u200b\u200e\u200f\u2060\ufeff"


@given(text=TRIMMED)
@example("'J@x.com' <j@x.com>")
@example("Ann <a@x.com>, Jane <j@x.com>")
def test_an_email_is_its_characters_without_blanks_in_lower_case(text: str) -> None:
    """An e-mail address is its characters without white space in lower case, for ASCII and other text."""
    address = "".join(char for char in text if not is_white(char)).lower()
    name = ""
    if address.endswith(">"):
        name, _, address = address[:-1].rpartition("<")
    if address[:7] == "mailto:":
        address = address[7:].partition("?")[0]
    before, _, after = address.partition("@")
    valid = before and after and not {*",:;<>()[]"} & {*address} and "@" not in after and after[-1] != '"'
    valid = valid and ("@" not in name or name.strip("\"'") == address)
    assert normalise.email(text) == (address if valid else Omitted.MALFORMED)


@given(text=TRIMMED)
@example("٣")
@example("+²")
@example("+")
@example("+" + "9" * 256)
@example("+" + "9" * 255)
def test_a_phone_number_is_its_digits(text: str) -> None:
    """A phone number is its digits, with or without a plus sign and in any grouping; text that is too long is
    malformed."""
    whole = without_fraction(text)
    digits = digits_of(unicodedata.normalize("NFKC", whole)) if len(whole) <= 256 else ""
    assert normalise.phone(text) == (digits.lstrip("0") or Omitted.MALFORMED)


@given(text=TRIMMED)
@example("٣")
@example("9²")
def test_a_postal_code_is_digits_blanks_and_dashes(text: str) -> None:
    """A postal code may have digits, blanks and dashes; only 0-9 count as digits."""
    whole = without_fraction(text)
    kept = "".join(char for char in whole if not char.isspace() and char not in "-‐‑‒–—―−")
    assert normalise.postal_code(text) == (kept if kept and digits_of(kept) == kept else Omitted.MALFORMED)


@given(text=TRIMMED)
def test_a_city_is_its_characters_without_blanks_and_punctuation(text: str) -> None:
    """A city is its characters without white space and punctuation in lower case, for ASCII and other text."""
    lowered = unicodedata.normalize("NFC", text).lower() if len(text) <= 256 else ""
    kept = "".join(
        char for char in lowered if not is_white(char) and not unicodedata.category(char).startswith("P")
    )
    assert normalise.city(text) == (Omitted.PLACEHOLDER if lowered in NAMES else kept or Omitted.MALFORMED)


_GROUPS = st.lists(
    st.sampled_from(["0", "1", "ffff", "FFFF", "00ab", "", "12345", "g", "255.1.2.3"]), max_size=9
)
_ADDRESSES = st.one_of(
    HOSTILE,
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded),
    _GROUPS.map(":".join),
    st.lists(st.sampled_from(["0", "00", "1", "01", "249", "255", "256", "1000", "٣", ""]), max_size=5).map(
        ".".join
    ),
)


@given(text=_ADDRESSES, after=st.sampled_from(["", ",", ", 10.0.0.1", ",\ud800", "\n", ";", " ,"]))
def test_an_address_is_what_the_standard_library_takes_for_one(text: str, after: str) -> None:
    """The first address of the chain that the standard library accepts is sent as it is written, without its port,
    unless it has a zone or no shopper can have it; if there is none, the first of the chain says why."""
    found = [taken(trim(part)) for part in (text + after).split(",")[:32]]
    wanted = next((one for one in found if isinstance(one, str)), found[0])
    if "\ud800" in after or any("\ud800" <= char <= "\udfff" for char in text):
        wanted = Omitted.MALFORMED
    if not trim(text + after):
        wanted = Omitted.BLANK
    assert client_ip_address(text + after) == wanted


def taken(text: str) -> str | Omitted:
    """Return the one address, or why there is none."""
    head, colon, port = text.rpartition(":")
    if colon and head.count(".") == 3 and ":" not in head and 0 < len(port) <= 5 and digits_of(port) == port:
        text = head
    if text[:1] == "[":
        inside, bracket, port = text[1:].partition("]")
        if bracket and (
            not port or (port[0] == ":" and 0 < len(port) <= 6 and digits_of(port[1:]) == port[1:] != "")
        ):
            text = inside
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return Omitted.MALFORMED
    inner = getattr(address, "ipv4_mapped", None) or address
    if "%" in text:
        return Omitted.MALFORMED
    if inner.is_unspecified:
        return Omitted.PLACEHOLDER
    return text if is_public(address) else Omitted.UNLIKELY
