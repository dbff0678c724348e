"""User data, normalised and hashed: SHA-256 of the UTF-8 bytes as lower-case hex. One function per field.

Theory of operation. A *rule* takes any scalar that a record may hold and returns the text to send, or a `Omitted` with
the reason why there is none. `hashing` puts the common part of the hashed fields around a field's normaliser: trim,
pass a ready digest through (64 hex digits, lower-cased, never hashed twice), normalise, hash. Nothing here raises on
bad input, reads a clock or keeps state.

The cost of a rule matters: most values come only once. Where a quick test recognises the canonical form (ASCII; ``+``
and digits), it comes before the rule and gives the same answer: property tests check that.

The rules are the table "User data" of the platform facts. Where the table is silent:

- White space is what Python calls so, and the invisible characters that copying leaves behind (zero-width
  space, word joiner, byte-order mark, direction marks).
- What stands for nothing, or can hardly be right (`placeholders`), is omitted, and so is its digest.
- An advertising id of a form that is not known here is sent, and is no identity (`Unrecognised`).
- A phone number, a name, a city or such an id of more than 256 characters is none. (Unicode's normalising takes time
  that is the square of a run of accents: a record of a megabyte of them would hold the consumer up for hours.)
- An address that begins or ends with ``@``, or has a second one, is none; nor is one with brackets or a comma.
  ``Jane <j@x.com>`` and ``mailto:j@x.com`` are j@x.com.
- A month or day of one digit is clear where separators stand.
- An IP address is sent as it is written, without its port; one with a zone id is none. Of a forwarded chain the first
  address that a shopper may have is sent: proxies append theirs, and write ``unknown`` for what they do not know.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from hashlib import sha256
from ipaddress import IPv6Address
from typing import Any, ClassVar, Final, final

from consumer.conversion import placeholders
from consumer.conversion.countries import country_code, state_code


@final
class Omitted:
    """Why a rule returns no value; the key is then omitted (or, for some fields, the event refused).

    Not an `Enum`: every answer is tested by `isinstance`, which takes twice as long for an enumeration.
    """

    BLANK: ClassVar[Omitted]  # no value: null, empty, or white space only. Not worth a warning.
    MALFORMED: ClassVar[Omitted]  # a value that the field does not accept
    PLACEHOLDER: ClassVar[Omitted]  # the all-zero id, ``null``, ``0.0.0.0``, order id 0
    UNLIKELY: ClassVar[Omitted]  # a value that no shopper has, though it fits: an address of 10.0.0.0/8

    def __init__(self, why: str) -> None:
        self._why = why

    def __repr__(self) -> str:
        return f"Omitted.{self._why}"


Omitted.BLANK, Omitted.MALFORMED = Omitted("BLANK"), Omitted("MALFORMED")
Omitted.PLACEHOLDER, Omitted.UNLIKELY = Omitted("PLACEHOLDER"), Omitted("UNLIKELY")


@final
class Unrecognised(str):
    """What is sent for a value of unknown form; a known one's is plain text.

    It is sent because the platform may know its form. It is no identity, because it may match no shopper. It gets a
    warning.
    """

    __slots__ = ()


Normaliser = Callable[[str], str | Omitted]

_INVISIBLE = "\u180e\u200b\u200e\u200f\u2060\ufeff"
# No white space has a higher number. (A search of all would take a fifth of each process's start.)
_WHITE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + _INVISIBLE
_WITHOUT_WHITE = dict.fromkeys(map(ord, _WHITE))
# Most digits of an id kept as a number: making the text of longer ones takes time that is the square of their length.
_LONGEST_NUMBER_BITS = 256
_LARGEST_EXACT_FLOAT = 2.0**53
_LONGEST_NAME = 256  # most characters: normalising may take time that is the square of the length


def trim(text: str) -> str:
    """Return `text` without white space at its ends."""
    return text.strip() if text.isascii() else text.strip(_WHITE)


def _number_text(value: Any) -> str | Omitted:
    """Return the decimal text of a number in a field that is meant for text, such as an id kept as a long."""
    # In Python True is an int; it is no id.
    if isinstance(value, bool):
        return Omitted.MALFORMED
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _LONGEST_NUMBER_BITS else Omitted.MALFORMED
    if isinstance(value, float):
        # Beyond 2^53 a float is no exact id any more, so it keeps the form that shows that.
        whole = value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT
        return str(int(value)) if whole else repr(value) if math.isfinite(value) else Omitted.MALFORMED
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) <= _LONGEST_NUMBER_BITS:
        return format(value, "f")
    return Omitted.MALFORMED


def text_of(value: Any) -> str | Omitted:
    """Return `value` as text, with its case and the blanks around it. A number gives its digits."""
    if not isinstance(value, str):
        return Omitted.BLANK if value is None else _number_text(value)
    if value >= "!" and value.isascii():  # "!" follows the blank: no white space
        return str(value)
    if not value or not trim(value):
        return Omitted.BLANK
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return Omitted.MALFORMED
    return str(value)


def trimmed_text(value: Any) -> str | Omitted:
    """Return what `text_of` gives, without the blanks around it."""
    return text_of(trim(value) if isinstance(value, str) else value)


# The normalisers: each takes trimmed, non-empty text.


# Characters that separate addresses, or stand around one. (An address may quote them, and none does.)
_AROUND_ADDRESSES = re.compile(r"[][()<>:;,]")
_MAILTO = "mailto:"


def email(text: str) -> str | Omitted:
    """Remove all white space, make it lower case; dots and +tag stay. Needs something on both sides of its one @."""
    # Blanks within an address are copied line breaks and the like.
    address = ("".join(text.split()) if text.isascii() else text.translate(_WITHOUT_WHITE)).lower()
    name = ""
    if address.endswith(">"):  # behind a name: Jane <j@x.com>
        name, _, address = address[:-1].rpartition("<")
    if address.startswith(_MAILTO):  # a link, perhaps with a subject
        address = address.removeprefix(_MAILTO).partition("?")[0]
    if (
        address.count("@") != 1
        or address[0] == "@"
        or address[-1] in '@"'
        or _AROUND_ADDRESSES.search(address)
        or ("@" in name and name.strip("'\"") != address)  # another one: Ann <a@x.com>, Jane <j@x.com>
    ):
        return Omitted.MALFORMED
    return address


_NOT_A_DIGIT = re.compile(r"[^0-9]+")
# Characters that stay are in the table too: `str.translate` raises and drops an exception for each character that it
# does not find.
_ASCII_DIGITS = {code: chr(code) if 48 <= code <= 57 else None for code in range(128)}
_WHOLE_FLOAT = re.compile(r"[0-9]+\.0+")


def without_zeros(text: str) -> str:
    """Return 94107.0, as exports that take numbers for floats write a phone number or a postal code, as 94107."""
    return text.partition(".")[0] if _WHOLE_FLOAT.fullmatch(text) else text


def phone(text: str) -> str | Omitted:
    """Keep the digits 0-9 after NFKC (full-width digits become plain ones); remove leading zeros."""
    digits = text.removeprefix("+")
    if len(text) > _LONGEST_NAME or not digits.isdigit() or not digits.isascii():
        text = without_zeros(text)
        if len(text) > _LONGEST_NAME:
            return Omitted.MALFORMED
        if text.isascii():
            digits = text.translate(_ASCII_DIGITS)
        else:
            digits = _NOT_A_DIGIT.sub("", unicodedata.normalize("NFKC", text))
    return digits.lstrip("0") or Omitted.MALFORMED


# A number of at least this many digits that begins with its country's code has it: without it there are fewer.
_HAS_CODE = 11


def phone_with_code(code: str) -> Normaliser:
    """Return a normaliser like `phone` that puts the country's `code` before a number without one.

    It has one if it begins with ``+`` or ``00``, or with `code` and is as long as it would be with it.
    """

    def normaliser(text: str) -> str | Omitted:
        number = phone(text)
        if isinstance(number, Omitted):
            return number
        # A plus or two zeros at the beginning lead a country's code.
        begins = _PHONE_BEGINS.search(unicodedata.normalize("NFKC", text))
        if begins is not None and begins[0] in ("+", "00"):
            return number
        return number if number.startswith(code) and len(number) >= _HAS_CODE else code + number

    return normaliser


_PHONE_BEGINS = re.compile(r"\+|00|[0-9]")

_GENDERS = {
    **dict.fromkeys(("f", "female", "woman"), "f"),
    **dict.fromkeys(("m", "male", "man"), "m"),
    **dict.fromkeys(("n", "nb", "non-binary", "nonbinary", "non binary"), "n"),
}


def gender(text: str) -> str | Omitted:
    """Return ``f``, ``m`` or ``n``."""
    return _GENDERS.get(" ".join(text.lower().split()), Omitted.MALFORMED)


# The year, then month and day behind equal marks or packed, then perhaps a time of day or a zone.
_BIRTHDAY = re.compile(
    r"(?P<year>[0-9]{4})(?:(?P<mark>[-/.])(?P<m>[0-9]{1,2})(?P=mark)(?P<d>[0-9]{1,2})|(?P<md>[0-9]{4}))"
    r"(?:(?:\s*T|\s)\s*[0-9].*|T|Z|[+-][0-9]{2}:?[0-9]{2})?",
    re.IGNORECASE | re.DOTALL,
)


def birthday(text: str) -> str | Omitted:
    """Return ``YYYYMMDD`` of a real date that is written year first; a time after it is cut. The year must be
    likely."""
    # Year first only: 03/04/1990 means two days.
    match = _BIRTHDAY.fullmatch(text)
    if match is None:
        return Omitted.MALFORMED
    packed = match["md"]
    month, day = (packed[:2], packed[2:]) if packed else (match["m"], match["d"])
    try:
        # A day that the calendar has; February 30 is a typing error.
        born = date(int(match["year"]), int(month), int(day))
    except ValueError:
        return Omitted.MALFORMED
    if not placeholders.FIRST_BIRTH_YEAR <= born.year <= placeholders.LAST_BIRTH_YEAR:
        return Omitted.UNLIKELY
    return f"{match['year']}{month:0>2}{day:0>2}"


def person_name(text: str) -> str | Omitted:
    """Return NFC, trimmed, in lower case; inner blanks, hyphens, apostrophes and accents stay."""
    if len(text) > _LONGEST_NAME:
        return Omitted.MALFORMED
    name = text.lower() if text.isascii() else trim(unicodedata.normalize("NFC", text)).lower()
    return Omitted.PLACEHOLDER if name in placeholders.NAMES else name


class _InCity(dict[int, str | None]):
    """A table for `str.translate`, as `_ASCII_DIGITS`; characters that are not ASCII are looked up one by one."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        return None if char in _WHITE or unicodedata.category(char).startswith("P") else char


