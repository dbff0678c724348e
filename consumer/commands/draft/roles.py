"""Which field of a conversion event a path may be: rules over concepts (``roles.toml``), and what the values look like.

Theory of operation. A rule is a few *patterns*, the best first: ``ID@ORDER`` wants the concept ID in the path's own
name, and ORDER there or in a name on the way; ``ID@`` wants a path that no name leads to but an event's. Concepts that
no pattern expects make a rule less sure, and some say that the path is something else. The documentation is read by the
same rules, with what it says of whose the value is.

Then the values: a form that contradicts a rule ends it, one that is distinctive confirms it, and a few forms (an e-mail
address, an IP address, a user agent, a currency) mean a field of themselves.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any, Final, NamedTuple

from consumer.commands.draft.leaves import ARRAYS, FORMS, SampledPath
from consumer.commands.draft.vocabulary import Concepts, concepts_of
from consumer.conversion.computed.expressions import is_many, source_misfit
from consumer.conversion.countries import CURRENCIES
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import DAYS, TARGETS, Arity

SURE: Final = 0.6  # a proposal with less is a comment
_UNSURE: Final = 0.55  # what a word that no pattern expects leaves, where a rule wants clear names
POSSIBLE: Final = 0.4  # one with less is not mentioned
_EXTRA: Final = 0.3  # what a concept that no pattern expects costs
_BESIDE: Final = 0.06  # what one in the nearest name on the way costs
_LATER: Final = 0.02  # what each pattern costs against the one before it
# Fields whose values are judged one by one: `proposing`.
_JUDGED_LATER: Final = frozenset({"event_id", "event_name", "action_source", "user_data.ge"})
_NO_IDS: Final = frozenset({"ISO 8601", "date", "URL", "user agent", "currency", "language"})
_FILE: Final = tomllib.loads(files(__package__).joinpath("roles.toml").read_text("utf-8"))


class FieldRule:
    """The rule for one field: patterns in their order, and sets of concepts; ``$PERSON`` stands for one."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        def concepts(key: str) -> frozenset[str]:
            words = said.get(key, "").split()
            return frozenset(one for word in words for one in _FILE["sets"].get(word[1:], word).split())

        self.patterns: list[str] = said["patterns"].split()
        self.never = concepts("never")  # the path's own concepts that say it is another thing
        self.expects = concepts("expects")  # concepts that may stand beside a pattern
        self.others = concepts("others")  # on the way, or behind a preposition: it is another's
        self.forms: list[str] = said.get("forms", [])  # of its values; none: what the field's own rule takes
        self.alone: str = said.get("alone", "")  # the form that means this field of itself
        self.is_strict = said.get("strict", False)  # no other known concept may stand beside a pattern
        # Any other word leaves it unsure: one of the name, and of the nearest on the way, or of the documentation.
        self.clear: str = said.get("clear", "")
        self.known = self.expects.union({"CODE"}, *(re.split(r"[+@]", one) for one in self.patterns))


RULES, ITEM_RULES = (
    {target: FieldRule(said) for target, said in _FILE[group].items()} for group in ("fields", "items")
)


class Candidate(NamedTuple):
    """A path for a field: how sure it is, and whether its name, its documentation or its values say so."""

    leaf: SampledPath
    score: float
    said: str
    strange: str = ""

    @property
    def why(self) -> str:
        """Return why the path is not sure."""
        return "not sure" + (f": is it another's, or another thing ({self.strange})?" if self.strange else "")

    @property
    def evidence(self) -> str:
        """Return what speaks for the path, in words."""
        return self.leaf.evidence(self.said)


def candidates(
    leaves: Collection[SampledPath], rules: Mapping[str, FieldRule], *, is_item: bool = False
) -> dict[str, list[Candidate]]:
    """Return by field the paths that it may have, the surest first, equals in the order of the schema."""
    found: dict[str, list[Candidate]] = {target: [] for target in rules}
    for leaf in leaves:
        # The names on the way say whose it is, also for the documentation.
        said = Concepts(leaf.said.own, leaf.said.around | leaf.name.around | {*leaf.name.own})
        for target, rule in rules.items():
            ways = {
                way: _matched(rule, one, leaf, is_item) for way, one in (("name", leaf.name), ("doc", said))
            }
            score = _with_values(max(ways.values()), target, rule, leaf)
            if strange := ", ".join(_strange(rule, leaf, *ways.values())):
                score = min(score, _UNSURE)
            if score >= POSSIBLE:
                speaks = " and ".join(way for way, sure in ways.items() if sure >= POSSIBLE) or "values"
                found[target].append(Candidate(leaf, round(score, 3), speaks, strange.lower()))
    return {target: sorted(several, key=lambda one: -one.score) for target, several in found.items()}


