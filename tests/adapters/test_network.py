"""Outgoing calls through a proxy of the tests: which calls use it, how each fault is reported, and which
authorities are trusted.

The API and the registry are servers on loopback under names that only the proxy can resolve.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from consumer.adapters.conversions_api import ConversionsApi, Token
from consumer.adapters.network import Network
from consumer.adapters.schemas import RegistrySchemas
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaUnavailable, Send, Unanswered
from consumer.engine.model import SchemaRef
from tests.support.certificates import Authority
from tests.support.way_out import OutProxy, WayOut

API, REGISTRY, ISSUER = "api.pinstream.invalid", "registry.pinstream.invalid", "idp.pinstream.invalid"
LOGIN = "us@er:p:w%/ 1"
SEND = Send(7, "549755885175", [b'{"data":[', b'{"event_id":"a"}' * 200, b"]}"], 1)
ASK = FetchSchema(SchemaRef("id", "7"))
TIMEOUT = 20.0
"""Seconds that calls get which are answered; those that hang get `SHORT`."""
SHORT = 2.0


# -- NO_PROXY and the choice of the proxy


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "https://api.example.com/v5", False),
        ("*", "https://api.example.com/v5", True),
        ("example.com", "https://api.example.com", True),
        (".example.com", "https://api.example.com", True),
        ("*.example.com", "https://api.example.com", True),
        (".example.com", "https://example.com", True),
        ("example.com", "https://anexample.com", False),
        ("EXAMPLE.com. ", "https://API.example.COM", True),
        ("other.example, example.com", "https://api.example.com", True),
        ("other.example example.com", "https://api.example.com", True),
        ("example.com:443", "https://api.example.com", True),
        ("example.com:8443", "https://api.example.com", False),
        ("example.com:8443", "https://api.example.com:8443", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.1.2.3", "https://10.1.2.3:8081", True),
        ("10.1.2.3:80", "https://10.1.2.3:8081", False),
        ("3", "https://10.1.2.3", False),
        ("::1", "https://[::1]:8443", True),
        ("[::1]", "https://[::1]:8443", True),
        ("[::1]:8443", "https://[::1]:8443", True),
        ("[::1]:1", "https://[::1]:8443", False),
        ("fd00::/8", "https://[fd00::2]", True),
        ("localhost,127.0.0.1", "https://localhost:8443", True),
        ("https://, :, /", "https://api.example.com", False),
    ],
)
def test_no_proxy(no_proxy: str, url: str, direct: bool) -> None:
    """Names with all subdomains, addresses, networks, ports, a star; what cannot be read matches nothing."""
    proxy = Network(https_proxy="http://proxy:3128", no_proxy=no_proxy).proxy(url)
    assert (proxy is None) is direct


def test_the_scheme_of_the_url_chooses_the_proxy() -> None:
    """As with curl, HTTPS_PROXY is used for https:// URLs and HTTP_PROXY for http:// URLs."""
    network = Network(https_proxy="http://one:1", http_proxy="http://[fd00::1]:2")
    assert str(network.proxy("https://api.example.com")) == "one:1"
    assert str(network.proxy("http://api.example.com")) == "[fd00::1]:2"
    assert Network(https_proxy="http://one:1").proxy("http://api.example.com") is None


def test_the_password_is_in_no_text() -> None:
    """No text of a proxy shows the password, of the URL or of the file; a proxy is shown as host and port."""
    network = Network(https_proxy="http://user:hunter2@proxy:3128", login=lambda: "")
    proxy = network.proxy("https://api.example.com")
    assert proxy is not None
    assert proxy.login == "user:hunter2"
    shown = f"{network!r} {proxy} {proxy!r} {proxy.url} {proxy.refusal(407, 'there')} {proxy.refusal(403, 'there')}"
    assert "hunter2" not in shown
    other = Network(https_proxy="http://user:hunter2@proxy:3128", login=lambda: "a:b").proxy("https://x")
    assert other is not None
    assert other.login == "a:b"


# -- a proxy, and behind it API and registry


