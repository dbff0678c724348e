"""Reads an answer of the Conversions API into a verdict: what is known of each event of the batch.

Theory of operation. An answer is trusted only as far as it is whole (docs/platform.md, "Answers"). A 200 must be
JSON with one readable status per event, in request order, and counters that agree with them: then each event has
its outcome. Anything less is no verdict: the batch is undelivered and is sent again with the same event ids.
400 and 422 refuse the batch for something in it: readable per-event verdicts are used (what failed is refused,
the rest is sent again), else the batch is bisected. 401, 403 and 404 refuse us, not the events.

A status code is not a speaker: proxies, firewalls and login pages say 400, 403 or 413 as well. So a refusal counts only
in the platform's own words (`_own_words`); in other words it is no verdict (docs/architecture.md, rule 7).

Pure functions: bytes in, values out. What follows from a verdict is decided in `pipeline`.

Who answered in the platform's place: the first words of a proxy, a firewall, a login page, fit to be shown.

Theory of operation. What stands between us and the platform may answer with anything: its own page, nothing, or what
it was sent: the events, the token. So what is shown is taken from few places (the ``Server`` header, the title of a
page, the message of a JSON answer, or else the first words), is masked like a message of the platform
(`mask`), and then only words of plain letters and small numbers are left of it: no digest, no token, no address has
that form. An answer that looks like a copy of the request is not quoted at all.

Masks what the API says of an event before anyone stores or reads it: its messages can echo user data.

Theory of operation. Two nets, one after the other. Every text value of the event itself that could identify a
person (all but names from closed sets) is replaced where it stands in the message, in whatever case the API folds
it to; then whatever looks like an address, a digest, an IP address, a token or a long number. What is left says
what was wrong, not with whom (docs/platform.md, "Answers": "any value of the event is masked").

An event may hold a megabyte of values, so they are looked for one by one: a pattern of them all would take seconds
to compile and be kept.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import orjson


class EventOutcome(NamedTuple):
    """What the API said of one event. `processed` False: refused for good. Messages are the API's, unmasked."""

    processed: bool
    error: str | None
    warning: str | None


UNTROUBLED = EventOutcome(True, None, None)
"""Processed, and nothing to say about it."""


@dataclass(frozen=True, slots=True)
class PerEvent:
    """One outcome per event, in request order."""

    outcomes: Sequence[EventOutcome]


@dataclass(frozen=True, slots=True)
class SomeRefused:
    """A refused call that says which events were at fault: those are refused, the others are undelivered."""

    errors: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """Something in the batch is refused, not said what: bisect; a batch of one is refused for good."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The platform says that the body is too large: split; a batch of one is refused for good."""

    message: str


@dataclass(frozen=True, slots=True)
class Refused:
    """This token or account is refused: halt."""

    status: int
    code: int | None


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too many calls. `wait` in seconds if the answer says how long, else None: back off."""

    wait: float | None


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Nothing is known of any event: undelivered. `reason` is from a closed set.

    `too_large`: whoever answered in the platform's place takes only smaller bodies.
    """

    reason: str
    too_large: bool = False


Verdict = PerEvent | SomeRefused | BatchRefused | TooLarge | Refused | Throttled | NoVerdict

_REFUSALS = frozenset({401, 403, 404})
_TOO_LARGE = 413
_SPOKEN = _REFUSALS | {400, 422, _TOO_LARGE}
"""What these statuses say of an event or of us, only the platform can say."""
_MOST_VALUES = 200_000
"""Objects and lists in a body that is read."""
_PARAMETERS = re.compile(r"(?:;[ \t]*[A-Za-z][A-Za-z0-9_.*-]*(?:=[^;]*)?)*")
_SECONDS = re.compile(r"[ \t]*([0-9]{1,12}(?:\.[0-9]*)?)[ \t]*")
REQUEST_ID = "x-pinterest-rid"
_REQUEST_ID_LIKE = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""The platform's are numbers. Nothing longer, so no digest; no ``@`` and no dot, so no address of any kind."""


def read_answer(
    status: int, headers: Mapping[str, str], body: bytes, events: int, unix_now: float
) -> Verdict:
    """The verdict of an answer to a batch of `events` events. Never raises, whatever the bytes."""
    if status == 200:
        return _read_ok(body, events)
    if status in _SPOKEN:
        return _read_refusal(status, body, events)
    if status == 429:
        return Throttled(wait_time(headers, unix_now))
    return NoVerdict(f"http_{status}")


def _parse(body: bytes) -> Any:
    # An answer for a thousand events has some thousands of these; a body of nothing else takes 30 times its size.
    if body.count(b"{") + body.count(b"[") > _MOST_VALUES:
        return None
    try:
        return orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        return None