def _strange(rule: FieldRule, leaf: SampledPath, by_name: float, by_doc: float) -> list[str]:
    """Return the words of a name, and of a documentation, that may say that the path is another thing or another's."""
    words: list[str] = []
    if by_name or not by_doc:
        words += leaf.name.own
        words += filter(str.islower, leaf.parent) if rule.clear == "way" else ()
    if rule.clear == "doc" or (by_doc and not by_name):
        words += leaf.said.own
    return [one for one in words if rule.clear and not {one, one.upper()} & (rule.known | CURRENCIES)]


def _matched(rule: FieldRule, meaning: Concepts, leaf: SampledPath, is_item: bool) -> float:
    """Return how well a name or a documentation matches the rule, 0 to 1."""
    own = {*meaning.own}
    if own & rule.never or (leaf.said.around | leaf.name.around) & rule.others:
        return 0.0
    best = 0.0
    for number, pattern in enumerate(rule.patterns):
        here, at, there = pattern.partition("@")
        wanted = {*here.split("+")}
        if not wanted <= own:
            continue
        where = _where(there, leaf) if at and there not in own else 1.0
        # What lies directly in an item is the item's own, whatever its array is called; but a number is a line's.
        if not where and is_item and there in ("ITEM", "") and leaf.beside == f"{leaf.array}[]":
            where = 0.9 if "NUMBER" not in wanted else 0.0
        extras = own - wanted - {there, "CODE"} - rule.expects
        # In a strict rule a concept that is known makes the path another thing.
        if not where or (rule.is_strict and any(map(str.isupper, extras))):
            continue
        near = {*filter(str.isupper, leaf.parent)} if at else set()
        beside = near - wanted - {there} - rule.expects - ARRAYS
        best = max(best, where - number * _LATER - len(extras) * _EXTRA - len(beside) * _BESIDE)
    return best


def _where(there: str, leaf: SampledPath) -> float:
    """Return how near a concept is to a path: behind a preposition, on the way to it, or in the record's name."""
    if not there:
        return float({*leaf.parent} <= {"EVENT"})
    if there in leaf.said.around:
        return 1.0
    if there in leaf.parent:
        return 0.97
    if there in leaf.name.around:
        return 0.9
    record = concepts_of(leaf.above[0])
    # All records are events. A record's name that says more is that of an event, too.
    return 0.0 if there == "EVENT" or there not in record else 0.8 if record == (there,) else 0.5


def _with_values(score: float, target: str, rule: FieldRule, leaf: SampledPath) -> float:
    """Return the score of a path with what its type and its values say."""
    if not fits(target, leaf):
        return 0.0
    if leaf.tested and not score and leaf.form == rule.alone != "":
        is_other = {*leaf.name.own, *leaf.parent} & (rule.never | rule.others)
        # Three letters may be many things.
        return 0.0 if is_other else _UNSURE if rule.alone == "currency" else SURE
    is_dialled = leaf.form == "phone" and str(leaf.tested[0]).startswith(("+", "("))
    if target.endswith("id") and (leaf.form in _NO_IDS or is_dialled):
        return 0.0
    if rule.forms and not leaf.source.kinds & DAYS:
        return score if sum(leaf.share(FORMS[form]) for form in rule.forms) >= 0.8 else 0.0
    if rule.forms or target in _JUDGED_LATER:
        return score
    taken = leaf.share(lambda value: not isinstance(TARGETS[target].rule(value), Omitted))
    return score if taken > 0.4 else 0.0


def fits(target: str, leaf: SampledPath) -> bool:
    """Return whether a field can be of this path's type, and of as many values."""
    goal = TARGETS[target]
    is_one = goal.arity in (Arity.ONE, Arity.FIRST)
    return not (source_misfit(leaf.source, goal.kinds) or (is_one and is_many(leaf.source)))