class Behind:
    """The API, registry and token endpoint, which only the proxy can reach."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.headers: list[Mapping[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer as API, registry and token endpoint."""
        self.calls.append(f"{request.method} {request.path}")
        self.headers.append(request.headers)
        if request.path == "/token":
            return web.json_response({"access_token": "t", "token_type": "Bearer", "expires_in": 3600})
        return web.json_response({"schema": '"string"'} if request.path.startswith("/schemas") else {})


@asynccontextmanager
async def behind_a_proxy(
    server_tls: ssl.SSLContext | None, **options: Any
) -> AsyncIterator[tuple[Behind, OutProxy]]:
    """Run a server under the three names, with or without TLS, and the proxy before it."""
    behind = Behind()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", behind.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls)
    await site.start()
    port = runner.addresses[0][1]
    proxy = OutProxy(dict.fromkeys((API, REGISTRY, ISSUER), ("127.0.0.1", port)), **options)
    await proxy.start()
    try:
        yield behind, proxy
    finally:
        await proxy.stop()
        await runner.cleanup()


async def send(network: Network, url: str = f"https://{API}/v5", timeout: float = TIMEOUT) -> tuple[str, str]:
    """Return why one call to the API got no answer, and what is said of it; empty: it got one."""
    token = Token("pina_SECRET")
    api = ConversionsApi(
        url, token, account="1", timeout=timeout, concurrency=1, agent="pinstream/test", network=network
    )
    answer = await api.send(SEND)
    await api.close()
    return (answer.reason, answer.said or "") if isinstance(answer, Unanswered) else ("", "")


async def ask(
    network: Network, url: str = f"https://{REGISTRY}", timeout: float = TIMEOUT, **config: Any
) -> str:
    """Return why a query to the registry got no answer; empty: it got one."""
    registry = RegistrySchemas({"url": url, **config}, timeout=timeout, network=network)
    answer = await registry.fetch(ASK)
    await registry.close()
    assert isinstance(answer, SchemaFound | SchemaUnavailable)
    return answer.reason if isinstance(answer, SchemaUnavailable) else ""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return a private authority."""
    return Authority(tmp_path, "company-ca")


async def test_a_tunnel_with_a_login(authority: Authority) -> None:
    """Both clients use the tunnel with a password of any characters, which no server behind the proxy receives."""
    for host, call, request in (
        (API, send, "POST /v5/ad_accounts/549755885175/events"),
        (REGISTRY, ask, "GET /schemas/ids/7"),
    ):
        async with behind_a_proxy(authority.server(host=host), login=LOGIN) as (behind, proxy):
            network = Network(https_proxy=proxy.url, login=lambda: LOGIN, authorities=authority.file)
            assert not any(await call(network))
        assert (proxy.asked, behind.calls) == ([f"CONNECT {host}:443"], [request])
        assert "proxy-authorization" not in {name.lower() for one in behind.headers for name in one}


async def test_without_tls_the_proxy_forwards(authority: Authority) -> None:
    """Without TLS the proxy of HTTP_PROXY forwards the requests, with the login of its URL."""
    async with behind_a_proxy(None, login="user:a@b") as (behind, proxy):
        network = Network(http_proxy=proxy.url.replace("//", "//user:a%40b@"))
        assert await send(network, f"http://{API}/v5") == ("", "")
        assert await ask(network, f"http://{REGISTRY}") == ""
        assert len(behind.calls) == 2
        assert {urlsplit(one.split()[1]).hostname for one in proxy.asked} == {API, REGISTRY}


async def test_a_proxy_that_is_reached_by_tls(authority: Authority) -> None:
    """A proxy may be reached by TLS, with the TLS of the API or the registry inside."""
    async with behind_a_proxy(authority.server(host=API), tls=authority.server()) as (_, proxy):
        assert proxy.url.startswith("https:")
        assert await send(Network(https_proxy=proxy.url, authorities=authority.file)) == ("", "")
    async with behind_a_proxy(authority.server(host=REGISTRY), tls=authority.server()) as (_, proxy):
        assert await ask(Network(https_proxy=proxy.url, authorities=authority.file)) == ""


async def test_the_registrys_tokens_take_the_same_way(authority: Authority) -> None:
    """Tokens for the registry are requested through the proxy too."""
    async with behind_a_proxy(None) as (behind, proxy):
        bearer: dict[str, Any] = {
            "bearer.auth.credentials.source": "OAUTHBEARER",
            "bearer.auth.client.id": "me",
            "bearer.auth.client.secret": "only-for-tests",
            "bearer.auth.scope": "all",
            "bearer.auth.issuer.endpoint.url": f"http://{ISSUER}/token",
            "bearer.auth.logical.cluster": "lsrc",
            "bearer.auth.identity.pool.id": "pool",
        }
        assert await ask(Network(http_proxy=proxy.url), f"http://{REGISTRY}", **bearer) == ""
        assert behind.calls == ["POST /token", "GET /schemas/ids/7"]
        shown = base64.b64encode(b"me:only-for-tests").decode()
        assert shown in behind.headers[0]["Authorization"]


async def test_a_server_that_is_no_proxy_is_reported(authority: Authority) -> None:
    """A web server in place of the proxy, or a wrong scheme for the proxy, is an error that names the setting."""
    async with behind_a_proxy(None) as (_, proxy):
        server = f"http://127.0.0.1:{proxy.routes[API][1]}"
        reason, said = await send(Network(https_proxy=server))
        assert reason == "proxy"
        assert "as a server that is no proxy does: correct HTTPS_PROXY" in said
        asked = await ask(Network(), proxy=server)
        assert "as a server that is no proxy does: correct SCHEMA_REGISTRY_PROXY" in asked
    async with behind_a_proxy(None, tls=authority.server()) as (_, proxy):
        assert "the scheme of HTTPS_PROXY" in (await send(Network(https_proxy=f"http://{proxy.place}")))[1]


async def test_tls_is_required(authority: Authority) -> None:
    """When a server ends connections without TLS, the error names the URL's scheme."""
    async with behind_a_proxy(authority.server()) as (_, proxy):
        at = f"127.0.0.1:{proxy.routes[API][1]}"
        said = f"{at} ended the connection: if it requires TLS, write https:// in PINTEREST_API_URL"
        assert (await send(Network(), f"http://{at}/v5"))[1] == said


