"""Phone numbers of more than ten countries get the code of the record's country, and a number with a code is
unchanged."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any

import pytest

from consumer.conversion.computed import phones
from consumer.conversion.computed.phones import with_country
from consumer.engine.model import ConversionEvent
from consumer.errors import MappingError
from tests.conversion.computed.test_values import SHOP, buyer, converted, mapping_of, record
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import DEFAULT
from tests.support.mapping import load_mapping

# Country, number as it is written, and the digits that are sent.
NUMBERS = [
    ("DE", "030 123456", "4930123456"),  # trunk zero
    ("DE", "0151 23456789", "4915123456789"),
    ("DE", "4930123456", "4930123456"),  # with its code, without a plus
    ("DE", "030 123456 ext. 5", "4930123456"),
    ("DE", "+49 (0)30 123456", "4930123456"),
    ("DE", "0049 (0)30 123456", "4930123456"),
    ("DE", "+49 30 123456 ext. 5", "4930123456"),
    ("DE", "30123456.0", "4930123456"),  # exported as a float
    ("DE", 30123456, "4930123456"),
    ("DE", "٠٣٠ ١٢٣٤٥٦", "4930123456"),
    ("germany", "030 123456", "4930123456"),
    ("AT", "0664 1234567", "436641234567"),
    ("CH", "044 668 18 00", "41446681800"),
    ("UK", "07911 123456", "447911123456"),
    ("FR", "06 12 34 56 78", "33612345678"),
    ("ES", "612 34 56 78", "34612345678"),
    ("NL", "06-12345678", "31612345678"),
    ("IT", "06 1234567", "39061234567"),  # the zero of Italian numbers stays
    ("IT", "347 1234567", "393471234567"),
    ("US", "(212) 555-1234", "12125551234"),
    ("US", "212-555-1234 x55", "12125551234"),
    ("US", "011 49 30 123456", "4930123456"),
    ("MX", "55 1234 5678", "525512345678"),
    ("MX", "1 55 1234 5678", "525512345678"),  # the 1 that was once dialled before a mobile number
    ("MX", "044 55 1234 5678", "525512345678"),
    ("AR", "11 2345-6789", "541123456789"),
    ("AR", "011 15 2345-6789", "5491123456789"),  # a mobile: 15 at home is 9 from abroad
    ("BR", "(11) 91234-5678", "5511912345678"),
    ("JP", "03-1234-5678", "81312345678"),
    ("IN", "098765 43210", "919876543210"),
    ("RU", "8 912 345-67-89", "79123456789"),
    ("AU", "0412 345 678", "61412345678"),
    # For a number with a code the record's country is ignored.
    ("US", "+49 30 123456", "4930123456"),
    # What is no number of the country is sent as its digits.
    ("US", "555-1234", "5551234"),
    ("XX", "030 123456", "30123456"),
    (None, "030 123456", "30123456"),
]


def digest(number: str) -> str:
    """Return the SHA-256 of a number's digits."""
    return sha256(number.encode()).hexdigest()


def both_of(setting: str, numbers: str = "buyer.login", more: str = "") -> Both:
    """Return both executors under a mapping with this `phone_country`."""
    return Both((SHOP, setting + mapping_of(f'"user_data.ph" = "{numbers}"', more)))


COMPUTED = 'phone_country = { first = ["country", { value = "DE" }] }\n'
WITH_CODE = 'phone_country = "country"\nphone_country_code = "49"\n'
BY_COUNTRY = both_of('phone_country = "country"\n')


def order(country: str | None, **numbers: Any) -> dict[str, Any]:
    """Return an order from this country, with a number or several."""
    return record(country=country, buyer=buyer(email="a@b.de", **numbers))


def sent(both: Both, event: dict[str, Any]) -> Any:
    """Return the digests of the phone numbers that are sent."""
    result = converted(both, event)
    assert isinstance(result, ConversionEvent)
    return result.payload["user_data"].get("ph")


@pytest.mark.parametrize(("country", "number", "expected"), NUMBERS)
def test_numbers_as_people_write_them(country: str | None, number: str | int, expected: str) -> None:
    """A national or international number, with trunk prefix or extension, gives the digest of the whole number; asked
    again, as text or as an integer, the answer is the same."""
    assert with_country(number, country) == with_country(number, country)
    assert sent(BY_COUNTRY, order(country, login=str(number))) == [digest(expected)]


@pytest.mark.parametrize(
    "number", ["a" * 64, "A" * 64, "1" * 64, "none", "", " ", "☎", None, True, float("nan"), "1" * 300]
)
def test_what_is_no_number_is_for_the_field_to_judge(number: Any) -> None:
    """A ready digest and text without digits come back unchanged, and the field's rule judges them."""
    assert with_country(number, "DE") is number or with_country(number, "DE") == number


