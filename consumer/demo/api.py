"""The sandbox: an HTTP server that behaves like the Conversions API and, on request, misbehaves like it.

====  ===============================  ========================================================
POST  ``/v5/ad_accounts/{id}/events``  the API itself; see `platform` for its answers
GET   ``/sandbox/counts``              the counts as JSON; see `accounts.SandboxCounts`
GET   ``/sandbox/events``              how often each event was accepted
POST  ``/sandbox/reset``               resets the counts and the used quotas
GET   ``/sandbox/faults``              the faults in force
POST  ``/sandbox/faults``              sets the faults; those not named are off. See `faults.Faults`
====  ===============================  ========================================================

This module is only the network part: it reads a call, gets the answer from the synchronous `Platform`, then
delays it, cuts the connection, or sends it. Use it on loopback only: ``/sandbox`` requires no token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import orjson
from aiohttp import web

from consumer.demo import rules
from consumer.demo.accounts import EventKey, SandboxCounts
from consumer.demo.faults import CallPlan, Faults, FaultSource, faults_as_json, faults_from_json
from consumer.demo.platform import Answer, Call, Platform, PlatformPolicy
from consumer.errors import UsageError

NO_FAULTS: Final = Faults()
_MAX_BODY: Final = 64 * 1024 * 1024
"""Pinterest documents no limit; this one only protects the process."""
_SHUTDOWN_SECONDS: Final = 1.0


class Sandbox:
    """A strict stand-in for Pinterest on its own port; `start` it, use the base URL, `stop` it.

    :param token: the valid access token; settable later, to rotate it.
    :param accounts: the existing ad accounts (others get 404); None for any.
    :param faults: the faults to start with; settable later.
    :param clock: seconds since 1970, for event ages, quotas and waiting times.
    :param check_age: whether events older than 7 days fail; the future is always refused.
    :param most_ids: number of latest event keys to remember, for distinct counts; None for all, 0 for none.
    :param seed: seed of the random faults.
    :param validate: False counts events unread, for benchmarks; then no ids are kept.
    :param limited_tokens: further valid tokens without any permission (403).
    :param own_events: registered event names in addition to the standard ones; see `register`.
    """

    def __init__(
        self,
        *,
        token: str,
        accounts: Collection[str] | None = None,
        faults: Faults = NO_FAULTS,
        clock: Callable[[], float] = time.time,
        check_age: bool = True,
        most_ids: int | None = None,
        seed: int = 0,
        validate: bool = True,
        limited_tokens: Collection[str] = (),
        own_events: Collection[str] = (),
    ) -> None:
        policy = PlatformPolicy(
            accounts=None if accounts is None else frozenset(accounts),
            limited_tokens=frozenset(limited_tokens),
            max_age=rules.MAX_AGE if check_age else None,
            event_names=rules.KNOWN_EVENT_NAMES.union(own_events),
            validate=validate,
        )
        self._platform = Platform(token, policy, most_ids=most_ids if validate else 0)
        self._clock = clock
        self._seed = seed
        self._source = FaultSource(faults, seed=seed, now=clock())
        self._runner: web.AppRunner | None = None

    @property
    def token(self) -> str:
        """The valid access token."""
        return self._platform.token

    @token.setter
    def token(self, token: str) -> None:
        self._platform.token = token

    def register(self, own_events: Collection[str]) -> None:
        """Also accepts events of these names."""
        self._platform.register(own_events)

    @property
    def faults(self) -> Faults:
        """The faults in force. Setting them restarts their call numbers and seconds."""
        return self._source.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._source = FaultSource(faults, seed=self._seed, now=self._clock())

    def counts(self) -> SandboxCounts:
        """The current counts, frozen."""
        return self._platform.books.counts()

    def deliveries(self) -> Mapping[EventKey, int]:
        """How often each remembered event was accepted."""
        return self._platform.books.deliveries

    def reset(self) -> None:
        """Resets the counts and the used quotas; the faults stay."""
        self._platform.reset()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens (port 0: any free port) and returns the base URL, with ``/v5``.

        Raises `UsageError` if the address is not available.
        """
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
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
        """Stops listening and closes all connections; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_MAX_BODY)
        application.router.add_post("/v5/ad_accounts/{account}/events", self._events)
        application.router.add_get("/sandbox/counts", self._get_counts)
        application.router.add_get("/sandbox/events", self._get_events)
        application.router.add_post("/sandbox/reset", self._post_reset)
        application.router.add_get("/sandbox/faults", self._get_faults)
        application.router.add_post("/sandbox/faults", self._post_faults)
        return application

    async def _events(self, request: web.Request) -> web.StreamResponse:
        now = self._clock()
        plan = self._source.next_plan(now)
        test = request.query.get("test")
        if plan.dropped_before:
            return self._drop(request, test)
        call = Call(
            account=request.match_info["account"],
            authorization=request.headers.get("Authorization"),
            content_type=request.content_type,
            test=test,
            body=await request.read(),
        )
        answer = self._platform.answer(call, plan, now)
        if plan.delay:
            await asyncio.sleep(plan.delay)
        if plan.dropped_after:
            return self._drop(request, test)
        self._platform.books.answered(str(answer.status), test=test == "true")
        return _http(answer, plan)

    def _drop(self, request: web.Request, test: str | None) -> web.StreamResponse:
        self._platform.books.answered("dropped", test=test == "true")
        if request.transport is not None:
            request.transport.abort()
        return web.Response()  # not sent: the connection is closed

    async def _get_counts(self, _: web.Request) -> web.Response:
        return _json(self.counts().as_json())

    async def _get_events(self, _: web.Request) -> web.Response:
        return _json([{**key._asdict(), "accepted": times} for key, times in self.deliveries().items()])

    async def _post_reset(self, _: web.Request) -> web.Response:
        self.reset()
        return _json(self.counts().as_json())

    async def _get_faults(self, _: web.Request) -> web.Response:
        return _json(faults_as_json(self.faults))

    async def _post_faults(self, request: web.Request) -> web.Response:
        try:
            self.faults = faults_from_json(await request.read())
        except ValueError as error:
            return _json({"message": str(error)}, status=400)
        return _json(faults_as_json(self.faults))


async def serve_sandbox(
    sandbox: Sandbox, *, host: str, port: int, stop: asyncio.Event, announce: Callable[[str], None]
) -> SandboxCounts:
    """Runs `sandbox` until `stop` is set, for ``pinstream sandbox``; `announce` gets the base URL.

    Returns the counts. Raises `UsageError` if the address is not available.
    """
    announce(await sandbox.start(host, port))
    try:
        await stop.wait()
    finally:
        await sandbox.stop()
    return sandbox.counts()


def _http(answer: Answer, plan: CallPlan) -> web.Response:
    headers = {**answer.headers, "x-pinterest-rid": str(plan.random.getrandbits(53))}
    return web.Response(
        status=answer.status, body=answer.body, headers=headers, content_type=answer.content_type
    )


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
