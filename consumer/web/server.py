"""The HTTP server of a running consumer: thin handlers over one snapshot function.

Every answer is made from a snapshot taken for it. In addition, a task takes a snapshot each second and passes it to
`History`, for the plots, and to `EventStream`, which makes a document of it if there are listeners. So the cost does
not grow with the number of listeners. The answers contain no personal data, and no request changes anything. With a
token, only requests that carry it are answered.

The page may have its own address. The other address then serves only health and metrics, and can be open to more
people.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import orjson
import structlog
from aiohttp import web

from consumer.engine.figures.statistics import Statistics
from consumer.web.access import guard, refuse_foreign_names
from consumer.web.events import EventStream
from consumer.web.health import why_not_ready, why_unhealthy
from consumer.web.history import History
from consumer.web.listening import (
    REQUEST_TIMEOUT,
    Connections,
    ListenAddress,
    listen,
    main_address,
    page_address,
)
from consumer.web.metrics import FiguresCollector
from consumer.web.requests import Requests
from consumer.web.status import status_document

# Seconds between two snapshots for `History` and `EventStream`.
_CHECK_EVERY = 1.0
# A multiple of it, while no page is open: the history has a point every ten seconds.
_SELDOM = 5
# Seconds for unfinished answers when the server stops: a slow client must not delay the shutdown.
_STOP_TIMEOUT = 1.0
_ON_THE_OTHER_ADDRESS = (
    "the page, /status, /history, /group and /events are served at PINSTREAM_PAGE_ADDRESS, which pinstream logs when "
    "it starts\n"
)

# A comment line in style or script, or the indentation of a line: for readers of the source, and no browser needs them.
_FOR_READERS = re.compile(r"^ *(?://|/\*).*\n|^ +", re.MULTILINE)
# A comment in page.html that names the files to insert, such as ``/* page.css */``.
_PARTS = re.compile(r"/\* ((?:\w+\.(?:css|js) ?)+) \*/")


class Urls(NamedTuple):
    """The URLs of page and health, as a browser on this machine can open them."""

    page: str
    health: str


@dataclass(eq=False)
class WebServer:
    """Serves page, status, metrics and health at `host`:`port`, all from `snapshot`."""

    snapshot: Callable[[], Statistics]
    info: Callable[[], Mapping[str, Any]]
    """Added to /status unchanged."""
    _: KW_ONLY
    host: str
    port: int
    or_any_port: bool = False
    """If `port` is in use, listen on any free one."""
    page_at: tuple[str, int] | None = None
    """Host and port that serve page, status, history and events instead of `host`:`port`."""
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    unhealthy: Callable[[Statistics], str | None] = lambda statistics: why_unhealthy(statistics, 0.0)
    """Says what is wrong with the process whose figures these are, in one line; None: it is healthy."""
    token: Callable[[], str] | None = None
    """Returns the current token, which all requests but the probes must carry; None: there is none."""
    more_metrics: FiguresCollector | None = None
    group: Callable[[], Awaitable[Any]] | None = None
    """Asks Kafka about the whole group, for /group; None: there is no such path."""
    check_every: float = _CHECK_EVERY

    def __post_init__(self) -> None:
        self._history = History()
        self._events = EventStream(self._document, self.clock)
        document = render_page()
        self._page = document.encode()
        self._headers = security_headers(document)
        self.connections = Connections()
        self._runners: list[web.AppRunner] = []
        self._listening: list[asyncio.Server] = []
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> Urls:
        """Listen and return the URLs. Raises `SettingsError` if an address is not available."""
        people, machines = self._routes()
        try:
            main = main_address(self.host, self.port)._replace(or_any_port=self.or_any_port)
            if self.page_at is None:
                page = health = await self._listen(main, people + machines)
            else:
                # A request for the page at the wrong address gets a hint to the setting.
                hint = [
                    _get(one.path, partial(web.Response, status=404, text=_ON_THE_OTHER_ADDRESS))
                    for one in people
                ]
                health = await self._listen(main, hint + machines)
                # The page links to health and metrics, so its address serves them too.
                page = await self._listen(page_address(*self.page_at), people + machines)
        except BaseException:  # also if the start is cancelled: no socket may stay open
            await self.stop()
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
        # First accept no new connections, then close those that are open.
        while self._listening:
            self._listening.pop().close()
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.cleanup() for runner in runners))

    async def _listen(self, place: ListenAddress, routes: list[web.RouteDef]) -> str:
        """Serve `routes` at `place` and return its URL."""

        async def harden(request: web.Request, response: web.StreamResponse) -> None:
            response.headers.update(self._headers)
            if not request.content.is_eof():  # its body is not read (`Requests`)
                response.force_close()
                response.headers["Connection"] = "close"

        # Without a token, another website could read the figures through a visitor's browser. With one it cannot: a
        # browser sends the token only to the site that it was entered for.
        access = refuse_foreign_names if self.token is None else guard(self.token)
        app = web.Application(middlewares=[self.connections.note, access])
        app.on_response_prepare.append(harden)
        app.add_routes(routes)
        # handler_cancellation: a stream ends when its client leaves.
        runner = web.AppRunner(app, shutdown_timeout=_STOP_TIMEOUT, handler_cancellation=True)
        self._runners.append(runner)
        await runner.setup()
        server = runner.server
        assert server is not None  # noqa: S101 - it is set up
        self.connections.servers.append(server)

        def protocol() -> asyncio.Protocol:
            self.connections.make_room()
            return Requests(server, logger=logging.getLogger(__name__), keepalive_timeout=REQUEST_TIMEOUT)

        listening = await listen(place, protocol)
        self._listening.append(listening)
        return place.url(listening)

    def _routes(self) -> tuple[list[web.RouteDef], list[web.RouteDef]]:
        """Return the routes for people (the page and what it fetches), and those for Prometheus and probes."""

        def json(document: Any) -> web.Response:
            body = document if isinstance(document, bytes) else orjson.dumps(document)
            return web.Response(body=body, content_type="application/json")

        def health(reason: str | None) -> web.Response:
            return web.Response(status=200 if reason is None else 503, text=f"{reason or 'ok'}\n")

        people = [
            _get("/", lambda: web.Response(body=self._page, content_type="text/html", charset="utf-8")),
            _get("/status", lambda: json(self._document())),
            web.get("/events", self._events.serve),
            _get("/history", lambda: json(self._history.document(self.clock(), self.wall()))),
        ]
        if (ask := self.group) is not None:

            async def group(_: web.Request) -> web.Response:
                return json(await ask())

            people.append(web.get("/group", group))
        machines = [
            _get("/metrics", self._metrics),
            _get("/healthz", lambda: health(self._why_unhealthy())),
            _get("/readyz", lambda: health(why_not_ready(self.snapshot()))),
        ]
        return people, machines

    def _metrics(self) -> web.Response:
        # Imported here: a process that is not scraped needs none of it.
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        registry = CollectorRegistry()
        registry.register(FiguresCollector(Statistics, lambda: [self.snapshot()]))
        if self.more_metrics is not None:
            registry.register(self.more_metrics)
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    # -- looking

    async def _watch(self) -> None:
        """Take a snapshot once a second, more seldom while no page is open. Without one, end the streams: old figures
        must not pass for current ones."""
        while True:
            try:
                statistics = self.snapshot()
                self._history.add(statistics, self.clock())
                self._events.refresh(statistics)
            except Exception as error:  # a bug: log it and keep looking
                structlog.get_logger().error("figures_unreadable", error=type(error).__name__)
                self._events.hang_up()
            await self._events.wait(self.check_every, _SELDOM * self.check_every)

    def _why_unhealthy(self) -> str | None:
        """Return why the process is unhealthy, also if its figures cannot be read."""
        try:
            return self.unhealthy(self.snapshot())
        except Exception as error:
            return f"the figures cannot be read ({type(error).__name__})"

    def _document(self, statistics: Statistics | None = None) -> bytes:
        """Return the /status document of `statistics`, or of a new snapshot."""
        return orjson.dumps(status_document(statistics or self.snapshot(), self.info()))


def _get(path: str, make: Callable[[], web.Response]) -> web.RouteDef:
    """Return the route of a path whose answer `make` makes at once."""

    async def serve(_: web.Request) -> web.Response:
        return make()

    return web.get(path, serve)


def render_page() -> str:
    """Return the page as one document: `page.html` with style and scripts inserted where it names them.

    They are inserted unchanged, except for comment lines and indentation. So there is no build step, and the browser
    fetches no further file.
    """
    folder = files("consumer.web")

    def insert(named: re.Match[str]) -> str:
        return "".join(["\n", *(folder.joinpath(name).read_text("utf-8") for name in named[1].split())])

    return _FOR_READERS.sub("", _PARTS.sub(insert, folder.joinpath("page.html").read_text("utf-8")))


def security_headers(document: str) -> dict[str, str]:
    """Return the headers of every answer: no other site may read it, frame the page or be called by it."""
    # The page's own style and script are allowed by their hashes, so that injected markup could not run.
    allowed = {}
    for tag in ("style", "script"):
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in contents]
        allowed[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src {allowed['style']}; "
        f"script-src {allowed['script']}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Server": "pinstream",
    }