@pytest.mark.parametrize(
    ("setting", "country", "number", "expected"),
    [
        ('phone_country = "DE"\n', None, "030 123456", "4930123456"),  # one for all, and no path
        (COMPUTED, None, "030 123456", "4930123456"),
        (COMPUTED, "AT", "0664 1234567", "436641234567"),
        # The record's country goes before the code, which is for records without one.
        (WITH_CODE, "AT", "0664 1234567", "436641234567"),
        (WITH_CODE, None, "030 123456", "4930123456"),
        (WITH_CODE, "US", "+43 664 1234567", "436641234567"),
        ("", "DE", "030 123456", "30123456"),
    ],
)
def test_where_the_country_comes_from(setting: str, country: str, number: str, expected: str) -> None:
    """The country is one for all records, a path or computed; without the setting, digits are sent as they are."""
    assert sent(both_of(setting), order(country, login=number)) == [digest(expected)]


def test_several_numbers_and_digests() -> None:
    """Each of several numbers gets the code, two spellings of one are sent once, and a digest is not hashed again."""
    both = both_of('phone_country = "country"\n', "buyer.mails")
    numbers = ["030 123456", "+4930123456", None, "0151 23456789", "AB" * 32]
    found = sent(both, order("DE", mails=numbers))
    assert found == [digest("4930123456"), digest("4915123456789"), "ab" * 32]


def load(setting: str) -> Any:
    """Return the mapping with this setting."""
    numbers = '"user_data.ph" = "buyer.login"'
    return load_mapping(setting + mapping_of(numbers), SHOP, default_toml=DEFAULT, overlay_name="my.toml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('phone_country = "contry"\n',
         "phone_country: 'contry' is not in the schema; the nearest that is: 'country'"),
        ('phone_country = "dept"\n', "phone_country takes text, but 'dept' is int"),
        ('phone_country = "lines[].sku"\n',
         "phone_country takes one value, but 'lines[].sku' may give several, since it is a list"),
        ("phone_country = 49\n", "phone_country: a path must be text in quotes"),
        ('phone_country = "de"\n', 'one country for all is written phone_country = "DE"'),
        ('phone_country = "Germany"\n', 'one country for all is written phone_country = "DE"'),
    ],
)  # fmt: skip
def test_a_wrong_country_is_an_error(setting: str, message: str) -> None:
    """A country that is no path to text and no code is an error in one line that names it."""
    with pytest.raises(MappingError) as error:
        load(setting)
    assert message in str(error.value)


def test_the_extra_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a mapping that needs the library of the extra ``phones`` fails without it, and the error names the extra."""
    monkeypatch.setattr("consumer.conversion.loading.is_installed", lambda: False)
    assert load("")
    with pytest.raises(
        MappingError,
        match=r"needs a library, and the extra phones is not installed: run pip install '\.\[phones\]' in a clone",
    ):
        load('phone_country = "country"\n')


def test_the_memory_is_bounded() -> None:
    """At most 10,000 answers are remembered, however many numbers come."""
    maximum = phones._international.cache_info().maxsize
    assert maximum is not None
    for number in range(maximum + 10):
        with_country(f"0{100000 + number}", "DE")
    assert phones._international.cache_info().currsize <= maximum <= 10_000


def test_a_hostile_number_is_not_checked_for_long() -> None:
    """Very long numbers and those of many signs are judged within two seconds."""
    begun = time.process_time()
    for text in ("+" * 60, "(" * 60, "0 " * 30, ";ext=" * 12, "1" * 10_000_000, "x" * 60):
        with_country(text, "DE")
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (None, None),
        ({"mails": ["030 123456", None, "030 123457"], "login": "030 1"}, ["4930123456", "4930123457"]),
        ({"mails": [], "login": "030 123456"}, ["4930123456"]),
        ({"mails": [None, " "], "login": None}, None),
    ],
)
def test_alternatives_may_be_lists_or_one_number_or_nothing(
    given: dict[str, Any] | None, numbers: list[str] | None
) -> None:
    """Alternatives give what the record has: all numbers of a list, one number, or none, which is no mistake."""
    fields = mapping_of('"user_data.ph" = { first = ["buyer.mails", "buyer.login"] }')
    ours = Both((SHOP, f'phone_country = "country"\n{fields}'))
    whole = None if given is None else buyer(**given)
    event = converted(ours, record(country="DE", buyer=whole))
    assert isinstance(event, ConversionEvent)
    found = event.payload.get("user_data", {}).get("ph")
    assert found == (None if numbers is None else [digest(number) for number in numbers])
