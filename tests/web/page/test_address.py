"""A page with its own address, which serves everything; the other one serves only health and metrics."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from consumer.engine.figures.statistics import Statistics
from consumer.errors import SettingsError
from consumer.web.server import Urls, WebServer
from tests.web.building import Shown, busy, group

PEOPLE = ["/", "/status", "/history", "/group", "/events"]
MACHINES = ["/healthz", "/readyz", "/metrics"]


def apart(*, token: str | None = None, port: int = 0, page_port: int = 0) -> WebServer:
    """A server with two addresses, not started."""
    shown = Shown(busy())
    return WebServer(
        shown.snapshot,
        shown.report,
        host="127.0.0.1",
        port=port,
        page_at=("127.0.0.1", page_port),
        group=group,
        token=None if token is None else lambda: token,
    )


@contextlib.asynccontextmanager
async def started(server: WebServer) -> AsyncIterator[Urls]:
    """Serve until the end of the block."""
    try:
        yield await server.start()
    finally:
        await server.stop()


async def answer(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and the first part of the body, because a stream has no end."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.get(url.rstrip("/") + path, headers=headers) as came,
    ):
        return came.status, (await came.content.readany()).decode()


async def test_each_address_has_its_own() -> None:
    """Only the page's address serves the figures; the other one names the setting of the page's address."""
    async with started(apart()) as urls:
        main = urls.health.removesuffix("healthz")
        assert main != urls.page
        for path in PEOPLE:
            assert (await answer(urls.page, path))[0] == 200
            status, text = await answer(main, path)
            assert status == 404
            assert "PINSTREAM_PAGE_ADDRESS" in text
            assert text.count("\n") == 1
        for path in MACHINES:
            assert (await answer(main, path))[0] == 200
        assert (await answer(main, "/nothing"))[0] == 404


async def test_what_the_page_links_to_is_where_the_page_is() -> None:
    """The page links to /metrics, so its address must serve it."""
    async with started(apart()) as urls:
        for path in MACHINES:
            assert (await answer(urls.page, path))[0] == 200


async def test_the_token_guards_both() -> None:
    """Figures need the token at both addresses; probes need it at neither."""
    async with started(apart(token="s3cret")) as urls:
        main = urls.health.removesuffix("healthz")
        for url in (main, urls.page):
            assert (await answer(url, "/metrics"))[0] == 401
            assert (await answer(url, "/status"))[0] == 401
            assert (await answer(url, "/healthz"))[0] == 200
        shown = {"Authorization": "Bearer s3cret"}
        assert (await answer(main, "/metrics", shown))[0] == 200
        assert (await answer(main, "/status", shown))[0] == 404
        assert (await answer(urls.page, "/status", shown))[0] == 200


async def test_a_page_address_that_is_taken_is_one_line_and_leaves_nothing_behind() -> None:
    """The error names the page's variable, and the other address is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        with pytest.raises(SettingsError) as caught:
            await apart(port=free, page_port=port).start()
        assert str(caught.value) == (
            f"PINSTREAM_PAGE_ADDRESS: cannot listen on 127.0.0.1:{port} (address already in use); "
            "choose another address"
        )
        socket.create_server(("127.0.0.1", free)).close()


async def test_stopping_ends_both() -> None:
    """Neither address answers any more; a second stop does nothing."""
    server = apart()
    urls = await server.start()
    await server.stop()
    await server.stop()
    for url in urls:
        with pytest.raises(aiohttp.ClientConnectionError):
            await answer(url, "")


async def test_both_addresses_are_unhealthy_when_figures_cannot_be_read() -> None:
    """Both addresses take the same snapshot."""

    def broken() -> Statistics:
        raise RuntimeError("broken")

    server = WebServer(broken, dict, host="127.0.0.1", port=0, page_at=("127.0.0.1", 0))
    async with started(server) as urls:
        assert (await answer(urls.health, ""))[0] == 503
        assert (await answer(urls.page, "/healthz"))[0] == 503
