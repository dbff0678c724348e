"""Access: with a token, only requests that carry it; probes always. Over real sockets."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.conversions_api import TokenFile
from consumer.settings.passthrough import read_secret_file
from consumer.web import access
from consumer.web.access import admits, is_local_name
from tests.web.building import Served, busy, idle
from tests.web.listening import asked, listening, running

TOKEN = "s3cret-of-this-page"
GUARDED = ["/", "/status", "/events", "/history", "/group", "/metrics", "/nothing"]


def basic(user: str, password: str) -> str:
    """The header of HTTP Basic, as a browser sends it."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server with a token."""
    async with running(busy, token=lambda: TOKEN) as one:
        yield one


async def status_of(served: Served, path: str, authorization: str | None, method: str = "GET") -> int:
    """The answer's status."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with served.session.request(method, served.url.rstrip("/") + path, headers=headers) as answer:
        return answer.status


async def test_without_the_token_nothing_is_shown(served: Served) -> None:
    """401 with advice, and with the security headers; a stranger does not learn which paths exist, and no other origin
    may read the answer."""
    for path in GUARDED:
        status, headers, text = await served.get(path)
        assert status == 401
        assert headers["WWW-Authenticate"] == 'Basic realm="pinstream", charset="UTF-8"'
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "pinstream"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Authorization: Bearer TOKEN" in text
        assert text.count("\n") == 1
        for method in ("POST", "HEAD"):
            assert await status_of(served, path, None, method) == 401


async def test_with_the_token_all_is_as_without_one(served: Served) -> None:
    """As Prometheus and scripts send it, and as a browser sends it with any user."""
    for shown in (
        f"Bearer {TOKEN}",
        f"bearer {TOKEN}",
        f"Bearer  {TOKEN} ",
        basic("", TOKEN),
        basic("anna", TOKEN),
    ):
        for path in GUARDED:
            assert await status_of(served, path, shown) == (404 if path == "/nothing" else 200)
            assert await status_of(served, path, shown, "POST") == (404 if path == "/nothing" else 405)


REFUSED = [
    "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}",
    f"Token {TOKEN}", TOKEN, "Basic", "Basic !!!", "Basic " + base64.b64encode(TOKEN.encode()).decode(),
    basic(TOKEN, ""), basic("anna", "wrong"), basic("anna", f"{TOKEN}:"), "Bearer töken",
]  # fmt: skip


async def test_anything_else_is_refused(served: Served) -> None:
    """Another token, a part of it, another scheme, the token as the user, and invalid headers."""
    for shown in REFUSED:
        assert await status_of(served, "/status", shown) == 401, shown


@pytest.mark.parametrize(
    ("shown", "admitted"),
    [
        (f"Bearer {TOKEN}", True),
        (f"Bearer {TOKEN[:-1]}x", False),
        (f"Bearer {TOKEN}{TOKEN}", False),
        ("Bearer x", False),
        (basic("anna", "wrong"), False),
        ("Basic !!!", False),
        ("Token", False),
        ("", False),
    ],
)
def test_comparing_takes_the_same_time_for_any_token(
    shown: str, admitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is shown, it is decided by one comparison that takes the same time wherever it differs, of two digests,
    which are equally long whatever is shown: so no answer's time tells of the token."""
    compared: list[tuple[int, int]] = []

    def compare_digest(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return admitted

    monkeypatch.setattr(access, "hmac", SimpleNamespace(compare_digest=compare_digest))
    # What the comparison says is what counts: a quicker look before or beside it would contradict it here.
    assert admits(shown, TOKEN) is admitted
    assert compared == [(32, 32)]
    compared.clear()
    admitted = not admitted
    assert admits(shown, TOKEN) is admitted
    assert compared == [(32, 32)]


async def test_probes_stay_open_and_no_path_is_taken_for_one(served: Served) -> None:
    """With any header: a kubelet has no token. Any other spelling of their paths needs it. Sent raw, because clients
    normalise paths."""
    for path in ("/healthz", "/readyz"):
        assert await status_of(served, path, None) == 200
        assert await status_of(served, path, "Bearer wrong") == 200
        assert await status_of(served, path, None, "POST") == 405
    for other in (
        "/healthz/", "//healthz", "/healthz/../status", "/status?x=/healthz", "/%2e/status", "/status#/healthz",
    ):  # fmt: skip
        assert (await asked(served, other)).startswith(b"HTTP/1.1 401 ")


OURS = [
    "", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[fe80::1]", "10.1.2.3:80", "localhost:8080", "LocalHost",
    "pinstream", "pinstream:8080", "shop.localhost", "shop.local.:80", "a.svc.cluster.local:8080", "a.internal",
]  # fmt: skip
FOREIGN = [
    "evil.example.com", "evil.example.com:8080", "127.0.0.1.evil.example.com", "evil.com.", "local.evil.com",
    "xlocal.com", "1.2.3", "[evil.com]", "[::1", "localhost.evil.com:80", "evil.com#localhost", "user@evil.com:80",
]  # fmt: skip


async def test_without_a_token_another_sites_name_is_shown_nothing() -> None:
    """A site whose name points to our address (DNS rebinding) reads nothing through its visitor's browser. A load
    balancer may use a name with dots for a probe."""
    async with running(busy) as served:
        for path in ("/", "/status", "/history", "/events", "/metrics", "/nothing"):
            answer = await asked(served, path, host="evil.example.com:8080")
            assert answer.startswith(b"HTTP/1.1 421 ")
            assert b"5207980" not in answer
            assert b"PINSTREAM_HTTP_TOKEN" in answer
        for path in ("/healthz", "/readyz"):
            assert (await asked(served, path, host="pinstream-1.shop.example")).startswith(b"HTTP/1.1 200 ")


async def test_with_a_token_the_page_has_any_name(served: Served) -> None:
    """A browser sends a password only to the site that it was entered for."""
    shown = f"Authorization: Bearer {TOKEN}"
    answer = await asked(served, "/status", shown, host="pinstream.shop.example")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert (await asked(served, "/status", host="localhost")).startswith(b"HTTP/1.1 401 ")


def test_which_names_no_site_can_have() -> None:
    """Addresses, names without a dot, and the endings reserved for local networks."""
    assert [name for name in OURS if not is_local_name(name)] == []
    assert [name for name in FOREIGN if is_local_name(name)] == []


async def test_a_stream_carries_the_token_like_all_else(served: Served) -> None:
    """As EventSource sends it once the browser knows the password."""
    async with listening(served, {"Authorization": basic("", TOKEN)}) as listener:
        assert (await listener.status())["ledger"]["read"] == 5_207_980


async def test_a_new_token_in_the_file_counts_from_the_next_request_on(tmp_path: Path) -> None:
    """Without a restart, like the token of the API; the old one is refused from then on."""
    path = tmp_path / "token"
    path.write_text("first-token\n")
    token = TokenFile(path, partial(read_secret_file, "PINSTREAM_HTTP_TOKEN_FILE"))
    async with running(idle, token=token.value) as served:
        assert await status_of(served, "/status", "Bearer first-token") == 200
        path.write_text("the-second-token\n")
        assert await status_of(served, "/status", "Bearer first-token") == 401
        assert await status_of(served, "/status", "Bearer the-second-token") == 200
        path.unlink()
        assert await status_of(served, "/status", "Bearer the-second-token") == 200
        assert await status_of(served, "/status", "Bearer ") == 401


async def test_the_token_is_in_no_answer_and_in_no_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the right token, nor a wrong one, nor the bytes of a request that is not HTTP."""
    for path in ("/", "/status", "/history", "/metrics", "/healthz", "/nothing"):
        for shown in (f"Bearer {TOKEN}", "Bearer wr0ng-one"):
            answer = await asked(served, path, f"Authorization: {shown}")
            assert TOKEN.encode() not in answer
            assert b"wr0ng-one" not in answer
    for broken in (f"Authorization: Bearer {TOKEN}\0", f"Authorization: {TOKEN * 1000}"):
        assert (await asked(served, "/status", broken)).startswith(b"HTTP/1.0 400 ")
    assert caplog.text == ""


@given(st.text(max_size=80), st.text(min_size=1, max_size=20))
def test_no_header_crashes_and_only_the_token_admits(header: str, token: str) -> None:
    """Every header without the token is refused; an empty token admits no request."""
    assert is_local_name(header) in (True, False)
    header = header.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    admitted = admits(header, token)
    assert not admitted or token.encode("utf-8", "surrogateescape") in header.encode(
        "utf-8", "surrogateescape"
    )
    assert not admits(header, "")
    assert not admits("Bearer ", "")
    assert not admits("Basic Og==", "")


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64),
    st.text(max_size=20),
)
def test_every_token_admits_in_both_forms(token: str, user: str) -> None:
    """Every token that a setting can hold; RFC 7617: a user has no colon."""
    assert admits(f"Bearer {token}", token)
    user = user.replace(":", "").encode("utf-8", "ignore").decode()
    assert admits(basic(user, token), token)
