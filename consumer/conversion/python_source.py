"""Writes the Python that converts events under one mapping: straight-line code, one function.

Theory of operation. Interpreting a mapping for each event costs more than the conversion itself, so the
mapping is written out as source once, at start, and compiled. Two versions come from the same writer:

- *trusting*: values have the types the schema promises; fields are subscripted, text is checked inline, rules
  are asked through caches. What breaks the promise raises, and the event is converted again by
- *forgiving*: every step is checked, nothing is cached, every value goes through its rule.

Where both give an answer it is the same (a property test holds them, and a plain interpreter of the mapping,
against each other). All that enters the source are names made here, numbers, and `repr` of text; rules,
warnings and refusals are bound as constants.

The order is that of decisions: name, consent, account, source, id, time, the rest of the event, user data,
identity, custom data. The first refusal ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.avro.paths import EACH, Source
from consumer.avro.source_writer import Writer
from consumer.conversion import decisions as decide
from consumer.conversion.amounts import MAX_COUNT, amount, count, is_zero
from consumer.conversion.decisions import REFUSALS
from consumer.conversion.fields import MOST_LANGUAGES, Fields, Task, Way, is_quantity
from consumer.conversion.normalise import LeftOut, text_of
from consumer.conversion.rules import Rule, click_id_of, is_crawler, total
from consumer.conversion.targets import CONTENTS, DECIDED, TARGETS, Target
from consumer.conversion.writer import Reader, Reads
from consumer.engine.model import CommerceEvent, ConversionEvent, Converted

Function = Callable[[CommerceEvent, float, float], Converted]
"""``(event, oldest, present)``, both in units of the record's time."""


