"""What a record held, masked: a value is shown only if it is known to say nothing about a person.

Theory of operation. The mapping says what paths mean. A value is shown if its path feeds a field of `_PUBLIC` and none
that is not. Everything else is ``***``, enums and booleans too: what is not mapped might be anything. Nulls and the
structure stay; keys of maps are data.

What is shown then goes through two nets more. No value that was hidden may stand in it, however it is written there: a
short one ("Bo") as a word of its own, a number as all of it; and what looks like an address, a token or a phone number
is taken out (`masking.mask`). Identifiers are spared the last one where they look like identifiers: ids hold
long numbers, and are what one searches for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from consumer.avro.paths import EACH, Source, Step
from consumer.avro.schema import Array, AvroType, Enum, Map, Primitive, Union, parse
from consumer.avro.schema import Record as RecordType
from consumer.conversion.mapping import Mapping
from consumer.conversion.targets import CONTENTS
from consumer.engine.masking import MASK, mask
from consumer.engine.model import CommerceEvent

_IDENTIFIERS: Final = frozenset(
    {
        *("event_id", "ad_account_id", "app_id", "custom_data.content_ids", "custom_data.order_id"),
        *(f"{CONTENTS}.id", f"{CONTENTS}.item_brand_id"),
    }
)
_PUBLIC: Final = _IDENTIFIERS | {
    *("event_name", "action_source", "event_time", "opt_out", "language", "app_name", "app_version", "wifi"),
    *("custom_data.currency", "custom_data.value", "custom_data.num_items", "custom_data.predicted_ltv"),
    *("custom_data.content_name", "custom_data.content_category", "custom_data.content_brand"),
    *(
        f"{CONTENTS}.{name}"
        for name in ("item_name", "item_category", "item_brand", "item_price", "quantity")
    ),
}
"""Conversion fields that say what happened and what was bought, not by whom. Every other one counts as personal."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/#-]{0,127}")
_NO_IDENTIFIER: Final = re.compile(r"[0-9a-fA-F]{40,}|\d{1,3}(?:\.\d{1,3}){3}|pina_|https?:", re.IGNORECASE)
"""What fits the form of an identifier and is a digest, an IP address, a token or a page."""
_LEAST_DIGITS: Final = 7
"""A hidden number with at least this many digits is also searched for without its spaces and signs."""
_LEAST_HIDDEN: Final = 4
"""Shorter values are in every other identifier by chance: they count where they are words."""
_LEAST_LETTERS: Final = 2
_MOST_WORDS: Final = 4
"""Of a hidden value that is looked for word by word."""
_WORD: Final = re.compile(r"[^\W_]+")
_CODES: Final = frozenset({"language", "custom_data.currency"})
_CODE: Final = re.compile(r"[A-Za-z]{2,3}(?:[_-][A-Za-z]{2,4})?")
"""A language or a currency, even if a hidden country is written like it."""

Path = tuple[str, ...]
"""Names of fields and keys; each element of an array is ``""``."""
_ELEMENT: Final = ""


