"""Out through a proxy that has every fault in turn: the service waits, says who is in the way, and loses nothing.

API and registry have names that only the proxy knows. The API speaks TLS with a certificate of a private authority; the
registry does not, so its answers pass the proxy in the clear.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.faults.proxy import Proxy
from tests.end_to_end.processes import TOKEN, Process
from tests.end_to_end.records import SCHEMA
from tests.end_to_end.shop import NewShop, Shop
from tests.support.certificates import Authority
from tests.support.kafka.secured import Issuer, SecuredBroker, environment
from tests.support.switches import switched
from tests.support.way_out import OutProxy, WayOut

API, REGISTRY, IDP = "api.pinstream.invalid", "registry.pinstream.invalid", "idp.pinstream.invalid"
LOGIN = "us@er:p:w%/"
EACH = 20

FAULTS = {
    WayOut.REFUSE: "answered 403: let it allow api.pinstream.invalid:443",
    WayOut.GATEWAY: "answered 502: it cannot reach api.pinstream.invalid:443 itself",
    WayOut.PAGE: "accepted the connection to api.pinstream.invalid:443, and then ended it or answered itself",
    WayOut.SILENT: "did not open a connection to api.pinstream.invalid:443 in time",
    WayOut.DEAF: "did not open a connection to api.pinstream.invalid:443 in time",
    WayOut.INSPECT: "is signed by an authority that is not known here",
}
"""What the message says about each fault."""


class Company:
    """A network whose only way out is a proxy."""

    def __init__(self, servers: Loop, api: Api, folder: Path) -> None:
        self._servers = servers
        self.authority, self.inspector = Authority(folder, "company-ca"), Authority(folder, "proxy-ca")
        self.front = Proxy(servers, api.url, tls=self.authority.server(host=API))
        self.registry = Registry(servers)
        self.out = OutProxy({}, login=LOGIN, authority=self.inspector)
        self.login, self.bundle = folder / "login", folder / "bundle.pem"
        self.login.write_text(f"{LOGIN}\n")
        self.bundle.write_bytes(self.authority.file.read_bytes())

    def open(self) -> None:
        """Listen."""
        self.front.__enter__()
        self.registry.__enter__()
        self.out.routes |= {API: _place(self.front.url), REGISTRY: _place(self.registry.url)}
        self._servers.call(self.out.start())

    def close(self) -> None:
        """Stop listening."""
        self._servers.call(self.out.stop())
        self.registry.__exit__(None, None, None)
        self.front.__exit__(None, None, None)

    def set(self, mode: WayOut, login: str | None = LOGIN) -> None:
        """Make the proxy behave like this."""
        self._servers.call(self.out.set(mode, login))

    def settings(self) -> dict[str, str]:
        """The service's settings for it."""
        return {
            "HTTPS_PROXY": self.out.url,
            "HTTP_PROXY": self.out.url,
            "NO_PROXY": "other.invalid",
            "PINSTREAM_PROXY_CREDENTIALS_FILE": str(self.login),
            "PINSTREAM_CA_FILE": str(self.bundle),
            "PINTEREST_API_URL": f"https://{API}/v5",
            "SCHEMA_REGISTRY_URL": f"http://{REGISTRY}",
            # Short for a test, and long for a call that is answered, also on a machine that has much to do.
            "PINSTREAM_REQUEST_TIMEOUT": "2s",
        }


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


@pytest.fixture
def company(servers: Loop, api: Api, tmp_path: Path) -> Iterator[Company]:
    """A company whose proxy tunnels for those who know the password."""
    one = Company(servers, api, tmp_path)
    one.open()
    yield one
    one.close()


@pytest.fixture
def new_shop(new_shop: NewShop, company: Company) -> NewShop:
    """Shops of one partition in this company."""

    def make(**settings: str) -> Shop:
        return new_shop(partitions=1, **company.settings(), **switched(longest_wait=2.0), **settings)

    return make


