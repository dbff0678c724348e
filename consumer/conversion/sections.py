"""The mapping file, laid over the packaged one, and which section of it a record takes.

Theory of operation. What stands at the top of the file is for all records. A section adds to it for one record type, by
the full name in its writer's schema (``[record."com.shop.Order"]``), for one topic (``[topic."web.orders"]``), or for
one record type on one topic (``[record."com.shop.Order".topic."web.orders"]``): four layers above the packaged default,
the narrower one wins key by key. For each record type and topic that the file names, its layers become one mapping,
checked once at start (`loading`). `choose` returns the one for a record; the decoder calls it once for each schema and
topic.

A file without sections is one mapping, for all records.

Errors are one line, name the file and the key, and say what to do.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Map
from typing import Any, Final, NamedTuple, Protocol

from consumer.avro.decode import DecodeCode, rejected
from consumer.avro.paths import ITEMS, ORIGIN, Asked, AvroSchema, SchemaPaths, Source, values_in
from consumer.avro.plan import Plan, is_read
from consumer.avro.schema import PRIMITIVES, AvroType, printable
from consumer.conversion.computed.expressions import Expression, First, sources_in
from consumer.conversion.computed.tables import flat
from consumer.conversion.hints import field_named, fields_within, line_meant
from consumer.conversion.loading import SETTINGS, Layer, Loader, MissingFields, Rank
from consumer.conversion.mapping import Mapping
from consumer.conversion.targets import CONTENTS, MAX_OWN_EVENTS, TABLES, TARGETS
from consumer.engine.figures.delivered import PARAMETERS
from consumer.engine.model import Filtered, Rejection, SchemaDrift
from consumer.errors import MappingError, SchemaError, first_of, nearest, or_all

# A record's section is one byte in a block.
_MAX_SECTIONS: Final = 250
_MAX_NAMED: Final = 5  # record types in one message
_LONGEST_PATH: Final = 100  # characters of a writer's path in a message


class Section(NamedTuple):
    """The mapping of one record type, or of one on one topic. `name` is empty where the file has no sections."""

    name: str
    record: str
    schema: AvroSchema
    mapping: Mapping

    @property
    def asked(self) -> Asked:
        """See `consumer.avro.decode.Ours`."""
        return self.mapping.asked

    def drift(self, writer: AvroType, plan: Plan) -> SchemaDrift:
        """See `consumer.avro.decode.Ours`."""
        return SchemaDrift(self.name or self.record, *drift_of(self.mapping, writer, plan))


class ReaderSchemas(Protocol):
    """The folder of schemas (`consumer.adapters.schemas.LocalSchemas`)."""

    def reader(self, name: str) -> AvroSchema:
        """Return the schema that PINSTREAM_SCHEMA names. Raises `SchemaError`."""

    def record(self, name: str) -> AvroSchema:
        """Return the schema of the record type with this full name. Raises `SchemaError`."""


_Place = tuple[str, str | None]  # a record type and a topic; None: every topic without a section


class Sections:
    """A checked mapping file, for these record types. Make it with `load_sections`, and do not change its contents."""

    def __init__(self, file: _File, schemas: Map[str, SchemaPaths]) -> None:
        # The number of the section for a place; or why there is none, for a record type that has sections.
        self._places: dict[_Place, int | str] = {}
        found: list[Section] = []
        warnings: list[str] = []
        loaders: list[Loader] = []
        for record, paths in schemas.items():
            error: MissingFields | None = None
            for topic in (None, *file.topics(record)):
                layers = file.layers(record, topic)
                # The name in errors: the header, with the record type if the header lacks it.
                where = f"{layers[-1].name} ({record})" if layers[-1].rank is Rank.SHARED else layers[-1].name
                loaders.append(Loader(layers, paths, where))
                try:
                    mapping = loaders[-1].mapping()
                except MissingFields as incomplete:
                    # If only a topic's layer is incomplete, it removes a source: that is an error.
                    if isinstance(self._places.get((record, None)), int):
                        raise
                    error = error or incomplete
                    self._places[record, topic] = str(incomplete)
                    on = "topics that have no section of their own" if topic is None else f"the topic {topic}"
                    warnings.append(
                        f"records of {record} on {on} have no mapping, which unknown_record is for: {incomplete}"
                    )
                else:
                    name = record if topic is None else f"{record} on {topic}"
                    found.append(Section(name if file.is_divided else "", record, paths.schema, mapping))
                    self._places[record, topic] = len(found)
            # A record type may be complete on some topics only: it may never come on others.
            if error is not None and not any(section.record == record for section in found):
                raise error
        # Only now it is known whether any section has the paths of shared lines.
        file.refuse_unused(loaders, schemas)
        if len(found) > _MAX_SECTIONS:
            raise MappingError(f"{file.name} makes {len(found)} sections; {_MAX_SECTIONS} are the most")
        self.all = tuple(found)  # a section's number is its place here, counted from 1
        # Names of all sections; empty if the file has none, and `all` is one mapping for everything.
        self.names = tuple(section.name for section in found if section.name)
        self.records = tuple(dict.fromkeys(section.record for section in found))  # that are mapped
        self.topics = file.topics()  # that the file names
        # The advertiser's own event names in all sections.
        self.own_events = tuple(
            dict.fromkeys(name for section in found for name in section.mapping.own_events)
        )
        if len(self.own_events) > MAX_OWN_EVENTS:
            raise MappingError(
                f"{file.name}: [own_events] declares {len(self.own_events)} names in all, but an advertiser may "
                f"register {MAX_OWN_EVENTS}: remove those that are not registered"
            )
        self.unknown_record = file.unknown_record
        # Whether record types are distinguished, which a file without sections may require, too.
        self.typed = file.is_divided or self.unknown_record == "filter"
        self.warnings = tuple(warnings)
        # The record types that are mapped, by their names and aliases.
        self._records = file.by_name(schemas)
        # Without sections for record types, a name without namespace is enough, as in Avro's schema resolution.
        by_name = {} if file.records else self._records
        self._unqualified = {name.rpartition(".")[2]: record for name, record in by_name.items()}

    def _record_of(self, name: str) -> str | None:
        """Return the mapped record type with the writer's name `name`; None: it is not mapped."""
        return self._records.get(name) or self._unqualified.get(name.rpartition(".")[2])

    def knows(self, name: str) -> bool:
        """See `consumer.avro.decode.Choice`."""
        return self._record_of(name) is not None

    def choose(self, name: str, topic: str | None) -> int | Rejection | Filtered:
        """See `consumer.avro.decode.Choice`."""
        record = self._record_of(name)
        found: int | str | None = None
        if record is not None:
            # A topic without a section of its own uses the one for all topics.
            found = self._places.get((record, topic)) or self._places[record, None]
        if isinstance(found, int):
            return found
        # This includes a type that is mapped on other topics only.
        if self.unknown_record == "filter":
            return _FILTERED
        if found is not None:
            return rejected(DecodeCode.UNKNOWN_RECORD, f"{name} has no mapping on this topic: {found}")
        if name in PRIMITIVES or name in ("array", "map"):
            why = (
                f"the datum is {name}, a branch of its schema's union, and no record: there is no event in it"
            )
            return rejected(DecodeCode.UNKNOWN_RECORD, why)
        return rejected(
            DecodeCode.UNKNOWN_RECORD,
            f"no section of the mapping is for the record type {name}: add [record.{_quoted(name)}], or filter what is "
            f'not mapped with unknown_record = "filter"; mapped are {first_of(self.records, _MAX_NAMED)}',
        )


