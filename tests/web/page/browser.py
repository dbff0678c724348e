"""A real browser for the tests of the page, and a stand-in for the server that does what a test wants.

`Stand` serves the page as the server does, with its policy, and answers /status, /events and /history
with what the test sets; it can be silent, refuse, or go away and come back on the same port. The fixture `visit` opens
a page in headless Chromium, one browser for a module and a fresh profile for each visit, and fails the test if the
browser complained (a broken policy, a script error) or anyone else was asked.

Without a browser the tests are skipped by name; with ``CI=true`` they fail instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import orjson
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from consumer.web.server import render_page, security_headers

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
IN_CI = os.environ.get("CI", "").lower() == "true"
SIZES = {"wide": (1440, 900), "laptop": (1280, 900), "tablet": (1024, 768), "phone": (390, 844)}
VIEWS = ("overview", "delivery", "quality", "refusals")
SHOTS = Path(__file__).parents[3] / "artifacts" / "page"
PATIENCE = 30_000
"""Time limit in milliseconds for what the page should show, far more than it needs."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

needs_browser = pytest.mark.skipif(CHROMIUM is None and not IN_CI, reason="chromium is not installed")

_NOON = 1_700_000_000
# The clock that Playwright installs has no part in these.
_TIME_LIMITS = """AbortSignal.timeout = milliseconds => {
  const limit = new AbortController();
  setTimeout(() => limit.abort(new DOMException("signal timed out", "TimeoutError")), milliseconds);
  return limit.signal;
}"""

# What a browser says by itself when an answer does not come or is not 200; the tests do that on purpose.
_NETWORK = re.compile(r"Failed to load resource|net::ERR_|EventSource's response")


class Stand:
    """A stand-in for the server. Change `status` and `history` at will; `report` sends the change to listeners."""

    def __init__(self, status: dict[str, Any], history: dict[str, Any] | None = None) -> None:
        self.status = status
        self.history = history
        self.group: dict[str, Any] | None = None
        """What /group says; None: 404."""
        self.answer = 200
        """HTTP status of /status and /history."""
        self.stream = 200
        """HTTP status of /events."""
        self.silent = False
        """Nothing is answered and no connection is closed: a network that drops packets."""
        self.asked: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._end = asyncio.Event()

    @property
    def url(self) -> str:
        """The URL of the page."""
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        """Listen: the first time on any free port, later on the same one."""
        self._end = asyncio.Event()
        app = web.Application()
        app.on_response_prepare.append(_harden)
        for path, handler in (
            ("/", self._page),
            ("/status", self._status),
            ("/events", self._events),
            ("/history", self._history),
            ("/group", self._group),
        ):
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close all connections."""
        self._end.set()
        self.hang_up()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def hang_up(self) -> None:
        """End all streams."""
        for one in self._listeners:
            one.put_nowait(None)

    def report(self, **changes: Any) -> None:
        """Change fields of the document, and tell all listeners."""
        self.status = {**self.status, **changes}
        for one in self._listeners:
            one.put_nowait(_event(self.status))

    async def _page(self, _: web.Request) -> web.Response:
        return web.Response(text=render_page(), content_type="text/html")

    async def _status(self, request: web.Request) -> web.Response:
        return await self._figures(request, self.status)

    async def _history(self, request: web.Request) -> web.Response:
        return await self._figures(request, self.history)

    async def _group(self, request: web.Request) -> web.Response:
        return await self._figures(request, self.group)

    async def _figures(self, request: web.Request, document: dict[str, Any] | None) -> web.Response:
        self.asked.append(request.path)
        if self.silent:
            await self._end.wait()
        if self.answer != 200 or document is None:
            return web.Response(status=self.answer if document is not None else 404)
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.silent:
            await self._end.wait()
        if self.stream != 200:
            return web.Response(status=self.stream)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        heard.put_nowait(b"retry: 2000\n\n" + _event(self.status))
        self._listeners.add(heard)
        try:
            with contextlib.suppress(ConnectionError):
                while (message := await heard.get()) is not None:
                    await response.write(message)
        finally:
            self._listeners.discard(heard)
        return response


def _event(document: dict[str, Any]) -> bytes:
    return b"event: status\ndata: " + orjson.dumps(document) + b"\n\n"


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(security_headers(render_page()))


@contextlib.asynccontextmanager
async def stand(
    status: dict[str, Any] | None = None, history: dict[str, Any] | None = None
) -> AsyncIterator[Stand]:
    """A stand-in that is serving."""
    one = Stand(status or {}, history)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


class Visit(Protocol):
    """Opens the page at `url`; more goes to Playwright's context (color_scheme, reduced_motion, …).

    `clock`: the page's time stands still, and goes on by `Page.clock.run_for` only, however busy the machine is.
    """

    def __call__(
        self, url: str, size: str = "wide", *, clock: bool = False, **context: Any
    ) -> contextlib.AbstractAsyncContextManager[Page]:
        """Open the page until the end of the block."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def visit() -> AsyncIterator[Visit]:
    """How a test opens a page."""
    assert CHROMIUM is not None, "CI needs a browser: chromium is not there"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        @contextlib.asynccontextmanager
        async def open_page(
            url: str, size: str = "wide", *, clock: bool = False, **context: Any
        ) -> AsyncIterator[Page]:
            async with opened(browser, url, size, clock=clock, **context) as page:
                yield page

        yield open_page
        await browser.close()


