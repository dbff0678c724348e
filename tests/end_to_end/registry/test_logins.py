"""A registry with TLS of a private authority and a login: each way to log in, each mistake, and an outage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from consumer.adapters.schemas import RegistrySchemas
from consumer.engine.messages import FetchSchema, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.settings import load
from tests.end_to_end.processes import Process, command
from tests.end_to_end.registry.serialising import evolved, write
from tests.end_to_end.shop import NewShop, Shop
from tests.support.certificates import Authority
from tests.support.kafka.secured import PASSWORD
from tests.support.registry.apicurio import SecuredRegistry

USER = "reader"
"""A user who may only read schemas: the service needs no more."""


@pytest.fixture
def client(secured_registry: SecuredRegistry) -> Iterator[SchemaRegistryClient]:
    """The producer's client, which may do everything."""
    config = {
        "url": secured_registry.url,
        "ssl.ca.location": str(secured_registry.authority.file),
        "basic.auth.user.info": f"shop:{PASSWORD}",
    }
    with SchemaRegistryClient(config) as one:
        yield one


@pytest.fixture(autouse=True)
def _long_ids(secured_registry: SecuredRegistry) -> None:
    secured_registry.issuer.lifetime = 60.0


def by_password(_: SecuredRegistry, user: str = USER) -> dict[str, str]:
    """Settings of a login with a password."""
    return {"BASIC_AUTH_USER_INFO": f"{user}:{PASSWORD}"}


def by_oauth(registry: SecuredRegistry, user: str = USER) -> dict[str, str]:
    """Settings of a login with tokens that the client gets."""
    return {
        "BEARER_AUTH_CREDENTIALS_SOURCE": "OAUTHBEARER",
        "BEARER_AUTH_CLIENT_ID": user,
        "BEARER_AUTH_CLIENT_SECRET": PASSWORD,
        "BEARER_AUTH_ISSUER_ENDPOINT_URL": registry.issuer.url,
    }


def by_fixed_token(registry: SecuredRegistry, user: str = USER, lifetime: float = 600) -> dict[str, str]:
    """Settings of a login with a token that another program gets."""
    return {
        "BEARER_AUTH_CREDENTIALS_SOURCE": "STATIC_TOKEN",
        "BEARER_AUTH_TOKEN": registry.signer.token(user, lifetime),
    }


WAYS = {"password": by_password, "OAuth": by_oauth, "fixed token": by_fixed_token}
_SECRETS = ("USER_INFO", "SECRET", "TOKEN")


