"""The country code of phone numbers.

Theory of operation. The platform compares digests of numbers with their country's code: the digest of ``030 123456``
matches no customer. The library phonenumbers (the extra ``pinstream[phones]``) has the rules of each country's numbers:
trunk prefixes, lengths, the 9 of Argentinian mobiles. It is used only where a mapping has ``phone_country``, and only
for numbers that have no plain country code; its answers are cached. A number that is not valid in that country is left
as it was written.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any, Final

from consumer.conversion.countries import country_code
from consumer.conversion.normalise import Omitted, text_of, trim, without_zeros

_MAX_REMEMBERED: Final = 8192  # numbers in the cache: a megabyte or two
_LONGEST: Final = 64  # characters; a ready digest is left alone, too

# A number with its code and no other parts: no (0), no extension.
_has_code = re.compile(r"(?:\+|00)[0-9 ./-]+").fullmatch
# Until 2019 Mexicans dialled these before the ten digits of a mobile; they are no part of the number any more.
_MEXICAN: Final = re.compile(r"(?:\+?52)?(?:01|044|045|1)([0-9]{10})")
_NOT_DIGITS: Final = re.compile(r"[^0-9+]+")


def is_installed() -> bool:
    """Return whether the library is installed. It is imported at once, so that no record waits for that."""
    try:
        import_module("phonenumbers")
    except ImportError:
        return False
    return True


def is_region(text: str) -> bool:
    """Return whether this is the code of a country, in capital letters."""
    return len(text) == 2 and text.isupper() and country_code(text) is not None


def with_country(number: Any, country: Any) -> Any:
    """Return a phone number with ``+`` and its country's code; unchanged if the code is not clear.

    `country` is the record's, as code or name.
    """
    text = text_of(number)
    # The field's rule judges values that are no text.
    if isinstance(text, Omitted) or len(text) >= _LONGEST or _has_code(trim(text)):
        return number
    of = text_of(country)
    region = None if isinstance(of, Omitted) else country_code(trim(of))
    return number if region is None else _international(text, region) or text


# The library is the slowest part of all that is done to a number, and shoppers come again.
@lru_cache(_MAX_REMEMBERED)
def _international(text: str, region: str) -> str | None:
    phonenumbers = import_module("phonenumbers")
    text = without_zeros(trim(text))
    if text.startswith("00"):  # not every country dials it so, but everybody writes it
        text = f"+{text[2:]}"
    elif region == "mx" and (mobile := _MEXICAN.fullmatch(_NOT_DIGITS.sub("", text))):
        text = mobile[1]
    try:
        number = phonenumbers.parse(text, region.upper())
    except phonenumbers.NumberParseException:
        return None
    # Checked only by its length: the prefixes that a country uses change every month. A number without its area code is
    # too short to be anybody's.
    reason = phonenumbers.is_possible_number_with_reason(number)
    if reason != phonenumbers.ValidationResult.IS_POSSIBLE:
        return None
    found = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    return str(found)