_FILTERED: Final = Filtered(DecodeCode.UNKNOWN_RECORD.value)


def load_sections(
    overlay_toml: str | None,
    schemas: ReaderSchemas,
    *,
    default_toml: str,
    overlay_name: str = "mapping",
    schema_name: str,
    is_named: bool = False,
) -> Sections:
    """Lay `overlay_toml`, which may have sections, over `default_toml`; check the result against API and schemas.

    `overlay_name` is the overlay's name in errors (its file name). Raises `SchemaError`, and `MappingError`: one line
    that names the key, and for a path or name that does not exist the nearest that does.

    `schema_name` (PINSTREAM_SCHEMA) is the record type of a file without sections for record types. A file that has
    them maps it, too, if the user named it (`is_named`).
    """
    file = _File(overlay_toml, default_toml, overlay_name)
    found: dict[str, SchemaPaths] = {}
    # The file's own sections name the types; the setting's default would add one that never comes.
    if is_named or not file.records:
        paths = SchemaPaths(schemas.reader(schema_name))
        found[paths.record.name] = paths
    for name in file.records:
        if name not in found:
            try:
                found[name] = SchemaPaths(schemas.record(name))
            except SchemaError as error:
                raise SchemaError(f"{overlay_name} [record.{_quoted(name)}]: {error}") from None
    return Sections(file, found)


def is_divided(overlay_toml: str) -> bool:
    """Return whether a mapping file has sections, even if it has other errors. Raises `MappingError`."""
    return not _parsed(overlay_toml, "mapping").keys().isdisjoint(_SECTIONS)


def _quoted(name: str) -> str:
    """Return a name in the form of a TOML key."""
    return json.dumps(name, ensure_ascii=False)


