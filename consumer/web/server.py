"""The HTTP server of a running consumer: thin handlers over one snapshot function.

Theory of operation. Every answer is made from a snapshot taken for it. A task of the server's own takes one each
second and shows it to two that remember: `History`, for the plots, and `Events`, which makes a document of it if
anybody listens. So it costs the same however many look. What is served holds no personal data, and cannot change
anything; with a token, only who knows it sees it.

The page may have an address of its own: then the other one has only what machines ask for, health and metrics, and can
be open to more people. Both are made of the same handlers, and what is asked for at the wrong one is told so.

The page is one document. Its style and script are allowed by their hash, so that no markup which got into it could run.
No other site may read an answer, frame the page or be asked for anything by it. No request has a body that is read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from consumer.engine.statistics import Statistics
from consumer.web.access import guard, refuse_foreign_names
from consumer.web.connections import REQUEST_TIMEOUT, Connections
from consumer.web.events import Events
from consumer.web.health import FETCH_HANGS_AFTER, sickness, unreadiness
from consumer.web.history import History
from consumer.web.listening import Place, listen, main_place, page_place, url
from consumer.web.metrics import StatisticsCollector
from consumer.web.page import page
from consumer.web.status import status_document

_LOOK_EVERY = 1.0
"""Seconds between two looks at the figures."""
_STOP_TIMEOUT = 1.0
"""Seconds for answers under way when the server stops: a reader that dawdles must not hold up the shutdown."""
_LINGER = 1.0
"""Seconds for which the body of a request is thrown away after the answer; then the connection is closed."""
_ELSEWHERE = (
    "the page, /status, /history and /events have an address of their own here: PINSTREAM_PAGE_ADDRESS "
    "(pinstream logs it when it starts)\n"
)


class Urls(NamedTuple):
    """Where what is served: URLs that a browser on this machine can open."""

    page: str
    health: str


class WebServer:
    """Serves page, status, metrics and health at `host`:`port`; all of it is read from `snapshot`.

    `page_at`, host and port: page, status, history and events are served there, and not at `host`:`port`.
    `info` is put into /status as it is. `fetched_at` says when the last fetch began, on the same monotonic clock as
    `clock`; None while there was none. `hangs_after` and `broken`: see `consumer.web.health.sickness`. `keys`: how
    many keys the key store holds, for /history. `token` gives the token of now that all but the probes must show;
    None: there is none. `others`: what ails one of several processes whose figures these are, in one line.
    `more_metrics`: of these.
    """

    def __init__(
        self,
        snapshot: Callable[[], Statistics],
        info: Callable[[], Mapping[str, Any]],
        *,
        host: str,
        port: int,
        page_at: tuple[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        fetched_at: Callable[[], float | None] = lambda: None,
        hangs_after: float = FETCH_HANGS_AFTER,
        broken: Callable[[], str | None] = lambda: None,
        keys: Callable[[], int | None] = lambda: None,
        token: Callable[[], str] | None = None,
        others: Callable[[], str | None] = lambda: None,
        more_metrics: Collector | None = None,
        look_every: float = _LOOK_EVERY,
    ) -> None:
        self._snapshot = snapshot
        self._info = info
        self._main_place = main_place(host, port)
        self._page_place = None if page_at is None else page_place(*page_at)
        self._clock = clock
        self._wall = wall
        self._fetched_at = fetched_at
        self._keys = keys
        self._token = token
        self._others = others
        self._hangs_after = hangs_after
        self._broken = broken
        self._look_every = look_every
        self._history = History()
        self._events = Events(self._document, clock)
        self._registry = CollectorRegistry()
        self._registry.register(StatisticsCollector(snapshot))
        if more_metrics is not None:
            self._registry.register(more_metrics)
        document = page()
        self._page = document.encode()
        self._headers = _security_headers(document)
        self.connections = Connections()
        self._runners: list[web.AppRunner] = []
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> Urls:
        """Listen; gives where. Raises `SettingsError` if an address cannot be had."""
        try:
            health = page = await self._listen(self._main_place, self._routes())
            if self._page_place is not None:
                page = await self._listen(self._page_place, self._page_routes() + self._machine_routes())
        except BaseException:
            await self._close()
            raise
        self._watching = asyncio.create_task(self._watch())
        return Urls(page, health + "healthz")

    async def stop(self) -> None:
        """Stop listening; streams end at once. Stopping again, or before the start, does nothing."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        self._events.end()
        await self._close()

    async def _listen(self, place: Place, routes: list[web.RouteDef]) -> str:
        """Serve `routes` there; gives its URL."""
        runner = web.AppRunner(
            self._application(routes),
            access_log=None,
            logger=_logger(),
            shutdown_timeout=_STOP_TIMEOUT,
            handler_cancellation=True,
            lingering_time=_LINGER,
            keepalive_timeout=REQUEST_TIMEOUT,
        )
        self._runners.append(runner)
        await runner.setup()
        await listen(runner, place, self.connections)
        return url(*runner.addresses[0][:2])

    async def _close(self) -> None:
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.cleanup() for runner in runners))

    def _application(self, routes: list[web.RouteDef]) -> web.Application:
        access = refuse_foreign_names if self._token is None else guard(self._token)
        app = web.Application(middlewares=[self.connections.middleware(), access])
        app.on_response_prepare.append(self._harden)
        app.add_routes(routes)
        return app

    def _routes(self) -> list[web.RouteDef]:
        """What is at the main address: all, unless the page has one of its own."""
        page = self._page_routes()
        if self._page_place is not None:
            page = [web.get(one.path, _serve_elsewhere) for one in page]
        return page + self._machine_routes()

    def _page_routes(self) -> list[web.RouteDef]:
        """For people: the page, and what it asks for."""
        return [
            web.get("/", self._serve_page),
            web.get("/status", self._serve_status),
            web.get("/events", self._events.serve),
            web.get("/history", self._serve_history),
        ]

    def _machine_routes(self) -> list[web.RouteDef]:
        """For Prometheus and probes; at the page's address as well, since the page links to them."""
        return [
            web.get("/metrics", self._serve_metrics),
            web.get("/healthz", self._serve_health),
            web.get("/readyz", self._serve_readiness),
        ]

    # -- looking

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(self._look_every)

    def _look(self) -> None:
        """Once a second. Without figures the streams end: nobody shall take the last ones for those of now."""
        now = self._clock()
        try:
            statistics = self._snapshot()
            self._history.look(statistics, now, self._keys)
            self._events.look(statistics)
        except Exception as error:  # a bug, which must be heard of, and must not end the looks
            structlog.get_logger().error("figures_unreadable", error=type(error).__name__)
            self._events.hang_up()

    def _sickness(self) -> str | None:
        """Figures that cannot be had are sickness enough."""
        try:
            found = sickness(
                self._snapshot(),
                self._clock(),
                self._fetched_at(),
                hangs_after=self._hangs_after,
                broken=self._broken(),
            )
            return found or self._others()
        except Exception as error:
            return f"the figures cannot be read ({type(error).__name__})"

    def _document(self, statistics: Statistics | None = None) -> bytes:
        """The /status document, of now unless a snapshot is there already."""
        return orjson.dumps(status_document(statistics or self._snapshot(), self._info()))

    # -- answering

    async def _harden(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)

    async def _serve_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8")

    async def _serve_status(self, _: web.Request) -> web.Response:
        return web.Response(body=self._document(), content_type="application/json")

    async def _serve_history(self, _: web.Request) -> web.Response:
        document = self._history.document(self._clock(), self._wall())
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _serve_health(self, _: web.Request) -> web.Response:
        return _verdict(self._sickness())

    async def _serve_readiness(self, _: web.Request) -> web.Response:
        return _verdict(unreadiness(self._snapshot()))


async def _serve_elsewhere(_: web.Request) -> web.Response:
    return web.Response(status=404, text=_ELSEWHERE)


def _verdict(trouble: str | None) -> web.Response:
    if trouble is None:
        return web.Response(text="ok\n")
    return web.Response(status=503, text=trouble + "\n")


def _security_headers(document: str) -> dict[str, str]:
    """For every answer. Style and script of the page are allowed as they are now, and no others."""
    style, script = (_hashes_of(document, tag) for tag in ("style", "script"))
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src {style}; script-src {script}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Server": "pinstream",
    }


def _hashes_of(document: str, tag: str) -> str:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _logger() -> logging.Logger:
    """What aiohttp logs with: a request that is no HTTP is the client's trouble, and its bytes are nothing to log."""
    logger = logging.getLogger(__name__)
    logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
