"""In which unit an amount counts, and what a mapping has to compute: never a guess.

Theory of operation. A type with places behind the point, or values with fractions, are amounts in the currency itself.
Whole numbers may be cents: only a word for them, in a name or a documentation, makes that clear, and how many
cents make one depends on the currency. Whatever contradicts itself is unclear, and stays a comment with the reason.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from consumer.commands.draft.leaves import ROLES, SampledPath
from consumer.commands.draft.vocabulary import concepts_of, spaced
from consumer.conversion.countries import CURRENCIES

# Currencies whose minor unit is not a hundredth -> its places.
_PLACES: Final = {code: int(places) for places, codes in ROLES["places"].items() for code in codes.split()}
_COMMON: Final = ROLES["common_codes"].split()
_CODE: Final = re.compile(r"(?<![A-Za-z])[A-Z]{3}(?![A-Za-z])")
_MINOR: Final = re.compile(r"(?i)minor|smallest|sub_?unit|exponent")  # of each currency, not hundredths alone
_FACTORS: Final = ("1", "0.1", "0.01", "0.001")


class AmountReading(NamedTuple):
    """The value of a field's line, what is to be said of it, and why it is unclear, if it is so."""

    value: str
    note: str = ""
    doubt: str = ""


def currency_named(leaf: SampledPath) -> str:
    """Return the currency that name or documentation of an amount names; empty: none, or several."""
    # "mnt" is short for a montant, too.
    words = spaced(leaf.path.rpartition(".")[2]).split()
    in_name = {one.upper() for one in words if one.upper() in _COMMON or concepts_of(one) == (one,)}
    in_doc = {*_CODE.findall(re.sub(r"(?i)\beuros?\b", "EUR", leaf.doc))} - {*ROLES["no_codes"]}
    found = in_name & CURRENCIES or in_doc & CURRENCIES
    return found.pop() if len(found) == 1 else ""


def read_amount(leaf: SampledPath, currency: SampledPath | None, constant: str) -> AmountReading:
    """Return how a mapping reads this amount. `currency`: the path of its currency; `constant`: the one of all."""
    codes = (
        {one.upper() for one in currency.counts or currency.source.symbols}
        if currency is not None
        else {constant} - {""}
    )
    whole = [code for code in sorted(codes) if not _PLACES.get(code, 2)]
    has_places = leaf.has_fraction or (leaf.logical.startswith("decimal of ") and leaf.logical[11] != "0")
    named, units = currency_named(leaf), leaf.words & {"CENT", "MAJOR", "MICRO"}
    factor, note, doubt = "", "", ""
    if leaf.nanos:
        parts = f'"{leaf.path}", {{ multiply = ["{leaf.nanos}", {{ value = 0.000000001 }}] }}'
        return AmountReading(f"{{ add = [{parts}] }}", "units and nanos")
    if named and codes - {named}:
        doubt = f"it is in {named}, but the currency is not always"
    elif len(units) > 1 or (units & {"CENT", "MICRO"} and has_places):
        doubt = "its name, its documentation and its values speak of different units"
    elif "MICRO" in units:
        factor, note = "{ value = 0.000001 }", "millionths"
    elif "CENT" in units:
        factor, doubt = _minor(leaf, currency, codes)
        note = "" if doubt else "minor units"
    elif whole and leaf.has_fraction:
        doubt = f"it has fractions, but {whole[0]} has none: in which currency is it?"
    elif not has_places and (not codes or len(whole) < len(codes)):
        doubt = "nothing says whether it counts cents: then multiply it by { value = 0.01 }"
    elif not has_places:
        note = "its currency has no minor unit"
    plain = f'"{leaf.path}"'
    return AmountReading(f"{{ multiply = [{plain}, {factor}] }}" if factor else plain, note, doubt)


def _minor(leaf: SampledPath, currency: SampledPath | None, codes: set[str]) -> tuple[str, str]:
    """Return what to multiply minor units by, and why that is unclear."""
    odd = " and ".join(code for code in sorted(codes) if _PLACES.get(code, 2) != 2)
    is_minor = _MINOR.search(f"{leaf.path} {leaf.doc}")
    if odd and not is_minor:
        return "{ value = 0.01 }", f"it is said to count cents, but {odd} has no hundredths"
    if currency is None or not codes:
        doubt = "" if codes else "minor units: how many make one depends on the currency"
        return f"{{ value = {_FACTORS[_PLACES.get(min(codes, default=''), 2)]} }}", doubt
    # What may not be shown is among the codes in use; a currency without a factor has no value then, and
    # `explain --summary` shows it.
    lower = all(map(str.islower, currency.counts))
    common = (
        code.lower() if lower else code
        for code in ROLES["common_codes"].split()
        if is_minor or code not in _PLACES
    )
    known = [code for code in currency.shown or common if code.upper() in CURRENCIES]
    table = ", ".join(f"{code} = {_FACTORS[_PLACES.get(code.upper(), 2)]}" for code in known)
    return f'{{ of = "{currency.path}", table = {{ {table} }} }}', ""
