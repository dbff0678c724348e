"""The HTTP server, on loopback: what it answers, with which headers, and what it says when it cannot listen."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.engine.messages import Send
from consumer.errors import InvariantViolation, SettingsError
from consumer.web.events import _Listener
from consumer.web.health import FETCH_HANGS_AFTER
from consumer.web.status import status_document
from tests.engine.building import Core, answer_body, event
from tests.service.virtual_time import run
from tests.web.building import (
    INFO,
    Served,
    Shown,
    busy,
    empty,
    halted,
    idle,
    make_server,
    partition,
    statistics,
)
from tests.web.listening import WITHIN, checked, listening, reported, running


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server that shows the busy scene."""
    async with running(busy) as one:
        yield one


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on loopback that is in use."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


# -- answers

PATHS = {
    "/": "text/html; charset=utf-8",
    "/status": "application/json",
    "/history": "application/json",
    "/group": "application/json",
    "/metrics": "text/plain; version=",
    "/healthz": "text/plain",
    "/readyz": "text/plain",
}
"""Each path, and the beginning of its content type."""
SECURITY = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "pinstream",
}


NO_PATHS = ["/nothing", "/status/", "/favicon.ico", "/..%2f..%2fetc/passwd", "/page.html"]


async def test_each_path_answers_in_its_type_and_for_this_site_alone(served: Served) -> None:
    """A type that a browser or Prometheus understands, the same headers for HEAD, and those of security, also with an
    error; no answer names the versions of our libraries. No files are served."""
    for path in (*PATHS, *NO_PATHS):
        status, headers, text = await served.get(path)
        assert (status, bool(text)) == (200 if path in PATHS else 404, True)
        assert headers["Content-Type"].startswith(PATHS.get(path, "text/plain"))
        of_head = await served.get(path, "HEAD")
        assert (of_head[0], of_head[1]["Content-Type"], of_head[2]) == (status, headers["Content-Type"], "")
        assert SECURITY.items() <= headers.items()
        policy = headers["Content-Security-Policy"]
        for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
            assert part in policy
        assert "unsafe" not in policy


async def test_status_is_the_document_of_now(served: Served) -> None:
    """/status is the document of the snapshot and nothing else; nothing is kept between answers."""
    _, _, text = await served.get("/status")
    assert orjson.loads(text) == orjson.loads(orjson.dumps(status_document(busy(), INFO)))
    assert "Infinity" not in text
    assert "NaN" not in text
    served.shown.statistics = idle()
    assert orjson.loads((await served.get("/status"))[2])["ledger"]["read"] == 5_000


async def test_nothing_can_be_changed_and_no_other_site_may_read_an_answer(served: Served) -> None:
    """Only GET and HEAD are allowed: other methods get 405, a preflight too. No CORS headers for any origin."""
    ask = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    for path in (*PATHS, "/events"):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            at = served.url.rstrip("/") + path
            async with served.session.request(method, at, headers=ask) as answer:
                assert answer.status == (200 if method == "GET" else 405)
                assert [name for name in answer.headers if name.lower().startswith("access-control")] == []
                if method != "GET":
                    assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_the_policy_allows_the_style_and_script_of_the_page_and_no_others(served: Served) -> None:
    """Allowed by the hashes of what is served; the page may load nothing from anywhere else."""
    _, headers, text = await served.get("/")
    directives = dict(
        one.strip().partition(" ")[::2] for one in headers["Content-Security-Policy"].split(";")
    )
    for tag in ("style", "script"):
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert contents
        digests = [hashlib.sha256(content.encode()).digest() for content in contents]
        allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        assert directives.pop(f"{tag}-src").split() == allowed
    rest = {"connect-src": "'self'", "img-src": "data:"}
    none = ("default-src", "base-uri", "form-action", "frame-ancestors")
    assert directives == rest | dict.fromkeys(none, "'none'")