_IN_CITY = _InCity()
_IN_CITY.update((code, _IN_CITY[code]) for code in range(128))


def city(text: str) -> str | Omitted:
    """Return NFC, in lower case, without white space and punctuation (Unicode P*); accents stay."""
    if len(text) > _LONGEST_NAME:
        return Omitted.MALFORMED
    composed = (text if text.isascii() else unicodedata.normalize("NFC", text)).lower()
    if composed in placeholders.NAMES:
        return Omitted.PLACEHOLDER
    return composed.translate(_IN_CITY) or Omitted.MALFORMED


# Two letters, perhaps behind the country of an ISO 3166-2 code: ``US-CA``.
_STATE = re.compile(r"(?:[A-Za-z]{2}-)?([A-Za-z]{2})")


def state(text: str) -> str | Omitted:
    """Return two letters, in lower case, of two letters, of an ISO 3166-2 code, or of a full name."""
    # Two letters are taken as they are: states of all countries have such codes.
    match = _STATE.fullmatch(text)
    return match[1].lower() if match else state_code(text) or Omitted.MALFORMED


# Blanks, and all that looks like a hyphen.
_BETWEEN_DIGITS = re.compile(r"[\s\-‐‑‒–—―−]+")


def postal_code(text: str) -> str | Omitted:
    """Return the digits of a code made of digits, blanks and dashes; leading zeros stay."""
    # Codes with letters exist (London has them), but the platform's rule is digits.
    digits = text if text.isdigit() else _BETWEEN_DIGITS.sub("", without_zeros(text))
    return digits if digits.isdigit() and digits.isascii() else Omitted.MALFORMED