class _File:
    """The tables of a mapping file, checked for shape only."""

    def __init__(self, overlay_toml: str | None, default_toml: str, name: str) -> None:
        self.name = name
        self._default = _checked(_parsed(default_toml, "packaged mapping"), "packaged mapping", _TOP)
        self._top = _checked(_parsed(overlay_toml or "", name), name, (*_TOP, *_SECTIONS))
        records, topics = (self._top.pop(key, {}) for key in _SECTIONS)
        # With record types, a section for a topic is shared: several mappings have its lines.
        self._layers: dict[tuple[str | None, str | None], Layer] = {
            (None, topic): layer._replace(rank=Rank.SHARED if records else Rank.OWN)
            for topic, layer in self._named(topics, "topic", ())
        }
        self.records: list[str] = []
        for record, layer in self._named(records, "record", ("topic",)):
            self.records.append(record)
            self._layers[record, None] = layer
            narrow = layer.tables.pop("topic", {})
            for topic, inner in self._named(narrow, f"record.{_quoted(record)}.topic", ()):
                self._layers[record, topic] = inner
        self.is_divided = bool(self._layers)
        # Its value is checked by each `Loader`, as all settings are.
        self.unknown_record: str = {**self._default, **self._top}.get("unknown_record", "")

    def _named(self, tables: Any, key: str, inner: tuple[str, ...]) -> Iterator[tuple[str, Layer]]:
        """Yield the sections below `key` by their names, checked."""
        kind = "topic" if key.endswith("topic") else "record type"
        if not isinstance(tables, dict):
            raise MappingError(f'{self.name}: {key} is a table: write [{key}."<{kind}>"]')
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise MappingError(
                    f"{self.name} [{key}]: {name!r} is a setting of no section; it belongs above"
                )
            header = f"[{key}.{_quoted(name)}"
            where = f"{self.name} {header}]"
            yield name, Layer(where, _checked(table, where, inner, quoted=header))

    def topics(self, record: str | None = None) -> tuple[str, ...]:
        """Return the topics of all sections; or of those that apply to this record type."""
        named = (at for at in self._layers if record is None or at[0] in (None, record))
        return tuple(dict.fromkeys(topic for _, topic in named if topic is not None))

    def layers(self, record: str, topic: str | None) -> list[Layer]:
        """Return the layers that apply to a record type on a topic, from the packaged default to the narrowest."""
        # For topics without a section of their own (None), two of these places are the same.
        places = dict.fromkeys(((None, topic), (record, None), (record, topic)))
        return [
            Layer("packaged mapping", self._default, Rank.DEFAULT),
            Layer(self.name, self._top, Rank.SHARED if self.is_divided else Rank.OWN),
            *(self._layers[place] for place in places if place in self._layers),
        ]

    def by_name(self, schemas: Map[str, SchemaPaths]) -> dict[str, str]:
        """Return the record types by their names and aliases; a name goes before an alias."""
        by_name: dict[str, str] = {}
        for record, paths in schemas.items():
            for alias in paths.record.aliases:
                other = by_name.setdefault(alias, record)
                if other != record and alias not in schemas:
                    raise MappingError(
                        f"{self.name}: {other} and {record} both have the alias {alias} in their schemas: records of "
                        "that name could be either; take it from one of them"
                    )
        return by_name | {record: record for record in schemas}

    def refuse_unused(self, loaders: Sequence[Loader], schemas: Map[str, SchemaPaths]) -> None:
        """Raise `MappingError` if a path that sections share is in none of their schemas."""
        used = {line for loader in loaders for line in loader.used}
        for loader in loaders:
            for line, (path, is_all, texts) in loader.unused.items():
                # The section that has the path may have a line of its own.
                if line in used or (is_all and any(paths.has(path) for paths in schemas.values())):
                    continue
                if texts is not None:
                    alike = (one.unused[line].texts or () for one in loaders if line in one.unused)
                    known = or_all(path, sorted(texts.union(*alike)))
                    raise MappingError(f"{line}: no section that shares this line has such a value; {known}")
                if not path:
                    raise MappingError(f"{line} has no numbers: name the path of user_data.ph in [fields]")
                places = {at: record for record, paths in schemas.items() for at in paths.all_paths()}
                near = nearest(path, places)
                hint = f"the nearest is {near!r} ({places[near]})" if near else "see the schemas for its name"
                raise MappingError(
                    f"{line}: {path!r} is in no schema of the sections that share this line; {hint}"
                )


# The parser's time is the square of a name's parts. (This sees names in texts and comments, too; none is so long.)
_MAX_PARTS: Final = 128
_PART: Final = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY: Final = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{_MAX_PARTS}}}")


def _parsed(toml: str, name: str) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte-order mark at the beginning.
        if _LONG_KEY.search(toml):
            raise MappingError(
                f"{name}: a name has more than {_MAX_PARTS} parts between dots: write a shorter one"
            )
        tables = tomllib.loads(toml.removeprefix("\ufeff"))
        # Messages name values of the file: Python makes no text of an integer of more than 4300 digits.
        repr(tables)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        # An error is one line.
        reason = " ".join(str(error).split())
        raise MappingError(f"{name}: not TOML: {reason}{line_meant(toml, reason)}") from error
    except ValueError:
        raise MappingError(f"{name}: a number has thousands of digits: write a shorter one") from None
    return tables


