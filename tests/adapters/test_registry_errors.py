"""Errors for wrong settings of the registry: each is one line that names the cause and what to change.

Servers, certificates and tokens are real; only the registry is the fake.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.schemas import RegistrySchemas
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.errors import RegistryError
from tests.adapters.fake_registry import FakeRegistry
from tests.support.certificates import Authority
from tests.support.kafka.broker import free_ports
from tests.support.kafka.secured import PASSWORD, Issuer, Signer

BASIC = {"basic.auth.user.info": f"shop:{PASSWORD}"}
FOUND = SchemaFound(SchemaRef("id", "1"), '"string"')
GUID = "89791762-2336-4186-9674-299b90a802e2"


@pytest.fixture(name="registry")
async def _registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        registry.add("t", '"string"')
        yield registry


@pytest.fixture(name="authority")
def _authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "registry-ca")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """Yield an issuer of tokens."""
    found = Issuer(Signer())
    yield found
    found.close()


async def fetched(config: dict[str, str], kind: str = "id") -> SchemaAnswer:
    """Return the answer about the first schema with this configuration."""
    schemas = RegistrySchemas(config, timeout=10)
    answer = await schemas.fetch(FetchSchema(SchemaRef(kind, "1" if kind == "id" else GUID)))
    await schemas.close()
    return answer


async def reported(config: dict[str, str], kind: str = "id") -> str:
    """Return why a schema is unavailable with this configuration."""
    answer = await fetched(config, kind)
    assert isinstance(answer, SchemaUnavailable)
    assert "\n" not in answer.reason
    assert PASSWORD not in answer.reason
    return answer.reason


async def served(tls: ssl.SSLContext, config: dict[str, str], scheme: str = "https") -> str:
    """Return why a schema is unavailable at a registry with this TLS context."""
    async with FakeRegistry(tls=tls) as registry:
        return await reported({"url": registry.url.replace("https", scheme), **config})


# ----------------------------------------------------------------------------------------------- TLS


async def test_an_authority_that_is_not_known(tmp_path: Path, authority: Authority) -> None:
    """With and without a file of authorities; with the right file the schema is found."""
    line = await served(authority.server(), {})
    assert line == (
        "the certificate of the registry is signed by an authority that this machine does not know: set "
        "SCHEMA_REGISTRY_SSL_CA_LOCATION or PINSTREAM_CA_FILE to a file with the certificate of that authority"
    )
    other = Authority(tmp_path, "other-ca")
    line = await served(authority.server(), {"ssl.ca.location": str(other.file)})
    assert f"an authority that is not in {other.file}: set SCHEMA_REGISTRY_SSL_CA_LOCATION" in line
    async with FakeRegistry(tls=authority.server()) as registry:
        registry.add("t", '"string"')
        assert await fetched({"url": registry.url, "ssl.ca.location": str(authority.file)}) == FOUND


async def test_a_wrong_scheme_is_reported(authority: Authority, registry: FakeRegistry) -> None:
    """http to a registry with TLS and https to one without are reported with the scheme to write."""
    line = await served(authority.server(), {}, "http")
    assert line.endswith("if it requires TLS, write https:// in SCHEMA_REGISTRY_URL")
    line = await reported({"url": registry.url.replace("http", "https")})
    assert line.startswith(
        "the registry does not speak TLS at this address: write http:// in SCHEMA_REGISTRY_URL"
    )


async def test_a_certificate_of_the_client(tmp_path: Path, authority: Authority) -> None:
    """A missing or foreign client certificate is reported with its settings; with the right one the schema is found."""
    tls = authority.server()
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(authority.file)
    trust = {"ssl.ca.location": str(authority.file)}
    both = "SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION and SCHEMA_REGISTRY_SSL_KEY_LOCATION"
    assert (await served(tls, trust)).endswith(f"if it asks for a client's certificate, set {both}")
    strange = str(Authority(tmp_path, "other-ca").issue(host="shop"))
    line = await served(tls, {**trust, "ssl.certificate.location": strange})
    assert line.endswith(f"it may not accept the client's certificate; check {both}")
    ours = str(authority.issue(host="shop"))
    async with FakeRegistry(tls=tls) as registry:
        registry.add("t", '"string"')
        assert await fetched({"url": registry.url, **trust, "ssl.certificate.location": ours}) == FOUND


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    """A file that is no certificate, or cannot be read, is refused with the names of the settings."""
    (tmp_path / "ca.pem").write_text("nonsense")
    line = "SCHEMA_REGISTRY_SSL_… name cannot be used: they must be readable and PEM"
    for own in ("ca.pem", "."):
        config = {"url": "https://r", "ssl.certificate.location": str(tmp_path / own)}
        with pytest.raises(RegistryError, match=line):
            RegistrySchemas(config)
    with pytest.raises(RegistryError, match=line):
        RegistrySchemas({"url": "https://r", "ssl.ca.location": str(tmp_path / "ca.pem")})


# ---------------------------------------------------------------------------------- address and login


async def test_a_closed_port_and_an_unknown_host_are_reported(registry: FakeRegistry) -> None:
    """A closed port and an unknown host name are reported with what to check."""
    line = await reported({"url": f"http://127.0.0.1:{free_ports(1)[0]}"})
    assert line.startswith("the registry refuses connections: check whether it runs")
    line = await reported({"url": "http://registry.invalid"})
    assert line.startswith("the host name of the registry is unknown: correct SCHEMA_REGISTRY_URL")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        *((status, None, "id", str(status)) for status in (400, 403, 408, 409, 422, 429, 500, 502, 504)),
        (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}', "id", "404"),
        (404, b"[]", "id", "404"),
        (404, b"<html>no</html>", "id", "404: SCHEMA_REGISTRY_URL lacks its path (Apicurio's ends in"),
        (
            404,
            b'{"error_code": 0}',
            "guid",
            "it has no schemas by GUID, or SCHEMA_REGISTRY_URL lacks its path",
        ),
        (302, b"", "id", "it sends us to another address; set SCHEMA_REGISTRY_URL to that"),
        (403, b"", "id", "this user may not do that; grant it the right"),
        (503, b"", "id", "the registry answered 503: check the registry, and what is in front of it"),
        (401, b"", "id", "it requires a login; set SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO, or"),
        (200, b"", "id", "has no schema"),
        (200, b"<html>hello</html>", "id", "the answer is not JSON (a web page?); correct the address"),
        (200, b"{}", "id", "has no schema (ValueError): check what answers at SCHEMA_REGISTRY_URL"),
        (200, b"[]", "id", "has no schema"),
        (200, b'{"schema": ""}', "id", "has no schema"),
        (200, b'{"schema": "x", "references": [{}]}', "id", "correct the address"),
    ],
)
async def test_an_answer_that_is_no_registry_s_is_reported(
    registry: FakeRegistry, status: int, body: bytes | None, kind: str, words: str
) -> None:
    """It is no verdict on the schema: asked once, it is reported with what to correct."""
    registry.faults.status, registry.faults.body = status, body
    assert words in await reported({"url": registry.url}, kind)
    assert registry.requests.count(registry.requests[0]) == 1


async def test_a_wrong_password(registry: FakeRegistry) -> None:
    """A wrong password is reported with its setting and not its value; the right one is sent."""
    registry.credentials = "shop:another"
    line = await reported({"url": registry.url, **BASIC})
    assert line.endswith("it refused the login; check SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO")
    registry.credentials = f"shop:{PASSWORD}"
    assert await fetched({"url": registry.url, **BASIC}) == FOUND


# ------------------------------------------------------------------------------------------- tokens


def by_token(registry: FakeRegistry, endpoint: str, secret: str = PASSWORD) -> dict[str, str]:
    """Return the properties for a login with tokens of `endpoint`."""
    return {
        "url": registry.url,
        "bearer.auth.credentials.source": "OAUTHBEARER",
        "bearer.auth.client.id": "shop",
        "bearer.auth.client.secret": secret,
        "bearer.auth.issuer.endpoint.url": endpoint,
        "bearer.auth.logical.cluster": "",
        "bearer.auth.scope": "",
    }


async def test_the_endpoint_refuses(registry: FakeRegistry, issuer: Issuer) -> None:
    """A wrong secret, an outage, an answer without a token, a closed port."""
    line = await reported(by_token(registry, issuer.url, "not-the-secret"))
    assert line.startswith(
        "the token endpoint answered invalid_client: check SCHEMA_REGISTRY_BEARER_AUTH_CLIENT_ID,"
    )
    assert "not-the-secret" not in line
    for fails, words in (
        (
            (500, b"<html>"),
            "the token endpoint answered 500: check SCHEMA_REGISTRY_BEARER_AUTH_ISSUER_ENDPOINT_URL",
        ),
        ((200, b"<html>"), "the token endpoint's answer contains no token"),
        ((200, b"{}"), "the token endpoint's answer contains no token"),
        (
            (200, json.dumps({"pad": "x" * (5 << 20)}).encode()),
            "the token endpoint's answer is larger than 4 MiB: check",
        ),
    ):
        issuer.fails = fails
        assert (await reported(by_token(registry, issuer.url))).startswith(words)
    line = await reported(by_token(registry, f"http://127.0.0.1:{free_ports(1)[0]}/token"))
    assert line.startswith("the token endpoint refuses connections: check whether it runs")


async def test_a_refused_login_at_the_endpoint_is_a_refusal(registry: FakeRegistry, issuer: Issuer) -> None:
    """A wrong secret is one: `check` fails, although schemas are on disk. An outage is none."""
    for secret, fails, refused in (("wrong", None, True), (PASSWORD, (500, b""), False)):
        issuer.fails = fails
        answer = await fetched(by_token(registry, issuer.url, secret))
        assert isinstance(answer, SchemaUnavailable)
        assert answer.refused is refused


async def test_a_refused_token_is_replaced(registry: FakeRegistry, issuer: Issuer) -> None:
    """A token that the registry refuses, as after a change of its keys, is replaced at the next attempt."""
    registry.faults.status = 401
    schemas = RegistrySchemas(by_token(registry, issuer.url))
    for _ in range(2):
        answer = await schemas.fetch(FetchSchema(SchemaRef("id", "1")))
        assert isinstance(answer, SchemaUnavailable)
        assert (
            "it refused the token; check what it requires of tokens (issuer, audience, scope)"
            in answer.reason
        )
    assert issuer.given == 2
    registry.faults.status = None
    for number in ("1", "1"):
        assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", number))), SchemaFound)
    assert issuer.given == 3
    await schemas.close()


@pytest.mark.parametrize("ids", [{}, {"expires_in": "3600"}, {"expires_in": 3600}, {"expires_in": None}])
async def test_how_long_a_token_ids(registry: FakeRegistry, issuer: Issuer, ids: dict[str, Any]) -> None:
    """With a life as a number, as text or missing, one token is used for all queries."""
    for size in range(3):
        registry.add("t", f'{{"type": "fixed", "name": "F", "size": {size}}}')
    issuer.fails = (200, json.dumps({"access_token": "t", "token_type": "Bearer", **ids}).encode())
    schemas = RegistrySchemas(by_token(registry, issuer.url))
    for number in ("1", "2", "3"):
        assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", number))), SchemaFound)
    assert issuer.given == 1
    issuer.fails = (500, b"not asked again")
    assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", "4"))), SchemaFound)
    await schemas.close()


async def test_a_token_that_is_about_to_end_is_replaced(registry: FakeRegistry, issuer: Issuer) -> None:
    """A token that is about to expire is replaced before the registry would refuse it."""
    registry.add("t", '"int"')
    issuer.lifetime = 0.5
    schemas = RegistrySchemas(by_token(registry, issuer.url))
    for number in ("1", "2"):
        assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", number))), SchemaFound)
    assert issuer.given == 2
    await schemas.close()


async def test_the_metadata_service_of_azure_is_asked_without_a_proxy(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on this machine, whatever the environment says of proxies."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with FakeRegistry() as azure:
        azure.faults.body = json.dumps({"access_token": "t", "expires_in": 60, "expires_on": 2**40}).encode()
        schemas = RegistrySchemas(
            {
                "url": registry.url,
                "bearer.auth.credentials.source": "OAUTHBEARER_AZURE_IMDS",
                "bearer.auth.issuer.endpoint.url": f"{azure.url}/metadata",
                "bearer.auth.issuer.endpoint.query": "resource=registry",
                "bearer.auth.logical.cluster": "",
                "bearer.auth.identity.pool.id": "pool",
            }
        )
        ref = SchemaRef("id", "1")
        assert await schemas.fetch(FetchSchema(ref)) == SchemaFound(ref, '"string"')
        await schemas.close()
        assert azure.requests == ["/metadata"]


async def test_the_endpoint_s_certificate(registry: FakeRegistry, authority: Authority) -> None:
    """The token endpoint's certificate is checked with the registry's file of authorities."""
    async with FakeRegistry(tls=authority.server()) as endpoint:
        config = by_token(registry, f"{endpoint.url}/token")
        line = await reported(config)
        assert (
            "the certificate of the token endpoint is signed by an authority that this machine does not know"
            in line
        )
        line = await reported({**config, "ssl.ca.location": str(authority.file)})
        assert line.startswith("the token endpoint's answer contains no token")
