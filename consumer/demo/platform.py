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
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from consumer.demo import rules
from consumer.demo.accounts import Books
from consumer.demo.faults import CallPlan, Faults, Lie, Quota, wait_headers

# One item of ``events`` in a ``ConversionApiResponse``.
Entry = dict[str, str | None]
_MARKED: Final = rules.Violation("marked", "This event was refused by the sandbox.")


class Call(NamedTuple):
    """A ``POST /v5/ad_accounts/{account}/events`` as it arrived."""

    account: str
    authorization: str | None
    content_type: str
    test: str | None  # the query parameter as text
    body: bytes


class Answer(NamedTuple):
    """The answer to a call. `headers` do not contain the content type."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    content_type: str = "application/json"


@dataclass(eq=False, kw_only=True)
class Platform:
    """The server side of the Conversions API."""

    token: str  # the valid access token; it may be changed at any time
    accounts: Collection[str] | None = None  # the existing ad accounts (others get 404); None: any
    # Registered event names, in addition to the standard ones; they may be changed at any time.
    own_events: Collection[str] = ()
    check_age: bool = True  # whether events older than 7 days fail; those in the future always do
    most_ids: int | None = None  # number of latest event keys to remember, for distinct counts; None: all

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the counts and the used quotas."""
        self.books = Books(most_ids=self.most_ids)
        self._quotas: defaultdict[str, Quota] = defaultdict(Quota)

    def answer(self, call: Call, plan: CallPlan, now: float) -> Answer:
        """Answer `call` and record the processed events; `now` is in seconds since 1970."""
        # In the order of the real system: what stands between, then the caller, the load, the content of the call.
        limit = plan.faults.max_body_bytes
        if limit is not None and len(call.body) > limit:
            return Answer(413, b"<html><body>413 Request Entity Too Large</body></html>", {}, "text/html")
        if plan.middleman:
            return _middleman(call, plan.faults)
        refusal = self._refuse_caller(call, plan)
        if refusal is not None:
            return refusal
        # Only a call that is let in counts against the quota.
        limit = plan.faults.calls_per_minute
        within, headers = (True, {}) if limit is None else self._quotas[call.account].take(limit, now)
        answer = self._refuse_load(plan, within, now) or self._read(call, plan, now)
        return answer._replace(headers={**headers, **answer.headers})

    def _refuse_caller(self, call: Call, plan: CallPlan) -> Answer | None:
        scheme, _, given = (call.authorization or "").partition(" ")
        token = given.strip() if scheme.lower() == "bearer" else ""
        # A header may contain what UTF-8 cannot encode.
        right = hmac.compare_digest(token.encode(errors="replace"), self.token.encode(errors="replace"))
        if plan.unauthorised or not right:
            echoed = f" Token: {token}" if plan.faults.echo else ""
            return _error(401, 2, f"Authentication failed.{echoed}")
        if not rules.check_account(call.account):
            return _error(400, 4196, "The ad account id must be 1 to 18 digits.")
        if call.account in plan.faults.forbidden_accounts:
            return _error(403, 29, "You are not permitted to access that resource.")
        unknown = self.accounts is not None and call.account not in self.accounts
        if unknown or call.account in plan.faults.unknown_accounts:
            return _error(404, 50, "Ad account not found.")  # the code is not documented for this endpoint
        return None

    def _refuse_load(self, plan: CallPlan, within_quota: bool, now: float) -> Answer | None:
        if not within_quota or plan.throttled:
            answer = _error(429, 8, "This request exceeded a rate limit.")
            # Of a quota that is used up, the headers are already there.
            return answer._replace(headers=wait_headers(plan.faults, now)) if within_quota else answer
        if plan.unavailable:
            return _error(503, 4197, "The endpoint has been ramped down and is not accepting any traffic.")
        if plan.server_error:
            return _error(500, 12, "Something went wrong on our end.")  # the code is not documented either
        return None

    def _read(self, call: Call, plan: CallPlan, now: float) -> Answer:
        if call.content_type != "application/json":
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
        return self._judge(call, body["data"], plan, now)

    def _judge(self, call: Call, events: list[Any], plan: CallPlan, now: float) -> Answer:
        max_age = rules.MAX_AGE if self.check_age else None
        names = rules.KNOWN_EVENT_NAMES.union(self.own_events)
        problems = [rules.check_event(event, now, max_age=max_age, event_names=names) for event in events]
        # One structural problem costs the whole call, before any event is recorded.
        for index, problem in enumerate(problems):
            if problem is not None and problem.structural:
                return self._refuse(problem.code, f"data[{index}]: {_message(problem, plan)}")
        marker, how = plan.faults.marker, plan.faults.marked
        marked = [marker is not None and marker in event["event_id"] for event in events]
        unprocessed = "Not all events were successfully processed."
        if any(marked) and how == "400":
            return self._refuse("marked", "The request was invalid.")
        if any(marked) and how == "422":
            return self._refuse("marked", unprocessed, status=422)
        # Its own problem goes before the mark: it would be refused without one, too.
        verdicts = [
            problem or (_MARKED if mark else None) for problem, mark in zip(problems, marked, strict=True)
        ]
        entries = self._settle(call, events, verdicts, plan)
        if any(marked) and how == "422_details":
            # The untyped ``details`` are the body of a 200.
            return _error(422, 4196, unprocessed, details=_response(entries))
        lie = plan.faults.lie if plan.lying else None
        if lie == "not_json":
            return Answer(200, b"<html><body>OK</body></html>", {}, "text/html")
        return Answer(200, orjson.dumps(_response(entries, lie)))

    def _settle(
        self, call: Call, events: list[Any], verdicts: list[rules.Violation | None], plan: CallPlan
    ) -> list[Entry]:
        """Return one entry per event, in order. Records processed events, unless in test mode."""
        test, most = call.test == "true", rules.MAX_TEST_EVENTS
        entries: list[Entry] = []
        for event, problem in zip(events, verdicts, strict=True):
            error = warning = None
            if test and len(entries) >= most:
                error = f"Test mode processes at most {most} events of a request."
            elif problem is not None:
                error = _message(problem, plan)
            elif plan.faults.warned and plan.random.random() < plan.faults.warned:
                warning = "This event was warned about by the sandbox."
            else:
                warning = rules.warning_for(event)
            status = "processed" if error is None else "failed"
            entries.append({"status": status, "error_message": error, "warning_message": warning})
            # With ?test=true, Pinterest validates and records nothing.
            if test:
                continue
            if problem is None:
                self.books.accept(call.account, event)
            else:
                self.books.counts.rejected_events[problem.code] += 1
        return entries

    def _refuse(self, code: str, message: str, *, status: int = 400) -> Answer:
        self.books.counts.refused_calls[code] += 1
        return _error(status, 4196, message, details={} if status == 422 else None)


