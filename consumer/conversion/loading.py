"""From the tables of a mapping file to a checked `Mapping`.

Theory of operation. `sections` reads the file and says which layers of it a section has: the packaged default, and the
user's tables from the widest to the narrowest. Here they are laid over each other, table by table and key by key;
``""`` removes an entry. Then everything is checked against the closed shape of the API (`targets`) and against the
schema (`consumer.avro.paths`), once, at start: what `Loader` returns is valid, and the converter relies on it.

A section's own lines must be valid: a path that the schema lacks is an error that names the nearest. Shared lines, and
those of the default, are proposals: if the schema has no such path, the next wider layer's line counts; and if the
section's items come from another array, item fields of the other layers are dropped too. Errors are one line, name the
file and the key, and say what to do.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Final, NamedTuple, NoReturn

from consumer.avro.paths import Path, SchemaPaths, Source
from consumer.conversion import hints
from consumer.conversion.computed.expressions import (
    Computed,
    Constant,
    Each,
    Expression,
    First,
    Scalar,
    Unreadable,
    array_of,
    asked_by,
    computation,
    constants_in,
    expression_name,
    is_many,
    results_of,
    source_misfit,
)
from consumer.conversion.computed.operators import Condition, Phone, When, depends_on_event, unify
from consumer.conversion.computed.phones import is_installed, is_region
from consumer.conversion.computed.tables import ExpressionReader, Fold, is_ever, never, texts_of
from consumer.conversion.countries import country_code
from consumer.conversion.mapping import Mapping, item_steps_of
from consumer.conversion.normalise import Omitted, Unrecognised, trim
from consumer.conversion.targets import (
    ACTION_SOURCES,
    AGED,
    CONTENTS,
    DAYS,
    DERIVED,
    EVENT_NAMES,
    FILTER,
    NEVER_SENT,
    NUMBERS,
    TABLES,
    TARGETS,
    TIME_UNITS,
    WORDS,
    Arity,
    MaxAge,
    Target,
)
from consumer.errors import MappingError, missing_extra, nearest, or_all

CHOICES: Final = {
    "unknown_record": ("refuse", "filter"),
    "unknown_event_name": ("refuse", "custom", "filter"),
    "external_id_case": ("lower", "as_written"),
    "time_unit": tuple(TIME_UNITS),
}
SETTINGS: Final = (*CHOICES, "phone_country_code", "phone_country")  # keys that stand in no table
_TIMES = frozenset({"event_time", "app_info.install_time", "user_data.db"})
_PHONE_CODE = re.compile(r"(?:[1-9][0-9]{0,2})?")
_REQUIRED = ("event_id", "event_name", "event_time", "action_source")


class Rank(IntEnum):
    """The origin of a layer's lines. Lines of higher ranks go before others; lines that are not a section's own are
    proposals."""

    DEFAULT = 0  # the packaged mapping's
    SHARED = 1  # the user's, shared by sections: a path may be missing in one schema
    OWN = 2  # the section's: its paths must be there


class Layer(NamedTuple):
    """Tables of a mapping file that apply together. `name` is their name in error messages."""

    name: str
    tables: dict[str, Any]
    rank: Rank = Rank.OWN


class Unused(NamedTuple):
    """What is missing of a line that sections share: a path that this schema lacks, or a value that none of these
    `texts` is (None: it is a path). `is_all`: the path is all of the line."""

    name: str
    is_all: bool = False
    texts: frozenset[str] | None = None


class MissingFields(MappingError):
    """Fields that every event needs have no source."""


class Loader:
    """Checks the tables of `layers`, from the packaged default's to the narrowest, against the API and a schema.

    `paths` are those of the schema; `name` is the name of all of them in error messages.
    """

    def __init__(self, layers: Sequence[Layer], paths: SchemaPaths, name: str) -> None:
        self._name = name
        self._layers = layers
        # A line of a narrower layer replaces one line of a wider layer.
        self._tables = {key: self._merged(key) for key in TABLES}
        self._settings = ChainMap(*(layer.tables for layer in reversed(layers)))
        # Field -> the layer whose line is in force.
        self._layers_in_force: dict[str, Layer] = {}
        # Lines of shared layers, by their names in errors. Unused: this schema lacks what they name.
        self.unused: dict[str, Unused] = {}
        self.used: set[str] = set()
        self._paths = paths

    def _merged(self, key: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in self._layers:
            table = layer.tables.get(key, {})
            # Allowed values belong to the path beside them, and do not apply to another one.
            if key == "consent" and not table.keys().isdisjoint(("require", "any")):
                merged = {}
            merged |= table
        return merged

    def mapping(self) -> Mapping:
        """Return the mapping. Raises `MappingError`."""
        # The settings come first: they decide how the tables are read.
        self._check_settings()
        # The advertiser's own names come before all tables that may use them.
        own_events = self._settings_of("own_events", "names").get("names", [])
        if wrong := hints.wrong_with_own_events(own_events):
            self._fail(f"[own_events] {wrong}")
        max_age = MaxAge.of(self._settings_of("max_age", *AGED, "late"))
        if isinstance(max_age, str):
            self._fail(f"[max_age] {max_age}")
        known = EVENT_NAMES.union(own_events)
        self._reading = ExpressionReader(self._paths, known, self._settings["time_unit"])
        event_names = self._entries("event_names", {*known, FILTER})
        # Channels are compared in any case: producers do not agree on one.
        sent_as = self._entries("action_sources", ACTION_SOURCES)
        action_sources = {trim(key).lower(): value for key, value in sent_as.items()}
        sources = self._sources()
        written = {name for name, layer in self._layers_in_force.items() if layer.rank > Rank.DEFAULT}
        proposed = frozenset(sources.keys() - written)
        self._add_phone_country(sources)
        # The items' ids and their number follow from the items, unless a line maps them or takes them away.
        steps = item_steps_of(sources)
        for name, of in DERIVED.items():
            if of in sources and name not in written:
                source = sources[of]
                derived = Each((source,), steps) if steps and isinstance(source, Computed) else source
                sources.setdefault(name, derived)
        constants = self._constants(known, sources)
        # An error of its own, since a record type may be complete on another topic (`sections`).
        missing = [name for name in _REQUIRED if name not in sources and name not in constants]
        if missing:
            names = f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no source"
            possible = [name for name in missing if TARGETS[name].constant]
            # Some required fields may be the same for all events.
            hint = f", or a value for all events in [constants]: {' and '.join(possible)}" if possible else ""
            raise MissingFields(
                f'{self._name}: [fields] {names}: name one, {missing[0]} = "<path in the record>"{hint}'
            )
        self._check_computed(sources, event_names.keys() | known, action_sources)
        self._check_keys("event_names", sources.get("event_name"), str)
        self._check_keys("action_sources", sources.get("action_source"), lambda key: trim(key).lower())
        return Mapping(
            event_names=event_names,
            own_events=tuple(own_events),
            unknown_event_name=self._settings["unknown_event_name"],
            action_sources=action_sources,
            sources={name: sources[name] for name in TARGETS if name in sources},
            proposed=proposed,
            constants=constants,
            consent=self._consent(),
            dedup_key=self._dedup_key(),
            phone_country_code=self._settings["phone_country_code"],
            external_id_case=self._settings["external_id_case"],
            time_unit=self._settings["time_unit"],
            max_age=max_age,
            item_lists=self._item_lists,
            # An empty line removes the click id, so it must not be taken from the address either.
            click_id_from_url="event_source_url" in sources
            and self._tables["fields"].get("user_data.click_id") != "",
        )

    def _check_settings(self) -> None:
        for key, choices in CHOICES.items():
            if self._settings.get(key) not in choices:
                self._refuse_setting(key, f"must be one of {', '.join(map(repr, choices))}")
        phone_code = self._settings.get("phone_country_code")
        if not isinstance(phone_code, str) or not _PHONE_CODE.fullmatch(phone_code):
            self._refuse_setting(
                "phone_country_code", 'must be one to three digits in quotes, like "49", or "" for none'
            )
        # A setting below a table's header belongs to that table: a common mistake with TOML.
        for table, lines in self._tables.items():
            if key := next((key for key in SETTINGS if key in lines), ""):
                own = key != "unknown_record" and any(layer.name.endswith("]") for layer in self._layers)
                below = ", or directly below the header of a section" if own else ""
                self._fail(
                    f"[{table}] {key!r} is a setting, not a line of a table: put it above the first [table]{below}"
                )

    def _fail(self, message: str) -> NoReturn:
        raise MappingError(f"{self._name}: {message}")

    def _refuse_setting(self, key: str, message: str) -> NoReturn:
        """Fail as `_fail` does, but name only the layer that has the setting, not all layers that it applies to."""
        layer = next(layer for layer in reversed(self._layers) if key in layer.tables)
        raise MappingError(f"{layer.name}: {key} {message}")

    @contextmanager
    def _about(self, key: str) -> Iterator[None]:
        """Raise errors of expressions inside this context as errors of the line `key`."""
        try:
            yield
        except Unreadable as error:
            self._fail(f"{key}: {error}")

    def _entries(self, table: str, known: Collection[str]) -> dict[str, str]:
        """Return the table's entries without those that are removed. Raises `MappingError` if a value is not
        `known`."""
        entries = self._tables[table]
        for key, value in entries.items():
            # TOML makes tables of a name with dots and without quotes: show the name that was meant.
            while isinstance(value, dict) and value:
                part, value = next(iter(value.items()))
                key = f"{key}.{part}"
            if key not in entries:
                self._fail(f'[{table}] a name that holds dots is written in quotes: "{key}"')
            if not isinstance(value, str):
                said = "is a list, but takes one text" if isinstance(value, list) else "must be text"
                self._fail(f"[{table}] {key!r} {said} in quotes")
            if not value or value in known:
                continue
            # A channel may have the name of an action source, so its name shows nothing.
            if table == "action_sources":
                self._fail(f"[{table}] {key!r}: {value!r} is not an action source; {or_all(value, known)}")
            if key in known:
                self._fail(f'[{table}] {key!r} is turned around: write "{value}" = "{key}"')
            hint = hints.event_meant(value, known)
            self._fail(
                f"[{table}] {key!r}: {value!r} is not an event name of the platform; {hint}; {FILTER!r} means: do not "
                "send; a name that you registered with Pinterest is declared in [own_events]"
            )
        return {key: value for key, value in entries.items() if value}

    def _target(self, table: str, name: str) -> Target:
        """Return the target called `name`. Raises `MappingError` if the API has none, or if we never send it."""
        if name.rpartition(".")[2] in NEVER_SENT:
            self._fail(f"[{table}] {name!r} is never sent: remove the line")
        if name not in TARGETS:
            path = self._tables[table][name]
            if isinstance(path, str) and path in TARGETS:
                self._fail(f'[{table}] {name!r} is turned around: write "{path}" = "{name}"')
            if fields := hints.fields_within(name):
                self._fail(
                    f"[{table}] {name!r} is not a field but an object: name one of its fields: {fields}"
                )
            near = hints.field_meant(name)
            hint = f"the nearest is {near!r}" if near else "docs/conversion.md lists them"
            self._fail(f"[{table}] {name!r} is not a field of a conversion event; {hint}")
        return TARGETS[name]

    def _sources(self) -> dict[str, Expression]:
        found: dict[str, Expression] = {}
        for name in self._tables["fields"]:
            target = self._target("fields", name)
            layer, said = self._line("fields", name, self._reading.missing)
            if layer is not None:
                self._layers_in_force[name] = layer
            if layer is not None and said != "":
                advice = f'name another path, or remove it with "{name}" = "" in [fields]'
                with self._line_of(layer, advice):
                    found[name] = self._fitting(target, said)
        self._unify_items(found)
        return found

    def _line(self, table: str, key: str, missing: Callable[[Any], str | None]) -> tuple[Layer | None, Any]:
        """Return the layer and the line of a key in a table ("": at the top); None twice: there is none.

        The narrowest line counts, except for proposals with a path that this schema lacks: `missing` returns it.
        """
        for layer in reversed(self._layers):
            said = (layer.tables.get(table, {}) if table else layer.tables).get(key)
            if said is None:
                continue
            # Lines of the section itself must be valid. An empty line of any layer removes the wider ones.
            if layer.rank is Rank.OWN or said == "":
                return layer, said
            line, lacks = f"{layer.name}: " + (f"[{table}] {key!r}" if table else key), missing(said)
            if lacks is None:
                self.used.add(line)
                return layer, said
            # `sections` refuses a line whose path no section has: it is misspelled.
            if layer.rank is Rank.SHARED:
                self.unused[line] = Unused(lacks, isinstance(said, str))
        return None, None

    def _check_keys(self, table: str, source: Expression | None, fold: Fold) -> None:
        """Check that the source may have each value that the user's lines of this table are for: records with a
        misspelled one would be filtered or refused."""
        if source is None:
            return
        for number, layer in enumerate(self._layers):
            for key, said in layer.tables.get(table, {}).items() if layer.rank > Rank.DEFAULT else ():
                wider = [one.tables.get(table, {}).get(key) for one in self._layers[:number]]
                # A line that repeats one of a wider layer, or removes it, is none of these.
                if said not in wider and (said != "" or not any(wider)):
                    self._expect(layer, f"[{table}] {key!r}", key, [source], is_key=True, fold=fold)

    def _expect(
        self,
        layer: Layer,
        line: str,
        value: Scalar,
        sources: Sequence[Expression],
        *,
        is_key: bool = False,
        fold: Fold = str,
    ) -> None:
        """Check that one of the sources may have a value that a line of the user's compares with them."""
        line = f"{layer.name}: {line}"
        if any(is_ever(source, value, is_key=is_key, fold=fold) for source in sources):
            self.used.add(line)
        elif layer.rank is Rank.OWN:
            raise MappingError(f"{line}: {never(sources[0], value, is_key=is_key, fold=fold)}")
        else:
            texts = [texts_of(source) or () for source in sources]
            # `sections` refuses a line whose value no section has.
            self.unused[line] = Unused(str(value), texts=frozenset[str]().union(*texts))

    @contextmanager
    def _line_of(self, layer: Layer, advice: str) -> Iterator[None]:
        """Say of errors inside this context whose line it is, unless it is the section's own, and what to do."""
        try:
            yield
        except MappingError as error:
            if layer.rank is Rank.OWN:
                raise
            # The schema may have another value of the same name there: only the user knows.
            of = "the packaged mapping's" if layer.rank is Rank.DEFAULT else f"of {layer.name}"
            raise MappingError(f"{error}; this line is {of}: {advice}") from None

    def _fitting(self, target: Target, said: Any, table: str = "fields") -> Expression:
        """Return the source that a line of the mapping names. Raises `MappingError` if it does not fit the target."""
        key, one = f"[{table}] {target.name!r}", target.arity is Arity.ONE
        source = self._source(key, said, target.kinds, target.meant, one=one)
        if isinstance(source, Computed) and target.name in _TIMES:
            # A number without a logical type counts in `time_unit`.
            unit = f"a number of {self._settings['time_unit']} (time_unit)"
            units = {
                kind if kind in DAYS else unit: expression_name(one)
                for one in results_of(source)
                for kind in one.kinds & (DAYS | NUMBERS)
            }
            if len(units) > 1:
                each = " and ".join(f"{name} is {kind}" for kind, name in units.items())
                self._fail(
                    f"{key}: {each}, so they count time in different units: write "
                    '{ time = "<path>" } around each, with unit = "seconds" beside it where the schema says none'
                )
        return source

    def _check_id(self, key: str, source: Expression) -> None:
        """Refuse an id that is made of what a topic that is created again repeats."""
        if isinstance(source, Source) and source.path in ("@topic", "@partition", "@offset"):
            self._fail(
                f"{key}: {source.path!r} comes again when a topic is created again under its name, and new orders "
                "would be taken for duplicates: name an id of the record, '@key' or a header"
            )
        # The conditions of a value are no part of it.
        parts = source.parts if isinstance(source, Computed) else ()
        for part in parts[:1] if isinstance(source, When) else parts:
            self._check_id(key, part)

    def _add_phone_country(self, sources: dict[str, Expression]) -> None:
        """Give phone numbers the code of the country that ``phone_country`` names."""
        numbers = sources.get("user_data.ph")

        def is_for_all(said: Any) -> bool:
            return isinstance(said, str) and is_region(said)

        def missing(said: Any) -> str | None:
            # Without numbers here, other record types may have some: `sections` checks that.
            return "" if numbers is None else None if is_for_all(said) else self._reading.missing(said)

        _, said = self._line("", "phone_country", missing)
        if said is None or said == "":
            return
        if numbers is None:
            self._fail("phone_country has no numbers: name the path of user_data.ph in [fields]")
        # Checked now, and not with the first record that has a number.
        if not is_installed():
            self._fail(f"phone_country needs a library, and {missing_extra('phones')}")
        country: Expression = Constant(said) if is_for_all(said) else self._country(said)
        sources["user_data.ph"] = Phone((numbers, country))

    def _country(self, said: Any) -> Expression:
        meant = country_code(trim(said)) if isinstance(said, str) and not self._paths.has(said) else None
        if meant is not None:
            self._fail(
                f"phone_country: {said!r} is no path of the record; one country for all is written "
                f'phone_country = "{meant.upper()}"'
            )
        return self._source("phone_country", said, WORDS, "text")

    def _check_computed(
        self, sources: dict[str, Expression], event_types: Collection[str], channels: Collection[str]
    ) -> None:
        """Check computed values as far as possible without a record."""
        steps, event_type = item_steps_of(sources), sources.get("event_name")
        if event_type is not None and depends_on_event(event_type):
            self._fail("[fields] 'event_name': when_event asks for the name that this line decides; use when")
        for key, source in sources.items():
            if not isinstance(source, Computed):
                continue
            with self._about(f"[fields] {key!r}"):
                item_steps = steps if key.startswith(CONTENTS) else None
                computation(source, item_steps, event_type, lambda _: None)
            # A constant that is rarely sent is checked now: its first event would be a dead letter.
            for constant in constants_in(source):
                # In other places an unknown name is meant to be sent as ``custom``.
                names = None if self._settings["unknown_event_name"] == "custom" else event_types
                if meant := hints.wrong_constant(TARGETS[key], constant, names, channels):
                    table = "constants" if isinstance(self._tables["constants"].get(key), dict) else "fields"
                    self._fail(f"[{table}] {key!r}: {constant!r} is not {meant}")

    def _unify_items(self, found: dict[str, Expression]) -> None:
        """Make all item fields come from one array. The user's array counts; the default's fields are dropped, and
        so are the default's lines for fields that follow from the items."""
        arrays: dict[str, Path | None] = {}
        self._item_lists = unify(found, CONTENTS)
        for name, source in found.items():
            if name.startswith(CONTENTS) or name in DERIVED:
                with self._about(f"[fields] {name!r}"):
                    # What follows from the items may be of other lists as well.
                    arrays[name] = array_of(source, is_item=name.startswith(CONTENTS))
        items = [name for name, array in arrays.items() if array is not None and name.startswith(CONTENTS)]
        if not items:
            return
        # The section's own array counts; if it names none, that of its shared lines, or else the default's.
        ranks = {name: self._layers_in_force[name].rank for name in arrays}
        leader = max(items, key=ranks.__getitem__)
        for name, array in arrays.items():
            # A value that is the same for all items goes with any array.
            if array is None or array == arrays[leader]:
                continue
            if ranks[name] is Rank.DEFAULT or (name in items and ranks[name] < ranks[leader]):
                del found[name]
            elif name in items:
                self._fail(
                    f"[fields] {name!r}: all fields of {CONTENTS} must come from one array of the record"
                )

    def _constants(self, known: frozenset[str], sources: dict[str, Expression]) -> dict[str, Any]:
        """Return the constants; one that depends on the record is added to `sources`, after any source of the field."""
        constants = {}
        for name, value in self._tables["constants"].items():
            target = self._target("constants", name)
            # An empty text removes the default's line.
            if value == "":
                continue
            # Ids and times differ for each event.
            if not target.constant:
                self._fail(f"[constants] {name!r} cannot be a constant: every event has its own")
            if isinstance(value, dict):
                before, otherwise = sources.get(name), self._fitting(target, value, "constants")
                sources[name] = otherwise if before is None else First((before, otherwise))
            else:
                constants[name] = self._constant(target, value, known)
        # In the order of a payload, not that of the file.
        return {name: constants[name] for name in TARGETS if name in constants}

    def _constant(self, target: Target, value: Any, known: frozenset[str]) -> Any:
        """Return the JSON value that is sent for a constant."""
        if target.name in ("event_name", "action_source"):
            allowed = known if target.name == "event_name" else frozenset(ACTION_SOURCES)
            if not isinstance(value, str) or value not in allowed:
                self._fail(
                    f"[constants] {target.name}: {value!r} is not one; {hints.event_meant(str(value), allowed)}"
                )
            return value
        # A constant goes through the rule once, now, so that each event sends what the rule would.
        if isinstance(value, list):
            self._fail(f"[constants] {target.name!r} is a list, but takes one value")
        sent = target.rule(value)
        if isinstance(sent, Omitted | Unrecognised) or sent is None:
            self._fail(f"[constants] {target.name!r} must be {target.meant}")
        return [sent] if target.hashed else sent

    def _consent(self) -> Expression | None:
        table = self._settings_of("consent", "require", "any", "allowed")
        allowed = table.get("allowed", [])
        if not isinstance(allowed, list) or not all(isinstance(value, str | int) for value in allowed):
            self._fail(
                '[consent] allowed must be a list of texts, whole numbers, true or false: allowed = ["granted"]'
            )
        # Without allowed values only true is consent, and text is never true.
        kinds = None if allowed else frozenset({"boolean"})
        every: list[Condition] = []
        some: list[Condition] = []
        meant = "a boolean, unless you say which values will do, allowed = [...]"
        # Consent is never a proposal: without it, events of people would be sent who did not consent.
        asking = [one for one in self._layers if {"require", "any"} & one.tables.get("consent", {}).keys()]
        advice = 'name the path of this record type in its own [consent], or require = "" if it needs none'
        with self._line_of((asking or self._layers)[-1], advice):
            for key, conditions in (("require", every), ("any", some)):
                said = table.get(key, "")
                # Only "" asks for no consent: `false` and a list that is not filled yet are mistakes.
                if said == []:
                    self._fail(f'[consent] {key} is an empty list: name a path, or write {key} = "" for none')
                for path in said if isinstance(said, list) else [] if said == "" else [said]:
                    source = self._source(f"[consent] {key}", path, kinds, meant)
                    conditions.append(Condition((source,), tuple(allowed) or (True,)))
                    # A value may be another path's. A path with none of them is never consent.
                    if allowed and not any(is_ever(source, value) for value in allowed):
                        texts = texts_of(source) or ()
                        meant_for_it = (value for value in allowed if nearest(str(value), texts))
                        self._fail(f"[consent] allowed: {never(source, next(meant_for_it, allowed[0]))}")
        if not every and not some:
            if allowed:
                self._fail("[consent] allowed needs require: the path of the value")
            return None
        paths = [condition.parts[0] for condition in (*every, *some)]
        for layer in [one for one in self._layers if "allowed" in one.tables.get("consent", {})][-1:]:
            for value in allowed:
                self._expect(layer, f"[consent] allowed, {value!r}", value, paths)
        return self._agreement(every, some, is_listed=bool(allowed))

    def _agreement(self, every: list[Condition], some: list[Condition], *, is_listed: bool) -> Expression:
        """Return the expression that is true if all of `every` hold, and one of `some` if there are any."""
        # The fast path: one boolean: the compiled program reads it without calling Python.
        if len(every) == 1 and not some:
            return every[0] if is_listed else every[0].parts[0]
        agreed: Expression = Constant(True)
        if some:
            agreed = First(tuple(When((agreed, condition), None) for condition in some))
        # True if all of `require` hold, and one of `any`; else nothing, which is no consent.
        return When((agreed, *every), None)

    def _dedup_key(self) -> Expression | None:
        self._settings_of("dedup", "key")
        _, said = self._line("dedup", "key", self._reading.missing)
        # Records without such a value are known by their event_id.
        if said is None or said == "":
            return None
        return self._source("[dedup] key", said, TARGETS["event_id"].kinds, "text")

    def _source(
        self, key: str, said: Any, kinds: frozenset[str] | None, meant: str, *, one: bool = True
    ) -> Expression:
        """Return the source that `key` names, of these `kinds` (None: of any) and, if `one`, of one value."""
        with self._about(key):
            source = self._reading.expression(said)
            if one and isinstance(source, Computed):
                computation(source, None, None, lambda _: None)
        if kinds is not None and (other := source_misfit(source, kinds)):
            self._fail(f"{key} takes {meant}, but {other}")
        if key in ("[fields] 'event_id'", "[fields] 'event_time'", "[dedup] key") and not asked_by(source):
            self._fail(f"{key} would be the same for all events, but every event has its own: name a path")
        if key in ("[fields] 'event_id'", "[dedup] key"):
            self._check_id(key, source)
        # The user has to name which of several values counts.
        if one and is_many(source):
            first = (source.path if "[]" in source.path else f"{source.path}[]").replace("[]", "[0]")
            hint = ": name paths to one value, as lines[0], in { first = [...] }"
            if isinstance(source, Source):
                hint = f", since it is a list: name one element, {first!r}"
            self._fail(f"{key} takes one value, but {source.path!r} may give several{hint}")
        return source

    def _settings_of(self, table: str, *allowed: str) -> dict[str, Any]:
        """Return the table. Raises `MappingError` for other than the `allowed` keys."""
        for key in self._tables[table]:
            if key not in allowed:
                self._fail(f"[{table}] {key!r} is not a key; {or_all(key, allowed)}")
        return self._tables[table]