# -- what is too large, or no request at all


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["long line", "long header", "many headers", "broken length", "TLS"],
)
async def test_what_is_too_large_or_no_request_is_refused(
    served: Served, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """400 and the connection is closed; it is the client's mistake and is not logged."""
    answer = await reported(served, request_)
    assert b" 400 " in answer.splitlines()[0]
    assert len(answer) < 1_000
    assert caplog.text == ""
    assert (await served.get("/healthz"))[0] == 200


@pytest.mark.parametrize("length", [b"Content-Length: 1000000000000", b"Transfer-Encoding: chunked"])
async def test_a_body_is_not_read(served: Served, length: bytes) -> None:
    """The answer does not wait for the body, and the connection is closed after a second, however much is still to
    come."""
    request = b"POST /status HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n"
    answer = await reported(served, request)
    assert answer.startswith(b"HTTP/1.1 405 ")


# -- formats


async def test_metrics_are_in_the_text_format(served: Served) -> None:
    """An Accept header of Prometheus changes nothing: the content type matches the body."""
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    async with served.session.get(served.url + "metrics", headers=accept) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = await answer.text()
    assert "# EOF" not in text
    assert "pinstream_records_read" in {one.name for one in text_string_to_metric_families(text)}


# -- health and readiness


async def test_health_and_readiness_answer_in_codes_and_one_line() -> None:
    """200 with ok, or 503 with the reason in one line. A stall, however long, is reported by /status alone: a restart
    would not help; a fetch that does not return is not, though nothing is to be done."""
    async with running(empty) as served:
        assert (await served.get("/healthz"))[::2] == (200, "ok\n")
        waits = "the group has not assigned partitions yet\n"
        assert (await served.get("/readyz"))[::2] == (503, waits)
        served.shown.statistics = idle()
        assert (await served.get("/readyz"))[::2] == (200, "ok\n")
        served.shown.statistics = halted()
        assert (await served.get("/healthz"))[::2] == (200, "ok\n")
        status, _, text = await served.get("/readyz")
        assert status == 503
        assert text.count("\n") == 1
        assert "refused" in text
        served.shown.statistics = statistics(partition(open=5), stalled_for=9_000.0)
        served.shown.now += 9_000
        assert (await served.get("/healthz"))[::2] == (200, "ok\n")
        assert orjson.loads((await served.get("/status"))[2])["stalled_for"] == 9_000.0
        served.shown.statistics, served.shown.fetched_at = idle(), served.shown.now - FETCH_HANGS_AFTER
        assert (await served.get("/healthz"))[::2] == (503, "no fetch has returned for 120 s\n")


async def test_figures_that_cannot_be_had_are_sick() -> None:
    """An engine that cannot give its figures: /healthz fails, the rest is an error without details."""
    async with running(idle) as served:
        served.shown.broken = InvariantViolation("the ledger of orders[0] does not add up")
        await checked(served.shown)
        assert (await served.get("/healthz"))[::2] == (
            503,
            "the figures cannot be read (InvariantViolation)\n",
        )
        status, headers, text = await served.get("/status")
        assert status == 500
        assert "Traceback" not in text
        assert headers["Server"] == "pinstream"
        served.shown.broken = None
        assert (await served.get("/healthz"))[0] == 200


@pytest.mark.parametrize("listeners", [0, 1])
def test_without_listeners_few_snapshots_are_taken(listeners: int) -> None:
    """A snapshot costs as much as an input: one in five seconds while no page is open, enough for a point of the plots
    every ten; one a second for listeners. The first one does not wait for the next of the seldom snapshots."""
    shown = Shown(idle())
    server = make_server(shown)

    def listen() -> None:
        server._events._listeners.add(_Listener(asyncio.Transport()))
        server._events._comes.set()

    async def watch() -> None:
        watching = asyncio.create_task(server._watch())
        if listeners:
            listen()
        for second in range(100):
            shown.now += 1.0
            for one in server._events._listeners:
                one.missed = 0
            await asyncio.sleep(1.0 if second < 99 else 0.5)  # not at the moment of one more
        assert shown.checks == (100 if listeners else 20)
        listen()
        await asyncio.sleep(0.1 if not listeners else 0.5)
        assert shown.checks == (101 if listeners else 21)
        watching.cancel()

    run(watch())
    assert len(server._history.document(shown.now, 0.0)["steps"][0]["series"]["at"]) == 9


# -- no personal data


async def test_personal_data_that_the_api_repeats_is_not_shown() -> None:
    """The API's messages can echo an event: no address, digest or user agent reaches page, status or metrics."""
    digest, agent = "5e88" * 16, "Mozilla/5.0 (X11; Linux x86_64) Private/1"
    said = f"bad values: anna@example.com, {digest}, 203.0.113.9, {agent}"
    core = Core()
    core.assign()
    core.fetch(event("a"), event("b"), event("c"))
    core.send_all()
    send = core.take(Send)
    core.answer(
        send, 200, answer_body([("processed", None, said), ("processed", said, None), ("failed", said, None)])
    )
    core.store_keys()
    core.store_letters()
    async with running(core.statistics) as served:
        for path in PATHS:
            _, _, text = await served.get(path)
            for secret in ("anna", "example.com", digest, "203.0.113.9", "Private"):
                assert secret not in text, path
        assert "bad values: ***" in (await served.get("/status"))[2]


# -- listening


async def test_address_in_use_is_one_line_that_names_the_variable(taken: int) -> None:
    """Exit code 2 with advice; nothing stays open, so a later start at a free port works."""
    shown = Shown(idle())
    with pytest.raises(SettingsError) as caught:
        await make_server(shown, port=taken).start()
    assert str(caught.value) == (
        f"PINSTREAM_HTTP_ADDRESS: cannot listen on 127.0.0.1:{taken} (address already in use); "
        "choose another address, or set it empty to serve nothing"
    )
    assert caught.value.exit_code == 2
    server = make_server(shown)
    assert (await server.start()).page.startswith("http://127.0.0.1:")
    await server.stop()


async def test_any_free_port_in_place_of_one_in_use(taken: int) -> None:
    """Where that is allowed, all is served there, also the stream."""
    async with running(idle, port=taken, or_any_port=True) as served, listening(served) as listener:
        assert not served.url.endswith(f":{taken}/")
        assert (await listener.status())["ledger"] == orjson.loads((await served.get("/status"))[2])["ledger"]


@pytest.mark.parametrize(
    ("host", "why"),
    [("203.0.113.1", "cannot assign requested address"), ("a" * 64 + ".invalid", "no such host")],
)
async def test_an_address_that_is_not_ours_is_one_line(host: str, why: str) -> None:
    """An address of another machine, and an invalid host name."""
    with pytest.raises(SettingsError) as caught:
        await make_server(Shown(idle()), host=host).start()
    message = str(caught.value)
    assert message.startswith(f"PINSTREAM_HTTP_ADDRESS: cannot listen on {host}:0 ({why}); ")
    assert "\n" not in message


async def test_ipv6_addresses() -> None:
    """The URL has brackets. The wildcard address means all addresses: the container's own probe uses 127.0.0.1; in use
    it is one line, as every other."""
    if not socket.has_ipv6 or not _loopback_v6() or not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    for host, reached in (("::1", ["[::1]"]), ("::", ["[::1]", "127.0.0.1"])):
        async with running(idle, host=host) as served:
            assert served.url.startswith("http://[::1]:")
            port = int(served.url.rstrip("/").rpartition(":")[2])
            for at in reached:
                async with served.session.get(f"http://{at}:{port}/healthz") as answer:
                    assert answer.status == 200
            taken = rf"cannot listen on \[{host}\]:{port} \(address already in use\)"
            with pytest.raises(SettingsError, match=taken):
                await make_server(served.shown, host=host, port=port).start()


@pytest.mark.parametrize(
    ("host", "url"), [("localhost", r"http://(127\.0\.0\.1|\[::1\]):"), ("0.0.0.0", r"http://127\.0\.0\.1:")]
)
async def test_an_address_is_shown_as_one_that_opens(host: str, url: str) -> None:
    """A name is an address too, and of both loopback addresses the URL has one; a person cannot open 0.0.0.0."""
    async with running(idle, host=host) as served:
        assert re.match(url, served.url)
        assert (await served.get("/healthz"))[0] == 200


async def test_stop_ends_all_and_can_be_repeated(served: Served) -> None:
    """After the stop there is no listener and no snapshot; a second stop, or one before the start, does nothing."""
    assert (await served.get("/healthz"))[0] == 200
    await served.server.stop()
    checks = served.shown.checks
    with pytest.raises(OSError, match="onnect"):
        await served.get("/healthz")
    await served.server.stop()
    assert served.shown.checks == checks
    await make_server(served.shown).stop()


async def test_a_reader_that_dawdles_does_not_hold_up_the_stop() -> None:
    """With a client that requests much and reads nothing, the stop takes a second or two."""
    async with running(busy) as served:
        served.shown.info = {"more than all buffers on the way hold": "x" * 30_000_000}
        port = int(served.url.rstrip("/").rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.read(1) == b"H"
        async with asyncio.timeout(WITHIN):
            await served.server.stop()
        writer.close()


def _loopback_v6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True