def country(text: str) -> str | Omitted:
    """Return the two letters, in lower case, of a code of ISO 3166-1 or of a country's English name."""
    return country_code(text) or Omitted.MALFORMED


# An IDFA or a GAID. (32 digits without dashes may be an id's MD5 just as well, so their form is not known.)
_ADVERTISING_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def advertising_id(text: str) -> str | Omitted:
    """Return the id in lower case, `Unrecognised` if it is neither IDFA nor GAID, unless it stands for nothing.

    A device that limits tracking has the all-zero id, a placeholder.
    """
    lowered = text.lower()
    if _ADVERTISING_ID.fullmatch(lowered) and not placeholders.is_zero_id(lowered):
        return lowered
    if len(text) > _LONGEST_NAME:
        return Omitted.MALFORMED
    other = external_id(lowered)
    return other if isinstance(other, Omitted) else Unrecognised(other)


def external_id(text: str) -> str | Omitted:
    """Return the id in lower case."""
    written = external_id_as_written(text)
    return written.lower() if isinstance(written, str) else written


def external_id_as_written(text: str) -> str | Omitted:
    """Return the id as it is, unless it stands for nothing: 0, ``null``, the all-zero UUID."""
    is_none = placeholders.is_zero_id(text) or text.lower() in placeholders.NO_VALUE
    return Omitted.PLACEHOLDER if is_none else text


