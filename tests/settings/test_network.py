"""Proxies and authorities in the environment: what is read, what librdkafka is given, and what is never shown."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.app.building import network
from consumer.settings import load
from consumer.settings.network import curl_environment
from tests.settings.environment import refused, with_
from tests.support.certificates import Authority

API = "https://api.pinterest.com/v5"
OIDC = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
    "KAFKA_SASL_OAUTHBEARER_METHOD": "oidc",
    "KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": "https://idp.example.com/token",
}


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_the_standard_variables_are_read() -> None:
    """HTTPS_PROXY and NO_PROXY, in small letters too, which are preferred, also when they are empty."""
    assert str(network(with_(HTTPS_PROXY="http://one:1")).proxy(API)) == "one:1"
    assert str(network(with_(HTTPS_PROXY="one:1")).proxy(API)) == "one:1"
    assert str(network(with_(HTTPS_PROXY="http://one:1", https_proxy="http://two:2")).proxy(API)) == "two:2"
    assert network(with_(HTTPS_PROXY="http://one:1", https_proxy="")).proxy(API) is None
    assert network(with_(HTTPS_PROXY="http://one:1", no_proxy=".pinterest.com")).proxy(API) is None
    assert network(with_(HTTP_PROXY="http://one:1", ALL_PROXY="socks5://two:2")).proxy(API) is None
    assert str(network(with_(HTTPS_PROXY="http://[::1]:3128/")).proxy(API)) == "[::1]:3128"


def test_what_sends_nothing_out_does_not_judge_them() -> None:
    """`explain` works in a shell whose proxy is not for us."""
    found = load({"HTTPS_PROXY": "socks5://x:1", "SSL_CERT_FILE": "/nowhere"}, needs=())
    assert found.network.ssl_cert_file is None


def test_user_and_password(tmp_path: Path) -> None:
    """From the URL, from a setting, or from a file, which is read again when it changes; shown by none of them."""
    file = tmp_path / "login"
    file.write_text("user:pass%word@1\n")
    assert _login(HTTPS_PROXY="http://user:hush%40@one:1") == "user:hush@"
    assert _login(HTTPS_PROXY="http://one:1", PINSTREAM_PROXY_CREDENTIALS="a:b") == "a:b"
    found = with_(HTTPS_PROXY="http://user:hush@one:1", PINSTREAM_PROXY_CREDENTIALS_FILE=str(file))
    assert "hush" not in f"{found!r}{found}"
    way = network(found)
    assert (proxy := way.proxy(API)) is not None
    assert proxy.login == "user:pass%word@1"
    file.write_text("user:another")
    assert (proxy := way.proxy(API)) is not None
    assert proxy.login == "user:another"


def _login(**settings: str) -> str | None:
    proxy = network(with_(**settings)).proxy(API)
    assert proxy is not None
    return proxy.login


def test_what_contradicts_itself(tmp_path: Path) -> None:
    """Both ways to give the password; a file without one; and a password without a proxy, which is only told."""
    file = tmp_path / "login"
    file.write_text("hush")
    both = {"PINSTREAM_PROXY_CREDENTIALS": "a:b", "PINSTREAM_PROXY_CREDENTIALS_FILE": str(file)}
    assert refused(**both).endswith("are both set; keep one of them")
    message = refused(HTTPS_PROXY="http://one:1", PINSTREAM_PROXY_CREDENTIALS_FILE=str(file))
    assert message.startswith(
        f"PINSTREAM_PROXY_CREDENTIALS_FILE: {str(file)!r}: the text in the file has no colon"
    )
    assert "hush" not in message
    assert any("there is no proxy" in line for line in with_(PINSTREAM_PROXY_CREDENTIALS="a:b").warnings)


def test_librdkafkas_curl_finds_the_password_in_the_environment(tmp_path: Path) -> None:
    """It reads the proxy there and nowhere else; the password may have any characters."""
    file = tmp_path / "login"
    file.write_text("us@er:p:w/%")
    proxied = {"HTTPS_PROXY": "http://proxy.corp:3128", "PINSTREAM_PROXY_CREDENTIALS_FILE": str(file)}
    assert curl_environment(with_(**proxied)) == {}
    found = curl_environment(with_(**OIDC, **proxied, HTTP_PROXY="http://[::1]:3128"))
    assert found == {
        "https_proxy": "http://us%40er:p%3Aw%2F%25@proxy.corp:3128",
        "http_proxy": "http://us%40er:p%3Aw%2F%25@[::1]:3128",
    }
    assert os.environ["https_proxy"] == found["https_proxy"]
    kept = curl_environment(with_(**OIDC, HTTPS_PROXY="http://a:b@proxy.corp:3128"))
    assert kept == {"https_proxy": "http://a:b@proxy.corp:3128"}


def test_librdkafka_trusts_whom_we_trust(tmp_path: Path) -> None:
    """Its own default is a file that Debian does not have. What the user sets about it is left alone."""
    ours = Authority(tmp_path, "ours").file
    pem = with_(**OIDC, PINSTREAM_CA_FILE=str(ours)).kafka.client_properties()["https.ca.pem"]
    assert ours.read_text() in pem
    context = ssl.create_default_context(cafile=str(ours))
    merged = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    merged.load_verify_locations(cadata=pem)
    assert len(merged.get_ca_certs()) >= len(context.get_ca_certs())
    alone = with_(**OIDC, SSL_CERT_FILE=str(ours)).kafka.client_properties()["https.ca.pem"]
    assert alone == ours.read_text()
    set_by_the_user = with_(**OIDC, KAFKA_HTTPS_CA_LOCATION=str(ours)).kafka.client_properties()
    assert "https.ca.pem" not in set_by_the_user
    assert "https.ca.pem" not in with_(PINSTREAM_CA_FILE=str(ours)).kafka.client_properties()
