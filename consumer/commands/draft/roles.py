"""Which field of a conversion event a path may be: rules over concepts (``roles.toml``), and what the values look like.

Theory of operation. A rule is a few *patterns*, the best first: ``ID@ORDER`` wants the concept ID in the path's own
name, and ORDER there or in a name on the way; ``ID@`` wants a path that no name leads to but an event's. Words that
no pattern expects make a rule less sure, and some say that the path is something else. The documentation is read by the
same rules, with what it says of whose the value is.

Then the values: a form that contradicts a rule ends it, and a few forms (an e-mail address, an IP address, a user
agent, a currency) mean a field of themselves.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from consumer.commands.draft.leaves import FORMS, ROLES, SETS, SampledPath
from consumer.commands.draft.vocabulary import concepts_of
from consumer.conversion.computed.expressions import is_many, source_misfit
from consumer.conversion.countries import CURRENCIES
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import DAYS, TARGETS, Arity

SURE: Final = 0.6  # a proposal with less is a comment
_UNSURE: Final = 0.55  # what a word leaves that may mean another thing
POSSIBLE: Final = 0.4  # one with less is not mentioned
_EXTRA: Final = 0.3  # what a word that no pattern expects costs
_EXTRA_SAID: Final = 0.12  # and in a documentation, which has more words
_LATER: Final = 0.02  # what each pattern costs against the one before it
# Fields whose values are judged one by one: `proposing`.
_JUDGED_LATER: Final = frozenset({"event_id", "event_name", "action_source", "user_data.ge"})


class FieldRule:
    """The rule for one field: patterns in their order, and sets of concepts; ``$PERSON`` stands for one."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        def concepts(key: str) -> frozenset[str]:
            words = said.get(key, "").split()
            return frozenset(one for word in words for one in SETS.get(word[1:], (word,)))

        self.patterns: list[str] = said["patterns"].split()
        self.never = concepts("never")  # the path's own concepts that say it is another thing
        self.expects = concepts("expects")  # concepts that may stand beside a pattern
        self.others = concepts("others")  # on the way, or behind a preposition: it is another's
        # A name of these is of the thing itself, though its documentation lists others: unsure, but not another's.
        self.whole = concepts("whole")
        self.forms: list[str] = said.get("forms", [])  # of its values; none: what the field's own rule takes
        self.unlike: list[str] = said.get("unlike", [])  # forms that its values never have
        self.varies = said.get("varies", False)  # few values in many records are no ids
        # Forms, and kinds, that mean this field of themselves, and how surely.
        self.alone: dict[str, float] = said.get("alone", {})
        self.is_strict = said.get("strict", False)  # no other known concept may stand beside a pattern
        # Any other word leaves it unsure: one of the name, and of the nearest on the way, or of the documentation.
        self.clear: str = said.get("clear", "")
        self.known = self.expects.union(
            {"CODE"}, CURRENCIES, *(re.split(r"[+@]", one) for one in self.patterns)
        )


RULES, ITEM_RULES = (
    {target: FieldRule(said) for target, said in ROLES[group].items()} for group in ("fields", "items")
)


class Candidate(NamedTuple):
    """A path for a field: how sure it is, what speaks for it, in words, and why it is not sure."""

    leaf: SampledPath
    score: float
    evidence: str
    why: str = ""


def candidates(
    leaves: Collection[SampledPath], rules: Mapping[str, FieldRule], *, is_item: bool = False
) -> dict[str, list[Candidate]]:
    """Return by field the paths that it may have, the surest first, equals in the order of the schema."""
    found: dict[str, list[Candidate]] = {target: [] for target in rules}
    for target, rule in rules.items():
        for leaf in (one for one in leaves if fits(target, one)):
            name = _matched(rule, {*leaf.own}, leaf, is_item, _EXTRA)
            doc = _matched(rule, {*leaf.said}, leaf, is_item, _EXTRA_SAID)
            score = _with_values(max(name, doc), target, rule, leaf)
            strange = _strange(rule, leaf, name, doc)
            lists_others = bool(leaf.said_around & rule.others)
            is_vague = strange or lists_others or (rule.varies and leaf.has_few)
            score = min(score, _UNSURE if is_vague else 1.0)
            if score >= POSSIBLE:
                speaks = " and ".join(way for way, sure in (("name", name), ("doc", doc)) if sure >= POSSIBLE)
                words = ", ".join(strange).lower()
                why = f"not sure: is it another's, or another thing ({words})?" if strange else "not sure"
                found[target].append(Candidate(leaf, round(score, 3), leaf.evidence(speaks or "values"), why))
        found[target].sort(key=lambda one: -one.score)
    return found


def _strange(rule: FieldRule, leaf: SampledPath, by_name: float, by_doc: float) -> list[str]:
    """Return the words of a name, or of a documentation, that may say that the path is another thing or another's."""
    words: list[str] = []
    if by_name or not by_doc:
        words += leaf.own
        words += filter(str.islower, leaf.parent) if rule.clear == "way" else ()
    elif rule.clear == "way":
        words += [*leaf.said, *filter(str.islower, leaf.said_around)]
    # An amount of litres is no money.
    if rule.clear == "doc" and not {*leaf.said, *leaf.said_around} & rule.known:
        words += leaf.said
    return [one for one in words if rule.clear and not {one, one.upper()} & rule.known]


def _matched(rule: FieldRule, own: set[str], leaf: SampledPath, is_item: bool, extra: float) -> float:
    """Return how well a name or a documentation matches the rule, 0 to 1."""
    said_around = frozenset[str]() if {*leaf.own} & rule.whole else leaf.said_around
    if own & rule.never or (said_around | leaf.around) & rule.others:
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
        if where and not (rule.is_strict and any(map(str.isupper, extras))):
            best = max(best, where - number * _LATER - len(extras) * extra)
    return best


def _where(there: str, leaf: SampledPath) -> float:
    """Return how near a concept is to a path: behind a preposition, on the way to it, or in the record's name."""
    if not there:
        return float({*leaf.parent} <= {"EVENT"})
    for near, score in ((leaf.said_around, 1.0), (leaf.parent, 0.97), (leaf.around, 0.9)):
        if there in near:
            return score
    record = concepts_of(leaf.above[0])
    # All records are events. A record's name that says more is that of an event, too.
    return 0.0 if there == "EVENT" or there not in record else 0.8 if record == (there,) else 0.5


def _with_values(score: float, target: str, rule: FieldRule, leaf: SampledPath) -> float:
    """Return the score of a path with what its values say."""
    alone = max((rule.alone.get(one, 0.0) for one in (leaf.form, *leaf.source.kinds)), default=0.0)
    if alone and not score:
        is_other = {*leaf.own, *leaf.parent} & (rule.never | rule.others)
        return 0.0 if is_other else alone
    if not score or leaf.form in rule.unlike:
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