class Masker:
    """Masks decoded records of one schema under one mapping."""

    def __init__(self, schema: dict[str, Any], mapping: Mapping) -> None:
        self._type = parse(schema)
        self._public: dict[Path, frozenset[str]] = {}
        """Path -> the fields that what lies there feeds."""
        personal: set[Path] = set()
        for name, source in mapping.sources.items():
            path = _path(source)
            if name in _PUBLIC:
                self._public[path] = self._public.get(path, frozenset()) | {name}
            else:
                personal.add(path)
        for path in personal:
            self._public.pop(path, None)

    def masked(self, event: CommerceEvent) -> Any:
        """The record as JSON values, masked."""
        hidden: list[str] = []
        shape = self._value(self._type, event, (), hidden)
        return _Nets(hidden).through(shape)

    def _value(self, kind: AvroType, value: Any, path: Path, hidden: list[str]) -> Any:
        if value is None:
            return None
        if isinstance(kind, Union):
            return self._value(_branch(kind, value), value, path, hidden)
        if isinstance(kind, RecordType) and isinstance(value, dict):
            types = {field.name: field.type for field in kind.fields}
            return {
                name: self._value(types[name], inner, (*path, name), hidden) if name in types else MASK
                for name, inner in value.items()
            }
        if isinstance(kind, Map) and isinstance(value, dict):
            return self._map(kind, value, path, hidden)
        if isinstance(kind, Array) and isinstance(value, list):
            return [self._value(kind.items, inner, (*path, _ELEMENT), hidden) for inner in value]
        return self._scalar(value, path, hidden)

    def _map(self, kind: Map, value: dict[str, Any], path: Path, hidden: list[str]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, inner in value.items():
            inside = (*path, key)
            known = any(one[: len(inside)] == inside for one in self._public)
            if not known:
                hidden.append(key)
            name = key if known else f"{MASK}{len(shown) + 1}"
            shown[name] = self._value(kind.values, inner, inside, hidden)
        return shown

    def _scalar(self, value: Any, path: Path, hidden: list[str]) -> Any:
        if path in self._public:
            return _Shown(_plain(value), self._public[path])
        hidden.extend(_texts(value))
        return MASK


class _Shown:
    """A value that may be shown, before the nets."""

    __slots__ = ("_fields", "value")

    def __init__(self, value: Any, fields: frozenset[str]) -> None:
        self.value = value
        self._fields = fields

    def is_identifier(self) -> bool:
        """Whether it is one, and looks like one."""
        text = self.value
        return (
            self._fields <= _IDENTIFIERS
            and _IDENTIFIER.fullmatch(text) is not None
            and _NO_IDENTIFIER.search(text) is None
        )

    def is_code(self) -> bool:
        """Whether it is a language or a currency, and looks like one."""
        return self._fields <= _CODES and _CODE.fullmatch(self.value) is not None


def _path(source: Source) -> Path:
    return tuple(_name(step) for step in source.steps)


def _name(step: Step) -> str:
    return _ELEMENT if step == EACH else step.name


def _branch(kind: Union, value: Any) -> AvroType:
    """The branch of a union that a decoded value belongs to; one that hides it if that is not clear."""
    branches = [one for one in kind.branches if one.kind != "null"]
    fitting = [one for one in branches if _fits(one, value)]
    return fitting[0] if len(fitting) == 1 else Primitive("bytes")


def _fits(kind: AvroType, value: Any) -> bool:
    if isinstance(kind, RecordType):
        return isinstance(value, dict) and {field.name for field in kind.fields} == value.keys()
    if isinstance(kind, Map):
        return isinstance(value, dict)
    if isinstance(kind, Array):
        return isinstance(value, list)
    if isinstance(kind, Enum) or kind.kind == "string":
        return isinstance(value, str)
    if kind.kind == "boolean":
        return isinstance(value, bool)
    return not isinstance(value, dict | list | bool)


def _plain(value: Any) -> Any:
    """A value that JSON has: what it has not, as text."""
    return value if isinstance(value, str | bool | int | float) else str(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "ignore")
    text = str(value)
    if not isinstance(value, bool) and text:
        yield text.encode("utf-8", "ignore").decode()


def _bare_numbers(texts: list[str]) -> Iterator[str]:
    for text in texts:
        digits = re.sub(r"\D", "", text)
        if len(digits) >= _LEAST_DIGITS and len(digits) * 2 > len(text):
            yield digits
            yield digits.lstrip("0")


def _words(text: str) -> list[re.Match[str]]:
    return list(_WORD.finditer(text))


def _phrase(words: Iterable[re.Match[str]]) -> str:
    """Words as they are compared: without case, and without what stands between them."""
    return " ".join(one[0].casefold() for one in words)


def _phrases(texts: Iterable[str]) -> Iterator[str]:
    """Of hidden values those that are a few words, or one."""
    for text in texts:
        words = _words(text[: _MOST_WORDS * 64])
        if 0 < len(words) <= _MOST_WORDS and sum(map(str.isalpha, text)) >= _LEAST_LETTERS:
            yield _phrase(words)


class _Nets:
    """Keeps what was hidden, and what looks personal, out of what is shown."""

    def __init__(self, hidden: list[str]) -> None:
        capitals = [text.upper() for text in hidden if len(text.upper()) != len(text)]
        texts = [*hidden, *capitals, *_bare_numbers(hidden)]
        self._body = orjson.dumps({"hidden": texts})
        self._hidden = {text.casefold() for text in texts if len(text) >= _LEAST_HIDDEN}
        self._whole = set(texts)
        self._phrases = set(_phrases(hidden))

    def through(self, value: Any) -> Any:
        """`value` with every `_Shown` in it made plain."""
        if isinstance(value, dict):
            return {name: self.through(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.through(inner) for inner in value]
        if not isinstance(value, _Shown):
            return value
        return self._text(value) if isinstance(value.value, str) else self._number(value.value)

    def _number(self, value: Any) -> Any:
        """A number, or a boolean, which identifies no person."""
        if isinstance(value, bool):
            return value
        ways = {str(value), str(int(value))} if isinstance(value, int) or value.is_integer() else {str(value)}
        return MASK if ways & self._whole else value

    def _text(self, shown: _Shown) -> str:
        text: str = shown.value
        if shown.is_code():
            return text
        stretches = self._stretches(text)
        if not shown.is_identifier():
            for begin, end in reversed(stretches):
                text = f"{text[:begin]}{MASK}{text[end:]}"
            return mask(text, self._body)
        folded = text.casefold()
        return MASK if stretches or any(one in folded for one in self._hidden) else text

    def _stretches(self, text: str) -> list[tuple[int, int]]:
        """Where hidden values stand as words, in order, apart from each other."""
        words, found, at = _words(text), list[tuple[int, int]](), 0
        while at < len(words):
            some = [words[at : at + count] for count in range(min(_MOST_WORDS, len(words) - at), 0, -1)]
            hit = next((one for one in some if _phrase(one) in self._phrases), None)
            if hit is not None:
                found.append((hit[0].start(), hit[-1].end()))
            at += 1 if hit is None else len(hit)
        return found
