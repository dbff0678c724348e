"""The sandbox without its network: one call in, one answer out, synchronous.

`Platform.answer` checks a call in the order of the real API (see `faults`) and answers in the forms of the OpenAPI
description: ``ConversionApiResponse`` for a 200, ``Error`` and ``DetailedError`` otherwise. The events of a call are
recorded only if its answer says so, except for a deliberately wrong answer (`Lie`).

Time comes in as `now`, randomness in the `CallPlan` of the call.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import orjson

from consumer.demo import rules
from consumer.demo.accounts import RunningCounts
from consumer.demo.faults import CallPlan, Faults, Lie, Marked, Quota, Speech, wait_headers

Entry = dict[str, str | None]
"""One item of ``events`` in a ``ConversionApiResponse``."""


class Call(NamedTuple):
    """A ``POST /v5/ad_accounts/{account}/events`` as it arrived."""

    account: str
    authorization: str | None
    content_type: str
    test: str | None
    """The query parameter as text."""
    body: bytes


class Answer(NamedTuple):
    """The answer to a call. `headers` do not contain the content type."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformPolicy:
    """The accounts, tokens and event names of the platform, and its strictness."""

    accounts: frozenset[str] | None
    """The existing ad accounts; None: any."""
    limited_tokens: frozenset[str]
    """Valid tokens without any permission: 403."""
    max_age: float | None
    """Maximum age of events in seconds; None: any age."""
    event_names: frozenset[str]
    validate: bool
    """False: events are counted without reading them, for benchmarks of pinstream."""


_PROCESSED: Final[Entry] = {"status": "processed", "error_message": None, "warning_message": None}
_WARNED: Final[Entry] = {**_PROCESSED, "warning_message": "This event was warned about by the sandbox."}
_BEYOND_TEST: Final[Entry] = {
    **_PROCESSED,
    "status": "failed",
    "error_message": f"Test mode processes at most {rules.MAX_TEST_EVENTS} events of a request.",
}
_MARKED: Final[Entry] = {
    **_PROCESSED,
    "status": "failed",
    "error_message": "This event was refused by the sandbox.",
}
_JSON: Final = "application/json"


class Platform:
    """The server side of the Conversions API. `token` may be changed at any time."""

    def __init__(self, token: str, policy: PlatformPolicy, *, most_ids: int | None) -> None:
        self.token = token
        self._policy = policy
        self._most_ids = most_ids
        self.reset()

    def register(self, own_events: Collection[str]) -> None:
        """Also accepts events of these names."""
        self._policy = replace(self._policy, event_names=self._policy.event_names.union(own_events))

    def reset(self) -> None:
        """Resets the counts and the used quotas."""
        self.books = RunningCounts(most_ids=self._most_ids)
        self._quotas: defaultdict[str, Quota] = defaultdict(Quota)

    def answer(self, call: Call, plan: CallPlan, now: float) -> Answer:
        """Answers `call` and records the processed events; `now` in seconds since 1970."""
        limit = plan.faults.max_body_bytes
        if limit is not None and len(call.body) > limit:
            return Answer(413, b"<html><body>413 Request Entity Too Large</body></html>", {}, "text/html")
        if plan.middleman:
            return _middleman(call, plan.faults)
        refusal = self._refuse_caller(call, plan)
        if refusal is not None:
            return refusal
        limit = plan.faults.calls_per_minute
        within, headers = (True, {}) if limit is None else self._quotas[call.account].take(limit, now)
        answer = self._refuse_load(plan, within, now) or self._read(call, plan, now)
        return answer._replace(headers={**headers, **answer.headers})

    def _refuse_caller(self, call: Call, plan: CallPlan) -> Answer | None:
        scheme, _, given = (call.authorization or "").partition(" ")
        token = given.strip() if scheme.lower() == "bearer" else ""
        limited = token in self._policy.limited_tokens
        right = hmac.compare_digest(token.encode(errors="replace"), self.token.encode(errors="replace"))
        if plan.unauthorised or not (limited or right):
            echoed = f" Token: {token}" if plan.faults.echo else ""
            return _error(401, 2, f"Authentication failed.{echoed}")
        if not rules.check_account(call.account):
            return _error(400, 4196, "The ad account id must be 1 to 18 digits.")
        if limited or call.account in plan.faults.forbidden_accounts:
            return _error(403, 29, "You are not permitted to access that resource.")
        unknown = self._policy.accounts is not None and call.account not in self._policy.accounts
        if unknown or call.account in plan.faults.unknown_accounts:
            return _error(404, 50, "Ad account not found.")  # the code is not documented for this endpoint
        return None

    def _refuse_load(self, plan: CallPlan, within_quota: bool, now: float) -> Answer | None:
        if not within_quota:
            return _error(429, 8, "This request exceeded a rate limit.")
        if plan.throttled:
            answer = _error(429, 8, "This request exceeded a rate limit.")
            return answer._replace(headers=wait_headers(plan.faults, now))
        if plan.unavailable:
            return _error(503, 4197, "The endpoint has been ramped down and is not accepting any traffic.")
        if plan.server_error:
            return _error(500, 12, "Something went wrong on our end.")  # the code is not documented either
        return None

    def _read(self, call: Call, plan: CallPlan, now: float) -> Answer:
        if call.content_type != _JSON:
            return self._refuse("content_type", "The content type must be application/json.")
        if call.test not in (None, "true", "false"):
            return self._refuse("test", "The query parameter test must be true or false.")
        try:
            body = orjson.loads(call.body)
        except orjson.JSONDecodeError:
            return self._refuse("not_json", "The body is not JSON.")
        problem = rules.check_envelope(body)
        if problem is not None:
            return self._refuse(problem.code, problem.message)
        if not self._policy.validate:
            if call.test != "true":
                self.books.accept_unread(call.account, len(body["data"]))
            return Answer(200, _response([_PROCESSED] * len(body["data"])))
        return self._judge(call, body["data"], plan, now)

    def _judge(self, call: Call, events: list[Any], plan: CallPlan, now: float) -> Answer:
        policy = self._policy
        problems = [
            rules.check_event(event, now, max_age=policy.max_age, event_names=policy.event_names)
            for event in events
        ]
        for index, problem in enumerate(problems):
            if problem is not None and problem.structural:
                return self._refuse(problem.code, f"data[{index}]: {_message(problem, plan)}")
        marked = _marked(events, plan.faults.marker)
        if marked and plan.faults.marked is Marked.BAD_REQUEST:
            return self._refuse("marked", "The request was invalid.")
        if marked and plan.faults.marked is Marked.UNPROCESSABLE:
            return self._refuse("marked", "Not all events were successfully processed.", status=422)
        entries = self._settle(call, events, problems, marked, plan)
        if marked and plan.faults.marked is Marked.DETAILED:
            # The untyped ``details`` are the body of a 200.
            details = orjson.loads(_response(entries))
            return _error(422, 4196, "Not all events were successfully processed.", details=details)
        return _lying(entries, plan.lie)

    def _settle(
        self,
        call: Call,
        events: list[Any],
        problems: list[rules.Violation | None],
        marked: Collection[int],
        plan: CallPlan,
    ) -> list[Entry]:
        """Return one entry per event, in order. Records processed events, unless in test mode."""
        test = call.test == "true"
        entries: list[Entry] = []
        for index, (event, problem) in enumerate(zip(events, problems, strict=True)):
            if test and index >= rules.MAX_TEST_EVENTS:
                entries.append(_BEYOND_TEST)
            elif problem is not None or index in marked:
                refused: Entry = {} if problem is None else {"error_message": _message(problem, plan)}
                entries.append(_MARKED | refused)
                if not test:
                    self.books.reject("marked" if problem is None else problem.code)
            else:
                entries.append(_processed(event, plan))
                if not test:
                    self.books.accept(call.account, event)
        return entries

    def _refuse(self, code: str, message: str, *, status: int = 400) -> Answer:
        self.books.refuse(code)
        return _error(status, 4196, message, details={} if status == 422 else None)


