"""Countries, states and currencies.

Theory of operation. Countries and currencies come from `pycountry` (ISO 3166-1, 4217). The states are written out,
because its table of the states of all countries takes 6 MiB. The sets are built once, when this
module is imported; after that every look-up is one `dict` access. Names are compared *folded*: without case,
accents, blanks and punctuation, so that "Côte d’Ivoire", "COTE D'IVOIRE" and "Cote-d'Ivoire" are one name.
Codes are compared as codes: folding never makes a code out of what is not one ("U.S." is none).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

import pycountry

# English names in daily use that ISO 3166 spells otherwise.
_EVERYDAY_COUNTRY_NAMES = {
    "britain": "GB",
    "great britain": "GB",
    "brunei": "BN",
    "burma": "MM",
    "cape verde": "CV",
    "cocos islands": "CC",
    "congo, democratic republic of the": "CD",
    "congo, republic of the": "CG",
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
    "vatican": "VA",
    "vatican city": "VA",
}

# The US and Canadian states of ISO 3166-2.
_STATES = """
al Alabama; ak Alaska; as American Samoa; az Arizona; ar Arkansas; ca California; co Colorado; ct Connecticut;
de Delaware; dc District of Columbia; fl Florida; ga Georgia; gu Guam; hi Hawaii; id Idaho; il Illinois;
in Indiana; ia Iowa; ks Kansas; ky Kentucky; la Louisiana; me Maine; md Maryland; ma Massachusetts; mi Michigan;
mn Minnesota; ms Mississippi; mo Missouri; mt Montana; ne Nebraska; nv Nevada; nh New Hampshire; nj New Jersey;
nm New Mexico; ny New York; nc North Carolina; nd North Dakota; mp Northern Mariana Islands; oh Ohio;
ok Oklahoma; or Oregon; pa Pennsylvania; pr Puerto Rico; ri Rhode Island; sc South Carolina; sd South Dakota;
tn Tennessee; tx Texas; um United States Minor Outlying Islands; ut Utah; vt Vermont; vi Virgin Islands, U.S.;
va Virginia; wa Washington; wv West Virginia; wi Wisconsin; wy Wyoming; ab Alberta; bc British Columbia;
mb Manitoba; nb New Brunswick; nl Newfoundland and Labrador; nt Northwest Territories; ns Nova Scotia;
nu Nunavut; on Ontario; pe Prince Edward Island; qc Quebec; sk Saskatchewan; yt Yukon
"""
# Full names of US and Canadian states that ISO 3166-2 spells otherwise; French is official in Canada.
_OTHER_STATE_NAMES = {
    "colombie-britannique": "bc",
    "île-du-prince-édouard": "pe",
    "nouveau-brunswick": "nb",
    "nouvelle-écosse": "ns",
    "terre-neuve-et-labrador": "nl",
    "territoires du nord-ouest": "nt",
    "yukon territory": "yt",
}


def fold(name: str) -> str:
    """Return the form of a name that is compared: lower-case letters and digits only, no accents."""
    decomposed = unicodedata.normalize("NFKD", name.lower().replace("&", " and "))
    kept = "".join(char for char in decomposed if char.isalnum())
    words = decomposed.split(None, 1)
    return kept[3:] if len(words) > 1 and words[0] == "the" else kept


def _by_name(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a table from folded names to codes in lower case; of equal names the first one counts."""
    found: dict[str, str] = {}
    for name, code in names:
        found.setdefault(fold(name), code.lower())
        head, comma, tail = name.partition(", ")
        if comma:  # in speaking order, "Korea, Republic of" is "Republic of Korea"
            found.setdefault(fold(f"{tail} {head}"), code.lower())
    return found


# Not `pycountry.countries`, which would keep its objects for as long as the process lives.
_COUNTRIES = [*pycountry.ExistingCountries(f"{pycountry.DATABASE_DIR}/iso3166-1.json")]
# Alpha-2, alpha-3 and "uk", lower case -> alpha-2, lower case.
COUNTRY_CODES = {"uk": "gb"} | {
    code.lower(): country.alpha_2.lower()
    for country in _COUNTRIES
    for code in (country.alpha_2, country.alpha_3)
}
# Folded English short names -> alpha-2, lower case.
COUNTRY_NAMES = _by_name(
    [
        *_EVERYDAY_COUNTRY_NAMES.items(),
        *(
            (getattr(country, attribute), country.alpha_2)
            for country in _COUNTRIES
            for attribute in ("name", "official_name", "common_name")
            if hasattr(country, attribute)
        ),
    ]
)
# Folded full names of US and Canadian states -> two letters, lower case.
STATE_NAMES = _by_name(
    [
        *_OTHER_STATE_NAMES.items(),
        *((state[3:], state[:2]) for state in " ".join(_STATES.split()).split("; ")),
    ]
)
# Currencies withdrawn from 2023 to 2026. Orders of those years are still converted, and a newer list must not refuse
# them.
_LATELY_WITHDRAWN = frozenset({"ANG", "BGN", "HRK"})
# The codes of ISO 4217, upper case.
CURRENCIES = _LATELY_WITHDRAWN | {
    currency.alpha_3 for currency in pycountry.Currencies(f"{pycountry.DATABASE_DIR}/iso4217.json")
}
del _COUNTRIES


# Characters; the longest known name has less than a hundred. Folding a very long text could take minutes.
_LONGEST_NAME = 256


def country_code(text: str) -> str | None:
    """Return the ISO 3166-1 alpha-2 code, in lower case, that trimmed `text` means; None if it means none."""
    code = COUNTRY_CODES.get(text.lower())
    return code if code is not None or len(text) > _LONGEST_NAME else COUNTRY_NAMES.get(fold(text))


def state_code(name: str) -> str | None:
    """Return the two letters, in lower case, of the US or Canadian state with this full name; None if there is none."""
    return None if len(name) > _LONGEST_NAME else STATE_NAMES.get(fold(name))