def _middleman(call: Call, faults: Faults) -> Answer:
    """The answer of a proxy or firewall in place of Pinterest."""
    status, server = faults.middleman_status, {"Server": "middleman/1.0"}
    match faults.middleman_says:
        case "html":
            said = f"<html><head><title>{status} Not By Pinterest</title></head><body></body></html>".encode()
        case "empty":
            said = b""
        case "json":
            said = orjson.dumps({"message": "Not by Pinterest", "error": {"code": "E1"}})
            return Answer(status, said, server)
        case "echo":
            said = f"<html><body>Denied: {call.authorization} ".encode() + call.body + b"</body></html>"
    return Answer(status, said, server, "text/html")


def _message(problem: rules.Violation, plan: CallPlan) -> str:
    if plan.faults.echo and problem.value is not None:
        return f"{problem.message}: {problem.value}"
    return problem.message


def _response(entries: list[Entry], lie: Lie | None = None) -> dict[str, Any]:
    """A ``ConversionApiResponse``, which may lie."""
    processed, events = sum(entry["status"] == "processed" for entry in entries), entries
    match lie:
        case "wrong_count":
            events = entries[:-1]
        case "contradiction":
            processed += -1 if processed else 1
        case "processed_with_error":
            message: Entry = {"error_message": "The sandbox says processed and complains all the same."}
            events = [one | message if one["status"] == "processed" else one for one in entries]
    return {"num_events_received": len(entries), "num_events_processed": processed, "events": events}


def _error(status: int, code: int, message: str, *, details: dict[str, Any] | None = None) -> Answer:
    body: dict[str, Any] = {"code": code, "message": message}
    if details is not None:
        body["details"] = details
    return Answer(status, orjson.dumps(body))
