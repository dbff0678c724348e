"""A page with its own address, which serves everything; the other one serves only health and metrics."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from consumer.errors import SettingsError
from tests.web.building import Served, Shown, busy, make_server

PEOPLE = ["/", "/status", "/history", "/group", "/events"]
MACHINES = ["/healthz", "/readyz", "/metrics"]
APART = ("127.0.0.1", 0)


@contextlib.asynccontextmanager
async def apart(**more: Any) -> AsyncIterator[tuple[str, str, Served]]:
    """A server with two addresses: the URL of the page's, and of the other one."""
    server = make_server(shown := Shown(busy()), page_at=APART, **more)
    urls = await server.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield urls.page, urls.health.removesuffix("healthz"), Served(urls.page, server, session, shown)
    finally:
        await server.stop()


async def answer(url: str, path: str, token: str = "") -> tuple[int, str]:
    """Status and the first part of the body, because a stream has no end."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        session.get(url.rstrip("/") + path, headers=headers) as came,
    ):
        return came.status, (await came.content.readany()).decode()


async def test_each_address_has_its_own() -> None:
    """Only the page's address serves the figures; the other one names the setting of the page's address. The page links
    to health and metrics, so its address has them, too."""
    async with apart() as (page, main, _):
        assert main != page
        for path in PEOPLE:
            assert (await answer(page, path))[0] == 200
            status, text = await answer(main, path)
            assert (status, text.count("\n")) == (404, 1)
            assert "PINSTREAM_PAGE_ADDRESS" in text
        for path in MACHINES:
            assert [(await answer(url, path))[0] for url in (main, page)] == [200, 200]
        assert (await answer(main, "/nothing"))[0] == 404


async def test_the_token_guards_both() -> None:
    """Figures need the token at both addresses; probes need it at neither."""
    async with apart(token=lambda: "s3cret") as (page, main, _):
        for url in (main, page):
            assert [(await answer(url, path))[0] for path in ("/metrics", "/status", "/healthz")] == [
                401,
                401,
                200,
            ]
        assert (await answer(main, "/metrics", "s3cret"))[0] == 200
        assert (await answer(main, "/status", "s3cret"))[0] == 404
        assert (await answer(page, "/status", "s3cret"))[0] == 200


async def test_a_page_address_that_is_taken_is_one_line_and_leaves_nothing_behind() -> None:
    """The error names the page's variable, whose port nothing replaces, and the other address is free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        server = make_server(Shown(busy()), port=free, page_at=("127.0.0.1", port), or_any_port=True)
        with pytest.raises(SettingsError) as caught:
            await server.start()
        assert str(caught.value) == (
            f"PINSTREAM_PAGE_ADDRESS: cannot listen on 127.0.0.1:{port} (address already in use); "
            "choose another address"
        )
        socket.create_server(("127.0.0.1", free)).close()


async def test_both_addresses_share_health_and_end() -> None:
    """Both take the same snapshot. After a stop neither answers any more; a second stop does nothing."""
    async with apart() as (page, main, served):
        served.shown.broken = RuntimeError("broken")
        for url in (page, main):
            assert (await answer(url, "/healthz"))[0] == 503
        await served.server.stop()
        await served.server.stop()
        for url in (page, main):
            with pytest.raises(aiohttp.ClientConnectionError):
                await answer(url, "")
