"""Which lines a mapping of one record type should have, and which it may have.

Theory of operation. The candidates of `roles`, the surest first, become lines: the first one that is sure is active,
the others are comments. A few fields need more than a path: an event's name (`_event_name`), its source, its items (all
of one array), its money (`money`), and names in two parts. What cannot be decided is a comment with the reason. Consent
is never decided here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from consumer.avro.paths import AvroSchema
from consumer.commands.draft import money
from consumer.commands.draft.leaves import MAX_SHOWN, SampledPath, is_of_items, leaves_of
from consumer.commands.draft.roles import ITEM_RULES, RULES, SURE, Candidate, candidates, fits
from consumer.commands.draft.vocabulary import CAMEL, GENDERS, concepts_of, event_for, events_of, source_for
from consumer.conversion.computed.expressions import is_many
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import ACTION_SOURCES, CONTENTS, DAYS, EVENT_NAMES, FILTER, TARGETS

_REQUIRED: Final = ("event_id", "event_time", "event_name")
_VALUE, _CURRENCY, _ORDER_ID = "custom_data.value", "custom_data.currency", "custom_data.order_id"
_AMOUNTS: Final = frozenset({_VALUE, f"{CONTENTS}.item_price", "custom_data.predicted_ltv"})
_ADDRESS: Final = frozenset({"user_data.ct", "user_data.st", "user_data.zp", "user_data.country"})
_TIMES: Final = DAYS - {"date"}
_MAX_OTHERS: Final = 2  # alternatives of one field
_MAX_EVENT_TYPES: Final = 60  # more are no types
_NO_ITEMS: Final = frozenset(
    ("PAYMENT", "TAX", "DISCOUNT", "DELIVERY", "REFUND", "CUSTOMER", "SEARCH", "MARKETING", "OTHER")
)
_OF_ITEM: Final = frozenset({"ITEM", "SKU", "PRICE", "QUANTITY", "VARIANT"})
_CONSENT: Final = frozenset({"CONSENT", "OPTOUT", "MARKETING"})
_CONSENT_KINDS: Final = frozenset({"boolean", "enum", "string", "int", "long"})
_NO_CONSENT: Final = frozenset({"e-mail", "UUID", "URL", "IP address", "user agent"})
_PLAIN: Final = re.compile(r"[a-z_-]+|[A-Z_-]+|\d+")
# More is named than may be meant, since nothing of it is in force.
_LIKE_CONSENT: Final = re.compile(
    r"(?i)consent|opt(?:ed)?.?(?:in|out)(?![a-z])|einwillig|zustimm|gdpr|dsgvo|privacy|permission|marketing|newsletter|"
    r"werbe|tracking|agree|acce[pt]t|unsubscri|do_?no?t|limit_?ad|no_?(?:ads?|mail|e-?mail)(?![a-z])|suppress|block|"
    r"w[ie]+ders?pr|cookie|ccpa|tcf|personali[sz]"
)
# True means no.
_OPTED_OUT: Final = re.compile(
    r"(?i)opt(?:ed|ing|s)?[ _-]?out|unsubscri|(?<![a-z])(?:do(?:es)?[ _]?no?t|not?|non|never|kein\w*|limit|stop|dis)"
    r"[ _]?(?=ad|mail|e-?mail|contact|market|track|sell|share|news|promo|personal|cookie|consent|allow|agree|accept|"
    r"subscri|want|use|werb|einwillig|zustimm)|suppress|block|w[ie]+ders?pr|refus|object|revok|withdr"
)

Record = Mapping[str, Any]


class Line(NamedTuple):
    """One line of a mapping: its value is TOML. Without a `key` it is a comment alone."""

    table: str
    key: str
    value: str
    note: str
    is_active: bool = True


class Proposal:
    """The lines for one record type.

    `packaged`: the lines of [fields] that apply unless a mapping has others; `alone`: there is no other record type, so
    this one is an event.
    """

    def __init__(
        self, schema: AvroSchema, records: Sequence[Record], packaged: Mapping[str, str], *, alone: bool
    ) -> None:
        self.record = ".".join(filter(None, (schema.get("namespace"), schema["name"])))
        # An envelope is called after what it holds in its namespace.
        names = reversed(self.record.split("."))
        self._called = next((one for one in names if {*concepts_of(one)} - {"EVENT"}), "")
        self.lines: list[Line] = []
        self.consents: list[str] = []  # candidates, as comments
        leaves = leaves_of(schema, records, self._called)
        # Of a change of a table's row the new state counts.
        is_change = any(leaf.path.startswith("after.") for leaf in leaves)
        self._leaves = [leaf for leaf in leaves if not (is_change and leaf.path.startswith("before."))]
        self._of_event = [leaf for leaf in self._leaves if not leaf.array and not is_many(leaf.source)]
        self._found = candidates(self._leaves, RULES)
        self._speaking()
        self._choose_items()
        self._required("event_id", lambda leaf: leaf.form == "UUID" and not leaf.name.around)
        self._required(
            "event_time", lambda leaf: leaf.source.kinds & _TIMES or leaf.form[:4] in ("time", "ISO ")
        )
        self._event_name(alone=alone)
        self._action_source()
        self._currency = self._currency_path()
        for target, other in ("fn", "ln"), ("ln", "fn"):
            self._name_beside(f"user_data.{target}", f"user_data.{other}")
        for target in TARGETS:
            if self._found.get(target) and target not in (*_REQUIRED, "action_source"):
                self._propose(target, self._found[target])
        for leaf in leaves:
            for target in (key for key, path in packaged.items() if path == leaf.path):
                self._cover(target, leaf)
        self._list_consents()

    @property
    def missing(self) -> list[str]:
        """Return what every event needs and this type has no path or value for."""
        return [key for key in _REQUIRED if not self._line(key)]

    def _add(self, table: str, key: str, value: str, *notes: str, is_active: bool = True) -> None:
        self.lines.append(Line(table, key, value, "; ".join(filter(None, notes)), is_active))

    def _line(self, key: str) -> str:
        """Return the value of the active line for a field; empty: there is none."""
        return next((one.value for one in self.lines if one.key == key and one.is_active), "")

    def _others(self, target: str, found: Iterable[Candidate]) -> None:
        for one in list(found)[:_MAX_OTHERS]:
            self._add("fields", target, quoted(one.leaf.path), f"or: {one.evidence}", is_active=False)

    # -- what every event needs

    def _required(self, target: str, is_like: Callable[[SampledPath], object]) -> None:
        """Propose an id or a time: without them nothing can be sent, so the best that there is must do."""
        alike = (Candidate(leaf, SURE, "values") for leaf in self._of_event if is_like(leaf))
        found = self._found[target] or [*alike]
        if not found:
            if target == "event_time":
                self._add("fields", target, '"@timestamp"', "no path is a time: Kafka's own")
            return

        def rank(one: Candidate) -> float:
            repeats = target == "event_id" and _repeats(one.leaf)
            return one.score - 0.5 * (1 - one.leaf.filled) - 0.5 * repeats

        found.sort(key=rank, reverse=True)
        leaf, doubt = found[0].leaf, ""
        if target == "event_id" and _repeats(leaf):
            doubt = "it repeats: the same id and name count once"
        elif target == "event_time" and leaf.source.kinds.isdisjoint(DAYS) and leaf.form != "ISO 8601":
            unit, note = leaf.unit or "milliseconds", f"of {leaf.path}{'' if leaf.unit else ': a guess'}"
            self._add("", "time_unit", quoted(unit), note, is_active=unit != "milliseconds")
        elif "local-" in leaf.logical or (leaf.form == "ISO 8601" and leaf.share(_has_zone) < 0.5):
            doubt = "it names no zone, and is read as UTC"
        self._add("fields", target, quoted(leaf.path), found[0].evidence, doubt)
        self._others(target, found[1:])

    def _speaking(self) -> None:
        """Find event types where no name says so ("art" is short for an article, and German for a kind)."""
        never = RULES["event_name"].never - {"ITEM"} | {"STATUS"}
        known = {one.leaf for one in self._found["event_name"]}
        for leaf in self._of_event:
            found = events_of(sorted(leaf.source.symbols or leaf.shown))
            is_other = leaf in known or never.intersection(leaf.name.own)
            if not is_other and len({*found.values()} - {"", FILTER}) > 1:
                # It is nothing else.
                for several in self._found.values():
                    several[:] = [one for one in several if one.leaf is not leaf]
                self._found["event_name"].append(Candidate(leaf, SURE, "values"))
                self._leaves.remove(leaf)

    def _event_name(self, *, alone: bool) -> None:
        """Propose what says what happened: a path, two that are joined, or the record's own name."""
        of_type = event_for(re.sub(r"[Ee]vent$", "", self._called)).replace(FILTER, "")
        read = [(one, self._events(one.leaf)) for one in self._found["event_name"]]
        for one, found in sorted(read, key=lambda pair: (-round(_known(pair[1]), 1), -pair[0].score)):
            leaf = one.leaf
            # The record's own name says more than words that are not known.
            is_unknown = not _known(found) and found and of_type
            if is_unknown or len(found) > _MAX_EVENT_TYPES or (leaf.of and not leaf.values):
                continue
            if not self._joined(leaf, _known(found)):
                hidden = () if leaf.shown else ("not shown: write a line for each value under [event_names]",)
                self._add("fields", "event_name", quoted(leaf.path), one.evidence, *hidden)
                self._event_types(found, leaf.shown and leaf.counts, leaf.source.symbols or leaf.shown)
                self._others("event_name", (other for other, _ in read if other is not one))
            return
        if of_type:
            self._add("constants", "event_name", quoted(of_type), "by the record's name")
        elif alone:
            is_undone = event_for(self._called) == FILTER
            note = "nothing says what happened: name the event"
            if is_undone:
                note = "by the record's name it was undone or failed: such records should not be sent"
            self._add("constants", "event_name", quoted("custom"), note, is_active=False)

    def _events(self, leaf: SampledPath) -> dict[str, str]:
        """Return the event that each value of a path means; empty where it is not clear."""
        context = {*leaf.name.own, *leaf.parent, *concepts_of(self._called), *leaf.said.around}
        return events_of(sorted(leaf.source.symbols or leaf.counts), context)

    def _event_types(self, found: Mapping[str, str], counts: Mapping[str, int], shown: Iterable[str]) -> None:
        """Propose a line for each event type that may be shown."""
        done = next((word for word, event in found.items() if event == "checkout"), "")
        for word in sorted(shown):
            share = f"{counts[word] / sum(counts.values()):.0%}" if counts.get(word) else ""
            if not found[word]:
                is_done = done and event_for(word, {"ORDER"}) == "checkout"
                why = f"a checkout, too? then orders count twice, beside {done}" if is_done else "decide"
                self._add("event_names", word, quoted(FILTER), share, why, is_active=False)
            elif word.lower() not in EVENT_NAMES:
                self._add("event_names", word, quoted(found[word]), share)

    def _joined(self, leaf: SampledPath, known: float) -> bool:
        """Propose an event type in two parts, if that says more than one part alone; return whether it does."""
        for other in self._of_event if leaf.shown else ():
            is_beside = (
                other is not leaf and other.beside == leaf.beside and "boolean" not in other.source.kinds
            )
            if not (is_beside and other.shown and len(other.values) == len(leaf.values)):
                continue
            one, two = sorted((leaf, other), key=self._of_event.index)
            counts = Counter(f"{a}.{b}" for a, b in zip(one.values, two.values, strict=False))
            found = events_of(sorted(counts))
            alone = max(len({event_for(word) for word in part.counts}) for part in (one, two))
            if len(counts) <= MAX_SHOWN and _known(found) > known and len({*found.values()}) > alone:
                value = f'{{ join = ["{one.path}", "{two.path}"], with = "." }}'
                self._add("fields", "event_name", value, "one event type in two parts")
                self._event_types(found, counts, counts)
                return True
        return False

    def _action_source(self) -> None:
        for one in self._found["action_source"]:
            found = {word: source_for(word) for word in sorted(one.leaf.source.symbols or one.leaf.counts)}
            # The packaged mapping has these.
            packaged = (*ACTION_SOURCES, "ios", "android")
            lines = {word: source for word, source in found.items() if word.lower() not in packaged}
            if _known(found) >= 0.6 and (one.leaf.shown or not lines):
                self._add("fields", "action_source", quoted(one.leaf.path), one.evidence)
                for word, source in lines.items():
                    note = "" if source else "decide: records of a channel without a line are refused"
                    value = quoted(source or "web")
                    self._add("action_sources", word, value, note, is_active=bool(source))
                return
        self._add("fields", "action_source", '""', "the same for all: see [constants]")
        is_web = any(self._found[f"user_data.client_{one}"] for one in ("user_agent", "ip_address"))
        at_till = not is_web and any("TILL" in leaf.words for leaf in self._leaves)
        note = f"no path says where it happened; one of {', '.join(ACTION_SOURCES)}"
        self._add("constants", "action_source", quoted("offline" if at_till else "web"), note)

    # -- other fields

    def _choose_items(self) -> None:
        """Choose the array of the items; without one, the event itself may be the one item."""
        ranked: list[tuple[float, str, dict[str, list[Candidate]]]] = []
        for array in {leaf.array: None for leaf in self._leaves if "[]" not in leaf.array}:
            within = [leaf for leaf in self._leaves if leaf.array == array]
            if not array:
                within = [leaf for leaf in within if _OF_ITEM & leaf.words.union(leaf.parent)]
            found = candidates(within, ITEM_RULES, is_item=bool(array))
            sure = {target: some[0].score for target, some in found.items() if some and some[0].score >= SURE}
            is_other = _NO_ITEMS.intersection(concepts_of(array.rpartition(".")[2]))
            if f"{CONTENTS}.id" in sure and (not array or len(sure) > 1) and not is_other:
                ranked.append((sum(sure.values()) + (is_of_items(array) if array else -0.5), array, found))
        ranked.sort(key=lambda one: -one[0])
        self._found |= ranked[0][2] if ranked else {}
        for _, array, _ in ranked[1:]:
            self._add("fields", "", "", f"{array or 'the record itself'} may be items, too: one array can be")

    def _currency_path(self) -> SampledPath | None:
        """Return the path of the currency, the one beside the value first; None: there is none, or they differ."""
        found, value = self._found[_CURRENCY], [one.leaf.beside for one in self._found[_VALUE][:1]]
        found.sort(key=lambda one: -(one.score + 0.1 * (one.leaf.beside in value)))
        sure = [one.leaf for one in found if one.score >= SURE]
        # One beside the value is its own, unless another one is there, too.
        rivals = [one for one in sure if one.beside in value] or sure
        agree = all(one.counts == sure[0].counts for one in rivals)
        return sure[0] if sure and agree else None

    def _propose(self, target: str, found: list[Candidate]) -> None:
        """Propose the surest path for a field, and others as comments."""
        # Who pays is the shopper, who receives it may be another; and an order's id is rather not the event's.
        is_user, event_id = target.startswith("user_data."), self._line("event_id")
        parts = _ADDRESS - {target} if target in _ADDRESS else ()
        address = {one.leaf.beside for other in parts for one in self._found[other]}

        def rank(one: Candidate) -> float:
            is_receiver = is_user and "DELIVERY" in one.leaf.name.around.union(one.leaf.name.own)
            is_event = target == _ORDER_ID and quoted(one.leaf.path) == event_id
            # A country, a city and a code of one address belong together.
            return one.score - 0.08 * is_receiver - 0.1 * is_event + 0.05 * (one.leaf.beside in address)

        found.sort(key=rank, reverse=True)
        if target == "custom_data.num_items" and self._line(f"{CONTENTS}.quantity"):
            return
        if target in _AMOUNTS:
            value, note, doubt = self._amount(found)
        else:
            value, note, doubt = self._special(target, found[0].leaf)
        if found[0].score < SURE:
            doubt = doubt or found[0].why
        elif target == _CURRENCY and self._currency is None:
            doubt = f"{found[1].leaf.path} is like it, and differs"
        self._add("fields", target, value, found[0].evidence, note, doubt, is_active=not doubt)
        self._others(target, found[1:])

    def _name_beside(self, target: str, other: str) -> None:
        """Find a path called name alone, beside a first or a last name: it is the other one."""
        places = {one.leaf.beside for one in self._found[other] if one.score >= SURE}
        names = [leaf for leaf in self._of_event if leaf.name.own == ("NAME",) and leaf.beside in places]
        self._found[target] = self._found[target] or [Candidate(leaf, SURE, "name") for leaf in names]

    def _special(self, target: str, leaf: SampledPath) -> money.AmountReading:
        """Return the value of a line, where it may be more than a path."""
        plain = quoted(leaf.path)
        if target == "user_data.ln":
            beside = (one for one in self._leaves if one.beside == leaf.beside)
            if infix := next((one for one in beside if one.name.own[:1] == ("INFIX",)), None):
                joined = f'{{ join = ["{infix.path}", "{leaf.path}"], with = " " }}'
                return money.AmountReading(f"{{ first = [{joined}, {plain}] }}")
        if target == "user_data.ph" and leaf.share(lambda one: str(one).startswith(("+", "00"))) < 0.5:
            return money.AmountReading(plain, "without a country's code? see phone_country")
        words = sorted(leaf.source.symbols or leaf.counts) if target == "user_data.ge" else []
        if all(not isinstance(TARGETS[target].rule(word), Omitted) for word in words):
            return money.AmountReading(plain)
        table = {word: GENDERS[key] for word in words if (key := word.lower().strip(" .")) in GENDERS}
        if not leaf.shown or len(table) < max(2, len(words) - 1):
            return money.AmountReading(plain, doubt="its words need a table")
        entries = ", ".join(f"{quoted(word)} = {quoted(gender)}" for word, gender in table.items())
        return money.AmountReading(f'{{ of = "{leaf.path}", table = {{ {entries} }} }}')

    def _amount(self, found: Sequence[Candidate]) -> money.AmountReading:
        """Read money: clear only if its unit and its currency are, and no other amount is as likely."""
        best = found[0]
        constant = "" if self._currency is not None else money.currency_named(best.leaf)
        read = money.read_amount(best.leaf, self._currency, constant)
        if self._currency is None:
            if not self._line(_CURRENCY):
                is_sure = bool(constant) and best.score >= SURE
                note = (
                    f"as {best.leaf.path} says"
                    if constant
                    else "no path is surely its currency: which is right?"
                )
                self._add("constants", _CURRENCY, quoted(constant or "EUR"), note, is_active=is_sure)
            if self._line(_CURRENCY) != quoted(constant):
                return read._replace(doubt=read.doubt or "its currency is not known")
        for rival in found[1:]:
            is_clear = not money.read_amount(rival.leaf, self._currency, constant).doubt
            if is_clear and rival.score == best.score and [*rival.leaf.values] != [*best.leaf.values]:
                return read._replace(doubt=f"{rival.leaf.path} is as likely, and differs")
        return read

    def _cover(self, target: str, leaf: SampledPath) -> None:
        """Decide about a line of the packaged mapping that would apply, because the schema has its path."""
        if self._line(target):
            return
        # A longer path is of the packaged schema itself; for money that is not enough.
        is_own = "." in leaf.path and target not in _AMOUNTS
        if fits(target, leaf) and (is_own or target not in self._found):
            note = "in force: the packaged mapping reads it"
            self._add("fields", target, quoted(leaf.path), note, is_active=False)
        else:
            self._add("fields", target, '""', f"the packaged mapping would read {leaf.path}")

    def _list_consents(self) -> None:
        for leaf in self._leaves:
            is_said = _CONSENT & leaf.words.union(leaf.parent)
            is_like = is_said or _LIKE_CONSENT.search(f"{leaf.path} {leaf.doc}")
            if is_like and leaf.source.kinds & _CONSENT_KINDS and leaf.form not in _NO_CONSENT:
                of = len(leaf.values)
                # A text may be the name of who asked for it.
                is_shown = leaf.source.kinds <= {"boolean", "enum"} or all(map(_PLAIN.fullmatch, leaf.shown))
                shown = leaf.shown if is_shown else {}
                values = [f"{word} {count / of:.0%}" if of else word for word, count in shown.items()]
                is_no, is_boolean = _is_opt_out(leaf), leaf.source.kinds == {"boolean"}
                meant = ("true means no" if is_boolean else "an opt-out") if is_no else ""
                note = "; ".join(filter(None, (meant, leaf.evidence(), ", ".join(values))))
                self.consents.append(f"require = {quoted(leaf.path.replace('[]', '[0]'))}  # {note}")
                if is_no and is_boolean:
                    self.consents.append("allowed = [false]")
                elif not is_boolean or _OPTED_OUT.search(leaf.doc):
                    self.consents.append("allowed = []  # which values are consent")


def _is_opt_out(leaf: SampledPath) -> bool:
    """Return whether a consent says no, by its name, by the name of its parent, or by its documentation."""
    name, concepts = "_".join((*leaf.above[1:], leaf.path.rpartition(".")[2])), {*leaf.name.own, *leaf.parent}
    if "OPTOUT" in concepts or _OPTED_OUT.search(CAMEL.sub("_", name)):
        return True
    # A name that says yes, with a documentation of both, is the reader's to decide.
    return "CONSENT" not in concepts and _OPTED_OUT.search(leaf.doc) is not None


def _repeats(leaf: SampledPath) -> bool:
    """Return whether an id is not another one for each event; a few records may be there twice."""
    return len(leaf.counts) < 0.9 * len(leaf.values)


def _has_zone(value: object) -> bool:
    return re.search(r"Z|[+-]\d\d:?\d\d$", str(value)) is not None


def _known(found: Mapping[str, str]) -> float:
    """Return the share of words whose meaning is clear; 0 without words."""
    return sum(map(bool, found.values())) / max(1, len(found))


def quoted(text: str) -> str:
    """Return a text as TOML."""
    return json.dumps(text, ensure_ascii=False)
