"""Each way to reach a secured broker: the service delivers, and the other commands work as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.secured.commands import USER, all_reach
from tests.support.kafka.secured import Issuer, Properties, SecuredBroker, environment

Way = Callable[[SecuredBroker, Issuer], Properties]
WAYS: dict[str, Way] = {
    "TLS": lambda broker, _: broker.over_tls(),
    "client certificate": lambda broker, _: broker.over_mutual_tls(USER),
    "PLAIN": lambda broker, _: broker.with_login(USER),
    "SCRAM-SHA-512": lambda broker, _: broker.with_login(USER, "SCRAM-SHA-512"),
    "OAUTHBEARER": lambda broker, issuer: broker.with_token(issuer.url, USER),
}


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Issues the tokens that the broker accepts."""
    found = Issuer(secured_kafka.signer)
    yield found
    found.close()


@pytest.mark.parametrize("way", WAYS)
def test_commands_reach_the_broker(
    way: str, secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """Passwords and keys come from files."""
    all_reach(
        secured_kafka,
        api,
        tmp_path,
        secrets_in_files(tmp_path, environment(WAYS[way](secured_kafka, issuer))),
    )


def secrets_in_files(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    """The same settings with every secret in a file, as orchestrators mount them."""
    found: dict[str, str] = {}
    for name, value in variables.items():
        if name.endswith(("_PASSWORD", "_SECRET")):
            file = folder / name.lower()
            file.write_text(f"{value}\n")
            found[f"{name}_FILE"] = str(file)
        else:
            found[name] = value
    return found
