"""The Conversions API's adapter, against real servers on loopback: one attempt, bounded, and its failures by kind."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.test_utils import TestServer

from consumer.adapters import conversions_api
from consumer.adapters.conversions_api import ConversionsApi, Token, Tokens, call_failure
from consumer.engine.messages import START_EXPIRED, Answered, Send, Unanswered
from tests.support.certificates import Authority
from tests.support.kafka.broker import free_ports
from tests.support.limits import LATE

SECRET = "pina_SECRET"
SEND = Send(7, "549755885175", [b'{"data":[', b'{"event_id":"a"}', b"]}"], 1)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class SeenCalls:
    """The requests that a server received."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []


def respond(**how: Any) -> Handler:
    """Return what answers each request with this response."""

    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(**how)

    return handler


@asynccontextmanager
async def serving(handler: Handler | None = None) -> AsyncIterator[tuple[str, SeenCalls]]:
    """Run an HTTP server that records each request and answers as `handler` says (else 200, ``{}``)."""
    seen = SeenCalls()

    async def note(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen.requests.append((request.method, request.path_qs, headers, await request.read()))
        return await handler(request) if handler is not None else web.json_response({})

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", note)
    server = TestServer(app)
    await server.start_server()
    try:
        yield str(server.make_url("/v5")), seen
    finally:
        await server.close()


@asynccontextmanager
async def listening(connected: Connected, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a raw TCP server and yield its port."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await connected(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def client(
    url: str, token: Tokens | None = None, *, timeout: float = 5.0, test_mode: bool = False
) -> AsyncIterator[ConversionsApi]:
    """Yield the adapter; it is closed at the end."""
    api = ConversionsApi(
        url,
        token or Token(SECRET),
        account=SEND.account,
        timeout=timeout,
        concurrency=4,
        test_mode=test_mode,
        agent="pinstream/test",
    )
    try:
        yield api
    finally:
        await api.close()


async def test_a_call_that_may_not_begin_any_more_writes_no_body() -> None:
    """It is asked once the connection is there, right before the body, and the connection ends."""
    written: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        written.append(await reader.read())
        writer.close()

    async with listening(connected) as port, client(f"http://127.0.0.1:{port}/v5") as api:
        assert await api.send(SEND, lambda: False) == Unanswered(7, START_EXPIRED)
        async with asyncio.timeout(LATE):
            while not written:
                await asyncio.sleep(0.01)
    assert b"event_id" not in written[0]


async def test_the_time_is_asked_for_without_an_event() -> None:
    """The question goes where events go, as they do, so that every gateway lets it through; it brings the answer."""
    refuse = respond(body=f'{{"message": "no {SECRET}"}}'.encode(), status=401)
    async with serving(refuse) as (url, seen), client(url) as api:
        answer = await api.ask_time()
    [(method, path, headers, body)] = seen.requests
    assert (method, path, body) == ("POST", "/v5/ad_accounts/549755885175/events", b'{"data":[]}')
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert isinstance(answer, Answered)
    assert (answer.status, answer.body) == (401, b'{"message": "no ***"}')
    assert "date" in answer.headers


async def answer_of(handler: Handler | None = None, *, timeout: float = 5.0) -> Answered | Unanswered:
    """Return the answer of one attempt at a server with `handler`."""
    async with serving(handler) as (url, _), client(url, timeout=timeout) as api:
        return await api.send(SEND)


async def raw_answer(
    connected: Connected, *, scheme: str = "http", timeout: float = 5.0
) -> Answered | Unanswered:
    """Return the answer of one attempt at a raw server."""
    async with listening(connected) as port, client(f"{scheme}://127.0.0.1:{port}", timeout=timeout) as api:
        return await api.send(SEND)


async def read_request(reader: asyncio.StreamReader) -> None:
    """Read a request to the end of its body."""
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(SEND.body))


# -- the request


@pytest.mark.parametrize(
    ("send", "test_mode"), [(SEND, False), (SEND, True), (Send(7, SEND.account, [bytes(4 << 20)], 1), False)]
)
async def test_the_request_is_the_platform_s(send: Send, test_mode: bool) -> None:
    """A POST to the account's endpoint, the token as bearer, the body unchanged; ``?test=true`` in test mode alone."""
    async with serving() as (url, seen), client(url + "/", test_mode=test_mode) as api:
        await api.send(send)
        await api.close()
    [(method, path, headers, body)] = seen.requests
    query = "?test=true" if test_mode else ""
    assert (method, path) == ("POST", f"/v5/ad_accounts/549755885175/events{query}")
    assert body == send.body
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["content-type"] == headers["accept"] == "application/json"
    assert headers["user-agent"] == "pinstream/test"


