"""The sandbox: an HTTP server that behaves like the Conversions API and, on request, misbehaves like it.

====  ===============================  ========================================================
POST  ``/v5/ad_accounts/{id}/events``  the API itself
GET   ``/v5/ad_accounts/{id}/…``       what it knows of an account; see `accounts`
GET   ``/sandbox/counts``              the counts as JSON; see `accounts.SandboxCounts`
GET   ``/sandbox/events``              how often each event was accepted
POST  ``/sandbox/reset``               resets the counts and the used quotas
GET   ``/sandbox/faults``              the faults in force
POST  ``/sandbox/faults``              sets the faults; those not named are off. See `faults.Faults`
====  ===============================  ========================================================

A call is checked in the order of the real API (see `faults`) and answered in the forms of the OpenAPI description:
``ConversionApiResponse`` for a 200, ``Error`` otherwise. The events of a call are recorded only if its answer says so.
Only `_events` waits: it reads the body, and it delays the answer or cuts the connection instead. All decisions take the
time as `now` and the faults from the `CallPlan` of the call.

Use it on loopback only: ``/sandbox`` requires no token.
"""

from __future__ import annotations

import asyncio
import copy
import hmac
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiohttp import web

from consumer.demo import rules
from consumer.demo.accounts import SandboxCounts, SandboxMemory
from consumer.demo.faults import FAULTS, CallPlan, Faults, SandboxQuota, draw_plan, wait_headers
from consumer.errors import UsageError

# Pinterest documents no limit; this one only protects the process.
_MAX_BODY: Final = 64 * 1024 * 1024
_SHUTDOWN_SECONDS: Final = 1.0

# One item of ``events`` in a ``ConversionApiResponse``.
ResponseEvent = dict[str, str | None]
_MARKED: Final = rules.Violation("marked", "This event was refused by the sandbox.")