async def test_the_registrys_own_proxy() -> None:
    """SCHEMA_REGISTRY_PROXY serves the registry alone, NO_PROXY does not count for it, and its login is in its URL."""
    async with behind_a_proxy(None, login="user:right") as (behind, proxy):
        network = Network(http_proxy="http://127.0.0.1:1", no_proxy="*")
        refused = f"the registry could not be asked: the proxy {proxy.place} answered"
        for login, said in (
            ("", f"{refused} 407: it asks for a user and password; put them into SCHEMA_REGISTRY_PROXY"),
            (
                "user:wr0ng@",
                f"{refused} 407: it refused the user and password; correct SCHEMA_REGISTRY_PROXY",
            ),
            ("user:right@", ""),
        ):
            assert (
                await ask(network, f"http://{REGISTRY}", proxy=proxy.url.replace("//", f"//{login}")) == said
            )
        assert len(behind.calls) == 1
        await proxy.set(WayOut.REFUSE)
        assert await ask(Network(), proxy=proxy.url) == f"{refused} 403: let it allow {REGISTRY}:443"


# -- faults of the proxy


FAULTS = {
    WayOut.REFUSE: "the proxy {at} answered 403: let it allow {host}:443, or name that in NO_PROXY",
    WayOut.GATEWAY: "the proxy {at} answered 502: it cannot reach {host}:443 itself; check it and its network",
    WayOut.PAGE: "the proxy {at} accepted the connection to {host}:443, and then ended it or answered itself: let it "
    "allow {host}:443, or correct {variable}",
    WayOut.CUT: "the connection through the proxy {at} broke off: check it, and the scheme of HTTPS_PROXY",
    WayOut.SILENT: "the proxy {at} did not open a connection to {host}:443 in time: check it, and the scheme of "
    "HTTPS_PROXY",
}
FAULTS[WayOut.DEAF] = FAULTS[WayOut.SILENT]
HANGING = (WayOut.SILENT, WayOut.DEAF)


