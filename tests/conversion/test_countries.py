"""Countries, states and currencies: every assigned code, and the names in use."""

from __future__ import annotations

import pycountry
import pytest

from consumer.conversion.countries import (
    COUNTRY_CODES,
    COUNTRY_NAMES,
    CURRENCIES,
    STATE_NAMES,
    country_code,
    fold,
    state_code,
)


@pytest.mark.parametrize("country", list(pycountry.countries), ids=lambda country: country.alpha_2)
def test_every_country_by_code_and_name(country: object) -> None:
    """Alpha-2, alpha-3 and short name of every country of ISO 3166-1, in any case, give its alpha-2 code."""
    code = str(getattr(country, "alpha_2")).lower()  # noqa: B009 (pycountry's attributes are dynamic)
    for attribute in ("alpha_2", "alpha_3", "name"):
        text = str(getattr(country, attribute))
        assert country_code(text) == country_code(text.lower()) == country_code(text.upper()) == code


def test_codes_are_only_the_assigned_ones() -> None:
    """Every known code is assigned, "uk" aside, and no user-assigned one is known."""
    assert COUNTRY_CODES["uk"] == "gb"
    assert len(set(COUNTRY_CODES.values())) == len(list(pycountry.countries))
    assert not COUNTRY_CODES.keys() & {"xx", "zz", "eu", "xk", "el", "aa"}


def test_every_state_of_the_us_and_canada_by_name() -> None:
    """The 50 states, the district, the territories, and 13 provinces and territories are known by name."""
    codes = {
        subdivision.code.partition("-")[2].lower(): subdivision.name
        for subdivision in pycountry.subdivisions
        if subdivision.country_code in ("US", "CA")
    }
    assert len(codes) == 57 + 13
    assert all(state_code(name) == code for code, name in codes.items())
    assert set(STATE_NAMES.values()) == codes.keys()


def test_no_name_is_a_code() -> None:
    """Names that text is folded to are longer than codes, so that folding never makes a code."""
    assert min(map(len, STATE_NAMES)) > 3
    assert min(map(len, COUNTRY_NAMES)) > 3


@pytest.mark.parametrize("code", sorted({*COUNTRY_CODES, *STATE_NAMES.values()}))
def test_a_code_is_written_as_one(code: str) -> None:
    """A code with dots, blanks, dashes, accents or "the" is neither a country nor a state."""
    for text in (
        ".".join(code),
        f"{'.'.join(code)}.",
        " ".join(code),
        "-".join(code),
        f"the {code}",
        f"{code}\u0301",
    ):
        assert country_code(text) is None
        assert state_code(text) is None


def test_fold_ignores_how_a_name_is_written() -> None:
    """Case, accents, blanks, punctuation, "&" and a leading "the" make no difference to a name."""
    assert fold("CÔTE D’IVOIRE") == fold("Cote d'Ivoire") == "cotedivoire"
    assert fold("The Netherlands") == "netherlands"
    assert fold("Trinidad & Tobago") == fold("trinidad and tobago")


def test_currencies_are_codes_in_use() -> None:
    """A currency is a code of ISO 4217, in upper case."""
    assert {"USD", "EUR", "JPY", "GBP", "INR"} <= CURRENCIES
    assert all(len(code) == 3 and code.isupper() for code in CURRENCIES)
