"""Decode a record to show it, and mask it: a value is shown only if it is known to say nothing about a person.

Theory of operation. The mapping says what paths mean. A value is shown if its path feeds a field of `_PUBLIC` and no
other field. Everything else becomes ``***``. Nulls and the structure stay.

Two more checks catch values that a shop writes in the wrong place. A value that is hidden at one path must not be shown
at another: a short one ("Bo") is searched for as a word, a number as the whole value. And `masking.mask` removes what
looks like an address, a token or a phone number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import orjson

from consumer.avro.decode import Decoder
from consumer.avro.paths import EACH, ORIGIN, Path, Source
from consumer.avro.schema import Array, AvroType, Map, Primitive, Union, parse
from consumer.avro.schema import Record as RecordType
from consumer.conversion.computed.expressions import asked_by
from consumer.conversion.mapping import Mapping
from consumer.conversion.sections import Sections
from consumer.conversion.targets import CONTENTS
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaMissing
from consumer.engine.model import CommerceEvent, Filtered, Record, Rejection, SchemaRef, section_of
from consumer.engine.sending.masking import MASK, mask
from consumer.errors import KafkaError
from consumer.ports import Schemas

_IDENTIFIERS: Final = frozenset(
    {
        *("event_id", "ad_account_id", "app_id", "custom_data.content_ids", "custom_data.order_id"),
        *(f"{CONTENTS}.id", f"{CONTENTS}.item_brand_id"),
    }
)
# Conversion fields that say what happened and what was bought, not by whom. Every other field counts as personal.
_PUBLIC: Final = _IDENTIFIERS | {
    *("event_name", "action_source", "event_time", "opt_out", "language", "app_name", "app_version", "wifi"),
    *("custom_data.currency", "custom_data.value", "custom_data.num_items", "custom_data.predicted_ltv"),
    *("custom_data.content_name", "custom_data.content_category", "custom_data.content_brand"),
    *(
        f"{CONTENTS}.{name}"
        for name in ("item_name", "item_category", "item_brand", "item_price", "quantity")
    ),
}

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/#-]{0,127}")
# An id with a digit, which no person's name has.
_ID: Final = re.compile(r"(?=.*\d)[A-Za-z0-9._:/#-]{1,128}")
# Fields with the form of an identifier: a digest, an IP address, a token, a page.
_NO_IDENTIFIER: Final = re.compile(r"[0-9a-fA-F]{40,}|\d{1,3}(?:\.\d{1,3}){3}|pina_|https?:", re.IGNORECASE)
# Least digits of a hidden number that is also searched for without its spaces and signs.
_LEAST_DIGITS: Final = 7
# Shorter values are part of many identifiers by chance, so they count only as words.
_LEAST_HIDDEN: Final = 4
_LEAST_LETTERS: Final = 2
# Most words of a hidden value that is searched for word by word; a longer text would hide common words.
_MAX_WORDS: Final = 4
_WORD: Final = re.compile(r"[^\W_]+")
_AMOUNTS: Final = frozenset({"custom_data.value", "custom_data.predicted_ltv", f"{CONTENTS}.item_price"})
_CODES: Final = frozenset({"language", "custom_data.currency"})
# What no name or address is shown as.
_NO_TEXTS: Final = (
    _AMOUNTS | _CODES | {"event_time", "opt_out", "wifi", f"{CONTENTS}.quantity", "custom_data.num_items"}
)
# A language or a currency is shown even if it is spelled like a hidden country.
_CODE: Final = re.compile(r"[A-Za-z]{2,3}(?:[_-][A-Za-z]{2,4})?")
# From a value that may be shown, and the conversion fields that it feeds, to the value to show.
_Show = Callable[[str | bool | float, frozenset[str]], str | bool | float]


class Masker:
    """Masks decoded records of one schema, under one mapping, or under several: what is personal for one is masked, and
    so is text that not all of them map, as one of them may be wrong; but not ids with a digit."""

    def __init__(self, schema: dict[str, Any], *mappings: Mapping) -> None:
        self._type = parse(schema)
        # Path -> the conversion fields that it feeds.
        self._public: dict[Path, frozenset[str]] = {}
        personal: set[Path] = set()
        for name, source in (item for mapping in mappings for item in mapping.sources.items()):
            if name not in _PUBLIC:
                personal.update(asked_by(source))
            # A value that is computed from several is not equal to any of them, so it shows none of them.
            elif isinstance(source, Source):
                self._public[source.steps] = self._public.get(source.steps, frozenset()) | {name}
        # Text that one of several mappings takes for public, and another does not know, may be anybody's name.
        ways = [
            {one.steps for one in other.sources.values() if isinstance(one, Source)} for other in mappings
        ]
        self._doubtful = {
            path
            for path, fields in self._public.items()
            if not fields <= _NO_TEXTS and not all(path in one for one in ways)
        }
        # A path that also feeds a personal field is personal.
        for path in personal:
            self._public.pop(path, None)

    def masked(self, event: CommerceEvent) -> Any:
        """Return the masked record as JSON values."""
        # Two passes: a value that is hidden in one place must not be shown in an earlier one.
        return self._value(self._type, event, (), lambda text: None, Nets(self.hidden(event)).passed)

    def hidden(self, event: CommerceEvent) -> list[str]:
        """Return the texts of the record that must not be shown."""
        hidden: list[str] = []
        self._value(self._type, event, (), hidden.append, lambda value, fields: value)
        # Keys and headers may be personal, too; topic, partition, offset and timestamp are not.
        of_kafka = {name: event.get(ORIGIN, {}).get(name) for name in ("key", "header")}
        return hidden + [text for path, text in _texts(of_kafka, (ORIGIN,)) if path not in self._public]

    def _value(self, kind: AvroType, value: Any, path: Path, hide: Callable[[str], None], show: _Show) -> Any:
        """Return `value` with those values that may be shown passed through `show`. The rest is masked; its text
        goes to `hide`."""
        if value is None:
            return None
        if isinstance(kind, Union):
            return self._value(_branch(kind, value), value, path, hide, show)
        if isinstance(kind, RecordType) and isinstance(value, dict):
            types = {field.name: field.type for field in kind.fields}
            return {
                name: self._value(types[name], inner, (*path, name), hide, show) if name in types else MASK
                for name, inner in value.items()
            }
        # Keys of maps are data, other than names of fields.
        if isinstance(kind, Map) and isinstance(value, dict):
            shown: dict[str, Any] = {}
            for key, inner in value.items():
                inside = (*path, key)
                known = any(one[: len(inside)] == inside for one in self._public)
                if not known:
                    hide(key)
                name = key if known else f"{MASK}{len(shown) + 1}"
                shown[name] = self._value(kind.values, inner, inside, hide, show)
            return shown
        if isinstance(kind, Array) and isinstance(value, list):
            return [self._value(kind.items, inner, (*path, EACH), hide, show) for inner in value]
        if path in self._public and (path not in self._doubtful or _ID.fullmatch(str(value))):
            # A type that JSON does not have becomes text.
            plain = value if isinstance(value, str | bool | int | float) else str(value)
            return show(plain, self._public[path])
        # Enums and booleans are masked too: a field that is not mapped could mean anything.
        text = value.decode("utf-8", "ignore") if isinstance(value, bytes) else str(value)
        # A boolean identifies no person, and "True" would hide this word everywhere.
        if text and not isinstance(value, bool):
            hide(text.encode("utf-8", "ignore").decode())
        return MASK


def _branch(kind: Union, value: Any) -> AvroType:
    """Return the branch of a union that a decoded value belongs to, if it is a record, a map or an array."""
    names = value.keys() if isinstance(value, dict) else None
    fitting = [
        one
        for one in kind.branches
        if (isinstance(one, RecordType) and {field.name for field in one.fields} == names)
        or (isinstance(one, Map) and names is not None)
        or (isinstance(one, Array) and isinstance(value, list))
    ]
    # If the branch is not clear, return a type that masks the whole value. The type of a single value makes no
    # difference.
    return fitting[0] if len(fitting) == 1 else Primitive("bytes")


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, (*path, name))
    elif value is not None:
        yield path, value.decode("utf-8", "ignore") if isinstance(value, bytes) else str(value)


async def decode_now(
    decoder: Decoder, record: Record, topic: str, writers: Schemas, partition: int = -1
) -> CommerceEvent | Rejection | Filtered | None:
    """Return the decoded record, or why it cannot be decoded; None for a tombstone. Raises `KafkaError`."""
    decoded = decoder.decode(record, topic, partition)
    while isinstance(decoded, SchemaRef):  # of the value, then of the key
        # One try: a person is waiting, and can run it again.
        answer = await writers.fetch(FetchSchema(decoded))
        if isinstance(answer, SchemaMissing):
            return decoder.missing(decoded)
        if not isinstance(answer, SchemaFound):
            raise KafkaError(
                f"the schema {decoded.kind} {decoded.value} cannot be fetched now ({answer.reason}); try again"
            )
        decoder.add_schema(decoded, answer.schema, answer.kind)
        decoded = decoder.decode(record, topic, partition)
    return decoded


def masker_of(event: CommerceEvent, mapped: Sections, *others: Sections) -> Masker:
    """Return what masks this event, by its section of `mapped`, and by the sections of `others` for its record type."""
    section = mapped.all[section_of(event) - 1]
    more = (one.mapping for other in others for one in other.all if one.record == section.record)
    return Masker(section.schema, section.mapping, *more)


def nets_of(was: object, old: Sections, now: object, new: Sections) -> Nets:
    """Return what masks values made of a record, which `old` read as `was` and `new` as `now` (maybe no events)."""
    sides = (was, old, new), (now, new, old)
    hidden = (masker_of(one, *mapped).hidden(one) for one, *mapped in sides if isinstance(one, dict))
    return Nets([*chain(*hidden)])


class Nets:
    """Removes from shown values the `hidden` text of other places, and text that looks personal."""

    def __init__(self, hidden: list[str]) -> None:
        # Some letters have a longer capital ("ß"), which comparing letter by letter does not find.
        capitals = [text.upper() for text in hidden if len(text.upper()) != len(text)]
        # Compared without spaces, signs and leading zeros, as a shop may write a phone number into an id.
        bare = [(text, re.sub(r"\D", "", text)) for text in hidden]
        numbers = [one for text, one in bare if len(one) >= _LEAST_DIGITS and len(one) * 2 > len(text)]
        texts = [*hidden, *capitals, *numbers, *(one.lstrip("0") for one in numbers)]
        self._body = orjson.dumps({"hidden": texts})
        self._hidden = {text.casefold() for text in texts if len(text) >= _LEAST_HIDDEN}
        self._whole = set(texts)
        words = [_WORD.findall(text[: _MAX_WORDS * 64]) for text in hidden]
        self._phrases = {
            _phrase(some)
            for text, some in zip(hidden, words, strict=True)
            if 0 < len(some) <= _MAX_WORDS and sum(map(str.isalpha, text)) >= _LEAST_LETTERS
        }

    def sent(self, field: str, value: Any) -> Any:
        """Return the part that may be shown of what a conversion event has in `field`; of a list, of each value."""
        if isinstance(value, list):
            return [self.sent(field, one) for one in value]
        if field not in _PUBLIC:
            return None if value is None else MASK
        # Amounts are text, and a long one would be taken for a phone number.
        if field in _AMOUNTS and isinstance(value, str):
            is_hidden = value in self._whole or self.passed(float(value), frozenset()) == MASK
            return MASK if is_hidden else value
        return None if value is None else self.passed(value, frozenset({field}))

    def passed(self, value: str | bool | float, fields: frozenset[str]) -> str | bool | float:
        """Return the part that may be shown of a value that feeds these fields."""
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, fields)
        ways = {str(value)}
        # 7.0 is the hidden number 7.
        if isinstance(value, int) or value.is_integer():
            ways.add(str(int(value)))
        return MASK if ways & self._whole else value

    def _text(self, text: str, fields: frozenset[str]) -> str:
        if fields <= _CODES and _CODE.fullmatch(text):
            return text
        found = self._find(text)
        # Identifiers do not go through `mask`, which removes long numbers: people search for them.
        if fields <= _IDENTIFIERS and _IDENTIFIER.fullmatch(text) and not _NO_IDENTIFIER.search(text):
            folded = text.casefold()
            return MASK if found or any(one in folded for one in self._hidden) else text
        for begin, end in reversed(found):
            text = f"{text[:begin]}{MASK}{text[end:]}"
        return mask(text, self._body)

    def _find(self, text: str) -> list[tuple[int, int]]:
        """Return the ranges in which hidden values stand as words: in order, without overlap."""
        words, found, at = list(_WORD.finditer(text)), list[tuple[int, int]](), 0
        while at < len(words):
            # The longest first, so that no word of "Bo Xi" remains.
            for count in range(min(_MAX_WORDS, len(words) - at), 0, -1):
                some = words[at : at + count]
                if _phrase([one[0] for one in some]) in self._phrases:
                    found.append((some[0].start(), some[-1].end()))
                    at += count - 1
                    break
            at += 1
        return found


def _phrase(words: Sequence[str]) -> str:
    """Return the words in the form in which they are compared: without case, joined by single spaces."""
    return " ".join(one.casefold() for one in words)