@contextlib.asynccontextmanager
async def opened(
    browser: Browser, url: str, size: str = "wide", *, clock: bool = False, **context: Any
) -> AsyncIterator[Page]:
    """The page at `url`, in its own browser profile."""
    width, height = SIZES[size]
    complaints: list[str] = []
    others: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _NETWORK.search(message.text):
            complaints.append(message.text)

    options: dict[str, Any] = {"locale": "en-GB", "timezone_id": "UTC", "color_scheme": "light"}
    profile = await browser.new_context(viewport={"width": width, "height": height}, **(options | context))
    try:
        shown = await profile.new_page()
        shown.set_default_timeout(PATIENCE)
        shown.on("console", note)
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on(
            "request",
            lambda one: (
                None if one.url.startswith((url.partition("#")[0], "data:")) else others.append(one.url)
            ),
        )
        if clock:
            await shown.clock.install(time=_NOON)
            await shown.clock.pause_at(_NOON + 1)
            await shown.add_init_script(_TIME_LIMITS)
        await shown.goto(url, wait_until="commit")
        yield shown
    finally:
        await profile.close()
    assert complaints == []
    assert others == []


async def live(shown: Page) -> None:
    """Wait until the page shows figures as live."""
    await shown.wait_for_selector("#live.on")
    await shown.wait_for_selector("#main:not([aria-busy])")


@contextlib.asynccontextmanager
async def check(
    visit: Visit,
    status: dict[str, Any],
    history: dict[str, Any] | None = None,
    size: str = "wide",
    view: str = "overview",
    **more: Any,
) -> AsyncIterator[tuple[Stand, Page]]:
    """A stand-in that serves these documents, and this view of its page once it is live; `more` as `Visit` takes it."""
    async with stand(status, history) as server, visit(f"{server.url}#{view}", size, **more) as shown:
        await live(shown)
        if history and history["steps"] and view != "refusals":
            await shown.wait_for_selector(f"#{view} .canvas")
        yield server, shown


async def turn(shown: Page, view: str) -> None:
    """Turn to another view."""
    await shown.evaluate("view => { location.hash = view }", view)
    await shown.wait_for_selector(f"#{view}:visible")


async def shows(shown: Page, text: str, at: str = "body") -> None:
    """Wait until `at` contains this text."""
    await shown.wait_for_function(
        # A page that is still being parsed may not have the element yet.
        "([at, text]) => (document.querySelector(at)?.innerText ?? '').replace(/\\s+/g, ' ').includes(text)",
        arg=[at, text],
    )


async def text(shown: Page, at: str) -> str:
    """The visible text there, in one line."""
    return " ".join((await shown.inner_text(at)).split())


async def shoot(shown: Page, name: str, *, full: bool = True) -> None:
    """Save a screenshot in artifacts/page/."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    await shown.screenshot(path=SHOTS / f"{name}.png", full_page=full)


AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")


async def accessible(shown: Page) -> None:
    """axe-core finds nothing: names, roles, headings in order, a contrast of 4.5 to 1, and a hundred rules more."""
    await shown.evaluate(AXE)
    found = "axe.run().then(({ violations }) => violations.map(one => [one.id, one.nodes.map(node => node.html)]))"
    assert await shown.evaluate(found) == []


async def fits(shown: Page) -> None:
    """Nothing exceeds the width of the page, and nothing is cut off."""
    widths = await shown.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    out = await shown.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.wide, .unseen, thead')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert out == []