def _read_ok(body: bytes, events: int) -> Verdict:
    answer = _parse(body)
    if not isinstance(answer, dict):
        return NoVerdict("not_json")
    outcomes = _outcomes(answer.get("events"), events)
    if outcomes is None:
        return NoVerdict("unreadable_outcomes")
    processed = sum(1 for outcome in outcomes if outcome.processed)
    # bool is an int in Python: True must not pass for a count of one.
    counters = (answer.get("num_events_received"), answer.get("num_events_processed"))
    if any(type(counter) is not int for counter in counters) or counters != (events, processed):
        return NoVerdict("contradicting_counters")
    return PerEvent(outcomes)


def _outcomes(entries: object, events: int) -> list[EventOutcome] | None:
    if not isinstance(entries, list) or len(entries) != events or not entries:
        return None
    if entries.count(entries[0]) == events:  # nearly always: all alike
        outcome = _outcome(entries[0])
        return None if outcome is None else [outcome] * events
    outcomes = []
    for entry in entries:
        outcome = _outcome(entry)
        if outcome is None:
            return None
        outcomes.append(outcome)
    return outcomes


def _outcome(entry: object) -> EventOutcome | None:
    if not isinstance(entry, dict):
        return None
    status = entry.get("status")
    if status not in ("processed", "failed"):
        return None
    return EventOutcome(
        status == "processed", _text(entry.get("error_message")), _text(entry.get("warning_message"))
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _read_refusal(status: int, body: bytes, events: int) -> Verdict:
    answer = _own_words(body, events)
    if answer is None:
        return NoVerdict(f"http_{status}", too_large=status == _TOO_LARGE)
    message = _text(answer.get("message")) or ""
    if status in _REFUSALS:
        code = answer.get("code")
        return Refused(status, code if type(code) is int else None)
    if status == _TOO_LARGE:
        return TooLarge(message)
    details = answer.get("details")
    for holder in (answer, details if isinstance(details, dict) else {}):
        outcomes = _outcomes(holder.get("events"), events)
        if outcomes is None:
            continue
        failed = {
            index: outcome.error or message for index, outcome in enumerate(outcomes) if not outcome.processed
        }
        if failed:
            return SomeRefused(failed)
    return BatchRefused(status, message)


def _own_words(body: bytes, events: int) -> dict[str, Any] | None:
    """An error in the platform's own form (OAS, "Error"): an object with an integer `code` and a text `message`; or a
    whole list of outcomes, which no other could make up. None: somebody else answered.
    """
    answer = _parse(body)
    if not isinstance(answer, dict):
        return None
    if type(answer.get("code")) is int and isinstance(answer.get("message"), str):
        return answer
    return answer if isinstance(_read_ok(body, events), PerEvent) else None


def wait_time(headers: Mapping[str, str], unix_now: float) -> float | None:
    """Seconds a 429 asks us to wait: the longer of ``x-ratelimit-reset`` and ``Retry-After``; None: it says neither."""
    reset = _figure(headers.get("x-ratelimit-reset"))
    retry_after = _retry_after(headers.get("retry-after"), unix_now)
    return max((wait for wait in (reset, retry_after) if wait is not None), default=None)


def limit_headers(headers: Mapping[str, str]) -> tuple[int | None, float | None]:
    """``x-ratelimit-remaining`` (calls) and ``x-ratelimit-reset`` (seconds) of an answer, where readable."""
    remaining = _figure(headers.get("x-ratelimit-remaining"))
    return (None if remaining is None else int(remaining)), _figure(headers.get("x-ratelimit-reset"))


def request_id(headers: Mapping[str, str]) -> str | None:
    """The platform's name for this call, for the log; None where it gave none, or one that may be something else."""
    text = headers.get(REQUEST_ID, "").strip()
    return text if _REQUEST_ID_LIKE.fullmatch(text) else None


def _figure(text: str | None) -> float | None:
    """The figure of a rate-limit header, which may have parameters behind it: ``120000;w=60``."""
    if text is None:
        return None
    figure, mark, parameters = text.partition(";")
    return _seconds(figure) if _PARAMETERS.fullmatch(mark + parameters) else None


def _seconds(text: str | None) -> float | None:
    # Not just any text that Python takes for a number: no exponent, no foreign digits, no NaN.
    match = _SECONDS.fullmatch(text) if text is not None else None
    if match is None:
        return None
    value = float(match[1])
    return value if value < 1e9 else None


def _retry_after(text: str | None, unix_now: float) -> float | None:
    """Its two forms: seconds, or a date."""
    if text is None:
        return None
    seconds = _seconds(text)
    return seconds if seconds is not None else _until_date(text, unix_now)


def _until_date(text: str, unix_now: float) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - unix_now)


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
