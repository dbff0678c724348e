"""The mapping: which value of a commerce event becomes which field of a conversion event.

Theory of operation. A mapping is TOML. The packaged default is read first, the user's overlay is laid over it
table by table and key by key; ``""`` takes an entry away. Then everything is checked against the closed shape
of the API (`targets`) and against the schema (`consumer.avro.paths`), once, at start: what `load_mapping`
returns is sound, and the converter trusts it.

What the overlay writes must hold: a path that the schema lacks is an error that names the nearest. What only
the default writes is a proposal: where the user's schema has no such path it is dropped without a word, and
where the user's items come from another array than the default's, the default's item fields are dropped too.
Errors are one line, name the file and the key, and say what to do.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from consumer.avro.paths import EACH, Asked, AvroSchema, NoSuchPath, SchemaPaths, Source, Step
from consumer.conversion.normalise import LeftOut, trim
from consumer.conversion.targets import (
    ACTION_SOURCES,
    CONTENTS,
    EVENT_NAMES,
    EXTERNAL_ID_AS_WRITTEN,
    LONGEST_OWN_EVENT,
    MOST_OWN_EVENTS,
    NEVER_SENT,
    TARGETS,
    TIME_UNITS,
    Arity,
    Target,
    phone_target,
)
from consumer.errors import MappingError, nearest

FILTER: Final = "!filter"
"""What stands in `[event_names]` for an event type that is not sent."""

_TABLES = ("event_names", "own_events", "action_sources", "fields", "constants", "consent", "dedup")
_CHOICES = {
    "unknown_event_name": ("refuse", "custom", "filter"),
    "external_id_case": ("lower", "as_written"),
    "time_unit": tuple(TIME_UNITS),
}
_WITHOUT_EFFECT: Final = {
    "newer_event_names": "newer_event_names has no effect any more, as all 22 standard event names are known: take the "
    "line away"
}
"""Keys of older versions that are accepted -> what is said of them."""
_DERIVED: Final = {
    "custom_data.content_ids": f"{CONTENTS}.id",
    "custom_data.num_items": f"{CONTENTS}.quantity",
}
"""Targets that are filled from the items where the mapping has no line for them -> from which field of an item."""
_PHONE_CODE = re.compile(r"(?:[1-9][0-9]{0,2})?")
_REQUIRED = ("event_id", "event_name", "event_time", "action_source")
_BOOLEAN = frozenset({"boolean"})


@dataclass(frozen=True, slots=True)
class Consent:
    """An event goes only if the value at `source` is true, or is one of `allowed` if there are any."""

    source: Source
    allowed: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A checked mapping. Make it with `load_mapping`; read it, do not change what it holds."""

    event_names: dict[str, str]
    """Event type, exact -> conversion name or `FILTER`."""
    own_events: tuple[str, ...]
    """Event names that the advertiser registered, sent as they are; a record's type that is one means itself."""
    unknown_event_name: str
    """``refuse``, ``custom`` or ``filter``."""
    action_sources: dict[str, str]
    """Channel, lower case -> action source."""
    sources: dict[str, Source]
    """Target name -> where it comes from, in payload order."""
    proposed: frozenset[str]
    """Those of the sources that only the default names."""
    constants: dict[str, Any]
    """Target name -> the JSON value sent where the record gives none, in payload order."""
    consent: Consent | None
    dedup_key: Source | None
    """What identifies an event within account and name; None: its ``event_id``."""
    external_id_case: str
    """``lower`` or ``as_written``."""
    phone_country_code: str
    """Put before phone numbers without one; empty: never."""
    time_unit: str
    """Unit of a time whose schema type does not say, a key of `TIME_UNITS`."""
    click_id_from_url: bool
    """Whether an event without a click id takes it from the address of its page."""
    warnings: tuple[str, ...]
    """What is allowed, and should be changed: one line each."""

    @property
    def known_event_names(self) -> frozenset[str]:
        """All names that events may be sent under."""
        return EVENT_NAMES.union(self.own_events)

    def target(self, name: str) -> Target:
        """The target called `name`, with the rule that this mapping's settings choose."""
        if name == "user_data.external_id" and self.external_id_case == "as_written":
            return EXTERNAL_ID_AS_WRITTEN
        if name == "user_data.ph" and self.phone_country_code:
            return phone_target(self.phone_country_code)
        return TARGETS[name]

    @property
    def asked(self) -> Asked:
        """All that is looked at of a record."""
        consent = () if self.consent is None else (self.consent.source,)
        key = () if self.dedup_key is None else (self.dedup_key,)
        return tuple(source.steps for source in (*self.sources.values(), *consent, *key))

    @property
    def item_steps(self) -> tuple[Step, ...]:
        """Steps to the array whose elements are the items; empty: the event itself is the one item."""
        for name, source in self.sources.items():
            if name.startswith(CONTENTS):
                return _item_steps(source)
        return ()


