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
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

from consumer.avro.paths import AvroSchema
from consumer.commands.draft import money
from consumer.commands.draft.leaves import LEAST_RECORDS, MAX_SHOWN, SampledPath, is_of_items, leaves_of
from consumer.commands.draft.roles import ITEM_RULES, RULES, SURE, Candidate, candidates
from consumer.commands.draft.vocabulary import GENDERS, concepts_of, event_for, events_of, source_for
from consumer.conversion.computed.expressions import is_many
from consumer.conversion.normalise import Omitted
from consumer.conversion.targets import ACTION_SOURCES, CONTENTS, DAYS, EVENT_NAMES, FILTER, TARGETS

_REQUIRED: Final = ("event_id", "event_time", "event_name")
_VALUE, _CURRENCY, _ORDER_ID = "custom_data.value", "custom_data.currency", "custom_data.order_id"
_AMOUNTS: Final = frozenset({_VALUE, f"{CONTENTS}.item_price", "custom_data.predicted_ltv"})
_ADDRESS: Final = frozenset({"user_data.ct", "user_data.st", "user_data.zp", "user_data.country"})
_NAMES: Final = {"user_data.fn": "user_data.ln", "user_data.ln": "user_data.fn"}
_MAX_OTHERS: Final = 2  # alternatives of one field
_MAX_EVENT_TYPES: Final = 60  # more are no types
_NO_ITEMS: Final = frozenset("PAYMENT TAX DISCOUNT DELIVERY REFUND CUSTOMER SEARCH MARKETING OTHER".split())  # noqa: SIM905
_OF_ITEM: Final = frozenset({"ITEM", "SKU", "PRICE", "QUANTITY", "VARIANT"})
_CONSENT_KINDS: Final = frozenset({"boolean", "enum", "string", "int", "long"})
_NO_CONSENT: Final = frozenset({"e-mail", "UUID", "URL", "IP address", "user agent"})
# More is named than may be meant, since nothing of it is in force.
_LIKE_CONSENT: Final = re.compile(
    r"consent|opt.?(?:in|out)(?![a-z])|einwillig|zustimm|toestemm|gdpr|dsgvo|rgpd|privacy|permission|marketing|"
    r"newsletter|werbe|tracking|agree|acce[pt]t|acepta|publici|unsubscri|do_?not_?(?:sell|track)|ccpa|tcf|personali[sz]",
    re.IGNORECASE,
)


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
        self,
        schema: AvroSchema,
        records: Sequence[Mapping[str, Any]],
        packaged: Mapping[str, str],
        *,
        alone: bool,
    ) -> None:
        self.record = ".".join(filter(None, (schema.get("namespace"), schema["name"])))
        # An envelope is called after what it holds in its namespace.
        self._called = next(
            (one for one in reversed(self.record.split(".")) if {*concepts_of(one)} - {"EVENT"}), ""
        )
        self.lines: list[Line] = []
        self.consents: list[str] = []  # candidates, as comments
        self._schema = schema
        leaves = leaves_of(schema, records, self._called)
        # Of a change of a table's row the new state counts.
        is_change = any(leaf.path.startswith("after.") for leaf in leaves)
        self._leaves = [leaf for leaf in leaves if not (is_change and leaf.path.startswith("before."))]
        self._of_event = [leaf for leaf in self._leaves if not leaf.array and not is_many(leaf.source)]
        self._found = candidates([leaf for leaf in self._leaves if not is_of_items(leaf.array)], RULES)
        # Where no name says so ("art" is short for an article, and German for a kind), values may.
        never = RULES["event_name"].never - {"ITEM"} | {"STATUS"}
        named = {one.leaf.path for one in self._found["event_name"]}
        speaking = [
            leaf
            for leaf in self._of_event
            if leaf.path not in named
            and not {*leaf.name.own} & never
            and len({*events_of(sorted(leaf.source.symbols or leaf.shown), ()).values()} - {"", FILTER}) > 1
        ]
        self._found["event_name"] += [Candidate(leaf, SURE, "values") for leaf in speaking]
        self._leaves = [leaf for leaf in self._leaves if leaf not in speaking]  # it is nothing else
        self._choose_items()
        self._required()
        self._event_name(alone=alone)
        self._action_source()
        self._currency = self._currency_path()
        for target in TARGETS:
            if target in self._found and target not in (*_REQUIRED, "action_source"):
                self._propose(target, self._found[target])
        self._cover(packaged)
        self._list_consents()

    @property
    def missing(self) -> list[str]:
        """Return what every event needs and this type has no path or value for."""
        return [key for key in _REQUIRED if not self._line(key)]

    def _add(self, table: str, key: str, value: str, note: str, is_active: bool = True) -> None:
        self.lines.append(Line(table, key, value, note, is_active))

    def _line(self, key: str, *tables: str) -> str:
        """Return the value of the active line for a field; empty: there is none."""
        found = (
            one.value
            for one in self.lines
            if one.key == key and one.is_active and one.table in (tables or (one.table,))
        )
        return next(found, "")

    def _others(self, target: str, found: Iterable[Candidate]) -> None:
        for one in list(found)[:_MAX_OTHERS]:
            self._add("fields", target, _quoted(one.leaf.path), f"or: {one.evidence}", False)

    # -- what every event needs

    def _required(self) -> None:
        """Propose an id and a time: without them nothing can be sent, so the best that there is must do."""
        ids, times = self._found["event_id"], self._found["event_time"]
        known = {one.leaf.path for one in ids}
        uuids = (
            leaf
            for leaf in self._of_event
            if leaf.form == "UUID" and not leaf.name.around and leaf.path not in known
        )
        ids += [Candidate(leaf, SURE, "values") for leaf in uuids]
        if not times:
            alike = (
                leaf
                for leaf in self._of_event
                if leaf.source.kinds & (DAYS - {"date"}) or leaf.form[:4] in ("time", "ISO ")
            )
            times += [Candidate(leaf, SURE, "values") for leaf in alike]
        for target, found in (("event_id", ids), ("event_time", times)):
            found.sort(
                key=lambda one: (
                    -(
                        one.score
                        - 0.5 * (1 - one.leaf.filled)
                        - 0.5 * (target == "event_id" and _repeats(one.leaf))
                    )
                )
            )
            if not found and target == "event_time":
                self._add(
                    "fields",
                    target,
                    '"@timestamp"',
                    "no path is a time: Kafka's own, which records of a file lack",
                )
            if not found:
                continue
            leaf, doubts = found[0].leaf, [found[0].evidence]
            if target == "event_id" and leaf.filled < 1:
                doubts.append("records without one are refused")
            if target == "event_id" and _repeats(leaf):
                doubts.append("it repeats: the same id and name count once")
            if target == "event_time" and leaf.source.kinds.isdisjoint(DAYS) and leaf.form != "ISO 8601":
                unit = leaf.unit or "milliseconds"
                self._add(
                    "",
                    "time_unit",
                    _quoted(unit),
                    f"of {leaf.path}{'' if leaf.unit else ': a guess'}",
                    unit != "milliseconds",
                )
            no_zone = (
                leaf.form == "ISO 8601"
                and leaf.share(lambda value: not re.search(r"Z|[+-]\d\d:?\d\d$", str(value))) > 0.5
            )
            if target == "event_time" and (no_zone or "local-" in leaf.logical):
                doubts.append("it names no zone, and is read as UTC")
            self._add("fields", target, _quoted(leaf.path), "; ".join(doubts))
            self._others(target, found[1:])

    def _event_name(self, *, alone: bool) -> None:
        """Propose what says what happened: a path, two that are joined, a union's branch, or the record's own name."""
        of_type = event_for(re.sub(r"[Ee]vent$", "", self._called))
        of_type = "" if of_type == FILTER else of_type
        # "OrderPlaced" says what happened; an order may have got further since.
        is_clear = bool(of_type) and len({*concepts_of(self._called)} - {"EVENT"}) > 1
        for one in sorted(
            self._found["event_name"], key=lambda one: (-round(_known(self._events(one.leaf)), 1), -one.score)
        ):
            leaf, found = one.leaf, self._events(one.leaf)
            # The record's own name says more than words that are not known.
            is_one = not (is_clear and "STATUS" in leaf.name.own) and (
                _known(found) or not (found and of_type)
            )
            if not is_one or len(found) > _MAX_EVENT_TYPES or (leaf.of and not leaf.values):
                continue
            if not self._joined(leaf, _known(found)):
                self._add("fields", "event_name", _quoted(leaf.path), one.evidence)
                self._event_types(found, leaf.counts if leaf.shown else {}, leaf.source.symbols or leaf.shown)
                if not leaf.shown:
                    note = f"{leaf.path} is text, not shown: write a line for each value that is no name of Pinterest's"
                    self._add("event_names", "", "", note)
                self._add(
                    "",
                    "unknown_event_name",
                    '"filter"',
                    "then event types without a line are not sent",
                    False,
                )
                self._others("event_name", (other for other in self._found["event_name"] if other is not one))
            return
        for field in self._schema["fields"]:
            branches = field["type"] if isinstance(field["type"], list) else []
            names = [
                one["name"].rpartition(".")[2]
                for one in branches
                if isinstance(one, dict) and one.get("type") == "record"
            ]
            if len(names) > 1 and any(map(event_for, names)):
                self._add(
                    "fields", "event_name", f'{{ branch = "{field["name"]}" }}', "the record's type there"
                )
                self._event_types(events_of(names, ()), {}, names)
                return
        if of_type or alone:
            note = "by the record's name" if of_type else "nothing says what happened: name the event"
            self._add("constants", "event_name", _quoted(of_type or "custom"), note)

    def _events(self, leaf: SampledPath) -> dict[str, str]:
        """Return the event that each value of a path means; empty where it is not clear."""
        context = {*leaf.name.own, *leaf.parent, *concepts_of(self._called), *leaf.said.around}
        # A state is one of an order, where there is one.
        if "STATUS" in context and self._found[_VALUE]:
            context.add("ORDER")
        return events_of(sorted(leaf.source.symbols or leaf.counts), context)

    def _event_types(self, found: Mapping[str, str], counts: Mapping[str, int], shown: Iterable[str]) -> None:
        """Propose a line for each event type that may be shown."""
        done = next((word for word, event in found.items() if event == "checkout"), "")
        for word in sorted(shown):
            share = f"{counts[word] / sum(counts.values()):.0%}" if counts.get(word) else ""
            if found[word] and word.lower() not in EVENT_NAMES:
                self._add("event_names", word, _quoted(found[word]), share)
            elif not found[word]:
                why = f"a checkout, too? then orders count twice, beside {done}" if done else ""
                is_done = event_for(word, {"ORDER"}) == "checkout"
                note = "; ".join(
                    filter(None, (share, why if is_done and why else "no event is like it: decide"))
                )
                self._add("event_names", word, _quoted(FILTER), note, False)

    def _joined(self, leaf: SampledPath, known: float) -> bool:
        """Propose an event type in two parts, if that says more than one part alone; return whether it does."""
        beside = [
            one
            for one in self._of_event
            if one.beside == leaf.beside and one.shown and one.source.kinds <= {"string", "enum"}
        ]
        for one, other in combinations(beside, 2):
            if (
                leaf not in (one, other)
                or len(one.values) != len(other.values)
                or len(one.values) < LEAST_RECORDS
            ):
                continue
            counts = Counter(f"{a}.{b}" for a, b in zip(one.values, other.values, strict=True))
            found = events_of(sorted(counts), ())
            alone = max(len({event_for(word) for word in part.counts}) for part in (one, other))
            if len(counts) <= MAX_SHOWN and _known(found) > known and len({*found.values()}) > alone:
                self._add(
                    "fields",
                    "event_name",
                    f'{{ join = ["{one.path}", "{other.path}"], with = "." }}',
                    "one event type in two parts",
                )
                self._event_types(found, counts, counts)
                return True
        return False

    def _action_source(self) -> None:
        for one in self._found["action_source"]:
            found = {word: source_for(word) for word in sorted(one.leaf.source.symbols or one.leaf.counts)}
            # The packaged mapping has these.
            lines = {
                word: source
                for word, source in found.items()
                if word.lower() not in (*ACTION_SOURCES, "ios", "android")
            }
            if _known(found) < 0.6 or (lines and not one.leaf.shown):
                continue
            self._add("fields", "action_source", _quoted(one.leaf.path), one.evidence)
            for word, source in lines.items():
                note = "" if source else "decide: records of a channel without a line are refused"
                self._add("action_sources", word, _quoted(source or "web"), note, bool(source))
            return
        self._add("fields", "action_source", '""', "the same for all: see [constants]")
        at_till = any("TILL" in (*leaf.name.own, *leaf.said.own, *leaf.said.around) for leaf in self._leaves)
        is_web = any(self._found[f"user_data.client_{one}"] for one in ("user_agent", "ip_address"))
        note = f"no path says where it happened; one of {', '.join(ACTION_SOURCES)}"
        self._add("constants", "action_source", _quoted("offline" if at_till and not is_web else "web"), note)

    # -- other fields

    def _choose_items(self) -> None:
        """Choose the array of the items; without one, the event itself may be the one item."""
        ranked: list[tuple[float, str, dict[str, list[Candidate]]]] = []
        for array in dict.fromkeys(leaf.array for leaf in self._leaves):
            said = {*concepts_of(array.rpartition(".")[2])}
            within = [
                leaf
                for leaf in self._leaves
                if leaf.array == array
                and (array or {*leaf.name.own, *leaf.said.own, *leaf.parent} & _OF_ITEM)
            ]
            found = candidates(within, ITEM_RULES, is_item=bool(array))
            sure = {
                target: several[0].score
                for target, several in found.items()
                if several and several[0].score >= SURE
            }
            if (
                f"{CONTENTS}.id" in sure
                and len(sure) > (0 if array else 1)
                and not said & _NO_ITEMS
                and "[]" not in array
            ):
                ranked.append((sum(sure.values()) + (is_of_items(array) if array else -0.5), array, found))
        ranked.sort(key=lambda one: -one[0])
        for _, _, found in ranked[:1]:
            self._found |= found
        for _, array, _ in ranked[1:]:
            self._add(
                "fields",
                "",
                "",
                f"{array or 'the record itself'} may be items, too: all item fields come from one array",
            )

    def _currency_path(self) -> SampledPath | None:
        """Return the path of the currency, the one beside the value first; None: there is none, or they differ."""
        found = self._found[_CURRENCY]
        value = self._found[_VALUE][0].leaf.beside if self._found[_VALUE] else ""
        found.sort(key=lambda one: -(one.score + 0.1 * (one.leaf.beside == value)))
        sure = [one.leaf for one in found if one.score >= SURE]
        agree = all(one.counts.keys() == sure[0].counts.keys() for one in sure)
        return sure[0] if sure and (agree or sure[0].beside == value) else None

    def _propose(self, target: str, found: list[Candidate]) -> None:
        if not found and target == _VALUE:
            self._sum()
        if not found and target in _NAMES:
            found = self._name_beside(_NAMES[target])
        # Who pays is the shopper, who receives it may be another; and an order's id is rather not the event's.
        event_id = self._line("event_id")
        is_user = target.startswith("user_data.")
        others = (
            {one.leaf.beside for other in _ADDRESS - {target} for one in self._found[other]}
            if target in _ADDRESS
            else ()
        )

        def rank(one: Candidate) -> float:
            is_receiver = is_user and "DELIVERY" in one.leaf.name.around.union(one.leaf.name.own)
            is_event = target == _ORDER_ID and _quoted(one.leaf.path) == event_id
            # A country, a city and a code of one address belong together.
            return one.score - 0.08 * is_receiver - 0.1 * is_event + 0.05 * (one.leaf.beside in others)

        found.sort(key=rank, reverse=True)
        if not found or (target == "custom_data.num_items" and self._line(f"{CONTENTS}.quantity")):
            return
        if target in _AMOUNTS:
            self._amount(target, found)
            return
        leaf, is_sure, notes = found[0].leaf, found[0].score >= SURE, [found[0].evidence]
        value, doubt = self._special(target, leaf)
        if target == _CURRENCY and self._currency is None and is_sure:
            doubt = f"{found[1].leaf.path} is like it, and differs"
        # Numbers without a country's code are sent as they are.
        is_local = (
            target == "user_data.ph"
            and leaf.share(lambda number: str(number)[:1] == "+" or str(number)[:2] == "00") < 0.5
        )
        notes += [doubt or "not sure"] if doubt or not is_sure else []
        notes += ["without a country's code? see phone_country"] if is_local else []
        self._add("fields", target, value, "; ".join(notes), is_sure and not doubt)
        self._others(target, found[1:])

    def _special(self, target: str, leaf: SampledPath) -> tuple[str, str]:
        """Return the value of a line, where it may be more than a path, and what is doubtful about it."""
        if target == "user_data.ln":
            for infix in (
                one for one in self._leaves if one.name.own[:1] == ("INFIX",) and one.beside == leaf.beside
            ):
                return (
                    f'{{ first = [{{ join = ["{infix.path}", "{leaf.path}"], with = " " }}, "{leaf.path}"] }}',
                    "",
                )
        words = sorted(leaf.source.symbols or leaf.counts) if target == "user_data.ge" else []
        if all(not isinstance(TARGETS[target].rule(word), Omitted) for word in words):
            return _quoted(leaf.path), ""
        table = {word: gender for word in words if (gender := GENDERS.get(word.lower().strip(" .")))}
        entries = ", ".join(f"{_quoted(word)} = {_quoted(gender)}" for word, gender in table.items())
        if not leaf.shown or len(table) < 2 or len(table) < len(words) - 1:
            return _quoted(leaf.path), "its words need a table"
        return f'{{ of = "{leaf.path}", table = {{ {entries} }} }}', ""

    def _name_beside(self, other: str) -> list[Candidate]:
        """Return a path called name alone, beside a first or a last name: it is the other one."""
        places = {one.leaf.beside for one in self._found[other] if one.score >= SURE}
        names = (
            leaf for leaf in self._of_event if leaf.name.own == ("NAME",) and leaf.source.kinds == {"string"}
        )
        return [Candidate(leaf, SURE, "name") for leaf in names if leaf.beside in places]

    def _amount(self, target: str, found: list[Candidate]) -> None:
        """Propose money: active only if its unit and its currency are clear, and no other amount is as likely."""
        constant = "" if self._currency is not None else money.currency_named(found[0].leaf)
        if constant and found[0].score >= SURE and not self._line(_CURRENCY):
            self._add("constants", _CURRENCY, _quoted(constant), f"as {found[0].leaf.path} says")
        read = [money.read_amount(one.leaf, self._currency, constant) for one in found]
        # The same amount in a clear unit may stand beside.
        if len(read) > 1 and read[0].doubt and not read[1].doubt and found[1].score > found[0].score - 0.12:
            found, read = [found[1], found[0], *found[2:]], [read[1], read[0], *read[2:]]
        # One key of a list of keys and values may hold numbers of several types: then one of them shows the unit.
        kin = [
            one.leaf
            for one in found
            if one.leaf.called and one.leaf.called == found[0].leaf.called and one.leaf.values
        ]
        if len(kin) > 1 and any(leaf.has_fraction for leaf in kin):
            paths = ", ".join(_quoted(leaf.path) for leaf in kin)
            found, read = found[:1], [money.Money(f"{{ first = [{paths}] }}", "one value in several types")]
        best, doubts = found[0], [read[0].doubt]
        for rival, other in zip(found[1:], read[1:], strict=True):
            if (
                rival.score == best.score
                and not other.doubt
                and list(rival.leaf.values) != list(best.leaf.values)
            ):
                doubts.append(f"{rival.leaf.path} is as likely, and differs")
        if self._currency is None and not constant:
            doubts.append("its currency is not known: uncomment it with custom_data.currency")
        doubts.append("" if best.score >= SURE else "not sure")
        is_sure = not any(doubts)
        self._add(
            "fields",
            target,
            read[0].value,
            "; ".join(filter(None, (best.evidence, read[0].note, *doubts))),
            is_sure,
        )
        self._others(target, found[1:])
        if self._currency is None and not constant and target == _VALUE:
            self._add("constants", _CURRENCY, '"EUR"', "no path is a currency: write the right one", False)

    def _sum(self) -> None:
        """Propose the sum of the items where no path is the value of all."""
        price, count = (self._found.get(f"{CONTENTS}.{key}", [])[:1] for key in ("item_price", "quantity"))
        if not price or not price[0].leaf.array or price[0].score < SURE:
            return
        read = money.read_amount(price[0].leaf, self._currency, "")
        operand = f"{{ multiply = [{read.value}, {_quoted(count[0].leaf.path)}] }}" if count else read.value
        # Shipping and discounts may be missing from it: only the user knows.
        note = "; ".join(filter(None, ("no path is the value: the sum of the items?", read.doubt)))
        self._add("fields", _VALUE, f"{{ sum = {operand} }}", note, False)

    def _cover(self, packaged: Mapping[str, str]) -> None:
        """Decide about the packaged mapping's lines that would apply because the schema has their path."""
        paths = {leaf.path: leaf for leaf in self._leaves}
        for target, path in packaged.items():
            if path in paths and not self._line(target, "fields"):
                # A longer path is of the packaged schema itself; for money that is not enough.
                is_kept = target not in self._found or ("." in path and target not in _AMOUNTS)
                # One comment is enough.
                self.lines = [
                    one
                    for one in self.lines
                    if not (is_kept and (one.key, one.value) == (target, _quoted(path)))
                ]
                note = f"in force: the packaged mapping reads it; {paths[path].evidence()}".rstrip("; ")
                self._add("fields", target, _quoted(path) if is_kept else '""',
                          note if is_kept else f"the packaged mapping would read {path}", not is_kept)  # fmt: skip

    def _list_consents(self) -> None:
        for leaf in self._leaves:
            said = {*leaf.name.own, *leaf.said.own, *leaf.said.around, *leaf.parent}
            is_like = said & {"CONSENT", "MARKETING"} or _LIKE_CONSENT.search(f"{leaf.path} {leaf.doc}")
            if is_like and leaf.source.kinds & _CONSENT_KINDS and leaf.form not in _NO_CONSENT:
                values = [
                    f"{word} {count / len(leaf.values):.0%}" if leaf.values else word
                    for word, count in leaf.shown.items()
                ]
                note = "; ".join(filter(None, (leaf.evidence(), ", ".join(values))))
                self.consents.append(f"require = {_quoted(leaf.path.replace('[]', '[0]'))}  # {note}")
                if leaf.source.kinds != {"boolean"}:
                    self.consents.append("allowed = []  # which values are consent")


def _repeats(leaf: SampledPath) -> bool:
    """Return whether an id is not another one for each event; a few records may be there twice."""
    return len(leaf.counts) < 0.9 * len(leaf.values)


def _known(found: Mapping[str, str]) -> float:
    """Return the share of words whose meaning is clear; 0 without words."""
    return sum(map(bool, found.values())) / max(1, len(found))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
