"""In which unit an amount counts, and what a mapping has to compute: never a guess.

Theory of operation. A type with places behind the point, or values with fractions, are amounts in the currency itself.
Whole numbers may be cents: only a word for them, in a name or a documentation, makes that clear, and how many
cents make one depends on the currency. Whatever contradicts itself is unclear, and stays a comment with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from consumer.commands.draft.leaves import SampledPath
from consumer.commands.draft.vocabulary import concepts_of
from consumer.conversion.countries import CURRENCIES

# Currencies whose minor unit is not a hundredth -> its places.
_PLACES: Final = {
    **dict.fromkeys(re.findall("...", "BIFCLPDJFGNFISKJPYKMFKRWPYGRWFUGXUYIVNDVUVXAFXOFXPF"), 0),
    **dict.fromkeys(re.findall("...", "BHDIQDJODKWDLYDOMRTND"), 3),
}
_CODE: Final = re.compile(r"(?<![A-Za-z])[A-Z]{3}(?![A-Za-z])")
_WORDS: Final = frozenset({"ALL", "TOP", "TRY", "CUP", "PEN", "SOS"})  # codes that are words, too


class Reading(NamedTuple):
    """The value of a field's line, what is to be said of it, and why it is unclear, if it is so."""

    value: str
    note: str = ""
    doubt: str = ""


def currency_named(leaf: SampledPath) -> str:
    """Return the currency that name or documentation of an amount names; empty: none, or several."""
    in_name = {word.upper() for word in concepts_of(leaf.path.rpartition(".")[2])}
    in_doc = {*_CODE.findall(re.sub(r"(?i)\beuros?\b", "EUR", leaf.doc))} - _WORDS
    found = in_name & CURRENCIES or in_doc & CURRENCIES
    return found.pop() if len(found) == 1 else ""


def read_amount(leaf: SampledPath, currency: SampledPath | None, constant: str) -> Reading:
    """Return how a mapping reads this amount. `currency`: the path of its currency; `constant`: the one of all."""
    plain = f'"{leaf.path}"'
    units = leaf.words & {"CENT", "MAJOR", "MICRO"}
    codes = {code.upper() for code in currency.counts} if currency is not None else {constant} - {""}
    places = {code: _PLACES.get(code, 2) for code in sorted(codes)}
    named = currency_named(leaf)
    if named and codes - {named}:
        return Reading(plain, doubt=f"it is in {named}, but the currency is not always")
    if len(units) > 1 or (units & {"CENT", "MICRO"} and leaf.has_fraction):
        return Reading(plain, doubt="its name, its documentation and its values speak of different units")
    if "MICRO" in units:
        return Reading(f'{{ multiply = ["{leaf.path}", {{ value = 0.000001 }}] }}', "millionths")
    is_whole = {*places.values()} == {0}
    if "CENT" in units and not is_whole:
        return _minor(leaf, currency, places)
    has_places = leaf.has_fraction or (leaf.logical.startswith("decimal of ") and leaf.logical[11] != "0")
    if has_places or is_whole:
        return Reading(plain, "its currency has no minor unit" if is_whole else "")
    return Reading(plain, doubt="nothing says whether it counts cents: then multiply it by { value = 0.01 }")


def _minor(leaf: SampledPath, currency: SampledPath | None, places: Mapping[str, int]) -> Reading:
    """Return how to read minor units, by their currencies and the places of each."""
    factors = {code: f"{Decimal(1).scaleb(-number):f}" for code, number in places.items()}
    if len({*factors.values()}) == 1:
        factor = f"{{ value = {factors.popitem()[1]} }}"
    elif currency is None or not (currency.shown and places):
        return Reading(f'"{leaf.path}"', doubt="minor units: how many make one depends on the currency")
    else:
        others = ", ".join(f"{code} = {one}" for code, one in factors.items() if places[code] != 2)
        factor = f'{{ of = "{currency.path}", table = {{ {others} }}, otherwise = 0.01 }}'
    return Reading(f'{{ multiply = ["{leaf.path}", {factor}] }}', "minor units")
