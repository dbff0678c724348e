"""What may be shown of what others say: the API's messages, masked, and who answered in the API's place.

Theory of operation. The API's messages can echo user data. Two nets, one after the other: every text value of the
event itself that could identify a person (all but names from closed sets) is replaced where it stands in the message,
in whatever case the API folds it to; then whatever looks like an address, a digest, an IP address, a token or a long
number. What is left says what was wrong, not with whom. An event may hold a megabyte of values, so they are looked for
one by one: a pattern of them all would take seconds to compile and be kept.

What stands between us and the platform may answer with anything: its own page, nothing, or what it was sent: the
events, the token. So what is shown is taken from few places (the ``Server`` header, the title of a page, the message of
a JSON answer, or else the first words), is masked like a message of the platform, and then only words of plain letters
and small numbers are left of it: no digest, no token, no address has that form. An answer that looks like a copy of the
request is not quoted at all.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote_plus

import orjson

_READ_MOST = 4096
"""Bytes of a body that are looked at."""
_SHOWN_MOST = 120
_SERVER_MOST = 40
_WORDS_MOST = 16
_TITLE = re.compile(r"<title[^>]*>(.*?)(?:</title|$)", re.IGNORECASE | re.DOTALL)
_UNSEEN = re.compile(r"<(script|style|head|!--).*?(?:</\1\s*>?|-->|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*(?:>|$)")
_ECHOES = ("event_name", "user_data", "action_source", "custom_data", "authorization", "bearer")
"""Words of our request: where one of them stands in an answer, the rest of the request may stand there, too."""
_SAYING = frozenset(
    {
        *(
            "message",
            "msg",
            "error",
            "errors",
            "error_message",
            "errormessage",
            "error_description",
            "description",
        ),
        *("title", "detail", "details", "reason", "fault", "faultstring"),
    }
)
"""Names under which JSON answers of gateways say what is wrong."""
_DEEP = 3
_WORD = re.compile(r"[(\[\"']*(?:[^\W\d_]{1,20}(?:['’-][^\W\d_]{1,20})?|\d{1,3})[)\]\"'.,:;!?]*|[|–—-]")
_PRODUCT = re.compile(r"[A-Za-z][A-Za-z-]{0,19}(?:/\d{1,3}(?:\.\d{1,3}){0,2})?")
_SILENT = "an empty body"
_OTHER = "a body without words"
_COPY = "a copy of the request"


def who_answered(headers: Mapping[str, str], body: bytes, request: bytes = b"") -> str:
    """On one line, who seems to have answered and what it said; `request`: the body that was sent."""
    said = _said(headers.get("content-type", ""), body, request)
    server = _server(headers.get("server", ""))
    return f"{server}: {said}" if server else said


def _server(header: str) -> str:
    """The first product of a ``Server`` header."""
    product = header[:_SERVER_MOST].split(maxsplit=1)[:1]
    return product[0] if product and _PRODUCT.fullmatch(product[0]) else ""


def _said(content_type: str, body: bytes, request: bytes) -> str:
    if not body.strip():
        return _SILENT
    # Escapes must not hide from the masks what they stand for.
    text = unquote_plus(html.unescape(body[:_READ_MOST].decode("utf-8", "replace")))
    folded = text.casefold()
    if any(echo in folded for echo in _ECHOES):
        return _COPY
    words = " ".join(_quotable(content_type, text, body).split())
    return _plain(mask(words[: _READ_MOST // 4], request)) or _OTHER


def _quotable(content_type: str, text: str, body: bytes) -> str:
    """What of the body says what is wrong."""
    if "json" in content_type or text.lstrip()[:1] in ("{", "["):
        try:
            return " ".join(_messages(orjson.loads(body[: _READ_MOST * 4]), 0))
        except (orjson.JSONDecodeError, RecursionError):
            return ""
    title = _TITLE.search(text)
    if title is not None and title[1].strip():
        return title[1]
    return _TAG.sub(" ", _UNSEEN.sub(" ", text))


def _messages(value: object, depth: int) -> Iterator[str]:
    """Texts under names that say something."""
    if depth > _DEEP:
        return
    if isinstance(value, list):
        for one in value[:_DEEP]:
            yield from _messages(one, depth + 1)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name.casefold() in _SAYING:
                if isinstance(inner, str):
                    yield inner
                else:
                    yield from _messages(inner, depth + 1)
    elif isinstance(value, str) and depth > 1:
        yield value


def _plain(text: str) -> str:
    """The first words, those left out that could be anything else; no word at all: nothing."""
    shown: list[str] = []
    for word in text.split()[:_WORDS_MOST]:
        kept = word if _WORD.fullmatch(word) else MASK
        if kept != MASK or shown[-1:] != [MASK]:
            shown.append(kept)
    if all(word == MASK for word in shown):
        return ""
    return " ".join(shown)[:_SHOWN_MOST]


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
