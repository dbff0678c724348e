"""Which field of a conversion event a path may be: rules over concepts (``roles.toml``), and what the values look like.

Theory of operation. A rule is a few *patterns*, the best first: ``ID@ORDER`` wants the concept ID in the path's own
name, and ORDER there or in a name on the way; ``ID@`` wants a path that no name leads to but an event's. Concepts that
no pattern expects make a rule less sure, and some say that the path is something else. The documentation is read by the
same rules, with what it says of whose the value is. A name and a documentation that mean different fields make both
unsure.

Then the values: a form that contradicts a rule ends it, one that is distinctive confirms it, and a few forms (an e-mail
address, an IP address, a user agent, a currency) mean a field of themselves.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

from consumer.commands.draft.leaves import ARRAYS, FORMS, SampledPath
from consumer.commands.draft.vocabulary import Concepts, concepts_of
from consumer.conversion.computed.expressions import is_many, source_misfit
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import DAYS, TARGETS, Arity

SURE: Final = 0.6  # a proposal with less is a comment
POSSIBLE: Final = 0.4  # one with less is not mentioned
_EXTRA, _EXTRA_SAID = (
    0.3,
    0.12,
)  # what a concept that no pattern expects costs, in a name and in a documentation
_BESIDE: Final = 0.06  # what one in the nearest name on the way costs
_LATER: Final = 0.02  # what each pattern costs against the one before it
_CONTRADICTED: Final = 0.3  # what a documentation costs that means another field
# Fields whose values are judged one by one: `proposing`.
_JUDGED_LATER: Final = frozenset({"event_id", "event_name", "action_source", "user_data.ge"})


_NO_IDS: Final = frozenset(
    {"ISO 8601", "date", "URL", "user agent", "currency", "language"}
)  # forms of no id


class FieldRule(NamedTuple):
    """The rule for one field: sets of concepts, and patterns in their order."""

    patterns: Sequence[str]
    never: frozenset[str]  # the path's own concepts that say it is another thing
    expects: frozenset[str]  # concepts that may stand beside a pattern
    under: frozenset[str]  # concepts of the nearest name on the way that say so
    others: frozenset[str]  # concepts on the way, or behind a preposition, that say it is another's
    forms: Sequence[str]  # the forms that its values may have; none: what the field's own rule takes
    alone: str  # the form that means this field of itself
    strict: bool  # no other known concept may stand beside a pattern
    extra: float  # what an unexpected concept in a name costs

    @classmethod
    def of(cls, said: Mapping[str, Any], sets: Mapping[str, str]) -> FieldRule:
        """Return the rule that the file has here; ``$PERSON`` stands for a set."""

        def concepts(key: str) -> frozenset[str]:
            words = said.get(key, "").split()
            return frozenset(one for word in words for one in sets.get(word.removeprefix("$"), word).split())

        return cls(
            said["patterns"].split(),
            *(concepts("never"), concepts("expects"), concepts("under"), concepts("others")),
            said.get("forms", ()),
            said.get("alone", ""),
            said.get("strict", False),
            said.get("extra", _EXTRA),
        )


_FILE: Final = tomllib.loads(files(__package__).joinpath("roles.toml").read_text("utf-8"))
RULES, ITEM_RULES = (
    {target: FieldRule.of(said, _FILE["sets"]) for target, said in _FILE[group].items()}
    for group in ("fields", "items")
)


class Candidate(NamedTuple):
    """A path for a field: how sure it is, and whether its name, its documentation or its values say so."""

    leaf: SampledPath
    score: float
    said: str

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
        by_name = {
            target: _matched(rule, leaf.name, leaf, rule.extra, is_item) for target, rule in rules.items()
        }
        by_doc = {target: _matched(rule, said, leaf, _EXTRA_SAID, is_item) for target, rule in rules.items()}
        best_said = max(by_doc.values())
        for target, rule in rules.items():
            score = max(by_name[target], by_doc[target])
            if best_said >= SURE and by_doc[target] < best_said - _CONTRADICTED:
                score -= _CONTRADICTED
            score = _with_values(score, target, rule, leaf)
            if score >= POSSIBLE:
                ways = {"name": by_name[target], "doc": by_doc[target]}
                speaks = " and ".join(way for way, sure in ways.items() if sure >= POSSIBLE) or "values"
                found[target].append(Candidate(leaf, round(score, 3), speaks))
    return {target: sorted(several, key=lambda one: -one.score) for target, several in found.items()}


def _matched(rule: FieldRule, meaning: Concepts, leaf: SampledPath, extra: float, is_item: bool) -> float:
    """Return how well a name or a documentation matches the rule, 0 to 1."""
    own = {*meaning.own}
    if (
        own & rule.never
        or rule.under.intersection(leaf.parent)
        or (leaf.said.around | leaf.name.around) & rule.others
    ):
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
        if not where or (rule.strict and any(map(str.isupper, extras))):
            continue
        beside = (
            set(filter(str.isupper, leaf.parent)) - wanted - {there} - rule.expects - ARRAYS if at else ()
        )
        best = max(best, where - number * _LATER - len(extras) * extra - len(beside) * _BESIDE)
    return best


def _where(there: str, leaf: SampledPath) -> float:
    """Return how near a concept is to a path: behind a preposition, on the way to it, or in the record's name."""
    if not there:
        return float({*leaf.parent} <= {"EVENT"})
    if there in leaf.said.around:
        return 1.0
    if there in leaf.parent:
        # What lies in an item is its own: "items[].id" may be the line's.
        return 0.9 if leaf.array and leaf.beside == f"{leaf.array}[]" else 0.97
    if there in leaf.name.around:
        return 0.9
    record = concepts_of(leaf.above[0])
    # All records are events. A record's name that says more is that of an event, too.
    return 0.0 if there == "EVENT" or there not in record else 0.8 if record == (there,) else 0.5


def _is_dialled(value: object) -> bool:
    return str(value).lstrip()[:1] in ("+", "(")


def _with_values(score: float, target: str, rule: FieldRule, leaf: SampledPath) -> float:
    """Return the score of a path with what its type and its values say."""
    goal = TARGETS[target]
    if source_misfit(leaf.source, goal.kinds) or (
        is_many(leaf.source) and goal.arity not in (Arity.ALL, Arity.ITEM)
    ):
        return 0.0
    is_alone = bool(leaf.tested) and leaf.form == rule.alone != ""
    if not score and is_alone and not {*leaf.name.own, *leaf.parent} & (rule.never | rule.others):
        return SURE + 0.05
    if target.endswith("id") and (
        leaf.form in _NO_IDS or (leaf.form == "phone" and leaf.share(_is_dialled) > 0.5)
    ):
        return 0.0
    if not score or not leaf.tested:
        # The sample may lack an optional value.
        return score - 0.1 if score and leaf.of else score
    if rule.forms and not leaf.source.kinds & DAYS:
        shares = sum(leaf.share(FORMS[form]) for form in rule.forms)
        score = score if leaf.form in rule.forms or shares >= 0.8 else 0.0
    elif not rule.forms and target not in _JUDGED_LATER:
        taken = leaf.share(lambda value: not isinstance(goal.rule(value), Omitted))
        score -= 0.0 if taken > 0.8 else 0.15 if taken > 0.4 else 1.0
    return score + 0.1 if rule.alone else score