def environment(registry: SecuredRegistry, folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """The variables for these settings, with secrets in files, as orchestrators mount them."""
    found = {
        "SCHEMA_REGISTRY_URL": registry.url,
        "SCHEMA_REGISTRY_SSL_CA_LOCATION": str(registry.authority.file),
    }
    for name, value in settings.items():
        if name.endswith(_SECRETS):
            (folder / name.lower()).write_text(f"{value}\n")
            found[f"SCHEMA_REGISTRY_{name}_FILE"] = str(folder / name.lower())
        else:
            found[f"SCHEMA_REGISTRY_{name}"] = value
    return found


@pytest.fixture
def shop(new_shop: NewShop, secured_registry: SecuredRegistry) -> Shop:
    """One of one partition, which logs in with a password."""
    shop = new_shop(partitions=1)
    shop.env |= environment(secured_registry, shop.folder, by_password(secured_registry))
    return shop


@pytest.mark.parametrize("way", WAYS)
def test_each_login_reads_schemas(
    way: str, new_shop: NewShop, secured_registry: SecuredRegistry, client: SchemaRegistryClient
) -> None:
    """`check` finds everything in order, and `run` delivers, as a user who may only read. No secret is shown."""
    shop = new_shop(partitions=1)
    shop.env |= environment(secured_registry, shop.folder, WAYS[way](secured_registry))
    write(shop.kafka, shop.topic, client, ["one", "two"])
    checked = shop.command("check")
    with shop.run() as service:
        service.until_settled(2)
    assert shop.api.accepted() == {"one": 1, "two": 1}
    assert PASSWORD not in service.stderr + service.stdout + checked.stdout


def test_idle_for_longer_than_a_token_ids(
    new_shop: NewShop, secured_registry: SecuredRegistry, client: SchemaRegistryClient
) -> None:
    """The next schema is fetched with a new token. The token endpoint is down for a while then: the record waits."""
    issuer, shop = secured_registry.issuer, new_shop(partitions=1)
    shop.env |= environment(secured_registry, shop.folder, by_oauth(secured_registry))
    write(shop.kafka, shop.topic, client, ["one"])
    client.register_schema(f"{shop.topic}-value", evolved())
    issuer.lifetime = 2.0
    with shop.run() as service:
        service.until_settled(1)
        ends = time.time() + issuer.lifetime
        service.until(lambda: time.time() > ends, "the end of its token")
        issuer.fails = (503, b"away")
        write(shop.kafka, shop.topic, client, ["two"], evolved())  # this client remembers what it registered
        endpoint = "SCHEMA_REGISTRY_BEARER_AUTH_ISSUER_ENDPOINT_URL"
        until_reported(service, f"the token endpoint answered 503: check {endpoint}")
        given, issuer.fails = issuer.given, None
        assert service.until_settled(2)["delivered"] == 2
        assert issuer.given > given
    assert shop.committed == 2


def until_reported(service: Process, line: str) -> None:
    """Wait until the log says that a schema could not be fetched for this reason."""

    def reported() -> bool:
        said = [one["reason"] for one in service.log if one.get("event") == "schema_unavailable"]
        return any(reason.startswith(line) for reason in said)

    service.until(reported, line)


async def test_wrong_settings(shop: Shop, secured_registry: SecuredRegistry, tmp_path: Path) -> None:
    """One line says what to change, and `check` says it in the registry's row; neither shows a secret."""
    env = {name: value for name, value in shop.env.items() if not name.startswith("SCHEMA_REGISTRY_")}
    right = {"URL": secured_registry.url, "SSL_CA_LOCATION": str(secured_registry.authority.file)}
    other = str(Authority(tmp_path, "other-ca").file)
    base, _, _ = secured_registry.url.partition("/apis/")
    wrong: dict[str, tuple[dict[str, str], str]] = {
        "no login": (
            {},
            "401: it requires a login; set SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO, or",
        ),
        "wrong password": (
            {"BASIC_AUTH_USER_INFO": "reader:not-the-password"},
            "it refused the login; check SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO",
        ),
        "wrong secret": (
            {**by_oauth(secured_registry), "BEARER_AUTH_CLIENT_SECRET": "not-the-password"},
            "the token endpoint answered invalid_client: check SCHEMA_REGISTRY_BEARER_AUTH_CLIENT_ID",
        ),
        "expired token": (
            by_fixed_token(secured_registry, lifetime=-60),
            "401: it refused the token; check",
        ),
        "no right": (
            by_oauth(secured_registry, "nobody"),
            "403: this user may not do that; grant it the right",
        ),
        "unknown authority": (
            {"SSL_CA_LOCATION": other},
            f"is signed by an authority that is not in {other}: set SCHEMA_REGISTRY_SSL_CA_LOCATION",
        ),
        "no TLS": (
            {"URL": secured_registry.url.replace("https", "http")},
            "if it requires TLS, write https:// in SCHEMA_REGISTRY_URL",
        ),
        "no path": (
            {"URL": base, **by_oauth(secured_registry)},
            "404: SCHEMA_REGISTRY_URL lacks its path",
        ),
        "web page": (
            {"URL": f"{base}/ui", **by_oauth(secured_registry)},
            "404: SCHEMA_REGISTRY_URL lacks",
        ),
    }
    for case, (settings, line) in wrong.items():
        named = {f"SCHEMA_REGISTRY_{name}": value for name, value in {**right, **settings}.items()}
        schemas = RegistrySchemas(load({**env, **named}).registry.client_configuration())
        answer = await schemas.fetch(FetchSchema(SchemaRef("id", "1")))
        await schemas.close()
        assert isinstance(answer, SchemaUnavailable), case
        assert line in answer.reason, case
        assert "not-the-password" not in answer.reason
    named = {
        f"SCHEMA_REGISTRY_{name}": value for name, value in {**right, **wrong["wrong password"][0]}.items()
    }
    checked = command("check", env={**env, **named})
    assert checked.returncode == 1
    assert wrong["wrong password"][1] in " ".join(checked.stdout.split())
    assert "not-the-password" not in checked.stdout + checked.stderr
