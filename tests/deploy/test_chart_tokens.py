"""Tokens in the chart: one for each ad account (`accessTokens`), in a folder; what a collector wants in headers, and
what a proxy on the way out wants."""

from __future__ import annotations

import pytest

from tests.deploy.rendering import rendered, template

FIRST = 'accessTokens={"549755885175": {"name": "theirs", "key": "a"}, "549755885176": {"name": "theirs", "key": "b"}}'
BY_ACCOUNT = ("secrets.PINTEREST_ACCESS_TOKEN=null", FIRST)


@pytest.mark.parametrize("example", ["statefulset", "deployment"])
def test_a_token_for_each_account_is_a_file_of_its_name(example: str) -> None:
    """The folder is mounted as a whole, so that each file changes with its Secret."""
    more = 'settings.PINTEREST_EXTRA_AD_ACCOUNT_IDS="549755885176"'
    chart = rendered(example, *BY_ACCOUNT, more)
    [volume] = [one for one in chart.pod()["volumes"] if one["name"] == "tokens"]
    items = {one["secret"]["items"][0]["path"]: one["secret"] for one in volume["projected"]["sources"]}
    assert items.keys() == {"549755885175", "549755885176"}
    assert items["549755885176"]["items"][0]["key"] == "b"
    mounts = {one["name"]: one["mountPath"] for one in chart.container()["volumeMounts"]}
    assert chart.environment()["PINTEREST_ACCESS_TOKEN_FILE"] == mounts["tokens"]


def test_an_account_without_a_token_is_refused() -> None:
    """The chart's account and the further ones, each by its name."""
    more = 'settings.PINTEREST_EXTRA_AD_ACCOUNT_IDS="549755885176, 7"'
    assert 'accessTokens has no "7"' in template("statefulset", *BY_ACCOUNT, more).stderr


def test_the_headers_for_a_collector_are_a_secret() -> None:
    """Mounted as a file, which the variable names as pinstream reads it."""
    name = "OTEL_EXPORTER_OTLP_HEADERS"
    chart = rendered("deployment", f'secrets.{name}={{"name": "otel", "key": "headers"}}')
    assert chart.environment()[f"{name}_FILE"] == f"/etc/pinstream/secrets/{name}"
    [volume] = [one for one in chart.pod()["volumes"] if one["name"] == "secrets"]
    found = {one["secret"]["items"][0]["path"]: one["secret"] for one in volume["projected"]["sources"]}
    assert found[name]["name"] == "otel"


def test_the_way_out_through_a_proxy() -> None:
    """The proxy's port is open; its password and a private authority are files; the authority may be in a ConfigMap."""
    chart = rendered(
        "statefulset",
        'settings={"HTTPS_PROXY": "http://proxy.corp:3128", "NO_PROXY": ".svc"}',
        'secrets.PINSTREAM_PROXY_CREDENTIALS={"name": "proxy", "key": "login"}',
        'secrets.PINSTREAM_CA={"configMap": "company-ca", "key": "ca.crt"}',
    )
    environment = chart.environment()
    assert environment["HTTPS_PROXY"] == "http://proxy.corp:3128"
    assert (
        environment["PINSTREAM_PROXY_CREDENTIALS_FILE"]
        == "/etc/pinstream/secrets/PINSTREAM_PROXY_CREDENTIALS"
    )
    assert environment["PINSTREAM_CA_FILE"] == "/etc/pinstream/secrets/PINSTREAM_CA"
    [volume] = [one for one in chart.pod()["volumes"] if one["name"] == "secrets"]
    sources = volume["projected"]["sources"]
    items = [{"key": "ca.crt", "path": "PINSTREAM_CA"}]
    assert {"configMap": {"name": "company-ca", "items": items}} in sources
    ports = chart.one("NetworkPolicy")["spec"]["egress"][1]["ports"]
    assert {"port": 3128, "protocol": "TCP"} in ports
