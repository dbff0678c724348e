"""The HTTP server of a running consumer: thin handlers over one snapshot function."""

from __future__ import annotations

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

_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class WebServer:
    """Serves page, status, metrics and health at `host`:`port`; all of it is read from `snapshot`."""

    def __init__(
        self,
        snapshot: Callable[[], Statistics],
        info: Callable[[], Mapping[str, Any]],
        *,
        host: str,
        port: int,
        stall_after: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._info = info
        self._host = host
        self._port = port
        self._clock = clock
        self._health = Health(stall_after)
        self._registry = CollectorRegistry()
        self._registry.register(StatisticsCollector(snapshot))
        self._page = files("consumer.web").joinpath("page.html").read_bytes()
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Listen; gives the page's URL. Raises `SettingsError` if the address cannot be had."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._serve_page),
                web.get("/status", self._serve_status),
                web.get("/metrics", self._serve_metrics),
                web.get("/healthz", self._serve_health),
                web.get("/readyz", self._serve_readiness),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"PINSTREAM_HTTP_ADDRESS: cannot listen on {self._host}:{self._port} ({error.strerror or 'in use'}); "
                "choose another address, or set it empty to serve nothing"
            ) from error
        host, port = self._runner.addresses[0][:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
        return f"http://{shown}:{port}/"

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=_SECURITY)

    async def _serve_status(self, _: web.Request) -> web.Response:
        document = status_document(self._snapshot(), self._info())
        return web.Response(body=orjson.dumps(document), content_type="application/json", headers=_SECURITY)

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _serve_health(self, _: web.Request) -> web.Response:
        return _verdict(self._health.sickness(self._snapshot(), self._clock()))

    async def _serve_readiness(self, _: web.Request) -> web.Response:
        return _verdict(unreadiness(self._snapshot()))


def _verdict(trouble: str | None) -> web.Response:
    if trouble is None:
        return web.Response(text="ok\n")
    return web.Response(status=503, text=trouble + "\n")