async def test_cookies_are_not_kept() -> None:
    """A cookie that an answer sets is not sent with later calls."""
    handler = respond(body=b"{}", headers={"Set-Cookie": "session=sticky; Path=/"})
    async with serving(handler) as (url, seen), client(url.replace("127.0.0.1", "localhost")) as api:
        await api.send(SEND)
        await api.send(SEND)
    assert "cookie" not in seen.requests[-1][2]


# -- the answer


@pytest.mark.parametrize(
    "status", [200, 204, 301, 302, 303, 307, 308, 400, 401, 404, 413, 422, 429, 500, 503]
)
async def test_any_status_is_an_answer(status: int) -> None:
    """It is returned as it is, since the core decides about it. A redirect must not lead the token elsewhere."""
    body = b"" if status == 204 else b"body"
    async with serving() as (other, seen_there):
        headers = {"X-RateLimit-Reset": "3", "Location": other}
        answer = await answer_of(respond(status=status, body=body, headers=headers))
    assert isinstance(answer, Answered)
    assert (answer.number, answer.status, answer.body) == (7, status, body)
    assert answer.headers["x-ratelimit-reset"] == "3"
    assert all(name == name.lower() for name in answer.headers)
    assert seen_there.requests == []


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
async def test_a_token_that_an_answer_repeats_is_taken_out(status: int) -> None:
    """A 401 or a proxy's page may repeat it, and the core does not know the token."""

    async def handler(request: web.Request) -> web.StreamResponse:
        text = f"<html>{request.headers['Authorization']} is wrong</html>"
        return web.Response(status=status, text=text, content_type="text/html")

    answer = await answer_of(handler)
    assert isinstance(answer, Answered)
    assert answer.body == b"<html>Bearer *** is wrong</html>"


@pytest.mark.parametrize(
    ("body", "read", "reason"),
    [(gzip.compress(b'{"events":[]}'), b'{"events":[]}', None), (b"not gzip at all", None, "broken_answer")],
    ids=["gzip", "something else"],  # of their own: compressed bytes hold the time
)
async def test_a_compressed_answer_is_read(body: bytes, read: bytes | None, reason: str | None) -> None:
    """Servers may send gzip unasked; what says so and is none is a broken answer, without an exception."""
    answer = await answer_of(respond(body=body, headers={"Content-Encoding": "gzip"}))
    assert (getattr(answer, "body", None), getattr(answer, "reason", None)) == (read, reason)


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_huge_answer_is_not_read_to_its_end(
    compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compressed or not, so that memory is bounded with a wrong server; one of exactly the limit is read."""
    limit, sent = 300_000, 0
    monkeypatch.setattr(conversions_api, "_ANSWER_LIMIT", limit)

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if compressed:
            return web.Response(body=gzip.compress(bytes(20_000_000)), headers={"Content-Encoding": "gzip"})
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 200_000_000:
            await response.write(b"x" * 100_000)
            sent += 100_000
        return response

    assert await answer_of(handler) == Unanswered(7, "answer_too_large")
    assert sent < 100_000_000
    answer = await answer_of(respond(body=b"x" * limit))
    assert isinstance(answer, Answered)
    assert len(answer.body) == limit


# -- no answer


async def test_a_server_that_does_not_answer_times_out() -> None:
    """The limit is for the whole attempt: a byte now and then does not prolong it."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    begun = time.monotonic()
    assert await raw_answer(trickle, timeout=0.4) == Unanswered(7, "timeout")
    assert await raw_answer(_silent, timeout=0.3) == Unanswered(7, "timeout")
    assert time.monotonic() - begun < LATE


async def test_an_answer_that_came_while_the_process_stood_still_is_read() -> None:
    """After the time limit, so that its events are not sent again."""
    asked, answered = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while (piece := connection.recv(65536)) and b"event_id" not in piece:
                pass  # a client that has given up ends this, too
            asked.set()
            stands_still.wait(30)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            answered.set()

    stands_still = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        async with client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=2.0) as api:
            call = asyncio.create_task(api.send(SEND))
            while not asked.is_set():
                await asyncio.sleep(0)
            stands_still.set()
            answered.wait(30)
            time.sleep(2.0)  # noqa: ASYNC251  # the event loop stands still, too
            answer = await call
            assert isinstance(answer, Answered)
            assert answer.body == b"{}"
        server.join(30)


