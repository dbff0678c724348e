"""The HTTP server of a running consumer: thin handlers over one snapshot function.

Every answer is made from a snapshot taken for it. In addition, a task takes a snapshot each second and passes it to
`History`, for the plots, and to `Events`, which makes a document of it if there are listeners. So the cost does not
grow with the number of listeners. The answers contain no personal data, and no request changes anything. With a token,
only requests that carry it are answered.

The page may have its own address. The other address then serves only health and metrics, and can be open to more
people. Both addresses use the same handlers; a request at the wrong one gets a hint to the other setting.

The page is one document. The Content-Security-Policy allows its style and script by their hashes, so that injected
markup could not run. No other site may read an answer, frame the page or be called by it. Request bodies are not read.
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
from importlib.resources import files
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
from consumer.web.health import FETCH_HANGS_AFTER, why_not_ready, why_unhealthy
from consumer.web.history import History
from consumer.web.listening import ListenAddress, listen, main_address, page_address, url
from consumer.web.metrics import StatisticsCollector
from consumer.web.status import status_document

_LOOK_EVERY = 1.0
"""Seconds between two snapshots for `History` and `Events`."""
_STOP_TIMEOUT = 1.0
"""Seconds for unfinished answers when the server stops: a slow client must not delay the shutdown."""
_LINGER = 1.0
"""Seconds for which a request's body is discarded after the answer; then the connection is closed."""
_ELSEWHERE = (
    "the page, /status, /history and /events are served at PINSTREAM_PAGE_ADDRESS, which pinstream logs when it "
    "starts\n"
)

_PARTS = re.compile(r"/\* ((?:\w+\.(?:css|js) ?)+) \*/")
"""A comment in page.html that names the files to insert, such as ``/* page.css */``."""


class Urls(NamedTuple):
    """The URLs of page and health, as a browser on this machine can open them."""

    page: str
    health: str


class WebServer:
    """Serves page, status, metrics and health at `host`:`port`, all from `snapshot`.

    `page_at`: host and port that serve page, status, history and events instead of `host`:`port`.
    `info` is added to /status unchanged. `fetched_at` says when the last fetch began, on the same monotonic clock as
    `clock`; None while there was none. `hangs_after` and `broken`: see `consumer.web.health.why_unhealthy`. `keys`: how
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
        self._main_address = main_address(host, port)
        self._page_address = None if page_at is None else page_address(*page_at)
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
        document = render_page()
        self._page = document.encode()
        self._headers = _security_headers(document)
        self.connections = Connections()
        self._runners: list[web.AppRunner] = []
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> Urls:
        """Listen and return the URLs. Raises `SettingsError` if an address is not available."""
        try:
            health = page = await self._listen(self._main_address, self._routes())
            if self._page_address is not None:
                page = await self._listen(self._page_address, self._page_routes() + self._machine_routes())
        except BaseException:
            await self._close()
            raise
        self._watching = asyncio.create_task(self._watch())
        return Urls(page, health + "healthz")

    async def stop(self) -> None:
        """Stop listening and end all streams. Without a start, or a second time, it does nothing."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        self._events.end()
        await self._close()

    async def _listen(self, place: ListenAddress, routes: list[web.RouteDef]) -> str:
        """Serve `routes` at `place` and return its URL."""
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
        """The routes of the main address: all of them, unless the page has its own address."""
        page = self._page_routes()
        if self._page_address is not None:
            page = [web.get(one.path, _serve_elsewhere) for one in page]
        return page + self._machine_routes()

    def _page_routes(self) -> list[web.RouteDef]:
        """Routes for people: the page, and what it fetches."""
        return [
            web.get("/", self._serve_page),
            web.get("/status", self._serve_status),
            web.get("/events", self._events.serve),
            web.get("/history", self._serve_history),
        ]

    def _machine_routes(self) -> list[web.RouteDef]:
        """Routes for Prometheus and probes. The page's address has them too, because the page links to them."""
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
        """Runs once a second.

        Without figures it ends the streams, so that old figures are not taken for current ones.
        """
        now = self._clock()
        try:
            statistics = self._snapshot()
            self._history.look(statistics, now, self._keys)
            self._events.look(statistics)
        except Exception as error:  # a bug: log it and keep looking
            structlog.get_logger().error("figures_unreadable", error=type(error).__name__)
            self._events.hang_up()

    def _why_unhealthy(self) -> str | None:
        """Return why the process is unhealthy, also if its figures cannot be read."""
        try:
            found = why_unhealthy(
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
        """The /status document of `statistics`, or of a new snapshot."""
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
        return _health_response(self._why_unhealthy())

    async def _serve_readiness(self, _: web.Request) -> web.Response:
        return _health_response(why_not_ready(self._snapshot()))


async def _serve_elsewhere(_: web.Request) -> web.Response:
    return web.Response(status=404, text=_ELSEWHERE)


def _health_response(trouble: str | None) -> web.Response:
    if trouble is None:
        return web.Response(text="ok\n")
    return web.Response(status=503, text=trouble + "\n")


def render_page() -> str:
    """Return the page as one document: `page.html` with style and scripts inserted where it names them.

    They are inserted unchanged, so there is no build step and the browser fetches no further file.
    """
    folder = files("consumer.web")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    return _PARTS.sub(lambda named: "\n" + "".join(map(read, named[1].split())), read("page.html"))


def _security_headers(document: str) -> dict[str, str]:
    """The headers of every answer. They allow the page's own style and script, and no others."""
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
    """The logger for aiohttp, without invalid requests: they are the client's mistake, and must not be logged."""
    logger = logging.getLogger(__name__)
    logger.addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
    )
    return logger