class Generator:
    """Writes the function; one method for each part of it."""

    def __init__(self, task: Task, trusting: bool, writer: Writer, reader: Reads) -> None:
        self._mapping = task.mapping
        self._decisions = task.decisions
        self._fields = Fields(task, trusting=trusting)
        self._trusting = trusting
        self._writer = writer
        self._reader = reader
        self._writer.constants.update(
            get=decide.get,
            note=decide.note,
            note_once=decide.note_once,
            digests=decide.digests,
            sent_values=decide.sent_values,
            first_sent=decide.first_sent,
            is_zero=is_zero,
            count=count,
            total=total,
            click_id_of=click_id_of,
            is_crawler=is_crawler,
            LeftOut=LeftOut,
            BLANK=LeftOut.BLANK,
            MALFORMED=LeftOut.MALFORMED,
            ConversionEvent=ConversionEvent,
        )

    def source(self) -> str:
        """The function's source; `constants` are what it names."""
        self.convert()
        return self._writer.source("def convert(event, oldest, present):")

    def convert(self) -> None:
        """Write the lines that convert the event which the reader reads from, and return what becomes of it."""
        self._decided()
        self._event_level()
        self._user_data()
        self._custom_data()
        self._writer.line(
            "return ConversionEvent(account, name, event_id, dedup_id, seconds, source, payload, "
            "tuple(warned) if warned else ())"
        )

    @property
    def constants(self) -> dict[str, Any]:
        return self._writer.constants

    # What is decided before anything else is read.

    def _decided(self) -> None:
        self._name()
        self._account()
        self._action_source()
        self._event_id()
        self._time()
        self._writer.line("warned = []")
        if self._mapping.click_id_from_url:
            self._writer.line("clicked = None")
        self._writer.line(
            'payload = {"event_name": name, "action_source": source, "event_time": seconds, "event_id": event_id}'
        )

    def _name(self) -> None:
        decisions, line = self._decisions, self._writer.line
        self._look_up("name", "event_name", decisions.names, decisions.name_of)
        with self._writer.block(f"if name is {self._bind(decide.BY_EVENT_NAME, 'filtered')}:"):
            line("return name")
        consent = self._mapping.consent
        if consent is not None:
            line(f"v = {self._reader.value(consent.source.steps)}")
            with self._writer.block(f"if not {self._bind(decisions.is_consent, 'is_consent')}(v):"):
                line(f"return {self._bind(decide.BY_CONSENT, 'filtered')}")
        self._return_unless("name", "str")

    def _account(self) -> None:
        default = repr(self._decisions.default_account)
        source = self._mapping.sources.get("ad_account_id")
        if source is None:
            self._writer.line(f"account = {default}")
            return
        self._writer.line(f"v = {self._reader.value(source.steps)}")
        account_of = self._bind(self._decisions.account_of, "account_of")
        self._writer.line(f"account = {default} if v is None else {account_of}(v)")
        self._return_unless("account", "str")

    def _action_source(self) -> None:
        decisions = self._decisions
        self._look_up("source", "action_source", decisions.exact_sources, decisions.source_of)
        self._return_unless("source", "str")

    def _look_up(self, variable: str, target: str, table: dict[str, Any], decision: Rule) -> None:
        """`variable` from a table of the usual spellings; what is not in it is decided on."""
        source = self._mapping.sources.get(target)
        if source is None:
            self._writer.line(f"{variable} = {self._mapping.constants[target]!r}")
            return
        decided = self._bind(decision, f"{variable}_of")
        self._writer.line(f"v = {self._reader.value(source.steps)}")
        if not self._trusting:
            self._writer.line(f"{variable} = {decided}(v)")
            return
        self._writer.line(f"{variable} = {self._bind(table, f'{variable}s')}.get(v)")
        with self._writer.block(f"if {variable} is None:"):
            self._writer.line(f"{variable} = {decided}(v)")

    def _event_id(self) -> None:
        line, source = self._writer.line, self._mapping.sources["event_id"]
        line(f"event_id = {self._reader.value(source.steps)}")
        plain = self._is_plain(text_of, "event_id")
        with self._writer.block(f"if not ({plain}):" if self._fields.trusts_text(source) else None):
            line(f"event_id = {self._bind(decide.id_of, 'id_of')}(event_id)")
            self._return_unless("event_id", "str")
        key = self._mapping.dedup_key
        if key is None:
            line("dedup_id = event_id")
        else:
            line(f"v = {self._reader.value(key.steps)}")
            line(f"dedup_id = {self._bind(decide.dedup_id_of, 'dedup_id_of')}(v, event_id)")

    def _time(self) -> None:
        decisions, line, block = self._decisions, self._writer.line, self._writer.block
        line(f"t = {self._reader.value(self._mapping.sources['event_time'].steps)}")
        with block(None if decisions.days else "if t.__class__ is not int:"):
            line(f"t = {self._bind(decisions.time_of, 'time_of')}(t)")
            self._return_unless("t", "int")
        with block("if oldest <= t <= present:"):
            line(f"seconds = t // {decisions.units}")
        with block("else:"):
            line(f"seconds = {self._bind(decisions.outside, 'outside')}(t, present)")
            self._return_unless("seconds", "int")

    # Fields.

    def _event_level(self) -> None:
        objects = {"": "payload", "app_info": "app_info", "device_info": "device_info"}
        for parent, variable in objects.items():
            targets = [target for target in self._fields.of(parent) if target.name not in DECIDED]
            if parent and targets:
                self._writer.line(f"{variable} = {{}}")
            for target in targets:
                self._field(target, variable)
            if parent and targets:
                with self._writer.block(f"if {variable}:"):
                    self._writer.line(f"payload[{parent!r}] = {variable}")

    def _user_data(self) -> None:
        line = self._writer.line
        line('user = payload["user_data"] = {}')
        for target in self._fields.of("user_data"):
            self._field(target, "user")
        pair = '("client_ip_address" in user and "client_user_agent" in user)'
        with self._writer.block(f'if not ("em" in user or "hashed_maids" in user or {pair}):'):
            line(f"return {self._bind(REFUSALS['no_identity'], 'refusal')}")

    def _custom_data(self) -> None:
        targets, items = self._fields.of("custom_data"), self._fields.of(CONTENTS)
        if not targets and not items:
            return
        line, block = self._writer.line, self._writer.block
        line("custom = {}")
        if items:
            self._items(items)
        for target in targets:
            if not self._fields.is_gathered(target):
                self._field(target, "custom")
        with block('if "value" in custom and "currency" not in custom:'):
            line(f"return {self._bind(REFUSALS['missing_currency'], 'refusal')}")
        with block('if "opt_out_type" in custom and not ("st" in user and "country" in user):'):
            line(f"warned.append({self._bind(decide.OPT_OUT_TYPE_IGNORED, 'warning')})")
        with block("if custom:"):
            line('payload["custom_data"] = custom')

    def _field(self, target: Target, variable: str) -> None:
        """Reads one field and puts it into the object `variable`; then the constant, if nothing was put."""
        source, constant = self._fields.source(target), self._fields.constant(target)
        slot = f"{variable}[{target.key!r}]"
        if source is not None:
            self._read_field(target, source, slot)
        if self._fields.takes_click_id(target):
            with self._writer.block(f"if clicked is not None and {target.key!r} not in {variable}:"):
                self._writer.line(f"{slot} = clicked")
        if constant is not None:
            always = source is None and not self._fields.takes_click_id(target)
            with self._writer.block(None if always else f"if {target.key!r} not in {variable}:"):
                self._writer.line(f"{slot} = {constant!r}")

    def _read_field(self, target: Target, source: Source, slot: str) -> None:
        way = self._fields.way(target, source)
        if way is Way.DIGEST:
            self._digest(target, source, slot)
        elif way is Way.ONE_DIGEST:
            self._one_of_many(target, source, slot)
        elif way is Way.DIGESTS:
            self._several("digests", target, source, slot)
        elif way is Way.ALL:
            self._several("sent_values", target, source, slot)
        elif way is Way.TOTAL:
            self._total(target, source, slot)
        elif way is Way.FIRST:
            self._first(target, source, slot)
        else:
            self._single(way, target, source, self._reader.value(source.steps), slot)

    def _total(self, target: Target, source: Source, slot: str) -> None:
        self._writer.line(f"v = total({self._all_values(source)})")
        self._put_count(target, slot)
        with self._writer.block("else:"):
            self._writer.line(f"note(warned, v, {self._warnings(target)})")

    def _first(self, target: Target, source: Source, slot: str) -> None:
        self._writer.line(f"v = {self._call('first_sent', target, source)}")
        with self._writer.block("if v is not BLANK:"):
            self._put(target, slot)

    def _several(self, function: str, target: Target, source: Source, slot: str) -> None:
        self._writer.line(f"v = {self._call(function, target, source)}")
        with self._writer.block("if v:"):
            most = f"[:{MOST_LANGUAGES}]" if target.key == "languages" else ""
            self._writer.line(f"{slot} = v{most}")

    def _call(self, function: str, target: Target, source: Source) -> str:
        rule = self._bind(self._fields.rule(target, source), "rule")
        return f"{function}({rule}, {self._all_values(source)}, warned, {self._warnings(target)})"

    def _all_values(self, source: Source) -> str:
        return self._reader.all_values(source.steps)

    def _digest(self, target: Target, source: Source, slot: str) -> None:
        self._writer.line(f"v = {self._reader.value(source.steps)}")
        with self._writer.block("if v is not None:"):
            self._put_digest(target, source, "v", slot)

    def _one_of_many(self, target: Target, source: Source, slot: str) -> None:
        """One digest is by far the most common: written out. More, or what is no array: `digests`."""
        line, block = self._writer.line, self._writer.block
        line(f"v = {self._reader.value(source.steps[:-1])}")
        with block("if v is not None:"):
            with block("if v.__class__ is list and len(v) == 1:"):
                self._put_digest(target, source, "v[0]", slot)
            with block("elif v or v.__class__ is not list:"):
                self._several("digests", target, source, slot)

    def _put_digest(self, target: Target, source: Source, value: str, slot: str) -> None:
        asked = f"{self._remembered(target, source)}[{value}]"
        if not self._fields.trusts_text(source):
            asked = f"{self._bind(self._fields.rule(target, source), 'rule')}({value})"
        self._writer.line(f"v = {asked}")
        with self._writer.block("if v.__class__ is str:"):
            self._writer.line(f"{slot} = [v]")
        with self._writer.block("else:"):
            self._writer.line(f"note(warned, v, {self._warnings(target)})")

    def _single(self, way: Way, target: Target, source: Source, value: str, slot: str) -> None:
        """One value through its rule into `slot`."""
        line, block = self._writer.line, self._writer.block
        rule = self._fields.rule(target, source)
        line(f"v = {value}")
        with block("if v is not None:"):
            if way is Way.TEXT:
                with block(f"if {self._is_plain(rule, 'v')}:"):
                    self._put_sent(target, slot)
            with block("else:" if way is Way.TEXT else None):
                if way is Way.REMEMBERED:
                    line(f"v = {self._remembered(target, source)}[v]")
                else:
                    with block("if v is not True and v is not False:" if way is Way.FLAG else None):
                        line(f"v = {self._bind(rule, 'rule')}(v)")
                self._put(target, slot)

    def _tell_crawlers(self) -> None:
        """`v`, which is sent, is a user agent: warn where it is a crawler's."""
        asked = f"{self._bind(self._fields.crawlers, 'cache')}[v]"
        with self._writer.block(f"if {asked if self._trusting else 'is_crawler(v)'}:"):
            self._writer.line(f"note_once(warned, {self._bind(decide.CRAWLER, 'warning')})")

    def _is_plain(self, rule: Rule, variable: str) -> str:
        """The condition under which text surely passes the rule as it is."""
        return f"{variable} >= {self._fields.plain_from(rule)!r} and {variable}.isascii()"

    def _put(self, target: Target, slot: str) -> None:
        """`v` goes into `slot`, or is left out with a warning, or refuses the event."""
        line, block = self._writer.line, self._writer.block
        with block("if v.__class__ is LeftOut:"):
            if target.refusal is None:
                for lacking in self._fields.lacking(target):
                    line(f"note(warned, v, {self._warnings(lacking)})")
            else:
                with block("if v is MALFORMED:"):
                    line(f"return {self._bind(REFUSALS[target.refusal], 'refusal')}")
        if target.name == "event_source_url":
            with block('elif source != "web":'):
                line(f"warned.append({self._bind(decide.NOT_WEB, 'warning')})")
        with block("else:"):
            self._put_sent(target, slot)

    def _put_sent(self, target: Target, slot: str) -> None:
        """`v` goes into `slot`, and what else follows from what is sent."""
        line, block = self._writer.line, self._writer.block
        line(f"{slot} = v")
        if target.rule is amount:
            with block("if v[0] == '0' and is_zero(v):"):
                line(f"note_once(warned, {self._bind(decide.zero_warning(target), 'warning')})")
        if self._fields.gives_click_id(target):
            with block("if 'epik=' in v:"):
                line("clicked = click_id_of(v)")
        if self._fields.warns_of_crawlers(target):
            self._tell_crawlers()

    def _put_count(self, target: Target, slot: str, *more: str) -> None:
        """As `_put` for a count: a negative one refuses the event."""
        line, block = self._writer.line, self._writer.block
        with block("if v.__class__ is int:"):
            line(f"{slot} = v")
            for text in more:
                line(text)
        with block("elif v is None:"):
            line(f"return {self._bind(REFUSALS['negative_quantity'], 'refusal')}")

    def _remembered(self, target: Target, source: Source) -> str:
        return self._bind(self._fields.cache(target, self._fields.rule(target, source)), "cache")

    # Items.

    def _items(self, items: list[Target]) -> None:
        """One loop over the items fills `contents`, and what is gathered from the same values."""
        line, block = self._writer.line, self._writer.block
        line("contents = []")
        if self._fields.summed:
            line("counts = []")
            line("whole = True")
        header, reader = self._item_loop()
        with block(header):
            line("content = {}")
            for target in items:
                self._item_field(target, reader)
            with block("if content:"):
                line("contents.append(content)")
        with block("if contents:"):
            line("custom['contents'] = contents")
            if self._fields.listed:
                line("v = [content['id'] for content in contents if 'id' in content]")
                with block("if v:"):
                    line("custom['content_ids'] = v")
        if self._fields.summed:
            self._sum()

    def _item_loop(self) -> tuple[str, Reads]:
        """The head of the loop over the items, and what reads values of one of them."""
        steps = self._mapping.item_steps
        if not steps:  # the event itself is the one item
            return "for _ in (None,):", self._reader
        item = Reader(self._writer, "item", self._trusting)
        if self._trusting and EACH not in steps[:-1]:
            return f"for item in {self._array(self._reader.value(steps[:-1]))} or ():", item
        return f"for item in {self._reader.all_values(steps)}:", item

    def _array(self, value: str) -> str:
        """A variable with the array that `value` is; trusting code does not go on with anything else.

        A branch of a union may be a text or a map: to loop over its characters or keys would go well, and be wrong.
        """
        self._writer.line(f"items = {value}")
        with self._writer.block("if items.__class__ is not list and items is not None:"):
            self._writer.line('raise TypeError("no array")')
        return "items"

    def _item_field(self, target: Target, reader: Reads) -> None:
        source, slot = self._mapping.sources[target.name], f"content[{target.key!r}]"
        value = reader.value(source.steps[len(self._mapping.item_steps) :])
        if is_quantity(target):
            self._quantity(target, value, slot)
        else:
            self._single(self._fields.way(target, source), target, source, value, slot)

    def _quantity(self, target: Target, value: str, slot: str) -> None:
        line, block = self._writer.line, self._writer.block
        summed = self._fields.summed
        line(f"v = {value}")
        with block("if v is not None:"):
            with block(f"if v.__class__ is not int or not 0 <= v <= {MAX_COUNT}:"):
                line("v = count(v)")
            self._put_count(target, slot, *["counts.append(v)"] if summed else [])
            with block("else:"):
                if summed:
                    line("whole = whole and v is not MALFORMED")
                line(f"note(warned, v, {self._warnings(target)})")

    def _sum(self) -> None:
        """A wrong sum is worse than none: it is sent only if every quantity could be read."""
        line, block = self._writer.line, self._writer.block
        with block("if counts or not whole:"):
            line("v = sum(counts)")
            with block(f"if whole and v <= {MAX_COUNT}:"):
                line("custom['num_items'] = v")
            with block("else:"):
                line(f"note(warned, MALFORMED, {self._warnings(TARGETS['custom_data.num_items'])})")

    # Small things.

    def _bind(self, value: Any, hint: str) -> str:
        return self._writer.bind(value, hint)

    def _warnings(self, target: Target) -> str:
        return self._bind(decide.warnings_of(target), "warnings")

    def _return_unless(self, variable: str, kind: str) -> None:
        with self._writer.block(f"if {variable}.__class__ is not {kind}:"):
            self._writer.line(f"return {variable}")


def write(task: Task, *, trusting: bool) -> Function:
    """The function that converts one event; see the module's docstring for `trusting`."""
    writer = Writer()
    generator = Generator(task, trusting, writer, Reader(writer, "event", trusting))
    source = generator.source()
    constants = generator.constants
    # Nothing of a record and no free text of a mapping gets into the source other than as a `repr`.
    exec(compile(source, f"<mapping, trusting={trusting}>", "exec"), constants)  # noqa: S102
    function: Function = constants["convert"]
    return function