@pytest.mark.parametrize("mode", FAULTS)
async def test_a_fault_on_the_way_to_the_api(mode: WayOut, authority: Authority) -> None:
    """The call is unanswered, and a line names the proxy and what to do; later calls work."""
    async with behind_a_proxy(authority.server(host=API)) as (behind, proxy):
        network = Network(https_proxy=proxy.url, authorities=authority.file)
        await proxy.set(mode)
        assert await send(network, timeout=SHORT if mode in HANGING else TIMEOUT) == (
            "connection" if mode is WayOut.CUT else "proxy",
            FAULTS[mode].format(at=proxy.place, host=API, variable="PINTEREST_API_URL"),
        )
        assert behind.calls == []
        await proxy.set(WayOut.TUNNEL)
        assert await send(network) == ("", "")


@pytest.mark.parametrize("mode", FAULTS)
async def test_a_fault_on_the_way_to_the_registry(mode: WayOut, authority: Authority) -> None:
    """The schema is unavailable, which leads to no dead letter, with the same line."""
    async with behind_a_proxy(authority.server(host=REGISTRY)) as (behind, proxy):
        network = Network(https_proxy=proxy.url, authorities=authority.file)
        await proxy.set(mode)
        # The request has to be long enough to be cut.
        login: dict[str, Any] = {"basic.auth.user.info": f"user:{'x' * 3000}"}
        said = FAULTS[mode].format(at=proxy.place, host=REGISTRY, variable="SCHEMA_REGISTRY_URL")
        assert await ask(network, timeout=SHORT if mode in HANGING else TIMEOUT, **login) == (
            f"the registry did not answer within {SHORT:g} s, through the proxy {proxy.place}"
            if mode in HANGING
            else f"the registry could not be asked: {said}"
        )
        assert behind.calls == []


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("", "it asks for a user and password; put them into PINSTREAM_PROXY_CREDENTIALS_FILE"),
        (
            "a:wrong",
            "it refused the user and password; correct PINSTREAM_PROXY_CREDENTIALS_FILE, or the proxy's URL",
        ),
    ],
)
async def test_a_refused_login(tls: bool, login: str, said: str, authority: Authority) -> None:
    """It is reported, with and without TLS, for both clients; a corrected password is used at once."""
    words = [login]
    async with behind_a_proxy(authority.server(host=API) if tls else None, login=LOGIN) as (behind, proxy):
        network = Network(
            https_proxy=proxy.url, http_proxy=proxy.url, login=lambda: words[0], authorities=authority.file
        )
        scheme = "https" if tls else "http"
        line = f"the proxy {proxy.place} answered 407: {said}"
        assert await send(network, f"{scheme}://{API}/v5") == ("proxy", line)
        assert await ask(network, f"{scheme}://{REGISTRY}") == f"the registry could not be asked: {line}"
        assert behind.calls == []
        words[0] = LOGIN
        assert await send(network, f"{scheme}://{API}/v5") == ("", "")


async def test_no_proxy_there() -> None:
    """A proxy that does not listen, or whose name is unknown, is reported with the setting to correct."""
    async with behind_a_proxy(None) as (_, proxy):
        await proxy.stop()
        line = (
            f"nothing answers at the proxy {proxy.place}: correct HTTPS_PROXY, or allow the connection in the"
        )
        assert await send(Network(https_proxy=proxy.url)) == ("proxy", f"{line} network")
        assert line in await ask(Network(https_proxy=proxy.url))
    assert await send(Network(https_proxy="http://user:hunter2@proxy.pinstream.invalid:3128")) == (
        "proxy",
        "the name of the proxy proxy.pinstream.invalid:3128 cannot be resolved: correct HTTPS_PROXY, or check the DNS",
    )


# -- trusted authorities


async def test_a_proxy_that_opens_tls(authority: Authority, tmp_path: Path) -> None:
    """It receives no request until its authority is known, and the line says in which file to put it."""
    inspector = Authority(tmp_path, "proxy-ca")
    async with behind_a_proxy(authority.server(host=API), authority=inspector) as (behind, proxy):
        await proxy.set(WayOut.INSPECT)
        assert await send(Network(https_proxy=proxy.url, authorities=authority.file)) == (
            "tls",
            f"the certificate of {API}:443, through the proxy {proxy.place}, is signed by an authority that is not "
            "known here: put the certificate of the authority that signed it, or of the proxy if that opens TLS, into "
            "PINSTREAM_CA_FILE",
        )
        asked = await ask(Network(https_proxy=proxy.url))
        assert "or of the proxy if that opens TLS, into PINSTREAM_CA_FILE" in asked
        assert behind.calls == []
        trusting = Network(https_proxy=proxy.url, authorities=inspector.file)
        assert await send(trusting) == ("", "")
        assert await ask(trusting) == ""


