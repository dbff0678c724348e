"""Reads an answer of the Conversions API into a verdict: what is known of each event of the batch.

Theory of operation. An answer counts only if it is complete (docs/platform.md). A 200 must be JSON with one readable
status per event, in the order of the request, and with counters that agree with them; then each event has its outcome.
Anything less is no verdict: the batch is undelivered and is sent again with the same event ids. 400 and 422 refuse the
batch for something in it. If outcomes per event can be read, the failed events are refused and the rest is sent again;
otherwise the batch is bisected. 401, 403 and 404 refuse us, not the events.

A status code does not say who answered: proxies, firewalls and login pages answer with 400, 403 or 413 too. So a
refusal counts only in the platform's own form (`_own_words`); from any other server it is no verdict
(docs/architecture.md, rule 7).

Pure functions: bytes in, values out. What follows from a verdict is decided in `answers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson


class EventOutcome(NamedTuple):
    """What the API said of one event. `processed` False: refused for good. Messages are the API's, unmasked."""

    processed: bool
    error: str | None
    warning: str | None


# Processed, and nothing to say about it.
ACCEPTED = EventOutcome(True, None, None)


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
    """Something in the batch is refused, not said what: bisect; a batch of one is refused for good.

    `too_large`: it is the size of the body.
    """

    message: str
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The token or the account is refused: halt."""

    status: int
    code: int | None


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too many calls. `wait` in seconds if the answer says how long, else None: back off."""

    wait: float | None


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """Nothing is known of any event: all are undelivered. `reason` is from a closed set.

    `too_large`: the server that answered in the platform's place accepts only smaller bodies.
    """

    reason: str
    too_large: bool = False


Verdict = PerEvent | SomeRefused | BatchRefused | Refused | Throttled | NoVerdict

# Refusals of us, not of events: the token, its rights, or the account.
_REFUSALS = frozenset({401, 403, 404})
_TOO_LARGE = 413
# Statuses that count only in the platform's own form.
_WITH_BODY = _REFUSALS | {400, 422, _TOO_LARGE}
# The largest number of objects and lists in a body that is parsed.
_MAX_VALUES = 200_000
_DIGITS = r"[ \t]*([0-9]{1,12}(?:\.[0-9]*)?)[ \t]*"
# Narrower than Python's numbers: no exponent, no foreign digits, no NaN.
_SECONDS = re.compile(_DIGITS)
# The figure of a rate-limit header, which may have parameters behind it: ``120000;w=60``.
_FIGURE = re.compile(_DIGITS + r"(?:;[ \t]*[A-Za-z][A-Za-z0-9_.*-]*(?:=[^;]*)?)*")
REQUEST_ID = "x-pinterest-rid"
# The platform's ids are numbers. Longer texts are refused, so no digest passes; ``@`` and dots, too, so no address.
_REQUEST_ID_LIKE = re.compile(r"[A-Za-z0-9_-]{1,40}")


def read_answer(
    status: int, headers: Mapping[str, str], body: bytes, events: int, unix_now: float
) -> Verdict:
    """Return the verdict of an answer to a batch of `events` events. Never raises, whatever the bytes."""
    if status == 200:
        return _read_ok(body, events)
    if status in _WITH_BODY:
        return _read_refusal(status, body, events)
    if status == 429:
        return Throttled(wait_time(headers, unix_now))
    return NoVerdict(f"http_{status}")


def _parse(body: bytes) -> Any:
    # An answer for a thousand events has some thousands of them. A body of brackets alone would take 30 times its size.
    if body.count(b"{") + body.count(b"[") > _MAX_VALUES:
        return None
    try:
        return orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        return None


def _read_ok(body: bytes, events: int) -> Verdict:
    # A cut or changed answer must not confirm an event, so each of these contradictions makes it no verdict.
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
    try:
        alike = entries.count(entries[0]) == events  # the fast path
    except RecursionError:  # nested as deep as can be parsed, which is deeper than Python 3.11 compares
        alike = False
    outcomes = []
    for entry in entries[:1] if alike else entries:
        status = entry.get("status") if isinstance(entry, dict) else None
        if status not in ("processed", "failed"):
            return None
        error, warning = _text(entry.get("error_message")), _text(entry.get("warning_message"))
        outcomes.append(EventOutcome(status == "processed", error, warning))
    return outcomes * events if alike else outcomes


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
        return BatchRefused(message, too_large=True)
    details = answer.get("details")
    for holder in (answer, details if isinstance(details, dict) else {}):
        outcomes = _outcomes(holder.get("events"), events)
        if outcomes is None:
            continue
        failed = {
            index: outcome.error or message for index, outcome in enumerate(outcomes) if not outcome.processed
        }
        # A refusal in which no event failed does not say what is wrong: bisect.
        if failed:
            return SomeRefused(failed)
    return BatchRefused(message)


def is_platforms(status: int, body: bytes) -> bool:
    """Return True if the answer to a call without an event is in the platform's own form, and no failure of a server
    in between."""
    answer = _parse(body) if status < 500 else None
    accepts_nothing = isinstance(answer, dict) and (
        answer.get("events"),
        answer.get("num_events_received"),
    ) == ([], 0)
    return accepts_nothing or (answer is not None and _own_words(body, 0) is not None)


def _own_words(body: bytes, events: int) -> dict[str, Any] | None:
    """Return an answer in the platform's own form; None: another server answered.

    The form is an error (OAS, "Error"), an object with an integer `code` and a text `message`, or a complete list of
    outcomes, which nothing else could make.
    """
    answer = _parse(body)
    if not isinstance(answer, dict):
        return None
    if type(answer.get("code")) is int and isinstance(answer.get("message"), str):
        return answer
    return answer if isinstance(_read_ok(body, events), PerEvent) else None


def wait_time(headers: Mapping[str, str], unix_now: float) -> float | None:
    """Return the seconds that a 429 asks us to wait; None: it does not say.

    Of ``x-ratelimit-reset`` and ``Retry-After`` the longer counts.
    """
    retry_after = headers.get("retry-after", "")
    seconds, moment = _number(_SECONDS, retry_after), unix_of(retry_after)
    if seconds is None and moment is not None:
        seconds = max(0.0, moment - unix_now)
    waits = (seconds, limit_headers(headers)[1])
    return max((wait for wait in waits if wait is not None), default=None)


def limit_headers(headers: Mapping[str, str]) -> tuple[int | None, float | None]:
    """Return ``x-ratelimit-remaining`` (calls) and ``x-ratelimit-reset`` (seconds) of an answer, where readable."""
    remaining, reset = (
        _number(_FIGURE, headers.get(f"x-ratelimit-{name}", "")) for name in ("remaining", "reset")
    )
    return (None if remaining is None else int(remaining)), reset


def _number(form: re.Pattern[str], text: str) -> float | None:
    match = form.fullmatch(text)
    return float(match[1]) if match is not None and float(match[1]) < 1e9 else None


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the platform's id of this call, for the log; None: it gave none, or what it gave may be something else."""
    text = headers.get(REQUEST_ID, "").strip()
    return text if _REQUEST_ID_LIKE.fullmatch(text) else None


@lru_cache(maxsize=8)  # all answers of a second have the same
def unix_of(date: str) -> float | None:
    """Return the unix seconds of a date in a header (RFC 9110); None: it cannot be read."""
    if len(date) > 64:  # no date is so long, and the parser is not made for what is
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
