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
from consumer.conversion.amounts import exact
from consumer.conversion.countries import CURRENCIES

# Currencies whose minor unit is not a hundredth -> its places.
_PLACES: Final = {
    **dict.fromkeys(re.findall("...", "BIFCLPDJFGNFISKJPYKMFKRWPYGRWFUGXUYIVNDVUVXAFXOFXPF"), 0),
    **dict.fromkeys(re.findall("...", "BHDIQDJODKWDLYDOMRTND"), 3),
}
_CODE: Final = re.compile(r"(?<![A-Za-z])[A-Z]{3}(?![A-Za-z])")
_MINOR: Final = re.compile(r"(?i)minor|smallest|sub_?unit|exponent")  # of each currency, not hundredths alone
_WORDS: Final = frozenset({"ALL", "TOP", "TRY", "CUP", "PEN", "SOS"})  # codes that are words, too


class AmountReading(NamedTuple):
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


def read_amount(leaf: SampledPath, currency: SampledPath | None, constant: str) -> AmountReading:
    """Return how a mapping reads this amount. `currency`: the path of its currency; `constant`: the one of all."""
    plain = f'"{leaf.path}"'
    units = leaf.words & {"CENT", "MAJOR", "MICRO"}
    codes = {code.upper() for code in currency.counts} if currency is not None else {constant} - {""}
    places = {code: _PLACES.get(code, 2) for code in sorted(codes)}
    named = currency_named(leaf)
    if named and codes - {named}:
        return AmountReading(plain, doubt=f"it is in {named}, but the currency is not always")
    if len(units) > 1 or (units & {"CENT", "MICRO"} and leaf.has_fraction):
        return AmountReading(
            plain, doubt="its name, its documentation and its values speak of different units"
        )
    if "MICRO" in units:
        return AmountReading(f'{{ multiply = ["{leaf.path}", {{ value = 0.000001 }}] }}', "millionths")
    has_places = leaf.has_fraction or (leaf.logical.startswith("decimal of ") and leaf.logical[11] != "0")
    if "CENT" in units and has_places:
        return AmountReading(plain, doubt="it is said to count minor units, but has places of its own")
    if "CENT" in units:
        return _minor(leaf, currency, places)
    if odd := _with_fraction(leaf, currency, places):
        return AmountReading(plain, doubt=f"it has fractions, but {odd} has none: in which currency is it?")
    if has_places or {*places.values()} == {0}:
        return AmountReading(plain, "" if has_places else "its currency has no minor unit")
    return AmountReading(
        plain, doubt="nothing says whether it counts cents: then multiply it by { value = 0.01 }"
    )


def _with_fraction(leaf: SampledPath, currency: SampledPath | None, places: Mapping[str, int]) -> str:
    """Return a currency without a minor unit in which fractions are counted; empty: there is none."""
    whole = [code for code, number in places.items() if not number]
    if not (whole and leaf.has_fraction) or len(whole) == len(places):
        return whole[0] if whole and leaf.has_fraction else ""
    # Of several currencies the ones beside the fractions count.
    is_paired = currency is not None and currency.of == leaf.of == len(currency.values) == len(leaf.values)
    pairs = zip(currency.values, leaf.values, strict=True) if currency is not None and is_paired else ()
    numbers = ((str(code).strip().upper(), exact(one)) for code, one in pairs)
    return next((code for code, one in numbers if code in whole and isinstance(one, Decimal) and one % 1), "")


def _minor(leaf: SampledPath, currency: SampledPath | None, places: Mapping[str, int]) -> AmountReading:
    """Return how to read minor units, by their currencies and the places of each."""
    hundredths = f'{{ multiply = ["{leaf.path}", {{ value = 0.01 }}] }}'
    odd = " and ".join(code for code, number in places.items() if number != 2)
    if odd and not _MINOR.search(f"{leaf.path} {leaf.doc}"):
        return AmountReading(hundredths, doubt=f"it is said to count cents, but {odd} has no hundredths")
    factors = {code: f"{Decimal(1).scaleb(-number):f}" for code, number in places.items()}
    if currency is None and factors:
        factor = f"{{ value = {factors.popitem()[1]} }}"
    elif currency is None or not currency.shown:
        return AmountReading(hundredths, doubt="minor units: how many make one depends on the currency")
    else:
        # A currency that the sample has not has no value then, and `explain --summary` shows it.
        known = (f"{word} = {factors[word.upper()]}" for word in currency.shown if word.upper() in CURRENCIES)
        factor = f'{{ of = "{currency.path}", table = {{ {", ".join(known)} }} }}'
    return AmountReading(f'{{ multiply = ["{leaf.path}", {factor}] }}', "minor units")
