"""What may be shown of an answer: messages without personal data, and who answered in the API's place.

Theory of operation. The API's messages can repeat user data. They are masked twice. First, every text value of the
event that could identify a person (all but names from closed sets) is replaced, in upper or lower case. Then everything
that looks like an address, a digest, an IP address, a token or a long number is replaced. What remains says what was
wrong, but not with whom.

A proxy or firewall may answer with anything: its own page, nothing, or what it was sent, events and token included. So
only a few places are shown: the ``Server`` header, and the title of a page, the message of a JSON answer, or the first
words. They are masked like a message of the platform, and then only words of plain letters and small numbers are kept:
no digest, token or address has that form. An answer that looks like a copy of the request is not shown at all.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from urllib.parse import unquote_plus

import orjson

# Bytes of a body that are looked at: enough for a title, and a proxy may answer with megabytes.
_MAX_READ = 4096
_MAX_SHOWN = 120
_MAX_SERVER = 40
_MAX_WORDS = 16
_TITLE = re.compile(r"<title[^>]*>(.*?)(?:</title|$)", re.IGNORECASE | re.DOTALL)
_UNSEEN = re.compile(r"<(script|style|head|!--).*?(?:</\1\s*>?|-->|$)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*(?:>|$)")
# Words of our request: an answer with one of them may have the rest of the request too.
_ECHOES = ("event_name", "user_data", "action_source", "custom_data", "authorization", "bearer")
# Names under which JSON answers of gateways say what is wrong.
_SAYING = re.compile(
    r"msg|message|errors?|error_?message|(?:error_)?description|title|details?|reason|fault(?:string)?"
)
# Levels of such an answer that are looked at, and items of a list.
_DEEP = 3
# A word of letters, with what may stand around it, or a number of up to three digits.
_WORD = re.compile(r"[(\[\"']*(?:[^\W\d_]{1,20}(?:['’-][^\W\d_]{1,20})?|\d{1,3})[)\]\"'.,:;!?]*|[|–—-]")
# The form of a product in the ``Server`` header (RFC 9110, 10.2.4), with a short version or none.
_PRODUCT = re.compile(r"[A-Za-z][A-Za-z-]{0,19}(?:/\d{1,3}(?:\.\d{1,3}){0,2})?")


def who_answered(headers: Mapping[str, str], body: bytes, request: bytes = b"") -> str:
    """Return on one line which server seems to have answered, and its message; `request`: the body that was sent."""
    # Unescaped first, so that the masks see what escapes stand for.
    text = unquote_plus(html.unescape(body[:_MAX_READ].decode("utf-8", "replace")))
    if not body.strip():
        said = "an empty body"
    elif any(echo in text.casefold() for echo in _ECHOES):
        said = "a copy of the request"
    else:
        words = " ".join(_quotable(headers.get("content-type", ""), text, body).split())
        said = _plain(mask(words[: _MAX_READ // 4], request)) or "a body without words"
    # Of the ``Server`` header the first product.
    server = headers.get("server", "")[:_MAX_SERVER].split(maxsplit=1)[:1]
    return f"{server[0]}: {said}" if server and _PRODUCT.fullmatch(server[0]) else said


def _quotable(content_type: str, text: str, body: bytes) -> str:
    """Return the part of the body that says what is wrong."""
    if "json" in content_type or text.lstrip()[:1] in ("{", "["):
        try:
            return " ".join(_messages(orjson.loads(body[: _MAX_READ * 4]), 0))
        except (orjson.JSONDecodeError, RecursionError):
            return ""
    title = _TITLE.search(text)
    if title is not None and title[1].strip():
        return title[1]
    return _TAG.sub(" ", _UNSEEN.sub(" ", text))


def _messages(value: object, depth: int) -> Iterator[str]:
    """Yield the texts under the names in `_SAYING`."""
    if depth > _DEEP:
        return
    if isinstance(value, list):
        for one in value[:_DEEP]:
            yield from _messages(one, depth + 1)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if _SAYING.fullmatch(name.casefold()):
                if isinstance(inner, str):
                    yield inner
                else:
                    yield from _messages(inner, depth + 1)
    elif isinstance(value, str) and depth > 1:  # an item of a list under such a name
        yield value


def _plain(text: str) -> str:
    """Return the first words, masked unless they are plain; empty if none is."""
    words = " ".join(word if _WORD.fullmatch(word) else MASK for word in text.split()[:_MAX_WORDS])
    shown = _MASKS.sub(MASK, words)
    # A text of masks only says nothing.
    return "" if shown == MASK else shown[:_MAX_SHOWN]


MASK = "***"
# Several masks, which look like one. No plain word has an asterisk.
_MASKS = re.compile(r"\*{3}(?: \*{3})+")
_LONGEST = 300
_LONGEST_READ = 2000
# Event fields whose values come from closed sets or from our own settings.
_PUBLIC = frozenset({"event_name", "action_source", "currency", "language", "partner_name", "opt_out_type"})
# Shorter values (a quantity, a country) identify no one, and masking them would hide the message.
_SHORTEST = 3

# Only from the start of a word: from each letter, the time would grow with the square of its length.
_EMAIL = re.compile(r"""(?<![^\s@"'<>])[^\s@"'<>]+@[^\s@"'<>]+""")
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
    """Return `message` on one line, at most 300 characters, without any value of the event serialised in `body`.

    A message that is too long is not shown at all: if it were cut, it could end in the middle of a value.
    """
    if len(message) > _LONGEST_READ:
        return f"(a message of {len(message)} characters)"
    text = _one_line(message)
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        event = None  # there is no event: then only the patterns mask
    # An event may have a megabyte of values. They are searched one by one, because a pattern of all of them would take
    # seconds to compile, and `re` would keep it.
    folded = _folded(text)
    covered = bytearray(len(text))
    for value in {_folded(one) for one in _texts(event) if len(one) <= len(text)}:
        at = folded.find(value)
        while at >= 0:
            covered[at : at + len(value)] = b"\1" * len(value)
            at = folded.find(value, at + len(value))
    # Most messages repeat no value. A warning may come with every event, and is then not taken apart.
    if any(covered):
        # One mask for each stretch: where two values overlap or touch, it must not show where one ends.
        text = "".join(
            MASK if hidden else "".join(char for char, _ in stretch)
            for hidden, stretch in groupby(zip(text, covered, strict=True), key=itemgetter(1))
        )
    return _PATTERNS.sub(MASK, _EMAIL.sub(MASK, text))[:_LONGEST]


def kind(message: str, body: bytes) -> str:
    """Return the kind of a message, for counting: masked, without numbers, at most 80 characters."""
    return re.sub(r"\d+", "#", mask(message, body))[:80]


def _one_line(text: str) -> str:
    # A control character could end the line of a log, or change a terminal.
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


# Letters that have the same capital as another one. `casefold` is no help: it makes two letters of some.
_ALIKE = str.maketrans("ıſςµ", "isσμ")


def _folded(text: str) -> str:
    """Return `text` without case, each letter in its place."""
    return text.replace("İ", "i").lower().translate(_ALIKE)


def _texts(value: object) -> Iterator[str]:
    """Yield the values of an event, or of a part of it, that could identify a person."""
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
