"""The stream of /status documents, over real sockets: one document a second for all, and no listener delays another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
import pytest

from consumer.errors import InvariantViolation
from consumer.web.events import MAX_LISTENERS, MAX_MISSED
from consumer.web.status import status_document
from tests.support.limits import LATE
from tests.web.building import INFO, Served, busy, halted, idle
from tests.web.listening import WITHIN, checked, listening, running, until


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server that shows the idle scene, on a clock that stands still."""
    async with running(idle) as one:
        yield one


async def test_headers_of_a_stream(served: Served) -> None:
    """No proxy stores or buffers it, and it has the security headers."""
    async with served.session.get(served.url + "events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with served.session.head(served.url + "events") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
        assert answer.headers["Content-Type"] == "text/event-stream"


async def test_at_most_one_document_a_second(served: Served) -> None:
    """The document of /status comes at once in one line, and a second later the new one, however often the server looks
    and whatever has changed. An unchanged one is repeated: the page sees that its figures are current, and who has left
    is found out."""
    async with listening(served) as listener:
        first = await listener.status()
        assert first == orjson.loads(orjson.dumps(status_document(idle(), INFO)))
        for _ in range(3):
            served.shown.now += 1
            assert await listener.status() == first
        asked = served.shown.asked
        served.shown.statistics = busy()
        await checked(served.shown, 5)
        assert served.shown.asked == asked
        served.shown.now += 1
        assert await listener.status() == orjson.loads(orjson.dumps(status_document(busy(), INFO)))
        await checked(served.shown, 5)
        assert served.shown.asked == asked + 1


async def test_all_listeners_share_one_document(served: Served) -> None:
    """A later listener gets the latest document; one document is made a second, for any number of listeners."""
    async with contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(served)) for _ in range(5)]
        documents = [await listener.status() for listener in listeners]
        assert documents == documents[:1] * 5
        assert served.shown.asked == 1
        served.shown.statistics = halted()
        served.shown.now += 1
        assert {(await one.status())["destination"]["state"] for one in listeners} == {"halted"}
        assert served.shown.asked == 2


async def test_without_listeners_no_document_is_made(served: Served) -> None:
    """Also after the last listener has left; the next one does not get an old document."""
    served.shown.now += 60
    await checked(served.shown)
    assert served.shown.asked == 0
    async with listening(served) as listener:
        await listener.status()
    await gone(served)
    asked = served.shown.asked
    served.shown.statistics = busy()
    served.shown.now += 60
    await checked(served.shown)
    assert served.shown.asked == asked
    async with listening(served) as listener:
        assert (await listener.status())["ledger"]["read"] == 5_207_980


async def gone(served: Served) -> None:
    """Wait until there is no listener: a new second makes no document."""

    async def unheard() -> bool:
        asked = served.shown.asked
        served.shown.now += 1
        await checked(served.shown)
        return served.shown.asked == asked

    async with asyncio.timeout(WITHIN):
        while not await unheard():
            await asyncio.sleep(0.001)


async def test_one_listener_above_the_limit_is_refused(served: Served) -> None:
    """503 with Retry-After; a place that becomes free can be used again. /status answers all the same."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_LISTENERS - 1):
            await stack.enter_async_context(listening(served))
        async with listening(served):
            status, headers, text = await served.get("/events")
            assert (status, headers["Retry-After"]) == (503, "5")
            assert (
                text == "pinstream is stopping, or has 32 listeners already; /status has the same figures\n"
            )
            assert (await served.get("/status"))[0] == 200
        async with asyncio.timeout(WITHIN):
            while True:
                async with served.session.get(served.url + "events") as answer:
                    if answer.status == 200:
                        break


@contextlib.asynccontextmanager
async def deaf(served: Served) -> AsyncIterator[asyncio.StreamReader]:
    """A listener that reads no more than the beginning of its answer."""
    port = int(served.url.rstrip("/").rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.read(1) == b"H"
    yield reader
    writer.close()


async def test_a_listener_that_does_not_read_is_disconnected_and_delays_no_other(served: Served) -> None:
    """A listener that does not read is disconnected after some seconds, while the other gets every document."""
    async with deaf(served) as reader, listening(served) as listener:
        await listener.status()
        for second in range(MAX_MISSED + 3):
            served.shown.info = {"second": second, "more than all buffers hold": "x" * 8_000_000}
            served.shown.now += 1
            assert (await listener.status())["second"] == second
        assert await broken_off(reader)


async def broken_off(reader: asyncio.StreamReader) -> bool:
    """Whether this stream is closed, in the middle of a message. Bounded: one that is not closed fails the test."""
    rest = b""
    async with asyncio.timeout(WITHIN):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 20):
                rest = part
    return not rest.endswith(b"0\r\n\r\n")


async def test_a_stop_ends_the_streams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end properly, a slow listener does not delay the stop, and no new one is accepted."""
    monkeypatch.setattr("consumer.web.server._STOP_TIMEOUT", 60.0)
    async with running(idle) as served, contextlib.AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(listening(served)) for _ in range(3)]
        for listener in listeners:
            await listener.status()
        served.shown.info = {"more than all buffers on the way hold": "x" * 30_000_000}
        async with deaf(served):
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await served.server.stop()
            assert loop.time() - begun < LATE  # far less than what a dawdling answer is given here
            for listener in listeners:  # a stream that breaks off raises
                while await listener.message() is not None:
                    pass


async def test_streams_end_when_figures_cannot_be_read() -> None:
    """The last figures must not pass for current ones: the stream ends, and reconnecting fails until there are
    figures."""
    async with running(idle) as served:
        async with listening(served) as listener:
            await listener.status()
            served.shown.broken = InvariantViolation("the ledger of orders[0] does not add up")
            assert await listener.message() is None
        assert (await served.get("/events"))[0] == 500
        served.shown.broken = None
        async with listening(served) as listener:
            await listener.status()


async def test_a_listener_that_goes_leaves_nothing_behind(served: Served) -> None:
    """Its place is free as soon as it has left, not only at the next message."""
    for _ in range(3 * MAX_LISTENERS):
        async with listening(served) as listener:
            await listener.status()
    await until(lambda: len(asyncio.all_tasks()) < MAX_LISTENERS)