def _middleman(call: Call, faults: Faults) -> Answer:
    """The answer of a proxy or firewall in place of Pinterest."""
    status, server = faults.middleman_status, {"Server": "middleman/1.0"}
    match faults.middleman_says:
        case Speech.HTML:
            page = f"<html><head><title>{status} Not By Pinterest</title></head><body></body></html>"
            return Answer(status, page.encode(), server, "text/html")
        case Speech.EMPTY:
            return Answer(status, b"", server, "text/html")
        case Speech.JSON:
            return Answer(
                status, orjson.dumps({"message": "Not by Pinterest", "error": {"code": "E1"}}), server
            )
        case Speech.ECHO:
            echo = f"<html><body>Denied: {call.authorization} ".encode() + call.body + b"</body></html>"
            return Answer(status, echo, server, "text/html")


def _message(problem: rules.Violation, plan: CallPlan) -> str:
    if plan.faults.echo and problem.value is not None:
        return f"{problem.message}: {problem.value}"
    return problem.message


def _marked(events: list[dict[str, Any]], marker: str | None) -> frozenset[int]:
    """Return the indices of the events that contain the marker."""
    if marker is None:
        return frozenset()
    return frozenset(index for index, event in enumerate(events) if marker in event["event_id"])


def _processed(event: dict[str, Any], plan: CallPlan) -> Entry:
    if plan.faults.warned and plan.random.random() < plan.faults.warned:
        return _WARNED
    warning = rules.warning_for(event)
    return _PROCESSED if warning is None else {**_PROCESSED, "warning_message": warning}


def _lying(entries: list[Entry], lie: Lie | None) -> Answer:
    match lie:
        case None:
            return Answer(200, _response(entries))
        case Lie.NOT_JSON:
            return Answer(200, b"<html><body>OK</body></html>", {}, "text/html")
        case Lie.WRONG_COUNT:
            return Answer(200, _response(entries, shown=entries[:-1]))
        case Lie.CONTRADICTION:
            return Answer(200, _response(entries, off=-1 if _count(entries) else 1))
        case Lie.PROCESSED_WITH_ERROR:
            message: Entry = {"error_message": "The sandbox says processed and complains all the same."}
            return Answer(200, _response([e | message if e["status"] == "processed" else e for e in entries]))


def _count(entries: list[Entry]) -> int:
    return sum(entry["status"] == "processed" for entry in entries)


def _response(entries: list[Entry], *, shown: list[Entry] | None = None, off: int = 0) -> bytes:
    """A ``ConversionApiResponse``. `shown` and `off` make its entries and its counter wrong."""
    return orjson.dumps(
        {
            "num_events_received": len(entries),
            "num_events_processed": _count(entries) + off,
            "events": entries if shown is None else shown,
        }
    )


def _error(status: int, code: int, message: str, *, details: dict[str, Any] | None = None) -> Answer:
    body: dict[str, Any] = {"code": code, "message": message}
    if details is not None:
        body["details"] = details
    return Answer(status, orjson.dumps(body))
