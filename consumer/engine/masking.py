"""Masks what the API says of an event before anyone stores or reads it: its messages can echo user data.

Theory of operation. Two nets, one after the other. Every text value of the event itself that could identify a
person (all but names from closed sets) is replaced where it stands in the message, in whatever case the API folds
it to; then whatever looks like an address, a digest, an IP address, a token or a long number. What is left says
what was wrong, not with whom (pinterest.md, "Answers": "any value of the event is masked").

An event may hold a megabyte of values, so they are looked for one by one: a pattern of them all would take seconds
to compile and be kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import orjson

MASK = "***"
_LONGEST = 300
_LONGEST_READ = 2000
_PUBLIC = frozenset({"event_name", "action_source", "currency", "language", "partner_name", "opt_out_type"})
"""Event fields whose values come from closed sets or from our own settings."""
_SHORTEST = 3
"""Shorter values (a quantity, a country) identify nobody, and masking them would eat the message."""

_EMAIL = re.compile(r"""(?<![^\s@"'<>])[^\s@"'<>]+@[^\s@"'<>]+""")
"""Only from where a word begins: tried from each letter of a long one it would take the square of its length."""
_PATTERNS = re.compile(
    r"""
      \b[0-9a-fA-F]{32,}\b                  # a digest
    | \b\d{1,3}(?:\.\d{1,3}){3}\b           # IPv4
    | \b(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}  # IPv6
    | \b(?:Bearer\s+|pina_)[\w.\-]+         # a token
    | \+?\d(?:[\s().-]{0,3}\d){6,}              # a phone number, or any long number
    | https?://\S+                          # a page address can hold anything
    | Mozilla/\S.*                          # a user agent, to its end
    """,
    re.VERBOSE,
)


def mask(message: str, body: bytes = b"") -> str:
    """`message` on one line, at most 300 characters, without any value of the event serialised in `body`.

    A message too long to be one is not shown at all: cut, it could end in the middle of a value.
    """
    if len(message) > _LONGEST_READ:
        return f"(a message of {len(message)} characters)"
    text = _without(_one_line(message), _values(body))
    return _PATTERNS.sub(MASK, _EMAIL.sub(MASK, text))[:_LONGEST]


def kind(message: str, body: bytes) -> str:
    """What a message is about, for counting: masked, numbers taken out, at most 80 characters."""
    return re.sub(r"\d+", "#", mask(message, body))[:80]


def _one_line(text: str) -> str:
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


_ALIKE = str.maketrans("ıſςµ", "isσμ")
"""What folds to the same capital, letter by letter."""


def _folded(text: str) -> str:
    """`text` without case, each letter in its place."""
    return text.replace("İ", "i").lower().translate(_ALIKE)


def _without(text: str, values: Iterable[str]) -> str:
    """`text` with every stretch that is one of `values` masked."""
    folded = _folded(text)
    covered = bytearray(len(text))
    for value in {_folded(one) for one in values if len(one) <= len(text)}:
        at = folded.find(value)
        while at >= 0:
            covered[at : at + len(value)] = b"x" * len(value)
            at = folded.find(value, at + len(value))
    if not any(covered):
        return text
    parts, end = [], 0
    for stretch in _STRETCHES.finditer(covered):
        parts += [text[end : stretch.start()], MASK]
        end = stretch.end()
    return "".join([*parts, text[end:]])


_STRETCHES = re.compile(b"x+")


def _values(body: bytes) -> Iterator[str]:
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        return
    if not isinstance(event, dict):
        return
    for name, value in event.items():
        if name not in _PUBLIC:
            yield from _texts(value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        line = _one_line(value)
        if len(line) >= _SHORTEST:
            yield line
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _PUBLIC:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
