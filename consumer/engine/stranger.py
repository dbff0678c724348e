"""Who answered in the platform's place: the first words of a proxy, a firewall, a login page, fit to be shown.

Theory of operation. What stands between us and the platform may answer with anything: its own page, nothing, or what
it was sent: the events, the token. So what is shown is taken from few places (the ``Server`` header, the title of a
page, the message of a JSON answer, or else the first words), is masked like a message of the platform
(`consumer.engine.masking`), and then only words of plain letters and small numbers are left of it: no digest, no token,
no address has that form. An answer that looks like a copy of the request is not quoted at all.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_plus

import orjson

from consumer.engine.masking import MASK, mask

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