def load_mapping(
    overlay_toml: str | None, schema: AvroSchema, *, default_toml: str, overlay_name: str = "mapping"
) -> Mapping:
    """Lays `overlay_toml` over `default_toml` and checks the result against the API and `schema`.

    `schema` is the reader's schema as JSON; `overlay_name` is what errors call the overlay (its file name).
    Raises `MappingError`: one line that names the key, and for a path or name that does not exist the nearest
    that does.
    """
    default = _parsed(default_toml, "packaged mapping")
    overlay = _parsed(overlay_toml or "", overlay_name)
    return _Loader(default, overlay, schema, overlay_name).mapping()


def _item_steps(source: Source) -> tuple[Step, ...]:
    """The steps up to and with the last array of the path."""
    steps = source.steps
    return steps[: len(steps) - steps[::-1].index(EACH)] if EACH in steps else ()


def _parsed(toml: str, name: str) -> dict[str, Any]:
    """The file's tables, checked for shape; dotted names that TOML took apart are put together again."""
    try:
        tables = tomllib.loads(toml)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise MappingError(f"{name}: not TOML: {reason}") from error
    allowed = (*_TABLES, *_CHOICES, "phone_country_code", *_WITHOUT_EFFECT)
    for key, value in tables.items():
        if key not in allowed:
            raise MappingError(
                f"{name}: {key!r} is not a mapping key; the nearest is {nearest(key, allowed)!r}"
            )
        if key in _TABLES and not isinstance(value, dict):
            raise MappingError(f"{name}: {key} is a table: write [{key}] on a line of its own")
    for key in ("fields", "constants"):
        tables[key] = _flat(tables.get(key, {}))
    return tables


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``user_data.em = …`` without quotes is a table in TOML; here it is the name "user_data.em"."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