# The hashed fields of ``user_data``: the normaliser of each, and for messages what it accepts and what it returns
# (docs/conversion.md, "User data").
HASHED_FIELDS: Final[dict[str, tuple[Normaliser, str, str]]] = {
    "em": (email, "an e-mail address", "without white space, lower case"),
    "ph": (phone, "a phone number", "digits, without leading zeros"),
    "ge": (gender, "f, m or n", "f, m or n"),
    "db": (birthday, "a date, year first", "YYYYMMDD"),
    "ln": (person_name, "a name", "NFC, lower case"),
    "fn": (person_name, "a name", "NFC, lower case"),
    "ct": (city, "a city", "NFC, lower case, without white space and punctuation"),
    "st": (state, "a state: two letters, or a full US or Canadian name", "two letters, lower case"),
    "zp": (postal_code, "a postal code of digits", "digits"),
    "country": (country, "a country of ISO 3166-1", "two letters, lower case"),
    "external_id": (external_id, "an id", "trimmed, lower case"),
    "hashed_maids": (advertising_id, "an advertising id (IDFA or GAID)", "trimmed, lower case"),
}


# A SHA-256 in hex, which is never hashed again.
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")


def hashing(normaliser: Normaliser) -> Callable[[Any], str | Omitted]:
    """Return the rule of a hashed field: any value -> 64 lower-case hex digits, or why there are none."""

    def rule(value: Any) -> str | Omitted:
        # `trimmed_text` of ASCII is written out: this runs for each value that is not remembered.
        canonical = value.__class__ is str and value.isascii()
        text = value.strip() or Omitted.BLANK if canonical else trimmed_text(value)
        if text.__class__ is not str:
            return text
        if len(text) == 64 and _DIGEST.fullmatch(text):  # a ready digest is not hashed again
            lowered = text.lower()
            # Not of a value that the field takes, such as Nan, the name.
            hidden = placeholders.DIGESTS.get(lowered)
            nothing = hidden is not None and (not hidden or isinstance(normaliser(hidden), Omitted))
            return Omitted.PLACEHOLDER if nothing else lowered
        normal = normaliser(text)
        if normal.__class__ is str:
            return sha256(normal.encode()).hexdigest()
        return normal if isinstance(normal, Omitted) else Unrecognised(sha256(normal.encode()).hexdigest())

    return rule


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}"
# How addresses of the networks in `placeholders` begin.
_NOT_PUBLIC = (
    r"(?:0|10|127|22[4-9]|2[3-5][0-9]|169\.254|172\.(?:1[6-9]|2[0-9]|3[01])|192\.168"
    r"|100\.(?:6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7]))\."
)
# All eight groups, the first neither zero nor one of a network in `placeholders`, which begin with f.
_FULL_IPV6 = r"[1-9A-Ea-e][0-9A-Fa-f]{0,3}(?::[0-9A-Fa-f]{1,4}){7}"
# Most addresses, at the beginning of a forwarded chain.
_canonical_address = re.compile(rf"(?:(?!{_NOT_PUBLIC}){_IPV4}|{_FULL_IPV6})(?![^,])").match
_is_ipv4 = re.compile(_IPV4).fullmatch
_WITH_PORT = re.compile(rf"(?P<v4>{_IPV4}):[0-9]{{1,5}}|\[(?P<v6>[^\]]*)\](?::[0-9]{{1,5}})?")
_LONGEST_ADDRESS = 45  # ``ffff:…:255.255.255.255``: nothing longer is an address
_LONGEST_CHAIN = 32  # addresses: no more proxies stand between a shopper and a shop


def client_ip_address(value: Any) -> str | Omitted:
    """Return a valid IPv4 or IPv6 address as it is written, never hashed; of a forwarded chain the first public one."""
    canonical = _canonical_address(value) if value.__class__ is str and value.isascii() else None
    if canonical is not None:
        return canonical[0]
    text = text_of(value)
    if not isinstance(text, str):
        return text
    found = [_public_address(trim(part)) for part in text.split(",", _LONGEST_CHAIN)[:_LONGEST_CHAIN]]
    # Without an address to send, what stands first says why.
    return next((one for one in found if isinstance(one, str)), found[0])


def _public_address(text: str) -> str | Omitted:
    """Return one address of a chain without its port, if a shopper may have it."""
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match["v4"] or match["v6"]
    if _is_ipv4(text):
        unspecified = text == "0.0.0.0"  # noqa: S104 (compared, not bound)
        return text if _canonical_address(text) else Omitted.PLACEHOLDER if unspecified else Omitted.UNLIKELY
    # A zone id means something on one machine only.
    if len(text) > _LONGEST_ADDRESS or "%" in text:
        return Omitted.MALFORMED
    try:
        address = IPv6Address(text)
    except ValueError:
        return Omitted.MALFORMED
    if placeholders.is_public(address):
        return text
    # ``::ffff:0.0.0.0`` is an unspecified address, too.
    unspecified = (address.ipv4_mapped or address).is_unspecified
    return Omitted.PLACEHOLDER if unspecified else Omitted.UNLIKELY
