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
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import orjson
from aiohttp import web

from consumer.demo.accounts import SandboxCounts
from consumer.demo.faults import FAULTS, Faults, draw_plan
from consumer.demo.platform import Call, Platform
from consumer.errors import UsageError

# Pinterest documents no limit; this one only protects the process.
_MAX_BODY: Final = 64 * 1024 * 1024
_SHUTDOWN_SECONDS: Final = 1.0


@dataclass(eq=False, kw_only=True)
class Sandbox(Platform):
    """A strict stand-in for Pinterest on its own port; `start` it, use the base URL, `stop` it."""

    faults: Faults = field(default_factory=Faults)  # the faults in force; see `set_faults`
    clock: Callable[[], float] = time.time  # seconds since 1970, for event ages, quotas and waiting times
    seed: int = 0  # seed of the random faults

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_faults(self.faults)
        self._runner: web.AppRunner | None = None

    def set_faults(self, faults: Faults) -> None:
        """Set other faults. Their call numbers and seconds start at zero."""
        self.faults = faults
        self._set_at, self._calls = self.clock(), 0

    def counts(self) -> SandboxCounts:
        """A copy of the current counts."""
        return copy.deepcopy(self.books.counts)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen (port 0: any free port) and return the base URL, with ``/v5``.

        Raises `UsageError` if the address is not available.
        """
        application = web.Application(client_max_size=_MAX_BODY)
        application.add_routes(
            [
                web.post("/v5/ad_accounts/{account}/events", self._events),
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

    async def _events(self, request: web.Request) -> web.StreamResponse:
        now = self.clock()
        plan = draw_plan(self.faults, seed=self.seed, call=self._calls, elapsed=now - self._set_at)
        self._calls += 1
        test = request.query.get("test")
        self.books.counts.test_calls += test == "true"
        if plan.dropped_before:  # the body is not even read
            return self._drop(request)
        call = Call(
            account=request.match_info["account"],
            authorization=request.headers.get("Authorization"),
            content_type=request.content_type,
            test=test,
            body=await request.read(),
        )
        answer = self.answer(call, plan, now)
        if plan.slow:
            # Recorded already: a caller that gives up does not know that its events were accepted.
            await asyncio.sleep(plan.faults.slow_seconds)
        if plan.dropped_after:
            return self._drop(request)
        self.books.counts.calls[str(answer.status)] += 1
        headers = {**answer.headers, "x-pinterest-rid": str(plan.random.getrandbits(53))}
        return web.Response(
            status=answer.status, body=answer.body, headers=headers, content_type=answer.content_type
        )

    def _drop(self, request: web.Request) -> web.StreamResponse:
        self.books.counts.calls["dropped"] += 1
        if request.transport is not None:
            request.transport.abort()  # no FIN after a complete answer: the caller must see a broken connection
        return web.Response()  # not sent: the connection is closed

    async def _counts(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.reset()
        return web.json_response(body=orjson.dumps(self.books.counts.as_json()))

    async def _deliveries(self, _: web.Request) -> web.Response:
        known = self.books.deliveries.items()
        return web.json_response(
            body=orjson.dumps([{**key._asdict(), "accepted": times} for key, times in known])
        )

    async def _faults(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            try:
                self.set_faults(FAULTS.validate_json(await request.read()))
            except ValueError as error:  # pydantic's, which names each invalid member
                return web.json_response({"message": str(error)}, status=400)
        return web.json_response(body=FAULTS.dump_json(self.faults))