class _Loader:
    """One run of `load_mapping`: the merged tables, and where to complain."""

    def __init__(
        self, default: dict[str, Any], overlay: dict[str, Any], schema: AvroSchema, overlay_name: str
    ) -> None:
        self._name = overlay_name
        self._tables = {key: {**default.get(key, {}), **overlay.get(key, {})} for key in _TABLES}
        self._settings = {key: value for key, value in {**default, **overlay}.items() if key not in _TABLES}
        self._written = overlay["fields"]
        self._warnings = tuple(
            f"{overlay_name}: {text}" for key, text in _WITHOUT_EFFECT.items() if key in overlay
        )
        try:
            self._paths = SchemaPaths(schema)
        except NoSuchPath as error:
            self._fail(str(error))

    def mapping(self) -> Mapping:
        for key, choices in _CHOICES.items():
            if self._settings.get(key) not in choices:
                self._fail(f"{key} must be one of {', '.join(map(repr, choices))}")
        phone_code = self._settings.get("phone_country_code")
        if not isinstance(phone_code, str) or not _PHONE_CODE.fullmatch(phone_code):
            self._fail('phone_country_code must be one to three digits in quotes, like "49", or "" for none')
        own_events = self._own_events()
        known = EVENT_NAMES.union(own_events)
        sources = self._sources()
        constants = self._constants(known)
        self._check_required([name for name in _REQUIRED if name not in sources and name not in constants])
        return Mapping(
            event_names=self._event_names(known),
            own_events=own_events,
            unknown_event_name=self._settings["unknown_event_name"],
            action_sources=self._action_sources(),
            sources=sources,
            proposed=frozenset(name for name in sources if name in self._proposed),
            constants=constants,
            consent=self._consent(),
            dedup_key=self._dedup_key(),
            phone_country_code=phone_code,
            external_id_case=self._settings["external_id_case"],
            time_unit=self._settings["time_unit"],
            click_id_from_url="event_source_url" in sources and not self._is_taken_away("user_data.click_id"),
            warnings=self._warnings,
        )

    def _check_required(self, missing: list[str]) -> None:
        if not missing:
            return
        names = f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no source"
        constant = [name for name in missing if TARGETS[name].constant]
        hint = f", or a value for all events in [constants]: {' and '.join(constant)}" if constant else ""
        self._fail(f'[fields] {names}: name one, {missing[0]} = "<path in the record>"{hint}')

    def _fail(self, message: str) -> NoReturn:
        raise MappingError(f"{self._name}: {message}")

    def _entries(self, table: str) -> dict[str, str]:
        """The table's entries that are not taken away; all its values are text."""
        entries = self._tables[table]
        for key, value in entries.items():
            if not isinstance(value, str):
                self._fail(f"[{table}] {key!r} must be text in quotes")
        return {key: value for key, value in entries.items() if value}

    def _event_names(self, known: frozenset[str]) -> dict[str, str]:
        names = self._entries("event_names")
        for key, name in names.items():
            if name != FILTER and name not in known:
                self._fail(
                    f"[event_names] {key!r}: {name!r} is not an event name of the platform; the nearest is "
                    f"{nearest(name, sorted(known))!r}, {FILTER!r} means: do not send, and a name that you "
                    "registered with Pinterest is declared in [own_events]"
                )
        return names

    def _own_events(self) -> tuple[str, ...]:
        """The names that the advertiser registered, in the order they are written."""
        table = self._tables["own_events"]
        self._check_keys("own_events", table, ("names",))
        names = table.get("names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._fail('[own_events] names must be a list of texts: names = ["loyalty_joined"]')
        for name in names:
            self._check_own_event(name)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            self._fail(f"[own_events] {twice[0]!r} stands there twice: take one away")
        if len(names) > MOST_OWN_EVENTS:
            self._fail(
                f"[own_events] declares {len(names)} names, but an advertiser may register {MOST_OWN_EVENTS}: take "
                "those away that are not registered"
            )
        return tuple(names)

    def _check_own_event(self, name: str) -> None:
        """That it can be a name, and is none of the platform's."""
        shown = repr(name[:LONGEST_OWN_EVENT])
        if name.strip().lower() in EVENT_NAMES:
            self._fail(f"[own_events] {shown} is a standard event name, in any case: take it away")
        if len(name) > LONGEST_OWN_EVENT:
            self._fail(
                f"[own_events] {shown}… has {len(name)} characters; {LONGEST_OWN_EVENT} is the most there may be"
            )
        if name != trim(name) or not name.isprintable():
            self._fail(f"[own_events] {shown} has blanks around it, or characters that cannot be printed")
        if not name or name == FILTER:
            self._fail(f"[own_events] {shown} is no name: write it as you registered it with Pinterest")

    def _action_sources(self) -> dict[str, str]:
        for key, value in self._entries("action_sources").items():
            if value not in ACTION_SOURCES:
                self._fail(
                    f"[action_sources] {key!r}: {value!r} is not an action source; the nearest is "
                    f"{nearest(value, ACTION_SOURCES)!r}"
                )
        return {key.strip().lower(): value for key, value in self._entries("action_sources").items()}

    def _target(self, table: str, name: str) -> Target:
        """The target called `name`. Raises `MappingError` if the API has none, or if we never send it."""
        if name.rpartition(".")[2] in NEVER_SENT:
            self._fail(f"[{table}] {name!r} is never sent: take the line away")
        if name not in TARGETS:
            self._fail(
                f"[{table}] {name!r} is not a field of a conversion event; the nearest is {nearest(name, TARGETS)!r}"
            )
        return TARGETS[name]

    def _sources(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for name, path in self._entries("fields").items():
            target = self._target("fields", name)
            if self._is_written(name):
                found[name] = self._fitting(target, path)
            elif self._paths.has(path):
                found[name] = self._fitting_proposal(target, path)
        self._unify_items(found)
        self._proposed = found.keys() - self._written.keys()
        self._derive(found)
        return {name: found[name] for name in TARGETS if name in found}

    def _derive(self, found: dict[str, Source]) -> None:
        """Fill the items' ids and their number from the items, unless a line maps them or takes them away."""
        for name, item_field in _DERIVED.items():
            if name not in found and item_field in found and not self._is_taken_away(name):
                found[name] = found[item_field]

    def _is_taken_away(self, name: str) -> bool:
        return name in self._written and not self._written[name]

    def _fitting(self, target: Target, path: str) -> Source:
        source = self._source(f"[fields] {target.name!r}", path)
        self._check_fit(target, source)
        return source

    def _fitting_proposal(self, target: Target, path: str) -> Source:
        """The default's. What the schema has there may be something else of the same name: only the user knows."""
        try:
            return self._fitting(target, path)
        except MappingError as error:
            away = f'with "{target.name}" = "" in [fields]'
            raise MappingError(
                f"{error}; this line is the packaged mapping's: name another path, or take it away {away}"
            ) from None

    def _is_written(self, name: str) -> bool:
        return name in self._written

    def _source(self, key: str, path: str) -> Source:
        try:
            return self._paths.resolve(path)
        except NoSuchPath as error:
            self._fail(f"{key}: {error}")

    def _check_fit(self, target: Target, source: Source) -> None:
        if not source.kinds & target.kinds:
            kinds = " or ".join(sorted(source.kinds))
            self._fail(f"[fields] {target.name!r} takes {target.meant}, but {source.path!r} is {kinds}")
        if source.many and target.arity is Arity.ONE:
            self._fail(f"[fields] {target.name!r} takes one value, but {source.path!r} may give several")

    def _unify_items(self, found: dict[str, Source]) -> None:
        """Item fields must come from one array. The user's array stands; the default's fields make way, and so do the
        default's lines for what follows from the items."""
        items = {name: _item_steps(source) for name, source in found.items() if name.startswith(CONTENTS)}
        leading = [steps for name, steps in items.items() if self._is_written(name)] or list(items.values())
        for name, steps in items.items():
            if steps == leading[0]:
                continue
            if self._is_written(name):
                self._fail(
                    f"[fields] {name!r}: all fields of {CONTENTS} must come from one array of the record"
                )
            del found[name]
        for name in _DERIVED:
            if (
                name in found
                and not self._is_written(name)
                and items
                and _item_steps(found[name]) != leading[0]
            ):
                del found[name]

    def _constants(self, known: frozenset[str]) -> dict[str, Any]:
        constants = {}
        for name, value in self._tables["constants"].items():
            target = self._target("constants", name)
            if value == "":
                continue
            if not target.constant:
                self._fail(f"[constants] {name!r} cannot be a constant: every event has its own")
            constants[name] = self._constant(target, value, known)
        return {name: constants[name] for name in TARGETS if name in constants}

    def _constant(self, target: Target, value: Any, known: frozenset[str]) -> Any:
        """The JSON value that is sent for a constant."""
        if target.name in ("event_name", "action_source"):
            allowed = known if target.name == "event_name" else frozenset(ACTION_SOURCES)
            if not isinstance(value, str) or value not in allowed:
                near = nearest(str(value), sorted(allowed))
                self._fail(f"[constants] {target.name}: {value!r} is not one; the nearest is {near!r}")
            return value
        sent = LeftOut.MALFORMED if isinstance(value, list | dict) else target.rule(value)
        if isinstance(sent, LeftOut) or sent is None:
            self._fail(f"[constants] {target.name!r} must be {target.meant}")
        return [sent] if target.hashed else sent

    def _consent(self) -> Consent | None:
        table = self._tables["consent"]
        self._check_keys("consent", table, ("require", "allowed"))
        path, allowed = table.get("require", ""), table.get("allowed", [])
        if not isinstance(allowed, list) or not all(isinstance(value, str | int) for value in allowed):
            self._fail('[consent] allowed must be a list of values: allowed = ["granted"]')
        if not isinstance(path, str):
            self._fail("[consent] require must be a path in quotes")
        if not path:
            if allowed:
                self._fail("[consent] allowed needs require: the path of the value")
            return None
        source = self._single("[consent] require", path)
        if not allowed and not source.kinds & _BOOLEAN:
            self._fail(
                f"[consent] require: {path!r} is no boolean: say which values will do, allowed = [...]"
            )
        return Consent(source, tuple(allowed))

    def _dedup_key(self) -> Source | None:
        table = self._tables["dedup"]
        self._check_keys("dedup", table, ("key",))
        path = table.get("key", "")
        if not isinstance(path, str):
            self._fail("[dedup] key must be a path in quotes")
        if not path:
            return None
        source = self._single("[dedup] key", path)
        if not source.kinds & TARGETS["event_id"].kinds:
            self._fail(f"[dedup] key: {path!r} is {' or '.join(sorted(source.kinds))}, but must be text")
        return source

    def _single(self, key: str, path: str) -> Source:
        source = self._source(key, path)
        if source.many:
            self._fail(f"{key}: {path!r} may give several values; name one that gives one")
        return source

    def _check_keys(self, table: str, entries: dict[str, Any], allowed: tuple[str, ...]) -> None:
        for key in entries:
            if key not in allowed:
                self._fail(f"[{table}] {key!r} is not a key; the nearest is {nearest(key, allowed)!r}")