@pytest.mark.parametrize(
    ("how", "said", "of_registry"),
    [
        (
            {"age": timedelta(days=3)},
            "has expired: renew it there, or correct the clock of this machine",
            "has expired: renew it there",
        ),
        (
            {"age": timedelta(days=-3)},
            "is not valid yet: correct the clock of this machine, or wait",
            "is not valid yet",
        ),
        (
            {"host": "elsewhere.example"},
            "is for another name: use a name of the certificate in PINTEREST_API_URL",
            "is for another name: reach it by a name in the certificate (SCHEMA_REGISTRY_URL)",
        ),
        (
            {},
            "is signed by an authority that is not known here: put the certificate of the authority that signed it "
            "into PINSTREAM_CA_FILE",
            "is signed by an authority that this machine does not know: set SCHEMA_REGISTRY_SSL_CA_LOCATION or "
            "PINSTREAM_CA_FILE",
        ),
    ],
    ids=["expired", "not yet", "another name", "another authority"],
)
async def test_a_certificate_that_is_wrong(
    how: dict[str, Any], said: str, of_registry: str, authority: Authority, tmp_path: Path
) -> None:
    """Each fault of a certificate is one line, for the API's client and the registry's."""
    known = authority if how else Authority(tmp_path, "other-ca")
    async with behind_a_proxy(authority.server(**{"host": "127.0.0.1", **how})) as (_, proxy):
        at, network = f"127.0.0.1:{proxy.routes[API][1]}", Network(authorities=known.file)
        assert await send(network, f"https://{at}/v5") == ("tls", f"the certificate of {at} {said}")
        asked = await ask(network, f"https://{at}")
        assert asked.startswith(f"the certificate of the registry {of_registry}")


async def test_an_authority_that_comes_later(authority: Authority, tmp_path: Path) -> None:
    """It is trusted at the next attempt; while the file is missing, the old ones stay trusted and a line says so."""
    file, reported = tmp_path / "bundle.pem", list[str]()
    file.write_bytes(Authority(tmp_path, "other-ca").file.read_bytes())
    async with behind_a_proxy(authority.server()) as (_, proxy):
        url = f"https://127.0.0.1:{proxy.routes[API][1]}"
        network = Network(authorities=file, on_error=reported.append)
        registry = RegistrySchemas({"url": url}, timeout=TIMEOUT, network=network)
        assert (await send(network, url))[0] == "tls"
        assert isinstance(await registry.fetch(ASK), SchemaUnavailable)
        file.write_bytes(file.read_bytes() + authority.file.read_bytes())
        assert await send(network, url) == ("", "")
        assert isinstance(await registry.fetch(ASK), SchemaFound)
        await registry.close()
        file.unlink()
        for _ in range(2):
            assert await send(network, url) == ("", "")
    assert reported == [
        f"PINSTREAM_CA_FILE: {file} is missing, unreadable or has no certificate; the authorities that were in it stay "
        "trusted"
    ]


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(authority: Authority, tmp_path: Path) -> None:
    """While the first context reads it: its authority is trusted at the next attempt."""
    file = tmp_path / "bundle.pem"
    file.write_text("half of a certificate")

    class Slow(ssl.SSLContext):
        """A context that writes the whole file only after reading it."""

        def load_verify_locations(self, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
            """Read the file as `ssl.SSLContext` does, then replace it."""
            whole = file.read_bytes() == authority.file.read_bytes()
            try:
                super().load_verify_locations(cafile, capath, cadata)
            finally:
                if not whole:
                    file.write_bytes(authority.file.read_bytes())

    reported: list[str] = []
    network, context = Network(authorities=file, on_error=reported.append), Slow(ssl.PROTOCOL_TLS_CLIENT)
    network.trust(context)
    assert context.cert_store_stats()["x509_ca"] == 0
    network.refresh()
    assert context.cert_store_stats()["x509_ca"] == 1
    assert reported == []
