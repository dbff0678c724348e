"""Which lines a mapping of one record type should have, and which it may have.

Theory of operation. The candidates of `roles`, the surest first, become lines: the first one that is sure is active,
the others are comments (`_propose` decides). A few fields need more than a path: an event's name (`_event_name`), its
source, its items (all of one array), its money (`money`), and words that need a table (`_computed`). What cannot be
decided is a comment with the reason. Consent is never decided here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from consumer.avro.paths import AvroSchema
from consumer.commands.draft import money, vocabulary
from consumer.commands.draft.leaves import ROLES, SETS, SampledPath, is_of_items, leaves_of
from consumer.commands.draft.money import AmountReading
from consumer.commands.draft.roles import ITEM_RULES, RULES, SURE, Candidate, candidates, fits
from consumer.commands.draft.vocabulary import concepts_of, event_for, spaced
from consumer.conversion.computed.expressions import is_many
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import ACTION_SOURCES, CONTENTS, DAYS, EVENT_NAMES, FILTER, TARGETS

_REQUIRED: Final = ("event_id", "event_time", "event_name")
_VALUE, _CURRENCY, _ORDER_ID = "custom_data.value", "custom_data.currency", "custom_data.order_id"
_AMOUNTS: Final = frozenset({_VALUE, f"{CONTENTS}.item_price", "custom_data.predicted_ltv"})
_ADDRESS: Final = frozenset({"user_data.ct", "user_data.st", "user_data.zp", "user_data.country"})
_ENVELOPE: Final = re.compile(r"(?:source|transaction)\..*|ts_[mun]s")  # what a change says beside the row
_MAX_OTHERS: Final = 2  # alternatives of one field
_MAX_EVENT_TYPES: Final = 60  # more are no types
_CONSENT_KINDS: Final = frozenset({"boolean", "enum", "string", "int", "long"})
_PLAIN: Final = re.compile(r"[a-z_-]+|[A-Z_-]+|\d+")
# More is named than may be meant, since nothing of it is in force.
_LIKE_CONSENT, _OPTED_OUT = (
    re.compile(vocabulary.VOCABULARY["consent"][key]) for key in ("like", "opted_out")
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
        called = reversed(self.record.split("."))
        self._called = next((one for one in called if {*concepts_of(one)} - {"EVENT"}), "")
        self.lines: list[Line] = []
        self.consents: list[str] = []  # candidates, as comments
        leaves = leaves_of(schema, records, self._called)
        # Of a change of a table's row the new state counts.
        is_change = any(leaf.path.startswith("after.") for leaf in leaves)
        self._leaves = [leaf for leaf in leaves if not (is_change and leaf.path.startswith("before."))]
        self._of_event = [leaf for leaf in self._leaves if not leaf.array and not is_many(leaf.source)]
        self._event_name(alone=alone)
        self._found = candidates(self._leaves, RULES)
        if is_change:
            self._leave_envelope()
        self._choose_items()
        if not self._found["event_time"]:
            self._add("fields", "event_time", '"@timestamp"', "no path is a time: Kafka's own")
        self._action_source()
        self._currency = self._currency_path()
        for target, other in ("user_data.fn", "user_data.ln"), ("user_data.ln", "user_data.fn"):
            # A name alone, beside a first or a last one, is the other one.
            places = {one.leaf.beside for one in self._found[other] if one.score >= SURE}
            names = [one for one in self._of_event if {*one.own} - SETS["PERSON"] == {"NAME"}]
            alike = (Candidate(one, SURE, one.evidence("name")) for one in names if one.beside in places)
            self._found[target] = self._found[target] or [*alike]
        for target in TARGETS:
            if self._found.get(target) and target not in ("event_name", "action_source"):
                self._propose(target, self._found[target])
        for target, path in packaged.items():
            there = [leaf for leaf in leaves if f"{leaf.path}.".startswith((f"{path}.", f"{path}["))]
            if there and not self._line(target):
                self._cover(target, path, there[0])
        for leaf in self._leaves:
            self._list_consent(leaf)

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

    def _event_name(self, *, alone: bool) -> None:
        """Propose what says what happened: a path, by its name or its values, or the record's own name."""
        of_type = event_for(re.sub(r"[Ee]vent$", "", self._called))
        found = candidates(self._of_event, {"event_name": RULES["event_name"]})["event_name"]
        named, read = {one.leaf: one for one in found}, list[tuple[float, Candidate, dict[str, str]]]()
        for leaf in self._of_event:
            words = sorted(leaf.source.symbols or leaf.counts)
            if len(words) > _MAX_EVENT_TYPES or (leaf.of and not words) or not fits("event_name", leaf):
                continue
            context = {*leaf.own, *leaf.parent, *concepts_of(self._called), *leaf.said_around}
            events = vocabulary.events_of(words, context)
            known = sum(map(bool, events.values())) / max(1, len(events))
            # "art" is short for an article, and German for a kind: there the values say so.
            is_other = SETS["NO_TYPE"] & {*leaf.own} or not leaf.shown
            says = len({*events.values()} - {"", FILTER}) > 1 and not is_other
            one = named.get(leaf) or (Candidate(leaf, SURE, leaf.evidence("values")) if says else None)
            # The record's own name says more than words that are not known; and what is called a name may be anyone's.
            is_vague = of_type not in ("", FILTER) or leaf.own == ("NAME",)
            if one and (known or not events or not is_vague):
                # What is the same for all is no type of event, if there is another one.
                rank = known - 0.5 * (1 - leaf.filled) - 0.4 * (len(events) == 1)
                read.append((round(rank, 1), one, events))
        if read:
            read.sort(key=lambda rank: (-rank[0], -rank[1].score))
            _, one, events = read[0]
            hidden = "" if one.leaf.shown else "not shown: write a line for each value under [event_names]"
            self._add("fields", "event_name", quoted(one.leaf.path), one.evidence, hidden)
            self._event_types(one.leaf, events)
            self._others("event_name", (other for _, other, _ in read[1:]))
            if one.leaf not in named:
                self._leaves.remove(one.leaf)  # It is nothing else.
        elif of_type not in ("", FILTER):
            self._add("constants", "event_name", quoted(of_type), "by the record's name")
        elif alone:
            undone = "by the record's name it was undone or failed: such records should not be sent"
            note = undone if of_type else "nothing says what happened: name the event"
            self._add("constants", "event_name", quoted("custom"), note, is_active=False)

    def _event_types(self, leaf: SampledPath, found: Mapping[str, str]) -> None:
        """Propose a line for each event type that may be shown."""
        done = next((word for word, event in found.items() if event == "checkout"), "")
        for word, count in leaf.shown.items():
            share = f"{count / leaf.counts.total():.0%}" if count else ""
            if not found[word]:
                is_done = done and event_for(word, {"ORDER"}) == "checkout"
                why = f"a checkout, too? then orders count twice, beside {done}" if is_done else "decide"
                self._add("event_names", word, quoted(FILTER), share, why, is_active=False)
            elif word.lower() not in EVENT_NAMES:
                self._add("event_names", word, quoted(found[word]), share)

    def _action_source(self) -> None:
        for one in self._found["action_source"]:
            found = {
                word: vocabulary.source_for(word)
                for word in sorted(one.leaf.source.symbols or one.leaf.counts)
            }
            # The packaged mapping has these.
            lines = [word for word in found if word.lower() not in (*ACTION_SOURCES, "ios", "android")]
            is_known = sum(map(bool, found.values())) >= 0.6 * len(found) > 0
            if is_known and (one.leaf.shown or not lines):
                self._add("fields", "action_source", quoted(one.leaf.path), one.evidence)
                for word in lines:
                    note = "" if found[word] else "decide: records of a channel without a line are refused"
                    value = quoted(found[word] or "web")
                    self._add("action_sources", word, value, note, is_active=bool(found[word]))
                return
        self._add("fields", "action_source", '""', "the same for all: see [constants]")
        is_web = any(self._found[f"user_data.client_{one}"] for one in ("user_agent", "ip_address"))
        at_till = not is_web and any("TILL" in leaf.words for leaf in self._leaves)
        note = f"no path says where it happened; one of {', '.join(ACTION_SOURCES)}"
        self._add("constants", "action_source", quoted("offline" if at_till else "web"), note)

    # -- other fields

    def _leave_envelope(self) -> None:
        """Drop what a change says beside the row, for each field that most rows have a sure path for."""
        of_row = {
            target: [one for one in found if not _ENVELOPE.fullmatch(one.leaf.path)]
            for target, found in self._found.items()
        }
        has_own = {
            target
            for target, found in of_row.items()
            if any(one.score >= SURE and one.leaf.filled >= 0.5 for one in found)
        }
        # A row with an id takes no order's id from the change around it.
        has_own |= {_ORDER_ID} if "event_id" in has_own else set()
        self._found |= {target: of_row[target] for target in has_own}

    def _choose_items(self) -> None:
        """Choose the array of the items; without one, the event itself may be the one item."""
        ranked: list[tuple[float, str, dict[str, list[Candidate]]]] = []
        for array in {leaf.array: None for leaf in self._leaves if "[]" not in leaf.array}:
            within = [leaf for leaf in self._leaves if leaf.array == array]
            if not array:
                within = [leaf for leaf in within if SETS["OF_ITEM"] & leaf.words.union(leaf.parent)]
            found = candidates(within, ITEM_RULES, is_item=bool(array))
            sure = {target: some[0].score for target, some in found.items() if some and some[0].score >= SURE}
            is_other = SETS["NO_ITEMS"].intersection(concepts_of(array.rpartition(".")[2]))
            if f"{CONTENTS}.id" in sure and (not array or len(sure) > 1) and not is_other:
                ranked.append((sum(sure.values()) + (is_of_items(array) if array else -0.5), array, found))
        ranked.sort(key=lambda one: -one[0])
        self._found |= ranked[0][2] if ranked else {}
        for _, array, _ in ranked[1:]:
            if array:
                self._add("fields", "", "", f"{array} may be items, too: one array can be")

    def _currency_path(self) -> SampledPath | None:
        """Return the path of the currency, the one beside the value first; None: there is none, or they differ."""
        value = [one.leaf.beside for one in self._found[_VALUE][:1]]
        sure = [one.leaf for one in self._found[_CURRENCY] if one.score >= SURE]
        # One beside the value is its own, unless another one is there, too.
        rivals = [one for one in sure if one.beside in value] or sure
        return rivals[0] if rivals and all(one.counts == rivals[0].counts for one in rivals) else None

    def _propose(self, target: str, found: list[Candidate]) -> None:
        """Propose the surest path for a field, and others as comments. It is in force if nothing is doubtful, or if no
        event goes without it."""
        is_user, event_id = target.startswith("user_data."), self._line("event_id")
        parts = _ADDRESS - {target} if target in _ADDRESS else ()
        address = {one.leaf.beside for other in parts for one in self._found[other]}

        def rank(one: Candidate) -> float:
            if target in _REQUIRED:
                repeats = target == "event_id" and _repeats(one.leaf)
                return one.score - 0.5 * (1 - one.leaf.filled) - 0.5 * repeats
            # Who pays is the shopper, who receives it may be another; and an order's id is rather not the event's.
            is_receiver = is_user and "DELIVERY" in one.leaf.around.union(one.leaf.own)
            is_event = target == _ORDER_ID and quoted(one.leaf.path) == event_id
            # A country, a city and a code of one address belong together; and money is read with this currency.
            is_near = 0.05 * (one.leaf.beside in address) + (one.leaf is self._currency)
            # "total_price" rather than "current_total_price".
            is_longer = 0.001 * len(spaced(one.leaf.path).split()) if target == _VALUE else 0
            return one.score - 0.08 * is_receiver - 0.1 * is_event + is_near - is_longer

        found.sort(key=rank, reverse=True)
        if target == "custom_data.num_items" and self._line(f"{CONTENTS}.quantity"):
            return
        read = self._amount(found) if target in _AMOUNTS else self._computed(target, found[0].leaf)
        doubt = found[0].why if found[0].score < SURE else read.doubt
        if not doubt and target == _CURRENCY and self._currency is None:
            doubt = f"{found[1].leaf.path} is like it, and differs"
        is_active = not doubt or target in _REQUIRED
        self._add("fields", target, read.value, found[0].evidence, read.note, doubt, is_active=is_active)
        self._others(target, found[1:])

    def _computed(self, target: str, leaf: SampledPath) -> AmountReading:
        """Return the value of a line, where it may be more than a path, and what is to be said of it."""
        plain = quoted(leaf.path)
        if target == "event_id" and _repeats(leaf):
            return AmountReading(plain, "it repeats: the same id and name count once")
        if target == "event_time":
            if leaf.source.kinds.isdisjoint(DAYS) and leaf.form != "ISO 8601":
                unit, note = leaf.unit or "milliseconds", f"of {leaf.path}{'' if leaf.unit else ': a guess'}"
                self._add("", "time_unit", quoted(unit), note, is_active=unit != "milliseconds")
            elif "local-" in leaf.logical or (leaf.form == "ISO 8601" and leaf.share(_has_zone) < 0.5):
                return AmountReading(plain, "it names no zone, and is read as UTC")
        if target == "user_data.ln":
            beside = (one for one in self._leaves if one.beside == leaf.beside)
            if infix := next((one for one in beside if one.own[:1] == ("INFIX",)), None):
                joined = f'{{ join = ["{infix.path}", "{leaf.path}"], with = " " }}'
                return AmountReading(f"{{ first = [{joined}, {plain}] }}")
        if target == "user_data.ph" and leaf.share(lambda one: str(one).startswith(("+", "00"))) < 0.5:
            return AmountReading(plain, "without a country's code? see phone_country")
        words = sorted(leaf.source.symbols or leaf.counts) if target == "user_data.ge" else []
        if all(not isinstance(TARGETS[target].rule(word), Omitted) for word in words):
            return AmountReading(plain)
        table = {
            word: vocabulary.GENDERS[key]
            for word in words
            if (key := word.lower().strip(" .")) in vocabulary.GENDERS
        }
        if not leaf.shown or len(table) < max(2, len(words) - 1):
            return AmountReading(plain, doubt="its words need a table")
        entries = ", ".join(f"{quoted(word)} = {quoted(gender)}" for word, gender in table.items())
        return AmountReading(f'{{ of = "{leaf.path}", table = {{ {entries} }} }}')

    def _amount(self, found: Sequence[Candidate]) -> AmountReading:
        """Read money: clear only if its unit and its currency are, and no other amount is as likely."""
        best = found[0]
        constant = "" if self._currency is not None else money.currency_named(best.leaf)
        read = money.read_amount(best.leaf, self._currency, constant)
        if self._currency is None:
            if not self._line(_CURRENCY):
                is_sure = bool(constant) and best.score >= SURE
                note = f"as {best.leaf.path} says" if constant else "no path is its currency: which is right?"
                self._add("constants", _CURRENCY, quoted(constant or "EUR"), note, is_active=is_sure)
            if self._line(_CURRENCY) != quoted(constant):
                return read._replace(doubt=read.doubt or "its currency is not known")
        for rival in found[1:]:
            is_clear = not money.read_amount(rival.leaf, self._currency, constant).doubt
            if is_clear and rival.score == best.score and [*rival.leaf.values] != [*best.leaf.values]:
                return read._replace(doubt=f"{rival.leaf.path} is as likely, and differs")
        return read

    def _cover(self, target: str, path: str, leaf: SampledPath) -> None:
        """Decide about a line of the packaged mapping that would apply, because the schema has its path, or more below:
        `leaf`."""
        # A longer path is of the packaged schema itself; for money that is not enough.
        is_own = "." in path and target not in _AMOUNTS
        if leaf.path == path and fits(target, leaf) and (is_own or target not in self._found):
            note = "in force: the packaged mapping reads it"
            self._add("fields", target, quoted(path), note, is_active=False)
        else:
            self._add("fields", target, '""', f"the packaged mapping would read {path}")

    def _list_consent(self, leaf: SampledPath) -> None:
        """List a path that may be consent, as a comment."""
        said = {*leaf.words, *leaf.parent}
        is_like = SETS["CONSENT"] & said or _LIKE_CONSENT.search(spaced(f"{leaf.path} {leaf.doc}"))
        is_other = leaf.source.kinds.isdisjoint(_CONSENT_KINDS) or leaf.form in ROLES["no_consent"]
        if not is_like or is_other:
            return
        # A text may be the name of who asked for it.
        is_shown = leaf.source.kinds <= {"boolean", "enum"} or all(map(_is_plain, leaf.shown))
        shown, of = leaf.shown if is_shown else {}, len(leaf.values)
        values = ", ".join(f"{word} {count / of:.0%}" if of else word for word, count in shown.items())
        is_boolean = leaf.source.kinds == {"boolean"}
        # A name that says yes, with a documentation of both, is the reader's to decide.
        name = spaced(" ".join((*leaf.above[1:], leaf.path.rpartition(".")[2])))
        concepts, of_doc = {*leaf.own, *leaf.parent}, _OPTED_OUT.search(spaced(leaf.doc))
        is_no = "OPTOUT" in concepts or _OPTED_OUT.search(name) or ("CONSENT" not in concepts and of_doc)
        meant = ("true means no" if is_boolean else "an opt-out") if is_no else ""
        note = "; ".join(filter(None, (meant, leaf.evidence(), values)))
        self.consents.append(f"require = {quoted(leaf.path.replace('[]', '[0]'))}  # {note}")
        if is_no and is_boolean:
            self.consents.append("allowed = [false]")
        elif not is_boolean or of_doc:
            self.consents.append("allowed = []  # which values are consent")


def _repeats(leaf: SampledPath) -> bool:
    # A few records may be there twice.
    return len(leaf.counts) < 0.9 * len(leaf.values)


def _is_plain(word: str) -> bool:
    return _PLAIN.fullmatch(word) is not None or all(map(str.isupper, concepts_of(word)))


def _has_zone(value: object) -> bool:
    return re.search(r"Z|[+-]\d\d:?\d\d$", str(value)) is not None


def quoted(text: str) -> str:
    """Return a text as TOML."""
    return json.dumps(text, ensure_ascii=False)
