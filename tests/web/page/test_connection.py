"""The page's connection: live, lost and back, failing streams, answers without figures."""

from __future__ import annotations

import re

import orjson
import pytest

from tests.web.building import busy, idle
from tests.web.listening import running
from tests.web.page import scenes
from tests.web.page.browser import (
    Visit,
    accessible,
    check,
    live,
    needs_browser,
    shoot,
    shows,
    stand,
    text,
    turn,
)

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]


# -- the connection


async def test_a_lost_connection_is_said_at_once_and_comes_back_by_itself(visit: Visit) -> None:
    """The figures stay, grey and with their age, so that they do not look current. Then the page reconnects."""
    async with check(visit, scenes.full(), scenes.history(), clock=True) as (server, shown):
        colour = "getComputedStyle(document.querySelector('#state h2')).color"
        fresh = await shown.evaluate(colour)
        await server.stop()
        await shown.wait_for_selector("#lost:visible", timeout=2_000)
        await shows(shown, "No connection to pinstream. These figures are 0 s old.", "#lost")
        await shown.clock.run_for(3_000)
        await shows(shown, "These figures are 3 s old. The page keeps trying.", "#lost")
        assert await text(shown, "#live") == "no connection"
        assert (await text(shown, "#state")).startswith("Keeping up")
        assert await shown.evaluate(colour) != fresh
        assert (await shown.title()).startswith("No connection")
        await shows(shown, "No connection to pinstream. The figures are out of date.", "#announce")
        await shoot(shown, "disconnected")
        await shown.clock.resume()
        await accessible(shown)
        server.status = scenes.scene(idle)
        await server.start()
        await live(shown)
        await shows(shown, "Caught up", "#state")
        assert await shown.is_hidden("#lost")
        server.report(stopping=True)
        await shows(shown, "Stopping", "#state")


async def test_a_network_that_swallows_is_found_out(visit: Visit) -> None:
    """When the stream is silent the page asks /status; without an answer the figures are out of date."""
    async with check(visit, scenes.full(), clock=True) as (server, shown):
        server.silent = True
        await shown.clock.run_for(12_000)
        await shown.wait_for_selector("#lost:visible")
        assert re.search(r"These figures are \d+ s old", await text(shown, "#lost"))


async def test_a_stream_with_nothing_new_is_not_lost(visit: Visit) -> None:
    """The stream is silent because nothing changes: the page asks, gets an answer and stays live."""
    async with check(visit, scenes.full(), clock=True) as (server, shown):
        heard = await shown.evaluate("link.heard")
        assert server.asked.count("/status") == 0
        await shown.clock.run_for(9_000)
        await shown.wait_for_function("heard => link.heard > heard + 6 && !link.asking", arg=heard)
        assert server.asked.count("/status") == 1
        assert await shown.is_hidden("#lost")
        assert server.asked.count("/events") == 1


async def test_a_late_answer_beside_a_stream_that_speaks_is_not_lost(visit: Visit) -> None:
    """The stream speaks again while the page waits for /status: the figures are current."""
    async with check(visit, scenes.full(), clock=True) as (server, shown):
        await shown.route("**/status", lambda _: None)  # never answered
        await shown.clock.run_for(8_000)
        # A function: an expression that is not true at once is evaluated as text, which the page's policy forbids.
        await shown.wait_for_function("() => link.asking")
        server.report(stopping=True)
        await shows(shown, "Stopping", "#state")
        await shown.clock.run_for(3_000)
        await shown.wait_for_function("() => !link.asking")
        assert await shown.is_hidden("#lost")
        assert server.asked.count("/events") == 1


async def test_without_streams_the_page_asks_instead(visit: Visit) -> None:
    """When /events fails twice (a proxy, too many listeners), the page polls /status each second."""
    async with stand(scenes.full()) as server:
        server.stream = 503
        async with visit(server.url, clock=True) as shown:
            await live(shown)
            server.status = scenes.scene(idle)
            for asked in range(2, 6):
                await shown.wait_for_function("() => !link.asking && !link.source")
                await shown.clock.run_for(1_000)
                assert await shown.is_hidden("#lost")
                await shown.wait_for_function("() => !link.asking")
                assert server.asked.count("/status") >= asked
            await shows(shown, "Caught up", "#state")
            assert server.asked.count("/events") == 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (500, "pinstream answers without figures (HTTP 500)."),
        (401, "It needs the token: reload the page."),
    ],
)
async def test_an_answer_without_figures_differs_from_no_answer(code: int, words: str, visit: Visit) -> None:
    """The process answers without figures: a different problem than a lost connection."""
    async with check(visit, scenes.full()) as (server, shown):
        server.answer = server.stream = code
        server.hang_up()
        await shows(shown, words, "#lost")
        server.answer = server.stream = 200
        await live(shown)


async def test_a_version_it_does_not_know_is_not_shown(visit: Visit) -> None:
    """A page that stayed open over an upgrade says so and does not show what it may misread."""
    async with check(visit, scenes.full()) as (server, shown):
        server.report(version=2)
        await shows(shown, "This page does not understand the figures.", "#lost")
        assert "reload the page" in await text(shown, "#lost")


async def test_the_real_server_and_the_page_understand_each_other(visit: Visit) -> None:
    """Style and script are allowed by the server's own policy, the stream and the history arrive."""
    async with running(busy) as served, visit(served.url) as shown:
        await live(shown)
        assert await shown.evaluate("link.source !== null && link.source.readyState") == 1
        assert (await text(shown, "#state")).startswith("Keeping up: 31,866 records to go.")
        # The page's latency is that of /status.
        latency = orjson.loads((await served.get("/status"))[2])["destination"]["latency"]
        shares = {"Half": "p50", "95 %": "p95", "99 %": "p99"}
        took = [await shown.evaluate("took", latency[name]) for name in shares.values()]
        assert took == ["120\u00a0ms", "906\u00a0ms", "906\u00a0ms"]
        await turn(shown, "delivery")
        said = f"Half of the calls within {took[0]}, 95 % within {took[1]}, 99 % within {took[2]}."
        await shows(shown, " ".join(said.split()), "#latency")
        served.shown.statistics = idle()
        served.shown.now += 10
        await shows(shown, "Caught up", "#state")
        await served.server.stop()
        await shown.wait_for_selector("#lost:visible", timeout=5_000)
