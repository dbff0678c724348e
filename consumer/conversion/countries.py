"""Countries, states and currencies: the closed sets that normalising looks values up in.

Theory of operation. The sets come from `pycountry` (ISO 3166-1, 3166-2, 4217) and are built once, when this
module is imported; after that every look-up is one `dict` access. Names are compared *folded*: without case,
accents, blanks and punctuation, so that "Côte d’Ivoire", "COTE D'IVOIRE" and "Cote-d'Ivoire" are one name.
Codes are compared as codes: folding never makes a code out of what is not one ("U.S." is none).
"""

from __future__ import annotations

import unicodedata

import pycountry

_EVERYDAY_COUNTRY_NAMES = {
    "britain": "GB",
    "great britain": "GB",
    "british virgin islands": "VG",
    "brunei": "BN",
    "burma": "MM",
    "cape verde": "CV",
    "cocos islands": "CC",
    "congo, democratic republic of the": "CD",
    "congo, republic of the": "CG",
    "czech republic": "CZ",
    "east timor": "TL",
    "falkland islands": "FK",
    "holy see": "VA",
    "hong kong sar": "HK",
    "ivory coast": "CI",
    "macau": "MO",
    "macedonia": "MK",
    "micronesia": "FM",
    "palestine": "PS",
    "russia": "RU",
    "saint martin": "MF",
    "sint maarten": "SX",
    "swaziland": "SZ",
    "turkey": "TR",
    "us virgin islands": "VI",
    "vatican": "VA",
    "vatican city": "VA",
}
"""English names in daily use that ISO 3166 spells otherwise."""

_OTHER_STATE_NAMES = {
    "us virgin islands": "vi",
    "colombie-britannique": "bc",
    "île-du-prince-édouard": "pe",
    "nouveau-brunswick": "nb",
    "nouvelle-écosse": "ns",
    "terre-neuve-et-labrador": "nl",
    "territoires du nord-ouest": "nt",
    "yukon territory": "yt",
}
"""Full names of US and Canadian states that ISO 3166-2 spells otherwise; French is official in Canada."""


def fold(name: str) -> str:
    """`name` in the form names are compared in: lower-case letters and digits only, no accents."""
    decomposed = unicodedata.normalize("NFKD", name.lower().replace("&", " and "))
    kept = "".join(char for char in decomposed if char.isalnum())
    words = decomposed.split(None, 1)
    return kept[3:] if len(words) > 1 and words[0] == "the" else kept


def _turned(name: str) -> str:
    """The name in speaking order: "Korea, Republic of" becomes "Republic of Korea"."""
    head, comma, tail = name.partition(", ")
    return f"{tail} {head}" if comma else name


def _country_names() -> dict[str, str]:
    """Folded English name -> alpha-2 code in lower case."""
    names: dict[str, str] = {}
    for country in pycountry.countries:
        code = country.alpha_2.lower()
        for attribute in ("name", "official_name", "common_name"):
            name = getattr(country, attribute, None)
            if name:
                names.setdefault(fold(name), code)
                names.setdefault(fold(_turned(name)), code)
    for name, code in _EVERYDAY_COUNTRY_NAMES.items():
        names[fold(name)] = code.lower()
        names[fold(_turned(name))] = code.lower()
    return names


def _country_codes() -> dict[str, str]:
    """Alpha-2 and alpha-3 codes (and "uk") in lower case -> alpha-2 code in lower case."""
    codes = {"uk": "gb"}
    for country in pycountry.countries:
        codes[country.alpha_2.lower()] = country.alpha_2.lower()
        codes[country.alpha_3.lower()] = country.alpha_2.lower()
    return codes


def _state_names() -> dict[str, str]:
    """Folded full names of the US and Canadian subdivisions -> two letters in lower case."""
    names: dict[str, str] = {}
    for subdivision in pycountry.subdivisions:
        if subdivision.country_code in ("US", "CA"):
            code = subdivision.code.partition("-")[2].lower()
            names[fold(subdivision.name)] = code
            names[fold(_turned(subdivision.name))] = code
    for name, code in _OTHER_STATE_NAMES.items():
        names[fold(name)] = code
    return names


COUNTRY_CODES = _country_codes()
"""Alpha-2, alpha-3 and "uk", lower case -> alpha-2, lower case."""

COUNTRY_NAMES = _country_names()
"""Folded English short names -> alpha-2, lower case."""

STATE_NAMES = _state_names()
"""Folded full names of US and Canadian states -> two letters, lower case."""

_LATELY_WITHDRAWN = frozenset({"ANG", "BGN", "HRK"})
"""Replaced in 2023 to 2026: orders of then are still converted, and a list that grows older must not refuse them."""
CURRENCIES = frozenset(currency.alpha_3 for currency in pycountry.currencies) | _LATELY_WITHDRAWN
"""The codes of ISO 4217, upper case."""


_LONGEST_NAME = 256
"""Characters; the longest that is known has less than a hundred. Folding longer ones could take minutes."""


def country_code(text: str) -> str | None:
    """The assigned ISO 3166-1 alpha-2 code that `text` (trimmed) means, lower case; None if none."""
    code = COUNTRY_CODES.get(text.lower())
    return code if code is not None or len(text) > _LONGEST_NAME else COUNTRY_NAMES.get(fold(text))


def state_code(name: str) -> str | None:
    """The two letters, lower case, of the US or Canadian state with this full name; None if none."""
    return None if len(name) > _LONGEST_NAME else STATE_NAMES.get(fold(name))
