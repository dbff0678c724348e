"""The HTTP server of a running consumer: thin handlers over one snapshot function.

Theory of operation. Every answer is made from a snapshot taken for it; nothing is kept between answers but what
`Health` remembers. A task of the server's own shows `Health` a snapshot each second, so that its verdict does not
hang on how often a probe comes by. Nobody logs in: what is served holds no personal data, and cannot change anything.

The page is one file. Its style and script are allowed by their hash, so that no markup which got into it could run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from consumer.core.statistics import Statistics
from consumer.errors import SettingsError
from consumer.web.health import Health, unreadiness
from consumer.web.metrics import StatisticsCollector
from consumer.web.status import status_document

_LOOK_EVERY = 1.0
"""Seconds between two looks at the progress; less where `stall_after` is short."""
_STOP_TIMEOUT = 1.0
"""Seconds for answers under way when the server stops: a reader that dawdles must not hold up the shutdown."""
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound
"""What to show for an address that stands for all: one that a browser on this machine can open."""


class WebServer:
    """Serves page, status, metrics and health at `host`:`port`; all of it is read from `snapshot`.

    `info` is put into /status as it is. `stall_after`, seconds: see `Health`. `fetched_at` says when the last fetch
    came back, on the same monotonic clock as `clock`; None while there was none.
    """

    def __init__(
        self,
        snapshot: Callable[[], Statistics],
        info: Callable[[], Mapping[str, Any]],
        *,
        host: str,
        port: int,
        stall_after: float,
        clock: Callable[[], float] = time.monotonic,
        fetched_at: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._snapshot = snapshot
        self._info = info
        self._host = host
        self._port = port
        self._clock = clock
        self._fetched_at = fetched_at
        self._health = Health(stall_after)
        self._look_every = min(_LOOK_EVERY, stall_after / 10)
        self._registry = CollectorRegistry()
        self._registry.register(StatisticsCollector(snapshot))
        self._page = files("consumer.web").joinpath("page.html").read_bytes()
        self._headers = _security_headers(self._page.decode())
        self._runner: web.AppRunner | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; gives the page's URL. Raises `SettingsError` if the address cannot be had."""
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=_STOP_TIMEOUT)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            await runner.cleanup()
            raise SettingsError(
                f"PINSTREAM_HTTP_ADDRESS: cannot listen on {_address(self._host, self._port)} ({_why(error)}); "
                "choose another address, or set it empty to serve nothing"
            ) from error
        self._runner = runner
        self._watching = asyncio.create_task(self._watch())
        host, port = runner.addresses[0][:2]
        return f"http://{_address(_ANY_ADDRESS.get(host, host), port)}/"

    async def stop(self) -> None:
        """Stop listening. Stopping again, or before the start, does nothing."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application()
        app.on_response_prepare.append(self._harden)
        app.add_routes(
            [
                web.get("/", self._serve_page),
                web.get("/status", self._serve_status),
                web.get("/metrics", self._serve_metrics),
                web.get("/healthz", self._serve_health),
                web.get("/readyz", self._serve_readiness),
            ]
        )
        return app

    async def _watch(self) -> None:
        while True:
            self._sickness()
            await asyncio.sleep(self._look_every)

    def _sickness(self) -> str | None:
        """A look at the progress. Figures that cannot be had (the core found its books wrong) are sickness enough."""
        try:
            return self._health.sickness(self._snapshot(), self._clock(), self._fetched_at())
        except Exception as error:
            return f"the figures cannot be read ({type(error).__name__})"

    async def _harden(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(self._headers)

    async def _serve_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8")

    async def _serve_status(self, _: web.Request) -> web.Response:
        document = status_document(self._snapshot(), self._info())
        return web.Response(body=orjson.dumps(document), content_type="application/json")

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _serve_health(self, _: web.Request) -> web.Response:
        return _verdict(self._sickness())

    async def _serve_readiness(self, _: web.Request) -> web.Response:
        return _verdict(unreadiness(self._snapshot()))


def _verdict(trouble: str | None) -> web.Response:
    if trouble is None:
        return web.Response(text="ok\n")
    return web.Response(status=503, text=trouble + "\n")


def _security_headers(page: str) -> dict[str, str]:
    """For every answer. Style and script of `page` are allowed as they are now, and no others."""
    style, script = (_hash_of(page, tag) for tag in ("style", "script"))
    return {
        "Content-Security-Policy": f"default-src 'none'; style-src {style}; script-src {script}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Server": "pinstream",
    }


def _hash_of(page: str, tag: str) -> str:
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why(error: Exception) -> str:
    """Why an address cannot be had, in the system's words: asyncio's would repeat the address."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no such host"