@dataclass(eq=False, kw_only=True)
class Sandbox:
    """A strict sandbox of Pinterest on its own port; `start` it, use the base URL, `stop` it."""

    token: str  # the valid access token; it may be changed at any time
    accounts: Collection[str] | None = None  # the existing ad accounts (others get 404); None: any
    # Registered event names, in addition to the standard ones; they may be changed at any time.
    own_events: Collection[str] = ()
    check_age: bool = True  # whether events older than 7 days fail; those in the future always do
    max_ids: int | None = None  # number of latest event keys to remember, for distinct counts; None: all
    faults: Faults = field(default_factory=Faults)  # the faults in force; see `set_faults`
    tag_fired: float | None = None  # when the accounts' tag fired last, in seconds since 1970; None: never
    clock: Callable[[], float] = time.time  # seconds since 1970, for event ages, quotas and waiting times
    seed: int = 0  # seed of the random faults

    def __post_init__(self) -> None:
        self.reset()
        self.set_faults(self.faults)
        self._runner: web.AppRunner | None = None

    def reset(self) -> None:
        """Reset the counts, the used quotas, and what is known of the accounts."""
        self.memory = SandboxMemory(max_ids=self.max_ids)
        self._quotas: defaultdict[str, SandboxQuota] = defaultdict(SandboxQuota)

    def set_faults(self, faults: Faults) -> None:
        """Set other faults. Their call numbers start at zero."""
        self.faults, self._calls = faults, 0

    def counts(self) -> SandboxCounts:
        """Return a copy of the current counts."""
        return copy.deepcopy(self.memory.counts)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen (port 0: any free port) and return the base URL, with ``/v5``.

        Raises `UsageError` if the address is not available.
        """
        application = web.Application(client_max_size=_MAX_BODY)
        application.add_routes(
            [
                web.post("/v5/ad_accounts/{account}/events", self._events),
                web.get("/v5/ad_accounts/{account}/{question}", self._reads),
                web.get("/sandbox/counts", self._counts),
                web.get("/sandbox/events", self._deliveries),
                web.post("/sandbox/reset", self._counts),
                web.get("/sandbox/faults", self._faults),
                web.post("/sandbox/faults", self._faults),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise UsageError(
                f"the sandbox cannot listen on {host}:{port} ({error.strerror}): choose another port"
            ) from error
        self._runner = runner
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{runner.addresses[0][1]}/v5"

    async def stop(self) -> None:
        """Stop listening and close all connections; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _counts(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.reset()
        return _json(200, self.memory.counts.as_json())

    async def _deliveries(self, _: web.Request) -> web.Response:
        known = self.memory.deliveries.items()
        return _json(200, [{**key._asdict(), "accepted": times} for key, times in known])

    async def _faults(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            try:
                self.set_faults(FAULTS.validate_json(await request.read()))
            except ValueError as error:  # pydantic's, which names each invalid member
                return _json(400, {"message": str(error)})
        return web.json_response(body=FAULTS.dump_json(self.faults))

    # -- the API itself

    async def _reads(self, request: web.Request) -> web.Response:
        """Answer a question about an account. It counts as no call, and takes no turn of the faults."""
        account = request.match_info["account"]
        plan = draw_plan(self.faults, seed=self.seed, call=self._calls)
        refusal = self._refuse_caller(account, request.headers.get("Authorization", ""), plan)
        if refusal := refusal or self._refuse_load(plan, True):
            return refusal
        match request.match_info["question"], request.query.get("lookback_period"):
            case "conversion_eqs", "1d" | "14d" as period:
                return _json(200, self.memory.seen.scores(account, period))
            case "conversion_eqs", _:
                return _error(400, 4196, "lookback_period is required: 1d or 14d.")
            case "conversion_tags", _:
                fired = None if self.tag_fired is None else round(self.tag_fired * 1000)
                return _json(200, {"items": [{"name": "shop tag", "last_fired_time_ms": fired}]})
            case "advertiser_defined_events", _:
                names = [{"name": name, "mapped_conversion_type": None} for name in self.own_events]
                return _json(200, {"items": names})
        return _error(404, 50, "Not found.")

    async def _events(self, request: web.Request) -> web.Response:
        now = self.clock()
        plan = draw_plan(self.faults, seed=self.seed, call=self._calls)
        self._calls += 1
        self.memory.counts.test_calls += request.query.get("test") == "true"
        if plan.dropped_before:  # the body is not even read
            return self._drop(request)
        answer = self._answer(request, await request.read(), plan, now)
        if plan.slow:
            # Recorded already: a caller that gives up does not know that its events were accepted.
            await asyncio.sleep(plan.faults.slow_seconds)
        if plan.dropped_after:
            return self._drop(request)
        self.memory.counts.calls[str(answer.status)] += 1
        answer.headers["x-pinterest-rid"] = str(plan.random.getrandbits(53))
        return answer

    def _drop(self, request: web.Request) -> web.Response:
        self.memory.counts.calls["dropped"] += 1
        if request.transport is not None:
            request.transport.abort()  # no FIN after a complete answer: the caller must see a broken connection
        return web.Response()  # not sent: the connection is closed

    def _answer(self, request: web.Request, body: bytes, plan: CallPlan, now: float) -> web.Response:
        """Answer a call and record the processed events; `now` is in seconds since 1970."""
        # In the order of the real system: a server in between, then the caller, the load, the content of the call.
        limit = plan.faults.max_body_bytes
        if limit is not None and len(body) > limit:
            return _page(413, b"<html><body>413 Request Entity Too Large</body></html>")
        if plan.middleman:
            return _middleman(request, body, plan.faults)
        account = request.match_info["account"]
        refusal = self._refuse_caller(account, request.headers.get("Authorization", ""), plan)
        if refusal is not None:
            return refusal
        # Only a call that is let in counts against the quota.
        limit = plan.faults.calls_per_minute
        within, headers = (True, {}) if limit is None else self._quotas[account].take(limit, now)
        answer = self._refuse_load(plan, within)
        if answer is None:
            answer = self._read(request, body, plan, now)
        for name, value in headers.items():
            answer.headers.setdefault(name, value)
        return answer

    def _refuse_caller(self, account: str, authorization: str, plan: CallPlan) -> web.Response | None:
        scheme, _, given = authorization.partition(" ")
        token = given.strip() if scheme.lower() == "bearer" else ""
        # A header may contain what UTF-8 cannot encode.
        right = hmac.compare_digest(token.encode(errors="replace"), self.token.encode(errors="replace"))
        if plan.unauthorised or not right:
            echoed = f" Token: {token}" if plan.faults.echo else ""
            return _error(401, 2, f"Authentication failed.{echoed}")
        if not rules.check_account(account):
            return _error(400, 4196, "The ad account id must be 1 to 18 digits.")
        if account in plan.faults.forbidden_accounts:
            return _error(403, 29, "You are not permitted to access that resource.")
        if self.accounts is not None and account not in self.accounts:
            return _error(404, 50, "Ad account not found.")  # the code is not documented for this endpoint
        return None

    def _refuse_load(self, plan: CallPlan, within_quota: bool) -> web.Response | None:
        if not within_quota or plan.throttled:
            answer = _error(429, 8, "This request exceeded a rate limit.")
            # A quota that is used up has headers of its own.
            answer.headers.update(wait_headers(plan.faults) if within_quota else {})
            return answer
        if plan.unavailable:
            return _error(503, 4197, "The endpoint has been ramped down and is not accepting any traffic.")
        if plan.server_error:
            return _error(500, 12, "Something went wrong on our end.")  # the code is not documented either
        return None

    def _read(self, request: web.Request, body: bytes, plan: CallPlan, now: float) -> web.Response:
        if request.content_type != "application/json":
            return self._refuse("content_type", "The content type must be application/json.")
        test = request.query.get("test", "false")
        if test not in ("true", "false"):
            return self._refuse("test", "The query parameter test must be true or false.")
        try:
            content = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._refuse("not_json", "The body is not JSON.")
        problem = rules.check_envelope(content)
        if problem is not None:
            return self._refuse(problem.code, problem.message)
        return self._judge(request.match_info["account"], content["data"], plan, now, test=test == "true")

    def _judge(
        self, account: str, events: list[Any], plan: CallPlan, now: float, *, test: bool
    ) -> web.Response:
        """Answer with one entry per event, in order. Records what became of them, unless in test mode."""
        max_age = rules.MAX_AGE if self.check_age else None
        names = rules.KNOWN_EVENT_NAMES.union(self.own_events)
        problems = [rules.check_event(event, now, max_age=max_age, event_names=names) for event in events]
        # One structural problem costs the whole call, before any event is recorded.
        for index, problem in enumerate(problems):
            if problem is not None and problem.structural:
                return self._refuse(problem.code, f"data[{index}]: {_message(problem, plan)}")
        marker = plan.faults.marker
        entries: list[ResponseEvent] = []
        for event, problem in zip(events, problems, strict=True):
            # Its own problem goes before the mark: it would be refused without one, too.
            if problem is None and marker is not None and marker in event["event_id"]:
                problem = _MARKED
            error = warning = None
            if test and len(entries) >= rules.MAX_TEST_EVENTS:
                error = f"Test mode processes at most {rules.MAX_TEST_EVENTS} events of a request."
            elif problem is not None:
                error = _message(problem, plan)
            else:
                warning = rules.warning_for(event)
            status = "processed" if error is None else "failed"
            entries.append({"status": status, "error_message": error, "warning_message": warning})
            # With ?test=true, Pinterest validates and records nothing.
            if problem is None and not test:
                self.memory.accept(account, event)
            elif problem is not None and not test:
                self.memory.counts.rejected_events[problem.code] += 1
        processed = sum(entry["status"] == "processed" for entry in entries)
        counted = {"num_events_received": len(entries), "num_events_processed": processed}
        return _json(200, {**counted, "events": entries})

    def _refuse(self, code: str, message: str) -> web.Response:
        self.memory.counts.refused_calls[code] += 1
        return _error(400, 4196, message)


def _middleman(request: web.Request, body: bytes, faults: Faults) -> web.Response:
    """Return the answer of a proxy or firewall in place of Pinterest."""
    status = faults.middleman_status
    match faults.middleman_says:
        case "html":
            said = f"<html><head><title>{status} Not By Pinterest</title></head><body></body></html>".encode()
            answer = _page(status, said)
        case "empty":
            answer = _page(status, b"")
        case "json":
            answer = _json(status, {"message": "Not by Pinterest", "error": {"code": "E1"}})
        case "echo":
            denied = f"<html><body>Denied: {request.headers.get('Authorization')} ".encode()
            answer = _page(status, denied + body + b"</body></html>")
    answer.headers["Server"] = "middleman/1.0"
    return answer


def _message(problem: rules.Violation, plan: CallPlan) -> str:
    if plan.faults.echo and problem.value is not None:
        return f"{problem.message}: {problem.value}"
    return problem.message


def _error(status: int, code: int, message: str) -> web.Response:
    return _json(status, {"code": code, "message": message})


def _json(status: int, content: object) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(content), content_type="application/json")


def _page(status: int, content: bytes) -> web.Response:
    return web.Response(status=status, body=content, content_type="text/html")