def test_a_proxy_with_every_fault(new_shop: NewShop, company: Company) -> None:
    """Of each fault: nothing is committed or dead-lettered, log and /status name the proxy by host and port and say
    what to do, neither password nor token is told to anybody; then all is delivered, once, without a restart."""
    shop, schema_id = new_shop(), company.registry.add("orders-value", SCHEMA)
    written: list[str] = []

    def write(prefix: str) -> None:
        ids = [f"{prefix}-{number}" for number in range(EACH)]
        written.extend(ids)
        shop.write_registered(schema_id, *ids)

    write("first")
    with shop.run() as process:
        process.until_settled(EACH)
        for mode, words in FAULTS.items():
            settled = len(written)
            process.until(lambda: shop.committed == len(written), "the commit")
            company.set(mode)
            write(mode.value)
            reason = str(process.until(partial(_reason, process, words), f"the reason: {words}"))
            assert f"the proxy {company.out.place}" in reason
            if mode is WayOut.INSPECT:  # its authority is put where the line says
                company.bundle.write_bytes(company.bundle.read_bytes() + company.inspector.file.read_bytes())
            else:
                assert shop.committed == settled
                company.set(WayOut.TUNNEL)
            process.until(lambda: process.ledger()["delivered"] == len(written), "all of it")
        # Another password, that only the file is given.
        company.set(WayOut.TUNNEL, "us@er:another")
        write("password")
        process.until(lambda: _reason(process, "refused the user and password"), "the refusal")
        company.login.write_text("us@er:another")
        process.until_settled(len(written))
    assert shop.api.accepted() == dict.fromkeys(written, 1), "all of them, once"
    assert shop.letters == []
    for secret in (LOGIN.partition(":")[2], "another", TOKEN):
        assert secret not in process.stderr.replace("another authority", "")


def _reason(process: Process, words: str) -> str | None:
    """What the log says about the latest call without a verdict, if that has these words."""
    lines = [line for line in process.log if line.get("event") == "no_verdict"]
    return str(lines[-1]["said"]) if lines and words in str(lines[-1]["said"]) else None


def test_check_says_which_way_it_goes(new_shop: NewShop, company: Company) -> None:
    """Pinterest and registry are reached through the proxy; without the password one line for each says what is
    missing."""
    shop = new_shop(COLUMNS="300")
    found = shop.command("check", "--send-test-event").stdout
    assert f"{API}:443 is reached through the proxy {company.out.place}" in found
    del shop.env["PINSTREAM_PROXY_CREDENTIALS_FILE"]
    found = shop.command("check", "--send-test-event", code=1).stdout
    asks = f"the proxy {company.out.place} answered 407: it asks for a user and password"
    reported = [line for line in found.splitlines() if asks in line]
    for row in ("schema registry", "way to Pinterest", "test events"):
        assert any(line.startswith(row) for line in reported), found


def test_tokens_of_kafka_take_the_same_way(
    secured_kafka: SecuredBroker, servers: Loop, api: Api, company: Company, tmp_path: Path
) -> None:
    """librdkafka's own curl uses the proxy, with the password of the file, and trusts the same authorities."""
    secured_kafka.grant_all("shop")
    shop = Shop(secured_kafka.plain, api, tmp_path, partitions=1, **company.settings())
    schema_id = company.registry.add("orders-value", SCHEMA)
    shop.write_registered(schema_id, *(f"token-{number}" for number in range(EACH)))
    issuer = Issuer(secured_kafka.signer)
    try:
        with Proxy(servers, issuer.url, tls=company.authority.server(host=IDP)) as front:
            company.out.routes[IDP] = _place(front.url)
            shop.env |= environment(secured_kafka.with_token(f"https://{IDP}/token", "shop"))
            assert shop.serve(EACH)["delivered"] == EACH
            assert f"CONNECT {IDP}:443" in company.out.asked
    finally:
        issuer.close()