def abort(writer: asyncio.StreamWriter) -> None:
    """Close the connection with a reset."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def _silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    abort(writer)


async def _cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
    await writer.drain()


async def _cut_by_a_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _cut(reader, writer)
    await asyncio.sleep(0.1)
    abort(writer)


async def _babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"220 mail.example ESMTP\r\n\r\n")
    await writer.drain()


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("server", "scheme", "reasons"),
    [
        (_reset, "http", {"connection"}),
        (_cut, "http", {"connection", "broken_answer"}),
        (_cut_by_a_reset, "http", {"connection", "broken_answer"}),
        (_babble, "http", {"broken_answer"}),
        (_plain, "https", {"tls"}),
    ],
)
async def test_no_whole_answer_is_no_answer(server: Connected, scheme: str, reasons: set[str]) -> None:
    """Reset before any answer, ended in its middle, another protocol on the port, https without TLS."""
    answer = await raw_answer(server, scheme=scheme)
    assert isinstance(answer, Unanswered)
    assert answer.reason in reasons


async def test_a_closed_port_is_a_failure_to_connect() -> None:
    """A closed port is a failure to connect."""
    async with client(f"http://127.0.0.1:{free_ports(1)[0]}") as api:
        assert await api.send(SEND) == Unanswered(7, "connect")


async def test_a_certificate_nobody_signed_is_a_failure_of_tls(tmp_path: Path) -> None:
    """A certificate that no known authority signed is a failure of TLS, and the server receives no token."""
    received = b""

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal received
        received += await reader.read(1000)

    async with (
        listening(serve, Authority(tmp_path, "ours").server()) as port,
        client(f"https://127.0.0.1:{port}") as api,
    ):
        assert await api.send(SEND) == Unanswered(7, "tls")
    assert received == b""


async def test_a_name_that_does_not_resolve_is_a_failure_of_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve is a failure of DNS, which asks for another remedy than a failure to connect."""

    async def resolve(*_: object, **__: object) -> list[object]:
        raise OSError(None, "Name or service not known")

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr(aiohttp.resolver.DefaultResolver, "resolve", resolve)
    async with client("http://api.invalid") as api:
        assert await api.send(SEND) == Unanswered(7, "dns")


async def test_one_attempt_is_one_request() -> None:
    """Also on a kept connection that the server has closed: the core decides about retries."""
    asked = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await read_request(reader)
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await read_request(reader)
        asked += 1
        abort(writer)

    async with listening(once) as port, client(f"http://127.0.0.1:{port}") as api:
        assert isinstance(await api.send(SEND), Answered)
        assert await api.send(SEND) == Unanswered(7, "connection")
    assert asked == 2


async def test_a_cancelled_attempt_is_cancelled() -> None:
    """It is no time-out: the service's end does not wait for a server."""
    begun = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()

    async with listening(silent) as port, client(f"http://127.0.0.1:{port}") as api:
        attempt = asyncio.create_task(api.send(SEND))
        await asyncio.wait_for(begun.wait(), 5.0)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


def test_kinds_of_failure_are_a_closed_set() -> None:
    """Every failure has one of a closed set of kinds, and never the exception's text."""
    kinds = {
        call_failure(error, "https://api.example.com/v5", None)[0]
        for error in (
            TimeoutError(),
            aiohttp.ServerTimeoutError(),
            ssl.SSLError("secret"),
            aiohttp.ServerDisconnectedError(),
            ConnectionResetError("10.0.0.1"),
            aiohttp.ClientPayloadError("secret"),
            aiohttp.InvalidURL("http://secret"),
            ValueError("secret"),
        )
    }
    assert kinds == {"timeout", "tls", "connection", "broken_answer"}


@pytest.mark.parametrize(("size", "writes"), [(10, 1), (40_000, 4)])
async def test_a_small_body_is_written_at_once(size: int, writes: int) -> None:
    """A small body costs one system call; the parts of a large one are not copied together."""
    parts = [b"[", b"x" * size, b"y" * size, b"]"]
    writer = AsyncMock(spec=AbstractStreamWriter)
    await conversions_api.Body(parts).write(writer)
    written = [bytes(call.args[0]) for call in writer.write.await_args_list]
    assert (b"".join(written), len(written)) == (b"".join(parts), writes)