_TOP: Final = ("unknown_record",)
_SECTIONS: Final = ("record", "topic")


def _checked(
    tables: dict[str, Any], where: str, more: tuple[str, ...], *, quoted: str = ""
) -> dict[str, Any]:
    """Return the tables of the file or of a section, checked for shape.

    Dotted names that TOML took apart are put together again. `more`: further keys that are allowed; `quoted`: the
    beginning of the section's header.
    """
    settings = [key for key in SETTINGS if key not in _TOP]
    allowed = (*TABLES, *settings, *more)
    for key, value in tables.items():
        if key in allowed:
            if key in TABLES and not isinstance(value, dict):
                raise MappingError(f"{where}: {key} is a table: write [{key}] on a line of its own")
            continue
        if quoted and key in _TOP:
            raise MappingError(f"{where}: {key} is for all sections: write it at the top of the file")
        if quoted and key == "record":
            raise MappingError(f'{where}: write [record."<record type>".topic…], the record type first')
        # The lines of a table without the table's header.
        if key == "newer_event_names":  # all standard names are known since 0.2.0
            raise MappingError(f"{where}: {key!r} has had no effect since 0.2.0: remove the line")
        if key in TARGETS or fields_within(key):
            table = f"{quoted}.fields]" if quoted else "[fields]"
            raise MappingError(f"{where}: {key!r} is a field: write {table} on a line of its own above it")
        # A name with dots in it, written without quotes.
        if quoted and isinstance(value, dict) and key != "topic" and not nearest(key, allowed):
            raise MappingError(
                f'{where}: {key!r} is not a mapping key; a name with dots is quoted: {quoted[:-1]}.{key}…"]'
            )
        if quoted and key == "topic":
            raise MappingError(
                f'{where}: a section for a topic has no topics of its own: write [topic."<topic>"]'
            )
        raise MappingError(f"{where}: {key!r} is not a mapping key; {or_all(key, allowed)}")
    # ``user_data.em = …`` without quotes is a table in TOML. Any other table is a value that is computed.
    names = {
        key: flat(tables.get(key, {}), lambda name, _: any(one.startswith(f"{name}.") for one in TARGETS))
        for key in ("fields", "constants")
    }
    return {**tables, **names}


def drift_of(mapping: Mapping, writer: AvroType, plan: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compare what a mapping reads with a writer's type, which `plan` resolves with ours: see `SchemaDrift`."""
    sources = {**mapping.sources, "consent": mapping.consent, "dedup_key": mapping.dedup_key}
    lacking: dict[str, list[str]] = {}
    for name, source in sources.items():
        for path in () if source is None else _lacking(mapping, source, plan):
            lacking.setdefault(path, []).append(name)
    # A parameter is filled if one of the paths to its field is there, or the mapping sends a constant.
    filled = {
        *mapping.constants,
        *(name for name, source in mapping.sources.items() if _has(mapping, source, plan)),
    }
    wanted = {field for one in PARAMETERS for field in one.paths} - filled
    if f"{CONTENTS}.id" in filled:
        wanted.discard("custom_data.content_ids")  # they follow from the items
    could: dict[str, str] = {}
    for path, kinds in values_in(writer).items():
        field = field_named(path.removesuffix("[]").rpartition(".")[2], kinds)
        if field in wanted:
            could.setdefault(field, printable(path, _LONGEST_PATH))
    return (
        tuple(f"{path} ({', '.join(names)})" for path, names in lacking.items()),
        tuple(f"{field} from {path}" for field, path in could.items()),
    )


def _lacking(mapping: Mapping, expression: Expression, plan: Plan) -> Iterator[str]:
    """Yield the paths of an expression that the writer lacks, but not one of several of which another is there."""
    if isinstance(expression, Source):
        if not _has(mapping, expression, plan):
            yield expression.path
    elif not isinstance(expression, First) or not _has(mapping, expression, plan):
        for part in expression.parts:
            yield from _lacking(mapping, part, plan)


def _has(mapping: Mapping, expression: Expression, plan: Plan) -> bool:
    """Return True if the writer has one of the paths of an expression."""
    return any(_is_there(mapping, source, plan) for source in sources_in(expression))


def _is_there(mapping: Mapping, source: Source, plan: Plan) -> bool:
    steps = source.steps
    if steps[:1] == (ITEMS,):  # of the list that the step behind `EACH` numbers
        return any(is_read(plan, (*items, *steps[3:])) for items in mapping.item_lists)
    return steps[:1] == (ORIGIN,) or is_read(plan, steps)
